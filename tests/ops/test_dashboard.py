"""The dashboard's files: whole, of one piece, and free of what the policy of the admin forbids."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from proxykit.ops.pages import INDEX, pages

LONGEST = 500


class DashboardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.files = {path: content.decode() for path, (content, kind) in pages().items()}
        self.scripts = [self.files[path] for path in self.files if path.endswith(".js")]

    def test_readable(self) -> None:
        self.assertIn(INDEX, self.files)
        for path, text in self.files.items():
            self.assertLessEqual(text.count("\n"), LONGEST, path)

    def test_of_one_piece(self) -> None:
        """Whatever one file asks for is there, and nothing is there that no file asks for."""
        asked = re.findall(r'(?:src|href)="([^"#]+)"', self.files[INDEX])
        for text in self.scripts:
            asked += [each[2:] for each in re.findall(r'from "([^"]+)"', text)]
        self.assertEqual({INDEX, *(f"/{name}" for name in asked)} - {"/api/ports"}, {*self.files})

    def test_no_other_host(self) -> None:
        for path, text in self.files.items():
            found = set(re.findall(r"\w+://[^\s\"']*", text))
            self.assertEqual(found - {"http://www.w3.org/2000/svg"}, set(), path)

    def test_nothing_inline(self) -> None:
        """No script, style or handler in the page, and no markup that is made of text."""
        self.assertNotRegex(
            self.files[INDEX], r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:"
        )
        self.assertEqual(len(self.scripts), 3)
        for text in self.scripts:
            self.assertNotRegex(
                text, r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\("
            )
