"""The rows that are of a connection's beginning: a ClientHello, or a PROXY header; both at L4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks import loads, loads_sni, peers, peers_sni
from benchmarks.loads_sni import Talk, greeting, hello
from benchmarks.measure import Sample, cpu_ns
from benchmarks.programs import HOST, find
from benchmarks.row import BASE, OURS, Peer, Row, Scale, by_name, directory, proxy, sample
from proxykit.wire.proxyproto import Endpoint, v2

STREAM = "nginx with its stream module (Debian: libnginx-mod-stream)"
#: What a client sends behind a PROXY header: what wrk does in row "short".
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
#: How many clients the one talks of that sends PROXY headers.
CLIENTS = 1000
#: Whose hellos are read, and the files that have them.
HELLOS = {"curl": "curl", "OpenSSL": "openssl-tls13", "Chromium": "chromium"}


def _haproxy(start: Callable[[peers.Site], list[str]], name: str = BASE) -> Peer:
    return Peer(name, start, lambda: find("haproxy") is not None, "haproxy")


NAMING = by_name(
    (
        Peer(OURS, peers_sni.proxykit),
        _haproxy(peers_sni.haproxy),
        Peer("nginx", peers_sni.nginx, peers_sni.prereads, STREAM),
    )
)
SPLICED = by_name((*NAMING.values(), _haproxy(peers_sni.haproxy_splice, "haproxy-splice")))
# nginx's stream module can only tell v1.
TELLING = by_name((Peer(OURS, peers_sni.proxykit_out), _haproxy(peers_sni.haproxy_out)))
TOLD = by_name(
    (
        Peer(OURS, peers_sni.proxykit_in),
        _haproxy(peers_sni.haproxy_in),
        Peer("nginx", peers_sni.nginx_in, lambda: peers.stream_module() is not None, STREAM),
    )
)


def headers() -> list[bytes]:
    """PROXY v2 headers for one client after the other."""
    here = Endpoint("192.0.2.1", 443)
    return [v2(Endpoint(f"198.51.100.{n % 250}", 20_000 + n), here) for n in range(CLIENTS)]


def introduced() -> Talk:
    """Requests with a PROXY header in front; those without one get nowhere."""
    return Talk([header + REQUEST for header in headers()], REQUEST, REQUEST)


def _short(
    talks: Callable[[], Sequence[tuple[str, Talk]]], peer: Peer, scale: Scale
) -> Iterator[tuple[str, Sample]]:
    for variant, talk in talks():
        with (
            directory() as where,
            loads.listening() as (sink, backend),
            proxy(peer, where, [f"{HOST}:{backend}"]) as (port, pid),
        ):
            work = loads_sni.short(sink, port, talk, scale.seconds, partial(cpu_ns, pid))
            yield variant, sample(work)


def _bulk(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    talk = greeting("chromium")
    for connections, variant in ((1, "1 connection"), (8, "8 connections")):
        with (
            directory() as where,
            loads.listening() as (sink, backend),
            proxy(peer, where, [f"{HOST}:{backend}"]) as (port, pid),
        ):
            cpu = partial(cpu_ns, pid)
            work = loads_sni.bulk(sink, port, talk, connections, scale.seconds, cpu)
            yield variant, sample(work)


def _out(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with (
        directory() as where,
        loads_sni.introduced(where) as behind,
        proxy(peer, where, [f"{HOST}:{behind}"]) as (port, pid),
    ):
        loads.warm(port)
        cpu = partial(cpu_ns, pid)
        yield "", sample(loads.requests(port, scale.seconds, cpu, loads.CLOSE))


def _hello(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    # Of another proxy, this part alone cannot be told.
    if peer.name == OURS:
        for who, name in HELLOS.items():
            yield who, sample(loads_sni.reading(hello(name), scale.seconds / len(HELLOS)))


ROWS = (
    Row(
        "sni-short",
        "row short, by the name in a recorded hello",
        "connection",
        2.0,
        partial(_short, lambda: [(who, greeting(HELLOS[who])) for who in ("Chromium", "curl")]),
        NAMING,
    ),
    Row(
        "sni-bulk",
        "bytes without end, origin to client, by the name in a hello",
        "MB",
        0.9,
        _bulk,
        SPLICED,
    ),
    Row(
        "proxy-out",
        "row short, with PROXY v2 to the origin",
        "connection",
        None,
        _out,
        TELLING,
    ),
    Row(
        "proxy-in",
        "row short, with PROXY v2 from the client",
        "connection",
        None,
        partial(_short, lambda: [("", introduced())]),
        TOLD,
    ),
    Row(
        "hello",
        "reading a recorded hello, without a proxy around it",
        "hello",
        None,
        _hello,
        TELLING,
    ),
)
