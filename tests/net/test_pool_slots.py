"""proxykit.net.pool: connections that several use at once, as a protocol that multiplexes has."""

from __future__ import annotations

from proxykit.core.accountant import Use
from proxykit.model import Pool as PoolConfig
from tests.core import address, backends
from tests.net.pools import SAFE, PoolHouse, PoolTestCase, Request


class SlotTestCase(PoolTestCase):
    def use(self, *config: object, capacity: int = 3, **settings: object) -> PoolHouse:
        """A house whose connections have so many slots."""
        house = super().use(*config, **settings)
        house.capacity = capacity
        return house

    def sharing(self, count: int) -> list[Request]:
        """So many requests on one connection."""
        requests = [self.house.served(), *(self.house.ask() for _ in range(count - 1))]
        self.assertEqual({request.socket for request in requests}, {requests[0].socket})
        return requests


class SharingTests(SlotTestCase):
    def test_up_to_its_capacity(self) -> None:
        """Each at once, and all on one lease; one more than there are slots opens another."""
        house = self.house
        requests = self.sharing(3)
        self.assertTrue(all(request.at_once for request in requests[1:]))
        self.assertEqual((requests[0].socket.in_use, requests[0].socket.used), (3, 3))
        self.assert_books(0, 1, 0)
        self.assertEqual(house.state(1).in_flight, 3)
        self.assertFalse(house.ask().at_once)
        self.assert_books(1, 1, 0)

    def test_ready_at_once(self) -> None:
        """It is shared, too, when a connector has it ready."""
        house = self.house
        house.connector.script(address(1), True)
        requests = [house.ask() for _ in range(3)]
        self.assertEqual({request.socket for request in requests}, {house.sockets[0]})

    def test_idle_when_nobody_uses_it(self) -> None:
        house = self.house
        requests = self.sharing(3)
        lease = requests[0].socket.lease
        for request, use in zip(requests, (Use.ACTIVE, Use.ACTIVE, Use.IDLE), strict=True):
            request.finish()
            self.assertIs(lease.use, use)
        self.assert_books(0, 0, 1)
        self.assertTrue(house.ask().at_once)
        self.assertIs(lease.use, Use.ACTIVE)

    def test_a_slot_that_comes_free(self) -> None:
        """The queue's head takes it."""
        house = self.use(max_connections=1)
        requests = self.sharing(3)
        waiting = [house.ask(), house.ask()]
        self.assertTrue(waiting[0].choice.waiting)
        requests[1].finish()
        self.assertIs(waiting[0].socket, requests[0].socket)
        self.assertTrue(waiting[1].choice.waiting)
        self.assert_books(0, 1, 0)

    def test_a_new_connection_serves_the_queue(self) -> None:
        """With all of its slots, when it is opened."""
        house = self.use(max_connections=1)
        requests = [house.ask() for _ in range(5)]
        house.connect()
        self.assertEqual([request.active for request in requests], [True] * 3 + [False] * 2)
        self.assert_books(0, 1, 0)

    def test_a_new_connection_serves_those_that_wait_for_their_own(self) -> None:
        """They need not wait on while there are slots."""
        house = self.house
        requests = [house.ask() for _ in range(4)]
        socket = house.connect()
        self.assertEqual([request.socket for request in requests], [socket] * 3 + [None])
        self.assertEqual(socket.in_use, 3)
        house.connect()
        self.assertTrue(requests[3].active)
        self.assert_books(2, 2, 0)

    def test_fresh_ones_do_not_share(self) -> None:
        """The first of them makes it one that was used before."""
        house = self.house
        first, second = house.ask(fresh=True), house.ask(fresh=True)
        house.connect()
        self.assertTrue(second.waiting)
        house.connect()
        self.assertIsNot(first.socket, second.socket)
        self.assertEqual((first.used, second.used), (0, 0))

    def test_freshest(self) -> None:
        """The one that answered last is on top, though it has not left the shelf meanwhile."""
        for settings in ({"max_connections": 2}, {"ports": 2}):
            for left in (0, 1):
                house = self.use(pool=SAFE, **settings)
                a, b = self.sharing(3), self.sharing(3)
                for request in (*a[left + 1 :], *b[left + 1 :]):
                    request.finish()
                house.wait(10)
                a[0].finish()
                self.assertEqual(a[0].socket.in_use, left)
                house.wait(0.5)
                request = house.ask(repeatable=False)
                self.assertTrue(request.at_once)
                self.assertIs(request.socket, a[0].socket)
                house.check()

    def test_lost(self) -> None:
        """It is gone for all of them, and for whoever comes next."""
        house = self.house
        requests = self.sharing(2)
        house.pool.retire(requests[0].socket)
        self.assertFalse(house.ask().at_once)
        for request in requests:
            request.abandon()
        house.turn()
        self.assert_books(1, 0, 0)


