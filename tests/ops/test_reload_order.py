"""What happens when a configuration changes, or the service ends, at an unlucky moment."""

from __future__ import annotations

import os
from typing import Any

from attrs import evolve

from proxykit.model import Address, Backend, Cluster, Config, Listener, Sources
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.sni_settings import SniSettings
from proxykit.sources.file import FileSettings
from proxykit.upkeep import Discover, Health
from tests.http_sockets import HttpClient, answer, start_origin
from tests.ops.reloading import ReloadCase
from tests.sni_sockets import HELLO
from tests.sockets import HOST, connect, free_port, start_backend, turns, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class OrderTests(ReloadCase):
    async def test_a_cluster_goes_in_the_middle_of_a_hello(self) -> None:
        backend = Backend(Address(HOST, 1))
        sni = Listener("sni", self.place(), "sni", "web", settings=SniSettings())
        other = Cluster("other", (backend,))
        self.start(Config((sni,), (Cluster("web", (backend,)), other)))
        client = await connect(self, self.port("sni"))
        client.send(HELLO[:20])
        await until(self.connections)
        self.service.apply(Config((evolve(sni, cluster="other"),), (other,)))
        client.send(HELLO[20:])
        self.assertTrue(await client.lost())
        self.assertIn("the cluster web is gone", self.lines[-1])

    async def test_drained_by_two(self) -> None:
        """Each is told when it is over, and not before."""
        backend = await start_backend(self)
        self.start(Config((self.tcp(),), (Cluster("web", (Backend(backend.address),)),)))
        client = await connect(self, self.port("raw"))
        await backend.accepted()
        told: list[int] = []
        for number in range(2):
            self.service.drain().addCallback(lambda _, number=number: told.append(number))
        await turns()
        self.assertEqual(told, [])
        client.reset()
        await until(lambda: len(told) == 2)
        await self.service.drain()

    async def test_not_while_it_drains(self) -> None:
        self.start(Config((), ()))
        await self.service.drain()
        self.assertEqual(self.refused(Config((self.tcp(),), ())), "the service is about to end")

    async def test_started_again(self) -> None:
        """It serves as ever: keeps connections, drains, and is configured."""
        origin = await start_origin(self, [answer(b"ok")] * 9, [answer(b"ok")] * 9)
        config = Config((self.http(),), (Cluster("web", (Backend(origin.address),)),))
        self.start(config)
        await self.service.drain()
        await self.service.stopService()
        await self.service.abort_connections()
        self.service.startService()
        self.assertFalse(self.service.draining)
        client = await connect(self, self.port("front"), HttpClient())
        for _ in range(3):
            self.assertNotIn("Connection", (await client.get()).fields)
        self.assertEqual(self.service.pool.snapshot("web")["reused"], 2)
        changed = self.service.apply(evolve(config, drain_timeout=1.0))
        self.assertEqual(changed, ["drain_timeout 30 -> 1"])
        drained = self.service.drain()
        self.clock.advance(1.5)
        await drained

    async def test_started_again_with_connections(self) -> None:
        """Those that it still has count."""
        backend = await start_backend(self)
        limited = self.tcp(max_connections=1)
        self.start(Config((limited,), (Cluster("web", (Backend(backend.address),)),)))
        client = await connect(self, self.port("raw"))
        await backend.accepted()
        await self.service.stopService()
        self.service.startService()
        listener = self.service.listeners["raw"]
        self.assertNotEqual(listener.paused, "")
        await connect(self, self.port("raw"))  # by the kernel alone
        await turns()
        self.assertEqual(len(listener.connections), 1)
        client.reset()
        await backend.accepted()

    async def test_refused_ones_leave_no_log_open(self) -> None:
        taken = self.tcp(listen=f"tcp:{free_port(self)}:interface={HOST}")
        web = Cluster("web", (Backend(Address(HOST, 1)),))
        self.start(Config((self.http(),), (web,)))
        path = os.path.join(self.directory, "log")
        self.refused(Config((self.http(settings=HttpSettings(access_log=path)), taken), (web,)))
        self.assertEqual(self.service._access_logs._logs, {})

    async def test_pages_of_former_sources(self) -> None:
        web = Cluster("web", (Backend(Address(HOST, 1)),))
        self.start(Config((), (web,)))
        for number in (2, 3):
            sources = Sources(addresses=(f"127.0.78.{number}",))
            self.service.apply(Config((), (web,), sources=sources))
        found = {each["source"] for each in self.service.accountant.snapshot()}
        self.assertEqual(found, {"127.0.78.3"})

    async def test_a_cluster_of_the_same_name_again(self) -> None:
        """What was under way is none of the new one's connections."""
        origin = await start_origin(self, *[[lambda end, asked: None]] * 2)
        web = Cluster("web", (Backend(origin.address),), max_connections=1)
        front = self.http()
        self.start(Config((front,), (web,)))
        clients = [await connect(self, self.port("front"), HttpClient())]
        clients[0].ask()
        await until(lambda: len(origin.requests) == 1)
        other = evolve(web, name="other")
        self.service.apply(Config((evolve(front, cluster="other"),), (other,)))
        self.service.apply(Config((front,), (web,)))
        clients.append(await connect(self, self.port("front"), HttpClient()))
        clients[1].ask()
        await until(lambda: len(origin.requests) == 2)
        for client, end in zip(clients, origin.ends, strict=True):
            end.send(OK)
            self.assertEqual((await client.response()).body, b"ok")
        await origin.ends[0].ended()
        state = self.service.registry.cluster("web").backends[origin.address]
        self.assertEqual((state.connections, self.service.pool.snapshot("web")["idle"]), (1, 1))

    async def test_a_check_takes_nobodys_place(self) -> None:
        backend = await start_backend(self)
        health = Health(path="/", interval=1.0, timeout=5.0, jitter=0.0)
        web = Cluster("web", (Backend(backend.address),), max_connections=1, queue=0, health=health)
        self.start(Config((self.tcp(),), (web,)))
        self.clock.advance(2)
        check = await backend.accepted()
        client = await connect(self, self.port("raw"))
        served = await backend.accepted()
        client.send(b"hello")
        await served.got(b"hello")
        refused = await connect(self, self.port("raw"))
        self.assertTrue(await refused.lost())
        check.send(OK)
        await check.lost()
        client.reset()
        await until(lambda: not self.connections())
        state = self.service.registry.cluster("web").backends[backend.address]
        await until(lambda: (state.connections, state.checking) == (0, 0))


