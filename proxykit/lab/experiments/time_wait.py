"""How many new connections a second there can be, and who is to close them.

Whoever closes a connection first keeps its port for another minute (TIME_WAIT). Short connections
come at a steady rate, in several ways at the same time, each to a backend of its own, so that each
has all ports; second by second the kernel is asked how many of these are gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from proxykit.lab.bench import Bench, Clients
from proxykit.lab.experiment import Experiment
from proxykit.lab.namespaces import BACKENDS, FRONT
from proxykit.lab.progress import Progress
from proxykit.lab.report import Plot, Result, Series, Table, counted
from proxykit.lab.talks import SERVED

#: Seconds that a port rests.
TIME_WAIT = 60
#: New connections a second, in each way: three times as many as last.
RATE = 50
SECONDS, QUICK_SECONDS = 85, 25
#: What Linux has by default.
PORTS = 28232


@dataclass
class Way:
    """One way to have short connections.

    :ivar mode: of the listener; ``cluster``: what else its cluster says.
    :ivar last: who waits for the other's end: see ``clients.Crowd.churn``.
    :ivar points: how many ports were gone, second by second.
    :ivar resting: how many of these were in TIME_WAIT, at the most.
    """

    name: str
    mode: str
    cluster: str = ""
    last: str = "client"
    points: list[tuple[float, float]] = field(default_factory=list)
    resting: int = 0


def ways() -> list[Way]:
    """All of them."""
    return [
        Way("L4, the client closes", "tcp"),
        Way("L4, the backend closes", "tcp", last="server"),
        Way('L4, the client closes, close = "reset"', "tcp", 'close = "reset"'),
        Way('L7, reuse = "never"', "http", 'pool.reuse = "never"'),
        Way("L7, with its pool", "http"),
    ]


def run(bench: Bench, progress: Progress) -> Result:
    """See above."""
    everything, seconds = ways(), SECONDS if bench.scale == 1 else QUICK_SECONDS
    rate = max(10, bench.scaled(RATE))
    for number, way in enumerate(everything):
        bench.origin(way.name, _backend(number), close=way.last == "server")
    toml = "".join(_toml(number, way) for number, way in enumerate(everything))
    proxy = bench.proxy(f"[sources]\nheadroom = 0\n{toml}")
    progress.phase(f"{rate} new connections a second in {len(everything)} ways", of=seconds)
    crowds: list[Clients] = []
    for number, way in enumerate(everything):
        crowds.append(bench.clients())
        to = f"{FRONT}:{8000 + number}"
        crowds[-1].begin("churn", rate=rate, seconds=seconds, to=to, last=way.last)

    def look(now: float) -> None:
        sockets = bench.sockets()
        for number, way in enumerate(everything):
            states = sockets.to(_backend(number)).states
            way.points.append((now, states.total()))
            way.resting = max(way.resting, states["TIME-WAIT"])

    told = bench.watch(crowds, 1.0, look)
    clusters = proxy.api("/api/clusters")["clusters"]
    rows = [_row(*each) for each in zip(everything, told, clusters, strict=True)]
    lasting = bench.ports / TIME_WAIT
    return Result(
        answer=(
            f"Who closes first keeps the port for another {TIME_WAIT} s. Where that was the proxy,"
            f" {bench.ports:,} ports lasted {rows[0][3] or seconds:.0f} s at {rate} new"
            f" connections a second; for good they are {lasting:.1f} a second, and Linux's"
            f" {PORTS:,} are {PORTS // TIME_WAIT}. Through the pool {rows[-1][1]:,} clients were"
            f" served over {counted(sum(rows[-1][4:8]), 'backend connection')}."
        ),
        tables=[
            Table(
                f"{rate} new connections a second for {seconds} s,"
                f" {bench.ports:,} source ports in each way",
                ("through", "served", "refused", "first refused after, s",
                 "backend connections open in the end", "closed first by the proxy",
                 "closed first by the backend", "closed by a reset",
                 "ports in TIME_WAIT at most"),
                rows,
                notes=[
                    'With reuse = "never" the backend is told to close behind its answer, and the'
                    " proxy gives it time to do so first.",
                    f"The proxy's log: {proxy.logged('no source port is left')}",
                ],
            )
        ],
        plots=[
            Plot(
                f"{rate} new connections a second, in each way",
                "seconds",
                "source ports taken (TIME_WAIT and in use)",
                [Series(way.name, way.points) for way in everything],
                marks=[("source ports", bench.ports)],
            )
        ],
    )  # fmt: skip


def _row(way: Way, told: dict[str, Any], cluster: dict[str, Any]) -> tuple[Any, ...]:
    """A line of the table: what the clients tell, what the proxy does, what the kernel has."""
    outcomes = told["outcomes"]
    served = outcomes.pop(SERVED, 0)
    first = min((told["first"][each] for each in outcomes), default=None)
    (backend,) = cluster["backends"]
    by = backend["closed_first"]
    return (
        way.name,
        served,
        sum(outcomes.values()),
        first,
        backend["connections"],
        by["proxy"],
        by["backend"],
        by["reset"],
        way.resting,
    )


def _backend(number: int) -> str:
    return f"{BACKENDS[0]}:{8000 + number}"


def _toml(number: int, way: Way) -> str:
    return f"""
[clusters.way{number}]
backends = ["{_backend(number)}"]
max_connections = 100000
queue = 0
{way.cluster}
[[listeners]]
listen = "tcp:{8000 + number}"
mode = "{way.mode}"
cluster = "way{number}"
"""


EXPERIMENT = Experiment(
    "time-wait", "How many new connections a second are there, and who should close them?", 90, run
)
