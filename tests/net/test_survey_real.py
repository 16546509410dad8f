"""The survey and the kernel: the book agrees with what there is, whoever has it."""

from __future__ import annotations

import socket

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from proxykit.core.budget import Budget
from proxykit.model import Address, PortRange
from proxykit.net import kernel
from proxykit.net.survey import Survey
from tests.net.test_connector import Plain
from tests.net.test_sockdiag import why_not
from tests.net.test_sources import OURS, Open, SourcesBench, somewhere
from tests.sockets import HOST, TIMEOUT, BackendServer, reactor, start_backend, until


class RealTestCase(TestCase):
    """One backend, and one source that nobody else leaves from."""

    timeout = TIMEOUT
    skip = why_not() or None

    async def start(self, host: str = HOST, source: str | None = None, late: bool = True) -> None:
        self.backend = await start_backend(self, host=host)
        self.source = somewhere() if source is None else source
        self.bench = SourcesBench(
            self, self.backend.address, sources=(self.source,) if self.source else ()
        )
        self.bench.accountant.late = late
        self.bench.accountant.budgets(self.backend.address)
        self.survey = self.surveys(self.bench)

    def surveys(self, bench: SourcesBench, ports: PortRange | None = None) -> Survey:
        """A survey of what a bench has, which also tells how many ports are listened on."""
        self.listening = 0
        read = bench.accountant.read

        def note(budgets: list[Budget], listening: int) -> None:
            self.listening = listening
            read(budgets, listening)

        bench.accountant.read = note  # type: ignore[method-assign]
        survey = Survey(reactor, bench.accountant, lambda: ports or kernel.port_range())
        self.addCleanup(survey.stop)
        return survey

    async def book(self) -> dict[str, int]:
        """What it has of the one page, after a reading; ports listened on are not counted."""
        await self.survey.fresh()
        return self.shown()

    def shown(self) -> dict[str, int]:
        (page,) = self.bench.accountant.snapshot()
        page["foreign"] -= self.listening
        page["used"] = page["active"] + page["idle"] + page["reserved"]
        return {name: page[name] for name in ("used", "foreign", "time_wait")}

    def somebody_else(self, host: str = HOST, source: str | None = None) -> socket.socket:
        """A connection that is in no book, from and to the same."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.socket(family)
        self.addCleanup(made.close)
        made.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        made.bind((self.source if source is None else source, 0))
        made.connect((host, self.backend.address.port))
        return made

    async def close_first(self, connection: socket.socket) -> None:
        """So that it rests here."""
        served = await self.backend.accepted()
        connection.close()
        await served.ended()
        served.close()
        await served.lost()


class CountTests(RealTestCase):
    async def test_own_and_others(self) -> None:
        await self.start()
        self.survey.start()
        for _ in range(3):
            await self.bench.connected()
        others = [self.somebody_else() for _ in range(2)]
        self.assertEqual(await self.book(), {"used": 3, "foreign": 2, "time_wait": 0})
        others.pop().close()
        self.bench.protocols[0].transport.abortConnection()
        await until(lambda: self.shown()["used"] == 2)
        book = await self.book()
        self.assertEqual((book["used"], book["foreign"]), (2, 1))
        (page,) = self.bench.accountant
        resting = 0 if page.reuses else page.time_wait
        self.assertEqual(page.free, page.limit - 2 - 1 - self.listening - resting)

    async def test_closed_first(self) -> None:
        """It rests where it was closed first, in the book as in the kernel, and nowhere else."""
        await self.start()
        self.survey.start()
        await self.bench.connected(Open)
        await self.backend.accepted()
        for by, resting in (("proxy", 1), ("backend", 1), ("reset", 1)):
            attempt = await self.bench.connected(Open)
            served = await self.backend.accepted()
            if by == "backend":
                served.close()
                await until(lambda attempt=attempt: attempt.upstream.ended)
                attempt.upstream.transport.loseConnection()
            else:
                transport = attempt.upstream.transport
                (transport.loseConnection if by == "proxy" else transport.abortConnection)()
                await until(lambda served=served: served.read_ended or served.reason)
                served.close()
            await served.lost()
            await until(lambda: self.shown()["used"] == 1)
            if OURS:
                self.assertEqual(self.shown()["time_wait"], resting, by)
            self.assertEqual(await self.book(), {"used": 1, "foreign": 0, "time_wait": resting})

    async def test_half_closed(self) -> None:
        """One that is on its way to TIME_WAIT counts as there."""
        await self.start()
        self.survey.start()
        connection = self.somebody_else()
        served = await self.backend.accepted()
        connection.close()
        await served.ended()
        self.assertEqual(await self.book(), {"used": 0, "foreign": 0, "time_wait": 1})

    async def test_before_the_first(self) -> None:
        """What a former process has left behind is counted at the start."""
        await self.start()
        held = [self.somebody_else() for _ in range(5)]
        for connection in held[:3]:
            await self.close_first(connection)
        self.survey.start()
        self.assertEqual(self.shown(), {"used": 0, "foreign": 2, "time_wait": 3})

    async def test_had_again(self) -> None:
        """A port that rests, and that the kernel gives to us, is ours."""
        await self.start()
        self.survey.start()
        attempt = await self.bench.connected(Open)
        await self.backend.accepted()
        (page,) = self.bench.accountant
        assert attempt.lease is not None
        page.rested[attempt.lease.port] = 0  # as if it had been ours before
        page.settle()
        self.assertEqual(await self.book(), {"used": 1, "foreign": 0, "time_wait": 0})

    async def test_ipv6(self) -> None:
        await self.start(host="::1", source="::1")
        self.survey.start()
        await self.bench.connected()
        self.somebody_else("::1")
        book = await self.book()
        self.assertEqual((book["used"], book["foreign"]), (1, 1))

    async def test_on_a_socket_of_ipv6(self) -> None:
        """A process that speaks IPv4 so has the same ports."""
        await self.start()
        self.survey.start()
        await self.bench.connected()
        self.somebody_else(f"::ffff:{HOST}", f"::ffff:{self.source}")
        self.assertEqual(await self.book(), {"used": 1, "foreign": 1, "time_wait": 0})

    async def test_the_kernel_chooses(self) -> None:
        """Then what leaves from there is known by the way that it has taken."""
        await self.start(source="")
        self.survey.start()
        for _ in range(2):
            await self.bench.connected()
        self.source = HOST
        self.somebody_else()
        self.somebody_else(source=somewhere())
        book = await self.book()
        self.assertEqual((book["used"], book["foreign"]), (2, 1))

    async def test_being_connected(self) -> None:
        """One whose port nobody knows yet is ours for all that."""
        await self.start()
        self.survey.start()
        await self.bench.connected()
        (page,) = self.bench.accountant
        (port,) = page.ports
        page.ports.clear()
        self.assertEqual(await self.book(), {"used": 1, "foreign": 0, "time_wait": 0})
        page.ports.add(port)

    async def test_listening(self) -> None:
        """A port within the range that somebody listens on is nobody's to leave from."""
        await self.start()
        port = self.backend.address.port
        survey = self.surveys(self.bench, PortRange(port, port))
        await self.bench.connected()
        survey.start()
        (page,) = self.bench.accountant
        self.assertEqual((page.size, page.foreign, self.listening), (1, 1, 1))

    async def test_after_a_plain_bind(self) -> None:
        """Whatever leaves from there counts, wherever it leads."""
        await self.start(late=False)
        self.survey.start()
        await self.bench.connected()
        other = await start_backend(self)
        here, self.backend = self.backend, other
        self.somebody_else()
        self.backend = here
        self.somebody_else(source=somewhere())
        self.assertEqual(await self.book(), {"used": 1, "foreign": 1, "time_wait": 0})


