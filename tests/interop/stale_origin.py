"""The race for connections that are about to close, by the hundred thousand.

    python -m tests.interop.stale_origin --requests 100000 --reuse safe

starts an origin that closes its keep-alive connections at random moments, a real ``twistd
proxykit`` in front of it, and clients (``http_stale_load.py``). At the end the origin says which
request it was delivered how often, and the clients what came of it. No request that is not
idempotent may be delivered twice, nor an idempotent one fail; what fails is a 502. With ``--reuse
never`` nothing may fail. The status is 0 if all of that is so.

Origin and clients are asyncio's, to share no code with what they try.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import re
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
#: Seconds within which a process is up.
STARTING = 30.0
#: The request that asks for the counts.
COUNTS = b"/deliveries"
#: Seconds that a connection lives on, at the most, when it is about to end.
SOON = 0.004
#: Seconds without a request, from the start, after which a connection is closed.
NEVER_USED = (2.0, 5.0)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_RESET = struct.pack("ii", 1, 0)
_REQUEST = re.compile(rb"([A-Z]+) /([0-9]+|deliveries) HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")


class Counts:
    """What the origin has seen.

    :ivar delivered: how often each request came as a whole, by its number.
    :ivar endings: how many connections ended in which way.
    :ivar reused: requests on connections that had served one before.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.delivered: Counter[int] = Counter()
        self.endings: Counter[str] = Counter()
        self.connections = 0
        self.reused = 0


class StaleConnection(asyncio.Protocol):
    """One connection to the origin. What it does after an answer is left to chance.

    It may close at once or a little later, in good order or with a reset. It may read no more, and
    close then: what came in the meantime is lost. One that has answered before may also close when
    it has got a whole request, instead of an answer. The first request of a connection is always
    answered.
    """

    transport: asyncio.Transport

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._data = b""
        self._served = 0
        self._deaf = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._counts.connections += 1
        asyncio.get_running_loop().call_later(
            self._counts.random.uniform(*NEVER_USED), self._never_used
        )

    def data_received(self, data: bytes) -> None:
        self._data += data
        while not (self._deaf or self.transport.is_closing()):
            end = self._data.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            head = self._data[:end]
            length = _LENGTH.search(head)
            end += int(length[1]) if length else 0
            if len(self._data) < end:
                return
            self._data = self._data[end:]
            request = _REQUEST.match(head)
            assert request is not None, head
            self._serve(request[1], request[2])

    def _serve(self, method: bytes, number: bytes) -> None:
        counts = self._counts
        if b"/" + number == COUNTS:
            body = json.dumps(
                {
                    "delivered": counts.delivered,
                    "endings": counts.endings,
                    "connections": counts.connections,
                    "reused": counts.reused,
                }
            ).encode()
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            return
        counts.delivered[int(number)] += 1
        counts.reused += self._served > 0
        if self._served and counts.random.random() < 0.02:
            self._close("instead of an answer", counts.random.random() < 0.5)
            return
        self._served += 1
        body = b"" if method == b"HEAD" else number
        start = b"HTTP/1.1 200 OK\r\nX-Number: %b\r\n" % number
        self.transport.write(start + b"Content-Length: %d\r\n\r\n" % len(number) + body)
        self._perhaps_end()

    def _perhaps_end(self) -> None:
        """Is this the last answer?"""
        counts = self._counts
        drawn, reset = counts.random.random(), counts.random.random() < 0.3
        delay = counts.random.uniform(0, SOON)
        loop = asyncio.get_running_loop()
        if drawn < 0.06:
            self._close("at once", reset)
        elif drawn < 0.18:
            loop.call_later(delay, self._close, "a little later", reset)
        elif drawn < 0.30:
            self._deaf = True
            self.transport.pause_reading()
            loop.call_later(delay, self._close, "deaf", reset)

    def _never_used(self) -> None:
        if not (self._served or self._data):
            self._close("never used", False)

    def _close(self, how: str, reset: bool) -> None:
        if self.transport.is_closing():
            return
        self._counts.endings[how + (", reset" if reset else "")] += 1
        if reset:
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        else:
            self.transport.close()


async def origin(seed: int) -> None:
    """Be the origin; say where; for ever."""
    counts = Counts(seed)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: StaleConnection(counts), "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"origin: listening on {server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


_CONFIG = """
[clusters.web]
backends = ["127.0.0.1:{port}"]
[clusters.web.pool]
reuse = "{reuse}"
[[listeners]]
name = "front"
listen = "tcp:0:interface=127.0.0.1"
mode = "http"
cluster = "web"
"""


def _die_with_parent() -> None:
    """However this process ends, what it has started ends with it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Processes:
    """Processes that end with this one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[asyncio.subprocess.Process] = []

    async def start(self, name: str, *argv: str, says: str) -> int:
        """Start one; give the port in what it says when it is up."""
        path = self._directory / f"{name}.txt"
        env = {**os.environ, "PYTHONPATH": str(TREE), "PYTHONUNBUFFERED": "1"}
        with path.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *argv),
                cwd=self._directory,
                env=env,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,
            )
        self._running.append(process)
        until = time.monotonic() + STARTING
        while (match := re.search(says, path.read_text())) is None:
            if process.returncode is not None or time.monotonic() > until:
                raise SystemExit(f"{name} is not up; it said:\n{path.read_text()}")
            await asyncio.sleep(0.05)
        return int(match[1])

    async def stop(self) -> None:
        for process in self._running:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def main(options: argparse.Namespace) -> int:
    """Start everything, let the clients ask, print what came of it; the status."""
    from tests.interop.http_stale_load import Load

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        processes = Processes(directory)
        try:
            me = ("-m", "tests.interop.stale_origin", "--origin", f"--seed={options.seed}")
            backend = await processes.start("origin", *me, says=r"listening on (\d+)\n")
            config = directory / "proxykit.toml"
            config.write_text(_CONFIG.format(port=backend, reuse=options.reuse))
            twistd = ("-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")
            reactor = (f"--reactor={options.reactor}",) if options.reactor else ()
            proxy = await processes.start(
                *("proxy", *twistd, *reactor, "proxykit", "--config", str(config)),
                says=r"front: listening on 127\.0\.0\.1:(\d+)\n",
            )
            load = Load(proxy, options)
            await load.run()
            report = load.report(await load.counts(backend, COUNTS))
        finally:
            await processes.stop()
    for what, figure in report.items():
        sys.stdout.write(f"{what:<48} {figure}\n")
    return 1 if load.wrong(report) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.stale_origin")
    parser.add_argument("--requests", type=int, default=100000)
    parser.add_argument("--clients", type=int, default=64, help="that ask at the same time")
    parser.add_argument("--reuse", choices=("never", "safe", "always"), default="safe")
    parser.add_argument("--reactor", default="", help="twistd's; default: proxykit's own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--origin", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    sys.exit(asyncio.run(origin(chosen.seed) if chosen.origin else main(chosen)))
