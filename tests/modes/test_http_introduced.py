"""The mode http and PROXY headers that go out: what speaks for one client is that client's alone.

The origins here answer with the header that a connection of theirs began with, so that each client
can tell whether it was spoken for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from proxykit.core.routing import HttpRouter
from proxykit.model import Address, Backend, Cluster, Config, HttpRoute, Listener
from proxykit.model import Pool as PoolConfig
from proxykit.modes.http import HttpFactory
from proxykit.modes.http_settings import HttpSettings
from proxykit.ops.service import ProxyService
from tests import http_sockets
from tests.http_sockets import CLOSE, RESET, HttpClient, HttpProxy, Message, Step, answer, request
from tests.modes.test_http_upgrade import ASKING, SWITCHING
from tests.modes.test_introduced import (
    DESTINATION,
    EVERYWHERE,
    ID,
    ON_IPV4,
    SIGNATURE,
    SOURCE,
    VERSIONS,
    header,
    own,
    path_for,
)
from tests.sockets import (
    HOST,
    TIMEOUT,
    ClockedReactor,
    connect,
    reactor,
    reset_on_close,
    turns,
    unanswering,
    until,
)


def size_of(data: bytes) -> int:
    """Bytes of the header that this begins with; 0: it is not whole."""
    if data.startswith(b"PROXY "):
        return data.find(b"\r\n") + 2 if b"\r\n" in data else 0
    assert SIGNATURE.startswith(data[:12]), data
    size = 16 + int.from_bytes(data[14:16], "big")
    return size if len(data) >= size else 0


def behind_a_header(end: Any) -> Any:
    """Have an origin's end put that aside, as ``said``."""
    take, waiting, end.said = end.dataReceived, bytearray(), b""

    def data_received(data: bytes) -> None:
        if not end.said:
            waiting.extend(data)
            size = size_of(bytes(waiting))
            end.said, data = bytes(waiting[:size]), bytes(waiting[size:]) if size else b""
        if data:
            take(data)

    end.dataReceived = data_received
    return end


class Origin(http_sockets.Origin):
    """One that is told whose its connections are."""

    def _end(self) -> Any:
        return behind_a_header(super()._end())


def tell(end: Any, asked: Message) -> None:
    """Answer with the header."""
    end.send(answer(end.said))
    if "close" in asked.all("Connection"):
        end.close()


async def start_origin(test: TestCase, *scripts: Sequence[Step], speaks: bool = True) -> Origin:
    """See ``tests.http_sockets``; one that tells, unless it has scripts or the test speaks."""
    origin = Origin(scripts or ([[tell]] if speaks else []))
    port = reactor.listenTCP(0, origin, interface=HOST)
    origin.address = Address(HOST, port.getHost().port)
    test.addCleanup(lambda: Deferred.fromCoroutine(origin.stop()))
    test.addCleanup(port.stopListening)
    return origin


def start(
    test: TestCase,
    *origins: Origin | Address,
    version: str = "v2",
    reads: bool = False,
    listen: str = ON_IPV4,
    routes: tuple[HttpRoute, ...] = (),
    others: Sequence[Cluster] = (),
    settings: HttpSettings | None = None,
    pool: PoolConfig | None = None,
    **cluster: Any,
) -> HttpProxy:
    """A proxy of mode http that sends headers; ``reads``: it reads them, too."""
    backends = [each.address if isinstance(each, Origin) else each for each in origins]
    web = Cluster(
        *("web", tuple(map(Backend, backends)), "round-robin"),
        proxy_protocol=version,
        pool=pool or PoolConfig(),
        **cluster,
    )
    own_settings = evolve(settings or HttpSettings(), routes=routes)
    front = Listener(
        *("front", listen, "http", "web", 10000, own_settings, EVERYWHERE), proxy_protocol=reads
    )
    clock = ClockedReactor()
    service = ProxyService(clock)
    service.apply(Config((front,), (web, *others)))
    service.startService()
    proxy = HttpProxy(test, service, clock)
    test.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
    return proxy


class IntroducedTestCase(TestCase):
    """What they have in common."""

    timeout = TIMEOUT

    async def ask(self, client: Any, version: str = "v2", *how: Any, **more: Any) -> None:
        """One request, answered on a connection that speaks for this client."""
        client.ask(*how, **more)
        self.assertEqual((await client.response()).body, own(version, client))

    async def left(self, proxy: HttpProxy, idle: int) -> None:
        """So many connections are left, idle, and as many leases; no time has to pass for that."""
        now = proxy.clock.seconds()
        await until(lambda: proxy.leftovers()["connections"] == idle)
        found = proxy.leftovers()
        self.assertEqual((found["ports"], found["idle"], proxy.clock.seconds()), (idle, idle, now))
        self.assertEqual((found["in flight"], found["waiting"], found["opening"]), (0, 0, 0))

    def nothing_is_kept(self, proxy: HttpProxy) -> None:
        """Of nobody who was there."""
        pool = proxy.service.pool
        self.assertEqual((pool._introduced, pool._alive), ({}, set()))
        for shelf in pool._shelves.values():
            self.assertEqual((shelf.free, shelf.free_of, shelf.pending), ({}, {}, {}))
            self.assertEqual((shelf.spare, shelf.idle), ({}, 0))


