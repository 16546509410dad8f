"""PROXY headers through ``twistd proxykit``: HAProxy and curl before it, HAProxy and nginx behind.

Clients leave from addresses of their own, so that nobody takes the programs on the way for them.
"""

from __future__ import annotations

import re
import socket
import ssl
from http.client import HTTPResponse
from typing import Any

from proxykit.wire.proxyproto import Endpoint, Header, HeaderReader
from tests.http_sockets import answer, start_origin
from tests.interop import programs, test_proxyproto
from tests.modes.test_http_tls import pem
from tests.sockets import BLOCKING, HOST, in_thread, start_backend, until

#: Where clients are.
HERE, THERE = "127.0.0.5", "127.0.0.6"
VERSIONS = ("send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id")
HIDDEN = "send-proxy-v2 proxy-v2-options unique-id,authority,crc32c"

_SENDER = """
frontend front
    mode tcp
    bind {bind}
    unique-id-format id-%ci
    default_backend next
backend next
    mode tcp
    server next 127.0.0.1:{port} {options}
"""

_CHECKING = """
frontend front
    mode http
    bind {bind}
    default_backend next
backend next
    mode http
    option httpchk GET /healthz
    server next 127.0.0.1:{port} {options} check check-send-proxy inter 100ms
"""

_RECEIVER = """
frontend front
    mode http
    bind 127.0.0.1:{port} accept-proxy
    http-request return status 200 content-type text/plain \
lf-string "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_unique_id]"
"""

_NGINX = """
ssl_certificate PEM;
ssl_certificate_key PEM;
server {
    listen 127.0.0.1:PLAIN proxy_protocol;
    listen 127.0.0.1:TLS ssl proxy_protocol;
    set_real_ip_from 127.0.0.1;
    real_ip_header proxy_protocol;
    return 200 "$remote_addr $remote_port $proxy_protocol_server_addr \
$proxy_protocol_server_port $connection $connection_requests\\n";
}
"""

_FILE = """
[clusters.web]
backends = ["127.0.0.1:{backend}"]
proxy_protocol = "{version}"
[[listeners]]
name = "front"
listen = "tcp:{port}:interface=127.0.0.1"
mode = "{mode}"
cluster = "web"
"""


class ProxyTestCase(test_proxyproto.ProgramTests):
    """What they have in common: a proxy in a process of its own, and clients."""

    timeout = 120

    async def proxykit(self, mode: str, *arguments: str) -> Any:
        """Start ``twistd proxykit MODE``; sets ``port``."""
        self.port = programs.free_port()
        where = f"tcp:{self.port}:interface={HOST}"
        self.service = await programs.service(self, [mode, "--listen", where, *arguments])
        return self.service

    async def from_file(self, mode: str, version: str, backend: int) -> None:
        """The same as a file says it, with a cluster that is told whose its connections are."""
        self.port = programs.free_port()
        path = self.directory() / "proxykit.toml"
        path.write_text(_FILE.format(backend=backend, version=version, port=self.port, mode=mode))
        self.service = await programs.service(self, ["--config", str(path)])

    def sender(self, options: str, bind: str = "", text: str = _SENDER) -> int:
        """Start HAProxy before that; gives its port."""
        port = programs.free_port()
        self.haproxy(text.format(bind=f"{HOST}:{port}{bind}", port=self.port, options=options))
        return port

    async def client(self, port: int, source: str = HERE) -> socket.socket:
        """A blocking socket that is connected, once there is a listener."""

        def attempt() -> socket.socket | None:
            made = socket.socket()
            made.bind((source, 0))
            if made.connect_ex((HOST, port)):
                made.close()
                return None
            return made

        made: socket.socket = await until(attempt)
        self.addCleanup(made.close)
        made.settimeout(BLOCKING)
        return made

    async def curl(self, *arguments: str, source: str = HERE) -> str:
        """Run curl; gives what it prints."""
        status, printed = await self.try_curl(source, *arguments)
        self.assertEqual(status, 0, printed)
        return printed

    async def try_curl(self, source: str, *arguments: str) -> tuple[int, str]:
        """The same, with its status."""
        argv = [programs.require("curl"), "-sS", "--max-time", "20", "--interface", source]
        status, printed = await programs.run(self, [*argv, *arguments])
        return status, printed

    def assert_ends(self, header: Header, client: socket.socket, *version: int) -> None:  # type: ignore[override]
        """The header names the two ends of the client's connection."""
        self.assertEqual((header.version, header.local), (2, False))
        self.assertEqual(header.source, Endpoint(*client.getsockname()))
        self.assertEqual(header.destination, Endpoint(*client.getpeername()))

    async def nginx(self) -> tuple[int, int]:
        """Start nginx, which answers whom it takes a client for; gives its ports, the second one
        under TLS."""
        plain, tls = programs.free_port(), programs.free_port()
        path = self.directory() / "both.pem"
        path.write_bytes(pem())
        text = _NGINX.replace("PLAIN", str(plain)).replace("TLS", str(tls))
        await programs.nginx(self, text.replace("PEM", str(path)))
        return plain, tls


