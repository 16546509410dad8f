"""What can be done by the admin listener: a backend's state, and a reload."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed

from proxykit.errors import ConfigError
from proxykit.model import Address, Backend
from tests.ops.admins import BEARER, TOKEN, AdminCase, Answer
from tests.sockets import hear, until


class WriteCase(AdminCase):
    async def post(self, path: str, body: Any = None, **header: str | None) -> Answer:
        """A write that may be one; a body that is no text is made JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        fields = {"x_proxykit": "write", "content_type": "application/json", **header}
        return await self.ask(path, "POST", body, **fields)


class BackendTests(WriteCase):
    def place(self, address: object) -> str:
        return f"/api/clusters/web/backends/{address}"

    async def test_there_and_back(self) -> None:
        lines = hear(self)
        proxy = await self.start()
        address = self.backend.address
        for state in ("drain", "drain", "down", "up"):
            answer = await self.post(self.place(address), {"state": state})
            self.assertEqual((answer.status, answer.json["state"]), (200, state))
            self.assertEqual(answer.json["address"], str(address))
            self.assertEqual(proxy.cluster.backends[address].state, state)
        said = [line for line in lines if "so says 127.0.0.1:" in line]
        self.assertEqual(len(said), 4)
        self.assertTrue(said[0].startswith(f"web {address} is to be drain: "), said[0])

    async def test_it_has_an_effect(self) -> None:
        proxy = await self.start()
        await self.post(self.place(self.backend.address), {"state": "drain"})
        client = await proxy.connect()
        await client.lost()
        self.assertEqual(self.backend.ends, [])
        await self.post(self.place(self.backend.address), {"state": "up"})
        await proxy.connect()
        await self.backend.accepted()

    async def test_all_kinds_of_addresses(self) -> None:
        service = (await self.start()).service
        (cluster,) = service.config.clusters
        wanted = [Address("::1", 80), Address("/run/a b/%41.sock", 0), Address("10.0.0.1", 1)]
        backends = (*cluster.backends, *map(Backend, wanted))
        service.apply(evolve(service.config, clusters=(evolve(cluster, backends=backends),)))
        for address in wanted:
            text = str(address)
            for written in (quote(text, safe=""), quote(text, safe="/:[]")):
                answer = await self.post(self.place(written), {"state": "drain"})
                self.assertEqual((answer.status, answer.json["address"]), (200, text))
        for written in ("[0:0::1]:80", "unix:/run/a%20b/%2541.sock", "10.0.0.1:1?x=1"):
            answer = await self.post(self.place(written), {"state": "up"})
            self.assertEqual(answer.status, 200, written)

    async def test_there_is_none(self) -> None:
        await self.start()
        at = str(self.backend.address)
        good = {"state": "up"}
        for path, expected in (
            ("/api/clusters/wbe/backends/" + at, "there is no cluster 'wbe'; there are web"),
            ("/api/clusters/%77eb/backends/x", f"no backend 'x' in cluster web; there are {at}"),
            (self.place("1.1.1.1:1"), f"no backend '1.1.1.1:1' in cluster web; there are {at}"),
            (self.place("%ff%0a"), "no backend '\ufffd\\n' in cluster web"),
            (self.place("x" * 3000), "no backend '" + "x" * 100 + "' in"),
        ):
            answer = await self.post(path, good)
            self.assertEqual(answer.status, 404)
            self.assertIn(expected, answer.error)
            self.assertNotIn("\n", answer.error)

    async def test_what_there_is_has_an_end(self) -> None:
        service = (await self.start()).service
        (cluster,) = service.config.clusters
        many = tuple(Backend(Address("10.0.0.1", 1 + port)) for port in range(30))
        service.apply(evolve(service.config, clusters=(evolve(cluster, backends=many),)))
        answer = await self.post(self.place("x:1"), {"state": "up"})
        self.assertTrue(answer.error.endswith(", 10.0.0.1:20 and 10 more"), answer.error)

    async def test_there_is_nothing_at_all(self) -> None:
        await self.start()
        for path in (
            "/api/clusters/web",
            "/api/clusters/web/",
            "/api/clusters/web/backends",
            "/api/clusters/web/backends/",
            "/api/clusters//backends/a",
        ):
            answer = await self.post(path, {"state": "up"})
            self.assertEqual((answer.status, answer.error), (404, f"there is no {path} here"))

    async def test_a_body_that_does_not_say(self) -> None:
        proxy = await self.start()
        expected = 'expected {"state": ...} with one of up, drain, down'
        for body, more in (
            (b"", "; that is not JSON"),
            (b"state=up", "; that is not JSON"),
            (b"\xff", "; that is not JSON"),
            (b"[" * 60000, "; that is not JSON"),
            (b"[]", ", not '[]'"),
            (b'"up"', ", not '\"up\"'"),
            (b"{}", ""),
            (b'{"state": "UP"}', ", not '\"UP\"'"),
            (b'{"state": ["up"]}', ", not '[\"up\"]'"),
            (b'{"state": null}', ", not 'null'"),
            (b'{"state": "up", "a\\n": 1}', "; there is no 'a\\n'"),
        ):
            answer = await self.post(self.place(self.backend.address), body)
            self.assertEqual((answer.status, answer.error), (400, expected + more), body[:20])
        self.assertEqual(proxy.cluster.backends[self.backend.address].state, "up")

    async def test_a_body_of_another_kind(self) -> None:
        await self.start()
        place, good = self.place(self.backend.address), {"state": "up"}
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            answer = await self.post(place, good, content_type=kind)
            self.assertEqual(answer.status, 415)
            self.assertIn("expected Content-Type: application/json", answer.error)
        for kind in ("Application/JSON", "application/json; charset=utf-8", None):
            answer = await self.post(place, good, content_type=kind)
            self.assertEqual(answer.status, 200, kind)

    async def test_other_methods(self) -> None:
        await self.start()
        for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
            for path in (self.place(self.backend.address), "/api/reload"):
                answer = await self.ask(path, method, x_proxykit="write")
                self.assertEqual((answer.status, answer.header["allow"]), (405, "POST"))

    async def test_with_a_token(self) -> None:
        await self.start(token=TOKEN)
        place, good = self.place(self.backend.address), {"state": "down"}
        self.assertEqual((await self.post(place, good)).status, 401)
        answer = await self.post(place, good, x_proxykit=None, **BEARER)
        self.assertEqual(answer.json["state"], "down")


