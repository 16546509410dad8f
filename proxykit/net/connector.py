"""One attempt: a lease, a socket, a connection, the choice's protocol; or a ``ProxyError``.

Nothing is tried twice here: that is flow's to decide.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectBindError, ConnectError, ConnectionDone
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.logger import Logger
from zope.interface import implementer

from proxykit.core.budget import Use
from proxykit.core.waiting import Full
from proxykit.errors import (
    NOT_HERE,
    OUT_OF_DESCRIPTORS,
    OUT_OF_PORTS,
    ProxyError,
    Retry,
    Side,
    refusal,
)
from proxykit.interfaces import IConnector
from proxykit.net.clients import Source
from proxykit.net.lost import guard_making, unhook_lost, when_lost, when_made
from proxykit.net.terminate import reason_of
from proxykit.net.tls_client import TlsClient, WrongCertificate

if TYPE_CHECKING:
    from twisted.internet.interfaces import IConnector as ITwistedConnector
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from proxykit.core.accountant import Lease
    from proxykit.core.choice import Attempt
    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.interfaces import IAccountant
    from proxykit.model import ClusterTls, PortRange
    from proxykit.net.tls import Tls

_log = Logger()
#: What a client is told of the errors that it may want to tell apart (RFC 9209 section 2.3).
_KINDS = {
    errno.ECONNREFUSED: "connection_refused",
    errno.ECONNRESET: "connection_terminated",
    errno.ETIMEDOUT: "connection_timeout",
    errno.EHOSTUNREACH: "destination_ip_unroutable",
    errno.ENETUNREACH: "destination_ip_unroutable",
}
#: What has nothing to do with the address that a connection was to leave from.
_FROM_ANYWHERE = (errno.ECONNREFUSED, *OUT_OF_PORTS, *OUT_OF_DESCRIPTORS)


@implementer(IConnector)
class Connector:
    """Makes new sockets. See ``IConnector``.

    :param reactor: connects them: an ``IReactorTCP`` and ``IReactorUNIX``.
    :param accountant: leases the ports for them.
    :param deadlines: keeps the connect timeouts.
    :ivar ports: the source ports to use; None: all that the kernel picks from. Only the proxykit
        reactor can do with less.
    """

    def __init__(self, reactor: Any, accountant: IAccountant, deadlines: Deadlines) -> None:
        self.ports: PortRange | None = None
        #: All ports there are, where it makes finding one faster to say so (core/remedies.py).
        self.whole: PortRange | None = None
        self._reactor = reactor
        self._late = getattr(reactor, "binds_late", False)
        self._accountant = accountant
        self._tls: dict[ClusterTls, TlsClient] = {}
        self._deadlines = deadlines
        # Ours ends the connection of a protocol that raises when it is made.
        self._native = getattr(reactor, "guards_making", False)

    def tls(self, settings: ClusterTls) -> TlsClient:
        """TLS as these settings have it; its sessions are shared by all who have the same.

        :raises ValueError: a file cannot be read.
        """
        client = self._tls.get(settings)
        if client is None:
            client = self._tls[settings] = TlsClient(settings)
        return client

    def have_tls(self, clients: dict[ClusterTls, TlsClient]) -> None:
        """From now on these, made of files that have just been read."""
        self._tls = clients

    def _source(self, lease: Lease) -> Source | tuple[str, int] | None:
        """What ``connectTCP`` is told of where a connection is to leave from."""
        address, ports = lease.source, self.ports
        if ports is None and self.whole is not None and lease.scarce:
            ports = self.whole
        if self._late and (address or ports):
            return Source(address, ports)
        return (address, 0) if address else None

    def attempt(self, attempt: Attempt) -> bool | Full:
        """See ``IConnector.attempt``: takes a lease and begins to connect."""
        lease = self._accountant.lease(attempt.backend)
        return lease if isinstance(lease, Full) else self._begin(attempt, lease)

    def check(self, attempt: Attempt) -> bool | Full:
        """The same for a connection that carries no traffic: ``max_connections`` is no matter."""
        lease = self._accountant.lease(attempt.backend, beyond=True)
        return lease if isinstance(lease, Full) else self._begin(attempt, lease)

    def _begin(self, attempt: Attempt, lease: Lease) -> bool:
        backend = attempt.backend
        settings = backend.cluster.config.tls
        try:
            tls = None if settings is None else self.tls(settings)
        except ValueError as problem:
            lease.release()
            why = f"TLS to {backend.address}: {problem}"
            raise refusal(why, 500, "proxy_internal_error") from None
        connecting = attempt.handle = _Connecting(attempt, lease, self._native, tls)
        timeout = backend.cluster.config.connect_timeout
        connecting.deadline = self._deadlines.add(timeout, connecting.too_late)
        connecting.clock = self._deadlines.clock
        # The reactor's own timeout (its last argument) would be a timer for each connection.
        host, port = backend.address.host, backend.address.port
        try:
            if backend.address.is_unix:
                connecting.connector = self._reactor.connectUNIX(host, connecting, None)
            else:
                source = self._source(lease)
                leave_from = () if source is None else (source,)
                connecting.connector = self._reactor.connectTCP(
                    host, port, connecting, None, *leave_from
                )
                connecting.name()
        except BaseException as problem:
            connecting.maybe_denied(problem)
            connecting.over()
            if isinstance(problem, OSError):
                raise connecting.error(problem) from problem
            raise
        return connecting.begun()

    def cancel(self, attempt: Attempt) -> None:
        """See ``IConnector.cancel``: the socket is closed and the lease given back."""
        attempt.handle.stop()


class _Connecting(ClientFactory):
    """One connection, from its connect to its end, as Twisted tells of it."""

    noisy = False
    connector: ITwistedConnector | None = None
    deadline: Deadline
    clock: IReactorTime

    def __init__(self, attempt: Attempt, lease: Lease, native: bool, tls: TlsClient | None) -> None:
        #: Whose it is, until it is ready for use or has failed.
        self._attempt: Attempt | None = attempt
        self._backend = attempt.backend
        self._lease = lease
        self._native = native
        self._tls = tls
        #: What went wrong in a handshake.
        self._problem: BaseException | None = None
        self._protocol: Any = None
        self._late = False
        self._begun = False
        self._failed: ProxyError | None = None

    def name(self) -> None:
        """Note the port that the kernel has picked, if it has by now."""
        skt = getattr(getattr(self.connector, "transport", None), "socket", None)
        if skt is not None and not self._lease.port:
            with suppress(OSError):  # It is lost already, and says so itself.
                port = skt.getsockname()[1]
                if port:
                    self._lease.named(port)

    def doStart(self) -> None:
        """There is one connection, and nothing to start for it."""

    def doStop(self) -> None:
        """Nor to stop."""

    def begun(self) -> bool:
        """The reactor has begun to connect.

        :raises ProxyError: it has failed by then; a reactor may, though Twisted's do not.
        """
        self._begun = True
        if self._failed is not None:
            raise self._failed
        return False

    def over(self) -> None:
        """There is no socket."""
        self.deadline.cancel()
        if self._lease.use is not Use.RELEASED:  # A pool does that by itself.
            self._lease.release()

    def stop(self) -> None:
        """Nobody wants it any more, whatever comes of it."""
        self._attempt = None
        if self.connector is not None:
            self.connector.disconnect()

    def too_late(self) -> None:
        """The connect timeout has passed."""
        self._late = True
        if self._protocol is not None:
            # Connected, but not ready: what it was to send may never get away.
            self._protocol.transport.abortConnection()
        elif self.connector is not None:
            self.connector.disconnect()

    def buildProtocol(self, addr: Any) -> Any:
        """It is connected, and ready for use when the protocol says so."""
        attempt = self._attempt
        assert attempt is not None, "stop() has ended the socket, so it cannot have connected"
        attempt.lease = self._lease
        introduction = b""
        try:
            introduction = attempt.introduction
            if self._tls is None:
                attempt.ready = self._ready
                protocol: Any = attempt.protocol()
            else:
                protocol = self._tls.begin(self._backend.config, self._secured, self._not_secured)
        except Exception as bug:
            protocol = self._nobody(bug)
        self._protocol = protocol
        self._lease.connected()
        if not (self._lease.port or self._backend.address.is_unix):
            self.name()
        when_lost(protocol, self._lost)
        if introduction:
            when_made(protocol, partial(_introduce, introduction))
        if not self._native:
            guard_making(protocol)
        return protocol

    def _nobody(self, bug: Exception) -> _Nobody:
        """There is no protocol for it."""
        _log.failure("{backend}: no protocol", backend=self._backend.address)
        why = f"{self._backend.address}: {bug!r} for a protocol"
        self._failed = refusal(why, 500, "proxy_internal_error")
        return _Nobody()

    def _secured(self, tls: Tls) -> None:
        """The handshake is done, and it is the right backend."""
        attempt = self._attempt
        if attempt is None:
            tls.abortConnection()  # Nobody wants it any more.
            return
        attempt.ready = self._ready
        try:
            protocol: Any = attempt.protocol()
        except Exception as bug:
            protocol = self._nobody(bug)
        self._protocol = protocol
        unhook_lost(tls)
        when_lost(protocol, self._lost)
        if self._tls is not None:
            when_lost(protocol, self._tls.keep_session, self._backend.config, tls)
        tls.serve(protocol)

    def _not_secured(self, tls: Tls, problem: BaseException) -> None:
        if not isinstance(problem, ConnectionDone):
            self._problem = problem

    def _ready(self) -> None:
        self.deadline.cancel()
        # They refer to this, as does the attempt, and there is nothing left to be stopped.
        self.connector = self._protocol = None
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.ready = None
            attempt.connected(self.clock.seconds() - self.deadline.since)

    def _lost(self) -> None:
        self.over()
        problem, self._problem = self._problem, None
        if problem is not None and not self._late:
            self._settle(lambda: self._tls_error(problem))
        else:
            self._settle(lambda: self.error("it closed the connection before it was ready"))

    def _tls_error(self, problem: BaseException) -> ProxyError:
        why = reason_of(problem)
        kind = "tls_alert_received" if " alert " in why else "tls_protocol_error"
        if isinstance(problem, WrongCertificate | ssl.SSLCertVerificationError):
            kind = "tls_certificate_error"
        return ProxyError(
            f"TLS to {self._backend.address} failed: {why}",
            side=Side.UPSTREAM,
            retry=Retry.ALWAYS,
            status=502,
            kind=kind,
        )

    def clientConnectionFailed(self, connector: ITwistedConnector, reason: Failure) -> None:
        """It is not connected, and its socket is closed."""
        self.maybe_denied(reason.value)
        if self._attempt is not None and _number(reason.value) not in _FROM_ANYWHERE:
            self._lease.failed()
        self.over()
        self._settle(lambda: self.error(reason.value))

    def maybe_denied(self, cause: object) -> None:
        """Tell the accountant where the kernel has no port."""
        if _number(cause) in OUT_OF_PORTS and not self._late:
            self._lease.denied(self.error(cause).message)

    def connection_closes(self, by: str) -> None:
        """The reactor's word on who is the first to close it, as ``Lease.closed_by`` has it."""
        if self._lease.use is not Use.RELEASED:
            self._lease.closed_by = by

    def _settle(self, error: Callable[[], ProxyError]) -> None:
        """It has failed, if it is still anybody's."""
        attempt, self._attempt = self._attempt, None
        self.connector = self._protocol = None
        if not self._begun:
            self._failed = error()
        elif attempt is not None:
            attempt.ready = None
            attempt.failed(self._failed or error())

    def error(self, cause: object) -> ProxyError:
        """What went wrong, in one line."""
        address = self._backend.address
        if self._late:
            timeout = self._backend.cluster.config.connect_timeout
            message = f"connect to {address} timed out after {timeout:g} s"
            return ProxyError(
                message,
                side=Side.UPSTREAM,
                retry=Retry.ALWAYS,
                status=504,
                kind="connection_timeout",
            )
        number = _number(cause)
        text = str(cause).partition("\n")[0] or repr(cause)
        why = os.strerror(number) if isinstance(number, int) else text
        source = self._lease.source
        leaving = f"from {source} " if source else ""
        message = f"connect {leaving}to {address} failed: {why}"
        if number in OUT_OF_PORTS:
            message = f"the kernel has no source port left {self._lease.way}"
            if source and isinstance(cause, ConnectBindError) and number == errno.EADDRNOTAVAIL:
                message = f"{source} {NOT_HERE}"
            return ProxyError(
                message,
                side=Side.PROXY,
                retry=Retry.OTHER_PORT,
                status=503,
                kind="connection_limit_reached",
            )
        if number in OUT_OF_DESCRIPTORS:
            return refusal(message)  # Every other backend would need one as well.
        kind = _KINDS.get(number or 0, "destination_unavailable")
        return ProxyError(message, side=Side.UPSTREAM, retry=Retry.ALWAYS, status=502, kind=kind)


def _number(cause: object) -> int | None:
    """What the kernel calls it."""
    if isinstance(cause, OSError):
        return cause.errno
    return cause.osError if isinstance(cause, ConnectError) else None


def _introduce(introduction: bytes, transport: Any) -> None:
    """Say for whom it is, before anything else."""
    transport.write(introduction)


class _Nobody(Protocol):
    """Has a connection that nobody can use."""

    def connectionMade(self) -> None:
        """End it."""
        self.transport.abortConnection()  # type: ignore[union-attr]
