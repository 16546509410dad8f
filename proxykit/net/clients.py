"""How the proxykit reactor opens connections: without a timer, a resolver or a Deferred."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from errno import EINPROGRESS
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet import error, tcp, unix
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.base import BaseConnector
from twisted.internet.protocol import Protocol
from twisted.python import lockfile
from twisted.python.failure import Failure

from proxykit.net.kernel import narrow
from proxykit.net.transport import Short, UNIXShort

if TYPE_CHECKING:
    from proxykit.model import PortRange

#: linux/in.h: leave the choice of a port to connect(), which knows the destination.
IP_BIND_ADDRESS_NO_PORT = 24
#: net/tcp_states.h: CLOSE_WAIT and CLOSE, in which the other side has ended or reset it.
_ENDED = {8: "backend", 7: "reset"}


@frozen
class Source:
    """Where a connection is to leave from: the reactor's ``connectTCP`` takes it as bindAddress.

    :ivar address: empty: the kernel's choice.
    :ivar ports: to pick from; None: all that the kernel picks from.
    """

    address: str = ""
    ports: PortRange | None = None

    def bind(self, skt: socket.socket) -> None:
        """Tell the kernel so.

        :raises OSError: the address is not here, or the kernel knows no such ranges.
        """
        if self.ports is not None:
            narrow(skt, self.ports)
        if self.address:
            _bind_late(skt, self.address, 0)


class _Connecting:
    """Mixed into a stock ``BaseClient``: its way from a socket to a connection."""

    #: Whether our end was sent before the other side's had come.
    ended_first = False

    def _connect(self: Any, family: int, address: Any) -> None:
        """Open the connection. Whatever comes of it comes in a later turn."""
        reactor = self.reactor
        try:
            skt = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            bind = self.connector.bindAddress
            if bind is not None:
                bind_late(skt, bind)
        except OSError as problem:
            failed = error.ConnectBindError(problem.errno, problem.strerror)
            reactor.callLater(0, self.failIfNotConnected, failed)
            return
        self.socket = skt
        self.fileno = skt.fileno
        number = skt.connect_ex(address)
        if number in (0, EINPROGRESS):
            self.doRead = self.doWrite = self._decided
            reactor.addWriter(self)
        else:
            failed = error.getConnectError((number, os.strerror(number)))
            reactor.callLater(0, self.failIfNotConnected, failed)

    def _decided(self: Any) -> None:
        """The socket can be written to, or has an error."""
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.failIfNotConnected(error.getConnectError((number, os.strerror(number))))
            return
        del self.doRead, self.doWrite
        self.reactor.read_instead(self)
        self._connectDone()

    def failIfNotConnected(self: Any, err: Any) -> None:
        """As always; no circle is left behind."""
        self.__dict__.pop("doRead", None)
        self.__dict__.pop("doWrite", None)
        super().failIfNotConnected(err)

    def _connectDone(self: Any) -> None:
        """It is connected: build the protocol."""
        protocol = self.protocol = self.connector.buildProtocol(self.getPeer())
        self._named = protocol
        self.connected = 1
        if protocol is None:
            # The factory does not want it.
            self.protocol = self._named = Protocol()
            self.loseConnection()
        else:
            self.startReading()
            protocol.makeConnection(self)

    def connectionLost(self: Any, reason: Failure) -> None:
        """Before it was connected: an error that the socket knows. After that, as always."""
        if self.connected or not hasattr(self, "socket"):
            connector = self.connector
            # Who counts ports has to know before they are given back.
            closing = getattr(connector.factory, "connection_closes", None)
            if closing is not None and self.connected:
                closing(self._first_to_close(reason))
            try:
                super().connectionLost(reason)
            finally:
                connector.connectionLost(reason)
                if connector.transport is self:  # not one of a new attempt
                    connector.transport = None
        else:
            number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            known = error.getConnectError((number, os.strerror(number)))
            self.failIfNotConnected(known if number else error.ConnectError(string=str(reason)))

    def _first_to_close(self: Any, reason: Failure) -> str:
        # Any other reason, such as a protocol that has raised, makes us close it as ever.
        if isinstance(reason.value, error.ConnectionLost):
            return "reset"
        return "proxy" if self.ended_first else self._its_end() or "proxy"

    def _its_end(self: Any) -> str:
        """How the other side has ended it, be that read or not; empty: it has not."""
        return "backend" if self.ended else ""

    def _closeWriteConnection(self: Any) -> None:
        """As always; noted, for it may be what keeps the port in TIME_WAIT."""
        self.ended_first = not self._its_end()
        super()._closeWriteConnection()

    @property
    def logstr(self: Any) -> str:
        """The prefix for log events of this connection."""
        named = self.__dict__.get("_named")
        return f"{self._getLogPrefix(named)},client" if named is not None else "Uninitialized"


class TCPClient(_Connecting, Short, tcp.Client):
    """A connection that was opened."""

    _peer: IPv4Address | IPv6Address | None = None

    def __init__(
        self, host: str, port: int, bindAddress: Any, connector: Any, reactor: Any
    ) -> None:
        try:
            known = _literal(host, port)
        except (OSError, OverflowError):
            known = None
        if known is None:
            # A name, or nonsense: the stock transport has it resolved, and then connects or fails.
            super().__init__(host, port, bindAddress, connector, reactor)
            return
        self.addressFamily, self.addr, self._peer = known
        self._addressType = type(self._peer)
        self._requiresResolution = False
        self.realAddress = self.addr
        self.reactor = reactor
        self._tempDataBuffer = []
        self._tempDataLen = 0
        self.protocol = None
        self.connector = connector
        self._connect(self.addressFamily, self.addr)

    def _its_end(self) -> str:
        if self.ended:
            return "backend"
        state: int = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return _ENDED.get(state, "")

    def createInternetSocket(self) -> socket.socket:
        """For the stock way: a socket that will bind late as well."""
        skt: socket.socket = super().createInternetSocket()
        with suppress(OSError):
            skt.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        return skt

    def getPeer(self) -> IPv4Address | IPv6Address:
        """The address that this is connected to."""
        return self._peer if self._peer is not None else super().getPeer()


def bind_late(skt: socket.socket, binding: Any) -> None:
    """Bind to a local address, and to a port only when the destination is known.

    After a plain bind to port 0 the kernel keeps (protocol, address, port) unique, whatever the
    destination; a late one shares each port among destinations (ip(7), IP_BIND_ADDRESS_NO_PORT).

    :param binding: as ``connectTCP`` takes it: an address and a port, a ``tcp.Binding``, or a
        :class:`Source`.
    :raises OSError: the address is not here, or the port is taken.
    """
    if isinstance(binding, Source):
        binding.bind(skt)
        return
    if isinstance(binding, tuple):
        binding = tcp.makeBinding(*binding)
    if binding._reuseAddress:
        skt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if binding._reusePort:
        skt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _bind_late(skt, binding._address, binding._port)


def _bind_late(skt: socket.socket, address: str, port: int) -> None:
    if not port:
        with suppress(OSError):  # Linux before 4.2 binds early.
            skt.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    known = _literal(address, port)
    skt.bind(known[1] if known is not None else (address, port))


@lru_cache(maxsize=4096, typed=True)
def _literal(host: str, port: int) -> tuple[int, Any, IPv4Address | IPv6Address] | None:
    """Family, socket address and Twisted's address for an IP address; None for a name."""
    if isIPAddress(host):
        return socket.AF_INET, (host, port), IPv4Address("TCP", host, port)
    if isIPv6Address(host):
        address = tcp._resolveIPv6(host, port)
        # A link-local address: its scope belongs to its name.
        flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        address = (socket.getnameinfo(address, flags)[0], *address[1:])
        return socket.AF_INET6, address, IPv6Address("TCP", *address)
    return None


