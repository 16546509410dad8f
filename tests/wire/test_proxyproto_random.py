"""PROXY headers with Hypothesis: round trips, mutations, and any splits."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.proxyproto import Endpoint, Header, HeaderReader, v1, v2
from tests.wire.test_proxyproto import INET, block, outcome, tlv, with_crc

ports = st.integers(0, 65535)
ipv4 = st.builds(Endpoint, st.ip_addresses(v=4).map(str), ports)
ipv6 = st.builds(
    Endpoint,
    st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None).map(str),
    ports,
)
paths = st.binary(max_size=107).map(lambda path: b"/" + path.replace(b"\0", b"/"))
unix = st.builds(
    Endpoint, paths.map(lambda path: path.decode("utf-8", "surrogateescape")), st.just(0)
)
ip_ends = st.one_of(st.tuples(ipv4, ipv4), st.tuples(ipv6, ipv6))
ends = st.one_of(ip_ends, st.tuples(unix, unix))
#: Types of no meaning, and of those that have one.
anything = st.tuples(st.integers(0xE0, 0xFF), st.binary(max_size=40))
tlvs = st.tuples(
    st.lists(anything, max_size=3),
    st.lists(st.tuples(st.just(2), st.text(max_size=12).map(str.encode)), max_size=1),
    st.lists(st.tuples(st.just(5), st.binary(max_size=128)), max_size=1),
).map(lambda parts: tuple(parts[0] + parts[1] + parts[2]))

samples = st.sampled_from(
    (
        b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 443\r\nbehind",
        b"PROXY TCP6 2001:db8::7 ::ffff:1.2.3.4 0 65535\r\nbehind",
        b"PROXY UNKNOWN a b\r\nbehind",
        block() + b"behind",
        block(0x20, 0, b"") + b"behind",
        block(body=INET + tlv(2, b"a") + tlv(4, b"bc") + tlv(0x20, bytes(5) + tlv(0x21, b"x"))),
        with_crc(tlv(5, b"id")) + b"behind",
    )
)
ODD = b"\r\n\x00 0:.fgPTU\x20\x21\x11\x01\x02\x03\x05\xff"


@st.composite
def split(draw, data):
    """The data, cut at any places."""
    places = draw(st.lists(st.integers(0, len(data)), max_size=6))
    places = [0, *sorted(places), len(data)]
    return [data[start:stop] for start, stop in pairwise(places) if stop > start]


@st.composite
def mutated(draw, data):
    """The data with a few bytes changed, left out, put in or doubled."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        stop = min(len(data), at + draw(st.integers(0, 3)))
        odd = st.lists(st.sampled_from(ODD), max_size=3).map(bytes)
        data = data[:at] + draw(st.one_of(odd, st.just(data[at:stop] * 2))) + data[stop:]
    return data


class RoundTripTests(SynchronousTestCase):
    """What is written is what is read, whatever is behind it."""

    def assert_read(self, data, pieces, behind, expected):
        self.assertEqual(outcome(pieces), (expected, len(data), behind))

    @settings(deadline=None)
    @given(st.data(), ip_ends, st.binary(max_size=9))
    def test_version_1(self, data, pair, behind):
        line = v1(*pair)
        self.assertLessEqual(len(line), 107)
        pieces = data.draw(split(line + behind))
        self.assert_read(line, pieces, behind, Header(1, False, *pair))

    @settings(deadline=None)
    @given(st.data(), ends, tlvs, st.booleans(), st.binary(max_size=9))
    def test_version_2(self, data, pair, tlvs, crc, behind):
        made = v2(*pair, tlvs, crc)
        pieces = data.draw(split(made + behind))
        self.assert_read(made, pieces, behind, Header(2, False, *pair, tlvs))

    @settings(deadline=None)
    @given(ends, tlvs, st.booleans())
    def test_sent_on(self, pair, tlvs, crc):
        """What was read can be written, as either version."""
        header = HeaderReader().feed(v2(*pair, tlvs, crc))
        self.assertEqual(v2(header.source, header.destination, header.tlvs, crc),
                         v2(*pair, tlvs, crc))  # fmt: skip
        self.assertEqual(v1(header.source, header.destination), v1(*pair))


class MutationTests(SynchronousTestCase):
    """Whatever it is, the same comes of it."""

    @settings(deadline=None, max_examples=400)
    @given(st.data(), samples.flatmap(mutated))
    def test_splits(self, data, message):
        whole = outcome([message])
        self.assertEqual(outcome(data.draw(split(message))), whole)
        self.assertEqual(outcome([bytes([byte]) for byte in message]), whole, "byte by byte")

    @settings(deadline=None, max_examples=400)
    @given(samples.flatmap(mutated))
    def test_accepted(self, message):
        """What is accepted with addresses is written anew to something that means the same."""
        result = outcome([message])
        if not isinstance(result, tuple):
            return
        header, size, rest = result
        self.assertEqual(message[size:], rest)
        self.assertEqual(header.local, header.source is None)
        self.assertEqual(header.local, header.destination is None)
        if header.version == 1:
            self.assertRegex(message[:size], rb"\APROXY (TCP[46] [0-9A-Fa-f:. ]+|UNKNOWN.*)\r\n\Z")
            again = v1(header.source, header.destination)
        elif header.local:
            self.assertTrue(message[12] == 0x20 or message[13] in (0, 1, 2, 0x10, 0x20, 0x30))
            return
        else:
            again = v2(header.source, header.destination, header.tlvs)
            if header.datagram:
                again = again[:13] + bytes([again[13] + 1]) + again[14:]
        self.assertEqual(HeaderReader().feed(again), header)

    @settings(deadline=None)
    @given(st.data(), ends, tlvs)
    def test_one_byte_of_a_checked_block(self, data, pair, tlvs):
        """A checksum lets no change of an address through, nor one of its own."""
        made = bytearray(v2(*pair, tlvs, crc=True))
        last = len(v2(*pair)) - 1
        at = data.draw(st.one_of(st.integers(16, last), st.integers(-4, -1)))
        made[at] ^= data.draw(st.integers(1, 255))
        self.assertEqual(outcome([bytes(made)]), "PROXY v2: CRC32C is the checksum of the header")
