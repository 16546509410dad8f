"""PROXY headers that come in: who may send one, what it says, and what becomes of what follows."""

from __future__ import annotations

import itertools
import random
import socket
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.trial.unittest import TestCase

from proxykit.core.deadlines import Deadlines
from proxykit.core.trust import Trust
from proxykit.model import ConnInfo, address_text
from proxykit.net.listener import Listener, endpoint
from proxykit.net.peek import HeaderProtocol, Headers
from proxykit.wire.proxyproto import LIMIT
from tests.net.test_listener import Mode, address_of, port_of
from tests.sockets import (
    BLOCKING,
    HOST,
    TIMEOUT,
    ClockedReactor,
    End,
    connect,
    end_of,
    hear,
    in_thread,
    reactor,
    read_all,
    reset_on_close,
    turns,
    until,
)
from tests.wire.test_proxyproto import INET, INET6, block, tlv, with_crc

CLIENT = IPv4Address("TCP", "192.0.2.7", 56324)
CLIENT6 = IPv6Address("TCP", "2001:db8::7", 65535)
SERVER = IPv4Address("TCP", "198.51.100.9", 443)
LINE = b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 443\r\n"
LINE6 = b"PROXY TCP6 2001:db8::7 ::ffff:198.51.100.9 65535 0\r\n"
UNKNOWN = b"PROXY UNKNOWN\r\n"
BLOCK6 = block(kind=0x21, body=INET6)
TLVS = block(body=INET + tlv(2, b"a.example") + tlv(4, b"nothing") + tlv(0xE0, b"\0"))
UNIX = block(kind=0x31, body=b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0"))
#: Headers that say whose a connection is, and what they say.
SAYING: Any = (
    (LINE, CLIENT, SERVER, ()),
    (LINE6, CLIENT6, IPv6Address("TCP", "::ffff:198.51.100.9", 0), ()),
    (block(), CLIENT, SERVER, ()),
    (TLVS, CLIENT, SERVER, ((2, b"a.example"), (0xE0, b"\0"))),
    (with_crc(tlv(5, b"id")), CLIENT, SERVER, ((5, b"id"),)),
    (BLOCK6, CLIENT6, IPv6Address("TCP", "::1", 0), ()),
    (UNIX, UNIXAddress(b"/run/a"), UNIXAddress(b"/run/b"), ()),
    (block(kind=0x31, body=bytes(216)), UNIXAddress(None), UNIXAddress(None), ()),
)
#: Headers that do not, and the TLVs in them.
SILENT: Any = (
    (UNKNOWN, ()),
    (b"PROXY UNKNOWN 192.0.2.7 198.51.100.9 56324 443\r\n", ()),
    (block(0x20, 0, b""), ()),
    (block(0x20, 0x11, INET), ()),
    (block(0x21, 0, b""), ()),
    (block(0x21, 0, tlv(2, b"a.example")), ((2, b"a.example"),)),
)
NO_HEADER = "PROXY: a connection starts with a header of version 1 or 2"
#: What is none, by the rule that it breaks.
MALFORMED = (
    (b"GET / HTTP/1.1\r\n", NO_HEADER),
    (b"\x16\x03\x01\x02\x00", NO_HEADER),
    (b"PROXY UDP4 ", "PROXY v1: the protocol is TCP4, TCP6 or UNKNOWN"),
    (b"PROXY TCP4 ::1 ::1 1 2\r\n", "PROXY v1: an address after TCP4 is one of IPv4"),
    (
        b"PROXY TCP4 192.0.2.7 192.0.2.8 1 65536\r\n",
        "PROXY v1: a port is 0 to 65535, without leading zeros",
    ),
    (b"PROXY UNKNOWN\n", "PROXY v1: the protocol is TCP4, TCP6 or UNKNOWN"),
    (b"PROXY UNKNOWN " + b"x" * 100, "PROXY v1: a line has at most 107 bytes"),
    (block(0x11), "PROXY v2: the version is 2"),
    (block(0x22), "PROXY v2: the command is LOCAL or PROXY"),
    (block(kind=0x12), "PROXY v2: a connection is a STREAM, not DGRAM"),
    (block(body=INET[:-1]), "PROXY v2: the length covers the addresses"),
    (block(length=2048), "PROXY v2: at most 2048 bytes are read"),
    (block(body=INET + b"\x02\x00\x02x"), "PROXY v2: the lengths of TLVs add up"),
    (with_crc(wrong=1), "PROXY v2: CRC32C is the checksum of the header"),
)
#: Whether this reactor's transports let what has come be looked at.
LOOKS = hasattr(reactor, "pipes")


class Asked(Mode):
    """A mode's factory that notes for whom it is asked."""

    def __init__(self, protocol: Any) -> None:
        super().__init__(protocol)
        self.clients: list[Any] = []

    def buildProtocol(self, addr: Any) -> Any:
        self.clients.append(addr)
        return super().buildProtocol(addr)


def read_of(first: Any) -> int:
    """Bytes of its header that have come."""
    return len(first._reader._held)


class HeaderCase(TestCase):
    """A listener whose connections begin with a header, its mode, and clients."""

    timeout = TIMEOUT

    async def start(
        self,
        protocol: Any = End,
        trust: tuple[str, ...] = ("127.0.0.1", "::1"),
        limit: int = 100,
        listen: str = f"tcp:0:interface={HOST}",
    ) -> None:
        self.clock = ClockedReactor()
        self.mode = Asked(protocol)
        self.deadlines = Deadlines(self.clock, lambda: Logger().failure("at a deadline"))
        self.headers = Headers("front", Trust(trust), 5.0, self.deadlines)
        self.listener = Listener(
            "front", self.mode, limit, itertools.count(7), self.deadlines, self.headers
        )
        await self.listener.listen(endpoint(reactor, listen))
        listener = self.listener
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop(listener)))

    async def stop(self, listener: Listener) -> None:
        await listener.stop_listening()
        for protocol in tuple(listener.connections.values()):
            await end_of(protocol)
        await self.empty()

    async def empty(self) -> None:
        """Wait until nobody is there; see that nothing is left of them."""
        await until(lambda: not self.listener.connections)
        self.assertEqual(len(self.deadlines), 0)

    async def connect(self, end: Any = None) -> Any:
        """One more client, as soon as it is accepted."""
        count = self.listener.accepted
        client = await connect(self, port_of(self.listener), end)
        await until(lambda: self.listener.accepted > count)
        return client

    async def begin(self, sent: bytes) -> Any:
        """One more client, of whose header so much has been read."""
        client = await self.connect()
        first = self.first()
        client.send(sent)
        await until(lambda: read_of(first) == len(sent))
        return client

    def blocking(self, source: str = HOST) -> socket.socket:
        """One more client, with a blocking socket."""
        made = socket.create_connection(
            (HOST, port_of(self.listener)), BLOCKING, source_address=(source, 0)
        )
        self.addCleanup(made.close)
        return made

    def first(self) -> Any:
        """What reads the header of the last one that was accepted."""
        found = list(self.listener.connections.values())[-1]
        self.assertIsInstance(found, HeaderProtocol)
        return found

    async def let_in(self, count: int = 1) -> Any:
        """The protocol of the mode, once it has been asked for so many."""
        await until(lambda: len(self.mode.made) >= count and self.mode.made[count - 1].transport)
        return self.mode.made[count - 1]

    async def refused(self, client: Any, **counts: int) -> None:
        """It is closed, nothing is left of it, and that is what has been counted in all."""
        await until(lambda: client.reason is not None or client.read_ended)
        await self.empty()
        self.assertEqual((client.received, self.mode.made), (b"", []))
        self.assertEqual(self.headers.refused, counts)


