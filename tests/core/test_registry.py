"""proxykit.core.registry: tiers, states, and two counts that always equal a recount."""

from __future__ import annotations

import json
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxykit.core.balance import LeastConnections, RoundRobin, SourceHash
from proxykit.core.registry import STATES
from proxykit.core.waiting import Full
from proxykit.interfaces import IRegistry
from proxykit.model import Backend, Cluster
from tests.core import House, address, backends

FULL = Full("it is full")
PRIMARIES = backends(1, 1)
BACKUP = Backend(address(9), backup=True)


class RegistryTests(SynchronousTestCase):
    def test_clusters(self):
        house = House(*PRIMARIES)
        registry = house.registry
        self.assertTrue(verifyObject(IRegistry, registry))
        self.assertIs(registry.cluster("web"), house.web)
        self.assertRaises(KeyError, registry.cluster, "api")
        error = self.assertRaises(ValueError, house.cluster, "web")
        self.assertEqual(str(error), "there is a cluster web already")
        api = house.cluster("api")
        self.assertEqual(list(registry), [house.web, api])
        self.assertIs(registry.get("api"), api)
        state = house.state(1)
        registry.remove("web")
        self.assertEqual((list(registry), registry.get("web")), ([api], None))
        self.assertTrue(state.removed)


class PickTests(SynchronousTestCase):
    def setUp(self):
        self.house = House(*PRIMARIES, BACKUP)
        self.web = self.house.web
        self.a, self.b = self.house.state(1), self.house.state(2)
        self.spare = self.house.state(9)

    def picked(self, *tried):
        """Who is picked, of two choices in a row."""
        return {self.web.pick("c", set(tried)) for _ in range(2)}

    def test_tiers(self):
        """Backups only when no other is up and untried."""
        self.assertEqual(self.picked(), {self.a, self.b})
        self.assertEqual(self.picked(self.a), {self.b})
        self.assertEqual(self.picked(self.a, self.b), {self.spare})
        self.assertEqual(self.picked(self.a, self.b, self.spare), {None})
        self.web.set_state(self.a.address, "down")
        self.assertEqual(self.picked(), {self.b})
        self.web.set_state(self.b.address, "drain")
        self.assertEqual(self.picked(), {self.spare})
        self.assertEqual(self.picked(self.spare), {None})
        self.assertEqual(self.picked(self.a, self.b), {self.spare})
        self.web.set_state(self.spare.address, "down")
        self.assertEqual(self.picked(), {None})
        self.web.set_state(self.a.address, "up")
        self.assertEqual(self.picked(), {self.a})

    def test_full_is_waited_for(self):
        """A backup does not help out when the others are merely full."""
        self.web.block(self.a, Full("a is full"))
        self.assertEqual(self.picked(), {self.b})
        self.web.block(self.b, Full("b is full"))
        self.assertEqual(self.picked(), {Full("a is full, and 1 more are full")})
        self.web.block(self.a, Full("a is full", ports=True))
        self.assertEqual(self.picked(), {Full("a is full, and 1 more are full", ports=True)})
        self.web.block(self.a, Full("a is full"))
        self.assertEqual(self.picked(self.b), {Full("a is full, and 1 more are full")})
        self.web.set_state(self.b.address, "down")
        self.assertEqual(self.picked(), {Full("a is full")})
        self.assertEqual(self.picked(self.a), {self.spare})
        self.a.wake()
        self.assertEqual(self.picked(), {self.a})

    def test_full_ones_that_do_not_count(self):
        """What is full elsewhere, or is not up, is not what a choice waits for."""
        house = House(BACKUP, *PRIMARIES)
        for number, what in ((9, "backup"), (1, "a"), (2, "b")):
            house.web.block(house.state(number), Full(what))
        self.assertEqual(house.web.pick("c", set()), Full("a, and 1 more are full"))
        house.web.set_state(address(1), "down")
        self.assertEqual(house.web.pick("c", set()), Full("b"))

    def test_full_backup(self):
        self.web.block(self.spare, Full("the backup is full"))
        self.assertEqual(self.web.pick("c", {self.a, self.b}), Full("the backup is full"))


