"""``close = "reset"`` at L4: where the client ends first, the backend's connection leaves nothing.

The proxy's looks at what is acknowledged are timed by its own clock, which stands still until a
test moves it; that something has been acknowledged is the kernel's doing, and is waited for.
"""

from __future__ import annotations

import gc
import random
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import ClusterTls, SniRoute
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.net.closing import LOOK_EVERY, LOOK_FOR, settled
from tests.modes.test_http_circles import TIMES, garbage
from tests.sni_sockets import HELLO, start_sni
from tests.sockets import (
    TIMEOUT,
    Proxy,
    hear,
    in_thread,
    read_all,
    reset_on_close,
    start_backend,
    start_proxy,
    turns,
    until,
)
from tests.tls_certificates import ca_file
from tests.tls_sockets import start_secure, start_secure_backend

BULK = random.Random(7).randbytes(3_000_000)
SOME = BULK[:400_000]
#: As /proc/net/tcp has it.
TIME_WAIT = "06"


def rests(ports: tuple[int, int]) -> bool:
    """Whether the kernel holds on to a connection between two ports after it was closed."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(
        row[3] == TIME_WAIT and tuple(int(end.rpartition(":")[2], 16) for end in row[1:3]) == ports
        for row in rows
    )


def ports_of(transport: Any) -> tuple[int, int]:
    """From where to where a connection goes, as long as it is there."""
    return transport.getHost().port, transport.getPeer().port


def takes_little(end: Any) -> None:
    """From now on the kernel takes no more for an end than that reads, but for some 100 KiB."""
    end.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    end.transport.pauseProducing()


class ResetsTestCase(TestCase):
    timeout = TIMEOUT

    async def start(self, close: str = "reset", **more: Any) -> None:
        """A client, and the backend's end of its connection."""
        self.lines = hear(self)
        self.backend = await start_backend(self)
        self.proxy = start_proxy(self, self.backend, close=close, **more)
        self.client = await self.proxy.connect()
        self.served = await self.backend.accepted()
        self.side: Any = await self.proxy.side()

    async def is_reset(self, served: Any, proxy: Proxy | None = None) -> None:
        """Have the proxy look whenever it would see that all is taken, until there is a reset."""
        of = proxy or self.proxy

        def look() -> bool:
            for side in list(of.listener.connections.values()):
                relay: Any = side.relay  # type: ignore[attr-defined]
                if relay and not relay.upstream.gone and settled(relay.upstream.transport):
                    of.clock.pump([LOOK_EVERY] * 3)
            return served.reason is not None

        await until(look)
        self.assertTrue(await served.lost())

    async def slow(self) -> None:
        """The client has ended, and the backend takes nothing for now.

        What there is goes into the kernel's buffers: more than is acknowledged unread, and less
        than would hold back the client.
        """
        await self.start()
        takes_little(self.served)
        self.client.send(SOME)
        self.client.finish()
        await until(lambda: self.side.read_ended)
        self.assertFalse(settled(self.side.relay.upstream.transport))

    def assert_line(self, why: str) -> None:
        (line,) = [line for line in self.lines if " bytes up" in line]
        self.assertTrue(line.endswith(f", {why}"), line)


class ClientFirstTests(ResetsTestCase):
    """The client ends, the backend has not."""

    async def test_the_backend_gets_all_of_it_and_then_a_reset(self) -> None:
        await self.start()
        self.client.send(BULK)
        self.client.finish()
        await self.is_reset(self.served)
        self.assertEqual(bytes(self.served.received), BULK)
        self.assertFalse(self.served.read_ended)
        await self.client.ended()
        await self.proxy.empty()
        self.assert_line("client closed")

    async def test_at_once_where_nothing_is_under_way(self) -> None:
        await self.start()
        self.client.close()
        self.assertTrue(await self.served.lost())
        await self.proxy.empty()

    async def test_the_client_gets_what_has_come_and_an_orderly_end(self) -> None:
        await self.start()
        client = self.proxy.blocking(receive_buffer=4096)
        served = await self.backend.accepted()
        side = await self.proxy.side(1)
        served.send(BULK[:400_000])
        await until(lambda: side.relay.upstream.received == 400_000)
        client.shutdown(socket.SHUT_WR)
        await self.is_reset(served)
        self.assertEqual(await in_thread(read_all, client), BULK[:400_000])

    async def test_what_comes_meanwhile(self) -> None:
        """It is handed on before the connection is reset."""
        await self.start()
        side = self.side
        upstream = side.relay.upstream.transport
        upstream.pauseProducing()
        self.served.send(b"answer")
        await until(lambda: not settled(upstream))
        self.client.finish()
        await until(lambda: side.read_ended)
        self.proxy.clock.pump([LOOK_EVERY] * 9)
        await turns()
        self.assertIsNone(self.served.reason)
        upstream.resumeProducing()
        await self.is_reset(self.served)
        await self.client.got(b"answer")
        await self.client.ended()
        await self.proxy.empty()

    async def test_nothing_rests(self) -> None:
        """As it does after an ordinary close, which is the proxy's."""
        for close in ("reset", "fin"):
            await self.start(close)
            ports = ports_of(self.side.relay.upstream.transport)
            self.client.send(b"question")
            self.client.finish()
            await self.served.got(b"question")
            if close == "fin":
                await self.served.ended()
                self.served.close()
            else:
                await self.is_reset(self.served)
            await self.proxy.empty()
            await until(lambda ports=ports, close=close: rests(ports) is (close == "fin"))

    async def test_before_there_was_a_backend(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend, close="reset")
        client = proxy.blocking()
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)  # the proxy has not even accepted yet
        served = await backend.accepted()
        await self.is_reset(served, proxy)
        self.assertEqual(bytes(served.received), b"question")
        self.assertEqual(await in_thread(read_all, client), b"")
        await proxy.empty()


