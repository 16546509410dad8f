"""The experiments, in the order in which one would ask."""

from __future__ import annotations

from proxykit.lab.experiment import Experiment
from proxykit.lab.experiments import (
    bind_trap,
    forecast,
    limit,
    sharing,
    stateful,
    time_wait,
    ways_round,
)

_ALL = (limit, ways_round, bind_trap, sharing, time_wait, forecast, stateful)

EXPERIMENTS: dict[str, Experiment] = {each.EXPERIMENT.name: each.EXPERIMENT for each in _ALL}
