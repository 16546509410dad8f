"""proxykit.errors: what an error carries, and how it reads."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.errors import ConfigError, ProxyError, Retry, Side


class ProxyErrorTests(SynchronousTestCase):
    def test_carries(self):
        error = ProxyError("connect failed", side=Side.UPSTREAM, retry=Retry.ALWAYS, status=502)
        self.assertEqual(str(error), "connect failed")
        self.assertEqual(
            (error.message, error.side, error.retry, error.status),
            ("connect failed", Side.UPSTREAM, Retry.ALWAYS, 502),
        )

    def test_names(self):
        """They are written to logs and metrics, so they stay."""
        self.assertEqual([side.value for side in Side], ["client", "upstream", "proxy"])
        self.assertEqual([retry.value for retry in Retry], ["never", "always", "reused-only"])


class ConfigErrorTests(SynchronousTestCase):
    def test_lines(self):
        for lines, text in (((), ""), (("a:1: b",), "a:1: b"), (("a", "b"), "a\nb")):
            error = ConfigError(iter(lines))
            self.assertEqual((error.lines, str(error)), (lines, text))
