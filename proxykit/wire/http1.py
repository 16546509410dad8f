"""Heads of HTTP/1 requests and responses: bytes in, a head, an error, or None for "more".

One expression reads a first line, one a field block, both made from the grammar of RFC 9110 and
RFC 9112 (``http1grammar.py``); what the fields mean is in ``http1fields.py``.

What comes of some bytes does not hang on how they were split. Some rules are judged before the head
is whole (``http1early.py``), all others when it is.
"""

from __future__ import annotations

import re

from proxykit.wire.http1early import BLANK_LINE, DEFAULT, Limits, Reader, too_large
from proxykit.wire.http1fields import (
    CHUNKED,
    LONGEST_KEPT,
    MOST_FIELDS_KEPT,
    NO_BODY,
    UNTIL_CLOSE,
    RequestFields,
    ResponseFields,
    request_fields,
    response_fields,
    seen_requests,
)
from proxykit.wire.http1grammar import (
    CRLF,
    FIELD_BYTE,
    TARGET_BYTE,
    TCHAR,
    TOKEN,
    Refused,
    host_name,
    is_token,
)

__all__ = [
    "CHUNKED",
    "DEFAULT",
    "NO_BODY",
    "UNTIL_CLOSE",
    "Limits",
    "Refused",
    "RequestHead",
    "RequestReader",
    "ResponseHead",
    "ResponseReader",
]

_MOST_HEADS_KEPT = 1024

_is_tchar = re.compile(rb"[" + TCHAR + rb"]").match
_is_target = re.compile(TARGET_BYTE + rb"++").fullmatch
_is_version = re.compile(rb"HTTP/[0-9]\.[0-9]").fullmatch
#: What nearly all requests start with: a target in origin-form.
_origin_line = re.compile(
    rb"(?!CONNECT )(" + TOKEN + rb") (/" + TARGET_BYTE + rb"*+) HTTP/1\.([01])\r\n"
).match
#: RFC 9112 section 3.2.2.
_absolute = re.compile(rb"https?+://([^/?]*+)(.*+)", re.I).fullmatch
#: The space after the status belongs there even without a reason; many servers leave both out.
_status_line = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: (" + FIELD_BYTE + rb"*+))?+\r\n"
).match


class RequestHead:
    """The head of one request.

    :ivar method: as it was sent.
    :ivar target: in origin-form, or ``b"*"``; an absolute-form has been reduced to it.
    :ivar minor: of its version, HTTP/1.0 or HTTP/1.1.
    :ivar host: what to forward as Host: the field's value or, before it, the authority of an
        absolute-form (RFC 9112 section 3.2.2); b"" if there is none, in HTTP/1.0.
    :ivar name: the host in it, for routing: without port and final dot, in lower case; an IPv6
        address in brackets; "" if there is none.
    :ivar fields: what is in its field lines.
    :ivar keep_alive: whether the client's connection goes on after this message (RFC 9112
        section 9.3).
    """

    __slots__ = ("fields", "host", "keep_alive", "method", "minor", "name", "target")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        minor: int,
        host: bytes,
        name: str,
        fields: RequestFields,
        keep_alive: bool,
    ) -> None:
        self.method = method
        self.target = target
        self.minor = minor
        self.host = host
        self.name = name
        self.fields = fields
        self.keep_alive = keep_alive


class ResponseHead:
    """The head of a response. Shared by all that have the same bytes: never changed.

    :ivar status: 100 to 599.
    :ivar minor: of its version, HTTP/1.0 or HTTP/1.1.
    :ivar reason: the text after the status; b"" if there is none.
    :ivar fields: what is in its field lines.
    :ivar keep_alive: whether the backend's connection can go on after this message, if its body
        does not end with the connection.
    """

    __slots__ = ("_framing", "fields", "keep_alive", "minor", "reason", "status")

    def __init__(self, status: int, minor: int, reason: bytes, fields: ResponseFields) -> None:
        self.status = status
        self.minor = minor
        self.reason = reason
        self.fields = fields
        self.keep_alive = _persists(minor, fields)
        if status < 200 or status in (204, 304):
            self._framing = NO_BODY
        elif fields.chunked:
            self._framing = CHUNKED
        else:
            self._framing = UNTIL_CLOSE if fields.length is None else fields.length

    def framing(self, method: bytes) -> int:
        """How its body ends, for a request with that method: a length, CHUNKED or UNTIL_CLOSE.

        HEAD, 1xx, 204 and 304 have none, whatever their fields say (RFC 9112 section 6.3). What
        follows a 101 is the caller's business.
        """
        return NO_BODY if method == b"HEAD" else self._framing


