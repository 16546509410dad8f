"""The modes with TLS of our own, at one end or both."""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from twisted.trial.unittest import TestCase

from proxykit.model import Backend, ClusterTls, ListenerTls
from proxykit.model import Pool as PoolConfig
from tests.http_sockets import (
    ScriptedEnd,
    answer,
    for_good,
    head,
    last,
    quiet,
    request,
    start_origin,
)
from tests.modes.test_http_circles import TIMES, garbage
from tests.sockets import HOST, TIMEOUT, End, start_backend, turns
from tests.tls_certificates import VERSIONS, ca_file, client_context, leaf, pem_file
from tests.tls_sockets import SecureHttpProxy, start_secure, start_secure_backend

BULK = random.Random(12).randbytes(4_000_000)
MORE = 24_000_000
FORGED = (
    "X-Client-Cert-Subject: CN=admin",
    "x-client-cert-fingerprint: 00",
    "X_Client_Cert_Subject: CN=admin",
    "X-Client_Cert-Fingerprint: 00",
)


class Case(TestCase):
    """TLS in, out, or both."""

    timeout = TIMEOUT

    def inside(self, **more: Any) -> ListenerTls:
        return ListenerTls((pem_file(self, "a.example"),), **more)

    def outside(self, **more: Any) -> ClusterTls:
        return ClusterTls(ca_file=ca_file(self), **{"server_name": "a.example", **more})


class FieldTests(Case):
    """What the origin is told of a client's certificate."""

    async def told(self, context: Any, *lines: str, **more: Any) -> dict[str, str | None]:
        origin = await start_origin(self)
        tls = self.inside(client_ca=ca_file(self))
        proxy: SecureHttpProxy = start_secure(self, "http", origin, tls=tls, **more)
        client = await proxy.secure(context)
        client.ask("GET", "/", None, *lines)
        served = await origin.accepted()
        asked = await served.request()
        self.head = bytes(served.received)
        served.send(answer(b"ok"))
        self.assertEqual((await client.response()).body, b"ok")
        client.close()
        await client.lost()
        await proxy.empty()
        self.assertEqual(asked["X-Forwarded-Proto"], "https")
        fields = dict(asked.fields)
        return {name: fields.get(f"X-Client-Cert-{name}") for name in ("Subject", "Fingerprint")}

    async def test_shown(self) -> None:
        fingerprint = leaf("me")[1].fingerprint(hashes.SHA256()).hex()
        self.assertEqual(
            await self.told(client_context(self, "me"), *FORGED),
            {"Subject": "CN=me", "Fingerprint": fingerprint},
        )
        self.assertNotIn(b"admin", self.head)
        self.assertEqual(self.head.lower().count(b"cert"), 2)

    async def test_forged(self) -> None:
        found = await self.told(None, *FORGED)
        self.assertEqual(found, {"Subject": None, "Fingerprint": None})
        self.assertNotIn(b"cert", self.head.lower())

    async def test_of_one_who_is_trusted(self) -> None:
        found = await self.told(None, *FORGED[:2], trust=(f"{HOST}/32",))
        self.assertEqual(found, {"Subject": "CN=admin", "Fingerprint": "00"})

    async def test_odd_subjects(self) -> None:
        text = "J\u00fcrgen\r\nX-Admin: yes"
        subject = ((x509.NameOID.COMMON_NAME, text),)
        found = await self.told(client_context(self, "me", subject=subject))
        self.assertEqual(found["Subject"], "CN=J\\C3\\BCrgen\\0D\\0AX-Admin: yes")
        self.assertNotIn(b"\r\nX-Admin", self.head)


