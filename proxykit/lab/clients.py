"""Clients for the lab, as a program, for they have a namespace of their own.

It does what it is told on its input, one line of JSON after the other, and answers each with
a line ``{"done": ...}``; what takes longer tells about it every so often, ``{"at": ...}``. What can
be asked for is what :class:`Crowd` can do, without the underscore::

    {"do": "open", "count": 100, "to": ["192.168.1.1:80"], "talk": "http"}
    {"done": {"open": 100, "outcomes": {"served": 100}, "first": {"served": 0.1}, "seconds": ...}}
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from proxykit.lab.programs import raise_descriptors
from proxykit.lab.talks import CONNECTED, ENDED, SILENT, TALKS, Talk
from proxykit.model import Address

#: linux/in.h; the socket module has no name for it.
IP_BIND_ADDRESS_NO_PORT = 24
#: How many connect at the same time.
AT_ONCE = 64
#: Seconds without an answer.
PATIENCE = 20.0
#: Seconds from one word about what is under way to the next.
TELL = 0.25
#: Seconds from one look at how many there should be to the next.
STEP = 0.05


class Client(asyncio.Protocol):
    """One connection.

    :ivar lost: why there is none any more, once that is so.
    """

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self._had = b""
        self._asked: asyncio.Future[str] | None = None
        self.lost = ""
        self.gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._had += data
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        number = exc.errno if isinstance(exc, OSError) else None
        self.lost = errno.errorcode[number] if number else ENDED
        self._settle(self.lost)
        self.gone.set_result(None)

    def _look(self) -> None:
        if self._asked is None or not self._had:
            return
        if (answer := self.talk.answer(self._had)) is not None:
            self._had = self._had[answer[1] :]
            self._settle(answer[0])

    def _settle(self, outcome: str) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_result(outcome)

    async def ask(self, patience: float, pieces: int = 1, pause: float = 0.0) -> str:
        """A question; gives what becomes of it.

        :param pieces: in so many the question is sent.
        :param pause: seconds between two of them.
        """
        if self.lost:
            return self.lost
        asked = self._asked = asyncio.get_running_loop().create_future()
        question = self.talk.question()
        size = -(-len(question) // pieces)
        for at in range(0, len(question), size):
            if at:
                await asyncio.sleep(pause)
            self.transport.write(question[at : at + size])
        self._look()  # An answer may be there before the question was: somebody else's.
        try:
            return await asyncio.wait_for(asked, patience)
        except TimeoutError:
            self._asked = None
            return SILENT


class Tally:
    """What has become of some clients, how long that took, and when it was so first."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: dict[str, float] = {}
        self._seconds: dict[str, list[float]] = {}

    def add(self, outcome: str, seconds: float) -> None:
        """One more."""
        self._seconds.setdefault(outcome, []).append(seconds)
        self._first.setdefault(outcome, round(time.monotonic() - self._started, 3))

    @property
    def outcomes(self) -> Counter[str]:
        """How many have come to what."""
        return Counter({outcome: len(each) for outcome, each in self._seconds.items()})

    def told(self) -> dict[str, Any]:
        """As the lab is told: of the seconds the least, the median, the most."""
        return {
            "outcomes": self.outcomes,
            "first": self._first,
            "seconds": {
                outcome: [round(f(each), 4) for f in (min, statistics.median, max)]
                for outcome, each in self._seconds.items()
            },
        }


