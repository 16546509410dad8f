"""Whatever happens in a house: who waits is served in turn, and nobody waits for what is there."""

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
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.choice import Attempt
from proxykit.core.registry import STATES
from proxykit.core.waiting import Full
from proxykit.errors import ProxyError, Retry
from proxykit.model import Backend
from proxykit.upkeep import Eject, Health
from tests.core import House, address, refusal


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
