"""What can be set of an http listener and of its routes, and which settings are mistakes.

:class:`HttpSettings` is what the mode gets. :class:`RouteTable` and :class:`FieldRulesTable` are
the tables of a file that its routes are read from; what they become stands in the model.
"""

from __future__ import annotations

import re

from attrs import Factory, field, frozen

from proxykit.checks import (
    Check,
    ClusterName,
    Each,
    as_in,
    default_of,
    host_pattern,
    one_of,
    positive_seconds,
    whole_at_least,
    whole_between,
)
from proxykit.core.routing import is_normal
from proxykit.model import FieldRules, HttpRoute, Listener
from proxykit.strict import Problem, Wrong, dotted
from proxykit.wire.http1fields import valid_field
from proxykit.wire.http1grammar import is_token

_REDIRECTS = (301, 302, 303, 307, 308)
#: Answers that have no body (RFC 9110 section 6.4.1).
_EMPTY = (204, 304)
#: Where a client goes is the user's choice: no host comes from ``{uri}``, nor from a second slash.
_REDIRECT = re.compile(
    r"(?=[!-~]*\Z)(?:(?:https?|\{scheme\})://(?:[^{}/]|\{host\})+|/(?![/\\{]))"
    r"(?:[^{}]|\{(?:scheme|host|uri)\})*"
)
#: What a key of a route needs one of, for else it would have nothing to do.
_NEEDS = {
    "text": ("status",),
    "replace_path": ("cluster", "redirect"),
    "request_fields": ("cluster",),
    "body_limit": ("cluster",),
}


def _is_token(text: str) -> bool:
    return is_token(text.encode()) is not None


def _is_method(text: str) -> bool:
    # Methods are case-sensitive (RFC 9110 section 9.1): a route for "get" would never fit.
    return _is_token(text) and text == text.upper()


def _settable(values: dict[str, str]) -> None:
    _raise([problem for name in values for problem in _field_problem(name, name, values[name])])


def _removable(names: tuple[str, ...]) -> None:
    _raise([problem for at, name in enumerate(names) for problem in _field_problem(at, name, "")])


def _field_problem(key: str | int, name: str, value: str) -> list[Problem]:
    try:
        valid_field(name, value)
    except ValueError as error:
        return [((key,), str(error))]
    return []


def _distinct(routes: tuple[HttpRoute, ...]) -> None:
    """Of two routes that say the same, one would never be taken."""
    first: dict[object, int] = {}
    problems: list[Problem] = []
    for index, route in enumerate(routes):
        same = [
            first.setdefault((route.host.lower(), route.path, method), index)
            for method in route.methods or ("",)
        ]
        if min(same) != index:
            what = "host, path and a method" if route.methods else "host and path"
            problems.append(((index,), f"the same {what} as {dotted(('routes', min(same)))}"))
    _raise(problems)


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise Wrong(problems)


@frozen
class FieldRulesTable:
    """The table ``request_fields`` or ``response_fields`` of a route."""

    set: dict[str, str] = field(default=Factory(dict), metadata={"check": _settable})
    remove: tuple[str, ...] = field(default=(), metadata={"check": _removable})

    def rules(self) -> FieldRules:
        """The same in the model."""
        return FieldRules(tuple(self.set.items()), self.remove)


_path = Check("a path such as /v1, in its normal form and without a query", is_normal)
_method = Check("a method in capitals", _is_method)


