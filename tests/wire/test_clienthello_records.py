"""proxykit.wire.clienthello: how a hello is put together, and what is none."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.clienthello import (
    DECODE_ERROR,
    MOST_BYTES,
    MOST_RECORDS,
    NEED_MORE,
    PROTOCOL_VERSION,
    RECORD_OVERFLOW,
    UNEXPECTED_MESSAGE,
    Hello,
    HelloReader,
    Malformed,
    Matched,
    NotThisProtocol,
    alert,
)
from tests.wire.hellos import (
    BROWSER,
    body,
    extension,
    hello,
    message,
    outcome,
    outcome_of_all,
    records,
    sni,
)

SMALL = message(body(sni(b"a")))
FOUND = Matched(Hello("a", (), (0x0303,), False))


def message_of(size):
    """A hello that has this many bytes with its header."""
    padding = size - len(SMALL) - 4
    whole = message(body(sni(b"a"), extension(21, bytes(padding))))
    assert len(whole) == size
    return whole


class TogetherTests(SynchronousTestCase):
    def test_records_of_every_size(self):
        """Whichever record the name is cut in, it is found."""
        for size in range(1, len(SMALL) + 1):
            with self.subTest(size=size):
                self.assertEqual(outcome_of_all(self, records(SMALL, size)), FOUND)

    def test_browser_in_records_of_every_size(self):
        whole = outcome([BROWSER])
        for size in range(1, len(BROWSER) - 5):
            with self.subTest(size=size):
                cut = records(BROWSER[5:], size)
                self.assertEqual(outcome([cut]), whole)
                self.assertEqual(outcome([cut[:-1], cut[-1:]]), whole)

    def test_two_records(self):
        """Cut at each place: nothing is said of the first record alone (CVE-2026-32305)."""
        for size in range(1, len(SMALL)):
            first, second = records(SMALL[:size]), records(SMALL[size:])
            with self.subTest(size=size):
                self.assertIs(outcome([first]), NEED_MORE)
                self.assertEqual(outcome([first, second]), FOUND)
                self.assertEqual(outcome([first + second[:-1], second[-1:]]), FOUND)

    def test_part(self):
        """As long as a byte is missing there is no answer, whatever the byte."""
        for data in (BROWSER, records(SMALL, 7)):
            for size in range(len(data)):
                with self.subTest(size=size):
                    self.assertIs(outcome([data[:size]]), NEED_MORE)

    def test_nothing(self):
        """Reads without a byte change nothing."""
        self.assertIs(outcome([b"", b""]), NEED_MORE)
        data = records(SMALL, 20)
        self.assertEqual(outcome([b"", data[:3], b"", data[3:25], b"", data[25:]]), FOUND)

    def test_behind(self):
        """What is behind its last record is kept, and not looked at."""
        for behind in (b"\x00", records(b"early", kind=23), records(SMALL), alert(0), b"GET /"):
            for data in (records(SMALL), records(SMALL, 20)):
                with self.subTest(behind=behind):
                    self.assertEqual(outcome_of_all(self, data + behind), FOUND)

    def test_versions_of_records(self):
        """Each of major version 3 will do (RFC 5246 appendix E.1), and each record has its own."""
        for minor in (0, 1, 3, 4, 5, 255):
            version = bytes((3, minor))
            with self.subTest(version=version):
                first = records(SMALL[:9], version=version)
                self.assertEqual(outcome_of_all(self, first + records(SMALL[9:])), FOUND)
                self.assertEqual(outcome_of_all(self, records(SMALL, version=version)), FOUND)

    def test_received(self):
        """Before, while and after: all that came, in bytes of its own."""
        reader = HelloReader()
        self.assertEqual(reader.received, b"")
        data = records(SMALL, 30)
        reader.feed(data[:40])
        early = reader.received
        reader.feed(data[40:] + b"behind")
        self.assertEqual((early, reader.received), (data[:40], data + b"behind"))
        self.assertIsInstance(reader.received, bytes)

    def test_fed_in_one_piece_is_kept_as_it_is(self):
        """It is the caller's own object: nothing of 64 KiB is copied for the usual hello."""
        reader = HelloReader()
        reader.feed(BROWSER)
        self.assertIs(reader.received, BROWSER)


