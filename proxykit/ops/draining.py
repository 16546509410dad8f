"""Waiting for connections to end, for a while."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.net.listener import Listener

#: Seconds between two lines about how many are left.
SAY_AGAIN = 10.0


class Draining:
    """Listeners that accept no more, and whose connections have so long to end.

    :param seconds: then the rest is cut off.
    :param name: for the log: whose connections these are.
    """

    _log = Logger()

    def __init__(
        self, listeners: Sequence[Listener], seconds: float, deadlines: Deadlines, name: str
    ) -> None:
        self._listeners = listeners
        self._seconds = seconds
        self._deadlines = deadlines
        self._name = name
        self._began = deadlines.clock.seconds()
        self._over: Deadline | None = None
        self._saying: Deadline | None = None
        self._waiting: list[Deferred[None]] = []
        self._finished = False

    def begin(self) -> Deferred[None]:
        """
        :returns: see ``over``.
        """
        gone = self.over()
        empty = DeferredList([listener.drain() for listener in self._listeners])
        empty.addCallback(lambda _: self._finish())
        if self.left:
            self._log.info(
                "{name}: draining: {count} to end within {seconds:g} s ({which})",
                name=self._name,
                count=self._count,
                seconds=self._seconds,
                which=self._which(),
            )
            self._saying = self._deadlines.add(SAY_AGAIN, self._say)
            if self._seconds:
                self._over = self._deadlines.add(self._seconds, self._too_late)
            else:
                self.cut("drain_timeout is 0")
        return gone

    def over(self) -> Deferred[None]:
        """Fires when there are no connections any more."""
        waiter: Deferred[None] = Deferred()
        if self._finished:
            waiter.callback(None)
        else:
            self._waiting.append(waiter)
        return waiter

    @property
    def left(self) -> int:
        """How many there are."""
        return sum(len(listener.connections) for listener in self._listeners)

    @property
    def _count(self) -> str:
        return "1 connection" if self.left == 1 else f"{self.left} connections"

    def _which(self) -> str:
        there = (each for each in self._listeners if each.connections)
        return ", ".join(f"{each.name}: {len(each.connections)}" for each in there)

    def _say(self) -> None:
        self._saying = self._deadlines.add(SAY_AGAIN, self._say)
        self._log.info(
            "{name}: draining: {count} left ({which})",
            name=self._name,
            count=self._count,
            which=self._which(),
        )

    def _too_late(self) -> None:
        self._over = None
        self.cut(f"drain_timeout, {self._seconds:g} s, is over")

    def cut(self, why: str) -> None:
        """Wait no longer: reset what is left, for it is not the whole."""
        if self.left:
            self._log.warn(
                "{name}: {why}: {count} cut off ({which})",
                name=self._name,
                why=why,
                count=self._count,
                which=self._which(),
            )
            for listener in self._listeners:
                listener.abort(why)

    def _finish(self) -> None:
        for deadline in (self._over, self._saying):
            if deadline is not None:
                deadline.cancel()
        self._log.info(
            "{name}: drained in {seconds:.1f} s",
            name=self._name,
            seconds=self._deadlines.clock.seconds() - self._began,
        )
        self._finished = True
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)
