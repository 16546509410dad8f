"""proxykit.modes.sni_settings: what can be set of an sni listener, every mistake, and its flags."""

from __future__ import annotations

import tomllib
from pathlib import Path

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

import proxykit
from proxykit import config, tables
from proxykit.errors import ConfigError
from proxykit.model import Address, Backend, Cluster, Config, Listener, SniRoute
from proxykit.modes.sni import SniMode
from proxykit.modes.sni_settings import SniRouteTable, SniSettings, check_sni
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.service import ProxyService
from tests.test_config import REAL_COMPONENTS, WEB, Case
from tests.test_tap import TapTestCase

#: Three lines behind those of WEB, so that what a row adds begins on line 6.
SNI = WEB + "[[listeners]]\nlisten = 'tcp:8443'\nmode = 'sni'\n"
ROUTE = "[[listeners.routes]]\n"
#: Behind a row that hands over to it.
HERE = "\n[[listeners]]\nname = 'here'\nmode = 'tcp'\ncluster = 'web'\n"
EXAMPLE = Path(proxykit.__file__).resolve().parent.parent / "examples" / "sni.toml"


class SniCase(Case):
    def setUp(self):
        super().setUp()
        self.patch(tables, "components", REAL_COMPONENTS)

    def settings(self, text):
        return self.load(SNI + text).listeners[0].settings

    def routes(self, text):
        return self.settings(text).routes


class GoodTests(SniCase):
    def test_defaults(self):
        read = self.load(SNI + "cluster = 'web'\n")
        self.assertEqual(read.listeners[0].settings, SniSettings())
        self.assertEqual(self.load(config.as_toml(read)), read)
        self.assertEqual(
            SniSettings(), SniSettings(600.0, True, True, False, 5.0, "", "", "refuse", (), 65536)
        )

    def test_everything(self):
        read = self.load(
            SNI
            + """
            idle_timeout = 1
            keepalive = false
            log_connections = false
            abort_on_close = true
            peek_timeout = 2
            without_name = "close"
            unknown_name = "web"
            not_tls = ""
            hello_limit = 512
            [[listeners.routes]]
            host = "*.A.example"
            cluster = "web"
            [[listeners.routes]]
            host = "a.example"
            alpn = ["h2", "\xff", "acme-tls/1"]
            listener = "here"
            [[listeners.routes]]
            cluster = "web"
            """
            + HERE
        )
        expected = SniSettings(
            *(1.0, False, False, True, 2.0, "close", "web", ""),
            routes=(
                SniRoute("web", host="*.A.example"),
                SniRoute(host="a.example", alpn=("h2", "\xff", "acme-tls/1"), listener="here"),
                SniRoute("web"),
            ),
            hello_limit=512,
        )
        self.assertEqual(read.listeners[0].settings, expected)
        self.assertEqual((read.listeners[1].name, read.listeners[1].listen), ("here", ""))
        self.assertEqual(self.load(config.as_toml(read)), read)

    def test_a_route_is_printed_as_it_was_said(self):
        text = config.as_toml(self.load(SNI + ROUTE + "host = 'a'\ncluster = 'web'\n"))
        self.assertIn('{ cluster = "web", host = "a" }', text)

    def test_the_example(self):
        """It has every key, and says which default each one has."""
        text = EXAMPLE.read_text(encoding="utf-8")
        read = self.load(text)
        self.assertEqual(self.load(config.as_toml(read)), read)
        listener, here = tomllib.loads(text)["listeners"]
        self.assertEqual(
            set(listener),
            {*tables.LISTENER_KEYS, *attrs.fields_dict(SniSettings)}
            - {"max_connections", "trust", "proxy_protocol", "proxy_timeout", "tls"},
        )
        self.assertNotIn("listen", here)
        routes = {key for route in listener["routes"] for key in route}
        self.assertEqual(routes, set(attrs.fields_dict(SniRouteTable)))
        for key, value in attrs.asdict(SniSettings(), recurse=False).items():
            if key != "routes":
                self.assertEqual(listener[key], value, key)

    def test_hosts(self):
        for host in (
            *("a", "a.example", "*.example", "*.a.example", "a_b.example", "A.Example", ""),
            *("xn--bcher-kva.example", "1.2.3.4a", "1.2.3.4.example", "a-.9"),
        ):
            (route,) = self.routes(f"{ROUTE}host = '{host}'\ncluster = 'web'\n")
            self.assertEqual(route.host, host)

    def test_protocols(self):
        for protocol in ("h2", "http/1.1", "x" * 255, "\xff", " ", "\x01"):
            data = tomllib.loads(SNI + ROUTE + "cluster = 'web'")
            data["listeners"][0]["routes"][0]["alpn"] = [protocol]
            read = config.build(data, str, environ={})
            self.assertEqual(read.listeners[0].settings.routes[0].alpn, (protocol,))
            self.assertEqual(self.load(config.as_toml(read)), read)

    def test_routes_that_differ(self):
        for one, other in (
            ("host = 'a'", "host = '*.a'"),
            ("host = 'a'", ""),
            ("alpn = ['h2']", "alpn = ['H2']"),
            ("alpn = ['h2']", ""),
            ("host = 'a'\nalpn = ['h2']", "host = 'a'\nalpn = ['x', 'y']"),
            ("host = 'a'\nalpn = ['h2']", "host = 'b'\nalpn = ['h2']"),
        ):
            text = f"{ROUTE}{one}\ncluster = 'web'\n{ROUTE}{other}\ncluster = 'web'\n"
            self.assertEqual(len(self.routes(text)), 2)

    def test_the_same_protocol_twice_in_one_route(self):
        (route,) = self.routes(f"{ROUTE}alpn = ['h2', 'h2']\ncluster = 'web'\n")
        self.assertEqual(route.alpn, ("h2", "h2"))

    def test_listeners_may_stand_in_any_order(self):
        """And two of them may give to the same one, which may listen itself."""
        front = f"[[listeners]]\nlisten = 'tcp:%d'\nmode = 'sni'\n{ROUTE}listener = 'here'\n"
        here = HERE.replace("mode", "listen = 'tcp:1'\nmode")
        self.assertEqual(len(self.load(WEB + front % 2 + here + front % 3).listeners), 3)

    def test_a_name_that_was_not_given(self):
        """The second listener is listener-2."""
        read = self.load(f"{SNI}{ROUTE}listener = 'listener-2'\n" + HERE.replace("name", "#"))
        self.assertEqual(read.listeners[1].name, "listener-2")

    def test_check(self):
        route = SniSettings(routes=(SniRoute("web"),))
        for listener in (
            Listener("l", "tcp:1", "sni", "web", settings=SniSettings()),
            Listener("l", "tcp:1", "sni", "web"),
            Listener("l", "tcp:1", "sni", settings=route),
        ):
            check_sni(listener)
            SniMode().check(listener)
        for made in (SniSettings(), None):
            listener = Listener("l", "tcp:1", "sni", settings=made)
            for check in (check_sni, SniMode().check):
                error = self.assertRaises(ValueError, check, listener)
                self.assertEqual(str(error), "mode sni needs a cluster or routes")


