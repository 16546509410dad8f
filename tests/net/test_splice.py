"""Bulk through pipes: no byte is lost, doubled or moved, whatever the sizes, pauses and ends."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
from typing import Any

from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from proxykit.net.relay import Relay, RelaySide
from proxykit.net.splice import MOST_PIPES, Pipe, Pipes

if hasattr(select, "epoll"):
    from proxykit.net.reactor import ProxykitReactor

ROUNDS = 2000
#: One body for all, so that a byte out of place shows.
BODY = random.Random(1).randbytes(1 << 22)
RESET = struct.pack("ii", 1, 0)


class Side(RelaySide):
    """One that tells how its bytes came."""

    def __init__(self) -> None:
        super().__init__()
        self.through_pipes = 0
        self.lost: Any = None

    def spliced(self, count: int) -> None:
        self.through_pipes += count
        super().spliced(count)


class Deadline:
    def touch(self) -> None:
        """Nobody waits for it."""

    cancel = touch


class Deadlines:
    def add(self, duration: float, call: Any) -> Any:
        return Deadline()


class SpliceTestCase(SynchronousTestCase):
    """A reactor of its own, whose turns the test takes; real sockets at its ends."""

    if not hasattr(select, "epoll"):
        skip = "there is no epoll"

    def setUp(self) -> None:
        self.reactor: Any = ProxykitReactor()

    def tearDown(self) -> None:
        self.assertEqual(self.reactor.pipes.lent, 0)
        self.reactor.pipes.close()
        self.reactor.disconnectAll()
        self.reactor._uninstallHandler()
        for reader in list(self.reactor._internalReaders):
            self.reactor.removeReader(reader)
            reader.connectionLost(None)
        self.reactor._poller.close()

    def end(self, side: Protocol, tcp: bool) -> socket.socket:
        """The far end of a new connection whose near end is ``side``'s."""
        near, far = tcp_pair() if tcp else socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        factory = type("Factory", (), {"buildProtocol": lambda self, address: side})()
        self.reactor.adoptStreamConnection(near.fileno(), near.family, factory)
        near.close()
        self.addCleanup(far.close)
        return far

    def relay(self, tcp: bool = True) -> tuple[socket.socket, socket.socket, Side, Side, list[str]]:
        client, upstream = Side(), Side()
        client.name, upstream.name = "client", "backend"
        ends = self.end(client, tcp), self.end(upstream, tcp)
        why: list[str] = []
        Relay(client, upstream, Deadlines(), 60.0, why.append).start()  # type: ignore[arg-type]
        return *ends, client, upstream, why

    def turn(self) -> None:
        self.reactor.iterate(0)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    return near, far


class End:
    """What a test does at one far end: send so much and then end, and read what comes."""

    def __init__(self, sock: socket.socket, size: int, seed: random.Random) -> None:
        self.sock = sock
        self.size = size
        self.sent = 0
        self.received = bytearray()
        self.ended = self.over = False
        self.seed = seed
        self.start = seed.randrange(1 << 20)

    @property
    def body(self) -> bytes:
        """What is sent in all."""
        return BODY[self.start : self.start + self.size]

    def step(self) -> None:
        seed = self.seed
        try:
            if self.sent < self.size and seed.random() < 0.7:
                size = seed.choice((1, 100, 5000, 70_000, 300_000))
                begin = self.start + self.sent
                rest = min(size, self.size - self.sent)
                self.sent += self.sock.send(BODY[begin : begin + rest])
            elif self.sent == self.size and not self.ended:
                self.sock.shutdown(socket.SHUT_WR)
                self.ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        try:
            # Now and then it does not read for a while, and everything fills up.
            if seed.random() < 0.6:
                data = self.sock.recv(seed.choice((10, 5000, 1 << 20)))
                self.received += data
                self.over = self.over or not data
        except BlockingIOError:
            pass
        except OSError:
            self.over = True


