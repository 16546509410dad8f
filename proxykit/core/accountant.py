"""The book of source ports: who uses how many of how many, from where towards where.

Each budget (core/budget.py) has a page here, and each upstream socket holds a :class:`Lease` on it,
from before its connect until it is closed. Counts of our own change only through leases, so they
never go below zero and never leak; what others use is read from the kernel now and then.

A lease also stands for one of a backend's ``max_connections``; a unix socket needs no port and has
that alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from proxykit.core.budget import Budget, Use, none_left
from proxykit.core.waiting import Full
from proxykit.errors import OUT_OF_DESCRIPTORS, ProxyError, Retry, Side, refusal
from proxykit.interfaces import IAccountant
from proxykit.model import Address, BudgetKey, PortRange

if TYPE_CHECKING:
    from proxykit.core.forecast import Level
    from proxykit.core.registry import BackendState


# Finding a member of an enumeration takes as long as all that is then done with it.
_ACTIVE, _IDLE = Use.ACTIVE, Use.IDLE
#: Seconds for which others are tried first, after a connect from an address has failed.
SHUNNED = 10

#: From one use to the next. RELEASED is final: a lease is given back once.
TRANSITIONS: tuple[tuple[Use, ...], ...] = (
    (Use.ACTIVE, Use.RELEASED),
    (Use.IDLE, Use.RELEASED),
    (Use.ACTIVE, Use.RELEASED),
    (),
)


class Lease:
    """One source port (where there is one to have) and one of a backend's connections.

    It belongs to a socket, not to a request: an idle pooled socket keeps it.

    :ivar port: the source port, once the kernel has picked it.
    :ivar closed_by: who ended the connection first: ``proxy``, ``backend``, or ``reset``, after
        which nothing rests; empty: that is not known, or it was never made.
    """

    __slots__ = ("_accountant", "_backend", "_budget", "closed_by", "port", "use")

    def __init__(
        self, accountant: Accountant, budget: Budget | None, backend: BackendState
    ) -> None:
        self._accountant = accountant
        self._budget = budget
        self._backend = backend
        self.use = Use.RESERVED
        self.port = 0
        self.closed_by = ""
        backend.connections += 1
        if budget is not None:
            budget.counts[0] += 1
            budget.free -= 1

    @property
    def source(self) -> str:
        """The address that its socket is to be bound to; empty: the kernel chooses."""
        budget = self._budget
        return budget.key.source if budget is not None and self._accountant.binds(budget) else ""

    @property
    def scarce(self) -> bool:
        """Whether more than half of the ports like its own are taken."""
        budget = self._budget
        return budget is not None and budget.free * 2 < budget.limit

    @property
    def way(self) -> str:
        """From where to where it leads, for messages."""
        return self._budget.way if self._budget is not None else f"to {self._backend.address}"

    def named(self, port: int) -> None:
        """The kernel has picked its port."""
        self.port = port
        if self._budget is not None:
            self._budget.named(port)

    def denied(self, why: str) -> None:
        """The kernel has no port for it, whatever the book says; ``release`` comes next."""
        if self._budget is not None:
            self._budget.denied(why)
            self._accountant.denied(self._budget, why)

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

    def failed(self) -> None:
        """Nothing has come of its connect, and the reason may be where it left from."""
        if self._budget is not None:
            self._budget.shunned = self._accountant.second + SHUNNED

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
        backend, budget, by = self._backend, self._budget, self.closed_by
        backend.connections -= 1
        if by:
            backend.closed_first[by] += 1
        if budget is not None:
            rests, accountant = by == "proxy", self._accountant
            now = accountant.seconds() if rests and budget.reuses else 0.0
            budget.left(self.port, rests, accountant.second, now)
        self._accountant._released(budget, backend)

    def _move(self, use: Use) -> None:
        if use not in TRANSITIONS[self.use]:
            raise ValueError(f"a lease that is {self.use.name} cannot become {use.name}")
        if self._budget is not None:
            counts = self._budget.counts
            counts[self.use] -= 1
            counts[use] += 1
        self.use = use


class CheckLease(Lease):
    """The lease of a health check: it is none of the backend's ``max_connections``."""

    __slots__ = ()

    def __init__(
        self, accountant: Accountant, budget: Budget | None, backend: BackendState
    ) -> None:
        super().__init__(accountant, budget, backend)
        backend.checking += 1

    def release(self) -> None:
        """See ``Lease.release``."""
        if self.use is not Use.RELEASED:
            self._backend.checking -= 1
        super().release()


