"""The book of source ports: who uses how many of how many, towards where.

Between one local address and one backend's address there are as many connections as there are
source ports, and no more. Each of these *budgets* has a page here, and each upstream socket holds a
:class:`Lease` on it, from before its connect until it is closed. Counts change only through leases,
so they never go below zero and never leak.

A lease also stands for one of a backend's ``max_connections``; a unix socket needs no port and has
that alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from proxykit.core.waiting import Full
from proxykit.errors import OUT_OF_DESCRIPTORS, ProxyError, Retry, Side, refusal
from proxykit.interfaces import IAccountant
from proxykit.model import Address, BudgetKey, PortRange

if TYPE_CHECKING:
    from proxykit.core.registry import BackendState


class Use(IntEnum):
    """What a lease is used for at the moment."""

    RESERVED = 0  # its socket is being connected
    ACTIVE = 1  # it carries somebody's traffic
    IDLE = 2  # it waits in a pool
    RELEASED = 3  # its socket is closed


# Finding a member of an enumeration takes as long as all that is then done with it.
_ACTIVE, _IDLE = Use.ACTIVE, Use.IDLE

#: From one use to the next. RELEASED is final: a lease is given back once.
TRANSITIONS: tuple[tuple[Use, ...], ...] = (
    (Use.ACTIVE, Use.RELEASED),
    (Use.IDLE, Use.RELEASED),
    (Use.ACTIVE, Use.RELEASED),
    (),
)


class Budget:
    """The source ports of one key, and what they are used for.

    :ivar size: how many the kernel has.
    :ivar limit: how many are handed out: the size less the headroom.
    :ivar counts: how many leases are in each :class:`Use`; of those released, how many ever.
    """

    __slots__ = ("counts", "dropped", "key", "limit", "refused", "size")

    def __init__(self, key: BudgetKey, size: int, headroom: float) -> None:
        self.key = key
        self.size = size
        #: Whether it is no longer in the book; nobody has a lease on it.
        self.dropped = False
        # Rounded first: 100 * 0.07 is a hair more than 7.
        self.limit = size - math.ceil(round(size * headroom, 6))
        self.counts = [0] * len(Use)
        #: Backends that were told there is none, in that order; they hear when one comes free.
        self.refused: dict[BackendState, None] = {}

    @property
    def used(self) -> int:
        """How many are out."""
        return self.counts[Use.RESERVED] + self.counts[Use.ACTIVE] + self.counts[Use.IDLE]

    @property
    def free(self) -> int:
        """How many more are handed out."""
        return self.limit - self.used

    def snapshot(self) -> dict[str, Any]:
        """One budget as ``/api/ports`` shows it."""
        return {
            "protocol": self.key.protocol,
            "source": self.key.source,
            "destination": self.key.destination_text,
            "size": self.size,
            "active": self.counts[Use.ACTIVE],
            "idle": self.counts[Use.IDLE],
            "reserved": self.counts[Use.RESERVED],
            # The kernel's own view is not read yet: what it holds beyond our sockets is not known.
            "time_wait": 0,
            "foreign": 0,
            "free": self.free,
            "forecast_seconds": None,
        }


class Lease:
    """One source port (where there is one to have) and one of a backend's connections.

    It belongs to a socket, not to a request: an idle pooled socket keeps it.
    """

    __slots__ = ("_accountant", "_backend", "_budget", "use")

    def __init__(
        self, accountant: Accountant, budget: Budget | None, backend: BackendState
    ) -> None:
        self._accountant = accountant
        self._budget = budget
        self._backend = backend
        self.use = Use.RESERVED
        backend.connections += 1
        if budget is not None:
            budget.counts[Use.RESERVED] += 1

    def connected(self) -> None:
        """Its socket is connected and carries traffic."""
        self._move(Use.ACTIVE)

    def idle(self) -> None:
        """Its socket waits in a pool."""
        # This and the next are done for each request, so the figures are moved right here.
        if self.use is not _ACTIVE:
            self._move(Use.IDLE)
        elif self._budget is not None:
            counts = self._budget.counts
            counts[1] -= 1
            counts[2] += 1
        self.use = _IDLE

    def busy(self) -> None:
        """Its socket came out of the pool again."""
        if self.use is not _IDLE:
            self._move(Use.ACTIVE)
        elif self._budget is not None:
            counts = self._budget.counts
            counts[2] -= 1
            counts[1] += 1
        self.use = _ACTIVE

    @property
    def wanted(self) -> bool:
        """Whether another backend waits for a port of this budget."""
        if self._budget is None or not self._budget.refused:
            return False
        refused = self._budget.refused
        return len(refused) > (self._backend in refused)

    def release(self) -> None:
        """Its socket is closed, or the connect failed.

        :raises ValueError: it has been given back already.
        """
        self._move(Use.RELEASED)
        self._backend.connections -= 1
        self._accountant._released(self._budget, self._backend)

    def _move(self, use: Use) -> None:
        if use not in TRANSITIONS[self.use]:
            raise ValueError(f"a lease that is {self.use.name} cannot become {use.name}")
        if self._budget is not None:
            counts = self._budget.counts
            counts[self.use] -= 1
            counts[use] += 1
        self.use = use


@implementer(IAccountant)
class Accountant:
    """See ``IAccountant``.

    :param ports: what the kernel picks source ports from.
    :param headroom: the share of each budget that is never handed out.
    :param source_of: tells the local IP address from which the kernel connects to an IP address;
        raises OSError when there is no way.
    """

    def __init__(
        self, ports: PortRange, source_of: Callable[[str], str], headroom: float = 0.02
    ) -> None:
        self._ports = ports
        self._source_of = source_of
        self.headroom = headroom
        self._budgets: dict[BudgetKey, Budget] = {}

    def lease(self, backend: BackendState) -> Lease | Full:
        """See ``IAccountant.lease``."""
        limit = backend.cluster.config.max_connections
        if backend.connections >= limit:
            return Full(f"{backend.address} has all of its {limit} connections (max_connections)")
        try:
            budget = None if backend.address.is_unix else self._page(backend)
        except ProxyError as error:
            if error.side is Side.PROXY and backend.connections:
                return Full(error.message)  # Those that it has will be free, or closed.
            raise
        if budget is not None and budget.free <= 0:
            budget.refused.setdefault(backend)
            return Full(
                f"no source port is left from {budget.key.source} to"
                f" {budget.key.destination_text} ({budget.used} of {budget.size} in use,"
                f" {budget.size - budget.limit} kept as headroom)",
                ports=True,
            )
        return Lease(self, budget, backend)

    def _page(self, backend: BackendState) -> Budget:
        """As ``budget``, which is found at the backend as long as the source stays the same."""
        page = backend.page
        source = self._source(backend.address)
        if page is None or page.dropped or page.key.source != source:
            page = backend.page = self.budget(backend.address)
        return page

    def _source(self, address: Address) -> str:
        try:
            return self._source_of(address.host)
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                raise refusal(f"cannot ask for the way to {address}: {error.strerror}") from error
            raise ProxyError(
                f"no way to {address}: {error.strerror or error}",
                side=Side.UPSTREAM,
                retry=Retry.ALWAYS,
                status=502,
                kind="destination_ip_unroutable",
            ) from error

    def budget(self, address: Address) -> Budget:
        """The page for one destination; a new one where there was none.

        :raises ProxyError: there is no way from here to that address.
        """
        source = self._source(address)
        # Sockets are connected without a bind, so the kernel may use one port for many
        # destinations: the key is all four.
        key = BudgetKey("tcp", source, address.host, address.port)
        budget = self._budgets.get(key)
        if budget is None:
            budget = self._budgets[key] = Budget(key, self._ports.size, self.headroom)
        return budget

    def keep_only(self, addresses: set[Address]) -> None:
        """Drop pages that are empty and whose destination is not among these."""
        for key, budget in tuple(self._budgets.items()):
            if not budget.used and Address(key.destination, key.port) not in addresses:
                budget.dropped = True
                del self._budgets[key]

    def snapshot(self) -> list[dict[str, Any]]:
        """All budgets, as ``/api/ports`` shows them."""
        return [budget.snapshot() for budget in self._budgets.values()]

    def _released(self, budget: Budget | None, backend: BackendState) -> None:
        if budget is not None and budget.refused:
            # In the order they were refused, as long as there is something to offer; who is not
            # reached comes first the next time, so that no cluster starves beside another.
            waiting, budget.refused = list(reversed(budget.refused)), {}
            while waiting and budget.free > 0:
                waiting.pop().wake()
            budget.refused = dict.fromkeys([*reversed(waiting), *budget.refused])
        backend.wake()
