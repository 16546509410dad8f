"""A plan for people, and as JSON. docs/plan.rst tells what it means."""

from __future__ import annotations

import json
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from proxykit.core import capacity
from proxykit.core.capacity import Limit, Way
from proxykit.core.plan import Figure, Hop, Plan
from proxykit.core.sharing import L7
from proxykit.core.traps import WARNING, Trap
from proxykit.model import PortRange
from proxykit.strict import dotted
from proxykit.tomllines import Lines

#: Columns, however wide the terminal is.
WIDEST = 100
#: So many backends of a listener are shown to people.
MOST_WAYS = 12

_NAMES = {
    capacity.CONNECTIONS: "connections at once",
    capacity.CLIENTS: "clients at once",
    capacity.REQUESTS: "requests at once",
    capacity.NEW: "new ones a second",
}
_LIMITS = {
    capacity.PORTS: "source ports",
    capacity.DESCRIPTORS: "descriptors",
    capacity.TIME_WAIT: "ports in TIME_WAIT",
    capacity.NO_WAY: "no way to any backend",
}


class Report:
    """A plan, ready to be shown.

    :param file: the name of the configuration file.
    :param lines: where its keys are.
    """

    def __init__(self, plan: Plan, file: str, lines: Lines) -> None:
        self._plan = plan
        self._file = file
        self._lines = lines

    # For people.

    def show(self, out: IO[str]) -> None:
        """Write it, in colour to a terminal."""
        console = Console(file=out, highlight=False, markup=False, emoji=False)
        console.width = min(console.width, WIDEST)
        parts: list[RenderableType] = [self._head()]
        for hop in self._plan.hops:
            parts += [Text(), _title(hop), _indented(_figures(hop))]
            parts += [_indented(_backends(hop))] if hop.ways else []
        parts += [Text()] if self._plan.traps else []
        with console.capture() as captured:
            for part in parts:
                console.print(part)
            for trap in self._traps():
                # One line each, as of `proxykit check`, however long.
                console.print(self._trap_line(trap), soft_wrap=True)
        # A table fills its lines up with spaces.
        out.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())

    def _traps(self) -> list[Trap]:
        """In the order of the file."""
        return sorted(self._plan.traps, key=lambda trap: self._lines.find(trap.key))

    def _head(self) -> Text:
        plan = self._plan
        facts, sources = plan.facts, plan.config.sources
        ports = sources.port_range or facts.ports
        binding = "late binding" if facts.late else "plain binding"
        return Text(
            f"{self._file}: {ports.size:,} source ports ({ports.low}-{ports.high}), of which"
            f" {sources.headroom:.2%} are headroom; {facts.descriptors:,} descriptors;"
            f" tcp_tw_reuse = {facts.reuse}; {binding}".replace(".00%", "%")
        )

    def _trap_line(self, trap: Trap) -> Text:
        place = f"{self._file}:{self._lines.find(trap.key)}: {dotted(trap.key)}: "
        style = "yellow" if trap.level == WARNING else "cyan"
        return Text.assemble(place, (f"{trap.level}: ", style), trap.text)

    # For programs.

    def as_json(self) -> str:
        """The same, and all figures by their names."""
        plan = self._plan
        facts, sources = plan.facts, plan.config.sources
        return json.dumps(
            {
                "file": self._file,
                "machine": {
                    "ports": _ports(facts.ports),
                    "tcp_tw_reuse": facts.reuse,
                    "tcp_max_tw_buckets": facts.resting,
                    "descriptors": facts.descriptors,
                    "descriptors_for_connections": plan.usable,
                    "late_binding": facts.late,
                },
                "sources": {
                    "addresses": sources.addresses,
                    "ports": _ports(sources.port_range or facts.ports),
                    "headroom": sources.headroom,
                },
                "listeners": [_hop(hop) for hop in plan.hops],
                "traps": [self._trap(trap) for trap in plan.traps],
            },
            indent=2,
        )

    def _trap(self, trap: Trap) -> dict[str, Any]:
        return {
            "level": trap.level,
            "kind": trap.kind,
            "line": self._lines.find(trap.key),
            "key": dotted(trap.key),
            "text": trap.text,
        }