async def ask(client: socket.socket) -> str:
    """One more request; gives the body of the answer."""

    def talk() -> bytes:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        response = HTTPResponse(client)
        response.begin()
        return response.read()

    return (await in_thread(talk)).decode()


async def read_header(end: Any, behind: bytes) -> Header:
    """What a connection begins with, before ``behind``."""
    await until(lambda: end.received.endswith(behind))
    reader = HeaderReader()
    header = reader.feed(bytes(end.received))
    assert header is not None
    assert reader.rest == behind, end.received
    return header


class BeforeTests(ProxyTestCase):
    """HAProxy and curl say who the client is."""

    async def test_tcp(self) -> None:
        """The log has the client; the backend is told of it, and of its unique id."""
        origin = await start_backend(self)
        both = ("--proxy-protocol", "both", "--trust", HOST)
        await self.proxykit("tcp", "--backend", str(origin.address), *both)
        for options in VERSIONS:
            client = await self.client(self.sender(options))
            client.sendall(b"hello")
            served = await origin.accepted()
            header = await read_header(served, b"hello")
            self.assert_ends(header, client)
            expected = f"id-{HERE}".encode() if "unique-id" in options else None
            self.assertEqual(header.unique_id, expected)
            served.send(b"welcome")
            self.assertEqual(await in_thread(client.recv, 100), b"welcome")
            port = client.getsockname()[1]
            client.close()
            await served.ended()
            served.close()
            await self.service.wait_for(rf"tcp #\d+: {HERE}:{port} -> backends .*: 5 bytes up, 7 b")

    async def test_what_haproxy_has_decrypted(self) -> None:
        """The name that the client has asked for goes on to the backend."""
        origin = await start_backend(self)
        both = ("--proxy-protocol", "both", "--trust", HOST)
        await self.proxykit("tcp", "--backend", str(origin.address), *both)
        path = self.directory() / "both.pem"
        path.write_bytes(pem())
        plain = await self.client(self.sender(HIDDEN, f" ssl crt {path}"))
        context = ssl.create_default_context(cadata=certificate())
        client = await in_thread(lambda: context.wrap_socket(plain, server_hostname="a.example"))
        self.addCleanup(client.close)
        await in_thread(client.sendall, b"hello")
        header = await read_header(await origin.accepted(), b"hello")
        self.assert_ends(header, client)
        self.assertEqual((header.authority, header.unique_id), ("a.example", f"id-{HERE}".encode()))

    async def test_http(self) -> None:
        """The backend sees it in a field, and the access log has it."""
        origin = await start_origin(self, [answer(b"ok")])
        log = self.directory() / "access"
        await self.proxykit(
            *("http", "--backend", str(origin.address), "--access-log", str(log)),
            *("--proxy-protocol", "in", "--trust", HOST),
        )
        for options in VERSIONS:
            port = self.sender(options)
            (await self.client(port)).close()  # It listens.
            for source in (HERE, THERE):
                url = f"http://{HOST}:{port}/{source}"
                self.assertEqual(await self.curl(url, source=source), "ok")
        fields = [(asked.target, asked["X-Forwarded-For"]) for asked in origin.requests]
        self.assertEqual(fields, [(f"/{HERE}", HERE), (f"/{THERE}", THERE)] * len(VERSIONS))
        await self.service.stop()
        self.assertEqual(
            re.findall(r'^(\S+) .*"GET /(\S+) ', log.read_text(), re.MULTILINE),
            [(HERE, HERE), (THERE, THERE)] * len(VERSIONS),
        )

    async def test_sni(self) -> None:
        """Behind the header comes TLS, which goes on as it is, behind ours."""
        _, tls = await self.nginx()
        route = f"a.example={HOST}:{tls}"
        both = ("--proxy-protocol", "both", "--trust", HOST)
        await self.proxykit("sni", "--route", route, *both)
        for options in (*VERSIONS, HIDDEN):
            port = self.sender(options)
            (await self.client(port)).close()
            said = await self.curl(
                *("-k", "--connect-to", f"::{HOST}:{port}", f"https://a.example:{port}/")
            )
            self.assertEqual(said.split()[::2][:2], [HERE, HOST])
            self.assertEqual(said.split()[3], str(port))
        await self.service.wait_for(rf"sni #\d+: {HERE}:\d+ \(a\.example\) -> ")

    async def test_health_checks(self) -> None:
        """They are HAProxy's own connections, and so they say."""
        origin = await start_origin(self, [answer(b"ok")])
        both = ("--proxy-protocol", "in", "--trust", HOST)
        await self.proxykit("http", "--backend", str(origin.address), *both)
        for options in ("send-proxy", "send-proxy-v2"):
            before = len(origin.requests)
            self.sender(options, text=_CHECKING)
            await until(lambda before=before: len(origin.requests) > before)
            asked = origin.requests[-1]
            self.assertEqual((asked.target, asked["X-Forwarded-For"]), ("/healthz", HOST))
            await self.child.stop()

    async def test_curl(self) -> None:
        """It names its own connection; without that, or from elsewhere, it is not let in."""
        origin = await start_origin(self, [answer(b"ok")])
        both = ("--proxy-protocol", "in", "--trust", HERE)
        await self.proxykit("http", "--backend", str(origin.address), *both)
        url = f"http://{HOST}:{self.port}/"
        self.assertEqual(await self.curl("--haproxy-protocol", url, url), "okok")
        self.assertEqual([asked["X-Forwarded-For"] for asked in origin.requests], [HERE] * 2)
        for source, arguments in ((HERE, ()), (THERE, ("--haproxy-protocol",))):
            status, printed = await self.try_curl(source, *arguments, url)
            self.assertIn(status, (52, 55, 56), printed)  # Nothing came, or it was reset.
        await self.service.wait_for(rf"http: {THERE}:\d+ refused: it may not send a PROXY header")
        self.assertEqual(len(origin.requests), 2)


