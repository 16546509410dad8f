"""Tests of what is sans-I/O, and what they share: what comes of bytes, however they are split."""

from __future__ import annotations

from proxykit.testing import split_everywhere
from proxykit.wire.http1 import Refused, RequestReader, ResponseReader
from proxykit.wire.http1fields import seen_requests

HOST = b"Host: a.example\r\n"
#: What a browser sends with each request.
BROWSER = (
    b"Host: www.example\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"Connection: keep-alive\r\n"
    b"Cookie: session=0123456789abcdef\r\n"
    b"Upgrade-Insecure-Requests: 1\r\n"
)


def request_outcome(pieces, *limits):
    """What comes of these reads: a request's parts and what is behind it, a refusal, or None."""
    reader = RequestReader(*limits)
    return _outcome(
        reader,
        pieces,
        lambda head: (
            head.method,
            head.target,
            head.minor,
            head.host,
            head.name,
            head.fields.block,
            head.keep_alive,
        ),
    )


def response_outcome(pieces, *limits):
    """What comes of these reads, as with a request."""
    return _outcome(
        ResponseReader(*limits),
        pieces,
        lambda head: (head.status, head.minor, head.reason, head.fields.block, head.keep_alive),
    )


def _outcome(reader, pieces, parts):
    pieces = list(pieces)
    for number, piece in enumerate(pieces, 1):
        try:
            head = reader.feed(piece)
        except Refused as refused:
            return refused.rule, refused.status
        if head is not None:
            return parts(head), reader.rest + b"".join(pieces[number:])
    return None


def outcome_of_all(test, outcome, data, *limits):
    """What comes of the bytes in one piece; the test fails if it is another one when split."""
    seen_requests.clear()
    whole = outcome([data], *limits)
    test.assertEqual(outcome([data], *limits), whole, "seen before")
    for pieces in split_everywhere(data):
        if outcome(pieces, *limits) != whole:
            test.assertEqual(outcome(pieces, *limits), whole, (pieces[0], "split"))
    return whole
