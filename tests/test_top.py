"""``proxykit top``: how it asks, what it says when it cannot, and how it goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from proxykit import cli, top
from proxykit.top import Admin, TopError
from tests.test_top_screen import state

EVENT = b"event: state\ndata: %b\n\n"


class Server:
    """Answers each request as it was told, and notes what it was asked."""

    def __init__(self, case: SynchronousTestCase, *answers: bytes) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        left = list(answers)
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                self.wfile.write(left.pop(0))

            def log_message(self, *arguments: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        case.addCleanup(server.server_close)
        case.addCleanup(thread.join)
        case.addCleanup(server.shutdown)


def answer(status: str, kind: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n\r\n".encode() + body


def stream(*states: dict[str, Any]) -> bytes:
    events = b"".join(EVENT % json.dumps(each).encode() for each in states)
    return answer("200 OK", "text/event-stream", b"retry: 2000\n\n" + events)


class AdminTests(SynchronousTestCase):
    def refused(self, *answers: bytes, token: str = "", path: str = "") -> TopError:
        """What is raised, with the address as URL."""
        server = Server(self, *answers)
        self.server = server
        error = self.assertRaises(TopError, list, Admin(server.url + path, token).events())
        error.args = (str(error).replace(server.url, "URL"),)
        return error

    def test_events(self) -> None:
        server = Server(self, stream(state(uptime=1), state(uptime=2)))
        events = Admin(server.url, "s3cret").events()
        self.assertEqual([next(events)["uptime"], next(events)["uptime"]], [1, 2])
        error = self.assertRaises(TopError, next, events)
        self.assertEqual(str(error), f"{server.url} has ended the connection")
        self.assertFalse(error.lasts)
        ((path, header),) = server.asked
        self.assertEqual((path, header["authorization"]), ("/api/events", "Bearer s3cret"))

    def test_lines_of_a_stream(self) -> None:
        """Comments, other events, fields without a space, and lines that end as HTTP's do."""
        whole = json.dumps(state(uptime=7)).encode()
        text = b": hello\r\n\r\nevent:other\ndata:{}\n\nevent:state\r\ndata:%b\r\nid: 3\r\n\r\n"
        server = Server(self, answer("200 OK", "text/event-stream; a=b", text % whole))
        self.assertEqual(next(Admin(server.url).events())["uptime"], 7)

    def test_behind_a_path(self) -> None:
        self.refused(stream(), path="/proxy/")
        self.assertEqual(self.server.asked[0][0], "/proxy/api/events")
        self.assertNotIn("authorization", self.server.asked[0][1])

    def test_refusals(self) -> None:
        events = "text/event-stream"
        other = "URL is not the admin listener of a proxykit"
        strange = "URL tells something else than a proxykit does"
        busy = answer("503 No", "application/json", b'{"error": "it ends"}')
        for said, text, lasts in (
            (answer("401 No", "text/plain", b""), "URL wants a token: set PROXYKIT_TOKEN", True),
            (answer("404 No", "text/html", b"<html>"), other, True),
            (answer("404 No", "application/json", b"[1]"), other, True),
            (answer("200 OK", "text/html", b"<html>"), other, True),
            (b"SSH-2.0-OpenSSH_9.2\r\n", other, True),
            (answer("421 No", "x/json", b'{"error": "\\u001b[2J"}'), "URL: 421: \ufffd[2J", True),
            (busy, "URL: 503: it ends", False),
            (answer("200 OK", events, EVENT % b"{"), strange, True),
            (answer("200 OK", events, EVENT % b'{"budgets": 3}'), strange, True),
            (answer("200 OK", events, b"event: state\ndata: {"), "URL has ended", False),
        ):
            with self.subTest(text=text):
                error = self.refused(said)
                self.assertIn(text, str(error))
                self.assertEqual(error.lasts, lasts)
                self.assertNotIn("\n", str(error))

    def test_tokens(self) -> None:
        error = self.refused(answer("401 No", "text/plain", b""), token="wrong")
        self.assertIn("URL does not take this token", str(error))
        for token in ("a\nb", "a\r\nX: y", "\N{SNOWMAN}"):
            error = self.assertRaises(TopError, list, Admin("http://127.0.0.1:1", token).events())

    def test_nobody_there(self) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{held.getsockname()[1]}"
            error = self.assertRaises(TopError, list, Admin(url).events())
        self.assertEqual(str(error), f"cannot connect to {url}: Connection refused")
        self.assertFalse(error.lasts)

    def test_silence(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            url = f"127.0.0.1:{held.getsockname()[1]}"
            error = self.assertRaises(TopError, list, Admin(url, timeout=0.05).events())
        self.assertEqual(str(error), f"http://{url} has not answered within 0.05 s")

    def test_unix(self) -> None:
        error = self.assertRaises(TopError, list, Admin("unix:/nowhere/at/all").events())
        self.assertIn("unix:/nowhere/at/all: No such file or directory", str(error))

    def test_urls(self) -> None:
        for url in ("", "http://", "ftp://a/", "http://a:b/", "unix:", "http://[::1/"):
            with self.subTest(url=url):
                error = self.assertRaises(TopError, Admin, url)
                self.assertIn("expected http://HOST:PORT or unix:/PATH", str(error))


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


class RunTests(SynchronousTestCase):
    def setUp(self) -> None:
        environ = {"COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
        patched = mock.patch.dict(os.environ, environ, clear=True)
        patched.start()
        self.addCleanup(patched.stop)
        self.err = io.StringIO()
        self.patch(sys, "stderr", self.err)
        self.slept: list[float] = []
        self.patch(top.time, "sleep", self.slept.append)
        self.patch(top.time, "monotonic", lambda: 0.0)

    def arguments(self, **changed: Any) -> Namespace:
        plain = {"admin": "x", "token_file": None, "interval": 0.01, "once": False}
        return Namespace(**plain | changed)

    def admins(self, *streams: list[Any]) -> None:
        """Whoever asks the next time gets the next of these; what is an exception is raised."""
        left = list(streams)
        test = self

        class Fake:
            def __init__(self, url: str, token: str) -> None:
                test.asked = (url, token)

            def events(self) -> Iterator[dict[str, Any]]:
                for each in left.pop(0):
                    if isinstance(each, BaseException):
                        raise each
                    yield each

        self.patch(top, "Admin", Fake)

    def test_once(self) -> None:
        for out, once in ((Terminal(), True), (io.StringIO(), False)):
            self.admins([state(version="9.8")])
            self.assertEqual(top.run(self.arguments(once=once), out), 0)
            self.assertIn(" 9.8  up 2 min", out.getvalue())
            self.assertNotIn("\x1b[?1049h", out.getvalue())

    def test_a_terminal_that_can_do_nothing(self) -> None:
        self.admins([state(version="9.8")])
        os.environ["TERM"] = "dumb"
        out = Terminal()
        self.assertEqual(top.run(self.arguments(), out), 0)
        self.assertNotIn("\x1b", out.getvalue())

    def test_live_until_it_is_stopped(self) -> None:
        out = Terminal()
        before = signal.getsignal(signal.SIGTERM)
        self.admins(
            [state(version="1.1"), state(version="1.2"), TopError("it has gone", lasts=False)],
            [TopError("nobody", lasts=False)],
            [state(version="1.3"), KeyboardInterrupt()],
        )
        with mock.patch.object(top.time, "monotonic", iter(range(100)).__next__):
            self.assertEqual(top.run(self.arguments(), out), 0)
        shown = out.getvalue()
        # The other screen, and back again.
        self.assertEqual((shown.count("\x1b[?1049h"), shown.count("\x1b[?1049l")), (1, 1))
        order = ["1.1", "1.2", "again: it has gone", "again: nobody", "1.3"]
        self.assertEqual(sorted(order, key=shown.index), order)
        self.assertEqual(self.slept, [top.AGAIN, top.AGAIN])
        self.assertEqual(signal.getsignal(signal.SIGTERM), before)

    def test_what_comes_too_soon_is_not_drawn(self) -> None:
        out = Terminal()
        self.admins([state(version="1.1"), state(version="1.2"), KeyboardInterrupt()])
        self.assertEqual(top.run(self.arguments(interval=5.0), out), 0)
        self.assertNotIn("1.2", out.getvalue())

    def test_it_ends_where_trying_again_is_of_no_use(self) -> None:
        self.admins([state(), TopError("another token", lasts=True)])
        self.assertEqual(top.run(self.arguments(), Terminal()), 1)
        self.assertEqual(self.err.getvalue(), "proxykit top: another token\n")

    def test_it_never_was(self) -> None:
        self.admins([TopError("nobody", lasts=False)])
        out = Terminal()
        self.assertEqual(top.run(self.arguments(), out), 1)
        self.assertEqual((out.getvalue(), self.err.getvalue()), ("", "proxykit top: nobody\n"))

    def test_token(self) -> None:
        file = Path(self.mktemp())
        file.write_text("from-a-file\n")
        for environ, given, token in (
            ({}, None, ""),
            ({"PROXYKIT_TOKEN": "set"}, None, "set"),
            ({"PROXYKIT_TOKEN": "set"}, file, "from-a-file"),
        ):
            self.admins([state()])
            with mock.patch.dict(os.environ, environ):
                top.run(self.arguments(token_file=given), io.StringIO())
            self.assertEqual(self.asked, ("x", token))
        self.assertEqual(top.run(self.arguments(token_file=Path("/no/such")), io.StringIO()), 1)
        self.assertIn("/no/such: No such file or directory\n", self.err.getvalue())
        file.write_bytes(b"\xff\xfe\x00")
        self.assertEqual(top.run(self.arguments(token_file=file), io.StringIO()), 1)
        self.assertIn("this is no text\n", self.err.getvalue())

    def test_command(self) -> None:
        """As it is typed."""
        server = Server(self, stream(state(version="9.8")))
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        self.assertEqual(cli.main(["top", "--admin", server.url, "--once"]), 0)
        self.assertIn("proxykit 9.8", out.getvalue())
        for wrong in ("0", "-1", "soon", "1e9"):
            self.assertEqual(cli.main(["top", "--interval", wrong]), 2)
        self.assertIn("expected seconds, above 0 and up to 3600, not 'soon'", self.err.getvalue())
