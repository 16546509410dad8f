"""proxykit.wire.http1early: refused at the byte that breaks a rule; linear; limits."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire import http1early
from proxykit.wire.http1 import Limits, Refused, RequestReader, ResponseReader
from tests.wire import HOST, outcome_of_all, request_outcome, response_outcome

START = b"GET / HTTP/1.1\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\n"


class EarlyTests(SynchronousTestCase):
    """Each line of a table is refused at its last byte, and not before."""

    def check(self, reader, data, rule, status):
        with self.subTest(data=data):
            outcome = request_outcome if reader is RequestReader else response_outcome
            self.assertIsNone(outcome([data[:-1]]), "too early")
            found = outcome_of_all(self, outcome, data)
            self.assertIsNotNone(found, "too late")
            self.assertIn(rule, str(found[0]))
            self.assertEqual(found[1], status)
            # What comes later does not matter.
            self.assertEqual(outcome([data + b" \x00\n\r\n\r\n"]), found)

    def test_requests(self):
        starts = "a request starts with its method (RFC 9112 section 3)"
        for data, rule in (
            (b"\x16", starts),
            (b"\x00", starts),
            (b" ", starts),
            (b"\n", starts),
            (b"\xff", starts),
            (b"\rG", starts),
            (b"\r\n\r", starts),
            (b"\r\n\x16", starts),
            (b"\r\n ", starts),
            (b"G\n", "no bare LF (RFC 9112 section 2.2)"),
            (b"G\r\r", "no bare CR (RFC 9112 section 2.2)"),
            (b"G\r\x00", "no bare CR (RFC 9112 section 2.2)"),
            (b"G\x00", "no NUL (RFC 9110 section 5.5)"),
            (b"GET / HTTP/1.1\n", "no bare LF"),
            (b"GET / HTTP/1.1\r ", "no bare CR"),
            (b"GET /\r\n", "a request line is three words"),
            (START + b"\n", "no bare LF"),
            (START + HOST + b"A: b\n", "no bare LF"),
            (START + HOST + b"A: b\rc", "no bare CR"),
            (START + HOST + b"A: b\r\r", "no bare CR"),
            (START + HOST + b"A\x00", "no NUL"),
            # What is judged when the head is whole does not come first.
            (START + b" no field\r\nA: b\n", "no bare LF"),
        ):
            self.check(RequestReader, data, rule, 400)
        self.check(RequestReader, b"GET / HTTP/3.0\r\n", "a version is", 505)
        self.check(RequestReader, b"CONNECT a:80 HTTP/1.1\r\n", "no CONNECT", 501)

    def test_responses(self):
        starts = "a response starts with its version (RFC 9112 section 4)"
        for data, rule in (
            (b"\x15", starts),
            (b"\r", starts),
            (b"\n", starts),
            (b"HTTq", starts),
            (b"HTTP\x00", starts),
            (b"h", starts),
            (b"HTTP/1.1 200 OK\n", "no bare LF"),
            (b"HTTP/1.1 200 \x00", "no NUL"),
            (b"HTTP/1.1 2000\r\n", "a status is"),
            (b"HTTP/2.0 200 OK\r\n", "a version is"),
            (ANSWER + b"A: b\n", "no bare LF"),
            (ANSWER + b"A: b\rc", "no bare CR"),
            (ANSWER + b"no field\r\nA: b\x00", "no NUL"),
        ):
            self.check(ResponseReader, data, rule, 502)


class LimitTests(SynchronousTestCase):
    def check(self, data, outcome, *limits, read=request_outcome):
        with self.subTest(data=data):
            found = outcome_of_all(self, read, data, *limits)
            self.assertEqual(found if found is None else found[1], outcome)

    def test_line(self):
        """With its CRLF, and without an empty line before it."""
        limits = Limits(line=20, head=100)
        for start in (b"", b"\r\n"):
            for line, status in (
                (b"GET /45678 HTTP/1.1\r\n", 414),
                (b"GET /456789 HTTP/1.1\r\n", 414),
                (b"GET /45678 HTTP/1.1x", None),
                (b"GET /45678 HTTP/1.1xx", 414),
                (b"GETGETGETGETGETGET / HTTP/1.1\r\n", 414),
            ):
                self.check(start + line, status, limits)
            whole = start + b"GET /4567 HTTP/1.1\r\n" + HOST + b"\r\n"
            self.check(whole, b"", limits)
            longer = start + b"GET /45678 HTTP/1.1\r\n" + HOST + b"\r\n"
            self.check(longer, 414, limits)
        self.check(b"HTTP/1.1 200 456\r\n\r\n", b"", Limits(line=18), read=response_outcome)
        self.check(b"HTTP/1.1 200 456\r\n\r\n", 502, Limits(line=17), read=response_outcome)

    def test_head(self):
        """With its empty line, and without one before it."""
        for start in (b"", b"\r\n"):
            whole = start + START + HOST + b"\r\n"
            size = len(START + HOST + b"\r\n")
            self.check(whole, b"", Limits(head=size))
            self.check(whole, 431, Limits(head=size - 1))
            self.check(whole[:-4], None, Limits(head=size - 4))
            self.check(whole[:-4], 431, Limits(head=size - 5))
            # A line longer than any head is too long as a line.
            self.check(whole, 414, Limits(head=len(START) - 1))
        whole = ANSWER + b"A: b\r\n\r\n"
        self.check(whole, b"", Limits(head=len(whole)), read=response_outcome)
        self.check(whole, 502, Limits(head=len(whole) - 1), read=response_outcome)

    def test_fields(self):
        for count, limits, outcome in (
            (100, (), b""),
            (101, (), 431),
            (5, (Limits(fields=5),), b""),
            (6, (Limits(fields=5),), 431),
            (200, (Limits(fields=200),), b""),
        ):
            self.check(START + HOST + b"A:\r\n" * (count - 1) + b"\r\n", outcome, *limits)
            outcome = 502 if outcome == 431 else outcome
            self.check(
                ANSWER + b"A:\r\n" * count + b"\r\n", outcome, *limits, read=response_outcome
            )

    def test_defaults(self):
        start, end = b"GET /", b" HTTP/1.1\r\n"
        longest = start + b"a" * (8192 - len(start + end)) + end
        for data, status in (
            (longest + HOST + b"\r\n", b""),
            (start + longest[4:] + HOST + b"\r\n", 414),
            (START + HOST + b"A: " + b"a" * (32768 - len(START + HOST) - 7) + b"\r\n\r\n", b""),
            (START + HOST + b"A: " + b"a" * (32768 - len(START + HOST) - 6) + b"\r\n\r\n", 431),
        ):
            self.assertEqual(request_outcome([data])[1], status)
            self.assertEqual(request_outcome([data[:9000], data[9000:]])[1], status)

    def test_what_breaks_first(self):
        """Of a limit and a bare CR or LF, whichever can be told first."""
        too_long, bare = "too long", "bare"
        for data, rule in (
            (b"GET /4567\n", bare),
            (b"GET /45678\n", too_long),
            (b"GET /456789\n", too_long),
            (b"GET /456\ra", bare),
            (b"GET /4567\ra", too_long),
            (b"GET /45678\ra", too_long),
            (b"GET /4567\r\n\n", too_long),
            (b"GET /456\r\n\n", "three words"),
        ):
            for behind in (b"", b"\r\n\r\n"):
                with self.subTest(data=data + behind):
                    found = outcome_of_all(self, request_outcome, data + behind, Limits(line=10))
                    self.assertIn(rule, found[0])
        for size, rule in ((29, bare), (30, "too large"), (31, "too large")):
            for behind in (b"", b"\r\n\r\n"):
                data = START + b"A" * (size - len(START)) + b"\n" + behind
                found = outcome_of_all(self, request_outcome, data, Limits(head=30))
                self.assertIn(rule, found[0])


class Counted(bytearray):
    """Counts the bytes that are searched in it."""

    searched = 0

    def find(self, what, start=0, stop=None):
        self.searched += (len(self) if stop is None else stop) - start
        return super().find(what, start, len(self) if stop is None else stop)


class LinearTests(SynchronousTestCase):
    """The work is counted, not timed."""

    def work(self, reader, data, size):
        """How many bytes are searched when the data comes in reads of that size."""
        held = reader._held = Counted()
        looked = []

        def counted(data, start, stop):
            looked.append(stop - start)
            return bare_at(data, start, stop)

        bare_at = http1early.bare_at
        self.patch(http1early, "bare_at", counted)
        with self.assertRaises(Refused):
            for at in range(0, len(data), size):
                self.assertIsNone(reader.feed(data[at : at + size]))
        self.assertGreater(len(held), 30000)
        return held.searched + sum(looked)

    def test_linear(self):
        for reader, start in ((RequestReader, START), (ResponseReader, ANSWER)):
            for line in (b"A: b\r\n", b"A: " + b"b" * 32768, b"A\r\n" * 3):
                data = start + line * (33000 // len(line) + 1)
                for size in (1, 2, 3, 100):
                    with self.subTest(reader=reader, line=line[:10], size=size):
                        work = self.work(reader(), data, size)
                        self.assertLess(work, 8 * len(data))
        data = b"GET /" + b"a" * 33000
        work = self.work(RequestReader(Limits(line=32768)), data, 1)
        self.assertLess(work, 8 * len(data))
