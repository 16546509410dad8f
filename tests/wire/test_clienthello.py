"""proxykit.wire.clienthello: what is in a hello. Each is read whole, and split at each byte."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.clienthello import (
    DECODE_ERROR,
    ILLEGAL_PARAMETER,
    NEED_MORE,
    PROTOCOL_VERSION,
    UNRECOGNIZED_NAME,
    Hello,
    Malformed,
    Matched,
    alert,
)
from tests.wire.hellos import (
    BROWSER,
    alpn,
    body,
    entry,
    extension,
    hello,
    message,
    outcome,
    outcome_of_all,
    records,
    sni,
    uint8,
    uint16,
    versions,
)

GREASE = tuple(range(0x0A0A, 0x10000, 0x1010))


class MatchedTests(SynchronousTestCase):
    def read(self, *extensions, **parts):
        answer = outcome_of_all(self, hello(*extensions, **parts))
        self.assertIsInstance(answer, Matched, answer)
        return answer.hello

    def test_browser(self):
        self.assertEqual(
            outcome_of_all(self, BROWSER),
            Matched(Hello("www.example", ("h2", "http/1.1"), (0x0304, 0x0303), True)),
        )

    def test_least(self):
        """TLS 1.0 knows no extensions; there may also be an empty list of them."""
        for extensions in ((), (b"",)):
            with self.subTest(extensions=extensions):
                self.assertEqual(
                    self.read(*extensions, version=b"\x03\x01"), Hello(None, (), (0x0301,), False)
                )

    def test_most(self):
        """What else is in it is the server's business."""
        read = self.read(
            extension(41, b"anything"),
            extension(0xFFFF, bytes(300)),
            sni(b"a"),
            session=bytes(32),
            ciphers=bytes(600),
            methods=b"\x01\x40\x00",
        )
        self.assertEqual(read, Hello("a", (), (0x0303,), False))

    def test_names(self):
        label = b"a" * 63
        for name, found in (
            (b"a", "a"),
            (b"a.example", "a.example"),
            (b"A.Example", "a.example"),
            (b"a.example.", "a.example"),
            (b"_a-.9", "_a-.9"),
            (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
            (b"1.2.3.4.example", "1.2.3.4.example"),
            (b"1.2.3.4a", "1.2.3.4a"),
            (label + b".a", "a" * 63 + ".a"),
            (b".".join((label,) * 4), ".".join(("a" * 63,) * 4)),
        ):
            with self.subTest(name=name):
                self.assertEqual(self.read(sni(name)).server_name, found)

    def test_addresses(self):
        """They are no names (RFC 6066 section 3): a hello with one names none."""
        for name in (
            b"192.0.2.1",
            b"192.0.2.1.",
            b"::1",
            b"2001:DB8::1",
            b"[2001:db8::1]",
            b"::ffff:192.0.2.1",
            b"fe80::1%eth0",
        ):
            with self.subTest(name=name):
                self.assertIsNone(self.read(sni(name)).server_name)

    def test_alpn(self):
        for protocols, found in (
            ((b"h2",), ("h2",)),
            ((b"http/1.1", b"h2", b"h2"), ("http/1.1", "h2", "h2")),
            ((b"\xff\x00",), ("\xff\x00",)),
            ((b"x" * 255,), ("x" * 255,)),
            ((b"\x0a\x0a", b"h2", b"\xfa\xfa", b"\x0a\x1a"), ("h2", "\x0a\x1a")),
        ):
            with self.subTest(protocols=protocols):
                self.assertEqual(self.read(alpn(*protocols)).alpn, found)

    def test_versions(self):
        for offered, found in (
            ((0x0304,), (0x0304,)),
            ((0x0303, 0x0304, 0x7F1C, 0x0301), (0x0303, 0x0304, 0x7F1C, 0x0301)),
            (GREASE, ()),
            ((0x0A1A, *GREASE, 0x0304), (0x0A1A, 0x0304)),
        ):
            with self.subTest(offered=offered):
                # With the extension, nothing hangs on the old field.
                read = self.read(versions(*offered), version=b"\x00\x00")
                self.assertEqual(read.versions, found)

    def test_old_field(self):
        for version, found in ((b"\x03\x00", 0x0300), (b"\x03\x03", 0x0303), (b"\x04\x01", 0x0401)):
            with self.subTest(version=version):
                self.assertEqual(self.read(sni(b"a"), version=version).versions, (found,))

    def test_encrypted(self):
        for kind, found in ((0xFE0D, True), (0xFE0C, False)):
            with self.subTest(kind=kind):
                self.assertIs(self.read(sni(b"a"), extension(kind, b"\x00")).encrypted, found)

    def test_grease(self):
        """Extensions of such types are skipped, the one that looks most like another too."""
        read = self.read(*(extension(kind, b"\x00") for kind in GREASE), sni(b"a"))
        self.assertEqual(read, Hello("a", (), (0x0303,), False))


class MalformedTests(SynchronousTestCase):
    def refused(self, data, rule, number=DECODE_ERROR):
        with self.subTest(data=data):
            answer = outcome_of_all(self, data)
            self.assertIsInstance(answer, Malformed, answer)
            self.assertIn(rule, answer.why)
            self.assertEqual(answer.alert, number, answer.why)

    def test_names(self):
        for name in (
            b"a b",
            b"a/b",
            b"a:443",
            b"a\x00.example",
            b"b\xc3\xbccher.example",
            b"*.example",
            b"a\n",
            b"\xff",
            b".",
            b"..",
            b".a",
            b"a..",
            b"a..b",
            b"[a]",
            b"[::1",
            b"a" * 64,
            b"a" * 64 + b".example",
            b"b." * 126 + b"aaaa",
            b"a" * 16000,
            # Digits and dots, but no address.
            b"1",
            b"127.1",
            b"1.2.3.4.5",
            b"1.2.3.256",
            b"01.2.3.4",
        ):
            self.refused(named(name), "one of DNS", ILLEGAL_PARAMETER)

    def test_length_of_name(self):
        longest = b"b." * 126 + b"aaa"
        self.assertEqual(len(longest), 255)
        self.assertEqual(outcome([named(longest)]).hello.server_name, longest.decode())

    def test_lists_of_names(self):
        for inside, rule in (
            (b"", "lengths add up"),
            (b"\x00", "lengths add up"),
            (b"\x00\x00", "lengths add up"),
            (uint16(entry(b"a")) + b"\x00", "list of names"),
            (b"\x00\x05" + entry(b"a"), "list of names"),
            (b"\x00\x03" + entry(b"a"), "list of names"),
            (uint16(b"\x00"), "lengths add up"),
            (uint16(b"\x00\x00"), "lengths add up"),
            (uint16(b"\x00\x00\x02a"), "lengths add up"),
            (uint16(b"\x00\xff\xffa"), "lengths add up"),
            (uint16(entry(b"")), "a name is not empty"),
            (uint16(entry(b"") + entry(b"a")), "a name is not empty"),
        ):
            self.refused(hello(extension(0, inside)), rule)
            # What is behind it is not taken for a part of it.
            self.refused(hello(extension(0, inside), extension(23), extension(35)), "")

    def test_no_single_name(self):
        """Two of them, or one of another type: OpenSSL takes neither."""
        for names in (
            entry(b"a") + entry(b"b"),
            entry(b"a") + entry(b"a"),
            entry(b"a") + entry(b"x", 1),
            entry(b"x", 1) + entry(b"a"),
            entry(b"x", 1),
            entry(b"a", 255),
            entry(b"a") + entry(b""),
            entry(b"a") + b"\x00",
        ):
            self.refused(hello(extension(0, uint16(names))), "one name", ILLEGAL_PARAMETER)

    def test_two_extensions(self):
        for extensions in (
            (sni(b"a"), sni(b"b")),
            (sni(b"a"), extension(23), sni(b"a")),
            (extension(23), extension(23)),
            (extension(0x0A0A), extension(0x0A0A)),
            (alpn(b"a"), alpn(b"b")),
        ):
            self.refused(hello(*extensions), "one extension of each type", ILLEGAL_PARAMETER)

    def test_protocols(self):
        for inside, rule in (
            (b"", "lengths add up"),
            (b"\x00\x00", "list of protocols"),
            (uint16(uint8(b"h2")) + b"\x00", "list of protocols"),
            (b"\x00\x04" + uint8(b"h2"), "list of protocols"),
            (uint16(b"\x03h2"), "lengths add up"),
            (uint16(uint8(b"h2") + b"\x01"), "lengths add up"),
            (uint16(uint8(b"h2") + uint8(b"")), "name is not empty"),
        ):
            self.refused(hello(extension(16, inside)), rule)
            self.refused(hello(extension(16, inside), extension(23), extension(35)), "")

    def test_versions(self):
        for inside, rule in (
            (b"", "lengths add up"),
            (b"\x00", "list of versions"),
            (b"\x01\x03", "list of versions"),
            (b"\x03\x03\x04\x03", "list of versions"),
            (b"\x02\x03", "list of versions"),
            (b"\x02\x03\x04\x03", "list of versions"),
        ):
            self.refused(hello(extension(43, inside)), rule)
        self.refused(hello(extension(43), extension(23)), "list of versions")

    def test_old_field(self):
        for version in (b"\x00\x02", b"\x02\x00", b"\x02\xff"):
            self.refused(hello(sni(b"a"), version=version), "version is 3", PROTOCOL_VERSION)

    def test_lengths_of_extensions(self):
        extensions = sni(b"a") + extension(23)
        start = body()
        for inside in (
            b"\x00",
            b"\x00\x01",
            uint16(extensions) + b"\x00",
            b"\x00\x01" + extensions,
            b"\xff\xff" + extensions,
            uint16(extensions[:-1]),
            uint16(extensions[:-2]),
            uint16(extensions[:-3]),
            uint16(extensions + b"\x00\x23\x00\x01"),
            uint16(extensions + b"\x00\x23\xff\xff"),
        ):
            self.refused(records(message(start + inside)), "lengths add up")

    def test_before_extensions(self):
        for data, rule, number in (
            (hello(session=bytes(33)), "session id", DECODE_ERROR),
            (hello(session=bytes(255)), "session id", DECODE_ERROR),
            (hello(ciphers=b""), "ciphers", DECODE_ERROR),
            (hello(ciphers=bytes(3)), "ciphers", DECODE_ERROR),
            (hello(methods=b""), "a compression method", DECODE_ERROR),
            (hello(sni(b"a"), methods=b""), "a compression method", DECODE_ERROR),
            (hello(sni(b"a"), methods=b"\x01\x40"), "null", ILLEGAL_PARAMETER),
        ):
            self.refused(data, rule, number)

    def test_cut_off(self):
        """A hello that ends in its middle, and says so, whatever comes behind it."""
        whole = body(sni(b"a"), alpn(b"h2"))
        least = len(body())
        for size in range(len(whole)):
            cut = records(message(whole[:size]))
            with self.subTest(size=size):
                if size == least:
                    self.assertIsInstance(outcome([cut]), Matched)
                    continue
                answer = outcome([cut])
                self.assertIsInstance(answer, Malformed)
                self.assertEqual(answer.alert, DECODE_ERROR)
                self.assertEqual(outcome([cut + records(whole)]), answer)

    def test_every_length_off(self):
        """Each byte of each length, one more and one less: refused, or waited for."""
        data = hello(sni(b"a"), alpn(b"h2"), versions(0x0304), session=b"s")
        of_lists = (45, 46, 55, 56, 59, 60, 61, 62, 64, 65, 69, 70, 71, 72, 78, 79)
        for at in (3, 4, 6, 7, 8, 43, 53, 73, 80, *of_lists):
            for step in (-1, 1):
                wrong = bytearray(data)
                wrong[at] = (wrong[at] + step) & 255
                with self.subTest(at=at, step=step):
                    answer = outcome([bytes(wrong)])
                    self.assertTrue(answer is NEED_MORE or isinstance(answer, Malformed), answer)


def named(name):
    return hello(sni(name))


class AlertTests(SynchronousTestCase):
    def test_bytes(self):
        self.assertEqual(alert(UNRECOGNIZED_NAME), b"\x15\x03\x01\x00\x02\x02\x70")

    def test_no_number(self):
        for number in (-1, 256):
            self.assertRaises(ValueError, alert, number)
