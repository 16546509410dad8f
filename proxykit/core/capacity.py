"""How much a configuration can hold: what limits each listener, and to how many.

Nothing is measured and nothing asked: a :class:`Capacity` is reckoned from the configuration and
from :class:`Facts`, by the same book that the service keeps (core/accountant.py). Every figure
is the least of its limits::

    capacity = Capacity(config, facts)
    capacity.limits(0, CONNECTIONS)     # the least first

Between one local address and one backend there are as many connections as there are source ports.
Whoever closes first keeps the port for a minute more, so that many ports divided by that are new
connections a second. An L4 connection needs a port and two descriptors as long as its client
stays; at L7 a client needs one descriptor, and a port while it has a request under way.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from functools import cached_property
from math import inf

from attrs import evolve, field, frozen

from proxykit.core.accountant import Accountant
from proxykit.core.budget import TIME_WAIT as RESTS
from proxykit.core.budget import Budget
from proxykit.core.sharing import L4, L7
from proxykit.errors import ProxyError
from proxykit.model import Backend, BudgetKey, Cluster, Config, Listener, PortRange
from proxykit.tomllines import KeyPath

#: Seconds after which a port in TIME_WAIT is given out again where that is allowed at all (Linux:
#: net.ipv4.tcp_tw_reuse_delay).
REUSED_AFTER = 1
#: Descriptors that a service has before its first connection, besides those that listen.
OWN_DESCRIPTORS = 12

# What there may be of something.
CONNECTIONS, CLIENTS, REQUESTS = "connections", "clients", "requests"
NEW = "new_per_second"

# What runs out.
LISTENER = "listener-max-connections"
CLUSTER = "cluster-max-connections"
PORTS = "ports"
DESCRIPTORS = "descriptors"
TIME_WAIT = "time-wait"
NO_WAY = "no-way"

#: What an sni listener may have in place of a cluster, and the settings where that is.
_NO_CLUSTER = ("refuse", "close")
_FALLBACKS = ("without_name", "unknown_name", "not_tls")
#: Modes whose connections to backends serve one client each.
_L4 = ("tcp", "sni")


@frozen
class Facts:
    """What a plan takes from the machine.

    :ivar ports: those that the kernel picks from.
    :ivar ways: the local address that the kernel connects from, by the backend's IP address; one
        to which there is no way is not in it.
    :ivar reuse: ``net.ipv4.tcp_tw_reuse``.
    :ivar descriptors: how many the service may have.
    :ivar spare: how many of those clients are not given; an eighth, where that is less.
    :ivar late: whether a port is picked when the destination is known.
    :ivar elsewhere: those of ``sources.addresses`` that this machine does not have.
    :ivar found: what the sources of clusters find at this moment, by cluster; where it is not known
        there is none.
    :ivar resting: how many sockets the kernel keeps in TIME_WAIT, at the most; None: it does not
        say.
    """

    ports: PortRange
    ways: Mapping[str, str]
    reuse: int = 0
    descriptors: int = 1024
    spare: int = 32
    late: bool = True
    elsewhere: tuple[str, ...] = ()
    resting: int | None = None
    found: Mapping[str, tuple[Backend, ...]] = field(factory=dict)

    def source_of(self, host: str) -> str:
        """The local address for an IP address, as ``Accountant`` wants it.

        :raises OSError: there is no way.
        """
        if host not in self.ways:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return self.ways[host]


@frozen
class Limit:
    """Something that there is no more of than this.

    :ivar what: see above.
    :ivar value: how many, or how many a second.
    :ivar keys: where in the file it is set; none: it is not.
    """

    what: str
    value: float
    keys: tuple[KeyPath, ...] = ()


@frozen
class Way:
    """From here to one backend of one cluster.

    :ivar most: its ``max_connections``.
    :ivar budgets: whose ports are used; none for a unix socket, and where there is no way.
    :ivar ports: how many there are less the headroom; None: none are needed.
    :ivar per_second: new connections a second where the proxy closes first; None: no port rests.
    :ivar lost: whether there is no way at all.
    """

    cluster: str
    backend: Backend
    most: int
    budgets: tuple[BudgetKey, ...] = ()
    ports: int | None = None
    per_second: float | None = None
    lost: bool = False

    @property
    def at_once(self) -> int:
        """How many connections."""
        return self.most if self.ports is None else min(self.most, self.ports)

    @property
    def sources(self) -> tuple[str, ...]:
        """The local addresses."""
        return tuple(key.source for key in self.budgets)


def layer(mode: str) -> str:
    """Whether a mode shares its connections to backends; one that nobody knows does not."""
    return L7 if mode == "http" else L4


def known(mode: str) -> bool:
    """Whether it is one of ours."""
    return mode in _L4 or layer(mode) == L7


def wears(cluster: Cluster, at_once: int) -> str:
    """Why mode http closes connections to a cluster all the time; empty: it keeps them.

    :param at_once: how many one of its backends may have.
    :returns: the key that says so, in the cluster's table.
    """
    most = cluster.pool.max_idle
    if cluster.pool.reuse == "never":
        return "pool.reuse"
    if cluster.proxy_protocol:
        return "proxy_protocol"
    return "pool.max_idle" if most is not None and most < at_once else ""


class Capacity:
    """See this module.

    :ivar clusters: by name, with the backends that are found by now.
    :ivar ways: to the backends, by cluster.
    """

    def __init__(self, config: Config, facts: Facts) -> None:
        self.config = config
        self.facts = facts
        sources = config.sources
        ports = sources.port_range or facts.ports
        self._book = Accountant(
            ports, facts.source_of, sources.headroom, sources.addresses, facts.late, facts.reuse
        )
        self.clusters = {
            cluster.name: _with(cluster, facts.found.get(cluster.name, ()))
            for cluster in config.clusters
        }
        self.ways = {
            name: tuple(self._way(cluster, backend) for backend in cluster.backends)
            for name, cluster in self.clusters.items()
        }
        self._numbers = {each.name: index for index, each in enumerate(config.listeners)}

    def _way(self, cluster: Cluster, backend: Backend) -> Way:
        most = cluster.max_connections
        if backend.address.is_unix:
            return Way(cluster.name, backend, most)
        try:
            budgets = self._book.budgets(backend.address)
        except ProxyError:
            return Way(cluster.name, backend, most, ports=0, per_second=0.0, lost=True)
        keys = tuple(budget.key for budget in budgets)
        per_second = None if cluster.close == "reset" else sum(map(_per_second, budgets))
        ports = sum(budget.limit for budget in budgets)
        return Way(cluster.name, backend, most, keys, ports, per_second)

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """All that there are."""
        return tuple(self._book)

    # Who leads where.

    def targets(self, index: int) -> list[int]:
        """The listeners that one hands connections over to."""
        routes = _routes(self.config.listeners[index])
        names = dict.fromkeys(getattr(route, "listener", "") for route in routes)
        return [self._numbers[name] for name in names if name in self._numbers]

    def feeders(self, index: int) -> list[int]:
        """The listeners whose connections come to one, itself among them if it listens."""
        others = [each for each in range(len(self.config.listeners)) if index in self.targets(each)]
        return [index, *others] if self.config.listeners[index].listen else others

    def leads_to(self, index: int) -> tuple[str, ...]:
        """The clusters that a listener's own routes lead to."""
        listener = self.config.listeners[index]
        settings = listener.settings
        names = [listener.cluster]
        names += (getattr(route, "cluster", "") for route in _routes(listener))
        ways = (getattr(settings, key, "") for key in _FALLBACKS)
        names += (way for way in ways if way not in _NO_CLUSTER)
        return tuple(dict.fromkeys(name for name in names if name in self.clusters))

    def carried_by(self, index: int) -> tuple[str, ...] | None:
        """The clusters that a listener's connections need one of each for themselves, at L4; None:
        some need none, for they are handed over to mode http."""
        listeners, targets = self.config.listeners, self.targets(index)
        if any(layer(listeners[each].mode) == L7 for each in targets):
            return None
        names = [name for each in (index, *targets) for name in self.leads_to(each)]
        return tuple(dict.fromkeys(names))

    def behind(self, index: int) -> tuple[str, ...]:
        """The clusters whose ports a listener's connections use, as far as is known."""
        return self.carried_by(index) or self.leads_to(index)

    def used(self, names: Iterable[str]) -> list[Way]:
        """The ways that are used while all backends are up: not those to backups, unless there
        are no others."""
        found: list[Way] = []
        for name in names:
            ways = self.ways[name]
            found += [way for way in ways if not way.backend.backup] or ways
        return found

    def wearing(self, index: int) -> dict[str, str]:
        """The clusters of an http listener whose connections do not last, and why."""
        found = {}
        for name in self.leads_to(index):
            if why := wears(self.clusters[name], self.most_at_once(name)):
                found[name] = why
        return found

    def unknown(self, names: Iterable[str]) -> bool:
        """Whether some of these clusters have backends that only a source will find."""
        return any(self.clusters[name].discover and name not in self.facts.found for name in names)

    # How many.

    def most_at_once(self, name: str) -> int:
        """How many connections one backend of a cluster may have."""
        if self.unknown((name,)):
            return self.clusters[name].max_connections
        return max((way.at_once for way in self.ways[name]), default=0)

    def usable(self) -> int:
        """The descriptors there are for connections."""
        count = self.facts.descriptors
        listening = sum(bool(each.listen) for each in self.config.listeners)
        own = OWN_DESCRIPTORS + listening + bool(self.config.admin)
        return max(0, count - min(self.facts.spare, count // 8) - own)

    def let_in(self, index: int) -> Limit:
        """How many clients the listeners accept that lead to this one."""
        listeners, feeders = self.config.listeners, self.feeders(index)
        return Limit(
            LISTENER,
            sum(listeners[each].max_connections for each in feeders),
            tuple(("listeners", each, "max_connections") for each in feeders),
        )

    def figures(self, index: int) -> tuple[str, ...]:
        """What there is to be said of a listener."""
        if layer(self.config.listeners[index].mode) == L4:
            return (CONNECTIONS, NEW)
        return (CLIENTS, REQUESTS, NEW) if self.leads_to(index) else (CLIENTS,)

    def limits(self, index: int, figure: str) -> list[Limit]:
        """What limits a figure of a listener, the least first; nothing: nothing that is known."""
        if figure == NEW:
            return self._wear(index)
        found = [self.let_in(index), Limit(DESCRIPTORS, self._by_descriptors(index, figure))]
        if figure == REQUESTS:
            found += self.upstream(self.leads_to(index))
        elif figure == CONNECTIONS and (names := self.carried_by(index)) is not None:
            found += self.upstream(names)
        return sorted(found, key=lambda limit: limit.value)

    def needs(self, index: int, figure: str, count: int) -> int:
        """How many descriptors so many of something need.

        Clients leave room for all connections to backends that their clusters may have.
        """
        pooled = self._pooled(index) if figure == CLIENTS else None
        return count + (count if pooled is None else min(count, pooled))

    def _by_descriptors(self, index: int, figure: str) -> int:
        """The most of something that there are descriptors for."""
        usable = self.usable()
        pooled = self._pooled(index) if figure == CLIENTS else None
        return usable // 2 if pooled is None else max(usable - pooled, usable // 2)

    def _pooled(self, index: int) -> int | None:
        """None: as many as there are clients, for all that is known."""
        names = self.leads_to(index)
        return None if self.unknown(names) else sum(way.most for way in self.used(names))

    def upstream(self, names: Iterable[str]) -> list[Limit]:
        """How many connections some clusters may have together: by what limits most of them, and
        by what would be next; nothing where not all of their backends are known."""
        names = tuple(names)
        ways = [] if self.unknown(names) else self.used(names)
        if all(way.lost for way in ways):
            return [Limit(NO_WAY, 0)] if ways else []
        by = {PORTS: 0.0, CLUSTER: 0.0}
        ports: float = 0
        for group in _groups(ways):
            most = sum(way.most for way in group)
            here = inf if group[0].ports is None else group[0].ports
            ports += here
            by[PORTS if here < most else CLUSTER] += min(here, most)
        total = int(by[PORTS] + by[CLUSTER])
        keys = tuple(("clusters", way.cluster, "max_connections") for way in ways)
        keys = tuple(dict.fromkeys(keys))
        if by[PORTS] > by[CLUSTER]:
            return [Limit(PORTS, total), Limit(CLUSTER, sum(way.most for way in ways), keys)]
        others = [] if ports == inf else [Limit(PORTS, int(ports))]
        return [Limit(CLUSTER, total, keys), *others]

    def _wear(self, index: int) -> list[Limit]:
        """How many new connections a second there may be to the clusters of a listener."""
        names: Iterable[str] = self.wearing(index)
        if layer(self.config.listeners[index].mode) == L4:
            names = self.behind(index)
        limited = [
            name for name in names if all(way.per_second is not None for way in self.used([name]))
        ]
        if not limited or self.unknown(limited):
            return []
        ways = self.used(limited)
        if all(way.lost for way in ways):
            return [Limit(NO_WAY, 0)]
        groups = _groups(ways)
        return [Limit(TIME_WAIT, sum(group[0].per_second or 0 for group in groups))]


def _with(cluster: Cluster, found: tuple[Backend, ...]) -> Cluster:
    """A cluster that has these besides those that are named."""
    named = {backend.address for backend in cluster.backends}
    more = tuple(backend for backend in found if backend.address not in named)
    return evolve(cluster, backends=(*cluster.backends, *more))


def _per_second(budget: Budget) -> float:
    return budget.limit / (REUSED_AFTER if budget.reuses else RESTS)


def _groups(ways: Iterable[Way]) -> list[list[Way]]:
    """Those that use the same ports; each of those that use none is one by itself."""
    found: dict[object, list[Way]] = {}
    for way in ways:
        key = way.budgets or (way.cluster, way.backend.address)
        found.setdefault(key, []).append(way)
    return list(found.values())


def _routes(listener: Listener) -> tuple[object, ...]:
    # A mode of somebody else's may mean anything by it.
    routes = getattr(listener.settings, "routes", ())
    return routes if isinstance(routes, tuple) else ()
