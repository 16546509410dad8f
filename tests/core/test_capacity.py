"""proxykit.core.capacity: every figure is the least of its limits."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.capacity import (
    CLIENTS,
    CLUSTER,
    CONNECTIONS,
    DESCRIPTORS,
    LISTENER,
    NEW,
    NO_WAY,
    PORTS,
    REQUESTS,
    TIME_WAIT,
    Capacity,
    Facts,
    known,
    layer,
)
from proxykit.model import Config, HttpRoute, Pool, PortRange, SniRoute
from tests.core.plans import (
    HERE,
    HERE6,
    OWN,
    HttpSettings,
    SniSettings,
    cluster,
    config,
    facts,
    listener,
)


class Case(SynchronousTestCase):
    """A configuration, and what is reckoned of it."""

    def reckon(
        self, *parts: Any, machine: dict[str, Any] | None = None, **sources: Any
    ) -> Capacity:
        made = config(*parts, **sources)
        return Capacity(made, facts(made, **(machine or {})))

    def assert_limits(self, reckoned: Capacity, figure: str, *wanted: Any, index: int = 0) -> None:
        """The limits of a figure are these, each its name and its value, the least first."""
        found = reckoned.limits(index, figure)
        flat = [part for limit in found for part in (limit.what, limit.value)]
        self.assertEqual(flat, list(wanted))


class L4Tests(Case):
    def test_one_backend(self) -> None:
        """The least of all."""
        reckoned = self.reckon(cluster(), listener())
        self.assert_limits(
            reckoned, CONNECTIONS, PORTS, 200, CLUSTER, 1000, LISTENER, 10000,
            DESCRIPTORS, (100_000 - OWN) // 2,
        )  # fmt: skip
        self.assertEqual(reckoned.figures(0), (CONNECTIONS, NEW))

    def test_places(self) -> None:
        """Each says where it is set."""
        reckoned = self.reckon(cluster(), listener())
        keys = {limit.what: limit.keys for limit in reckoned.limits(0, CONNECTIONS)}
        self.assertEqual(
            keys,
            {
                PORTS: (),
                DESCRIPTORS: (),
                CLUSTER: (("clusters", "web", "max_connections"),),
                LISTENER: (("listeners", 0, "max_connections"),),
            },
        )

    def test_headroom(self) -> None:
        """Linux's defaults, and ours."""
        reckoned = self.reckon(
            cluster(max_connections=60000),
            listener(max_connections=60000),
            headroom=0.02,
            machine={"ports": PortRange(32768, 60999), "descriptors": 1 << 20},
        )
        self.assertEqual(reckoned.limits(0, CONNECTIONS)[0].value, 27667)
        self.assertAlmostEqual(reckoned.limits(0, NEW)[0].value, 461.1, 1)

    def test_every_limit(self) -> None:
        """Each of them may be the least."""
        for what, value, found in (
            (CLUSTER, 7, self.reckon(cluster(max_connections=7), listener())),
            (LISTENER, 7, self.reckon(cluster(), listener(max_connections=7))),
            (DESCRIPTORS, 7, self.reckon(cluster(), listener(), machine={"descriptors": 31})),
            (PORTS, 7, self.reckon(cluster(), listener(), port_range=PortRange(1, 7))),
        ):
            with self.subTest(what):
                limit = found.limits(0, CONNECTIONS)[0]
                self.assertEqual((limit.what, limit.value), (what, value))

    def test_product(self) -> None:
        """Sources times backends, of the same family."""
        reckoned = self.reckon(
            cluster("web", "10.0.1.1:80", "10.0.1.1:81", "[fd00::9]:80"),
            listener(),
            addresses=(HERE, "10.0.0.2", HERE6),
        )
        self.assertEqual(reckoned.limits(0, CONNECTIONS)[0].value, 200 * (2 + 2 + 1))
        self.assertEqual(
            [way.sources for way in reckoned.ways["web"]],
            [(HERE, "10.0.0.2"), (HERE, "10.0.0.2"), (HERE6,)],
        )
        self.assertAlmostEqual(reckoned.limits(0, NEW)[0].value, 1000 / 60)

    def test_plain_binding(self) -> None:
        """A port is good for one connection, wherever that leads; without a list nothing is
        bound."""
        parts = cluster("web", "10.0.1.1:80", "10.0.1.2:80"), listener()
        for addresses, late, wanted in (
            ((HERE, "10.0.0.2"), True, 800),
            ((HERE, "10.0.0.2"), False, 400),
            ((), True, 400),
            ((), False, 400),
        ):
            reckoned = self.reckon(*parts, addresses=addresses, machine={"late": late})
            self.assertEqual(reckoned.limits(0, CONNECTIONS)[0].value, wanted)
            self.assertAlmostEqual(reckoned.limits(0, NEW)[0].value, wanted / 60)

    def test_backups(self) -> None:
        """They do not count, unless there is nobody else."""
        for backends, wanted in (
            (("10.0.1.1:80", "+10.0.1.2:80"), 200),
            (("+10.0.1.1:80", "+10.0.1.2:80"), 400),
        ):
            reckoned = self.reckon(cluster("web", *backends), listener())
            self.assertEqual(reckoned.limits(0, CONNECTIONS)[0].value, wanted)
            self.assertEqual(len(reckoned.ways["web"]), 2)

    def test_what_limits_most(self) -> None:
        """Of two backends one has few ports, and one few connections."""
        reckoned = self.reckon(
            cluster("a", "10.0.1.1:80"),
            cluster("b", "10.0.1.2:80", max_connections=150),
            listener("sni", "a", settings=SniSettings((SniRoute("b"),))),
        )
        self.assertEqual(
            [(limit.what, limit.value) for limit in reckoned.upstream(["a", "b"])],
            [(PORTS, 350), (CLUSTER, 1150)],
        )
        self.assertEqual(
            [(limit.what, limit.value) for limit in reckoned.upstream(["b"])],
            [(CLUSTER, 150), (PORTS, 200)],
        )

    def test_one_address_twice(self) -> None:
        """Two clusters share the ports, not their own limits."""
        for most, wanted in ((1000, (PORTS, 200)), (150, (PORTS, 200)), (50, (CLUSTER, 100))):
            reckoned = self.reckon(
                cluster("a", max_connections=most), cluster("b", max_connections=most), listener()
            )
            limit = reckoned.upstream(["a", "b"])[0]
            self.assertEqual((limit.what, limit.value), wanted)

    def test_unix(self) -> None:
        """No port is needed, and none rests."""
        reckoned = self.reckon(cluster("web", "unix:/a", "unix:/b"), listener())
        self.assert_limits(
            reckoned, CONNECTIONS, CLUSTER, 2000, LISTENER, 10000, DESCRIPTORS,
            (100_000 - OWN) // 2,
        )  # fmt: skip
        self.assert_limits(reckoned, NEW)
        self.assertEqual(reckoned.most_at_once("web"), 1000)

    def test_no_way(self) -> None:
        reckoned = self.reckon(cluster(), listener(), machine={"ways": {}})
        self.assert_limits(
            reckoned, CONNECTIONS, NO_WAY, 0, LISTENER, 10000, DESCRIPTORS, (100_000 - OWN) // 2
        )
        self.assert_limits(reckoned, NEW, NO_WAY, 0)
        (way,) = reckoned.ways["web"]
        self.assertTrue(way.lost)
        self.assertEqual((way.at_once, way.sources, way.per_second), (0, (), 0))
        one_of_two = self.reckon(
            cluster("web", "10.0.1.1:80", "10.0.1.2:80"),
            listener(),
            machine={"ways": {"10.0.1.2": HERE}},
        )
        self.assertEqual(one_of_two.limits(0, CONNECTIONS)[0].value, 200)

    def test_unknown_mode(self) -> None:
        """One backend connection for each client, as far as there is a cluster."""
        for name, wanted in (("web", 200), ("", 10000)):
            reckoned = self.reckon(cluster(), listener("telnet", name, settings=object()))
            self.assertEqual(reckoned.limits(0, CONNECTIONS)[0].value, wanted)
        odd = self.reckon(cluster(), listener("telnet", settings=HttpSettings(routes=7)))  # type: ignore[arg-type]
        self.assertEqual(odd.leads_to(0), ("web",))
        self.assertEqual(
            [known(mode) for mode in ("tcp", "sni", "http", "telnet")], [True] * 3 + [False]
        )
        self.assertEqual([layer(mode) for mode in ("sni", "http", "telnet")], ["l4", "l7", "l4"])


