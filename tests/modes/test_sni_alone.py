"""The mode sni: handing connections over to other listeners, what it shows of itself, embedding."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from proxykit.core.routing import Everything, SniRouter
from proxykit.interfaces import IHandsOver, IMode, ISnapshot
from proxykit.model import Listener, SniRoute
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.sni import SniFactory, SniMode
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.net.transport import Short
from proxykit.wire.proxyproto import AUTHORITY, Endpoint, v1, v2
from tests.http_sockets import HttpClient
from tests.modes.test_http_circles import TIMES, garbage
from tests.modes.test_tcp import name_of
from tests.sni_sockets import (
    HELLO,
    LOOKS,
    SniProxy,
    Taker,
    alert,
    asking,
    cluster_of,
    large,
    start_sni,
)
from tests.sockets import (
    HOST,
    TIMEOUT,
    BackendServer,
    connect,
    hear,
    reactor,
    start_backend,
    turns,
    unanswering,
    until,
)
from tests.wire.hellos import records

HERE = SniRoute(host="a.example", listener="here")
BEHIND = records(b"early data", kind=23)


class HandOverTests(TestCase):
    """A route may name a listener: what comes for it goes on there."""

    timeout = TIMEOUT

    async def test_a_whole_hello(self) -> None:
        """Where what has come can be looked at, nothing of it has been read by then."""
        for data in (HELLO, HELLO + BEHIND, large(16_000), HELLO + large(30_000)):
            proxy = start_sni(self, routes=[HERE], takers=["here"])
            client = await proxy.connect()
            client.send(data)
            taker = await proxy.taker().accepted()
            await taker.got(data)
            self.assertEqual(taker.unread[: len(HELLO)], data[: len(HELLO)] if LOOKS else b"")
            if not LOOKS:
                self.assertEqual(taker.pieces[0][: len(HELLO)], data[: len(HELLO)])
            taker.send(b"welcome")
            await client.got(b"welcome")
            client.send(b"and more")
            await taker.got(data + b"and more")

    async def test_a_hello_in_pieces(self) -> None:
        """What was read by then is handed on, all of it at once."""
        whole = large(30_000)
        proxy = start_sni(self, routes=[HERE], takers=["here"])
        for data in (HELLO, HELLO + BEHIND, records(HELLO[5:], 9), whole, whole + BEHIND):
            for at in (1, 5, 60, len(HELLO) - 1, 29_999):
                if at >= len(data) or (at > len(HELLO) and len(data) < 30_000):
                    continue
                client = await proxy.connect()
                client.send(data[:at])
                await proxy.has_read(client, at)
                client.send(data[at:])
                taker = await proxy.taker().accepted()
                await taker.got(data)
                self.assertEqual(taker.unread, b"")
                self.assertEqual(taker.pieces[0][: at + 1], data[: at + 1])

    async def test_one_that_is_larger_than_a_look(self) -> None:
        proxy = start_sni(self, routes=[HERE], takers=["here"])
        client = await proxy.connect()
        client.send(large(61_440) + BEHIND)
        taker = await proxy.taker().accepted()
        await taker.got(large(61_440) + BEHIND)
        self.assertEqual(taker.unread[:5], b"")

    async def test_nobody_to_look_for(self) -> None:
        """Where no route names a listener, hellos are read at once."""
        looks: list[bool] = []
        backend = await start_backend(self)
        if LOOKS:
            look = Short.look
            self.patch(
                Short, "look", lambda *told: (looks.append(told[1] is not None), look(*told))
            )
        for more in (False, True):
            proxy = start_sni(self, backend, looks=more)
            client = await proxy.connect()
            client.send(HELLO)
            await (await backend.accepted()).got(HELLO)
            self.assertEqual(any(looks), LOOKS and more)

    async def test_by_protocol(self) -> None:
        """What offers it goes there, the same name without it to a cluster."""
        backend = await start_backend(self)
        proxy = start_sni(
            self,
            backend,
            routes=[
                SniRoute(host="a.example", alpn=("acme-tls/1",), listener="here"),
                SniRoute("web", host="a.example"),
                SniRoute(alpn=("acme-tls/1",), listener="there"),
            ],
            takers=["here", "there"],
        )
        for data, end in (
            (asking("a.example", "acme-tls/1"), proxy.taker("here")),
            (asking("a.example", "h2"), backend),
            (asking("b.example", "acme-tls/1"), proxy.taker("there")),
            (asking(None, "acme-tls/1"), proxy.taker("there")),
            (asking("a.example", "h2", "acme-tls/1"), proxy.taker("here")),
        ):
            client = await proxy.connect()
            client.send(data)
            await (await end.accepted()).got(data)
        self.assertEqual(proxy.hellos, {"refused": {}, "handed_over": 4})

    async def test_what_it_is_told_of_it(self) -> None:
        """It is as if it had come there, but for whose table it is in."""
        proxy = start_sni(self, routes=[HERE], takers=["here"])
        client = await proxy.connect()
        client.send(HELLO)
        taker = await proxy.taker().accepted()
        self.assertEqual((taker.info.listener, taker.info.id), ("here", 1))
        self.assertEqual(taker.info.client, client.transport.getHost())
        self.assertEqual(
            proxy.connections(), [{"id": 1, "listener": "here", "client": name_of(client)}]
        )
        self.assertEqual(proxy.service.listeners["here"].connections, {})
        self.assertEqual(proxy.leftovers()["deadlines"], 0)
        client.reset()
        await proxy.empty()

    async def test_an_end_right_behind_it(self) -> None:
        proxy = start_sni(self, routes=[HERE], takers=["here"])
        for data in (HELLO, large(30_000)):
            client = await proxy.connect()
            client.send(data)
            client.finish()
            taker = await proxy.taker().accepted()
            await taker.ended()
            self.assertEqual(bytes(taker.received), data)
            taker.send(b"answer")
            taker.close()
            await client.got(b"answer")
            await client.ended()

    async def test_behind_a_proxy_header(self) -> None:
        proxy = start_sni(self, routes=[HERE], takers=["here"], trust=(HOST,), headers=True)
        source, destination = Endpoint("192.0.2.1", 7), Endpoint("192.0.2.2", 443)
        tlvs = ((AUTHORITY, b"b.example"),)
        for start in (v1(source, destination), v2(source, destination, tlvs)):
            for cut in (0, 9, len(start), len(start) + 9):
                client = await proxy.connect()
                client.send((start + HELLO)[:cut])
                await turns()
                client.send((start + HELLO)[cut:])
                taker = await proxy.taker().accepted()
                await taker.got(HELLO)
                if LOOKS and cut <= len(start):
                    self.assertEqual(taker.unread, HELLO)
                self.assertEqual((taker.info.client.host, taker.info.client.port), ("192.0.2.1", 7))
                self.assertEqual(taker.info.server.port, 443)
                self.assertEqual(taker.info.relay, client.transport.getHost())
                self.assertEqual(taker.info.tlvs, tlvs if start[:1] != b"P" else ())

    async def test_to_a_tcp_listener(self) -> None:
        """One that listens itself as well."""
        backend = await start_backend(self)
        lines = hear(self)
        tcp = Listener("here", f"tcp:0:interface={HOST}", "tcp", "web", settings=TcpSettings())
        proxy = start_sni(self, backend, routes=[HERE], more=[tcp])
        for pieces in ([HELLO + BEHIND], [HELLO[:50], HELLO[50:] + BEHIND]):
            client = await proxy.connect()
            client.send(pieces[0])
            if len(pieces) > 1:
                await proxy.has_read(client, 50)
                client.send(pieces[1])
            served = await backend.accepted()
            await served.got(HELLO + BEHIND)
            served.send(b"welcome")
            await client.got(b"welcome")
            (shown,) = proxy.connections()
            self.assertEqual((shown["listener"], shown["state"]), ("here", "relaying"))
            name = name_of(client)
            client.reset()
            await served.lost()
            await proxy.empty()
            self.assertIn(f": {name} -> web {backend.address} (own", lines[-1])
            self.assertEqual(lines[-1][:6], "here #")
        there: Any = proxy.service.listeners["here"].snapshot()["traffic"]
        self.assertEqual(there["ended"], {"client reset": 2})
        self.assertEqual(proxy.traffic["ended"], {})
        straight = await connect(self, int(proxy.service.listeners["here"].address.split(":")[1]))
        straight.send(b"no hello")
        await (await backend.accepted()).got(b"no hello")

    async def test_to_an_http_listener(self) -> None:
        """To that a hello is a bad request; it says so itself."""
        backend = await start_backend(self)
        http = Listener("here", "", "http", "web", settings=HttpSettings())
        proxy = start_sni(self, backend, routes=[HERE], more=[http])
        for cut in (0, 50):
            client = await proxy.connect(HttpClient())
            client.send(HELLO[:cut])
            await proxy.has_read(client, cut)
            client.send(HELLO[cut:])
            self.assertEqual((await client.response()).status, 400)
            client.close()
            await proxy.empty()

    async def test_the_service_ends(self) -> None:
        proxy = start_sni(self, routes=[HERE], takers=["here"])
        client = await proxy.connect()
        client.send(HELLO)
        await (await proxy.taker().accepted()).got(HELLO)
        await proxy.service.abort_connections()
        self.assertTrue(await client.lost())


class EmbeddedTests(TestCase):
    """The factory on somebody's own port."""

    timeout = TIMEOUT

    async def start(self, *routes: SniRoute, **more: Any) -> None:
        self.backend = await start_backend(self)
        self.lines = hear(self)
        service = self.proxy = start_sni(self, self.backend)
        flow, connector = service.service.flow, service.service.connector
        self.factory = SniFactory(flow, connector, SniRouter(routes), **more)
        port = reactor.listenTCP(0, self.factory, interface=HOST)
        self.addCleanup(port.stopListening)
        self.client = await connect(self, port.getHost().port)
        self.name = name_of(self.client)

    async def test_a_cluster(self) -> None:
        for cut in (0, 50):
            await self.start(SniRoute("web", host="a.example"))
            self.client.send(HELLO[:cut])
            await turns()
            self.client.send(HELLO[cut:])
            await (await self.backend.accepted()).got(HELLO)
            self.client.reset()
            await self.proxy.empty()
            await until(lambda: "a.example" in self.lines[-1])
            self.assertIn(f"sni: {self.name} (a.example) -> web ", self.lines[-1])

    async def test_its_own_cluster(self) -> None:
        await self.start(cluster="web", settings=SniSettings(not_tls=""))
        self.client.send(b"GET /")
        await (await self.backend.accepted()).got(b"GET /")

    async def test_nobody_to_hand_over_to(self) -> None:
        for cut in (0, 50):
            await self.start(HERE, name="mine")
            self.client.send(HELLO[:cut])
            await turns()
            self.client.send(HELLO[cut:])
            self.assertTrue(await self.client.lost())
            await self.proxy.empty()
            self.assertEqual(
                self.lines[-1],
                f"mine: {self.name} refused: nobody can give it to the listener here",
            )
            self.assertEqual(self.factory.snapshot()["refused"], 1)
            self.assertEqual(self.factory.snapshot()["hellos"]["handed_over"], 0)

    async def test_somebody_else_to_hand_over_to(self) -> None:
        """Who embeds it decides what becomes of a connection."""
        await self.start(HERE)
        given: list[Any] = []
        self.factory.hand_over_by(lambda *told: given.append(told))
        client = await connect(self, self.client.transport.getPeer().port)
        client.send(HELLO[:50])
        await turns(10)
        client.send(HELLO[50:])
        await until(lambda: given)
        ((protocol, name, received),) = given
        self.assertEqual((name, received), ("here", HELLO))
        protocol.transport.abortConnection()

    async def test_refused(self) -> None:
        await self.start(name="mine")
        self.client.send(HELLO)
        await self.client.ended()
        self.assertEqual(bytes(self.client.received), alert(112))
        self.assertEqual(
            self.lines[-1], f"mine: {self.name} refused: nothing is served as a.example"
        )


