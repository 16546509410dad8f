"""TLS for tests: ends that speak it, and proxies that do.

In memory, OpenSSL itself is the other side (:class:`Peer`, over
:class:`Below`); over sockets, ends speak TLS by :mod:`proxykit.net.tls`, which is tested in memory.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase

from proxykit.model import Address, Backend, Cluster, ClusterTls, Config, Listener, ListenerTls
from proxykit.model import Pool as PoolConfig
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.net.tls import Tls
from proxykit.ops.service import ProxyService
from tests.http_sockets import HttpClient, HttpProxy, Origin, Step
from tests.sockets import (
    HOST,
    BackendServer,
    ClockedReactor,
    Connecting,
    End,
    Proxy,
    reactor,
    until,
)
from tests.tls_certificates import AnyCase, client_context, server_context

# In memory.


class Below(StringTransport):
    """The transport below: keeps what is written, and which ends were asked for."""

    half_closed = aborting = False

    def abortConnection(self) -> None:
        self.aborting = True

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def take(self) -> bytes:
        """What has been written since the last time."""
        found = self.value()
        self.clear()
        return found


class Peer:
    """The other side, by OpenSSL alone."""

    def __init__(
        self,
        context: ssl.SSLContext,
        server: bool,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self.incoming, self.outgoing, server, name, session)
        self.done = self.ended = False
        self.received = b""

    def take(self) -> bytes:
        """What it has to say."""
        return self.outgoing.read()

    def feed(self, data: bytes) -> None:
        """What the other side has said."""
        self.incoming.write(data)
        with suppress(ssl.SSLWantReadError):
            if not self.done:
                self.ssl.do_handshake()
                self.done = True
            while not self.ended:
                try:
                    read = self.ssl.read(1 << 20)
                except ssl.SSLZeroReturnError:  # Both sides have ended.
                    read = b""
                self.received += read
                self.ended = not read

    def say(self, data: bytes) -> bytes:
        """The records for these bytes."""
        self.ssl.write(data)
        return self.take()

    def end(self) -> bytes:
        """Its close_notify."""
        with suppress(ssl.SSLError):
            self.ssl.unwrap()
        return self.take()


class Pair:
    """One :class:`Tls` over :class:`Below`, and its peer."""

    def __init__(
        self,
        test: AnyCase,
        server: bool = True,
        version: ssl.TLSVersion | None = None,
        above: Callable[[], Any] = End,
        **contexts: ssl.SSLContext,
    ) -> None:
        ours = contexts.get("ours") or (
            server_context(test, version=version) if server else client_context(version=version)
        )
        theirs = contexts.get("theirs") or (
            client_context(version=version) if server else server_context(test, version=version)
        )
        self.below = Below()
        self.above = above()
        self.readied = 0
        self.problems: list[BaseException] = []
        self.tls = Tls(ours, server, self.ready, self.failed, None if server else "a.example")
        self.peer = Peer(theirs, not server, "a.example" if server else None)
        self.peer.feed(b"")

    def ready(self, tls: Tls) -> None:
        self.readied += 1
        tls.serve(self.above)

    def failed(self, tls: Tls, problem: BaseException) -> None:
        self.problems.append(problem)

    def connect(self) -> None:
        self.tls.makeConnection(self.below)

    def exchange(self, size: int = 0) -> None:
        """Let both say what they have to, in parts of so many bytes."""
        while ours := self.below.take() or b"":
            self._each(ours, size, self.peer.feed)
            self._each(self.peer.take(), size, self.tls.dataReceived)
        if theirs := self.peer.take():
            self._each(theirs, size, self.tls.dataReceived)
            self.exchange(size)

    @staticmethod
    def _each(data: bytes, size: int, take: Callable[[bytes], object]) -> None:
        size = size or len(data) or 1
        for at in range(0, len(data), size):
            take(data[at : at + size])

    def joined(self) -> Pair:
        """Both, with the handshake done."""
        self.connect()
        self.exchange()
        return self


# Over sockets.


class SecureServer(Origin):
    """A backend that speaks TLS.

    :ivar asked: the names that clients asked for, in order.
    :ivar resumed: for each handshake, whether it went on from an earlier session.
    :ivar failures: why handshakes came to nothing.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        make: Callable[[], Protocol] | None = None,
        scripts: Sequence[Sequence[Step]] = (),
    ) -> None:
        super().__init__(scripts)
        if make is not None:
            self.make = make
        self.context = context
        context.sni_callback = self._asked
        self.asked: list[str | None] = []
        self.resumed: list[bool] = []
        self.failures: list[BaseException] = []
        self.begun: list[Tls] = []

    def _asked(self, connection: Any, name: str | None, _: Any) -> None:
        self.asked.append(name)

    def buildProtocol(self, addr: Any) -> Any:
        made = Tls(self.context, True, self._ready, self._failed)
        self.begun.append(made)
        return made

    def _ready(self, tls: Tls) -> None:
        self.resumed.append(bool(tls.ssl.session_reused))
        tls.serve(super().buildProtocol(None))

    def _failed(self, tls: Tls, problem: BaseException) -> None:
        self.failures.append(problem)

    async def stop(self) -> None:
        for each in self.begun:
            if each.raw is not None:
                each.raw.abortConnection()
                await until(partial(getattr, each.raw, "disconnected"))


