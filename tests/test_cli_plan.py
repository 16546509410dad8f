"""``proxykit plan``: what it prints, for people and for programs, and its exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from attrs import evolve

from proxykit import cli
from proxykit.core.capacity import Facts
from proxykit.core.plan import make_plan
from proxykit.model import PortRange
from proxykit.plan_report import MOST_WAYS, WIDEST, Report
from proxykit.tomllines import Lines
from tests.core.plans import cluster, config, facts, listener
from tests.net.test_kernel import this_kernel
from tests.test_cli import ROOT, Case

FILE = """
[sources]
addresses = ["10.0.0.1", "10.0.0.2"]
headroom = 0.02

[clusters.web]
backends = ["10.0.1.1:80", "10.0.1.2:80"]

[[listeners]]
name = "front"
listen = "tcp:9000"
mode = "tcp"
cluster = "web"
"""
#: For this file and a machine of Linux's defaults.
PRINTED = """\
plan.toml: 28,232 source ports (32768-60999), of which 2% are headroom; 100,000
descriptors; tcp_tw_reuse = 0; late binding

front  mode tcp, tcp:9000
  connections at once    2,000  clusters.web.max_connections
    next                10,000  listeners[0].max_connections
    fix                 10,000  clusters.web.max_connections = 5000
  new ones a second      1,844  ports in TIME_WAIT, where the proxy closes
                                first; where backends do, no port rests here
    fix                110,668  net.ipv4.tcp_tw_reuse = 1 (needs TCP timestamps
                                at both ends)
  backends           at once   ports  new/s  from
  10.0.1.1:80 (web)    1,000  55,334    922  10.0.0.1, 10.0.0.2
  10.0.1.2:80 (web)    1,000  55,334    922  10.0.0.1, 10.0.0.2

