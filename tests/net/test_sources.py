"""Where connections leave from, and who closes them first: the lease says what the kernel does."""

from __future__ import annotations

import errno
import random
import socket
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.trial.unittest import SkipTest, TestCase
from zope.interface import implementer

from proxykit.core.choice import Attempt
from proxykit.errors import ProxyError
from proxykit.model import Address, PortRange
from proxykit.net import kernel
from tests.net.test_connector import Bench, Failing, Plain
from tests.sockets import HOST, TIMEOUT, End, reactor, start_backend, turns, until

#: Whether the reactor under test is ours: it picks ports late, and knows who closes first.
OURS = getattr(reactor, "binds_late", False)
#: Kept for documentation (RFC 5737), so nobody has it.
NOT_HERE = "203.0.113.9"


def somewhere() -> str:
    """An address of loopback where hardly anybody has been before."""
    return f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(2, 254)}"


def window(size: int) -> PortRange:
    """Some ports in a row that the kernel would pick.

    :raises SkipTest: the kernel does not narrow its range for one socket.
    """
    whole = kernel.port_range()
    try:
        with socket.socket() as probe:
            kernel.narrow(probe, whole)
    except OSError as problem:
        raise SkipTest(f"this kernel has no IP_LOCAL_PORT_RANGE: {problem}") from problem
    low = random.randint(whole.low, whole.high - size)
    return PortRange(low, low + size - 1)


def free_window(size: int) -> PortRange:
    """Such as nobody has at the moment, whatever for."""
    for _ in range(300):
        ports = window(size)
        held = [socket.socket() for _ in range(size)]
        try:
            for number, each in enumerate(held):
                each.bind(("", ports.low + number))
        except OSError:
            continue
        finally:
            for each in held:
                each.close()
        return ports
    raise SkipTest("no ports are free in a row")


class SourcesBench(Bench):
    """A flow and a connector that leave from some addresses."""

    def __init__(
        self, test: TestCase, *addresses: Address, sources: tuple[str, ...], **more: Any
    ) -> None:
        super().__init__(test, *addresses, **more)
        self.accountant.addresses = sources
        self.accountant.late = OURS
        self.denied: list[str] = []
        self.accountant.on_denied = lambda budget, why: self.denied.append(why)

    async def connected(self, protocol: Any = Plain) -> Attempt:
        return await self.choose(protocol)

    @property
    def closed_first(self) -> dict[str, int]:
        """Of all backends, without the zeros."""
        (backend,) = self.cluster.backends.values()
        return {by: count for by, count in backend.closed_first.items() if count}


class SourcesTestCase(TestCase):
    timeout = TIMEOUT

    async def start(self, *sources: str, host: str = HOST, **cluster: Any) -> None:
        self.backend = await start_backend(self, host=host)
        self.bench = SourcesBench(self, self.backend.address, sources=sources, **cluster)

    async def connection(self) -> tuple[str, int]:
        """One more: the backend's word on where it comes from, which the lease agrees with."""
        attempt = await self.bench.connected()
        served = await self.backend.accepted()
        peer = served.transport.getPeer()
        assert attempt.lease is not None
        self.assertEqual(attempt.lease.port, peer.port)
        self.assertIn(attempt.lease.source, (peer.host, ""))
        return peer.host, peer.port


class BindTests(SourcesTestCase):
    async def test_one(self) -> None:
        here = somewhere()
        await self.start(here)
        host, port = await self.connection()
        self.assertEqual(host, here)
        (page,) = self.bench.accountant
        self.assertEqual((page.key.source, page.ports, page.used), (here, {port}, 1))

    async def test_evenly(self) -> None:
        sources = ("127.0.0.2", "127.0.0.3")
        await self.start(*sources)
        hosts = [(await self.connection())[0] for _ in range(6)]
        self.assertEqual([hosts.count(each) for each in sources], [3, 3])

    async def test_the_kernel_chooses(self) -> None:
        """The book has its port all the same."""
        await self.start()
        host, port = await self.connection()
        self.assertEqual(host, HOST)
        (page,) = self.bench.accountant
        self.assertEqual((page.key.source, page.ports), (HOST, {port}))

    async def test_ipv6(self) -> None:
        await self.start(somewhere(), "::1", host="::1")
        self.assertEqual((await self.connection())[0], "::1")

    async def test_of_the_other_family_alone(self) -> None:
        """The kernel chooses."""
        for source, host in ((somewhere(), "::1"), ("::1", HOST)):
            await self.start(source, host=host)
            self.assertEqual((await self.connection())[0], host)

    async def test_what_the_kernel_keeps_apart(self) -> None:
        """A port to each backend from each address where it is picked late, else one in all."""
        here = somewhere()
        others = [await start_backend(self) for _ in range(2)]
        bench = SourcesBench(self, *(each.address for each in others), sources=(here,))
        for _ in others:
            await bench.connected()
        keys = {page.key.destination_text for page in bench.accountant}
        self.assertEqual(keys, {str(each.address) for each in others} if OURS else {"*"})
        self.assertEqual(sum(page.used for page in bench.accountant), 2)

    async def test_given_back(self) -> None:
        await self.start(somewhere())
        attempt = await self.bench.connected()
        (page,) = self.bench.accountant
        attempt.upstream.transport.abortConnection()
        await until(lambda: not page.used)
        self.assertEqual((page.ports, page.free), (set(), page.limit))


