"""How many clients go through one proxy to one backend, at L4 and at L7.

The same clients come twice, from one source address to one backend, with a thousand source ports
and no headroom. At L4 each needs a port of its own for as long as it stays; at L7 they share.
"""

from __future__ import annotations

from typing import Any

from proxykit.lab.bench import Bench
from proxykit.lab.experiment import Experiment, everybody
from proxykit.lab.namespaces import BACKENDS, FRONT
from proxykit.lab.progress import Progress
from proxykit.lab.report import Plot, Result, Series, Table, counted
from proxykit.lab.talks import SERVED

CLIENTS = 9500
#: Connections that L7 may have to the backend.
UPSTREAM = 20
#: They come in so many steps, for the plot.
STEPS = 19
_BACKEND = f"{BACKENDS[0]}:80"

_L4 = everybody(_BACKEND)
_L7 = f"""
[clusters.web]
backends = ["{_BACKEND}"]
max_connections = {UPSTREAM}
queue = 100000
queue_timeout = 60
[[listeners]]
listen = "tcp:8000"
mode = "http"
cluster = "web"
max_connections = 100000
"""


def run(bench: Bench, progress: Progress) -> Result:
    """See above."""
    # A client at L4 takes two descriptors of the proxy's, where it is served.
    bench.needs(3 * bench.ports)
    count = min(bench.scaled(CLIENTS), bench.descriptors - bench.ports)
    l4 = _come(bench, progress, "L4", _L4, count)
    l7 = _come(bench, progress, "L7", _L7, count)
    return Result(
        answer=(
            f"With {bench.ports:,} source ports, L4 served {l4['served']:,} of {count:,} clients"
            f" and refused the others at once, for each client has a backend connection of its own."
            f" L7 served {l7['served']:,} of {count:,}, over"
            f" {counted(l7['upstream'], 'backend connection')}."
        ),
        tables=[
            Table(
                f"{count:,} clients at once, one source address, one backend",
                ("through", "clients served", "clients refused", "refused after at most, ms",
                 "backend connections", "answered when all ask at once"),
                [
                    (name, each["served"], each["refused"], each["wait"], each["upstream"],
                     each["answered"])
                    for name, each in (("L4 (tcp)", l4), ("L7 (http)", l7))
                ],
                notes=[f"The proxy's log at L4: {l4['said']}"],
            )
        ],
        plots=[
            Plot(
                "How many clients are served",
                "clients that have come",
                "clients served",
                [Series("L7 (http)", l7["answers"]), Series("L4 (tcp)", l4["answers"])],
                marks=[("source ports", bench.ports)],
            ),
            Plot(
                "What that takes",
                "clients that have come",
                "connections to the backend",
                [Series("L7 (http)", l7["points"]), Series("L4 (tcp)", l4["points"])],
                marks=[("source ports", bench.ports)],
            ),
        ],
    )  # fmt: skip


def _come(bench: Bench, progress: Progress, name: str, toml: str, count: int) -> dict[str, Any]:
    """All clients come, step by step, and stay; then each asks once more, all at once."""
    progress.phase(f"{name}: {count:,} clients come", of=count)
    bench.origin("backend", _BACKEND)
    proxy, clients = bench.proxy(toml), bench.clients()
    served, refused, wait = 0, 0, 0.0
    points, answers = [(0, 0)], [(0, 0)]
    for here in sorted({UPSTREAM, bench.ports, *range(0, count, -(-count // STEPS)), count} - {0}):
        told = clients.open(here - points[-1][0], to=f"{FRONT}:8000")
        served += told["outcomes"].get(SERVED, 0)
        refused += told["outcomes"].get("ECONNRESET", 0)
        wait = max(wait, told["seconds"].get("ECONNRESET", [0.0])[-1])
        points.append((here, bench.sockets(_BACKEND).states["ESTAB"]))
        answers.append((here, served))
        progress.phase(f"{name}: {count:,} clients come", of=count)
        progress.at(here)
    progress.phase(f"{name}: all of them ask at once")
    answered = clients.ask()["outcomes"].get(SERVED, 0)
    points.append((count, bench.sockets(_BACKEND).states["ESTAB"]))
    found = {
        "served": served,
        "refused": refused,
        "wait": wait * 1000 if refused else None,
        "points": points,
        "answers": answers,
        "upstream": max(y for _, y in points),
        "answered": answered,
        "said": proxy.logged("no source port is left"),
    }
    bench.clear()
    return found


EXPERIMENT = Experiment(
    "limit", "How many clients can one proxy serve towards one backend?", 15, run
)
