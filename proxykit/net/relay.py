"""The relay: two connections, each the other's outlet.

Bytes are handed on as they come. What is buffered towards one side is bounded by pausing the other
(push producers of Twisted: 64 KiB, plus one read). The end of one side's bytes is passed on as the
end (half-close), a reset as a reset, and what was still on its way goes first.

A relay ends when both sides have ended, or one is reset, or neither has sent anything for
``idle_timeout`` seconds, which also bounds the time that the last bytes may take.

Where backends' connections are to be reset, a client's end is not passed on: the backend gets all
that came before it, and then a reset; the client gets what has come from the backend by then.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from proxykit.interfaces import IShortcuts
from proxykit.net.closing import Resetting, half_closes

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from proxykit.core.deadlines import Deadline, Deadlines

#: Bytes in one read of Twisted's transports that may be the beginning of bulk.
FULL_READ = 65536


@implementer(IHalfCloseableProtocol, IPushProducer)
class RelaySide(Protocol):
    """One of a relay's two connections. Until a relay is there, its bytes are not looked at here.

    :cvar name: how the log calls this side.
    :ivar received: bytes that came from this side.
    :ivar read_ended: whether no more will come; ``gone``: whether the connection is closed.
    """

    # Slots, here and in what is made of this: see net/transport.py.
    __slots__ = ("_asked_to_splice", "gone", "read_ended", "received", "relay", "transport")

    transport: Any
    relay: Relay | None
    name = ""

    def __init__(self) -> None:
        self.relay = None
        self.received = 0
        self.read_ended = self.gone = self._asked_to_splice = False

    def dataReceived(self, data: bytes) -> None:
        """Hand it on."""
        relay = self.relay
        if relay is None:
            self.came_early(data)
            return
        size = len(data)
        self.received += size
        sink = (relay.upstream if self is relay.client else relay.client).transport
        sink.write(data)
        relay.deadline.touch()
        if size >= FULL_READ and not self._asked_to_splice:
            self._asked_to_splice = True
            if has_shortcuts(self.transport):
                self.transport.splice_to(sink, None, self.spliced)

    def came_early(self, data: bytes) -> None:
        """Bytes have come while there is no relay. Who makes one later has to keep them."""
        raise AssertionError(f"{self.name} has no relay for {len(data)} bytes")

    def spliced(self, count: int) -> None:
        """So many bytes were handed on by the kernel."""
        relay = self.relay
        if relay is not None:
            self.received += count
            relay.deadline.touch()

    def pauseProducing(self) -> None:
        """The other side cannot take more at the moment."""
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """It can."""
        if not self.read_ended:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The other side is gone. The relay hears of it next, and knows how this one is to end."""

    def readConnectionLost(self) -> None:
        """Nothing more will come from this side."""
        self.read_ended = True
        if self.relay is not None:
            self.relay.read_ended(self)

    def writeConnectionLost(self) -> None:
        """All that was to go to this side has gone, and the end after it."""

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """This side is gone."""
        self.gone = True
        if self.relay is not None:
            self.relay.lost(self, reason)