class NotHereTests(SourcesTestCase):
    """An address that this machine does not have."""

    def setUp(self) -> None:
        if kernel.is_local(NOT_HERE):
            raise SkipTest(f"{NOT_HERE} is an address of this machine")

    async def test_alone(self) -> None:
        await self.start(NOT_HERE, queue=0)
        with self.assertRaises(ProxyError) as caught:
            await self.bench.connected()
        where = f"from {NOT_HERE}" + (f" to {self.backend.address}" if OURS else "")
        self.assertEqual(
            caught.exception.message,
            f"no source port is left {where} (0 of 100 in use, {NOT_HERE} is not an address of this"
            " machine, 2 kept as headroom); the queue of web is full (queue = 0)",
        )
        self.assertEqual(self.bench.denied, [f"{NOT_HERE} is not an address of this machine"])
        self.assertEqual(self.bench.books, (0, 0, 0, 0))

    async def test_beside_another(self) -> None:
        """That is left from, and what is free is that one's."""
        here = somewhere()
        await self.start(NOT_HERE, here)
        for _ in range(3):
            self.assertEqual((await self.connection())[0], here)
        self.assertEqual(len(self.bench.denied), 1)
        self.assertEqual([page.free for page in self.bench.accountant], [0, 95])


class SimulatedTests(TestCase):
    """What a kernel may say, of a connect or of a bind."""

    timeout = TIMEOUT

    async def test_messages(self) -> None:
        place, here = Address(HOST, 1), "10.0.0.9"
        bind, connect = "ConnectBindError", "ConnectError"
        none = f"the kernel has no source port left from {here} to {place}"
        for kind, number, why in (
            (bind, errno.EADDRNOTAVAIL, f"{here} is not an address of this machine"),
            (bind, errno.EADDRINUSE, none),
            (connect, errno.EADDRNOTAVAIL, none),
            (connect, errno.EADDRINUSE, none),
        ):
            bench = SourcesBench(
                self, place, sources=(here,), reactor=Refusing(kind, number), queue=0
            )
            bench.accountant.late = True
            waiting = bench.choose()
            bench.clock.advance(0)
            failure = self.failureResultOf(waiting, ProxyError)
            found = why if "not an address" in why else "98 refused by the kernel"
            self.assertIn(found, failure.value.message)
            self.assertEqual(bench.denied, [why])
            self.assertEqual(bench.books, (0, 0, 0, 0))

    async def test_raised(self) -> None:
        """By a reactor that does not wait until it is back in its loop."""
        bench = SourcesBench(
            self, Address(HOST, 1), sources=("10.0.0.9",), reactor=Raising(), queue=0
        )
        failure = self.failureResultOf(bench.choose(), ProxyError)
        self.assertIn("no source port is left from 10.0.0.9", failure.value.message)
        self.assertEqual(len(bench.denied), 1)
        self.assertEqual(bench.books, (0, 0, 0, 0))


class Refusing(Failing):
    """Every connect fails, or the bind before it."""

    def __init__(self, kind: str, number: int) -> None:
        from twisted.internet import error

        super().__init__(getattr(error, kind)(number, "?"))

    def connectTCP(self, host: str, port: int, factory: Any, *_: object) -> Any:
        return super().connectTCP(host, port, factory, None)


class Raising(Failing):
    def __init__(self) -> None:
        super().__init__(OSError(errno.EADDRINUSE, "?"))

    def connectTCP(self, *_: object) -> Any:
        raise self.error


class RangeTests(SourcesTestCase):
    """Some of the ports that the kernel would pick."""

    if not OURS:
        skip = "only the proxykit reactor can narrow the range of one socket"

    async def test_within(self) -> None:
        ports = window(300)
        for source in ("", somewhere()):
            await self.start(*[source][: bool(source)])
            self.bench.connector.ports = ports
            found = {(await self.connection())[1] for _ in range(5)}
            self.assertEqual(len(found), 5)
            self.assertTrue(found <= {*range(ports.low, ports.high + 1)}, (found, ports))

    async def test_used_up(self) -> None:
        """The kernel has no more although the book has: the next source, and then nothing."""
        ports = free_window(3)
        sources = somewhere(), somewhere()
        await self.start(*sources, queue=0)
        self.bench.connector.ports = ports
        found = [await self.connection() for _ in range(6)]
        self.assertEqual(
            sorted(found),
            sorted((each, ports.low + number) for each in sources for number in range(3)),
        )
        with self.assertRaises(ProxyError) as caught:
            await self.bench.connected()
        self.assertIn(
            f"no source port is left from {', '.join(sources)} to {self.backend.address}"
            " (6 of 200 in use, 190 refused by the kernel, 4 kept as headroom)",
            caught.exception.message,
        )
        self.assertEqual(
            sorted(self.bench.denied),
            sorted(
                f"the kernel has no source port left from {each} to {self.backend.address}"
                for each in sources
            ),
        )
        self.assertEqual(self.bench.books, (6, 6, 6, 0))

    async def test_to_each_backend(self) -> None:
        """The same ports again."""
        ports, here = free_window(2), somewhere()
        backends = [await start_backend(self) for _ in range(3)]
        bench = SourcesBench(self, *(each.address for each in backends), sources=(here,), queue=0)
        bench.connector.ports = ports
        for _ in range(6):
            await bench.connected()
        for page in bench.accountant:
            self.assertEqual(page.ports, {ports.low, ports.high})


