"""``close = "reset"`` at L7: what the pool closes leaves no port in TIME_WAIT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import ClusterTls
from proxykit.model import Pool as PoolConfig
from proxykit.net.closing import settled
from tests.http_sockets import HttpEnd, HttpProxy, answer, last, request, start_http, start_origin
from tests.modes.test_http_bodies import OK
from tests.modes.test_http_upgrade import ASKING, SWITCHING
from tests.modes.test_resets import ports_of, rests, takes_little
from tests.sockets import TIMEOUT, until
from tests.tls_certificates import ca_file
from tests.tls_sockets import start_secure, start_secure_backend

BODY = bytes(400_000)


class HttpResetsTests(TestCase):
    timeout = TIMEOUT

    async def asked(self, sent: bytes = b"", close: str = "reset", **more: Any) -> None:
        """A request has come to the origin."""
        self.origin = await start_origin(self)
        self.proxy: HttpProxy = start_http(self, self.origin, close=close, **more)
        self.client = await self.proxy.connect()
        self.client.send(sent or request())
        self.served: HttpEnd = await self.origin.accepted()
        await self.served.request_head()

    def settled(self) -> bool:
        """Whether the origin has acknowledged what it was asked, and the proxy read the answer."""
        (backend,) = self.proxy.cluster.backends.values()
        return all(settled(each.transport) is True for each in backend.shelf.free)

    async def answered(self, reply: bytes = OK) -> None:
        self.served.send(reply)
        await self.client.response()
        await self.proxy.at_rest()

    async def ends(self, ways: Callable[[], Any], **more: Any) -> None:
        """What makes the proxy close an idle connection: with a reset, or without."""
        for close in ("reset", "fin"):
            await self.asked(close=close, **more)
            await self.answered()
            await until(self.settled)
            (backend,) = self.proxy.cluster.backends.values()
            (upstream,) = backend.shelf.free
            ports = ports_of(upstream.transport)
            ways()
            if close == "reset":
                self.assertTrue(await self.served.lost())
                self.assertFalse(self.served.read_ended)
            else:
                await self.served.ended()
                self.served.close()
                await self.served.lost()
            await until(lambda: not self.proxy.leftovers()["connections"])
            await until(lambda ports=ports, close=close: rests(ports) is (close == "fin"))

    async def test_expired(self) -> None:
        await self.ends(lambda: self.proxy.clock.advance(40))

    async def test_too_many(self) -> None:
        """It is closed as soon as it is idle, and nothing is under way then."""
        await self.asked(max_idle=0)
        await self.answered()
        self.assertTrue(await self.served.lost())

    async def test_never_reused(self) -> None:
        await self.asked(reuse="never")
        await self.answered()
        self.assertTrue(await self.served.lost())

    async def test_a_backend_that_only_says_that_it_closes(self) -> None:
        await self.asked()
        await self.answered(answer(b"ok", "Connection: close"))
        self.assertTrue(await self.served.lost())
        self.assertFalse(self.served.read_ended)

    async def test_a_backend_that_closes_first(self) -> None:
        """Nothing of it rests here, and it is not told off."""
        for reply in (OK, answer(b"ok", "Connection: close")):
            origin = await start_origin(self, [last(reply)])
            proxy = start_http(self, origin, close="reset")
            client = await proxy.connect()
            await client.get()
            (served,) = origin.ends
            self.assertFalse(await served.lost())
            await until(lambda proxy=proxy: not proxy.leftovers()["connections"])

    async def test_a_backend_that_ends_what_is_idle(self) -> None:
        await self.asked()
        await self.answered()
        await until(self.settled)
        self.served.finish()
        await self.served.ended()
        await until(lambda: not self.proxy.leftovers()["connections"])

    async def test_a_backend_that_has_not_taken_the_request(self) -> None:
        """It has answered all the same; a reset would throw away what is under way to it."""
        origin = await start_origin(self)
        proxy = start_http(self, origin, close="reset")
        client = await proxy.connect()
        client.send(request("POST", "/", BODY)[: -len(BODY)])
        client.send(BODY[:1])
        served = await origin.accepted()
        await served.request_head()
        takes_little(served)
        client.send(BODY[1:])
        exchange = (await proxy.served_by()).exchange
        # All of it is in the kernel, and not acknowledged.
        await until(lambda: exchange.request_done and not exchange.upstream._client_held)
        self.assertFalse(settled(exchange.upstream.transport))
        served.send(answer(b"ok", "Connection: close"))
        self.assertEqual((await client.response()).body, b"ok")
        served.transport.resumeProducing()
        await served.ended()
        self.assertEqual(len(served.received) - served.taken, len(BODY))
        await proxy.at_rest()

    async def test_after_an_upgrade(self) -> None:
        """It is a relay's by then."""
        await self.asked(request("GET", "/", None, *ASKING))
        self.served.send(SWITCHING)
        await self.client.response()
        side: Any = await self.proxy.served_by()
        upstream = side.relay.upstream.transport
        await until(lambda: settled(upstream))
        self.client.finish()
        self.assertTrue(await self.served.lost())
        await self.client.ended()
        await self.proxy.empty()
        self.assertEqual(self.proxy.entries[-1].error, "client closed")

    async def test_what_was_one_clients_alone(self) -> None:
        await self.asked()
        self.served.send(answer(b"ok", "WWW-Authenticate: NTLM"))
        await self.client.response()
        side: Any = await self.proxy.served_by()
        await until(lambda: settled(side.private.transport))
        self.client.close()
        self.assertTrue(await self.served.lost())

    async def test_tls(self) -> None:
        origin = await start_secure_backend(self, "a.example", scripts=[[OK]])
        to = ClusterTls(server_name="a.example", ca_file=ca_file(self))
        pool = PoolConfig(idle_timeout=5.0)
        proxy = start_secure(self, "http", origin, to=to, pool=pool, cluster={"close": "reset"})
        client = await proxy.connect(HttpEnd())
        client.send(request())
        await client.response()
        await proxy.at_rest()
        (backend,) = proxy.cluster.backends.values()
        await until(lambda: all(settled(each.transport) for each in backend.shelf.free))
        proxy.clock.advance(8)
        (served,) = origin.ends
        self.assertTrue(await served.lost())
        self.assertFalse(served.read_ended)
