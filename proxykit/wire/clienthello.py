"""A TLS ClientHello, looked at and never touched: bytes in, one of four answers out.

A reader takes the first bytes of a connection, puts records and the hello in them together, and
says what the client asks for. It judges what a proxy has to know to choose a server; all else in a
hello is the server's business. ``received`` keeps what came, to be handed on as it is.

``NEED_MORE``: as long as the hello is not whole. Its name may be in any of its pieces, so nothing
is ever said of a part.

``Matched``: a whole hello.

=====================================  =============================================================
no extensions (TLS 1.0), or no name    matched, without a name
upper case, a dot at the end           in lower case, without the dot
an IP address as a name                no name: RFC 6066 forbids it, yet OpenSSL's users send it
GREASE (RFC 8701)                      left out of versions and protocols, else skipped
bytes behind its last record           kept, not looked at: early data, a second hello
=====================================  =============================================================

``NotThisProtocol``: not TLS, by its first two bytes.

=====================================  =============================================================
SSLv2 hello, plain HTTP, garbage       anything but a record type and the 3 of SSL 3.0 and TLS
=====================================  =============================================================

``Malformed``: TLS, and can only be refused, with this alert (RFC 8446 section 6.2):

=====================================  =============================================================
a record that is no handshake          unexpected_message, an alert too, or one between the pieces
a handshake that is no hello           unexpected_message
more in the record behind the hello    unexpected_message
a hello below SSL 3.0                  protocol_version; so is a later record that is none of 3.x
a record over 16,384 bytes             record_overflow
over 65,536 bytes, or 2,048 records    decode_error; at once, where a length says so
an empty record, an empty hello        decode_error
lengths that do not add up             decode_error, at every level
a session id over 32 bytes             decode_error
no ciphers, or half a one              decode_error
no compression methods                 decode_error; without the null method: illegal_parameter
an empty name, an empty list           decode_error, of names, of protocols, of versions
two extensions of one type             illegal_parameter, two server_name among them
two names, or no host_name             illegal_parameter
a name that DNS cannot have            illegal_parameter: a byte that is none of A-Z a-z 0-9 - _ .,
                                       over 255 bytes, a label that is empty or over 63, digits and
                                       dots that are no address
=====================================  =============================================================
"""

from __future__ import annotations

import re
from enum import Enum
from ipaddress import ip_address
from struct import Struct
from struct import error as StructError
from typing import Final

from attrs import frozen

#: Of a hello, with the headers of its records. Those of browsers have less than 3,000.
MOST_BYTES = 65536
#: Of a hello, however small: each costs as much as thousands of bytes.
MOST_RECORDS = 2048

#: Alerts to refuse with (RFC 8446 section 6).
UNEXPECTED_MESSAGE = 10
RECORD_OVERFLOW = 22
HANDSHAKE_FAILURE = 40
ILLEGAL_PARAMETER = 47
DECODE_ERROR = 50
PROTOCOL_VERSION = 70
MISSING_EXTENSION = 109
UNRECOGNIZED_NAME = 112
#: As ``Hello.versions`` has it.
TLS13 = 0x0304

_HANDSHAKE = 22
#: change_cipher_spec, alert, handshake, application_data, heartbeat.
_RECORD_TYPES = range(20, 25)
_RECORD_BYTES = 16384
_CLIENT_HELLO = 1
#: The major version of SSL 3.0 and of every TLS.
_MAJOR = 3

#: Extensions: RFC 6066 section 3, RFC 7301 section 3.1, RFC 8446 section 4.2.1, RFC 9849.
_SERVER_NAME = 0
_ALPN = 16
_SUPPORTED_VERSIONS = 43
_ENCRYPTED_CLIENT_HELLO = 0xFE0D

_record_header = Struct(">BHH").unpack_from
#: Of a record that a hello starts in, and of that hello; the zero is the first byte of its length.
_both_headers = Struct(">BHHBBH").unpack_from
_each_uint16 = Struct(">H").iter_unpack
_uint16 = Struct(">H").unpack_from
_two_uint16 = Struct(">HH").unpack_from
_names_header = Struct(">HHBH").unpack_from

