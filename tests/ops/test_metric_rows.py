"""proxykit.ops.metric_rows: what is read, in which rows, and that there are never too many."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.stats import Hellos, Relayed
from proxykit.model import Address, Backend, Cluster, Config
from proxykit.net.listener import STARVED
from proxykit.ops import metric_rows
from proxykit.ops.metric_names import FAMILIES
from proxykit.ops.metric_rows import Rows, budget_rows, cluster_rows, listener_rows
from proxykit.ops.service import ProxyService

LABELS = {family.name: family.labels for family in FAMILIES}


def found(rows: Rows, name: str) -> dict[tuple[str, ...], Any]:
    """The rows of one family; each has the labels that it should."""
    for labels, _ in rows.found.get(name, []):
        assert len(labels) == len(LABELS[name]), (name, labels)
    return dict(rows.found.get(name, []))


def listener(**more: Any) -> Any:
    """What has nothing but a snapshot."""
    shown = {"connections": 1, "max_connections": 5, "accepted": 7, "paused": None, **more}
    return SimpleNamespace(name="front", snapshot=lambda: shown)


class ListenerTests(SynchronousTestCase):
    def test_paused(self) -> None:
        for why, connections, descriptors in (
            (None, 0, 0),
            ("all of its 5 connections are in use (max_connections)", 1, 0),
            (STARVED, 0, 1),
        ):
            rows = listener_rows([listener(paused=why)])
            self.assertEqual(
                found(rows, "proxykit_listener_paused"),
                {("front", "connections"): connections, ("front", "descriptors"): descriptors},
            )

    def test_refused(self) -> None:
        """By the PROXY header, by the hello, and for want of a backend."""
        stats, hellos = Relayed(), Hellos()
        stats.refused = 6
        for reason in ("late", "no name", "late"):
            hellos.count(reason)
        hellos.handed_over = 2
        traffic = {**stats.snapshot(), "hellos": hellos.snapshot()}
        rows = listener_rows([listener(refused={"not trusted": 4}, traffic=traffic)])
        self.assertEqual(
            found(rows, "proxykit_listener_refused_total"),
            {
                ("front", "not trusted"): 4,
                ("front", "late"): 2,
                ("front", "no name"): 1,
                ("front", "no upstream"): 3,
            },
        )
        self.assertEqual(found(rows, "proxykit_listener_handed_over_total"), {("front",): 2})

    def test_tls(self) -> None:
        tls = {"handshakes": 5, "resumed": 2, "failed": {"unknown ca": 1}}
        rows = listener_rows([listener(tls=tls)])
        for name, expected in (
            ("handshakes", {("front",): 5}),
            ("resumed", {("front",): 2}),
            ("failures", {("front", "unknown ca"): 1}),
        ):
            self.assertEqual(found(rows, f"proxykit_listener_tls_{name}_total"), expected)

    def test_a_mode_of_somebody_else(self) -> None:
        """It shows what it likes: what is known of that is taken."""
        for traffic in (
            None,
            "busy",
            {},
            {"bytes_up": "many", "ended": 3, "own": None, "seconds": 1.5, "refused": {"x": 1}},
            {"statuses": 7, "refused": 1, "failed": None, "reused": "x", "seconds": {}},
            {"ended": {"x": "often"}, "hellos": {}},
        ):
            rows = listener_rows([listener(traffic=traffic)])
            self.assertEqual(
                set(rows.found),
                {
                    "proxykit_listener_connections",
                    "proxykit_listener_connections_limit",
                    "proxykit_listener_accepted_total",
                    "proxykit_listener_paused",
                },
                traffic,
            )
        rows = listener_rows([listener(traffic={"bytes_up": 5})])
        self.assertEqual(found(rows, "proxykit_listener_bytes_total"), {("front", "up"): 5})

    def test_words_are_bounded(self) -> None:
        """Those that came first stay, so that no sum goes down."""
        self.patch(metric_rows, "MOST_WORDS", 2)
        tls = {"handshakes": 0, "resumed": 0, "failed": {"a": 1, "b": 2}}
        name = "proxykit_listener_tls_failures_total"
        rows = listener_rows([listener(tls=tls)])
        self.assertEqual(found(rows, name), {("front", "a"): 1, ("front", "b"): 2})
        tls["failed"] |= {"c": 3, "d": 4}
        rows = listener_rows([listener(tls=tls)])
        self.assertEqual(
            found(rows, name), {("front", "a"): 1, ("front", "b"): 2, ("front", "other"): 7}
        )


class ClusterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.service = ProxyService(Clock())
        clusters = [
            Cluster(name, tuple(Backend(Address(f"127.0.0.{number}", 80)) for number in numbers))
            for name, numbers in (("one", (1, 2)), ("two", (1, 2, 3)))
        ]
        self.service.apply(Config((), tuple(clusters)))

    def show(self, **more: Any) -> None:
        """Have one of the backends show more."""
        two = self.service.registry.cluster("two")
        shown = two.snapshot()
        shown["backends"][1].update(more)
        self.patch(two, "snapshot", lambda: shown)

    def test_backends_are_bounded(self) -> None:
        """In all; the clusters' figures are whole."""
        self.patch(metric_rows, "MOST", 4)
        rows = cluster_rows(self.service)
        self.assertEqual(len(found(rows, "proxykit_backend_up")), 4)
        self.assertEqual(
            found(rows, "proxykit_cluster_backends_unlisted"), {("one",): 0, ("two",): 1}
        )
        self.assertEqual(
            found(rows, "proxykit_cluster_backends_usable"), {("one",): 2, ("two",): 3}
        )

    def test_usable(self) -> None:
        """All that may speak against it."""
        where = ("two", "127.0.0.2:80")
        for more, up in (
            ({}, True),
            ({"health": "up"}, True),
            ({"health": "unknown", "ejected_seconds": None}, True),
            ({"health": "down"}, False),
            ({"ejected_seconds": 3.5}, False),
            ({"state": "drain"}, False),
            ({"state": "removed"}, False),
        ):
            self.show(**more)
            rows = cluster_rows(self.service)
            self.assertEqual(found(rows, "proxykit_backend_up")[where], up, more)
            self.assertEqual(found(rows, "proxykit_cluster_backends_usable")["two",], 2 + up, more)

    def test_health(self) -> None:
        where = ("two", "127.0.0.2:80")
        self.show(
            state="drain",
            health="down",
            ejected_seconds=2.0,
            ejections=3,
            latency_seconds=0.25,
            weight=4,
            share=0.5,
        )
        rows = cluster_rows(self.service)
        for name, expected in (
            ("healthy", False),
            ("ejected", True),
            ("ejections_total", 3),
            ("latency_seconds", 0.25),
            ("weight", 2.0),
        ):
            self.assertEqual(found(rows, f"proxykit_backend_{name}")[where], expected)
        self.assertIn((*where, "drain"), found(rows, "proxykit_backend_state"))
        states = found(rows, "proxykit_cluster_backends")
        self.assertEqual((states["two", "up"], states["two", "drain"]), (2, 1))

    def test_unknown(self) -> None:
        """What nobody has asked, or seen, has no row."""
        self.show(health="unknown", latency_seconds=None)
        rows = cluster_rows(self.service)
        where = ("two", "127.0.0.2:80")
        self.assertNotIn(where, found(rows, "proxykit_backend_healthy"))
        self.assertNotIn(where, found(rows, "proxykit_backend_latency_seconds"))

    def test_retries_and_panic(self) -> None:
        two = self.service.registry.cluster("two")
        retries = {"requests": 50, "retried": 10, "refused": 2}
        shown = {**two.snapshot(), "retries": retries, "panic": True}
        self.patch(two, "snapshot", lambda: shown)
        rows = cluster_rows(self.service)
        for name, expected in (
            ("requests_total", 50),
            ("retries_total", 10),
            ("retries_refused_total", 2),
            ("panic", True),
        ):
            self.assertEqual(found(rows, f"proxykit_cluster_{name}")["two",], expected)


