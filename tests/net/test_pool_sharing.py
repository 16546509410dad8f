"""proxykit.net.pool: why a request got a new connection, and why one is not kept."""

from __future__ import annotations

from typing import Any

from proxykit.core import sharing
from proxykit.model import Address, Backend
from proxykit.model import Pool as PoolConfig
from proxykit.net.closing import resets
from tests.core import address, backends
from tests.net.pools import ALWAYS, NEVER, NO_PORT, SAFE, PoolTestCase
from tests.net.test_pool_introduced import IntroducedHouse, client


class OwnTests(PoolTestCase):
    """Why one was opened."""

    def own(self) -> Any:
        return self.house.pool.snapshot("web")["own"]

    def test_none_idle(self) -> None:
        """There was none yet, or all were in use."""
        first, second = self.house.served(), self.house.served()
        self.assertEqual((first.socket.own, second.socket.own), ("none-idle", "none-idle"))
        self.assertEqual(self.own(), {"none-idle": 2})

    def test_ready_at_once(self) -> None:
        self.house.connector.script(address(1), True)
        self.assertEqual(self.house.ask().socket.own, "none-idle")
        self.assertEqual(self.own(), {"none-idle": 1})

    def test_a_hit_counts_nothing(self) -> None:
        (socket,) = self.house.idle()
        before = self.own()
        for _ in range(3):
            self.house.ask().finish()
        self.assertEqual((self.own(), socket.own), (before, "none-idle"))

    def test_stale(self) -> None:
        house = self.use(pool=SAFE)
        house.idle()
        house.wait(2)
        request = house.served(repeatable=False)
        self.assertEqual(request.socket.own, "stale")
        self.assertEqual(self.own(), {"none-idle": 1, "stale": 1})

    def test_not_stale_where_any_will_do(self) -> None:
        house = self.use(pool=ALWAYS)
        (socket,) = house.idle()
        house.wait(2)
        self.assertIs(house.ask(repeatable=False).socket, socket)

    def test_stale_and_no_room_for_a_new_one(self) -> None:
        """It gets the one that is there, so nothing was opened."""
        for settings in ({"max_connections": 1}, {"ports": 1}):
            house = self.use(pool=SAFE, **settings)
            (socket,) = house.idle()
            house.wait(2)
            self.assertIs(house.ask(repeatable=False).socket, socket)
            self.assertEqual(self.own(), {"none-idle": 1})
        house = self.use(pool=SAFE)
        house.idle()
        house.wait(2)
        house.ask(repeatable=False)
        house.refuse(error=NO_PORT)
        self.assertEqual(self.own(), {"none-idle": 1})

    def test_policy(self) -> None:
        house = self.use(pool=NEVER)
        for fresh in (False, True):
            self.assertEqual(house.served(fresh=fresh).socket.own, "policy")

    def test_lost(self) -> None:
        house = self.house
        house.idle(2)
        request = house.ask()
        request.lose()
        house.connect()
        self.assertEqual(request.socket.own, "lost")
        self.assertEqual(self.own(), {"none-idle": 2, "lost": 1})

    def test_introduced(self) -> None:
        """Those that lie idle speak for others; one's own is as any other."""
        self.house = house = IntroducedHouse(proxy_protocol="v2", pool=SAFE)
        house.idle(of=1)
        request = house.served(of=2)
        self.assertEqual(request.socket.own, "introduced")
        house.wait(2)
        self.assertEqual(house.served(of=1, repeatable=False).socket.own, "stale")
        self.assertEqual(self.own(), {"none-idle": 1, "introduced": 1, "stale": 1})

    def test_for_nobody(self) -> None:
        """One that was opened for a request which then took another has its reason, too."""
        house = self.house
        first, second = house.served(), house.ask()
        first.finish()
        self.assertIs(second.socket, first.socket)
        self.assertEqual(self.own(), {"none-idle": 1})
        self.assertEqual(house.connect().own, "none-idle")
        self.assertEqual(self.own(), {"none-idle": 2})

    def test_not_one_that_failed(self) -> None:
        self.house.ask()
        self.house.refuse()
        self.assertEqual(self.own(), {})


