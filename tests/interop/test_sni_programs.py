"""Mode sni between programs: curl and openssl before it, nginx and HAProxy with TLS behind it.

Nothing of TLS is between them: each certificate is verified by the client, end to end, against the
name that it has asked for, and is good for no other.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.trial.unittest import TestCase

from tests.interop import programs
from tests.sockets import until

NAMES = ("a.example", "b.example")
HOST = "127.0.0.1"
LONG = 32 << 20

_NGINX = """
ssl_certificate {directory}/../NAME.pem;
ssl_certificate_key {directory}/../NAME.key;
ssl_protocols TLSv1.2 TLSv1.3;
ssl_early_data on;
# Else what openssl says last, its close_notify, is answered by a reset.
lingering_close always;
server {
    listen 127.0.0.1:PORT ssl http2;
    root {directory}/..;
    location = /who { return 200 "NAME $ssl_server_name $ssl_protocol $server_protocol"; }
}
server {
    listen 127.0.0.1:BEHIND ssl proxy_protocol;
    return 200 "NAME $proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port";
}
"""

_HAPROXY = """
global
    nbthread 1
defaults
    timeout connect 20s
    timeout client 20s
    timeout server 20s
frontend front
    mode http
    bind 127.0.0.1:{port} accept-proxy ssl crt {pem}
    http-request return status 200 content-type text/plain \
lf-string "%[src_port] %[fc_pp_authority] %[ssl_fc_sni]"
"""

_CONFIG = """
[clusters.a]
backends = ["127.0.0.1:{a}"]
{options}
[clusters.b]
backends = ["127.0.0.1:{b}"]
[[listeners]]
name = "front"
listen = "tcp:{port}:interface=127.0.0.1"
mode = "sni"
{settings}
"""

_ROUTES = """
[[listeners.routes]]
host = "a.example"
cluster = "a"
[[listeners.routes]]
host = "*.example"
cluster = "b"
"""


def digest(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listens(port: int) -> bool:
    """Whether somebody does there."""
    with socket.socket() as probe:
        return not probe.connect_ex((HOST, port))


class ProgramTests(TestCase):
    """Two nginx, each with a certificate of its own, and a proxy before them."""

    timeout = 120
    reactor: tuple[str, ...] = ()

    @inlineCallbacks
    def certificates(self) -> Any:
        """A key and its own certificate for each name."""
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir(parents=True)
        for name in NAMES:
            yield self.run_program(
                *("openssl", "req", "-x509", "-nodes", "-days", "1"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
                *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
            )

    @inlineCallbacks
    def nginx(self, name: str) -> Any:
        """Start one; gives its ports, without and with a PROXY header."""
        plain, behind = programs.free_port(), programs.free_port()
        text = _NGINX.replace("{directory}/..", str(self.directory)).replace("NAME", name)
        yield programs.nginx(self, text.replace("PORT", str(plain)).replace("BEHIND", str(behind)))
        return plain, behind

    @inlineCallbacks
    def start(self, settings: str = _ROUTES, *, headers: bool = False) -> Any:
        """All of them.

        :param headers: whether nginx is sent PROXY headers for a.example.
        """
        yield self.certificates()
        a, b = yield gatherResults([self.nginx(name) for name in NAMES])
        yield self.proxy(a[headers], b[0], settings, headers)

    @inlineCallbacks
    def proxy(self, a: int, b: int, settings: str = _ROUTES, headers: bool = False) -> Any:
        """Start the proxy in front of these ports."""
        self.port = programs.free_port()
        options = 'proxy_protocol = "v2"' if headers else ""
        config = self.directory / "proxykit.toml"
        config.write_text(
            _CONFIG.format(a=a, b=b, port=self.port, settings=settings, options=options)
        )
        arguments = ["--config", str(config)]
        self.service = yield programs.service(self, arguments, twistd=self.reactor)

    @inlineCallbacks
    def run_program(self, name: str, *arguments: str, status: int = 0) -> Any:
        """Run a program in the test's directory; gives what it prints."""
        argv = [programs.require(name), *arguments]
        ended, printed = yield programs.run(self, argv, cwd=self.directory, timeout=60)
        self.assertEqual(ended, status, printed)
        return printed

    def curl(self, name: str, path: str, *arguments: str, ca: str = "", status: int = 0) -> Any:
        """Ask for a name; gives what curl prints, a Deferred."""
        return self.run_program(
            *("curl", "-sS", "--noproxy", "*", "--max-time", "50"),
            *("--cacert", f"{ca or name}.pem", "--connect-to", f"::{HOST}:{self.port}"),
            *(*arguments, f"https://{name}{path}"),
            status=status,
        )

    @inlineCallbacks
    def openssl(self, *arguments: str, status: int = 0, shell: str = "") -> Any:
        """Connect with openssl; gives what it prints.

        :param shell: what is sent, as ``printf`` has it.
        """
        client = [programs.require("openssl"), "s_client", "-connect", f"{HOST}:{self.port}"]
        script = 'text=$1; shift; printf "$text" | "$@"'
        printed = yield self.run_program(
            "sh", "-c", script, "sh", shell, *client, *arguments, status=status
        )
        return printed


