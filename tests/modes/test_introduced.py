"""PROXY headers that go out: a backend is told whose a connection is, before all else and once."""

from __future__ import annotations

import random
import socket
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from proxykit.core.routing import Everything
from proxykit.model import Address, Backend, Cluster, Config, Listener
from proxykit.modes.tcp import TcpFactory, TcpSettings
from proxykit.ops.service import ProxyService
from tests.sockets import (
    HOST,
    TIMEOUT,
    BackendServer,
    ClockedReactor,
    Connecting,
    End,
    Proxy,
    connect,
    end_of,
    free_port,
    hear,
    held,
    reactor,
    reset_on_close,
    start_backend,
    turns,
    unanswering,
    until,
)

VERSIONS = ("v1", "v2")
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
#: One end of a connection: an address and a port, or the path of a unix socket.
Where = tuple[str, int] | str
SOURCE, DESTINATION = ("192.0.2.7", 56324), ("198.51.100.9", 443)
SIX = ("2001:db8::7", 56324), ("2001:db8::9", 443)
ID = (5, b"one of many")
TLVS = ((2, b"a.example"), ID, (0xE0, b"\x00\r\n"), (0xE0, b""))
EVERYWHERE = (HOST, "::1", "unix")
ON_IPV4, ON_IPV6 = f"tcp:0:interface={HOST}", "tcp6:0:interface=\\:\\:1"


def header(version: str, source: Where, destination: Where, *tlvs: tuple[int, bytes]) -> bytes:
    """A PROXY header, put together by hand."""
    if isinstance(source, str):
        assert isinstance(destination, str)
        if version == "v1":
            return b"PROXY UNKNOWN\r\n"
        paths = (path.encode().ljust(108, b"\0") for path in (source, destination))
        return block(0x31, b"".join(paths), *tlvs)
    (host, port), (there, its_port) = source, destination
    six = ":" in host
    if version == "v1":
        return f"PROXY TCP{6 if six else 4} {host} {there} {port} {its_port}\r\n".encode()
    family = socket.AF_INET6 if six else socket.AF_INET
    ends = socket.inet_pton(family, host) + socket.inet_pton(family, there)
    return block(0x21 if six else 0x11, ends + struct.pack("!HH", port, its_port), *tlvs)


def block(kind: int, ends: bytes, *tlvs: tuple[int, bytes], command: int = 0x21) -> bytes:
    """One of version 2."""
    body = ends + b"".join(struct.pack("!BH", each, len(value)) + value for each, value in tlvs)
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


def own(version: str, client: Any, *tlvs: tuple[int, bytes]) -> bytes:
    """The header for a client's own end: where it is, and where it has connected to."""
    here, there = client.transport.getHost(), client.transport.getPeer()
    return header(version, (here.host, here.port), (there.host, there.port), *tlvs)


def start(
    test: TestCase,
    *backends: BackendServer | Address,
    version: str = "v2",
    reads: bool = False,
    listen: str = ON_IPV4,
    listeners: Sequence[Listener] = (),
    clusters: Sequence[Cluster] = (),
    **cluster: Any,
) -> Proxy:
    """A proxy of mode tcp that sends headers.

    :param reads: whether it reads them, too, from whoever comes.
    :param listeners: further ones, and ``clusters``, too.
    """
    addresses = [each.address if isinstance(each, BackendServer) else each for each in backends]
    cluster.setdefault("balance", "round-robin")
    web = Cluster("web", tuple(map(Backend, addresses)), proxy_protocol=version, **cluster)
    front = Listener(
        *("front", listen, "tcp", "web"),
        settings=TcpSettings(),
        trust=EVERYWHERE,
        proxy_protocol=reads,
    )
    clock = ClockedReactor()
    service = ProxyService(clock)
    service.apply(Config((front, *listeners), (web, *clusters)))
    service.startService()
    proxy = Proxy(test, service, clock)
    test.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
    return proxy


async def over(end: Any) -> None:
    """Wait for the other side's end; on a unix socket there are no resets."""
    await until(lambda: end.read_ended or end.reason)


def path_for(test: TestCase, name: str = "socket") -> str:
    """Where a unix socket may be: the path of a temporary directory of trial's can be too long."""
    directory = tempfile.TemporaryDirectory()
    test.addCleanup(directory.cleanup)
    return str(Path(directory.name) / name)


async def connect_unix(test: TestCase, path: str) -> Any:
    """A client's end of a connection to a unix socket."""
    connected: Deferred[Any] = Deferred()
    reactor.connectUNIX(path, Connecting(End(), connected))
    made = await connected
    test.addCleanup(lambda: Deferred.fromCoroutine(end_of(made)))
    return made


