"""proxykit.wire.http1: heads of responses."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.http1 import CHUNKED, NO_BODY, UNTIL_CLOSE, Limits, Refused, ResponseReader
from tests.wire import outcome_of_all, response_outcome

LENGTH = b"Content-Length: 5\r\n"
CODING = b"Transfer-Encoding: chunked\r\n"


def head(data):
    return ResponseReader().feed(data)


class AcceptedTests(SynchronousTestCase):
    def read(self, data):
        outcome = outcome_of_all(self, response_outcome, data + b"behind")
        self.assertEqual(outcome[1], b"behind", data)
        return outcome[0]

    def test_first_lines(self):
        for line, status, minor, reason in (
            (b"HTTP/1.1 200 OK", 200, 1, b"OK"),
            (b"HTTP/1.0 599 ", 599, 0, b""),
            (b"HTTP/1.1 100", 100, 1, b""),
            (b"HTTP/1.1 404  Not\tFound ", 404, 1, b" Not\tFound "),
            (b"HTTP/1.1 302 d\xe9plac\xc3\xa9", 302, 1, b"d\xe9plac\xc3\xa9"),
        ):
            for block in (b"", b"A: b\r\nC:d \r\n"):
                with self.subTest(line=line, block=block):
                    read = self.read(line + b"\r\n" + block + b"\r\n")
                    self.assertEqual(read[:4], (status, minor, reason, block))

    def test_keep_alive(self):
        for minor, value, persists in (
            (1, b"", True),
            (1, b"close", False),
            (1, b"Upgrade", True),
            (0, b"", False),
            (0, b"keep-alive", True),
            (0, b"Close, Keep-Alive", False),
        ):
            with self.subTest(minor=minor, value=value):
                data = b"HTTP/1.%d 200 OK\r\nConnection: %b\r\n\r\n" % (minor, value)
                self.assertIs(self.read(data)[4], persists)


class FramingTests(SynchronousTestCase):
    def check(self, line, block, method, framing):
        with self.subTest(line=line, block=block, method=method):
            found = head(line + b"\r\n" + block + b"\r\n").framing(method)
            self.assertEqual(found, framing)

    def test_framing(self):
        """RFC 9112 section 6.3."""
        for block, framing in ((LENGTH, 5), (CODING, CHUNKED), (b"", UNTIL_CLOSE)):
            self.check(b"HTTP/1.1 200 OK", block, b"GET", framing)
            self.check(b"HTTP/1.1 404", block, b"POST", framing)
            for line, method in (
                (b"HTTP/1.1 200 OK", b"HEAD"),
                (b"HTTP/1.1 100 Continue", b"POST"),
                (b"HTTP/1.1 103 Early Hints", b"GET"),
                (b"HTTP/1.1 199", b"GET"),
                (b"HTTP/1.1 204 No Content", b"GET"),
                (b"HTTP/1.1 304 Not Modified", b"GET"),
            ):
                self.check(line, block, method, NO_BODY)
        self.check(b"HTTP/1.1 200", b"Content-Length: 0\r\n", b"GET", 0)
        self.check(b"HTTP/1.0 200", LENGTH, b"GET", 5)
        self.check(b"HTTP/1.0 200", b"", b"GET", UNTIL_CLOSE)
        self.check(b"HTTP/1.1 200", b"", b"head", UNTIL_CLOSE)

    def test_length_without_body(self):
        """What a HEAD or a 304 says of the body that it does not have can still be passed on."""
        read = head(b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + b"\r\n")
        self.assertEqual((read.fields.length, read.framing(b"GET")), (5, 0))


class RefusedTests(SynchronousTestCase):
    def check(self, data, rule, *limits):
        with self.subTest(data=data):
            outcome = outcome_of_all(self, response_outcome, data, *limits)
            self.assertIsNotNone(outcome, "waits for more")
            self.assertIn(rule, str(outcome[0]))
            self.assertEqual(outcome[1], 502)

    def test_first_lines(self):
        starts, status = "a response starts with its version", "a status is a number"
        for line, rule in (
            (b"", starts),
            (b"ICY 200 OK", starts),
            (b"http/1.1 200 OK", starts),
            (b"HTTP 200 OK", starts),
            (b"HTTP/1.2 200 OK", "a version is HTTP/1.0 or HTTP/1.1"),
            (b"HTTP/2 200 OK", "a line ends with its version"),
            (b"HTTP/1.1", status),
            (b"HTTP/1.1 ", status),
            (b"HTTP/1.1  200 OK", status),
            (b"HTTP/1.1\t200 OK", "version"),
            (b"HTTP/1.1 099 OK", status),
            (b"HTTP/1.1 600 OK", status),
            (b"HTTP/1.1 20 OK", status),
            (b"HTTP/1.1 2000 OK", status),
            (b"HTTP/1.1 +20 OK", status),
            (b"HTTP/1.1 200\tOK", status),
            (b"HTTP/1.1 200OK", status),
            (b"HTTP/1.1 200 O\x01K", "no control bytes in a reason"),
            (b"HTTP/1.1 200 \x7f", "no control bytes in a reason"),
        ):
            for behind in (b"", LENGTH + b"\r\n"):
                self.check(line + b"\r\n" + behind, rule)
        self.check(b"\r\n\r\n", starts)
        self.check(b"\r\nHTTP/1.1 200 OK\r\n\r\n", starts)

    def test_fields(self):
        """The same rules as for requests."""
        for block, rule in (
            (b" A: b\r\n", "no whitespace before the first field"),
            (b"A: b\r\n c\r\n", "no folded lines"),
            (b"A : b\r\n", "no whitespace before the colon"),
            (b"A\r\n", "a field line has a colon"),
            (b"A: \x01\r\n", "no control bytes in a field value"),
            (LENGTH + CODING, "not both"),
            (LENGTH + LENGTH, "one Content-Length"),
            (b"Content-Length: 5, 5\r\n", "Content-Length is a number"),
            (b"Content_Length: 5\r\n", "looks like a framing field"),
            (b"Transfer-Encoding: gzip, chunked\r\n", "no coding but chunked"),
            (b"Transfer-Encoding: identity\r\n", "ends with chunked"),
        ):
            self.check(b"HTTP/1.1 200 OK\r\n" + block + b"\r\n", rule)
            # Also where there can be no body.
            self.check(b"HTTP/1.1 204 No Content\r\n" + block + b"\r\n", rule)

    def test_http_1_0(self):
        self.check(b"HTTP/1.0 200 OK\r\n" + CODING + b"\r\n", "no Transfer-Encoding in HTTP/1.0")

    def test_no_rules_of_requests(self):
        """Host and Expect mean nothing here."""
        for block in (b"Host: a b\r\nHost: c\r\n", b"Expect: nothing\r\n"):
            self.assertEqual(head(b"HTTP/1.1 200 OK\r\n" + block + b"\r\n").fields.kept, block)


class ReaderTests(SynchronousTestCase):
    def test_one_after_the_other(self):
        reader = ResponseReader()
        data = b"HTTP/1.1 100\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH + b"\r\nhello"
        self.assertEqual(reader.feed(data).status, 100)
        self.assertFalse(reader.started)
        rest = reader.rest
        self.assertIsNone(reader.feed(rest[:3]))
        self.assertTrue(reader.started)
        self.assertEqual(reader.feed(rest[3:]).status, 200)
        self.assertEqual(reader.rest, b"hello")

    def test_same_head(self):
        """A head that was seen is not looked at again, unless it is a long one."""
        for value, same in (
            (b"a" * 2000, True),
            (b"a" * 2048, False),
        ):
            data = b"HTTP/1.1 200 OK\r\nA: %b\r\n\r\n" % value
            heads = [head(bytes(bytearray(data))) for _ in range(2)]
            self.assertIs(heads[0] is heads[1], same)
        data = b"HTTP/1.1 200 OK\r\n" + b"A:\r\n" * 50 + b"\r\n"
        self.assertIs(head(data), head(data))

    def test_tighter_limits(self):
        """Who takes less than others does not take what they took."""
        data = b"HTTP/1.1 200 OK\r\n" + b"A:\r\n" * 9 + b"\r\n"
        for limits in (Limits(line=16), Limits(head=54), Limits(fields=8)):
            self.assertIsNotNone(head(data))
            self.assertRaises(Refused, ResponseReader(limits).feed, data)
        self.assertIsNotNone(ResponseReader(Limits(line=17, head=55, fields=9)).feed(data))

    def test_wider_limits(self):
        """What others do not take is not kept."""
        data = b"HTTP/1.1 200 OK\r\n" + b"A:\r\n" * 101 + b"\r\n"
        for _ in range(2):
            self.assertIsNotNone(ResponseReader(Limits(fields=200)).feed(data))
            self.assertRaises(Refused, head, data)

    def test_bounded(self):
        """However many different heads there are, few are kept."""
        first = head(b"HTTP/1.1 200 OK\r\nA: first\r\n\r\n")
        for number in range(1100):
            head(b"HTTP/1.1 200 OK\r\nA: %d\r\n\r\n" % number)
        self.assertIsNot(head(b"HTTP/1.1 200 OK\r\nA: first\r\n\r\n"), first)