class ShownTests(TestCase):
    """What /api/connections, /api/listeners and the log have."""

    timeout = TIMEOUT

    async def test_states(self) -> None:
        backend = await start_backend(self)
        proxy = start_sni(
            self,
            backend,
            routes=[SniRoute("web", host="a.example"), SniRoute("slow", host="c.example")],
            others=[cluster_of("slow", _Nobody(unanswering(self)))],
            max_connections=1,
            settings=SniSettings(not_tls="web"),
        )
        clients = []
        expected = []
        for data, name, state, cluster in (
            (HELLO, "a.example", "relaying", "web"),
            (HELLO, "a.example", "waiting", "web"),
            (b"GET /", None, "waiting", "web"),
            (asking("c.example"), "c.example", "connecting", "slow"),
            (HELLO[:7], None, "greeting", None),
            (asking("b.example"), "b.example", "closing", None),
            (asking(None), None, "closing", None),
        ):
            client = await proxy.connect()
            clients.append(client)
            client.send(data)
            side = await proxy.has_read(client, len(data))
            await until(lambda side=side, state=state: side.snapshot()["state"] == state)
            expected.append(
                {
                    "id": len(clients),
                    "listener": "front",
                    "client": name_of(client),
                    "cluster": cluster,
                    "backend": str(backend.address) if state == "relaying" else None,
                    "state": state,
                    "bytes_up": len(data),
                    "bytes_down": 0,
                    "seconds": 0.0,
                    "server_name": name,
                }
            )
        self.assertEqual(proxy.connections(), expected)
        await proxy.service.abort_connections()
        for client in clients[:5]:
            self.assertTrue(await client.lost())

    async def test_before_a_byte(self) -> None:
        proxy = start_sni(self)
        side = await proxy.side_of(await proxy.connect())
        shown = side.snapshot()
        self.assertEqual((shown["state"], shown["bytes_up"]), ("greeting", 0))

    async def test_the_line_of_a_connection(self) -> None:
        lines = hear(self)
        backend = await start_backend(self)
        proxy = start_sni(self, backend, default="web", settings=SniSettings(not_tls=""))
        sent = ((HELLO, " (a.example)"), (asking(None), ""), (b"GET /", ""))
        for number, (data, text) in enumerate(sent, 1):
            client = await proxy.connect()
            name = name_of(client)
            client.send(data)
            served = await backend.accepted()
            await served.got(data)
            client.reset()
            await proxy.empty()
            self.assertEqual(
                lines[-1],
                f"front #{number}: {name}{text} -> web {backend.address} (own: opaque bytes):"
                f" {len(data)} bytes up, 0 bytes down, 0.000 s, client reset",
            )

    async def test_no_line_if_the_user_wants_none(self) -> None:
        backend = await start_backend(self)
        proxy = start_sni(self, backend, settings=SniSettings(log_connections=False))
        lines = hear(self)
        client = await proxy.connect()
        client.send(HELLO)
        await (await backend.accepted()).got(HELLO)
        client.reset()
        await proxy.empty()
        self.assertEqual(lines, [])

    async def test_keepalive(self) -> None:
        for keepalive in (True, False):
            backend = await start_backend(self)
            proxy = start_sni(self, backend, settings=SniSettings(keepalive=keepalive))
            client = await proxy.connect()
            client.send(HELLO)
            await (await backend.accepted()).got(HELLO)
            side = await proxy.side()
            assert side.relay is not None
            for transport in (side.transport, side.relay.upstream.transport):
                self.assertEqual(transport.getTcpKeepAlive(), keepalive)


