"""Short connections kept busy, each followed by another, and counted when they are done.

What a connection does is the subclass's: it opens one, and goes on where something has come.
"""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sized
from contextlib import ExitStack

from benchmarks.loads import BUSY, PATIENCE, SETTLE, Work
from benchmarks.measure import RefusedError


class Busy(ABC):
    """Connections that are opened, used once, and closed; the other side closes first.

    :param stack: closes what is left open.
    :ivar done: how many have come to their end in the right way.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.done = 0
        self._again = False
        self._poll = stack.enter_context(select.epoll())
        stack.callback(self._close)

    @property
    @abstractmethod
    def _under_way(self) -> Sized:
        """Those that are."""

    @abstractmethod
    def _begin(self) -> None:
        """Open one more."""

    @abstractmethod
    def _come(self, fd: int) -> None:
        """Go on with what has this descriptor."""

    @abstractmethod
    def _close(self) -> None:
        """Close all."""

    def keep_busy(self, count: int, seconds: float) -> None:
        """For so long, have so many of them; when one is done, open another.

        :raises RefusedError: one does not go as it should.
        :raises OSError: one is refused, or reset.
        """
        self._again = True
        while len(self._under_way) < count:
            self._begin()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._turn()

    def finish(self) -> None:
        """See those to their end that are open.

        :raises RefusedError: one does not come to it.
        """
        self._again = False
        end = time.monotonic() + PATIENCE
        while self._under_way:
            self._turn()
            if time.monotonic() > end:
                left = len(self._under_way)
                raise RefusedError(f"{left} connections are left without an answer")

    def measure(self, seconds: float, cpu: Callable[[], int], what: str) -> Work:
        """As many at once as wrk has, for so long, after a while that does not count.

        :param what: one of them is called.
        :raises RefusedError: one does not go as it should, or not one was done.
        """
        self.keep_busy(BUSY, SETTLE)
        began, earlier, spent = time.monotonic(), self.done, cpu()
        self.keep_busy(BUSY, seconds)
        took, spent = time.monotonic() - began, cpu() - spent
        units = self.done - earlier
        self.finish()
        if not units:
            raise RefusedError(f"no {what} was done")
        return Work(units, took, spent)

    def _turn(self) -> None:
        """Go on where something has come."""
        for fd, _ in self._poll.poll(1.0):
            self._come(fd)

    def _is_done(self) -> None:
        """One has come to its end: another takes its place."""
        self.done += 1
        if self._again:
            self._begin()
