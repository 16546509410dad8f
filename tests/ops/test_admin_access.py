"""Who is let in by the admin listener: tokens, names, origins."""

from __future__ import annotations

import base64

from attrs import evolve
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from proxykit.errors import ConfigError
from proxykit.ops.admin_access import Access, _same
from proxykit.ops.admin_web import Refused
from tests.ops.admins import BEARER, TOKEN, AdminCase

WRITE = ("/api/clusters/web/backends/1.1.1.1:1", "POST", b'{"state": "up"}')


def basic(password: str, user: str = "me") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class OpenTests(AdminCase):
    """Without a token."""

    async def test_names_of_this_machine(self) -> None:
        await self.start()
        for host in (
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1",
            f"127.0.0.1:{self.port}",
            "[::1]",
            "[0:0::1]:80",
        ):
            answer = await self.ask("/api/listeners", host=host)
            self.assertEqual(answer.status, 200, host)

    async def test_other_names(self) -> None:
        await self.start(hosts=("Admin.Example",))
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:9901",
            "10.0.0.1",
            "[::2]",
            "0.0.0.0",
        ):
            for path in ("/", "/api/listeners", "/api/events", "/nowhere"):
                answer = await self.ask(path, host=host)
                self.assertEqual((answer.status, answer.header["vary"]), (421, None), host)
                self.assertIn("this is not ", answer.error)
        self.assertEqual((await self.ask("/", host="admin.example:80")).status, 200)

    async def test_no_name(self) -> None:
        await self.start()
        for host in (None, "", "a b", "a/b", "user@localhost", "localhost:x"):
            answer = await self.ask("/", host=host)
            self.assertEqual((answer.status, "one Host field" in answer.error), (400, True), host)
        end = await self.talk(b"GET / HTTP/1.0\r\n\r\n")
        await end.ended()
        self.assertIn(b"200 OK", end.received)
        end = await self.talk(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")
        await end._until(lambda: b"\r\n\r\n{" in end.received and b"}" in end.received)
        self.assertIn(b"there are 2 fields host", end.received)

    async def test_health_is_for_everybody(self) -> None:
        await self.start(token=TOKEN)
        for host in ("evil.example", "10.0.0.1", "localhost"):
            answer = await self.ask("/healthz", host=host, origin="http://evil.example")
            self.assertEqual(answer.json, {"status": "ok"})

    async def test_a_foreign_origin(self) -> None:
        await self.start()
        for origin in (
            "http://evil.example",
            "null",
            "http://localhost.evil.example",
            "http://localhost:1",
            "https://localhost:1",
            "file://",
            "localhost",
        ):
            for asked in (("/api/clusters", "GET", None), WRITE, ("/api/events", "GET", None)):
                answer = await self.ask(
                    *asked, host="localhost", origin=origin, x_proxykit="write", **BEARER
                )
                self.assertEqual(answer.status, 403, (origin, asked))
                self.assertIn("another origin", answer.error)

    async def test_writes(self) -> None:
        """404 is what comes of one that is let in."""
        await self.start()
        own = f"http://localhost:{self.port}"
        for expected, header in (
            (403, {}),
            (403, {"x_proxykit": "read"}),
            (403, {"sec_fetch_site": "none"}),
            (403, {"sec_fetch_site": "cross-site", "x_proxykit": "write"}),
            (403, {"sec_fetch_site": "same-site", "origin": own}),
            (403, BEARER),
            (404, {"x_proxykit": "write"}),
            (404, {"sec_fetch_site": "none", "x_proxykit": "write"}),
            (404, {"sec_fetch_site": "same-origin"}),
            (404, {"origin": own}),
            (404, {"origin": own.upper()}),
        ):
            answer = await self.ask(*WRITE, host=f"localhost:{self.port}", **header)
            self.assertEqual(answer.status, expected, header)

    async def test_forms_of_other_pages(self) -> None:
        await self.start()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            for path in (WRITE[0], "/api/reload"):
                answer = await self.ask(path, "POST", WRITE[2], content_type=kind)
                self.assertEqual(answer.status, 403)

    async def test_no_preflight_is_granted(self) -> None:
        await self.start()
        for path in (WRITE[0], "/api/reload", "/api/clusters"):
            answer = await self.ask(
                path,
                "OPTIONS",
                host="localhost",
                access_control_request_method="POST",
                access_control_request_headers="x-proxykit",
            )
            self.assertEqual(answer.status, 405)
            self.assertEqual([name for name in answer.header if "access-control" in name], [])


class TokenTests(AdminCase):
    async def test_none_or_a_wrong_one(self) -> None:
        await self.start(token=TOKEN)
        for said in (
            None,
            "",
            "Bearer",
            "Bearer x",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Digest {TOKEN}",
            TOKEN,
            basic("x"),
            basic(""),
            basic(TOKEN.upper()),
            "Basic !!!",
            "Basic " + base64.b64encode(TOKEN.encode()).decode(),
            "Bearer \u00e9",
        ):
            for path in ("/", "/api/listeners", "/metrics", "/api/openapi.json", "/nowhere"):
                answer = await self.ask(path, authorization=said)
                self.assertEqual(answer.status, 401, said)
                challenge = 'Basic realm="proxykit", charset="UTF-8"'
                self.assertEqual(answer.header["www-authenticate"], challenge)
                self.assertNotIn(TOKEN, answer.body.decode())

    async def test_twice(self) -> None:
        await self.start(token=TOKEN)
        line = f"authorization: Bearer {TOKEN}\r\n".encode()
        end = await self.talk(b"GET / HTTP/1.0\r\n" + line * 2 + b"\r\n")
        await end.ended()
        self.assertIn(b" 400 ", end.received.partition(b"\r\n")[0])

    async def test_the_right_one(self) -> None:
        await self.start(token=TOKEN)
        for said in (
            f"Bearer {TOKEN}",
            f"bearer   {TOKEN} ",
            basic(TOKEN),
            basic(TOKEN, ""),
            basic(TOKEN).replace("Basic", "BASIC"),
        ):
            answer = await self.ask("/api/listeners", authorization=said)
            self.assertEqual(answer.status, 200, said)

    async def test_names(self) -> None:
        """A browser never sends a bearer token by itself."""
        await self.start(token=TOKEN, hosts=("admin.example",))
        for said, host, expected in (
            (basic(TOKEN), "evil.example", 421),
            (None, "evil.example", 421),
            (basic(TOKEN), "admin.example", 200),
            (basic(TOKEN), "localhost", 200),
            (f"Bearer {TOKEN}", "evil.example", 200),
        ):
            answer = await self.ask("/api/clusters", authorization=said, host=host)
            self.assertEqual(answer.status, expected, (said, host))

    async def test_writes(self) -> None:
        await self.start(token=TOKEN)
        for said, proof, expected in (
            (f"Bearer {TOKEN}", None, 404),
            (basic(TOKEN), None, 403),
            (basic(TOKEN), "write", 404),
            (None, "write", 401),
        ):
            answer = await self.ask(*WRITE, authorization=said, x_proxykit=proof)
            self.assertEqual(answer.status, expected, (said, proof))

    async def test_another_one_after_a_reload(self) -> None:
        service = (await self.start(token=TOKEN)).service
        service.apply(evolve(service.config, admin_token=TOKEN[::-1]))
        self.assertEqual((await self.ask("/", **BEARER)).status, 401)
        said = f"Bearer {TOKEN[::-1]}"
        self.assertEqual((await self.ask("/", authorization=said)).status, 200)

    async def test_everybody_is_not_to_be_let_in(self) -> None:
        service = (await self.start(token=TOKEN)).service
        wrong = evolve(service.config, admin="tcp:0", admin_token="")
        error = self.assertRaises(ConfigError, service.apply, wrong)
        self.assertIn("admin.listen: needs a token", str(error))
        self.assertEqual((await self.ask("/")).status, 401)


class FakeRequest:
    """As much of a request as is looked at."""

    clientproto = b"HTTP/1.1"

    def __init__(self, here: object, **fields: str) -> None:
        self.here = here
        self.fields = fields

    def getHost(self) -> object:
        return self.here

    def field(self, name: str) -> str | None:
        return self.fields.get(name)


class PlaceTests(SynchronousTestCase):
    """Where a connection has come in."""

    def test_a_unix_socket(self) -> None:
        request = FakeRequest(UNIXAddress("/run/admin.sock"), host="whatever")
        Access("").check(request)  # type: ignore[arg-type]

    def test_not_loopback(self) -> None:
        """It cannot be so configured; whoever gets here all the same has no use of it."""
        here = IPv4Address("TCP", "10.0.0.1", 9901)
        error = self.assertRaises(Refused, Access("").check, FakeRequest(here, host="10.0.0.1"))
        self.assertEqual(error.status, 403)

    def test_the_address_itself(self) -> None:
        request = FakeRequest(
            IPv4Address("TCP", "10.0.0.1", 9901), host="10.0.0.1:1", authorization=basic(TOKEN)
        )
        Access(TOKEN).check(request)  # type: ignore[arg-type]
        request.fields["host"] = "10.0.0.2:1"
        error = self.assertRaises(Refused, Access(TOKEN).check, request)
        self.assertEqual(error.status, 421)


class OriginTests(SynchronousTestCase):
    def test_all(self) -> None:
        for origin, host, expected in (
            ("http://a", ("a", ""), True),
            ("http://a:80", ("a", ""), True),
            ("http://a", ("a", "80"), True),
            ("https://a", ("a", "443"), True),
            ("https://a", ("a", "80"), False),
            ("http://[::1]:1", ("::1", "1"), True),
            ("http://[0::1]:1", ("::1", "1"), True),
            ("http://a", None, False),
            ("http://a/b", ("a", ""), False),
            ("http://", ("", ""), False),
            ("ftp://a", ("a", ""), False),
        ):
            self.assertEqual(_same(origin, host), expected, (origin, host))
