"""The rows at L7: HTTP/1.1, with connections kept on both sides."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import loads, loads_l7, peers_l7
from benchmarks.measure import RefusedError, Sample, cpu_ns, sockets
from benchmarks.origin import FILES, make_file, origin
from benchmarks.programs import HOST, find, stopped
from benchmarks.row import BASE, OURS, Peer, Row, Scale, by_name, directory, proxy, sample

#: It opens a connection for each request, and passes on that the origin then closes it.
CLOSING = "twisted.web"
L7 = (
    Peer(OURS, peers_l7.proxykit),
    Peer(BASE, peers_l7.haproxy, lambda: find("haproxy") is not None, "haproxy"),
    Peer("haproxy-splice", peers_l7.haproxy_splice, lambda: find("haproxy") is not None, "haproxy"),
    Peer("nginx", peers_l7.nginx, lambda: find("nginx") is not None, "nginx"),
    Peer(CLOSING, peers_l7.twisted_web, slow=True),
    Peer(
        "aiohttp",
        peers_l7.aiohttp,
        lambda: importlib.util.find_spec("aiohttp") is not None,
        "aiohttp (pip install '.[bench]')",
        slow=True,
    ),
)
ALL = by_name(L7, OURS, BASE, "nginx", CLOSING, "aiohttp")
SPLICED = by_name(L7)
POOLS = by_name(L7, OURS, BASE)

#: The share of requests that may come with a connection of their own, where connections are kept.
CHURN = 0.02
#: Connections that are expected to end in any run: those of the warming up, and wrk's.
ENDING = 500
#: Connections that ask for large files.
DOWNLOADS = 4
#: Connections to the origin that row "clients" allows.
MOST = 20
#: Readings, a tenth of a second apart, after which a figure is taken to change no more.
STEADY = 10

GET = loads.Ask()
BROWSER = loads.Ask(
    "/index.html",
    (
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "Accept-Language: en-US,en;q=0.5",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Referer: https://www.example/library/shelves",
        "Cookie: session=5f2c9b0e7d1a4c3f8e6b; theme=dark; consent=necessary",
        "Sec-Fetch-Mode: navigate",
        "Sec-Fetch-Site: same-origin",
    ),
)
PATHS = loads.Ask(script="paths.lua")
LARGER = loads.Ask("/16k", size=FILES["16k"])
POST = loads.Ask("/post", script="post.lua")


def _requests(ask: loads.Ask, peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with directory() as where:
        if ask is LARGER:
            make_file(where, "16k", FILES["16k"])
        with (
            origin(where) as (behind, _),
            proxy(peer, where, [f"{HOST}:{behind}"]) as (port, pid),
        ):
            loads.warm(port)
            work = loads.requests(port, scale.seconds, partial(cpu_ns, pid), ask)
            if peer.name != CLOSING:
                for side in (port, behind):
                    check_kept(sockets(side)[1], work)
            yield "", sample(work)


def check_kept(ended: int, work: loads.Work) -> None:
    """See that connections were used again.

    :raises RefusedError: too many have ended.
    """
    if ended > ENDING + CHURN * work.units:
        raise RefusedError(f"{ended} connections ended within {work.units:.0f} requests")


def _files(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with directory() as where:
        make_file(where, "64m", FILES["64m"])
        with (
            origin(where) as (behind, _),
            proxy(peer, where, [f"{HOST}:{behind}"]) as (port, pid),
        ):
            loads.warm(port)
            cpu = partial(cpu_ns, pid)
            work = loads_l7.files(port, "64m", FILES["64m"], DOWNLOADS, scale.seconds, cpu)
            yield f"{DOWNLOADS} connections", sample(work)


def _clients(peer: Peer, scale: Scale) -> Iterator[tuple[str, Sample]]:
    with (
        directory() as where,
        origin(where) as (behind, origin_pid),
        proxy(peer, where, [f"{HOST}:{behind}"], most=MOST) as (port, _),
        loads.Holder(port) as holder,
    ):
        holder.grow(scale.clients)
        # A connection to who is stopped is made all the same, and its request stays unanswered. So
        # there is one for each client, unless the proxy makes clients wait.
        with stopped(origin_pid):
            holder.ask()
            count = steady(lambda: sockets(behind)[0])
        holder.answered()
        holder.check()
        yield f"{scale.clients} clients", Sample(count)


def steady(read: Callable[[], int]) -> int:
    """The figure that is read when it has not changed for a while.

    :raises RefusedError: it goes on changing.
    """
    same, before = 0, -1
    end = time.monotonic() + loads.PATIENCE
    while time.monotonic() < end:
        found = read()
        same = same + 1 if found == before else 0
        if same == STEADY:
            return found
        before = found
        time.sleep(0.1)
    raise RefusedError(f"connections go on to be opened and closed: {before} of them now")


def _row(name: str, what: str, ask: loads.Ask, goal: float | None, stretch: float | None) -> Row:
    return Row(name, what, "request", goal, partial(_requests, ask), ALL, stretch=stretch)


ROWS = (
    _row("get", "a small GET", GET, 1.8, 1.5),
    _row("get-browser", "the same with eight fields of a browser", BROWSER, 1.8, 1.5),
    _row("get-paths", "the same with another path every time", PATHS, 1.8, 1.5),
    _row("get-16k", "a GET of 16 KiB", LARGER, None, None),
    _row("post-4k", "a POST of 4 KiB, which the origin reads", POST, None, None),
    Row("get-64m", "GETs of 64 MiB", "MB", 1.2, _files, SPLICED),
    Row(
        "clients",
        "connections to the origin that so many kept clients need",
        "",
        MOST,
        _clients,
        POOLS,
        absolute=True,
        measure="sockets",
    ),
)