class NotKeptTests(PoolTestCase):
    """Why one is not there any more."""

    def assert_left(self, socket: Any, reason: str, cluster: str = "web") -> None:
        self.assertEqual(socket.not_kept, reason)
        shown = self.house.pool.snapshot(cluster)["not_kept"]
        self.assertEqual(shown, {reason: 1})
        self.house.turn()
        self.assertEqual(self.house.pool.snapshot(cluster)["not_kept"], shown)

    def test_in_the_pool(self) -> None:
        """As long as somebody may have it there is no reason."""
        (socket,) = self.house.idle()
        self.assertEqual(socket.not_kept, "")
        request = self.house.ask()
        self.assertEqual(socket.not_kept, "")
        request.finish()
        self.assertEqual(self.house.pool.snapshot("web")["not_kept"], {})

    def test_closed(self) -> None:
        """By the backend, while nobody used it, or somebody did."""
        (socket,) = self.house.idle()
        socket.close()
        self.assert_left(socket, "closed")
        house = self.use()
        request = house.served()
        socket = request.socket
        request.lose()
        self.assert_left(socket, "closed")

    def test_the_first_reason_counts(self) -> None:
        request = self.house.served()
        for reason in (sharing.UPGRADED, sharing.BROKEN):
            self.house.pool.retire(request.socket, reason)
        self.assert_left(request.socket, "upgraded")
        request.end().end()
        request.socket.close()
        self.assert_left(request.socket, "upgraded")

    def test_expired(self) -> None:
        (socket,) = self.house.idle()
        self.house.wait(40)
        self.assert_left(socket, "expired")

    def test_pool_full(self) -> None:
        self.use(pool=PoolConfig(max_idle=0))
        (socket,) = self.house.idle()
        self.assert_left(socket, "pool-full")

    def test_policy(self) -> None:
        self.use(pool=NEVER)
        (socket,) = self.house.idle()
        self.assert_left(socket, "policy")

    def test_evicted(self) -> None:
        """For the port of another cluster's, when it is asked for, or when it comes free."""
        house = self.use(ports=1)
        other = house.cluster("other", *backends(1))
        (socket,) = house.idle()
        house.ask(other)
        self.assert_left(socket, "evicted")
        house = self.use(ports=1)
        other = house.cluster("other", *backends(1))
        request = house.served()
        house.ask(other)
        request.finish()
        self.assert_left(request.socket, "evicted")

    def test_evicted_for_its_place(self) -> None:
        """Who waits can do nothing with it: it must have a new one."""
        house = self.use(max_connections=1)
        request = house.served()
        house.ask(fresh=True)
        request.finish()
        self.assert_left(request.socket, "evicted")

    def test_stopped(self) -> None:
        (socket,) = self.house.idle()
        self.house.pool.close()
        self.assert_left(socket, "stopped")
        house = self.use()
        house.pool.close()
        (socket,) = house.idle()
        self.assert_left(socket, "stopped")

    def test_the_client_left(self) -> None:
        self.house = house = IntroducedHouse(proxy_protocol="v2")
        (socket,) = house.idle(of=1)
        house.pool.left(client(1))
        self.assert_left(socket, "client-left")


class ExplainTests(PoolTestCase):
    """What a connection says of the request that it serves."""

    def test_the_first_one(self) -> None:
        found = self.house.served().socket.explain()
        self.assertEqual(found, {**sharing.explained("l7", False, "none-idle"), "used": 0})

    def test_a_later_one(self) -> None:
        self.house.idle()
        for used in (1, 2):
            request = self.house.ask()
            found = request.socket.explain()
            self.assertEqual((found["shared"], found["reason"]), (True, "reused"))
            self.assertEqual(found["used"], used)
            request.finish()

    def test_one_that_is_not_kept(self) -> None:
        self.house.idle()
        request = self.house.ask()
        self.house.pool.retire(request.socket, sharing.AUTHENTICATED)
        found = request.socket.explain()
        self.assertEqual((found["shared"], found["reason"]), (False, "authenticated"))
        self.assertEqual(found["used"], 1)
        request.abandon()


class ResetTests(PoolTestCase):
    """How connections are to be closed is known where they lie."""

    def test_as_the_cluster_has_it(self) -> None:
        for close, wanted in (("fin", False), ("reset", True)):
            house = self.use(close=close)
            (socket,) = house.idle()
            self.assertEqual(socket.shelf.resets, wanted)

    def test_a_unix_socket_leaves_nothing_behind(self) -> None:
        house = self.use(Backend(Address("/tmp/b", 0)), close="reset")
        (backend,) = house.web.backends.values()
        self.assertFalse(resets(backend))