class MistakeTests(SniCase):
    maxDiff = None

    def assert_mistakes(self, before, rows):
        """Each row is what comes behind ``before``, and the mistakes in it."""
        for text, *expected in rows:
            with self.subTest(text):
                self.assertEqual(self.mistakes(before + text), expected)

    def assert_refused(self, before, key, expected, values):
        """Each of the values, as TOML, of a key that is on the last line."""
        line = before.count("\n") + 1
        place = f"{line}: listeners[0]{'.routes[0]' if ROUTE in before else ''}.{key}"
        self.assert_mistakes(
            before,
            (
                (f"{key} = {value}", f"{place}: expected {expected}, not {value}")
                for value in values
            ),
        )

    def test_neither_cluster_nor_routes(self):
        self.assertEqual(
            self.mistakes(SNI), ["3: listeners[0]: mode sni needs a cluster or routes"]
        )

    def test_settings(self):
        for key in ("peek_timeout", "idle_timeout"):
            self.assert_refused(
                SNI, key, "a number of seconds above 0", ("0", "-1", "nan", "'x'", "true")
            )
        for key in ("keepalive", "log_connections", "abort_on_close"):
            self.assert_refused(SNI, key, "true or false", ("1", "'yes'"))
        self.assert_refused(
            SNI, "hello_limit", "a whole number from 512 to 65536", ("511", "65537", "600.0", "''")
        )
        place = "6: listeners[0]"
        self.assert_mistakes(
            SNI,
            (
                (
                    "peek_timeuot = 1",
                    f"{place}.peek_timeuot: unknown key; did you mean peek_timeout?",
                ),
                ("routes = 1", f"{place}.routes: expected a list, not 1"),
                ("routes = [1]", f"{place}.routes[0]: expected a table, not 1"),
                ("routes = ['a']", f"{place}.routes[0]: expected a table, not 'a'"),
            ),
        )

    def test_what_becomes_of_the_others(self):
        for key in ("without_name", "unknown_name", "not_tls"):
            place = f"6: listeners[0].{key}"
            self.assert_mistakes(
                SNI,
                (
                    (f"{key} = 'wbe'", f"{place}: there is no cluster 'wbe'; did you mean 'web'?"),
                    (f"{key} = 'x'", f"{place}: there is no cluster 'x'"),
                    (
                        f"{key} = 'refsue'",
                        f"{place}: there is no cluster 'refsue'; did you mean 'refuse'?",
                    ),
                    (f"{key} = 1", f"{place}: expected refuse, close or a cluster, not 1"),
                ),
            )

    def test_hosts(self):
        self.assert_refused(
            SNI + ROUTE + "cluster = 'web'\n",
            "host",
            "a name such as a.example, or *. and a name",
            map(
                repr,
                (
                    *("*", "*.", "a.*", "*a", "a.*.b", "*.*.a", "a:80", "a/b", "https://a", "a b"),
                    *("a.", ".a", "::1", "[::1]", "10.0.0.1", "*.10.0.0.1", "1.2", "unix:/a"),
                    *("b\xfccher.example", "*.[::1]", "a..", "-a"),
                ),
            ),
        )

    def test_protocols(self):
        before = SNI + ROUTE + "cluster = 'web'\n"
        place = "8: listeners[0].routes[0].alpn"
        said = "expected a protocol such as h2, of 1 to 255 characters, not"
        long = "x" * 256
        self.assert_mistakes(
            before,
            (
                ("alpn = 'h2'", f"{place}: expected a list, not 'h2'"),
                ("alpn = [2]", f"{place}[0]: expected a string, not 2"),
                (
                    "alpn = ['h2', '', '\u0100']",
                    f"{place}[1]: {said} ''",
                    f"{place}[2]: {said} '\u0100'",
                ),
            ),
        )
        (line,) = self.mistakes(f"{before}alpn = ['{long}']")
        self.assertIn(f"{place}[0]: {said} 'xxx", line)

    def test_one_of_cluster_and_listener(self):
        message = "6: listeners[0].routes[0]: expected one of cluster and listener"
        both = "cluster = 'web'\nlistener = 'here'"
        for text in ("", "host = 'a'\nalpn = ['h2']", both + HERE, f"host = 'a'\n{both}{HERE}"):
            self.assertEqual(self.mistakes(SNI + ROUTE + text), [message])

    def test_clusters(self):
        place = "7: listeners[0].routes[0].cluster"
        self.assert_mistakes(
            SNI + ROUTE,
            (
                ("cluster = 'wbe'", f"{place}: there is no cluster 'wbe'; did you mean 'web'?"),
                ("cluster = ''", f"{place}: there is no cluster ''"),
                ("cluster = 'refuse'", f"{place}: there is no cluster 'refuse'"),
                ("cluster = 1", f"{place}: expected the name of a cluster, not 1"),
            ),
        )

    def test_listeners(self):
        place = "7: listeners[0].routes[0].listener"
        self.assert_mistakes(
            SNI + ROUTE,
            (
                (
                    "listener = 'hre'" + HERE.replace("mode", "listen = 'tcp:1'\nmode"),
                    f"{place}: there is no listener 'hre'; did you mean 'here'?",
                ),
                ("listener = 'x'", f"{place}: there is no listener 'x'"),
                ("listener = ''", f"{place}: there is no listener ''"),
                ("listener = 1", f"{place}: expected the name of a listener, not 1"),
            ),
        )

    def test_listeners_that_cannot_take_over(self):
        place = "7: listeners[0].routes[0].listener"
        other = "\n[[listeners]]\nname = 'here'\nlisten = 'tcp:1'\nmode = 'sni'\ncluster = 'web'\n"
        why = "cannot take connections over: its mode is sni as well"
        self.assert_mistakes(
            SNI + ROUTE,
            (
                ("listener = 'listener-1'", f"{place}: 'listener-1' {why}"),
                ("listener = 'here'" + other, f"{place}: 'here' {why}"),
            ),
        )

    def test_a_listener_that_does_not_listen(self):
        """That is a mistake unless a route names it."""
        self.assert_mistakes(
            SNI + "cluster = 'web'\n",
            (
                (HERE, "8: listeners[1].listen: missing"),
                (HERE.replace("name = 'here'\n", ""), "8: listeners[1].listen: missing"),
                (
                    f"{ROUTE}listener = 'here'\n{HERE}{HERE.replace('here', 'there')}",
                    "15: listeners[2].listen: missing",
                ),
                (
                    f"{ROUTE}listener = 'here'\n{HERE}trust = ['::1']\nproxy_protocol = true",
                    "15: listeners[1].proxy_protocol: it does not listen, so no header ever comes",
                ),
            ),
        )
        self.assertEqual(
            self.mistakes(WEB + "[[listeners]]\nmode = 'sni'\ncluster = 'web'\n"),
            ["3: listeners[0].listen: missing"],
        )

    def test_the_same_twice(self):
        for first, second, what in (
            ("", "", "host"),
            ("host = 'a'", "host = 'A'", "host"),
            ("alpn = ['h2']", "alpn = ['h2']", "host and a protocol"),
            ("alpn = ['h2', 'x']", "alpn = ['y', 'x']\nhost = ''", "host and a protocol"),
        ):
            text = f"{SNI}{ROUTE}{first}\ncluster = 'web'\n{ROUTE}{second}\ncluster = 'web'\n"
            expected = f"9: listeners[0].routes[1]: the same {what} as routes[0]"
            self.assertEqual(self.mistakes(text), [expected])

    def test_all_of_them(self):
        """Those in several routes, and in what is around them, in the order of the file."""
        text = (
            f"{SNI}cluster = 'wbe'\nnot_tls = 'x'\n{ROUTE}\n{ROUTE}host = '*'\nalpn = ['']\n"
            "cluster = 'web'\n"
        )
        lines = self.mistakes(text)
        self.assertEqual([line.partition(":")[0] for line in lines], ["6", "7", "8", "11", "12"])


