"""The listener: its limit, its table, and what it does without descriptors."""

from __future__ import annotations

import itertools
import json
import socket
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from proxykit.core.deadlines import Deadlines
from proxykit.core.sharing import explained
from proxykit.net.listener import BACKLOG, Listener, endpoint
from tests.sockets import (
    HOST,
    TIMEOUT,
    End,
    blocking,
    connect,
    end_of,
    hear,
    reactor,
    start_backend,
    turns,
    until,
)


class Echo(End):
    """Says everything again."""

    def dataReceived(self, data: bytes) -> None:
        self.send(data)

    def readConnectionLost(self) -> None:
        self.close()


class Mode(Factory):
    """A mode's factory, and what it is told."""

    noisy = False

    def __init__(self, protocol: Any = Echo) -> None:
        self.made: list[Any] = []
        self.made_by = protocol
        self.stopped = 0

    def buildProtocol(self, addr: Any) -> Any:
        made = self.made_by()
        if made is not None:
            self.made.append(made)
        return made

    def stopFactory(self) -> None:
        self.stopped += 1


class ListenerTests(TestCase):
    timeout = TIMEOUT

    async def start(self, limit: int = 100, protocol: Any = Echo, name: str = "front") -> Listener:
        self.clock = Clock()
        self.mode = Mode(protocol)
        deadlines = Deadlines(self.clock, lambda: None)
        listener = Listener(name, self.mode, limit, itertools.count(7), deadlines)
        await listener.listen(endpoint(reactor, f"tcp:0:interface={HOST}"))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop(listener)))
        return listener

    async def stop(self, listener: Listener) -> None:
        await listener.stop_listening()
        for protocol in self.mode.made:
            await end_of(protocol)

    async def echoes(self, client: Any) -> None:
        client.send(b"are you there?")
        await client.got(b"are you there?")

    async def test_it_numbers_connections_and_keeps_a_table_of_them(self) -> None:
        listener = await self.start()
        first = await connect(self, port_of(listener))
        await self.echoes(first)
        second = await connect(self, port_of(listener))
        await self.echoes(second)
        self.assertEqual(list(listener.connections), [7, 8])
        one, two = self.mode.made
        self.assertEqual((one.info.id, one.info.listener), (7, "front"))
        self.assertEqual(one.info.client, first.transport.getHost())
        self.assertEqual(one.info.client_host, HOST)
        self.assertEqual(
            listener.describe_connections(),
            [
                {"id": 7, "listener": "front", "client": address_of(first)},
                {"id": 8, "listener": "front", "client": address_of(second)},
            ],
        )
        # Its mode does not say whether it shares anything.
        self.assertEqual(
            listener.explain(8),
            {**listener.describe_connections()[1], **explained(None, None, "unknown")},
        )
        first.close()
        await until(lambda: len(listener.connections) == 1)
        with self.assertRaises(KeyError):
            listener.explain(7)
        self.assertEqual(list(listener.connections.values()), [two])
        await self.echoes(await connect(self, port_of(listener)))
        self.assertEqual(list(listener.connections), [8, 9])

    async def test_the_info_is_there_before_the_connection_is_made(self) -> None:
        seen: list[Any] = []

        class Curious(Echo):
            info: Any = None

            def connectionMade(self) -> None:
                seen.append(self.info.id)

        listener = await self.start(protocol=Curious)
        await self.echoes(await connect(self, port_of(listener)))
        self.assertEqual(seen, [7])

    async def test_snapshot(self) -> None:
        listener = await self.start(limit=1)
        expected = {
            "name": "front",
            "address": f"{HOST}:{port_of(listener)}",
            "connections": 0,
            "max_connections": 1,
            "accepted": 0,
            "paused": None,
            "draining": False,
        }
        self.assertEqual(listener.snapshot(), expected)
        await self.echoes(await connect(self, port_of(listener)))
        expected |= {
            "connections": 1,
            "accepted": 1,
            "paused": "all of its 1 connections are in use (max_connections)",
        }
        self.assertEqual(listener.snapshot(), expected)

    async def test_a_mode_that_refuses(self) -> None:
        listener = await self.start(protocol=lambda: None)
        client = await connect(self, port_of(listener))
        await until(lambda: client.read_ended or client.reason)
        self.assertEqual((listener.accepted, listener.connections), (0, {}))

    async def test_a_protocol_that_raises_when_it_is_lost(self) -> None:
        class Bad(Echo):
            def connectionLost(self, reason: Any) -> None:
                raise ZeroDivisionError

        listener = await self.start(protocol=Bad)
        client = await connect(self, port_of(listener))
        await self.echoes(client)
        client.reset()
        await until(lambda: not listener.connections)
        await until(lambda: self.flushLoggedErrors(ZeroDivisionError))

    async def test_a_protocol_that_raises_when_it_is_made(self) -> None:
        """Its client must not be left with a connection that nobody serves."""

        class Bad(Protocol):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

        listener = await self.start(protocol=Bad)
        client = await connect(self, port_of(listener))
        await until(lambda: self.flushLoggedErrors(ZeroDivisionError))
        await turns()
        self.assertEqual(listener.connections, {})
        self.assertTrue(client.read_ended or client.reason)

    async def test_the_limit(self) -> None:
        lines = hear(self)
        listener = await self.start(limit=2)
        clients = [await connect(self, port_of(listener)) for _ in range(4)]
        for client in clients:
            client.send(b"hello")
        await clients[0].got(b"hello")
        await clients[1].got(b"hello")
        await turns(20)
        self.assertEqual((listener.accepted, len(self.mode.made)), (2, 2))
        self.assertEqual((clients[2].received, clients[3].received), (b"", b""))
        for leaving, entering in ((0, 2), (1, 3)):
            clients[leaving].close()
            await clients[entering].got(b"hello")
            self.assertLessEqual(len(listener.connections), 2)
        clients[2].close()
        clients[3].close()
        await until(lambda: not listener.connections)
        self.assertEqual(listener.paused, "")
        self.assertEqual(
            [line for line in lines if "not accepting" in line],
            ["front: not accepting: all of its 2 connections are in use (max_connections)"],
        )

    async def test_it_resumes_at_95_percent(self) -> None:
        listener = await self.start(limit=40)
        clients = [await connect(self, port_of(listener)) for _ in range(40)]
        await until(lambda: listener.paused)
        late = await connect(self, port_of(listener))
        late.send(b"hello")
        clients.pop().close()
        await until(lambda: len(listener.connections) == 39)
        self.assertTrue(listener.paused)
        clients.pop().close()
        await late.got(b"hello")
        self.assertEqual((len(listener.connections), listener.paused), (39, ""))

    async def test_a_limit_of_one(self) -> None:
        listener = await self.start(limit=1)
        for _ in range(3):
            client = await connect(self, port_of(listener))
            await self.echoes(client)
            self.assertTrue(listener.paused)
            client.close()
            await until(lambda: not listener.connections)
            self.assertEqual(listener.paused, "")

    async def test_a_line_a_minute(self) -> None:
        """A listener that is full again and again says so once a minute."""
        lines = hear(self)
        listener = await self.start(limit=1)
        for _ in range(9):
            client = await connect(self, port_of(listener))
            await self.echoes(client)
            client.close()
            await until(lambda: not listener.connections)
            self.clock.advance(29.9)
        # At 0, 59.8 (no), 89.7, 179.4 seconds.
        self.assertEqual(len([line for line in lines if "not accepting" in line]), 3)

    async def test_another_reason_is_said_at_once(self) -> None:
        lines = hear(self)
        listener = await self.start(limit=1)
        client = await connect(self, port_of(listener))
        await self.echoes(client)
        client.close()
        await until(lambda: not listener.connections)
        listener.starved()
        self.assertEqual(
            [line.partition("not accepting: ")[2] for line in lines if "not accepting" in line],
            [
                "all of its 1 connections are in use (max_connections)",
                "this process has no file descriptors left (ulimit -n)",
            ],
        )

    async def test_stop_listening(self) -> None:
        lines = hear(self)
        listener = await self.start(limit=2)
        port = port_of(listener)
        self.assertEqual(lines, [f"front: listening on {HOST}:{port}"])
        client = await connect(self, port)
        await self.echoes(client)
        await connect(self, port)
        await until(lambda: listener.paused)
        await listener.stop_listening()
        self.assertEqual((listener.address, self.mode.stopped), ("", 1))
        await listener.stop_listening()
        client.send(b"!")
        await client.got(b"are you there?!")  # who is in may stay
        with self.assertRaises(ConnectionRefusedError):
            blocking(self, port)
        client.close()  # and it does not matter any more that there is room again
        await until(lambda: len(listener.connections) == 1)
        self.assertEqual(listener.snapshot()["address"], "")

    async def test_a_port_in_use(self) -> None:
        taken = await start_backend(self)
        listener = Listener(
            "front", Mode(), 10, itertools.count(), Deadlines(Clock(), lambda: None)
        )
        where = endpoint(reactor, f"tcp:{taken.address.port}:interface={HOST}")
        with self.assertRaises(CannotListenError):
            await listener.listen(where)
        self.assertEqual(listener.address, "")


