"""The admin listener: what the service is doing, as JSON, and what can be done about it.

What a request may and may not do stands in ``admin_access.py``, how requests come in
``admin_web.py``; here is what there is at which path.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from proxykit import __version__
from proxykit.checks import admin_fault
from proxykit.errors import ConfigError
from proxykit.ops import admin_writes, history
from proxykit.ops.admin_access import Access
from proxykit.ops.admin_web import AdminSite, Refused
from proxykit.ops.events import Events
from proxykit.ops.history import History
from proxykit.ops.metrics import Metrics
from proxykit.ops.openapi import description
from proxykit.ops.pages import INDEX, pages

if TYPE_CHECKING:
    from proxykit.model import Config
    from proxykit.ops.admin_web import AdminRequest
    from proxykit.ops.service import ProxyService

#: Behind this comes the number of a client's connection.
EXPLAIN = "/api/explain/"
_HEALTH = "/healthz"
_BACKEND = re.compile("/api/clusters/([^/]+)/backends/(.+)")
_NUMBER = re.compile("[0-9]{1,18}")

#: Answers a request: gives what is to be sent as JSON, or a Deferred of it; None, in either way: it
#: has taken the request over. Raises ``Refused``.
_Answer = Callable[["AdminRequest"], Any]


def admin_site(service: ProxyService, config: Config) -> AdminSite:
    """A factory for the admin listener of one service.

    :raises ConfigError: it would let anybody in.
    """
    return AdminSite(service.deadlines, Admin(service, config))


def _access(config: Config) -> Access:
    """
    :raises ConfigError: it would let anybody in.
    """
    if fault := admin_fault(config.admin, config.admin_token):
        raise ConfigError([f"admin.listen: {fault}"])
    return Access(config.admin_token, config.admin_hosts)


class Admin:
    """What the admin listener of one service answers.

    :raises ConfigError: it would let anybody in.
    """

    def __init__(self, service: ProxyService, config: Config) -> None:
        self._service = service
        self._access = _access(config)
        clock = service.deadlines.clock
        self._history = History()
        self._beats = 0
        self.events = Events(clock, self._state, self._beat)
        self._metrics = Metrics(service, clock)
        self._pages = pages()
        reads: dict[str, _Answer] = {
            _HEALTH: self._health,
            "/metrics": self._scrape,
            "/api/listeners": lambda request: {"listeners": self._listeners()},
            "/api/clusters": lambda request: {"clusters": self._clusters()},
            "/api/connections": lambda request: {"connections": self._connections()},
            # As the kernel has it now, not as it was when it was asked last.
            "/api/ports": lambda request: service.survey.fresh().addCallback(
                lambda _: {"budgets": service.accountant.snapshot()}
            ),
            "/api/events": self.events.serve,
            "/api/openapi.json": lambda request: description(self._access.needs_token),
        }
        reload = partial(admin_writes.reload, service)
        self._paths: dict[str, Mapping[bytes, _Answer]] = {
            path: {b"GET": answer} for path, answer in reads.items()
        }
        self._listed = [*reads, f"{EXPLAIN}ID", "/api/clusters/NAME/backends/ADDR", "/api/reload"]
        self._paths["/api/reload"] = {b"POST": reload}
        self._paths["/"] = {b"GET": self._root}
        for path in self._pages:
            self._paths[path] = {b"GET": partial(self._page, path)}

    def reconfigure(self, config: Config) -> None:
        """From now on another token, or other names, are the right ones.

        :raises ConfigError: it would let anybody in; nothing has changed.
        """
        before, self._access = self._access, _access(config)
        if not self._access.is_alike(before):
            # Whoever listens has shown another token, or none.
            self.events.let_go()

    def running(self, running: bool) -> None:
        """The listener starts, or stops."""
        if running:
            self.events.start()
        else:
            self.events.stop()

    def answer(self, request: AdminRequest) -> Deferred[None] | None:
        """Answer one request.

        :raises Refused: it is not to be had.
        """
        path = request.path.decode("ascii", "replace")
        if path != _HEALTH:
            self._access.check(request)
        answers = self._at(path)
        method = b"GET" if request.method == b"HEAD" else request.method
        answer = answers.get(method)
        if answer is None:
            allow = ", ".join("GET, HEAD" if each == b"GET" else each.decode() for each in answers)
            said = request.method.decode("ascii", "replace")
            raise Refused(405, f"{said} is not possible here", {"allow": allow})
        if method != b"GET":
            self._access.check_write(request)
        answered = answer(request)
        if isinstance(answered, Deferred):
            return answered.addCallbacks(partial(_done, request), partial(_refused, request))
        if answered is not None:
            request.send_json(answered)
        return None

    def _at(self, path: str) -> Mapping[bytes, _Answer]:
        """What can be done at a path, by the method."""
        if (answers := self._paths.get(path)) is not None:
            return answers
        if path.startswith(EXPLAIN):
            return {b"GET": lambda request: self._explained(path.removeprefix(EXPLAIN))}
        if found := _BACKEND.fullmatch(path):
            name, where = found.groups()
            return {
                b"POST": lambda request: admin_writes.set_backend(
                    self._service, request, name, where
                )
            }
        raise Refused(404, f"there is no {path[:200]} here")

    def _root(self, request: AdminRequest) -> Any:
        """The dashboard, for a browser; for others what there is."""
        request.setHeader("vary", "Accept")
        if INDEX in self._pages and "text/html" in (request.field("accept") or ""):
            return self._page(INDEX, request)
        return {"paths": self._listed}

    def _page(self, path: str, request: AdminRequest) -> None:
        content, kind = self._pages[path]
        request.send(200, content, kind)

    def _scrape(self, request: AdminRequest) -> Deferred[None]:
        """What Prometheus asks for."""
        request.setHeader("vary", "Accept")
        scraped = self._metrics.scrape(request.field("accept") or "")
        return scraped.addCallback(lambda found: request.send(200, *found))

    def _health(self, request: AdminRequest) -> Any:
        if self._service.draining:
            request.send_json({"status": "draining"}, 503)
            return None
        return {"status": "ok"}

    def _listeners(self) -> list[dict[str, Any]]:
        return [listener.snapshot() for listener in self._service.all_listeners]

    def _clusters(self) -> list[dict[str, Any]]:
        pool = self._service.pool
        return [
            {**cluster.snapshot(), "pool": pool.snapshot(cluster.config.name)}
            for cluster in self._service.registry
        ]

    def _connections(self) -> list[dict[str, Any]]:
        return [
            connection
            for listener in self._service.all_listeners
            for connection in listener.describe_connections()
        ]

    def _explained(self, text: str) -> dict[str, Any]:
        """Why a client's connection shares a backend's, or not.

        :param text: its number, as it was asked for.
        """
        if not _NUMBER.fullmatch(text):
            what = "expected the id of a connection (/api/connections)"
            raise Refused(404, f"{what}, not {text[:100]!r}")
        number = int(text)
        for listener in self._service.all_listeners:
            if number in listener.connections:
                return listener.explain(number)
        raise Refused(
            404,
            f"there is no connection {number}: it never was, or it has ended, and the log has its"
            " line",
        )

    def _beat(self) -> None:
        """Every second."""
        if self._beats % history.INTERVAL == 0:
            service = self._service
            now = service.deadlines.clock.seconds()
            self._history.note(service.accountant, service.listeners.values(), now)
        self._beats += 1

    def _state(self) -> str:
        """All that an event says, as JSON on one line."""
        service, kept = self._service, self._history
        listeners = ((each, kept.listener(each["name"])) for each in self._listeners())
        budgets = ((each.snapshot(), kept.budget(each.key)) for each in service.accountant)
        parts = {
            "time": _short(round(time.time(), 3)),
            "uptime": _short(round(service.deadlines.clock.seconds() - service.started, 3)),
            "version": _short(__version__),
            "draining": _short(service.draining),
            "listeners": _with_histories(listeners),
            "clusters": _short(self._clusters()),
            "budgets": _with_histories(budgets),
            "loop_lag_seconds": _short(service.lag.last),
        }
        return "{" + ",".join([f'"{name}":{text}' for name, text in parts.items()]) + "}"


def _short(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))


def _with_histories(each: Iterable[tuple[dict[str, Any], str]]) -> str:
    """A list of objects, each with its history, which is JSON already."""
    objects = [_short(said)[:-1] + ',"history":' + text + "}" for said, text in each]
    return f"[{','.join(objects)}]"


def _done(request: AdminRequest, body: Any) -> None:
    if body is not None:
        request.send_json(body)


def _refused(request: AdminRequest, failure: Any) -> None:
    failure.trap(Refused)
    request.refused(failure.value)
