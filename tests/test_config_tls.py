"""TLS in a configuration: every key, every mistake in one, and the flags."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from proxykit import config
from proxykit.errors import ConfigError
from proxykit.model import ClusterTls, Config, ListenerTls
from proxykit.tap import Options
from tests.tls_certificates import authority_pem, pem

WEB = "[clusters.web]\nbackends = ['10.0.0.1:80']\n"
FRONT = "[[listeners]]\nlisten = 'tcp:8080'\ncluster = 'web'\n"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        where = Path(self.mktemp())
        where.mkdir()
        for name, data in (
            ("a.pem", pem("a.example")),
            ("b.pem", pem("b.example")),
            ("bad", b"nonsense"),
            ("secret", pem("a.example", passphrase=b"secret")),
            ("ca", authority_pem()),
        ):
            (where / name).write_bytes(data)
        self.where = where
        (where / "empty").mkdir()
        self.path = str(where / "proxy.toml")

    def at(self, name: str) -> str:
        return str(self.where / name)

    def load(self, text: str) -> Config:
        Path(self.path).write_text(text)
        return config.load(self.path, environ={}, resolve=lambda host: ["10.0.0.1"])

    def mistake(self, text: str) -> str:
        """The one line, without the file's name."""
        with self.assertRaises(ConfigError) as raised:
            self.load(text)
        (line,) = raised.exception.lines
        self.assertTrue(line.startswith(self.path + ":"), line)
        self.assertNotIn("\n", line)
        found: str = line.removeprefix(self.path + ":")
        return found


class ListenerTests(Case):
    def text(self, more: str, mode: str = "http") -> str:
        return f"{WEB}{FRONT}mode = '{mode}'\n[listeners.tls]\n{more}\n"

    def test_every_key(self) -> None:
        for mode in ("tcp", "http"):
            made = self.load(
                self.text(
                    f"certificates = ['{self.where}', '{self.at('a.pem')}']\n"
                    f"client_ca = '{self.at('ca')}'\nclient_auth = 'required'\n"
                    "alpn = ['h2', 'http/1.1']\nhandshake_timeout = 2\n",
                    mode,
                )
            )
            expected = ListenerTls(
                (str(self.where), self.at("a.pem")),
                self.at("ca"), "required", ("h2", "http/1.1"), 2.0,
            )  # fmt: skip
            self.assertEqual(made.listeners[0].tls, expected)
            self.assertEqual(self.load(config.as_toml(made)), made)

    def test_defaults(self) -> None:
        made = self.load(self.text(f"certificates = '{self.at('a.pem')}'"))
        self.assertEqual(made.listeners[0].tls, ListenerTls((self.at("a.pem"),)))
        self.assertEqual(self.load(config.as_toml(made)), made)
        without = self.load(f"{WEB}{FRONT}mode = 'tcp'\n")
        self.assertIsNone(without.listeners[0].tls)
        self.assertIsNone(without.clusters[0].tls)
        self.assertNotIn("tls", config.as_toml(without))

    def test_mistakes(self) -> None:
        good = f"certificates = '{self.at('a.pem')}'\n"
        here = "listeners[0].tls"
        for more, expected in (
            (good + "certificate = 'x'", "unknown key; did you mean certificates?"),
            (good + "client_auth = 'maybe'", "expected one of optional, required, not 'maybe'"),
            (good + "handshake_timeout = 0", "expected a number of seconds above 0, not 0"),
            (good + "alpn = ['']", "expected a protocol such as h2"),
            (good + "alpn = 'h2'", "alpn: expected a list"),
            (good + "client_ca = 1", "client_ca: "),
            ("certificates = 1", "expected a directory, a PEM file or a list of those, not 1"),
            ("certificates = [1]", "expected a directory, a PEM file or a list of those"),
            ("certificates = []", "expected at least one certificate"),
            ("", "certificates"),
            (f"certificates = '{self.at('no')}'", f"{self.at('no')}: No such file or directory"),
            (f"certificates = '{self.at('bad')}'", f"{self.at('bad')}: there is no certificate in"),
            (f"certificates = '{self.at('secret')}'", "secret: its key has a passphrase"),
            (f"certificates = '{self.at('empty')}'", "empty: no .pem file is in this directory"),
            (good + f"client_ca = '{self.at('bad')}'", "bad: there is no certificate in it"),
            (good + f"client_ca = '{self.at('no')}'", "no: No such file or directory"),
        ):
            line = self.mistake(self.text(more))
            self.assertRegex(line, r"^\d+: ")
            self.assertIn(here, line)
            self.assertIn(expected, line)

    def test_not_with_sni(self) -> None:
        line = self.mistake(self.text(f"certificates = '{self.at('a.pem')}'", "sni"))
        self.assertIn("listeners[0]: mode sni relays TLS as it is", line)


