"""proxykit.core.balance: each policy does what its name says, at a cost that stays flat."""

from __future__ import annotations

import random
from collections import Counter
from itertools import groupby

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxykit.core.balance import LeastConnections, RandomTwoChoices, RoundRobin, SourceHash
from proxykit.interfaces import IBalancer
from proxykit.model import Backend
from tests.core import address

NOBODY: frozenset[object] = frozenset()


class Stub:
    """All that a balancer may know of a backend. It counts how often it is looked up."""

    lookups = 0

    def __init__(self, number, weight=1):
        self.number = number
        self.address = address(number)
        self.weight = weight
        self.config = Backend(self.address, weight=weight)
        self.in_flight = 0

    def __hash__(self):
        Stub.lookups += 1
        return self.number

    def __eq__(self, other):
        return self is other

    def __repr__(self):
        return f"{self.number}*{self.weight}"


def seeded():
    return RandomTwoChoices(random.Random(7))


POLICIES = (RoundRobin, LeastConnections, seeded, SourceHash)


def filled(policy, *weights):
    """A balancer of that policy, and the backends that it knows."""
    balancer = policy()
    stubs = [Stub(number, weight) for number, weight in enumerate(weights, 1)]
    for stub in stubs:
        balancer.add(stub)
    return balancer, stubs


def load(balancer, stub, change):
    stub.in_flight += change
    balancer.update(stub)


def held(balancer, times):
    """That many choices, none of which ends."""
    for _ in range(times):
        load(balancer, balancer.choose("", NOBODY), +1)


def chosen(balancer, times, client=""):
    """That many choices, none of which lasts."""
    return [balancer.choose(client, NOBODY) for _ in range(times)]


class EveryPolicyTests(SynchronousTestCase):
    def test_interface(self):
        for policy in POLICIES:
            self.assertTrue(verifyObject(IBalancer, policy()))

    def test_none(self):
        for policy in POLICIES:
            balancer, (only,) = filled(policy, 1)
            self.assertIs(balancer.choose("c", NOBODY), only)
            self.assertIsNone(balancer.choose("c", {only}))
            balancer.discard(only)
            balancer.discard(only)
            balancer.update(only)
            self.assertIsNone(balancer.choose("c", NOBODY))
            balancer.add(only)
            self.assertIs(balancer.choose("c", NOBODY), only)
            balancer.forget(only)
            balancer.forget(only)
            self.assertIsNone(balancer.choose("c", NOBODY))

    def test_avoid(self):
        """What is avoided stays known; unknown ones in the set do no harm."""
        for policy in POLICIES:
            balancer, stubs = filled(policy, 1, 2, 3, 4)
            strangers = {Stub(number) for number in range(90, 100)}
            seen = set()
            for _ in stubs:
                seen.add(balancer.choose("c", seen | strangers))
            self.assertEqual(seen, set(stubs), policy)
            self.assertIsNone(balancer.choose("c", seen | strangers))
            self.assertIn(balancer.choose("c", NOBODY), stubs)


class RoundRobinTests(SynchronousTestCase):
    def test_shares(self):
        """Within any run as long as the weights together, each has its turns, give or take one."""
        for weights in ((1,), (1, 1, 1), (2, 1), (5, 1, 1), (3, 2, 2), (7, 4, 1), (256, 1)):
            balancer, stubs = filled(RoundRobin, *weights)
            length = sum(weights)
            turns = chosen(balancer, 5 * length)
            self.assertEqual(
                [turns.count(stub) for stub in stubs], [5 * weight for weight in weights]
            )
            for start in range(4 * length):
                counts = Counter(turns[start : start + length])
                for stub in stubs:
                    self.assertLessEqual(abs(counts[stub] - stub.weight), 1, (weights, start))

    def test_interleaves(self):
        balancer, stubs = filled(RoundRobin, 5, 1, 1)
        runs = [len(list(run)) for stub, run in groupby(chosen(balancer, 700)) if stub is stubs[0]]
        self.assertLess(max(runs), 5)

    def test_equals_take_turns(self):
        balancer, stubs = filled(RoundRobin, 1, 1, 1)
        turns = chosen(balancer, 3)
        self.assertEqual(set(turns), set(stubs))
        self.assertEqual(chosen(balancer, 6), turns * 2)

    def test_newcomer(self):
        """It takes its share from now on: it neither catches up nor waits."""
        balancer, stubs = filled(RoundRobin, 1, 1)
        chosen(balancer, 1000)
        late = Stub(3)
        balancer.add(late)
        turns = chosen(balancer, 300)
        self.assertEqual([turns.count(stub) for stub in (*stubs, late)], [100, 100, 100])

    def test_avoided_keeps_its_turn(self):
        balancer, (a, b) = filled(RoundRobin, 1, 1)
        self.assertEqual([balancer.choose("", {a}) for _ in range(3)], [b, b, b])
        self.assertIs(balancer.choose("", NOBODY), a)

    def test_full_for_a_moment(self):
        """Who is full for a moment after each of its turns has its share all the same, no more."""
        for size in (2, 3, 10):
            balancer, stubs = filled(RoundRobin, *[1] * size)
            turns = []
            for _ in range(100 * size):
                turns += chosen(balancer, 1)
                if turns[-1] is stubs[0]:
                    balancer.discard(stubs[0])
                    balancer.add(stubs[0])
            self.assertApproximates(turns.count(stubs[0]), 100, 10)


