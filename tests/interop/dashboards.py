"""A service with its dashboard in a browser, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import TestCase
from twisted.web.server import Site
from twisted.web.static import Data

from tests.interop import chromium, programs
from tests.interop.chromium import Page
from tests.sockets import in_thread

HOST = "127.0.0.1"
#: A name that would be markup, if anybody took it for that.
CLUSTER = "web<img>"

FILE = """
{settings}
[admin]
listen = "tcp:{admin}:interface=127.0.0.1"
{token}
[clusters.{cluster}]
backends = [{backends}]

[[listeners]]
name = "front<b>"
listen = "tcp:{front}:interface=127.0.0.1"
mode = "http"
cluster = {cluster}
max_connections = 500
"""


class Case(TestCase):
    skip = programs.TWICE
    timeout = 120

    @inlineCallbacks
    def start(self, backends=(), token="", settings=""):
        """A service, with two origins of its own unless ``backends`` are named; and a browser."""
        self.admin, self.front = programs.free_port(), programs.free_port()
        if not backends:
            backends = [self.origin(), self.origin()]
        self.backends = list(backends)
        file = Path(self.mktemp()).resolve()
        file.write_text(
            FILE.format(
                settings=settings,
                admin=self.admin,
                token=f'token = "{token}"' if token else "",
                front=self.front,
                cluster=json.dumps(CLUSTER),
                backends=", ".join(json.dumps(each) for each in self.backends),
            )
        )
        self.serve = partial(programs.service, self, ["--config", str(file)], ready="listening on")
        # First, for where there is none nothing need be started.
        self.browser = yield chromium.browser(self)
        self.service = yield self.serve()
        self.url = f"http://{HOST}:{self.admin}/"

    def origin(self) -> str:
        hello = Data(b"hello\n", "text/plain")
        hello.isLeaf = True
        port = reactor.listenTCP(0, Site(hello), interface=HOST)
        self.addCleanup(port.stopListening)
        return f"{HOST}:{port.getHost().port}"

    def look(self, talk: Callable[[Page], None], fine: bool = True):
        """Have the page open, and talk with it, in a thread."""

        def whole() -> None:
            with Page(self.browser) as page:
                page.resize(1280, 900)
                page.goto(self.url)
                page.until("document.querySelector('#link').dataset.link === 'live'")
                talk(page)
                if fine:
                    self.fine(page)

        return in_thread(whole)

    def fine(self, page: Page) -> None:
        """Nobody else was asked, and nothing was complained of."""
        self.assertEqual(page.complaints(), [])
        asked = [urlsplit(each) for each in page.asked()]
        self.assertIn("/api/events", {each.path for each in asked})
        whom = {(each.scheme, each.hostname, each.port) for each in asked}
        self.assertEqual(whom, {("http", HOST, self.admin)})

    def api(self, path: str) -> Any:
        return self.get(self.admin, path, read=json.load)

    def get(self, port: int, path: str, read: Callable[[Any], Any] = lambda answer: answer.read()):
        connection = HTTPConnection(HOST, port, timeout=programs.DEADLINE)
        try:
            connection.request("GET", path)
            return read(connection.getresponse())
        finally:
            connection.close()

    def state(self, address: str) -> str:
        """What the API says of a backend."""
        (cluster,) = self.api("/api/clusters")["clusters"]
        return {each["address"]: each["state"] for each in cluster["backends"]}[address]


def button(address: str) -> str:
    """An expression for the first of a backend's buttons, which says what a click does."""
    return f"document.querySelector('[aria-label*=\"{address} of\"]')"


def badge(address: str) -> str:
    """An expression for a backend's state, in words."""
    return f"{button(address)}.closest('tr').querySelector('.badge').textContent"
