"""An origin that writes down what it sees, and clients that write down what they get.

Both read with the strict reader of ``http_strict.py``. A :class:`Watch` puts a proxy between them,
tries one case after the other, and after each one sends *canaries*: harmless requests, on the same
connection, on one that goes on for the whole test, and on a new one. Each must be seen as it was
sent, by itself, and get its own answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, TimeoutError
from twisted.trial.unittest import TestCase

from proxykit.net.http1_upstream import END_COMES
from tests.http_sockets import start_http
from tests.interop.http_corpus import Case, Seen, with_token
from tests.interop.http_corpus_responses import Reply
from tests.interop.http_strict import Broken, Message, read_request, read_response
from tests.sockets import End, reactor, start_backend, turns

#: Five bytes that are one case's own; a canary's has a letter behind it. Not in a request's id.
_TOKEN = re.compile(rb"(?<![0-9a-z])[cr][0-9]{4}[a-z]?(?![0-9a-z])")
#: Seconds after which a client that gets no answer gives up.
PATIENCE = 2.0
#: What goes to the origin as an answer to a request.
Answer = Callable[["RecordingEnd", Message], bytes]


def token_of(message: Message) -> bytes:
    """Whose request this is."""
    named = b" ".join((message.target, *message.all(b"x-case")))
    match = _TOKEN.search(named)
    return match[0] if match else b"none"


def canary(token: bytes) -> bytes:
    """A harmless request."""
    return b"GET /%b HTTP/1.1\r\nHost: a.example\r\nX-Case: %b\r\n\r\n" % (token, token)


def tokens_in(data: bytes) -> set[bytes]:
    """Whose answers are there."""
    return set(_TOKEN.findall(data))


@define
class Record:
    """What the origin has seen since it was last asked.

    :ivar seen: whole requests, in the order of their last bytes.
    :ivar broken: what a strict reader does not take.
    :ivar partial: what was left of requests that never became whole.
    """

    seen: list[Message] = field(factory=list)
    broken: list[str] = field(factory=list)
    partial: list[bytes] = field(factory=list)


class PatientEnd(End):
    """Waits, but not for ever."""

    taken = 0

    async def within(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of this end."""
        waiting = Deferred.fromCoroutine(self._until(condition))
        try:
            await waiting.addTimeout(PATIENCE, reactor)
        except TimeoutError:
            got = bytes(self.received[self.taken :])
            raise AssertionError(f"no answer, and no end, but {got[:200]!r}") from None


class RecordingEnd(PatientEnd):
    """One connection to the origin.

    :ivar requests: all that it had, each with its bytes.
    """

    def __init__(self, origin: RecordingOrigin) -> None:
        super().__init__()
        self.origin = origin
        self.requests: list[tuple[Message, bytes]] = []

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        while data := bytes(self.received[self.taken :]):
            try:
                message = read_request(data)
            except Broken as broken:
                self.origin.record.broken.append(str(broken))
                self.reset()
                return
            if message is None:
                return
            self.requests.append((message, data[: message.end]))
            self.taken += message.end
            self.origin.record.seen.append(message)
            self.send(self.origin.answer(self, message))

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        super().connectionLost(reason)
        if left := bytes(self.received[self.taken :]):
            self.origin.record.partial.append(left)

    def readConnectionLost(self) -> None:
        super().readConnectionLost()
        self.close()

    async def gone(self) -> None:
        """Wait until the connection is lost."""
        await self.within(lambda: self.reason is not None)


def echo(end: RecordingEnd, message: Message) -> bytes:
    """Tell who has asked."""
    body = b"for %b\n" % token_of(message)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head if message.method == b"HEAD" else head + body


class RecordingOrigin:
    """See this module."""

    def __init__(self) -> None:
        self.record = Record()
        self.answer: Answer = echo
        self.ends: list[RecordingEnd] = []

    def end(self) -> RecordingEnd:
        made = RecordingEnd(self)
        self.ends.append(made)
        return made


