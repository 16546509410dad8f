"""proxykit.lab.progress: what is shown, and where."""

from __future__ import annotations

import importlib.util
import io
import sys
from unittest import mock

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from proxykit.lab.progress import Bar, Line, Progress, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ProgressTests(SynchronousTestCase):
    def play(self, shown):
        with shown:
            shown.phase("clients [come]", of=1000)
            shown.told({"done": 250, "of": 1000})
            shown.told({"seconds": 500.0, "outcomes": {}})
            shown.told({"what": 0})
            shown.phase("they ask")
            shown.at(3)

    def test_no_terminal(self):
        out = io.StringIO()
        self.patch(sys, "stderr", out)
        shown = progress("limit")
        self.play(shown)
        self.assertEqual((type(shown), out.getvalue()), (Progress, ""))

    def test_without_rich(self):
        """One line, gone in the end."""
        out = Terminal()
        self.patch(sys, "stderr", out)
        with mock.patch.dict(sys.modules, {"rich.console": None}):
            shown = progress("limit")
        self.play(shown)
        self.assertIsInstance(shown, Line)
        self.assertEqual(
            out.getvalue().split("\r\x1b[K"),
            [
                "",
                "limit: clients [come]",
                "limit: clients [come]: 250 of 1,000",
                "limit: clients [come]: 500 of 1,000",
                "limit: they ask",
                "",
            ],
        )

    def test_rich(self):
        if importlib.util.find_spec("rich") is None:
            raise SkipTest("rich is not installed")
        out = Terminal()
        self.patch(sys, "stderr", out)
        shown = progress("limit")
        self.assertIsInstance(shown, Bar)
        self.play(shown)
        self.assertIn("they ask", out.getvalue())
        self.assertTrue(out.getvalue().endswith("\x1b[2K"), out.getvalue()[-20:])
