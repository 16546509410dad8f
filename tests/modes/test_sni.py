"""The mode sni: a backend gets what its client has sent, however that came, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import SniRoute
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import EARLY_BYTES
from proxykit.testing import split_everywhere
from proxykit.wire.proxyproto import (
    ALPN,
    AUTHORITY,
    UNIQUE_ID,
    Endpoint,
    Header,
    HeaderReader,
    v1,
    v2,
)
from tests.http_sockets import for_good, quiet
from tests.sni_sockets import HELLO, SniProxy, alert, asking, cluster_of, large, start_sni
from tests.sockets import (
    TIMEOUT,
    BackendServer,
    in_thread,
    read_all,
    reset_on_close,
    start_backend,
    turns,
    unanswering,
    until,
)
from tests.wire.hellos import body, message, recorded, records, sni

#: What a client of TLS 1.3 may send before it has an answer.
EARLY_DATA = records(b"early data", kind=23, version=b"\x03\x03")
BULK = random.Random(5).randbytes(4_000_000)
#: Of one read.
READ = 65536


class SniTestCase(TestCase):
    """A backend, and what its clients do."""

    timeout = TIMEOUT
    looks = False
    backend: BackendServer
    proxy: SniProxy

    async def start(self, **more: Any) -> None:
        """A proxy in front of one backend, which gets what asks for a.example."""
        self.backend = await start_backend(self)
        self.proxy = start_sni(self, self.backend, looks=self.looks, **more)

    async def assert_whole(self, cuts: Iterable[Sequence[bytes]]) -> None:
        """Each client's backend gets the pieces that its client sends, each in a read of its own.

        All of them are there at the same time, and each has something of its own at its end.
        """
        clients, sent = [], []
        for number, pieces in enumerate(cuts):
            own = b"client %d" % number
            clients.append((await self.proxy.connect(), [*pieces, own]))
            sent.append(b"".join(pieces) + own)
        for step in range(max(len(pieces) for _, pieces in clients)):
            for client, pieces in clients:
                if step < len(pieces):
                    client.send(pieces[step])
            for client, pieces in clients:
                await self.proxy.has_read(client, len(b"".join(pieces[: step + 1])))
        for client, _ in clients:
            client.finish()
        served = [await self.backend.accepted() for _ in clients]
        for each in served:
            await each.ended()
        self.assertEqual(sorted(bytes(each.received) for each in served), sorted(sent))
        self.assertEqual(self.proxy.hellos, {"refused": {}, "handed_over": 0})
        for each in served:
            each.close()
        await self.proxy.empty()


class BytesTests(SniTestCase):
    """What is relayed is what was sent."""

    async def test_whole(self) -> None:
        await self.start()
        await self.assert_whole([[HELLO]])

    async def test_split_at_each_byte(self) -> None:
        await self.start()
        *in_two, _ = split_everywhere(HELLO)
        await self.assert_whole(in_two)

    async def test_byte_by_byte(self) -> None:
        await self.start()
        *_, singly = split_everywhere(HELLO)
        await self.assert_whole([singly, [HELLO]])

    async def test_in_records_of_each_size(self) -> None:
        """Whichever record the name is cut in, and whichever read."""
        await self.start()
        whole = message(body(sni(b"a.example")))
        cut = [records(whole, size) for size in range(1, len(whole) + 1)]
        await self.assert_whole([data] for data in cut)
        await self.assert_whole([data[:40], data[40:60], data[60:]] for data in cut)

    async def test_those_of_programs(self) -> None:
        await self.start(routes=[SniRoute("web")])
        programs = recorded().values()
        await self.assert_whole([data] for data in programs)
        await self.assert_whole([data[:at], data[at:]] for data in programs for at in (1, 5, 9, 99))

    async def test_what_is_behind_it(self) -> None:
        """Early data, a second hello, something that is no TLS: with it, or in the next read."""
        await self.start()
        for behind in (EARLY_DATA, HELLO, asking("b.example"), b"GET / HTTP/1.1\r\n\r\n", BULK):
            await self.assert_whole([[HELLO + behind], [HELLO[:50], HELLO[50:] + behind]])

    async def test_a_second_hello_after_an_answer(self) -> None:
        """As after a HelloRetryRequest; whatever name is in it, the connection stays."""
        await self.start()
        client = await self.proxy.connect()
        client.send(HELLO)
        served = await self.backend.accepted()
        await served.got(HELLO)
        served.send(b"another, please")
        await client.got(b"another, please")
        client.send(asking("b.example"))
        await served.got(HELLO + asking("b.example"))

    async def test_much_in_both_directions(self) -> None:
        await self.start()
        client = await self.proxy.connect()
        client.send(HELLO + BULK)
        served = await self.backend.accepted()
        served.send(BULK[::-1])
        await served.got(HELLO + BULK)
        await client.got(BULK[::-1])
        client.finish()
        await served.ended()
        served.close()
        await client.ended()
        client.close()
        await self.proxy.empty()
        traffic = self.proxy.traffic
        self.assertEqual(
            (traffic["bytes_up"], traffic["bytes_down"], traffic["ended"], traffic["refused"]),
            (len(HELLO + BULK), len(BULK), {"client closed": 1}, 0),
        )

    async def test_large_hellos(self) -> None:
        """More than a look, than a record; and as large as one may be."""
        await self.start()
        for size in (16_389, 16_395, 20_000, 61_440, 65_536):
            data = large(size)
            await self.assert_whole([[data], [data[:9], data[9:]], [data[:-1], data[-1:]]])
            await self.assert_whole([[data + EARLY_DATA], [data[:17_000], data[17_000:] + BULK]])


class LookingBytesTests(BytesTests):
    """The same where some hellos go on to another listener."""

    looks = True


class RouteTests(SniTestCase):
    """Which backend it is."""

    async def test_by_name_and_protocol(self) -> None:
        web, other, rest = [await start_backend(self) for _ in range(3)]
        proxy = start_sni(
            self,
            web,
            routes=[
                SniRoute("web", host="A.example"),
                SniRoute("other", host="*.a.example"),
                SniRoute("other", alpn=("acme-tls/1",)),
            ],
            default="rest",
            others=[cluster_of("other", other), cluster_of("rest", rest)],
        )
        for data, backend in (
            (asking("a.example"), web),
            (asking("A.EXAMPLE."), web),
            (asking("x.y.a.example", "h2"), other),
            (asking("b.example", "acme-tls/1"), other),
            (asking(None, "h2", "acme-tls/1"), other),
            (asking("a.example", "acme-tls/1"), web),
            (asking("b.example", "h2"), rest),
            (asking(None), rest),
            (asking("192.0.2.1"), rest),
        ):
            client = await proxy.connect()
            client.send(data)
            await (await backend.accepted()).got(data)

    async def test_several_backends(self) -> None:
        """A connect that fails goes on to the next, with all that has come."""
        backend = await start_backend(self)
        proxy = start_sni(self, unanswering(self), backend, connect_timeout=2.0)
        client = await proxy.connect()
        client.send(HELLO)
        await proxy.has_read(client, len(HELLO))
        client.send(EARLY_DATA)
        await proxy.has_read(client, len(HELLO + EARLY_DATA))
        proxy.clock.advance(3)
        await (await backend.accepted()).got(HELLO + EARLY_DATA)


class WaitingTests(SniTestCase):
    """The hello has come, and there is no backend yet."""

    async def full(self, **settings: Any) -> None:
        """Somebody else has the backend's only connection."""
        await self.start(max_connections=1, queue_timeout=100.0, settings=SniSettings(**settings))
        self.first = await self.proxy.connect()
        self.first.send(HELLO)
        await (await self.backend.accepted()).got(HELLO)

    async def queued(self) -> None:
        """A client is in the queue."""
        await until(lambda: self.proxy.leftovers()["waiting"])

    async def test_more_follows(self) -> None:
        await self.full()
        client = await self.proxy.connect()
        client.send(HELLO[:30])
        await self.proxy.has_read(client, 30)
        client.send(HELLO[30:])
        await self.queued()
        sent = HELLO
        for more in (EARLY_DATA, HELLO, b"x", BULK[:50_000]):
            client.send(more)
            sent += more
            await self.proxy.has_read(client, len(sent))
        self.first.reset()
        served = await self.backend.accepted()
        await served.got(sent)
        client.send(b"and more")
        await served.got(sent + b"and more")

    async def test_a_client_that_sends_much(self) -> None:
        """It is not read from any more than has to be, and gets all of it through in the end."""
        for hello in (HELLO, large(65_000)):
            await self.full()
            client = await self.proxy.connect()
            client.send(hello + BULK)
            await self.queued()
            side = await self.proxy.side_of(client)
            await for_good(lambda side=side: quiet(side.transport))
            self.assertGreaterEqual(side.received, EARLY_BYTES)
            self.assertLess(side.received, EARLY_BYTES + 2 * READ)
            self.first.reset()
            await (await self.backend.accepted()).got(hello + BULK)

    async def test_a_client_that_sends_just_so_much(self) -> None:
        """As many bytes as are read before there is a backend, and then some more."""
        await self.full()
        client = await self.proxy.connect()
        client.send(HELLO)
        await self.queued()
        early = HELLO + BULK[len(HELLO) : EARLY_BYTES]
        client.send(early[len(HELLO) :])
        side = await self.proxy.has_read(client, EARLY_BYTES)
        self.assertTrue(quiet(side.transport))
        client.send(b"more")
        self.first.reset()
        await (await self.backend.accepted()).got(early + b"more")

    async def test_an_end_right_behind_it(self) -> None:
        await self.start()
        for data in (HELLO, HELLO + EARLY_DATA, large(61_440)):
            client = self.proxy.blocking()
            client.sendall(data)
            client.shutdown(1)
            served = await self.backend.accepted()
            await served.ended()
            self.assertEqual(bytes(served.received), data)
            served.send(b"answer")
            served.close()
            self.assertEqual(await in_thread(read_all, client), b"answer")
            client.close()
            await self.proxy.empty()

    async def test_an_end_while_it_waits(self) -> None:
        """It has asked its question, and waits for the answer."""
        await self.full()
        client = self.proxy.blocking()
        client.sendall(HELLO)
        await self.queued()
        client.shutdown(1)
        side = list(self.proxy.listener.connections.values())[1]
        await until(lambda: side.read_ended)
        self.assertEqual(self.proxy.leftovers()["waiting"], 1)
        self.first.reset()
        served = await self.backend.accepted()
        await served.ended()
        self.assertEqual(bytes(served.received), HELLO)
        served.send(b"answer")
        served.close()
        self.assertEqual(await in_thread(read_all, client), b"answer")

    async def test_an_end_that_is_taken_for_leaving(self) -> None:
        await self.full(abort_on_close=True)
        client = await self.proxy.connect()
        client.send(HELLO)
        await self.queued()
        client.finish()
        await until(lambda: not self.proxy.leftovers()["waiting"])
        self.assertTrue(await client.lost())
        self.assertEqual(self.proxy.traffic["ended"], {"client left before it had a backend": 1})

    async def test_a_reset_in_the_queue(self) -> None:
        await self.full()
        client = self.proxy.blocking()
        client.sendall(HELLO)
        await self.queued()
        reset_on_close(client)
        client.close()
        await until(lambda: not self.proxy.leftovers()["waiting"])
        self.assertEqual(len(self.proxy.listener.connections), 1)

    async def test_a_reset_while_its_backend_is_connected(self) -> None:
        proxy = start_sni(self, unanswering(self), connect_timeout=30.0)
        client = await proxy.connect()
        client.send(HELLO)
        await until(lambda: proxy.leftovers()["ports"])
        client.reset()
        await proxy.empty()
        self.assertEqual(proxy.traffic["ended"], {"client left before it had a backend": 1})
        self.assertEqual(proxy.hellos["refused"], {})

    async def test_a_refused_connect(self) -> None:
        proxy = start_sni(self)
        client = await proxy.connect()
        client.send(HELLO)
        self.assertTrue(await client.lost())
        await proxy.empty()
        self.assertEqual((proxy.traffic["refused"], proxy.hellos["refused"]), (1, {}))

    async def test_a_deadline_in_the_queue(self) -> None:
        """The time for the hello has nothing to do with it, nor has that for the connection."""
        await self.full(peek_timeout=1.0, idle_timeout=200.0)
        client = await self.proxy.connect()
        client.send(HELLO)
        await self.queued()
        self.proxy.clock.advance(90)
        self.assertEqual(self.proxy.leftovers()["waiting"], 1)
        self.proxy.clock.advance(12)
        self.assertTrue(await client.lost())
        self.assertEqual(self.proxy.hellos["refused"], {})


