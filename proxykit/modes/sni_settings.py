"""What can be set of an sni listener and of its routes, and which settings are mistakes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import field, frozen

from proxykit.checks import (
    Check,
    ClusterName,
    Each,
    Fallback,
    ListenerName,
    as_in,
    default_of,
    host_pattern,
    positive_seconds,
    protocol_name,
    whole_between,
)
from proxykit.model import SniRoute
from proxykit.modes.tcp import TcpSettings
from proxykit.strict import Problem, Wrong, dotted
from proxykit.wire.clienthello import MOST_BYTES

if TYPE_CHECKING:
    from proxykit.model import Listener

#: What may stand in place of a cluster's name.
REFUSE, CLOSE = "refuse", "close"
_BY_CLUSTER, _REFUSED = Fallback(""), Fallback(REFUSE)


def _is_name_pattern(text: str) -> bool:
    # A server name is no IP address (RFC 6066 section 3).
    return host_pattern(text) and not re.fullmatch(r"\[.*\]|[0-9.]+", text)


def _distinct(routes: tuple[SniRoute, ...]) -> None:
    """Of two routes that say the same, one would never be taken."""
    first: dict[tuple[str, str], int] = {}
    problems: list[Problem] = []
    for index, route in enumerate(routes):
        same = [
            first.setdefault((route.host.lower(), protocol), index)
            for protocol in route.alpn or ("",)
        ]
        if min(same) != index:
            what = "host and a protocol" if route.alpn else "host"
            problems.append(((index,), f"the same {what} as {dotted(('routes', min(same)))}"))
    if problems:
        raise Wrong(problems)


@frozen
class SniRouteTable:
    """The table ``[[listeners.routes]]``; see :class:`proxykit.model.SniRoute`."""

    host: str = as_in(
        SniRoute, "host", Check("a name such as a.example, or *. and a name", _is_name_pattern)
    )
    alpn: tuple[str, ...] = as_in(SniRoute, "alpn", Each(protocol_name))
    cluster: ClusterName = field(default=default_of(SniRoute, "cluster"))
    listener: ListenerName = field(default=default_of(SniRoute, "listener"))

    def __attrs_post_init__(self) -> None:
        """
        :raises Wrong: the keys do not go together.
        """
        if bool(self.cluster) == bool(self.listener):
            raise Wrong.here("expected one of cluster and listener")


@frozen
class SniSettings(TcpSettings):
    """The keys of an sni listener, beside those of a tcp one.

    For what has no route there are three answers: ``refuse``, by the TLS alert for it; ``close``,
    without a word; or the name of a cluster. Empty: it goes to the listener's cluster, and is
    refused where that has none.

    :ivar peek_timeout: seconds for the whole hello.
    :ivar hello_limit: bytes of a hello.
    :ivar without_name: what becomes of a hello that names no server: refuse, close or a cluster.
    :ivar unknown_name: what becomes of one whose name has no route: refuse, close or a cluster.
    :ivar not_tls: what becomes of whatever is not TLS: refuse, close or a cluster.
    :ivar routes: where names go; what none of them takes goes to the listener's cluster.
    """

    peek_timeout: float = field(default=5.0, metadata={"check": positive_seconds})
    without_name: Fallback = _BY_CLUSTER
    unknown_name: Fallback = _BY_CLUSTER
    not_tls: Fallback = _REFUSED
    routes: tuple[SniRoute, ...] = field(default=(), metadata={"check": _distinct})
    hello_limit: int = field(default=MOST_BYTES, metadata={"check": whole_between(512, MOST_BYTES)})


def check_sni(listener: Listener) -> None:
    """What ``IMode.check`` is for an sni listener.

    :raises ValueError: it has neither a cluster nor routes.
    """
    settings = listener.settings
    if not (listener.cluster or (isinstance(settings, SniSettings) and settings.routes)):
        raise ValueError("mode sni needs a cluster or routes")
    if listener.tls is not None:
        raise ValueError("mode sni relays TLS as it is: a route to a listener that has tls ends it")
