"""PROXY headers between programs: HAProxy's and curl's read, ours read by HAProxy and nginx."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.wire.proxyproto import Endpoint, Header, HeaderReader, Malformed, v1, v2
from tests.interop import programs
from tests.sockets import (
    BLOCKING,
    TIMEOUT,
    BackendServer,
    in_thread,
    read_all,
    start_backend,
    until,
)
from tests.wire.test_proxyproto import INET, block, tlv

HOST = "127.0.0.1"
SOURCE = Endpoint("192.0.2.7", 56324)
DESTINATION = Endpoint("198.51.100.9", 443)
SIX = (Endpoint("2001:db8::7", 56324), Endpoint("::ffff:198.51.100.9", 443))
UNIX = (Endpoint("/run/a.sock", 0), Endpoint("/run/b.sock", 0))

_DEFAULTS = """
global
    nbthread 1
defaults
    timeout connect 20s
    timeout client 20s
    timeout server 20s
"""

_SENDER = """
backend origin
    mode tcp
    server origin 127.0.0.1:{origin} {options}
frontend front
    mode tcp
    bind {address}
    unique-id-format id-%ci
    default_backend origin
"""

_RECEIVER = """
frontend front
    mode http
    bind 127.0.0.1:{port} accept-proxy
    http-request return status 200 content-type text/plain \
