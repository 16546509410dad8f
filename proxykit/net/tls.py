"""TLS over any transport: OpenSSL between two buffers in memory, for both ends, on every reactor.

:class:`Tls` is a protocol to the transport below and a transport to the protocol above, so neither
knows of the other. What was read before TLS began is fed in like anything else.

The end of a side is its close_notify (RFC 8446 section 6.1), which leaves the other side as it is:
a half-close, as on a plain socket. A connection that ends without one is told as lost, never as
done: what has come of it may not be the whole.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    INegotiated,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from proxykit.interfaces import IHalfCloses
from proxykit.net.relay import give

#: Bytes of one record, at the most (RFC 8446 section 5.1): what one read from OpenSSL gives.
RECORD = 16384


class Truncated(ConnectionLost):
    """It has ended without a close_notify."""


class Broken(ConnectionLost):
    """What came is not TLS, or not this connection's."""


#: Told of a handshake that is done, or of why there will be none.
Ready = Callable[["Tls"], object]
Failed = Callable[["Tls", BaseException], object]


@implementer(ITCPTransport, ISSLTransport, IHalfCloses, INegotiated, IHalfCloseableProtocol)
class Tls(Protocol):
    """See this module. It shakes hands first; then ``ready`` calls :meth:`serve`.

    :param context: whose side it is on is ``server``.
    :param ready: called once the handshake is done.
    :param failed: called in its place, once; the transport is being closed then.
    :param name: a client's: the server's name, to be sent in the hello (SNI).
    :param session: a client's: one of an earlier connection, to be resumed.
    :ivar raw: the transport below.
    :ivar protocol: the protocol above; None before the handshake is done.
    """

    __slots__ = ("_closing", "_handshaking", "_incoming", "_outgoing", "_producing", "_read_ended",
                 "_ssl", "_write_ended", "disconnecting", "protocol", "raw")  # fmt: skip

    raw: Any
    protocol: Any

    def __init__(
        self,
        context: ssl.SSLContext,
        server: bool,
        ready: Ready,
        failed: Failed,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server, name, session)
        self._ready: Ready | None = ready
        self._failed: Failed | None = failed
        self.raw = self.protocol = None
        self._handshaking = True
        #: Whether the other side has sent its end; whether this one has.
        self._read_ended = self._write_ended = False
        self._producing = self._closing = self.disconnecting = False
        #: Whose connection it is, where a listener has accepted it.
        self.info: Any = None
        self._problem: ConnectionLost | None = None

    # As the protocol of the transport below.

    def makeConnection(self, transport: Any) -> None:
        """It has a transport."""
        self.raw = self.transport = transport
        self.connected = 1
        if not self._ssl.server_side:
            self._shake_hands()  # A server has nothing to say before the hello.

    def dataReceived(self, data: bytes) -> None:
        """Records, or parts of them."""
        if self._read_ended:
            return  # RFC 8446 section 6.1: what is behind the end is ignored.
        self._incoming.write(data)
        if self._handshaking:
            self._shake_hands()
        if self.protocol is not None and not self._read_ended:
            self._read()

    def _shake_hands(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except (ssl.SSLError, ssl.CertificateError) as problem:
            self._flush()  # What is there to be said is an alert.
            self._give_up(problem)
            self.raw.loseConnection()
            return
        self._handshaking = False
        self._flush()
        ready, self._ready, self._failed = self._ready, None, None
        assert ready is not None
        ready(self)

    def _give_up(self, problem: BaseException) -> None:
        failed, self._ready, self._failed = self._failed, None, None
        if failed is not None:
            failed(self, problem.with_traceback(None))  # It refers to this.

    def serve(self, protocol: Any) -> None:
        """From now on this protocol has the connection."""
        self.protocol = protocol
        protocol.makeConnection(self)

    def _read(self) -> None:
        """Hand on all that can be read."""
        read, incoming = self._ssl.read, self._incoming
        parts: list[bytes] = []
        ended = False
        broken = ""
        try:
            data = read(RECORD)
            while data and incoming.pending:
                parts.append(data)
                data = b""
                data = read(RECORD)
            ended = not data
        except ssl.SSLWantReadError:
            data = b""
        except ssl.SSLZeroReturnError:
            data, ended = b"", True
        except ssl.SSLError as problem:
            data, broken = b"", problem.reason or str(problem)
        if self._outgoing.pending:
            self._flush()
        if parts:
            parts.append(data)
            data = b"".join(parts)
        if data:
            self.protocol.dataReceived(data)
        if self._read_ended:
            return  # It has been aborted meanwhile.
        if broken:
            self._lose(Broken(broken))
        elif ended:
            self._end_reading()

    def _end_reading(self) -> None:
        self._read_ended = True
        protocol = self.protocol
        if protocol is None:
            return
        if IHalfCloseableProtocol.providedBy(protocol):
            protocol.readConnectionLost()
        else:
            self.loseConnection()

    def readConnectionLost(self) -> None:
        """The transport's other side has ended."""
        if self._handshaking:
            self._give_up(Truncated("it ended in the middle of the handshake"))
            self.raw.loseConnection()
        elif not self._read_ended:
            self._lose(Truncated("it ended without a close_notify"))

    def writeConnectionLost(self) -> None:
        """The end of this side has gone out."""
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.writeConnectionLost()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The transport is gone."""
        self._give_up(reason.value or ConnectionLost())
        protocol, self.protocol = self.protocol, None
        self._handshaking = False
        self._write_ended = self._read_ended = True
        if protocol is not None:
            protocol.connectionLost(Failure(self._problem) if self._problem else reason)

    def _lose(self, problem: ConnectionLost) -> None:
        """It cannot go on; whom it belongs to is told why, once it is closed."""
        self._problem = problem
        self._write_ended = self._read_ended = True
        self.raw.abortConnection()

    # As the transport of the protocol above.

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self.raw.write(data)

    def write(self, data: bytes) -> None:
        """See ``ITransport.write``."""
        if self._write_ended or not data:
            return
        self._ssl.write(data)
        self.raw.write(self._outgoing.read())

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """See ``ITransport.writeSequence``."""
        self.write(b"".join(iovec))

    def _notify(self) -> None:
        """Send the end."""
        if self._write_ended or self._handshaking:
            return
        self._write_ended = True
        # It would like to read the other side's as well, and throws away what comes before that.
        early = self._incoming.read()
        with suppress(ssl.SSLError):
            self._ssl.unwrap()
        self._incoming.write(early)
        self._flush()

    def loseConnection(self) -> None:
        """See ``ITransport.loseConnection``."""
        self.disconnecting = True
        if self._producing:
            self._closing = True  # when the producer is done
            return
        self._notify()
        self.raw.loseConnection()

    def loseWriteConnection(self) -> None:
        """See ``ITCPTransport.loseWriteConnection``."""
        self._notify()
        self.raw.loseWriteConnection()

    def abortConnection(self) -> None:
        """See ``ITCPTransport.abortConnection``."""
        self._write_ended = self._read_ended = self.disconnecting = True
        self.raw.abortConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See ``IConsumer.registerProducer``."""
        self._producing = True
        self.raw.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """See ``IConsumer.unregisterProducer``."""
        self._producing = False
        self.raw.unregisterProducer()
        if self._closing:
            self._closing = False
            self.loseConnection()

    def pauseProducing(self) -> None:
        """See ``IPushProducer.pauseProducing``."""
        self.raw.pauseProducing()

    def resumeProducing(self) -> None:
        """See ``IPushProducer.resumeProducing``."""
        self.raw.resumeProducing()

    def stopProducing(self) -> None:
        """See ``IProducer.stopProducing``."""
        self.loseConnection()

    def getPeer(self) -> Any:
        """See ``ITransport.getPeer``."""
        return self.raw.getPeer()

    def getHost(self) -> Any:
        """See ``ITransport.getHost``."""
        return self.raw.getHost()

    def getHandle(self) -> Any:
        """The socket."""
        return self.raw.getHandle()

    def getTcpNoDelay(self) -> Any:
        """See ``ITCPTransport.getTcpNoDelay``."""
        return self.raw.getTcpNoDelay()

    def setTcpNoDelay(self, enabled: bool) -> None:
        """See ``ITCPTransport.setTcpNoDelay``."""
        self.raw.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> Any:
        """See ``ITCPTransport.getTcpKeepAlive``."""
        return self.raw.getTcpKeepAlive()

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """See ``ITCPTransport.setTcpKeepAlive``."""
        self.raw.setTcpKeepAlive(enabled)

    # What TLS knows.

    def getPeerCertificate(self) -> bytes | None:
        """The other side's certificate, as DER; None: it has sent none."""
        return self._ssl.getpeercert(True)

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol that both sides agreed on (ALPN)."""
        chosen = self._ssl.selected_alpn_protocol()
        return None if chosen is None else chosen.encode("ascii")

    @property
    def ssl(self) -> ssl.SSLObject:
        """OpenSSL's view: version, cipher, session."""
        return self._ssl


def start(
    transport: Any,
    context: ssl.SSLContext,
    server: bool,
    ready: Ready,
    failed: Failed,
    received: bytes = b"",
) -> Tls:
    """Begin to speak TLS on a transport that somebody has already.

    :param received: what has been read from it, and belongs to TLS.
    """
    tls = Tls(context, server, ready, failed)
    give(transport, tls)
    tls.makeConnection(transport)
    if received:
        tls.dataReceived(received)
    return tls
