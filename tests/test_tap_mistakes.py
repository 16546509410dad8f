"""Every mistake in the options of ``twistd proxykit``: one line that names the flag."""

from __future__ import annotations

import sys

from twisted.python.usage import UsageError

from proxykit.tap import Options
from tests.test_tap import FILE, HTTP, TCP, TapTestCase


class MistakeTests(TapTestCase):
    """Every one is a line, and status 1."""

    def one_line(self, *arguments: str) -> str:
        text = self.refused(*arguments)
        self.assertEqual(text.count("\n"), 1, text)
        self.assertTrue(text.startswith("proxykit: ") and text.endswith("\n"), text)
        return text.removeprefix("proxykit: ").rstrip("\n")

    def test_flags(self) -> None:
        hint = " (twistd proxykit --help says what there is)"
        for arguments, expected in (
            ([], "give --config FILE or one of http, sni, tcp, demo" + hint),
            (["--nonsense"], "option --nonsense not recognized" + hint),
            (["nonsense"], "Unknown command: nonsense" + hint),
            (["--config"], "option --config requires argument" + hint),
            (["tcp", "--nonsense"], "option --nonsense not recognized" + hint),
            (["tcp", "--backend"], "option --backend requires argument" + hint),
            (["tcp", "--route", "a=127.0.0.1:1"], "option --route not recognized" + hint),
            ([*TCP, "more"], "Wrong number of arguments." + hint),
            (["demo", "more"], "Wrong number of arguments." + hint),
            (["demo", "--listen", "tcp:1"], "option --listen not recognized" + hint),
            (["--config", "x.toml", *TCP], "give --config or tcp, not both" + hint),
            (["--config", "x.toml", "demo"], "give --config or demo, not both" + hint),
        ):
            self.assertEqual(self.one_line(*arguments), expected)

    def test_values(self) -> None:
        backend = ("--backend", "127.0.0.1:9001")
        for arguments, expected in (
            (["tcp", *backend], "--listen: missing"),
            (["tcp", "--listen", "nonsense", *backend], "--listen: expected a Twisted server"),
            (["tcp", "--listen", "tcp:99999", *backend], "--listen: expected a Twisted server"),
            (["tcp", "--listen", "tcp:0"], "--backend: "),
            (["tcp", "--listen", "tcp:0", "--balance", "round-robin"], "--backend: "),
            ([*TCP, "-b", "x"], "--backend x: expected host:port"),
            ([*TCP, "-b", "::1:80"], "--backend ::1:80: expected brackets"),
            ([*TCP, "-b", "unix:x"], "--backend unix:x: expected unix:/path"),
            ([*TCP, *backend], "--backend 127.0.0.1:9001: the same address as "),
            ([*TCP, "-b", "no.invalid:80"], "--backend no.invalid:80: the name 'no.invalid' does"),
            ([*TCP, "--balance", "fair"], "--balance: expected one of least-connections, "),
            ([*TCP, "--admin", "nonsense"], "--admin: expected a Twisted server endpoint"),
            ([*TCP, "--idle-timeout", "0"], "--idle-timeout: expected a number of seconds above 0"),
            ([*TCP, "--idle-timeout", "-1"], "--idle-timeout: expected a number of seconds above"),
            ([*TCP, "--idle-timeout", "x"], "--idle-timeout: expected a number of seconds above"),
            ([*TCP, "--idle-timeout", "nan"], "--idle-timeout: expected a number of seconds"),
            ([*TCP, "--idle-timeout", ""], "--idle-timeout: expected a number of seconds above 0"),
            ([*TCP, "--keepalive", "maybe"], "--keepalive: expected true or false"),
        ):
            self.assertIn(expected, self.one_line(*arguments))

    def test_routes(self) -> None:
        for route in ("", "a", "a=", "=127.0.0.1:1", "/v1=127.0.0.1:1", "127.0.0.1:1"):
            self.assertEqual(
                self.one_line(*HTTP, "--route", route),
                f"--route {route}: expected HOST=ADDRESS or HOST/PATH=ADDRESS,ADDRESS,..."
                " (twistd proxykit --help says what there is)",
            )
        one = ("--route", "a.example=127.0.0.1:1")
        for arguments, expected in (
            ([*HTTP], "--backend or --route: mode http needs a cluster or routes"),
            (["http", *one], "--listen: missing"),
            ([*HTTP, "--balance", "round-robin"], "--backend: expected at least one backend"),
            ([*HTTP, *one, "--route", "b=x"], "--route b=x: expected host:port"),
            ([*HTTP, "-b", "x", *one], "--backend x: expected host:port"),
            ([*HTTP, "--route", "a=1.2.3.4:5,"], "--route a=1.2.3.4:5,: expected host:port"),
            (
                [*HTTP, "--route", "a=1.2.3.4:5,1.2.3.4:5"],
                "--route a=1.2.3.4:5,1.2.3.4:5: the same address as backends[0]: 1.2.3.4:5",
            ),
            ([*HTTP, "--route", "a:80=1.2.3.4:5"], "--route a:80=1.2.3.4:5: expected a host"),
            ([*HTTP, "--route", "a.*=1.2.3.4:5"], "--route a.*=1.2.3.4:5: expected a host"),
            ([*HTTP, "--route", "a/../b=1.2.3.4:5"], "--route a/../b=1.2.3.4:5: expected a path"),
            ([*HTTP, "--route", "a/b c=1.2.3.4:5"], "--route a/b c=1.2.3.4:5: expected a path"),
            (
                [*HTTP, *one, "--route", "a.example/=127.0.0.1:2"],
                "--route a.example/=127.0.0.1:2: the same host and path as routes[0]",
            ),
            (
                [*HTTP, *one, "-b", "127.0.0.1:1", "--balance", "fair"],
                "--balance: expected one of ",
            ),
            ([*HTTP, *one, "--trust", "::1", "--trust", "x"], "--trust x: expected a network"),
            ([*HTTP, *one, "--access-log-format", "x"], "--access-log-format: expected one of"),
            ([*HTTP, *one, "--via", "a b"], "--via: expected one word"),
        ):
            self.assertIn(expected, self.one_line(*arguments))

    def test_the_same_endpoint_twice(self) -> None:
        here = "tcp:9000:interface=127.0.0.1"
        line = self.one_line("tcp", "--listen", here, "--admin", here, "--backend", "127.0.0.1:1")
        self.assertIn("the same endpoint as ", line)

    def test_several_mistakes_are_several_lines(self) -> None:
        text = self.refused("tcp", "--backend", "x", "--balance", "y")
        self.assertEqual(text.count("\n"), 3)
        self.assertEqual(text.count("proxykit: --"), 3)

    def test_files(self) -> None:
        for text, expected in (
            ("", ":1: listeners: missing"),
            ("[", ":1: not TOML: "),
            (FILE.replace('mode = "tcp"', 'mode = "tpc"'), ":5: listeners[0].mode: expected one"),
            (FILE.replace('cluster = "web"\n', ""), "mode tcp needs a cluster"),
            (FILE + "idle_timeout = -1\n", ":7: listeners[0].idle_timeout: expected a number"),
        ):
            self.assertIn(expected, self.one_line("--config", self.file(text)))

    def test_a_file_that_is_none(self) -> None:
        for path, why in (
            ("/nonexistent/proxykit.toml", "No such file or directory"),
            (".", "Is a directory"),
        ):
            line = self.one_line("--config", path)
            self.assertEqual(line, f"{path}: cannot be read: {why}")

    def test_nowhere_to_say_it(self) -> None:
        self.patch(sys, "__stderr__", None)
        with self.assertRaises(SystemExit) as caught:
            self.parse("--nonsense")
        self.assertEqual(caught.exception.code, 1)
        self.patch(sys, "__stdout__", None)
        with self.assertRaises(SystemExit) as caught:
            self.parse("--version")
        self.assertEqual(caught.exception.code, 0)

    def test_both_ways_at_once_is_a_usage_error_for_callers(self) -> None:
        options = Options()
        options["config"] = "x"
        options.subCommand = "tcp"
        with self.assertRaises(UsageError):
            options.postOptions()