@implementer(IHalfCloseableProtocol)
class Open(Plain):
    """An upstream's protocol that stays when the backend has ended."""

    ended = False

    def readConnectionLost(self) -> None:
        self.ended = True

    def writeConnectionLost(self) -> None:
        """Not of interest."""


class ClosedFirstTests(SourcesTestCase):
    """On stock reactors nobody knows; there what rests is known once the kernel is read."""

    async def open(self, protocol: Any = Open) -> None:
        await self.start(somewhere())
        attempt = await self.bench.connected(protocol)
        self.upstream: Any = attempt.upstream
        self.lease: Any = attempt.lease
        self.served: End = await self.backend.accepted()

    async def ends(self, by: str) -> None:
        """Both ends are closed by now, or will be."""
        await until(lambda: self.lease.use.name == "RELEASED")
        (page,) = self.bench.accountant
        self.assertEqual(self.lease.closed_by, by if OURS else "")
        self.assertEqual(self.bench.closed_first, {by: 1} if OURS else {})
        self.assertEqual(page.time_wait, int(OURS and by == "proxy"))
        self.assertEqual((page.used, page.ports), (0, set()))

    async def test_the_backend(self) -> None:
        for protocol in (Plain, Open):
            await self.open(protocol)
            self.served.close()
            if protocol is Open:
                await until(lambda: self.upstream.ended)
                self.upstream.transport.loseConnection()
            await self.ends("backend")

    async def test_we(self) -> None:
        await self.open()
        self.upstream.transport.loseConnection()
        await self.served.ended()
        self.served.close()
        await self.ends("proxy")

    async def test_the_backend_ends_first(self) -> None:
        """And goes on reading."""
        await self.open()
        self.served.finish()
        await until(lambda: self.upstream.ended)
        self.upstream.transport.write(b"more")
        await self.served.got(b"more")
        self.upstream.transport.loseWriteConnection()
        await self.served.ended()
        self.served.close()
        self.upstream.transport.loseConnection()
        await self.ends("backend")

    async def test_we_end_first(self) -> None:
        """And go on reading."""
        await self.open()
        self.upstream.transport.loseWriteConnection()
        await self.served.ended()
        self.served.close()
        await until(lambda: self.upstream.ended)
        self.upstream.transport.loseConnection()
        await self.ends("proxy")

    async def test_we_end_first_and_it_resets(self) -> None:
        """Then nothing rests."""
        await self.open()
        self.upstream.transport.loseWriteConnection()
        await self.served.ended()
        self.served.reset()
        await self.ends("reset")

    async def test_its_end_has_not_been_read(self) -> None:
        """It came first all the same."""
        await self.open()
        self.upstream.transport.pauseProducing()
        self.served.close()
        await self.served.lost()
        await turns()
        self.upstream.transport.loseConnection()
        await self.ends("backend")

    async def test_its_reset_has_not_been_read(self) -> None:
        await self.open()
        self.upstream.transport.pauseProducing()
        self.served.reset()
        await self.served.lost()
        await turns()
        self.upstream.transport.loseConnection()
        await self.ends("reset")

    async def test_we_abort(self) -> None:
        await self.open()
        self.upstream.transport.abortConnection()
        self.assertTrue(await self.served.lost())
        await self.ends("reset")

    async def test_the_backend_aborts(self) -> None:
        await self.open()
        self.served.reset()
        await self.ends("reset")

    async def test_never_connected(self) -> None:
        """There was nothing to be closed."""
        with socket.socket() as nobody:
            nobody.bind((HOST, 0))
            bench = SourcesBench(
                self, Address(*nobody.getsockname()), sources=(somewhere(),), queue=0
            )
            with self.assertRaises(ProxyError):
                await bench.connected()
            self.assertEqual(bench.closed_first, {})
            (page,) = bench.accountant
            self.assertEqual((page.time_wait, page.free), (0, page.limit))

    async def test_a_protocol_that_raises(self) -> None:
        """It is closed as any other, by us."""

        class Bad(Plain):
            def dataReceived(self, data: bytes) -> None:
                raise ZeroDivisionError

        await self.open(Bad)
        self.served.send(b"!")
        await self.served.ended()
        self.served.close()
        await self.ends("proxy")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
