"""proxykit.lab.loads: the loads are what they say, and the forecast as good as it says."""

from __future__ import annotations

import math
from random import Random
from statistics import mean, pvariance

from twisted.trial.unittest import SynchronousTestCase

from proxykit.lab import loads
from proxykit.lab.loads import (
    CHANCES,
    COLUMNS,
    LOADS,
    Errors,
    KnowsThatItIsSteady,
    Load,
    Wrong,
    chances,
    errors,
    poisson,
    rows,
)


def named(part):
    (load,) = (load for load in LOADS if part in load.name)
    return load


class LoadTests(SynchronousTestCase):
    def test_poisson(self):
        """Mean and variance are the same; also of the large, which are about normal."""
        chance = Random(1)
        for expected in (0.5, 7.0, 49.0, 51.0, 400.0):
            found = [poisson(chance, expected) for _ in range(20_000)]
            self.assertApproximates(mean(found), expected, 0.03 * expected)
            self.assertApproximates(pvariance(found), expected, 0.05 * expected)
        self.assertEqual([poisson(chance, 0.0) for _ in range(10)], [0] * 10)

    def test_for_ever(self):
        busy, resting, closed = list(Load("", lambda _: 10, 100).play(Random(1)))[-1]
        self.assertApproximates(busy, 1000, 100)
        self.assertEqual((resting, closed), (0, 0))

    def test_who_leaves(self):
        """As many as come in, times how long they last; and none of them rests."""
        seconds = list(Load("", lambda _: 100, 1000, lasts=20).play(Random(1)))
        self.assertApproximates(mean(busy for busy, _, _ in seconds[200:]), 2000, 100)
        self.assertEqual({(resting, closed) for _, resting, closed in seconds}, {(0, 0)})

    def test_who_rests(self):
        """For a minute, whoever has left."""
        seconds = list(Load("", lambda _: 100, 200, lasts=0.2, rests=True).play(Random(1)))
        for now, (_, resting, closed) in enumerate(seconds):
            self.assertEqual(resting, closed - (seconds[now - 60][2] if now >= 60 else 0))
        self.assertApproximates(seconds[-1][1], 6000, 300)

    def test_limit(self):
        for rests in (False, True):
            load = Load("", lambda _: 100, 300, lasts=1.0, rests=rests, limit=90)
            taken = [busy + resting for busy, resting, _ in load.play(Random(1))]
            self.assertEqual(max(taken), 90)

    def test_the_same_chance(self):
        """What was printed can be printed again."""
        for load in LOADS:
            first, again = (list(load.play(Random(3))) for _ in range(2))
            self.assertEqual(first, again)
            self.assertEqual(len(first), load.seconds)

    def test_waves(self):
        load = named("10 to 80%")
        busy = [busy / load.limit for busy, _, _ in load.play(Random(1))][600:]
        self.assertApproximates(min(busy), 0.1, 0.05)
        self.assertApproximates(max(busy), 0.8, 0.05)


class ErrorsTests(SynchronousTestCase):
    def test_steady(self):
        """A tenth, a minute ahead; and one warning, about a minute before."""
        found = errors(named("46 a second"), 10)
        self.assertLess(found.minute.middle, 0.05)
        self.assertLess(found.minute.most, 0.1)
        self.assertLess(found.half.most, 0.1)
        self.assertEqual(found.false_alarms, 0)
        self.assertApproximates(found.warned, 60, 5)

    def test_after_quiet(self):
        for rate in (100, 250):
            found = errors(named(f"quiet for ten minutes, then {rate}"))
            self.assertLess(found.minute.most, 0.1)
            self.assertGreater(found.warned, 45)

    def test_after_a_jump(self):
        """A rise half a minute after it is seen a minute ahead, where it is not small beside it."""
        found = errors(named("a jump to 5,000"))
        self.assertLess(found.minute.most, 0.05)
        self.assertGreater(found.warned, 50)
        self.assertLess(errors(named("the same with 220")).half.middle, 0.15)

    def test_how_often(self):
        """As often as it takes for so many seconds; five times at least."""
        played = []
        self.patch(Load, "play", lambda load, chance: played.append(load) or iter([(0, 0, 0)]))
        errors(Load("", lambda _: 1.0, 100))
        errors(Load("", lambda _: 1.0, 3600))
        errors(Load("", lambda _: 1.0, 7), 3)
        self.assertEqual([sum(1 for each in played if each.seconds == s) for s in (100, 3600, 7)],
                         [200, 5, 3])  # fmt: skip

    def test_chances(self):
        """The more is known the better, and chance leaves this much; nothing is known for sure."""
        self.patch(loads, "LOADS", (named("2 a second"), named("falling")))
        (row,) = chances(300)
        self.assertEqual(len(row), len(CHANCES))
        _, *percent = row
        for found, expected in zip(percent, (11.5, 29, 10.5, 26, 6, 15), strict=True):
            self.assertApproximates(found, expected, 0.15 * expected)
        self.assertIsNone(KnowsThatItIsSteady().feed(0, 0, 0, 10))

    def test_no_false_alarm(self):
        """They are never gone, and no one is woken."""
        for name in ("falling", "as it was, 60%", "up to 70%", "10 to 80%", "380 a second"):
            found = errors(named(name), 3)
            self.assertEqual(found, Errors(found.name, None, None, 0.0, None))

    def test_time_wait(self):
        found = errors(named("500 a second"))
        self.assertLess(found.half.most, 0.1)
        self.assertGreater(found.warned, 20)

    def test_false_alarm(self):
        """It is counted: a burst that looks as if it went on."""
        found = errors(Load("", lambda s: 1000 * (60 <= s < 80), 600), 2)
        self.assertEqual((found.minute, found.false_alarms), (None, 6.0))

    def test_alarm_by_the_count(self):
        """One that comes true is none."""
        self.assertEqual(errors(Load("", lambda s: 1000 * (60 <= s < 86), 600), 2).false_alarms, 0)

    def test_wrong(self):
        """A forecast that is always a minute, and one that is none."""

        class Minute:
            def feed(self, busy, resting, closed, limit):
                return 60.0

        class Never(Minute):
            def feed(self, busy, resting, closed, limit):
                return None

        load = Load("", lambda _: 46.0, 700)
        self.patch(loads, "Forecast", Minute)
        found = errors(load, 1)
        self.assertApproximates(found.minute.middle, 5 / 60, 0.01)
        self.assertApproximates(found.minute.most, 9 / 51, 0.03)
        self.assertApproximates(found.half.middle, 1.0, 0.01)
        self.patch(loads, "Forecast", Never)
        self.assertEqual(errors(load, 1).minute, Wrong(math.inf, math.inf))
        self.assertApproximates(errors(load, 1).warned, 60, 3)  # At nine tenths.

    def test_no_warning(self):
        """All ports are gone at once: it comes with that."""
        self.assertEqual(errors(Load("", lambda s: 2000 * (s == 50), 60, limit=1000), 1).warned, 0)

    def test_rows(self):
        self.patch(loads, "LOADS", (named("46 a second"), named("falling")))
        rising, falling = rows(1)
        self.assertEqual({len(rising), len(falling)}, {len(COLUMNS)})
        self.assertTrue(all(isinstance(each, int | float) for each in rising[1:]), rising)
        self.assertLess(rising[1], 20)
        self.assertEqual(falling, ("falling", None, None, None, None, 0.0, None))
