"""Three network namespaces in a row, clients, proxy and backends, joined by veth pairs.

Loopback would not do: the kernel gives its ports out again while they are in TIME_WAIT, and it is
shared with whoever else runs here. None of the namespaces has a name, so nothing is left of them
when those that hold them have ended; and these end with their standard input, which ends with the
lab::

    192.168.0.1 .2 .3 .4 --- front 192.168.1.1   10.0.0.1 .2 .3 .4 --- back --- 10.1.0.1 .2 .3 .4
         clients                             proxy                                 backends
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from proxykit.lab import programs
from proxykit.lab.programs import LabError, require

#: Addresses, IPv4 and IPv6. Backends are reached from the sources, and the front by the clients.
CLIENTS = tuple(f"192.168.0.{n}" for n in range(1, 5))
FRONT = "192.168.1.1"
SOURCES = tuple(f"10.0.0.{n}" for n in range(1, 5))
BACKENDS = tuple(f"10.1.0.{n}" for n in range(1, 5))
CLIENTS6 = tuple(f"fd01::{n}" for n in range(1, 5))
FRONT6 = "fd01::1:1"
SOURCES6 = tuple(f"fd00::{n}" for n in range(1, 5))
BACKENDS6 = tuple(f"fd00::1:{n}" for n in range(1, 5))

#: From which ports clients and backends connect; the proxy's are the experiment's own.
WIDE = (1024, 65535)
#: How a first namespace is made, and how one is entered by the id of who holds it: as root; else as
#: the root of a namespace of users, which all three belong to.
_AS_ROOT = (("unshare", "-n"), ("nsenter", "-n", "-t"))
_AS_USER = (("unshare", "-Urn"), ("nsenter", "-U", "--preserve-credentials", "-n", "-t"))
#: What one that holds a namespace does: it says that it is there, waits for the end of its input,
#: and removes the lab's directory.
_HOLD = 'echo up; cat > /dev/null; rm -rf -- "$0"'
#: What to try where there is no right to any of this.
_HINT = (
    "run it as root, or where users may make namespaces"
    " (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
)


class Side:
    """One of the namespaces, and who holds it.

    :ivar within: what a program has to be started by to run in it, and to end with the lab.
    """

    def __init__(
        self, make: Sequence[str], enter: Sequence[str], first: Side | None, directory: Path
    ) -> None:
        """Make it.

        :param first: one that is in the same namespace of users; None: this one is the first.
        :param directory: what is removed when it ends.
        :raises LabError: the kernel does not do that for us.
        """
        before = first.enter if first is not None else ()
        argv = [*before, require(make[0]), *make[1:], require("sh"), "-c", _HOLD, str(directory)]
        self._holder = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != b"up\n":
            why = self._holder.stderr.read().decode(errors="replace").strip()
            self.end()
            raise LabError(why.splitlines()[-1] if why else "no namespace can be made")
        self.enter: tuple[str, ...] = (require(enter[0]), *enter[1:], str(self.pid), "--")
        self.within = programs.within(self.enter)

    @property
    def pid(self) -> int:
        """Of who holds it."""
        return self._holder.pid

    def run(self, *argv: str, text: str = "") -> str:
        """Run a program in it to its end; gives its output."""
        return programs.run([*self.enter, require(argv[0]), *argv[1:]], text)

    def set(self, name: str, value: str) -> None:
        """Set something below /proc/sys/net."""
        self.run("sh", "-c", f"echo '{value}' > /proc/sys/net/{name}")

    def end(self) -> None:
        """Let go of it. What still runs in it keeps it until its own end."""
        for pipe in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            assert pipe is not None
            pipe.close()
        self._holder.wait()


class Network:
    """All three.

    :param ports: the first and last port that the proxy connects from.
    :param directory: is removed in the end.
    :raises LabError: there is no right to make namespaces, or a program is missing.
    :ivar sides: clients, proxy, backends.
    """

    def __init__(self, ports: tuple[int, int], directory: Path) -> None:
        for name in ("ip", "nsenter", "unshare", "setpriv", "ss"):
            require(name)
        self.sides: list[Side] = []
        try:
            enter = self._first(directory)
            self.clients = self.sides[0]
            self.proxy = self._next(enter, directory)
            self.backends = self._next(enter, directory)
            self._join(ports)
        except BaseException:
            self.end()
            raise

    def _first(self, directory: Path) -> Sequence[str]:
        """Make the clients' side; gives how others are entered."""
        for make, enter in (_AS_ROOT, _AS_USER)[os.geteuid() != 0 :]:
            with suppress(LabError):
                self.sides.append(Side(make, enter, None, directory))
                return enter
        raise LabError(f"no network namespaces can be made here: {_HINT}")

    def _next(self, enter: Sequence[str], directory: Path) -> Side:
        self.sides.append(Side(_AS_ROOT[0], enter, self.sides[0], directory))
        return self.sides[-1]

    def _join(self, ports: tuple[int, int]) -> None:
        v6 = Path("/proc/net/if_inet6").exists()
        try:
            for link, other in (("front", self.clients), ("back", self.backends)):
                make = f"link add {link} type veth peer name {link} netns {other.pid}"
                self.proxy.run("ip", *make.split())
            _configure(self.clients, {"front": CLIENTS + CLIENTS6 * v6})
            front = (FRONT,) + (FRONT6,) * v6
            _configure(self.proxy, {"front": front, "back": SOURCES + SOURCES6 * v6})
            _configure(self.backends, {"back": BACKENDS + BACKENDS6 * v6})
            for side, which in ((self.clients, WIDE), (self.proxy, ports), (self.backends, WIDE)):
                side.set("ipv4/ip_local_port_range", "{} {}".format(*which))
        except LabError as error:
            raise LabError(f"no network can be made here ({error}): {_HINT}") from error

    def end(self) -> None:
        """Remove it."""
        while self.sides:
            self.sides.pop().end()


def _configure(side: Side, links: dict[str, tuple[str, ...]]) -> None:
    lines = ["link set lo up"]
    for link, addresses in links.items():
        lines.append(f"link set {link} up")
        lines += (f"addr add {_with_prefix(each)} dev {link}{_tail(each)}" for each in addresses)
    side.run("ip", "-batch", "-", text="\n".join(lines) + "\n")


def _with_prefix(address: str) -> str:
    if ":" in address:
        return f"{address}/64"
    return f"{address}/{8 if address.startswith('10.') else 16}"


def _tail(address: str) -> str:
    # Else the kernel looks for others first who have it, for a second.
    return " nodad" if ":" in address else ""
