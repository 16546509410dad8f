"""The mode sni: ended from outside, much under way, handed over."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from proxykit.components import Component, components
from proxykit.interfaces import IMode
from proxykit.model import Config, Listener, SniRoute
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import EARLY_BYTES, TcpSettings
from proxykit.ops import building
from proxykit.ops.service import ProxyService
from tests.http_sockets import quiet
from tests.sni_sockets import HELLO, TakerMode, large, start_sni
from tests.sockets import TIMEOUT, hear, start_backend, unanswering


@implementer(IMode)
class OddMode(TakerMode):
    """One whose routes are something else."""

    @frozen
    class settings:
        routes: int = 5


class SniTests(TestCase):
    timeout = TIMEOUT

    async def test_the_end_of_the_service_is_nobody_s_fault(self) -> None:
        proxy = start_sni(self)
        lines = hear(self)
        client = await proxy.connect()
        await proxy.side_of(client)
        await proxy.service.abort_connections()
        await client.lost()
        self.assertEqual((proxy.hellos["refused"], lines[1:]), ({}, []))

    async def test_a_long_hello_counts_as_early_bytes(self) -> None:
        proxy = start_sni(self, unanswering(self), connect_timeout=100.0)
        client = await proxy.connect()
        hello = large(65_000)
        client.send(hello[:-1])
        await proxy.has_read(client, 64_999)
        client.send(hello[-1:] + bytes(60_000))
        side = await proxy.has_read(client, 125_000)
        self.assertGreater(side.received, EARLY_BYTES)
        self.assertTrue(quiet(side.transport))

    def test_a_mode_whose_routes_are_something_else(self) -> None:
        odd = Component("mode", "odd", f"{__name__}:OddMode", "")
        self.patch(building, "components", lambda kind: components(kind) | {"odd": odd})
        settings: Any = OddMode.settings()
        listener = Listener("x", "tcp:1", "odd", settings=settings)
        ProxyService(Clock()).apply(Config((listener,), ()))

    async def test_keepalive_is_as_who_takes_over_has_it(self) -> None:
        backend = await start_backend(self)
        for first, then in ((False, True), (True, False), (True, True)):
            tcp = Listener("here", "", "tcp", "web", settings=TcpSettings(keepalive=then))
            proxy = start_sni(
                self,
                backend,
                routes=[SniRoute(host="a.example", listener="here")],
                more=[tcp],
                settings=SniSettings(keepalive=first),
            )
            client = await proxy.connect()
            client.send(HELLO)
            await (await backend.accepted()).got(HELLO)
            self.assertEqual(bool((await proxy.side()).transport.getTcpKeepAlive()), then)
