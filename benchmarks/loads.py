"""What is sent through a proxy: small requests (wrk), held connections, bulk in both directions.

Every load is bounded in time, and counts errors: with one, the run is refused.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.measure import RefusedError
from benchmarks.origin import FILES
from benchmarks.programs import HOST, TREE, find

#: Connections that wrk keeps busy.
BUSY = 64
#: Seconds without an answer after which a run is refused.
PATIENCE = 20.0
#: Bytes for one call. What is received is dropped in the kernel, so the buffer stays untouched.
CHUNK = 1 << 20
#: Seconds of bulk before it is measured: buffers have grown and are full by then.
SETTLE = 0.5
#: More bytes a second than one connection can have, for the number of files to ask for.
FASTEST = 8e9
REQUEST = b"GET /%s HTTP/1.1\r\nHost: benchmark\r\n\r\n"
#: What is told with two decimals is this share of it at the least.
ROUNDED = 0.99


@dataclass(frozen=True)
class Work:
    """What was done: units, in seconds of real time, for nanoseconds of the proxy's CPU."""

    units: float
    seconds: float
    cpu_ns: int = 0


@dataclass(frozen=True)
class Ask:
    """The requests that wrk sends.

    :ivar fields: header fields beside Host, a line each.
    :ivar script: a file in benchmarks/wrk/ that says what else is special.
    :ivar size: bytes that the body of each answer has.
    """

    path: str = "/"
    fields: Sequence[str] = ()
    script: str = ""
    size: int = 0

    def argv(self, port: int, seconds: int) -> list[str]:
        """wrk's command line."""
        fields = [word for each in self.fields for word in ("-H", each)]
        script = ["-s", str(TREE / "benchmarks" / "wrk" / self.script)] if self.script else []
        url = f"http://{HOST}:{port}{self.path}"
        return [find("wrk") or "wrk", "-t1", f"-c{BUSY}", f"-d{seconds}s", *fields, *script, url]


SMALL = Ask()
CLOSE = Ask(fields=("Connection: close",))


def parse_wrk(text: str, size: int = 0) -> Work:
    """What wrk says at its end.

    :raises RefusedError: it tells of errors, of nothing done, or of less than ``size`` bytes for
        each answer.
    """
    if errors := re.findall(r"(?:Socket errors|Non-2xx or 3xx responses): .*", text):
        raise RefusedError("; ".join(errors))
    done = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m|h), ([\d.]+)([KMGT]?)B read", text)
    if done is None or done[1] == "0":
        raise RefusedError("wrk has done no request")
    read = float(done[4]) * 1024.0 ** " KMGT".index(done[5] or " ")
    if read < int(done[1]) * size * ROUNDED:
        raise RefusedError(f"{done[1]} answers of {size} bytes have {read:.0f} in all")
    unit = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}[done[3]]
    return Work(float(done[1]), float(done[2]) * unit)


def requests(port: int, seconds: int, cpu: Callable[[], int], ask: Ask = SMALL) -> Work:
    """wrk: requests, one after the other on each of its connections."""
    argv = ask.argv(port, seconds)
    before = cpu()
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + PATIENCE)
    except subprocess.TimeoutExpired:
        raise RefusedError("wrk did not end") from None
    spent = cpu() - before
    work = parse_wrk(result.stdout, ask.size)
    return Work(work.units, work.seconds, spent)


def warm(port: int, connections: int = 100) -> None:
    """Go the whole way a few times, so that nothing is imported or grown while it is measured."""
    for _ in range(connections):
        with socket.create_connection((HOST, port), PATIENCE) as each:
            _ask(each)


def _ask(each: socket.socket) -> None:
    each.sendall(REQUEST % b"")
    _answered(each)


def _answered(each: socket.socket) -> None:
    answer = b""
    while not answer.endswith(b"proxied\n"):
        data = each.recv(4096)
        if not data:
            raise RefusedError(f"a connection ended after {len(answer)} bytes of its answer")
        answer += data
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RefusedError(f"the origin answered {answer[:40]!r}")