class AddressTests(TestCase):
    """Where the client is, and where it has connected to, exactly; then what it sends."""

    timeout = TIMEOUT

    async def converse(self, client: Any, backend: BackendServer, said: bytes) -> None:
        """The header comes first, once, and bytes go both ways behind it."""
        client.send(b"question")
        served = await backend.accepted()
        await served.got(said + b"question")
        served.send(b"answer")
        await client.got(b"answer")
        client.send(b", and more")
        await served.got(said + b"question, and more")
        client.reset()
        await over(served)

    async def check(
        self, listen: str = ON_IPV4, to: str = HOST, at: str = HOST, unix: bool = False
    ) -> None:
        """In both versions.

        :param to: where the client connects to; ``at``: where the backend is.
        """
        for version in VERSIONS:
            backend = await start_backend(self, host=at, path=path_for(self) if unix else "")
            proxy = start(self, backend, version=version, listen=listen)
            for _ in range(2):
                client = await connect(self, proxy.port, host=to)
                self.assertEqual(client.transport.getPeer().host, to)
                await self.converse(client, backend, own(version, client))

    async def test_ipv4(self) -> None:
        await self.check()

    async def test_ipv6(self) -> None:
        await self.check(ON_IPV6, "::1", at="::1")

    async def test_from_one_family_to_the_other(self) -> None:
        """It is about the client's connection, whatever the proxy's own is of."""
        await self.check(ON_IPV6, "::1")
        await self.check(ON_IPV4, HOST, at="::1")

    async def test_ipv4_on_a_socket_of_both_families(self) -> None:
        await self.check("tcp6:0:interface=\\:\\:")

    async def test_another_address_of_the_same_machine(self) -> None:
        """What the client has connected to is not what is listened on."""
        await self.check("tcp:0:interface=0.0.0.0", "127.0.0.3")

    async def test_a_backend_on_a_unix_socket(self) -> None:
        await self.check(unix=True)

    async def test_clients_on_a_unix_socket(self) -> None:
        """Version 1 has no words for them. The first has no path itself, as is usual."""
        for version in VERSIONS:
            path, its_own = path_for(self), path_for(self)
            backend = await start_backend(self)
            start(self, backend, version=version, listen=f"unix:{path}")
            client = await connect_unix(self, path)
            await self.converse(client, backend, header(version, "", path))
            with socket.socket(socket.AF_UNIX) as named:
                named.bind(its_own)
                named.connect(path)
                named.sendall(b"hello")
                served = await backend.accepted()
                await served.got(header(version, its_own, path) + b"hello")

    async def test_each_client_has_its_own(self) -> None:
        backend = await start_backend(self)
        proxy = start(self, backend)
        clients = [await proxy.connect() for _ in range(5)]
        for number, client in enumerate(clients):
            client.send(b"%d" % number)
        said = {own("v2", client) + b"%d" % at for at, client in enumerate(clients)}
        await until(lambda: {bytes(end.received) for end in backend.ends} == said)
        self.assertEqual(len(backend.ends), 5)

    async def test_what_is_counted_is_the_clients(self) -> None:
        lines = hear(self)
        backend = await start_backend(self)
        proxy = start(self, backend)
        client = await proxy.connect()
        client.send(b"12345")
        served = await backend.accepted()
        await served.got(own("v2", client) + b"12345")
        served.send(b"123")
        await client.got(b"123")
        (shown,) = proxy.listener.describe_connections()
        self.assertEqual((shown["bytes_up"], shown["bytes_down"]), (5, 3))
        self.assertNotIn("relay", shown)
        client.reset()
        await proxy.empty()
        self.assertIn(": 5 bytes up, 3 bytes down, ", lines[-1])


