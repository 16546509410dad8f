"""A listener whose process runs out of descriptors."""

from __future__ import annotations

import itertools
import sys
from errno import EMFILE, EWOULDBLOCK
from typing import Any

from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from proxykit.core.deadlines import Deadlines
from proxykit.net import listener as listener_module
from proxykit.net.listener import Listener
from tests.net.test_listener import ROOT, Bare, Child, Echo, FakePort, FakeSocket, Mode
from tests.sockets import (
    TIMEOUT,
    connect,
    hear,
    reactor,
    start_backend,
)


class DescriptorTests(TestCase):
    """Without descriptors nobody is let in, and nobody is turned away."""

    timeout = TIMEOUT

    def start(self, *answers: Any) -> tuple[Listener, FakePort, Clock]:
        clock = Clock()
        port = FakePort(list(answers))
        listener = Listener(
            "front", Mode(), 100, itertools.count(1), Deadlines(clock, lambda: None)
        )
        listener.listen(port)  # type: ignore[arg-type]
        return listener, port, clock

    def test_the_table_is_full(self) -> None:
        lines = hear(self)
        listener, port, clock = self.start(OSError(EMFILE, "?"), FakeSocket(5))
        with self.assertRaises(BlockingIOError) as caught:
            port.socket.accept()
        self.assertEqual(caught.exception.errno, EWOULDBLOCK)
        self.assertEqual((port.reading, bool(listener.paused)), (False, True))
        with self.assertRaises(BlockingIOError):
            port.socket.accept()  # a stock port goes on in its loop
        clock.advance(1.2)
        self.assertEqual((port.reading, listener.paused), (True, ""))
        port.socket.accept()
        self.assertEqual(len([line for line in lines if "descriptors" in line]), 1)

    def test_the_last_ones_are_kept_back(self) -> None:
        listener, port, _ = self.start(FakeSocket(1_000_000))
        accepted, _ = port.socket.accept()
        self.assertEqual(accepted.fileno(), 1_000_000)
        self.assertEqual((port.reading, bool(listener.paused)), (False, True))

    def test_and_stay_kept_back(self) -> None:
        """Time alone brings no descriptor back: looking again lets nobody in."""
        _, port, clock = self.start(*(FakeSocket(1_000_000 + number) for number in range(9)))
        self.patch(listener_module, "next_descriptor", lambda: 1_000_000)
        port.socket.accept()
        for _ in range(8):
            clock.advance(1.2)
            if port.reading:
                port.socket.accept()
        self.assertEqual(len(port.answers), 8)

    def test_it_looks_again_in_one_place(self) -> None:
        """However often it starved and went on in between: nothing piles up."""
        listener, _, _ = self.start()
        for _ in range(5):
            listener.starved()
            listener._resume()
        listener.starved()
        self.assertEqual(len(listener._deadlines), 1)

    def test_other_errors_are_the_ports_own(self) -> None:
        listener, port, _ = self.start(OSError(EWOULDBLOCK, "?"), PermissionError(1, "?"))
        with self.assertRaises(BlockingIOError):
            port.socket.accept()
        with self.assertRaises(PermissionError):
            port.socket.accept()
        self.assertEqual(listener.paused, "")

    def test_a_full_listener_does_not_look_again(self) -> None:
        listener, port, clock = self.start()
        listener.limit = 0
        listener.starved()
        clock.advance(1.2)
        self.assertFalse(port.reading)

    def test_stopped_meanwhile(self) -> None:
        listener, port, clock = self.start(OSError(EMFILE, "?"))
        with self.assertRaises(BlockingIOError):
            port.socket.accept()
        self.successResultOf(listener.stop_listening())
        clock.advance(1.2)
        self.assertFalse(port.reading)
        listener.starved()
        self.assertEqual(listener.paused, "")

    def test_a_port_with_no_socket_to_speak_to(self) -> None:
        listener = Listener(
            "front", Mode(), 100, itertools.count(1), Deadlines(Clock(), lambda: None)
        )
        self.successResultOf(listener.listen(Bare()))  # type: ignore[arg-type]

    async def test_for_real(self) -> None:
        backend = await start_backend(self, Echo)
        child = Child()
        reactor.spawnProcess(
            child,
            sys.executable,
            [sys.executable, "-m", "tests.starving", str(backend.address.port), "65"],
            env=None,
            path=ROOT,
        )
        self.addCleanup(lambda: child.over)
        self.addCleanup(lambda: child.transport.closeStdin())
        state = await child.answer()
        port = int(state["address"].rpartition(":")[2])
        clients = [await connect(self, port) for _ in range(60)]
        for client in clients:
            client.send(b"hello")
        while not (state := await child.order("report"))["paused"]:
            pass
        self.assertIn("no file descriptors left", state["paused"])
        served = state["connections"]
        self.assertLess(served, 30)
        for client in clients[:served]:
            await client.got(b"hello")

        # It waits, rather than spin: what it costs is far from all of the time.
        begun = await child.order("report")
        await deferLater(reactor, 1.0)
        ended = await child.order("report")
        self.assertLess(ended["cpu"] - begun["cpu"], 0.3)

        # Looking again changes nothing as long as there are none.
        for _ in range(20):
            state = await child.order("advance 1.1")
        self.assertEqual([client.reason for client in clients if client.reason], [])
        self.assertEqual([client for client in clients if client.read_ended], [])
        self.assertEqual(len(state["log"]), 1, state["log"])
        self.assertIn("front: not accepting: this process has no file d", state["log"][0])

        # Who leaves makes room for those who wait, until everybody has been served.
        for client in clients:
            await client.got(b"hello")
            client.close()
        while (state := await child.order("report"))["connections"]:
            pass
        self.assertEqual((state["accepted"], state["paused"]), (60, None))