class ServiceTests(SynchronousTestCase):
    """The same mistakes in a configuration that was made by hand."""

    def refused(self, *listeners):
        service = ProxyService(Clock())
        made = Config(listeners, (Cluster("web", (Backend(Address("10.0.0.1", 80)),)),))
        return str(self.assertRaises(ConfigError, service.apply, made))

    def front(self, *routes, **more):
        return Listener("front", "tcp:1", "sni", settings=SniSettings(routes=routes), **more)

    def test_each(self):
        here = SniRoute(listener="here")
        place = "listeners[0].routes[0].listener: 'here' cannot take connections over: "
        self.assertEqual(self.refused(self.front(here)), place + "there is none")
        other = Listener("here", "tcp:2", "sni", "web", settings=SniSettings())
        self.assertEqual(self.refused(self.front(here), other), place + "its mode is sni as well")
        self.assertIn("mode sni needs a cluster or routes", self.refused(self.front()))
        taking = Listener("there", "", "tcp", "web", settings=TcpSettings())
        self.assertEqual(
            self.refused(self.front(SniRoute("web")), taking),
            "listeners[1].listen: missing: no route hands connections over to it",
        )


class FlagTests(TapTestCase):
    """``twistd proxykit sni``."""

    sni = ("sni", "--listen", "tcp:0")

    def test_all_that_can_be_said(self):
        read = self.configured(
            *self.sni,
            *("--route", "a.example=127.0.0.1:1,[::1]:2", "--route", "*.b.example=unix:/a=b"),
            *("--route", "*=127.0.0.1:3", "--backend", "127.0.0.1:4", "--balance", "round-robin"),
            *("--not-tls", "a.example", "--without-name", "close", "--unknown-name", "backends"),
            *("--hello-limit", "700", "--peek-timeout", "2"),
            *("--idle-timeout", "3", "--keepalive", "no"),
        )
        (listener,) = read.listeners
        self.assertEqual((listener.name, listener.mode), ("sni", "sni"))
        self.assertEqual(listener.cluster, "backends")
        self.assertEqual(
            listener.settings,
            SniSettings(
                *(3.0, False, True, False, 2.0, "close", "backends", "a.example"),
                routes=(
                    SniRoute("a.example", host="a.example"),
                    SniRoute("*.b.example", host="*.b.example"),
                    SniRoute("*", host=""),
                ),
                hello_limit=700,
            ),
        )
        names = ["a.example", "*.b.example", "*", "backends"]
        self.assertEqual([each.name for each in read.clusters], names)
        self.assertEqual([len(each.backends) for each in read.clusters], [2, 1, 1, 1])
        self.assertEqual({each.balance for each in read.clusters}, {"round-robin"})

    def test_less(self):
        read = self.configured(*self.sni, "--backend", "127.0.0.1:1")
        self.assertEqual(read.listeners[0].settings, SniSettings())
        read = self.configured(*self.sni, "--route", "a=127.0.0.1:1")
        self.assertEqual(
            (read.listeners[0].cluster, [each.name for each in read.clusters]), ("", ["a"])
        )

    def test_help(self):
        text = " ".join(str(self.parse(*self.sni, "-b", "127.0.0.1:1").subOptions).split())
        for part in (
            "--route= HOST=ADDRESS[,ADDRESS...]: the backends for a host, such as a.example or",
            "--peek-timeout= Seconds for the whole hello; default: 5.0",
            "--without-name= What becomes of a hello that names no server: refuse, close or a"
            " cluster; default: none",
            "--unknown-name= What becomes of one whose name has no route: refuse, close or a"
            " cluster; default: none",
            "--not-tls= What becomes of whatever is not TLS: refuse, close or a cluster; default:"
            " refuse",
            "--abort-on-close= ",
        ):
            self.assertIn(part, text)
        self.assertNotIn("--routes", text)
        self.assertNotIn("/PATH", text)

    def test_mistakes(self):
        one = ("--route", "a.example=127.0.0.1:1")
        for arguments, expected in (
            ([], "--backend or --route: mode sni needs a cluster or routes"),
            (["--route", "a"], "--route a: expected HOST=ADDRESS[,ADDRESS...]"),
            (["--route", "a/v1=127.0.0.1:1"], "--route a/v1=127.0.0.1:1: expected HOST=ADDRESS["),
            (["--route", "a=x"], "--route a=x: expected host:port"),
            (["--route", "1.2.3.4=127.0.0.1:1"], "--route 1.2.3.4=127.0.0.1:1: expected a name"),
            (["--route", "a.*=127.0.0.1:1"], "--route a.*=127.0.0.1:1: expected a name"),
            (
                [*one, "--route", "A.example=127.0.0.1:2"],
                "--route A.example=127.0.0.1:2: the same host as routes[0]",
            ),
            ([*one, "--not-tls", "x"], "--not-tls: there is no cluster 'x'"),
            (
                [*one, "--unknown-name", "backends"],
                "--unknown-name: there is no cluster 'backends'",
            ),
            ([*one, "--without-name", "refsue"], "did you mean 'refuse'?"),
            ([*one, "--peek-timeout", "0"], "--peek-timeout: expected a number of seconds above 0"),
        ):
            text = self.refused(*self.sni, *arguments)
            self.assertEqual(text.count("\n"), 1, text)
            self.assertIn(expected, text)


