"""What a proxy keeps of its clients, for how long, and what becomes of it when something ends.

At L4 the state is a pair of connections for each client, tied to one backend from the first byte to
the last. At L7 it is the client's connection alone; between two requests no backend knows of it.
Three things are tried with both: to be idle, a backend that is killed, a proxy that is restarted.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from proxykit.lab.bench import Bench, Clients, Proxy
from proxykit.lab.experiment import Experiment
from proxykit.lab.namespaces import BACKENDS, FRONT
from proxykit.lab.programs import Program
from proxykit.lab.progress import Progress
from proxykit.lab.report import Plot, Result, Series, Table
from proxykit.lab.talks import ENDED, SERVED

#: Clients whose cost is measured, after some that are not; and of other trials.
CLIENTS, BEFORE = 900, 100
FEW, QUICK_FEW = 200, 40
#: Connections that L7 may have to each backend.
UPSTREAM = 20
#: Seconds without a byte after which the proxy closes; and for which this is watched.
IDLE, WATCHED, QUICK_WATCHED = 5, 75, 12
#: Seconds that a backend thinks, where something is to happen meanwhile; and when it does.
THINKS, MEANWHILE = 1.0, 0.5


@dataclass(frozen=True)
class Layer:
    """Where a proxy works.

    :ivar mode: of the listener; ``idle``: its key for how long a client may be idle.
    :ivar most: connections to each backend.
    :ivar port: that it listens on; and that of its backends.
    """

    name: str
    mode: str
    idle: str
    most: int
    port: int

    @property
    def front(self) -> str:
        """Where clients go."""
        return f"{FRONT}:{self.port}"

    @property
    def backends(self) -> tuple[str, str]:
        """Where they are led to."""
        return f"{BACKENDS[0]}:{self.port}", f"{BACKENDS[1]}:{self.port}"

    def toml(self, idle: float) -> str:
        """What its file says.

        :param idle: seconds that a client may be idle.
        """
        return f"""
