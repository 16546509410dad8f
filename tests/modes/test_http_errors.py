"""The mode http: what a client is told when there is no answer, and backends that break rules."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import Address, Backend, Cluster, HttpRoute
from proxykit.modes.http_settings import HttpSettings
from tests.http_sockets import (
    CLOSE,
    RESET,
    HttpProxy,
    Message,
    answer,
    head,
    last,
    request,
    start_http,
    start_origin,
)
from tests.modes.test_http_bodies import CHUNKED, OK
from tests.sockets import (
    HOST,
    TIMEOUT,
    free_port,
    hear,
    start_backend,
    turns,
    unanswering,
    until,
)


class ErrorTests(TestCase):
    """A status, one line of plain text, and Proxy-Status (RFC 9209) with the reason."""

    timeout = TIMEOUT

    def told(self, response: Message, status: str, kind: str, why: str) -> None:
        """Check all that a client sees of an error."""
        number = int(status[:3])
        self.assertEqual(response.start, f"HTTP/1.1 {status}")
        self.assertEqual(response["Content-Type"], "text/plain; charset=utf-8")
        self.assertEqual(response.text, f"{status}: {why}\n")
        self.assertEqual(response["Proxy-Status"], f'proxykit; error={kind}; details="{why}"')
        self.assertEqual(response.all("Retry-After"), ["1"] if number == 503 else [])
        self.assertNotIn("Connection", response)

    async def test_connection_refused(self) -> None:
        port = free_port(self)
        proxy = start_http(self, Address(HOST, port))
        client = await proxy.connect()
        for _ in range(2):  # The client's connection is as good as before.
            self.told(
                await client.get(),
                "502 Bad Gateway",
                "connection_refused",
                f"connect to {HOST}:{port} failed: Connection refused",
            )
        self.assertEqual(proxy.stats["failed"], {"connection_refused": 2})
        self.assertEqual(proxy.stats["statuses"], {"5xx": 2})

    async def test_a_refused_connect_goes_on_to_the_next(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, Address(HOST, free_port(self)), origin)
        client = await proxy.connect()
        for _ in range(3):
            client.ask("POST", "/", b"body")
            self.assertEqual((await client.response()).body, b"ok")
        self.assertEqual([each.body for each in origin.requests], [b"body"] * 3)

    async def test_a_connect_that_times_out(self) -> None:
        address = unanswering(self)
        proxy = start_http(self, address, connect_timeout=2.0)
        client = await proxy.connect()
        client.ask()
        await until(lambda: proxy.leftovers()["opening"])
        proxy.clock.advance(1.9)
        self.assertEqual(proxy.leftovers()["opening"], 1)
        proxy.clock.advance(0.5)
        self.told(
            await client.response(),
            "504 Gateway Timeout",
            "connection_timeout",
            f"connect to {address} timed out after 2 s",
        )
        await proxy.at_rest()

    async def test_no_backend_is_up(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        proxy.cluster.set_state(origin.address, "down")
        client = await proxy.connect()
        self.told(
            await client.get(),
            "503 Service Unavailable",
            "destination_unavailable",
            "no backend of cluster web is up",
        )
        proxy.cluster.set_state(origin.address, "up")
        self.assertEqual((await client.get()).body, b"ok")

    async def full(self, **more: Any) -> tuple[HttpProxy, Any, Any]:
        """A proxy whose one connection is busy, and who keeps it so."""
        origin = await start_origin(self)
        proxy = start_http(self, origin, max_connections=1, **more)
        first = await proxy.connect()
        first.ask()
        served = await origin.accepted()
        await served.request()
        return proxy, first, served

    async def test_the_queue_s_deadline(self) -> None:
        proxy, first, served = await self.full(queue_timeout=5.0)
        client = await proxy.connect()
        client.ask()
        await until(lambda: len(proxy.cluster.queue))
        proxy.clock.advance(4.9)
        self.assertEqual(len(proxy.cluster.queue), 1)
        proxy.clock.advance(0.8)
        address = next(iter(proxy.cluster.backends))
        self.told(
            await client.response(),
            "503 Service Unavailable",
            "connection_limit_reached",
            f"waited 5 s in the queue of web: {address} has all of its 1 connections"
            " (max_connections)",
        )
        served.send(OK)
        self.assertEqual((await first.response()).body, b"ok")
        client.ask()
        await served.request()
        served.send(OK)
        self.assertEqual((await client.response()).body, b"ok")

    async def test_the_queue_is_full_as_well(self) -> None:
        proxy, _, _ = await self.full(queue=0)
        client = await proxy.connect()
        address = next(iter(proxy.cluster.backends))
        self.told(
            await client.get(),
            "503 Service Unavailable",
            "connection_limit_reached",
            f"{address} has all of its 1 connections (max_connections); the queue of web is full"
            " (queue = 0)",
        )

    async def test_out_of_ports(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin, queue=0)
        (budget,) = proxy.service.accountant._budgets.values()
        budget.free = 0
        client = await proxy.connect()
        response = await client.get()
        self.assertEqual(response.status, 503)
        self.assertIn(f"no source port is left from {HOST} to {origin.address}", response.text)

    async def test_a_backend_that_closes_instead(self) -> None:
        for step in (CLOSE, RESET):
            origin = await start_origin(self, [step])
            proxy = start_http(self, origin)
            client = await proxy.connect()
            for method in ("GET", "POST"):
                client.ask(method)
                self.told(
                    await client.response(),
                    "502 Bad Gateway",
                    "connection_terminated",
                    f"{origin.address} closed the connection before it answered",
                )
            self.assertEqual(len(origin.requests), 2)  # Each once, for the connections were new.
            await proxy.at_rest()
            self.assertEqual(proxy.leftovers()["ports"], 0)

    async def test_a_backend_that_closes_within_its_head(self) -> None:
        for data in (b"H", b"HTTP/1.1 200 OK\r\nContent-Le", head(status="103 Early Hints")):
            origin = await start_origin(self, [last(data)])
            proxy = start_http(self, origin)
            client = await proxy.connect()
            client.ask()
            response = await client.response()
            if response.status == 103:
                response = await client.response()
            self.told(
                response,
                "502 Bad Gateway",
                "connection_terminated",
                f"{origin.address} closed the connection before it answered",
            )

    async def test_a_backend_that_does_not_answer(self) -> None:
        origin = await start_origin(self)
        proxy = start_http(self, origin, settings=HttpSettings(response_timeout=10.0))
        client = await proxy.connect()
        client.ask()
        served = await origin.accepted()
        await served.request()
        proxy.clock.advance(9.9)
        await turns()
        self.assertEqual(client.received, b"")
        proxy.clock.advance(1.5)
        self.told(
            await client.response(),
            "504 Gateway Timeout",
            "http_response_timeout",
            f"{origin.address} did not answer within 10 s",
        )
        self.assertTrue(await served.lost())
        await proxy.at_rest()

    async def test_head_has_no_text(self) -> None:
        proxy = start_http(self, Address(HOST, free_port(self)))
        client = await proxy.connect()
        for _ in range(2):
            client.ask("HEAD")
            response = await client.response("HEAD")
            self.assertEqual(response.status, 502)
            self.assertGreater(int(response["Content-Length"]), 0)

    async def test_for_http_1_0(self) -> None:
        proxy = start_http(self, Address(HOST, free_port(self)))
        client = await proxy.connect()
        response = await client.get("/", "Connection: keep-alive", version="1.0")
        self.assertEqual((response.status, response["Connection"]), (502, "keep-alive"))
        response = await client.get("/", version="1.0")
        self.assertEqual((response.status, response["Connection"]), (502, "close"))
        await client.nothing_more()

    async def test_while_the_body_is_still_coming(self) -> None:
        """Then it is not known where the next request begins."""
        proxy = start_http(self, Address(HOST, free_port(self)))
        client = await proxy.connect()
        client.send(request("POST", "/", b"0123")[:-1])
        response = await client.response()
        self.assertEqual((response.status, response["Connection"]), (502, "close"))
        await client.nothing_more()
        client.close()
        await proxy.empty()

    async def test_the_log(self) -> None:
        """One line that names what failed; what clients do wrong is not the proxy's to report."""
        lines = hear(self)
        port = free_port(self)
        proxy = start_http(self, Address(HOST, port))
        client = await proxy.connect()
        await client.get()
        client.send(b"nonsense\r\n\r\n")
        await client.response()
        self.assertEqual(
            [line for line in lines if line.startswith("front: ") and "listening" not in line],
            [f"front: connect to {HOST}:{port} failed: Connection refused"],
        )

    async def test_one_cluster_does_not_harm_another(self) -> None:
        origin = await start_origin(self, [OK])
        other = Cluster("other", (Backend(Address(HOST, free_port(self))),))
        routes = [HttpRoute(path="/other", cluster="other")]
        proxy = start_http(self, origin, others=[other], routes=routes)
        client = await proxy.connect()
        client.send(request("GET", "/other") + request("GET", "/") + request("GET", "/other"))
        self.assertEqual([(await client.response()).status for _ in range(3)], [502, 200, 502])


