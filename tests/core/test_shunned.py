"""A source address from which nothing gets through has the most free ports, and is not the best."""

from __future__ import annotations

from proxykit.core.accountant import SHUNNED
from proxykit.core.waiting import Full
from proxykit.errors import NOT_HERE
from proxykit.model import Address, Backend
from tests.core.test_accountant_sources import A, B, SourcesTestCase


class ShunnedTests(SourcesTestCase):
    def sources(self, count):
        """From where so many leave, one after the other, all of them staying."""
        return [self.lease().source for _ in range(count)]

    def fail(self, source):
        lease = self.lease()
        while lease.source != source:
            lease.release()
            lease = self.lease()
        lease.failed()
        lease.release()

    def test_others_first(self):
        self.use()
        self.fail(A)
        self.assertEqual(self.sources(3), [B] * 3)

    def test_before_none(self):
        """Where the others have none left, it is tried all the same."""
        self.use()
        self.fail(A)
        self.assertEqual(self.sources(6), [B] * 3 + [A] * 3)
        self.assertIsInstance(self.lease(), Full)

    def test_for_a_while(self):
        self.use()
        self.fail(A)
        for _ in range(SHUNNED):
            self.accountant.tick()
        self.assertEqual(sorted(self.sources(2)), [A, B])

    def test_alone(self):
        self.use(addresses=(A,))
        self.fail(A)
        self.assertEqual(self.sources(3), [A] * 3)

    def test_a_unix_socket(self):
        """It leaves from nowhere."""
        self.use(Backend(Address("/run/x", 0)))
        self.lease().failed()


class MissingTests(SourcesTestCase):
    def test_told(self):
        """It is no want of ports that an address is not there."""
        self.use()
        for source, why in ((A, f"{A} {NOT_HERE}"), (B, "none is left")):
            lease = self.lease()
            self.assertEqual(lease.source, source)
            lease.denied(why)
            lease.release()
        self.assertEqual(
            self.lease().what,
            f"no source port is left from {A}, {B} to 10.0.0.1:80 (0 of 6 in use, 3 refused by the"
            f" kernel, {A} {NOT_HERE}, 0 kept as headroom)",
        )


class BlindTests(SourcesTestCase):
    def test_grows_old(self):
        """What the kernel has shown, before it showed no more, ends like the rest."""
        self.use()
        page = self.accountant.budgets(self.first.address)[0]
        page.begin_reading()
        page.saw(7, True)
        page.saw(8, False)
        page.end_reading(0)
        self.assertEqual((page.time_wait, page.foreign, page.free), (1, 1, 1))
        self.accountant.go_blind()
        self.assertEqual((page.time_wait, page.foreign, page.free), (1, 0, 2))
        for _ in range(60):
            self.accountant.tick(blind=True)
        self.assertEqual((page.time_wait, page.foreign, page.free), (0, 0, 3))
