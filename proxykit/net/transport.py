"""Transports of the proxykit reactor: Twisted's own, with a short way for what happens most.

Each is a subclass of the stock transport and leaves to it whatever is not plain: TLS, producers
that are asked for data, bytes that are buffered, errors. What is short is reading what has come,
sending what can go out at once, opening a connection to an IP address, and closing one that has
nothing left to send.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet import error, main, tcp, unix
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv6Address
from twisted.python.failure import Failure
from zope.interface import implementer

from proxykit.interfaces import IShortcuts
from proxykit.net.splice import Splice

if TYPE_CHECKING:
    from proxykit.net.reactor import ProxykitReactor

_DONE = Failure(error.ConnectionDone())
_RESET = struct.pack("ii", 1, 0)
#: Of one read.
READ_BYTES = 65536


@implementer(IShortcuts)
class Short:
    """Mixed into a stock ``Connection``.

    :ivar splice_out: where its bytes may be spliced to; ``splice_in``: from where to it.
    :ivar waits: what was written in this turn and goes out at its end; ``closes``: whether it is
        closed then.
    :ivar pipe_holds: whether there are bytes in a pipe that have to go out before any others.
    """

    # What each read and each write looks at. CPython finds a slot at once; for an attribute that
    # the stock classes only have a default for it looks through all of them each time.
    __slots__ = ("TLS", "_aborting", "_tempDataBuffer", "_writeDisconnecting", "bufferSize",
                 "closes", "connected", "dataBuffer", "disconnecting", "pipe_holds", "producer",
                 "producerPaused", "protocol", "reactor", "socket", "splice_out",
                 "streamingProducer", "waits")  # fmt: skip

    reactor: ProxykitReactor
    splice_out: Splice | None
    waits: bytes
    #: Whether another descriptor, somebody else's, stands for the same socket.
    adopted = False
    #: Whether the other side has ended.
    ended = False
    splice_in: Splice | None = None

    def __new__(cls, *_args: Any, **_others: Any) -> Any:
        """As the stock classes have it in the beginning, by whichever way it is made."""
        made: Any = super().__new__(cls)
        made.TLS = made._aborting = made._writeDisconnecting = made.closes = False
        made.connected = made.disconnecting = made.producerPaused = False
        made.streamingProducer = made.pipe_holds = False
        made.producer = made.splice_out = None
        made.dataBuffer = made.waits = b""
        made.bufferSize = READ_BYTES
        return made

    def write(self: Any, data: bytes) -> None:
        """Send it at the end of this turn, with whatever else is written until then.

        Not at once: what is sent wakes its reader, and a reader that is woken for each piece takes
        the CPU for each piece. What cannot go out then is left to the stock transport.
        """
        if (
            type(data) is bytes
            # As _nothing_buffered(); this is where most of a proxy's calls go.
            and not self.waits
            and not self.dataBuffer
            and not self._tempDataBuffer
            and not self.pipe_holds
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
            self.waits = data
            self.reactor.sending.append(self)
        elif self.waits and type(data) is bytes and len(self.waits) + len(data) < self.bufferSize:
            self.waits += data
        else:
            self.flush()
            super().write(data)

    def flush(self: Any) -> None:
        """Send what waits for the end of the turn."""
        data = self.waits
        if not data:
            return
        self.waits = b""
        if self._aborting:
            return
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.lose()
            return
        if sent != len(data):
            super().write(data[sent:])

    def startTLS(self: Any, *args: Any) -> None:
        """As always, behind what was written before."""
        self.flush()
        super().startTLS(*args)

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
            and not self.pipe_holds
            and self.connected
            and not self.TLS
            and not self._aborting
            and (self.producer is None or (self.streamingProducer and not self.producerPaused))
        )

    def doRead(self: Any) -> object:
        """Read what has come, once."""
        if self.disconnecting:
            return None
        splice = self.splice_out
        if splice is not None:
            return self._read_or_splice(splice)
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

    def _read_or_splice(self: Any, splice: Splice) -> object:
        moved, why = splice.move()
        if moved:
            return why
        size = self.bufferSize if splice.left is None else min(self.bufferSize, splice.left)
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        splice.copied(len(data), len(data) == self.bufferSize)
        self.protocol.dataReceived(data)
        return None

    def doWrite(self: Any) -> object:
        """Send what is in a pipe, then what is buffered."""
        if self.pipe_holds:
            why = self.splice_in.drain()
            if why is not None or self.pipe_holds:
                return why
        return super().doWrite()

    def splice_to(self: Any, sink: Any, limit: int | None, moved: Callable[[int], object]) -> bool:
        """See ``IShortcuts.splice_to``."""
        if self.splice_out is not None:
            self.splice_out.stop()
        if not isinstance(sink, Short) or self.TLS or sink.TLS or limit == 0:
            return False
        self.splice_out = sink.splice_in = Splice(self, sink, self.reactor.pipes, limit, moved)
        return True

    def takes_bytes(self: Any) -> bool:
        """Whether something may be spliced to it now."""
        self.flush()
        return self._nothing_buffered() and not self.disconnecting and not self._writeDisconnecting

    def peek(self: Any, size: int) -> bytes:
        """See ``IShortcuts.peek``."""
        try:
            return self.socket.recv(size, socket.MSG_PEEK)
        except BlockingIOError:
            return b""

    def consume(self: Any, size: int) -> None:
        """See ``IShortcuts.consume``."""
        while size > 0:
            taken = len(self.socket.recv(size))
            if not taken:
                raise ConnectionResetError(errno.ECONNRESET, "what was shown is gone")
            size -= taken

    def look(self: Any, seen: Callable[[bytes], object] | None, size: int = 0) -> None:
        """See ``IShortcuts.look``."""
        if seen is None:
            self.__dict__.pop("doRead", None)
        else:
            self.doRead = partial(self._look, seen, size)

    def _look(self: Any, seen: Callable[[bytes], object], size: int) -> object:
        if self.disconnecting:
            return None
        try:
            data = self.socket.recv(size, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        seen(data)
        return None

    def switch(self: Any, protocol: Any) -> None:
        """See ``IShortcuts.switch``."""
        self.protocol = self._named = protocol

    def lose(self: Any) -> None:
        """The kernel has reported an error, and will not do so again."""
        self.reactor.at_end_of_turn(self._lost)

    def _lost(self: Any) -> None:
        if self.connected and not self._aborting:
            # What had come before the error is still there: a server that refuses a long request
            # answers, and closes in the middle of it.
            self.doRead()
        if self.connected and not self._aborting and not self.disconnecting:
            self.reactor._disconnectSelectable(self, main.CONNECTION_LOST, False)

    def registerProducer(self: Any, producer: Any, streaming: bool) -> None:
        """As always; one that has to be asked for data is asked although nothing is buffered."""
        if streaming and self.connected and self.producer is None and not self.TLS:
            self.producer, self.streamingProducer = producer, True
            return
        super().registerProducer(producer, streaming)
        if not streaming and self.connected and not self.TLS:
            self.startWriting()

    def unregisterProducer(self: Any) -> None:
        """As always; what is closed at the end of this turn need not wait for an event first."""
        if self.closes:
            self.producer = None
        else:
            super().unregisterProducer()

    def loseConnection(self: Any) -> None:
        """Close, at the end of this turn, what has nothing left to send."""
        self.flush()
        if self._nothing_buffered() and not self.disconnecting:
            self.disconnecting = self.closes = True
            self.reactor.at_end_of_turn(self._close)
        else:
            super().loseConnection()

    def _close(self: Any) -> None:
        if not self.connected or self._aborting:
            return
        self.closes = False
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
        self.flush()
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
        skt = getattr(self, "socket", None)
        if skt is None:
            return  # It is gone already: somebody aborted it, and then raised.
        if self.waits:
            if reason.check(error.ConnectionDone):
                self.flush()
            self.waits = b""
        self.reactor.forget(self, skt.fileno())
        self.disconnected, self.connected = 1, 0
        if self.splice_out is not None:
            self.splice_out.stop()
        if self.splice_in is not None:
            self.splice_in.stop()
        if self.producer is not None:
            self.producer.stopProducing()
            self.producer = None
        self._closeSocket(not isinstance(reason.value, error.ConnectionAborted))
        protocol = self.protocol
        # No circles: nothing of a connection that is over waits for the garbage collector.
        del self.protocol, self.socket, self.fileno
        self.look(None)
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


def _adopted(transport: Any) -> Any:
    """Note that the descriptor is a copy, and that closing it will not close the connection."""
    if transport is not None:
        transport.adopted = True
    return transport


class UNIXShort(Short):
    """A unix socket may carry descriptors beside its bytes."""

    def write(self: Any, data: bytes) -> None:
        """As any other, unless descriptors wait to go with these bytes."""
        if self._sendmsgQueue:
            FileDescriptor.write(self, data)
        else:
            super().write(data)

    def sendFileDescriptor(self: Any, descriptor: int) -> None:
        """As always, behind what was written before."""
        self.flush()
        super().sendFileDescriptor(descriptor)

    def _nothing_buffered(self: Any) -> bool:
        return not self._sendmsgQueue and super()._nothing_buffered()

    def doRead(self: Any) -> object:
        """Read what has come, once, and look for descriptors, unless it may be spliced."""
        if self.splice_out is not None and not self.disconnecting:
            return self._read_or_splice(self.splice_out)
        return unix._SendmsgMixin.doRead(self)


class UNIXServer(UNIXShort, unix.Server):
    """A connection that was accepted."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._named = self.protocol

    @classmethod
    def _fromConnectedSocket(cls, *args: Any) -> Any:
        return _adopted(super()._fromConnectedSocket(*args))
