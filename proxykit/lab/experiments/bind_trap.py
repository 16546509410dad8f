"""What binding to a source address costs, where one does not say "late".

To leave from a certain address a program binds its socket to it before it connects. A plain bind
makes the kernel pick a port at once, for it does not know yet where to; so that port is this one
connection's alone. IP_BIND_ADDRESS_NO_PORT puts that off until the destination is known, and each
destination may have the same port once more.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from proxykit.lab.bench import Bench
from proxykit.lab.experiment import Experiment, everybody
from proxykit.lab.namespaces import BACKENDS, FRONT, SOURCES
from proxykit.lab.progress import Progress
from proxykit.lab.report import Plot, Result, Table
from proxykit.lab.talks import SERVED

_BACKENDS = (f"{BACKENDS[0]}:80", f"{BACKENDS[1]}:80")
#: How sockets are bound.
_PLAIN = {"bind": "plain", "source": SOURCES[0]}
_LATE = {"bind": "late", "source": SOURCES[0]}


@dataclass(frozen=True)
class Found:
    """How many connections somebody has made to each backend, and why there are no more."""

    who: str
    counts: tuple[int, ...]
    why: str

    @property
    def total(self) -> int:
        """To both."""
        return sum(self.counts)


def run(bench: Bench, progress: Progress) -> Result:
    """See above."""
    bench.needs(4 * bench.ports + 10)
    unbound = _program(bench, progress, "any program, not bound", {})
    plain = _program(bench, progress, "any program, bind((address, 0))", _PLAIN)
    late = _program(bench, progress, "any program, IP_BIND_ADDRESS_NO_PORT, bind", _LATE)
    stock = _proxykit(bench, progress, "proxykit on Twisted's epoll reactor", "epoll")
    own = _proxykit(bench, progress, "proxykit on its own reactor", "")
    everybody = (unbound, plain, late, stock, own)
    return Result(
        answer=(
            f"With {bench.ports:,} source ports and two backends, a plain bind gave"
            f" {plain.total:,} connections in all, late binding {late.total:,}."
            f" The first one too many failed with {_short(plain)}, or with {_short(late)}: two"
            " words for the same thing, that no port is left."
        ),
        tables=[
            Table(
                "One source address, two backends: how many connections at once",
                ("who connects", "to the first", "to the second", "in all", "why no more"),
                [(each.who, *each.counts, each.total, each.why) for each in everybody],
                notes=[
                    "On Twisted's own reactors there is no way to bind but the plain one; there"
                    " proxykit counts each port of a source address once, whatever the destination."
                ],
            )
        ],
        plots=[
            Plot.bars(
                "One source address, two backends",
                "connections at once",
                [(each.who, each.total) for each in everybody],
            )
        ],
    )


def _short(found: Found) -> str:
    return found.why.partition(":")[0]


def _program(bench: Bench, progress: Progress, who: str, how: dict[str, str]) -> Found:
    """It connects to one and the other in turn, more often than there are ports."""
    count = 2 * bench.ports + 10
    progress.phase(who, of=count)
    bench.origin("backend", *_BACKENDS)
    told = bench.clients(bench.network.proxy).open(count, to=_BACKENDS, **how)
    name = next((each for each in told["outcomes"] if each != SERVED), "")
    number = getattr(errno, name, 0)
    return _found(bench, who, f"{name}: {os.strerror(number)}" if number else name)


def _proxykit(bench: Bench, progress: Progress, who: str, reactor: str) -> Found:
    """Its clients stay, and are more than there are ports."""
    count = 2 * bench.ports + 10
    progress.phase(who, of=count)
    bench.origin("backend", *_BACKENDS)
    proxy = bench.proxy(everybody(*_BACKENDS), reactor)
    bench.clients().open(count, to=f"{FRONT}:8000")
    said = proxy.logged("no source port is left").partition("refused: ")[2]
    return _found(bench, who, said.partition(" (")[0])


def _found(bench: Bench, who: str, why: str) -> Found:
    sockets = bench.sockets()
    bench.clear()
    return Found(who, tuple(sockets.to(each).states["ESTAB"] for each in _BACKENDS), why)


EXPERIMENT = Experiment(
    "bind-trap", "What does it cost to bind to a source address before connecting?", 15, run
)
