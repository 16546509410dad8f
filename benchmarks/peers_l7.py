"""How to start each L7 proxy: HTTP/1.1 kept on both sides, any request on any idle connection.

Each proxy has one listener, timeouts and its ordinary counters on, and no access log.
"""

from __future__ import annotations

import sys

from benchmarks.origin import nginx_http
from benchmarks.peers import IDLE, Site, haproxy_pipes, haproxy_program, twistd
from benchmarks.programs import HOST, connections

#: Requests that may wait for a connection to the origin, and the seconds that they may.
QUEUE = 10_000
QUEUE_TIMEOUT = 30
#: Idle connections that nginx keeps to the origin: as many as there are busy clients.
KEPT = 64


def proxykit(site: Site) -> list[str]:
    """The service in ``mode = "http"``."""
    backends = ", ".join(f'"{each}"' for each in site.backends)
    text = f"""
[clusters.origin]
backends = [{backends}]
balance = "{site.balance}"
max_connections = {site.most or connections()}
queue = {QUEUE}
queue_timeout = {QUEUE_TIMEOUT}.0
[clusters.origin.pool]
reuse = "always"

[[listeners]]
name = "front"
listen = "tcp:{site.port}:interface={HOST}"
mode = "http"
cluster = "origin"
max_connections = {connections()}
log_connections = false
"""
    return twistd(site.directory / "proxykit.toml", text)


def haproxy(site: Site, settings: str = "", options: str = "") -> list[str]:
    """HAProxy with one thread. It adds no field to a request, where proxykit adds several."""
    most = f" maxconn {site.most}" if site.most else ""
    servers = "\n".join(f"    server s{n} {each}{most}" for n, each in enumerate(site.backends))
    text = f"""
global
    nbthread 1
    maxconn {connections()}
    {settings}
defaults
    mode http
    timeout connect 5s
    timeout queue {QUEUE_TIMEOUT}s
    timeout client {IDLE}s
    timeout server {IDLE}s
    timeout http-request {IDLE}s
    timeout http-keep-alive {IDLE}s
listen front
    bind {HOST}:{site.port}
    balance leastconn
    http-reuse always
    {options}
{servers}
"""
    return haproxy_program(site.directory / "haproxy.cfg", text)


def haproxy_splice(site: Site) -> list[str]:
    """The same, made to splice through large pipes; by default it copies."""
    return haproxy(site, haproxy_pipes(), "option splice-request\n    option splice-response")


def nginx(site: Site) -> list[str]:
    """nginx with its http module, in one process; it streams what it can't hold in memory."""
    servers = " ".join(f"server {each};" for each in site.backends)
    settings = f"""
    upstream origin {{
        {servers}
        keepalive {KEPT};
        keepalive_requests 1000000000;
    }}
    server {{
        listen {HOST}:{site.port} backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_connect_timeout 5s;
            proxy_read_timeout {IDLE}s;
            proxy_max_temp_file_size 0;
        }}
    }}
"""
    return nginx_http(site.directory / "proxy.conf", settings)


def twisted_web(site: Site) -> list[str]:
    """What comes with Twisted, on its own epoll reactor; each request has its own connection."""
    return _module("benchmarks.twisted_proxy", site)


def aiohttp(site: Site) -> list[str]:
    """The proxy that one writes with aiohttp."""
    return _module("benchmarks.aiohttp_proxy", site)


def _module(name: str, site: Site) -> list[str]:
    return [sys.executable, "-m", name, str(site.port), site.backends[0]]
