"""What a connection begins with, before the mode gets it: the PROXY header that says whose it is.

Nothing behind the header is taken: where a transport lets what has come be looked at, just the
header is read; on other transports what was read with it is handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from zope.interface import implementer

from proxykit.core.rarely import Rarely
from proxykit.interfaces import ISnapshot
from proxykit.model import ConnInfo
from proxykit.net.relay import has_shortcuts
from proxykit.wire.proxyproto import LIMIT, HeaderReader, Malformed

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.core.trust import Trust
    from proxykit.wire.proxyproto import Endpoint, Header

#: What is given a connection whose header has been read: the protocol that has read it, whose
#: connection it is, and what was read behind the header.
Through = Callable[["HeaderProtocol", ConnInfo, bytes], object]


class Headers:
    """What the connections of one listener have in common that begin with a PROXY header.

    :param name: the listener's, for the log.
    :param trust: who may send one.
    :param timeout: seconds for the whole of it.
    :ivar refused: connections that were not let in, by the reason.
    """

    _log = Logger()

    def __init__(self, name: str, trust: Trust, timeout: float, deadlines: Deadlines) -> None:
        self.trust = trust
        self.timeout = timeout
        self.deadlines = deadlines
        self.refused: dict[str, int] = {}
        self._name = name
        self._rarely = Rarely(deadlines.clock)

    def refuse(self, info: ConnInfo, reason: str, why: str) -> None:
        """Count one that is not let in; the log has the first of many.

        :param reason: one of a fixed set of words.
        """
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self._rarely.warn_of(self._log, reason, info, " refused: {why}", why)

    def lets_in(self, client: Any) -> bool:
        """Whether what connects may send a header; whoever may not is refused."""
        trusted = self.trust.covers(client)
        if not trusted:
            why = "it may not send a PROXY header (trust)"
            self.refuse(ConnInfo(0, self._name, client), "not trusted", why)
        return trusted


@implementer(ISnapshot)
class HeaderProtocol(Protocol):
    """Reads the header, and gives the connection on.

    :param info: the connection as its socket has it.
    :param through: see :data:`Through`.
    """

    transport: Any
    _deadline: Deadline | None = None
    #: Bytes of the header that are gone from the kernel, where they are looked at there.
    _taken = 0

    def __init__(self, headers: Headers, info: ConnInfo, through: Through) -> None:
        self.info = info
        self._headers = headers
        self._through = through
        self._reader = HeaderReader()

    def connectionMade(self) -> None:
        """It is accepted."""
        headers = self._headers
        self._deadline = headers.deadlines.add(headers.timeout, self._late)
        if has_shortcuts(self.transport):
            self.transport.look(self._seen, LIMIT)

    def _seen(self, data: bytes) -> None:
        """This has come, and is still in the kernel."""
        header = self._feed(data)
        if header is not None:
            self.transport.consume(self._reader.size - self._taken)
            self.transport.look(None, 0)
            self._go_on(header, b"")
        elif self._deadline is not None:
            # All of it belongs to the header, whose end is still to come.
            self.transport.consume(len(data))
            self._taken += len(data)

    def dataReceived(self, data: bytes) -> None:
        """This has been read."""
        header = self._feed(data)
        if header is not None:
            self._go_on(header, self._reader.rest)

    def _feed(self, data: bytes) -> Header | None:
        try:
            header = self._reader.feed(data)
            if header is not None and header.datagram:
                raise Malformed("PROXY v2: a connection is a STREAM, not DGRAM")
        except Malformed as problem:
            self._refuse("malformed", problem.rule)
            return None
        return header

    def _go_on(self, header: Header, rest: bytes) -> None:
        """It is whole: the connection is whose it says."""
        self._rest()
        through, self._through = self._through, None  # type: ignore[assignment]
        through(self, told(self.info, header, self.transport.getHost()), rest)

    def _late(self) -> None:
        self._deadline = None
        self._refuse("late", f"no whole PROXY header within {self._headers.timeout:g} s")

    def _refuse(self, reason: str, why: str) -> None:
        self._rest()
        self._headers.refuse(self.info, reason, why)
        self.transport.abortConnection()

    def abort(self, why: str) -> None:
        """The service ends: that is not the client's doing."""
        self._rest()
        self.transport.abortConnection()

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """It has ended before its header had."""
        if self._deadline is not None:
            self._rest()
            self._headers.refuse(self.info, "closed", "it ended before its PROXY header")
        self._through = None  # type: ignore[assignment]

    def snapshot(self) -> dict[str, Any]:
        """See ``ISnapshot``."""
        return {"state": "introducing itself"}


def told(info: ConnInfo, header: Header, here: Any) -> ConnInfo:
    """A connection as a PROXY header describes it.

    :param info: as its socket has it.
    :param here: the socket's own end.
    """
    if header.source is None or header.destination is None:
        return evolve(info, server=here, relay=info.client, tlvs=header.tlvs)
    return evolve(
        info,
        client=_address(header.source),
        server=_address(header.destination),
        relay=info.client,
        tlvs=header.tlvs,
    )


def _address(end: Endpoint) -> Any:
    if end.host[:1] in ("", "/"):
        return UNIXAddress(end.host or None)
    return (IPv6Address if ":" in end.host else IPv4Address)("TCP", end.host, end.port)
