"""proxykit.core.choice: a choice's notes, and an attempt's share of its backend's load."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.choice import Attempt
from tests.core import House, backends, refusal


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
