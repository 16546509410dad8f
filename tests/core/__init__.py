"""Tests of the decisions, and what they share: a house on a clock, and short names for its data."""

from __future__ import annotations

import sys

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from proxykit.core.accountant import Accountant
from proxykit.core.balance import LeastConnections
from proxykit.core.choice import Choice
from proxykit.core.deadlines import Deadlines
from proxykit.core.flow import Flow
from proxykit.core.registry import Registry
from proxykit.errors import ProxyError, Retry, Side
from proxykit.model import Address, Backend, Cluster, ConnInfo, PortRange
from proxykit.testing import FakeConnector

HERE = "10.9.9.9"


def address(number):
    return Address(f"10.0.{number // 256}.{number % 256}", 80)


def backends(*weights, backup=False):
    """One for each weight, numbered from 1."""
    return tuple(
        Backend(address(number), weight=weight, backup=backup)
        for number, weight in enumerate(weights, 1)
    )


def refusal(message="refused", retry=Retry.ALWAYS, side=Side.UPSTREAM, status=502):
    return ProxyError(message, side=side, retry=retry, status=status)


class House:
    """One cluster ``web`` and all that a choice of it needs, without a reactor.

    :ivar here: from where the kernel would connect.
    :ivar errors: what was raised at deadlines.
    """

    def __init__(
        self,
        *config,
        ports=1000,
        headroom=0.0,
        balancer=LeastConnections,
        addresses=(),
        late=True,
        reuse=0,
        **settings,
    ):
        self.clock = Clock()
        self.errors = []
        self.deadlines = Deadlines(self.clock, lambda: self.errors.append(sys.exc_info()[1]))
        self.here = HERE
        self.accountant = Accountant(
            PortRange(1, ports),
            lambda host: self.here,
            headroom,
            addresses,
            late,
            reuse,
            self.clock.seconds,
        )
        self.registry = Registry(self.deadlines)
        self.balancer = balancer
        self.web = self.cluster("web", *config, **settings)
        self.flow = Flow(self.registry, self.deadlines, self.clock)
        self.connector = FakeConnector(self.accountant)

    def cluster(self, name, *config, **settings):
        return self.registry.add(Cluster(name, tuple(config), **settings), self.balancer)

    def state(self, number):
        return self.web.backends[address(number)]

    def choice(self, cluster=None, connector=None, client="192.0.2.1"):
        info = ConnInfo(1, "front", IPv4Address("TCP", client, 4711))
        return Choice(cluster or self.web, info, connector or self.connector, lambda attempt: None)

    def denied(self, attempt):
        """The kernel has no port for an attempt that is under way; what the connector says then."""
        why = f"the kernel has no source port left {attempt.handle.way}"
        attempt.handle.denied(why)
        return refusal(why, Retry.OTHER_PORT, Side.PROXY, 503)

    def read(self):
        """The kernel has been read, and has shown nobody else's sockets."""
        budgets = list(self.accountant)
        for budget in budgets:
            budget.begin_reading()
        self.accountant.read(budgets, 0)

    def close(self, attempt):
        """The work of an attempt that has succeeded is done, and its socket is closed."""
        attempt.end()
        attempt.handle.release()
