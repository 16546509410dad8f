"""proxykit.sources.lookup: questions to name servers that are there, and to some that are not."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxykit.sources import lookup
from proxykit.sources.lookup import NoAnswer, Resolver, Server, configured
from tests.interop.programs import free_port
from tests.sockets import HOST, TIMEOUT, ClockedReactor, reactor, turns, until
from tests.sources.name_servers import NameServer, a, listen_on_both

NAME = "web.test"


class ConfiguredTests(SynchronousTestCase):
    def found(self, text: str | None) -> list[Server]:
        path = self.mktemp()
        if text is not None:
            Path(path).write_text(text)
        return configured(path)

    def test_configured(self) -> None:
        own = [(HOST, 53)]
        for text, expected in (
            (None, own),
            ("", own),
            ("search a.test\n#nameserver 10.0.0.1\nnameserver\nnameserver web.test\n", own),
            ("nameserver 10.0.0.1 # first\n\tnameserver\t::1\n", [("10.0.0.1", 53), ("::1", 53)]),
            (
                "".join(f"nameserver 10.0.0.{n}\n" for n in range(9)),
                [(f"10.0.0.{n}", 53) for n in range(3)],
            ),
        ):
            with self.subTest(text):
                self.assertEqual(self.found(text), expected)

    def test_this_machine(self) -> None:
        self.assertTrue(configured())


class Stranger(DatagramProtocol):
    """Does with a question as a test wants.

    :ivar replies: made of the question and of what would be the answer.
    """

    noisy = False

    def __init__(self, *replies: Any) -> None:
        self.replies = replies
        self.asked = 0

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        self.asked += 1
        question = dns.Message()
        question.fromStr(data)
        for reply in self.replies:
            made = dns.Message(question.id, answer=1)
            made.queries = list(question.queries)
            made.answers = [dns.RRHeader(NAME, dns.A, dns.IN, 7, dns.Record_A("10.0.0.7"))]
            self.transport.write(reply(made), addr)


def good(made: Any) -> bytes:
    return made.toStr()  # type: ignore[no-any-return]


def forged(made: Any) -> bytes:
    """It leads elsewhere."""
    made.answers[0].payload = dns.Record_A("10.0.0.66")
    return made.toStr()  # type: ignore[no-any-return]


def other_number(made: Any) -> bytes:
    made.id ^= 1
    return forged(made)


def other_question(made: Any) -> bytes:
    made.queries = [dns.Query("other.test", dns.A)]
    return forged(made)


def no_question(made: Any) -> bytes:
    made.queries = []
    return forged(made)


def a_question(made: Any) -> bytes:
    made.answer = 0
    return forged(made)


def cut_off(made: Any) -> bytes:
    return good(made)[:7]


def a_loop(made: Any) -> bytes:
    """A name that leads to itself."""
    return good(made)[:12] + b"\xc0\x0c\x00\x01\x00\x01"


def truncated(made: Any) -> bytes:
    made.trunc = 1
    return good(made)


def failed(made: Any) -> bytes:
    made.rCode = dns.ESERVER
    return good(made)


def odd(made: Any) -> bytes:
    made.rCode = 9
    return good(made)


class LookupCase(TestCase):
    timeout = TIMEOUT

    def setUp(self) -> None:
        self.clock = ClockedReactor()

    def resolver(self, *servers: Server) -> Resolver:
        return Resolver(servers, 2.0, self.clock)

    def ask(self, *servers: Server, kind: int = dns.A) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.resolver(*servers).ask(NAME, kind))

    def hosts(self, message: Any) -> list[str]:
        return [each.payload.dottedQuad() for each in message.answers]

    def stranger(self, *replies: Any) -> Stranger:
        made = Stranger(*replies)
        port = reactor.listenUDP(0, made, interface=HOST)
        made.address = HOST, port.getHost().port  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return made

    async def reason(self, question: Deferred[Any]) -> str:
        """Why there is no answer."""
        error = await self.assertFailure(question, NoAnswer)
        self.assert_nothing_left()
        return str(error)

    def assert_nothing_left(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])
        left = [each for each in reactor.getReaders() if isinstance(each, lookup._Datagram)]
        self.assertEqual(left, [])


class AnswerTests(LookupCase):
    async def test_answer(self) -> None:
        server = NameServer(self, a(NAME, "10.0.0.1"), a(NAME, "10.0.0.2"))
        message = await self.ask(server.address)
        self.assertEqual(self.hosts(message), ["10.0.0.1", "10.0.0.2"])
        self.assertEqual(server.factory.asked, {"udp": 1, "tcp": 0})
        self.assert_nothing_left()

    async def test_no_such_name(self) -> None:
        """That is an answer; so is that there is none of a type."""
        server = NameServer(self)
        self.assertEqual((await self.ask(server.address)).rCode, dns.ENAME)
        server.has(a(NAME, "10.0.0.1"))
        message = await self.ask(server.address, kind=dns.AAAA)
        self.assertEqual((message.rCode, message.answers), (dns.OK, []))

    async def test_too_long_for_udp(self) -> None:
        """It is asked again by TCP, and the connection does not stay."""
        addresses = [f"10.0.0.{n}" for n in range(100)]
        server = NameServer(self, *(a(NAME, each) for each in addresses))
        message = await self.ask(server.address)
        self.assertEqual(self.hosts(message), addresses)
        self.assertEqual(server.factory.asked, {"udp": 1, "tcp": 1})
        await until(lambda: not server.factory.connections)
        self.assert_nothing_left()

    async def test_what_is_no_answer(self) -> None:
        """Whoever guesses has not been asked: what comes after it counts."""
        for bad in (other_number, other_question, no_question, a_question, cut_off, a_loop):
            with self.subTest(bad.__name__):
                message = await self.ask(self.stranger(bad, good).address)
                self.assertEqual(self.hosts(message), ["10.0.0.7"])
        self.assert_nothing_left()

    async def test_twice(self) -> None:
        message = await self.ask(self.stranger(good, good).address)
        self.assertEqual(self.hosts(message), ["10.0.0.7"])

    async def test_another_has_answered(self) -> None:
        """From another port it is not even heard."""

        class Elsewhere(Stranger):
            def datagramReceived(self, data: bytes, addr: Any) -> None:
                own, self.transport = self.transport, other
                super().datagramReceived(data, addr)
                self.transport = own

        other = reactor.listenUDP(0, DatagramProtocol(), interface=HOST)
        self.addCleanup(other.stopListening)
        made = Elsewhere(good)
        port = reactor.listenUDP(0, made, interface=HOST)
        self.addCleanup(port.stopListening)
        question = self.ask((HOST, port.getHost().port))
        await until(lambda: made.asked)
        await turns(20)
        self.assertNoResult(question)
        question.cancel()
        await self.assertFailure(question, CancelledError)

    async def test_ipv6(self) -> None:
        protocol = Stranger(good)
        port = reactor.listenUDP(0, protocol, interface="::1")
        self.addCleanup(port.stopListening)
        message = await self.ask(("::1", port.getHost().port))
        self.assertEqual(self.hosts(message), ["10.0.0.7"])

    async def test_servers_of_this_machine(self) -> None:
        """Those that are there when it is asked."""
        server = NameServer(self, a(NAME, "10.0.0.1"))
        resolver = self.resolver()
        self.patch(lookup, "configured", lambda: [server.address])
        message = await Deferred.fromCoroutine(resolver.ask(NAME, dns.A))
        self.assertEqual(self.hosts(message), ["10.0.0.1"])


class NoAnswerTests(LookupCase):
    async def test_nobody_is_there(self) -> None:
        """The next one is asked at once."""
        port = free_port()
        self.assertEqual(
            await self.reason(self.ask((HOST, port))), f"{HOST}:{port}: Connection refused"
        )
        server = NameServer(self, a(NAME, "10.0.0.1"))
        message = await self.ask((HOST, port), server.address)
        self.assertEqual(self.hosts(message), ["10.0.0.1"])

    async def test_silence(self) -> None:
        """Each is asked twice, in turn."""
        one, two = self.stranger(), self.stranger()
        question = self.ask(one.address, two.address)
        for asked in ((1, 0), (1, 1), (2, 1), (2, 2)):
            await until(lambda asked=asked: (one.asked, two.asked) == asked)
            self.clock.advance(1.75)
            self.assertNoResult(question)
            self.clock.advance(0.25)
        self.assertEqual(
            await self.reason(question), f"{HOST}:{two.address[1]}: no answer within 2 s"
        )

    async def test_refusals(self) -> None:
        for reply, words in ((failed, "it has failed (SERVFAIL)"), (odd, "it says 9")):
            stranger = self.stranger(reply)
            self.assertEqual(
                await self.reason(self.ask(stranger.address)),
                f"{HOST}:{stranger.address[1]}: {words}",
            )
            self.assertEqual(stranger.asked, 2)

    async def test_no_way(self) -> None:
        """To where the kernel sends nothing."""
        self.assertIn(
            "255.255.255.255:53: Permission denied",
            await self.reason(self.ask(("255.255.255.255", 53))),
        )

    async def test_cancelled(self) -> None:
        stranger = self.stranger()
        question = self.ask(stranger.address)
        await until(lambda: stranger.asked)
        question.cancel()
        await self.assertFailure(question, CancelledError)
        self.assert_nothing_left()


class TcpTests(LookupCase):
    """What can go wrong after a truncated answer."""

    def truncating(self, protocol: type[Protocol]) -> Server:
        factory = Factory.forProtocol(protocol)
        factory.noisy = False
        ports = listen_on_both(Stranger(truncated), factory)
        for port in ports:
            self.addCleanup(port.stopListening)
        return HOST, ports[0].getHost().port

    async def test_nobody_is_there(self) -> None:
        ports = listen_on_both(Stranger(truncated), Factory())
        self.addCleanup(ports[1].stopListening)
        server = HOST, ports[1].getHost().port
        await ports[0].stopListening()
        with socket.socket() as held:  # so that nobody else is there
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(server)
            self.assertIn("refused", await self.reason(self.ask(server)))

    async def test_closed(self) -> None:
        class Closes(Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.loseConnection()

        self.assertIn("closed", await self.reason(self.ask(self.truncating(Closes))))

    async def test_silence(self) -> None:
        connections: list[Protocol] = []
        closed: Deferred[None] = Deferred()

        class Silent(Protocol):
            def dataReceived(self, data: bytes) -> None:
                connections.append(self)

            def connectionLost(self, reason: object) -> None:
                if len(connections) == 2:
                    closed.callback(None)

        question = self.ask(self.truncating(Silent))
        for count in (1, 2):
            await until(lambda count=count: len(connections) == count)
            self.clock.advance(2.0)
        self.assertIn("no answer within 2 s", await self.reason(question))
        await closed

    async def test_cancelled(self) -> None:
        """Nobody keeps the connection."""
        heard: Deferred[None] = Deferred()
        closed: Deferred[None] = Deferred()

        class Silent(Protocol):
            def dataReceived(self, data: bytes) -> None:
                heard.callback(None)

            def connectionLost(self, reason: object) -> None:
                closed.callback(None)

        question = self.ask(self.truncating(Silent))
        await heard
        question.cancel()
        await self.assertFailure(question, CancelledError)
        await closed
        self.assert_nothing_left()


class SocketTests(SynchronousTestCase):
    def test_nothing_to_read(self) -> None:
        """A reactor may be wrong about that."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind((HOST, 0))
            question = dns.Message(1)
            question.addQuery(b"a.test", dns.A)
            asked = lookup._Datagram(question, other.getsockname())
            asked.doRead()
            self.assertNoResult(asked.answer)
            self.assertEqual(asked.logPrefix(), "dns")
            asked.close()