plan.toml:9: listeners[0].max_connections: hint: 10,000 clients are let in, and 2,000 of them can \
have a backend at once: the others wait up to 5 s in the queue of web, and are refused then
"""


class PlanCase(Case):
    def setUp(self) -> None:
        super().setUp()
        this_kernel(self, "32768 60999")
        # What rich looks at, and a width for what is no terminal.
        environ = mock.patch.dict(os.environ, {"COLUMNS": "80"}, clear=True)
        environ.start()
        self.addCleanup(environ.stop)
        self.machine: dict[str, Any] = {"ports": PortRange(32768, 60999)}
        self.patch(cli, "facts", self.facts)

    def facts(self, config: Any, late: bool) -> Facts:
        return facts(config, late=late, **self.machine)

    def run_plan(self, *argv: str) -> tuple[int, str, str]:
        """The exit status, and what went to standard output and standard error."""
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        return cli.main(("plan", *argv)), out.getvalue(), err.getvalue()

    def as_json(self, text: str, *argv: str) -> Any:
        status, out, err = self.run_plan(self.file(text), "--json", *argv)
        self.assertEqual((status, err), (0, ""))
        return json.loads(out)


class TextTests(PlanCase):
    def test_all(self) -> None:
        path = self.file(FILE)
        status, out, err = self.run_plan(path)
        self.assertEqual((status, err), (0, ""))
        # The name is longer, so that the first lines break elsewhere: within it, if it is long.
        said, _, rest = out.partition("\n\n")
        wanted, _, wanted_rest = PRINTED.partition("\n\n")
        self.assertEqual("".join(said.split()).replace(path, "plan.toml"), "".join(wanted.split()))
        self.assertEqual(rest.replace(path, "plan.toml"), wanted_rest)

    def test_width(self) -> None:
        """No line but a trap's is wider; nor is any wider than people read."""
        for columns in ("60", "80", "300"):
            os.environ["COLUMNS"] = columns
            _, out, _ = self.run_plan(self.file(FILE))
            lines = [line for line in out.splitlines() if ": hint: " not in line]
            self.assertLessEqual(max(map(len, lines)), min(int(columns), WIDEST))
            self.assertEqual(out.count("TIME_WAIT"), 1)
        self.assertEqual([line for line in out.splitlines() if line != line.rstrip()], [])

    def test_plain(self) -> None:
        """No colours but on a terminal."""
        self.assertNotIn("\x1b", self.run_plan(self.file(FILE))[1])
        os.environ["TERM"] = "xterm"

        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        out = Terminal()
        made = config(cluster(), listener())
        Report(make_plan(made, facts(made)), "plan.toml", Lines()).show(out)
        self.assertIn("\x1b[", out.getvalue())

    def show(self, *parts: Any, machine: dict[str, Any] | None = None, **sources: Any) -> str:
        """What is printed of a plan."""
        os.environ["COLUMNS"] = "100"
        made = config(*parts, **sources)
        out = io.StringIO()
        plan = make_plan(made, facts(made, **(machine or {})))
        Report(plan, "plan.toml", Lines()).show(out)
        return out.getvalue()

    def test_words(self) -> None:
        """Of everything that may be said."""
        web = cluster("web", "10.0.1.1:80", "+unix:/a", close="reset")
        first, *others = web.backends
        web = evolve(web, backends=(evolve(first, name="a.example:80"), *others))
        for words, out in (
            ("10.0.1.1:80 (web, a.example:80)", self.show(web, listener())),
            ("unix:/a (web, backup)", self.show(web, listener())),
            ("(web, a.example:80, as for b, c)",
             self.show(web, listener(), listener(name="b"), listener(name="c"))),
            ("new ones a second    no limit  no port rests", self.show(web, listener())),
            ("  1,000      -  no limit", self.show(web, listener())),
            ("clients at once", self.show(web, listener("http"))),
            ("no limit  connections to backends are kept", self.show(web, listener("http"))),
            ("no way to any backend", self.show(cluster(), listener(), machine={"ways": {}})),
            ("0    0.0  no way there", self.show(cluster(), listener(), machine={"ways": {}})),
            ("descriptors", self.show(cluster(), listener(), machine={"descriptors": 64})),
            ("source ports", self.show(cluster(), listener())),
            ("    3.3  ports in TIME_WAIT", self.show(cluster(), listener())),
            ("plain binding", self.show(cluster(), listener(), machine={"late": False})),
            ("0% are headroom", self.show(cluster(), listener())),
            ("2.50% are headroom", self.show(cluster(), listener(), headroom=0.025)),
            ("200 source ports (40000-40199)", self.show(cluster(), listener())),
            ("10 source ports (7-16)",
             self.show(cluster(), listener(), port_range=PortRange(7, 16))),
        ):  # fmt: skip
            with self.subTest(words):
                self.assertIn(words, out)

    def test_no_rest_at_l7(self) -> None:
        """What does not last rests; what lasts does not."""
        lasts = self.show(cluster(), listener("http"))
        self.assertRegex(lasts, r"10.0.1.1:80 \(web\) +200 +200 +no limit")
        not_ = self.show(cluster(proxy_protocol="v2"), listener("http"))
        self.assertRegex(not_, r"10.0.1.1:80 \(web\) +200 +200 +3.3")

    def test_many_backends(self) -> None:
        for count, more in ((MOST_WAYS, ""), (MOST_WAYS + 1, "and 1 more: see --json")):
            backends = [f"10.0.1.{number}:80" for number in range(count)]
            out = self.show(cluster("web", *backends), listener())
            self.assertIn(more, out)
            self.assertEqual("more:" in out, bool(more))
            self.assertEqual(out.count("(web)"), MOST_WAYS)

    def test_hand_over(self) -> None:
        settings = 'listener = "there"'
        text = FILE.replace('mode = "tcp"', 'mode = "sni"') + (
            f'[[listeners.routes]]\nhost = "a.example"\n{settings}\n'
            '[[listeners]]\nname = "there"\nmode = "tcp"\ncluster = "web"\n'
        )
        _, out, _ = self.run_plan(self.file(text))
        self.assertIn("front  mode sni, tcp:9000, hands over to there\n", out)
        self.assertIn("there  mode tcp, takes over from front\n", out)

    def test_order_of_traps(self) -> None:
        """That of the file."""
        sources, clusters = FILE.split("\n\n", 1)
        self.machine["elsewhere"] = ("10.0.0.2",)
        path = self.file(clusters + sources.replace("0.02", "0.5"))
        _, out, _ = self.run_plan(path)
        lines = [line for line in out.splitlines() if ": warning: " in line or ": hint: " in line]
        self.assertEqual(
            [line.split(": ")[:3] for line in lines],
            [
                [f"{path}:4", "listeners[0].max_connections", "hint"],
                [f"{path}:11", "sources.addresses[1]", "warning"],
                [f"{path}:12", "sources.headroom", "hint"],
            ],
        )


