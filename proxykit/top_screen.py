"""What ``proxykit top`` draws: port budgets first, the scarcest on top; listeners; clusters.

One state, as ``/api/events`` tells it, becomes lines of text, and none is wrapped. Where there are
fewer lines than there is to show, each part gets some, and says how much more there is. As on the
dashboard, no colour stands alone: each part of a bar has its own character, each level a sign.
"""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

#: Columns: below, a budget has two lines; from here on, its history is drawn, too.
NARROW, WIDE = 76, 120
#: Columns of a small plot.
SPARK = 24
#: Lines that each part gets where there are too few.
LEAST = 2

#: The parts of a bar: key, name, character, style.
USES = (
    ("active", "active", "█", "blue"),
    ("idle", "idle", "▓", "cyan"),
    ("reserved", "connecting", "▌", "magenta"),
    ("time_wait", "TIME_WAIT", "▒", "yellow"),
    ("foreign", "other processes", "░", "bright_black"),
    ("denied", "denied", "x", "red"),
    ("free", "free", "·", "bright_black"),
    ("headroom", "headroom", "-", "bright_black"),
)
#: Levels, the scarcest last: word, sign, style.
LEVELS = {
    "ok": ("ok", "✓", "green"),
    "half": ("half used", "◐", "blue"),
    "low": ("low", "▲", "bold yellow"),
    "empty": ("none left", "✕", "bold red"),
}
_ORDER = tuple(LEVELS)
_BLOCKS = "▁▂▃▄▅▆▇█"


def clean(text: object) -> str:
    """As text that does nothing to a terminal: whoever named a thing may have meant harm."""
    return "".join(
        each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(text)
    )


