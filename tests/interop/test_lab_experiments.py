"""Each experiment of the lab, for real, as small as it can be and still show what it is to show."""

from __future__ import annotations

import contextlib
import io
import sys

from twisted.trial.unittest import SynchronousTestCase

from proxykit.lab import command, loads
from proxykit.lab.experiments import EXPERIMENTS, forecast, sharing, stateful, time_wait
from proxykit.lab.programs import LabError
from tests.interop import programs
from tests.interop.programs import TWICE

PROGRAMS = ("ip", "nsenter", "setpriv", "ss", "unshare")


class ExperimentTests(SynchronousTestCase):
    timeout = 120
    skip = TWICE

    def run_lab(self, name, scale):
        """Its result, and of each table the rows as dictionaries."""
        for each in PROGRAMS:
            programs.require(each)
        self.patch(sys, "stderr", io.StringIO())
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = command.run_one(EXPERIMENTS[name], scale)
        except LabError as error:
            if "no network namespaces" in str(error):
                raise programs.missing(str(error)) from None
            raise
        for plot in result.plots:
            self.assertTrue(any(series.points for series in plot.series), plot.title)
        return result, [
            [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for table in result.tables
        ]

    def column(self, rows, name):
        return [row[name] for row in rows]

    def test_ways_round(self):
        _, (rows,) = self.run_lab("ways-round", 0.04)
        self.assertEqual(self.column(rows, "clients served"), [20, 40, 40, 40, 40, 160, 160])
        self.assertEqual(self.column(rows, "backend connections"), [20, 40, 40, 40, 40, 160, 20])
        for row in rows[:-1]:
            self.assertGreater(row["clients that came"], row["clients served"])

    def test_bind_trap(self):
        result, (rows,) = self.run_lab("bind-trap", 0.05)
        self.assertEqual(self.column(rows, "in all"), [100, 50, 100, 50, 100])
        self.assertEqual(self.column(rows, "to the first"), [50, 25, 50, 25, 50])
        why = self.column(rows, "why no more")
        self.assertEqual(
            why[:3],
            [
                "EADDRNOTAVAIL: Cannot assign requested address",
                "EADDRINUSE: Address already in use",
                "EADDRNOTAVAIL: Cannot assign requested address",
            ],
        )
        self.assertEqual(why[3], "no source port is left from 10.0.0.1")
        self.assertRegex(why[4], r"^no source port is left from 10\.0\.0\.1 to 10\.1\.0\.[12]:80$")
        self.assertIn("a plain bind gave 50 connections in all, late binding 100", result.answer)

    def test_sharing(self):
        """The wrong relay is wrong, unless there is one client; the right ones never are."""
        self.patch(sharing, "TRAFFIC", sharing.TRAFFIC[:2])
        self.patch(sharing, "QUESTIONS", 4)
        result, (rows,) = self.run_lab("sharing", 0.1)
        self.assertEqual(self.column(rows, "right, %: one client"), [100] * 4)
        last, turn, l4, l7 = self.column(rows, "right, %: 10 clients")
        self.assertLess(last, 50)
        self.assertLess(turn, 100)
        self.assertEqual((l4, l7), (100, 100))
        self.assertGreater(rows[0]["somebody else's answer"], 0)
        self.assertEqual(self.column(rows, "backend connections"), [1, 1, 10, 1])
        self.assertRegex(result.answer, r"who asked for /\w+/\d was told /\w+/\d\.")

    def test_time_wait(self):
        """Twenty ports are gone after two seconds, where the proxy is the first to close."""
        self.patch(time_wait, "QUICK_SECONDS", 4)
        _, (rows,) = self.run_lab("time-wait", 0.02)
        first, *others = rows
        self.assertEqual((first["served"], first["refused"]), (20, 20))
        self.assertEqual(first["ports in TIME_WAIT at most"], 20)
        self.assertEqual(first["closed first by the proxy"], 20)
        self.assertTrue(1.5 < first["first refused after, s"] < 3.5, first)
        self.assertEqual(self.column(others[:2], "served"), [40, 40])
        self.assertEqual(self.column(others[:2], "ports in TIME_WAIT at most"), [0, 0])
        self.assertEqual(others[0]["closed first by the backend"], 40)
        self.assertEqual(others[1]["closed by a reset"], 40)
        self.assertEqual((others[3]["served"], others[3]["ports in TIME_WAIT at most"]), (40, 0))

    def test_forecast(self):
        """The ports of each load are gone in the end; how well that was foretold is another matter,
        for in a few seconds nothing can be."""
        self.patch(forecast, "QUICK_SECONDS", 6)
        self.patch(loads, "LOADS", loads.LOADS[:1])
        _, (real, simulated, chances) = self.run_lab("forecast", 0.02)
        gone = self.column(real, "ports gone after, s")
        self.assertEqual(len(gone), 4)
        for each in gone:
            self.assertTrue(2 < each < 6.5, gone)
        self.assertEqual((len(simulated), len(chances)), (1, 1))

    def test_stateful(self):
        """At L4 half of the clients lose their connection with their backend; at L7 nobody does."""
        for name, value in (("CLIENTS", 40), ("BEFORE", 40), ("QUICK_FEW", 20), ("IDLE", 1)):
            self.patch(stateful, name, value)
        for name, value in (("QUICK_WATCHED", 4), ("THINKS", 0.4), ("MEANWHILE", 0.2)):
            self.patch(stateful, name, value)
        _, (costs, events, lives) = self.run_lab("stateful", 0.1)
        l4, l7 = self.column(costs, "descriptors of each")
        self.assertEqual(l4, 2)
        # Some of these clients may still be the ones that have its connections made.
        self.assertTrue(1 <= l7 < 2, l7)
        self.assertEqual(costs[0]["source ports of all"], 80)
        lost = "connections lost while idle"
        self.assertEqual(self.column(events, lost), [10, 0, 20, 20])
        self.assertEqual(self.column(events, "next question answered"), [10, 20, 0, 0])
        self.assertEqual(self.column(events, "answered on a new connection"), [20] * 4)
        for life in lives:
            self.assertTrue(0.5 < life["all connections closed after, s"] < 3.5, lives)
