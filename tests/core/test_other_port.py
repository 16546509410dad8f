"""proxykit.core.flow when the kernel has no port although the book has: the attempt goes on."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.balance import LeastConnections, RoundRobin
from proxykit.errors import ProxyError, Retry, Side
from tests.core import House, address, backends, refusal

A, B, C = "10.1.0.1", "10.1.0.2", "10.1.0.3"


class OtherPortTestCase(SynchronousTestCase):
    def use(self, *config, **settings):
        settings = {"addresses": (A, B), "ports": 10, "queue": 0} | settings
        self.house = House(*(config or backends(1)), **settings)
        self.web, self.connector = self.house.web, self.house.connector

    def ask(self):
        self.choice = self.house.choice()
        return self.house.flow.upstream(self.choice)

    def deny(self, attempt=None):
        """The kernel has none for what is under way."""
        if attempt is None:
            (attempt,) = self.connector.under_way
        self.connector.fail(attempt, self.house.denied(attempt))

    def under_way(self):
        """What was asked for last: which backend, from where."""
        (attempt,) = self.connector.under_way
        return attempt.backend.address, attempt.handle.source

    def refused(self, result):
        error = self.failureResultOf(result, ProxyError).value
        self.assertEqual((error.side, error.retry, error.status), (Side.PROXY, Retry.NEVER, 503))
        self.assertEqual(error.kind, "connection_limit_reached")
        self.assert_idle()
        return error.message

    def assert_idle(self):
        """Everything has been given back, and no backend is held to have failed."""
        self.assertEqual(self.connector.under_way, [])
        self.assertEqual(len(self.web.queue), 0)
        self.assertEqual(len(self.house.deadlines), 0)
        for backend in self.web.backends.values():
            self.assertEqual((backend.in_flight, backend.connections, backend.failures), (0, 0, 0))


class OrderTests(OtherPortTestCase):
    def test_next_source(self):
        """The same backend, from each source once."""
        self.use(addresses=(A, B, C))
        result = self.ask()
        seen = []
        for _ in range(3):
            place, source = self.under_way()
            self.assertEqual(place, address(1))
            seen.append(source)
            self.deny()
        self.assertEqual(sorted(seen), [A, B, C])
        self.assertEqual(
            self.refused(result),
            "no source port is left from 10.1.0.1, 10.1.0.2, 10.1.0.3 to 10.0.0.1:80 (0 of 30 in"
            " use, 30 refused by the kernel, 0 kept as headroom); the queue of web is full"
            " (queue = 0)",
        )

    def test_served_by_the_next_source(self):
        self.use()
        result = self.ask()
        self.deny()
        self.connector.succeed(*self.connector.under_way)
        self.assertIs(self.successResultOf(result).backend, self.house.state(1))
        self.assertEqual(self.house.state(1).failures, 0)

    def test_next_backend(self):
        """Each backend from each source, and none of them twice."""
        for balancer in (RoundRobin, LeastConnections):
            self.use(*backends(1, 1), balancer=balancer)
            result = self.ask()
            seen = []
            for _ in range(4):
                seen.append(self.under_way())
                self.deny()
            self.assertEqual(
                sorted(seen, key=str),
                sorted(((address(n), each) for n in (1, 2) for each in (A, B)), key=str),
            )
            self.assertIn(", and 1 more are full", self.refused(result))

    def test_one_source(self):
        self.use(*backends(1, 1), addresses=())
        result = self.ask()
        first = self.under_way()
        self.deny()
        self.assertNotEqual(self.under_way()[0], first[0])
        self.connector.succeed(*self.connector.under_way)
        self.assertEqual(len(self.connector.attempts), 2)
        self.successResultOf(result)

    def test_at_once(self):
        """A connector that knows it before it returns."""
        self.use(*backends(1, 1))
        attempt = self.connector.attempt

        def denied(asked):
            got = attempt(asked)
            if got is False:
                error = self.house.denied(asked)
                self.connector.under_way.remove(asked)
                asked.handle.release()
                raise error
            return got

        self.connector.attempt = denied
        self.refused(self.ask())
        # Each of the backends said at the end that it is full.
        self.assertEqual(len(self.connector.attempts), 4 + 2)

    def test_failed_otherwise(self):
        """Then that is what went wrong, and the backend is not asked again."""
        self.use()
        result = self.ask()
        self.deny()
        error = refusal("refused")
        self.connector.fail(*self.connector.under_way, error)
        self.assertIs(self.failureResultOf(result, ProxyError).value, error)
        self.assertEqual(self.house.state(1).failures, 1)

    def test_too_late(self):
        """The time of the whole choice is over."""
        self.use(deadline=30.0)
        result = self.ask()
        self.house.clock.advance(31)
        (attempt,) = self.connector.under_way
        error = self.house.denied(attempt)
        self.connector.fail(attempt, error)
        self.assertIs(self.failureResultOf(result, ProxyError).value, error)
        self.assert_idle()


class QueueTests(OtherPortTestCase):
    """When there is nobody left to be asked."""

    def setUp(self):
        self.use(queue=5, queue_timeout=5.0)

    def wait(self):
        """Ask, and be denied everywhere."""
        result = self.ask()
        self.deny()
        self.deny()
        self.assertTrue(self.choice.waiting)
        return result

    def test_served(self):
        """By what may be had after a reading."""
        result = self.wait()
        self.house.read()
        self.assertFalse(self.choice.waiting)
        self.connector.succeed(*self.connector.under_way)
        self.successResultOf(result)

    def test_somebody_has_one(self):
        """A connection that ends gives its port to who waits."""
        held = self.ask()
        self.connector.succeed(*self.connector.under_way)
        held = self.successResultOf(held)
        result = self.wait()
        self.house.close(held)
        self.assertEqual(self.under_way(), (address(1), held.handle.source))
        self.connector.succeed(*self.connector.under_way)
        self.successResultOf(result)

    def seconds(self, count):
        self.house.clock.pump([0.25] * (4 * count))

    def test_its_time_goes_on(self):
        """Being served in vain does not begin it anew."""
        result = self.wait()
        for _ in range(4):
            self.seconds(1)
            self.assertTrue(self.choice.waiting)
            self.house.read()
            self.assertFalse(self.choice.waiting)
            self.deny()
            self.deny()
        self.assertAlmostEqual(self.choice.waited, 4.0)
        self.assertNoResult(result)
        self.seconds(1)
        self.house.clock.pump([0.1] * 5)
        self.assertEqual(
            self.refused(result),
            "waited 5 s in the queue of web: no source port is left from 10.1.0.1, 10.1.0.2 to"
            " 10.0.0.1:80 (0 of 20 in use, 20 refused by the kernel, 0 kept as headroom)",
        )
        self.assertEqual(self.web.queue.timed_out, 1)

    def test_no_time_is_left(self):
        """Served when its time was all but over: it waits no second time."""
        result = self.wait()
        self.seconds(4)
        self.house.clock.advance(0.97)
        self.house.read()
        self.deny()
        self.deny()
        self.assertNoResult(result)
        self.house.clock.pump([0.01] * 4)
        self.assertIn("waited 5 s", self.refused(result))

    def test_the_queue_has_filled(self):
        """Meanwhile, with others: it has no claim on a place."""
        result = self.wait()
        self.house.read()
        # One from each source may be tried: the other by the first of these.
        others = [self.house.flow.upstream(self.house.choice()) for _ in range(6)]
        self.assertEqual((len(self.connector.under_way), len(self.web.queue)), (2, 5))
        self.deny(next(each for each in self.connector.under_way if each.choice is self.choice))
        error = self.failureResultOf(result, ProxyError).value
        self.assertIn("the queue of web is full (queue = 5)", error.message)
        self.cancel(others)

    def cancel(self, results):
        for each in results:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assert_idle()

    def test_many_at_once(self):
        """Each promised port is denied once; nobody is asked in a circle."""
        self.use(queue=100, queue_timeout=5.0)
        results = [self.ask() for _ in range(50)]
        self.assertEqual((len(self.connector.under_way), len(self.web.queue)), (20, 30))
        for promised in (20, 2, 2):
            before = len(self.connector.attempts)
            while self.connector.under_way:
                self.deny(self.connector.under_way[0])
            self.assertEqual(len(self.web.queue), 50)
            # For each that is denied somebody has looked whether there is another.
            self.assertLessEqual(len(self.connector.attempts) - before, 2 * promised)
            self.house.read()
            self.assertEqual(len(self.connector.under_way), 2)
        self.cancel(results)

    def test_the_client_has_left(self):
        result = self.ask()
        self.choice.may_wait = False
        self.deny()
        self.deny()
        self.assertIn("the client has left; no source port is left", self.refused(result))