class WaitTests(RealTestCase):
    async def test_in_turns(self) -> None:
        """Other things go on meanwhile, and everybody hears of a reading of their own."""
        await self.start()
        self.survey.start()
        crowd = socket.socket()
        self.addCleanup(crowd.close)
        crowd.bind((HOST, 0))
        crowd.listen(1000)
        self.backend.address = Address(*crowd.getsockname())
        held = [self.somebody_else() for _ in range(600)]
        asked: list[Deferred[None]] = [self.survey.fresh()]
        self.assertFalse(asked[0].called)
        asked += [self.survey.fresh() for _ in range(3)]
        readings = self.survey.readings
        await asked[0]
        self.assertEqual(self.survey.readings, readings + 1)
        self.assertFalse(any(each.called for each in asked[1:]))
        held.pop().close()
        for each in asked[1:]:
            await each
        self.assertEqual(self.survey.readings, readings + 2)
        self.assertEqual(len(held), 599)

    async def test_stopped_while_it_reads(self) -> None:
        """And started again: the reactor keeps nothing of the first."""
        await self.start()
        self.survey.start()
        readers = len(reactor.getReaders())
        for _ in range(3):
            asked = self.survey.fresh()
            self.assertEqual(len(reactor.getReaders()), readers + 1)
            self.survey.stop()
            await asked
            self.assertEqual(len(reactor.getReaders()), readers)
            self.survey.start()
        await self.bench.connected(Plain)
        self.somebody_else()
        self.assertEqual(await self.book(), {"used": 1, "foreign": 1, "time_wait": 0})

    async def test_while_connections_come_and_go(self) -> None:
        """At its end each reading has what is there, and calls nothing of ours somebody's."""
        await self.start()
        backend: BackendServer = self.backend
        self.survey.start()
        self.somebody_else()
        await backend.accepted()
        for _ in range(10):
            asked = self.survey.fresh()
            attempts = [self.bench.choose(Open) for _ in range(20)]
            opened = [await each for each in attempts]
            served = [await backend.accepted() for _ in opened]
            for number, (attempt, end) in enumerate(zip(opened, served, strict=True)):
                if number % 3 == 0:
                    attempt.upstream.transport.loseConnection()
                    await end.ended()
                    end.close()
                elif number % 3 == 1:
                    end.reset()
            await asked
            if OURS:
                self.assertEqual(self.shown()["foreign"], 1)
            await until(lambda: self.shown()["used"] % 6 == 0)
        book = await self.book()
        self.assertEqual(book, {"used": 60, "foreign": 1, "time_wait": 70})
