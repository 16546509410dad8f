"""Closing a connection so that what was said last gets there.

A close while bytes of the other side are unread makes the kernel send a reset, which may reach the
other side before the last answer has been read (RFC 9112 section 9.6). So, where more may come,
only the write side is closed at first, and what comes is thrown away for a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxykit.net.relay import half_closes, unsent

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadline, Deadlines

#: Seconds, and bytes, for which a connection that was ended early is still read from.
LINGER = 2.0
LINGER_BYTES = 1 << 26


class Closing:
    """The end of one connection, from the last write on.

    :param timeout: seconds in which the other side has to take something of what waits for it.
    :param linger: whether it may still be sending.
    """

    __slots__ = ("_deadline", "_deadlines", "_received", "_timeout", "_transport", "_unsent")

    def __init__(self, transport: Any, deadlines: Deadlines, timeout: float, linger: bool) -> None:
        self._transport = transport
        self._deadlines = deadlines
        self._timeout = timeout
        self._received = 0
        self._unsent = 0
        self._deadline: Deadline | None = None
        transport.unregisterProducer()
        # Where there is no half-close there is no lingering: the raw socket's would cut TLS off.
        if linger and half_closes(transport) and hasattr(transport, "loseWriteConnection"):
            transport.loseWriteConnection()
            self._deadline = deadlines.add(LINGER, self.close)
        else:
            self.close()

    def received(self, data: bytes) -> None:
        """Something came that nobody will look at."""
        self._received += len(data)
        if self._received > LINGER_BYTES:
            self._transport.abortConnection()

    def close(self) -> None:
        """Close when all has been sent, or nothing more of it is taken."""
        self.lost()
        self._unsent = unsent(self._transport)
        # First, for a transport whose write side is closed may be lost at once.
        self._deadline = self._deadlines.add(self._timeout, self._still_there)
        self._transport.loseConnection()

    def _still_there(self) -> None:
        self._deadline = None
        if unsent(self._transport) == self._unsent:
            self._transport.abortConnection()
        else:
            self.close()

    def lost(self) -> None:
        """It is closed."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
