"""HTTP/1 over real sockets: clients, origins, and a proxy of mode http between them.

A test reads as a conversation, with an origin that the test speaks for::

    origin = await start_origin(self)
    proxy = start_http(self, origin)
    client = await proxy.connect()
    client.ask("GET", "/a")
    served = await origin.accepted()
    request = await served.request()
    served.send(answer(b"hello"))
    response = await client.response()

or with one that has been told beforehand what each of its connections does::

    origin = await start_origin(self, [answer(b"one"), CLOSE], [answer(b"two")])

Messages are read here by a reader of its own, not by the proxy's, and as they stand on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from proxykit.model import AccessEntry, Address, Backend, Cluster, Config, HttpRoute, Listener
from proxykit.model import Pool as PoolConfig
from proxykit.modes.http_settings import HttpSettings
from proxykit.ops.service import ProxyService
from tests.http_messages import Message, Reading, answer, chunks, head, request
from tests.sockets import (
    HOST,
    BackendServer,
    ClockedReactor,
    Connecting,
    End,
    Proxy,
    connect,
    end_of,
    reactor,
    turns,
    until,
)

__all__ = [
    "CLOSE",
    "RESET",
    "SILENCE",
    "HttpClient",
    "HttpEnd",
    "HttpProxy",
    "Message",
    "Origin",
    "ScriptedEnd",
    "Step",
    "answer",
    "chunks",
    "for_good",
    "head",
    "last",
    "quiet",
    "request",
    "start_http",
    "start_origin",
]


class HttpEnd(End):
    """An end that can wait for whole messages. ``received`` keeps all that came."""

    def __init__(self) -> None:
        super().__init__()
        #: How far ``received`` has been read as messages.
        self.taken = 0
        self._reading: Reading | None = None

    async def request(self) -> Message:
        """The next request."""
        return await self._message(lambda reading: reading.request())

    async def request_head(self) -> Message:
        """The next request without its body, which is left in ``rest``."""
        await self._until(lambda: b"\r\n\r\n" in self.received[self.taken :])
        reading = Reading(self, self.taken)
        found = reading.head()
        assert found is not None
        self.taken = reading.at
        return found

    async def response(self, method: str = "GET") -> Message:
        """The next response, be it interim or the last one.

        :param method: of the request that it answers.
        """
        return await self._message(lambda reading: reading.response(method))

    async def rest(self, size: int) -> bytes:
        """So many bytes, at least, that belong to no message."""
        await self._until(lambda: len(self.received) - self.taken >= size)
        return self.take_rest()

    def take_rest(self) -> bytes:
        """What has come that belongs to no message."""
        found = bytes(self.received[self.taken :])
        self.taken = len(self.received)
        return found

    async def nothing_more(self) -> None:
        """See the other side's orderly end, and nothing before it."""
        await self.ended()
        if self.taken != len(self.received):
            raise AssertionError(f"surplus: {self.take_rest()[:200]!r}")

    async def _message(self, read: Callable[[Reading], Message | None]) -> Message:
        self._reading = self._reading or Reading(self, self.taken)
        reading = self._reading
        found: list[Message | AssertionError] = []

        def whole() -> bool:
            if found:
                return True
            try:
                message: Message | AssertionError | None = read(reading)
            except AssertionError as wrong:
                message = wrong  # Raised where the test waits, not where bytes come in.
            if message is None and self.read_ended:
                rest = bytes(self.received[self.taken :])
                message = AssertionError(f"ended before its message did: {rest[:500]!r}")
            if message is not None:
                found.append(message)
            return bool(found)

        await self._until(whole)
        self.taken, self._reading = reading.at, None
        if isinstance(found[0], AssertionError):
            raise found[0]
        return found[0]


class HttpClient(HttpEnd):
    """A client's end."""

    def ask(
        self,
        method: str = "GET",
        target: str = "/",
        body: bytes | None = None,
        *lines: str,
        host: str = "a.example",
        version: str = "1.1",
    ) -> None:
        """Send a request.

        :param body: None: none, and no Content-Length.
        :param lines: further field lines.
        """
        self.send(request(method, target, body, *lines, host=host, version=version))

    async def get(self, target: str = "/", *lines: str, **more: str) -> Message:
        """Ask, and wait for the answer."""
        self.ask("GET", target, None, *lines, **more)
        return await self.response()


