"""Looking at what has come to a transport of the proxykit reactor, before anybody takes it."""

from __future__ import annotations

import array
import contextlib
import gc
import os
import socket
import weakref
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IFileDescriptorReceiver, IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from tests.net.test_splice import RESET, SpliceTestCase, tcp_pair

#: TCP, and unix sockets.
KINDS = (True, False)
#: More than sockets and buffers on the way take by themselves.
MORE = 24_000_000


class Side(Protocol):
    """Looks from the start, and notes what becomes of it."""

    transport: Any

    def __init__(
        self, size: int = 100, then: Callable[[Side, bytes], object] = lambda side, data: None
    ) -> None:
        self.size = size
        self.then = then
        self.seen: list[bytes] = []
        self.received = b""
        self.ended = False
        self.lost: Any = None

    def connectionMade(self) -> None:
        if self.size:
            self.transport.look(self.look, self.size)

    def look(self, data: bytes) -> None:
        self.seen.append(data)
        self.then(self, data)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        self.lost = type(reason.value)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Side):
    def readConnectionLost(self) -> None:
        self.ended = True

    def writeConnectionLost(self) -> None:
        """Not of interest."""


@implementer(IFileDescriptorReceiver)
class Receiver(Side):
    descriptor = -1

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self.descriptor = descriptor


class One:
    """A factory of one protocol."""

    def __init__(self, side: Any) -> None:
        self.side = side

    def buildProtocol(self, addr: Any) -> Any:
        return self.side


class LookCase(SpliceTestCase):
    """A connection whose near end is on a reactor of the test's own."""

    def far(self, side: Any, tcp: bool) -> socket.socket:
        """The far end of a new connection."""
        near, far = tcp_pair() if tcp else socket.socketpair()
        self.addCleanup(far.close)
        self.reactor.adoptStreamConnection(near.fileno(), near.family, One(side))
        near.close()
        return far

    def turns(self, count: int = 5) -> None:
        for _ in range(count):
            self.turn()

    def reset(self, far: socket.socket, tcp: bool) -> None:
        """A unix socket is reset by closing it with something unread."""
        if tcp:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        far.close()


