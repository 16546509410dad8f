"""Knowing for certain when a connection is made, and when it is gone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from proxykit.net.lost import guard_making, unhook_lost, when_lost, when_made


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

    def test_unhooked(self) -> None:
        """Nobody is told any more but the protocol itself, if it still is."""
        called: list[int] = []
        lost: list[object] = []

        class Told(Protocol):
            def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
                lost.append(reason.type)

        protocol = Told()
        unhook_lost(protocol)  # Nothing is hooked: that is no mistake.
        when_lost(protocol, called.append, 1)
        when_lost(protocol, called.append, 2)
        unhook_lost(protocol)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((called, lost), ([], [ConnectionDone]))

    def test_hooked_again_after_that(self) -> None:
        called: list[int] = []
        protocol = Protocol()
        when_lost(protocol, called.append, 1)
        unhook_lost(protocol)
        when_lost(protocol, called.append, 2)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(called, [2])

    def test_nothing_refers_in_a_circle_afterwards(self) -> None:
        self.addCleanup(gc.enable)
        gc.disable()
        for over in (lambda it: it.connectionLost(Failure(ConnectionDone())), unhook_lost):
            protocol = Protocol()
            when_lost(protocol, lambda: None)
            over(protocol)
            gone = weakref.ref(protocol)
            del protocol
            self.assertIsNone(gone())


class Making(Protocol):
    """Says when its connection is made, and raises if it is to."""

    def __init__(self, order: list[Any], bad: bool = False) -> None:
        self.order = order
        self.bad = bad

    def connectionMade(self) -> None:
        self.order.append(("made", self.transport))
        if self.bad:
            raise ZeroDivisionError


class MakingCase(TestCase):
    timeout = 10

    def setUp(self) -> None:
        self.order: list[Any] = []
        self.transport = StringTransport()

    def note(self, transport: Any) -> None:
        self.order.append(("called", transport))


class WhenMadeTests(MakingCase):
    def test_right_before_the_protocol_is_told(self) -> None:
        protocol = Making(self.order)
        when_made(protocol, self.note)
        self.assertEqual(self.order, [])
        protocol.makeConnection(self.transport)
        self.assertEqual(self.order, [("called", self.transport), ("made", self.transport)])
        self.assertEqual(protocol.connected, 1)

    def test_once(self) -> None:
        protocol = Making(self.order)
        when_made(protocol, self.note)
        protocol.makeConnection(self.transport)
        self.order.clear()
        protocol.makeConnection(self.transport)
        self.assertEqual(self.order, [("made", self.transport)])

    def test_what_was_hooked_before_is_called_as_well(self) -> None:
        """Whichever of the two was first: the last one hooked is called first."""
        for hook in (when_made, lambda protocol, _: guard_making(protocol)):
            protocol = Making(self.order)
            hook(protocol, self.note)
            when_made(protocol, lambda _: self.order.append("last"))
            protocol.makeConnection(self.transport)
            called = [("called", self.transport)] if hook is when_made else []
            self.assertEqual(self.order, ["last", *called, ("made", self.transport)])
            self.assertNotIn("makeConnection", vars(protocol))
            self.order.clear()

    def test_an_own_one_of_the_protocol_s(self) -> None:
        """Somebody else may have hooked it in the same way."""
        for hook in (lambda protocol: when_made(protocol, self.note), guard_making):
            protocol = Protocol()
            protocol.makeConnection = self.order.append  # type: ignore[method-assign,assignment]
            hook(protocol)
            protocol.makeConnection(self.transport)
            self.assertEqual(self.order.pop(), self.transport)
            self.assertEqual(vars(protocol)["makeConnection"], self.order.append)

    def test_a_call_that_raises(self) -> None:
        """Then the protocol is not told, and who opened the connection hears of it."""

        def fail(transport: Any) -> None:
            raise ZeroDivisionError

        protocol = Making(self.order)
        when_made(protocol, fail)
        with self.assertRaises(ZeroDivisionError):
            protocol.makeConnection(self.transport)
        self.assertEqual(self.order, [])

    def test_nothing_refers_in_a_circle_afterwards(self) -> None:
        self.addCleanup(gc.enable)
        gc.disable()
        for hook in (lambda protocol: when_made(protocol, self.note), guard_making):
            protocol = Protocol()
            hook(protocol)
            hook(protocol)
            protocol.makeConnection(self.transport)
            gone = weakref.ref(protocol)
            del protocol
            self.assertIsNone(gone())


class GuardTests(MakingCase):
    def guarded(self, bad: bool, *hooks: Any) -> Making:
        protocol = Making(self.order, bad)
        for hook in hooks:
            hook(protocol)
        guard_making(protocol)
        protocol.makeConnection(self.transport)
        return protocol

    def test_a_protocol_that_raises(self) -> None:
        protocol = self.guarded(True)
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertNotIn("makeConnection", vars(protocol))

    def test_one_that_does_not(self) -> None:
        self.guarded(False)
        self.assertFalse(self.transport.disconnected)
        self.assertEqual(self.order, [("made", self.transport)])

    def test_what_was_hooked_before(self) -> None:
        """It is called, and if the protocol raises behind it, that is noticed as well."""
        for bad in (False, True):
            self.guarded(bad, lambda protocol: when_made(protocol, self.note))
            self.assertEqual(self.order, [("called", self.transport), ("made", self.transport)])
            self.assertEqual(self.transport.disconnected, bad)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), int(bad))
            self.order.clear()

    def test_what_was_hooked_before_raises_itself(self) -> None:
        def fail(transport: Any) -> None:
            raise ZeroDivisionError

        self.guarded(False, lambda protocol: when_made(protocol, fail))
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.order, [])
