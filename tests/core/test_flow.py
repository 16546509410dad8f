"""proxykit.core.flow: every way in which a choice can go, and the fakes that show it."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.choice import Attempt
from proxykit.core.waiting import Full
from proxykit.errors import ProxyError, Retry, Side
from proxykit.model import Backend
from tests.core import House, address, backends, refusal

FULL = Full("no slot at this one")


class FlowTestCase(SynchronousTestCase):
    """Backends 1 and 2 in turn, 1 first, unless a test wants others."""

    def setUp(self):
        self.use(*backends(1, 1))

    def use(self, *config, **settings):
        self.house = House(*config, **settings)
        self.web, self.flow = self.house.web, self.house.flow
        self.connector = self.house.connector

    def script(self, number, *outcomes):
        self.connector.script(address(number), *outcomes)

    def ask(self):
        """One choice, which ``self.choice`` holds."""
        self.choice = self.house.choice()
        return self.flow.upstream(self.choice)

    def under_way(self):
        """The one attempt that is under way."""
        (attempt,) = self.connector.under_way
        return attempt

    def refuse(self, error=None):
        self.connector.fail(self.under_way(), error or refusal())

    def numbers(self):
        """The backends that were asked, in that order."""
        return [
            next(number for number in range(20) if address(number) == attempt.backend.address)
            for attempt in self.connector.attempts
        ]

    def loads(self):
        return [backend.in_flight for backend in self.web.backends.values()]

    def error_of(self, result):
        return self.failureResultOf(result, ProxyError).value

    def assert_refused(self, result, message):
        """The choice has ended with proxykit's own refusal."""
        error = self.error_of(result)
        self.assertEqual(error.message, message)
        self.assertEqual((error.side, error.retry, error.status), (Side.PROXY, Retry.NEVER, 503))


class UpstreamTests(FlowTestCase):
    def test_at_once(self):
        """Where an upstream is ready there is no Deferred."""
        self.script(1, True)
        got = self.ask()
        self.assertIsInstance(got, Attempt)
        self.assertEqual((got.upstream, got.backend), ("ready", self.house.state(1)))
        self.assertFalse(self.choice.waiting)
        self.assertEqual(self.loads(), [1, 0])
        got.end()
        self.assertEqual(self.loads(), [0, 0])

    def test_under_way(self):
        result = self.ask()
        self.assertNoResult(result)
        self.assertEqual(self.loads(), [1, 0])
        self.connector.succeed(self.under_way(), "upstream")
        self.assertEqual(self.successResultOf(result).upstream, "upstream")
        self.assertEqual((self.loads(), self.house.state(1).served), ([1, 0], 1))

    def test_ready_ones_count(self):
        """An upstream that was there at once was served like any other, and shows it works."""
        self.script(1, refusal(), True)
        self.script(2, True)
        for _ in range(3):
            self.ask().end()
        a, b = self.house.state(1), self.house.state(2)
        self.assertEqual(a.served + b.served, 3)
        self.assertEqual((a.failures, a.failing), (1, 0))

    def test_client_is_balanced_by(self):
        seen = []
        self.web.pick = lambda client, tried: seen.append(client)
        self.error_of(self.ask())
        self.assertEqual(seen, ["192.0.2.1"])

    def test_failed_at_once(self):
        self.script(1, refusal())
        self.script(2, True)
        got = self.ask()
        self.assertEqual((self.numbers(), got.backend), ([1, 2], self.house.state(2)))
        self.assertEqual(self.loads(), [0, 1])

    def test_failed_later(self):
        """The next one may be under way, ready, full or failed in its turn."""
        last = refusal("the last")
        for outcome in (False, True, FULL, last):
            self.use(*backends(1, 1))
            self.script(2, outcome)
            result = self.ask()
            self.refuse()
            self.assertEqual(self.numbers(), [1, 2])
            self.assertEqual(self.choice.waiting, outcome is FULL)
            if outcome is last:
                self.assertIs(self.error_of(result), last)
                self.assertEqual(self.loads(), [0, 0])
            elif outcome is True:
                self.assertEqual(self.successResultOf(result).upstream, "ready")
                self.assertEqual(self.loads(), [0, 1])
            else:
                self.assertNoResult(result)
                self.assertEqual(self.loads(), [0, int(outcome is False)])
                result.cancel()
                self.failureResultOf(result, CancelledError)

    def test_all_fail(self):
        """Each is tried once; the error is the last one's own."""
        result = self.ask()
        self.refuse(refusal("first"))
        last = refusal("second")
        self.refuse(last)
        self.assertIs(self.error_of(result), last)
        self.assertEqual((self.numbers(), self.loads()), ([1, 2], [0, 0]))

    def test_all_fail_at_once(self):
        errors = [refusal("first"), refusal("second")]
        self.script(1, errors[0])
        self.script(2, errors[1])
        self.assertIs(self.error_of(self.ask()), errors[1])

    def test_none_is_up(self):
        for config in ((), backends(1, 1)):
            self.use(*config)
            for backend in config:
                self.web.set_state(backend.address, "down")
            self.assert_refused(self.ask(), "no backend of cluster web is up")
        self.assertEqual(self.connector.attempts, [])

    def test_backup(self):
        self.use(Backend(address(1)), Backend(address(2), backup=True))
        self.ask()
        self.refuse()
        self.assertEqual(self.numbers(), [1, 2])

    def test_retry(self):
        """Which errors may be followed by another try, and whether they were there at once."""
        for retry, tries in (
            (Retry.NEVER, [1]),
            (Retry.ALWAYS, [1, 2]),
            (Retry.REUSED_ONLY, [1, 2]),
        ):
            for at_once in (False, True):
                self.use(*backends(1, 1))
                error = refusal(retry=retry)
                self.script(1, error if at_once else False)
                self.script(2, True)
                got = self.ask()
                if not at_once:
                    self.refuse(error)
                self.assertEqual(self.numbers(), tries, retry)
                if retry is Retry.NEVER:
                    self.assertIs(self.error_of(got), error)
                    self.assertEqual(self.loads(), [0, 0])

    def test_deadline(self):
        """Once the time of the whole choice is over there is no other try."""
        for seconds, tries in ((0, [1, 2]), (29, [1, 2]), (31, [1])):
            self.use(*backends(1, 1), deadline=30.0)
            self.house.clock.advance(1000)
            result = self.ask()
            self.house.clock.advance(seconds)
            error = refusal()
            self.refuse(error)
            self.assertEqual(self.numbers(), tries, seconds)
            if tries == [1]:
                self.assertIs(self.error_of(result), error)
            else:
                self.assertNoResult(result)

    def test_deadline_counts_from_the_start(self):
        """Waiting included."""
        self.use(*backends(1, 1), deadline=4.0)
        self.script(1, FULL, False)
        self.script(2, FULL, False)
        result = self.ask()
        self.house.clock.advance(4.5)
        self.house.state(1).wake()
        error = refusal()
        self.refuse(error)
        self.assertIs(self.error_of(result), error)


