"""proxykit.core.retries: tries on top of requests are bounded, whatever fails."""

from __future__ import annotations

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.retries import Retries
from proxykit.core.waiting import Full
from proxykit.errors import ProxyError, Retry, Side
from tests.core import House, address, backends, refusal


class RetriesTests(SynchronousTestCase):
    """A budget on its own."""

    def setUp(self):
        self.house = House()
        self.clock = self.house.clock
        self.retries = Retries(self.clock)

    def request(self, times):
        """As flow does."""
        now = self.clock.seconds()
        if now >= self.retries.turn:
            self.retries.roll(now)
        self.retries.requests += times

    def allowed(self, times, share=0.2):
        return sum(self.retries.allows(share, "web") for _ in range(times))

    def test_of_few_all(self):
        self.request(10)
        self.assertEqual(self.allowed(12), 10)
        self.assertEqual(self.retries.snapshot(), {"requests": 10, "retried": 10, "refused": 2})

    def test_a_share_of_many(self):
        self.request(1000)
        self.assertEqual(self.allowed(500), 200)

    def test_none_at_all(self):
        self.request(1000)
        self.assertEqual(self.allowed(5, share=0.0), 0)

    def test_in_any_ten_seconds(self):
        """Neither more than that, nor for ever fewer."""
        made = []
        for _ in range(60):
            self.request(100)
            made.append(self.allowed(100))
            self.clock.advance(1.0)
        for start in range(10, 50):
            window = sum(made[start : start + 10])
            self.assertLessEqual(window, 0.2 * 10 * 100 + 20)
            self.assertGreaterEqual(window, 0.15 * 10 * 100)

    def test_what_was_long_ago(self):
        self.request(10000)
        self.clock.advance(60.0)
        self.assertEqual(self.allowed(50), 10)
        self.clock.advance(12.0)
        self.request(1)
        self.assertEqual(self.allowed(50), 10)

    def test_a_pause(self):
        """Requests from before it are not those of the last ten seconds."""
        self.request(1000)
        self.clock.advance(9.0)
        self.request(100)
        self.assertEqual(self.allowed(500), 220)
        self.clock.advance(9.0)
        self.request(100)
        self.assertEqual(self.allowed(500), 0)

    def test_bounded(self):
        for _ in range(1000):
            self.request(1)
            self.clock.advance(0.7)
        self.assertLess(len(self.retries._marks), 13)

    def test_said_rarely(self):
        self.request(4)
        with capturedLogs() as events:
            self.allowed(20)
            self.clock.advance(9.0)
            self.allowed(5)
            self.clock.advance(1.0)
            self.allowed(1)
        self.assertEqual(
            [formatEvent(event) for event in events],
            [
                "web: no other try after a failure: 10 in 10 s are enough for 4 requests"
                " (retry_budget = 0.2)",
                "web: no other try after a failure: 10 in 10 s are enough for 4 requests"
                " (retry_budget = 0.2) (and 14 like it before)",
            ],
        )


class FlowTests(SynchronousTestCase):
    """What counts as another try."""

    def use(self, *config, **settings):
        self.house = House(*(config or backends(1, 1)), **settings)
        self.web = self.house.web

    def script(self, number, *outcomes):
        self.house.connector.script(address(number), *outcomes)

    def ask(self):
        return self.house.flow.upstream(self.house.choice())

    def counted(self):
        return tuple(self.web.snapshot()["retries"].values())

    def test_counted(self):
        self.use()
        self.script(1, refusal())
        self.script(2, True)
        self.ask().end()
        self.assertEqual(self.counted(), (1, 1, 0))

    def test_the_first_error_is_the_answer(self):
        self.use(retry_budget=0.0)
        error = refusal("the first")
        self.script(1, error)
        self.script(2, True)
        result = self.ask()
        self.assertIs(self.failureResultOf(result, ProxyError).value, error)
        self.assertEqual(self.counted(), (1, 0, 1))
        self.assertEqual([each.in_flight for each in self.web.backends.values()], [0, 0])

    def test_later(self):
        self.use(retry_budget=0.0)
        result = self.ask()
        error = refusal("the first")
        (attempt,) = self.house.connector.under_way
        self.house.connector.fail(attempt, error)
        self.assertIs(self.failureResultOf(result, ProxyError).value, error)
        self.assertEqual(self.counted(), (1, 0, 1))

    def test_a_lost_connection(self):
        """One that was used before, and dead: that is another try as well, at the same one."""
        for budget, counted in ((0.2, (1, 1, 0)), (0.0, (1, 0, 1))):
            self.use(retry_budget=budget)
            self.script(1, True)
            attempt = self.ask()
            got = self.house.flow.again(attempt, refusal(retry=Retry.REUSED_ONLY))
            self.assertEqual(self.counted(), counted)
            if not budget:
                self.failureResultOf(got, ProxyError)

    def test_nobody_to_try(self):
        """No budget goes to tries that are not made."""
        self.use(*backends(1))
        self.script(1, refusal())
        self.failureResultOf(self.ask(), ProxyError)
        self.assertEqual(self.counted(), (1, 0, 0))

    def test_nobody_has_room(self):
        """Nor to those for which there is no room: the next one that is made is counted."""
        self.use(*backends(1, 1, 1))
        self.script(1, refusal())
        self.script(2, Full("no slot"))
        self.script(3, Full("no slot"), True)
        got = self.ask()
        self.assertNoResult(got)
        self.assertEqual(self.counted(), (1, 0, 0))
        self.web.backends[address(3)].wake()
        self.successResultOf(got).end()
        self.assertEqual(self.counted(), (1, 1, 0))

    def test_another_port_is_none(self):
        self.use(*backends(1), retry_budget=0.0)
        denied = refusal(retry=Retry.OTHER_PORT, side=Side.PROXY, status=503)
        self.script(1, denied, denied, True)
        self.ask().end()
        self.assertEqual(self.counted(), (1, 0, 0))

    def test_a_new_second(self):
        self.use()
        self.script(1, True)
        self.script(2, True)
        for _ in range(3):
            self.ask().end()
            self.house.clock.advance(0.6)
        self.assertEqual(len(self.web.retries._marks), 2)
