"""What the dashboard makes of states that no test could bring about in a moment."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.threads import blockingCallFromThread
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from proxykit.ops.pages import INDEX, pages
from tests.interop import chromium
from tests.interop.chromium import Page
from tests.interop.programs import TWICE
from tests.sockets import HOST, in_thread
from tests.test_top_screen import BUSY, backend, budget, cluster, state

POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Canned(Resource):
    """The dashboard's files, and events that a test tells.

    :ivar told: the last event.
    :ivar posted: what was asked for, with the fields that came with it.
    :ivar answer: what is answered to that.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.told = b""
        self.readers: list[Any] = []
        self.posted: list[tuple[str, Any, Any]] = []
        self.answer: tuple[int, bytes] = (200, b"{}")

    def tell(self, what: dict[str, Any]) -> None:
        self.told = b"event: state\ndata: %b\n\n" % json.dumps(what).encode()
        for reader in self.readers:
            reader.write(self.told)

    def hang_up(self) -> None:
        """Let all go; each comes back."""
        for reader in self.readers:
            reader.finish()
        self.readers.clear()

    def render(self, request: Any) -> Any:
        path = request.path.decode()
        request.setHeader(b"content-security-policy", POLICY)
        if request.method == b"POST":
            fields = request.requestHeaders
            self.posted.append((request.uri.decode(), json.load(request.content), fields))
            request.setResponseCode(self.answer[0])
            return self.answer[1]
        if path == "/api/events":
            request.setHeader(b"content-type", b"text/event-stream")
            self.readers.append(request)
            request.notifyFinish().addErrback(lambda _: self.readers.remove(request))
            request.write(b"retry: 10\n\n" + self.told)
            return NOT_DONE_YET
        content, kind = pages()[INDEX if path == "/" else path]
        request.setHeader(b"content-type", kind.encode())
        return content