class JsonTests(PlanCase):
    def test_shape(self) -> None:
        """As docs/plan.rst has it; names are added, never changed."""
        found = self.as_json(FILE)
        self.assertEqual(
            found["machine"],
            {
                "ports": {"low": 32768, "high": 60999, "reserved": 0, "size": 28232},
                "tcp_tw_reuse": 0,
                "tcp_max_tw_buckets": None,
                "descriptors": 100000,
                "descriptors_for_connections": 99955,
                "late_binding": True,
            },
        )
        self.assertEqual(
            found["sources"],
            {
                "addresses": ["10.0.0.1", "10.0.0.2"],
                "ports": found["machine"]["ports"],
                "headroom": 0.02,
            },
        )
        (hop,) = found["listeners"]
        connections, new = hop.pop("figures").values()
        backends = hop.pop("backends")
        self.assertEqual(
            hop,
            {
                "name": "front",
                "mode": "tcp",
                "listen": "tcp:9000",
                "taken_from": [],
                "hands_to": [],
                "shared": {},
            },
        )
        self.assertEqual(
            connections,
            {
                "value": 2000,
                "limited_by": {
                    "what": "cluster-max-connections",
                    "value": 2000,
                    "keys": ["clusters.web.max_connections"],
                },
                "next": {
                    "what": "listener-max-connections",
                    "value": 10000,
                    "keys": ["listeners[0].max_connections"],
                },
                "fix": {"do": "clusters.web.max_connections = 5000", "then": 10000},
                "note": None,
            },
        )
        self.assertEqual(new["value"], 1844.47)
        self.assertEqual(
            backends[0],
            {
                "cluster": "web",
                "address": "10.0.1.1:80",
                "name": None,
                "backup": False,
                "at_once": 1000,
                "max_connections": 1000,
                "ports": 55334,
                "sources": ["10.0.0.1", "10.0.0.2"],
                "new_per_second": 922.23,
            },
        )
        (trap,) = found["traps"]
        self.assertEqual(
            {**trap, "text": ""},
            {
                "level": "hint",
                "kind": "above-upstream",
                "line": 9,
                "key": "listeners[0].max_connections",
                "text": "",
            },
        )

    def test_no_limit(self) -> None:
        found = self.as_json(
            FILE.replace(
                "headroom = 0.02", '[clusters.b]\nbackends = ["unix:/a"]\nclose = "reset"'
            ).replace('cluster = "web"', 'cluster = "b"')
        )
        (hop,) = found["listeners"]
        figure = hop["figures"]["new_per_second"]
        self.assertEqual(
            [figure[key] for key in ("value", "limited_by", "next", "fix")], [None] * 4
        )
        self.assertEqual(figure["note"], "no port rests here after a connection")
        (backend,) = hop["backends"]
        self.assertEqual(
            (backend["ports"], backend["sources"], backend["new_per_second"]), (None, [], None)
        )

    def test_lifted(self) -> None:
        """A fix after which nothing limits it."""
        text = FILE.replace('mode = "tcp"', 'mode = "http"').replace(
            "[[listeners]]", '[clusters.web.pool]\nreuse = "never"\n[[listeners]]'
        )
        (hop,) = self.as_json(text)["listeners"]
        figure = hop["figures"]["new_per_second"]
        fix = {"do": 'clusters.web.pool.reuse = "safe"', "then": None}
        self.assertEqual((figure["value"], figure["fix"]), (1844.47, fix))
        _, out, _ = self.run_plan(self.file(text))
        self.assertIn('    fix              no limit  clusters.web.pool.reuse = "safe"\n', out)

    def test_stock_reactor(self) -> None:
        found = self.as_json(FILE, "--stock-reactor")
        self.assertFalse(found["machine"]["late_binding"])
        self.assertIn("plain-binding", [trap["kind"] for trap in found["traps"]])


