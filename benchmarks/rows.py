"""The rows of the table: those at L4, with :mod:`benchmarks.rows_sni`, and then
:mod:`benchmarks.rows_l7`, :mod:`benchmarks.rows_tls` and :mod:`benchmarks.rows_book`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from benchmarks import loads, peers, rows_book, rows_l7, rows_sni, rows_tls
from benchmarks.measure import Sample, cpu_ns, rss
from benchmarks.origin import FILES, make_file, origin
from benchmarks.programs import HOST, find
from benchmarks.row import (
    BASE,
    FEWEST,
    OURS,
    Peer,
    Row,
    Scale,
    by_name,
    directory,
    proxy,
    sample,
    through,
)

L4 = (
    Peer(OURS, peers.proxykit),
    Peer(BASE, peers.haproxy, lambda: find("haproxy") is not None, "haproxy"),
    Peer("haproxy-splice", peers.haproxy_splice, lambda: find("haproxy") is not None, "haproxy"),
    Peer(
        "nginx",
        peers.nginx,
        lambda: peers.stream_module() is not None,
        "nginx with its stream module (Debian: libnginx-mod-stream)",
    ),
    Peer("portforward", peers.portforward, slow=True),
)
ALL = by_name(L4, OURS, BASE, "nginx", "portforward")
SPLICED = by_name(L4)
FLAT = by_name(L4, OURS, BASE)


def _requests(ask: loads.Ask, peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with through(peer) as (port, pid):
        loads.warm(port)
        yield "", sample(loads.requests(port, scale.seconds, partial(cpu_ns, pid), ask))


def _bulk(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with directory() as where:
        make_file(where, "bulk", FILES["bulk"])
        with origin(where) as (behind, _):
            for connections in (1, 8):
                with proxy(peer, where, [f"{HOST}:{behind}"]) as (port, pid):
                    cpu = partial(cpu_ns, pid)
                    work = loads.download(port, connections, scale.seconds, cpu)
                yield _connections(connections), sample(work)


def _upload(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    for connections in (1, 8):
        with (
            directory() as where,
            loads.listening() as (sink, backend),
            proxy(peer, where, [f"{HOST}:{backend}"]) as (port, pid),
        ):
            work = loads.upload(sink, port, connections, scale.seconds, partial(cpu_ns, pid))
        yield _connections(connections), sample(work)


def _connections(count: int) -> str:
    return f"{count} connection{'s' if count > 1 else ''}"


def _held(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with through(peer) as (port, pid), loads.Holder(port) as holder:
        loads.warm(port)
        for count in scale.held:
            holder.grow(count)
            work = loads.requests(port, scale.seconds, partial(cpu_ns, pid))
            holder.check()
            yield f"{count} held", sample(work)


BALANCES = ("least-connections", "round-robin")


def _backends(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    for balance in BALANCES:
        for count in scale.backends:
            hosts = [f"127.0.{1 + n // 250}.{1 + n % 250}" for n in range(count)]
            with through(peer, hosts, balance=balance) as (port, pid):
                loads.warm(port)
                cpu = partial(cpu_ns, pid)
                work = loads.requests(port, scale.seconds, cpu, loads.CLOSE)
                yield f"{balance}, {count}", sample(work)


def _memory(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with through(peer) as (port, pid), loads.Holder(port) as holder:
        before = rss(pid)
        holder.grow(scale.memory)
        full = rss(pid)
        holder.check()
        holder.release()
        time.sleep(2.0)  # until the proxy has seen all of them go
        left = rss(pid)
        each = 1024 * scale.memory
        yield "", Sample((full - before) / each, remains=(left - before) / each)


ROWS = {
    each.name: each
    for each in (
        Row(
            "request",
            "a small request and reply on a kept connection",
            "request",
            1.25,
            partial(_requests, loads.SMALL),
            ALL,
        ),
        Row(
            "short",
            "a connection opened, used once and closed",
            "connection",
            2.0,
            partial(_requests, loads.CLOSE),
            ALL,
            stretch=1.6,
        ),
        Row("bulk", "large files, origin to client", "MB", 0.9, _bulk, SPLICED),
        Row("upload", "bytes without end, client to origin", "MB", 0.9, _upload, SPLICED),
        Row(
            "held",
            "the first row, with idle connections held beside; ratio to the fewest",
            "request",
            1.2,
            _held,
            FLAT,
            base=lambda variant, peer: (f"{FEWEST} held", peer),
        ),
        Row(
            "backends",
            "the second row, with so many backends; ratio to one",
            "connection",
            1.2,
            _backends,
            FLAT,
            base=lambda variant, peer: (f"{variant.partition(',')[0]}, 1", peer),
        ),
        Row(
            "memory",
            "KiB resident for a held, idle connection that has had one answer",
            "connection",
            4.0,
            _memory,
            ALL,
            absolute=True,
            measure="KiB",
        ),
        *rows_sni.ROWS,
        *rows_l7.ROWS,
        *rows_tls.ROWS,
        *rows_book.ROWS,
    )
}
#: Every proxy's name.
NAMES = tuple(dict.fromkeys(each.name for each in (*L4, *rows_l7.L7, *rows_book.L4.values())))
