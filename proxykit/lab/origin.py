"""A backend for the lab, as a program: HTTP/1.1 with keep-alive, or bytes of any kind.

Whoever asks is told what they have asked, and by whom they are answered: to ``GET /ann/1`` the body
of the answer is ``/ann/1 one``. So a client sees whether an answer is its own. To bytes of any kind
it says its name. It tells in a line when it listens, and ends with its input::

    python -m proxykit.lab.origin one 10.1.0.1:80 10.1.0.1:81 --talk http --delay 0.1
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys

from proxykit.lab.programs import raise_descriptors
from proxykit.model import Address

#: Connections that wait to be accepted.
BACKLOG = 4096
#: Bytes that a request may have.
MOST = 65536
_REQUEST = re.compile(rb"(?:GET|POST) (\S+) HTTP/1\.1\r\n((?:[^\r\n]+\r\n)*)\r\n")
_LAST = re.compile(rb"(?i)connection: *close\r\n")


class Origin(asyncio.Protocol):
    """One connection.

    :param options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._name = options.name.encode()
        self._had = b""
        # Whether the answer to come is this connection's last one.
        self._last = options.close
        self._split = {"http": self._http, "any": self._any}[options.talk]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._had += data
        while (answer := self._split()) is not None:
            if self._options.delay:
                loop = asyncio.get_running_loop()
                loop.call_later(self._options.delay, self._answer, answer)
            else:
                self._answer(answer)

    def _answer(self, answer: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(answer)
        if self._last:
            self._transport.close()

    def _http(self) -> bytes | None:
        """The answer to the first whole request, if there is one."""
        if not self._had:
            return None
        request = _REQUEST.match(self._had)
        if request is None:
            if b"\r\n\r\n" not in self._had and len(self._had) < MOST:
                return None
            # What is no request ends with an empty line all the same.
            self._had = self._had.partition(b"\r\n\r\n")[2]
            return self._message(b"400 Bad Request", b"no request")
        self._had = self._had[request.end() :]
        self._last = self._last or _LAST.search(request[2]) is not None
        return self._message(b"200 OK", b"%s %s" % (request[1], self._name))

    def _message(self, status: bytes, body: bytes) -> bytes:
        close = b"Connection: close\r\n" if self._last else b""
        body += b"." * self._options.size + b"\n"
        return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, close, len(body), body)

    def _any(self) -> bytes | None:
        """An answer to whatever has come."""
        had, self._had = self._had, b""
        return self._name + b"\n" if had else None


async def serve(options: argparse.Namespace) -> None:
    """Listen, until the input ends."""
    loop = asyncio.get_running_loop()
    for text in options.listen:
        address = Address.parse(text)
        await loop.create_server(
            lambda: Origin(options), address.host, address.port, backlog=BACKLOG
        )
    sys.stdout.write(json.dumps({"listening": options.listen}) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="what it calls itself")
    parser.add_argument("listen", nargs="+", help="addresses, such as 10.1.0.1:80")
    parser.add_argument("--talk", choices=("http", "any"), default="http")
    parser.add_argument("--close", action="store_true", help="close behind each answer")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--size", type=int, default=0, help="more bytes in each body of HTTP")
    raise_descriptors()
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
