"""proxykit.config and what it reads by: the keys, their defaults, what is said of mistakes."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from proxykit import config, tables
from proxykit.checks import ClusterName, positive_seconds, whole_at_least
from proxykit.components import Component
from proxykit.errors import ConfigError
from proxykit.interfaces import IMode
from proxykit.model import Address, Backend, Cluster, Config, Listener

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
                ),
                Cluster("a.b", (Backend(Address("10.0.0.1", 80)),)),
            ),
            "tcp:9901:interface=127.0.0.1",
            0.0,
        )
        self.assertEqual(read, expected)
        cluster = read.clusters[0]
        for value in (
            cluster.connect_timeout,
            read.headroom,
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


class MistakeTests(Case):
    maxDiff = None

    def test_a_mode_may_refuse_a_listener(self):
        (line,) = self.mistakes("[[listeners]]\nlisten='tcp:1'\nmode='fake'\nname='ill-suited'\n")
        self.assertIn("1: listeners[0]: expected another name", line)

    def test_clusters(self):
        weight = "clusters.web.backends[1].weight: expected a whole number from 1 to 256, not "
        cluster = "[clusters.web]\n"
        for more, *expected in (
            ("blance = 'x'", "3: clusters.web.blance: unknown key; did you mean balance?"),
            ("zzz = 1", "3: clusters.web.zzz: unknown key"),
            ("'a b' = 1", "3: clusters.web.'a b': unknown key"),
            (
                "balance = 'round-robbin'",
                "3: clusters.web.balance: expected one of least-connections, round-robin,"
                " not 'round-robbin'",
            ),
            (
                "balance = 1",
                "3: clusters.web.balance: expected one of least-connections, round-robin, not 1",
            ),
            (
                "max_connections = 0",
                "3: clusters.web.max_connections: expected a whole number, 1 or more, not 0",
            ),
            (
                "max_connections = 1.0",
                "3: clusters.web.max_connections: expected a whole number, 1 or more, not 1.0",
            ),
            ("queue = -1", "3: clusters.web.queue: expected a whole number, 0 or more, not -1"),
            ("queue = '5'", "3: clusters.web.queue: expected a whole number, 0 or more, not '5'"),
            ("queue = true", "3: clusters.web.queue: expected a whole number, 0 or more, not true"),
            (
                "queue = []",
                "3: clusters.web.queue: expected a whole number, 0 or more, not an empty list",
            ),
            (
                "queue = [1]",
                "3: clusters.web.queue: expected a whole number, 0 or more, not a list",
            ),
            (
                "queue = {}",
                "3: clusters.web.queue: expected a whole number, 0 or more, not a table",
            ),
            *(
                (
                    f"{key} = {value}",
                    f"3: clusters.web.{key}: expected a number of seconds above 0, not {said}",
                )
                for key in ("connect_timeout", "queue_timeout", "deadline")
                for value, said in (
                    ("0", "0"),
                    ("-1.5", "-1.5"),
                    ("inf", "inf"),
                    ("-inf", "-inf"),
                    ("nan", "nan"),
                    ("true", "true"),
                    ("'5'", "'5'"),
                    ("1" + "0" * 400, "1" + "0" * 56 + "..."),
                )
            ),
        ):
            with self.subTest(more):
                self.assertEqual(self.mistakes(f"{WEB}{more}\n{LISTENER}"), expected)
        for written, said in (
            ("-3.7", "-3.7"),
            ("-3", "-3"),
            ("2.0", "2.0"),
            ("0", "0"),
            ("257", "257"),
            ("true", "true"),
            ("'2'", "'2'"),
        ):
            with self.subTest(written):
                text = f"backends = ['10.0.0.1:80',\n{{address='10.0.0.2:80', weight={written}}}]\n"
                self.assertEqual(self.mistakes(cluster + text + LISTENER), [f"3: {weight}{said}"])

    def test_backends(self):
        place = "2: clusters.web.backends"
        for written, *expected in (
            ("[]", f"{place}: expected at least one backend, not an empty list"),
            ("'10.0.0.1:80'", f"{place}: expected a list of addresses, not '10.0.0.1:80'"),
            ("[80]", f"{place}[0]: expected an address such as 10.0.0.1:80, not 80"),
            (
                "['10.0.0.1']",
                f"{place}[0]: expected host:port, [v6]:port or unix:/path with a port from 1 to"
                " 65535, not '10.0.0.1'",
            ),
            (
                "[{address='10.0.0.1:80'}, {address=1, backup=1, wieght=2}]",
                f"{place}[1].wieght: unknown key; did you mean weight?",
                f"{place}[1].address: expected an address such as 10.0.0.1:80, not 1",
                f"{place}[1].backup: expected true or false, not 1",
            ),
            ("[{weight=2}]", f"{place}[0].address: missing"),
            (
                "['nohost.invalid:80', 'odd.test:1']",
                f"{place}[0]: the name 'nohost.invalid' does not resolve: Name or service not"
                " known",
                f"{place}[1]: the name 'odd.test' does not resolve: odd",
            ),
            (
                "['empty.test:80']",
                f"{place}[0]: the name 'empty.test' does not resolve: it has no address",
            ),
            (
                "['10.0.0.1:80', {address='10.0.0.1:80', weight=2}]",
                f"{place}[1]: the same address as backends[0]: 10.0.0.1:80",
            ),
            (
                "['other.test:80', 'unix:/a', 'localhost:80', 'unix:/a']",
                f"{place}[2]: the same address as backends[0]: 127.0.0.1:80",
                f"{place}[3]: the same address as backends[1]: unix:/a",
            ),
        ):
            with self.subTest(written):
                text = f"[clusters.web]\nbackends = {written}\n{LISTENER}"
                self.assertEqual(self.mistakes(text), expected)

    def test_listeners(self):
        start = "[[listeners]]\n"
        one_of = "expected one of fake, strict, broken, gone, not"
        self.assert_table(
            (
                ("", "1: listeners: missing; expected at least one [[listeners]]"),
                (
                    "listeners = []",
                    "1: listeners: expected at least one [[listeners]], not an empty list",
                ),
                ("[listeners]", "1: listeners: expected [[listeners]] tables, not a table"),
                ("listeners = [1]", "1: listeners[0]: expected a table, not 1"),
                (start, "1: listeners[0].listen: missing", "1: listeners[0].mode: missing"),
                (
                    start + "mdoe = 'fake'\nlisten = 'tcp:1'\nidle_timeout = 3",
                    "1: listeners[0].mode: missing",
                    "2: listeners[0].mdoe: unknown key; did you mean mode?",
                ),
                (
                    start + "mode = 'fkae'\nlisten = 'tcp:1'\nidle_timeout = 3",
                    f"2: listeners[0].mode: {one_of} 'fkae'",
                ),
                (start + "mode = 1\nlisten = 'tcp:1'", f"2: listeners[0].mode: {one_of} 1"),
                (
                    start + "mode = 'broken'\nlisten = 'tcp:1'",
                    "2: listeners[0].mode: the mode 'broken' cannot be loaded: no luck",
                ),
                (
                    LISTENER + "cluster = 'web'",
                    "4: listeners[0].cluster: there is no cluster 'web'",
                ),
                (
                    LISTENER + "cluster = 'wbe'\n" + WEB,
                    "4: listeners[0].cluster: there is no cluster 'wbe'; did you mean 'web'?",
                ),
                (
                    LISTENER + "cluster = 1",
                    "4: listeners[0].cluster: expected the name of a cluster, not 1",
                ),
                (
                    LISTENER + "name = 'a b'",
                    "4: listeners[0].name: expected a name without spaces or slashes, not 'a b'",
                ),
                (
                    LISTENER + "name = 7",
                    "4: listeners[0].name: expected a name without spaces or slashes, not 7",
                ),
                (
                    LISTENER + "max_connections = 0",
                    "4: listeners[0].max_connections: expected a whole number, 1 or more, not 0",
                ),
                (
                    LISTENER + LISTENER.replace("8080", "8081") + "name = 'listener-1'",
                    "7: listeners[1].name: the same name as listeners[0].name: listener-1",
                ),
                (
                    LISTENER * 2 + "max_connections = 0\n" + LISTENER,
                    "7: listeners[1].max_connections: expected a whole number, 1 or more, not 0",
                    "9: listeners[2].listen: the same endpoint as listeners[0].listen: tcp:8080",
                ),
                (
                    LISTENER + "[admin]\nlisten = 'tcp:8080'",
                    "2: listeners[0].listen: the same endpoint as admin.listen: tcp:8080",
                ),
            )
        )
        (gone,) = self.mistakes(start + "mode = 'gone'\nlisten = 'tcp:1'")
        self.assertTrue(
            gone.startswith("2: listeners[0].mode: the mode 'gone' cannot be loaded: "), gone
        )

    def test_endpoints(self):
        number = "invalid literal for int() with base 10"
        for listen, reason in (
            ("foo:1", "Unknown endpoint type: 'foo'"),
            ("8080", "Unknown endpoint type: '8080'"),
            ("", "Unknown endpoint type: ''"),
            ("tcp", "missing 1 required positional argument: 'port'"),
            ("tcp:abc", f"{number}: 'abc'"),
            ("tcp:80:x=1", "got an unexpected keyword argument 'x'"),
            ("tcp:65536", "a port is at most 65535"),
            ("tcp6:port=65536", "a port is at most 65535"),
            ("tcp:-1", "a port is at most 65535"),
            ("systemd:domain=INET:index=x", f"{number}: 'x'"),
            ("systemd:domain=INET", "Specify exactly one of descriptor index or name"),
        ):
            with self.subTest(listen):
                text = f"[[listeners]]\nmode = 'fake'\nlisten = '{listen}'\n"
                expected = [f"3: listeners[0].listen: {ENDPOINT}, not {listen!r}: {reason}"]
                self.assertEqual(self.mistakes(text), expected)
        for listen in ("80", "true", "['tcp:80']"):
            with self.subTest(listen):
                (line,) = self.mistakes(f"[admin]\nlisten = {listen}\n" + LISTENER)
                self.assertTrue(line.startswith(f"2: admin.listen: {ENDPOINT}, not "), line)

    def test_endpoint_plugins_may_raise_anything(self):
        for error, reason in ((KeyError("k"), "'k'"), (RuntimeError(), "RuntimeError")):

            def parse(reactor, text, error=error):
                raise error

            self.patch(tables, "serverFromString", parse)
            (line,) = self.mistakes(LISTENER)
            self.assertEqual(line, f"2: listeners[0].listen: {ENDPOINT}, not 'tcp:8080': {reason}")

    def test_settings(self):
        place = "4: listeners[0]"
        for more, *expected in (
            ("idle_timout = 1", f"{place}.idle_timout: unknown key; did you mean idle_timeout?"),
            ("clutser = 'x'", f"{place}.clutser: unknown key; did you mean cluster?"),
            ("derived = 1", f"{place}.derived: unknown key"),
            (
                "idle_timeout = 0",
                f"{place}.idle_timeout: expected a number of seconds above 0, not 0",
            ),
            ("keepalive = 1", f"{place}.keepalive: expected true or false, not 1"),
            ("keepalive = 'yes'", f"{place}.keepalive: expected true or false, not 'yes'"),
            ("even = 3", f"{place}.even: expected an even number, not 3"),
            ("even = '3'", f"{place}.even: expected a whole number, not '3'"),
            ("note = 3", f"{place}.note: expected a string, not 3"),
            (
                "note = 2020-01-02",
                f"{place}.note: expected a string, not datetime.date(2020, 1, 2)",
            ),
            ("tags = 'ab'", f"{place}.tags: expected a list, not 'ab'"),
            (
                "tags = ['a', 1, 'b', true]",
                f"{place}.tags[1]: expected a string, not 1",
                f"{place}.tags[3]: expected a string, not true",
            ),
            ("ports = [1.5]", f"{place}.ports[0]: expected a whole number, not 1.5"),
            ("shares = 1", f"{place}.shares: expected a table, not 1"),
            ("shares = {a = 'x'}", f"{place}.shares.a: expected a number, not 'x'"),
            (
                "routes = [{host = 'h', cluster = 'web'}, {cluster = 'no'}, 1]",
                f"{place}.routes[1].host: missing",
                f"{place}.routes[1].cluster: there is no cluster 'no'",
                f"{place}.routes[2]: expected a table, not 1",
            ),
        ):
            with self.subTest(more):
                self.assertEqual(self.mistakes(f"{LISTENER}{more}\n{WEB}"), expected)
        self.assertEqual(
            self.mistakes(LISTENER + "note = 'both'\nkeepalive = false"),
            ["1: listeners[0]: note = both needs keepalive"],
        )
        self.assertEqual(
            self.mistakes(LISTENER.replace("fake", "strict")),
            [
                "1: listeners[0].needed: missing; expected a whole number, 3 or more",
                "1: listeners[0].other: missing",
            ],
        )

    def test_other_tables(self):
        self.assert_table(
            (
                ("lsteners = 1\n" + LISTENER, "1: lsteners: unknown key; did you mean listeners?"),
                (
                    "clusters = 1\n" + LISTENER,
                    "1: clusters: expected [clusters.NAME] tables, not 1",
                ),
                ("clusters.web = 1\n" + LISTENER, "1: clusters.web: expected a table, not 1"),
                (
                    "[clusters.web]\n" + LISTENER,
                    "1: clusters.web.backends: missing; expected at least one backend",
                ),
                *(
                    (
                        f"[clusters.{name!r}]\nbackends=['10.0.0.1:1']\n{LISTENER}",
                        f"1: clusters.{name!r}: expected a name without spaces or slashes,"
                        f" not {name!r}",
                    )
                    for name in ("", "a b", "a/b", "\u200b")
                    if name.isprintable()
                ),
                ("[admin]\n" + LISTENER, "1: admin.listen: missing"),
                ("admin = 1\n" + LISTENER, "1: admin: expected a table, not 1"),
                ("[admin]\nport = 1\nlisten = 'tcp:1'\n" + LISTENER, "2: admin.port: unknown key"),
                *(
                    (
                        f"[sources]\nheadroom = {value}\n{LISTENER}",
                        f"2: sources.headroom: expected a number from 0 to 0.9, not {value}",
                    )
                    for value in ("-0.1", "0.91", "'x'", "true", "nan")
                ),
            )
        )

    def test_environment(self):
        cluster = "[clusters.web]\nbackends = ['${HOST}:80', '10.0.0.1:80',\n{address='${HOST}'}]\n"
        self.assert_table(
            (
                (
                    cluster + LISTENER,
                    "2: clusters.web.backends[0]: the environment variable HOST is not set",
                    "3: clusters.web.backends[2].address: the environment variable HOST is not set",
                ),
                (
                    cluster.replace("10.0.0.1:80", "x") + LISTENER + "zzz = 1\n",
                    "2: clusters.web.backends[0]: the environment variable HOST is not set",
                    "2: clusters.web.backends[1]: expected host:port, [v6]:port or unix:/path with"
                    " a port from 1 to 65535, not 'x'",
                    "3: clusters.web.backends[2].address: the environment variable HOST is not set",
                    "7: listeners[0].zzz: unknown key",
                ),
                (
                    LISTENER + "note = '${A} ${B}'\n",
                    "4: listeners[0].note: the environment variable A is not set",
                    "4: listeners[0].note: the environment variable B is not set",
                ),
                *(
                    (
                        LISTENER + f"note = '{text}'\n",
                        f"4: listeners[0].note: expected ${{NAME}}, or $${{ for ${{, not '{text}'",
                    )
                    for text in ("${", "${}", "${A", "${1}", "${A-b}")
                ),
            )
        )
        self.assertEqual(
            self.mistakes(LISTENER + "note = '${A}'\n", A="\udcff"),
            ["4: listeners[0].note: the environment variable A is not UTF-8"],
        )

    def test_sorted_and_all_of_them(self):
        text = (
            "[[listeners]]\nlisten = 'foo:1'\nmode = 'fake'\ncluster = 'wbe'\n"
            "[clusters.web]\nblance = 1\nqueue = 'x'\nbackends = ['nohost.invalid:1']\n"
        )
        lines = self.mistakes(text)
        self.assertEqual([line.split(":")[0] for line in lines], ["2", "4", "6", "7", "8"])


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

    def test_dotted(self):
        for path, expected in (
            ((), ""),
            (("clusters", "web", "backends", 1, "weight"), "clusters.web.backends[1].weight"),
            (("clusters", "a.b", "x y"), "clusters.'a.b'.'x y'"),
            ((0,), "[0]"),
        ):
            self.assertEqual(config.dotted(path), expected)


NAMES_ST = st.text(min_size=1, max_size=8).filter(tables._is_name)
SECONDS = st.floats(min_value=1e-6, max_value=1e12)
WHOLE = st.integers(min_value=1, max_value=10**9)


@st.composite
def configs(draw):
    names = draw(st.lists(NAMES_ST, max_size=3, unique=True))
    clusters = tuple(
        Cluster(
            name,
            tuple(
                Backend(address, draw(st.integers(1, 256)), draw(st.booleans()))
                for address in draw(
                    st.lists(
                        st.one_of(
                            st.builds(Address, st.ip_addresses().map(str), st.integers(1, 65535)),
                            st.builds(Address, st.just("/run/${x}"), st.just(0)),
                        ),
                        min_size=1,
                        max_size=3,
                        unique=True,
                    )
                )
            ),
            draw(st.sampled_from(["least-connections", "round-robin"])),
            draw(WHOLE),
            draw(SECONDS),
            draw(st.integers(0, 10**9)),
            draw(SECONDS),
            draw(SECONDS),
        )
        for name in names
    )
    listeners = tuple(
        Listener(
            name,
            f"tcp:{port}",
            "fake",
            draw(st.sampled_from(["", *names])),
            draw(WHOLE),
            FakeSettings(
                idle_timeout=draw(SECONDS),
                keepalive=draw(st.booleans()),
                note=draw(st.none() | st.text()),
                tags=tuple(draw(st.lists(st.text(), max_size=2))),
                routes=tuple(FakeRoute("h", ClusterName(name)) for name in names),
            ),
        )
        for port, name in enumerate(
            draw(st.lists(NAMES_ST, min_size=1, max_size=3, unique=True)), 1
        )
    )
    note_free = attrs.evolve(listeners[0], settings=FakeSettings())
    headroom = draw(st.floats(0, 0.9))
    return Config(
        (note_free, *listeners[1:]), clusters, draw(st.sampled_from(["", "tcp:9"])), headroom
    )


class RoundTripTests(Case):
    @settings(deadline=None)
    @given(configs())
    def test_loads_to_an_equal_one(self, made):
        self.assertEqual(self.load(config.as_toml(made)), made)

    def test_defaults_are_written(self):
        text = config.as_toml(self.load(WEB + LISTENER))
        for line in ("headroom = 0.02", "queue = 1000", "weight = 1", "keepalive = true"):
            self.assertIn(line, text)
        for absent in ("note", 'name = ""', "cluster = ", "admin"):
            self.assertNotIn(absent, text)
