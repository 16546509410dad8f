"""The rows that are of TLS: ended in the proxy, or begun there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks import loads, loads_tls, peers, peers_tls
from benchmarks.measure import Sample, cpu_ns
from benchmarks.origin import FILES, make_file, origin
from benchmarks.programs import HOST, find
from benchmarks.row import BASE, OURS, Peer, Row, Scale, by_name, directory, proxy, sample


def _pair(
    ours: Callable[[peers.Site], list[str]], theirs: Callable[[peers.Site], list[str]]
) -> dict[str, Peer]:
    return by_name(
        (Peer(OURS, ours), Peer(BASE, theirs, lambda: find("haproxy") is not None, "haproxy"))
    )


ENDING = _pair(peers_tls.proxykit, peers_tls.haproxy)
HTTP = _pair(partial(peers_tls.proxykit, mode="http"), partial(peers_tls.haproxy, mode="http"))
BEGINNING = _pair(
    partial(peers_tls.proxykit, inside=False, outside=True),
    partial(peers_tls.haproxy, inside=False, outside=True),
)


@contextmanager
def _through(peer: Peer, bulk: bool = False) -> Iterator[tuple[int, Callable[[], int]]]:
    """The proxy in front of an origin without TLS; gives its port, and what tells its CPU."""
    with directory() as where:
        if bulk:
            make_file(where, "bulk", FILES["bulk"])
        with (
            origin(where) as (behind, _),
            proxy(peer, where, [f"{HOST}:{behind}"]) as (port, pid),
        ):
            loads_tls.warm(port)
            yield port, partial(cpu_ns, pid)


def _get(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with _through(peer) as (port, cpu):
        yield "", sample(loads.requests(port, scale.seconds, cpu, loads_tls.SMALL))


def _handshakes(resume: bool, peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with _through(peer) as (port, cpu):
        yield "", sample(loads_tls.handshakes(port, resume, scale.seconds, cpu))


def _bulk(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    for connections, variant in ((1, "1 connection"), (8, "8 connections")):
        with _through(peer, bulk=True) as (port, cpu):
            yield variant, sample(loads_tls.download(port, connections, scale.seconds, cpu))


def _out(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with (
        directory() as where,
        loads_tls.origin(where) as behind,
        proxy(peer, where, [f"{HOST}:{behind}"]) as (port, pid),
    ):
        loads.warm(port)
        yield "", sample(loads.requests(port, scale.seconds, partial(cpu_ns, pid)))


ROWS = (
    Row("tls-get", "row request, with TLS from the client", "request", 1.5, _get, ENDING),
    Row("tls-get-http", "row get, with TLS from the client", "request", None, _get, HTTP),
    Row(
        "tls-full",
        "row short, with a whole TLS handshake",
        "connection",
        1.4,
        partial(_handshakes, False),
        ENDING,
    ),
    Row(
        "tls-resumed",
        "the same, each going on from an earlier session",
        "connection",
        1.4,
        partial(_handshakes, True),
        ENDING,
    ),
    Row("tls-bulk", "row bulk, with TLS to the client", "MB", 1.5, _bulk, ENDING),
    Row("tls-out", "row request, with TLS to the origin", "request", None, _out, BEGINNING),
)
