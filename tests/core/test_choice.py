"""proxykit.core.choice: a choice's notes, and an attempt's share of its backend's load."""

from __future__ import annotations

import errno

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.accountant import Accountant
from proxykit.core.choice import Attempt
from proxykit.core.introduction import introduction
from proxykit.core.sharing import WHY
from proxykit.errors import ProxyError, Retry, Side
from proxykit.model import PortRange
from tests.core import House, address, backends, refusal


class Told:
    """Stands where flow does, and writes down what it is told."""

    def __init__(self):
        self.told = []

    def succeeded(self, attempt):
        self.told.append(attempt.upstream)

    def failed(self, attempt, error):
        self.told.append(error)


class AttemptTests(SynchronousTestCase):
    def setUp(self):
        self.house = House(*backends(1))
        self.flow = Told()
        self.backend = self.house.state(1)
        self.attempt = Attempt(self.flow, self.house.choice(), self.backend)

    def test_load(self):
        """From its making until it ends, which it does once."""
        self.assertEqual(self.backend.in_flight, 1)
        other = Attempt(self.flow, self.house.choice(), self.backend)
        self.assertEqual(self.backend.in_flight, 2)
        self.attempt.end()
        self.attempt.end()
        self.assertEqual(self.backend.in_flight, 1)
        other.end()
        self.assertEqual(self.backend.in_flight, 0)

    def test_succeeded(self):
        self.attempt.succeeded("upstream")
        self.assertEqual((self.flow.told, self.backend.in_flight), (["upstream"], 1))

    def test_failed(self):
        error = refusal()
        self.attempt.failed(error)
        self.assertEqual(self.flow.told, [error])
        self.assertIsNone(self.attempt.upstream)


class ChoiceTests(SynchronousTestCase):
    def test_waiting(self):
        house = House(*backends(1), max_connections=0)
        choice = house.choice()
        self.assertFalse(choice.waiting)
        result = house.flow.upstream(choice)
        self.assertTrue(choice.waiting)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertFalse(choice.waiting)


class MoreAttemptTests(SynchronousTestCase):
    def test_ready(self):
        """The connector hears of a success before the mode does."""
        house = House(*backends(1))
        house.connector.script(address(1), False)
        result = house.flow.upstream(house.choice())
        (attempt,) = house.connector.under_way
        told = []
        attempt.ready = lambda: told.append("connector")
        result.addCallback(lambda _: told.append("mode"))
        house.connector.succeed(attempt)
        self.assertEqual(told, ["connector", "mode"])

    def test_forget_choice(self):
        """It can still end, and does not hold on to what nobody will ask for."""
        house = House(*backends(1))
        house.connector.script(address(1), True)
        choice = house.choice()
        attempt = house.flow.upstream(choice)
        self.assertIs(choice.attempt, attempt)
        attempt.forget_choice()
        self.assertIsNone(attempt.choice)
        self.assertIsNone(choice.attempt)
        attempt.end()
        self.assertEqual(house.state(1).in_flight, 0)

    def test_forget_choice_of_another(self):
        """A choice that has gone on to another attempt keeps that one."""
        house = House(*backends(1))
        house.connector.script(address(1), True)
        choice = house.choice()
        first = house.flow.upstream(choice)
        choice.attempt = later = object()
        first.forget_choice()
        self.assertIs(choice.attempt, later)

    def test_not_to_wait(self):
        """A client that seems to have left gets no place in the queue."""
        house = House(*backends(1), max_connections=1)
        house.connector.script(address(1), True)
        house.flow.upstream(house.choice())
        choice = house.choice()
        choice.may_wait = False
        error = self.failureResultOf(house.flow.upstream(choice), ProxyError).value
        self.assertIn("the client has left", error.message)
        self.assertEqual(len(house.web.queue), 0)


