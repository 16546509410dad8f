"""proxykit.net.pool: how long idle connections are kept, how many, and who may have their ports."""

from __future__ import annotations

from proxykit.model import Pool as PoolConfig
from tests.core import address, backends
from tests.net.pools import PoolTestCase, Request, Socket

#: A deadline comes late by two intervals of its sweep at the most: an eighth of its duration.
LATE = 1 / 8


class TimeoutTests(PoolTestCase):
    def kept_for(self, socket: Socket, longest: float) -> float:
        """The seconds after which an idle connection is closed."""
        seconds = 0.0
        while not socket.closed:
            self.assertLess(seconds, longest)
            self.house.wait(0.125)
            seconds += 0.125
        return seconds

    def test_idle_timeout(self) -> None:
        """It is closed when nobody has used it for so long, and is gone from the shelf."""
        for timeout in (30.0, 4.0):
            house = self.use(pool=PoolConfig(idle_timeout=timeout))
            (socket,) = house.idle()
            house.wait(timeout - 1)
            self.assertFalse(socket.closing)
            self.kept_for(socket, 1 + timeout * LATE)
            self.assert_books(0, 0, 0)
            self.assertFalse(house.ask().at_once)
            self.assertEqual(house.pool.snapshot("web")["not_kept"], {"expired": 1})
            self.assertEqual(len(house.deadlines), 0)

    def test_each_for_itself(self) -> None:
        """The newest stay in use, and the others grow old."""
        house = self.house
        _, b = house.idle(2)
        for _ in range(8):
            house.wait(5)
            request = house.ask()
            self.assertIs(request.socket, b)
            request.finish()
        self.assert_books(0, 0, 1)

    def test_used_again(self) -> None:
        """The time begins anew when it comes back."""
        house = self.house
        (socket,) = house.idle()
        house.wait(25)
        house.ask().finish()
        house.wait(25)
        self.assertFalse(socket.closing)
        house.wait(10)
        self.assertTrue(socket.closed)

    def test_in_use(self) -> None:
        """What is in use is not idle, however long it takes."""
        house = self.house
        (socket,) = house.idle()
        request = house.ask()
        house.wait(100)
        self.assertFalse(socket.closing)
        request.finish()
        house.wait(25)
        self.assertFalse(socket.closing)
        house.wait(10)
        self.assertTrue(socket.closed)
        self.assertEqual(house.pool.snapshot("web")["not_kept"], {"expired": 1})

    def test_lost(self) -> None:
        """Nothing is left running for one that is gone."""
        house = self.house
        (socket,) = house.idle()
        self.assertEqual(len(house.deadlines), 1)
        socket.close()
        self.assertEqual(len(house.deadlines), 0)

    def test_keep_alive_timeout(self) -> None:
        """A backend that says when it closes: we are earlier, and not by much."""
        for says in (3.0, 5.0, 10.0, 20.0):
            house = self.use()
            house.idle_limit = says
            (socket,) = house.idle()
            house.wait(says / 2)
            self.assertFalse(socket.closing)
            self.kept_for(socket, says / 2)
            house.check()

    def test_keep_alive_timeout_on_a_busy_machine(self) -> None:
        """We are earlier whenever it was that it began to lie idle, however seldom deadlines are
        looked at when they are long, and though a timer is late now and then."""
        for says in (5.0, 20.0, 100.0):
            for offset in range(8):
                house = self.use(pool=PoolConfig(idle_timeout=1000.0))
                house.idle_limit = says
                (socket,) = house.idle()
                house.clock.pump([0.15] * offset)
                request = house.ask()
                house.clock.advance(0.15)
                request.finish()
                seconds = 0.0
                while not socket.closing:
                    house.clock.advance(0.15)
                    seconds += 0.15
                self.assertLess(seconds, says)

    def test_keep_alive_timeout_beyond_ours(self) -> None:
        """The shorter one holds."""
        house = self.house
        house.idle_limit = 60.0
        (socket,) = house.idle()
        house.wait(28)
        self.assertFalse(socket.closing)
        self.kept_for(socket, 2 + 30 * LATE)

    def test_keep_alive_timeout_that_is_tiny(self) -> None:
        """It can be used again at once, and hardly later."""
        for says in (0.0, 0.5, 1.0):
            house = self.use()
            house.idle_limit = says
            (socket,) = house.idle()
            self.assertIs(house.ask().socket, socket)
            house.requests[-1].finish()
            self.assertLessEqual(self.kept_for(socket, 1), 0.25)

    def test_keep_alive_timeout_that_changes(self) -> None:
        """What the backend said last holds, be it more or less than before, or nothing."""
        for before in (None, 20.0):
            house = self.use()
            house.idle_limit = before
            (socket,) = house.idle()
            house.wait(1)
            request = house.ask()
            socket.idle_limit = 4.0
            request.finish()
            house.wait(1)
            self.assertFalse(socket.closing)
            self.kept_for(socket, 3)
        for after in (None, 20.0):
            house = self.use()
            house.idle_limit = 4.0
            (socket,) = house.idle()
            house.wait(1)
            request = house.ask()
            socket.idle_limit = after
            request.finish()
            house.wait(15)
            self.assertFalse(socket.closing)
            self.kept_for(socket, 20)

    def test_closed_once(self) -> None:
        """A timeout has no say in what was closed for another reason and has not gone yet."""
        house = self.use(ports=1)
        other = house.cluster("other", *backends(1))
        (socket,) = house.idle(cluster=other)
        house.ask()
        self.assertTrue(socket.closing)
        house.clock.pump([1.0] * 40)
        self.assertEqual(house.pool.snapshot("other")["not_kept"], {"evicted": 1})


