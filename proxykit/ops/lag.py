"""How late the event loop is: what was to be done at one moment, and when it was done.

A loop that is busy, or stalled by something that blocks, is late for everything alike. So twice a
second one timer that does nothing looks how late it is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxykit.core.stats import Histogram

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Seconds between two looks.
INTERVAL = 0.5
#: Seconds for which the worst is remembered: longer than most take between two scrapes, and
#: however many scrape, each finds it.
MEMORY = 60.0
#: Upper bounds of the buckets, in seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LoopLag:
    """See this module.

    :param clock: runs the timer.
    :param seconds: tells the time, and never goes back: that of a reactor may be set anew.
    :ivar lateness: how late it was each time, in seconds.
    :ivar last: how late it was the last time; None: it has not looked yet.
    """

    def __init__(self, clock: IReactorTime, seconds: Callable[[], float] = time.monotonic) -> None:
        self.lateness = Histogram(BOUNDS)
        self.last: float | None = None
        self._clock = clock
        self._seconds = seconds
        self._recent: deque[float] = deque(maxlen=round(MEMORY / INTERVAL))
        self._due = 0.0
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Look from now on."""
        if self._timer is None:
            self._wait()

    def stop(self) -> None:
        """Look no more, and leave no timer behind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def worst(self) -> float:
        """The most that it was late within ``MEMORY`` seconds."""
        return max(self._recent, default=0.0)

    def _wait(self) -> None:
        self._due = self._seconds() + INTERVAL
        self._timer = self._clock.callLater(INTERVAL, self._look)

    def _look(self) -> None:
        # It is early by a hair where two clocks do not agree.
        self.last = late = max(0.0, self._seconds() - self._due)
        self.lateness.observe(late)
        self._recent.append(late)
        self._wait()
