"""The tables of a cluster: see proxykit.tables."""

from __future__ import annotations

import re
from typing import NewType

from attrs import field, frozen

from proxykit.checks import (
    Check,
    as_in,
    default_of,
    host_pattern,
    number_between,
    one_of,
    positive_seconds,
    whole_at_least,
    whole_between,
)
from proxykit.model import Address, Backend, Cluster, ClusterTls, Pool
from proxykit.upkeep import Discover, Eject, Health
from proxykit.wire.http1grammar import host_name

#: Fields of these types are read by hooks of the Reader's.
BackendList = NewType("BackendList", tuple[Backend, ...])
BalanceName = NewType("BalanceName", str)

_STATUSES = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")


def _is_server_name(text: str) -> bool:
    return host_pattern(f"[{text}]" if ":" in text else text) and not text.startswith("*")


def _is_host_field(text: str) -> bool:
    return host_name(text.encode()) is not None


def _is_path(text: str) -> bool:
    return text.startswith("/") and text.isascii() and text.isprintable() and " " not in text


def statuses(text: str) -> None:
    """For a ``str`` that lists statuses of HTTP, such as ``200-299,404``.

    :raises ValueError: it does not.
    """
    for each in text.split(","):
        match = _STATUSES.fullmatch(each)
        if match is None or (match.group(2) or match.group(1)) < match.group(1):
            raise ValueError('expected statuses such as "200-299,404"')


_host_field = Check("a host such as web.internal or web.internal:81", _is_host_field)
seconds = Check("a number of seconds, 0 or more", lambda value: value >= 0)


@frozen
class BackendTable:
    address: Address
    weight: int = as_in(Backend, "weight", whole_between(1, 256))
    backup: bool = field(default=default_of(Backend, "backup"))


@frozen
class PoolTable:
    reuse: str = as_in(Pool, "reuse", one_of("never", "safe", "always"))
    max_idle: int | None = as_in(Pool, "max_idle", whole_at_least(0))
    idle_timeout: float = as_in(Pool, "idle_timeout", positive_seconds)


@frozen
class HealthTable:
    path: str = as_in(Health, "path", Check("a path that begins with /", _is_path))
    host: str = as_in(Health, "host", _host_field)
    status: str = as_in(Health, "status", statuses)
    interval: float = as_in(Health, "interval", positive_seconds)
    timeout: float = as_in(Health, "timeout", positive_seconds)
    rise: int = as_in(Health, "rise", whole_at_least(1))
    fall: int = as_in(Health, "fall", whole_at_least(1))
    jitter: float = as_in(Health, "jitter", number_between(0, 1))


@frozen
class EjectTable:
    failures: int = as_in(Eject, "failures", whole_at_least(0))
    slower_than: float = as_in(Eject, "slower_than", seconds)
    slow: int = as_in(Eject, "slow", whole_at_least(1))
    time: float = as_in(Eject, "time", positive_seconds)
    max_time: float = as_in(Eject, "max_time", positive_seconds)
    max_share: float = as_in(Eject, "max_share", number_between(0, 1))


@frozen
class ClusterTable:
    backends: BackendList = field(default=BackendList(()))
    balance: BalanceName = field(default=default_of(Cluster, "balance"))
    max_connections: int = as_in(Cluster, "max_connections", whole_at_least(1))
    connect_timeout: float = as_in(Cluster, "connect_timeout", positive_seconds)
    queue: int = as_in(Cluster, "queue", whole_at_least(0))
    queue_timeout: float = as_in(Cluster, "queue_timeout", positive_seconds)
    deadline: float = as_in(Cluster, "deadline", positive_seconds)
    pool: Pool = field(default=default_of(Cluster, "pool"))
    host: str = as_in(Cluster, "host", _host_field)
    proxy_protocol: str = as_in(Cluster, "proxy_protocol", one_of("v1", "v2"))
    tls: ClusterTls | None = field(default=default_of(Cluster, "tls"))
    close: str = as_in(Cluster, "close", one_of("fin", "reset"))
    health: Health | None = field(default=default_of(Cluster, "health"))
    eject: Eject = field(default=default_of(Cluster, "eject"))
    slow_start: float = as_in(Cluster, "slow_start", seconds)
    panic: bool = field(default=default_of(Cluster, "panic"))
    retry_budget: float = as_in(Cluster, "retry_budget", number_between(0, 1))
    discover: Discover | None = field(default=default_of(Cluster, "discover"))


@frozen
class ClusterTlsTable:
    server_name: str = as_in(
        ClusterTls, "server_name", Check("a host name or an IP address", _is_server_name)
    )
    ca_file: str = field(default=default_of(ClusterTls, "ca_file"))
    certificate: str = field(default=default_of(ClusterTls, "certificate"))
    verify: bool = field(default=default_of(ClusterTls, "verify"))
