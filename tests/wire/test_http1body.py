"""proxykit.wire.http1body: payload, and where a message ends."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.testing import split_everywhere
from proxykit.wire.http1body import (
    LAST_CHUNK,
    LONGEST_SIZE_LINE,
    MOST_EXTENSIONS,
    MOST_TRAILER_FIELDS,
    MOST_TRAILERS,
    ChunkedBody,
    LengthBody,
    UntilCloseBody,
    body_of,
    chunk,
    last_chunk,
)
from proxykit.wire.http1fields import CHUNKED, UNTIL_CLOSE, Refused

END = b"\r\n0\r\n\r\n"


def read(pieces, body):
    """What comes of these reads: payload, rest, and trailers, a refusal, or None: not done yet."""
    payload, rest = [], b""
    for piece in pieces:
        if body.done:
            rest += piece
            continue
        try:
            payload.append(body.feed(piece))
        except Refused as refused:
            return refused.rule, refused.status
    if not body.done:
        return None
    return b"".join(payload), body.rest + rest, body.trailers


class LengthTests(SynchronousTestCase):
    def test_split(self):
        for pieces in split_everywhere(b"hellobehind"):
            body = LengthBody(5)
            self.assertEqual(read(pieces, body), (b"hello", b"behind", b""))
            self.assertEqual((body.left, body.received), (0, 5))

    def test_progress(self):
        body = LengthBody(5)
        self.assertEqual((body.left, body.received, body.done), (5, 0, False))
        self.assertEqual(body.feed(b""), b"")
        self.assertEqual(body.feed(b"he"), b"he")
        self.assertEqual((body.left, body.received, body.done), (3, 2, False))
        self.assertEqual(body.feed(b"llo"), b"llo")
        self.assertEqual((body.left, body.received, body.done, body.rest), (0, 5, True, b""))

    def test_none(self):
        body = LengthBody(0)
        self.assertTrue(body.done)
        self.assertEqual((body.feed(b"a"), body.feed(b"b"), body.rest), (b"", b"", b"ab"))
        body.eof()

    def test_no_copy(self):
        data = bytes(1000)
        self.assertIs(LengthBody(2000).feed(data), data)
        self.assertIs(LengthBody(1000).feed(data), data)
        self.assertIs(UntilCloseBody().feed(data), data)

    def test_skip(self):
        """What went another way counts as received."""
        body = LengthBody(10)
        body.feed(b"ab")
        body.skip(5)
        self.assertEqual((body.left, body.received, body.done), (3, 7, False))
        self.assertRaises(ValueError, body.skip, 4)
        body.skip(3)
        self.assertEqual((body.left, body.received, body.done), (0, 10, True))

    def test_cut_off(self):
        for framing in (1, CHUNKED):
            for request, status in ((True, 400), (False, 502)):
                body = body_of(framing, request)
                error = self.assertRaises(Refused, body.eof)
                self.assertIn("cut off", error.rule)
                self.assertEqual(error.status, status)
        body = LengthBody(1)
        body.feed(b"a")
        body.eof()


class UntilCloseTests(SynchronousTestCase):
    def test_it(self):
        body = UntilCloseBody()
        self.assertEqual((body.feed(b"ab"), body.feed(b""), body.done), (b"ab", b"", False))
        body.skip(5)
        self.assertEqual((body.received, body.left, body.rest), (7, -1, b""))
        body.eof()
        self.assertTrue(body.done)
        self.assertEqual(body.trailers, b"")


class ChunkedTests(SynchronousTestCase):
    """Each line of a table is read in one piece, and split at each byte."""

    def outcome(self, data, status=400):
        whole = read([data], ChunkedBody(status))
        for pieces in split_everywhere(data):
            if read(pieces, ChunkedBody(status)) != whole:
                found = read(pieces, ChunkedBody(status))
                self.assertEqual(found, whole, (data, pieces[0], "split"))
        return whole

    def test_payload(self):
        for data, payload in (
            (b"0\r\n\r\n", b""),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"5\r\nhello\r\n6\r\n world\r\n000\r\n\r\n", b"hello world"),
            (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
            (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
            (b"1e\r\n" + b"x" * 30 + b"\r\n1E;a\r\n" + b"y" * 30 + END, b"x" * 30 + b"y" * 30),
            (b"00000000000000a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
            (b"2\r\n\r\n\r\n2\r\n0\r\r\n0\r\n\r\n", b"\r\n0\r"),
            (b"1;a\r\nb\r\n0\r\n\r\n", b"b"),
            (b'1;a=b;c="d\\"; e\\\\";f\r\nb\r\n0;g=h\r\n\r\n', b"b"),
            (b'1 ;\ta = b ; c\r\nb\r\n0\t;d=""\r\n\r\n', b"b"),
            (b'1;a="\xff\t"\r\nb\r\n0\r\n\r\n', b"b"),
        ):
            with self.subTest(data=data):
                self.assertEqual(self.outcome(data + b"behind"), (payload, b"behind", b""))
                self.assertIsNone(self.outcome(data[:-1]))

    def test_trailers(self):
        for data, trailers in (
            (b"A: b\r\n\r\n", b"A: b\r\n"),
            (b"A:b \r\nVary:\r\n\r\n", b"A: b\r\nVary: \r\n"),
            (b"Host: a\r\nContent-Length: 5\r\nAuthorization: b\r\nC: d\r\n\r\n", b"C: d\r\n"),
        ):
            with self.subTest(data=data):
                found = self.outcome(b"1\r\na\r\n0\r\n" + data + b"behind")
                self.assertEqual(found, (b"a", b"behind", trailers))

    def test_refused(self):
        size = "a chunk starts with its size (RFC 9112 section 7.1)"
        end = "a chunk ends with CRLF (RFC 9112 section 7.1)"
        extension = "a chunk extension is a name, perhaps with a value (RFC 9112 section 7.1.1)"
        for data, rule in (
            (b"\r\n", size),
            (b"g\r\n", size),
            (b" 5\r\n", size),
            (b"+5\r\n", size),
            (b"-5\r\n", size),
            (b"0x5\r\n", size),
            (b"5_0\r\n", size),
            (b"5h\r\n", size),
            (b"5 5\r\n", size),
            (b";a\r\n", size),
            (b"\xb2\r\n", size),
            (b"1234567890123456\r\n", "a chunk's size has at most 15 digits"),
            (b"0000000000000000\r\n", "a chunk's size has at most 15 digits"),
            (b"5 \r\n", extension),
            (b"5\t\r\n", extension),
            (b"5;\r\n", extension),
            (b"5; \r\n", extension),
            (b"5;a=\r\n", extension),
            (b"5;a b\r\n", extension),
            (b"5;a;;b\r\n", extension),
            (b"5;a \r\n", extension),
            (b'5;a="b\r\n', extension),
            (b'5;a="b"c\r\n', extension),
            (b'5;a="\\\x01"\r\n', extension),
            (b'5;""\r\n', extension),
            (b"5;a=\x01\r\n", extension),
            (b"5\n", "no bare LF"),
            (b"5;a\n", "no bare LF"),
            (b"5\r\r\n", "no bare CR"),
            (b"5\r5\n", "no bare CR"),
            (b"5;\x00\r\n", "no NUL"),
            (b"1\r\nab", end),
            (b"1\r\na\n", end),
            (b"1\r\na\r\r", end),
            (b"1\r\na\r0", end),
            (b"2\r\na\r\n", end),
            (b"0\r\nA : b\r\n", "no whitespace before the colon"),
            (b"0\r\nA\r\n", "a field line has a colon"),
            (b"0\r\n A: b\r\n", "no whitespace before the first field"),
            (b"0\r\nA: b\n", "no bare LF"),
            (b"0\r\n\n", "no bare LF"),
            (b"0\r\n\r\r\n", "no bare CR"),
            (b"0\r\nA: b\rc\r\n", "no bare CR"),
            (b"0\r\nA: \x00\r\n", "no NUL"),
            (b"0\r\nA: \x01\r\n", "no control bytes in a field value"),
            (b"0\r\nContent_Length: 5\r\n\r\n", "looks like a framing field"),
        ):
            with self.subTest(data=data):
                # Refused at the last byte, and not before.
                self.assertIsNone(read([data[:-1]], ChunkedBody()))
                for behind in (b"", b"\r\nmore\r\n\r\n"):
                    for status in (400, 502):
                        found = self.outcome(data + behind, status)
                        self.assertIsNotNone(found)
                        self.assertIn(rule, str(found[0]))
                        self.assertEqual(found[1], status)

    def test_progress(self):
        body = ChunkedBody()
        self.assertEqual((body.rest, body.trailers, body.received), (b"", b"", 0))
        for data, payload, received in (
            (b"", b"", 0),
            (b"5\r\nhe", b"he", 2),
            (b"llo", b"llo", 5),
            (b"\r", b"", 5),
            (b"\n1\r\nx\r\n2\r\nyz\r\n0\r\n", b"xyz", 8),
            (b"\r\n", b"", 8),
        ):
            self.assertFalse(body.done)
            self.assertEqual(body.feed(data), payload)
            self.assertEqual((body.received, body.left), (received, -1))
        self.assertTrue(body.done)
        body.eof()
        self.assertEqual((body.feed(b"a"), body.feed(b"b"), body.rest), (b"", b"", b"ab"))
        self.assertRaises(NotImplementedError, body.skip, 1)

    def test_large(self):
        """A chunk of more bytes than there are is passed on as it comes."""
        body = ChunkedBody()
        body.feed(b"f" * 15 + b"\r\n")
        for _ in range(3):
            self.assertEqual(body.feed(bytes(65536)), bytes(65536))
        self.assertFalse(body.done)


class ChunkedLimitTests(SynchronousTestCase):
    def check(self, pieces, rule):
        """None is a rule, too: nothing is refused."""
        found = read(pieces, ChunkedBody())
        if rule is None:
            self.assertNotEqual((found or (b"", b""))[1], 400)
        else:
            self.assertIn(rule, str(found[0]))
            self.assertEqual(found[1], 400)

    def in_all_ways(self, data, rule):
        for size in (len(data), 1000, 1):
            self.check([data[at : at + size] for at in range(0, len(data), size)], rule)

    def test_size_line(self):
        longest = b"1;" + b"a" * (LONGEST_SIZE_LINE - 4) + b"\r\n"
        self.in_all_ways(longest + b"b\r\n", None)
        self.in_all_ways(longest[:-2], None)
        self.in_all_ways(b"1;a" + longest[2:], "too long")
        self.in_all_ways(longest[:-2] + b"aaa", "too long")

    def test_extensions(self):
        """All of one body count; nobody reads them."""
        some = b";" + b"a" * 4000
        times = MOST_EXTENSIONS // len(some)
        data = (b"1" + some + b"\r\nb\r\n") * times
        rest = MOST_EXTENSIONS - times * len(some)
        self.in_all_ways(data + b"0;" + b"a" * (rest - 1) + b"\r\n\r\n", None)
        self.in_all_ways(data + b"0;" + b"a" * rest + b"\r\n\r\n", "too many chunk extensions")

    def test_trailers(self):
        """Both how many bytes and how many lines."""
        start = b"0\r\n"
        line = b"A: " + b"b" * 1019 + b"\r\n"
        times = MOST_TRAILERS // len(line)
        self.assertEqual(times * len(line), MOST_TRAILERS)
        almost = start + line * (times - 1) + line[3:-4] + b":\r\n"
        self.in_all_ways(almost + b"\r\n", None)
        self.in_all_ways(start + line * times + b"\r\n", "too long")
        self.in_all_ways(start + line * times + b"b", "too long")
        self.in_all_ways(start + b"A:\r\n" * MOST_TRAILER_FIELDS + b"\r\n", None)
        self.in_all_ways(start + b"A:\r\n" * (MOST_TRAILER_FIELDS + 1), "too many trailers")


class Counted(bytes):
    """Counts how much of such bytes was searched."""

    searched = 0

    def find(self, what, start=0):
        found = super().find(what, start)
        Counted.searched += (len(self) if found < 0 else found + 1) - start
        return found


class LinearTests(SynchronousTestCase):
    """The work is counted, not timed."""

    def test_linear(self):
        self.addCleanup(setattr, Counted, "searched", 0)
        for data in (
            b"1;" + b"a" * 4000 + b"\r\nb\r\n",
            b"0\r\n" + b"A: " + b"b" * 16000 + b"\r\n\r\n",
            b"0\r\n" + b"A: b\r\n" * 100 + b"\r\n",
            b"1\r\na\r\n" * 1000,
            b"1;a\r\na\r\n" * 1000,
        ):
            for size in (1, 2, 7, len(data)):
                with self.subTest(data=data[:10], size=size):
                    Counted.searched = 0
                    body = ChunkedBody()
                    for at in range(0, len(data), size):
                        body.feed(Counted(data[at : at + size]))
                    self.assertLessEqual(Counted.searched, len(data))


class WritingTests(SynchronousTestCase):
    def test_chunk(self):
        for data, written in (
            (b"", b""),
            (b"hello", b"5\r\nhello\r\n"),
            (bytes(255), b"ff\r\n" + bytes(255) + b"\r\n"),
        ):
            self.assertEqual(chunk(data), written)

    def test_last_chunk(self):
        self.assertEqual(last_chunk(b""), LAST_CHUNK)
        self.assertEqual(last_chunk(b"A: b\r\n"), b"0\r\nA: b\r\n\r\n")

    def test_read_back(self):
        data = chunk(b"a") + chunk(b"") + chunk(b"b" * 1000) + last_chunk(b"A: b\r\n")
        self.assertEqual(read([data], ChunkedBody()), (b"a" + b"b" * 1000, b"", b"A: b\r\n"))


class BodyOfTests(SynchronousTestCase):
    def test_it(self):
        self.assertIsInstance(body_of(CHUNKED, True), ChunkedBody)
        self.assertIsInstance(body_of(UNTIL_CLOSE, False), UntilCloseBody)
        self.assertTrue(body_of(0, True).done)
        self.assertEqual(body_of(7, False).left, 7)
