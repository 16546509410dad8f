"""TLS between proxykit and other programs: curl, openssl, wrk and sslscan before it, nginx behind
it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.defer import inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.interop import programs
from tests.interop.test_http_programs import LONG, digest

HOST = "127.0.0.1"
DAY = timedelta(days=1)
#: Seconds that curl may take.
PATIENCE = 60.0
#: What OpenSSL needs to be told to offer what nobody should use.
ANYTHING = ("-cipher", "ALL:@SECLEVEL=0")
REQUEST = "GET / HTTP/1.1\\r\\nHost: a.example\\r\\nConnection: close\\r\\n\\r\\n"


class Authority:
    """Who signs certificates, of one test's own.

    :ivar directory: what it makes is there: ``NAME.pem``, a certificate and its key.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = self._signed(self._name, self._key, [], 30 * DAY, ca=True)
        self.path = directory / f"{name}.crt"
        self.path.write_bytes(made.public_bytes(Encoding.PEM))

    def make(self, file: str, *names: str, lasts: timedelta = 30 * DAY) -> Path:
        """A certificate for these names; ``lasts``: from now on."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, file)])
        made = self._signed(subject, key, list(names), lasts, ca=False)
        path = self.directory / f"{file}.pem"
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(made.public_bytes(Encoding.PEM) + secret)
        return path

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: list[str],
        lasts: timedelta,
        ca: bool,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(self._name, subject, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + lasts)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            said = [
                x509.IPAddress(ip_address(each)) if each[0].isdigit() else x509.DNSName(each)
                for each in names
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(said), critical=False)
        return builder.sign(self._key, SHA256())


def cluster(name: str, port: int, tls: str = "") -> str:
    """A cluster of one; ``tls``: what its table of that name has."""
    table = f"[clusters.{name}.tls]\n{tls}\n" if tls else ""
    return f'[clusters.{name}]\nbackends = ["{HOST}:{port}"]\n{table}'


def listener(port: int, mode: str, to: str, tls: str = "") -> str:
    """A listener, named by its mode and its cluster."""
    table = f"[listeners.tls]\n{tls}\n" if tls else ""
    return f"""
[[listeners]]
name = "{mode}-{to}"
listen = "tcp:{port}:interface={HOST}"
mode = "{mode}"
cluster = "{to}"
{table}
"""


class ProgramTests(TestCase):
    """What they have in common: authorities, curl, openssl and a proxy."""

    timeout = 120

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir(parents=True)
        self.ca = Authority(self.directory, "ca")
        self.a = self.ca.make("a", "a.example", HOST)

    @inlineCallbacks
    def proxy(self, *tables: str) -> Any:
        """Start ``twistd proxykit`` with this configuration."""
        config = self.directory / "proxykit.toml"
        config.write_text("\n".join(tables))
        last = re.findall(r'name = "(.*)"', config.read_text())[-1]
        self.service = yield programs.service(
            self, ["--config", str(config)], ready=rf"{re.escape(last)}: listening on"
        )

    @inlineCallbacks
    def tried(self, url: str, *arguments: str) -> Any:
        """Run curl; gives its status and what it prints. All names are served at :data:`HOST`."""
        port = url.rpartition(":")[2].partition("/")[0]
        argv = [
            programs.require("curl"), "-qsS", "--noproxy", "*", "--max-time", f"{PATIENCE:g}",
            "--cacert", str(self.ca.path), "--connect-to", f"::{HOST}:{port}", *arguments, url,
        ]  # fmt: skip
        found = yield programs.run(self, argv, timeout=PATIENCE + 5)
        return found

    @inlineCallbacks
    def curl(self, url: str, *arguments: str) -> Any:
        """Run curl; gives what it prints."""
        status, printed = yield self.tried(url, *arguments)
        self.assertEqual(status, 0, printed)
        return printed

    @inlineCallbacks
    def shake(self, port: int, *options: str) -> Any:
        """Run openssl, with one request; gives its status and what it prints."""
        talk = f"printf '{REQUEST}' | \"$@\""
        argv = [
            programs.require("sh"), "-c", talk, "sh", programs.require("openssl"), "s_client",
            "-connect", f"{HOST}:{port}", "-CAfile", str(self.ca.path), "-ign_eof", *options,
        ]  # fmt: skip
        found = yield programs.run(self, argv)
        return found


class ClientTests(ProgramTests):
    """Programs that speak TLS to it."""

    @inlineCallbacks
    def setUp(self) -> Any:
        super().setUp()
        origin = programs.free_port()
        settings = f"""
