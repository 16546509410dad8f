"""``proxykit lab``: lists the experiments, runs one or all, and tells what was found."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from proxykit.lab import plot, report
from proxykit.lab.bench import Bench
from proxykit.lab.experiment import Experiment
from proxykit.lab.experiments import EXPERIMENTS
from proxykit.lab.programs import LabError
from proxykit.lab.progress import progress
from proxykit.lab.report import Result

#: The share of a quick run.
QUICK = 0.1
ALL = "all"
#: What a shell reports of a program that a signal has ended.
_BY_SIGNAL = 128


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for.

    :returns: the exit status: 0; 1: it cannot be done here, or has failed; 2: the arguments are
        wrong; 130: Ctrl-C.
    """
    if arguments.name is None:
        _list()
        return 0
    if arguments.name not in (*EXPERIMENTS, ALL):
        return _say(f"there is no experiment {arguments.name!r}; there are {_names()}", 2)
    if arguments.name == ALL and arguments.plot:
        return _say("--plot is for one experiment; --docs DIRECTORY draws them all", 2)
    wanted = [each for name, each in EXPERIMENTS.items() if arguments.name in (name, ALL)]
    try:
        with _ending_by_signals():
            _run_all(wanted, arguments)
    except LabError as error:
        return _say(str(error), 1)
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        return _say("interrupted; nothing is left behind", _BY_SIGNAL + number)
    return 0


def _list() -> None:
    widest = max(map(len, EXPERIMENTS))
    for each in EXPERIMENTS.values():
        sys.stdout.write(f"{each.name.ljust(widest)}  {each.question} ({each.seconds} s)\n")
    sys.stdout.write(f"{ALL.ljust(widest)}  all of them, one after the other\n")


def _names() -> str:
    return ", ".join((*EXPERIMENTS, ALL))


def _say(text: str, status: int) -> int:
    sys.stderr.write(f"proxykit lab: {text}\n")
    return status


def _run_all(wanted: list[Experiment], arguments: argparse.Namespace) -> None:
    if arguments.plot or arguments.docs:
        plot.check()
    if arguments.plot:
        _writable(arguments.plot)
    if arguments.docs:
        arguments.docs.mkdir(parents=True, exist_ok=True)
    found = []
    for each in wanted:
        result = run_one(each, QUICK if arguments.quick else 1.0)
        found.append(result)
        if not arguments.json:
            if len(found) > 1:
                sys.stdout.write("\n\n")
            report.show(result)
        if arguments.plot:
            plot.draw(result, arguments.plot)
        if arguments.docs:
            _document(result, arguments.docs)
    if arguments.json:
        sys.stdout.write(report.as_json(found))


def run_one(experiment: Experiment, scale: float = 1.0) -> Result:
    """Run one, on a bench of its own, and remove all that was made.

    :param scale: how much of its figures.
    :raises LabError: it cannot be done here, has failed, or took too long.
    """
    started = time.monotonic()
    with (
        progress(experiment.name) as shown,
        Bench(experiment.ports, scale, shown.told) as bench,
        _within(experiment.limit),
    ):
        result = experiment.run(bench, shown)
        setting = {
            "source ports": bench.ports,
            "Linux": platform.release().partition("-")[0],
            "Python": platform.python_version(),
            "CPUs": os.cpu_count() or 0,
        }
    seconds = round(time.monotonic() - started, 1)
    return replace(
        result,
        name=experiment.name,
        question=experiment.question,
        seconds=seconds,
        setting=setting,
    )


def _writable(path: Path) -> None:
    """See that a file can be made there, before minutes are spent on what is to be in it."""
    there = path.exists()
    try:
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None


def _document(result: Result, directory: Path) -> None:
    picture = directory / f"{result.name}.svg"
    if result.plots:
        plot.draw(result, picture)
    text = report.as_rst(result, picture.name if result.plots else "")
    (directory / f"{result.name}.rst").write_text(text, encoding="utf-8")
    (directory / f"{result.name}.json").write_text(report.as_json([result]), encoding="utf-8")


Handler = Callable[[int, FrameType | None], None]


@contextmanager
def _handling(handler: Handler, *signals: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)


@contextmanager
def _ending_by_signals() -> Iterator[None]:
    """Whoever ends the lab has it tidy up first, and has to say so but once."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    with _handling(interrupt, *signals):
        yield


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Give up after so many."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise LabError(f"given up after {seconds:.0f} s: this machine is too slow, or too busy")

    with _handling(too_long, signal.SIGALRM):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
