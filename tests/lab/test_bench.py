"""proxykit.lab.bench and proxykit.lab.programs, as far as they go without namespaces."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from proxykit.lab import bench, programs
from proxykit.lab.bench import Bench, Clients, Socket, Sockets
from proxykit.lab.programs import LabError, Program

PRINTED = """\
ESTAB     0 0    10.0.0.1:40000   10.1.0.1:80
ESTAB     0 0    10.0.0.2:40000   10.1.0.1:80
TIME-WAIT 0 0    10.0.0.1:40001   10.1.0.2:80   extra
LISTEN    0 4096  0.0.0.0:40002    0.0.0.0:*
ESTAB     0 0    [fd00::1]:40000  [fd00::1:1]:80
"""
#: Says what it was told, and something on the other stream.
ECHO = """
import json, sys
sys.stderr.write("a word\\n")
for line in sys.stdin:
    said = json.loads(line)
    if said.get("do") == "end":
        sys.exit("this is why")
    for at in range(said.get("times", 0)):
        sys.stdout.write(json.dumps({"at": {"done": at}}) + "\\n")
    sys.stdout.write(json.dumps({"done": said}) + "\\n")
    sys.stdout.flush()
"""


class SocketsTests(SynchronousTestCase):
    def test_parse(self):
        found = Sockets.parse(PRINTED)
        self.assertEqual(found[0], Socket("ESTAB", "10.0.0.1", 40000, "10.1.0.1:80"))
        self.assertEqual(found[-1], Socket("ESTAB", "fd00::1", 40000, "[fd00::1:1]:80"))
        self.assertEqual(found.states, {"ESTAB": 3, "TIME-WAIT": 1})
        self.assertEqual(found.tuples[("10.0.0.2", "10.1.0.1:80")], 1)
        self.assertEqual(found.to("10.1.0.1:80").states, {"ESTAB": 2})
        self.assertEqual(Sockets.parse(""), ())


class Case(SynchronousTestCase):
    def start(self, code=ECHO, **named):
        log = Path(self.mktemp())
        program = Program("echo", [sys.executable, "-c", code], log, **named)
        self.addCleanup(program.kill)
        return program


class ProgramTests(Case):
    def test_talks(self):
        program = self.start()
        program.tell({"a": 1})
        self.assertEqual(program.hear(), {"done": {"a": 1}})
        self.assertFalse(program.speaks())
        program.tell({"b": 2})
        program.until(program.speaks, "speaking")
        self.assertEqual(program.hear(0), {"done": {"b": 2}})
        self.assertEqual(program.log, "a word\n")

    def test_ends(self):
        """Whoever talks to it hears why."""
        program = self.start()
        program.tell({"do": "end"})
        error = self.assertRaises(LabError, program.hear)
        self.assertEqual(str(error), "echo has ended (1): a word | this is why")
        program.process.wait()
        for talk in (
            lambda: program.tell({"x": "x" * 100_000}),
            lambda: program.until(lambda: False, "up"),
        ):
            self.assertIn("echo has ended (1)", str(self.assertRaises(LabError, talk)))

    def test_says_nothing(self):
        program = self.start()
        error = self.assertRaises(LabError, program.hear, 0.01)
        self.assertEqual(str(error), "echo has said nothing for 0 s")
        error = self.assertRaises(LabError, program.until, lambda: False, "up", 0.01)
        self.assertEqual(str(error), "echo: not up after 0 s")

    def test_stop(self):
        program = self.start()
        program.tell({})
        program.hear()
        program.stop()
        self.assertEqual(program.process.returncode, -15)

    def test_log_alone(self):
        program = self.start("print('hello')", talks=False)
        program.process.wait()
        self.assertEqual(program.log, "hello\n")

    def test_cannot_be_stopped(self):
        self.patch(programs, "PATIENCE", 0.1)
        program = self.start(
            "import signal, sys\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('{}', flush=True)\n"
            "sys.stdin.read()"
        )
        program.hear(30)
        program.stop()
        self.assertEqual(program.process.returncode, -9)

    def test_environment(self):
        """What is started imports this very proxykit."""
        self.patch(os, "environ", {"PYTHONPATH": "/elsewhere"})
        tree = str(Path(programs.__file__).resolve().parents[2])
        self.assertEqual(programs.environment()["PYTHONPATH"], f"{tree}{os.pathsep}/elsewhere")

    def test_within(self):
        """It ends with this process; without it, it does not begin."""
        *start, parent = programs.within(())
        self.assertEqual(parent, str(os.getpid()))
        self.assertEqual(programs.run([*start, parent, "echo", "hello"]), "hello\n")
        error = self.assertRaises(LabError, programs.run, [*start, "1", "echo", "hello"])
        self.assertEqual(str(error), "setpriv: exit status 1")

    def test_run(self):
        self.assertEqual(programs.run(["cat"], "text"), "text")
        error = self.assertRaises(
            LabError, programs.run, ["/bin/sh", "-c", "echo a; echo b >&2; false"]
        )
        self.assertEqual(str(error), "sh: b")
        self.patch(programs, "PATIENCE", 0.1)
        error = self.assertRaises(LabError, programs.run, ["sleep", "60"])
        self.assertEqual(str(error), "sleep 60: no end after 0 s")

    def test_missing(self):
        for name, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
            self.patch(programs.shutil, "which", lambda name, path: None)
            error = self.assertRaises(LabError, programs.require, name)
            expected = f"there is no program {name!r} here: install {package}"
            self.assertEqual(str(error), expected)


class ClientsTests(Case):
    def clients(self):
        self.at = []
        return Clients(self.start(), self.at.append)

    def test_does(self):
        """One address or several; progress is passed on."""
        clients = self.clients()
        self.assertEqual(clients.leave(3), {"do": "leave", "count": 3})
        told = clients.open(5, to="10.1.0.1:80", times=2)
        self.assertEqual(told, {"do": "open", "count": 5, "to": ["10.1.0.1:80"], "times": 2})
        self.assertEqual(self.at, [{"done": 0}, {"done": 1}])
        self.assertEqual(clients.ask(to=["a", "b"])["to"], ["a", "b"])
        self.assertEqual(clients.look(), {"do": "look"})

    def test_watch(self):
        """It looks until all are done, and once at least."""
        seconds = []
        several = [self.clients(), self.clients()]
        for number, clients in enumerate(several):
            clients.begin("churn", number=number, times=3)
        self.assertIsNone(self.clients().poll())
        told = Bench().watch(several, 0.001, seconds.append)
        self.assertEqual([each["number"] for each in told], [0, 1])
        self.assertGreater(len(seconds), 0)
        self.assertEqual(seconds, sorted(seconds))


class BenchTests(SynchronousTestCase):
    def test_closed(self):
        self.assertRaises(RuntimeError, lambda: Bench().network)

    def test_scaled(self):
        """The number of ports is even."""
        for ports, scale, expected in (
            (1000, 1, 1000),
            (1000, 0.1, 100),
            (500, 0.05, 24),
            (1, 1, 2),
        ):
            self.assertEqual(Bench(ports, scale).ports, expected)
        self.assertEqual([Bench(1, 0.1).scaled(each) for each in (1, 9500)], [1, 950])

    def test_needs(self):
        made = Bench()
        made.descriptors = 1000
        made.needs(1000)
        error = self.assertRaises(LabError, made.needs, 1001)
        self.assertIn("needs 1,301 descriptors in one process, and there are 1,300", str(error))

    def test_until(self):
        self.patch(bench, "LOOK", 0.001)
        answers = [False, True]
        Bench().until(lambda: answers.pop(0), "so")
        error = self.assertRaises(LabError, Bench().until, lambda: False, "so", 0.01)
        self.assertEqual(str(error), "not so within 0 s")
