"""One attempt: a lease, a socket, a connection, the choice's protocol; or a ``ProxyError``.

Nothing is tried twice here: that is flow's to decide.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectError
from twisted.internet.protocol import ClientFactory
from zope.interface import implementer

from proxykit.core.waiting import Full
from proxykit.errors import ProxyError, Retry, Side
from proxykit.interfaces import IConnector
from proxykit.net.lost import when_lost

if TYPE_CHECKING:
    from twisted.internet.interfaces import IConnector as ITwistedConnector
    from twisted.python.failure import Failure

    from proxykit.core.accountant import Lease
    from proxykit.core.choice import Attempt
    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.interfaces import IAccountant

#: The kernel has no source port to give: the one after late binding, the other after plain binding.
OUT_OF_PORTS = (errno.EADDRNOTAVAIL, errno.EADDRINUSE)
#: This process, or this machine, has no descriptor or no memory to give.
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@implementer(IConnector)
class Connector:
    """Makes new sockets. See ``IConnector``.

    :param reactor: connects them: an ``IReactorTCP`` and ``IReactorUNIX``.
    :param accountant: leases the ports for them.
    :param deadlines: keeps the connect timeouts.
    """

    def __init__(self, reactor: Any, accountant: IAccountant, deadlines: Deadlines) -> None:
        self._reactor = reactor
        self._accountant = accountant
        self._deadlines = deadlines

    def attempt(self, attempt: Attempt) -> bool | Full:
        """See ``IConnector.attempt``: takes a lease and begins to connect."""
        backend = attempt.backend
        lease = self._accountant.lease(backend)
        if isinstance(lease, Full):
            return lease
        timeout = backend.cluster.config.connect_timeout
        connecting = attempt.handle = _Connecting(attempt, lease)
        connecting.deadline = self._deadlines.add(timeout, connecting.too_late)
        # The reactor's own timeout (its last argument) would be a timer for each connection.
        host, port = backend.address.host, backend.address.port
        if backend.address.is_unix:
            connecting.connector = self._reactor.connectUNIX(host, connecting, None)
        else:
            connecting.connector = self._reactor.connectTCP(host, port, connecting, None)
        return False

    def cancel(self, attempt: Attempt) -> None:
        """See ``IConnector.cancel``: the socket is closed and the lease given back."""
        attempt.handle.stop()


class _Connecting(ClientFactory):
    """One connection, from its connect to its end, as Twisted tells of it."""

    noisy = False
    connector: ITwistedConnector
    deadline: Deadline

    def __init__(self, attempt: Attempt, lease: Lease) -> None:
        self._attempt: Attempt | None = attempt
        self._backend = attempt.backend
        self._lease = lease
        self._late = False

    def stop(self) -> None:
        """Nobody wants it any more, whatever comes of it."""
        self._attempt = None
        self.connector.disconnect()

    def too_late(self) -> None:
        """The connect timeout has passed."""
        self._late = True
        self.connector.disconnect()

    def buildProtocol(self, addr: Any) -> Any:
        """It is connected."""
        attempt = self._attempt
        assert attempt is not None, "stop() has ended the socket, so it cannot have connected"
        protocol = attempt.choice.protocol(attempt)
        # Only now: had that raised, the connection would end as one that failed.
        self._attempt = None
        self.deadline.cancel()
        self._lease.connected()
        when_lost(protocol, self._lease.release)
        return protocol

    def clientConnectionFailed(self, connector: ITwistedConnector, reason: Failure) -> None:
        """It is not, and its socket is closed."""
        self.deadline.cancel()
        self._lease.release()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.failed(self._error(reason.value))

    def _error(self, cause: BaseException | None) -> ProxyError:
        address = self._backend.address
        if self._late:
            timeout = self._backend.cluster.config.connect_timeout
            message = f"connect to {address} timed out after {timeout:g} s"
            return ProxyError(message, side=Side.UPSTREAM, retry=Retry.ALWAYS, status=504)
        number = cause.osError if isinstance(cause, ConnectError) else None
        why = os.strerror(number) if isinstance(number, int) else str(cause) or repr(cause)
        message = f"connect to {address} failed: {why}"
        if number in OUT_OF_PORTS:
            return ProxyError(message, side=Side.PROXY, retry=Retry.ALWAYS, status=503)
        if number in OUT_OF_DESCRIPTORS:
            # Every other backend would need one as well.
            return ProxyError(message, side=Side.PROXY, retry=Retry.NEVER, status=503)
        return ProxyError(message, side=Side.UPSTREAM, retry=Retry.ALWAYS, status=502)
