"""proxykit.core.accountant: no count goes below zero or leaks, and who was refused is told."""

from __future__ import annotations

import errno

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

from proxykit.core.accountant import TRANSITIONS, Accountant, Lease
from proxykit.core.budget import Use
from proxykit.core.waiting import Full
from proxykit.errors import ProxyError, Retry, Side
from proxykit.interfaces import IAccountant
from proxykit.model import Address, Backend, BudgetKey, PortRange
from tests.core import HERE, House, address, backends


class LeaseTests(SynchronousTestCase):
    def lease(self, place="10.0.0.1:80"):
        self.house = House(Backend(Address.parse(place)))
        (self.backend,) = self.house.web.backends.values()
        return self.house.accountant.lease(self.backend)

    def test_transitions(self):
        """Each use leads where the table says, and nowhere else; a mistake changes nothing."""
        ways = {
            Use.RESERVED: (),
            Use.ACTIVE: ("connected",),
            Use.IDLE: ("connected", "idle"),
            Use.RELEASED: ("release",),
        }
        steps = {
            "connected": Use.ACTIVE,
            "busy": Use.ACTIVE,
            "idle": Use.IDLE,
            "release": Use.RELEASED,
        }
        self.assertEqual(len(TRANSITIONS), len(Use))
        for place in ("10.0.0.1:80", "unix:/run/a"):
            for use, way in ways.items():
                for step, after in steps.items():
                    lease = self.lease(place)
                    for name in way:
                        getattr(lease, name)()
                    self.assertEqual(lease.use, use)
                    if after in TRANSITIONS[use]:
                        getattr(lease, step)()
                    else:
                        error = self.assertRaises(ValueError, getattr(lease, step))
                        self.assertEqual(
                            str(error), f"a lease that is {use.name} cannot become {after.name}"
                        )
                        after = use
                    self.assertEqual(lease.use, after)
                    self.assertEqual(self.backend.connections, after is not Use.RELEASED)

    def test_double_release(self):
        lease = self.lease()
        other = self.house.accountant.lease(self.backend)
        lease.release()
        self.assertRaises(ValueError, lease.release)
        budget = self.house.accountant.budgets(self.backend.address)[0]
        self.assertEqual((self.backend.connections, budget.used), (1, 1))
        other.release()
        self.assertEqual(budget.counts, [0, 0, 0, 2])


