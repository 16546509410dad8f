"""proxykit.core.forecast: when to warn of ports that get scarce, and when it is over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.forecast import CALM, NOT_SOON, SOON, SURE, Level, Watch


class WatchTests(SynchronousTestCase):
    def setUp(self):
        self.watch = Watch()

    def look(self, taken, left=None, times=1, limit=1000, **seconds):
        """All levels that it comes to."""
        return [
            self.watch.level for _ in range(times) if self.watch.look(taken, limit, left, **seconds)
        ]

    def test_half(self):
        """Once, at half; and no more from four tenths on for a minute."""
        self.assertEqual(self.look(499, times=100), [])
        self.assertEqual(self.look(500, times=100), [Level.HALF])
        self.assertEqual(self.look(400, times=100), [])
        self.assertEqual(self.look(399, times=int(CALM) - 1), [])
        self.assertEqual(self.look(399), [Level.OK])
        self.assertEqual(self.look(499, times=100), [])

    def test_low(self):
        self.assertEqual(self.look(899), [Level.HALF])
        self.assertEqual(self.look(900, times=100), [Level.LOW])
        self.assertEqual(self.look(800, times=100), [])
        self.assertEqual(self.look(799, times=100), [Level.HALF])
        self.assertEqual(self.look(1000), [Level.LOW])
        self.assertEqual(self.look(700, times=int(CALM)), [Level.HALF])
        self.assertEqual(self.look(100, times=int(CALM) - 1), [])
        self.assertEqual(self.look(100), [Level.OK])

    def test_both_at_once(self):
        """One warning is enough."""
        self.assertEqual(self.look(950, times=100), [Level.LOW])

    def test_foreseen(self):
        """Half used and soon empty, for five seconds: it is low."""
        self.assertEqual(self.look(499, SOON - 1, 100), [])
        self.assertEqual(self.look(500, SOON, 100), [Level.HALF])
        self.assertEqual(self.look(500, SOON - 1, int(SURE) - 1), [])
        self.assertEqual(self.look(500), [])
        self.assertEqual(self.look(500, SOON - 1, int(SURE) - 1), [])
        self.assertEqual(self.look(500, 0.5), [Level.LOW])
        self.assertEqual(self.look(500, NOT_SOON - 1, 100), [])
        self.assertEqual(self.look(500, NOT_SOON, 100), [Level.HALF])

    def test_foreseen_below_half(self):
        """Those seconds do not count."""
        self.assertEqual(self.look(500, SOON - 1, int(SURE) - 1), [Level.HALF])
        self.assertEqual(self.look(499, SOON - 1), [])
        self.assertEqual(self.look(500, SOON - 1, int(SURE) - 1), [])
        self.assertEqual(self.look(500, SOON - 1), [Level.LOW])

    def test_up_and_down(self):
        """Each minute counts anew."""
        self.look(950)
        for _ in range(10):
            self.assertEqual(self.look(100, times=int(CALM) - 1), [])
            self.assertEqual(self.look(850), [])
        self.assertEqual(self.look(100, times=int(CALM)), [Level.OK])

    def test_seconds_are_missed(self):
        self.look(950)
        self.assertEqual(self.look(100, seconds=CALM), [Level.OK])
        self.assertEqual(self.look(500, 10.0, seconds=SURE), [Level.LOW])

    def test_none_at_all(self):
        """There is nothing to hand out, and there never was."""
        self.assertEqual(self.look(0, 0.0, 10, limit=0), [Level.LOW])

    @given(st.lists(st.tuples(st.integers(0, 120), st.none() | st.floats(0, 200)), max_size=300))
    def test_whatever_happens(self, seconds):
        """Never better within a minute; low by the count at once; each level told once."""
        watch, since, before = Watch(), 0, Level.OK
        for second, (taken, left) in enumerate(seconds):
            changed = watch.look(taken, 100, left)
            self.assertEqual(changed, watch.level is not before)
            if taken >= 90:
                self.assertIs(watch.level, Level.LOW)
            elif taken >= 50:
                self.assertGreaterEqual(watch.level, Level.HALF)
            if watch.level < before:
                self.assertGreaterEqual(second + 1 - since, CALM)
            if watch.level >= before and changed:
                since = second + 1
            before = watch.level
