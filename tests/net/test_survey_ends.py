"""The survey: who waits for it, and what becomes of a reading that does not come to its end."""

from __future__ import annotations

import errno
import os

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from proxykit.model import PortRange
from proxykit.net.survey import PLENTY, Survey
from tests.core import HERE
from tests.net.surveys import ESTABLISHED, TO, SurveyTestCase


class FreshTests(SurveyTestCase):
    """Who wants to know it as it is now."""

    def setUp(self) -> None:
        super().setUp()
        self.survey.start()

    def test_at_rest(self) -> None:
        """It begins at once, and is waited for."""
        self.kernel.pieces = [[(ESTABLISHED, 5, TO, 1)], []]
        asked = self.survey.fresh()
        self.assertEqual(self.dumps, 2)
        self.step()
        self.assertNoResult(asked)
        self.step()
        self.successResultOf(asked)
        self.assertEqual(self.book(), (0, 1, 8))

    def test_under_way(self) -> None:
        """That began before: the next one will do, one for all."""
        self.kernel.pieces = [[], []]
        first = self.survey.fresh()
        others = [self.survey.fresh()]
        self.step()
        others.append(self.survey.fresh())
        self.assertEqual(self.dumps, 2)
        self.step()
        self.successResultOf(first)
        for each in others:
            self.assertNoResult(each)
        self.assertEqual(self.dumps, 3)
        self.read_on()
        for each in others:
            self.successResultOf(each)
        self.assertEqual((self.dumps, self.clock.readers), (3, []))

    def test_by_the_clock(self) -> None:
        """One that is under way for its own sake is as good, or bad."""
        self.begin()
        asked = self.survey.fresh()
        self.assertEqual(self.dumps, 2)
        self.step()
        self.assertNoResult(asked)
        self.step()
        self.successResultOf(asked)

    def test_again_and_again(self) -> None:
        """Who asks again when told gets another one."""
        told = []

        def again(_: None) -> None:
            told.append(self.survey.readings)
            if len(told) < 4:
                self.survey.fresh().addCallback(again)

        self.survey.fresh().addCallback(again)
        self.read_on()
        self.assertEqual(told, [2, 3, 4, 5])

    def test_stopped(self) -> None:
        self.survey.stop()
        self.successResultOf(self.survey.fresh())
        self.assertEqual(self.dumps, 1)

    def test_never_started(self) -> None:
        other = Survey(self.clock, self.accountant, lambda: self.range, self.kernel.dump)
        self.successResultOf(other.fresh())
        self.assertEqual(self.dumps, 1)

    def test_it_is_counted(self) -> None:
        """The next by the clock is due that much later."""
        self.seconds(5)
        self.survey.fresh()
        self.read_on()
        self.seconds(PLENTY - 1)
        self.assertEqual(self.dumps, 2)
        self.seconds(1)
        self.assertEqual(self.dumps, 3)


class EndTests(SurveyTestCase):
    """It is stopped, with the service or with the reactor."""

    def setUp(self) -> None:
        super().setUp()
        self.survey.start()

    def test_at_rest(self) -> None:
        self.survey.stop()
        self.survey.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.survey.readings, 1)

    def test_in_the_middle(self) -> None:
        """The book is as it was; whoever waits, for this one or the next, waits no more."""
        for stop in (
            self.survey.stop,
            lambda: (self.survey.stop(), self.survey.connectionLost(Failure(ValueError()))),
        ):
            self.kernel.pieces = [[(ESTABLISHED, 5, TO, 1)], [(ESTABLISHED, 6, TO, 1)]]
            this, following = self.survey.fresh(), self.survey.fresh()
            self.step()
            before = self.dumps
            stop()
            self.successResultOf(this)
            self.successResultOf(following)
            self.assertEqual(self.book(), (0, 0, 9))
            self.assertEqual((self.dumps, self.kernel.dumps[-1].number), (before, -1))
            self.assertEqual((self.clock.readers, self.clock.getDelayedCalls()), ([], []))
            self.kernel.pieces = [[]]
            self.survey.start()

    def test_the_reactor_ends_first(self) -> None:
        """It drops its readers, and tells them so."""
        asked = self.survey.fresh()
        (reader,) = self.clock.removeAll()
        reader.connectionLost(Failure(ValueError()))
        self.successResultOf(asked)
        self.assertEqual(self.kernel.dumps[-1].number, -1)

    def test_started_again(self) -> None:
        self.survey.stop()
        self.kernel.pieces = [[(ESTABLISHED, 5, TO, 1)]]
        self.survey.start()
        self.assertEqual(self.book(), (0, 1, 8))
        self.seconds(PLENTY)
        self.assertEqual(self.survey.readings, 3)


