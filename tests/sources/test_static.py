"""proxykit.sources.static: names to addresses."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from proxykit.sources.static import resolve


def answer(family, *at):
    return (family, socket.SOCK_STREAM, 6, "", at)


class ResolveTests(SynchronousTestCase):
    def fake(self, result):
        def getaddrinfo(host, port, **options):
            self.assertEqual(
                (host, port, options), ("web.test", None, {"type": socket.SOCK_STREAM})
            )
            return result

        self.patch(socket, "getaddrinfo", getaddrinfo)

    def test_order_and_duplicates(self):
        self.fake(
            [
                answer(socket.AF_INET6, "2001:db8::1", 0, 0, 0),
                answer(socket.AF_INET, "10.0.0.2", 0),
                answer(socket.AF_INET, "10.0.0.1", 0),
                answer(socket.AF_INET, "10.0.0.2", 0),
                answer(socket.AF_UNIX, "/no"),
            ]
        )
        self.assertEqual(resolve("web.test"), ["2001:db8::1", "10.0.0.2", "10.0.0.1"])

    def test_fails(self):
        def getaddrinfo(*args, **options):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        self.patch(socket, "getaddrinfo", getaddrinfo)
        error = self.assertRaises(OSError, resolve, "nohost.invalid")
        self.assertEqual(error.strerror, "Name or service not known")

    def test_no_host_name(self):
        """What cannot be encoded as a host name is a failed lookup, and asks nobody."""
        for host in ("a..b", "a" * 64 + ".test"):
            with self.subTest(host):
                error = self.assertRaises(OSError, resolve, host)
                self.assertIn("it is no host name", str(error))

    def test_literal(self):
        self.assertEqual(resolve("127.0.0.1"), ["127.0.0.1"])
        self.assertEqual(resolve("::1"), ["::1"])
