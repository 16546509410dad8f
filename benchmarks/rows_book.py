"""What the book of source ports costs: the service beside itself without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import loads, peers, peers_l7
from benchmarks.measure import Sample, cpu_ns
from benchmarks.peers import Site
from benchmarks.row import OURS, Peer, Row, Scale, by_name, sample, through

WITHOUT = "uncounted"


def _peers(start: Callable[[Site], list[str]]) -> dict[str, Peer]:
    return by_name((Peer(OURS, start), Peer(WITHOUT, partial(peers.uncounted, start))))


L4, L7 = _peers(peers.proxykit), _peers(peers_l7.proxykit)


def _requests(ask: loads.Ask, peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with through(peer) as (port, pid):
        loads.warm(port)
        yield "", sample(loads.requests(port, scale.seconds, partial(cpu_ns, pid), ask))


def _row(name: str, what: str, unit: str, goal: float, ask: loads.Ask, who: dict[str, Peer]) -> Row:
    return Row(
        name,
        f"{what}; ratio to the same without the book of source ports",
        unit,
        goal,
        partial(_requests, ask),
        who,
        base=lambda variant, peer: (variant, WITHOUT),
    )


ROWS = (
    _row("book-short", "L4, opened, used once, closed", "connection", 1.08, loads.CLOSE, L4),
    _row("book-get", "L7, a small GET, connections kept", "request", 1.03, loads.Ask(), L7),
)
