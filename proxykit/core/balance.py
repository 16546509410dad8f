"""Balancing policies: which of the backends that could take one more is to take it.

Each policy knows only backends that are up and not full, and chooses among a thousand at about the
cost of choosing among one. Ties go round: equal backends take turns.

``weight`` is a share: of two backends with weights 2 and 1 the first gets two thirds.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from hashlib import blake2b
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

from zope.interface import implementer

from proxykit.interfaces import IBalancer

if TYPE_CHECKING:
    from proxykit.core.registry import BackendState

# A load, a time at which it is due among those of equal load, a number that breaks ties (first
# come, first served), and whose it is.
_Entry: TypeAlias = tuple[float, float, int, "BackendState"]

#: Stale entries that a heap may hold before it is made anew: as many again as it has live ones, and
#: this many more.
_STALE_ENTRIES = 64
#: Points on the hash ring of the heaviest backend; the others have theirs in proportion. The share
#: of a backend varies by about 1/sqrt(points), here 9%.
RING_POINTS = 128
#: Multiples of this, modulo 1, are spread evenly however many there are (the golden ratio).
_SPREAD = 0.6180339887498949


class _HeapPolicy:
    """A heap of entries, in which only the last entry of each backend counts.

    An entry that is out of date is dropped when it comes up, so that a change costs one push.
    """

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._last: dict[BackendState, _Entry] = {}
        self._turns = count()

    def discard(self, backend: BackendState) -> None:
        self._last.pop(backend, None)

    forget = discard

    def _push(self, backend: BackendState, load: float, due: float) -> None:
        entry = (load, due, next(self._turns), backend)
        self._last[backend] = entry
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._last) + _STALE_ENTRIES:
            self._heap = list(self._last.values())
            heapify(self._heap)

    def _pop(self, avoid: set[BackendState]) -> _Entry | None:
        """Take the first entry that counts and is not to be avoided out of the heap."""
        passed = []
        found = None
        while self._heap:
            entry = heappop(self._heap)
            backend = entry[3]
            if self._last.get(backend) is not entry:
                continue
            if backend not in avoid:
                found = entry
                break
            passed.append(entry)
        for entry in passed:
            heappush(self._heap, entry)
        return found


@implementer(IBalancer)
class RoundRobin(_HeapPolicy):
    """One after the other, the heavier more often, evenly spread.

    Each backend has a time at which its next turn is due, and turns are ``1 / weight`` apart
    (earliest deadline first). A newcomer begins at some point of its first turn, so that the turns
    of light ones fall between those of heavy ones. Who is full for a while keeps its time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._due: dict[BackendState, float] = {}
        self._phase = 0.0

    def add(self, backend: BackendState) -> None:
        due = self._due.get(backend)
        if due is None:
            self._phase = (self._phase + _SPREAD) % 1.0
            due = self._now + self._phase / backend.weight
        # Its weight may have grown since: then its turn is not as far off.
        self._push(backend, 0.0, max(self._now, min(due, self._now + 1.0 / backend.weight)))

    def forget(self, backend: BackendState) -> None:
        self.discard(backend)
        self._due.pop(backend, None)

    def update(self, backend: BackendState) -> None:
        """The load does not matter here."""

    def choose(self, client: str, avoid: set[BackendState]) -> BackendState | None:
        entry = self._pop(avoid)
        if entry is None:
            return None
        _, self._now, _, backend = entry
        self._due[backend] = due = self._now + 1.0 / backend.weight
        self._push(backend, 0.0, due)
        return backend