class BlindTests(SurveyTestCase):
    """The kernel does not answer."""

    def heard(self) -> list[str]:
        return [formatEvent(event) for event in self.events]

    def start(self) -> None:
        with capturedLogs() as self.events:
            self.survey.start()

    def test_from_the_start(self) -> None:
        """That is said once; what was closed here is counted all the same."""
        self.kernel.refuses = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        self.start()
        self.assertTrue(self.survey.blind)
        (line,) = self.heard()
        self.assertEqual(
            line,
            "the kernel does not show its sockets (Operation not permitted): ports in TIME_WAIT"
            " are counted from what was closed here, those of other processes not at all",
        )
        self.kernel.refuses = None
        with capturedLogs() as self.events:
            self.use_up()
            self.leases[0].closed_by = "proxy"
            self.leases[0].release()
            self.assertEqual(self.book(), (1, 0, 4))
            self.seconds(30)
            self.successResultOf(self.survey.fresh())
            self.seconds(30)
        self.assertEqual(self.dumps, 0)
        self.assertEqual([line for line in self.heard() if "does not show" in line], [])
        self.assertEqual(self.book(), (0, 0, 5))

    def test_an_error_without_a_number(self) -> None:
        self.kernel.refuses = OSError("there is no netlink here")
        self.start()
        self.assertIn("(there is no netlink here)", self.heard()[0])

    def test_denied(self) -> None:
        """Nobody can say why; it is tried again each second."""
        self.kernel.refuses = OSError("there is no netlink here")
        self.start()
        lease = self.accountant.lease(self.house.state(1))
        lease.denied("none is left")
        lease.release()
        self.assertEqual(self.book()[2], 0)
        self.seconds(1)
        self.assertEqual(self.book()[2], 1)

    def test_in_the_middle(self) -> None:
        """The book is as it was; nobody waits for what does not come."""
        self.start()
        self.kernel.pieces = [
            [(ESTABLISHED, 5, TO, 1)],
            OSError(errno.ENOENT, os.strerror(errno.ENOENT)),
        ]
        this, following = self.survey.fresh(), self.survey.fresh()
        with capturedLogs() as self.events:
            self.read_on()
        self.assertEqual(len(self.heard()), 1)
        self.assertTrue(self.survey.blind)
        self.successResultOf(this)
        self.successResultOf(following)
        self.assertEqual((self.book(), self.dumps), ((0, 0, 9), 2))
        self.assertEqual((self.clock.readers, self.kernel.dumps[-1].number), ([], -1))
        self.seconds(30)
        self.assertEqual(self.dumps, 2)

    def test_out_of_descriptors(self) -> None:
        """Then it is for now alone: that passes."""
        self.start()
        full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.kernel.refuses = full
        self.use_up()
        with capturedLogs() as self.events:
            self.seconds(3)
            self.successResultOf(self.survey.fresh())
        (line,) = [line for line in self.heard() if "book" in line]
        self.assertEqual(
            line,
            "the kernel's sockets could not be read (Too many open files): the book of source"
            " ports is as it was",
        )
        self.assertFalse(self.survey.blind)
        self.kernel.refuses = None

        def no_range() -> PortRange:
            raise full

        self.survey._ports = no_range  # To read that takes a descriptor as well.
        self.seconds(3)
        self.assertEqual((self.dumps, self.survey.blind), (1, False))
        self.survey._ports = lambda: self.range
        self.seconds(1)
        self.assertEqual((self.dumps, self.survey.readings), (2, 2))

    def test_out_of_memory_in_the_middle(self) -> None:
        self.start()
        self.kernel.pieces = [[], OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))]
        asked = self.survey.fresh()
        self.read_on()
        self.successResultOf(asked)
        self.assertFalse(self.survey.blind)
        self.assertEqual(self.book(), (0, 0, 9))
        self.kernel.pieces = [[(ESTABLISHED, 5, TO, 1)]]
        self.survey.fresh()
        self.read_on()
        self.assertEqual(self.book(), (0, 1, 8))


