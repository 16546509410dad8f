"""proxykit.wire.http1: heads of requests."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire import http1fields
from proxykit.wire.http1 import Limits, Refused, RequestReader
from tests.wire import BROWSER, HOST, outcome_of_all, request_outcome


class AcceptedTests(SynchronousTestCase):
    """Each line of a table is read in one piece, and split at each byte."""

    def read(self, data):
        outcome = outcome_of_all(self, request_outcome, data + b"behind")
        self.assertEqual(outcome[1], b"behind", data)
        return outcome[0]

    def test_first_lines(self):
        for line, method, target, minor in (
            (b"GET / HTTP/1.1", b"GET", b"/", 1),
            (b"GET / HTTP/1.0", b"GET", b"/", 0),
            (b"get /a HTTP/1.1", b"get", b"/a", 1),
            (b"REPORT /a/b?c=d&e=%20?f HTTP/1.1", b"REPORT", b"/a/b?c=d&e=%20?f", 1),
            (b"!#$%&'*+-.^_`|~09Az / HTTP/1.1", b"!#$%&'*+-.^_`|~09Az", b"/", 1),
            (b'GET //a/../"<>[\\]^`{|}~ HTTP/1.1', b"GET", b'//a/../"<>[\\]^`{|}~', 1),
            (b"OPTIONS * HTTP/1.1", b"OPTIONS", b"*", 1),
            (b"OPTIONS /a HTTP/1.1", b"OPTIONS", b"/a", 1),
            (b"CONNECTS /a HTTP/1.1", b"CONNECTS", b"/a", 1),
        ):
            with self.subTest(line=line):
                read = self.read(line + b"\r\n" + HOST + b"\r\n")
                self.assertEqual(read[:5], (method, target, minor, b"a.example", "a.example"))

    def test_absolute_form(self):
        """It is reduced to origin-form, and its authority comes before Host."""
        for line, target, host, name in (
            (b"GET http://b HTTP/1.1", b"/", b"b", "b"),
            (b"GET http://b/ HTTP/1.1", b"/", b"b", "b"),
            (b"GET HTTP://B.Example.:81/c?d HTTP/1.1", b"/c?d", b"B.Example.:81", "b.example"),
            (b"GET https://[::1]:443/c HTTP/1.1", b"/c", b"[::1]:443", "[::1]"),
            (b"GET http://b?c=d/e HTTP/1.1", b"/?c=d/e", b"b", "b"),
            (b"GET http://b//c@d HTTP/1.0", b"//c@d", b"b", "b"),
            (b"OPTIONS http://b HTTP/1.1", b"*", b"b", "b"),
            (b"OPTIONS http://b/ HTTP/1.1", b"/", b"b", "b"),
            (b"OPTIONS http://b?c HTTP/1.1", b"/?c", b"b", "b"),
        ):
            for block in (HOST, b"Host: b\r\n", b"Host:\r\n"):
                with self.subTest(line=line, block=block):
                    read = self.read(line + b"\r\n" + block + b"\r\n")
                    self.assertEqual((read[1], *read[3:5]), (target, host, name))

    def test_hosts(self):
        for value, name in (
            (b"a", "a"),
            (b"A.Example.:080", "a.example"),
            (b"a:", "a"),
            (b"a:65535", "a"),
            (b".", "."),
            (b"127.0.0.1:80", "127.0.0.1"),
            (b"[2001:DB8::1]", "[2001:db8::1]"),
            (b"[::ffff:1.2.3.4]:1", "[::ffff:1.2.3.4]"),
            (b"a_b-c~!$&'()*+;=%2F", "a_b-c~!$&'()*+;=%2f"),
        ):
            with self.subTest(value=value):
                read = self.read(b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n")
                self.assertEqual(read[3:5], (value, name))

    def test_without_host(self):
        """Only HTTP/1.0 may leave it out."""
        for line, host, name in (
            (b"GET / HTTP/1.0", b"", ""),
            (b"GET http://b HTTP/1.0", b"b", "b"),
        ):
            with self.subTest(line=line):
                self.assertEqual(self.read(line + b"\r\n\r\n")[3:6], (host, name, b""))

    def test_keep_alive(self):
        for minor, value, persists in (
            (1, b"", True),
            (1, b"keep-alive", True),
            (1, b"close", False),
            (1, b"x, CLOSE ,keep-alive", False),
            (1, b"closed", True),
            (0, b"", False),
            (0, b"Keep-Alive", True),
            (0, b"keep-alive, close", False),
        ):
            with self.subTest(minor=minor, value=value):
                block = HOST + b"Connection: " + value + b"\r\n"
                read = self.read(b"GET / HTTP/1.%d\r\n%b\r\n" % (minor, block))
                self.assertIs(read[6], persists)

    def test_blocks(self):
        """They come as they were sent."""
        for block in (BROWSER, HOST + b"A:b\r\nC: \t d\t \r\nE:\r\nF: \xff\x80\xc3\xbc\r\n"):
            with self.subTest(block=block):
                self.assertEqual(self.read(b"GET / HTTP/1.1\r\n" + block + b"\r\n")[5], block)

    def test_with_body(self):
        """In each form of target."""
        for line in (b"POST / HTTP/1.1", b"POST http://a.example HTTP/1.1"):
            for field in (b"Transfer-Encoding: chunked", b"Content-Length: 5"):
                block = HOST + field + b"\r\n"
                self.assertEqual(self.read(line + b"\r\n" + block + b"\r\n")[5], block)

    def test_empty_line_before(self):
        for line in (b"GET / HTTP/1.1", b"GET http://a.example HTTP/1.1"):
            read = self.read(b"\r\n" + line + b"\r\n" + HOST + b"\r\n")
            self.assertEqual(read[:2], (b"GET", b"/"))


class RefusedTests(SynchronousTestCase):
    """Each line of a table is refused in one piece, and split at each byte, in the same words."""

    def check(self, data, rule, status, *limits):
        with self.subTest(data=data):
            outcome = outcome_of_all(self, request_outcome, data, *limits)
            self.assertIsNotNone(outcome, "waits for more")
            self.assertIn(rule, str(outcome[0]))
            self.assertEqual(outcome[1], status)

    def test_first_lines(self):
        """They are judged before anything else is there."""
        words = "a request line is three words"
        printable = "a target is printable"
        version = "a line ends with its version (RFC 9112 section 2.3)"
        unknown = "a version is HTTP/1.0 or HTTP/1.1 (RFC 9112 section 2.3)"
        form = "a target is a path or a URL (RFC 9112 section 3.2)"
        for line, rule, status in (
            (b"GET", words, 400),
            (b"GET /", words, 400),
            (b"GET / ", version, 400),
            (b"GET / HTTP/1.1 ", words, 400),
            (b"GET /a b HTTP/1.1", words, 400),
            (b"GET  / HTTP/1.1", words, 400),
            (b"GET\t/ HTTP/1.1", words, 400),
            (b"GET  HTTP/1.1", printable, 400),
            (b"G(T / HTTP/1.1", "a method is a token", 400),
            (b"G\xc3 / HTTP/1.1", "a method is a token", 400),
            (b"GET /\xc3\xbc HTTP/1.1", printable, 400),
            (b"GET /\x01 HTTP/1.1", printable, 400),
            (b"GET /\x7f HTTP/1.1", printable, 400),
            (b"GET /a#b HTTP/1.1", printable, 400),
            (b"GET /\t HTTP/1.1", printable, 400),
            (b"GET / http/1.1", version, 400),
            (b"GET / HTTP/1.10", version, 400),
            (b"GET / HTTP/1", version, 400),
            (b"GET / HTTP/1.x", version, 400),
            (b"GET / HTTP/1,1", version, 400),
            (b"GET / FTP/1.1", version, 400),
            (b"GET / HTTP/1.2", unknown, 505),
            (b"GET / HTTP/0.9", unknown, 505),
            (b"PRI * HTTP/2.0", unknown, 505),
            (b"CONNECT a:80 HTTP/1.1", "no CONNECT", 501),
            (b"CONNECT / HTTP/1.1", "no CONNECT", 501),
            (b"CONNECT / HTTP/1.3", unknown, 505),
            (b"GET * HTTP/1.1", form, 400),
            (b"OPTIONS ** HTTP/1.1", form, 400),
            (b"GET a HTTP/1.1", form, 400),
            (b"GET a:80 HTTP/1.1", form, 400),
            (b"GET ?a HTTP/1.1", form, 400),
            (b"GET ftp://a/ HTTP/1.1", form, 400),
            (b"GET http:/a HTTP/1.1", form, 400),
            (b"GET httpss://a HTTP/1.1", form, 400),
            (b"GET http:// HTTP/1.1", "a URL has a host", 400),
            (b"GET http:///a HTTP/1.1", "a URL has a host", 400),
            (b"GET http://:80/a HTTP/1.1", "a URL has a host", 400),
            (b"GET http://a:b/ HTTP/1.1", "a URL has a host", 400),
            (b"GET http://a\\b/ HTTP/1.1", "a URL has a host", 400),
            (b"GET http://a@b/ HTTP/1.1", "no user information", 400),
            (b"GET http://a:b@c HTTP/1.1", "no user information", 400),
        ):
            for behind in (b"", HOST + b"\r\n", b"no field\r\n\r\n"):
                self.check(line + b"\r\n" + behind, rule, status)

    def test_field_lines(self):
        blank = b"\r\n\r\n"
        for block, rule in (
            (b" A: b", "no whitespace before the first field (RFC 9112 section 2.2)"),
            (b"\tA: b", "no whitespace before the first field (RFC 9112 section 2.2)"),
            (HOST + b" A: b", "no folded lines (RFC 9112 section 5.2)"),
            (HOST + b"A: b\r\n\tc", "no folded lines (RFC 9112 section 5.2)"),
            (HOST + b"A: b\r\n ", "no folded lines (RFC 9112 section 5.2)"),
            (HOST + b"A", "a field line has a colon (RFC 9112 section 5)"),
            (HOST + b"A: b\r\nA b\r\n: c", "a field line has a colon (RFC 9112 section 5)"),
            (HOST + b"A : b", "no whitespace before the colon (RFC 9112 section 5.1)"),
            (HOST + b"A\t: b", "no whitespace before the colon (RFC 9112 section 5.1)"),
            (HOST + b": b", "a field name is a token (RFC 9110 section 5.1)"),
            (HOST + b"A b: c", "a field name is a token (RFC 9110 section 5.1)"),
            (HOST + b"\xc3: c", "a field name is a token (RFC 9110 section 5.1)"),
            (HOST + b"A\x00: c", "no NUL (RFC 9110 section 5.5)"),
            (HOST + b"A: b\x01c", "no control bytes in a field value (RFC 9110 section 5.5)"),
            (HOST + b"A: \x0b", "no control bytes in a field value (RFC 9110 section 5.5)"),
            (HOST + b"A: \x7f", "no control bytes in a field value (RFC 9110 section 5.5)"),
        ):
            self.check(b"GET / HTTP/1.1\r\n" + block + blank, rule, 400)
            self.check(b"GET http://a HTTP/1.1\r\n" + block + blank, rule, 400)

    def test_hosts(self):
        for version in (b"1.1", b"1.0"):
            for block in (b"Host:", b"Host: \t"):
                self.check(
                    b"GET / HTTP/" + version + b"\r\n" + block + b"\r\n\r\n", "Host is a host", 400
                )
            self.check(b"GET / HTTP/" + version + b"\r\n" + HOST + HOST + b"\r\n", "one Host", 400)
        self.check(b"GET http://a HTTP/1.0\r\nHost: a b\r\n\r\n", "Host is a host", 400)
        self.check(b"GET / HTTP/1.1\r\n\r\n", "one Host", 400)
        self.check(b"GET http://a HTTP/1.1\r\nA: b\r\n\r\n", "one Host", 400)
        for value in (
            b"a b",
            b"a,b",
            b"a@b",
            b"a/b",
            b"a:b",
            b"a:80:80",
            b"a:65536",
            b"a:000080",
            b":80",
            b"[::1",
            b"[::g]",
            b"[:]",
            b"::1",
            b"a\xc3\xbc",
            b"a%2",
            b'a"b',
        ):
            self.check(
                b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n",
                "Host is a host, and perhaps",
                400,
            )

    def test_http_1_0(self):
        block = HOST + b"Transfer-Encoding: chunked\r\n"
        self.check(
            b"POST / HTTP/1.0\r\n" + block + b"\r\n", "no Transfer-Encoding in HTTP/1.0", 400
        )

    def test_empty_lines(self):
        """One is skipped, and no more."""
        for data in (b"\r\n\r\n", b"\r\n\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n"):
            self.check(data, "a request starts with its method", 400)

    def test_refusal(self):
        """It is an error with a text of its own."""
        refused = self.assertRaises(Refused, RequestReader().feed, b"\x16\x03\x01")
        self.assertEqual(str(refused), "a request starts with its method (RFC 9112 section 3)")


class ReaderTests(SynchronousTestCase):
    def test_pipelined(self):
        """What is behind a head is given back, and the reader is ready for the next one."""
        reader = RequestReader()
        data = b"GET /1 HTTP/1.1\r\n" + HOST + b"\r\n\r\nGET http://b/2 HTTP/1.1\r\n" + HOST
        self.assertEqual(reader.feed(data[:5]), None)
        self.assertEqual(reader.feed(data[5:] + b"\r\nGET /3").target, b"/1")
        self.assertEqual(reader.feed(reader.rest).target, b"/2")
        self.assertEqual(reader.rest, b"GET /3")
        self.assertIsNone(reader.feed(reader.rest))
        self.assertEqual(reader.feed(b" HTTP/1.1\r\n" + HOST + b"\r\n").target, b"/3")
        self.assertEqual((reader.rest, reader.started), (b"", False))

    def test_each_is_judged(self):
        """Also early, behind one that came in parts or was unusual."""
        for line in (b"GET /1 HTTP/1.1\r\n", b"GET http://b HTTP/1.1\r\n"):
            for cut in (3, 25):
                reader = RequestReader()
                data = line + HOST + b"\r\n"
                reader.feed(data[:cut])
                self.assertIsNotNone(reader.feed(data[cut:]))
                self.assertRaises(Refused, reader.feed, b"GET /\r\n")
            reader = RequestReader()
            self.assertIsNotNone(reader.feed(line + HOST + b"\r\n"))
            self.assertRaises(Refused, reader.feed, b"GET /\r\n")

    def test_started(self):
        """An empty line is not the start of a request."""
        for data, started in (
            (b"", False),
            (b"\r", False),
            (b"\r\n", False),
            (b"\r\nG", True),
            (b"G", True),
            (b"GET / HTTP/1.1\r\n" + HOST, True),
            (b"GET / HTTP/1.1\r\n" + HOST + b"\r\nG", False),
        ):
            with self.subTest(data=data):
                reader = RequestReader()
                reader.feed(data)
                self.assertIs(reader.started, started)

    def test_same_fields(self):
        """A block that was seen is not looked at again."""
        heads = [
            RequestReader().feed(b"GET /%d HTTP/1.1\r\n%b\r\n" % (number, BROWSER))
            for number in range(2)
        ]
        self.assertIs(heads[0].fields, heads[1].fields)
        self.assertIsNot(heads[0], heads[1])
        self.assertIs(heads[0].fields, http1fields.request_fields(BROWSER))

    def test_fewer_fields(self):
        """Who takes fewer fields than are kept does not take what others took."""
        data = b"GET / HTTP/1.1\r\n" + BROWSER + b"\r\n"
        self.assertIsNotNone(RequestReader().feed(data))
        self.assertIsNotNone(RequestReader(Limits(fields=8)).feed(data))
        for limits, feed in ((Limits(fields=7), data), (Limits(fields=0), data)):
            refused = self.assertRaises(Refused, RequestReader(limits).feed, feed)
            self.assertEqual(refused.status, 431)