@implementer(IBalancer)
class LeastConnections(_HeapPolicy):
    """The one with the least in flight for its weight: requests or L4 connections, not sockets.

    Those that are equal in that take turns, as in :class:`RoundRobin`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._due: dict[BackendState, float] = {}

    def add(self, backend: BackendState) -> None:
        if len(self._last) == 1:
            # As long as it was alone nobody looked at its load.
            for other in tuple(self._last):
                self._place(other)
        due = self._due.get(backend)
        if due is not None:  # Its weight may have grown since: then its turn is not as far off.
            self._due[backend] = min(due, self._now + 1.0 / backend.weight)
        self._place(backend)

    def forget(self, backend: BackendState) -> None:
        self.discard(backend)
        self._due.pop(backend, None)

    def update(self, backend: BackendState) -> None:
        last = self._last
        if len(last) == 1:
            return
        # Who got worse is found out about when its entry comes up; who got better has to be known.
        entry = last.get(backend)
        if entry is not None and backend.in_flight / backend.weight < entry[0]:
            self._place(backend)

    def choose(self, client: str, avoid: set[BackendState]) -> BackendState | None:
        if len(self._last) == 1:
            (backend,) = self._last
            return None if backend in avoid else backend
        heap, passed = self._heap, []
        found = None
        while heap:
            entry = heap[0]
            backend = entry[3]
            if self._last.get(backend) is not entry:
                heappop(heap)
            elif backend.in_flight / backend.weight > entry[0]:
                self._replace(backend, entry[1])
            elif backend in avoid:
                passed.append(heappop(heap))
            else:
                self._now = entry[1]
                self._due[backend] = due = self._now + 1.0 / backend.weight
                self._replace(backend, due)
                found = backend
                break
        for entry in passed:
            heappush(heap, entry)
        return found

    def _replace(self, backend: BackendState, due: float) -> None:
        """The entry on top of the heap is out of date."""
        entry = (backend.in_flight / backend.weight, due, next(self._turns), backend)
        self._last[backend] = entry
        heapreplace(self._heap, entry)

    def _place(self, backend: BackendState) -> None:
        due = max(self._now, self._due.get(backend, 0.0))
        self._push(backend, backend.in_flight / backend.weight, due)


@implementer(IBalancer)
class RandomTwoChoices:
    """The less loaded of two drawn at random, in proportion to their weights.

    Nearly as even as least-connections, and without the herd that follows when many proxies know
    the same least loaded backend (Mitzenmacher, "The power of two choices", 2001).

    :param source: of random numbers; one with a seed makes it repeatable.
    """

    def __init__(self, source: random.Random | None = None) -> None:
        self._random = source or random.Random()
        # Those of one weight in one list: a weight is drawn first, and there are few.
        self._groups: dict[float, list[BackendState]] = {}
        self._index: dict[BackendState, int] = {}

    def add(self, backend: BackendState) -> None:
        group = self._groups.setdefault(backend.weight, [])
        self._index[backend] = len(group)
        group.append(backend)

    def discard(self, backend: BackendState) -> None:
        index = self._index.pop(backend, None)
        if index is None:
            return
        group = self._groups[backend.weight]
        last = group.pop()
        if last is not backend:
            group[index] = last
            self._index[last] = index
        if not group:
            del self._groups[backend.weight]

    forget = discard

    def update(self, backend: BackendState) -> None:
        """The load is read when two are compared."""

    def choose(self, client: str, avoid: set[BackendState]) -> BackendState | None:
        first = self._draw(avoid)
        if first is None:
            return None
        second = self._draw(avoid | {first})
        if second is None:
            return first
        first_load = first.in_flight / first.weight
        return first if first_load <= second.in_flight / second.weight else second

    def _draw(self, avoid: set[BackendState]) -> BackendState | None:
        """One at random; None where all are to be avoided."""
        if len(avoid) < len(self._index):
            # With few to be avoided, drawing again is cheaper than leaving them out.
            for _ in range(8):
                backend = self._draw_any()
                if backend not in avoid:
                    return backend
        left = [backend for backend in self._index if backend not in avoid]
        if not left:
            return None
        return self._random.choices(left, [backend.weight for backend in left])[0]

    def _draw_any(self) -> BackendState:
        ticket = self._random.random() * sum(
            weight * len(group) for weight, group in self._groups.items()
        )
        for weight, group in self._groups.items():
            share = weight * len(group)
            if ticket < share:
                break
            ticket -= share
        # Rounding may leave the ticket a hair past the last one.
        return group[min(int(ticket / weight), len(group) - 1)]


@implementer(IBalancer)
class SourceHash:
    """The same client always to the same backend, by a consistent hash of its address.

    Each backend has points on a ring, and a client goes to the first point after its own hash
    (Karger et al., "Consistent hashing and random trees", 1997): one more among N backends moves
    about 1/N of the clients. A client whose backend is full or down goes on along the ring. The
    points are in proportion to the largest weight, so a backend that is not heavier than all others
    moves nobody but those that it gets.

    A slow start changes nothing here: whoever belongs to a backend would be sent elsewhere first,
    and then back.
    """

    def __init__(self) -> None:
        self._members: set[BackendState] = set()
        self._open: set[BackendState] = set()
        self._heaviest = 0
        # Points in the order of their hashes; the address breaks a tie alike everywhere.
        self._ring: list[tuple[int, str, BackendState]] = []
        # Membership that the ring does not show yet. The next choice brings it up to date, so
        # that a thousand backends come in at once.
        self._joined: dict[BackendState, None] = {}
        self._left: set[BackendState] = set()

    def add(self, backend: BackendState) -> None:
        self._open.add(backend)
        if backend not in self._members:  # else it was full or down; its points are still there
            self._members.add(backend)
            self._joined[backend] = None

    def discard(self, backend: BackendState) -> None:
        self._open.discard(backend)

    def forget(self, backend: BackendState) -> None:
        self._open.discard(backend)
        self._joined.pop(backend, None)
        if backend in self._members:
            self._members.discard(backend)
            self._left.add(backend)

    def update(self, backend: BackendState) -> None:
        """The load does not matter here."""

    def choose(self, client: str, avoid: set[BackendState]) -> BackendState | None:
        if self._joined or self._left:
            self._settle()
        usable = self._open
        if len(usable) <= sum(1 for backend in avoid if backend in usable):
            return None
        ring = self._ring
        start = bisect_left(ring, (_hash(client),))
        # There is one that is not to be avoided, and each has a point.
        return next(
            backend
            for index in range(start, start + len(ring))
            if (backend := ring[index % len(ring)][2]) in usable and backend not in avoid
        )

    def _settle(self) -> None:
        """Bring the ring up to date."""
        heaviest = max((backend.config.weight for backend in self._members), default=0)
        if heaviest != self._heaviest:
            self._heaviest = heaviest
            self._ring, self._joined = [], dict.fromkeys(self._members)
        elif self._left:
            self._ring = [point for point in self._ring if point[2] not in self._left]
        for backend in self._joined:
            address = str(backend.address)
            self._ring.extend(
                (_hash(f"{address}#{index}"), address, backend)
                for index in range(max(1, RING_POINTS * backend.config.weight // heaviest))
            )
        self._ring.sort(key=_place)
        self._joined, self._left = {}, set()


def _place(point: tuple[int, str, BackendState]) -> tuple[int, str]:
    return point[0], point[1]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
