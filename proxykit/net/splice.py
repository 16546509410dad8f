"""Bulk without copies: from one socket to another through a pipe, within the kernel.

A pipe of 1 MiB costs from its user's quota (``/proc/sys/fs/pipe-user-pages-soft``: 64 such pipes),
so there are few, and one is borrowed only while it holds bytes: most of the time what goes in comes
out in the same call. Without a pipe, bytes are copied.

A transfer begins when a read has filled its buffer twice running, and ends when there is little to
move: for small pieces two splices and a pipe cost more than a copy.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Any

from twisted.internet import main

#: Pipes per process, and bytes in one: the second size where the first is refused.
MOST_PIPES = 24
SIZES = (1 << 20, 1 << 18)
#: A pipe that stays smaller than that is not worth it.
LEAST_SIZE = 1 << 18
#: How many reads running have to fill their buffers, besides the one for which somebody asked.
BULK_READS = 1
#: A splice that moves less than that ends it.
LEAST_MOVED = 1 << 14

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK if hasattr(os, "splice") else 0


class Pipe:
    """A pipe, and how many bytes are in it."""

    __slots__ = ("held", "inlet", "outlet", "size")

    def __init__(self) -> None:
        self.outlet, self.inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        self.size = 0
        for size in SIZES:
            try:
                self.size = fcntl.fcntl(self.inlet, fcntl.F_SETPIPE_SZ, size)
                break
            except OSError:
                continue  # The quota is used up.

    def close(self) -> None:
        """With what is still in it."""
        os.close(self.inlet)
        os.close(self.outlet)


class Pipes:
    """The pipes of one reactor.

    :param most: how many there may be.
    """

    def __init__(self, most: int = MOST_PIPES) -> None:
        self._most = most if hasattr(os, "splice") else 0
        self._idle: list[Pipe] = []
        self.lent = 0

    def borrow(self) -> Pipe | None:
        """An empty pipe; None: there is none to be had."""
        if self._idle:
            self.lent += 1
            return self._idle.pop()
        if self.lent >= self._most:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None  # no descriptors
        if pipe.size < LEAST_SIZE:
            pipe.close()
            return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """One that still holds bytes is closed with them."""
        self.lent -= 1
        if pipe.held:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """Close those that are not lent."""
        while self._idle:
            self._idle.pop().close()


class Splice:
    """One direction of a relay, as far as it is bulk.

    :param source: the transport that the bytes come from, a ``net.transport.Short``.
    :param sink: the one where they go; another.
    :param limit: how many; None: all there will be.
    :param moved: is called with the count each time the sink has taken some.
    """

    __slots__ = ("_full_reads", "_moved", "_pipe", "_pipes", "_sink", "_source", "left")

    def __init__(
        self,
        source: Any,
        sink: Any,
        pipes: Pipes,
        limit: int | None,
        moved: Callable[[int], object],
    ) -> None:
        self._source = source
        self._sink = sink
        self._pipes = pipes
        self._moved = moved
        self._pipe: Pipe | None = None
        self._full_reads = 0
        #: How many bytes may still go this way, copied or spliced.
        self.left = limit

    @property
    def waiting(self) -> bool:
        """Whether it holds bytes that the sink has not taken yet."""
        return self._pipe is not None

    def copied(self, size: int, full: bool) -> None:
        """So many bytes were read the ordinary way, and whether they filled the buffer."""
        self._full_reads = self._full_reads + 1 if full else 0
        if self.left is not None:
            self.left -= size
            if not self.left:
                self.stop()

    def move(self) -> tuple[bool, object]:
        """Move what has come.

        :returns: whether it was done here (else it is to be read the ordinary way), and what
            ``doRead`` is to return.
        """
        if self._full_reads < BULK_READS:
            return False, None
        if self._pipe is not None:
            self._source.stopReading()  # Somebody resumed it; these have to go out first.
            return True, None
        pipe = self._pipes.borrow() if self._sink.takes_bytes() else None
        if pipe is None:
            return False, None
        want = pipe.size if self.left is None else min(pipe.size, self.left)
        try:
            got = os.splice(self._source.fileno(), pipe.inlet, want, flags=_FLAGS)
        except BlockingIOError:
            self._pipes.give_back(pipe)
            return True, None
        except OSError:
            self._pipes.give_back(pipe)
            return True, main.CONNECTION_LOST
        if not got:
            self._pipes.give_back(pipe)
            return True, main.CONNECTION_DONE
        pipe.held = got
        self._pipe = pipe
        if self.left is not None:
            self.left -= got
        if got < LEAST_MOVED:
            self._full_reads = 0
        why = self.drain()
        if why is not None:
            self._sink.lose()
        elif self._sink.pipe_holds:
            self._source.stopReading()
            self._sink.startWriting()
        return True, None

    def drain(self) -> object:
        """Hand on what is in the pipe, as far as the sink takes it.

        :returns: what its ``doWrite`` is to return if the connection is lost.
        """
        pipe = self._pipe
        assert pipe is not None
        before = pipe.held
        try:
            while pipe.held:
                pipe.held -= os.splice(pipe.outlet, self._sink.fileno(), pipe.held, flags=_FLAGS)
        except BlockingIOError:
            self._sink.pipe_holds = True
        except OSError:
            return main.CONNECTION_LOST
        if not pipe.held:
            self._pipe = None
            self._pipes.give_back(pipe)
            if self._sink.pipe_holds:
                self._sink.pipe_holds = False
                self._source.resumeProducing()
            if self.left == 0:
                self.stop()
        # At last, for whoever hears of it may begin something new with both ends.
        if before != pipe.held:
            self._moved(before - pipe.held)
        return None

    def stop(self) -> None:
        """It is over, or either end is gone; what is in the pipe goes with it."""
        if self._pipe is not None:
            self._pipes.give_back(self._pipe)
            self._pipe = None
            self._sink.pipe_holds = False
        if self._source.splice_out is self:
            self._source.splice_out = None
        if self._sink.splice_in is self:
            self._sink.splice_in = None