class WhenTests(TestCase):
    """Before all else, once, to whoever takes the connection, and to nobody else."""

    timeout = TIMEOUT

    async def test_a_client_that_says_nothing(self) -> None:
        """Some servers speak first."""
        for version in VERSIONS:
            backend = await start_backend(self)
            proxy = start(self, backend, version=version)
            client = await proxy.connect()
            served = await backend.accepted()
            await served.got(own(version, client))
            served.send(b"220 welcome")
            await client.got(b"220 welcome")

    async def test_a_client_that_says_nothing_and_ends(self) -> None:
        backend = await start_backend(self)
        proxy = start(self, backend)
        client = await proxy.connect()
        served = await backend.accepted()
        client.finish()
        await served.got(own("v2", client))
        await served.ended()
        served.send(b"bye")
        served.close()
        await client.got(b"bye")
        await client.ended()

    async def test_early_bytes(self) -> None:
        """What was sent before there was a backend comes behind it."""
        early = random.Random(1).randbytes(200_000)
        for version in VERSIONS:
            backend = await start_backend(self)
            proxy = start(self, unanswering(self), backend, version=version, connect_timeout=2.0)
            proxy.cluster.set_state(backend.address, "drain")
            client = await proxy.connect()
            client.send(early)
            (side,) = await until(lambda proxy=proxy: list(proxy.listener.connections.values()))
            await until(lambda side=side: side.received >= 65536)
            proxy.cluster.set_state(backend.address, "up")
            proxy.clock.advance(3)
            served = await backend.accepted()
            await served.got(own(version, client) + early)

    async def test_a_backend_that_does_not_read(self) -> None:
        """Nothing gets before it, and nothing of it is lost, however full the buffers are."""

        class Deaf(End):
            def connectionMade(self) -> None:
                self.transport.pauseProducing()

        bulk = random.Random(2).randbytes(12_000_000)
        for version in VERSIONS:
            backend = await start_backend(self, Deaf)
            proxy = start(self, backend, version=version)
            client = await proxy.connect()
            client.send(bulk)
            side = await proxy.side()
            upstream = side.relay.upstream.transport  # type: ignore[union-attr]
            await until(lambda upstream=upstream: held(upstream))
            served = await backend.accepted()
            served.transport.resumeProducing()
            await served.got(own(version, client) + bulk)
            client.reset()
            await proxy.empty()

    async def test_a_refused_connect_goes_on_to_the_next(self) -> None:
        backend = await start_backend(self)
        proxy = start(self, Address(HOST, free_port(self)), backend)
        for _ in range(3):
            client = await proxy.connect()
            client.send(b"hello")
            served = await backend.accepted()
            await served.got(own("v2", client) + b"hello")

    async def test_clients_that_leave_at_any_moment(self) -> None:
        """Whatever a backend was told by then, it is the beginning of what it was to be told."""
        backend = await start_backend(self)
        proxy = start(self, backend, max_connections=3)
        told = [b""]
        for number in range(40):
            client = proxy.blocking()
            ends = client.getsockname(), client.getpeername()
            told.append(header("v2", *ends) + b"hello")
            client.sendall(b"hello")
            if number % 2:
                reset_on_close(client)
            await turns(number % 8)
            client.close()
            for end in backend.ends:
                end.close()
        await proxy.empty()
        for end in backend.ends:
            self.assertTrue(any(each.startswith(end.received) for each in told), end.received)

    async def test_one_that_waited_in_the_queue(self) -> None:
        backend = await start_backend(self)
        proxy = start(self, backend, max_connections=1)
        first = await proxy.connect()
        served = await backend.accepted()
        await served.got(own("v2", first))
        second = await proxy.connect()
        second.send(b"me, too")
        await until(lambda: len(proxy.cluster.queue))
        first.reset()
        served = await backend.accepted()
        await served.got(own("v2", second) + b"me, too")

    async def test_only_where_it_is_asked_for(self) -> None:
        """Of two clusters one wants it, and one would not understand it."""
        backend, other = await start_backend(self), await start_backend(self)
        bare = Listener("bare", ON_IPV4, "tcp", "bare", settings=TcpSettings())
        proxy = start(
            *(self, backend),
            listeners=(bare,),
            clusters=(Cluster("bare", (Backend(other.address),)),),
        )
        port = int(proxy.service.listeners["bare"].address.rpartition(":")[2])
        for number in range(2):
            client, second = await proxy.connect(), await connect(self, port)
            for each in (client, second):
                each.send(b"hello")
            await (await backend.accepted()).got(own("v2", client) + b"hello")
            await (await other.accepted()).got(b"hello")
            self.assertEqual((len(backend.ends), len(other.ends)), (number + 1, number + 1))
            second.reset()
        await until(lambda: not proxy.service.listeners["bare"].connections)

    async def test_nobody_wants_one(self) -> None:
        backend = await start_backend(self)
        proxy = start(self, backend, version="")
        client = await proxy.connect()
        client.send(b"hello")
        await (await backend.accepted()).got(b"hello")
        side = await proxy.side()
        self.assertIsNone(side.info.server, "nobody has asked")