class NewTests(Case):
    """New connections a second."""

    def test_who_rests(self) -> None:
        for machine, settings, wanted in (
            ({}, {}, 200 / 60),
            ({}, {"close": "reset"}, None),
            ({"reuse": 1}, {}, 200),
            ({"reuse": 2}, {}, 200 / 60),
        ):
            with self.subTest(machine=machine, settings=settings):
                reckoned = self.reckon(cluster(**settings), listener(), machine=machine)
                found = [limit.value for limit in reckoned.limits(0, NEW)]
                self.assertEqual(found, [] if wanted is None else [wanted])

    def test_loopback(self) -> None:
        reckoned = self.reckon(cluster("web", "127.0.0.1:80"), listener(), machine={"reuse": 2})
        self.assert_limits(reckoned, NEW, TIME_WAIT, 200)

    def test_some_way_without_limit(self) -> None:
        """Whoever has no port there goes to the one that needs none."""
        reckoned = self.reckon(cluster("web", "10.0.1.1:80", "unix:/a"), listener())
        self.assert_limits(reckoned, NEW)

    def test_some_cluster_without_limit(self) -> None:
        """Those that have one still have it."""
        reckoned = self.reckon(
            cluster("a"),
            cluster("b", "10.0.1.2:80", close="reset"),
            listener("sni", "a", settings=SniSettings((SniRoute("b"),))),
        )
        self.assert_limits(reckoned, NEW, TIME_WAIT, 200 / 60)

    def test_http(self) -> None:
        """Only where connections do not last."""
        for settings, why in (
            ({}, ""),
            ({"pool": Pool("never")}, "pool.reuse"),
            ({"pool": Pool(max_idle=199)}, "pool.max_idle"),
            ({"pool": Pool(max_idle=200)}, ""),
            ({"proxy_protocol": "v2"}, "proxy_protocol"),
        ):
            with self.subTest(settings):
                reckoned = self.reckon(cluster(**settings), listener("http"))
                self.assertEqual(reckoned.wearing(0), {"web": why} if why else {})
                self.assertEqual(len(reckoned.limits(0, NEW)), bool(why))