def quiet(transport: Any) -> bool:
    """Whether a transport is not read from."""
    return transport not in reactor.getReaders()


async def for_good(condition: Callable[[], Any]) -> None:
    """Wait until something is true and stays so: buffers in the kernel take a while to fill."""
    running = 0
    while running < 30:
        await turns(1)
        running = running + 1 if condition() else 0


_OF_THE_POOL = ("reuse", "max_idle", "idle_timeout")
#: What an origin does about a request: bytes that it sends, or something that it is told to do.
Step = bytes | Callable[["ScriptedEnd", Message], object]


def CLOSE(end: ScriptedEnd, request: Message) -> None:
    """Instead of an answer: the end."""
    end.close()


def RESET(end: ScriptedEnd, request: Message) -> None:
    """Instead of an answer: a reset."""
    end.reset()


def SILENCE(end: ScriptedEnd, request: Message) -> None:
    """No answer."""


def last(data: bytes) -> Step:
    """An answer, and then the end."""

    def send_and_close(end: ScriptedEnd, request: Message) -> None:
        end.send(data)
        end.close()

    return send_and_close


class ScriptedEnd(HttpEnd):
    """An origin's end that does one step of its script for each request; the last step stays."""

    def __init__(self, script: Sequence[Step], requests: list[Message]) -> None:
        super().__init__()
        self._script = list(script)
        self._requests = requests
        self.served = 0

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        while self.taken < len(self.received) and self.transport.connected:
            self._reading = self._reading or Reading(self, self.taken)
            request = self._reading.request()
            if request is None:
                return
            self.taken, self._reading = self._reading.at, None
            self._requests.append(request)
            step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
            self.served += 1
            if isinstance(step, bytes):
                self.send(step)
            else:
                step(self, request)

    def readConnectionLost(self) -> None:
        """A server closes what its client has closed."""
        super().readConnectionLost()
        self.close()


class Origin(BackendServer):
    """A backend that speaks HTTP.

    :param scripts: of its connections, the last one of all further; without any, the test speaks.
    :ivar requests: all that scripted connections were asked, in that order.
    """

    def __init__(self, scripts: Sequence[Sequence[Step]]) -> None:
        super().__init__(self._end)
        self.requests: list[Message] = []
        self._scripts = list(scripts)

    def _end(self) -> HttpEnd:
        if not self._scripts:
            return HttpEnd()
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        return ScriptedEnd(script, self.requests)

    @property
    def open(self) -> int:
        """How many of its connections there are at the moment."""
        return sum(1 for end in self.ends if end.transport and end.reason is None)


async def start_origin(
    test: TestCase, *scripts: Sequence[Step], host: str = HOST, path: str = ""
) -> Origin:
    """An origin on a free port of loopback, or on a unix socket. See :class:`Origin`."""
    origin = Origin(scripts)
    if path:
        port = reactor.listenUNIX(path, origin)
        origin.address = Address(path, 0)
    else:
        port = reactor.listenTCP(0, origin, interface=host)
        origin.address = Address(host, port.getHost().port)
    test.addCleanup(lambda: Deferred.fromCoroutine(origin.stop()))
    test.addCleanup(port.stopListening)
    return origin