class ConnectorTests(FlowTestCase):
    def test_bug(self):
        """What a connector raises that is no ProxyError is logged and ends the choice."""
        house = House(*backends(1, 1))
        house.connector.attempt = lambda attempt: 1 / 0
        choice = house.choice()
        with_failure = self.failureResultOf(house.flow.upstream(choice), ProxyError).value
        self.assertEqual((with_failure.status, with_failure.retry), (500, Retry.NEVER))
        self.assertIn("ZeroDivisionError", with_failure.message)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual([state.in_flight for state in house.web.backends.values()], [0, 0])

    def test_reused_connection_lost(self):
        """The same backend may have it again, on a connection that nobody used before."""
        house = House(*backends(1))
        house.connector.script(address(1), True, True)
        choice = house.choice()
        attempt = house.flow.upstream(choice)
        self.assertFalse(choice.fresh)
        again = house.flow.again(attempt, refusal(retry=Retry.REUSED_ONLY))
        self.assertEqual((again.backend.address, choice.fresh), (address(1), True))
        self.assertEqual((house.state(1).failures, house.state(1).in_flight), (0, 1))


class WaitTests(FlowTestCase):
    def setUp(self):
        self.use(*backends(1, 1))
        self.script(1, FULL)
        self.script(2, FULL)

    def test_full_at_one(self):
        self.script(2, True)
        self.assertIs(self.ask().backend, self.house.state(2))
        self.assertEqual(self.loads(), [0, 1])
        # It is known to be full: the next one does not even ask it.
        self.ask()
        self.assertEqual(self.numbers(), [1, 2, 2])

    def test_served(self):
        """When there is room, by an attempt that is ready, or one under way."""
        for outcome in (True, False):
            self.setUp()
            result = self.ask()
            self.assertTrue(self.choice.waiting)
            self.assertEqual((self.loads(), len(self.house.deadlines)), ([0, 0], 1))
            self.script(2, outcome)
            self.house.state(2).wake()
            self.assertFalse(self.choice.waiting)
            self.assertEqual((self.loads(), len(self.house.deadlines)), ([0, 1], 0))
            if not outcome:
                self.assertNoResult(result)
                self.connector.succeed(self.under_way())
            self.assertIs(self.successResultOf(result).backend, self.house.state(2))

    def test_full_again(self):
        """What came free is not enough: it goes on waiting, in its place."""
        result = self.ask()
        self.house.state(1).wake()
        self.assertTrue(self.choice.waiting)
        self.assertNoResult(result)
        self.assertEqual(self.numbers(), [1, 2, 1])
        self.assertEqual(self.web._used.open, 0)

    def test_failed_when_served(self):
        """The rest is full: it waits on for that; or it was the last: it ends."""
        result = self.ask()
        last = refusal("the last")
        self.script(1, refusal("the first"))
        self.house.state(1).wake()
        self.assertNoResult(result)
        self.assertTrue(self.choice.waiting)
        self.script(2, last)
        self.house.state(2).wake()
        self.assertIs(self.error_of(result), last)
        self.assertEqual((self.loads(), len(self.web.queue)), ([0, 0], 0))

    def test_nobody_left_to_wait_for(self):
        for leave in (
            lambda place: self.web.set_state(place, "down"),
            lambda place: self.web.set_state(place, "drain"),
            lambda place: self.web.remove(place),
        ):
            self.setUp()
            result = self.ask()
            leave(address(1))
            self.assertNoResult(result)
            leave(address(2))
            self.assert_refused(result, "no backend of cluster web is up")

    def test_comes_up(self):
        result = self.ask()
        self.script(3, True)
        self.web.add(Backend(address(3)))
        self.assertEqual(self.successResultOf(result).backend.address, address(3))

    def test_late(self):
        result = self.ask()
        self.house.clock.pump([0.25] * 19)
        self.assertNoResult(result)
        self.house.clock.pump([0.25] * 4)
        self.assert_refused(
            result, "waited 5 s in the queue of web: no slot at this one, and 1 more are full"
        )
        self.assertFalse(self.choice.waiting)
        self.assertEqual((len(self.web.queue), self.web.queue.timed_out), (0, 1))
        # What comes free afterwards is nobody's.
        self.house.state(1).wake()
        self.assertEqual(self.numbers(), [1, 2])

    def test_queue_full(self):
        for limit in (0, 1):
            self.use(*backends(1), queue=limit)
            self.script(1, FULL)
            for _ in range(limit):
                self.assertNoResult(self.ask())
            self.assert_refused(
                self.ask(),
                f"no slot at this one; the queue of web is full (queue = {limit})",
            )
            self.assertEqual(self.web.queue.refused, 1)

    def test_queue_full_after_a_failure(self):
        self.use(*backends(1, 1), queue=0)
        self.script(2, FULL)
        result = self.ask()
        self.refuse()
        self.assert_refused(result, "no slot at this one; the queue of web is full (queue = 0)")

    def test_what_is_full(self):
        """The message names the limit that was reached: connections or ports."""
        for settings, what in (
            (
                {"max_connections": 0},
                "10.0.0.1:80 has all of its 0 connections (max_connections)",
            ),
            (
                {"ports": 0},
                "no source port is left from 10.9.9.9 to 10.0.0.1:80"
                " (0 of 0 in use, 0 kept as headroom)",
            ),
        ):
            self.use(*backends(1), queue=0, **settings)
            self.assert_refused(self.ask(), f"{what}; the queue of web is full (queue = 0)")

    def test_port_of_another_cluster(self):
        """A cluster with the same address gives its port back: who waits here is served."""
        self.use(*backends(1), ports=1)
        other = self.house.cluster("other", *backends(1))
        self.script(1, True)
        held = self.flow.upstream(self.house.choice(other))
        result = self.ask()
        self.assertNoResult(result)
        self.house.close(held)
        self.assertIs(self.successResultOf(result).backend, self.house.state(1))


