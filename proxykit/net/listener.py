"""A listener: accepts up to its limit, numbers each connection and keeps the table of them.

What it accepts goes to a mode's factory, after its PROXY header where there is to be one. Where
there are ``max_connections``, or this process runs out of descriptors, it stops accepting: further
clients wait in the backlog, and are neither refused nor does the process spin.
"""

from __future__ import annotations

import os
import re
import resource
import socket
from collections.abc import Iterator
from errno import EWOULDBLOCK
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from proxykit.core.sharing import UNKNOWN, explained
from proxykit.errors import OUT_OF_DESCRIPTORS
from proxykit.interfaces import IDrains, IExplains, IPausablePort, ISnapshot
from proxykit.model import ConnInfo, address_text
from proxykit.net.lost import guard_making, unhook_lost, when_lost, when_made
from proxykit.net.peek import HeaderProtocol
from proxykit.net.relay import give

if TYPE_CHECKING:
    from twisted.internet.interfaces import (
        IListeningPort,
        IProtocol,
        IProtocolFactory,
        IStreamServerEndpoint,
    )

    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.net.peek import Headers
    from proxykit.net.terminate import Terminating
    from proxykit.net.tls import Tls

#: Twisted's own default backlog, 50, overflows in a burst; the kernel caps this at somaxconn.
BACKLOG = 4096
#: Accepting resumes when the connections are down to this share of the limit.
RESUME_AT = 0.95
#: Descriptors that are not given to clients, so that those who are in can still be connected, and
#: files opened; or an eighth of all, where there are few.
SPARE_DESCRIPTORS = 32
#: Seconds after which a listener that ran out of descriptors looks again, and between two log lines
#: about the same.
LOOK_AGAIN = 1.0
STARVED = "this process has no file descriptors left (ulimit -n)"
SAY_AGAIN = 60.0


def endpoint(reactor: object, text: str) -> IStreamServerEndpoint:
    """The endpoint that a server endpoint string describes, with a backlog fit for a proxy.

    :raises ValueError: it describes none.
    """
    if re.match(r"(tcp|tcp6|unix):", text) and ":backlog=" not in text:
        text += f":backlog={BACKLOG}"
    made: IStreamServerEndpoint = serverFromString(reactor, text)
    return made


