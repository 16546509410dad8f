"""proxykit.core.deadlines: never early, late by little, one timer for all."""

from __future__ import annotations

import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.deadlines import LONGEST_INTERVAL, SHORTEST_INTERVAL, Deadlines

#: Seconds by which time passes here; exact in binary, as are all durations.
STEP = 1 / 256


def interval(duration):
    """Seconds between two sweeps while this is the shortest duration in use."""
    return min(LONGEST_INTERVAL, max(SHORTEST_INTERVAL, duration / 16))


class DeadlinesTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.raised = []
        self.deadlines = Deadlines(self.clock, lambda: self.raised.append(sys.exc_info()[1]))
        self.called = []

    def add(self, duration, name="x"):
        return self.deadlines.add(
            duration, lambda: self.called.append((name, self.clock.seconds()))
        )

    def names(self):
        return [name for name, _ in self.called]

    def run_for(self, seconds):
        self.clock.pump([STEP] * int(seconds / STEP))

    def test_when(self):
        for duration in (0.0, 0.125, 1.0, 5.0, 16.0, 30.0, 100.0):
            self.called.clear()
            begun = self.clock.seconds()
            self.add(duration)
            self.run_for(duration + 2)
            ((_, at),) = self.called
            late = at - begun - duration
            self.assertGreaterEqual(late, 0, duration)
            self.assertLessEqual(late, interval(duration) + STEP, duration)

    def test_order(self):
        for name in "abc":
            self.add(5.0, name)
            self.run_for(1)
        self.run_for(6)
        self.assertEqual(self.names(), ["a", "b", "c"])
        self.assertEqual(len(self.deadlines), 0)

    def test_since(self):
        self.run_for(1)
        deadline = self.add(5.0)
        self.run_for(3)
        self.assertEqual(deadline.since, 1.0)

    def test_cancel(self):
        first, second = self.add(5.0, "first"), self.add(5.0, "second")
        self.assertEqual(len(self.deadlines), 2)
        first.cancel()
        first.cancel()
        self.assertEqual(len(self.deadlines), 1)
        self.run_for(6)
        second.cancel()
        self.assertEqual(self.names(), ["second"])

    def test_touch(self):
        first, second = self.add(5.0, "first"), self.add(5.0, "second")
        self.run_for(3)
        first.touch()
        first.touch()
        second.cancel()
        second.touch()
        self.run_for(4.5)
        self.assertEqual(self.called, [])
        self.run_for(2)
        self.assertEqual(self.names(), ["first"])
        first.touch()
        self.run_for(10)
        self.assertEqual(self.names(), ["first"])

    def test_one_timer(self):
        for duration in (60.0, 30.0, 5.0, 5.0, 600.0):
            self.add(duration)
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.run_for(700)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.deadlines._lanes, {})

    def test_shortest_duration_sets_the_pace(self):
        """Also when a longer one is in use already, and no longer than it is in use itself."""
        self.add(600.0, "long")
        short = self.add(0.25, "short")
        self.run_for(0.3)
        self.assertEqual(self.names(), ["short"])
        self.assertAlmostEqual(self.deadlines._interval, LONGEST_INTERVAL)
        short.cancel()

    def test_lane_in_use_again(self):
        """A duration that fell out of use is swept again, and touched right, when it comes back."""
        self.add(600.0)
        self.add(5.0).cancel()
        self.run_for(2)
        entry = self.add(5.0, "back")
        self.run_for(4)
        entry.touch()
        self.run_for(4.9)
        self.assertEqual(self.called, [])
        self.run_for(1)
        self.assertEqual(self.names(), ["back"])

    def test_error(self):
        error = RuntimeError("oops")

        def fail():
            raise error

        self.deadlines.add(5.0, fail)
        self.add(5.0, "next")
        self.run_for(6)
        self.assertEqual((self.raised, self.names()), ([error], ["next"]))

    def test_added_by_another(self):
        def more():
            self.add(5.0, "same")
            self.add(1.0, "new")

        self.deadlines.add(5.0, more)
        self.run_for(6.5)
        self.assertEqual(self.names(), ["new"])
        self.run_for(6)
        self.assertEqual(self.names(), ["new", "same"])

    def test_cancelled_by_another(self):
        """What one deadline cancels does not happen, though both expire in the same sweep."""
        second = None

        def first():
            second.cancel()

        self.deadlines.add(5.0, first)
        second = self.add(5.0, "second")
        self.run_for(10)
        self.assertEqual(self.names(), [])

    def test_touched_by_another(self):
        """Nor what it puts off."""
        second = None

        def first():
            second.touch()

        self.deadlines.add(5.0, first)
        second = self.add(5.0, "second")
        self.run_for(9.5)
        self.assertEqual(self.names(), [])
        self.run_for(2)
        self.assertEqual(self.names(), ["second"])

    def test_longer_one_added_in_a_sweep(self):
        """It does not slow the sweep down for a shorter one that is running."""
        self.deadlines.add(0.25, lambda: self.add(600.0, "long"))
        self.run_for(0.125)
        self.add(0.25, "short")
        begun = self.clock.seconds()
        self.run_for(3)
        self.assertEqual(self.names(), ["short"])
        self.assertLessEqual(self.called[0][1] - begun - 0.25, interval(0.25) + STEP)

    def test_touched_before_a_sweep_that_is_late(self):
        """While something holds the reactor up, the sweep is late; still nothing comes early."""
        entry = self.add(16.0)
        self.clock.rightNow += 5.0  # no timer has run
        entry.touch()
        self.run_for(15.5)
        self.assertEqual(self.called, [])
        self.run_for(3)
        self.assertEqual(self.names(), ["x"])

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(("add", "touch", "cancel", "pass")),
                st.sampled_from((0.25, 1.5, 2.0, 3.25)),
                st.integers(0, 40),
            ),
            max_size=40,
        )
    )
    def test_any_order(self, steps):
        """Each comes once, in its time.

        A touch counts from the next sweep, so one that was touched, and those behind it, may be
        late by a second interval.
        """
        self.setUp()
        running = []  # (deadline, its name)
        due = {}  # by name: when it was last put off, and how long it is
        for name, (what, duration, number) in enumerate(steps):
            if what == "add":
                due[name] = (self.clock.seconds(), duration)
                running.append((self.add(duration, name), name))
            elif what == "pass":
                self.clock.pump([STEP] * number)
            elif running:
                entry, chosen = running[number % len(running)]
                if chosen not in self.names():
                    if what == "touch":
                        entry.touch()
                        due[chosen] = (self.clock.seconds(), due[chosen][1])
                    else:
                        entry.cancel()
                        running.remove((entry, chosen))
                        del due[chosen]
        self.run_for(5)
        self.assertEqual(sorted(self.names()), sorted(due))
        for name, at in self.called:
            since, duration = due[name]
            late = at - since - duration
            self.assertGreaterEqual(late, 0)
            self.assertLessEqual(late, 2 * interval(duration) + STEP)
        self.assertEqual(self.clock.getDelayedCalls(), [])