class ReloadTests(WriteCase):
    async def test_without_a_file(self) -> None:
        await self.start()
        answer = await self.post("/api/reload")
        self.assertEqual(answer.status, 409)
        self.assertIn("not started from a file", answer.error)

    async def test_at_the_end(self) -> None:
        service = (await self.start()).service
        self.patch(service, "reload", lambda: succeed([]))
        self.patch(type(service), "draining", True)
        answer = await self.post("/api/reload")
        self.assertEqual((answer.status, answer.error), (409, "the service is about to end"))
        health = await self.ask("/healthz")
        self.assertEqual((health.status, health.json), (503, {"status": "draining"}))
        health = await self.ask("/healthz", "HEAD")
        self.assertEqual((health.status, health.body), (503, b""))

    async def test_what_has_changed(self) -> None:
        lines = hear(self)
        service = (await self.start()).service
        for changed in (["listeners: one more", "that's it"], []):
            self.patch(service, "reload", lambda changed=changed: succeed(changed))
            answer = await self.post("/api/reload")
            self.assertEqual((answer.status, answer.json), (200, {"changed": changed}))
        self.assertEqual(len([line for line in lines if line.startswith("reload, by ")]), 2)

    async def test_a_mistake(self) -> None:
        service = (await self.start()).service
        self.patch(service, "reload", lambda: fail(ConfigError(["a:1: first", "a:2: second"])))
        answer = await self.post("/api/reload")
        self.assertEqual(answer.status, 422)
        self.assertEqual(
            answer.json,
            {"error": "nothing was changed: a:1: first", "lines": ["a:1: first", "a:2: second"]},
        )

    async def test_an_error_of_ours(self) -> None:
        service = (await self.start()).service
        self.patch(service, "reload", lambda: fail(ZeroDivisionError()))
        self.assertEqual((await self.post("/api/reload")).status, 500)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_it_takes_its_time(self) -> None:
        """Whoever has asked may be gone by the end; it is done all the same."""
        service = (await self.start()).service
        done: Deferred[list[str]] = Deferred()
        self.patch(service, "reload", lambda: done)
        end = await self.talk(
            b"POST /api/reload HTTP/1.1\r\nHost: localhost\r\nX-Proxykit: write\r\n\r\n"
        )
        site: Any = service._site
        await until(lambda: any(each.busy for each in site._channels))
        end.close()
        await until(lambda: len(site) == 0)
        done.callback([])
        self.assertEqual((await self.post("/api/reload")).status, 200)
