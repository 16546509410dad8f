"""A side that does not read holds the other back, and nothing piles up in between."""

from __future__ import annotations

import random
import socket
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.interfaces import IShortcuts
from tests.net.test_relay import BOUND, _address, _watch
from tests.sockets import (
    HOST,
    TIMEOUT,
    held,
    in_thread,
    reactor,
    read_all,
    reset_on_close,
    start_backend,
    start_proxy,
    turns,
    until,
)


class BackpressureTests(TestCase):
    """A side that does not read holds the other back, and nothing piles up in between."""

    timeout = TIMEOUT

    async def test_a_client_that_does_not_read(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = proxy.blocking(receive_buffer=4096)
        served = await backend.accepted()
        side = await proxy.side()
        assert side.relay is not None
        upstream = side.relay.upstream.transport
        peaks = _watch(side.transport)
        reply = random.Random(2).randbytes(30_000_000)
        served.send(reply)
        served.finish()
        await until(lambda: peaks and upstream not in reactor.getReaders())
        await turns()
        # A pipe may hold less than a buffer would, or have no more room than the socket had.
        spliced = IShortcuts.providedBy(side.transport)
        self.assertGreater(held(side.transport), 0 if spliced else 65536)
        self.assertEqual(await in_thread(read_all, client), reply)
        self.assertLessEqual(max(peaks), BOUND)

    async def test_a_backend_that_does_not_read(self) -> None:
        listening = socket.create_server((HOST, 0))
        self.addCleanup(listening.close)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        proxy = start_proxy(self, _address(listening))
        client = await proxy.connect()
        served, _ = await in_thread(listening.accept)
        self.addCleanup(served.close)
        side = await proxy.side()
        assert side.relay is not None
        peaks = _watch(side.relay.upstream.transport)
        request = random.Random(3).randbytes(30_000_000)
        client.send(request)
        client.finish()
        await until(lambda: peaks and side.transport not in reactor.getReaders())
        self.assertEqual(await in_thread(read_all, served), request)
        self.assertLessEqual(max(peaks), BOUND)

    async def test_early_bytes_beyond_the_bound_wait_and_arrive(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend, max_connections=1)
        first = await proxy.connect()
        served = await backend.accepted()
        await proxy.side()
        second = await proxy.connect()
        request = random.Random(4).randbytes(10_000_000)
        second.send(request)
        second.finish()
        waiting: Any = await until(lambda: list(proxy.listener.connections.values())[1:])
        await until(lambda: waiting[0].transport not in reactor.getReaders())
        self.assertLess(waiting[0].received, BOUND)
        self.assertFalse(waiting[0].read_ended)
        first.close()
        served.close()
        served = await backend.accepted()
        await served.got(request)
        await served.ended()

    async def test_a_reset_while_held_back_is_noticed_when_it_goes_on(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        client = proxy.blocking(receive_buffer=4096)
        served = await backend.accepted()
        side = await proxy.side()
        assert side.relay is not None
        upstream = side.relay.upstream.transport
        served.send(bytes(30_000_000))
        await until(lambda: upstream not in reactor.getReaders())
        reset_on_close(client)
        client.close()
        self.assertTrue(await served.lost())
        await proxy.empty()
