"""Active checks: each backend is asked now and then whether it is well.

A check is a connection like any other, made by the same connector: it has a lease on a source port,
leaves from the same addresses, begins with a PROXY header where the cluster sends one (v2 LOCAL, v1
UNKNOWN: it is the proxy's own), and speaks TLS, verified as it is set, where the cluster does. What
it asks for then is ``[clusters.NAME.health]``: a path, or nothing, for a connect is enough, or a
handshake. It may be one more than ``max_connections``: a backend that is busy can be well.

It ends with a reset, so that no port rests in TIME_WAIT: at one check in two seconds that would be
thirty of them for each backend. Only what was sent is left to arrive first.

Where there is no port for a check it is *skipped*: it is told in the log, and changes nothing.

Whoever has a service does this, once its clusters are there::

    checks = HealthChecks(reactor, connector, deadlines)
    checks.follow(registry.cluster("web"))      # each cluster, once; later changes find their way
    checks.start()                              # when the service does
    checks.forget(registry.cluster("web"))      # before it is removed from the registry
    checks.stop()                               # ends ejections and slow starts as well
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger

from proxykit.core.introduction import own_introduction
from proxykit.core.rarely import Rarely
from proxykit.core.waiting import Full
from proxykit.errors import ProxyError, Side
from proxykit.net.closing import Resetting
from proxykit.wire.http1 import Refused, ResponseReader
from proxykit.wire.http1body import body_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from proxykit.core.accountant import Lease
    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.core.registry import BackendState, ClusterState
    from proxykit.net.connector import Connector
    from proxykit.upkeep import Health

#: Bytes of an answer's body that are read, so that the backend can finish it.
MOST_BODY = 65536
SWITCHING = 101


class HealthChecks:
    """See this module.

    :param reactor: tells when a check is due.
    :param connector: makes the connections.
    :param deadlines: keeps the timeouts.
    :param chance: a random number from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        connector: Connector,
        deadlines: Deadlines,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.reactor = reactor
        self.connector = connector
        self.deadlines = deadlines
        self.chance = chance
        self.running = False
        #: How many checks were not made for want of a port.
        self.skipped = 0
        self._rarely = Rarely(reactor)
        self._following: dict[ClusterState, _Following] = {}

    def follow(self, cluster: ClusterState) -> None:
        """Check the backends of a cluster, as its settings have it, now and later."""
        if cluster not in self._following:
            self._following[cluster] = _Following(self, cluster)

    def forget(self, cluster: ClusterState) -> None:
        """It is about to go."""
        following = self._following.pop(cluster, None)
        if following is not None:
            following.stop()
            cluster.follower = None

    def start(self) -> None:
        """Begin: the first checks are spread over an interval."""
        self.running = True
        for cluster, following in self._following.items():
            cluster.go_on()
            following.start()

    def stop(self) -> None:
        """Leave no timer and no connection behind."""
        self.running = False
        for cluster, following in self._following.items():
            following.stop()
            cluster.rest()

    def skip(self, backend: BackendState, why: str) -> None:
        """There is no way to check it now."""
        self.skipped += 1
        backend.standing.skipped(why)
        self._rarely.warn(
            self._log,
            "skipped",
            "{cluster} {backend}: not checked: {why}",
            cluster=backend.cluster.config.name,
            backend=backend.address,
            why=why,
        )


class _Following:
    """The checks of one cluster, whoever comes and goes. See ``core.health.Follower``."""

    def __init__(self, checks: HealthChecks, cluster: ClusterState) -> None:
        self._checks = checks
        self._cluster = cluster
        self._health = cluster.config.health
        self._rounds: dict[BackendState, _Rounds] = {}
        cluster.follower = self
        for backend in cluster.backends.values():
            self.came(backend)

    def came(self, backend: BackendState) -> None:
        rounds = self._rounds[backend] = _Rounds(self._checks, backend)
        if self._checks.running:
            rounds.begin()

    def left(self, backend: BackendState) -> None:
        self._rounds.pop(backend).stop()

    def changed(self) -> None:
        before, self._health = self._health, self._cluster.config.health
        if self._health == before:
            return
        for backend, rounds in self._rounds.items():
            if self._health is None:
                rounds.stop()
                backend.standing.unchecked()
            elif self._checks.running:
                rounds.begin()

    def start(self) -> None:
        for rounds in self._rounds.values():
            rounds.begin()

    def stop(self) -> None:
        for rounds in self._rounds.values():
            rounds.stop()


class _Rounds:
    """One backend, checked again and again."""

    def __init__(self, checks: HealthChecks, backend: BackendState) -> None:
        self._checks = checks
        self._backend = backend
        self._timer: IDelayedCall | None = None
        self._check: _Check | None = None

    def begin(self) -> None:
        """Check it soon, if it is to be checked at all."""
        health = self._backend.cluster.config.health
        if health is not None:
            self._in(self._checks.chance() * health.interval)

    def _in(self, seconds: float) -> None:
        self._unset()
        self._timer = self._checks.reactor.callLater(seconds, self._due)

    def _unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def stop(self) -> None:
        self._unset()
        check, self._check = self._check, None
        if check is not None:
            check.stop()

    def _due(self) -> None:
        self._timer = None
        health = self._backend.cluster.config.health
        if health is None:
            return
        if self._check is not None:
            self._check.stop()  # What it knew it has said; its socket is still there.
        check = self._check = _Check(self._checks, self._backend, health, self._over)
        try:
            got = self._checks.connector.check(check)  # type: ignore[arg-type]
        except ProxyError as error:
            check.failed(error)
            return
        if isinstance(got, Full):
            check.skipped(got.what)

    def _over(self, health: Health) -> None:
        """A check has its result."""
        jitter = health.jitter * (2.0 * self._checks.chance() - 1.0)
        self._in(health.interval * (1.0 + jitter))


