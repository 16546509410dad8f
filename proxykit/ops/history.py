"""What was, for the last five minutes: how full each budget was, and what each listener did.

It is kept whether anybody looks or not, and so it costs little: two or four bytes for each figure.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from proxykit.interfaces import ISnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxykit.core.budget import Budget
    from proxykit.model import BudgetKey
    from proxykit.net.listener import Listener

#: Seconds between two figures, and how many are kept.
INTERVAL = 2
LENGTH = 150


#: A share, in thousandths, as JSON: a thousand budgets have 150,000 figures, and
#: to write each anew would take a tenth of a second.
_SHARES = [f"{share / 1000:g}" for share in range(1001)]


def _add(figures: array[Any], value: float) -> None:
    if len(figures) == LENGTH:
        del figures[0]
    figures.append(value)


class History:
    """The figures of one service."""

    def __init__(self) -> None:
        self._budgets: dict[BudgetKey, array[int]] = {}
        self._listeners: dict[str, array[float]] = {}
        # By the names of listeners: how many there had been, and when that was.
        self._counted: dict[str, int] = {}
        self._at: float | None = None

    def note(self, budgets: Iterable[Budget], listeners: Iterable[Listener], now: float) -> None:
        """Take down how things are; what is no longer there is forgotten."""
        before, self._budgets = self._budgets, {}
        for budget in budgets:
            figures = before.get(budget.key)
            self._budgets[budget.key] = figures = array("H") if figures is None else figures
            _add(figures, round(used(budget) * 1000))
        seconds = now - self._at if self._at is not None else 0.0
        rates, self._listeners = self._listeners, {}
        counted, self._counted = self._counted, {}
        for listener in listeners:
            name = listener.name
            self._counted[name] = count = _count(listener)
            self._listeners[name] = rate = rates.get(name, array("f"))
            if name in counted and seconds > 0:
                # Another of the same name begins at 0.
                _add(rate, max(0, count - counted[name]) / seconds)
        self._at = now

    def budget(self, key: BudgetKey) -> str:
        """How full it was: 0 to 1, nothing more can be had; a list, the oldest first, as JSON."""
        return f"[{','.join([_SHARES[share] for share in self._budgets.get(key, ())])}]"

    def listener(self, name: str) -> str:
        """Requests a second, or connections where there are none; a list, the oldest first, as
        JSON."""
        return f"[{','.join([f'{rate:.1f}' for rate in self._listeners.get(name, ())])}]"


def used(budget: Budget) -> float:
    """Which share of what may be handed out is out, or cannot be had."""
    return min(1.0, max(0.0, 1 - budget.free / budget.limit)) if budget.limit > 0 else 1.0


def _count(listener: Listener) -> int:
    """How many it has had: requests, where its mode knows any, or connections."""
    factory = listener.factory
    found = factory.snapshot() if ISnapshot.providedBy(factory) else {}
    count = found.get("requests", listener.accepted)
    return count if isinstance(count, int) else listener.accepted
