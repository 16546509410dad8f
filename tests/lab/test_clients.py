"""proxykit.lab.clients and proxykit.lab.mixing: on loopback, in one event loop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib

from twisted.trial.unittest import SynchronousTestCase

from proxykit.lab import mixing
from proxykit.lab.clients import Crowd, _between
from proxykit.lab.origin import Origin
from proxykit.lab.talks import ENDED, MIXED_UP, SERVED, SILENT

HOST = "127.0.0.1"


class Place:
    """An origin on loopback, and a crowd.

    :ivar said: what the crowd has told of what was under way.
    """

    def __init__(self, server, crowd, said):
        self.server = server
        self.address = "{}:{}".format(*server.sockets[0].getsockname())
        self.crowd = crowd
        self.said = said


@contextlib.asynccontextmanager
async def place(**options):
    """One, closed in the end."""
    defaults = {"name": "one", "talk": "http", "close": False, "delay": 0.0, "size": 0}
    namespace = argparse.Namespace(**{**defaults, **options})
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Origin(namespace), HOST, 0)
    said = []
    crowd = Crowd(said.append)
    try:
        yield Place(server, crowd, said)
    finally:
        await crowd.leave()
        server.close()


def played(play):
    """Make a test of a coroutine that gets a place."""

    def test(self):
        async def whole():
            async with place(**getattr(play, "options", {})) as here:
                await play(self, here)

        asyncio.run(whole())

    test.__doc__ = play.__doc__
    test.__name__ = play.__name__
    return test


def options(**which):
    """Of the origin's."""

    def decorate(play):
        play.options = which
        return play

    return decorate


class CrowdTests(SynchronousTestCase):
    @played
    async def test_open(self, here):
        """They ask, stay, are asked again, and leave."""
        told = await here.crowd.open(100, [here.address])
        self.assertEqual((told["open"], told["outcomes"]), (100, {SERVED: 100}))
        least, middle, most = told["seconds"][SERVED]
        self.assertTrue(0 <= least <= middle <= most)
        self.assertEqual([*told["first"]], [SERVED])
        told = await here.crowd.ask(times=2, pieces=3)
        self.assertEqual((told["outcomes"], told["mixed_up"]), ({SERVED: 200}, []))
        self.assertEqual((await here.crowd.leave(30))["open"], 70)
        self.assertEqual((await here.crowd.look())["open"], 70)
        self.assertEqual((await here.crowd.leave())["open"], 0)

    @played
    async def test_progress(self, here):
        await here.crowd.open(3, [here.address])
        self.assertEqual(here.said[0], {"at": {"done": 1, "of": 3}})

    @played
    async def test_rate(self, here):
        told = await here.crowd.open(5, [here.address], rate=1000.0)
        self.assertEqual(told["outcomes"], {SERVED: 5})

    @played
    async def test_not_asking(self, here):
        told = await here.crowd.open(5, [here.address], asks=False)
        self.assertEqual(told["outcomes"], {"connected": 5})
        self.assertEqual((await here.crowd.ask())["outcomes"], {SERVED: 5})

    @played
    async def test_refused(self, here):
        """Nobody listens there; who is here stays."""
        here.server.close()
        await here.server.wait_closed()
        told = await here.crowd.open(3, [here.address])
        self.assertEqual((told["open"], told["outcomes"]), (0, {"ECONNREFUSED": 3}))

    @played
    async def test_bound(self, here):
        for bind in ("plain", "late"):
            told = await here.crowd.open(2, [here.address], bind=bind, source="127.0.0.3")
            self.assertEqual(told["outcomes"], {SERVED: 2})
            (*_, client) = here.crowd._clients
            self.assertEqual(client.transport.get_extra_info("sockname")[0], "127.0.0.3")
        told = await here.crowd.open(1, [here.address], bind="plain", source="192.0.2.1")
        self.assertEqual(told["outcomes"], {"EADDRNOTAVAIL": 1})

    @played
    @options(close=True)
    async def test_closed(self, here):
        """The other side closes; that is noticed, and told."""
        told = await here.crowd.open(3, [here.address])
        self.assertEqual(told["outcomes"], {SERVED: 3})
        await asyncio.wait([each.gone for each in here.crowd._clients])
        self.assertEqual((await here.crowd.look())["outcomes"], {ENDED: 3})
        self.assertEqual((await here.crowd.ask())["outcomes"], {ENDED: 3})

    @played
    @options(delay=30.0)
    async def test_silent(self, here):
        told = await here.crowd.open(2, [here.address], patience=0.01)
        self.assertEqual((told["open"], told["outcomes"]), (2, {SILENT: 2}))

    @played
    async def test_churn(self, here):
        """None of them stays."""
        told = await here.crowd.churn(1000.0, 0.01, [here.address])
        self.assertEqual((told["open"], told["outcomes"]), (0, {SERVED: 10}))

    @played
    @options(close=True)
    async def test_churn_server(self, here):
        """The other side is the one that closes."""
        told = await here.crowd.churn(1000.0, 0.01, [here.address], last="server")
        self.assertEqual((told["open"], told["outcomes"]), (0, {SERVED: 10}))

    @played
    async def test_follow(self, here):
        """Up, and down again."""
        points = [(0, 20), (0.02, 20), (0.03, 3), (0.5, 3)]
        told = await here.crowd.follow(points, [here.address])
        self.assertEqual((told["open"], told["outcomes"]), (3, {SERVED: 20}))

    def test_between(self):
        points = [(0.0, 0.0), (10.0, 100.0), (10.0, 50.0), (20.0, 0.0)]
        for at, height in ((-1, 0), (0, 0), (5, 50), (10, 100), (15, 25), (20, 0), (30, 0)):
            self.assertEqual(_between(points, at), height, at)


class MixingTests(SynchronousTestCase):
    """The relay that does what must not be done."""

    async def ask(self, here, guess, count, **how):
        """Through it; gives what becomes of that."""
        loop = asyncio.get_running_loop()
        _, backend = await loop.create_connection(
            lambda: mixing.Backend(guess), *here.address.split(":")
        )
        server = await loop.create_server(lambda: mixing.Client(backend), HOST, 0)
        front = "{}:{}".format(*server.sockets[0].getsockname())
        await here.crowd.open(count, [front], asks=False, names=["ann", "bob"])
        told = await here.crowd.ask(patience=1.0, **how)
        server.close()
        backend._transport.close()
        return told

    @played
    async def test_alone(self, here):
        for guess in ("last", "turn"):
            told = await self.ask(here, guess, 1, times=3)
            self.assertEqual(told["outcomes"], {SERVED: 3})
            await here.crowd.leave()

    @played
    @options(delay=0.01)
    async def test_last(self, here):
        """Who speaks last hears what was for the other."""
        told = await self.ask(here, "last", 2)
        self.assertEqual(told["outcomes"], {SILENT: 1, MIXED_UP: 1})
        self.assertEqual(told["mixed_up"], [("bob/1", "ann/1")])

    @played
    async def test_pieces(self, here):
        """Each piece counts for a question, so there are more of them than answers."""
        told = await self.ask(here, "turn", 2, pieces=2)
        self.assertLess(told["outcomes"].get(SERVED, 0), 2)
