"""The service checks its backends: from its start to its end, and as it is configured anew."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import TestCase

from proxykit.model import Backend
from proxykit.upkeep import Eject, Health
from tests.http_sockets import HttpProxy, head, start_http, start_origin
from tests.sockets import TIMEOUT, turns, until

OK = head("Content-Length: 0")
NO = head("Content-Length: 0", status="503 Service Unavailable")
HEALTH = Health("/healthz", rise=1, fall=1, interval=4.0, jitter=0.0)


class ServiceTests(TestCase):
    """Mode http before scripted origins."""

    timeout = TIMEOUT

    async def start(self, *scripts: Any, **cluster: Any) -> HttpProxy:
        self.origin = await start_origin(self, *scripts)
        self.proxy = start_http(self, self.origin, **cluster)
        return self.proxy

    async def checked(self, count: int) -> None:
        """Let time pass until so many requests have come to the backend."""
        while len(self.origin.requests) < count:
            self.proxy.clock.advance(0.25)
            await turns()
            await until(lambda: not any(each.connections for each in self.checked_now()))

    def checked_now(self) -> list[Any]:
        """All backends of all clusters."""
        clusters = self.proxy.service.registry
        return [each for one in clusters for each in one.backends.values()]

    def states(self) -> list[Any]:
        return list(self.proxy.cluster.backends.values())

    def health(self) -> list[str]:
        return [each.snapshot()["health"] for each in self.states()]

    async def test_from_start_to_end(self) -> None:
        proxy = await self.start((NO,), (OK,), health=HEALTH)
        await self.checked(1)
        await until(lambda: self.health() == ["down"])
        client = await proxy.connect()
        answer = await client.get()
        self.assertEqual(answer.status, 503)
        self.assertIn(b"no backend of cluster web is up", answer.body)
        await self.checked(2)
        await until(lambda: self.health() == ["up"])
        self.assertEqual((await client.get()).status, 200)
        client.close()
        await proxy.service.stopService()
        count = len(self.origin.requests)
        proxy.clock.advance(60.0)
        self.assertEqual(len(self.origin.requests), count)

    async def test_configured_anew(self) -> None:
        proxy = await self.start((OK,))
        config = proxy.service.config
        (cluster,) = config.clusters
        proxy.clock.advance(10.0)
        self.assertEqual((self.health(), self.origin.requests), (["unknown"], []))
        checked = evolve(cluster, health=HEALTH)
        proxy.service.apply(evolve(config, clusters=(checked,)))
        await self.checked(1)
        await until(lambda: self.health() == ["up"])
        proxy.service.apply(evolve(config, clusters=(evolve(checked, queue=7),)))
        self.assertEqual(self.health(), ["up"])
        proxy.service.apply(config)
        self.assertEqual(self.health(), ["unknown"])

    async def test_a_cluster_comes_and_goes(self) -> None:
        proxy = await self.start((OK,))
        config = proxy.service.config
        other = evolve(config.clusters[0], name="other", health=HEALTH)
        proxy.service.apply(evolve(config, clusters=(*config.clusters, other)))
        await self.checked(1)
        proxy.service.apply(config)
        proxy.clock.advance(20.0)
        self.assertEqual(len(self.origin.requests), 1)

    async def test_ejected_by_what_it_answers(self) -> None:
        """A whole request, from a client to the end of the backend's row."""
        proxy = await self.start((NO,), eject=Eject(failures=2, max_share=1.0))
        client = await proxy.connect()
        for _ in range(2):
            answer = await client.get()
            self.assertEqual((answer.status, answer.body), (503, b""))
        answer = await client.get()
        self.assertIn(b"no backend of cluster web is up", answer.body)
        self.assertEqual(len(self.origin.requests), 2)
        proxy.clock.advance(12.0)
        self.assertEqual((await client.get()).body, b"")

    async def test_a_new_backend_begins_slowly(self) -> None:
        proxy = await self.start((OK,), slow_start=9.0)
        config = proxy.service.config
        second = await start_origin(self, (OK,))
        (cluster,) = config.clusters
        more = evolve(cluster, backends=(*cluster.backends, Backend(second.address)))
        proxy.service.apply(evolve(config, clusters=(more,)))
        self.assertEqual([each.share for each in self.states()], [1.0, 0.1])
        client = await proxy.connect()
        for _ in range(33):
            await client.get()
        self.assertIn(len(second.requests), (2, 3, 4))
        proxy.clock.advance(12.0)
        self.assertEqual([each.share for each in self.states()], [1.0, 1.0])
