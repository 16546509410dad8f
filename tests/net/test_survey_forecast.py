"""proxykit.net.survey: the book is told of each second, and the log of scarce ports."""

from __future__ import annotations

import errno

from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.forecast import CALM
from proxykit.net.kernel import looks_at_all_alike
from proxykit.net.survey import Survey
from tests.core import HERE, House, backends


def no_dump(low, high):
    """The kernel does not answer."""
    raise OSError(errno.EPERM, "not permitted")


class SurveyForecastTests(SynchronousTestCase):
    def setUp(self):
        self.house = House(*backends(1), ports=1000, headroom=0.0)
        self.accountant = self.house.accountant
        self.clock = Clock()
        self.survey = Survey(self.clock, self.accountant, lambda: self.accountant.ports, no_dump)
        self.accountant.budgets(self.house.state(1).address)
        self.survey.start()
        self.addCleanup(self.survey.stop)
        self.events = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def pass_by(self, seconds, taken=0, pause=1.0):
        leases = []
        for _ in range(seconds):
            leases += [self.accountant.lease(self.house.state(1)) for _ in range(taken)]
            self.clock.advance(pause)
        return leases

    def said(self):
        """What the log has since the last time: how loud, and the beginning of the text."""
        events, self.events[:] = list(self.events), []
        return [(event["log_level"], formatEvent(event).partition(":")[0]) for event in events]

    def test_said_once(self):
        """A warning for each line that is crossed, and when it is over a word."""
        way = f"from {HERE} to 10.0.0.1"
        leases = self.pass_by(1, taken=499)
        self.assertEqual(self.said(), [])
        leases += self.pass_by(1, taken=1)
        self.assertEqual(self.said(), [(LogLevel.warn, f"half of the source ports {way}")])
        leases += self.pass_by(1, taken=400)
        self.assertEqual(self.said(), [(LogLevel.warn, f"source ports {way}")])
        self.pass_by(100)
        self.assertEqual(self.said(), [])
        for lease in leases:
            lease.release()
        self.pass_by(int(CALM))
        self.assertEqual(self.said(), [(LogLevel.info, f"there are enough source ports {way}")])

    def test_braces(self):
        """What is said is no format."""
        self.survey._crossed(1, 0, "{way}")
        self.assertEqual([formatEvent(event) for event in self.events], ["{way}"])

    def test_how_long_a_second_was(self):
        """The reactor was busy: each tick came a second late."""
        self.pass_by(30, taken=4, pause=2.0)
        (shown,) = self.accountant.snapshot()
        self.assertEqual(shown["forecast_seconds"], 440.0)

    def test_started_again(self):
        """The time in between is no second."""
        self.pass_by(30, taken=4)
        self.survey.stop()
        self.clock.advance(50)
        self.survey.start()
        self.pass_by(1, taken=4)
        (shown,) = self.accountant.snapshot()
        self.assertEqual(shown["forecast_seconds"], 219.0)


class KernelTests(SynchronousTestCase):
    def test_releases(self):
        for release, alike in (
            ("6.18.44-fc-v657", True),
            ("6.8", True),
            ("10.0.1", True),
            ("6.7.12-amd64", False),
            ("5.15.0-91-generic", False),
            ("Darwin", False),
            ("", False),
        ):
            self.assertEqual(looks_at_all_alike(release or "?"), alike, release)
        self.assertIn(looks_at_all_alike(), (True, False))
