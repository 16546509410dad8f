"""The service: what it builds from a configuration, and how embedders use it."""

from __future__ import annotations

import tempfile
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.trial.unittest import TestCase

from proxykit.errors import ConfigError
from proxykit.model import Address, Backend, Cluster, Config, Listener, Sources
from proxykit.modes.tcp import TcpSettings
from proxykit.ops import service as module
from proxykit.ops.service import ProxyService
from tests.sockets import (
    HOST,
    TIMEOUT,
    BackendServer,
    ClockedReactor,
    blocking,
    connect,
    hear,
    reactor,
    start_backend,
    start_proxy,
    turns,
)


def config(
    *listens: str,
    cluster: str = "web",
    mode: str = "tcp",
    balance: str = "round-robin",
    **more: Any,
) -> Config:
    """Listeners at these endpoints, for one backend that nobody asks."""
    listeners = tuple(
        Listener(f"front-{number}", listen, mode, cluster, settings=TcpSettings())
        for number, listen in enumerate(listens)
    )
    backends = (Backend(Address(HOST, 1)),)
    return Config(listeners, (Cluster("web", backends, balance=balance),), **more)


class ServiceTests(TestCase):
    timeout = TIMEOUT

    def service(self) -> ProxyService:
        made = ProxyService(ClockedReactor())
        self.addCleanup(lambda: made.stopService())
        return made

    async def test_an_embedders_proxy(self) -> None:
        backend = await start_backend(self)
        proxy = start_proxy(self, backend)
        self.assertTrue(proxy.service.running)
        client = await proxy.connect()
        client.send(b"hello")
        served = await backend.accepted()
        await served.got(b"hello")
        port = proxy.port
        await proxy.service.stopService()
        self.assertFalse(proxy.service.running)
        with self.assertRaises(ConnectionRefusedError):
            blocking(self, port)
        client.send(b"!")  # who is in stays until the process ends
        await served.got(b"hello!")

    async def test_listeners_share_the_books(self) -> None:
        backend = await start_backend(self)
        service = self.service()
        service.apply(
            Config(
                tuple(
                    Listener(name, f"tcp:0:interface={HOST}", "tcp", "web", settings=TcpSettings())
                    for name in ("one", "two")
                ),
                (Cluster("web", (Backend(backend.address),), max_connections=1, queue=0),),
                sources=Sources(headroom=0.5),
            )
        )
        service.startService()
        clients = []
        for name in ("one", "two"):
            port = int(service.listeners[name].address.rpartition(":")[2])
            clients.append(await connect(self, port))
            await turns()
        served = await backend.accepted()
        self.assertTrue(await clients[1].lost())
        (budget,) = service.accountant.snapshot()
        # Ports that somebody listens on, in the kernel's range, are nobody's to leave from.
        others = budget["foreign"]
        self.assertEqual(budget["free"], budget["size"] - (budget["size"] + 1) // 2 - 1 - others)
        self.assertEqual(list(service.listeners["one"].connections), [1])
        clients[0].reset()
        await served.lost()

    async def test_budgets_are_shown_from_the_start(self) -> None:
        service = self.service()
        backends = (Backend(Address(HOST, 1)), Backend(Address("/run/x", 0)))
        service.apply(Config((), (Cluster("web", backends),)))
        (budget,) = service.accountant.snapshot()
        self.assertEqual((budget["source"], budget["destination"]), (HOST, f"{HOST}:1"))

    async def test_a_backend_without_a_way_there(self) -> None:
        lines = hear(self)
        self.service().apply(
            Config((), (Cluster("web", (Backend(Address("255.255.255.255", 1)),)),))
        )
        self.assertEqual(len(lines), 1)
        self.assertIn("no way to 255.255.255.255:1: ", lines[0])

    async def test_the_privileged_start_comes_first_and_once(self) -> None:
        service = self.service()
        service.apply(config(f"tcp:0:interface={HOST}", admin=f"tcp:0:interface={HOST}"))
        self.assertIsNone(service.admin_port)
        service.privilegedStartService()
        address = service.listeners["front-0"].address
        assert service.admin_port is not None
        service.startService()
        self.assertEqual(service.listeners["front-0"].address, address)
        await service.stopService()
        self.assertIsNone(service.admin_port)
        await service.stopService()


class MistakeTests(TestCase):
    """What cannot be is a ConfigError with one line."""

    timeout = TIMEOUT

    def service(self) -> ProxyService:
        made = ProxyService(ClockedReactor())
        self.addCleanup(lambda: made.stopService())
        return made

    def refused(self, service: ProxyService, wanted: Config) -> str:
        with self.assertRaises(ConfigError) as caught:
            service.apply(wanted)
            service.startService()
        (line,) = caught.exception.lines
        self.assertNotIn("\n", line)
        return line

    async def test_a_port_in_use(self) -> None:
        taken = await start_backend(self)
        listen = f"tcp:{taken.address.port}:interface={HOST}"
        self.assertEqual(
            self.refused(self.service(), config(listen)),
            f"front-0: cannot listen on {listen}: Address already in use",
        )

    async def test_the_admin_port_in_use(self) -> None:
        taken = await start_backend(self)
        listen = f"tcp:{taken.address.port}:interface={HOST}"
        self.assertEqual(
            self.refused(self.service(), config(admin=listen)),
            f"admin: cannot listen on {listen}: Address already in use",
        )

    def test_an_interface_of_somebody_elses(self) -> None:
        line = self.refused(self.service(), config("tcp:0:interface=192.0.2.1"))
        self.assertEqual(
            line,
            "front-0: cannot listen on tcp:0:interface=192.0.2.1: Cannot assign requested address",
        )

    def test_an_interface_that_is_none(self) -> None:
        self.assertIn(
            "front-0: cannot listen on tcp:0:interface=nowhere.invalid: ",
            self.refused(self.service(), config("tcp:0:interface=nowhere.invalid")),
        )

    def test_a_port_that_is_none(self) -> None:
        self.assertIn(
            "front-0: cannot listen on tcp:70000: ",
            self.refused(self.service(), config("tcp:70000")),
        )

    def test_a_socket_in_a_directory_that_is_not_there(self) -> None:
        line = self.refused(self.service(), config("unix:/nonexistent/front"))
        self.assertIn("front-0: cannot listen on unix:/nonexistent/front: ", line)
        self.assertNotIn(".lock'", line)

    async def test_a_unix_socket_in_use(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            first = self.service()
            first.apply(config(f"unix:{directory}/front"))
            first.startService()
            line = self.refused(self.service(), config(f"unix:{directory}/front"))
            self.assertIn(f"front-0: cannot listen on unix:{directory}/front: ", line)
            await first.stopService()

    def test_an_unknown_endpoint(self) -> None:
        self.assertIn(
            "front-0: cannot listen on nonsense:1: ",
            self.refused(self.service(), config("nonsense:1")),
        )

    def test_a_descriptor_that_systemd_has_not_handed_over(self) -> None:
        self.assertIn(
            "front-0: cannot listen on systemd:domain=INET:index=0: ",
            self.refused(self.service(), config("systemd:domain=INET:index=0")),
        )

    def test_a_tcp_listener_without_a_cluster(self) -> None:
        self.assertEqual(
            self.refused(self.service(), config("tcp:0", cluster="")),
            "listeners[0] (front-0): mode tcp needs a cluster: raw TCP has nothing to route by",
        )

    def test_a_cluster_that_is_not_there(self) -> None:
        self.assertIn(
            "'wbe'", self.refused(self.service(), config(f"tcp:0:interface={HOST}", cluster="wbe"))
        )

    def test_a_mode_that_is_not_there(self) -> None:
        self.assertIn("'tpc'", self.refused(self.service(), config("tcp:0", mode="tpc")))

    def test_a_balancing_policy_that_is_not_there(self) -> None:
        self.assertIn("'fair'", self.refused(self.service(), config("tcp:0", balance="fair")))

    async def test_one_port_of_two_in_use(self) -> None:
        """All or nothing: what listens already stops again, and another try begins anew."""
        taken = await start_backend(self)
        service = self.service()
        service.apply(
            config(f"tcp:0:interface={HOST}", f"tcp:{taken.address.port}:interface={HOST}")
        )
        with self.assertRaises(ConfigError):
            service.startService()
        with self.assertRaises(ConfigError):
            service.startService()

    def test_errors_of_our_own_are_not_the_users(self) -> None:
        class Broken:
            def listen(self, factory: Any) -> Deferred[Any]:
                from twisted.internet.defer import fail

                return fail(ZeroDivisionError())

        self.patch(module, "endpoint", lambda *_: Broken())
        service = self.service()
        service.apply(config("tcp:0"))
        with self.assertRaises(ZeroDivisionError):
            service.startService()

    def test_reasons(self) -> None:
        for why, text in (
            (CannotListenError("", 1, OSError(98, "Taken")), "Taken"),
            (CannotListenError("", 1, OSError("odd")), "odd"),
            (CannotListenError("", 1, "locked"), "locked"),  # type: ignore[arg-type]
            (OverflowError("too much"), "too much"),
        ):
            self.assertIn(text, module._reason(why))


class TidyTests(TestCase):
    """A service that was stopped leaves no timer behind: embedders' tests look for those."""

    timeout = TIMEOUT

    async def test_no_timer_is_left(self) -> None:
        backend = BackendServer()
        port = reactor.listenTCP(0, backend, interface=HOST)
        self.addCleanup(port.stopListening)
        backend.address = Address(HOST, port.getHost().port)
        proxy = start_proxy(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        client.reset()
        await served.lost()
        await proxy.empty()
        await proxy.service.stopService()
        self.assertEqual(proxy.clock.getDelayedCalls(), [])
