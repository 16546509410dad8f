"""proxykit.ops.metrics: what a scrape is, of services under traffic."""

from __future__ import annotations

import gc
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_format
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxykit import __version__
from proxykit.model import Address, Backend, Cluster, Config, Listener
from proxykit.modes.tcp import TcpSettings
from proxykit.ops import metrics
from proxykit.ops.metric_names import FAMILIES
from proxykit.ops.metrics import CONTENT_TYPE, Metrics, render
from proxykit.ops.service import ProxyService
from tests.http_sockets import RESET, answer, start_http, start_origin
from tests.sockets import HOST, TIMEOUT, start_backend, start_proxy, until

OPEN = "application/openmetrics-text;version=1.0.0"


def samples(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """Numbers by the names of samples and the values of their labels, in the labels' order."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_format(text.decode()):
        for sample in family.samples:
            values = tuple(value for _, value in sorted(sample.labels.items()))
            of_name = found.setdefault(sample.name, {})
            assert values not in of_name, (sample.name, values)
            of_name[values] = sample.value
    return found


def service(backends: int = 1) -> ProxyService:
    """One that is not started."""
    made = ProxyService(Clock())
    addresses = (Address("127.0.0.1", 1000 + number) for number in range(backends))
    made.apply(
        Config(
            (Listener("front", "tcp:0", "tcp", "web", 100, TcpSettings()),),
            (Cluster("web", tuple(map(Backend, addresses))),),
        )
    )
    return made


class TrafficTests(TestCase):
    timeout = TIMEOUT

    async def test_requests(self) -> None:
        origin = await start_origin(self, [answer(b"hello"), answer(b"", status=404)], [RESET])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        await client.get("/a")
        await client.get("/b")
        client.send(b"NONSENSE\r\n\r\n")
        await client.response()
        client.close()
        await until(lambda: not proxy.listener.connections)
        found = samples(render(proxy.service))
        where = str(origin.address)
        self.assertEqual(found["proxykit_listener_accepted_total"], {("front",): 1})
        requests = found["proxykit_listener_requests_total"]
        self.assertEqual(requests["2xx", "front"], 1)
        self.assertEqual(requests["4xx", "front"], 2)
        self.assertEqual(sum(found["proxykit_listener_malformed_total"].values()), 1)
        self.assertEqual(found["proxykit_listener_bytes_total"]["down", "front"], 5)
        durations = found["proxykit_listener_request_duration_seconds_bucket"]
        self.assertEqual(durations["+Inf", "front"], 2)
        self.assertNotIn("proxykit_listener_connection_duration_seconds_count", found)
        answers = found["proxykit_cluster_answers_total"]
        self.assertEqual((answers["web", "2xx"], answers["web", "4xx"]), (1, 1))
        self.assertEqual(found["proxykit_cluster_answer_latency_seconds_count"]["web",], 2)
        self.assertEqual(found["proxykit_pool_opened_total"], {("web", "none-idle"): 1})
        self.assertEqual(found["proxykit_pool_reused_total"], {("web",): 1})
        self.assertEqual(found["proxykit_listener_reused_total"], {("front",): 1})
        self.assertEqual(found["proxykit_backend_up"], {(where, "web"): 1})
        self.assertEqual(found["proxykit_backend_connections"], {(where, "web"): 1})
        self.assertEqual(found["proxykit_cluster_served_total"], {("web",): 2})

    async def test_relayed(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        first = await proxy.connect()
        await proxy.side()
        first.send(b"up")
        await until(lambda: next(iter(proxy.listener.connections.values())).received == 2)
        found = samples(render(proxy.service))
        way = (str(backend.address), "tcp", HOST)
        self.assertEqual(found["proxykit_budget_ports"][*way, "active"], 1)
        self.assertEqual(found["proxykit_listener_connections"], {("front",): 1})
        first.reset()
        await until(lambda: not proxy.listener.connections)
        found = samples(render(proxy.service))
        self.assertEqual(found["proxykit_listener_ended_total"], {("front", "client reset"): 1})
        self.assertEqual(found["proxykit_listener_bytes_total"]["up", "front"], 2)
        self.assertEqual(found["proxykit_listener_relayed_total"], {("front",): 1})
        self.assertEqual(
            found["proxykit_listener_connection_duration_seconds_count"], {("front",): 1}
        )
        self.assertEqual(found["proxykit_budget_ports"][*way, "active"], 0)
        self.assertEqual(found["proxykit_budget_forecast_seconds"][way], float("inf"))


class ScrapeTests(SynchronousTestCase):
    def test_service(self) -> None:
        """What is of no listener and no cluster."""
        proxy = service()
        proxy.lag.lateness.observe(0.3)
        found = samples(render(proxy))
        ((_, _, version),) = found["proxykit_build_info"]
        self.assertEqual(version, __version__)
        self.assertEqual(found["proxykit_start_time_seconds"], {(): 0})
        self.assertEqual(found["proxykit_draining"], {(): 0})
        lag = found["proxykit_loop_lag_seconds_bucket"]
        self.assertEqual((lag["0.25",], lag["0.5",], lag["+Inf",]), (0, 1, 1))
        self.assertEqual(found["proxykit_loop_lag_seconds_sum"], {(): 0.3})
        for name in ("process_open_fds", "process_max_fds", "python_gc_collections_total"):
            self.assertIn(name, found)

    def test_both_formats(self) -> None:
        """The same is in both, and a strict reader takes either."""
        proxy = service(3)
        kinds = {}
        for accept, parse in (("", text_format), (OPEN, open_metrics)):
            made = Metrics(proxy, Clock())
            text, kind = self.successResultOf(made.scrape(accept))
            kinds[accept] = kind
            found = {
                (sample.name, tuple(sorted(sample.labels.items())))
                for family in parse(text.decode())
                if family.name.startswith("proxykit")
                for sample in family.samples
            }
            kinds[accept] = (kind.partition(";")[0], found)
        self.assertEqual(kinds[""][0], "text/plain")
        self.assertEqual(kinds[OPEN][0], "application/openmetrics-text")
        self.assertEqual(kinds[""][1], kinds[OPEN][1])
        self.assertEqual(self.successResultOf(Metrics(proxy, Clock()).scrape())[1], CONTENT_TYPE)

    def test_kinds(self) -> None:
        """Each family is of the kind, and has the help, that its name in the list says."""
        said = {family.name: family for family in FAMILIES}
        for family in text_format(render(service()).decode()):
            if family.name.startswith("proxykit"):
                name = family.name + ("_total" if family.type == "counter" else "")
                kind = "gauge" if said[name].kind == "info" else said[name].kind
                self.assertEqual((family.type, family.documentation), (kind, said[name].help))

    def test_two_services(self) -> None:
        """In one process: neither knows of the other."""
        one, two = service(1), service(2)
        for proxy, count in ((one, 1), (two, 2), (one, 1)):
            found = samples(render(proxy))
            self.assertEqual(len(found["proxykit_backend_up"]), count)

    def test_who_has_left(self) -> None:
        """Its series are gone, and what it had counted is still in the cluster's."""
        proxy = service(2)
        web = proxy.registry.cluster("web")
        first, second = web.backends.values()
        first.served, second.served, first.closed_first["reset"] = 5, 1, 4
        first.standing.ejections = 2
        before = samples(render(proxy))
        web.remove(first.address)
        after = samples(render(proxy))
        self.assertEqual(list(after["proxykit_backend_up"]), [(str(second.address), "web")])
        for name in ("served", "failures", "ejections", "closed_first"):
            family = f"proxykit_cluster_{name}_total"
            self.assertEqual(after[family], before[family])
        self.assertEqual(after["proxykit_cluster_served_total"], {("web",): 6})
        self.assertEqual(after["proxykit_cluster_ejections_total"], {("web",): 2})


class SpreadTests(SynchronousTestCase):
    """A long scrape is not done in one go."""

    def setUp(self) -> None:
        self.patch(metrics, "SLICE", 50)
        self.clock = Clock()
        self.service = service(20)
        self.metrics = Metrics(self.service, self.clock)

    def finish(self) -> int:
        """How many turns there are until nothing is to be done."""
        turns = 0
        while self.clock.getDelayedCalls():
            calls, self.clock.calls = self.clock.calls, []
            for call in calls:
                self.assertEqual(call.getTime(), self.clock.seconds())
                call.func(*call.args)
            turns += 1
        return turns

    def test_turns(self) -> None:
        """It is the same text, with no family twice, and none of the turns has much to do."""
        for accept in ("", OPEN):
            self.assertEqual(self.clock.getDelayedCalls(), [])
            answer = self.metrics.scrape(accept)
            self.assertNoResult(answer)
            turns = self.finish()
            text, _ = self.successResultOf(answer)
            lines = text.decode().splitlines()
            count = sum(not line.startswith("#") for line in lines)
            self.assertGreaterEqual(turns, count // 150)
            types = [line for line in lines if line.startswith("# TYPE")]
            self.assertEqual(len(set(types)), len(types))
            (list(open_metrics(text.decode())) if accept else samples(text))
        with_backends = samples(self.successResultOf(self.metrics.scrape())[0])
        self.assertEqual(len(with_backends["proxykit_backend_up"]), 20)
        self.assertEqual(len(with_backends["proxykit_budget_ports"]), 100)

    def test_no_garbage_is_collected(self) -> None:
        """While there is none; afterwards it is as it was before, whatever happens."""

        class Looking(Collector):
            def collect(self) -> Any:
                seen.append(gc.isenabled())
                return []

        self.addCleanup(gc.enable)
        for before in (True, False):
            seen: list[bool] = []
            (gc.enable if before else gc.disable)()
            made = Metrics(self.service, self.clock)
            made.registry.register(Looking())
            made.scrape()
            self.assertEqual(gc.isenabled(), before)
            self.finish()
            self.assertEqual((gc.isenabled(), seen), (before, [False]))

    def test_together(self) -> None:
        """Who asks while it is being written gets the same; and so does who asks soon after."""
        answers = [self.metrics.scrape() for _ in range(3)]
        other = self.metrics.scrape(OPEN)
        self.finish()
        texts = [self.successResultOf(each)[0] for each in answers]
        self.assertNotEqual(self.successResultOf(other)[0], texts[0])
        self.assertIs(texts[0], texts[2])
        self.clock.advance(0.9)
        self.assertIs(self.successResultOf(self.metrics.scrape())[0], texts[0])
        self.clock.advance(0.1)
        self.assertNoResult(self.metrics.scrape())

    def test_somebody_raises(self) -> None:
        """All that wait are told, and the next scrape begins anew."""

        class Broken(Collector):
            wrong = True

            def collect(self) -> Any:
                if self.wrong:
                    raise ValueError("no figures")
                return []

        broken = Broken()
        self.metrics.registry.register(broken)
        answers: list[Deferred[Any]] = [self.metrics.scrape() for _ in range(2)]
        self.finish()
        for each in answers:
            self.failureResultOf(each, ValueError)
        broken.wrong = False
        answer = self.metrics.scrape()
        self.finish()
        self.successResultOf(answer)