class OwnTests(IntroducedTestCase):
    """One client's requests share connections, two clients' never."""

    async def test_two_clients_in_turn(self) -> None:
        for version in VERSIONS:
            origin = await start_origin(self)
            proxy = start(self, origin, version=version)
            clients = [await proxy.connect() for _ in range(2)]
            for _ in range(4):
                for client in clients:
                    await self.ask(client, version)
                    await proxy.at_rest()
            self.assertEqual([end.said for end in origin.ends], [own(version, c) for c in clients])
            self.assertEqual([end.served for end in origin.ends], [4, 4])
            shown = proxy.pooled()
            self.assertEqual((shown["idle"], shown["opened"], shown["reused"]), (2, 2, 6))
            self.assertEqual(shown["own"], {"none-idle": 1, "introduced": 1})
            self.assertEqual([entry.reused for entry in proxy.entries], [False] * 2 + [True] * 6)

    async def test_many_at_once_on_few(self) -> None:
        """Nobody starves, and nobody is taken for somebody else."""
        chance = random.Random(5)
        origin = await start_origin(self)
        proxy = start(self, origin, max_connections=3, queue=100)
        clients = [await proxy.connect() for _ in range(20)]
        for _ in range(4):
            chance.shuffle(clients)
            asking = clients[: chance.randint(1, 20)]
            for client in asking:
                client.ask()
            for client in asking:
                self.assertEqual((await client.response()).body, own("v2", client))
            self.assertLessEqual(proxy.leftovers()["connections"], 3)
        self.assertEqual({entry.status for entry in proxy.entries}, {200})

    async def test_pipelined(self) -> None:
        origin = await start_origin(self)
        proxy = start(self, origin)
        client = await proxy.connect()
        client.send(request() * 5)
        for _ in range(5):
            self.assertEqual((await client.response()).body, own("v2", client))
        self.assertEqual(len(origin.ends), 1)

    async def test_between_clusters(self) -> None:
        """Each in its own version, or in none: there everybody shares as ever."""
        origin, other = await start_origin(self), await start_origin(self)
        bare = await http_sockets.start_origin(self, [answer(b"somebody")])
        proxy = start(
            *(self, origin),
            routes=(
                HttpRoute(host="other.example", cluster="other"),
                HttpRoute(host="bare.example", cluster="bare"),
            ),
            others=(
                Cluster("other", (Backend(other.address),), proxy_protocol="v1"),
                Cluster("bare", (Backend(bare.address),)),
            ),
        )
        clients = [await proxy.connect() for _ in range(2)]
        for _ in range(3):
            for client in clients:
                await self.ask(client)
                await self.ask(client, "v1", host="other.example")
                self.assertEqual((await client.get(host="bare.example")).text, "somebody")
                await proxy.at_rest()
        self.assertEqual([len(each.ends) for each in (origin, other, bare)], [2, 2, 1])
        clients[0].close()
        await self.left(proxy, 3)
        await until(lambda: [each.open for each in (origin, other, bare)] == [1, 1, 1])

    async def test_between_backends(self) -> None:
        origins = [await start_origin(self) for _ in range(2)]
        proxy = start(self, *origins)
        clients = [await proxy.connect() for _ in range(2)]
        for client in (*clients, *clients[::-1]) * 3:
            await self.ask(client)
            await proxy.at_rest()
        for origin in origins:
            self.assertEqual(
                sorted(end.said for end in origin.ends),
                sorted(own("v2", client) for client in clients),
            )

    async def test_who_came_with_a_header(self) -> None:
        """One relay's connections are of different clients, or of one that has two."""
        origin = await start_origin(self)
        proxy = start(self, origin, reads=True)
        for said in (
            header("v2", SOURCE, DESTINATION),
            header("v2", ("192.0.2.8", 1), DESTINATION),
            header("v2", SOURCE, DESTINATION, ID),
            header("v2", SOURCE, DESTINATION, (5, b"another")),
        ):
            client = await proxy.connect()
            client.send(said)
            for _ in range(2):
                client.ask()
                self.assertEqual((await client.response()).body, said)
        self.assertEqual([end.served for end in origin.ends], [2] * 4)
        forwarded = [asked["X-Forwarded-For"] for asked in origin.requests]
        self.assertEqual([at for at, host in enumerate(forwarded) if host != "192.0.2.7"], [2, 3])
        self.assertEqual(forwarded, [entry.client for entry in proxy.entries])

    async def test_on_a_unix_socket(self) -> None:
        path = path_for(self)
        origin = await start_origin(self)
        proxy = start(self, origin, listen=f"unix:{path}")
        client = await proxy.connect()
        self.assertEqual((await client.get()).body, header("v2", "", path))
        client.close()
        await self.left(proxy, 0)

    async def test_without_a_listener_of_ours(self) -> None:
        origin = await start_origin(self)
        proxy = start(self, origin)
        flow, pool = proxy.service.flow, proxy.service.pool
        port = reactor.listenTCP(0, HttpFactory(flow, pool, HttpRouter((), "web")), interface=HOST)
        self.addCleanup(port.stopListening)
        clients = [await connect(self, port.getHost().port, HttpClient()) for _ in range(2)]
        for client in clients * 2:
            await self.ask(client)
        self.assertEqual([end.served for end in origin.ends], [2, 2])
        clients[0].close()
        await self.left(proxy, 1)
        clients[1].close()
        await self.left(proxy, 0)
        self.nothing_is_kept(proxy)

    async def test_upgraded(self) -> None:
        """Another protocol behind the same header; the client's other connections are as before."""
        origin = await start_origin(self, [tell, lambda end, asked: end.send(SWITCHING)], [tell])
        proxy = start(self, origin)
        client = await proxy.connect()
        await self.ask(client)
        client.send(request("GET", "/chat", None, *ASKING))
        self.assertEqual((await client.response()).status, 101)
        (served,) = origin.ends
        served.dataReceived = lambda data: served.send(data.upper())
        bulk = random.Random(6).randbytes(3_000_000)
        client.send(b"hello")
        self.assertEqual(await client.rest(5), b"HELLO")
        client.send(bulk)
        self.assertEqual(await client.rest(len(bulk)), bulk.upper())
        self.assertEqual(served.said, own("v2", client))
        await self.ask(await proxy.connect())
        client.reset()
        await until(lambda: served.reason)
        await self.left(proxy, 1)
        self.assertEqual(proxy.pooled()["not_kept"], {"upgraded": 1})