_LABEL = rb"[A-Za-z0-9_-]{1,63}+"
#: No top-level domain is a number: what is digits and dots is an address or nothing.
_is_name = re.compile(
    rb"(?=.{1,255}\Z)(?![0-9.]++\Z)" + _LABEL + rb"(?:\." + _LABEL + rb")*+\.?+"
).fullmatch
_GREASE = frozenset(range(0x0A0A, 0x10000, 0x1010))
_GREASE_PROTOCOLS = frozenset(bytes((value & 255,)) * 2 for value in _GREASE)


@frozen
class Hello:
    """What a client asks for.

    :ivar server_name: in lower case, without a final dot, A-labels as they are; None: it names
        none.
    :ivar alpn: the protocols it offers, best first; bytes beyond ASCII as in Latin-1.
    :ivar versions: those it offers, such as 0x0304, in its order; before TLS 1.3 it only says the
        highest.
    :ivar encrypted: whether there is an encrypted_client_hello. Then ``server_name`` is that of
        whoever can decrypt it; or it is GREASE, which nobody can tell (RFC 9849 section 6.2).
    """

    server_name: str | None
    alpn: tuple[str, ...]
    versions: tuple[int, ...]
    encrypted: bool


class NeedMore(Enum):
    """The answer as long as the hello is not whole."""

    NEED_MORE = "need more"


NEED_MORE: Final = NeedMore.NEED_MORE


@frozen
class Matched:
    """A whole hello, with a name in it or not."""

    hello: Hello


@frozen
class NotThisProtocol:
    """No TLS.

    :ivar why: what it was taken for.
    """

    why: str


@frozen
class Malformed:
    """TLS that breaks a rule: to be refused, never to be routed.

    :ivar why: the rule and where it stands.
    :ivar alert: what to refuse it with, for :func:`alert`.
    """

    why: str
    alert: int


class _Broken(Exception):
    """A rule is: its words, and the alert."""

    def __init__(self, why: str, alert: int = DECODE_ERROR) -> None:
        super().__init__(why)
        self.answer = Malformed(why, alert)


class HelloReader:
    """Reads the hello that a connection starts with.

    After any other answer than ``NEED_MORE``, nothing more may be fed.

    :param limit: bytes that it may have, with the headers of its records.
    """

    __slots__ = ("_at", "_held", "_left", "_limit", "_message", "_need", "_records")

    def __init__(self, limit: int = MOST_BYTES) -> None:
        self._limit = limit
        self._held: bytes | bytearray = b""
        #: How much of what is held was read, and what is left of the record it ends in.
        self._at = 0
        self._left = 0
        self._records = 0
        #: What the records have of the hello, its header too, and how many bytes it has in all;
        #: 0: that is not known yet.
        self._message = bytearray()
        self._need = 0

    @property
    def received(self) -> bytes:
        """All that was fed, unchanged."""
        return bytes(self._held)

    def feed(self, data: bytes) -> NeedMore | Matched | NotThisProtocol | Malformed:
        """What is known after these bytes, too: they come after those of the last call.

        The answer does not hang on how the bytes were split.
        """
        held = self._held
        try:
            if not held:
                self._held = data
                body = _body_in_one_piece(data)
                if body is not None and len(body) + 9 <= self._limit:
                    return Matched(_read_hello(body))
            elif isinstance(held, bytearray):
                held += data
            else:
                self._held = bytearray(held + data)
            if not self._at and (other := _other_protocol(self._held)) is not None:
                return other
            return self._read_records()
        except _Broken as broken:
            return broken.answer

    def _read_records(self) -> NeedMore | Matched:
        held = self._held
        while self._left or self._starts_record():
            start = self._at
            fragment = held[start : start + self._left]
            if not fragment:
                break
            self._at += len(fragment)
            self._left -= len(fragment)
            if self._is_whole(fragment):
                return Matched(_read_hello(bytes(self._message[4:])))
        return NEED_MORE

    def _starts_record(self) -> bool:
        """Read a record's header, if it is there (RFC 8446 section 5.1)."""
        if len(self._held) < self._at + 5:
            return False
        kind, version, length = _record_header(self._held, self._at)
        if kind != _HANDSHAKE:
            raise _Broken(
                "a hello is in handshake records alone (RFC 8446 section 5.1)", UNEXPECTED_MESSAGE
            )
        # Any minor version will do here (RFC 5246 appendix E.1).
        if version >> 8 != _MAJOR:
            raise _Broken("a record's major version is 3 (RFC 8446 section 5.1)", PROTOCOL_VERSION)
        if not length:
            raise _Broken("no empty handshake record (RFC 8446 section 5.1)")
        if length > _RECORD_BYTES:
            raise _Broken(
                "a record has 16384 bytes at most (RFC 8446 section 5.1)", RECORD_OVERFLOW
            )
        self._at += 5
        self._left = length
        self._records += 1
        if self._records > MOST_RECORDS:
            raise _Broken(f"a hello has {MOST_RECORDS} records at most")
        if self._at + length > self._limit:
            raise self._too_large()
        return True

    def _is_whole(self, fragment: bytes | bytearray) -> bool:
        """Add a part of a record to the hello; whether that was its last (RFC 8446 section 4)."""
        message = self._message
        message += fragment
        if not self._need:
            if message[0] != _CLIENT_HELLO:
                raise _Broken(
                    "a client's first message is a hello (RFC 8446 section 4.1.2)",
                    UNEXPECTED_MESSAGE,
                )
            if len(message) < 4:
                return False
            self._need = 4 + int.from_bytes(message[1:4])
            if 5 + self._need > self._limit:
                raise self._too_large()
        if len(message) + self._left > self._need:
            raise _Broken("a hello ends with its record (RFC 8446 section 5.1)", UNEXPECTED_MESSAGE)
        return len(message) == self._need

    def _too_large(self) -> _Broken:
        return _Broken(f"a hello has {self._limit} bytes at most, with its records")


