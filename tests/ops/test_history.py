"""What was: how full budgets were, and what listeners did."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from proxykit.core.budget import Budget
from proxykit.interfaces import ISnapshot
from proxykit.model import BudgetKey
from proxykit.ops.history import LENGTH, History, used


def budget(free: int, destination: str = "10.0.0.1", size: int = 100) -> Budget:
    made = Budget(BudgetKey("tcp", "10.0.0.9", destination, 80), size, 0.0)
    made.free = free
    return made


class FakeListener:
    def __init__(self, name: str, accepted: int = 0, factory: object = None) -> None:
        self.name = name
        self.accepted = accepted
        self.factory = factory


@implementer(ISnapshot)
class FakeFactory:
    def __init__(self, **said: Any) -> None:
        self.said = said

    def snapshot(self) -> dict[str, Any]:
        return self.said


class HistoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.history = History()

    def budget_was(self, key: BudgetKey) -> list[float]:
        found: list[float] = json.loads(self.history.budget(key))
        return found

    def listener_was(self, name: str) -> list[float]:
        found: list[float] = json.loads(self.history.listener(name))
        return found

    def note(self, now: float, *listeners: Any, budgets: tuple[Budget, ...] = ()) -> None:
        self.history.note(budgets, listeners, now)

    def test_used(self) -> None:
        for free, expected in ((100, 0.0), (75, 0.25), (0, 1.0), (-3, 1.0), (200, 0.0)):
            self.assertEqual(used(budget(free)), expected)
        empty = budget(0)
        empty.limit = 0
        self.assertEqual(used(empty), 1.0)

    def test_budgets(self) -> None:
        first, second = budget(100), budget(50, "10.0.0.2")
        self.note(0.0, budgets=(first,))
        first.free = 66
        self.note(2.0, budgets=(first, second))
        self.assertEqual(self.budget_was(first.key), [0.0, 0.34])
        self.assertEqual(self.budget_was(second.key), [0.5])
        self.assertEqual(self.budget_was(budget(1, "10.0.0.3").key), [])

    def test_what_is_gone_is_forgotten(self) -> None:
        page = budget(50)
        self.note(0.0, FakeListener("a"), budgets=(page,))
        self.note(2.0, FakeListener("a"), budgets=(page,))
        self.note(4.0)
        self.assertEqual((self.budget_was(page.key), self.listener_was("a")), ([], []))

    def test_it_has_an_end(self) -> None:
        page = budget(100)
        for number in range(LENGTH + 10):
            page.free = number % 100
            self.note(number * 2.0, FakeListener("a", number), budgets=(page,))
        self.assertEqual(len(self.budget_was(page.key)), LENGTH)
        self.assertEqual(len(self.listener_was("a")), LENGTH)
        self.assertEqual(self.budget_was(page.key)[-1], round(1 - page.free / 100, 3))

    def test_listeners(self) -> None:
        listener = FakeListener("a")
        for now, accepted in ((0.0, 10), (2.0, 30), (4.5, 31), (4.5, 40), (6.5, 40)):
            listener.accepted = accepted
            self.note(now, listener)
        self.assertEqual(self.listener_was("a"), [10.0, 0.4, 0.0])

    def test_requests(self) -> None:
        factory = FakeFactory(requests=5)
        listener = FakeListener("a", 100, factory)
        self.note(0.0, listener)
        factory.said["requests"] = 9
        self.note(2.0, listener)
        self.assertEqual(self.listener_was("a"), [2.0])

    def test_modes_of_others(self) -> None:
        for said in ({}, {"requests": "many"}):
            listener = FakeListener("a", 2, FakeFactory(**said))
            self.history = History()
            self.note(0.0, listener)
            listener.accepted = 4
            self.note(2.0, listener)
            self.assertEqual(self.listener_was("a"), [1.0])

    def test_another_of_the_same_name(self) -> None:
        self.note(0.0, FakeListener("a", 1000))
        self.note(2.0, FakeListener("a", 4))
        self.note(4.0, FakeListener("a", 8))
        self.assertEqual(self.listener_was("a"), [0.0, 2.0])
