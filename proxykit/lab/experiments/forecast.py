"""How well the proxy foretells when its source ports will be gone.

Loads rise against the real service, each in a way of its own and with all ports to itself, until
the last port is taken; second by second ``/api/ports`` is asked for ``forecast_seconds``, which is
compared with the truth in the end. Many more loads are simulated: see ``loads.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from proxykit.lab import loads
from proxykit.lab.bench import Bench, Clients
from proxykit.lab.experiment import Experiment
from proxykit.lab.namespaces import BACKENDS, FRONT
from proxykit.lab.progress import Progress
from proxykit.lab.report import Cell, Plot, Result, Series, Table
from proxykit.lab.talks import SERVED

#: Seconds in which the loads rise beyond all ports; and how far, as a share.
SECONDS, QUICK_SECONDS = 110, 40
MORE = 1.1
#: So many short connections come in that time, as a share of all ports.
SHORT = 2
#: Seconds before the ports were gone at which forecasts are shown; and how far off one may be.
AHEAD, NEAR = (60, 30, 10), 1.0
#: Forecasts that are farther ahead are not drawn.
DRAWN = 120.0
#: The corners of a curve.
CORNERS = 20


@dataclass
class Load:
    """A rise.

    :ivar points: seconds and clients, as shares of the whole; none: short connections.
    :ivar forecasts: what was foretold, and when.
    :ivar gone: when the ports were gone, in seconds.
    """

    name: str
    points: Sequence[tuple[float, float]] = ()
    forecasts: list[tuple[float, float | None]] = field(default_factory=list)
    gone: float | None = None

    def begin(self, clients: Clients, to: str, ports: int, seconds: int) -> None:
        """Have it rise."""
        if self.points:
            line = [(x * seconds, y * MORE * ports) for x, y in self.points]
            clients.begin("follow", points=line, to=to)
        else:
            clients.begin("churn", rate=SHORT * ports / seconds, seconds=seconds, to=to)

    def ended(self, told: dict[str, Any]) -> None:
        """When the first client was refused, the ports were gone."""
        refused = [when for outcome, when in told["first"].items() if outcome != SERVED]
        self.gone = min(refused, default=None)

    @property
    def compared(self) -> list[tuple[float, float | None]]:
        """Seconds that were left in fact, and by forecast, where there was one."""
        if self.gone is None:
            return []
        return [(self.gone - at, left) for at, left in self.forecasts if at < self.gone]

    def at(self, ahead: float) -> float | None:
        """The forecast of that long before."""
        found = ((abs(left - ahead), told) for left, told in self.compared)
        off, told = min(found, key=lambda each: each[0], default=(NEAR + 1, None))
        return told if off <= NEAR else None


def rises() -> list[Load]:
    """All loads."""
    curve = [(n / CORNERS, (n / CORNERS) ** 2) for n in range(CORNERS + 1)]
    return [
        Load("a steady rise", [(0, 0), (1, 1)]),
        Load("sooner and sooner", curve),
        Load("quiet, then a rise", [(0, 0), (0.02, 0.2), (0.3, 0.2), (1, 1)]),
        Load("short connections, which rest in TIME_WAIT"),
    ]


def run(bench: Bench, progress: Progress) -> Result:
    """See above."""
    everything, seconds = rises(), SECONDS if bench.scale == 1 else QUICK_SECONDS
    toml = ["[sources]\nheadroom = 0\n"]
    for number, load in enumerate(everything):
        bench.origin(load.name, _backend(number))
        toml.append(_toml(number))
    proxy = bench.proxy("".join(toml))
    progress.phase("loads rise", of=seconds)
    crowds = [bench.clients() for _ in everything]
    for number, load in enumerate(everything):
        load.begin(crowds[number], f"{FRONT}:{8000 + number}", bench.ports, seconds)

    def look(now: float) -> None:
        by_backend = {each["destination"]: each for each in proxy.api("/api/ports")["budgets"]}
        for number, load in enumerate(everything):
            left = by_backend[_backend(number)]["forecast_seconds"]
            load.forecasts.append((now, left))

    for load, told in zip(everything, bench.watch(crowds, 1.0, look), strict=True):
        load.ended(told)
    steady = everything[0].at(AHEAD[0])
    return Result(
        answer=(
            f"A minute before the last of {bench.ports:,} ports was taken by a steady rise, the"
            f" forecast was {_said(steady)}; half a minute before,"
            f" {_said(everything[0].at(AHEAD[1]))}."
        ),
        tables=[
            Table(
                f"Real loads against {bench.ports:,} source ports each: the forecast, s",
                ("load", "ports gone after, s", *(f"{ahead} s before" for ahead in AHEAD)),
                [(load.name, load.gone, *map(load.at, AHEAD)) for load in everything],
            ),
            Table("Simulated loads", loads.COLUMNS, _simulated()),
            Table("How far steady rises may be off by chance alone", loads.CHANCES, _chances()),
        ],
        plots=[
            Plot(
                "Forecast and truth, until the last port is taken",
                "seconds that were left, in fact",
                "seconds left, by forecast",
                [
                    *(Series(load.name, load.compared) for load in everything),
                    Series("if it were always right", [(0, 0), (seconds, seconds)], True),
                ],
                top=DRAWN,
            )
        ],
    )


def _said(left: float | None) -> str:
    return "none" if left is None else f"{left:.0f} s"


def _simulated() -> list[tuple[Cell, ...]]:
    return [*loads.rows()]


def _chances() -> list[tuple[Cell, ...]]:
    return [*loads.chances()]


def _backend(number: int) -> str:
    return f"{BACKENDS[0]}:{8000 + number}"


def _toml(number: int) -> str:
    return f"""
[clusters.load{number}]
backends = ["{_backend(number)}"]
max_connections = 100000
queue = 0
[[listeners]]
listen = "tcp:{8000 + number}"
mode = "tcp"
cluster = "load{number}"
max_connections = 100000
"""


EXPERIMENT = Experiment(
    "forecast", "How well is it foretold when the ports will be gone?", 120, run
)
