"""The clusters and the state of their backends, shared by all listeners.

A cluster has two tiers: backends, and backups for when no other is up. Each tier has a balancer,
which knows the backends that could take one more; whoever turns out to be full is taken out of it
(``block``) until it says that something came free (``wake``), so a choice costs the same when most
backends are full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

from twisted.logger import Logger
from zope.interface import implementer

from proxykit.core.stats import Answers
from proxykit.core.waiting import Full, Queue
from proxykit.interfaces import IRegistry

if TYPE_CHECKING:
    from proxykit.core.budget import Budget
    from proxykit.core.deadlines import Deadlines
    from proxykit.interfaces import IBalancer
    from proxykit.model import Address, Backend, Cluster

#: ``drain`` and ``down`` take nothing new. What they carry lives on until it ends; a ``down``
#: backend is one that is believed to be dead.
State = Literal["up", "drain", "down"]
STATES: tuple[State, ...] = get_args(State)
#: How much one answer weighs in the moving average of how long they take.
SMOOTHING = 0.1


class BackendState:
    """One backend at run time.

    :ivar in_flight: requests or L4 connections that it serves now, those being connected included.
    :ivar connections: sockets that are connected to it or being connected.
    :ivar failures: failed attempts since the start; ``failing``: those since the last success.
    :ivar served: attempts that succeeded, since the start.
    :ivar full: what there is none of, while it is full.
    """

    __slots__ = (
        "address",
        "closed_first",
        "cluster",
        "config",
        "connections",
        "failing",
        "failures",
        "full",
        "in_flight",
        "latency",
        "pages",
        "removed",
        "served",
        "shelf",
        "state",
        "tier",
        "weight",
    )
    _log = Logger()

    def __init__(self, config: Backend, cluster: ClusterState, tier: Tier) -> None:
        self.config = config
        self.address: Address = config.address
        self.weight = config.weight
        self.cluster = cluster
        self.tier = tier
        self.in_flight = 0
        self.connections = 0
        self.failures = 0
        self.failing = 0
        self.served = 0
        #: The moving average of the seconds until an answer begins (L4: a connection is there).
        self.latency = 0.0
        self.state: State = "up"
        self.removed = False
        self.full: Full | None = None
        #: Of its connections that have ended, how many were ended by whom first: there the port
        #: rests in TIME_WAIT, after a reset nowhere.
        self.closed_first = {"proxy": 0, "backend": 0, "reset": 0}
        #: The accountant's note: the pages that its leases are on, one for each source.
        self.pages: tuple[Budget, ...] = ()
        #: The pool's note: where this backend's connections lie.
        self.shelf: Any = None

    def __repr__(self) -> str:
        return f"<backend {self.address} of {self.cluster.config.name}>"

    @property
    def usable(self) -> bool:
        """Whether new work may be sent to it, once there is room."""
        return self.state == "up" and not self.removed

    def load(self, change: int) -> None:
        """One more, or one less, in flight."""
        self.in_flight += change
        self.tier.balancer.update(self)

    def answered(self, status: int, seconds: float) -> None:
        """It has begun to answer a request, so many seconds after that was sent to it."""
        self.cluster.stats.answered(status, seconds)
        latency = self.latency
        self.latency = latency + (seconds - latency) * SMOOTHING if latency else seconds

    def connected(self, seconds: float) -> None:
        """An L4 connection to it is there, so many seconds after it was begun."""
        latency = self.latency
        self.latency = latency + (seconds - latency) * SMOOTHING if latency else seconds

    def works(self) -> None:
        """An attempt has succeeded."""
        self.served += 1
        if self.failing:
            self._log.info(
                "{cluster} {backend}: works again, after {failures} failed attempts",
                cluster=self.cluster.config.name,
                backend=self.address,
                failures=self.failing,
            )
            self.failing = 0

    def failed(self, why: str) -> None:
        """An attempt has failed. The log has the first of them, not each of a thousand."""
        self.failures += 1
        self.failing += 1
        if self.failing == 1:
            self._log.warn(
                "{cluster} {backend}: {why}",
                cluster=self.cluster.config.name,
                backend=self.address,
                why=why,
            )

    def wake(self) -> None:
        """Something of its own came free: a port, a connection, a slot."""
        if self.full is not None:
            self.full = None
            if self.usable:
                self.tier.balancer.add(self)
                self.tier.open += 1
                self.cluster.queue.wake()
        leaving = self.cluster.leaving
        if not self.connections and leaving.get(self.address) is self:
            del leaving[self.address]
            self.cluster.stats.inherit(self)

    def snapshot(self) -> dict[str, Any]:
        """One backend as ``/api/clusters`` shows it."""
        return {
            "address": str(self.address),
            "name": self.config.name,
            "state": "removed" if self.removed else self.state,
            "weight": self.weight,
            "backup": self.config.backup,
            "in_flight": self.in_flight,
            "connections": self.connections,
            "served": self.served,
            "failures": self.failures,
            "closed_first": dict(self.closed_first),
            "full": self.full.what if self.full is not None else None,
            "latency_seconds": self.latency or None,
        }


class Tier:
    """The backends of one cluster that are used, or the backups.

    :ivar up: how many may be sent new work.
    :ivar open: how many of these are not full: those that the balancer knows.
    """

    __slots__ = ("balancer", "open", "up")

    def __init__(self, balancer: IBalancer) -> None:
        self.balancer = balancer
        self.up = 0
        self.open = 0


class ClusterState:
    """One cluster at run time: its backends, by address, and its queue.

    :ivar leaving: backends that were removed and still have connections.
    :ivar found: those that a source has found, besides those that are named.
    :ivar stats: what backends have answered, those that are gone included.
    """

    def __init__(
        self, config: Cluster, make_balancer: Callable[[], IBalancer], deadlines: Deadlines
    ) -> None:
        self.config = config
        self.backends: dict[Address, BackendState] = {}
        self.leaving: dict[Address, BackendState] = {}
        self.stats = Answers()
        self.queue = Queue(config.queue, config.queue_timeout, deadlines, self._has_room)
        self._used, self._backup = Tier(make_balancer()), Tier(make_balancer())
        self.found: tuple[Backend, ...] = ()
        for backend in config.backends:
            self.add(backend)

    def _has_room(self) -> bool:
        return self._used.open > 0 or self._backup.open > 0

    def add(self, config: Backend) -> BackendState:
        """Take a backend in; one that was just removed keeps the connections it still has.

        :raises ValueError: it is there already.
        """
        if config.address in self.backends:
            raise ValueError(f"{config.address} is in cluster {self.config.name} already")
        tier = self._backup if config.backup else self._used
        backend = BackendState(config, self, tier)
        former = self.leaving.pop(config.address, None)
        if former is not None:
            # Its attempts and leases hold on to the former object: that one comes back.
            former.config, former.weight, former.tier = config, config.weight, tier
            former.removed, former.state, former.full = False, "up", None
            backend = former
        self.backends[config.address] = backend
        self._enter(backend)
        return backend

    def remove(self, address: Address) -> None:
        """Nothing new for this backend; what it carries lives on until it ends.

        :raises KeyError: there is none.
        """
        backend = self.backends.pop(address)
        self._leave(backend)
        backend.removed = True
        backend.tier.balancer.forget(backend)
        if backend.connections:
            self.leaving[address] = backend
        else:
            self.stats.inherit(backend)
        self.queue.wake(everyone=True)

    def discovered(self, found: tuple[Backend, ...]) -> None:
        """A source says that these are the backends, besides those that are named."""
        self.found = found
        self._update()

    def reconfigure(self, config: Cluster, make_balancer: Callable[[], IBalancer]) -> None:
        """Another configuration of the same name. Backends that stay keep their state."""
        before, self.config = self.config, config
        self.queue.limit, self.queue.timeout = config.queue, config.queue_timeout
        if config.balance != before.balance:
            for tier in (self._used, self._backup):
                tier.balancer = make_balancer()
            for backend in self.backends.values():
                if backend.usable and backend.full is None:
                    backend.tier.balancer.add(backend)
        for backend in self.backends.values():
            # It may have had max_connections; and its shelf is for the former settings.
            backend.shelf = None
            backend.wake()
        self._update()

    def _update(self) -> None:
        """Have the backends that are named, and those that were found."""
        wanted = {backend.address: backend for backend in (*self.found, *self.config.backends)}
        for address in [address for address in self.backends if address not in wanted]:
            self.remove(address)
        for address, config in wanted.items():
            backend = self.backends.get(address)
            if backend is None:
                self.add(config)
            elif backend.config != config:
                self._leave(backend)
                backend.tier.balancer.forget(backend)
                backend.config, backend.weight = config, config.weight
                backend.tier = self._backup if config.backup else self._used
                self._enter(backend)

    def set_state(self, address: Address, state: State) -> None:
        """Drain a backend, take it down, or bring it up again.

        :raises KeyError: there is none.
        :raises ValueError: there is no such state.
        """
        if state not in STATES:
            raise ValueError(f"expected one of {', '.join(STATES)}, not {state!r}")
        backend = self.backends[address]
        self._leave(backend)
        backend.state = state
        self._enter(backend)

    def _enter(self, backend: BackendState) -> None:
        if backend.usable:
            backend.tier.up += 1
            if backend.full is None:
                backend.tier.open += 1
                backend.tier.balancer.add(backend)
        self.queue.wake(everyone=True)

    def _leave(self, backend: BackendState) -> None:
        if backend.usable:
            backend.tier.up -= 1
            if backend.full is None:
                backend.tier.open -= 1
                backend.tier.balancer.discard(backend)

    def pick(self, client: str, tried: set[BackendState]) -> BackendState | Full | None:
        """A backend that could take one more and is not among those tried.

        :returns: ``Full`` where all that are left are full, None where none is left at all.
        """
        for tier in (self._used, self._backup):
            left = tier.up
            if tried:
                left -= sum(1 for backend in tried if backend.tier is tier and backend.usable)
            if left > 0:
                return tier.balancer.choose(client, tried) or self._full(tier)
        return None

    def block(self, backend: BackendState, full: Full) -> None:
        """It turned out to be full; it will ``wake`` when it is not."""
        if backend.full is None and backend.usable:
            backend.tier.open -= 1
            backend.tier.balancer.discard(backend)
        backend.full = full

    def _full(self, tier: Tier) -> Full:
        first = next(
            backend.full
            for backend in self.backends.values()
            if backend.tier is tier and backend.usable and backend.full is not None
        )
        others = tier.up - tier.open - 1
        if others <= 0:
            return first
        return Full(f"{first.what}, and {others} more are full", first.ports)

    def snapshot(self) -> dict[str, Any]:
        """One cluster as ``/api/clusters`` shows it."""
        states = [*self.backends.values(), *self.leaving.values()]
        return {
            "name": self.config.name,
            "balance": self.config.balance,
            "max_connections": self.config.max_connections,
            "queue": {
                "waiting": len(self.queue),
                "limit": self.queue.limit,
                "timed_out": self.queue.timed_out,
                "refused": self.queue.refused,
            },
            "backends": [backend.snapshot() for backend in states],
        }


@implementer(IRegistry)
class Registry:
    """See ``IRegistry``.

    :param deadlines: where the queues' timeouts are kept.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._clusters: dict[str, ClusterState] = {}

    def add(self, config: Cluster, make_balancer: Callable[[], IBalancer]) -> ClusterState:
        """Take a cluster in.

        :raises ValueError: there is one of that name.
        """
        if config.name in self._clusters:
            raise ValueError(f"there is a cluster {config.name} already")
        state = self._clusters[config.name] = ClusterState(config, make_balancer, self._deadlines)
        return state

    def remove(self, name: str) -> None:
        """Let a cluster go, and all of its backends; what they carry lives on until it ends.

        :raises KeyError: there is none.
        """
        cluster = self._clusters.pop(name)
        for address in tuple(cluster.backends):
            cluster.remove(address)

    def cluster(self, name: str) -> ClusterState:
        """See ``IRegistry.cluster``."""
        return self._clusters[name]

    def get(self, name: str) -> ClusterState | None:
        """The cluster of that name, if there is one."""
        return self._clusters.get(name)

    def __iter__(self) -> Iterator[ClusterState]:
        return iter(self._clusters.values())
