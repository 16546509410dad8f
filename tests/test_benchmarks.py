"""Tests for the parts of benchmarks/ that only reckon. Nothing is measured here."""

import contextlib
import io
import json
import socket
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import __main__ as command
from benchmarks import loads, measure, report
from benchmarks.measure import RefusedError, Sample, Spread
from benchmarks.row import QUICK, Peer, Row, Scale
from benchmarks.rows import NAMES, ROWS

WRK = """\
Running 3s test @ http://127.0.0.1:10000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.97ms  200.00us   8.01ms   90.00%
    Req/Sec    65.37k     2.12k   69.00k    70.00%
  195012 requests in 3.00s, 29.01MB read
Requests/sec:  65004.00
Transfer/sec:      9.67MB
"""


def row(**how):
    """A row that nothing runs."""
    peers = {name: Peer(name, lambda site: []) for name in ("proxykit", "haproxy")}
    return Row("work", "some work", "request", 1.25, lambda peer, scale: iter(()), peers, **how)


def samples(**costs):
    """Samples of one variant, by peer; None stands for a refused run."""
    return {
        ("", peer): [None if cost is None else Sample(cost, 1e6 / cost) for cost in column]
        for peer, column in costs.items()
    }


class WrkTests(SynchronousTestCase):
    def test_done(self):
        self.assertEqual(loads.parse_wrk(WRK), loads.Work(195012, 3.0))

    def test_units_of_time(self):
        for said, seconds in (("900.00ms", 0.9), ("1.50m", 90.0), ("2.0h", 7200.0)):
            with self.subTest(said=said):
                work = loads.parse_wrk(WRK.replace("3.00s", said))
                self.assertAlmostEqual(work.seconds, seconds)

    def test_errors_are_refused(self):
        for line in (
            "  Socket errors: connect 0, read 0, write 0, timeout 3",
            "  Non-2xx or 3xx responses: 17",
        ):
            with self.subTest(line=line):
                error = self.assertRaises(RefusedError, loads.parse_wrk, WRK + line + "\n")
                self.assertEqual(str(error), line.strip())

    def test_answers_without_their_bodies_are_refused(self):
        read = 29.01 * 1024 * 1024 / 195012
        self.assertEqual(loads.parse_wrk(WRK, int(read)).units, 195012)
        error = self.assertRaises(RefusedError, loads.parse_wrk, WRK, int(read * 1.02))
        self.assertIn("195012 answers of 159 bytes", str(error))

    def test_units_of_bytes(self):
        for said, size in (("999.00B", 999), ("1.50KB", 1536), ("2.00GB", 2 << 30)):
            with self.subTest(said=said):
                text = WRK.replace("29.01MB", said).replace("195012", "1")
                self.assertEqual(loads.parse_wrk(text, size).units, 1)
                self.assertRaises(RefusedError, loads.parse_wrk, text, size * 2)

    def test_command_line(self):
        ask = loads.Ask("/a", ("Accept: */*", "Cookie: a=b"), "post.lua")
        argv = ask.argv(8080, 3)
        self.assertEqual(
            argv[1:8], ["-t1", "-c64", "-d3s", "-H", "Accept: */*", "-H", "Cookie: a=b"]
        )
        self.assertEqual((argv[8], argv[-1]), ("-s", "http://127.0.0.1:8080/a"))
        self.assertEqual(loads.SMALL.argv(1, 2)[4:], ["http://127.0.0.1:1/"])

    def test_nothing_done_is_refused(self):
        for text in ("", "unable to connect\n", WRK.replace("195012", "0")):
            with self.subTest(text=text):
                self.assertRaises(RefusedError, loads.parse_wrk, text)


