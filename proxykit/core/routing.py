"""Where something goes: routers, from what a mode has seen to a route.

:class:`HttpRouter` looks at the host first, then at the path, then at the method::

    host     a.example, then *.example (the longest first), then any
    path     /v1/users, then /v1, then /
    method   routes that name it, then routes for all

Where nothing fits at one place it goes on to the next; at the end there is the default cluster. How
many hosts there are makes no difference to the cost of a request, nor does what a client sends.
:class:`SniRouter` looks at the server name in the same way, and then at the protocols offered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from zope.interface import implementer

from proxykit.interfaces import IRouter
from proxykit.model import HttpRoute, Route, SniRoute

#: Stands for every method, where there is no route for the one at hand.
_ANY = b""
_SLASH = ord("/")
_ENDS_SEGMENT = frozenset(b"/?")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
#: RFC 3986 section 2.3: these mean the same encoded or not.
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PLACEHOLDER = re.compile(rb"\{(scheme|host|uri)\}")
_PORT = re.compile(rb":[0-9]*\Z")

R = TypeVar("R", HttpRoute, SniRoute)
E = TypeVar("E")
T = TypeVar("T")

#: The routes of one host whose path has the same length: by path, then by method.
_Step = tuple[int, dict[bytes, dict[bytes, HttpRoute]]]


@implementer(IRouter)
class Everything:
    """Sends everything to one cluster."""

    def __init__(self, cluster: str) -> None:
        self._route = Route(cluster)

    def route(self, subject: object) -> Route:
        """The one route."""
        return self._route


class RequestLine(Protocol):
    """What :class:`HttpRouter` wants to know of a request.

    :ivar target: in origin form, or ``*``.
    :ivar name: the host without its port, in lower case; empty: the request has none.
    """

    method: bytes
    target: bytes
    name: str


class _Chain:
    """All that can fit one host.

    :ivar steps: in the order in which they are tried.
    :ivar whole: what they always come to, where that is so: mostly a host has one route.
    """

    __slots__ = ("steps", "whole")

    def __init__(self, steps: tuple[_Step, ...], default: HttpRoute | None) -> None:
        self.steps = steps
        self.whole = default if not steps else None
        if steps and b"/" in steps[0][1]:
            methods = steps[0][1][b"/"]
            if methods.keys() == {_ANY}:
                self.whole = methods[_ANY]


class _Hosts(Generic[R, E, T]):
    """What fits a host: what is there for its name, for ``*.`` and a part of it, and for any.

    :param entries: makes what is there for one pattern of the routes that have it, in their order.
    :param chain: makes what is found of all the entries that fit, in the order of trying.
    :ivar exact: what is found for the names that have routes.
    """

    __slots__ = ("_anywhere", "_label_counts", "_wildcards", "exact")

    def __init__(
        self,
        routes: Iterable[R],
        entries: Callable[[list[R]], tuple[E, ...]],
        chain: Callable[[tuple[E, ...]], T],
    ) -> None:
        self.exact: dict[str, T] = {}
        self._wildcards: dict[str, tuple[T, tuple[E, ...]]] = {}
        #: How many labels the wildcards have behind their star, most first.
        self._label_counts: list[int] = []
        by_host: dict[str, list[R]] = {}
        for route in routes:
            by_host.setdefault(route.host.lower(), []).append(route)
        anywhere = entries(by_host.pop("", []))
        self._anywhere = chain(anywhere), anywhere
        # Each ends in what comes after it, so the widest have to be there first.
        for host in sorted(by_host, key=lambda host: (not host.startswith("*."), host.count("."))):
            name = host.removeprefix("*.")
            fits = entries(by_host[host]) + self._wild(name)[1]
            if name == host:
                self.exact[host] = chain(fits)
            else:
                self._wildcards[name] = chain(fits), fits
                counts = {name.count(".") + 1, *self._label_counts}
                self._label_counts = sorted(counts, reverse=True)

    def find(self, name: str) -> T:
        """What fits this host, in lower case; empty: there is none."""
        found = self.exact.get(name)
        return self._wild(name)[0] if found is None else found

    def _wild(self, name: str) -> tuple[T, tuple[E, ...]]:
        """What fits a host that no route names."""
        for count in self._label_counts:
            first, *others = name.rsplit(".", count)
            if first and len(others) == count:
                found = self._wildcards.get(name[len(first) + 1 :])
                if found is not None:
                    return found
        return self._anywhere


@implementer(IRouter)
class HttpRouter:
    """Finds the route for a request.

    :param routes: of two that fit equally well, the first is taken.
    :param cluster: where requests go that no route fits; empty: nowhere.
    :raises ValueError: a path is not as :func:`is_normal` wants it, so that it would never fit.
    """

    def __init__(self, routes: Iterable[HttpRoute], cluster: str = "") -> None:
        self._default = default = HttpRoute(cluster=cluster) if cluster else None
        self._hosts = _Hosts(routes, _steps, lambda steps: _Chain(steps, default))

    def route(self, head: RequestLine) -> HttpRoute | None:
        """The route for a request; None where there is none, or where its path climbs."""
        target = head.target
        # An escape or a dot segment; an escape in the query is rare enough.
        if b"%" in target or b"/." in target:
            path = normal_path(target)
            if path is None:
                return None
            target = path
        elif target == b"*":
            target = b"/"  # the server as a whole
        chain = self._hosts.exact.get(head.name) or self._hosts.find(head.name)
        if chain.whole is not None:
            return chain.whole
        for length, paths in chain.steps:
            methods = paths.get(target[:length])
            if methods is not None and (
                target[length - 1] == _SLASH
                or len(target) == length
                or target[length] in _ENDS_SEGMENT
            ):
                route = methods.get(head.method) or methods.get(_ANY)
                if route is not None:
                    return route
        return self._default

    def misdirected(self, head: RequestLine) -> bool:
        """Whether no request for this host has a route: then it is a 421, not a 404."""
        return self._default is None and not self._hosts.find(head.name).steps


def _steps(routes: Iterable[HttpRoute]) -> tuple[_Step, ...]:
    by_length: dict[int, dict[bytes, dict[bytes, HttpRoute]]] = {}
    for route in routes:
        if not is_normal(route.path):
            raise ValueError(f"the path of a route is not in its normal form: {route.path!r}")
        path = route.path.encode()
        methods = by_length.setdefault(len(path), {}).setdefault(path, {})
        for method in route.methods or ("",):
            methods.setdefault(method.encode(), route)
    return tuple(sorted(by_length.items(), reverse=True))


class Hello(Protocol):
    """What :class:`SniRouter` wants to know of a TLS ClientHello.

    :ivar server_name: in lower case; None: it names none.
    :ivar alpn: the protocols it offers, best first.
    """

    @property
    def server_name(self) -> str | None: ...
    @property
    def alpn(self) -> tuple[str, ...]: ...


#: The routes of one pattern: by the protocol that they want, and the one that wants none.
_Offers = tuple[dict[str, SniRoute], SniRoute | None]


@implementer(IRouter)
class SniRouter:
    """Finds the route for a TLS connection: by its server name, then by the protocols it offers.

    Among the routes for one name the client's order of protocols decides, and then comes the one
    that asks for none.

    :param routes: of two that fit equally well, the first is taken.
    :ivar hands_over: whether any of them names a listener.
    """

    def __init__(self, routes: Iterable[SniRoute]) -> None:
        routes = tuple(routes)
        self.hands_over = any(route.listener for route in routes)
        self._hosts = _Hosts(routes, _offers, lambda offers: offers)

    def route(self, hello: Hello) -> SniRoute | None:
        """The route for a hello; None where there is none."""
        for by_protocol, route in self._hosts.find(hello.server_name or ""):
            if by_protocol:
                for protocol in hello.alpn:
                    if protocol in by_protocol:
                        return by_protocol[protocol]
            if route is not None:
                return route
        return None


def _offers(routes: Iterable[SniRoute]) -> tuple[_Offers, ...]:
    by_protocol: dict[str, SniRoute] = {}
    rest = None
    for route in routes:
        for protocol in route.alpn:
            by_protocol.setdefault(protocol, route)
        if not route.alpn:
            rest = rest or route
    return ((by_protocol, rest),) if by_protocol or rest else ()


def normal_path(target: bytes) -> bytes | None:
    """The path in a request's target as RFC 3986 section 6.2.2 has it, without the query.

    Escapes of unreserved characters are undone, the others in capitals, dot segments removed.
    Empty segments are kept. A percent sign that escapes nothing is itself escaped: what is undone
    behind it must not become a part of a new escape.

    :param target: in origin form, or ``*``.
    :returns: None where it climbs above the root.
    """
    path = target.partition(b"?")[0]
    if b"%" in path:
        path = _ESCAPE.sub(_normal_escape, path)
    if b"/." not in path:
        return path
    segments = path.split(b"/")[1:]
    kept: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            if not kept:
                return None
            kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


def _normal_escape(match: re.Match[bytes]) -> bytes:
    digits = match.group(1)
    if digits is None:
        return b"%25"
    octet = int(digits, 16)
    return bytes((octet,)) if octet in _UNRESERVED else match.group().upper()


def is_normal(path: str) -> bool:
    """Whether a path, as a route has it, can be the start of what :func:`normal_path` gives."""
    if not (path.startswith("/") and path.isascii() and path.isprintable()):
        return False
    return not {" ", "?", "#"} & set(path) and normal_path(path.encode()) == path.encode()


def rewritten(route: HttpRoute, target: bytes) -> bytes:
    """The target that goes to the backend, or into a redirect.

    The prefix that the route was found by is replaced, with one slash where the new one and the
    rest meet; the query stays. It is the target itself where the route replaces nothing.

    :param target: one that ``route`` was found for.
    """
    if route.replace_path is None or target == b"*":
        return target
    new = route.replace_path.encode()
    _, mark, query = target.partition(b"?")
    path = normal_path(target)
    assert path is not None, "it has a route, so it does not climb"
    rest = path[len(route.path.encode().removesuffix(b"/")) :]
    if rest:
        # Never two at the joint: "//x" at the start of a target would name a host to some.
        new = new.removesuffix(b"/") + b"/" + rest.lstrip(b"/")
    return new + mark + query


def redirect_url(route: HttpRoute, scheme: bytes, host: bytes, target: bytes) -> bytes:
    """Where a route with ``redirect`` sends the client.

    :param scheme: what the client has used: ``http`` or ``https``.
    :param host: as the client has sent it; ``{host}`` is that without its port.
    :param target: ``{uri}`` is what :func:`rewritten` makes of it.
    """
    values = {
        b"scheme": scheme,
        b"host": _PORT.sub(b"", host),
        b"uri": b"/" if target == b"*" else rewritten(route, target),
    }
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], route.redirect.encode())
