"""``twistd proxykit``: options to a configuration, and one line for whatever is wrong."""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NewType

from attrs import field, frozen
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from proxykit import __version__, flags, tap
from proxykit.components import Component
from proxykit.model import Address, Backend, Config, HttpRoute
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.demo import DemoService
from proxykit.ops.service import ProxyService
from proxykit.tap import Options, makeService
from tests.sockets import HOST, TIMEOUT, reactor, start_backend

ROOT = Path(__file__).parent.parent
TCP = ("tcp", "--listen", "tcp:0:interface=127.0.0.1", "--backend", "127.0.0.1:9001")
HTTP = ("http", "--listen", "tcp:0:interface=127.0.0.1")

#: A file, in the order of its lines.
FILE = """\
[clusters.web]
backends = ["127.0.0.1:9001"]
[[listeners]]
listen = "tcp:0:interface=127.0.0.1"
mode = "tcp"
cluster = "web"
"""


class TapTestCase(TestCase):
    timeout = TIMEOUT

    def parse(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(list(arguments))
        return options

    def configured(self, *arguments: str) -> Config:
        configuration = self.parse(*arguments).configuration
        assert configuration is not None
        return configuration

    def refused(self, *arguments: str) -> str:
        """The lines on standard error."""
        stream = io.StringIO()
        self.patch(sys, "__stderr__", stream)
        with self.assertRaises(SystemExit) as caught:
            self.parse(*arguments)
        self.assertEqual(caught.exception.code, 1)
        return stream.getvalue()

    def file(self, text: str) -> str:
        path = self.mktemp()
        Path(path).write_text(text)
        return path


class FlagTests(TapTestCase):
    """What flags say, and what a file would."""

    def test_a_tcp_listener(self) -> None:
        config = self.configured(*TCP)
        (listener,) = config.listeners
        (cluster,) = config.clusters
        self.assertEqual(
            (listener.name, listener.mode, listener.listen, listener.cluster),
            ("tcp", "tcp", "tcp:0:interface=127.0.0.1", "backends"),
        )
        self.assertEqual(listener.settings, TcpSettings())
        self.assertEqual(cluster.backends, (Backend(Address("127.0.0.1", 9001)),))
        self.assertEqual((cluster.balance, config.admin), ("least-connections", ""))

    def test_all_that_can_be_said(self) -> None:
        config = self.configured(
            *TCP,
            *("-b", "[::1]:9002", "--backend", "unix:/run/app"),
            *("--balance", "source-hash", "--admin", "tcp:9901:interface=127.0.0.1"),
            *("--idle-timeout", "7.5", "--keepalive", "no"),
            *("--log-connections", "false", "--abort-on-close", "yes"),
        )
        (listener,), (cluster,) = config.listeners, config.clusters
        self.assertEqual(
            [str(backend.address) for backend in cluster.backends],
            ["127.0.0.1:9001", "[::1]:9002", "unix:/run/app"],
        )
        self.assertEqual(
            (cluster.balance, config.admin), ("source-hash", "tcp:9901:interface=127.0.0.1")
        )
        self.assertEqual(
            listener.settings,
            TcpSettings(
                idle_timeout=7.5, keepalive=False, log_connections=False, abort_on_close=True
            ),
        )

    def test_http(self) -> None:
        config = self.configured(
            *HTTP,
            *("--route", "a.example=127.0.0.1:1,[::1]:2", "--route", "*.b.example/v1=unix:/a=b"),
            *("--route", "*/x=127.0.0.1:3", "--backend", "127.0.0.1:4", "--balance", "round-robin"),
            *("--trust", "10.0.0.0/8", "--trust", "::1", "--access-log", "/var/log/a"),
            *("--head-timeout", "1", "--body-limit", "7", "--request-id", "no", "--via", ""),
        )
        (listener,) = config.listeners
        self.assertEqual((listener.mode, listener.cluster), ("http", "backends"))
        self.assertEqual(listener.trust, ("10.0.0.0/8", "::1"))
        self.assertEqual(
            listener.settings,
            HttpSettings(
                head_timeout=1.0,
                body_limit=7,
                via="",
                request_id=False,
                access_log="/var/log/a",
                routes=(
                    HttpRoute("a.example", host="a.example"),
                    HttpRoute("*.b.example:v1", host="*.b.example", path="/v1"),
                    HttpRoute("*:x", host="", path="/x"),
                ),
            ),
        )
        self.assertEqual(
            {each.name: [str(b.address) for b in each.backends] for each in config.clusters},
            {
                "a.example": ["127.0.0.1:1", "[::1]:2"],
                "*.b.example:v1": ["unix:/a=b"],
                "*:x": ["127.0.0.1:3"],
                "backends": ["127.0.0.1:4"],
            },
        )
        self.assertEqual({each.balance for each in config.clusters}, {"round-robin"})

    def test_http_with_less(self) -> None:
        """One of backends and routes is enough."""
        config = self.configured(*HTTP, "--backend", "127.0.0.1:1")
        self.assertEqual(config.listeners[0].settings, HttpSettings())
        config = self.configured(*HTTP, "--route", "*=127.0.0.1:1", "--balance", "round-robin")
        self.assertEqual([each.name for each in config.clusters], ["*"])
        self.assertEqual(config.listeners[0].cluster, "")

    def test_clusters_of_routes_have_names_of_their_own(self) -> None:
        routes = ("backends", "a/b/c", "a/b:c", "a/b;c")
        config = self.configured(
            *(*HTTP, "--backend", "127.0.0.1:1"),
            *(part for route in routes for part in ("--route", f"{route}=127.0.0.1:2")),
        )
        settings: Any = config.listeners[0].settings
        self.assertEqual(
            [route.cluster for route in settings.routes],
            ["backends+", "a:b:c", "a:b:c+", "a:b;c"],
        )
        self.assertEqual(len(config.clusters), 5)

    def test_numbers(self) -> None:
        for text, seconds in (("5", 5.0), ("0.25", 0.25), ("1e3", 1000.0)):
            settings: Any = self.configured(*TCP, "--idle-timeout", text).listeners[0].settings
            self.assertEqual(settings.idle_timeout, seconds)

    def test_a_file(self) -> None:
        config = self.configured("--config", self.file(FILE))
        self.assertEqual([each.name for each in config.listeners], ["listener-1"])

    def test_the_demo(self) -> None:
        self.assertIsNone(self.parse("demo").configuration)

    def test_the_version(self) -> None:
        for arguments in (["--version"], ["tcp", "--version"], ["demo", "--version"]):
            stream = io.StringIO()
            self.patch(sys, "__stdout__", stream)
            with self.assertRaises(SystemExit) as caught:
                self.parse(*arguments)
            self.assertEqual(caught.exception.code, 0)
            self.assertEqual(stream.getvalue(), f"proxykit {__version__}\n")

    def test_help_names_every_setting_with_its_default(self) -> None:
        options = self.parse(*TCP)
        assert isinstance(options.subOptions, flags.ModeOptions)
        text = " ".join(str(options.subOptions).split())
        for part in (
            "--idle-timeout= Seconds without a byte in either direction; default: 600.0",
            "--keepalive= TCP keepalive probes to both sides, so that a peer that vanished is"
            " noticed; default: yes",
            "--log-connections= One log line when a connection ends; default: yes",
            "--abort-on-close= While it waits in the queue, ",
            "--backend= A backend: host:port",
            "round-robin, source-hash",
            "Relay raw TCP, byte for byte.",
        ):
            self.assertIn(part, text)
        self.assertIn("relay raw TCP, byte for byte", " ".join(str(Options()).split()))
        self.assertNotIn("--route", text)
        text = " ".join(str(self.parse(*HTTP, "-b", "127.0.0.1:1").subOptions).split())
        for part in (
            "--body-limit= Bytes of a request body; 0: no limit; default: 0",
            "--access-log= The file of the access log, or - for standard output; empty: there is"
            " none; default: none",
            "forwarding fields: a network, an address, or unix. May be given more than once.",
            "--route= HOST[/PATH]=ADDRESS[,ADDRESS...]: ",
        ):
            self.assertIn(part, text)
        self.assertNotIn("--routes", text)

    def test_a_mode_of_somebody_elses(self) -> None:
        """Its settings become flags, whatever their types are written as."""
        component = Component("mode", "odd", f"{__name__}:OddMode", "an odd one")
        options: Any = flags.mode_options(component)
        options.parent = Capturing()
        options.parent.subCommand = "odd"
        options.parseOptions(
            [
                *("--listen", "tcp:1", "--depth", "3", "--ratio", "2", "--word", "5"),
                *("--sure", "true", "--some-words", "a", "--some-words", "b=c"),
                *("--maybe", "7", "--known-as", "8"),
            ]
        )
        self.assertEqual(
            options.data(),
            {
                "listeners": [
                    {
                        "name": "odd",
                        "mode": "odd",
                        "listen": "tcp:1",
                        "depth": 3,
                        "ratio": 2,
                        "word": "5",
                        "sure": True,
                        "maybe": 7,
                        "known_as": "8",
                        "some_words": ["a", "b=c"],
                    }
                ]
            },
        )
        text = " ".join(str(options).split())
        for part in (
            "--depth= As in the file; default: none",
            "--maybe= As in the file; default: none",
            "--some-words= Words, several of them. May be given more than once.",
            "--word= A word; default: x",
        ):
            self.assertIn(part, text)
        for absent in ("numbers", "shares", "either", "made", "routes", "--route"):
            self.assertNotIn(absent, text)


class Capturing(Options):
    """A parent that asks for no configuration."""

    def configured(self, make: object) -> None:
        """Nothing is made of it."""


Name = NewType("Name", str)


@frozen
class OddSettings:
    """Of one sort and another.

    :ivar word: a word.
        It is long.
    :ivar some_words: words, several
        of them. More than one.

    What comes behind is about all of them.
    """

    depth: int
    #: Another way to say "where"; the flag is taken already.
    listen: str = ""
    ratio: float = 1.0
    word: str = field(default="x")
    sure: bool = False
    maybe: int | None = None
    known_as: Name = Name("")
    some_words: tuple[str, ...] = ()
    #: There is no way to say these in a word.
    numbers: tuple[int, ...] = ()
    shares: dict[str, float] = field(factory=dict)
    either: int | str = 1
    routes: tuple[str, int] = ("", 1)
    made: int = field(init=False, default=1)


class OddMode:
    settings = OddSettings

    def __conform__(self, interface: object) -> OddMode:
        return self


class MakeServiceTests(TapTestCase):
    def setUp(self) -> None:
        self.patch(tap, "raise_descriptor_limit", lambda reactor: None)
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def test_the_demo(self) -> None:
        (child,) = self.children(makeService(self.parse("demo")))
        self.assertIsInstance(child, DemoService)

    async def test_a_listener(self) -> None:
        service: Any = makeService(self.parse(*TCP))
        (child,) = self.children(service)
        self.assertIs(type(child), ProxyService)
        service.privilegedStartService()
        service.startService()
        self.assertIn(f"{HOST}:", child.listeners["tcp"].address)
        await service.stopService()

    async def test_a_port_in_use(self) -> None:
        taken = await start_backend(self)
        listen = f"tcp:{taken.address.port}:interface={HOST}"
        service: Any = makeService(self.parse("tcp", "--listen", listen, "-b", f"{HOST}:1"))
        stream = io.StringIO()
        self.patch(sys, "__stderr__", stream)
        with self.assertRaises(SystemExit) as caught:
            service.privilegedStartService()
        self.assertEqual(caught.exception.code, 1)
        self.assertEqual(
            stream.getvalue(), f"proxykit: tcp: cannot listen on {listen}: Address already in use\n"
        )

    async def test_sigusr1(self) -> None:
        """Once it is started, not before: then twistd would not set up its own."""
        before = signal.getsignal(signal.SIGUSR1)
        service: Any = makeService(self.parse(*TCP))
        self.assertEqual(signal.getsignal(signal.SIGUSR1), before)
        service.startService()
        reopened: Deferred[None] = Deferred()
        (child,) = self.children(service)
        self.patch(child, "reopen_logs", lambda: reopened.callback(None))
        os.kill(os.getpid(), signal.SIGUSR1)
        await reopened
        await service.stopService()

    def test_a_log_that_cannot_be_opened(self) -> None:
        path = str(Path(self.mktemp(), "access.log"))
        stream = io.StringIO()
        self.patch(sys, "__stderr__", stream)
        options = self.parse(*HTTP, "-b", f"{HOST}:1", "--access-log", path)
        with self.assertRaises(SystemExit) as caught:
            makeService(options)
        self.assertEqual(caught.exception.code, 1)
        self.assertEqual(stream.getvalue().count("\n"), 1)
        self.assertIn(path, stream.getvalue())

    def children(self, service: IService) -> Iterable[Any]:
        return iter(service)  # type: ignore[call-overload,no-any-return]


class SignalTests(TapTestCase):
    """SIGUSR1 does what it did, and then one thing more."""

    def setUp(self) -> None:
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))

    async def test_in_turn(self) -> None:
        order: list[str] = []
        signal.signal(signal.SIGUSR1, lambda number, frame: order.append("rotate"))
        done: Deferred[None] = Deferred()
        tap.chain_signal(signal.SIGUSR1, lambda: order.append("first"), reactor)
        tap.chain_signal(
            signal.SIGUSR1, lambda: (order.append("second"), done.callback(None)), reactor
        )
        os.kill(os.getpid(), signal.SIGUSR1)
        await done
        self.assertEqual(order, ["rotate", "first", "second"])

    async def test_nothing_before(self) -> None:
        """The default would end the process."""
        for before in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGUSR1, before)
            done: Deferred[None] = Deferred()
            tap.chain_signal(signal.SIGUSR1, lambda done=done: done.callback(None), reactor)
            os.kill(os.getpid(), signal.SIGUSR1)
            await done