class LeavingTests(IntroducedTestCase):
    """What speaks for somebody who has left is of use to nobody: it is closed at once."""

    async def test_idle_connections(self) -> None:
        origins = [await start_origin(self) for _ in range(2)]
        proxy = start(self, *origins)
        for leave in ("close", "reset", "finish"):
            client, other = await proxy.connect(), await proxy.connect()
            for each in (client, client, other, other):
                await self.ask(each)
            await self.left(proxy, 4)
            getattr(client, leave)()
            await self.left(proxy, 2)
            await self.ask(other)
            await until(lambda: [origin.open for origin in origins] == [1, 1])
            other.close()
            await self.left(proxy, 0)
        self.nothing_is_kept(proxy)

    async def test_who_was_idle_for_too_long(self) -> None:
        origin = await start_origin(self)
        pool = PoolConfig(idle_timeout=1000.0)
        proxy = start(self, origin, pool=pool, settings=HttpSettings(keepalive_timeout=5.0))
        client = await proxy.connect()
        await self.ask(client)
        proxy.clock.advance(7)
        await client.nothing_more()
        client.close()
        await self.left(proxy, 0)

    async def test_in_the_middle_of_an_answer(self) -> None:
        origin = await start_origin(self, [tell, http_sockets.SILENCE])
        proxy = start(self, origin)
        client = await proxy.connect()
        await self.ask(client)
        client.ask()
        await until(lambda: len(origin.requests) == 2)
        client.reset()
        await self.left(proxy, 0)
        self.nothing_is_kept(proxy)

    async def test_while_its_connection_is_opened(self) -> None:
        """It is given up, even where others wait for one: they could do nothing with it."""
        proxy = start(self, unanswering(self))
        clients = [await proxy.connect() for _ in range(2)]
        for client in clients:
            client.ask()
        await until(lambda: proxy.leftovers()["opening"] == 2)
        clients[0].reset()
        await until(lambda: proxy.leftovers()["connections"] == 1)
        self.assertEqual(proxy.leftovers()["opening"], 1)
        clients[1].reset()
        await self.left(proxy, 0)
        self.nothing_is_kept(proxy)

    async def test_at_any_moment(self) -> None:
        origin = await start_origin(self)
        proxy = start(self, origin, max_connections=2)
        for number in range(60):
            client = proxy.blocking()
            client.sendall(request())
            if number % 2:
                reset_on_close(client)
            await turns(number % 12)
            client.close()
        await self.left(proxy, 0)
        self.nothing_is_kept(proxy)

    async def test_while_it_waits(self) -> None:
        origin = await start_origin(self, [http_sockets.SILENCE])
        proxy = start(self, origin, max_connections=1)
        clients = [await proxy.connect() for _ in range(3)]
        for number, client in enumerate(clients):
            client.ask()
            await until(lambda n=number: proxy.leftovers()["waiting"] == n)
        clients[1].reset()
        await until(lambda: proxy.leftovers()["waiting"] == 1)
        await until(lambda: origin.requests)
        clients[0].reset()
        await until(lambda: len(origin.requests) == 2)
        self.assertEqual(origin.ends[-1].said, own("v2", clients[2]))
        clients[2].reset()
        await self.left(proxy, 0)

    async def test_many_have_come_and_gone(self) -> None:
        for version in VERSIONS:
            origin = await start_origin(self)
            proxy = start(self, origin, version=version)
            for _ in range(20):
                clients = [await proxy.connect() for _ in range(5)]
                for client in clients * 2:
                    await self.ask(client, version)
                for client in clients:
                    client.close()
            await self.left(proxy, 0)
            self.nothing_is_kept(proxy)
            self.assertEqual(len(origin.ends), 100)