class AccountantTests(SynchronousTestCase):
    def test_interface(self):
        self.assertTrue(verifyObject(IAccountant, House().accountant))

    def test_key(self):
        """What the kernel makes unique: the source, and all of the destination."""
        sources = {"10.0.0.1": "10.0.0.100", "10.0.0.2": "10.0.0.100", "::1": "::1"}
        accountant = Accountant(PortRange(1, 10), sources.__getitem__)
        places = ("10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80", "[::1]:80")
        budgets = [accountant.budgets(Address.parse(place))[0] for place in places]
        self.assertEqual(len(set(budgets)), 4)
        self.assertEqual(budgets[3].key, BudgetKey("tcp", "::1", "::1", 80))
        self.assertIs(accountant.budgets(Address.parse("10.0.0.1:80"))[0], budgets[0])
        sources["10.0.0.1"] = "10.0.0.101"
        self.assertIsNot(accountant.budgets(Address.parse("10.0.0.1:80"))[0], budgets[0])
        self.assertEqual(len(accountant.snapshot()), 5)

    def test_out_of_ports(self):
        house = House(*backends(1), ports=50, headroom=0.02)
        leases = [house.accountant.lease(house.state(1)) for _ in range(49)]
        self.assertEqual(
            house.accountant.lease(house.state(1)),
            Full(
                "no source port is left from 10.9.9.9 to 10.0.0.1:80"
                " (49 of 50 in use, 1 kept as headroom)",
                ports=True,
            ),
        )
        leases[0].release()
        self.assertIsInstance(house.accountant.lease(house.state(1)), Lease)

    def test_wanted(self):
        """By another backend that was refused a port, for the two have one destination."""
        house = House(*backends(1), ports=1)
        other = house.cluster("other", *backends(1))
        (state,) = other.backends.values()
        lease = house.accountant.lease(house.state(1))
        self.assertFalse(lease.wanted)
        self.assertIsInstance(house.accountant.lease(house.state(1)), Full)
        self.assertFalse(lease.wanted, "by its own backend alone")
        self.assertIsInstance(house.accountant.lease(state), Full)
        self.assertTrue(lease.wanted)

    def test_wanted_of_a_unix_socket(self):
        """It has no port that anybody could want."""
        house = House(Backend(Address("/run/x", 0)), max_connections=1)
        (state,) = house.web.backends.values()
        lease = house.accountant.lease(state)
        self.assertIsInstance(house.accountant.lease(state), Full)
        self.assertFalse(lease.wanted)

    def test_max_connections(self):
        """Of each backend; it is asked first, so it takes no port."""
        house = House(*backends(1, 1), max_connections=1, ports=1)
        house.accountant.lease(house.state(1))
        self.assertEqual(
            house.accountant.lease(house.state(1)),
            Full("10.0.0.1:80 has all of its 1 connections (max_connections)"),
        )
        self.assertIsInstance(house.accountant.lease(house.state(2)), Lease)

    def test_unix(self):
        """No port and no budget, but a connection."""
        house = House(Backend(Address("/run/a", 0)), max_connections=1, ports=0)
        backend = house.web.backends[Address("/run/a", 0)]
        lease = house.accountant.lease(backend)
        lease.connected()
        self.assertEqual((backend.connections, house.accountant.snapshot()), (1, []))
        self.assertEqual(
            house.accountant.lease(backend),
            Full("unix:/run/a has all of its 1 connections (max_connections)"),
        )
        lease.idle()
        lease.release()
        self.assertEqual(backend.connections, 0)

    def test_no_descriptor_to_ask_for_the_way(self):
        """One that has connections waits for those; one that has none cannot."""
        house = House(*backends(1))
        backend = house.state(1)
        full = [False]

        def source_of(host):
            if full[0]:
                raise OSError(errno.EMFILE, "Too many open files")
            return HERE

        accountant = Accountant(PortRange(1, 10), source_of)
        lease = accountant.lease(backend)
        full[0] = True
        self.assertIn("Too many open files", accountant.lease(backend).what)
        lease.release()
        self.assertRaises(ProxyError, accountant.lease, backend)

    def test_no_way(self):
        for cause, why in (
            (OSError(errno.ENETUNREACH, "Network is unreachable"), "Network is unreachable"),
            (OSError("no route"), "no route"),
        ):

            def source_of(host, cause=cause):
                raise cause

            house = House(*backends(1))
            accountant = Accountant(PortRange(1, 10), source_of)
            error = self.assertRaises(ProxyError, accountant.lease, house.state(1))
            self.assertEqual(error.message, f"no way to 10.0.0.1:80: {why}")
            self.assertEqual(
                (error.side, error.retry, error.status), (Side.UPSTREAM, Retry.ALWAYS, 502)
            )
            self.assertIs(error.__cause__, cause)
            self.assertEqual((house.state(1).connections, accountant.snapshot()), (0, []))

    def test_keep_only(self):
        house = House(*backends(1, 1, 1))
        lease = house.accountant.lease(house.state(1))
        house.accountant.lease(house.state(2)).release()
        house.accountant.lease(house.state(3)).release()
        for keep, left in (
            ({address(3)}, ["10.0.0.1:80", "10.0.0.3:80"]),
            (set(), ["10.0.0.1:80"]),
        ):
            house.accountant.keep_only(keep)
            shown = house.accountant.snapshot()
            self.assertEqual([page["destination"] for page in shown], left)
        lease.release()
        house.accountant.keep_only(set())
        self.assertEqual(house.accountant.snapshot(), [])


class RefusedTests(SynchronousTestCase):
    """A port that comes free is told to all that were refused one, in whichever cluster."""

    def setUp(self):
        self.house = House(*backends(1), ports=1)
        self.lease = self.house.accountant.lease
        self.first = self.house.state(1)
        clusters = [self.house.cluster(name, *backends(1)) for name in ("b", "c", "d")]
        self.others = [cluster.backends[address(1)] for cluster in clusters]

    def refuse(self, *refused):
        for backend in refused:
            got = self.lease(backend)
            self.assertIsInstance(got, Full)
            backend.cluster.block(backend, got)

    def test_all_are_woken(self):
        held = self.lease(self.first)
        self.refuse(self.first, *self.others)
        held.release()
        for backend in (self.first, *self.others):
            self.assertIsNone(backend.full)
            self.assertEqual(backend.tier.open, 1)

    def test_once(self):
        held = self.lease(self.first)
        self.refuse(*self.others)
        held.release()
        self.others[0].cluster.block(self.others[0], Full("for another reason"))
        self.lease(self.first).release()
        self.assertIsNotNone(self.others[0].full)

    def wait(self, backend, served):
        """Stand in line for the one port."""

        def serve():
            got = self.lease(backend)
            if isinstance(got, Full):
                backend.cluster.block(backend, got)
                return False
            ticket.leave()
            served.append((backend.cluster.config.name, got))
            return True

        ticket = backend.cluster.queue.join(serve, lambda: None)

    def test_clusters_take_turns(self):
        """Three that share an address are all served, however long the others' queues are."""
        served = []
        held = self.lease(self.first)
        self.refuse(*self.others)
        for backend in self.others * 30:
            self.wait(backend, served)
        for _ in range(30):
            held.release()
            held = served[-1][1]
        names = [name for name, _ in served]
        for name in "bcd":
            self.assertGreaterEqual(names.count(name), 5, names)


