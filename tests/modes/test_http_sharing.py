"""The mode http: why a request had a connection of its own, and why one was not kept."""

from __future__ import annotations

import socket
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import HttpRoute
from proxykit.modes.http_settings import HttpSettings
from proxykit.net.http1_upstream import END_COMES
from proxykit.net.relay import FULL_READ
from tests.http_sockets import (
    CLOSE,
    RESET,
    SILENCE,
    HttpProxy,
    Step,
    answer,
    head,
    last,
    request,
    start_http,
    start_origin,
)
from tests.modes.test_http_bodies import OK, start
from tests.modes.test_http_upgrade import ASKING, SWITCHING
from tests.sni_sockets import LOOKS
from tests.sockets import TIMEOUT, until

NTLM = answer(b"who?", "WWW-Authenticate: NTLM", status="401 Unauthorized")
HALF = head("Content-Length: 10") + b"01234"


def unread(transport: Any) -> bytes:
    """What has come for a transport that is not read from, or the first byte of it."""
    try:
        found: bytes = transport.getHandle().recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return b""
    return found


class SharingTestCase(TestCase):
    timeout = TIMEOUT

    async def start(self, *scripts: Any, **more: Any) -> None:
        """A client of a proxy in front of one origin, which has been told what to do."""
        self.origin = await start_origin(self, *scripts)
        self.proxy: HttpProxy = start_http(self, self.origin, **more)
        self.client = await self.proxy.connect()

    def entry(self) -> tuple[bool, str, str]:
        """What the access log says of the last request's connection."""
        found = self.proxy.entries[-1]
        return found.reused, found.own, found.not_kept


class OwnTests(SharingTestCase):
    """Why a request was the first on its connection."""

    async def test_reused(self) -> None:
        await self.start([OK])
        for expected in ((False, "none-idle", ""), (True, "", "")):
            await self.client.get()
            self.assertEqual(self.entry(), expected)
        self.assertEqual(self.proxy.pooled()["own"], {"none-idle": 1})

    async def test_stale(self) -> None:
        await self.start([OK])
        await self.client.get()
        await self.proxy.at_rest()
        self.proxy.clock.advance(2)
        self.client.ask("POST")
        await self.client.response()
        self.assertEqual(self.entry(), (False, "stale", ""))

    async def test_policy(self) -> None:
        await self.start([last(OK)], [last(answer(b"ok", "Connection: close"))], reuse="never")
        for _ in range(2):
            await self.client.get()
            self.assertEqual(self.entry(), (False, "policy", "policy"))
        self.assertEqual(self.proxy.pooled()["own"], {"policy": 2})
        self.assertEqual(self.proxy.pooled()["not_kept"], {"policy": 2})

    async def test_lost(self) -> None:
        for end in (CLOSE, RESET):
            await self.start([OK, end], [OK])
            await self.client.get()
            await self.client.get()
            self.assertEqual(self.entry(), (False, "lost", ""))
            self.assertEqual(self.proxy.pooled()["own"], {"none-idle": 1, "lost": 1})
            self.assertEqual(self.proxy.pooled()["not_kept"], {"closed": 1})

    async def test_without_a_backend(self) -> None:
        """There was nothing to be shared."""
        await self.start([OK], routes=[HttpRoute(path="/here", status=200, text="me")])
        await self.client.get("/here")
        self.assertEqual(self.entry(), (False, "", ""))
        self.client.send(b"\r\nno request\r\n\r\n")
        await self.client.response()
        self.assertEqual((self.entry(), self.proxy.entries[-1].status), ((False, "", ""), 400))

    async def test_whose_connection_it_was(self) -> None:
        await self.start([OK])
        other = await self.proxy.connect()
        for client in (self.client, other, self.client):
            await client.get()
        self.assertEqual([entry.connection for entry in self.proxy.entries], [1, 2, 1])
        other.send(b"\x00")
        other.finish()
        await other.response()
        self.assertEqual(self.proxy.entries[-1].connection, 2)