class Holder:
    """Idle connections through the proxy: each has had one answer, so it goes all the way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._held: list[socket.socket] = []

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Close them all."""
        while self._held:
            self._held.pop().close()

    def grow(self, count: int) -> None:
        """Hold that many."""
        try:
            while len(self._held) < count:
                batch = []
                for _ in range(min(100, count - len(self._held))):
                    each = socket.create_connection((HOST, self._port), PATIENCE)
                    self._held.append(each)
                    each.sendall(REQUEST % b"")
                    batch.append(each)
                for each in batch:
                    _answered(each)
        except OSError as error:
            raise RefusedError(f"connection {len(self._held)} of {count}: {error}") from None

    def ask(self) -> None:
        """Another request on each of them, all at once; :meth:`answered` is to follow."""
        for each in self._held:
            each.sendall(REQUEST % b"")

    def answered(self) -> None:
        """See that each of them has its answer.

        :raises RefusedError: one has another one, or has ended.
        """
        for each in self._held:
            _answered(each)

    def check(self) -> None:
        """See that none of them has ended.

        :raises RefusedError: one has.
        """
        poll = select.poll()
        for each in self._held:
            poll.register(each, select.POLLIN)
        if ended := len(poll.poll(0)):
            raise RefusedError(f"{ended} of {len(self._held)} held connections have ended")


def download(port: int, connections: int, seconds: int, cpu: Callable[[], int]) -> Work:
    """The origin's large file, again and again; in megabytes."""
    files = int(FASTEST * (seconds + 2 * SETTLE) / FILES["bulk"]) + 1
    with ExitStack() as stack:
        sinks = [connect(stack, port) for _ in range(connections)]
        for each in sinks:
            each.sendall((REQUEST % b"bulk") * files)
            if not each.recv(64).startswith(b"HTTP/1.1 200 "):
                raise RefusedError("the origin has no file")
        return pump(sinks, [], None, seconds, cpu)


def upload(
    listening: socket.socket, port: int, connections: int, seconds: int, cpu: Callable[[], int]
) -> Work:
    """Zeros, from here through the proxy to ``listening``, and away; in megabytes.

    Source and sink are one process: on two cores, the proxy has the other one.
    """
    with ExitStack() as stack:
        sources = [connect(stack, port) for _ in range(connections)]
        return pump([], sources, listening, seconds, cpu)


@contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    """A socket for :func:`upload`, and its port."""
    with socket.create_server((HOST, 0), backlog=128) as sink:
        sink.setblocking(False)
        yield sink, sink.getsockname()[1]


def connect(stack: ExitStack, port: int) -> socket.socket:
    """A connection that is closed with the stack."""
    return stack.enter_context(socket.create_connection((HOST, port), PATIENCE))


def pump(
    sinks: Sequence[socket.socket],
    sources: Sequence[socket.socket],
    accepting: socket.socket | None,
    seconds: int,
    cpu: Callable[[], int],
) -> Work:
    """Send to all sources, receive from all sinks and from what is accepted; count what arrived.

    :raises RefusedError: nothing has, or a sink has had its end.
    """
    poll = select.epoll()
    into = memoryview(bytearray(CHUNK))
    by_fd = {each.fileno(): each for each in (*sinks, *sources)}
    wanted, received = frozenset(sinks), 0
    start = time.monotonic() + SETTLE
    end, began, spent = start + seconds, 0.0, 0
    with ExitStack() as stack:
        stack.callback(poll.close)
        zeros = stack.enter_context(tempfile.TemporaryFile())
        zeros.truncate(CHUNK)
        for each in sinks:
            each.setblocking(False)
            poll.register(each, select.EPOLLIN)
        for each in sources:
            each.setblocking(False)
            poll.register(each, select.EPOLLOUT)
        if accepting is not None:
            poll.register(accepting, select.EPOLLIN)
        while (now := time.monotonic()) < end:
            if not began and now >= start:
                began, received, spent = now, 0, cpu()
            for fd, event in poll.poll(1.0):
                if accepting is not None and fd == accepting.fileno():
                    each = stack.enter_context(accepting.accept()[0])
                    each.setblocking(False)
                    by_fd[each.fileno()] = each
                    poll.register(each, select.EPOLLIN)
                elif event & select.EPOLLIN:
                    count = by_fd[fd].recv_into(into, CHUNK, socket.MSG_TRUNC)
                    received += count
                    if not count:
                        if by_fd[fd] in wanted:
                            raise RefusedError("a download ended early")
                        poll.unregister(fd)  # what had only looked whether the proxy listens
                else:
                    os.sendfile(fd, zeros.fileno(), 0, CHUNK)
        took, spent = time.monotonic() - began, cpu() - spent
    if not began or not received:
        raise RefusedError("no byte came")
    return Work(received / 1e6, took, spent)