class RelayTests(SpliceTestCase):
    def test_rounds(self) -> None:
        """Thousands of conversations, the most of them small; some are cut off."""
        seed = random.Random(20261122)
        spliced = cut_off = 0
        for number in range(ROUNDS):
            tcp = seed.random() < 0.5
            here, there, client, upstream, why = self.relay(tcp)
            for side in (client, upstream):
                if not tcp and seed.random() < 0.4:
                    # It takes less than a read brings, so that some of it waits in a buffer. (TCP
                    # on loopback, whose segments are 64 KiB, would wait for timers.)
                    transport: Any = side.transport
                    transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
            sizes = [seed.choice((0, 1, 3000, 200_000, 900_000)) for _ in range(2)]
            if number % 50 == 0:
                sizes[seed.randrange(2)] = 3_000_000
            ends = End(here, sizes[0], seed), End(there, sizes[1], seed)
            cut = seed.randrange(40) if seed.random() < 0.3 else None
            for step in range(100_000):
                if cut == step:
                    cut_off += 1
                    victim = seed.choice(ends)
                    if seed.random() < 0.5:
                        victim.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    victim.sock.close()
                for end in ends:
                    if end.sock.fileno() >= 0:
                        end.step()
                self.turn()
                if why:
                    break
            self.assertTrue(why, f"round {number} did not end: {sizes}")
            for end, other in (ends, ends[::-1]):
                while end.sock.fileno() >= 0 and not end.over:
                    end.step()
                self.assertEqual(
                    bytes(end.received), other.body[: len(end.received)], f"round {number}"
                )
                if cut is None or step < cut:
                    self.assertEqual(len(end.received), other.size, f"round {number}")
                end.sock.close()
            if cut is None or step < cut:
                self.assertEqual((client.received, upstream.received), tuple(sizes))
            spliced += client.through_pipes + upstream.through_pipes
        # Both ways were taken, and the cut-offs did happen.
        self.assertGreater(spliced, 10_000_000)
        self.assertGreater(cut_off, 50)

    def test_without_pipes(self) -> None:
        """Everything is copied when there are none to be had."""
        self.reactor.pipes = Pipes(most=0)
        here, there, client, upstream, why = self.relay()
        ends = End(here, 2_000_000, random.Random(1)), End(there, 2_000_000, random.Random(2))
        while not why:
            for end in ends:
                end.step()
            self.turn()
        self.assertEqual((client.through_pipes, upstream.through_pipes), (0, 0))
        for end, other in (ends, ends[::-1]):
            while not end.over:
                end.step()
            self.assertEqual(bytes(end.received), other.body)

    def test_more_transfers_than_pipes(self) -> None:
        """Readers that do not read hold pipes; the others go on without."""
        relays = [self.relay() for _ in range(MOST_PIPES + 6)]
        sent = [0] * len(relays)
        for _ in range(300):
            for number, (_, there, *_) in enumerate(relays):
                with contextlib.suppress(BlockingIOError):
                    sent[number] += there.send(BODY[sent[number] :])
            self.turn()
        self.assertLessEqual(self.reactor.pipes.lent, MOST_PIPES)
        # Whether one is held at this very moment depends on how much the kernel has taken.
        self.assertGreater(sum(upstream.through_pipes for *_, upstream, _ in relays), 0)
        for number, (here, there, *_rest, why) in enumerate(relays):
            there.shutdown(socket.SHUT_WR)
            received = bytearray()
            for _ in range(200_000):
                try:
                    data = here.recv(1 << 20)
                except BlockingIOError:
                    self.turn()
                    continue
                if not data:
                    break
                received += data
            self.assertEqual(bytes(received), BODY[: sent[number]])
            here.close()
            while not why:
                self.turn()


class Counting(Protocol):
    """A source that splices a limited number of bytes."""

    def __init__(self) -> None:
        self.read = b""
        self.moved = 0

    def dataReceived(self, data: bytes) -> None:
        self.read += data
        if self.sink is not None:
            self.sink.write(data)

    sink: Any = None


