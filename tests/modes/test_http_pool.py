"""The mode http and its pool: which connection a request gets, and which it never does."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import Backend, Cluster, HttpRoute
from tests.http_sockets import (
    CLOSE,
    RESET,
    HttpProxy,
    Message,
    Origin,
    answer,
    head,
    last,
    request,
    start_http,
    start_origin,
)
from tests.modes.test_http_bodies import OK, start
from tests.sockets import TIMEOUT, hear, turns, until


class ReuseTests(TestCase):
    """Who may have a connection that others had before: the policies of ``reuse``."""

    timeout = TIMEOUT

    async def converse(self, *steps: tuple[str, float], **more: Any) -> list[int]:
        """Requests of one client: their methods, and the seconds that pass before each.

        :returns: which of the backend's connections each of them came on.
        """
        numbers: list[int] = []

        def step(end: Any, asked: Message) -> None:
            numbers.append(origin.ends.index(end))
            end.send(OK)
            if "close" in asked.all("Connection"):
                end.close()

        origin = await start_origin(self, [step])
        proxy = start_http(self, origin, **more)
        client = await proxy.connect()
        for method, seconds in steps:
            proxy.clock.advance(seconds)
            client.ask(method)
            self.assertEqual((await client.response()).body, b"ok")
            await proxy.at_rest()
        self.asked = origin.requests
        return numbers

    async def test_never(self) -> None:
        found = await self.converse(("GET", 0), ("GET", 0), ("POST", 0), reuse="never")
        self.assertEqual(found, [0, 1, 2])
        self.assertEqual([each["Connection"] for each in self.asked], ["close"] * 3)

    async def test_safe(self) -> None:
        """What cannot be sent again goes where something was answered a moment ago."""
        found = await self.converse(
            ("GET", 0), ("POST", 0.9), ("PUT", 5), ("POST", 1.1), ("DELETE", 9), ("PATCH", 0.5)
        )
        self.assertEqual(found, [0, 0, 0, 1, 1, 1])

    async def test_safe_where_there_is_no_room_for_a_new_one(self) -> None:
        found = await self.converse(("GET", 0), ("POST", 9), ("POST", 9), max_connections=1)
        self.assertEqual(found, [0, 0, 0])

    async def test_always(self) -> None:
        found = await self.converse(("POST", 0), ("POST", 29), ("POST", 29), reuse="always")
        self.assertEqual(found, [0, 0, 0])

    async def test_the_idle_timeout(self) -> None:
        found = await self.converse(("GET", 0), ("GET", 4), ("GET", 6), idle_timeout=5.0)
        self.assertEqual(found, [0, 0, 1])

    async def idle_for(self, *lines: str) -> float:
        """Seconds after which an idle connection is given up, in halves."""
        origin = await start_origin(self, [answer(b"ok", *lines)])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        await client.get()
        await proxy.at_rest()
        seconds = 0.0
        while proxy.pooled()["idle"]:
            proxy.clock.advance(0.5)
            seconds += 0.5
        return seconds

    async def test_a_backend_that_says_how_long_it_waits(self) -> None:
        for line, least, most in (
            ("X: y", 30, 32),
            ("Keep-Alive: timeout=10, max=100", 8, 9.5),
            ("keep-alive: max=100, TIMEOUT = 3", 1.5, 2.5),
            ("Keep-Alive: timeout=1", 0.5, 0.5),
            ("Keep-Alive: timeout=100", 30, 32),
            ("Keep-Alive: timeout=soon", 30, 32),
        ):
            seconds = await self.idle_for(line)
            self.assertTrue(least <= seconds <= most, (line, seconds))

    async def test_a_backend_that_changes_its_mind(self) -> None:
        origin = await start_origin(
            self, [OK, answer(b"ok", "Keep-Alive: timeout=5"), answer(b"ok", "Connection: close")]
        )
        proxy = start_http(self, origin)
        client = await proxy.connect()
        await client.get()
        proxy.clock.advance(10)
        await client.get()
        await proxy.at_rest()
        proxy.clock.advance(5)
        self.assertEqual(proxy.pooled()["idle"], 0)

    async def test_many_clients_and_few_connections(self) -> None:
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin, max_connections=4)
        clients = [await proxy.connect() for _ in range(50)]
        for _ in range(4):
            for client in clients:
                client.ask()
            for client in clients:
                self.assertEqual((await client.response()).body, b"ok")
        self.assertEqual(len(origin.requests), 200)
        self.assertLessEqual(len(origin.ends), 4)
        await proxy.at_rest()
        (budget,) = proxy.service.accountant.snapshot()
        self.assertEqual((budget["active"], budget["idle"]), (0, len(origin.ends)))

    async def several(self, count: int, **more: Any) -> tuple[Origin, HttpProxy, list[Any]]:
        """As many idle connections, the one that answered first at the bottom."""
        origin, proxy = await start(self, **more)
        clients, ends = [], []
        for _ in range(count):
            clients.append(await proxy.connect())
            clients[-1].ask()
            ends.append(await origin.accepted())
            await ends[-1].request()
        for client, end in zip(clients, ends, strict=True):
            end.send(OK)
            await client.response()
            proxy.clock.advance(1)
        return origin, proxy, ends

    async def test_the_newest_first(self) -> None:
        """So that those that are not needed grow old and go."""
        _, proxy, ends = await self.several(3)
        client = await proxy.connect()
        for end in (ends[2], ends[2]):
            client.ask()
            await end.request()
            end.send(OK)
            await client.response()
        proxy.clock.advance(29)
        self.assertEqual(proxy.pooled()["idle"], 1)
        await ends[0].ended()
        await ends[1].ended()

    async def test_no_more_are_kept_than_the_user_wants(self) -> None:
        _, proxy, ends = await self.several(3, max_idle=1)
        await proxy.at_rest()
        self.assertEqual(proxy.pooled()["idle"], 1)
        self.assertEqual(proxy.leftovers()["ports"], 1)
        await ends[1].ended()
        await ends[2].ended()

    async def test_an_idle_connection_makes_room_for_another_cluster(self) -> None:
        """Both go to the same address, and there is one port."""
        origin = await start_origin(self, [OK])
        other = Cluster("other", (Backend(origin.address),))
        routes = [HttpRoute(path="/other", cluster="other")]
        proxy = start_http(self, origin, others=[other], routes=routes)
        (budget,) = proxy.service.accountant._budgets.values()
        budget.free = 1
        client = await proxy.connect()
        for number, target in enumerate(("/", "/other", "/", "/other")):
            self.assertEqual((await client.get(target)).body, b"ok")
            self.assertEqual(len(origin.ends), number + 1)
        self.assertEqual(proxy.pooled()["not_kept"], {"evicted": 2})


class StaleTests(TestCase):
    """A request on a used connection that is lost: sent again once, where that does no harm."""

    timeout = TIMEOUT

    async def ask(
        self, sent: bytes, *scripts: Any, **more: Any
    ) -> tuple[Origin, HttpProxy, Message]:
        """Requests of one client: the first makes the connection used, the second is ``sent``."""
        origin = await start_origin(self, *scripts)
        proxy = start_http(self, origin, **more)
        client = await proxy.connect()
        await client.get("/first")
        client.send(sent)
        response = await client.response()
        await proxy.at_rest()
        return origin, proxy, response

    async def test_what_may_be_sent_again(self) -> None:
        for method in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"):
            for loss in (CLOSE, RESET):
                for sent in (request(method, "/x"), request(method, "/x", b"")):
                    empty = head("Content-Length: 0", "X: y")
                    origin, proxy, response = await self.ask(sent, [OK, loss], [empty])
                    self.assertEqual((response.status, response["X"]), (200, "y"), method)
                    self.assertEqual(
                        [each.target for each in origin.requests], ["/first", "/x", "/x"]
                    )
                    self.assertEqual((proxy.stats["repeated"], proxy.stats["failed"]), (1, {}))
                    self.assertEqual(proxy.entries[1].reused, False)

    async def test_what_may_not(self) -> None:
        for sent in (
            request("POST", "/x"),
            request("POST", "/x", b""),
            request("PATCH", "/x"),
            request("get", "/x"),
            request("PUT", "/x", b"body"),
            request("PUT", "/x", None, "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n",
        ):
            for loss in (CLOSE, RESET):
                origin, proxy, response = await self.ask(sent, [OK, loss], [OK], reuse="always")
                self.assertEqual(response.status, 502, sent)
                self.assertIn("error=connection_terminated", response["Proxy-Status"])
                self.assertEqual(len(origin.requests), 2)
                self.assertEqual(proxy.stats["repeated"], 0)

    async def test_not_when_it_has_begun_to_answer(self) -> None:
        for part in (b"H", OK[:-3], head(status="102 Processing")):
            origin = await start_origin(self, [OK, last(part)], [OK])
            proxy = start_http(self, origin)
            client = await proxy.connect()
            await client.get()
            response = await client.get()
            if response.status == 102:
                response = await client.response()
            self.assertEqual(response.status, 502, part)
            self.assertEqual(len(origin.requests), 2)

    async def test_not_twice(self) -> None:
        origin, proxy, response = await self.ask(request("GET", "/x"), [OK, CLOSE], [CLOSE])
        self.assertEqual(response.status, 502)
        self.assertEqual(len(origin.requests), 3)
        self.assertEqual(proxy.stats["repeated"], 1)

    async def test_on_a_new_connection_though_others_lie_there(self) -> None:
        """They may be as dead as the first."""
        origin = await start_origin(self, [OK, CLOSE], [OK, CLOSE], [OK])
        proxy = start_http(self, origin)
        clients = [await proxy.connect() for _ in range(2)]
        for client in clients:
            client.ask()
        for client in clients:
            await client.response()
        await until(lambda: proxy.pooled()["idle"] == 2)
        self.assertEqual((await clients[0].get("/x")).body, b"ok")
        self.assertEqual(len(origin.ends), 3)

    async def test_though_there_is_no_room_beside_it(self) -> None:
        _, _, response = await self.ask(
            request("GET", "/x"), [OK, CLOSE], [OK], max_connections=1, queue=0
        )
        self.assertEqual(response.body, b"ok")

    async def test_another_backend_will_do(self) -> None:
        """The first one listens no more."""
        first = await start_origin(self, [OK, CLOSE])
        second = await start_origin(self, [OK])
        proxy = start_http(self, first, second)
        client = await proxy.connect()
        for _ in range(2):  # one for each
            await client.get()
        for _ in range(4):
            self.assertEqual((await client.get()).body, b"ok")

    async def test_a_request_of_which_nothing_was_written(self) -> None:
        """Whatever it is, with all of its body: the connection was known to be dead by then."""
        origin = await start_origin(self, [answer(b"ok", "WWW-Authenticate: NTLM")], [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        await client.get()
        side = await proxy.served_by()
        side.private.readConnectionLost()
        side.dataReceived(request("POST", "/x", b"the body"))
        await until(lambda: len(origin.requests) == 2)
        self.assertEqual(origin.requests[1].body, b"the body")
        self.assertEqual((await client.response()).body, b"ok")

    async def test_the_log_says_nothing_of_a_loss_that_was_mended(self) -> None:
        lines = hear(self)
        await self.ask(request("GET", "/x"), [OK, CLOSE], [OK])
        self.assertEqual([line for line in lines if "closed" in line], [])


class HygieneTests(TestCase):
    """No byte of what a backend sends for one client gets to another."""

    timeout = TIMEOUT

    async def test_more_than_an_answer(self) -> None:
        """In one piece with it: then its connection is given up."""
        lines = hear(self)
        for reply in (
            OK + answer(b"poison"),
            OK + b"x",
            head("Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n" + answer(b"poison"),
            head(status="204 No Content") + b"poison",
        ):
            origin = await start_origin(self, [reply], [OK])
            proxy = start_http(self, origin)
            first, second = await proxy.connect(), await proxy.connect()
            self.assertIn((await first.get()).body, (b"ok", b""))
            self.assertEqual((await second.get()).body, b"ok")
            self.assertEqual((await first.get()).body, b"ok")
            self.assertEqual((len(origin.ends), first.take_rest()), (2, b""))
            self.assertIn("bytes after its answer had ended", lines[-1])

    async def test_a_body_for_head(self) -> None:
        origin = await start_origin(self, [answer(b"poison")], [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.ask("HEAD")
        await client.response("HEAD")
        self.assertEqual((await client.get()).body, b"ok")
        self.assertEqual(len(origin.ends), 2)

    async def test_bytes_that_nobody_asked_for(self) -> None:
        lines = hear(self)
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.ask()
        served = await origin.accepted()
        await served.request()
        served.send(OK)
        await client.response()
        await proxy.at_rest()
        served.send(answer(b"poison"))
        self.assertTrue(await served.lost())
        await until(lambda: not proxy.pooled()["idle"])
        self.assertIn("bytes that nobody had asked for", lines[-1])
        client.ask()
        again = await origin.accepted()
        await again.request()
        again.send(OK)
        self.assertEqual((await client.response()).body, b"ok")

    async def test_and_a_request_that_comes_with_them(self) -> None:
        """From that moment on nobody is given that connection, though it is not closed yet."""
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        await client.get()
        await proxy.at_rest()
        side = await proxy.served_by()
        (upstream,) = proxy.cluster.backends[origin.address].shelf.free
        upstream.dataReceived(answer(b"poison"))
        side.dataReceived(request("POST", "/", b"body"))
        self.assertEqual((await client.response()).body, b"ok")
        self.assertEqual(len(origin.ends), 2)

    async def test_an_answer_before_the_question_is_at_its_end(self) -> None:
        """The rest of the one would be the beginning of the next."""
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(request("POST", "/", b"0123456789")[:-5])
        served = await origin.accepted()
        await served.request_head()
        served.send(OK)
        await client.response()
        await served.lost()
        self.assertEqual(proxy.pooled()["idle"], 0)


class PrivateTests(TestCase):
    """NTLM and Negotiate authenticate a connection: nobody else may ever have it."""

    timeout = TIMEOUT

    async def start(self, *lines: str, scheme: str = "NTLM") -> None:
        """One client has one connection, and it is private."""

        def step(end: Any, asked: Message) -> None:
            self.ends.append(end)
            wanted = f"WWW-Authenticate: {scheme} abc" if scheme else "X: y"
            end.send(answer(asked.target.encode(), wanted, status="401 Unauthorized"))

        self.ends: list[Any] = []
        self.origin = await start_origin(self, [step])
        other = Cluster("other", (Backend(self.origin.address),))
        routes = [HttpRoute(path="/other", cluster="other")]
        self.proxy = start_http(self, self.origin, others=[other], routes=routes)
        self.client = await self.proxy.connect()
        await self.client.get("/", *lines)

    async def test_it_stays_with_its_client(self) -> None:
        await self.start()
        other = await self.proxy.connect()
        for _ in range(3):
            await other.get("/theirs")
            await self.client.get("/mine")
        mine, theirs = self.origin.ends
        self.assertEqual(self.ends, [mine, theirs, mine, theirs, mine, theirs, mine])
        self.assertEqual(self.proxy.pooled()["not_kept"], {"authenticated": 2})
        self.assertEqual(self.proxy.pooled()["idle"], 0)

    async def test_by_what_the_client_says_alone(self) -> None:
        """It keeps nothing for itself, and nobody gets what may be somebody's: it is closed."""
        await self.start("Authorization: Negotiate abc", scheme="")
        await self.origin.ends[0].lost()
        other = await self.proxy.connect()
        await other.get()
        await self.client.get()
        self.assertEqual(self.ends, [self.origin.ends[n] for n in (0, 1, 1)])

    async def test_basic_and_bearer_are_for_a_request(self) -> None:
        for scheme in ("Basic", "Bearer"):
            await self.start(f"Authorization: {scheme} abc", scheme=scheme)
            other = await self.proxy.connect()
            await other.get()
            self.assertEqual(len(self.origin.ends), 1)

    async def test_a_post_goes_there_as_well(self) -> None:
        await self.start()
        self.proxy.clock.advance(20)
        self.client.ask("POST", "/post", b"body")
        self.assertEqual((await self.client.response()).body, b"/post")
        self.assertEqual(len(self.origin.ends), 1)

    async def test_it_is_closed_with_its_client_s(self) -> None:
        for leave in ("close", "reset"):
            await self.start()
            getattr(self.client, leave)()
            await until(lambda: not self.origin.open)
            await self.proxy.empty()

    async def test_also_when_the_client_s_is_not_kept(self) -> None:
        await self.start("Connection: close")
        await self.client.nothing_more()
        await until(lambda: not self.origin.open)

    async def test_when_the_backend_closes_it(self) -> None:
        await self.start()
        self.origin.ends[0].close()
        await until(lambda: not self.proxy.leftovers()["connections"])
        self.assertEqual((await self.client.get("/again")).body, b"/again")
        self.assertEqual(len(self.origin.ends), 2)

    async def test_when_it_is_lost_under_a_request(self) -> None:
        """Late in the life of the client's connection, too."""

        def step(end: Any, asked: Message) -> None:
            if len(self.origin.requests) == 2:
                end.close()
            else:
                end.send(answer(b"ok", "WWW-Authenticate: NTLM", status="401 Unauthorized"))

        self.origin = await start_origin(self, [step])
        proxy = start_http(self, self.origin)
        client = await proxy.connect()
        await client.get()
        proxy.clock.advance(50)
        self.assertEqual((await client.get()).body, b"ok")

    async def test_of_several_clusters(self) -> None:
        """Each connection that is the client's alone ends with it."""
        await self.start()
        await self.client.get("/other")
        await self.client.get("/")
        await self.client.get("/other")
        await turns()
        self.client.close()
        await until(lambda: not self.origin.open)
        await self.proxy.empty()

    async def test_its_time_is_logged(self) -> None:
        await self.start()

        def slow(end: Any, asked: Message) -> None:
            self.proxy.clock.advance(2)
            end.send(OK)

        self.origin.ends[0]._script = [slow]
        await self.client.get("/mine")
        self.assertEqual([each.seconds for each in self.proxy.entries], [0.0, 2.0])
