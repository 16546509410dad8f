"""Tests for ``namespaces``: who counts sockets there must not count wrongly."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, TestCase

from proxykit.lab.bench import Socket
from tests.interop import namespaces, programs
from tests.interop.namespaces import Network
from tests.sockets import until

#: Connects to each of its arguments; says so; keeps it until its input ends.
CLIENT = """
import socket, sys
held = [socket.create_connection((each, 80)) for each in sys.argv[1:]]
print("connected", flush=True)
sys.stdin.read()
"""
#: Listens at each of its arguments.
SERVER = """
import socket, sys
for each in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in each else socket.AF_INET
    made = socket.create_server((each, 80), family=family)
    made.detach()
print("listens", flush=True)
sys.stdin.read()
"""


#: Where connections come from, and where they go.
PAIRS = {("10.0.0.1", "10.0.1.1:80"), ("fd00::1", "[fd00::101]:80")}


def other_end(each: Socket) -> Socket:
    """The socket at the other end of one to port 80."""
    return Socket(each.state, each.peer.rpartition(":")[0], 80, f"{each.source}:{each.port}")


class NetworkTests(TestCase):
    timeout = 60

    async def python(self, side: namespaces.Side, code: str, *arguments: str) -> Any:
        """Run Python inside; gives it when it has said something."""
        argv = [sys.executable, "-c", code, *arguments]
        child = programs.Child.start(self, argv, within=side.within)
        await child.wait_for(".")
        return child

    async def talk(self) -> Network:
        """A network over which both families have connected."""
        near, far = ("10.0.0.1", "10.0.0.2", "fd00::1"), ("10.0.1.1", "fd00::101")
        network = await Network.start(self, near=near, far=far, ports=(50001, 50003))
        await self.python(network.far, SERVER, *far)
        await self.python(network.near, CLIENT, *far)
        found = await network.near.sockets("10.0.1.1:80", "[fd00::101]:80")
        self.assertEqual(found.states, {"ESTAB": 2})
        self.assertEqual({(each.source, each.peer) for each in found}, PAIRS)
        self.assertTrue(all(50001 <= each.port <= 50003 for each in found), found)
        (four,) = await network.near.sockets("10.0.1.1:80")
        self.assertEqual(await network.far.sockets(f"10.0.0.1:{four.port}"), (other_end(four),))
        return network

    async def test_joined(self) -> None:
        """Programs of one side reach the other's, from the ports that were said."""
        await self.talk()

    async def test_as_a_user(self) -> None:
        """Without being root outside."""
        self.patch(os, "geteuid", lambda: 1000)
        network = await self.talk()
        self.assertIn("-U", network.near.within)

    async def test_no_namespaces(self) -> None:
        """A skip that says why."""
        for name in ("AS_ROOT", "AS_USER"):
            self.patch(namespaces, name, (("sh", "-c", "echo not permitted; exit 1"), ()))
        self.patch(os, "environ", {"PATH": os.environ["PATH"]})
        with self.assertRaises(SkipTest) as caught:
            await Network.start(self)
        self.assertEqual(str(caught.exception), "no network namespaces here: not permitted")

    async def test_gone(self) -> None:
        """A namespace ends when what holds it has no input any more, and the pair with it."""
        network = await Network.start(self)
        self.assertIn(namespaces.LINK, await network.near.run("ip", "link"))
        network.far.holder.transport.closeStdin()
        self.assertEqual(await network.far.holder.ended(), 0)
        while namespaces.LINK in await network.near.run("ip", "link"):
            pass

    async def test_started_by_nobody(self) -> None:
        """What runs inside ends with the process that has started it, even if that is killed."""
        network = await Network.start(self)
        code = "import os, sys; os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]); sys.stdin.read()"
        argv = [*network.near.within, "sh", "-c", "echo $$; exec sleep 1000"]
        parent = programs.Child.start(self, [sys.executable, "-c", code, *argv])
        inner = Path("/proc", (await parent.wait_for("^([0-9]+)$"))[1])
        await until(lambda: (inner / "comm").read_text() == "sleep\n")
        await parent.stop("KILL")
        await until(lambda: not inner.exists())
