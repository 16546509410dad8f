"""Giving a connection to another listener's mode: who hears of it from then on, who counts it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import socket
import ssl
import tempfile
import weakref
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.trial.unittest import TestCase

from proxykit.core.deadlines import Deadlines
from proxykit.core.trust import Trust
from proxykit.model import Backend, Cluster, Config, ConnInfo, SniRoute
from proxykit.model import Listener as ListenerConfig
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.net.listener import Listener, endpoint
from proxykit.net.peek import Headers
from proxykit.ops.service import ProxyService
from tests.modes.test_http_tls import connect_tls, tls
from tests.net.test_listener import address_of, port_of
from tests.net.test_peek import CLIENT, LOOKS, SERVER, TLVS, Asked
from tests.sockets import (
    BLOCKING,
    HOST,
    TIMEOUT,
    ClockedReactor,
    End,
    Proxy,
    connect,
    end_of,
    hear,
    in_thread,
    reactor,
    read_all,
    start_backend,
    turns,
    until,
)


class Giving(End):
    """Gives its connection up when it has read ``go``, with all that it has read."""

    info: ConnInfo
    #: The listener that accepts, and the other one.
    front: Listener
    inner: Listener

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if b"go" in self.received:
            self.give(bytes(self.received))

    def give(self, received: bytes) -> None:
        self.front.hand_over(self, self.inner, received)


class Looking(Giving):
    """Gives it up before it has read anything, where that is possible."""

    def connectionMade(self) -> None:
        if LOOKS:
            self.transport.look(self.seen, 100)

    def seen(self, data: bytes) -> None:
        if b"go" in data:
            self.transport.look(None, 0)
            self.give(b"")


class Generous(Giving):
    """Gives it up at once."""

    def connectionMade(self) -> None:
        self.give(b"")


class HandOverCase(TestCase):
    """A listener whose mode gives everything away, and one that does not listen."""

    timeout = TIMEOUT

    async def start(
        self,
        first: type[Giving] = Giving,
        second: Any = End,
        limit: int = 100,
        listen: str = f"tcp:0:interface={HOST}",
        trust: tuple[str, ...] = (),
    ) -> None:
        deadlines = Deadlines(ClockedReactor(), lambda: Logger().failure("at a deadline"))
        headers = Headers("front", Trust(trust), 5.0, deadlines) if trust else None
        ids = itertools.count(7)
        self.target = Asked(second)
        inner = self.inner = Listener("inner", self.target, 1, ids, deadlines)

        def make() -> Giving:
            made = first()
            made.front, made.inner = front, inner
            return made

        self.mode = Asked(make)
        front = self.front = Listener("front", self.mode, limit, ids, deadlines, headers)
        await front.listen(endpoint(reactor, listen))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop(front)))

    async def stop(self, front: Listener) -> None:
        await front.stop_listening()
        for protocol in tuple(front.connections.values()):
            await end_of(protocol)
        await self.empty()

    async def empty(self) -> None:
        """Wait until nobody is there."""
        await until(lambda: not self.front.connections)
        self.assertEqual(self.inner.connections, {})

    async def connect(self) -> Any:
        """One more client."""
        return await connect(self, port_of(self.front))

    def blocking(self) -> socket.socket:
        """One more client, with a blocking socket."""
        made = socket.create_connection((HOST, port_of(self.front)), BLOCKING)
        self.addCleanup(made.close)
        return made

    async def taken(self, count: int = 1) -> Any:
        """Who has got a connection, once there are so many."""
        made = self.target.made
        await until(lambda: len(made) >= count and made[count - 1].transport)
        return made[count - 1]


class HandOverTests(HandOverCase):
    async def test_what_was_read_and_what_comes(self) -> None:
        for kind in (Giving, Looking, Generous):
            await self.start(kind)
            client = await self.connect()
            client.send(b"let")
            if kind is not Generous:
                await until(lambda: self.mode.made and (LOOKS or self.mode.made[0].received))
                await turns()
                self.assertEqual(self.target.made, [])
            client.send(b" go ")
            near = await self.taken()
            await near.got(b"let go ")
            client.send(b"on")
            await near.got(b"let go on")
            near.send(b"answer")
            await client.got(b"answer")

    async def test_nothing_has_been_read_where_nothing_need_be(self) -> None:
        await self.start(Looking)
        client = await self.connect()
        client.send(b"go")
        near = await self.taken()
        await near.got(b"go")
        self.assertEqual(self.mode.made[0].received, b"" if LOOKS else b"go")

    async def test_when_nothing_has_come(self) -> None:
        """It can be given up at any time."""
        await self.start()
        client = await self.connect()
        await until(lambda: self.mode.made and self.mode.made[0].transport)
        self.mode.made[0].give(b"")
        client.send(b"hello")
        await (await self.taken()).got(b"hello")

    async def test_the_first_one_hears_no_more(self) -> None:
        for kind in (Giving, Looking, Generous):
            for leave in (End.finish, End.reset):
                await self.start(kind)
                client = await self.connect()
                client.send(b"go")
                near = await self.taken()
                await near.got(b"go")
                (first,) = self.mode.made
                before = bytes(first.received)
                client.send(b"on")
                await near.got(b"goon")
                leave(client)
                if leave is End.finish:
                    await near.ended()
                    near.close()
                self.assertEqual(await near.lost(), leave is End.reset)
                await self.empty()
                self.assertIsNone(first.transport)
                self.assertEqual(
                    (first.received, first.read_ended, first.reason), (before, False, None)
                )

    async def test_the_table(self) -> None:
        """It stays in that of the listener that has accepted it, under its number."""
        await self.start()
        client = await self.connect()
        await until(lambda: self.mode.made)
        self.assertEqual(self.front.connections, {7: self.mode.made[0]})
        client.send(b"go")
        near = await self.taken()
        self.assertEqual(self.front.connections, {7: near})
        self.assertEqual((self.front.accepted, self.inner.accepted), (1, 0))
        self.assertEqual(self.inner.connections, {})
        (shown,) = self.front.describe_connections()
        self.assertEqual((shown["id"], shown["client"]), (7, address_of(client)))

    async def test_whose_it_is(self) -> None:
        await self.start(trust=(HOST,))
        client = await self.connect()
        relay = client.transport.getHost()
        client.send(TLVS + b"go")
        near = await self.taken()
        await near.got(b"go")
        tlvs = ((2, b"a.example"), (0xE0, b"\0"))
        told = ConnInfo(7, "front", CLIENT, SERVER, relay, tlvs)
        self.assertEqual(self.mode.made[0].info, told)
        self.assertEqual(near.info, evolve(told, listener="inner"))
        self.assertEqual(near.info.client_host, "192.0.2.7")
        self.assertEqual(self.target.clients, [CLIENT])

    async def test_it_is_told_before_its_connection_is_made(self) -> None:
        seen: list[Any] = []

        class Curious(End):
            info: Any = None

            def connectionMade(self) -> None:
                seen.append((self.info.listener, self.transport.getPeer(), bytes(self.received)))

        await self.start(second=Curious)
        client = await self.connect()
        client.send(b"go")
        await (await self.taken()).got(b"go")
        self.assertEqual(seen, [("inner", client.transport.getHost(), b"")])

    async def test_the_limit_is_that_of_who_has_accepted_it(self) -> None:
        await self.start(limit=2)
        clients = [await self.connect() for _ in range(3)]
        for client in clients:
            client.send(b"go")
        first, _ = await self.taken(1), await self.taken(2)  # The other one's limit is 1.
        await turns(20)
        self.assertEqual((self.front.accepted, len(self.target.made)), (2, 2))
        self.assertTrue(self.front.paused)
        self.assertEqual(self.inner.paused, "")
        first.close()
        await (await self.taken(3)).got(b"go")

    async def test_the_end_right_behind(self) -> None:
        for kind in (Giving, Looking, Generous):
            await self.start(kind)
            client = self.blocking()
            client.sendall(b"go and answer")
            client.shutdown(socket.SHUT_WR)
            near = await self.taken()
            await near.ended()
            self.assertEqual(near.received, b"go and answer")
            near.send(b"answer")
            near.close()
            self.assertEqual(await in_thread(read_all, client), b"answer")

    async def test_the_end_of_the_service(self) -> None:
        """Each is told in its own way."""
        told: list[str] = []

        class Told(End):
            def abort(self, why: str) -> None:
                told.append(why)
                self.reset()

        await self.start(second=Told)
        client = await self.connect()
        client.send(b"go")
        await self.taken()
        await self.front.abort("the service ended")
        self.assertEqual((told, self.front.connections), (["the service ended"], {}))
        self.assertTrue(await client.lost())

    async def test_nothing_of_the_first_one_is_left(self) -> None:
        self.addCleanup(gc.enable)
        for kind in (Giving, Looking, Generous):
            await self.start(kind)
            gc.collect()
            gc.disable()
            client = self.blocking()
            client.sendall(b"go")
            near = await self.taken()
            await near.got(b"go")
            first = weakref.ref(self.mode.made.pop())
            await turns()
            self.assertIsNone(first())
            gc.enable()


class KindTests(HandOverCase):
    """Other sockets than those of TCP."""

    async def test_unix(self) -> None:
        for kind in (Giving, Looking):
            directory = tempfile.TemporaryDirectory()
            self.addCleanup(directory.cleanup)
            await self.start(kind, listen=f"unix:{directory.name}/front")
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.settimeout(BLOCKING)
            client.connect(f"{directory.name}/front")
            client.sendall(b"go ")
            near = await self.taken()
            await near.got(b"go ")
            client.sendall(b"on")
            client.shutdown(socket.SHUT_WR)
            await near.ended()
            self.assertEqual(near.received, b"go on")
            near.send(b"answer")
            near.close()
            self.assertEqual(await in_thread(read_all, client), b"answer")
            await self.empty()

    async def test_a_transport_that_wraps_another(self) -> None:
        for kind in (Giving, Generous):
            await self.start(kind, listen=tls(self))
            client = await connect_tls(self, port_of(self.front), End())
            client.send(b"go ")
            near = await self.taken()
            await near.got(b"go ")
            self.assertTrue(ISSLTransport.providedBy(near.transport))
            near.send(b"answer")
            await client.got(b"answer")
            client.send(b"on")
            await near.got(b"go on")
            client.close()
            await near.lost()
            await self.empty()
            (first,) = self.mode.made
            self.assertIsNone(first.reason)


class FaultTests(HandOverCase):
    """A mode that does not want it, or raises: the client is told, and nothing is left."""

    async def fails(self, second: Any, kind: type[Giving], errors: int) -> None:
        await self.start(kind, second)
        client = await self.connect()
        client.send(b"go on")
        await until(lambda: client.reason is not None or client.read_ended)
        await self.empty()
        self.assertEqual(client.received, b"")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), errors)

    async def test_it_wants_none(self) -> None:
        for kind in (Giving, Looking, Generous):
            await self.fails(lambda: None, kind, 0)

    async def test_it_raises_when_it_is_asked(self) -> None:
        def second() -> None:
            raise ZeroDivisionError

        for kind in (Giving, Looking, Generous):
            await self.fails(second, kind, 1)

    async def test_it_raises_when_its_connection_is_made(self) -> None:
        heard: list[str] = []

        class Bad(Protocol):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

            def dataReceived(self, data: bytes) -> None:
                heard.append("data")

            def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
                heard.append("lost")

        for kind in (Giving, Looking, Generous):
            await self.fails(Bad, kind, 1)
            self.assertEqual(heard.pop(), "lost")
            self.assertEqual(heard, [])
            self.assertIsNone(self.mode.made[0].reason)

    async def test_it_raises_at_what_has_been_read(self) -> None:
        class Bad(End):
            def dataReceived(self, data: bytes) -> None:
                raise ZeroDivisionError

        for kind in (Giving, Looking, Generous):
            await self.fails(Bad, kind, 1)

    async def test_it_raises_when_nothing_has_come(self) -> None:
        """Who gives it up at any other time hears nothing of that."""

        class Bad(End):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

        await self.start(second=Bad)
        client = await self.connect()
        await until(lambda: self.mode.made and self.mode.made[0].transport)
        self.mode.made[0].give(b"")
        self.assertTrue(await client.lost())
        await self.empty()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ServiceTests(TestCase):
    """As a configuration says it: TLS for one name goes on as if it had come elsewhere."""

    timeout = TIMEOUT

    async def test_a_route_that_names_a_listener(self) -> None:
        lines = hear(self)
        backend = await start_backend(self)
        clock = ClockedReactor()
        service = ProxyService(clock)
        routes = (SniRoute(host="a.example", listener="inner"),)
        listeners = (
            ListenerConfig(
                "front", f"tcp:0:interface={HOST}", "sni", settings=SniSettings(routes=routes)
            ),
            ListenerConfig("inner", "", "tcp", "web", settings=TcpSettings()),
        )
        service.apply(Config(listeners, (Cluster("web", (Backend(backend.address),)),)))
        service.startService()
        proxy = Proxy(self, service, clock)
        self.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
        sent = hello("a.example")
        for at in (0, 1, len(sent) // 2, len(sent)):
            client = await proxy.connect()
            client.send(sent[:at])
            await turns()
            client.send(sent[at:] + b"more")
            served = await backend.accepted()
            await served.got(sent + b"more")
            served.send(b"answer")
            await client.got(b"answer")
            name = address_of(client)
            client.finish()
            await served.ended()
            served.close()
            await proxy.empty()
            size = len(sent) + 4
            self.assertEqual(lines[-1][:7], "inner #")
            said = f": {name} -> web {backend.address} (own: opaque bytes): {size} bytes up, "
            self.assertIn(said, lines[-1])
        front, inner = (listener.snapshot() for listener in service.listeners.values())
        self.assertEqual((front["accepted"], inner["accepted"]), (4, 0))
        self.assertEqual(front["traffic"]["hellos"]["handed_over"], 4)
        self.assertEqual((inner["address"], inner["connections"]), ("", 0))


def hello(name: str) -> bytes:
    """What a TLS client begins with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
