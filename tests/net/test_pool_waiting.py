"""proxykit.net.pool: limits, the one queue, and what is being opened meanwhile."""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from proxykit.errors import ProxyError, Retry, Side
from proxykit.model import Pool as PoolConfig
from tests.core import address, backends, refusal
from tests.net.pools import PoolTestCase, Request


class LimitTests(PoolTestCase):
    """``max_connections`` is for each backend; who finds no room waits in the cluster's queue."""

    def setUp(self) -> None:
        self.use(max_connections=2)

    def test_per_backend(self) -> None:
        house = self.use(*backends(1, 1), max_connections=2)
        requests = [house.ask() for _ in range(6)]
        self.assertEqual([request.choice.waiting for request in requests], [False] * 4 + [True] * 2)
        self.assertEqual([house.state(number).connections for number in (1, 2)], [2, 2])
        self.assert_books(4, 0, 0)

    def test_one_that_comes_free(self) -> None:
        """Those that wait are served by what comes free, first come first served, at once."""
        house = self.house
        busy = [house.served() for _ in range(2)]
        waiting = [house.ask() for _ in range(3)]
        for request, other in zip(busy, waiting, strict=False):
            request.finish()
            self.assertIs(other.socket, request.socket)
            self.assert_books(0, 2, 0)
        self.assertTrue(waiting[2].choice.waiting)
        waiting[1].finish()
        self.assertIs(waiting[2].socket, waiting[1].socket)
        self.assertEqual((len(house.web.queue), len(house.connector.under_way)), (0, 0))

    def test_many_on_few(self) -> None:
        """However many requests there are, the backend has its two connections."""
        house = self.house
        requests = [house.ask() for _ in range(100)]
        house.connect()
        house.connect()
        for request in requests:
            self.assertTrue(request.active)
            request.finish()
        self.assert_books(0, 0, 2)
        shown = house.pool.snapshot("web")
        self.assertEqual((shown["opened"], shown["reused"]), (2, 98))

    def test_one_that_is_lost(self) -> None:
        """Its lease is another's chance of a new one."""
        house = self.house
        busy = [house.served() for _ in range(2)]
        waiting = house.ask()
        busy[0].abandon()
        house.turn()
        self.assertFalse(waiting.choice.waiting)
        house.connect()
        self.assertTrue(waiting.active)
        self.assert_books(0, 2, 0)

    def test_one_that_could_not_be_opened(self) -> None:
        house = self.house
        opening = [house.ask() for _ in range(2)]
        waiting = house.ask()
        house.refuse()
        self.assertIsInstance(opening[0].error, ProxyError)
        self.assert_books(2, 0, 0)
        house.connect(-1)
        self.assertTrue(waiting.active)

    def test_too_late(self) -> None:
        """It is told what was full, and has left nothing behind."""
        house = self.house
        busy = [house.served() for _ in range(2)]
        waiting = house.ask()
        house.wait(6)
        self.assertEqual(
            str(waiting.error),
            "waited 5 s in the queue of web: 10.0.0.1:80 has all of its 2 connections"
            " (max_connections)",
        )
        for request in busy:
            request.finish()
        self.assert_books(0, 0, 2)

    def test_it_leaves_the_queue(self) -> None:
        house = self.house
        busy = [house.served() for _ in range(2)]
        first, second = house.ask(), house.ask()
        first.leave()
        busy[0].finish()
        self.assertIs(second.socket, busy[0].socket)
        self.assertIsInstance(first.error, CancelledError)

    def test_no_idle_ones_are_kept(self) -> None:
        """Somebody who waits has it before it would be one too many."""
        house = self.use(max_connections=1, pool=PoolConfig(max_idle=0))
        first = house.served()
        second = house.ask()
        first.finish()
        self.assertIs(second.socket, first.socket)
        second.finish()
        self.assertTrue(first.socket.closing)

    def test_ports(self) -> None:
        """A port that no backend of this address has left is waited for in the same way."""
        house = self.use(ports=1)
        first = house.served()
        second = house.ask()
        self.assertTrue(second.choice.waiting)
        first.finish()
        self.assertIs(second.socket, first.socket)

    def test_a_callback_asks_again(self) -> None:
        """Who finishes inside its own callback, and asks again, overtakes nobody."""
        house = self.use(max_connections=1)
        first = house.served()
        second, third = house.ask(), house.ask()
        later = []

        def at_once() -> None:
            second.finish()
            later.append(house.ask())

        second.joined = at_once
        first.finish()
        self.assertTrue(third.active)
        self.assertTrue(later[0].waiting)


