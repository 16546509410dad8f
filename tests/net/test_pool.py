"""proxykit.net.pool: which request goes on which connection."""

from __future__ import annotations

import gc

from zope.interface.verify import verifyObject

from proxykit.core.choice import Attempt
from proxykit.core.waiting import Full
from proxykit.interfaces import IConnector
from proxykit.model import Backend
from proxykit.net.pool import Pool
from proxykit.net.shelf import Pooled, Shelf
from tests.core import address, backends, refusal
from tests.net.pools import ALWAYS, NEVER, NO_PORT, SAFE, PoolTestCase


class FirstTests(PoolTestCase):
    """Nothing is there yet: the other connector opens what is asked for."""

    def test_interface(self) -> None:
        verifyObject(IConnector, self.house.pool)
        self.assertRaises(NotImplementedError, Pooled().close_idle)
        self.assertRaises(NotImplementedError, Pooled().abort)

    def test_under_way(self) -> None:
        """Its lease is reserved while it connects, active while it serves, idle when it waits."""
        house = self.house
        request = house.ask()
        self.assertFalse(request.at_once)
        self.assertTrue(request.waiting)
        self.assert_books(1, 0, 0)
        socket = house.connect()
        self.assertIs(request.socket, socket)
        self.assertIsNone(request.attempt.handle)  # type: ignore[union-attr]
        self.assertEqual((socket.in_use, socket.used, socket.rested), (1, 1, False))
        self.assert_books(0, 1, 0)
        request.finish()
        self.assertEqual((socket.in_use, socket.used, socket.rested), (0, 1, True))
        self.assert_books(0, 0, 1)
        self.assertEqual((house.state(1).in_flight, house.state(1).served), (0, 1))

    def test_ready(self) -> None:
        """The other connector hears that its connection is ready before anybody uses it."""
        told = []
        request = self.house.ask()
        request.joined = lambda: told.append("mode")
        self.house.connector.under_way[0].ready = lambda: told.append("connector")
        self.house.connect()
        self.assertEqual(told, ["connector", "mode"])

    def test_ready_at_once(self) -> None:
        """A connector may have it ready: then there is no Deferred, and the rest is the same."""
        self.house.connector.script(address(1), True)
        request = self.house.ask()
        self.assertTrue(request.at_once)
        self.assertEqual((request.socket.in_use, request.socket.used), (1, 1))
        self.assert_books(0, 1, 0)
        request.finish()
        self.assertIs(self.house.ask().socket, request.socket)

    def test_failed_at_once(self) -> None:
        """Flow goes on to the next backend."""
        house = self.use(*backends(1, 1))
        house.connector.script(address(1), refusal())
        house.connector.script(address(2), True)
        self.assertIs(house.ask().socket.shelf.backend, house.state(2))
        self.assertEqual(house.state(1).failures, 1)

    def test_failed(self) -> None:
        """So it does when the attempt was under way, and to the client when nobody is left."""
        house = self.use(*backends(1, 1))
        request = house.ask()
        house.refuse()
        self.assertTrue(request.waiting)
        self.assertIs(house.connector.under_way[0].backend, house.state(2))
        self.assert_books(1, 0, 0)
        last = refusal("the last")
        house.refuse(error=last)
        self.assertIs(request.error, last)
        self.assertEqual((house.state(1).failures, house.state(2).failures), (1, 1))
        self.assert_books(0, 0, 0)

    def test_not_shareable(self) -> None:
        """What can share nothing goes to the other connector as it is, and so does its end."""
        house = self.house
        house.idle()
        choice = house.choice(connector=house.pool)
        result = house.flow.upstream(choice)
        (attempt,) = house.connector.under_way
        self.assertIsInstance(attempt, Attempt)
        house.connector.succeed(attempt, "a socket of its own")
        self.assertEqual(self.successResultOf(result).upstream, "a socket of its own")
        house.close(attempt)
        result = house.flow.upstream(house.choice(connector=house.pool))
        (attempt,) = house.connector.under_way
        result.cancel()
        self.failureResultOf(result)
        self.assertEqual(house.connector.cancelled, [attempt])
        self.assert_books(0, 0, 1)