class LimitTests(IntroducedTestCase):
    """The limits hold, and what lies idle for one client stands in nobody's way."""

    async def test_the_place_of_somebody_elses_idle_one(self) -> None:
        for limit in (1, 2):
            origin = await start_origin(self)
            proxy = start(self, origin, max_connections=limit)
            clients = [await proxy.connect() for _ in range(3)]
            for client in clients * 3:
                await self.ask(client)
                await proxy.at_rest()
                self.assertLessEqual(origin.open, limit)
            self.assertEqual(len(origin.ends), 9)
            shown = proxy.pooled()
            self.assertEqual((shown["opened"], shown["not_kept"]), (9, {"evicted": 9 - limit}))

    async def test_who_waits_has_the_place_of_what_comes_free(self) -> None:
        origin = await start_origin(self, speaks=False)
        proxy = start(self, origin, max_connections=1)
        clients = [await proxy.connect() for _ in range(3)]
        for client in clients:
            client.ask()
            await turns()
        await until(lambda: proxy.leftovers()["waiting"] == 2)
        for client in clients:
            served = await origin.accepted()
            await served.request()
            self.assertEqual(served.said, own("v2", client))
            served.send(answer(b"ok"))
            self.assertEqual((await client.response()).text, "ok")

    async def test_max_idle(self) -> None:
        """It is of a backend, however many clients have some."""
        for most in (0, 1, 2):
            origin = await start_origin(self)
            proxy = start(self, origin, pool=PoolConfig(max_idle=most))
            clients = [await proxy.connect() for _ in range(4)]
            for client in clients * 2:
                await self.ask(client)
                await proxy.at_rest()
                self.assertLessEqual(proxy.pooled()["idle"], most)
            await until(lambda origin=origin, most=most: origin.open == most)

    async def test_idle_timeout(self) -> None:
        origin = await start_origin(self)
        proxy = start(self, origin, pool=PoolConfig(idle_timeout=4.0))
        client, other = await proxy.connect(), await proxy.connect()
        for each, seconds in ((client, 0), (other, 3), (client, 3), (other, 3)):
            proxy.clock.advance(seconds)
            await turns()
            await self.ask(each)
        proxy.clock.advance(5)
        await self.left(proxy, 0)
        self.assertEqual(len(origin.ends), 4)
        self.assertEqual(proxy.pooled()["not_kept"], {"expired": 4})
        await self.ask(client)

    async def test_stale(self) -> None:
        """What is repeated goes on a new connection, which begins with the same header."""
        for end in (CLOSE, RESET):
            origin = await start_origin(self, [tell, end], [tell])
            proxy = start(self, origin)
            client, other = await proxy.connect(), await proxy.connect()
            await self.ask(client)
            await self.ask(other)
            await self.ask(client)
            self.assertEqual(
                [each.said for each in origin.ends], [own("v2", c) for c in (client, other, client)]
            )
            self.assertEqual(proxy.stats["repeated"], 1)
            await self.left(proxy, 2)

    async def test_reuse(self) -> None:
        for reuse, numbers in (
            ("never", [0, 1, 2, 3]),
            ("safe", [0, 0, 1, 1]),
            ("always", [0] * 4),
        ):
            origin = await start_origin(self)
            proxy = start(self, origin, pool=PoolConfig(reuse=reuse))
            client, other = await proxy.connect(), await proxy.connect()
            for seconds, method in ((0, "GET"), (0.5, "POST"), (5, "POST"), (5, "GET")):
                proxy.clock.advance(seconds)
                await self.ask(client, "v2", method)
                await self.ask(other, "v2", method)
                await proxy.at_rest()
            mine = [end for end in origin.ends if end.said == own("v2", client)]
            self.assertEqual(
                [at for at, end in enumerate(mine) for _ in range(end.served)], numbers
            )
