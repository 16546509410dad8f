"""What is counted is not lost, nor does it ever go down, when a configuration is applied again."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from proxykit.model import Backend, Cluster, Config, Listener
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.metrics import render
from tests.http_sockets import HttpClient, answer, start_origin
from tests.ops.reloading import ReloadCase
from tests.ops.test_metrics import samples
from tests.sockets import connect, start_backend, until


class ListenerTests(ReloadCase):
    def found(self, name: str) -> Any:
        return samples(render(self.service)).get(f"proxykit_listener_{name}", {})

    async def test_requests(self) -> None:
        origin = await start_origin(self, [answer(b"hello")])
        config = Config((self.http(),), (Cluster("web", (Backend(origin.address),)),))
        self.start(config)
        client = await connect(self, self.port("front"), HttpClient())
        await client.get()
        self.service.apply(evolve(config, listeners=(self.http(max_connections=7),)))
        self.assertEqual(self.found("connections_limit"), {("front",): 7})
        self.assertEqual(self.found("requests_total"), {("2xx", "front"): 1})
        another = await connect(self, self.port("front"), HttpClient())
        await another.get()
        self.assertEqual(self.found("requests_total"), {("2xx", "front"): 2})
        self.assertEqual(self.found("request_duration_seconds_count"), {("front",): 2})

    async def test_relayed(self) -> None:
        """Who is still served by the former settings is counted, too."""
        backend = await start_backend(self)
        config = Config((self.tcp(),), (Cluster("web", (Backend(backend.address),)),))
        self.start(config)
        client = await connect(self, self.port("raw"))
        served = await backend.accepted()
        changed = evolve(self.tcp(), settings=TcpSettings(idle_timeout=5.0))
        self.service.apply(evolve(config, listeners=(changed,)))
        client.send(b"12345")
        await served.got(b"12345")
        client.reset()
        await until(lambda: not self.connections())
        self.assertEqual(self.found("ended_total"), {("raw", "client reset"): 1})
        self.assertEqual(self.found("bytes_total")["up", "raw"], 5)
        self.assertEqual(self.found("relayed_total"), {("raw",): 1})

    async def test_one_that_is_removed(self) -> None:
        """It has no series any more; its connections are counted while they last."""
        backend = await start_backend(self)
        config = Config(
            (self.tcp(), self.tcp("other")), (Cluster("web", (Backend(backend.address),)),)
        )
        self.start(config)
        client = await connect(self, self.port("raw"))
        await backend.accepted()
        self.service.apply(evolve(config, listeners=(self.tcp("other"),)))
        found = samples(render(self.service))
        self.assertEqual(found["proxykit_leaving_connections"], {(): 1})
        self.assertEqual(found["proxykit_listener_connections"], {("other",): 0})
        client.reset()
        await until(lambda: not self.connections())
        self.assertEqual(samples(render(self.service))["proxykit_leaving_connections"], {(): 0})

    async def test_hellos(self) -> None:
        backend = await start_backend(self)
        sni = Listener("raw", self.place(), "sni", "web", settings=SniSettings())
        config = Config((sni,), (Cluster("web", (Backend(backend.address),)),))
        self.start(config)
        client = await connect(self, self.port("raw"))
        client.send(b"this is not TLS")
        await until(lambda: sum(self.found("refused_total").values()))
        before = self.found("refused_total")
        self.assertEqual(sum(before.values()), 1)
        self.service.apply(evolve(config, listeners=(evolve(sni, max_connections=7),)))
        self.assertEqual(self.found("refused_total"), before)
        # Another mode counts other things.
        self.service.apply(evolve(config, listeners=(self.tcp(),)))
        self.assertEqual(self.found("refused_total"), {("raw", "no upstream"): 0})
        self.assertEqual(self.found("accepted_total"), {("raw",): 1})

    async def test_headers(self) -> None:
        """Who was not let in."""
        backend = await start_backend(self)
        first = self.tcp(proxy_protocol=True, trust=("10.0.0.0/8",))
        config = Config((first,), (Cluster("web", (Backend(backend.address),)),))
        self.start(config)
        await connect(self, self.port("raw"))
        await until(lambda: sum(self.found("refused_total").values()))
        before = self.found("refused_total")
        self.assertEqual(before["raw", "not trusted"], 1)
        self.service.apply(evolve(config, listeners=(evolve(first, proxy_timeout=1.0),)))
        self.assertEqual(self.found("refused_total"), before)
