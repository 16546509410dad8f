"""proxykit.core.waiting: first come, first served; bounded; nobody waits for what is there."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.waiting import Queue
from proxykit.errors import ProxyError, Retry
from proxykit.model import Backend
from tests.core import House, address, refusal


class QueueTests(SynchronousTestCase):
    """A queue on its own: ``free`` counts what there is room for."""

    def setUp(self):
        self.house = House()
        self.free = 0
        self.order = []
        self.queue = self.make(limit=10)

    def make(self, limit):
        return Queue(limit, 5.0, self.house.deadlines, lambda: self.free > 0)

    def join(self, name, serve=None):
        def take():
            self.order.append(name)
            if self.free <= 0:
                return False
            self.free -= 1
            tickets[0].leave()
            return True

        ticket = self.queue.join(serve or take, lambda: self.order.append(f"{name} late"))
        tickets = [ticket]
        return ticket

    def wake(self, free, **how):
        self.free += free
        self.queue.wake(**how)

    def test_first_come_first_served(self):
        for name in "abcd":
            self.join(name)
        self.wake(2)
        self.assertEqual((self.order, len(self.queue)), (["a", "b"], 2))
        self.join("e")
        self.wake(5)
        self.assertEqual(self.order, ["a", "b", "c", "d", "e"])
        self.assertEqual((len(self.queue), self.free, len(self.house.deadlines)), (0, 2, 0))

    def test_no_room(self):
        """Nobody is asked in vain."""
        self.join("a")
        self.wake(0)
        self.assertEqual(self.order, [])

    def test_bounded(self):
        for limit in (0, 1, 3):
            self.queue = self.make(limit)
            tickets = [self.join("x") for _ in range(limit)]
            self.assertNotIn(None, tickets)
            self.assertIsNone(self.queue.join(lambda: True, lambda: None))
            self.assertEqual((len(self.queue), self.queue.refused), (limit, 1))
            if tickets:
                tickets[0].leave()
                self.assertIsNotNone(self.join("y"))

    def test_deadline(self):
        self.join("a")
        self.house.clock.advance(3)
        self.join("b")
        self.house.clock.pump([0.1] * 30)
        self.assertEqual((self.order, len(self.queue), self.queue.timed_out), (["a late"], 1, 1))
        self.wake(1)
        self.house.clock.pump([0.1] * 60)
        self.assertEqual((self.order, self.queue.timed_out), (["a late", "b"], 1))

    def test_waited_before(self):
        """What is left of its time is counted in tenths of a second, and may be nothing."""
        for waited, early, late in ((0.0, 4.9, 5.5), (3.0, 1.9, 2.3), (4.94, 0.05, 0.2)):
            told = []
            ticket = self.queue.join(lambda: False, lambda told=told: told.append("late"), waited)
            self.house.clock.pump([0.01] * int(early * 100))
            self.assertEqual(told, [], waited)
            self.house.clock.pump([0.01] * int((late - early) * 100))
            self.assertEqual(told, ["late"], waited)
            ticket.leave()
        for waited in (4.96, 5.0, 7.0):
            self.queue.join(lambda: False, lambda: self.order.append("late"), waited)
            self.house.clock.pump([0.01] * 3)
        self.assertEqual((self.order, len(self.queue)), (["late"] * 3, 0))
        # Each length of time costs something of its own, so there are few.
        self.queue.limit = 100
        for waited in range(100):
            self.queue.join(lambda: False, lambda: None, 1.0 + waited / 1000)
        self.assertLess(len(self.house.deadlines._lanes), 10)

    def test_how_long_it_stood_there(self):
        for seconds in (0.0, 3.5, 1.0):
            ticket = self.join("a")
            self.house.clock.advance(seconds)
            self.assertEqual(ticket.leave(), seconds)

    def test_leave(self):
        """Who has left is neither served nor late; leaving twice does nothing."""
        a, _ = self.join("a"), self.join("b")
        a.leave()
        a.leave()
        self.wake(1)
        self.house.clock.pump([1.0] * 10)
        self.assertEqual((self.order, self.queue.timed_out), (["b"], 0))

    def test_head_that_cannot_be_served(self):
        """It does not block those behind it, and keeps its place."""

        def cannot():
            self.order.append("head")
            return False

        self.join("head", cannot)
        for name in "abc":
            self.join(name)
        self.wake(2)
        self.assertEqual([name for name in self.order if name != "head"], ["a", "b"])
        self.assertEqual(len(self.queue), 2)
        self.order.clear()
        self.wake(1)
        self.assertEqual(self.order[0], "head")
        self.assertEqual(self.order[-1], "c")

    def test_everyone(self):
        """Also those for whom there is no room, each once, in their order."""
        for name in "abc":
            self.join(name)
        self.wake(0, everyone=True)
        self.assertEqual((self.order, len(self.queue)), (["a", "b", "c"], 3))
        self.order.clear()
        self.wake(1, everyone=True)
        self.assertEqual((self.order, len(self.queue)), (["a", "b", "c"], 2))

    def test_wake_during_wake(self):
        """It goes round again rather than recurse, and nothing is lost."""
        depth, deepest, tickets = [], [], []

        def serve():
            depth.append(None)
            deepest.append(len(depth))
            tickets.pop(0).leave()
            self.queue.wake()
            depth.pop()
            return True

        self.queue = self.make(limit=50)
        tickets += [self.join("x", serve) for _ in range(50)]
        self.wake(1)
        self.assertEqual((deepest, len(self.queue)), ([1] * 50, 0))

    def test_everyone_during_wake(self):
        def serve():
            first.leave()
            self.free = 0
            self.queue.wake(everyone=True)
            self.queue.wake()
            return True

        first = self.join("first", serve)
        self.join("a")
        self.wake(1)
        self.assertEqual(self.order, ["a"])
        # And only that time.
        self.order.clear()
        self.wake(0)
        self.assertEqual(self.order, [])

    def test_left_during_wake(self):
        """One that another's turn takes out of the queue is not asked."""

        def serve():
            second.leave()
            return False

        self.join("first", serve)
        second = self.join("second")
        self.join("third")
        self.wake(0, everyone=True)
        self.assertEqual(self.order, ["third"])

    def test_error(self):
        """One whose turn raises does not leave the queue asleep for ever."""

        def serve():
            first.leave()
            raise RuntimeError("oops")

        first = self.join("first", serve)
        self.join("a")
        self.free = 1
        self.assertRaises(RuntimeError, self.queue.wake)
        self.queue.wake()
        self.assertEqual(self.order, ["a"])