class CannedTests(TestCase):
    skip = TWICE
    timeout = 120

    @inlineCallbacks
    def look(self, first: dict[str, Any], talk: Callable[[Page], None]):
        """Have the page open, which was told the first state; and talk with it, in a thread."""
        browser = yield chromium.browser(self)
        self.canned = Canned()
        self.canned.tell(first)
        port = reactor.listenTCP(0, Site(self.canned), interface=HOST)
        self.addCleanup(port.stopListening)

        def whole() -> None:
            with Page(browser) as page:
                page.resize(1280, 1000)
                page.goto(f"http://{HOST}:{port.getHost().port}/")
                page.until("document.querySelector('.cluster')")
                talk(page)
                self.assertEqual(page.complaints(), [])

        yield in_thread(whole)
        self.canned.hang_up()

    def tell(self, what: dict[str, Any]) -> None:
        blockingCallFromThread(reactor, self.canned.tell, what)

    def text(self, page: Page, selector: str) -> list[str]:
        """What all elements say that a selector finds."""
        return page.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)"
        )

    def test_everything(self):
        def talk(page: Page) -> None:
            # The scarcest first, in words and with a sign.
            self.assertEqual(
                self.text(page, ".budget h3"),
                [f"10.0.0.1 → 10.1.0.{at}:80" for at in (3, 1, 9)],
            )
            self.assertEqual(self.text(page, ".budget .badge"), ["none left", "low", "ok"])
            self.assertEqual(
                self.text(page, ".budget .when"),
                ["no port is left", "runs out in 4 min", "no shortage in sight"],
            )
            self.assertEqual(page.evaluate("document.title"), "▲ 2 low: proxykit")
            self.assertEqual(self.text(page, "#budgets-sum"), ["1 none left, 1 low, 1 ok"])
            self.assertTrue(page.evaluate("document.querySelector('#draining').checkVisibility()"))
            # A bar is as wide as its parts, each in its place.
            wide = "document.querySelectorAll('.budget')[1].querySelectorAll('.bar .use')"
            shares = page.evaluate(f"[...{wide}].map((each) => each.style.width)")
            self.assertEqual(shares[:4], ["76%", "10%", "1%", "2%"])
            self.assertEqual(
                self.text(page, ".backends .badge"),
                ["unhealthy", "ejected, 12 s left", "draining", "taken down"],
            )
            self.assertEqual(self.text(page, ".backends .why")[0], "GET /: 503")
            self.assertEqual(
                self.text(page, ".cluster > .head .badge"),
                ["0 of 3 backends in use", "panic: all are used"],
            )
            self.assertIn("queue 4 of 100", self.text(page, ".cluster .sum")[0])
            self.assertIn("it is full", self.text(page, "#listeners .why"))

        first = copy.deepcopy(BUSY)
        first["clusters"][0]["queue"] |= {"limit": 100, "timed_out": 0, "refused": 0}
        return self.look(first, talk)

    def test_what_changes(self):
        """A budget that gets scarce comes first, and is told to those who do not see it."""
        calm = [budget(destination=f"10.1.0.{at}:80") for at in (1, 2)]
        news = "document.querySelector('#news').textContent"

        def talk(page: Page) -> None:
            self.assertEqual(page.evaluate(news), "")
            page.evaluate("document.querySelectorAll('.budget')[1].mine = true")
            self.tell(
                state(budgets=[calm[0], calm[1] | {"level": "low", "forecast_seconds": 20.0}])
            )
            page.until("document.querySelectorAll('.budget')[0].mine")
            self.assertEqual(
                page.evaluate(news), "Ports from 10.0.0.1 → 10.1.0.2:80: low, runs out in 20 s"
            )
            # One that is gone is not shown, and the others stay what they are.
            self.tell(state(budgets=calm[1:]))
            page.until("document.querySelectorAll('.budget').length === 1")
            self.assertTrue(page.evaluate("document.querySelector('.budget').mine"))
            self.tell(state(budgets=[]))
            page.until("document.querySelector('#budgets-none').checkVisibility()")

        return self.look(state(budgets=calm), talk)

    def test_a_listener_that_ends_beside_its_heir(self):
        """Both are shown, and know their own bytes."""
        (front,) = state()["listeners"]

        def talk(page: Page) -> None:
            self.assertEqual(self.text(page, "#listeners h3"), ["front", "front"])
            self.assertEqual(self.text(page, "#listeners .badge"), ["accepting", "draining"])
            self.tell(of(10.0, 6000, 0))
            page.until("document.querySelector('#listeners').innerText.includes('in 600\u00a0B/s')")
            self.assertIn("in 0\u00a0B/s", self.text(page, "#listeners .card")[1])

        def of(time: float, first: int, second: int) -> dict[str, Any]:
            traffic = [{"requests": 1, "bytes_up": up, "bytes_down": 0} for up in (first, second)]
            ends = front | {"draining": True, "traffic": traffic[1]}
            return state(time=time, listeners=[front | {"traffic": traffic[0]}, ends])

        return self.look(of(0.0, 0, 0), talk)

    def test_focus_stays(self):
        """A row that gets another place takes the focus along."""
        rows = [backend(f"10.1.0.{at}:80") for at in (1, 2, 3)]

        def talk(page: Page) -> None:
            page.evaluate("document.querySelector('[aria-label*=\"10.1.0.2:80\"]').focus()")
            self.tell(state(clusters=[cluster(rows[0], rows[1] | {"health": "down"}, rows[2])]))
            page.until("document.querySelector('tbody tr').innerText.includes('10.1.0.2:80')")
            self.assertEqual(
                page.evaluate("document.activeElement.ariaLabel"), "Drain 10.1.0.2:80 of web"
            )

        return self.look(state(clusters=[cluster(*rows)]), talk)

    def test_names_are_text(self):
        """Nothing that somebody has named does anything."""
        evil = "<img src=x onerror='window.pwned=1'><b>&amp;\u202e"
        what = state(
            version=evil,
            budgets=[budget(destination=evil, level=evil)],
            listeners=[listener_of(evil)],
            clusters=[cluster(backend(evil, health="down", why=evil, name=evil), name=evil)],
        )

        def talk(page: Page) -> None:
            self.assertEqual(self.text(page, ".cluster h3"), [evil])
            self.canned.answer = (409, json.dumps({"error": evil}).encode())
            page.click("document.querySelector('.backends button')")
            self.assertEqual(self.text(page, "#ask-title"), [f"Drain {evil}?"])
            page.click("document.querySelector('#ask-yes')")
            page.until("document.querySelector('#failed').innerText")
            self.assertTrue(self.text(page, "#failed")[0].endswith(f": {evil}"))
            (path, body, fields) = self.canned.posted[0]
            self.assertNotIn("<", path)
            self.assertEqual(path.count("/"), 5)
            self.assertEqual(body, {"state": "drain"})
            self.assertEqual(fields.getRawHeaders("x-proxykit"), ["write"])
            self.assertEqual(fields.getRawHeaders("sec-fetch-site"), ["same-origin"])
            self.assertEqual(page.evaluate("document.querySelectorAll('img, main b b').length"), 0)
            self.assertIsNone(page.evaluate("window.pwned"))
            # That it was refused is shown until one has seen it.
            page.click("document.querySelector('#failed')")
            page.until("document.querySelector('#failed').innerText === ''")
            page.click("document.querySelector('.backends button')")
            page.click("document.querySelector('#ask-yes')")
            page.until("document.querySelector('#failed').innerText")
            page.press("Escape")
            page.until("document.querySelector('#failed').innerText === ''")
            # It is the answer that the browser complains of.
            page.events.clear()

        return self.look(what, talk)

    def test_another_version(self):
        """After an upgrade the page is loaded anew: it was the former one's."""

        def talk(page: Page) -> None:
            page.evaluate("window.former = true")
            self.tell(state(version="2.0"))
            page.until("document.querySelector('#version').innerText === '2.0'")
            page.until("!window.former")

        return self.look(state(), talk)

    def test_the_stream_breaks_off(self):
        def talk(page: Page) -> None:
            page.until("document.querySelector('#link').dataset.link === 'live'")
            blockingCallFromThread(reactor, self.canned.hang_up)
            page.until("document.querySelector('#link').dataset.link !== 'live'")
            page.until("document.querySelector('#link').dataset.link === 'live'")

        return self.look(state(), talk)


def listener_of(name: str) -> dict[str, Any]:
    (only,) = state()["listeners"]
    return only | {"name": name, "address": name, "paused": name}
