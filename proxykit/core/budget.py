"""One budget of source ports: how many there are towards one place, and who has them.

Between one local address and one backend's address there are as many connections as there are
source ports, and no more. What each port is used for is known from three sides: the leases of this
process; what the kernel shows of everybody's sockets (net/survey.py); and what was closed since it
was asked.
"""

from __future__ import annotations

import math
from collections import deque
from enum import IntEnum
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from proxykit.core.forecast import Forecast, Watch
from proxykit.core.remedies import Figures, message
from proxykit.errors import NOT_HERE

if TYPE_CHECKING:
    from proxykit.core.forecast import Level
    from proxykit.core.registry import BackendState
    from proxykit.model import BudgetKey

#: Seconds for which the side that closed first keeps the port (Linux: TCP_TIMEWAIT_LEN).
TIME_WAIT = 60
#: Seconds after which it gives that port out again, where it does (tcp_tw_reuse_delay).
TOO_YOUNG = 1.0


class Use(IntEnum):
    """What a lease is used for at the moment."""

    RESERVED = 0  # its socket is being connected
    ACTIVE = 1  # it carries somebody's traffic
    IDLE = 2  # it waits in a pool
    RELEASED = 3  # its socket is closed


class Budget:
    """The source ports of one key, and what they are used for.

    :param reuse: ``net.ipv4.tcp_tw_reuse``: whether the kernel gives ports in TIME_WAIT out again:
        0: never, 1: always, 2: between loopback addresses.
    :ivar size: how many the kernel has.
    :ivar limit: how many are handed out: the size less the headroom.
    :ivar counts: how many leases are in each :class:`Use`; of those released, how many ever.
    :ivar free: how many more may be handed out; below zero where others have what was to be kept.
    :ivar ports: those of our own that are in use, as far as they are known yet.
    :ivar foreign: how many somebody else has, whoever that is.
    :ivar unseen: how many the kernel did not give, though by this book it has them.
    :ivar closings: how many were ever closed so that nobody gets them for a minute.
    :ivar forecast: when it will be empty; ``watch``: how scarce its ports are.
    """

    __slots__ = ("_before", "_denied", "_gone", "_reading", "_seen", "_seen_resting", "_young",
                 "closings", "counts", "dropped", "forecast", "foreign", "free", "key", "limit",
                 "ports", "refused", "rested", "resting", "reuses", "shunned", "size", "unseen",
                 "watch", "why_unseen")  # fmt: skip

    def __init__(self, key: BudgetKey, size: int, headroom: float, reuse: int = 0) -> None:
        self.key = key
        #: Whether it is no longer in the book; nobody has a lease on it.
        self.dropped = False
        #: Until which second others are taken first: a connect from here has just failed.
        self.shunned = 0
        #: Why the kernel did not give what it did not give.
        self.why_unseen = ""
        self.counts = [0] * len(Use)
        self.ports: set[int] = set()
        self.foreign = self.unseen = 0
        #: Whether it has denied one since it was asked.
        self._denied = False
        #: Ports in TIME_WAIT: those that the kernel has shown; those that we have closed first
        #: since it was asked, and in which second; and before it was asked again, while it is.
        self.resting: set[int] = set()
        self.rested: dict[int, int] = {}
        self._before: dict[int, int] = {}
        #: Backends that were told there is none, in that order; they hear when one comes free.
        self.refused: dict[BackendState, None] = {}
        # Where ports in TIME_WAIT are given out again: when each was closed that is too young.
        self.reuses = False
        self._young: deque[float] = deque()
        # While it is being asked: what it has shown, and what was closed meanwhile.
        self._reading = False
        self._seen: set[int] = set()
        self._seen_resting: set[int] = set()
        self._gone: set[int] = set()
        self.closings = 0
        self.forecast = Forecast()
        self.watch = Watch()
        self.measure(size, headroom, reuse)

    def measure(self, size: int, headroom: float, reuse: int) -> None:
        """The kernel's settings are these."""
        self.size = size
        # Rounded first: 100 * 0.07 is a hair more than 7.
        self.limit = size - math.ceil(round(size * headroom, 6))
        # After a plain bind a port is one connection's alone for as long as it rests.
        reuses = self.key.destination != "" and (reuse == 1 or (reuse == 2 and self._is_loopback()))
        if reuses != self.reuses:
            self.reuses = reuses
            self._young.clear()
        self.settle()

    def _is_loopback(self) -> bool:
        return any(ip_address(each).is_loopback for each in (self.key.source, self.key.destination))

    @property
    def used(self) -> int:
        """How many are out."""
        return self.counts[Use.RESERVED] + self.counts[Use.ACTIVE] + self.counts[Use.IDLE]

    @property
    def time_wait(self) -> int:
        """How many the kernel still holds after their connection was closed."""
        return len(self.resting) + len(self._before) + len(self.rested)

    @property
    def is_missing(self) -> bool:
        """Whether it is the source address that is not there."""
        return self.unseen > 0 and self.why_unseen.endswith(NOT_HERE)

    @property
    def kept(self) -> int:
        """How many cannot be had for they are in TIME_WAIT."""
        return len(self._young) if self.reuses else self.time_wait

    @property
    def held(self) -> int:
        """How many can be had by nobody, besides those that are out."""
        return self.foreign + self.unseen + self.kept

    @property
    def way(self) -> str:
        """From where to where, for messages."""
        if not self.key.destination:
            return f"from {self.key.source}"
        return f"from {self.key.source} to {self.key.destination_text}"

    def settle(self) -> None:
        """Count anew what is free."""
        self.free = self.limit - self.used - self.held

    def named(self, port: int) -> None:
        """The kernel has picked this port for one of our leases."""
        self.ports.add(port)
        if port in self.rested or port in self.resting or port in self._before:
            # It can be used again, so it does not rest any more.
            self.resting.discard(port)
            self._before.pop(port, None)
            self.rested.pop(port, None)
            if not self.reuses:
                self.free += 1

    def left(self, port: int, rests: bool, second: int, now: float = 0.0) -> None:
        """A lease is given back.

        :param port: 0: it never had one.
        :param rests: whether the kernel will hold on to it for a minute.
        :param second: the accountant's; ``now``: the time, more exactly.
        """
        if port:
            self.ports.discard(port)
            if self._reading:
                self._gone.add(port)
            if rests:
                self.rested[port] = second
                if self.reuses:
                    self._young.append(now)
                else:
                    self.closings += 1
                return
        self.free += 1

    def denied(self, why: str = "") -> None:
        """The kernel had no port for a lease that is about to be given back."""
        self.why_unseen = why
        self.unseen += max(0, self.free) + 1
        self._denied = True
        self.settle()

    def age(self, second: int) -> None:
        """What rests does so for a minute."""
        for rested in (self._before, self.rested):
            while rested:
                port = next(iter(rested))
                if second - rested[port] < TIME_WAIT:
                    break
                del rested[port]
        self.settle()

    def grow(self, now: float) -> None:
        """Of what rests, and is given out again, some may be old enough."""
        young = self._young
        while young and now - young[0] >= TOO_YOUNG:
            young.popleft()
            self.free += 1

    @property
    def grows_at(self) -> float | None:
        """When the next of these is old enough; None: there is none."""
        return self._young[0] + TOO_YOUNG if self._young else None

    def look_ahead(self, seconds: float) -> bool:
        """So many seconds have passed.

        :returns: whether its ports are scarcer than before, or less so; ``warning`` tells.
        """
        # What was denied counts when the kernel has been asked why; it never makes a trend.
        denied = self.unseen if self._denied else 0
        taken, busy = self.limit - self.free - denied, self.used + self.foreign
        left = self.forecast.feed(busy, taken - busy, self.closings, self.limit, seconds)
        return self.watch.look(taken, self.limit, left, seconds)

    def warning(self, before: Level, halves: bool) -> str:
        """What to say of how scarce its ports are, and what to do about it.

        :param before: how scarce they were.
        :param halves: whether the kernel looks at every second port first.
        """
        figures = Figures(
            way=self.way,
            size=self.size,
            limit=self.limit,
            taken=self.limit - self.free,
            active=self.counts[Use.RESERVED] + self.counts[Use.ACTIVE],
            idle=self.counts[Use.IDLE],
            time_wait=self.kept,
            foreign=self.foreign,
            left=self.forecast.left,
            plain=not self.key.destination,
            halves=halves,
        )
        return message(self.watch.level, before, figures)

    def go_blind(self, second: int) -> None:
        """The kernel shows no more: what it had shown grows old like the rest."""
        self._before |= dict.fromkeys(self.resting, second)
        self.resting = set()
        self.foreign = 0
        self.settle()

    # While the kernel is being asked.

    def begin_reading(self) -> None:
        """From now on it shows what there is."""
        self._before |= self.rested
        self.rested = {}
        self._reading = True

    def saw(self, port: int, rests: bool) -> None:
        """It shows a socket with this port.

        :param rests: whether no process has it any more.
        """
        (self._seen_resting if rests else self._seen).add(port)

    def end_reading(self, listening: int) -> None:
        """It has shown all.

        :param listening: ports that listening sockets have: nobody gets them for anything else.
        """
        others = self._seen - self.ports - self._gone
        # What was closed meanwhile and rests is in rested; else it does not, whatever was seen.
        gone = self._gone | self.rested.keys()
        self.resting = self._seen_resting - self.ports - others - gone
        self._before = {}
        # Sockets of our own that are being connected may have a port that we do not know yet.
        nameless = self.used - len(self.ports)
        self.foreign = max(0, len(others) - nameless) + listening
        self.give_up_reading()
        self.forgive()

    def forgive(self) -> None:
        """Ports that the kernel has denied: it may give them by now.

        Where nothing else tells why it did not, one is tried; after one that was given, half.
        """
        if self._denied:
            self._denied = False
            given, self.unseen = self.unseen, 0
            self.settle()
            self.unseen = max(0, min(given, self.free - 1))
        else:
            self.unseen //= 2
        self.settle()

    def give_up_reading(self) -> None:
        """It did not show all: what was known before is as good as can be."""
        self._reading = False
        for each in (self._gone, self._seen, self._seen_resting):
            each.clear()

    def snapshot(self) -> dict[str, Any]:
        """One budget as ``/api/ports`` shows it."""
        left = self.forecast.left
        return {
            "protocol": self.key.protocol,
            "source": self.key.source,
            "destination": self.key.destination_text,
            "size": self.size,
            "active": self.counts[Use.ACTIVE],
            "idle": self.counts[Use.IDLE],
            "reserved": self.counts[Use.RESERVED],
            "time_wait": self.time_wait,
            "foreign": self.foreign,
            "free": max(0, self.free),
            "forecast_seconds": None if left is None else round(left, 1),
            "level": self.watch.level.name.lower(),
            # What else the size is made of, while the kernel gives less than the book has.
            "headroom": self.size - self.limit,
            "denied": self.unseen,
        }


def none_left(budgets: tuple[Budget, ...]) -> str:
    """Where there is no port left, and what became of them."""
    key = budgets[0].key
    sources = ", ".join(budget.key.source for budget in budgets)
    where = f"from {sources} to {key.destination_text}" if key.destination else f"from {sources}"
    kept = sum(budget.size - budget.limit for budget in budgets)
    parts = [f"{sum(b.used for b in budgets)} of {sum(b.size for b in budgets)} in use"]
    others = (
        (sum(b.kept for b in budgets), "in TIME_WAIT"),
        (sum(b.foreign for b in budgets), "of other processes"),
        (sum(b.unseen for b in budgets if not b.is_missing), "refused by the kernel"),
    )
    parts += [f"{count} {what}" for count, what in others if count]
    parts += [b.why_unseen for b in budgets if b.is_missing]
    return f"no source port is left {where} ({', '.join(parts)}, {kept} kept as headroom)"
