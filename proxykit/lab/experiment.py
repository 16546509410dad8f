"""What an experiment is. One file each in ``experiments/``, which ends with an ``EXPERIMENT``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from proxykit.lab.bench import Bench
from proxykit.lab.namespaces import SOURCES
from proxykit.lab.progress import Progress
from proxykit.lab.report import Result

#: An experiment may take so many times what it should, and so many seconds besides.
PATIENCE, SPARE = 3, 60


def everybody(*backends: str) -> str:
    """The file of a proxy that lets in everybody, at L4, on port 8000: only ports run out."""
    return f"""
[sources]
addresses = ["{SOURCES[0]}"]
headroom = 0
[clusters.web]
backends = {json.dumps(backends)}
max_connections = 100000
queue = 0
[[listeners]]
listen = "tcp:8000"
mode = "tcp"
cluster = "web"
max_connections = 100000
"""


@dataclass(frozen=True)
class Experiment:
    """A question, and a way to answer it.

    :ivar name: as it is typed.
    :ivar question: one sentence.
    :ivar seconds: that it takes, about.
    :ivar run: does it.
    :ivar ports: source ports of the bench that it gets.
    """

    name: str
    question: str
    seconds: int
    run: Callable[[Bench, Progress], Result]
    ports: int = 1000

    @property
    def limit(self) -> float:
        """Seconds after which it is given up."""
        return PATIENCE * self.seconds + SPARE
