"""Whose word is believed on whom they speak for: their PROXY headers, their forwarding fields."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

if TYPE_CHECKING:
    from proxykit.model import ConnInfo

#: Stands for all clients on a unix socket.
UNIX = "unix"


class Trust:
    """The networks that are trusted.

    :param networks: such as ``10.0.0.0/8`` or ``::1``, or :data:`UNIX`.
    :raises ValueError: one of them is none.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        texts = set(networks)
        self._unix = UNIX in texts
        self._networks = [ip_network(text) for text in texts - {UNIX}]

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def believes(self, info: ConnInfo) -> bool:
        """Whether what it says in forwarding fields is kept.

        Not if it was relayed and its PROXY header does not say for whom: the relay's own word is
        believed, not that of somebody behind it. Nor if it was on a unix socket somewhere else.
        """
        if info.relay is not None and (
            info.relay is info.client or isinstance(info.client, UNIXAddress)
        ):
            return False
        return self.covers(info.client)

    def covers(self, client: Any) -> bool:
        """Whether this client is one of them, by its address."""
        if not isinstance(client, IPv4Address | IPv6Address):
            return self._unix and isinstance(client, UNIXAddress)
        if not self._networks:
            return False
        host = ip_address(client.host.partition("%")[0])
        host = getattr(host, "ipv4_mapped", None) or host
        return any(host in network for network in self._networks)