class BookMachine(RuleBasedStateMachine):
    """Leases, connects, idles, failures, closes and crashes in any order; the books stay right.

    Two clusters share an address, one backend is on a unix socket.
    """

    places = (Address("10.0.0.1", 80), Address("10.0.0.2", 80), Address("/run/a", 0))

    def __init__(self):
        super().__init__()
        pair = tuple(Backend(place) for place in self.places)
        self.house = House(*pair, ports=5, headroom=0.2, max_connections=3)
        other = self.house.cluster("other", *pair, max_connections=3)
        self.states = [*self.house.web.backends.values(), *other.backends.values()]
        self.owners = [[] for _ in range(3)]  # of (lease, its backend)

    @rule(backend=st.integers(0, 5), owner=st.integers(0, 2))
    def lease(self, backend, owner):
        backend = self.states[backend]
        got = self.house.accountant.lease(backend)
        at_once = self.of(backend=backend)
        sharing = [] if backend.address.is_unix else self.of(place=backend.address)
        if len(at_once) >= 3 or len(sharing) >= 4:
            assert isinstance(got, Full)
            backend.cluster.block(backend, got)
        else:
            self.owners[owner].append((got, backend))

    @rule(
        owner=st.integers(0, 2),
        number=st.integers(0, 20),
        step=st.sampled_from(("connected", "idle", "busy")),
    )
    def step(self, owner, number, step):
        held = self.owners[owner]
        if held:
            lease, _ = held[number % len(held)]
            to = {"connected": Use.ACTIVE, "busy": Use.ACTIVE, "idle": Use.IDLE}[step]
            allowed = to in TRANSITIONS[lease.use]
            try:
                getattr(lease, step)()
            except ValueError:
                assert not allowed
            else:
                assert allowed

    @rule(owner=st.integers(0, 2), number=st.integers(0, 20))
    def close(self, owner, number):
        """A failed connect and a closed socket alike."""
        held = self.owners[owner]
        if held:
            lease, _ = held.pop(number % len(held))
            lease.release()
            try:
                lease.release()
            except ValueError:
                return
            raise AssertionError("released twice")

    @rule(owner=st.integers(0, 2))
    def crash(self, owner):
        """An owner drops everything."""
        held, self.owners[owner] = self.owners[owner], []
        for lease, _ in held:
            lease.release()

    @rule(keep=st.booleans())
    def keep_only(self, keep):
        self.house.accountant.keep_only({self.places[0]} if keep else set())

    def of(self, backend=None, place=None):
        """The live leases of one backend, or of all at one address."""
        return [
            lease
            for held in self.owners
            for lease, owner in held
            if owner is backend or owner.address == place
        ]

    @invariant()
    def books(self):
        pages = {page["destination"]: page for page in self.house.accountant.snapshot()}
        for place in self.places:
            live = self.of(place=place)
            page = pages.get(str(place))
            if page is None:
                assert place.is_unix or not live
                continue
            for name in ("reserved", "active", "idle"):
                assert page[name] == sum(1 for lease in live if lease.use is Use[name.upper()])
            assert page["free"] == 4 - len(live)
            assert page["free"] >= 0
        for backend in self.states:
            assert backend.connections == len(self.of(backend=backend))

    @invariant()
    def nobody_is_forgotten(self):
        """Who is blocked has none free, or stands among those who hear of the next."""
        for backend in self.states:
            if backend.full is not None:
                full = len(self.of(backend=backend)) >= 3
                assert full or len(self.of(place=backend.address)) >= 4

    def teardown(self):
        for owner in range(3):
            self.crash(owner)
        for page in self.house.accountant.snapshot():
            assert page["free"] == 4
        assert all(not backend.connections for backend in self.states)
        assert all(backend.full is None for backend in self.states)


class BookMachineTests(SynchronousTestCase):
    def test_all(self):
        run_state_machine_as_test(
            BookMachine,
            settings=settings(deadline=None, max_examples=150, stateful_step_count=50),
        )
