"""Where connections to backends leave from: the configuration's ``[sources]``, and the kernel's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

from proxykit.errors import ConfigError
from proxykit.net import kernel

if TYPE_CHECKING:
    from proxykit.core.accountant import Accountant
    from proxykit.model import PortRange, Sources
    from proxykit.net.connector import Connector


class LeavingFrom:
    """See this module. The accountant and the connector are told."""

    _log = Logger()

    def __init__(self, accountant: Accountant, connector: Connector) -> None:
        self._accountant = accountant
        self._connector = connector
        self._wanted: PortRange | None = None
        #: Whether the kernel's own range is not around that any more.
        self._is_off = False

    def check(self, sources: Sources) -> None:
        """
        :raises ConfigError: this reactor, or this kernel, cannot do that.
        """
        wanted = sources.port_range
        if wanted is None:
            return
        if not self._accountant.late:
            why = "needs the proxykit reactor (twistd --reactor=proxykit, or none at all)"
            raise ConfigError([f"sources.port_range: {why}"])
        try:
            kernel.narrowed(wanted)
        except ValueError as error:
            raise ConfigError([f"sources.port_range: {error}"]) from error

    def have(self, sources: Sources) -> None:
        """These are in force now. Connections that are there stay where they are."""
        accountant = self._accountant
        accountant.halves = not (accountant.late and kernel.looks_at_all_alike())
        self._connector.ports = self._wanted = sources.port_range
        accountant.leave_from(sources.addresses, sources.headroom)
        accountant.measure(self.ports(), kernel.time_wait_reuse())
        for address in sources.addresses:
            if not kernel.is_local(address):
                self._log.warn(
                    "sources.addresses: {address} is not an address of this machine, so nothing"
                    " can leave from it",
                    address=address,
                )
        if sources.addresses and not accountant.late:
            self._log.warn(
                "sources.addresses: this reactor picks a source port before it knows where to, so"
                " each port of an address is good for one connection, wherever that leads; on the"
                " proxykit reactor for one to each backend"
            )

    def ports(self) -> PortRange:
        """The source ports there are to pick from, as the kernel has it now."""
        if self._wanted is None:
            ports = kernel.port_range()
            self._connector.whole = None if self._accountant.halves else ports
            return ports
        try:
            found, off = kernel.narrowed(self._wanted), ""
        except ValueError as error:
            # The kernel's range was set anew; what is said here is what the file says.
            found, off = self._wanted, str(error)
        if off and not self._is_off:
            self._log.warn("sources.port_range is not kept to any more: {why}", why=off)
        self._is_off = bool(off)
        return found