class AtOnceTests(PoolTestCase):
    """Whoever is given a connection may be done with it before the pool is."""

    def finishing(self, count: int) -> list[Request]:
        """Requests that are served one day, and give their connection back in that moment."""
        requests = [self.house.ask() for _ in range(count)]
        for request in requests:
            request.joined = request.finish
        return requests

    def test_opened(self) -> None:
        (request,) = self.finishing(1)
        self.house.connect()
        self.assertEqual(request.socket.in_use, 0)
        self.assert_books(0, 0, 1)
        self.assertTrue(self.house.ask().at_once)

    def test_opened_while_others_wait(self) -> None:
        """All that are under way, and all that wait, are served by this one."""
        house = self.use(max_connections=2)
        requests = self.finishing(5)
        socket = house.connect()
        self.assertEqual({request.socket for request in requests}, {socket})
        self.assertEqual((socket.used, socket.in_use), (5, 0))
        self.assert_books(1, 0, 1)
        house.connect()
        self.assert_books(0, 0, 2)

    def test_came_free(self) -> None:
        house = self.house
        first = house.served()
        requests = self.finishing(2)
        first.finish()
        self.assertEqual({request.socket for request in requests}, {first.socket})
        self.assert_books(2, 0, 1)

    def test_closed(self) -> None:
        """What was closed when it was given back is closed once, and nobody is given it."""
        for pool in (PoolConfig(max_idle=0), PoolConfig("never")):
            house = self.use(pool=pool)
            self.finishing(1)
            socket = house.connect()
            self.assertTrue(socket.closing)
            self.assertFalse(house.ask().at_once)
            house.check()

    def test_lost(self) -> None:
        """It is given back, and is lost, and all in the same moment."""
        house = self.house
        (request,) = self.finishing(1)

        def both() -> None:
            request.finish()
            request.socket.close()

        request.joined = both
        house.connect()
        self.assert_books(0, 0, 0)
        self.assertFalse(house.ask().at_once)

    def test_given_up(self) -> None:
        """Or it has lost it by then."""
        house = self.house
        first = house.served()
        (request,) = self.finishing(1)
        request.joined = lambda: request.socket.close() or request.end().end()
        first.finish()
        self.assert_books(1, 0, 0)
        request = house.ask()
        request.joined = lambda: request.socket.close() or request.end().end()
        house.connect()
        self.assert_books(1, 0, 0)
        self.assertTrue(house.ask().waiting)


class OpeningTests(PoolTestCase):
    """Attempts that are under way, and what is being opened for them."""

    def test_one_that_comes_free(self) -> None:
        """An attempt that is under way takes it; its own opening is there for the next."""
        house = self.house
        first, second = house.served(), house.ask()
        first.finish()
        self.assertIs(second.socket, first.socket)
        self.assert_books(1, 1, 0)
        self.assertEqual((second.used, house.pool.snapshot("web")["reused"]), (1, 1))
        third = house.ask()
        socket = house.connect()
        self.assertIs(third.socket, socket)
        self.assertEqual(third.used, 0)
        self.assert_books(1, 2, 0)
        house.connect()
        self.assert_books(0, 2, 1)

    def test_in_the_order_in_which_they_asked(self) -> None:
        house = self.house
        busy = [house.served() for _ in range(2)]
        waiting = [house.ask() for _ in range(3)]
        busy[1].finish()
        busy[0].finish()
        self.assertEqual(
            [request.socket for request in waiting], [busy[1].socket, busy[0].socket, None]
        )
        third = house.connect()
        self.assertIs(waiting[2].socket, third)

    def test_a_spare_one(self) -> None:
        """With nobody left to want it, it lies idle, and counts as fresh."""
        house = self.house
        first, second = house.served(), house.ask()
        first.finish()
        second.finish()
        spare = house.connect()
        self.assertEqual((spare.used, spare.in_use), (0, 0))
        self.assert_books(0, 0, 2)
        house.wait(0.5)
        request = house.ask(repeatable=False)
        self.assertIs(request.socket, spare)
        self.assertEqual(request.used, 0)
        house.wait(31)
        self.assert_books(0, 1, 0)

    def test_a_spare_one_for_the_queue(self) -> None:
        house = self.use(max_connections=2)
        first, second = house.served(), house.ask()
        third = house.ask()
        self.assertTrue(third.choice.waiting)
        first.finish()
        self.assertIs(second.socket, first.socket)
        self.assertTrue(third.choice.waiting)
        spare = house.connect()
        self.assertIs(third.socket, spare)
        self.assert_books(0, 2, 0)

    def test_a_spare_one_for_a_fresh_one(self) -> None:
        """Nobody has used it."""
        house = self.house
        first, second = house.served(), house.ask()
        fresh = house.ask(fresh=True)
        first.finish()
        self.assertIs(second.socket, first.socket)
        self.assertTrue(fresh.waiting)
        spare = house.connect()
        self.assertIs(fresh.socket, spare)

    def test_the_attempt_fails(self) -> None:
        """Its own failure is its own: others wait on."""
        house = self.house
        first, second = house.ask(), house.ask()
        error = refusal()
        house.refuse(0, error)
        self.assertIs(first.error, error)
        self.assertTrue(second.waiting)
        house.connect()
        self.assertTrue(second.active)
        self.assertEqual(house.state(1).failures, 1)
        self.assert_books(0, 1, 0)

    def spare(self, **settings: int) -> None:
        """A connection is being opened, and its requester has another one."""
        house = self.use(**settings)
        first, second = house.served(), house.ask()
        first.finish()
        self.assertTrue(second.active)

    def test_nobody_hears_of_a_spare_failure(self) -> None:
        """Only the backend's counts; those know whose fault it was."""
        for side, retry, failures in (
            (Side.UPSTREAM, Retry.ALWAYS, 1),
            (Side.UPSTREAM, Retry.NEVER, 1),
            (Side.UPSTREAM, Retry.REUSED_ONLY, 0),
            (Side.PROXY, Retry.ALWAYS, 0),
        ):
            self.spare()
            self.house.refuse(error=refusal(side=side, retry=retry))
            self.assertEqual(self.house.state(1).failures, failures)
            self.assert_books(0, 1, 0)

    def test_who_waits_for_a_spare_one_that_fails(self) -> None:
        """There is room for another try, then."""
        self.spare(max_connections=2)
        house = self.house
        waiting = house.ask()
        self.assertTrue(waiting.choice.waiting)
        house.refuse()
        self.assertFalse(waiting.choice.waiting)
        house.connect()
        self.assertTrue(waiting.active)
        self.assert_books(0, 2, 0)

    def test_second_try_elsewhere(self) -> None:
        """After a failure an attempt waits at another backend, and takes what comes free there."""
        house = self.use(*backends(1, 1))
        first = house.ask()
        second = house.served()
        self.assertIs(second.backend, house.state(2))
        house.refuse()
        self.assertTrue(first.waiting)
        second.finish()
        self.assertIs(first.socket, second.socket)
        self.assertIs(first.backend, house.state(2))


