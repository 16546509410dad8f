"""PROXY headers, versions 1 and 2: bytes in, a header, an error, or None for "more"; and back.

Who relays a connection says in front of it whom it is from. Every rule is one of HAProxy's
proxy-protocol.txt: section 2.1 has version 1, a line of text, section 2.2 version 2, in binary. All
is read strictly, for on a header hangs whom the next one believes to be talking to.

What comes of some bytes does not hang on how they were split. How a header starts and how long it
is are judged at the byte that breaks a rule; addresses and TLVs when all of it is there.

A header that speaks of no addresses (LOCAL, UNKNOWN, AF_UNSPEC) is a good one: the connection is
then from whom the socket says. What stands in UNKNOWN's line or LOCAL's block is skipped unread.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from attrs import frozen

#: Types of TLVs (section 2.2).
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID = 0x01, 0x02, 0x03, 0x04, 0x05
SSL, NETNS = 0x20, 0x30
#: Bytes of a header of version 2 with all its TLVs: enough for names, ids and a certificate's name.
LIMIT = 2048

_CRLF = b"\r\n"
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = 16
#: Bytes of a line of version 1, CRLF included.
_LONGEST = 107
_LONGEST_UNIQUE_ID = 128
_PROTOCOLS = (b"TCP4 ", b"TCP6 ", b"UNKNOWN ", b"UNKNOWN\r")
#: Bytes of the shortest line, by the last byte that tells protocols apart.
_SHORTEST = {
    b"4": len(b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n"),
    b"6": len(b"PROXY TCP6 :: :: 0 0\r\n"),
}
_SHORTEST_OF_ALL = len(b"PROXY UNKNOWN\r\n")
#: Bytes of source and destination together, by address family: AF_UNSPEC, INET, INET6, UNIX.
_ADDRESSES = (0, 12, 36, 216)
_FAMILY = {4: 1, 16: 2, 108: 3}
_MAPPED = bytes(10) + b"\xff\xff"
#: Those of which a second one could contradict the first.
_ONCE = frozenset((ALPN, AUTHORITY, CRC32C, UNIQUE_ID, SSL, NETNS))

_whole_line = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*+)?+|TCP([46]) "
    rb"([0-9A-Fa-f:.]*+) ([0-9A-Fa-f:.]*+) ([0-9A-Fa-f:.]*+) ([0-9A-Fa-f:.]*+))\r\n"
).match
_is_port = re.compile(rb"0|[1-9][0-9]{0,4}").fullmatch


class Malformed(Exception):
    """Bytes that are no PROXY header.

    :ivar rule: of proxy-protocol.txt, such as ``PROXY v1: a port is 0 to 65535, without leading
        zeros``.
    """

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


@frozen
class Endpoint:
    """One end of a connection.

    :ivar host: an IP address; or the absolute path of a unix socket, with whatever characters
        (``os.fsdecode``); or empty, for a unix socket that has no such path.
    :ivar port: 0 to 65535; 0 for a unix socket.
    """

    host: str
    port: int


@frozen
class Header:
    """What a PROXY header says.

    :ivar version: 1 or 2.
    :ivar local: it says nothing of addresses: the connection is from whom the socket says.
    :ivar source: who connected; None if ``local``.
    :ivar destination: to whom; None if ``local``.
    :ivar tlvs: type and value of what else it says, in its order, without NOOP and CRC32C, which
        are about the header itself: what may be sent on.
    :ivar datagram: what is relayed are datagrams.
    """

    version: int
    local: bool
    source: Endpoint | None = None
    destination: Endpoint | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()
    datagram: bool = False

    @property
    def alpn(self) -> bytes | None:
        """The protocol that the client speaks, such as ``b"h2"`` (section 2.2.1)."""
        return self._value(ALPN)

    @property
    def authority(self) -> str | None:
        """The name that the client asked for, as it was sent (section 2.2.2)."""
        value = self._value(AUTHORITY)
        return None if value is None else value.decode("utf-8")

    @property
    def unique_id(self) -> bytes | None:
        """Up to 128 bytes that name this connection on all its way (section 2.2.5)."""
        return self._value(UNIQUE_ID)

    def _value(self, wanted: int) -> bytes | None:
        return next((value for kind, value in self.tlvs if kind == wanted), None)


class HeaderReader:
    """Reads the one header in front of a connection.

    Who has only peeked at the bytes feeds each once, and then takes ``size`` of them from the
    socket. Who reads them takes ``need`` at a time to take nothing behind the header, or as many
    as there are, for ``rest``.

    :param limit: bytes of a header of version 2, at the most.
    :ivar need: how many more bytes there are of the header, at the least; 0 after it.
    :ivar size: after a header: its length, in bytes.
    :ivar rest: after a header: the bytes behind it.
    """

    __slots__ = ("_held", "_judged", "_limit", "need", "rest", "size")

    def __init__(self, limit: int = LIMIT) -> None:
        self.need = _SHORTEST_OF_ALL
        self.size = 0
        self.rest = b""
        self._limit = limit
        self._held = bytearray()
        #: Bytes of a line that are known to be right.
        self._judged = 0

    def feed(self, data: bytes) -> Header | None:
        """The header, once it is whole; None: more is needed.

        :raises Malformed: these bytes are none, and no more may be fed.
        """
        if not data:
            return None
        held = self._held
        if held:
            held += data
            if self.size and len(held) < self.size:
                self.need = self.size - len(held)
                return None
            data = bytes(held)
        header = self._line(data) if data[:1] == b"P" else self._block(data)
        if header is None:
            if not held:
                held += data
            return None
        self.need = 0
        self.rest = data[self.size :]
        return header

    def _line(self, data: bytes) -> Header | None:
        """A header of version 1, if it is whole."""
        match = _whole_line(data, 0, _LONGEST)
        if match is not None:
            self.size = match.end()
            return _header_of_line(*match.groups())
        end = data.find(_CRLF, 0, _LONGEST) + 2
        for at in range(self._judged, end if end > 1 else min(len(data), _LONGEST)):
            _judge_line(data, at)
        if end > 1:
            raise Malformed("PROXY v1: after TCP4 or TCP6 come two addresses and two ports")
        self._judged = len(data)
        shortest = _SHORTEST.get(data[9:10], _SHORTEST_OF_ALL)
        self.need = max(shortest - len(data), 1 if data[-1] == 13 else 2)
        return None

    def _block(self, data: bytes) -> Header | None:
        """A header of version 2, if it is whole."""
        if not _SIGNATURE.startswith(data[:12]):
            raise _no_header()
        size = _announced(data, self._limit)
        if len(data) < (size or _FIXED):
            self.size = size
            self.need = (size or _FIXED) - len(data)
            return None
        self.size = size
        return _header_of_block(data[:size])


def _no_header() -> Malformed:
    return Malformed("PROXY: a connection starts with a header of version 1 or 2")


def _judge_line(line: bytes, at: int) -> None:
    """Raise if the byte at ``at`` cannot stand there, when all before it can."""
    byte = line[at]
    if at < 6:
        if byte != b"PROXY "[at]:
            raise _no_header()
        return
    word = line[6 : at + 1]
    if not any(word.startswith(start) or start.startswith(word) for start in _PROTOCOLS):
        raise Malformed("PROXY v1: the protocol is TCP4, TCP6 or UNKNOWN")
    if (byte == 10) is not (line[at - 1] == 13):
        raise Malformed("PROXY v1: no CR or LF but in the CRLF at the end")
    if at == _LONGEST - 2 and byte != 13:
        raise Malformed(f"PROXY v1: a line has at most {_LONGEST} bytes")
    if word[:1] == b"T" and at > 10 and byte not in b"0123456789ABCDEFabcdef:. \r\n":
        raise Malformed("PROXY v1: addresses and ports are digits, colons and dots")


def _header_of_line(kind: bytes | None, *words: bytes) -> Header:
    """What a line says: ``b"4"`` or ``b"6"``, or None for UNKNOWN; addresses, ports."""
    if kind is None:
        return Header(1, True)
    hosts = [_host(kind, word) for word in words[:2]]
    ports = [_port(word) for word in words[2:]]
    return Header(1, False, Endpoint(hosts[0], ports[0]), Endpoint(hosts[1], ports[1]))


def _host(kind: bytes, word: bytes) -> str:
    text = word.decode("ascii")
    try:
        return str(IPv4Address(text)) if kind == b"4" else _ipv6(IPv6Address(text))
    except ValueError as error:
        name = kind.decode("ascii")
        raise Malformed(f"PROXY v1: an address after TCP{name} is one of IPv{name}") from error


def _port(word: bytes) -> int:
    if not _is_port(word) or int(word) > 65535:
        raise Malformed("PROXY v1: a port is 0 to 65535, without leading zeros")
    return int(word)


def _ipv6(address: IPv6Address) -> str:
    # As the kernel writes it, which not every version of Python does.
    mapped = address.ipv4_mapped
    return str(address) if mapped is None else f"::ffff:{mapped}"


def _announced(data: bytes, limit: int) -> int:
    """The length of a block, which is judged as far as it has come; 0: that has not come yet."""
    have = len(data)
    if have > 12 and data[12] >> 4 != 2:
        raise Malformed("PROXY v2: the version is 2")
    if have > 12 and data[12] & 15 > 1:
        raise Malformed("PROXY v2: the command is LOCAL or PROXY")
    proxied = have > 13 and data[12] & 15 == 1
    if proxied and data[13] >> 4 >= len(_ADDRESSES):
        raise Malformed("PROXY v2: the family is UNSPEC, INET, INET6 or UNIX")
    if proxied and data[13] & 15 > 2:
        raise Malformed("PROXY v2: the protocol is UNSPEC, STREAM or DGRAM")
    # Of two bytes, the first one alone can be too much.
    length = int.from_bytes(data[14:_FIXED].ljust(2, b"\0"), "big")
    if _FIXED + length > limit:
        raise Malformed(f"PROXY v2: at most {limit} bytes are read")
    if have < _FIXED:
        return 0
    if proxied and length < _ADDRESSES[data[13] >> 4]:
        raise Malformed("PROXY v2: the length covers the addresses")
    return _FIXED + length


def _header_of_block(data: bytes) -> Header:
    """What a whole block says."""
    if data[12] & 15 == 0:
        return Header(2, True)
    family, protocol = divmod(data[13], 16)
    end = _FIXED + _ADDRESSES[family]
    tlvs = _read_tlvs(data, end) if len(data) > end else ()
    if not family or not protocol:
        return Header(2, True, tlvs=tlvs)
    ends = _unix_ends(data[_FIXED:end]) if family == 3 else _ip_ends(data[_FIXED:end])
    return Header(2, False, *ends, tlvs, protocol == 2)


def _ip_ends(block: bytes) -> tuple[Endpoint, Endpoint]:
    size = len(block) // 2 - 2
    ports = struct.unpack_from("!HH", block, 2 * size)
    return (
        Endpoint(_text(block[:size]), ports[0]),
        Endpoint(_text(block[size : 2 * size]), ports[1]),
    )


def _text(packed: bytes) -> str:
    if len(packed) == 16:
        return _ipv6(IPv6Address(packed))
    first, second, third, fourth = packed
    return f"{first}.{second}.{third}.{fourth}"


def _unix_ends(block: bytes) -> tuple[Endpoint, Endpoint]:
    # Senders copy a sockaddr_un: behind the NUL stands anything. A relative path or an abstract
    # name means nothing here.
    paths = [os.fsdecode(part.partition(b"\0")[0]) for part in (block[:108], block[108:])]
    source, destination = (path if path[:1] == "/" else "" for path in paths)
    return Endpoint(source, 0), Endpoint(destination, 0)


def _read_tlvs(data: bytes, at: int) -> tuple[tuple[int, bytes], ...]:
    """What ``Header.tlvs`` has of the TLVs from ``at`` to the end of a block, once all are judged.

    :raises Malformed: one of them breaks a rule.
    """
    spans = list(_spans(data, at))
    tlvs = [(kind, data[start:stop]) for kind, start, stop in spans]
    fault = _fault(tlvs)
    if fault:
        raise Malformed(fault)
    for kind, start, stop in spans:
        if kind == CRC32C:
            whole = data[:start] + bytes(4) + data[stop:]
            if data[start:stop] != crc32c(whole).to_bytes(4, "big"):
                raise Malformed("PROXY v2: CRC32C is the checksum of the header")
    return tuple(tlv for tlv in tlvs if tlv[0] not in (NOOP, CRC32C))


def _spans(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Type, start and stop of each TLV's value."""
    while at < len(data):
        start = at + 3
        stop = start + int.from_bytes(data[at + 1 : start], "big")
        if stop > len(data):
            raise Malformed("PROXY v2: the lengths of TLVs add up")
        yield data[at], start, stop
        at = stop


