"""Two hundred source ports, and more clients than that, at L4.

Each client stays, so each has a port, until all that may be had are out; who comes then is refused
in so many words, and nobody hears the kernel. Where there are more addresses, at either end, there
are as many times more ports.
"""

from __future__ import annotations

import re
import socket
from collections import Counter

from proxykit.lab.bench import Sockets
from tests.interop import ports_case, programs
from tests.interop.ports_case import BACKEND, LIMIT, SIZE, SOURCE, Held

#: Nobody waits in the queue.
AT_ONCE = "queue = 0"
NEAR = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
NEAR6 = ("fd00::1", "fd00::2")
#: Linux's; Python has no name for it.
IP_LOCAL_PORT_RANGE = 51


def addresses(*sources: str) -> str:
    """The setting."""
    return f"addresses = {list(sources)}"


class CapacityTestCase(ports_case.PortsTestCase):
    """How many clients are served at the same time."""

    async def hold_more_than(self, count: int, *options: str, more: int = 50) -> Held:
        """So many are, and some more are refused."""
        held = await self.hold(count + more, *options)
        outcomes = held.outcomes
        self.assertEqual(outcomes.pop("ECONNRESET"), more, outcomes)
        self.assertEqual(outcomes.total(), count)
        self.assertLessEqual(outcomes.keys(), {"200", "served"})
        self.assert_no_word_of_the_kernel()
        return held

    async def refused(self, way: str = f"from {SOURCE} to {BACKEND}", used: int = LIMIT) -> None:
        """The log says why."""
        size = used + 4
        why = f"no source port is left {way} ({used} of {size} in use, 4 kept as headroom)"
        await self.service.wait_for(re.escape(why))

    def assert_even(self, found: Sockets, sources: int, at: int) -> None:
        """There are so many sockets, and each source has as many as any other."""
        self.assertEqual(len(found), sources * at)
        each = Counter(socket.source for socket in found)
        self.assertEqual(list(each.values()), [at] * sources, each)


class OneBackendTests(CapacityTestCase):
    """From one address to one."""

    async def test_queue(self) -> None:
        """Whom there is no port for waits, and is refused then."""
        await self.start_network()
        await self.start_backends()
        await self.start_proxy("tcp", cluster="queue_timeout = 1")
        held = await self.hold_more_than(LIMIT, more=400 - LIMIT)
        self.assertEqual(await self.established(), LIMIT)
        shortest, *_, longest = held.seconds("ECONNRESET")
        self.assertGreaterEqual(shortest, 0.9)
        self.assertLess(longest, 2)
        await self.refused()

    async def test_no_queue(self) -> None:
        """It is refused at once."""
        await self.start_network()
        await self.start_backends()
        await self.start_proxy("tcp", cluster=AT_ONCE)
        held = await self.hold_more_than(LIMIT, more=400 - LIMIT)
        self.assertLess(held.seconds("ECONNRESET")[-1], 1)
        await self.refused()

    async def test_sni(self) -> None:
        await self.start_network()
        await self.start_backends(tls=True)
        await self.start_proxy("sni")
        held = await self.hold_more_than(LIMIT, "--send", "tls", more=400 - LIMIT)
        self.assertEqual(held.outcomes["served"], LIMIT)
        self.assertEqual(await self.established(), LIMIT)
        self.assertLess(held.seconds("ECONNRESET")[-1], 2)
        await self.refused()

    async def test_more_ports(self) -> None:
        """The kernel's range is set anew: it holds without a new start."""
        await self.start_network()
        await self.start_backends()
        await self.start_proxy("tcp", cluster=AT_ONCE)
        await self.hold_more_than(LIMIT)
        await self.network.near.set("ipv4/ip_local_port_range", "40000 40299")
        (budget,) = await self.book()
        self.assertEqual((budget["size"], budget["free"]), (300, 294 - LIMIT))
        await self.hold_more_than(294 - LIMIT)

    async def test_some_ports_only(self) -> None:
        """A part of the kernel's range, to its last port, and none outside."""
        with socket.socket() as probe:
            try:
                probe.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, 0)
            except OSError:
                raise programs.missing("no IP_LOCAL_PORT_RANGE in this kernel") from None
        await self.start_network()
        await self.start_backends()
        sources = 'port_range = "40010-40029"\nheadroom = 0'
        await self.start_proxy("tcp", sources=sources, cluster=AT_ONCE)
        await self.hold_more_than(20)
        found = await self.sockets()
        self.assertEqual(sorted(each.port for each in found), [*range(40010, 40030)])
        (budget,) = await self.book()
        self.assertEqual((budget["size"], budget["active"], budget["free"]), (20, 20, 0))


