"""The clusters and the state of their backends, shared by all listeners.

A cluster has two tiers: backends, and backups for when no other is up. Each tier has a balancer,
which knows the backends that could take one more; whoever turns out to be full is taken out of it
(``block``) until it says that something came free (``wake``), so a choice costs the same when most
backends are full. So is one that is unwell (core/health.py), unless nobody is well and the cluster
is to use them all then (``panic``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger
from zope.interface import implementer

from proxykit.core.backend import STATES, BackendState, State, Tier
from proxykit.core.rarely import Rarely
from proxykit.core.retries import Retries
from proxykit.core.stats import Answers
from proxykit.core.waiting import Full, Queue
from proxykit.interfaces import IRegistry

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadlines
    from proxykit.core.health import Follower
    from proxykit.interfaces import IBalancer
    from proxykit.model import Address, Backend, Cluster

__all__ = ["STATES", "BackendState", "ClusterState", "Registry", "State"]


class ClusterState:
    """One cluster at run time: its backends, by address, and its queue.

    :ivar leaving: backends that were removed and still have connections.
    :ivar found: those that a source has found, besides those that are named.
    :ivar stats: what backends have answered, those that are gone included.
    :ivar retries: how many may be tried again.
    :ivar able: how many are neither drained nor down; ``well``: how many of these are well.
    :ivar panicking: whether those are used that are not, for nobody is.
    :ivar follower: is told who comes and goes.
    """

    _log = Logger()

    def __init__(
        self, config: Cluster, make_balancer: Callable[[], IBalancer], deadlines: Deadlines
    ) -> None:
        self.config = config
        self.deadlines = deadlines
        self.backends: dict[Address, BackendState] = {}
        self.leaving: dict[Address, BackendState] = {}
        self.stats = Answers()
        self.retries = Retries(deadlines.clock)
        self._rarely = Rarely(deadlines.clock)
        self.able = self.well = 0
        self.panicking = self._helpless = False
        self.follower: Follower | None = None
        self.queue = Queue(config.queue, config.queue_timeout, deadlines, self._has_room)
        self._used, self._backup = Tier(make_balancer()), Tier(make_balancer())
        self.found: tuple[Backend, ...] = ()
        for backend in config.backends:
            self.add(backend)

    def _has_room(self) -> bool:
        return self._used.open > 0 or self._backup.open > 0

    def add(self, config: Backend, slowly: bool = False) -> BackendState:
        """Take a backend in; one that was just removed keeps the connections it still has.

        :param slowly: whether others are at work, beside which it is to begin with little.
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
            former.shelf = None  # What lies there is to be closed; on a new look it is not.
            former.standing.begin_anew()
            backend = former
        self.backends[config.address] = backend
        self._enter(backend)
        if slowly:
            backend.standing.start_slowly()
        if self.follower is not None:
            self.follower.came(backend)
        return backend

    def remove(self, address: Address) -> None:
        """Nothing new for this backend; what it carries lives on until it ends.

        :raises KeyError: there is none.
        """
        backend = self.backends.pop(address)
        self._leave(backend)
        backend.removed = True
        backend.tier.balancer.forget(backend)
        backend.standing.stop()
        if backend.connections:
            self.leaving[address] = backend
        else:
            self.stats.inherit(backend)
        if self.follower is not None:
            self.follower.left(backend)
        self._look_around()
        self.queue.wake(everyone=True)

    def discovered(self, found: tuple[Backend, ...]) -> None:
        """A source says that these are the backends, besides those that are named."""
        first, self.found = not self.found, found
        self._update(slowly=not first)

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
            backend.shelf = None  # It is for the former settings.
            backend.standing.reconfigured()
        self._update()
        for backend in tuple(self.backends.values()):
            backend.wake()  # It may have had max_connections, of which there are more now.
        self._look_around()
        if self.follower is not None:
            self.follower.changed()

    def _update(self, slowly: bool = True) -> None:
        """Have the backends that are named, and those that were found.

        :param slowly: whether who comes to others is to begin with little.
        """
        slowly = slowly and self.well > 0
        wanted = {backend.address: backend for backend in (*self.found, *self.config.backends)}
        for address, config in wanted.items():
            backend = self.backends.get(address)
            if backend is None:
                self.add(config, slowly)
            elif backend.config != config:
                self._leave(backend)
                backend.tier.balancer.forget(backend)
                backend.config, backend.weight = config, config.weight * backend.share
                backend.tier = self._backup if config.backup else self._used
                self._enter(backend)
        # Last, so that those who wait are never told that there is nobody left.
        for address in [address for address in self.backends if address not in wanted]:
            self.remove(address)

    def set_state(self, address: Address, state: State) -> None:
        """Drain a backend, take it down, or bring it up again.

        :raises KeyError: there is none.
        :raises ValueError: there is no such state.
        """
        if state not in STATES:
            raise ValueError(f"expected one of {', '.join(STATES)}, not {state!r}")
        backend = self.backends[address]
        self._leave(backend)
        before, backend.state = backend.state, state
        self._enter(backend)
        if before == "down" and state == "up" and backend.well:
            backend.standing.start_slowly()

    def set_well(self, backend: BackendState, well: bool) -> None:
        """Its health has changed; see ``Standing``."""
        self._leave(backend)
        backend.well = well
        self._enter(backend)

    def weigh(self, backend: BackendState, share: float) -> None:
        """It is to get so much of what its weight says."""
        known = backend.usable and backend.full is None
        if known:
            backend.tier.balancer.discard(backend)
        backend.share, backend.weight = share, backend.config.weight * share
        if known:
            backend.tier.balancer.add(backend)

    def spares(self, backend: BackendState, why: str) -> bool:
        """Whether one more may be left alone, for what was seen of it."""
        most = int(self.config.eject.max_share * self.able + 1e-9)
        alone = self.able - self.well
        if alone < most:
            return True
        if most:
            self._rarely.warn(
                self._log,
                "spared",
                "{cluster} {backend}: not ejected, for {alone} of {able} are left alone already"
                " (max_share = {share:g}): {why}",
                cluster=self.config.name,
                backend=backend.address,
                alone=alone,
                able=self.able,
                share=self.config.eject.max_share,
                why=why,
            )
        return False

    def rest(self) -> None:
        """Leave no timers behind, and begin none: the proxy ends."""
        for backend in self.backends.values():
            backend.standing.stop()

    def go_on(self) -> None:
        """It begins again."""
        for backend in self.backends.values():
            backend.standing.go_on()

    def _look_around(self) -> None:
        """Is anybody well?"""
        helpless = self.able > 0 and not self.well
        panic = helpless and self.config.panic
        if helpless != self._helpless:
            self._helpless = helpless
            if helpless:
                what = f"all {self.able} are used (panic)" if panic else "what comes is refused"
                self._log.warn(
                    "{cluster}: no backend is well: {what}", cluster=self.config.name, what=what
                )
            else:
                self._log.info(
                    "{cluster}: not all backends are unwell any more", cluster=self.config.name
                )
        if panic != self.panicking:
            unwell = [each for each in self.backends.values() if each.able and not each.well]
            for each in unwell:
                self._leave(each)
            self.panicking = panic
            for each in unwell:
                self._count(each)
            self.queue.wake(everyone=True)

    def _enter(self, backend: BackendState) -> None:
        self._count(backend)
        self._look_around()
        self.queue.wake(everyone=True)

    def _count(self, backend: BackendState) -> None:
        if backend.able:
            self.able += 1
            self.well += backend.well
        if backend.usable:
            backend.tier.up += 1
            if backend.full is None:
                backend.tier.open += 1
                backend.tier.balancer.add(backend)

    def _leave(self, backend: BackendState) -> None:
        if backend.able:
            self.able -= 1
            self.well -= backend.well
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
            "panic": self.panicking,
            "retries": self.retries.snapshot(),
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