lf-string "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_authority] %[fc_pp_unique_id]"
"""

_NGINX = """
server {
    listen 127.0.0.1:PORT proxy_protocol;
    return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr \
$proxy_protocol_server_port";
}
"""


class ProgramTests(TestCase):
    """What they have in common."""

    timeout = TIMEOUT

    def haproxy(self, text: str, directory: Path | None = None) -> None:
        """Start HAProxy; it listens soon."""
        program = programs.require("haproxy")
        directory = directory or self.directory()
        conf = directory / "haproxy.cfg"
        conf.write_text(_DEFAULTS + text)
        self.child = programs.Child.start(self, [program, "-db", "-f", str(conf)], cwd=directory)

    def directory(self) -> Path:
        """A new one."""
        directory = Path(self.mktemp()).resolve()
        directory.mkdir(parents=True)
        return directory

    async def connect(self, address: Any, family: socket.AddressFamily = socket.AF_INET) -> Any:
        """A blocking socket that is connected, once there is a listener."""

        def attempt() -> socket.socket | None:
            self.assertIsNone(self.child.status, self.child.output)
            made = socket.socket(family)
            if made.connect_ex(address):
                made.close()
                return None
            return made

        made = await until(attempt)
        self.addCleanup(made.close)
        made.settimeout(BLOCKING)
        return made


class SenderTests(ProgramTests):
    """What HAProxy says of its clients."""

    async def header(
        self, options: str, address: Any = None, family: socket.AddressFamily = socket.AF_INET
    ) -> Any:
        """The header of one connection through HAProxy, and the client's socket."""
        origin = await start_backend(self)
        address = address or (HOST, programs.free_port())
        bind = "unix@" + address if isinstance(address, str) else "{}:{}".format(*address[:2])
        self.haproxy(_SENDER.format(origin=origin.address.port, options=options, address=bind))
        client = await self.connect(address, family)
        client.sendall(b"hello")
        return await self.read(origin, b"hello"), client

    async def read(self, origin: BackendServer, behind: bytes = b"") -> Header:
        """What the next connection of the origin's starts with; that is all but ``behind``."""
        served = await origin.accepted()
        reader = HeaderReader()
        fed = 0

        def feed() -> Header | None:
            nonlocal fed
            data = bytes(served.received[fed:])
            fed += len(data)
            return reader.feed(data)

        header: Header = await until(feed)
        await until(lambda: len(served.received) >= reader.size + len(behind))
        self.assertEqual(bytes(served.received[reader.size :]), behind)
        return header

    def assert_ends(self, header: Header, version: int, client: socket.socket) -> None:
        """The header names the two ends of the client's connection."""
        self.assertEqual((header.version, header.local), (version, False))
        self.assertEqual(header.source, Endpoint(*client.getsockname()[:2]))
        self.assertEqual(header.destination, Endpoint(*client.getpeername()[:2]))

    async def test_version_1(self) -> None:
        header, client = await self.header("send-proxy")
        self.assert_ends(header, 1, client)

    async def test_version_2(self) -> None:
        header, client = await self.header("send-proxy-v2")
        self.assert_ends(header, 2, client)
        self.assertEqual(header.tlvs, ())

    async def test_checksum_and_unique_id(self) -> None:
        options = "send-proxy-v2 proxy-v2-options crc32c,unique-id"
        header, client = await self.header(options)
        self.assert_ends(header, 2, client)
        self.assertEqual(header.unique_id, b"id-127.0.0.1")

    async def test_ipv6(self) -> None:
        for version, options in ((1, "send-proxy"), (2, "send-proxy-v2")):
            try:
                port = programs.free_port("::1")
            except OSError:
                self.skipTest("no ::1 here")
            header, client = await self.header(options, ("::1", port), socket.AF_INET6)
            self.assert_ends(header, version, client)

    async def test_unix(self) -> None:
        """HAProxy says LOCAL or UNKNOWN of whom has no address."""
        for version, options in (
            (1, "send-proxy"),
            (2, "send-proxy-v2"),
            (2, "send-proxy-v2 proxy-v2-options crc32c,unique-id"),
        ):
            # HAProxy takes 97 bytes, for it adds some of its own.
            short = tempfile.TemporaryDirectory()
            self.addCleanup(short.cleanup)
            path = os.path.join(short.name, "s")
            header, _ = await self.header(options, path, socket.AF_UNIX)
            self.assertEqual(header, Header(version, True))

    async def test_tls(self) -> None:
        """The name and the protocol of the client's hello, and what TLS came to."""
        origin = await start_backend(self)
        directory = self.directory()
        status, printed = await programs.run(
            self,
            [programs.require("openssl"), "req", "-x509", "-nodes", "-newkey", "rsa:2048",
             "-subj", "/CN=a.example", "-keyout", "key.pem", "-out", "certificate.pem"],
            cwd=directory,
        )  # fmt: skip
        self.assertEqual(status, 0, printed)
        pem = directory / "both.pem"
        pem.write_text(
            (directory / "key.pem").read_text() + (directory / "certificate.pem").read_text()
        )
        port = programs.free_port()
        options = "ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id"
        self.haproxy(
            _SENDER.format(
                origin=origin.address.port,
                options=f"send-proxy-v2 proxy-v2-options {options}",
                address=f"{HOST}:{port} ssl crt {pem} alpn h2,http/1.1",
            )
        )
        plain = await self.connect((HOST, port))
        context = ssl.create_default_context(cafile=str(directory / "certificate.pem"))
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        client = await in_thread(lambda: context.wrap_socket(plain, server_hostname="a.example"))
        self.addCleanup(client.close)
        await in_thread(client.sendall, b"hello")
        header = await self.read(origin, b"hello")
        self.assert_ends(header, 2, client)
        self.assertEqual(
            (header.alpn, header.authority, header.unique_id),
            (b"h2", "a.example", b"id-127.0.0.1"),
        )
        (said,) = (value for kind, value in header.tlvs if kind == 0x20)
        version = client.version().encode()
        self.assertIn(b"\x21" + len(version).to_bytes(2, "big") + version, said)

    async def test_health_check(self) -> None:
        """A check is HAProxy's own connection: LOCAL, or its own two ends."""
        for version, options in ((1, "send-proxy"), (2, "send-proxy-v2")):
            origin = await start_backend(self)
            options += " check check-send-proxy inter 600s"
            self.haproxy(
                _SENDER.format(
                    origin=origin.address.port,
                    options=options,
                    address=f"{HOST}:{programs.free_port()}",
                )
            )
            header = await self.read(origin)
            self.assertEqual(header.version, version)
            self.assertTrue(header.local or header.destination == Endpoint(
                HOST, origin.address.port))  # fmt: skip

    async def test_curl(self) -> None:
        """``curl --haproxy-protocol`` names its own connection."""
        origin = await start_backend(self)
        url = f"http://{HOST}:{origin.address.port}/"
        curl = programs.require("curl")
        programs.Child.start(self, [curl, "-sS", "--haproxy-protocol", "--max-time", "20", url])
        served = await origin.accepted()
        await until(lambda: served.received.endswith(b"\r\n\r\n"))
        reader = HeaderReader()
        peer = served.transport.getPeer()
        self.assertEqual(
            reader.feed(bytes(served.received)),
            Header(1, False, Endpoint(HOST, peer.port), Endpoint(HOST, origin.address.port)),
        )
        self.assertTrue(reader.rest.startswith(b"GET / HTTP/1.1\r\n"))
        served.send(b"HTTP/1.1 204 No Content\r\n\r\n")


