"""proxykit.components: names are found without importing what they stand for."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxykit import components
from proxykit.components import Component, IComponent
from proxykit.core.balance import RoundRobin
from proxykit.interfaces import IBackendSource, IBalancer, IKnowingSource, IMode
from proxykit.sources.file import FileSource


class ComponentTests(SynchronousTestCase):
    def test_load(self):
        one = Component("balance", "rr", "proxykit.core.balance:RoundRobin", "in turn")
        self.assertTrue(verifyObject(IComponent, one))
        self.assertIs(one.load(), RoundRobin)

    def test_missing(self):
        for target, error in (
            ("proxykit.nothing:x", ImportError),
            ("proxykit.errors:nothing", AttributeError),
            ("proxykit.errors", AttributeError),
        ):
            self.assertRaises(error, Component("mode", "x", target, "").load)


class ComponentsTests(SynchronousTestCase):
    def test_built_in(self):
        """Each policy and mode can be made, and keeps its interface."""
        policies = components.components("balance")
        self.assertEqual(
            list(policies),
            ["least-connections", "random-two-choices", "round-robin", "source-hash"],
        )
        for policy in policies.values():
            self.assertTrue(verifyObject(IBalancer, policy.load()()))
        for mode in components.components("mode").values():
            self.assertTrue(verifyObject(IMode, mode.load()()))
        for source in components.components("source").values():
            self.assertTrue(verifyObject(IBackendSource, source.load()()))
        self.assertTrue(verifyObject(IKnowingSource, FileSource()))

    def test_order_and_kind(self):
        found = [
            Component(kind, name, "", "")
            for kind, name in (("mode", "c"), ("balance", "a"), ("mode", "b"))
        ]
        self.patch(components, "getPlugins", lambda *_: found)
        self.assertEqual(list(components.components("mode")), ["b", "c"])
        self.assertEqual(list(components.components("source")), [])

    def test_imports_none(self):
        """In a process of its own, where nothing has been imported yet."""
        text = (
            "import sys; from proxykit.components import components;"
            "assert components('mode') and components('balance');"
            "print(sorted(name for name in sys.modules"
            " if name.startswith(('proxykit.core', 'proxykit.modes', 'proxykit.net'))))"
        )
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60
        )
        self.assertEqual(done.stdout, "[]\n")