class _Check:
    """One check of one backend, in place of an ``Attempt``.

    :param over: is told when there is a result; the socket may live on for a moment.
    """

    def __init__(
        self,
        checks: HealthChecks,
        backend: BackendState,
        health: Health,
        over: Callable[[Health], object],
    ) -> None:
        self._checks = checks
        self._over: Callable[[Health], object] | None = over
        self._protocol: _Asking | None = None
        self.backend = backend
        self.health = health
        self.deadlines = checks.deadlines
        self.handle: Any = None
        self.lease: Lease | None = None
        self.ready: Callable[[], object] | None = None
        self.deadline: Deadline | None = checks.deadlines.add(health.timeout, self._too_late)

    # As a connector knows an attempt.

    @property
    def introduction(self) -> bytes:
        """See ``Attempt.introduction``: it speaks for nobody but the proxy."""
        return own_introduction(self.backend.cluster.config.proxy_protocol)

    def protocol(self) -> _Asking:
        """See ``Attempt.protocol``."""
        self._protocol = _Asking(self)
        return self._protocol

    def connected(self, seconds: float) -> None:
        """See ``Attempt.connected``. Traffic is what tells how soon."""

    def succeeded(self, upstream: object) -> None:
        """See ``Attempt.succeeded``."""
        if self.ready is not None:
            self.ready()
        self.handle = None

    def failed(self, error: ProxyError) -> None:
        """See ``Attempt.failed``."""
        self.handle = None
        self.gone()
        if error.side is Side.UPSTREAM:
            self.result(error.message)
        else:
            self.skipped(error.message)

    # What comes of it.

    def skipped(self, why: str) -> None:
        """It could not be made, for reasons that are not the backend's."""
        self.gone()
        if self._end():
            self._checks.skip(self.backend, why)

    def result(self, problem: str) -> None:
        """It has its answer; empty: the backend is well."""
        if self._end():
            standing = self.backend.standing
            if problem:
                standing.failed(problem)
            else:
                standing.succeeded()

    def _end(self) -> bool:
        """:returns: whether it had no result yet."""
        over, self._over = self._over, None
        if over is None:
            return False
        over(self.health)
        return True

    def _too_late(self) -> None:
        self.deadline = None
        what = "was not connected" if self.handle is not None else "did not answer"
        self.result(f"it {what} within {self.health.timeout:g} s")
        self.stop()

    def stop(self) -> None:
        """End it at once."""
        self._over = None
        self.gone()
        if self.handle is not None:
            handle, self.handle = self.handle, None
            handle.stop()
        elif self._protocol is not None:
            self._protocol.abort()

    def gone(self) -> None:
        """There is nothing left to wait for."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class _Asking(Protocol):
    """The connection of a check."""

    def __init__(self, check: _Check) -> None:
        self._check = check
        self._reader = ResponseReader()
        self._body: Any = None
        self._read = 0
        self._resetting: Resetting | None = None
        self._alive = False

    def connectionMade(self) -> None:
        """It is there, and secured."""
        self._alive = True
        check = self._check
        check.succeeded(self)
        cluster, health = check.backend.cluster.config, check.health
        if health.path:
            self.transport.write(_request(check.backend, health))  # type: ignore[union-attr]
            return
        check.result("")
        if cluster.tls is None and not check.introduction:
            self.abort()
        else:
            # The backend has yet to hear the last of it.
            self._resetting = Resetting(self.transport, check.deadlines, self.abort, self._close)
            self._resetting.look()

    def dataReceived(self, data: bytes) -> None:
        """The answer, or what nobody has asked for."""
        if not self._check.health.path:
            return
        try:
            if self._body is None:
                if not self._head(data):
                    return
                data, self._reader.rest = self._reader.rest, b""
            self._read += len(data)
            self._body.feed(data)
            done = self._body.done
        except Refused as problem:
            self._check.result(f"it broke a rule: {problem.rule}")
            done = True
        if done or self._read > MOST_BODY:
            self.abort()

    def _head(self, data: bytes) -> bool:
        """:returns: whether the head of the answer has come."""
        while True:
            head = self._reader.feed(data)
            if head is None:
                return False
            if head.status >= 200 or head.status == SWITCHING:
                break
            data = self._reader.rest
        health = self._check.health
        fine = any(low <= head.status <= high for low, high in ranges(health.status))
        said = f"{head.status} {head.reason.decode('latin-1')}".rstrip()
        problem = f"GET {health.path}: {said}, and not {health.status}"
        self._check.result("" if fine else problem)
        self._body = body_of(head.framing(b"GET"), False)
        return True

    def _close(self) -> None:
        if self._alive:
            self.transport.loseConnection()  # type: ignore[union-attr]

    def abort(self) -> None:
        """Reset it: nobody needs to wait for its port."""
        if self._alive:
            self.transport.abortConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self._alive = False
        if self._resetting is not None:
            self._resetting.cancel()
        self._check.result("it closed the connection before it answered")
        self._check.gone()


def _request(backend: BackendState, health: Health) -> bytes:
    """What a check asks."""
    unix = backend.address.is_unix
    host = health.host or backend.cluster.config.host
    host = host or ("localhost" if unix else str(backend.address))
    return (
        f"GET {health.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: proxykit-check\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    ).encode("ascii")


@lru_cache(maxsize=256)
def ranges(text: str) -> tuple[tuple[int, int], ...]:
    """The statuses in a text such as ``200-299,404``, from and to."""
    pairs = (each.partition("-") for each in text.split(","))
    return tuple((int(low), int(high or low)) for low, _, high in pairs)
