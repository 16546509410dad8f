"""The origin behind every proxy: nginx, on loopback, with an answer for each kind of request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.programs import HOST, connections, free_port, nginx_program, running

#: The files that it has where they were made, and their bytes. /bulk is more than any cache holds,
#: and asked for repeatedly.
FILES = {"bulk": 1 << 28, "16k": 1 << 14, "64m": 1 << 26}
#: Bytes of a body that it reads under /post.
POST = 4096


def make_file(directory: Path, name: str, size: int) -> None:
    """Make what the origin has under /NAME: that many bytes, sparse, and read once.

    The kernel fills its cache from a sparse file more slowly than a proxy relays.
    """
    with (directory / name).open("w+b") as file:
        file.truncate(size)
        while file.read(1 << 20):
            pass


def nginx_http(conf: Path, settings: str) -> list[str]:
    """nginx for HTTP, in one process that stays the present user, with kept connections and no log.

    ``conf`` is where its configuration goes; what else it writes goes beside it.
    """
    text = f"""
daemon off;
master_process off;
worker_processes 1;
pid {conf}.pid;
error_log stderr error;
# More than is needed: with less than a sixteenth free, nginx closes kept connections.
events {{ worker_connections {4 * connections()}; }}
http {{
    access_log off;
    server_tokens off;
    sendfile on;
    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_header_timeout 1h;
    client_body_temp_path {conf}.body;
    proxy_temp_path {conf}.proxy;
    fastcgi_temp_path {conf}.fastcgi;
    uwsgi_temp_path {conf}.uwsgi;
    scgi_temp_path {conf}.scgi;
    {settings}
}}
"""
    return nginx_program(conf, text)


@contextmanager
def origin(directory: Path, hosts: Sequence[str] = (HOST,)) -> Iterator[tuple[int, int]]:
    """nginx as the origin; gives its port and its pid.

    It has a small answer at any path, the files of ``directory`` at their names, and at /post an
    answer to who has sent a body of :data:`POST` bytes.
    """
    port = free_port(hosts[-1])
    listen = "\n        ".join(f"listen {host}:{port} backlog=4096;" for host in hosts)
    files = "\n        ".join(f"location = /{name} {{ root {directory}; }}" for name in FILES)
    # An nginx that answers by itself does so before the body has come; one that asks another server
    # reads all of it first. So /post asks a server of its own, and tells it how much has come.
    settings = f"""
    open_file_cache max=10;
    upstream reader {{
        server unix:{directory}/reader.sock;
        keepalive 128;
        keepalive_requests 1000000000;
    }}
    server {{
        {listen}
        default_type text/plain;
        {files}
        location = /post {{
            proxy_pass http://reader;
            proxy_http_version 1.1;
            proxy_method GET;
            proxy_pass_request_headers off;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Connection "";
            proxy_set_header Received $request_length;
        }}
        location / {{ return 200 "proxied\\n"; }}
    }}
    server {{
        listen unix:{directory}/reader.sock;
        default_type text/plain;
        # {POST} and a head: too little where the body is missing.
        if ($http_received !~ "^{POST // 1000}\\d\\d\\d$") {{ return 400 "no body\\n"; }}
        location / {{ return 200 "proxied\\n"; }}
    }}
"""
    argv = nginx_http(directory / "origin.conf", settings)
    with running(argv, directory, port, hosts[0]) as pid:
        yield port, pid
