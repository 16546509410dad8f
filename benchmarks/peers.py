"""How to start each L4 proxy: on loopback, in a directory of its own.

Each proxy has one listener, timeouts and its ordinary counters on, and no log of connections.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.programs import HOST, OTHERS, connections, find, nginx_program

#: Seconds for every idle timeout; none of them comes to pass.
IDLE = 600
#: What makes proxykit's listener an L4 one.
TCP = 'mode = "tcp"\ncluster = "origin"'
#: HAProxy's options to splice.
SPLICE = "option splice-request\n    option splice-response"


@dataclass(frozen=True)
class Site:
    """What a proxy is to do: where to listen, for which backends (host:port), in ``directory``.

    :ivar most: connections to each backend; by default as many as there can be.
    """

    directory: Path
    port: int
    backends: Sequence[str]
    balance: str = "least-connections"
    most: int | None = None


def twistd(conf: Path, text: str) -> list[str]:
    """proxykit's service as one starts it, with its reactor, and this configuration."""
    conf.write_text(text)
    program = "from twisted.scripts.twistd import run; run()"
    return [sys.executable, "-P", "-c", program, "-n", "--pidfile=", "proxykit", "-c", str(conf)]


def proxykit(site: Site, listener: str = TCP, cluster: str = "") -> list[str]:
    """The service in ``mode = "tcp"``.

    :param listener: what the listener's table has in place of mode and cluster.
    :param cluster: more of the cluster's table.
    """
    backends = ", ".join(f'"{each}"' for each in site.backends)
    text = f"""
[clusters.origin]
backends = [{backends}]
balance = "{site.balance}"
max_connections = {connections()}
{cluster}

[[listeners]]
name = "front"
listen = "tcp:{site.port}:interface={HOST}"
max_connections = {connections()}
idle_timeout = {IDLE}.0
log_connections = false
{listener}
"""
    return twistd(site.directory / "proxykit.toml", text)


def uncounted(start: Callable[[Site], list[str]], site: Site) -> list[str]:
    """The service as ``start`` has it, without its book of source ports."""
    command = start(site)
    return [sys.executable, "-m", "benchmarks.uncounted", *command[command.index("-n") :]]


def haproxy(site: Site, bind: str = "", server: str = "") -> list[str]:
    """HAProxy with one thread; ``bind`` and ``server`` are more of the lines of those names."""
    return haproxy_l4(site, haproxy_listen(site, bind, server))


def haproxy_listen(site: Site, bind: str = "", server: str = "") -> str:
    """The section that relays whatever comes."""
    return f"""
listen front
    bind {HOST}:{site.port} {bind}
{haproxy_servers(site, server)}
"""


def haproxy_servers(site: Site, server: str = "") -> str:
    """The lines that name the backends."""
    servers = [f"    server s{n} {each} {server}" for n, each in enumerate(site.backends)]
    balance = {"least-connections": "leastconn", "round-robin": "roundrobin"}[site.balance]
    return "\n".join([f"    balance {balance}", *servers])


def haproxy_l4(site: Site, sections: str, settings: str = "", options: str = "") -> list[str]:
    """HAProxy with these sections; ``settings`` are global, ``options`` those of all sections."""
    text = f"""
global
    nbthread 1
    maxconn {connections()}
    {settings}
defaults
    mode tcp
    timeout connect 5s
    timeout client {IDLE}s
    timeout server {IDLE}s
    {options}
{sections}
"""
    return haproxy_program(site.directory / "haproxy.cfg", text)


def haproxy_splice(site: Site) -> list[str]:
    """The same, made to splice through large pipes; by default it copies."""
    return haproxy_l4(site, haproxy_listen(site), haproxy_pipes(), SPLICE)


def haproxy_program(conf: Path, text: str) -> list[str]:
    """HAProxy with this configuration, written to ``conf``."""
    conf.write_text(text)
    return [find("haproxy") or "haproxy", "-db", "-f", str(conf)]


def haproxy_pipes() -> str:
    """The global settings for large pipes.

    By default it wants a pipe for every fourth connection, and the descriptors for them.
    """
    pipes = f"maxpipes {OTHERS // 4}\n    tune.pipesize {1 << 20}"
    return f"{pipes}\n    maxconn {connections() // 2}"


def nginx(site: Site, listen: str = "", to: str = "origin", settings: str = "") -> list[str]:
    """nginx's stream module, in one process.

    :param listen: more of the line of that name.
    :param to: what it passes connections to: the upstream ``origin``, or a variable.
    :param settings: more of them, for all of the stream module.
    """
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
    {settings}
    server {{
        listen {HOST}:{site.port} backlog=4096 {listen};
        proxy_pass {to};
        proxy_connect_timeout 5s;
        proxy_timeout {IDLE}s;
    }}
}}
"""
    return nginx_program(site.directory / "stream.conf", text)


@cache
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
