"""The admin listener: what the service is doing, as JSON, to be read only."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.web.resource import Resource
from twisted.web.server import Site

if TYPE_CHECKING:
    from twisted.web.server import Request

    from proxykit.ops.service import ProxyService


def admin_site(service: ProxyService) -> Site:
    """A factory for the admin listener of one service."""
    answers: dict[str, Callable[[], dict[str, Any]]] = {
        "/healthz": lambda: {"status": "ok"},
        "/api/listeners": lambda: {
            "listeners": [listener.snapshot() for listener in service.listeners.values()]
        },
        "/api/clusters": lambda: {
            "clusters": [
                {**cluster.snapshot(), "pool": service.pool.snapshot(cluster.config.name)}
                for cluster in service.registry
            ]
        },
        "/api/connections": lambda: {
            "connections": [
                connection
                for listener in service.listeners.values()
                for connection in listener.describe_connections()
            ]
        },
        "/api/ports": lambda: {"budgets": service.accountant.snapshot()},
    }
    answers["/"] = lambda: {"paths": [path for path in answers if path != "/"]}
    return quiet_site(_Answers(answers))


def quiet_site(root: Resource) -> Site:
    """A web site without an access log: who watches the proxy asks every few seconds."""
    return _QuietSite(root)  # type: ignore[no-untyped-call]


class _QuietSite(Site):
    displayTracebacks = False
    noisy = False

    def log(self, request: Any) -> None:
        """Say nothing."""


class _Answers(Resource):
    """Plain data at fixed paths."""

    isLeaf = True

    def __init__(self, answers: dict[str, Callable[[], dict[str, Any]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._answers = answers

    def render(self, request: Request) -> bytes:
        """Answer any method."""
        path = request.path.decode("ascii", "replace")
        answer = self._answers.get(path)
        if answer is None:
            return self._send(request, 404, {"error": f"there is no {path} here"})
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            method = request.method.decode("ascii", "replace")
            return self._send(request, 405, {"error": f"{method} is not possible here"})
        return self._send(request, 200, answer())

    def _send(self, request: Request, status: int, body: dict[str, Any]) -> bytes:
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"x-content-type-options", b"nosniff")
        text = json.dumps(body, indent=2).encode() + b"\n"
        if request.method == b"HEAD":
            request.setHeader(b"content-length", b"%d" % len(text))
            return b""
        return text
