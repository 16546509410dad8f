"""HTTP/1 messages for tests: made by hand, and read by a reader that is not the proxy's.

What is read is shown as it stands on the wire. What a proxy may not send (a chunk's size in
capitals, two values where there may be one) fails the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import define, field
from twisted.internet.error import ConnectionDone

from tests.sockets import End

EMPTY_STATUSES = (204, 304)


@define
class Message:
    """A message as it came.

    :ivar start: its first line.
    :ivar fields: names and values, in their order.
    :ivar framing: ``length``, ``chunked``, ``close`` or ``none``: how its end was found.
    """

    start: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(factory=list)
    framing: str = "none"

    def all(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        return [value for each, value in self.fields if each.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        """The value of a field that is there once."""
        values = self.all(name)
        if len(values) != 1:
            raise AssertionError(f"{name}: {values} in {self.fields}")
        return values[0]

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    @property
    def names(self) -> list[str]:
        """What fields there are."""
        return [name for name, _ in self.fields]

    @property
    def method(self) -> str:
        """Of a request."""
        return self.start.split(" ")[0]

    @property
    def target(self) -> str:
        """Of a request."""
        return self.start.split(" ")[1]

    @property
    def status(self) -> int:
        """Of a response."""
        return int(self.start.split(" ")[1])

    @property
    def text(self) -> str:
        return self.body.decode()


class Reading:
    """A message that is coming in at an end.

    :ivar at: how far what has come was read.
    """

    def __init__(self, end: End, at: int) -> None:
        self._end = end
        self._data = end.received
        self._head: Message | None = None
        self._pieces: list[bytes] = []
        self._last_chunk = False
        self.at = at

    def request(self) -> Message | None:
        """It, once it is whole."""
        head = self.head()
        if head is None:
            return None
        if "transfer-encoding" in head:
            return self._chunked(head)
        return self._length(head, int(head["content-length"])) if "content-length" in head else head

    def response(self, method: str) -> Message | None:
        """It, once it is whole."""
        head = self.head()
        if head is None:
            return None
        if method == "HEAD" or head.status < 200 or head.status in EMPTY_STATUSES:
            return head
        if "transfer-encoding" in head:
            return self._chunked(head)
        if "content-length" in head:
            return self._length(head, int(head["content-length"]))
        return self._until_close(head)

    def head(self) -> Message | None:
        if self._head is None:
            end = self._data.find(b"\r\n\r\n", self.at)
            if end < 0:
                return None
            self._head = _head(bytes(self._data[self.at : end + 4]))
            self.at = end + 4
        return self._head

    def _length(self, head: Message, length: int) -> Message | None:
        if len(self._data) - self.at < length:
            return None
        head.body, head.framing = bytes(self._data[self.at : self.at + length]), "length"
        self.at += length
        return head

    def _until_close(self, head: Message) -> Message | None:
        end = self._end
        if end.reason is not None and end.reason.check(ConnectionDone) is None:
            raise AssertionError(f"reset after {len(self._data) - self.at} bytes of a body")
        if not end.read_ended and end.reason is None:
            return None
        head.body, head.framing = bytes(self._data[self.at :]), "close"
        self.at = len(self._data)
        return head

    def _chunked(self, head: Message) -> Message | None:
        if head["transfer-encoding"] != "chunked":
            raise AssertionError(head.fields)
        while not self._last_chunk:
            end = self._data.find(b"\r\n", self.at)
            if end < 0:
                return None
            size_line = bytes(self._data[self.at : end])
            if not re.fullmatch(rb"[0-9a-f]+", size_line):
                raise AssertionError(f"no size of a chunk: {size_line!r}")
            size = int(size_line, 16)
            start, stop = end + 2, end + 2 + size
            if not size:
                self._last_chunk, self.at = True, start
                break
            if len(self._data) < stop + 2:
                return None
            if self._data[stop : stop + 2] != b"\r\n":
                raise AssertionError(f"no end of a chunk: {self._data[stop : stop + 20]!r}")
            self._pieces.append(bytes(self._data[start:stop]))
            self.at = stop + 2
        if self._data[self.at : self.at + 2] == b"\r\n":
            end = self.at
        elif (end := self._data.find(b"\r\n\r\n", self.at) + 2) < 2:
            return None
        head.trailers = _fields(bytes(self._data[self.at : end]))
        head.body, head.framing = b"".join(self._pieces), "chunked"
        self.at = end + 2
        return head


def _head(data: bytes) -> Message:
    start, _, block = data[:-2].partition(b"\r\n")
    return Message(start.decode("latin-1"), _fields(block))


def _fields(block: bytes) -> list[tuple[str, str]]:
    lines = block.decode("latin-1").split("\r\n")[:-1]
    halves = [line.partition(": ") for line in lines]
    return [(name, value) for name, _, value in halves]


def request(
    method: str = "GET",
    target: str = "/",
    body: bytes | None = None,
    *lines: str,
    host: str = "a.example",
    version: str = "1.1",
) -> bytes:
    """A request, for :meth:`HttpClient.ask` or to be sent in parts."""
    start = [f"{method} {target} HTTP/{version}"]
    if host:
        start.append(f"Host: {host}")
    if body is not None:
        start.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*start, *lines, "", ""]).encode("latin-1") + (body or b"")


def answer(body: bytes = b"", *lines: str, status: str = "200 OK") -> bytes:
    """A response with a length."""
    start = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*start, *lines, "", ""]).encode("latin-1") + body


def head(*lines: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    """The head of a response, with whatever framing."""
    return "\r\n".join([f"HTTP/{version} {status}", *lines, "", ""]).encode("latin-1")


def chunks(*pieces: bytes, trailers: Iterable[str] = ()) -> bytes:
    """A whole chunked body."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return body + b"0\r\n" + "".join(f"{line}\r\n" for line in trailers).encode() + b"\r\n"
