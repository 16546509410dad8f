"""The mode http: requests that a client sends ahead are answered in order, and are bounded."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import HttpRoute
from proxykit.net.http1_downstream import AHEAD_BYTES, REQUESTS_AT_ONCE
from tests.http_sockets import (
    HttpProxy,
    Message,
    answer,
    chunks,
    request,
    start_http,
    start_origin,
)
from tests.sockets import TIMEOUT, in_thread, reactor, read_all, turns, until

OK = answer(b"ok")


class PipeliningTests(TestCase):
    """What is sent ahead waits for its turn, and is answered in its order."""

    timeout = TIMEOUT

    async def targets(self, client: Any, count: int) -> list[str]:
        return [(await client.response()).text for _ in range(count)]

    async def echo(self, **more: Any) -> HttpProxy:
        """A proxy whose backend answers with the target."""

        def step(end: Any, asked: Message) -> None:
            end.send(answer(asked.target.encode()))

        self.origin = await start_origin(self, [step])
        return start_http(self, self.origin, **more)

    async def test_in_order(self) -> None:
        proxy = await self.echo()
        client = await proxy.connect()
        client.send(b"".join(request("GET", f"/{number}") for number in range(50)))
        self.assertEqual(await self.targets(client, 50), [f"/{number}" for number in range(50)])
        self.assertEqual(len(self.origin.ends), 1)

    async def test_one_goes_out_when_the_one_before_was_answered(self) -> None:
        origin = await start_origin(self)
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.send(request("GET", "/1") + request("GET", "/2"))
        served = await origin.accepted()
        self.assertEqual((await served.request()).target, "/1")
        await turns()
        self.assertEqual(served.take_rest(), b"")
        served.send(answer(b"1"))
        self.assertEqual((await served.request()).target, "/2")
        served.send(answer(b"2"))
        self.assertEqual(await self.targets(client, 2), ["1", "2"])
        self.assertEqual(len(origin.ends), 1)

    async def test_with_bodies(self) -> None:
        proxy = await self.echo()
        client = await proxy.connect()
        client.send(
            request("POST", "/1", b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n")
            + request("GET", "/2")
            + request("POST", "/3", None, "Transfer-Encoding: chunked")
            + chunks(b"GET /no HTTP/1.1\r\n", b"\r\n", trailers=["X: y"])
            + request("GET", "/4")
        )
        self.assertEqual(await self.targets(client, 4), ["/1", "/2", "/3", "/4"])
        self.assertEqual(
            [each.body for each in self.origin.requests],
            [b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n", b"", b"GET /no HTTP/1.1\r\n\r\n", b""],
        )

    async def test_split_anywhere(self) -> None:
        data = request("GET", "/1") + request("POST", "/2", b"body") + request("GET", "/3")
        proxy = await self.echo()
        client = await proxy.connect()
        for position in range(1, len(data)):
            client.send(data[:position])
            await turns(2)
            client.send(data[position:])
            self.assertEqual(await self.targets(client, 3), ["/1", "/2", "/3"])

    async def test_with_answers_of_our_own_between(self) -> None:
        routes = [
            HttpRoute(path="/fixed", status=200, text="fixed"),
            HttpRoute(path="/", cluster="web"),
        ]
        proxy = await self.echo(routes=routes)
        client = await proxy.connect()
        order = ["/1", "/fixed", "/fixed", "/2", "/fixed"]
        client.send(b"".join(request("GET", target) for target in order))
        found = [text.strip() for text in await self.targets(client, 5)]
        self.assertEqual(found, ["/1", "fixed", "fixed", "/2", "fixed"])

    async def test_a_thousand_answers_of_our_own(self) -> None:
        """They do not go deeper and deeper, and others have their turn in between."""
        routes = [HttpRoute(path="/", status=204)]
        proxy = await self.echo(routes=routes)
        client = await proxy.connect()
        client.send(b"".join(request("GET", f"/{number}") for number in range(1000)))
        side = await proxy.served_by()
        await until(lambda: side.requests)
        await turns()
        self.assertEqual(side.requests, REQUESTS_AT_ONCE + 1)
        for number in range(1000):
            if number % REQUESTS_AT_ONCE == 0:
                proxy.clock.advance(0)
            self.assertEqual((await client.response()).status, 204)

    async def test_a_client_that_leaves_between_two_turns(self) -> None:
        proxy = await self.echo(routes=[HttpRoute(path="/", status=204)])
        client = await proxy.connect()
        client.send(request() * 100)
        side = await proxy.served_by()
        await until(lambda: side.requests)
        client.reset()
        await until(lambda: side.gone)
        asked = side.requests
        proxy.clock.advance(0)
        self.assertEqual(side.requests, asked)

    async def test_nothing_after_the_last(self) -> None:
        proxy = await self.echo()
        client = await proxy.connect()
        client.send(request("GET", "/1", None, "Connection: close") + request("GET", "/2"))
        self.assertEqual(await self.targets(client, 1), ["/1"])
        await client.nothing_more()
        self.assertEqual(len(self.origin.requests), 1)

    async def test_a_bad_one_is_refused_when_its_turn_has_come(self) -> None:
        proxy = await self.echo()
        client = await proxy.connect()
        client.send(
            request("GET", "/1") + b"GET / HTTP/1.1\nHost: a\r\n\r\n" + request("GET", "/3")
        )
        self.assertEqual(await self.targets(client, 1), ["/1"])
        response = await client.response()
        self.assertEqual((response.status, response["Connection"]), (400, "close"))
        await client.nothing_more()
        self.assertEqual(len(self.origin.requests), 1)

    async def test_what_is_sent_ahead_is_bounded(self) -> None:
        origin = await start_origin(self)
        proxy = start_http(self, origin)
        client = proxy.blocking()
        side = await proxy.served_by()
        sending = in_thread(client.sendall, request("GET", "/" + "x" * 1000) * 300)
        served = await origin.accepted()
        await until(lambda: side.transport not in reactor.getReaders())
        self.assertGreater(len(side._ahead), AHEAD_BYTES)
        for _ in range(300):
            await served.request()
            self.assertLessEqual(len(side._ahead), AHEAD_BYTES + 65536)
            served.send(OK)
        await sending
        client.shutdown(1)
        received = await in_thread(read_all, client)
        self.assertEqual(received.count(b"HTTP/1.1 200 OK"), 300)

    async def test_a_client_that_ends_after_several(self) -> None:
        """Its end does not make its requests undone."""
        proxy = await self.echo()
        client = proxy.blocking()
        client.sendall(b"".join(request("GET", f"/{number}") for number in range(3)))
        client.shutdown(1)
        received = await in_thread(read_all, client)
        self.assertEqual(received.count(b"HTTP/1.1 200 OK"), 3, received)