class Crowd:
    """The clients that there are.

    :param say: is given what the lab is to be told.
    """

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._clients: list[Client] = []
        self._numbers = itertools.count(1)
        self._said = 0.0

    def _progress(self, **what: Any) -> None:
        """Tell how far it is, now and then."""
        if (now := time.monotonic()) - self._said >= TELL:
            self._said = now
            self._say({"at": what})

    async def _connect(
        self, to: str, talk: str, bind: str = "", source: str = "", name: str = ""
    ) -> Client:
        """One more, which has not asked yet.

        :param talk: the name of a :class:`Talk`.
        :param bind: ``plain`` or ``late``: how it is bound to ``source``; empty: it is not.
        :param name: what it calls itself, or the server's name in a hello.
        :raises OSError: there is none.
        """
        address = Address.parse(to)
        made = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if bind == "late":
                made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            if bind:
                made.bind((source, 0))
            loop = asyncio.get_running_loop()
            await loop.sock_connect(made, (address.host, address.port))
            conversation = TALKS[talk](name or f"client-{next(self._numbers)}")
            _, client = await loop.create_connection(lambda: Client(conversation), sock=made)
        except BaseException:
            made.close()
            raise
        return client

    async def _open_one(
        self, tally: Tally, patience: float, asks: bool = True, **how: Any
    ) -> Client | None:
        """One that connects and asks."""
        started = time.monotonic()
        client: Client | None = None
        try:
            client = await self._connect(**how)
            outcome = await client.ask(patience) if asks else CONNECTED
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, repr(error))
        tally.add(outcome, time.monotonic() - started)
        return client

    async def open(
        self,
        count: int,
        to: Sequence[str],
        talk: str = "http",
        rate: float = 0.0,
        patience: float = PATIENCE,
        names: Sequence[str] = ("",),
        asks: bool = True,
        **bind: str,
    ) -> dict[str, Any]:
        """So many more clients, which connect, ask once, and stay.

        :param to: addresses, taken in turn, as are ``names``.
        :param asks: whether they do; else they are ``connected``, whatever that says.
        :param rate: how many in a second; 0: one after the other, :data:`AT_ONCE` at a time.
        """
        tally, done = Tally(), itertools.count(1)

        async def one(number: int) -> None:
            place, name = to[number % len(to)], names[number % len(names)]
            how = {"to": place, "talk": talk, "name": name, **bind}
            client = await self._open_one(tally, patience, asks, **how)
            if client is not None:
                self._clients.append(client)
            self._progress(done=next(done), of=count)

        await _paced(one, count, rate)
        return self._told(tally)

    async def ask(
        self,
        times: int = 1,
        pieces: int = 1,
        pause: float = 0.0,
        patience: float = PATIENCE,
    ) -> dict[str, Any]:
        """A question of each client, all at once; and another one as soon as that is answered.

        :param times: so many.
        :returns: ``mixed_up`` too: what some have asked, and been told.
        """
        tally, done, of = Tally(), itertools.count(1), times * len(self._clients)

        async def one(client: Client) -> None:
            for _ in range(times):
                started = time.monotonic()
                outcome = await client.ask(patience, pieces, pause)
                tally.add(outcome, time.monotonic() - started)
                self._progress(done=next(done), of=of)

        await asyncio.gather(*map(one, self._clients))
        examples = [each.talk.mixed_up for each in self._clients if any(each.talk.mixed_up)]
        return {**self._told(tally), "mixed_up": examples}

    async def look(self) -> dict[str, Any]:
        """How many are still connected, and what the others have come to."""
        tally = Tally()
        for client in self._clients:
            if client.lost:
                tally.add(client.lost, 0.0)
        return self._told(tally)

    async def leave(self, count: int | None = None) -> dict[str, Any]:
        """So many close their connections, the oldest first; None: all."""
        going = self._clients[:count]
        del self._clients[:count]
        await _close(going)
        return self._told(Tally())

    async def churn(
        self,
        rate: float,
        seconds: float,
        to: Sequence[str],
        talk: str = "http",
        last: str = "client",
        patience: float = PATIENCE,
    ) -> dict[str, Any]:
        """Short connections, one question on each.

        :param last: ``client`` closes behind the answer; ``server``: it waits for the other side to
            have done so.
        """
        tally = Tally()
        started = time.monotonic()

        async def one(number: int) -> None:
            place = to[number % len(to)]
            client = await self._open_one(tally, patience, to=place, talk=talk)
            if client is not None:
                if last == "server":
                    await asyncio.wait([client.gone], timeout=patience)
                await _close([client])
            self._progress(seconds=time.monotonic() - started, outcomes=tally.outcomes)

        await _paced(one, int(rate * seconds), rate)
        return self._told(tally)

    async def follow(
        self, points: Sequence[tuple[float, float]], to: Sequence[str], talk: str = "http"
    ) -> dict[str, Any]:
        """As many clients as a line says, as time goes on.

        :param points: of the line: seconds from now, clients.
        """
        tally = Tally()
        started = time.monotonic()
        while (now := time.monotonic() - started) < points[-1][0]:
            self._clients = [each for each in self._clients if not each.lost]
            missing = round(_between(points, now)) - len(self._clients)
            if missing > 0:
                each = (
                    self._open_one(tally, PATIENCE, to=to[0], talk=talk) for _ in range(missing)
                )
                self._clients += filter(None, await asyncio.gather(*each))
            elif missing < 0:
                await self.leave(-missing)
            self._progress(seconds=now, open=len(self._clients), outcomes=tally.outcomes)
            await asyncio.sleep(STEP)
        return self._told(tally)

    def _told(self, tally: Tally) -> dict[str, Any]:
        return {"open": sum(not each.lost for each in self._clients), **tally.told()}


async def _paced(one: Callable[[int], Awaitable[None]], count: int, rate: float) -> None:
    """Do something so many times, at a rate or, without one, some at once."""
    started = time.monotonic()
    if rate:
        under_way: set[asyncio.Task[None]] = set()
        for number in range(count):
            await asyncio.sleep(started + number / rate - time.monotonic())
            task = asyncio.ensure_future(one(number))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        return

    async def some(numbers: Iterator[int]) -> None:
        for number in numbers:
            await one(number)

    numbers = iter(range(count))
    await asyncio.gather(*(some(numbers) for _ in range(min(AT_ONCE, count))))


async def _close(clients: Iterable[Client]) -> None:
    going = [each for each in clients if not each.lost]
    for each in going:
        each.transport.close()
    if going:
        await asyncio.wait([each.gone for each in going], timeout=PATIENCE)


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """How high a line through these points is there."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if at <= x1:
            return y0 + (y1 - y0) * max(0.0, at - x0) / (x1 - x0)
    return points[-1][1]


def say(what: dict[str, Any]) -> None:
    """A line for the lab."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def obey() -> None:
    """Do what comes, until the input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    crowd = Crowd(say)
    while line := await reader.readline():
        command = json.loads(line)
        say({"done": await getattr(crowd, command.pop("do"))(**command)})


def main() -> None:
    """Run it."""
    raise_descriptors()
    asyncio.run(obey())


if __name__ == "__main__":
    main()
