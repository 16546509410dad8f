"""proxykit.net.pool and connector: connections that begin with a header speak for one client."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxykit.core.choice import Attempt, Choice
from proxykit.core.introduction import introductions
from proxykit.errors import ProxyError
from proxykit.model import ConnInfo
from proxykit.model import Pool as PoolConfig
from tests.core import backends
from tests.modes.test_introduced import ID, header, over
from tests.net.pools import ALWAYS, NO_PORT, SAFE, PoolHouse, PoolTestCase, Request, Socket
from tests.net.test_connector import Bench, Plain
from tests.net.test_pool_machine import IDLE_TIMEOUT, PoolMachine
from tests.sockets import TIMEOUT, start_backend, turns, until

SERVER = ("198.51.100.9", 443)
SAID = header("v2", ("192.0.2.1", 4711), SERVER)


def client(number: int, *tlvs: tuple[int, bytes]) -> ConnInfo:
    """One of many."""
    ends = (IPv4Address("TCP", *end) for end in ((f"192.0.2.{number}", 4711), SERVER))
    return ConnInfo(number, "front", *ends, tlvs=tlvs)


def said_of(info: ConnInfo, version: str = "v2") -> bytes:
    """What a connection for it begins with."""
    ends = ((end.host, end.port) for end in (info.client, info.server))  # type: ignore[union-attr]
    return header(version, *ends, *(info.tlvs if version == "v2" else ()))


class IntroducedHouse(PoolHouse):
    """A house where whose requests they are matters."""

    info = client(1)

    def choice(self, *what: Any) -> Choice:  # type: ignore[override]
        choice: Choice = super().choice(*what)
        choice.info = self.info
        return choice

    def ask(self, cluster: Any = None, *, of: ConnInfo | int = 1, **how: Any) -> Request:  # type: ignore[override]
        """A request of this client's."""
        self.info = client(of) if isinstance(of, int) else of
        return super().ask(cluster, **how)

    def left(self, number: int) -> None:
        """A client is gone."""
        self.pool.left(client(number))

    def check(self) -> None:
        """What is kept by introductions is what is there."""
        super().check()
        introduced: dict[bytes, set[Any]] = {}
        for socket in self.sockets:
            version = socket.shelf.backend.cluster.config.proxy_protocol
            assert bool(socket.introduction) == bool(version)
            assert socket.introduction == socket.opening.introduction
            if version:
                introduced.setdefault(socket.introduction, set()).add(socket)
        assert {said: set(each) for said, each in self.pool._introduced.items()} == introduced
        for shelf in self.pool._shelves.values():
            assert shelf.idle == sum(not socket.in_use for socket in shelf.free)
            if not shelf.introduces:
                assert shelf.free_of == {}
                continue
            by_name: dict[bytes, list[Any]] = {}
            for socket in shelf.free:
                by_name.setdefault(socket.introduction, []).append(socket)
            assert {said: list(each) for said, each in shelf.free_of.items()} == by_name


class IntroducedTestCase(PoolTestCase):
    house: IntroducedHouse

    def use(self, *config: Any, **settings: Any) -> IntroducedHouse:  # type: ignore[override]
        settings.setdefault("proxy_protocol", "v2")
        self.house = IntroducedHouse(*config, **settings)
        return self.house

    def assert_closed(self, *sockets: Any) -> None:
        """Of all there are, these are closed, or about to be."""
        known = {each.socket for each in self.house.requests if each.socket is not None}
        self.assertEqual({each for each in known if each.closing}, set(sockets))


