"""The mode http in somebody's own server: the factory by itself, and its hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.core.routing import HttpRouter
from proxykit.model import HttpRoute, Listener
from proxykit.modes.http import HttpFactory, HttpMode
from proxykit.modes.http_settings import HttpSettings
from proxykit.net.serving import Outgoing, Reply
from proxykit.wire.http1 import RequestHead, ResponseHead
from proxykit.wire.http1fields import Fields
from tests.http_sockets import (
    HttpClient,
    HttpProxy,
    Message,
    Step,
    answer,
    head,
    start_http,
    start_origin,
)
from tests.modes.test_http_bodies import OK
from tests.sockets import HOST, TIMEOUT, connect, reactor, until


class FactoryTests(TestCase):
    """Any endpoint will do, and any connector."""

    timeout = TIMEOUT

    async def start(self, *script: Step, own_pool: bool = False, **more: Any) -> Any:
        """A client of a factory that no listener of ours has."""
        self.origin = await start_origin(self, script or [OK])
        self.proxy: HttpProxy = start_http(self, self.origin)
        service = self.proxy.service
        self.factory = HttpFactory(
            service.flow,
            service.connector if own_pool else service.pool,
            HttpRouter([], "web"),
            HttpSettings(),
            **more,
        )
        port = reactor.listenTCP(0, self.factory, interface=HOST)
        self.addCleanup(port.stopListening)
        return await connect(self, port.getHost().port, HttpClient())

    async def gone(self, client: Any) -> None:
        """The client goes, and nothing is left."""
        client.close()
        await self.proxy.empty()

    async def test_without_a_listener(self) -> None:
        client = await self.start()
        for _ in range(3):
            self.assertEqual((await client.get()).body, b"ok")
        self.assertEqual(self.origin.requests[0]["X-Forwarded-For"], HOST)
        self.assertEqual(len(self.origin.ends), 1)
        self.assertEqual(self.factory.snapshot()["requests"], 3)
        await self.gone(client)

    async def test_with_a_connector_that_is_no_pool(self) -> None:
        """It is given one."""
        client = await self.start(own_pool=True)
        for _ in range(3):
            self.assertEqual((await client.get()).body, b"ok")
        self.assertEqual(len(self.origin.ends), 1)
        self.proxy.clock.advance(40)
        await self.gone(client)

    async def test_without_a_log(self) -> None:
        client = await self.start()
        client.send(b"nonsense\r\n\r\n")
        self.assertEqual((await client.response()).status, 400)
        await client.nothing_more()
        self.assertEqual(self.factory.snapshot()["statuses"], {"4xx": 1})
        await self.gone(client)

    async def test_a_rewriting_hook(self) -> None:
        """It sees what came beside what is to go, without what is for one connection only."""
        seen: list[Any] = []

        def hook(head: RequestHead, outgoing: Outgoing) -> Reply | None:
            seen.append((head.target, "Connection" in outgoing.fields))
            outgoing.target = b"/inner" + outgoing.target
            outgoing.host = b"inner.example"
            outgoing.fields.set("X-Tenant", "7")
            outgoing.fields.remove("Cookie")
            return None

        client = await self.start(on_request=hook)
        client.ask("PUT", "/a", b"body", "Connection: x", "Cookie: y", "X-Tenant: 8")
        self.assertEqual((await client.response()).body, b"ok")
        self.assertEqual(seen, [(b"/a", False)])
        (asked,) = self.origin.requests
        self.assertEqual(
            (asked.target, asked["Host"], asked.body), ("/inner/a", "inner.example", b"body")
        )
        self.assertEqual(asked["X-Tenant"], "7")
        self.assertEqual(asked["X-Forwarded-Host"], "a.example")
        self.assertNotIn("Cookie", asked)

    async def test_a_hook_that_changes_the_method(self) -> None:
        def hook(head: RequestHead, outgoing: Outgoing) -> Reply | None:
            outgoing.method = b"POST"
            return None

        client = await self.start(on_request=hook)
        client.ask("PUT", "/a", b"body")
        self.assertEqual((await client.response()).body, b"ok")
        self.assertEqual(self.origin.requests[0].method, "POST")

    async def test_a_hook_and_a_request_without_a_host(self) -> None:
        client = await self.start(on_request=lambda head, outgoing: None)
        self.assertEqual((await client.get("/", host="", version="1.0")).status, 200)

    async def replied(self, hook: Callable[[RequestHead, Outgoing], Any]) -> Message:
        client = await self.start(on_request=hook)
        response: Message = await client.get()
        self.assertEqual((await client.get()).status, response.status)  # The connection lives on.
        self.assertEqual(self.origin.ends, [])
        await self.gone(client)
        return response

    async def test_a_hook_that_answers(self) -> None:
        fields = [("Set-Cookie", "a"), ("Set-Cookie", "b"), ("X", "y")]
        response = await self.replied(lambda head, outgoing: Reply(403, "not you\n", fields))
        self.assertEqual((response.status, response.text), (403, "not you\n"))
        self.assertEqual(response.all("Set-Cookie"), ["a", "b"])
        self.assertEqual(response["X"], "y")

    async def test_a_hook_that_raises(self) -> None:
        def hook(head: RequestHead, outgoing: Outgoing) -> Reply | None:
            raise ZeroDivisionError("a bug of the user's")

        response = await self.replied(hook)
        self.assertEqual(response.status, 500)
        self.assertNotIn("bug", response.text)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    async def test_a_hook_that_would_break_the_request_apart(self) -> None:
        def target(head: RequestHead, outgoing: Outgoing) -> None:
            outgoing.target = b"/ HTTP/1.1\r\nX: y"

        def host(head: RequestHead, outgoing: Outgoing) -> None:
            outgoing.host = b"a\r\nX: y"

        def fields(head: RequestHead, outgoing: Outgoing) -> None:
            outgoing.fields.set("X", "y\r\nZ: z")

        def reply(head: RequestHead, outgoing: Outgoing) -> Reply:
            return Reply(200, "", [("X", "y\r\nZ: z")])

        for hook in (target, host, fields, reply):
            self.assertEqual((await self.replied(hook)).status, 500, hook)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    async def test_a_hook_for_responses(self) -> None:
        def hook(request: RequestHead, response: ResponseHead, fields: Fields) -> None:
            fields.set("X-Seen", f"{request.target.decode()} {response.status}")
            fields.remove("Server")

        reply = answer(b"ok", "Server: x", status="201 Created")
        client = await self.start(reply, on_response=hook)
        response = await client.get("/a")
        self.assertEqual((response["X-Seen"], response.body), ("/a 201", b"ok"))
        self.assertNotIn("Server", response)

    async def test_a_hook_for_responses_that_raises(self) -> None:
        """What it has done by then stays done, and the answer goes on."""

        def hook(request: RequestHead, response: ResponseHead, fields: Fields) -> None:
            fields.remove("Server")
            raise ZeroDivisionError("a bug of the user's")

        client = await self.start(answer(b"ok", "Server: x"), on_response=hook)
        response = await client.get()
        self.assertEqual(response.body, b"ok")
        self.assertNotIn("Server", response)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ModeTests(TestCase):
    """What the mode makes of a listener."""

    timeout = TIMEOUT

    async def test_a_listener_without_anything_to_serve(self) -> None:
        listener = Listener("front", "tcp:0", "http", settings=HttpSettings())
        with self.assertRaises(ValueError):
            HttpMode().check(listener)

    async def test_more_different_answers_than_are_kept(self) -> None:
        """Heads that are not like any before are put together as well."""
        count = 0

        def step(end: Any, asked: Message) -> None:
            nonlocal count
            count += 1
            end.send(head(f"X: {count}", "Y: " + "y" * (count % 2 * 3000), "Content-Length: 0"))

        origin = await start_origin(self, [step])
        proxy = start_http(self, origin, routes=[HttpRoute(path="/", cluster="web")])
        client = await proxy.connect()
        for number in range(2, 1200):
            client.ask("GET", "/")
            if number % 100 == 0:
                await until(lambda wanted=number - 1: count == wanted)
        for number in range(1, 1199):
            self.assertEqual((await client.response())["X"], str(number))