class HttpProxy(Proxy):
    """A service with one http listener, and what a test asks of it.

    :ivar entries: what the access log would have.
    """

    def __init__(self, test: TestCase, service: ProxyService, clock: ClockedReactor) -> None:
        super().__init__(test, service, clock)
        self.entries: list[AccessEntry] = []
        self.listener.factory.log_access(self.entries.append)  # type: ignore[attr-defined]

    async def connect(self, end: Any = None) -> Any:
        """One more client."""
        address = self.listener.address
        if address.startswith("unix:"):
            connected: Deferred[Any] = Deferred()
            reactor.connectUNIX(address[5:], Connecting(end or HttpClient(), connected))
            made = await connected
            self.test.addCleanup(lambda: Deferred.fromCoroutine(end_of(made)))
            return made
        host = address.rpartition(":")[0].strip("[]")
        return await connect(self.test, self.port, end or HttpClient(), host)

    def sides(self) -> list[Any]:
        """The proxy's protocols for the clients that are there, the oldest first."""
        return list(self.listener.connections.values())

    async def served_by(self, number: int = 0) -> Any:
        """The proxy's protocol for a client, once it is there."""
        await until(lambda: len(self.listener.connections) > number)
        return self.sides()[number]

    @property
    def stats(self) -> dict[str, Any]:
        """What the listener has counted."""
        found: dict[str, Any] = self.listener.snapshot()["traffic"]
        return found

    def pooled(self) -> dict[str, Any]:
        """The pool's connections for the cluster ``web``."""
        return self.service.pool.snapshot("web")

    def connections(self) -> list[dict[str, Any]]:
        """As ``/api/connections`` has them."""
        return self.listener.describe_connections()

    def leftovers(self) -> dict[str, int]:
        """What is in use at the moment, and must not be when nobody is there."""
        clusters = list(self.service.registry)
        states = [
            state
            for cluster in clusters
            for state in (*cluster.backends.values(), *cluster.leaving.values())
        ]
        pooled = [self.service.pool.snapshot(cluster.config.name) for cluster in clusters]
        return {
            **super().leftovers(),
            "in flight": sum(each.in_flight for each in states),
            "connections": sum(each.connections for each in states),
            "waiting": sum(len(cluster.queue) for cluster in clusters),
            "idle": sum(each["idle"] for each in pooled),
            "opening": sum(each["opening"] for each in pooled),
        }

    def _idle_only(self) -> bool:
        """Whether no request is under way: the connections that are left lie in the pool."""
        found = self.leftovers()
        return not (found["in flight"] or found["waiting"] or found["opening"]) and (
            found["connections"] == found["idle"]
        )

    async def at_rest(self) -> None:
        """Wait until no request is under way and each upstream connection is idle or gone."""
        await until(self._idle_only)

    async def empty(self) -> None:
        """Wait until everything has been given back; idle connections live out their time."""
        await until(lambda: self._idle_only() and not self.leftovers()["clients"])
        if self.leftovers()["idle"]:
            clusters = self.service.registry
            self.clock.advance(max(each.config.pool.idle_timeout for each in clusters) + 2.5)
        await super().empty()


def start_http(
    test: TestCase,
    *backends: BackendServer | Address,
    limit: int = 10000,
    trust: tuple[str, ...] = (),
    proxy_protocol: bool = False,
    settings: HttpSettings | None = None,
    routes: Sequence[HttpRoute] = (),
    default: bool = True,
    others: Sequence[Cluster] = (),
    admin: bool = False,
    listen: str = f"tcp:0:interface={HOST}",
    **cluster: Any,
) -> HttpProxy:
    """A proxy of mode http in front of some backends, those of the cluster ``web``.

    :param settings: of the listener; ``routes`` go with them.
    :param default: whether what no route takes goes to ``web``.
    :param others: further clusters.
    :param cluster: what a :class:`Cluster` has, for ``web``; of ``pool`` also its settings alone,
        as ``reuse="never"``.
    """
    clock = ClockedReactor()
    service = ProxyService(clock)
    addresses = [each.address if isinstance(each, BackendServer) else each for each in backends]
    cluster.setdefault("balance", "round-robin")
    pool = {
        key: cluster.pop(key) for key in ("reuse", "max_idle", "idle_timeout") if key in cluster
    }
    cluster.setdefault("pool", PoolConfig(**pool))
    settings = settings or HttpSettings()
    if routes:
        settings = evolve(settings, routes=tuple(routes))
    name = "web" if default else ""
    service.apply(
        Config(
            (Listener("front", listen, "http", name, limit, settings, trust, proxy_protocol),),
            (Cluster("web", tuple(map(Backend, addresses)), **cluster), *others),
            admin=f"tcp:0:interface={HOST}" if admin else "",
        )
    )
    service.startService()
    proxy = HttpProxy(test, service, clock)
    test.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
    return proxy