class Listener(Factory):
    """Wraps a mode's factory. See this module.

    :param name: for the log and the admin API.
    :param factory: the mode's.
    :param limit: how many connections at once.
    :param ids: numbers for connections, unique in this process.
    :param deadlines: where the wait for descriptors is kept, and the clock to go with it.
    :param headers: of the PROXY headers that connections begin with; None: they begin without.
    :param tls: how TLS is spoken here; None: it is not.
    :param notes_server: whether it is wanted to know of each connection what it connected to.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        name: str,
        factory: IProtocolFactory,
        limit: int,
        ids: Iterator[int],
        deadlines: Deadlines,
        headers: Headers | None = None,
        tls: Terminating | None = None,
        notes_server: bool = False,
    ) -> None:
        self.name = name
        self.headers = headers
        self.tls = tls
        self.notes_server = notes_server
        self.factory = factory
        self.limit = limit
        self.accepted = 0
        #: The protocols of the connections that are open, by their numbers.
        self.connections: dict[int, IProtocol] = {}
        #: Why it does not accept at the moment.
        self.paused = ""
        #: Whether it is to go, and waits for its connections to end.
        self.draining = False
        self._ids = ids
        self._deadlines = deadlines
        self._port: Any = None
        # While descriptors are short: how many connections there may be, and when descriptors are
        # looked for the next time.
        self._cap: int | None = None
        self._looking: Deadline | None = None
        self._emptied: list[Deferred[None]] = []
        # Whether the port can do by itself what others have to be helped with.
        self._native = False
        # When each reason was said last: a listener at its limit goes back and forth.
        self._said: dict[str, float] = {}

    def listen(self, where: IStreamServerEndpoint) -> Deferred[IListeningPort]:
        """Begin to accept.

        The Deferred fails as the endpoint's does, for instance with ``CannotListenError``.
        """

        def listening(port: Any) -> IListeningPort:
            self._port, self.paused = port, ""
            listening = getattr(port, "socket", None)
            if listening is not None and listening.family in (socket.AF_INET, socket.AF_INET6):
                # Each accepted socket has what the listening one has.
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
            # A stock port accepts in a loop that does not look up, and gives a full table of
            # descriptors its own treatment: it closes each client that waits, with a log line
            # each. Its socket is what can be spoken to.
            self._native = IPausablePort.providedBy(port)
            if self._native:
                port.starved = self.starved
                port.last_descriptor = last_descriptor()
            elif listening is not None and hasattr(port, "stopReading"):
                port.socket = _Gate(listening, self)
            self._log.info(
                "{listener}: listening on {address}", listener=self.name, address=self.address
            )
            if len(self.connections) >= self._limit:
                self._pause(self._full)  # They are from before it stopped listening.
            made: IListeningPort = port
            return made

        return where.listen(self).addCallback(listening)

    @property
    def address(self) -> str:
        """Where it listens, as users write it; empty when it does not."""
        return address_text(self._port.getHost()) if self._port is not None else ""

    def change(
        self,
        name: str,
        factory: IProtocolFactory,
        limit: int,
        headers: Headers | None,
        tls: Terminating | None,
    ) -> None:
        """Another configuration, at the same place: clients that come from now on have it, and
        those that are here finish with what they had."""
        before, self.factory = self.factory, factory
        if self.numPorts:
            factory.doStart()
            before.doStop()
        self.name, self.limit, self.headers, self.tls = name, limit, headers, tls
        self._drain_all()
        if len(self.connections) >= self._limit:
            self._pause(self._full)
        elif self.paused:
            self._maybe_resume()

    def stop_listening(self) -> Deferred[object]:
        """Accept no more. Connections live on."""
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening) if port is not None else succeed(None)

    def doStart(self) -> None:
        """The port starts, and with it the mode's factory."""
        super().doStart()  # type: ignore[no-untyped-call]
        self.factory.doStart()

    def doStop(self) -> None:
        """The port has stopped."""
        super().doStop()  # type: ignore[no-untyped-call]
        self.factory.doStop()

    def buildProtocol(self, addr: Any) -> Any:
        """One more connection."""
        if self.headers is not None:
            if not self.headers.lets_in(addr):
                return None
            number = next(self._ids)
            info = ConnInfo(number, self.name, addr)
            protocol: Any = HeaderProtocol(self.headers, info, self._let_in)
        elif self.tls is not None:
            number = next(self._ids)
            info = ConnInfo(number, self.name, addr)
            protocol = self.tls.begin(info, partial(self._secured, self))
        else:
            protocol = self.factory.buildProtocol(addr)
            if protocol is None:
                return None
            number = next(self._ids)
            protocol.info = ConnInfo(number, self.name, addr)
            if self.notes_server:
                when_made(protocol, partial(_note_server, protocol))
        when_lost(protocol, self._closed, number)
        self.connections[number] = protocol
        if not self._native:
            guard_making(protocol)
        self.accepted += 1
        if len(self.connections) >= self._limit:
            self._pause(self._full)
        return protocol

    @property
    def _full(self) -> str:
        """Why it accepts no more, where there are as many connections as there may be."""
        if self._cap is not None:
            return STARVED
        return f"all of its {self.limit} connections are in use (max_connections)"

    def _let_in(self, first: HeaderProtocol, info: ConnInfo, received: bytes) -> None:
        """Its header has been read."""
        self._replace(first, self, info, received)

    def hand_over(self, first: Any, target: Listener, received: bytes) -> None:
        """Let the mode of another listener have a connection; it stays in this table.

        :param first: the protocol that gives it up.
        :param received: what that has read of it.
        """
        if hasattr(first.transport, "setTcpKeepAlive"):
            first.transport.setTcpKeepAlive(True)  # as after an accept
        self._replace(first, target, evolve(first.info, listener=target.name), received)

    def _replace(self, first: Any, target: Listener, info: ConnInfo, received: bytes) -> None:
        transport = first.transport
        if target.tls is not None:
            protocol: Any = target.tls.begin(info, partial(self._secured, target))
        else:
            protocol = target.factory.buildProtocol(info.client)
            if protocol is None:
                transport.abortConnection()
                return
            protocol.info = info
        self._belongs_to(protocol, first)
        give(transport, protocol)
        first.transport = None
        try:
            protocol.makeConnection(transport)
            if received:
                protocol.dataReceived(received)
            if self.draining:
                _drain(protocol)
        except Exception:
            self._raised(protocol, transport)

    def _secured(self, target: Listener, tls: Tls, info: ConnInfo) -> None:
        """A handshake is done: the mode gets what is inside."""
        protocol: Any = target.factory.buildProtocol(info.client)
        if protocol is None:
            tls.abortConnection()
            return
        if self.notes_server and info.server is None:
            info = evolve(info, server=tls.getHost())
        protocol.info = info
        self._belongs_to(protocol, tls)
        try:
            tls.serve(protocol)
            if self.draining:
                _drain(protocol)
        except Exception:
            self._raised(protocol, tls)

    def _belongs_to(self, protocol: Any, before: Any) -> None:
        """A connection in the table has another protocol now."""
        unhook_lost(before)
        when_lost(protocol, self._closed, protocol.info.id)
        self.connections[protocol.info.id] = protocol

    def _raised(self, protocol: Any, transport: Any) -> None:
        self._log.failure("{protocol} raised when it was given a connection", protocol=protocol)
        transport.abortConnection()

    def _closed(self, number: int) -> None:
        del self.connections[number]
        if self._cap is not None and len(self.connections) * 2 <= self._cap:
            self._cap = None
        if self.paused:
            self._maybe_resume()
        if self._emptied and not self.connections:
            emptied, self._emptied = self._emptied, []
            for each in emptied:
                each.callback(None)

    def starved(self) -> None:
        """Descriptors ran out, or will with the next client."""
        # As many connections as there are now, and no more, until half of them have gone: room for
        # one descriptor is not room for the two of a connection, and spare ones would dwindle.
        self._cap = max(1, len(self.connections))
        self._pause(STARVED)
        # They may come back without a connection of ours ending.
        if self._looking is None:
            self._looking = self._deadlines.add(LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._looking = None
        if self.paused and not self._maybe_resume():
            self._looking = self._deadlines.add(LOOK_AGAIN, self._look_again)

    @property
    def _limit(self) -> int:
        return self.limit if self._cap is None else min(self.limit, self._cap)

    def _maybe_resume(self) -> bool:
        """Accept again, if there is room."""
        limit = self._limit
        if len(self.connections) > min(limit - 1, limit * RESUME_AT):
            return False
        if self._cap is not None and next_descriptor() >= last_descriptor():
            return False
        self._resume()
        return True

    def abort(self, why: str) -> Deferred[None]:
        """Reset all connections; the Deferred fires when they are gone."""
        for protocol in tuple(self.connections.values()):
            end = getattr(protocol, "abort", None)
            if end is not None:
                end(why)
            else:
                protocol.transport.abortConnection()  # type: ignore[attr-defined]
        return self._empty()

    def drain(self) -> Deferred[None]:
        """Have all connections end as soon as what is under way on them is done, where their mode
        can see when that is; the Deferred fires when they are gone. See also ``stop_listening``."""
        self.draining = True
        self._drain_all()
        return self._empty()

    def _drain_all(self) -> None:
        for protocol in tuple(self.connections.values()):
            _drain(protocol)

    def _empty(self) -> Deferred[None]:
        """Fires when there are no connections."""
        if not self.connections:
            return succeed(None)
        emptied: Deferred[None] = Deferred()
        self._emptied.append(emptied)
        return emptied

    def _pause(self, why: str) -> None:
        if self._port is None or self.paused:
            return
        self.paused = why
        (self._port.pause if self._native else self._port.stopReading)()
        now = self._deadlines.clock.seconds()
        if now - self._said.get(why, float("-inf")) >= SAY_AGAIN:
            self._said[why] = now
            self._log.warn("{listener}: not accepting: {why}", listener=self.name, why=why)

    def _resume(self) -> None:
        self.paused = ""
        if self._port is not None:
            (self._port.resume if self._native else self._port.startReading)()

    def snapshot(self) -> dict[str, Any]:
        """This listener as ``/api/listeners`` shows it."""
        return {
            "name": self.name,
            "address": self.address,
            "connections": len(self.connections),
            "max_connections": self.limit,
            "accepted": self.accepted,
            "paused": self.paused or None,
            "draining": self.draining,
            **({"refused": dict(self.headers.refused)} if self.headers is not None else {}),
            **({"tls": self.tls.snapshot()} if self.tls is not None else {}),
            **({"traffic": self.factory.snapshot()} if ISnapshot.providedBy(self.factory) else {}),
        }

    def describe_connections(self) -> list[dict[str, Any]]:
        """Its part of ``/api/connections``."""
        return [_describe(protocol) for protocol in self.connections.values()]

    def explain(self, number: int) -> dict[str, Any]:
        """One of its connections as ``/api/explain/ID`` shows it.

        :raises KeyError: there is none of that number.
        """
        protocol: Any = self.connections[number]
        explains = IExplains.providedBy(protocol)
        said = protocol.explain() if explains else explained(None, None, UNKNOWN)
        return {**_describe(protocol), **said}


def _drain(protocol: Any) -> None:
    if IDrains.providedBy(protocol):
        protocol.drain()


def _describe(protocol: Any) -> dict[str, Any]:
    info: ConnInfo = protocol.info
    return {
        "id": info.id,
        "listener": info.listener,
        "client": address_text(info.client),
        **({"relay": address_text(info.relay)} if info.relay is not None else {}),
        **(protocol.snapshot() if ISnapshot.providedBy(protocol) else {}),
    }


def _note_server(protocol: Any, transport: Any) -> None:
    protocol.info = evolve(protocol.info, server=transport.getHost())


def last_descriptor() -> int:
    """From which descriptor on the table counts as full."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - min(SPARE_DESCRIPTORS, soft // 8)


def next_descriptor() -> float:
    """The number that the next socket would get: the kernel gives the lowest that is free."""
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return float("inf")
    os.close(descriptor)
    return descriptor


class _Gate:
    """A listening socket that has nothing to accept while its listener is paused.

    A stock port accepts in a loop that does not look up, so stopping its reading is not enough.
    """

    def __init__(self, listening: socket.socket, listener: Listener) -> None:
        self._socket = listening
        self._listener = listener
        self._last = last_descriptor()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def accept(self) -> tuple[socket.socket, Any]:
        if self._listener.paused:
            raise BlockingIOError(EWOULDBLOCK, "paused")
        try:
            accepted, address = self._socket.accept()
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS:
                raise
            self._listener.starved()
            raise BlockingIOError(EWOULDBLOCK, "starved") from error
        if accepted.fileno() >= self._last:
            self._listener.starved()
        if isinstance(address, bytes) and len(address) == 4:
            # The name of a client on a unix socket. A stock port takes four of anything for an
            # address of IPv6, and ends.
            address = b""
        return accepted, address