class LeavingTests(PoolTestCase):
    """A requester leaves while its connection is being opened."""

    def test_nobody_else(self) -> None:
        """Then nobody needs it: its lease comes back at once."""
        house = self.house
        request = house.ask()
        (opening,) = house.connector.under_way
        request.leave()
        self.assertIsInstance(request.error, CancelledError)
        self.assertEqual(house.connector.cancelled, [opening])
        self.assert_books(0, 0, 0)
        self.assertEqual(house.pool.snapshot("web")["opening"], 0)

    def test_one_that_waits_in_the_queue(self) -> None:
        """It takes what is still being opened."""
        house = self.use(max_connections=1)
        first, second = house.ask(), house.ask()
        self.assertTrue(second.choice.waiting)
        first.leave()
        self.assertEqual(house.connector.cancelled, [])
        self.assert_books(1, 0, 0)
        socket = house.connect()
        self.assertIs(second.socket, socket)
        self.assertEqual(second.used, 0)
        self.assert_books(0, 1, 0)

    def test_one_that_waits_and_leaves_too(self) -> None:
        """Then it lies idle when it comes."""
        house = self.use(max_connections=1)
        first, second = house.ask(), house.ask()
        first.leave()
        second.leave()
        house.connect()
        self.assert_books(0, 0, 1)
        self.assertTrue(house.ask().at_once)

    def test_one_that_waits_for_its_own(self) -> None:
        """It has whichever comes first."""
        house = self.house
        first, second = house.ask(), house.ask()
        first.leave()
        socket = house.connect(0)
        self.assertIs(second.socket, socket)
        house.connect()
        self.assert_books(0, 1, 1)

    def test_queue_of_another_cluster(self) -> None:
        """Whoever waits there cannot use this connection, but its port."""
        house = self.use(ports=1)
        first = house.ask()
        other = house.ask(house.cluster("other", *backends(1)))
        self.assertTrue(other.choice.waiting)
        first.leave()
        self.assertEqual(len(house.connector.cancelled), 1)
        self.assertFalse(other.choice.waiting)
        house.connect()
        self.assertTrue(other.active)

    def test_after_it_took_another_one(self) -> None:
        """There is nothing under way for it any more."""
        house = self.house
        first, second = house.served(), house.ask()
        first.finish()
        second.leave()  # a Deferred that has fired is not cancelled
        self.assertTrue(second.active)
        self.assert_books(1, 1, 0)

    def test_at_its_second_try(self) -> None:
        house = self.use(*backends(1, 1))
        request = house.ask()
        house.refuse()
        request.leave()
        self.assertEqual(
            [opening.backend.address for opening in house.connector.cancelled], [address(2)]
        )
        self.assert_books(0, 0, 0)