class HttpTests(Case):
    def test_clients_and_requests(self) -> None:
        """Clients need no port."""
        reckoned = self.reckon(cluster(), listener("http"))
        self.assertEqual(reckoned.figures(0), (CLIENTS, REQUESTS, NEW))
        self.assert_limits(reckoned, CLIENTS, LISTENER, 10000, DESCRIPTORS, 100_000 - OWN - 1000)
        self.assert_limits(
            reckoned, REQUESTS, PORTS, 200, CLUSTER, 1000, LISTENER, 10000, DESCRIPTORS,
            (100_000 - OWN) // 2,
        )  # fmt: skip

    def test_descriptors(self) -> None:
        """Clients leave room for the connections to backends, or for one each."""
        for most, wanted in ((100, 855), (5000, 477)):
            reckoned = self.reckon(
                cluster(max_connections=most), listener("http"), machine={"descriptors": 1000}
            )
            self.assertEqual(reckoned.limits(0, CLIENTS)[0].value, wanted)
            self.assertLessEqual(reckoned.needs(0, CLIENTS, wanted), 955)
            self.assertGreater(reckoned.needs(0, CLIENTS, wanted + 1), 955)
            self.assertEqual(reckoned.needs(0, REQUESTS, wanted), 2 * wanted)

    def test_answers_alone(self) -> None:
        """It needs no backend at all."""
        settings = HttpSettings((HttpRoute(status=200),))
        reckoned = self.reckon(cluster(), listener("http", "", settings=settings))
        self.assertEqual(reckoned.figures(0), (CLIENTS,))
        self.assertEqual(reckoned.leads_to(0), ())

    def test_routes(self) -> None:
        settings = HttpSettings((HttpRoute("b"), HttpRoute(redirect="/"), HttpRoute("a")))
        reckoned = self.reckon(
            cluster("a"), cluster("b", "10.0.1.2:80"), listener("http", "a", settings=settings)
        )
        self.assertEqual(reckoned.leads_to(0), ("a", "b"))
        self.assertEqual(reckoned.limits(0, REQUESTS)[0].value, 400)


