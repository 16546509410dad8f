"""The mode http: after an upgrade two connections are one, in another protocol."""

from __future__ import annotations

import random
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import FieldRules, HttpRoute
from tests.http_sockets import HttpProxy, Message, answer, head, request, start_http, start_origin
from tests.modes.test_http_bodies import OK, start
from tests.sockets import TIMEOUT, turns, until

ASKING = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x")
SWITCHING = head(
    "Connection: upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Accept: y",
    status="101 Switching Protocols",
)


class UpgradeTests(TestCase):
    """WebSocket, or whatever else client and backend agree upon."""

    timeout = TIMEOUT

    async def asked(self, *ahead: bytes, **more: Any) -> tuple[HttpProxy, Any, Any, Message]:
        """The request has come to the backend."""
        origin, proxy = await start(self, **more)
        self.origin = origin
        client = await proxy.connect()
        client.send(request("GET", "/chat", None, *ASKING) + b"".join(ahead))
        served = await origin.accepted()
        return proxy, client, served, await served.request()

    async def upgraded(self) -> tuple[HttpProxy, Any, Any]:
        proxy, client, served, _ = await self.asked()
        served.send(SWITCHING)
        await client.response()
        return proxy, client, served

    async def test_what_each_side_sees(self) -> None:
        _, client, served, asked = await self.asked()
        self.assertEqual((asked["Connection"], asked["Upgrade"]), ("Upgrade", "websocket"))
        self.assertEqual(asked["Sec-WebSocket-Key"], "x")
        served.send(SWITCHING)
        response = await client.response()
        self.assertEqual(response.start, "HTTP/1.1 101 Switching Protocols")
        self.assertEqual((response["Connection"], response["Upgrade"]), ("Upgrade", "websocket"))
        self.assertEqual(response["Sec-WebSocket-Accept"], "y")
        self.assertNotIn("Content-Length", response)
        self.assertNotIn("Transfer-Encoding", response)

    async def test_bytes_both_ways(self) -> None:
        proxy, client, served = await self.upgraded()
        client.send(b"\x81\x05hello\r\n\r\n")
        self.assertEqual(await served.rest(11), b"\x81\x05hello\r\n\r\n")
        served.send(b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(await client.rest(18), b"GET / HTTP/1.1\r\n\r\n")
        bulk = random.Random(9).randbytes(5_000_000)
        for end, other in ((client, served), (served, client)):
            end.send(bulk)
            self.assertEqual(await other.rest(len(bulk)), bulk)
        client.finish()
        await served.ended()
        served.send(b"bye")
        self.assertEqual(await client.rest(3), b"bye")
        served.close()
        await client.ended()
        await proxy.empty()
        (entry,) = proxy.entries
        self.assertEqual((entry.status, entry.error), (101, "client closed"))
        self.assertEqual(entry.bytes_received, len(bulk) + 11)
        self.assertEqual(entry.bytes_sent, len(bulk) + 21)

    async def test_early_bytes(self) -> None:
        """Of the backend's, behind its head; of the client's, who did not wait for that."""
        proxy, client, served, _ = await self.asked(b"\x81\x01c")
        await turns()
        self.assertEqual(served.take_rest(), b"")
        served.send(SWITCHING + b"\x81\x01s")
        await client.response()
        self.assertEqual(await client.rest(3), b"\x81\x01s")
        self.assertEqual(await served.rest(3), b"\x81\x01c")
        client.close()
        served.close()
        await proxy.empty()

    async def test_a_client_that_does_not_wait_is_held(self) -> None:
        """In a bounded buffer; all of it comes in the end."""
        data = random.Random(10).randbytes(2_000_000)
        proxy, client, served, _ = await self.asked(data)
        side = await proxy.served_by()
        await until(lambda: len(side._ahead) > 65536)
        await turns(20)
        self.assertLessEqual(len(side._ahead), 65536 + 65536)
        served.send(SWITCHING)
        await client.response()
        self.assertEqual(await served.rest(len(data)), data)

    async def test_a_reset_is_passed_on(self) -> None:
        for number in (0, 1):
            proxy, *ends = await self.upgraded()
            ends[number].reset()
            self.assertTrue(await ends[1 - number].lost())
            await proxy.empty()

    async def test_the_connection_is_private(self) -> None:
        proxy, client, served = await self.upgraded()
        other = await proxy.connect()
        other.ask()
        second = await self.origin.accepted()
        await second.request()
        second.send(OK)
        await other.response()
        self.assertEqual(served.take_rest(), b"")
        self.assertEqual(proxy.pooled()["not_kept"], {"upgraded": 1})
        client.close()
        await served.ended()
        served.close()
        await until(lambda: proxy.leftovers()["connections"] == 1)
        # Nor does it come back.
        self.assertEqual(proxy.pooled()["idle"], 1)

    async def test_on_a_connection_that_was_used(self) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.ask()
        served = await origin.accepted()
        await served.request()
        served.send(OK)
        await client.response()
        client.ask("GET", "/chat", None, *ASKING)
        await served.request()
        served.send(SWITCHING)
        self.assertEqual((await client.response()).status, 101)
        client.send(b"frame")
        self.assertEqual(await served.rest(5), b"frame")
        self.assertEqual(proxy.connections()[0]["state"], "upgraded")

    async def test_it_counts_as_load_until_it_ends(self) -> None:
        proxy, client, served = await self.upgraded()
        (backend,) = proxy.cluster.backends.values()
        self.assertEqual(backend.in_flight, 1)
        (shown,) = proxy.connections()
        self.assertEqual(
            (shown["state"], shown["cluster"], shown["backend"]),
            ("upgraded", "web", str(self.origin.address)),
        )
        client.reset()
        await served.lost()
        await proxy.empty()
        self.assertEqual(backend.in_flight, 0)

    async def test_a_backend_that_will_not(self) -> None:
        """Then it is a request as any other, and so is the next."""
        for reply, status in ((answer(b"no"), 200), (answer(b"", status="400 Bad Request"), 400)):
            proxy, client, served, _ = await self.asked()
            served.send(reply)
            response = await client.response()
            self.assertEqual(response.status, status)
            self.assertNotIn("Upgrade", response)
            client.ask("GET", "/next")
            self.assertEqual((await served.request()).target, "/next")
            served.send(OK)
            self.assertEqual((await client.response()).body, b"ok")
            self.assertEqual(proxy.pooled()["not_kept"], {})

    async def test_a_backend_that_wants_another_protocol(self) -> None:
        """Which one it wants goes on to the client, whatever this hop speaks."""
        proxy, client, served, _ = await self.asked()
        served.send(answer(b"", "Connection: upgrade", "Upgrade: TLS/1.3", status="426 Upgrade"))
        self.assertEqual((await client.response()).status, 426)
        await proxy.at_rest()

    async def test_it_is_not_passed_on_where_it_means_nothing(self) -> None:
        for lines, version in (
            (("Upgrade: websocket",), "1.1"),  # Connection does not name it.
            (ASKING, "1.0"),
            (("Connection: upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA"), "1.1"),
        ):
            origin, proxy = await start(self)
            client = await proxy.connect()
            client.send(request("GET", "/", None, *lines, version=version))
            served = await origin.accepted()
            asked = await served.request()
            for name in ("Upgrade", "Connection", "HTTP2-Settings"):
                self.assertNotIn(name, asked)
            served.send(SWITCHING)  # It was not asked for.
            response = await client.response()
            self.assertEqual(response.status, 502)
            self.assertIn("no 101 without an Upgrade", response.text)
            self.assertTrue(await served.lost())

    async def test_not_with_a_body(self) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.ask("POST", "/", b"body", *ASKING)
        served = await origin.accepted()
        self.assertNotIn("Upgrade", await served.request())

    async def test_interim_answers_before_it(self) -> None:
        _, client, served, _ = await self.asked()
        served.send(head(status="103 Early Hints") + SWITCHING + b"frame")
        self.assertEqual((await client.response()).status, 103)
        self.assertEqual((await client.response()).status, 101)
        self.assertEqual(await client.rest(5), b"frame")

    async def test_a_client_that_has_ended_by_then(self) -> None:
        proxy, client, served, _ = await self.asked()
        client.finish()
        side = await proxy.served_by()
        await until(lambda: side.read_ended)
        served.send(SWITCHING + b"frame")
        await served.ended()
        await client.response()
        self.assertEqual(await client.rest(5), b"frame")
        served.close()
        await client.ended()
        await proxy.empty()

    async def test_a_backend_that_ends_at_once(self) -> None:
        proxy, client, served, _ = await self.asked()
        served.send(SWITCHING + b"frame")
        served.close()
        await client.response()
        self.assertEqual(await client.rest(5), b"frame")
        await client.ended()
        client.close()
        await proxy.empty()

    async def test_with_the_policy_never(self) -> None:
        _, client, served, asked = await self.asked(reuse="never")
        self.assertEqual(asked["Connection"], "Upgrade")
        served.send(SWITCHING)
        self.assertEqual((await client.response()).status, 101)

    async def test_rules_for_the_fields_of_responses(self) -> None:
        rules = FieldRules(set=(("X-Set", "1"),), remove=("Sec-WebSocket-Accept",))
        routes = [HttpRoute(path="/", cluster="web", response_fields=rules)]
        origin = await start_origin(self)
        proxy = start_http(self, origin, routes=routes)
        client = await proxy.connect()
        client.ask("GET", "/", None, *ASKING)
        served = await origin.accepted()
        await served.request()
        served.send(SWITCHING)
        response = await client.response()
        self.assertEqual(response["X-Set"], "1")
        self.assertNotIn("Sec-WebSocket-Accept", response)
