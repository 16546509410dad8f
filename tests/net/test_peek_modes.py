"""PROXY headers in front of a mode: limits, faults, kinds of sockets; the modes tcp and http."""

from __future__ import annotations

import gc
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.request import urlopen

from twisted.internet.address import IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase

from proxykit.model import Backend, Cluster, Config, Listener
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.service import ProxyService
from tests.http_sockets import HttpProxy, answer, request, start_http, start_origin
from tests.modes.test_http_circles import TIMES, garbage
from tests.modes.test_http_tls import connect_tls, tls
from tests.net.test_listener import address_of, port_of
from tests.net.test_peek import (
    BLOCK6,
    CLIENT,
    LINE,
    LINE6,
    LOOKS,
    SILENT,
    TLVS,
    UNIX,
    UNKNOWN,
    HeaderCase,
    read_of,
)
from tests.sockets import (
    BLOCKING,
    HOST,
    TIMEOUT,
    BackendServer,
    ClockedReactor,
    End,
    Proxy,
    connect,
    hear,
    in_thread,
    read_all,
    reset_on_close,
    start_backend,
    turns,
    until,
)


class RoomTests(HeaderCase):
    """Who still sends his header is there already."""

    async def test_the_limit(self) -> None:
        await self.start(limit=1)
        slow = await self.begin(LINE[:9])
        self.assertEqual(
            self.listener.paused, "all of its 1 connections are in use (max_connections)"
        )
        late = await connect(self, port_of(self.listener))
        late.send(LINE + b"question")
        await turns(20)
        self.assertEqual((self.listener.accepted, self.mode.made), (1, []))
        self.clock.advance(6)
        self.assertTrue(await slow.lost())
        near = await self.let_in()
        await near.got(b"question")
        self.assertEqual((near.info.id, self.headers.refused), (8, {"late": 1}))
        self.assertTrue(self.listener.paused)
        late.close()
        await near.ended()
        near.close()
        await self.empty()
        self.assertEqual(self.listener.paused, "")

    async def test_the_end_of_the_service(self) -> None:
        await self.start()
        clients = [await self.begin(sent) for sent in (b"", LINE[:9], TLVS[:20])]
        clients.append(await self.connect())
        clients[-1].send(LINE)
        await self.let_in()
        self.assertEqual((len(self.listener.connections), len(self.deadlines)), (4, 3))
        await self.listener.abort("the service ended")
        self.assertEqual((len(self.listener.connections), len(self.deadlines)), (0, 0))
        for client in clients:
            self.assertTrue(await client.lost())

    async def test_nothing_waits_for_the_garbage_collector(self) -> None:
        await self.start()

        async def let_in() -> None:
            client = self.blocking()
            client.sendall(LINE + b"question")
            near = await self.let_in()
            await near.got(b"question")
            del self.mode.made[:], self.mode.clients[:]
            client.close()
            await near.ended()
            near.close()

        async def malformed() -> None:
            self.blocking().sendall(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: self.headers.refused.pop("malformed", 0))

        async def late() -> None:
            self.blocking()
            await until(lambda: self.listener.connections)
            self.clock.advance(6)
            self.assertEqual(self.headers.refused.pop("late"), 1)

        async def leaves() -> None:
            client = self.blocking()
            client.sendall(LINE[:20])
            reset_on_close(client)
            client.close()
            await until(lambda: self.headers.refused.pop("closed", 0))

        for do in (let_in, malformed, late, leaves):
            await self.leaves_nothing(do)

    async def leaves_nothing(self, do: Callable[[], Awaitable[object]]) -> None:
        """Do it some times over."""
        self.addCleanup(gc.enable)
        for _ in range(2):  # What is made once, and kept, is no matter.
            await do()
            await self.empty()
        gc.collect()
        gc.disable()
        for _ in range(TIMES):
            await do()
            await self.empty()
        await turns(10)
        self.assertEqual(garbage(), {}, do.__name__)
        gc.enable()


