"""What tests of plans have in common: short ways to a configuration and to a machine."""

from __future__ import annotations

from typing import Any

from attrs import evolve, frozen

from proxykit.core.capacity import Facts
from proxykit.model import (
    Address,
    Backend,
    Cluster,
    Config,
    HttpRoute,
    Listener,
    PortRange,
    SniRoute,
    Sources,
)

HERE, HERE6 = "10.0.0.1", "fd00::1"
#: Less the headroom, which the tests that are about it set: 200.
PORTS = PortRange(40000, 40199)
#: A service's own are 13 with one listener, and 32 are spare.
OWN = 13 + 32


@frozen
class HttpSettings:
    """As those of mode http, as far as a plan looks at them."""

    routes: tuple[HttpRoute, ...] = ()


@frozen
class SniSettings:
    """As those of mode sni."""

    routes: tuple[SniRoute, ...] = ()
    without_name: str = ""
    unknown_name: str = ""
    not_tls: str = "refuse"


def cluster(name: str = "web", *backends: str, **settings: Any) -> Cluster:
    """A cluster; a backend that is a backup begins with a plus sign."""
    made = tuple(
        Backend(Address.parse(each.removeprefix("+")), backup=each.startswith("+"))
        for each in backends or ("10.0.1.1:80",)
    )
    return Cluster(name, made, **settings)


def listener(mode: str = "tcp", cluster: str = "web", name: str = "", **settings: Any) -> Listener:
    """A listener, which is called as its mode is."""
    return Listener(
        **{"name": name or mode, "listen": "tcp:80", "mode": mode, "cluster": cluster, **settings}
    )


def config(*parts: Cluster | Listener, **sources: Any) -> Config:
    """A configuration; without a headroom, so that figures are round."""
    return Config(
        tuple(each for each in parts if isinstance(each, Listener)),
        tuple(each for each in parts if isinstance(each, Cluster)),
        sources=Sources(**{"headroom": 0.0, **sources}),
    )


def facts(config: Config, **settings: Any) -> Facts:
    """A machine that has a way to all its backends, and enough of everything."""
    ways = {
        backend.address.host: _from(backend.address.host)
        for cluster in config.clusters
        for backend in cluster.backends
        if not backend.address.is_unix
    }
    return evolve(Facts(PORTS, ways, descriptors=100_000), **settings)


def _from(host: str) -> str:
    if host in ("127.0.0.1", "::1"):
        return host
    return HERE6 if ":" in host else HERE