class GoAwayTests(SlotTestCase):
    """The peer will take no more: what is in use ends in peace, then it is closed."""

    def test_in_use(self) -> None:
        house = self.house
        requests = self.sharing(2)
        socket = requests[0].socket
        socket.go_away()
        self.assertFalse(house.ask().at_once)
        requests[0].finish()
        self.assertFalse(socket.closing)
        self.assertEqual(socket.in_use, 1)
        requests[1].finish()
        self.assertTrue(socket.closing)
        self.assertEqual(socket.in_use, 0)

    def test_full(self) -> None:
        """One that has no slot free at that moment."""
        requests = self.sharing(3)
        socket = requests[0].socket
        socket.go_away()
        for request in requests:
            self.assertFalse(socket.closing)
            request.finish()
        self.assertTrue(socket.closing)

    def test_not_for_those_that_wait(self) -> None:
        """What comes free on it comes free for nobody."""
        house = self.use(max_connections=1)
        requests = self.sharing(3)
        waiting = house.ask()
        requests[0].socket.go_away()
        for request in requests:
            request.finish()
            self.assertTrue(waiting.choice.waiting)
        house.turn()
        house.connect()
        self.assertIsNot(waiting.socket, requests[0].socket)

    def test_not_for_those_that_wait_for_their_own(self) -> None:
        house = self.use(capacity=1)
        first, second = house.served(), house.ask()
        first.socket.go_away()
        first.finish()
        self.assertTrue(second.waiting)
        self.assertTrue(first.socket.closing)

    def test_fewer(self) -> None:
        """The peer lowers its limit below what is in use: no more until it is below that."""
        house = self.house
        requests = self.sharing(3)
        socket = requests[0].socket
        socket.capacity = 1
        requests[0].finish()
        requests[1].finish()
        other = house.ask()
        self.assertFalse(other.at_once)
        requests[2].finish()
        self.assertFalse(socket.closing)
        self.assertIs(other.socket, socket)
        self.assertEqual(socket.in_use, 1)


class IdleSlotsTests(SlotTestCase):
    def test_max_idle(self) -> None:
        """One that is in use counts for nothing, nor does it count twice."""
        self.use(pool=PoolConfig(max_idle=1), capacity=2)
        requests = self.sharing(2)
        for request in requests:
            request.finish()
            self.assertFalse(request.socket.closing)
        self.assert_books(0, 0, 1)
        self.assertTrue(self.house.ask().at_once)

    def test_too_many_idle(self) -> None:
        """One that is closed for that is not on the shelf any more."""
        house = self.use(pool=PoolConfig(max_idle=0), capacity=2)
        requests = self.sharing(2)
        for request in requests:
            request.finish()
        self.assertTrue(requests[0].socket.closing)
        self.assertFalse(house.ask().at_once)

    def test_not_while_it_is_in_use(self) -> None:
        """An idle timeout that has begun is over when somebody uses it, however little."""
        house = self.house
        requests = self.sharing(2)
        for request in requests:
            request.finish()
        house.wait(20)
        request = house.ask()
        house.wait(20)
        self.assertFalse(request.socket.closing)
        request.finish()
        house.wait(20)
        self.assertFalse(request.socket.closing)
        house.wait(12)
        self.assertTrue(request.socket.closed)

    def test_wanted_by_another_cluster(self) -> None:
        """The last of its users leaves it, and its port goes elsewhere."""
        house = self.use(ports=1)
        other = house.cluster("other", *backends(1))
        requests = self.sharing(2)
        waiting = house.ask(other)
        requests[0].finish()
        self.assertFalse(requests[0].socket.closing)
        requests[1].finish()
        self.assertTrue(requests[0].socket.closing)
        house.check()
        house.turn()
        self.assertFalse(waiting.choice.waiting)

    def test_not_evicted_while_it_is_in_use(self) -> None:
        house = self.use(ports=1)
        other = house.cluster("other", *backends(1))
        self.sharing(2)[0].finish()
        self.assertTrue(house.ask(other).choice.waiting)
        self.assertFalse(house.sockets[0].closing)


class LeavingTests(SlotTestCase):
    def test_inside_anothers_callback(self) -> None:
        """One client has two requests. The second is served and the client is given up at once, and
        with it the first, which has a slot of the same connection and has not heard of it yet."""
        house = self.use(max_connections=1, capacity=2)
        first, second = house.ask(), house.ask()

        def give_up() -> None:
            if first.waiting:
                first.leave()

        second.joined = give_up
        socket = house.connect()
        self.assertTrue(second.active)
        if first.active:
            first.finish()
        self.assertEqual(socket.in_use, 1)
        second.finish()
        self.assert_books(0, 0, 1)
