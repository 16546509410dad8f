"""A pool without sockets: requests ask flow for connections; a test says what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.accountant import Use
from proxykit.core.choice import Attempt, Choice
from proxykit.core.waiting import Full
from proxykit.errors import ProxyError, Retry, Side
from proxykit.model import Pool as PoolConfig
from proxykit.net.pool import Pool
from proxykit.net.shelf import Pooled
from proxykit.testing import FakeConnector
from tests.core import House, backends, refusal

#: What a connector says when the kernel has no port to give, whatever the book says.
NO_PORT = ProxyError(
    "connect to 10.0.0.1:80 failed: Cannot assign requested address",
    side=Side.PROXY,
    retry=Retry.ALWAYS,
    status=503,
    kind="connection_limit_reached",
)
NEVER, SAFE, ALWAYS = (PoolConfig(reuse=reuse) for reuse in ("never", "safe", "always"))


class Socket(Pooled):
    """A connection as the pool knows it.

    :ivar closing: whether it was told to close; it is closed at the end of the turn.
    :ivar reset: whether by a reset.
    :ivar closed: whether it is.
    """

    def __init__(self, house: PoolHouse, opening: Any) -> None:
        super().__init__()
        self.house = house
        self.opening = opening
        self.capacity = house.capacity
        self.idle_limit = house.idle_limit
        self.opened = house.clock.seconds()
        self.closing = self.closed = self.reset = False
        house.sockets.append(self)

    def close_idle(self) -> None:
        assert not self.in_use, "somebody uses it"
        assert not self.closing, "closed twice"
        self.closing = True

    def abort(self) -> None:
        assert not self.closing, "closed twice"
        self.closing = self.reset = True

    def close(self, tell: Callable[[], object] = lambda: None) -> None:
        """It is closed, whoever did that, and its lease given back.

        :param tell: who used it hears of it after that.
        """
        self.closed = True
        self.house.sockets.remove(self)
        self.house.pool.lost(self)
        tell()

    def go_away(self) -> None:
        """Its peer will take no more."""
        self.capacity = 0
        self.house.pool.retire(self)


class Sockets(FakeConnector):
    """As FakeConnector; an upstream that is ready at once is a socket."""

    def attempt(self, attempt: Any) -> bool | Full:
        got = super().attempt(attempt)
        if not isinstance(got, Full):
            attempt.lease = attempt.handle
            if got:
                attempt.upstream = attempt.protocol()
        return got

    def connect(self, opening: Any) -> Socket:
        """One that is under way is connected."""
        opening.lease = opening.handle
        socket: Socket = opening.protocol()
        self.succeed(opening, socket)
        return socket


class Request:
    """A request, as a mode sees it: it has a connection, waits for one, or has an error.

    :ivar at_once: whether no Deferred was needed.
    :ivar socket: what it was given.
    :ivar used: how many that one had served before.
    :ivar joined: called when it is given one.
    """

    joined: Callable[[], object] | None = None

    def __init__(self, house: PoolHouse, choice: Choice) -> None:
        self.house = house
        self.choice = choice
        self.backend: Any = None
        self._ask(house.flow.upstream(choice))

    def _ask(self, got: Attempt | Deferred[Attempt]) -> None:
        self.attempt: Attempt | None = None
        self.socket: Any = None
        self.error: BaseException | None = None
        self.at_once = isinstance(got, Attempt)
        if isinstance(got, Attempt):
            self._joined(got)
        else:
            self.result = got
            got.addCallbacks(self._joined, self._refused)

    def _joined(self, attempt: Attempt) -> None:
        self.attempt, self.socket, self.backend = attempt, attempt.upstream, attempt.backend
        self.used = self.socket.used - 1
        self.house.saw(self)
        if self.joined is not None:
            self.joined()

    def _refused(self, failure: Any) -> None:
        self.error = failure.value
        failure.trap(ProxyError, CancelledError)

    @property
    def active(self) -> bool:
        """Whether it has a connection now."""
        return self.attempt is not None

    @property
    def waiting(self) -> bool:
        """Whether it is to have one, or an error."""
        return self.attempt is None and self.error is None and self.socket is None

    def end(self) -> Attempt:
        """It is done with its connection, which is not told."""
        attempt, self.attempt = self.attempt, None
        assert attempt is not None
        return attempt

    def finish(self) -> None:
        """The answer has come; the connection could serve another."""
        attempt = self.end()
        self.house.pool.give_back(self.socket)
        attempt.end()

    def abandon(self) -> None:
        """Its client has left in the middle of it: nobody can use the connection any more."""
        self.socket.closing = True
        self.end().end()

    def lose(self, retry: Retry = Retry.REUSED_ONLY) -> None:
        """The connection is lost under it, and it asks for another."""
        attempt = self.end()
        self.socket.close(lambda: self._ask(self.house.flow.again(attempt, refusal("lost", retry))))

    def again(self, attempt: Attempt, error: ProxyError) -> None:
        """It asks for another connection, for that of this attempt was lost."""
        self._ask(self.house.flow.again(attempt, error))

    def leave(self) -> None:
        """Its client has left while it waits."""
        self.result.cancel()


class PoolHouse(House):
    """A house with a pool in it; one backend, unless a test wants others.

    :ivar sockets: those that are not closed.
    :ivar capacity: of those that are opened from now on; ``idle_limit``: theirs as well.
    :ivar saw: is told of each request that is given a connection.
    """

    saw: Callable[[Request], object] = staticmethod(lambda request: None)

    def __init__(self, *config: Any, **settings: Any) -> None:
        super().__init__(*config or backends(1), **settings)
        self.clock.advance(1000)
        self.connector = Sockets(self.accountant)
        self.pool = Pool(self.connector, self.deadlines)
        self.sockets: list[Socket] = []
        self.requests: list[Request] = []
        self.capacity = 1
        self.idle_limit: float | None = None

    def ask(
        self, cluster: Any = None, repeatable: bool = True, fresh: bool = False, pool: Any = None
    ) -> Request:
        """One request."""
        choice = self.choice(cluster, pool or self.pool)
        choice.protocol = lambda opening: Socket(self, opening)  # type: ignore[assignment, return-value]
        choice.shareable, choice.repeatable, choice.fresh = True, repeatable, fresh
        request = Request(self, choice)
        self.requests.append(request)
        return request

    def connect(self, number: int = 0) -> Socket:
        """What is being opened is connected."""
        return self.connector.connect(self.connector.under_way[number])

    def refuse(self, number: int = 0, error: ProxyError | None = None) -> None:
        """Or it is not."""
        self.connector.fail(self.connector.under_way[number], error or refusal())

    def served(self, **how: Any) -> Request:
        """A request that has a new connection, for it finds none it could use."""
        request = self.ask(**how)
        self.connect(-1)
        assert request.active
        return request

    def idle(self, count: int = 1, **how: Any) -> list[Socket]:
        """Connections that lie idle, the newest last."""
        requests = [self.served(**how) for _ in range(count)]
        for request in requests:
            request.finish()
        return [request.socket for request in requests]

    def lose(self, socket: Socket, retry: Retry = Retry.REUSED_ONLY) -> None:
        """A connection is lost, and those that use it ask for others."""
        using = [each for each in self.requests if each.active and each.socket is socket]
        attempts = [each.end() for each in using]

        def tell() -> None:
            for request, attempt in zip(using, attempts, strict=True):
                request.again(attempt, refusal("lost", retry))

        socket.close(tell)

    def turn(self) -> None:
        """The turn ends: sockets that were closed are. That may set off the next ones."""
        while closing := [socket for socket in self.sockets if socket.closing]:
            closing[0].close()

    def wait(self, seconds: float) -> None:
        """Time passes; what is closed meanwhile is closed at the end of its turn."""
        steps = round(seconds * 8)
        for _ in range(steps):
            self.clock.advance(0.125)
            self.turn()

    def uses(self, *which: Any) -> tuple[int, int, int]:
        """How many ports are reserved, active and idle; of all destinations, or of these."""
        pages = [
            page
            for page in self.accountant.snapshot()
            if not which or page["destination"] in map(str, which)
        ]
        return tuple(  # type: ignore[return-value]
            sum(page[use] for page in pages) for use in ("reserved", "active", "idle")
        )

    def check(self) -> None:
        """The books are true, whatever has happened.

        A socket that was told to close is nobody's, and has its lease in whatever use it had.
        """
        opening, active, idle = self.uses()
        assert opening == len(self.connector.under_way)
        assert active + idle == len(self.sockets)
        for socket in self.sockets:
            using = [each for each in self.requests if each.active and each.socket is socket]
            assert socket.closing or len(using) == socket.in_use
            assert socket.closing or socket.lease.use is (Use.ACTIVE if using else Use.IDLE)
        for cluster in self.registry:
            shown = self.pool.snapshot(cluster.config.name)
            assert shown["idle"] == sum(
                not (socket.in_use or socket.closing)
                for socket in self.sockets
                if socket.shelf.backend.cluster is cluster
            )
            assert shown["opened"] - sum(shown["not_kept"].values()) == sum(
                not socket.not_kept
                for socket in self.sockets
                if socket.shelf.backend.cluster is cluster and socket.shelf.pool is self.pool
            )
            for backend in (*cluster.backends.values(), *cluster.leaving.values()):
                mine = [socket for socket in self.sockets if socket.shelf.backend is backend]
                opening = [each for each in self.connector.under_way if each.backend is backend]
                load = [each for each in self.requests if each.active and each.backend is backend]
                trying = [
                    each
                    for each in self.requests
                    if each.waiting
                    and each.choice.attempt is not None
                    and each.choice.attempt.backend is backend
                ]
                assert backend.connections == len(mine) + len(opening)
                assert backend.in_flight == len(load) + len(trying)
        assert self.errors == []


class PoolTestCase(SynchronousTestCase):
    """A house on a clock; its books are looked at when the test is over."""

    def setUp(self) -> None:
        self.use()

    def use(self, *config: Any, **settings: Any) -> PoolHouse:
        """Another house."""
        self.house = PoolHouse(*config, **settings)
        return self.house

    def tearDown(self) -> None:
        self.house.check()
        self.house.turn()
        self.house.check()

    def assert_books(self, reserved: int, active: int, idle: int) -> None:
        """So many ports are in use, for that."""
        self.assertEqual(self.house.uses(), (reserved, active, idle))
        self.house.check()