server {{
    listen {HOST}:{origin};
    client_max_body_size 0;
    keepalive_requests 1000000;
    location = / {{ return 200 "$http_x_client_cert_subject|$http_x_forwarded_proto"; }}
    location / {{ root {{directory}}/files; dav_methods PUT; create_full_put_path on; }}
}}
"""
        yield programs.nginx(self, settings)
        certificates = self.directory / "served"
        certificates.mkdir()
        self.served = certificates / "a.pem"
        shutil.copy(self.a, self.served)
        shutil.copy(self.ca.make("b", "b.example"), certificates)
        self.http, self.tcp, self.shown = (programs.free_port() for _ in range(3))
        tls = f'certificates = "{certificates}"'
        clients = f'client_ca = "{self.ca.path}"\nclient_auth = "required"'
        yield self.proxy(
            cluster("web", origin),
            cluster("again", origin),
            listener(self.http, "http", "web", tls),
            listener(self.tcp, "tcp", "web", tls),
            listener(self.shown, "http", "again", f"{tls}\n{clients}"),
        )

    @inlineCallbacks
    def test_versions(self) -> Any:
        for port in (self.http, self.tcp):
            for option in ("-tls1", "-tls1_1"):
                status, printed = yield self.shake(port, option, *ANYTHING)
                self.assertEqual(status, 1)
                self.assertIn("alert protocol version", printed)
            for option, version in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
                status, printed = yield self.shake(port, option, *ANYTHING)
                self.assertEqual(status, 0, printed)
                self.assertIn(f"New, {version}, ", printed)
                self.assertIn("HTTP/1.1 200 OK", printed)

    @inlineCallbacks
    def test_weak_ciphers_are_refused(self) -> Any:
        for cipher in ("AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-NULL-SHA", "AECDH"):
            status, printed = yield self.shake(
                self.http, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0"
            )
            self.assertEqual(status, 1, cipher)
            self.assertIn("alert handshake failure", printed, cipher)

    @inlineCallbacks
    def test_by_name(self) -> Any:
        for options, subject in (
            (("-servername", "a.example"), "a"),
            (("-servername", "b.example"), "b"),
            (("-servername", "B.Example"), "b"),
            (("-servername", "c.example"), "a"),
            (("-noservername",), "a"),
        ):
            _, printed = yield self.shake(self.http, *options)
            self.assertRegex(printed, rf"subject=CN ?= ?{subject}\n", options)
            self.assertIn("Verify return code: 0 (ok)", printed)

    @inlineCallbacks
    def test_sessions_are_resumed(self) -> Any:
        session = str(self.directory / "session")
        for version in ("-tls1_2", "-tls1_3"):
            _, printed = yield self.shake(self.tcp, version, "-sess_out", session)
            self.assertIn("\nNew, ", printed)
            _, printed = yield self.shake(self.tcp, version, "-sess_in", session)
            self.assertIn("\nReused, ", printed)
            self.assertIn("HTTP/1.1 200 OK", printed)

    @inlineCallbacks
    def test_what_sslscan_says(self) -> Any:
        program = programs.require("sslscan")
        argv = [program, "--no-colour", f"{HOST}:{self.http}"]
        status, printed = yield programs.run(self, argv, timeout=PATIENCE)
        self.assertEqual(status, 0, printed)
        found = dict(re.findall(r"^((?:SSL|TLS)v[\d.]+) +(enabled|disabled)$", printed, re.M))
        enabled = {name for name, state in found.items() if state == "enabled"}
        self.assertEqual(enabled, {"TLSv1.2", "TLSv1.3"})
        self.assertIn("Session renegotiation not supported", printed)
        self.assertIn("Server supports TLS Fallback SCSV", printed)
        offered = re.findall(r"^(?:Preferred|Accepted) +TLSv\S+ +(\d+) bits +(\S+)", printed, re.M)
        self.assertGreaterEqual(len(offered), 4)
        for bits, cipher in offered:
            self.assertGreaterEqual(int(bits), 128, cipher)
            self.assertRegex(cipher, "GCM|POLY1305")

    @inlineCallbacks
    def test_clients_show_who_they_are(self) -> Any:
        other = Authority(self.directory, "other")
        url = f"https://a.example:{self.shown}/"
        good = self.ca.make("good")
        for version in ("1.2", "1.3"):
            limit = ("--tls-max", version)
            forged = ("-H", "X-Client-Cert-Subject: CN=forged")
            printed = yield self.curl(url, "--cert", str(good), *limit, *forged)
            self.assertEqual(printed, "CN=good|https")
            for refused in (
                (),
                ("--cert", str(other.make("wrong"))),
                ("--cert", str(self.ca.make("expired", lasts=-DAY))),
            ):
                status, printed = yield self.tried(url, *limit, *refused)
                self.assertNotEqual(status, 0, (version, refused))
                self.assertNotIn("|https", printed)

    @inlineCallbacks
    def test_64_mib_up_and_down(self) -> Any:
        """The checksums are equal."""
        sent, back = self.directory / "sent", self.directory / "back"
        sent.write_bytes(os.urandom(LONG))
        for port in (self.http, self.tcp):
            url = f"https://a.example:{port}/file-{port}"
            code = yield self.curl(url, "-T", str(sent), "-w", "%{http_code}")
            self.assertEqual(code, "201")
            yield self.curl(url, "-o", str(back))
            self.assertEqual(digest(back), digest(sent))

    @inlineCallbacks
    def test_another_certificate_under_load(self) -> Any:
        """No request fails; who comes later is shown the new one, though half of it came first."""
        wrk = programs.require("wrk")
        loads = []
        for port in (self.http, self.tcp):
            for fields in ((), ("-H", "Connection: close")):
                url = f"https://{HOST}:{port}/"
                argv = [wrk, "-t1", "-c10", "-d15s", *fields, url]
                loads.append(programs.Child.start(self, argv))
        new = self.ca.make("new", "a.example").read_bytes()
        self.served.write_bytes(new[:300])
        # The first listener's, and then every other's.
        yield self.service.wait_for("http-web: certificates have changed and cannot be read")
        _, printed = yield self.shake(self.http)
        self.assertRegex(printed, r"subject=CN ?= ?a\n")
        self.served.write_bytes(new)
        for name in ("http-web", "tcp-web"):
            yield self.service.wait_for(f"{name}: certificates read again")
        for port in (self.http, self.tcp):
            _, printed = yield self.shake(port)
            self.assertRegex(printed, r"subject=CN ?= ?new\n")
        for load in loads:
            status = yield load.ended()
            self.assertEqual(status, 0, load.output)
            self.assertRegex(load.output, r"[1-9]\d* requests in ")
            self.assertNotIn("errors", load.output)
            self.assertNotIn("Non-2xx", load.output)


class BackendTests(ProgramTests):
    """nginx with TLS behind it."""

    @inlineCallbacks
    def start(self, shown: Path, tls: str) -> Any:
        """nginx that shows this certificate, and a proxy that has these settings."""
        origin, self.port, self.plain = (programs.free_port() for _ in range(3))
        settings = f"""
