"""A cluster is configured anew, or told of backends that were found: what stays keeps its state."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.balance import LeastConnections, RandomTwoChoices, RoundRobin
from proxykit.core.waiting import Full
from tests.core import House, address, backends

ONE, TWO, THREE = backends(1, 1, 1)


class ReconfigureTests(SynchronousTestCase):
    def setUp(self):
        self.house = House(ONE, TWO, slow_start=0.0)
        self.web = self.house.web

    def reconfigure(self, *config, make=LeastConnections, **settings):
        self.web.reconfigure(evolve(self.web.config, backends=tuple(config), **settings), make)

    def test_backends(self):
        stays, gone = self.house.state(1), self.house.state(2)
        lease = self.house.accountant.lease(gone)
        stays.load(+1)
        self.reconfigure(ONE, THREE)
        self.assertEqual(list(self.web.backends), [address(1), address(3)])
        self.assertIs(self.house.state(1), stays)
        self.assertEqual(stays.in_flight, 1)
        self.assertTrue(gone.removed)
        self.assertEqual(list(self.web.leaving), [address(2)])
        self.reconfigure(ONE, TWO)
        self.assertIs(self.house.state(2), gone)
        lease.release()
        self.assertEqual(gone.connections, 0)

    def test_another_weight(self):
        backend = self.house.state(1)
        self.reconfigure(evolve(ONE, weight=3), TWO)
        self.assertIs(self.house.state(1), backend)
        self.assertEqual(backend.weight, 3)
        taken = []
        for _ in range(4):
            taken.append(self.web.pick("c", set()))
            taken[-1].load(+1)
        self.assertEqual(taken.count(backend), 3)

    def test_a_backup(self):
        """It changes tiers, also while it is drained, or full."""
        self.web.set_state(address(1), "drain")
        self.web.block(self.house.state(2), Full("it is full"))
        self.reconfigure(evolve(ONE, backup=True), evolve(TWO, backup=True))
        self.assertEqual((self.web._used.up, self.web._used.open), (0, 0))
        # Whatever was full then may have room by the new settings: it is asked again.
        self.assertEqual((self.web._backup.up, self.web._backup.open), (1, 1))
        self.web.set_state(address(1), "up")
        self.assertEqual((self.web._backup.up, self.web._backup.open), (2, 2))
        self.assertIsNotNone(self.web.pick("c", set()))

    def test_another_balance(self):
        """Only those that could take one more are known to it."""
        self.web.set_state(address(1), "drain")
        settings = {"balance": "round-robin", "slow_start": 0.0}
        self.reconfigure(ONE, TWO, THREE, make=RoundRobin, **settings)
        self.assertIsInstance(self.web._used.balancer, RoundRobin)
        got = [str(self.web.pick("c", set()).address) for _ in range(4)]
        self.assertEqual(sorted(got), ["10.0.0.2:80"] * 2 + ["10.0.0.3:80"] * 2)

    def test_another_balance_while_one_is_full(self):
        self.reconfigure(ONE, TWO)
        self.house.state(1).full = Full("it is full")
        self.web.config = evolve(self.web.config, balance="round-robin")
        self.web._used.open -= 1
        self.web._used.balancer.discard(self.house.state(1))
        self.reconfigure(ONE, TWO, balance="least-connections")
        self.assertEqual(self.web._used.open, 2)
        self.assertEqual(len({self.web.pick("c", set()) for _ in range(4)}), 2)

    def test_the_queue(self):
        self.reconfigure(ONE, TWO, queue=3, queue_timeout=0.5)
        self.assertEqual((self.web.queue.limit, self.web.queue.timeout), (3, 0.5))

    def test_more_connections(self):
        """Who waits has one of them at once."""
        house = House(ONE, max_connections=1)
        house.flow.upstream(house.choice())
        waiting = house.choice()
        house.flow.upstream(waiting)
        self.assertTrue(waiting.waiting)
        house.web.reconfigure(evolve(house.web.config, max_connections=2), LeastConnections)
        self.assertFalse(waiting.waiting)


class DiscoveredTests(SynchronousTestCase):
    def test_besides_those_that_are_named(self):
        house = House(ONE)
        named = house.state(1)
        house.web.discovered((evolve(ONE, weight=9), TWO))
        self.assertEqual(list(house.web.backends), [address(1), address(2)])
        self.assertIs(house.state(1), named)
        self.assertEqual(named.weight, 1)
        found = house.state(2)
        house.web.reconfigure(evolve(house.web.config, backends=(THREE,)), LeastConnections)
        self.assertEqual(set(house.web.backends), {address(1), address(2), address(3)})
        self.assertIs(house.state(2), found)
        house.web.discovered(())
        self.assertEqual(list(house.web.backends), [address(3)])

    def test_all_others(self):
        """Who waits for one of the former goes to one of the new."""
        house = House(ONE, max_connections=1)
        house.flow.upstream(house.choice())
        waiting = house.choice()
        house.flow.upstream(waiting)
        self.assertTrue(waiting.waiting)
        house.web.reconfigure(evolve(house.web.config, backends=(TWO,)), LeastConnections)
        self.assertFalse(waiting.waiting)
        self.assertIs(waiting.attempt.backend, house.state(2))


class RemoveTests(SynchronousTestCase):
    def test_a_cluster(self):
        house = House(ONE, TWO)
        backend = house.state(1)
        self.assertIs(house.registry.get("web"), house.web)
        house.registry.remove("web")
        self.assertIsNone(house.registry.get("web"))
        self.assertEqual((list(house.registry), house.web.backends), ([], {}))
        self.assertTrue(backend.removed)
        self.assertRaises(KeyError, house.registry.remove, "web")


class LeaveFromTests(SynchronousTestCase):
    """The accountant: other addresses, and another share that is kept back."""

    def test_headroom(self):
        house = House(ONE, ports=4, headroom=0.5, max_connections=9)
        leases = [house.accountant.lease(house.state(1)) for _ in range(2)]
        waiting = house.choice()
        house.flow.upstream(waiting)
        self.assertTrue(waiting.waiting)
        house.accountant.leave_from((), 0.5)
        self.assertTrue(waiting.waiting)
        house.accountant.leave_from((), 0.25)
        self.assertFalse(waiting.waiting)
        for lease in leases:
            lease.release()

    def test_addresses(self):
        house = House(ONE)
        house.accountant.leave_from(("10.9.9.1", "10.9.9.2"), 0.0)
        found = house.accountant.budgets(address(1))
        self.assertEqual([page.key.source for page in found], ["10.9.9.1", "10.9.9.2"])


class SlowlyTests(SynchronousTestCase):
    """Who begins with little is known to the balancer once, whatever brought it there."""

    def setUp(self):
        self.house = House(ONE, TWO, balancer=RandomTwoChoices, slow_start=9.0)
        self.web = self.house.web

    def members(self):
        groups = self.web._used.balancer._groups.values()
        return sorted(str(each.address) for group in groups for each in group)

    def test_up_again(self):
        for state in ("down", "up", "down"):
            self.web.set_state(address(1), state)
        self.assertEqual(self.members(), ["10.0.0.2:80"])

    def test_new(self):
        config = self.web.config
        self.web.reconfigure(evolve(config, backends=(ONE, TWO, THREE)), RandomTwoChoices)
        self.assertEqual(self.members(), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"])
        self.web.reconfigure(config, RandomTwoChoices)
        self.assertEqual(self.members(), ["10.0.0.1:80", "10.0.0.2:80"])
        self.house.clock.pump([0.5] * 20)
        self.assertEqual(self.members(), ["10.0.0.1:80", "10.0.0.2:80"])


class CheckLeaseTests(SynchronousTestCase):
    def test_none_of_max_connections(self):
        """A check takes a port, and nobody's place; it is given back once."""
        house = House(ONE, max_connections=1, ports=3)
        backend = house.state(1)
        check = house.accountant.lease(backend, beyond=True)
        (budget,) = house.accountant
        self.assertEqual((budget.free, backend.connections, backend.checking), (2, 1, 1))
        lease = house.accountant.lease(backend)
        self.assertIsInstance(house.accountant.lease(backend), Full)
        check.release()
        self.assertEqual((budget.free, backend.connections, backend.checking), (2, 1, 0))
        self.assertRaises(ValueError, check.release)
        self.assertEqual(backend.checking, 0)
        self.assertIsInstance(house.accountant.lease(backend), Full)
        lease.release()