class FaultTests(HeaderCase):
    """A mode that wants none, or raises: nothing is left of the connection."""

    async def test_it_wants_none(self) -> None:
        await self.start(lambda: None)
        for number, sent in enumerate((LINE, TLVS + b"question"), 1):
            client = await self.connect()
            client.send(sent)
            self.assertTrue(await client.lost())
            await self.empty()
            self.assertEqual(len(self.mode.clients), number)
        self.assertEqual(self.headers.refused, {})

    async def raises(self, protocol: Any, sent: bytes = LINE + b"question") -> None:
        await self.start(protocol)
        client = await self.connect()
        client.send(sent)
        await until(lambda: client.reason is not None or client.read_ended)
        await self.empty()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(client.received, b"")
        self.assertEqual(self.headers.refused, {})

    async def test_it_raises_when_it_is_asked(self) -> None:
        def protocol() -> None:
            raise ZeroDivisionError

        await self.raises(protocol)

    async def test_it_raises_when_its_connection_is_made(self) -> None:
        heard: list[str] = []

        class Bad(Protocol):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

            def dataReceived(self, data: bytes) -> None:
                heard.append("data")

            def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
                heard.append("lost")

        await self.raises(Bad)
        self.assertEqual(heard, ["lost"])
        await self.raises(Bad, TLVS)

    async def test_it_raises_at_what_is_behind(self) -> None:
        class Bad(End):
            def dataReceived(self, data: bytes) -> None:
                raise ZeroDivisionError

        await self.raises(Bad)
        await self.raises(Bad, UNIX + b"x" * 100_000)

    async def test_it_closes_at_once(self) -> None:
        class Brief(End):
            def connectionMade(self) -> None:
                self.transport.write(b"closed until Monday")
                self.transport.loseConnection()

        await self.start(Brief)
        client = self.blocking()
        client.sendall(LINE)
        self.assertEqual(await in_thread(read_all, client), b"closed until Monday")
        await self.empty()


class KindTests(HeaderCase):
    """Other sockets than those of IPv4."""

    async def converse(self, client: Any) -> Any:
        """A header, a question and an answer."""
        client.send(LINE + b"question")
        near = await self.let_in()
        await near.got(b"question")
        self.assertEqual(near.info.client, CLIENT)
        near.send(b"answer")
        await client.got(b"answer")
        client.send(b"!")
        await near.got(b"question!")
        return near

    def unix(self, name: str = "") -> socket.socket:
        """A client of the listener on a unix socket, with a name of its own if it is given one."""
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        if name:
            made.bind(name)
        made.settimeout(BLOCKING)
        made.connect(self.listener.address.removeprefix("unix:"))
        return made

    def path(self) -> str:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        return f"unix:{directory.name}/front"

    async def test_unix(self) -> None:
        """Whatever its client calls itself; Twisted looks at the fourth part of an address."""
        await self.start(listen=self.path(), trust=("unix",))
        four = f"\0{os.urandom(2).hex()[1:]}" if LOOKS else ""  # A stock port ends at such a name.
        names = ("", four, f"{self.path()[5:]}-client")
        for number, (header, name) in enumerate(zip((LINE, TLVS, UNIX), names, strict=True)):
            client = self.unix(name)
            client.sendall(header[:9])
            await until(lambda wanted=number: self.listener.accepted > wanted)
            first = self.first()
            await until(lambda first=first: read_of(first) == 9)
            client.sendall(header[9:] + b"question")
            client.shutdown(socket.SHUT_WR)
            near = await self.let_in(number + 1)
            await near.ended()
            self.assertEqual(near.received, b"question")
            self.assertEqual(near.info.relay.name, os.fsencode(name))
            near.send(b"answer")
            near.close()
            self.assertEqual(await in_thread(read_all, client), b"answer")
        await self.empty()
        self.assertEqual(self.headers.refused, {})

    async def test_unix_that_is_not_trusted(self) -> None:
        lines = hear(self)
        await self.start(listen=self.path(), trust=("0.0.0.0/0", "::/0"))
        self.assertEqual(await in_thread(read_all, self.unix()), b"")
        self.assertEqual(self.headers.refused, {"not trusted": 1})
        self.assertEqual(
            lines[1:], ["front: unix: refused: it may not send a PROXY header (trust)"]
        )

    async def test_ipv6(self) -> None:
        await self.start(listen="tcp6:0:interface=\\:\\:1", trust=("::1",))
        client = await connect(self, port_of(self.listener), host="::1")
        near = await self.converse(client)
        self.assertEqual(near.info.relay, client.transport.getHost())

    async def test_ipv4_on_a_socket_of_both_families(self) -> None:
        await self.start(listen="tcp6:0", trust=("127.0.0.0/8",))
        client = await connect(self, port_of(self.listener))
        near = await self.converse(client)
        port = client.transport.getHost().port
        self.assertEqual(near.info.relay, IPv6Address("TCP", f"::ffff:{HOST}", port))
        stranger = socket.create_connection(("::1", port_of(self.listener)), BLOCKING)
        self.addCleanup(stranger.close)
        self.assertEqual(await in_thread(read_all, stranger), b"")
        self.assertEqual(self.headers.refused, {"not trusted": 1})

    async def test_a_transport_that_wraps_another(self) -> None:
        """What a header is read through, the mode is read through as well."""
        await self.start(listen=tls(self))
        client = await connect_tls(self, port_of(self.listener), End())
        near = await self.converse(client)
        self.assertTrue(ISSLTransport.providedBy(near.transport))
        client.close()
        await near.lost()
        await self.empty()

    async def test_malformed_through_a_transport_that_wraps_another(self) -> None:
        await self.start(listen=tls(self))
        client = await connect_tls(self, port_of(self.listener), End())
        client.send(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100_000)
        await client.lost()
        await self.empty()
        self.assertEqual((self.mode.made, self.headers.refused), ([], {"malformed": 1}))