def _persists(minor: int, fields: RequestFields | ResponseFields) -> bool:
    # A reverse proxy is no "proxy" in the words of RFC 9112 section 9.3: HTTP/1.0 may persist.
    return not fields.close and (minor == 1 or fields.keep_alive)


class RequestReader(Reader):
    """Reads one request head after the other."""

    __slots__ = ("_known",)

    def __init__(self, limits: Limits = DEFAULT) -> None:
        super().__init__(limits)
        # Where fewer fields are allowed than are kept, each block is counted.
        enough = limits.fields >= MOST_FIELDS_KEPT
        self._known = seen_requests.get if enough else _nothing

    def feed(self, data: bytes) -> RequestHead | None:
        """The next head, once it is whole; None: more is needed.

        After a head, ``rest`` has the bytes behind it.

        :raises Refused: the bytes break a rule, and no more may be fed.
        """
        if self._held and not (data := self._gather(data)):
            return None
        end = data.find(BLANK_LINE)
        if end < 0:
            self._gather(data)
            return None
        match = _origin_line(data)
        if match is None or match.end() > self._line or end + 4 > self._head:
            return self._unusual(data, end)
        method, target, version = match.groups()
        block = data[match.end() : end + 2]
        fields = self._known(block)
        if fields is None:
            fields = self._new(block)
        self.rest = data[end + 4 :]
        if version == b"1" and fields.host:
            return RequestHead(
                method, target, 1, fields.host, fields.name, fields, not fields.close
            )
        return self._head_of(method, target, int(version), fields)

    def _new(self, block: bytes) -> RequestFields:
        """What is in a block that was not seen before."""
        fields = request_fields(block)
        if fields.count > self._fields:
            raise too_large()
        return fields

    def _unusual(self, data: bytes, end: int) -> RequestHead:
        """A whole head with another target than most, or one that breaks a rule."""
        self._judge(data, end + 4)
        self._good = 0
        self._lined = False
        start = self._start(data, end)
        ends = data.find(CRLF, start) + 2
        method, target, minor, host = self._first_line(data[start:ends])
        fields = self._new(data[ends : end + 2])
        self.rest = data[end + 4 :]
        return self._head_of(method, target, minor, fields, host)

    def _head_of(
        self, method: bytes, target: bytes, minor: int, fields: RequestFields, host: bytes = b""
    ) -> RequestHead:
        if minor and not fields.host_count:
            raise Refused("one Host (RFC 9112 section 3.2)")
        if fields.host_count and not fields.host and not host:
            raise Refused("Host is a host, and perhaps a port (RFC 9110 section 7.2)")
        if not minor and fields.chunked:
            raise Refused("no Transfer-Encoding in HTTP/1.0 (RFC 9112 section 6.1)")
        name = fields.name
        if host:
            name = host_name(host) or ""
        return RequestHead(
            method, target, minor, host or fields.host, name, fields, _persists(minor, fields)
        )

    def _start(self, data: bytes | bytearray, size: int) -> int:
        # One empty line before a request is skipped (RFC 9112 section 2.2).
        start = 2 if data.startswith(CRLF) else 0
        if size == start or (size == 1 and data[0] == 13):
            return -1
        if not _is_tchar(data, start):
            raise Refused("a request starts with its method (RFC 9112 section 3)")
        return start

    def _first_line(self, line: bytes) -> tuple[bytes, bytes, int, bytes]:
        """Method, target, minor version and the authority of an absolute-form."""
        words = line[:-2].split(b" ")
        if len(words) != 3:
            raise Refused("a request line is three words with a space between (RFC 9112 section 3)")
        method, target, version = words
        if not is_token(method):
            raise Refused("a method is a token (RFC 9110 section 9.1)")
        if not _is_target(target):
            raise Refused("a target is printable, without a fragment (RFC 9112 section 3.2)")
        minor = _minor(version)
        if method == b"CONNECT":
            raise Refused("no CONNECT (RFC 9110 section 9.3.6)", 501)
        if target[0] == 47 or (target == b"*" and method == b"OPTIONS"):
            return method, target, minor, b""
        absolute = _absolute(target)
        if absolute is None:
            raise Refused("a target is a path or a URL (RFC 9112 section 3.2)")
        host, path = absolute.groups()
        if b"@" in host:
            raise Refused("no user information in a target (RFC 9110 section 4.2.4)")
        if host_name(host) is None:
            raise Refused("a URL has a host, and perhaps a port (RFC 9110 section 4.2.1)")
        if not path and method == b"OPTIONS":
            return method, b"*", minor, host
        return method, path if path[:1] == b"/" else b"/" + path, minor, host


