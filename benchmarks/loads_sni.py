"""Connections that begin with anything but a request of HTTP, which wrk cannot send.

Clients and origin are both here, in one process: on two cores, the proxy has the other one. There
is no TLS behind a ClientHello: a proxy at L4 sees only bytes.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, repeat
from pathlib import Path

from benchmarks.busy import Busy
from benchmarks.loads import PATIENCE, Work, connect, pump
from benchmarks.measure import RefusedError
from benchmarks.origin import nginx_http
from benchmarks.programs import HOST, TREE, free_port, running
from proxykit.wire.clienthello import HelloReader, Matched

#: The name in every hello that is sent, and another one that nobody serves.
NAME = "www.example"
UNKNOWN = "www.another"
ANSWER = b"proxied\n"
#: Bytes of one read.
READ = 1 << 16
#: For the kernel: how long a connect may take.
CONNECT = struct.pack("ll", int(PATIENCE), 0)
#: Hellos that are read between two looks at the clock.
BATCH = 1000


def hello(name: str) -> bytes:
    """What a program has sent first when it was asked for :data:`NAME`; see tests/wire/hellos."""
    return (TREE / "tests" / "wire" / "hellos" / f"{name}.bin").read_bytes()


@dataclass(frozen=True)
class Talk:
    """What is said on each connection, before the origin says :data:`ANSWER`.

    :ivar sent: what the clients send, one after the other.
    :ivar arrives: what the origin has to get of each of them.
    :ivar unserved: what gets nowhere if a client sends it.
    """

    sent: Sequence[bytes]
    arrives: bytes
    unserved: bytes


def greeting(name: str) -> Talk:
    """A hello, on its way by the name in it."""
    data = hello(name)
    return Talk([data], data, data.replace(NAME.encode(), UNKNOWN.encode()))


class Shorts(Busy):
    """Connections to the proxy.

    :param sink: where the origin listens; it does not block.
    :param port: the proxy's.
    """

    def __init__(self, stack: ExitStack, sink: socket.socket, port: int, talk: Talk) -> None:
        #: By their descriptors: the connections, and what has come on each so far.
        self._clients: dict[int, socket.socket] = {}
        self._servers: dict[int, socket.socket] = {}
        self._had: dict[int, bytes] = {}
        super().__init__(stack)
        self._sink = sink
        self._address = HOST, port
        self._sent = cycle(talk.sent)
        self._arrives = talk.arrives
        self._poll.register(sink, select.EPOLLIN)

    @property
    def _under_way(self) -> dict[int, socket.socket]:
        return self._clients

    def _begin(self) -> None:
        client = socket.socket()
        # On loopback it is connected at once; a timeout of Python's would be a call more each time.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, CONNECT)
        client.connect(self._address)
        self._clients[client.fileno()] = client
        client.send(next(self._sent))
        self._poll.register(client, select.EPOLLIN)

    def _come(self, fd: int) -> None:
        if fd in self._servers:
            self._asked(fd)
        elif fd in self._clients:
            self._answered(fd)
        else:
            self._accept()

    def _accept(self) -> None:
        with suppress(BlockingIOError):  # who is looked for has gone again
            server, _ = self._sink.accept()
            self._servers[server.fileno()] = server
            self._poll.register(server, select.EPOLLIN)

    def _asked(self, fd: int) -> None:
        server = self._servers[fd]
        data = server.recv(READ)
        asked = self._had.pop(fd, b"") + data
        if asked == self._arrives:
            server.send(ANSWER)
            del self._servers[fd]
            server.close()
        elif data and self._arrives.startswith(asked):
            self._had[fd] = asked
        else:
            raise RefusedError(f"the origin got {asked[:40]!r}, {len(asked)} bytes in all")

    def _answered(self, fd: int) -> None:
        client = self._clients[fd]
        data = client.recv(READ)
        answer = self._had.pop(fd, b"") + data
        if data:
            self._had[fd] = answer
        elif answer == ANSWER:
            del self._clients[fd]
            client.close()
            self._is_done()
        else:
            raise RefusedError(f"a client got {answer[:40]!r}, {len(answer)} bytes in all")

    def _close(self) -> None:
        for each in (*self._clients.values(), *self._servers.values()):
            each.close()


def short(
    sink: socket.socket, port: int, talk: Talk, seconds: float, cpu: Callable[[], int]
) -> Work:
    """Connections that are opened, used once and closed, as many at once as wrk has.

    :raises RefusedError: one does not go as it should, or not one was done.
    """
    refused(sink, port, talk.unserved)
    with ExitStack() as stack:
        return Shorts(stack, sink, port, talk).measure(seconds, cpu, "connection")


def refused(sink: socket.socket, port: int, sent: bytes) -> None:
    """See that a connection that begins so ends, and gets to no origin.

    :raises RefusedError: it does get there, or does not end.
    """
    with socket.create_connection((HOST, port), PATIENCE) as each, suppress(ConnectionResetError):
        each.sendall(sent)
        while select.select([each, sink], [], [], PATIENCE) == ([each], [], []):
            if not each.recv(READ):
                return
        raise RefusedError("what is to be refused got to the origin, or goes on")


def bulk(
    sink: socket.socket,
    port: int,
    talk: Talk,
    connections: int,
    seconds: int,
    cpu: Callable[[], int],
) -> Work:
    """Zeros from the origin to clients that have said what they want; in megabytes.

    :raises RefusedError: a connection does not go as it should.
    """
    refused(sink, port, talk.unserved)
    with ExitStack() as stack:
        clients, servers = [], []
        sink.settimeout(PATIENCE)
        for sent in repeat(talk.sent[0], connections):
            client = connect(stack, port)
            client.sendall(sent)
            server = stack.enter_context(sink.accept()[0])
            server.settimeout(PATIENCE)
            if (asked := _whole(server, len(talk.arrives))) != talk.arrives:
                raise RefusedError(f"the origin got {asked[:40]!r}, {len(asked)} bytes in all")
            clients.append(client)
            servers.append(server)
        return pump(clients, servers, None, seconds, cpu)


def _whole(each: socket.socket, size: int) -> bytes:
    """That many bytes; fewer if it ends."""
    found = b""
    while len(found) < size and (data := each.recv(size - len(found))):
        found += data
    return found


def reading(data: bytes, seconds: float) -> Work:
    """A hello, read again and again in this process, as it is for each connection.

    :raises RefusedError: the name in it is not found.
    """
    answer = HelloReader().feed(data)
    if not isinstance(answer, Matched) or answer.hello.server_name != NAME:
        raise RefusedError(f"{answer} for {data[:40]!r}")
    units, took = 0, 0.0
    began, spent = time.monotonic(), time.process_time_ns()
    while not units or took < seconds:
        for _ in repeat(None, BATCH):
            HelloReader().feed(data)
        units += BATCH
        took = time.monotonic() - began
    return Work(units, took, time.process_time_ns() - spent)


@contextmanager
def introduced(directory: Path) -> Iterator[int]:
    """An origin that hears for whom each connection is, by a PROXY header; gives its port.

    It serves those whose client is on loopback, as the load is.
    """
    port = free_port()
    settings = f"""
    server {{
        listen {HOST}:{port} backlog=4096 proxy_protocol;
        default_type text/plain;
        if ($proxy_protocol_addr != "{HOST}") {{ return 400 "not the client\\n"; }}
        location / {{ return 200 "proxied\\n"; }}
    }}
"""
    with running(nginx_http(directory / "introduced.conf", settings), directory, port):
        yield port
