"""proxykit.core.budget: what one page of the book says, whatever becomes of its ports."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.budget import TIME_WAIT, none_left
from proxykit.model import BudgetKey
from tests.core import HERE, House, backends
from tests.core.budgets import ALWAYS, COARSE, KEY, NEVER, ON_LOOPBACK, budget_of, give, read, take


class SizeTests(SynchronousTestCase):
    def test_limit(self):
        for size, headroom, limit in (
            (28232, 0.02, 27667),
            (200, 0.02, 196),
            (100, 0.0, 100),
            (10, 0.9, 1),
            (100, 0.07, 93),
            (0, 0.02, 0),
        ):
            budget = budget_of(size, headroom)
            self.assertEqual((budget.limit, budget.free, budget.used), (limit, limit, 0))

    def test_measured_anew(self):
        """What is out stays out, even if that is more than there is by now."""
        budget = budget_of(10)
        take(budget, 1, 2, 3)
        for size, free in ((20, 17), (4, 1), (2, -1)):
            budget.measure(size, 0.0, NEVER)
            self.assertEqual((budget.size, budget.limit, budget.free), (size, size, free))
        budget.measure(100, 0.5, NEVER)
        self.assertEqual((budget.limit, budget.free), (50, 47))

    def test_reuse(self):
        """Where the kernel gives what rests out again, that is gone for a second only."""
        loopback = BudgetKey("tcp", "127.0.0.1", "127.0.0.9", 80)
        six = BudgetKey("tcp", "::1", "::1", 80)
        for key, reuse, reuses in (
            (KEY, NEVER, False),
            (KEY, ALWAYS, True),
            (KEY, ON_LOOPBACK, False),
            (loopback, NEVER, False),
            (loopback, ON_LOOPBACK, True),
            (six, ON_LOOPBACK, True),
            # After a plain bind nothing is given out again.
            (COARSE, ALWAYS, False),
            (BudgetKey("tcp", "127.0.0.1"), ON_LOOPBACK, False),
        ):
            budget = budget_of(key=key, reuse=reuse)
            self.assertEqual(budget.reuses, reuses, (key, reuse))
            take(budget, 5)
            give(budget, 5, rests=True, now=100.0)
            for now, free in ((100.0, 9), (100.9, 9), (101.0, 10 if reuses else 9)):
                budget.grow(now)
                self.assertEqual((budget.time_wait, budget.free), (1, free), (key, now))

    def test_another_size(self):
        """What is too young to be given out again is so still."""
        budget = budget_of(reuse=ALWAYS)
        take(budget, 5)
        give(budget, 5, rests=True, now=5.0)
        budget.measure(20, 0.0, ALWAYS)
        self.assertEqual((budget.kept, budget.free), (1, 19))
        budget.grow(6.0)
        self.assertEqual((budget.kept, budget.free), (0, 20))

    def test_reuse_is_switched(self):
        budget = budget_of()
        take(budget, 5)
        give(budget, 5, rests=True)
        for reuse, free in ((ALWAYS, 10), (NEVER, 9)):
            budget.measure(10, 0.0, reuse)
            self.assertEqual((budget.time_wait, budget.free), (1, free))
        budget.measure(10, 0.0, ALWAYS)
        take(budget, 6)
        give(budget, 6, rests=True, now=5.0)
        budget.measure(10, 0.0, NEVER)
        budget.grow(6.0)
        self.assertEqual((budget.time_wait, budget.free), (2, 8))


class LeftTests(SynchronousTestCase):
    """What becomes of a port that is given back."""

    def test_at_once(self):
        """One that never rests, and one that was never picked, can be had again at once."""
        for port in (5, 0):
            budget = budget_of()
            take(budget, port)
            self.assertEqual((budget.free, budget.ports), (9, {port} - {0}))
            give(budget, port)
            self.assertEqual((budget.free, budget.time_wait, budget.ports), (10, 0, set()))

    def test_never_picked(self):
        """What has no port cannot rest, whoever was to close it first."""
        budget = budget_of()
        take(budget, 0)
        give(budget, 0, rests=True)
        self.assertEqual((budget.free, budget.time_wait), (10, 0))

    def test_a_minute(self):
        budget = budget_of()
        for port, second in ((5, 100), (6, 100), (7, 130)):
            take(budget, port)
            give(budget, port, rests=True, second=second)
        for second, resting in ((159, 3), (100 + TIME_WAIT, 1), (189, 1), (190, 0)):
            budget.age(second)
            self.assertEqual((budget.time_wait, budget.free), (resting, 10 - resting), second)

    def test_had_again_while_it_rests(self):
        """The kernel had more to give than was known: it rests no more."""
        budget = budget_of()
        take(budget, 5)
        give(budget, 5, rests=True)
        take(budget, 5)
        self.assertEqual((budget.time_wait, budget.used, budget.free), (0, 1, 9))
        give(budget, 5)
        self.assertEqual(budget.free, 10)

    def test_had_again_where_that_is_usual(self):
        """It comes free once, when its second is over, however often it was had meanwhile."""
        budget = budget_of(reuse=ALWAYS)
        take(budget, 5)
        give(budget, 5, rests=True, now=10.0)
        budget.grow(11.0)
        take(budget, 5)
        self.assertEqual((budget.time_wait, budget.free), (0, 9))
        give(budget, 5, rests=True, now=11.5)
        take(budget, 5)
        self.assertEqual((budget.time_wait, budget.free), (0, 8))
        budget.grow(12.5)
        self.assertEqual(budget.free, 9)
        give(budget, 5)
        self.assertEqual((budget.free, budget.kept), (10, 0))

    def test_young_and_old(self):
        budget = budget_of(reuse=ALWAYS)
        for port in (1, 2, 3, 4):
            take(budget, port)
            give(budget, port, rests=True, now=port / 4)
        for now, free in ((1.2, 6), (1.5, 8), (1.8, 9), (2.0, 10), (9.0, 10)):
            budget.grow(now)
            self.assertEqual((budget.free, budget.time_wait), (free, 4), now)
            self.assertEqual(budget.kept, 10 - free)

    def test_rests_again(self):
        """The minute counts from its last close, and those behind it do not wait for it."""
        budget = budget_of()
        for port, second in ((5, 0), (6, 10), (5, 20)):
            take(budget, port)
            give(budget, port, rests=True, second=second)
        for second, resting in ((70, 1), (79, 1), (80, 0)):
            budget.age(second)
            self.assertEqual(budget.time_wait, resting, second)


class TextTests(SynchronousTestCase):
    def test_way(self):
        for key, way in (
            (KEY, "from 10.9.9.9 to 10.0.0.1:80"),
            (BudgetKey("tcp", "::1", "fd00::1", 80), "from ::1 to [fd00::1]:80"),
            (COARSE, "from 10.9.9.9"),
        ):
            self.assertEqual(budget_of(key=key).way, way)

    def test_none_left(self):
        """Whatever takes ports is named, and nothing else."""
        budget = budget_of(200, headroom=0.02)
        take(budget, *range(1, 197))
        self.assertEqual(
            none_left((budget,)),
            "no source port is left from 10.9.9.9 to 10.0.0.1:80"
            " (196 of 200 in use, 4 kept as headroom)",
        )
        give(budget, *range(1, 101), rests=True)
        read(budget, *((port, True) for port in range(1, 31)), (200, False), listening=1)
        take(budget, 0)
        budget.denied()
        give(budget, 0)
        self.assertEqual(
            none_left((budget,)),
            "no source port is left from 10.9.9.9 to 10.0.0.1:80 (96 of 200 in use,"
            " 30 in TIME_WAIT, 2 of other processes, 68 refused by the kernel,"
            " 4 kept as headroom)",
        )

    def test_none_left_from_several(self):
        pages = [budget_of(10, 0.2, BudgetKey("tcp", each, "10.0.0.1", 80)) for each in "ab"]
        take(pages[0], *range(1, 9))
        take(pages[1], *range(1, 7))
        read(pages[1], (9, False), (10, False))
        self.assertEqual(
            none_left(tuple(pages)),
            "no source port is left from a, b to 10.0.0.1:80"
            " (14 of 20 in use, 2 of other processes, 4 kept as headroom)",
        )

    def test_none_left_of_a_plain_bind(self):
        budget = budget_of(1, key=COARSE)
        take(budget, 1)
        self.assertEqual(
            none_left((budget,)),
            "no source port is left from 10.9.9.9 (1 of 1 in use, 0 kept as headroom)",
        )

    def test_rest_that_takes_nothing(self):
        """Where the kernel gives it out again it is why there is none for a second only."""
        budget = budget_of(2, reuse=ALWAYS)
        take(budget, 1)
        give(budget, 1, rests=True, now=10.0)
        take(budget, 2)
        self.assertIn("1 of 2 in use, 1 in TIME_WAIT", none_left((budget,)))
        budget.grow(11.0)
        take(budget, 3)
        self.assertNotIn("TIME_WAIT", none_left((budget,)))
        self.assertEqual(budget.snapshot()["time_wait"], 1)

    def test_snapshot(self):
        house = House(*backends(1), ports=28232, headroom=0.02)
        leases = [house.accountant.lease(house.state(1)) for _ in range(6)]
        for number, lease in enumerate(leases, 1):
            lease.named(number)
        for lease in leases[:3]:
            lease.connected()
        leases[0].idle()
        leases[5].closed_by = "proxy"
        leases[5].release()
        (budget,) = house.accountant
        budget.begin_reading()
        budget.saw(6, True)
        for port in (100, 101, 102):
            budget.saw(port, False)
        budget.end_reading(1)
        (shown,) = house.accountant.snapshot()
        json.dumps(shown)
        self.assertEqual(
            shown,
            {
                "protocol": "tcp",
                "source": HERE,
                "destination": "10.0.0.1:80",
                "size": 28232,
                "active": 2,
                "idle": 1,
                "reserved": 2,
                "time_wait": 1,
                "foreign": 4,
                "free": 27657,
                "forecast_seconds": None,
                "level": "ok",
                "headroom": 565,
                "denied": 0,
            },
        )

    def test_snapshot_of_a_plain_bind(self):
        shown = budget_of(key=COARSE).snapshot()
        self.assertEqual((shown["source"], shown["destination"]), (HERE, "*"))
