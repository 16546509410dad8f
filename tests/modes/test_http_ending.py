"""The mode http and connections that have served for the last time: the backend may close them
first, as long as nobody needs their places."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from proxykit.model import Backend, Cluster, HttpRoute
from proxykit.net.http1_upstream import END_COMES
from tests.http_sockets import answer, start_http, start_origin
from tests.modes.test_http_bodies import OK
from tests.sockets import TIMEOUT, turns

LAST = answer(b"ok", "Connection: close")


class PlaceTests(TestCase):
    """The backend never closes, and no time passes."""

    timeout = TIMEOUT

    async def test_who_comes_later(self) -> None:
        for step, reuse in ((LAST, "safe"), (OK, "never")):
            origin = await start_origin(self, [step])
            proxy = start_http(self, origin, max_connections=1, reuse=reuse)
            client = await proxy.connect()
            for number in range(3):
                self.assertEqual((await client.get()).body, b"ok")
                await turns()
                self.assertEqual((len(origin.ends), origin.open), (number + 1, 1))
            proxy.clock.advance(END_COMES * 2)

    async def test_who_waits(self) -> None:
        origin = await start_origin(self)
        proxy = start_http(self, origin, max_connections=1, reuse="never")
        clients = [await proxy.connect() for _ in range(3)]
        for client in clients:
            client.ask()
        for client in clients:
            served = await origin.accepted()
            await served.request()
            served.send(OK)
            self.assertEqual((await client.response()).body, b"ok")
        proxy.clock.advance(END_COMES * 2)

    async def test_another_cluster_that_needs_its_port(self) -> None:
        """By an end the port would rest, and be nobody's."""
        origin = await start_origin(self, [LAST])
        other = Cluster("other", (Backend(origin.address),))
        routes = [HttpRoute(path="/other", cluster="other")]
        proxy = start_http(self, origin, others=[other], routes=routes)
        (budget,) = proxy.service.accountant._budgets.values()
        budget.free = 1
        client = await proxy.connect()
        for number, target in enumerate(("/", "/other", "/", "/other")):
            self.assertEqual((await client.get(target)).body, b"ok")
            self.assertEqual(len(origin.ends), number + 1)
        for end in origin.ends[:3]:
            self.assertTrue(await end.lost())
        proxy.clock.advance(END_COMES * 2)
