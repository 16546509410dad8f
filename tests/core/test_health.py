"""proxykit.core.health: what takes a backend out of service, and how it comes back."""

from __future__ import annotations

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.choice import Attempt
from proxykit.core.waiting import Full
from proxykit.errors import ProxyError
from proxykit.model import Backend, Cluster
from proxykit.upkeep import Eject, Health
from tests.core import House, address, backends, refusal


class HealthTestCase(SynchronousTestCase):
    """Four equal backends, numbered from 1."""

    def use(self, *config, **settings):
        settings.setdefault("slow_start", 0.0)
        self.house = House(*(config or backends(1, 1, 1, 1)), **settings)
        self.web, self.clock = self.house.web, self.house.clock
        self.a = self.house.state(1)

    def usable(self):
        return [number for number in range(1, 10) if self.is_usable(number)]

    def is_usable(self, number):
        backend = self.web.backends.get(address(number))
        return backend is not None and backend.usable

    def shown(self, number=1):
        return self.house.state(number).snapshot()

    def said(self, act, *arguments):
        """What the log has of it, but for names."""
        with capturedLogs() as events:
            act(*arguments)
        return [formatEvent(event) for event in events]

    def later(self, seconds):
        """Let time pass, until a little after all deadlines that come then."""
        for _ in range(int(seconds / 0.05)):
            self.clock.advance(0.05)

    def answer(self, number, status, times=1, seconds=0.1):
        for _ in range(times):
            self.house.state(number).answered(status, seconds)


class CheckTests(HealthTestCase):
    """So many in a row, for the better or the worse."""

    def setUp(self):
        self.use(health=Health(rise=2, fall=3))

    def check(self, *results):
        for result in results:
            if result:
                self.a.standing.succeeded()
            else:
                self.a.standing.failed("refused")

    def test_begins_as_usable(self):
        self.assertEqual(self.usable(), [1, 2, 3, 4])
        self.assertEqual((self.shown()["health"], self.shown()["why"]), ("unknown", None))
        self.check(True)
        self.assertEqual(self.shown()["health"], "up")

    def test_fall(self):
        self.check(False, False)
        self.assertEqual((self.shown()["health"], self.shown()["why"]), ("unknown", "refused"))
        self.assertIn(1, self.usable())
        self.assertEqual(
            self.said(self.check, False),
            ["web 10.0.0.1:80: down: refused (3 checks in a row failed)"],
        )
        self.assertEqual(self.usable(), [2, 3, 4])
        self.assertEqual(self.shown()["health"], "down")
        self.assertEqual(self.said(self.check, False), [])

    def test_only_in_a_row(self):
        self.check(False, False, True, False, False)
        self.assertEqual((self.shown()["health"], self.usable()), ("up", [1, 2, 3, 4]))
        self.assertEqual(self.shown()["why"], "refused")
        self.check(True)
        self.assertIsNone(self.shown()["why"])

    def test_rise(self):
        self.check(False, False, False, True, False, True)
        self.assertEqual((self.shown()["health"], self.usable()), ("down", [2, 3, 4]))
        self.assertEqual(
            self.said(self.check, True),
            ["web 10.0.0.1:80: up again: 2 checks in a row succeeded"],
        )
        self.assertEqual(self.usable(), [1, 2, 3, 4])
        self.assertEqual((self.shown()["health"], self.shown()["why"]), ("up", None))

    def test_no_longer_checked(self):
        self.check(False, False, False)
        self.a.standing.unchecked()
        self.assertEqual(self.usable(), [1, 2, 3, 4])
        self.assertEqual((self.shown()["health"], self.shown()["why"]), ("unknown", None))

    def test_skipped(self):
        """Why there is no answer is shown, unless there is something worse to show."""
        self.a.standing.skipped("no port")
        self.assertEqual(
            (self.shown()["health"], self.shown()["why"]), ("unknown", "not checked: no port")
        )
        self.check(False)
        self.a.standing.skipped("no port")
        self.assertEqual(self.shown()["why"], "refused")
        self.check(True)
        self.assertIsNone(self.shown()["why"])

    def test_without_settings_there_are_the_defaults(self):
        self.use()
        self.check(False, False)
        self.assertIn(1, self.usable())
        self.check(False)
        self.assertNotIn(1, self.usable())

    def test_drained_is_checked_on(self):
        """The operator's word and the health are apart."""
        self.web.set_state(self.a.address, "drain")
        self.check(False, False, False)
        self.assertEqual((self.shown()["state"], self.shown()["health"]), ("drain", "down"))
        self.web.set_state(self.a.address, "up")
        self.assertEqual(self.usable(), [2, 3, 4])
        self.check(True, True)
        self.assertEqual(self.usable(), [1, 2, 3, 4])

    def test_who_left_and_comes_back_begins_anew(self):
        lease = self.house.accountant.lease(self.a)
        self.check(False, False, False)
        self.web.remove(self.a.address)
        self.assertIs(self.web.add(Backend(self.a.address)), self.a)
        self.assertEqual(self.usable(), [1, 2, 3, 4])
        self.assertEqual(self.shown()["health"], "unknown")
        lease.release()

    def test_waiting_ones_are_served(self):
        """Who waits for a full backend may have the one that comes back."""
        self.use(*backends(1, 1))
        self.a.standing.checked = None
        self.check(False, False, False)
        self.web.block(self.house.state(2), Full("full"))
        result = self.house.flow.upstream(self.house.choice())
        self.assertEqual(len(self.web.queue), 1)
        self.check(True, True)
        self.assertEqual(len(self.web.queue), 0)
        (attempt,) = self.house.connector.under_way
        self.assertIs(attempt.backend, self.a)
        self.house.connector.succeed(attempt)
        self.successResultOf(result)

    def test_waiting_ones_are_told_that_nobody_is_left(self):
        self.use(*backends(1))
        self.web.block(self.a, Full("full"))
        result = self.house.flow.upstream(self.house.choice())
        self.check(False, False, False)
        error = self.failureResultOf(result, ProxyError).value
        self.assertEqual((error.message, error.status), ("no backend of cluster web is up", 503))