def _fault(tlvs: Sequence[tuple[int, bytes]]) -> str:
    """The rule that these break; empty if they break none."""
    kinds = [kind for kind, _ in tlvs if kind in _ONCE]
    if len(kinds) > len(set(kinds)):
        return "PROXY v2: a TLV of a known type is given once"
    for kind, value in tlvs:
        if kind == UNIQUE_ID and len(value) > _LONGEST_UNIQUE_ID:
            return f"PROXY v2: UNIQUE_ID has at most {_LONGEST_UNIQUE_ID} bytes"
        if kind == CRC32C and len(value) != 4:
            return "PROXY v2: CRC32C has 4 bytes"
        if kind == AUTHORITY and not _is_utf8(value):
            return "PROXY v2: AUTHORITY is UTF-8"
        if kind == SSL and not _is_ssl(value):
            return "PROXY v2: SSL has 5 bytes, and TLVs whose lengths add up"
    return ""


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_ssl(value: bytes) -> bool:
    try:
        list(_spans(value, 5))
    except Malformed:
        return False
    return len(value) >= 5


def _crc32c_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C_TABLE = tuple(map(_crc32c_of, range(256)))


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960 appendix B: polynomial 0x1EDC6F41, reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def v1(source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """The line of version 1 for a connection: UNKNOWN where it has no two IP addresses.

    Where one address is of IPv4 and the other of IPv6, both are written as IPv6.

    :raises ValueError: an end that is none.
    """
    hosts, ports = _packed(source, destination)
    if not ports or len(hosts[0]) == 108:
        return b"PROXY UNKNOWN\r\n"
    texts = [_text(host) for host in hosts]
    kind = 4 if len(hosts[0]) == 4 else 6
    return f"PROXY TCP{kind} {texts[0]} {texts[1]} {ports[0]} {ports[1]}\r\n".encode("ascii")


def v2(
    source: Endpoint | None,
    destination: Endpoint | None,
    tlvs: Sequence[tuple[int, bytes]] = (),
    crc: bool = False,
    local: bool = False,
) -> bytes:
    """The block of version 2 for a connection (STREAM): LOCAL where its ends cannot be said.

    AF_UNSPEC would say that it is relayed, but receivers may refuse it, and HAProxy does. Where one
    address is of IPv4 and the other of IPv6, both are written as IPv6.

    :param tlvs: such as ``Header.tlvs``.
    :param crc: add a CRC32C.
    :param local: LOCAL whatever the ends: the connection is the sender's own.
    :raises ValueError: an end that is none, TLVs that break a rule, or more than 65535 bytes.
    """
    hosts, ports = _packed(None if local else source, destination)
    kind = _FAMILY[len(hosts[0])] << 4 | 1 if hosts else 0
    parts = [*hosts]
    if hosts and len(hosts[0]) < 108:
        parts.append(struct.pack("!HH", *ports))
    parts.extend(_written(tlvs))
    if crc:
        parts.append(struct.pack("!BHL", CRC32C, 4, 0))
    body = b"".join(parts)
    if len(body) > 0xFFFF:
        raise ValueError(f"a header holds 65535 bytes, not {len(body)}")
    command = 0x21 if hosts else 0x20
    block = struct.pack("!12sBBH", _SIGNATURE, command, kind, len(body)) + body
    return block[:-4] + crc32c(block).to_bytes(4, "big") if crc else block


def _written(tlvs: Sequence[tuple[int, bytes]]) -> list[bytes]:
    fault = _fault(tlvs)
    if fault:
        raise ValueError(fault)
    parts = []
    for kind, value in tlvs:
        if kind == CRC32C or len(value) > 0xFFFF or not 0 <= kind <= 255:
            raise ValueError(f"no TLV to send: type {kind}, {len(value)} bytes")
        parts.append(struct.pack("!BH", kind, len(value)) + value)
    return parts


def _packed(source: Endpoint | None, destination: Endpoint | None) -> tuple[list[bytes], list[int]]:
    """Both hosts, as many bytes each, and ports; none where they cannot be said together."""
    if source is None or destination is None:
        return [], []
    hosts = [_host_bytes(end) for end in (source, destination)]
    sizes = {len(host) for host in hosts}
    if sizes == {4, 16}:
        hosts = [host if len(host) == 16 else _MAPPED + host for host in hosts]
    elif len(sizes) > 1:
        return [], []
    return hosts, [source.port, destination.port]


def _host_bytes(end: Endpoint) -> bytes:
    """4 or 16 bytes of an IP address, or 108 with a unix path."""
    host = end.host
    if host[:1] in ("", "/"):
        path = os.fsencode(host)
        if len(path) > 108 or b"\0" in path or end.port:
            raise ValueError(f"expected a path of at most 108 bytes, and port 0, not {end}")
        return path.ljust(108, b"\0")
    if not 0 <= end.port <= 65535:
        raise ValueError(f"expected a port from 0 to 65535, not {end}")
    return ip_address(host).packed
