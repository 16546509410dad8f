"""proxykit.net.connector: where ports are scarce, the kernel is told to look at all alike."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from types import SimpleNamespace

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from proxykit.model import PortRange
from proxykit.net import kernel
from proxykit.net.clients import Source
from proxykit.net.connector import Connector
from tests.core import HERE, House, backends


class ScarceTests(SynchronousTestCase):
    def sources(self, late=True, addresses=(), **settings):
        """Where connections leave from, until all of ten ports are taken."""
        house = House(*backends(1), ports=10, addresses=addresses)
        reactor = SimpleNamespace(binds_late=late)
        connector = Connector(reactor, house.accountant, house.deadlines)
        for name, value in settings.items():
            setattr(connector, name, value)
        return [connector._source(house.accountant.lease(house.state(1))) for _ in range(10)]

    def test_from_half_on(self):
        whole = PortRange(1, 10)
        self.assertEqual(self.sources(whole=whole), [None] * 5 + [Source("", whole)] * 5)
        self.assertEqual(
            self.sources(whole=whole, addresses=(HERE,)),
            [Source(HERE)] * 5 + [Source(HERE, whole)] * 5,
        )

    def test_not_where_it_does_not_help(self):
        """The kernel does not care; or it is told a range in any case; or it is too early."""
        some, whole = PortRange(1, 5), PortRange(1, 10)
        self.assertEqual(self.sources(), [None] * 10)
        self.assertEqual(self.sources(whole=whole, ports=some), [Source("", some)] * 10)
        self.assertEqual(self.sources(whole=whole, late=False), [None] * 10)

    def test_the_kernel(self):
        """Told its whole range, it picks odd and even ports; else it begins with one of them."""
        if not kernel.looks_at_all_alike():
            raise SkipTest("needs Linux 6.8")
        whole = kernel.port_range()
        for ports, found in ((None, {whole.low % 2}), (whole, {0, 1})):
            picked = set()
            with ExitStack() as stack:
                listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                for _ in range(20):
                    connecting = stack.enter_context(socket.socket())
                    Source("", ports).bind(connecting)
                    connecting.connect(listening.getsockname())
                    stack.enter_context(listening.accept()[0])
                    picked.add(connecting.getsockname()[1] % 2)
            self.assertEqual(picked, found)
