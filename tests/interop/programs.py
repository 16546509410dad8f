"""Real programs for tests: finding them, starting them, waiting for what they say, ending them.

Nothing here sleeps to be safe: a test waits for output, up to a deadline, and every process that
it started is ended by its own pid when it is over, however it went. So a test reads::

    @inlineCallbacks
    def test_bytes(self):
        origin = yield programs.nginx(self, "server { listen 127.0.0.1:8001; return 200; }")
        proxy = yield programs.service(self, ["tcp", "--listen", ..., "--backend", ...])
        status, printed = yield programs.run(self, [require("curl"), "-s", url])
        self.assertEqual((yield proxy.stop()), 0)
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, TestCase

TREE = Path(__file__).resolve().parents[2]

#: Seconds. Long enough for a busy machine; a test that meets it has failed.
DEADLINE = 30.0

#: Why a test is left out where trial runs on the proxykit reactor: what it tries are processes of
#: their own, which are on that one anyhow.
TWICE = "it is run with the default reactor" if hasattr(reactor, "binds_late") else None

#: The sockets of the ports that were asked for last, more than any test asks for.
_HELD: deque[socket.socket] = deque(maxlen=64)

#: twistd without its script, which is elsewhere in every installation. -P: the working directory
#: is no place to import from.
TWISTD = ("-P", "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")


def require(name: str) -> str:
    """The path of a program, such as ``nginx``, wherever the system keeps it.

    :raises SkipTest: it is not installed; with ``PROXYKIT_REQUIRE_INTEROP=1`` that is a failure.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is not None:
        return path
    raise missing(f"{name} is not installed")


def missing(what: str) -> Exception:
    """What to raise where a test cannot be made here: a skip; with ``PROXYKIT_REQUIRE_INTEROP=1``
    a failure."""
    if os.environ.get("PROXYKIT_REQUIRE_INTEROP") == "1":
        return AssertionError(f"{what}, and PROXYKIT_REQUIRE_INTEROP=1 is set")
    return SkipTest(what)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on. For programs that cannot be given port 0.

    It stays bound here, so that neither a connect nor another call is given it; who sets
    ``SO_REUSEADDR``, as every server does, can listen on it all the same.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    if len(_HELD) == _HELD.maxlen:
        _HELD[0].close()
    _HELD.append(held)
    return held.getsockname()[1]


