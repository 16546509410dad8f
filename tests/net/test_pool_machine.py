"""proxykit.net.pool: whatever happens, in any order, the books are true and nobody is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from proxykit.errors import Retry
from proxykit.model import Pool as PoolConfig
from proxykit.net.pool import FRESH
from proxykit.upkeep import Eject
from tests.core import backends, refusal
from tests.net.pools import NO_PORT, PoolHouse, Request, Socket

IDLE_TIMEOUT = 8.0


class PoolMachine(RuleBasedStateMachine):
    """Requests to two clusters that share an address, and all that can become of them."""

    which = st.integers(0, 100)

    @initialize(
        reuse=st.sampled_from(("never", "safe", "always")),
        max_idle=st.sampled_from((None, None, 0, 1)),
        max_connections=st.integers(1, 3),
        ports=st.integers(1, 4),
        queue=st.integers(0, 4),
        capacity=st.sampled_from((1, 1, 2)),
    )
    def start(
        self,
        reuse: str,
        max_idle: int | None,
        max_connections: int,
        ports: int,
        queue: int,
        capacity: int,
    ) -> None:
        pool = PoolConfig(reuse, max_idle, IDLE_TIMEOUT)
        limits: dict[str, Any] = {"pool": pool, "max_connections": max_connections, "queue": queue}
        # Nobody is left alone for what fails here: it is about slots.
        limits |= {"eject": Eject(failures=0), "slow_start": 0.0, "retry_budget": 1.0}
        self.house = PoolHouse(*backends(1, 1), ports=ports, **limits)
        self.other = self.house.cluster("other", *backends(1), **limits)
        self.house.capacity = capacity
        self.house.saw = self.given
        self.reuse = reuse
        self.asked = 0
        self.no_port = False
        self.wrong: list[object] = []

    def given(self, request: Request) -> None:
        """A request was given a connection: was it one that it may have?

        What is raised here would be lost in its Deferred.
        """
        socket, choice, backend = request.socket, request.choice, request.backend
        may = not socket.closing and not socket.closed and 0 < socket.in_use <= socket.capacity
        if self.reuse == "never" or (choice.fresh and socket.capacity == 1):
            may &= not request.used
        if self.reuse == "safe" and not choice.repeatable and request.used:
            # One that was opened within the last second is as good as one that answered.
            seconds = self.house.clock.seconds() - max(socket.answered, socket.opened)
            may &= seconds <= FRESH or not self.has_room(backend) or self.no_port
        if not may:
            self.wrong.append((request, socket))

    def has_room(self, backend: Any) -> bool:
        """Whether a new connection to it could be opened, as the books have it."""
        budget = self.house.accountant.budgets(backend.address)[0]
        return backend.connections < backend.cluster.config.max_connections and budget.free > 0

    def pick(self, things: Sequence[Any], number: int) -> Any:
        return things[number % len(things)] if things else None

    @property
    def active(self) -> list[Request]:
        return [request for request in self.house.requests if request.active]

    @property
    def waiting(self) -> list[Request]:
        return [request for request in self.house.requests if request.waiting]

    @property
    def idle(self) -> list[Socket]:
        return [socket for socket in self.house.sockets if not (socket.in_use or socket.closing)]

    @rule(
        other=st.booleans(),
        repeatable=st.booleans(),
        then=st.sampled_from(("stay", "stay", "finish", "lose", "leave")),
    )
    def ask(self, other: bool, repeatable: bool, then: str) -> None:
        """One more; what it does ``then``, it does in the moment in which it has a connection."""
        self.asked += 1
        request = self.house.ask(self.other if other else self.house.web, repeatable=repeatable)
        if then != "stay" and request.waiting:
            request.joined = partial(self.do, then, request)

    def do(self, then: str, request: Request) -> None:
        request.joined = None
        if then == "finish":
            request.finish()
        elif then == "lose" and request.socket.in_use == 1:
            request.lose()
        elif then == "leave":
            # Its client fails, and with it another request.
            self.leave(0)

    @rule(number=which)
    def connect(self, number: int) -> None:
        if (count := len(self.house.connector.under_way)) > 0:
            self.house.connect(number % count)

    @rule(number=which, retry=st.sampled_from(Retry), proxy=st.booleans())
    def refuse(self, number: int, retry: Retry, proxy: bool) -> None:
        if (count := len(self.house.connector.under_way)) > 0:
            self.no_port = proxy
            self.house.refuse(number % count, NO_PORT if proxy else refusal(retry=retry))
            self.no_port = False

    @rule(number=which)
    def finish(self, number: int) -> None:
        if request := self.pick(self.active, number):
            request.finish()

    @rule(number=which)
    def abandon(self, number: int) -> None:
        request = self.pick(self.active, number)
        if request and request.socket.capacity == 1 and not request.socket.closing:
            request.abandon()

    @rule(number=which)
    def leave(self, number: int) -> None:
        if request := self.pick(self.waiting, number):
            request.leave()

    @rule(number=which, retry=st.sampled_from(Retry))
    def lose(self, number: int, retry: Retry) -> None:
        if socket := self.pick(self.house.sockets, number):
            self.house.lose(socket, retry)

    @rule(number=which)
    def go_away(self, number: int) -> None:
        socket = self.pick([each for each in self.house.sockets if not each.closing], number)
        if socket:
            socket.go_away()
            if not socket.in_use:
                socket.close_idle()

    @rule()
    def turn(self) -> None:
        self.house.turn()

    @rule(steps=st.integers(1, 16))
    def time(self, steps: int) -> None:
        self.house.wait(steps / 4)
        now = self.house.clock.seconds()
        for socket in self.idle:
            assert now - socket.answered <= IDLE_TIMEOUT * 9 / 8

    @invariant()
    def books(self) -> None:
        """One lease for each socket, one in flight for each request."""
        if not hasattr(self, "house"):
            return
        self.house.check()
        assert not self.wrong
        for page in self.house.accountant.snapshot():
            assert min(page[use] for use in ("reserved", "active", "idle", "free")) >= 0

    @invariant()
    def no_more_than_there_may_be(self) -> None:
        for socket in self.idle:
            assert socket.shelf.most >= sum(other.shelf is socket.shelf for other in self.idle)

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        """A slot, a connection that could be opened, or somebody else's idle one.

        What is closed is there when the turn has ended.
        """
        if any(socket.closing for socket in self.house.sockets):
            return
        for request in self.waiting:
            choice = request.choice
            if choice.waiting:
                for backend in choice.cluster.backends.values():
                    if backend not in choice.tried:
                        self.nothing_is_left(choice, backend)
            elif choice.repeatable and not choice.fresh:
                assert not self.slots(choice.attempt.backend)

    def slots(self, backend: Any) -> list[Socket]:
        """Its connections that have a slot free, as far as they may be shared."""
        return [
            socket
            for socket in self.house.sockets
            if socket.shelf.backend is backend
            and socket.in_use < socket.capacity
            and self.reuse != "never"
        ]

    def nothing_is_left(self, choice: Any, backend: Any) -> None:
        assert not self.has_room(backend)
        # One that must have a fresh connection, and found no room for it, has blocked the backend
        # also for those who could use a slot of one that is in use, and so cannot make room.
        fresh = self.house.capacity > 1 and any(each.choice.fresh for each in self.house.requests)
        if not choice.fresh and not fresh:
            assert not self.slots(backend)
        for socket in self.idle:
            if socket.shelf.key.address == backend.address:
                # It could be closed, and its port or its place be had.
                assert socket.shelf.backend is not backend
                assert backend.connections >= backend.cluster.config.max_connections

    def teardown(self) -> None:
        """When everybody goes about his business, all are served."""
        if not hasattr(self, "house"):
            return
        house = self.house
        rounds = 0
        while self.waiting or self.active:
            rounds += 1
            assert rounds <= 2 * self.asked + 2, "somebody waits for nothing"
            house.turn()
            while house.connector.under_way:
                house.connect()
            for request in self.active:
                request.finish()
            self.nobody_waits_for_what_is_there()
        while house.connector.under_way:
            house.connect()
        house.wait(IDLE_TIMEOUT * 9 / 8)
        house.check()
        assert house.uses() == (0, 0, 0)
        assert len(house.deadlines) == 0
        assert not any(len(cluster.queue) for cluster in house.registry)


class PoolMachineTests(SynchronousTestCase):
    def test_all(self) -> None:
        run_state_machine_as_test(
            PoolMachine,
            settings=settings(deadline=None, max_examples=400, stateful_step_count=50),
        )
