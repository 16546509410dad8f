"""From samples to lines, from lines to a table that is plain text and reStructuredText at once."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import proxykit
import twisted
from benchmarks import programs
from benchmarks.measure import Sample, Samples, Spread, ratios
from benchmarks.row import BASE, OURS, Row

HEADS = ("work", "with", "proxy", "CPU", "ratio", "rate", "goal")
MEASURE = """\
CPU is the proxy's own, in microseconds per unit of work (row ``memory``: KiB for each connection;
row ``clients``: sockets), as the median of {rounds} round{s} of {seconds} s. The ratio is that of
one round to HAProxy in the same round (rows ``held`` and ``backends``: to the same proxy with the
fewest), as the median, and the least and the most. Rows from ``get`` on are HTTP/1.1 at L7, those
before it are L4; in them ``twisted.web`` closes each connection after one request, on both sides.
In rows ``sni-short`` and ``sni-bulk`` connections begin with the ClientHello that a program has
sent, and go on without TLS. Row ``hello`` is proxykit's parser alone, in the process of the load.
Rows from ``tls-get`` on speak TLS 1.3, and are L4 but for ``tls-get-http``.
Each proxy has one process; the slow ones have a third of the time. Everything is on loopback of one
machine, so rates are those of the machine with load and origin on it, and say less than the CPU
does."""


@dataclass(frozen=True)
class Line:
    """One line of the table: what one peer did in one variant of one row."""

    row: str
    variant: str
    peer: str
    unit: str
    measure: str
    cost: Spread
    ratio: Spread | None
    rate: Spread | None
    remains: Spread | None
    goal: float | None
    stretch: float | None
    met: bool | None
    met_stretch: bool | None


def lines(row: Row, samples: Samples) -> list[Line]:
    """The lines of one row: by variant, and by peer in the order of ``samples``."""
    variants = dict.fromkeys(variant for variant, _ in samples)
    names = dict.fromkeys(peer for _, peer in samples)
    keys = [(variant, peer) for variant in variants for peer in names]
    made = (_line(row, key, samples) for key in keys if key in samples)
    return [line for line in made if line is not None]


def _line(row: Row, key: tuple[str, str], samples: Samples) -> Line | None:
    variant, peer = key
    there = [each for each in samples[key] if each is not None]
    cost = Spread.of(each.cost for each in there)
    if cost is None:
        return None
    base = row.base(variant, peer)
    ratio = Spread.of(ratios(samples[key], samples[base])) if base in samples else None
    judged = cost if row.absolute else ratio
    goal = row.goal if peer == OURS and base != key else None
    stretch = row.stretch if goal is not None else None
    return Line(
        row=row.name,
        variant=variant,
        peer=peer,
        unit=row.unit,
        measure=row.measure,
        cost=cost,
        ratio=ratio,
        rate=Spread.of(each.rate for each in there if each.rate),
        remains=Spread.of(each.remains for each in there if each.remains is not None),
        goal=goal,
        stretch=stretch,
        met=None if goal is None or judged is None else judged.median <= goal,
        met_stretch=None if stretch is None or judged is None else judged.median <= stretch,
    )


def short(row: Row, variant: str, sample: Sample) -> str:
    """One run in a few words."""
    cost = _cost(sample.cost, row)
    return f"{variant}: {cost}" if variant else cost


def cells(line: Line) -> tuple[str, ...]:
    """What the table has for it."""
    return (
        line.row,
        line.variant or "-",
        line.peer,
        _cost(line.cost.median, line),
        _ratio(line.ratio),
        _rate(line),
        _goal(line),
    )


def _cost(value: float, of: Row | Line) -> str:
    per = f"/{of.unit}" if of.unit else ""
    return f"{_number(value)} {of.measure}{per}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(ratio: Spread | None) -> str:
    if ratio is None:
        return "-"
    if ratio.least == ratio.median == ratio.most:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} ({ratio.least:.2f}-{ratio.most:.2f})"


def _rate(line: Line) -> str:
    if line.remains is not None:
        return f"{line.remains.median:.2f} KiB stay"
    if line.rate is None:
        return "-"
    if line.unit == "MB":
        return f"{line.rate.median / 1000:.2f} GB/s"
    return f"{line.rate.median:,.0f}/s"


def _goal(line: Line) -> str:
    if line.goal is None:
        return "-"
    text = f"{line.goal:g} {_verdict(line.met)}"
    if line.stretch is not None:
        text += f", {line.stretch:g} {_verdict(line.met_stretch)}"
    return text


def _verdict(met: bool | None) -> str:
    return "unknown" if met is None else "met" if met else "missed"


def table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A simple table of reStructuredText."""
    widths = [max(len(row[column]) for row in (heads, *body)) for column in range(len(heads))]
    rule = "  ".join("=" * width for width in widths)

    def line(row: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([rule, line(heads), rule, *map(line, body), rule, ""])


@dataclass(frozen=True)
class Report:
    """Everything that one call has found out."""

    lines: Sequence[Line]
    rounds: int
    seconds: int
    notes: Sequence[str]
    machine: dict[str, str]

    def text(self) -> str:
        """The table and what is to be known of it; for eyes, and for docs to include."""
        facts = "\n".join(f":{name}: {value}" for name, value in self.machine.items())
        plural = "s" if self.rounds > 1 else ""
        measure = MEASURE.format(rounds=self.rounds, s=plural, seconds=self.seconds)
        notes = [f"- {each}" for each in self.notes]
        parts = [facts, measure, "\n".join(notes)]
        body = table(HEADS, [cells(each) for each in self.lines])
        return "\n\n".join([*filter(None, parts), body])

    def data(self) -> dict[str, Any]:
        """The same, for programs."""
        return {
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "base": BASE,
            "notes": list(self.notes),
            "lines": [asdict(each) for each in self.lines],
        }

    def write(self, directory: Path, now: datetime, *, latest: bool) -> list[Path]:
        """Write both; gives where. ``latest`` is for what the docs may show."""
        directory.mkdir(exist_ok=True)
        stem = now.strftime("%Y-%m-%d-%H%M")
        texts = {
            f"{stem}.rst": self.text(),
            f"{stem}.json": json.dumps(self.data(), indent=1) + "\n",
        }
        if latest:
            texts["latest.rst"] = self.text()
        for name, text in texts.items():
            (directory / name).write_text(text)
        return [directory / name for name in texts]


def without_paths(text: str) -> str:
    """The same with only the last part of each absolute path: the rest is of this machine."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:\]]+/)+", "", text)


def machine(now: datetime) -> dict[str, str]:
    """What this ran on, and which versions: no paths, no names of hosts."""
    return {
        "date": now.strftime("%Y-%m-%d %H:%M"),
        "CPU": f"{_cpu()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "proxykit": " ".join(filter(None, (proxykit.__version__, _commit()))),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Twisted": twisted.__version__,
        "HAProxy": _version("haproxy", r"version (\S+)"),
        "nginx": _version("nginx", r"nginx/(\S+)"),
        "aiohttp": _aiohttp(),
        "wrk": _version("wrk", r"wrk (\S+)"),
    }


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _commit() -> str:
    """The commit, with a plus where the tree differs from it; "" where this is no clone."""
    argv = ["git", "-C", str(programs.TREE), "describe", "--always", "--dirty=+", "--exclude=*"]
    return _said(argv, r"(\S+)") or ""


def _version(program: str, pattern: str) -> str:
    path = programs.find(program)
    return (path and _said([path, "-v"], pattern)) or "none"


def _aiohttp() -> str:
    try:
        return metadata.version("aiohttp")
    except metadata.PackageNotFoundError:
        return "none"


def _said(argv: Sequence[str], pattern: str) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        sys.stderr.write(f"benchmarks: {argv[0]} does not run\n")
        return None
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else None
