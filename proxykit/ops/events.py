"""Server-sent events: the whole state, once a second, to all who listen.

One text is made for all of them, and none if nobody is there. Each event says everything, so a
client that is slow misses some and is none the worse; one that takes nothing for a while is
dropped. More than one event beyond what the transport takes is kept for nobody.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from proxykit.ops.admin_web import AdminRequest

#: Seconds between two events, and those that a client may take nothing.
INTERVAL = 1.0
PATIENCE = 30.0
KIND = "text/event-stream"
#: Bytes that the kernel keeps for a client. By itself it would take megabytes, and it would be
#: minutes until it shows that nobody reads.
SEND_BUFFER = 1 << 16
#: Milliseconds after which a browser comes back.
_RETRY = b"retry: 2000\n\n"


class Events:
    """Who listens, and the clock that they are served by.

    :param clock: tells the time, and runs the one timer.
    :param state: gives what an event says, as JSON on one line.
    :param beat: is called once a second, whether anybody listens or not.
    """

    def __init__(
        self, clock: IReactorTime, state: Callable[[], str], beat: Callable[[], object]
    ) -> None:
        self.clock = clock
        self._state = state
        self._beat = beat
        self._readers: dict[_Reader, None] = {}
        self._timer: IDelayedCall | None = None
        # The last event, and when it was made.
        self._last = b""
        self._made = float("-inf")

    def __len__(self) -> int:
        """How many listen."""
        return len(self._readers)

    def start(self) -> None:
        """Begin to count seconds."""
        if self._timer is None:
            self._beat()
            self._timer = self.clock.callLater(INTERVAL, self._tick)

    def stop(self) -> None:
        """Count no more, and let everybody go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.let_go()

    def let_go(self) -> None:
        """End what everybody gets; who may, comes back."""
        for reader in tuple(self._readers):
            reader.end()

    def serve(self, request: AdminRequest) -> None:
        """Answer a request with events, from now on."""
        request.begin(200, KIND)
        if request.method == b"HEAD":
            request.write(b"")
            request.finish()
            return
        now = self.clock.seconds()
        if now - self._made >= INTERVAL:
            self._make(now)
        reader = _Reader(request, self.clock)
        self._readers[reader] = None
        request.notifyFinish().addBoth(lambda _: self._readers.pop(reader, None))
        transport: Any = request.transport
        handle = transport.getHandle()
        if isinstance(handle, socket.socket):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        request.registerProducer(reader, True)
        request.write(_RETRY + self._last)

    def _make(self, now: float) -> None:
        self._last = b"event: state\ndata: %b\n\n" % self._state().encode()
        self._made = now

    def _tick(self) -> None:
        self._timer = self.clock.callLater(INTERVAL, self._tick)
        self._beat()
        if not self._readers:
            self._last = b""
            self._made = float("-inf")
            return
        now = self.clock.seconds()
        self._make(now)
        for reader in tuple(self._readers):
            reader.send(self._last, now)


@implementer(IPushProducer)
class _Reader:
    """One who listens."""

    __slots__ = ("__weakref__", "_clock", "_request", "_stuck")

    def __init__(self, request: AdminRequest, clock: IReactorTime) -> None:
        self._request = request
        self._clock = clock
        # Since when there is no more room in its transport.
        self._stuck: float | None = None

    def send(self, event: bytes, now: float) -> None:
        if self._stuck is None:
            self._request.write(event)
        elif now - self._stuck >= PATIENCE:
            self._request.channel.abort()

    def end(self) -> None:
        """No more will come."""
        self._request.unregisterProducer()
        self._request.finish()

    def pauseProducing(self) -> None:
        """It takes no more."""
        if self._stuck is None:
            self._stuck = self._clock.seconds()

    def resumeProducing(self) -> None:
        """It has taken all."""
        self._stuck = None

    def stopProducing(self) -> None:
        """It has gone; the request hears of that, too."""
