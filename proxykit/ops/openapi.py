"""The description of the admin listener's API, by OpenAPI 3.1: what ``/api/openapi.json`` says."""

from __future__ import annotations

import copy
from typing import Any

from proxykit import __version__
from proxykit.ops.admin_access import PROOF, WRITE
from proxykit.ops.admin_web import BODY
from proxykit.ops.openapi_schemas import SCHEMAS, Schema, list_of, ref, table

_JSON = "application/json"
_ABOUT = f"""\
What the service is doing, and what can be done about it.

Where a token is set, every request but that for /healthz shows it. A request that changes something
shows it as a bearer token, or proves that no page of another origin sends it: by its Origin, by
Sec-Fetch-Site, or by the field `{PROOF}: {WRITE}`. Every error is JSON."""

#: By the status: what else may be answered, whatever was asked for.
_ERRORS = {
    "400": "the request is wrong",
    "401": "a token is needed, or it was wrong",
    "403": "a page of another origin may not ask, or nothing proves that this is none",
    "404": "there is no such thing; the error says what there is",
    "405": "this method is not possible here; Allow says which is",
    "408": "the request did not come in time",
    "409": "it cannot be done here",
    "413": f"the body is longer than {BODY} bytes",
    "415": "the body is not said to be JSON",
    "421": "the Host field has a name that is none of ours",
    "431": "the head of the request is too long",
    "500": "something went wrong inside proxykit",
    "503": "there are too many connections to the admin listener",
}
_ALWAYS = ("400", "401", "403", "408", "413", "421", "431", "500", "503")


def _content(schema: Schema, kind: str = _JSON) -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _errors(*more: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        status: {"description": _ERRORS[status], "content": _content(ref("Error"))}
        for status in sorted((*_ALWAYS, "405", *more))
    }
    challenge = {"schema": {"type": "string"}, "description": "how to show the token"}
    found["401"]["headers"] = {"WWW-Authenticate": challenge}
    allow = {"schema": {"type": "string"}, "description": "the methods that there are"}
    found["405"]["headers"] = {"Allow": allow}
    return found


def _done(schema: Schema, said: str) -> dict[str, Any]:
    return {"200": {"description": said, "content": _content(schema)}}


def _reads(
    name: str, summary: str, answers: dict[str, Any], *more: str, **others: Any
) -> dict[str, Any]:
    """A path that can be read; HEAD says the same, without a body."""
    said = {"operationId": name, "summary": summary, **others}
    return {"get": {**said, "responses": {**answers, **_errors(*more)}}}


def _listed(name: str, of: str, summary: str) -> dict[str, Any]:
    return _reads(
        f"get_{name}", summary, _done(table("", None, **{name: list_of(ref(of))}), summary)
    )


def _parameter(name: str, said: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": said, "schema": schema}


_TEXT: Schema = {"type": "string", "minLength": 1}
_HEALTH = {
    **_done(ref("Health"), "the service serves"),
    "503": {
        "description": "it is about to end, or there are too many connections",
        "content": _content({"anyOf": [ref("Health"), ref("Error")]}),
    },
}
_ROOT = {
    "200": {
        "description": "the dashboard, for whoever accepts text/html; for others what there is",
        "content": {**_content(ref("Paths")), **_content({"type": "string"}, "text/html")},
    }
}
_EVENTS = {
    "200": {
        "description": "an event `state` at once, and one each second, without an end. The data of"
        " each is a JSON object: the schema State.",
        "content": _content({"type": "string"}, "text/event-stream"),
    }
}
_METRICS = {
    "200": {
        "description": "the text format of Prometheus, or of OpenMetrics where that is accepted",
        "content": {
            **_content({"type": "string"}, "text/plain"),
            **_content({"type": "string"}, "application/openmetrics-text"),
        },
    }
}

_PATHS: dict[str, Any] = {
    "/": _reads("get_root", "the dashboard, or what there is", _ROOT),
    "/healthz": {
        "get": {
            "operationId": "get_health",
            "summary": "whether the service serves; for load balancers",
            "security": [],
            "responses": {
                **{
                    status: each
                    for status, each in _errors().items()
                    if status not in ("401", "403", "421")
                },
                **_HEALTH,
            },
        }
    },
    "/metrics": _reads("get_metrics", "for Prometheus", _METRICS),
    "/api/listeners": _listed("listeners", "Listener", "where clients come in"),
    "/api/clusters": _listed("clusters", "Cluster", "the clusters and their backends"),
    "/api/connections": _listed("connections", "Connection", "the clients that are there"),
    "/api/ports": _listed("budgets", "Budget", "the budgets of source ports, as they are now"),
    "/api/explain/{id}": _reads(
        "explain",
        "why a client's connection shares one to a backend, or not",
        _done(ref("Explanation"), "that connection, and why"),
        "404",
        parameters=[
            _parameter(
                "id",
                "of a connection, as in /api/connections",
                {"type": "string", "pattern": "^[0-9]{1,18}$"},
            )
        ],
    ),
    "/api/events": _reads("get_events", "all of it, live: server-sent events", _EVENTS),
    "/api/openapi.json": _reads(
        "get_openapi",
        "this description",
        _done(table(openapi={"type": "string"}, paths={"type": "object"}), "this"),
    ),
    "/api/clusters/{name}/backends/{address}": {
        "post": {
            "operationId": "set_backend",
            "summary": "drain a backend, take it down, or bring it up again",
            "description": "drain: nothing new, and what it has may end. down: nothing new, either."
            " The file has no word of this, and a reload does not change it.",
            "parameters": [
                _parameter("name", "of the cluster", _TEXT),
                _parameter(
                    "address",
                    "the backend's, as in /api/clusters; it may be percent-encoded",
                    _TEXT,
                ),
            ],
            "requestBody": {"required": True, "content": _content(ref("Wanted"))},
            "responses": {
                **_done(ref("Backend"), "the backend, as it is now"),
                **_errors("404", "415"),
            },
        }
    },
    "/api/reload": {
        "post": {
            "operationId": "reload",
            "summary": "read the configuration's file again, and change what differs",
            "responses": {
                **_done(ref("Reloaded"), "what has changed"),
                **_errors("409"),
                "422": {
                    "description": "the file is wrong; nothing has changed",
                    "content": _content(ref("ReloadError")),
                },
            },
        }
    },
}


def description(token: bool) -> dict[str, Any]:
    """The whole description.

    :param token: whether one has to be shown.
    """
    paths = copy.deepcopy(_PATHS)
    schemes: dict[str, Any] = {
        "proof": {
            "type": "apiKey",
            "in": "header",
            "name": PROOF,
            "description": f"`{WRITE}`, for what changes something; not needed by a page that is"
            " served here, nor beside a bearer token",
        }
    }
    if token:
        schemes["bearer"] = {"type": "http", "scheme": "bearer"}
        schemes["basic"] = {
            "type": "http",
            "scheme": "basic",
            "description": "any user, and the token as the password",
        }
    for each in paths.values():
        if "post" in each:
            each["post"]["security"] = (
                [{"bearer": []}, {"basic": [], "proof": []}] if token else [{"proof": []}]
            )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The admin listener of proxykit",
            "version": __version__,
            "description": _ABOUT,
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"basic": []}] if token else [],
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": schemes},
    }