class EndpointTests(TestCase):
    timeout = 10

    def test_a_backlog_fit_for_a_proxy(self) -> None:
        for text in ("tcp:80", "tcp:80:interface=127.0.0.1", "tcp:port=80", "unix:/run/x"):
            made: Any = endpoint(reactor, text)
            self.assertIsInstance(made, TCP4ServerEndpoint | UNIXServerEndpoint)
            self.assertEqual(made._backlog, BACKLOG)

    def test_unless_the_user_has_another(self) -> None:
        made: Any = endpoint(reactor, "tcp:80:backlog=5")
        self.assertEqual(made._backlog, 5)

    def test_other_kinds_are_left_as_they_are(self) -> None:
        with self.assertRaises(ValueError):
            endpoint(reactor, "nonsense:80")


ROOT = __file__.rpartition("/tests/")[0]


class Child(ProcessProtocol):
    """The process of tests.starving."""

    def __init__(self) -> None:
        self.over: Deferred[None] = Deferred()
        self._text = b""
        self._told: Deferred[dict[str, Any]] = Deferred()
        self.errors = b""

    def outReceived(self, data: bytes) -> None:
        self._text += data
        line, newline, rest = self._text.partition(b"\n")
        if newline:
            self._text = rest
            told, self._told = self._told, Deferred()
            told.callback(json.loads(line))

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def answer(self) -> Deferred[dict[str, Any]]:
        return self._told

    def order(self, text: str) -> Deferred[dict[str, Any]]:
        self.transport.write(text.encode() + b"\n")
        return self._told

    def processEnded(self, reason: Any) -> None:
        self.over.callback(None)
        if self._told.callbacks:
            self._told.errback(AssertionError(self.errors.decode()))


class FakePort:
    """A port, and its endpoint, whose socket has answers laid down."""

    family = socket.AF_UNIX

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.socket: Any = self
        self.reading = True

    def listen(self, factory: Any) -> Deferred[FakePort]:
        return succeed(self)

    def accept(self) -> tuple[Any, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer, (HOST, 1)

    def getHost(self) -> str:
        return "somewhere"

    def startReading(self) -> None:
        self.reading = True

    def stopReading(self) -> None:
        self.reading = False

    def stopListening(self) -> None:
        self.reading = False


class Bare:
    """A port of which nothing is known."""

    def listen(self, factory: Any) -> Deferred[Bare]:
        return succeed(self)

    def getHost(self) -> str:
        return "somewhere"


class FakeSocket:
    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


def port_of(listener: Listener) -> int:
    return int(listener.address.rpartition(":")[2])


def address_of(client: Any) -> str:
    host = client.transport.getHost()
    return f"{host.host}:{host.port}"
