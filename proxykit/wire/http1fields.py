"""What a proxy must understand of a field block, and what it passes on.

Clients and backends repeat themselves: the field block of one request is mostly that of the request
before it. So all that follows from a block alone is worked out once, and kept by the block's bytes.
What is passed on is written anew from what was understood: framing, hop-by-hop and forwarding
fields are left out, and the proxy writes its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from proxykit.wire.fields import HOP_BY_HOP, Fields, valid_field
from proxykit.wire.http1grammar import (
    CRLF,
    Refused,
    block_fault,
    host_name,
    is_block,
    is_neat_block,
    is_token,
    looks_like_framing,
)

__all__ = [
    "CHUNKED",
    "NO_BODY",
    "UNTIL_CLOSE",
    "Fields",
    "RequestFields",
    "ResponseFields",
    "request_fields",
    "response_fields",
    "trailer_fields",
    "valid_field",
]

#: How a body ends, beside a length in bytes (RFC 9112 section 6.3).
NO_BODY = 0
CHUNKED = -1
UNTIL_CLOSE = -2

#: What the proxy writes itself, from what it was sent by those it trusts.
_FORWARDING = (
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-request-id",
    b"x-client-cert-subject",
    b"x-client-cert-fingerprint",
)
#: Fields that are looked at but stay.
_REQUEST_STAYS = (b"authorization", b"expect")
_RESPONSE_STAYS = (b"www-authenticate",)
#: Trailers that nobody may take for fields of a head (RFC 9110 section 6.5.1).
_NO_TRAILER = frozenset(
    (
        *HOP_BY_HOP,
        *_FORWARDING,
        b"authorization",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"host",
        b"set-cookie",
        b"trailer",
        b"www-authenticate",
    )
)
#: Blocks longer than this, in bytes, or with more fields, are not kept.
LONGEST_KEPT = 2048
MOST_FIELDS_KEPT = 100
_MOST_KEPT = 1024
_LONGEST_WORD_KEPT = 64

_idle_timeout = re.compile(
    rb"(?:^|[,;])[ \t]*+timeout[ \t]*+=[ \t]*+([0-9]{1,9})(?![0-9])", re.I
).search
_of_a_connection = re.compile(rb"(?:^|,)[ \t]*+(?:ntlm|negotiate)(?:[ \t,]|$)", re.I).search


class _Names(dict[bytes, bytes]):
    """Names of fields as they were sent, and what of them matters: the name in lower case, or b"".

    It learns: most names come in one spelling, and so none is looked at closely twice.
    """

    def __init__(self, special: Iterable[bytes]) -> None:
        self._special = frozenset(special)

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        if looks_like_framing(lower):
            raise Refused("no name that looks like a framing field's (RFC 9112 section 6)")
        special = lower if lower in self._special else b""
        if not special and lower.replace(b"_", b"-") in self._special:
            special = _DROPPED
        if len(name) <= _LONGEST_WORD_KEPT:
            if len(self) >= _MOST_KEPT:
                self.clear()
            self[name] = special
        return special


_DROPPED = b"_"
_REQUEST_NAMES = _Names((*HOP_BY_HOP, *_FORWARDING, *_REQUEST_STAYS, b"host"))
_RESPONSE_NAMES = _Names((*HOP_BY_HOP, *_RESPONSE_STAYS))


class _Options:
    """What Connection lists, and which of it names fields that are to go."""

    __slots__ = ("close", "keep_alive", "listed", "named")

    def __init__(self, value: bytes) -> None:
        listed = (option.strip(b" \t") for option in value.lower().split(b","))
        self.listed = tuple(option for option in listed if option)
        self.close = b"close" in self.listed
        self.keep_alive = b"keep-alive" in self.listed
        # Expect was understood, so the backend must hear of it.
        self.named = frozenset(self.listed) - {b"close", b"keep-alive", b"expect"}


_NO_OPTIONS = _Options(b"")
_seen_options = lru_cache(maxsize=256)(_Options)


def _options_of(value: bytes) -> _Options:
    return _seen_options(value) if len(value) <= _LONGEST_WORD_KEPT else _Options(value)


def _tidy_lines(block: bytes) -> list[bytes]:
    """The lines of a block, each as proxykit would write it."""
    if is_neat_block(block):
        return block[:-2].split(CRLF) if block else []
    if not is_block(block):
        raise block_fault(block)
    halves = (line.partition(b":") for line in block[:-2].split(CRLF))
    return [name + b": " + value.strip(b" \t") for name, _, value in halves]


class _Block:
    """What requests and responses have in common.

    :ivar block: the field lines, as they were sent.
    :ivar kept: those that are passed on, as proxykit writes them.
    :ivar count: how many lines there were.
    :ivar length: the value of Content-Length, in bytes; None: there is none.
    :ivar chunked: whether the body is chunked.
    :ivar close: whether Connection lists ``close``.
    :ivar keep_alive: whether Connection lists ``keep-alive``.
    :ivar upgrade: the value of Upgrade if Connection lists ``upgrade``, else b"". With ``h2c``
        among the protocols it counts as none. In HTTP/1.0 it has no meaning.
    :ivar connection_options: all that Connection lists, in lower case.
    :ivar private: whether NTLM or Negotiate is spoken, which authenticate a connection.
    """

    __slots__ = (
        "block",
        "chunked",
        "close",
        "connection_options",
        "count",
        "keep_alive",
        "kept",
        "length",
        "private",
        "upgrade",
    )

    def _read(
        self, block: bytes, names: _Names, stays: tuple[bytes, ...]
    ) -> dict[bytes, list[bytes]]:
        """Fill in what both have; return the values of the fields that matter, by name."""
        found: dict[bytes, list[bytes]] = {}
        kept: list[bytes] = []
        lines = _tidy_lines(block)
        for line in lines:
            name, _, value = line.partition(b": ")
            special = names[name]
            if not special:
                kept.append(line)
            else:
                if special in stays:
                    kept.append(line)
                if special in found:
                    found[special].append(value)
                else:
                    found[special] = [value]
        self.block = block
        self.count = len(lines)
        self._frame(found.get(b"content-length"), found.get(b"transfer-encoding"))
        kept = self._connect(found.get(b"connection"), kept)
        self.upgrade = self._upgrade(found) if b"upgrade" in found else b""
        kept.append(b"")
        self.kept = CRLF.join(kept)
        return found

    def _frame(self, lengths: list[bytes] | None, codings: list[bytes] | None) -> None:
        self.length: int | None = None
        self.chunked = False
        if codings is not None:
            if lengths is not None:
                raise Refused(
                    "not both Content-Length and Transfer-Encoding (RFC 9112 section 6.1)"
                )
            _check_coding(b", ".join(codings).lower())
            self.chunked = True
        elif lengths is not None:
            if len(lengths) > 1:
                raise Refused("one Content-Length (RFC 9112 section 6.3)")
            if not lengths[0].isdigit() or len(lengths[0]) > 18:
                raise Refused(
                    "Content-Length is a number of at most 18 digits (RFC 9110 section 8.6)"
                )
            self.length = int(lengths[0])

    def _connect(self, values: list[bytes] | None, kept: list[bytes]) -> list[bytes]:
        """Fill in what Connection says; return the lines that it does not name."""
        options = _NO_OPTIONS if values is None else _options_of(b",".join(values))
        self.connection_options = options.listed
        self.close = options.close
        self.keep_alive = options.keep_alive
        if not options.named:
            return kept
        return [line for line in kept if line.partition(b":")[0].lower() not in options.named]

    def _upgrade(self, found: dict[bytes, list[bytes]]) -> bytes:
        if b"upgrade" not in self.connection_options:
            return b""
        upgrade = b", ".join(found[b"upgrade"])
        return b"" if b"h2c" in upgrade.lower() else upgrade


def _check_coding(coding: bytes) -> None:
    if coding == b"chunked":
        return
    others = [part.strip(b" \t") for part in coding.split(b",")]
    if others.pop() == b"chunked" and b"chunked" not in others and all(map(is_token, others)):
        raise Refused("no coding but chunked (RFC 9112 section 6.1)", 501)
    raise Refused("Transfer-Encoding ends with chunked, once (RFC 9112 section 6.1)")


def _is_private(values: list[bytes] | None) -> bool:
    """Whether one of these names a scheme that authenticates a connection and not a request."""
    return values is not None and any(map(_of_a_connection, values))


class RequestFields(_Block):
    """The field block of a request. Shared by all requests with that block: never changed.

    :ivar framing: how the body ends: a length in bytes, 0 without a body, or ``CHUNKED``.
    :ivar host: the value of Host; b"" if there is none or it is empty.
    :ivar host_count: how many Host lines there were, 0 or 1.
    :ivar name: the host in it, for routing; "" if there is none.
    :ivar expects: whether a ``100 Continue`` is expected. In HTTP/1.0 it has no meaning.
    :ivar forwarded_for: and the others: the values of X-Forwarded-For, -Proto and -Host, and of
        Forwarded, several lines joined by commas; b"" if there is none.
    :ivar request_id: the value of X-Request-ID, of the first if there are several.
    :ivar certificate: those of X-Client-Cert-Subject and -Fingerprint, each b"" if there is none.

    :raises Refused: at construction, with any status but 505.
    """

    __slots__ = (
        "certificate",
        "expects",
        "forwarded",
        "forwarded_for",
        "forwarded_host",
        "forwarded_proto",
        "framing",
        "host",
        "host_count",
        "name",
        "request_id",
    )

    def __init__(self, block: bytes) -> None:
        found = self._read(block, _REQUEST_NAMES, _REQUEST_STAYS)
        self.framing: int = CHUNKED if self.chunked else self.length or NO_BODY
        self._route(found.get(b"host"))
        self.expects = False
        if (expectations := found.get(b"expect")) is not None:
            if b", ".join(expectations).lower() != b"100-continue":
                raise Refused("no expectation but 100-continue (RFC 9110 section 10.1.1)", 417)
            self.expects = True
        self.private = _is_private(found.get(b"authorization"))
        self.forwarded_for = b", ".join(found.get(b"x-forwarded-for", ()))
        self.forwarded_proto = b", ".join(found.get(b"x-forwarded-proto", ()))
        self.forwarded_host = b", ".join(found.get(b"x-forwarded-host", ()))
        self.forwarded = b", ".join(found.get(b"forwarded", ()))
        self.request_id = found.get(b"x-request-id", (b"",))[0]
        self.certificate = (
            found.get(b"x-client-cert-subject", (b"",))[0],
            found.get(b"x-client-cert-fingerprint", (b"",))[0],
        )

    def _route(self, hosts: list[bytes] | None) -> None:
        self.host = b""
        self.host_count = 0
        self.name = ""
        if hosts is None:
            return
        if len(hosts) > 1:
            raise Refused("one Host (RFC 9112 section 3.2)")
        self.host_count = 1
        self.host = hosts[0]
        if self.host:
            name = host_name(self.host)
            if name is None:
                raise Refused("Host is a host, and perhaps a port (RFC 9110 section 7.2)")
            self.name = name


class ResponseFields(_Block):
    """The field block of a response. Shared by all responses with that head: never changed.

    :ivar idle_timeout: seconds after which the backend means to close an idle connection, from
        ``Keep-Alive: timeout=``; None: it does not say.

    :raises Refused: at construction, with status 502.
    """

    __slots__ = ("idle_timeout",)

    def __init__(self, block: bytes) -> None:
        try:
            found = self._read(block, _RESPONSE_NAMES, _RESPONSE_STAYS)
        except Refused as refused:
            refused.status = 502
            raise
        self.private = _is_private(found.get(b"www-authenticate"))
        self.idle_timeout: float | None = None
        if (said := found.get(b"keep-alive")) is not None:
            match = _idle_timeout(b", ".join(said))
            self.idle_timeout = float(match[1]) if match else None


#: Request blocks that were seen. Emptied when full: that is cheaper than to know which one was used
#: last, and whoever is still there is soon in it again.
seen_requests: dict[bytes, RequestFields] = {}


def request_fields(block: bytes) -> RequestFields:
    """What there is in the field lines of a request, each with its CRLF.

    :raises Refused: they break a rule.
    """
    fields = seen_requests.get(block)
    if fields is None:
        fields = RequestFields(block)
        if len(block) <= LONGEST_KEPT and fields.count <= MOST_FIELDS_KEPT:
            if len(seen_requests) >= _MOST_KEPT:
                seen_requests.clear()
            seen_requests[block] = fields
    return fields


def response_fields(block: bytes) -> ResponseFields:
    """What there is in the field lines of a response, each with its CRLF.

    :raises Refused: they break a rule.
    """
    return ResponseFields(block)


def trailer_fields(block: bytes) -> bytes:
    """The lines of a trailer section that may be passed on (RFC 9110 section 6.5.1).

    :raises Refused: they break a rule.
    """
    kept = []
    for line in _tidy_lines(block):
        name = line.partition(b":")[0].lower()
        if looks_like_framing(name):
            raise Refused("no name that looks like a framing field's (RFC 9112 section 6)")
        if name not in _NO_TRAILER:
            kept.append(line)
    return b"".join(line + CRLF for line in kept)
