"""The dashboard where there is much to show: only what differs is drawn, and all can be found."""

from __future__ import annotations

from twisted.internet.defer import inlineCallbacks

from tests.interop.chromium import Page
from tests.interop.dashboards import Case, button

MANY = 1000
ROWS = "document.querySelectorAll('#clusters tbody tr').length"
MORE = "document.querySelector('.cluster .more')"


class ManyTests(Case):
    @inlineCallbacks
    def test_a_thousand(self):
        backends = [f"127.1.{at // 250}.{at % 250 + 1}:9" for at in range(MANY)]
        yield self.start(backends)

        def talk(page: Page) -> None:
            page.until(f"{ROWS} === 20")
            self.assertEqual(page.evaluate(f"{MORE}.innerText.slice(0, 14)"), "Show all 1,000")
            page.click(MORE)
            page.until(f"{ROWS} === {MANY}")
            self.assertEqual(page.evaluate(f"{MORE}.ariaExpanded"), "true")
            # Two more events, of which neither says anything new of any backend.
            page.evaluate(
                "window.drawn = 0; new MutationObserver((all) => { window.drawn += all.length; })"
                ".observe(document.querySelector('#clusters'), {subtree: true, childList: true,"
                " attributes: true, characterData: true});"
                "window.times = new Set(); 0"
            )
            page.until("window.times.add(document.querySelector('#updated').innerText).size > 2")
            self.assertEqual(page.evaluate("window.drawn"), 0)
            page.evaluate("document.querySelector('#filter').focus()")
            page.write("127.1.3.7:")
            page.until(f"{ROWS} === 1")
            found = page.evaluate("document.querySelector('#filter-found').innerText")
            self.assertEqual(found, "1 budget, 0 listeners, 1 backend")
            self.assertTrue(page.evaluate(f"{button('127.1.3.7:9')}.checkVisibility()"))
            # Enter there leads nowhere.
            page.press("Enter")
            page.evaluate("document.querySelector('#filter').select()")
            page.write("front")
            page.until("document.querySelectorAll('#listeners .card').length === 1")
            page.until(f"{ROWS} === 0")

        yield self.look(talk)
