"""proxykit.core.accountant: each budget is watched, and who crosses a line is told of once."""

from __future__ import annotations

import json
from itertools import count

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.forecast import CALM, MINUTE, WARM_UP, Level
from proxykit.model import Address, Backend, PortRange
from tests.core import HERE, House, address, backends

WAY = f"from {HERE} to 10.0.0.1:80"


class BookTests(SynchronousTestCase):
    def setUp(self):
        self.house = House(*backends(1, 1), ports=1000, headroom=0.0)
        self.told = []
        self.house.accountant.on_level = lambda *crossed: self.told.append(crossed)
        self.leases = []
        self.port = 0

    def pass_by(self, seconds, taken=0, released=0, late=0.0):
        """Each second so many ports are taken, and so many given back."""
        accountant, backend = self.house.accountant, self.house.state(1)
        for _ in range(seconds):
            for _ in range(taken):
                self.leases.append(accountant.lease(backend))
                self.port += 1
                self.leases[-1].named(self.port)
                self.leases[-1].connected()
            for _ in range(released):
                self.leases.pop(0).release()
            accountant.tick(1.0 + late)

    def short(self, seconds, each):
        """Connections that are closed by us in the second in which they were made."""
        for _ in range(seconds):
            for _ in range(each):
                lease = self.house.accountant.lease(self.house.state(1))
                self.port = self.port % 1000 + 1
                lease.named(self.port)
                lease.connected()
                lease.closed_by = "proxy"
                lease.release()
            self.house.accountant.tick()

    def shown(self, number=0):
        """As it is in ``/api/ports``."""
        shown = self.house.accountant.snapshot()[number]
        json.dumps(shown)
        return shown["forecast_seconds"], shown["level"]

    def test_a_rise(self):
        """The forecast, the two warnings, and that it is over: one line each."""
        self.pass_by(WARM_UP - 1, taken=3)
        self.assertEqual(self.shown(), (None, "ok"))
        self.pass_by(1, taken=3)
        self.assertEqual(self.shown(), (round(985 / 3, 1), "ok"))
        self.pass_by(161, taken=3)
        self.assertEqual(self.told, [])
        self.pass_by(1, taken=3)
        self.assertEqual(self.shown(), (round(499 / 3, 1), "half"))
        ((level, before, text),) = self.told
        self.assertEqual((level, before), (Level.HALF, Level.OK))
        self.assertIn(f"half of the source ports {WAY} are taken", text)
        self.assertIn(": 501 of 1000 (501 active); as it goes on there is none in 3 min;", text)
        self.pass_by(110, taken=3)
        self.assertEqual(len(self.told), 1)
        # Less than a minute, for five seconds.
        self.pass_by(1, taken=3)
        self.assertEqual(self.shown()[1], "low")
        level, before, text = self.told[1]
        self.assertEqual((level, before), (Level.LOW, Level.HALF))
        self.assertIn(f"source ports {WAY} are running out: 834 of 1000 (834 active)", text)
        self.pass_by(55, taken=3)
        self.pass_by(1, taken=1)
        self.assertEqual(self.shown(), (0.0, "low"))
        self.assertEqual(len(self.told), 2)
        self.pass_by(10, released=90)
        self.pass_by(int(CALM) - 10)
        self.assertEqual(self.shown(), (None, "low"))
        self.pass_by(10)
        self.assertEqual(self.shown(), (None, "ok"))
        self.assertEqual(
            self.told[2:],
            [
                (
                    Level.OK,
                    Level.LOW,
                    f"there are enough source ports {WAY} again: 100 of 1000 (100 active)",
                )
            ],
        )

    def test_each_for_itself(self):
        self.pass_by(60, taken=3)
        self.house.accountant.budgets(address(2))
        self.assertEqual(self.shown(0)[0], round(820 / 3, 1))
        self.assertEqual(self.shown(1), (None, "ok"))

    def test_nobody_listens(self):
        self.house.accountant.on_level = None
        self.pass_by(1, taken=500)
        self.assertEqual(self.shown(), (None, "half"))

    def test_what_others_have(self):
        """They make a trend as well."""
        (budget,) = self.house.accountant.budgets(self.house.state(1).address)
        for _ in range(60):
            budget.foreign += 3
            budget.settle()
            self.house.accountant.tick()
        self.assertEqual(self.shown()[0], round(820 / 3, 1))

    def test_late(self):
        """Three in a second and a half are two in one."""
        self.pass_by(60, taken=3, late=0.5)
        self.assertEqual(self.shown()[0], 410.0)

    def test_late_when_it_is_over(self):
        """Two half minutes are a minute."""
        self.pass_by(1, taken=500)
        self.pass_by(1, released=500)
        self.pass_by(1, late=CALM / 2 - 1)
        self.assertEqual(self.shown()[1], "half")
        self.pass_by(1, late=CALM / 2 - 1)
        self.assertEqual(self.shown()[1], "ok")

    def test_less_scarce(self):
        self.pass_by(1, taken=900)
        self.pass_by(1, released=200)
        self.pass_by(int(CALM))
        self.assertEqual([each[:2] for each in self.told[1:]], [(Level.HALF, Level.LOW)])
        self.assertIn("do not run out any more", self.told[1][2])

    def test_time_wait(self):
        """A minute's worth of short connections, and no more; its share is told."""
        self.short(MINUTE - 1, 8)
        self.assertEqual(self.shown(), (None, "ok"))
        self.short(1, 20)
        self.assertEqual([each[0] for each in self.told], [])
        self.short(60, 9)
        ((level, _, text),) = self.told
        self.assertIs(level, Level.HALF)
        self.assertIn("in TIME_WAIT)", text)
        self.assertIn("tcp_tw_reuse", text)
        self.short(60, 9)
        self.assertEqual(self.shown()[1], "half")
        self.assertEqual(len(self.told), 1)

    def test_time_wait_that_is_too_much(self):
        """Told in time: 20 in a second fill 1,000 ports in 50."""
        self.short(20, 20)
        self.assertApproximates(self.shown()[0], 30, 1)

    def test_time_wait_that_does_not_count(self):
        """The kernel gives such ports out again."""
        accountant = self.house.accountant
        accountant.measure(accountant.ports, 1)
        accountant.seconds = count().__next__
        self.short(40, 20)
        self.assertEqual(self.shown(), (None, "ok"))
        (budget,) = self.house.accountant
        self.assertEqual(budget.closings, 0)
        self.assertGreater(budget.time_wait, 500)
        self.pass_by(1, taken=500)
        text = budget.warning(Level.OK, halves=True)
        self.assertIn("500 of 1000 (500 active)", text)
        self.assertNotIn("TIME_WAIT", text)

    def test_what_is_said(self):
        """All that is known of a budget, and of the kernel."""
        self.house.accountant.headroom = 0.05
        self.house.accountant.measure(PortRange(1, 1050), 0)
        leases = self.leases
        self.pass_by(1, taken=520)
        self.house.accountant.lease(self.house.state(1))  # It is being connected.
        for lease in leases[:10]:
            lease.idle()
        leases[10].closed_by = "proxy"
        leases[10].release()
        (budget, *_) = self.house.accountant
        budget.begin_reading()
        for port in range(900, 907):
            budget.saw(port, rests=False)
        budget.saw(11, rests=True)
        budget.end_reading(0)
        text = budget.warning(Level.OK, halves=True)
        self.assertIn("527 of 997 (510 active, 10 idle, 1 in TIME_WAIT, 6 of other", text)
        self.assertIn("takes the kernel longer", text)
        self.assertIn("another address or port of the backend", text)
        self.assertIn("port_range in", text)
        self.assertIn("ip_local_port_range", text)
        self.assertNotIn("port_range in", budget.warning(Level.OK, halves=False))

    def test_plain(self):
        self.house = House(
            *backends(1), ports=100, headroom=0.0, addresses=(HERE,), late=False, reuse=1
        )
        self.house.accountant.on_level = lambda *crossed: self.told.append(crossed)
        self.pass_by(1, taken=50)
        self.assertIn("the proxykit reactor", self.told[0][2])
        self.assertIn(f"half of the source ports from {HERE} are taken", self.told[0][2])
        (budget,) = self.house.accountant
        self.leases[0].closed_by = "proxy"
        self.pass_by(1, released=1)
        self.assertEqual(budget.closings, 1)

    def test_halves(self):
        """The accountant knows."""
        self.house.accountant.halves = False
        self.pass_by(1, taken=500)
        self.assertNotIn("kernel", self.told[0][2])

    def test_scarce(self):
        """Each lease knows, from half of the ports on; a unix socket needs none."""
        self.pass_by(1, taken=500)
        self.assertFalse(self.leases[0].scarce)
        self.pass_by(1, taken=1)
        self.assertTrue(self.leases[0].scarce)
        house = House(Backend(Address("/run/x", 0)), ports=0)
        (backend,) = house.web.backends.values()
        self.assertFalse(house.accountant.lease(backend).scarce)

    def test_another_size(self):
        """The range was made wider, or narrower: the trend stays, and the room is another."""
        self.pass_by(60, taken=3)
        budget = next(iter(self.house.accountant))
        for size in (2000, 400):
            budget.measure(size, 0.0, 0)
            self.pass_by(1, taken=3)
            self.assertEqual(self.shown()[0], round((size - budget.used) / 3, 1))

    def test_a_port_that_was_denied(self):
        """One that the kernel did not give once does not make a trend."""
        self.pass_by(60, taken=3)
        lease = self.house.accountant.lease(self.house.state(1))
        lease.denied("none left")
        lease.release()
        self.pass_by(1)
        self.assertApproximates(self.shown()[0], 820 / 3, 10)
        self.assertEqual(self.told, [])

    def test_ports_that_are_denied_for_long(self):
        """Asked again and again, the kernel shows no reason: they count, and make no trend."""
        self.pass_by(60, taken=3)
        (budget, *_) = self.house.accountant
        lease = self.house.accountant.lease(self.house.state(1))
        lease.denied("none left")
        lease.release()
        for unseen in (819, 409, 204):
            budget.begin_reading()
            for port in range(1, 181):
                budget.saw(port, rests=False)
            budget.end_reading(0)
            self.pass_by(1)
            self.assertEqual(budget.unseen, unseen)
            self.assertApproximates(self.shown()[0], (820 - unseen) / 3, 0.2 * (820 - unseen) / 3)
