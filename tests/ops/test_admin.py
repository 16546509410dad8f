"""The admin listener: the shape of what it answers."""

from __future__ import annotations

import json
import math
from http.client import HTTPConnection
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.core.sharing import ADVICE, WHY
from proxykit.ops.metrics import CONTENT_TYPE
from tests.sockets import HOST, TIMEOUT, Proxy, in_thread, start_backend, start_proxy, until


class AdminTests(TestCase):
    timeout = TIMEOUT

    async def start(self) -> Proxy:
        self.backend = await start_backend(self)
        return start_proxy(self, self.backend, admin=True)

    async def ask(self, proxy: Proxy, path: str, method: str = "GET") -> tuple[int, Any, Any]:
        """Status, header and body of an answer."""
        assert proxy.service.admin_port is not None
        port = proxy.service.admin_port.getHost().port  # type: ignore[attr-defined]

        def talk() -> tuple[int, Any, bytes]:
            connection = HTTPConnection(HOST, port, timeout=20)
            try:
                connection.request(method, path, headers={"connection": "close"})
                response = connection.getresponse()
                return response.status, response.headers, response.read()
            finally:
                connection.close()

        status, header, body = await in_thread(talk)
        return status, header, body

    async def json(self, proxy: Proxy, path: str) -> Any:
        status, header, body = await self.ask(proxy, path)
        self.assertEqual((status, header["content-type"]), (200, "application/json"))
        self.assertEqual(header["cache-control"], "no-store")
        self.assertEqual(int(header["content-length"]), len(body))
        return json.loads(body)

    async def test_health(self) -> None:
        self.assertEqual(await self.json(await self.start(), "/healthz"), {"status": "ok"})

    async def test_what_there_is(self) -> None:
        proxy = await self.start()
        paths = (await self.json(proxy, "/"))["paths"]
        self.assertEqual(
            paths,
            [
                "/healthz",
                "/metrics",
                "/api/listeners",
                "/api/clusters",
                "/api/connections",
                "/api/ports",
                "/api/events",
                "/api/openapi.json",
                "/api/explain/ID",
                "/api/clusters/NAME/backends/ADDR",
                "/api/reload",
            ],
        )
        for path in paths[:-3]:
            if path not in ("/api/events", "/metrics"):
                await self.json(proxy, path)

    async def test_metrics(self) -> None:
        """In the format that is wanted, and at once where there is little."""
        proxy = await self.start()
        status, header, body = await self.ask(proxy, "/metrics")
        self.assertEqual((status, header["content-type"]), (200, CONTENT_TYPE))
        self.assertEqual((header["vary"], header["cache-control"]), ("Accept", "no-store"))
        self.assertIn(b'\nproxykit_listener_accepted_total{listener="front"} 0.0\n', body)
        _, header, empty = await self.ask(proxy, "/metrics", "HEAD")
        self.assertEqual((int(header["content-length"]), empty), (len(body), b""))

    async def test_ports(self) -> None:
        proxy = await self.start()
        await proxy.connect()
        await proxy.side()
        (budget,) = (await self.json(proxy, "/api/ports"))["budgets"]
        self.assertEqual(
            list(budget),
            [
                "protocol",
                "source",
                "destination",
                "size",
                "active",
                "idle",
                "reserved",
                "time_wait",
                "foreign",
                "free",
                "forecast_seconds",
                "level",
                "headroom",
                "denied",
            ],
        )
        self.assertEqual(
            (budget["protocol"], budget["source"], budget["destination"], budget["active"]),
            ("tcp", HOST, str(self.backend.address), 1),
        )
        self.assertEqual((budget["idle"], budget["reserved"]), (0, 0))
        # Foreign are the ports of the listeners here, where the kernel picks from them. What rests
        # from tests before may count or not: that depends on the machine.
        out = budget["size"] - budget["free"] - budget["foreign"]
        least = 1 + math.ceil(budget["size"] * 0.02)
        self.assertTrue(least <= out <= least + budget["time_wait"], budget)

    async def test_listeners(self) -> None:
        proxy = await self.start()
        first = await proxy.connect()
        await proxy.side()
        first.send(b"up")
        await until(lambda: next(iter(proxy.listener.connections.values())).received == 2)
        first.reset()
        await until(lambda: not proxy.listener.connections)
        await proxy.connect()
        await proxy.side()
        (listener,) = (await self.json(proxy, "/api/listeners"))["listeners"]
        traffic = listener.pop("traffic")
        self.assertEqual(
            listener,
            {
                "name": "front",
                "address": proxy.listener.address,
                "connections": 1,
                "max_connections": 10000,
                "accepted": 2,
                "paused": None,
                "draining": False,
            },
        )
        self.assertEqual((traffic["ended"], traffic["bytes_up"]), ({"client reset": 1}, 2))
        self.assertEqual((traffic["bytes_down"], traffic["refused"]), (0, 0))
        self.assertEqual(sum(traffic["seconds"]["buckets"].values()), 1)

    async def test_clusters(self) -> None:
        proxy = await self.start()
        await proxy.connect()
        await proxy.side()
        (cluster,) = (await self.json(proxy, "/api/clusters"))["clusters"]
        (backend,) = cluster["backends"]
        self.shows(
            cluster,
            name="web",
            balance="round-robin",
            max_connections=1000,
            queue={"waiting": 0, "limit": 1000, "timed_out": 0, "refused": 0},
        )
        self.shows(
            backend,
            address=str(self.backend.address),
            name="",
            state="up",
            weight=1,
            backup=False,
            in_flight=1,
            connections=1,
            served=1,
            failures=0,
            closed_first={"proxy": 0, "backend": 0, "reset": 0},
            full=None,
        )
        self.shows(cluster["pool"], idle=0, opening=0, opened=0, reused=0, own={}, not_kept={})

    def shows(self, found: Any, **expected: Any) -> None:
        """At least that; more is said by others' tests."""
        self.assertEqual({key: found.get(key) for key in expected}, expected)

    async def test_connections_while_they_are_open(self) -> None:
        proxy = await self.start()
        self.assertEqual(await self.json(proxy, "/api/connections"), {"connections": []})
        client = await proxy.connect()
        served = await self.backend.accepted()
        client.send(b"12345")
        await served.got(b"12345")
        (shown,) = (await self.json(proxy, "/api/connections"))["connections"]
        self.assertEqual((shown["id"], shown["state"], shown["bytes_up"]), (1, "relaying", 5))
        client.reset()
        await until(lambda: not proxy.listener.connections)
        self.assertEqual(await self.json(proxy, "/api/connections"), {"connections": []})

    async def refused(self, proxy: Proxy, path: str) -> str:
        """Why there is nothing there."""
        status, header, body = await self.ask(proxy, path)
        self.assertEqual((status, header["content-type"]), (404, "application/json"))
        error: str = json.loads(body)["error"]
        self.assertNotIn("\n", error)
        return error

    async def test_explain(self) -> None:
        proxy = await self.start()
        client = await proxy.connect()
        await proxy.side()
        found = await self.json(proxy, "/api/explain/1")
        (shown,) = (await self.json(proxy, "/api/connections"))["connections"]
        self.assertEqual({key: found[key] for key in shown}, shown)
        self.assertEqual(
            {key: value for key, value in found.items() if key not in shown},
            {
                "kind": "l4",
                "shared": False,
                "reason": "opaque",
                "why": WHY["opaque"],
                "advice": ADVICE["opaque"],
            },
        )
        self.assertEqual(await self.json(proxy, "/api/explain/0001?now"), found)
        client.reset()
        await until(lambda: not proxy.listener.connections)
        for number in (1, 2, 10**17):
            self.assertEqual(
                await self.refused(proxy, f"/api/explain/{number}"),
                f"there is no connection {number}: it never was, or it has ended, and the log has"
                " its line",
            )

    async def test_explain_what_is_no_number(self) -> None:
        proxy = await self.start()
        for text in ("", "x", "1x", "-1", "1/", "1.0", "%31", "9" * 5000):
            error = await self.refused(proxy, f"/api/explain/{text}")
            self.assertEqual(
                error, f"expected the id of a connection (/api/connections), not {text[:100]!r}"
            )
        self.assertIn("there is no /api/explain here", await self.refused(proxy, "/api/explain"))
        status, header, _ = await self.ask(proxy, "/api/explain/1", "POST")
        self.assertEqual((status, header["allow"]), (405, "GET, HEAD"))

    async def test_a_query_does_not_matter(self) -> None:
        self.assertEqual(await self.json(await self.start(), "/healthz?now"), {"status": "ok"})

    async def test_elsewhere(self) -> None:
        proxy = await self.start()
        for path in ("/nowhere", "/api/", "/api/ports/", "//healthz", "/%2e"):
            status, _, body = await self.ask(proxy, path)
            self.assertEqual(
                (status, json.loads(body)), (404, {"error": f"there is no {path} here"})
            )

    async def test_other_methods(self) -> None:
        proxy = await self.start()
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
            status, header, body = await self.ask(proxy, "/api/ports", method)
            self.assertEqual((status, header["allow"]), (405, "GET, HEAD"))
            self.assertEqual(json.loads(body), {"error": f"{method} is not possible here"})

    async def test_head(self) -> None:
        proxy = await self.start()
        for path, expected in (("/api/ports", 200), ("/nowhere", 404)):
            _, got, text = await self.ask(proxy, path)
            status, header, body = await self.ask(proxy, path, "HEAD")
            self.assertEqual((status, body), (expected, b""))
            self.assertEqual(header["content-length"], str(len(text)))
            self.assertEqual(header["content-type"], got["content-type"])
