"""What the kernel says: the ports it picks from, and the address it would connect from."""

from __future__ import annotations

import socket
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


def port_range(directory: Path = _IPV4) -> PortRange:
    """The ephemeral ports: ``ip_local_port_range`` less ``ip_local_reserved_ports``.

    :raises ValueError: the kernel says something that cannot be read.
    """
    try:
        low, high = map(int, (directory / "ip_local_port_range").read_text().split())
        reserved = (directory / "ip_local_reserved_ports").read_text().strip()
    except FileNotFoundError:
        return _DYNAMIC_PORTS
    count = 0
    for part in reserved.split(",") if reserved else ():
        first, _, last = part.partition("-")
        count += max(0, min(int(last or first), high) - max(int(first), low) + 1)
    return PortRange(low, high, count)


class SourceAddresses:
    """Which local address the kernel connects from, asked of it and kept for ten seconds.

    :param clock: tells the time.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, str]] = {}

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
            probe.connect((host, _PORT))
            source: str = probe.getsockname()[0]
        self._known[host] = (now + _SOURCE_KEPT, source)
        return source
