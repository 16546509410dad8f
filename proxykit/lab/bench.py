"""What an experiment works with: a network of its own, the real service, origins and clients.

All of it is gone when the bench is closed, whatever has happened in between. An experiment reads::

    bench.origin("one", "10.1.0.1:80")
    proxy = bench.proxy(TOML)                      # what one would write into proxykit.toml
    clients = bench.clients()
    told = clients.open(1100, to=f"{FRONT}:80")    # {"open": 1000, "outcomes": {"served": 1000, ...
    proxy.api("/api/ports")                        # what the proxy says
    bench.sockets()                                # and what the kernel does
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxykit.lab import programs
from proxykit.lab.namespaces import Network, Side
from proxykit.lab.programs import LabError, Program
from proxykit.model import Address

#: The first port that the proxy connects from.
FIRST_PORT = 40000
#: Descriptors of a program that are no connections.
SPARE = 300
#: Seconds for whatever clients are told to do, unless the bench's time is up before.
LONG = 600.0
#: Seconds between two looks at something that is awaited.
LOOK = 0.05

#: twistd without its script, which is elsewhere in every installation. -P: the working directory is
#: no place to import from.
_TWISTD = ("-P", "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")

Tell = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Socket:
    """A TCP socket of the proxy's to a backend, as ``ss`` shows it.

    :ivar state: as there: ``ESTAB``, ``TIME-WAIT``, ``FIN-WAIT-2``, ...
    :ivar source: the local IP address, and ``port`` the local port.
    :ivar peer: as users write it, such as ``[fd00::1]:80``.
    """

    state: str
    source: str
    port: int
    peer: str


class Sockets(tuple[Socket, ...]):
    """What the kernel shows at one moment."""

    __slots__ = ()

    @classmethod
    def parse(cls, printed: str) -> Sockets:
        """Read what ``ss -Htan`` prints, except sockets that listen."""
        return cls(_parsed(printed))

    @property
    def states(self) -> Counter[str]:
        """How many are in which state."""
        return Counter(each.state for each in self)

    @property
    def tuples(self) -> Counter[tuple[str, str]]:
        """How many there are from which address to which backend."""
        return Counter((each.source, each.peer) for each in self)

    def to(self, *peers: str) -> Sockets:
        """Those to these backends."""
        return Sockets(each for each in self if each.peer in peers)


def _parsed(printed: str) -> Iterator[Socket]:
    for line in printed.splitlines():
        state, _, _, local, peer, *_ = line.split()
        if state != "LISTEN":
            address = Address.parse(local)
            yield Socket(state, address.host, address.port, peer)


class Proxy:
    """The service. Its admin listener is a unix socket, which is read from outside.

    :ivar program: the process; see ``programs.Program``.
    """

    def __init__(self, program: Program, admin: Path) -> None:
        self.program = program
        self._admin = admin
        program.until(self._answers, "up")

    def _answers(self) -> bool:
        try:
            return bool(self.api("/healthz")["status"] == "ok")
        except (OSError, http.client.HTTPException):
            return False

    def api(self, path: str) -> Any:
        """What the admin listener answers, read from JSON."""
        connection = _OverUnix(self._admin)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    @property
    def budget(self) -> dict[str, Any]:
        """The one budget, or the first, of ``/api/ports``."""
        budgets: list[dict[str, Any]] = self.api("/api/ports")["budgets"]
        return budgets[0]

    @property
    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.program.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self.program.log

    def logged(self, *words: str) -> str:
        """The last line of the log that has one of these in it, without its date; or nothing."""
        lines = [line for line in self.log.splitlines() if any(word in line for word in words)]
        return lines[-1].partition("] ")[2] if lines else ""

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self.program.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self.program.kill()


class _OverUnix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=programs.PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(programs.PATIENCE)
        # A name of a socket has 107 bytes, and directories for temporary files may have long ones.
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)


class Clients:
    """A program with clients; see ``clients.Crowd`` for what they can do.

    :param tell: is given how far something is.
    """

    def __init__(self, program: Program, tell: Tell) -> None:
        self.program = program
        self._tell = tell

    def begin(self, do: str, **how: Any) -> None:
        """Have them do something; :meth:`wait` is to follow."""
        if isinstance(how.get("to"), str):
            how["to"] = [how["to"]]
        self.program.tell({"do": do, **how})

    def wait(self, timeout: float = LONG) -> dict[str, Any]:
        """Until it is done; gives what they tell of it."""
        while (done := self._heard(timeout)) is None:
            continue
        return done

    def poll(self) -> dict[str, Any] | None:
        """The same, if it is done already."""
        done = None
        while done is None and self.program.speaks():
            done = self._heard(0.0)
        return done

    def _heard(self, timeout: float) -> dict[str, Any] | None:
        heard = self.program.hear(timeout)
        if "at" in heard:
            self._tell(heard["at"])
        return heard.get("done")

    def open(self, count: int, **how: Any) -> dict[str, Any]:
        """So many more, which connect, ask once, and stay."""
        return self._do("open", count=count, **how)

    def ask(self, **how: Any) -> dict[str, Any]:
        """A question of each, all at once."""
        return self._do("ask", **how)

    def look(self) -> dict[str, Any]:
        """How many are still connected, and what the others have come to."""
        return self._do("look")

    def leave(self, count: int | None = None) -> dict[str, Any]:
        """So many close their connections; None: all."""
        return self._do("leave", count=count)

    def _do(self, do: str, **how: Any) -> dict[str, Any]:
        self.begin(do, **how)
        return self.wait()


class Bench:
    """See this module. A context manager.

    :param ports: how many source ports there are.
    :param scale: 1, or what figures are multiplied with, for a quick run.
    :param tell: is given how far clients are with what they do.
    :ivar directory: for files, removed in the end.
    :ivar descriptors: how many connections one program can have.
    """

    def __init__(self, ports: int = 1000, scale: float = 1.0, tell: Tell = lambda at: None) -> None:
        self.scale = scale
        # Of an odd number the kernel may overlook one: it looks at even and odd ones in turn.
        self.ports = max(2, self.scaled(ports) // 2 * 2)
        self.descriptors = programs.raise_descriptors() - SPARE
        self.directory = Path()
        self._tell = tell
        self._programs: list[tuple[Side, Program]] = []
        self._count = 0
        self._network: Network | None = None

    def __enter__(self) -> Bench:
        self.directory = Path(tempfile.mkdtemp(prefix="proxykit-lab-"))
        try:
            ports = (FIRST_PORT, FIRST_PORT + self.ports - 1)
            self._network = Network(ports, self.directory)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End and remove all that was made."""
        self.clear()
        if self._network is not None:
            self._network.end()
            self._network = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def clear(self) -> None:
        """End all programs. Backends come first, and who closes first keeps the port: so nothing
        rests in TIME_WAIT on the proxy's side, except what did so before."""
        everything, self._programs = self._programs, []
        for side in reversed(self._network.sides if self._network else ()):
            for where, program in everything:
                if where is side:
                    program.kill()

    def scaled(self, count: int) -> int:
        """A figure as large as this run has it."""
        return max(1, round(count * self.scale))

    def needs(self, connections: int) -> None:
        """See that one program can have so many connections.

        :raises LabError: it cannot.
        """
        if connections > self.descriptors:
            raise LabError(
                f"this needs {connections + SPARE:,} descriptors in one process, and there are"
                f" {self.descriptors + SPARE:,} (ulimit -Hn); try --quick"
            )

    @property
    def network(self) -> Network:
        """The namespaces."""
        if self._network is None:
            raise RuntimeError("the bench is closed")
        return self._network

    def proxy(self, toml: str, reactor: str = "") -> Proxy:
        """Start the service; gives it when it is up.

        :param toml: its file, except the admin listener.
        :param reactor: one of Twisted's own; empty: proxykit's.
        """
        number = self._number()
        path = self.directory / f"{number}.toml"
        path.write_text(f'[admin]\nlisten = "unix:{number}.sock"\n{toml}', encoding="utf-8")
        options = [f"--reactor={reactor}"] if reactor else []
        argv = [*_TWISTD, *options, "proxykit", "--config", path.name]
        program = self._start("the proxy", self.network.proxy, argv, talks=False)
        return Proxy(program, self.directory / f"{number}.sock")

    def origin(
        self,
        name: str,
        *listen: str,
        talk: str = "http",
        close: bool = False,
        delay: float = 0.0,
        size: int = 0,
    ) -> Program:
        """Start a backend; gives it when it listens. See ``origin.py``.

        :param listen: addresses, such as ``10.1.0.1:80``.
        :param talk: ``http``, or ``any``.
        :param close: whether it closes behind each answer.
        :param delay: seconds before each answer.
        :param size: more bytes in each answer.
        """
        argv = ["-m", "proxykit.lab.origin", name, *listen, "--talk", talk]
        argv += ["--delay", str(delay), "--size", str(size), *["--close"] * close]
        program = self._start(f"origin {name}", self.network.backends, argv)
        program.hear()
        return program

    def clients(self, side: Side | None = None) -> Clients:
        """Start a program for clients.

        :param side: where they are; default: where clients belong.
        """
        where = side or self.network.clients
        program = self._start("clients", where, ["-m", "proxykit.lab.clients"])
        return Clients(program, self._tell)

    def run(self, name: str, side: Side, module: str, *argv: str) -> Program:
        """Start another program of the lab's, which says a line of JSON when it is up."""
        program = self._start(name, side, ["-m", module, *argv])
        program.hear()
        return program

    def _start(self, name: str, side: Side, argv: Sequence[str], talks: bool = True) -> Program:
        log = self.directory / f"{self._number()}.log"
        whole = [*side.within, sys.executable, *argv]
        program = Program(name, whole, log, talks=talks, cwd=self.directory)
        self._programs.append((side, program))
        return program

    def _number(self) -> int:
        self._count += 1
        return self._count

    def sockets(self, *peers: str) -> Sockets:
        """The proxy's sockets to backends, TIME_WAIT included.

        :param peers: to these alone.
        """
        last = FIRST_PORT + self.ports - 1
        which = ["sport", "ge", f":{FIRST_PORT}", "and", "sport", "le", f":{last}"]
        found = Sockets.parse(self.network.proxy.run("ss", "-Htan", *which))
        return found.to(*peers) if peers else found

    def until(self, true: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
        """Look again and again until something is true.

        :raises LabError: time is up; the message has ``what``.
        """
        given_up = time.monotonic() + seconds
        while not true():
            if time.monotonic() > given_up:
                raise LabError(f"not {what} within {seconds:.0f} s")
            time.sleep(LOOK)

    def watch(
        self, clients: Sequence[Clients], every: float, look: Callable[[float], object]
    ) -> list[dict[str, Any]]:
        """Look at something every so often, until all of these are done with what they were told.

        :param every: seconds.
        :param look: is given the seconds since the start.
        :returns: what each of them tells, in their order.
        """
        done: list[dict[str, Any] | None] = [None] * len(clients)
        started, due = time.monotonic(), 0.0
        while None in done:
            if (now := time.monotonic() - started) >= due:
                look(now)
                due += every
            done = [had or each.poll() for had, each in zip(done, clients, strict=True)]
            time.sleep(LOOK)
        return [each for each in done if each is not None]
