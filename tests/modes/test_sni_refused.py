"""The mode sni: what is not served is told so by an alert, or not, and is counted and logged."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import SniRoute
from proxykit.modes.sni_settings import SniSettings
from proxykit.net.closing import LINGER
from tests.modes.test_tcp import name_of
from tests.sni_sockets import HELLO, SniProxy, alert, asking, cluster_of, large, start_sni
from tests.sockets import (
    TIMEOUT,
    BackendServer,
    hear,
    in_thread,
    read_all,
    start_backend,
    turns,
    until,
)
from tests.wire.hellos import body, extension, hello, message, records, sni, uint16

#: RFC 8446 section 6.
UNEXPECTED_MESSAGE = alert(10)
RECORD_OVERFLOW = alert(22)
HANDSHAKE_FAILURE = alert(40)
ILLEGAL_PARAMETER = alert(47)
DECODE_ERROR = alert(50)
PROTOCOL_VERSION = alert(70)
MISSING_EXTENSION = alert(109)
UNRECOGNIZED_NAME = alert(112)

NAMELESS = asking(None)
UNKNOWN = asking("b.example")
HTTP = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
#: What they are, by the setting that says what becomes of them.
WITHOUT_A_ROUTE = {"without_name": NAMELESS, "unknown_name": UNKNOWN, "not_tls": HTTP}
REASONS = {"without_name": "no name", "unknown_name": "unknown name", "not_tls": "not TLS"}
ALERTS = {
    "without_name": MISSING_EXTENSION,
    "unknown_name": UNRECOGNIZED_NAME,
    "not_tls": PROTOCOL_VERSION,
}
MEGABYTES = bytes(4_000_000)


class RefusedTestCase(TestCase):
    """What comes of a client that sends something."""

    timeout = TIMEOUT
    looks = False
    backend: BackendServer
    proxy: SniProxy

    async def start(self, **more: Any) -> None:
        """A proxy that serves a.example, and nothing else that it is not told of."""
        self.backend = await start_backend(self)
        self.proxy = start_sni(self, self.backend, looks=self.looks, **more)

    async def answer(self, *pieces: bytes) -> bytes:
        """All that a client gets that sends these, each in a read of its own, up to the end.

        Then the client closes, too, and is gone from all tables at once.
        """
        client = await self.proxy.connect()
        self.client = name_of(client)
        sent = 0
        for piece in pieces[:-1]:
            client.send(piece)
            sent += len(piece)
            await self.proxy.has_read(client, sent)
        client.send(pieces[-1])
        await client.ended()
        client.close()
        await self.proxy.empty()
        return bytes(client.received)


class FallbackTests(RefusedTestCase):
    """Where there is no route: an alert, nothing at all, or a cluster."""

    async def test_refused(self) -> None:
        """With an alert; and so they are where nothing is said and there is no cluster for them."""
        for key, data in WITHOUT_A_ROUTE.items():
            for settings in (
                SniSettings(),
                SniSettings(**{key: ""}),
                SniSettings(**{key: "refuse"}),
            ):
                await self.start(settings=settings)
                self.assertEqual(await self.answer(data), ALERTS[key])
                self.assertEqual(self.proxy.hellos["refused"], {REASONS[key]: 1})
                self.assertEqual(self.proxy.traffic["refused"], 1)
                self.assertEqual(self.proxy.traffic["ended"], {})

    async def test_refused_in_spite_of_a_cluster(self) -> None:
        for key, data in WITHOUT_A_ROUTE.items():
            await self.start(settings=SniSettings(**{key: "refuse"}), default="web")
            self.assertEqual(await self.answer(data), ALERTS[key])

    async def test_what_is_not_tls_is_refused_unless_it_is_said(self) -> None:
        await self.start(default="web")
        self.assertEqual(await self.answer(HTTP), PROTOCOL_VERSION)

    async def test_closed(self) -> None:
        """Without a byte."""
        for default in ("", "web"):
            for key, data in WITHOUT_A_ROUTE.items():
                await self.start(settings=SniSettings(**{key: "close"}), default=default)
                self.assertEqual(await self.answer(data), b"")
                self.assertEqual(self.proxy.hellos["refused"], {REASONS[key]: 1})

    async def test_a_cluster(self) -> None:
        """That it names comes first, then the listener's."""
        for key, data in WITHOUT_A_ROUTE.items():
            for says, default in (("other", ""), ("other", "web"), ("", "other")):
                other = await start_backend(self)
                await self.start(
                    settings=SniSettings(**{key: says}),
                    default=default,
                    others=[cluster_of("other", other)],
                )
                client = await self.proxy.connect()
                client.send(data[:1])
                client.send(data[1:])
                served = await other.accepted()
                await served.got(data)
                served.send(b"welcome")
                await client.got(b"welcome")
                self.assertEqual(self.proxy.hellos["refused"], {})

    async def test_each_for_itself(self) -> None:
        await self.start(
            settings=SniSettings(without_name="close", unknown_name="web", not_tls="refuse")
        )
        self.assertEqual(await self.answer(NAMELESS), b"")
        self.assertEqual(await self.answer(HTTP), PROTOCOL_VERSION)
        client = await self.proxy.connect()
        client.send(UNKNOWN)
        await (await self.backend.accepted()).got(UNKNOWN)

    async def test_no_name_before_tls_1_3(self) -> None:
        """missing_extension is an alert of TLS 1.3; before it there is another."""
        await self.start()
        for data, expected in (
            (asking(None, tls=(0x0304,)), MISSING_EXTENSION),
            (asking(None, tls=(0x0303, 0x0304)), MISSING_EXTENSION),
            (asking(None, tls=(0x0303,)), HANDSHAKE_FAILURE),
            (hello(), HANDSHAKE_FAILURE),
            (asking("192.0.2.1"), MISSING_EXTENSION),
        ):
            self.assertEqual(await self.answer(data), expected)

    async def test_however_it_comes(self) -> None:
        await self.start()
        for data, expected in ((UNKNOWN, UNRECOGNIZED_NAME), (NAMELESS, MISSING_EXTENSION)):
            for at in (1, 5, 40, len(data) - 1):
                self.assertEqual(await self.answer(data[:at], data[at:]), expected)
            cut = records(data[5:], 7)
            self.assertEqual(await self.answer(cut[:40], cut[40:]), expected)
        self.assertEqual(await self.answer(b"\x16", b"\x02"), PROTOCOL_VERSION)
        self.assertEqual(await self.answer(b"\x80\x2e\x01\x03\x03"), PROTOCOL_VERSION)

    async def test_an_offer_that_nobody_takes(self) -> None:
        """The name has a route, for another protocol only: there is none for this hello."""
        await self.start(routes=[SniRoute("web", host="a.example", alpn=("h2",))])
        data = asking("a.example", "http/1.1")
        self.assertEqual(await self.answer(data), UNRECOGNIZED_NAME)
        self.assertEqual(self.proxy.hellos["refused"], {"unknown name": 1})


