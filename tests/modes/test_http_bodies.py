"""Bodies through the mode http: framing, limits, early answers and interim ones."""

from __future__ import annotations

import random
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import HttpRoute
from proxykit.modes.http_settings import HttpSettings
from proxykit.net.closing import LINGER, LINGER_BYTES
from tests.http_sockets import (
    HttpProxy,
    Message,
    Origin,
    answer,
    chunks,
    head,
    last,
    request,
    start_http,
    start_origin,
)
from tests.sockets import TIMEOUT, in_thread, read_all, turns, until

CHUNKED = "Transfer-Encoding: chunked"
OK = answer(b"ok")


async def start(test: TestCase, **more: Any) -> tuple[Origin, HttpProxy]:
    """A proxy, and an origin that the test speaks for."""
    origin = await start_origin(test)
    return origin, start_http(test, origin, **more)


class FramingTests(TestCase):
    """One framing field, written by the proxy, and the same bytes behind it."""

    timeout = TIMEOUT

    async def asked(self, sent: bytes) -> Message:
        """What the backend gets."""
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(sent)
        served = await origin.accepted()
        asked: Message = await served.request()
        served.send(OK)
        await client.response()
        self.assertEqual(served.taken, len(served.received))
        return asked

    async def answered(self, reply: Any) -> Message:
        """What the client gets."""
        origin = await start_origin(self, [reply])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        response: Message = await client.get()
        await proxy.at_rest()
        self.assertEqual(client.taken, len(client.received))
        return response

    async def test_a_chunked_request(self) -> None:
        asked = await self.asked(request("POST", "/", None, CHUNKED) + chunks(b"some", b"thing"))
        self.assertEqual((asked.framing, asked.body), ("chunked", b"something"))
        self.assertNotIn("Content-Length", asked)

    async def test_trailers_of_a_request(self) -> None:
        trailers = ["Checksum: 1234", "X:  y ", "Content-Length: 3", "Host: b", "Via: me"]
        asked = await self.asked(
            request("POST", "/", None, CHUNKED, "Trailer: Checksum")
            + chunks(b"body", trailers=trailers)
        )
        self.assertEqual(asked["Trailer"], "Checksum")
        self.assertEqual(asked.trailers, [("Checksum", "1234"), ("X", "y"), ("Via", "me")])

    async def test_chunk_extensions_are_gone(self) -> None:
        body = b'4;a=b;c="d;e"\r\nsome\r\n0005 ; x\r\nthing\r\n00;last\r\n\r\n'
        asked = await self.asked(request("POST", "/", None, CHUNKED) + body)
        self.assertEqual(asked.body, b"something")

    async def test_a_request_in_many_reads(self) -> None:
        body = random.Random(1).randbytes(3_000_000)
        for sent in (
            request("PUT", "/", body),
            request("PUT", "/", None, CHUNKED)
            + chunks(*(body[at : at + 50_000] for at in range(0, len(body), 50_000))),
        ):
            asked = await self.asked(sent)
            self.assertEqual(len(asked.body), len(body))
            self.assertEqual(asked.body, body)

    async def test_a_chunked_response(self) -> None:
        response = await self.answered(head(CHUNKED) + chunks(b"some", b"thing"))
        self.assertEqual((response.framing, response.body), ("chunked", b"something"))

    async def test_trailers_of_a_response(self) -> None:
        response = await self.answered(
            head(CHUNKED, "Trailer: X")
            + chunks(b"body", trailers=["X:y", "Set-Cookie: a=b", "Transfer-Encoding: chunked"])
        )
        self.assertEqual(response.trailers, [("X", "y")])

    async def test_a_response_in_many_reads(self) -> None:
        body = random.Random(2).randbytes(8_000_000)
        pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
        for reply, framing in (
            (answer(body), "length"),
            (head(CHUNKED) + chunks(*pieces), "chunked"),
            (last(head() + body), "chunked"),
        ):
            response = await self.answered(reply)
            self.assertEqual((response.framing, len(response.body)), (framing, len(body)))
            self.assertEqual(response.body, body)

    async def test_a_long_body_and_then_another_answer(self) -> None:
        """Where bytes went from socket to socket, the next head is read again."""
        body = random.Random(3).randbytes(4_000_000)
        origin = await start_origin(self, [answer(body), answer(b"short"), answer(body), OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        for expected in (body, b"short", body, b"ok"):
            response = await client.get()
            self.assertEqual(len(response.body), len(expected))
            self.assertEqual(response.body, expected)
        self.assertEqual(len(origin.ends), 1)
        self.assertEqual([each.bytes_sent for each in proxy.entries], [4000000, 5, 4000000, 2])

    async def test_request_and_response_overlap(self) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(request("POST", "/", None, CHUNKED) + b"1\r\na\r\n")
        served = await origin.accepted()
        await served.request_head()
        self.assertEqual(await served.rest(6), b"1\r\na\r\n")
        served.send(head(CHUNKED) + b"1\r\nA\r\n")
        await client._until(lambda: client.received.endswith(b"1\r\nA\r\n"))
        client.send(b"1\r\nb\r\n0\r\n\r\n")
        self.assertEqual(await served.rest(11), b"1\r\nb\r\n0\r\n\r\n")
        served.send(b"1\r\nB\r\n0\r\n\r\n")
        self.assertEqual((await client.response()).body, b"AB")
        await proxy.at_rest()
        self.assertEqual(proxy.pooled()["idle"], 1)


class LimitTests(TestCase):
    """A body that is too large is a 413, whether it says so or not."""

    timeout = TIMEOUT

    async def start(self, limit: int, *routes: HttpRoute) -> Any:
        self.origin = await start_origin(self, [OK])
        settings = HttpSettings(body_limit=limit)
        self.proxy = start_http(self, self.origin, settings=settings, routes=routes)
        return await self.proxy.connect()

    async def too_large(self, client: Any) -> None:
        response = await client.response()
        self.assertEqual(response.status, 413)
        self.assertEqual(
            response.text, "413 Request Entity Too Large: a request body may have 10 bytes here\n"
        )
        await self.proxy.at_rest()

    async def test_by_its_length(self) -> None:
        client = await self.start(10)
        client.send(request("POST", "/", bytes(11))[:-11])
        await self.too_large(client)
        await client.nothing_more()
        self.assertEqual(self.origin.ends, [])

    async def test_having_come_already(self) -> None:
        """Then the connection need not be closed."""
        client = await self.start(10)
        client.ask("POST", "/", bytes(11))
        await self.too_large(client)
        self.assertEqual((await client.get()).body, b"ok")

    async def test_by_its_count(self) -> None:
        client = await self.start(10)
        client.send(request("POST", "/", None, CHUNKED) + b"a\r\n0123456789\r\n")
        await until(lambda: self.origin.open)
        client.send(b"1\r\nX\r\n")
        await self.too_large(client)
        await client.nothing_more()
        await until(lambda: not self.origin.open)
        self.assertEqual(self.origin.requests, [])

    async def test_by_its_count_at_once(self) -> None:
        client = await self.start(10)
        client.send(request("POST", "/", None, CHUNKED) + b"b\r\n0123456789X\r\n")
        await self.too_large(client)
        self.assertEqual(self.origin.ends, [])

    async def test_at_the_limit(self) -> None:
        client = await self.start(10)
        client.ask("POST", "/", bytes(10))
        self.assertEqual((await client.response()).body, b"ok")
        client.send(request("POST", "/", None, CHUNKED) + chunks(bytes(9), bytes(1)))
        self.assertEqual((await client.response()).body, b"ok")

    async def test_a_route_s_own(self) -> None:
        client = await self.start(
            5,
            HttpRoute(path="/a", cluster="web", body_limit=10),
            HttpRoute(path="/b", cluster="web", body_limit=0),
        )
        for target, size, status in (
            ("/a", 10, 200),
            ("/a", 11, 413),
            ("/b", 1000, 200),
            ("/c", 6, 413),
            ("/c", 5, 200),
        ):
            client.ask("POST", target, bytes(size))
            self.assertEqual((await client.response()).status, status, target)


class EarlyAnswerTests(TestCase):
    """A backend may answer before it has all of the request: the client hears of it."""

    timeout = TIMEOUT

    async def early(self) -> tuple[HttpProxy, Any, Any]:
        """A client has sent 5 of 10 bytes, and got an answer."""
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(request("POST", "/", b"0123456789")[:-5])
        served = await origin.accepted()
        await served.request_head()
        await served.rest(5)
        served.send(answer(b"enough", status="403 Forbidden"))
        response = await client.response()
        self.assertEqual((response.status, response.body), (403, b"enough"))
        self.assertEqual(response["Connection"], "close")
        await served.lost()  # The rest of that request would come before any other.
        await proxy.at_rest()
        return proxy, client, served

    async def test_the_rest_is_thrown_away(self) -> None:
        proxy, client, served = await self.early()
        await client.nothing_more()
        client.send(b"56789" + request("GET", "/next"))
        await turns()
        client.finish()
        await proxy.empty()
        self.assertEqual(served.take_rest(), b"")

    async def test_a_client_that_does_not_end(self) -> None:
        proxy, client, _ = await self.early()
        await client.nothing_more()
        proxy.clock.advance(LINGER - 0.2)
        await turns()
        self.assertEqual(len(proxy.listener.connections), 1)
        proxy.clock.advance(0.6)
        await proxy.empty()

    async def test_a_client_that_goes_on_and_on(self) -> None:
        proxy, client, _ = await self.early()
        await client.ended()
        client.send(bytes(LINGER_BYTES + 100_000))
        await proxy.empty()

    async def test_a_client_that_first_sends_all_and_then_reads(self) -> None:
        """It is not reset: the answer would be lost."""
        origin = await start_origin(self)
        proxy = start_http(self, origin)
        client = proxy.blocking()
        sending = in_thread(client.sendall, request("POST", "/", bytes(900_000))[:-1])
        served = await origin.accepted()
        await served.request_head()
        served.send(answer(b"enough", status="403 Forbidden"))
        await sending
        received = await in_thread(read_all, client)
        self.assertTrue(received.endswith(b"\r\n\r\nenough"), received)

    async def test_a_backend_that_answers_and_reads_no_more(self) -> None:
        """What it was still to be sent does not keep its connection."""
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(request("POST", "/", bytes(30_000_000)))
        served = await origin.accepted()
        await served.request_head()
        served.transport.pauseProducing()
        side = await proxy.served_by()
        await until(lambda: side._held)
        served.send(answer(b"enough", status="403 Forbidden"))
        response = await client.response()
        self.assertEqual(response.status, 403)
        client.reset()
        await proxy.empty()

    async def test_an_answer_that_begins_early_and_is_long(self) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(request("POST", "/", b"0123456789")[:-5])
        served = await origin.accepted()
        await served.request_head()
        body = random.Random(4).randbytes(3_000_000)
        served.send(answer(body)[:1000])
        await until(lambda: client.received)
        client.send(b"56789")
        self.assertEqual(await served.rest(10), b"0123456789")
        served.send(answer(body)[1000:])
        response = await client.response()
        self.assertEqual((len(response.body), response["Connection"]), (len(body), "close"))
        await client.nothing_more()
        client.close()
        await proxy.at_rest()
        # All of the request has gone to the backend, so its connection is as good as any.
        self.assertEqual(proxy.pooled()["idle"], 1)


class ExpectTests(TestCase):
    """``Expect: 100-continue`` is between client and backend; other interim answers pass too."""

    timeout = TIMEOUT

    async def ask(self, version: str = "1.1") -> tuple[HttpProxy, Any, Any]:
        origin, proxy = await start(self)
        client = await proxy.connect()
        whole = request("PUT", "/", b"0123", "Expect: 100-continue", version=version)
        client.send(whole[:-4])
        served = await origin.accepted()
        asked = await served.request_head()
        self.assertEqual(asked["Expect"], "100-continue")
        return proxy, client, served

    async def test_continue(self) -> None:
        proxy, client, served = await self.ask()
        await turns()
        self.assertEqual(client.received, b"")  # The proxy itself says nothing.
        served.send(head(status="100 Continue"))
        interim = await client.response()
        self.assertEqual(interim.start, "HTTP/1.1 100 Continue")
        client.send(b"0123")
        self.assertEqual(await served.rest(4), b"0123")
        served.send(OK)
        self.assertEqual((await client.response()).body, b"ok")
        self.assertEqual((await self.next(client, served)).body, b"ok")
        self.assertEqual([each.status for each in proxy.entries], [200, 200])

    async def test_a_client_that_does_not_wait(self) -> None:
        _, client, served = await self.ask()
        client.send(b"0123")
        await served.rest(4)
        served.send(head(status="100 Continue") + OK)
        self.assertEqual((await client.response()).status, 100)
        self.assertEqual((await client.response()).body, b"ok")

    async def test_a_refusal(self) -> None:
        """Nobody knows whether the body will come, so the connection is closed."""
        proxy, client, served = await self.ask()
        served.send(answer(b"no", status="417 Expectation Failed"))
        response = await client.response()
        self.assertEqual((response.status, response["Connection"]), (417, "close"))
        await served.lost()
        client.close()
        await proxy.empty()

    async def test_an_expectation_that_nobody_knows(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.ask("PUT", "/", b"0123", "Expect: miracles")
        self.assertEqual((await client.response()).status, 417)
        await client.nothing_more()
        self.assertEqual(origin.ends, [])

    async def test_http_1_0_knows_no_interim_answers(self) -> None:
        _, client, served = await self.ask("1.0")
        served.send(head(status="100 Continue"))
        await turns()
        client.send(b"0123")
        self.assertEqual(await served.rest(4), b"0123")
        served.send(OK)
        response = await client.response()
        self.assertEqual((response.status, response.body), (200, b"ok"))

    async def test_several_hints(self) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.ask()
        served = await origin.accepted()
        await served.request()
        hint = head("Link: </style.css>; rel=preload", "Keep-Alive: x", status="103 Early Hints")
        served.send(hint)
        first = await client.response()
        self.assertEqual(first.start, "HTTP/1.1 103 Early Hints")
        self.assertEqual(first["Link"], "</style.css>; rel=preload")
        self.assertNotIn("Keep-Alive", first)
        served.send(hint + hint + OK[:10])
        for _ in range(2):
            self.assertEqual((await client.response()).status, 103)
        served.send(OK[10:])
        self.assertEqual((await client.response()).body, b"ok")

    async def next(self, client: Any, served: Any) -> Message:
        """One more request on the same connections."""
        client.ask()
        await served.request()
        served.send(OK)
        response: Message = await client.response()
        return response