#: What a backend must not send, and the rule that it breaks.
MALFORMED = [
    (b"SSH-2.0-OpenSSH_9.2\r\n", "a response starts with its version"),
    (b"\r\n" + OK, "a response starts with its version"),
    (b"HTTP/2.0 200 OK\r\n\r\n", "a version is HTTP/1.0 or HTTP/1.1"),
    (b"HTTP/1.1 2000 OK\r\n\r\n", "a status is a number from 100 to 599"),
    (b"HTTP/1.1 600 No\r\n\r\n", "a status is a number from 100 to 599"),
    (b"HTTP/1.1  200 OK\r\n\r\n", "a status is a number from 100 to 599"),
    (b"HTTP/1.1 200 O\x01K\r\n\r\n", "no control bytes in a reason"),
    (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "no bare LF"),
    (b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", "no bare CR"),
    (b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", "no NUL"),
    (b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "no folded lines"),
    (b"HTTP/1.1 200 OK\r\n X: a\r\n\r\n", "no whitespace before the first field"),
    (b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n", "no whitespace before the colon"),
    (b"HTTP/1.1 200 OK\r\nX\r\n\r\n", "a field line has a colon"),
    (b"HTTP/1.1 200 OK\r\nX(: a\r\n\r\n", "a field name is a token"),
    (head("Content-Length: 2", "Content-Length: 2") + b"ok", "one Content-Length"),
    (head("Content-Length: +2") + b"ok", "Content-Length is a number"),
    (head("Content-Length: 2, 2") + b"ok", "Content-Length is a number"),
    (head("Content-Length: 2", CHUNKED) + b"0\r\n\r\n", "not both Content-Length and Transfer-"),
    (head("Transfer-Encoding: gzip") + b"x", "Transfer-Encoding ends with chunked"),
    (head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", "no coding but chunked"),
    (head("Transfer_Encoding: chunked") + b"0\r\n\r\n", "no name that looks like a framing"),
    (head(CHUNKED, version="1.0") + b"0\r\n\r\n", "no Transfer-Encoding in HTTP/1.0"),
    (head(*["X: y"] * 101), "the head is too large"),
    (head("X: " + "x" * 40_000), "the head is too large"),
    (head("Connection: upgrade", "Upgrade: x", status="101 Now"), "no 101 without an Upgrade"),
    (head(CHUNKED) + b"x\r\n", "a chunk starts with its size"),
    (head(CHUNKED) + b"1\r\nab\r\n", "a chunk ends with CRLF"),
]


class MalformedTests(TestCase):
    """A backend that breaks a rule: a 502 for the client, and its connection is gone."""

    timeout = TIMEOUT

    async def test_each(self) -> None:
        for data, rule in MALFORMED:
            smuggled = answer(b"smuggled")
            origin = await start_origin(self, [data + smuggled], [OK])
            proxy = start_http(self, origin)
            client = await proxy.connect()
            response = await client.get()
            self.assertEqual(response.status, 502, data)
            self.assertIn(f"{origin.address} broke a rule: ", response.text)
            self.assertIn(rule, response.text)
            self.assertIn("error=http_protocol_error", response["Proxy-Status"])
            self.assertTrue(await origin.ends[0].lost())
            self.assertEqual((await client.get()).body, b"ok")
            self.assertEqual(client.taken, len(client.received))
            self.assertEqual(len(proxy.stats["refused"]), 1)

    async def test_in_pieces(self) -> None:
        for data, rule in MALFORMED:
            if len(data) > 100:
                continue
            origin = await start_origin(self)
            proxy = start_http(self, origin)
            client = await proxy.connect()
            client.ask()
            served = await origin.accepted()
            await served.request()
            for byte in data:
                if served.reason is not None:
                    break
                served.send(bytes((byte,)))
                await turns(2)
            if data.startswith(head(CHUNKED)):
                # The head has gone on already.
                self.assertTrue(await client.lost(), data)
                continue
            response = await client.response()
            self.assertEqual(response.status, 502, data)
            self.assertIn(rule, response.text)

    async def test_a_post_is_not_sent_again(self) -> None:
        origin = await start_origin(self, [b"nonsense\r\n\r\n"])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.ask("POST", "/", b"body")
        self.assertEqual((await client.response()).status, 502)
        self.assertEqual(len(origin.requests), 1)

    async def test_even_a_get_is_not_sent_again(self) -> None:
        """The backend has had it."""
        origin = await start_origin(self, [OK, b"nonsense\r\n\r\n"], [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        self.assertEqual((await client.get()).status, 200)
        self.assertEqual((await client.get()).status, 502)
        self.assertEqual(len(origin.requests), 2)

    async def test_a_backend_that_sends_before_it_is_asked(self) -> None:
        """As one does that speaks another protocol; it may come before the request or after."""
        backend = await start_backend(self)
        proxy = start_http(self, backend)
        client = await proxy.connect()
        client.ask()
        served = await backend.accepted()
        served.send(b"220 mail.example ESMTP\r\n")
        self.assertEqual((await client.response()).status, 502)
        self.assertTrue(await served.lost())
        await proxy.at_rest()

    async def test_endless_interim_answers(self) -> None:
        """They are passed on, as fast as the client takes them."""
        origin = await start_origin(self)
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.ask()
        served = await origin.accepted()
        await served.request()
        served.send(head(status="102 Processing") * 1000 + OK)
        for _ in range(1000):
            self.assertEqual((await client.response()).status, 102)
        self.assertEqual((await client.response()).body, b"ok")
