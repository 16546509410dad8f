"""proxykit.net.telling: whether a client's connection is shared, and why not."""

from __future__ import annotations

from typing import Any

from twisted.logger import capturedLogs

from proxykit.core.sharing import ADVICE, WHY
from proxykit.interfaces import IExplains
from proxykit.model import HttpRoute
from proxykit.modes.http_settings import HttpSettings
from tests.http_sockets import answer, last, start_http
from tests.modes.test_http_bodies import OK, start
from tests.modes.test_http_sharing import NTLM, SharingTestCase
from tests.modes.test_http_upgrade import ASKING, SWITCHING
from tests.modes.test_tcp import name_of
from tests.sockets import hear, turns, unanswering, until

LAST = answer(b"ok", "Connection: close")


def of(shared: bool, reason: str, not_kept: str = "") -> dict[str, Any]:
    """What is said of a request that is over."""
    return {"shared": shared, **said(reason), "not_kept": said(not_kept) if not_kept else None}


def said(reason: str) -> dict[str, Any]:
    return {"reason": reason, "why": WHY[reason], "advice": ADVICE.get(reason)}


class ExplainTests(SharingTestCase):
    """What is said of a connection while it is there."""

    def explain(self, number: int = 1) -> dict[str, Any]:
        found = self.proxy.listener.explain(number)
        self.assertEqual((found["id"], found["listener"], found["kind"]), (number, "front", "l7"))
        self.assertEqual(found["why"], WHY[found["reason"]])
        return found

    async def test_interface(self) -> None:
        await self.start([OK])
        self.assertTrue(IExplains.providedBy(await self.proxy.served_by()))

    async def test_between_requests(self) -> None:
        await self.start([OK])
        await self.proxy.served_by()
        lasts = [None, of(False, "none-idle"), of(True, "reused")]
        for requests in (0, 1, 2):
            found = self.explain()
            self.assertEqual((found["shared"], found["reason"]), (None, "no-backend"))
            self.assertEqual((found["requests"], found["state"]), (requests, "idle"))
            self.assertEqual(found["reused"], max(0, requests - 1))
            self.assertEqual(found["own"], {"none-idle": 1} if requests else {})
            self.assertEqual(found["last"], lasts[requests])
            await self.client.get()

    async def test_the_first_on_its_connection_and_the_next(self) -> None:
        origin, self.proxy = await start(self)
        client = await self.proxy.connect()
        for number, expected in enumerate(((False, "none-idle", 0), (True, "reused", 1))):
            client.ask()
            served = await origin.accepted() if not number else served  # noqa: F821
            await served.request()
            found = self.explain()
            self.assertEqual((found["shared"], found["reason"], found["used"]), expected)
            self.assertEqual((found["cluster"], found["backend"]), ("web", str(origin.address)))
            self.assertEqual((found["requests"], found["state"]), (number + 1, "answering"))
            self.assertIsNone(found["advice"])
            served.send(OK)
            await client.response()

    async def test_what_would_make_it_shareable(self) -> None:
        origin, self.proxy = await start(self)
        client = await self.proxy.connect()
        client.ask()
        first = await origin.accepted()
        await first.request()
        first.send(OK)
        await client.response()
        self.proxy.clock.advance(2)
        client.ask("POST")
        await origin.accepted()
        found = self.explain()
        self.assertEqual((found["shared"], found["reason"]), (False, "stale"))
        self.assertIn('reuse = "always"', found["advice"])

    async def test_upgraded(self) -> None:
        await self.start([SWITCHING])
        self.client.ask("GET", "/", None, *ASKING)
        await self.client.response()
        found = self.explain()
        self.assertEqual((found["shared"], found["reason"]), (False, "upgraded"))
        self.assertEqual((found["state"], found["used"]), ("upgraded", 0))

    async def test_authenticated(self) -> None:
        """It is the client's between its requests as well."""
        await self.start([NTLM])
        await self.client.get()
        await turns()
        found = self.explain()
        self.assertEqual((found["shared"], found["reason"]), (False, "authenticated"))

    async def test_what_became_of_the_last_one(self) -> None:
        await self.start([last(LAST)])
        await self.client.get()
        await self.proxy.at_rest()
        found = self.explain()
        self.assertEqual(found["last"], of(False, "none-idle", "closed"))
        self.assertEqual(found["not_kept"], {"closed": 1})

    async def test_waiting(self) -> None:
        origin, self.proxy = await start(self, max_connections=1)
        first, second = await self.proxy.connect(), await self.proxy.connect()
        first.ask()
        await (await origin.accepted()).request()
        second.ask()
        await until(lambda: len(self.proxy.cluster.queue))
        found = self.explain(2)
        self.assertEqual((found["shared"], found["reason"]), (None, "waiting"))
        self.assertEqual(found["state"], "waiting")
        self.assertEqual(
            found["full"], f"{origin.address} has all of its 1 connections (max_connections)"
        )
        self.assertEqual(found["advice"], ADVICE["waiting"])

    async def test_connecting(self) -> None:
        """It is known by then why it gets no other one."""
        self.proxy = start_http(self, unanswering(self))
        client = await self.proxy.connect()
        client.ask()
        side = await self.proxy.served_by()
        await until(lambda: side.exchange)
        found = self.explain()
        self.assertEqual((found["shared"], found["reason"]), (False, "none-idle"))
        self.assertEqual(found["state"], "connecting")

    async def test_lost_a_moment_ago(self) -> None:
        """Before it is asked again."""
        origin, self.proxy = await start(self)
        client = await self.proxy.connect()
        client.ask()
        served = await origin.accepted()
        await served.request()
        side = await self.proxy.served_by()
        upstream, side.exchange.upstream = side.exchange.upstream, None
        self.assertEqual(self.explain()["reason"], "no-backend")
        side.exchange.upstream = upstream
        served.send(OK)
        await client.response()


