"""Plans of clusters whose backends, or some of them, only a source will find."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.capacity import (
    CLIENTS,
    CLUSTER,
    CONNECTIONS,
    DESCRIPTORS,
    LISTENER,
    NEW,
    REQUESTS,
    Capacity,
    Limit,
)
from proxykit.core.plan import Plan, make_plan
from proxykit.core.traps import HINT, Trap
from proxykit.model import Cluster, Pool
from proxykit.strict import dotted
from proxykit.upkeep import Discover
from tests.core.plans import HERE, HERE6, OWN, cluster, config, facts, listener

FOUND = Discover("dns")
KEPT = "connections to backends are kept, and used again"


def empty(name: str = "web", **settings: Any) -> Cluster:
    """A cluster that names no backend itself."""
    return evolve(cluster(name, **settings), backends=(), discover=FOUND)


class PlanTests(SynchronousTestCase):
    def plan(self, *parts: Any, **sources: Any) -> Plan:
        made = config(*parts, **sources)
        return make_plan(made, facts(made))

    def figures(self, plan: Plan) -> dict[str, tuple[float | None, str]]:
        return {
            each.what: (each.value, each.limited_by.what if each.limited_by else "")
            for each in plan.hops[0].figures
        }

    def assert_said(self, trap: Trap) -> None:
        self.assertEqual(
            (trap.level, trap.kind, dotted(trap.key)),
            (HINT, "discovered", "clusters.web.discover"),
        )
        self.assertIn("the backends that dns finds are not known beforehand", trap.text)

    def test_connections(self) -> None:
        """What is known is what limits them; it makes no difference that some are named."""
        for web in (empty(), cluster(discover=FOUND)):
            plan = self.plan(web, listener(max_connections=300))
            self.assertEqual(self.figures(plan), {CONNECTIONS: (300, LISTENER), NEW: (None, "")})
            for figure in plan.hops[0].figures:
                self.assertEqual(figure.note, "not all backends are known beforehand")
            self.assertEqual(len(plan.hops[0].ways), len(web.backends))
            (trap,) = plan.traps
            self.assert_said(trap)

    def test_requests(self) -> None:
        for pool, note in (
            (Pool(), KEPT),
            (
                Pool("never"),
                "where the proxy closes first; connections do not last (clusters.web.pool.reuse)",
            ),
        ):
            plan = self.plan(empty(pool=pool), listener("http", max_connections=300))
            figures = self.figures(plan)
            self.assertEqual(figures[REQUESTS], (300, LISTENER))
            self.assertEqual(figures[NEW], (None, ""))
            notes = [each.note for each in plan.hops[0].figures]
            self.assertEqual(notes, ["", "not all backends are known beforehand", note])

    def test_descriptors(self) -> None:
        plan = self.plan(empty(), listener(max_connections=10**6))
        self.assertEqual(self.figures(plan)[CONNECTIONS], (49977, DESCRIPTORS))

    def test_room_for_backends(self) -> None:
        """There may be as many connections to backends as there are clients, whatever is known."""
        web = cluster(max_connections=50, discover=FOUND)
        made = config(web, listener("http", max_connections=10**6))
        reckoned = Capacity(made, facts(made, descriptors=1000 + OWN))
        self.assertEqual(reckoned.limits(0, CLIENTS)[0], Limit(DESCRIPTORS, 500))
        self.assertEqual(reckoned.needs(0, CLIENTS, 500), 1000)

    def test_small_pool(self) -> None:
        """Who is not known yet may have as many connections as the cluster allows."""
        web = empty(max_connections=50, pool=Pool(max_idle=49))
        plan = self.plan(web, listener("http", max_connections=300))
        self.assertEqual([trap.kind for trap in plan.traps][:2], ["discovered", "small-pool"])
        self.assertIn("(clusters.web.pool.max_idle)", plan.hops[0].figures[2].note)
        for most in (50, None):
            kept = evolve(web, pool=Pool(max_idle=most))
            plan = self.plan(kept, listener("http", max_connections=300))
            self.assertEqual(plan.hops[0].figures[2].note, KEPT)

    def test_another_cluster(self) -> None:
        """One whose backends are all named is reckoned with as ever."""
        parts = empty("other"), cluster(), listener(max_connections=300)
        figures = self.figures(self.plan(*parts))
        self.assertEqual(figures[CONNECTIONS][0], 200)
        self.assertEqual(figures[NEW][0], 200 / 60)

    def test_found(self) -> None:
        """What a source finds at this moment counts as if it were named; once, where it is."""
        named = cluster("web", "10.0.1.1:80", "10.0.1.2:80", "+10.0.1.3:80", max_connections=50)
        for mode in ("tcp", "http"):
            made = config(named, listener(mode))
            as_named = make_plan(made, facts(made))
            for count in range(3):
                web = evolve(named, backends=named.backends[:count], discover=FOUND)
                machine = evolve(facts(made), found={"web": named.backends})
                plan = make_plan(config(web, listener(mode)), machine)
                self.assertEqual(plan.hops, as_named.hops)
                self.assertIn((100, CLUSTER), self.figures(plan).values())
                (text,) = (trap.text for trap in plan.traps if trap.kind == "discovered")
                self.assertIn("that dns finds at this moment are counted: 3;", text)

    def test_found_elsewhere(self) -> None:
        """That one cluster's are known tells nothing of another's."""
        other, web = empty("other"), cluster()
        made = config(other, web, listener(cluster="other"))
        plan = make_plan(made, evolve(facts(made), found={"web": web.backends}))
        self.assertEqual(self.figures(plan)[CONNECTIONS], (10000, LISTENER))

    def test_sources(self) -> None:
        """Who knows what families there will be?"""
        plan = self.plan(
            cluster(discover=FOUND), listener(max_connections=9), addresses=(HERE, HERE6)
        )
        (trap,) = plan.traps
        self.assert_said(trap)

    def test_unknown(self) -> None:
        made = config(empty("found"), cluster("named"), listener())
        reckoned = Capacity(made, facts(made))
        for names, unknown in (((), False), (("named",), False), (("named", "found"), True)):
            self.assertIs(reckoned.unknown(names), unknown)
