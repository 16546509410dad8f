"""What the kernel says: the ports it picks from, and the addresses it would connect from."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from proxykit.model import PortRange

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

_IPV4 = Path("/proc/sys/net/ipv4")  # The range holds for IPv6 as well.
#: Where the kernel does not say: the dynamic ports of RFC 6335, section 6.
_DYNAMIC_PORTS = PortRange(49152, 65535)
#: Seconds for which the answer to "from where to there?" is kept; routes change.
_SOURCE_KEPT = 10.0
#: Any will do: a UDP socket that is connected sends nothing.
_PORT = 9
#: linux/in.h; the socket module has no name for it.
_IP_LOCAL_PORT_RANGE = 51
#: What is said of an address that this machine does not have, of one that would need a scope, and
#: of one whose whole family it does not have.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT)

#: Descriptors, where there is no limit; the kernel's own is no more (fs.nr_open).
_MANY = 1 << 20


def port_range(directory: Path | None = None) -> PortRange:
    """The ephemeral ports: ``ip_local_port_range`` less ``ip_local_reserved_ports``.

    :param directory: where the kernel's settings are; default: those of this machine.
    :raises ValueError: the kernel says something that cannot be read.
    """
    directory = directory or _IPV4
    try:
        low, high = map(int, (directory / "ip_local_port_range").read_text().split())
    except FileNotFoundError:
        return _DYNAMIC_PORTS
    return _less_reserved(low, high, directory)


def _less_reserved(low: int, high: int, directory: Path) -> PortRange:
    return PortRange(low, high, len(reserved(low, high, directory)))


def reserved(low: int, high: int, directory: Path | None = None) -> frozenset[int]:
    """Which ports of a range the kernel never picks, ``ip_local_reserved_ports``."""
    text = ((directory or _IPV4) / "ip_local_reserved_ports").read_text().strip()
    ports: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        ports.update(range(max(int(first), low), min(int(last or first), high) + 1))
    return frozenset(ports)


def narrowed(wanted: PortRange, directory: Path | None = None) -> PortRange:
    """A part of the ephemeral ports, less what is reserved in it, for :func:`narrow`.

    :raises ValueError: the kernel would not keep to it; the message says why.
    """
    directory = directory or _IPV4
    try:
        if not (directory / "ip_local_port_range").exists():
            raise OSError(errno.ENOPROTOOPT, "not Linux")
        with socket.socket() as probe:
            narrow(probe, wanted)
    except OSError as error:
        raise ValueError(
            f"a range of ports needs Linux 6.3 or later (IP_LOCAL_PORT_RANGE: {error.strerror})"
        ) from error
    whole = port_range(directory)
    if wanted.low < whole.low or wanted.high > whole.high:
        raise ValueError(
            f"expected a part of the kernel's own range, {whole.low}-{whole.high}"
            f" (net.ipv4.ip_local_port_range), not {wanted.low}-{wanted.high}: the kernel ignores"
            " what lies outside"
        )
    return _less_reserved(wanted.low, wanted.high, directory)


def narrow(connecting: socket.socket, ports: PortRange) -> None:
    """Have the kernel pick the source port of a socket, of either family, from these.

    :raises OSError: it cannot; Linux before 6.3 has no such option.
    """
    value = struct.pack("=I", ports.high << 16 | ports.low)
    connecting.setsockopt(socket.SOL_IP, _IP_LOCAL_PORT_RANGE, value)


def looks_at_all_alike(release: str | None = None) -> bool:
    """Whether a socket with a range, be it the whole, is given any port of it: since Linux 6.8.

    Others are first given every second port (core/remedies.py).

    :param release: of the kernel; default: this machine's.
    """
    found = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= (6, 8)


def time_wait_reuse(directory: Path | None = None) -> int:
    """``tcp_tw_reuse``: whether the kernel gives ports in TIME_WAIT out again.

    :returns: 0: never, as also without timestamps, by which it tells old segments from new; 1:
        always; 2: between loopback addresses.
    :raises ValueError: the kernel says something that cannot be read.
    """
    directory = directory or _IPV4
    try:
        if not int((directory / "tcp_timestamps").read_text()):
            return 0
    except FileNotFoundError:
        pass  # Not in each network namespace, in old kernels.
    try:
        return int((directory / "tcp_tw_reuse").read_text())
    except FileNotFoundError:
        return 0


def time_waits(directory: Path | None = None) -> int | None:
    """``tcp_max_tw_buckets``: how many sockets are kept in TIME_WAIT at the most.

    :returns: None: the kernel does not say.
    :raises ValueError: the kernel says something that cannot be read.
    """
    try:
        return int(((directory or _IPV4) / "tcp_max_tw_buckets").read_text())
    except FileNotFoundError:
        return None


def descriptors() -> int:
    """How many descriptors this process may have, if it raises its own limit as the service does.

    Where there is no limit, more than anybody needs.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MANY if hard == resource.RLIM_INFINITY else hard


def is_local(address: str) -> bool:
    """Whether this machine has an IP address, at this moment.

    :raises OSError: the kernel cannot be asked.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        raise
    return True


class SourceAddresses:
    """Which local address the kernel connects from, asked of it and kept for ten seconds.

    :param clock: tells the time.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, str]] = {}
        self._tidied = clock.seconds()

    def __call__(self, host: str) -> str:
        """The local IP address for connections to the IP address ``host``.

        :raises OSError: there is no way there.
        """
        now = self._clock.seconds()
        known = self._known.get(host)
        if known is not None and known[0] > now:
            return known[1]
        # Connecting a UDP socket makes the kernel choose, and sends nothing.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Looked up, though it is no name: the scope of a link-local address is a part of it.
            flags = socket.AI_NUMERICHOST
            (found,) = socket.getaddrinfo(host, _PORT, family, socket.SOCK_DGRAM, 0, flags)
            probe.connect(found[4])
            source: str = probe.getsockname()[0]
        if now - self._tidied >= _SOURCE_KEPT:
            # Backends come and go, and those that are gone are not asked about again.
            self._known = {each: kept for each, kept in self._known.items() if kept[0] > now}
            self._tidied = now
        self._known[host] = (now + _SOURCE_KEPT, source)
        return source