class HitTests(PoolTestCase):
    def test_no_deferred(self) -> None:
        """It is given at once, with the lease that it has."""
        house = self.house
        (socket,) = house.idle()
        lease = socket.lease
        request = house.ask()
        self.assertTrue(request.at_once)
        self.assertIs(request.socket, socket)
        self.assertIs(socket.lease, lease)
        self.assertEqual((len(house.connector.attempts), socket.used), (1, 2))
        self.assert_books(0, 1, 0)
        self.assertEqual((house.state(1).in_flight, house.state(1).served), (1, 2))

    def test_it_is_used_by_one_at_a_time(self) -> None:
        house = self.house
        house.idle()
        self.assertTrue(house.ask().at_once)
        self.assertFalse(house.ask().at_once)

    def test_newest_first(self) -> None:
        """What came back last is the most likely to be alive, and the others may grow old."""
        house = self.house
        a, b, c = house.idle(3)
        first, second = house.ask(), house.ask()
        self.assertEqual([first.socket, second.socket], [c, b])
        first.finish()
        second.finish()
        self.assertEqual([house.ask().socket for _ in range(3)], [b, c, a])

    def test_not_of_another_backend_or_cluster(self) -> None:
        house = self.use(*backends(1, 1))
        house.idle(2)
        other = house.cluster("other", *backends(1))
        self.assertFalse(house.ask(other).at_once)
        self.assertEqual({house.ask().backend, house.ask().backend}, {*house.web.backends.values()})
        self.assertFalse(house.ask().at_once)

    def test_dead_ones(self) -> None:
        """They vanish at once, from wherever they lie, before or when they are closed."""
        house = self.house
        a, b, c = house.idle(3)
        house.pool.retire(b)
        b.close()
        self.assert_books(0, 0, 2)
        c.close()
        self.assertEqual(len(house.deadlines), 1)
        self.assertIs(house.ask().socket, a)
        self.assertFalse(house.ask().at_once)

    def test_lost_while_it_was_used(self) -> None:
        """Nobody is given it after that."""
        house = self.house
        house.idle()
        request = house.ask()
        request.lose()
        self.assertFalse(request.active)
        house.connect()
        self.assertTrue(request.active)
        self.assert_books(0, 1, 0)

    def test_abandoned(self) -> None:
        house = self.house
        house.idle()
        house.ask().abandon()
        house.turn()
        self.assert_books(0, 0, 0)
        self.assertFalse(house.ask().at_once)


class NeverTests(PoolTestCase):
    """``reuse = "never"``: each request its own connection."""

    def setUp(self) -> None:
        self.use(pool=NEVER)

    def test_closed(self) -> None:
        house = self.house
        for repeatable in (True, False):
            request = house.served(repeatable=repeatable)
            self.assertEqual(request.used, 0)
            request.finish()
            self.assertTrue(request.socket.closing)
        self.assertFalse(house.ask().at_once)

    def test_not_for_one_that_waits(self) -> None:
        """One that comes free is of no use to an attempt that is under way."""
        house = self.house
        first = house.served()
        second = house.ask()
        first.finish()
        self.assertTrue(second.waiting)
        self.assertTrue(first.socket.closing)
        house.connect()
        self.assertEqual(second.used, 0)

    def test_not_for_the_queue(self) -> None:
        house = self.use(pool=NEVER, max_connections=1)
        first = house.served()
        second = house.ask()
        self.assertTrue(second.choice.waiting)
        first.finish()
        house.turn()
        house.connect()
        self.assertEqual(second.used, 0)

    def test_its_slots_are_not_shared(self) -> None:
        """However many the connection has."""
        house = self.house
        house.capacity = 3
        first = house.served()
        self.assertFalse(house.ask().at_once)
        first.finish()
        self.assertTrue(first.socket.closing)


