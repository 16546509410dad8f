"""proxykit.core.traps: each is found where it is, and nowhere else."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.capacity import Capacity
from proxykit.core.traps import Trap, find
from proxykit.model import HttpRoute, Pool, PortRange, SniRoute
from proxykit.strict import dotted
from tests.core.plans import (
    HERE,
    HERE6,
    HttpSettings,
    SniSettings,
    cluster,
    config,
    facts,
    listener,
)

#: A listener that lets in no more than there are ports.
FEW = listener(max_connections=200)


class TrapTests(SynchronousTestCase):
    def find(
        self, *parts: Any, machine: dict[str, Any] | None = None, **sources: Any
    ) -> list[Trap]:
        made = config(*parts, **sources)
        return list(find(Capacity(made, facts(made, **(machine or {})))))

    def assert_none(self, *parts: Any, **more: Any) -> None:
        self.assertEqual(self.find(*parts, **more), [])

    def assert_one(self, level: str, kind: str, key: str, *words: str, found: list[Trap]) -> None:
        """There is this one alone."""
        self.assertEqual([each.kind for each in found], [kind], found)
        self.assertEqual((found[0].level, dotted(found[0].key)), (level, key))
        for each in words:
            self.assertIn(each, found[0].text)

    def test_none(self) -> None:
        self.assert_none(cluster(), FEW)
        self.assert_none(cluster(), FEW, addresses=(HERE, "10.0.0.2"), headroom=0.02)
        self.assert_none(cluster("web", "unix:/a", "unix:/b"), FEW)

    # Sources.

    def test_elsewhere(self) -> None:
        found = self.find(
            cluster(),
            FEW,
            addresses=(HERE, "10.0.0.2"),
            machine={"elsewhere": ("10.0.0.2",)},
        )
        self.assert_one(
            "warning", "source-elsewhere", "sources.addresses[1]", "10.0.0.2 is not", found=found
        )

    def test_families(self) -> None:
        found = self.find(cluster(), FEW, addresses=(HERE, HERE6))
        self.assert_one(
            "warning", "source-unused", "sources.addresses[1]",
            "no backend has an IPv6 address", "leaves from fd00::1", found=found,
        )  # fmt: skip
        both = cluster("web", "10.0.1.1:80", "[fd00::9]:80", "unix:/a")
        self.assert_none(both, FEW, addresses=(HERE6, HERE))
        self.assert_none(both, FEW)
        found = self.find(both, FEW, addresses=(HERE,))
        self.assert_one(
            "hint", "family-without-source", "sources.addresses",
            "none is an IPv6 address", "such as [fd00::9]:80", found=found,
        )  # fmt: skip
        found = self.find(both, FEW, addresses=(HERE6,))
        self.assertIn("such as 10.0.1.1:80", found[0].text)

    def test_narrow(self) -> None:
        found = self.find(cluster(), FEW, port_range=PortRange(40000, 40098))
        self.assert_one(
            "warning", "narrow-range", "sources.port_range", "40000-40098", "40000-40199",
            "99 ports in place of 200", found=[each for each in found if "range" in each.kind],
        )  # fmt: skip
        few = listener(max_connections=100)
        self.assert_none(cluster(), few, port_range=PortRange(40000, 40099))

    def test_headroom(self) -> None:
        few = listener(max_connections=100)
        found = self.find(cluster(), few, headroom=0.5)
        self.assert_one(
            "hint", "headroom", "sources.headroom", "0.5 of 200 ports are never used", found=found
        )
        self.assert_none(cluster(), few, headroom=0.1)
        (found_,) = self.find(
            cluster(), listener(max_connections=9), headroom=0.9, port_range=PortRange(1, 100)
        )
        self.assertIn("0.9 of 100", found_.text)

    def test_plain_binding(self) -> None:
        two = cluster("web", "10.0.1.1:80", "10.0.1.2:80")
        plain = {"late": False}
        found = self.find(two, FEW, addresses=(HERE,), machine=plain)
        self.assert_one(
            "warning", "plain-binding", "sources.addresses", "200 in all", "each backend: 400",
            found=found,
        )  # fmt: skip
        self.assert_none(two, FEW, addresses=(HERE,))
        self.assert_none(two, FEW, machine=plain)
        self.assert_none(cluster(), FEW, addresses=(HERE,), machine=plain)

    # Clusters.

    def test_no_way(self) -> None:
        three = cluster("web", "10.0.1.1:80", "10.0.1.2:80", "10.0.1.3:80")
        found = self.find(three, FEW, machine={"ways": {"10.0.1.2": HERE}})
        self.assert_one(
            "warning", "no-way", "clusters.web.backends", "to 10.0.1.1:80, 10.0.1.3:80: counted",
            found=found,
        )  # fmt: skip

    def test_same_address(self) -> None:
        for most, level in ((101, "warning"), (100, "hint")):
            found = self.find(
                cluster("a", max_connections=most),
                cluster("b", max_connections=most),
                listener(cluster="a", max_connections=100),
            )
            self.assert_one(
                level, "shared-ports", "clusters.b.backends",
                "10.0.1.1:80 is in clusters.a as well: both share 200 ports", found=found,
            )  # fmt: skip

    def test_several_names(self) -> None:
        a, b, c = (cluster(name, max_connections=90) for name in "abc")
        (backend,) = a.backends
        found = self.find(
            evolve(a, backends=(evolve(backend, name="a.example:80"),)),
            evolve(b, backends=(evolve(backend, name="b.example:80"),)),
            c,
            listener(cluster="a", max_connections=90),
        )
        self.assertEqual([each.kind for each in found], ["shared-ports"] * 2)
        first = (
            "b.example:80 here and a.example:80 in clusters.a are one address, 10.0.1.1:80: they"
        )
        self.assertIn(first, found[0].text)
        self.assertIn("10.0.1.1:80 here and a.example:80 in clusters.a are one", found[1].text)

    def test_same_without_ports(self) -> None:
        for host, machine in (("unix:/a", {}), ("10.0.1.1:80", {"ways": {}})):
            found = self.find(
                cluster("a", host),
                cluster("b", host),
                listener("http", "", settings=HttpSettings((HttpRoute(status=200),))),
                machine=machine,
            )
            self.assertNotIn("shared-ports", [each.kind for each in found])

    def pooled(self, mode: str = "http", **settings: Any) -> list[Trap]:
        """What there is about a pool whose connections are not kept for long."""
        pool = Pool(**{"idle_timeout": 1.0, **settings})
        return self.find(cluster(pool=pool), listener(mode, max_connections=200))

    def test_small_pool(self) -> None:
        self.assert_one(
            "warning", "small-pool", "clusters.web.pool.max_idle",
            "up to 200 connections may be in use at once, and 199 are kept",
            found=self.pooled(max_idle=199),
        )  # fmt: skip
        self.assertEqual(self.pooled(max_idle=200), [])
        self.assertEqual(self.pooled(max_idle=None), [])
        self.assertEqual(self.pooled(max_idle=0, reuse="never"), [])
        self.assertEqual(self.pooled("tcp", max_idle=0), [])

    def test_long_idle(self) -> None:
        for seconds, words in (
            (2.0, "2 s should be less than backends wait"),
            (2.0, "by default gunicorn after 2 s"),
            (30.0, "gunicorn after 2 s, uvicorn after 5 s"),
            (75.0, "uvicorn after 5 s, nginx after 75 s"),
        ):
            self.assert_one(
                "hint", "idle-timeout", "clusters.web.pool.idle_timeout", words,
                found=self.pooled(idle_timeout=seconds),
            )  # fmt: skip
        self.assertEqual(self.pooled(idle_timeout=1.9), [])
        self.assertEqual(self.pooled(idle_timeout=30.0, reuse="never"), [])
        self.assertEqual(self.pooled("tcp", idle_timeout=30.0), [])

    def test_long_idle_in_many(self) -> None:
        """It is said once, and whom it is about."""
        settings = HttpSettings(tuple(HttpRoute(name) for name in "abc"))
        found = self.find(
            *(cluster(name, f"10.0.1.1:{port}") for port, name in enumerate("abc", 80)),
            listener("http", "a", settings=settings),
            listener("http", "a", "again"),
        )
        self.assert_one(
            "hint", "idle-timeout", "clusters.a.pool.idle_timeout", "30 s (as in b, c) should",
            found=found,
        )  # fmt: skip

    def test_loopback(self) -> None:
        """It is said once."""
        parts = cluster("a", "127.0.0.1:80"), cluster("b", "[::1]:80")
        few = listener(cluster="a", max_connections=200)
        found = self.find(*parts, few, machine={"reuse": 2})
        self.assert_one(
            "hint", "loopback", "clusters.a.backends", "on the way to 127.0.0.1:80", found=found
        )
        self.assert_none(*parts, few)
        self.assert_none(cluster(), FEW, machine={"reuse": 2})

    def test_forgotten(self) -> None:
        two = cluster("web", "10.0.1.1:80", "10.0.1.2:80", "unix:/a")
        found = self.find(two, FEW, machine={"resting": 399})
        self.assert_one(
            "hint", "time-wait-table", "sources", "keeps 399 sockets", "400 ports could",
            found=found,
        )  # fmt: skip
        self.assert_none(two, FEW, machine={"resting": 400})
        self.assert_none(two, FEW, machine={"resting": 1, "reuse": 1})
        self.assert_none(evolve(two, close="reset"), FEW, machine={"resting": 1})

    # Listeners.

    def test_above_upstream(self) -> None:
        found = self.find(cluster(queue_timeout=2.5), FEW, listener(name="b", max_connections=201))
        self.assert_one(
            "hint", "above-upstream", "listeners[1].max_connections",
            "201 clients are let in, and 200 of them", "up to 2.5 s in the queue of web, and",
            found=found,
        )  # fmt: skip

    def test_above_upstream_elsewhere(self) -> None:
        """Whatever hands over to mode http needs none; who only takes over lets nobody in."""
        for mode, kinds in (("tcp", ["above-upstream"]), ("http", [])):
            found = self.find(
                cluster("web", pool=Pool(idle_timeout=1)),
                listener("sni", "", settings=SniSettings((SniRoute(listener="there"),))),
                listener(mode, "web", "there", listen=""),
            )
            self.assertEqual([each.kind for each in found], kinds)
        many = SniSettings((SniRoute("a"), SniRoute("b")))
        parts = cluster("a"), cluster("b", "10.0.1.2:80")
        (found_,) = self.find(*parts, listener("sni", "", settings=many))
        self.assertIn("the queue of a (or of another cluster), and", found_.text)

    def test_descriptors(self) -> None:
        """Two for each client at L4; one at L7, and one for each connection to a backend."""
        settings = HttpSettings((HttpRoute(status=200),))
        pool = Pool(idle_timeout=1)
        sni = SniSettings((SniRoute(listener="http"),))
        others = "above-upstream", "unknown-mode"
        for parts, needed in (
            ([listener(max_connections=150)], 300),
            ([listener(max_connections=500)], 400),
            ([listener("http", max_connections=150)], 300),
            ([listener("http", max_connections=500)], 700),
            ([listener("http", "", settings=settings, max_connections=500)], 500),
            ([listener("telnet", "", max_connections=150)], 300),
            ([listener(max_connections=150), listener("http", max_connections=150)], 600),
            (
                [
                    listener("sni", "", settings=sni, max_connections=500),
                    listener("http", listen=""),
                ],
                700,
            ),
        ):
            for count, fits in ((needed - 1, False), (needed, True)):
                own = 32 + 12 + sum(bool(each.listen) for each in parts)
                machine = {"descriptors": count + own}
                found = self.find(cluster(pool=pool), *parts, machine=machine)
                found = [each for each in found if each.kind not in others]
                if fits:
                    self.assertEqual(found, [])
                    continue
                self.assert_one(
                    "warning", "descriptors", "listeners",
                    f"{needed} descriptors are needed, and {count} of the {count + own} that",
                    found=found,
                )  # fmt: skip

    def test_unknown_mode(self) -> None:
        found = self.find(cluster(), FEW, listener("telnet", max_connections=200))
        self.assert_one(
            "hint", "unknown-mode", "listeners[1].mode", "of the mode telnet", found=found
        )
