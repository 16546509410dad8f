"""What is installed is whole: a wheel of this tree, in an environment of its own, and run there.

Beside it the distribution of docs/write_a_mode.rst (examples/shout), installed as any other. All
of it without network: the second environment sees the first one's packages, and proxykit's own
wheel before them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import sysconfig
import zipfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import HostnameEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.wire import Echo
from twisted.trial.unittest import TestCase

from proxykit.ops.pages import pages
from tests.interop import programs

#: Seconds for one step of building and installing.
BUILD = 120.0
NOT_COPIED = (
    *(".git", ".venv", "build", "dist", "*.egg-info", "_build", "_trial_temp*"),
    *(".coverage*", ".hypothesis", ".*_cache", "__pycache__", "dropin.cache"),
)

#: Prints where proxykit is, and how often twistd and proxykit find each plugin.
FIND = """
import proxykit
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from proxykit.components import components
print("file", proxykit.__file__)
print("makers", [maker.module for maker in getPlugins(IServiceMaker) if "proxykit" in maker.module])
print("modes", sorted(components("mode")))
"""


class Collector(Protocol):
    """A client that waits for the bytes it was told to expect."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = b""
        self.complete: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if len(self.received) >= self.size and not self.complete.called:
            self.complete.callback(self.received)

    def connectionLost(self, reason) -> None:
        if not self.complete.called:
            self.complete.errback(reason)


@inlineCallbacks
def converse(testcase: TestCase, port: int, sent: bytes, size: int):
    """Connect, send, and give what came back, once that is ``size`` bytes."""
    collector = Collector(size)
    yield connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port), collector)
    collector.transport.write(sent)
    collector.complete.addTimeout(programs.DEADLINE, reactor)
    try:
        return (yield collector.complete)
    finally:
        collector.transport.abortConnection()


class Environment:
    """A virtual environment with this tree's wheel in it, made once for all tests of this file.

    :ivar wheel: the wheel.
    :ivar python: the environment's Python.
    """

    made: Environment | None = None

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "env"
        self.python = str(self.home / "bin" / "python")
        self.wheel = directory

    @classmethod
    @inlineCallbacks
    def get(cls, testcase: TestCase):
        if cls.made is None:
            directory = Path(testcase.mktemp()).resolve()
            directory.mkdir(parents=True)
            made = cls(directory)
            yield made._make(testcase)
            cls.made = made
        return cls.made

    @property
    def variables(self) -> dict[str, str]:
        """What a user's shell has: nothing that leads Python to this tree, or measures it."""
        hidden = ("PYTHON", "COVERAGE", "VIRTUAL_ENV", "PIP_")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(hidden)},
            "PYTHONUNBUFFERED": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    @inlineCallbacks
    def run(self, testcase: TestCase, *argv: str, timeout: float = programs.DEADLINE):
        """Run a program that is to succeed, away from the tree; give its output."""
        status, output = yield programs.run(
            testcase, argv, env=self.variables, cwd=self.directory, timeout=timeout
        )
        testcase.assertEqual(status, 0, f"{' '.join(argv)}:\n{output}")
        return output

    @inlineCallbacks
    def build(self, testcase: TestCase, source: Path):
        """Make a wheel of a copy of ``source``; give its path. The build leaves files behind."""
        copy = self.directory / "sources" / source.name
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        wheels = self.directory / "wheels" / source.name
        yield self.run(
            testcase,
            *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--wheel-dir", str(wheels), str(copy)),
            timeout=BUILD,
        )
        (wheel,) = wheels.glob("*.whl")
        return wheel

    @inlineCallbacks
    def install(self, testcase: TestCase, wheel: Path):
        """Install a wheel as a user does, but with what is on this machine alone."""
        yield self.run(
            testcase,
            *(sys.executable, "-m", "pip", "--python", self.python, "install", "-q"),
            *("--no-deps", "--no-index", str(wheel)),
            timeout=BUILD,
        )

    @inlineCallbacks
    def _make(self, testcase: TestCase):
        yield self.run(
            testcase, sys.executable, "-m", "venv", "--without-pip", str(self.home), timeout=BUILD
        )
        # A path that a .pth file adds comes after the environment's own, and the .pth files in it
        # (an editable install of this tree) are not read.
        (own,) = self.home.glob("lib/python*/site-packages")
        outer = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (own / "outer.pth").write_text("\n".join(outer) + "\n")
        self.wheel = yield self.build(testcase, programs.TREE)
        yield self.install(testcase, self.wheel)


