"""The admin listener: what the service is doing, as JSON, to be read only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

if TYPE_CHECKING:
    from twisted.web.server import Request

    from proxykit.ops.service import ProxyService

#: Behind this comes the number of a client's connection.
EXPLAIN = "/api/explain/"
_NUMBER = re.compile("[0-9]{1,18}")


class _Unknown(Exception):
    """There is no such thing; the message says what there is instead."""


def admin_site(service: ProxyService) -> Site:
    """A factory for the admin listener of one service."""
    answers: dict[str, Callable[[], Any]] = {
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
        # As the kernel has it now, not as it was when it was asked last.
        "/api/ports": lambda: service.survey.fresh().addCallback(
            lambda _: {"budgets": service.accountant.snapshot()}
        ),
    }
    answers["/"] = lambda: {"paths": [*(path for path in answers if path != "/"), f"{EXPLAIN}ID"]}
    return quiet_site(_Answers(answers, lambda text: _explained(service, text)))


def _explained(service: ProxyService, text: str) -> dict[str, Any]:
    """Why a client's connection shares a backend's, or not.

    :param text: its number, as it was asked for.
    :raises _Unknown: there is none.
    """
    if not _NUMBER.fullmatch(text):
        raise _Unknown(f"expected the id of a connection (/api/connections), not {text!r}")
    number = int(text)
    for listener in service.listeners.values():
        if number in listener.connections:
            return listener.explain(number)
    raise _Unknown(
        f"there is no connection {number}: it never was, or it has ended, and the log has its line"
    )


def quiet_site(root: Resource) -> Site:
    """A web site without an access log: who watches the proxy asks every few seconds."""
    return _QuietSite(root)  # type: ignore[no-untyped-call]


class _QuietSite(Site):
    displayTracebacks = False
    noisy = False

    def log(self, request: Any) -> None:
        """Say nothing."""


class _Answers(Resource):
    """Plain data at fixed paths, or Deferreds of it, which do not fail.

    :param explain: makes the answer for what is behind ``EXPLAIN`` in a path.
    """

    isLeaf = True

    def __init__(
        self, answers: dict[str, Callable[[], Any]], explain: Callable[[str], dict[str, Any]]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._answers = answers
        self._explain = explain

    def render(self, request: Request) -> bytes | int:
        """Answer any method."""
        path = request.path.decode("ascii", "replace")
        answer = self._answers.get(path)
        if path.startswith(EXPLAIN):
            answer = partial(self._explain, path.removeprefix(EXPLAIN))
        if answer is None:
            return self._send(request, 404, {"error": f"there is no {path} here"})
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            method = request.method.decode("ascii", "replace")
            return self._send(request, 405, {"error": f"{method} is not possible here"})
        try:
            answered = answer()
        except _Unknown as none:
            return self._send(request, 404, {"error": str(none)})
        if not isinstance(answered, Deferred):
            return self._send(request, 200, answered)
        left: list[object] = []
        request.notifyFinish().addErrback(left.append)

        def finish(body: dict[str, Any]) -> None:
            if not left:
                request.write(self._send(request, 200, body))
                request.finish()

        answered.addCallback(finish)
        return NOT_DONE_YET

    def _send(self, request: Request, status: int, body: dict[str, Any]) -> bytes:
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"x-content-type-options", b"nosniff")
        text = json.dumps(body, indent=2).encode() + b"\n"
        request.setHeader(b"content-length", b"%d" % len(text))
        return text if request.method != b"HEAD" else b""
