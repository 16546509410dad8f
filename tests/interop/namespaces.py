"""Two network namespaces with a veth pair between, for what loopback does not show.

The kernel gives source ports of loopback out again while they are in TIME_WAIT; and the ports of a
test must be its own, few, and counted. Both namespaces end with the test, whatever becomes of it:
each is held by a process that ends with its standard input, and what runs inside ends with who has
started it. A test reads::

    network = await Network.start(self, near=["10.0.0.1"], far=["10.0.1.1"], ports=(40000, 40199))
    await programs.nginx(self, "server { listen 10.0.1.1:80; }", within=network.far.within)
    await programs.service(self, [...], within=network.near.within)
    found = await network.near.sockets("10.0.1.1:80")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen
from twisted.trial.unittest import TestCase

from proxykit.lab.bench import Sockets
from tests.interop import programs

#: What the veth pair is called, in both namespaces; and what all addresses have in common.
LINK = "proxykit"
PREFIXES = {4: 8, 6: 64}

#: How a first namespace is made, and one is entered by its process's id: as root; else as the root
#: of a namespace of users, which is the second namespace's too.
AS_ROOT = (("unshare", "-n"), ("nsenter", "-n", "-t"))
AS_USER = (("unshare", "-Urn"), ("nsenter", "-U", "--preserve-credentials", "-n", "-t"))


@frozen
class Side:
    """One of the two namespaces.

    :ivar within: what a program has to be started by to run in it; see ``programs.Child.start``.
    :ivar holder: the process that holds it.
    """

    test: TestCase
    within: tuple[str, ...]
    holder: programs.Child

    async def run(self, *argv: str) -> str:
        """Run a program to its end; gives its output."""
        path = programs.require(argv[0])
        status, output = await programs.run(self.test, [path, *argv[1:]], within=self.within)
        assert status == 0, f"{' '.join(argv)}: {output[-500:]}"
        return output

    async def set(self, name: str, value: str) -> None:
        """Set something below /proc/sys/net."""
        await self.run("sh", "-c", f"echo '{value}' > /proc/sys/net/{name}")

    async def sockets(self, *peers: str) -> Sockets:
        """The TCP sockets, TIME_WAIT included; with ``peers``, those that are connected there."""
        found = Sockets.parse(await self.run("ss", "-Htan"))
        return found.to(*peers) if peers else found


class Network:
    """Two sides, joined.

    :ivar near: where a proxy and its clients are, and ``far``: its backends.
    """

    def __init__(self, near: Side, far: Side) -> None:
        self.near = near
        self.far = far

    @classmethod
    async def start(
        cls,
        test: TestCase,
        *,
        near: Sequence[str] = ("10.0.0.1",),
        far: Sequence[str] = ("10.0.1.1",),
        ports: tuple[int, int] = (40000, 40199),
    ) -> Network:
        """Make both.

        :param near: IP addresses; an IPv4 connection that is not bound leaves from the first one.
        :param ports: the first and last that the near side connects from.
        """
        first, enter = await cls._first(test)
        second = await _hold(test, AS_ROOT[0], enter, first.within)
        holder = second.holder.pid
        await first.run(*f"ip link add {LINK} type veth peer {LINK} netns {holder}".split())
        for side, addresses in ((first, near), (second, far)):
            lines = ["link set lo up", f"link set {LINK} up"]
            lines += (_address(each) for each in addresses)
            path = Path(test.mktemp())
            path.write_text("".join(f"{line}\n" for line in lines))
            await side.run("ip", "-batch", str(path))
        await first.set("ipv4/ip_local_port_range", "{} {}".format(*ports))
        return cls(first, second)

    @staticmethod
    async def _first(test: TestCase) -> tuple[Side, Sequence[str]]:
        """A namespace of its own; and how to enter others."""
        for make, enter in (AS_ROOT, AS_USER)[os.geteuid() != 0 :]:
            try:
                side = await _hold(test, make, enter, ())
            except _Refused as refused:
                why = refused
            else:
                return side, enter
        raise programs.missing(f"no network namespaces here: {why}")


def _address(text: str) -> str:
    version = 6 if ":" in text else 4
    # Without nodad the kernel looks for others first who have it, for a second.
    return f"addr add {text}/{PREFIXES[version]} dev {LINK}" + " nodad" * (version == 6)


class _Refused(Exception):
    """The kernel makes no namespace for us."""


async def _hold(
    test: TestCase, make: Sequence[str], enter: Sequence[str], within: Sequence[str]
) -> Side:
    """Make a namespace."""
    path = programs.require
    script = f"echo up; exec {path('cat')}"
    argv = [path(make[0]), *make[1:], path("sh"), "-c", script]
    holder = programs.Child.start(test, argv, within=within)
    try:
        await holder.wait_for("^up$")
    except AssertionError:
        if holder.status is None:
            raise
        raise _Refused(holder.output.strip()) from None
    # What is started inside ends with the process that has started it, killed or not.
    ending = (path("setpriv"), "--pdeathsig", "KILL", "--")
    return Side(test, (path(enter[0]), *enter[1:], str(holder.pid), "--", *ending), holder)
