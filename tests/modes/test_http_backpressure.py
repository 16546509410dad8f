"""The mode http: a side that does not read holds the other back, and nothing piles up between."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.interfaces import IShortcuts
from proxykit.model import HttpRoute
from proxykit.net.exchange import EARLY_BYTES
from tests.http_sockets import (
    HttpProxy,
    answer,
    chunks,
    head,
    quiet,
    request,
    start_http,
    start_origin,
)
from tests.modes.test_http_bodies import CHUNKED, OK, start
from tests.sockets import TIMEOUT, held, in_thread, read_all, turns, until

#: What Twisted lets a buffer hold, one read of a body and its framing.
BOUND = 65536 + 65536 + 1024


def watch(transport: Any) -> list[int]:
    """How much a transport holds after each write."""
    peaks = [0]
    write = transport.write

    def watched(data: bytes) -> None:
        write(data)
        peaks.append(held(transport))

    transport.write = watched
    return peaks


async def tight(proxy: HttpProxy) -> Any:
    """The proxy's side of its one client; the kernel takes but little of what goes there."""
    side = await proxy.served_by()
    side.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return side


class ClientTests(TestCase):
    """A client that does not read."""

    timeout = TIMEOUT

    async def one_long_answer(self, reply: Callable[[bytes], bytes]) -> None:
        origin, proxy = await start(self)
        client = proxy.blocking(receive_buffer=4096)
        client.sendall(request("GET", "/", None, "Connection: close"))
        served = await origin.accepted()
        await served.request()
        side = proxy.sides()[0]
        peaks = watch(side.transport)
        body = random.Random(5).randbytes(20_000_000)
        served.send(reply(body))
        upstream = side.exchange.upstream.transport
        await until(lambda: len(peaks) > 1 and quiet(upstream))
        await turns()
        received = await in_thread(read_all, client)
        self.assertLessEqual(max(peaks), BOUND)
        start_of_body = received.index(b"\r\n\r\n") + 4
        self.assertGreaterEqual(len(received) - start_of_body, len(body))
        if CHUNKED.encode() not in received[:start_of_body]:
            self.assertEqual(received[start_of_body:], body)
        client.close()
        await proxy.at_rest()
        self.assertEqual(proxy.pooled()["idle"], 1)

    async def test_with_a_length(self) -> None:
        await self.one_long_answer(answer)

    async def test_in_chunks(self) -> None:
        def reply(body: bytes) -> bytes:
            pieces = (body[at : at + 10_000] for at in range(0, len(body), 10_000))
            return head(CHUNKED) + chunks(*pieces)

        await self.one_long_answer(reply)

    async def never_reads(self, proxy: HttpProxy, one: bytes) -> None:
        """A client that asks again and again, each time by itself."""
        client = proxy.blocking(receive_buffer=4096)
        side = await tight(proxy)
        peaks = watch(side.transport)
        asked = 0
        while not side._ahead:
            self.assertEqual(side.requests, asked)
            client.sendall(one)
            asked += 1
            await until(lambda sent=asked: side.requests == sent or side._ahead)
            await proxy.at_rest()
        self.assertGreater(held(side.transport), 65536)
        self.assertLessEqual(max(peaks), BOUND)
        # What it goes on to ask is bounded as well.
        sending = in_thread(client.sendall, one * 10_000)
        await until(lambda: quiet(side.transport))
        self.assertLessEqual(len(side._ahead), 65536 + 65536)
        self.assertLessEqual(max(peaks), BOUND)
        client.shutdown(2)
        await sending.addErrback(lambda why: why.trap(OSError))

    async def test_short_answers(self) -> None:
        """Those that came whole could not be held back; the next request can."""
        origin = await start_origin(self, [answer(bytes(60_000))])
        proxy = start_http(self, origin)
        await self.never_reads(proxy, request())

    async def test_answers_of_our_own(self) -> None:
        routes = [HttpRoute(path="/", status=200, text="x" * 50_000)]
        proxy = start_http(self, routes=routes)
        await self.never_reads(proxy, request())

    async def test_it_goes_on_when_the_client_reads(self) -> None:
        def step(end: Any, asked: Any) -> None:
            end.send(answer(asked.target.encode() * 1000))

        origin = await start_origin(self, [step])
        proxy = start_http(self, origin)
        client = proxy.blocking(receive_buffer=4096)
        side = await tight(proxy)
        asked = 0
        while not side._ahead:
            client.sendall(request("GET", f"/{asked}"))
            asked += 1
            await until(lambda sent=asked: side.requests == sent or side._ahead)
            await proxy.at_rest()
        client.sendall(b"GET /part HTTP/1.1\r\nHo")
        reading = in_thread(read_all, client)
        await until(lambda: not side._clogged)
        await proxy.at_rest()
        client.sendall(
            b"st: a.example\r\n\r\n" + request("GET", "/last", None, "Connection: close")
        )
        received = await reading
        self.assertEqual(received.count(b"HTTP/1.1 200 OK"), asked + 2)
        self.assertTrue(received.endswith(b"/last" * 1000))

    async def test_a_long_request_that_had_to_wait_for_that(self) -> None:
        """Having been sent ahead, it was held back; its turn comes, and so does the rest of it."""
        origin = await start_origin(self, [answer(bytes(60_000))])
        proxy = start_http(self, origin)
        client = proxy.blocking(receive_buffer=4096)
        side = await tight(proxy)
        while not side._clogged:
            client.sendall(request())
            await until(lambda asked=side.requests: side.requests > asked)
            await proxy.at_rest()
            await turns(30)
        # Much of its head does not go on, so what came of it does not fill a buffer.
        long = request("PUT", "/", bytes(3_000_000), "Connection: close", f"TE: {'x' * 9000}")
        client.sendall(long[:65_000])
        await until(lambda: len(side._ahead) == 65_000)
        client.sendall(long[65_000:66_000])
        await until(lambda: quiet(side.transport))
        sending = in_thread(client.sendall, long[66_000:])
        received = await in_thread(read_all, client)
        await sending
        self.assertEqual(received.count(b"HTTP/1.1 200 OK"), len(origin.requests))
        self.assertEqual(len(origin.requests[-1].body), 3_000_000)


