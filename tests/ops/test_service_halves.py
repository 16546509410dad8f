"""The service: it knows whether connects get slower when half of the ports are taken."""

from __future__ import annotations

from proxykit.model import PortRange
from proxykit.net import kernel
from tests.ops.test_service_sources import Early, SourcesTestCase, config


class HalvesTests(SourcesTestCase):
    def test_halves(self) -> None:
        """Not where the kernel looks at all of a range alike: it is told one, be it the whole."""
        self.patch(kernel, "narrowed", lambda ports: ports)
        some = PortRange(41000, 41999)
        for alike, wanted, whole in (
            (True, some, None),
            (True, None, self.range),
            (False, some, None),
            (False, None, None),
        ):
            self.patch(kernel, "looks_at_all_alike", lambda alike=alike: alike)
            service = self.service()
            service.apply(config(port_range=wanted))
            self.assertIs(service.accountant.halves, not alike)
            self.assertEqual(service.connector.ports, wanted)
            self.assertEqual(service.connector.whole, whole)

    def test_plain_binding(self) -> None:
        """It is of no use there."""
        self.patch(kernel, "looks_at_all_alike", lambda: True)
        service = self.service(Early())
        service.apply(config())
        self.assertTrue(service.accountant.halves)
        self.assertIsNone(service.connector.whole)
