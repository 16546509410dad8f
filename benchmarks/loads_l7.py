"""Large files over HTTP, one after the other on each of some connections."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.loads import CHUNK, PATIENCE, REQUEST, SETTLE, Work
from benchmarks.measure import RefusedError
from benchmarks.programs import HOST

#: Bytes that a head may have.
HEAD = 1 << 16


class Download:
    """One connection that asks for a file of ``size`` bytes, and when it is there, again.

    :ivar received: bytes of bodies so far.
    """

    def __init__(self, stack: ExitStack, port: int, name: str, size: int) -> None:
        self.socket = stack.enter_context(socket.create_connection((HOST, port), PATIENCE))
        self.received = 0
        self._request = REQUEST % name.encode()
        self._size = size
        self._head = b""
        self._left = 0
        self.socket.sendall(self._request)

    def readable(self, into: memoryview) -> None:
        """Receive once. Bodies are dropped in the kernel, so that this costs little.

        :raises RefusedError: what comes is not the file.
        """
        if self._left:
            most = min(self._left, len(into))
            self._had(self.socket.recv_into(into, most, socket.MSG_TRUNC))
            return
        data = self.socket.recv(HEAD)
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if end:
            self._head, self._left = b"", length(head, self._size)
            if body:
                self._had(len(body))
        elif not data or len(self._head) > HEAD:
            raise RefusedError(f"{self._head[:40]!r} came for a head")

    def _had(self, count: int) -> None:
        if not 0 < count <= self._left:
            raise RefusedError(f"{count} bytes came where {self._left} of a file were to come")
        self._left -= count
        self.received += count
        if not self._left:
            self.socket.sendall(self._request)


def length(head: bytes, size: int) -> int:
    """How long the body is that follows this head.

    :raises RefusedError: it is no 200, or is not known to be ``size``.
    """
    said = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if not re.match(rb"HTTP/1\.[01] 200 ", head) or said is None or int(said[1]) != size:
        raise RefusedError(f"no answer of {size} bytes: {head[:200]!r}")
    return size


def files(
    port: int, name: str, size: int, connections: int, seconds: int, cpu: Callable[[], int]
) -> Work:
    """The origin's file, again and again on each connection; in megabytes."""
    into = memoryview(bytearray(CHUNK))
    with ExitStack() as stack:
        each = [Download(stack, port, name, size) for _ in range(connections)]
        by_fd = {one.socket.fileno(): one for one in each}
        poll = stack.enter_context(select.epoll())
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN)

        def until(end: float) -> int:
            while time.monotonic() < end:
                for fd, _ in poll.poll(1.0):
                    by_fd[fd].readable(into)
            return sum(one.received for one in each)

        earlier = until(time.monotonic() + SETTLE)
        began, spent = time.monotonic(), cpu()
        received = until(began + seconds) - earlier
        took, spent = time.monotonic() - began, cpu() - spent
    if not received:
        raise RefusedError("no byte came")
    return Work(received / 1e6, took, spent)
