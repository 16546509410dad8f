"""Checks of one cluster on a clock, for tests of them."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.core.accountant import Accountant
from proxykit.core.balance import RoundRobin
from proxykit.core.deadlines import Deadlines
from proxykit.core.registry import Registry
from proxykit.model import Address, Backend, Cluster, PortRange
from proxykit.net.checks import HealthChecks
from proxykit.net.connector import Connector
from proxykit.net.kernel import SourceAddresses
from proxykit.upkeep import Health
from tests.http_sockets import head
from tests.sockets import (
    ClockedReactor,
    until,
)

OK = head("Content-Length: 2") + b"ok"
#: Without chance, the first check comes after half an interval, and each next one after a whole.
HALF = 0.5


class Bench:
    """Checks of one cluster, with the books in view."""

    def __init__(
        self, test: TestCase, *addresses: Address, ports: int = 100, chance: Any = None, **more: Any
    ) -> None:
        self.clock = ClockedReactor()
        self.failures: list[int] = []
        self.deadlines = Deadlines(self.clock, lambda: self.failures.append(1))
        self.registry = Registry(self.deadlines)
        health = {"rise": 1, "fall": 1, "timeout": 1.0, "interval": 4.0}
        settings = [key for key in more if key in ("path", "host", "status", "jitter", "timeout")]
        health.update({key: more.pop(key) for key in settings})
        more.setdefault("health", Health(**health))  # type: ignore[arg-type]
        more.setdefault("slow_start", 0.0)
        self.config = Cluster("web", tuple(map(Backend, addresses)), **more)
        self.cluster = self.registry.add(self.config, RoundRobin)
        self.accountant = Accountant(PortRange(1, ports), SourceAddresses(self.clock), 0.0)
        self.connector = Connector(self.clock, self.accountant, self.deadlines)
        self.checks = HealthChecks(
            self.clock, self.connector, self.deadlines, chance or (lambda: HALF)
        )
        self.checks.follow(self.cluster)
        self.checks.start()
        test.addCleanup(self._end)

    def shown(self, number: int = 0) -> dict[str, Any]:
        shown: list[dict[str, Any]] = self.cluster.snapshot()["backends"]
        return shown[number]

    def health(self) -> tuple[str, str | None]:
        shown = self.shown()
        return shown["health"], shown["why"]

    async def checked(self) -> tuple[str, str | None]:
        """The result of the first check, once nothing of it is left."""
        self.clock.advance(2.0)
        await until(lambda: self.shown()["health"] != "unknown")
        await until(lambda: self.books == (0, 0, 0))
        return self.health()

    def timers(self) -> list[Any]:
        """When something of the checks is due."""
        self.deadlines.rest()
        return list(self.clock.getDelayedCalls())

    @property
    def books(self) -> tuple[int, int, int]:
        """Ports and connections in use, and deadlines that run."""
        budgets = self.accountant.snapshot()
        states = [*self.cluster.backends.values(), *self.cluster.leaving.values()]
        return (
            sum(each["active"] + each["reserved"] for each in budgets),
            sum(each.connections for each in states),
            len(self.deadlines),
        )

    async def _end(self) -> None:
        self.checks.stop()
        await until(lambda: self.books == (0, 0, 0))
        assert self.timers() == []
        assert self.failures == []