class ProcTests(SynchronousTestCase):
    def test_schedstat(self):
        self.assertEqual(measure.parse_schedstat("123456789 57606 1\n"), 123456789)

    def test_stat_with_a_strange_name(self):
        text = "7 (a) S (b c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 100 0\n"
        self.assertEqual(measure.parse_stat(text), 300 * measure.TICK)

    def test_rss(self):
        text = "5581-7ffe ---p 00000000 00:00 0   [rollup]\nRss:       4096 kB\nPss:   12 kB\n"
        self.assertEqual(measure.parse_rss(text), 4096 * 1024)
        self.assertRaises(ValueError, measure.parse_rss, "Pss: 12 kB\n")

    def test_busy(self):
        before = "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1 1\n"
        after = "cpu  110 0 120 860 10 0 0 0 0 0\ncpu0 1 1 1 1\n"
        self.assertAlmostEqual(measure.parse_busy(before, after), 0.3)
        self.assertEqual(measure.parse_busy(before, before), 0.0)

    def test_sockets(self):
        text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n"
        for number, (local, remote, state) in enumerate(
            (
                ("0100007F:1F90", "00000000:0000", "0A"),  # the server listens
                ("0100007F:8001", "0100007F:1F90", "01"),  # a connection, its client's side
                ("0100007F:1F90", "0100007F:8001", "01"),  # the same, its server's side
                ("0100007F:8002", "0100007F:1F90", "01"),
                ("0100007F:8003", "0100007F:1F90", "06"),  # ended by the client
                ("0100007F:1F90", "0100007F:8004", "06"),  # ended by the server
                ("0100007F:1F90", "0100007F:8005", "06"),
                ("0100007F:8006", "0100007F:1F91", "01"),  # of another server
                ("0100007F:8007", "0100007F:1F91", "06"),
            )
        ):
            text += f"{number:4}: {local} {remote} {state} 00000000:00000000 00:00000000 00000000\n"
        self.assertEqual(measure.parse_sockets(text, 0x1F90), (2, 3))

    def test_this_machines_sockets(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            self.assertEqual(measure.sockets(port)[0], 0)
            with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
                self.assertEqual(measure.sockets(port)[0], 1)

    def test_an_ended_process_is_refused(self):
        for read in (measure.cpu_ns, measure.rss):
            self.assertRaises(RefusedError, read, 2**22 + 1)  # over the kernel's largest pid


class ReckoningTests(SynchronousTestCase):
    def test_spread(self):
        self.assertEqual(Spread.of([3.0, 1.0, 2.0]), Spread(2.0, 1.0, 3.0))
        self.assertEqual(Spread.of([1.0, 2.0]), Spread(1.5, 1.0, 2.0))
        self.assertIsNone(Spread.of([]))

    def test_ratios_are_of_the_same_round(self):
        ours = [Sample(30.0), None, Sample(20.0), Sample(5.0)]
        theirs = [Sample(10.0), Sample(10.0), Sample(40.0), None]
        self.assertEqual(measure.ratios(ours, theirs), [3.0, 0.5])

    def test_each_is_first_in_turn(self):
        orders = [measure.rotated(["a", "b", "c"], number) for number in range(4)]
        self.assertEqual(["".join(each) for each in orders], ["abc", "bca", "cab", "abc"])
        self.assertEqual(measure.rotated([], 3), [])

    def test_what_fits_in_the_descriptors(self):
        self.assertEqual(command.fitting(Scale(), 20_000), Scale())
        small = command.fitting(Scale(), 4096)
        self.assertEqual((small.held, small.memory, small.clients), ((10, 1000), 1848, 1848))

    def test_slow_peers_have_less_time(self):
        slow, fast = (Peer("some", lambda site: [], slow=slow) for slow in (True, False))
        self.assertEqual((slow.scale(Scale()).seconds, fast.scale(Scale()).seconds), (1, 3))
        self.assertEqual(slow.scale(QUICK).seconds, 1)


class LineTests(SynchronousTestCase):
    def test_ratio_to_haproxy(self):
        found = report.lines(row(), samples(proxykit=[12, 13, 30], haproxy=[10, 10, 20]))
        ours, theirs = found
        self.assertEqual((ours.cost, ours.ratio), (Spread(13, 12, 30), Spread(1.3, 1.2, 1.5)))
        self.assertEqual((ours.goal, ours.met), (1.25, False))
        self.assertEqual((theirs.ratio, theirs.goal, theirs.met), (Spread(1, 1, 1), None, None))

    def test_numbers(self):
        for cost, said in ((0.1234, "0.123"), (12.345, "12.3"), (99.96, "100"), (999.7, "1000")):
            with self.subTest(cost=cost):
                (line,) = report.lines(row(), samples(nginx=[cost]))
                self.assertEqual(report.cells(line)[3], f"{said} us/request")

    def test_verdict(self):
        for cost, goal in ((15, "2 met, 1.6 met"), (20, "2 met, 1.6 missed"), (21, "2 missed")):
            with self.subTest(cost=cost):
                made = replace(row(stretch=1.6), goal=2.0)
                ours, _ = report.lines(made, samples(proxykit=[cost], haproxy=[10]))
                self.assertTrue(report.cells(ours)[-1].startswith(goal), report.cells(ours))

    def test_without_haproxy_nothing_is_judged(self):
        (ours,) = report.lines(row(), samples(proxykit=[12]))
        self.assertEqual((ours.ratio, ours.met), (None, None))
        self.assertEqual(report.cells(ours)[-3:], ("-", "83,333/s", "1.25 unknown"))

    def test_absolute_goal(self):
        found = {("", "proxykit"): [Sample(3.5, remains=1.0)], ("", "haproxy"): [Sample(1.0)]}
        ours, _ = report.lines(replace(row(absolute=True, measure="KiB"), goal=4.0), found)
        self.assertTrue(ours.met)
        self.assertEqual(report.cells(ours)[3:6], ("3.5 KiB/request", "3.50", "1.00 KiB stay"))

    def test_sockets(self):
        key = ("9500 clients", "proxykit")
        for count, verdict in ((20, "20 met"), (21, "20 missed")):
            with self.subTest(count=count):
                (ours,) = report.lines(ROWS["clients"], {key: [Sample(count)]})
                cells = report.cells(ours)
                self.assertEqual(cells[3:], (f"{count} sockets", "-", "-", verdict))
                self.assertEqual(report.short(ROWS["clients"], "", Sample(count)), cells[3])

    def test_ratio_to_the_fewest(self):
        for name, variants in (
            ("held", ("10 held", "9500 held")),
            ("backends", ("round-robin, 1", "round-robin, 1000")),
        ):
            with self.subTest(row=name):
                few, many = variants
                found = {(few, "proxykit"): [Sample(10.0)], (many, "proxykit"): [Sample(13.0)]}
                first, last = report.lines(ROWS[name], found)
                self.assertEqual((first.goal, first.met), (None, None))
                self.assertEqual((last.ratio.median, last.met), (1.3, False))

    def test_without_a_goal(self):
        ours, _ = report.lines(replace(row(), goal=None), samples(proxykit=[12], haproxy=[10]))
        self.assertEqual((ours.ratio.median, ours.met), (1.2, None))
        self.assertEqual(report.cells(ours)[-1], "-")

    def test_refused_runs(self):
        ours, _ = report.lines(row(), samples(proxykit=[None, 12], haproxy=[10, 10]))
        self.assertEqual(ours.ratio, Spread(1.2, 1.2, 1.2))
        (theirs,) = report.lines(row(), samples(proxykit=[None, None], haproxy=[10, 10]))
        self.assertEqual(theirs.peer, "haproxy")


class ReportTests(SynchronousTestCase):
    def report(self):
        found = report.lines(row(), samples(proxykit=[12, 13], haproxy=[10, 10]))
        return report.Report(found, 2, 3, ["nginx is left out"], {"CPU": "some, 2 cores"})

    def test_table(self):
        made = report.table(("a", "bcd"), [("wide", "x"), ("y", "-")])
        self.assertEqual(made, "====  ===\na     bcd\n====  ===\nwide  x\ny     -\n====  ===\n")

    def test_text(self):
        text = self.report().text()
        self.assertIn(":CPU: some, 2 cores\n", text)
        self.assertIn("median of 2 rounds of 3 s", text)
        self.assertIn("- nginx is left out\n", text)
        self.assertIn("1.25 (1.20-1.30)", text)
        self.assertIn("1.25 met", text)

    def test_files(self):
        directory = Path(self.mktemp())
        now = datetime(2026, 11, 23, 4, 5)
        names = [each.name for each in self.report().write(directory, now, latest=True)]
        self.assertEqual(names, ["2026-11-23-0405.rst", "2026-11-23-0405.json", "latest.rst"])
        data = json.loads((directory / names[1]).read_text())
        self.assertEqual(data["lines"][0]["ratio"], {"median": 1.25, "least": 1.2, "most": 1.3})
        self.assertEqual((directory / names[0]).read_text(), (directory / names[2]).read_text())
        (directory / names[2]).unlink()
        self.report().write(directory, now, latest=False)
        self.assertFalse((directory / names[2]).exists())

    def test_paths_stay_here(self):
        for text, expected in (
            ("cannot open /tmp/bench-1/x.cfg : no", "cannot open x.cfg : no"),
            ("[/usr/sbin/haproxy.main()] limit", "[haproxy.main()] limit"),
            ("2 of 3, 1/2, HTTP/1.1", "2 of 3, 1/2, HTTP/1.1"),
            ("'/a/b/c'", "'c'"),
        ):
            with self.subTest(text=text):
                self.assertEqual(report.without_paths(text), expected)

    def test_machine_is_not_named(self):
        with mock.patch.object(report.programs, "find", return_value=None):
            machine = report.machine(datetime(2026, 1, 2, 3, 4))
        self.assertEqual((machine["date"], machine["nginx"]), ("2026-01-02 03:04", "none"))
        self.assertNotIn("/", machine["kernel"])


class RunTests(SynchronousTestCase):
    """The rounds, with rows that only pretend."""

    def rounds(self, outcomes, rounds):
        """Run a row whose peers have, one after the other, these outcomes."""
        self.notes, self.order, self.said = [], [], []
        self.patch(command, "say", self.said.append)

        def one(peer, scale):
            self.order.append(peer.name)
            outcome = outcomes[peer.name].pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            yield "", Sample(outcome)

        names = list(outcomes)
        return command.run_row(replace(row(), run=one), names, rounds, Scale(), self.notes)

    def test_interleaved(self):
        found = self.rounds({"proxykit": [12.0, 24.0], "haproxy": [10.0, 20.0]}, 2)
        self.assertEqual(self.order, ["proxykit", "haproxy", "haproxy", "proxykit"])
        self.assertEqual([line.peer for line in found], ["proxykit", "haproxy"])
        self.assertEqual(found[0].ratio, Spread(1.2, 1.2, 1.2))
        self.assertEqual(self.notes, [])

    def test_refused_once_is_run_again(self):
        (line,) = self.rounds({"haproxy": [RefusedError("Socket errors: timeout 1"), 10.0]}, 1)
        self.assertEqual(line.cost.median, 10.0)
        self.assertEqual(self.notes, [])

    def test_refused_twice_is_told(self):
        errors = [RefusedError("no"), OSError(24, "too many", "/some/where")]
        self.assertEqual(self.rounds({"haproxy": errors}, 1), [])
        (note,) = self.notes
        self.assertTrue(note.startswith("work, round 1 of 1, haproxy: refused twice: "), note)
        self.assertNotIn("/", note)


class CommandTests(SynchronousTestCase):
    def error(self, *argv):
        with contextlib.redirect_stderr(io.StringIO()) as stream:
            raised = self.assertRaises(SystemExit, command.options, argv)
        self.assertEqual(raised.code, 2)
        return stream.getvalue().splitlines()[-1]

    def test_options(self):
        self.assertEqual(command.options([]).rows, list(ROWS))
        self.assertEqual(command.options([]).peers, list(NAMES))
        chosen = command.options(["short", "--rounds", "5", "--peers", "nginx,haproxy"])
        self.assertEqual((chosen.rows, chosen.rounds), (["short"], 5))
        self.assertEqual(chosen.peers, ["nginx", "haproxy"])

    def test_mistakes(self):
        self.assertIn("'shorter' is none of request, short", self.error("shorter"))
        self.assertIn("'squid' is none of proxykit, haproxy", self.error("--peers", "squid"))
        self.assertIn("expected a whole number from 1 on, not '0'", self.error("--rounds", "0"))

    def test_list(self):
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            self.assertEqual(command.main(["--list"]), 0)
        for name in (*ROWS, *NAMES):
            self.assertIn(f"\n{name}", stream.getvalue())

    def test_a_missing_program_ends_it(self):
        self.patch(command.programs, "find", lambda name: None if name == "wrk" else f"/{name}")
        with contextlib.redirect_stderr(io.StringIO()) as stream:
            self.assertEqual(command.main([]), 1)
        self.assertEqual(
            stream.getvalue(),
            "benchmarks: wrk is not installed, and is the load: apt-get install wrk\n",
        )

    def test_who_is_not_there_is_left_out(self):
        absent = Peer("nginx", lambda site: [], lambda: False, "nginx")
        peers = {"proxykit": row().peers["proxykit"], "nginx": absent}
        rows = [replace(row(), peers=peers), row(), replace(row(), peers=peers)]
        there, notes = command.taking_part(rows, ["nginx", "haproxy", "proxykit"])
        self.assertEqual(there, [["proxykit"], ["haproxy", "proxykit"], ["proxykit"]])
        self.assertEqual(notes, ["nginx is left out: it needs nginx"])

    def test_ours_and_the_base_are_in_each_row(self):
        for each in ROWS.values():
            with self.subTest(row=each.name):
                base = "uncounted" if each.name.startswith("book-") else "haproxy"
                self.assertEqual(list(each.peers)[:2], ["proxykit", base])
                self.assertEqual([peer.name for peer in each.peers.values()], list(each.peers))
