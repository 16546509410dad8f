"""What the kernel shows of its sockets: of real ones, and of what no kernel has sent."""

from __future__ import annotations

import errno
import os
import socket
import struct
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.net import sockdiag
from proxykit.net.sockdiag import LISTEN, READ_BYTES, TIME_WAIT, Dump, source_part, way

FOUR, SIX, MAPPED = "127.0.0.1", "::1", "::ffff:127.0.0.1"
ESTABLISHED, FIN_WAIT = 1, (4, 5)
Row = tuple[int, int, bytes, int]


def why_not() -> str:
    """Why the kernel cannot be asked here; empty: it can."""
    try:
        Dump(1, 65535).close()
    except OSError as problem:
        return f"the kernel does not show its sockets: {problem}"
    return ""


def rows_of(dump: Dump) -> list[Row]:
    """All of one question."""
    try:
        found = []
        while not dump.done:
            found += list(dump.read())
        return found
    finally:
        dump.close()


class RealTests(SynchronousTestCase):
    """Sockets of this test's own, on loopback."""

    skip = why_not() or None

    def server(self, host: str) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.addCleanup(made.close)
        made.bind((host, 0))
        made.listen(300)
        return made

    def pair(self, host: str, to: socket.socket | None = None) -> tuple[Any, Any, int, int]:
        """A client, what its server has accepted, and the ports of both."""
        server = to or self.server(host)
        client = socket.socket(server.family)
        self.addCleanup(client.close)
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        self.addCleanup(accepted.close)
        return client, accepted, client.getsockname()[1], server.getsockname()[1]

    def shown(self, port: int, where: bytes) -> list[Row]:
        """What has a port and leads there; others may have it to lead elsewhere."""
        return [row for row in rows_of(Dump(port, port)) if row[2] == where]

    def test_both_ends(self) -> None:
        """Of one connection, in the family of the sockets that it has."""
        for host, here, as_it_is_shown in ((FOUR, FOUR, 0), (SIX, SIX, 0), (MAPPED, FOUR, 1)):
            client, accepted, port, server = self.pair(host)
            to_server = way(here, here, server)[as_it_is_shown]
            inode = os.fstat(client.fileno()).st_ino
            self.assertEqual(
                self.shown(port, to_server), [(ESTABLISHED, port, to_server, inode)], host
            )
            to_client = way(here, here, port)[as_it_is_shown]
            inode = os.fstat(accepted.fileno()).st_ino
            self.assertEqual(
                self.shown(server, to_client), [(ESTABLISHED, server, to_client, inode)], host
            )

    def test_of_two_families(self) -> None:
        """A server of IPv6 has a client of IPv4: each end is shown in its own way."""
        server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.addCleanup(server.close)
        client = socket.create_connection((FOUR, server.getsockname()[1]))
        self.addCleanup(client.close)
        port, to = client.getsockname()[1], server.getsockname()[1]
        for of, other, shown in ((port, to, 0), (to, port, 1)):
            ways = way(FOUR, FOUR, other)
            self.assertEqual(len(self.shown(of, ways[shown])), 1)
            self.assertEqual(self.shown(of, ways[1 - shown]), [])

    def test_listening(self) -> None:
        for host in (FOUR, SIX):
            server = self.server(host)
            port = server.getsockname()[1]
            where = bytes(2) + way(host, "", 0)[0] + bytes(16)
            inode = os.fstat(server.fileno()).st_ino
            self.assertEqual(self.shown(port, where), [(LISTEN, port, where, inode)])

    def test_time_wait(self) -> None:
        """Of who closed first, from the moment on in which no process has it any more."""
        for host in (FOUR, SIX):
            client, accepted, port, server = self.pair(host)
            to_server = way(host, host, server)[0]
            client.close()
            self.becomes(FIN_WAIT, port, to_server)
            accepted.close()
            self.becomes((TIME_WAIT,), port, to_server)
            self.assertEqual(self.shown(server, way(host, host, port)[0]), [])

    def becomes(self, states: tuple[int, ...], port: int, to: bytes) -> None:
        """It is nobody's, and in one of these states; before, the kernel calls it closed."""
        for _ in range(1000):
            ((state, *rest),) = self.shown(port, to)
            self.assertEqual(rest, [port, to, 0])
            if state in states:
                return
        self.assertIn(state, states)

    def test_bound_only(self) -> None:
        """It has a port, and leads nowhere: the kernel does not show it."""
        with socket.socket() as bound:
            bound.bind((FOUR, 0))
            port = bound.getsockname()[1]
            here = way(FOUR, "", 0)[0]
            found = [row for row in rows_of(Dump(port, port)) if source_part(row[2]) == here]
            self.assertEqual(found, [])

    def test_range(self) -> None:
        """From the first to the last, and nothing else."""
        _, _, port, _ = self.pair(FOUR)
        for low, high, is_in in (
            (1, 65535, True),
            (port, port, True),
            (port, 65535, True),
            (1, port, True),
            (port + 1, 65535, False),
            (1, port - 1, False),
        ):
            found = rows_of(Dump(low, high))
            self.assertTrue(all(low <= row[1] <= high for row in found))
            self.assertEqual(port in [row[1] for row in found], is_in, (low, high))

    def test_many(self) -> None:
        """More than fit into one read: each once."""
        server = self.server(FOUR)
        ports = {self.pair(FOUR, server)[2] for _ in range(300)}
        dump = Dump(1, 65535)
        self.addCleanup(dump.close)
        reads: list[list[Row]] = []
        while not dump.done:
            reads.append([*dump.read()])
        self.assertGreater(len(reads), 2)
        self.assertLess(max(map(len, reads)), 600)
        where = way(FOUR, FOUR, server.getsockname()[1])[0]
        # Somebody who had the server's port before may have left connections to it that rest.
        seen = [row[1] for read in reads for row in read if row[2] == where and row[1] in ports]
        self.assertEqual(len(seen), 300)
        self.assertEqual(set(seen), ports)

    def test_enough(self) -> None:
        """Closed before its end, it leaves nothing behind."""
        before = len(os.listdir("/proc/self/fd"))
        dump = Dump(1, 65535)
        self.assertGreater(dump.fileno(), 0)
        self.assertFalse(dump.done)
        dump.close()
        self.assertEqual(dump.fileno(), -1)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)