class DeniedTests(SurveyTestCase):
    """The kernel does not agree with the book."""

    def deny(self, number: int = 1) -> None:
        lease = self.accountant.lease(self.house.state(number))
        lease.denied(f"none is left {lease.way}")
        lease.release()

    def test_read_at_the_next_second(self) -> None:
        self.survey.start()
        self.deny()
        self.assertEqual((self.dumps, self.book()[2]), (1, 0))
        self.kernel.pieces = [[(ESTABLISHED, port, TO, 1) for port in range(2, 11)]]
        self.seconds(1)
        self.assertEqual((self.dumps, self.book()), (2, (0, 9, 0)))

    def test_dear_as_it_is(self) -> None:
        """A reading that its share of the time would put off."""
        self.cost = 0.15
        self.survey.start()
        self.use_up()
        self.seconds(3)
        self.assertEqual(self.dumps, 1)
        self.deny()
        self.seconds(1)
        self.assertEqual(self.dumps, 2)

    def test_said_rarely(self) -> None:
        """Once for each way in ten seconds."""
        self.survey.start()
        with capturedLogs() as events:
            for number in (1, 1, 2):
                self.deny(number)
                for page in self.accountant:
                    page.forgive()
        said = " by the book there are some; it is corrected until the kernel's sockets have been"
        self.assertEqual(
            [formatEvent(event) for event in events],
            [
                f"none is left from {HERE} to 10.0.0.{number}:80, although{said} read again"
                for number in (1, 2)
            ],
        )
        self.seconds(10)
        with capturedLogs() as events:
            self.deny()
        self.assertIn("(and 1 like it before)", formatEvent(events[0]))


class Turns(Clock):
    """A clock that can take one turn at a time, as reactors do."""

    def turn(self) -> None:
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class TurnTests(SurveyTestCase):
    """On a reactor that cannot wait for a descriptor: a read in each turn."""

    clocks = Turns

    def turn_by_turn(self, *reads: int) -> None:
        """In each turn so many have been done of the last dump."""
        for count in reads:
            self.clock.turn()
            self.assertEqual(self.kernel.dumps[-1].reads, count)

    def test_read_by_read(self) -> None:
        """One after the other: the next one takes no more of a turn than the first."""
        self.survey.start()
        self.kernel.pieces = [[(ESTABLISHED, 5, TO, 1)], [], []]
        asked = [self.survey.fresh(), self.survey.fresh()]
        self.turn_by_turn(1, 2)
        self.assertNoResult(asked[0])
        self.clock.turn()
        self.successResultOf(asked[0])
        self.assertEqual(self.book(), (0, 1, 8))
        self.turn_by_turn(1, 2)
        self.assertNoResult(asked[1])
        self.turn_by_turn(3)
        self.successResultOf(asked[1])
        self.clock.turn()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_stopped_in_the_middle(self) -> None:
        """No timer is left, and none goes on with what comes after."""
        self.survey.start()
        self.kernel.pieces = [[], [], []]
        asked = self.survey.fresh()
        self.clock.turn()
        self.survey.stop()
        self.successResultOf(asked)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.survey.start()
        self.survey.fresh()
        self.turn_by_turn(1, 2)
