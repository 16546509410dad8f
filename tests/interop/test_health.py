"""Backends that die, come back, and answer with errors: nginx, checked and watched from outside."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.interop import programs

_CONFIG = """
[admin]
listen = "tcp:{admin}:interface=127.0.0.1"
[clusters.web]
backends = [{backends}]
balance = "round-robin"
slow_start = 0.0
{cluster}
[[listeners]]
name = "front"
listen = "tcp:{port}:interface=127.0.0.1"
mode = "http"
cluster = "web"
"""

_NGINX = """
server {
    listen 127.0.0.1:PORT MORE;
    add_header X-Backend PORT always;
    location / { return STATUS; }
    location = /healthz { return 204; }
}
"""

#: Often, so that nobody waits for long.
_CHECKS = """
[clusters.web.health]
path = "/healthz"
status = "204"
interval = 0.2
timeout = 5.0
"""


def fetch(port: int, count: int, path: str = "/") -> list[tuple[int, str | None, bytes]]:
    """So many requests, one after the other: the status of each, who has answered, and what."""
    answers = []
    for _ in range(count):
        with closing(HTTPConnection("127.0.0.1", port, timeout=programs.DEADLINE)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            answers.append((response.status, response.getheader("X-Backend"), response.read()))
    return answers


class HealthTests(TestCase):
    """Two or three nginx, each on a port of its own."""

    skip = programs.TWICE
    timeout = 120

    @inlineCallbacks
    def nginx(self, port: int, status: int = 200, more: str = "") -> Any:
        text = _NGINX.replace("PORT", str(port)).replace("STATUS", str(status))
        child = yield programs.nginx(self, text.replace("MORE", more))
        return child

    @inlineCallbacks
    def proxy(self, *origins: int, cluster: str) -> Any:
        self.port, self.admin = programs.free_port(), programs.free_port()
        config = Path(self.mktemp()).absolute()
        backends = ", ".join(f'"127.0.0.1:{origin}"' for origin in origins)
        config.write_text(
            _CONFIG.format(admin=self.admin, backends=backends, cluster=cluster, port=self.port)
        )
        self.service = yield programs.service(
            self, ["--config", str(config)], ready="admin: listening"
        )

    @inlineCallbacks
    def ask(self, count: int) -> Any:
        """How often each backend has answered, by status."""
        answers = yield deferToThread(fetch, self.port, count)
        return Counter((status, int(backend or 0)) for status, backend, _ in answers)

    @inlineCallbacks
    def shown(self) -> Any:
        """The backends as ``/api/clusters`` has them."""
        ((_, _, body),) = yield deferToThread(fetch, self.admin, 1, "/api/clusters")
        return json.loads(body)["clusters"][0]["backends"]

    @inlineCallbacks
    def until(self, **wanted: Any) -> Any:
        """Wait until all backends are shown so."""
        from twisted.internet import reactor

        while True:
            shown = yield self.shown()
            if all(each[key] == value for each in shown for key, value in wanted.items()):
                return
            yield deferLater(reactor, 0.1, lambda: None)

    @inlineCallbacks
    def test_killed_and_returned(self) -> Any:
        """It is noticed both times, and no request fails."""
        first, second = programs.free_port(), programs.free_port()
        yield self.nginx(first)
        victim = yield self.nginx(second)
        yield self.proxy(first, second, cluster=_CHECKS)
        yield self.until(health="up")
        self.assertEqual((yield self.ask(10)), {(200, first): 5, (200, second): 5})
        yield victim.stop("KILL")
        self.assertEqual((yield self.ask(10)), {(200, first): 10})
        yield self.service.wait_for(rf"web 127\.0\.0\.1:{second}: down: .*Connection refused")
        self.assertEqual((yield self.ask(10)), {(200, first): 10})
        yield self.nginx(second)
        yield self.service.wait_for(rf"web 127\.0\.0\.1:{second}: up again: 2 checks")
        self.assertEqual((yield self.ask(10)), {(200, first): 5, (200, second): 5})
        yield self.service.stop("TERM")

    @inlineCallbacks
    def test_errors(self) -> Any:
        """Who answers 500 is left alone after three, though its checks are fine."""
        first, second = programs.free_port(), programs.free_port()
        yield self.nginx(first)
        yield self.nginx(second, 500)
        eject = "[clusters.web.eject]\nfailures = 3\ntime = 100.0\n"
        yield self.proxy(first, second, cluster=_CHECKS + eject)
        yield self.until(health="up")
        self.assertEqual((yield self.ask(40)), {(200, first): 37, (500, second): 3})
        well, ejected = yield self.shown()
        self.assertIsNone(well["ejected_seconds"])
        self.assertGreater(ejected["ejected_seconds"], 50)
        self.assertEqual(ejected["why"], "3 failures in a row, the last: it answered 500")
        yield self.service.stop("TERM")

    @inlineCallbacks
    def test_nobody(self) -> Any:
        """A clear answer where no backend is well."""
        port = programs.free_port()
        yield self.proxy(port, cluster=_CHECKS)
        yield self.service.wait_for("web: no backend is well: what comes is refused")
        ((status, _, body),) = yield deferToThread(fetch, self.port, 1)
        self.assertEqual(status, 503)
        self.assertIn(b"no backend of cluster web is up", body)
        yield self.service.stop("TERM")

    @inlineCallbacks
    def test_who_expects_a_proxy_header(self) -> Any:
        """nginx takes what a check says for itself, in both versions."""
        for version in ("v1", "v2"):
            port = programs.free_port()
            yield self.nginx(port, more="proxy_protocol")
            yield self.proxy(port, cluster=f'proxy_protocol = "{version}"\n' + _CHECKS)
            yield self.until(health="up")
            self.assertEqual((yield self.ask(2)), {(200, port): 2})
            yield self.service.stop("TERM")
