"""The proxykit reactor, beyond what Twisted's own tests ask of one (tests/interop)."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from zope.interface import implementer

from tests.net.test_splice import SpliceTestCase

RESET = struct.pack("ii", 1, 0)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Protocol):
    """Notes what becomes of it."""

    ended = False
    lost: Any = None

    def readConnectionLost(self) -> None:
        self.ended = True

    def writeConnectionLost(self) -> None:
        """Not of interest."""

    def connectionLost(self, reason: Any) -> None:
        self.lost = reason.value


class EndTests(SpliceTestCase):
    def test_a_reset_after_the_end_is_noticed(self) -> None:
        """Although nothing is read from it any more, and nothing is written to it."""
        side = HalfCloseable()
        far = self.end(side, tcp=True)
        far.shutdown(socket.SHUT_WR)
        while not side.ended:
            self.turn()
        for _ in range(10):
            self.turn()
        self.assertIsNone(side.lost)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        far.close()
        for _ in range(10):
            self.turn()
        self.assertIsNotNone(side.lost)

    def test_both_ended(self) -> None:
        """That is reported for ever: once is enough."""
        side = HalfCloseable()
        far = self.end(side, tcp=True)
        far.shutdown(socket.SHUT_WR)
        while not side.ended:
            self.turn()
        transport: Any = side.transport
        transport.loseWriteConnection()
        far.setblocking(True)
        self.turn()
        self.turn()
        self.assertEqual(far.recv(1), b"")
        for _ in range(10):
            self.turn()
        self.assertEqual(self.reactor._poller.poll(0), [])
        self.assertIsNone(side.lost)
        transport.loseConnection()
        self.turn()
        self.assertIsNotNone(side.lost)


class BindTests(SpliceTestCase):
    def test_late(self) -> None:
        """With a port of 0, connect() picks it, and knows the destination when it does."""
        made = HalfCloseable()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            factory = ClientFactory()
            factory.buildProtocol = lambda address: made  # type: ignore[method-assign,assignment]
            port = listening.getsockname()[1]
            connector = self.reactor.connectTCP(
                "127.0.0.1", port, factory, bindAddress=("127.0.0.2", 0)
            )
            option = connector.transport.socket.getsockopt(socket.SOL_IP, 24)
            self.assertEqual(option, 1)
            accepted, (host, _) = listening.accept()
            accepted.close()
            self.assertEqual(host, "127.0.0.2")
            while made.transport is None:
                self.turn()
            made.transport.abortConnection()  # type: ignore[attr-defined]
            while made.lost is None:
                self.turn()


class PortTests(SpliceTestCase):
    def test_pause(self) -> None:
        """Whoever comes meanwhile waits in the backlog."""
        made: list[Any] = []

        class Accepting(Protocol):
            def connectionMade(self) -> None:
                made.append(self)

        port = self.reactor.listenTCP(0, Factory.forProtocol(Accepting), interface="127.0.0.1")
        port.pause()
        client = socket.create_connection(("127.0.0.1", port.getHost().port))
        self.addCleanup(client.close)
        for _ in range(5):
            self.turn()
        self.assertEqual(made, [])
        port.resume()
        while not made:
            self.turn()
        port.stopListening()
        self.turn()
