"""All timeouts: one queue per duration, and one sweep over their heads.

A timer per connection is dear (``callLater`` and its cancellation cost about 3 us, and every read
would have to push it back). Most timeouts of a proxy never expire, and there are few different
durations. So each duration has a queue in the order of expiry, an entry that saw activity moves to
the end, and a single timer looks at the heads every so often.

A deadline never comes early; it comes late by at most two intervals of the sweep, which is a
sixteenth of the shortest duration in use, and never more than a second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Seconds between two sweeps, at the least and at the most.
SHORTEST_INTERVAL = 0.01
LONGEST_INTERVAL = 1.0
#: How many times a duration is looked at before it has passed.
SWEEPS_PER_DURATION = 16


class Deadline:
    """One timeout that is running. Made by :meth:`Deadlines.add`."""

    __slots__ = ("_at", "_call", "_lane")

    def __init__(self, lane: _Lane, at: float, call: Callable[[], object]) -> None:
        self._lane = lane
        self._at = at
        self._call = call

    def touch(self) -> None:
        """Start again from now: there was activity."""
        lane = self._lane
        if self._at != lane.stamp and self in lane.entries:
            self._at = lane.stamp
            lane.entries.move_to_end(self)

    @property
    def since(self) -> float:
        """When it was added, or touched last: a moment later than that, then."""
        return self._at

    def cancel(self) -> None:
        """It is no longer wanted. Does nothing when it has expired or been cancelled."""
        self._lane.entries.pop(self, None)
        # Who is called mostly holds this: let go, so that nobody waits for the garbage collector.
        self._call = _nothing


def _nothing() -> None:
    """What a deadline calls that was cancelled."""


class _Lane:
    """The entries of one duration, the next to expire first."""

    __slots__ = ("duration", "entries", "interval", "stamp", "swept")

    def __init__(self, duration: float) -> None:
        self.duration = duration
        self.interval = min(
            LONGEST_INTERVAL, max(SHORTEST_INTERVAL, duration / SWEEPS_PER_DURATION)
        )
        self.entries: OrderedDict[Deadline, None] = OrderedDict()
        #: What ``touch`` takes for the time: that of the next sweep, so that nothing is early.
        self.stamp = 0.0
        #: When it was swept last.
        self.swept = 0.0

    def sweep(self, now: float, stamp: float) -> None:
        """Note a sweep, which may be late: what was touched since the last one counts from now."""
        if now > self.stamp:
            for entry in reversed(self.entries):
                if entry._at < self.swept:
                    break
                if entry._at == self.stamp:
                    entry._at = now
        self.swept, self.stamp = now, stamp

    def expired(self, now: float) -> list[Deadline]:
        """All that have expired."""
        found = []
        for entry in self.entries:
            if entry._at + self.duration > now:
                break
            found.append(entry)
        return found


class Deadlines:
    """The timeouts of one proxy.

    :param clock: tells the time and runs the one timer.
    :param failed: is called when what was to be done at a deadline raises; it runs inside the
        ``except`` clause. The other deadlines go on.
    """

    def __init__(self, clock: IReactorTime, failed: Callable[[], object]) -> None:
        self.clock = clock
        self._failed = failed
        self._lanes: dict[float, _Lane] = {}
        self._timer: IDelayedCall | None = None
        self._interval = 0.0

    def add(self, duration: float, call: Callable[[], object]) -> Deadline:
        """Call ``call()`` in ``duration`` seconds unless it is touched or cancelled before."""
        lane = self._lanes.get(duration)
        if lane is None:
            lane = self._lanes[duration] = _Lane(duration)
        entry = Deadline(lane, self.clock.seconds(), call)
        if not lane.entries:
            self._sweep_within(lane)
        lane.entries[entry] = None
        return entry

    def rest(self) -> None:
        """Leave no timer behind, if nothing is running."""
        if not len(self) and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __len__(self) -> int:
        """How many are running."""
        return sum(len(lane.entries) for lane in self._lanes.values())

    def _sweep_within(self, lane: _Lane) -> None:
        """An idle lane comes into use: see that it is swept often enough."""
        self._sweep_every(lane.interval)
        lane.stamp = self.clock.seconds() + self._interval

    def _sweep_every(self, interval: float) -> None:
        """Sweep in that many seconds at the latest."""
        timer = self._timer
        if timer is not None:
            if self._interval <= interval:
                return
            timer.cancel()
        self._interval = interval
        self._timer = self.clock.callLater(interval, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self.clock.seconds()
        for lane in self._lanes.values():
            lane.sweep(now, now + self._interval)
        due = [entry for lane in self._lanes.values() for entry in lane.expired(now)]
        for entry in due:
            # One before it may have cancelled it, or put it off.
            entries = entry._lane.entries
            if entry not in entries or entry._at + entry._lane.duration > now:
                continue
            del entries[entry]
            try:
                entry._call()
            except Exception:
                self._failed()
        # A duration that is no longer in use (a reload changed it) leaves nothing behind.
        self._lanes = {length: lane for length, lane in self._lanes.items() if lane.entries}
        if self._lanes:
            self._sweep_every(min(lane.interval for lane in self._lanes.values()))
        for lane in self._lanes.values():
            lane.stamp = now + self._interval
