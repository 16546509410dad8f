"""The mode http: fields that the proxy writes itself, and who has the last word about them.

A backend shall find each of them once. What clients send in their place is dropped, in whatever
spelling; what the proxy's user sets, by a rule or by a hook, goes in place of the proxy's own.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import Address, FieldRules, HttpRoute
from proxykit.modes.http_settings import HttpSettings
from proxykit.net.serving import Outgoing, Reply, RequestHook
from proxykit.wire.http1 import RequestHead
from tests.http_sockets import HttpProxy, Message, answer, head, start_http, start_origin
from tests.modes.test_http_bodies import OK, start
from tests.sockets import HOST, TIMEOUT, free_port

OURS = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "X-Request-ID")
SET = tuple((name, f"set-{number}") for number, name in enumerate(OURS))
ASKING = ("Connection: upgrade", "Upgrade: websocket")


class Asking(TestCase):
    """A client that asks through a proxy with such and such routes, settings or hooks."""

    timeout = TIMEOUT

    async def start(
        self, reply: bytes = OK, hook: RequestHook | None = None, **more: Any
    ) -> HttpProxy:
        self.origin = await start_origin(self, [reply])
        self.proxy: HttpProxy = start_http(self, self.origin, **more)
        self.proxy.listener.factory.serving.on_request = hook  # type: ignore[attr-defined]
        self.client = await self.proxy.connect()
        return self.proxy

    async def asked(self, *lines: str, **more: Any) -> Message:
        """What the backend gets."""
        await self.start(**more)
        self.assertEqual((await self.client.get("/", *lines)).status, 200)
        return self.origin.requests[0]


def rules(**more: Any) -> list[HttpRoute]:
    """A route for everything, with rules for the fields of requests."""
    return [HttpRoute(path="/", cluster="web", request_fields=FieldRules(**more))]


class WhoHasTheLastWordTests(Asking):
    """One field, not two: backends differ in which of two they believe."""

    def check(self, asked: Message) -> None:
        self.assertEqual({name: asked.all(name) for name in OURS}, {n: [v] for n, v in SET})
        self.assertEqual(self.proxy.entries[0].request_id, dict(SET)["X-Request-ID"])

    async def test_rules(self) -> None:
        self.check(await self.asked(routes=rules(set=SET)))

    async def test_rules_in_another_spelling(self) -> None:
        lower = tuple((name.lower(), value) for name, value in SET)
        self.check(await self.asked(routes=rules(set=lower)))

    async def test_rules_and_a_client_that_is_trusted(self) -> None:
        theirs = [f"{name}: theirs" for name in OURS]
        self.check(await self.asked(*theirs, routes=rules(set=SET), trust=(HOST,)))

    async def test_a_hook(self) -> None:
        def hook(head: RequestHead, outgoing: Outgoing) -> None:
            for name, value in SET:
                outgoing.fields.set(name, value)

        self.check(await self.asked(hook=hook))

    async def test_the_others_stay(self) -> None:
        """Each is replaced alone."""
        for name, value in SET:
            asked = await self.asked(routes=rules(set=((name, value),)))
            for each in OURS:
                self.assertEqual(asked[each] == value, each == name, (name, each))

    async def test_a_request_id_of_a_rule_where_the_proxy_gives_none(self) -> None:
        settings = HttpSettings(request_id=False)
        asked = await self.asked(settings=settings, routes=rules(set=(("X-Request-ID", "1"),)))
        self.assertEqual(asked["X-Request-ID"], "1")
        self.assertEqual(self.proxy.entries[0].request_id, "1")


class SpellingTests(Asking):
    """Servers that make variables of fields take an underscore for a hyphen."""

    async def test_underscores(self) -> None:
        lines = [f"{name.replace('-', '_')}: 192.0.2.66" for name in OURS if "-" in name]
        mixed = ["X-Forwarded_For: 192.0.2.66", "x_forwarded-PROTO: 192.0.2.66"]
        for trust in ((), (HOST,)):
            asked = await self.asked(*lines, *mixed, "X_Other: stays", trust=trust)
            self.assertEqual([name for name in asked.names if "_" in name], ["X_Other"])
            self.assertNotIn("192.0.2.66", str(asked.fields))
            for name in OURS:
                self.assertEqual(len(asked.all(name)), 1, name)

    async def test_hop_by_hop(self) -> None:
        asked = await self.asked("Keep_Alive: timeout=5", "Proxy_Connection: close")
        self.assertEqual([name for name in asked.names if "_" in name], [])


class MaxForwardsTests(Asking):
    """A number that somebody sends is only a number as far as it can be one."""

    async def answered(self, value: str, method: str = "OPTIONS") -> int:
        await self.start()
        self.client.ask(method, "/", None, f"Max-Forwards: {value}")
        response: Message = await self.client.response(method)
        await self.client.get("/next")  # The connection lives on.
        return response.status

    async def test_more_digits_than_are_ever_meant(self) -> None:
        """Thousands of digits are no number to Python."""
        for digits in (19, 5000):
            for method in ("OPTIONS", "TRACE"):
                value = "9" * digits
                self.assertEqual(await self.answered(value, method), 200)
                self.assertEqual(self.origin.requests[0]["Max-Forwards"], value)

    async def test_the_most(self) -> None:
        self.assertEqual(await self.answered("9" * 18), 200)
        self.assertEqual(self.origin.requests[0]["Max-Forwards"], "9" * 17 + "8")

    async def test_no_number(self) -> None:
        for value in ("-1", "1.5", "1, 2", "one", ""):
            self.assertEqual(await self.answered(value), 200)
            self.assertEqual(self.origin.requests[0]["Max-Forwards"], value)


class OwnAnswerTests(Asking):
    """Answers that no backend gave."""

    async def test_a_content_type_of_a_rule(self) -> None:
        for name in ("Content-Type", "content-type"):
            fields = FieldRules(set=((name, "application/json"),))
            route = HttpRoute(path="/", status=200, text="{}", response_fields=fields)
            await self.start(routes=[route])
            response = await self.client.get()
            self.assertEqual(response["Content-Type"], "application/json")
            self.assertEqual(response.text, "{}\n")

    async def test_a_content_type_of_a_hook(self) -> None:
        fields = [("Content-Type", "application/json")]
        await self.start(hook=lambda head, outgoing: Reply(200, "{}", fields))
        response = await self.client.get()
        self.assertEqual((response["Content-Type"], response.text), ("application/json", "{}"))

    async def test_a_field_whose_value_looks_like_one(self) -> None:
        """Only a name is one."""
        fields = [("X-Hint", "content-type: none")]
        await self.start(hook=lambda head, outgoing: Reply(200, "x", fields))
        response = await self.client.get()
        self.assertEqual(response["Content-Type"], "text/plain; charset=utf-8")

    async def test_other_fields_of_the_proxys_own(self) -> None:
        """A rule's word is the last about these too."""
        for name in ("Date", "Location"):
            fields = FieldRules(set=((name, "mine"),))
            await self.start(routes=[HttpRoute(path="/", redirect="/b", response_fields=fields)])
            self.assertEqual((await self.client.get()).all(name), ["mine"])

    async def test_a_hook_with_a_status_that_is_none(self) -> None:
        for status in (0, 100, 101, 199, 600, 1000):
            await self.start(hook=lambda head, outgoing, status=status: Reply(status, "x"))
            response = await self.client.get()
            self.assertEqual(response.start, "HTTP/1.1 500 Internal Server Error", status)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
            self.assertEqual(self.proxy.stats["statuses"], {"5xx": 1})

    async def test_the_least_and_the_most_of_a_status(self) -> None:
        for status in (200, 599):
            await self.start(hook=lambda head, outgoing, status=status: Reply(status, "x"))
            response = await self.client.get()
            self.assertEqual((response.status, response.text), (status, "x"))

    async def test_a_hook_with_a_body_where_there_is_none(self) -> None:
        for status in (204, 304):
            await self.start(hook=lambda head, outgoing, status=status: Reply(status, "xxxx"))
            for _ in range(2):  # The second would begin with the first one's body.
                self.assertEqual((await self.client.get()).names, ["Date"])
            self.assertEqual([each.bytes_sent for each in self.proxy.entries], [0, 0])

    async def test_request_ids(self) -> None:
        """They are logged, though nobody was sent them."""
        routes = [HttpRoute(status=403, path="/no"), HttpRoute(redirect="/no", path="/moved")]
        proxy = start_http(self, Address(HOST, free_port(self)), routes=routes)
        client = await proxy.connect()
        for target, status in (("/no", 403), ("/moved", 308), ("/..", 400), ("/", 502)):
            self.assertEqual((await client.get(target)).status, status)
        ids = [each.request_id for each in proxy.entries]
        self.assertTrue(all(ids))
        self.assertEqual(len(set(ids)), 4)

    async def test_no_request_ids(self) -> None:
        settings = HttpSettings(request_id=False)
        await self.start(settings=settings, routes=[HttpRoute(status=403, path="/")])
        await self.client.get()
        self.assertEqual(self.proxy.entries[0].request_id, "")


class ResponseTests(Asking):
    """What backends send is judged by itself."""

    async def test_limits_of_requests_are_not_those_of_responses(self) -> None:
        lines = [f"X-{number}: {'y' * 50}" for number in range(30)]
        settings = HttpSettings(line_limit=100, head_limit=300, fields_limit=20)
        await self.start(answer(b"ok", *lines, status="200 " + "O" * 200), settings=settings)
        response = await self.client.get()
        self.assertEqual((response.status, response["X-29"]), (200, "y" * 50))
        client = await self.proxy.connect()
        self.assertEqual((await client.get("/", *lines)).status, 431)

    async def test_101_that_names_no_protocol(self) -> None:
        """There is nothing that both sides would speak from here on."""
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.ask("GET", "/", None, *ASKING)
        served = await origin.accepted()
        await served.request()
        served.send(head("Connection: upgrade", status="101 Switching Protocols"))
        response = await client.response()
        self.assertEqual(response.status, 502)
        self.assertIn("no 101 without an Upgrade", response.text)
        await served.lost()
        await proxy.at_rest()