class NotesTests(SynchronousTestCase):
    """What a choice and an attempt say to connectors and pools."""

    def test_as_made(self):
        """A choice asks for a connection of its own, and is not to be sent twice."""
        choice = House(*backends(1)).choice()
        self.assertEqual((choice.shareable, choice.repeatable, choice.fresh), (False, False, False))
        self.assertTrue(choice.may_wait)

    def test_nothing_else(self):
        """There is one for each request: they have no dictionary."""
        house = House(*backends(1))
        for thing in (house.choice(), Attempt(Told(), house.choice(), house.state(1))):
            self.assertFalse(hasattr(thing, "__dict__"))
            with self.assertRaises(AttributeError):
                thing.colour = "green"

    def test_introduction(self):
        """What a connection begins with is the cluster's to say, and about the choice's client."""
        for version in ("", "v1", "v2"):
            house = House(*backends(1), proxy_protocol=version)
            choice = house.choice()
            attempt = Attempt(Told(), choice, house.state(1))
            self.assertEqual(attempt.introduction, introduction(version, choice.info))
            self.assertEqual(attempt.introduction == b"", version == "")

    def test_protocol(self):
        """A connector has the protocol made for a socket, by what the mode has given."""
        house = House(*backends(1))
        choice = house.choice()
        made = []
        choice.protocol = lambda attempt: made.append(attempt) or "a protocol"
        attempt = Attempt(Told(), choice, house.state(1))
        self.assertIsNone(attempt.lease)
        self.assertEqual(attempt.protocol(), "a protocol")
        self.assertEqual(made, [attempt])

    def test_bug_in_a_connector(self):
        """It is proxykit's own fault, and says so in the words of RFC 9209."""
        house = House(*backends(1))
        house.connector.attempt = lambda attempt: 1 / 0
        with self.assertRaises(ProxyError) as raised:
            Attempt(Told(), house.choice(), house.state(1)).begin()
        error = raised.exception
        self.assertEqual((error.status, error.kind), (500, "proxy_internal_error"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_kinds(self):
        """So do the refusals: what was there none of?"""
        for settings, kind in (
            ({"max_connections": 0, "queue": 0}, "connection_limit_reached"),
            ({"ports": 0, "queue": 0}, "connection_limit_reached"),
        ):
            house = House(*backends(1), **settings)
            error = self.failureResultOf(house.flow.upstream(house.choice()), ProxyError).value
            self.assertEqual((error.status, error.kind), (503, kind))
        house = House()
        error = self.failureResultOf(house.flow.upstream(house.choice()), ProxyError).value
        self.assertEqual((error.status, error.kind), (503, "destination_unavailable"))

    def test_no_way(self):
        def source_of(host):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

        house = House(*backends(1))
        with self.assertRaises(ProxyError) as raised:
            Accountant(PortRange(1, 10), source_of).lease(house.state(1))
        self.assertEqual(raised.exception.kind, "destination_ip_unroutable")


class RestTests(SynchronousTestCase):
    def test_deadlines(self):
        """Nothing running leaves no timer; something running keeps it."""
        house = House(*backends(1))
        deadline = house.deadlines.add(5.0, lambda: None)
        house.deadlines.rest()
        self.assertEqual(len(house.clock.getDelayedCalls()), 1)
        deadline.cancel()
        house.deadlines.rest()
        self.assertEqual(house.clock.getDelayedCalls(), [])
        house.deadlines.rest()

    def test_out_of_descriptors(self):
        """Asking for the way needs one; that is not the backend's fault."""

        def source_of(host):
            raise OSError(errno.EMFILE, "Too many open files")

        house = House(*backends(1))
        accountant = Accountant(PortRange(1, 10), source_of)
        with self.assertRaises(ProxyError) as raised:
            accountant.lease(house.state(1))
        error = raised.exception
        self.assertEqual((error.side, error.retry), (Side.PROXY, Retry.NEVER))


class ExplainTests(SynchronousTestCase):
    def waiting(self, house):
        """A choice for which there is no room any more."""
        first = house.choice()
        house.flow.upstream(first)
        choice = house.choice()
        result = house.flow.upstream(choice)
        self.addCleanup(lambda: (result.cancel(), self.failureResultOf(result, CancelledError)))
        self.assertTrue(choice.waiting)
        return choice

    def test_connections(self):
        choice = self.waiting(House(*backends(1), max_connections=1))
        found = choice.explain_waiting("l7")
        self.assertEqual((found["kind"], found["reason"]), ("l7", "waiting"))
        self.assertEqual((found["shared"], found["why"]), (None, WHY["waiting"]))
        self.assertEqual(
            found["full"], "10.0.0.1:80 has all of its 1 connections (max_connections)"
        )
        self.assertIn("max_connections", found["advice"])

    def test_ports(self):
        choice = self.waiting(House(*backends(1), ports=1))
        found = choice.explain_waiting("l4")
        self.assertIn("no source port is left from 10.9.9.9 to 10.0.0.1:80", found["full"])
        self.assertIn("[sources]", found["advice"])

    def test_room_for_those_before_it(self):
        """It comes free while it is asked: what is there is for others."""
        house = House(*backends(1), max_connections=1)
        choice = self.waiting(house)
        house.state(1).full = None
        house.state(1).tier.open += 1
        house.state(1).tier.balancer.add(house.state(1))
        self.assertEqual(choice.explain_waiting("l4")["full"], "others were waiting")
