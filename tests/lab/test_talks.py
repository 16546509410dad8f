"""proxykit.lab.talks and proxykit.lab.origin: what clients ask, and are told."""

from __future__ import annotations

import argparse
import asyncio

from twisted.trial.unittest import SynchronousTestCase

from proxykit.lab import origin
from proxykit.lab.origin import Origin
from proxykit.lab.talks import MIXED_UP, SERVED, Hello, Http
from proxykit.wire import clienthello

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n/ann/1 one\n"


class HttpTests(SynchronousTestCase):
    def asked(self, count=1):
        talk = Http("ann")
        for number in range(1, count + 1):
            self.assertTrue(talk.question().startswith(b"GET /ann/%d HTTP/1.1\r\n" % number))
        return talk

    def test_own(self):
        """However much of it has come at first."""
        for end in range(len(ANSWER)):
            self.assertIsNone(self.asked().answer(ANSWER[:end]), end)
        self.assertEqual(self.asked().answer(ANSWER), (SERVED, len(ANSWER)))
        self.assertEqual(self.asked().answer(ANSWER + b"HTTP"), (SERVED, len(ANSWER)))

    def test_somebody_elses(self):
        for answer, told in (
            (ANSWER.replace(b"ann", b"bob"), "bob/1"),
            (ANSWER.replace(b"/1 ", b"/2 "), "ann/2"),
        ):
            talk = self.asked()
            self.assertEqual(talk.answer(answer), (MIXED_UP, len(answer)))
            self.assertEqual(talk.mixed_up, ("ann/1", told))

    def test_a_part_of_one(self):
        """Nothing that comes after it can be understood."""
        outcome, size = self.asked().answer(ANSWER[5:])
        self.assertEqual(outcome, MIXED_UP)
        self.assertGreater(size, len(ANSWER))

    def test_another_status(self):
        answer = (
            b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\nno"
        )
        self.assertEqual(self.asked().answer(answer), ("503", len(answer)))
        answer = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        self.assertEqual(self.asked().answer(answer), ("400", len(answer)))

    def test_next(self):
        self.assertEqual(self.asked(2).answer(ANSWER)[0], MIXED_UP)


class HelloTests(SynchronousTestCase):
    def test_hello(self):
        """It has the name; and any answer will do."""
        talk = Hello("a.example")
        matched = clienthello.HelloReader().feed(talk.question())
        self.assertEqual(matched.hello.server_name, "a.example")
        self.assertEqual(talk.answer(b"x"), (SERVED, 1))


class Transport:
    """As much of one as an origin needs."""

    def __init__(self):
        self.written = b""
        self.closed = False

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


class OriginTests(SynchronousTestCase):
    def origin(self, **options):
        defaults = {"name": "one", "talk": "http", "close": False, "delay": 0.0, "size": 0}
        made = Origin(argparse.Namespace(**{**defaults, **options}))
        made._transport = Transport()
        return made

    def told(self, made, *pieces):
        for piece in pieces:
            made.data_received(piece)
        return made._transport.written

    def test_it_fits(self):
        """A client's question gets the client's answer."""
        talk = Http("ann")
        made = self.origin()
        for _ in range(2):
            self.assertEqual(talk.answer(self.told(made, talk.question()))[0], SERVED)
            made._transport.written = b""
        self.assertFalse(made._transport.closed)

    def test_split(self):
        """At every byte."""
        question = Http("ann").question()
        for at in range(1, len(question)):
            told = self.told(self.origin(), question[:at], question[at:])
            self.assertEqual(told, ANSWER, at)

    def test_two_at_once(self):
        talk = Http("ann")
        told = self.told(self.origin(), talk.question() + talk.question())
        self.assertEqual(told, ANSWER + ANSWER.replace(b"/1 ", b"/2 "))

    def test_size(self):
        told = self.told(self.origin(size=1000), Http("ann").question())
        self.assertTrue(told.endswith(b"/ann/1 one" + b"." * 1000 + b"\n"))
        self.assertIn(b"Content-Length: 1011\r\n", told)

    def test_no_request(self):
        """Two that were mixed up; what comes after them counts again."""
        question = Http("ann").question()
        made = self.origin()
        told = self.told(made, question[:10] + question, question)
        self.assertTrue(told.startswith(b"HTTP/1.1 400 "), told)
        self.assertTrue(told.endswith(ANSWER))

    def test_no_end(self):
        told = self.told(self.origin(), b"x" * origin.MOST)
        self.assertTrue(told.startswith(b"HTTP/1.1 400 "), told)

    def test_close(self):
        """It may always do so, or be asked to; and says nothing after."""
        question = Http("ann").question()
        asking = question.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        for made, what in ((self.origin(close=True), question), (self.origin(), asking)):
            told = self.told(made, what + question)
            self.assertIn(b"Connection: close\r\n", told)
            self.assertEqual(told.count(b"200 OK"), 1)
            self.assertTrue(made._transport.closed)

    def test_any(self):
        self.assertEqual(self.told(self.origin(talk="any"), b"\x16\x03", b"x"), b"one\none\n")

    def test_delay(self):
        async def play():
            made = self.origin(delay=0.001)
            made.data_received(Http("ann").question())
            before = made._transport.written
            while not made._transport.written:
                await asyncio.sleep(0)
            return before, made._transport.written

        self.assertEqual(asyncio.run(play()), (b"", ANSWER))