class LogTests(SharingTestCase):
    """The line at the end of a client's connection."""

    async def line(self, *paths: str, settings: HttpSettings | None = None, **more: Any) -> str:
        """What it says of a client that asks for these, and leaves; empty: there is none."""
        lines = hear(self)
        await self.start([OK, OK, LAST], settings=settings, **more)
        name = name_of(self.client)
        for path in paths:
            await self.client.get(path)
        await self.proxy.served_by()
        self.proxy.clock.advance(1.5)
        self.client.close()
        await self.proxy.empty()
        mine = [line for line in lines if name in line]
        self.assertLessEqual(len(mine), 1)
        return mine[0].removeprefix(f"front #1: {name}: ") if mine else ""

    async def test_counts(self) -> None:
        self.assertEqual(
            await self.line("/", "/", "/"),
            "3 requests (2 reused, 1 own (none-idle), 1 not kept (closed)), 1.500 s",
        )

    async def test_without_a_request(self) -> None:
        self.assertEqual(await self.line(), "0 requests, 1.500 s")

    async def test_without_a_backend(self) -> None:
        found = await self.line("/here", routes=[HttpRoute(path="/here", status=200, text="me")])
        self.assertEqual(found, "1 requests, 1.500 s")

    async def test_none_if_the_user_wants_none(self) -> None:
        self.assertEqual(await self.line("/", settings=HttpSettings(log_connections=False)), "")

    async def test_for_programs(self) -> None:
        """Each figure has a name."""
        with capturedLogs() as events:
            await self.line("/", "/", "/")
        (event,) = [event for event in events if "requests" in event]
        found = {key: event[key] for key in ("requests", "reused", "own", "not_kept")}
        self.assertEqual(
            found, {"requests": 3, "reused": 2, "own": {"none-idle": 1}, "not_kept": {"closed": 1}}
        )

    async def test_upgraded(self) -> None:
        """Its end is that of both connections; there is one line, and it has the upgrade."""
        for first in ("client", "backend"):
            lines = hear(self)
            origin, self.proxy = await start(self)
            client = await self.proxy.connect()
            name = name_of(client)
            client.ask("GET", "/", None, *ASKING)
            served = await origin.accepted()
            await served.request()
            served.send(SWITCHING)
            await client.response()
            (client if first == "client" else served).reset()
            await self.proxy.empty()
            mine = [line for line in lines if name in line]
            self.assertEqual(len(mine), 1, mine)
            self.assertIn("1 requests (1 own (none-idle), 1 not kept (upgraded))", mine[0])
