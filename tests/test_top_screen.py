"""What ``proxykit top`` draws, for terminals of every size."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from proxykit.top_screen import LEVELS, USES, bar, clean, forecast, quick, screen, span, spark


def budget(**changed: Any) -> dict[str, Any]:
    plain = {
        "protocol": "tcp",
        "source": "10.0.0.1",
        "destination": "10.1.0.1:80",
        "size": 1000,
        "active": 300,
        "idle": 100,
        "reserved": 10,
        "time_wait": 50,
        "foreign": 20,
        "denied": 0,
        "headroom": 20,
        "free": 500,
        "forecast_seconds": None,
        "level": "ok",
        "history": [0.1, 0.2, 0.5],
    }
    return plain | changed


def backend(address: str = "10.1.0.1:80", **changed: Any) -> dict[str, Any]:
    plain = {
        "address": address,
        "name": "",
        "state": "up",
        "weight": 1,
        "backup": False,
        "in_flight": 3,
        "connections": 4,
        "served": 9,
        "failures": 0,
        "full": None,
        "health": "up",
        "why": None,
        "ejected_seconds": None,
        "ejections": 0,
        "latency_seconds": 0.0123,
        "share": 1.0,
    }
    return plain | changed


def cluster(*backends: dict[str, Any], **changed: Any) -> dict[str, Any]:
    plain = {
        "name": "web",
        "balance": "round-robin",
        "panic": False,
        "queue": {"waiting": 0, "limit": 100, "timed_out": 0, "refused": 0},
        "pool": {"idle": 0, "opened": 0, "reused": 0},
        "backends": list(backends),
    }
    return plain | changed


def listener(**changed: Any) -> dict[str, Any]:
    plain = {
        "name": "front",
        "address": "0.0.0.0:80",
        "connections": 40,
        "max_connections": 1000,
        "accepted": 50,
        "paused": None,
        "history": [1.0, 2.0, 1234.5],
        "traffic": {"requests": 77},
    }
    return plain | changed


def state(**changed: Any) -> dict[str, Any]:
    """What ``/api/events`` tells, of a small service."""
    plain = {
        "time": 1000.0,
        "uptime": 90.0,
        "version": "1.0",
        "draining": False,
        "loop_lag_seconds": 0.002,
        "listeners": [listener()],
        "clusters": [cluster(backend())],
        "budgets": [budget()],
    }
    return plain | changed


BUSY = state(
    draining=True,
    budgets=[
        budget(destination="10.1.0.9:80"),
        budget(free=90, active=760, level="low", forecast_seconds=240.0, foreign=0),
        budget(free=0, active=800, level="low", forecast_seconds=0.0, destination="10.1.0.3:80"),
    ],
    listeners=[
        listener(),
        listener(name="db", traffic={}, address="", max_connections=None, paused="it is full"),
    ],
    clusters=[
        cluster(
            backend("10.1.0.1:80", state="drain"),
            backend("10.1.0.2:80", health="down", why="GET /: 503", failures=31),
            backend("10.1.0.3:80", ejected_seconds=12.0, latency_seconds=None),
            queue={"waiting": 4},
            pool={"idle": 5, "opened": 1, "reused": 99},
        ),
        cluster(backend(state="down"), name="api", panic=True),
    ],
)

PRINTED = """\
proxykit 1.0  up 2 min  loop lag 2 ms  80 clients  draining: takes nothing new

Ports  3 port budgets  █ active ▓ idle ▌ connecting ▒ TIME_WAIT ░ other processes · f…
✕  10.0.0.1 → 10.1.0.3:80  █████████████████▓▓▌▒░-    0 of 1,000  no port is left
▲  10.0.0.1 → 10.1.0.1:80  ████████████████▓▓▌▒··-   90 of 1,000  runs out in 4 min
✓  10.0.0.1 → 10.1.0.9:80  ██████▓▓▌▒░···········-  500 of 1,000  no shortage in sight