class ToldTests(HeaderCase):
    """What the mode is told of a connection."""

    async def test_whose_it_is(self) -> None:
        await self.start()
        for number, (header, client, server, tlvs) in enumerate(SAYING):
            far = await self.connect()
            relay = far.transport.getHost()
            far.send(header + b"question")
            near = await self.let_in(number + 1)
            await near.got(b"question")
            self.assertEqual(
                near.info, ConnInfo(number + 7, "front", client, server, relay, tlvs), header
            )
            self.assertEqual(near.info.client_host, getattr(client, "host", address_text(client)))
            self.assertEqual(type(self.mode.clients[-1]), type(client))
            self.assertEqual(self.mode.clients[-1], client)
            self.assertIs(self.listener.connections[number + 7], near)
        self.assertEqual((self.listener.accepted, self.headers.refused), (len(SAYING), {}))

    async def test_a_connection_of_the_relay_s_own(self) -> None:
        """Then the client is whom the socket says."""
        await self.start()
        for number, (header, tlvs) in enumerate(SILENT):
            far = await self.connect()
            here, there = far.transport.getPeer(), far.transport.getHost()
            far.send(header + b"question")
            near = await self.let_in(number + 1)
            await near.got(b"question")
            self.assertEqual(near.info, ConnInfo(number + 7, "front", there, here, there, tlvs))
            self.assertEqual(near.info.client_host, HOST)
            self.assertEqual(self.mode.clients[-1], there)

    async def test_before_the_connection_is_made(self) -> None:
        seen: list[Any] = []

        class Curious(End):
            info: Any = None

            def connectionMade(self) -> None:
                seen.append((self.info.client, self.transport.getPeer(), bytes(self.received)))

        await self.start(Curious)
        client = await self.connect()
        client.send(LINE + b"question")
        await (await self.let_in()).got(b"question")
        self.assertEqual(seen, [(CLIENT, client.transport.getHost(), b"")])

    async def test_what_is_shown(self) -> None:
        await self.start()
        client = await self.connect()
        relay = address_of(client)
        shown = {"id": 7, "listener": "front", "client": relay}
        self.assertEqual(
            self.listener.describe_connections(), [{**shown, "state": "introducing itself"}]
        )
        client.send(UNIX)
        await self.let_in()
        shown |= {"client": "unix:/run/a", "relay": relay}
        self.assertEqual(self.listener.describe_connections(), [shown])
        found = self.listener.snapshot()
        self.assertEqual((found["connections"], found["accepted"], found["refused"]), (1, 1, {}))
        stranger = self.blocking("127.0.0.2")
        self.assertEqual(await in_thread(read_all, stranger), b"")
        self.assertEqual(self.listener.snapshot()["refused"], {"not trusted": 1})


