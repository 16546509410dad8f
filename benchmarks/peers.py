"""How to start each proxy, and the origin behind it: loopback, a directory of its own, by its pid.

Each proxy has one listener, timeouts and its ordinary counters on, and no log of connections.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
#: Seconds for every idle timeout; none of them comes to pass.
IDLE = 600
#: Bytes of the file that the origin has under /bulk: more than any cache, and asked for repeatedly.
BULK = 1 << 28
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


@dataclass(frozen=True)
class Site:
    """What a proxy is to do: where to listen, for which backends (host:port), in ``directory``."""

    directory: Path
    port: int
    backends: Sequence[str]
    balance: str = "least-connections"


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


def bulk_file(directory: Path) -> None:
    """Make what the origin has under /bulk: sparse, and read once.

    The kernel fills its cache from a sparse file more slowly than a proxy relays.
    """
    with (directory / "bulk").open("w+b") as file:
        file.truncate(BULK)
        while file.read(1 << 20):
            pass


@contextmanager
def origin(directory: Path, hosts: Sequence[str] = (HOST,)) -> Iterator[int]:
    """nginx as the origin, a small answer at /, and the file at /bulk; gives its port."""
    port = free_port(hosts[-1])
    listen = "\n".join(f"listen {host}:{port} backlog=4096;" for host in hosts)
    text = f"""
daemon off;
master_process off;  # one process, which stays the present user
pid {directory}/origin.pid;
error_log stderr error;
# Twice what is needed: with less than a sixteenth free, nginx closes kept connections.
events {{ worker_connections {2 * (connections() + len(hosts))}; }}
http {{
    access_log off;
    server_tokens off;
    sendfile on;
    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_header_timeout 1h;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        {listen}
        location = /bulk {{ root {directory}; }}
        location / {{ default_type text/plain; return 200 "proxied\\n"; }}
    }}
}}
"""
    with running(_nginx(directory / "origin.conf", text), directory, port, hosts[0]):
        yield port


def _nginx(conf: Path, text: str) -> list[str]:
    conf.write_text(text)
    return [find("nginx") or "nginx", "-p", str(conf.parent), "-e", "stderr", "-c", str(conf)]


def proxykit(site: Site) -> list[str]:
    """The service as one starts it, with its reactor."""
    conf = site.directory / "proxykit.toml"
    backends = ", ".join(f'"{each}"' for each in site.backends)
    conf.write_text(f"""
[clusters.origin]
backends = [{backends}]
balance = "{site.balance}"
max_connections = {connections()}

[[listeners]]
name = "front"
listen = "tcp:{site.port}:interface={HOST}"
mode = "tcp"
cluster = "origin"
max_connections = {connections()}
idle_timeout = {IDLE}.0
log_connections = false
""")
    twistd = "from twisted.scripts.twistd import run; run()"
    return [sys.executable, "-P", "-c", twistd, "-n", "--pidfile=", "proxykit", "-c", str(conf)]


def haproxy(site: Site, settings: str = "", options: str = "") -> list[str]:
    """HAProxy with one thread."""
    conf = site.directory / "haproxy.cfg"
    servers = "\n".join(f"    server s{n} {each}" for n, each in enumerate(site.backends))
    balance = {"least-connections": "leastconn", "round-robin": "roundrobin"}[site.balance]
    conf.write_text(f"""
global
    nbthread 1
    maxconn {connections()}
    {settings}
defaults
    mode tcp
    timeout connect 5s
    timeout client {IDLE}s
    timeout server {IDLE}s
listen front
    bind {HOST}:{site.port}
    balance {balance}
    {options}
{servers}
""")
    return [find("haproxy") or "haproxy", "-db", "-f", str(conf)]


def haproxy_splice(site: Site) -> list[str]:
    """The same, made to splice through large pipes; by default it copies."""
    # By default it wants a pipe for every fourth connection, and the descriptors for them.
    return haproxy(
        site,
        f"maxpipes {OTHERS // 4}\ntune.pipesize {1 << 20}\nmaxconn {connections() // 2}",
        "option splice-request\noption splice-response",
    )


def nginx(site: Site) -> list[str]:
    """nginx's stream module, in one process."""
    module = stream_module()
    load = f"load_module {module};" if module else ""
    servers = " ".join(f"server {each};" for each in site.backends)
    balance = "least_conn;" if site.balance == "least-connections" else ""
    text = f"""
{load}
daemon off;
master_process off;
worker_processes 1;
pid {site.directory}/stream.pid;
error_log stderr error;
events {{ worker_connections {2 * connections()}; }}
stream {{
    upstream origin {{ {balance} {servers} }}
    server {{
        listen {HOST}:{site.port} backlog=4096;
        proxy_pass origin;
        proxy_connect_timeout 5s;
        proxy_timeout {IDLE}s;
    }}
}}
"""
    return _nginx(site.directory / "stream.conf", text)


def stream_module() -> str | None:
    """The file to load for nginx's stream module; "" where it is built in; None: there is none."""
    if (program := find("nginx")) is None:
        return None
    said = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=10).stderr
    if "--with-stream=dynamic" not in said:
        return "" if re.search(r"--with-stream(?!\S)", said) else None
    where = re.search(r"--modules-path=(\S+)", said)
    module = Path(where[1] if where else "/usr/lib/nginx/modules") / "ngx_stream_module.so"
    return str(module) if module.exists() else None


def portforward(site: Site) -> list[str]:
    """What comes with Twisted, on its own reactor."""
    return [sys.executable, "-m", "benchmarks.portforward", str(site.port), site.backends[0]]