class ClusterTests(Case):
    def text(self, more: str) -> str:
        return f"{WEB}[clusters.web.tls]\n{more}\n{FRONT}mode = 'tcp'\n"

    def test_every_key(self) -> None:
        made = self.load(
            self.text(
                f"server_name = 'a.example'\nca_file = '{self.at('ca')}'\n"
                f"certificate = '{self.at('a.pem')}'\nverify = false"
            )
        )
        self.assertEqual(
            made.clusters[0].tls,
            ClusterTls("a.example", self.at("ca"), self.at("a.pem"), False),
        )
        self.assertEqual(self.load(config.as_toml(made)), made)

    def test_defaults(self) -> None:
        made = self.load(self.text(""))
        self.assertEqual(made.clusters[0].tls, ClusterTls())
        self.assertEqual(self.load(config.as_toml(made)), made)

    def test_names(self) -> None:
        for name in ("a.example", "192.0.2.1", "2001:db8::1", "localhost"):
            made = self.load(self.text(f"server_name = '{name}'"))
            self.assertEqual(made.clusters[0].tls, ClusterTls(name))

    def test_mistakes(self) -> None:
        for more, expected in (
            ("server_nam = 'x'", "unknown key; did you mean server_name?"),
            ("server_name = '*.example'", "expected a host name or an IP address"),
            ("server_name = 'a b'", "expected a host name or an IP address"),
            ("server_name = 'a.example:443'", "expected a host name or an IP address"),
            ("verify = 'no'", "verify: "),
            ("ca_file = 1", "ca_file: "),
            (f"ca_file = '{self.at('no')}'", f"ca_file {self.at('no')}: No such file"),
            (f"ca_file = '{self.at('bad')}'", "there is no certificate in it"),
            (f"certificate = '{self.at('no')}'", "No such file or directory"),
            (f"certificate = '{self.at('secret')}'", "its key has a passphrase"),
            (f"certificate = '{self.at('ca')}'", "it cannot be read: expected PEM"),
        ):
            line = self.mistake(self.text(more))
            self.assertRegex(line, r"^\d+: ")
            self.assertIn("clusters.web.tls", line)
            self.assertIn(expected, line)


class FlagTests(Case):
    def parse(self, mode: str, *arguments: str) -> Config | None:
        options = Options()
        options.parseOptions([mode, "-l", "tcp:0", "-b", "127.0.0.1:1", *arguments])
        return options.configuration

    def test_tcp_and_http(self) -> None:
        for mode in ("tcp", "http"):
            made = self.parse(mode, "--tls", str(self.where), "--tls", self.at("b.pem"))
            assert made is not None
            self.assertEqual(
                made.listeners[0].tls, ListenerTls((str(self.where), self.at("b.pem")))
            )

    def test_a_file_that_is_not_there(self) -> None:
        stream = io.StringIO()
        self.patch(sys, "__stderr__", stream)
        self.assertRaises(SystemExit, self.parse, "tcp", "--tls", self.at("no"))
        (line,) = stream.getvalue().splitlines()
        self.assertIn(f"--tls: {self.at('no')}: No such file or directory", line)

    def test_not_for_sni(self) -> None:
        stream = io.StringIO()
        for name in ("__stderr__", "stderr", "stdout"):
            self.patch(sys, name, stream)
        with self.assertRaises(BaseException) as raised:
            self.parse("sni", "--tls", str(self.where))
        said = stream.getvalue() + str(raised.exception)
        self.assertIn("tls", said)
        self.assertNotIsInstance(raised.exception, TypeError)
