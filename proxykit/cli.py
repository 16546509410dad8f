"""The ``proxykit`` command: what one does around the service, which ``twistd proxykit`` runs."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from proxykit import __version__, config
from proxykit.errors import ConfigError
from proxykit.model import Config

#: What a shell reports of a program that SIGPIPE has ended.
_BROKEN_PIPE = 128 + 13

_EXAMPLES = """\
examples:
  proxykit check proxykit.toml            is this file right? one line for each mistake
  proxykit check proxykit.toml --print    ... and what is in force, defaults included

the service itself:
  twistd -n proxykit --config proxykit.toml
  twistd -n proxykit --help
"""


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
    return _check(arguments)


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
    return parser


def _check(arguments: argparse.Namespace) -> int:
    try:
        read = config.load(arguments.file, environ=os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.print:
        print(config.as_toml(read), end="")
    else:
        print(f"{arguments.file}: ok: {_summary(read)}")
    return 0


def _summary(read: Config) -> str:
    backends = sum(len(cluster.backends) for cluster in read.clusters)
    return ", ".join(
        f"{count} {name}{'' if count == 1 else 's'}"
        for name, count in (
            ("listener", len(read.listeners)),
            ("cluster", len(read.clusters)),
            ("backend", backends),
        )
    )
