"""Knowing for certain when a connection is gone."""

from __future__ import annotations

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from proxykit.net.lost import when_lost


class WhenLostTests(TestCase):
    timeout = 10

    def test_the_protocol_is_told_first(self) -> None:
        order: list[object] = []

        class Told(Protocol):
            def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
                order.append(reason.type)

        protocol = Told()
        when_lost(protocol, lambda: order.append("called"))
        self.assertEqual(order, [])
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(order, [ConnectionDone, "called"])

    def test_even_if_that_raises(self) -> None:
        called: list[int] = []

        class Bad(Protocol):
            def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
                raise ZeroDivisionError

        protocol = Bad()
        when_lost(protocol, lambda: called.append(1))
        with self.assertRaises(ZeroDivisionError):
            protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(called, [1])

    def test_twice(self) -> None:
        called: list[int] = []
        protocol = Protocol()
        when_lost(protocol, lambda: called.append(1))
        when_lost(protocol, lambda: called.append(2))
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(called, [1, 2])
