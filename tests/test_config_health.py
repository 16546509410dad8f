"""Health in a configuration: every key, its default, and every mistake in one."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from proxykit import config
from proxykit.errors import ConfigError
from proxykit.model import Cluster
from proxykit.upkeep import Eject, Health

WEB = "[clusters.web]\nbackends = ['10.0.0.1:80']\n"
FRONT = "[[listeners]]\nlisten = 'tcp:8080'\nmode = 'http'\ncluster = 'web'\n"
HEALTH = "[clusters.web.health]\n"
EJECT = "[clusters.web.eject]\n"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()

    def load(self, text: str) -> Cluster:
        Path(self.path).write_text(WEB + text + FRONT)
        (cluster,) = config.load(self.path, environ={}, resolve=lambda host: ["10.0.0.1"]).clusters
        return cluster

    def mistake(self, text: str) -> str:
        """The one line, without the file's name."""
        with self.assertRaises(ConfigError) as raised:
            self.load(text)
        (line,) = raised.exception.lines
        self.assertTrue(line.startswith(self.path + ":"), line)
        return str(line.removeprefix(self.path + ":"))


class HealthTests(Case):
    def test_defaults(self) -> None:
        cluster = self.load("")
        self.assertIsNone(cluster.health)
        self.assertEqual(cluster.eject, Eject(5, 0.0, 5, 10.0, 300.0, 0.5))
        self.assertEqual(
            (cluster.slow_start, cluster.panic, cluster.retry_budget), (10, False, 0.2)
        )
        self.assertEqual(self.load(HEALTH).health, Health("", "", "200-399", 2.0, 2.0, 2, 3, 0.1))

    def test_every_key(self) -> None:
        cluster = self.load(
            "slow_start = 0.0\npanic = true\nretry_budget = 1.0\n"
            f"{HEALTH}path = '/healthz?a=b'\nhost = 'web.example:81'\nstatus = '200-299,404'\n"
            "interval = 5.0\ntimeout = 1.5\nrise = 1\nfall = 7\njitter = 0.0\n"
            f"{EJECT}failures = 0\nslower_than = 0.5\nslow = 9\ntime = 3.0\nmax_time = 4.0\n"
            "max_share = 1.0\n"
        )
        self.assertEqual(
            cluster.health,
            Health("/healthz?a=b", "web.example:81", "200-299,404", 5.0, 1.5, 1, 7, 0.0),
        )
        self.assertEqual(cluster.eject, Eject(0, 0.5, 9, 3.0, 4.0, 1.0))
        self.assertEqual((cluster.slow_start, cluster.panic, cluster.retry_budget), (0, True, 1.0))

    def test_mistakes(self) -> None:
        for text, expected in (
            ("path = 'healthz'", "path: expected a path that begins with /"),
            ("path = '/a b'", "path: expected a path that begins with /"),
            ("path = '/\\r\\nX: y'", "path: expected a path that begins with /"),
            ("host = 'a b'", "host: expected a host such as web.internal or web.internal:81"),
            ("status = ''", 'status: expected statuses such as "200-299,404"'),
            ("status = '2xx'", 'status: expected statuses such as "200-299,404"'),
            ("status = '299-200'", 'status: expected statuses such as "200-299,404"'),
            ("interval = 0.0", "interval: expected a number of seconds above 0"),
            ("timeout = 0.0", "timeout: expected a number of seconds above 0"),
            ("rise = 0", "rise: expected a whole number, 1 or more"),
            ("fall = 0", "fall: expected a whole number, 1 or more"),
            ("jitter = 1.5", "jitter: expected a number from 0 to 1"),
        ):
            got = self.mistake(f"{HEALTH}{text.replace(chr(39), chr(34))}\n")
            self.assertTrue(got.startswith(f"4: clusters.web.health.{expected}"), got)

    def test_mistakes_about_traffic(self) -> None:
        for text, expected in (
            ("failures = -1", "failures: expected a whole number, 0 or more"),
            ("slower_than = -1.0", "slower_than: expected a number of seconds, 0 or more"),
            ("slow = 0", "slow: expected a whole number, 1 or more"),
            ("time = 0.0", "time: expected a number of seconds above 0"),
            ("max_time = 0.0", "max_time: expected a number of seconds above 0"),
            ("max_share = 1.1", "max_share: expected a number from 0 to 1"),
        ):
            got = self.mistake(f"{EJECT}{text}\n")
            self.assertTrue(got.startswith(f"4: clusters.web.eject.{expected}"), got)

    def test_mistakes_of_the_cluster(self) -> None:
        for text, expected in (
            ("slow_start = -1.0", "slow_start: expected a number of seconds, 0 or more"),
            ("panic = 1", "panic: expected"),
            ("retry_budget = 2.0", "retry_budget: expected a number from 0 to 1"),
        ):
            got = self.mistake(f"{text}\n")
            self.assertTrue(got.startswith(f"3: clusters.web.{expected}"), got)