class StateTests(SynchronousTestCase):
    def setUp(self):
        self.house = House(*PRIMARIES, max_connections=2)
        self.web = self.house.web
        self.a, self.b = self.house.state(1), self.house.state(2)

    def test_repr(self):
        self.assertEqual(repr(self.a), "<backend 10.0.0.1:80 of web>")

    def test_mistakes(self):
        error = self.assertRaises(ValueError, self.web.set_state, self.a.address, "gone")
        self.assertEqual(str(error), "expected one of up, drain, down, not 'gone'")
        self.assertEqual(self.a.state, "up")
        self.assertRaises(KeyError, self.web.set_state, address(7), "up")
        self.assertRaises(KeyError, self.web.remove, address(7))
        error = self.assertRaises(ValueError, self.web.add, Backend(self.a.address))
        self.assertEqual(str(error), "10.0.0.1:80 is in cluster web already")

    def test_drained_while_full(self):
        """It comes up as it is by then: full still, or free again."""
        for freed in (False, True):
            self.web.block(self.a, FULL)
            self.web.set_state(self.a.address, "drain")
            if freed:
                self.a.wake()
            self.web.set_state(self.a.address, "up")
            got = {self.web.pick("c", set()) for _ in range(2)}
            self.assertEqual(got, {self.a, self.b} if freed else {self.b})
            self.a.wake()
            self.assertEqual(self.web._used.open, 2)

    def test_block_twice(self):
        """The last reason counts, and it wakes once."""
        self.web.block(self.a, FULL)
        self.web.block(self.a, Full("later"))
        self.assertEqual(self.a.full, Full("later"))
        self.a.wake()
        self.a.wake()
        self.assertEqual((self.web._used.up, self.web._used.open), (2, 2))

    def test_block_while_down(self):
        self.web.set_state(self.a.address, "down")
        self.web.block(self.a, FULL)
        self.assertEqual((self.web._used.up, self.web._used.open), (1, 1))
        self.web.set_state(self.a.address, "up")
        self.assertEqual((self.web._used.up, self.web._used.open), (2, 1))

    def shown(self):
        """What ``/api/clusters`` says of each: its state, connections, and those in flight."""
        return {
            shown["address"]: (shown["state"], shown["connections"], shown["in_flight"])
            for shown in self.web.snapshot()["backends"]
        }

    def test_removed_lives_on(self):
        """It takes nothing new, is shown until its last connection ends, and then is gone."""
        leases = [self.house.accountant.lease(self.a) for _ in range(2)]
        self.a.load(+1)
        self.web.remove(self.a.address)
        self.assertEqual({self.web.pick("c", set()) for _ in range(3)}, {self.b})
        self.assertEqual(
            self.shown(), {"10.0.0.2:80": ("up", 0, 0), "10.0.0.1:80": ("removed", 2, 1)}
        )
        leases[0].release()
        self.assertIn("10.0.0.1:80", self.shown())
        self.a.load(-1)
        leases[1].release()
        self.assertEqual(self.shown(), {"10.0.0.2:80": ("up", 0, 0)})
        self.assertEqual(self.web.leaving, {})

    def test_removed_is_forgotten(self):
        """By the balancer, too: a drained one keeps its place there, a removed one does not."""
        house = House(*PRIMARIES, balancer=SourceHash)
        balancer = house.web._used.balancer
        house.web.set_state(address(1), "drain")
        self.assertEqual(len(balancer._members), 2)
        house.web.remove(address(1))
        self.assertEqual(balancer._members, {house.state(2)})

    def test_removed_without_connections(self):
        self.web.remove(self.a.address)
        self.assertEqual(self.shown(), {"10.0.0.2:80": ("up", 0, 0)})

    def test_what_was_counted_stays_with_the_cluster(self):
        """Of one that is gone, once: when nobody uses it any more."""
        stats = self.web.stats
        for backend in (self.a, self.b):
            backend.served, backend.failures, backend.closed_first["reset"] = 5, 2, 1
            backend.standing.ejections = 3
        lease = self.house.accountant.lease(self.a)
        self.web.remove(self.a.address)
        self.assertEqual((stats.served, stats.failures), (0, 0))
        again = self.web.add(Backend(self.a.address))
        self.web.remove(again.address)
        lease.closed_by = "proxy"
        lease.release()
        self.a.wake()
        self.assertEqual((stats.served, stats.failures), (5, 2))
        self.assertEqual(stats.closed_first, {"proxy": 1, "backend": 0, "reset": 1})
        self.web.remove(self.b.address)
        self.assertEqual((stats.served, stats.failures, stats.ejections), (10, 4, 6))
        self.assertEqual(stats.closed_first, {"proxy": 1, "backend": 0, "reset": 2})

    def test_added_again(self):
        """With its connections, so that max_connections holds; with the new weight and tier."""
        lease = self.house.accountant.lease(self.a)
        self.web.remove(self.a.address)
        again = self.web.add(Backend(self.a.address, weight=3, backup=True))
        self.assertIs(again, self.a)
        self.assertEqual((again.weight, again.connections, again.state), (3, 1, "up"))
        self.assertIs(again.tier, self.web._backup)
        self.assertEqual((self.web._used.up, self.web._backup.up), (1, 1))
        self.assertNotIn(again, self.web.leaving.values())
        lease.release()
        self.assertEqual(self.shown()["10.0.0.1:80"], ("up", 0, 0))

    def test_added_again_while_full_or_down(self):
        lease = self.house.accountant.lease(self.a)
        self.web.block(self.a, FULL)
        self.web.set_state(self.a.address, "down")
        self.web.remove(self.a.address)
        again = self.web.add(Backend(self.a.address))
        self.assertEqual((again.state, again.full), ("up", None))
        self.assertEqual((self.web._used.up, self.web._used.open), (2, 2))
        lease.release()

    def test_former_one_without_connections(self):
        """What the one before it still hears does not make a leaving backend vanish.

        The first has no connection, only a refusal for want of a port, when it is removed. Then the
        way there changes, and with it the budget: the second is removed with a connection.
        """
        house = House(Backend(address(1)), ports=2)
        other = house.cluster("other", Backend(address(1)))
        theirs = [house.accountant.lease(other.backends[address(1)]) for _ in range(2)]
        self.assertIsInstance(house.accountant.lease(house.state(1)), Full)
        house.web.remove(address(1))
        second = house.web.add(Backend(address(1)))
        house.accountant._source_of = lambda host: "10.8.8.8"
        house.accountant.lease(second)
        house.web.remove(address(1))
        theirs[0].release()
        self.assertEqual(list(house.web.leaving.values()), [second])

    def test_snapshot(self):
        self.house.accountant.lease(self.a)
        self.web.block(self.b, FULL)
        shown = self.web.snapshot()
        json.dumps(shown)
        self.assertEqual(
            {key: shown[key] for key in ("name", "balance", "max_connections", "queue")},
            {
                "name": "web",
                "balance": "least-connections",
                "max_connections": 2,
                "queue": {"waiting": 0, "limit": 1000, "timed_out": 0, "refused": 0},
            },
        )
        first, second = shown["backends"]
        self.assertEqual(
            first,
            {
                "address": "10.0.0.1:80",
                "name": "",
                "state": "up",
                "weight": 1,
                "backup": False,
                "in_flight": 0,
                "connections": 1,
                "served": 0,
                "failures": 0,
                "closed_first": {"proxy": 0, "backend": 0, "reset": 0},
                "full": None,
                "latency_seconds": None,
                "health": "unknown",
                "why": None,
                "ejected_seconds": None,
                "ejections": 0,
                "share": 1.0,
            },
        )
        self.assertEqual(second["full"], "it is full")

    def test_another_balance(self):
        """All that could take one more are known to the new one."""
        self.web.block(self.b, FULL)
        self.web.reconfigure(Cluster("web", PRIMARIES, balance="round-robin"), RoundRobin)
        # It may have had max_connections, so it is asked again.
        self.assertEqual({self.web.pick("c", set()) for _ in range(4)}, {self.a, self.b})
        self.web.set_state(self.a.address, "drain")
        self.web.reconfigure(Cluster("web", PRIMARIES), LeastConnections)
        self.assertEqual({self.web.pick("c", set()) for _ in range(4)}, {self.b})

    def test_latency(self):
        """A moving average; the first one counts whole."""
        for seconds, shown in ((1.0, 1.0), (2.0, 1.1), (0.1, 1.0)):
            self.a.answered(200, seconds)
            self.b.connected(seconds)
            for backend in (self.a, self.b):
                self.assertAlmostEqual(backend.snapshot()["latency_seconds"], shown)


