"""proxykit.core.health: what becomes of a cluster: panic, slow start, who is told."""

from __future__ import annotations

from twisted.logger import LogLevel, capturedLogs

from proxykit.core.waiting import Full
from proxykit.model import Backend, Cluster
from proxykit.upkeep import Eject, Health
from tests.core import address, backends
from tests.core.test_health import HealthTestCase


class PanicTests(HealthTestCase):
    """Nobody is well."""

    def use(self, *config, **settings):
        super().use(*config, health=Health(rise=1, fall=1), **settings)

    def check(self, well, *numbers):
        for number in numbers:
            standing = self.house.state(number).standing
            if well:
                standing.succeeded()
            else:
                standing.failed("refused")

    def test_without(self):
        self.use()
        self.check(False, 1, 2, 3)
        self.assertEqual(
            self.said(self.check, False, 4),
            [
                "web 10.0.0.4:80: down: refused (1 checks in a row failed)",
                "web: no backend is well: what comes is refused",
            ],
        )
        self.assertIsNone(self.web.pick("c", set()))
        self.assertIs(self.web.snapshot()["panic"], False)
        self.assertEqual(
            self.said(self.check, True, 2),
            [
                "web 10.0.0.2:80: up again: 1 checks in a row succeeded",
                "web: not all backends are unwell any more",
            ],
        )

    def test_with(self):
        self.use(panic=True)
        self.web.set_state(address(4), "drain")
        self.check(False, 1, 2)
        self.assertIs(self.web.snapshot()["panic"], False)
        self.assertIn(
            "web: no backend is well: all 3 are used (panic)", self.said(self.check, False, 3)
        )
        self.assertIs(self.web.snapshot()["panic"], True)
        self.assertEqual(self.usable(), [1, 2, 3])
        self.assertIn(self.web.pick("c", set()), [self.house.state(each) for each in (1, 2, 3)])
        self.check(True, 2)
        self.assertIs(self.web.snapshot()["panic"], False)
        self.assertEqual(self.usable(), [2])

    def test_backups_before_panic(self):
        self.use(*backends(1, 1), Backend(address(3), backup=True), panic=True)
        self.check(False, 1, 2)
        self.assertIs(self.web.pick("c", set()), self.house.state(3))
        self.check(False, 3)
        self.assertIsNot(self.web.pick("c", set()), self.house.state(3))

    def test_drained_ones(self):
        """Nobody is there at all: that is no panic, and its operator knows."""
        self.use(*backends(1, 1), panic=True)
        self.check(False, 1, 2)
        for number in (1, 2):
            self.web.set_state(address(number), "drain")
        self.assertIs(self.web.snapshot()["panic"], False)
        self.assertIsNone(self.web.pick("c", set()))
        self.web.set_state(address(1), "up")
        self.assertEqual(self.usable(), [1])

    def test_the_last_one_leaves(self):
        self.use(panic=True)
        self.check(False, 1, 2, 3)
        self.web.remove(address(4))
        self.assertEqual(self.usable(), [1, 2, 3])

    def test_nobody_is_ejected_then(self):
        self.use(panic=True, eject=Eject(failures=1, max_share=1.0))
        self.check(False, 1, 2, 3, 4)
        self.answer(1, 500)
        self.assertEqual(self.shown()["ejections"], 0)
        self.assertEqual(self.usable(), [1, 2, 3, 4])

    def test_set_by_a_reload(self):
        self.use()
        self.check(False, 1, 2, 3, 4)
        self.web.reconfigure(Cluster("web", backends(1, 1, 1, 1), panic=True), self.house.balancer)
        self.assertEqual(self.usable(), [1, 2, 3, 4])


