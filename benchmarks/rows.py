"""The rows of the table: what each one starts, loads and counts.

A row's ``run`` makes one run with one peer and gives a sample for each of its variants.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import loads, peers
from benchmarks.measure import Sample, cpu_ns, rss
from benchmarks.peers import Site


@dataclass(frozen=True)
class Peer:
    """A proxy: how it is started, and what to install where :attr:`there` says no."""

    name: str
    start: Callable[[Site], list[str]]
    there: Callable[[], bool]
    install: str


OURS = "proxykit"
BASE = "haproxy"
PEERS = {
    each.name: each
    for each in (
        Peer(OURS, peers.proxykit, lambda: True, ""),
        Peer(BASE, peers.haproxy, lambda: peers.find("haproxy") is not None, "haproxy"),
        Peer(
            "haproxy-splice",
            peers.haproxy_splice,
            lambda: peers.find("haproxy") is not None,
            "haproxy",
        ),
        Peer(
            "nginx",
            peers.nginx,
            lambda: peers.stream_module() is not None,
            "nginx with its stream module (Debian: libnginx-mod-stream)",
        ),
        Peer("portforward", peers.portforward, lambda: True, ""),
    )
}
#: Idle connections beside, with which row "held" begins.
FEWEST = 10
ALL = (OURS, BASE, "nginx", "portforward")


@dataclass(frozen=True)
class Scale:
    """How much of it: seconds of each run, and the numbers that are gone through."""

    seconds: int = 3
    held: Sequence[int] = (FEWEST, 1000, 5000, 9500)
    backends: Sequence[int] = (1, 10, 100, 1000)
    memory: int = 9000


QUICK = Scale(1, (FEWEST, 1000), (1, 100), 1000)


@dataclass(frozen=True)
class Row:
    """One row.

    :ivar unit: of which the cost is given.
    :ivar goal: the most that proxykit may have: of the ratio, or of the cost where ``absolute``.
    :ivar peers: who takes part.
    :ivar base: what a variant's ratio is to, as (variant, peer); by default HAProxy's same.
    """

    name: str
    what: str
    unit: str
    goal: float
    run: Callable[[Peer, Scale], Iterator[tuple[str, Sample]]]
    peers: Sequence[str] = ALL
    absolute: bool = False
    stretch: float | None = None
    base: Callable[[str, str], tuple[str, str]] = field(
        default=lambda variant, peer: (variant, BASE)
    )


@contextmanager
def _proxy(
    peer: Peer, directory: Path, backends: Sequence[str], **how: str
) -> Iterator[tuple[int, int]]:
    """A fresh proxy; gives its port and its pid."""
    port = peers.free_port()
    argv = peer.start(Site(directory, port, backends, **how))
    with peers.running(argv, directory, port) as pid:
        yield port, pid


@contextmanager
def _through(
    peer: Peer, hosts: Sequence[str] = (peers.HOST,), **how: str
) -> Iterator[tuple[int, int]]:
    """The same with an origin behind it."""
    with _directory() as directory, peers.origin(directory, hosts) as origin:
        backends = [f"{host}:{origin}" for host in hosts]
        with _proxy(peer, directory, backends, **how) as proxy:
            yield proxy


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="proxykit-bench-") as name:
        yield Path(name)


def _sample(work: loads.Work) -> Sample:
    return Sample(work.cpu_ns / 1000 / work.units, work.units / work.seconds)


def _requests(close: bool, peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with _through(peer) as (port, pid):
        loads.warm(port)
        work = loads.requests(port, scale.seconds, partial(cpu_ns, pid), close=close)
        yield "", _sample(work)


def _bulk(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with _directory() as directory:
        peers.bulk_file(directory)
        with peers.origin(directory) as origin:
            for connections in (1, 8):
                with _proxy(peer, directory, [f"{peers.HOST}:{origin}"]) as (port, pid):
                    cpu = partial(cpu_ns, pid)
                    work = loads.download(port, connections, scale.seconds, cpu)
                yield _connections(connections), _sample(work)


def _upload(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    for connections in (1, 8):
        with (
            _directory() as directory,
            loads.listening() as (sink, backend),
            _proxy(peer, directory, [f"{peers.HOST}:{backend}"]) as (port, pid),
        ):
            work = loads.upload(sink, port, connections, scale.seconds, partial(cpu_ns, pid))
        yield _connections(connections), _sample(work)


def _connections(count: int) -> str:
    return f"{count} connection{'s' if count > 1 else ''}"


def _held(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with _through(peer) as (port, pid), loads.Holder(port) as holder:
        loads.warm(port)
        for count in scale.held:
            holder.grow(count)
            work = loads.requests(port, scale.seconds, partial(cpu_ns, pid))
            holder.check()
            yield f"{count} held", _sample(work)


BALANCES = ("least-connections", "round-robin")


def _backends(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    for balance in BALANCES:
        for count in scale.backends:
            hosts = [f"127.0.{1 + n // 250}.{1 + n % 250}" for n in range(count)]
            with _through(peer, hosts, balance=balance) as (port, pid):
                loads.warm(port)
                cpu = partial(cpu_ns, pid)
                work = loads.requests(port, scale.seconds, cpu, close=True)
                yield f"{balance}, {count}", _sample(work)


def _memory(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with _through(peer) as (port, pid), loads.Holder(port) as holder:
        before = rss(pid)
        holder.grow(scale.memory)
        full = rss(pid)
        holder.check()
        holder.release()
        time.sleep(2.0)  # until the proxy has seen all of them go
        left = rss(pid)
        each = 1024 * scale.memory
        yield "", Sample((full - before) / each, remains=(left - before) / each)


_SPLICED = (OURS, BASE, "haproxy-splice", "nginx", "portforward")
_FLAT = (OURS, BASE)

ROWS = {
    each.name: each
    for each in (
        Row(
            "request",
            "a small request and reply on a kept connection",
            "request",
            1.25,
            partial(_requests, False),
        ),
        Row(
            "short",
            "a connection opened, used once and closed",
            "connection",
            2.0,
            partial(_requests, True),
            stretch=1.6,
        ),
        Row("bulk", "large files, origin to client", "MB", 0.9, _bulk, _SPLICED),
        Row("upload", "bytes without end, client to origin", "MB", 0.9, _upload, _SPLICED),
        Row(
            "held",
            "the first row, with idle connections held beside; ratio to the fewest",
            "request",
            1.2,
            _held,
            _FLAT,
            base=lambda variant, peer: (f"{FEWEST} held", peer),
        ),
        Row(
            "backends",
            "the second row, with so many backends; ratio to one",
            "connection",
            1.2,
            _backends,
            _FLAT,
            base=lambda variant, peer: (f"{variant.partition(',')[0]}, 1", peer),
        ),
        Row(
            "memory",
            "KiB resident for a held, idle connection that has had one answer",
            "connection",
            4.0,
            _memory,
            absolute=True,
        ),
    )
}
