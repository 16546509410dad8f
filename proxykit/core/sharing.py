"""Why a client has a connection to a backend of its own, or not: a name and a sentence for each.

At L4 there is nothing to decide. At L7 there are two moments: a request may find no connection in
the pool that it could have, and a connection may not go back there. Both are counted by these
names, in ``/api/clusters``; ``/api/explain/ID`` has the sentences, and the access log the names.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

#: The two kinds of modes.
L4, L7 = "l4", "l7"

# At any time.
OPAQUE = "opaque"
REUSED = "reused"
NO_BACKEND = "no-backend"
WAITING = "waiting"
UNKNOWN = "unknown"

# Why a request got a new connection.
NONE_IDLE = "none-idle"
INTRODUCED = "introduced"
STALE = "stale"
LOST = "lost"

# Both.
POLICY = "policy"

# Why a connection did not go back to the pool, or was taken out of it.
UPGRADED = "upgraded"
AUTHENTICATED = "authenticated"
CLOSED = "closed"
CLOSED_EARLY = "closed-early"
MID_MESSAGE = "mid-message"
SURPLUS = "surplus"
BROKEN = "broken"
POOL_FULL = "pool-full"
EVICTED = "evicted"
EXPIRED = "expired"
CLIENT_LEFT = "client-left"
STOPPED = "stopped"
LEAVING = "leaving"

WHY = {
    OPAQUE: "its bytes are opaque: nobody knows where a message ends, so each client needs a"
    " connection to a backend for itself",
    REUSED: "it uses a connection that others have used before",
    NO_BACKEND: "it has no connection to a backend at the moment",
    WAITING: "it waits in the queue of its cluster: every backend that it could have is full",
    UNKNOWN: "its mode does not say, or has not got it yet",
    NONE_IDLE: "no connection was idle: all were in use, or there was none yet",
    INTRODUCED: "those that were idle speak for other clients, by the PROXY header that they began"
    " with",
    STALE: "those that were idle had not answered within the last second, and the request may not"
    " be sent twice",
    LOST: "the one that it was sent on first went away before it answered",
    POLICY: 'reuse is "never": each request has a connection of its own',
    UPGRADED: "it carries another protocol now, which only this client and its backend know",
    AUTHENTICATED: "NTLM or Negotiate authenticate a connection, not a request: it stays this"
    " client's",
    CLOSED: "the backend has closed it, or said that it would",
    CLOSED_EARLY: "the backend answered before the whole request had come",
    MID_MESSAGE: "the client or the backend left, or took too long, in the middle of a message",
    SURPLUS: "the backend sent more than its answer, or may have",
    BROKEN: "the backend broke a rule, or sent what nobody had asked for",
    POOL_FULL: "there were max_idle idle ones already",
    EVICTED: "somebody else needed its port, or its place among max_connections",
    EXPIRED: "it was idle for idle_timeout, or nearly for as long as the backend waits",
    CLIENT_LEFT: "the client left that it spoke for, by the PROXY header that it began with",
    STOPPED: "the service ended",
    LEAVING: "its backend is drained, or was taken out of the cluster, or what is set for it has"
    " changed",
}

#: What would change it, where there is something to be done.
ADVICE = {
    OPAQUE: 'mode = "http", if it is HTTP',
    WAITING: "another backend, or a greater max_connections",
    INTRODUCED: "no proxy_protocol for this cluster: the backend finds the client in"
    " X-Forwarded-For",
    STALE: 'an idempotent method, such as PUT, or reuse = "always"',
    POLICY: 'reuse = "safe", or "always"',
    CLOSED: "a backend that keeps its connections, and says how an answer ends",
    CLOSED_EARLY: "a backend that reads a request to its end",
    POOL_FULL: "a greater max_idle",
    EVICTED: "more source addresses, or a greater max_connections",
    EXPIRED: "a longer idle_timeout, here and at the backend",
}
#: And for what waits for a source port.
_PORTS_ADVICE = "another address in [sources], or another address or port of the backend"
#: What a request was that is of no special interest.
_SHARED = REUSED, ""


class Shares:
    """What connections the requests of one client had, and why.

    :ivar reused: how many went on a connection that others use, too.
    :ivar own: how many did not, by the reason; ``not_kept``: connections that nobody else could
        have afterwards, by the reason.
    :ivar last: both reasons of the last request that had one at all; None: there was none.
    """

    __slots__ = ("_private", "last", "not_kept", "own", "reused")

    def __init__(self) -> None:
        self.reused = 0
        self.own: Counter[str] | None = None
        self.not_kept: Counter[str] | None = None
        self.last: tuple[str, str] | None = None
        #: The one that is this client's alone.
        self._private: object = None

    def note(self, connection: Any, reused: bool) -> None:
        """One more request is over.

        :param connection: what it went on: ``own`` and ``not_kept`` are the names of reasons.
        :param reused: whether that had been used before.
        """
        not_kept: str = connection.not_kept
        if reused and not not_kept:
            self.reused += 1
            self.last = _SHARED
            return
        own = connection.own
        if reused:
            if connection is self._private:
                self._count(not_kept, "")
                return
            own = REUSED
        if not_kept == AUTHENTICATED:
            self._private = connection
        self._count(own, not_kept)

    def _count(self, own: str, not_kept: str) -> None:
        self.last = own, not_kept
        if own == REUSED:
            self.reused += 1
        else:
            self.own = self.own or Counter()
            self.own[own] += 1
        if not_kept:
            self.not_kept = self.not_kept or Counter()
            self.not_kept[not_kept] += 1

    def snapshot(self) -> dict[str, Any]:
        """The counts, ready for JSON."""
        return {
            "reused": self.reused,
            "own": dict(self.own or ()),
            "not_kept": dict(self.not_kept or ()),
        }

    def explain(self) -> dict[str, Any]:
        """More of what ``IExplains.explain`` returns, of a client that may make many requests."""
        found: dict[str, Any] = {**self.snapshot(), "last": None}
        if self.last is not None:
            own, not_kept = self.last
            found["last"] = {"shared": own == REUSED and not not_kept, **_reason(own)}
            found["last"]["not_kept"] = _reason(not_kept) if not_kept else None
        return found

    def __str__(self) -> str:
        """For the log; empty: no request had a connection."""
        parts = [f"{self.reused} reused"] if self.reused else []
        parts += [f"{count} own ({why})" for why, count in (self.own or {}).items()]
        gone = [f"{count} not kept ({why})" for why, count in (self.not_kept or {}).items()]
        return ", ".join(parts + gone)


def _reason(name: str) -> dict[str, Any]:
    return {"reason": name, "why": WHY[name], "advice": ADVICE.get(name)}


def explained(kind: str | None, shared: bool | None, reason: str) -> dict[str, Any]:
    """What ``IExplains.explain`` returns.

    :param kind: ``l4`` or ``l7``; None: nobody knows.
    :param shared: None: there is nothing to be shared, or nobody knows.
    :param reason: one of the names here.
    """
    return {"kind": kind, "shared": shared, **_reason(reason)}


def waits(kind: str, what: str, ports: bool) -> dict[str, Any]:
    """The same for what has to wait.

    :param what: what there is none of; ``ports``: whether it is source ports.
    """
    found = explained(kind, None, WAITING)
    if ports:
        found["advice"] = _PORTS_ADVICE
    return {**found, "full": what}