class LeastConnectionsTests(SynchronousTestCase):
    def test_loads_in_proportion(self):
        for weights in ((1, 1, 1), (2, 1), (5, 3, 1), (256, 1)):
            balancer, stubs = filled(LeastConnections, *weights)
            held(balancer, 10 * sum(weights))
            for stub in stubs:
                self.assertLessEqual(abs(stub.in_flight - 10 * stub.weight), 1, weights)

    def test_evens_out(self):
        """A newcomer without load gets all until it has as much as the others."""
        balancer, (a, b) = filled(LeastConnections, 1, 1)
        held(balancer, 20)
        late = Stub(3)
        balancer.add(late)
        held(balancer, 9)
        self.assertEqual((a.in_flight, b.in_flight, late.in_flight), (10, 10, 9))
        held(balancer, 31)
        self.assertEqual({a.in_flight, b.in_flight, late.in_flight}, {20})

    def test_ends_count(self):
        balancer, (a, b) = filled(LeastConnections, 1, 1)
        held(balancer, 20)
        for _ in range(5):
            load(balancer, b, -1)
        self.assertEqual(balancer.choose("", NOBODY), b)
        held(balancer, 5)
        self.assertEqual((a.in_flight, b.in_flight), (10, 10))

    def test_churn(self):
        """Under random starts and ends no two loads are ever further apart than ends made them."""
        balancer, stubs = filled(LeastConnections, *[1] * 10)
        source = random.Random(3)
        for _ in range(2000):
            if source.random() < 0.55:
                best = min(stub.in_flight for stub in stubs)
                got = balancer.choose("", NOBODY)
                self.assertEqual(got.in_flight, best)
                load(balancer, got, +1)
            elif busy := [stub for stub in stubs if stub.in_flight]:
                load(balancer, source.choice(busy), -1)

    def test_equals_take_turns(self):
        """Also when nothing comes of a choice, and when it ends before the next one."""
        balancer, (a, b, c) = filled(LeastConnections, 1, 1, 1)
        self.assertEqual(chosen(balancer, 6), [a, b, c, a, b, c])
        turns = []
        for _ in range(6):
            turns.append(balancer.choose("", NOBODY))
            load(balancer, turns[-1], +1)
            load(balancer, turns[-1], -1)
        self.assertEqual(Counter(turns), {a: 2, b: 2, c: 2})


class RandomTwoChoicesTests(SynchronousTestCase):
    def test_loads_in_proportion(self):
        for weights in ((1,) * 10, (1, 2, 3, 4), (8, 1, 1, 1, 1)):
            balancer, stubs = filled(seeded, *weights)
            times = 1000 * len(weights)
            held(balancer, times)
            for stub in stubs:
                share = times * stub.weight / sum(weights)
                self.assertLess(abs(stub.in_flight - share) / share, 0.1, weights)

    def test_tighter_than_chance(self):
        """Mitzenmacher: the fullest of n is ln ln n above the mean, not sqrt(load) above it."""
        balancer, stubs = filled(seeded, *[1] * 100)
        held(balancer, 10_000)
        source = random.Random(7)
        uniform = Counter(source.randrange(100) for _ in range(10_000))
        two = max(stub.in_flight for stub in stubs)
        self.assertLessEqual(two, 104)
        self.assertGreater(max(uniform.values()), 115)

    def test_idle_shares(self):
        """While there is no load to compare, the weights alone decide, as they should."""
        balancer, _ = filled(seeded, *[2] * 50, *[1] * 50)
        counts = Counter(stub.weight for stub in chosen(balancer, 30_000))
        self.assertApproximates(counts[1] / 30_000, 1 / 3, 0.03)

    def test_idle_equals(self):
        balancer, stubs = filled(seeded, *[1] * 10)
        counts = Counter(chosen(balancer, 10_000))
        for stub in stubs:
            self.assertApproximates(counts[stub], 1000, 150)

    def test_less_loaded_of_two(self):
        balancer, (a, b) = filled(seeded, 1, 1)
        a.in_flight = 1
        self.assertEqual(set(chosen(balancer, 50)), {b})
        b.in_flight = 2
        self.assertEqual(set(chosen(balancer, 50)), {a})

    def test_heavy_one_avoided(self):
        """Nearly every draw is one to be avoided; the rest is found all the same, evenly."""
        balancer, stubs = filled(seeded, 10_000, *[1] * 4)
        counts = Counter(balancer.choose("", {stubs[0]}) for _ in range(4000))
        for stub in stubs[1:]:
            self.assertApproximates(counts[stub], 1000, 150)

    def test_source_of_random_numbers(self):
        """The same seed gives the same choices; without one they differ from time to time."""
        first, _ = filled(lambda: RandomTwoChoices(random.Random(1)), *[1] * 50)
        again, _ = filled(lambda: RandomTwoChoices(random.Random(1)), *[1] * 50)
        other, _ = filled(RandomTwoChoices, *[1] * 50)
        numbers = [
            [stub.number for stub in chosen(balancer, 50)] for balancer in (first, again, other)
        ]
        self.assertEqual(numbers[0], numbers[1])
        self.assertNotEqual(numbers[0], numbers[2])

    def test_rounded_up(self):
        """A random number that rounding has made 1.0 still names a backend."""

        class One(random.Random):
            def random(self):
                return 1.0

        balancer, stubs = filled(lambda: RandomTwoChoices(One()), 1, 3)
        self.assertIn(balancer.choose("", NOBODY), stubs)


