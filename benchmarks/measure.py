"""The measure: CPU time and memory of a process, sockets; rounds; medians and ratios.

CPU time moves less than throughput when a machine is shared, and a ratio of two CPU times taken one
after the other moves less still. So a figure is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
#: Nanoseconds in the unit of utime and stime.
TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
#: States of a socket in /proc/net/tcp.
ESTABLISHED = "01"
TIME_WAIT = "06"


class RefusedError(Exception):
    """A run that may not be counted, and why: an error in it, or a process that ended."""


@dataclass(frozen=True)
class Sample:
    """One run.

    :ivar cost: microseconds of CPU per unit of work; KiB for one connection in row ``memory``;
        sockets in row ``clients``.
    :ivar rate: units of work per second of real time; 0 where that says nothing.
    :ivar remains: KiB for each connection that are still there when all have gone (``memory``).
    """

    cost: float
    rate: float = 0.0
    remains: float | None = None


@dataclass(frozen=True)
class Spread:
    """The median of some runs, and how far they lie apart."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where there is no value."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known)) if known else None


def ratios(values: Sequence[Sample | None], base: Sequence[Sample | None]) -> list[float]:
    """Each cost to that of the same round; a round that lacks one of the two has none."""
    pairs = zip(values, base, strict=True)
    return [ours.cost / theirs.cost for ours, theirs in pairs if ours and theirs and theirs.cost]


def rotated(names: Sequence[str], round_number: int) -> list[str]:
    """The order of a round: another one is first in each."""
    start = round_number % len(names) if names else 0
    return [*names[start:], *names[:start]]


def parse_schedstat(text: str) -> int:
    """Nanoseconds on the CPU, from /proc/PID/task/TID/schedstat."""
    return int(text.split()[0])


def parse_stat(text: str) -> int:
    """Nanoseconds on the CPU, utime and stime of /proc/PID/stat; the name may hold anything."""
    after_name = text.rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) * TICK


def parse_rss(text: str) -> int:
    """Resident bytes, from /proc/PID/smaps_rollup."""
    for line in text.splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no Rss in it")


def parse_busy(before: str, after: str) -> float:
    """The share of the machine's CPU time that was used between two readings of /proc/stat."""
    old, new = (
        [int(each) for each in text.split("\n", 1)[0].split()[1:9]] for text in (before, after)
    )
    spent = [late - early for early, late in zip(old, new, strict=True)]
    idle = spent[3] + spent[4]
    return 1 - idle / sum(spent) if sum(spent) else 0.0


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for each in found:
        for children in (PROC / str(each) / "task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def cpu_ns(pid: int) -> int:
    """Nanoseconds of CPU that a process and its descendants have used.

    schedstat knows nanoseconds but not the threads that have ended; stat knows those, in ticks.

    :raises RefusedError: it has ended.
    """
    try:
        return sum(_one(each) for each in family(pid))
    except (FileNotFoundError, ProcessLookupError):
        raise RefusedError("the proxy ended while it was measured") from None


def _one(pid: int) -> int:
    tasks = (PROC / str(pid) / "task").glob("*/schedstat")
    exact = sum(parse_schedstat(each.read_text()) for each in tasks)
    return exact or parse_stat((PROC / str(pid) / "stat").read_text())


def rss(pid: int) -> int:
    """Resident bytes of a process and its descendants.

    :raises RefusedError: it has ended.
    """
    try:
        rollups = (PROC / str(each) / "smaps_rollup" for each in family(pid))
        return sum(parse_rss(each.read_text()) for each in rollups)
    except (FileNotFoundError, ProcessLookupError):
        raise RefusedError("the proxy ended while it was measured") from None


def parse_sockets(text: str, port: int) -> tuple[int, int]:
    """What /proc/net/tcp says of a server's port: connected to it, and those that have ended.

    Ended are those of the last minute: TIME_WAIT, on whichever side.
    """
    to_it = ended = 0
    for line in text.splitlines()[1:]:
        _, local, remote, state = line.split(maxsplit=4)[:4]
        theirs = int(remote.rpartition(":")[2], 16) == port
        to_it += theirs and state == ESTABLISHED
        if state == TIME_WAIT:
            ended += theirs or int(local.rpartition(":")[2], 16) == port
    return to_it, ended


def sockets(port: int) -> tuple[int, int]:
    """The same of this machine, now."""
    return parse_sockets((PROC / "net" / "tcp").read_text(), port)


def busy(seconds: float = 1.0) -> float:
    """The share of the machine's CPU time that others use now."""
    before = (PROC / "stat").read_text()
    time.sleep(seconds)
    return parse_busy(before, (PROC / "stat").read_text())


#: What was measured in one row: (variant, peer) -> one entry a round, None where it was refused.
Samples = Mapping[tuple[str, str], Sequence[Sample | None]]