class Relay:
    """Joins a client's connection and an upstream one, and ends them together.

    :param idle_timeout: seconds without a byte from either side.
    :param ended: is called once when both connections are gone, with what ended it, for the log.
    :param resets: whether the backend's connection is reset if the backend is not the first to end.
    """

    __slots__ = ("_resets", "_resetting", "client", "deadline", "ended", "upstream", "why")

    def __init__(
        self,
        client: RelaySide,
        upstream: RelaySide,
        deadlines: Deadlines,
        idle_timeout: float,
        ended: Callable[[str], object],
        resets: bool = False,
    ) -> None:
        #: Where it is kept when the next look is due; None: there is no reset.
        self._resets = deadlines if resets else None
        self._resetting: Resetting | None = None
        self.client = client
        self.upstream = upstream
        self.ended = ended
        self.why = ""
        self.deadline: Deadline = deadlines.add(idle_timeout, self._idle)

    def start(self, early: bytes = b"") -> None:
        """Begin, with what the client has sent already."""
        client, upstream = self.client, self.upstream
        client.relay = upstream.relay = self
        client.transport.registerProducer(upstream, True)
        upstream.transport.registerProducer(client, True)
        if early:
            upstream.transport.write(early)
        if client.read_ended:
            self.read_ended(client)

    def read_ended(self, side: RelaySide) -> None:
        """One side has sent its end: pass it on; after the other's end, all is over."""
        self._because(f"{side.name} closed")
        other = self.upstream if side is self.client else self.client
        # It produces no more; a producer that is still registered would hold the end back.
        other.transport.unregisterProducer()
        if other.read_ended or other.gone:
            self._stop_resetting()  # The backend's end has come after all.
            other.transport.loseConnection()
            side.transport.loseConnection()
        elif other is self.upstream and self._resets is not None:
            self._reset_soon(self._resets)
        else:
            self._pass_end(other)

    def _pass_end(self, other: RelaySide) -> None:
        if half_closes(other.transport):
            other.transport.loseWriteConnection()
        elif other is self.client:
            # A client gets all that there was, and then the end; to a
            # backend the end is held back, for its answer may still be coming.
            other.transport.loseConnection()

    def _reset_soon(self, deadlines: Deadlines) -> None:
        """The client has ended, the backend has not: reset it once it has all that was sent."""
        if self._resetting is None:
            upstream = self.upstream.transport
            self._resetting = Resetting(upstream, deadlines, self._reset, self._not_reset)
            self._resetting.look()

    def _reset(self) -> None:
        if not self.client.gone:
            self.client.transport.unregisterProducer()
            self.client.transport.loseConnection()
        self.upstream.transport.abortConnection()

    def _not_reset(self) -> None:
        """It takes too long: end it as any other."""
        self._resets = self._resetting = None
        if self.client.gone:
            self.upstream.transport.loseConnection()
        else:
            self._pass_end(self.upstream)

    def _stop_resetting(self) -> None:
        if self._resetting is not None:
            self._resetting.cancel()
            self._resetting = None

    def lost(self, side: RelaySide, reason: Failure) -> None:
        """One connection is gone: so must be the other."""
        other = self.upstream if side is self.client else self.client
        is_reset = self._resetting is not None and self._resetting.done
        done = isinstance(reason.value, ConnectionDone)
        if side is self.upstream or not done:
            self._stop_resetting()
        if not other.gone:
            if is_reset:
                return  # Both are being closed.
            if not done:
                if not isinstance(reason.value, ConnectionAborted):
                    self.why = f"{side.name} reset"  # even if it, or the other, had ended before
                other.transport.abortConnection()
                return
            self._because(f"{side.name} closed")
            other.transport.unregisterProducer()
            if other is self.upstream and self._resets is not None and not other.read_ended:
                self._reset_soon(self._resets)
            else:
                other.transport.loseConnection()
            return
        self.deadline.cancel()
        # Nothing that is left refers in a circle, so nothing waits for the garbage collector.
        self.client.relay = self.upstream.relay = None
        self.ended(self.why)

    def abort(self, why: str) -> None:
        """End both at once."""
        self._because(why)
        self._stop_resetting()
        for side in (self.client, self.upstream):
            if not side.gone:
                side.transport.abortConnection()

    def _idle(self) -> None:
        self.abort("idle timeout")

    def _because(self, why: str) -> None:
        """What came first is the reason."""
        self.why = self.why or why


def has_shortcuts(transport: Any) -> bool:
    """Whether it is an ``IShortcuts`` itself.

    Twisted's wrappers (TLS, ``haproxy:``) say that they provide whatever the transport below does.
    """
    return IShortcuts.implementedBy(type(transport))


def give(transport: Any, protocol: Any) -> None:
    """Let another protocol have what comes on a transport."""
    if has_shortcuts(transport):
        transport.switch(protocol)
    elif hasattr(transport, "wrappedProtocol"):  # one of Twisted's wrappers, such as TLS
        transport.wrappedProtocol = protocol
    else:
        transport.protocol = protocol


def tune(transport: Any, keepalive: bool) -> None:
    """Options for a TCP socket that a proxy holds: no delay, keepalive probes."""
    # Not by setTcpNoDelay() and setTcpKeepAlive(): this is done for each connection.
    skt = transport.getHandle()
    if not isinstance(skt, socket.socket):
        return  # TLS has a handle of its own.
    skt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    if keepalive:
        skt.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