def start_tcp(test: TestCase, *backends: BackendServer, **cluster: Any) -> Proxy:
    """A proxy of mode tcp whose clients are introduced by a relay on this machine."""
    clock = ClockedReactor()
    service = ProxyService(clock)
    here = f"tcp:0:interface={HOST}"
    front = Listener("front", here, "tcp", "web", 100, TcpSettings(), (HOST,), True)
    addresses = tuple(Backend(backend.address) for backend in backends)
    service.apply(Config((front,), (Cluster("web", addresses, **cluster),), here))
    service.startService()
    proxy = Proxy(test, service, clock)
    test.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
    return proxy


class TcpTests(TestCase):
    """The mode tcp behind a relay."""

    timeout = TIMEOUT

    async def test_a_question_with_its_end_right_behind_the_header(self) -> None:
        backend = await start_backend(self)
        lines = hear(self)
        proxy = start_tcp(self, backend)
        for header in (LINE, TLVS):
            client = proxy.blocking()
            client.sendall(header + b"question")
            client.shutdown(socket.SHUT_WR)
            served = await backend.accepted()
            await served.got(b"question")
            await served.ended()
            served.send(b"answer")
            served.close()
            self.assertEqual(await in_thread(read_all, client), b"answer")
            await proxy.empty()
            self.assertRegex(
                lines[-1],
                rf"^front #\d: 192.0.2.7:56324 -> web {backend.address} \(own: opaque bytes\):"
                " 8 bytes up, 6 bytes down, ",
            )

    async def test_bulk(self) -> None:
        """On the proxykit reactor most of it goes through a pipe in the kernel."""
        backend = await start_backend(self)
        proxy = start_tcp(self, backend)
        client = await proxy.connect()
        up, down = bytes(range(256)) * 12_000, bytes(range(255, -1, -1)) * 12_000
        client.send(TLVS + up)
        served = await backend.accepted()
        served.send(down)
        await served.got(up)
        await client.got(down)

    async def test_api(self) -> None:
        backend = await start_backend(self)
        proxy = start_tcp(self, backend)
        reading, relaying, bad = [await proxy.connect() for _ in range(3)]
        relaying.send(LINE)
        await backend.accepted()
        bad.send(b"GET / HTTP/1.1\r\n\r\n")
        await bad.lost()
        await until(lambda: len(proxy.listener.connections) == 2)
        port: Any = proxy.service.admin_port
        found: dict[str, Any] = {}
        for path in ("connections", "listeners"):
            url = f"http://{HOST}:{port.getHost().port}/api/{path}"
            found |= json.loads(await in_thread(lambda url=url: urlopen(url).read()))
        first, second = sorted(found["connections"], key=lambda each: len(each))
        shown = {"listener": "front", "client": address_of(reading)}
        self.assertEqual(first, {"id": first["id"], **shown, "state": "introducing itself"})
        self.assertEqual(second["client"], "192.0.2.7:56324")
        self.assertEqual(second["relay"], address_of(relaying))
        self.assertEqual((second["state"], second["cluster"]), ("relaying", "web"))
        (front,) = found["listeners"]
        self.assertEqual((front["connections"], front["refused"]), (2, {"malformed": 1}))

    async def test_source_hash(self) -> None:
        """By the client, not by the relay, that all of them come through."""
        backends = [await start_backend(self), await start_backend(self)]
        proxy = start_tcp(self, *backends, balance="source-hash")

        async def takes(header: bytes) -> Any:
            client = await proxy.connect()
            client.send(header)
            shown = proxy.listener.describe_connections
            await until(lambda: [each for each in shown() if each["state"] == "relaying"])
            backend = shown()[0]["backend"]
            client.reset()
            await proxy.empty()
            return backend

        def header(number: int, port: int) -> bytes:
            return b"PROXY TCP4 192.0.2.%d 198.51.100.9 %d 443\r\n" % (number, port)

        taken = {number: await takes(header(number, 1)) for number in range(16)}
        self.assertEqual(len(set(taken.values())), 2)
        for number, backend in taken.items():
            self.assertEqual(await takes(header(number, 2)), backend)
        own = {await takes(UNKNOWN) for _ in range(4)}
        self.assertEqual(len(own), 1)

    async def test_the_end_of_the_service(self) -> None:
        backend = await start_backend(self)
        proxy = start_tcp(self, backend)
        clients = [await proxy.connect() for _ in range(3)]
        clients[1].send(LINE[:9])
        clients[2].send(LINE)
        await backend.accepted()
        await until(lambda: len(proxy.listener.connections) == 3)
        await proxy.service.abort_connections()
        for client in clients:
            self.assertTrue(await client.lost())
        await proxy.empty()


