"""Budgets for tests, and what becomes of their ports in one line each."""

from __future__ import annotations

from proxykit.core.budget import Budget, Use
from proxykit.model import BudgetKey
from tests.core import HERE

KEY = BudgetKey("tcp", HERE, "10.0.0.1", 80)
#: After a plain bind.
COARSE = BudgetKey("tcp", HERE)
NEVER, ALWAYS, ON_LOOPBACK = 0, 1, 2


def budget_of(size=10, headroom=0.0, key=KEY, reuse=NEVER):
    return Budget(key, size, headroom, reuse)


def take(budget, *ports):
    """As a lease does that has its port at once; 0: it is not known yet."""
    for port in ports:
        budget.counts[Use.RESERVED] += 1
        budget.free -= 1
        if port:
            budget.named(port)


def give(budget, *ports, rests=False, second=0, now=0.0):
    """As a lease does that is given back."""
    for port in ports:
        budget.counts[Use.RESERVED] -= 1
        budget.left(port, rests, second, now)


def read(budget, *rows, listening=0):
    """A whole reading at once, in which nothing happens."""
    budget.begin_reading()
    for port, rests in rows:
        budget.saw(port, rests)
    budget.end_reading(listening)
