"""Where a pool's connections lie: those that may stand in for one another, the newest on top."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from proxykit.core import sharing
from proxykit.core.sharing import L7, REUSED, explained
from proxykit.net.closing import resets

if TYPE_CHECKING:
    from proxykit.core.accountant import Lease
    from proxykit.core.choice import Attempt, Choice
    from proxykit.core.deadlines import Deadline
    from proxykit.core.registry import BackendState
    from proxykit.model import Pool as PoolConfig
    from proxykit.model import PoolKey
    from proxykit.net.opening import Opening
    from proxykit.net.pool import Pool

#: What :class:`Pooled` has; whoever has it beside another class with slots makes them there.
POOLED_SLOTS = ("_idle", "_idle_for", "answered", "capacity", "idle_limit", "in_use",
                "introduction", "lease", "not_kept", "own", "rested", "shelf", "used")  # fmt: skip


class Pooled:
    """What the pool knows of a connection. A mode's upstream protocol is also one of these.

    :ivar capacity: how many may use it at once; 0: no more, whatever comes free.
    :ivar in_use: how many do.
    :ivar answered: when it answered last, on the deadlines' clock.
    :ivar idle_limit: seconds that the other side keeps it when it is idle; None: it does not say.
    :ivar used: how many it has served or serves.
    :ivar rested: whether it has ever lain idle.
    :ivar introduction: the PROXY header that it began with: it speaks for one client alone.
    :ivar own: why it was opened, and not another one used; see core/sharing.py.
    :ivar not_kept: why nobody else may have it any more; empty: somebody may.
    """

    introduction: bytes
    lease: Lease
    own: str
    shelf: Shelf

    def __init__(self) -> None:
        self.capacity = 1
        self.in_use = 0
        self.answered = 0.0
        self.used = 0
        self.rested = False
        self.not_kept = ""
        self.idle_limit: float | None = None
        self._idle: Deadline | None = None
        #: The ``idle_limit`` that the deadline was made for.
        self._idle_for: float | None = None

    def explain(self) -> dict[str, Any]:
        """See ``IExplains``: for the request that it serves.

        ``used`` says how many it had served before.
        """
        shared = self.used > 1 and not self.not_kept
        reason = self.not_kept or (REUSED if shared else self.own)
        return {**explained(L7, shared, reason), "used": self.used - 1}

    def close_idle(self) -> None:
        """Nobody uses it, and nobody shall: close it."""
        raise NotImplementedError

    def abort(self) -> None:
        """End it at once, whoever uses it."""
        raise NotImplementedError


class Shelf:
    """The connections of one key.

    :ivar free: those with a free slot, the newest last. A dict, for those that die are not on top.
    :ivar idle: how many of these nobody uses.
    :ivar ending: those that have served for the last time, and that the backend is to close.
    :ivar pending: attempts that wait for a connection of this key, and what is opened for each.
    :ivar spare: what is being opened for nobody in particular.
    :ivar shares: whether any connection serves twice.
    :ivar introduces: whether each begins with a PROXY header, and so is for one client alone.
    :ivar free_of: if so, those of ``free`` by that header.
    :ivar resets: whether they are closed with a reset.
    :ivar own: how many were opened, by the reason; ``not_kept``: how many may not be had any more.
    :ivar leaving: whether its backend is to be left alone: what comes free is closed.
    """

    __slots__ = ("backend", "config", "ending", "free", "free_of", "idle", "introduces", "key",
                 "leaving", "most", "not_kept", "own", "pending", "pool", "resets", "reused",
                 "shares", "spare")  # fmt: skip

    def __init__(self, pool: Pool, key: PoolKey, backend: BackendState) -> None:
        self.pool = pool
        self.key = key
        self.idle = 0
        self.is_of(backend)
        self.spare: dict[Opening, None] = {}
        self.free: dict[Pooled, None] = {}
        self.ending: dict[Pooled, None] = {}
        self.introduces = key.proxy_protocol != ""
        self.free_of: dict[bytes, dict[Pooled, None]] = {}
        self.pending: dict[Attempt, Opening] = {}
        self.reused = 0
        self.own: Counter[str] = Counter()
        self.not_kept: Counter[str] = Counter()

    def is_of(self, backend: BackendState) -> None:
        """Take what is set for a backend; one that left, and came back, has its shelf again."""
        self.backend = backend
        self.leaving = False
        cluster = backend.cluster.config
        self.config: PoolConfig = cluster.pool
        self.shares = self.config.reuse != "never"
        self.resets = resets(backend)
        most = self.config.max_idle
        self.most = cluster.max_connections if most is None else most

    def lay(self, connection: Pooled) -> None:
        """On top of those with a free slot."""
        self.free[connection] = None
        if self.introduces:
            self.free_of.setdefault(connection.introduction, {})[connection] = None

    def unlay(self, connection: Pooled) -> None:
        """It has none any more."""
        del self.free[connection]
        if self.introduces:
            strike(self.free_of, connection)


class Counts:
    """What was counted on several shelves."""

    def __init__(self) -> None:
        self.reused = 0
        self.own: Counter[str] = Counter()
        self.not_kept: Counter[str] = Counter()

    def add(self, counted: Shelf | Counts) -> None:
        """And on this one."""
        self.reused += counted.reused
        # Counter's own += looks for what is below zero, which takes ten times as long.
        self.own.update(counted.own)
        self.not_kept.update(counted.not_kept)


def shown(shelves: list[Shelf], former: Counts) -> dict[str, Any]:
    """What there is on some shelves.

    :param former: what was counted on others that are gone.
    """
    counts = Counts()
    counts.add(former)
    for each in shelves:
        counts.add(each)
    return {
        "idle": sum(shelf.idle for shelf in shelves),
        "opening": sum(len(shelf.pending) for shelf in shelves),
        "opened": counts.own.total(),
        "reused": counts.reused,
        "own": dict(counts.own),
        "not_kept": dict(counts.not_kept),
    }


def strike(named: dict[bytes, dict[Pooled, None]], connection: Pooled) -> None:
    """Take a connection from those that are kept by their introductions."""
    same = named[connection.introduction]
    del same[connection]
    if not same:
        del named[connection.introduction]


def why_own(shelf: Shelf, choice: Choice, free: dict[Pooled, None]) -> str:
    """Why a choice cannot have a connection that is there.

    :param free: those that it could have, but for its own sake.
    """
    if not shelf.shares:
        return sharing.POLICY
    if choice.fresh:
        return sharing.LOST
    if free:
        return sharing.STALE
    return sharing.INTRODUCED if shelf.free else sharing.NONE_IDLE
