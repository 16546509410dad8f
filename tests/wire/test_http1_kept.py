"""What is left out, what is not kept, and how parts of a body are written."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.forwarding import Forwarding
from proxykit.wire.http1 import RequestReader
from proxykit.wire.http1body import LAST_CHUNK, chunks
from proxykit.wire.http1fields import LONGEST_KEPT, request_fields


class KeptTests(SynchronousTestCase):
    def test_a_long_block_is_written_and_not_kept(self) -> None:
        forwarding = Forwarding("192.0.2.1", b"http", False, "proxykit")
        for size, kept in ((10, True), (LONGEST_KEPT, False)):
            data = b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * size)
            head = RequestReader().feed(data)
            assert head is not None
            block = forwarding.block(head, b"a")
            self.assertIn(b"X: %b\r\n" % (b"x" * size), block)
            self.assertEqual(forwarding._block == block, kept)

    def test_names_that_differ_by_an_underscore(self) -> None:
        """To a backend that makes variables of them they are the same: they go with the others."""
        fields = request_fields(b"Host: a\r\nX_Forwarded_For: 192.0.2.9\r\nX_Other: y\r\n")
        self.assertEqual(fields.kept, b"X_Other: y\r\n")
        self.assertEqual(fields.forwarded_for, b"")

    def test_parts_of_a_chunked_body(self) -> None:
        for payload, done, trailers, written in (
            (b"ab", False, b"", b"2\r\nab\r\n"),
            (b"", False, b"", b""),
            (b"ab", True, b"", b"2\r\nab\r\n" + LAST_CHUNK),
            (b"", True, b"X: y\r\n", b"0\r\nX: y\r\n\r\n"),
        ):
            self.assertEqual(chunks(payload, done, trailers), written)
