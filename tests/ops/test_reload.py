"""One configuration after another: of the listeners what differs changes, and nothing else."""

from __future__ import annotations

import os

from attrs import evolve

from proxykit.model import (
    Address,
    Backend,
    Cluster,
    Config,
    Listener,
    ListenerTls,
    SniRoute,
)
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.sni_settings import SniSettings
from tests.http_sockets import HttpClient, answer, start_origin
from tests.ops.reloading import ReloadCase, connect_unix
from tests.sni_sockets import asking
from tests.sockets import (
    HOST,
    blocking,
    connect,
    start_backend,
    turns,
    until,
)
from tests.tls_certificates import pem_file


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
            ['listener other: name "front" -> "other", via "proxykit" -> ""'],
        )
        self.assertIs(self.service.listeners["other"], listener)
        self.assertIs(listener._port, port)
        last = await client.get()
        self.assertEqual((last["Connection"], last["Via"]), ("close", "1.1 proxykit"))
        await client.ended()
        another = await connect_unix(self, path, HttpClient())
        self.assertNotIn("Via", (await another.get()).fields)
        # All of them are counted together.
        self.assertEqual(listener.snapshot()["traffic"]["requests"], 3)

    async def test_counts_go_on(self) -> None:
        """Whatever a listener counts, whoever reads it sees no step back."""
        tls = ListenerTls((pem_file(self, "a.example"),))
        trust = (HOST,)
        config = Config(
            (
                self.tcp("raw", proxy_protocol=True, trust=trust, tls=tls),
                Listener("sni", self.place(), "sni", "web", settings=SniSettings()),
            ),
            (Cluster("web", (Backend(Address(HOST, 1)),)),),
        )
        self.start(config)
        raw, sni = self.service.listeners.values()
        raw.factory.stats.refused = raw.headers.refused["x"] = raw.tls.handshakes = 7
        sni.factory.hellos.count("y")
        changed = (
            evolve(config.listeners[0], proxy_timeout=1.0),
            evolve(config.listeners[1], settings=SniSettings(peek_timeout=1.0)),
        )
        before = [each.snapshot() for each in (raw, sni)]
        factories = raw.factory, sni.factory
        self.service.apply(evolve(config, listeners=changed))
        self.assertEqual([each.snapshot() for each in (raw, sni)], before)
        self.assertIsNot(raw.factory, factories[0])
        self.assertIsNot(sni.factory, factories[1])
        # Another mode counts other things.
        self.service.apply(evolve(config, listeners=(evolve(changed[0], tls=None), self.http())))
        self.assertEqual(raw.snapshot()["traffic"]["refused"], 7)

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