class ProductTests(CapacityTestCase):
    """Sources times backends times their ports."""

    async def test_two_sources(self) -> None:
        """Both are used as much."""
        await self.start_network(near=NEAR)
        await self.start_backends()
        await self.start_proxy("tcp", sources=addresses(*NEAR[:2]), cluster=AT_ONCE)
        child = self.start_clients("hold", "--clients", "100")
        await child.wait_for(r"^\[")
        half = Counter(each.source for each in await self.sockets())
        self.assertEqual(half, dict.fromkeys(NEAR[:2], 50))
        await self.hold_more_than(2 * LIMIT - 100)
        self.assert_even(await self.sockets(), 2, LIMIT)
        await self.service.wait_for(
            rf"no source port is left from {NEAR[0]}, {NEAR[1]} to {BACKEND} \(392 of 400 in use"
        )

    async def test_two_backends(self) -> None:
        """The same port is used once to each."""
        backends = "10.0.1.1:80", "10.0.1.2:80"
        await self.start_network(far=("10.0.1.1", "10.0.1.2"))
        await self.start_backends(*backends)
        await self.start_proxy("tcp", *backends, cluster=AT_ONCE)
        await self.hold_more_than(2 * LIMIT)
        for backend in backends:
            self.assertEqual(await self.established(backend), LIMIT)

    async def test_everything(self) -> None:
        """Three sources, two backends, two ports of each."""
        far = "10.0.1.1", "10.0.1.2"
        backends = [f"{host}:{port}" for host in far for port in (80, 81)]
        await self.start_network(near=NEAR, far=far, ports=(40000, 40049))
        await self.start_backends(*backends)
        await self.start_proxy("tcp", *backends, sources=addresses(*NEAR), cluster=AT_ONCE)
        await self.hold_more_than(3 * 4 * 49)
        for backend in backends:
            self.assert_even(await self.sockets(backend), 3, 49)

    async def test_ipv6(self) -> None:
        """To each backend go the sources of its family; here as well one port leads to many."""
        far = "fd00::101", "fd00::102"
        backends = "[fd00::101]:80", "[fd00::102]:80", BACKEND
        near = (*NEAR6, SOURCE)
        await self.start_network(near=near, far=(*far, "10.0.1.1"), ports=(40000, 40049))
        await self.start_backends(*backends)
        await self.start_proxy("tcp", *backends, sources=addresses(*near), cluster=AT_ONCE)
        await self.hold_more_than(2 * 2 * 49 + 49)
        for backend in backends[:2]:
            found = await self.sockets(backend)
            self.assertEqual({each.source for each in found}, {*NEAR6})
            self.assert_even(found, 2, 49)
        self.assert_even(await self.sockets(BACKEND), 1, 49)

    async def test_plain_binding(self) -> None:
        """On a reactor of Twisted's own a port is one connection's, wherever that leads."""
        backends = "10.0.1.1:80", "10.0.1.2:80"
        await self.start_network(near=NEAR, far=("10.0.1.1", "10.0.1.2"))
        await self.start_backends(*backends)
        await self.start_proxy(
            "tcp",
            *backends,
            sources=addresses(*NEAR[:2]),
            cluster=AT_ONCE,
            twistd=("--reactor=epoll",),
        )
        await self.hold_more_than(2 * LIMIT)
        self.assert_even(await self.sockets(*backends), 2, LIMIT)
        said = re.findall("each port of an address is good for one connection", self.service.output)
        self.assertEqual(len(said), 1)
        budgets = {each["source"]: each for each in await self.book()}
        self.assertEqual(budgets.keys(), {*NEAR[:2]})
        for budget in budgets.values():
            self.assertEqual((budget["destination"], budget["active"]), ("*", LIMIT))


