"""A service that is given one configuration after another."""

from __future__ import annotations

import tempfile
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from proxykit.errors import ConfigError
from proxykit.model import (
    Config,
    Listener,
)
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.service import ProxyService
from tests.sockets import (
    HOST,
    TIMEOUT,
    ClockedReactor,
    Connecting,
    end_of,
    hear,
    reactor,
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
