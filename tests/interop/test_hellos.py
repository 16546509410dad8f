"""What programs of today send first, to a socket that only listens: proxykit knows what it is."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from proxykit.wire.clienthello import DECODE_ERROR, NEED_MORE, HelloReader, Matched, alert
from tests.interop import programs

NAME = "www.example"


class _Peek(Protocol):
    """Reads a hello, tells of it, and refuses."""

    def connectionMade(self):
        self.reader = HelloReader()

    def dataReceived(self, data):
        if self.reader is None:
            return
        answer = self.reader.feed(data)
        if answer is NEED_MORE:
            return
        self.reader = None
        self.transport.write(alert(DECODE_ERROR))
        self.transport.loseConnection()
        self.factory.told(answer)


class Hellos(Factory):
    """A listening socket, for one test, and what comes of the first bytes of each connection."""

    protocol = _Peek

    def __init__(self, test):
        self._answers = []
        self._waiting = None
        port = reactor.listenTCP(0, self, interface="127.0.0.1")
        test.addCleanup(port.stopListening)
        self.port = port.getHost().port

    def told(self, answer):
        self._answers.append(answer)
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    @inlineCallbacks
    def first(self, wanted):
        """Wait for the first answer that is wanted; fails with all that came instead."""
        seen = []
        while True:
            while self._answers:
                seen.append(self._answers.pop(0))
                if wanted(seen[-1]):
                    return seen[-1]
            self._waiting = Deferred().addTimeout(programs.DEADLINE, reactor)
            try:
                yield self._waiting
            except Exception as error:
                raise AssertionError(f"no such hello came, only {seen}") from error


def of_name(answer):
    return isinstance(answer, Matched) and answer.hello.server_name == NAME


class OpenSslTests(TestCase):
    @inlineCallbacks
    def hello(self, *options):
        program = programs.require("openssl")
        hellos = Hellos(self)
        address = f"127.0.0.1:{hellos.port}"
        programs.Child.start(self, [program, "s_client", "-connect", address, *options])
        answer = yield hellos.first(lambda answer: True)
        self.assertIsInstance(answer, Matched)
        return answer.hello

    @inlineCallbacks
    def test_versions(self):
        for option, version in (
            ("-tls1", 0x0301),
            ("-tls1_1", 0x0302),
            ("-tls1_2", 0x0303),
            ("-tls1_3", 0x0304),
        ):
            hello = yield self.hello(
                option, "-servername", NAME, "-cipher", "DEFAULT:@SECLEVEL=0", "-alpn", "h2,a"
            )
            self.assertEqual(
                (hello.server_name, hello.alpn, hello.versions), (NAME, ("h2", "a"), (version,))
            )

    @inlineCallbacks
    def test_no_name(self):
        for options in (("-noservername",), ("-servername", "192.0.2.1")):
            hello = yield self.hello(*options)
            self.assertIsNone(hello.server_name)

    @inlineCallbacks
    def test_many_records(self):
        """In records of 512 bytes, and a name behind the first of them."""
        long = ",".join(("x" * 250,) * 20)
        hello = yield self.hello("-servername", NAME, "-max_send_frag", "512", "-alpn", long)
        self.assertEqual((hello.server_name, len(hello.alpn)), (NAME, 20))

    @inlineCallbacks
    def test_it_knows_the_alert(self):
        program = programs.require("openssl")
        hellos = Hellos(self)
        address = f"127.0.0.1:{hellos.port}"
        status, printed = yield programs.run(self, [program, "s_client", "-connect", address])
        self.assertEqual(status, 1)
        self.assertIn("alert decode error", printed)


class CurlTests(TestCase):
    @inlineCallbacks
    def hello(self, *options):
        program = programs.require("curl")
        hellos = Hellos(self)
        to = f"::127.0.0.1:{hellos.port}"
        programs.Child.start(
            self, [program, "-qsk", "--noproxy", "*", *options, "--connect-to", to]
        )
        answer = yield hellos.first(lambda answer: True)
        self.assertIsInstance(answer, Matched)
        return answer.hello

    @inlineCallbacks
    def test_names(self):
        for url, name in (
            (f"https://{NAME}/", NAME),
            (f"https://{NAME.upper()}./", NAME),
            ("https://192.0.2.1/", None),
            ("https://[2001:db8::1]/", None),
        ):
            hello = yield self.hello(url)
            self.assertEqual(hello.server_name, name, url)
            self.assertIn(0x0304, hello.versions)

    @inlineCallbacks
    def test_protocols(self):
        for option, found in (
            ("--http1.1", ("http/1.1",)),
            ("--http2", ("h2", "http/1.1")),
            ("--no-alpn", ()),
        ):
            hello = yield self.hello(option, f"https://{NAME}/")
            self.assertEqual(hello.alpn, found)