def _title(hop: Hop) -> Text:
    said = f"  mode {hop.mode}"
    said += f", {hop.listen}" if hop.listen else ""
    said += f", takes over from {', '.join(hop.taken_from)}" if hop.taken_from else ""
    said += f", hands over to {', '.join(hop.hands_to)}" if hop.hands_to else ""
    return Text.assemble((hop.name, "bold"), said)


def _indented(table: Table) -> Padding:
    return Padding(table, (0, 0, 0, 2))


def _figures(hop: Hop) -> Table:
    """Each with its limit; below it what would be next, and what to do."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for figure in hop.figures:
        what, first, fix = figure.what, figure.limited_by, figure.fix
        said = Text() if first is None else Text(_limit(first), "yellow")
        if figure.note:
            said.append(f"{', ' if said else ''}{figure.note}", "default")
        table.add_row(_NAMES[what], Text(_value(figure.value, what), "bold"), said)
        if figure.next is not None:
            table.add_row("  next", _value(figure.next.value, what), _limit(figure.next))
        if fix is not None:
            table.add_row("  fix", _value(fix.then, what), Text(fix.do, "green"))
    return table


def _backends(hop: Hop) -> Table:
    others = dict(hop.shared)
    # In mode http ports rest only where connections do not last.
    rests = capacity.layer(hop.mode) != L7 or any(
        each.what == capacity.NEW and each.value is not None for each in hop.figures
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("backends", overflow="fold")
    for title in ("at once", "ports", "new/s"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("from", overflow="fold")
    for way in hop.ways[:MOST_WAYS]:
        ports = "-" if way.ports is None else f"{way.ports:,}"
        sources = "no way there" if way.lost else ", ".join(way.sources)
        rate = _value(way.per_second if rests else None, capacity.NEW)
        table.add_row(_backend(way, others), f"{way.at_once:,}", ports, rate, sources)
    if len(hop.ways) > MOST_WAYS:
        table.add_row(f"and {len(hop.ways) - MOST_WAYS:,} more: see --json")
    return table


def _backend(way: Way, others: dict[str, tuple[str, ...]]) -> str:
    said = [way.cluster]
    said += [way.backend.name] if way.backend.name else []
    said += ["backup"] if way.backend.backup else []
    said += [f"as for {', '.join(others[way.cluster])}"] if way.cluster in others else []
    return f"{way.backend.address} ({', '.join(said)})"


def _limit(limit: Limit) -> str:
    keys = ", ".join(dotted(key) for key in limit.keys)
    return _LIMITS.get(limit.what, keys)


def _value(value: float | None, what: str) -> str:
    if value is None:
        return "no limit"
    return f"{value:,.1f}" if what == capacity.NEW and value < 100 else f"{value:,.0f}"


# As JSON.


def _hop(hop: Hop) -> dict[str, Any]:
    return {
        "name": hop.name,
        "mode": hop.mode,
        "listen": hop.listen or None,
        "taken_from": hop.taken_from,
        "hands_to": hop.hands_to,
        "figures": {figure.what: _figure(figure) for figure in hop.figures},
        "backends": [_way(way) for way in hop.ways],
        "shared": dict(hop.shared),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    fix = figure.fix
    return {
        "value": _number(figure.value),
        "limited_by": _limit_as_json(figure.limited_by),
        "next": _limit_as_json(figure.next),
        "fix": None if fix is None else {"do": fix.do, "then": _number(fix.then)},
        "note": figure.note or None,
    }


def _limit_as_json(limit: Limit | None) -> dict[str, Any] | None:
    if limit is None:
        return None
    keys = [dotted(key) for key in limit.keys]
    return {"what": limit.what, "value": _number(limit.value), "keys": keys}


def _way(way: Way) -> dict[str, Any]:
    return {
        "cluster": way.cluster,
        "address": str(way.backend.address),
        "name": way.backend.name or None,
        "backup": way.backend.backup,
        "at_once": way.at_once,
        "max_connections": way.most,
        "ports": way.ports,
        "sources": way.sources,
        "new_per_second": _number(way.per_second),
    }


def _ports(ports: PortRange) -> dict[str, int]:
    return {
        "low": ports.low,
        "high": ports.high,
        "reserved": ports.reserved,
        "size": ports.size,
    }


def _number(value: float | None) -> float | None:
    """Whole where it is, else with two digits."""
    return value if value is None else int(value) if value == int(value) else round(value, 2)
