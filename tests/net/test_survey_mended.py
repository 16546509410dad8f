"""proxykit.net.survey: ports that are not counted, and a kernel that answers again."""

from __future__ import annotations

import errno
import os

from twisted.logger import capturedLogs, formatEvent

from proxykit.core.budget import TIME_WAIT
from proxykit.errors import NOT_HERE
from proxykit.model import PortRange
from proxykit.net import sockdiag
from proxykit.net import survey as module
from proxykit.net.survey import BLIND
from tests.net.surveys import ESTABLISHED, TO, SurveyTestCase


class ReservedTests(SurveyTestCase):
    def test_not_counted_twice(self) -> None:
        """Reserved ports are none that there are; so whoever has them takes none."""
        self.range = PortRange(1, 12, 2)
        self.patch(module.kernel, "reserved", lambda low, high: frozenset({11, 12}))
        self.kernel.pieces = [
            [(sockdiag.LISTEN, 11, bytes(34), 1), (ESTABLISHED, 12, TO, 1)],
            [(sockdiag.LISTEN, 9, bytes(34), 1), (ESTABLISHED, 5, TO, 1)],
        ]
        self.survey.start()
        self.assertEqual(self.book(), (0, 2, 7))


class AgainTests(SurveyTestCase):
    """A kernel that has failed to answer once."""

    def setUp(self) -> None:
        super().setUp()
        self.kernel.pieces = [[(sockdiag.TIME_WAIT, 3, TO, 0), (ESTABLISHED, 5, TO, 1)]]
        self.survey.start()
        self.assertEqual(self.book(), (1, 1, 7))
        self.kernel.pieces = [OSError(errno.EBUSY, os.strerror(errno.EBUSY))]
        with capturedLogs() as self.events:
            self.survey.fresh()
            self.read_on()
        self.assertTrue(self.survey.blind)

    def test_what_it_had_shown(self) -> None:
        self.assertEqual(self.book(), (1, 0, 8))
        self.seconds(TIME_WAIT)
        self.assertEqual(self.book(), (0, 0, 9))

    def test_asked_again(self) -> None:
        """Not at once; that it fails again is not said again."""
        before = self.dumps
        with capturedLogs() as events:
            self.seconds(BLIND - 1)
            self.assertEqual(self.dumps, before)
            self.seconds(1)
            self.assertEqual(self.dumps, before + 1)
        self.assertEqual(events, [])
        self.kernel.pieces = [[(ESTABLISHED, 5, TO, 1)]]
        with capturedLogs() as events:
            self.seconds(BLIND)
        self.assertFalse(self.survey.blind)
        self.assertEqual(
            [formatEvent(event) for event in events], ["the kernel shows its sockets again"]
        )
        self.assertEqual(self.book(), (0, 1, 8))


class MissingTests(SurveyTestCase):
    def test_an_address(self) -> None:
        """Nothing is said of ports, of which there is no want."""
        self.survey.start()
        lease = self.accountant.lease(self.house.state(1))
        with capturedLogs() as events:
            lease.denied(f"10.0.0.9 {NOT_HERE}")  # type: ignore[union-attr]
        (event,) = events
        self.assertEqual(
            formatEvent(event),
            f"10.0.0.9 {NOT_HERE}: nothing leaves from it until it is there again",
        )
