"""proxykit.cli: what the command prints, where, and its exit status."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import proxykit
from proxykit import cli

GOOD = """
[clusters.web]
backends = ["127.0.0.1:80", "[::1]:80"]
[[listeners]]
listen = "tcp:8080"
mode = "tcp"
cluster = "web"
"""
BAD = """
[clusters.web]
backends = ["127.0.0.1"]
[[listeners]]
listen = "tcp:abc"
mode = "tcp"
"""
ROOT = str(Path(proxykit.__file__).resolve().parent.parent)


class Case(SynchronousTestCase):
    def file(self, text):
        path = Path(self.mktemp()).resolve()
        path.write_text(text, encoding="utf-8")
        return str(path)


class MainTests(Case):
    def run_main(self, *argv):
        """The exit status, and what went to standard output and standard error."""
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        return cli.main(argv), out.getvalue(), err.getvalue()

    def test_ok(self):
        path = self.file(GOOD)
        expected = (0, f"{path}: ok: 1 listener, 1 cluster, 2 backends\n", "")
        self.assertEqual(self.run_main("check", path), expected)

    def test_print(self):
        status, out, err = self.run_main("check", self.file(GOOD), "--print")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(tomllib.loads(out)["clusters"]["web"]["queue"], 1000)
        self.assertEqual(self.run_main("check", self.file(out), "--print"), (0, out, ""))

    def test_print_http(self):
        """Routes, pools and all: what is printed says the same."""
        path = str(Path(ROOT, "examples", "http.toml"))
        self.assertEqual(
            self.run_main("check", path),
            (0, f"{path}: ok: 1 listener, 2 clusters, 2 backends\n", ""),
        )
        status, out, err = self.run_main("check", path, "--print")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(len(tomllib.loads(out)["listeners"][0]["routes"]), 3)
        self.assertEqual(self.run_main("check", self.file(out), "--print"), (0, out, ""))

    def test_environment(self):
        self.patch(os, "environ", {"PORT": "81"})
        text = GOOD.replace("127.0.0.1:80", "127.0.0.1:${PORT}")
        self.assertIn('"127.0.0.1:81"', self.run_main("check", self.file(text), "--print")[1])

    def test_mistakes(self):
        for more in ((), ("--print",)):
            path = self.file(BAD)
            status, out, err = self.run_main("check", path, *more)
            self.assertEqual((status, out), (1, ""))
            first, second = err.splitlines()
            self.assertTrue(first.startswith(f"{path}:3: clusters.web.backends[0]: "), first)
            self.assertTrue(second.startswith(f"{path}:5: listeners[0].listen: "), second)

    def test_a_directory(self):
        expected = (1, "", "/: cannot be read: Is a directory\n")
        self.assertEqual(self.run_main("check", "/"), expected)

    def test_version(self):
        self.assertEqual(self.run_main("--version"), (0, f"proxykit {proxykit.__version__}\n", ""))

    def test_help(self):
        status, out, err = self.run_main("--help")
        self.assertEqual((status, err), (0, ""))
        self.assertIn("proxykit check proxykit.toml --print", out)
        self.assertIn("--print", self.run_main("check", "--help")[1])

    def test_wrong_use(self):
        for argv in ((), ("chekc",), ("check",), ("check", "a", "b")):
            with self.subTest(argv):
                status, out, err = self.run_main(*argv)
                self.assertEqual((status, out), (2, ""))
                self.assertIn("usage: proxykit", err)

    def test_streams_take_every_name(self):
        """A locale without the characters of a file's name makes no traceback."""
        path = self.file(GOOD) + "-\u263a-\udcff"
        os.rename(path[:-4], path)
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        self.patch(sys, "stdout", out)
        self.assertEqual(cli.main(["check", path]), 0)
        self.assertIn("-\u263a-\\udcff: ok".encode(), out.buffer.getvalue())

    def test_module(self):
        self.patch(sys, "argv", ["proxykit", "--version"])
        self.patch(sys, "stdout", io.StringIO())
        end = self.assertRaises(SystemExit, runpy.run_module, "proxykit", run_name="__main__")
        self.assertEqual(end.code, 0)


class BrokenPipeTests(Case):
    def test_in_process(self):
        """Standard output is turned to /dev/null, for Python flushes it once more at exit."""
        reading, writing = os.pipe()
        os.close(reading)
        stdout = open(writing, "w")  # noqa: SIM115 (closed below, after main has flushed it)
        self.patch(sys, "stdout", stdout)
        self.assertEqual(cli.main(["--version"]), 141)
        stdout.write("more")
        stdout.close()

    def test_process(self):
        for arguments in (["check", self.file(GOOD), "--print"], ["--help"]):
            with self.subTest(arguments):
                process = subprocess.Popen(
                    [sys.executable, "-m", "proxykit", *arguments],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=ROOT,
                    # Unbuffered, argparse itself drops the error that its help meets.
                    env={**os.environ, "PYTHONUNBUFFERED": ""},
                )
                process.stdout.close()
                err = process.stderr.read()
                process.stderr.close()
                self.assertEqual((process.wait(), err), (141, b""))


class ImportTests(Case):
    def test_no_reactor(self):
        """A reactor that checking a file installed would be the one that the service must use."""
        script = (
            "import sys; from proxykit.cli import main; status = main(sys.argv[1:]);"
            "sys.exit(status or 'twisted.internet.reactor' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "check", self.file(GOOD)],
            capture_output=True,
            cwd=ROOT,
        )
        self.assertEqual((done.returncode, done.stderr), (0, b""))
