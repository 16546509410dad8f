"""One backend at run time, and the tier that it belongs to; core/registry.py has them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from twisted.logger import Logger

from proxykit.core.health import NEVER, Standing

if TYPE_CHECKING:
    from proxykit.core.budget import Budget
    from proxykit.core.registry import ClusterState
    from proxykit.core.waiting import Full
    from proxykit.interfaces import IBalancer
    from proxykit.model import Address, Backend

#: ``drain`` and ``down`` take nothing new. What they carry lives on until it ends; a ``down``
#: backend is one that is believed to be dead.
State = Literal["up", "drain", "down"]
STATES: tuple[State, ...] = get_args(State)
#: How much one answer weighs in the moving average of how long they take.
SMOOTHING = 0.1


class BackendState:
    """One backend at run time.

    :ivar in_flight: requests or L4 connections that it serves now, those being connected included.
    :ivar connections: sockets that are connected to it or being connected; ``checking``: those of
        them that are of health checks.
    :ivar failures: failed attempts since the start; ``failing``: those since the last success.
    :ivar served: attempts that succeeded, since the start.
    :ivar full: what there is none of, while it is full.
    :ivar well: whether neither checks nor traffic speak against it; see ``standing``.
    :ivar weight: its share beside the others: what is configured, less during a slow start.
    """

    __slots__ = (
        "address",
        "checking",
        "closed_first",
        "cluster",
        "config",
        "connections",
        "failing",
        "failures",
        "full",
        "in_flight",
        "latency",
        "notable",
        "pages",
        "removed",
        "served",
        "share",
        "shelf",
        "standing",
        "state",
        "tier",
        "weight",
        "well",
    )
    _log = Logger()

    def __init__(self, config: Backend, cluster: ClusterState, tier: Tier) -> None:
        self.config = config
        self.address: Address = config.address
        self.weight: float = config.weight
        self.share = 1.0
        self.cluster = cluster
        self.tier = tier
        self.in_flight = 0
        self.connections = 0
        self.checking = 0
        self.failures = 0
        self.failing = 0
        self.served = 0
        #: The moving average of the seconds until an answer begins (L4: a connection is there).
        self.latency = 0.0
        self.state: State = "up"
        self.removed = False
        self.well = True
        #: Answers that take longer are looked at; those of failures always are.
        self.notable = cluster.config.eject.slower_than or NEVER
        self.standing = Standing(self, cluster.deadlines)
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
        return self.able and (self.well or self.cluster.panicking)

    @property
    def able(self) -> bool:
        """The same, but for its health."""
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
        if status >= 500 or seconds > self.notable:
            self.standing.answered(status, seconds)

    def connected(self, seconds: float) -> None:
        """An L4 connection to it is there, so many seconds after it was begun."""
        latency = self.latency
        self.latency = latency + (seconds - latency) * SMOOTHING if latency else seconds
        if seconds > self.notable:
            self.standing.connected(seconds)

    def works(self, answers: bool = False) -> None:
        """An attempt has succeeded.

        :param answers: whether it is still to be told how it ``answered``.
        """
        self.served += 1
        if self.notable < 0.0 and not answers:
            self.standing.works()
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
        self.standing.attempt_failed(why)

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
            "weight": self.config.weight,
            "backup": self.config.backup,
            "in_flight": self.in_flight,
            "connections": self.connections,
            "served": self.served,
            "failures": self.failures,
            "closed_first": dict(self.closed_first),
            "full": self.full.what if self.full is not None else None,
            "latency_seconds": self.latency or None,
            "share": self.share,
            **self.standing.snapshot(),
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
