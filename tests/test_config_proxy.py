"""The settings for PROXY headers, in and out: what a file says, and what is a mistake in it."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from proxykit import config, tables
from proxykit.errors import ConfigError
from proxykit.model import Address, Backend, Cluster, Config, Listener
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.service import ProxyService
from tests.modes.test_http_tls import pem
from tests.sockets import ClockedReactor
from tests.test_config import LISTENER, REAL_COMPONENTS, WEB, Case

NEEDS_TRUST = "needs trust: the networks that may send a PROXY header"
BEFORE_TLS = "a PROXY header comes before TLS, with which ssl: begins"
READ_ALREADY = "the endpoint haproxy: reads a PROXY header already"
NETWORK = "expected a network such as 10.0.0.0/8, an address, or unix"


def under_tls(test: SynchronousTestCase) -> str:
    """A server endpoint string, whose key and certificate are there."""
    path = test.mktemp()
    Path(path).write_bytes(pem())
    return f"ssl:8443:privateKey={path}"


class GoodTests(Case):
    """What is read, and written again."""

    def test_nothing_said(self) -> None:
        """Nobody is trusted, and no header is read or sent."""
        read = self.load(WEB + LISTENER)
        (listener,), (cluster,) = read.listeners, read.clusters
        self.assertEqual(
            (listener.trust, listener.proxy_protocol, listener.proxy_timeout), ((), False, 5.0)
        )
        self.assertEqual(cluster.proxy_protocol, "")
        self.assertEqual(self.load(config.as_toml(read)), read)

    def test_all_said(self) -> None:
        read = self.load(
            f"{WEB}proxy_protocol = 'v1'\n{WEB.replace('web', 'other')}proxy_protocol = 'v2'\n"
            f"{WEB.replace('web', 'bare')}{LISTENER}trust = ['10.0.0.0/8', '::1', 'unix']\n"
            "proxy_protocol = true\nproxy_timeout = 2\n"
        )
        (listener,) = read.listeners
        self.assertEqual(listener.trust, ("10.0.0.0/8", "::1", "unix"))
        self.assertIs(listener.proxy_protocol, True)
        self.assertEqual((listener.proxy_timeout, type(listener.proxy_timeout)), (2.0, float))
        self.assertEqual(
            {each.name: each.proxy_protocol for each in read.clusters},
            {"web": "v1", "other": "v2", "bare": ""},
        )
        self.assertEqual(self.load(config.as_toml(read)), read)

    def test_trust_alone(self) -> None:
        """It is about forwarding fields, too."""
        for trust in ("10.0.0.0/8", "10.1.2.3", "0.0.0.0/0", "2001:db8::/32", "::/0", "unix"):
            read = self.load(f"{LISTENER}trust = ['{trust}']\n")
            self.assertEqual(read.listeners[0].trust, (trust,))
            self.assertEqual(self.load(config.as_toml(read)), read)

    def test_from_the_environment(self) -> None:
        read = self.load(LISTENER + "trust = ['${NETWORK}/8']\n", NETWORK="10.0.0.0")
        self.assertEqual(read.listeners[0].trust, ("10.0.0.0/8",))

    def test_endpoints(self) -> None:
        """A header is read where bytes come as they are, or where none is wanted."""
        wanted = "trust = ['unix']\nproxy_protocol = true\n"
        for listen, more in (
            ("tcp:1", wanted),
            ("tcp6:1", wanted),
            ("unix:/run/x", wanted),
            ("systemd:domain=INET:index=0", wanted),
            ("haproxy:tcp:1", "trust = ['unix']\n"),
            (under_tls(self), "trust = ['unix']\n"),
        ):
            with self.subTest(listen):
                read = self.load(LISTENER.replace("tcp:8080", listen) + more)
                self.assertEqual(read.listeners[0].proxy_protocol, more == wanted)

    def test_each_mode(self) -> None:
        self.patch(tables, "components", REAL_COMPONENTS)
        for mode, defaults in (
            ("tcp", TcpSettings()),
            ("http", HttpSettings()),
            ("sni", SniSettings()),
        ):
            listener = LISTENER.replace("fake", mode) + "cluster = 'web'\n"
            read = self.load(f"{WEB}{listener}proxy_protocol = true\ntrust = ['::1']\n")
            self.assertEqual(
                read.listeners,
                (
                    Listener(
                        *("listener-1", "tcp:8080", mode, "web"),
                        settings=defaults,
                        trust=("::1",),
                        proxy_protocol=True,
                    ),
                ),
            )
            self.assertEqual(self.load(config.as_toml(read)), read)

    def test_what_is_written(self) -> None:
        """All that is in force; but no version where no header is sent, for "" is none."""
        read = self.load(WEB + LISTENER)
        text = config.as_toml(read)
        self.assertIn("trust = []\nproxy_protocol = false\nproxy_timeout = 5.0\n", text)
        self.assertEqual(text.count("proxy_protocol"), 1)
        (web,) = read.clusters
        text = config.as_toml(evolve(read, clusters=(evolve(web, proxy_protocol="v2"),)))
        self.assertIn('proxy_protocol = "v2"\n', text)


class MistakeTests(Case):
    """Each is one line, with its place."""

    def test_trust(self) -> None:
        place = "4: listeners[0].trust"
        for value, *expected in (
            ("'10.0.0.0/8'", f"{place}: expected a list, not '10.0.0.0/8'"),
            ("true", f"{place}: expected a list, not true"),
            ("['']", f"{place}[0]: {NETWORK}, not ''"),
            ("['everybody']", f"{place}[0]: {NETWORK}, not 'everybody'"),
            ("['UNIX']", f"{place}[0]: {NETWORK}, not 'UNIX'"),
            ("['10.0.0.0/33']", f"{place}[0]: {NETWORK}, not '10.0.0.0/33'"),
            ("['10.0.0.1:80']", f"{place}[0]: {NETWORK}, not '10.0.0.1:80'"),
            ("['[::1]']", f"{place}[0]: {NETWORK}, not '[::1]'"),
            ("['10.1.2.3/8']", f"{place}[0]: expected 10.0.0.0/8, not '10.1.2.3/8'"),
            ("['2001:db8::1/32']", f"{place}[0]: expected 2001:db8::/32, not '2001:db8::1/32'"),
            (
                "['::1', 1, 'unix', 'x']",
                f"{place}[1]: expected a string, not 1",
            ),
            (
                "['::1', 'x', 'unix', 'y']",
                f"{place}[1]: {NETWORK}, not 'x'",
                f"{place}[3]: {NETWORK}, not 'y'",
            ),
        ):
            with self.subTest(value):
                self.assertEqual(self.mistakes(f"{LISTENER}trust = {value}\n"), expected)

    def test_of_a_listener(self) -> None:
        seconds = "4: listeners[0].proxy_timeout: expected a number of seconds above 0, not"
        wanted = "4: listeners[0].proxy_protocol: expected true or false, not"
        for more, expected in (
            ("proxy_protocol = 'v2'", f"{wanted} 'v2'"),
            ("proxy_protocol = 'in'", f"{wanted} 'in'"),
            ("proxy_protocol = 1", f"{wanted} 1"),
            *((f"proxy_timeout = {each}", f"{seconds} {each}") for each in (0, -1.5, "inf", "nan")),
            ("proxy_timeout = '5'", f"{seconds} '5'"),
            ("proxy_timeout = true", f"{seconds} true"),
            (
                "proxy_protocl = true",
                "4: listeners[0].proxy_protocl: unknown key; did you mean proxy_protocol?",
            ),
            ("turst = ['::1']", "4: listeners[0].turst: unknown key; did you mean trust?"),
        ):
            with self.subTest(more):
                self.assertEqual(self.mistakes(f"{LISTENER}{more}\n"), [expected])

    def test_of_a_cluster(self) -> None:
        for value in ("'v3'", "''", "'V2'", "'1'", "true", "2", "'unix'"):
            with self.subTest(value):
                self.assertEqual(
                    self.mistakes(f"{WEB}proxy_protocol = {value}\n{LISTENER}"),
                    [f"3: clusters.web.proxy_protocol: expected one of v1, v2, not {value}"],
                )
        self.assertEqual(
            self.mistakes(f"{WEB}proxy_timeout = 1\n{LISTENER}"),
            ["3: clusters.web.proxy_timeout: unknown key; did you mean connect_timeout?"],
        )

    def test_without_trust(self) -> None:
        """Nobody could connect."""
        for trust in ("", "trust = []\n"):
            line = 4 + bool(trust)
            self.assertEqual(
                self.mistakes(f"{LISTENER}{trust}proxy_protocol = true\n"),
                [f"{line}: listeners[0].proxy_protocol: {NEEDS_TRUST}"],
            )

    def test_where_no_header_can_be_read(self) -> None:
        listens = (under_tls(self), "haproxy:tcp:8080", "tls:8443")
        # The last one is a plugin's.
        self.patch(tables, "serverFromString", lambda reactor, text: None)
        for listen, why in zip(
            listens, (BEFORE_TLS, READ_ALREADY, BEFORE_TLS.replace("ssl:", "tls:")), strict=True
        ):
            listener = LISTENER.replace("'tcp:8080'", f'"{listen}"')
            self.assertEqual(
                self.mistakes(f"{listener}proxy_protocol = true\ntrust = ['::1']\n"),
                [f"4: listeners[0].proxy_protocol: {why}"],
            )

    def test_one_mistake_is_one_line(self) -> None:
        """What it brings with it is not said as well; that of others is."""
        second = LISTENER.replace("8080", "8081")
        self.assertEqual(
            self.mistakes(
                f"{LISTENER}proxy_protocol = true\ntrust = ['x']\n{second}proxy_protocol = true\n"
            ),
            [
                f"5: listeners[0].trust[0]: {NETWORK}, not 'x'",
                f"9: listeners[1].proxy_protocol: {NEEDS_TRUST}",
            ],
        )

    def test_not_in_the_environment(self) -> None:
        self.assertEqual(
            self.mistakes(f"{LISTENER}proxy_protocol = true\ntrust = ['${{NETWORK}}']\n"),
            ["5: listeners[0].trust[0]: the environment variable NETWORK is not set"],
        )


class ByHandTests(SynchronousTestCase):
    """A configuration that no file has been read for is looked at when it is applied."""

    def refused(self, *listeners: Listener) -> str:
        service = ProxyService(ClockedReactor())
        cluster = Cluster("web", (Backend(Address("127.0.0.1", 1)),), proxy_protocol="v2")
        with self.assertRaises(ConfigError) as caught:
            service.apply(Config(listeners, (cluster,)))
        (line,) = caught.exception.lines
        self.assertEqual(str(caught.exception), line)
        return line

    def test_what_a_file_may_not_say(self) -> None:
        for mode, settings in (
            ("tcp", TcpSettings()),
            ("http", HttpSettings()),
            ("sni", SniSettings()),
        ):
            good = Listener("good", "tcp:0", mode, "web", settings=settings, trust=("::1",))
            bad = evolve(good, name="bad", proxy_protocol=True)
            for fault, why in (
                (evolve(bad, trust=()), NEEDS_TRUST),
                (evolve(bad, listen=under_tls(self)), BEFORE_TLS),
                (evolve(bad, listen="haproxy:tcp:0"), READ_ALREADY),
            ):
                self.assertEqual(
                    self.refused(good, fault), f"listeners[1] (bad): proxy_protocol: {why}"
                )

    def test_what_it_may(self) -> None:
        service = ProxyService(ClockedReactor())
        front = Listener("front", "tcp:0", "tcp", "web", settings=TcpSettings(), trust=("::1",))
        cluster = Cluster("web", (Backend(Address("127.0.0.1", 1)),))
        reads = evolve(front, name="reads", proxy_protocol=True, proxy_timeout=2.0)
        service.apply(Config((front, reads), (cluster,)))
        self.assertIsNone(service.listeners["front"].headers)
        headers = service.listeners["reads"].headers
        assert headers is not None
        self.assertEqual((headers.timeout, headers.refused), (2.0, {}))
        for listener in service.listeners.values():
            self.assertEqual(listener.notes_server, False)
        service = ProxyService(ClockedReactor())
        service.apply(Config((front,), (evolve(cluster, proxy_protocol="v1"),)))
        self.assertEqual(service.listeners["front"].notes_server, True)