class WakeTests(SynchronousTestCase):
    """Whose queue hears of what."""

    def woken(self, act, **state):
        """The calls to the queue's ``wake`` while something is done."""
        house = House(*PRIMARIES)
        for number, change in state.items():
            change(house, house.state(int(number[1:])))
        with mock.patch.object(house.web.queue, "wake") as wake:
            act(house, house.state(1))
        return wake.mock_calls

    def test_wake(self):
        everyone = [mock.call(everyone=True)]

        def block(house, backend):
            house.web.block(backend, FULL)

        def down(house, backend):
            house.web.set_state(backend.address, "down")

        for act, state, expected in (
            (lambda house, backend: backend.wake(), {}, []),
            (lambda house, backend: backend.wake(), {"_1": block}, [mock.call()]),
            (lambda house, backend: backend.wake(), {"_1": down}, []),
            (down, {}, everyone),
            (lambda house, backend: house.web.remove(backend.address), {}, everyone),
            (lambda house, backend: house.web.add(Backend(address(5))), {}, everyone),
            (block, {}, []),
        ):
            self.assertEqual(self.woken(act, **state), expected)


NUMBERS = st.integers(1, 4)


class ClusterMachine(RuleBasedStateMachine):
    """Backends come, go, fill up and come free in any order; the counts equal a recount."""

    def __init__(self):
        super().__init__()
        self.house = House(max_connections=2, ports=6, panic=True)
        self.web = self.house.web
        self.leases = []

    def find(self, number):
        return self.web.backends.get(address(number))

    @rule(number=NUMBERS, weight=st.integers(1, 3), backup=st.booleans())
    def add(self, number, weight, backup):
        if self.find(number) is None:
            former = self.web.leaving.get(address(number))
            got = self.web.add(Backend(address(number), weight, backup))
            assert former is None or got is former

    @rule(number=NUMBERS)
    def remove(self, number):
        if self.find(number) is not None:
            self.web.remove(address(number))

    @rule(number=NUMBERS, state=st.sampled_from(STATES))
    def set_state(self, number, state):
        if self.find(number) is not None:
            self.web.set_state(address(number), state)

    @rule(number=NUMBERS, well=st.booleans())
    def set_well(self, number, well):
        if self.find(number) is not None:
            self.web.set_well(self.find(number), well)

    @rule(number=NUMBERS, share=st.sampled_from((0.1, 0.5, 1.0)))
    def weigh(self, number, share):
        if self.find(number) is not None:
            self.web.weigh(self.find(number), share)

    @rule(number=NUMBERS)
    def block(self, number):
        if self.find(number) is not None:
            self.web.block(self.find(number), FULL)

    @rule(number=NUMBERS)
    def wake(self, number):
        if self.find(number) is not None:
            self.find(number).wake()

    @rule(number=NUMBERS)
    def lease(self, number):
        backend = self.find(number)
        if backend is not None:
            got = self.house.accountant.lease(backend)
            if isinstance(got, Full):
                self.web.block(backend, got)
            else:
                self.leases.append(got)

    @rule(number=st.integers(0, 100))
    def release(self, number):
        if self.leases:
            self.leases.pop(number % len(self.leases)).release()

    @rule(tried=st.sets(NUMBERS))
    def pick(self, tried):
        tried = {self.find(number) for number in tried} - {None}
        got = self.web.pick("c", tried)
        left = [
            backend
            for backend in self.web.backends.values()
            if backend.usable and backend not in tried
        ]
        left = [one for one in left if not one.config.backup] or left
        if not left:
            assert got is None
        elif free := [backend for backend in left if backend.full is None]:
            assert got in free
        else:
            assert isinstance(got, Full)

    @invariant()
    def counts(self):
        for tier, backup in ((self.web._used, False), (self.web._backup, True)):
            members = [
                backend
                for backend in self.web.backends.values()
                if backend.config.backup is backup and backend.usable
            ]
            free = {backend for backend in members if backend.full is None}
            assert (tier.up, tier.open) == (len(members), len(free))
            known = set()
            while (got := tier.balancer.choose("c", known)) is not None:
                known.add(got)
            assert known == free

    @invariant()
    def leaving(self):
        for backend in self.web.leaving.values():
            assert backend.removed
            assert backend.connections > 0
            assert backend.address not in self.web.backends

    def teardown(self):
        for lease in self.leases:
            lease.release()
        assert not self.web.leaving


class ClusterMachineTests(SynchronousTestCase):
    def test_all(self):
        run_state_machine_as_test(
            ClusterMachine,
            settings=settings(deadline=None, max_examples=150, stateful_step_count=40),
        )
