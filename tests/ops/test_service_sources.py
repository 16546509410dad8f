"""The service: where its connections leave from, and that it knows who else has ports."""

from __future__ import annotations

from typing import Any

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SkipTest, TestCase

from proxykit.errors import ConfigError
from proxykit.model import Address, Backend, Cluster, Config, Listener, PortRange, Sources
from proxykit.modes.tcp import TcpSettings
from proxykit.net import kernel
from proxykit.ops.service import ProxyService
from tests.sockets import (
    HOST,
    TIMEOUT,
    ClockedReactor,
    connect,
    hear,
    start_backend,
    until,
)

#: Kept for documentation (RFC 5737), so nobody has it.
NOT_HERE = "203.0.113.9"
PLAIN = (
    "sources.addresses: this reactor picks a source port before it knows where to, so each port"
    " of an address is good for one connection, wherever that leads; on the proxykit reactor for"
    " one to each backend"
)


class Late(ClockedReactor):
    """Says that it picks ports late, whatever the reactor behind it does."""

    binds_late = True


class Early(ClockedReactor):
    binds_late = False


def config(*backends: Address, listen: str = f"tcp:0:interface={HOST}", **sources: Any) -> Config:
    listeners = (Listener("front", listen, "tcp", "web", settings=TcpSettings()),)
    clusters = (Cluster("web", tuple(map(Backend, backends or (Address(HOST, 1),)))),)
    return Config(listeners, clusters, sources=Sources(**sources))


class SourcesTestCase(TestCase):
    timeout = TIMEOUT

    def setUp(self) -> None:
        self.lines = hear(self)
        self.range = PortRange(40000, 49999, 7)
        self.patch(kernel, "port_range", lambda: self.range)
        self.patch(kernel, "time_wait_reuse", lambda: 0)

    def service(self, reactor: Any = None) -> ProxyService:
        self.clock = reactor or Late()
        made = ProxyService(self.clock)
        self.addCleanup(lambda: made.stopService())
        return made

    def pages(self, service: ProxyService) -> list[tuple[str, str, int]]:
        """Of each: from where, to where, and how many are free."""
        shown = service.accountant.snapshot()
        return [(page["source"], page["destination"], page["free"]) for page in shown]


class ApplyTests(SourcesTestCase):
    def test_nothing_said(self) -> None:
        """The kernel chooses, from all that it has."""
        service = self.service()
        service.apply(config())
        self.assertEqual(self.pages(service), [(HOST, f"{HOST}:1", 9993 - 200)])
        self.assertIsNone(service.connector.ports)
        self.assertEqual(self.lines, [])

    def test_addresses(self) -> None:
        """A page for each, from the start."""
        service = self.service()
        service.apply(config(addresses=("127.0.0.2", "127.0.0.3"), headroom=0.5))
        self.assertEqual(
            self.pages(service),
            [(f"127.0.0.{number}", f"{HOST}:1", 9993 - 4997) for number in (2, 3)],
        )
        self.assertEqual(self.lines, [])

    def test_plain_binding(self) -> None:
        """That is said once; a page is its source's alone."""
        service = self.service(Early())
        service.apply(config(Address(HOST, 1), Address(HOST, 2), addresses=("127.0.0.2",)))
        self.assertEqual(self.pages(service), [("127.0.0.2", "*", 9993 - 200)])
        self.assertEqual(self.lines, [PLAIN])

    def test_plain_binding_of_nothing(self) -> None:
        """Where nothing is bound nothing is coarser."""
        service = self.service(Early())
        service.apply(config())
        self.assertEqual(self.pages(service)[0][1], f"{HOST}:1")
        self.assertEqual(self.lines, [])

    def test_an_address_of_somebody_elses(self) -> None:
        """It may come later, as with a floating one; so that is no mistake."""
        if kernel.is_local(NOT_HERE):
            raise SkipTest(f"{NOT_HERE} is an address of this machine")
        service = self.service()
        service.apply(config(addresses=("127.0.0.2", NOT_HERE)))
        self.assertEqual(
            self.lines,
            [
                f"sources.addresses: {NOT_HERE} is not an address of this machine, so nothing can"
                " leave from it"
            ],
        )
        self.assertEqual([page[0] for page in self.pages(service)], ["127.0.0.2", NOT_HERE])

    def test_reuse(self) -> None:
        self.patch(kernel, "time_wait_reuse", lambda: 2)
        service = self.service()
        service.apply(config(Address(HOST, 1), Address("192.0.2.1", 1), addresses=(HOST,)))
        self.assertEqual([page.reuses for page in service.accountant], [True, True])
        service = self.service()
        service.apply(config(addresses=("127.0.0.2",)))
        self.patch(kernel, "time_wait_reuse", lambda: 0)
        service.survey.start()
        if not service.survey.blind:
            self.assertEqual([page.reuses for page in service.accountant], [False])


