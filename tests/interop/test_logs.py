"""The log of a real ``twistd proxykit``: one line for each event, whatever happens."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from tests.interop.programs import TWICE, TWISTD, Child, environment, free_port
from tests.sockets import in_thread, until

HOST = "127.0.0.1"
#: Twistd, and a bug in one of its listeners.
BROKEN = """\
from proxykit.modes import tcp
made = tcp.TcpProtocol.connectionMade
def connection_made(self):
    if self.info.listener == "broken":
        raise ValueError("no\\nluck")
    made(self)
tcp.TcpProtocol.connectionMade = connection_made
from twisted.scripts.twistd import run
run()
"""
FILE = """\
[clusters.web]
backends = ["127.0.0.1:{dead}"]
[[listeners]]
name = "front"
listen = "tcp:{front}:interface=127.0.0.1"
mode = "tcp"
cluster = "web"
[[listeners]]
name = "proxied"
listen = "tcp:{proxied}:interface=127.0.0.1"
mode = "tcp"
cluster = "web"
trust = ["127.0.0.1"]
proxy_protocol = true
[[listeners]]
name = "broken"
listen = "tcp:{broken}:interface=127.0.0.1"
mode = "tcp"
cluster = "web"
"""
SECRETS = """\
[admin]
listen = "tcp:{dead}:interface=127.0.0.1"
token = "hunter2-hunter2-hunter2"
[clusters.web]
backends = ["127.0.0.1:1"]
[[listeners]]
name = "front"
listen = "tcp:{front}:interface=127.0.0.1"
mode = "http"
cluster = "web"
"""
#: Requests that are served, refused and malformed, each with something that is nobody's business.
TOLD = (
    b"GET /?key=hunter2 HTTP/1.1\r\nHost: a\r\nAuthorization: hunter2\r\nCookie: hunter2\r\n",
    b"GET /?key=hunter2 HTTP/1.1\r\nAuthorization: hunter2\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization hunter2\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nCookie: hunter2\x00\r\n",
    b"GET /hunter2 hunter2 HTTP/1.1\r\nHost: a\r\n",
    b"HUNTER2 hunter2\r\n",
    b"GET /hunter2 HTTP/1.1\r\nHost: hunter2@a\r\n",
    b"GET /hunter2 HTTP/1.1\r\nHost: a\r\nContent-Length: hunter2\r\n",
)
HOSTILE = b"PROXY \n2026-11-23T12:00:00+0000 [proxykit#info] forged\r\n\r\n"


def talk(port: int, data: bytes = b"") -> bytes:
    """Say something, and hear all that comes until the end."""
    try:
        with socket.create_connection((HOST, port), 30) as made:
            made.sendall(data)
            return made.recv(1000)
    except ConnectionError:  # it may be reset at any moment
        return b""


class LogTests(TestCase):
    skip = TWICE
    timeout = 120

    async def start(self, *arguments: str, file: str = FILE) -> Child:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.directory = directory
        self.ports = {name: free_port() for name in ("dead", "front", "proxied", "broken")}
        config = directory / "proxykit.toml"
        config.write_text(file.format(**self.ports))
        return Child.start(
            self,
            [sys.executable, "-P", "-c", BROKEN, *TWISTD[3:], *arguments],
            env=environment(),
            cwd=directory,
        )

    async def misuse(self) -> None:
        """All that a log has something to say of."""
        for name, data in (("front", b""), ("proxied", HOSTILE), ("broken", b"")):
            self.assertEqual(await in_thread(talk, self.ports[name], data), b"")

    def events(self, text: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in text.splitlines()]

    async def test_json(self) -> None:
        """Each line is an event, from the first to the last."""
        child = await self.start("proxykit", "--config", "proxykit.toml", "--log-format", "json")
        await child.wait_for("broken: listening on")
        await self.misuse()
        await child.stop()
        events = self.events(child.output)
        for event in events:
            self.assertLessEqual({"time", "level", "namespace", "message"}, set(event))
            self.assertRegex(event["time"], r"\A2\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ\Z")
        self.assertIn("starting up", events[0]["message"] + events[1]["message"])
        self.assertEqual(events[-1]["message"], "Server Shut Down.")

        def one(word: str) -> dict[str, Any]:
            (found,) = [each for each in events if word in each["message"]]
            return found

        started = one("front: listening on")
        self.assertEqual(started["listener"], "front")
        self.assertEqual(started["address"], f"{HOST}:{self.ports['front']}")
        failed = one(f"web {HOST}:")
        self.assertEqual((failed["level"], failed["cluster"]), ("warn", "web"))
        self.assertEqual(failed["backend"], f"{HOST}:{self.ports['dead']}")
        self.assertIn("refused", failed["why"])
        refused = one("PROXY")
        self.assertTrue(refused["connection"].startswith("proxied #"), refused)
        self.assertTrue(refused["client"].startswith(f"{HOST}:"), refused)
        (traced,) = [each for each in events if "traceback" in each]
        self.assertEqual(
            (traced["level"], traced["error"]), ("critical", "builtins.ValueError: no\nluck")
        )
        self.assertIn("connection_made", traced["traceback"])

    async def test_text(self) -> None:
        """The same as text, where tracebacks are one line as well."""
        child = await self.start("proxykit", "--config", "proxykit.toml")
        await child.wait_for("broken: listening on")
        await self.misuse()
        await child.stop()
        for line in child.output.splitlines():
            self.assertRegex(line, r"\A2\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[[^]]+\] .")
            self.assertNotIn("] forged", line)
        (line,) = [line for line in child.output.splitlines() if "Traceback" in line]
        self.assertTrue(line.endswith("ValueError: no\\nluck"), line)

    async def test_file(self) -> None:
        """In a file that logrotate moves away."""
        child = await self.start(
            "--logfile=log", "proxykit", "tcp", "--log-format", "json",
            *("--listen", "tcp:0:interface=127.0.0.1", "--backend", "127.0.0.1:1"),
        )  # fmt: skip
        log = self.directory / "log"
        await until(lambda: log.exists() and "listening on" in log.read_text())
        os.rename(log, self.directory / "moved")
        child.signal("USR1")
        await until(log.exists)
        await child.stop()
        for path in (self.directory / "moved", log):
            self.assertTrue(self.events(path.read_text()), path)
        self.assertEqual(child.output, "")

    async def test_secrets(self) -> None:
        """What clients send for backends, or for the admin listener, is not told."""
        for format in ("text", "json"):
            child = await self.start(
                *("proxykit", "--config", "proxykit.toml", "--log-format", format), file=SECRETS
            )
            await child.wait_for("admin: listening on")
            for name in ("front", "dead"):
                for request in TOLD:
                    heard = await in_thread(talk, self.ports[name], request + b"\r\n")
                    self.assertTrue(heard.startswith(b"HTTP/1.1 "), request)
            await child.stop()
            self.assertNotIn("hunter2", child.output.lower())
            self.assertIn("127.0.0.1:1: ", child.output)

    async def test_demo(self) -> None:
        """What it says to a person is an event, too."""
        child = await self.start("proxykit", "demo", "--log-format=json")
        await child.wait_for("Ctrl-C stops it|in use")
        await child.stop()
        self.assertTrue(self.events(child.output))

    async def test_mistakes(self) -> None:
        for arguments, expected in (
            (
                ("proxykit", "--log-format", "xml", "demo"),
                "proxykit: --log-format: expected text or json, not 'xml' (twistd proxykit --help"
                " says what there is)\n",
            ),
            (
                ("--syslog", "proxykit", "--log-format", "json", "demo"),
                "proxykit: give --log-format or twistd's --syslog, not both\n",
            ),
            (
                ("--logfile", "no/such", "proxykit", "demo"),
                "proxykit: --logfile no/such: No such file or directory\n",
            ),
        ):
            child = await self.start(*arguments)
            self.assertEqual(await child.ended(), 1)
            self.assertEqual(child.output, expected)
