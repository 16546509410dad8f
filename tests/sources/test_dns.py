"""proxykit.sources.dns: what is made of answers, and when it is asked again."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.names import dns as names
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxykit.model import Address, Backend
from proxykit.sources import dns
from proxykit.sources.dns import LONGEST_CHAIN, DnsSettings, DnsSource, find
from proxykit.sources.lookup import NoAnswer
from tests.sockets import HOST, TIMEOUT, ClockedReactor, hear, until
from tests.sources.name_servers import (
    NO_NAME,
    FakeResolver,
    NameServer,
    a,
    alias,
    message,
    srv,
)

WEB, SERVICE = "web.test", "_http._tcp.web.test"
A, AAAA, SRV = names.A, names.AAAA, names.SRV


def backend(host: str, port: int = 80, weight: int = 1, backup: bool = False) -> Backend:
    return Backend(Address(host, port), weight, backup, f"{WEB}:{port}")


class SettingsTests(SynchronousTestCase):
    def test_what_goes_together(self) -> None:
        for settings, words in (
            ({}, 'expected a port, which A records do not say, or type = "SRV"'),
            ({"type": "A+AAAA"}, "expected a port, which A+AAAA records do not say"),
            ({"type": "SRV", "port": 80}, "expected no port"),
            ({"port": 80, "min_ttl": 2.0, "max_ttl": 1.0}, "min_ttl that is not above max_ttl"),
        ):
            error = self.assertRaises(ValueError, DnsSettings, WEB, **settings)
            self.assertIn(words, str(error))
        DnsSettings(WEB, 80)
        DnsSettings(SERVICE, type="SRV")

    def test_names(self) -> None:
        for name, good in (
            ("a", True),
            ("a.b-c.D1.", True),
            ("_http._tcp.web.internal", True),
            ("a" * 63 + ".test", True),
            (".".join(["a" * 49] * 5) + ".abc", True),
            (".".join(["a" * 49] * 5) + ".abcd", False),
            ("a" * 64 + ".test", False),
            ("", False),
            (".", False),
            ("a..b", False),
            ("-a.test", False),
            ("a b", False),
            ("é.test", False),
            ("10.0.0.1", False),
            ("web.test:80", False),
        ):
            with self.subTest(name):
                self.assertIs(dns._is_name(name), good)

    def test_servers(self) -> None:
        for text, expected in (
            ("10.0.0.53", ("10.0.0.53", 53)),
            ("10.0.0.53:5353", ("10.0.0.53", 5353)),
            ("fd00::0053", ("fd00::53", 53)),
            ("[fd00::53]:5353", ("fd00::53", 5353)),
        ):
            self.assertEqual(dns.server(text), expected)
        for text in ("", "ns.test", "ns.test:53", "10.0.0.53:0", "unix:/run/ns"):
            error = self.assertRaises(ValueError, dns.server, text)
            self.assertIn("expected an IP address such as 10.0.0.53", str(error))


class FindCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.resolver = FakeResolver()

    def find(self, name: str = WEB, **settings: Any) -> Any:
        if settings.get("type") != "SRV":
            settings.setdefault("port", 80)
        made: Any = find(DnsSettings(name, **settings), self.resolver)  # type: ignore[arg-type]
        return self.successResultOf(Deferred.fromCoroutine(made))

    def reason(self, name: str = WEB, **settings: Any) -> str:
        """Why nothing is found."""
        settings.setdefault("port", None if settings.get("type") == "SRV" else 80)
        made: Any = find(DnsSettings(name, **settings), self.resolver)  # type: ignore[arg-type]
        return str(self.failureResultOf(Deferred.fromCoroutine(made), NoAnswer).value)

    def lay_down(self, name: str, kind: int, *answers: Any) -> None:
        self.resolver.lay_down(name, kind, *answers)


class AddressTests(FindCase):
    def test_addresses(self) -> None:
        """In an order of their own, each once, for the least of their times."""
        records = a(WEB, "10.0.0.2", 30), a(WEB, "10.0.0.1", 20), a(WEB, "10.0.0.2", 40)
        self.lay_down(WEB, A, message(*records))
        answer = self.find()
        self.assertEqual(answer.backends, (backend("10.0.0.1"), backend("10.0.0.2")))
        self.assertEqual(answer.ttl, 20)
        self.assertEqual(self.resolver.asked, [(WEB, A)])

    def test_names_are_compared_without_case(self) -> None:
        self.lay_down(WEB, A, message(a("WEB.Test", "10.0.0.1")))
        answer = self.find("Web.TEST.")
        self.assertEqual(answer.backends[0].address, Address("10.0.0.1", 80))
        self.assertEqual(answer.backends[0].name, "Web.TEST:80")

    def test_both_families(self) -> None:
        self.lay_down(WEB, A, message(a(WEB, "10.0.0.1", 30)))
        self.lay_down(WEB, AAAA, message(a(WEB, "fd00::1", 20)))
        answer = self.find(type="A+AAAA", port=81)
        self.assertEqual(answer.backends, (backend("10.0.0.1", 81), backend("fd00::1", 81)))
        self.assertEqual(answer.ttl, 20)
        self.assertEqual(self.find(type="AAAA").backends, (backend("fd00::1"),))

    def test_one_of_both_is_enough(self) -> None:
        """But not where the other one cannot be known."""
        self.lay_down(WEB, AAAA, message(a(WEB, "fd00::1")))
        self.assertEqual(len(self.find(type="A+AAAA").backends), 1)
        self.lay_down(WEB, A, NoAnswer("broken"))
        self.assertEqual(self.reason(type="A+AAAA"), "broken")

    def test_none(self) -> None:
        self.assertEqual(self.reason(), "web.test has no A record")
        self.lay_down(WEB, A, NO_NAME)
        self.assertEqual(self.reason(), "there is no name web.test")

    def test_addresses_of_nobody(self) -> None:
        """Nothing listens at 0.0.0.0; a connect to it goes to this machine."""
        records = a(WEB, "0.0.0.0"), a(WEB, "224.0.0.1"), a(WEB, "10.0.0.1")
        self.lay_down(WEB, A, message(*records))
        self.assertEqual(self.find().backends, (backend("10.0.0.1"),))
        self.lay_down(WEB, A, message(*records[:2]))
        self.assertEqual(self.reason(), "web.test has no A record")

    def test_records_of_others(self) -> None:
        """Of another name, another class, and of types that were not asked for."""
        made = message(a("other.test", "10.0.0.9"), a(WEB, "fd00::1"), a(WEB, "10.0.0.8"))
        made.answers[2].cls = names.CH
        made.answers.append(names.RRHeader(WEB, A, payload=names.UnknownRecord(b"x")))
        self.lay_down(WEB, A, made)
        self.assertEqual(self.reason(), "web.test has no A record")

    def test_odd_times(self) -> None:
        for ttl, expected in ((0, 0), (2**31 - 1, 2**31 - 1), (2**31, 0)):
            self.lay_down(WEB, A, message(a(WEB, "10.0.0.1", ttl)))
            self.assertEqual(self.find().ttl, expected)


class AliasTests(FindCase):
    def test_in_one_answer(self) -> None:
        """Its time counts as well; the name stays the one that was asked for."""
        chain = alias(WEB, "b.test", 5), alias("b.test", "C.test"), a("c.test", "10.0.0.1")
        self.lay_down(WEB, A, message(*reversed(chain)))
        answer = self.find()
        self.assertEqual((answer.backends, answer.ttl), ((backend("10.0.0.1"),), 5))

    def test_in_several(self) -> None:
        """From a server that knows only its own names."""
        self.lay_down(WEB, A, message(alias(WEB, "b.test")))
        self.lay_down("b.test", A, message(alias("b.test", "c.test")))
        self.lay_down("c.test", A, message(a("c.test", "10.0.0.1", 7)))
        self.assertEqual(self.find().ttl, 7)
        self.assertEqual([name for name, _ in self.resolver.asked], [WEB, "b.test", "c.test"])

    def test_to_nothing(self) -> None:
        self.lay_down(WEB, A, message(alias(WEB, "b.test"), code=names.ENAME))
        self.assertEqual(self.reason(), "there is no name b.test")
        self.lay_down(WEB, A, message(alias(WEB, "b.test")))
        self.assertEqual(self.reason(), "web.test has no A record")

    def test_in_a_circle(self) -> None:
        self.lay_down(WEB, A, message(alias(WEB, "b.test")))
        self.lay_down("b.test", A, message(alias("b.test", WEB)))
        self.assertEqual(self.reason(), "web.test leads from alias to alias, and nowhere")
        self.assertEqual(len(self.resolver.asked), LONGEST_CHAIN)
        self.lay_down(WEB, A, message(alias(WEB, "b.test"), alias("b.test", WEB)))
        self.assertEqual(self.reason(), "web.test has no A record")


class ServiceTests(FindCase):
    def services(self, *records: Any, extra: tuple[Any, ...] = (), **more: Any) -> Any:
        self.lay_down(SERVICE, SRV, message(*records, extra=extra))
        return self.find(SERVICE, type="SRV", **more)

    def test_services(self) -> None:
        """The lowest number is the one that is wanted most; all others are for when it is gone."""
        for number in range(1, 4):
            self.lay_down(f"b{number}.test", A, message(a(f"b{number}.test", f"10.0.0.{number}")))
        answer = self.services(
            srv(SERVICE, "b3.test", 83, 30, 7),
            srv(SERVICE, "B1.test", 81, 10, 2),
            srv(SERVICE, "b2.test", 82, 20, 0, ttl=3),
        )
        self.assertEqual(
            answer.backends,
            (
                backend("10.0.0.1", 81, 2),
                backend("10.0.0.2", 82, 1, True),
                backend("10.0.0.3", 83, 7, True),
            ),
        )
        self.assertEqual(answer.ttl, 3)

    def test_addresses_that_came_along(self) -> None:
        answer = self.services(
            srv(SERVICE, "b1.test", 80),
            srv(SERVICE, "b1.test", 81),
            extra=(a("b1.test", "fd00::1"), a("B1.test", "10.0.0.1", 4), a("x.test", "10.0.0.9")),
        )
        self.assertEqual(answer.backends, (backend("10.0.0.1", 80), backend("10.0.0.1", 81)))
        self.assertEqual(answer.ttl, 4)
        self.assertEqual(self.resolver.asked, [(SERVICE, SRV)])

    def test_one_family_of_each(self) -> None:
        """A server that has both is one backend, not two."""
        self.lay_down("b1.test", A, message(a("b1.test", "10.0.0.1")))
        self.lay_down("b1.test", AAAA, message(a("b1.test", "fd00::1")))
        self.lay_down("b2.test", AAAA, message(a("b2.test", "fd00::2")))
        answer = self.services(srv(SERVICE, "b1.test", 80), srv(SERVICE, "b2.test", 80))
        self.assertEqual(answer.backends, (backend("10.0.0.1"), backend("fd00::2")))

    def test_weights(self) -> None:
        """They keep their proportions, as far as there are whole numbers for that."""
        extra = tuple(a(f"b{n}.test", f"10.0.0.{n}") for n in range(4))
        for weights, expected in (
            ((0, 1, 256, 3), (1, 1, 256, 3)),
            ((0, 65535, 32768, 100), (1, 256, 128, 1)),
            ((0, 0, 0, 0), (1, 1, 1, 1)),
        ):
            records = (srv(SERVICE, f"b{n}.test", 80, 0, w) for n, w in enumerate(weights))
            answer = self.services(*records, extra=extra)
            self.assertEqual(tuple(each.weight for each in answer.backends), expected)

    def test_the_same_twice(self) -> None:
        """As the more wanted one has it."""
        extra = (a("b.test", "10.0.0.1"),)
        records = srv(SERVICE, "b.test", 80, 9, 1), srv(SERVICE, "b.test", 80, 0, 5)
        answer = self.services(*records, extra=extra)
        self.assertEqual(answer.backends, (backend("10.0.0.1", 80, 5),))

    def test_no_such_service(self) -> None:
        """The root for a target says so; nothing listens at port 0."""
        self.lay_down(SERVICE, SRV, message(srv(SERVICE, "", 80)))
        self.assertEqual(self.reason(SERVICE, type="SRV"), f"{SERVICE} has no SRV record")
        self.lay_down("b.test", A, message(a("b.test", "10.0.0.1")))
        self.lay_down(SERVICE, SRV, message(srv(SERVICE, "b.test", 0)))
        self.assertEqual(self.reason(SERVICE, type="SRV"), f"{SERVICE} has no SRV record")
        self.lay_down(SERVICE, SRV, NO_NAME)
        self.assertEqual(self.reason(SERVICE, type="SRV"), f"there is no name {SERVICE}")

    def test_half_an_answer(self) -> None:
        """Where one target cannot be known, the others are not all there is."""
        records = srv(SERVICE, "b1.test", 80), srv(SERVICE, "b2.test", 80)
        extra = (a("b1.test", "10.0.0.1"),)
        for answer, why in (
            (NoAnswer("broken"), "broken"),
            (NO_NAME, "there is no name b2.test"),
            (message(), "b2.test has no address"),
        ):
            self.lay_down("b2.test", A, answer)
            self.lay_down("b2.test", AAAA, answer)
            self.lay_down(SERVICE, SRV, message(*records, extra=extra))
            self.assertEqual(self.reason(SERVICE, type="SRV"), why)


class WatchTests(SynchronousTestCase):
    """With the answers of a fake."""

    def setUp(self) -> None:
        self.resolver = FakeResolver()
        self.clock = Clock()
        self.told: list[list[str]] = []
        self.lines = hear(self)
        self.made: list[Any] = []

        def resolver(*arguments: Any) -> FakeResolver:
            self.made.append(arguments)
            return self.resolver

        self.patch(dns, "Resolver", resolver)

    def answers(self, *answers: Any) -> None:
        """A pair is the time of one address, and the address."""
        self.resolver.lay_down(
            WEB, A, *(message(a(WEB, x[1], x[0])) if isinstance(x, tuple) else x for x in answers)
        )

    def watch(self, **settings: Any) -> None:
        def tell(backends: tuple[Backend, ...]) -> None:
            self.told.append([each.address.host for each in backends])

        made = DnsSettings(WEB, 80, **settings)
        self.stop = DnsSource().watch(made, tell, self.clock, "web")

    def assert_asked(self, count: int, after: float) -> None:
        """So often in all; once more when so many seconds have passed, and not before."""
        self.assertEqual(len(self.resolver.asked), count)
        (call,) = self.clock.getDelayedCalls()
        self.assertAlmostEqual(call.getTime() - self.clock.seconds(), after)

    def test_who_is_asked(self) -> None:
        self.answers((60, "10.0.0.1"))
        self.watch(servers=("10.0.0.53", "[::1]:5353"), timeout=3.0)
        self.assertEqual(self.made, [([("10.0.0.53", 53), ("::1", 5353)], 3.0, self.clock)])

    def test_time_to_live(self) -> None:
        """Nothing is told that has not changed."""
        self.answers((60, "10.0.0.1"), (50, "10.0.0.1"), (40, "10.0.0.2"))
        self.watch()
        self.assertEqual(self.told, [["10.0.0.1"]])
        self.assertEqual(self.lines, ["web: dns: 1 backend from web.test"])
        self.assert_asked(1, 60)
        self.clock.advance(60)
        self.assert_asked(2, 50)
        self.assertEqual((len(self.told), len(self.lines)), (1, 1))
        self.clock.advance(50)
        self.assert_asked(3, 40)
        self.assertEqual(self.told, [["10.0.0.1"], ["10.0.0.2"]])
        self.assertEqual(len(self.lines), 2)

    def test_bounds(self) -> None:
        self.answers((0, "10.0.0.1"), (999, "10.0.0.1"))
        self.watch(min_ttl=2.0, max_ttl=10.0)
        self.assert_asked(1, 2)
        self.clock.advance(2)
        self.assert_asked(2, 10)

    def test_failures(self) -> None:
        """The last good answer stands, ever less often another one is asked for, and the log has
        one line, and one when it is over."""
        self.answers(
            (1, "10.0.0.1"), NoAnswer("gone"), NO_NAME, message(), NoAnswer("gone"), (9, "10.0.0.1")
        )
        self.watch(retry_max=5.0)
        self.lines.clear()
        self.clock.advance(1)
        for count, delay in ((2, 1), (3, 2), (4, 4), (5, 5)):
            self.assert_asked(count, delay)
            self.clock.advance(delay)
        self.assert_asked(6, 9)
        self.assertEqual(self.told, [["10.0.0.1"]])
        self.assertEqual(
            self.lines,
            [
                "web: dns: gone; the backends stay those of before",
                "web: dns: 1 backend from web.test, after 4 failed tries",
            ],
        )
        self.lines.clear()
        self.answers(NoAnswer("again"))
        self.clock.advance(9)
        self.assert_asked(7, 1)
        self.assertEqual(self.lines, ["web: dns: again; the backends stay those of before"])

    def test_for_ever(self) -> None:
        self.answers(NoAnswer("gone"))
        self.watch()
        self.clock.pump([30.0] * 3000)
        self.assertGreater(len(self.resolver.asked), 2900)
        self.assertEqual(self.lines, ["web: dns: gone; there are no backends from it yet"])
        self.answers((5, "10.0.0.1"))
        self.clock.advance(30)
        self.assertEqual(self.told, [["10.0.0.1"]])

    def test_bugs(self) -> None:
        """What is unexpected is logged, and does not end it."""
        self.answers(ZeroDivisionError("bug"), (5, "10.0.0.1"))
        self.watch()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assert_asked(1, 1)
        self.clock.advance(1)
        self.assertEqual(self.told, [["10.0.0.1"]])

    def test_a_bug_of_who_is_told(self) -> None:
        """Nor does it."""
        self.answers((5, "10.0.0.1"), (6, "10.0.0.1"))

        def tell(backends: tuple[Backend, ...]) -> None:
            raise ZeroDivisionError("bug")

        DnsSource().watch(DnsSettings(WEB, 80), tell, self.clock, "web")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.clock.advance(5)
        self.assert_asked(2, 6)

    def test_stop(self) -> None:
        """Between two questions, and during one."""
        self.answers((5, "10.0.0.1"))
        self.watch()
        self.stop()
        self.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        cancelled: list[object] = []
        answer: Deferred[Any] = Deferred(cancelled.append)
        self.answers(answer)
        self.told.clear()
        self.watch()
        self.stop()
        self.assertEqual(cancelled, [answer])
        self.assertEqual((self.clock.getDelayedCalls(), self.told), ([], []))


class RealTests(TestCase):
    """With a name server that is killed and comes back."""

    timeout = TIMEOUT

    async def test_a_day(self) -> None:
        extra = a("b1.test", "10.0.0.1", 5), a("b2.test", "10.0.0.2", 5)
        server = NameServer(self, srv(SERVICE, "b1.test", 80, ttl=5), *extra)
        clock, told, lines = ClockedReactor(), [], hear(self)
        settings = DnsSettings(SERVICE, type="SRV", servers=(f"{HOST}:{server.port}",))
        stop = DnsSource().watch(settings, told.append, clock, "web")
        await until(lambda: told)
        self.assertEqual(told, [(backend("10.0.0.1"),)])
        # More than fit into a datagram.
        many = [srv(SERVICE, f"{n}.a-name-that-takes-its-time.test", 80) for n in range(30)]
        more = [a(f"{n}.a-name-that-takes-its-time.test", f"10.0.1.{n}") for n in range(30)]
        server.has(*many, *more)
        clock.advance(5)
        await until(lambda: len(told) == 2)
        self.assertEqual(len(told[1]), 30)
        self.assertEqual(server.factory.asked["tcp"], 1)
        lines.clear()
        await server.stop()
        clock.advance(60)
        await until(lambda: lines)
        why = f"{HOST}:{server.port}: Connection refused"
        self.assertEqual(lines, [f"web: dns: {why}; the backends stay those of before"])
        stop()
        self.assertEqual(clock.getDelayedCalls(), [])
        self.assertEqual(len(told), 2)
