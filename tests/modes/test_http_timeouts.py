"""The mode http: every wait has an end, told by the clock."""

from __future__ import annotations

import socket
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.modes.http_settings import HttpSettings
from tests.http_sockets import (
    HttpProxy,
    answer,
    for_good,
    head,
    quiet,
    request,
    start_http,
    start_origin,
)
from tests.modes.test_http_bodies import CHUNKED, OK
from tests.sockets import TIMEOUT, held, turns, until

#: Each another, so that a test shows which one it was.
SETTINGS = HttpSettings(
    head_timeout=8.0,
    body_timeout=16.0,
    keepalive_timeout=24.0,
    response_timeout=32.0,
    response_body_timeout=40.0,
    upgrade_timeout=48.0,
)


def keep_small(transport: Any) -> None:
    """The kernel is not to take more and more of what is to be sent."""
    transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


class TimeoutTests(TestCase):
    """Not before the time has come, and soon after."""

    timeout = TIMEOUT

    async def start(self) -> tuple[HttpProxy, Any]:
        self.origin = await start_origin(self)
        proxy = start_http(self, self.origin, settings=SETTINGS)
        client = await proxy.connect()
        await proxy.served_by()
        return proxy, client

    async def asked(self, sent: bytes = b"") -> tuple[HttpProxy, Any, Any]:
        """The request has come to the backend."""
        proxy, client = await self.start()
        client.send(sent or request())
        served = await self.origin.accepted()
        await served.request_head()
        return proxy, client, served

    async def expires(self, proxy: HttpProxy, client: Any, seconds: float) -> None:
        """Something happens to the client after so many seconds, and not before."""
        before = len(client.received)
        proxy.clock.advance(seconds - 0.1)
        await turns(10)
        self.assertEqual(
            (len(client.received), client.read_ended, client.reason), (before, False, None)
        )
        proxy.clock.advance(seconds / 8 + 0.2)
        await until(
            lambda: len(client.received) > before or client.read_ended or client.reason is not None
        )

    async def test_a_client_that_says_nothing(self) -> None:
        proxy, client = await self.start()
        await self.expires(proxy, client, 8.0)
        await client.nothing_more()
        self.assertEqual(proxy.entries, [])
        client.close()
        await proxy.empty()

    async def test_a_head_that_does_not_come_to_its_end(self) -> None:
        """However much of it comes."""
        proxy, client = await self.start()
        client.send(b"GET / HTTP/1.1\r\n")
        side = await proxy.served_by()
        await until(lambda: side._reader.started)
        proxy.clock.advance(4)
        client.send(b"Host: a.example\r\n")
        await turns(10)
        await self.expires(proxy, client, 4.0)
        response = await client.response()
        self.assertEqual((response.status, response["Connection"]), (408, "close"))
        self.assertEqual(response.text, "408 Request Timeout: no whole request head within 8 s\n")
        await client.nothing_more()
        client.close()
        await proxy.empty()
        self.assertEqual([each.status for each in proxy.entries], [408])

    async def test_a_second_head(self) -> None:
        proxy, client, served = await self.asked()
        served.send(OK)
        await client.response()
        proxy.clock.advance(20)
        client.send(b"GET")
        side = await proxy.served_by()
        await until(lambda: side._reader.started)
        await self.expires(proxy, client, 8.0)
        self.assertEqual((await client.response()).status, 408)

    async def test_an_idle_client(self) -> None:
        proxy, client, served = await self.asked()
        served.send(OK)
        await client.response()
        await self.expires(proxy, client, 24.0)
        await client.nothing_more()
        client.close()
        await proxy.empty()

    async def test_idle_is_counted_from_the_last_answer(self) -> None:
        proxy, client, served = await self.asked()
        for _ in range(4):
            served.send(OK)
            await client.response()
            proxy.clock.advance(20)
            client.ask()
            await served.request()
            proxy.clock.advance(20)
        served.send(OK)
        await client.response()
        await self.expires(proxy, client, 24.0)
        await client.nothing_more()

    async def test_a_body_that_makes_no_progress(self) -> None:
        proxy, client, served = await self.asked(request("POST", "/", b"0123456789")[:-5])
        for byte in (b"5", b"6", b"7"):
            proxy.clock.advance(15)
            client.send(byte)
            await served._until(lambda byte=byte: served.received.endswith(byte))
        await self.expires(proxy, client, 16.0)
        response = await client.response()
        self.assertEqual((response.status, response["Connection"]), (408, "close"))
        self.assertEqual(response.text, "408 Request Timeout: no byte of the body within 16 s\n")
        self.assertTrue(await served.lost())
        client.close()
        await proxy.empty()
        self.assertEqual([each.status for each in proxy.entries], [408])

    async def test_a_body_that_is_not_read_is_not_the_client_s_fault(self) -> None:
        """It is the backend's: it neither reads nor answers."""
        proxy, client, served = await self.asked(request("POST", "/", bytes(30_000_000))[:200])
        served.transport.pauseProducing()
        client.send(bytes(29_000_000))
        side = await proxy.served_by()
        await for_good(lambda: side._held)
        await self.expires(proxy, client, 32.0)
        response = await client.response()
        self.assertEqual(response.status, 504)
        client.reset()
        await proxy.empty()

    async def test_an_answer_that_does_not_come(self) -> None:
        proxy, client, served = await self.asked()
        proxy.clock.advance(20)
        served.send(head(status="102 Processing"))  # A sign of life.
        await client.response()
        await self.expires(proxy, client, 32.0)
        self.assertEqual((await client.response()).status, 504)
        self.assertTrue(await served.lost())
        await proxy.at_rest()

    async def test_its_time_begins_with_the_end_of_the_request(self) -> None:
        proxy, client, served = await self.asked(request("POST", "/", b"0123456789")[:-5])
        for byte in (b"5", b"6", b"7", b"8", b"9"):
            proxy.clock.advance(12)
            client.send(byte)
            await served._until(lambda byte=byte: served.received.endswith(byte))
        await self.expires(proxy, client, 32.0)
        self.assertEqual((await client.response()).status, 504)

    async def test_a_request_that_takes_longer_than_an_answer_may(self) -> None:
        """It is the client that is slow, and has a timeout of its own."""
        origin = await start_origin(self)
        settings = HttpSettings(response_timeout=10.0, body_timeout=50.0)
        proxy = start_http(self, origin, settings=settings)
        client = await proxy.connect()
        client.send(request("POST", "/", b"0123456789")[:-5])
        served = await origin.accepted()
        await served.request_head()
        proxy.clock.advance(45)
        client.send(b"56789")
        await served.rest(10)
        await self.expires(proxy, client, 10.0)
        self.assertEqual((await client.response()).status, 504)

    async def test_an_answer_whose_head_comes_byte_by_byte(self) -> None:
        """The time is for the whole head."""
        proxy, client, served = await self.asked()
        for byte in b"HTTP/1.1 ":
            served.send(bytes((byte,)))
            await turns()
            proxy.clock.advance(3)
        await self.expires(proxy, client, 32.0 - 27.0)
        self.assertEqual((await client.response()).status, 504)

    async def test_an_answer_that_makes_no_progress(self) -> None:
        for reply in (answer(b"0123456789")[:-5], head(CHUNKED) + b"a\r\n01234", head() + b"01234"):
            proxy, client, served = await self.asked()
            served.send(reply)
            await until(
                lambda client=client: (
                    client.received.endswith(b"4") or client.received.endswith(b"4\r\n")
                )
            )
            proxy.clock.advance(39)
            served.send(b"5")
            await until(lambda client=client: b"5" in client.received[-3:])
            await self.expires(proxy, client, 40.0)
            self.assertTrue(await client.lost(), reply)
            self.assertTrue(await served.lost(), reply)
            await proxy.empty()
            self.assertEqual(proxy.stats["failed"], {"http_response_timeout": 1})

    async def test_a_client_that_takes_nothing(self) -> None:
        for reply in (answer(bytes(30_000_000)), head() + bytes(30_000_000)):
            self.origin = await start_origin(self)
            proxy = start_http(self, self.origin, settings=SETTINGS)
            client = proxy.blocking(receive_buffer=4096)
            client.sendall(request())
            served = await self.origin.accepted()
            await served.request()
            side = await proxy.served_by()
            upstream = side.exchange.upstream.transport
            keep_small(side.transport)
            served.send(reply)
            await for_good(lambda it=upstream: quiet(it))
            proxy.clock.advance(39)
            await turns()
            self.assertEqual(len(proxy.sides()), 1)
            # It may have taken some since the proxy looked last, which counts for it.
            proxy.clock.advance(45)
            self.assertTrue(await served.lost())
            await until(lambda proxy=proxy: not proxy.sides())
            self.assertEqual(proxy.stats["failed"], {"connection_write_timeout": 1})
            self.assertEqual(proxy.leftovers()["ports"], 0)

    async def test_a_client_that_takes_nothing_of_the_end_of_its_last_answer(self) -> None:
        """All of which is in the proxy, and the backend's connection is free."""
        self.origin = await start_origin(self)
        proxy = start_http(self, self.origin, settings=SETTINGS)
        client = proxy.blocking(receive_buffer=4096)
        client.sendall(request("GET", "/", None, "Connection: close"))
        served = await self.origin.accepted()
        await served.request()
        side = await proxy.served_by()
        keep_small(side.transport)
        served.send(head(CHUNKED))
        while not held(side.transport):
            served.send(b"2710\r\n" + bytes(10_000) + b"\r\n")
            await turns()
        served.send(b"0\r\n\r\n")
        await proxy.at_rest()
        proxy.clock.advance(39)
        await turns()
        self.assertEqual(len(proxy.sides()), 1)
        proxy.clock.advance(45)
        await until(lambda: not proxy.sides())

    async def test_an_upgrade_without_a_byte(self) -> None:
        proxy, client, served = await self.asked(
            request("GET", "/", None, "Connection: Upgrade", "Upgrade: websocket")
        )
        served.send(head("Connection: upgrade", "Upgrade: websocket", status="101 Switching"))
        await client.response()
        for end, other in ((client, served), (served, client)):
            proxy.clock.advance(47)
            end.send(b"ping")
            self.assertEqual(await other.rest(4), b"ping")
        await self.expires(proxy, client, 48.0)
        self.assertTrue(await client.lost())
        self.assertTrue(await served.lost())
        await proxy.empty()
        self.assertEqual([each.error for each in proxy.entries], ["idle timeout"])

    async def test_no_deadline_is_left_of_many_requests(self) -> None:
        proxy, client, served = await self.asked()
        served.send(OK)
        await client.response()
        for _ in range(20):
            client.ask("POST", "/", b"body")
            await served.request()
            served.send(OK)
            await client.response()
        await proxy.at_rest()
        # The client's head, its being idle; the backend's answer, its being idle.
        self.assertLessEqual(proxy.leftovers()["deadlines"], 4)