class WhoseTests(IntroducedTestCase):
    """Who may have a connection that was there before: whom it was opened for."""

    def test_ones_own(self) -> None:
        house = self.house
        first, second = house.served(of=1), house.served(of=2)
        for request in (first, second):
            self.assertEqual(request.socket.introduction, said_of(request.choice.info))
            request.finish()
        again = [house.ask(of=1), house.ask(of=2)]
        self.assertEqual([each.socket for each in again], [first.socket, second.socket])
        self.assertTrue(all(each.at_once for each in again))
        self.assert_books(0, 2, 0)

    def test_nobody_elses(self) -> None:
        """Whatever lies there, and however it may be used again."""
        for pool in (SAFE, ALWAYS):
            house = self.use(pool=pool)
            house.idle(3, of=1)
            request = house.ask(of=2)
            self.assertFalse(request.at_once)
            house.connect()
            self.assertEqual(request.socket.introduction, said_of(client(2)))
            self.assert_books(0, 1, 3)

    def test_the_newest_of_ones_own(self) -> None:
        house = self.house
        first, second = house.idle(2, of=1)
        house.idle(1, of=2)
        self.assertEqual([house.ask(of=1).socket for _ in "ab"], [second, first])

    def test_of_one_who_says_the_same(self) -> None:
        """It is the header that counts: for another one of which it says the same it will do."""
        for version, alike in (("v1", True), ("v2", False)):
            house = self.use(proxy_protocol=version)
            (socket,) = house.idle(1, of=client(1))
            self.assertEqual(socket.introduction, said_of(client(1), version))
            self.assertEqual(house.ask(of=client(1, ID)).at_once, alike)
        (socket,) = self.use().idle(1, of=1)
        twin = ConnInfo(99, "other", *(getattr(client(1), end) for end in ("client", "server")))
        self.assertIs(self.house.ask(of=twin).socket, socket)

    def test_each_version_on_its_own(self) -> None:
        """And a cluster without knows nobody: there everybody shares."""
        house = self.house
        older = house.cluster("older", *backends(1), proxy_protocol="v1")
        bare = house.cluster("bare", *backends(1))
        sockets = [house.idle(cluster=each, of=1)[0] for each in (house.web, older, bare)]
        self.assertEqual(
            [socket.introduction for socket in sockets],
            [said_of(client(1)), said_of(client(1), "v1"), b""],
        )
        asked = [house.ask(each, of=2).socket for each in (house.web, older, bare)]
        self.assertEqual(asked, [None, None, sockets[2]])
        house.left(1)
        self.assert_closed(*sockets[:2])

    def test_safe(self) -> None:
        """What cannot be repeated goes on an old one where there is no room for a new one."""
        house = self.use(max_connections=2)
        (socket,) = house.idle(1, of=1)
        house.wait(2)
        self.assertFalse(house.ask(of=1, repeatable=False).at_once)
        request = house.ask(of=1, repeatable=False)
        self.assertIs(request.socket, socket)

    def test_one_that_was_lost(self) -> None:
        """The next is a new one for the same client, though others lie there."""
        house = self.house
        house.idle(1, of=2)
        house.idle(1, of=1)
        request = house.ask(of=1)
        stale = request.socket
        request.lose()
        house.connect()
        self.assertIsNot(request.socket, stale)
        self.assertEqual(request.socket.introduction, said_of(client(1)))
        self.assertEqual(request.used, 0)

    def test_what_comes_free_is_not_for_those_who_wait_for_another(self) -> None:
        house = self.house
        first = house.served(of=1)
        second = house.ask(of=2)
        first.finish()
        self.assertTrue(second.waiting)
        house.connect()
        self.assertEqual(second.socket.introduction, said_of(client(2)))

    def test_the_kernel_has_no_port(self) -> None:
        """Then one's own will do, and nobody else's."""
        house = self.house
        first, other = house.served(of=1), house.served(of=2)
        waiting = [house.ask(of=1), house.ask(of=3)]
        for each in (first, other):
            each.finish()
        house.refuse(error=NO_PORT)
        house.refuse(error=NO_PORT)
        self.assertIs(waiting[0].socket, first.socket)
        self.assertIs(waiting[1].error, NO_PORT)


class LeavingTests(IntroducedTestCase):
    """A client that has left needs none of its own, and nobody else can use them."""

    def test_its_idle_ones(self) -> None:
        house = self.use(*backends(1, 1))
        mine = [house.served(of=1) for _ in range(4)]
        others = [house.served(of=2) for _ in range(2)]
        for request in (*mine[1:], *others):
            request.finish()
        self.assertEqual(
            {each.socket.shelf.backend for each in mine}, set(house.web.backends.values())
        )
        house.left(1)
        self.assert_closed(*(each.socket for each in mine[1:]))
        house.turn()
        self.assert_books(0, 1, 2)
        mine[0].abandon()
        house.turn()
        self.assertEqual(list(house.pool._introduced), [said_of(client(2))])
        for number in (1, 3, 2):
            house.left(number)
        house.turn()
        self.assertEqual(house.pool._introduced, {})
        self.assert_books(0, 0, 0)
        self.assertEqual(len(house.deadlines), 0)

    def test_what_is_being_closed(self) -> None:
        """For somebody who waits for its place, or because its time has come."""
        house = self.use(max_connections=1)
        house.idle(1, of=1)
        waiting = house.ask(of=2)
        house.left(1)
        house.turn()
        house.connect()
        self.assertTrue(waiting.active)

    def test_what_is_being_opened(self) -> None:
        """It is given up though others wait: it would not say the right thing for them."""
        house = self.use(max_connections=2)
        first, second, third = (house.ask(of=number) for number in (1, 2, 3))
        opening = house.connector.under_way[0]
        first.leave()
        self.assertEqual(house.connector.cancelled, [opening])
        self.assertEqual(
            [each.introduction for each in house.connector.under_way],
            [said_of(client(2)), said_of(client(3))],
        )
        house.connect()
        house.connect()
        self.assertTrue(second.active)
        self.assertTrue(third.active)
        self.assertEqual(house.state(1).shelf.spare, {})

    def test_retired_lost_and_closed(self) -> None:
        house = self.house
        sockets = [house.idle(1, of=number)[0] for number in range(5)]
        sockets[0].go_away()
        sockets[0].close_idle()
        sockets[1].close()
        self.assertNotIn(said_of(client(0)), sockets[2].shelf.free_of)
        house.turn()
        busy = house.ask(of=2)
        house.ask(of=9)
        gone = house.pool.close()
        self.assertEqual(
            [each.introduction for each in house.connector.under_way], [said_of(client(9))]
        )
        house.connector.cancel(house.connector.under_way[0])
        self.assertNoResult(gone)
        busy.end().end()
        house.turn()
        self.successResultOf(gone)
        self.assertEqual((house.pool._introduced, sockets[2].shelf.free_of), ({}, {}))