class OthersTests(CapacityTestCase):
    """Another program has some of the ports."""

    async def test_known(self) -> None:
        """They are counted before the first connection is made, without being asked for."""
        await self.start_network()
        await self.start_backends()
        await self.eat(100)
        await self.start_proxy("tcp", cluster=AT_ONCE)
        await self.hold_more_than(LIMIT - 100)
        (budget,) = await self.book()
        uses = budget["foreign"], budget["active"], budget["free"]
        self.assertEqual(uses, (100, LIMIT - 100, 0))
        await self.service.wait_for(r"96 of 200 in use, 100 of other processes, 4 kept")
        self.assertNotIn("although by the book", self.service.output)

    async def corrected(self, way: str = f"from {SOURCE} to {BACKEND}") -> None:
        """The log says that the kernel has said no."""
        way = re.escape(way)
        await self.service.wait_for(f"no source port left {way}, although by the book there are")

    async def test_learnt(self) -> None:
        """The kernel says no first: there are as many as it gives, and the book is corrected."""
        await self.start_network()
        await self.start_backends()
        await self.start_proxy("tcp", cluster=AT_ONCE)
        await self.eat(150)
        # By the book, which has not been compared yet, four would be kept back.
        await self.hold_more_than(SIZE - 150)
        await self.corrected()
        (budget,) = await self.book()
        self.assertEqual((budget["foreign"], budget["active"], budget["free"]), (150, 50, 0))

    async def test_next_source(self) -> None:
        """The kernel says no to one source, so it is the other one's turn: nobody notices."""
        await self.start_network(near=NEAR)
        await self.start_backends()
        await self.start_proxy("tcp", sources=addresses(*NEAR[:2]), cluster=AT_ONCE)
        await self.eat(190)
        held = await self.hold(100)
        self.assertEqual(held.outcomes, {"200": 100})
        self.assert_no_word_of_the_kernel()
        await self.corrected()
        budgets = {each["source"]: each["active"] for each in await self.book()}
        self.assertEqual(budgets, {NEAR[0]: 10, NEAR[1]: 90})

    async def test_next_source_after_plain_binding(self) -> None:
        """The same where the kernel says it otherwise, and earlier."""
        await self.start_network(near=NEAR)
        await self.start_backends()
        sources, twistd = addresses(*NEAR[:2]), ("--reactor=epoll",)
        await self.start_proxy("tcp", sources=sources, cluster=AT_ONCE, twistd=twistd)
        await self.eat(190)
        held = await self.hold(100)
        self.assertEqual(held.outcomes, {"200": 100})
        self.assert_no_word_of_the_kernel()
        await self.corrected(f"from {SOURCE}")
        budgets = {each["source"]: each["active"] for each in await self.book()}
        self.assertEqual(budgets, {NEAR[0]: 10, NEAR[1]: 90})

    async def test_next_backend(self) -> None:
        """The same of a backend."""
        backends = "10.0.1.1:80", "10.0.1.2:80"
        await self.start_network(far=("10.0.1.1", "10.0.1.2"))
        await self.start_backends(*backends)
        await self.start_proxy("tcp", *backends, cluster=AT_ONCE)
        await self.eat(190)
        held = await self.hold(100)
        self.assertEqual(held.outcomes, {"200": 100})
        self.assert_no_word_of_the_kernel()
        await self.corrected()
        self.assertEqual(await self.established(backends[1]), 90)
