"""Programs that are started and ended: where they are, ports for them, how much they may open."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.measure import RefusedError

TREE = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
#: Seconds that a program may take until it listens, and until it has ended.
START = 30.0
END = 5.0
#: Connections that every proxy may have: two descriptors each, of the 20,000 that it has at most.
CONNECTIONS = 9_900
#: Descriptors of a proxy beside those. HAProxy does not start where it may not have them all.
OTHERS = 200
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def find(program: str) -> str | None:
    """Its path, or None."""
    return shutil.which(program, path=PATH)


def descriptors() -> int:
    """Raise the soft limit of this process and its children to the hard one; gives that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections() -> int:
    """How many connections a proxy is told that it may have."""
    return min(CONNECTIONS, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - OTHERS) // 2)


def free_port(host: str = HOST) -> int:
    """A port that nobody listens on, of those that the kernel gives to no outgoing connection."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    low = 10_000
    start = time.time_ns() // 1_000_000  # two runs at once begin elsewhere
    for step in range(max(first - low, 0)):
        port = low + (start + step) % (first - low)
        with socket.socket() as trial, suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
            return port
    raise RefusedError("no free port under the kernel's range of outgoing ones")


@contextmanager
def running(argv: Sequence[str], directory: Path, port: int, host: str = HOST) -> Iterator[int]:
    """A program, from when it listens; gives its pid, and ends it by that, however this goes.

    :raises RefusedError: it does not start.
    """
    log = directory / f"{Path(argv[0]).name}-{port}.log"
    env = {**os.environ, "PYTHONPATH": str(TREE), "PATH": PATH}
    with log.open("wb") as stream:
        # A session of its own: Ctrl-C is for this process, which then ends its children.
        process = subprocess.Popen(
            argv, cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_until_it_listens(process, log, host, port)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Halt a program meanwhile: what it would receive waits in the kernel."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _wait_until_it_listens(
    process: subprocess.Popen[bytes], log: Path, host: str, port: int
) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return
        time.sleep(0.02)
    said = log.read_text(errors="replace").strip().splitlines()
    raise RefusedError(f"it did not start: {said[-1] if said else 'it said nothing'}")


def nginx_program(conf: Path, text: str) -> list[str]:
    """nginx with this configuration, written to ``conf``."""
    conf.write_text(text)
    return [find("nginx") or "nginx", "-p", str(conf.parent), "-e", "stderr", "-c", str(conf)]
