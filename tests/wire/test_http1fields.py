"""proxykit.wire.http1fields: what is understood of a field block, and what is passed on."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire import http1fields
from proxykit.wire.http1fields import (
    CHUNKED,
    NO_BODY,
    Refused,
    request_fields,
    response_fields,
    trailer_fields,
)
from tests.wire import BROWSER, HOST

KINDS = (request_fields, response_fields)


def lines(*each):
    return b"".join(line + b"\r\n" for line in each)


class BothTests(SynchronousTestCase):
    """What is the same in requests and responses."""

    def refused(self, block, rule, status, kinds=KINDS):
        for kind in kinds:
            with self.subTest(block=block, kind=kind.__name__):
                error = self.assertRaises(Refused, kind, block)
                self.assertIn(rule, error.rule)
                self.assertEqual(error.status, status if kind is request_fields else 502)

    def test_length(self):
        for value, length in ((b"0", 0), (b"5", 5), (b"005", 5), (b" 42\t", 42), (b"9" * 18, None)):
            for kind in KINDS:
                with self.subTest(value=value, kind=kind.__name__):
                    fields = kind(b"A: b\r\ncontent-LENGTH:" + value + b"\r\n")
                    self.assertEqual(fields.length, int(value) if length is None else length)
                    self.assertIs(fields.chunked, False)
                    self.assertEqual(fields.kept, b"A: b\r\n")

    def test_bad_length(self):
        number = "Content-Length is a number of at most 18 digits (RFC 9110 section 8.6)"
        for value in (
            b"",
            b"+5",
            b"-5",
            b"5, 5",
            b"5,",
            b"0x5",
            b"5 5",
            b"5.0",
            b"1" * 19,
            b"\xd9\xa5",
            b"\xb2",
            b'"5"',
        ):
            self.refused(b"Content-Length: " + value + b"\r\n", number, 400)
        one = "one Content-Length (RFC 9112 section 6.3)"
        self.refused(lines(b"Content-Length: 5", b"Content-Length: 5"), one, 400)
        self.refused(lines(b"Content-Length: 5", b"A: b", b"content-length: 6"), one, 400)
        self.refused(lines(b"Content-Length: 5", b"Content-Length:"), one, 400)

    def test_coding(self):
        for value in (b"chunked", b"Chunked", b"\tCHUNKED "):
            for kind in KINDS:
                with self.subTest(value=value, kind=kind.__name__):
                    fields = kind(b"transfer-encoding:" + value + b"\r\nA: b\r\n")
                    self.assertEqual((fields.length, fields.chunked), (None, True))
                    self.assertEqual(fields.kept, b"A: b\r\n")

    def test_bad_coding(self):
        final = "Transfer-Encoding ends with chunked, once (RFC 9112 section 6.1)"
        other = "no coding but chunked (RFC 9112 section 6.1)"
        for value, rule, status in (
            (b"", final, 400),
            (b"identity", final, 400),
            (b"gzip", final, 400),
            (b"chunked, gzip", final, 400),
            (b"chunked, chunked", final, 400),
            (b"chunked, identity, chunked", final, 400),
            (b"chunked,", final, 400),
            (b",chunked", final, 400),
            (b"chunked;a=b", final, 400),
            (b"xchunked", final, 400),
            (b"chunked\xff", final, 400),
            (b'"chunked"', final, 400),
            (b"gzip chunked", final, 400),
            (b"gzip;q=1, chunked", final, 400),
            (b"gzip, chunked", other, 501),
            (b"identity , Chunked", other, 501),
            (b"gzip,\tdeflate,CHUNKED", other, 501),
        ):
            self.refused(b"Transfer-Encoding: " + value + b"\r\n", rule, status)
        twice = lines(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")
        self.refused(twice, final, 400)
        self.refused(lines(b"Transfer-Encoding: chunked", b"Transfer-Encoding:"), final, 400)
        self.refused(lines(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), other, 501)

    def test_length_and_coding(self):
        rule = "not both Content-Length and Transfer-Encoding (RFC 9112 section 6.1)"
        for value in (b"chunked", b"identity", b""):
            both = (b"Content-Length: 5", b"Transfer-Encoding: " + value)
            self.refused(lines(*both), rule, 400)
            self.refused(lines(*reversed(both)), rule, 400)

    def test_lookalikes(self):
        rule = "looks like a framing field"
        for name in (b"Transfer_Encoding", b"Content.Length", b"contentlength", b"_content-length"):
            for _ in range(2):  # It is not learned either.
                self.refused(name + b": 5\r\n", rule, 400)

    def test_connection(self):
        for value, options, close, keep_alive in (
            (b"close", (b"close",), True, False),
            (b"Keep-Alive", (b"keep-alive",), False, True),
            (b" , A,close ,\tb", (b"a", b"close", b"b"), True, False),
            (b"", (), False, False),
            (b",", (), False, False),
            (b"close keep-alive", (b"close keep-alive",), False, False),
        ):
            for kind in KINDS:
                with self.subTest(value=value, kind=kind.__name__):
                    fields = kind(b"Connection: " + value + b"\r\n")
                    self.assertEqual(fields.connection_options, options)
                    self.assertEqual((fields.close, fields.keep_alive), (close, keep_alive))
                    self.assertEqual(fields.kept, b"")
        fields = request_fields(lines(b"Connection: a", b"connection: Close"))
        self.assertEqual(fields.connection_options, (b"a", b"close"))

    def test_upgrade(self):
        for connection, upgrade, understood in (
            (b"upgrade", b"websocket", b"websocket"),
            (b"keep-alive, Upgrade", b"WebSocket, IRC/6.9", b"WebSocket, IRC/6.9"),
            (b"keep-alive", b"websocket", b""),
            (b"upgrade", b"h2c", b""),
            (b"upgrade, HTTP2-Settings", b"websocket, H2C", b""),
        ):
            for kind in KINDS:
                with self.subTest(connection=connection, upgrade=upgrade, kind=kind.__name__):
                    block = lines(b"Connection: " + connection, b"Upgrade: " + upgrade)
                    fields = kind(block)
                    self.assertEqual((fields.upgrade, fields.kept), (understood, b""))
        self.assertEqual(request_fields(lines(b"Connection: upgrade")).upgrade, b"")
        two = lines(b"Connection: upgrade", b"Upgrade: a", b"Upgrade: b")
        self.assertEqual(request_fields(two).upgrade, b"a, b")

    def test_kept_byte_for_byte(self):
        for block in (
            b"",
            b"A: b\r\n",
            lines(b"Via: 1.1 x", b"Cookie: a=b; c", b"Cookie: d", b"Trailer: X", b"a: \xff\tb"),
        ):
            for kind in KINDS:
                self.assertEqual(kind(block).kept, block)
                self.assertEqual(kind(block).block, block)

    def test_kept_anew(self):
        block = b"A:b\r\nC: \t d e\t \r\nF:\r\nG:  \r\nConnection:close\r\nH: i\r\n"
        for kind in KINDS:
            self.assertEqual(kind(block).kept, b"A: b\r\nC: d e\r\nF: \r\nG: \r\nH: i\r\n")
            self.assertEqual(kind(block).block, block)
            self.assertEqual(kind(block).count, 6)

    def test_hop_by_hop(self):
        for name in (
            b"Keep-Alive",
            b"Proxy-Connection",
            b"TE",
            b"Upgrade",
            b"HTTP2-Settings",
            b"Proxy-Authorization",
            b"Proxy-Authenticate",
        ):
            for kind in KINDS:
                with self.subTest(name=name, kind=kind.__name__):
                    block = lines(b"A: b", name + b": c", b"D: e", name.upper() + b": c")
                    self.assertEqual(kind(block).kept, lines(b"A: b", b"D: e"))

    def test_named_by_connection(self):
        block = lines(
            b"A: b",
            b"X-C: d",
            b"x-c: e",
            b"Cookie: f",
            b"Close: g",
            b"Connection: close, X-C",
            b"Connection: cookie",
        )
        for kind in KINDS:
            self.assertEqual(kind(block).kept, lines(b"A: b", b"Close: g"))

    def test_framing_named_by_connection(self):
        """It is understood all the same."""
        fields = request_fields(
            lines(
                b"Host: a",
                b"Content-Length: 5",
                b"Expect: 100-continue",
                b"X-Forwarded-For: b",
                b"Connection: content-length, host, transfer-encoding, expect, x-forwarded-for",
            )
        )
        self.assertEqual(
            (fields.framing, fields.host, fields.expects, fields.forwarded_for),
            (5, b"a", True, b"b"),
        )
        self.assertEqual(fields.kept, b"Expect: 100-continue\r\n")

    def test_names_are_learned(self):
        """Few of them, and no long ones."""
        names = http1fields._REQUEST_NAMES
        names.clear()
        for number in range(3000):
            request_fields(b"A%d: b\r\n" % number)
            self.assertLessEqual(len(names), 1024)
        self.assertEqual(names[b"a"], b"")
        self.assertIn(b"a", names)
        for name, learned in ((b"a" * 64, True), (b"a" * 65, False)):
            request_fields(name + b": b\r\n")
            self.assertIs(name in names, learned)


class RequestTests(SynchronousTestCase):
    def test_nothing(self):
        fields = request_fields(b"")
        self.assertEqual((fields.framing, fields.length, fields.count), (NO_BODY, None, 0))
        self.assertEqual((fields.host, fields.host_count, fields.name), (b"", 0, ""))
        self.assertEqual((fields.expects, fields.private, fields.close), (False, False, False))
        self.assertEqual((fields.upgrade, fields.request_id), (b"", b""))
        self.assertEqual((fields.forwarded, fields.forwarded_for), (b"", b""))
        self.assertEqual((fields.forwarded_proto, fields.forwarded_host), (b"", b""))

    def test_browser(self):
        fields = request_fields(BROWSER)
        self.assertEqual(
            (fields.host, fields.host_count, fields.name), (b"www.example", 1, "www.example")
        )
        self.assertEqual((fields.count, fields.keep_alive, fields.framing), (8, True, 0))
        kept = BROWSER.replace(b"Host: www.example\r\n", b"")
        self.assertEqual(fields.kept, kept.replace(b"Connection: keep-alive\r\n", b""))

    def test_framing(self):
        for block, framing in (
            (b"Content-Length: 7\r\n", 7),
            (b"Content-Length: 0\r\n", NO_BODY),
            (b"Transfer-Encoding: chunked\r\n", CHUNKED),
        ):
            self.assertEqual(request_fields(block).framing, framing)
        self.assertEqual(request_fields(b"Content-Length: 0\r\n").length, 0)

    def test_expect(self):
        for block, expects in (
            (b"Expect: 100-continue\r\n", True),
            (b"expect: 100-Continue\r\n", True),
            (b"Expectation: a\r\n", False),
        ):
            fields = request_fields(block)
            self.assertEqual((fields.expects, fields.kept), (expects, block))
        for value in (b"", b"100", b"100-continue, a", b"200-ok", b"100-continue=a"):
            with self.subTest(value=value):
                error = self.assertRaises(Refused, request_fields, b"Expect: " + value + b"\r\n")
                self.assertEqual(error.status, 417)
        two = lines(b"Expect: 100-continue", b"Expect: 100-continue")
        self.assertEqual(self.assertRaises(Refused, request_fields, two).status, 417)

    def test_forwarding(self):
        fields = request_fields(
            lines(
                b"X-Forwarded-For: 192.0.2.1",
                b"x-forwarded-for: 192.0.2.2, 192.0.2.3",
                b"X-Forwarded-Proto: https",
                b"X-Forwarded-Host: a",
                b"X-Forwarded-Port: 80",
                b"Forwarded: for=b",
                b"FORWARDED: for=c;proto=http",
                b"X-Request-ID: d, e",
                b"X-Request-Id: f",
            )
        )
        self.assertEqual(fields.forwarded_for, b"192.0.2.1, 192.0.2.2, 192.0.2.3")
        self.assertEqual((fields.forwarded_proto, fields.forwarded_host), (b"https", b"a"))
        self.assertEqual(fields.forwarded, b"for=b, for=c;proto=http")
        self.assertEqual(fields.request_id, b"d, e")
        self.assertEqual(fields.kept, b"X-Forwarded-Port: 80\r\n")

    def test_private(self):
        for value, private in (
            (b"NTLM abc", True),
            (b"ntlm", True),
            (b"Negotiate abc=", True),
            (b"Basic abc", False),
            (b"Bearer ntlm", False),
            (b"Negotiated", False),
            (b"", False),
        ):
            with self.subTest(value=value):
                block = b"Authorization: " + value + b"\r\n"
                self.assertIs(request_fields(block).private, private)
                self.assertEqual(request_fields(block).kept, block)
                self.assertFalse(response_fields(block).private)

    def test_kept_by_block(self):
        """Unless it is long or has many lines."""
        for block, same in (
            (b"A: b\r\n", True),
            (b"A: " + b"b" * 2043 + b"\r\n", True),
            (b"A: " + b"b" * 2044 + b"\r\n", False),
            (b"A:\r\n" * 100, True),
            (b"A:\r\n" * 101, False),
        ):
            with self.subTest(block=len(block)):
                self.assertIs(request_fields(block) is request_fields(block), same)

    def test_bounded(self):
        http1fields.seen_requests.clear()
        for number in range(3000):
            request_fields(HOST + b"A: %d\r\n" % number)
            self.assertLessEqual(len(http1fields.seen_requests), 1024)
        self.assertEqual(len(http1fields.seen_requests), 3000 - 2 * 1024)


class ResponseTests(SynchronousTestCase):
    def test_idle_timeout(self):
        for value, seconds in (
            (b"timeout=5", 5.0),
            (b"Timeout = 30, max=100", 30.0),
            (b"max=100,timeout=7", 7.0),
            (b"timeout=0", 0.0),
            (b"timeout", None),
            (b"timeout=", None),
            (b"timeout=x", None),
            (b"timeout=-1", None),
            (b"mytimeout=5", None),
            (b"timeout=1234567890", None),
            (b"300", None),
            (b"", None),
        ):
            with self.subTest(value=value):
                fields = response_fields(b"Keep-Alive: " + value + b"\r\n")
                self.assertEqual((fields.idle_timeout, fields.kept), (seconds, b""))
        self.assertIsNone(response_fields(b"A: timeout=5\r\n").idle_timeout)

    def test_private(self):
        for value, private in (
            (b"NTLM", True),
            (b"Negotiate", True),
            (b"Basic realm=a, Negotiate", True),
            (b"Basic realm=ntlm", False),
        ):
            with self.subTest(value=value):
                block = b"WWW-Authenticate: " + value + b"\r\n"
                self.assertIs(response_fields(block).private, private)
                self.assertEqual(response_fields(block).kept, block)
                self.assertFalse(request_fields(block).private)
        two = lines(b"WWW-Authenticate: Basic realm=a", b"www-authenticate: NTLM")
        self.assertTrue(response_fields(two).private)

    def test_fields_of_requests_are_passed_on(self):
        block = lines(b"Host: a", b"X-Forwarded-For: b", b"X-Request-ID: c", b"Expect: d")
        self.assertEqual(response_fields(block).kept, block)


class TrailerTests(SynchronousTestCase):
    def test_trailers(self):
        self.assertEqual(trailer_fields(b""), b"")
        self.assertEqual(trailer_fields(b"A:b \r\nVary: *\r\n"), b"A: b\r\nVary: *\r\n")
        for name in (
            b"Host",
            b"content-length",
            b"Transfer-Encoding",
            b"TE",
            b"Connection",
            b"Trailer",
            b"AUTHORIZATION",
            b"Proxy-Authorization",
            b"WWW-Authenticate",
            b"Cookie",
            b"Set-Cookie",
            b"Content-Type",
            b"X-Forwarded-For",
            b"X-Request-ID",
            b"Forwarded",
        ):
            with self.subTest(name=name):
                block = lines(b"A: b", name + b": c", b"D: e")
                self.assertEqual(trailer_fields(block), lines(b"A: b", b"D: e"))

    def test_refused(self):
        for block, rule in (
            (b"A : b\r\n", "no whitespace before the colon"),
            (b"A: b\r\n c\r\n", "no folded lines"),
            (b"Content_Length: 5\r\n", "looks like a framing field"),
        ):
            with self.subTest(block=block):
                self.assertIn(rule, self.assertRaises(Refused, trailer_fields, block).rule)
