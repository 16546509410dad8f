"""``python -m benchmarks [ROW ...]``: what a unit of work costs in proxykit and in other proxies.

It starts the proxies in turn on loopback, loads each in the same way, and prints one table; it also
writes it to benchmarks/results/. It says what it does on standard error meanwhile.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from benchmarks import measure, programs, report
from benchmarks.measure import RefusedError, Sample
from benchmarks.row import BASE, QUICK, Peer, Row, Scale
from benchmarks.rows import NAMES, ROWS

#: A share of the CPU used by others from which figures are doubtful.
BUSY = 0.1
#: Descriptors of a proxy, beside two for each held connection: its own, and wrk's connections.
SPARE = 400
RESULTS = programs.TREE / "benchmarks" / "results"


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", metavar="ROW", nargs="*", help="only these; --list names them")
    parser.add_argument("--rounds", type=_positive, help="how often each is run (default: 3)")
    parser.add_argument("--seconds", type=_positive, help="how long each run is (default: 3)")
    parser.add_argument("--peers", help="only these proxies, with commas between")
    parser.add_argument("--quick", action="store_true", help="1 round, 1 s, smaller numbers")
    parser.add_argument("--list", action="store_true", help="name the rows and proxies, and end")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    found = parser.parse_args(argv)
    found.rows = found.rows or list(ROWS)
    found.peers = found.peers.split(",") if found.peers else list(NAMES)
    for names, known in ((found.rows, list(ROWS)), (found.peers, list(NAMES))):
        for name in names:
            if name not in known:
                parser.error(f"{name!r} is none of {', '.join(known)}")
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, not {text!r}")
    return int(text)


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def fitting(scale: Scale, limit: int) -> Scale:
    """What fits in that many descriptors for one process: a held connection takes a proxy two."""
    return scale.fitting((limit - SPARE) // 2)


def run_row(
    row: Row, names: Sequence[str], rounds: int, scale: Scale, notes: list[str]
) -> list[report.Line]:
    """Every peer once in each round, in another order each time; adds to ``notes`` what failed."""
    found: dict[tuple[str, str], dict[int, Sample]] = {}
    for number in range(rounds):
        for name in measure.rotated(names, number):
            where = f"{row.name}, round {number + 1} of {rounds}, {name}"
            for variant, sample in run(row, row.peers[name], scale, where, notes).items():
                found.setdefault((variant, name), {})[number] = sample
    order = sorted(found, key=lambda key: names.index(key[1]))
    return report.lines(row, {key: [found[key].get(n) for n in range(rounds)] for key in order})


def run(row: Row, peer: Peer, scale: Scale, where: str, notes: list[str]) -> dict[str, Sample]:
    """One run, and another one if that is refused; what the second one had is kept."""
    samples: dict[str, Sample] = {}
    for retry in (False, True):
        samples = {}
        try:
            for variant, sample in row.run(peer, peer.scale(scale)):
                samples[variant] = sample
                say(f"{where}: {report.short(row, variant, sample)}")
            return samples
        except (RefusedError, OSError) as error:
            say(f"{where}: refused: {error}")
            if retry:
                after = f" after {list(samples)[-1]}" if samples else ""
                notes.append(f"{where}: refused twice{after}: {report.without_paths(str(error))}")
    return samples


def missing() -> str | None:
    """What nothing can be measured without, and is not there; None: all is."""
    for program, why in (("wrk", "the load"), ("nginx", "the origin")):
        if programs.find(program) is None:
            return f"{program} is not installed, and is {why}: apt-get install {program}"
    return None


def listing() -> str:
    """The rows and the proxies."""
    rows = [
        (row.name, row.what, row.unit or "-", "-" if row.goal is None else f"{row.goal:g}")
        for row in ROWS.values()
    ]
    found = dict.fromkeys(
        (peer.name, "there" if peer.there() else f"install {peer.install}")
        for row in ROWS.values()
        for peer in row.peers.values()
    )
    names = sorted(found, key=lambda each: NAMES.index(each[0]))
    heads = ("row", "what", "cost per", "goal")
    return report.table(heads, rows) + "\n" + report.table(("proxy", "state"), names)


def taking_part(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """For each row the peers of these names that can be started; and notes about the others."""
    there, notes = [], []
    for row in rows:
        asked = [row.peers[name] for name in names if name in row.peers]
        there.append([peer.name for peer in asked if peer.there()])
        notes += [
            f"{each.name} is left out: it needs {each.install}"
            for each in asked
            if not each.there()
        ]
    return there, list(dict.fromkeys(notes))


def measured(chosen: argparse.Namespace) -> report.Report:
    """Everything that was asked for."""
    rows = [ROWS[name] for name in chosen.rows]
    there, notes = taking_part(rows, chosen.peers)
    if not all(BASE in names for names in there):
        notes.append(f"without {BASE} there is no ratio to judge by")
    limit = programs.descriptors()
    full = QUICK if chosen.quick else Scale()
    full = replace(full, seconds=chosen.seconds or full.seconds)
    scale = fitting(full, limit)
    if scale != full:
        notes.append(f"fewer connections are held: ulimit -n is {limit}")
    for note in notes:
        say(note)
    others = [measure.busy()]
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    lines: list[report.Line] = []
    for row, names in zip(rows, there, strict=True):
        lines += run_row(row, names, rounds, scale, notes)
        others.append(measure.busy())
        say(f"{row.name} is done; others use {others[-1]:.0%} of the CPU")
    if max(others) > BUSY:
        notes.append(f"between rows, others used up to {max(others):.0%} of the CPU: doubtful")
    return report.Report(lines, rounds, scale.seconds, notes, report.machine(datetime.now()))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; gives the exit status: 1 where something could not be measured."""
    chosen = options(argv)
    if chosen.list:
        sys.stdout.write(listing())
        return 0
    if (why := missing()) is not None:
        sys.stderr.write(f"benchmarks: {why}\n")
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that children are ended
    try:
        result = measured(chosen)
    except KeyboardInterrupt:
        sys.stderr.write("benchmarks: interrupted; nothing is written\n")
        return 130
    sys.stdout.write(result.text())
    sys.stdout.flush()
    if not chosen.no_write:
        whole = not chosen.quick and chosen.rows == list(ROWS) and chosen.peers == list(NAMES)
        for path in result.write(RESULTS, datetime.now(), latest=whole):
            say(f"written: {path.relative_to(programs.TREE)}")
        if not whole:
            say("latest.rst is for a whole run only")
    return 1 if any("refused" in note for note in result.notes) else 0


if __name__ == "__main__":
    sys.exit(main())
