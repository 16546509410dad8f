"""When the ports of a budget will be used up, by the way things are going, and who is told.

Once a second a :class:`Forecast` hears how many ports cannot be handed out, and tells in how many
seconds none will be left. :class:`Watch` makes two warnings of that; ``core/remedies.py`` has their
words.

The method is Holt's linear trend: the rise is smoothed, and goes on as it is (C. C. Holt, 1957;
Hyndman and Athanasopoulos, *Forecasting: Principles and Practice*, 3rd edition, section 8.2). It
starts from the present number of ports, which is known exactly. Three things are added:

- Its two constants come from one, as in R. G. Brown's discounted least squares (*Smoothing,
  Forecasting and Prediction of Discrete Time Series*, 1963): a straight line is fitted to all
  that there was, and what is older counts for less. So it is right from the second figure on,
  and seconds that were missed do no harm.
- When the line has been wrong to the same side for longer than chance explains, most of what lies
  behind is forgotten: E. S. Page's cumulative sums (*Biometrika* 41, 1954) tell. Without that, a
  service that was quiet for an hour would take a minute to notice a rise.
- A jump is no noise. What chance explains is known from the errors of the line so far, of which
  each counts for no more than a few usual ones (P. J. Huber, *Annals of Mathematical Statistics*
  35, 1964). Without that, a rise soon after a jump would pass for chance.
- What rests in TIME_WAIT has no trend of its own: each port comes back after a minute. Short
  connections at a steady rate take a minute's worth of ports, in a straight rise, and then no
  more; so their number is worked out from the closings of the last minute.

The constants were chosen by what ``proxykit/lab/loads.py`` prints. Little hangs on them: with half
or twice of each, steady rises are foreseen as well within two or three points.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from math import inf, sqrt

#: Seconds that count in a trend: of the ports that are in use; of the closings in a second, where
#: chance has the greater share; and at most, after a change.
MEMORY, MEMORY_CLOSINGS, MEMORY_CHANGE = 20.0, 60.0, 3.0
#: Of the errors of a line, in standard deviations: what is each second's own; and at which sum of
#: the rest it is not by chance.
SLACK, CHANGE = 1.0, 12.0
#: For how many usual ones the square of such an error counts, at the most.
OUTLIER = 6.0
#: Seconds before the first forecast.
WARM_UP = 5
#: Seconds: who was not told for so long begins anew. It is also how long TIME_WAIT lasts.
MINUTE = 60
#: Seconds: a forecast beyond is none. A rise that takes longer than that is less than what chance
#: makes of a busy service, and within the hour the day has another pattern.
FAR = 3600.0
#: How many seconds ahead it looks where ports come back from TIME_WAIT; then between two of these.
LEAPS = (20, 40, 60)


class Trend:
    """A straight line through what was, as seen from now.

    :param memory: how many seconds count, in effect: one that is so long ago has a third of the
        weight of the last.
    :param outlier: see above.
    :ivar level: its height now.
    :ivar slope: its rise in a second.
    """

    __slots__ = ("_above", "_ages", "_below", "_keep", "_noise", "_outlier", "_squares", "_weight",
                 "level", "slope")  # fmt: skip

    def __init__(self, memory: float, outlier: float = inf) -> None:
        self.level = self.slope = 0.0
        # By this much a figure counts for less each second; the sums of such weights, of each
        # times its age, and times the square of it.
        self._keep = 1 - 1 / memory
        self._weight = self._ages = self._squares = 0.0
        # The mean square of its errors, and the sums that tell a change.
        self._noise = 1.0
        self._outlier = outlier
        self._above = self._below = 0.0

    def feed(self, value: float, seconds: float = 1.0) -> None:
        """This is how high it was.

        :param seconds: since the last.
        """
        keep = self._keep if seconds == 1.0 else self._keep**seconds
        ages = self._ages + seconds * self._weight
        squares = keep * (self._squares + seconds * (self._ages + ages))
        ages *= keep
        weight = keep * self._weight + 1
        spread = weight * squares - ages * ages
        if spread <= 0.0:  # The first.
            self.level = value
        else:
            level = self.level + seconds * self.slope
            error = value - level
            odd = error / sqrt(self._noise * seconds)
            self._above = max(0.0, self._above + odd - SLACK)
            self._below = max(0.0, self._below - odd - SLACK)
            if self._above > CHANGE or self._below > CHANGE:
                self._above = self._below = 0.0
                if weight > MEMORY_CHANGE:
                    weight, ages, squares = _CHANGED
                    spread = weight * squares - ages * ages
            # With these two it is the line with the least squares. They begin at 1 and come down
            # to Holt's alpha and alpha * beta, 1 - keep ** 2 and (1 - keep) ** 2.
            self.level = level + error * squares / spread
            self.slope += error * ages / spread
            square, most = error * error / seconds, self._noise * self._outlier
            # Ports come one by one: it is never less than 1.
            noise = self._noise + ((square if square < most else most) - self._noise) / weight
            self._noise = noise if noise > 1.0 else 1.0
        self._weight, self._ages, self._squares = weight, ages, squares

    @property
    def sure_slope(self) -> float:
        """The slope; 0.0 where it may be there by chance, by two standard errors.

        That holds for figures of which each has a chance of its own.
        """
        spread = self._weight * self._squares - self._ages * self._ages
        enough = 4 * self._noise * self._weight
        return self.slope if self.slope * self.slope * spread > enough else 0.0


def _settled(memory: float) -> tuple[float, float, float]:
    """The sums of weights of a line that has looked back this far for ever."""
    keep = 1 - 1 / memory
    return memory, keep * memory**2, keep * (1 + keep) * memory**3


_CHANGED = _settled(MEMORY_CHANGE)


class Forecast:
    """When one budget will be empty.

    :ivar left: in how many seconds; 0.0: it is; None: not within an hour, as things are going.
    """

    __slots__ = ("_at", "_busy", "_closed", "_closings", "_count", "_fed", "_gone", "_part", "left")

    def __init__(self) -> None:
        self.left: float | None = None
        self._begin(0)

    def _begin(self, closed: int) -> None:
        self._fed = 0
        self._busy = Trend(MEMORY, OUTLIER)
        self._closings = Trend(MEMORY_CLOSINGS)
        # How many were closed by each of the last sixty seconds, which of these is now, and by
        # the second before them; how many by the last time, and the parts of seconds since then.
        self._closed = [closed] * MINUTE
        self._at = 0
        self._gone = self._count = closed
        self._part = 0.0

    def feed(
        self, busy: int, resting: int, closed: int, limit: int, seconds: float = 1.0
    ) -> float | None:
        """Another second has passed.

        :param busy: ports that somebody has.
        :param resting: those that nobody gets, for they are in TIME_WAIT.
        :param closed: how many we have ever closed that then rested.
        :param limit: how many there are to hand out.
        :param seconds: since the last time.
        :returns: ``left``.
        """
        if seconds > MINUTE:
            self._begin(closed)
            seconds = 1.0
        elif seconds < 0.5:
            seconds = 0.5  # Somebody has set the clock.
        self._fed += 1
        self._busy.feed(busy, seconds)
        if closed:
            self._closings.feed((closed - self._count) / seconds, seconds)
            self._note(closed, seconds)
        room = limit - busy - resting
        if room <= 0:
            self.left = 0.0
        elif self._fed < WARM_UP:
            self.left = None
        else:
            left = self._look(room, resting)
            self.left = left if left <= FAR else None
        return self.left

    def _note(self, closed: int, seconds: float) -> None:
        """Write down how many were closed by now; in seconds that were missed, none were."""
        self._part += seconds
        steps = int(self._part)
        self._part -= steps
        ring, at = self._closed, self._at
        for _ in range(steps):
            at = (at + 1) % MINUTE
            self._gone = ring[at]
            ring[at] = self._count
        self._at = at
        self._count = ring[at] = closed

    def _look(self, room: int, resting: int) -> float:
        """In how many seconds that many more ports are in use."""
        rise = self._busy.slope
        if not self._count:
            return room / rise if rise > 0 else inf
        rate, growth = max(0.0, self._closings.level), self._closings.sure_slope
        ring, at, gone, half = self._closed, self._at, self._gone, growth / 2

        def after(ahead: int) -> float:
            """The room in so many seconds, where it counts what comes back in which of them."""
            back = ring[(at + ahead) % MINUTE] - gone
            return room - (rise + rate + half * ahead) * ahead + min(back, resting)

        before = float(room)
        for ahead in LEAPS:
            now = after(ahead)
            if now <= 0:
                return _between(after, ahead - LEAPS[0], ahead, before)
            before = now
        # By then all that rests now has come back, and on it goes in a straight line.
        slope = rise + MINUTE * growth
        return MINUTE + before / slope if slope > 0 else inf


def _between(room: Callable[[int], float], low: int, high: int, before: float) -> float:
    """When there is no room any more.

    :param low: by then there is ``before``; ``high``: by then there is none.
    """
    while high - low > 1:
        middle = (low + high) // 2
        now = room(middle)
        if now > 0:
            low, before = middle, now
        else:
            high = middle
    return low + before / (before - room(high))


class Level(IntEnum):
    """How much of a budget is left."""

    OK = 0
    HALF = 1  # half of it is used
    LOW = 2  # nearly all of it is, or soon will be


#: The shares of a budget at which a level begins, and below which it is over.
HALF_FROM, HALF_UNTIL = 0.5, 0.4
LOW_FROM, LOW_UNTIL = 0.9, 0.8
#: Seconds: a forecast that makes a budget low, if half of it is used; and one that keeps it so.
SOON, NOT_SOON = 60.0, 120.0
#: Seconds: how long such a forecast has to hold; and how long it has to be better.
SURE, CALM = 5.0, 60.0


class Watch:
    """Which level a budget is at. It gets worse at once, and better after a minute.

    :ivar level: as it is known.
    """

    __slots__ = ("_better", "_soon", "level")

    def __init__(self) -> None:
        self.level = Level.OK
        # For how many seconds a forecast has said that it will be low, and all that it is better.
        self._soon = self._better = 0.0

    def look(self, taken: int, limit: int, left: float | None, seconds: float = 1.0) -> bool:
        """Another second has passed.

        :param taken: how many ports cannot be handed out, of ``limit``.
        :param left: the forecast.
        :returns: whether the level has changed.
        """
        if self.level is _OK and taken < limit * HALF_FROM:
            return False  # As nearly always.
        kept = self._kept(taken, limit, left)
        soon = left is not None and left < SOON and taken >= limit * HALF_FROM
        self._soon = self._soon + seconds if soon else 0.0
        if taken >= limit * LOW_FROM or self._soon >= SURE:
            kept = Level.LOW
        elif taken >= limit * HALF_FROM and kept is _OK:
            kept = Level.HALF
        if kept >= self.level:
            self._better = 0.0
        else:
            self._better += seconds
            if self._better < CALM:
                return False
            self._better = 0.0
        changed = kept is not self.level
        self.level = kept
        return changed

    def _kept(self, taken: int, limit: int, left: float | None) -> Level:
        """What is left of the level, as things are."""
        if self.level is Level.LOW and (
            taken >= limit * LOW_UNTIL or (left is not None and left < NOT_SOON)
        ):
            return Level.LOW
        return Level.HALF if self.level and taken >= limit * HALF_UNTIL else _OK


# Finding a member of an enumeration takes as long as all that is done with it.
_OK = Level.OK