class PackagingTests(TestCase):
    skip = programs.TWICE
    timeout = 300

    @inlineCallbacks
    def setUp(self):
        self.environment = yield Environment.get(self)

    def python(self, *args):
        return self.environment.run(self, self.environment.python, "-P", *args)

    def service(self, *args):
        return programs.service(
            self, args, python=self.environment.python, env=self.environment.variables
        )

    def ends_in_peace(self, service):
        """twistd shuts down, and then dies of the signal that it was sent, as it does by itself."""
        status = yield service.stop("TERM")
        self.assertEqual(status, -signal.SIGTERM, service.output)
        self.assertIn("Server Shut Down", service.output)
        self.assertNotIn("Traceback", service.output)

    def test_wheel(self):
        """Plugin files and the dashboard are in it; no package is made of Twisted's directories."""
        names = set(zipfile.ZipFile(self.environment.wheel).namelist())
        for name in (
            "twisted/plugins/proxykit_plugin.py",
            "proxykit/plugins/__init__.py",
            "proxykit/plugins/builtin.py",
            "proxykit/py.typed",
            *(f"proxykit/ops/dashboard{path}" for path in pages()),
        ):
            self.assertIn(name, names)
        for name in names:
            self.assertNotIn(name, ("twisted/__init__.py", "twisted/plugins/__init__.py"))
            self.assertFalse(name.startswith(("tests/", "examples/", "docs/")), name)

    @inlineCallbacks
    def test_found_once(self):
        """The wheel's proxykit is the one that is imported, and twistd sees its plugin once."""
        output = yield self.python("-c", FIND)
        found = dict(line.split(" ", 1) for line in output.splitlines())
        self.assertTrue(found["file"].startswith(f"{self.environment.home}/"), output)
        self.assertEqual(found["makers"], "['proxykit.tap']")
        self.assertIn("'tcp'", found["modes"])

    @inlineCallbacks
    def test_twistd_lists_it(self):
        output = yield self.python("-c", "from twisted.scripts.twistd import run; run()", "--help")
        self.assertRegex(output, r"(?m)^    proxykit +A proxy that knows")

    @inlineCallbacks
    def test_command(self):
        import proxykit

        command = str(self.environment.home / "bin" / "proxykit")
        output = yield self.environment.run(self, command, "--version")
        self.assertIn(proxykit.__version__, output)

    @inlineCallbacks
    def test_relays(self):
        """The service passes bytes on, and SIGTERM ends it in peace."""
        origin = yield TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
            Factory.forProtocol(Echo)
        )
        self.addCleanup(origin.stopListening)
        port = programs.free_port()
        service = yield self.service(
            *("tcp", "--listen", f"tcp:{port}:interface=127.0.0.1"),
            *("--backend", f"127.0.0.1:{origin.getHost().port}"),
        )
        sent = bytes(range(256)) * 400
        self.assertEqual((yield converse(self, port, sent, len(sent))), sent)
        yield from self.ends_in_peace(service)

    @inlineCallbacks
    def test_another_distribution(self):
        """The mode of docs/write_a_mode.rst, with the configuration that is shown there."""
        example = programs.TREE / "examples" / "shout"
        wheel = yield self.environment.build(self, example)
        self.assertEqual(
            {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")},
            {"proxykit_shout.py", "proxykit/plugins/shout.py"},
        )
        yield self.environment.install(self, wheel)
        output = yield self.python("-c", FIND)
        self.assertIn("'shout'", output)

        port = programs.free_port()
        shown = (example / "shout.toml").read_text()
        self.assertIn("tcp:7777:", shown)
        config = Path(self.mktemp()).resolve()
        config.write_text(shown.replace("tcp:7777:", f"tcp:{port}:"))
        service = yield self.service("--config", str(config))
        answer = yield converse(self, port, b"hello\r\nb\xc3\xa9\n", 12)
        self.assertEqual(answer, b"HELLO!\nB\xc3\xa9!\n")
        yield from self.ends_in_peace(service)
