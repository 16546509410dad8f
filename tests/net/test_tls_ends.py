"""TLS in memory: the ends of sides and of connections, and what is left of them."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from proxykit.net.tls import Truncated
from tests.sockets import End
from tests.tls_certificates import VERSIONS
from tests.tls_sockets import Pair

BULK = random.Random(7).randbytes(300_000)
#: Both ends, with both versions.
ALL = [(server, version) for server in (True, False) for version in VERSIONS]


class Whole(Protocol):
    """Knows of no half-close."""

    reason: Failure | None = None

    def __init__(self) -> None:
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.reason = reason


class EndTests(SynchronousTestCase):
    """The ends of sides, and of connections."""

    def test_the_other_side_s(self) -> None:
        """It still gets its answer."""
        for server, version in ALL:
            pair = Pair(self, server, version).joined()
            pair.tls.dataReceived(pair.peer.say(b"ask") + pair.peer.end())
            self.assertTrue(pair.above.read_ended)
            self.assertFalse(pair.below.disconnecting or pair.below.half_closed)
            pair.tls.readConnectionLost()  # and its socket's
            pair.above.send(b"answer")
            pair.above.close()
            pair.peer.feed(pair.below.take())
            self.assertEqual((pair.peer.received, pair.peer.ended), (b"answer", True))
            self.assertTrue(pair.below.disconnecting)
            reason = Failure(ConnectionDone())
            pair.tls.connectionLost(reason)
            self.assertIs(pair.above.reason, reason)

    def test_ours(self) -> None:
        """What comes after it is heard."""
        for server, version in ALL:
            pair = Pair(self, server, version).joined()
            pair.above.send(b"ask")
            pair.above.finish()
            self.assertTrue(pair.below.half_closed)
            self.assertFalse(pair.below.disconnecting)
            pair.peer.feed(pair.below.take())
            self.assertEqual((pair.peer.received, pair.peer.ended), (b"ask", True))
            pair.above.send(b"too late")
            self.assertEqual(pair.below.take(), b"")
            pair.tls.dataReceived(pair.peer.say(BULK))
            pair.tls.dataReceived(pair.peer.end())
            self.assertTrue(bytes(pair.above.received) == BULK)
            self.assertTrue(pair.above.read_ended)

    def test_cut_at_every_byte(self) -> None:
        for version in VERSIONS:
            size = len(Pair(self, True, version).joined().peer.end())
            for at in range(size + 1):
                pair = Pair(self, True, version).joined()
                end = pair.peer.end()
                pair.tls.dataReceived(end[:at])
                self.assertEqual(pair.above.read_ended, at == size)
                pair.tls.dataReceived(end[at:])
                self.assertTrue(pair.above.read_ended)

    def test_it_is_told_once(self) -> None:
        """Whatever comes behind it is thrown away, and takes no room."""
        pair = Pair(self).joined()
        told: list[int] = []
        pair.above.readConnectionLost = lambda: told.append(1)
        pair.tls.dataReceived(pair.peer.end())
        for _ in range(100):
            pair.tls.dataReceived(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        pair.tls.readConnectionLost()
        self.assertEqual(told, [1])
        self.assertEqual(pair.tls._incoming.pending, 0)
        self.assertFalse(pair.below.aborting)

    def test_without_a_close_notify(self) -> None:
        """It may not be the whole."""
        for server, version in ALL:
            for above in (End, Whole):
                pair = Pair(self, server, version, above).joined()
                pair.tls.dataReceived(pair.peer.say(b"half of"))
                pair.tls.readConnectionLost()
                self.assertTrue(pair.below.aborting)
                self.assertFalse(getattr(pair.above, "read_ended", False))
                pair.tls.connectionLost(Failure(ConnectionAborted()))
                self.assertIsInstance(pair.above.reason.value, Truncated)
                self.assertIsNone(pair.above.reason.check(ConnectionDone))

    def test_for_one_that_knows_no_half(self) -> None:
        pair = Pair(self, above=Whole).joined()
        pair.tls.dataReceived(pair.peer.say(b"bye") + pair.peer.end())
        self.assertEqual(pair.above.received, b"bye")
        self.assertTrue(pair.below.disconnecting)
        pair.peer.feed(pair.below.take())
        self.assertTrue(pair.peer.ended)

    def test_the_end_of_our_side_has_gone_out(self) -> None:
        pair = Pair(self).joined()
        told: list[int] = []
        pair.above.writeConnectionLost = lambda: told.append(1)
        pair.tls.writeConnectionLost()
        self.assertEqual(told, [1])
        Pair(self, above=Whole).joined().tls.writeConnectionLost()

    def test_with_a_producer(self) -> None:
        """It has its say first."""
        pair = Pair(self).joined()
        producer = StringTransport()
        pair.tls.registerProducer(producer, True)
        self.assertIs(pair.below.producer, producer)
        pair.tls.loseConnection()
        self.assertTrue(pair.tls.disconnecting)
        self.assertFalse(pair.below.disconnecting)
        pair.tls.write(b"last words")
        pair.tls.unregisterProducer()
        self.assertTrue(pair.below.disconnecting)
        self.assertIsNone(pair.below.producer)
        pair.peer.feed(pair.below.take())
        self.assertEqual((pair.peer.received, pair.peer.ended), (b"last words", True))

    def test_a_producer_that_is_done_before(self) -> None:
        pair = Pair(self).joined()
        pair.tls.registerProducer(StringTransport(), True)
        pair.tls.unregisterProducer()
        self.assertFalse(pair.below.disconnecting)
        pair.tls.stopProducing()
        self.assertTrue(pair.below.disconnecting)

    def test_held_back(self) -> None:
        pair = Pair(self).joined()
        pair.tls.pauseProducing()
        self.assertEqual(pair.below.producerState, "paused")
        pair.tls.resumeProducing()
        self.assertEqual(pair.below.producerState, "producing")

    def test_abort(self) -> None:
        pair = Pair(self).joined()
        pair.tls.abortConnection()
        self.assertTrue(pair.below.aborting)
        pair.tls.write(b"more")
        pair.tls.loseConnection()
        self.assertEqual(pair.below.take(), b"")

    def test_lost(self) -> None:
        pair = Pair(self).joined()
        reason = Failure(ConnectionLost())
        pair.tls.connectionLost(reason)
        self.assertIs(pair.above.reason, reason)
        pair.tls.write(b"more")
        pair.tls.loseConnection()
        self.assertEqual(pair.below.take(), b"")


class CirclesTests(SynchronousTestCase):
    """What is over is gone, without the garbage collector."""

    def setUp(self) -> None:
        self.addCleanup(gc.enable)
        gc.collect()
        gc.disable()

    def is_gone(self, pair: Pair, *, over: bool = True) -> None:
        tls: Any = pair.tls
        below = pair.below
        found = weakref.ref(tls)
        if over:
            tls.connectionLost(Failure(ConnectionDone()))
        below.protocol = None  # type: ignore[attr-defined]
        del pair.tls, pair.above, tls
        self.assertIsNone(found())

    def test_closed_by_the_other_side(self) -> None:
        pair = Pair(self).joined()
        pair.tls.dataReceived(pair.peer.end())
        pair.above.close()
        self.is_gone(pair)

    def test_closed_by_ours(self) -> None:
        pair = Pair(self).joined()
        pair.above.close()
        self.is_gone(pair)

    def test_aborted(self) -> None:
        pair = Pair(self).joined()
        pair.above.reset()
        self.is_gone(pair)

    def test_broken(self) -> None:
        pair = Pair(self).joined()
        pair.tls.dataReceived(b"nonsense")
        self.is_gone(pair)

    def test_failed(self) -> None:
        pair = Pair(self)
        pair.connect()
        pair.tls.dataReceived(b"nonsense")
        pair.problems.clear()  # A traceback refers to where it was raised.
        self.is_gone(pair)

    def test_lost_in_the_handshake(self) -> None:
        pair = Pair(self)
        pair.connect()
        pair.tls.connectionLost(Failure(ConnectionLost()))
        self.is_gone(pair, over=False)
