"""How good the forecast is (core/forecast.py): over loads that rise, fall, burst, come and go.

No socket is opened here: each load is simulated, second by second, with connections that come by
chance (Poisson), last for a while, and leave their port in TIME_WAIT or not. ``errors(load)`` plays
it to a forecast and compares with when the ports were gone in fact.

Chance has its share in that. Of a steady rise of R in a second, a forecaster who knew R would at
one minute ahead be wrong by more than 0.67 / sqrt(60 R) half of the time, and by more than
1.64 / sqrt(60 R) a tenth of it: by 2.7% and 6.7% where ten come in a second. Who does not know R
has to take it from those that have come, N by then: that makes it sqrt(1 / 60 R + 1 / N) in place
of sqrt(1 / 60 R). Nobody can do better on the average, for how many have come is all that there is
to be known of R. ``chances()`` plays both beside the forecast.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from statistics import median
from typing import NamedTuple, Protocol

from proxykit.core.forecast import LOW_FROM, MINUTE, WARM_UP, Forecast, Level, Watch

#: As many as there are by default, less the headroom.
PORTS = 27_667
#: An alarm is false if within so many seconds the budget is not low by its count, either.
SOON = 120
#: A minute ahead, and half a minute: seconds until the ports are gone.
MINUTE_AHEAD, HALF_AHEAD = range(50, 71), range(25, 36)

#: So many are simulated of each load, if it does not take more to play it five times.
SECONDS = 20_000

#: In one second: ports that somebody has, ports in TIME_WAIT, and how many were ever closed.
Second = tuple[int, int, int]


@dataclass(frozen=True)
class Load:
    """What happens to a budget.

    :ivar rate: how many connections come in each second, on the average.
    :ivar seconds: for how long.
    :ivar lasts: seconds that a connection lasts, on the average; 0: for ever.
    :ivar rests: whether its port is in TIME_WAIT then.
    :ivar limit: how many ports there are.
    :ivar begin: how many connections there are at the beginning.
    """

    name: str
    rate: Callable[[int], float]
    seconds: int
    lasts: float = 0.0
    rests: bool = False
    limit: int = PORTS
    begin: int = 0

    def play(self, chance: Random) -> Iterator[Second]:
        """Second by second. Who finds no port stays away."""
        ends = 1 - math.exp(-1 / self.lasts) if self.lasts else 0.0
        busy, closed, recent = self.begin, 0, deque([0] * MINUTE, MINUTE)
        for second in range(self.seconds):
            ended = min(busy, poisson(chance, busy * ends))
            busy -= ended
            recent.append(ended if self.rests else 0)
            closed += recent[-1]
            resting = sum(recent)
            busy += min(self.limit - busy - resting, poisson(chance, self.rate(second)))
            yield busy, resting, closed


def poisson(chance: Random, mean: float) -> int:
    """How many come, if that many come on the average."""
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    count, left = -1, 1.0
    while left > 0:
        left -= chance.expovariate(mean) if mean > 0 else 1.0
        count += 1
    return count


def _after(quiet: int, rate: float, before: float = 0.0) -> Callable[[int], float]:
    return lambda second: rate if second >= quiet else before


def _after_a_jump(height: float, rate: float) -> Callable[[int], float]:
    """Quiet for a minute; a jump within two seconds; quiet; and a rise."""
    return lambda second: height / 2 if 60 <= second < 62 else rate if second >= 92 else 0.0


def _wave(low: float, high: float, period: int, lasts: float) -> Callable[[int], float]:
    """Between two shares of all ports, with connections that last so long."""
    middle, swing, turn = (low + high) / 2, (high - low) / 2, 2 * math.pi / period

    def rate(second: int) -> float:
        share = middle + swing * math.sin(second * turn)
        rise = swing * turn * math.cos(second * turn)
        return max(0.0, PORTS * (share / lasts + rise))

    return rate


LOADS = (
    Load("steady rise, 46 a second", lambda _: 46.0, 650),
    Load("steady rise, 10 a second, 1,000 ports", lambda _: 10.0, 140, limit=1000),
    Load("steady rise, 2 a second, 196 ports", lambda _: 2.0, 140, limit=196),
    Load("quiet for ten minutes, then 100 a second", _after(600, 100), 900),
    Load("quiet for ten minutes, then 250 a second", _after(600, 250), 730),
    Load("a jump to 5,000, and 30 s later 200 a second", _after_a_jump(5000, 200), 240),
    Load("the same with 220 and 11 a second, 1,000 ports", _after_a_jump(220, 11), 180, limit=1000),
    Load("sooner and sooner", lambda second: 0.15 * second, 650),
    Load("a new level: 4 times the sessions of 2 min", _after(600, 267, 67), 1200, 120, begin=8000),
    Load("falling", lambda _: 20.0, 900, 200, begin=24_000),
    Load("as it was, 60%", lambda _: 166.0, 3600, 100, begin=16_600),
    Load("as it was, 80% of 196", lambda _: 7.85, 3600, 20, limit=196, begin=157),
    Load("bursts: 1,000 every 20 s that stay", lambda s: 1000 * (s % 20 == 0), 700),
    Load("bursts: up to 70%, each minute", lambda s: 15_000 * (s % 60 == 0), 3600, 20),
    Load("bursts: 20,000 come back in 20 s", lambda s: 1000 * (60 <= s < 80), 600, 1000),
    Load("periodic: 10 to 80%, in 10 min", _wave(0.1, 0.8, 600, 30), 3600, 30, begin=12_000),
    Load("periodic: 10 to 85%, in 5 min", _wave(0.1, 0.85, 300, 30), 3600, 30, begin=12_000),
    Load("periodic: 10 to 110%, in 10 min", _wave(0.1, 1.1, 600, 60), 3600, 60, begin=16_000),
    Load("TIME_WAIT: 380 a second, 82%", _after(30, 380), 600, 0.2, rests=True),
    Load("TIME_WAIT: 500 a second, 108%", lambda _: 500.0, 100, 0.2, rests=True),
    Load("TIME_WAIT: more and more", lambda s: 50 + 0.5 * s, 1000, 0.2, rests=True),
)


class Wrong(NamedTuple):
    """By what share forecasts were wrong: in the middle of all, and at the end of nine tenths.

    Infinite: it was not foreseen at all.
    """

    middle: float
    most: float


@dataclass(frozen=True)
class Errors:
    """How the forecast of a load has done.

    :ivar minute: a minute before the ports were gone; None: they never were, or had been so within
        the minute. ``half``: half a minute before.
    :ivar false_alarms: in an hour.
    :ivar warned: seconds from the warning until none was left, in the middle of all.
    """

    name: str
    minute: Wrong | None
    half: Wrong | None
    false_alarms: float
    warned: float | None


class Forecaster(Protocol):
    """What is tried: :class:`~proxykit.core.forecast.Forecast`, or another."""

    def feed(self, busy: int, resting: int, closed: int, limit: int) -> float | None:
        """See ``Forecast.feed``."""


class KnowsTheRate:
    """Who knows how many come in a second, on the average: that is left to chance alone."""

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def feed(self, busy: int, resting: int, closed: int, limit: int) -> float | None:
        """See ``Forecast.feed``."""
        return (limit - busy) / self._rate


class KnowsThatItIsSteady:
    """Who knows that the rate is the same all the time, and takes it from all that have come."""

    def __init__(self) -> None:
        self._seconds = 0

    def feed(self, busy: int, resting: int, closed: int, limit: int) -> float | None:
        """See ``Forecast.feed``."""
        self._seconds += 1
        return (limit - busy) * self._seconds / busy if busy else None


def errors(load: Load, times: int = 0, make: Callable[[], Forecaster] | None = None) -> Errors:
    """Play it many times, each by another chance.

    :param times: how often; 0: as often as takes some five hours, but at least five times.
    :param make: makes what is tried; None: a ``Forecast``.
    """
    times = times or max(5, SECONDS // load.seconds)
    found: dict[range, list[float]] = {MINUTE_AHEAD: [], HALF_AHEAD: []}
    warned: list[float] = []
    alarms = 0
    for seed in range(times):
        seconds = list(load.play(Random(seed)))
        taken = [busy + resting for busy, resting, _ in seconds]
        forecast, watch = (make or Forecast)(), Watch()
        gone, low = _next(taken, load.limit), _next(taken, load.limit * LOW_FROM)
        since: int | None = None
        for now, (busy, resting, closed) in enumerate(seconds):
            left = forecast.feed(busy, resting, closed, load.limit)
            for ahead, wrong in found.items():
                if now >= WARM_UP and gone[now] in ahead:
                    wrong.append(math.inf if left is None else abs(left - gone[now]) / gone[now])
            if watch.look(taken[now], load.limit, left):
                since = now if watch.level is Level.LOW else None
                alarms += since is not None and low[now] > SOON
            if gone[now] == 0 and taken[now - 1] < load.limit:
                warned.append(0 if since is None else now - since)
    return Errors(
        load.name,
        _wrong(found[MINUTE_AHEAD]),
        _wrong(found[HALF_AHEAD]),
        alarms * 3600 / (times * load.seconds),
        median(warned) if warned else None,
    )


def _wrong(shares: list[float]) -> Wrong | None:
    shares.sort()
    return Wrong(median(shares), shares[len(shares) * 9 // 10]) if shares else None


def _next(taken: list[int], limit: float) -> list[float]:
    """For each second, in how many as many are taken; infinite: never."""
    found, ahead = [], math.inf
    for each in reversed(taken):
        ahead = 0 if each >= limit else ahead + 1
        found.append(ahead)
    return found[::-1]


#: Of :func:`rows`. Errors are in percent: in the middle of all, and at the end of nine tenths.
COLUMNS = (
    "load",
    "error a minute ahead, median, %",
    "the same, 9 of 10, %",
    "half a minute ahead, median, %",
    "the same, 9 of 10, %",
    "false alarms an hour",
    "warned before, s",
)


def rows(times: int = 0) -> list[tuple[str | float | None, ...]]:
    """All loads, for a table. None: the ports were never gone, or it was not foreseen."""
    return [
        (
            each.name,
            *_percent(each.minute),
            *_percent(each.half),
            round(each.false_alarms, 1),
            each.warned,
        )
        for each in (errors(load, times) for load in LOADS)
    ]


#: Of :func:`chances`.
CHANCES = (
    "a minute before",
    "the forecast: median, %",
    "9 of 10, %",
    "who knows that it is steady: median, %",
    "9 of 10, %",
    "who knows the rate: median, %",
    "9 of 10, %",
)


def chances(times: int = 0) -> list[tuple[str | float | None, ...]]:
    """How much of the error of steady rises is chance, for a table."""
    found = []
    for load in LOADS:
        if load.name.startswith("steady"):
            knows = partial(KnowsTheRate, load.rate(0))
            tried = [errors(load, times, make) for make in (None, KnowsThatItIsSteady, knows)]
            found.append((load.name, *(each for e in tried for each in _percent(e.minute))))
    return found


def _percent(wrong: Wrong | None) -> Iterator[float | None]:
    for share in wrong or (math.inf, math.inf):
        yield None if share == math.inf else round(100 * share, 1)
