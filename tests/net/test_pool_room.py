"""Who makes room in a pool for whom, and that it is one at a time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from proxykit.core.introduction import introduction
from proxykit.model import Backend, Cluster, Config, ConnInfo, Listener
from proxykit.model import Pool as PoolConfig
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.service import ProxyService
from proxykit.wire.proxyproto import LIMIT
from tests.http_sockets import HttpClient, answer, start_origin
from tests.net.test_pool_introduced import IntroducedTestCase, client
from tests.sockets import HOST, TIMEOUT, ClockedReactor, Proxy, connect, until


class RoomTests(IntroducedTestCase):
    def test_one_place_for_one_who_waits(self):
        house = self.use(max_connections=3)
        busy = house.served(of=1)
        first = house.idle(1, of=2)[0]
        second = house.idle(1, of=3)[0]
        house.ask(of=4)
        busy.finish()
        closing = [each.closing for each in (first, second, busy.socket)]
        self.assertEqual(closing, [True, False, False])
        self.assertFalse(first.reset)  # No port is wanted.

    def test_max_idle_keeps_the_newest(self):
        """Where each is one client's alone, the oldest is the least likely to be of use."""
        house = self.use(pool=PoolConfig(max_idle=1))
        (old,) = house.idle(1, of=1)
        (new,) = house.idle(1, of=2)
        self.assertEqual((old.closing, new.closing), (True, False))

    def test_left_while_retired(self):
        """Its backend has ended it, and the client leaves in the same turn."""
        house = self.house
        (idle,) = house.idle(1, of=1)
        house.pool.retire(idle)
        idle.close_idle()
        house.left(1)

    def test_what_the_next_one_would_not_read(self):
        """What else is known goes only as far as it fits."""
        info = client(1)
        tlvs = ((0xE0, bytes(LIMIT - 16 - 12 - 3)),)
        fits = ConnInfo(1, "front", info.client, info.server, tlvs=tlvs)
        grown = ConnInfo(1, "front", info.client, info.server, tlvs=(*tlvs, (2, b"a.example")))
        self.assertEqual(len(introduction("v2", fits)), LIMIT)
        self.assertEqual(introduction("v2", grown), introduction("v2", info))


class SharedClusterTests(TestCase):
    timeout = TIMEOUT

    async def test_l4_behind_what_lies_idle(self) -> None:
        """A tcp listener and an http one have the same cluster, which has one connection."""
        origin = await start_origin(self, [answer(b"ok")])
        on = f"tcp:0:interface={HOST}"
        clock = ClockedReactor()
        service = ProxyService(clock)
        service.apply(
            Config(
                (
                    Listener("front", on, "tcp", "web", settings=TcpSettings()),
                    Listener("http", on, "http", "web", settings=HttpSettings()),
                ),
                (Cluster("web", (Backend(origin.address),), max_connections=1),),
            )
        )
        service.startService()
        proxy = Proxy(self, service, clock)
        self.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
        port = int(service.listeners["http"].address.rpartition(":")[2])
        http: Any = await connect(self, port, HttpClient())
        await http.get()
        client = await proxy.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: len(origin.requests) == 2)
        http.reset()
        client.reset()
