"""The mode http: requests, their answers, and the client's connection between two of them."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from proxykit.modes.http_settings import HttpSettings
from proxykit.net.http1_upstream import END_COMES
from tests.http_sockets import (
    Message,
    answer,
    chunks,
    head,
    last,
    request,
    start_http,
    start_origin,
)
from tests.sockets import TIMEOUT, turns, until

OK = answer(b"ok")


class OneRequestTests(TestCase):
    """A request goes to the backend as it was understood, and its answer comes back."""

    timeout = TIMEOUT

    async def ask(self, sent: bytes, reply: bytes = OK) -> tuple[Message, Message]:
        """What the backend gets, and what the client does."""
        origin = await start_origin(self)
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.send(sent)
        served = await origin.accepted()
        asked = await served.request()
        served.send(reply)
        response = await client.response(asked.method)
        await proxy.at_rest()
        self.assertEqual(client.taken, len(client.received))
        self.assertEqual(served.taken, len(served.received))
        return asked, response

    async def test_get(self) -> None:
        asked, response = await self.ask(request("GET", "/a/b?c=d", None, "Accept: text/plain"))
        self.assertEqual(asked.start, "GET /a/b?c=d HTTP/1.1")
        self.assertEqual(
            [*asked.fields[:2], asked.fields[-1]],
            [
                ("Host", "a.example"),
                ("Accept", "text/plain"),
                ("X-Request-ID", asked["X-Request-ID"]),
            ],
        )
        self.assertEqual(response.start, "HTTP/1.1 200 OK")
        self.assertEqual(response.fields, [("Via", "1.1 proxykit"), ("Content-Length", "2")])
        self.assertEqual(response.body, b"ok")

    async def test_post(self) -> None:
        asked, _ = await self.ask(request("POST", "/form", b"name=value"))
        self.assertEqual(
            (asked.method, asked.framing, asked.body), ("POST", "length", b"name=value")
        )

    async def test_an_empty_body_is_not_none(self) -> None:
        asked, _ = await self.ask(request("POST", "/form", b""))
        self.assertEqual(asked["Content-Length"], "0")
        asked, _ = await self.ask(request("POST", "/form"))
        self.assertNotIn("Content-Length", asked)

    async def test_a_method_of_one_s_own(self) -> None:
        asked, _ = await self.ask(request("PURGE", "/x"))
        self.assertEqual(asked.start, "PURGE /x HTTP/1.1")

    async def test_trace(self) -> None:
        asked, _ = await self.ask(request("TRACE", "/x"))
        self.assertEqual(asked.start, "TRACE /x HTTP/1.1")

    async def test_options_for_the_server_as_a_whole(self) -> None:
        for target in ("*", "http://a.example"):
            asked, _ = await self.ask(request("OPTIONS", target))
            self.assertEqual(asked.start, "OPTIONS * HTTP/1.1")

    async def test_a_url_as_the_target(self) -> None:
        """Its host wins over Host (RFC 9112 section 3.2.2)."""
        for target, path in (
            ("http://b.example:81/x?y", "/x?y"),
            ("http://b.example:81", "/"),
            ("HTTPS://b.example:81?y", "/?y"),
        ):
            asked, _ = await self.ask(request("GET", target))
            self.assertEqual(asked.start, f"GET {path} HTTP/1.1")
            self.assertEqual(asked["Host"], "b.example:81")

    async def test_a_request_that_comes_byte_by_byte(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        for byte in request("PUT", "/slow", b"drop"):
            client.send(bytes((byte,)))
            await turns(2)
        self.assertEqual((await client.response()).body, b"ok")
        (asked,) = origin.requests
        self.assertEqual((asked.target, asked.body), ("/slow", b"drop"))

    async def test_an_answer_that_comes_byte_by_byte(self) -> None:
        origin = await start_origin(self)
        proxy = start_http(self, origin)
        for reply in (OK, head("Transfer-Encoding: chunked") + chunks(b"o", b"k")):
            client = await proxy.connect()
            client.ask()
            served = await origin.accepted() if not origin.ends else origin.ends[0]
            await served.request()
            for byte in reply:
                served.send(bytes((byte,)))
                await turns(2)
            self.assertEqual((await client.response()).body, b"ok")

    async def test_a_reason_of_the_backend_s_own(self) -> None:
        _, response = await self.ask(request(), answer(status="299 Quite Alright"))
        self.assertEqual(response.start, "HTTP/1.1 299 Quite Alright")

    async def test_no_reason(self) -> None:
        _, response = await self.ask(request(), b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(response.start, "HTTP/1.1 200 ")

    async def test_connect_is_refused(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.ask("CONNECT", "a.example:443")
        response = await client.response("CONNECT")
        self.assertEqual((response.status, response["Connection"]), (501, "close"))
        await client.nothing_more()
        self.assertEqual(origin.ends, [])

    async def test_an_empty_line_before_a_request(self) -> None:
        asked, _ = await self.ask(b"\r\n" + request("GET", "/x"))
        self.assertEqual(asked.target, "/x")


class NoBodyTests(TestCase):
    """Some answers have none, whatever their fields say (RFC 9112 section 6.3)."""

    timeout = TIMEOUT

    async def ask(self, reply: bytes, method: str = "GET") -> Message:
        """The answer; another one follows on both connections."""
        origin = await start_origin(self, [reply, OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.ask(method)
        response: Message = await client.response(method)
        self.assertEqual((await client.get()).body, b"ok")
        self.assertEqual(len(origin.ends), 1)
        return response

    async def test_head(self) -> None:
        response = await self.ask(head("Content-Length: 1000"), "HEAD")
        self.assertEqual(response["Content-Length"], "1000")

    async def test_head_of_what_would_be_chunked(self) -> None:
        response = await self.ask(head("Transfer-Encoding: chunked"), "HEAD")
        self.assertEqual(response.status, 200)

    async def test_head_of_what_would_end_with_the_connection(self) -> None:
        self.assertEqual((await self.ask(head("X: y"), "HEAD"))["X"], "y")

    async def test_no_content(self) -> None:
        for line in ((), ("Content-Length: 7",), ("Transfer-Encoding: chunked",)):
            response = await self.ask(head(*line, status="204 No Content"))
            self.assertEqual(response.names, ["Via"])

    async def test_not_modified(self) -> None:
        response = await self.ask(head("ETag: x", "Content-Length: 7", status="304 Not Modified"))
        self.assertEqual((response["ETag"], response["Content-Length"]), ("x", "7"))

    async def test_no_bytes(self) -> None:
        self.assertEqual((await self.ask(answer(b"")))["Content-Length"], "0")
        response = await self.ask(head("Transfer-Encoding: chunked") + chunks())
        self.assertEqual((response.framing, response.body), ("chunked", b""))


class KeepAliveTests(TestCase):
    """The client's connection serves one request after the other, if both sides want that."""

    timeout = TIMEOUT

    async def test_one_after_the_other(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        for number in range(20):
            response = await client.get(f"/{number}")
            self.assertNotIn("Connection", response)
        self.assertEqual([each.target for each in origin.requests], [f"/{n}" for n in range(20)])
        self.assertEqual(len(origin.ends), 1)
        self.assertEqual(proxy.sides()[0].snapshot()["requests"], 20)

    async def test_close(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        response = await client.get("/", "Connection: Close, x")
        self.assertEqual((response.body, response["Connection"]), (b"ok", "close"))
        await client.nothing_more()
        self.assertNotIn("Connection", origin.requests[0])
        await proxy.empty()

    async def test_http_1_0_closes(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        response = await client.get("/", version="1.0")
        self.assertEqual(response.start, "HTTP/1.1 200 OK")
        self.assertEqual((response.body, response["Connection"]), (b"ok", "close"))
        await client.nothing_more()
        self.assertEqual(origin.requests[0]["Via"], "1.0 proxykit")

    async def test_http_1_0_without_a_host(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin, host="inner.example")
        client = await proxy.connect()
        self.assertEqual((await client.get("/", host="", version="1.0")).body, b"ok")
        self.assertEqual(origin.requests[0]["Host"], "inner.example")

    async def test_http_1_0_without_any_host(self) -> None:
        """HTTP/1.1 has to have one, and many servers refuse an empty one."""
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        self.assertEqual((await client.get("/", host="", version="1.0")).body, b"ok")
        self.assertEqual(origin.requests[0]["Host"], str(origin.address))

    async def test_http_1_0_and_a_body_without_a_length(self) -> None:
        """It would have to end with the connection, which for a request nothing can."""
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.ask("POST", "/", version="1.0")
        self.assertEqual((await client.response()).status, 411)
        await client.nothing_more()
        self.assertEqual(origin.ends, [])

    async def test_http_1_0_that_asks_to_keep_it(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        for _ in range(3):
            response = await client.get("/", "Connection: keep-alive", version="1.0")
            self.assertEqual((response.body, response["Connection"]), (b"ok", "keep-alive"))
        self.assertEqual(len(origin.ends), 1)

    async def test_http_1_0_and_an_answer_without_a_length(self) -> None:
        """It knows an end only by a length or a close."""
        for reply in (
            head("Transfer-Encoding: chunked") + chunks(b"o", b"k", trailers=["X: y"]),
            head() + b"ok",
        ):
            origin = await start_origin(self, [last(reply)])
            proxy = start_http(self, origin)
            client = await proxy.connect()
            response = await client.get("/", "Connection: keep-alive", version="1.0")
            self.assertEqual((response.framing, response.body), ("close", b"ok"))
            self.assertEqual(response["Connection"], "close")

    async def test_an_http_1_0_backend(self) -> None:
        old = head("Content-Length: 2", version="1.0") + b"ok"
        kept = head("Content-Length: 2", "Connection: keep-alive", version="1.0") + b"ok"
        for reply, connections in ((last(old), 3), (kept, 1)):
            origin = await start_origin(self, [reply])
            proxy = start_http(self, origin)
            client = await proxy.connect()
            for _ in range(3):
                response = await client.get()
                self.assertEqual(response.start, "HTTP/1.1 200 OK")
                self.assertEqual(
                    response.fields, [("Via", "1.0 proxykit"), ("Content-Length", "2")]
                )
            self.assertEqual(len(origin.ends), connections)

    async def test_a_backend_that_ends_its_answer_with_its_connection(self) -> None:
        for version in ("1.0", "1.1"):
            origin = await start_origin(self, [last(head(version=version) + b"all of it")])
            proxy = start_http(self, origin)
            client = await proxy.connect()
            for _ in range(3):
                response = await client.get()
                self.assertEqual((response.framing, response.body), ("chunked", b"all of it"))
            self.assertEqual(len(origin.ends), 3)
            await until(lambda open=origin: not open.open)

    async def test_a_backend_that_says_close(self) -> None:
        """It is the one to close: who is the first keeps the port."""
        origin = await start_origin(self, [answer(b"ok", "Connection: close")])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        for _ in range(2):
            self.assertNotIn("Connection", await client.get())
        self.assertEqual(len(origin.ends), 2)
        origin.ends[0].close()
        await until(lambda: origin.open == 1)
        # Not for long, where it does not.
        proxy.clock.advance(END_COMES / 2)
        await turns()
        self.assertEqual(origin.open, 1)
        proxy.clock.advance(END_COMES)
        await until(lambda: not origin.open)

    async def test_a_backend_that_is_told_to_close(self) -> None:
        origin = await start_origin(self)
        proxy = start_http(self, origin, reuse="never")
        client = await proxy.connect()
        client.ask()
        served = await origin.accepted()
        self.assertEqual((await served.request())["Connection"], "close")
        served.send(OK)
        await client.response()
        await turns()
        self.assertFalse(served.read_ended)
        proxy.clock.advance(END_COMES * 2)
        await until(lambda: served.read_ended)
        served.close()

    async def test_a_client_that_has_sent_its_end_gets_its_answer(self) -> None:
        origin = await start_origin(self)
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.ask("GET", "/last")
        client.finish()
        served = await origin.accepted()
        await served.request()
        side = await proxy.served_by()
        await until(lambda: side.read_ended)
        served.send(OK)
        response = await client.response()
        self.assertEqual((response.body, response["Connection"]), (b"ok", "close"))
        await client.nothing_more()
        client.close()
        await proxy.empty()

    async def test_a_client_that_says_nothing_and_ends(self) -> None:
        proxy = start_http(self, await start_origin(self))
        client = await proxy.connect()
        client.finish()
        await client.nothing_more()
        await proxy.empty()

    async def test_a_client_that_ends_in_the_middle_of_a_head(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a.exam")
        client.finish()
        await client.nothing_more()
        await proxy.empty()
        self.assertEqual(origin.requests, [])


class SettingsTests(TestCase):
    """Limits of a request's head."""

    timeout = TIMEOUT

    async def test_each_has_its_status(self) -> None:
        settings = HttpSettings(line_limit=100, head_limit=300, fields_limit=5)
        proxy = start_http(self, await start_origin(self), settings=settings)
        for sent, status in (
            (request("GET", "/" + "x" * 100), 414),
            (request("GET", "/", None, "X: " + "x" * 300), 431),
            (request("GET", "/", None, *["X: y"] * 5), 431),
        ):
            client = await proxy.connect()
            client.send(sent)
            response = await client.response()
            self.assertEqual((response.status, response["Connection"]), (status, "close"))
            await client.nothing_more()
