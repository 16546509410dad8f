"""What examples/ and the documentation show is true: it runs."""

from __future__ import annotations

import re
import sys
import tomllib
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.protocols.wire import Echo
from twisted.trial.unittest import SkipTest, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from proxykit.net.kernel import is_local
from tests.interop import programs
from tests.interop.test_packaging import converse

EXAMPLES = programs.TREE / "examples"


class _Asked(Resource):
    """Says what it was asked."""

    isLeaf = True

    def render_GET(self, request):
        version, cookie = (request.getHeader(name) for name in ("x-version", "cookie"))
        return f"{request.uri.decode()} version {version} cookie {cookie}".encode()


class _Whence(Resource):
    """Says where it was asked from."""

    isLeaf = True

    def render_GET(self, request):
        return request.getClientAddress().host.encode()


def ask(port, method, path, **fields):
    """One request; a Deferred of status, fields and body."""

    def talk():
        connection = HTTPConnection("127.0.0.1", port, timeout=programs.DEADLINE)
        with closing(connection):
            connection.request(method, path, headers=fields)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    return deferToThread(talk)


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
    def start(self, name, ready):
        """Run an example in front of an origin that says what it was asked."""
        origin = yield TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Site(_Asked()))
        self.addCleanup(origin.stopListening)
        port = programs.free_port()
        child = programs.Child.start(
            self,
            [
                *(sys.executable, str(EXAMPLES / name), str(port)),
                f"127.0.0.1:{origin.getHost().port}",
            ],
        )
        yield child.wait_for(ready)
        return child, port

    @inlineCallbacks
    def test_rewriting(self):
        """Hooks change what goes out and what comes back, or answer by themselves."""
        child, port = yield self.start("rewriting.py", r"rewriting \d+ to ")
        status, fields, body = yield ask(port, "GET", "/v2/x", Cookie="c")
        self.assertEqual((status, body), (200, b"/x version 2 cookie None"))
        self.assertEqual(fields["X-Asked-For"], "/v2/x")
        self.assertNotIn("Server", fields)
        status, _, body = yield ask(port, "DELETE", "/v2/x")
        self.assertEqual((status, body), (403, b"only to be read\n"))
        yield child.stop("TERM")

    @inlineCallbacks
    def test_with_twisted_web(self):
        """Some paths are twisted.web's, the others a backend's."""
        child, port = yield self.start("with_twisted_web.py", r"pages and others at \d+")
        _, _, body = yield ask(port, "GET", "/pages/x")
        self.assertEqual(body, b"twisted.web greets 127.0.0.1 at /pages/x\n")
        _, _, body = yield ask(port, "GET", "/x")
        self.assertEqual(body, b"/x version None cookie None")
        yield child.stop("TERM")

    @inlineCallbacks
    def test_every_key(self):
        """The files that list them are right ones, and so is what --print makes of them."""
        for name in ("proxykit.toml", "sources.toml", "health.toml"):
            check = [sys.executable, "-m", "proxykit", "check"]
            status, printed = yield programs.run(self, [*check, str(EXAMPLES / name), "--print"])
            self.assertEqual(status, 0, printed)
            copy = self.mktemp()
            Path(copy).write_text(printed)
            status, again = yield programs.run(self, [*check, copy, "--print"])
            self.assertEqual((status, again), (0, printed))

    @inlineCallbacks
    def test_sources(self):
        """Connections to the backend leave from the addresses that the file names."""
        text = (EXAMPLES / "sources.toml").read_text()
        addresses = tomllib.loads(text)["sources"]["addresses"]
        if not all(map(is_local, addresses)):
            raise SkipTest("not all of 127.0.0.0/8 is this machine")
        origin = yield TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Site(_Whence()))
        self.addCleanup(origin.stopListening)
        port = programs.free_port()
        for shown, real in ((9001, origin.getHost().port), (8080, port), (9901, 0)):
            text, count = re.subn(rf"(?m)^([a-z].*\b){shown}\b", rf"\g<1>{real}", text)
            self.assertEqual(count, 1)
        path = Path(self.mktemp()).absolute()
        path.write_text(text)
        service = yield programs.service(self, ["--config", str(path)])
        status, _, body = yield ask(port, "GET", "/")
        self.assertEqual(status, 200)
        self.assertIn(body.decode(), addresses)
        yield service.stop("TERM")
