"""What Prometheus and its own tool say: of real scrapes, of the alert rules, and the dashboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import TestCase

from proxykit import __version__
from tests.interop import programs
from tests.ops.test_metrics import samples
from tests.ops.test_metrics_examples import EXAMPLES, expressions

_CONFIG = """
[admin]
listen = "tcp:{admin}:interface=127.0.0.1"

[clusters.web]
backends = ["127.0.0.1:{origin}", {{ address = "127.0.0.1:{closed}", backup = true }}]
[clusters.web.health]
interval = 0.1

[[listeners]]
name = "front"
listen = "tcp:{http}:interface=127.0.0.1"
mode = "http"
cluster = "web"

[[listeners]]
name = "raw"
listen = "tcp:{tcp}:interface=127.0.0.1"
mode = "tcp"
cluster = "web"

[[listeners]]
name = "names"
listen = "tcp:{sni}:interface=127.0.0.1"
mode = "sni"
cluster = "web"
"""
_NGINX = 'server { listen 127.0.0.1:PORT; location / { return 200 "hello"; } }'


class ScrapeTests(TestCase):
    skip = programs.TWICE

    @inlineCallbacks
    def start(self) -> Any:
        """A service with a listener of each mode; gives the ports by their names."""
        names = ("admin", "origin", "closed", "http", "tcp", "sni")
        ports = {name: programs.free_port() for name in names}
        yield programs.nginx(self, _NGINX.replace("PORT", str(ports["origin"])))
        config = Path(self.mktemp())
        config.write_text(_CONFIG.format(**ports))
        yield programs.service(
            self, ["--config", str(config.resolve())], ready=r"admin: listening on"
        )
        return ports

    @inlineCallbacks
    def scrape(self, ports: dict[str, int], accept: str) -> Any:
        """The file that a scrape is in."""
        found = Path(self.mktemp())
        status, printed = yield programs.run(
            self,
            [
                programs.require("curl"),
                "-sSf",
                "-H",
                f"Accept: {accept}",
                "-o",
                str(found),
                f"http://127.0.0.1:{ports['admin']}/metrics",
            ],
        )
        self.assertEqual(status, 0, printed)
        return found

    @inlineCallbacks
    def test_scrape(self) -> Any:
        """Under traffic of every kind it has nothing to say against it."""
        promtool, curl = programs.require("promtool"), programs.require("curl")
        ports = yield self.start()
        load = programs.Child.start(
            self,
            [programs.require("wrk"), "-t1", "-c8", "-d2", f"http://127.0.0.1:{ports['http']}/"],
        )
        for mode, argument in (("http", "-s"), ("tcp", "-s"), ("sni", "-sk")):
            scheme = "https" if mode == "sni" else "http"
            yield programs.run(self, [curl, argument, f"{scheme}://127.0.0.1:{ports[mode]}/"])
        during = yield self.scrape(ports, "text/plain")
        yield load.ended()
        after = yield self.scrape(ports, "text/plain")
        for scraped in (during, after):
            # It reads what it is to check from its input.
            checking = ["/bin/sh", "-c", 'exec "$0" check metrics <"$1"', promtool, str(scraped)]
            status, printed = yield programs.run(self, checking)
            self.assertEqual((status, printed), (0, ""))
        found = samples(after.read_bytes())
        self.assertGreater(found["proxykit_listener_requests_total"]["2xx", "front"], 8)
        self.assertEqual(found["proxykit_listener_accepted_total"]["raw",], 1)
        self.assertEqual(sum(found["proxykit_listener_refused_total"].values()), 0)
        self.assertEqual(found["proxykit_listener_accepted_total"]["names",], 1)
        self.assertGreater(found["proxykit_pool_reused_total"]["web",], 0)
        self.assertGreater(found["proxykit_loop_lag_seconds_count"][()], 0)
        earlier = samples(during.read_bytes())
        for name in (name for name in earlier if name.endswith(("_total", "_bucket", "_count"))):
            for labels, count in earlier[name].items():
                self.assertGreaterEqual(found[name][labels], count, (name, labels))

    @inlineCallbacks
    def test_prometheus(self) -> Any:
        """It finds the service as the example says, in the format that it likes best."""
        ports = yield self.start()
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        config = (EXAMPLES / "prometheus.yml").read_text()
        for before, after in (
            ("127.0.0.1:9901", f"127.0.0.1:{ports['admin']}"),
            ("scrape_interval: 15s", "scrape_interval: 100ms"),
        ):
            self.assertIn(before, config)
            config = config.replace(before, after)
        (directory / "prometheus.yml").write_text(config)
        (directory / "alerts.yml").write_bytes((EXAMPLES / "alerts.yml").read_bytes())
        port = programs.free_port()
        prometheus = programs.Child.start(
            self,
            [
                programs.require("prometheus"),
                "--config.file=prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=directory,
        )
        yield prometheus.wait_for("Server is ready")
        query = "proxykit_build_info and on (instance) up == 1"
        url = f"http://127.0.0.1:{port}/api/v1/query"
        asking = [programs.require("curl"), "-sS", url, "--data-urlencode", f"query={query}"]
        found: list[Any] = []
        given_up = reactor.seconds() + programs.DEADLINE
        while not found:
            self.assertLess(reactor.seconds(), given_up, prometheus.output)
            _, printed = yield programs.run(self, asking)
            found = json.loads(printed)["data"]["result"]
        (sample,) = found
        self.assertEqual(sample["value"][1], "1")
        self.assertEqual(sample["metric"]["version"], __version__)
        self.assertNotIn("level=error", prometheus.output)


class RulesTests(TestCase):
    skip = programs.TWICE

    @inlineCallbacks
    def promtool(self, *arguments: str) -> Any:
        """What it says; it must not complain."""
        status, printed = yield programs.run(
            self, [programs.require("promtool"), *arguments], cwd=EXAMPLES
        )
        self.assertEqual(status, 0, printed)
        return printed

    @inlineCallbacks
    def test_alerts(self) -> Any:
        printed = yield self.promtool("check", "rules", "alerts.yml")
        self.assertIn("SUCCESS", printed)

    @inlineCallbacks
    def test_when_they_fire(self) -> Any:
        printed = yield self.promtool("test", "rules", "alerts_test.yml")
        self.assertIn("SUCCESS", printed)

    @inlineCallbacks
    def test_configuration(self) -> Any:
        printed = yield self.promtool("check", "config", "prometheus.yml")
        self.assertIn("SUCCESS", printed)

    @inlineCallbacks
    def test_dashboard(self) -> Any:
        """Each of its queries is one."""
        rules = Path(self.mktemp()).resolve()
        queries = [each for each in expressions() if not each.startswith("label_values(")]
        with rules.open("w") as file:
            file.write("groups: [{name: queries, rules: [\n")
            for number, query in enumerate(queries):
                expression = json.dumps(query.replace("$__rate_interval", "1m"))
                file.write(f"{{record: q{number}, expr: {expression}}},\n")
            file.write("]}]\n")
        printed = yield self.promtool("check", "rules", str(rules))
        self.assertIn(f"{len(queries)} rules found", printed)
