"""proxykit.config and what it reads by: the keys, their defaults, what is said of mistakes."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
from attrs import field, frozen
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from proxykit import config, tables
from proxykit.checks import ClusterName, positive_seconds, whole_at_least
from proxykit.components import Component
from proxykit.errors import ConfigError
from proxykit.interfaces import IMode
from proxykit.model import Address, Backend, Cluster, Config, Listener, Pool, Sources

ENDPOINT = "expected a Twisted server endpoint such as tcp:8080 or tcp:8080:interface=127.0.0.1"


def even(value):
    if value % 2:
        raise ValueError("expected an even number")


@frozen
class FakeRoute:
    host: str
    cluster: ClusterName


@frozen
class FakeSettings:
    idle_timeout: float = field(default=600.0, metadata={"check": positive_seconds})
    keepalive: bool = True
    even: int = field(default=2, metadata={"check": even})
    note: str | None = None
    tags: tuple[str, ...] = ()
    ports: list[int] = field(factory=list)
    shares: dict[str, float] = field(factory=dict)
    routes: tuple[FakeRoute, ...] = ()
    derived: int = field(init=False, default=1)

    def __attrs_post_init__(self):
        if self.note == "both" and not self.keepalive:
            raise ValueError("note = both needs keepalive")


@frozen
class StrictSettings:
    needed: int = field(metadata={"check": whole_at_least(3)})
    other: str


@implementer(IMode)
class FakeMode:
    settings = FakeSettings

    def check(self, listener):
        if listener.name == "ill-suited":
            raise ValueError("expected another name")


class StrictMode(FakeMode):
    settings = StrictSettings


class BrokenMode:
    def __init__(self):
        raise RuntimeError("no\nluck")


COMPONENTS = {
    "mode": [
        Component("mode", "fake", f"{__name__}:FakeMode", ""),
        Component("mode", "strict", f"{__name__}:StrictMode", ""),
        Component("mode", "broken", f"{__name__}:BrokenMode", ""),
        Component("mode", "gone", "proxykit.no_such_module:Mode", ""),
    ],
    "balance": [
        Component("balance", "least-connections", "nobody:needs", ""),
        Component("balance", "round-robin", "nobody:needs", ""),
    ],
}

NAMES = {
    "localhost": ["::1", "127.0.0.1"],
    "other.test": ["127.0.0.1"],
    "twice.test": ["10.0.0.1", "10.0.0.1", "10.0.0.2"],
    "empty.test": [],
}


def resolve(host):
    if host in NAMES:
        return NAMES[host]
    if host == "odd.test":
        raise OSError("odd")
    raise OSError(-2, "Name or service not known")


class Case(SynchronousTestCase):
    def setUp(self):
        self.patch(
            tables, "components", lambda kind: {made.name: made for made in COMPONENTS[kind]}
        )

    def file(self, content):
        path = Path(self.mktemp())
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def load(self, content, **environ):
        return config.load(self.file(content), environ=environ, resolve=resolve)

    def mistakes(self, content, **environ):
        """The lines of the error without the file's name."""
        path = self.file(content)
        error = self.assertRaises(ConfigError, config.load, path, environ=environ, resolve=resolve)
        for line in error.lines:
            self.assertTrue(line.startswith(path + ":"), line)
            self.assertNotIn("\n", line)
        return [line[len(path) + 1 :] for line in error.lines]

    def assert_table(self, rows):
        """Each row is a text and the mistakes in it, one per line."""
        for text, *expected in rows:
            with self.subTest(text):
                self.assertEqual(self.mistakes(text), expected)


REAL_COMPONENTS = tables.components
#: Two lines, then what a row adds; the listener makes the file whole.
WEB = "[clusters.web]\nbackends = ['10.0.0.1:80']\n"
LISTENER = "[[listeners]]\nlisten = 'tcp:8080'\nmode = 'fake'\n"


