"""A client that leaves before it has a backend, or seems to."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from tests.modes.test_tcp import name_of
from tests.sockets import (
    TIMEOUT,
    Proxy,
    hear,
    start_proxy,
    unanswering,
    until,
)


class LeavingTests(TestCase):
    """Clients that end while their backend is being connected."""

    timeout = TIMEOUT

    async def start(self) -> tuple[Proxy, Any]:
        proxy = start_proxy(self, unanswering(self), connect_timeout=30.0)
        client = await proxy.connect()
        waiting: Any = await until(lambda: list(proxy.listener.connections.values()))
        self.side = waiting[0]
        return proxy, client

    async def test_silent_it_is_given_a_moment(self) -> None:
        proxy, client = await self.start()
        client.finish()
        await until(lambda: self.side.read_ended)
        proxy.clock.advance(0.9)
        self.assertEqual(proxy.leftovers()["ports"], 1)
        proxy.clock.advance(0.5)
        self.assertTrue(await client.lost())
        await proxy.empty()

    async def test_having_asked_it_is_kept(self) -> None:
        proxy, client = await self.start()
        client.send(b"question")
        client.finish()
        await until(lambda: self.side.read_ended)
        proxy.clock.advance(25)
        self.assertEqual(proxy.leftovers()["ports"], 1)

    async def test_a_reset(self) -> None:
        proxy, client = await self.start()
        client.reset()
        await proxy.empty()

    async def test_the_refusal_comes_first(self) -> None:
        lines = hear(self)
        proxy = start_proxy(self, unanswering(self), connect_timeout=0.5)
        client = await proxy.connect()
        name = name_of(client)
        waiting: Any = await until(lambda: list(proxy.listener.connections.values()))
        client.finish()
        await until(lambda: waiting[0].read_ended)
        proxy.clock.advance(0.6)
        self.assertTrue(await client.lost())
        await proxy.empty()
        proxy.clock.advance(10)
        (line,) = [line for line in lines if name in line]
        self.assertIn("timed out after 0.5 s", line)
