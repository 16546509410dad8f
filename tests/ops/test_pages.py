"""The dashboard's files, as the admin listener serves them."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from proxykit.ops import pages
from proxykit.ops.admin_web import SAFETY
from tests.ops.admins import BEARER, TOKEN, AdminCase

DIRECTORY = Path(pages.__file__).parent / "dashboard"


class FileTests(SynchronousTestCase):
    def test_what_there_is(self) -> None:
        """All that a browser may load, and no code of Python's."""
        found = pages.pages()
        expected = {f"/{each.name}" for each in DIRECTORY.iterdir() if each.suffix in pages.KINDS}
        self.assertEqual(set(found), expected)
        self.assertIn(pages.INDEX, found)
        self.assertFalse([path for path in found if path.endswith(".py")])

    def test_there_is_none(self) -> None:
        self.patch(pages, "_DIRECTORY", "nowhere")
        self.assertEqual(pages.pages(), {})


class ServedTests(AdminCase):
    async def test_for_a_browser(self) -> None:
        await self.start()
        page = await self.ask("/", accept="text/html,application/xhtml+xml,*/*;q=0.8")
        self.assertEqual(page.header["content-type"], "text/html; charset=utf-8")
        self.assertEqual(page.body, (DIRECTORY / "index.html").read_bytes())
        for accept in ("*/*", "application/json", None):
            answer = await self.ask("/", accept=accept)
            self.assertEqual(answer.header["content-type"], "application/json")
            self.assertEqual(answer.header["vary"], "Accept")

    async def test_each(self) -> None:
        await self.start()
        for path, (content, kind) in pages.pages().items():
            answer = await self.ask(path)
            self.assertEqual((answer.status, answer.body), (200, content))
            self.assertEqual(answer.header["content-type"], kind)
            for name, value in SAFETY.items():
                self.assertEqual(answer.header.get_all(name), [value])
            head = await self.ask(path, "HEAD")
            self.assertEqual((head.body, head.header["content-length"]), (b"", str(len(content))))
            self.assertEqual((await self.ask(path, "POST")).header["allow"], "GET, HEAD")

    async def test_nothing_else(self) -> None:
        await self.start()
        for path in ("/__init__.py", "/../admin.py", "/%2e%2e/admin.py", "/app.js/", "/APP.JS"):
            self.assertEqual((await self.ask(path)).status, 404)

    async def test_with_a_token(self) -> None:
        await self.start(token=TOKEN)
        for path in ("/", *pages.pages()):
            answer = await self.ask(path, accept="text/html")
            self.assertEqual(answer.status, 401)
            self.assertIn("Basic", answer.header["www-authenticate"])
            self.assertEqual((await self.ask(path, accept="text/html", **BEARER)).status, 200)

    async def test_its_rules_allow_it(self) -> None:
        """No script or style stands in the page, nor comes from elsewhere."""
        page = (DIRECTORY / "index.html").read_text()
        for text in ("<style", "style=", "onclick=", "javascript:", "http://", "https://", "<base"):
            self.assertNotIn(text, page.replace("http://www.w3.org", ""), text)
        self.assertNotIn("<script>", page)