class GoodTests(Case):
    def test_smallest(self):
        """Every default is the model's."""
        read = self.load(WEB + LISTENER)
        web = Cluster("web", (Backend(Address("10.0.0.1", 80)),))
        listener = Listener("listener-1", "tcp:8080", "fake", settings=FakeSettings())
        self.assertEqual(read, Config((listener,), (web,)))

    def test_everything(self):
        read = self.load(
            """
            [admin]
            listen = "tcp:9901:interface=127.0.0.1"
            [sources]
            headroom = 0
            [clusters.web]
            backends = [
                "10.0.0.1:80",
                { address = "[::0001]:80", weight = 256, backup = true },
                "unix:/run/web.sock",
            ]
            balance = "round-robin"
            max_connections = 1
            connect_timeout = 1
            queue = 0
            queue_timeout = 0.25
            deadline = 1e9
            host = "web.internal:81"
            pool = { reuse = "always", max_idle = 0, idle_timeout = 2 }
            [clusters."a.b"]
            backends = ["10.0.0.1:80"]
            [[listeners]]
            listen = "tcp:8080"
            mode = "fake"
            [[listeners]]
            name = "front"
            listen = "unix:/run/front.sock:mode=660"
            mode = "fake"
            cluster = "web"
            max_connections = 1
            idle_timeout = 7
            keepalive = false
            even = 4
            note = "x"
            tags = ["a", "b"]
            ports = [1, 2]
            shares = { a = 1, b = 0.5 }
            routes = [{ host = "h", cluster = "a.b" }]
            """
        )
        settings = FakeSettings(
            idle_timeout=7.0,
            keepalive=False,
            even=4,
            note="x",
            tags=("a", "b"),
            ports=[1, 2],
            shares={"a": 1.0, "b": 0.5},
            routes=(FakeRoute("h", ClusterName("a.b")),),
        )
        expected = Config(
            (
                Listener("listener-1", "tcp:8080", "fake", settings=FakeSettings()),
                Listener("front", "unix:/run/front.sock:mode=660", "fake", "web", 1, settings),
            ),
            (
                Cluster(
                    "web",
                    (
                        Backend(Address("10.0.0.1", 80)),
                        Backend(Address("::1", 80), 256, True),
                        Backend(Address("/run/web.sock", 0)),
                    ),
                    "round-robin",
                    1,
                    1.0,
                    0,
                    0.25,
                    1e9,
                    Pool("always", 0, 2.0),
                    "web.internal:81",
                ),
                Cluster("a.b", (Backend(Address("10.0.0.1", 80)),)),
            ),
            "tcp:9901:interface=127.0.0.1",
            Sources(headroom=0.0),
        )
        self.assertEqual(read, expected)
        cluster = read.clusters[0]
        for value in (
            cluster.connect_timeout,
            read.sources.headroom,
            read.listeners[1].settings.idle_timeout,
        ):
            self.assertIs(type(value), float)
        self.assertEqual(self.load(config.as_toml(read)), read)

    def test_names(self):
        read = self.load(
            "[clusters.web]\nbackends = [{ address = 'localhost:80', weight = 3, backup = true },"
            "'twice.test:81']\n" + LISTENER
        )
        expected = (
            Backend(Address("::1", 80), 3, True, "localhost:80"),
            Backend(Address("127.0.0.1", 80), 3, True, "localhost:80"),
            Backend(Address("10.0.0.1", 81), name="twice.test:81"),
            Backend(Address("10.0.0.2", 81), name="twice.test:81"),
        )
        self.assertEqual(read.clusters[0].backends, expected)
        again = self.load(config.as_toml(read))
        unnamed = tuple(attrs.evolve(backend, name="") for backend in expected)
        self.assertEqual(again.clusters[0].backends, unnamed)

    def test_each_name_is_looked_up_once(self):
        asked = []

        def counted(host):
            asked.append(host)
            return ["10.0.0.1"]

        text = (
            "[clusters.a]\nbackends=['x.test:1','x.test:2']\n[clusters.b]\nbackends=['x.test:1']\n"
        )
        config.load(self.file(text + LISTENER), environ={}, resolve=counted)
        self.assertEqual(asked, ["x.test"])

    def test_endpoints(self):
        """Also those that need something of where they run, which checking a file does not."""
        for listen in (
            "tcp:0",
            "tcp:65535:interface=10.9.8.7:backlog=3",
            "tcp6:8080:interface=\\\\:\\\\:1",
            "tcp:port=80",
            "unix:/run/x.sock",
            "systemd:domain=INET:index=0",
            "systemd:domain=INET6:name=web",
            "haproxy:tcp:80",
        ):
            with self.subTest(listen):
                text = f'[[listeners]]\nlisten = "{listen}"\nmode = "fake"\n'
                read = self.load(text)
                self.assertEqual(read.listeners[0].listen, listen.replace("\\\\", "\\"))
                self.assertEqual(self.load(config.as_toml(read)), read)

    def test_any_port_may_be_asked_for_twice(self):
        twice = LISTENER.replace("8080", "0:interface=127.0.0.1") * 2
        self.assertEqual(
            len(self.load("admin.listen='tcp:0:interface=127.0.0.1'\n" + twice).listeners), 2
        )

    def test_environment(self):
        read = self.load(
            "[clusters.web]\nbackends = ['${HOST}:${PORT}']\n[[listeners]]\n"
            "listen = 'tcp:8080'\nmode = 'f${A}e'\nnote = '$${A} $$ $A $${ ${EMPTY}${QUOTE}'\n",
            HOST="10.0.0.1",
            PORT="80",
            A="ak",
            EMPTY="",
            QUOTE="${A}",
        )
        self.assertEqual(read.clusters[0].backends[0].address, Address("10.0.0.1", 80))
        self.assertEqual(read.listeners[0].settings.note, "${A} $$ $A ${ ${A}")
        self.assertEqual(self.load(config.as_toml(read)), read)

    def test_built_by_hand(self):
        """Settings may be missing in what a program puts together."""
        made = Config((Listener("l", "tcp:1", "fake"),), ())
        with_defaults = attrs.evolve(made.listeners[0], settings=FakeSettings())
        self.assertEqual(self.load(config.as_toml(made)).listeners, (with_defaults,))

    def test_the_real_components(self):
        self.patch(tables, "components", REAL_COMPONENTS)
        read = self.load(
            WEB + "[[listeners]]\nlisten='tcp:1'\nmode='tcp'\ncluster='web'\nidle_timeout=1\n"
        )
        self.assertEqual(read.listeners[0].settings.idle_timeout, 1.0)
        self.assertEqual(self.load(config.as_toml(read)), read)


