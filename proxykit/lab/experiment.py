"""What an experiment is. One file each in ``experiments/``, which ends with an ``EXPERIMENT``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxykit.lab.bench import Bench
from proxykit.lab.progress import Progress
from proxykit.lab.report import Result

#: An experiment may take so many times what it should, and so many seconds besides.
PATIENCE, SPARE = 3, 60


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
