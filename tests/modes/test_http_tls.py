"""The modes behind endpoints that wrap a transport in another one: ``ssl:`` and ``haproxy:``.

Such a wrapper says that it can do whatever the transport below it can. It is not to be believed:
what goes past it is not encrypted, or not seen. Nor has TLS an end of one direction alone.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.ssl import CertificateOptions
from twisted.trial.unittest import TestCase

from proxykit.core.routing import HttpRouter
from proxykit.modes.http import HttpFactory
from proxykit.modes.http_settings import HttpSettings
from tests.http_sockets import (
    HttpClient,
    HttpProxy,
    answer,
    for_good,
    head,
    quiet,
    request,
    start_http,
    start_origin,
)
from tests.modes.test_http_bodies import OK
from tests.sockets import (
    HOST,
    TIMEOUT,
    Connecting,
    End,
    Proxy,
    end_of,
    held,
    reactor,
    start_backend,
    start_proxy,
    until,
)

BULK = random.Random(11).randbytes(4_000_000)
#: More than sockets and buffers on the way take by themselves.
MORE = 24_000_000
HAPROXY = f"haproxy:tcp:0:interface={HOST}"
FROM = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
ASKING = ("Connection: upgrade", "Upgrade: websocket")
SWITCHING = head(*ASKING, status="101 Switching Protocols")


@cache
def pem() -> bytes:
    """A key and its own certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a.example")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    valid = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    certificate = valid.sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)


def tls(test: TestCase) -> str:
    """Where to listen under TLS, as users write it."""
    path = test.mktemp()
    Path(path).write_bytes(pem())
    return f"ssl:0:interface={HOST}:privateKey={path}"


async def connect_tls(test: TestCase, port: int, end: Any = None) -> Any:
    """A client's end of a new connection under TLS. Its orderly end is its loss, not a reset."""
    connected: Deferred[Any] = Deferred()
    connecting = Connecting(end or HttpClient(), connected)
    reactor.connectSSL(HOST, port, connecting, CertificateOptions(verify=False))
    made = await connected

    async def leave() -> None:
        if made.reason is None:  # TLS that is over cannot be ended again.
            await end_of(made)

    test.addCleanup(lambda: Deferred.fromCoroutine(leave()))
    return made


