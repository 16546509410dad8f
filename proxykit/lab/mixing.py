"""A relay that does what an L4 proxy must not: it puts all clients on one backend connection.

It is for the lab alone, to show what comes of it. What a client says goes to the backend as it
comes; whom the backend's bytes are for it cannot know, so it guesses: they are for who has spoken
last (``last``); or each piece is a question, and each piece that comes back an answer, in turn
(``turn``)::

    python -m proxykit.lab.mixing 192.168.1.1:8000 10.1.0.1:80 --guess last
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque

from proxykit.model import Address


class Client(asyncio.Protocol):
    """One client.

    :param backend: everybody's.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._backend.say(self, data)


class Backend(asyncio.Protocol):
    """The one connection.

    :param guess: whom its bytes are for: see this module.
    """

    def __init__(self, guess: str) -> None:
        self._in_turn = guess == "turn"
        self._spoke: deque[Client] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def say(self, client: Client, data: bytes) -> None:
        """A client has said something."""
        self._spoke.append(client)
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if not self._spoke:
            return  # Nobody can be meant.
        if self._in_turn:
            client = self._spoke.popleft()
        else:
            client = self._spoke[-1]
            self._spoke.clear()
            self._spoke.append(client)
        client.transport.write(data)


async def serve(options: argparse.Namespace) -> None:
    """Listen, until the input ends."""
    loop = asyncio.get_running_loop()
    here, there = map(Address.parse, (options.listen, options.backend))
    _, backend = await loop.create_connection(
        lambda: Backend(options.guess), there.host, there.port
    )
    await loop.create_server(lambda: Client(backend), here.host, here.port)
    sys.stdout.write(json.dumps({"listening": [options.listen]}) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("listen", help="an address, such as 192.168.1.1:8000")
    parser.add_argument("backend", help="the backend's")
    parser.add_argument("--guess", choices=("last", "turn"), default="last")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