class SourceHashTests(SynchronousTestCase):
    clients = [f"192.0.{number // 256}.{number % 256}" for number in range(4000)]

    def where(self, balancer, avoid=NOBODY):
        """Each client's backend."""
        return {client: balancer.choose(client, avoid) for client in self.clients}

    def moved(self, before, after):
        return [client for client in self.clients if before[client] is not after[client]]

    def test_same_client_same_backend(self):
        balancer, _ = filled(SourceHash, *[1] * 10)
        before = self.where(balancer)
        self.assertEqual(self.moved(before, self.where(balancer)), [])
        # Nor does it matter in which order they came, as after a restart.
        other = SourceHash()
        for stub in sorted(balancer._members, key=lambda stub: -stub.number):
            other.add(stub)
        self.assertEqual(self.moved(before, self.where(other)), [])

    def test_weights_in_proportion(self):
        for weights in ((1,) * 10, (4, 3, 2, 1), (10, 1, 1)):
            balancer, stubs = filled(SourceHash, *weights)
            counts = Counter(self.where(balancer).values())
            for stub in stubs:
                share = len(self.clients) * stub.weight / sum(weights)
                self.assertLess(abs(counts[stub] - share) / share, 0.4, (weights, stub))

    def test_one_more(self):
        """One more of N takes about 1/N of the clients, and nobody else moves."""
        for size in (2, 10, 30):
            balancer, _ = filled(SourceHash, *[1] * (size - 1))
            before = self.where(balancer)
            late = Stub(size)
            balancer.add(late)
            after = self.where(balancer)
            moved = self.moved(before, after)
            self.assertEqual({after[client] for client in moved}, {late})
            self.assertGreater(len(moved), 0.6 * len(self.clients) / size)
            self.assertLess(len(moved), 1.5 * len(self.clients) / size)

    def test_lighter_one_more(self):
        balancer, _ = filled(SourceHash, 4, 4)
        before = self.where(balancer)
        late = Stub(3, weight=1)
        balancer.add(late)
        after = self.where(balancer)
        self.assertEqual({after[client] for client in self.moved(before, after)}, {late})

    def test_heavier_one_more(self):
        """Then the points of all are made anew; the shares are right all the same."""
        balancer, _ = filled(SourceHash, 1, 1)
        self.where(balancer)
        late = Stub(3, weight=8)
        balancer.add(late)
        counts = Counter(self.where(balancer).values())
        self.assertApproximates(counts[late] / len(self.clients), 0.8, 0.1)

    def test_one_less(self):
        for leave in ("discard", "forget"):
            balancer, stubs = filled(SourceHash, *[1] * 10)
            before = self.where(balancer)
            getattr(balancer, leave)(stubs[4])
            after = self.where(balancer)
            for client in self.clients:
                if before[client] is stubs[4]:
                    self.assertIsNot(after[client], stubs[4])
                else:
                    self.assertIs(after[client], before[client])
            balancer.add(stubs[4])
            self.assertEqual(self.moved(before, self.where(balancer)), [])

    def test_along_the_ring(self):
        """Clients of a full backend spread over the others, each always to the same one."""
        balancer, stubs = filled(SourceHash, *[1] * 10)
        before = self.where(balancer)
        avoided = self.where(balancer, {stubs[0]})
        balancer.discard(stubs[0])
        self.assertEqual(self.moved(avoided, self.where(balancer)), [])
        spread = {avoided[client] for client in self.clients if before[client] is stubs[0]}
        self.assertGreater(len(spread), 5)

    def test_weight_changed_at_once(self):
        """One that leaves and comes back with another weight has that weight's share.

        No choice is made in between, as in a reload.
        """
        balancer, (_, changed) = filled(SourceHash, 8, 8)
        self.where(balancer)
        balancer.forget(changed)
        changed.weight, changed.config = 1, Backend(changed.address)
        balancer.add(changed)
        counts = Counter(self.where(balancer).values())
        self.assertLess(counts[changed] / len(self.clients), 0.2)

    def test_ring_does_not_grow(self):
        balancer, stubs = filled(SourceHash, 1, 1)
        self.where(balancer)
        size = len(balancer._ring)
        for _ in range(5):
            balancer.forget(stubs[0])
            balancer.add(stubs[0])
            balancer.choose("c", NOBODY)
        self.assertEqual(len(balancer._ring), size)
