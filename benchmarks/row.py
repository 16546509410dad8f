"""What a row of the table is, what a proxy is, and how one is put in front of an origin.

A row's ``run`` makes one run with one proxy and gives a sample for each of its variants.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.loads import Work
from benchmarks.measure import Sample
from benchmarks.origin import origin
from benchmarks.peers import Site
from benchmarks.programs import HOST, free_port, running

OURS = "proxykit"
BASE = "haproxy"
#: Idle connections beside, with which row "held" begins.
FEWEST = 10


@dataclass(frozen=True)
class Scale:
    """How much of it: seconds of each run, and the numbers that are gone through."""

    seconds: int = 3
    held: Sequence[int] = (FEWEST, 1000, 5000, 9500)
    backends: Sequence[int] = (1, 10, 100, 1000)
    memory: int = 9000
    clients: int = 9500

    def fitting(self, most: int) -> Scale:
        """The same with no more connections than that."""
        held = tuple(count for count in self.held if count <= most) or tuple(self.held[:1])
        return replace(
            self, held=held, memory=min(self.memory, most), clients=min(self.clients, most)
        )


QUICK = Scale(1, (FEWEST, 1000), (1, 100), 1000, 1000)


@dataclass(frozen=True)
class Peer:
    """A proxy.

    :ivar start: writes its configuration and gives its command line.
    :ivar there: whether it can be started.
    :ivar install: what to install where it can't.
    :ivar slow: its figures are so far off that a third of the time is enough for them.
    """

    name: str
    start: Callable[[Site], list[str]]
    there: Callable[[], bool] = lambda: True
    install: str = ""
    slow: bool = False

    def scale(self, scale: Scale) -> Scale:
        """How much of it this one does."""
        return replace(scale, seconds=max(1, scale.seconds // 3)) if self.slow else scale


def by_name(peers: Iterable[Peer], *names: str) -> dict[str, Peer]:
    """Peers by their names: all, or only these."""
    known = {each.name: each for each in peers}
    return {name: known[name] for name in names or known}


@dataclass(frozen=True)
class Row:
    """One row.

    :ivar unit: of which the cost is given; "": of the whole.
    :ivar goal: the most that proxykit may have: of the ratio, or of the cost where ``absolute``;
        None: it is only looked at.
    :ivar peers: who takes part.
    :ivar measure: what the cost is counted in.
    :ivar base: what a variant's ratio is to, as (variant, peer); by default HAProxy's same.
    """

    name: str
    what: str
    unit: str
    goal: float | None
    run: Callable[[Peer, Scale], Iterator[tuple[str, Sample]]]
    peers: Mapping[str, Peer]
    absolute: bool = False
    stretch: float | None = None
    measure: str = "us"
    base: Callable[[str, str], tuple[str, str]] = field(
        default=lambda variant, peer: (variant, BASE)
    )


@contextmanager
def directory() -> Iterator[Path]:
    """A directory for one run."""
    with tempfile.TemporaryDirectory(prefix="proxykit-bench-") as name:
        yield Path(name)


@contextmanager
def proxy(
    peer: Peer, where: Path, backends: Sequence[str], **how: Any
) -> Iterator[tuple[int, int]]:
    """A fresh proxy; gives its port and its pid. ``how``: more of :class:`Site`."""
    port = free_port()
    with running(peer.start(Site(where, port, backends, **how)), where, port) as pid:
        yield port, pid


@contextmanager
def through(peer: Peer, hosts: Sequence[str] = (HOST,), **how: Any) -> Iterator[tuple[int, int]]:
    """The same with an origin behind it."""
    with directory() as where, origin(where, hosts) as (behind, _):
        backends = [f"{host}:{behind}" for host in hosts]
        with proxy(peer, where, backends, **how) as started:
            yield started


def sample(work: Work) -> Sample:
    """What a unit of it has cost."""
    return Sample(work.cpu_ns / 1000 / work.units, work.units / work.seconds)
