"""Bodies of HTTP/1 messages: bytes in, the payload out, and where the message ends.

``body_of`` makes the one that a head's framing asks for. Each is fed what comes behind the head,
gives the payload in it, and says when it is ``done``; then ``rest`` has the bytes of what follows.
Nothing is kept but a line that is not whole yet, and the trailers.
"""

from __future__ import annotations

import re

from proxykit.wire.http1fields import CHUNKED, UNTIL_CLOSE, trailer_fields
from proxykit.wire.http1grammar import (
    CRLF,
    OWS,
    QUOTED,
    TOKEN,
    Refused,
    bare_at,
    bare_fault,
    block_fault,
    is_block,
)

#: Bytes of a line with a chunk's size, its extensions and its CRLF.
LONGEST_SIZE_LINE = 4096
#: Bytes of all extensions in one body: nobody reads them, and they must cost somebody something.
MOST_EXTENSIONS = 65536
#: Bytes and number of trailer lines.
MOST_TRAILERS = 16384
MOST_TRAILER_FIELDS = 100

_SIZE = rb"([0-9A-Fa-f]{1,15}+)"
#: RFC 9112 section 7.1.1.
_EXTENSION = (
    OWS
    + rb";"
    + OWS
    + TOKEN
    + rb"(?:"
    + OWS
    + rb"="
    + OWS
    + rb"(?:"
    + TOKEN
    + rb"|"
    + QUOTED
    + rb"))?+"
)
_plain_size_line = re.compile(_SIZE + CRLF).match
_size_line = re.compile(_SIZE + rb"((?:" + _EXTENSION + rb")*+)\r\n").fullmatch

#: A body's end: a chunk of no bytes, no trailers.
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Some payload as one chunk; nothing for nothing, which would be the end."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def last_chunk(trailers: bytes) -> bytes:
    """The end of a chunked body.

    :param trailers: field lines, each with its CRLF.
    """
    return b"0\r\n%b\r\n" % trailers


def chunks(payload: bytes, done: bool, trailers: bytes) -> bytes:
    """A part of a chunked body.

    :param done: whether it is the last; then ``trailers`` go behind it.
    """
    data = chunk(payload)
    return data + last_chunk(trailers) if done else data


def _cut_off(status: int) -> Refused:
    return Refused("cut off: the sender ended before its message did (RFC 9112 section 8)", status)


class LengthBody:
    """So many bytes, or none at all.

    :param status: what is told if the body breaks a rule.
    :ivar done: whether all has come.
    :ivar rest: the bytes that came behind its end.
    :ivar left: bytes that are still to come.
    :ivar received: bytes of payload so far.
    :ivar trailers: there are none.
    """

    __slots__ = ("_status", "done", "left", "received", "rest")

    trailers = b""

    def __init__(self, length: int, status: int = 400) -> None:
        self.left = length
        self.received = 0
        self.done = length == 0
        self.rest = b""
        self._status = status

    def feed(self, data: bytes) -> bytes:
        """The payload in these bytes."""
        left = self.left
        size = len(data)
        if size > left:
            self.rest += data[left:]
            data = data[:left]
            size = left
        self.received += size
        self.left = left = left - size
        if not left:
            self.done = True
        return data

    def skip(self, count: int) -> None:
        """So many bytes of it went another way."""
        if count > self.left:
            raise ValueError(f"{count} bytes are more than the {self.left} that are left")
        self.left -= count
        self.received += count
        self.done = self.left == 0

    def eof(self) -> None:
        """The sender has ended.

        :raises Refused: its message is not whole.
        """
        if not self.done:
            raise _cut_off(self._status)


class UntilCloseBody:
    """A response's body that ends when its connection does. See ``LengthBody``."""

    __slots__ = ("done", "received")

    left = -1
    rest = b""
    trailers = b""

    def __init__(self) -> None:
        self.received = 0
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """The payload in these bytes: all of them."""
        self.received += len(data)
        return data

    def skip(self, count: int) -> None:
        """So many bytes of it went another way."""
        self.received += count

    def eof(self) -> None:
        """The sender has ended, and so has its message."""
        self.done = True