@frozen
class RouteTable:
    """The table ``[[listeners.routes]]``; see :class:`proxykit.model.HttpRoute`."""

    host: str = as_in(
        HttpRoute, "host", Check("a host without a port, or *. and a name", host_pattern)
    )
    path: str = as_in(HttpRoute, "path", _path)
    methods: tuple[str, ...] = as_in(HttpRoute, "methods", Each(_method))
    cluster: ClusterName = field(default=default_of(HttpRoute, "cluster"))
    replace_path: str | None = as_in(HttpRoute, "replace_path", _path)
    request_fields: FieldRules = field(default=default_of(HttpRoute, "request_fields"))
    response_fields: FieldRules = field(default=default_of(HttpRoute, "response_fields"))
    redirect: str = as_in(
        HttpRoute,
        "redirect",
        Check(
            "a URL such as https://{host}{uri}, or a path, with no more than {scheme}, {host}"
            " and {uri} in braces",
            lambda text: _REDIRECT.fullmatch(text) is not None,
        ),
    )
    status: int = as_in(HttpRoute, "status", whole_between(200, 599))
    text: str = field(default=default_of(HttpRoute, "text"))
    body_limit: int | None = as_in(HttpRoute, "body_limit", whole_at_least(0))

    def __attrs_post_init__(self) -> None:
        """
        :raises Wrong: the keys do not go together.
        """
        kinds = [key for key in ("cluster", "redirect", "status") if getattr(self, key)]
        if kinds not in (["cluster"], ["redirect"], ["status"], ["redirect", "status"]):
            raise Wrong.here("expected one of cluster, redirect and status")
        kind = kinds[0]
        problems: list[Problem] = [
            ((key,), f"expected only beside {' or '.join(needed)}")
            for key, needed in _NEEDS.items()
            if getattr(self, key) not in (None, "", FieldRules()) and kind not in needed
        ]
        if kind == "redirect" and self.status not in (0, *_REDIRECTS):
            named = ", ".join(map(str, _REDIRECTS))
            problems.append((("status",), f"expected one of {named} for a redirect"))
        if self.status in _EMPTY and self.text:
            problems.append((("text",), f"expected none, for a {self.status} has no body"))
        _raise(problems)


@frozen
class HttpSettings:
    """The keys of an http listener.

    :ivar head_timeout: seconds for a request head, from its first byte on; for a client's first one
        from the accept on.
    :ivar body_timeout: seconds without a byte of a request body.
    :ivar keepalive_timeout: seconds between two requests of a client.
    :ivar response_timeout: seconds until the head of a response.
    :ivar response_body_timeout: seconds without a byte of a response body.
    :ivar upgrade_timeout: seconds without a byte in either direction, after an upgrade.
    :ivar line_limit: bytes of a request line.
    :ivar head_limit: bytes of a whole request head.
    :ivar fields_limit: how many fields a request may have.
    :ivar body_limit: bytes of a request body; 0: no limit.
    :ivar via: what the proxy is called in Via; empty: it is not named.
    :ivar request_id: give each request an X-Request-ID.
    :ivar log_connections: one log line when a client's connection ends, with how many of its
        requests shared a connection, and why the others did not.
    :ivar access_log: the file of the access log, or - for standard output; empty: there is none.
    :ivar access_log_format: how its lines are written, combined or json.
    :ivar routes: where requests go; what none of them takes goes to the listener's cluster.
    """

    head_timeout: float = field(default=10.0, metadata={"check": positive_seconds})
    body_timeout: float = field(default=30.0, metadata={"check": positive_seconds})
    keepalive_timeout: float = field(default=60.0, metadata={"check": positive_seconds})
    response_timeout: float = field(default=60.0, metadata={"check": positive_seconds})
    response_body_timeout: float = field(default=60.0, metadata={"check": positive_seconds})
    upgrade_timeout: float = field(default=600.0, metadata={"check": positive_seconds})
    line_limit: int = field(default=8192, metadata={"check": whole_at_least(1)})
    head_limit: int = field(default=32768, metadata={"check": whole_at_least(1)})
    fields_limit: int = field(default=100, metadata={"check": whole_at_least(1)})
    body_limit: int = field(default=0, metadata={"check": whole_at_least(0)})
    via: str = field(
        default="proxykit",
        metadata={"check": Check("one word, or nothing", lambda text: not text or _is_token(text))},
    )
    request_id: bool = True
    log_connections: bool = True
    access_log: str = ""
    access_log_format: str = field(
        default="combined", metadata={"check": one_of("combined", "json")}
    )
    routes: tuple[HttpRoute, ...] = field(default=(), metadata={"check": _distinct})


def check_http(listener: Listener) -> None:
    """What ``IMode.check`` is for an http listener.

    :raises ValueError: it has neither a cluster nor routes.
    """
    settings = listener.settings
    if not (listener.cluster or (isinstance(settings, HttpSettings) and settings.routes)):
        raise ValueError("mode http needs a cluster or routes")
