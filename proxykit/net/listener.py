"""A listener: accepts up to its limit, numbers each connection and keeps the table of them.

What it accepts goes to a mode's factory. When there are ``max_connections``, or this process runs
out of descriptors, it stops accepting: further clients wait in the backlog, and are neither refused
nor does the process spin.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from errno import EWOULDBLOCK
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from proxykit.interfaces import ISnapshot
from proxykit.model import ConnInfo, address_text
from proxykit.net.connector import OUT_OF_DESCRIPTORS
from proxykit.net.lost import when_lost

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import (
        IListeningPort,
        IProtocol,
        IProtocolFactory,
        IStreamServerEndpoint,
    )

    from proxykit.core.deadlines import Deadlines

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
    ) -> None:
        self.name = name
        self.factory = factory
        self.limit = limit
        self.accepted = 0
        #: The protocols of the connections that are open, by their numbers.
        self.connections: dict[int, IProtocol] = {}
        #: Why it does not accept at the moment.
        self.paused = ""
        self._ids = ids
        self._deadlines = deadlines
        self._port: Any = None
        self._said = float("-inf")

    def listen(self, where: IStreamServerEndpoint) -> Deferred[IListeningPort]:
        """Begin to accept.

        The Deferred fails as the endpoint's does, for instance with ``CannotListenError``.
        """

        def listening(port: Any) -> IListeningPort:
            self._port = port
            # A stock port gives a full table of descriptors its own treatment: it closes each
            # client that waits, with a log line each. Its socket is what can be spoken to.
            if hasattr(port, "socket") and hasattr(port, "stopReading"):
                port.socket = _Gate(port.socket, self)
            self._log.info(
                "{listener}: listening on {address}", listener=self.name, address=self.address
            )
            made: IListeningPort = port
            return made

        return where.listen(self).addCallback(listening)

    @property
    def address(self) -> str:
        """Where it listens, as users write it; empty when it does not."""
        return address_text(self._port.getHost()) if self._port is not None else ""

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
        protocol: Any = self.factory.buildProtocol(addr)
        if protocol is None:
            return None
        number = next(self._ids)
        protocol.info = ConnInfo(number, self.name, addr)
        when_lost(protocol, partial(self._closed, number))
        self.connections[number] = protocol
        self.accepted += 1
        if len(self.connections) >= self.limit:
            self._pause(f"all of its {self.limit} connections are in use (max_connections)")
        return protocol

    def _closed(self, number: int) -> None:
        del self.connections[number]
        if self.paused and len(self.connections) <= min(self.limit - 1, self.limit * RESUME_AT):
            self._resume()

    def starved(self) -> None:
        """Descriptors ran out, or will with the next client."""
        self._pause("this process has no file descriptors left (ulimit -n)")
        # They may come back without a connection of ours ending.
        self._deadlines.add(LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        if self.paused and len(self.connections) < self.limit:
            self._resume()

    def _pause(self, why: str) -> None:
        if self._port is None or self.paused:
            return
        self.paused = why
        self._port.stopReading()
        now = self._deadlines.clock.seconds()
        if now - self._said >= SAY_AGAIN:
            self._log.warn("{listener}: not accepting: {why}", listener=self.name, why=why)
        self._said = now

    def _resume(self) -> None:
        self.paused = ""
        if self._port is not None:
            self._port.startReading()

    def snapshot(self) -> dict[str, Any]:
        """This listener as ``/api/listeners`` shows it."""
        return {
            "name": self.name,
            "address": self.address,
            "connections": len(self.connections),
            "max_connections": self.limit,
            "accepted": self.accepted,
            "paused": self.paused or None,
        }

    def describe_connections(self) -> list[dict[str, Any]]:
        """Its part of ``/api/connections``."""
        return [
            {
                "id": number,
                "listener": self.name,
                "client": address_text(protocol.info.client),  # type: ignore[attr-defined]
                **(protocol.snapshot() if ISnapshot.providedBy(protocol) else {}),
            }
            for number, protocol in self.connections.items()
        ]


class _Gate:
    """A listening socket that has nothing to accept while its listener is paused.

    A stock port accepts in a loop that does not look up, so stopping its reading is not enough.
    """

    def __init__(self, listening: socket.socket, listener: Listener) -> None:
        self._socket = listening
        self._listener = listener
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The kernel gives the lowest descriptor that is free, so a high one means a full table.
        self._last = soft - min(SPARE_DESCRIPTORS, soft // 8)

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
        return accepted, address