class Talker(PatientEnd):
    """A client that reads strictly."""

    async def answer(self, method: bytes = b"GET") -> Message | None:
        """The next answer that is not an interim one; None: the connection has ended without.

        :raises Broken: what came is no answer.
        """
        found: list[Message] = []

        def look() -> bool:
            while not found:
                data = bytes(self.received[self.taken :])
                clean = self.read_ended and self.reason is None
                message = read_response(data, method, clean) if data else None
                if message is None:
                    return self.read_ended or self.reason is not None
                self.taken += message.end
                if message.status >= 200 or message.status == 101:
                    found.append(message)
            return True

        await self.within(look)
        return found[0] if found else None

    async def over(self) -> bytes:
        """Wait for the end of the connection; give what came before it and was no answer."""
        await self.within(lambda: self.read_ended or self.reason is not None)
        return bytes(self.received[self.taken :])


class Watch:
    """A proxy between a recording origin and clients. See this module.

    :ivar complaints: what was wrong, with the names of cases.
    """

    def __init__(self, test: TestCase) -> None:
        self.test = test
        self.origin = RecordingOrigin()
        self.complaints: list[str] = []
        self._numbers = count(1)
        #: The tokens of requests that may be seen in part, for they were never whole. How soon the
        #: origin's connection is lost then is the kernel's affair.
        self._unfinished: set[bytes] = set()

    async def start(self) -> None:
        self.backend = await start_backend(self.test, self.origin.end)
        self.proxy = start_http(self.test, self.backend)
        self.steady = await self.proxy.connect(Talker())

    def number(self, letter: bytes) -> bytes:
        """Five bytes that nobody else has."""
        return b"%b%04d" % (letter, next(self._numbers))

    async def try_case(self, case: Case, cut: int = 0) -> None:
        """Send a case, see what comes of it, and whether anybody else is any the worse for it.

        :param cut: where it is cut in two, with some time between; 0: it is not.
        """
        token = self.number(b"c")
        case = with_token(case, token)
        if case.refused > 0 or case.ends:
            self._unfinished.add(token)
        self.origin.record = Record()
        client = await self.proxy.connect(Talker())
        try:
            await self._send(client, case, token, cut)
            await self._hear(client, case, token)
            await self.canaries(token)
            if strange := tokens_in(bytes(client.received)) - {token, token + b"s"}:
                raise AssertionError(f"got the answers of {strange}")
            self._look_at_record(case, token)
        except (AssertionError, Broken) as problem:
            self.complaints.append(f"{case.name}: {problem}")
        client.reset()

    async def _send(self, client: Talker, case: Case, token: bytes, cut: int) -> None:
        data = case.data if case.ends else case.data + canary(token + b"s")
        if cut:
            client.send(data[:cut])
            await turns(3)
        client.send(data[cut:])
        if case.ends:
            client.finish()

    async def _hear(self, client: Talker, case: Case, token: bytes) -> None:
        """Every answer that is due, and none that is not."""
        for number, expected in enumerate(case.answers):
            if isinstance(expected, int):
                await self._own_answer(client, expected)
            else:
                await own(client, token, expected.method, f"answer {number}")
        if case.refused > 0:
            await self._own_answer(client, case.refused)
        elif not (case.refused or case.ends):
            await own(client, token + b"s", b"GET", "the canary on the same connection")
            return
        if left := await client.over():
            raise AssertionError(f"got {left[:200]!r} after the last answer")

    async def _own_answer(self, client: Talker, status: int) -> None:
        answer = await client.answer()
        if answer is None or answer.status != status or tokens_in(answer.body):
            raise AssertionError(f"expected an answer {status} of the proxy's, got {answer}")

    async def canaries(self, token: bytes) -> None:
        """Nobody else may notice."""
        self.steady.send(canary(token + b"k"))
        await own(self.steady, token + b"k", b"GET", "the canary on another connection")
        fresh = await self.proxy.connect(Talker())
        fresh.send(canary(token + b"n"))
        await own(fresh, token + b"n", b"GET", "the canary on a new connection")
        fresh.reset()

    def _look_at_record(self, case: Case, token: bytes) -> None:
        record = self.origin.record
        if record.broken:
            raise AssertionError(f"the origin was sent something odd: {record.broken}")
        wanted = [each for each in case.answers if isinstance(each, Seen)]
        letters = [b"k", b"n"] if case.ends or case.refused else [b"s", b"k", b"n"]
        wanted += [Seen(target=b"/" + token + letter) for letter in letters]
        seen = [Seen(each.method, each.target, each.body, each.host) for each in record.seen]
        if seen != wanted:
            raise AssertionError(f"the origin saw {seen}, not {wanted}")
        for left in record.partial:
            if tokens_in(left) - self._unfinished:
                raise AssertionError(f"the origin saw a part of a request: {left[:200]!r}")

    async def try_reply(self, reply: Reply) -> None:
        """Have the origin send a case to one who asks, and see that it does harm to nobody."""
        token = self.number(b"r")
        asked: list[RecordingEnd] = []

        def answer(end: RecordingEnd, message: Message) -> bytes:
            if message.target != b"/" + token:
                return echo(end, message)
            asked.append(end)
            Deferred.fromCoroutine(_play(end, reply))
            return b""

        self.origin.record, self.origin.answer = Record(), answer
        client = await self.proxy.connect(Talker())
        try:
            whole = await self._ask(client, reply, token)
            if not reply.stays:
                self.proxy.clock.advance(END_COMES * 2)
                for end in asked:
                    await end.gone()
            if whole and reply.version == b"HTTP/1.1":
                if reply.late:
                    client.send(canary(token + b"s"))
                await own(client, token + b"s", b"GET", "the canary on the same connection")
            elif (left := await client.over()) and (reply.status or tokens_in(left)):
                raise AssertionError(f"got {left[:200]!r} after the last answer")
            await self.canaries(token)
            if reply.method == b"POST" and len(asked) != 1:
                raise AssertionError(f"a POST was sent {len(asked)} times")
            if self.origin.record.broken:
                raise AssertionError(f"the origin was sent something odd: {self.origin.record}")
        except (AssertionError, Broken) as problem:
            self.complaints.append(f"{reply.name}: {problem}")
        client.reset()

    async def _ask(self, client: Talker, reply: Reply, token: bytes) -> bool:
        """Ask for a case; give whether its answer was whole, so that another one can follow."""
        start = b"%b /%b %b\r\nHost: a.example\r\n" % (reply.method, token, reply.version)
        length = b"Content-Length: 0\r\n" if reply.method == b"POST" else b""
        client.send(start + length + b"\r\n" + (b"" if reply.late else canary(token + b"s")))
        got = await client.answer(reply.method)
        if got is None:
            if reply.status:
                raise AssertionError(f"expected a {reply.status}, got nothing")
            return False
        if got.status != (reply.status or 502):
            raise AssertionError(f"expected a {reply.status or 502}, got {got}")
        if got.status != 502 and got.body != reply.body:
            raise AssertionError(f"expected the body {reply.body[:80]!r}, got {got.body[:80]!r}")
        return True


async def own(client: Talker, token: bytes, method: bytes, what: str) -> None:
    """See a client get the answer that is its own."""
    answer = await client.answer(method)
    body = b"" if method == b"HEAD" else b"for %b\n" % token
    if answer is None or (answer.status, answer.body) != (200, body):
        raise AssertionError(f"{what}: expected the answer for {token!r}, got {answer}")


async def _play(end: RecordingEnd, reply: Reply) -> None:
    """Send what an origin is to send."""
    for number, piece in enumerate(reply.pieces):
        if number:
            await turns(3)
        if end.reason is None:
            end.send(piece)
    if reply.then == "close":
        end.close()
    elif reply.then == "reset":
        await turns(3)
        end.reset()