class EjectTests(HealthTestCase):
    """What traffic shows."""

    def test_failures(self):
        self.use(eject=Eject(failures=3, time=10.0))
        for status in (500, 502):
            self.answer(1, status)
        self.assertEqual(self.usable(), [1, 2, 3, 4])
        self.assertEqual(
            self.said(self.answer, 1, 503),
            ["web 10.0.0.1:80: ejected for 10 s: 3 failures in a row, the last: it answered 503"],
        )
        self.assertEqual(self.usable(), [2, 3, 4])
        self.assertEqual(self.shown()["ejected_seconds"], 10.0)
        self.assertEqual(self.shown()["ejections"], 1)
        self.assertEqual(self.shown()["why"], "3 failures in a row, the last: it answered 503")

    def test_which_answers_count(self):
        self.use(eject=Eject(failures=2))
        for status in (200, 404, 499, 501, 505, 507):
            self.answer(1, status, 2)
        self.assertEqual(self.usable(), [1, 2, 3, 4])
        self.answer(1, 504, 2)
        self.assertEqual(self.usable(), [2, 3, 4])

    def test_only_in_a_row(self):
        self.use(eject=Eject(failures=2))
        for status in (500, 200, 500, 501, 500, 404):
            self.answer(1, status)
        self.assertEqual(self.usable(), [1, 2, 3, 4])
        self.assertEqual(self.a.notable, float("inf"))

    def test_failed_attempts(self):
        """At L4 a connection that is there ends the row; at L7 only an answer does."""
        self.use(eject=Eject(failures=2))
        for _ in range(3):
            self.a.failed("connect failed")
            self.a.works()
        self.assertIn(1, self.usable())
        self.a.failed("connect failed")
        self.a.works(answers=True)
        self.assertIn(1, self.usable())
        self.a.failed("it closed the connection")
        self.assertNotIn(1, self.usable())
        self.assertEqual(
            self.shown()["why"], "2 failures in a row, the last: it closed the connection"
        )

    def test_through_flow(self):
        """A whole choice: the backend that refuses is left alone after two."""
        self.use(*backends(1, 1), eject=Eject(failures=2))
        self.house.connector.script(address(1), refusal())
        self.house.connector.script(address(2), True)
        for _ in range(8):
            self.house.flow.upstream(self.house.choice()).end()
        self.assertEqual((self.a.failures, self.usable()), (2, [2]))

    def test_slow_answers(self):
        self.use(eject=Eject(failures=0, slower_than=0.5, slow=3))
        for seconds in (0.6, 0.6, 0.5, 0.6, 0.6):
            self.answer(1, 200, seconds=seconds)
        self.assertIn(1, self.usable())
        self.answer(1, 404, seconds=1.25)
        self.assertNotIn(1, self.usable())
        self.assertEqual(self.shown()["why"], "3 in a row took longer than 0.5 s, the last 1.25 s")

    def test_slow_connects(self):
        self.use(eject=Eject(slower_than=0.5, slow=2))
        attempt = Attempt(self.house.flow, self.house.choice(), self.a)
        for seconds in (0.6, 0.4, 0.6):
            attempt.connected(seconds)
        self.assertIn(1, self.usable())
        attempt.connected(0.6)
        self.assertNotIn(1, self.usable())

    def test_slow_ones_are_fine(self):
        self.use(eject=Eject(slow=1))
        self.answer(1, 200, 10, seconds=60.0)
        self.a.connected(60.0)
        self.assertIn(1, self.usable())

    def test_failures_are_fine(self):
        self.use(eject=Eject(failures=0))
        self.answer(1, 500, 100)
        self.assertIn(1, self.usable())

    def test_it_comes_back_by_itself(self):
        self.use(eject=Eject(failures=2, time=10.0))
        self.answer(1, 500, 2)
        self.later(4)
        self.assertAlmostEqual(self.shown()["ejected_seconds"], 6.0)
        self.later(5.9)
        self.assertNotIn(1, self.usable())
        self.assertEqual(self.said(self.later, 1.5), ["web 10.0.0.1:80: back after 10 s"])
        self.assertIn(1, self.usable())
        self.assertEqual((self.shown()["ejected_seconds"], self.shown()["why"]), (None, None))
        self.assertEqual(len(self.house.deadlines), 0)

    def test_on_trial_after_that(self):
        """The first failure is enough, whatever kind it is, until it has done its work once."""
        for fails in (lambda: self.answer(1, 500), lambda: self.a.failed("refused")):
            self.use(eject=Eject(failures=3))
            self.answer(1, 500, 3)
            self.later(12)
            (line,) = [each for each in self.said(fails) if "ejected" in each]
            self.assertIn("ejected for 20 s: it failed again at once: ", line)
            self.assertNotIn(1, self.usable())

    def test_a_new_row_once_it_works(self):
        for works in (lambda: self.answer(1, 200), lambda: self.a.works()):
            self.use(eject=Eject(failures=2))
            self.answer(1, 500, 2)
            self.later(12)
            works()
            self.answer(1, 500)
            self.assertIn(1, self.usable())
            self.answer(1, 500)
            self.assertNotIn(1, self.usable())

    def test_on_trial_where_failures_are_fine(self):
        """It was ejected for being slow."""
        self.use(eject=Eject(failures=0, slower_than=1.0, slow=1))
        self.answer(1, 200, seconds=2.0)
        self.later(12)
        self.answer(1, 500)
        self.assertIn(1, self.usable())

    def test_longer_and_longer(self):
        self.use(eject=Eject(failures=1, time=10.0, max_time=25.0))
        for seconds in (10.0, 20.0, 25.0, 25.0):
            self.answer(1, 500)
            self.assertEqual(self.shown()["ejected_seconds"], seconds)
            self.later(seconds + 3)
            self.assertIn(1, self.usable())
        self.assertEqual(self.shown()["ejections"], 4)

    def test_forgotten_in_time(self):
        """It was well for as long as it was away."""
        self.use(eject=Eject(failures=1, time=10.0))
        for seconds in (10.0, 20.0):
            self.answer(1, 500)
            self.assertEqual(self.shown()["ejected_seconds"], seconds)
            self.later(seconds + 3)
        self.later(20)
        self.answer(1, 500)
        self.assertEqual(self.shown()["ejected_seconds"], 10.0)

    def test_in_flight_ones_do_not_count(self):
        """What was sent there before it was left alone may still fail."""
        self.use(eject=Eject(failures=2))
        self.answer(1, 500, 10)
        self.a.failed("lost")
        self.assertEqual(self.shown()["ejections"], 1)
        self.assertEqual(self.shown()["ejected_seconds"], 10.0)

    def test_at_most_a_share(self):
        for share, most in ((0.0, 0), (0.24, 0), (0.5, 2), (0.7, 2), (0.75, 3), (1.0, 4)):
            self.use(eject=Eject(failures=1, max_share=share))
            for number in (1, 2, 3, 4):
                self.answer(number, 500)
            self.assertEqual(self.usable(), [1, 2, 3, 4][most:])

    def test_the_only_one(self):
        self.use(*backends(1), eject=Eject(failures=1))
        self.assertEqual(self.said(self.answer, 1, 500), [])
        self.assertEqual(self.usable(), [1])

    def test_those_that_checks_found_unwell_count(self):
        """And who is drained is not there at all."""
        self.use(eject=Eject(failures=2), health=Health(fall=1))
        self.web.set_state(address(4), "drain")
        self.house.state(3).standing.failed("refused")
        self.answer(1, 500)
        self.assertEqual(
            self.said(self.answer, 1, 500),
            [
                "web 10.0.0.1:80: not ejected, for 1 of 3 are left alone already (max_share ="
                " 0.5): 2 failures in a row, the last: it answered 500"
            ],
        )
        self.assertEqual(self.said(self.answer, 1, 500), [])  # not again so soon
        self.house.state(3).standing.checked = None
        self.house.state(3).standing.unchecked()
        self.answer(1, 500)
        self.assertEqual(self.usable(), [2, 3])

    def test_a_check_that_rises_ends_it(self):
        """It was ejected for the outage that the checks have noted as well."""
        self.use(eject=Eject(failures=1, time=60.0), health=Health(rise=1, fall=1))
        self.answer(1, 500)
        self.a.standing.succeeded()  # for which a connect is enough, say
        self.assertNotIn(1, self.usable())
        self.assertIn("it answered 500", self.shown()["why"])
        self.a.standing.failed("refused")
        self.a.standing.succeeded()
        self.assertIn(1, self.usable())
        self.assertEqual((self.shown()["ejected_seconds"], self.shown()["why"]), (None, None))
        self.assertEqual(len(self.house.deadlines), 0)

    def test_back_and_still_unwell(self):
        self.use(eject=Eject(failures=1), health=Health(fall=1))
        self.answer(1, 500)
        self.a.standing.failed("refused")
        self.later(12)
        self.assertNotIn(1, self.usable())
        self.assertEqual((self.shown()["ejected_seconds"], self.shown()["why"]), (None, "refused"))

    def test_no_longer_checked(self):
        self.use(eject=Eject(failures=1))
        self.answer(1, 500)
        self.a.standing.unchecked()
        self.assertNotIn(1, self.usable())
        self.assertIn("it answered 500", self.shown()["why"])

    def test_who_left_is_left_alone_no_more(self):
        self.use(eject=Eject(failures=1))
        self.answer(1, 500)
        self.web.remove(address(1))
        self.assertEqual(len(self.house.deadlines), 0)
        self.a.answered(500, 0.1)
        self.assertEqual(len(self.house.deadlines), 0)

    def test_at_the_end(self):
        self.use(eject=Eject(failures=1), slow_start=10.0)
        self.answer(1, 500)
        self.web.set_state(address(2), "down")
        self.web.set_state(address(2), "up")
        self.assertEqual(len(self.house.deadlines), 2)
        self.web.rest()
        self.assertEqual(len(self.house.deadlines), 0)
        self.assertEqual(self.usable(), [1, 2, 3, 4])
        self.answer(3, 500)
        self.web.set_state(address(2), "down")
        self.web.set_state(address(2), "up")
        self.assertEqual(len(self.house.deadlines), 0)
        self.web.go_on()
        self.answer(3, 500)
        self.assertEqual(self.usable(), [1, 2, 4])

    def test_other_settings(self):
        self.use(eject=Eject(failures=5))
        self.answer(1, 500, 4)
        self.web.reconfigure(
            Cluster("web", backends(1, 1, 1, 1), eject=Eject(failures=2, slower_than=1.0)),
            self.house.balancer,
        )
        self.assertEqual((self.a.notable, self.house.state(2).notable), (-1.0, 1.0))
        self.answer(1, 500)
        self.assertEqual(self.usable(), [2, 3, 4])