class Child(ProcessProtocol):
    """A process of a test's own, and all that it has printed, both streams together.

    :ivar output: so far, as text.
    :ivar status: None while it runs; then its exit status, or minus the signal that ended it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.output = ""
        self.status: int | None = None
        self._waiting: list[tuple[re.Pattern[str], Deferred[re.Match[str]]]] = []
        self._ended: list[Deferred[int]] = []

    @classmethod
    def start(
        cls,
        testcase: TestCase,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        within: Sequence[str] = (),
    ) -> Child:
        """Start a program, and see to it that it does not outlive the test.

        :param argv: the program, by its path, and its arguments.
        :param env: the whole environment; by default the test's own.
        :param within: a program that becomes this one elsewhere, and its arguments, such as
            ``Side.within`` of ``namespaces``.
        """
        child = cls(os.path.basename(argv[0]))
        whole = [*within, *argv]
        reactor.spawnProcess(
            child,
            whole[0],
            whole,
            env=dict(os.environ if env is None else env),
            path=None if cwd is None else str(cwd),
        )
        testcase.addCleanup(child._finish)
        return child

    @property
    def pid(self) -> int | None:
        """None once it has ended."""
        return self.transport.pid

    def wait_for(self, pattern: str, timeout: float = DEADLINE) -> Deferred[re.Match[str]]:
        """Wait until the output, from its start on, has a match (``re.MULTILINE``).

        While it runs, only whole lines are looked at, for a line can come in pieces. Fails with
        what was printed when the process ends without, or after ``timeout`` seconds.
        """
        compiled = re.compile(pattern, re.MULTILINE)
        if (match := compiled.search(self._whole_lines())) is not None:
            return succeed(match)
        waiter: Deferred[re.Match[str]] = Deferred()
        if self.status is not None:
            waiter.errback(self._disappointed(compiled))
            return waiter
        entry = (compiled, waiter)
        self._waiting.append(entry)

        def too_late(result: object, seconds: float) -> Failure:
            self._waiting.remove(entry)
            return self._failure(f"did not print {pattern!r} within {seconds} s")

        return waiter.addTimeout(timeout, reactor, too_late)

    def ended(self, timeout: float = DEADLINE) -> Deferred[int]:
        """Wait for its end; gives :attr:`status`."""
        if self.status is not None:
            return succeed(self.status)
        waiter: Deferred[int] = Deferred()
        self._ended.append(waiter)

        def too_late(result: object, seconds: float) -> Failure:
            self._ended.remove(waiter)
            return self._failure(f"did not end within {seconds} s")

        return waiter.addTimeout(timeout, reactor, too_late)

    def stop(self, name: str = "TERM", timeout: float = DEADLINE) -> Deferred[int]:
        """Send it a signal by name, and wait for its end; gives :attr:`status`."""
        self.signal(name)
        return self.ended(timeout)

    def signal(self, name: str) -> None:
        """Send it a signal by name, such as ``HUP``; nothing where it has ended already."""
        try:
            self.transport.signalProcess(signal.Signals[f"SIG{name}"])
        except ProcessExitedAlready:
            return

    def _finish(self) -> Deferred[int]:
        return self.stop("KILL")

    def _failure(self, what: str) -> Failure:
        return Failure(AssertionError(f"{self.name} {what}; it printed:\n{self.output}"))

    def _disappointed(self, pattern: re.Pattern[str]) -> Failure:
        return self._failure(f"ended ({self.status}) without printing {pattern.pattern!r}")

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output += data.decode("utf-8", "replace")
        self._look()

    def _whole_lines(self) -> str:
        return self.output[: self.output.rfind("\n") + 1] if self.status is None else self.output

    def _look(self) -> None:
        text = self._whole_lines()
        for entry in list(self._waiting):
            compiled, waiter = entry
            if (match := compiled.search(text)) is not None:
                self._waiting.remove(entry)
                waiter.callback(match)

    def processEnded(self, reason: Failure) -> None:
        ending = reason.value
        self.status = ending.exitCode if ending.signal is None else -ending.signal
        self._look()
        waiting, self._waiting = self._waiting, []
        for compiled, waiter in waiting:
            waiter.errback(self._disappointed(compiled))
        ended, self._ended = self._ended, []
        for waiter in ended:
            waiter.callback(self.status)


def run(
    testcase: TestCase,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float = DEADLINE,
    within: Sequence[str] = (),
) -> Deferred[tuple[int, str]]:
    """Run a program to its end; gives its status and its output."""
    child = Child.start(testcase, argv, env=env, cwd=cwd, within=within)
    return child.ended(timeout).addCallback(lambda status: (status, child.output))


def environment() -> dict[str, str]:
    """The test's environment, and this tree first of what Python imports from: it may not be
    installed where the tests run."""
    path = os.pathsep.join(filter(None, (str(TREE), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def service(
    testcase: TestCase,
    args: Sequence[str],
    *,
    twistd: Sequence[str] = (),
    ready: str = r"listening on",
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Deferred[Child]:
    """Start ``twistd -n proxykit ARGS`` in a directory of its own; gives it when it is up.

    :param twistd: options of twistd's own, such as ``--reactor=select``.
    :param ready: what it prints when it is up; by default, when its first listener is.
    :param env: the whole environment; by default the test's, with this tree importable.
    :param within: as ``Child.start`` has it.
    """
    directory = Path(testcase.mktemp())
    directory.mkdir(parents=True)
    child = Child.start(
        testcase,
        [python, *TWISTD, *twistd, "proxykit", *args],
        env=environment() if env is None else env,
        cwd=directory,
        within=within,
    )
    return child.wait_for(ready).addCallback(lambda match: child)


_NGINX = """
daemon off;
# One process, which stays the present user.
master_process off;
{user}
pid {directory}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{http}
}}
"""


def nginx(testcase: TestCase, http: str, *, within: Sequence[str] = ()) -> Deferred[Child]:
    """Start nginx in the foreground; gives it when it listens.

    :param http: what stands in its ``http`` block; ``{directory}`` in it is the directory, made
        for this test, that all of nginx's files are in. Other braces stay as they are.
    :param within: as ``Child.start`` has it.
    """
    program = require("nginx")
    directory = Path(testcase.mktemp()).resolve()
    directory.mkdir(parents=True)
    conf = directory / "nginx.conf"
    body = http.replace("{directory}", str(directory))
    # Else its files are to be nobody's, who is unknown in a namespace of users.
    user = "user root;" if within else ""
    conf.write_text(_NGINX.format(directory=directory, http=body, user=user))
    child = Child.start(
        testcase,
        [program, "-p", str(directory), "-e", "stderr", "-c", str(conf)],
        cwd=directory,
        within=within,
    )
    # It says which system it is on after it has bound its sockets.
    return child.wait_for(r"\[notice\].*: OS: ").addCallback(lambda match: child)
