"""Name servers for tests: messages laid down beforehand, and real servers on loopback."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.names import dns
from twisted.names.authority import FileAuthority
from twisted.names.server import DNSServerFactory
from twisted.trial.unittest import TestCase

from proxykit.sources.lookup import Server
from tests.sockets import HOST, reactor

#: What a record is made of: its name, its payload.
Record = tuple[str, Any]


def a(name: str, address: str, ttl: int = 60) -> Record:
    """An address, of whichever family."""
    kind: Any = dns.Record_AAAA if ":" in address else dns.Record_A
    return name, kind(address, ttl)


def alias(name: str, to: str, ttl: int = 60) -> Record:
    return name, dns.Record_CNAME(to, ttl)


def srv(
    name: str, target: str, port: int, priority: int = 0, weight: int = 0, ttl: int = 60
) -> Record:
    return name, dns.Record_SRV(priority, weight, port, target, ttl)


def header(record: Record) -> Any:
    name, payload = record
    return dns.RRHeader(name, payload.TYPE, dns.IN, payload.ttl, payload)


def message(*answers: Record, extra: tuple[Record, ...] = (), code: int = dns.OK) -> Any:
    """An answer."""
    made = dns.Message(answer=1, rCode=code)
    made.answers = [header(each) for each in answers]
    made.additional = [header(each) for each in extra]
    return made


#: There is no such name.
NO_NAME = message(code=dns.ENAME)


class FakeResolver:
    """Answers with what is laid down; a list is used up but for its last.

    :ivar asked: names and types.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.answers: dict[tuple[str, int], Any] = {}

    def lay_down(self, name: str, kind: int, *answers: Any) -> None:
        """Messages, exceptions, or Deferreds of those."""
        self.answers[name, kind] = list(answers)

    async def ask(self, name: str, kind: int) -> Any:
        """See ``Resolver``."""
        self.asked.append((name, kind))
        answers = self.answers.get((name, kind), [message()])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Deferred):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Zone(FileAuthority):  # type: ignore[misc]
    """The zone ``test``."""

    def loadFile(self, filename: object) -> None:
        self.soa = b"test", dns.Record_SOA(minimum=1, expire=1)
        self.records: dict[bytes, list[Any]] = {}


class _Factory(DNSServerFactory):  # type: ignore[misc]
    """A server whose answers by UDP are cut off where they are too long for that.

    :ivar asked: how often, by ``udp`` and by ``tcp``.
    """

    noisy = False

    def __init__(self, zone: _Zone) -> None:
        super().__init__(authorities=[zone])
        self.asked = {"udp": 0, "tcp": 0}

    def sendReply(self, protocol: Any, message: Any, address: Any) -> None:
        self.asked["udp" if address else "tcp"] += 1
        message.maxSize = 512 if address else 0
        super().sendReply(protocol, message, address)


def listen_on_both(udp: Any, tcp: Any) -> list[Any]:
    """Have a protocol and a factory listen on one number that is free with both."""
    while True:
        port = reactor.listenTCP(0, tcp, interface=HOST)
        try:
            return [port, reactor.listenUDP(port.getHost().port, udp, interface=HOST)]
        except CannotListenError:
            port.stopListening()


class NameServer:
    """A real one, on loopback, by UDP and TCP; its zone is ``test``.

    :ivar factory: counts what it is asked.
    """

    def __init__(self, test: TestCase, *records: Record) -> None:
        self._zone = _Zone("")
        self.has(*records)
        self.factory = _Factory(self._zone)
        self._protocol = dns.DNSDatagramProtocol(self.factory, reactor=reactor)
        self._protocol.noisy = False
        self._ports = listen_on_both(self._protocol, self.factory)
        self.port: int = self._ports[0].getHost().port
        test.addCleanup(self.stop)

    def has(self, *records: Record) -> None:
        """From now on it knows these, and no others."""
        found = self._zone.records
        found.clear()
        for name, payload in records:
            found.setdefault(name.encode(), []).append(payload)

    @property
    def address(self) -> Server:
        """Where to ask it."""
        return HOST, self.port

    async def stop(self) -> None:
        """As if it were killed."""
        while self._ports:
            await maybeDeferred(self._ports.pop().stopListening)
        for each in tuple(self.factory.connections):
            each.transport.abortConnection()
