"""One attempt: what comes of it, and that its lease and socket are given back, whatever it was."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectBindError, ConnectError, ConnectionRefusedError
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from proxykit.core.accountant import Accountant
from proxykit.core.balance import RoundRobin
from proxykit.core.choice import Attempt, Choice
from proxykit.core.deadlines import Deadlines
from proxykit.core.flow import Flow
from proxykit.core.registry import Registry
from proxykit.errors import ProxyError, Retry, Side
from proxykit.model import Address, Backend, Cluster, ConnInfo, PortRange
from proxykit.net.connector import Connector
from proxykit.net.kernel import SourceAddresses
from tests.sockets import (
    HOST,
    TIMEOUT,
    ClockedReactor,
    free_port,
    start_backend,
    turns,
    unanswering,
    until,
)


class Plain(Protocol):
    """An upstream's protocol: it is ready when it is connected."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt

    def connectionMade(self) -> None:
        self.attempt.succeeded(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.attempt.end()


class Bench:
    """A flow and a connector, with the books in view."""

    def __init__(
        self, test: TestCase, *addresses: Address, reactor: Any = None, **cluster: Any
    ) -> None:
        self.clock = reactor or ClockedReactor()
        self.failures: list[int] = []
        self.deadlines = Deadlines(self.clock, lambda: self.failures.append(1))
        self.registry = Registry(self.deadlines)
        config = Cluster("web", tuple(map(Backend, addresses)), **cluster)
        self.cluster = self.registry.add(config, RoundRobin)
        self.accountant = Accountant(PortRange(1, 100), SourceAddresses(self.clock))
        self.flow = Flow(self.registry, self.deadlines, self.clock)
        self.connector = Connector(self.clock, self.accountant, self.deadlines)
        self.protocols: list[Any] = []
        test.addCleanup(self._end)

    def choose(self, protocol: Any = Plain) -> Deferred[Attempt]:
        """One upstream choice."""

        def make(attempt: Attempt) -> Any:
            self.protocols.append(protocol(attempt))
            return self.protocols[-1]

        choice = Choice(self.cluster, ConnInfo(1, "front", None), self.connector, make)  # type: ignore[arg-type]
        got = self.flow.upstream(choice)
        assert isinstance(got, Deferred)
        return got

    @property
    def books(self) -> tuple[int, int, int, int]:
        """Ports, connections and load in use, and deadlines that run."""
        budgets = self.accountant.snapshot()
        states = self.cluster.backends.values()
        return (
            sum(each["active"] + each["reserved"] for each in budgets),
            sum(each.connections for each in states),
            sum(each.in_flight for each in states),
            len(self.deadlines),
        )

    async def _end(self) -> None:
        for protocol in self.protocols:
            if protocol.transport is not None:
                protocol.transport.abortConnection()
        await turns()


class OutcomeTests(TestCase):
    """What a connect comes to."""

    timeout = TIMEOUT

    async def fails(self, bench: Bench, protocol: Any = Plain) -> ProxyError:
        with self.assertRaises(ProxyError) as caught:
            await bench.choose(protocol)
        self.assertEqual(bench.books, (0, 0, 0, 0))
        return caught.exception

    async def test_connected(self) -> None:
        backend = await start_backend(self)
        bench = Bench(self, backend.address)
        attempt = await bench.choose()
        self.assertEqual(bench.books, (1, 1, 1, 0))
        (budget,) = bench.accountant.snapshot()
        self.assertEqual((budget["active"], budget["reserved"]), (1, 0))
        self.assertEqual(budget["source"], HOST)
        attempt.upstream.transport.loseConnection()
        (await backend.accepted()).close()
        await until(lambda: bench.books == (0, 0, 0, 0))

    async def test_reserved_while_it_connects(self) -> None:
        bench = Bench(self, unanswering(self))
        waiting = bench.choose()
        (budget,) = bench.accountant.snapshot()
        self.assertEqual((budget["active"], budget["reserved"]), (0, 1))
        waiting.cancel()
        with self.assertRaises(CancelledError):
            await waiting

    async def test_ipv6(self) -> None:
        backend = await start_backend(self, host="::1")
        bench = Bench(self, backend.address)
        attempt = await bench.choose()
        self.assertEqual(attempt.upstream.transport.getPeer().host, "::1")
        self.assertEqual(bench.accountant.snapshot()[0]["source"], "::1")

    async def test_unix(self) -> None:
        backend = await start_backend(self, path=_socket_path(self))
        bench = Bench(self, backend.address)
        await bench.choose()
        self.assertEqual(bench.books, (0, 1, 1, 0))
        self.assertEqual(bench.accountant.snapshot(), [])
        (await backend.accepted()).close()
        await until(lambda: bench.books == (0, 0, 0, 0))

    async def test_unix_without_a_server(self) -> None:
        path = _socket_path(self)
        error = await self.fails(Bench(self, Address(path, 0)))
        self.assertEqual(error.message, f"connect to unix:{path} failed: No such file or directory")

    async def test_unix_with_a_full_backlog(self) -> None:
        path = _socket_path(self)
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as filler:
            listening.bind(path)
            listening.listen(0)
            filler.connect(path)
            bench = Bench(self, Address(path, 0))
            waiting = bench.choose()
            await turns()
            bench.clock.advance(6)  # a kernel that makes it wait is as good as one that refuses
            with self.assertRaises(ProxyError) as caught:
                await waiting
            self.assertEqual(bench.books, (0, 0, 0, 0))
            self.assertNotIn("\n", caught.exception.message)

    async def test_refused(self) -> None:
        port = free_port(self)
        error = await self.fails(Bench(self, Address(HOST, port)))
        self.assertEqual(error.message, f"connect to {HOST}:{port} failed: Connection refused")
        self.assertEqual(
            (error.side, error.retry, error.status), (Side.UPSTREAM, Retry.ALWAYS, 502)
        )

    async def test_timeout(self) -> None:
        address = unanswering(self)
        bench = Bench(self, address, connect_timeout=3.0)
        waiting = bench.choose()
        await turns()
        bench.clock.advance(2.9)
        self.assertEqual(bench.books, (1, 1, 1, 1))
        bench.clock.advance(0.6)
        self.assertEqual(bench.books, (0, 0, 0, 0))
        with self.assertRaises(ProxyError) as caught:
            await waiting
        error = caught.exception
        self.assertEqual(error.message, f"connect to {address} timed out after 3 s")
        self.assertEqual(
            (error.side, error.retry, error.status), (Side.UPSTREAM, Retry.ALWAYS, 504)
        )

    async def test_no_way_there(self) -> None:
        error = await self.fails(Bench(self, Address("255.255.255.255", 80)))
        self.assertEqual(error.side, Side.UPSTREAM)
        self.assertIn("no way to 255.255.255.255:80: ", error.message)

    async def test_out_of_descriptors_while_asking_for_the_way(self) -> None:
        bench = Bench(self, Address(HOST, 1), Address(HOST, 2))

        def starved(host: str) -> str:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        bench.accountant._source_of = starved
        error = await self.fails(bench)
        # It is no backend's fault, and none is to be called failing for it.
        self.assertEqual((error.side, error.retry), (Side.PROXY, Retry.NEVER))
        self.assertEqual([each.failures for each in bench.cluster.backends.values()], [0, 0])


class SimulatedTests(TestCase):
    """Errors that are hard to have for real."""

    timeout = TIMEOUT

    async def fails(
        self, error: Exception, backends: int = 1, **cluster: Any
    ) -> tuple[ProxyError, Failing]:
        reactor = Failing(error)
        places = (Address(HOST, port) for port in range(1, backends + 1))
        self.bench = bench = Bench(self, *places, reactor=reactor, **cluster)
        bench.accountant.on_denied = lambda budget, why: reactor.denied.append(
            (budget.free + 1, why)  # The lease comes back next.
        )
        waiting = bench.choose()
        reactor.advance(0)
        for _ in range(backends):
            reactor.advance(0)
        with self.assertRaises(ProxyError) as caught:
            await waiting
        self.assertEqual(bench.books, (0, 0, 0, 0))
        self.assertEqual(bench.failures, [])
        return caught.exception, reactor

    async def test_out_of_ports(self) -> None:
        """The book is corrected, and the attempt goes on until nothing is left."""
        for number in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            error, reactor = await self.fails(ConnectBindError(number, "?"), 2, queue=0)
            first, last = reactor.tried
            self.assertEqual({first, last}, {1, 2})
            self.assertEqual(
                error.message,
                f"no source port is left from {HOST} to {HOST}:1 (0 of 100 in use, 98 refused by"
                " the kernel, 2 kept as headroom), and 1 more are full; the queue of web is full"
                " (queue = 0)",
            )
            self.assertEqual((error.side, error.status), (Side.PROXY, 503))
            self.assertEqual(
                reactor.denied,
                [
                    (0, f"the kernel has no source port left from {HOST} to {HOST}:{port}")
                    for port in reactor.tried
                ],
            )
            self.assertEqual(
                [each.failures for each in self.bench.cluster.backends.values()], [0, 0]
            )

    async def test_out_of_descriptors_is_not_tried_again(self) -> None:
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            error, reactor = await self.fails(ConnectBindError(number, "?"), backends=2)
            (tried,) = reactor.tried
            self.assertEqual(
                error.message, f"connect to {HOST}:{tried} failed: {os.strerror(number)}"
            )
            self.assertEqual(
                (error.side, error.retry, error.status), (Side.PROXY, Retry.NEVER, 503)
            )

    async def test_the_backends_fault_is_tried_at_the_next(self) -> None:
        error, reactor = await self.fails(
            ConnectionRefusedError(errno.ECONNREFUSED, "?"), backends=3
        )
        self.assertEqual(sorted(reactor.tried), [1, 2, 3])
        self.assertEqual((error.side, error.status), (Side.UPSTREAM, 502))

    async def test_errors_without_a_number(self) -> None:
        error, _ = await self.fails(ConnectError(string="odd"))
        self.assertIn("odd", error.message)
        error, _ = await self.fails(ZeroDivisionError())
        self.assertIn("ZeroDivisionError", error.message)

    async def test_a_reactor_that_raises_for_a_unix_socket(self) -> None:
        # So do stock ones when the process has no descriptor left.
        reactor = Failing(OSError(errno.EMFILE, "?"))
        bench = Bench(self, Address("/somewhere", 0), reactor=reactor)
        with self.assertRaises(ProxyError) as caught:
            await bench.choose()
        self.assertEqual((caught.exception.side, caught.exception.retry), (Side.PROXY, Retry.NEVER))
        self.assertEqual(bench.books, (0, 0, 0, 0))


class CancelTests(TestCase):
    timeout = TIMEOUT

    async def test_while_connecting(self) -> None:
        bench = Bench(self, unanswering(self))
        waiting = bench.choose()
        await turns()
        before = _sockets()
        waiting.cancel()
        self.assertEqual(bench.books, (0, 0, 0, 0))
        self.assertEqual(_sockets(), before - 1)
        with self.assertRaises(CancelledError):
            await waiting

    async def test_before_the_reactor_has_begun(self) -> None:
        backend = await start_backend(self)
        bench = Bench(self, backend.address)
        waiting = bench.choose()
        waiting.cancel()
        self.assertEqual(bench.books, (0, 0, 0, 0))
        with self.assertRaises(CancelledError):
            await waiting
        await turns()
        self.assertEqual(bench.protocols, [])


class NotReadyTests(TestCase):
    """Protocols that are connected and have something to do before they are of use."""

    timeout = TIMEOUT

    class Slow(Plain):
        def connectionMade(self) -> None:
            """It would say a header first, say, and wait for an answer."""

    async def start(self) -> tuple[Any, Bench, Deferred[Attempt]]:
        backend = await start_backend(self)
        bench = Bench(self, backend.address)
        waiting = bench.choose(self.Slow)
        return await backend.accepted(), bench, waiting

    async def test_cancel(self) -> None:
        served, bench, waiting = await self.start()
        await until(lambda: bench.protocols and bench.protocols[0].transport)
        waiting.cancel()
        with self.assertRaises(CancelledError):
            await waiting
        await served.ended()
        served.close()
        await turns(20)
        self.assertEqual(bench.books, (0, 0, 0, 0))

    async def test_lost(self) -> None:
        served, bench, waiting = await self.start()
        served.reset()
        await turns(20)
        self.assertEqual(bench.books[:2], (0, 0))
        self.failureResultOf(waiting, ProxyError)

    async def test_never(self) -> None:
        """The connect timeout covers it as well: no wait is without a deadline."""
        _, bench, waiting = await self.start()
        await until(lambda: bench.protocols and bench.protocols[0].transport)
        bench.clock.advance(10)
        await turns(20)
        self.failureResultOf(waiting, ProxyError)
        self.assertEqual(bench.books, (0, 0, 0, 0))

    async def test_never_with_bytes_on_their_way(self) -> None:
        """Then it is not waited for them to be taken, either."""

        class Talkative(Plain):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(bytes(30_000_000))

        listening = socket.create_server((HOST, 0))
        self.addCleanup(listening.close)
        bench = Bench(self, Address(*listening.getsockname()))
        waiting = bench.choose(Talkative)
        await until(lambda: bench.protocols and bench.protocols[0].transport)
        bench.clock.advance(10)
        await turns(20)
        self.failureResultOf(waiting, ProxyError)
        self.assertEqual(bench.books, (0, 0, 0, 0))


class BadProtocolTests(TestCase):
    """Protocols may be anybody's: whatever they raise, the lease comes back."""

    timeout = TIMEOUT

    async def start(self, unix: bool) -> tuple[Any, Bench]:
        path = _socket_path(self) if unix else ""
        backend = await start_backend(self, path=path)
        return backend, Bench(self, backend.address)

    async def never_made(self, unix: bool) -> None:
        _, bench = await self.start(unix)

        def broken(attempt: Attempt) -> Any:
            raise ZeroDivisionError("no protocol today")

        waiting = bench.choose(broken)
        await until(lambda: self.flushLoggedErrors(ZeroDivisionError) or waiting.called)
        await turns()
        bench.clock.advance(10)
        self.assertEqual(bench.books, (0, 0, 0, 0))
        with self.assertRaises(ProxyError) as caught:
            await waiting
        self.assertNotIn("\n", caught.exception.message)
        self.flushLoggedErrors(ZeroDivisionError)

    async def test_one_that_is_never_made(self) -> None:
        await self.never_made(unix=False)

    async def test_one_that_is_never_made_for_a_unix_socket(self) -> None:
        await self.never_made(unix=True)

    async def raises_at_once(self, unix: bool) -> None:
        _, bench = await self.start(unix)

        class Bad(Plain):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

        waiting = bench.choose(Bad)
        waiting.addErrback(lambda _: None)
        await until(lambda: self.flushLoggedErrors(ZeroDivisionError))
        await turns()
        bench.clock.advance(10)
        await turns()
        self.assertEqual(bench.books[:2], (0, 0))

    async def test_connection_made_raises(self) -> None:
        await self.raises_at_once(unix=False)

    async def test_connection_made_raises_on_a_unix_socket(self) -> None:
        await self.raises_at_once(unix=True)

    async def test_data_received_raises(self) -> None:
        backend, bench = await self.start(unix=False)

        class Bad(Plain):
            def dataReceived(self, data: bytes) -> None:
                raise ZeroDivisionError

        await bench.choose(Bad)
        (await backend.accepted()).send(b"!")
        await until(lambda: bench.books == (0, 0, 0, 0))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_connection_lost_raises(self) -> None:
        backend, bench = await self.start(unix=False)

        class Bad(Plain):
            def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
                raise ZeroDivisionError

        await bench.choose(Bad)
        (await backend.accepted()).close()
        await until(lambda: bench.books[:2] == (0, 0))
        await until(lambda: self.flushLoggedErrors(ZeroDivisionError))


class Failing(ClockedReactor):
    """Every connect fails with one error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.tried: list[int] = []
        self.denied: list[tuple[int, str]] = []

    def connectTCP(self, host: str, port: int, factory: Any, timeout: object) -> Any:
        self.tried.append(port)
        self.callLater(0, factory.clientConnectionFailed, None, Failure(self.error))

    def connectUNIX(self, path: str, factory: Any, timeout: object) -> Any:
        raise self.error


def _socket_path(test: TestCase) -> str:
    # A path of a unix socket is short.
    directory = tempfile.TemporaryDirectory()
    test.addCleanup(directory.cleanup)
    return f"{directory.name}/backend"


def _sockets() -> int:
    names = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(1 for name in names if os.path.lexists(name) and "socket" in os.readlink(name))