class NginxTests(ProgramTests):
    """Each server by its name, on the reactor that ``twistd proxykit`` chooses."""

    @inlineCallbacks
    def test_each_by_its_name(self) -> Any:
        """The certificate that is verified, and what the server says, are those of the name."""
        yield self.start()
        for name in NAMES:
            printed = yield self.curl(name, "/who", "--http1.1")
            self.assertEqual(printed, f"{name} {name} TLSv1.3 HTTP/1.1")
            printed = yield self.curl(name, "/who", "--http1.1", "--tls-max", "1.2")
            self.assertEqual(printed, f"{name} {name} TLSv1.2 HTTP/1.1")

    @inlineCallbacks
    def test_another_name_is_not_good_for_it(self) -> Any:
        """So that the test above can fail: *.example goes to the server that is b.example."""
        yield self.start()
        printed = yield self.curl("c.example", "/who", ca="b.example", status=60)
        self.assertIn("no alternative certificate subject name matches", printed)
        printed = yield self.curl("a.example", "/who", ca="b.example", status=60)
        self.assertIn("self-signed certificate", printed)
        printed = yield self.curl("c.example", "/who", "-k", ca="b.example")
        self.assertIn("b.example c.example ", printed)

    @inlineCallbacks
    def test_http_2(self) -> Any:
        """The two ends agree on it."""
        yield self.start()
        for name in NAMES:
            printed = yield self.curl(name, "/who", "--http2", "-w", " %{http_version}")
            self.assertEqual(printed, f"{name} {name} TLSv1.3 HTTP/2.0 2")
            # Two requests on one connection of it.
            url = f"https://{name}/who"
            printed = yield self.curl(name, "/who", "--http2", "-w", ";%{num_connects};", url)
            self.assertEqual(re.findall(";(.);", printed), ["1", "0"])

    @inlineCallbacks
    def test_by_protocol(self) -> Any:
        """Who offers h2 goes to b, whatever the name; the others go by it."""
        route = '[[listeners.routes]]\nhost = "a.example"\nalpn = ["h2"]\ncluster = "b"\n'
        yield self.start(route + _ROUTES)
        printed = yield self.curl("a.example", "/who", "--http2", "-k")
        self.assertEqual(printed, "b.example a.example TLSv1.3 HTTP/2.0")
        printed = yield self.curl("a.example", "/who", "--http1.1")
        self.assertEqual(printed, "a.example a.example TLSv1.3 HTTP/1.1")

    @inlineCallbacks
    def test_long_answers_to_many(self) -> Any:
        yield self.start()
        path = self.directory / "long"
        path.write_bytes(os.urandom(LONG))
        outputs = [self.directory / f"back-{number}" for number in range(6)]
        yield gatherResults(
            [
                self.curl(NAMES[number % 2], "/long", "-o", str(output))
                for number, output in enumerate(outputs)
            ]
        )
        self.assertEqual({digest(output) for output in outputs}, {digest(path)})

    @inlineCallbacks
    def test_openssl(self) -> Any:
        """It verifies the certificate, and the name in it."""
        yield self.start()
        for option, version in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
            for name in NAMES:
                printed = yield self.openssl(
                    *(option, "-servername", name, "-verify_return_error", "-CAfile"),
                    *(f"{name}.pem", "-verify_hostname", name, "-alpn", "h2,http/1.1"),
                )
                self.assertIn("Verification: OK\n", printed)
                self.assertIn(f"Verified peername: {name}\n", printed)
                self.assertIn("ALPN protocol: h2\n", printed)
                self.assertRegex(printed, rf"\nNew, {version}, Cipher is ")

    @inlineCallbacks
    def test_early_data(self) -> Any:
        """Of a session that is resumed: it comes right behind the hello, before any answer."""
        yield self.start()
        ask = "GET /who HTTP/1.0\\r\\n\\r\\n"
        (self.directory / "early").write_bytes(b"GET /who HTTP/1.0\r\n\r\n")
        common = ("-tls1_3", "-servername", "a.example", "-ign_eof")
        printed = yield self.openssl(*common, "-sess_out", "session", shell=ask)
        self.assertIn("New Session Ticket arrived", printed)
        printed = yield self.openssl(*common, "-sess_in", "session", "-early_data", "early")
        self.assertIn("Early data was accepted\n", printed)
        self.assertIn("a.example a.example TLSv1.3 HTTP/1.0", printed)

    @inlineCallbacks
    def test_refused(self) -> Any:
        """openssl knows each alert by its name."""
        yield self.start('[[listeners.routes]]\nhost = "a.example"\ncluster = "a"\n')
        for arguments, why in (
            (("-servername", "c.example"), "unrecognized name"),
            (("-tls1_2", "-servername", "c.example"), "unrecognized name"),
            (("-noservername",), "missing extension"),
            (("-tls1_2", "-noservername"), "handshake failure"),
            (("-servername", HOST), "missing extension"),
        ):
            printed = yield self.openssl(*arguments, status=1)
            self.assertIn(f"alert {why}:", printed.replace("tlsv1 ", "tlsv1 alert "), arguments)
            self.assertIn("no peer certificate available", printed)
        printed = yield self.run_program("curl", "-sS", f"http://{HOST}:{self.port}/", status=1)
        self.assertIn("HTTP/0.9", printed)  # That is how curl calls an alert.

    @inlineCallbacks
    def test_names_without_a_route(self) -> Any:
        """To a cluster of their own."""
        yield self.start('cluster = "b"\n[[listeners.routes]]\nhost = "a.example"\ncluster = "a"\n')
        for arguments in (("-noservername",), ("-servername", "c.example")):
            printed = yield self.openssl(
                *arguments, *("-CAfile", "b.example.pem", "-verify_hostname", "b.example")
            )
            self.assertIn("Verified peername: b.example\n", printed)