class TCPConnector(tcp.Connector):
    """What ``connectTCP`` returns."""

    def __init__(
        self, host: str, port: Any, factory: Any, timeout: Any, bindAddress: Any, reactor: Any
    ) -> None:
        try:
            known = _literal(host, port) if isinstance(port, int) else None
        except (OSError, OverflowError):
            known = None
        if known is None:
            super().__init__(host, port, factory, timeout, bindAddress, reactor)
            return
        # The same without looking at the address again.
        self._addressType = type(known[2])
        self.host, self.port, self.bindAddress = host, port, bindAddress
        BaseConnector.__init__(self, factory, timeout, reactor)

    def _makeTransport(self) -> TCPClient:
        return TCPClient(self.host, self.port, self.bindAddress, self, self.reactor)


class UNIXClient(_Connecting, UNIXShort, unix.Client):
    """A connection that was opened."""

    def __init__(self, filename: Any, connector: Any, reactor: Any, checkPID: int = 0) -> None:
        unix._SendmsgMixin.__init__(self)
        self.reactor = reactor
        self._tempDataBuffer = []
        self._tempDataLen = 0
        self.protocol = None
        self.connector = connector
        self.realAddress = self.addr = path = UNIXAddress(filename).name
        if checkPID and not lockfile.isLocked(path + b".lock"):
            reactor.callLater(0, self.failIfNotConnected, error.BadFileError(path))
        else:
            self._connect(socket.AF_UNIX, path)


class UNIXConnector(unix.Connector):
    """What ``connectUNIX`` returns."""

    bindAddress = None

    def _makeTransport(self) -> UNIXClient:
        return UNIXClient(self.address, self, self.reactor, self.checkPID)