class BackendTests(TestCase):
    """A backend that does not read, or is not there yet."""

    timeout = TIMEOUT

    async def a_long_request(self, sent: bytes, size: int) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(sent[:200])
        served = await origin.accepted()
        await served._until(lambda: b"\r\n\r\n" in served.received)
        served.transport.pauseProducing()
        side = proxy.sides()[0]
        peaks = watch(side.exchange.upstream.transport)
        client.send(sent[200:])
        await until(lambda: quiet(side.transport))
        await turns()
        self.assertGreater(held(side.exchange.upstream.transport), 65536)
        served.transport.resumeProducing()
        asked = await served.request()
        self.assertEqual(len(asked.body), size)
        self.assertTrue(sent.endswith(asked.body) or asked.framing == "chunked")
        served.send(OK)
        self.assertEqual((await client.response()).body, b"ok")
        self.assertLessEqual(max(peaks), BOUND)
        self.assertEqual(proxy.entries[0].bytes_received, size)
        self.assertEqual((await self.once_more(client, served)).body, b"ok")

    async def once_more(self, client: Any, served: Any) -> Any:
        client.ask()
        await served.request()
        served.send(OK)
        return await client.response()

    async def test_a_request_with_a_length(self) -> None:
        body = random.Random(6).randbytes(20_000_000)
        await self.a_long_request(request("PUT", "/", body), len(body))

    async def test_a_request_in_chunks(self) -> None:
        body = random.Random(6).randbytes(20_000_000)
        pieces = (body[at : at + 10_000] for at in range(0, len(body), 10_000))
        sent = request("PUT", "/", None, CHUNKED) + chunks(*pieces)
        await self.a_long_request(sent, len(body))

    async def test_while_there_is_no_backend(self) -> None:
        origin, proxy = await start(self, max_connections=1)
        first = await proxy.connect()
        first.ask()
        served = await origin.accepted()
        await served.request()
        body = random.Random(7).randbytes(3_000_000)
        second = await proxy.connect()
        second.ask("PUT", "/second", body)
        side = await proxy.served_by(1)
        await until(lambda: quiet(side.transport))
        self.assertGreater(len(side.exchange.held), EARLY_BYTES)
        self.assertLessEqual(len(side.exchange.held), EARLY_BYTES + 65536)
        served.send(OK)
        asked = await served.request()
        self.assertEqual((asked.target, asked.body == body), ("/second", True))
        served.send(OK)
        self.assertEqual((await second.response()).body, b"ok")

    async def test_and_then_one_that_does_not_read(self) -> None:
        """What was held makes its buffer full at once: then the client is still not read from."""
        origin, proxy = await start(self, max_connections=1)
        first = await proxy.connect()
        first.ask()
        served = await origin.accepted()
        await served.request()
        second = await proxy.connect()
        second.ask("PUT", "/second", bytes(30_000_000))
        side = await proxy.served_by(1)
        await until(lambda: quiet(side.transport))
        (upstream,) = (each.exchange.upstream for each in proxy.sides()[:1])
        peaks = watch(upstream.transport)
        served.transport.pauseProducing()
        served.send(OK)
        await until(lambda: side.exchange.upstream is upstream)
        await until(lambda: quiet(side.transport))
        await turns()
        self.assertLessEqual(max(peaks), BOUND)
        served.transport.resumeProducing()
        asked = await served.request()
        self.assertEqual(len(asked.body), 30_000_000)

    async def test_an_upgrade_that_is_not_read(self) -> None:
        origin, proxy = await start(self)
        client = proxy.blocking(receive_buffer=4096)
        client.sendall(request("GET", "/", None, "Connection: upgrade", "Upgrade: x"))
        served = await origin.accepted()
        await served.request()
        side = proxy.sides()[0]
        peaks = watch(side.transport)
        served.send(head("Connection: upgrade", "Upgrade: x", status="101 Switching Protocols"))
        data = random.Random(8).randbytes(20_000_000)
        served.send(data)
        served.finish()
        upstream = await until(lambda: side.relay and side.relay.upstream.transport)
        await until(lambda: quiet(upstream))
        client.shutdown(1)
        received = await in_thread(read_all, client)
        self.assertTrue(received.endswith(b"\r\n\r\n" + data))
        # A pipe in the kernel may hold a little more.
        spliced = IShortcuts.providedBy(upstream)
        self.assertLessEqual(max(peaks), BOUND + (1 << 20 if spliced else 0))
        await proxy.empty()