class MistakeTests(PlanCase):
    def test_mistakes(self) -> None:
        """As ``check`` has them."""
        path = self.file(FILE.replace("10.0.1.1:80", "10.0.1.1").replace('"tcp"', '"tpc"'))
        self.assertEqual(self.run_plan(path)[:2], (1, ""))
        _, _, err = self.run_plan(path)
        self.assertEqual(
            [line.split(": ")[0] for line in err.splitlines()], [f"{path}:7", f"{path}:12"]
        )
        self.assertEqual(self.run_plan("/"), (1, "", "/: cannot be read: Is a directory\n"))

    def test_range_on_a_stock_reactor(self) -> None:
        """The service would not start."""
        path = self.file(FILE.replace("headroom", 'port_range = "40000-60999"\nheadroom'))
        wanted = f"{path}:4: sources.port_range: needs the proxykit reactor\n"
        self.assertEqual(self.run_plan(path, "--stock-reactor"), (1, "", wanted))
        self.assertEqual(self.run_plan(path)[0], 0)

    def test_gone(self) -> None:
        """Who removes the file meanwhile has a plan without its lines."""

        def gone(path: Path, **named: str) -> str:
            raise FileNotFoundError

        self.patch(Path, "read_text", gone)
        status, out, err = self.run_plan(self.file(FILE))
        self.assertEqual((status, err), (0, ""))
        self.assertIn(":1: listeners[0].max_connections: hint: ", out)

    def test_environment(self) -> None:
        os.environ["PORT"] = "81"
        self.assertIn(
            "10.0.1.1:81", self.run_plan(self.file(FILE.replace("1.1:80", "1.1:${PORT}")))[1]
        )

    def test_help(self) -> None:
        for argv in (("--help",), ("plan", "--help")):
            out = io.StringIO()
            self.patch(sys, "stdout", out)
            self.assertEqual(cli.main(argv), 0)
            self.assertIn("plan", out.getvalue())
        for flag in ("--json", "--stock-reactor", "FILE"):
            self.assertIn(flag, out.getvalue())


class ProcessTests(Case):
    """The real command on the real machine."""

    def run_process(self, *argv: str, script: str = "", stdin: Any = None) -> Any:
        command = ["-c", script] if script else ["-m", "proxykit"]
        return subprocess.run(
            [sys.executable, *command, "plan", *argv], capture_output=True, cwd=ROOT, stdin=stdin
        )

    def test_examples(self) -> None:
        """Whatever is shown to users can be planned (that of TLS needs certificates)."""
        for path in sorted(Path(ROOT, "examples").glob("*.toml")):
            if path.name == "tls.toml":
                continue
            done = self.run_process(str(path), "--json")
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            for hop in json.loads(done.stdout)["listeners"]:
                values = [figure["value"] for figure in hop["figures"].values()]
                self.assertGreater(values[0], 0)

    def test_pipe(self) -> None:
        """What has been read from a pipe cannot be read again for its lines."""
        text = FILE.replace("10.0.1.", "127.0.0.").replace("10.0.0.", "127.0.0.")
        with (
            open(self.file(text)) as file,
            subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat,
        ):
            done = self.run_process("/dev/stdin", stdin=cat.stdout)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(b"/dev/stdin:1: listeners[0].max_connections: hint: ", done.stdout)

    def test_no_reactor(self) -> None:
        """One that planning installed would be the one that a service must use."""
        script = (
            "import sys; from proxykit.cli import main; status = main(sys.argv[1:]);"
            "sys.exit(status or 'twisted.internet.reactor' in sys.modules)"
        )
        done = self.run_process(str(Path(ROOT, "examples", "http.toml")), script=script)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