FALLBACKS = st.sampled_from(["", "refuse", "close", "web"])
PROTOCOLS = st.lists(st.sampled_from(["h2", "\xff", "${x}", " "]), unique=True).map(tuple)
ROUTES = st.builds(
    SniRoute, st.just("web"), st.sampled_from(["", "a.example", "*.a.example"]), PROTOCOLS
) | st.builds(
    SniRoute, st.just(""), st.sampled_from(["b", "*.b"]), PROTOCOLS, listener=st.just("here")
)
SETTINGS = st.builds(
    SniSettings,
    without_name=FALLBACKS,
    unknown_name=FALLBACKS,
    not_tls=FALLBACKS,
    routes=st.lists(ROUTES, unique_by=lambda route: route.host).map(tuple),
)


class RoundTripTests(SniCase):
    @settings(deadline=None)
    @given(SETTINGS)
    def test_loads_to_an_equal_one(self, made):
        listeners = [Listener("l", "tcp:1", "sni", "web", settings=made)]
        if any(route.listener for route in made.routes):
            listeners.append(Listener("here", "", "tcp", "web", settings=TcpSettings()))
        whole = Config(tuple(listeners), (Cluster("web", (Backend(Address("10.0.0.1", 80)),)),))
        self.assertEqual(self.load(config.as_toml(whole)), whole)
