"""The configuration is read again; and the end of the service, with patience and without."""

from __future__ import annotations

import threading
from typing import Any

from attrs import evolve

from proxykit.errors import ConfigError
from proxykit.model import (
    Address,
    Backend,
    Cluster,
    Config,
)
from proxykit.ops.service import READING
from tests.http_sockets import HttpClient, answer, start_origin
from tests.ops.reloading import ReloadCase
from tests.sockets import (
    BLOCKING,
    HOST,
    blocking,
    connect,
    start_backend,
    turns,
    until,
)


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
        self.assertEqual([await each for each in both], [[], ["drain_timeout 30 -> 1"]])
        failed = await self.assertFailure(self.service.reload(), ConfigError)
        self.assertEqual(len(failed.lines), 2)
        self.assertEqual(self.service.config.drain_timeout, 1.0)
        self.assertEqual(
            [line for line in self.lines if "reloaded" in line],
            [
                "reloaded: nothing has changed",
                "reloaded: drain_timeout 30 -> 1",
                "not reloaded, and nothing has changed: a.toml:1: x: no",
                "not reloaded, and nothing has changed: a.toml:2: y: no",
            ],
        )
        read.append(OSError("a bug"))
        await self.assertFailure(self.service.reload(), OSError)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    async def test_not_in_time(self) -> None:
        """A name server that does not answer holds nobody up: neither another reload, nor the end,
        for a daemon's threads are not waited for."""
        self.start(Config((), ()))
        answers = threading.Event()
        self.addCleanup(answers.set)
        stuck: list[threading.Thread] = []

        def load() -> Config:
            if not stuck:
                stuck.append(threading.current_thread())
                answers.wait(BLOCKING)
            return Config((), (), drain_timeout=1.0)

        self.service.reads(load)
        assert self.service.reload is not None
        first, second = self.service.reload(), self.service.reload()
        await until(lambda: stuck)
        self.assertTrue(stuck[0].daemon)
        self.clock.advance(READING)
        raised = await self.assertFailure(first, ConfigError)
        self.assertIn("not read within 30 s", str(raised))
        self.assertEqual(await second, ["drain_timeout 30 -> 1"])
        answers.set()
        stuck[0].join(BLOCKING)
        await turns()
        self.assertEqual(self.service.config.drain_timeout, 1.0)

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