class CancelTests(FlowTestCase):
    def test_under_way(self):
        result = self.ask()
        attempt = self.under_way()
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual(self.connector.cancelled, [attempt])
        self.assertEqual((self.loads(), self.house.state(1).connections), ([0, 0], 0))

    def test_waiting(self):
        self.use(*backends(1), max_connections=0)
        result = self.ask()
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual((len(self.web.queue), len(self.house.deadlines)), (0, 0))
        self.assertFalse(self.choice.waiting)
        self.assertEqual(self.connector.cancelled, [])

    def test_over(self):
        """After its outcome a choice cannot be cancelled any more."""
        result = self.ask()
        self.connector.succeed(self.under_way())
        result.cancel()
        self.assertEqual(self.connector.cancelled, [])
        self.successResultOf(result)
        self.assertEqual(self.loads(), [1, 0])

    def test_outcome_that_comes_too_late(self):
        """A connector that breaks its word and tells of a cancelled attempt: nobody hears it."""
        result = self.ask()
        attempt = self.under_way()
        result.cancel()
        self.failureResultOf(result, CancelledError)
        attempt.succeeded("upstream")
        self.assertEqual(self.loads(), [0, 0])


class AgainTests(FlowTestCase):
    def connected(self):
        self.script(1, True)
        return self.ask()

    def test_another(self):
        """The attempt ends, its backend counts as tried, and the next one may be in any state."""
        for outcome in (True, False, FULL):
            self.use(*backends(1, 1))
            attempt = self.connected()
            self.script(2, outcome)
            got = self.flow.again(attempt, refusal())
            self.assertEqual((self.numbers(), self.choice.waiting), ([1, 2], outcome is FULL))
            self.assertEqual(self.loads(), [0, int(outcome is not FULL)])
            self.assertIsInstance(got, Attempt if outcome is True else Deferred)
            self.assertEqual(self.house.state(1).failures, 1)

    def test_ended_already(self):
        attempt = self.connected()
        attempt.end()
        self.flow.again(attempt, refusal())
        self.assertEqual(self.loads(), [0, 1])

    def test_not_safe(self):
        attempt = self.connected()
        error = refusal(retry=Retry.NEVER)
        self.assertIs(self.error_of(self.flow.again(attempt, error)), error)
        self.assertEqual((self.numbers(), self.loads()), ([1], [0, 0]))

    def test_too_late(self):
        attempt = self.connected()
        self.house.clock.advance(31)
        error = refusal()
        self.assertIs(self.error_of(self.flow.again(attempt, error)), error)

    def test_deadline_counts_from_the_start(self):
        """Of the first try, not of this one."""
        attempt = self.connected()
        self.house.clock.advance(20)
        got = self.flow.again(attempt, refusal())
        self.house.clock.advance(11)
        self.web.add(Backend(address(3)))
        error = refusal()
        self.refuse(error)
        self.assertIs(self.error_of(got), error)

    def test_nobody_left(self):
        self.use(*backends(1))
        attempt = self.connected()
        error = refusal()
        self.assertIs(self.error_of(self.flow.again(attempt, error)), error)

    def test_cancelled(self):
        attempt = self.connected()
        got = self.flow.again(attempt, refusal())
        got.cancel()
        self.failureResultOf(got, CancelledError)
        self.assertEqual(self.loads(), [0, 0])
        self.assertEqual([one.backend for one in self.connector.cancelled], [self.house.state(2)])