server {{
    listen {HOST}:{origin} ssl;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {shown};
    ssl_certificate_key {shown};
    ssl_client_certificate {self.ca.path};
    ssl_verify_client optional;
    return 200 "$ssl_protocol $ssl_server_name $ssl_client_s_dn $ssl_session_reused";
}}
"""
        yield programs.nginx(self, settings)
        yield self.proxy(
            cluster("web", origin, tls),
            listener(self.port, "http", "web"),
            listener(self.plain, "tcp", "web"),
        )

    def trusting(self, name: str = "a.example") -> str:
        return f'ca_file = "{self.ca.path}"\nserver_name = "{name}"'

    @inlineCallbacks
    def test_whom_it_should_be(self) -> Any:
        yield self.start(self.a, self.trusting())
        for port in (self.port, self.plain):
            printed = yield self.curl(f"http://a.example:{port}/")
            self.assertEqual(printed, "TLSv1.3 a.example  .")
        printed = yield self.curl(f"http://a.example:{self.plain}/")
        self.assertEqual(printed, "TLSv1.3 a.example  r")

    @inlineCallbacks
    def test_by_address(self) -> Any:
        """No name is sent then."""
        yield self.start(self.a, f'ca_file = "{self.ca.path}"')
        printed = yield self.curl(f"http://a.example:{self.port}/")
        self.assertEqual(printed, "TLSv1.3   .")

    @inlineCallbacks
    def test_it_shows_who_it_is(self) -> Any:
        shown = self.ca.make("proxy")
        yield self.start(self.a, f'{self.trusting()}\ncertificate = "{shown}"')
        printed = yield self.curl(f"http://a.example:{self.port}/")
        self.assertEqual(printed, "TLSv1.3 a.example CN=proxy .")

    @inlineCallbacks
    def refused(self, shown: Path, why: str, tls: str = "") -> Any:
        yield self.start(shown, tls or self.trusting())
        printed = yield self.curl(f"http://a.example:{self.port}/", "-w", " %{http_code}")
        self.assertIn(why, printed)
        self.assertTrue(printed.endswith(" 502"), printed)
        status, printed = yield self.tried(f"http://a.example:{self.plain}/")
        self.assertNotEqual(status, 0)
        self.assertNotIn("TLSv1", printed)

    def test_another_name(self) -> Any:
        shown = self.ca.make("b", "b.example")
        return self.refused(shown, "its certificate is for b.example, not for a.example")

    def test_an_expired_one(self) -> Any:
        shown = self.ca.make("old", "a.example", lasts=-DAY)
        return self.refused(shown, "certificate has expired")

    def test_an_unknown_authority(self) -> Any:
        shown = Authority(self.directory, "other").make("x", "a.example")
        return self.refused(shown, "certificate verify failed")

    def test_not_one_of_the_systems(self) -> Any:
        return self.refused(self.a, "certificate verify failed", 'server_name = "a.example"')


class NameTests(ProgramTests):
    @inlineCallbacks
    def test_one_port_for_both(self) -> Any:
        """One name goes through to nginx's own TLS, another one's ends here."""
        origin, secure, port, inner = (programs.free_port() for _ in range(4))
        b = self.ca.make("b", "b.example")
        pem = f"ssl_certificate {b}; ssl_certificate_key {b};"
        settings = f"""
