"""Transports of the proxykit reactor: Twisted's own, with a short way for what happens most.

Each is a subclass of the stock transport and leaves to it whatever is not plain: TLS, producers
that are asked for data, bytes that are buffered, errors. What is short is reading what has come,
sending what can go out at once, opening a connection to an IP address, and closing one that has
nothing left to send.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from errno import EINPROGRESS
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from twisted.internet import error, main, tcp, unix
from twisted.internet.abstract import FileDescriptor, isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.protocol import Protocol
from twisted.python import lockfile
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from proxykit.net.reactor import ProxykitReactor

_DONE = Failure(error.ConnectionDone())
_RESET = struct.pack("ii", 1, 0)
#: linux/in.h: leave the choice of a port to connect(), which knows the destination.
IP_BIND_ADDRESS_NO_PORT = 24


class Short:
    """Mixed into a stock ``Connection``."""

    reactor: ProxykitReactor
    #: Whether another descriptor, somebody else's, stands for the same socket.
    adopted = False

    def write(self: Any, data: bytes) -> None:
        """Send at once what can go out at once, and leave the rest to the stock transport."""
        if (
            # As _nothing_buffered(); this is where most of a proxy's calls go.
            not self.dataBuffer
            and not self._tempDataBuffer
            and self.connected
            and not self.TLS
            and not self._aborting
            and not self.disconnecting
            and not self._writeDisconnecting
            # A producer expects to be paused by more than that.
            and (
                self.producer is None
                or (
                    self.streamingProducer
                    and not self.producerPaused
                    and len(data) <= self.bufferSize
                )
            )
        ):
            try:
                sent = self.socket.send(data)
            except (BlockingIOError, TypeError):
                pass  # The stock way finds the same, and knows what to do about it.
            except OSError:
                # It will not be reported again: the kernel has told.
                self.reactor.at_end_of_turn(self._lost)
                return
            else:
                if sent == len(data):
                    return
                data = data[sent:]
        super().write(data)

    def writeSequence(self: Any, iovec: Any) -> None:
        """As one piece: one call to the kernel instead of several."""
        try:
            data = b"".join(iovec)
        except TypeError:
            super().writeSequence(iovec)  # It says what is wrong.
        else:
            self.write(data)

    def _nothing_buffered(self: Any) -> bool:
        """Whether nothing need wait for the stock transport's buffers: there is nothing in them,
        and nobody has to be asked for more when they are empty."""
        return (
            not self.dataBuffer
            and not self._tempDataBuffer
            and self.connected
            and not self.TLS
            and not self._aborting
            and (self.producer is None or (self.streamingProducer and not self.producerPaused))
        )

    def doRead(self: Any) -> object:
        """Read what has come, once."""
        if self.disconnecting:
            return None
        try:
            data = self.socket.recv(self.bufferSize)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def _lost(self: Any) -> None:
        if self.connected and not self._aborting:
            self.reactor._disconnectSelectable(self, main.CONNECTION_LOST, False)

    def registerProducer(self: Any, producer: Any, streaming: bool) -> None:
        """As always; one that has to be asked for data is asked although nothing is buffered."""
        if streaming and self.connected and self.producer is None and not self.TLS:
            self.producer, self.streamingProducer = producer, True
            return
        super().registerProducer(producer, streaming)
        if not streaming and self.connected and not self.TLS:
            self.startWriting()

    def loseConnection(self: Any) -> None:
        """Close, at the end of this turn, what has nothing left to send."""
        if self._nothing_buffered() and not self.disconnecting:
            self.disconnecting = True
            self.reactor.at_end_of_turn(self._close)
        else:
            super().loseConnection()

    def _close(self: Any) -> None:
        if not self.connected or self._aborting:
            return
        if self.dataBuffer or self._tempDataBuffer:
            # Something was written after all; the stock transport closes when that has gone.
            self.stopReading()
            self.startWriting()
        else:
            self.connectionLost(_DONE)

    def loseWriteConnection(self: Any) -> None:
        """Send the end, at the end of this turn, if there is nothing else to be sent."""
        if self._writeDisconnecting:
            return
        if self._nothing_buffered() and not self.disconnecting:
            self._writeDisconnecting = True
            self.reactor.at_end_of_turn(self._end_writing)
        else:
            super().loseWriteConnection()

    def _end_writing(self: Any) -> None:
        if not self.connected or self._aborting or self.disconnecting:
            return
        if self.dataBuffer or self._tempDataBuffer:
            self.startWriting()
        else:
            self._writeDisconnected = True
            self._closeWriteConnection()

    def connectionLost(self: Any, reason: Failure) -> None:
        """Close the socket, then tell the protocol."""
        skt = self.__dict__.get("socket")
        if skt is None:
            return  # It is gone already: somebody aborted it, and then raised.
        self.reactor.forget(self, skt.fileno())
        self.disconnected, self.connected = 1, 0
        if self.producer is not None:
            self.producer.stopProducing()
            self.producer = None
        self._closeSocket(not isinstance(reason.value, error.ConnectionAborted))
        protocol = self.protocol
        # No circles: nothing of a connection that is over waits for the garbage collector.
        del self.protocol, self.socket, self.fileno
        self._named = None
        protocol.connectionLost(reason)

    def _closeSocket(self: Any, orderly: bool) -> None:
        """As the stock one, which also shuts down what nobody else can hold."""
        with suppress(OSError):
            if not orderly:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            elif self.adopted:
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


class TCPServer(Short, tcp.Server):
    """A connection that was accepted."""

    _repstr = ""

    def __init__(
        self, skt: Any, protocol: Any, client: Any, server: Any, number: int, reactor: Any
    ) -> None:
        # What tcp.Server.__init__ does, without putting together names that nobody may ask for.
        self.reactor = reactor
        self._tempDataBuffer = []
        self._tempDataLen = 0
        skt.setblocking(False)
        self.socket = skt
        self.fileno = skt.fileno
        self.protocol = protocol
        if len(client) != 2:
            self._addressType = IPv6Address
        self.server = server
        self.client = client
        self.sessionno = number
        self.hostname = client[0]
        self._named = protocol
        self.startReading()
        self.connected = 1

    @property
    def logstr(self) -> str:
        """The prefix for log events of this connection."""
        return f"{self._getLogPrefix(self._named)},{self.sessionno},{self.hostname}"

    @property
    def repstr(self) -> str:
        """What ``repr`` gives."""
        if self._repstr:
            return self._repstr
        return (
            f"<{self._named.__class__.__name__} #{self.sessionno} on {self.server._realPortNumber}>"
        )

    @repstr.setter
    def repstr(self, text: str) -> None:
        self._repstr = text

    @classmethod
    def _fromConnectedSocket(cls, *args: Any) -> Any:
        return _adopted(super()._fromConnectedSocket(*args))


class _Connecting:
    """Mixed into a stock ``BaseClient``: its way from a socket to a connection."""

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
        if self.connected or "socket" not in self.__dict__:
            connector = self.connector
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

    @property
    def logstr(self: Any) -> str:
        """The prefix for log events of this connection."""
        named = self.__dict__.get("_named")
        return f"{self._getLogPrefix(named)},client" if named is not None else "Uninitialized"


class TCPClient(_Connecting, Short, tcp.Client):
    """A connection that was opened."""

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

    def createInternetSocket(self) -> socket.socket:
        """For the stock way: a socket that will bind late as well."""
        skt: socket.socket = super().createInternetSocket()
        with suppress(OSError):
            skt.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        return skt

    def getPeer(self) -> IPv4Address | IPv6Address:
        """The address that this is connected to."""
        peer = self.__dict__.get("_peer")
        return peer if peer is not None else super().getPeer()


def bind_late(skt: socket.socket, binding: Any) -> None:
    """Bind to a local address, and to a port only when the destination is known.

    After a plain bind to port 0 the kernel keeps (protocol, address, port) unique, whatever the
    destination; a late one shares each port among destinations (ip(7), IP_BIND_ADDRESS_NO_PORT).

    :param binding: as ``connectTCP`` takes it: an address and a port, or a ``tcp.Binding``.
    :raises OSError: the address is not here, or the port is taken.
    """
    if isinstance(binding, tuple):
        binding = tcp.makeBinding(*binding)
    if binding._reuseAddress:
        skt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if binding._reusePort:
        skt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if not binding._port:
        with suppress(OSError):  # Linux before 4.2 binds early.
            skt.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    known = _literal(binding._address, binding._port)
    skt.bind(known[1] if known is not None else (binding._address, binding._port))


@lru_cache(maxsize=4096)
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

    def _makeTransport(self) -> TCPClient:
        return TCPClient(self.host, self.port, self.bindAddress, self, self.reactor)


def _adopted(transport: Any) -> Any:
    """Note that the descriptor is a copy, and that closing it will not close the connection."""
    if transport is not None:
        transport.adopted = True
    return transport


class _UNIXShort(Short):
    """A unix socket may carry descriptors beside its bytes."""

    def write(self: Any, data: bytes) -> None:
        """As any other, unless descriptors wait to go with these bytes."""
        if self._sendmsgQueue:
            FileDescriptor.write(self, data)
        else:
            super().write(data)

    def _nothing_buffered(self: Any) -> bool:
        return not self._sendmsgQueue and super()._nothing_buffered()

    doRead = unix._SendmsgMixin.doRead  # It looks for descriptors.


class UNIXServer(_UNIXShort, unix.Server):
    """A connection that was accepted."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._named = self.protocol

    @classmethod
    def _fromConnectedSocket(cls, *args: Any) -> Any:
        return _adopted(super()._fromConnectedSocket(*args))


class UNIXClient(_Connecting, _UNIXShort, unix.Client):
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