class ReceiverTests(ProgramTests):
    """What HAProxy and nginx make of our headers, and of bad ones."""

    async def ask(self, header: bytes) -> tuple[str, str]:
        """What the receiver says of a connection that starts so ("" if it refuses it), and what it
        would say without a header."""
        client = await self.connect((HOST, self.port))
        own = "{} {} {} {}".format(*client.getsockname(), *client.getpeername())

        def talk() -> bytes:
            try:
                client.sendall(header + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                return read_all(client)
            except (ConnectionResetError, BrokenPipeError):
                return b""

        answer = (await in_thread(talk)).decode("utf-8", "replace")
        head, _, body = answer.partition("\r\n\r\n")
        return (body.rstrip() if head.startswith("HTTP/1.1 200 ") else ""), own

    async def receiver(self) -> None:
        """HAProxy that answers whom it takes a client for."""
        self.port = programs.free_port()
        self.haproxy(_RECEIVER.format(port=self.port))

    async def test_addresses(self) -> None:
        await self.receiver()
        six = "2001:db8::7 56324 ::ffff:198.51.100.9 443"
        tlvs = ((1, b"h2"), (2, b"a.example"), (4, bytes(9)), (5, b"uid"), (0xE0, b""))
        for header, expected in (
            (v1(SOURCE, DESTINATION), "192.0.2.7 56324 198.51.100.9 443"),
            (v2(SOURCE, DESTINATION), "192.0.2.7 56324 198.51.100.9 443"),
            (v1(*SIX), six),
            (v2(*SIX), six),
            (v1(SOURCE, SIX[1]), "::ffff:192.0.2.7 56324 ::ffff:198.51.100.9 443"),
            (v2(SOURCE, SIX[1]), "::ffff:192.0.2.7 56324 ::ffff:198.51.100.9 443"),
            (v2(*SIX, crc=True), six),
            (v2(SOURCE, DESTINATION, tlvs),
             "192.0.2.7 56324 198.51.100.9 443 a.example uid"),
            (v2(SOURCE, DESTINATION, tlvs, crc=True),
             "192.0.2.7 56324 198.51.100.9 443 a.example uid"),
        ):  # fmt: skip
            said, _ = await self.ask(header)
            self.assertEqual(said, expected, header)

    async def test_local(self) -> None:
        await self.receiver()
        for header in (
            v1(None, None),
            v1(*UNIX),
            v2(None, None),
            v2(None, None, crc=True),
            v2(SOURCE, None),
            v2(SOURCE, DESTINATION, local=True),
        ):
            said, own = await self.ask(header)
            self.assertEqual(said, own, header)

    async def test_nginx(self) -> None:
        programs.require("nginx")
        self.port = programs.free_port()
        self.child = await programs.nginx(self, _NGINX.replace("PORT", str(self.port)))
        tlvs = ((2, b"a.example"), (5, b"uid"))
        for header, expected in (
            (v1(SOURCE, DESTINATION), "192.0.2.7 56324 198.51.100.9 443"),
            (v2(SOURCE, DESTINATION), "192.0.2.7 56324 198.51.100.9 443"),
            (v2(SOURCE, DESTINATION, tlvs, crc=True), "192.0.2.7 56324 198.51.100.9 443"),
            (v1(*SIX), "2001:db8::7 56324 ::ffff:198.51.100.9 443"),
            (v2(*SIX), "2001:db8::7 56324 ::ffff:198.51.100.9 443"),
        ):
            said, _ = await self.ask(header)
            self.assertEqual(said, expected, header)

    async def test_what_is_refused(self) -> None:
        """HAProxy and this reader agree, but where it says here who refuses alone."""
        await self.receiver()
        line = b"PROXY TCP4 %b\r\n"
        both, we, haproxy = "both", "we", "HAProxy"
        for data, who in (
            (b"PROXY\r\n", both),
            (b"PROXY TCP5 192.0.2.7 198.51.100.9 1 2\r\n", both),
            (line % b"192.0.2.7 198.51.100.9 1", both),
            (b"PROXY TCP6 192.0.2.7 198.51.100.9 1 2\r\n", both),
            (b"PROXY TCP6 1::2::3 ::1 1 2\r\n", both),
            (b"PROXY UNKNOWNS\r\n", both),
            (b"PROXY UNKNOWN ".ljust(200, b"x") + b"\r\n", both),
            (block(0x31), both),
            (block(0x22), both),
            (block(kind=0x41), both),
            (block(length=4), both),
            (block(body=INET + tlv(4, b"", 9)), both),
            (block(body=INET + tlv(5, bytes(129))), both),
            (block(body=INET + tlv(3, bytes(4))), both),
            # HAProxy takes 256 for a carry, and 65536 for 0.
            (line % b"192.0.2.256 198.51.100.9 1 2", we),
            (line % b"192.0.2.7 198.51.100.9 65536 2", we),
            (line % b"192.0.2.7 198.51.100.9 01 2", we),
            (block(body=INET + tlv(2, b"a") + tlv(2, b"b")), we),
            (block(body=INET + tlv(2, b"\xff")), we),
            (block(kind=0, body=b""), haproxy),
            (v2(*UNIX), haproxy),
        ):
            said, _ = await self.ask(data)
            try:
                HeaderReader().feed(data)
            except Malformed:
                ours = True
            else:
                ours = False
            self.assertEqual((ours, said == ""), (who != haproxy, who != we), (data, said))