class SafeTests(PoolTestCase):
    """``reuse = "safe"``: which requests may find out that a connection is dead."""

    def setUp(self) -> None:
        self.use(pool=SAFE)

    def test_repeatable(self) -> None:
        """On any that is idle."""
        (socket,) = self.house.idle()
        self.house.wait(29)
        self.assertIs(self.house.ask().socket, socket)

    def test_not_repeatable(self) -> None:
        """On one that answered within the last second, else on a new one."""
        for seconds, at_once in ((0.0, True), (0.5, True), (1.0, True), (1.125, False)):
            house = self.use(pool=SAFE)
            (socket,) = house.idle()
            house.wait(seconds)
            request = house.ask(repeatable=False)
            self.assertEqual(request.at_once, at_once, seconds)
            if at_once:
                self.assertIs(request.socket, socket)
            else:
                self.assertEqual(house.connect().used, 1)
                self.assertIs(house.ask().socket, socket)
            house.check()

    def test_answered_is_not_opened(self) -> None:
        """A second counts from its last answer, however long it has been there."""
        house = self.house
        request = house.served()
        house.wait(10)
        request.finish()
        house.wait(0.5)
        self.assertTrue(house.ask(repeatable=False).at_once)

    def test_no_port_is_left(self) -> None:
        """Or none of the backend's connections: then on the freshest that is idle."""
        for settings in ({"max_connections": 2}, {"ports": 2}):
            house = self.use(pool=SAFE, **settings)
            _, b = house.idle(2)
            house.wait(5)
            request = house.ask(repeatable=False)
            self.assertTrue(request.at_once)
            self.assertIs(request.socket, b)
            self.assertIsNone(house.state(1).full)
            self.assert_books(0, 1, 1)

    def test_the_kernel_has_no_port_left(self) -> None:
        """Its own count of them is the one that matters, and it comes to the same."""
        for fresh in (False, True):
            house = self.use(pool=SAFE)
            (socket,) = house.idle()
            house.wait(5)
            request = house.ask(repeatable=False, fresh=fresh)
            house.refuse(error=NO_PORT)
            if fresh:
                self.assertIs(request.error, NO_PORT)
            else:
                self.assertIs(request.socket, socket)
            house.check()

    def test_refused(self) -> None:
        """Another reason is none to put it on a connection that may be dead."""
        house = self.house
        house.idle()
        house.wait(5)
        request = house.ask(repeatable=False)
        error = refusal()
        house.refuse(error=error)
        self.assertIs(request.error, error)

    def test_one_that_comes_free(self) -> None:
        """It has just answered, so any request that waits may have it."""
        house = self.house
        first, second = house.served(), house.ask(repeatable=False)
        first.finish()
        self.assertIs(second.socket, first.socket)


class AlwaysTests(PoolTestCase):
    """``reuse = "always"``: any request on any idle connection."""

    def test_any(self) -> None:
        house = self.use(pool=ALWAYS)
        a, b = house.idle(2)
        house.wait(20)
        self.assertIs(house.ask(repeatable=False).socket, b)
        self.assertIs(house.ask(repeatable=True).socket, a)


