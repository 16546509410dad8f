"""The mode http: whoever leaves, at whatever moment, nothing of the request is left behind."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.http_sockets import HttpProxy, answer, head, request, start_http, start_origin
from tests.modes.test_http_bodies import CHUNKED, OK, start
from tests.sockets import TIMEOUT, hear, in_thread, reset_on_close, turns, unanswering, until


class ClientTests(TestCase):
    """Clients that leave."""

    timeout = TIMEOUT

    async def test_while_the_backend_is_being_connected(self) -> None:
        for leave in ("close", "reset"):
            proxy = start_http(self, unanswering(self))
            client = await proxy.connect()
            client.ask()
            await until(lambda proxy=proxy: proxy.leftovers()["opening"])
            getattr(client, leave)()
            if leave == "close":
                # It may still want the answer: that it closed both ways shows when one is sent.
                side = await proxy.served_by()
                await until(lambda side=side: side.read_ended)
                proxy.clock.advance(6)
            await proxy.empty()

    async def test_having_sent_its_end_while_the_backend_is_being_connected(self) -> None:
        origin, proxy = await start(self)
        client = proxy.blocking()
        client.sendall(request())
        client.shutdown(1)
        served = await origin.accepted()
        await served.request()
        served.send(OK)
        self.assertTrue((await in_thread(client.recv, 1000)).endswith(b"ok"))
        client.close()
        await proxy.empty()

    async def test_while_it_waits_in_the_queue(self) -> None:
        origin, proxy = await start(self, max_connections=1)
        first = await proxy.connect()
        first.ask()
        served = await origin.accepted()
        await served.request()
        waiting = []
        for number in range(3):
            waiting.append(await proxy.connect())
            waiting[-1].ask("POST", f"/{number}", b"body")
            await until(lambda wanted=number + 1: len(proxy.cluster.queue) == wanted)
        waiting[1].reset()
        await until(lambda: len(proxy.cluster.queue) == 2)
        for number in (0, 2):
            served.send(OK)
            self.assertEqual((await served.request()).target, f"/{number}")
        served.send(OK)
        self.assertEqual((await waiting[2].response()).body, b"ok")
        await proxy.at_rest()
        self.assertEqual([each.status for each in proxy.entries], [0, 200, 200, 200])

    async def test_before_the_answer(self) -> None:
        for method in ("GET", "POST"):
            origin, proxy = await start(self)
            client = await proxy.connect()
            client.ask(method)
            served = await origin.accepted()
            await served.request()
            client.reset()
            self.assertTrue(await served.lost())
            await proxy.empty()
            (entry,) = proxy.entries
            self.assertEqual((entry.status, entry.error), (0, "the client left"))

    async def test_in_the_middle_of_its_request(self) -> None:
        origin, proxy = await start(self)
        for leave in ("close", "finish", "reset"):
            client = await proxy.connect()
            client.send(request("POST", "/", b"0123456789")[:-5])
            served = await origin.accepted()
            await served.request_head()
            getattr(client, leave)()
            self.assertTrue(await served.lost())
            await proxy.empty()

    async def test_in_the_middle_of_the_answer(self) -> None:
        for reply in (answer(bytes(100))[:-1], head(CHUNKED) + b"1\r\nx\r\n", head() + b"x"):
            origin, proxy = await start(self)
            client = await proxy.connect()
            client.ask()
            served = await origin.accepted()
            await served.request()
            served.send(reply)
            await until(lambda client=client: client.received)
            client.reset()
            self.assertTrue(await served.lost())
            await proxy.empty()
            (entry,) = proxy.entries
            self.assertEqual((entry.status, entry.error), (200, "the client left"))

    async def test_with_more_requests_sent_ahead(self) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(request() * 10)
        served = await origin.accepted()
        await served.request()
        client.reset()
        self.assertTrue(await served.lost())
        await proxy.empty()
        self.assertEqual(len(proxy.entries), 1)

    async def test_in_the_middle_of_a_long_answer_that_it_does_not_read(self) -> None:
        origin, proxy = await start(self)
        client = proxy.blocking(receive_buffer=4096)
        client.sendall(request())
        served = await origin.accepted()
        await served.request()
        served.send(answer(bytes(30_000_000)))
        side = await proxy.served_by()
        await until(lambda: side._clogged or getattr(side.transport, "pipe_holds", False))
        reset_on_close(client)
        client.close()
        self.assertTrue(await served.lost())
        await proxy.empty()

    async def test_in_the_middle_of_a_long_request_that_is_not_read(self) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(request("PUT", "/", bytes(30_000_000)))
        served = await origin.accepted()
        await served.request_head()
        served.transport.pauseProducing()
        side = await proxy.served_by()
        await until(lambda: side._held)
        client.reset()
        # It is not read from, so that it has gone is heard of when something is written.
        served.transport.resumeProducing()
        self.assertTrue(await served.lost())
        await proxy.empty()

    async def test_idle(self) -> None:
        for leave in ("close", "reset"):
            origin, proxy = await start(self)
            client = await proxy.connect()
            client.ask()
            served = await origin.accepted()
            await served.request()
            served.send(OK)
            await client.response()
            getattr(client, leave)()
            await until(lambda proxy=proxy: not proxy.sides())
            self.assertEqual(proxy.pooled()["idle"], 1)
            await proxy.empty()

    async def test_a_connection_that_was_opened_for_one_serves_another(self) -> None:
        """Who left has not made it bad."""
        origin, proxy = await start(self)
        clients = [await proxy.connect() for _ in range(2)]
        for number, client in enumerate(clients):
            client.ask("GET", f"/{number}")
        await until(lambda: proxy.leftovers()["opening"] or origin.ends)
        clients[0].reset()
        await until(lambda: len(proxy.sides()) == 1)
        await until(lambda: any(b"GET /1 " in end.received for end in origin.ends))
        (served,) = (end for end in origin.ends if b"GET /1 " in end.received)
        await served.request()
        served.send(OK)
        self.assertEqual((await clients[1].response()).body, b"ok")


class BackendTests(TestCase):
    """Backends that leave; that nobody hears half an answer is in test_http_cut_off.py."""

    timeout = TIMEOUT

    async def test_while_the_request_body_is_coming(self) -> None:
        for leave in ("close", "reset"):
            origin, proxy = await start(self)
            client = await proxy.connect()
            client.send(request("POST", "/", b"0123456789")[:-5])
            served = await origin.accepted()
            await served.request_head()
            getattr(served, leave)()
            response = await client.response()
            self.assertEqual((response.status, response["Connection"]), (502, "close"))
            await client.nothing_more()
            client.close()
            await proxy.empty()

    async def test_having_answered_and_closed_at_once(self) -> None:
        """While the client still sends: it hears the answer nevertheless."""
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(request("POST", "/", bytes(3_000_000))[:200])
        served = await origin.accepted()
        await served.request_head()
        served.send(answer(b"too much", status="413 Content Too Large"))
        served.close()
        client.send(bytes(1_000_000))
        response = await client.response()
        self.assertEqual((response.status, response.body), (413, b"too much"))
        client.close()
        await proxy.empty()

    async def test_idle(self) -> None:
        """It is noticed when it happens, and not by the next request."""
        for leave in ("close", "reset", "finish"):
            origin, proxy = await start(self)
            client = await proxy.connect()
            client.ask()
            served = await origin.accepted()
            await served.request()
            served.send(OK)
            await client.response()
            await proxy.at_rest()
            self.assertEqual(proxy.leftovers()["ports"], 1)
            getattr(served, leave)()
            await until(lambda proxy=proxy: not proxy.leftovers()["ports"])
            self.assertEqual(proxy.pooled()["idle"], 0)
            client.ask("POST")
            again = await origin.accepted()
            await again.request()
            again.send(OK)
            self.assertEqual((await client.response()).body, b"ok")

    async def test_all_of_them_at_once(self) -> None:
        """A hundred requests under way, in every state."""
        hear(self)
        origin, proxy = await start(self, max_connections=30)
        clients = [await proxy.connect() for _ in range(100)]
        for number, client in enumerate(clients):
            client.send(request("POST", "/", b"0123456789")[: -(number % 4) or None])
        await until(lambda: len(proxy.cluster.queue) == 70)
        for number, end in enumerate(origin.ends):
            end.send((b"", head(CHUNKED) + b"1\r\nx\r\n", b"HTTP/1.1 2", answer(b"x"))[number % 4])
        await turns()
        for end in tuple(origin.ends):
            end.reset()
        for number, client in enumerate(clients):
            (client.reset if number % 2 else client.close)()
        await self._until_empty(proxy, origin)

    async def _until_empty(self, proxy: HttpProxy, origin: Any) -> None:
        def reset_all() -> bool:
            for end in tuple(origin.ends):
                if end.reason is None and end.transport is not None:
                    end.reset()
            return not proxy.sides()

        await until(reset_all)
        await proxy.empty()


class BetweenTests(TestCase):
    """A used connection has ended under a request, and is not closed yet: the same turn goes on."""

    timeout = TIMEOUT

    async def ended(self, sent: bytes) -> tuple[HttpProxy, Any, Any]:
        """The request waits until it can be sent again."""
        self.origin, proxy = await start(self)
        client = await proxy.connect()
        client.ask()
        served = await self.origin.accepted()
        await served.request()
        served.send(OK)
        await client.response()
        client.send(sent)
        await served.request_head()
        side = await proxy.served_by()
        side.exchange.upstream.readConnectionLost()
        return proxy, client, side

    async def test_the_client_leaves(self) -> None:
        """Then nobody is asked again."""
        proxy, client, side = await self.ended(request())
        side.transport.connectionLost(Failure(ConnectionLost()))
        await client.ended()
        await proxy.empty()
        self.assertEqual(len(self.origin.ends), 1)
        self.assertEqual([each.status for each in proxy.entries], [200, 0])

    async def test_the_client_goes_on_sending(self) -> None:
        """Its body goes with the request."""
        _, client, side = await self.ended(request("PUT", "/", b"the body")[:-8])
        side.dataReceived(b"the ")
        client.send(b"body")
        again = await self.origin.accepted()
        self.assertEqual((await again.request()).body, b"the body")
        again.send(OK)
        self.assertEqual((await client.response()).body, b"ok")

    async def test_the_client_sends_what_breaks_a_rule(self) -> None:
        """It is told so, once."""
        chunked = request("PUT", "/", None, CHUNKED)
        proxy, client, side = await self.ended(chunked)
        side.dataReceived(b"nonsense\r\n")
        self.assertEqual((await client.response()).status, 400)
        await client.nothing_more()
        client.close()
        await proxy.empty()
        self.assertEqual([each.status for each in proxy.entries], [200, 400])
        self.assertEqual(len(self.origin.ends), 1)


class ServiceTests(TestCase):
    """The proxy itself goes."""

    timeout = TIMEOUT

    async def test_connections_are_cut_off(self) -> None:
        """With a reset, so that nobody takes what has come for the whole."""
        origin = await start_origin(self)
        proxy = start_http(self, origin)
        clients = [await proxy.connect() for _ in range(3)]
        clients[1].ask()
        served = await origin.accepted()
        await served.request()
        clients[2].send(request("GET", "/", None, "Connection: upgrade", "Upgrade: x"))
        upgraded = await origin.accepted()
        await upgraded.request()
        upgraded.send(head("Connection: upgrade", "Upgrade: x", status="101 Switching Protocols"))
        await clients[2].response()
        await proxy.service.abort_connections()
        for end in (*clients, served, upgraded):
            self.assertTrue(await end.lost())
        await proxy.empty()
