"""proxykit.errors: what an error carries, and how it reads."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.errors import ConfigError, ProxyError, Retry, Side, nobody, refusal


class ProxyErrorTests(SynchronousTestCase):
    def test_carries(self):
        error = ProxyError("connect failed", side=Side.UPSTREAM, retry=Retry.ALWAYS, status=502)
        self.assertEqual(str(error), "connect failed")
        self.assertEqual(
            (error.message, error.side, error.retry, error.status),
            ("connect failed", Side.UPSTREAM, Retry.ALWAYS, 502),
        )

    def test_kind(self):
        """The error type of RFC 9209; without one it is our own fault."""
        for kind in ({}, {"kind": "connection_refused"}):
            error = ProxyError("no", side=Side.PROXY, retry=Retry.NEVER, status=500, **kind)
            self.assertEqual(error.kind, kind.get("kind", "proxy_internal_error"))

    def test_names(self):
        """They are written to logs and metrics, so they stay."""
        self.assertEqual([side.value for side in Side], ["client", "upstream", "proxy"])
        found = [retry.value for retry in Retry]
        self.assertEqual(found, ["never", "always", "reused-only", "other-port"])


class OwnTests(SynchronousTestCase):
    """The errors that are proxykit's own: no other try is made after them."""

    def seen(self, error):
        self.assertEqual((error.side, error.retry), (Side.PROXY, Retry.NEVER))
        return error.message, error.status, error.kind

    def test_refusal(self):
        """Mostly there is no room."""
        self.assertEqual(self.seen(refusal("no")), ("no", 503, "connection_limit_reached"))
        self.assertEqual(
            self.seen(refusal("oops", 500, "proxy_internal_error")),
            ("oops", 500, "proxy_internal_error"),
        )

    def test_nobody(self):
        self.assertEqual(
            self.seen(nobody("web")),
            ("no backend of cluster web is up", 503, "destination_unavailable"),
        )


class ConfigErrorTests(SynchronousTestCase):
    def test_lines(self):
        for lines, text in (((), ""), (("a:1: b",), "a:1: b"), (("a", "b"), "a\nb")):
            error = ConfigError(iter(lines))
            self.assertEqual((error.lines, str(error)), (lines, text))
