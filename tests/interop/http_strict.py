"""A reader of HTTP/1 for tests that takes nothing but the plainest form, and shares no code with
the proxy's.

What a proxy sends on was written anew by it, so there is one way in which each thing may look. All
else is :class:`Broken`: a reader further on could take it for something else.
"""

from __future__ import annotations

import re

from attrs import define, field

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELD = _TOKEN + rb": (?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?"
_REQUEST = re.compile(
    rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.1\r\n((?:" + _FIELD + rb"\r\n)*)\r\n"
)
_RESPONSE = re.compile(
    rb"HTTP/1\.1 ([1-5][0-9]{2}) ([\t \x21-\x7e\x80-\xff]*)\r\n((?:" + _FIELD + rb"\r\n)*)\r\n"
)
_BLOCK = re.compile(rb"(?:" + _FIELD + rb"\r\n)*")
_SIZE = re.compile(rb"(0|[1-9a-f][0-9a-f]{0,14})\r\n")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")

#: What a proxy never passes on as it came.
_ONE_HOP = (
    *(b"keep-alive", b"proxy-connection", b"te", b"http2-settings"),
    *(b"proxy-authenticate", b"proxy-authorization"),
)
_CONNECTION = (b"close", b"keep-alive", b"Upgrade")
_FRAMING = (b"content-length", b"transfer-encoding")
#: What would frame or route another message if somebody took a trailer for a field.
_NO_TRAILER = (
    *(*_FRAMING, *_ONE_HOP, b"connection", b"host", b"upgrade", b"authorization", b"trailer"),
    *(b"content-type", b"cookie", b"expect", b"forwarded", b"x-forwarded-for"),
)


class Broken(Exception):
    """Bytes that are not plain HTTP/1.1; the text says where."""


@define
class Message:
    """A whole message.

    :ivar method: of a request; ``target``, ``host`` as well.
    :ivar status: of a response.
    :ivar end: where in the data its last byte is followed by something else.
    """

    fields: list[tuple[bytes, bytes]]
    method: bytes = b""
    target: bytes = b""
    status: int = 0
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(factory=list)
    end: int = 0

    def all(self, name: bytes) -> list[bytes]:
        """The values of a field."""
        return [value for each, value in self.fields if each.lower() == name]

    @property
    def host(self) -> bytes:
        return self.all(b"host")[0]


def read_request(data: bytes) -> Message | None:
    """The request that some bytes begin with; None: it is not whole.

    :raises Broken: they do not begin with one.
    """
    match = _head(_REQUEST, data)
    if match is None:
        return None
    message = Message(_fields(match[3]), match[1], match[2], end=match.end())
    if len(message.all(b"host")) != 1:
        raise Broken(f"Host: {message.all(b'host')}")
    if message.target[:1] != b"/" and (message.method, message.target) != (b"OPTIONS", b"*"):
        raise Broken(f"target: {message.target!r}")
    if b"#" in message.target:
        raise Broken(f"fragment: {message.target!r}")
    _check(message)
    return _with_body(message, data, _framing(message), True)


def read_response(data: bytes, method: bytes, ended: bool) -> Message | None:
    """The response that some bytes begin with; None: it is not whole.

    :param method: of the request that it answers.
    :param ended: whether no more will come, in good order.
    :raises Broken: they do not begin with one.
    """
    match = _head(_RESPONSE, data)
    if match is None:
        return None
    status = int(match[1])
    message = Message(_fields(match[3]), status=status, end=match.end())
    _check(message)
    framing = _framing(message)
    if (status < 200 or status == 204) and framing is not None:
        raise Broken(f"a {status} with framing")
    if method == b"HEAD" or status < 200 or status in (204, 304):
        return message
    if framing is None:
        message.body, message.end = data[message.end :], len(data)
        return message if ended else None
    return _with_body(message, data, framing, False)


def _head(pattern: re.Pattern[bytes], data: bytes) -> re.Match[bytes] | None:
    match = pattern.match(data)
    if match is None and b"\r\n\r\n" in data:
        raise Broken(f"head: {data[:200]!r}")
    if match is not None and data.find(b"\r\n\r\n") != match.end() - 4:
        raise Broken(f"end of head: {data[:200]!r}")
    return match


def _fields(block: bytes) -> list[tuple[bytes, bytes]]:
    halves = (line.split(b": ", 1) for line in block.split(b"\r\n")[:-1])
    return [(name, value) for name, value in halves]


def _check(message: Message) -> None:
    """What is meant for one connection is this connection's."""
    for name, value in message.fields:
        lower = name.lower()
        letters = re.sub(rb"[^a-z]", b"", lower)
        if letters in (b"contentlength", b"transferencoding") and lower not in _FRAMING:
            raise Broken(f"looks like framing: {name!r}")
        if lower in _ONE_HOP:
            raise Broken(f"not to be passed on: {name!r}")
        if lower == b"connection" and value not in _CONNECTION:
            raise Broken(f"Connection: {value!r}")
        if lower == b"upgrade" and (
            b"h2c" in value.lower() or message.all(b"connection") != [b"Upgrade"]
        ):
            raise Broken(f"Upgrade: {value!r}")
    if len(message.all(b"connection")) > 1:
        raise Broken("two Connection lines")


def _framing(message: Message) -> int | None:
    """A length in bytes; -1: chunked; None: not said."""
    lengths = message.all(b"content-length")
    codings = message.all(b"transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise Broken(f"framing: {lengths + codings}")
    if codings:
        if codings != [b"chunked"]:
            raise Broken(f"Transfer-Encoding: {codings}")
        return -1
    if not lengths:
        return None
    if not _LENGTH.fullmatch(lengths[0]):
        raise Broken(f"Content-Length: {lengths}")
    return int(lengths[0])


def _with_body(message: Message, data: bytes, framing: int | None, request: bool) -> Message | None:
    if framing != -1:
        end = message.end + (framing or 0)
        message.body, message.end = data[message.end : end], end
        return message if len(data) >= end else None
    pieces, at = [], message.end
    while True:
        match = _SIZE.match(data, at)
        if match is None:
            if b"\r\n" in data[at:] or len(data) - at > 16:
                raise Broken(f"size of a chunk: {data[at : at + 40]!r}")
            return None
        size, at = int(match[1], 16), match.end()
        if not size:
            break
        if len(data) < at + size + 2:
            return None
        if data[at + size : at + size + 2] != b"\r\n":
            raise Broken(f"end of a chunk: {data[at + size : at + size + 40]!r}")
        pieces.append(data[at : at + size])
        at += size + 2
    message.body = b"".join(pieces)
    return _with_trailers(message, data, at)


def _with_trailers(message: Message, data: bytes, at: int) -> Message | None:
    match = _BLOCK.match(data, at)
    assert match is not None  # it matches nothing at all, too
    ending = data[match.end() : match.end() + 2]
    if ending != b"\r\n":
        if len(ending) == 2 and b"\r\n" in data[match.end() :]:
            raise Broken(f"trailers: {data[at : at + 200]!r}")
        return None
    message.trailers, message.end = _fields(match[0]), match.end() + 2
    for name, _ in message.trailers:
        if name.lower() in _NO_TRAILER:
            raise Broken(f"trailer: {name!r}")
    return message