class BehindTests(HeaderCase):
    """However it comes, the mode gets just what is behind the header, once and in order."""

    PAYLOAD = b"PROXY UNKNOWN\r\nthe mode's own\r\n\r\n\x00\r\nQUIT\n"

    async def test_split_at_every_byte(self) -> None:
        await self.start()
        count = 0
        for header in (LINE, LINE6, UNKNOWN, TLVS, BLOCK6):
            for at in range(len(header)):
                client = await self.begin(header[:at])
                self.assertEqual(len(self.mode.made), count)
                client.send(header[at:] + self.PAYLOAD)
                count += 1
                near = await self.let_in(count)
                client.finish()
                await near.ended()
                self.assertEqual(near.received, self.PAYLOAD, (header, at))
                near.close()
        self.assertEqual(self.headers.refused, {})

    async def test_byte_by_byte(self) -> None:
        await self.start()
        for number, header in enumerate((LINE, TLVS, UNIX)):
            client = await self.connect()
            first = self.first()
            for at in range(1, len(header)):
                client.send(header[at - 1 : at])
                await until(lambda first=first, at=at: read_of(first) == at)
            client.send(header[-1:])
            near = await self.let_in(number + 1)
            for at in range(len(self.PAYLOAD)):
                client.send(self.PAYLOAD[at : at + 1])
                await near.got(self.PAYLOAD[: at + 1])

    async def test_much(self) -> None:
        """More than one read takes, and than the reader of headers would look at."""
        await self.start()
        payload = random.Random(3).randbytes(1_000_000)
        longest = block(body=INET + tlv(4, bytes(2048 - 16 - 12 - 3)))
        self.assertEqual(len(longest), LIMIT)
        for number, header in enumerate((longest, *(header for header, *_ in SAYING))):
            client = await self.connect()
            client.send(header + payload)
            near = await self.let_in(number + 1)
            client.finish()
            await near.ended()
            self.assertEqual(near.received, payload)

    async def test_it_is_left_in_the_kernel_where_it_can_be(self) -> None:
        class Looking(End):
            def connectionMade(self) -> None:
                self.left = self.transport.peek(100) if LOOKS else None

        await self.start(Looking)
        for number, header in enumerate((LINE, TLVS)):
            client = await self.begin(header[:-3])
            client.send(header[-3:] + b"question")
            near = await self.let_in(number + 1)
            self.assertEqual(near.left, b"question" if LOOKS else None)
            await near.got(b"question")

    async def test_the_end_right_behind_it(self) -> None:
        """What comes in one go with the end: the mode may still answer."""
        await self.start()
        for number, (header, payload) in enumerate(
            ((LINE, b"question"), (TLVS, b""), (UNIX, b"?"))
        ):
            client = self.blocking()
            client.sendall(header + payload)
            client.shutdown(socket.SHUT_WR)
            near = await self.let_in(number + 1)
            await near.ended()
            self.assertEqual(near.received, payload)
            near.send(b"answer")
            near.close()
            self.assertEqual(await in_thread(read_all, client), b"answer")
        self.assertEqual(self.headers.refused, {})

    async def test_the_end_for_a_mode_that_knows_no_half(self) -> None:
        heard: list[Any] = []

        class Whole(Protocol):
            def dataReceived(self, data: bytes) -> None:
                heard.append(data)

            def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
                heard.append(reason.type.__name__)

        await self.start(Whole)
        client = self.blocking()
        client.sendall(LINE + b"question")
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, client), b"")
        await self.empty()
        self.assertEqual(heard, [b"question", "ConnectionDone"])

    async def test_a_reset_behind_it(self) -> None:
        await self.start()
        client = await self.connect()
        client.send(LINE)
        near = await self.let_in()
        client.reset()
        self.assertTrue(await near.lost())
        await self.empty()
        self.assertEqual(self.headers.refused, {})