@implementer(IAccountant)
class Accountant:
    """See ``IAccountant``.

    :param ports: what source ports are picked from.
    :param source_of: tells the local IP address from which the kernel connects to an IP address;
        raises OSError when there is no way.
    :ivar addresses: the local addresses that sockets are bound to; for a destination of a family
        that has none the kernel chooses.
    :ivar late: whether a port is picked when the destination is known, so that many destinations
        may share one; else it is one connection's alone.
    :param seconds: tells the time.
    :ivar reuse: ``net.ipv4.tcp_tw_reuse``.
    :ivar second: a count of seconds.
    :ivar halves: whether the kernel looks at every second port first.
    :ivar on_level: is told how scarce the ports of a budget have become, how scarce they were, and
        what to say of it.
    :ivar on_ripening: is told in how many seconds a port that rests is given out again for which
        somebody waits; ``ripen`` is to be called then.
    :ivar on_denied: is told of a budget whose ports the kernel did not give, and why.
    """

    def __init__(
        self,
        ports: PortRange,
        source_of: Callable[[str], str],
        headroom: float = 0.02,
        addresses: tuple[str, ...] = (),
        late: bool = True,
        reuse: int = 0,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ports = ports
        self.headroom = headroom
        self.addresses = addresses
        self.late = late
        self.reuse = reuse
        self.second = 0
        self.halves = True
        self.on_level: Callable[[Level, Level, str], object] | None = None
        self.on_denied: Callable[[Budget, str], object] | None = None
        self.on_ripening: Callable[[float], object] | None = None
        self.seconds = seconds
        self._source_of = source_of
        self._budgets: dict[BudgetKey, Budget] = {}

    def lease(self, backend: BackendState, beyond: bool = False) -> Lease | Full:
        """See ``IAccountant.lease``."""
        limit = backend.cluster.config.max_connections
        if backend.connections - backend.checking >= limit and not beyond:
            return Full(f"{backend.address} has all of its {limit} connections (max_connections)")
        try:
            budget = None if backend.address.is_unix else self._page(backend)
        except ProxyError as error:
            if error.side is Side.PROXY and backend.connections:
                return Full(error.message)  # Those that it has will be free, or closed.
            raise
        if budget is not None and budget.free <= 0:
            budget = self._grown(backend.pages)
        if budget is not None and budget.free <= 0:
            for each in backend.pages:
                each.refused.setdefault(backend)
                self._will_ripen(each)
            return Full(none_left(backend.pages), ports=True)
        return (CheckLease if beyond else Lease)(self, budget, backend)

    def _page(self, backend: BackendState) -> Budget:
        """The page with the most free ports of those that this backend may use."""
        pages = backend.pages
        if pages and self.binds(pages[0]):
            page = self._best(pages)
            if not page.dropped:
                return page
        elif pages and not pages[0].dropped:
            # The kernel says which it is, and may say another one by now.
            page = pages[0]
            if page.key.source == self._source(backend.address):
                return page
        pages = backend.pages = self.budgets(backend.address)
        return self._best(pages)

    def _best(self, pages: tuple[Budget, ...]) -> Budget:
        """The one with most ports free; one from where a connect has just failed has a rest first:
        it gives its ports back at once, so it would always be the one with most."""
        if len(pages) == 1:
            return pages[0]
        second = self.second
        return max(pages, key=lambda page: (page.free > 0, page.shunned <= second, page.free))

    def _grown(self, pages: tuple[Budget, ...]) -> Budget:
        """The page with the most free ports, by now."""
        now = self.seconds()
        for page in pages:
            if page.reuses:
                page.grow(now)
        return self._best(pages)

    def _bound(self, address: Address) -> tuple[str, ...]:
        """The addresses to bind to for a destination; none: the kernel chooses."""
        is_v6 = ":" in address.host
        return tuple(each for each in self.addresses if (":" in each) == is_v6)

    def binds(self, budget: Budget) -> bool:
        """Whether a socket of this budget is to be bound to its source."""
        return budget.key.source in self.addresses

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

    def budgets(self, address: Address) -> tuple[Budget, ...]:
        """The pages for one destination, one for each source; new ones where there were none.

        :raises ProxyError: there is no way from here to that address.
        """
        bound = self._bound(address)
        if bound and not self.late:
            return tuple(self._budget(BudgetKey("tcp", source)) for source in bound)
        return tuple(
            self._budget(BudgetKey("tcp", source, address.host, address.port))
            for source in bound or (self._source(address),)
        )

    def _budget(self, key: BudgetKey) -> Budget:
        budget = self._budgets.get(key)
        if budget is None:
            made = Budget(key, self.ports.size, self.headroom, self.reuse)
            budget = self._budgets[key] = made
        return budget

    def keep_only(self, addresses: set[Address]) -> None:
        """Drop pages that are empty and whose destination is not among these."""
        for key, budget in tuple(self._budgets.items()):
            wanted = key.source in self.addresses  # from there to anywhere
            if key.destination:
                address = Address(key.destination, key.port)
                sources = self._bound(address) or (key.source,)
                wanted = address in addresses and key.source in sources
            if not (wanted or budget.used):
                budget.dropped = True
                del self._budgets[key]

    def __iter__(self) -> Iterator[Budget]:
        return iter(tuple(self._budgets.values()))

    def snapshot(self) -> list[dict[str, Any]]:
        """All budgets, as ``/api/ports`` shows them."""
        return [budget.snapshot() for budget in self._budgets.values()]

    def go_blind(self) -> None:
        """Nobody shows any more what the kernel has."""
        for budget in self:
            budget.go_blind(self.second)

    def leave_from(self, addresses: tuple[str, ...], headroom: float) -> None:
        """Bind to these addresses from now on, and keep back that share of the ports."""
        self.addresses = addresses
        if headroom != self.headroom:
            self.headroom = headroom
            for budget in self:
                budget.measure(self.ports.size, headroom, self.reuse)
                self._serve(budget)

    # What the kernel tells.

    def measure(self, ports: PortRange, reuse: int) -> None:
        """The kernel's settings are these by now."""
        if (ports, reuse) != (self.ports, self.reuse):
            self.ports, self.reuse = ports, reuse
            for budget in self:
                budget.measure(ports.size, self.headroom, reuse)
                self._serve(budget)

    def tick(self, seconds: float = 1.0, blind: bool = False) -> None:
        """Another second has passed.

        :param seconds: how many they were in fact.
        :param blind: whether nobody reads what the kernel shows.
        """
        self.second += 1
        for budget in self:
            if budget.time_wait:
                budget.age(self.second)
            if budget.reuses:
                budget.grow(self.seconds())
            if blind and budget.unseen:
                budget.forgive()
            if budget.refused:
                self._serve(budget)
            before = budget.watch.level
            if budget.look_ahead(seconds) and self.on_level is not None:
                self.on_level(budget.watch.level, before, budget.warning(before, self.halves))

    def ripen(self) -> None:
        """Ports that rest may be old enough by now for who waits; a second is long where there are
        but few of them."""
        now = self.seconds()
        for budget in self:
            if budget.refused and budget.reuses:
                budget.grow(now)
                self._serve(budget)
                if budget.refused:
                    self._will_ripen(budget)

    def _will_ripen(self, budget: Budget) -> None:
        if self.on_ripening is not None and (at := budget.grows_at) is not None:
            self.on_ripening(max(0.0, at - self.seconds()))

    def read(self, budgets: list[Budget], listening: int) -> None:
        """The kernel has shown all that there is on these pages.

        :param listening: how many ports of the range listening sockets have.
        """
        for budget in budgets:
            budget.end_reading(listening)
        for budget in budgets:
            self._serve(budget)

    def denied(self, budget: Budget, why: str) -> None:
        """See ``Lease.denied``."""
        if self.on_denied is not None:
            self.on_denied(budget, why)

    def _serve(self, budget: Budget) -> None:
        """There may be ports again: tell who was refused.

        In the order they were refused, as long as there is something to offer; who is not reached
        comes first the next time, so that no cluster starves beside another.
        """
        if budget.refused:
            waiting, budget.refused = list(reversed(budget.refused)), {}
            while waiting and budget.free > 0:
                waiting.pop().wake()
            budget.refused = dict.fromkeys([*reversed(waiting), *budget.refused])

    def _released(self, budget: Budget | None, backend: BackendState) -> None:
        if budget is not None and budget.refused:
            self._serve(budget)
        backend.wake()
