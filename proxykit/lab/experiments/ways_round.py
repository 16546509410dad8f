"""What makes the limit between a proxy and its backends larger, and by how much.

There are as many ports from each source address to each address and port of a backend, so they
multiply. Each way is tried with more clients than it can have, which stay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from proxykit.lab.bench import Bench
from proxykit.lab.experiment import Experiment
from proxykit.lab.namespaces import BACKENDS, FRONT, SOURCES
from proxykit.lab.progress import Progress
from proxykit.lab.report import Plot, Result, Table, counted
from proxykit.lab.talks import SERVED

#: So many clients come more than there are ports, as a share.
MORE = 0.1
#: Connections that L7 may have to the backend.
UPSTREAM = 20

_ONE = f"{BACKENDS[0]}:443"
_NEXT_PORT = f"{BACKENDS[0]}:444"
_NEXT_HOST = f"{BACKENDS[1]}:443"
_BOTH = f"{BACKENDS[1]}:444"


@dataclass(frozen=True)
class Way:
    """One way round.

    :ivar clusters: the backends of each.
    :ivar hosts: for SNI, the name that leads to each of them.
    :ivar most: ``max_connections`` of each backend.
    """

    name: str
    sources: int = 1
    clusters: Sequence[Sequence[str]] = ((_ONE,),)
    mode: str = "tcp"
    hosts: Sequence[str] = field(default=())
    most: int = 100000

    @property
    def destinations(self) -> int:
        """Addresses and ports that connections go to."""
        return sum(map(len, self.clusters))

    def toml(self) -> str:
        """What its file says."""
        parts = [f"[sources]\nheadroom = 0\naddresses = {json.dumps(SOURCES[: self.sources])}"]
        parts += (
            f"[clusters.c{number}]\nbackends = {json.dumps(backends)}\n"
            f"max_connections = {self.most}\nqueue = {100000 if self.mode == 'http' else 0}"
            for number, backends in enumerate(self.clusters)
        )
        parts.append('[[listeners]]\nlisten = "tcp:8000"\nmax_connections = 100000')
        parts.append(f'mode = "{self.mode}"')
        parts += (
            f'[[listeners.routes]]\nhost = "{host}"\ncluster = "c{number}"'
            for number, host in enumerate(self.hosts)
        )
        if not self.hosts:
            parts.append('cluster = "c0"')
        return "\n".join(parts)


WAYS = (
    Way("one source address, one backend"),
    Way("two source addresses", sources=2),
    Way("two ports of the backend", clusters=[[_ONE, _NEXT_PORT]]),
    Way("two backends", clusters=[[_ONE, _NEXT_HOST]]),
    Way(
        "two names (SNI), a backend for each",
        clusters=[[_ONE], [_NEXT_HOST]],
        mode="sni",
        hosts=["a.example", "b.example"],
    ),
    Way(
        "two addresses, two backends, two ports of each",
        sources=2,
        clusters=[[_ONE, _NEXT_PORT, _NEXT_HOST, _BOTH]],
    ),
    Way(f"L7, one address, one backend, {UPSTREAM} connections", mode="http", most=UPSTREAM),
)


def run(bench: Bench, progress: Progress) -> Result:
    """See above."""
    rows = []
    most = max(way.sources * way.destinations for way in WAYS) * bench.ports
    bench.needs(round(2 * most * (1 + MORE)))
    for way in WAYS:
        l7 = way.mode == "http"
        ports = way.sources * way.destinations * bench.ports
        count = most if l7 else round(ports * (1 + MORE))
        progress.phase(way.name, of=count)
        served, upstream = _try(bench, way, count)
        product = f"{way.sources} x {way.destinations} x {bench.ports:,} = {ports:,}"
        rows.append((way.name, product, count, served, upstream))
    return Result(
        answer=(
            "Source ports multiply: source addresses times addresses and ports of backends. Two of"
            f" any gave room for {min(row[3] for row in rows[1:-2]):,} clients where one gave it"
            f" for {rows[0][3]:,}, two of each for {rows[-2][3]:,}. L7 served {rows[-1][3]:,} with"
            f" none of that, over {counted(rows[-1][4], 'connection')}."
        ),
        tables=[
            Table(
                "More clients than there are ports",
                ("way", "sources x destinations x ports", "clients that came", "clients served",
                 "backend connections"),
                rows,
            )
        ],
        plots=[
            Plot.bars(
                f"Clients served at once, with {bench.ports:,} source ports",
                "clients",
                [(name, served) for name, _, _, served, _ in rows],
            )
        ],
    )  # fmt: skip


def _try(bench: Bench, way: Way, count: int) -> tuple[int, int]:
    """How many of so many clients are served, over how many connections."""
    talk, says = ("hello", "any") if way.hosts else ("http", "http")
    bench.origin("backend", _ONE, _NEXT_PORT, _NEXT_HOST, _BOTH, talk=says)
    bench.proxy(way.toml())
    told = bench.clients().open(count, to=f"{FRONT}:8000", talk=talk, names=way.hosts or [""])
    upstream = bench.sockets().states["ESTAB"]
    bench.clear()
    return told["outcomes"].get(SERVED, 0), upstream


EXPERIMENT = Experiment(
    "ways-round", "What makes room for more clients, and for how many?", 20, run, ports=500
)
