"""The tcp mode without sockets: what it shows of itself, and what it makes of a listener."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import Listener
from proxykit.modes.tcp import TcpMode, TcpSettings
from tests.modes.test_tcp import name_of
from tests.sockets import (
    TIMEOUT,
    start_backend,
    start_proxy,
    unanswering,
    until,
)


class SnapshotTests(TestCase):
    timeout = TIMEOUT

    async def test_relaying_and_waiting(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend, max_connections=1)
        client = await proxy.connect()
        served = await backend.accepted()
        client.send(b"12345")
        await served.got(b"12345")
        served.send(b"123")
        await client.got(b"123")
        proxy.clock.advance(1.5)
        second = await proxy.connect()
        await until(lambda: len(proxy.cluster.queue))
        self.assertEqual(
            proxy.listener.describe_connections(),
            [
                {
                    "id": 1,
                    "listener": "front",
                    "client": name_of(client),
                    "cluster": "web",
                    "backend": str(backend.address),
                    "state": "relaying",
                    "bytes_up": 5,
                    "bytes_down": 3,
                    "seconds": 1.5,
                },
                {
                    "id": 2,
                    "listener": "front",
                    "client": name_of(second),
                    "cluster": "web",
                    "backend": None,
                    "state": "waiting",
                    "bytes_up": 0,
                    "bytes_down": 0,
                    "seconds": 0.0,
                },
            ],
        )
        for number, shared, reason in ((1, False, "opaque"), (2, None, "waiting")):
            found = proxy.listener.explain(number)
            self.assertEqual(found["kind"], "l4")
            self.assertEqual((found["shared"], found["reason"]), (shared, reason))
        found = proxy.listener.explain(2)
        self.assertEqual(
            found["full"], f"{backend.address} has all of its 1 connections (max_connections)"
        )
        self.assertEqual(found["advice"], "another backend, or a greater max_connections")
        self.assertEqual(proxy.listener.snapshot()["traffic"]["own"], {"opaque": 1})

    async def test_connecting(self) -> None:
        proxy = start_proxy(self, unanswering(self))
        await proxy.connect()
        waiting: Any = await until(lambda: list(proxy.listener.connections.values()))
        self.assertEqual(waiting[0].snapshot()["state"], "connecting")
        self.assertEqual(proxy.listener.explain(1)["reason"], "no-backend")


class ModeTests(TestCase):
    timeout = TIMEOUT

    def test_it_needs_a_cluster(self) -> None:
        listener = Listener("front", "tcp:0", "tcp", settings=TcpSettings())
        with self.assertRaises(ValueError) as caught:
            TcpMode().check(listener)
        self.assertIn("needs a cluster", str(caught.exception))
