"""``twistd proxykit``: options to a configuration, and one line for whatever is wrong."""

from __future__ import annotations

import io
import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attrs import field, frozen
from twisted.application.service import IService
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.usage import UsageError
from twisted.trial.unittest import TestCase

from proxykit import __version__, tap
from proxykit.components import Component
from proxykit.model import Address, Backend, Config
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.demo import DemoService
from proxykit.ops.service import ProxyService
from proxykit.tap import Options, makeService
from tests.sockets import HOST, TIMEOUT, reactor, start_backend

ROOT = Path(__file__).parent.parent
TCP = ("tcp", "--listen", "tcp:0:interface=127.0.0.1", "--backend", "127.0.0.1:9001")

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
        assert isinstance(options.subOptions, tap._ModeOptions)
        text = " ".join(str(options.subOptions).split())
        for part in (
            "--idle-timeout= As in the file; default: 600.0",
            "--keepalive= As in the file; default: yes",
            "--abort-on-close= As in the file; default: no",
            "--backend= A backend: host:port",
            "round-robin, source-hash",
            "Relay raw TCP, byte for byte.",
        ):
            self.assertIn(part, text)
        self.assertIn("relay raw TCP, byte for byte", " ".join(str(Options()).split()))

    def test_a_mode_of_somebody_elses(self) -> None:
        """Its settings become flags, whatever their types are written as."""
        component = Component("mode", "odd", f"{__name__}:OddMode", "an odd one")
        options: Any = tap._mode_options(component)
        options.parent = Capturing()
        options.parent.subCommand = "odd"
        options.parseOptions(
            ["--listen", "tcp:1", "--depth", "3", "--ratio", "2", "--word", "5", "--sure", "true"]
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
                    }
                ]
            },
        )
        self.assertIn("default: none", " ".join(str(options).split()))


class Capturing(Options):
    """A parent that asks for no configuration."""

    def configured(self, make: object) -> None:
        """Nothing is made of it."""


@frozen
class OddSettings:
    depth: int
    #: Another way to say "where"; the flag is taken already.
    listen: str = ""
    ratio: float = 1.0
    word: str = field(default="x")
    sure: bool = False


class OddMode:
    settings = OddSettings

    def __conform__(self, interface: object) -> OddMode:
        return self