class NotKeptTests(SharingTestCase):
    """Why a connection was not there for the next one."""

    async def assert_not_kept(self, reason: str, *steps: Step, **more: Any) -> None:
        """One request, and what becomes of its connection."""
        await self.start(list(steps), **more)
        await self.client.get()
        await self.proxy.at_rest()
        self.assert_reason(reason)

    def assert_reason(self, reason: str) -> None:
        self.assertEqual(self.proxy.pooled()["not_kept"], {reason: 1})
        self.assertEqual(self.entry(), (False, "none-idle", reason))

    async def test_the_backend_closes(self) -> None:
        """Or has said so, or has to: or its answer would have no end."""
        await self.assert_not_kept("closed", last(answer(b"ok", "Connection: close")))
        await self.start([answer(b"ok", "Connection: close")])
        await self.client.get()
        self.proxy.clock.advance(END_COMES * 2)
        await self.proxy.at_rest()
        self.assert_reason("closed")
        await self.assert_not_kept("closed", last(head() + b"until the end"))
        await self.assert_not_kept("closed", CLOSE)
        await self.assert_not_kept("closed", RESET)

    async def test_while_it_is_idle(self) -> None:
        for end in ("close", "reset"):
            await self.start([OK])
            await self.client.get()
            getattr(self.origin.ends[0], end)()
            await until(lambda: not self.proxy.leftovers()["connections"])
            self.assertEqual(self.proxy.pooled()["not_kept"], {"closed": 1})
            self.assertEqual(self.entry(), (False, "none-idle", ""))

    async def test_closed_early(self) -> None:
        origin, self.proxy = await start(self)
        client = await self.proxy.connect()
        client.send(request("POST", "/", b"0123456789")[:-5])
        served = await origin.accepted()
        await served.request_head()
        served.send(OK)
        await client.response()
        await served.lost()
        self.assert_reason("closed-early")

    async def test_the_client_leaves(self) -> None:
        await self.start([SILENCE])
        self.client.ask()
        await until(lambda: self.origin.requests)
        self.client.reset()
        await until(lambda: self.proxy.entries)
        self.assert_reason("mid-message")

    async def test_the_backend_leaves(self) -> None:
        """In the middle of its answer."""
        for end in ("close", "reset"):
            origin, self.proxy = await start(self)
            client = await self.proxy.connect()
            client.ask()
            served = await origin.accepted()
            await served.request()
            served.send(HALF)
            await client._until(lambda client=client: client.received.endswith(b"01234"))
            getattr(served, end)()
            self.assertTrue(await client.lost())
            self.assert_reason("mid-message")

    async def test_it_takes_too_long(self) -> None:
        settings = HttpSettings(response_timeout=5.0, response_body_timeout=5.0)
        for sent in (b"", HALF):
            origin, self.proxy = await start(self, settings=settings)
            client = await self.proxy.connect()
            client.ask()
            served = await origin.accepted()
            await served.request()
            served.send(sent)
            await client._until(
                lambda client=client, sent=sent: client.received.endswith(sent[-5:])
            )
            self.proxy.clock.advance(6)
            await until(lambda: self.proxy.entries)
            self.assert_reason("mid-message")

    async def test_the_request_breaks_a_rule(self) -> None:
        await self.start([SILENCE])
        self.client.send(request("POST", "/", None, "Transfer-Encoding: chunked") + b"5\r\n")
        await self.proxy.served_by()
        await until(lambda: self.origin.ends and self.origin.ends[0].received)
        self.client.send(b"hellono")
        await self.client.response()
        self.assert_reason("mid-message")

    async def test_more_than_an_answer(self) -> None:
        await self.assert_not_kept("surplus", OK + b"x")

    async def test_perhaps_more_than_an_answer(self) -> None:
        """A read that has filled its buffer: is there anything behind it? Not all can look."""
        reply = answer(bytes(FULL_READ - len(answer(bytes(10_000))) + 10_000))
        self.assertEqual(len(reply), FULL_READ)
        for more in (b"", b"x"):
            origin, self.proxy = await start(self)
            client = await self.proxy.connect()
            client.ask()
            served = await origin.accepted()
            await served.request()
            upstream = (await self.proxy.served_by()).exchange.upstream
            upstream.transport.pauseProducing()
            served.send(more)
            await until(lambda more=more, of=upstream.transport: unread(of) == more)
            upstream.dataReceived(reply)
            await client.response()
            if more or not LOOKS:
                self.assert_reason("surplus")
            else:
                self.assertEqual(self.entry(), (False, "none-idle", ""))

    async def test_a_backend_that_breaks_a_rule(self) -> None:
        await self.assert_not_kept("broken", b"nonsense\r\n\r\n")

    async def test_bytes_that_nobody_has_asked_for(self) -> None:
        await self.start([OK])
        await self.client.get()
        self.origin.ends[0].send(b"x")
        await until(lambda: not self.proxy.leftovers()["connections"])
        self.assertEqual(self.proxy.pooled()["not_kept"], {"broken": 1})

    async def test_max_idle(self) -> None:
        await self.assert_not_kept("pool-full", OK, max_idle=0)

    async def test_expired(self) -> None:
        await self.start([OK])
        await self.client.get()
        self.proxy.clock.advance(40)
        await until(lambda: not self.proxy.leftovers()["connections"])
        self.assertEqual(self.proxy.pooled()["not_kept"], {"expired": 1})

    async def test_authenticated(self) -> None:
        """Once, however many requests it then serves."""
        await self.start([NTLM])
        await self.client.get()
        self.assert_reason("authenticated")
        await self.client.get()
        self.assertEqual(self.entry(), (True, "", "authenticated"))
        self.client.close()
        await self.proxy.empty()
        self.assertEqual(self.proxy.pooled()["not_kept"], {"authenticated": 1})

    async def test_authenticated_by_what_the_client_says(self) -> None:
        await self.start([OK])
        await self.client.get("/", "Authorization: Negotiate abc")
        await self.proxy.at_rest()
        self.assert_reason("authenticated")

    async def test_upgraded(self) -> None:
        await self.start([SWITCHING])
        self.client.ask("GET", "/", None, *ASKING)
        await self.client.response()
        self.assertEqual(self.proxy.pooled()["not_kept"], {"upgraded": 1})
        self.client.reset()
        await self.proxy.empty()
        self.assert_reason("upgraded")

    async def test_stopped(self) -> None:
        await self.start([OK])
        await self.client.get()
        await self.proxy.service.abort_connections()
        self.assertEqual(self.proxy.pooled()["not_kept"], {"stopped": 1})
