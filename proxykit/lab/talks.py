"""What the lab's clients say, and how they tell whether an answer is their own.

Each question names who asks it, and the origin repeats that; see ``origin.py``.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Callable

#: What has become of a question, besides the status of an answer that is no 200, and the names of
#: errors (ECONNRESET): it was answered; the answer is somebody else's; the connection ended before
#: the answer; nothing came in time.
SERVED, MIXED_UP, ENDED, SILENT = "served", "mixed up", "ended", "silent"
#: Nothing was asked.
CONNECTED = "connected"

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)\r\n")


class Talk:
    """A conversation of one client: one question at a time.

    :param name: whose it is, without spaces.
    :ivar mixed_up: what was asked and told the last time that these did not fit.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self.mixed_up = ("", "")

    def question(self) -> bytes:
        """The next one."""
        self._count += 1
        return self._say(f"{self._name}/{self._count}".encode())

    def answer(self, data: bytes) -> tuple[str, int] | None:
        """What has become of the question, and how many bytes tell that; None: more are needed.

        :param data: what has come since the question.
        """
        return self._read(data, f"{self._name}/{self._count}".encode())

    def _compared(self, asked: bytes, told: bytes) -> str:
        """Whether an answer is to that question."""
        if asked == told:
            return SERVED
        self.mixed_up = asked.decode(), told.decode(errors="replace")
        return MIXED_UP

    def _say(self, what: bytes) -> bytes:
        raise NotImplementedError

    def _read(self, data: bytes, what: bytes) -> tuple[str, int] | None:
        raise NotImplementedError


class Http(Talk):
    """Requests of HTTP/1.1."""

    def _say(self, what: bytes) -> bytes:
        return b"GET /%s HTTP/1.1\r\nHost: lab.example\r\n\r\n" % what

    def _read(self, data: bytes, what: bytes) -> tuple[str, int] | None:
        head = _HEAD.match(data)
        if head is None:
            # Of an answer that was mixed with another there may be a part alone.
            start = b"HTTP/1.1 "
            return None if data.startswith(start) or start.startswith(data) else (MIXED_UP, 1 << 30)
        length = _LENGTH.search(head[2])
        size = head.end() + (int(length[1]) if length else 0)
        if len(data) < size:
            return None
        if head[1] != b"200":
            return head[1].decode(), size
        told = data[head.end() : size].partition(b" ")[0]
        return self._compared(what, told.removeprefix(b"/")), size


class Hello(Talk):
    """The start of a TLS connection, up to whatever comes for it.

    :param name: the server's.
    """

    def _say(self, what: bytes) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = _context().wrap_bio(incoming, outgoing, server_hostname=self._name)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        return outgoing.read()

    def _read(self, data: bytes, what: bytes) -> tuple[str, int] | None:
        return SERVED, len(data)


def _context(made: list[ssl.SSLContext] = []) -> ssl.SSLContext:  # noqa: B006
    if not made:
        made.append(ssl.create_default_context())
    return made[0]


TALKS: dict[str, Callable[[str], Talk]] = {"http": Http, "hello": Hello}
