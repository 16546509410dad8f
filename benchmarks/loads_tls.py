"""TLS to a proxy: handshakes, large files, and wrk's requests.

The load is a process of its own, beside the proxy's: on two cores, each has one. It does not look
whether certificates are to be trusted, only that the handshake was what it should be.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import loads
from benchmarks.busy import Busy
from benchmarks.loads import FASTEST, PATIENCE, REQUEST, SETTLE, Work
from benchmarks.measure import RefusedError
from benchmarks.origin import FILES, nginx_http
from benchmarks.peers_tls import CIPHER, NAME, VERSION, make_certificate
from benchmarks.programs import HOST, free_port, running

CLOSE = b"GET / HTTP/1.1\r\nHost: benchmark\r\nConnection: close\r\n\r\n"
#: Bytes of one read, more than a record has.
READ = 1 << 16
#: For the kernel: how long a connect may take.
CONNECT = struct.pack("ll", int(PATIENCE), 0)
#: Connections of a warming up.
WARM = 100


@dataclass(frozen=True)
class Secure(loads.Ask):
    """What wrk asks for over TLS."""

    def argv(self, port: int, seconds: int) -> list[str]:
        """wrk's command line; the name in its hellos is that of its Host."""
        *before, url = super().argv(port, seconds)
        return [*before, url.replace("http:", "https:", 1)]


SMALL = Secure()