class DiscoveredTests(ReloadCase):
    def write(self, *backends: Any) -> None:
        path = os.path.join(self.directory, "backends")
        with open(f"{path}~", "w") as file:
            file.writelines(f"{each.address}\n" for each in backends)
        os.rename(f"{path}~", path)

    async def test_one_leaves_and_is_there_again(self) -> None:
        """Its connections are kept again; the one that was in use meanwhile is not."""
        silent: list[Any] = [lambda end, asked: None]
        first = await start_origin(self, silent, [answer(b"ok")] * 9)
        second = await start_origin(self)
        self.write(first)
        settings = FileSettings(os.path.join(self.directory, "backends"))
        web = Cluster("web", (), discover=Discover("file", settings))
        self.start(Config((self.http(),), (web,)))
        slow = await connect(self, self.port("front"), HttpClient())
        slow.ask()
        await until(lambda: first.requests)
        for backend in (second, first):
            self.write(backend)
            for _ in range(4):
                self.clock.advance(1.0)
                await turns()
        state = self.service.registry.cluster("web")
        self.assertEqual(list(state.backends), [first.address])
        first.ends[0].send(OK)
        await slow.response()
        for _ in range(4):
            await slow.get()
        self.assertEqual((len(first.ends), self.service.pool.snapshot("web")["reused"]), (2, 3))