class BehindTests(ProxyTestCase):
    """HAProxy and nginx are told."""

    async def test_haproxy(self) -> None:
        """Each connection is of the client that it was opened for, in either mode."""
        port = programs.free_port()
        self.haproxy(_RECEIVER.format(port=port))
        (await self.client(port)).close()
        for mode in ("tcp", "http"):
            for version in ("v1", "v2"):
                await self.from_file(mode, version, port)
                clients = [await self.client(self.port, source) for source in (HERE, THERE)]
                for _ in range(3):
                    for client in clients:
                        ends = (*client.getsockname(), *client.getpeername())
                        self.assertEqual((await ask(client)).split(), [*map(str, ends)])

    async def test_nginx(self) -> None:
        """Over HTTP, one client's requests share a connection, and two clients' do not."""
        plain, _ = await self.nginx()
        for version in ("v1", "v2"):
            await self.from_file("http", version, plain)
            clients = [await self.client(self.port, source) for source in (HERE, THERE)]
            used = []
            for number in range(1, 4):
                for client in clients:
                    *ends, connection, count = (await ask(client)).split()
                    own = (*client.getsockname(), *client.getpeername())
                    self.assertEqual(ends, [*map(str, own)])
                    self.assertEqual(count, str(number))
                    used.append(connection)
            self.assertEqual(used, used[:2] * 3)
            self.assertEqual(len(set(used)), 2)

    async def test_a_chain_of_three(self) -> None:
        """HAProxy, two of ours, nginx: the last one knows whom the first one saw."""
        plain, _ = await self.nginx()
        both = ("--proxy-protocol", "both", "--trust", HOST)
        await self.proxykit("http", "--backend", f"{HOST}:{plain}", *both)
        await self.proxykit("tcp", "--backend", f"{HOST}:{self.port}", *both)
        for options in VERSIONS:
            client = await self.client(self.sender(options))
            own = (*client.getsockname(), *client.getpeername())
            self.assertEqual((await ask(client)).split()[:4], [*map(str, own)])


def certificate() -> str:
    """The one that goes with the key."""
    text = pem().decode()
    return text[text.index("-----BEGIN CERT") :]