class RoomTests(IntroducedTestCase):
    """What lies idle for one stands in nobody's way."""

    def test_the_oldest_makes_room(self) -> None:
        house = self.use(max_connections=3)
        oldest, newer, newest = (house.idle(1, of=number)[0] for number in (1, 2, 3))
        waiting = house.ask(of=4)
        self.assertTrue(waiting.choice.waiting)
        self.assert_closed(oldest)
        house.turn()
        house.connect()
        self.assertTrue(waiting.active)
        self.assertEqual(house.pool.snapshot("web")["not_kept"], {"evicted": 1})
        self.assertIs(house.ask(of=3).socket, newest)
        self.assertIs(house.ask(of=2).socket, newer)

    def test_everybody_at_once(self) -> None:
        """All of them are idle, and as many others come in one turn."""
        house = self.use(max_connections=3)
        for number in range(3):
            house.idle(1, of=number)
        waiting = [house.ask(of=number) for number in range(3, 9)]
        for _ in waiting:
            house.turn()
            while house.connector.under_way:
                house.connect()
            for request in waiting:
                if request.active:
                    request.finish()
        self.assertEqual([each.used for each in waiting], [0] * 6)
        self.assertEqual(
            [each.socket.introduction for each in waiting],
            [said_of(client(number)) for number in range(3, 9)],
        )

    def test_what_comes_free_while_others_wait(self) -> None:
        """First come, first served; its own next request waits behind them."""
        house = self.use(max_connections=1)
        first = house.served(of=1)
        waiting = [house.ask(of=number) for number in (2, 3)]
        first.finish()
        self.assertTrue(first.socket.closing)
        again = house.ask(of=1)
        self.assertTrue(again.choice.waiting)
        for request in (*waiting, again):
            house.turn()
            house.connect()
            self.assertTrue(request.active)
            request.finish()

    def test_ports(self) -> None:
        """Those of another cluster at the same address, with headers or without, are had, too."""
        for version in ("", "v1", "v2"):
            house = self.use(ports=2)
            other = house.cluster("other", *backends(1), proxy_protocol=version)
            idle = house.idle(2, of=1, cluster=other)
            waiting = house.ask(of=1)
            self.assertTrue(waiting.choice.waiting)
            self.assert_closed(idle[0])
            house.turn()
            house.connect()
            self.assertTrue(waiting.active)
            back = house.ask(other, of=2)
            self.assertEqual(back.at_once, version == "")


