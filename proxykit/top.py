"""``proxykit top``: the running service, live in the terminal.

It reads the admin listener's ``GET /api/events``, as the dashboard does, with the standard library;
``top_screen.py`` draws what has come.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Generator, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

from rich.console import Console
from rich.live import Live

from proxykit.top_screen import clean, screen

#: The environment variable with the token.
TOKEN = "PROXYKIT_TOKEN"
#: Seconds: for connecting, and between two events, of which there is one each second.
TIMEOUT = 10.0
#: Seconds from one attempt to reach it again to the next.
AGAIN = 1.0
#: Bytes: no event is longer; with a thousand backends one has less than two million.
LONGEST = 64 * 1024 * 1024

_SCHEMES = ("http", "https", "unix")


#: Columns where there is no terminal.
WIDE = 160


class TopError(Exception):
    """It cannot be shown; the message says why, in one line.

    :ivar lasts: whether it would be no different in a moment.
    """

    def __init__(self, message: str, lasts: bool = True) -> None:
        super().__init__(message)
        self.lasts = lasts


class _UnixConnection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Admin:
    """The admin listener of a running service.

    :param url: ``http://HOST:PORT`` or ``unix:/PATH``; a path in it is put before ``/api``.
    :param token: empty: none.
    :raises TopError: that is no such URL.
    """

    def __init__(self, url: str, token: str = "", timeout: float = TIMEOUT) -> None:
        self.url = url if "://" in url or url.startswith("unix:") else f"http://{url}"
        self._token = token
        self._timeout = timeout
        try:
            self._parts = urlsplit(self.url)
            fits = self._parts.scheme in _SCHEMES and (
                self._parts.hostname if self._parts.scheme != "unix" else self._parts.path
            )
            self._port = self._parts.port if fits else None
        except ValueError:
            fits = None
        if not fits:
            raise TopError(f"expected http://HOST:PORT or unix:/PATH, not {url!r}")

    def events(self) -> Generator[dict[str, Any], None, None]:
        """What it tells, one state after another, without end.

        :raises TopError: it cannot be reached, tells no more, or is something else.
        """
        connection = self._connection()
        try:
            response = self._ask(connection)
            yield from _states(response, self.url)
            raise TopError(f"{self.url} has ended the connection", lasts=False)
        except TimeoutError:
            why = f"{self.url} has not answered within {self._timeout:g} s"
            raise TopError(why, lasts=False) from None
        except HTTPException:
            self._is_something_else()
        except OSError as error:
            why = error.strerror or str(error)
            raise TopError(f"cannot connect to {self.url}: {why}", lasts=False) from None
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        parts, timeout = self._parts, self._timeout
        if parts.scheme == "unix":
            return _UnixConnection(parts.path, timeout)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", self._port, timeout=timeout)

    def _ask(self, connection: HTTPConnection) -> HTTPResponse:
        headers = {"Accept": "text/event-stream"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        path = "" if self._parts.scheme == "unix" else self._parts.path.rstrip("/")
        try:
            connection.request("GET", f"{path}/api/events", headers=headers)
        except ValueError:  # By http.client: nothing else is said with such letters.
            raise TopError("the token has characters that no header can have") from None
        response = connection.getresponse()
        if response.status == 401:
            said = "does not take this token" if self._token else "wants a token"
            raise TopError(f"{self.url} {said}: set {TOKEN}, or give --token-file")
        if response.status != 200:
            self._refused(response)
        if response.getheader("content-type", "").partition(";")[0] != "text/event-stream":
            self._is_something_else()
        return response

    def _refused(self, response: HTTPResponse) -> NoReturn:
        """It gives a reason, if it is a proxykit."""
        try:
            why = json.loads(response.read(LONGEST))["error"]
        except (ValueError, KeyError, TypeError):
            self._is_something_else()
        # It may be too busy, or about to end.
        lasts = response.status < 500
        raise TopError(f"{self.url}: {response.status}: {clean(str(why))}", lasts)

    def _is_something_else(self) -> NoReturn:
        raise TopError(f"{self.url} is not the admin listener of a proxykit") from None


def _states(stream: IO[bytes], url: str) -> Iterator[dict[str, Any]]:
    """The events of a stream (HTML, 9.2.6) whose name is ``state``, until it ends."""
    name, data = b"", b""
    while line := stream.readline(LONGEST):
        if not line.endswith(b"\n"):
            return  # It was cut off, or is too long to be true.
        field, _, value = line.strip(b"\r\n").partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value
        elif field == b"data":
            data += value
        elif not field and not value:
            if name == b"state" and data:
                yield _read(data, url)
            name, data = b"", b""


def _read(data: bytes, url: str) -> dict[str, Any]:
    try:
        state = json.loads(data)
        if all(isinstance(state[key], list) for key in ("budgets", "listeners", "clusters")):
            return dict(state)
    except (ValueError, KeyError, TypeError):
        pass
    raise TopError(f"{url} tells something else than a proxykit does")


def _token(arguments: argparse.Namespace) -> str:
    file: Path | None = arguments.token_file
    if file is None:
        return os.environ.get(TOKEN, "").strip()
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise TopError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise TopError(f"{file}: this is no text") from None


def run(arguments: argparse.Namespace, out: IO[str] | None = None) -> int:
    """Show it until Ctrl-C; once, where nobody sees it live.

    :param arguments: those of ``cli.py``.
    :param out: where to; default: the standard output.
    :returns: the exit status: 0, or 1 where it cannot be shown.
    """
    console = Console(file=out, highlight=False, markup=False, emoji=False)
    if not (console.is_terminal or "COLUMNS" in os.environ):
        console.width = WIDE  # Nobody's terminal: whoever reads it wants the whole of it.
    once = arguments.once or not console.is_terminal or console.is_dumb_terminal
    try:
        admin = Admin(arguments.admin, _token(arguments))
        with contextlib.closing(admin.events()) as events:
            first = next(events)
            if once:
                console.print(screen(first, console.width))
                return 0
            _follow(console, admin, first, events, arguments.interval)
    except TopError as error:
        print(f"proxykit top: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM is an end like any other: the terminal's other screen is left then."""
    former = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _follow(
    console: Console,
    admin: Admin,
    state: dict[str, Any],
    events: Iterator[dict[str, Any]],
    interval: float,
) -> None:
    """Draw each state that comes; where no more do, say so and try again.

    :raises TopError: trying again is of no use.
    """
    with _orderly_end(), Live(console=console, screen=True, auto_refresh=False) as live:

        def draw(away: str = "") -> None:
            live.update(screen(state, console.width, console.height, away), refresh=True)

        draw()
        drawn = time.monotonic()
        while True:
            try:
                for newer in events:
                    state = newer
                    if time.monotonic() - drawn >= interval - 0.05:
                        draw()
                        drawn = time.monotonic()
            except TopError as error:
                if error.lasts:
                    raise
                draw(str(error))
            time.sleep(AGAIN)
            events = admin.events()
