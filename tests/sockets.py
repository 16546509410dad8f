"""Real sockets for tests: ends to talk through, backends, and a proxy between them.

A test reads as a conversation between two ends::

    backend = await start_backend(self)
    proxy = start_proxy(self, backend)
    client = await proxy.connect()
    served = await backend.accepted()
    client.send(b"ping")
    await served.got(b"ping")

Sockets run on trial's reactor, the proxy's timeouts on ``proxy.clock``: nothing waits for time to
pass. What a test started is ended by its cleanups, which also look for what was left behind.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as trials_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorFDSet
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from proxykit.model import Address, Backend, Cluster, Config, Listener
from proxykit.modes.tcp import TcpProtocol, TcpSettings
from proxykit.ops.service import ProxyService

reactor: Any = trials_reactor
HOST = "127.0.0.1"
#: Seconds that a test may take; none comes near.
TIMEOUT = 60
#: Seconds after which a test stops waiting, and has failed.
BLOCKING = 20.0


async def until(condition: Callable[[], Any]) -> Any:
    """Let the reactor run until something is true, for what nobody is told of."""
    given_up = reactor.seconds() + BLOCKING
    while not (found := condition()):
        if reactor.seconds() > given_up:
            raise AssertionError("waited in vain")
        await deferLater(reactor, 0.001)
    return found


async def turns(count: int = 5) -> None:
    """Let the reactor go round, so that what is under way by now has happened."""
    for _ in range(count):
        await deferLater(reactor, 0)


def in_thread(call: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    """Call something that blocks."""
    made: Deferred[Any] = deferToThread(call, *arguments)
    return made


@implementer(IReactorFDSet)
class ClockedReactor(Clock):
    """The sockets of trial's reactor, and a clock that the test moves."""

    def advance(self, amount: float) -> None:
        """Let time pass, in steps that are small beside every timeout, as it does for real."""
        while amount > 0.25:
            super().advance(0.25)
            amount -= 0.25
        super().advance(amount)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@implementer(IHalfCloseableProtocol)
class End(Protocol):
    """One end of a connection: keeps what comes, and can be waited for."""

    transport: Any

    def __init__(self) -> None:
        self.received = bytearray()
        self.read_ended = False
        self.reason: Failure | None = None
        self._waiting: list[tuple[Callable[[], Any], Deferred[None]]] = []

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def finish(self) -> None:
        """Shut down the write side: the end of what comes from here."""
        self.transport.loseWriteConnection()

    def close(self) -> None:
        self.transport.loseConnection()

    def reset(self) -> None:
        self.transport.abortConnection()

    async def got(self, data: bytes) -> None:
        """Wait until exactly this has come, in all."""
        await self._until(lambda: len(self.received) >= len(data))
        if bytes(self.received) != data:
            raise AssertionError(f"expected {data[:200]!r}, got {bytes(self.received[:200])!r}")

    async def ended(self) -> None:
        """Wait for the other side's orderly end."""
        await self._until(lambda: self.read_ended)

    async def lost(self) -> bool:
        """Wait until the connection is gone.

        :returns: whether it was reset.
        """
        await self._until(lambda: self.reason is not None)
        assert self.reason is not None
        return self.reason.check(ConnectionDone) is None

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.reason is not None:
                raise AssertionError(f"lost: {self.reason.value}, after {bytes(self.received)!r}")
            told: Deferred[None] = Deferred()
            self._waiting.append((condition, told))
            await told

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, []
        for condition, told in waiting:
            if condition() or self.reason is not None:
                told.callback(None)
            else:
                self._waiting.append((condition, told))

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._look()

    def readConnectionLost(self) -> None:
        self.read_ended = True
        self._look()

    def writeConnectionLost(self) -> None:
        """Nobody waits for this."""

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.reason = reason
        self._look()


class BackendServer(Factory):
    """A server whose connections are ends, in the order in which they came."""

    noisy = False

    def __init__(self, make: Callable[[], Protocol] = End) -> None:
        self.make = make
        self.ends: list[Any] = []
        self.address = Address("", 1)
        self._taken = 0

    def buildProtocol(self, addr: Any) -> Any:
        end = self.make()
        self.ends.append(end)
        return end

    async def accepted(self) -> Any:
        """The next connection that came, or comes."""
        number, self._taken = self._taken, self._taken + 1
        await until(lambda: len(self.ends) > number and self.ends[number].transport)
        return self.ends[number]

    async def stop(self) -> None:
        for end in self.ends:
            await end_of(end)


async def end_of(protocol: Any) -> None:
    """End a connection, whatever its state, and see it gone."""
    transport = protocol.transport
    if transport is not None:
        transport.abortConnection()
        await until(lambda: transport.disconnected)


async def start_backend(
    test: TestCase,
    make: Callable[[], Protocol] = End,
    *,
    host: str = HOST,
    path: str = "",
) -> BackendServer:
    """A server on a free port of loopback, or on a unix socket."""
    backend = BackendServer(make)
    if path:
        port = reactor.listenUNIX(path, backend)
        backend.address = Address(path, 0)
    else:
        port = reactor.listenTCP(0, backend, interface=host)
        backend.address = Address(host, port.getHost().port)
    test.addCleanup(lambda: Deferred.fromCoroutine(backend.stop()))
    test.addCleanup(port.stopListening)
    return backend


