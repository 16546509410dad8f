"""The dashboard of a running service, in headless Chromium: real clicks, keys and figures."""

from __future__ import annotations

import json
from http.client import HTTPConnection

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks

from tests.interop import programs
from tests.interop.chromium import Page
from tests.interop.dashboards import CLUSTER, HOST, Case, badge, button
from tests.sockets import in_thread

TOKEN = "0123456789abcdef"
#: The contrast (WCAG 2.2, 1.4.3) of every text that is to be seen: those that have too little.
CONTRAST = """
(() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) =>
    c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce(
    (sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const found = channels(getComputedStyle(node).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const bad = [];
  let seen = 0;
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    if (!own || !node.checkVisibility() || !node.getClientRects().length) continue;
    const [a, b] = [light(channels(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5) bad.push(`${node.className}: ${node.textContent}: ${ratio.toFixed(2)}`);
  }
  return { seen, bad };
})()
"""


class DashboardTests(Case):
    @inlineCallbacks
    def test_figures(self):
        """What it shows is what the API says, and it follows."""
        yield self.start()

        def talk(page: Page) -> None:
            held = HTTPConnection(HOST, self.front, timeout=programs.DEADLINE)
            self.addCleanup(held.close)
            held.request("GET", "/")
            self.assertEqual(held.getresponse().read(), b"hello\n")
            card = "document.querySelector('#listeners .card').innerText"
            page.until(f"{card}.includes('1 of 500 connections')")
            self.assertIn("front<b>", page.evaluate(card))
            budgets = self.api("/api/ports")["budgets"]
            (budget,) = [each for each in budgets if each["idle"]]
            whose = f"{HOST} → {budget['destination']}"
            meter = f"document.querySelector('[aria-label*=\"{whose}\"]')"
            taken = budget["size"] - budget["free"]
            page.until(f"{meter}.ariaValueNow === '{taken}'")
            self.assertIn("1 idle", page.evaluate(f"{meter}.ariaValueText"))
            shown = page.evaluate(f"{meter}.closest('.budget').innerText")
            self.assertIn(f"{budget['free']:,} of {budget['size']:,} free", shown)
            self.assertIn("no shortage in sight", shown)
            # Another client, while it is open.
            self.get(self.front, "/")
            held.close()
            page.until(f"{card}.includes('0 of 500 connections')")
            page.until("document.querySelector('#clusters .sum').innerText.includes('reused')")
            self.assertIn(CLUSTER, page.evaluate("document.querySelector('.cluster h3').innerText"))
            self.assertEqual(page.evaluate("document.images.length"), 0)

        yield self.look(talk)

    @inlineCallbacks
    def test_drain_by_mouse(self):
        yield self.start()
        address = self.backends[1]

        def talk(page: Page) -> None:
            page.until(f"{button(address)}.innerText === 'Drain'")
            page.click(button(address))
            page.until("document.querySelector('#ask').open")
            self.assertIn(address, page.evaluate("document.querySelector('#ask-title').innerText"))
            page.click("document.querySelector('#ask-no')")
            page.until("!document.querySelector('#ask').open")
            self.assertEqual(self.state(address), "up")
            page.click(button(address))
            page.click("document.querySelector('#ask-yes')")
            page.until(f"{badge(address)} === 'draining'")
            self.assertEqual(self.state(address), "drain")
            said = page.evaluate("document.querySelector('#said').innerText")
            self.assertEqual(said, f"{address} of {CLUSTER} is draining.")
            # The other one is the last now, of which one is warned.
            page.click(button(self.backends[0]))
            warning = page.evaluate("document.querySelector('#ask-warning').innerText")
            self.assertIn("No other backend", warning)
            page.click("document.querySelector('#ask-no')")
            page.until(f"{button(address)}.innerText === 'Bring up'")
            page.click(button(address))
            page.click("document.querySelector('#ask-yes')")
            page.until(f"{badge(address)} === 'up'")
            self.assertEqual(self.state(address), "up")

        yield self.look(talk)

    @inlineCallbacks
    def test_keys_alone(self):
        """Escape takes nothing down; Tab and Enter do; the focus goes where one goes on."""
        yield self.start()
        address = self.backends[1]
        label = f"Take down {address} of {CLUSTER}"
        focused = "document.activeElement"

        def walk(page: Page, there: str) -> None:
            for _ in range(40):
                page.press("Tab")
                if page.evaluate(there):
                    return
            raise AssertionError(f"Tab does not lead to where {there}")

        def talk(page: Page) -> None:
            page.until(button(address))
            page.press("Tab")
            self.assertEqual(page.evaluate(f"{focused}.className"), "skip")
            walk(page, f"{focused}.ariaLabel === {json.dumps(label)}")
            ring = page.evaluate(f"getComputedStyle({focused}).outlineStyle")
            self.assertEqual(ring, "solid")
            page.press("Enter")
            page.until("document.querySelector('#ask').open")
            # Who presses Enter once too often has done nothing.
            self.assertEqual(page.evaluate(f"{focused}.id"), "ask-no")
            page.press("Escape")
            page.until("!document.querySelector('#ask').open")
            self.assertEqual(page.evaluate(f"{focused}.ariaLabel"), label)
            self.assertEqual(self.state(address), "up")
            self.assertNotIn("/backends/", " ".join(page.asked()))
            page.press(" ")
            page.until("document.querySelector('#ask').open")
            page.press("Tab")
            self.assertEqual(page.evaluate(f"{focused}.id"), "ask-yes")
            page.press("Enter")
            page.until(f"{badge(address)} === 'taken down'")
            self.assertEqual(self.state(address), "down")
            # What the button does next is what is left to do, and the focus is where it was.
            self.assertEqual(page.evaluate(f"{focused}.ariaLabel"), f"Drain {address} of {CLUSTER}")
            page.press("Tab", shift=True)
            self.assertEqual(
                page.evaluate(f"{focused}.ariaLabel"), f"Bring up {address} of {CLUSTER}"
            )
            # What was said the last time is not said again by Escape.
            page.press("Enter")
            page.until("document.querySelector('#ask').open")
            page.press("Escape")
            page.until("!document.querySelector('#ask').open")
            self.assertEqual(set(page.posted()), {'{"state":"down"}'})
            self.assertEqual(self.state(address), "down")

        yield self.look(talk)

    @inlineCallbacks
    def test_on_a_phone_and_in_the_dark(self):
        yield self.start()
        yield in_thread(self.get, self.front, "/")

        def talk(page: Page) -> None:
            page.until("document.querySelector('#budgets .budget')")
            backs = {}
            for scheme in ("light", "dark"):
                page.prefer(color_scheme=scheme)
                backs[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
                found = page.evaluate(CONTRAST)
                self.assertGreater(found["seen"], 30)
                self.assertEqual(found["bad"], [], scheme)
            self.assertEqual(backs, {"light": "rgb(243, 245, 248)", "dark": "rgb(14, 19, 26)"})
            for width in (320, 375, 768, 1000, 1280):
                page.resize(width, 700, mobile=width < 500)
                page.until(f"innerWidth === {width}")
                wide = page.evaluate("document.documentElement.scrollWidth")
                self.assertLessEqual(wide, width)
            page.resize(320, 700, mobile=True)
            page.click(button(self.backends[0]))
            box = page.evaluate("document.querySelector('#ask').getBoundingClientRect().toJSON()")
            self.assertGreaterEqual(box["left"], 0)
            self.assertLessEqual(box["right"], 320)
            page.press("Escape")
            page.prefer(reduced_motion="reduce")
            moved = page.evaluate(
                "getComputedStyle(document.querySelector('.bar .use')).transitionDuration"
            )
            self.assertEqual(moved, "0s")

        yield self.look(talk)

    @inlineCallbacks
    def test_away_and_back(self):
        """Without a service it says so, and so do its buttons; with another one it goes on."""
        yield self.start()
        address = self.backends[0]

        @inlineCallbacks
        def restarted():
            self.service = yield self.serve()

        def away(page: Page) -> None:
            page.until(f"{button(address)}.innerText === 'Drain'")
            page.click(button(address))
            reactor.callFromThread(self.service.signal, "KILL")
            page.until("document.querySelector('#link').dataset.link === 'away'")
            page.click("document.querySelector('#ask-yes')")
            page.until(f"document.querySelector('#failed').innerText.includes('{address}')")
            shown = page.evaluate("document.querySelector('#away').innerText")
            self.assertRegex(shown, "Not connected to proxykit. What you see is from .*")
            reactor.callFromThread(restarted)
            page.until("document.querySelector('#link').dataset.link === 'live'")
            page.until("document.querySelector('#away').clientHeight === 0")
            self.assertEqual(self.state(address), "up")

        yield self.look(away, fine=False)

    @inlineCallbacks
    def test_token(self):
        """What the browser's own dialog sends goes with everything, writes among it."""
        yield self.start(token=TOKEN)
        address = self.backends[0]

        def talk() -> None:
            with Page(self.browser) as page:
                page.goto(f"http://any:{TOKEN}@{HOST}:{self.admin}/")
                page.until(button(address))
                page.click(button(address))
                page.click("document.querySelector('#ask-yes')")
                page.until(f"{badge(address)} === 'draining'")
                self.fine(page)

        yield in_thread(talk)