[clusters.{self.mode}]
backends = ["{self.backends[0]}", "{self.backends[1]}"]
max_connections = {self.most}
queue = 100000
queue_timeout = 60
pool.idle_timeout = {idle}
retry_budget = 1
[[listeners]]
listen = "tcp:{self.port}"
mode = "{self.mode}"
cluster = "{self.mode}"
max_connections = 100000
{self.idle} = {idle}
"""


LAYERS = (
    Layer("L4 (tcp)", "tcp", "idle_timeout", 100000, 8004),
    Layer("L7 (http)", "http", "keepalive_timeout", UPSTREAM, 8007),
)


@dataclass(frozen=True)
class Setup:
    """A proxy, two backends, and clients."""

    bench: Bench
    origins: list[Program]
    proxy: Proxy
    clients: Clients

    @classmethod
    def make(cls, bench: Bench, layer: Layer, toml: str, delay: float = 0.0) -> Setup:
        """Start all of it."""
        backends = enumerate(layer.backends)
        origins = [bench.origin(f"number{n}", each, delay=delay) for n, each in backends]
        return cls(bench, origins, bench.proxy(toml), bench.clients())


@dataclass(frozen=True)
class Life:
    """How many ports were taken, as time went on: connected, and in TIME_WAIT."""

    layer: Layer
    connected: list[tuple[float, float]] = field(default_factory=list)
    resting: list[tuple[float, float]] = field(default_factory=list)

    @property
    def closed(self) -> float | None:
        """When no connection was left, in seconds."""
        return next((at for at, count in self.connected if not count), None)

    @property
    def free(self) -> float | None:
        """When no port was taken."""
        both = zip(self.connected, self.resting, strict=True)
        return next((at for (at, count), (_, rest) in both if not count + rest), None)


def run(bench: Bench, progress: Progress) -> Result:
    """See above."""
    bench.needs(2 * (BEFORE + CLIENTS))
    costs = [_cost(bench, progress, layer) for layer in LAYERS]
    events = [
        _event(bench, progress, layer, what, happens)
        for what, happens in (("a backend is killed", _kill), ("the proxy is restarted", _restart))
        for layer in LAYERS
    ]
    watched = WATCHED if bench.scale == 1 else QUICK_WATCHED
    lives = _lives(bench, progress, watched)
    (_, _, l4, *_), (_, _, l7, *_) = costs
    killed4, killed7 = events[:2]
    return Result(
        answer=(
            f"An idle client costs the proxy {l4:.1f} KiB and a source port at L4, {l7:.1f} KiB"
            " and none at L7, for as long as the timeout says that it may be idle. When one of two"
            f" backends was killed, {killed4[3]:,} of {killed4[2]:,} clients lost their connection"
            f" at L4 and {killed7[3]:,} at L7; of the questions that were under way"
            f" {killed4[5]:,} were answered at L4 and {killed7[5]:,} at L7. A restart of the proxy"
            f" cut {events[2][3]:,} and {events[3][3]:,} of {killed4[2]:,}."
        ),
        tables=[
            Table(
                "What idle clients cost the proxy",
                ("through", "clients", "memory of each, KiB", "descriptors of each",
                 "source ports of all"),
                costs,
                notes=["Memory is the process's; the kernel has some for each socket besides."],
            ),
            Table(
                "What becomes of connections and of questions",
                ("what happens", "through", "clients", "connections lost while idle",
                 "next question answered", "question under way answered", "what the others got",
                 "answered on a new connection"),
                events,
                notes=["Under way are GETs on connections that had served before: at L7 such a"
                       " request may be asked again, of another backend (here all of them may, by"
                       " retry_budget = 1; by default one in five). A proxy that is restarted lets"
                       " what is under way come to its end (drain_timeout)."],
            ),
            Table(
                f"How long the state of clients that say nothing is kept (timeout: {IDLE} s)",
                ("through", "ports at first", "all connections closed after, s",
                 "all ports free after, s"),
                [(life.layer.name, life.connected[0][1], life.closed, life.free)
                 for life in lives],
                notes=["A port rests in TIME_WAIT for a minute where the proxy closed as usual,"
                       " not where it has reset the connection."],
            ),
        ],
        plots=[
            Plot(
                f"{_few(bench):,} clients that say nothing after their first question",
                f"seconds (the timeout is {IDLE})",
                "source ports taken",
                [
                    Series(f"{life.layer.name}, {what}", points)
                    for life in lives
                    for what, points in (
                        ("connected", life.connected),
                        ("in TIME_WAIT", life.resting),
                    )
                ],
            )
        ],
    )  # fmt: skip


def _few(bench: Bench) -> int:
    return FEW if bench.scale == 1 else QUICK_FEW


def _cost(bench: Bench, progress: Progress, layer: Layer) -> tuple[Any, ...]:
    """What one more idle client takes."""
    count = CLIENTS
    progress.phase(f"{layer.name}: idle clients", of=count)
    setup = Setup.make(bench, layer, layer.toml(600))
    setup.clients.open(BEFORE, to=layer.front)
    setup.clients.ask()  # All at once, so that L7 has all of its connections by now.
    before = setup.proxy.memory, _descriptors(setup.proxy)
    setup.clients.open(count, to=layer.front)
    memory, files = setup.proxy.memory - before[0], _descriptors(setup.proxy) - before[1]
    ports = bench.sockets().states["ESTAB"]
    bench.clear()
    return layer.name, count, memory / 1024 / count, files / count, ports


def _descriptors(proxy: Proxy) -> int:
    return len(os.listdir(f"/proc/{proxy.program.pid}/fd"))


def _kill(setup: Setup, toml: str) -> None:
    setup.origins[0].kill()


def _restart(setup: Setup, toml: str) -> None:
    setup.proxy.stop()
    setup.bench.proxy(toml)


def _event(
    bench: Bench,
    progress: Progress,
    layer: Layer,
    what: str,
    happens: Callable[[Setup, str], None],
) -> tuple[Any, ...]:
    """Something happens while clients are idle, and once more while all of them wait."""
    count, toml = _few(bench), layer.toml(600)
    progress.phase(f"{layer.name}: {what}")
    setup = Setup.make(bench, layer, toml)
    setup.clients.open(count, to=layer.front)
    happens(setup, toml)
    time.sleep(MEANWHILE)
    left = setup.clients.look()["open"]
    answered = _served(setup.clients.ask())
    bench.clear()
    setup = Setup.make(bench, layer, toml, THINKS)
    setup.clients.open(count, to=layer.front)
    setup.clients.begin("ask")
    time.sleep(MEANWHILE)
    happens(setup, toml)
    outcomes = Counter(setup.clients.wait()["outcomes"])
    again = _served(bench.clients().open(count, to=layer.front))
    bench.clear()
    under_way = outcomes.pop(SERVED, 0)
    others = ", ".join("end of connection" if each == ENDED else each for each in outcomes)
    return what, layer.name, count, count - left, answered, under_way, others, again


def _served(told: dict[str, Any]) -> int:
    served: int = told["outcomes"].get(SERVED, 0)
    return served


def _lives(bench: Bench, progress: Progress, seconds: int) -> list[Life]:
    """Clients come through both, ask once, and say nothing more."""
    progress.phase("clients that say nothing any more", of=seconds)
    # On ports of their own: something of what went before may still rest in TIME_WAIT.
    lives = [Life(replace(layer, port=layer.port + 100)) for layer in LAYERS]
    for life in lives:
        bench.origin(life.layer.name, *life.layer.backends)
    bench.proxy("".join(life.layer.toml(IDLE) for life in lives))
    clients = bench.clients()
    for life in lives:
        clients.open(_few(bench), to=life.layer.front)
    started = time.monotonic()
    while (now := time.monotonic() - started) < seconds:
        sockets = bench.sockets()
        for life in lives:
            states = sockets.to(*life.layer.backends).states
            life.connected.append((now, states.total() - states["TIME-WAIT"]))
            life.resting.append((now, states["TIME-WAIT"]))
        progress.at(now)
        time.sleep(0.5)
    bench.clear()
    return lives


EXPERIMENT = Experiment(
    "stateful",
    "What does a proxy keep of its clients, and what becomes of it?",
    150,
    run,
    ports=10000,
)