class BothTests(Case):
    """TLS at both ends."""

    async def start(self, mode: str, make: Any = None, version: Any = None) -> Any:
        self.origin = await start_secure_backend(self, "a.example", make=make, version=version)
        return start_secure(self, mode, self.origin, tls=self.inside(), to=self.outside())

    async def test_tcp(self) -> None:
        """Much each way, and then each end by itself."""
        for version in VERSIONS:
            proxy = await self.start("tcp", End, version)
            client = await proxy.secure(client_context(version=version))
            client.send(BULK)
            served = await self.origin.accepted()
            await served.got(BULK)
            client.finish()
            await served.ended()
            served.send(BULK)
            await client.got(BULK)
            served.close()
            await client.ended()
            client.close()
            self.assertFalse(await client.lost())
            await proxy.empty()

    async def test_tcp_and_a_backend_that_ends_first(self) -> None:
        proxy = await self.start("tcp", End)
        client = await proxy.secure()
        client.send(b"hello")
        served = await self.origin.accepted()
        await served.got(b"hello")
        served.finish()
        await client.ended()
        client.send(b" world")
        await served.got(b"hello world")
        client.close()
        await served.ended()
        served.close()
        await proxy.empty()

    async def test_tcp_cut_off(self) -> None:
        """Without a close_notify: neither side is told that it is done."""
        for cut in ("client", "served"):
            proxy = await self.start("tcp", End)
            client = await proxy.secure()
            client.send(b"half")
            served = await self.origin.accepted()
            await served.got(b"half")
            ends = {"client": client, "served": served}
            ends.pop(cut).transport.raw.loseConnection()
            (other,) = ends.values()
            self.assertTrue(await other.lost())
            self.assertFalse(other.read_ended)
            await proxy.empty()

    async def test_http_one_after_another(self) -> None:
        """On one connection to the origin."""
        proxy = await self.start("http")
        for _ in range(3):
            client = await proxy.secure()
            client.ask("POST", "/", BULK)
            served = self.origin.ends[0] if self.origin.ends else await self.origin.accepted()
            self.assertTrue((await served.request()).body == BULK)
            # Short: after a read that is full, a stock transport cannot tell what is behind it.
            served.send(answer(b"ok"))
            self.assertEqual((await client.response()).body, b"ok")
            client.close()
            await client.lost()
            await proxy.at_rest()
        self.assertEqual(len(self.origin.begun), 1)
        self.assertEqual(proxy.pooled()["idle"], 1)
        await proxy.empty()

    async def test_http_a_slow_client(self) -> None:
        proxy = await self.start("http")
        client = await proxy.secure()
        client.ask()
        served = await self.origin.accepted()
        await served.request()
        side = await proxy.served_by()
        client.transport.pauseProducing()
        body = BULK * (MORE // len(BULK))
        served.send(answer(body))
        await for_good(lambda: side._clogged)
        self.assertTrue(quiet(side.exchange.upstream.transport.raw))
        client.transport.resumeProducing()
        self.assertTrue((await client.response()).body == body)
        client.close()
        await proxy.empty()

    async def test_http_a_client_that_has_ended(self) -> None:
        """It still gets its answer."""
        for version in VERSIONS:
            proxy = await self.start("http")
            client = await proxy.secure(client_context(version=version))
            client.ask()
            client.finish()
            served = await self.origin.accepted()
            await served.request()
            served.send(answer(b"late"))
            self.assertEqual((await client.response()).body, b"late")
            await client.ended()
            client.close()
            await proxy.empty()


class OutTests(Case):
    """TLS to the origins alone."""

    async def until_close(self) -> tuple[Any, Any, Any]:
        origin = await start_secure_backend(self, "a.example")
        proxy = start_secure(self, "http", origin, to=self.outside())
        client = await proxy.connect()
        client.ask()
        served = await origin.accepted()
        await served.request()
        served.send(head(status="200 OK") + b"half of it")
        await client._until(lambda: b"half of it" in client.received)
        return proxy, client, served

    async def test_cut_off(self) -> None:
        """A body without a length that has no end is not the whole."""
        proxy, client, served = await self.until_close()
        served.transport.raw.loseConnection()
        await client._until(lambda: client.read_ended or client.reason is not None)
        self.assertNotIn(b"\r\n0\r\n\r\n", bytes(client.received))
        self.assertTrue(client.reason is not None or b"chunked" in client.received)
        client.close()
        await proxy.empty()

    async def test_whole(self) -> None:
        proxy, client, served = await self.until_close()
        served.close()
        response = await client.response()
        self.assertEqual(response.body, b"half of it")
        client.close()
        await proxy.empty()

    async def test_a_wrong_certificate(self) -> None:
        origin = await start_secure_backend(self, "b.example")
        proxy = start_secure(self, "http", origin, to=self.outside())
        client = await proxy.connect()
        response = await client.get()
        self.assertEqual(response.status, 502)
        self.assertIn("error=tls_certificate_error", response["Proxy-Status"])
        self.assertEqual(origin.ends, [])
        client.close()
        await proxy.empty()

    async def test_no_tls_at_all(self) -> None:
        class Plain(End):
            def dataReceived(self, data: bytes) -> None:
                self.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        backend = await start_backend(self, Plain)
        proxy = start_secure(self, "http", backend, to=self.outside())
        client = await proxy.connect()
        response = await client.get()
        self.assertEqual(response.status, 502)
        self.assertIn("error=tls_protocol_error", response["Proxy-Status"])
        client.close()
        await proxy.empty()

    async def test_the_next_one(self) -> None:
        """A request that could be sent to nobody is sent to the next."""
        wrong = await start_secure_backend(self, "b.example")
        right = await start_secure_backend(self, "a.example", scripts=[[answer(b"ok")]])
        proxy = start_secure(self, "http", wrong, Backend(right.address), to=self.outside())
        client = await proxy.connect()
        for _ in range(3):
            client.send(request("POST", "/", b"once"))
            self.assertEqual((await client.response()).body, b"ok")
        self.assertIsInstance(right.ends[0], ScriptedEnd)
        self.assertEqual([asked.body for asked in right.requests], [b"once"] * 3)
        client.close()
        await proxy.empty()


class CirclesTests(Case):
    """Nothing of a connection waits for the garbage collector."""

    async def leaves_nothing(self, do: Callable[[], Awaitable[object]]) -> None:
        self.addCleanup(gc.enable)
        for _ in range(2):
            await do()
        await turns()
        gc.collect()
        gc.disable()
        for _ in range(TIMES):
            await do()
        await turns(10)
        found = garbage()
        ours = {name: count for name, count in found.items() if name.startswith("proxykit.")}
        self.assertEqual(ours, {})

    async def test_in(self) -> None:
        """Closed by the client, reset by it, no TLS at all, and gone in the handshake."""
        origin = await start_origin(self, [answer(b"ok")])
        proxy = start_secure(self, "http", origin, tls=self.inside())

        async def asked(end: str) -> None:
            client = await proxy.secure()
            await client.get()
            getattr(client, end)()
            await client.lost()

        async def plain(end: str) -> None:
            client = await proxy.connect()
            client.send(b"GET / HTTP/1.1\r\n\r\n" if end == "close" else b"\x16\x03")
            if end == "close":
                await client.ended()
            getattr(client, end)()
            await client.lost()

        for do in (asked, plain):
            for end in ("close", "reset"):
                await self.leaves_nothing(lambda do=do, end=end: do(end))  # type: ignore[misc]
                gc.enable()

    async def test_out(self) -> None:
        """A right one, and a wrong one."""
        for name in ("a.example", "b.example"):
            origin = await start_secure_backend(self, name, scripts=[[last(answer(b"ok"))]])
            proxy = start_secure(
                self, "http", origin, to=self.outside(), pool=PoolConfig(reuse="never")
            )

            async def asked(proxy: Any = proxy) -> None:
                client = await proxy.connect()
                await client.get()
                client.close()
                await client.lost()

            await self.leaves_nothing(asked)
            gc.enable()