def client() -> ssl.SSLContext:
    """TLS 1.3 with whoever it may be."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    return made


def agreed(tls: ssl.SSLSocket, resumed: bool) -> None:
    """See that a handshake was the one that is measured.

    :raises RefusedError: it was another one.
    """
    cipher = tls.cipher()
    found = tls.version(), cipher and cipher[0], bool(tls.session_reused)
    if found != (VERSION, CIPHER, resumed):
        raise RefusedError(f"a handshake came to {found}")


class One:
    """A connection that shakes hands, asks once, and has its answer and its end.

    :ivar tls: it does not block.
    :ivar session: to be resumed by another one; None before the answer.
    """

    def __init__(self, context: ssl.SSLContext, port: int, session: ssl.SSLSession | None) -> None:
        made = socket.socket()
        # On loopback it is connected at once; a timeout of Python's would be a call more each time.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, CONNECT)
        try:
            made.connect((HOST, port))
            made.setblocking(False)
            self.tls = context.wrap_socket(
                made,
                server_hostname=NAME,
                session=session,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            )
        except BaseException:
            made.close()
            raise
        self.session: ssl.SSLSession | None = None
        self._resumed = session is not None
        self._asked = False
        self._answer = b""

    def go_on(self) -> bool:
        """Do what can be done now; gives whether it is at its end.

        :raises RefusedError: it is not as it should be.
        """
        try:
            if not self._asked:
                self.tls.do_handshake()
                agreed(self.tls, self._resumed)
                self.tls.send(CLOSE)
                self._asked = True
            while data := self.tls.recv(READ):
                self._answer += data
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise RefusedError(f"TLS failed: {error.reason}") from None
        if not (self._answer.startswith(b"HTTP/1.1 200 ") and self._answer.endswith(b"proxied\n")):
            raise RefusedError(f"a client got {self._answer[:40]!r}, {len(self._answer)} bytes")
        self.session = self.tls.session
        self.tls.unwrap()  # the other side has said that it ends; so does this one
        return True


class Handshakes(Busy):
    """Connections that shake hands.

    :param resume: whether each goes on from the session of one before it.
    """

    def __init__(self, stack: ExitStack, port: int, resume: bool) -> None:
        self._open: dict[int, One] = {}
        super().__init__(stack)
        self._context = client()
        self._port = port
        self._resume = resume
        self._session = first_session(self._context, port) if resume else None

    @property
    def _under_way(self) -> dict[int, One]:
        return self._open

    def _begin(self) -> None:
        one = One(self._context, self._port, self._session)
        fd = one.tls.fileno()
        self._open[fd] = one
        self._poll.register(fd, select.EPOLLIN)
        self._come(fd)

    def _come(self, fd: int) -> None:
        one = self._open[fd]
        if not one.go_on():
            return
        if self._resume:
            self._session = one.session
        del self._open[fd]
        one.tls.close()
        self._is_done()

    def _close(self) -> None:
        for one in self._open.values():
            one.tls.close()


def first_session(context: ssl.SSLContext, port: int) -> ssl.SSLSession:
    """The session of a whole handshake.

    :raises RefusedError: there is none to resume.
    """
    one = One(context, port, None)
    with one.tls, select.epoll() as poll:
        poll.register(one.tls, select.EPOLLIN)
        end = time.monotonic() + PATIENCE
        while not one.go_on():
            poll.poll(1.0)
            if time.monotonic() > end:
                raise RefusedError("a connection is left without an answer")
    if one.session is None or not one.session.has_ticket:
        raise RefusedError("there is no session to resume")
    return one.session


def handshakes(port: int, resume: bool, seconds: float, cpu: Callable[[], int]) -> Work:
    """As many handshakes at once as wrk has connections.

    :raises RefusedError: one does not go as it should, or not one was done.
    """
    with ExitStack() as stack:
        return Handshakes(stack, port, resume).measure(seconds, cpu, "handshake")


def warm(port: int) -> None:
    """Go the whole way a few times; see that the handshakes are those that are measured.

    :raises RefusedError: they are others.
    """
    with ExitStack() as stack:
        each = Handshakes(stack, port, False)
        each.keep_busy(WARM, 0)
        each.finish()


def download(port: int, connections: int, seconds: float, cpu: Callable[[], int]) -> Work:
    """The origin's large file, again and again, over TLS; in megabytes.

    :raises RefusedError: it does not come.
    """
    files = int(FASTEST * (seconds + 2 * SETTLE) / FILES["bulk"]) + 1
    context, into = client(), bytearray(READ)
    with ExitStack() as stack:
        by_fd = {}
        for _ in range(connections):
            plain = socket.create_connection((HOST, port), PATIENCE)
            each = stack.enter_context(context.wrap_socket(plain, server_hostname=NAME))
            agreed(each, False)
            each.sendall((REQUEST % b"bulk") * files)
            if not each.recv(64).startswith(b"HTTP/1.1 200 "):
                raise RefusedError("the origin has no file")
            each.setblocking(False)
            by_fd[each.fileno()] = each
        poll = stack.enter_context(select.epoll())
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN)

        def until(end: float) -> int:
            received = 0
            while time.monotonic() < end:
                for fd, _ in poll.poll(1.0):
                    received += emptied(by_fd[fd], into)
            return received

        until(time.monotonic() + SETTLE)
        began, spent = time.monotonic(), cpu()
        received = until(began + seconds)
        took, spent = time.monotonic() - began, cpu() - spent
    if not received:
        raise RefusedError("no byte came")
    return Work(received / 1e6, took, spent)


#: Records of one connection after which it is another's turn.
TURN = 64


def emptied(tls: ssl.SSLSocket, into: bytearray) -> int:
    """Receive what has come, or a good part of it; gives how much.

    :raises RefusedError: it has ended.
    """
    received = 0
    try:
        # What OpenSSL holds already, no poll tells of.
        turns = 0
        while turns < TURN or tls.pending():
            count = tls.recv_into(into)
            if not count:
                raise RefusedError("a download ended early")
            received += count
            turns += 1
    except ssl.SSLWantReadError:
        pass
    return received


@contextmanager
def origin(directory: Path) -> Iterator[int]:
    """An origin that speaks TLS; gives its port."""
    port = free_port()
    pem = make_certificate(directory)
    settings = f"""
    server {{
        listen {HOST}:{port} ssl backlog=4096;
        ssl_certificate {pem};
        ssl_certificate_key {pem};
        ssl_protocols {VERSION};
        default_type text/plain;
        location / {{ return 200 "proxied\\n"; }}
    }}
"""
    with running(nginx_http(directory / "secure.conf", settings), directory, port):
        yield port
