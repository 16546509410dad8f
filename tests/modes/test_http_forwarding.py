"""The mode http: where a request goes, what is changed on the way, and what is told of it."""

from __future__ import annotations

import json
import tempfile
from typing import Any
from urllib.request import urlopen

from twisted.trial.unittest import TestCase

from proxykit.model import Backend, Cluster, FieldRules, HttpRoute
from proxykit.modes.http_settings import HttpSettings
from tests.http_sockets import (
    HttpProxy,
    Message,
    answer,
    chunks,
    head,
    request,
    start_http,
    start_origin,
)
from tests.modes.test_http_bodies import CHUNKED, OK, start
from tests.sockets import HOST, TIMEOUT, in_thread, unanswering, until


class RoutingTests(TestCase):
    """Host, path and method say who answers; some requests nobody does."""

    timeout = TIMEOUT

    async def start(self, *routes: HttpRoute, default: bool = True, **more: Any) -> Any:
        """A client of a proxy with two clusters, ``web`` and ``other``."""
        self.web = await start_origin(self, [answer(b"web")])
        self.other = await start_origin(self, [answer(b"other")])
        others = [Cluster("other", (Backend(self.other.address),))]
        self.proxy = start_http(
            self, self.web, routes=routes, default=default, others=others, **more
        )
        return await self.proxy.connect()

    async def test_each_has_its_own(self) -> None:
        client = await self.start(
            HttpRoute(host="*.b.example", cluster="other"),
            HttpRoute(path="/api", cluster="other", methods=("GET",)),
        )
        for host, target, method, who in (
            ("a.example", "/", "GET", "web"),
            ("x.b.example:8080", "/", "GET", "other"),
            ("X.B.Example.", "/", "GET", "other"),
            ("a.example", "/api/x?y", "GET", "other"),
            ("a.example", "/x/%2E./a%70i", "GET", "other"),
            ("a.example", "/apiary", "GET", "web"),
            ("a.example", "/api", "POST", "web"),
        ):
            client.ask(method, target, None, host=host)
            self.assertEqual((await client.response()).text, who, (host, target, method))

    async def refused(self, client: Any, status: str, why: str, target: str, host: str) -> None:
        """The client is told, and its connection lives on."""
        response = await client.get(target, host=host)
        self.assertEqual(response.start, f"HTTP/1.1 {status}")
        self.assertEqual(response.text, f"{status}: {why}\n")
        self.assertNotIn("Connection", response)

    async def test_no_route(self) -> None:
        client = await self.start(
            HttpRoute(host="a.example", path="/here", cluster="web"), default=False
        )
        nothing = "nothing is served at this path"
        await self.refused(client, "404 Not Found", nothing, "/there", "a.example")
        misdirected = "this host is not served here"
        await self.refused(client, "421 Misdirected Request", misdirected, "/here", "b.example")
        self.assertEqual((await client.get("/here")).text, "web")
        self.assertEqual(self.proxy.stats["statuses"], {"2xx": 1, "4xx": 2})

    async def test_a_path_that_climbs(self) -> None:
        client = await self.start(HttpRoute(path="/a", cluster="other"))
        for target in ("/..", "/a/../../b", "/%2e%2e/etc/passwd", "/a/.%2E/.."):
            climbs = "the path climbs above its root"
            await self.refused(client, "400 Bad Request", climbs, target, "a.example")
        self.assertEqual(self.web.ends + self.other.ends, [])

    async def test_a_path_that_climbs_where_nothing_is_routed_by_it(self) -> None:
        """The backend would understand it as it likes, perhaps not as the proxy's user."""
        client = await self.start()
        self.assertEqual((await client.get("/%2e%2e/etc/passwd")).status, 400)

    async def test_redirect(self) -> None:
        client = await self.start(
            HttpRoute(host="a.example", redirect="https://{host}{uri}"),
            HttpRoute(host="b.example", redirect="{scheme}://c.example/", status=302, text="moved"),
        )
        response = await client.get("/x?y=z", host="a.example:80")
        self.assertEqual(response.start, "HTTP/1.1 308 Permanent Redirect")
        self.assertEqual(response["Location"], "https://a.example/x?y=z")
        self.assertEqual(response["Content-Length"], "0")
        response = await client.get("/x", host="b.example")
        self.assertEqual((response.status, response.text), (302, "moved\n"))
        self.assertEqual(response["Location"], "http://c.example/")

    async def test_a_fixed_answer(self) -> None:
        fields = FieldRules(set=(("Cache-Control", "no-store"),))
        client = await self.start(
            HttpRoute(path="/", status=503, text="closed until Monday", response_fields=fields),
            HttpRoute(path="/empty", status=204),
        )
        response = await client.get()
        self.assertEqual(response.start, "HTTP/1.1 503 Service Unavailable")
        self.assertEqual(response.text, "closed until Monday\n")
        self.assertEqual(response["Cache-Control"], "no-store")
        self.assertNotIn("Proxy-Status", response)
        client.ask("HEAD")
        response = await client.response("HEAD")
        self.assertEqual((response.status, response["Content-Length"]), (503, "20"))
        client.ask("POST", "/", b"body")  # All of it has come, so the connection can go on.
        self.assertNotIn("Connection", await client.response())
        response = await client.get("/empty")
        self.assertEqual((response.status, response.names), (204, ["Date"]))

    async def test_max_forwards(self) -> None:
        """It is counted down, and at its end the answer is the proxy's own."""
        client = await self.start()
        for method, sent, seen in (("OPTIONS", "2", "1"), ("TRACE", "1", "0"), ("GET", "0", "0")):
            client.ask(method, "/", None, f"Max-Forwards: {sent}")
            await client.response(method)
            self.assertEqual(self.web.requests[-1]["Max-Forwards"], seen)
        count = len(self.web.requests)
        for method, status in (("OPTIONS", 204), ("TRACE", 405)):
            client.ask(method, "/", None, "Max-Forwards: 0")
            self.assertEqual((await client.response(method)).status, status)
        self.assertEqual(len(self.web.requests), count)

    async def test_a_fixed_answer_to_a_body_that_is_still_coming(self) -> None:
        client = await self.start(HttpRoute(path="/", status=200, text="no"))
        client.send(request("POST", "/", b"0123456789")[:-5])
        response = await client.response()
        self.assertEqual((response.status, response["Connection"]), (200, "close"))
        await client.nothing_more()

    async def test_replace_path(self) -> None:
        client = await self.start(
            HttpRoute(path="/v1", cluster="other", replace_path="/"),
            HttpRoute(path="/old/", cluster="other", replace_path="/new"),
        )
        for target, seen in (
            ("/v1", "/"),
            ("/v1?q", "/?q"),
            ("/v1/users?q=/v1", "/users?q=/v1"),
            ("/v1//evil.example", "/evil.example"),
            ("/old/x", "/new/x"),
            ("/x/../old/%7Ex", "/new/~x"),
        ):
            self.assertEqual((await client.get(target)).text, "other")
            self.assertEqual(self.other.requests[-1].target, seen)
        await client.get("/v10/../v10")
        self.assertEqual(self.web.requests[-1].target, "/v10/../v10")

    async def test_fields_of_requests(self) -> None:
        rules = FieldRules(set=(("X-Env", "test"), ("Accept", "*/*")), remove=("Cookie", "Via"))
        client = await self.start(HttpRoute(path="/", cluster="web", request_fields=rules))
        await client.get("/", "Accept: a", "cookie: b", "ACCEPT: c", "x-env: forged", "Via: 1.1 x")
        asked = self.web.requests[0]
        self.assertEqual((asked["X-Env"], asked["Accept"]), ("test", "*/*"))
        self.assertNotIn("Cookie", asked)
        self.assertEqual(asked["Via"], "1.1 proxykit")
        self.assertEqual(asked["Host"], "a.example")
        client.ask("POST", "/", b"body")
        await client.response()
        self.assertEqual(self.web.requests[1].body, b"body")

    async def test_fields_of_responses(self) -> None:
        rules = FieldRules(set=(("X-Frame-Options", "DENY"),), remove=("Server",))
        client = await self.start(HttpRoute(path="/", cluster="web", response_fields=rules))
        replies = (
            answer(b"ok", "Server: x", "x-frame-options: none"),
            head(CHUNKED, "Server: x") + chunks(b"ok"),
        )
        for reply in replies:
            for end in self.web.ends:
                end._script = [reply]
            self.web._scripts = [[reply]]
            response = await client.get()
            self.assertEqual((response["X-Frame-Options"], response.body), ("DENY", b"ok"))
            self.assertNotIn("Server", response)