class RangeTests(SourcesTestCase):
    wanted = PortRange(41000, 41099)

    def narrowed(self, ports: PortRange) -> PortRange:
        if ports.low < self.range.low or ports.high > self.range.high:
            raise ValueError(f"expected a part of {self.range.low}-{self.range.high}")
        return PortRange(ports.low, ports.high, 3)

    def setUp(self) -> None:
        super().setUp()
        self.patch(kernel, "narrowed", self.narrowed)

    def test_part(self) -> None:
        """The sockets have what was said, the book has less what is reserved of it."""
        service = self.service()
        service.apply(config(port_range=self.wanted, headroom=0.0))
        self.assertEqual(service.connector.ports, self.wanted)
        self.assertEqual(self.pages(service)[0][2], 97)

    def test_another_reactor(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            self.service(Early()).apply(config(port_range=self.wanted))
        self.assertEqual(
            caught.exception.lines,
            (
                "sources.port_range: needs the proxykit reactor (twistd --reactor=proxykit, or"
                " none at all)",
            ),
        )

    def test_no_part(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            self.service().apply(config(port_range=PortRange(1024, 2000)))
        self.assertEqual(
            caught.exception.lines, ("sources.port_range: expected a part of 40000-49999",)
        )

    async def test_the_kernels_is_set_anew(self) -> None:
        """The next reading has it; where nothing is left of what was wanted, that stays."""
        for wanted, sizes in ((None, [9993, 100, 9993]), (self.wanted, [97, 100, 97])):
            service = self.service()
            service.apply(config(port_range=wanted, headroom=0.0))
            service.survey.start()
            if service.survey.blind:
                raise SkipTest("the kernel does not show its sockets")
            found = []
            for ports in (self.range, PortRange(50000, 50099), self.range):
                self.range = ports
                await service.survey.fresh()
                found.append(service.accountant.snapshot()[0]["size"])
            self.assertEqual(found, sizes)
            service.survey.stop()

    def test_that_is_said_once(self) -> None:
        service = self.service()
        service.apply(config(port_range=self.wanted))
        for _ in range(2):
            with capturedLogs() as events:
                for ports in (self.range, PortRange(50000, 50099), PortRange(50000, 50099)):
                    self.range = ports
                    service._from.ports()
            self.range = PortRange(40000, 49999)
            self.assertEqual(
                [formatEvent(event) for event in events],
                ["sources.port_range is not kept to any more: expected a part of 50000-50099"],
            )


class SurveyTests(SourcesTestCase):
    def test_before_anybody_can_come(self) -> None:
        """What a former process has left behind is counted before there is a listener."""
        service = self.service()
        service.apply(config())
        start, seen = service.survey.start, []
        self.patch(
            service.survey,
            "start",
            lambda: (seen.append(service.listeners["front"].address), start()),
        )
        service.privilegedStartService()
        self.assertEqual(seen, [""])
        self.assertNotEqual(service.listeners["front"].address, "")
        self.assertEqual(service.survey.readings, 0 if service.survey.blind else 1)

    async def test_own_listeners(self) -> None:
        """In the kernel's range, they have ports that nothing can leave from."""
        service = self.service()
        service.apply(config(headroom=0.0))
        service.startService()
        if service.survey.blind:
            raise SkipTest("the kernel does not show its sockets")
        port = int(service.listeners["front"].address.rpartition(":")[2])
        self.range = PortRange(port, port)
        await service.survey.fresh()
        (page,) = service.accountant.snapshot()
        self.assertEqual((page["size"], page["foreign"], page["free"]), (1, 1, 0))
        await service.stopService()
        service.survey.start()
        (page,) = service.accountant.snapshot()
        self.assertEqual((page["foreign"], page["free"]), (0, 1))

    async def test_nothing_is_left(self) -> None:
        """Of a service that could not start, or was stopped."""
        taken = await start_backend(self)
        service = self.service()
        service.apply(config(listen=f"tcp:{taken.address.port}:interface={HOST}"))
        with self.assertRaises(ConfigError):
            service.startService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        service = self.service()
        service.apply(config())
        service.startService()
        # The survey's, and the one that sees how late the loop is.
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)
        service.survey.fresh()
        await service.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_seconds_pass(self) -> None:
        """For what rests, too."""
        service = self.service()
        service.apply(config())
        service.startService()
        self.clock.advance(3)
        self.assertEqual(service.accountant.second, 3)


class ServedTests(SourcesTestCase):
    """A client's bytes leave from where they should."""

    async def test_from_there(self) -> None:
        # Nobody else leaves from there, so what rests is no more from the one than from the other.
        self.patch(kernel, "port_range", lambda: PortRange(1024, 65535))
        backend = await start_backend(self)
        service = self.service(ClockedReactor())
        service.apply(config(backend.address, addresses=("127.0.77.2", "127.0.77.3")))
        service.startService()
        port = int(service.listeners["front"].address.rpartition(":")[2])
        hosts = []
        for _ in range(4):
            client = await connect(self, port)
            client.send(b"hello")
            served = await backend.accepted()
            await served.got(b"hello")
            hosts.append(served.transport.getPeer().host)
        self.assertEqual(sorted(hosts), ["127.0.77.2"] * 2 + ["127.0.77.3"] * 2)
        for end in backend.ends:
            end.reset()
        listener = service.listeners["front"]
        await until(lambda: not listener.connections)
