"""A plan: what each listener of a configuration can hold, what runs out first, what to do about it.

    plan = make_plan(config, facts)
    plan.hops[0].figures[0].value           # so many connections at once

:mod:`proxykit.core.capacity` reckons the figures. What a change would bring is not guessed: it is
made, to a copy of the configuration or of the facts, and reckoned again. The known traps are in
:mod:`proxykit.core.traps`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from math import ceil

from attrs import evolve, frozen

from proxykit.core import capacity, traps
from proxykit.core.capacity import Capacity, Facts, Limit, Way, layer, wears
from proxykit.core.sharing import L7
from proxykit.model import Cluster, Config, PortRange
from proxykit.strict import dotted

#: Sources that nobody has (RFC 5737, RFC 3849), to see what one more would bring.
_ONE_MORE = {4: "192.0.2.1", 6: "2001:db8::1"}
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
#: A wider range for the kernel to pick from, above most of what services listen on.
WIDE = PortRange(10240, 65535)
#: A better limit of descriptors is a multiple of this, and leaves room for those that are spare.
_ROUND = 1024

_UNKNOWN = "not all backends are known beforehand"

_Changed = tuple[Config, Facts]


@frozen
class Fix:
    """The cheapest thing to do about a limit.

    :ivar do: in words.
    :ivar then: what it makes of the figure; None: nothing that is known limits it then.
    """

    do: str
    then: float | None


@frozen
class Figure:
    """How many there may be of something.

    :ivar what: ``connections``, ``clients`` or ``requests`` at once, or ``new_per_second``.
    :ivar value: None: nothing that is known limits it.
    :ivar limited_by: what runs out first, and ``next``: what would be the next.
    :ivar fix: None: there is none, or none is needed.
    :ivar note: when that holds.
    """

    what: str
    value: float | None
    limited_by: Limit | None = None
    next: Limit | None = None
    fix: Fix | None = None
    note: str = ""


@frozen
class Hop:
    """One listener, and where it leads.

    :ivar index: its number in the file.
    :ivar taken_from: the listeners that hand connections over to it, and ``hands_to``: to which it
        does.
    :ivar ways: to its backends.
    :ivar shared: the clusters that it shares, each with the other listeners that lead there.
    """

    index: int
    name: str
    mode: str
    listen: str
    figures: tuple[Figure, ...]
    ways: tuple[Way, ...]
    taken_from: tuple[str, ...] = ()
    hands_to: tuple[str, ...] = ()
    shared: tuple[tuple[str, tuple[str, ...]], ...] = ()


@frozen
class Plan:
    """What there is to be said of a configuration.

    :ivar usable: how many descriptors there are for connections.
    """

    config: Config
    facts: Facts
    usable: int
    hops: tuple[Hop, ...]
    traps: tuple[traps.Trap, ...]


def make_plan(config: Config, facts: Facts) -> Plan:
    """Reckon a plan."""
    reckoned = Capacity(config, facts)
    hops = tuple(_hop(reckoned, index) for index in range(len(config.listeners)))
    return Plan(config, facts, reckoned.usable(), hops, tuple(traps.find(reckoned)))


def _hop(reckoned: Capacity, index: int) -> Hop:
    listeners = reckoned.config.listeners
    listener, names = listeners[index], reckoned.leads_to(index)
    feeders = [each for each in reckoned.feeders(index) if each != index]
    shared = []
    for name in names:
        others = (n for n in range(len(listeners)) if n != index and name in reckoned.leads_to(n))
        if with_ := tuple(listeners[other].name for other in others):
            shared.append((name, with_))
    return Hop(
        index,
        listener.name,
        listener.mode,
        listener.listen,
        tuple(_figure(reckoned, index, what) for what in reckoned.figures(index)),
        tuple(way for name in names for way in reckoned.ways[name]),
        tuple(listeners[each].name for each in feeders),
        tuple(listeners[each].name for each in reckoned.targets(index)),
        tuple(shared),
    )


def _figure(reckoned: Capacity, index: int, what: str) -> Figure:
    limits = reckoned.limits(index, what)
    if what == capacity.NEW:
        note = _note(reckoned, index, bool(limits))
    else:
        note = _UNKNOWN if _may_be_less(reckoned, index, what) else ""
    if not limits:
        return Figure(what, None, note=note)
    first, *others = limits
    fix = _fix(reckoned, index, what, limits)
    return Figure(what, first.value, first, others[0] if others else None, fix, note)


def _may_be_less(reckoned: Capacity, index: int, what: str) -> bool:
    """Whether backends that nobody knows yet may limit it; clients only need room for them."""
    if what == capacity.CONNECTIONS:
        return reckoned.unknown(reckoned.carried_by(index) or ())
    return what == capacity.REQUESTS and reckoned.unknown(reckoned.leads_to(index))


def _note(reckoned: Capacity, index: int, limited: bool) -> str:
    """When it is that many new ones a second, or why there is no limit."""
    if layer(reckoned.config.listeners[index].mode) == L7:
        wearing = reckoned.wearing(index)
        if not wearing:
            return "connections to backends are kept, and used again"
        said = ", ".join(f"clusters.{name}.{key}" for name, key in wearing.items())
        return f"where the proxy closes first; connections do not last ({said})"
    if reckoned.unknown(reckoned.behind(index)):
        return _UNKNOWN
    if limited:
        return "where the proxy closes first; where backends do, no port rests here"
    return "no port rests here after a connection"


# What to do about it.


@frozen
class _Change:
    """Something that can be done.

    :ivar do: in words.
    :ivar make: does it.
    """

    do: str
    make: Callable[[Config, Facts], _Changed]


def _fix(reckoned: Capacity, index: int, what: str, limits: list[Limit]) -> Fix | None:
    """The first of all changes that makes more of it."""
    now = limits[0].value
    first = [limit for limit in limits if limit.value == now]
    better = (limit.value for limit in limits if limit.value > now)
    wanted = next(better, 2 * now)
    changes = (_changes(reckoned, index, what, limit, ceil(wanted)) for limit in first)
    for together in itertools.product(*map(list, changes)):
        changed = reckoned.config, reckoned.facts
        for change in together:
            changed = change.make(*changed)
        after = Capacity(*changed).limits(index, what)
        if not after or after[0].value > now:
            do = " and ".join(change.do for change in together)
            return Fix(do, after[0].value if after else None)
    return None


def _changes(
    reckoned: Capacity, index: int, what: str, limit: Limit, wanted: int
) -> Iterable[_Change]:
    """What can be done about one limit, the cheapest first."""
    if limit.what == capacity.LISTENER:
        yield _more_clients(reckoned, limit, wanted)
    elif limit.what == capacity.DESCRIPTORS:
        yield _more_descriptors(reckoned, reckoned.needs(index, what, wanted))
    elif limit.what == capacity.CLUSTER:
        yield _more_of_each(reckoned, limit, wanted)
    elif limit.what == capacity.PORTS:
        yield from _more_ports(reckoned, index)
    elif limit.what == capacity.TIME_WAIT:
        yield from _less_waiting(reckoned, index)


def _more_clients(reckoned: Capacity, limit: Limit, wanted: int) -> _Change:
    key = limit.keys[0]
    index = int(key[1])
    most = reckoned.config.listeners[index].max_connections + wanted - int(limit.value)

    def make(config: Config, facts: Facts) -> _Changed:
        listeners = list(config.listeners)
        listeners[index] = evolve(listeners[index], max_connections=most)
        return evolve(config, listeners=tuple(listeners)), facts

    return _Change(f"{dotted(key)} = {most}", make)


def _more_descriptors(reckoned: Capacity, needed: int) -> _Change:
    facts = reckoned.facts
    least = facts.descriptors + needed - reckoned.usable() + facts.spare
    count = _ROUND * ceil(least / _ROUND)

    def make(config: Config, facts: Facts) -> _Changed:
        return config, evolve(facts, descriptors=count)

    return _Change(f"ulimit -n {count} (systemd: LimitNOFILE={count})", make)


def _more_of_each(reckoned: Capacity, limit: Limit, wanted: int) -> _Change:
    names = [str(key[1]) for key in limit.keys]
    ways = reckoned.used(names)
    full = [way for way in ways if way.ports is None or way.most <= way.ports]
    rest = sum(way.at_once for way in ways if way not in full)
    full_names = list(dict.fromkeys(way.cluster for way in full))
    most = max(ceil((wanted - rest) / len(full)), *(way.most for way in full), 1)
    keys = ", ".join(dotted(("clusters", name, "max_connections")) for name in full_names)

    def make(config: Config, facts: Facts) -> _Changed:
        clusters = (
            evolve(cluster, max_connections=most) if cluster.name in full_names else cluster
            for cluster in config.clusters
        )
        return evolve(config, clusters=tuple(clusters)), facts

    return _Change(f"{keys} = {most}", make)


def _more_ports(reckoned: Capacity, index: int) -> Iterable[_Change]:
    config, facts = reckoned.config, reckoned.facts
    if not facts.late:
        yield _late()
    if config.sources.port_range is not None:
        sources = evolve(config.sources, port_range=None)
        yield _Change("no sources.port_range", lambda c, f: (evolve(c, sources=sources), f))
    elif facts.ports.size < WIDE.size:
        do = f"net.ipv4.ip_local_port_range = {WIDE.low} {WIDE.high}"
        ports = evolve(WIDE, reserved=facts.ports.reserved)
        yield _Change(do, lambda c, f: (c, evolve(f, ports=ports)))
    yield _one_more_source(reckoned, index)


def _less_waiting(reckoned: Capacity, index: int) -> Iterable[_Change]:
    wearing = reckoned.wearing(index)
    if layer(reckoned.config.listeners[index].mode) == L7:
        yield _keep_connections(reckoned, wearing)
    if not reckoned.facts.late:
        yield _late()  # A port that rests is nobody's after a plain bind, whatever is set.
    yield _Change(
        "net.ipv4.tcp_tw_reuse = 1 (needs TCP timestamps at both ends)",
        lambda config, facts: (config, evolve(facts, reuse=1)),
    )
    yield from _more_ports(reckoned, index)


def _late() -> _Change:
    return _Change("the proxykit reactor", lambda config, facts: (config, evolve(facts, late=True)))


def _keep_connections(reckoned: Capacity, wearing: Iterable[str]) -> _Change:
    """Have mode http use connections again."""
    said, kept = [], {}
    for name in wearing:
        cluster, at_once = reckoned.clusters[name], reckoned.most_at_once(name)
        while key := wears(cluster, at_once):
            do, cluster = _KEEPS[key](f"clusters.{name}.{key}", cluster, at_once)
            said.append(do)
        kept[name] = cluster

    def make(config: Config, facts: Facts) -> _Changed:
        clusters = tuple(kept.get(cluster.name, cluster) for cluster in config.clusters)
        return evolve(config, clusters=clusters), facts

    return _Change(" and ".join(said), make)


def _reuse(place: str, cluster: Cluster, at_once: int) -> tuple[str, Cluster]:
    return f'{place} = "safe"', evolve(cluster, pool=evolve(cluster.pool, reuse="safe"))


def _introduce_nobody(place: str, cluster: Cluster, at_once: int) -> tuple[str, Cluster]:
    do = f"no {place} (backends find the client in X-Forwarded-For)"
    return do, evolve(cluster, proxy_protocol="")


def _keep_all(place: str, cluster: Cluster, at_once: int) -> tuple[str, Cluster]:
    return f"{place} = {at_once}", evolve(cluster, pool=evolve(cluster.pool, max_idle=at_once))


#: By what ``wears`` says: what to do about it.
_KEEPS = {
    "pool.reuse": _reuse,
    "proxy_protocol": _introduce_nobody,
    "pool.max_idle": _keep_all,
}


def _one_more_source(reckoned: Capacity, index: int) -> _Change:
    """One more source of the family that has the most ways."""
    sources = reckoned.config.sources
    ways = [way for way in reckoned.used(reckoned.behind(index)) if way.budgets]
    versions = [6 if ":" in way.sources[0] else 4 for way in ways]
    version = max((4, 6), key=versions.count)
    same = tuple(each for each in sources.addresses if (":" in each) == (version == 6))
    # Where there is no list, the kernel's own choice becomes the first of one.
    chosen = (way.sources[0] for way, its in zip(ways, versions, strict=True) if its == version)
    first = () if same else tuple(itertools.islice(chosen, 1))
    count = len(same or first)
    ordinal = _ORDINALS[count] if count < len(_ORDINALS) else "further"
    addresses = (*sources.addresses, *first, _ONE_MORE[version])

    def make(config: Config, facts: Facts) -> _Changed:
        return evolve(config, sources=evolve(config.sources, addresses=addresses)), facts

    kind = " IPv6" if version == 6 else ""
    return _Change(f"a {ordinal}{kind} address in sources.addresses", make)