class IntroducedMachine(PoolMachine):
    """The same with clients that come and go; both clusters have headers, or one of them."""

    which, clients = PoolMachine.which, st.integers(1, 3)

    @initialize(
        reuse=st.sampled_from(("never", "safe", "always")),
        max_idle=st.sampled_from((None, None, 0, 1)),
        max_connections=st.integers(1, 3),
        ports=st.integers(1, 4),
        queue=st.integers(0, 4),
        capacity=st.sampled_from((1, 1, 2)),
        versions=st.sampled_from((("v2", "v2"), ("v2", ""), ("v1", "v2"))),
    )
    def start(self, versions: tuple[str, str], **how: Any) -> None:  # type: ignore[override]
        self.reuse = how["reuse"]
        pool = PoolConfig(self.reuse, how["max_idle"], IDLE_TIMEOUT)
        limits = {key: how[key] for key in ("max_connections", "queue")} | {"pool": pool}
        ours, theirs = versions
        self.house = house = IntroducedHouse(
            *backends(1, 1), ports=how["ports"], proxy_protocol=ours, **limits
        )
        self.other = house.cluster("other", *backends(1), proxy_protocol=theirs, **limits)
        house.capacity = how["capacity"]
        house.saw = self.given
        self.asked, self.no_port = 0, False
        self.wrong: list[object] = []

    def given(self, request: Request) -> None:
        """It speaks for this client; or for nobody, where that is not wanted."""
        super().given(request)
        if request.socket.introduction != self.said(request.choice):
            self.wrong.append((request, request.socket.introduction))

    def said(self, choice: Choice) -> bytes:
        version = choice.cluster.config.proxy_protocol
        return said_of(choice.info, version) if version else b""

    @rule(
        of=clients,
        other=st.booleans(),
        repeatable=st.booleans(),
        then=st.sampled_from(("stay", "stay", "finish", "lose", "leave")),
    )
    def ask(self, of: int, other: bool, repeatable: bool, then: str) -> None:  # type: ignore[override]
        self.asked += 1
        cluster = self.other if other else self.house.web
        request = self.house.ask(cluster, of=of, repeatable=repeatable)
        if then != "stay" and request.waiting:
            request.joined = partial(self.do, then, request)

    @rule(number=clients)
    def go(self, number: int) -> None:
        """A client leaves, whatever it waits for."""
        theirs = [each for each in self.house.requests if each.choice.info.id == number]
        for request in theirs:
            request.joined = None
            if request.waiting:
                request.leave()
            elif request.active and request.socket.capacity == 1 and not request.socket.closing:
                request.abandon()
            elif request.active:
                request.finish()
        self.house.left(number)
        gone = introductions(client(number))
        assert not [socket for socket in self.idle if socket.introduction in gone]

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        """Room for one of its own, or the place of somebody else's idle one."""
        if any(socket.closing for socket in self.house.sockets):
            return
        for choice in (request.choice for request in self.waiting):
            for backend in choice.cluster.backends.values() if choice.waiting else ():
                if backend not in choice.tried:
                    self.nothing_is_left(choice, backend)

    def slots(self, backend: Any) -> list[Socket]:
        return [] if backend.cluster.config.proxy_protocol else super().slots(backend)


class IntroducedMachineTests(SynchronousTestCase):
    def test_all(self) -> None:
        run_state_machine_as_test(
            IntroducedMachine,
            settings=settings(deadline=None, max_examples=300, stateful_step_count=50),
        )


class ProtocolTests(TestCase):
    """Whatever an upstream's protocol does in the moment in which it is connected."""

    timeout = TIMEOUT

    async def start(self) -> Bench:
        self.backend = await start_backend(self)
        return Bench(self, self.backend.address, proxy_protocol="v2")

    def choose(self, bench: Bench, protocol: Any = Plain) -> Deferred[Attempt]:
        """One upstream choice of a client that there is something to say of."""
        got = bench.flow.upstream(Choice(bench.cluster, client(1), bench.connector, protocol))
        assert isinstance(got, Deferred)
        return got

    async def test_it_speaks_at_once(self) -> None:
        class Talkative(Plain):
            def connectionMade(self) -> None:
                self.transport.write(b"EHLO")  # type: ignore[union-attr]
                super().connectionMade()

        bench = await self.start()
        attempt = await self.choose(bench, Talkative)
        served = await self.backend.accepted()
        await served.got(SAID + b"EHLO")
        attempt.upstream.transport.loseConnection()
        await served.ended()
        await served.got(SAID + b"EHLO")
        await until(lambda: bench.books == (0, 0, 0, 0))

    async def test_it_raises(self) -> None:
        class Broken(Plain):
            def connectionMade(self) -> None:
                raise RuntimeError("oops")

        def none_at_all(attempt: Attempt) -> Any:
            raise RuntimeError("oops")

        for broken in (Broken, none_at_all):
            bench = await self.start()
            with self.assertRaises(ProxyError):
                await self.choose(bench, broken)
            await over(await self.backend.accepted())
            self.assertEqual(bench.books, (0, 0, 0, 0))
            self.assertTrue(self.flushLoggedErrors(RuntimeError))

    async def test_cancelled_at_once(self) -> None:
        """Nobody is told of somebody who has left again."""
        bench = await self.start()
        got = self.choose(bench)
        got.cancel()
        with self.assertRaises(CancelledError):
            await got
        await turns(20)
        self.assertEqual(bench.books, (0, 0, 0, 0))
        self.assertEqual([bytes(end.received) for end in self.backend.ends if end.received], [])

    async def test_cancelled_before_it_is_ready(self) -> None:
        class Unready(Plain):
            def connectionMade(self) -> None:
                """It would have more to do first."""

        bench = await self.start()
        got = self.choose(bench, Unready)
        served = await self.backend.accepted()
        await served.got(SAID)
        got.cancel()
        with self.assertRaises(CancelledError):
            await got
        await over(served)
        self.assertEqual([bytes(end.received) for end in self.backend.ends], [SAID])
        await until(lambda: bench.books == (0, 0, 0, 0))
