"""proxykit.testing: a fake that is wrong would make every test that uses it worthless."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxykit.core.choice import Attempt
from proxykit.core.waiting import Full
from proxykit.errors import ProxyError
from proxykit.interfaces import IConnector
from proxykit.testing import FakeConnector, split_everywhere
from tests.core import House, address, backends, refusal
from tests.core.test_flow import FULL


class FakesTests(SynchronousTestCase):
    """proxykit.testing: a fake that is wrong would make every test that uses it worthless."""

    def test_split_everywhere(self):
        for data, expected in (
            (b"", [[]]),
            (b"a", [[b"a"]]),
            (b"abc", [[b"a", b"bc"], [b"ab", b"c"], [b"a", b"b", b"c"]]),
        ):
            self.assertEqual(list(split_everywhere(data)), expected)

    def test_connector(self):
        self.assertTrue(verifyObject(IConnector, FakeConnector()))

    def test_script(self):
        """With leases or without; what comes to nothing keeps none."""
        error = refusal()
        for leases in (True, False):
            house = House(*backends(1))
            connector = FakeConnector(house.accountant if leases else None)
            connector.script(address(1), True, False, FULL, error, False, True)
            state = house.state(1)
            got = []
            for _ in range(7):
                attempt = Attempt(house.flow, house.choice(connector=connector), state)
                try:
                    got.append(connector.attempt(attempt))
                except ProxyError as raised:
                    got.append(raised)
            self.assertEqual(got, [True, False, FULL, error, False, True, True])
            self.assertEqual(len(connector.attempts), 7)
            self.assertEqual(state.connections, 5 if leases else 0)
            first, second = connector.under_way
            connector.succeed(first, "up")
            connector.cancel(second)
            self.assertEqual((first.upstream, connector.under_way), ("up", []))
            self.assertEqual(state.connections, 4 if leases else 0)

    def test_fails(self):
        for leases in (True, False):
            house = House(*backends(1))
            connector = FakeConnector(house.accountant if leases else None)
            result = house.flow.upstream(house.choice(connector=connector))
            error = refusal()
            connector.fail(connector.under_way[0], error)
            self.assertIs(self.failureResultOf(result).value, error)
            self.assertEqual(house.state(1).connections, 0)

    def test_out_of_ports(self):
        house = House(*backends(1), ports=0)
        attempt = Attempt(house.flow, house.choice(), house.state(1))
        self.assertIsInstance(house.connector.attempt(attempt), Full)