class MalformedTests(RefusedTestCase):
    """TLS that breaks a rule goes nowhere, whatever the settings are."""

    async def test_the_alert_of_the_rule(self) -> None:
        await self.start(
            routes=[SniRoute("web")],
            default="web",
            settings=SniSettings(without_name="web", unknown_name="web", not_tls="web"),
        )
        whole = message(body(sni(b"a.example")))
        rows = (
            (b"\x15\x03\x01\x00\x02\x01\x00", UNEXPECTED_MESSAGE),
            (records(message(b"", 2)), UNEXPECTED_MESSAGE),
            (records(whole + b"\x00"), UNEXPECTED_MESSAGE),
            (records(whole, 9)[:28] + HTTP, UNEXPECTED_MESSAGE),
            (b"\x16\x03\x01\x40\x01\x01", RECORD_OVERFLOW),
            (hello(sni(b"a.example"), sni(b"a.example")), ILLEGAL_PARAMETER),
            (hello(sni(b"a/b")), ILLEGAL_PARAMETER),
            (hello(extension(0, uint16(b""))), DECODE_ERROR),
            (hello(sni(b"a"), version=b"\x02\x00"), PROTOCOL_VERSION),
            (b"\x16\x03\x01\x00\x00", DECODE_ERROR),
        )
        for data, expected in rows:
            self.assertEqual(await self.answer(data), expected, data)
            self.assertEqual(await self.answer(data[:4], data[4:]), expected, data)
        self.assertEqual(self.proxy.hellos["refused"], {"malformed": 2 * len(rows)})
        self.assertEqual(self.backend.ends, [])

    async def test_too_large(self) -> None:
        """Over 64 KiB: at the byte that goes beyond, or sooner where a length says it."""
        await self.start()
        small = message(body(extension(21, bytes(40_000))))
        said = records(bytes((1, 0, 255, 255)))
        for data in (large(65_537), records(small, 8), records(small[:3000], 1), said):
            self.assertEqual(await self.answer(data), DECODE_ERROR)
            self.assertEqual(await self.answer(data[:7], data[7:]), DECODE_ERROR)
        self.assertEqual(self.proxy.hellos["refused"], {"malformed": 8})

    async def test_the_limit(self) -> None:
        lines = hear(self)
        await self.start(settings=SniSettings(hello_limit=600))
        for pieces in ([large(601)], [large(601)[:9], large(601)[9:]], [large(601)[:11]]):
            self.assertEqual(await self.answer(*pieces), DECODE_ERROR)
        self.assertIn("refused: a hello has 600 bytes at most, with its records", lines[1], lines)
        client = await self.proxy.connect()
        client.send(large(600) + MEGABYTES)
        await (await self.backend.accepted()).got(large(600) + MEGABYTES)