class ChunkedBody:
    """A body in chunks (RFC 9112 section 7.1). See ``LengthBody``.

    Extensions are read and dropped.

    :ivar trailers: once it is done: the trailer lines that may be passed on, as proxykit writes
        them.
    """

    __slots__ = (
        "_extensions",
        "_in_trailers",
        "_left",
        "_line",
        "_status",
        "_trailer_count",
        "_trailers",
        "done",
        "received",
        "rest",
        "trailers",
    )

    left = -1

    def __init__(self, status: int = 400) -> None:
        self.received = 0
        self.done = False
        self.rest = b""
        self.trailers = b""
        self._status = status
        #: Bytes to come of this chunk, with its CRLF; 0 between two chunks.
        self._left = 0
        #: The part of a line that came.
        self._line = bytearray()
        self._extensions = 0
        self._in_trailers = False
        self._trailers = bytearray()
        self._trailer_count = 0

    def feed(self, data: bytes) -> bytes:
        """The payload in these bytes, joined.

        :raises Refused: they break a rule, and no more may be fed.
        """
        try:
            payload = self._payload(data)
        except Refused as refused:
            refused.status = self._status
            raise
        self.received += len(payload)
        return payload

    def skip(self, count: int) -> None:
        """Chunks cannot go another way: each is framed."""
        raise NotImplementedError("a chunked body cannot be skipped")

    def eof(self) -> None:
        """The sender has ended.

        :raises Refused: its message is not whole.
        """
        if not self.done:
            raise _cut_off(self._status)

    def _payload(self, data: bytes) -> bytes:
        if self.done:
            self.rest += data
            return b""
        pieces = []
        at, size = 0, len(data)
        left = self._left
        while at < size:
            if left:
                # Its CRLF counts as part of it, and is cut off.
                stop = at + left
                if left > 2:
                    pieces.append(data[at : min(stop - 2, size)])
                if stop > size:
                    left = self._partly(data, at, stop)
                    break
                if data[max(stop - 2, at) : stop] != CRLF[-left:]:
                    raise _no_chunk_end()
                at, left = stop, 0
                continue
            match = None if self._line or self._in_trailers else _plain_size_line(data, at)
            if match is not None and (length := int(match[1], 16)):
                at, left = match.end(), length + 2
                continue
            at, left = self._slowly(data, at)
        self._left = left
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _partly(self, data: bytes, at: int, stop: int) -> int:
        """A chunk goes on behind these bytes: how much of it is still to come."""
        left = stop - len(data)
        if left == 1 and data[-1:] != b"\r":
            raise _no_chunk_end()
        return left

    def _slowly(self, data: bytes, at: int) -> tuple[int, int]:
        """Go on with a line: of a size, with extensions perhaps or in parts, or of the trailers."""
        ending = data.find(b"\n", at) + 1
        most = MOST_TRAILERS - len(self._trailers) if self._in_trailers else LONGEST_SIZE_LINE
        if len(self._line) + (ending or len(data)) - at > most:
            raise Refused("a line of a chunked body is too long (RFC 9112 section 7.1)")
        self._line += data[at : ending or len(data)]
        if not ending:
            return len(data), 0
        line = bytes(self._line)
        self._line.clear()
        if self._in_trailers:
            if line == CRLF:
                self.trailers = trailer_fields(bytes(self._trailers))
                self.rest = data[ending:]
                self.done = True
                return len(data), 0
            self._trailer(line)
            return ending, 0
        length = self._size(line)
        self._in_trailers = length == 0
        return ending, length + 2 if length else 0

    def _size(self, line: bytes) -> int:
        match = _size_line(line)
        if match is None:
            raise _size_fault(line)
        self._extensions += len(match[2])
        if self._extensions > MOST_EXTENSIONS:
            raise Refused("too many chunk extensions (RFC 9112 section 7.1.1)")
        return int(match[1], 16)

    def _trailer(self, line: bytes) -> None:
        if not is_block(line):
            raise block_fault(line)
        self._trailers += line
        self._trailer_count += 1
        if self._trailer_count > MOST_TRAILER_FIELDS:
            raise Refused("too many trailers (RFC 9112 section 7.1.2)")


def _no_chunk_end() -> Refused:
    return Refused("a chunk ends with CRLF (RFC 9112 section 7.1)")


def _size_fault(line: bytes) -> Refused:
    at = bare_at(line, 0, len(line))
    if at < len(line):
        return bare_fault(line[at])
    if re.match(rb"[0-9A-Fa-f]{16}", line):
        return Refused("a chunk's size has at most 15 digits (RFC 9112 section 7.1)")
    if not re.match(_SIZE + rb"[ \t]*+[;\r]", line):
        return Refused("a chunk starts with its size (RFC 9112 section 7.1)")
    return Refused("a chunk extension is a name, perhaps with a value (RFC 9112 section 7.1.1)")


def body_of(framing: int, request: bool) -> LengthBody | ChunkedBody | UntilCloseBody:
    """What reads the body behind a head.

    :param framing: a length in bytes, ``CHUNKED`` or ``UNTIL_CLOSE``.
    :param request: whether it is a request's; it says who is told of a broken rule, and how.
    """
    status = 400 if request else 502
    if framing == CHUNKED:
        return ChunkedBody(status)
    if framing == UNTIL_CLOSE:
        return UntilCloseBody()
    return LengthBody(framing, status)
