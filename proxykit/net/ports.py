"""Listening ports of the proxykit reactor: they pause, and do not spin without descriptors."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp, unix
from zope.interface import implementer

from proxykit.errors import OUT_OF_DESCRIPTORS
from proxykit.interfaces import IPausablePort
from proxykit.net.transport import TCPServer, UNIXServer


@implementer(IPausablePort)
class _Accepting:
    """Mixed into a stock ``Port``."""

    paused = False
    starved: Callable[[], object] | None = None
    last_descriptor = float("inf")

    def pause(self: Any) -> None:
        """See ``IPausablePort.pause``."""
        self.paused = True
        self.stopReading()

    def resume(self: Any) -> None:
        """See ``IPausablePort.resume``."""
        self.paused = False
        if self.connected and not self.disconnecting:
            self.startReading()

    def doRead(self: Any) -> None:
        """Accept the connections that wait, at most ``numberAccepts``."""
        accepted = 0
        for _ in range(self.numberAccepts):
            if self.paused or self.disconnecting:
                return
            try:
                # As socket.accept() does it, without asking for family and type each time.
                number, client = self.socket._accept()
            except BlockingIOError:
                break
            except OSError as problem:
                if problem.errno in OUT_OF_DESCRIPTORS and self.starved is not None:
                    self.starved()
                else:
                    super().doRead()
                return
            accepted += 1
            if number >= self.last_descriptor and self.starved is not None:
                self.starved()
            self._serve(socket.socket(self.addressFamily, self.socketType, 0, number), client)
        self.numberAccepts = max(1, accepted) if accepted < self.numberAccepts else accepted + 20

    def _serve(self: Any, skt: socket.socket, client: Any) -> None:
        transport = None
        try:
            if len(client) == 4 and client[3] and isinstance(client, tuple):
                # A link-local address: its scope belongs to its name.
                flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
                client = (socket.getnameinfo(client, flags)[0], *client[1:])
            protocol = self.factory.buildProtocol(self._buildAddr(client))
            if protocol is None:
                skt.close()
                return
            number = self.sessionno
            self.sessionno = number + 1
            transport = self.transport(skt, protocol, client, self, number, self.reactor)
            protocol.makeConnection(transport)
        except Exception:
            # Nobody serves this client; it must not be left waiting.
            self._logger.failure("while accepting a connection")
            if transport is not None:
                transport.abortConnection()
            else:
                skt.close()


class TCPPort(_Accepting, tcp.Port):
    """What ``listenTCP`` returns."""

    transport = TCPServer


class UNIXPort(_Accepting, unix.Port):
    """What ``listenUNIX`` returns."""

    transport = UNIXServer