class LimitTests(SpliceTestCase):
    def test_exactly(self) -> None:
        """Of what comes, the limit goes to the sink, spliced or copied; the rest stays here."""
        seed = random.Random(3)
        for limit in (1, 65536, 65537, 300_000, 1 << 20, 2_500_000):
            for _ in range(5):
                source, sink = Counting(), Counting()
                far, out = self.end(source, True), self.end(sink, True)
                transport: Any = source.transport
                moved: list[int] = []
                self.assertTrue(transport.splice_to(sink.transport, limit, moved.append))
                source.sink = sink.transport
                sent, arrived = 0, bytearray()
                total = limit + seed.randrange(1, 200_000)
                while len(arrived) < limit or sent < total:
                    if sent < total:
                        with contextlib.suppress(BlockingIOError):
                            sent += far.send(BODY[sent:total])
                    self.turn()
                    if transport.splice_out is None:
                        source.sink = None  # The limit is reached.
                    with contextlib.suppress(BlockingIOError):
                        arrived += out.recv(1 << 20)
                for _ in range(50):
                    self.turn()
                # What went through dataReceived is in both.
                copied = limit - sum(moved)
                self.assertEqual(len(arrived) + len(source.read) - copied, total)
                self.assertEqual(bytes(arrived), BODY[:limit])
                self.assertTrue(source.read.endswith(BODY[limit:total]))
                far.close()
                out.close()
                for _ in range(5):
                    self.turn()

    def test_after_what_is_buffered(self) -> None:
        """What waits in the sink's buffer is not overtaken, however much comes."""
        source, sink = Counting(), Counting()
        far, out = self.end(source, False), self.end(sink, False)
        transport: Any = source.transport
        waiting: Any = sink.transport
        waiting.write(BODY[:500_000])  # more than the socket takes
        self.assertTrue(waiting.waits or waiting.dataBuffer or waiting._tempDataBuffer)
        source.sink = waiting
        self.assertTrue(transport.splice_to(waiting, None, lambda count: None))
        transport.splice_out.copied(0, True)
        transport.splice_out.copied(0, True)  # as if it were bulk already
        sent, arrived = 500_000, bytearray()
        while len(arrived) < 1_500_000:
            with contextlib.suppress(BlockingIOError):
                sent += far.send(BODY[sent:1_500_000])
            self.turn()
            with contextlib.suppress(BlockingIOError):
                arrived += out.recv(50_000)
        self.assertEqual(bytes(arrived), BODY[:1_500_000])
        transport.abortConnection()
        waiting.abortConnection()
        self.turn()
        self.turn()

    def test_peek_and_consume(self) -> None:
        class Still(Counting):
            def connectionMade(self) -> None:
                self.transport.stopReading()  # type: ignore[union-attr]

        side = Still()
        far = self.end(side, True)
        transport: Any = side.transport
        self.assertEqual(transport.peek(10), b"")
        far.send(b"hello world")
        while transport.peek(5) != b"hello":
            self.turn()
        self.assertEqual(transport.peek(100), b"hello world")
        transport.consume(6)
        self.assertEqual(transport.peek(100), b"world")
        transport.startReading()
        while not side.read:
            self.turn()
        self.assertEqual(side.read, b"world")
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        far.close()
        self.assertRaises(OSError, transport.peek, 1)
        transport.abortConnection()
        self.turn()
        self.turn()


class PipesTests(SynchronousTestCase):
    def test_bounded(self) -> None:
        pipes = Pipes(most=2)
        first, second = pipes.borrow(), pipes.borrow()
        assert first is not None
        assert second is not None
        self.assertIsNone(pipes.borrow())
        pipes.give_back(first)
        self.assertIs(pipes.borrow(), first)
        first.held = 1
        pipes.give_back(first)  # closed with what is in it
        pipes.give_back(second)
        self.assertIs(pipes.borrow(), second)
        self.assertEqual(pipes.lent, 1)
        pipes.give_back(second)
        pipes.close()

    def test_refused(self) -> None:
        """A pipe that may not grow, or not be made, is none."""
        import fcntl
        import os

        def refuse(*_: Any) -> Any:
            raise PermissionError

        with_quota_used_up = Pipes()
        self.patch(fcntl, "fcntl", refuse)
        self.assertIsNone(with_quota_used_up.borrow())
        self.patch(os, "pipe2", refuse)
        self.assertIsNone(with_quota_used_up.borrow())
        self.assertEqual(with_quota_used_up.lent, 0)

    def test_smaller(self) -> None:
        import fcntl

        real = fcntl.fcntl

        def small(descriptor: int, command: int, size: int) -> int:
            if size > 1 << 18:
                raise PermissionError
            return real(descriptor, command, size)

        self.patch(fcntl, "fcntl", small)
        pipe = Pipe()
        self.addCleanup(pipe.close)
        self.assertEqual(pipe.size, 1 << 18)
