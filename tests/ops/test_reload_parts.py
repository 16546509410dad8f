"""One configuration after another: clusters, and what else there is in a file."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from proxykit.model import (
    Address,
    Backend,
    Cluster,
    Config,
    HttpRoute,
    Sources,
)
from proxykit.modes.http_settings import HttpSettings
from tests.http_sockets import HttpClient, answer, start_origin
from tests.ops.reloading import ReloadCase
from tests.sockets import (
    HOST,
    blocking,
    connect,
    start_backend,
    turns,
    until,
)


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
        self.assertEqual(self.service.apply(token), ["admin.token changed"])
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
        self.assertEqual(
            self.service.apply(changed),
            ["sources.addresses changed", "sources.headroom 0.02 -> 0.5"],
        )
        await connect(self, self.port("raw"))
        served = await backend.accepted()
        self.assertEqual(served.transport.getPeer().host, other)
        sources = {each["source"]: each for each in self.service.accountant.snapshot()}
        self.assertEqual(
            {name: each["active"] for name, each in sources.items()}, {HOST: 1, other: 1}
        )
        first.reset()
        await until(lambda: self.service.accountant.snapshot()[0]["active"] == 0)