async def start_secure_backend(
    test: TestCase,
    *names: str,
    make: Callable[[], Protocol] | None = None,
    scripts: Sequence[Sequence[Step]] = (),
    context: ssl.SSLContext | None = None,
    **more: Any,
) -> SecureServer:
    """A backend with a certificate for these names, on a free port of loopback."""
    backend = SecureServer(context or server_context(test, *names, **more), make, scripts)
    port = reactor.listenTCP(0, backend, interface=HOST)
    backend.address = Address(HOST, port.getHost().port)
    test.addCleanup(lambda: Deferred.fromCoroutine(backend.stop()))
    test.addCleanup(port.stopListening)
    return backend


class NoTls(Exception):
    """There was no handshake."""


async def connect_secure(
    test: TestCase,
    port: int,
    context: ssl.SSLContext | None = None,
    name: str | None = None,
    end: Any = None,
    session: ssl.SSLSession | None = None,
    first: bytes = b"",
) -> Any:
    """A client's end under TLS.

    :param first: what goes before it, such as a PROXY header.
    :raises NoTls: with the reason.
    """
    made = end or End()
    done: Deferred[Any] = Deferred()
    problem: list[BaseException] = []

    def ready(tls: Tls) -> None:
        tls.serve(made)
        reactor.callLater(0, done.callback, made)

    def failed(tls: Tls, why: BaseException) -> None:
        problem.append(why)
        reactor.callLater(0, done.errback, NoTls(str(getattr(why, "reason", None) or why)))

    tls = _Client(context or client_context(), ready, failed, name, session, first)
    connected: Deferred[Any] = Deferred()
    reactor.connectTCP(HOST, port, Connecting(tls, connected))
    await connected

    async def leave() -> None:
        tls.raw.abortConnection()
        await until(lambda: tls.raw.disconnected)

    test.addCleanup(lambda: Deferred.fromCoroutine(leave()))
    return await done


class _Client(Tls):
    """Says something before its hello."""

    def __init__(
        self,
        context: ssl.SSLContext,
        ready: Any,
        failed: Any,
        name: str | None,
        session: ssl.SSLSession | None,
        first: bytes,
    ) -> None:
        super().__init__(context, False, ready, failed, name, session)
        self._first = first

    def makeConnection(self, transport: Any) -> None:
        if self._first:
            transport.write(self._first)
        super().makeConnection(transport)


class _Watched:
    """A proxy whose listeners look at their certificates now and then."""

    service: ProxyService

    def _watching(self) -> int:
        return sum(
            each.certificates._looking is not None
            for each in self.service._fronts._built.values()
            if each.certificates is not None
        )

    def leftovers(self) -> dict[str, int]:
        found: dict[str, int] = super().leftovers()  # type: ignore[misc]
        return {**found, "deadlines": found["deadlines"] - self._watching()}


class SecureProxy(_Watched, Proxy):
    """A proxy of mode tcp."""

    async def secure(self, context: ssl.SSLContext | None = None, **more: Any) -> Any:
        """One more client, under TLS."""
        return await connect_secure(self.test, self.port, context, **more)


class SecureHttpProxy(_Watched, HttpProxy):
    """A proxy of mode http."""

    async def secure(self, context: ssl.SSLContext | None = None, **more: Any) -> Any:
        """One more client, under TLS."""
        more.setdefault("end", HttpClient())
        return await connect_secure(self.test, self.port, context, **more)


_MODES: dict[str, tuple[type[Any], Callable[[], Any]]] = {
    "tcp": (SecureProxy, TcpSettings),
    "http": (SecureHttpProxy, HttpSettings),
    "sni": (SecureProxy, SniSettings),
}


def start_secure(
    test: TestCase,
    mode: str,
    *backends: BackendServer | Address | Backend,
    tls: ListenerTls | None = None,
    to: ClusterTls | None = None,
    others: Sequence[Listener] = (),
    start: bool = True,
    pool: PoolConfig | None = None,
    cluster: dict[str, Any] | None = None,
    **listener: Any,
) -> Any:
    """A proxy with TLS in, out, or both.

    :param to: TLS to the backends.
    :param others: further listeners.
    :param listener: what a :class:`Listener` has, for ``front``.
    """
    kind, settings = _MODES[mode]
    clock = ClockedReactor()
    service = ProxyService(clock)
    front = Listener("front", f"tcp:0:interface={HOST}", mode, "web", settings=settings())
    members = tuple(
        each if isinstance(each, Backend) else Backend(getattr(each, "address", each))
        for each in backends
    )
    web = Cluster("web", members, balance="round-robin", tls=to, pool=pool or PoolConfig())
    service.apply(
        Config((evolve(front, tls=tls, **listener), *others), (evolve(web, **(cluster or {})),))
    )
    service.startService()
    proxy = kind(test, service, clock)
    test.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
    return proxy