class _Nobody(BackendServer):
    """Stands for an address."""

    def __init__(self, address: Any) -> None:
        super().__init__()
        self.address = address


class ModeTests(TestCase):
    def test_interfaces(self) -> None:
        self.assertTrue(verifyObject(IMode, SniMode()))
        proxy = start_sni(self)
        factory = proxy.listener.factory
        self.assertTrue(verifyObject(IHandsOver, factory))
        self.assertTrue(verifyObject(ISnapshot, factory))
        self.assertTrue(verifyObject(ISnapshot, factory.buildProtocol(None)))

    def test_looking(self) -> None:
        """Before a hello is read, if it might be somebody else's to read."""
        for routes, looks in (((), False), ((HERE,), True)):
            proxy = start_sni(self, routes=routes, default="web", takers=["here"][: len(routes)])
            factory: Any = proxy.listener.factory
            self.assertIs(factory.looks, looks)
            made = SniFactory(factory.flow, factory.connector, SniRouter(routes))
            self.assertFalse(made.looks)
            made.hand_over_by(lambda *told: None)
            self.assertIs(made.looks, looks)

    def test_looking_for_a_router_of_somebody_elses(self) -> None:
        factory: Any = start_sni(self).listener.factory
        made = SniFactory(factory.flow, factory.connector, Everything("web"))  # type: ignore[arg-type]
        made.hand_over_by(lambda *told: None)
        self.assertTrue(made.looks)


