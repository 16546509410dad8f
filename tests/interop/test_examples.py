"""What examples/ and the documentation show is true: it runs."""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.wire import Echo
from twisted.trial.unittest import TestCase

from tests.interop import programs
from tests.interop.test_packaging import converse

EXAMPLES = programs.TREE / "examples"


class ExampleTests(TestCase):
    timeout = 60

    @inlineCallbacks
    def test_embedded(self):
        """A server of one's own with a TcpFactory on an endpoint."""
        origin = yield TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
            Factory.forProtocol(Echo)
        )
        self.addCleanup(origin.stopListening)
        port = programs.free_port()
        child = programs.Child.start(
            self,
            [
                *(sys.executable, str(EXAMPLES / "embedded.py"), str(port)),
                f"127.0.0.1:{origin.getHost().port}",
            ],
        )
        yield child.wait_for(r"relaying \d+ to ")
        self.assertEqual((yield converse(self, port, b"hello", 5)), b"hello")
        yield child.stop("TERM")

    @inlineCallbacks
    def test_every_key(self):
        """The file that lists them all is a right one, and so is what --print makes of it."""
        status, printed = yield programs.run(
            self,
            [sys.executable, "-m", "proxykit", "check", str(EXAMPLES / "proxykit.toml"), "--print"],
        )
        self.assertEqual(status, 0, printed)
        copy = self.mktemp()
        with open(copy, "w") as file:
            file.write(printed)
        status, again = yield programs.run(
            self, [sys.executable, "-m", "proxykit", "check", copy, "--print"]
        )
        self.assertEqual((status, again), (0, printed))