class MaxIdleTests(PoolTestCase):
    def test_max_idle(self) -> None:
        """What is too much is closed when it comes back."""
        for most in (0, 1, 3):
            house = self.use(pool=PoolConfig(max_idle=most))
            sockets = house.idle(5)
            self.assertEqual(sum(socket.closing for socket in sockets), 5 - most)
            house.turn()
            self.assert_books(0, 0, most)
            self.assertEqual(len(house.deadlines), most)

    def test_not_those_in_use(self) -> None:
        house = self.use(pool=PoolConfig(max_idle=1))
        requests = [house.served() for _ in range(3)]
        requests[0].finish()
        self.assert_books(0, 2, 1)
        requests[1].finish()
        self.assertEqual(sum(socket.closing for socket in house.sockets), 1)

    def test_per_backend(self) -> None:
        house = self.use(*backends(1, 1), pool=PoolConfig(max_idle=1))
        house.idle(2)
        self.assert_books(0, 0, 2)

    def test_default(self) -> None:
        """As many as there may be connections."""
        house = self.use(max_connections=7)
        house.idle(7)
        self.assert_books(0, 0, 7)


class EvictionTests(PoolTestCase):
    """Clusters that share an address share its ports: what lies idle in one is there for all."""

    def use(self, *config: object, **settings: object):  # type: ignore[no-untyped-def]
        house = super().use(*config, **settings)
        self.other = house.cluster("other", *backends(1))
        return house

    def ask_other(self) -> Request:
        """A request to the other cluster."""
        return self.house.ask(self.other)

    def test_evicted(self) -> None:
        """The oldest goes, and the port is there at the end of the turn."""
        house = self.use(ports=2)
        a, b = house.idle(2)
        request = self.ask_other()
        self.assertTrue(request.choice.waiting)
        self.assertEqual((a.closing, b.closing), (True, False))
        # By an end its port would rest, and be nobody's.
        self.assertTrue(a.reset)
        house.turn()
        self.assertFalse(request.choice.waiting)
        house.connect()
        self.assertTrue(request.active)
        self.assert_books(0, 1, 1)
        self.assertEqual(house.pool.snapshot("web")["not_kept"], {"evicted": 1})
        self.assertIs(house.ask().socket, b)

    def test_one_for_each(self) -> None:
        """As many as are asked for, one after the other."""
        house = self.use(ports=3)
        house.idle(3)
        requests = [self.ask_other() for _ in range(3)]
        house.turn()
        self.assertEqual([request.choice.waiting for request in requests], [False] * 3)
        self.assert_books(3, 0, 0)

    def test_not_given_meanwhile(self) -> None:
        """One that is being closed is nobody's."""
        house = self.use(ports=1)
        (socket,) = house.idle()
        self.ask_other()
        self.assertFalse(house.ask().at_once)
        self.assertEqual(socket.in_use, 0)

    def test_not_in_use(self) -> None:
        house = self.use(ports=2)
        house.idle()
        busy = [house.ask(), house.served()]
        request = self.ask_other()
        self.assertTrue(request.choice.waiting)
        self.assertFalse(any(socket.closing for socket in house.sockets))
        busy[0].abandon()
        house.turn()
        self.assertFalse(request.choice.waiting)

    def test_not_of_another_address(self) -> None:
        """Its port would be of no use."""
        house = self.use(ports=1)
        elsewhere = house.cluster("elsewhere", *backends(1, 1)[1:])
        (socket,) = house.idle(cluster=elsewhere)
        self.assertEqual(socket.shelf.key.address, address(2))
        house.served()
        self.assertTrue(self.ask_other().choice.waiting)
        self.assertFalse(socket.closing)

    def test_own_first(self) -> None:
        """What lies idle on the own shelf is used, not closed."""
        house = self.use(ports=2)
        (a,) = house.idle()
        (b,) = house.idle(cluster=self.other)
        self.assertIs(house.ask().socket, a)
        self.assertFalse(b.closing)

    def test_only_where_it_is_of_use(self) -> None:
        """When it is ``max_connections`` that is reached, others' connections do not matter."""
        house = self.use(max_connections=1)
        (idle,) = house.idle(cluster=self.other)
        busy = house.served()
        waiting = house.ask()
        self.assertTrue(waiting.choice.waiting)
        self.assertFalse(idle.closing)
        busy.finish()
        self.assertTrue(waiting.active)

    def test_one_that_comes_back_later(self) -> None:
        """Who waits for a port is served when a connection of the other cluster becomes idle: that
        may lie there for longer than anybody can wait."""
        house = self.use(ports=1)
        busy = house.served()
        request = self.ask_other()
        self.assertTrue(request.choice.waiting)
        busy.finish()
        house.turn()
        self.assertFalse(request.choice.waiting)
        house.connect()
        self.assertTrue(request.active)

    def test_a_spare_one_that_comes_later(self) -> None:
        """So it is when one that was being opened is wanted by nobody."""
        house = self.use(ports=2)
        first, second = house.served(), house.ask()
        first.finish()
        self.assertTrue(second.active)
        request = self.ask_other()
        self.assertTrue(request.choice.waiting)
        house.connect()
        house.turn()
        self.assertFalse(request.choice.waiting)

    def test_nobody_starves(self) -> None:
        """A cluster that always has somebody waiting does not keep all ports for ever."""
        house = self.use(ports=1)
        busy = house.served()
        request = self.ask_other()
        for _ in range(30):
            if request.active:
                break
            house.ask()
            house.wait(0.125)
            for each in (*house.requests,):
                if each.active and each is not request:
                    each.finish()
                    break
            house.turn()
            for _ in (*house.connector.under_way,):
                house.connect()
        self.assertIsNone(request.error)
        self.assertTrue(request.active)
        self.assertFalse(busy.active)