class PassedOnTests(TestCase):
    """What a header in front of the client's connection says goes on to the backend."""

    timeout = TIMEOUT

    async def test_what_is_said(self) -> None:
        """TLVs, too, in version 2, but for those that are about the header itself."""
        mapped = ("::ffff:192.0.2.7", 56324), SIX[1]
        tlvs = ((4, bytes(9)), *TLVS)
        paths = ("/run/a.sock", "/run/b.sock")
        for said, source, destination, further in (
            (header("v1", SOURCE, DESTINATION), SOURCE, DESTINATION, ()),
            (header("v1", *SIX), *SIX, ()),
            (header("v2", SOURCE, DESTINATION), SOURCE, DESTINATION, ()),
            (header("v2", SOURCE, DESTINATION, *tlvs), SOURCE, DESTINATION, TLVS),
            (header("v2", *SIX, *TLVS), *SIX, TLVS),
            (header("v2", *paths, ID), *paths, (ID,)),
            (header("v2", *mapped), *mapped, ()),
        ):
            for version in VERSIONS:
                backend = await start_backend(self)
                proxy = start(self, backend, version=version, reads=True)
                client = await proxy.connect()
                client.send(said + b"question")
                served = await backend.accepted()
                await served.got(header(version, source, destination, *further) + b"question")
                served.send(b"answer")
                await client.got(b"answer")

    async def test_where_it_says_nothing(self) -> None:
        """Then it is the sender's own connection; what else it says goes on all the same."""
        for said, further in (
            (b"PROXY UNKNOWN\r\n", ()),
            (b"PROXY UNKNOWN ff 1 2 3\r\n", ()),
            (LOCAL, ()),
            (block(0x11, bytes(12), ID, command=0x20), ()),
            (block(0, b"", ID), (ID,)),
        ):
            for version in VERSIONS:
                backend = await start_backend(self)
                proxy = start(self, backend, version=version, reads=True)
                client = await proxy.connect()
                client.send(said + b"question")
                expected = own(version, client, *further)
                await (await backend.accepted()).got(expected + b"question")

    async def test_one_that_comes_in_pieces(self) -> None:
        said = header("v2", SOURCE, DESTINATION, *TLVS)
        backend = await start_backend(self)
        proxy = start(self, backend, reads=True)
        client = await proxy.connect()
        for at in range(len(said)):
            client.send(said[at : at + 1])
            await turns(1)
        served = await backend.accepted()
        await served.got(said)
        client.send(b"question")
        await served.got(said + b"question")

    async def test_who_is_shown(self) -> None:
        """The log and the table have the client by what was said, and who has said it."""
        lines = hear(self)
        backend = await start_backend(self)
        proxy = start(self, backend, reads=True)
        client = await proxy.connect()
        client.send(header("v1", SOURCE, DESTINATION) + b"12345")
        await (await backend.accepted()).got(header("v2", SOURCE, DESTINATION) + b"12345")
        (shown,) = proxy.listener.describe_connections()
        relay = client.transport.getHost()
        self.assertEqual(shown["client"], "192.0.2.7:56324")
        self.assertEqual(shown["relay"], f"{HOST}:{relay.port}")
        self.assertEqual(shown["bytes_up"], 5)
        client.reset()
        await proxy.empty()
        self.assertTrue(lines[-1].startswith("front #1: 192.0.2.7:56324 -> web "), lines[-1])

    async def test_a_chain(self) -> None:
        """Of three proxies, the last one's backend still knows who the client is."""
        for versions in (("v2", "v1", "v2"), ("v1", "v2", "v1")):
            backend = await start_backend(self)
            third = start(self, backend, version=versions[2], reads=True)
            second = start(self, Address(HOST, third.port), version=versions[1], reads=True)
            first = start(self, Address(HOST, second.port), version=versions[0])
            client = await first.connect()
            client.send(b"hello")
            served = await backend.accepted()
            await served.got(own(versions[2], client) + b"hello")
            served.send(b"you, too")
            await client.got(b"you, too")
            client.reset()
            for proxy in (first, second, third):
                await proxy.empty()


class EmbeddedTests(TestCase):
    """A TcpFactory on somebody's own port: it finds out by itself whose the connection is."""

    timeout = TIMEOUT

    async def test_tcp(self) -> None:
        for version in VERSIONS:
            backend = await start_backend(self)
            service = start(self, backend, version=version).service
            factory = TcpFactory(service.flow, service.connector, Everything("web"))
            port = reactor.listenTCP(0, factory, interface=HOST)
            self.addCleanup(port.stopListening)
            client = await connect(self, port.getHost().port)
            client.send(b"hello")
            served = await backend.accepted()
            await served.got(own(version, client) + b"hello")
            client.reset()
            await over(served)

    async def test_unix(self) -> None:
        path = path_for(self)
        backend = await start_backend(self)
        service = start(self, backend).service
        port = reactor.listenUNIX(path, TcpFactory(service.flow, service.pool, Everything("web")))
        self.addCleanup(port.stopListening)
        client = await connect_unix(self, path)
        served = await backend.accepted()
        await served.got(header("v2", "", path))
        client.close()
        served.close()
        await over(served)