def _nothing(block: bytes) -> None:
    """Knows no block."""


def _minor(version: bytes) -> int:
    if version == b"HTTP/1.1":
        return 1
    if version == b"HTTP/1.0":
        return 0
    if _is_version(version):
        raise Refused("a version is HTTP/1.0 or HTTP/1.1 (RFC 9112 section 2.3)", 505)
    raise Refused("a line ends with its version (RFC 9112 section 2.3)")


#: Response heads that were seen; see ``http1fields.seen_requests``.
_seen_responses: dict[bytes, ResponseHead] = {}


class ResponseReader(Reader):
    """Reads one response head after the other. All that it refuses has the status 502."""

    __slots__ = ("_known",)

    def __init__(self, limits: Limits = DEFAULT) -> None:
        super().__init__(limits)
        # Whatever is kept keeps these limits; a reader with tighter ones reads for itself.
        enough = self._line >= LONGEST_KEPT and limits.fields >= MOST_FIELDS_KEPT
        self._known = _seen_responses.get if enough else _nothing

    def feed(self, data: bytes) -> ResponseHead | None:
        """The next head, once it is whole; None: more is needed. See ``RequestReader.feed``."""
        try:
            if self._held and not (data := self._gather(data)):
                return None
            end = data.find(BLANK_LINE) + 4
            if end < 4:
                self._gather(data)
                return None
            head = self._known(data[:end])
            if head is None:
                head = self._new(data[:end])
        except Refused as refused:
            refused.status = 502
            raise
        self.rest = data[end:]
        return head

    def _new(self, data: bytes) -> ResponseHead:
        """A head that was not seen before."""
        match = _status_line(data)
        if match is None or match.end() > self._line or len(data) > self._head:
            self._judge(data, len(data))
        assert match is not None  # or else its line was judged
        minor, status, reason = match.groups()
        fields = response_fields(data[match.end() : -2])
        if fields.count > self._fields:
            raise too_large()
        if minor == b"0" and fields.chunked:
            raise Refused("no Transfer-Encoding in HTTP/1.0 (RFC 9112 section 6.1)")
        head = ResponseHead(int(status), int(minor), reason or b"", fields)
        if len(data) <= LONGEST_KEPT and fields.count <= MOST_FIELDS_KEPT:
            if len(_seen_responses) >= _MOST_HEADS_KEPT:
                _seen_responses.clear()
            _seen_responses[data] = head
        return head

    def _start(self, data: bytes | bytearray, size: int) -> int:
        if not b"HTTP/".startswith(data[: min(size, 5)]):
            raise Refused("a response starts with its version (RFC 9112 section 4)")
        return 0

    def _first_line(self, line: bytes) -> None:
        if not _status_line(line):
            version, _, status = line[:-2].partition(b" ")
            _minor(version)
            if not re.match(rb"[1-5][0-9]{2}(?: |\Z)", status):
                raise Refused("a status is a number from 100 to 599 (RFC 9110 section 15)")
            raise Refused("no control bytes in a reason (RFC 9112 section 4)")
