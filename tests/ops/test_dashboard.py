"""The dashboard's files: whole, of one piece, and free of what its policy forbids."""

from __future__ import annotations

import re
from importlib.resources import files

from twisted.trial.unittest import SynchronousTestCase

from proxykit.ops import dashboard

LONGEST = 500


class DashboardTests(SynchronousTestCase):
    def text(self, path: str) -> str:
        return dashboard.read(path)[1].decode()

    def test_every_file(self) -> None:
        """What lies there is served, and the other way round."""
        there = {each.name for each in files(dashboard).iterdir() if each.is_file()}
        named = {name for name, kind in dashboard.FILES.values()}
        self.assertEqual({name for name in there if not name.endswith((".py", ".pyc"))}, named)
        for path, (name, kind) in dashboard.FILES.items():
            with self.subTest(name=name):
                self.assertEqual(dashboard.read(path)[0], kind)
                self.assertLessEqual(self.text(path).count("\n"), LONGEST)

    def test_nothing_else(self) -> None:
        self.assertRaises(KeyError, dashboard.read, "/__init__.py")
        self.assertRaises(KeyError, dashboard.read, "/../dashboard/app.js")

    def test_names_only_files_of_its_own(self) -> None:
        page = self.text("/")
        asked = re.findall(r'(?:src|href)="([^"#]+)"', page)
        for path in dashboard.FILES:
            if path.endswith(".js"):
                asked += [each[2:] for each in re.findall(r'from "([^"]+)"', self.text(path))]
        self.assertEqual(
            {"/", *(f"/{name}" for name in asked)} - {"/api/ports"}, {*dashboard.FILES}
        )

    def test_no_other_host(self) -> None:
        for path in dashboard.FILES:
            found = set(re.findall(r"\w+://[^\s\"']*", self.text(path)))
            self.assertEqual(found - {"http://www.w3.org/2000/svg"}, set(), path)

    def test_nothing_inline(self) -> None:
        """No script, style or handler in the page, and no markup made of text."""
        page = self.text("/")
        self.assertNotRegex(page, r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:")
        for path in dashboard.FILES:
            if path.endswith(".js"):
                self.assertNotRegex(
                    self.text(path),
                    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(",
                )