def _body_in_one_piece(data: bytes) -> bytes | None:
    """The hello without its header, where it came at once and in one record, as most do."""
    if len(data) < 9:
        return None
    kind, version, length, message, zero, size = _both_headers(data)
    if (
        kind == _HANDSHAKE
        and version >> 8 == _MAJOR
        and message == _CLIENT_HELLO
        and not zero
        and size + 4 == length <= _RECORD_BYTES
        and length + 5 <= len(data)
    ):
        return data[9 : length + 5]
    return None


def _other_protocol(data: bytes | bytearray) -> NotThisProtocol | None:
    """What it is, if it is no record of TLS; None: it is, or that cannot be told yet."""
    if not data:
        return None
    first = data[0]
    if first in _RECORD_TYPES:
        if len(data) == 1 or data[1] == _MAJOR:
            return None
        return NotThisProtocol("starts like a record, but not of TLS")
    if first & 0x80:
        return NotThisProtocol("starts like SSLv2 (RFC 5246 appendix E.2), or binary")
    if 0x20 < first < 0x7F:
        return NotThisProtocol("starts like text, such as HTTP")
    return NotThisProtocol("starts like nothing known")


def _read_hello(body: bytes) -> Hello:
    """What is in a hello (RFC 8446 section 4.1.2)."""
    try:
        found = _extensions(body, _extensions_start(body))
        names = found.get(_SERVER_NAME)
        protocols = found.get(_ALPN)
        versions = found.get(_SUPPORTED_VERSIONS)
        return Hello(
            None if names is None else _server_name(body, names),
            () if protocols is None else _protocols(body, protocols),
            _legacy_version(body) if versions is None else _versions(body, versions),
            _ENCRYPTED_CLIENT_HELLO in found,
        )
    except (IndexError, StructError):
        # Something would be behind the end.
        raise _does_not_add_up() from None


def _does_not_add_up() -> _Broken:
    return _Broken("lengths add up (RFC 8446 section 3.4)")


def _extensions_start(body: bytes) -> int:
    """Judge what is before the extensions; where they are, or the end if there are none."""
    # Behind the version and the random.
    session = body[34]
    if session > 32:
        raise _Broken("a session id has 32 bytes at most (RFC 8446 section 4.1.2)")
    at = 35 + session
    ciphers: int = _uint16(body, at)[0]
    if not ciphers or ciphers & 1:
        raise _Broken("there are ciphers, of two bytes each (RFC 8446 section 4.1.2)")
    at += 2 + ciphers
    methods = body[at]
    if not methods:
        raise _Broken("there is a compression method (RFC 8446 section 4.1.2)")
    at += 1 + methods
    if at != len(body) and at + 2 + _uint16(body, at)[0] != len(body):
        raise _does_not_add_up()
    if 0 not in body[at - methods : at]:
        raise _Broken(
            "null is among the compression methods (RFC 5246 section 7.4.1.2)", ILLEGAL_PARAMETER
        )
    return min(at + 2, len(body))


