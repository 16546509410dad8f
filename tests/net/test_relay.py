"""The relay, between real sockets: bytes, ends, resets, and what is held in between."""

from __future__ import annotations

import hashlib
import random
import socket
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from proxykit.core.deadlines import Deadlines
from proxykit.model import Address
from proxykit.modes.tcp import TcpSettings
from proxykit.net.relay import Relay, RelaySide
from tests.sockets import (
    HOST,
    TIMEOUT,
    End,
    free_port,
    held,
    in_thread,
    reactor,
    read_all,
    reset_on_close,
    start_backend,
    start_proxy,
    turns,
    until,
)

#: What a transport holds at most: 64 KiB, and the read that went over it.
BOUND = 65536 + 65536


class BytesTests(TestCase):
    """What goes in comes out."""

    timeout = TIMEOUT

    async def test_both_ways(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        client.send(b"ping")
        await served.got(b"ping")
        served.send(b"pong")
        await client.got(b"pong")
        client.send(b" again")
        await served.got(b"ping again")

    async def test_a_server_that_speaks_first(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        served.send(b"220 welcome\r\n")
        await client.got(b"220 welcome\r\n")

    async def test_64_mib_both_ways_at_once(self) -> None:
        backend = await start_backend(self, lambda: Bulk(b"down"))
        proxy = start_proxy(self, backend)
        client = await proxy.connect(Bulk(b"up"))
        served = await backend.accepted()
        await client.ended()
        await served.ended()
        self.assertEqual((client.count, served.count), (Bulk.SIZE, Bulk.SIZE))
        self.assertEqual(client.digest(), served.sent())
        self.assertEqual(served.digest(), client.sent())
        client.close()
        served.close()
        await proxy.empty()

    async def test_random_conversations(self) -> None:
        chance = random.Random(20261123)
        backend = await start_backend(self, lambda: Erratic(chance))
        proxy = start_proxy(self, backend)
        clients = [await proxy.connect(Erratic(chance)) for _ in range(60)]
        await gatherResults([Deferred.fromCoroutine(client.gone()) for client in clients])
        await proxy.empty()
        # Whatever arrived is the beginning of what was sent, unchanged.
        for end in [*clients, *backend.ends]:
            self.assertEqual(bytes(end.received), Erratic.text(len(end.received)))


class EndTests(TestCase):
    """Half-close, close and reset are passed on as what they are."""

    timeout = TIMEOUT

    async def test_the_client_ends_first_and_gets_the_whole_reply(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        client.send(b"question")
        client.finish()
        await served.got(b"question")
        await served.ended()
        reply = bytes(range(256)) * 4096
        served.send(reply)
        served.close()
        await client.got(reply)
        await client.ended()
        await proxy.empty()

    async def test_the_backend_ends_first_and_hears_the_rest(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        served.send(b"enough")
        served.finish()
        await client.got(b"enough")
        await client.ended()
        client.send(b"but listen")
        client.finish()
        await served.got(b"but listen")
        await served.ended()
        await proxy.empty()

    async def test_an_end_before_the_backend_is_there(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = proxy.blocking()
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)  # the proxy has not even accepted yet
        served = await backend.accepted()
        await served.got(b"question")
        await served.ended()
        served.send(b"answer")
        served.finish()
        self.assertEqual(await in_thread(read_all, client), b"answer")
        await proxy.empty()

    async def test_an_end_and_nothing_else_before_the_backend_is_there(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = proxy.blocking()
        client.shutdown(socket.SHUT_WR)
        served = await backend.accepted()
        await served.ended()
        served.send(b"the time is 12:00\n")
        served.close()
        self.assertEqual(await in_thread(read_all, client), b"the time is 12:00\n")
        await proxy.empty()

    async def test_what_was_on_its_way_before_a_close_arrives(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = proxy.blocking(receive_buffer=4096)
        served = await backend.accepted()
        reply = random.Random(1).randbytes(3_000_000)
        served.send(reply)
        served.close()
        self.assertEqual(await in_thread(read_all, client), reply)
        client.close()
        await proxy.empty()

    async def test_both_end_at_the_same_moment(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        await proxy.side()
        client.send(b"bye")
        served.send(b"farewell")
        client.finish()
        served.finish()
        await client.got(b"farewell")
        await served.got(b"bye")
        await client.ended()
        await served.ended()
        await proxy.empty()

    async def test_both_reset_at_the_same_moment(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        await proxy.side()
        client.reset()
        served.reset()
        await proxy.empty()

    async def test_the_clients_reset_reaches_the_backend(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        await proxy.side()
        client.reset()
        self.assertTrue(await served.lost())
        await proxy.empty()

    async def test_the_backends_reset_reaches_the_client(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        await proxy.side()
        served.reset()
        self.assertTrue(await client.lost())
        await proxy.empty()

    async def test_a_reset_by_a_client_that_had_ended_reaches_the_backend(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = proxy.blocking(receive_buffer=4096)
        served = await backend.accepted()
        client.shutdown(socket.SHUT_WR)
        await served.ended()
        # The backend sends on and on, so it learns of the reset even after the client's end.
        served.send(bytes(30_000_000))
        side = await proxy.side()
        await until(lambda: held(side.transport))
        assert side.relay is not None
        aborted = _watch_close(side.relay.upstream.transport)
        reset_on_close(client)
        client.close()
        self.assertTrue(await served.lost())
        self.assertEqual(aborted, [True])
        await proxy.empty()

    async def test_a_reset_by_a_backend_that_had_ended_reaches_the_client(self) -> None:
        listening = socket.create_server((HOST, 0))
        self.addCleanup(listening.close)
        proxy = start_proxy(self, _address(listening))
        client = await proxy.connect()
        served, _ = await in_thread(listening.accept)
        self.addCleanup(served.close)
        side = await proxy.side()
        served.shutdown(socket.SHUT_WR)
        await client.ended()
        client.send(b"more")
        await until(lambda: side.received)
        reset_on_close(served)
        served.close()
        # Twisted does not look at a socket that has ended and has nothing to write; the client's
        # next bytes find out. From there on the client must hear of it as a reset.
        aborted = _watch_close(side.transport)
        client.send(b"and more")
        await until(lambda: aborted)
        self.assertEqual(aborted, [True])
        await proxy.empty()

    async def test_idle_ends_both_with_a_reset(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend, settings=TcpSettings(idle_timeout=60.0))
        client = await proxy.connect()
        served = await backend.accepted()
        await proxy.side()
        for _ in range(3):  # any byte from either side begins it anew
            proxy.clock.advance(55)
            client.send(b".")
            await until(lambda: len(served.received) == len(client.received) + 1)
            proxy.clock.advance(55)
            served.send(b".")
            await until(lambda: len(served.received) == len(client.received))
        proxy.clock.advance(70)
        self.assertTrue(await client.lost())
        self.assertTrue(await served.lost())
        await proxy.empty()

    async def test_idle_after_one_end_resets_the_side_that_has_not_ended(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend, settings=TcpSettings(idle_timeout=60.0))
        client = await proxy.connect()
        served = await backend.accepted()
        side = await proxy.side()
        client.finish()
        await served.ended()
        assert side.relay is not None
        aborted = _watch_close(side.relay.upstream.transport)
        proxy.clock.advance(70)
        self.assertTrue(await client.lost())
        await until(lambda: aborted)
        self.assertEqual(aborted, [True])
        await proxy.empty()


class AbortTests(TestCase):
    """The end of a relay one side of which is gone, and the other has not taken its bytes yet."""

    timeout = TIMEOUT

    def test_only_who_is_there_is_reset(self) -> None:
        ended: list[str] = []
        client, upstream = RelaySide(), RelaySide()
        client.transport, upstream.transport = Counting(), Counting()
        clock = Clock()
        relay = Relay(client, upstream, Deadlines(clock, lambda: None), 10.0, ended.append)
        relay.start()
        upstream.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((client.transport.lost, client.transport.aborted), (1, 0))
        clock.advance(12)
        self.assertEqual((client.transport.aborted, upstream.transport.aborted), (1, 0))
        client.connectionLost(Failure(ConnectionAborted()))
        self.assertEqual(ended, [" closed"])  # what came first


class Counting:
    """A transport that is told to go."""

    lost = aborted = 0

    def resumeProducing(self) -> None:
        """It never paused."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """It never holds anything back."""

    def unregisterProducer(self) -> None:
        """Nor does it now."""

    def loseConnection(self) -> None:
        self.lost += 1

    def abortConnection(self) -> None:
        self.aborted += 1


class ClosedPortTests(TestCase):
    timeout = TIMEOUT

    async def test_a_refused_client_is_reset(self) -> None:
        proxy = start_proxy(self, _at(free_port(self)))
        client = await proxy.connect()
        self.assertTrue(await client.lost())
        await proxy.empty()


def _address(listening: socket.socket) -> Address:
    return _at(listening.getsockname()[1])


def _at(port: int) -> Address:
    return Address(HOST, port)


def _watch(transport: Any) -> list[int]:
    """How much a transport holds after each write."""
    peaks: list[int] = []
    write = transport.write

    def watched(data: bytes) -> None:
        write(data)
        peaks.append(held(transport))

    transport.write = watched
    return peaks


def _watch_close(transport: Any) -> list[bool]:
    """Whether a transport's socket, once it is closed, was closed with a reset."""
    resets: list[bool] = []
    close_socket = transport._closeSocket

    def watched(orderly: bool) -> None:
        resets.append(not orderly)
        close_socket(orderly)

    transport._closeSocket = watched
    return resets


class Bulk(End):
    """Sends 64 MiB as fast as they are taken, and sums up what comes."""

    SIZE = 64 << 20
    CHUNK = 1 << 18

    def __init__(self, seed: bytes) -> None:
        super().__init__()
        self.count = 0
        self._block = (seed * self.CHUNK)[: self.CHUNK - 7]
        self._left = self.SIZE
        self._in, self._out = hashlib.blake2b(), hashlib.blake2b()

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        part = self._block[: self._left]
        if part:
            self._left -= len(part)
            self._out.update(part)
            self.transport.write(part)
        else:
            self.transport.unregisterProducer()
            self.finish()

    def stopProducing(self) -> None:
        self._left = 0

    def dataReceived(self, data: bytes) -> None:
        self.count += len(data)
        self._in.update(data)

    def digest(self) -> bytes:
        return self._in.digest()

    def sent(self) -> bytes:
        return self._out.digest()


class Erratic(End):
    """Answers with random amounts, pauses, and breaks off in one of several ways."""

    @staticmethod
    def text(count: int) -> bytes:
        """The first bytes of what each of them says."""
        return (bytes(range(251)) * (count // 251 + 1))[:count]

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self._sent = 0
        self._rounds = chance.randrange(1, 12)

    def connectionMade(self) -> None:
        self._speak()

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self._speak()

    def readConnectionLost(self) -> None:
        super().readConnectionLost()
        self.close()

    def _speak(self) -> None:
        if self._rounds == 0 or self.transport.disconnecting:
            return
        self._rounds -= 1
        size = self._chance.choice((1, 100, 5000, 70_000, 300_000))
        self.send(self.text(self._sent + size)[self._sent :])
        self._sent += size
        if self._chance.random() < 0.3:
            self.transport.pauseProducing()
            reactor.callLater(0, self._go_on)
        if self._rounds == 0:
            self._chance.choice((self.finish, self.close, self.reset))()

    def _go_on(self) -> None:
        if not self.read_ended:
            self.transport.resumeProducing()

    async def gone(self) -> None:
        """Wait until it is over, and make sure that it is."""
        await until(lambda: self.read_ended or self.reason or self._rounds == 0)
        await turns(20)
        if self.reason is None:
            self.reset()
        await self.lost()