class Wrapped(TestCase):
    """A proxy, a client that came in through a wrapper, and what both modes have in common."""

    timeout = TIMEOUT

    async def start(self, listen: str, **more: Any) -> None:
        """A proxy of mode http, and a client of it."""
        self.origin = await start_origin(self)
        self.proxy: HttpProxy = start_http(self, self.origin, listen=listen, **more)
        await until(lambda: self.proxy.listener.address)
        self.client = await self.connected(self.proxy, HttpClient())

    async def relayed(self, listen: str) -> Any:
        """A proxy of mode tcp, a client of it, and its backend."""
        backend = await start_backend(self)
        self.tcp = start_proxy(self, backend, listen=listen)
        await until(lambda: self.tcp.listener.address)
        self.client = await self.connected(self.tcp, End())
        return await backend.accepted()

    async def connected(self, proxy: Proxy, end: Any) -> Any:
        """One more client."""
        return await connect_tls(self, proxy.port, end)

    async def served(self) -> Any:
        """The backend's end, once the request has come to it."""
        served = await self.origin.accepted()
        self.asked = await served.request()
        return served

    async def left(self) -> None:
        """The client goes, and nothing is left."""
        self.client.close()
        await self.client.lost()
        await self.proxy.empty()

    async def bodies(self) -> None:
        """Some MB each way, twice on the same connections."""
        served = None
        for _ in range(2):
            self.client.ask("POST", "/", BULK)
            served = served or await self.origin.accepted()
            asked = await served.request()
            self.assertTrue(asked.body == BULK)  # Not assertEqual(): it would show them.
            served.send(answer(BULK[::-1]))
            response = await self.client.response()
            self.assertTrue(response.body == BULK[::-1])
        self.assertEqual(len(self.origin.ends), 1)
        await self.left()
        self.assertEqual(self.proxy.stats["bytes_down"], 2 * len(BULK))

    async def slow_client(self) -> None:
        """It reads nothing for a while: the backend is held, and in the end nothing is missing."""
        self.client.ask()
        served = await self.served()
        side = await self.proxy.served_by()
        self.client.transport.pauseProducing()
        body = BULK * (MORE // len(BULK))
        served.send(answer(body))
        await for_good(lambda: side._clogged)
        self.assertTrue(quiet(side.exchange.upstream.transport))
        self.assertGreater(held(served.transport), 0)
        self.client.transport.resumeProducing()
        self.assertTrue((await self.client.response()).body == body)
        await self.left()

    async def slow_backend(self) -> None:
        """The other way round."""
        body = BULK * (MORE // len(BULK))
        self.client.ask("POST", "/", body)
        served = await self.origin.accepted()
        await served.request_head()
        served.transport.pauseProducing()
        side = await self.proxy.served_by()
        await for_good(lambda: side._held)
        served.transport.resumeProducing()
        self.assertTrue(await served.rest(len(body)) == body)
        served.send(OK)
        self.assertEqual((await self.client.response()).body, b"ok")
        await self.left()

    async def switched(self) -> Any:
        """The client and its backend speak another protocol from here on."""
        self.client.ask("GET", "/chat", None, *ASKING)
        served = await self.served()
        served.send(SWITCHING)
        self.assertEqual((await self.client.response()).status, 101)
        return served

    async def upgrade(self) -> Any:
        """Some MB each way after an upgrade."""
        served = await self.switched()
        for end, other in ((self.client, served), (served, self.client)):
            end.send(BULK)
            self.assertTrue(await other.rest(len(BULK)) == BULK)
        return served

    async def relayed_bulk(self, listen: str) -> Any:
        """Some MB each way in mode tcp."""
        served = await self.relayed(listen)
        for end, other in ((self.client, served), (served, self.client)):
            end.send(BULK)
            await other.got(BULK)
        return served


class TlsTests(Wrapped):
    """``ssl:`` as the endpoint of a listener."""

    async def begin(self, **more: Any) -> None:
        await self.start(tls(self), **more)

    async def test_bodies(self) -> None:
        await self.begin()
        await self.bodies()

    async def test_what_the_backend_is_told(self) -> None:
        await self.begin()
        self.client.ask()
        await self.served()
        self.assertEqual(self.asked["X-Forwarded-Proto"], "https")
        self.assertEqual(self.asked["X-Forwarded-For"], HOST)
        self.assertEqual(self.asked["Forwarded"], f'for={HOST};host="a.example";proto=https')

    async def test_a_slow_client(self) -> None:
        await self.begin()
        await self.slow_client()

    async def test_a_slow_backend(self) -> None:
        await self.begin()
        await self.slow_backend()

    async def refused(self, status: int) -> None:
        """The whole answer comes, and then the orderly end."""
        response = await self.client.response()
        self.assertEqual((response.status, response["Connection"]), (status, "close"))
        self.assertFalse(await self.client.lost())
        self.assertEqual(self.client.take_rest(), b"")
        await self.proxy.empty()

    async def test_an_early_413(self) -> None:
        """Before any of the body has come, and in the middle of it."""
        for ahead in (b"", b"x" * 50):
            await self.begin(settings=HttpSettings(body_limit=10))
            self.client.send(request("POST", "/", b"x" * 100_000)[:-100_000] + ahead)
            await self.refused(413)

    async def test_a_413_after_part_of_the_body(self) -> None:
        await self.begin(settings=HttpSettings(body_limit=10))
        self.client.send(
            request("POST", "/", None, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n"
        )
        served = await self.origin.accepted()
        await served.request_head()
        self.client.send(b"6\r\n world\r\n")
        await self.refused(413)

    async def test_a_request_that_is_malformed(self) -> None:
        await self.begin()
        self.client.send(b"GET / HTTP/1.1\r\nHost: a\r\nbad field\r\n\r\n")
        await self.refused(400)

    async def test_the_last_answer_on_a_connection(self) -> None:
        """However long it is, all of it comes."""
        await self.begin()
        self.client.ask("GET", "/", None, "Connection: close")
        (await self.served()).send(answer(BULK))
        self.assertTrue((await self.client.response()).body == BULK)
        self.assertFalse(await self.client.lost())
        await self.proxy.empty()

    async def test_an_upgrade(self) -> None:
        """The client's end goes on to the backend."""
        await self.begin()
        served = await self.upgrade()
        self.client.close()
        await served.ended()
        served.close()
        self.assertFalse(await self.client.lost())
        await self.proxy.empty()

    async def test_an_upgrade_that_the_backend_ends(self) -> None:
        """What it said last comes first."""
        await self.begin()
        served = await self.switched()
        served.send(BULK)
        served.close()
        self.assertTrue(await self.client.rest(len(BULK)) == BULK)
        self.assertFalse(await self.client.lost())
        await self.proxy.empty()

    async def test_mode_tcp(self) -> None:
        served = await self.relayed_bulk(tls(self))
        self.client.close()
        await served.ended()
        served.close()
        self.assertFalse(await self.client.lost())
        await self.tcp.empty()

    async def test_mode_tcp_and_a_backend_that_ends(self) -> None:
        served = await self.relayed(tls(self))
        self.client.send(b"ask")
        await served.got(b"ask")
        served.send(BULK)
        served.close()
        await self.client.got(BULK)
        self.assertFalse(await self.client.lost())
        await self.tcp.empty()

    async def test_without_a_listener(self) -> None:
        """The factory by itself, on an endpoint of somebody else's."""
        self.origin = await start_origin(self)
        self.proxy = start_http(self, self.origin)
        service = self.proxy.service
        factory = HttpFactory(service.flow, service.pool, HttpRouter((), "web"))
        port = await serverFromString(reactor, tls(self)).listen(factory)
        self.addCleanup(port.stopListening)
        self.client = await connect_tls(self, port.getHost().port)
        self.client.ask("POST", "/", BULK)
        served = await self.served()
        self.assertTrue(self.asked.body == BULK)
        self.assertEqual(self.asked["X-Forwarded-Proto"], "https")
        served.send(answer(BULK))
        self.assertTrue((await self.client.response()).body == BULK)
        await self.left()


class HaproxyTests(Wrapped):
    """``haproxy:tcp:`` as the endpoint of a listener: a line with the client's address first."""

    async def connected(self, proxy: Proxy, end: Any) -> Any:
        client = await proxy.connect(end)
        client.send(FROM)
        return client

    async def test_bodies(self) -> None:
        await self.start(HAPROXY)
        await self.bodies()

    async def test_a_slow_client(self) -> None:
        await self.start(HAPROXY)
        await self.slow_client()

    async def test_a_slow_backend(self) -> None:
        await self.start(HAPROXY)
        await self.slow_backend()

    async def test_an_early_413(self) -> None:
        await self.start(HAPROXY, settings=HttpSettings(body_limit=10))
        self.client.send(request("POST", "/", b"x" * 100_000)[:-99_950])
        self.assertEqual((await self.client.response()).status, 413)
        await self.client.nothing_more()
        await self.left()

    async def test_an_upgrade(self) -> None:
        await self.start(HAPROXY)
        served = await self.upgrade()
        self.client.close()
        await served.ended()
        served.close()
        await self.proxy.empty()

    async def test_mode_tcp(self) -> None:
        served = await self.relayed_bulk(HAPROXY)
        self.client.close()
        await served.ended()
        served.close()
        await self.tcp.empty()