def budget(number: int, **more: Any) -> dict[str, Any]:
    """One as ``/api/ports`` shows it."""
    return {
        "protocol": "tcp",
        "source": "10.0.0.1",
        "destination": f"10.0.1.{number}:80",
        "size": 100,
        "active": 1,
        "idle": 2,
        "reserved": 3,
        "time_wait": 4,
        "foreign": 5,
        "free": 83,
        "forecast_seconds": None,
        "level": "ok",
        "headroom": 2,
        "denied": 0,
        **more,
    }


class BudgetTests(SynchronousTestCase):
    def test_one(self) -> None:
        where = ("tcp", "10.0.0.1", "10.0.1.1:80")
        rows = budget_rows([budget(1, forecast_seconds=12.5, level="low", denied=7)])
        for name, expected in (
            ("size", 100),
            ("limit", 98),
            ("free", 83),
            ("denied", 7),
            ("forecast_seconds", 12.5),
            ("level", 2),
        ):
            self.assertEqual(found(rows, f"proxykit_budget_{name}"), {where: expected})
        self.assertEqual(
            found(rows, "proxykit_budget_ports"),
            {
                (*where, use): number
                for number, use in enumerate(
                    ("active", "idle", "reserved", "time_wait", "foreign"), 1
                )
            },
        )
        self.assertEqual(found(rows, "proxykit_budgets"), {("ok",): 0, ("half",): 0, ("low",): 1})

    def test_no_forecast(self) -> None:
        """Is infinitely far away, so that the series is there and no alert fires."""
        rows = budget_rows([budget(1)])
        self.assertEqual(list(found(rows, "proxykit_budget_forecast_seconds").values()), [inf])

    def test_bounded(self) -> None:
        """The scarce ones are seen; the others are one."""
        self.patch(metric_rows, "MOST", 2)
        some = [budget(1), budget(2), budget(3, forecast_seconds=900.0), budget(4, level="half")]
        rows = budget_rows(some)
        free = found(rows, "proxykit_budget_free")
        other = ("other", "other", "other")
        self.assertEqual(
            free,
            {
                ("tcp", "10.0.0.1", "10.0.1.4:80"): 83,
                ("tcp", "10.0.0.1", "10.0.1.1:80"): 83,
                other: 166,
            },
        )
        self.assertEqual(found(rows, "proxykit_budget_limit")[other], 196)
        self.assertEqual(found(rows, "proxykit_budget_ports")[*other, "foreign"], 10)
        self.assertEqual(found(rows, "proxykit_budget_forecast_seconds")[other], 900.0)
        self.assertEqual(found(rows, "proxykit_budget_level")[other], 0)
        self.assertEqual(found(rows, "proxykit_budgets_unlisted"), {(): 2})
        self.assertEqual(found(rows, "proxykit_budgets")["ok",], 3)

    def test_scarce_beyond_the_bound(self) -> None:
        self.patch(metric_rows, "MOST", 1)
        rows = budget_rows([budget(1, level="half"), budget(2, level="low")])
        self.assertEqual(
            found(rows, "proxykit_budget_level"),
            {("tcp", "10.0.0.1", "10.0.1.2:80"): 2, ("other", "other", "other"): 1},
        )
