"""The ``proxykit`` command: what one does around the service, which ``twistd proxykit`` runs."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import evolve

from proxykit import __version__, config, tomllines
from proxykit.core.plan import make_plan
from proxykit.errors import ConfigError
from proxykit.model import Config
from proxykit.net.facts import facts
from proxykit.strict import dotted

#: What a shell reports of a program that SIGPIPE has ended.
_BROKEN_PIPE = 128 + 13

#: In place of the admin's token.
_HIDDEN = "(hidden)"

_EXAMPLES = """\
examples:
  proxykit check proxykit.toml            is this file right? one line for each mistake
  proxykit check proxykit.toml --print    ... and what is in force, defaults included
  proxykit plan proxykit.toml             how much can it hold, and what runs out first?
  proxykit lab                            which questions are there to be tried?
  proxykit lab limit --plot limit.svg     try one, and draw what was found
  proxykit top                            what is it doing? live, as long as you look

the service itself:
  twistd -n proxykit --config proxykit.toml
  twistd -n proxykit --help
"""


_TOP = (
    "Show the running service, once a second: its port budgets and when they run out, the scarcest"
    " first; its listeners; its clusters and their backends. The admin listener is asked. Ctrl-C"
    " ends it. The exit status is 0, or 1 if it cannot be shown."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    :param argv: the arguments without the program's name; default: those of this process.
    :returns: the exit status: 0; 1, the file has mistakes; 2, the arguments have.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name, or a locale, that cannot be written so is no reason for a traceback.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        status = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return status


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # argparse has printed what there is to say
        return int(end.code or 0)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proxykit",
        description="Tools around the proxykit service.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"proxykit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="read a configuration file and report every mistake in it",
        description="Read a configuration file, look up the names in it, and report every"
        " mistake, one line each, on standard error. Nothing is started. The exit status is 0,"
        " or 1 if there is a mistake.",
    )
    check.add_argument("file", metavar="FILE", help="such as proxykit.toml")
    check.add_argument(
        "--print",
        action="store_true",
        help="print the whole configuration in force, defaults included, as TOML",
    )
    check.set_defaults(run=_check)
    plan = commands.add_parser(
        "plan",
        help="reckon how many connections each listener can hold, and what runs out first",
        description="Read a configuration file and reckon, from it and from this machine, for each"
        " listener: how many connections at once, how many new ones a second, what runs out first"
        " and what to do about it; and warn of known traps. Nothing is started, and nothing is"
        " measured. The exit status is 0, or 1 if there is a mistake in the file.",
    )
    plan.add_argument("file", metavar="FILE", help="such as proxykit.toml")
    plan.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    plan.add_argument(
        "--stock-reactor",
        action="store_true",
        help="as if the service ran on a reactor of Twisted's own (twistd --reactor=epoll)",
    )
    plan.set_defaults(run=_plan)
    lab = commands.add_parser(
        "lab",
        help="answer a question by an experiment: the real service in a network of its own",
        description="Run an experiment: the real service and real sockets, in network namespaces"
        " of its own (as root, or where users may make them), and print what was found. Without"
        " NAME, list the experiments. Nothing is left behind. The exit status is 0, or 1 if it"
        " cannot be done here.",
    )
    lab.add_argument("name", metavar="NAME", nargs="?", help='an experiment, or "all"')
    lab.add_argument(
        "--plot", metavar="FILE.svg", type=Path, help="draw what was found (needs matplotlib)"
    )
    lab.add_argument("--json", action="store_true", help="print all figures, as JSON")
    lab.add_argument("--quick", action="store_true", help="a tenth of the ports and of the clients")
    lab.add_argument(
        "--docs",
        metavar="DIRECTORY",
        type=Path,
        help="write NAME.rst, NAME.svg and NAME.json there (needs matplotlib)",
    )
    lab.set_defaults(run=_lab)
    top_help = "show the running service, live in the terminal"
    _add_top(commands.add_parser("top", help=top_help, description=_TOP))
    return parser


def _add_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--admin",
        metavar="URL",
        default="http://127.0.0.1:9901",
        help="the admin listener: http://HOST:PORT or unix:/PATH (default: %(default)s)",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="the file with its token, where it wants one (default: $PROXYKIT_TOKEN)",
    )
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_seconds,
        default=1.0,
        help="draw at most so often (default: %(default)s; the service tells once a second)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print once, and end; also where the output is no terminal",
    )
    parser.set_defaults(run=_top)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (seconds := float(text)) <= 3600:
            return seconds
    raise argparse.ArgumentTypeError(f"expected seconds, above 0 and up to 3600, not {text!r}")


def _check(arguments: argparse.Namespace) -> int:
    try:
        read = config.load(arguments.file, environ=os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.print:
        # What is printed gets pasted into tickets. It is too short for a token, so that nobody
        # runs a service with it.
        shown = evolve(read, admin_token=_HIDDEN) if read.admin_token else read
        print(config.as_toml(shown), end="")
    else:
        print(f"{arguments.file}: ok: {_summary(read)}")
    return 0


def _lab(arguments: argparse.Namespace) -> int:
    # Experiments need much that the other commands do not.
    from proxykit.lab import command

    return command.run(arguments)


def _top(arguments: argparse.Namespace) -> int:
    # What draws takes longer to import than checking a file takes.
    from proxykit import top

    return top.run(arguments)


def _plan(arguments: argparse.Namespace) -> int:
    # What draws tables takes longer to import than checking a file takes.
    from proxykit.plan_report import Report

    file = arguments.file
    try:
        read = config.load(file, environ=os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    lines = tomllines.Lines()
    with suppress(OSError, ValueError):  # It may be gone, or another one, by now.
        lines = tomllines.lines(Path(file).read_text(encoding="utf-8"))
    late = not arguments.stock_reactor
    if read.sources.port_range is not None and not late:
        key = ("sources", "port_range")
        why = "needs the proxykit reactor"
        print(f"{file}:{lines.find(key)}: {dotted(key)}: {why}", file=sys.stderr)
        return 1
    report = Report(make_plan(read, facts(read, late)), file, lines)
    if arguments.json:
        print(report.as_json())
    else:
        report.show(sys.stdout)
    return 0


def _summary(read: Config) -> str:
    backends = sum(len(cluster.backends) for cluster in read.clusters)
    by = sorted({cluster.discover.by for cluster in read.clusters if cluster.discover})
    found = f", and those found by {' and '.join(by)}" if by else ""
    counted = ", ".join(
        f"{count} {name}{'' if count == 1 else 's'}"
        for name, count in (
            ("listener", len(read.listeners)),
            ("cluster", len(read.clusters)),
            ("backend", backends),
        )
    )
    return counted + found
