"""proxykit.core.accountant: several sources, plain binding, and what the kernel says of it all."""

from __future__ import annotations

import itertools

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.accountant import Accountant, Lease
from proxykit.core.waiting import Full
from proxykit.model import Address, Backend, BudgetKey, PortRange
from tests.core import HERE, House, address, backends

A, B, SIX = "10.1.0.1", "10.1.0.2", "fd00::1"


class SourcesTestCase(SynchronousTestCase):
    def use(self, *config, **settings):
        """A house with two sources, of three ports each, unless a test wants others."""
        settings = {"addresses": (A, B), "ports": 3} | settings
        self.house = House(*(config or backends(1)), **settings)
        self.accountant = self.house.accountant
        self.first = next(iter(self.house.web.backends.values()))

    def lease(self, backend=None, port=0):
        got = self.accountant.lease(backend or self.first)
        if isinstance(got, Lease) and port:
            got.named(port)
        return got

    def refuse(self, backend):
        """As a cluster finds out that one of its backends is full."""
        got = self.lease(backend)
        self.assertIsInstance(got, Full)
        backend.cluster.block(backend, got)
        return got

    def page(self, source, place=None):
        (found,) = (
            each
            for each in self.accountant
            if each.key.source == source and (place is None or each.key.destination == place)
        )
        return found


class PagesTests(SourcesTestCase):
    def test_of_its_family(self):
        """One for each address; the kernel chooses for a family that has none."""
        for addresses, four, six in (
            ((), [HERE], [HERE]),
            ((A,), [A], [HERE]),
            ((A, SIX, B), [A, B], [SIX]),
            ((SIX,), [HERE], [SIX]),
        ):
            accountant = Accountant(PortRange(1, 3), lambda host: HERE, addresses=addresses)
            for place, sources in (("10.0.0.1:80", four), ("[fd00::9]:80", six)):
                where = Address.parse(place)
                self.assertEqual(
                    [page.key for page in accountant.budgets(where)],
                    [BudgetKey("tcp", each, where.host, 80) for each in sources],
                )

    def test_no_way_is_asked_for(self):
        """Where the source is said there is no need."""

        def source_of(host):
            raise AssertionError("nobody has asked for that")

        house = House(*backends(1))
        accountant = Accountant(PortRange(1, 3), source_of, addresses=(A,))
        self.assertEqual(accountant.lease(house.state(1)).source, A)

    def test_evenly(self):
        self.use(addresses=(A, B, "10.1.0.3"), ports=100)
        for count in range(1, 31):
            self.lease()
            used = [page.used for page in self.accountant]
            self.assertLessEqual(max(used) - min(used), 1)
            self.assertEqual(sum(used), count)

    def test_the_most_free_first(self):
        """Whoever has taken the others."""
        self.use(ports=10)
        pages = [*self.accountant.budgets(self.first.address)]
        pages[0].begin_reading()
        for port in range(1, 5):
            pages[0].saw(port, False)
        self.accountant.read(pages[:1], 0)
        self.assertEqual([self.lease().source for _ in range(4)], [B] * 4)
        self.assertEqual(sorted(self.lease().source for _ in range(4)), [A, A, B, B])

    def test_the_product(self):
        """Sources, ports and destinations."""
        for late, capacity in ((True, 2 * 3 * 2), (False, 2 * 3)):
            self.use(*backends(1, 1), late=late)
            got = [self.lease(self.house.state(1 + number % 2)) for number in range(13)]
            self.assertEqual(sum(isinstance(each, Lease) for each in got), capacity)

    def test_the_kernel_changes_its_mind(self):
        """What is out stays on the page that it is on."""
        self.use(addresses=())
        first = self.lease()
        self.house.here = "10.9.9.10"
        second = self.lease()
        self.assertEqual((self.page(HERE).used, self.page("10.9.9.10").used), (1, 1))
        self.house.here = HERE
        self.lease()
        self.assertEqual((self.page(HERE).used, self.page("10.9.9.10").used), (2, 1))
        first.release()
        second.release()
        self.assertEqual((self.page(HERE).used, self.page("10.9.9.10").used), (1, 0))
        self.assertEqual((self.page(HERE).free, self.page("10.9.9.10").free), (2, 3))


