"""proxykit.core.rarely: the first is said, and then how many there were."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.rarely import SAY_AGAIN, Rarely


class RarelyTests(SynchronousTestCase):
    def test_the_first_and_then_a_count(self):
        clock = Clock()
        rarely = Rarely(clock)
        self.assertEqual([rarely.say("a") for _ in range(3)], [0, None, None])
        clock.advance(SAY_AGAIN / 2)
        self.assertIsNone(rarely.say("a"))
        clock.advance(SAY_AGAIN / 2)
        self.assertEqual([rarely.say("a") for _ in range(2)], [3, None])
        clock.advance(2 * SAY_AGAIN)
        self.assertEqual(rarely.say("a"), 1)

    def test_warn(self):
        """One line for many, which says how many it stands for."""
        clock, events = Clock(), []
        rarely, log = Rarely(clock), Logger(observer=events.append)
        for wait in (0, 0, SAY_AGAIN):
            clock.advance(wait)
            rarely.warn(log, "a", "{who}: {text}", who="front", text="no")
        lines = [formatEvent(event) for event in events]
        self.assertEqual(lines, ["front: no", "front: no (and 1 like it before)"])
        self.assertEqual({event["log_level"] for event in events}, {LogLevel.warn})

    def test_each_kind_for_itself(self):
        rarely = Rarely(Clock())
        self.assertEqual([rarely.say(kind) for kind in "aba"], [0, 0, None])
