"""Connections that the backend closes while a request is on its way to it.

The bounded run of ``stale_origin.py``, with real processes; and one race that chance seldom finds,
step by step.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import TestCase

from proxykit.core.routing import HttpRouter
from proxykit.modes.http import HttpFactory
from tests.http_sockets import HttpClient, answer, start_http, start_origin
from tests.interop import programs
from tests.sockets import HOST, TIMEOUT, connect, reactor, until


class ProcessTests(TestCase):
    """A real ``twistd``, and an origin that closes what is idle at random."""

    timeout = TIMEOUT

    @inlineCallbacks
    def run_with(self, *options: str) -> Any:
        argv = [sys.executable, "-m", "tests.interop.stale_origin", *options]
        status, printed = yield programs.run(
            self, argv, env=programs.environment(), cwd=programs.TREE
        )
        self.assertEqual(status, 0, printed)
        return printed

    def figure(self, printed: str, name: str) -> int:
        (line,) = [line for line in printed.splitlines() if line.strip().startswith(name)]
        return int(line.split()[-1])

    @inlineCallbacks
    def test_safe(self):
        printed = yield self.run_with("--requests", "3000")
        # Or else nothing was tried.
        self.assertGreater(self.figure(printed, "requests on a used connection"), 500)
        self.assertGreater(self.figure(printed, "idempotent, delivered more than once"), 0)
        self.assertGreater(self.figure(printed, "POST, failed with 502"), 0)

    @inlineCallbacks
    def test_always(self):
        printed = yield self.run_with("--requests", "2000", "--reuse", "always")
        self.assertGreater(self.figure(printed, "requests on a used connection"), 300)

    @inlineCallbacks
    def test_stock_reactor(self):
        yield self.run_with("--requests", "2000", "--reactor", "epoll")

    @inlineCallbacks
    def test_never(self):
        """Each request has a connection of its own, so that none can fail."""
        yield self.run_with("--requests", "2000", "--reuse", "never")


class HeldConnector:
    """A connector whose connections are opened when the test says so."""

    def __init__(self, connector: Any) -> None:
        self._connector = connector
        self.held: list[Any] | None = None

    def attempt(self, attempt: Any) -> Any:
        if self.held is None:
            return self._connector.attempt(attempt)
        self.held.append(attempt)
        return False

    def cancel(self, attempt: Any) -> None:
        self._connector.cancel(attempt)

    def release(self) -> None:
        """Open what was held, and hold no more."""
        held, self.held = self.held or [], None
        for attempt in held:
            self._connector.attempt(attempt)


class NeverUsedTests(TestCase):
    """A connection that was opened for a request which then found another one."""

    timeout = TIMEOUT

    async def start(self) -> None:
        """Two idle connections, of which the one on top of the shelf was never used."""
        self.origin = await start_origin(self)
        self.proxy = start_http(self, self.origin)
        # Before the proxy's end: it knows nothing of the pool that is made here.
        self.addCleanup(lambda: Deferred.fromCoroutine(self.origin.stop()))
        service = self.proxy.service
        self.connector = HeldConnector(service.connector)
        factory = HttpFactory(service.flow, self.connector, HttpRouter((), "web"))  # type: ignore[arg-type]
        port = reactor.listenTCP(0, factory, interface=HOST)
        self.addCleanup(port.stopListening)
        number = port.getHost().port
        self.client = await connect(self, number, HttpClient())
        other = await connect(self, number, HttpClient())

        self.client.ask()
        self.used = await self.origin.accepted()
        await self.used.request()
        self.connector.held = []
        other.ask()
        await until(lambda: self.connector.held)
        self.used.send(answer(b"first"))
        await self.client.response()
        await self.used.request()
        self.used.send(answer(b"second"))
        await other.response()
        self.connector.release()
        self.unused = await self.origin.accepted()
        pool = factory.serving.pool
        await until(lambda: pool.snapshot("web")["idle"] == 2)
        (state,) = self.proxy.cluster.backends.values()
        self.on_top = next(reversed(state.shelf.free))

    async def ask_while_it_closes(self, method: str) -> Any:
        """The backend closes it; before the proxy knows, it is given a request."""
        self.on_top.transport.pauseProducing()
        self.unused.close()
        self.client.ask(method, "/", b"" if method == "POST" else None)
        await until(lambda: self.on_top.exchange is not None)
        self.on_top.transport.resumeProducing()

    async def test_an_idempotent_request_is_sent_again(self) -> None:
        await self.start()
        await self.ask_while_it_closes("GET")
        client = self.client
        await until(lambda: len(self.origin.ends) > 2 or len(client.received) > client.taken)
        self.assertEqual(client.take_rest(), b"")
        fresh = await self.origin.accepted()
        await fresh.request()
        fresh.send(answer(b"third"))
        response = await self.client.response()
        self.assertEqual((response.status, response.body), (200, b"third"))

    async def test_another_one_is_not(self) -> None:
        await self.start()
        await self.ask_while_it_closes("POST")
        response = await self.client.response()
        self.assertEqual(response.status, 502)
        self.assertEqual(len(self.origin.ends), 2)


class LimitTests(TestCase):
    """A request that is to be sent again, while there may be no more connections."""

    timeout = TIMEOUT

    async def test_it_does_not_wait_for_what_lies_idle(self) -> None:
        origin = await start_origin(self)
        proxy = start_http(self, origin, max_connections=1)
        first, second = await proxy.connect(), await proxy.connect()
        first.ask()
        stale = await origin.accepted()
        await stale.request()
        stale.send(answer(b"one"))
        await first.response()
        await proxy.at_rest()
        (state,) = proxy.cluster.backends.values()
        (connection,) = state.shelf.free
        connection.transport.pauseProducing()
        stale.close()
        first.ask("GET", "/again")
        await until(lambda: connection.exchange is not None)
        second.ask("GET", "/other")
        await until(lambda: len(proxy.cluster.queue) == 1)
        connection.transport.resumeProducing()
        # The other one came first to the queue, and its connection stays.
        served = await origin.accepted()
        request = await served.request()
        self.assertEqual(request.target, "/other")
        served.send(answer(b"two"))
        await second.response()
        await until(lambda: len(origin.ends) > 2 or len(served.received) > served.taken)
        self.assertEqual(proxy.leftovers()["waiting"], 0)
