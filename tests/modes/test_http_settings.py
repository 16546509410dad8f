"""proxykit.modes.http_settings: what can be set of an http listener, and every mistake in it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

import proxykit
from proxykit import config, tables
from proxykit.core.routing import is_normal
from proxykit.model import Address, Backend, Cluster, Config, FieldRules, HttpRoute, Listener
from proxykit.modes.http_settings import HttpSettings, RouteTable, check_http
from tests.test_config import REAL_COMPONENTS, WEB, Case

#: Three lines behind those of WEB, so that what a row adds begins on line 6.
HTTP = WEB + "[[listeners]]\nlisten = 'tcp:8080'\nmode = 'http'\n"
ROUTE = "[[listeners.routes]]\n"
EXAMPLE = Path(proxykit.__file__).resolve().parent.parent / "examples" / "http.toml"


class HttpCase(Case):
    def setUp(self):
        super().setUp()
        self.patch(tables, "components", REAL_COMPONENTS)

    def settings(self, text):
        return self.load(HTTP + text).listeners[0].settings

    def routes(self, text):
        return self.settings(text).routes


class GoodTests(HttpCase):
    def test_defaults(self):
        read = self.load(HTTP + "cluster = 'web'\n")
        self.assertEqual(read.listeners[0].settings, HttpSettings())
        self.assertEqual(self.load(config.as_toml(read)), read)

    def test_everything(self):
        read = self.load(
            HTTP
            + """
            head_timeout = 1
            body_timeout = 2
            keepalive_timeout = 3
            response_timeout = 4
            response_body_timeout = 5
            upgrade_timeout = 6
            line_limit = 7
            head_limit = 8
            fields_limit = 9
            body_limit = 10
            via = ""
            request_id = false
            log_connections = false
            access_log = "-"
            access_log_format = "json"
            [[listeners.routes]]
            host = "*.a.example"
            path = "/v1/"
            methods = ["GET", "M-SEARCH"]
            cluster = "web"
            replace_path = "/"
            body_limit = 0
            [listeners.routes.request_fields]
            set = { X-One = "1", "x-two" = "" }
            remove = ["Cookie"]
            [listeners.routes.response_fields]
            set = { Strict-Transport-Security = "max-age=1; ${NAME}" }
            [[listeners.routes]]
            host = "A.example"
            redirect = "https://{host}{uri}"
            [[listeners.routes]]
            host = "[::1]"
            redirect = "/elsewhere"
            status = 302
            replace_path = "/x"
            [[listeners.routes]]
            path = "/healthz"
            status = 200
            text = "fine"
            """.replace("${NAME}", "$${NAME}")
        )
        expected = HttpSettings(
            *(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7, 8, 9, 10),
            via="",
            request_id=False,
            log_connections=False,
            access_log="-",
            access_log_format="json",
            routes=(
                HttpRoute(
                    "web",
                    host="*.a.example",
                    path="/v1/",
                    methods=("GET", "M-SEARCH"),
                    replace_path="/",
                    body_limit=0,
                    request_fields=FieldRules((("X-One", "1"), ("x-two", "")), ("Cookie",)),
                    response_fields=FieldRules(
                        (("Strict-Transport-Security", "max-age=1; ${NAME}"),)
                    ),
                ),
                HttpRoute(host="A.example", redirect="https://{host}{uri}"),
                HttpRoute(host="[::1]", redirect="/elsewhere", status=302, replace_path="/x"),
                HttpRoute(path="/healthz", status=200, text="fine"),
            ),
        )
        self.assertEqual(read.listeners[0].settings, expected)
        self.assertEqual(self.load(config.as_toml(read)), read)

    def test_a_route_is_printed_as_it_was_said(self):
        text = config.as_toml(self.load(HTTP + ROUTE + "path = '/a'\nstatus = 404\n"))
        self.assertIn('{ path = "/a", status = 404 }', text)

    def test_the_example(self):
        """It has every key, and says which default each one has."""
        text = EXAMPLE.read_text(encoding="utf-8")
        read = self.load(text)
        self.assertEqual(self.load(config.as_toml(read)), read)
        (listener,) = tomllib.loads(text)["listeners"]
        self.assertEqual(
            set(listener),
            {*tables.LISTENER_KEYS, *attrs.fields_dict(HttpSettings)}
            - {"max_connections", "proxy_protocol", "proxy_timeout", "tls"},
        )
        routes = {key for route in listener["routes"] for key in route}
        self.assertEqual(routes, set(attrs.fields_dict(RouteTable)))
        said = {line.split(" = ")[0] for line in text.splitlines() if "# e.g." in line}
        for key, value in attrs.asdict(HttpSettings(), recurse=False).items():
            if key not in said | {"routes"}:
                self.assertEqual(listener[key], value, key)

    def test_hosts(self):
        for host in (
            *("a", "a.example", "*.example", "*.a.example", "a_b.example", "A.Example"),
            *("10.0.0.1", "[::1]", "", "xn--bcher-kva.example"),
        ):
            (route,) = self.routes(f"{ROUTE}host = '{host}'\nstatus = 404\n")
            self.assertEqual(route.host, host)

    def test_redirects(self):
        for url in (
            *("https://{host}{uri}", "{scheme}://www.{host}/", "http://a.example", "/", "/a{uri}"),
            *("https://[::1]:8443/a?b={uri}#c", "https://{host}:8443{uri}", "/?to={host}"),
        ):
            (route,) = self.routes(f"{ROUTE}redirect = '{url}'\n")
            self.assertEqual(route.redirect, url)

    def test_routes_that_differ(self):
        for one, other in (
            ("path = '/a'", "path = '/a/'"),
            ("path = '/a'", "path = '/A'"),
            ("host = 'a'", "host = '*.a'"),
            ("host = 'a'", ""),
            ("methods = ['GET']", "methods = ['PUT']"),
            ("methods = ['GET']", ""),
        ):
            text = f"{ROUTE}{one}\nstatus = 404\n{ROUTE}{other}\nstatus = 403\n"
            self.assertEqual(len(self.routes(text)), 2)

    def test_check(self):
        route = HttpSettings(routes=(HttpRoute("web"),))
        for listener in (
            Listener("l", "tcp:1", "http", "web", settings=HttpSettings()),
            Listener("l", "tcp:1", "http", "web"),
            Listener("l", "tcp:1", "http", settings=route),
        ):
            check_http(listener)
        for made in (HttpSettings(), None):
            error = self.assertRaises(
                ValueError, check_http, Listener("l", "tcp:1", "http", settings=made)
            )
            self.assertEqual(str(error), "mode http needs a cluster or routes")


class MistakeTests(HttpCase):
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
            self.mistakes(HTTP), ["3: listeners[0]: mode http needs a cluster or routes"]
        )

    def test_settings(self):
        for key in attrs.fields_dict(HttpSettings):
            if key.endswith("_timeout"):
                self.assert_refused(HTTP, key, "a number of seconds above 0", ("0", "'x'"))
        for key, low in (("line", 1), ("head", 1), ("fields", 1), ("body", 0)):
            self.assert_refused(
                HTTP, f"{key}_limit", f"a whole number, {low} or more", (f"{low - 1}", "1.0")
            )
        self.assert_refused(HTTP, "via", "one word, or nothing", ("'a b'", "'b\xfc'", "1"))
        self.assert_refused(HTTP, "access_log_format", "one of combined, json", ("'xml'", "''"))
        self.assert_refused(HTTP, "request_id", "true or false", ("1",))
        place = "6: listeners[0]"
        self.assert_mistakes(
            HTTP,
            (
                (
                    "line_limits = 1",
                    f"{place}.line_limits: unknown key; did you mean line_limit?",
                ),
                ("routes = 1", f"{place}.routes: expected a list, not 1"),
                ("routes = [1]", f"{place}.routes[0]: expected a table, not 1"),
            ),
        )

    def test_hosts(self):
        self.assert_refused(
            HTTP + ROUTE + "status = 404\n",
            "host",
            "a host without a port, or *. and a name",
            map(
                repr,
                (
                    *("*", "*.", "a.*", "*a", "a.*.b", "*.*.a", "a:80", "a/b", "http://a", "a b"),
                    *("a.", ".a", "::1", "[::1]:80", "*.10.0.0.1", "*.[::1]", "1.2", "unix:/a"),
                    "b\xfccher.example",
                ),
            ),
        )

    def test_paths(self):
        for key, before in (("path", "status = 404\n"), ("replace_path", "cluster = 'web'\n")):
            self.assert_refused(
                HTTP + ROUTE + before,
                key,
                "a path such as /v1, in its normal form and without a query",
                map(
                    repr,
                    (
                        *("", "v1", "*", "/a?b", "/a#b", "/a b", "/a/../b", "/a/.", "/..", "/%41"),
                        *("/%2f", "/%zz", "/\xe9"),
                    ),
                ),
            )

    def test_redirects(self):
        self.assert_refused(
            HTTP + ROUTE,
            "redirect",
            "a URL such as https://{host}{uri}, or a path, with no more than {scheme}, {host} and"
            " {uri} in braces",
            map(
                repr,
                (
                    *("a", "ftp://a", "//a", "/\xe9", "https://", "https:///a", "/a b"),
                    *("{uri}", "/{uri}", "https://{uri}", "https://{host}/{x}", "{host}{uri}"),
                    *("https://{host}{uri", "https://{host}/}", "https://{}"),
                ),
            ),
        )

        # To a browser that is "//a".
        (line,) = self.mistakes(HTTP + ROUTE + "redirect = '/\\a'")
        self.assertIn("7: listeners[0].routes[0].redirect: expected a URL", line)

    def test_methods(self):
        before = HTTP + ROUTE + "status = 404\n"
        place = "8: listeners[0].routes[0].methods"
        said = "expected a method in capitals, not"
        self.assert_mistakes(
            before,
            (
                ("methods = 'GET'", f"{place}: expected a list, not 'GET'"),
                ("methods = [1]", f"{place}[0]: expected a string, not 1"),
                (
                    "methods = ['GET', 'get', '', 'A B', '\xc4']",
                    *(
                        f"{place}[{index}]: {said} {text!r}"
                        for index, text in enumerate(("get", "", "A B", "\xc4"), 1)
                    ),
                ),
            ),
        )

    def test_numbers(self):
        status = "a whole number from 200 to 599"
        self.assert_refused(HTTP + ROUTE, "status", status, ("0", "100", "199", "600", "'404'"))
        self.assert_refused(
            HTTP + ROUTE + "cluster = 'web'\n",
            "body_limit",
            "a whole number, 0 or more",
            ("-1", "'1'"),
        )

    def test_clusters(self):
        place = "7: listeners[0].routes[0].cluster: there is no cluster"
        self.assert_mistakes(
            HTTP + ROUTE,
            (
                ("cluster = 'wbe'", f"{place} 'wbe'; did you mean 'web'?"),
                ("cluster = ''", f"{place} ''"),
            ),
        )

    def test_one_thing_to_do(self):
        message = "6: listeners[0].routes[0]: expected one of cluster, redirect and status"
        self.assert_mistakes(
            HTTP + ROUTE,
            (
                (text, message)
                for text in (
                    *("", "path = '/'", "cluster = 'web'\nredirect = '/a'"),
                    *("cluster = 'web'\nstatus = 200", "text = 'a'"),
                    "cluster = 'web'\nredirect = '/a'\nstatus = 302",
                )
            ),
        )

    def test_keys_that_have_nothing_to_do(self):
        place = "8: listeners[0].routes[0]"
        for key, value, kind, needed in (
            ("text", "'a'", "cluster = 'web'", "status"),
            ("text", "'a'", "redirect = '/a'", "status"),
            ("replace_path", "'/a'", "status = 404", "cluster or redirect"),
            ("request_fields", "{ remove = ['A'] }", "status = 404", "cluster"),
            ("request_fields", "{ set = { A = 'b' } }", "redirect = '/a'", "cluster"),
            ("body_limit", "0", "redirect = '/a'", "cluster"),
            ("body_limit", "0", "status = 404", "cluster"),
        ):
            text = f"{HTTP}{ROUTE}{kind}\n{key} = {value}"
            expected = f"{place}.{key}: expected only beside {needed}"
            self.assertEqual(self.mistakes(text), [expected], text)

    def test_statuses(self):
        place = "8: listeners[0].routes[0]"
        self.assert_mistakes(
            HTTP + ROUTE,
            (
                (
                    f"redirect = '/a'\nstatus = {status}",
                    f"{place}.status: expected one of 301, 302, 303, 307, 308 for a redirect",
                )
                for status in (200, 300, 304, 404)
            ),
        )
        self.assert_mistakes(
            HTTP + ROUTE,
            (
                (
                    f"status = {status}\ntext = 'a'",
                    f"{place}.text: expected none, for a {status} has no body",
                )
                for status in (204, 304)
            ),
        )

    def test_field_rules(self):
        own = "expected no field that the proxy writes itself:"
        for key in ("request_fields", "response_fields"):
            place = f"8: listeners[0].routes[0].{key}"
            self.assert_mistakes(
                f"{HTTP}{ROUTE}cluster = 'web'\n",
                (
                    (f"{key} = 1", f"{place}: expected a table, not 1"),
                    (
                        f"{key} = {{ remvoe = [] }}",
                        f"{place}.remvoe: unknown key; did you mean remove?",
                    ),
                    (
                        f"{key} = {{ set = {{ A = 1 }} }}",
                        f"{place}.set.A: expected a string, not 1",
                    ),
                    (f"{key} = {{ remove = 'A' }}", f"{place}.remove: expected a list, not 'A'"),
                    (
                        f"{key} = {{ set = {{ Host = 'a', 'b c' = 'd', D = \"\\n\" }} }}",
                        f"{place}.set.Host: {own} Host",
                        f"{place}.set.'b c': expected the name of a field",
                        f"{place}.set.D: expected a value without control characters for D",
                    ),
                    (
                        f"{key} = {{ remove = ['A', 'connection', 'Content-Length', ''] }}",
                        f"{place}.remove[1]: {own} connection",
                        f"{place}.remove[2]: {own} Content-Length",
                        f"{place}.remove[3]: expected the name of a field",
                    ),
                ),
            )

    def test_the_same_twice(self):
        same = "the same host and path as routes[0]"
        method = "the same host, path and a method as routes[0]"
        for first, second, expected in (
            ("", "", same),
            ("host = 'a'", "host = 'A'", same),
            ("path = '/'", "", same),
            ("methods = ['GET']", "methods = ['GET']", method),
            ("methods = ['GET', 'PUT']", "methods = ['HEAD', 'PUT']", method),
        ):
            text = f"{HTTP}{ROUTE}{first}\nstatus = 404\n{ROUTE}{second}\nstatus = 403\n"
            self.assertEqual(self.mistakes(text), [f"9: listeners[0].routes[1]: {expected}"])

    def test_all_of_them(self):
        """Those in several routes, and in what is around them, in the order of the file."""
        text = (
            f"{HTTP}cluster = 'wbe'\nvia = ' '\n{ROUTE}\n{ROUTE}path = 'x'\nhost = '*'\n"
            "status = 200\n"
        )
        lines = self.mistakes(text)
        self.assertEqual([line.partition(":")[0] for line in lines], ["6", "7", "8", "11", "12"])


FIELDS = st.builds(
    FieldRules,
    st.dictionaries(
        st.sampled_from(["X-A", "x-b", "Cookie"]), st.sampled_from(["", "1", "${x}"])
    ).map(lambda fields: tuple(fields.items())),
    st.lists(st.sampled_from(["A", "b"])).map(tuple),
)
PLACES = {
    "host": st.sampled_from(["", "a.example", "*.a.example"]),
    "methods": st.sampled_from([(), ("GET",), ("GET", "PUT")]),
    "response_fields": FIELDS,
}
PATHS = st.text("/abc.%41~", max_size=9).map("/".__add__).filter(is_normal)
ROUTES = st.one_of(
    st.builds(
        HttpRoute,
        st.just("web"),
        replace_path=st.none() | PATHS,
        request_fields=FIELDS,
        body_limit=st.none() | st.integers(0, 10),
        **PLACES,
    ),
    st.builds(
        HttpRoute,
        redirect=st.just("https://{host}{uri}"),
        status=st.sampled_from([0, 301, 308]),
        **PLACES,
    ),
    st.builds(
        HttpRoute,
        status=st.integers(200, 599).filter(lambda n: n not in (204, 304)),
        text=st.text(),
        **PLACES,
    ),
)


class RoundTripTests(HttpCase):
    @settings(deadline=None)
    @given(st.dictionaries(PATHS, ROUTES, max_size=4))
    def test_loads_to_an_equal_one(self, by_path):
        routes = tuple(attrs.evolve(route, path=path) for path, route in by_path.items())
        listener = Listener("l", "tcp:1", "http", "web", settings=HttpSettings(routes=routes))
        made = Config((listener,), (Cluster("web", (Backend(Address("10.0.0.1", 80)),)),))
        self.assertEqual(self.load(config.as_toml(made)), made)
