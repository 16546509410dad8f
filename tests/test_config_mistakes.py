"""Every mistake in a configuration: its place, and what was expected."""

from __future__ import annotations

from proxykit import tables
from tests.test_config import ENDPOINT, LISTENER, WEB, Case


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

    def test_pools_and_hosts(self):
        seconds = "expected a number of seconds above 0, not"
        for more, *expected in (
            ("pool = 1", "3: clusters.web.pool: expected a table, not 1"),
            (
                "[clusters.web.pool]\nresue = 'x'\nmax_idle = -1\nidle_timeout = 0",
                "4: clusters.web.pool.resue: unknown key; did you mean reuse?",
                "5: clusters.web.pool.max_idle: expected a whole number, 0 or more, not -1",
                f"6: clusters.web.pool.idle_timeout: {seconds} 0",
            ),
            *(
                (
                    f"pool.reuse = {value}",
                    f"3: clusters.web.pool.reuse: expected one of never, safe, always, not {value}",
                )
                for value in ("'sometimes'", "''", "true")
            ),
            *(
                (
                    f"host = {value!r}",
                    "3: clusters.web.host: expected a host such as web.internal or"
                    f" web.internal:81, not {value!r}",
                )
                for value in ("", "a b", "a:b", "a:65536", "http://a", "a/b", "::1", "\xe9", 1)
            ),
        ):
            with self.subTest(more):
                self.assertEqual(self.mistakes(f"{WEB}{more}\n{LISTENER}"), expected)

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
                (start, "1: listeners[0].mode: missing", "1: listeners[0].listen: missing"),
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
                    LISTENER + "[admin]\nlisten = 'tcp:8080'\ntoken = '0123456789abcdef'",
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