def message(kind: int, body: bytes) -> bytes:
    made = struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body
    return made + bytes(-len(made) % 4)


def row(state: int, port: int, where: bytes, inode: int, more: bytes = b"") -> bytes:
    """One socket; ``more``: what a kernel may say besides."""
    fields = struct.pack("=BBxx", 2, state) + port.to_bytes(2, "big") + where
    return message(18, fields + bytes(28) + struct.pack("=I", inode) + more)


def end(number: int = 0, kind: int = 3) -> bytes:
    return message(kind, struct.pack("=i", -number))


class Fed(Dump):
    """Reads what a test has laid down; behind it in the buffer is what was read before."""

    def __init__(self, *reads: bytes, stale: bytes = b"") -> None:
        self._reads = list(reads)
        self._socket: Any = self
        self._buffer = bytearray(stale.ljust(READ_BYTES, b"\0"))
        self.done = False

    def recv_into(self, buffer: bytearray) -> int:
        data = self._reads.pop(0)
        buffer[: len(data)] = data
        return len(data)


WHERE = way(FOUR, FOUR, 80)[0]


class MadeUpTests(SynchronousTestCase):
    """Buffers as a kernel might fill them, or not."""

    def test_rows(self) -> None:
        dump = Fed(
            row(ESTABLISHED, 40000, WHERE, 7) + row(TIME_WAIT, 40001, WHERE, 0, b"12345"),
            row(LISTEN, 65535, bytes(34), 0xFFFFFFFF, bytes(36)) + end() + b"whatever",
        )
        self.assertEqual(
            list(dump.read()), [(ESTABLISHED, 40000, WHERE, 7), (TIME_WAIT, 40001, WHERE, 0)]
        )
        self.assertFalse(dump.done)
        self.assertEqual(list(dump.read()), [(LISTEN, 65535, bytes(34), 0xFFFFFFFF)])
        self.assertTrue(dump.done)

    def test_nothing(self) -> None:
        dump = Fed(end())
        self.assertEqual(list(dump.read()), [])
        self.assertTrue(dump.done)

    def test_errors(self) -> None:
        """In the place of an answer, in its middle, or as how it ended."""
        for before in (b"", row(ESTABLISHED, 40000, WHERE, 7)):
            for data, number in (
                (end(errno.EPERM, kind=2), errno.EPERM),
                (end(errno.EINVAL, kind=2), errno.EINVAL),
                # So it is where the kernel was built, or started, without this for TCP.
                (end(errno.ENOENT), errno.ENOENT),
            ):
                dump = Fed(before + data)
                with self.assertRaises(OSError) as raised:
                    list(dump.read())
                self.assertEqual(raised.exception.errno, number)
                self.assertEqual(raised.exception.strerror, os.strerror(number))
                self.assertFalse(dump.done)

    def test_cut_off(self) -> None:
        """At every byte, whatever was there before it: nobody takes it for the whole."""
        parts = [row(ESTABLISHED, 40000, WHERE, 7, b"1234"), row(TIME_WAIT, 9, WHERE, 0), end()]
        whole = b"".join(parts)
        borders = {0, len(parts[0]), len(parts[0] + parts[1])}
        for size in range(len(whole)):
            for stale in (b"", whole, bytes([255]) * len(whole), end() * 20):
                dump = Fed(whole[:size], stale=stale)
                if size in borders:
                    self.assertEqual(len(list(dump.read())), sorted(borders).index(size))
                else:
                    with self.assertRaises(OSError) as raised:
                        list(dump.read())
                    self.assertIn("cut off", str(raised.exception))
                self.assertFalse(dump.done)

    def test_cut_off_at_the_end_of_the_buffer(self) -> None:
        """Where not even a header has room any more, and where it has and no more."""
        one = row(ESTABLISHED, 40000, WHERE, 7)
        for left in (4, 16):
            many, more = divmod(READ_BYTES - left - len(one), len(one))
            last = row(ESTABLISHED, 40000, WHERE, 7, bytes(more))
            with self.assertRaises(OSError) as raised:
                list(Fed(many * one + last + one[:left]).read())
            self.assertIn("cut off", str(raised.exception))

    @settings(deadline=None, max_examples=300)
    @given(st.binary(max_size=400), st.binary(max_size=400))
    def test_anything(self, data: bytes, stale: bytes) -> None:
        """It ends, and says no more than that it cannot go on."""
        for start in (b"", row(ESTABLISHED, 40000, WHERE, 7)):
            dump = Fed(start + data, stale=stale)
            try:
                found = list(dump.read())
            except OSError:
                continue
            self.assertLessEqual(len(found), (len(start) + len(data)) // 88)


class WayTests(SynchronousTestCase):
    def test_both(self) -> None:
        four, other = bytes([127, 0, 0, 1]), bytes([10, 0, 0, 9])
        mapped = bytes(10) + b"\xff\xff"
        self.assertEqual(
            way("127.0.0.1", "10.0.0.9", 8080),
            (
                b"\x1f\x90" + four + bytes(12) + other + bytes(12),
                b"\x1f\x90" + mapped + four + mapped + other,
            ),
        )
        self.assertEqual(way("::1", "::2", 1), (bytes([0, 1] + [0] * 15 + [1] + [0] * 15 + [2]),))

    def test_scope(self) -> None:
        """It belongs to an interface, and is no part of the address."""
        self.assertEqual(way("fe80::1%lo", "fe80::2%lo", 1), way("fe80::1", "fe80::2", 1))

    def test_source_alone(self) -> None:
        """As it stands in what is shown for both."""
        for source, destination in (("10.0.0.9", FOUR), ("fd00::1", SIX)):
            alone = way(source, "", 0)
            both = way(source, destination, 4711)
            self.assertEqual(tuple(map(source_part, both)), alone)
            self.assertEqual({len(each) for each in alone}, {16})
            self.assertEqual({len(each) for each in both}, {34})


class NowhereTests(SynchronousTestCase):
    """Where the kernel cannot be asked."""

    def test_no_netlink(self) -> None:
        self.patch(sockdiag, "socket", SimpleNamespace())
        with self.assertRaises(OSError) as raised:
            Dump(1, 65535)
        self.assertEqual(str(raised.exception), "there is no netlink here")

    def test_not_allowed(self) -> None:
        """The socket can be had, and the question cannot be sent."""
        closed = []

        class Silent:
            def __init__(self, *kind: int) -> None:
                self.kind = kind

            def send(self, data: bytes) -> None:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

            def close(self) -> None:
                closed.append(self.kind)

        names = {name: getattr(socket, name, 16) for name in ("AF_NETLINK", "SOCK_RAW")}
        self.patch(sockdiag, "socket", SimpleNamespace(socket=Silent, **names))
        self.assertRaises(PermissionError, Dump, 1, 65535)
        self.assertEqual(len(closed), 1)