class RefusedTests(SourcesTestCase):
    """When the ports of all sources are gone."""

    def test_what_there_is_none_of(self):
        self.use(ports=4, headroom=0.25)
        for _ in range(6):
            self.lease()
        self.assertEqual(
            self.lease(),
            Full(
                "no source port is left from 10.1.0.1, 10.1.0.2 to 10.0.0.1:80"
                " (6 of 8 in use, 2 kept as headroom)",
                ports=True,
            ),
        )

    def test_any_will_do(self):
        """Whichever source has one again, and however it came by it."""

        def released(page):
            next(each for each in self.leases if each.source == page.key.source).release()

        def over(page):
            """The minute of one that rested."""
            lease = next(each for each in self.leases if each.source == page.key.source)
            lease.closed_by = "proxy"
            lease.release()
            self.refuse(self.first)  # A connection came free, but no port.
            for _ in range(59):
                self.accountant.tick()
            self.assertIsNotNone(self.first.full)
            self.accountant.tick()

        def shown(page):
            """Somebody else has left it."""
            page.begin_reading()
            self.accountant.read([page], 0)

        def more(page):
            self.accountant.measure(PortRange(1, 9), 0)

        for how in (released, over, shown, more):
            for source in (A, B):
                self.use()
                pages = self.accountant.budgets(self.first.address)
                for page in pages:
                    page.begin_reading()
                    page.saw(4, False)
                self.accountant.read(list(pages), 0)
                self.leases = [self.lease(port=number) for number in (1, 2, 1, 2)]
                self.refuse(self.first)
                how(self.page(source))
                self.assertIsNone(self.first.full, how.__name__)
                self.assertIsInstance(self.lease(), Lease)

    def test_nothing_new(self):
        """Nobody is woken for a second, or a reading, that brings none."""
        self.use()
        leases = [self.lease(port=number // 2 + 1) for number in range(6)]
        leases[0].closed_by = "proxy"
        leases[0].release()
        self.refuse(self.first)  # A connection came free, but no port.
        self.accountant.tick()
        for page in self.accountant:
            page.begin_reading()
            page.saw(1, True)
        self.accountant.read([*self.accountant], 0)
        self.accountant.measure(PortRange(1, 3), 0)
        self.assertIsNotNone(self.first.full)

    def test_wanted(self):
        """On the page of each source, as long as somebody else waits for one."""
        self.use(ports=1)
        (other,) = self.house.cluster("other", *backends(1)).backends.values()
        leases = [self.lease(), self.lease()]
        self.refuse(other)
        self.assertEqual([each.wanted for each in leases], [True, True])
        leases.pop().release()
        self.lease(other)
        self.refuse(other)
        self.assertTrue(leases[0].wanted)
        leases.pop().release()
        mine = self.lease()
        self.refuse(self.first)
        self.assertFalse(mine.wanted, "by its own backend alone")


class PlainTests(SourcesTestCase):
    """After a plain bind a port is one connection's alone, wherever that leads."""

    def test_pages(self):
        self.use(*backends(1, 1), late=False)
        for number in (1, 2):
            place = self.house.state(number).address
            keys = [page.key for page in self.accountant.budgets(place)]
            self.assertEqual(keys, [BudgetKey("tcp", A), BudgetKey("tcp", B)])
        self.assertEqual(len(self.accountant.snapshot()), 2)

    def test_not_bound(self):
        """Where the kernel chooses there is no bind, so nothing is coarser than else."""
        self.use(late=False, addresses=(SIX,))
        (page,) = self.accountant.budgets(self.first.address)
        self.assertEqual(page.key, BudgetKey("tcp", HERE, "10.0.0.1", 80))
        self.assertEqual(self.lease().source, "")

    def test_other_destinations(self):
        """Take the ports away, and give them back."""
        self.use(*backends(1, 1), late=False, ports=1)
        second = self.house.state(2)
        held = [self.lease(second), self.lease(second)]
        self.assertEqual(sorted(each.source for each in held), [A, B])
        self.assertEqual(
            self.refuse(self.first).what,
            "no source port is left from 10.1.0.1, 10.1.0.2 (2 of 2 in use, 0 kept as headroom)",
        )
        held[0].release()
        self.assertIsNone(self.first.full)
        self.assertEqual(self.lease().source, held[0].source)


class LeaseTests(SourcesTestCase):
    def test_source(self):
        """Where its socket is to be bound to, and where it leads."""
        for config, settings, source, way in (
            ((), {"addresses": (A,)}, A, "from 10.1.0.1 to 10.0.0.1:80"),
            ((), {"addresses": (A,), "late": False}, A, "from 10.1.0.1"),
            ((), {"addresses": ()}, "", "from 10.9.9.9 to 10.0.0.1:80"),
            ([Backend(Address("/run/a", 0))], {}, "", "to unix:/run/a"),
        ):
            self.use(*config, **settings)
            lease = self.lease()
            self.assertEqual((lease.source, lease.way), (source, way))

    def test_port(self):
        self.use()
        lease = self.lease()
        self.assertEqual(lease.port, 0)
        lease.named(2)
        page = self.page(lease.source)
        self.assertEqual((lease.port, page.ports), (2, {2}))
        lease.release()
        self.assertEqual(page.ports, set())

    def test_port_of_a_unix_socket(self):
        self.use(Backend(Address("/run/a", 0)))
        lease = self.lease(port=7)
        self.assertEqual(lease.port, 7)
        lease.denied("it has none")
        lease.release()
        self.assertEqual([*self.accountant], [])

    def test_closed_first(self):
        """Counted where it is known; the port rests where that was the proxy."""
        for config, settings in (
            (backends(1), {}),
            (backends(1), {"late": False}),
            ([Backend(Address("/run/a", 0))], {}),
        ):
            self.use(*config, ports=10, **settings)
            ports = itertools.count(1)
            for by, times in (("proxy", 3), ("backend", 2), ("reset", 1), ("", 4)):
                for _ in range(times):
                    lease = self.lease(port=next(ports))
                    lease.closed_by = by
                    lease.release()
            shown = self.first.snapshot()
            self.assertEqual(shown["closed_first"], {"proxy": 3, "backend": 2, "reset": 1})
            self.assertEqual(shown["connections"], 0)
            if not self.first.address.is_unix:
                pages = self.accountant.snapshot()
                self.assertEqual(sum(page["time_wait"] for page in pages), 3)
                self.assertEqual(sum(page["free"] for page in pages), 20 - 3)

    def test_reset_without_a_port(self):
        """A connect that failed before it had one leaves nothing behind."""
        self.use()
        lease = self.lease()
        lease.closed_by = "proxy"
        lease.release()
        self.assertEqual([page.time_wait for page in self.accountant], [0, 0])


class DeniedTests(SourcesTestCase):
    """The kernel has none, whatever the book says."""

    def setUp(self):
        self.use()
        self.told = []
        self.accountant.on_denied = lambda budget, why: self.told.append((budget.key.source, why))

    def deny(self):
        lease = self.lease()
        lease.denied("none is left")
        lease.release()
        return lease.source

    def test_next_source(self):
        """The book has none either then, and the other source is as it was."""
        first = self.deny()
        self.assertEqual(self.told, [(first, "none is left")])
        self.assertEqual((self.page(first).free, self.page(first).unseen), (0, 3))
        others = [self.lease().source for _ in range(3)]
        self.assertEqual({first, *others}, {A, B})
        self.assertEqual(others, others[:1] * 3)
        self.assertIn("3 refused by the kernel", self.refuse(self.first).what)

    def test_nobody_listens(self):
        self.accountant.on_denied = None
        self.deny()
        self.deny()
        self.assertIsInstance(self.lease(), Full)

    def test_nobody_is_woken_for_it(self):
        """Who waits for a port of a source hears nothing when that is denied to another."""
        self.use(ports=1)
        (other,) = self.house.cluster("other", *backends(1)).backends.values()
        leases = [self.lease(), self.lease()]
        self.refuse(other)
        for lease in leases:
            lease.denied("none is left")
            lease.release()
        self.assertIsNotNone(other.full)

    def refused_everywhere(self):
        self.deny()
        self.deny()
        self.refuse(self.first)

    def test_next_second(self):
        """It is asked again only where nobody reads what the kernel shows."""
        self.refused_everywhere()
        self.accountant.tick()
        self.assertIsNotNone(self.first.full)
        self.accountant.tick(blind=True)
        self.assertIsNone(self.first.full)
        self.assertEqual([page.free for page in self.accountant], [1, 1])

    def test_next_reading(self):
        """Then it is, once."""
        self.refused_everywhere()
        page = self.page(B)
        page.begin_reading()
        self.accountant.read([page], 0)
        self.assertIsNone(self.first.full)
        self.assertEqual((self.page(A).free, page.free), (0, 1))
        self.assertEqual(self.lease().source, B)
        self.refuse(self.first)


class YoungTests(SourcesTestCase):
    """Where what rests is given out again, after a second."""

    def setUp(self):
        self.use(ports=1, reuse=1)
        for lease in (self.lease(port=1), self.lease(port=1)):
            lease.closed_by = "proxy"
            lease.release()
            self.house.clock.advance(0.25)

    def test_had_when_it_is_asked_for(self):
        """No second has to end for that."""
        self.refuse(self.first)
        self.house.clock.advance(0.5)
        self.assertEqual(self.lease().source, A)
        self.refuse(self.first)
        self.house.clock.advance(0.25)
        self.assertEqual(self.lease().source, B)

    def test_who_waits_is_told(self):
        """At the end of a second, for nobody else looks."""
        self.refuse(self.first)
        self.house.clock.advance(0.5)
        self.assertIsNotNone(self.first.full)
        self.accountant.tick()
        self.assertIsNone(self.first.full)
        self.assertEqual([page.free for page in self.accountant], [1, 0])

    def test_never_given_out_again(self):
        self.use(ports=1)
        lease = self.lease(port=1)
        lease.closed_by = "proxy"
        self.lease(port=1)
        lease.release()
        self.house.clock.advance(5)
        self.accountant.tick()
        self.refuse(self.first)


class KernelTests(SourcesTestCase):
    """What the kernel tells of itself."""

    def test_measure(self):
        self.use(ports=10, headroom=0.2)
        self.lease()
        pages = self.accountant.budgets(self.first.address)
        for ports, reuse, size, reuses in (
            (PortRange(1, 20), 0, 20, False),
            (PortRange(1, 20, 10), 0, 10, False),
            (PortRange(1, 20, 10), 1, 10, True),
            (PortRange(1, 10), 1, 10, True),
        ):
            self.accountant.measure(ports, reuse)
            for page in pages:
                self.assertEqual((page.size, page.reuses), (size, reuses))
                self.assertEqual(page.free, int(size * 0.8) - page.used)
        # And whatever is opened from now on.
        (page,) = self.accountant.budgets(Address("fd00::9", 80))
        self.assertEqual((page.size, page.reuses), (10, True))

    def test_nothing_has_changed(self):
        """Nothing is done then."""
        self.use(ports=10)
        (page, _) = self.accountant.budgets(self.first.address)
        page.measure(5, 0.0, 0)
        self.accountant.measure(PortRange(1, 10), 0)
        self.assertEqual(page.size, 5)

    def test_tick(self):
        self.use(ports=10)
        leases = [self.lease(port=1) for _ in range(2)]
        for lease in leases:
            lease.closed_by = "proxy"
            self.accountant.tick()
            lease.release()
        self.assertEqual(self.accountant.second, 2)
        for second, resting in ((60, 2), (61, 1), (62, 0)):
            while self.accountant.second < second:
                self.accountant.tick()
            self.assertEqual(sum(page.time_wait for page in self.accountant), resting)

    def test_read(self):
        """Only what was read; ports that are listened on are nobody's."""
        self.use(ports=10)
        one, other = self.accountant.budgets(self.first.address)
        for page in (one, other):
            page.begin_reading()
            page.saw(5, False)
        self.accountant.read([one], 2)
        self.assertEqual((one.foreign, one.free, other.foreign, other.free), (3, 7, 0, 10))


class KeepOnlyTests(SourcesTestCase):
    def shown(self):
        return sorted((page.key.source, page.key.destination) for page in self.accountant)

    def test_destinations(self):
        self.use(*backends(1, 1))
        leases = [self.lease(self.house.state(number)) for number in (1, 2)]
        self.accountant.keep_only({address(1)})
        (used,) = [each for each in leases if each.way.endswith("10.0.0.2:80")]
        self.assertEqual(
            self.shown(), [(A, "10.0.0.1"), (used.source, "10.0.0.2"), (B, "10.0.0.1")]
        )

    def test_after_a_plain_bind(self):
        """They lead anywhere, and are kept as long as connections are to leave from there."""
        self.use(late=False)
        lease = self.lease()
        used = lease.source
        self.accountant.keep_only(set())
        self.assertEqual(self.shown(), [(A, ""), (B, "")])
        self.accountant.addresses = ()
        self.accountant.keep_only({address(1)})
        self.assertEqual(self.shown(), [(used, "")])
        lease.release()
        self.accountant.keep_only({address(1)})
        self.assertEqual(self.shown(), [])

    def test_opened_again(self):
        """A backend that comes back is not left with a page that is in no book."""
        for settings in ({}, {"addresses": ()}, {"late": False}):
            self.use(**settings)
            self.lease().release()
            before = self.first.pages
            bound, self.accountant.addresses = self.accountant.addresses, ()
            self.accountant.keep_only(set())
            self.accountant.addresses = bound
            self.assertTrue(all(page.dropped for page in before))
            self.assertEqual([*self.accountant], [])
            self.lease()
            self.assertEqual([page.used for page in before], [0] * len(before))
            self.assertEqual(sum(page.used for page in self.accountant), 1)
            self.assertFalse(any(page.dropped for page in self.first.pages))
