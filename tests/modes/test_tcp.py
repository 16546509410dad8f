"""The mode tcp: which backend a client gets, how it waits, and what the log says of it."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase

from proxykit.core.routing import Everything
from proxykit.model import Address, Backend, ConnInfo
from proxykit.modes.tcp import TcpFactory, TcpSettings
from tests.sockets import (
    HOST,
    TIMEOUT,
    Proxy,
    connect,
    free_port,
    hear,
    in_thread,
    reactor,
    read_all,
    reset_on_close,
    start_backend,
    start_proxy,
    turns,
    unanswering,
    until,
)


def name_of(client: Any) -> str:
    """A client as the log calls it."""
    host = client.transport.getHost()
    return f"{host.host}:{host.port}"


class BackendTests(TestCase):
    """Failed connects go on to the next backend; when there is none, the client is told at once."""

    timeout = TIMEOUT

    async def test_a_refused_connect_goes_on_to_the_next(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, Address(HOST, free_port(self)), backend)
        for _ in range(3):
            client = await proxy.connect()
            client.send(b"hello")
            served = await backend.accepted()
            await served.got(b"hello")

    async def test_a_connect_that_times_out_goes_on_to_the_next(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, unanswering(self), backend, connect_timeout=2.0)
        for _ in range(2):  # one for each of the two
            client = await proxy.connect()
            client.send(b"hello")
        await (await backend.accepted()).got(b"hello")
        await until(lambda: len(proxy.listener.connections) == 2)
        proxy.clock.advance(3)
        await (await backend.accepted()).got(b"hello")

    async def test_none_left(self) -> None:
        ports = [free_port(self), free_port(self)]
        lines = hear(self)
        proxy = start_proxy(self, *(Address(HOST, port) for port in ports))
        client = await proxy.connect()
        name = name_of(client)
        self.assertTrue(await client.lost())
        await proxy.empty()
        (line,) = [line for line in lines if name in line]
        self.assertIn(
            line,
            [
                f"front #1: {name} refused: connect to {HOST}:{port} failed: Connection refused"
                for port in ports
            ],
        )

    async def test_no_backend_is_up(self) -> None:
        backend = await start_backend(self)
        lines = hear(self)
        proxy = start_proxy(self, backend)
        proxy.cluster.set_state(backend.address, "down")
        client = await proxy.connect()
        name = name_of(client)
        self.assertTrue(await client.lost())
        self.assertEqual(
            [line for line in lines if name in line],
            [f"front #1: {name} refused: no backend of cluster web is up"],
        )

    async def test_a_router_that_knows_no_way(self) -> None:
        class Nowhere:
            def route(self, subject: Any) -> None:
                return None

        lines = hear(self)
        proxy = start_proxy(self)
        service = proxy.service
        factory = TcpFactory(service.flow, service.connector, Nowhere(), name="lost")  # type: ignore[arg-type]
        port = reactor.listenTCP(0, factory, interface=HOST)
        self.addCleanup(port.stopListening)
        client = await connect(self, port.getHost().port)
        name = name_of(client)
        self.assertTrue(await client.lost())
        self.assertEqual(lines[-1], f"lost: {name} refused: no route")

    async def test_without_a_listener_of_ours(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        service = proxy.service
        factory = TcpFactory(service.flow, service.connector, Everything("web"))
        port = reactor.listenTCP(0, factory, interface=HOST)
        self.addCleanup(port.stopListening)
        client = await connect(self, port.getHost().port)
        served = await backend.accepted()
        served.send(b"welcome")
        await client.got(b"welcome")
        client.reset()
        await served.lost()

    async def test_a_connector_that_is_ready_at_once(self) -> None:
        """As a pool is, which has a connection already."""
        upstream = Ready()
        proxy = start_proxy(self, Address(HOST, 1))
        factory = TcpFactory(proxy.service.flow, upstream, Everything("web"))  # type: ignore[arg-type]
        protocol = factory.buildProtocol(None)
        protocol.info = ConnInfo(1, "front", _Address())  # type: ignore[arg-type]
        protocol.makeConnection(Transport())
        protocol.dataReceived(b"question")
        self.assertEqual(upstream.transport.value(), b"question")
        self.assertEqual(protocol.snapshot()["state"], "relaying")
        protocol.relay.abort("enough")
        upstream.lose()
        protocol.connectionLost(_done())
        await proxy.empty()


class QueueTests(TestCase):
    """Where all backends are full, clients wait: first come first served."""

    timeout = TIMEOUT

    async def test_four_clients_for_two_slots(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend, max_connections=2)
        clients = []
        for number in range(4):
            clients.append(await proxy.connect())
            clients[-1].send(b"client %d" % number)
            await until(lambda wanted=number + 1: len(proxy.listener.connections) == wanted)
        first, second = await backend.accepted(), await backend.accepted()
        await first.got(b"client 0")
        await second.got(b"client 1")
        self.assertEqual(len(proxy.cluster.queue), 2)
        second.close()
        clients[1].close()
        third = await backend.accepted()
        await third.got(b"client 2")
        self.assertEqual(len(proxy.cluster.queue), 1)
        first.reset()
        fourth = await backend.accepted()
        await fourth.got(b"client 3")
        self.assertEqual(len(proxy.cluster.queue), 0)

    async def test_the_deadline(self) -> None:
        backend = await start_backend(self)
        lines = hear(self)
        proxy = start_proxy(self, backend, max_connections=1, queue_timeout=5.0)
        await proxy.connect()
        await proxy.side()
        late = await self.waits(proxy)
        name = name_of(late)
        proxy.clock.advance(4.9)
        self.assertEqual(len(proxy.cluster.queue), 1)
        proxy.clock.advance(1)
        self.assertTrue(await late.lost())
        self.assertEqual(
            [line for line in lines if name in line],
            [
                f"front #2: {name} refused: waited 5 s in the queue of web: {backend.address} has"
                " all of its 1 connections (max_connections)"
            ],
        )

    async def test_the_queue_is_full_as_well(self) -> None:
        backend = await start_backend(self)
        lines = hear(self)
        proxy = start_proxy(self, backend, max_connections=1, queue=1)
        await proxy.connect()
        await proxy.side()
        await self.waits(proxy)
        refused = await proxy.connect()
        name = name_of(refused)
        self.assertTrue(await refused.lost())
        self.assertEqual(
            [line for line in lines if name in line],
            [
                f"front #3: {name} refused: {backend.address} has all of its 1 connections"
                " (max_connections); the queue of web is full (queue = 1)"
            ],
        )

    async def test_out_of_ports(self) -> None:
        backend = await start_backend(self)
        lines = hear(self)
        proxy = start_proxy(self, backend, queue=0)
        (budget,) = proxy.service.accountant._budgets.values()
        budget.free = 1
        await proxy.connect()
        await proxy.side()
        refused = await proxy.connect()
        name = name_of(refused)
        self.assertTrue(await refused.lost())
        (line,) = [line for line in lines if name in line]
        self.assertIn(f"no source port is left from {HOST} to {backend.address} (1 of ", line)

    async def test_a_silent_client_that_leaves(self) -> None:
        proxy, lines = await self.full()
        client = await self.waits(proxy)
        name = name_of(client)
        client.close()
        await until(lambda: not len(proxy.cluster.queue))
        await until(lambda: len(proxy.listener.connections) == 1)
        (line,) = [line for line in lines if name in line]
        self.assertRegex(
            line,
            f"^front #2: {re.escape(name)} -> web -: 0 bytes up, 0 bytes down, 0.000 s, client left"
            " before it had a backend$",
        )

    async def test_a_client_that_has_asked_and_ended_stays(self) -> None:
        proxy, _ = await self.full()
        client = proxy.blocking()
        client.sendall(b"question")
        client.shutdown(1)
        waiting: Any = await until(lambda: list(proxy.listener.connections.values())[1:])
        await until(lambda: waiting[0].read_ended)
        self.assertEqual(len(proxy.cluster.queue), 1)
        self.served.reset()
        served = await self.backend.accepted()
        await served.got(b"question")
        await served.ended()
        served.send(b"answer")
        served.close()
        self.assertEqual(await in_thread(read_all, client), b"answer")

    async def test_unless_the_user_has_said_so(self) -> None:
        proxy, _ = await self.full(TcpSettings(abort_on_close=True))
        client = await self.waits(proxy)
        client.send(b"question")
        client.finish()
        await until(lambda: not len(proxy.cluster.queue))

    async def test_a_client_that_had_ended_before_it_came_to_wait(self) -> None:
        """It has left as well: abort_on_close asks about the time in the queue."""
        proxy, _ = await self.full(TcpSettings(abort_on_close=True))
        proxy.cluster.add(Backend(unanswering(self)))
        client = await proxy.connect()
        client.send(b"question")
        client.finish()
        waiting: Any = await until(lambda: list(proxy.listener.connections.values())[1:])
        await until(lambda: waiting[0].read_ended)
        self.assertEqual(waiting[0].snapshot()["state"], "connecting")
        proxy.clock.advance(6)  # the connect times out, the other backend is full
        await turns()
        self.assertEqual(len(proxy.cluster.queue), 0)

    async def test_a_client_that_resets(self) -> None:
        proxy, _ = await self.full()
        client = proxy.blocking()
        client.sendall(b"question")
        await until(lambda: len(proxy.cluster.queue))
        reset_on_close(client)
        client.close()
        await until(lambda: not len(proxy.cluster.queue))

    async def full(self, settings: TcpSettings | None = None) -> tuple[Proxy, list[str]]:
        """A proxy whose one slot is taken."""
        lines = hear(self)
        self.backend = await start_backend(self)
        proxy = start_proxy(
            self,
            self.backend,
            max_connections=1,
            settings=settings,
            queue_timeout=100.0,
        )
        await proxy.connect()
        self.served = await self.backend.accepted()
        await proxy.side()
        return proxy, lines

    async def waits(self, proxy: Proxy) -> Any:
        """One more client that has to wait."""
        count = len(proxy.cluster.queue)
        client = await proxy.connect()
        await until(lambda: len(proxy.cluster.queue) == count + 1)
        return client


class LogTests(TestCase):
    """One line when a connection ends, and why it did."""

    timeout = TIMEOUT

    async def converse(self, end: Any, settings: TcpSettings | None = None) -> list[str]:
        lines = hear(self)
        backend = await start_backend(self)
        proxy = start_proxy(self, backend, settings=settings)
        client = await proxy.connect()
        served = await backend.accepted()
        await proxy.side()
        name = name_of(client)
        client.send(b"12345")
        await served.got(b"12345")
        served.send(b"123")
        await client.got(b"123")
        proxy.clock.advance(2.5)
        await end(client, served, proxy)
        await proxy.empty()
        place = f"web {backend.address} (own: opaque bytes)"
        start = f"front #1: {name} -> {place}: 5 bytes up, 3 bytes down, "
        mine = [line for line in lines if name in line]
        for line in mine:
            self.assertEqual(line[: len(start)], start)
        return [line[len(start) :] for line in mine]

    async def test_client_closed(self) -> None:
        async def end(client: Any, served: Any, _: Proxy) -> None:
            client.finish()
            await served.ended()
            served.close()

        self.assertEqual(await self.converse(end), ["2.500 s, client closed"])

    async def test_backend_closed(self) -> None:
        async def end(client: Any, served: Any, _: Proxy) -> None:
            served.finish()
            await client.ended()
            client.close()

        self.assertEqual(await self.converse(end), ["2.500 s, backend closed"])

    async def test_client_reset(self) -> None:
        async def end(client: Any, served: Any, _: Proxy) -> None:
            client.reset()

        self.assertEqual(await self.converse(end), ["2.500 s, client reset"])

    async def test_backend_reset(self) -> None:
        async def end(client: Any, served: Any, _: Proxy) -> None:
            served.reset()

        self.assertEqual(await self.converse(end), ["2.500 s, backend reset"])

    async def test_idle(self) -> None:
        async def end(client: Any, served: Any, proxy: Proxy) -> None:
            proxy.clock.advance(20)

        settings = TcpSettings(idle_timeout=10.0)
        self.assertEqual(await self.converse(end, settings), ["22.500 s, idle timeout"])

    async def test_none_if_the_user_wants_none(self) -> None:
        async def end(client: Any, served: Any, _: Proxy) -> None:
            client.reset()

        self.assertEqual(await self.converse(end, TcpSettings(log_connections=False)), [])


class SocketTests(TestCase):
    """Options of the sockets, and other kinds of them."""

    timeout = TIMEOUT

    async def test_no_delay_and_keepalive(self) -> None:
        for keepalive in (True, False):
            backend = await start_backend(self)
            proxy = start_proxy(self, backend, settings=TcpSettings(keepalive=keepalive))
            await proxy.connect()
            side = await proxy.side()
            assert side.relay is not None
            for transport in (side.transport, side.relay.upstream.transport):
                self.assertTrue(transport.getTcpNoDelay())
                self.assertEqual(transport.getTcpKeepAlive(), keepalive)

    async def test_a_unix_socket_behind(self) -> None:
        backend = await start_backend(self, path=f"{self._directory()}/b")
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        client.send(b"question")
        client.finish()
        await served.got(b"question")
        await served.ended()
        reply = bytes(500_000)
        served.send(reply)
        served.close()
        await client.got(reply)
        await client.ended()
        await proxy.empty()

    async def test_a_unix_socket_in_front(self) -> None:
        path = f"{self._directory()}/front"
        backend = await start_backend(self)
        lines = hear(self)
        proxy = start_proxy(self, backend, listen=f"unix:{path}")
        self.assertEqual(proxy.listener.address, f"unix:{path}")
        import socket

        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.connect(path)
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        served = await backend.accepted()
        await served.got(b"question")
        served.send(b"answer")
        served.close()
        self.assertEqual(await in_thread(read_all, client), b"answer")
        await proxy.empty()
        self.assertIn("front #1: unix: -> web", lines[-1])

    async def test_ipv6_behind(self) -> None:
        backend = await start_backend(self, host="::1")
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        client.send(b"six")
        await (await backend.accepted()).got(b"six")

    def _directory(self) -> str:
        import tempfile

        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        return directory.name


class Ready:
    """A connector with a connection that is there already."""

    def attempt(self, attempt: Any) -> bool:
        from proxykit.modes.tcp import UpstreamSide

        side = UpstreamSide(attempt, keepalive=True)
        self.transport = side.transport = Transport()
        attempt.upstream = self.side = side
        return True

    def lose(self) -> None:
        self.side.connectionLost(_done())


class Transport(StringTransport):
    """What else a socket can do."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """It has no delay."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nor probes."""

    def loseWriteConnection(self) -> None:
        """Nor sides."""


class _Address:
    host = "192.0.2.1"

    def __str__(self) -> str:
        return "a client"


def _done() -> Any:
    from twisted.internet.error import ConnectionAborted
    from twisted.python.failure import Failure

    return Failure(ConnectionAborted())
