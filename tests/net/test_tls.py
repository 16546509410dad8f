"""TLS in memory: handshakes, records and ends, however they are cut."""

from __future__ import annotations

import random
import ssl
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from proxykit.net.tls import Broken, Truncated, start
from tests.sockets import End
from tests.tls_certificates import VERSIONS, client_context, der, server_context
from tests.tls_sockets import Below, Pair

BULK = random.Random(6).randbytes(300_000)
#: Both ends, with both versions.
ALL = [(server, version) for server in (True, False) for version in VERSIONS]


class Leaving(End):
    """Does something as soon as it is there."""

    def __init__(self, do: str) -> None:
        super().__init__()
        self._do = do

    def connectionMade(self) -> None:
        getattr(self.transport, self._do)()


class HandshakeTests(SynchronousTestCase):
    """Before there is anything to protect."""

    def test_both_ends_in_both_versions(self) -> None:
        for server, version in ALL:
            pair = Pair(self, server, version).joined()
            self.assertEqual((pair.readied, pair.problems), (1, []))
            self.assertTrue(pair.peer.done)
            self.assertEqual(pair.tls.ssl.version(), pair.peer.ssl.version())

    def test_cut_at_every_byte(self) -> None:
        """Of what comes; the two parts of each flight."""
        for server, version in ALL:
            at = 0
            most = 1
            while at < most:
                pair = Pair(self, server, version)
                pair.connect()
                pair.peer.feed(pair.below.take())
                first = pair.peer.take()
                most = max(most, len(first))
                pair.tls.dataReceived(first[:at])
                pair.tls.dataReceived(first[at:])
                pair.exchange()
                self.assertEqual((pair.readied, pair.problems), (1, []), (server, version, at))
                at += 1

    def test_byte_by_byte(self) -> None:
        for server, version in ALL:
            pair = Pair(self, server, version)
            pair.connect()
            pair.exchange(1)
            self.assertEqual((pair.readied, pair.problems), (1, []))

    def test_early_bytes_right_behind_the_end_of_it(self) -> None:
        for version in VERSIONS:
            pair = Pair(self, True, version)
            pair.connect()
            pair.tls.dataReceived(pair.peer.take())
            peer = pair.peer
            peer.feed(pair.below.take())
            if version is VERSIONS[0]:  # Its client has to wait for one more flight.
                finished = peer.take()
                half = Pair(self, False, version)
                half.connect()
                half.peer.feed(half.below.take())
                half.tls.dataReceived(half.peer.take())
                half.peer.feed(half.below.take())
                half.tls.dataReceived(half.peer.take() + half.peer.say(b"early"))
                self.assertEqual(bytes(half.above.received), b"early")
                pair.tls.dataReceived(finished)
                peer.feed(pair.below.take())
                continue
            pair.tls.dataReceived(peer.take() + peer.say(b"early") + peer.say(b" bird"))
            self.assertEqual(bytes(pair.above.received), b"early bird")

    def test_early_bytes_cut_at_every_byte(self) -> None:
        most = at = 1
        while at <= most:
            pair = Pair(self, True, VERSIONS[1])
            pair.connect()
            pair.tls.dataReceived(pair.peer.take())
            pair.peer.feed(pair.below.take())
            flight = pair.peer.take() + pair.peer.say(b"early") + pair.peer.end()
            most = len(flight)
            pair.tls.dataReceived(flight[:at])
            pair.tls.dataReceived(flight[at:])
            self.assertEqual(bytes(pair.above.received), b"early")
            self.assertTrue(pair.above.read_ended)
            at += 1

    def test_nothing_is_read_for_one_who_has_aborted(self) -> None:
        pair = Pair(self, True, VERSIONS[1], lambda: Leaving("abortConnection"))
        pair.connect()
        pair.tls.dataReceived(pair.peer.take())
        pair.peer.feed(pair.below.take())
        pair.tls.dataReceived(pair.peer.take() + pair.peer.say(b"early") + pair.peer.end())
        self.assertEqual((bytes(pair.above.received), pair.above.read_ended), (b"", False))

    def test_early_bytes_for_one_who_says_nothing(self) -> None:
        """It ends its own side at once, and hears the other all the same."""
        for version in VERSIONS:
            pair = Pair(self, True, version, lambda: Leaving("loseWriteConnection"))
            pair.connect()
            pair.tls.dataReceived(pair.peer.take())
            pair.peer.feed(pair.below.take())
            flight = pair.peer.take()
            if version is VERSIONS[1]:
                flight += pair.peer.say(b"early")
            pair.tls.dataReceived(flight)
            pair.peer.feed(pair.below.take())
            if version is VERSIONS[0]:
                pair.tls.dataReceived(pair.peer.say(b"early"))
            self.assertTrue(pair.peer.ended)
            self.assertEqual(bytes(pair.above.received), b"early")
            pair.tls.dataReceived(pair.peer.say(b" and late") + pair.peer.end())
            self.assertEqual(bytes(pair.above.received), b"early and late")
            self.assertTrue(pair.above.read_ended)

    def test_what_was_read_before(self) -> None:
        for cut in (0, 1, 100):
            pair = Pair(self)
            hello = pair.peer.take()
            transport = Below()
            transport.protocol = None  # type: ignore[attr-defined]
            pair.below = transport
            context = server_context(self)
            pair.tls = start(transport, context, True, pair.ready, pair.failed, hello[:cut])
            self.assertIs(transport.protocol, pair.tls)  # type: ignore[attr-defined]
            pair.tls.dataReceived(hello[cut:])
            pair.exchange()
            self.assertEqual(pair.readied, 1)

    def test_it_is_no_tls(self) -> None:
        """An alert, and the end."""
        pair = Pair(self)
        pair.connect()
        pair.tls.dataReceived(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        (problem,) = pair.problems
        self.assertIsInstance(problem, ssl.SSLError)
        self.assertEqual(problem.reason, "HTTP_REQUEST")  # type: ignore[attr-defined]
        self.assertTrue(pair.below.disconnecting)
        pair.tls.dataReceived(b"more")
        pair.tls.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((len(pair.problems), pair.readied), (1, 0))

    def test_the_other_side_is_told_by_an_alert(self) -> None:
        pair = Pair(self, False, theirs=server_context(self, "a.example", signer="other"))
        pair.connect()
        with self.assertRaises(ssl.SSLError) as raised:
            pair.exchange()
        self.assertIn("UNKNOWN_CA", raised.exception.reason)
        self.assertIsInstance(pair.problems[0], ssl.SSLCertVerificationError)
        self.assertTrue(pair.below.disconnecting)

    def test_an_alert_of_the_other_side(self) -> None:
        pair = Pair(self, False)
        pair.connect()
        pair.tls.dataReceived(b"\x15\x03\x01\x00\x02\x02\x28")
        self.assertIn("HANDSHAKE_FAILURE", pair.problems[0].reason)  # type: ignore[attr-defined]

    def test_an_end_in_the_middle(self) -> None:
        for server in (True, False):
            pair = Pair(self, server)
            pair.connect()
            pair.tls.readConnectionLost()
            pair.tls.connectionLost(Failure(ConnectionDone()))
            (problem,) = pair.problems
            self.assertIsInstance(problem, Truncated)
            self.assertTrue(pair.below.disconnecting)

    def test_lost_in_the_middle(self) -> None:
        pair = Pair(self)
        pair.connect()
        reason = ConnectionLost("reset")
        pair.tls.connectionLost(Failure(reason))
        self.assertEqual(pair.problems, [reason])
        self.assertIsNone(pair.above.transport)

    def test_an_end_asked_for_in_the_middle(self) -> None:
        """No close_notify, for there is no TLS."""
        pair = Pair(self)
        pair.connect()
        pair.tls.loseConnection()
        self.assertEqual(pair.below.take(), b"")
        self.assertTrue(pair.below.disconnecting)


class RecordTests(SynchronousTestCase):
    """What is inside."""

    def test_cut_at_every_byte(self) -> None:
        for server, version in ALL:
            pair = Pair(self, server, version).joined()
            expected = b""
            size = len(pair.peer.say(b"hello"))
            pair.tls.dataReceived(b"")
            pair = Pair(self, server, version).joined()
            for at in range(size + 1):
                record = pair.peer.say(b"hello")
                pair.tls.dataReceived(record[:at])
                pair.tls.dataReceived(record[at:])
                expected += b"hello"
                self.assertEqual(bytes(pair.above.received), expected)

    def test_many_in_one_read(self) -> None:
        for server, version in ALL:
            pair = Pair(self, server, version).joined()
            calls: list[bytes] = []
            pair.above.dataReceived = calls.append
            records = b"".join(pair.peer.say(b"%d," % number) for number in range(100))
            expected = b"".join(b"%d," % number for number in range(100))
            pair.tls.dataReceived(records + pair.peer.say(BULK) + pair.peer.end())
            self.assertEqual(len(calls), 1)
            self.assertTrue(calls[0] == expected + BULK)
            self.assertTrue(pair.above.read_ended)

    def test_a_part_of_the_last_one(self) -> None:
        pair = Pair(self).joined()
        last = pair.peer.say(b"two")
        pair = Pair(self).joined()
        records = pair.peer.say(b"one") + pair.peer.say(b"two")
        pair.tls.dataReceived(records[:-1])
        self.assertEqual(bytes(pair.above.received), b"one")
        pair.tls.dataReceived(records[-1:])
        self.assertEqual(bytes(pair.above.received), b"onetwo")
        self.assertTrue(last)

    def test_large_writes(self) -> None:
        for server, version in ALL:
            pair = Pair(self, server, version).joined()
            pair.tls.write(BULK)
            pair.tls.writeSequence([b"a", b"", b"b"])
            pair.tls.write(b"")
            pair.tls.write(b"c")
            pair.exchange()
            self.assertTrue(pair.peer.received == BULK + b"abc")

    def test_broken_at_every_byte(self) -> None:
        """Whatever of a record is wrong, nothing is taken for its contents."""
        for version in VERSIONS:
            size = len(Pair(self, True, version).joined().peer.say(b"hello"))
            for at in (0, *range(5, size)):
                pair = Pair(self, True, version).joined()
                record = bytearray(pair.peer.say(b"hello"))
                record[at] ^= 1
                pair.tls.dataReceived(bytes(record))
                self.assertTrue(pair.below.aborting, (version, at))
                pair.tls.connectionLost(Failure(ConnectionAborted()))
                self.assertEqual(bytes(pair.above.received), b"")
                self.assertIsInstance(pair.above.reason.value, Broken)
                self.assertTrue(str(pair.above.reason.value))

    def test_what_came_before_a_broken_one(self) -> None:
        pair = Pair(self).joined()
        good = pair.peer.say(b"good")
        pair.tls.dataReceived(good + b"\x17\x03\x03\x00\x20" + b"x" * 32)
        pair.tls.connectionLost(Failure(ConnectionAborted()))
        self.assertEqual(bytes(pair.above.received), b"good")
        self.assertIsInstance(pair.above.reason.value, Broken)

    def test_an_alert_of_the_other_side(self) -> None:
        """The client's certificate is refused, which it hears of when its handshake is done."""
        theirs = server_context(self, client_ca="ca", version=VERSIONS[1])
        pair = Pair(self, False, VERSIONS[1], theirs=theirs)
        pair.connect()
        pair.peer.feed(pair.below.take())
        pair.tls.dataReceived(pair.peer.take())
        self.assertEqual(pair.readied, 1)
        self.assertRaises(ssl.SSLError, pair.peer.feed, pair.below.take())
        pair.tls.dataReceived(pair.peer.take())
        self.assertTrue(pair.below.aborting)
        pair.tls.connectionLost(Failure(ConnectionAborted()))
        self.assertIn("CERTIFICATE_REQUIRED", str(pair.above.reason.value))
        self.assertEqual(pair.problems, [])


class KnowingTests(SynchronousTestCase):
    """What can be asked of it."""

    def test_the_transport_below(self) -> None:
        pair = Pair(self).joined()
        asked: list[Any] = []
        below: Any = pair.below
        below.getTcpNoDelay = below.getTcpKeepAlive = lambda: True
        below.setTcpNoDelay = below.setTcpKeepAlive = asked.append
        below.getHandle = lambda: "the socket"
        tls = pair.tls
        self.assertEqual(tls.getPeer(), below.getPeer())
        self.assertEqual(tls.getHost(), below.getHost())
        self.assertEqual(tls.getHandle(), "the socket")
        self.assertTrue(tls.getTcpNoDelay() and tls.getTcpKeepAlive())
        tls.setTcpNoDelay(True)
        tls.setTcpKeepAlive(False)
        self.assertEqual(asked, [True, False])

    def test_certificates_and_protocols(self) -> None:
        ours, theirs = server_context(self, client_ca="ca"), client_context(self, "me")
        pair = Pair(self, ours=ours, theirs=theirs).joined()
        self.assertEqual(pair.tls.getPeerCertificate(), der("me"))
        self.assertIsNone(pair.tls.negotiatedProtocol)
        ours.set_alpn_protocols(["h2", "http/1.1"])
        theirs.set_alpn_protocols(["http/1.1"])
        pair = Pair(self, ours=ours, theirs=theirs).joined()
        self.assertEqual(pair.tls.negotiatedProtocol, b"http/1.1")
        self.assertIsNone(Pair(self).joined().tls.getPeerCertificate())
