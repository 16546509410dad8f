"""PROXY headers, written: byte for byte, as Twisted's parsers read them, and what is refused."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.proxyproto import Endpoint, Header, HeaderReader, crc32c, v1, v2
from tests.wire.test_proxyproto import DESTINATION, INET, INET6, SOURCE, block, tlv

SIX = (Endpoint("2001:db8::7", 65535), Endpoint("::1", 0))
UNIX = (Endpoint("", 0), Endpoint("/run/a.sock", 0))


class LineTests(SynchronousTestCase):
    """Version 1."""

    def test_written(self):
        for source, destination, line in (
            (SOURCE, DESTINATION, b"TCP4 192.0.2.7 198.51.100.9 56324 443"),
            (*SIX, b"TCP6 2001:db8::7 ::1 65535 0"),
            (Endpoint("fe80::1%eth0", 1), Endpoint("FE80::2", 2), b"TCP6 fe80::1 fe80::2 1 2"),
            (SOURCE, SIX[1], b"TCP6 ::ffff:192.0.2.7 ::1 56324 0"),
            (SIX[1], SOURCE, b"TCP6 ::1 ::ffff:192.0.2.7 0 56324"),
            (*UNIX, b"UNKNOWN"),
            (SOURCE, UNIX[1], b"UNKNOWN"),
            (None, DESTINATION, b"UNKNOWN"),
            (SOURCE, None, b"UNKNOWN"),
        ):
            self.assertEqual(v1(source, destination), b"PROXY %b\r\n" % line)

    def test_as_twisted_reads_it(self):
        info, rest = V1Parser().feed(v1(SOURCE, DESTINATION) + b"rest")
        self.assertEqual((info.source, rest), (IPv4Address("TCP", "192.0.2.7", 56324), b"rest"))
        self.assertEqual(info.destination, IPv4Address("TCP", "198.51.100.9", 443))
        info, _ = V1Parser().feed(v1(*SIX))
        self.assertEqual(info.source, IPv6Address("TCP", "2001:db8::7", 65535))


class BlockTests(SynchronousTestCase):
    """Version 2."""

    def test_written(self):
        unix = bytes(108) + b"/run/a.sock".ljust(108, b"\0")
        mapped = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 7))
        for source, destination, expected in (
            (SOURCE, DESTINATION, block()),
            (*SIX, block(kind=0x21, body=INET6)),
            (*UNIX, block(kind=0x31, body=unix)),
            (SOURCE, SIX[1], block(kind=0x21, body=mapped + INET6[16:32] + b"\xdc\x04\0\0")),
            (SOURCE, UNIX[1], block(0x20, 0, b"")),
            (None, None, block(0x20, 0, b"")),
            (SOURCE, None, block(0x20, 0, b"")),
        ):
            self.assertEqual(v2(source, destination), expected)

    def test_local(self):
        self.assertEqual(v2(None, None, local=True), block(0x20, 0, b""))
        self.assertEqual(v2(SOURCE, DESTINATION, local=True), block(0x20, 0, b""))

    def test_tlvs(self):
        tlvs = ((2, b"a.example"), (5, bytes(128)), (0xE0, b""))
        body = tlv(2, b"a.example") + tlv(5, bytes(128)) + tlv(0xE0, b"")
        self.assertEqual(v2(SOURCE, DESTINATION, tlvs), block(body=INET + body))
        self.assertEqual(v2(None, None, tlvs), block(0x20, 0, body))
        self.assertEqual(v2(SOURCE, DESTINATION, local=True, tlvs=tlvs), block(0x20, 0, body))

    def test_checksum(self):
        for ends in ((SOURCE, DESTINATION), (None, None)):
            data = v2(*ends, ((2, b"a"),), crc=True)
            self.assertEqual(data[-7:-4], b"\x03\x00\x04")
            self.assertEqual(data[-4:], crc32c(data[:-4] + bytes(4)).to_bytes(4, "big"))
            self.assertEqual(data[:14], v2(*ends)[:14])
        header = HeaderReader().feed(v2(SOURCE, DESTINATION, ((2, b"a"),), crc=True))
        self.assertEqual(header, Header(2, False, SOURCE, DESTINATION, ((2, b"a"),)))

    def test_as_twisted_reads_it(self):
        for ends, source, destination in (
            (
                (SOURCE, DESTINATION),
                IPv4Address("TCP", "192.0.2.7", 56324),
                IPv4Address("TCP", "198.51.100.9", 443),
            ),
            (
                SIX,
                IPv6Address("TCP", "2001:db8:0:0:0:0:0:7", 65535),
                IPv6Address("TCP", "0:0:0:0:0:0:0:1", 0),
            ),
            (UNIX, UNIXAddress(b""), UNIXAddress(b"/run/a.sock")),
            ((None, None), None, None),
        ):
            for tlvs in ((), ((2, b"a.example"),)):
                info, rest = V2Parser().feed(v2(*ends, tlvs, crc=bool(tlvs)) + b"rest")
                self.assertEqual(
                    (info.source, info.destination, rest), (source, destination, b"rest")
                )


class RefusedTests(SynchronousTestCase):
    """What is no end of a connection, and no TLV."""

    def test_ends(self):
        for end in (
            Endpoint("a.example", 80),
            Endpoint("192.0.2.256", 80),
            Endpoint("192.0.2.7", -1),
            Endpoint("192.0.2.7", 65536),
            Endpoint("run/a.sock", 0),
            Endpoint("/" + "x" * 108, 0),
            Endpoint("/a\0b", 0),
            Endpoint("/a", 1),
            Endpoint("", 1),
        ):
            for write in (v1, v2):
                self.assertRaises(ValueError, write, end, DESTINATION)
                self.assertRaises(ValueError, write, SOURCE, end)

    def test_the_longest_path(self):
        longest = Endpoint("/" + "x" * 107, 0)
        header = HeaderReader().feed(v2(longest, longest))
        self.assertEqual(header.source, longest)

    def test_tlvs(self):
        for tlvs in (
            [(3, bytes(4))],
            [(3, bytes(3))],
            [(5, bytes(129))],
            [(2, b"\xff")],
            [(0x20, b"")],
            [(2, b"a"), (2, b"b")],
            [(256, b"")],
            [(-1, b"")],
            [(0xE0, bytes(65536))],
            [(0xE0, bytes(40000)), (0xE1, bytes(25535))],
        ):
            self.assertRaises(ValueError, v2, SOURCE, DESTINATION, tlvs)

    def test_the_largest(self):
        data = v2(SOURCE, DESTINATION, [(0xE0, bytes(65535 - 12 - 3))])
        self.assertEqual(len(data), 16 + 65535)
        self.assertEqual(HeaderReader(len(data)).feed(data).source, SOURCE)
