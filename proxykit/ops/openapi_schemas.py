"""What the admin listener's answers consist of, as JSON Schema, for :mod:`proxykit.ops.openapi`.

An object may have more than is said here: a mode of somebody else's shows what it likes, and new
keys may come with any version. What is ``required`` is always there.
"""

from __future__ import annotations

from typing import Any

from proxykit.core.forecast import Level
from proxykit.core.registry import STATES
from proxykit.ops.history import INTERVAL, LENGTH

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """One of ``SCHEMAS``, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _said(text: str, kind: Schema) -> Schema:
    return {**kind, "description": text}


def _or_null(kind: Schema) -> Schema:
    return {**kind, "type": [kind["type"], "null"]}


def list_of(kind: Schema) -> Schema:
    """An array of that."""
    return {"type": "array", "items": kind}


def table(_said: str = "", _optional: Schema | None = None, **required: Schema) -> Schema:
    """An object: keys that are always there, and keys that may be."""
    return {
        "type": "object",
        **({"description": _said} if _said else {}),
        "properties": {**required, **(_optional or {})},
        "required": list(required),
    }


_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_COUNTS: Schema = {"type": "object", "additionalProperties": _COUNT}
_ADDRESS = _said("host:port, [v6]:port or unix:/path", _TEXT)

_HISTOGRAM = table(
    buckets=_said("how many, by the upper bound of their bucket", _COUNTS), sum=_SECONDS
)

_TRAFFIC = table(
    "what it has relayed or answered since the start; what else there is depends on its mode",
    {
        "requests": _said("mode http: answered, in all", _COUNT),
        "statuses": _said("mode http: answers by their class, such as 2xx", _COUNTS),
        "reused": _COUNT,
        "repeated": _COUNT,
        "failed": _COUNTS,
        "ended": _said("modes tcp and sni: connections, by what ended them", _COUNTS),
        "own": _said("connections to backends that one client has had alone, by why", _COUNTS),
        "bytes_up": _COUNT,
        "bytes_down": _COUNT,
        "seconds": _HISTOGRAM,
    },
)

_LISTENER = table(
    "where clients come in",
    {
        "draining": _FLAG,
        "refused": _said("PROXY headers, by what was wrong", _COUNTS),
        "tls": table(handshakes=_COUNT, resumed=_COUNT, failed=_COUNTS),
        "traffic": _TRAFFIC,
    },
    name=_TEXT,
    address=_said("where it listens; empty: it does not", _TEXT),
    connections=_said("that are open", _COUNT),
    max_connections=_COUNT,
    accepted=_said("connections since the start", _COUNT),
    paused=_said("why it does not accept at the moment", _or_null(_TEXT)),
)

_BACKEND = table(
    "one address of a cluster",
    {
        "health": {
            "type": "string",
            "enum": ["up", "down", "unknown"],
            "description": "by the active checks; unknown: there are none, or none is done yet",
        },
        "why": _said("what was wrong in the last check", _or_null(_TEXT)),
        "ejected_seconds": _said(
            "for how much longer it is left alone; null: it is not", _or_null(_SECONDS)
        ),
        "ejections": _COUNT,
        "latency_seconds": _said(
            "moving average of the time to the first byte of an answer, or to a connection",
            _or_null(_SECONDS),
        ),
        "share": _said("of its weight, while it starts slowly", _NUMBER),
    },
    address=_ADDRESS,
    name=_said("which it was resolved from; empty: none", _TEXT),
    state=_said(
        "the operator's word; removed: it is no longer configured, and ends what it has",
        {"type": "string", "enum": [*STATES, "removed"]},
    ),
    weight={"type": "integer", "minimum": 1},
    backup=_FLAG,
    in_flight=_said("requests, or connections of L4", _COUNT),
    connections=_said("that are open to it", _COUNT),
    served=_COUNT,
    failures=_COUNT,
    closed_first=_said("who closed connections first", _COUNTS),
    full=_said("what it is out of", _or_null(_TEXT)),
)

_CLUSTER = table(
    "backends that do the same",
    {
        "panic": _said("whether all backends are down, and so all are used", _FLAG),
        "retries": table(requests=_COUNT, retried=_COUNT, refused=_COUNT),
    },
    name=_TEXT,
    balance=_TEXT,
    max_connections=_said("to each backend", _COUNT),
    queue=table(waiting=_COUNT, limit=_COUNT, timed_out=_COUNT, refused=_COUNT),
    backends=list_of(ref("Backend")),
    pool=table(
        "the connections that are kept for the next request",
        idle=_COUNT,
        opening=_COUNT,
        opened=_COUNT,
        reused=_COUNT,
        own=_said("that were opened, by why no other could be shared", _COUNTS),
        not_kept=_said("that nobody else may have, by why", _COUNTS),
    ),
)

_CONNECTION = table(
    "a client's connection; what else there is depends on its mode",
    {
        "relay": _said("who has handed it on, by a PROXY header", _TEXT),
        "cluster": _or_null(_TEXT),
        "backend": _or_null(_TEXT),
        "state": _TEXT,
        "requests": _COUNT,
        "bytes_up": _COUNT,
        "bytes_down": _COUNT,
        "seconds": _SECONDS,
        "server_name": _or_null(_TEXT),
    },
    id={"type": "integer", "minimum": 1},
    listener=_TEXT,
    client=_said("its address", _TEXT),
)

_REASON: dict[str, Any] = {
    "reason": _said("one of a fixed set of names", _TEXT),
    "why": _said("the same as a sentence", _TEXT),
    "advice": _said("what would change it", _or_null(_TEXT)),
}

_EXPLANATION = {
    "allOf": [
        ref("Connection"),
        table(
            "why it shares a connection to a backend with others, or does not",
            {
                "used": _said("how many requests that had served before", _COUNT),
                "full": _said("what it waits for: what there is none of", _TEXT),
                "reused": _said("mode http: its requests on connections of others, too", _COUNT),
                "own": _said("mode http: its other requests, by why they had another", _COUNTS),
                "not_kept": _said("mode http: connections of no use after them, by why", _COUNTS),
                "last": _or_null(
                    table(
                        "mode http: the last request that had a connection to a backend",
                        shared=_FLAG,
                        not_kept=_said(
                            "why nobody else could have that afterwards", _or_null(table(**_REASON))
                        ),
                        **_REASON,
                    )
                ),
            },
            kind=_said("l4, l7, or null: nobody knows", _or_null(_TEXT)),
            shared=_said("null: there is nothing to be shared yet", _or_null(_FLAG)),
            **_REASON,
        ),
    ]
}

_BUDGET = table(
    "the source ports from one address to one backend",
    None,
    protocol=_TEXT,
    source=_said("the local address", _TEXT),
    destination=_said("the backend's; empty: any", _TEXT),
    size=_said("how many ports there are", _COUNT),
    active=_COUNT,
    idle=_said("in the pool", _COUNT),
    reserved=_said("of connections that are being opened", _COUNT),
    time_wait=_said("that the kernel still holds", _COUNT),
    foreign=_said("that somebody else has", _COUNT),
    free=_COUNT,
    forecast_seconds=_said(
        "in how many seconds none will be left, as things are going; null: not within the hour",
        _or_null(_SECONDS),
    ),
    level=_said("how scarce they are", {"type": "string", "enum": [e.name.lower() for e in Level]}),
    headroom=_said("that are never handed out", _COUNT),
    denied=_said("that the kernel did not give", _COUNT),
)


def _with_history(of: str, what: str) -> Schema:
    line = f"{what}, one for each {INTERVAL} seconds, the oldest first"
    history = {**list_of(_NUMBER), "maxItems": LENGTH, "description": line}
    return {"allOf": [ref(of), table(history=history)]}


_STATE = table(
    "all at once, as each event of /api/events says it",
    None,
    time=_said("seconds since 1970", _NUMBER),
    uptime=_said("seconds", _SECONDS),
    version=_TEXT,
    draining=_said("whether the service is about to end", _FLAG),
    listeners=list_of(_with_history("Listener", "requests a second, or connections")),
    clusters=list_of(ref("Cluster")),
    budgets=list_of(_with_history("Budget", "the share that is out or cannot be had, 0 to 1")),
    loop_lag_seconds=_said("how late the event loop was the last time", _or_null(_SECONDS)),
)

SCHEMAS: dict[str, Schema] = {
    "Error": table("why there is no better answer", error=_said("one line", _TEXT)),
    "ReloadError": table(
        "a configuration that is wrong; nothing has changed",
        None,
        error=_said("one line", _TEXT),
        lines=_said("each mistake, with its place", list_of(_TEXT)),
    ),
    "Paths": table("what there is", paths=list_of(_TEXT)),
    "Health": table(status={"type": "string", "enum": ["ok", "draining"]}),
    "Listener": _LISTENER,
    "Backend": _BACKEND,
    "Cluster": _CLUSTER,
    "Connection": _CONNECTION,
    "Explanation": _EXPLANATION,
    "Budget": _BUDGET,
    "State": _STATE,
    "Wanted": {
        "type": "object",
        "properties": {"state": {"type": "string", "enum": list(STATES)}},
        "required": ["state"],
        "additionalProperties": False,
    },
    "Reloaded": table(changed=_said("a line for each change", list_of(_TEXT))),
}