Listeners  2 listeners
front  0.0.0.0:80  40 of 1,000 clients  1,234 requests/s
db     -           40 clients           1,234 new/s       ▲ it is full

Clusters  2 clusters, 4 backends
web            0 of 3 in use         latency  9 in flight  failures  4 waiting, 99% r…
  10.1.0.2:80  ✕ unhealthy           12.3 ms            3        31  GET /: 503
  10.1.0.3:80  ✕ ejected, 12 s left        -            3         0
  10.1.0.1:80  ◐ draining            12.3 ms            3         0
api            panic: all are used   latency  3 in flight  failures
  10.1.0.1:80  ○ taken down          12.3 ms            3         0
"""


class ScreenTests(SynchronousTestCase):
    def lines(
        self, what: dict[str, Any], width: int, height: int | None = None, away: str = ""
    ) -> list[str]:
        out = io.StringIO()
        Console(file=out, width=width, color_system=None).print(screen(what, width, height, away))
        return out.getvalue().splitlines()

    def test_whole(self) -> None:
        self.assertEqual("\n".join(self.lines(BUSY, 86)) + "\n", PRINTED)

    def test_wide(self) -> None:
        """With a small plot, and the level in a word."""
        lines = self.lines(BUSY, 140)
        self.assertTrue(lines[3].startswith("✕ none left  "), lines[3])
        self.assertIn("▂▂▅", lines[3])
        self.assertIn("▁▁█", lines[8])

    def test_narrow(self) -> None:
        lines = self.lines(BUSY, 50)
        self.assertEqual(lines[3], "✕ none left 10.0.0.1 → 10.1.0.3:80 no port is left")
        self.assertRegex(lines[4], "^█+▓+▌+▒+░+-+ 0 free$")
        self.assertEqual(len(lines[4]), 50)

    def test_never_wider_or_higher(self) -> None:
        for width in (1, 8, 20, 40, 75, 76, 77, 100, 119, 120, 121, 200):
            for line in self.lines(BUSY, width, away="gone"):
                self.assertLessEqual(len(line), width)
        many = state(
            budgets=[budget()] * 100,
            listeners=[listener()] * 30,
            clusters=[cluster(*[backend()] * 50)] * 7,
        )
        for height in (16, 24, 40, 100, 300):
            for width in (60, 100):
                self.assertLessEqual(len(self.lines(many, width, height)), height)

    def test_what_is_left_out_is_said(self) -> None:
        backends = [backend(f"10.1.0.{at}:80") for at in range(50)]
        backends[40] = backend("10.9.9.9:80", health="down")
        many = state(budgets=[budget(free=at) for at in range(100)], clusters=[cluster(*backends)])
        lines = self.lines(many, 100, 40)
        self.assertEqual(len(lines), 40)
        text = "\n".join(lines)
        self.assertIn("16 of 100 port budgets", text)
        self.assertIn("1 cluster, 15 of 50 backends", text)
        # What matters is not among that.
        self.assertIn("10.9.9.9:80", text)
        self.assertIn("  0 of 1,000  no port is left", text)
        # Without a height there is no limit.
        self.assertEqual(len(self.lines(many, 100)), 1 + 2 + 100 + 2 + 1 + 2 + 51)

    def test_nothing_there(self) -> None:
        lines = self.lines(state(budgets=[], listeners=[], clusters=[]), 80, 24)
        self.assertEqual(lines[2].rstrip(), "Ports  0 port budgets")

    def test_an_older_or_newer_service(self) -> None:
        """What is not told is not shown, and a word that is not known is shown as it is."""
        old = {"address": "10.1.0.1:80", "state": "up", "in_flight": 1, "failures": 0}
        few = {"name": "web", "backends": [old]}
        what = {"budgets": [budget(level="dire")], "listeners": [], "clusters": [few]}
        self.assertIn("? dire", "\n".join(self.lines(what, 140)))
        self.assertIn("✓ up", self.lines(what, 140)[-1])

    def test_away(self) -> None:
        lines = self.lines(BUSY, 80, away="cannot connect\x1b")
        self.assertEqual(lines[1], "Not connected, trying again: cannot connect\ufffd")

    def test_no_name_does_anything_to_the_terminal(self) -> None:
        evil = "\x1b]0;mine\x07\r\n[bold]\u202e"
        what = state(
            version=evil,
            budgets=[budget(destination=evil)],
            listeners=[listener(name=evil, address=evil, paused=evil)],
            clusters=[cluster(backend(evil, health="down", why=evil), name=evil)],
        )
        text = "\n".join(self.lines(what, 200))
        self.assertEqual([each for each in text if not each.isprintable() and each != "\n"], [])
        self.assertEqual(text.count("[bold]"), 8)
        self.assertEqual(clean(3), "3")


class PartTests(SynchronousTestCase):
    def test_bar(self) -> None:
        signs = {key: sign for key, _, sign, _ in USES}
        for width in (1, 5, 8, 30, 99):
            for what in (
                budget(),
                budget(active=0, idle=0, reserved=0, time_wait=0, foreign=0, free=980),
                budget(active=1, idle=1, reserved=1, time_wait=1, foreign=1, denied=1, free=974),
                # Ports that rest and can be had again; and nothing at all.
                budget(time_wait=900, free=550),
                budget(**dict.fromkeys(signs, 0), size=0),
            ):
                text = bar(what, width).plain
                self.assertEqual(len(text), width)
                if width > 2 * len(USES):
                    for key, sign in signs.items():
                        if key != "time_wait" or what["time_wait"] != 900:
                            self.assertEqual(sign in text, what[key] > 0, (key, text))
        self.assertEqual(len({*signs.values()}), len(USES))

    def test_spark(self) -> None:
        self.assertEqual(spark([0.0, 0.5, 1.0, 2.0, -1.0], 1.0, 6).plain, " ▁▅██▁")
        self.assertEqual(spark([9.0, 1.0, 0.0], 1.0, 2).plain, "█▁")
        self.assertEqual(spark([], 0.0, 3).plain, "   ")
        self.assertEqual(spark([0.0], 0.0, 1).plain, "▁")

    def test_words(self) -> None:
        for seconds, text in (
            (0.4, "less than 1 s"),
            (1, "1 s"),
            (89.4, "89 s"),
            (90, "2 min"),
            (5399, "90 min"),
            (5400, "2 h"),
            (200000, "2 days"),
        ):
            self.assertEqual(span(seconds), text)
        self.assertEqual([quick(each) for each in (None, 0.0004, 1.25)], ["-", "0.4 ms", "1.25 s"])
        for left, free, text in (
            (None, 1, "no shortage in sight"),
            (240.0, 1, "runs out in 4 min"),
            (0.0, 1, "no port is left"),
            (None, 0, "no port is left"),
        ):
            self.assertEqual(forecast(budget(forecast_seconds=left, free=free)), text)
        self.assertEqual(len({sign for _, sign, _ in LEVELS.values()}), len(LEVELS))

    def test_a_listener_that_ends(self) -> None:
        out = io.StringIO()
        what = state(listeners=[listener(), listener(draining=True, paused="it ends")])
        Console(file=out, width=100, color_system=None).print(screen(what, 100))
        self.assertEqual(out.getvalue().count("front"), 2)
        self.assertIn("1,234 requests/s  ◐ draining\n", out.getvalue())

    def test_conditions(self) -> None:
        for changed, text in (
            ({}, "✓ up, healthy"),
            ({"health": "unknown"}, "✓ up"),
            ({"full": "no port"}, "▲ full"),
            ({"share": 0.4}, "◐ starting, 40%"),
            ({"state": "removed", "health": "down"}, "○ removed"),
        ):
            out = io.StringIO()
            what = state(clusters=[cluster(backend(**changed))])
            Console(file=out, width=100, color_system=None).print(screen(what, 100))
            self.assertIn(text, out.getvalue().splitlines()[-1])
