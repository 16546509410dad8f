"""What systemd is told."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxykit.ops.systemd import Notifier
from tests.sockets import hear


class NotifierTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.path = os.path.join(directory, "notify")
        self.clock = Clock()

    def notifier(self, where: str, **environ: str) -> Notifier:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(self.socket.close)
        self.socket.bind(where.replace("@", "\0"))
        return Notifier({"NOTIFY_SOCKET": where, **environ}, self.clock)

    def told(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(1000).decode())
            except BlockingIOError:
                return found

    def test_states(self) -> None:
        for where in (self.path, f"@proxykit-test-{os.getpid()}"):
            notifier = self.notifier(where)
            notifier.ready()
            notifier.reloading()
            notifier.ready()
            notifier.stopping()
            notifier.stop()
            ready, reloading, again, stopping = self.told()
            self.assertEqual((ready, again, stopping), ("READY=1", "READY=1", "STOPPING=1"))
            self.assertRegex(reloading, r"\ARELOADING=1\nMONOTONIC_USEC=\d+\Z")
            notifier.ready()  # A reload may come to its end by then.
            self.assertEqual(self.told(), [])
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_signs_of_life(self) -> None:
        notifier = self.notifier(self.path, WATCHDOG_USEC="4000000")
        self.clock.advance(10)
        self.assertEqual(self.told(), [])
        notifier.ready()
        notifier.ready()
        self.assertEqual(self.told(), ["READY=1", "WATCHDOG=1", "READY=1"])
        self.clock.pump([2, 2])
        self.assertEqual(self.told(), ["WATCHDOG=1"] * 2)
        notifier.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_asks(self) -> None:
        notifier = Notifier({"WATCHDOG_USEC": "1000000"}, self.clock)
        notifier.ready()
        notifier.stopping()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_listens(self) -> None:
        """That is said once, and nothing else comes of it."""
        lines = hear(self)
        notifier = Notifier({"NOTIFY_SOCKET": self.path}, self.clock)
        notifier.ready()
        notifier.stopping()
        self.assertEqual(
            lines, ["NOTIFY_SOCKET: systemd cannot be told: No such file or directory"]
        )
