"""Clients for tests of source ports, as a program, for it runs in a namespace of its own.

``hold`` connects many at once, says in one line of JSON what has become of each, and keeps what is
open until its input ends. ``churn`` makes short connections for a while, which the client is the
first to close, and says at its end what has become of them::

    python -m tests.interop.ports_clients hold 127.0.0.1:8080 --clients 400 --source 127.0.0.2
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import itertools
import json
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from attrs import asdict, define, field

from proxykit.model import Address

#: What a client's own ports are: none of those that the kernel picks from.
PORTS = range(1024, 30000)
#: Linux's; Python has no name for it.
IP_BIND_ADDRESS_NO_PORT = 24
#: Seconds without an answer.
PATIENCE = 25.0
#: What is asked in plain HTTP.
REQUEST = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


def hello() -> bytes:
    """What a TLS client begins with."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="a.example").do_handshake()
    return outgoing.read()


@define
class Client:
    """One connection.

    :ivar outcome: the status of the answer, ``served`` where it is none of HTTP's, or why there is
        none: ``ended`` or an errno's name.
    :ivar seconds: from its start until then.
    :ivar fields: of the answer, those that say why it is a refusal.
    """

    outcome: str = ""
    seconds: float = 0.0
    fields: dict[str, str] = field(factory=dict)

    def heard(self, data: bytes) -> bool:
        """What has come of the answer by now; tells whether that is enough."""
        if not b"HTTP/".startswith(data[:5]):
            self.outcome = "served"
        elif b"\r\n\r\n" in data:
            lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            self.outcome = lines[0].split(" ")[1]
            named = dict(line.split(": ", 1) for line in lines[1:])
            wanted = ("Retry-After", "Proxy-Status")
            self.fields = {name: named[name] for name in wanted if name in named}
        return bool(self.outcome)


class Clients:
    """Connects, each from a port of its own.

    :param sources: the local IP addresses, in turn.
    :param picked: whether the kernel picks the port, as for a program that knows nothing of ports.
    """

    def __init__(self, to: Address, send: bytes, sources: list[str], picked: bool) -> None:
        self._to = (to.host, to.port)
        self._send = send
        self._family = socket.AF_INET6 if ":" in to.host else socket.AF_INET
        self._picked = picked
        self._ends = self._all_ends(sources)
        self._held: list[socket.socket] = []
        self._missing = 0
        self._all_here = asyncio.Event()

    def _all_ends(self, sources: list[str]) -> Iterator[tuple[str, int]]:
        for port in itertools.repeat(0) if self._picked else itertools.cycle(PORTS):
            for source in sources:
                yield source, port

    def _socket(self) -> socket.socket:
        made = socket.socket(self._family)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._picked:
            made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        return made

    async def _connect(self, made: socket.socket) -> Client:
        """Connect one, and wait for the start of an answer where something is asked."""
        client = Client()
        started = time.monotonic()
        try:
            made.bind(next(self._ends))
            async with asyncio.timeout(PATIENCE):
                await self._talk(made, client)
        except OSError as error:
            client.outcome = errno.errorcode.get(error.errno or 0, repr(error))
        client.seconds = round(time.monotonic() - started, 3)
        return client

    async def _talk(self, made: socket.socket, client: Client) -> None:
        loop, data = asyncio.get_running_loop(), b""
        await loop.sock_connect(made, self._to)
        if not self._send:
            client.outcome = "served"
            return
        self._missing -= 1
        if self._missing <= 0:
            self._all_here.set()
        await self._all_here.wait()
        await loop.sock_sendall(made, self._send)
        while not client.heard(data):
            if not (more := await loop.sock_recv(made, 65536)):
                client.outcome = "ended"
                return
            data += more

    async def hold(self, count: int, together: bool) -> list[Client]:
        """Connect so many at once, and keep them.

        :param together: nobody asks before all are connected.
        """
        self._missing = count if together else 0
        self._held += (self._socket() for _ in range(count))
        return await asyncio.gather(*map(self._connect, self._held))

    async def churn(self, rate: float, seconds: float, at_once: int) -> Counter[str]:
        """Make short connections, ``rate`` of them a second."""
        outcomes: Counter[str] = Counter()
        started = time.monotonic()

        async def one_after_the_other(first: int) -> None:
            for number in itertools.count(first, at_once):
                due = number / rate
                if due > seconds:
                    return
                await asyncio.sleep(started + due - time.monotonic())
                with self._socket() as made:
                    client = await self._connect(made)
                outcomes[client.outcome] += 1

        await asyncio.gather(*map(one_after_the_other, range(at_once)))
        return outcomes


def say(what: Any) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def run(options: argparse.Namespace) -> None:
    """What was asked for on the command line."""
    send = {"http": REQUEST, "tls": hello(), "nothing": b""}[options.send]
    clients = Clients(Address.parse(options.to), send, options.source, options.picked)
    if options.what == "churn":
        say(await clients.churn(options.rate, options.seconds, options.clients))
        return
    say([asdict(each) for each in await clients.hold(options.clients, options.together)])
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("hold", "churn"))
    parser.add_argument("to", help="an address, such as 127.0.0.1:8080")
    parser.add_argument("--clients", type=int, default=1, help="how many at once")
    parser.add_argument("--source", action="append", required=True, help="a local IP address")
    parser.add_argument("--picked", action="store_true", help="the kernel picks their ports")
    parser.add_argument("--together", action="store_true", help="hold: ask when all are connected")
    parser.add_argument("--send", choices=("http", "tls", "nothing"), default="http")
    parser.add_argument("--rate", type=float, default=100.0, help="churn: connections a second")
    parser.add_argument("--seconds", type=float, default=1.0, help="churn: for so long")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
