"""How long a backend takes, as the proxy sees it: to begin an answer, or to accept a connection."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from tests.http_sockets import HttpProxy, head, request, start_http, start_origin
from tests.modes.test_http_bodies import OK
from tests.modes.test_http_upgrade import ASKING, SWITCHING
from tests.net.test_connector import Bench
from tests.sockets import TIMEOUT, start_backend, until


class AnswerTests(TestCase):
    """From what was sent last of the request to the head of the answer."""

    timeout = TIMEOUT

    async def start(self, **more: Any) -> tuple[HttpProxy, Any]:
        self.origin = await start_origin(self)
        proxy = start_http(self, self.origin, **more)
        return proxy, await proxy.connect()

    def seconds(self, proxy: HttpProxy) -> Any:
        (backend,) = proxy.service.registry.cluster("web").backends.values()
        seconds = backend.snapshot()["latency_seconds"]
        return None if seconds is None else round(seconds, 9)

    async def test_from_the_request_on(self) -> None:
        proxy, client = await self.start()
        self.assertIsNone(self.seconds(proxy))
        client.send(request())
        served = await self.origin.accepted()
        await served.request()
        proxy.clock.advance(0.25)
        served.send(head("Content-Length: 2"))
        await until(lambda: self.seconds(proxy) is not None)
        proxy.clock.advance(5)  # what comes later does not count
        served.send(b"ok")
        await client.response()
        self.assertEqual(self.seconds(proxy), 0.25)
        client.send(request())  # on the same connection
        await served.request()
        proxy.clock.advance(0.75)
        served.send(OK)
        await client.response()
        self.assertEqual(self.seconds(proxy), 0.3)

    async def test_not_the_time_in_the_queue(self) -> None:
        proxy, client = await self.start(max_connections=1)
        client.send(request())
        served = await self.origin.accepted()
        await served.request()
        second = await proxy.connect()
        second.send(request("POST", "/", b"x"))
        await until(lambda: len(proxy.service.registry.cluster("web").queue) == 1)
        proxy.clock.advance(2)
        served.send(OK)
        await served.request()
        proxy.clock.advance(2)
        served.send(OK)
        await second.response()
        self.assertEqual(self.seconds(proxy), 2.0)

    async def test_not_the_time_of_the_body(self) -> None:
        """A client may be slow to send it."""
        proxy, client = await self.start()
        client.send(request("POST", "/", None, "Content-Length: 2"))
        served = await self.origin.accepted()
        await served.request_head()
        proxy.clock.advance(5)
        client.send(b"ok")
        await served.rest(2)
        proxy.clock.advance(0.5)
        served.send(OK)
        await client.response()
        self.assertEqual(self.seconds(proxy), 0.5)

    async def test_an_upgrade(self) -> None:
        proxy, client = await self.start()
        client.send(request("GET", "/chat", None, *ASKING))
        served = await self.origin.accepted()
        await served.request()
        served.send(head(status="103 Early Hints"))
        proxy.clock.advance(0.5)
        served.send(SWITCHING)
        await client.response()
        await client.response()
        self.assertEqual(self.seconds(proxy), 0.5)


class ConnectTests(TestCase):
    """At L4 it is the connect."""

    timeout = TIMEOUT

    async def test_connect(self) -> None:
        backend = await start_backend(self)
        bench = Bench(self, backend.address)
        connecting = bench.choose()
        bench.clock.advance(0.25)  # it is told in a later turn
        (await connecting).end()
        (state,) = bench.cluster.backends.values()
        self.assertEqual(state.snapshot()["latency_seconds"], 0.25)
