"""HTTP/1 with Hypothesis: messages made from the grammar, mutations of them, and any splits."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.http1 import Limits, RequestReader, ResponseReader
from proxykit.wire.http1body import ChunkedBody, Refused, chunk, last_chunk
from tests.wire import request_outcome, response_outcome

TCHAR = b"!#$%&'*+-.^_`|~0189AZaz"
VALUE = bytes(range(0x21, 0x7F)) + b"\x80\xc3\xff"
ODD = b'\r\n\x00\t :;,/"\\\x01\x7f\x80\xff5aH'


def text(alphabet, **sizes):
    return st.lists(st.sampled_from(alphabet), **sizes).map(bytes)


tokens = text(TCHAR, min_size=1, max_size=12)
spaces = st.sampled_from((b"", b" ", b"\t", b" \t "))
values = st.lists(text(VALUE, min_size=1, max_size=8), max_size=4).map(b" ".join)
#: Names that mean nothing to a proxy.
names = tokens.map(lambda token: b"x-" + token)
fields = st.lists(st.tuples(names, spaces, values, spaces), max_size=6)
methods = tokens.filter(lambda token: token != b"CONNECT")
paths = text(bytes(byte for byte in range(0x21, 0x7F) if byte != 0x23), max_size=20)
hosts = st.sampled_from((b"a", b"a.example:80", b"[::1]", b"A.Example."))


def block_of(lines):
    return b"".join(
        name + b":" + before + value + after + b"\r\n" for name, before, value, after in lines
    )


def anew(lines):
    return b"".join(name + b": " + value + b"\r\n" for name, _, value, _ in lines)


@st.composite
def split(draw, data):
    """The data, cut at any places."""
    places = draw(st.lists(st.integers(0, len(data)), max_size=6))
    places = [0, *sorted(places), len(data)]
    return [data[start:stop] for start, stop in pairwise(places)]


@st.composite
def mutated(draw, data):
    """The data with a few bytes changed, left out, put in or doubled."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        stop = min(len(data), at + draw(st.integers(0, 3)))
        other = draw(st.one_of(text(ODD, max_size=3), st.just(data[at:stop] * 2)))
        data = data[:at] + other + data[stop:]
    return data


request_samples = st.sampled_from(
    (
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\nbehind",
        b"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\r\nGET http://a:80/b HTTP/1.1\r\nHost: a\r\nConnection: close, x\r\n\r\n",
        b"OPTIONS * HTTP/1.0\r\nHost: [::1]:80\r\nConnection: keep-alive\r\n\r\n",
    )
)
response_samples = st.sampled_from(
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
        b"HTTP/1.0 404\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    )
)
limits = st.builds(Limits, st.integers(5, 60), st.integers(5, 90), st.integers(0, 4))


class RequestTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.data(), methods, paths, fields, hosts, st.binary(max_size=9))
    def test_valid(self, data, method, path, lines, host, behind):
        """All that is in it comes out of it, and what is passed on is the same written neatly."""
        block = block_of(lines)
        whole = b"%b /%b HTTP/1.1\r\n%bHost: %b\r\n\r\n%b" % (method, path, block, host, behind)
        reader, head = RequestReader(), None
        pieces = data.draw(split(whole))
        while head is None:
            head = reader.feed(pieces.pop(0))
        self.assertEqual((head.method, head.target, head.host), (method, b"/" + path, host))
        self.assertEqual(head.fields.block, block + b"Host: " + host + b"\r\n")
        self.assertEqual(head.fields.kept, anew(lines))
        self.assertEqual(reader.rest + b"".join(pieces), behind)

    @settings(deadline=None)
    @given(st.data(), request_samples.flatmap(mutated), st.one_of(st.just(Limits()), limits))
    def test_splits(self, data, message, limits):
        """Whatever it is, the same comes of it."""
        whole = request_outcome([message], limits)
        self.assertEqual(request_outcome(data.draw(split(message)), limits), whole)
        self.assertEqual(
            request_outcome([bytes([byte]) for byte in message], limits), whole, "byte by byte"
        )

    @settings(deadline=None)
    @given(request_samples.flatmap(mutated))
    def test_accepted(self, message):
        """What is accepted is what another expression, of one piece, takes for a request."""
        outcome = request_outcome([message])
        if outcome is None or len(outcome[0]) != 7:
            return
        (method, target, minor, host, _, block, _), rest = outcome
        read = message[: len(message) - len(rest)]
        self.assertTrue(read.endswith(b"\r\n" + block + b"\r\n"))
        self.assertRegex(block, rb"\A([!-9;-~]+:[\t -~\x80-\xff]*\r\n)*\Z")
        self.assertRegex(read, rb"\A(\r\n)?[!-~]+ [!-~]+ HTTP/1\.%d\r\n" % minor)
        self.assertRegex(method, rb"\A[!-~]+\Z")
        self.assertRegex(target, rb"\A(/[!-~]*|\*)\Z")
        self.assertRegex(host, rb"\A[!-~]*\Z")
        hosts = len(re.findall(rb"(?im)^host:", block))
        self.assertIn(hosts, (1,) if minor else (0, 1))
        lengths = re.findall(rb"(?im)^content-length:[ \t]*(.*?)[ \t]*\r$", block)
        codings = re.findall(rb"(?im)^transfer-encoding:[ \t]*(.*?)[ \t]*\r$", block)
        self.assertLessEqual(len(lengths) + len(codings), 1)
        for length in lengths:
            self.assertRegex(length, rb"\A[0-9]{1,18}\Z")
        for coding in codings:
            self.assertEqual(coding.lower(), b"chunked")


class ResponseTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.data(), st.integers(100, 599), values, fields, st.binary(max_size=9))
    def test_valid(self, data, status, reason, lines, behind):
        block = block_of(lines)
        whole = b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, reason, block, behind)
        reader, head = ResponseReader(), None
        pieces = data.draw(split(whole))
        while head is None:
            head = reader.feed(pieces.pop(0))
        self.assertEqual((head.status, head.reason), (status, reason))
        self.assertEqual((head.fields.block, head.fields.kept), (block, anew(lines)))
        self.assertEqual(reader.rest + b"".join(pieces), behind)

    @settings(deadline=None)
    @given(st.data(), response_samples.flatmap(mutated), st.one_of(st.just(Limits()), limits))
    def test_splits(self, data, message, limits):
        whole = response_outcome([message], limits)
        self.assertEqual(response_outcome(data.draw(split(message)), limits), whole)
        self.assertEqual(
            response_outcome([bytes([byte]) for byte in message], limits), whole, "byte by byte"
        )
        if whole is not None and len(whole[0]) != 5:
            self.assertEqual(whole[1], 502)


extensions = st.sampled_from((b"", b";a", b" ; a=b", b';a="b;\\" c"'))
chunks = st.lists(st.tuples(st.binary(min_size=1, max_size=300), extensions), max_size=5)


def chunked_outcome(pieces):
    """What comes of these reads; payload only if nothing is refused."""
    body, payload, rest = ChunkedBody(), b"", b""
    for piece in pieces:
        if body.done:
            rest += piece
            continue
        try:
            payload += body.feed(piece)
        except Refused as refused:
            return refused.rule
    return payload, body.done, body.rest + rest, body.trailers


class ChunkedTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.data(), chunks, fields, st.binary(max_size=9))
    def test_valid(self, data, chunks, lines, behind):
        written = b"".join(chunk(some).replace(b"\r\n", ext + b"\r\n", 1) for some, ext in chunks)
        written += last_chunk(block_of(lines)) + behind
        payload = b"".join(some for some, _ in chunks)
        found = chunked_outcome(data.draw(split(written)))
        self.assertEqual(found, (payload, True, behind, anew(lines)))

    @settings(deadline=None)
    @given(
        st.data(),
        st.sampled_from(
            (
                b"5\r\nhello\r\n0\r\n\r\nbehind",
                b"1;a=b\r\n\r\r\n3\r\n\r\n0\r\n0\r\nA: b\r\n\r\n",
                b'a;a="\\"" ; c\r\n0123456789\r\n00;d\r\nContent-Length: 5\r\nA:b\r\n\r\n',
            )
        ).flatmap(mutated),
    )
    def test_splits(self, data, written):
        whole = chunked_outcome([written])
        self.assertEqual(chunked_outcome(data.draw(split(written))), whole)
        self.assertEqual(chunked_outcome([bytes([byte]) for byte in written]), whole)