def _extensions(body: bytes, at: int) -> dict[int, int]:
    """Where each extension's length is, by its type (RFC 8446 section 4.2)."""
    found = {}
    count = 0
    end = len(body)
    read = _two_uint16
    while at < end:
        kind, size = read(body, at)
        found[kind] = at + 2
        at += 4 + size
        count += 1
    if at != end:
        raise _does_not_add_up()
    if len(found) != count:
        raise _Broken("one extension of each type (RFC 8446 section 4.2)", ILLEGAL_PARAMETER)
    return found


def _server_name(body: bytes, at: int) -> str | None:
    """The host_name in a list of names (RFC 6066 section 3).

    The list could have names of other types, but OpenSSL takes none that has: what the next reader
    would make of it is not left to chance.
    """
    size, listed, kind, length = _names_header(body, at)
    if size != listed + 2 or not listed:
        raise _Broken("a list of names is not empty and fills its extension (RFC 6066 section 3)")
    if not length:
        raise _Broken("a name is not empty (RFC 6066 section 3)")
    if listed < length + 3:
        raise _does_not_add_up()
    if kind or listed > length + 3:
        raise _Broken("one name, a host_name (RFC 6066 section 3)", ILLEGAL_PARAMETER)
    return _host_name(body[at + 7 : at + 7 + length])


def _host_name(name: bytes) -> str | None:
    if not _is_name(name):
        if _is_address(name):
            return None
        raise _Broken("a name is one of DNS (RFC 6066 section 3)", ILLEGAL_PARAMETER)
    text = str(name, "ascii").lower()
    return text[:-1] if text[-1] == "." else text


def _is_address(name: bytes) -> bool:
    """Whether a name that DNS cannot have is an IP address; IPv6 comes in brackets, too."""
    if name[:1] == b"[" and name[-1:] == b"]":
        name = name[1:-1]
    try:
        ip_address(str(name.removesuffix(b"."), "ascii"))
    except ValueError:
        return False
    return True


def _protocols(body: bytes, at: int) -> tuple[str, ...]:
    """What is in an ALPN extension (RFC 7301 section 3.1)."""
    size, listed = _two_uint16(body, at)
    end = at + 2 + size
    if size != listed + 2 or not listed:
        raise _Broken(
            "a list of protocols is not empty and fills its extension (RFC 7301 section 3.1)"
        )
    at += 4
    found = []
    while at < end:
        start = at + 1
        at = start + body[at]
        if at == start:
            raise _Broken("a protocol's name is not empty (RFC 7301 section 3.1)")
        name = body[start:at]
        if name not in _GREASE_PROTOCOLS:
            found.append(str(name, "latin-1"))
    if at != end:
        raise _does_not_add_up()
    return tuple(found)


def _versions(body: bytes, at: int) -> tuple[int, ...]:
    """What is in a supported_versions extension (RFC 8446 section 4.2.1)."""
    size = _uint16(body, at)[0]
    listed = body[at + 2]
    if size != listed + 1 or not listed or listed & 1:
        raise _Broken(
            "a list of versions is not empty and fills its extension (RFC 8446 section 4.2.1)"
        )
    at += 3
    # A list first, for a generator costs twice as much.
    offered = [one for (one,) in _each_uint16(body[at : at + listed]) if one not in _GREASE]
    return tuple(offered)


def _legacy_version(body: bytes) -> tuple[int, ...]:
    """The one version of a hello without that extension (RFC 8446 section 4.1.2)."""
    version = _uint16(body)[0]
    if version >> 8 < _MAJOR:
        raise _Broken("a hello's major version is 3 (RFC 5246 appendix E.1)", PROTOCOL_VERSION)
    return (version,)


def alert(description: int) -> bytes:
    """The record of a fatal alert, as a server sends it before it has chosen a version.

    :param description: its number, such as ``Malformed.alert`` (RFC 8446 section 6).
    :raises ValueError: it is none from 0 to 255.
    """
    return b"\x15\x03\x01\x00\x02\x02" + bytes((description,))