class FreshTests(PoolTestCase):
    """After a used connection was lost under it, a request gets one that nobody has used."""

    def test_not_from_the_shelf(self) -> None:
        for pool in (SAFE, ALWAYS):
            house = self.use(pool=pool)
            _, b = house.idle(2)
            request = house.ask()
            self.assertIs(request.socket, b)
            request.lose()
            self.assertTrue(request.waiting)
            self.assert_books(1, 0, 1)
            house.connect()
            self.assertEqual(request.used, 0)

    def test_not_one_that_comes_free(self) -> None:
        """That is for the next one behind it, or for the shelf."""
        house = self.house
        busy = [house.served() for _ in range(2)]
        fresh, other = house.ask(fresh=True), house.ask()
        busy[0].finish()
        self.assertTrue(fresh.waiting)
        self.assertIs(other.socket, busy[0].socket)
        busy[1].finish()
        self.assertTrue(fresh.waiting)
        # That one was being opened for the other.
        house.connect(1)
        self.assertEqual(fresh.used, 0)

    def test_not_the_freshest_when_there_is_no_room(self) -> None:
        for settings in ({"max_connections": 1}, {"ports": 1}):
            house = self.use(**settings)
            house.idle()
            self.assertTrue(house.ask(fresh=True).waiting)

    def test_room_is_made_for_it(self) -> None:
        """Idle ones that it cannot use must not keep it from the one that it could."""
        for settings in ({"max_connections": 2}, {"ports": 2}):
            house = self.use(**settings)
            a, b = house.idle(2)
            request = house.ask(fresh=True)
            house.turn()
            self.assertTrue(a.closed, "the oldest")
            self.assertFalse(b.closed)
            house.connect()
            self.assertEqual(request.used, 0)
            self.assert_books(0, 1, 1)

    def test_it_holds_up_nobody(self) -> None:
        """Others can use what it cannot."""
        house = self.use(max_connections=2)
        house.idle(2)
        house.ask(fresh=True)
        house.turn()
        self.assertTrue(house.ask().active)

    def test_it_holds_up_nobody_in_the_queue(self) -> None:
        house = self.use(max_connections=2)
        busy = [house.served() for _ in range(2)]
        fresh, other = house.ask(fresh=True), house.ask()
        for request in busy:
            request.finish()
            house.turn()
        self.assertTrue(other.active)
        house.connect()
        self.assertEqual(fresh.used, 0)


class KeyTests(PoolTestCase):
    """One shelf for all that may stand in for one another."""

    def test_a_backend_that_comes_back(self) -> None:
        """It finds its connections where they were."""
        house = self.house
        (socket,) = house.idle()
        house.web.remove(address(1))
        self.assertIsNotNone(house.ask().error)
        house.web.add(Backend(address(1)))
        self.assertIs(house.ask().socket, socket)

    def test_backends_that_come_and_go(self) -> None:
        """They leave nothing behind, and the last of them has all that it needs."""
        house = self.use(max_connections=2)
        for _ in range(20):
            house.idle()[0].close()
            house.web.remove(address(1))
            house.web.add(Backend(address(1)))
            house.requests.clear()
        busy, waiting = [house.served() for _ in range(2)], house.ask()
        self.assertTrue(waiting.choice.waiting)
        busy[0].finish()
        self.assertIs(waiting.socket, busy[0].socket)
        gc.collect()
        mine = [
            each
            for each in gc.get_objects()
            if isinstance(each, Shelf) and each.backend.cluster is house.web
        ]
        self.assertLess(len(mine), 3)

    def test_two_pools(self) -> None:
        """Factories that each have a pool of their own can share a registry."""
        for settings in ({"max_connections": 1}, {"ports": 1}):
            house = self.use(**settings)
            request = house.served()
            second = house.ask(pool=Pool(house.connector, house.deadlines))
            self.assertIsNone(second.error)
            self.assertTrue(second.choice.waiting)
            request.finish()
            house.turn()
            if house.connector.under_way:  # whether they share is up to them
                house.connect()
            self.assertTrue(second.active)
            house.check()

    def test_snapshot(self) -> None:
        house = self.use(*backends(1, 1))
        house.cluster("other", *backends(1))
        self.assertEqual(
            house.pool.snapshot("web"),
            {"idle": 0, "opening": 0, "opened": 0, "reused": 0, "own": {}, "not_kept": {}},
        )
        house.idle(3)
        house.ask()
        house.wait(31)
        house.idle(2)
        house.ask(fresh=True)
        self.assertEqual(
            house.pool.snapshot("web"),
            {
                "idle": 2,
                "opening": 1,
                "opened": 5,
                "reused": 1,
                "own": {"none-idle": 5},
                "not_kept": {"expired": 2},
            },
        )
        self.assertEqual(house.pool.snapshot("other")["opened"], 0)

    def test_full_says_why(self) -> None:
        """What there is none of is what the connector says."""
        house = self.house
        house.connector.script(address(1), Full("no room at all"))
        request = house.ask()
        self.assertTrue(request.choice.waiting)
        self.assertEqual(house.state(1).full, Full("no room at all"))
