"""What differs between two configurations."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from proxykit.model import Address, Backend, Cluster, Config, Listener, Pool, Sources
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.changes import paired, said
from proxykit.upkeep import Health


def listener(name: str, listen: str = "", **more: object) -> Listener:
    return Listener(name, listen, "tcp", "web", **more)  # type: ignore[arg-type]


ANY = "tcp:0"


class PairedTests(SynchronousTestCase):
    def check(self, before: list[Listener], after: list[Listener], found: list[int | None]) -> None:
        """:param found: for each of ``after`` which of ``before`` it was."""
        former, gone = paired(before, after)
        self.assertEqual(former, [None if each is None else before[each] for each in found])
        left = [each for index, each in enumerate(before) if index not in found]
        self.assertEqual(gone, left)

    def test_table(self) -> None:
        a, b = listener("a", "tcp:1"), listener("b", "tcp:2")
        moved, renamed = evolve(a, listen="tcp:3"), evolve(a, name="c")
        tables: tuple[tuple[list[Listener], list[Listener], list[int | None]], ...] = (
            ([], [a], [None]),
            ([a], [], []),
            ([a, b], [b, a], [1, 0]),
            ([a], [evolve(a, max_connections=1)], [0]),
            ([a], [moved], [None]),
            ([a, b], [renamed, b], [0, 1]),
            # Their names change places: the ports stay where they are.
            ([a, b], [evolve(a, name="b"), evolve(b, name="a")], [0, 1]),
            # Any free port is another one each time, so it goes by the name.
            ([listener("a", ANY)], [listener("b", ANY)], [None]),
            ([listener("a", ANY), listener("b", ANY)], [listener("b", ANY)], [1]),
            # And so does one without a place of its own.
            ([listener("a")], [listener("a"), listener("b")], [0, None]),
            ([listener("a")], [listener("b")], [None]),
            ([listener("a")], [listener("a", "tcp:1")], [None]),
        )
        for before, after, found in tables:
            self.check(before, after, found)


class SaidTests(SynchronousTestCase):
    def test_nothing(self) -> None:
        config = Config((listener("a", "tcp:1"),), (Cluster("web", ()),))
        self.assertEqual(said(config, config), [])

    def test_values(self) -> None:
        """Names are those of a file; what is long, or a table on one side only, is only named."""
        web = Cluster("web", ())
        before = Config((listener("a", settings=TcpSettings()),), (web,))
        after = Config(
            (listener("a", settings=TcpSettings(idle_timeout=0.5)),),
            (evolve(web, pool=Pool(max_idle=3), health=Health(), host="x" * 80),),
        )
        self.assertEqual(
            said(before, after),
            [
                "cluster web: pool.max_idle unset -> 3, host changed, health changed",
                "listener a: idle_timeout 600 -> 0.5",
            ],
        )

    def test_seconds(self) -> None:
        """To the last digit: what differs looks different."""
        before = Config((), (Cluster("web", (), connect_timeout=5.0, queue_timeout=1.0),))
        after = Config(
            (), (Cluster("web", (), connect_timeout=5.0000001, queue_timeout=2592000.0),)
        )
        self.assertEqual(
            said(before, after),
            ["cluster web: connect_timeout 5 -> 5.0000001, queue_timeout 1 -> 2592000"],
        )

    def test_names_of_the_admin_listener(self) -> None:
        config = Config((), ())
        self.assertEqual(said(config, evolve(config, admin_hosts=("a",))), ["admin.hosts changed"])

    def test_everything(self) -> None:
        one, two, three = (Backend(Address("10.0.0.1", port)) for port in (1, 2, 3))
        before = Config(
            (listener("a", "tcp:1"), listener("b", "tcp:2"), listener("inner")),
            (Cluster("web", (one, two)), Cluster("old", (one,)), Cluster("same", (one,))),
            admin_token="x" * 16,
        )
        after = Config(
            (evolve(before.listeners[0], max_connections=5, name="z"), listener("c", "tcp:3")),
            (
                Cluster("same", (one,)),
                Cluster("web", (evolve(one, weight=2), three), queue=7, panic=True),
                Cluster("new", (one,)),
            ),
            admin="tcp:9",
            admin_token="y" * 16,
            sources=Sources(headroom=0.1),
            drain_timeout=1.0,
        )
        self.assertEqual(
            said(before, after),
            [
                "drain_timeout 30 -> 1",
                'admin "" -> "tcp:9"',
                "admin.token changed",
                "sources.headroom 0.02 -> 0.1",
                "cluster web: +10.0.0.1:3, -10.0.0.1:2, 10.0.0.1:1 weight 1 -> 2,"
                " queue 1000 -> 7, panic false -> true",
                "cluster new is new",
                "cluster old is gone",
                'listener z: name "a" -> "z", max_connections 10000 -> 5',
                "listener c is new (tcp:3)",
                "listener b (tcp:2) is gone",
                "listener inner is gone",
            ],
        )
