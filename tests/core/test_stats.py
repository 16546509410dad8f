"""Counting."""

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.stats import SECONDS, Histogram, Relayed


class HistogramTests(SynchronousTestCase):
    def test_buckets(self):
        """A bound belongs to the bucket below it; what is beyond the last goes into one more."""
        histogram = Histogram((1.0, 2.5))
        for value in (0.0, 1.0, 1.1, 2.5, 2.6, 100.0):
            histogram.observe(value)
        self.assertEqual(
            histogram.snapshot(), {"buckets": {"1": 2, "2.5": 2, "+Inf": 2}, "sum": 107.2}
        )


class RelayedTests(SynchronousTestCase):
    def test_counts(self):
        relayed = Relayed()
        relayed.end("client closed", 10, 200, 0.004)
        relayed.end("client closed", 1, 2, 7000)
        relayed.end("idle timeout", 0, 0, 600)
        relayed.refused += 1
        snapshot = relayed.snapshot()
        self.assertEqual(snapshot["ended"], {"client closed": 2, "idle timeout": 1})
        self.assertEqual(
            (snapshot["bytes_up"], snapshot["bytes_down"], snapshot["refused"]), (11, 202, 1)
        )
        buckets = snapshot["seconds"]["buckets"]
        self.assertEqual((buckets["0.005"], buckets["600"], buckets["+Inf"]), (1, 1, 1))
        self.assertEqual(len(buckets), len(SECONDS) + 1)