class DescriptorTests(TapTestCase):
    """All that the process may have, unless the reactor could not use them."""

    def limits(self, soft: int, hard: int, reactor: object) -> list[Any]:
        told: list[Any] = []
        self.patch(resource, "getrlimit", lambda which: (soft, hard))
        self.patch(resource, "setrlimit", lambda which, limits: told.append(limits))
        tap.raise_descriptor_limit(reactor)
        return told

    def test_raised(self) -> None:
        self.assertEqual(self.limits(1024, 4096, object()), [(4096, 4096)])

    def test_high_enough(self) -> None:
        self.assertEqual(self.limits(4096, 4096, object()), [])

    def test_select_cannot(self) -> None:
        class SelectReactor:
            pass

        self.assertEqual(self.limits(1024, 4096, SelectReactor()), [])


class TwistdTests(TapTestCase):
    """The same in processes of their own."""

    async def twistd(self, *arguments: str) -> tuple[str, int]:
        """What is said on standard error, and the status."""
        directory = self.mktemp()
        os.mkdir(directory)
        self.log = Path(directory, "log")
        program = Path(sys.executable).with_name("twistd")
        # One that does not come back is a failure as well.
        limited = ["-k", "5", "20", sys.executable, str(program)]
        _, errors, status = await getProcessOutputAndValue(
            "timeout", [*limited, *arguments], env=os.environ, path=directory, reactor=reactor
        )
        self.pidfile_left = Path(directory, "twistd.pid").exists()
        return errors.decode(), status

    async def test_a_mistake_in_the_foreground(self) -> None:
        self.assertEqual(
            await self.twistd("-n", "proxykit", "tcp"),
            ("proxykit: --listen: missing\n", 1),
        )

    async def test_a_port_in_use_in_the_foreground(self) -> None:
        self.assertEqual(await self.twistd("-n", *await self.taken()), (self.line, 1))

    async def test_flags_are_numbers_and_truths_from_the_start(self) -> None:
        """Nobody has looked at the types of the settings before."""
        arguments = ["-n", *await self.taken(), "--idle-timeout", "5", "--keepalive", "no"]
        self.assertEqual(await self.twistd(*arguments), (self.line, 1))

    async def test_a_port_in_use_in_the_background(self) -> None:
        """Where twistd has turned into a daemon by then: it comes back, and somebody is told."""
        errors, status = await self.twistd("--logfile=log", *await self.taken())
        self.assertEqual(status, 1)
        self.assertIn("Address already in use", errors + self.log.read_text())
        self.assertFalse(self.pidfile_left)

    async def test_a_descriptor_that_systemd_has_not_handed_over(self) -> None:
        errors, status = await self.twistd(
            *("-n", "proxykit", "tcp", "--listen", "systemd:domain=INET:index=0"),
            *("-b", f"{HOST}:1"),
        )
        self.assertEqual((errors.count("\n"), status), (1, 1))

    async def taken(self) -> list[str]:
        backend = await start_backend(self)
        listen = f"tcp:{backend.address.port}:interface={HOST}"
        self.line = f"proxykit: tcp: cannot listen on {listen}: Address already in use\n"
        return ["proxykit", "tcp", "--listen", listen, "-b", f"{HOST}:1"]
