"""How to start each proxy that looks at how a connection begins: a ClientHello, a PROXY header."""

from __future__ import annotations

import subprocess

from benchmarks import peers
from benchmarks.loads_sni import NAME
from benchmarks.peers import SPLICE, TCP, Site, haproxy_l4, haproxy_pipes, haproxy_servers
from benchmarks.programs import HOST, find

#: Seconds that a client has for its hello.
PEEK = 5


def proxykit(site: Site) -> list[str]:
    """The service in ``mode = "sni"``."""
    listener = f"""\
mode = "sni"
peek_timeout = {PEEK}.0
[[listeners.routes]]
host = "{NAME}"
cluster = "origin"
"""
    return peers.proxykit(site, listener)


def haproxy(site: Site, settings: str = "", options: str = "") -> list[str]:
    """HAProxy, which waits for a hello, and looks at the name in it."""
    sections = f"""
frontend front
    bind {HOST}:{site.port}
    tcp-request inspect-delay {PEEK}s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    tcp-request content reject
    use_backend origin if {{ req.ssl_sni -i {NAME} }}
backend origin
{haproxy_servers(site)}
"""
    return haproxy_l4(site, sections, settings, options)


def haproxy_splice(site: Site) -> list[str]:
    """The same, made to splice through large pipes; by default it copies."""
    return haproxy(site, haproxy_pipes(), SPLICE)


def nginx(site: Site) -> list[str]:
    """nginx's stream module, which reads the hello before it goes on."""
    settings = f"""
    ssl_preread on;
    preread_timeout {PEEK}s;
    map $ssl_preread_server_name $named {{ {NAME} origin; }}
"""
    return peers.nginx(site, to="$named", settings=settings)


def prereads() -> bool:
    """Whether nginx can do that."""
    program = find("nginx")
    if program is None or peers.stream_module() is None:
        return False
    said = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=10).stderr
    return "--with-stream_ssl_preread_module" in said


def proxykit_out(site: Site) -> list[str]:
    """The service, which tells the origin of its clients."""
    return peers.proxykit(site, cluster='proxy_protocol = "v2"')


def haproxy_out(site: Site) -> list[str]:
    """HAProxy, which does so too."""
    return peers.haproxy(site, server="send-proxy-v2")


def proxykit_in(site: Site) -> list[str]:
    """The service, which is told of its clients."""
    return peers.proxykit(site, f'{TCP}\nproxy_protocol = true\ntrust = ["{HOST}"]')


def haproxy_in(site: Site) -> list[str]:
    """HAProxy, which is so too, by whoever connects."""
    return peers.haproxy(site, bind="accept-proxy")


def nginx_in(site: Site) -> list[str]:
    """nginx, the same."""
    return peers.nginx(site, listen="proxy_protocol")
