"""PROXY headers, read: tables of good and bad ones, each split at every byte."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.testing import split_everywhere
from proxykit.wire import proxyproto
from proxykit.wire.proxyproto import Endpoint, Header, HeaderReader, Malformed, crc32c

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
SOURCE = Endpoint("192.0.2.7", 56324)
DESTINATION = Endpoint("198.51.100.9", 443)
#: The same two, in the block of version 2.
INET = bytes((192, 0, 2, 7, 198, 51, 100, 9)) + b"\xdc\x04\x01\xbb"
INET6 = bytes.fromhex("20010db8000000000000000000000007" + "0" * 31 + "1") + b"\xff\xff\x00\x00"


def outcome(pieces, *limit):
    """What comes of these reads: a header, its size and what is behind it; a rule; or None."""
    reader = HeaderReader(*limit)
    pieces = list(pieces)
    for number, piece in enumerate(pieces, 1):
        before = reader.need
        try:
            header = reader.feed(piece)
        except Malformed as malformed:
            return malformed.rule
        if header is not None:
            if reader.need or len(piece) < before:
                return f"{before} were needed, {len(piece)} came"
            return header, reader.size, reader.rest + b"".join(pieces[number:])
        if reader.need < max(before - len(piece), 1):
            return f"{before} were needed, {len(piece)} came, {reader.need} are"
    return None


def block(command=0x21, kind=0x11, body=INET, length=None):
    """A header of version 2."""
    length = len(body) if length is None else length
    return SIGNATURE + bytes((command, kind)) + length.to_bytes(2, "big") + body


def tlv(kind, value, length=None):
    """A TLV."""
    length = len(value) if length is None else length
    return bytes((kind,)) + length.to_bytes(2, "big") + value


def with_crc(*before, behind=b"", wrong=0):
    """A header with a checksum among its TLVs."""
    front = INET + b"".join(before)
    empty = block(body=front + tlv(3, bytes(4)) + behind)
    value = (crc32c(empty) ^ wrong).to_bytes(4, "big")
    return block(body=front + tlv(3, value) + behind)


class ReaderCase(SynchronousTestCase):
    """What the tests have in common."""

    def outcome(self, data, *limit):
        """What comes of the bytes, however they are split."""
        whole = outcome([data], *limit)
        for pieces in split_everywhere(data):
            self.assertEqual(outcome(pieces, *limit), whole, (pieces[0], "split"))
        return whole

    def assert_header(self, data, expected):
        self.assertEqual(self.outcome(data), (expected, len(data), b""))
        behind = b"PROXY \r\n\r\n\x00"
        self.assertEqual(self.outcome(data + behind), (expected, len(data), behind))
        for size in range(len(data)):
            self.assertIsNone(outcome([data[:size]]), "a part of it")

    def assert_malformed(self, data, rule, at=None):
        """Refused at its last byte, or at that one, and not before."""
        at = len(data) - 1 if at is None else at
        self.assertEqual(self.outcome(data), rule)
        self.assertEqual(self.outcome(data + b"0" * 20), rule)
        self.assertEqual(outcome([data + b"0" * 3000]), rule)
        self.assertEqual(outcome([data[: at + 1]]), rule, "not refused in time")
        self.assertIsNone(outcome([data[:at]]), "refused too early")


class LineTests(ReaderCase):
    """Version 1."""

    def test_good(self):
        for line, source, destination in (
            (b"TCP4 192.0.2.7 198.51.100.9 56324 443", SOURCE, DESTINATION),
            (b"TCP4 0.0.0.0 255.255.255.255 0 65535",
             Endpoint("0.0.0.0", 0), Endpoint("255.255.255.255", 65535)),
            (b"TCP6 :: ::1 0 1", Endpoint("::", 0), Endpoint("::1", 1)),
            (b"TCP6 2001:DB8:0:0:0:0:0:7 2001:0db8::a 9 10",
             Endpoint("2001:db8::7", 9), Endpoint("2001:db8::a", 10)),
            (b"TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535",
             Endpoint("ffff:" * 7 + "ffff", 65535), Endpoint("ffff:" * 7 + "ffff", 65535)),
            (b"TCP6 ::ffff:192.0.2.7 ::ffff:c633:6409 9 10",
             Endpoint("::ffff:192.0.2.7", 9), Endpoint("::ffff:198.51.100.9", 10)),
        ):  # fmt: skip
            self.assert_header(
                b"PROXY %b\r\n" % line, Header(1, False, source, destination, (), False)
            )

    def test_unknown(self):
        for line in (
            b"UNKNOWN",
            b"UNKNOWN ",
            b"UNKNOWN \xff\x00 PROXY TCP4",
            b"UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535",
        ):
            self.assert_header(b"PROXY %b\r\n" % line, Header(1, True))

    def test_refused_at_the_byte(self):
        start = "PROXY: a connection starts with a header of version 1 or 2"
        protocol = "PROXY v1: the protocol is TCP4, TCP6 or UNKNOWN"
        bare = "PROXY v1: no CR or LF but in the CRLF at the end"
        for line, rule in (
            (b"p", start),
            (b"\x16", start),
            (b"G", start),
            (b"PU", start),
            (b"PROXY\t", start),
            (b"PROXY\r", start),
            (b"PROXY  ", protocol),
            (b"PROXY t", protocol),
            (b"PROXY TCP5", protocol),
            (b"PROXY TCP4\r", protocol),
            (b"PROXY TCP46", protocol),
            (b"PROXY UNKNOWN\n", protocol),
            (b"PROXY UNKNOWNS", protocol),
            (b"PROXY UNKNOWN\r\r", bare),
            (b"PROXY UNKNOWN a\n", bare),
            (b"PROXY UNKNOWN a\rb", bare),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", bare),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r ", bare),
            (b"PROXY TCP4 1.2.3.4\t", "PROXY v1: addresses and ports are digits, colons and dots"),
            (b"PROXY TCP6 fe80::1%", "PROXY v1: addresses and ports are digits, colons and dots"),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 +",
             "PROXY v1: addresses and ports are digits, colons and dots"),
        ):  # fmt: skip
            self.assert_malformed(line, rule)

    def test_refused_at_its_end(self):
        words = "PROXY v1: after TCP4 or TCP6 come two addresses and two ports"
        ipv4 = "PROXY v1: an address after TCP4 is one of IPv4"
        ipv6 = "PROXY v1: an address after TCP6 is one of IPv6"
        port = "PROXY v1: a port is 0 to 65535, without leading zeros"
        for line, rule in (
            (b"TCP4 ", words),
            (b"TCP4 1.2.3.4 1.2.3.4 1", words),
            (b"TCP4 1.2.3.4 1.2.3.4 1 2 ", words),
            (b"TCP4 1.2.3.4 1.2.3.4 1 2 3", words),
            (b"TCP4 1.2.3.4  1.2.3.4 1 2 3", words),
            (b"TCP4  1.2.3.4 1.2.3.4 1", ipv4),
            (b"TCP4 1.2.3.4  1 2", ipv4),
            (b"TCP4 1.2.3 1.2.3.4 1 2", ipv4),
            (b"TCP4 1.2.3.256 1.2.3.4 1 2", ipv4),
            (b"TCP4 1.2.3.4 01.2.3.4 1 2", ipv4),
            (b"TCP4 1.2.3.4 1.2.3.4. 1 2", ipv4),
            (b"TCP4 16909060 1.2.3.4 1 2", ipv4),
            (b"TCP4 ::1 ::1 1 2", ipv4),
            (b"TCP6 1.2.3.4 1.2.3.4 1 2", ipv6),
            (b"TCP6 ::1 :: 1 :", port),
            (b"TCP6 1::2::3 ::1 1 2", ipv6),
            (b"TCP6 1:2:3:4:5:6:7:8:9 ::1 1 2", ipv6),
            (b"TCP6 1:2:3:4:5:6:7 ::1 1 2", ipv6),
            (b"TCP6 ::12345 ::1 1 2", ipv6),
            (b"TCP6 ::1 ::ffff:1.2.3.04 1 2", ipv6),
            (b"TCP4 1.2.3.4 1.2.3.4 65536 2", port),
            (b"TCP4 1.2.3.4 1.2.3.4 1 100000", port),
            (b"TCP4 1.2.3.4 1.2.3.4 01 2", port),
            (b"TCP4 1.2.3.4 1.2.3.4 1 00", port),
            (b"TCP4 1.2.3.4 1.2.3.4 1 ", port),
            (b"TCP4 1.2.3.4 1.2.3.4 1 a", port),
        ):
            self.assert_malformed(b"PROXY %b\r\n" % line, rule)

    def test_too_long(self):
        """At the last byte but one: it has to be a CR."""
        rule = "PROXY v1: a line has at most 107 bytes"
        self.assert_malformed(b"PROXY UNKNOWN ".ljust(106, b"x"), rule)
        self.assert_malformed(b"PROXY TCP4 ".ljust(106, b"1"), rule)
        self.assertEqual(
            self.outcome(b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\nbehind"),
            (Header(1, True), 107, b"behind"),
        )


class BlockTests(ReaderCase):
    """Version 2: how it starts, and its addresses."""

    def test_good(self):
        inet6 = (Endpoint("2001:db8::7", 65535), Endpoint("::1", 0))
        for kind, body, source, destination in (
            (0x11, INET, SOURCE, DESTINATION),
            (0x12, INET, SOURCE, DESTINATION),
            (0x21, INET6, *inet6),
            (0x22, INET6, *inet6),
            (0x21, bytes(10) + b"\xff\xff\x01\x02\x03\x04" + INET6[16:],
             Endpoint("::ffff:1.2.3.4", 65535), Endpoint("::1", 0)),
        ):  # fmt: skip
            self.assert_header(
                block(kind=kind, body=body),
                Header(2, False, source, destination, (), kind & 15 == 2),
            )

    def test_unix(self):
        """A path ends at its NUL; what is no absolute path has no meaning here."""
        for path, host in (
            (b"/run/a.sock", "/run/a.sock"),
            (b"/" + b"x" * 107, "/" + "x" * 107),
            (b"/run/a\0left over", "/run/a"),
            (b"/\xff\xc3\xa4", "/\udcff\xe4"),
            (b"", ""),
            (b"\0abstract", ""),
            (b"192.0.2.7", ""),
        ):
            for kind in (0x31, 0x32):
                body = path.ljust(108, b"\0") + b"/b".ljust(108, b"\0")
                expected = Header(
                    2, False, Endpoint(host, 0), Endpoint("/b", 0), datagram=kind == 0x32
                )
                self.assert_header(block(kind=kind, body=body), expected)

    def test_local(self):
        """Whatever else it says is skipped: the family, addresses, TLVs that do not add up."""
        for kind, body in ((0, b""), (0x11, INET), (0xFF, b""), (0x11, b"\x04\xff")):
            self.assert_header(block(0x20, kind, body), Header(2, True))

    def test_unspecified(self):
        """Addresses are skipped where a half of what they are is not known; TLVs are read."""
        for kind, body in ((0, b""), (1, b""), (2, b""), (0x10, INET), (0x20, INET6)):
            self.assert_header(block(kind=kind, body=body), Header(2, True))
            self.assert_header(
                block(kind=kind, body=body + tlv(2, b"a")), Header(2, True, tlvs=((2, b"a"),))
            )

    def test_refused_at_the_byte(self):
        version = "PROXY v2: the version is 2"
        command = "PROXY v2: the command is LOCAL or PROXY"
        family = "PROXY v2: the family is UNSPEC, INET, INET6 or UNIX"
        protocol = "PROXY v2: the protocol is UNSPEC, STREAM or DGRAM"
        covers = "PROXY v2: the length covers the addresses"
        for at in range(1, 12):
            self.assert_malformed(
                SIGNATURE[:at] + b"\xfe",
                "PROXY: a connection starts with a header of version 1 or 2",
            )
        for behind, rule in (
            (b"\x11", version),
            (b"\x00", version),
            (b"\x31", version),
            (b"\x22", command),
            (b"\x2f", command),
            (b"\x21\x41", family),
            (b"\x21\xf1", family),
            (b"\x21\x13", protocol),
            (b"\x21\x0f", protocol),
            (b"\x21\x11\x00\x00", covers),
            (b"\x21\x11\x00\x0b", covers),
            (b"\x21\x21\x00\x23", covers),
            (b"\x21\x31\x00\xd7", covers),
            (b"\x21\x10\x00\x0b", covers),
        ):
            self.assert_malformed(SIGNATURE + behind, rule)

    def test_too_long(self):
        rule = "PROXY v2: at most 2048 bytes are read"
        self.assert_malformed(SIGNATURE + b"\x21\x11\x08", rule)
        self.assert_malformed(SIGNATURE + b"\x20\x00\x07\xf1", rule)
        most = block(body=INET + tlv(4, bytes(2048 - 16 - 12 - 3)))
        self.assertEqual(len(most), 2048)
        expected = (Header(2, False, SOURCE, DESTINATION), 2048, b"behind")
        for size in (1, 15, 16, 17, 2047, 2048):
            self.assertEqual(outcome([most[:size], most[size:] + b"behind"]), expected)

    def test_another_limit(self):
        data = block(body=INET + tlv(4, bytes(40)))
        self.assertEqual(self.outcome(data, len(data))[1], len(data))
        self.assertEqual(
            self.outcome(data, len(data) - 1), f"PROXY v2: at most {len(data) - 1} bytes are read"
        )


class TlvTests(ReaderCase):
    """What else a header of version 2 says."""

    def assert_tlvs(self, data, *tlvs):
        expected = Header(2, False, SOURCE, DESTINATION, tlvs)
        self.assert_header(data, expected)
        return expected

    def test_known(self):
        ssl = b"\x01\x00\x00\x00\x00" + tlv(0x21, b"TLSv1.3") + tlv(0x23, b"")
        for kind, value in (
            (proxyproto.ALPN, b"h2"),
            (proxyproto.AUTHORITY, "ä.example".encode()),
            (proxyproto.UNIQUE_ID, bytes(128)),
            (proxyproto.UNIQUE_ID, b""),
            (proxyproto.SSL, ssl),
            (proxyproto.SSL, bytes(5)),
            (proxyproto.NETNS, b"blue"),
            (0x06, b"unknown"),
            (0xE0, b""),
        ):
            self.assert_tlvs(block(body=INET + tlv(kind, value)), (kind, value))

    def test_properties(self):
        body = INET + tlv(0xEE, b"h3") + tlv(1, b"h2") + tlv(2, b"B.example") + tlv(5, b"\x00id")
        header, _, _ = outcome([block(body=body)])
        self.assertEqual(
            (header.alpn, header.authority, header.unique_id), (b"h2", "B.example", b"\x00id")
        )
        header, _, _ = outcome([block()])
        self.assertEqual((header.alpn, header.authority, header.unique_id), (None, None, None))

    def test_noop(self):
        body = INET + tlv(4, b"") + tlv(0xE0, b"a") + tlv(4, b"\x03\x00\xff") + tlv(0xE0, b"b")
        self.assert_tlvs(block(body=body), (0xE0, b"a"), (0xE0, b"b"))

    def test_checksum(self):
        self.assertEqual(crc32c(b"123456789"), 0xE3069283)
        self.assertEqual(crc32c(bytes(32)), 0x8A9136AA)  # RFC 3720 appendix B.4
        self.assertEqual(crc32c(bytes(range(32))), 0x46DD794E)
        rule = "PROXY v2: CRC32C is the checksum of the header"
        self.assert_tlvs(with_crc())
        self.assert_tlvs(with_crc(tlv(2, b"a"), behind=tlv(5, b"b")), (2, b"a"), (5, b"b"))
        for bit in range(32):
            self.assertEqual(outcome([with_crc(wrong=1 << bit)]), rule)
        data = with_crc(behind=tlv(5, b"id"))
        for at in (16, 20, 26, len(data) - 1):
            changed = bytearray(data)
            changed[at] ^= 1
            self.assert_malformed(bytes(changed), rule)

    def test_malformed(self):
        add_up = "PROXY v2: the lengths of TLVs add up"
        ssl = "PROXY v2: SSL has 5 bytes, and TLVs whose lengths add up"
        for body, rule in (
            (b"\x04", add_up),
            (b"\x04\x00", add_up),
            (tlv(4, b"", 1), add_up),
            (tlv(4, b"ab", 3), add_up),
            (tlv(4, b"ab", 1), add_up),
            (tlv(2, b"a") + tlv(0xE0, b"", 0xFFFF), add_up),
            (tlv(5, bytes(129)), "PROXY v2: UNIQUE_ID has at most 128 bytes"),
            (tlv(3, bytes(3)), "PROXY v2: CRC32C has 4 bytes"),
            (tlv(3, bytes(5)), "PROXY v2: CRC32C has 4 bytes"),
            (tlv(3, bytes(4)), "PROXY v2: CRC32C is the checksum of the header"),
            (tlv(2, b"\xff"), "PROXY v2: AUTHORITY is UTF-8"),
            (tlv(0x20, b""), ssl),
            (tlv(0x20, bytes(4)), ssl),
            (tlv(0x20, bytes(6)), ssl),
            (tlv(0x20, bytes(5) + tlv(0x21, b"a", 2)), ssl),
            (tlv(2, b"a") + tlv(2, b"a"), "PROXY v2: a TLV of a known type is given once"),
            (tlv(3, bytes(4)) * 2, "PROXY v2: a TLV of a known type is given once"),
        ):
            self.assert_malformed(block(body=INET + body), rule)
            self.assert_malformed(block(kind=0, body=body), rule)


class FeedTests(ReaderCase):
    """How a reader is used."""

    def test_nothing(self):
        reader = HeaderReader()
        self.assertIsNone(reader.feed(b""))
        self.assertEqual((reader.need, reader.size, reader.rest), (15, 0, b""))

    def test_only_what_is_needed(self):
        """Who takes what is needed takes nothing behind it, and does not take long."""
        for data, reads in (
            (b"PROXY UNKNOWN\r\n", [15]),
            (b"PROXY UNKNOWN 1\r\n", [15, 2]),
            (b"PROXY TCP4 192.0.2.7 198.51.100.9 1 2\r\n", [15, 17, 2, 2, 2, 1]),
            (b"PROXY TCP6 ::1 ::2 1 2\r\n", [15, 7, 2]),
            (block(), [15, 1, 12]),
            (block(0x20, 0, b""), [15, 1]),
            (block(body=INET + tlv(4, bytes(9))), [15, 1, 24]),
        ):
            reader, header, at, taken = HeaderReader(), None, 0, []
            behind = data + b"behind it"
            while header is None:
                taken.append(reader.need)
                header = reader.feed(behind[at : at + reader.need])
                at += taken[-1]
            self.assertEqual((at, reader.size, reader.rest), (len(data), len(data), b""))
            self.assertEqual(taken, reads, data)

    def test_split_right_after_its_name(self):
        reader = HeaderReader()
        self.assertIsNone(reader.feed(b"PROXY"))
        self.assertEqual(
            reader.feed(b" TCP4 192.0.2.7 198.51.100.9 56324 443\r\nGET"),
            Header(1, False, SOURCE, DESTINATION),
        )
        self.assertEqual((reader.size, reader.rest), (45, b"GET"))

    def test_the_error_is_its_rule(self):
        error = self.assertRaises(Malformed, HeaderReader().feed, b"x")
        self.assertEqual(str(error), error.rule)
