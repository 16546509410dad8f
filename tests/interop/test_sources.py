"""A real ``twistd proxykit`` whose backends come and go, and what examples/ shows of that."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from attrs import fields
from twisted.internet import reactor as trials_reactor
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from proxykit.sources.dns import DnsSettings
from proxykit.sources.file import FileSettings
from tests.interop import programs
from tests.interop.test_examples import EXAMPLES, ask
from tests.sockets import HOST, until
from tests.sources.name_servers import NameServer, a, srv

SERVICE = "_http._tcp.web.test"
FILE = """\
[clusters.file.discover]
by = "file"
path = "backends.txt"
interval = 0.05
[clusters.dns.discover]
by = "dns"
name = "_http._tcp.web.test"
type = "SRV"
servers = ["127.0.0.1:{names}"]
min_ttl = 0.05
retry_max = 0.1
[clusters.sockets.discover]
by = "sockets"
directory = "sockets"
interval = 0.05
[[listeners]]
name = "front"
listen = "tcp:{front}:interface=127.0.0.1"
mode = "http"
routes = [
    {{ path = "/file", cluster = "file" }},
    {{ path = "/dns", cluster = "dns" }},
    {{ path = "/sockets", cluster = "sockets" }},
]
"""


class _Says(Resource):
    """Says who it is."""

    isLeaf = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def render_GET(self, request: Any) -> bytes:
        return self.name.encode()


class SourceTests(TestCase):
    skip = programs.TWICE
    timeout = 120

    async def backend(self, name: str) -> int:
        """One that says its name; tells its port."""
        endpoint = TCP4ServerEndpoint(trials_reactor, 0, interface=HOST)
        port = await endpoint.listen(Site(_Says(name)))
        self.addCleanup(port.stopListening)
        return port.getHost().port  # type: ignore[no-any-return,attr-defined]

    def prepare(self, names: int) -> None:
        # Short, for sockets.
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        (self.directory / "sockets").mkdir()
        self.front = programs.free_port()
        (self.directory / "proxykit.toml").write_text(FILE.format(front=self.front, names=names))

    def start(self) -> None:
        environment = programs.environment()
        path = os.pathsep.join((str(EXAMPLES / "sockets"), environment["PYTHONPATH"]))
        self.service = programs.Child.start(
            self,
            [sys.executable, *programs.TWISTD, "proxykit", "--config", "proxykit.toml"],
            env={**environment, "PYTHONPATH": path},
            cwd=self.directory,
        )

    def write(self, text: str) -> None:
        """Another file takes the place of the one that is looked at."""
        made = self.directory / "new"
        made.write_text(text)
        made.rename(self.directory / "backends.txt")

    async def said(self, path: str) -> str:
        status, _, body = await ask(self.front, "GET", path)
        return body.decode() if status == 200 else str(status)

    async def becomes(self, path: str, name: str) -> None:
        """Another backend answers."""
        while await self.said(path) != name:
            await until(lambda: True)

    async def test_sources(self) -> None:
        one, two = await self.backend("one"), await self.backend("two")
        names = NameServer(self)
        self.has(names, one)
        self.prepare(names.port)
        self.write(f"{HOST}:{one}\n")
        socket = str(self.directory / "sockets" / "a.sock")
        port = await UNIXServerEndpoint(trials_reactor, socket).listen(Site(_Says("socket")))
        self.addCleanup(port.stopListening)
        self.start()
        await self.service.wait_for("front: listening on")
        await self.becomes("/file", "one")
        await self.becomes("/dns", "one")
        await self.becomes("/sockets", "socket")
        self.write(f"{HOST}:{two}\n")
        self.has(names, two)
        await self.becomes("/file", "two")
        await self.becomes("/dns", "two")
        # Nobody has an answer any more.
        await names.stop()
        self.write(f"{HOST}:{one}\n{HOST}:")
        await self.service.wait_for("dns: .*Connection refused; the backends stay those of before")
        await self.service.wait_for(
            r"backends\.txt:2: expected .*; the backends stay those of before"
        )
        self.assertEqual(await self.said("/file"), "two")
        self.assertEqual(await self.said("/dns"), "two")
        await self.service.stop()
        self.assertNotIn("Traceback", self.service.output)

    def has(self, names: NameServer, port: int) -> None:
        names.has(srv(SERVICE, "localhost.test", port, ttl=0), a("localhost.test", HOST, 0))


class ExampleTests(TestCase):
    skip = programs.TWICE
    timeout = 60

    async def test_every_key(self) -> None:
        """They are all there, with their defaults."""
        text = (EXAMPLES / "discover.toml").read_text()
        shown = tomllib.loads(text)["clusters"]
        for cluster, kind in (("web", FileSettings), ("api", DnsSettings)):
            table = shown[cluster]["discover"]
            self.assertEqual({*table}, {"by", *(each.name for each in fields(kind))})
            lines = {line.partition(" ")[0]: line for line in text.splitlines()}
            for each in fields(kind):
                if "e.g." not in lines[each.name] or each.name == "servers":
                    default = list(each.default) if each.default == () else each.default
                    self.assertEqual(table[each.name], default)

    async def test_right(self) -> None:
        status, printed = await programs.run(
            self,
            [sys.executable, "-m", "proxykit", "check", str(EXAMPLES / "discover.toml")],
            env=programs.environment(),
            cwd=programs.TREE,
        )
        self.assertEqual(
            (status, printed.partition("ok: ")[2]),
            (0, "1 listener, 3 clusters, 1 backend, and those found by dns and file\n"),
        )