class ClusterQueueTests(SynchronousTestCase):
    """Choices in the queue of a cluster."""

    def house_of(self, *config, **settings):
        self.house = House(*config, **settings)
        self.flow, self.connector = self.house.flow, self.house.connector
        return self.house

    def busy(self, count, outcome=True):
        """Attempts that hold what there is."""
        for place in self.house.web.backends:
            self.connector.script(place, outcome)
        return [self.flow.upstream(self.house.choice()) for _ in range(count)]

    def test_tried_it_already(self):
        """The first has tried what comes free; the next one takes it."""
        house = self.house_of(Backend(address(1)), Backend(address(2)), max_connections=1)
        held = self.busy(2)
        by_place = {attempt.backend.address: attempt for attempt in held}
        first, second = house.choice(), house.choice()
        first.tried.add(house.state(1))
        waiting = [self.flow.upstream(first), self.flow.upstream(second)]
        house.close(by_place[address(1)])
        self.assertIs(self.successResultOf(waiting[1]).backend, house.state(1))
        self.assertNoResult(waiting[0])
        house.close(by_place[address(2)])
        self.assertIs(self.successResultOf(waiting[0]).backend, house.state(2))

    def test_newcomer_inside_a_callback(self):
        """Who asks from within the callback of one that was just served overtakes nobody.

        The first to be served is done at once and its mode asks again, before its callback returns.
        """
        house = self.house_of(Backend(address(1)), max_connections=1)
        self.busy(1)
        waiting = [self.flow.upstream(house.choice()) for _ in range(2)]
        newcomer = []
        waiting[0].addCallback(
            lambda attempt: (
                house.close(attempt),
                newcomer.append(self.flow.upstream(house.choice())),
            )
        )
        house.close(self.connector.attempts[0].choice.attempt)
        self.successResultOf(waiting[1])
        self.assertIsInstance(newcomer[0], Deferred)
        self.assertNoResult(newcomer[0])

    def test_served_in_the_sweep_that_is_its_last(self):
        """A connect that times out frees a slot, and the one served with it is not late as well.

        Both deadlines are as long and come in one sweep; the outcome must be told once.
        """
        house = self.house_of(Backend(address(1)), Backend(address(2)), max_connections=1)
        self.busy(2, outcome=False)
        holder = self.connector.under_way[0]
        timeout = house.web.config.queue_timeout
        house.deadlines.add(
            timeout, lambda: self.connector.fail(holder, refusal(retry=Retry.NEVER))
        )
        holder.choice.result.addErrback(lambda failure: failure.trap(ProxyError))
        result = self.flow.upstream(house.choice())
        house.clock.pump([0.25] * 40)
        self.assertEqual(house.errors, [])
        self.assertIs(self.connector.under_way[-1].backend, holder.backend)
        self.connector.succeed(self.connector.under_way[-1])
        self.assertIs(self.successResultOf(result).backend, holder.backend)
        self.assertEqual(house.web.queue.timed_out, 0)

    def test_backups_open_while_others_are_full(self):
        """Each that is served costs the same, however many stand behind it."""
        house = self.house_of(
            Backend(address(1)), Backend(address(2), backup=True), max_connections=1
        )
        self.connector.script(address(1), True)
        held = self.flow.upstream(house.choice())
        waiting = [self.flow.upstream(house.choice()) for _ in range(200)]
        picks = []
        pick = house.web.pick
        house.web.pick = lambda *args: picks.append(None) or pick(*args)
        house.close(held)
        self.successResultOf(waiting[0])
        self.assertLess(len(picks), 10)
