"""A page in headless Chromium, driven by the DevTools protocol: real clicks and real keys.

The browser is a process as any other (``programs.Child``); a :class:`Page` talks to it over a
WebSocket, and blocks, so it belongs in a thread. Nothing sleeps: :meth:`Page.until` lets the page
look at a condition before each frame, until it holds.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import TestCase
from websockets.sync.client import ClientConnection, connect

from tests.interop import programs

#: What a test has no use for: windows, sounds, updates, accounts, a key ring.
FLAGS = (
    *("--headless=new", "--disable-gpu", "--no-first-run", "--no-default-browser-check"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--disable-default-apps", "--mute-audio", "--password-store=basic"),
    *("--disable-dev-shm-usage", "--disable-breakpad", "--metrics-recording-only"),
    # The tests may run as root, who has no sandbox; the pages are our own.
    "--no-sandbox",
    "--remote-debugging-port=0",
)

#: Keys by their name: the code of the key, its number, and the text that it makes.
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    " ": ("Space", 32, " "),
}
_SHIFT = 8

_UNTIL = """
new Promise((found) => {
  const look = () => {
    let value = null;
    try { value = (%s); } catch { value = null; }
    if (value) found(value); else requestAnimationFrame(look);
  };
  look();
})
"""

#: Runs in the page before its own script: what its policy has forbidden.
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@inlineCallbacks
def browser(testcase: TestCase, *flags: str):
    """Start it; gives the address that :class:`Page` wants."""
    program = programs.require("chromium")
    home = Path(testcase.mktemp()).resolve()
    home.mkdir(parents=True)
    child = programs.Child.start(
        testcase,
        [program, *FLAGS, *flags, f"--user-data-dir={home / 'profile'}", "about:blank"],
        env=environment(home),
        cwd=home,
    )
    started = yield child.wait_for(r"^DevTools listening on (ws://\S+)$")
    return started[1]


def environment(home: Path) -> dict[str, str]:
    """The test's environment, with nothing of the user's own."""
    own = {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    return {**programs.environment(), **own, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}


class _Session:
    """Commands to one end of the browser, one at a time, and what it tells meanwhile."""

    def __init__(self, url: str) -> None:
        self._socket: ClientConnection = connect(url, max_size=None, compression=None)
        self._count = 0
        self.events: list[tuple[str, dict[str, Any]]] = []

    def command(self, method: str, timeout: float = programs.DEADLINE, **params: Any) -> Any:
        """Send a command and wait for its result, at most so many seconds for each message.

        :raises AssertionError: the browser says no.
        """
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            try:
                message = json.loads(self._socket.recv(timeout=timeout))
            except TimeoutError:
                raise AssertionError(f"{method} {params}: no answer in {timeout} s") from None
            if "method" in message:
                self.events.append((message["method"], message["params"]))
            elif message["id"] == self._count:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']['message']}")
                return message["result"]

    def close(self) -> None:
        self._socket.close()


class Page(_Session):
    """A tab of its own.

    :param browser: the address of the browser.
    """

    def __init__(self, browser: str) -> None:
        whole = _Session(browser)
        target = whole.command("Target.createTarget", url="about:blank")["targetId"]
        whole.close()
        super().__init__(f"{browser.partition('/devtools/')[0]}/devtools/page/{target}")
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.command("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def goto(self, url: str) -> None:
        """Load a page; back as soon as it is there, and not when it is complete."""
        result = self.command("Page.navigate", url=url)
        assert "errorText" not in result, result

    def evaluate(self, expression: str, timeout: float = programs.DEADLINE) -> Any:
        """The value of an expression, or what its promise gives, as JSON has it."""
        result = self.command(
            *("Runtime.evaluate", timeout),
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in result, (expression, result["exceptionDetails"])
        return result["result"].get("value")

    def until(self, condition: str, timeout: float = programs.DEADLINE) -> Any:
        """Wait until an expression is true, also over a reload; gives its value."""
        while True:
            try:
                return self.evaluate(_UNTIL % condition, timeout)
            except AssertionError as error:
                # It waited in the page that was before.
                if "navigated" not in str(error):
                    said = f"{condition} is not so; {self.complaints()}"
                    raise AssertionError(said) from error

    def click(self, element: str) -> None:
        """Move the mouse to the middle of an element, and click there.

        :param element: an expression that gives it.
        """
        x, y = self.evaluate(
            f"(() => {{ const node = {element}; node.scrollIntoView({{block: 'center'}});"
            " const box = node.getBoundingClientRect();"
            " const at = [box.x + box.width / 2, box.y + box.height / 2];"
            " return node.contains(document.elementFromPoint(...at)) ? at : null; })()"
        ) or self._covered(element)
        where = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.command("Input.dispatchMouseEvent", type="mousePressed", **where)
        self.command("Input.dispatchMouseEvent", type="mouseReleased", **where)

    def _covered(self, element: str) -> Any:
        raise AssertionError(f"{element} is not to be seen, or something lies over it")

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key of ``KEYS``."""
        code, number, text = KEYS[key]
        whole = {
            "key": key,
            "code": code,
            "windowsVirtualKeyCode": number,
            "modifiers": _SHIFT if shift else 0,
        }
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.command("Input.dispatchKeyEvent", **down, **whole)
        self.command("Input.dispatchKeyEvent", type="keyUp", **whole)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.command("Input.insertText", text=text)

    def resize(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        """Be a screen of that many CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )

    def prefer(self, **features: str) -> None:
        """What the user likes, such as ``prefer(color_scheme="dark")``."""
        wishes = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in features.items()
        ]
        self.command("Emulation.setEmulatedMedia", features=wishes)

    def shot(self, path: Path, whole: bool = False) -> None:
        """Write what is to be seen, as PNG; the whole page, not the screen alone, if so asked."""
        taken = self.command("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        path.write_bytes(base64.b64decode(taken["data"]))

    def _told(self, method: str) -> list[dict[str, Any]]:
        # An answer comes after all that was told before it.
        self.evaluate("0")
        return [params for name, params in self.events if name == method]

    def asked(self) -> list[str]:
        """The addresses of all requests that it made."""
        return [each["request"]["url"] for each in self._told("Network.requestWillBeSent")]

    def posted(self) -> list[str]:
        """The bodies of those that had one."""
        requests = [each["request"] for each in self._told("Network.requestWillBeSent")]
        return [each["postData"] for each in requests if "postData" in each]

    def complaints(self) -> list[str]:
        """What went wrong: errors in the console, exceptions, what the policy has forbidden."""
        bad = ("error", "warning", "assert")
        return [
            *(
                f"{each['entry']['level']}: {each['entry']['text']} {each['entry'].get('url', '')}"
                for each in self._told("Log.entryAdded")
                if each["entry"]["level"] in bad
            ),
            *(
                f"console: {each['args']}"
                for each in self._told("Runtime.consoleAPICalled")
                if each["type"] in bad
            ),
            *(str(each["exceptionDetails"]) for each in self._told("Runtime.exceptionThrown")),
            *self.evaluate("window.violations"),
        ]