class MistakeTests(TapTestCase):
    """Every one is a line, and status 1."""

    def one_line(self, *arguments: str) -> str:
        text = self.refused(*arguments)
        self.assertEqual(text.count("\n"), 1, text)
        self.assertTrue(text.startswith("proxykit: ") and text.endswith("\n"), text)
        return text.removeprefix("proxykit: ").rstrip("\n")

    def test_flags(self) -> None:
        hint = " (twistd proxykit --help says what there is)"
        for arguments, expected in (
            ([], "give --config FILE or one of tcp, demo" + hint),
            (["--nonsense"], "option --nonsense not recognized" + hint),
            (["nonsense"], "Unknown command: nonsense" + hint),
            (["--config"], "option --config requires argument" + hint),
            (["tcp", "--nonsense"], "option --nonsense not recognized" + hint),
            (["tcp", "--backend"], "option --backend requires argument" + hint),
            ([*TCP, "more"], "Wrong number of arguments." + hint),
            (["demo", "more"], "Wrong number of arguments." + hint),
            (["demo", "--listen", "tcp:1"], "option --listen not recognized" + hint),
            (["--config", "x.toml", *TCP], "give --config or tcp, not both" + hint),
            (["--config", "x.toml", "demo"], "give --config or demo, not both" + hint),
        ):
            self.assertEqual(self.one_line(*arguments), expected)

    def test_values(self) -> None:
        backend = ("--backend", "127.0.0.1:9001")
        for arguments, expected in (
            (["tcp", *backend], "--listen: missing"),
            (["tcp", "--listen", "nonsense", *backend], "--listen: expected a Twisted server"),
            (["tcp", "--listen", "tcp:99999", *backend], "--listen: expected a Twisted server"),
            (["tcp", "--listen", "tcp:0"], "--backend: "),
            (["tcp", "--listen", "tcp:0", "--balance", "round-robin"], "--backend: "),
            ([*TCP, "-b", "x"], "--backend x: expected host:port"),
            ([*TCP, "-b", "::1:80"], "--backend ::1:80: expected brackets"),
            ([*TCP, "-b", "unix:x"], "--backend unix:x: expected unix:/path"),
            ([*TCP, *backend], "--backend 127.0.0.1:9001: the same address as "),
            ([*TCP, "-b", "no.invalid:80"], "--backend no.invalid:80: the name 'no.invalid' does"),
            ([*TCP, "--balance", "fair"], "--balance: expected one of least-connections, "),
            ([*TCP, "--admin", "nonsense"], "--admin: expected a Twisted server endpoint"),
            ([*TCP, "--idle-timeout", "0"], "--idle-timeout: expected a number of seconds above 0"),
            ([*TCP, "--idle-timeout", "-1"], "--idle-timeout: expected a number of seconds above"),
            ([*TCP, "--idle-timeout", "x"], "--idle-timeout: expected a number of seconds above"),
            ([*TCP, "--idle-timeout", "nan"], "--idle-timeout: expected a number of seconds"),
            ([*TCP, "--idle-timeout", ""], "--idle-timeout: expected a number of seconds above 0"),
            ([*TCP, "--keepalive", "maybe"], "--keepalive: expected true or false"),
        ):
            self.assertIn(expected, self.one_line(*arguments))

    def test_the_same_endpoint_twice(self) -> None:
        line = self.one_line(
            "tcp", "--listen", "tcp:9000", "--admin", "tcp:9000", "--backend", "127.0.0.1:1"
        )
        self.assertIn("the same endpoint as ", line)

    def test_several_mistakes_are_several_lines(self) -> None:
        text = self.refused("tcp", "--backend", "x", "--balance", "y")
        self.assertEqual(text.count("\n"), 3)
        self.assertEqual(text.count("proxykit: --"), 3)

    def test_files(self) -> None:
        for text, expected in (
            ("", ":1: listeners: missing"),
            ("[", ":1: not TOML: "),
            (FILE.replace('mode = "tcp"', 'mode = "tpc"'), ":5: listeners[0].mode: expected one"),
            (FILE.replace('cluster = "web"\n', ""), "mode tcp needs a cluster"),
            (FILE + "idle_timeout = -1\n", ":7: listeners[0].idle_timeout: expected a number"),
        ):
            self.assertIn(expected, self.one_line("--config", self.file(text)))

    def test_a_file_that_is_none(self) -> None:
        for path, why in (
            ("/nonexistent/proxykit.toml", "No such file or directory"),
            (".", "Is a directory"),
        ):
            line = self.one_line("--config", path)
            self.assertEqual(line, f"{path}: cannot be read: {why}")

    def test_nowhere_to_say_it(self) -> None:
        self.patch(sys, "__stderr__", None)
        with self.assertRaises(SystemExit) as caught:
            self.parse("--nonsense")
        self.assertEqual(caught.exception.code, 1)
        self.patch(sys, "__stdout__", None)
        with self.assertRaises(SystemExit) as caught:
            self.parse("--version")
        self.assertEqual(caught.exception.code, 0)

    def test_both_ways_at_once_is_a_usage_error_for_callers(self) -> None:
        options = Options()
        options["config"] = "x"
        options.subCommand = "tcp"
        with self.assertRaises(UsageError):
            options.postOptions()


class MakeServiceTests(TapTestCase):
    def setUp(self) -> None:
        self.patch(tap, "raise_descriptor_limit", lambda reactor: None)

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

    def children(self, service: IService) -> Iterable[Any]:
        return iter(service)  # type: ignore[call-overload,no-any-return]


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