class CloseTests(PoolTestCase):
    """The end of all connections."""

    def test_nothing_is_open(self) -> None:
        self.successResultOf(self.house.pool.close())

    def test_all(self) -> None:
        """Idle or not, they are aborted; it waits until they are gone."""
        house = self.house
        idle = house.idle(3)
        request = house.ask()
        gone = house.pool.close()
        self.assertTrue(all(socket.closing for socket in idle))
        request.end().end()
        for socket in idle:
            self.assertNoResult(gone)
            socket.close()
        self.successResultOf(gone)
        self.assertEqual(len(house.deadlines), 0)
        self.assert_books(0, 0, 0)

    def test_not_given_meanwhile(self) -> None:
        house = self.house
        house.idle()
        house.pool.close()
        self.assertFalse(house.ask().at_once)

    def test_twice(self) -> None:
        """Both hear of it."""
        house = self.house
        house.idle()
        first, second = house.pool.close(), house.pool.close()
        house.turn()
        self.successResultOf(first)
        self.successResultOf(second)

    def test_what_comes_back_later(self) -> None:
        """Nothing lies idle in a pool that is closed."""
        house = self.house
        self.successResultOf(house.pool.close())
        request = house.served()
        request.finish()
        self.assertTrue(request.socket.closing)

    def test_a_spare_one(self) -> None:
        """What is being opened for nobody in particular is not opened any more."""
        house = self.house
        first, second = house.served(), house.ask()
        first.finish()
        second.finish()
        self.assert_books(1, 0, 1)
        gone = house.pool.close()
        house.turn()
        self.successResultOf(gone)
        self.assert_books(0, 0, 0)
