"""proxykit.lab.command: what the command does around an experiment."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from proxykit import cli
from proxykit.lab import command, plot
from proxykit.lab.experiment import Experiment
from proxykit.lab.experiments import EXPERIMENTS
from proxykit.lab.programs import LabError
from proxykit.lab.report import Plot, Result, Table

RESULT = Result(
    "An answer.", [Table("A table", ("a", "b"), [(1, 2)])], [Plot.bars("p", "b", [("a", 1)])]
)


class FakeBench:
    """One that makes nothing."""

    closed = 0

    def __init__(self, ports, scale, tell):
        self.ports = round(ports * scale)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        FakeBench.closed += 1


class CommandTests(SynchronousTestCase):
    def setUp(self):
        FakeBench.closed = 0
        self.ran = []
        self.patch(command, "Bench", FakeBench)
        self.experiments(one=self.found, two=self.found)

    def experiments(self, **functions):
        made = {
            name: Experiment(name, f"What is {name}?", 5, function)
            for name, function in functions.items()
        }
        self.patch(command, "EXPERIMENTS", made)

    def found(self, bench, progress):
        self.ran.append(bench.ports)
        return RESULT

    def run_lab(self, *argv):
        """The exit status, and what went to standard output and standard error."""
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        return cli.main(("lab", *argv)), out.getvalue(), err.getvalue()

    def test_list(self):
        status, out, err = self.run_lab()
        self.assertEqual((status, err, self.ran), (0, "", []))
        self.assertEqual(
            out,
            "one  What is one? (5 s)\n"
            "two  What is two? (5 s)\n"
            "all  all of them, one after the other\n",
        )

    def test_unknown(self):
        status, out, err = self.run_lab("three")
        self.assertEqual((status, out), (2, ""))
        self.assertEqual(
            err, "proxykit lab: there is no experiment 'three'; there are one, two, all\n"
        )

    def test_one(self):
        status, out, err = self.run_lab("one")
        self.assertEqual((status, err, self.ran, FakeBench.closed), (0, "", [1000], 1))
        self.assertTrue(out.startswith("one: What is one?\n\nAn answer.\n\nA table\n"), out)
        self.assertIn("(source ports 1,000, Linux ", out)

    def test_all(self):
        status, out, _ = self.run_lab("all")
        self.assertEqual((status, FakeBench.closed), (0, 2))
        self.assertIn("\n\n\ntwo: What is two?\n", out)

    def test_quick(self):
        self.run_lab("one", "--quick")
        self.assertEqual(self.ran, [100])

    def test_json(self):
        _, out, _ = self.run_lab("all", "--json")
        self.assertEqual([each["name"] for each in json.loads(out)], ["one", "two"])

    def test_cannot(self):
        """One line, and an exit status."""

        def cannot(bench, progress):
            raise LabError("there is no program 'ip' here: install iproute2")

        self.experiments(one=cannot)
        status, out, err = self.run_lab("one")
        self.assertEqual((status, out, FakeBench.closed), (1, "", 1))
        self.assertEqual(err, "proxykit lab: there is no program 'ip' here: install iproute2\n")

    def test_too_long(self):
        def sleeps(bench, progress):
            time.sleep(60)

        self.patch(Experiment, "limit", 0.05)
        self.experiments(one=sleeps)
        status, _, err = self.run_lab("one")
        self.assertEqual((status, FakeBench.closed), (1, 1))
        self.assertIn("given up after 0 s", err)
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))

    def test_signals(self):
        """Whoever ends it, it tidies up first; and later the signals are what they were."""
        for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(which)

            def ends(bench, progress, which=which):
                os.kill(os.getpid(), which)
                time.sleep(60)

            self.experiments(one=ends)
            FakeBench.closed = 0
            status, out, err = self.run_lab("one")
            self.assertEqual((status, out, FakeBench.closed), (128 + which, "", 1))
            self.assertEqual(err, "proxykit lab: interrupted; nothing is left behind\n")
            self.assertIs(signal.getsignal(which), before)

    def test_plot_of_all(self):
        status, _, err = self.run_lab("all", "--plot", "x.svg")
        self.assertEqual((status, self.ran), (2, []))
        self.assertIn("--plot is for one experiment", err)

    def test_no_matplotlib(self):
        """It is said before minutes are spent."""

        def missing():
            raise LabError("a plot needs matplotlib")

        self.patch(plot, "check", missing)
        for option in ("--plot", "--docs"):
            status, _, err = self.run_lab("one", option, self.mktemp())
            self.assertEqual((status, self.ran), (1, []))
            self.assertEqual(err, "proxykit lab: a plot needs matplotlib\n")

    def test_plot_cannot_be_written(self):
        self.patch(plot, "check", lambda: None)
        path = os.path.join(self.mktemp(), "x.svg")
        status, _, err = self.run_lab("one", "--plot", path)
        self.assertEqual((status, self.ran), (1, []))
        self.assertEqual(err, f"proxykit lab: {path}: No such file or directory\n")

    def test_plot_of_nothing(self):
        """An experiment that has failed leaves no file; what was there before stays."""

        def fails(bench, progress):
            raise LabError("no")

        self.patch(plot, "check", lambda: None)
        self.experiments(one=fails)
        path = Path(self.mktemp())
        self.assertEqual(self.run_lab("one", "--plot", str(path))[0], 1)
        self.assertFalse(path.exists())
        path.write_text("old")
        self.assertEqual(self.run_lab("one", "--plot", str(path))[0], 1)
        self.assertEqual(path.read_text(), "old")

    def drawn(self):
        """Plots are not drawn, but noted."""
        drawn = []
        self.patch(plot, "check", lambda: None)
        self.patch(plot, "draw", lambda result, path: drawn.append((result.name, path.name)))
        return drawn

    def test_plot(self):
        drawn = self.drawn()
        status, _, _ = self.run_lab("one", "--plot", "one.svg")
        self.assertEqual((status, drawn), (0, [("one", "one.svg")]))

    def test_docs(self):
        """For each experiment a text, a picture where there is one, and all figures."""
        drawn = self.drawn()
        self.experiments(one=self.found, two=lambda *_: replace(RESULT, plots=()))
        directory = Path(self.mktemp(), "deep")
        status, _, _ = self.run_lab("all", "--docs", str(directory))
        self.assertEqual((status, drawn), (0, [("one", "one.svg")]))
        self.assertIn(".. figure:: one.svg", (directory / "one.rst").read_text())
        self.assertNotIn("figure", (directory / "two.rst").read_text())
        (read,) = json.loads((directory / "two.json").read_text())
        self.assertEqual(read["answer"], "An answer.")


class ExperimentsTests(SynchronousTestCase):
    def test_all_of_them(self):
        self.assertEqual(
            [*EXPERIMENTS],
            [
                "limit",
                "ways-round",
                "bind-trap",
                "sharing",
                "time-wait",
                "forecast",
                "stateful",
            ],
        )

    def test_descriptions(self):
        for name, each in EXPERIMENTS.items():
            self.assertEqual(each.name, name)
            self.assertTrue(each.question.endswith("?"), each.question)
            self.assertGreater(each.limit, 2 * each.seconds)