class SlowStartTests(HealthTestCase):
    """A little first, for who comes to others."""

    def use(self, *config, **settings):
        super().use(*config, health=Health(rise=1, fall=1), **{"slow_start": 9.0, **settings})

    def fall_and_rise(self, number=1):
        standing = self.house.state(number).standing
        standing.failed("refused")
        standing.succeeded()

    def shares(self):
        return [each.share for each in self.web.backends.values()]

    def test_not_at_the_start(self):
        self.use()
        self.a.standing.succeeded()
        self.assertEqual(self.shares(), [1.0] * 4)

    def test_linear(self):
        self.use(*backends(2, 1))
        self.fall_and_rise()
        self.assertEqual((self.shown()["share"], self.shown()["weight"]), (0.1, 2))
        seen = []
        for _ in range(10):
            self.later(1.0)
            seen.append((self.a.share, self.a.weight))
        shares = [share for share, _ in seen]
        self.assertEqual(shares, sorted(shares))
        self.assertIn(shares[4], (0.5, 0.6))
        self.assertLess(shares[7], 1.0)
        for share, weight in seen:
            self.assertAlmostEqual(weight, 2 * share)
        self.later(1.5)
        self.assertEqual((self.a.share, self.a.weight), (1.0, 2.0))
        self.assertEqual(len(self.house.deadlines), 0)

    def test_after_an_ejection(self):
        self.use(eject=Eject(failures=1, time=1.0))
        self.answer(1, 500)
        self.assertEqual(self.shares(), [1.0] * 4)
        self.later(1.3)
        self.assertEqual(self.shares()[0], 0.1)

    def test_after_down_and_not_after_drain(self):
        self.use()
        for state, share in (("drain", 1.0), ("down", 0.1)):
            self.web.set_state(address(1), state)
            self.web.set_state(address(1), "up")
            self.assertEqual(self.shares()[0], share)

    def test_up_and_unwell(self):
        """It begins when it is used."""
        self.use()
        self.a.standing.failed("refused")
        self.web.set_state(address(1), "down")
        self.web.set_state(address(1), "up")
        self.assertEqual(self.shares()[0], 1.0)
        self.a.standing.succeeded()
        self.assertEqual(self.shares()[0], 0.1)

    def test_down_again_meanwhile(self):
        self.use()
        self.fall_and_rise()
        self.later(5)
        self.a.standing.failed("refused")
        self.assertEqual((self.a.share, len(self.house.deadlines)), (1.0, 0))
        self.a.standing.succeeded()
        self.assertEqual(self.a.share, 0.1)
        self.web.remove(address(1))
        self.assertEqual(len(self.house.deadlines), 0)

    def test_none(self):
        self.use(slow_start=0.0)
        self.fall_and_rise()
        self.assertEqual(self.shares(), [1.0] * 4)
        self.assertEqual(len(self.house.deadlines), 0)

    def test_new_ones(self):
        """Those that come to a cluster at work; not the first that a source finds."""
        self.use(*backends(1))
        self.web.discovered((Backend(address(2)), Backend(address(3))))
        self.assertEqual(self.shares(), [1.0] * 3)
        self.web.discovered((Backend(address(2)), Backend(address(3)), Backend(address(4))))
        self.assertEqual(self.shares(), [1.0, 1.0, 1.0, 0.1])
        self.web.reconfigure(
            Cluster("web", (Backend(address(1)), Backend(address(5))), slow_start=9.0),
            self.house.balancer,
        )
        self.assertEqual([self.house.state(1).share, self.house.state(5).share], [1.0, 0.1])

    def test_new_ones_where_nobody_is(self):
        self.use(Backend(address(1)))
        self.web.discovered((Backend(address(2)),))
        for number in (1, 2):
            self.web.set_state(address(number), "down")
        self.web.discovered((Backend(address(2)), Backend(address(3))))
        self.assertEqual(self.house.state(3).share, 1.0)

    def test_another_weight_meanwhile(self):
        self.use()
        self.fall_and_rise()
        config = (Backend(address(1), weight=3), *backends(1, 1, 1, 1)[1:])
        self.web.reconfigure(Cluster("web", config, slow_start=9.0), self.house.balancer)
        self.assertAlmostEqual(self.a.weight, 0.3)

    def test_while_full(self):
        """A balancer does not learn of one that is full."""
        self.use()
        self.web.block(self.a, Full("full"))
        self.fall_and_rise()
        self.later(5)
        picked = {self.web.pick("c", set()) for _ in range(20)}
        self.assertNotIn(self.a, picked)

    def test_log_levels(self):
        self.use()
        with capturedLogs() as events:
            self.fall_and_rise()
        levels = [event["log_level"] for event in events]
        self.assertEqual(levels, [LogLevel.warn, LogLevel.info])


class FollowerTests(HealthTestCase):
    """Who checks the backends is told which there are."""

    def came(self, backend):
        self.seen.append(("came", str(backend.address)))

    def left(self, backend):
        self.seen.append(("left", str(backend.address)))

    def changed(self):
        self.seen.append(("changed", self.web.config.queue))

    def test_told(self):
        self.use(*backends(1))
        self.seen = []
        self.web.follower = self
        self.web.discovered((Backend(address(2)),))
        self.web.discovered(())
        self.web.reconfigure(Cluster("web", (), queue=7), self.house.balancer)
        self.assertEqual(
            self.seen,
            [
                ("came", "10.0.0.2:80"),
                ("left", "10.0.0.2:80"),
                ("left", "10.0.0.1:80"),
                ("changed", 7),
            ],
        )
