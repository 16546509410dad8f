"""What a choice costs, and that any order of changes leaves the policies right."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core import balance
from proxykit.core.balance import LeastConnections, RoundRobin, SourceHash
from tests.core.test_balance import NOBODY, POLICIES, Stub, chosen, filled, held, load, seeded


class CostTests(SynchronousTestCase):
    """Counts of operations, so that a slow machine does not matter."""

    choices = 5000

    def per_choice(self, policy, size, operations):
        """Operations for one choice that begins and ends, at the mean."""
        balancer, stubs = filled(policy, *[1 + number % 4 for number in range(size)])
        held(balancer, 2 * size)
        for stub in stubs[::3]:
            balancer.discard(stub)
            balancer.add(stub)
        begun = operations()
        for number in range(self.choices):
            got = balancer.choose(str(number), NOBODY)
            load(balancer, got, +1)
            load(balancer, got, -1)
        return (operations() - begun) / self.choices

    def counted(self, name):
        """How often a function that balance uses has been called."""
        calls = []
        function = getattr(balance, name)

        def counting(*args):
            calls.append(None)
            return function(*args)

        self.patch(balance, name, counting)
        return lambda: len(calls)

    def test_heaps(self):
        pops = self.counted("heappop")
        for policy in (RoundRobin, LeastConnections):
            for size in (2, 1000):
                self.assertLess(self.per_choice(policy, size, pops), 4, (policy, size))

    def test_heaps_made_anew(self):
        """Not so often that it costs more than a few entries for each choice."""
        moved = []
        heapify = balance.heapify

        def counting(heap):
            moved.append(len(heap))
            heapify(heap)

        self.patch(balance, "heapify", counting)
        for size in (2, 1000):
            got = self.per_choice(LeastConnections, size, lambda: sum(moved))
            self.assertLess(got, 4, size)

    def test_lookups(self):
        for policy, bound in ((seeded, 8), (SourceHash, 4)):
            for size in (2, 1000):
                got = self.per_choice(policy, size, lambda: Stub.lookups)
                self.assertLess(got, bound, (policy, size))

    def test_most_are_full(self):
        """With one of a thousand left, choosing it costs as it does with two of two.

        Except by source-hash, which looks at about one point of the ring for each that is full.
        """
        pops = self.counted("heappop")
        for policy, bound in (
            (RoundRobin, 30),
            (LeastConnections, 30),
            (seeded, 30),
            (SourceHash, 2000),
        ):
            balancer, stubs = filled(policy, *[1] * 1000)
            chosen(balancer, 1)
            for stub in stubs[1:]:
                balancer.discard(stub)
            chosen(balancer, 1)  # drops what is stale
            begun = Stub.lookups + pops()
            for number in range(100):
                self.assertIs(balancer.choose(str(number), NOBODY), stubs[0])
            self.assertLess((Stub.lookups + pops() - begun) / 100, bound, policy)

    def test_heaps_are_bounded(self):
        source = random.Random(5)
        for policy in (RoundRobin, LeastConnections):
            balancer, stubs = filled(policy, *[1] * 20)
            known = set(stubs)
            for _ in range(5000):
                stub = source.choice(stubs)
                if stub in known:
                    what = source.choice(("discard", "forget", "update", "update", "update"))
                    if what != "update":
                        known.discard(stub)
                    getattr(balancer, what)(stub)
                else:
                    known.add(stub)
                    balancer.add(stub)
                balancer.choose("", {source.choice(stubs)})
                self.assertLessEqual(len(balancer._heap), 2 * len(stubs) + 64)

    def test_heaps_are_bounded_without_a_choice(self):
        """Though only a choice drops what is stale: loads change, backends come and go."""
        for policy, whats in ((RoundRobin, ("discard", "add")), (LeastConnections, ("update",))):
            balancer, stubs = filled(policy, *[1] * 20)
            for number in range(1000):
                for what in whats:
                    getattr(balancer, what)(stubs[number % 20])
                self.assertLessEqual(len(balancer._heap), 2 * len(stubs) + 64, policy)

    def test_nobody_left_behind(self):
        """A backend that was forgotten is not held on to once there has been a choice."""
        for policy in POLICIES:
            balancer, stubs = filled(policy, *[1] * 3)
            chosen(balancer, 20)
            for stub in stubs:
                balancer.forget(stub)
            self.assertIsNone(balancer.choose("", NOBODY))
            left = [value for value in vars(balancer).values() if isinstance(value, dict | list)]
            self.assertEqual([value for value in left if value], [], policy)


class PolicyMachine(RuleBasedStateMachine):
    """add, discard, forget, update and choose in any order, against a set of those that are in."""

    policy = RoundRobin

    def __init__(self):
        super().__init__()
        self.balancer = type(self).policy()
        self.stubs = [Stub(number, 1 + number % 3) for number in range(6)]
        self.known = set()
        self.members = set()

    numbers = st.integers(0, 5)

    @rule(number=numbers, weight=st.integers(1, 4))
    def add(self, number, weight):
        stub = self.stubs[number]
        if stub not in self.known:
            if stub not in self.members:
                stub.weight = weight
            self.balancer.add(stub)
            self.known.add(stub)
            self.members.add(stub)

    @rule(number=numbers)
    def discard(self, number):
        self.balancer.discard(self.stubs[number])
        self.known.discard(self.stubs[number])

    @rule(number=numbers)
    def forget(self, number):
        self.balancer.forget(self.stubs[number])
        self.known.discard(self.stubs[number])
        self.members.discard(self.stubs[number])

    @rule(number=numbers, change=st.sampled_from((-1, 1)))
    def load(self, number, change):
        stub = self.stubs[number]
        stub.in_flight = max(0, stub.in_flight + change)
        self.balancer.update(stub)

    @rule(client=st.sampled_from(("a", "b", "c")), avoided=st.sets(numbers))
    def choose(self, client, avoided):
        avoid = {self.stubs[number] for number in avoided}
        got = self.balancer.choose(client, avoid)
        left = self.known - avoid
        if left:
            assert got in left
        else:
            assert got is None

    @precondition(lambda self: self.policy in (RoundRobin, LeastConnections))
    @invariant()
    def heap_is_bounded(self):
        assert len(self.balancer._heap) <= 2 * len(self.stubs) + 64


class MachineTests(SynchronousTestCase):
    def test_all(self):
        for policy in POLICIES:
            machine = type("Machine", (PolicyMachine,), {"policy": staticmethod(policy)})
            run_state_machine_as_test(
                machine, settings=settings(deadline=None, max_examples=40, stateful_step_count=40)
            )
