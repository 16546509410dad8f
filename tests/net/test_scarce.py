"""Where more than half of the ports are taken, the connector names the whole range."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.choice import Choice
from proxykit.model import ConnInfo, PortRange
from proxykit.net.clients import Source
from proxykit.net.connector import Connector
from tests.core import House, backends

WHOLE = PortRange(32768, 60999)


class Reactor:
    """Notes from where connections are to leave.

    :ivar sources: what it was told; None: nothing.
    """

    binds_late = True

    def __init__(self) -> None:
        self.sources: list[Any] = []

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: Any, source: Any = None
    ) -> Any:
        self.sources.append(source)


class ScarceTests(SynchronousTestCase):
    """From then on the kernel would look at half of the ports in vain."""

    def connect(self, count: int, addresses: tuple[str, ...] = (), **set: Any) -> list[Any]:
        """Begin so many connections, with ten ports; gives where each was to leave from."""
        house = House(*backends(1), ports=10)
        house.accountant.addresses = addresses
        reactor = Reactor()
        connector = Connector(reactor, house.accountant, house.deadlines)
        for name, value in set.items():
            setattr(connector, name, value)
        for _ in range(count):
            made: Any = None
            info = ConnInfo(1, "front", None)  # type: ignore[arg-type]
            house.flow.upstream(Choice(house.web, info, connector, made))
        return reactor.sources

    def test_half(self) -> None:
        named = Source("", WHOLE)
        self.assertEqual(self.connect(8, whole=WHOLE), [None] * 5 + [named] * 3)

    def test_an_address(self) -> None:
        found = self.connect(6, ("10.0.0.9",), whole=WHOLE)
        self.assertEqual(found, [Source("10.0.0.9")] * 5 + [Source("10.0.0.9", WHOLE)])

    def test_of_no_use(self) -> None:
        """On a kernel for which that makes no difference."""
        self.assertEqual(self.connect(8), [None] * 8)

    def test_another_range(self) -> None:
        """The user's own stays."""
        ports = PortRange(40000, 40009)
        self.assertEqual(self.connect(7, whole=WHOLE, ports=ports), [Source("", ports)] * 7)
