"""proxykit.net.checks: what a check asks, what comes of it, and that it leaves nothing."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from attrs import evolve
from twisted.trial.unittest import TestCase

from proxykit.core.balance import RoundRobin
from proxykit.model import Address, ClusterTls
from tests.http_sockets import CLOSE, SILENCE, head, last, start_origin
from tests.net.checking import OK, Bench
from tests.sockets import (
    HOST,
    TIMEOUT,
    free_port,
    start_backend,
    turns,
    unanswering,
    until,
)
from tests.tls_certificates import ca_file
from tests.tls_sockets import start_secure_backend


class ConnectTests(TestCase):
    """Without a path, a connect is enough."""

    timeout = TIMEOUT

    async def test_well(self) -> None:
        backend = await start_backend(self)
        bench = Bench(self, backend.address)
        self.assertEqual(await bench.checked(), ("up", None))
        served = await backend.accepted()
        self.assertTrue(await served.lost())  # with a reset: nothing rests in TIME_WAIT
        self.assertEqual(served.received, b"")
        self.assertEqual(bench.shown()["in_flight"], 0)
        self.assertIsNone(bench.shown()["latency_seconds"])

    async def test_refused(self) -> None:
        address = Address(HOST, free_port(self))
        bench = Bench(self, address)
        why = f"connect to {address} failed: Connection refused"
        self.assertEqual(await bench.checked(), ("down", why))
        self.assertEqual(bench.shown()["failures"], 0)  # which are those of traffic

    async def test_not_connected_in_time(self) -> None:
        bench = Bench(self, unanswering(self), connect_timeout=30.0)
        bench.clock.advance(2.0)
        await turns()
        self.assertEqual(bench.books, (1, 1, 2))
        bench.clock.advance(0.9)
        self.assertEqual(bench.health(), ("unknown", None))
        bench.clock.advance(0.3)
        self.assertEqual(bench.health(), ("down", "it was not connected within 1 s"))
        await until(lambda: bench.books == (0, 0, 0))

    async def test_unix(self) -> None:
        path = os.path.join(tempfile.mkdtemp(), "s")
        origin = await start_origin(self, (OK,), path=path)
        self.assertEqual(await Bench(self, origin.address).checked(), ("up", None))
        self.assertEqual(await Bench(self, origin.address, path="/").checked(), ("up", None))
        self.assertEqual(origin.requests[0]["Host"], "localhost")
        gone = Address(path + "x", 0)
        health, why = await Bench(self, gone).checked()
        self.assertEqual(health, "down")
        self.assertIn("No such file", str(why))

    async def test_introduced(self) -> None:
        """Whoever expects a PROXY header gets one, of its full length, and then the end."""
        for version, header in (
            ("v1", b"PROXY UNKNOWN\r\n"),
            ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
        ):
            backend = await start_backend(self)
            bench = Bench(self, backend.address, proxy_protocol=version)
            bench.clock.advance(2.0)
            served = await backend.accepted()
            await served.got(header)
            self.assertEqual(bench.health(), ("up", None))
            await turns()
            bench.clock.advance(0.1)  # all of it has arrived
            self.assertTrue(await served.lost())
            await until(lambda bench=bench: bench.books == (0, 0, 0))

    async def test_what_it_says_is_no_matter(self) -> None:
        backend = await start_backend(self)
        bench = Bench(self, backend.address, proxy_protocol="v1")
        bench.clock.advance(2.0)
        served = await backend.accepted()
        served.send(b"220 mail.example\r\n")
        await served.got(b"PROXY UNKNOWN\r\n")
        await turns()
        bench.clock.advance(0.1)
        await served.lost()
        self.assertEqual(bench.health(), ("up", None))


class RequestTests(TestCase):
    """With a path, the answer counts."""

    timeout = TIMEOUT

    async def ask(self, *script: Any, **more: Any) -> tuple[str, str | None]:
        self.origin = await start_origin(self, script)
        more.setdefault("path", "/healthz")
        self.bench = Bench(self, self.origin.address, **more)
        return await self.bench.checked()

    async def test_what_is_asked(self) -> None:
        self.assertEqual(await self.ask(OK), ("up", None))
        (asked,) = self.origin.requests
        self.assertEqual(asked.start, "GET /healthz HTTP/1.1")
        self.assertEqual(asked["Host"], str(self.origin.address))
        self.assertEqual(asked["Connection"], "close")
        self.assertEqual(asked["User-Agent"], "proxykit-check")
        for more, host in (
            ({"host": "api.example"}, "api.example"),
            ({"hosts": "web.example"}, "web.example"),
        ):
            cluster = {"host": more["hosts"]} if "hosts" in more else {}
            self.origin = await start_origin(self, (OK,))
            bench = Bench(self, self.origin.address, path="/")
            health = evolve(bench.config.health, host=more.get("host", ""))
            bench.cluster.reconfigure(evolve(bench.config, health=health, **cluster), RoundRobin)
            await bench.checked()
            self.assertEqual(self.origin.requests[0]["Host"], host)

    async def test_statuses(self) -> None:
        for status, wanted, why in (
            ("204 No Content", "200-399", None),
            ("404 Not Found", "200-299,404", None),
            ("503 Service Unavailable", "200-399",
             "GET /healthz: 503 Service Unavailable, and not 200-399"),
            ("200 OK", "204", "GET /healthz: 200 OK, and not 204"),
        ):  # fmt: skip
            got = await self.ask(head("Content-Length: 0", status=status), status=wanted)
            self.assertEqual(got, ("down" if why else "up", why))

    async def test_interim_answers(self) -> None:
        hints = head(status="103 Early Hints")
        self.assertEqual(await self.ask(hints + hints + OK), ("up", None))

    async def test_an_upgrade(self) -> None:
        """Nobody has asked for that."""
        answer = head("Connection: upgrade", "Upgrade: x", status="101 Switching Protocols")
        health, why = await self.ask(answer)
        self.assertEqual((health, str(why)[:17]), ("down", "GET /healthz: 101"))

    async def test_bodies(self) -> None:
        """They are read to their end, so that the backend is not cut off."""
        chunked = head("Transfer-Encoding: chunked")
        for sent in (
            OK,
            last(head("Content-Length: 200000") + bytes(200000)),
            chunked + b"2\r\nok\r\n0\r\n\r\n",
            last(head() + b"until the end"),
        ):
            self.assertEqual(await self.ask(sent), ("up", None))

    async def test_a_body_in_parts(self) -> None:
        origin = await start_origin(self)
        bench = Bench(self, origin.address, path="/")
        bench.clock.advance(2.0)
        served = await origin.accepted()
        await served.request()
        whole = head("Content-Length: 4") + b"ab"
        served.send(whole[:10])
        await turns()
        served.send(whole[10:])
        await until(lambda: bench.health() == ("up", None))
        self.assertIsNone(served.reason)
        served.send(b"cd")
        self.assertTrue(await served.lost())
        await until(lambda: bench.books == (0, 0, 0))

    async def test_a_body_without_end(self) -> None:
        """The verdict stands; it is cut off when its time is over."""
        origin = await start_origin(self, (head("Content-Length: 9"),))
        bench = Bench(self, origin.address, path="/")
        bench.clock.advance(2.0)
        await until(lambda: bench.health() == ("up", None))
        self.assertEqual(bench.books, (1, 1, 1))
        bench.clock.advance(1.2)
        await until(lambda: bench.books == (0, 0, 0))
        self.assertEqual(bench.health(), ("up", None))

    async def test_the_next_one_comes_first(self) -> None:
        """One socket for each backend, whatever becomes of the last."""
        origin = await start_origin(self, (head("Content-Length: 9"),))
        bench = Bench(self, origin.address, path="/", timeout=60.0)
        bench.clock.advance(2.0)
        await until(lambda: bench.health() == ("up", None))
        bench.clock.advance(4.0)
        await until(lambda: len(origin.requests) == 2)
        await until(lambda: origin.open == 1)

    async def test_no_answer(self) -> None:
        origin = await start_origin(self, (SILENCE,))
        bench = Bench(self, origin.address, path="/")
        bench.clock.advance(2.0)
        await until(lambda: origin.requests)
        bench.clock.advance(1.2)
        self.assertEqual(bench.health(), ("down", "it did not answer within 1 s"))
        await until(lambda: bench.books == (0, 0, 0))

    async def test_closed_instead(self) -> None:
        self.assertEqual(
            await self.ask(CLOSE), ("down", "it closed the connection before it answered")
        )

    async def test_broken_rules(self) -> None:
        health, why = await self.ask(b"SSH-2.0-OpenSSH\r\n")
        self.assertEqual(health, "down")
        self.assertIn("it broke a rule: a response starts with its version", str(why))

    async def test_broken_later(self) -> None:
        """It has answered: how the body is framed is a matter for those who want it."""
        answer = head("Transfer-Encoding: chunked") + b"nonsense\r\n"
        self.assertEqual(await self.ask(answer), ("up", None))


class TlsTests(TestCase):
    """A handshake, verified as for traffic; what is asked is asked behind it."""

    timeout = TIMEOUT

    async def start(self, *script: Any, name: str, **more: Any) -> Bench:
        self.backend = await start_secure_backend(self, "a.example", **more)
        tls = ClusterTls(ca_file=ca_file(self), server_name=name)
        return Bench(self, self.backend.address, tls=tls)

    async def test_handshake(self) -> None:
        bench = await self.start(name="a.example")
        bench.clock.advance(2.0)
        await until(lambda: bench.shown()["health"] != "unknown")
        self.assertEqual(bench.health(), ("up", None))
        served = await self.backend.accepted()
        await turns()
        bench.clock.advance(1.2)
        await until(lambda: bench.books == (0, 0, 0))
        await served.lost()

    async def test_somebody_else(self) -> None:
        bench = await self.start(name="b.example")
        bench.clock.advance(2.0)
        await until(lambda: bench.shown()["health"] != "unknown")
        health, why = bench.health()
        self.assertEqual(health, "down")
        self.assertIn(f"TLS to {self.backend.address} failed: ", str(why))
        await until(lambda: bench.books == (0, 0, 0))

    async def test_no_handshake_in_time(self) -> None:
        backend = await start_backend(self)
        bench = Bench(self, backend.address, tls=ClusterTls(verify=False))
        bench.clock.advance(2.0)
        await until(lambda: backend.ends and backend.ends[0].received)
        bench.clock.advance(1.2)
        self.assertEqual(bench.health(), ("down", "it was not connected within 1 s"))
        await until(lambda: bench.books == (0, 0, 0))
