"""``proxykit lab limit``, scaled down, for real: what it finds, and that nothing is left of it.

Everything that belongs to one run has a word of its own in its environment, and its files in
a directory of its own, so what is left can be looked for.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tests.interop import programs
from tests.sockets import BLOCKING

PROGRAMS = ("ip", "nsenter", "setpriv", "ss", "unshare")
#: Who may make no namespaces for others, but a network for itself; and who may do nothing at all.
AS_A_USER = ("unshare", "-U", "--map-user=1000", "--map-group=1000", "--")
AS_NOBODY = ("unshare", "-U", "--")
#: What runs in the middle of an experiment, by a word of its command line.
RUNNING = ("proxykit.lab.origin", "--config", "proxykit.lab.clients")

_numbers = itertools.count(1)


class LabTests(TestCase):
    timeout = 120
    skip = programs.TWICE

    def setUp(self):
        for name in PROGRAMS:
            programs.require(name)
        self.word = f"PROXYKIT_LAB_TEST={os.getpid()}-{next(_numbers)}"
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir(parents=True)
        self.links = self.all_links()

    @staticmethod
    def all_links():
        return Path("/proc/net/dev").read_text(encoding="ascii").count(":")

    def start(self, *argv, prefix=(), options=("limit", "--quick", "--json")):
        name, value = self.word.split("=")
        env = {**programs.environment(), name: value, "TMPDIR": str(self.directory)}
        if prefix:
            prefix = (programs.require(prefix[0]), *prefix[1:])
        argv = [*prefix, sys.executable, "-m", "proxykit", "lab", *options]
        return programs.Child.start(self, argv, env=env)

    def processes(self):
        """The command lines of those of this run, the command itself included."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.word.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append((path / "cmdline").read_text(errors="replace"))
            except OSError:  # It has just ended, or is somebody else's.
                continue
        return found

    def runs(self):
        """What of an experiment runs."""
        lines = self.processes()
        return tuple(word for word in RUNNING if any(word in line for line in lines))

    async def becomes(self, look, wanted):
        """Look again and again, until what is seen is this."""
        given_up = time.monotonic() + BLOCKING
        while (seen := look()) != wanted and time.monotonic() < given_up:
            await deferLater(reactor, 0.01)
        self.assertEqual(seen, wanted)

    async def halfway(self):
        """Everything has been started by now."""
        await self.becomes(self.runs, RUNNING)

    async def assert_nothing_is_left(self):
        await self.becomes(self.processes, [])
        await self.becomes(lambda: os.listdir(self.directory), [])
        self.assertEqual(self.all_links(), self.links)
        if shutil.which("ip"):
            _, names = await programs.run(self, [programs.require("ip"), "netns", "list"])
            self.assertNotIn("proxykit", names)

    def assert_found(self, child):
        """What the experiment is there to show."""
        (result,) = json.loads(child.output[child.output.index("[\n") :])
        (table,) = result["tables"]
        l4, l7 = (dict(zip(table["columns"], row, strict=True)) for row in table["rows"])
        self.assertEqual((l4["clients served"], l4["clients refused"]), (100, 850))
        self.assertEqual((l7["clients served"], l7["clients refused"]), (950, 0))
        self.assertEqual((l4["backend connections"], l7["backend connections"]), (100, 20))
        self.assertEqual(l7["answered when all ask at once"], 950)
        self.assertIn("(100 of 100 in use, 0 kept as headroom)", table["notes"][0])
        self.assertIn("L4 served 100 of 950 clients", result["answer"])

    async def test_twice(self):
        for _ in range(2):
            child = self.start()
            self.assertEqual(await child.ended(60), 0, child.output)
            self.assert_found(child)
            await self.assert_nothing_is_left()

    async def test_as_a_user(self):
        """Whoever is nobody here may do it, where users may have namespaces."""
        child = self.start(prefix=AS_A_USER)
        status = await child.ended(60)
        if "no network namespaces" in child.output or "unshare:" in child.output:
            raise programs.missing("users may not make namespaces here")
        self.assertEqual(status, 0, child.output)
        self.assert_found(child)
        await self.assert_nothing_is_left()

    async def test_no_right(self):
        """It says so, in a line."""
        child = self.start(prefix=AS_NOBODY)
        self.assertEqual(await child.ended(60), 1)
        if "unshare:" in child.output:
            raise programs.missing("users may not make namespaces here")
        self.assertIn("no network namespaces can be made here: run it as root", child.output)
        self.assertEqual(child.output.count("\n"), 1)
        await self.assert_nothing_is_left()

    async def test_interrupted(self):
        """By Ctrl-C, and by another one while it tidies up."""
        child = self.start()
        await self.halfway()
        child.signal("INT")
        child.signal("INT")
        self.assertEqual(await child.ended(), 130, child.output)
        self.assertEqual(child.output, "proxykit lab: interrupted; nothing is left behind\n")
        await self.assert_nothing_is_left()

    async def test_killed(self):
        """Nobody is there to tidy up."""
        child = self.start()
        await self.halfway()
        await child.stop("KILL")
        await self.assert_nothing_is_left()
