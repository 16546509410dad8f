"""proxykit.net.checks: when backends are asked, and what is said where they cannot be."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxykit.core.balance import RoundRobin
from proxykit.model import Address, Backend
from proxykit.net.checks import ranges
from proxykit.upkeep import Health
from tests.http_sockets import SILENCE, head, start_origin
from tests.net.checking import OK, Bench
from tests.sockets import (
    HOST,
    TIMEOUT,
    free_port,
    start_backend,
    turns,
    unanswering,
    until,
)


class WhenTests(TestCase):
    """Now and then, as backends come and go."""

    timeout = TIMEOUT

    async def start(self, **more: Any) -> Bench:
        self.origin = await start_origin(self, (OK,))
        return Bench(self, self.origin.address, path="/", **more)

    async def asked(self, bench: Bench, count: int) -> None:
        """So many checks in all, and no more."""
        await until(lambda: len(self.origin.requests) >= count)
        await until(lambda: bench.books == (0, 0, 0))
        self.assertEqual(len(self.origin.requests), count)

    async def test_again_and_again(self) -> None:
        bench = await self.start()
        for seconds, count in ((1.9, 0), (0.1, 1), (3.9, 1), (0.1, 2), (4.0, 3)):
            bench.clock.advance(seconds)
            await self.asked(bench, count)

    async def test_jitter(self) -> None:
        numbers = [0.0, 1.0, 0.0, 0.5]
        bench = await self.start(chance=lambda: numbers.pop(0), jitter=0.25)
        for seconds, count in ((0, 1), (4.9, 1), (0.1, 2), (2.9, 2), (0.1, 3), (3.9, 3), (0.1, 4)):
            numbers = numbers or [0.5]
            bench.clock.advance(seconds)
            await self.asked(bench, count)

    async def test_spread(self) -> None:
        """The first ones do not come all at once."""
        numbers = [0.1, 0.6, 0.9]
        self.origin = await start_origin(self, (OK,))
        others = [Address(HOST, free_port(self)) for _ in range(2)]
        bench = Bench(self, *others, self.origin.address, chance=lambda: numbers.pop(0))
        times = sorted(each.getTime() for each in bench.timers())
        self.assertEqual([round(each, 3) for each in times], [0.4, 2.4, 3.6])

    async def test_recovers(self) -> None:
        backend = await start_origin(self, (head("Content-Length: 0", status="500 No"),), (OK,))
        bench = Bench(self, backend.address, path="/")
        health, _ = await bench.checked()
        self.assertEqual((health, bench.cluster.well), ("down", 0))
        bench.clock.advance(4.0)
        await until(lambda: bench.health() == ("up", None))
        self.assertEqual(bench.cluster.well, 1)

    async def test_comes_and_goes(self) -> None:
        bench = await self.start()
        second = await start_origin(self, (OK,))
        bench.cluster.discovered((Backend(second.address),))
        bench.clock.advance(2.0)
        await until(lambda: second.requests)
        await self.asked(bench, 1)
        bench.cluster.discovered(())
        bench.clock.advance(4.0)
        await self.asked(bench, 2)
        self.assertEqual(len(second.requests), 1)

    async def test_goes_while_it_is_asked(self) -> None:
        for address in (unanswering(self), (await start_origin(self, (SILENCE,))).address):
            bench = Bench(self, address, path="/")
            bench.clock.advance(2.0)
            await turns()
            self.assertEqual(bench.books[:2], (1, 1))
            bench.cluster.reconfigure(evolve(bench.config, backends=()), RoundRobin)
            await until(lambda bench=bench: bench.books == (0, 0, 0))
            self.assertEqual(bench.cluster.leaving, {})

    async def test_drained_ones_are_asked(self) -> None:
        bench = await self.start()
        bench.cluster.set_state(self.origin.address, "drain")
        self.assertEqual(await bench.checked(), ("up", None))

    async def test_no_more(self) -> None:
        bench = Bench(self, Address(HOST, free_port(self)))
        await bench.checked()
        self.assertEqual(bench.cluster.well, 0)
        bench.cluster.reconfigure(evolve(bench.config, health=None), RoundRobin)
        self.assertEqual((bench.health(), bench.cluster.well), (("unknown", None), 1))
        self.assertEqual(bench.timers(), [])
        bench.cluster.discovered((Backend(Address(HOST, 1)),))
        self.assertEqual(bench.timers(), [])

    async def test_from_now_on(self) -> None:
        self.origin = await start_origin(self, (OK,))
        bench = Bench(self, self.origin.address, health=None)
        self.assertEqual(bench.timers(), [])
        health = Health("/", interval=4.0)
        bench.cluster.reconfigure(evolve(bench.config, health=health), RoundRobin)
        self.assertEqual(await bench.checked(), ("up", None))
        (timer,) = bench.timers()
        bench.cluster.reconfigure(evolve(bench.config, health=health, queue=1), RoundRobin)
        self.assertTrue(timer.active())
        health = evolve(health, interval=1.0)  # no need to wait for what was set before
        bench.cluster.reconfigure(evolve(bench.config, health=health), RoundRobin)
        bench.clock.advance(0.5)
        await self.asked(bench, 2)

    async def test_stopped_and_begun_again(self) -> None:
        bench = await self.start()
        bench.checks.follow(bench.cluster)  # once is enough
        bench.checks.stop()
        self.assertEqual(bench.timers(), [])
        bench.cluster.reconfigure(
            evolve(bench.config, health=Health("/", interval=1.0)), RoundRobin
        )
        self.assertEqual(bench.timers(), [])
        bench.checks.start()
        bench.clock.advance(0.5)
        await self.asked(bench, 1)

    async def test_forgotten(self) -> None:
        bench = await self.start()
        bench.checks.forget(bench.cluster)
        bench.checks.forget(bench.cluster)
        bench.registry.remove("web")
        bench.clock.advance(60.0)
        await self.asked(bench, 0)


class SkippedTests(TestCase):
    """For want of a port: that is nobody's fault, and is said."""

    timeout = TIMEOUT

    async def test_out_of_ports(self) -> None:
        backend = await start_backend(self)
        bench = Bench(self, backend.address, ports=1)
        lease: Any = bench.accountant.lease(bench.cluster.backends[backend.address])
        with capturedLogs() as events:
            bench.clock.advance(6.0)
        (line,) = [formatEvent(event) for event in events]
        self.assertIn(f"web {backend.address}: not checked: ", line)
        health, why = bench.health()
        self.assertEqual((health, str(why)[:13]), ("unknown", "not checked: "))
        self.assertEqual((bench.checks.skipped, backend.ends), (2, []))
        lease.release()
        bench.clock.advance(4.0)
        await until(lambda: bench.health() == ("up", None))

    async def test_the_kernel_has_none(self) -> None:
        bench = Bench(self, Address("240.0.0.1", 1), path="/")
        bench.connector._source = lambda lease: ("192.0.2.1", 0)  # type: ignore[method-assign]
        bench.clock.advance(2.0)
        await until(lambda: bench.checks.skipped == 1)
        self.assertEqual(bench.books, (0, 0, 0))
        self.assertEqual(bench.shown()["health"], "unknown")

    async def test_no_way_there(self) -> None:
        """That is a failure: nobody can reach it from here."""
        bench = Bench(self, Address(HOST, 1))

        def no_way(host: str) -> str:
            raise OSError(101, "Network is unreachable")

        bench.accountant._source_of = no_way
        health, why = await bench.checked()
        self.assertEqual((health, str(why)[:9]), ("down", "no way to"))

    async def test_a_busy_one(self) -> None:
        """A check may be one more than max_connections."""
        backend = await start_backend(self)
        bench = Bench(self, backend.address, max_connections=1)
        lease: Any = bench.accountant.lease(bench.cluster.backends[backend.address])
        bench.clock.advance(2.0)
        await until(lambda: bench.health() == ("up", None))
        lease.release()


class StatusesTests(SynchronousTestCase):
    def test_ranges(self) -> None:
        self.assertEqual(ranges("200-299,404"), ((200, 299), (404, 404)))