class HandOverTests(Case):
    def test_fallbacks(self) -> None:
        """They may be clusters."""
        settings = SniSettings((SniRoute("a"),), "b", "close", "refuse")
        reckoned = self.reckon(
            *(cluster(name) for name in ("a", "b", "c", "close", "refuse")),
            listener("sni", "", settings=settings),
        )
        self.assertEqual(reckoned.leads_to(0), ("a", "b"))

    def both(self, mode: str, listen: str = "") -> Capacity:
        settings = SniSettings((SniRoute(listener="there"), SniRoute(listener="nowhere")))
        return self.reckon(
            cluster("a", "10.0.1.1:80"),
            cluster("b", "10.0.1.2:80", "10.0.1.3:80"),
            listener("sni", "a", settings=settings, max_connections=5000),
            listener(mode, "b", "there", listen=listen, max_connections=100),
        )

    def test_tcp(self) -> None:
        """Who accepts a connection counts it, and it needs a backend like any other."""
        reckoned = self.both("tcp")
        self.assertEqual((reckoned.targets(0), reckoned.feeders(1)), ([1], [0]))
        self.assertEqual((reckoned.targets(1), reckoned.feeders(0)), ([], [0]))
        self.assertEqual(reckoned.carried_by(0), ("a", "b"))
        self.assertEqual(reckoned.limits(0, CONNECTIONS)[0].value, 600)
        self.assertEqual(reckoned.limits(1, CONNECTIONS)[0].value, 400)
        self.assertEqual(reckoned.let_in(1).value, 5000)
        self.assertEqual(reckoned.let_in(1).keys, (("listeners", 0, "max_connections"),))

    def test_http(self) -> None:
        """It needs none there."""
        reckoned = self.both("http")
        self.assertEqual((reckoned.carried_by(0), reckoned.behind(0)), (None, ("a",)))
        self.assert_limits(reckoned, CONNECTIONS, LISTENER, 5000, DESCRIPTORS, (100_000 - OWN) // 2)
        self.assertAlmostEqual(reckoned.limits(0, NEW)[0].value, 200 / 60)
        self.assertEqual(reckoned.limits(1, REQUESTS)[0].value, 400)

    def test_it_listens_as_well(self) -> None:
        reckoned = self.both("tcp", "tcp:81")
        self.assertEqual(reckoned.feeders(1), [1, 0])
        self.assertEqual(reckoned.let_in(1).value, 5100)


class DescriptorTests(Case):
    def test_usable(self) -> None:
        """Those that listen are taken off, and some for what else there is."""
        admin = evolve(config(cluster(), listener(), listener(name="b", listen="")), admin="tcp:1")
        for count, wanted in ((1000, 1000 - OWN - 1), (64, 64 - 8 - 14), (10, 0)):
            reckoned = Capacity(admin, facts(admin, descriptors=count))
            self.assertEqual(reckoned.usable(), wanted)


MANY = st.integers(1, 300)
HOSTS = ("10.0.1.1:80", "10.0.1.1:81", "10.0.1.2:80", "[fd00::9]:80", "unix:/a", "127.0.0.1:80")
NEAR = (HERE, "10.0.0.2", "10.0.0.3", HERE6, "fd00::2")


@st.composite
def clusters(draw: Any, name: str) -> Any:
    """A cluster of one to four backends."""
    hosts = draw(st.lists(st.sampled_from(HOSTS), min_size=1, max_size=4, unique=True))
    signs = draw(st.lists(st.sampled_from(("", "+")), min_size=len(hosts), max_size=len(hosts)))
    return cluster(
        name,
        *(sign + host for sign, host in zip(signs, hosts, strict=True)),
        max_connections=draw(MANY),
        close=draw(st.sampled_from(("fin", "reset"))),
        proxy_protocol=draw(st.sampled_from(("", "v2"))),
        pool=Pool(draw(st.sampled_from(("never", "safe"))), draw(st.none() | MANY)),
    )


@st.composite
def machines(draw: Any) -> tuple[Config, Facts]:
    """A configuration of two clusters and three listeners, and a machine."""
    made = config(
        draw(clusters("a")),
        draw(clusters("b")),
        listener("tcp", "a", max_connections=draw(MANY)),
        listener("http", "b", max_connections=draw(MANY)),
        listener(
            "sni",
            "b",
            max_connections=draw(MANY),
            settings=SniSettings(
                (SniRoute("a"), SniRoute(listener=draw(st.sampled_from(("tcp", "http")))))
            ),
        ),
        headroom=draw(st.sampled_from((0.0, 0.02, 0.9))),
        addresses=tuple(draw(st.lists(st.sampled_from(NEAR), max_size=4, unique=True))),
        port_range=draw(st.none() | st.just(PortRange(40000, 40019))),
    )
    machine = facts(
        made,
        descriptors=draw(st.integers(0, 2000)),
        reuse=draw(st.integers(0, 2)),
        ports=PortRange(40000, 40000 + draw(st.integers(19, 400))),
    )
    return made, machine


def figures(reckoned: Capacity) -> dict[tuple[int, str], float]:
    """All that are limited."""
    return {
        (index, figure): limits[0].value
        for index in range(len(reckoned.config.listeners))
        for figure in reckoned.figures(index)
        if (limits := reckoned.limits(index, figure))
    }


class RandomTests(SynchronousTestCase):
    @given(machines(), st.booleans())
    def test_least(self, made: tuple[Config, Facts], late: bool) -> None:
        """No figure is below zero, nor above any single limit."""
        reckoned = Capacity(made[0], evolve(made[1], late=late))
        for (index, figure), value in figures(reckoned).items():
            self.assertGreaterEqual(value, 0)
            limits = reckoned.limits(index, figure)
            self.assertEqual(value, min(limit.value for limit in limits))
            if figure == NEW:
                continue
            self.assertLessEqual(value, reckoned.let_in(index).value)
            self.assertLessEqual(reckoned.needs(index, figure, int(value)), reckoned.usable())
            names = {CONNECTIONS: reckoned.carried_by(index), REQUESTS: reckoned.leads_to(index)}
            if (behind := names.get(figure)) is not None:
                ways = reckoned.used(behind)
                self.assertLessEqual(value, sum(way.at_once for way in ways))
                ports = {budget.key: budget.limit for budget in reckoned.budgets}
                if all(way.ports is not None for way in ways):
                    used = {key for way in ways for key in way.budgets}
                    self.assertLessEqual(value, sum(ports[key] for key in used))

    @given(machines(), st.sampled_from(NEAR))
    def test_one_more_source(self, made: tuple[Config, Facts], source: str) -> None:
        """It makes nothing less."""
        before, machine = made
        sources = before.sources
        assume(source not in sources.addresses)
        more = evolve(sources, addresses=(*sources.addresses, source))
        fewer = figures(Capacity(before, machine))
        after = figures(Capacity(evolve(before, sources=more), machine))
        for what, value in fewer.items():
            # What is not limited at all is not less.
            self.assertGreaterEqual(after.get(what, value), value)
        # With more connections at once a pool may be too small that was not.
        http = {(index, NEW) for index, each in enumerate(before.listeners) if each.mode == "http"}
        self.assertLessEqual(after.keys() - fewer.keys(), http)
