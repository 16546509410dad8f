"""Hellos with Hypothesis: made from what is in them, mutations of them, and any splits."""

from __future__ import annotations

import contextlib
import ssl
from ipaddress import ip_address
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.clienthello import NEED_MORE, Hello, Malformed, Matched, NotThisProtocol
from tests.wire.hellos import (
    BROWSER,
    alpn,
    entry,
    extension,
    hello,
    outcome,
    recorded,
    records,
    sni,
    uint16,
    versions,
)

LETTERS = "abcxyzABCXYZ0189_-"

labels = st.text(LETTERS, min_size=1, max_size=12)
# The last one is no number, which no name ends with.
names = st.builds(
    lambda before, last, dot: ".".join((*before, "x" + last)) + dot,
    st.lists(labels, max_size=4),
    labels,
    st.sampled_from(("", ".")),
)
protocols = st.lists(st.binary(min_size=3, max_size=20), min_size=1, max_size=5)
offers = st.lists(st.integers(0x0300, 0x0309), min_size=1, max_size=9)
#: Types that mean nothing here, each once.
others = st.lists(
    st.tuples(st.integers(100, 0xFD00), st.binary(max_size=40)),
    max_size=6,
    unique_by=lambda other: other[0],
).map(lambda found: [extension(*other) for other in found])
samples = st.sampled_from(
    (
        BROWSER,
        hello(),
        hello(sni(b"a.example"), alpn(b"h2", b"http/1.1"), versions(0x0304), session=bytes(32)),
        *recorded().values(),
    )
)


@st.composite
def split(draw, data):
    """The data, cut at any places."""
    places = draw(st.lists(st.integers(0, len(data)), max_size=6))
    places = [0, *sorted(places), len(data)]
    return [data[start:stop] for start, stop in pairwise(places)]


@st.composite
def mutated(draw, data):
    """The data with a few bytes changed, left out, put in or doubled, most of them early ones."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.one_of(st.integers(0, min(100, len(data))), st.integers(0, len(data))))
        stop = min(len(data), at + draw(st.integers(0, 3)))
        other = draw(st.one_of(st.binary(max_size=3), st.just(data[at:stop] * 2)))
        data = data[:at] + other + data[stop:]
    return data


@st.composite
def changed(draw, data):
    """The data with a few bytes changed, and none of them in the headers."""
    changing = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(9, len(data) - 1))
        changing[at] = draw(st.one_of(st.integers(0, 255), st.just((changing[at] + 1) & 255)))
    return bytes(changing)


def as_a_host(name):
    """A name as we would give it; None: it is an address."""
    name = name.lower().removesuffix(".")
    try:
        ip_address(name)
    except ValueError:
        return name
    return None


class RandomTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.data(), names, protocols, offers, others, others, st.integers(1, 600))
    def test_valid(self, data, name, offered, numbers, before, behind, size):
        """All that is in it comes out of it, in whatever records and pieces."""
        found = {one[:2]: one for one in (*before, *behind)}
        whole = hello(
            *(one for one in found.values() if one in before),
            sni(name.encode()),
            alpn(*offered),
            versions(*numbers),
            *(one for one in found.values() if one not in before),
        )
        expected = Hello(
            name.lower().removesuffix("."),
            tuple(one.decode("latin-1") for one in offered),
            tuple(numbers),
            False,
        )
        pieces = data.draw(split(records(whole[5:], size)))
        self.assertEqual(outcome(pieces), Matched(expected))

    @settings(deadline=None)
    @given(st.data(), samples.flatmap(mutated), st.integers(1, 2000))
    def test_splits(self, data, sent, size):
        """Whatever it is, there is an answer, and the same one however it comes."""
        for whole in (sent, records(sent[5:], size)):
            answer = outcome([whole])
            if answer is not NEED_MORE:
                self.assertIsInstance(answer, Matched | NotThisProtocol | Malformed)
            self.assertEqual(outcome(data.draw(split(whole))), answer)
            self.assertEqual(outcome(bytes((byte,)) for byte in whole), answer, "byte by byte")

    @settings(deadline=None)
    @given(st.one_of(st.binary(max_size=80), st.binary().map(b"\x16\x03\x01".__add__)))
    def test_garbage(self, data):
        """Nothing is raised, and nothing of it is a hello."""
        self.assertNotIsInstance(outcome([data]), Matched)


class AgainstOpenSslTests(SynchronousTestCase):
    """A server takes no other name out of a hello than we do, and none where we see none."""

    def test_lists_of_names(self):
        """What we refuse because of what a server might make of it is refused by this one, too."""
        for names in (entry(b"a") + entry(b"b"), entry(b"a") + entry(b"b", 1), entry(b"a", 1)):
            with self.subTest(names=names):
                data = hello(extension(0, uint16(names)), versions(0x0304))
                self.assertIsInstance(outcome([data]), Malformed)
                self.assertEqual(self.name_for_a_server(data), [])

    def name_for_a_server(self, data):
        """What OpenSSL asks its caller about: a list of one name, or nothing if it never asks."""
        asked = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = lambda connection, name, _: asked.append(name)
        incoming = ssl.MemoryBIO()
        incoming.write(data)
        with contextlib.suppress(ssl.SSLError):
            context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
        return asked

    def agrees(self, data):
        answer = outcome([data])
        # What is refused gets to no server.
        asked = self.name_for_a_server(data) if isinstance(answer, Matched) else []
        if asked:
            self.assertEqual(answer.hello.server_name, asked[0] and as_a_host(asked[0]))
        return asked

    def test_it_asks(self):
        self.assertEqual(self.agrees(BROWSER), ["www.example"])
        self.assertEqual(self.agrees(hello(versions(0x0304))), [None])

    @settings(deadline=None)
    @given(samples.flatmap(changed), st.sampled_from((16384, 400, 60)))
    def test_changed(self, data, size):
        self.agrees(records(data[5:], size))
