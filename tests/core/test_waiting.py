"""proxykit.core.waiting: first come, first served; bounded; nobody waits for what is there."""

from __future__ import annotations

from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.choice import Attempt
from proxykit.core.registry import STATES
from proxykit.core.waiting import Full, Queue
from proxykit.errors import ProxyError, Retry
from proxykit.model import Backend
from proxykit.upkeep import Eject, Health
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


class HouseMachine(RuleBasedStateMachine):
    """Choices, outcomes, ends, cancellations and changes to the cluster, in any order."""

    numbers = st.integers(1, 3)
    which = st.integers(0, 100)

    @initialize(
        slots=st.integers(0, 2),
        ports=st.integers(1, 3),
        queue=st.integers(0, 4),
        backup=st.booleans(),
        panic=st.booleans(),
        share=st.sampled_from((0.0, 0.5, 1.0)),
    )
    def start(self, slots, ports, queue, backup, panic, share):
        self.house = House(
            Backend(address(1)),
            Backend(address(2), weight=2),
            Backend(address(3), backup=backup),
            max_connections=slots,
            ports=ports,
            queue=queue,
            eject=Eject(failures=2, time=2.0, slower_than=1.0, slow=2, max_share=share),
            health=Health(rise=1, fall=2),
            slow_start=3.0,
            panic=panic,
            retry_budget=0.5,
        )
        self.web, self.connector = self.house.web, self.house.connector
        # The same addresses, so the same ports.
        self.other = self.house.cluster("other", *self.web.config.backends[:2])
        self.waiting = []  # choices in the order in which they joined
        self.pending = {}  # by choice: its Deferred
        self.connected = []  # attempts that a mode has
        self.outcomes = {}  # by choice: how often it was to end, and how often it has

    def began(self, choice, got):
        """A mode has asked for an upstream."""
        self.outcomes.setdefault(choice, [0, 0])[0] += 1
        if isinstance(got, Attempt):
            self.ended(got, choice)
        else:
            self.pending[choice] = got
            got.addBoth(self.ended, choice)

    def ended(self, outcome, choice):
        self.outcomes[choice][1] += 1
        self.pending.pop(choice, None)
        if isinstance(outcome, Attempt):
            assert outcome.choice is choice
            assert outcome.upstream is not None
            self.connected.append(outcome)
        else:
            outcome.trap(ProxyError, CancelledError)

    def pick(self, things, number):
        return things[number % len(things)] if things else None

    @rule(other=st.booleans())
    def ask(self, other):
        choice = self.house.choice(self.other if other else self.web)
        self.began(choice, self.house.flow.upstream(choice))

    @rule(number=which)
    def succeed(self, number):
        if attempt := self.pick(self.connector.under_way, number):
            self.connector.succeed(attempt)

    @rule(number=which, retry=st.sampled_from(Retry))
    def fail(self, number, retry):
        if attempt := self.pick(self.connector.under_way, number):
            denied = retry is Retry.OTHER_PORT
            error = self.house.denied(attempt) if denied else refusal(retry=retry)
            self.connector.fail(attempt, error)

    @rule(number=which, again=st.booleans())
    def finish(self, number, again):
        if attempt := self.pick(self.connected, number):
            self.connected.remove(attempt)
            attempt.end()
            attempt.handle.release()
            if again:
                got = self.house.flow.again(attempt, refusal())
                self.began(attempt.choice, got)

    @rule(number=which)
    def cancel(self, number):
        if choice := self.pick(list(self.pending), number):
            self.pending[choice].cancel()

    @rule(number=numbers, outcome=st.sampled_from((True, False, "refused")))
    def script(self, number, outcome):
        self.connector.script(address(number), refusal() if outcome == "refused" else outcome)

    @rule(number=numbers, state=st.sampled_from(STATES))
    def set_state(self, number, state):
        if address(number) in self.web.backends:
            self.web.set_state(address(number), state)

    @rule(number=numbers)
    def come_or_go(self, number):
        if address(number) in self.web.backends:
            self.web.remove(address(number))
        else:
            self.web.add(Backend(address(number)), slowly=True)

    @rule(number=numbers, well=st.booleans(), times=st.integers(1, 2))
    def check(self, number, well, times):
        if backend := self.web.backends.get(address(number)):
            for _ in range(times):
                backend.standing.succeeded() if well else backend.standing.failed("no")

    @rule(number=numbers, status=st.sampled_from((200, 500)), seconds=st.sampled_from((0.1, 2.0)))
    def answer(self, number, status, seconds):
        if backend := self.web.backends.get(address(number)):
            for _ in range(2):
                backend.answered(status, seconds)

    @rule(steps=st.integers(1, 25))
    def time(self, steps):
        self.house.clock.pump([0.25] * steps)
        self.house.accountant.tick()

    def in_queue(self, cluster):
        """The choices that wait, as the books of flow have it."""
        return [
            choice
            for choice in self.pending
            if choice.cluster is cluster and choice.ticket in cluster.queue._tickets
        ]

    @invariant()
    def nobody_waits_for_what_is_there(self):
        for cluster in self.house.registry:
            for choice in self.in_queue(cluster):
                assert isinstance(cluster.pick("192.0.2.1", choice.tried), Full), choice

    @invariant()
    def tickets(self):
        """One for each that waits, each with its deadline; all others are under way."""
        queued = 0
        for cluster in self.house.registry:
            assert len(cluster.queue) == len(self.in_queue(cluster)) <= cluster.queue.limit
            queued += len(cluster.queue)
        assert len(self.house.deadlines) == queued + self.recovering()
        assert len(self.connector.under_way) == len(self.pending) - queued
        for choice in self.pending:
            assert choice.waiting == (choice.attempt is None)

    def recovering(self):
        """How many backends are ejected, or start slowly."""
        clusters = self.house.registry
        states = [each.standing for one in clusters for each in one.backends.values()]
        return sum((each._back is not None) + (each._step is not None) for each in states)

    @invariant()
    def panic(self):
        """Those that are not well are used where no other is."""
        states = [each for each in self.web.backends.values() if each.able]
        well = [each for each in states if each.well]
        assert (self.web.able, self.web.well) == (len(states), len(well))
        assert self.web.panicking == (self.web.config.panic and states != [] and not well)
        assert [each for each in states if each.usable] == (states if self.web.panicking else well)
        for each in states:
            assert each.weight == each.config.weight * each.share

    @invariant()
    def order_of_arrival(self):
        """Among those that have tried nothing, nobody is served before one who came earlier."""
        made = {attempt.choice: turn for turn, attempt in enumerate(self.connector.attempts)}
        before, self.waiting = self.waiting, []
        for cluster in self.house.registry:
            turns = [
                inf if choice.waiting else made[choice]
                for choice in before
                if choice.cluster is cluster
                and not self.has_tried(choice)
                and (choice.waiting or choice.attempt is not None)
            ]
            assert turns == sorted(turns)
            self.waiting += [
                choice for choice in self.in_queue(cluster) if not self.has_tried(choice)
            ]

    def has_tried(self, choice):
        """Whether it may stand behind choices that asked later, for it has had its turn."""
        return choice.tried or choice.fresh or choice.error is not None

    @invariant()
    def loads(self):
        alive = [attempt.backend for attempt in (*self.connector.under_way, *self.connected)]
        for cluster in self.house.registry:
            states = {*cluster.backends.values(), *cluster.leaving.values(), *alive}
            for backend in states:
                assert backend.in_flight == alive.count(backend)
                assert backend.connections == alive.count(backend)

    @invariant()
    def ends_once(self):
        for choice, (begun, ended) in self.outcomes.items():
            assert begun - ended == (choice in self.pending)

    def teardown(self):
        if not hasattr(self, "house"):
            return
        for place in self.web.config.backends:
            self.connector.script(place.address, refusal(retry=Retry.NEVER))
        while self.pending or self.connected:
            for choice in tuple(self.pending):
                if choice in self.pending:
                    self.pending[choice].cancel()
            self.finish(0, False)
        for cluster in self.house.registry:
            cluster.rest()
        self.loads()
        self.ends_once()
        assert len(self.house.deadlines) == 0
        for cluster in self.house.registry:
            assert not len(cluster.queue)
            assert not cluster.leaving
        assert all(not page["reserved"] for page in self.house.accountant.snapshot())
        assert self.house.errors == []


class HouseMachineTests(SynchronousTestCase):
    def test_all(self):
        run_state_machine_as_test(
            HouseMachine,
            settings=settings(deadline=None, max_examples=200, stateful_step_count=50),
        )
