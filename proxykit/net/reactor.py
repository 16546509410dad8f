"""The proxykit reactor: Twisted's epoll reactor, with a short way from an event to its transport.

It hands out the transports of ``net/transport.py`` from every call that makes one. Whatever else is
registered with it is treated as the stock reactor treats it. ``--reactor=proxykit`` chooses it for
``twistd`` and ``trial``; ``twistd proxykit`` does so by itself where there is epoll.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from errno import EINTR
from functools import partial
from select import EPOLLIN, EPOLLOUT
from socket import SO_ERROR, SOL_SOCKET
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import UnsupportedAddressFamily
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python import log

from proxykit.net import clients, ports, transport
from proxykit.net.splice import Pipes

_IN_OR_OUT = EPOLLIN | EPOLLOUT


class ProxykitReactor(EPollReactor):
    """See this module."""

    #: A protocol that raises in makeConnection loses its connection, whoever opened it.
    guards_making = True
    #: With a ``bindAddress`` without a port, a port is picked when the destination is known.
    binds_late = True

    def __init__(self) -> None:
        self._at_end: list[Callable[[], object]] = []
        #: Transports that have something to send at the end of the turn.
        self.sending: list[transport.Short] = []
        # Numbers that were closed in this turn: an event that was fetched for one of them must not
        # reach the descriptor that has got the number since.
        self._stale: set[int] = set()
        self.pipes = Pipes()
        super().__init__()

    # What makes transports.

    def listenTCP(
        self, port: Any, factory: Any, backlog: int = 50, interface: str = ""
    ) -> ports.TCPPort:
        """See ``IReactorTCP.listenTCP``."""
        made = ports.TCPPort(port, factory, backlog, interface, self)
        made.startListening()
        return made

    def connectTCP(
        self, host: str, port: Any, factory: Any, timeout: Any = 30.0, bindAddress: Any = None
    ) -> clients.TCPConnector:
        """See ``IReactorTCP.connectTCP``; with a ``bindAddress`` whose port is 0 it binds late."""
        made = clients.TCPConnector(host, port, factory, timeout, bindAddress, self)
        made.connect()
        return made

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: Any = 0
    ) -> ports.UNIXPort:
        """See ``IReactorUNIX.listenUNIX``."""
        made = ports.UNIXPort(address, factory, backlog, mode, self, wantPID)
        made.startListening()
        return made

    def connectUNIX(
        self, address: Any, factory: Any, timeout: Any = 30, checkPID: Any = 0
    ) -> clients.UNIXConnector:
        """See ``IReactorUNIX.connectUNIX``."""
        made = clients.UNIXConnector(address, factory, timeout, self, checkPID)
        made.connect()
        return made

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """See ``IReactorSocket.adoptStreamPort``."""
        self._check(addressFamily)
        made = (
            ports.UNIXPort._fromListeningDescriptor(self, fileDescriptor, factory)
            if addressFamily == socket.AF_UNIX
            else ports.TCPPort._fromListeningDescriptor(
                self, fileDescriptor, addressFamily, factory
            )
        )
        made.startListening()
        return made

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """See ``IReactorSocket.adoptStreamConnection``."""
        self._check(addressFamily)
        if addressFamily == socket.AF_UNIX:
            return transport.UNIXServer._fromConnectedSocket(fileDescriptor, factory, self)
        return transport.TCPServer._fromConnectedSocket(
            fileDescriptor, addressFamily, factory, self
        )

    def _check(self, family: int) -> None:
        if family not in self._supportedAddressFamilies:
            raise UnsupportedAddressFamily(family)

    # What those transports ask for.

    def at_end_of_turn(self, call: Callable[[], object]) -> None:
        """Call this when all events that are there have been handled, before any other come."""
        self._at_end.append(call)

    def forget(self, descriptor: Any, number: int) -> None:
        """A descriptor is about to be closed, and with it its registration in the kernel."""
        self._stale.add(number)
        registered = self._selectables.pop(number, None)
        self._reads.discard(number)
        self._writes.discard(number)
        if descriptor.adopted and registered is not None:
            # A copy lives on, and so would the registration.
            self._poller.unregister(number)

    def read_instead(self, descriptor: Any) -> None:
        """Wait for something to read, no longer for room to write."""
        number = descriptor.fileno()
        self._writes.discard(number)
        self._reads.add(number)
        self._poller.modify(number, EPOLLIN)

    # A transport whose other side has ended, and that is not written to, stays registered for no
    # event but an error: a reset that comes after the end is noticed.

    def addReader(self, reader: Any) -> None:
        """See ``IReactorFDSet.addReader``."""
        if not isinstance(reader, transport.Short):
            super().addReader(reader)
            return
        number = reader.fileno()
        if number not in self._reads:
            self._watch(reader, number, EPOLLIN | (EPOLLOUT if number in self._writes else 0))
            self._reads.add(number)

    def addWriter(self, writer: Any) -> None:
        """See ``IReactorFDSet.addWriter``."""
        if not isinstance(writer, transport.Short):
            super().addWriter(writer)
            return
        number = writer.fileno()
        if number not in self._writes:
            self._watch(writer, number, EPOLLOUT | (EPOLLIN if number in self._reads else 0))
            self._writes.add(number)

    def removeReader(self, reader: Any) -> None:
        """See ``IReactorFDSet.removeReader``."""
        number = reader.fileno() if isinstance(reader, transport.Short) else -1
        if number < 0:
            super().removeReader(reader)
        elif number in self._reads:
            self._reads.remove(number)
            self._leave(reader, number, EPOLLOUT if number in self._writes else 0)

    def removeWriter(self, writer: Any) -> None:
        """See ``IReactorFDSet.removeWriter``."""
        number = writer.fileno() if isinstance(writer, transport.Short) else -1
        if number < 0:
            super().removeWriter(writer)
        elif number in self._writes:
            self._writes.remove(number)
            self._leave(writer, number, EPOLLIN if number in self._reads else 0)

    def _watch(self, descriptor: Any, number: int, events: int) -> None:
        if number in self._selectables:
            self._poller.modify(number, events)
        else:
            self._poller.register(number, events)
            self._selectables[number] = descriptor

    def _leave(self, descriptor: Any, number: int, events: int) -> None:
        if events or descriptor.ended:
            self._poller.modify(number, events)
        else:
            self._drop(number)

    def _drop(self, number: int) -> None:
        self._stale.add(number)
        del self._selectables[number]
        self._poller.unregister(number)

    def _passive(self, selectable: Any, number: int) -> None:
        """Something has happened to a connection that is neither read from nor written to."""
        if selectable.socket.getsockopt(SOL_SOCKET, SO_ERROR):
            self._disconnectSelectable(selectable, CONNECTION_LOST, False)
        else:
            # Both sides have ended. There is nothing left to be noticed, and epoll would go on.
            self._drop(number)

    def _remove(self, xer: Any, *args: Any) -> None:
        number = xer.fileno()
        super()._remove(xer, *args)
        if number not in self._selectables:
            self._stale.add(number)

    def getReaders(self) -> list[Any]:
        """See ``IReactorFDSet.getReaders``; what is about to be closed is not among them."""
        readers = super().getReaders()
        return [reader for reader in readers if not getattr(reader, "disconnecting", False)]

    # The turn.

    def timeout(self) -> float | None:
        """How long to wait for events."""
        return 0 if self._at_end or self.sending else super().timeout()

    def doPoll(self, timeout: Any) -> None:
        """Wait for events, and handle them."""
        if self._at_end or self.sending:  # from a timed call, or from a thread's
            self._end_turn()
            timeout = 0
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        except OSError as problem:
            if problem.errno == EINTR:
                return
            raise
        selectables, stale, short = self._selectables, self._stale, transport.Short
        stale.clear()
        for number, event in events:
            selectable = selectables.get(number)
            if selectable is None or number in stale:
                continue
            if not isinstance(selectable, short) or not event & _IN_OR_OUT:
                if number not in self._reads and number not in self._writes:
                    self._passive(selectable, number)
                    continue
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, number, event)
                continue
            why: Any = None
            try:
                if event & EPOLLIN:
                    why = selectable.doRead()
                    if why is None and event == EPOLLIN:
                        continue
                    if why is CONNECTION_DONE:
                        self._ended(selectable)
                        continue
                if event & EPOLLOUT and not why and number in self._writes:
                    event = EPOLLOUT
                    why = selectable.doWrite()
            except BaseException:
                why = sys.exc_info()[1]
                log.callWithLogger(selectable, log.err)
            if why:
                self._disconnectSelectable(selectable, why, event != EPOLLOUT)
        if self._at_end or self.sending:
            self._end_turn()

    doIteration = doPoll

    def _ended(self, selectable: Any) -> None:
        """There is nothing more to be read from it."""
        selectable.ended = True
        if IHalfCloseableProtocol.providedBy(selectable.protocol):
            selectable.protocol.readConnectionLost()
            # Where this, or the end of another connection in this turn, makes the protocol close
            # it, it needs no call to the kernel first.
            self._at_end.append(partial(self._stop_reading, selectable))
        else:
            self._disconnectSelectable(selectable, CONNECTION_DONE, True)

    def _stop_reading(self, selectable: Any) -> None:
        if selectable.connected and not selectable.disconnecting:
            self.removeReader(selectable)

    def _end_turn(self) -> None:
        while self._at_end or self.sending:
            # One that is flushed may pause a producer, which may write to another.
            for each in self.sending:
                try:
                    each.flush()
                except BaseException:
                    log.err()
            self.sending.clear()
            calls, self._at_end = self._at_end, []
            for call in calls:
                try:
                    call()
                except BaseException:
                    log.err()


def install() -> None:
    """Make this the reactor. Do it before anything else imports one."""
    from twisted.internet.main import installReactor

    installReactor(ProxykitReactor())
