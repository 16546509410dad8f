"""proxykit.core.rarely: the first is said, and then how many there were."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.rarely import SAY_AGAIN, Rarely
from proxykit.model import ConnInfo


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

    def test_warn_of(self):
        """Whose connection it is comes first."""
        events = []
        rarely, log = Rarely(Clock()), Logger(observer=events.append)
        for number in (7, 8):
            info = ConnInfo(number, "front", IPv4Address("TCP", "192.0.2.1", 4711))
            rarely.warn_of(log, "a", info, " refused: {why}", "no {name}")
        (event,) = events
        self.assertEqual(formatEvent(event), "front #7: 192.0.2.1:4711 refused: no {name}")
        self.assertEqual((event["connection"], event["why"]), ("front #7", "no {name}"))

    def test_each_kind_for_itself(self):
        rarely = Rarely(Clock())
        self.assertEqual([rarely.say(kind) for kind in "aba"], [0, 0, None])