class ArrivalTests(RefusedTestCase):
    """An alert gets there, whatever else its reader is sending."""

    async def test_more_has_come_than_was_read(self) -> None:
        """A close would be a reset then, and the client might never see the alert."""
        await self.start()
        for data, expected in (
            (UNKNOWN, UNRECOGNIZED_NAME),
            (NAMELESS, MISSING_EXTENSION),
            (HTTP, PROTOCOL_VERSION),
            (hello(sni(b"a/b")), ILLEGAL_PARAMETER),
        ):
            for pieces in ([data + MEGABYTES], [data[:1], data[1:] + MEGABYTES]):
                self.assertEqual(await self.answer(*pieces), expected)

    async def test_a_client_that_sends_before_it_reads(self) -> None:
        await self.start()
        client = self.proxy.blocking()

        def talk() -> bytes:
            client.sendall(UNKNOWN + MEGABYTES)
            client.shutdown(1)
            return read_all(client)

        self.assertEqual(await in_thread(talk), UNRECOGNIZED_NAME)
        await self.proxy.empty()

    async def test_an_end_right_behind_it(self) -> None:
        await self.start()
        client = self.proxy.blocking()
        client.sendall(UNKNOWN)
        client.shutdown(1)
        self.assertEqual(await in_thread(read_all, client), UNRECOGNIZED_NAME)
        await self.proxy.empty()

    async def test_a_client_that_stays(self) -> None:
        """It has a moment to read the alert, and then it is over, whatever it sends."""
        await self.start()
        client = await self.proxy.connect()
        client.send(UNKNOWN)
        await client.ended()
        side = await self.proxy.side_of(client)
        self.assertEqual(side.snapshot()["state"], "closing")
        client.send(b"are you there?")
        self.proxy.clock.advance(LINGER - 0.5)
        await turns()
        self.assertEqual(len(self.proxy.listener.connections), 1)
        self.proxy.clock.advance(1.0)
        await self.proxy.empty()

    async def test_on_a_unix_socket(self) -> None:
        import socket
        import tempfile

        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = f"{directory.name}/front"
        await self.start(listen=f"unix:{path}")
        for data, expected in ((UNKNOWN, UNRECOGNIZED_NAME), (HTTP, PROTOCOL_VERSION)):
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.settimeout(20)
            client.connect(path)
            client.sendall(data)
            self.assertEqual(await in_thread(read_all, client), expected)
            client.close()
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.connect(path)
        client.sendall(HELLO)
        client.shutdown(1)
        served = await self.backend.accepted()
        await served.ended()
        self.assertEqual(bytes(served.received), HELLO)


class LateTests(RefusedTestCase):
    """A client has ``peek_timeout`` seconds for its hello."""

    async def test_closed_without_an_alert(self) -> None:
        """Although not_tls, or a cluster, would take anything."""
        await self.start(
            settings=SniSettings(not_tls="web", peek_timeout=4.0), default="web", routes=()
        )
        whole = large(30_000)
        for number, part in enumerate((b"", b"\x16", HELLO[:40], HELLO[:-1], whole[:-1]), 1):
            client = await self.proxy.connect()
            client.send(part)
            side = await self.proxy.has_read(client, len(part))
            self.proxy.clock.advance(3.9)
            await turns()
            self.assertEqual(side.snapshot()["state"], "greeting")
            self.proxy.clock.advance(0.7)
            await client.ended()
            self.assertEqual(bytes(client.received), b"")
            self.assertEqual(self.proxy.hellos["refused"], {"late": number})
            client.close()
            await self.proxy.empty()
        self.assertEqual(self.backend.ends, [])

    async def test_bytes_do_not_put_it_off(self) -> None:
        await self.start(settings=SniSettings(peek_timeout=4.0))
        client = await self.proxy.connect()
        for at in range(9):
            client.send(HELLO[at : at + 1])
            await self.proxy.has_read(client, at + 1)
            self.proxy.clock.advance(0.4)
        self.proxy.clock.advance(1)
        await client.ended()
        self.assertEqual(self.proxy.hellos["refused"], {"late": 1})

    async def test_by_default(self) -> None:
        await self.start()
        client = await self.proxy.connect()
        await self.proxy.side_of(client)
        self.proxy.clock.advance(4.9)
        await turns()
        self.assertEqual(len(self.proxy.listener.connections), 1)
        self.proxy.clock.advance(1)
        await client.ended()