def span(seconds: float) -> str:
    """A time for people."""
    if seconds < 1:
        return "less than 1 s"
    for unit, size, until in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 129600)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def quick(seconds: float | None) -> str:
    """A short time for people."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def level(budget: dict[str, Any]) -> str:
    """How scarce its ports are: a key of ``LEVELS``, or whatever a newer service says."""
    return "empty" if budget["free"] <= 0 else str(budget.get("level", "ok"))


def forecast(budget: dict[str, Any]) -> str:
    """When it will be empty, in words."""
    left = budget["forecast_seconds"]
    if budget["free"] <= 0 or left == 0:
        return "no port is left"
    return "no shortage in sight" if left is None else f"runs out in {span(left)}"


def _way(budget: dict[str, Any]) -> str:
    return clean(f"{budget['source']} → {budget['destination'] or 'anywhere'}")


def _scarcity(budget: dict[str, Any]) -> tuple[float, ...]:
    """Sorts the scarcest first."""
    kind, left = level(budget), budget["forecast_seconds"]
    rank = _ORDER.index(kind) if kind in LEVELS else len(_ORDER)
    return -rank, float("inf") if left is None else left, budget["free"] / max(1, budget["size"])


def bar(budget: dict[str, Any], width: int) -> Text:
    """Its ports in so many columns; what is there at all has at least one, if there is room."""
    ports = {key: max(0, budget.get(key, 0)) for key, *_ in USES}
    # A port that rests and can be had again is counted twice; a bar has no room for that.
    others = sum(ports.values()) - ports["time_wait"]
    ports["time_wait"] = max(0, min(ports["time_wait"], budget["size"] - others))
    whole = sum(ports.values())
    if not whole:
        return Text(" " * width)
    columns = {key: count * width // whole for key, count in ports.items()}
    for key, count in ports.items():
        if count and not columns[key]:
            columns[key] = 1
    # Rounding is paid by whoever has most.
    while (rest := width - sum(columns.values())) != 0:
        key = max(columns, key=lambda each: (columns[each], ports[each]))
        columns[key] += rest if rest > 0 else -1
    return Text.assemble(*((sign * columns[key], style) for key, _, sign, style in USES))


def spark(values: list[float], top: float, width: int = SPARK) -> Text:
    """A small plot of the last values."""
    last = values[-width:]
    heights = (min(1.0, max(0.0, value / top if top else 0.0)) for value in last)
    drawn = "".join(_BLOCKS[round(height * (len(_BLOCKS) - 1))] for height in heights)
    return Text(drawn.rjust(width), "blue", no_wrap=True)


def screen(state: dict[str, Any], width: int, height: int | None = None, away: str = "") -> Group:
    """All of it.

    :param state: what ``/api/events`` tells.
    :param width: columns; ``height``: lines, None: as many as it takes.
    :param away: why this is not so any more, if it is not.
    """
    budgets = sorted(state["budgets"], key=_scarcity)
    lines = 1 if width >= NARROW else 2
    backends = sum(len(cluster["backends"]) for cluster in state["clusters"])
    wanted = [len(budgets) * lines, len(state["listeners"]), len(state["clusters"]) + backends]
    head = _head(state, width, away)
    # Each part has a title, and an empty line before it.
    room = None if height is None else height - len(head) - 3 * 2
    few = _shares(wanted, room)
    parts: list[RenderableType] = [*head]
    parts += _budgets(budgets, width, max(1, few[0] // lines))
    parts += _listeners(state["listeners"], width, few[1])
    parts += _clusters(state["clusters"], width, few[2])
    return Group(*parts)


def _shares(wanted: list[int], room: int | None) -> list[int]:
    """How many lines each part gets: all that it wants, or some; the first come first."""
    if room is None or sum(wanted) <= room:
        return wanted
    few = [min(each, LEAST) for each in wanted]
    for at, each in enumerate(wanted):
        # The budgets leave at least half to the rest.
        most = room // 2 if at == 0 else room
        few[at] += max(0, min(each - few[at], room - sum(few), most - few[at]))
    return few


def _head(state: dict[str, Any], width: int, away: str) -> list[Text]:
    clients = sum(each["connections"] for each in state["listeners"])
    said = Text.assemble(
        ("proxykit", "bold"),
        f" {clean(state.get('version') or '')}".rstrip(),
        f"  up {span(state.get('uptime') or 0)}",
        f"  loop lag {quick(state.get('loop_lag_seconds'))}",
        f"  {_more(clients, clients, 'client')}",
    )
    if state.get("draining"):
        said.append("  draining: takes nothing new", "bold yellow")
    lines = [_one(said, width)]
    if away:
        lines.append(_one(Text(f"Not connected, trying again: {clean(away)}", "bold red"), width))
    return lines


def _one(text: Text, width: int) -> Text:
    """In one line."""
    text.truncate(max(1, width), overflow="ellipsis")
    text.no_wrap = True
    return text


def lines(rows: list[list[Text]], width: int, right: set[int] | None = None) -> list[Text]:
    """Rows of as many cells each, in columns; what does not fit is cut off at the end of the line.

    :param right: the columns whose text is at their right.
    """
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    made = []
    for row in rows:
        line = Text()
        for at, cell in enumerate(row):
            gap = " " * (widths[at] - cell.cell_len)
            line.append(gap if at in (right or ()) else "").append_text(cell)
            line.append("" if at in (right or ()) else gap).append("  ")
        line.rstrip()
        made.append(_one(line, width))
    return made


def _without(row: list[Text], *columns: int | None) -> list[Text]:
    return [cell for at, cell in enumerate(row) if at not in columns]


def _title(name: str, said: Text | str, width: int) -> list[RenderableType]:
    return [Text(), _one(Text.assemble((name, "bold underline"), "  ", said), width)]


def _more(count: int, shown: int, one: str) -> str:
    what = one if count == 1 else f"{one}s"
    return f"{shown:,} of {count:,} {what}" if shown < count else f"{count:,} {what}"


# Budgets.


def _budgets(budgets: list[dict[str, Any]], width: int, few: int) -> list[RenderableType]:
    used = {key for key, *_ in USES if any(budget.get(key) for budget in budgets)}
    legend = Text()
    for key, name, sign, style in USES:
        if key in used:
            legend.append(f" {sign}", style).append(f" {name}", "bright_black")
    shown = budgets[:few]
    said = Text(_more(len(budgets), len(shown), "port budget"), "bright_black")
    parts = _title("Ports", Text.assemble(said, " ", legend), width)
    if width < NARROW:
        for budget in shown:
            parts += [_budget_head(budget, width), _budget_foot(budget, width)]
        return parts
    ways = [_way(budget) for budget in shown]
    longest = min(max((cell_len(way) for way in ways), default=0), width // 3)
    wide = width >= WIDE
    rows = []
    for budget in shown:
        free = f"{budget['free']:,} of {budget['size']:,}"
        history = [spark(budget.get("history") or [], 1.0)] if wide else []
        rows.append([_level(budget, wide), Text(free), *history, _forecast(budget)])
    taken = longest + 2 + sum(max((cell.cell_len for cell in column), default=0) + 2
                              for column in zip(*rows, strict=True))  # fmt: skip
    for budget, way, row in zip(shown, ways, rows, strict=True):
        said = _one(Text(way), longest)
        said.pad_right(longest - said.cell_len)
        row[0:1] = [row[0], said, bar(budget, max(8, width - taken))]
    return [*parts, *lines(rows, width, right={3})]


def _level(budget: dict[str, Any], whole: bool = True) -> Text:
    word, sign, style = LEVELS.get(level(budget), (clean(level(budget)), "?", "bold yellow"))
    return Text(f"{sign} {word}" if whole else sign, style)


def _forecast(budget: dict[str, Any]) -> Text:
    style = "bright_black" if level(budget) == "ok" else LEVELS.get(level(budget), ("", "", ""))[2]
    return Text(forecast(budget), style)


def _budget_head(budget: dict[str, Any], width: int) -> Text:
    said = Text.assemble(_level(budget), " ", (_way(budget), "bold"), " ", _forecast(budget))
    return _one(said, width)


def _budget_foot(budget: dict[str, Any], width: int) -> Text:
    figures = f" {budget['free']:,} free"
    return _one(Text.assemble(bar(budget, max(4, width - len(figures))), figures), width)


# Listeners.


def _listeners(listeners: list[dict[str, Any]], width: int, few: int) -> list[RenderableType]:
    shown = listeners[:few]
    said = Text(_more(len(listeners), len(shown), "listener"), "bright_black")
    parts = _title("Listeners", said, width)
    rows = []
    for each in shown:
        history = each.get("history") or []
        limit = each.get("max_connections")
        what = "requests/s" if "requests" in (each.get("traffic") or {}) else "new/s"
        row = [
            Text(clean(each["name"]), "bold"),
            Text(clean(each.get("address") or "-")),
            Text(f"{each['connections']:,}{f' of {limit:,}' if limit else ''} clients"),
            Text(f"{history[-1]:,.0f} {what}" if history else ""),
            spark(history, max(history, default=0)),
            _why_not(each),
        ]
        rows.append(_without(row, 4 if width < WIDE else None, 1 if width < NARROW else None))
    return [*parts, *lines(rows, width)]


def _why_not(listener: dict[str, Any]) -> Text:
    """Why it does not accept; empty: it does."""
    if listener.get("draining"):
        return Text("◐ draining", "blue")
    return Text(f"▲ {clean(listener['paused'])}" if listener.get("paused") else "", "yellow")


# Clusters.


def _condition(backend: dict[str, Any]) -> tuple[str, str]:
    """In words, and in which style. What an operator said comes before what was found out."""
    said = {"removed": "○ removed", "down": "○ taken down", "drain": "◐ draining"}
    if backend["state"] in said:
        return said[backend["state"]], "blue"
    left = backend.get("ejected_seconds")
    if left is not None:
        return f"✕ ejected, {span(left)} left", "red"
    if backend.get("health") == "down":
        return "✕ unhealthy", "red"
    if backend.get("full"):
        return "▲ full", "yellow"
    share = backend.get("share")
    if share is not None and share < 1:
        return f"◐ starting, {share:.0%}", "blue"
    return ("✓ up, healthy" if backend.get("health") == "up" else "✓ up"), "green"


def _is_bad(backend: dict[str, Any]) -> bool:
    return _condition(backend)[1] == "red"


def _clusters(clusters: list[dict[str, Any]], width: int, few: int) -> list[RenderableType]:
    total = sum(len(cluster["backends"]) for cluster in clusters)
    # What is wrong is shown first, and each cluster once.
    left = max(0, few - len(clusters))
    shown = 0
    rows = []
    for cluster in clusters[:few]:
        rows.append(_cluster(cluster))
        backends = sorted(cluster["backends"], key=lambda each: not _is_bad(each))
        rows += [_backend(backend) for backend in backends[: left - shown]]
        shown += len(backends[: left - shown])
    if width < NARROW:
        rows = [_without(row, 2, 4) for row in rows]
    said = f"{_more(len(clusters), min(few, len(clusters)), 'cluster')}, "
    said += _more(total, shown, "backend")
    title = _title("Clusters", Text(said, "bright_black"), width)
    return [*title, *lines(rows, width, right={2, 3, 4} if width >= NARROW else {2})]


def _cluster(cluster: dict[str, Any]) -> list[Text]:
    backends = cluster["backends"]
    well = sum(1 for each in backends if each["state"] == "up" and not _is_bad(each))
    style = "red" if not well or cluster.get("panic") else "yellow" if well < len(backends) else ""
    said = "panic: all are used" if cluster.get("panic") else f"{well} of {len(backends)} in use"
    queue, pool = cluster.get("queue") or {}, cluster.get("pool") or {}
    notes = [f"{queue['waiting']:,} waiting"] if queue.get("waiting") else []
    asked = pool.get("reused", 0) + pool.get("opened", 0)
    notes += [f"{pool['reused'] / asked:.0%} reused, {pool['idle']:,} idle"] if asked else []
    return [
        Text(clean(cluster["name"]), "bold"),
        Text(said, style),
        Text("latency", "bright_black"),
        Text(f"{sum(each['in_flight'] for each in backends):,} in flight"),
        Text("failures", "bright_black"),
        Text(", ".join(notes), "bright_black"),
    ]


def _backend(backend: dict[str, Any]) -> list[Text]:
    said, style = _condition(backend)
    return [
        Text(f"  {clean(backend['address'])}"),
        Text(said, style),
        Text(quick(backend.get("latency_seconds"))),
        Text(f"{backend['in_flight']:,}"),
        Text(f"{backend['failures']:,}"),
        Text(clean(backend.get("why") or ""), "yellow"),
    ]
