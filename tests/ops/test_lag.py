"""proxykit.ops.lag: how late the event loop is."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxykit.ops.lag import INTERVAL, MEMORY, LoopLag


class LagTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lag = LoopLag(self.clock, self.clock.seconds)

    def pass_late(self, late: float) -> None:
        """The next timer is late by so much."""
        self.clock.advance(INTERVAL + late)

    def test_not_yet(self) -> None:
        self.lag.start()
        self.clock.advance(INTERVAL - 0.01)
        self.assertIsNone(self.lag.last)
        self.assertEqual((self.lag.worst, sum(self.lag.lateness.counts)), (0.0, 0))

    def test_late(self) -> None:
        """Each time counts for itself: a timer that is late does not make the next one late."""
        self.lag.start()
        for late in (0.0, 0.3, 0.0, 0.02):
            self.pass_late(late)
            self.assertAlmostEqual(self.lag.last or 0.0, late)
        self.assertAlmostEqual(self.lag.worst, 0.3)
        self.assertEqual(sum(self.lag.lateness.counts), 4)
        self.assertAlmostEqual(self.lag.lateness.total, 0.32)

    def test_the_worst_is_forgotten(self) -> None:
        self.lag.start()
        self.pass_late(2.0)
        for _ in range(round(MEMORY / INTERVAL) - 1):
            self.pass_late(0.0)
        self.assertAlmostEqual(self.lag.worst, 2.0)
        self.pass_late(0.0)
        self.assertLess(self.lag.worst, 0.01)

    def test_early(self) -> None:
        """By another clock."""
        now = [10.0]
        lag = LoopLag(self.clock, lambda: now[0])
        lag.start()
        now[0] = 9.0
        self.clock.advance(INTERVAL)
        self.assertEqual(lag.last, 0.0)

    def test_start_and_stop(self) -> None:
        """Twice is as good as once; nothing is left behind."""
        self.lag.stop()
        self.lag.start()
        self.lag.start()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.pass_late(0.0)
        self.lag.stop()
        self.lag.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