class Connecting(ClientFactory):
    """Builds one end."""

    noisy = False

    def __init__(self, end: Any, connected: Deferred[Any]) -> None:
        self.end = end
        self.connected = connected

    def buildProtocol(self, addr: Any) -> Any:
        reactor.callLater(0, self.connected.callback, self.end)
        return self.end

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self.connected.errback(reason)


async def connect(test: TestCase, port: int, end: Any = None, host: str = HOST) -> Any:
    """A client's end of a new connection."""
    connected: Deferred[Any] = Deferred()
    reactor.connectTCP(host, port, Connecting(end or End(), connected))
    made = await connected
    test.addCleanup(lambda: Deferred.fromCoroutine(end_of(made)))
    return made


def blocking(test: TestCase, port: int, receive_buffer: int = 0) -> socket.socket:
    """A client's blocking socket, for what only a socket can do. Connecting to loopback needs no
    help of the reactor's."""
    made = socket.socket()
    test.addCleanup(made.close)
    made.settimeout(BLOCKING)
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.connect((HOST, port))
    return made


def read_all(connection: socket.socket) -> bytes:
    """Read to the end."""
    parts = []
    while part := connection.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def reset_on_close(connection: socket.socket) -> None:
    """From now on closing it is a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def free_port(test: TestCase) -> int:
    """A port where nobody listens: it is bound until the test ends."""
    held = socket.socket()
    test.addCleanup(held.close)
    held.bind((HOST, 0))
    port: int = held.getsockname()[1]
    return port


def unanswering(test: TestCase) -> Address:
    """Where a connect hangs: a listener whose backlog is full."""
    listening = socket.socket()
    test.addCleanup(listening.close)
    listening.bind((HOST, 0))
    listening.listen(0)
    for _ in range(4):
        filler = socket.socket()
        test.addCleanup(filler.close)
        filler.setblocking(False)
        filler.connect_ex(listening.getsockname())
    return Address(*listening.getsockname())


def held(transport: Any) -> int:
    """Bytes that a transport has been given and its socket has not taken."""
    pipe = transport.splice_in._pipe if getattr(transport, "pipe_holds", False) else None
    return (
        len(transport.dataBuffer)
        - transport.offset
        + transport._tempDataLen
        + (pipe.held if pipe is not None else 0)
    )


def hear(test: SynchronousTestCase) -> list[str]:
    """All that proxykit logs from now on, as text."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"].startswith("proxykit"):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    test.addCleanup(globalLogPublisher.removeObserver, observe)
    return lines


class Proxy:
    """A service with one tcp listener, and what a test asks of it."""

    def __init__(self, test: TestCase, service: ProxyService, clock: ClockedReactor) -> None:
        self.test = test
        self.service = service
        self.clock = clock
        self.listener = service.listeners["front"]
        self.cluster = service.registry.cluster("web")

    @property
    def port(self) -> int:
        return int(self.listener.address.rpartition(":")[2])

    async def connect(self, end: Any = None) -> Any:
        """One more client."""
        return await connect(self.test, self.port, end)

    def blocking(self, receive_buffer: int = 0) -> socket.socket:
        """One more client, with a blocking socket."""
        return blocking(self.test, self.port, receive_buffer)

    async def side(self, number: int = 0) -> TcpProtocol:
        """The proxy's protocol for one of the clients that are there, once it relays."""
        sides = self.listener.connections
        await until(lambda: len(sides) > number and list(sides.values())[number].relay)
        found = list(sides.values())[number]
        assert isinstance(found, TcpProtocol)
        return found

    def leftovers(self) -> dict[str, int]:
        """What is in use at the moment, and must not be when nobody is there."""
        budgets = self.service.accountant.snapshot()
        states = [*self.cluster.backends.values(), *self.cluster.leaving.values()]
        return {
            "clients": len(self.listener.connections),
            "ports": sum(each["active"] + each["reserved"] + each["idle"] for each in budgets),
            "in flight": sum(each.in_flight for each in states),
            "connections": sum(each.connections for each in states),
            "waiting": len(self.cluster.queue),
            "deadlines": len(self.service.deadlines),
        }

    async def empty(self) -> None:
        """Wait until everything has been given back."""
        await until(lambda: not any(self.leftovers().values()))

    async def stop(self) -> None:
        await self.service.stopService()
        for protocol in tuple(self.listener.connections.values()):
            protocol.transport.abortConnection()  # type: ignore[union-attr]
        await self.empty()


def start_proxy(
    test: TestCase,
    *backends: BackendServer | Address,
    limit: int = 10000,
    settings: TcpSettings | None = None,
    admin: bool = False,
    listen: str = f"tcp:0:interface={HOST}",
    **cluster: Any,
) -> Proxy:
    """A proxy in front of some backends; ``cluster`` is what a :class:`Cluster` has."""
    addresses = [each.address if isinstance(each, BackendServer) else each for each in backends]
    cluster.setdefault("balance", "round-robin")
    clock = ClockedReactor()
    service = ProxyService(clock)
    service.apply(
        Config(
            (Listener("front", listen, "tcp", "web", limit, settings or TcpSettings()),),
            (Cluster("web", tuple(map(Backend, addresses)), **cluster),),
            admin=f"tcp:0:interface={HOST}" if admin else "",
        )
    )
    service.startService()
    proxy = Proxy(test, service, clock)
    test.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
    return proxy
