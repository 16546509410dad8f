"""HTTP/1 beside h11 and httptools: what all accept, all understand in the same way."""

from __future__ import annotations

import h11
import httptools
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.http1 import Refused, RequestReader, ResponseReader
from proxykit.wire.http1body import body_of
from proxykit.wire.http1fields import Fields
from tests.wire import BROWSER
from tests.wire.test_http1_random import (
    anew,
    block_of,
    fields,
    hosts,
    mutated,
    request_samples,
    response_samples,
    split,
)


def ours(reader, pieces, method=b"GET"):
    """(first line, fields, body, what is behind it) of a whole message, else None."""
    pieces = list(pieces)
    head = body = None
    payload = rest = b""
    while pieces:
        piece = pieces.pop(0)
        if head is None:
            head = reader.feed(piece)
            if head is None:
                continue
            piece = reader.rest
            request = isinstance(reader, RequestReader)
            framing = head.fields.framing if request else head.framing(method)
            body = body_of(framing, request)
            first = (head.method, head.target) if request else (head.status, head.reason)
        if body.done:
            rest += piece
            continue
        payload += body.feed(piece)
        rest = getattr(body, "rest", b"")
    if body is None:
        return None
    body.eof()
    lines = [(name.lower(), value) for name, value in Fields(head.fields.block)]
    return first, lines, payload, rest


def of_h11(role, pieces, method=b"GET"):
    """The same from h11."""
    connection = h11.Connection(role)
    if role is h11.CLIENT:
        host = [("Host", "a")]
        connection.send(h11.Request(method=method, target="/", headers=host))
        connection.send(h11.EndOfMessage())
    payload, head = b"", None
    for piece in [*filter(None, pieces), b""]:  # an empty one is the end to it
        connection.receive_data(piece)
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request | h11.Response | h11.InformationalResponse):
                head = event
            elif isinstance(event, h11.Data):
                payload += event.data
            elif isinstance(event, h11.EndOfMessage):
                request = isinstance(head, h11.Request)
                first = (head.method, head.target) if request else (head.status_code, head.reason)
                return first, list(head.headers), bytes(payload), connection.trailing_data[0]
            else:
                return None
    return None


class _Events:
    """What httptools tells."""

    def __init__(self):
        self.url = self.status = self.body = b""
        self.fields = []
        self.done = 0

    def on_url(self, url):
        self.url += url

    def on_status(self, status):
        self.status += status

    def on_header(self, name, value):
        self.fields.append((name.lower(), value.rstrip(b" \t")))

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.done += 1


def of_httptools(kind, pieces):
    """First line, fields and body from httptools."""
    events = _Events()
    parser = kind(events)
    for piece in pieces:
        parser.feed_data(piece)
    if kind is httptools.HttpRequestParser:
        first = (parser.get_method(), events.url)
    else:
        first = (parser.get_status_code(), events.status)
    return first, events.fields, events.body


def message(first, block, body, chunked=False):
    if chunked:
        return first + block + b"Transfer-Encoding: chunked\r\n\r\n" + body
    return first + block + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


CHUNKS = b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n"
REQUESTS = (
    b"GET / HTTP/1.1\r\n" + BROWSER + b"\r\n",
    b"GET /a?b=c%20d HTTP/1.1\r\nHost: a\r\nX-A:  b \r\nX-A:c\r\n\r\n",
    b"HEAD /a HTTP/1.1\r\nHost: [::1]:80\r\nX: caf\xe9\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a HTTP/1.0\r\n\r\n",
    message(b"POST /a HTTP/1.1\r\n", b"Host: a\r\n", b"hello"),
    message(b"PUT /a HTTP/1.1\r\n", b"Host: a\r\n", b""),
    message(b"POST /a HTTP/1.1\r\n", b"Host: a\r\n", CHUNKS, chunked=True),
    message(b"PATCH /a HTTP/1.1\r\n", b"Host: a\r\nExpect: 100-continue\r\n", b"\r\n\r\n"),
    b"DELETE /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
)
RESPONSES = (
    message(b"HTTP/1.1 200 OK\r\n", b"Server: a\r\nX:  b \r\n", b"hello"),
    message(b"HTTP/1.1 404 Not Found\r\n", b"", b""),
    message(b"HTTP/1.1 200 OK\r\n", b"Server: a\r\n", CHUNKS, chunked=True),
    message(b"HTTP/1.0 500 Internal Server Error\r\n", b"", b"\r\n\r\n"),
    b"HTTP/1.1 304 Not Modified\r\nETag: a\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
)


#: Neither of the others takes whitespace around the semicolon.
extensions = st.sampled_from((b"", b";a", b";a=b", b';a="b"'))
chunks = st.lists(st.tuples(st.binary(min_size=1, max_size=300), extensions), max_size=5)


class AllThreeTests(SynchronousTestCase):
    def test_requests(self):
        for data in REQUESTS:
            with self.subTest(data=data):
                found = ours(RequestReader(), [data])
                self.assertEqual(of_h11(h11.SERVER, [data]), found)
                self.assertEqual(of_httptools(httptools.HttpRequestParser, [data]), found[:3])

    def test_responses(self):
        for data in RESPONSES:
            with self.subTest(data=data):
                found = ours(ResponseReader(), [data])
                self.assertEqual(of_h11(h11.CLIENT, [data]), found)
                self.assertEqual(of_httptools(httptools.HttpResponseParser, [data]), found[:3])

    @settings(deadline=None)
    @given(
        st.data(),
        st.sampled_from((b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"PURGE", b"REPORT")),
        fields,
        hosts,
        chunks,
        st.booleans(),
    )
    def test_generated(self, data, method, lines, host, chunks, chunked):
        """Requests made from the grammar."""
        block = block_of(lines) + b"Host: " + host + b"\r\n"
        written = b"".join(b"%x%b\r\n%b\r\n" % (len(some), ext, some) for some, ext in chunks)
        body = written + b"0\r\n\r\n" if chunked else b"".join(some for some, _ in chunks)
        pieces = data.draw(split(message(method + b" /a HTTP/1.1\r\n", block, body, chunked)))
        found = ours(RequestReader(), pieces)
        self.assertEqual(found[0], (method, b"/a"))
        self.assertEqual(found[2], b"".join(some for some, _ in chunks))
        self.assertEqual(of_h11(h11.SERVER, pieces), found)
        self.assertEqual(of_httptools(httptools.HttpRequestParser, pieces), found[:3])

    @settings(deadline=None)
    @given(fields)
    def test_written_anew(self, lines):
        """What is passed on means the same to the others."""
        written = anew(lines)
        data = b"GET / HTTP/1.1\r\nHost: a\r\n" + written + b"\r\n"
        found = ours(RequestReader(), [data])
        self.assertEqual(of_h11(h11.SERVER, [data]), found)
        self.assertEqual(of_httptools(httptools.HttpRequestParser, [data]), found[:3])


class MutatedTests(SynchronousTestCase):
    """What proxykit accepts of the broken, others accept, and understand in the same way."""

    def check(self, reader, role, data):
        try:
            found = ours(reader, [data])
        except Refused:
            return
        if found is not None:
            self.assertEqual(of_h11(role, [data]), found)

    @settings(deadline=None)
    @given(request_samples.flatmap(mutated))
    def test_requests(self, data):
        if (
            b"http" not in data.partition(b"HTTP")[0].lower()
        ):  # h11 leaves an absolute-form as it is
            self.check(RequestReader(), h11.SERVER, data)

    @settings(deadline=None)
    @given(response_samples.flatmap(mutated))
    def test_responses(self, data):
        self.check(ResponseReader(), h11.CLIENT, data)
