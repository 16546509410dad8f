"""One pool under several listeners of mode http."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from proxykit.core.routing import HttpRouter
from proxykit.modes.http import HttpFactory
from proxykit.modes.http_settings import HttpSettings
from tests.http_sockets import SILENCE, HttpClient, request, start_http, start_origin
from tests.modes.test_http_bodies import OK
from tests.sockets import HOST, TIMEOUT, connect, reactor, turns, until


class SharedTests(TestCase):
    """Two listeners, one cluster: they share its connections, and nothing else."""

    timeout = TIMEOUT

    async def test_each_has_its_own_timeouts_and_counts(self) -> None:
        origin = await start_origin(self, [OK, SILENCE])
        proxy = start_http(self, origin, settings=HttpSettings(response_timeout=5.0))
        router = HttpRouter((), "web")
        other = HttpFactory(
            proxy.service.flow, proxy.service.pool, router, HttpSettings(response_timeout=20.0)
        )
        port = reactor.listenTCP(0, other, interface=HOST)
        self.addCleanup(port.stopListening)
        first = await proxy.connect()
        await first.get()
        second = await connect(self, port.getHost().port, HttpClient())
        second.send(request())
        await until(lambda: len(origin.requests) == 2)
        proxy.clock.advance(12)
        await turns()
        self.assertEqual(second.received, b"")
        proxy.clock.advance(12)
        self.assertEqual((await second.response()).status, 504)
        self.assertEqual(sum(proxy.stats["statuses"].values()), 1)
        self.assertEqual(other.snapshot()["statuses"], {"5xx": 1})
        self.assertEqual(len(origin.ends), 1)