class FieldTests(TestCase):
    """What the proxy adds, keeps and leaves out."""

    timeout = TIMEOUT

    async def asked(
        self,
        *lines: str,
        trust: tuple[str, ...] = (),
        host: str = "a.example",
        version: str = "1.1",
        settings: HttpSettings | None = None,
        **more: Any,
    ) -> Message:
        """What the backend gets."""
        self.origin = origin = await start_origin(self, [OK])
        self.proxy = start_http(self, origin, settings=settings, trust=trust, **more)
        self.client = await self.proxy.connect()
        self.response = await self.client.get("/", *lines, host=host, version=version)
        (asked,) = origin.requests
        return asked

    async def test_who_asks(self) -> None:
        asked = await self.asked(host="a.example:8080")
        self.assertEqual(asked["Host"], "a.example:8080")
        self.assertEqual(asked["Via"], "1.1 proxykit")
        self.assertEqual(asked["X-Forwarded-For"], HOST)
        self.assertEqual(asked["X-Forwarded-Proto"], "http")
        self.assertEqual(asked["X-Forwarded-Host"], "a.example:8080")
        self.assertEqual(asked["Forwarded"], f'for={HOST};host="a.example:8080";proto=http')

    FORGED = (
        "X-Forwarded-For: 192.0.2.1",
        "x-forwarded-for: 192.0.2.2",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: b.example",
        "Forwarded: for=192.0.2.1",
        "X-Request-ID: theirs",
    )

    async def test_what_a_stranger_says_of_that_is_replaced(self) -> None:
        for trust in ((), ("10.0.0.0/8", "::1")):
            asked = await self.asked(*self.FORGED, trust=trust)
            self.assertEqual(asked["X-Forwarded-For"], HOST)
            self.assertEqual(asked["X-Forwarded-Proto"], "http")
            self.assertEqual(asked["X-Forwarded-Host"], "a.example")
            self.assertEqual(asked["Forwarded"], f'for={HOST};host="a.example";proto=http')
            self.assertNotEqual(asked["X-Request-ID"], "theirs")

    async def test_what_is_trusted_is_kept(self) -> None:
        for trust in (("127.0.0.0/8",), ("10.0.0.0/8", HOST)):
            asked = await self.asked(*self.FORGED, trust=trust)
            self.assertEqual(asked["X-Forwarded-For"], f"192.0.2.1, 192.0.2.2, {HOST}")
            self.assertEqual(asked["X-Forwarded-Proto"], "https")
            self.assertEqual(asked["X-Forwarded-Host"], "b.example")
            self.assertEqual(
                asked["Forwarded"], f'for=192.0.2.1, for={HOST};host="a.example";proto=http'
            )
            self.assertEqual(asked["X-Request-ID"], "theirs")

    async def test_via_is_added_to_what_is_there(self) -> None:
        origin = await start_origin(self, [answer(b"ok", "Via: 1.0 inner")])
        proxy = start_http(self, origin, settings=HttpSettings(via="edge"))
        client = await proxy.connect()
        response = await client.get("/", "Via: 1.1 outer")
        self.assertEqual(origin.requests[0].all("Via"), ["1.1 outer", "1.1 edge"])
        self.assertEqual(response.all("Via"), ["1.0 inner", "1.1 edge"])

    async def test_no_via(self) -> None:
        asked = await self.asked(settings=HttpSettings(via=""))
        self.assertNotIn("Via", asked)
        self.assertNotIn("Via", self.response)

    async def test_a_client_with_an_ipv6_address(self) -> None:
        asked = await self.asked(listen="tcp6:0:interface=\\:\\:1", trust=("::1/128",))
        self.assertEqual(asked["X-Forwarded-For"], "::1")
        self.assertEqual(asked["Forwarded"], 'for="[::1]";host="a.example";proto=http')

    async def test_a_client_on_a_unix_socket(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        listen = f"unix:{directory.name}/front"
        asked = await self.asked(*self.FORGED, listen=listen, trust=("0.0.0.0/0", "::/0"))
        self.assertNotIn("X-Forwarded-For", asked)
        self.assertEqual(asked["Forwarded"], 'for=unknown;host="a.example";proto=http')
        self.assertEqual(self.proxy.entries[0].client, "unix:")

    async def test_a_backend_on_a_unix_socket(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        origin = await start_origin(self, [OK], path=f"{directory.name}/b")
        proxy = start_http(self, origin)
        client = await proxy.connect()
        for _ in range(3):
            self.assertEqual((await client.get()).body, b"ok")
        self.assertEqual(len(origin.ends), 1)

    async def test_a_cluster_s_own_host(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin, host="inner.example:81")
        client = await proxy.connect()
        await client.get("/", host="a.example")
        self.assertEqual(origin.requests[0]["Host"], "inner.example:81")
        self.assertEqual(origin.requests[0]["X-Forwarded-Host"], "a.example")

    async def test_what_is_for_one_connection_only_goes_no_further(self) -> None:
        lines = (
            "Connection: keep-alive, X-Mine",
            "X-Mine: x",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic x",
            "TE: trailers",
        )
        asked = await self.asked(*lines, "X-Other: y")
        self.assertEqual(asked["X-Other"], "y")
        for line in lines:
            self.assertNotIn(line.partition(":")[0], asked)

    async def test_nor_of_a_backend_s(self) -> None:
        lines = (
            "Connection: X-Mine",
            "X-Mine: x",
            "Keep-Alive: timeout=5",
            "Proxy-Authenticate: Basic",
            "Upgrade: h2c",
        )
        origin = await start_origin(self, [answer(b"ok", *lines, "Set-Cookie: a", "Set-Cookie: b")])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        for more in ((), ("Connection: close",)):
            response = await client.get("/", *more)
            self.assertEqual(response.all("Set-Cookie"), ["a", "b"])
            for line in lines[1:]:
                self.assertNotIn(line.partition(":")[0], response)

    async def test_the_order_and_case_of_fields_are_kept(self) -> None:
        lines = ("b: 1", "A: 2", "b: 3", "Cookie: x=y", "AUTHORIZATION: Basic z")
        asked = await self.asked(*lines)
        kept = [
            f"{name}: {value}"
            for name, value in asked.fields
            if name.lower() in ("a", "b", "cookie", "authorization")
        ]
        self.assertEqual(kept, list(lines))

    async def test_request_ids(self) -> None:
        await self.asked()
        for _ in range(3):
            await self.client.get()
        ids = [each["X-Request-ID"] for each in self.origin.requests]
        self.assertEqual(len(set(ids)), 4)
        self.assertEqual([each.request_id for each in self.proxy.entries], ids)

    async def test_no_request_ids(self) -> None:
        """Then the field is none of the proxy's: it stays as it is."""
        for lines in ((), ("X-Request-ID: theirs",)):
            asked = await self.asked(*lines, settings=HttpSettings(request_id=False))
            self.assertEqual(asked.all("X-Request-ID"), ["theirs"] if lines else [])

    async def test_a_request_id_that_is_too_long(self) -> None:
        asked = await self.asked("X-Request-ID: " + "x" * 129, trust=(HOST,))
        self.assertLess(len(asked["X-Request-ID"]), 129)


class ShownTests(TestCase):
    """What ``/api`` and the access log say."""

    timeout = TIMEOUT

    async def shown(self, proxy: HttpProxy, path: str) -> Any:
        assert proxy.service.admin_port is not None
        port = proxy.service.admin_port.getHost().port  # type: ignore[attr-defined]

        def ask() -> Any:
            with urlopen(f"http://{HOST}:{port}/api/{path}", timeout=20) as response:
                return json.load(response)[path]

        return await in_thread(ask)

    async def test_connections(self) -> None:
        origin, proxy = await start(self, admin=True, max_connections=1)
        first, second = await proxy.connect(), await proxy.connect()
        await until(lambda: len(proxy.sides()) == 2)
        state = {"requests": 0, "state": "idle"}
        for each in await self.shown(proxy, "connections"):
            self.assertEqual({key: each[key] for key in state}, state)
        first.send(request("POST", "/", b"0123456789")[:-5])
        served = await origin.accepted()
        await served.request_head()
        second.ask()
        await until(lambda: len(proxy.cluster.queue))
        one, two = await self.shown(proxy, "connections")
        host = first.transport.getHost()
        self.assertEqual(
            one,
            {
                "id": one["id"],
                "listener": "front",
                "client": f"{HOST}:{host.port}",
                "requests": 1,
                "state": "answering",
                "cluster": "web",
                "backend": str(origin.address),
                "bytes_up": 5,
                "bytes_down": 0,
            },
        )
        self.assertEqual((two["state"], two["backend"]), ("waiting", None))

    async def test_one_that_is_being_connected(self) -> None:
        proxy = start_http(self, unanswering(self))
        client = await proxy.connect()
        client.ask()
        await until(lambda: proxy.leftovers()["opening"])
        self.assertEqual(proxy.connections()[0]["state"], "connecting")

    async def test_listeners(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin, admin=True)
        client = await proxy.connect()
        for _ in range(3):
            client.ask("POST", "/", b"four")
            await client.response()
        client.send(b"nonsense\r\n\r\n")
        await client.response()
        (shown,) = await self.shown(proxy, "listeners")
        traffic = shown["traffic"]
        self.assertEqual(traffic["requests"], 4)
        self.assertEqual(traffic["statuses"], {"2xx": 3, "4xx": 1})
        self.assertEqual((traffic["reused"], traffic["repeated"]), (2, 0))
        self.assertEqual((traffic["bytes_up"], traffic["bytes_down"]), (12, 6))
        self.assertEqual(list(traffic["refused"].values()), [1])
        self.assertEqual(sum(traffic["seconds"]["buckets"].values()), 3)

    async def test_an_entry(self) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        lines = ("Referer: http://r.example/", "User-Agent: test/1", "X-Request-ID: no")
        served = None
        for _ in range(2):
            client.ask("PUT", "/a?b", b"12345", *lines, host="A.example:80")
            served = served or await origin.accepted()
            asked = await served.request()
            proxy.clock.advance(1.5)
            served.send(answer(b"123", status="201 Created"))
            await client.response()
        host = client.transport.getHost()
        entry = proxy.entries[1]
        self.assertEqual(
            (entry.listener, entry.client, entry.method, entry.target, entry.version, entry.host),
            ("front", host.host, "PUT", "/a?b", "HTTP/1.1", "A.example:80"),
        )
        self.assertEqual((entry.status, entry.bytes_sent, entry.bytes_received), (201, 3, 5))
        self.assertEqual((entry.referer, entry.user_agent), ("http://r.example/", "test/1"))
        self.assertEqual(entry.request_id, asked["X-Request-ID"])
        self.assertEqual((entry.cluster, entry.backend), ("web", str(origin.address)))
        self.assertEqual((entry.reused, entry.error, entry.seconds), (True, "", 1.5))

    async def test_entries_of_what_came_to_nothing(self) -> None:
        proxy = start_http(self, routes=[HttpRoute(path="/x", status=404, text="12345")])
        client = await proxy.connect()
        await client.get("/x")
        client.ask("HEAD", "/x")
        await client.response("HEAD")
        await client.get("/")
        client.send(b"GET / HTTP/3.0\r\nHost: a\r\n\r\n")
        await client.response()
        self.assertEqual(
            [(each.method, each.status, each.bytes_sent, each.error) for each in proxy.entries],
            [
                ("GET", 404, 6, ""),
                ("HEAD", 404, 0, ""),
                ("GET", 503, proxy.entries[2].bytes_sent, "no backend of cluster web is up"),
                ("-", 505, 0, "a version is HTTP/1.0 or HTTP/1.1 (RFC 9112 section 2.3)"),
            ],
        )
        self.assertGreater(proxy.entries[2].bytes_sent, 0)