class CirclesTests(TestCase):
    """Nothing of a connection that is over waits for the garbage collector."""

    timeout = TIMEOUT

    async def leaves_nothing(self, do: Callable[[], Awaitable[object]]) -> None:
        """Do it some times over."""
        self.addCleanup(gc.enable)
        for _ in range(2):
            await do()
        await turns()
        gc.collect()
        gc.disable()
        for _ in range(TIMES):
            await do()
        await turns(10)
        self.assertEqual(garbage(), {})

    async def all_of(self, proxy: SniProxy, *data: bytes) -> None:
        """One connection for each of these; the proxy, or whoever took over, ends it."""
        for each in data:
            for cut in (0, len(each) // 2):
                client = await proxy.connect()
                client.send(each[:cut])
                await proxy.has_read(client, cut)
                client.send(each[cut:])
                await client.ended()
                client.close()
                await proxy.empty()

    async def test_refused(self) -> None:
        proxy = start_sni(self, looks=True, settings=SniSettings(without_name="close"))
        kinds = (asking("b.example"), asking(None), b"GET /", b"\x16\x03\x01\x00\x00")
        await self.leaves_nothing(lambda: self.all_of(proxy, *kinds))

    async def test_relayed(self) -> None:
        backend = await start_backend(self, _Closing)
        proxy = start_sni(self, backend, looks=True)
        await self.leaves_nothing(lambda: self.all_of(proxy, HELLO))

    async def test_handed_over(self) -> None:
        proxy = start_sni(self, routes=[HERE], takers=["here"])
        proxy.taker().make = _Closing
        await self.leaves_nothing(lambda: self.all_of(proxy, HELLO))


class _Closing(Taker):
    """Ends what it has got."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.close()