class FileTests(Case):
    def error(self, path):
        error = self.assertRaises(ConfigError, config.load, path, environ={}, resolve=resolve)
        (line,) = error.lines
        self.assertEqual(str(error), line)
        self.assertNotIn("\n", line)
        return line

    def test_syntax(self):
        for text, expected in (
            ("\n\na = \nb = 1", ":3: not TOML: Invalid value"),
            ("a = 1\na = 2\n", ":2: not TOML: Cannot overwrite a value"),
            ("a = [1,\n\n\n", ":1: not TOML: "),
            ("a = 'x\nb = 1'", ":1: not TOML: "),
        ):
            with self.subTest(text):
                path = self.file(text)
                line = self.error(path)
                self.assertTrue(line.startswith(path + expected), line)
                self.assertNotIn("column", line)

    def test_too_much_for_tomllib(self):
        path = self.file("a = " + "[" * 5000 + "]" * 5000)
        self.assertEqual(self.error(path), f"{path}: tables or lists are nested too deeply")
        path = self.file("a = " + "1" * 5000)
        self.assertIn("4300 digits", self.error(path))

    def test_not_utf_8(self):
        path = self.file(b"# \xc3\xa4\na = 1\nb = '\xff'\n")
        self.assertEqual(self.error(path), f"{path}:3: not UTF-8: invalid start byte")

    def test_not_a_file(self):
        path = self.mktemp()
        self.assertEqual(self.error(path), f"{path}: cannot be read: No such file or directory")
        os.mkdir(path)
        self.assertEqual(self.error(path), f"{path}: cannot be read: Is a directory")
        path = Path(self.file(""))
        self.patch(
            Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "No"))
        )
        self.assertEqual(self.error(path), f"{path}: cannot be read: No")

    def test_crlf(self):
        text = (WEB + "queue = -1\n" + LISTENER).replace("\n", "\r\n")
        self.assertEqual(len(self.mistakes(text)), 1)
        self.assertTrue(self.mistakes(text)[0].startswith("3: "))


class BuildTests(Case):
    DATA = {
        "clusters": {"default": {"backends": ["${HOST}:80"], "queue": "x"}},
        "listeners": [{"listen": "tcp:1", "mode": "fake", "cluster": "default"}],
    }

    def build(self, data, **environ):
        def place(path):
            return "--backend" if "backends" in path else config.dotted(path)

        return config.build(data, place, environ=environ, resolve=resolve)

    def test_mistakes(self):
        error = self.assertRaises(ConfigError, self.build, self.DATA, HOST="nohost.invalid")
        self.assertEqual(
            error.lines,
            (
                "--backend: the name 'nohost.invalid' does not resolve: Name or service not known",
                "clusters.default.queue: expected a whole number, 0 or more, not 'x'",
            ),
        )

    def test_good(self):
        data = {**self.DATA, "clusters": {"default": {"backends": ["${HOST}:80"]}}}
        read = self.build(data, HOST="10.0.0.1")
        self.assertEqual(read.clusters[0].backends, (Backend(Address("10.0.0.1", 80)),))
        self.assertEqual(data["clusters"]["default"]["backends"], ["${HOST}:80"])

    def test_what_a_file_cannot_say(self):
        """None is no value to be checked."""
        pool = {"max_idle": None}
        data = {"a": {"backends": ["10.0.0.1:80"], "pool": pool}}
        read = self.build({"clusters": data, "listeners": [{"listen": "tcp:1", "mode": "fake"}]})
        self.assertEqual(read.clusters[0].pool, Pool())

    def test_dotted(self):
        for path, expected in (
            ((), ""),
            (("clusters", "web", "backends", 1, "weight"), "clusters.web.backends[1].weight"),
            (("clusters", "a.b", "x y"), "clusters.'a.b'.'x y'"),
            ((0,), "[0]"),
        ):
            self.assertEqual(config.dotted(path), expected)
