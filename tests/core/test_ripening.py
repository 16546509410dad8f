"""Ports that rest for a second alone: who waits for one gets it then, and not a second later."""

from __future__ import annotations

from proxykit.core.budget import TOO_YOUNG
from tests.core.test_accountant_sources import A, SourcesTestCase


class RipeningTests(SourcesTestCase):
    def setUp(self):
        self.told = []
        self.start(ports=2)

    def start(self, **settings):
        self.use(addresses=(A,), **{"reuse": 1, **settings})
        self.accountant.on_ripening = self.told.append

    def close(self, port):
        """A connection that rests from now on."""
        lease = self.lease(port=port)
        lease.closed_by = "proxy"
        lease.release()

    def after(self, seconds):
        self.house.clock.advance(seconds)
        self.accountant.ripen()
        return self.first.full is None

    def test_when(self):
        """The oldest is the first; before anybody is refused nobody need look."""
        self.close(1)
        self.house.clock.advance(0.25)
        self.close(2)
        self.assertEqual(self.told, [])
        self.refuse(self.first)
        self.assertEqual(self.told, [TOO_YOUNG - 0.25])
        self.assertTrue(self.after(0.75))
        self.lease(port=1)
        self.refuse(self.first)
        self.assertEqual(self.told, [TOO_YOUNG - 0.25, 0.25])

    def test_not_yet(self):
        """Whoever looks too early is told once more."""
        self.close(1)
        self.close(2)
        self.refuse(self.first)
        self.assertFalse(self.after(0.75))
        self.assertEqual(self.told, [TOO_YOUNG, 0.25])
        self.assertTrue(self.after(0.25))
        self.assertEqual(len(self.told), 2)

    def test_nothing_rests(self):
        self.lease(port=1)
        self.lease(port=2)
        self.refuse(self.first)
        self.assertFalse(self.after(5))
        self.assertEqual(self.told, [])

    def test_for_a_minute(self):
        """Where it is never given out again before its time."""
        self.start(ports=1, reuse=0)
        self.close(1)
        self.refuse(self.first)
        self.assertFalse(self.after(5))
        self.assertEqual(self.told, [])

    def test_nobody_looks(self):
        self.accountant.on_ripening = None
        self.close(1)
        self.close(2)
        self.refuse(self.first)
        self.assertFalse(self.after(0.5))
        self.assertTrue(self.after(0.5))
