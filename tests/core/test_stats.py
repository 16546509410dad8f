"""Counting."""

import json

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.stats import LATENCY, SECONDS, Answers, Hellos, Histogram, Relayed, Requests


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
        self.assertEqual(relayed.snapshot()["own"], {})
        relayed.relayed += 2
        relayed.end("client closed", 10, 200, 0.004)
        relayed.end("client closed", 1, 2, 7000)
        relayed.end("idle timeout", 0, 0, 600)
        relayed.refused += 1
        snapshot = relayed.snapshot()
        self.assertEqual(snapshot["ended"], {"client closed": 2, "idle timeout": 1})
        self.assertEqual(
            (snapshot["bytes_up"], snapshot["bytes_down"], snapshot["refused"]), (11, 202, 1)
        )
        self.assertEqual(snapshot["own"], {"opaque": 2})
        buckets = snapshot["seconds"]["buckets"]
        self.assertEqual((buckets["0.005"], buckets["600"], buckets["+Inf"]), (1, 1, 1))
        self.assertEqual(len(buckets), len(SECONDS) + 1)


class HellosTests(SynchronousTestCase):
    def test_counts(self):
        hellos = Hellos()
        self.assertEqual(hellos.snapshot(), {"refused": {}, "handed_over": 0})
        for reason in ("late", "no name", "late"):
            hellos.count(reason)
        hellos.handed_over += 1
        self.assertEqual(
            hellos.snapshot(), {"refused": {"late": 2, "no name": 1}, "handed_over": 1}
        )


class RequestsTests(SynchronousTestCase):
    def test_nothing(self):
        """What has not happened is not listed."""
        self.assertEqual(
            Requests().snapshot(),
            {
                "requests": 0,
                "statuses": {},
                "reused": 0,
                "repeated": 0,
                "refused": {},
                "failed": {},
                "bytes_up": 0,
                "bytes_down": 0,
                "seconds": {"buckets": {**dict.fromkeys(map("{:g}".format, SECONDS), 0), "+Inf": 0},
                            "sum": 0.0},
            },
        )  # fmt: skip

    def test_counts(self):
        requests = Requests()
        for status in (200, 204, 304, 404, 502, 503, 599, 0):
            requests.statuses[status // 100] += 1
        for text in ("no bare CR", "one Host", "no bare CR"):
            requests.count(requests.refused, text)
        requests.count(requests.failed, "connection_refused")
        requests.reused, requests.repeated = 5, 1
        requests.bytes_up, requests.bytes_down = 10, 2000
        requests.seconds.observe(0.25)
        shown = requests.snapshot()
        self.assertEqual(shown["requests"], 8)
        self.assertEqual(shown["statuses"], {"none": 1, "2xx": 2, "3xx": 1, "4xx": 1, "5xx": 3})
        self.assertEqual(shown["refused"], {"no bare CR": 2, "one Host": 1})
        self.assertEqual(shown["failed"], {"connection_refused": 1})
        self.assertEqual((shown["reused"], shown["repeated"]), (5, 1))
        self.assertEqual((shown["bytes_up"], shown["bytes_down"]), (10, 2000))
        self.assertEqual((shown["seconds"]["buckets"]["0.5"], shown["seconds"]["sum"]), (1, 0.25))
        json.dumps(shown)

    def test_snapshot_is_a_copy(self):
        """It does not change while somebody looks at it."""
        requests = Requests()
        shown = requests.snapshot()
        for counts in (requests.refused, requests.failed):
            requests.count(counts, "x")
        self.assertEqual((shown["refused"], shown["failed"]), ({}, {}))


class AnswersTests(SynchronousTestCase):
    def test_answered(self):
        answers = Answers()
        for status, seconds in ((200, 0.0005), (204, 0.0006), (503, 0.2), (101, 31.0)):
            answers.answered(status, seconds)
        self.assertEqual(answers.statuses, [0, 1, 2, 0, 0, 1, 0, 0, 0, 0])
        same = Histogram(LATENCY)
        for seconds in (0.0005, 0.0006, 0.2, 31.0):
            same.observe(seconds)
        self.assertEqual(answers.latency.snapshot(), same.snapshot())
        self.assertEqual(sum(same.counts[1:-1]) + 2, 4)