class LookingWaitingTests(WaitingTests):
    """The same where some hellos go on to another listener."""

    looks = True


class EndTests(SniTestCase):
    """How connections that are relayed end."""

    async def test_resets_are_passed_on(self) -> None:
        await self.start()
        for by_client in (True, False):
            client = await self.proxy.connect()
            client.send(HELLO)
            served = await self.backend.accepted()
            await served.got(HELLO)
            one, other = (client, served) if by_client else (served, client)
            one.reset()
            self.assertTrue(await other.lost())
            await self.proxy.empty()
        self.assertEqual(self.proxy.traffic["ended"], {"client reset": 1, "backend reset": 1})

    async def test_nothing_waits_for_the_hello_any_more(self) -> None:
        """A client that is quiet after its hello stays until it is idle."""
        await self.start(settings=SniSettings(peek_timeout=1.0, idle_timeout=20.0))
        client = await self.proxy.connect()
        client.send(HELLO)
        served = await self.backend.accepted()
        await served.got(HELLO)
        self.proxy.clock.advance(18)
        await turns()
        served.send(b"hello")
        await client.got(b"hello")
        self.proxy.clock.advance(25)
        self.assertTrue(await client.lost())
        await self.proxy.empty()
        self.assertEqual(self.proxy.traffic["ended"], {"idle timeout": 1})