class LogTests(FlowTestCase):
    def told(self, *outcomes):
        """What is logged while a cluster of one has these outcomes, one after the other."""
        self.use(*backends(1))
        with capturedLogs() as events:
            for outcome in outcomes:
                result = self.ask()
                if outcome is None:
                    self.connector.succeed(self.under_way())
                    self.successResultOf(result).end()
                else:
                    self.refuse(outcome)
                    self.failureResultOf(result)
        return [(event["log_level"].name, formatEvent(event)) for event in events]

    def test_once(self):
        """A backend that fails is logged once, and once more when it works again."""
        bad = refusal("connect to 10.0.0.1:80 failed: Connection refused")
        warning = ("warn", f"web 10.0.0.1:80: {bad.message}")
        again = ("info", "web 10.0.0.1:80: works again, after 3 failed attempts")
        self.assertEqual(
            self.told(None, bad, bad, bad, None, None, bad, None),
            [
                warning,
                again,
                warning,
                ("info", "web 10.0.0.1:80: works again, after 1 failed attempts"),
            ],
        )
        self.assertEqual(self.house.state(1).failures, 4)

    def test_not_the_backend(self):
        """What the proxy or the client did wrong is not held against it."""
        for side in (Side.PROXY, Side.CLIENT):
            self.assertEqual(self.told(refusal(side=side), None), [])
            self.assertEqual(self.house.state(1).failures, 0)