class HttpTests(TestCase):
    """The mode http behind a relay."""

    timeout = TIMEOUT
    FORGED = (
        "X-Forwarded-For: 203.0.113.5",
        "X-Forwarded-Proto: https",
        "Forwarded: for=203.0.113.5",
    )

    async def start(self, *trust: str) -> HttpProxy:
        self.origin = await start_origin(self, [answer(b"ok")])
        return start_http(self, self.origin, trust=(HOST, *trust), proxy_protocol=True)

    async def asked(self, header: bytes, *trust: str) -> list[str]:
        """What the backend is told of the client by a request with forged fields."""
        proxy = await self.start(*trust)
        client = await proxy.connect()
        client.send(header + request("GET", "/", None, *self.FORGED, host="a"))
        self.assertEqual((await client.response()).body, b"ok")
        (asked,) = self.origin.requests
        names = ("X-Forwarded-For", "X-Forwarded-Proto", "Forwarded")
        return [", ".join(asked.all(name)) for name in names]

    async def test_who_asks(self) -> None:
        """The header's client; that its relay is trusted does not make its fields so."""
        for header, client, quoted in (
            (LINE, "192.0.2.7", "192.0.2.7"),
            (TLVS, "192.0.2.7", "192.0.2.7"),
            (LINE6, "2001:db8::7", '"[2001:db8::7]"'),
            (BLOCK6, "2001:db8::7", '"[2001:db8::7]"'),
        ):
            found = await self.asked(header, "203.0.113.0/24")
            self.assertEqual(found, [client, "http", f'for={quoted};host="a";proto=http'])

    async def test_a_client_that_is_trusted_itself(self) -> None:
        forwarded = 'for=203.0.113.5, for=192.0.2.7;host="a";proto=http'
        expected = ["203.0.113.5, 192.0.2.7", "https", forwarded]
        for header in (LINE, TLVS):
            self.assertEqual(await self.asked(header, "192.0.2.0/24"), expected)

    async def test_a_relay_that_does_not_say_for_whom(self) -> None:
        """Nobody knows whose fields they are."""
        for header, _ in SILENT[:3]:
            expected = [HOST, "http", f'for={HOST};host="a";proto=http']
            self.assertEqual(await self.asked(header), expected)

    async def test_a_unix_socket_somewhere_else(self) -> None:
        """Those on this machine are trusted, and it is not one of them."""
        expected = ["", "http", 'for=unknown;host="a";proto=http']
        self.assertEqual(await self.asked(UNIX, "unix"), expected)

    async def test_requests_right_behind_the_header(self) -> None:
        """The last one with the end."""
        proxy = await self.start()
        for header in (LINE, TLVS):
            client = await proxy.connect()
            body = bytes(range(256)) * 800
            client.send(header + request("GET", "/1") + request("POST", "/2", body))
            client.finish()
            for target in ("/1", "/2"):
                self.assertEqual((await client.response()).body, b"ok")
                self.assertEqual(self.origin.requests[-1].target, target)
            self.assertEqual(self.origin.requests[-1].body, body)
            await client.nothing_more()
        self.assertEqual([entry.client for entry in proxy.entries], ["192.0.2.7"] * 4)

    async def test_what_is_no_header_is_no_request_either(self) -> None:
        proxy = await self.start()
        client = await proxy.connect()
        client.ask()
        self.assertTrue(await client.lost())
        self.assertEqual((client.received, self.origin.requests), (b"", []))
        self.assertEqual(proxy.listener.snapshot()["refused"], {"malformed": 1})
        self.assertEqual(proxy.connections(), [])