server {{ listen {HOST}:{origin}; return 200 "plain"; }}
server {{ listen {HOST}:{secure} ssl; {pem} return 200 "its own"; }}
"""
        yield programs.nginx(self, settings)
        yield self.proxy(
            cluster("plain", origin),
            cluster("secure", secure),
            listener(inner, "http", "plain", f'certificates = "{self.a}"'),
            f"""
[[listeners]]
name = "names"
listen = "tcp:{port}:interface={HOST}"
mode = "sni"
[[listeners.routes]]
host = "b.example"
cluster = "secure"
[[listeners.routes]]
host = "a.example"
listener = "http-plain"
""",
        )
        for name, answer in (("a", "plain"), ("b", "its own")):
            printed = yield self.curl(f"https://{name}.example:{port}/")
            self.assertEqual(printed, answer)
            _, printed = yield self.shake(port, "-servername", f"{name}.example")
            self.assertRegex(printed, rf"subject=CN ?= ?{name}\n")
        status, printed = yield self.tried(f"https://c.example:{port}/")
        self.assertEqual(status, 35, printed)


class EndTests(ProgramTests):
    @inlineCallbacks
    def test_clients_that_stop(self) -> Any:
        """They are closed at the deadline; others are served meanwhile."""
        origin, port = programs.free_port(), programs.free_port()
        yield programs.nginx(self, f'server {{ listen {HOST}:{origin}; return 200 "here"; }}')
        tls = f'certificates = "{self.a}"\nhandshake_timeout = 5.0'
        yield self.proxy(cluster("web", origin), listener(port, "http", "web", tls))
        stopped = []
        for sent in (b"", b"\x16\x03\x01\x02", hello()):
            for _ in range(50):
                made = socket.create_connection((HOST, port), PATIENCE)
                self.addCleanup(made.close)
                made.sendall(sent)
                stopped.append(made)
        printed = yield self.curl(f"https://a.example:{port}/")
        self.assertEqual(printed, "here")
        yield deferToThread(lambda: [self.end_of(each) for each in stopped])
        printed = yield self.curl(f"https://a.example:{port}/")
        self.assertEqual(printed, "here")

    @staticmethod
    def end_of(connection: socket.socket) -> None:
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            return

    @inlineCallbacks
    def test_an_end_without_a_word(self) -> Any:
        """It is told as a reset: what has come may not be the whole. With a word it is an end."""
        port = programs.free_port()
        with socket.create_server((HOST, 0)) as listening:
            listening.settimeout(PATIENCE)
            origin = listening.getsockname()[1]
            tls = f'certificates = "{self.a}"'
            yield self.proxy(cluster("web", origin), listener(port, "tcp", "web", tls))
            for word, end in ((False, ConnectionResetError), (True, b"")):
                found = yield deferToThread(self.talk, listening, port, word)
                self.assertEqual(found, end)

    def talk(self, listening: socket.socket, port: int, word: bool) -> Any:
        """Send, and end; gives what the origin has for the end."""
        context = ssl.create_default_context(cafile=str(self.ca.path))
        plain = socket.create_connection((HOST, port), PATIENCE)
        with context.wrap_socket(plain, server_hostname="a.example") as tls:
            tls.sendall(b"asked")
            with listening.accept()[0] as server:
                server.settimeout(PATIENCE)
                self.assertEqual(server.recv(5, socket.MSG_WAITALL), b"asked")
                if word:
                    tls.settimeout(0.0)
                    with self.assertRaises(ssl.SSLWantReadError):
                        tls.unwrap()
                else:
                    tls.shutdown(socket.SHUT_WR)
                try:
                    return server.recv(100)
                except ConnectionResetError:
                    return ConnectionResetError


def hello() -> bytes:
    """A whole ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="a.example")
    try:
        made.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("it has shaken hands with nobody")
