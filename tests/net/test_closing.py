"""proxykit.net.closing: when a reset loses nothing, and how long that is waited for."""

from __future__ import annotations

import gc
import socket
import sys
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.deadlines import Deadlines
from proxykit.net.closing import LOOK_EVERY, LOOK_FOR, Resetting, half_closes, resets, settled
from tests.core import House, backends
from tests.sockets import HOST


class Transport:
    """As much of a transport as is looked at."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def getHandle(self) -> Any:
        return self.handle


class SocketTestCase(SynchronousTestCase):
    """Two ends of a connection over loopback."""

    def setUp(self) -> None:
        listening = socket.socket()
        self.addCleanup(listening.close)
        # So small that what is sent is acknowledged as far as it goes in, and no further.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind((HOST, 0))
        listening.listen()
        self.here = socket.create_connection(listening.getsockname())
        self.addCleanup(self.here.close)
        self.there, _ = listening.accept()
        self.addCleanup(self.there.close)
        self.transport: Any = Transport(self.here)

    def fill(self) -> None:
        """Send more than the other side takes."""
        self.here.setblocking(False)
        try:
            while True:
                self.here.send(bytes(65536))
        except BlockingIOError:
            pass

    def drain(self) -> None:
        """Have the other side take all of it."""
        self.there.setblocking(False)
        while not settled(self.transport):
            try:
                self.there.recv(1 << 20)
            except BlockingIOError:
                continue


class SettledTests(SocketTestCase):
    def test_nothing_is_under_way(self) -> None:
        self.assertIs(settled(self.transport), True)

    def test_what_is_not_acknowledged(self) -> None:
        self.fill()
        self.assertIs(settled(self.transport), False)
        self.drain()
        self.assertIs(settled(self.transport), True)

    def test_what_is_not_read(self) -> None:
        self.there.send(b"answer")
        self.here.recv(1, socket.MSG_PEEK)  # Now it is here.
        self.assertIs(settled(self.transport), False)
        self.here.recv(6)
        self.assertIs(settled(self.transport), True)

    def test_the_others_end_is_nothing_to_be_read(self) -> None:
        self.there.shutdown(socket.SHUT_WR)
        self.assertEqual(self.here.recv(1, socket.MSG_PEEK), b"")
        self.assertIs(settled(self.transport), True)

    def test_what_is_not_sent(self) -> None:
        for name, value in (
            ("waits", b"x"),
            ("dataBuffer", b"x"),
            ("_tempDataLen", 1),
            ("pipe_holds", True),
        ):
            for below in (False, True):
                transport: Any = Transport(self.here)
                raw = transport
                if below:  # TLS
                    raw = transport.raw = Transport(self.here)
                self.assertIs(settled(transport), True)
                setattr(raw, name, value)
                self.assertIs(settled(transport), False, (name, below))

    def test_what_waits_in_a_pipe_for_the_other_side(self) -> None:
        class Splice:
            waiting = True

        self.transport.splice_out = Splice
        self.assertIs(settled(self.transport), False)
        Splice.waiting = False
        self.assertIs(settled(self.transport), True)
        self.transport.splice_out = None
        self.assertIs(settled(self.transport), True)

    def test_nobody_knows(self) -> None:
        for transport in (object(), Transport(object()), Transport(None)):
            self.assertIs(settled(transport), None)


class ResetsTests(SynchronousTestCase):
    def test_as_the_cluster_has_it(self) -> None:
        for close in ("fin", "reset"):
            house = House(*backends(1), close=close)
            self.assertEqual(resets(house.state(1)), close == "reset")

    def test_half_closes(self) -> None:
        self.assertTrue(half_closes(Transport(None)))


class ResettingTests(SocketTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock, lambda: self.fail(str(sys.exc_info()[1])))
        self.told: list[str] = []

    def begin(self, transport: Any = None) -> Resetting:
        settle, give_up = (lambda: self.told.append("settle")), (lambda: self.told.append("late"))
        resetting = Resetting(transport or self.transport, self.deadlines, settle, give_up)
        resetting.look()
        return resetting

    def test_at_once(self) -> None:
        resetting = self.begin()
        self.assertEqual((self.told, resetting.done), (["settle"], True))
        self.assertEqual(len(self.deadlines), 0)

    def test_soon(self) -> None:
        self.fill()
        resetting = self.begin()
        for _ in range(5):
            self.clock.advance(LOOK_EVERY)
        self.assertEqual((self.told, resetting.done), ([], False))
        self.drain()
        self.clock.pump([LOOK_EVERY] * 3)
        self.assertEqual((self.told, resetting.done), (["settle"], True))
        self.assertEqual(len(self.deadlines), 0)

    def test_not_for_ever(self) -> None:
        self.fill()
        resetting = self.begin()
        waited = 0.0
        while not self.told:
            self.clock.advance(LOOK_EVERY)
            waited += LOOK_EVERY
        self.assertTrue(LOOK_FOR <= waited < LOOK_FOR + 0.1, waited)
        self.assertEqual((self.told, resetting.done), (["late"], False))
        self.assertEqual(len(self.deadlines), 0)

    def test_where_nobody_knows(self) -> None:
        """There is nothing to wait for."""
        resetting = self.begin(Transport(None))
        self.assertEqual((self.told, resetting.done), (["late"], False))

    def test_cancelled(self) -> None:
        self.fill()
        resetting = self.begin()
        resetting.cancel()
        resetting.cancel()
        self.drain()
        self.clock.pump([LOOK_EVERY] * 200)
        self.assertEqual((self.told, resetting.done), ([], False))
        self.assertEqual(len(self.deadlines), 0)

    def test_nothing_waits_for_the_garbage_collector(self) -> None:
        class Owner:
            def begin(self, transport: Any, deadlines: Deadlines) -> None:
                self.resetting = Resetting(transport, deadlines, self.settle, self.settle)
                self.resetting.look()

            def settle(self) -> None:
                """It is."""

        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        owner = Owner()
        owner.begin(self.transport, self.deadlines)
        del owner
        self.assertEqual([each for each in gc.get_objects() if isinstance(each, Owner)], [])
