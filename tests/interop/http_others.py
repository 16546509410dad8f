"""How h11 and httptools read what a proxy has sent on: as the strict reader does, or it is not
unambiguous.

Each request is read with another one behind it, so that its end has to be found.
"""

from __future__ import annotations

from typing import Any

import h11
import httptools

from tests.interop.http_strict import Message

#: What is put behind each request.
NEXT = b"GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n"
#: Bytes of a head that h11 takes.
LARGEST = 65536

#: Method, target and body.
Read = tuple[bytes, bytes, bytes]


def misread(message: Message, raw: bytes) -> list[str]:
    """What other readers see in a request that we have not seen.

    :param raw: its bytes.
    """
    wanted = [(message.method, message.target, message.body), (b"GET", b"/next", b"")]
    found = {"h11": read_with_h11(raw + NEXT)}
    if message.method.decode("ascii") in _METHODS:
        found["httptools"] = read_with_httptools(raw + NEXT)
    return [f"{name} reads {got}, not {wanted}" for name, got in found.items() if got != wanted]


def read_with_h11(data: bytes) -> list[Read] | str:
    """The requests, or what it does not like."""
    found: list[Read] = []
    while data:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST)
        connection.receive_data(data)
        body = b""
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    return f"{event!r} after {found}"
        except h11.RemoteProtocolError as error:
            return f"{error} after {found}"
        found.append((request.method, request.target, body))
        data = connection.trailing_data[0]
    return found


class _Requests:
    """What httptools tells of what it reads."""

    def __init__(self) -> None:
        self.found: list[Read] = []
        self.parser: Any = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.url = self.body = b""

    def on_url(self, part: bytes) -> None:
        self.url += part

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.found.append((self.parser.get_method(), self.url, self.body))


def read_with_httptools(data: bytes) -> list[Read] | str:
    """The requests, or what it does not like."""
    requests = _Requests()
    while data:
        try:
            requests.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # It takes what follows for another protocol's; we know better.
            data = data[upgrade.args[0] :]
            requests.parser = httptools.HttpRequestParser(requests)
        except httptools.HttpParserError as error:
            return f"{error} after {requests.found}"
        else:
            break
    return requests.found


#: The methods that httptools knows among those of the corpus; h11 takes any.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "M-SEARCH"))