class IntroducedTests(SniTestCase):
    """PROXY headers, from the client and to the backend: the hello is behind them."""

    async def told(self, data: bytes, *pieces: bytes) -> Header:
        """What the backend is told of a client that sends these pieces, before it gets ``data``."""
        client = await self.proxy.connect()
        for piece in pieces or (data,):
            client.send(piece)
            await turns()
        self.client = client.transport.getHost()
        served = await self.backend.accepted()
        client.finish()
        await served.ended()
        reader = HeaderReader()
        header = reader.feed(bytes(served.received))
        assert header is not None
        self.assertEqual(reader.rest, data)
        return header

    async def test_version_2(self) -> None:
        """It has the name that the client has asked for."""
        await self.start(proxy_protocol="v2")
        for pieces in ([HELLO], [HELLO[:60], HELLO[60:]], [HELLO + EARLY_DATA]):
            header = await self.told(b"".join(pieces), *pieces)
            self.assertEqual(header.tlvs, ((AUTHORITY, b"a.example"),))
            self.assertEqual(header.source, Endpoint(self.client.host, self.client.port))
            self.assertEqual(header.destination, Endpoint(self.client.host, self.proxy.port))

    async def test_the_name_as_it_is_routed(self) -> None:
        """In lower case, whatever the client has written."""
        await self.start(proxy_protocol="v2", routes=[SniRoute("web")])
        header = await self.told(asking("X.A.Example."))
        self.assertEqual(header.authority, "x.a.example")

    async def test_no_name(self) -> None:
        await self.start(
            proxy_protocol="v2", default="web", routes=(), settings=SniSettings(not_tls="web")
        )
        for data in (asking(None), asking("192.0.2.1"), b"GET / HTTP/1.1\r\n\r\n"):
            header = await self.told(data)
            self.assertEqual(header.tlvs, ())
            self.assertEqual(header.source, Endpoint(self.client.host, self.client.port))

    async def test_version_1(self) -> None:
        await self.start(proxy_protocol="v1")
        header = await self.told(HELLO)
        self.assertEqual((header.version, header.tlvs), (1, ()))
        self.assertEqual(header.source, Endpoint(self.client.host, self.client.port))

    async def test_only_where_it_is_wanted(self) -> None:
        """Another cluster's backends get the hello alone."""
        plain = await start_backend(self)
        proxy = start_sni(
            self,
            plain,
            routes=[SniRoute("plain", host="a.example"), SniRoute("web", host="b.example")],
            others=[cluster_of("plain", plain)],
            proxy_protocol="v2",
        )
        client = await proxy.connect()
        client.send(HELLO)
        await (await plain.accepted()).got(HELLO)

    async def test_from_the_client(self) -> None:
        """What it says goes on, and the name joins it; the hello may come with it or later."""
        source, destination = Endpoint("192.0.2.1", 7), Endpoint("192.0.2.2", 443)
        await self.from_relay()
        unique = (UNIQUE_ID, b"\x00\xff")
        for start, tlvs in (
            (v1(source, destination), ()),
            (v2(source, destination), ()),
            (v2(source, destination, (unique,)), (unique,)),
        ):
            for cut in (0, 1, len(start) - 1, len(start), len(start) + 1, len(start) + 60):
                whole = start + HELLO + EARLY_DATA
                header = await self.told(HELLO + EARLY_DATA, whole[:cut], whole[cut:])
                self.assertEqual((header.source, header.destination), (source, destination))
                self.assertEqual(header.tlvs, (*tlvs, (AUTHORITY, b"a.example")), cut)

    async def test_a_name_that_it_came_with(self) -> None:
        """Somebody before us has said it: that stays, alone."""
        await self.from_relay()
        said = ((AUTHORITY, b"first.example"), (ALPN, b"h2"))
        start = v2(Endpoint("192.0.2.1", 7), Endpoint("192.0.2.2", 443), said)
        for cut in (len(start), len(start) + 30, len(start + HELLO)):
            header = await self.told(HELLO, (start + HELLO)[:cut], (start + HELLO)[cut:])
            self.assertEqual(header.tlvs, said)

    async def test_a_header_and_no_hello(self) -> None:
        await self.from_relay()
        client = await self.proxy.connect()
        client.send(v1(Endpoint("192.0.2.1", 7), Endpoint("192.0.2.2", 443)) + b"GET /")
        await client.ended()
        self.assertEqual(bytes(client.received), alert(70))
        self.assertEqual(self.proxy.hellos["refused"], {"not TLS": 1})

    async def from_relay(self) -> None:
        """The client is one that speaks for others."""
        self.backend = await start_backend(self)
        self.proxy = start_sni(
            self, self.backend, trust=("127.0.0.0/8",), headers=True, proxy_protocol="v2"
        )
