"""The survey: when it reads what the kernel shows, and what the book has of that."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from zope.interface.verify import verifyObject

from proxykit.core.waiting import Full
from proxykit.model import PortRange
from proxykit.net import survey as module
from proxykit.net.sockdiag import LISTEN, TIME_WAIT, way
from proxykit.net.survey import PATIENCE, PLENTY
from tests.core import HERE, backends
from tests.net.surveys import ESTABLISHED, TO, Rows, SurveyTestCase


class WhenTests(SurveyTestCase):
    def test_interface(self) -> None:
        self.assertTrue(verifyObject(IReadDescriptor, self.survey))
        self.assertEqual(self.survey.logPrefix(), "survey")

    def test_start(self) -> None:
        """The first is done before anything else is, however many reads it takes."""
        self.kernel.pieces = [[(ESTABLISHED, port, TO, 1)] for port in (5, 6, 7)]
        self.survey.start()
        self.assertEqual((self.survey.readings, self.clock.readers), (1, []))
        self.assertEqual(self.book(), (0, 3, 6))
        self.assertEqual(self.kernel.dumps[0].number, -1)

    def test_start_twice(self) -> None:
        self.survey.start()
        self.survey.start()
        self.assertEqual(self.dumps, 1)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_plenty(self) -> None:
        self.survey.start()
        self.seconds(PLENTY - 1)
        self.assertEqual(self.dumps, 1)
        self.seconds(1)
        self.assertEqual(self.dumps, 2)
        self.seconds(3 * PLENTY)
        self.assertEqual((self.dumps, self.survey.readings), (5, 5))

    def test_scarce(self) -> None:
        """More than half of what there is to one of the destinations is used."""
        self.survey.start()
        self.use_up(4)
        self.seconds(3)
        self.assertEqual(self.dumps, 1)
        self.use_up(1)
        self.seconds(3)
        self.assertEqual(self.dumps, 4)

    def test_somebody_waits(self) -> None:
        """Although nothing is used, for there is nothing."""
        self.range = PortRange(10, 9)
        self.survey.start()
        for lease in self.leases:
            lease.release()
        self.seconds(3)
        self.assertEqual(self.dumps, 1)
        self.assertIsInstance(self.accountant.lease(self.house.state(1)), Full)
        self.seconds(3)
        self.assertEqual(self.dumps, 4)

    def test_share(self) -> None:
        """A fiftieth of the time at the most, whatever is scarce."""
        for cost, every in ((0.01, 1), (0.05, 3), (0.09, 5), (0.35, 18)):
            self.setUp()
            self.cost = cost
            self.survey.start()
            self.use_up()
            before = self.dumps
            self.seconds(every * 4)
            self.assertEqual(self.dumps - before, 4, cost)

    def test_share_of_several_reads(self) -> None:
        self.cost = 0.05
        self.kernel.pieces = [[], [], []]
        self.survey.start()
        self.use_up()
        self.seconds(7)
        self.assertEqual(self.dumps, 1)
        self.seconds(1)
        self.assertEqual(self.dumps, 2)

    def test_one_at_a_time(self) -> None:
        """None begins while another is under way, and a second passes all the same."""
        self.survey.start()
        self.use_up()
        self.clock.advance(1)
        self.assertEqual(self.dumps, 2)
        before = self.accountant.second
        self.clock.advance(5)
        self.clock.advance(5)
        self.assertEqual((self.dumps, len(self.clock.readers)), (2, 1))
        self.assertGreater(self.accountant.second, before)
        self.read_on()
        self.clock.advance(1)
        self.assertEqual(self.dumps, 3)

    def test_read_by_read(self) -> None:
        """In as many turns."""
        self.survey.start()
        self.kernel.pieces = [[(ESTABLISHED, 5, TO, 1)], [(ESTABLISHED, 6, TO, 1)]]
        self.begin()
        dump = self.kernel.dumps[-1]
        self.assertEqual((self.survey.fileno(), dump.reads), (dump.number, 0))
        self.step()
        self.assertEqual((dump.reads, self.book()), (1, (0, 0, 9)))
        self.step()
        self.assertEqual((dump.reads, self.book()), (2, (0, 2, 7)))
        self.assertEqual((self.clock.readers, dump.number), ([], -1))
        self.assertEqual(self.survey.fileno(), -1)
        self.survey.doRead()  # for nothing

    def test_range(self) -> None:
        """It is asked for what there is by then, and the book has that size."""
        self.survey.start()
        self.range = PortRange(20, 39)
        self.patch(module.kernel, "time_wait_reuse", lambda: 1)
        self.seconds(PLENTY)
        self.assertEqual([dump.range for dump in self.kernel.dumps], [(1, 10), (20, 39)])
        self.assertEqual(self.book(), (0, 0, 19))
        self.assertTrue(self.house.state(1).pages[0].reuses)

    def test_patience(self) -> None:
        """Nobody waits for ever for a kernel that goes on and on."""

        def and_on(low: int, high: int) -> Any:
            dump = self.kernel.dump(low, high)
            dump.pieces = self

            return dump

        self.survey._make = and_on
        self.survey.start()
        self.assertEqual(self.survey.readings, 0)
        self.assertEqual(self.kernel.dumps[0].number, -1)
        self.assertEqual(self.book(), (0, 0, 9))

    def pop(self, index: int) -> Rows:
        """As a list of pieces that has no end."""
        self.patient += PATIENCE / 10
        return [(ESTABLISHED, 5, TO, 1)]


class WhatTests(SurveyTestCase):
    """Whose sockets are whose."""

    def read(self, *rows: tuple[int, int, bytes, int]) -> None:
        self.kernel.pieces = [list(rows)]
        self.survey.read_now()

    def test_own_and_others(self) -> None:
        self.read(
            (ESTABLISHED, 1, TO, 7),
            (ESTABLISHED, 2, TO, 8),
            (TIME_WAIT, 3, TO, 0),
            (ESTABLISHED, 4, way(HERE, "10.0.0.2", 80)[0], 9),
            (ESTABLISHED, 5, way(HERE, "10.0.0.1", 81)[0], 9),
            (ESTABLISHED, 6, way("10.9.9.8", "10.0.0.1", 80)[0], 9),
        )
        self.assertEqual(self.book(1), (1, 1, 7))
        self.assertEqual(self.book(2), (0, 1, 8))

    def test_orphans(self) -> None:
        """What no process has any more is on its way to TIME_WAIT."""
        self.read((5, 2, TO, 0), (4, 3, TO, 0), (5, 4, TO, 1))
        self.assertEqual(self.book(), (2, 1, 6))

    def test_on_a_socket_of_ipv6(self) -> None:
        """An address of IPv4 is the same there."""
        mapped = way(HERE, "10.0.0.1", 80)[1]
        self.read((ESTABLISHED, 1, mapped, 7), (ESTABLISHED, 2, mapped, 8), (TIME_WAIT, 3, TO, 0))
        self.assertEqual(self.book(), (1, 1, 7))

    def test_listening(self) -> None:
        """Nobody gets such a port, wherever that leads: it counts on each page, once."""
        anywhere = bytes(34)
        self.read(
            (LISTEN, 4, anywhere, 1),
            (LISTEN, 4, bytes(2) + TO[2:18] + bytes(16), 2),
            (LISTEN, 5, anywhere, 3),
        )
        self.assertEqual((self.book(1), self.book(2)), ((0, 2, 7), (0, 2, 7)))

    def test_not_shown_any_more(self) -> None:
        """What is over is forgotten: ports listened on, others', and what rested by this book."""
        self.read((LISTEN, 4, bytes(34), 1), (ESTABLISHED, 5, TO, 2), (TIME_WAIT, 6, TO, 0))
        self.leases[0].closed_by = "proxy"
        self.leases[0].release()
        self.assertEqual(self.book(), (2, 2, 6))
        self.read()
        self.assertEqual(self.book(), (0, 0, 10))

    def test_plain_binding(self) -> None:
        """There each socket of the source has a port, wherever it leads."""
        self.accountant.addresses, self.accountant.late = ("10.1.0.1",), False
        for number in (1, 2):
            self.accountant.budgets(self.house.state(number).address)
        self.read(
            (ESTABLISHED, 2, way("10.1.0.1", "192.0.2.7", 4711)[0], 1),
            (TIME_WAIT, 3, way("10.1.0.1", "192.0.2.8", 4711)[1], 0),
            (LISTEN, 4, bytes(2) + way("10.1.0.1", "", 0)[0] + bytes(16), 2),
            (ESTABLISHED, 5, way("10.1.0.2", "192.0.2.7", 4711)[0], 1),
            (ESTABLISHED, 6, TO, 1),
        )
        self.assertEqual(self.book(3), (1, 2, 7))
        self.assertEqual(self.book(1), (0, 1, 8))

    def test_opened_meanwhile(self) -> None:
        """A page that was not there when it began has its turn the next time."""
        self.survey.start()
        self.kernel.pieces = [[(ESTABLISHED, 5, way(HERE, "10.0.0.9", 80)[0], 1)]]
        self.begin()
        backend = self.house.web.add(backends(*[1] * 9)[8])
        self.accountant.lease(backend)
        self.read_on()
        self.assertEqual(self.book(3), (0, 0, 9))

    def test_who_waits_is_told(self) -> None:
        self.use_up(9)
        self.house.connector.script(self.house.state(2).address, False)
        result = self.house.flow.upstream(self.house.choice())
        self.house.state(2).cluster.set_state(self.house.state(2).address, "down")
        waiting = self.house.choice()
        pending = self.house.flow.upstream(waiting)
        self.assertTrue(waiting.waiting)
        self.range = PortRange(1, 20)
        self.read()
        self.assertFalse(waiting.waiting)
        for each in (result, pending):
            assert isinstance(each, Deferred)
            each.cancel()
            self.failureResultOf(each)
