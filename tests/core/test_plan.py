"""proxykit.core.plan: what each listener can hold, what runs out first, and what to do about it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.capacity import (
    CLIENTS,
    CLUSTER,
    CONNECTIONS,
    NEW,
    PORTS,
    REQUESTS,
    Capacity,
    Facts,
)
from proxykit.core.plan import Figure, Fix, Plan, make_plan
from proxykit.model import Config, HttpRoute, Pool, PortRange, SniRoute
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
from tests.core.test_capacity import machines

REUSE = "net.ipv4.tcp_tw_reuse = 1 (needs TCP timestamps at both ends)"


class Case(SynchronousTestCase):
    def plan(self, *parts: Any, machine: dict[str, Any] | None = None, **sources: Any) -> Plan:
        made = config(*parts, **sources)
        return make_plan(made, facts(made, **(machine or {})))

    def figure(self, what: str, *parts: Any, index: int = 0, **more: Any) -> Figure:
        """One figure of a plan."""
        hop = self.plan(*parts, **more).hops[index]
        return next(figure for figure in hop.figures if figure.what == what)

    def assert_fix(self, figure: Figure, do: str, then: float | None) -> None:
        self.assertEqual(figure.fix, Fix(do, then))


class HopTests(Case):
    def test_hop(self) -> None:
        """All that is said of one listener."""
        plan = self.plan(cluster(), listener())
        (hop,) = plan.hops
        self.assertEqual((hop.index, hop.name, hop.mode, hop.listen), (0, "tcp", "tcp", "tcp:80"))
        self.assertEqual((hop.taken_from, hop.hands_to, hop.shared), ((), (), ()))
        self.assertEqual([figure.what for figure in hop.figures], [CONNECTIONS, NEW])
        self.assertEqual([str(way.backend.address) for way in hop.ways], ["10.0.1.1:80"])
        first = hop.figures[0]
        assert first.limited_by is not None
        assert first.next is not None
        self.assertEqual(
            (first.value, first.limited_by.what, first.next.what), (200, PORTS, CLUSTER)
        )
        self.assertEqual(plan.usable, 100_000 - 45)

    def test_hand_over(self) -> None:
        settings = SniSettings((SniRoute(listener="there"),))
        front, there = self.plan(
            cluster(),
            listener("sni", "", settings=settings),
            listener("http", "web", "there", listen=""),
        ).hops
        self.assertEqual((front.hands_to, front.taken_from, front.ways), (("there",), (), ()))
        self.assertEqual((there.hands_to, there.taken_from), ((), ("sni",)))

    def test_shared(self) -> None:
        """Listeners that lead to the same cluster."""
        plan = self.plan(
            cluster("a"),
            cluster("b", "10.0.1.2:80"),
            listener("tcp", "a", "one"),
            listener("tcp", "a", "two"),
            listener("tcp", "b", "three"),
        )
        self.assertEqual(
            [hop.shared for hop in plan.hops],
            [(("a", ("two",)),), (("a", ("one",)),), ()],
        )


class NoteTests(Case):
    def test_notes(self) -> None:
        for mode, settings, limited, words in (
            ("tcp", {}, True, "where the proxy closes first"),
            ("tcp", {"close": "reset"}, False, "no port rests here after"),
            ("http", {}, False, "are kept, and used again"),
            ("http", {"proxy_protocol": "v1"}, True, "do not last (clusters.web.proxy_protocol)"),
            ("http", {"pool": Pool("never")}, True, "do not last (clusters.web.pool.reuse)"),
        ):
            with self.subTest(words):
                figure = self.figure(NEW, cluster(**settings), listener(mode))
                self.assertIn(words, figure.note)
                self.assertEqual(figure.value is not None, limited)
                self.assertEqual(figure.limited_by is not None, limited)


class FixTests(Case):
    """What is done about each limit, and what comes of it."""

    def test_clients(self) -> None:
        parts = cluster(max_connections=300), listener(max_connections=90)
        do = "listeners[0].max_connections = 200"
        self.assert_fix(self.figure(CONNECTIONS, *parts), do, 200)

    def test_clients_of_others(self) -> None:
        """They come by the first of two."""
        settings = SniSettings((SniRoute(listener="there"),))
        parts = (
            cluster(max_connections=300),
            listener("sni", "", settings=settings, max_connections=40),
            listener("tcp", "web", "there", max_connections=50, listen="tcp:81"),
        )
        figure = self.figure(CONNECTIONS, *parts, index=1)
        self.assertEqual(figure.value, 90)
        self.assert_fix(figure, "listeners[1].max_connections = 160", 200)

    def test_descriptors(self) -> None:
        machine = {"descriptors": 256}
        figure = self.figure(CONNECTIONS, cluster(), listener(), machine=machine)
        self.assert_fix(figure, "ulimit -n 1024 (systemd: LimitNOFILE=1024)", 200)
        figure = self.figure(CLIENTS, cluster(), listener("http"), machine=machine)
        self.assert_fix(figure, "ulimit -n 11264 (systemd: LimitNOFILE=11264)", 10000)

    def test_connections_to_backends(self) -> None:
        parts = cluster(max_connections=50), listener()
        do = "clusters.web.max_connections = 200"
        self.assert_fix(self.figure(CONNECTIONS, *parts), do, 200)

    def test_connections_of_some_clusters(self) -> None:
        """Of those that have ports left."""
        parts = (
            cluster("a", "10.0.1.1:80", max_connections=1000),
            cluster("b", "10.0.1.2:80", "10.0.1.3:80", max_connections=110),
            cluster("c", "unix:/c", max_connections=30),
            listener(
                "http", "a", settings=HttpSettings((HttpRoute("b"), HttpRoute("c"))),
                max_connections=500,
            ),
        )  # fmt: skip
        figure = self.figure(REQUESTS, *parts)
        self.assertEqual(figure.value, 200 + 220 + 30)
        do = "clusters.b.max_connections, clusters.c.max_connections = 110"
        self.assert_fix(figure, do, 500)

    def test_never_fewer(self) -> None:
        """Nobody's max_connections becomes less."""
        parts = (
            cluster("a", "10.0.1.1:80", max_connections=150),
            cluster("b", "10.0.1.2:80", max_connections=10),
            listener("http", "a", settings=HttpSettings((HttpRoute("b"),)), max_connections=165),
        )
        do = "clusters.a.max_connections, clusters.b.max_connections = 150"
        self.assert_fix(self.figure(REQUESTS, *parts), do, 165)

    def test_two_at_once(self) -> None:
        """Where two are the same, both must be more."""
        parts = cluster(max_connections=50), listener(max_connections=50)
        do = "listeners[0].max_connections = 200 and clusters.web.max_connections = 200"
        self.assert_fix(self.figure(CONNECTIONS, *parts), do, 200)

    def huge(self, *hosts: str) -> tuple[Any, ...]:
        """Parts that only ports limit."""
        return cluster("web", *hosts, max_connections=1 << 20), listener(max_connections=1 << 20)

    def test_one_more_source(self) -> None:
        """The kernel's choice, or the list, and one more."""
        for addresses, host, do, then in (
            ((), "10.0.1.1:80", "a second address", 120_000),
            ((HERE,), "10.0.1.1:80", "a second address", 120_000),
            ((HERE, HERE6), "10.0.1.1:80", "a second address", 120_000),
            ((HERE, "10.0.0.2"), "10.0.1.1:80", "a third address", 180_000),
            (
                tuple(f"10.0.0.{n}" for n in range(1, 6)),
                "10.0.1.1:80",
                "a further address",
                360_000,
            ),
            ((), "[fd00::9]:80", "a second IPv6 address", 120_000),
            ((HERE, HERE6), "[fd00::9]:80", "a second IPv6 address", 120_000),
        ):
            with self.subTest(addresses=addresses, host=host):
                machine = {"ports": PortRange(5001, 65000), "descriptors": 1 << 22}
                figure = self.figure(
                    CONNECTIONS, *self.huge(host), addresses=addresses, machine=machine
                )
                self.assert_fix(figure, f"{do} in sources.addresses", then)

    def test_wider_range(self) -> None:
        """Less what is reserved."""
        machine = {"ports": PortRange(32768, 60999, 1000), "descriptors": 1 << 22}
        figure = self.figure(CONNECTIONS, *self.huge("10.0.1.1:80"), machine=machine)
        self.assertEqual(figure.value, 27232)
        self.assert_fix(figure, "net.ipv4.ip_local_port_range = 10240 65535", 54296)

    def test_whole_range(self) -> None:
        """The kernel's own is wider; or it is not, and then there is another way."""
        for high, do, then in (
            (40009, "no sources.port_range", 200),
            (40199, "a second address in sources.addresses", 400),
        ):
            figure = self.figure(
                CONNECTIONS, cluster(), listener(), port_range=PortRange(40000, high)
            )
            self.assert_fix(figure, do, then)

    def test_reactor(self) -> None:
        """Plain binding is no matter where there is one backend alone."""
        parts = cluster("web", "10.0.1.1:80", "10.0.1.2:80"), listener()
        plain = {"addresses": (HERE,), "machine": {"late": False}}
        for what in CONNECTIONS, NEW:
            figure = self.figure(what, *parts, **plain)
            wanted = 400 if what == CONNECTIONS else 400 / 60
            self.assert_fix(figure, "the proxykit reactor", wanted)
        figure = self.figure(CONNECTIONS, cluster(), listener(), **plain)
        self.assert_fix(figure, "net.ipv4.ip_local_port_range = 10240 65535", 1000)

    def test_no_way(self) -> None:
        """Nothing is to be done here."""
        figure = self.figure(CONNECTIONS, cluster(), listener(), machine={"ways": {}})
        self.assertEqual((figure.value, figure.fix), (0, None))
        figure = self.figure(NEW, cluster(), listener(), machine={"ways": {}})
        self.assertEqual((figure.value, figure.fix), (0, None))

    def test_rest(self) -> None:
        self.assert_fix(self.figure(NEW, cluster(), listener()), REUSE, 200)
        figure = self.figure(NEW, cluster(), listener(), machine={"reuse": 1})
        self.assert_fix(figure, "net.ipv4.ip_local_port_range = 10240 65535", 55296)

    def test_rest_behind_another(self) -> None:
        """An sni listener has no cluster itself."""
        settings = SniSettings((SniRoute(listener="there"),))
        parts = (
            cluster(),
            listener("sni", "", settings=settings),
            listener("tcp", "web", "there", listen=""),
        )
        machine = {"reuse": 1, "ports": PortRange(5001, 65000)}
        figure = self.figure(NEW, *parts, machine=machine)
        self.assert_fix(figure, "a second address in sources.addresses", 120_000)

    def test_keep(self) -> None:
        """Each reason why connections do not last has its remedy, and two have two."""
        nobody = "no clusters.web.proxy_protocol (backends find the client in X-Forwarded-For)"
        safe = 'clusters.web.pool.reuse = "safe"'
        all_ = "clusters.web.pool.max_idle = 200"
        for settings, do in (
            ({"pool": Pool("never")}, safe),
            ({"proxy_protocol": "v2"}, nobody),
            ({"pool": Pool(max_idle=5)}, all_),
            (
                {"pool": Pool("never", max_idle=5), "proxy_protocol": "v2"},
                f"{safe} and {nobody} and {all_}",
            ),
        ):
            with self.subTest(do):
                figure = self.figure(NEW, cluster(**settings), listener("http"))
                self.assert_fix(figure, do, None)

    def test_keep_in_two_clusters(self) -> None:
        """And nothing else changes."""
        parts = (
            cluster("a", pool=Pool("never")),
            cluster("b", "10.0.1.2:80", pool=Pool("never")),
            cluster("c", "10.0.1.3:80"),
            listener("http", "a", settings=HttpSettings((HttpRoute("b"), HttpRoute("c")))),
        )
        do = 'clusters.a.pool.reuse = "safe" and clusters.b.pool.reuse = "safe"'
        self.assert_fix(self.figure(NEW, *parts), do, None)


class RandomTests(SynchronousTestCase):
    @given(machines())
    def test_fixes(self, made: tuple[Config, Facts]) -> None:
        """Whatever the configuration, there is a plan, and a fix makes more."""
        plan = make_plan(*made)
        for hop in plan.hops:
            for figure in hop.figures:
                if figure.fix is not None and figure.fix.then is not None:
                    assert figure.value is not None
                    self.assertGreater(figure.fix.then, figure.value)

    @given(machines())
    def test_same(self, made: tuple[Config, Facts]) -> None:
        """What is looked at is not changed."""
        before = Capacity(*made).limits(0, CONNECTIONS)
        make_plan(*made)
        self.assertEqual(Capacity(*made).limits(0, CONNECTIONS), before)
