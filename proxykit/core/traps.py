"""Known traps: what a configuration says, or a machine, that is not what it seems.

Each has a place in the file. A warning is about something that will not be as it was meant; a hint
about something to know.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from ipaddress import ip_address

from attrs import evolve, frozen

from proxykit.core.capacity import (
    Capacity,
    Way,
    known,
    layer,
)
from proxykit.core.sharing import L7
from proxykit.tomllines import KeyPath

WARNING, HINT = "warning", "hint"
#: Less of the kernel's range than this is worth a word, and more headroom than that.
MOST_OF_IT = 0.5
HEADROOM = 0.1
#: Seconds for which backends keep an idle connection by default. Those that say so in their answers
#: (Keep-Alive: timeout=), as Apache and Node.js do, are kept to by the pool.
KEPT_BY_OTHERS = (("gunicorn", 2), ("uvicorn", 5), ("nginx", 75))


@frozen
class Trap:
    """One of them.

    :ivar level: ``warning`` or ``hint``.
    :ivar kind: its name, which does not change.
    :ivar key: where in the file it is.
    """

    level: str
    kind: str
    key: KeyPath
    text: str


def find(reckoned: Capacity) -> Iterator[Trap]:
    """All that there are: of the sources, of the clusters, of the listeners."""
    for look in (
        _elsewhere,
        _families,
        _narrow,
        _headroom,
        _plain_binding,
        _no_way,
        _discovered,
        _same_address,
        _small_pools,
        _long_idle,
        _loopback,
        _forgotten,
        _above_upstream,
        _descriptors,
        _unknown_modes,
    ):
        yield from look(reckoned)


# Sources.


def _elsewhere(reckoned: Capacity) -> Iterator[Trap]:
    for index, address in enumerate(reckoned.config.sources.addresses):
        if address in reckoned.facts.elsewhere:
            yield Trap(
                WARNING,
                "source-elsewhere",
                ("sources", "addresses", index),
                f"{address} is not an address of this machine, so nothing can leave from it here;"
                " the figures are those of a machine that has it",
            )


def _families(reckoned: Capacity) -> Iterator[Trap]:
    addresses = reckoned.config.sources.addresses
    ways = [
        way for ways in reckoned.ways.values() for way in ways if not way.backend.address.is_unix
    ]
    reached = {":" in way.backend.address.host for way in ways}
    unknown = reckoned.unknown(reckoned.clusters)
    for index, address in enumerate(addresses):
        if (":" in address) not in reached and not unknown:
            yield Trap(
                WARNING,
                "source-unused",
                ("sources", "addresses", index),
                f"no backend has an {_family(address)} address, so nothing leaves from {address}",
            )
    bound = {":" in address for address in addresses}
    for is_v6 in sorted(reached - bound) if bound else ():
        way = next(way for way in ways if (":" in way.backend.address.host) == is_v6)
        family = _family(way.backend.address.host)
        yield Trap(
            HINT,
            "family-without-source",
            ("sources", "addresses"),
            f"none is an {family} address, so the kernel chooses one address for the {family}"
            f" backends, such as {way.backend.address}",
        )


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def _narrow(reckoned: Capacity) -> Iterator[Trap]:
    ports, whole = reckoned.config.sources.port_range, reckoned.facts.ports
    if ports is not None and ports.size < whole.size * MOST_OF_IT:
        yield Trap(
            WARNING,
            "narrow-range",
            ("sources", "port_range"),
            f"{ports.low}-{ports.high} leaves out most of the kernel's own range,"
            f" {whole.low}-{whole.high}: {ports.size:,} ports in place of {whole.size:,}",
        )


def _headroom(reckoned: Capacity) -> Iterator[Trap]:
    sources = reckoned.config.sources
    if sources.headroom > HEADROOM:
        size = (sources.port_range or reckoned.facts.ports).size
        yield Trap(
            HINT,
            "headroom",
            ("sources", "headroom"),
            f"{sources.headroom:g} of {size:,} ports are never used, from each address to each"
            " backend; 0.02 is the default",
        )


def _plain_binding(reckoned: Capacity) -> Iterator[Trap]:
    bound = {budget.key.source: budget.limit for budget in reckoned.budgets if not budget.key.port}
    late = Capacity(reckoned.config, evolve(reckoned.facts, late=True)).budgets
    ports, late_ports = sum(bound.values()), sum(b.limit for b in late if b.key.source in bound)
    if ports < late_ports:
        yield Trap(
            WARNING,
            "plain-binding",
            ("sources", "addresses"),
            "this reactor binds before it knows where to, so each port of an address is good for"
            f" one connection, wherever it leads: {ports:,} in all; on the proxykit reactor for one"
            f" to each backend: {late_ports:,}",
        )


# Clusters.


def _no_way(reckoned: Capacity) -> Iterator[Trap]:
    for name, ways in reckoned.ways.items():
        lost = [_named(way) for way in ways if way.lost]
        if lost:
            yield Trap(
                WARNING,
                "no-way",
                ("clusters", name, "backends"),
                f"there is no way from this machine to {', '.join(lost)}: counted as 0",
            )


def _discovered(reckoned: Capacity) -> Iterator[Trap]:
    for name, cluster in reckoned.clusters.items():
        if cluster.discover is not None:
            by, found = cluster.discover.by, reckoned.facts.found.get(name)
            yield Trap(
                HINT,
                "discovered",
                ("clusters", name, "discover"),
                f"the backends that {by} finds are not known beforehand: no figure counts them, or"
                " what they limit"
                if found is None
                else f"the backends that {by} finds at this moment are counted: {len(found):,};"
                " they may be others while the service runs",
            )


def _same_address(reckoned: Capacity) -> Iterator[Trap]:
    first: dict[object, Way] = {}
    for way in itertools.chain(*reckoned.ways.values()):
        address = way.backend.address
        other = first.setdefault(address, way)
        if other is way or not way.budgets:
            continue
        both = f"{_named(way)} here and {_named(other)} in clusters.{other.cluster}"
        if way.backend.name == other.backend.name:
            both = f"{_named(way)} is in clusters.{other.cluster} as well: both"
        else:
            both += f" are one address, {address}: they"
        yield Trap(
            WARNING if way.most + other.most > (way.ports or 0) else HINT,
            "shared-ports",
            ("clusters", way.cluster, "backends"),
            f"{both} share {way.ports:,} ports, and do not have as many each",
        )


def _named(way: Way) -> str:
    return way.backend.name or str(way.backend.address)


def _pooled(reckoned: Capacity) -> list[str]:
    """The clusters whose connections mode http uses again."""
    listeners = reckoned.config.listeners
    names = [
        name
        for index in range(len(listeners))
        if layer(listeners[index].mode) == L7
        for name in reckoned.leads_to(index)
        if reckoned.clusters[name].pool.reuse != "never"
    ]
    return list(dict.fromkeys(names))


def _small_pools(reckoned: Capacity) -> Iterator[Trap]:
    for name in _pooled(reckoned):
        most, at_once = reckoned.clusters[name].pool.max_idle, reckoned.most_at_once(name)
        if most is not None and most < at_once:
            yield Trap(
                WARNING,
                "small-pool",
                ("clusters", name, "pool", "max_idle"),
                f"up to {at_once:,} connections may be in use at once, and {most:,} are kept: the"
                " others are closed and opened anew all the time, and each leaves a port in"
                " TIME_WAIT",
            )


def _long_idle(reckoned: Capacity) -> Iterator[Trap]:
    by_seconds: dict[float, list[str]] = {}
    for name in _pooled(reckoned):
        by_seconds.setdefault(reckoned.clusters[name].pool.idle_timeout, []).append(name)
    for ours, (name, *others) in by_seconds.items():
        sooner = [f"{who} after {theirs} s" for who, theirs in KEPT_BY_OTHERS if theirs <= ours]
        if sooner:
            also = f" (as in {', '.join(others)})" if others else ""
            yield Trap(
                HINT,
                "idle-timeout",
                ("clusters", name, "pool", "idle_timeout"),
                f"{ours:g} s{also} should be less than backends wait, or they close a connection as"
                f" a request is on its way; by default {', '.join(sooner)}",
            )


def _loopback(reckoned: Capacity) -> Iterator[Trap]:
    if reckoned.facts.reuse != 2:
        return
    for name, ways in reckoned.ways.items():
        near = [way for way in ways if any(_is_loopback(each) for each in way.sources)]
        if near:
            yield Trap(
                HINT,
                "loopback",
                ("clusters", name, "backends"),
                f"on the way to {_named(near[0])}, which is on this machine, a port does not rest"
                " for a minute (net.ipv4.tcp_tw_reuse = 2): it would on a network",
            )
            return


def _is_loopback(address: str) -> bool:
    return ip_address(address).is_loopback


def _forgotten(reckoned: Capacity) -> Iterator[Trap]:
    facts = reckoned.facts
    ways = itertools.chain(*reckoned.ways.values())
    resting = {key for way in ways if way.per_second is not None for key in way.budgets}
    budgets = (budget for budget in reckoned.budgets if budget.key in resting)
    ports = sum(budget.limit for budget in budgets if not budget.reuses)
    if facts.resting is not None and facts.resting < ports:
        yield Trap(
            HINT,
            "time-wait-table",
            ("sources",),
            f"the kernel keeps {facts.resting:,} sockets in TIME_WAIT at the most"
            f" (net.ipv4.tcp_max_tw_buckets), and {ports:,} ports could rest: beyond that they do"
            " not rest, with a line in the kernel's log, and more new connections fit in",
        )


# Listeners.


def _above_upstream(reckoned: Capacity) -> Iterator[Trap]:
    for index, listener in enumerate(reckoned.config.listeners):
        names = reckoned.carried_by(index)
        if not listener.listen or not names or layer(listener.mode) == L7:
            continue
        limits, most = reckoned.upstream(names), listener.max_connections
        if limits and (least := limits[0].value) < most:
            queues = [reckoned.clusters[name] for name in names]
            first = queues[0]
            waiting = f"{first.queue_timeout:g} s in the queue of {first.name}"
            if len(queues) > 1:
                waiting += " (or of another cluster)"
            yield Trap(
                HINT,
                "above-upstream",
                ("listeners", index, "max_connections"),
                f"{most:,} clients are let in, and {least:,} of them can have a backend at once:"
                f" the others wait up to {waiting}, and are refused then",
            )


def _descriptors(reckoned: Capacity) -> Iterator[Trap]:
    needed, usable = 0, reckoned.usable()
    for index, listener in enumerate(reckoned.config.listeners):
        if listener.listen:
            mine = (index, *reckoned.targets(index))
            names = dict.fromkeys(name for each in mine for name in reckoned.leads_to(each))
            clients = listener.max_connections
            shared = any(layer(reckoned.config.listeners[each].mode) == L7 for each in mine)
            # Of a mode that nobody knows it is not known where it leads, either.
            upstream = [limit.value for limit in reckoned.upstream(names)] or [
                0 if shared else clients
            ]
            served = int(min(clients, upstream[0]))
            needed += (clients if shared else served) + served
    if needed > usable:
        facts = reckoned.facts
        yield Trap(
            WARNING,
            "descriptors",
            ("listeners",),
            f"with all listeners full {needed:,} descriptors are needed, and {usable:,} of the"
            f" {facts.descriptors:,} that the service may have are for connections (ulimit -Hn)",
        )


def _unknown_modes(reckoned: Capacity) -> Iterator[Trap]:
    for index, listener in enumerate(reckoned.config.listeners):
        if not known(listener.mode):
            yield Trap(
                HINT,
                "unknown-mode",
                ("listeners", index, "mode"),
                f"nothing is known of the mode {listener.mode}: it is taken to need a connection"
                " to a backend for each client",
            )
