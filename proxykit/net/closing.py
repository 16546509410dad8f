"""Closing a connection so that what was said last gets there.

A close while bytes of the other side are unread makes the kernel send a reset, which may reach the
other side before the last answer has been read (RFC 9112 section 9.6). So, where more may come,
only the write side is closed at first, and what comes is thrown away for a while.

A reset throws away what has not been acknowledged. Where one is wanted (``close = "reset"``), it
waits until nothing is under way in either direction, and not for long.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import ISSLTransport

from proxykit.interfaces import IHalfCloses

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.core.registry import BackendState

#: Seconds, and bytes, for which a connection that was ended early is still read from.
LINGER = 2.0
LINGER_BYTES = 1 << 26
#: Seconds between two looks at whether a connection can be reset, and for how long it is looked at.
LOOK_EVERY = 0.01
LOOK_FOR = 1.0
_NUMBER = bytes(4)


def half_closes(transport: Any) -> bool:
    """Whether its write side can be closed alone. Twisted's own TLS cannot; ours can."""
    return IHalfCloses.providedBy(transport) or not ISSLTransport.providedBy(transport)


def unsent(transport: Any) -> int:
    """Bytes that a transport, Twisted's or ours, has not sent yet; 0 where it does not say."""
    transport = getattr(transport, "raw", transport)  # of TLS
    buffered = len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
    waiting: int = buffered + getattr(transport, "_tempDataLen", 0)
    return waiting + len(getattr(transport, "waits", b""))


def resets(backend: BackendState) -> bool:
    """Whether a connection to it is reset where the proxy is the first to close it."""
    return backend.cluster.config.close == "reset" and not backend.address.is_unix


def settled(transport: Any) -> bool | None:
    """Whether a reset loses nothing: all that was written has been acknowledged, and all that has
    come has been read. None: nobody knows, for it is no plain socket of ours."""
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if not isinstance(handle, socket.socket):
        return None
    raw = getattr(transport, "raw", transport)  # of TLS
    splice = getattr(raw, "splice_out", None)
    return not (
        unsent(raw)
        or getattr(raw, "pipe_holds", False)
        or (splice is not None and splice.waiting)
        or _asked(handle, termios.TIOCOUTQ)  # of a socket: what is not acknowledged
        or _asked(handle, termios.FIONREAD)
    )


def _asked(handle: socket.socket, what: int) -> int:
    return int.from_bytes(fcntl.ioctl(handle, what, _NUMBER), sys.byteorder)


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


class Resetting:
    """The end of a connection that is to be reset, and still has something under way.

    :param settle: called when it can be reset.
    :param give_up: called in its place where nobody knows when that is, or it takes too long.
    :ivar done: whether ``settle`` has been called.
    """

    __slots__ = ("_deadline", "_deadlines", "_give_up", "_settle", "_transport", "_until", "done")

    def __init__(
        self,
        transport: Any,
        deadlines: Deadlines,
        settle: Callable[[], object],
        give_up: Callable[[], object],
    ) -> None:
        self._transport = transport
        self._deadlines = deadlines
        self._settle = settle
        self._give_up = give_up
        self._until = deadlines.clock.seconds() + LOOK_FOR
        self._deadline: Deadline | None = None
        self.done = False

    def look(self) -> None:
        """See whether it can be reset by now; if not, look again soon."""
        self._deadline = None
        can_be = settled(self._transport)
        if can_be is False and self._deadlines.clock.seconds() < self._until:
            self._deadline = self._deadlines.add(LOOK_EVERY, self.look)
            return
        self.done = bool(can_be)
        call = self._settle if can_be else self._give_up
        self.cancel()
        call()

    def cancel(self) -> None:
        """Nobody waits for that any more."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        # Whose they are holds this.
        self._settle = self._give_up = _nothing


def _nothing() -> None:
    """What is called when it does not matter any more."""
