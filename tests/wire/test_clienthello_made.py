"""proxykit.wire.clienthello with hellos of real programs: Python's ssl, and what was recorded."""

from __future__ import annotations

import ssl
import warnings

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.clienthello import Hello, Matched
from tests.wire.hellos import outcome, outcome_of_all, recorded, records

BOTH = ("h2", "http/1.1")
TLS_1_2 = (0x0303,)
TLS_1_3 = (0x0304, 0x0303)
ALL = (0x0304, 0x0303, 0x0302, 0x0301)

#: What each program was asked for is what has to come out.
RECORDED = {
    "openssl-tls10": Hello("www.example", (), (0x0301,), False),
    "openssl-tls11": Hello("www.example", (), (0x0302,), False),
    "openssl-tls12-alpn": Hello("www.example", BOTH, TLS_1_2, False),
    "openssl-tls13": Hello("www.example", (), (0x0304,), False),
    "openssl-noservername": Hello(None, (), ALL, False),
    "openssl-address": Hello(None, (), ALL, False),
    # Of 512 bytes, as ``-max_send_frag 512`` has it.
    "openssl-split-records": Hello("www.example", (*BOTH, *4 * ("x" * 250,)), ALL, False),
    "curl": Hello("www.example", BOTH, ALL, False),
    "curl-http1": Hello("www.example", ("http/1.1",), ALL, False),
    "chromium": Hello("www.example", BOTH, TLS_1_3, True),
}


class PythonTests(SynchronousTestCase):
    def hello(self, name, *protocols, low=None, high=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            # Of old versions.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = low or ssl.TLSVersion.TLSv1_2
            context.maximum_version = high or ssl.TLSVersion.TLSv1_3
        if protocols:
            context.set_alpn_protocols(protocols)
        outgoing = ssl.MemoryBIO()
        client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
        self.assertRaises(ssl.SSLWantReadError, client.do_handshake)
        return outgoing.read()

    def test_versions(self):
        known = ssl.TLSVersion
        for low, high, found in (
            (known.TLSv1, known.TLSv1, (0x0301,)),
            (known.TLSv1_1, known.TLSv1_1, (0x0302,)),
            (known.TLSv1_2, known.TLSv1_2, (0x0303,)),
            (known.TLSv1_3, known.TLSv1_3, (0x0304,)),
            # The highest is all that is said before 1.3.
            (known.TLSv1, known.TLSv1_2, (0x0303,)),
            (known.TLSv1, known.TLSv1_3, ALL),
        ):
            with self.subTest(low=low, high=high):
                data = self.hello("A.Example", "h2", low=low, high=high)
                self.assertEqual(
                    outcome_of_all(self, data), Matched(Hello("a.example", ("h2",), found, False))
                )

    def test_names(self):
        for name, found in (
            (None, None),
            ("A.Example", "a.example"),
            ("192.0.2.1", None),
            ("::1", None),
            ("b\xfccher.example", "xn--bcher-kva.example"),
        ):
            with self.subTest(name=name):
                self.assertEqual(
                    outcome([self.hello(name)]), Matched(Hello(found, (), TLS_1_3, False))
                )

    def test_large(self):
        """By its ALPN list, over several records of OpenSSL's own making."""
        protocols = [f"{number:0255}" for number in range(100)]
        data = self.hello("www.example", *protocols)
        self.assertGreater(len(data), 20000)
        self.assertEqual(
            outcome([data]), Matched(Hello("www.example", tuple(protocols), TLS_1_3, False))
        )


class RecordedTests(SynchronousTestCase):
    def test_each(self):
        found = recorded()
        self.assertEqual(sorted(found), sorted(RECORDED))
        for name, data in found.items():
            with self.subTest(name=name):
                self.assertEqual(outcome_of_all(self, data), Matched(RECORDED[name]))

    def test_in_small_records(self):
        for name, data in recorded().items():
            # One of them is in several records already.
            if len(data) != 5 + int.from_bytes(data[3:5], "big"):
                continue
            for size in (1, 2, 3, 5, 64, 255):
                with self.subTest(name=name, size=size):
                    self.assertEqual(outcome([records(data[5:], size)]), Matched(RECORDED[name]))
