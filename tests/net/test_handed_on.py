"""Connections that were handed on: whose they are said to be, and who counts them."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import Any

from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from proxykit.interfaces import IHandsOver
from proxykit.model import Listener as ListenerConfig
from proxykit.net.listener import endpoint
from proxykit.ops.building import BuiltListener
from proxykit.ops.service import ProxyService
from tests.net import test_hand_over, test_peek
from tests.net.test_hand_over import Asked, End, port_of
from tests.sockets import HOST, TIMEOUT, ClockedReactor, connect, hear, reactor, until


class ShownTests(test_hand_over.HandOverCase):
    async def test_it_is_shown_as_the_other_one_s(self) -> None:
        await self.start()
        client = await self.connect()
        client.send(b"go")
        await self.taken()
        (shown,) = self.front.describe_connections()
        self.assertEqual(shown["listener"], "inner")


@implementer(IHandsOver)
class Passing(Factory):
    """Passes on what it is given."""

    noisy = False

    def __init__(self, name: str) -> None:
        self.name = name

    def hand_over_by(self, hand_over: Any) -> None:
        self.hand_over = hand_over

    def buildProtocol(self, addr: Any) -> Any:
        made: Any = End()
        made.dataReceived = lambda data: self.hand_over(made, self.name, data)
        return made


class ChainTests(TestCase):
    timeout = TIMEOUT

    async def test_given_on_twice(self) -> None:
        """Whoever has accepted it counts it, however often it is given on."""
        service = ProxyService(ClockedReactor())
        last = Asked(End)
        for name, factory in (
            ("front", Passing("inner")),
            ("inner", Passing("last")),
            ("last", last),
        ):
            config = ListenerConfig(name, "", "none", max_connections=1)
            built = BuiltListener(config, factory, None, None, None, None)
            if IHandsOver.providedBy(factory):
                factory.hand_over_by(service._fronts._hand_over)
            service.listeners[name] = service._fronts._listener(built)
        front, inner, _ = service.listeners.values()
        await front.listen(endpoint(reactor, f"tcp:0:interface={HOST}"))
        self.addCleanup(front.stop_listening)
        for _ in range(2):
            client = await connect(self, port_of(front))
            client.send(b"hello")
            await until(lambda: last.made and last.made[-1].received)
            self.assertEqual(list(front.connections.values()), [last.made.pop()])
            self.assertEqual(inner.connections, {})
            client.reset()
            await until(lambda: not front.connections)
            self.assertEqual(front.paused, "")


class HeaderTests(test_peek.HeaderCase):
    async def test_the_end_of_the_service_is_nobody_s_fault(self) -> None:
        lines = hear(self)
        await self.start()
        client = await self.begin(test_peek.LINE[:9])
        await self.listener.abort("the service ended")
        self.assertTrue(await client.lost())
        self.assertEqual((self.headers.refused, lines[1:]), ({}, []))
        self.assertEqual(len(self.deadlines), 0)

    async def test_a_unix_client_with_a_name_of_four_bytes(self) -> None:
        """A stock port takes it for an address of IPv6, and ends."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        await self.start(listen=f"unix:{directory.name}/front", trust=("unix",))
        for number in range(2):
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.bind(f"\0{os.urandom(2).hex()[1:]}")
            client.connect(f"{directory.name}/front")
            client.sendall(test_peek.LINE + b"question")
            near = await self.let_in(number + 1)
            await near.got(b"question")
