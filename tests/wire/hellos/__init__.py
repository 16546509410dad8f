"""Hellos for tests: those that are built here, byte for byte, and those that programs have sent.

The ``.bin`` files are what a listening socket got from a program before it answered anything; the
name of each says which program, and what it was asked for.
"""

from __future__ import annotations

from pathlib import Path

from proxykit.testing import split_everywhere
from proxykit.wire.clienthello import MOST_BYTES, NEED_MORE, HelloReader

RANDOM = bytes(range(100, 132))
CIPHERS = b"\x13\x01\x13\x02\xc0\x2f"


def uint8(data):
    return len(data).to_bytes(1, "big") + data


def uint16(data):
    return len(data).to_bytes(2, "big") + data


def uint24(data):
    return len(data).to_bytes(3, "big") + data


def extension(kind, data=b""):
    return kind.to_bytes(2, "big") + uint16(data)


def entry(name, kind=0):
    """One name of a server_name extension."""
    return bytes((kind,)) + uint16(name)


def sni(*names):
    return extension(0, uint16(b"".join(map(entry, names))))


def alpn(*protocols):
    return extension(16, uint16(b"".join(map(uint8, protocols))))


def versions(*offered):
    return extension(43, uint8(b"".join(one.to_bytes(2, "big") for one in offered)))


def body(
    *extensions,
    version=b"\x03\x03",
    session=b"",
    ciphers=CIPHERS,
    methods=b"\x00",
):
    """A hello without its header. Without extensions, it has not even their length."""
    start = version + RANDOM + uint8(session) + uint16(ciphers) + uint8(methods)
    return start + (uint16(b"".join(extensions)) if extensions else b"")


def message(data, kind=1):
    return bytes((kind,)) + uint24(data)


def records(data, size=16384, kind=22, version=b"\x03\x01"):
    """The data in records of a size, the last one perhaps shorter."""
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(bytes((kind,)) + version + uint16(piece) for piece in pieces)


def hello(*extensions, **parts):
    """A whole hello in one record."""
    return records(message(body(*extensions, **parts)))


#: With the extensions that a browser sends, in their order, GREASE among them.
BROWSER = hello(
    extension(0x2A2A),
    sni(b"www.example"),
    extension(23),
    extension(0xFF01, b"\x00"),
    extension(10, uint16(b"\x4a\x4a\x11\xec\x00\x1d\x00\x17")),
    alpn(b"h2", b"http/1.1"),
    extension(5, b"\x01\x00\x00\x00\x00"),
    extension(51, uint16(b"\x4a\x4a\x00\x01\x00\x11\xec" + uint16(bytes(1216)))),
    versions(0x7A7A, 0x0304, 0x0303),
    extension(0xFE0D, bytes(186)),
    extension(0x5A5A, b"\x00"),
    session=RANDOM,
)


def recorded():
    """What programs have sent, by the names of the files."""
    files = sorted(Path(__file__).parent.glob("*.bin"))
    return {file.stem: file.read_bytes() for file in files}


def outcome(pieces, limit=MOST_BYTES):
    """The answer to these reads, the first that is not ``NEED_MORE``; nothing of them gets lost."""
    reader = HelloReader(limit)
    fed = b""
    for piece in pieces:
        fed += piece
        answer = reader.feed(piece)
        if reader.received != fed:
            raise AssertionError(f"{reader.received!r} is held of {fed!r}")
        if answer is not NEED_MORE:
            return answer
    return NEED_MORE


def outcome_of_all(test, data):
    """The answer to the bytes in one piece; the test fails if it is another one when split."""
    whole = outcome([data])
    for pieces in split_everywhere(data):
        if outcome(pieces) != whole:
            test.assertEqual(outcome(pieces), whole, (pieces[0], "split"))
    return whole