class EndedTests(RefusedTestCase):
    """Clients that go before their hello is there."""

    async def test_ends_and_resets(self) -> None:
        await self.start()
        for number, part in enumerate((b"", HELLO[:1], HELLO[:-1], large(30_000)[:20_000])):
            for reset in (False, True):
                client = await self.proxy.connect()
                client.send(part)
                await self.proxy.has_read(client, len(part))
                if reset:
                    client.reset()
                else:
                    client.finish()
                    await client.ended()
                    self.assertEqual(bytes(client.received), b"")
                    client.close()
                await self.proxy.empty()
                count = 2 * number + (2 if reset else 1)
                self.assertEqual(self.proxy.hellos["refused"], {"ended": count})
        self.assertEqual(self.proxy.traffic["ended"], {})

    async def test_the_service_ends(self) -> None:
        await self.start()
        waiting = [await self.proxy.connect() for _ in range(3)]
        waiting[1].send(HELLO[:9])
        await self.proxy.has_read(waiting[1], 9)
        waiting[2].send(UNKNOWN)
        await waiting[2].ended()
        await until(lambda: len(self.proxy.listener.connections) == 3)
        await self.proxy.service.abort_connections()
        for client in waiting[:2]:
            self.assertTrue(await client.lost())
        await self.proxy.empty()


class LookingFallbackTests(FallbackTests):
    """The same where some hellos go on to another listener."""

    looks = True


class LookingMalformedTests(MalformedTests):
    """The same as well."""

    looks = True


class LookingArrivalTests(ArrivalTests):
    """The same as well."""

    looks = True


class LookingLateTests(LateTests):
    """The same as well."""

    looks = True


class LookingEndedTests(EndedTests):
    """The same as well."""

    looks = True


class LogTests(RefusedTestCase):
    """One line for the first of each kind, and then how many there were."""

    async def test_what_it_says(self) -> None:
        lines = hear(self)
        await self.start()
        for number, sent, why in (
            (1, NAMELESS, "it names no server"),
            (2, UNKNOWN, "nothing is served as b.example"),
            (3, HTTP, "starts like text, such as HTTP"),
            (4, hello(sni(b"a/b")), "a name is one of DNS (RFC 6066 section 3)"),
        ):
            await self.answer(sent)
            self.assertEqual(lines[-1], f"front #{number}: {self.client} refused: {why}")
        client = await self.proxy.connect()
        await self.proxy.side_of(client)
        self.proxy.clock.advance(6)
        await client.ended()
        name = name_of(client)
        self.assertEqual(lines[-1], f"front #5: {name} refused: no whole hello within 5 s")
        client = await self.proxy.connect()
        name = name_of(client)
        client.finish()
        await client.ended()
        self.assertEqual(lines[-1], f"front #6: {name} refused: it ended before its hello")

    async def test_rarely(self) -> None:
        await self.start()
        lines = hear(self)
        for _ in range(4):
            for data in (UNKNOWN, HTTP):
                await self.answer(data)
        self.assertEqual([" refused: " in line for line in lines], [True, True])
        self.proxy.clock.advance(11)
        await self.answer(asking("c.example"))
        self.assertEqual(
            lines[2:],
            [
                f"front #9: {self.client} refused: nothing is served as c.example"
                " (and 3 like it before)"
            ],
        )
        self.assertEqual(self.proxy.hellos["refused"], {"unknown name": 5, "not TLS": 4})
        self.assertEqual(self.proxy.traffic["refused"], 9)

    async def test_closed_ones_as_well(self) -> None:
        await self.start(settings=SniSettings(unknown_name="close"))
        lines = hear(self)
        await self.answer(UNKNOWN)
        self.assertEqual(
            lines, [f"front #1: {self.client} refused: nothing is served as b.example"]
        )