class LookTests(LookCase):
    def test_nothing_is_taken_and_it_is_shown_again(self) -> None:
        for tcp in KINDS:
            side = Side()
            far = self.far(side, tcp)
            self.turns()
            self.assertEqual(side.seen, [])
            far.send(b"abc")
            self.turns(3)
            self.assertEqual(side.seen, [b"abc"] * 3)
            far.send(b"def")
            self.turns(2)
            self.assertEqual(side.seen[3:], [b"abcdef"] * 2)
            self.assertEqual((side.received, side.transport.peek(100)), (b"", b"abcdef"))
            side.transport.look(None, 0)
            self.turns()
            self.assertEqual((len(side.seen), side.received), (5, b"abcdef"))
            far.send(b"ghi")
            self.turns()
            self.assertEqual((len(side.seen), side.received), (5, b"abcdefghi"))

    def test_no_more_than_was_asked_for(self) -> None:
        for tcp in KINDS:
            side = Side(4)
            far = self.far(side, tcp)
            far.send(b"abcdef")
            self.turn()
            side.transport.consume(1)
            self.turn()
            side.transport.consume(3)
            self.turn()
            self.assertEqual(side.seen, [b"abcd", b"bcde", b"ef"])

    def test_who_takes_all_waits_for_more(self) -> None:
        for tcp in KINDS:
            side = Side(then=lambda side, data: side.transport.consume(len(data)))
            far = self.far(side, tcp)
            for data in (b"abc", b"d", b"ef"):
                far.send(data)
                self.turns(3)
                self.assertEqual(side.seen.pop(), data)
                self.assertEqual((side.seen, self.reactor._poller.poll(0)), ([], []))
            self.assertEqual(side.received, b"")

    def test_what_came_in_pieces(self) -> None:
        """Of a unix socket, too, it is seen as one, and taken anywhere."""
        for tcp in KINDS:
            side = Side()
            far = self.far(side, tcp)
            for data in (b"ab", b"cde", b"f"):
                far.send(data)
            self.assertEqual(side.transport.peek(100), b"abcdef")
            side.transport.consume(3)
            side.transport.consume(0)
            self.turn()
            self.assertEqual(side.seen, [b"def"])
            side.transport.consume(3)
            self.turns()
            self.assertEqual((side.seen, side.transport.peek(100)), ([b"def"], b""))

    def test_taking_a_part_and_reading_the_rest(self) -> None:
        """As who has found what it looked for does."""

        def take(side: Side, data: bytes) -> None:
            side.transport.consume(2)
            side.transport.look(None, 0)

        for tcp in KINDS:
            side = Side(then=take)
            far = self.far(side, tcp)
            far.send(b"abcdef")
            self.turns()
            self.assertEqual((side.seen, side.received), ([b"abcdef"], b"cdef"))

    def test_somebody_else_looks(self) -> None:
        for tcp in KINDS:
            side = Side(then=lambda side, data: side.transport.look(side.seen.append, 2))
            far = self.far(side, tcp)
            far.send(b"abc")
            self.turns(3)
            self.assertEqual(side.seen, [b"abc", b"ab", b"ab"])

    def test_looking_again_after_reading(self) -> None:
        for tcp in KINDS:
            side = Side(0)
            far = self.far(side, tcp)
            far.send(b"abc")
            self.turns()
            side.transport.look(None, 0)  # It does not look: that is no mistake.
            side.transport.look(side.look, 100)
            far.send(b"def")
            self.turn()
            self.assertEqual((side.received, side.seen), (b"abc", [b"def"]))

    def test_pause(self) -> None:
        for tcp in KINDS:
            side = Side(then=lambda side, data: side.transport.pauseProducing())
            far = self.far(side, tcp)
            far.send(b"abc")
            self.turns(3)
            self.assertEqual(side.seen, [b"abc"])
            side.transport.resumeProducing()
            self.turns(3)
            self.assertEqual(side.seen, [b"abc"] * 2)
            side.transport.look(None, 0)
            self.turns(3)
            self.assertEqual(side.received, b"")
            side.transport.resumeProducing()
            self.turns(3)
            self.assertEqual((len(side.seen), side.received), (2, b"abc"))

    def test_it_can_be_written_to(self) -> None:
        for tcp in KINDS:
            side = Side(then=lambda side, data: side.transport.write(b"x"))
            far = self.far(side, tcp)
            far.send(b"abc")
            self.turns(3)
            self.assertEqual(far.recv(100), b"xxx")

    def test_descriptors_beside_the_bytes(self) -> None:
        """They are not lost by looking."""
        side = Receiver()
        far = self.far(side, False)
        with open(os.devnull, "rb") as null:
            rights = array.array("i", [null.fileno()])
            far.sendmsg([b"abc"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        self.turns(3)
        self.assertEqual((side.seen, side.descriptor), ([b"abc"] * 3, -1))
        side.transport.look(None, 0)
        self.turns()
        self.assertEqual((side.received, side.descriptor > 0), (b"abc", True))
        os.close(side.descriptor)


class EndTests(LookCase):
    """How a connection ends that is looked at."""

    def test_the_end(self) -> None:
        for tcp in KINDS:
            side = HalfCloseable()
            far = self.far(side, tcp)
            far.shutdown(socket.SHUT_WR)
            self.turns()
            self.assertEqual((side.seen, side.ended, side.lost), ([], True, None))
            side.transport.write(b"answer")
            self.turn()
            self.assertEqual(far.recv(100), b"answer")
            side.transport.loseConnection()
            self.turns()
            self.assertEqual(side.lost, ConnectionDone)

    def test_the_end_for_who_knows_no_half(self) -> None:
        for tcp in KINDS:
            side = Side()
            far = self.far(side, tcp)
            far.shutdown(socket.SHUT_WR)
            self.turns()
            self.assertEqual((side.seen, side.lost), ([], ConnectionDone))

    def test_what_is_before_the_end_comes_first(self) -> None:
        for tcp in KINDS:
            for kind in (Side, HalfCloseable):
                side = kind()
                far = self.far(side, tcp)
                far.send(b"abc")
                far.shutdown(socket.SHUT_WR)
                self.turns(3)
                self.assertEqual(side.seen, [b"abc"] * 3)
                self.assertEqual((side.ended, side.lost), (False, None))
                side.transport.consume(3)
                self.turns()
                self.assertEqual(len(side.seen), 3)
                over = (True, None) if kind is HalfCloseable else (False, ConnectionDone)
                self.assertEqual((side.ended, side.lost), over)

    def test_the_end_right_behind_what_is_read_again(self) -> None:
        for tcp in KINDS:
            side = HalfCloseable(then=lambda side, data: side.transport.look(None, 0))
            far = self.far(side, tcp)
            far.send(b"abc")
            far.shutdown(socket.SHUT_WR)
            self.turns()
            self.assertEqual((side.seen, side.received), ([b"abc"], b"abc"))
            self.assertEqual((side.ended, side.lost), (True, None))

    def test_a_reset(self) -> None:
        for tcp in KINDS:
            for kind in (Side, HalfCloseable):
                side = kind()
                far = self.far(side, tcp)
                side.transport.write(b"unread")
                self.turns()
                self.reset(far, tcp)
                self.turns()
                self.assertEqual((side.seen, side.ended, side.lost), ([], False, ConnectionLost))

    def test_a_reset_behind_what_was_taken(self) -> None:
        for tcp in KINDS:
            side = Side(then=lambda side, data: side.transport.consume(len(data)))
            far = self.far(side, tcp)
            side.transport.write(b"unread")
            self.turn()
            far.send(b"abc")
            self.reset(far, tcp)
            self.turns()
            self.assertEqual((side.seen, side.lost), ([b"abc"], ConnectionLost))

    def test_an_error_in_writing(self) -> None:
        """What had come before is shown once more, and no more after that."""
        for tcp in KINDS:
            side = Side()
            far = self.far(side, tcp)
            far.send(b"abc")
            self.reset(far, tcp)
            side.transport.write(b"question")
            self.turns()
            self.assertEqual((side.seen, side.lost), ([b"abc"], ConnectionLost))

    def test_an_error_in_writing_what_is_closed(self) -> None:
        for tcp in KINDS:
            side = Side()
            far = self.far(side, tcp)
            far.send(b"abc")
            self.reset(far, tcp)
            side.transport.write(b"farewell")
            side.transport.loseConnection()
            self.turns()
            self.assertEqual((side.seen, side.lost), ([], ConnectionDone))

    def test_peek(self) -> None:
        for tcp in KINDS:
            side = HalfCloseable()
            far = self.far(side, tcp)
            self.assertEqual(side.transport.peek(10), b"")
            far.send(b"abc")
            self.assertEqual((side.transport.peek(2), side.transport.peek(9)), (b"ab", b"abc"))
            side.transport.consume(3)
            far.shutdown(socket.SHUT_WR)
            self.assertEqual(side.transport.peek(10), b"")
            side = HalfCloseable()
            far = self.far(side, tcp)
            side.transport.write(b"unread")
            self.turn()
            self.reset(far, tcp)
            with self.assertRaises(ConnectionResetError):
                side.transport.peek(10)

    def test_taking_more_than_has_come(self) -> None:
        """That is a mistake, and does not wait for ever."""
        for tcp in KINDS:
            for ends, problem in ((False, BlockingIOError), (True, ConnectionResetError)):
                side = Side()
                far = self.far(side, tcp)
                far.send(b"abc")
                if ends:
                    far.shutdown(socket.SHUT_WR)
                with self.assertRaises(problem):
                    side.transport.consume(4)

    def test_closing_it(self) -> None:
        """From then on nothing is shown."""
        for tcp in KINDS:
            for close, lost in (
                (lambda side, _: side.transport.loseConnection(), ConnectionDone),
                (lambda side, _: side.transport.abortConnection(), ConnectionAborted),
            ):
                side = Side(then=close)
                far = self.far(side, tcp)
                far.send(b"abc")
                self.turns(1)
                self.assertEqual(side.seen, [b"abc"])
                self.turns()
                self.assertEqual((len(side.seen), side.received, side.lost), (1, b"", lost))

    def test_what_is_still_to_go_out_goes_before_it_is_closed(self) -> None:
        for tcp in KINDS:
            side = Side()
            far = self.far(side, tcp)
            side.transport.write(bytes(MORE))
            side.transport.loseConnection()
            far.send(b"abc")
            self.turns()
            self.assertEqual((side.seen, side.lost), ([], None))
            received = 0
            while received < MORE:
                with contextlib.suppress(BlockingIOError):
                    received += len(far.recv(1 << 20))
                self.turn()
            self.turns()
            self.assertEqual((side.seen, side.received, side.lost), ([], b"", ConnectionDone))

    def test_whoever_aborts_it_may_stop_looking_afterwards(self) -> None:
        def refuse(side: Side, data: bytes) -> None:
            side.transport.abortConnection()
            side.transport.look(None, 0)

        for tcp in KINDS:
            side = Side(then=refuse)
            far = self.far(side, tcp)
            far.send(b"abc")
            self.turns()
            self.assertEqual(
                (side.seen, side.received, side.lost), ([b"abc"], b"", ConnectionAborted)
            )

    def test_a_look_that_raises(self) -> None:
        def fail(side: Side, data: bytes) -> None:
            raise ZeroDivisionError

        for tcp in KINDS:
            side = Side(then=fail)
            far = self.far(side, tcp)
            far.send(b"abc")
            self.turns()
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
            self.assertEqual((len(side.seen), side.lost), (1, ZeroDivisionError))

    def test_nothing_of_it_waits_for_the_garbage_collector(self) -> None:
        def reset(side: Side, far: socket.socket) -> None:
            far.send(b"abc")
            self.turn()
            self.reset(far, True)
            side.transport.consume(3)

        self.addCleanup(gc.enable)
        for tcp in KINDS:
            for leave in (
                lambda side, far: far.close(),
                lambda side, far: side.transport.loseConnection(),
                lambda side, far: side.transport.abortConnection(),
                reset,
            ):
                gc.collect()
                gc.disable()
                side = Side()
                far = self.far(side, tcp)
                gone = [weakref.ref(side), weakref.ref(side.transport)]
                leave(side, far)
                self.turns()
                self.assertIsNotNone(side.lost)
                del side
                self.assertEqual([each() for each in gone], [None, None])
                gc.enable()


class SwitchTests(LookCase):
    """Another protocol gets a connection; the first one hears no more of it."""

    def switched(self, second: Any, tcp: bool, *, looks: bool) -> tuple[Side, socket.socket]:
        def give(first: Side, data: bytes) -> None:
            first.transport.look(None, 0)
            first.transport.switch(second)

        first = HalfCloseable(100 if looks else 0, give)
        far = self.far(first, tcp)
        far.send(b"abc")
        self.turn()
        if not looks:
            first.transport.switch(second)
        return first, far

    def test_what_comes(self) -> None:
        for tcp in KINDS:
            for looks in (True, False):
                second = HalfCloseable(0)
                first, far = self.switched(second, tcp, looks=looks)
                far.send(b"def")
                self.turns()
                self.assertEqual(first.received, b"" if looks else b"abc")
                self.assertEqual(second.received, b"abcdef" if looks else b"def")
                self.assertIsNone(second.transport)  # Nobody has told it of its connection.

    def test_the_end(self) -> None:
        """As the new protocol wants it told."""
        for tcp in KINDS:
            for kind in (HalfCloseable, Side):
                second = kind(0)
                first, far = self.switched(second, tcp, looks=True)
                far.shutdown(socket.SHUT_WR)
                self.turns()
                self.assertEqual(second.received, b"abc")
                over = (True, None) if kind is HalfCloseable else (False, ConnectionDone)
                self.assertEqual((second.ended, second.lost), over)
                first.transport.abortConnection()
                self.turns()
                self.assertIsNotNone(second.lost)
                self.assertEqual((first.ended, first.lost), (False, None))

    def test_the_log_names_the_new_one(self) -> None:
        class Renamed(HalfCloseable):
            """Somebody else."""

        first, _ = self.switched(Renamed(0), True, looks=True)
        self.assertIn("Renamed", first.transport.logPrefix())
