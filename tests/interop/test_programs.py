"""Tests for the helpers in ``programs``: a helper that cannot fail would hide what it looks for."""

import os
import signal
import sys

from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import SkipTest, TestCase

from tests.interop import programs

#: Says so when it is up, and again what it reads; ends when its input does.
ECHO = "print('up', flush=True)\nprint('read', input(), flush=True)\n"


class RequireTests(TestCase):
    def test_found(self):
        self.assertTrue(os.access(programs.require("sh"), os.X_OK))

    def test_missing(self):
        """A skip that names the program; where programs are required, a failure."""
        self.patch(os, "environ", {"PATH": os.environ["PATH"]})
        error = self.assertRaises(SkipTest, programs.require, "no-such-program")
        self.assertIn("no-such-program", str(error))
        os.environ["PROXYKIT_REQUIRE_INTEROP"] = "1"
        error = self.assertRaises(AssertionError, programs.require, "no-such-program")
        self.assertIn("no-such-program", str(error))


class ChildTests(TestCase):
    def start(self, code):
        return programs.Child.start(self, [sys.executable, "-c", code])

    @inlineCallbacks
    def test_conversation(self):
        child = self.start(ECHO)
        yield child.wait_for("^up$")
        child.transport.write(b"hello\n")
        match = yield child.wait_for("^read (.*)$")
        self.assertEqual(match[1], "hello")
        self.assertEqual((yield child.ended()), 0)
        # What was printed can still be asked for.
        yield child.wait_for("^up$")

    @inlineCallbacks
    def test_pieces(self):
        """Half a line is not taken for a whole one; the last line needs no end."""
        code = "import sys; p = sys.stdout.write; p('a'); sys.stdout.flush(); input(); p('b\\nc')"
        child = self.start(code)
        line = child.wait_for("^(a.*)$")
        last = child.wait_for("^(c)$")
        child.transport.write(b"\n")
        self.assertEqual((yield line)[1], "ab")
        self.assertEqual((yield last)[1], "c")

    @inlineCallbacks
    def test_not_said(self):
        """The failure shows what was said instead, whether the end comes before or after."""
        child = self.start("print('other'); raise SystemExit(3)")
        error = yield self.assertFailure(child.wait_for("never"), AssertionError)
        self.assertIn("ended (3)", str(error))
        self.assertIn("other", str(error))
        yield self.assertFailure(child.wait_for("never"), AssertionError)

    @inlineCallbacks
    def test_too_late(self):
        child = self.start(ECHO)
        yield child.wait_for("^up$")
        error = yield self.assertFailure(child.wait_for("never", 0.01), AssertionError)
        self.assertIn("within 0.01 s", str(error))
        yield self.assertFailure(child.ended(0.01), AssertionError)

    @inlineCallbacks
    def test_stop(self):
        child = self.start(ECHO)
        yield child.wait_for("^up$")
        self.assertEqual((yield child.stop("TERM")), -signal.SIGTERM)
        self.assertEqual((yield child.stop("TERM")), -signal.SIGTERM)

    @inlineCallbacks
    def test_cleanup_ends_it(self):
        child = self.start(ECHO)
        yield child.wait_for("^up$")
        yield child._finish()
        self.assertEqual(child.status, -signal.SIGKILL)

    @inlineCallbacks
    def test_run(self):
        result = yield programs.run(self, [sys.executable, "-c", "print(7); raise SystemExit(2)"])
        self.assertEqual(result, (2, "7\n"))


class NginxTests(TestCase):
    @inlineCallbacks
    def test_answers(self):
        curl, port = programs.require("curl"), programs.free_port()
        server = f'server {{ listen 127.0.0.1:{port}; location / {{ return 200 "here"; }} }}'
        nginx = yield programs.nginx(self, server)
        result = yield programs.run(self, [curl, "-sS", f"http://127.0.0.1:{port}/"])
        self.assertEqual(result, (0, "here"))
        self.assertEqual((yield nginx.stop("QUIT")), 0)