class OtherReactorTests(NginxTests):
    """The same on Twisted's own."""

    reactor = ("--reactor=epoll",)


class HeaderTests(ProgramTests):
    """PROXY headers before the hello, to servers that read them."""

    @inlineCallbacks
    def test_nginx(self) -> Any:
        yield self.start(headers=True)
        printed = yield self.curl("a.example", "/", "-w", " %{local_port}")
        name, address, port, server_port, own = printed.split()
        self.assertEqual((name, address, port), ("a.example", HOST, own))
        self.assertEqual(server_port, str(self.port))

    @inlineCallbacks
    def test_haproxy(self) -> Any:
        """It reads the name from the header as well as from the hello."""
        yield self.certificates()
        pem = self.directory / "both.pem"
        parts = (self.directory / f"a.example.{kind}" for kind in ("key", "pem"))
        pem.write_text("".join(part.read_text() for part in parts))
        port = programs.free_port()
        conf = self.directory / "haproxy.cfg"
        conf.write_text(_HAPROXY.format(port=port, pem=pem))
        argv = [programs.require("haproxy"), "-db", "-f", str(conf)]
        programs.Child.start(self, argv, cwd=self.directory)
        yield Deferred.fromCoroutine(until(lambda: listens(port)))
        yield self.proxy(port, port, headers=True)
        printed = yield self.curl("a.example", "/", "-w", " %{local_port}")
        port, name, asked, own = printed.split()
        self.assertEqual((port, name, asked), (own, "a.example", "a.example"))