class RefusedTests(HeaderCase):
    """Who may not send a header, sends none, or sends what is none, is not let in."""

    async def test_malformed(self) -> None:
        lines = hear(self)
        await self.start()
        for number, (sent, rule) in enumerate(MALFORMED, 1):
            self.clock.advance(10)
            client = await self.connect()
            name = address_of(client)
            client.send(sent)
            await self.refused(client, malformed=number)
            self.assertTrue(await client.lost(), rule)
            self.assertEqual(lines[1:], [f"front #{number + 6}: {name} refused: {rule}"])
            del lines[1:]

    async def test_malformed_in_its_second_part(self) -> None:
        await self.start()
        for number, (sent, _) in enumerate(MALFORMED[2:], 1):
            client = await self.begin(sent[:3])
            client.send(sent[3:])
            await self.refused(client, malformed=number)

    async def test_much_behind_what_is_none(self) -> None:
        await self.start()
        client = await self.connect()
        client.send(b"GET / HTTP/1.1\r\n" + b"x" * 1_000_000)
        await self.refused(client, malformed=1)

    async def test_a_line_now_and_then(self) -> None:
        """Each reason by itself."""
        lines = hear(self)
        await self.start()
        for number in range(1, 4):
            client = await self.connect()
            client.send(b"GET")
            await self.refused(client, malformed=number)
        client = await self.connect()
        client.close()
        await self.refused(client, malformed=3, closed=1)
        self.clock.advance(9.75)
        client = await self.connect()
        client.send(b"GET")
        await self.refused(client, malformed=4, closed=1)
        self.assertEqual(len(lines), 3)
        self.clock.advance(0.25)
        client = await self.connect()
        client.send(b"GET")
        await self.refused(client, malformed=5, closed=1)
        reasons = [line.partition("refused: ")[2] for line in lines[1:]]
        ended = "it ended before its PROXY header"
        self.assertEqual(reasons, [NO_HEADER, ended, f"{NO_HEADER} (and 3 like it before)"])

    async def test_late(self) -> None:
        for sent in (b"", LINE[:-1], TLVS[:20]):
            lines = hear(self)
            await self.start()
            client = await self.begin(sent)
            name = address_of(client)
            self.clock.advance(4.75)
            await turns()
            self.assertEqual(read_of(self.first()), len(sent))
            self.clock.advance(1)
            self.assertTrue(await client.lost())
            await self.refused(client, late=1)
            self.assertEqual(
                lines[1:], [f"front #7: {name} refused: no whole PROXY header within 5 s"]
            )

    async def test_a_byte_now_and_then_is_no_excuse(self) -> None:
        await self.start()
        client = await self.begin(LINE[:1])
        first = self.first()
        for at in range(1, 5):
            self.clock.advance(1)
            client.send(LINE[at : at + 1])
            await until(lambda at=at: read_of(first) == at + 1)
        self.clock.advance(1.5)
        await self.refused(client, late=1)

    async def test_behind_a_whole_header_there_is_time(self) -> None:
        await self.start()
        client = await self.connect()
        client.send(LINE)
        near = await self.let_in()
        self.assertEqual(len(self.deadlines), 0)
        self.clock.advance(100)
        client.send(b"question")
        await near.got(b"question")

    async def test_it_leaves_in_the_middle(self) -> None:
        for leave in (End.close, End.finish, End.reset):
            for sent in (b"", LINE[:1], LINE[:-1], TLVS[:16], TLVS[:-1]):
                lines = hear(self)
                await self.start()
                client = await self.begin(sent)
                name = address_of(client)
                leave(client)
                await self.refused(client, closed=1)
                self.assertEqual(
                    lines[1:], [f"front #7: {name} refused: it ended before its PROXY header"]
                )

    async def test_what_it_sent_before_it_left(self) -> None:
        """A header in part and the end, or a reset, all at once."""
        await self.start()
        for number, reset in enumerate((False, True), 1):
            client = self.blocking()
            client.sendall(LINE[:20])
            if reset:
                reset_on_close(client)
            client.close()
            await until(lambda wanted=number: self.headers.refused == {"closed": wanted})
            await self.empty()

    async def test_who_is_not_trusted(self) -> None:
        lines = hear(self)
        await self.start(limit=1)
        for number in range(1, 4):
            client = self.blocking("127.0.0.2")
            name = "{}:{}".format(*client.getsockname())
            self.assertEqual(await in_thread(read_all, client), b"")
            self.assertEqual(self.headers.refused, {"not trusted": number})
            self.assertEqual(self.listener.connections, {})
            self.assertEqual((self.listener.accepted, self.listener.paused), (0, ""))
            if number == 1:
                said = f"front: {name} refused: it may not send a PROXY header (trust)"
        self.assertEqual(lines[1:], [said])
        client = await self.connect()
        client.send(LINE)
        self.assertEqual((await self.let_in()).info.id, 7)  # They have had no numbers either.