class BoundTests(SynchronousTestCase):
    def test_largest_record(self):
        self.assertEqual(outcome([records(message_of(16384))]), FOUND)

    def test_largest(self):
        """64 KiB with the headers of its records, of which there are four."""
        size = MOST_BYTES - 4 * 5
        data = records(message_of(size))
        self.assertEqual(len(data), MOST_BYTES)
        self.assertEqual(outcome([data]), FOUND)
        self.assertEqual(outcome([data[at : at + 1] for at in range(len(data))]), FOUND)
        self.too_large([records(message_of(size + 1))])

    def test_records_of_one_byte(self):
        """Six bytes for one count as six."""
        self.assertEqual(outcome([records(message_of(MOST_RECORDS), 1)]), FOUND)
        self.too_large([records(message_of(MOST_RECORDS + 1), 1)], "2048 records at most")

    def test_a_limit_of_ones_own(self):
        size = 1000
        hello = records(message_of(size - 5))
        self.assertEqual(outcome([hello], limit=size), FOUND)
        self.assertEqual(outcome([hello[:9], hello[9:]], limit=size), FOUND)
        for pieces in ([hello], [hello[:9]], [hello[:5]]):
            answer = outcome(pieces, limit=size - 1)
            self.assertIn("999 bytes at most", answer.why)

    def test_said_beforehand(self):
        """Nobody waits for a hello that will be too large, nor for a record that is."""
        said = b"\x16\x03\x01\x40\x00\x01\x00"
        largest = MOST_BYTES - 5 - 4
        self.assertIs(outcome([said + largest.to_bytes(2, "big")]), NEED_MORE)
        self.too_large([said + (largest + 1).to_bytes(2, "big")])
        self.too_large([b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"])

    def too_large(self, pieces, why="65536 bytes at most"):
        answer = outcome(pieces)
        self.assertIsInstance(answer, Malformed)
        self.assertIn(why, answer.why)
        self.assertEqual(answer.alert, DECODE_ERROR)
        self.assertEqual(outcome(bytes((byte,)) for piece in pieces for byte in piece), answer)


class MalformedTests(SynchronousTestCase):
    def refused(self, data, rule, number):
        """These bytes are enough to know, and those before the last are not."""
        with self.subTest(data=data):
            answer = outcome_of_all(self, data)
            self.assertIsInstance(answer, Malformed, answer)
            self.assertIn(rule, answer.why)
            self.assertEqual(answer.alert, number)
            self.assertIs(outcome([data[:-1]]), NEED_MORE)
            self.assertEqual(outcome_of_all(self, data + SMALL), answer, "behind it")

    def test_no_handshake(self):
        """TLS, but another record first, such as an alert."""
        for kind in (20, 21, 23, 24):
            self.refused(bytes((kind, 3, 1, 0, 2)), "handshake records", UNEXPECTED_MESSAGE)

    def test_between(self):
        """Whatever it is, it does not belong between the records of a hello."""
        part = records(SMALL, 20)[:25]
        for header in (b"\x15\x03\x01\x00\x02", b"\x17\x03\x03\x00\x01", b"\x14\x03\x03\x00\x01"):
            self.refused(part + header, "handshake records", UNEXPECTED_MESSAGE)
        self.refused(part + b"GET /", "handshake records", UNEXPECTED_MESSAGE)

    def test_other_handshake(self):
        for kind in (0, 2, 20, 22, 255):
            self.refused(
                records(message(b"", kind))[:6], "first message is a hello", UNEXPECTED_MESSAGE
            )

    def test_records(self):
        part = records(SMALL, 20)[:25]
        for before in (b"", part):
            for header, rule, number in (
                (b"\x16\x03\x01\x00\x00", "no empty", DECODE_ERROR),
                (b"\x16\x03\x01\x40\x01", "16384", RECORD_OVERFLOW),
                (b"\x16\x03\x01\xff\xff", "16384", RECORD_OVERFLOW),
            ):
                self.refused(before + header, rule, number)
        for header in (b"\x16\x02\x00\x00\x01", b"\x16\x04\x00\x00\x01"):
            self.refused(part + header, "major version is 3", PROTOCOL_VERSION)

    def test_more_in_the_record(self):
        """A hello ends with its record; that is known as soon as both lengths are."""
        for behind in (b"\x00", SMALL, bytes(100)):
            data = records(SMALL + behind)
            self.refused(data[:9], "ends with its record", UNEXPECTED_MESSAGE)
            answer = outcome_of_all(self, data)
            self.assertIsInstance(answer, Malformed)
        data = records(SMALL[:20]) + records(SMALL[20:] + b"\x00")
        self.refused(data[:31], "ends with its record", UNEXPECTED_MESSAGE)

    def test_empty_hello(self):
        self.refused(records(message(b"")), "lengths add up", DECODE_ERROR)


class NotTlsTests(SynchronousTestCase):
    def other(self, data, why, certain=1):
        """:param certain: how many bytes it is known after."""
        with self.subTest(data=data):
            answer = outcome_of_all(self, data)
            self.assertIsInstance(answer, NotThisProtocol, answer)
            self.assertIn(why, answer.why)
            self.assertIs(outcome([data[: certain - 1]]), NEED_MORE)
            self.assertEqual(outcome([data[:certain]]), answer)

    def test_http(self):
        for data in (b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n", b"CONNECT a:1 HTTP/1.1\r\n"):
            self.other(data, "text")

    def test_text(self):
        for data in (b"SSH-2.0-a\r\n", b"PROXY TCP4 ", b"~\n"):
            self.other(data, "text")

    def test_sslv2(self):
        """With the name that it cannot have, it is not TLS, even if it offers TLS 1.2."""
        inside = b"\x01\x03\x03" + b"\x00\x06\x00\x00\x00\x10" + bytes(22)
        self.other(b"\x80" + bytes((len(inside),)) + inside, "SSLv2")

    def test_garbage(self):
        for data in (b"\xff\xfe\xfd", b"\xc0\xde"):
            self.other(data, "binary")
        for data in (b"\x00\x00\x00", b"\r\n\r\nGET", b"\x0d\x0a\x0d\x0a\x00\x0d\x0aQUIT", b"\x7f"):
            self.other(data, "nothing known")

    def test_no_record_of_tls(self):
        for kind in (20, 21, 22, 23, 24):
            for major in (0, 2, 4, 255):
                self.other(bytes((kind, major, 0)), "not of TLS", 2)
        self.other(records(SMALL, version=b"\x04\x00"), "not of TLS", 2)

    def test_type_beyond_those_of_tls(self):
        for kind in (19, 25):
            self.other(bytes((kind, 3, 1)), "nothing known")


class AnswerTests(SynchronousTestCase):
    def test_no_name(self):
        """That is an answer of its own, never an empty name."""
        answer = outcome([hello(extension(23))])
        self.assertEqual(answer, Matched(Hello(None, (), (0x0303,), False)))

    def test_nothing_is_shared(self):
        """One connection's bytes do not get into another's hello."""
        first, second = HelloReader(), HelloReader()
        first.feed(records(SMALL)[:30])
        self.assertEqual(second.feed(records(SMALL)), FOUND)
        self.assertEqual(first.received, records(SMALL)[:30])
