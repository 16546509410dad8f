"""proxykit.net.relay, where backends' connections are reset: who is closed how, in which order."""

from __future__ import annotations

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.deadlines import Deadlines
from proxykit.net import closing
from proxykit.net.closing import LOOK_EVERY, LOOK_FOR
from proxykit.net.relay import Relay, RelaySide

IDLE = 10.0


class Side(RelaySide):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.transport = Transport()

    def lose(self, reason: type[Exception] = ConnectionDone) -> None:
        self.connectionLost(Failure(reason()))


class Transport:
    """Keeps what it was told to do about its end."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def registerProducer(self, producer: object, streaming: bool) -> None:
        self.told.append("producer")

    def unregisterProducer(self) -> None:
        if "producer" in self.told:
            self.told.remove("producer")

    def loseConnection(self) -> None:
        self.told.append("close")

    def loseWriteConnection(self) -> None:
        self.told.append("end")

    def abortConnection(self) -> None:
        self.told.append("reset")


class RelayResetsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.settled: bool | None = False
        self.patch(closing, "settled", lambda transport: self.settled)
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock, lambda: self.fail("a deadline raised"))
        self.ended: list[str] = []
        self.client, self.upstream = Side("client"), Side("backend")
        Relay(
            self.client, self.upstream, self.deadlines, IDLE, self.ended.append, resets=True
        ).start()

    def tearDown(self) -> None:
        """In the end both are gone, once, and nothing is left."""
        self.assertEqual(len(self.ended), 1)
        self.assertEqual(len(self.deadlines), 0)
        self.assertIsNone(self.client.relay)

    def told(self) -> tuple[list[str], list[str]]:
        """What the client's transport was told, and the backend's."""
        return tuple(  # type: ignore[return-value]
            [each for each in side.transport.told if each != "producer"]
            for side in (self.client, self.upstream)
        )

    def settle(self) -> None:
        self.settled = True
        self.clock.pump([LOOK_EVERY] * 3)

    def is_reset(self, why: str = "client closed") -> None:
        self.assertEqual(self.told()[1], ["reset"])
        self.upstream.lose(ConnectionAborted)
        if not self.client.gone:
            self.client.lose()
        self.assertEqual(self.ended, [why])

    def test_the_client_ends(self) -> None:
        self.client.readConnectionLost()
        self.assertEqual(self.told(), ([], []))
        self.settle()
        self.assertEqual(self.told(), (["close"], ["reset"]))
        self.is_reset()
        self.assertEqual(self.told(), (["close"], ["reset"]))

    def test_the_client_is_gone_first(self) -> None:
        self.client.readConnectionLost()
        self.settle()
        self.client.lose()
        self.is_reset()

    def test_the_client_resets_when_it_is_done(self) -> None:
        """It has had its end by then."""
        self.client.readConnectionLost()
        self.settle()
        self.client.lose(ConnectionLost)
        self.is_reset()

    def test_the_client_closes_without_an_end_of_its_own(self) -> None:
        """As a transport does that cannot half-close."""
        self.client.lose()
        self.assertEqual(self.told(), ([], []))
        self.settle()
        self.is_reset()

    def test_it_closes_behind_its_end(self) -> None:
        self.client.readConnectionLost()
        self.client.lose()
        self.assertEqual(self.told(), ([], []))
        self.settle()
        self.is_reset()

    def test_too_long(self) -> None:
        self.client.readConnectionLost()
        self.clock.pump([LOOK_EVERY] * round(LOOK_FOR / LOOK_EVERY * 1.1))
        self.assertEqual(self.told(), ([], ["end"]))
        self.settle()
        self.upstream.readConnectionLost()
        self.assertEqual(self.told(), (["close"], ["end", "close"]))
        self.upstream.lose()
        self.client.lose()
        self.assertEqual(self.ended, ["client closed"])

    def test_too_long_without_a_client(self) -> None:
        for early in (True, False):
            self.setUp()
            if early:
                self.client.lose()
            else:
                self.client.readConnectionLost()
            self.clock.pump([LOOK_EVERY] * round(LOOK_FOR / LOOK_EVERY * 1.1))
            if not early:
                self.client.lose()
            self.assertEqual(self.told()[1][-1], "close")
            self.upstream.lose()

    def test_where_nobody_knows(self) -> None:
        """Then it is as without resets."""
        self.settled = None
        self.client.readConnectionLost()
        self.assertEqual(self.told(), ([], ["end"]))
        self.upstream.lose()
        self.client.lose()

    def test_the_backend_ends_meanwhile(self) -> None:
        self.client.readConnectionLost()
        self.upstream.readConnectionLost()
        self.assertEqual(self.told(), (["close"], ["close"]))
        self.settle()
        self.assertEqual(self.told(), (["close"], ["close"]))
        self.upstream.lose()
        self.client.lose()
        self.assertEqual(self.ended, ["client closed"])

    def test_the_backend_ends_when_the_client_is_gone(self) -> None:
        self.client.lose()
        self.upstream.readConnectionLost()
        self.settle()
        self.assertEqual(self.told()[1], ["close"])
        self.upstream.lose()

    def test_the_backend_ends_first(self) -> None:
        self.upstream.readConnectionLost()
        self.client.readConnectionLost()
        self.settle()
        self.assertEqual(self.told(), (["end", "close"], ["close"]))
        self.upstream.lose()
        self.client.lose()
        self.assertEqual(self.ended, ["backend closed"])

    def test_the_backend_ends_and_the_client_is_gone(self) -> None:
        self.upstream.readConnectionLost()
        self.client.lose()
        self.settle()
        self.assertEqual(self.told()[1], ["close"])
        self.upstream.lose()

    def test_the_client_resets_meanwhile(self) -> None:
        self.client.readConnectionLost()
        self.client.lose(ConnectionLost)
        self.settle()
        self.is_reset("client reset")

    def test_the_backend_resets_meanwhile(self) -> None:
        self.client.readConnectionLost()
        self.upstream.lose(ConnectionLost)
        self.settle()
        self.assertEqual(self.told(), (["reset"], []))
        self.client.lose(ConnectionAborted)
        self.assertEqual(self.ended, ["backend reset"])

    def test_aborted_meanwhile(self) -> None:
        self.client.readConnectionLost()
        self.client.relay.abort("enough")  # type: ignore[union-attr]
        self.settle()
        self.assertEqual(self.told(), (["reset"], ["reset"]))
        self.client.lose(ConnectionAborted)
        self.upstream.lose(ConnectionAborted)
        self.assertEqual(self.ended, ["client closed"])
