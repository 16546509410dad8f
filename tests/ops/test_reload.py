"""One configuration after another: what differs changes, and nothing else does."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from proxykit.errors import ConfigError
from proxykit.model import (
    Address,
    Backend,
    Cluster,
    Config,
    HttpRoute,
    Listener,
    SniRoute,
    Sources,
)
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.service import ProxyService
from tests.http_sockets import HttpClient, answer, start_origin
from tests.sni_sockets import asking
from tests.sockets import (
    HOST,
    TIMEOUT,
    ClockedReactor,
    Connecting,
    blocking,
    connect,
    end_of,
    hear,
    reactor,
    start_backend,
    turns,
    until,
)


async def connect_unix(test: TestCase, path: str, end: Any) -> Any:
    """One more client, at a unix socket."""
    connected: Deferred[Any] = Deferred()
    reactor.connectUNIX(path, Connecting(end, connected))
    made = await connected
    test.addCleanup(lambda: Deferred.fromCoroutine(end_of(made)))
    return made


class ReloadCase(TestCase):
    timeout = TIMEOUT

    def setUp(self) -> None:
        # With a short name, for sockets; it goes last.
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.clock = ClockedReactor()
        self.service = ProxyService(self.clock)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.end()))
        self.lines = hear(self)

    async def end(self) -> None:
        self.service.cut("the test ends")
        await self.service.stopService()
        await self.service.abort_connections()
        await until(lambda: not (self.service.all_listeners and self.connections()))
        # Nothing is left to be done: no deadline, and none of the loops that look at something.
        self.service.deadlines.rest()
        left = [call for call in self.clock.getDelayedCalls() if call.active()]
        self.assertEqual(left, [])

    def connections(self) -> int:
        return sum(len(each.connections) for each in self.service.all_listeners)

    def start(self, config: Config) -> None:
        self.service.apply(config)
        self.service.startService()

    def port(self, name: str) -> int:
        return int(self.service.listeners[name].address.rpartition(":")[2])

    def place(self) -> str:
        return f"tcp:0:interface={HOST}"

    def tcp(self, name: str = "raw", **more: Any) -> Listener:
        more.setdefault("listen", self.place())
        return Listener(name, mode="tcp", cluster="web", settings=TcpSettings(), **more)

    def http(self, name: str = "front", **more: Any) -> Listener:
        more.setdefault("listen", self.place())
        more.setdefault("settings", HttpSettings())
        return Listener(name, mode="http", **{"cluster": "web", **more})

    def refused(self, config: Config) -> str:
        raised = self.assertRaises(ConfigError, self.service.apply, config)
        return str(raised)


class ListenerTests(ReloadCase):
    async def test_what_stays_is_not_touched(self) -> None:
        """A connection goes on, on the very objects that it was on."""
        backend = await start_backend(self)
        config = Config((self.tcp(),), (Cluster("web", (Backend(backend.address),)),))
        self.start(config)
        client = await connect(self, self.port("raw"))
        served = await backend.accepted()
        listener, cluster = self.service.listeners["raw"], self.service.registry.cluster("web")
        other = self.http("new")
        lines = self.service.apply(evolve(config, listeners=(*config.listeners, other)))
        self.assertEqual(lines, [f"listener new is new ({other.listen})"])
        self.assertIs(self.service.listeners["raw"], listener)
        self.assertIs(self.service.registry.cluster("web"), cluster)
        client.send(b"still here")
        await served.got(b"still here")
        self.assertEqual(self.service.apply(self.service.config), [])
        self.assertEqual(len(listener.connections), 1)

    async def test_other_settings_at_the_same_place(self) -> None:
        """The port is never closed; who is here is told that his next answer is the last."""
        origin = await start_origin(self, [answer(b"ok")] * 3)
        backend = Backend(origin.address)
        path = os.path.join(self.directory, "front")
        config = Config((self.http(listen=f"unix:{path}"),), (Cluster("web", (backend,)),))
        self.start(config)
        client = await connect_unix(self, path, HttpClient())
        self.assertNotIn("Connection", (await client.get()).fields)
        listener = self.service.listeners["front"]
        port = listener._port
        changed = evolve(config.listeners[0], name="other", settings=HttpSettings(via=""))
        self.assertEqual(
            self.service.apply(evolve(config, listeners=(changed,))),
            ["listener other: name, settings changed"],
        )
        self.assertIs(self.service.listeners["other"], listener)
        self.assertIs(listener._port, port)
        last = await client.get()
        self.assertEqual((last["Connection"], last["Via"]), ("close", "1.1 proxykit"))
        await client.ended()
        another = await connect_unix(self, path, HttpClient())
        self.assertNotIn("Via", (await another.get()).fields)

    async def test_fewer_connections_than_there_are(self) -> None:
        backend = await start_backend(self)
        config = Config((self.tcp(),), (Cluster("web", (Backend(backend.address),)),))
        self.start(config)
        client = await connect(self, self.port("raw"))
        served = await backend.accepted()
        listener = self.service.listeners["raw"]
        for limit, paused in ((1, True), (2, False), (1, True)):
            changed = evolve(config.listeners[0], max_connections=limit)
            self.service.apply(evolve(config, listeners=(changed,)))
            self.assertEqual(listener.paused != "", paused)
        client.reset()
        await served.lost()
        await until(lambda: not listener.paused)

    async def test_one_that_goes(self) -> None:
        """It accepts no more; who is in has his time, and then the log says who was cut off."""
        backend = await start_backend(self)
        config = Config(
            (self.tcp(), self.tcp("stays")),
            (Cluster("web", (Backend(backend.address),)),),
            drain_timeout=12.0,
        )
        self.start(config)
        port = self.port("raw")
        clients = [await connect(self, port) for _ in range(2)]
        served = [await backend.accepted() for _ in clients]
        listener = self.service.listeners["raw"]
        self.service.apply(evolve(config, listeners=config.listeners[1:]))
        self.assertEqual(list(self.service.listeners), ["stays"])
        self.assertIn(listener, self.service.all_listeners)
        self.assertTrue(listener.snapshot()["draining"])
        await turns()
        with self.assertRaises(ConnectionRefusedError):
            blocking(self, port)
        clients[0].send(b"one more thing")
        await served[0].got(b"one more thing")
        clients[0].reset()
        await until(lambda: len(listener.connections) == 1)
        self.clock.advance(14)
        self.assertTrue(await clients[1].lost())
        await until(lambda: listener not in self.service.all_listeners)
        self.assertEqual(
            [line for line in self.lines if line.startswith("raw: dr") and "drained" not in line],
            [
                "raw: draining: 2 connections to end within 12 s (raw: 2)",
                "raw: draining: 1 connection left (raw: 1)",
                "raw: drain_timeout, 12 s, is over: 1 connection cut off (raw: 1)",
            ],
        )
        (drained,) = (line for line in self.lines if "drained" in line)
        self.assertRegex(drained, r"\Araw: drained in 1[234]\.\d s\Z")

    async def test_one_that_moves(self) -> None:
        backend = await start_backend(self)
        config = Config((self.tcp(),), (Cluster("web", (Backend(backend.address),)),))
        self.start(config)
        client = await connect(self, self.port("raw"))
        served = await backend.accepted()
        moved = evolve(config.listeners[0], listen="tcp:0:interface=127.0.0.2")
        self.service.apply(evolve(config, listeners=(moved,)))
        again = await connect(self, self.port("raw"), host="127.0.0.2")
        await backend.accepted()
        client.send(b"!")
        await served.got(b"!")
        self.assertEqual(self.connections(), 2)
        again.reset()

    async def test_all_or_nothing(self) -> None:
        """A port that cannot be had, and what came before it is given back."""
        backend = await start_backend(self)
        config = Config((self.tcp(),), (Cluster("web", (Backend(backend.address),)),))
        self.start(config)
        path = os.path.join(self.directory, "free")
        taken = f"tcp:{backend.address.port}:interface={HOST}"
        wrong = Config(
            (self.tcp("one", listen=f"unix:{path}"), self.tcp("two", listen=taken)),
            (Cluster("web", (Backend(Address(HOST, 1)),)), Cluster("more", ())),
        )
        why = f"two: cannot listen on {taken}: Address already in use"
        self.assertTrue(self.refused(wrong).startswith(f"{why}; if a listener that is to go"))
        self.assertEqual(
            self.refused(evolve(wrong, listeners=(*config.listeners, wrong.listeners[1]))), why
        )
        self.assertIs(self.service.config, config)
        self.assertEqual(list(self.service.listeners), ["raw"])
        self.assertIsNone(self.service.registry.get("more"))
        await turns()
        self.assertFalse(os.path.exists(path))
        await connect(self, self.port("raw"))
        await backend.accepted()

    async def test_whoever_took_over_is_gone(self) -> None:
        """Its name is known to the former settings of a listener that some still have."""
        inner = self.http("inner", listen="")
        routes = (SniRoute(host="a.example", listener="inner"),)
        sni = Listener(
            "sni",
            self.place(),
            "sni",
            settings=SniSettings(routes=routes),
        )
        cluster = Cluster("web", (Backend(Address(HOST, 1)),))
        self.start(Config((sni, inner), (cluster,)))
        client = await connect(self, self.port("sni"))
        listener = self.service.listeners["sni"]
        (first,) = await until(lambda: list(listener.connections.values()))
        self.service.apply(
            Config((evolve(sni, cluster="web", settings=SniSettings()),), (cluster,))
        )
        self.service._fronts._hand_over(first, "inner", b"")
        self.assertTrue(await client.lost())
        self.assertIn("sni #1: refused: the listener inner is gone", self.lines)

    async def test_hand_over_to_one_that_has_changed(self) -> None:
        inner = self.http("inner", listen="")
        route = SniRoute(host="a.example", listener="inner")
        sni = Listener("sni", self.place(), "sni", settings=SniSettings(routes=(route,)))
        cluster = Cluster("web", (Backend(Address(HOST, 1)),))
        config = Config((sni, inner), (cluster,))
        self.start(config)
        changed = evolve(inner, settings=HttpSettings(head_timeout=1.0))
        self.service.apply(evolve(config, listeners=(sni, changed)))
        factory = self.service.listeners["inner"].factory
        client = await connect(self, self.port("sni"))
        client.send(asking("a.example"))
        await until(lambda: factory.serving.stats.refused)  # type: ignore[attr-defined]
        client.reset()


class ClusterTests(ReloadCase):
    async def test_backends_come_and_go(self) -> None:
        """The one that stays keeps what it has; of the other nothing is left but what is in use."""
        first, second = [await start_origin(self, [answer(b"ok")] * 3) for _ in range(2)]
        kept, gone = Backend(first.address), Backend(second.address)
        cluster = Cluster("web", (kept, gone), balance="round-robin")
        config = Config((self.http(),), (cluster,))
        self.start(config)
        client = await connect(self, self.port("front"), HttpClient())
        for _ in range(2):
            await client.get()
        state = self.service.registry.cluster("web")
        await until(lambda: self.service.pool.snapshot("web")["idle"] == 2)
        stays = state.backends[kept.address]
        self.assertEqual(
            self.service.apply(evolve(config, clusters=(evolve(cluster, backends=(kept,)),))),
            [f"cluster web: -{gone.address}"],
        )
        self.assertEqual(list(state.backends.values()), [stays])
        await second.ends[0].ended()
        await until(lambda: self.service.pool.snapshot("web")["idle"] == 1)
        pooled = self.service.pool.snapshot("web")
        self.assertEqual((pooled["opened"], pooled["not_kept"]), (2, {"leaving": 1}))
        self.service.apply(self.service.config)
        self.assertEqual(len(self.service.pool._shelves), 1)
        pooled = self.service.pool.snapshot("web")
        self.assertEqual((pooled["opened"], pooled["not_kept"]), (2, {"leaving": 1}))
        (budget,) = self.service.accountant.snapshot()
        self.assertEqual(budget["destination"], str(kept.address))
        await client.get()
        self.assertEqual(len(first.ends), 1)

    async def test_a_cluster_goes(self) -> None:
        """A client whose listener knew it, when it came, is told so."""
        origin = await start_origin(self, [answer(b"ok")] * 2)
        backend = Backend(origin.address)
        route = HttpRoute("old", host="a.example")
        front = self.http(settings=HttpSettings(routes=(route,)))
        config = Config((front,), (Cluster("web", (backend,)), Cluster("old", (backend,))))
        self.start(config)
        client = await connect(self, self.port("front"), HttpClient())
        await client.get("/", host="a.example")
        changed = evolve(front, settings=HttpSettings())
        self.service.apply(Config((changed,), config.clusters[:1]))
        self.assertIsNone(self.service.registry.get("old"))
        reply = await client.get("/", host="a.example")
        self.assertEqual((reply.status, reply["Connection"]), (503, "close"))
        self.assertIn(b"the cluster old is gone", reply.body)

    async def test_settings(self) -> None:
        """They hold from the next attempt on."""
        backend = await start_backend(self)
        cluster = Cluster("web", (Backend(backend.address),), max_connections=1, queue=0)
        config = Config((self.tcp(),), (cluster,))
        self.start(config)
        first = await connect(self, self.port("raw"))
        await backend.accepted()
        refused = await connect(self, self.port("raw"))
        self.assertTrue(await refused.lost())
        self.service.apply(evolve(config, clusters=(evolve(cluster, max_connections=2),)))
        second = await connect(self, self.port("raw"))
        served = await backend.accepted()
        second.send(b"!")
        await served.got(b"!")
        first.reset()

    async def test_an_operator_drains_a_backend(self) -> None:
        origin = await start_origin(self, [answer(b"ok")] * 2)
        config = Config((self.http(),), (Cluster("web", (Backend(origin.address),)),))
        self.start(config)
        client = await connect(self, self.port("front"), HttpClient())
        await client.get()
        self.assertEqual(
            self.service.set_backend_state("web", origin.address, "drain").state, "drain"
        )
        await origin.ends[0].ended()
        self.assertEqual((await client.get()).status, 503)
        self.service.set_backend_state("web", origin.address, "drain")
        self.service.set_backend_state("web", origin.address, "up")
        self.assertEqual((await client.get()).status, 200)
        for wrong in (("nobody", origin.address), ("web", Address(HOST, 1))):
            self.assertRaises(KeyError, self.service.set_backend_state, *wrong, "up")
        self.assertEqual(
            [line for line in self.lines if "as it was told" in line],
            [
                f"web {origin.address}: drain now, and up before, as it was told",
                f"web {origin.address}: up now, and drain before, as it was told",
            ],
        )

    async def test_in_use_when_it_is_drained(self) -> None:
        """What comes free is closed."""
        origin = await start_origin(self, [lambda end, asked: None])
        config = Config((self.http(),), (Cluster("web", (Backend(origin.address),)),))
        self.start(config)
        client = await connect(self, self.port("front"), HttpClient())
        client.ask()
        await until(lambda: origin.requests)
        self.service.set_backend_state("web", origin.address, "drain")
        origin.ends[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        self.assertEqual((await client.response()).body, b"ok")
        await origin.ends[0].ended()


class OtherTests(ReloadCase):
    async def test_the_admin_listener(self) -> None:
        config = Config((), (), admin=self.place())
        self.start(config)
        first: Any = self.service.admin_port
        token = evolve(config, admin_token="0123456789abcdef")
        self.assertEqual(self.service.apply(token), ["admin.token has changed"])
        self.assertIs(self.service.admin_port, first)
        port = first.getHost().port
        client = await connect(self, port, HttpClient())
        self.assertEqual((await client.get("/api/ports", host="localhost")).status, 401)
        self.service.apply(evolve(config, admin="tcp:0:interface=127.0.0.2"))
        self.assertIsNot(self.service.admin_port, first)
        self.assertIsNotNone(self.service.admin_port)
        await turns()
        with self.assertRaises(ConnectionRefusedError):
            blocking(self, port)
        needed = "admin.listen: needs a token"
        self.assertTrue(self.refused(evolve(config, admin="tcp:0")).startswith(needed))
        self.service.apply(evolve(config, admin=""))
        self.assertIsNone(self.service.admin_port)

    async def test_access_logs(self) -> None:
        """Who came before the reload is written down where the others are, from then on."""
        old, new = self.mktemp(), self.mktemp()
        front = self.http(settings=HttpSettings(access_log=old))
        config = Config((front,), (Cluster("web", (Backend(Address(HOST, 1)),)),))
        self.start(config)
        client = await connect(self, self.port("front"), HttpClient())
        await client.get("/old")
        changed = evolve(front, settings=HttpSettings(access_log=new))
        self.service.apply(evolve(config, listeners=(changed,)))
        await client.get("/new")
        for path, target in ((old, "/old"), (new, "/new")):
            self.clock.advance(1)
            with open(path) as file:
                (line,) = file
            self.assertIn(target, line)
        self.service.apply(config)
        self.service.apply(evolve(config, listeners=(evolve(front, settings=HttpSettings()),)))
        self.assertEqual(self.service._access_logs._logs, {})
        two = [
            evolve(
                front,
                name=form,
                listen=self.place(),
                settings=HttpSettings(access_log=old, access_log_format=form),
            )
            for form in ("combined", "json")
        ]
        self.assertEqual(
            self.refused(evolve(config, listeners=tuple(two))),
            f"listeners[1] (json): access_log {old}:"
            " it is written in the format combined, not json",
        )

    async def test_sources(self) -> None:
        """Connections that are there stay; the next ones leave from elsewhere."""
        backend = await start_backend(self)
        config = Config((self.tcp(),), (Cluster("web", (Backend(backend.address),)),))
        self.start(config)
        first = await connect(self, self.port("raw"))
        await backend.accepted()
        other = "127.0.0.2"
        changed = evolve(config, sources=Sources((other,), headroom=0.5))
        self.assertEqual(self.service.apply(changed), ["sources has changed"])
        await connect(self, self.port("raw"))
        served = await backend.accepted()
        self.assertEqual(served.transport.getPeer().host, other)
        sources = {each["source"]: each for each in self.service.accountant.snapshot()}
        self.assertEqual(
            {name: each["active"] for name, each in sources.items()}, {HOST: 1, other: 1}
        )
        first.reset()
        await until(lambda: self.service.accountant.snapshot()[0]["active"] == 0)


class ReadTests(ReloadCase):
    """The file, again."""

    async def test_in_a_thread(self) -> None:
        config = Config((self.tcp(),), (Cluster("web", (Backend(Address(HOST, 1)),)),))
        self.start(config)
        self.assertIsNone(self.service.reload)
        read: list[Any] = [
            config,
            evolve(config, drain_timeout=1.0),
            ConfigError(["a.toml:1: x: no", "a.toml:2: y: no"]),
        ]

        def load() -> Config:
            found = read.pop(0)
            if isinstance(found, Exception):
                raise found
            assert isinstance(found, Config)
            return found

        self.service.reads(load)
        assert self.service.reload is not None
        both = [self.service.reload(), self.service.reload()]  # one after the other
        self.assertEqual([await each for each in both], [[], ["drain_timeout has changed"]])
        failed = await self.assertFailure(self.service.reload(), ConfigError)
        self.assertEqual(len(failed.lines), 2)
        self.assertEqual(self.service.config.drain_timeout, 1.0)
        self.assertEqual(
            [line for line in self.lines if "reloaded" in line],
            [
                "reloaded: nothing has changed",
                "reloaded: drain_timeout has changed",
                "not reloaded, and nothing has changed: a.toml:1: x: no",
                "not reloaded, and nothing has changed: a.toml:2: y: no",
            ],
        )
        read.append(OSError("a bug"))
        await self.assertFailure(self.service.reload(), OSError)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    async def test_not_while_it_drains(self) -> None:
        self.start(Config((), ()))
        self.service.reads(lambda: Config((), ()))
        assert self.service.reload is not None
        await self.service.drain()
        raised = await self.assertFailure(self.service.reload(), ConfigError)
        self.assertEqual(str(raised), "the service is about to end")


class DrainTests(ReloadCase):
    async def test_a_service(self) -> None:
        """Nobody new, a last answer for whoever is asking, a second for whoever may be about to."""
        origin = await start_origin(self, [lambda end, asked: None], [answer(b"ok")] * 9)
        config = Config(
            (self.http(),), (Cluster("web", (Backend(origin.address),)),), admin=self.place()
        )
        self.start(config)
        port = self.port("front")
        busy, idle, late = [await connect(self, port, HttpClient()) for _ in range(3)]
        busy.ask()
        await until(lambda: origin.requests)
        for client in (idle, late):
            await client.get()
        fresh = await connect(self, port, HttpClient())
        await until(lambda: self.connections() == 4)
        self.assertFalse(self.service.draining)
        drained: list[object] = []
        self.service.drain().addCallback(drained.append)
        self.assertTrue(self.service.draining)
        await turns()
        with self.assertRaises(ConnectionRefusedError):
            blocking(self, port)
        self.assertEqual((await late.get())["Connection"], "close")
        await late.ended()
        self.clock.advance(1.5)
        for client in (idle, fresh):
            await client.ended()
        await until(lambda: self.connections() == 1)
        self.assertEqual(drained, [])
        origin.ends[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        reply = await busy.response()
        self.assertEqual((reply.body, reply["Connection"]), (b"ok", "close"))
        await until(lambda: drained)
        self.assertIsNotNone(self.service.admin_port)
        self.assertIsNone(await self.service.drain())

    async def test_an_answer_that_has_begun(self) -> None:
        """It did not say that it was the last; the client has a second more."""
        origin = await start_origin(self, [lambda end, asked: None])
        self.start(Config((self.http(),), (Cluster("web", (Backend(origin.address),)),)))
        client = await connect(self, self.port("front"), HttpClient())
        client.ask()
        await until(lambda: origin.requests)
        origin.ends[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        await until(lambda: client.received)
        drained: list[object] = []
        self.service.drain().addCallback(drained.append)
        origin.ends[0].send(b"k")
        reply = await client.response()
        self.assertEqual((reply.body, "Connection" in reply.fields), (b"ok", False))
        await turns()
        self.assertEqual(drained, [])
        self.clock.advance(1.5)
        await client.ended()
        await until(lambda: drained)

    async def test_cut(self) -> None:
        backend = await start_backend(self)
        config = Config((self.tcp(),), (Cluster("web", (Backend(backend.address),)),))
        self.service.cut("nobody waits")
        self.start(config)
        client = await connect(self, self.port("raw"))
        await backend.accepted()
        drained = self.service.drain()
        self.service.cut("told to end at once")
        self.assertTrue(await client.lost())
        await drained
        self.assertIn("proxykit: told to end at once: 1 connection cut off (raw: 1)", self.lines)

    async def test_no_time_at_all(self) -> None:
        backend = await start_backend(self)
        config = Config(
            (self.tcp(),), (Cluster("web", (Backend(backend.address),)),), drain_timeout=0.0
        )
        self.start(config)
        client = await connect(self, self.port("raw"))
        await backend.accepted()
        await self.service.drain()
        self.assertTrue(await client.lost())
        self.assertIn("proxykit: drain_timeout is 0: 1 connection cut off (raw: 1)", self.lines)