class OthersFirstTests(ResetsTestCase):
    """Whatever else ends a connection does it as ever."""

    async def test_the_backend_ends_first(self) -> None:
        await self.start()
        self.served.send(b"bye")
        self.served.finish()
        await self.client.got(b"bye")
        await self.client.ended()
        self.client.close()
        await self.served.ended()
        await self.proxy.empty()
        self.assert_line("backend closed")

    async def test_the_backend_ends_while_it_is_waited_for(self) -> None:
        await self.slow()
        self.served.send(b"enough")
        self.served.finish()
        await self.client.got(b"enough")
        await self.client.ended()
        self.proxy.clock.pump([LOOK_EVERY] * 3)
        self.served.transport.resumeProducing()
        await self.served.ended()
        self.assertEqual(bytes(self.served.received), SOME)
        await self.proxy.empty()
        self.assert_line("client closed")

    async def test_either_resets(self) -> None:
        for end, why in (("client", "client reset"), ("served", "backend reset")):
            await self.start()
            getattr(self, end).reset()
            self.assertTrue(await (self.served if end == "client" else self.client).lost())
            await self.proxy.empty()
            self.assert_line(why)

    async def test_either_resets_while_it_is_waited_for(self) -> None:
        await self.slow()
        self.served.reset()
        self.assertTrue(await self.client.lost())
        await self.proxy.empty()
        self.assert_line("backend reset")

    async def test_neither_sends_anything(self) -> None:
        await self.start(settings=TcpSettings(idle_timeout=10.0))
        self.proxy.clock.advance(20)
        self.assertTrue(await self.served.lost())
        self.assertTrue(await self.client.lost())
        await self.proxy.empty()
        self.assert_line("idle timeout")

    async def test_the_service_ends_while_it_is_waited_for(self) -> None:
        await self.slow()
        await self.proxy.service.abort_connections()
        self.assertTrue(await self.client.lost())
        await self.proxy.empty()


class TooLongTests(ResetsTestCase):
    """What takes more than a moment is ended as any other connection."""

    async def test_a_backend_that_does_not_read(self) -> None:
        await self.slow()
        self.proxy.clock.advance(LOOK_FOR + 0.5)
        self.served.transport.resumeProducing()
        await self.served.ended()
        self.assertEqual(bytes(self.served.received), SOME)
        self.served.send(b"answer")
        self.served.close()
        await self.client.got(b"answer")
        await self.client.ended()
        await self.proxy.empty()
        self.assert_line("client closed")

    async def test_not_before_that(self) -> None:
        await self.slow()
        self.proxy.clock.advance(LOOK_FOR - 0.2)
        self.served.transport.resumeProducing()
        await self.is_reset(self.served)
        self.assertEqual(bytes(self.served.received), SOME)
        await self.proxy.empty()


class OtherKindsTests(ResetsTestCase):
    async def test_a_unix_socket(self) -> None:
        """It has no port that could rest."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        backend = await start_backend(self, path=f"{directory.name}/b")
        proxy = start_proxy(self, backend, close="reset")
        client = await proxy.connect()
        served = await backend.accepted()
        client.send(b"question")
        client.finish()
        await served.ended()
        served.send(b"answer")
        served.close()
        await client.got(b"answer")
        await client.ended()
        await proxy.empty()

    async def test_mode_sni(self) -> None:
        backend = await start_backend(self)
        routes = [SniRoute("web", host="a.example")]
        proxy = start_sni(self, backend, routes=routes, settings=SniSettings(), close="reset")
        client = await proxy.connect()
        client.send(HELLO)
        served = await backend.accepted()
        client.send(BULK)
        client.finish()
        await self.is_reset(served, proxy)
        self.assertEqual(bytes(served.received), HELLO + BULK)
        await client.ended()
        await proxy.empty()

    async def test_tls_to_the_backend(self) -> None:
        """What counts is what the record layer has written."""
        backend = await start_secure_backend(self, "a.example")
        to = ClusterTls(server_name="a.example", ca_file=ca_file(self))
        proxy = start_secure(self, "tcp", backend, to=to, cluster={"close": "reset"})
        client = await proxy.connect()
        served = await backend.accepted()
        client.send(BULK)
        client.finish()
        await self.is_reset(served, proxy)
        self.assertEqual(bytes(served.received), BULK)
        await client.ended()
        await proxy.empty()

    async def test_nothing_waits_for_the_garbage_collector(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend, close="reset")
        self.addCleanup(gc.enable)
        gc.collect()
        gc.disable()
        for _ in range(TIMES):
            client = await proxy.connect()
            served = await backend.accepted()
            client.send(b"question")
            client.finish()
            await self.is_reset(served, proxy)
            await proxy.empty()
        del client, served
        self.assertEqual(garbage(), {})

    async def test_a_client_that_resets_what_it_has_ended(self) -> None:
        await self.start()
        client = self.proxy.blocking()
        served = await self.backend.accepted()
        side = await self.proxy.side(1)
        takes_little(served)
        client.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                client.send(bytes(65536))
        served.transport.resumeProducing()
        reset_on_close(client)
        client.close()
        await until(lambda: side.gone)
        self.assertTrue(await served.lost())
