"""Which tables and keys a configuration has, and how each becomes a part of the model.

The classes whose names end in ``Table`` are the tables; their defaults are the model's. What a key
means beyond its type (there is such a cluster, such a mode; a name resolves) is read by the
:class:`Reader`, by hooks for the types that those keys have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any, NewType, cast

import attrs
from attrs import field, frozen
from twisted.internet.endpoints import serverFromString

from proxykit import strict
from proxykit.admin_table import AdminTable, Token, TokenFile, read_token, read_token_file
from proxykit.checks import (
    Check,
    ClusterName,
    Each,
    EndpointText,
    Fallback,
    ListenerName,
    as_in,
    default_name,
    default_of,
    hand_over_faults,
    header_fault,
    listener_names,
    listens,
    network,
    number_between,
    one_of,
    port_range,
    positive_seconds,
    protocol_name,
    repeated,
    source_address,
    taking_over,
    whole_at_least,
)
from proxykit.cluster_tables import (
    BackendList,
    BackendTable,
    BalanceName,
    ClusterTable,
    ClusterTlsTable,
    EjectTable,
    HealthTable,
    PoolTable,
    seconds,
)
from proxykit.components import IComponent, components
from proxykit.core.budget import Budget
from proxykit.interfaces import IBackendSource, IMode
from proxykit.model import (
    Address,
    Backend,
    BudgetKey,
    Cluster,
    ClusterTls,
    Config,
    FieldRules,
    HttpRoute,
    Listener,
    ListenerTls,
    Pool,
    PortRange,
    SniRoute,
    Sources,
)
from proxykit.modes.http_settings import FieldRulesTable, RouteTable
from proxykit.modes.sni_settings import CLOSE, REFUSE, SniRouteTable
from proxykit.net import certificates, kernel
from proxykit.net.tls_client import TlsClient
from proxykit.strict import Wrong, did_you_mean, found
from proxykit.upkeep import Discover, Eject, Health

#: Gives the IP addresses of a host name, or raises OSError.
Resolve = Callable[[str], list[str]]

_Hook = Callable[[Any, Any], Any]

_Paths = NewType("_Paths", tuple[str, ...])
_Addresses = NewType("_Addresses", tuple[str, ...])
_Clusters = NewType("_Clusters", tuple[Cluster, ...])
_Listeners = NewType("_Listeners", tuple[Listener, ...])
_ModeName = NewType("_ModeName", str)

_ENDPOINT = "a Twisted server endpoint such as tcp:8080 or tcp:8080:interface=127.0.0.1"
_HIGHEST_PORT = 65535
#: In place of a listener's endpoint that is not given, and is needed.
_MISSING: Any = object()
_NOWHERE = EndpointText("")
_CALLED = re.compile(r"\A[\w.]+\(\) ")


def _is_name(text: str) -> bool:
    return text != "" and text.isprintable() and not {" ", "/"} & set(text)


_name = Check("a name without spaces or slashes", _is_name)


@frozen
class _ListenerTlsTable:
    certificates: _Paths
    client_ca: str = field(default=default_of(ListenerTls, "client_ca"))
    client_auth: str = as_in(ListenerTls, "client_auth", one_of("optional", "required"))
    alpn: tuple[str, ...] = as_in(ListenerTls, "alpn", Each(protocol_name))
    handshake_timeout: float = as_in(ListenerTls, "handshake_timeout", positive_seconds)


@frozen(kw_only=True)
class _ListenerTable:
    name: str = field(metadata={"check": _name})
    listen: EndpointText = _NOWHERE
    mode: _ModeName
    cluster: ClusterName = field(default=default_of(Listener, "cluster"))
    max_connections: int = as_in(Listener, "max_connections", whole_at_least(1))
    trust: tuple[str, ...] = as_in(Listener, "trust", Each(network))
    proxy_protocol: bool = field(default=default_of(Listener, "proxy_protocol"))
    proxy_timeout: float = as_in(Listener, "proxy_timeout", positive_seconds)
    tls: ListenerTls | None = field(default=default_of(Listener, "tls"))


#: The keys of a listener that are not its mode's.
LISTENER_KEYS = tuple(attrs.fields_dict(_ListenerTable))


@frozen
class _SourcesTable:
    addresses: _Addresses = field(default=default_of(Sources, "addresses"))
    port_range: PortRange | None = field(default=default_of(Sources, "port_range"))
    headroom: float = as_in(Sources, "headroom", number_between(0, 0.9))


@frozen
class _FileTable:
    listeners: _Listeners = field(metadata={"check": Check("at least one [[listeners]]", bool)})
    clusters: _Clusters = field(default=_Clusters(()))
    sources: Sources = field(default=default_of(Config, "sources"))
    admin: AdminTable | None = None
    drain_timeout: float = as_in(Config, "drain_timeout", seconds)


class Reader:
    """Reads one whole configuration.

    :param data: what :func:`tomllib.loads` gives.
    """

    def __init__(self, data: Mapping[str, Any], resolve: Resolve) -> None:
        self.data = data
        self.resolve = cache(resolve)
        self.modes = components("mode")
        clusters = data.get("clusters")
        self.cluster_names = list(clusters) if isinstance(clusters, dict) else []
        self.listener_names = listener_names(data.get("listeners"))
        self.taking_over = taking_over(data.get("listeners"))
        self.converter = strict.converter()
        hooks: tuple[tuple[Any, _Hook], ...] = (
            (Address, _address),
            (EndpointText, _endpoint),
            (Token, read_token),
            (TokenFile, read_token_file),
            (ClusterName, self._cluster_name),
            (Fallback, self._fallback),
            (ListenerName, self._listener_name),
            (BalanceName, _named(components("balance"))),
            (_ModeName, _named(self.modes)),
            (BackendList, self._backends),
            (_Clusters, self._clusters),
            (_Listeners, self._listeners),
            (Pool, self._from(PoolTable, Pool)),
            (Health, self._from(HealthTable, Health)),
            (Eject, self._from(EjectTable, Eject)),
            (Discover, self._discover),
            (Sources, self._sources),
            (_Addresses, _addresses),
            (PortRange, _port_range),
            (HttpRoute, self._from(RouteTable, HttpRoute)),
            (SniRoute, self._from(SniRouteTable, SniRoute)),
            (ClusterTls, self._cluster_tls),
            (ListenerTls, self._listener_tls),
            (_Paths, _paths),
            (FieldRules, self._field_rules),
        )
        for kind, hook in hooks:
            self.converter.register_structure_hook(kind, hook)

    def config(self) -> Config:
        """
        :raises Wrong: with every mistake.
        """
        read: _FileTable = strict.read_table(self.converter, self.data, _FileTable)
        tables = () if read.admin is None else (("admin", read.admin),)
        good, problems = strict.each(tables, lambda admin: admin.settings())
        where = read.admin.listen if read.admin else ""
        problems += repeated(
            [(("admin", "listen"), where), *listens(enumerate(read.listeners), "listeners")],
            "the same endpoint as ",
        )
        if problems := problems + hand_over_faults(read.listeners):
            raise Wrong(problems)
        return Config(
            read.listeners,
            read.clusters,
            sources=read.sources,
            drain_timeout=read.drain_timeout,
            **good.get("admin", {}),
        )

    def _from(self, table: type, part: type) -> _Hook:
        """Reads a part of the model by the table that has the same keys."""

        def hook(value: Any, _: object) -> Any:
            read = strict.read_table(self.converter, value, table)
            return part(**attrs.asdict(read, recurse=False))

        return hook

    def _sources(self, value: Any, _: object) -> Sources:
        read: Sources = self._from(_SourcesTable, Sources)(value, None)
        if (ports := read.port_range) and (kept := _kept(ports, read.headroom)) >= ports.size:
            reason = (
                f"no port is left of {ports.low}-{ports.high} ({ports.reserved} reserved in"
                f" net.ipv4.ip_local_reserved_ports, {kept} kept as headroom)"
            )
            raise Wrong([(("port_range",), reason)])
        return read

    def _cluster_tls(self, value: Any, _: object) -> ClusterTls:
        read: ClusterTls = self._from(ClusterTlsTable, ClusterTls)(value, None)
        try:
            TlsClient(read)
        except ValueError as error:
            raise Wrong.here(str(error)) from error
        return read

    def _listener_tls(self, value: Any, _: object) -> ListenerTls:
        read: ListenerTls = self._from(_ListenerTlsTable, ListenerTls)(value, None)
        try:
            for path in certificates.files(read.certificates):
                certificates.read(path, read)
        except ValueError as error:
            raise Wrong.here(str(error)) from error
        return read

    def _field_rules(self, value: Any, _: object) -> FieldRules:
        read: FieldRulesTable = strict.read_table(self.converter, value, FieldRulesTable)
        return read.rules()

    def _cluster_name(self, value: Any, _: object) -> str:
        if not isinstance(value, str):
            raise Wrong.here(f"expected the name of a cluster, not {found(value)}")
        return _one_named("cluster", value, self.cluster_names)

    def _fallback(self, value: Any, _: object) -> str:
        if not isinstance(value, str):
            raise Wrong.here(f"expected {REFUSE}, {CLOSE} or a cluster, not {found(value)}")
        return _one_named("cluster", value, ["", *self.cluster_names, REFUSE, CLOSE])

    def _listener_name(self, value: Any, _: object) -> str:
        if not isinstance(value, str):
            raise Wrong.here(f"expected the name of a listener, not {found(value)}")
        return _one_named("listener", value, self.listener_names)

    def _clusters(self, value: Any, _: object) -> tuple[Cluster, ...]:
        if not isinstance(value, dict):
            raise Wrong.here(f"expected [clusters.NAME] tables, not {found(value)}")
        named = ((name, (name, table)) for name, table in value.items())
        good, problems = strict.each(named, self._cluster)
        if problems:
            raise Wrong(problems)
        return tuple(good.values())

    def _cluster(self, named: tuple[str, Any]) -> Cluster:
        name, table = named
        if not _is_name(name):
            raise Wrong.here(f"expected {_name.expected}, not {found(name)}")
        read = strict.read_table(self.converter, table, ClusterTable)
        if not (read.backends or read.discover):
            lacking = "expected at least one backend, not an empty list"
            if "backends" not in table:
                lacking = "missing; expected at least one backend"
            raise Wrong([(("backends",), lacking)])
        return Cluster(name, **attrs.asdict(read, recurse=False))

    def _discover(self, value: Any, _: object) -> Discover:
        if not isinstance(value, dict):
            raise Wrong.here(f"expected a table, not {found(value)}")
        known = components("source")
        name = value.get("by")
        if not isinstance(name, str) or name not in known:
            expected = f"expected one of {', '.join(known)}"
            text = f"{expected}, not {found(name)}" if "by" in value else f"missing; {expected}"
            raise Wrong([(("by",), text)])
        try:
            source = IBackendSource(cast("Callable[[], object]", known[name].load())())
        except Exception as error:
            reason = f"the source {name!r} cannot be loaded: {_reason(error)}"
            raise Wrong([(("by",), reason)]) from error
        own = {key: each for key, each in value.items() if key != "by"}
        settings = strict.read_table(self.converter, own, source.settings, ("by",))
        try:
            source.check(settings)
        except ValueError as error:
            raise Wrong.here(str(error)) from error
        return Discover(name, settings)

    def _backends(self, value: Any, _: object) -> tuple[Backend, ...]:
        if not isinstance(value, list):
            raise Wrong.here(f"expected a list of addresses, not {found(value)}")
        good, problems = strict.each(enumerate(value), self._backend)
        problems += repeated(
            (((index,), backend.address) for index, group in good.items() for backend in group),
            "the same address as backends",
        )
        if problems:
            raise Wrong(problems)
        return tuple(backend for group in good.values() for backend in group)

    def _backend(self, value: Any) -> tuple[Backend, ...]:
        """One entry of a list of backends: one for each address that its name has."""
        if isinstance(value, dict):
            read: BackendTable = strict.read_table(self.converter, value, BackendTable)
        else:
            read = BackendTable(_address(value, None))
        written = read.address
        if written.is_unix or written.is_ip:
            return (Backend(written, read.weight, read.backup),)
        name = f"the name {written.host!r} does not resolve"
        try:
            hosts = self.resolve(written.host)
        except OSError as error:
            raise Wrong.here(f"{name}: {error.strerror or error}") from error
        if not hosts:
            raise Wrong.here(f"{name}: it has no address")
        return tuple(
            Backend(Address(host, written.port), read.weight, read.backup, str(written))
            for host in dict.fromkeys(hosts)
        )

    def _listeners(self, value: Any, _: object) -> tuple[Listener, ...]:
        if not isinstance(value, list):
            raise Wrong.here(f"expected [[listeners]] tables, not {found(value)}")
        numbered = ((index, (index, table)) for index, table in enumerate(value))
        good, problems = strict.each(numbered, self._listener)
        names = (((index, "name"), listener.name) for index, listener in good.items())
        problems += repeated(names, "the same name as listeners")
        problems += repeated(listens(good.items()), "the same endpoint as listeners")
        if problems:
            raise Wrong(problems)
        return tuple(good.values())

    def _listener(self, numbered: tuple[int, Any]) -> Listener:
        index, table = numbered
        if not isinstance(table, dict):
            raise Wrong.here(f"expected a table, not {found(table)}")
        own = {"name": default_name(index)}
        own |= {key: value for key, value in table.items() if key in LISTENER_KEYS}
        if "listen" not in own and own["name"] not in self.taking_over:
            own["listen"] = _MISSING
        others = {key: value for key, value in table.items() if key not in LISTENER_KEYS}
        parts = (
            ("own", lambda: strict.read_table(self.converter, own, _ListenerTable)),
            ("settings", lambda: self._settings(own.get("mode"), others)),
        )
        good, problems = strict.each(parts, lambda read: read())
        if problems:
            raise Wrong((path[1:], message) for path, message in problems)
        mode, settings = good["settings"]
        listener = Listener(**attrs.asdict(good["own"], recurse=False), settings=settings)
        if fault := header_fault(listener):
            raise Wrong([(("proxy_protocol",), fault)])
        try:
            mode.check(listener)
        except ValueError as error:
            raise Wrong.here(str(error)) from error
        return listener

    def _settings(self, name: object, table: dict[str, Any]) -> tuple[IMode, object]:
        """The mode, and the keys that are its own, as an instance of its settings class."""
        if not isinstance(name, str) or name not in self.modes:
            # Without a mode nobody knows which keys are its own; but `mdoe` is one of ours.
            theirs = {key for mode in self.modes.values() for key in _keys_of(mode)}
            near = ((key, did_you_mean(key, LISTENER_KEYS)) for key in table if key not in theirs)
            raise Wrong(((key,), f"unknown key{text}") for key, text in near if text)
        try:
            mode = IMode(cast("Callable[[], object]", self.modes[name].load())())
        except Exception as error:
            reason = f"the mode {name!r} cannot be loaded: {_reason(error)}"
            raise Wrong([(("mode",), reason)]) from error
        return mode, strict.read_table(self.converter, table, mode.settings, LISTENER_KEYS)


def _one_named(what: str, name: str, known: Collection[str]) -> str:
    if name not in known:
        near = did_you_mean(name, known, "'")
        raise Wrong.here(f"there is no {what} {name!r}{near}")
    return name


def _keys_of(mode: IComponent) -> set[str]:
    try:
        return set(attrs.fields_dict(IMode(cast("Callable[[], object]", mode.load())()).settings))
    except Exception:  # It is not the one that is asked for; whoever asks for it is told.
        return set()


def _paths(value: Any, _: object) -> tuple[str, ...]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(each, str) for each in paths):
        raise Wrong.here(f"expected a directory, a PEM file or a list of those, not {found(value)}")
    return tuple(paths)


def _addresses(value: Any, _: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Wrong.here(f"expected a list of IP addresses, not {found(value)}")
    good, problems = strict.each(enumerate(value), source_address)
    placed = (((index,), address) for index, address in good.items())
    problems += repeated(placed, "the same address as addresses")
    if problems:
        raise Wrong(problems)
    return tuple(good.values())


def _port_range(value: Any, _: object) -> PortRange:
    try:
        return kernel.narrowed(port_range(value))
    except ValueError as error:
        raise Wrong.here(str(error)) from error


def _kept(ports: PortRange, headroom: float) -> int:
    """How many of these ports are never handed out."""
    return ports.size - Budget(BudgetKey("tcp", ""), ports.size, headroom).limit


def _address(value: Any, _: object) -> Address:
    if not isinstance(value, str):
        raise Wrong.here(f"expected an address such as 10.0.0.1:80, not {found(value)}")
    try:
        return Address.parse(value)
    except ValueError as error:
        raise Wrong.here(str(error)) from error


def _named(known: Iterable[str]) -> _Hook:
    names = list(known)

    def read(value: Any, _: object) -> Any:
        if not isinstance(value, str) or value not in names:
            raise Wrong.here(f"expected one of {', '.join(names)}, not {found(value)}")
        return value

    return read


def _endpoint(value: Any, _: object) -> str:
    if value is _MISSING:
        raise Wrong.here("missing")
    if not isinstance(value, str):
        raise Wrong.here(f"expected {_ENDPOINT}, not {found(value)}")
    if fault := _endpoint_fault(value):
        raise Wrong.here(f"expected {_ENDPOINT}, not {found(value)}: {fault}")
    return value


def _endpoint_fault(text: str) -> str:
    try:
        # Parsing asks nothing of the reactor, which there may be none of yet.
        endpoint = serverFromString(object(), text)
    except LookupError as error:
        # Whether systemd has handed the descriptor over is seen where the service starts.
        return "" if text.startswith("systemd:") else _reason(error)
    except Exception as error:  # the parsers, plugins among them, raise what they like
        return _reason(error)
    port = getattr(endpoint, "_port", 0)
    if 0 <= port <= _HIGHEST_PORT:
        return ""
    return f"a port is at most {_HIGHEST_PORT}"


def _reason(error: Exception) -> str:
    """What an exception says, on one line, without the name of a function that users never see."""
    return _CALLED.sub("", " ".join(str(error).split())) or type(error).__name__
