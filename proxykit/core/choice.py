"""One upstream choice, and one attempt at one backend: what flow, connectors and modes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from proxykit.core.introduction import introduction
from proxykit.core.sharing import waits
from proxykit.core.waiting import OTHERS_WAIT, Full
from proxykit.errors import ProxyError, Retry, refusal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IProtocol

    from proxykit.core.accountant import Lease
    from proxykit.core.flow import Flow
    from proxykit.core.registry import BackendState, ClusterState
    from proxykit.core.waiting import Ticket
    from proxykit.interfaces import IConnector
    from proxykit.model import ConnInfo


class Choice:
    """What a mode asks of flow, and flow's notes on it.

    :param cluster: whose backends may be chosen.
    :param info: on whose behalf.
    :param connector: what makes the attempts: for new sockets, or a pool.
    :param protocol: makes the protocol for a new socket. When that is connected and ready for use,
        it calls ``attempt.succeeded(upstream)`` with what the mode is to be given.
    """

    __slots__ = (
        "attempt",
        "cluster",
        "connector",
        "error",
        "fresh",
        "info",
        "may_wait",
        "owing",
        "paid",
        "protocol",
        "repeatable",
        "result",
        "shareable",
        "started",
        "ticket",
        "tried",
        "waited",
    )

    def __init__(
        self,
        cluster: ClusterState,
        info: ConnInfo,
        connector: IConnector,
        protocol: Callable[[Attempt], IProtocol],
    ) -> None:
        self.cluster = cluster
        self.info = info
        self.connector = connector
        self.protocol = protocol
        self.tried: set[BackendState] = set()
        self.started: float | None = None
        self.attempt: Attempt | None = None
        self.ticket: Ticket | None = None
        self.result: Deferred[Attempt] | None = None
        #: Why the last attempt failed, and whether the next one is a retry that is to be counted,
        #: or has been.
        self.error: ProxyError | None = None
        self.owing = self.paid = False
        #: Whether it must not have a connection that was used before: one was lost under it.
        self.fresh = False
        #: Whether a connection that serves others, too, will do: the protocol tells messages apart,
        #: and tells the backend how it ``answered`` each.
        self.shareable = False
        #: Whether what is sent on it may be sent again, should the connection turn out to be dead.
        self.repeatable = False
        #: Seconds that it has stood in the queue, and left it for something that came to nothing.
        self.waited = 0.0
        #: Whether it is to wait for room; not when the client seems to have left.
        self.may_wait = True

    @property
    def waiting(self) -> bool:
        """Whether it stands in the queue."""
        return self.ticket is not None

    def explain_waiting(self, kind: str) -> dict[str, Any]:
        """What ``/api/explain/ID`` says while it stands there.

        :param kind: see ``core.sharing.explained``.
        """
        found = self.cluster.pick(self.info.client_host, self.tried)
        full = found if isinstance(found, Full) else OTHERS_WAIT
        return waits(kind, full.what, full.ports)

    def has_failed(self, backend: BackendState, error: ProxyError) -> None:
        """Note why an attempt has failed, and what that means for the next one."""
        self.error = error
        # No port is nobody's failure, and the next attempt no retry.
        self.owing, self.paid = error.retry is not Retry.OTHER_PORT, False
        if error.retry is Retry.REUSED_ONLY:
            self.fresh = True  # The same backend may have it, on a connection of its own.
        elif self.owing:
            self.tried.add(backend)
            if self.ticket is not None:
                self.ticket.picky = True

    def may_try_again(self) -> bool:
        """Whether the cluster's budget of retries has one for this choice; it is taken.

        Asked when there is somebody to be tried: no budget goes to tries that are not made.
        """
        if not self.owing:
            return True
        config = self.cluster.config
        self.owing = False
        self.paid = self.cluster.retries.allows(config.retry_budget, config.name)
        return self.paid

    def not_tried(self) -> None:
        """The backend turned out to be full: a retry that was taken for it is still to be had."""
        if self.paid:
            self.owing, self.paid = True, False
            self.cluster.retries.retried -= 1

    def leave_queue(self) -> None:
        """Give up its place there, if it has one."""
        if self.ticket is not None:
            self.waited += self.ticket.leave()
            self.ticket = None


class Attempt:
    """One try of one choice at one backend. It counts as load on the backend until it ends.

    :ivar upstream: what the mode is given; None until the attempt has succeeded.
    :ivar handle: the connector's own note.
    :ivar lease: what the connector has leased for a new socket, before its protocol is made.
    :ivar ready: where the connector wants to hear that the protocol is ready for use.
    """

    __slots__ = ("_ended", "_flow", "backend", "choice", "handle", "lease", "ready", "upstream")
    _log = Logger()

    def __init__(self, flow: Flow, choice: Choice, backend: BackendState) -> None:
        self._flow = flow
        self._ended = False
        self.choice = choice
        self.backend = backend
        self.upstream: Any = None
        self.handle: Any = None
        self.lease: Lease | None = None
        self.ready: Callable[[], object] | None = None
        backend.load(+1)

    def begin(self) -> bool | Full:
        """Have the connector make it; see ``IConnector.attempt``.

        :raises ProxyError: it has failed already. A connector that raises anything else has a bug:
            that is logged, and counts as a failure that another try would not mend.
        """
        try:
            return self.choice.connector.attempt(self)
        except ProxyError:
            raise
        except Exception as bug:
            self._log.failure("{backend}: while connecting", backend=self.backend.address)
            why = f"{self.backend.address}: {bug!r} while connecting"
            raise refusal(why, 500, "proxy_internal_error") from bug

    @property
    def introduction(self) -> bytes:
        """What a new socket begins with: a PROXY header, or nothing."""
        return introduction(self.backend.cluster.config.proxy_protocol, self.choice.info)

    def protocol(self) -> IProtocol:
        """Make the protocol for a new socket, for the connector."""
        return self.choice.protocol(self)

    def connected(self, seconds: float) -> None:
        """The connector has made a new socket for it alone, in that time."""
        self.backend.connected(seconds)

    def succeeded(self, upstream: object) -> None:
        """The connector has an upstream."""
        self.upstream = upstream
        if self.ready is not None:
            self.ready()
        self._flow.succeeded(self)

    def failed(self, error: ProxyError) -> None:
        """The connector has none."""
        self._flow.failed(self, error)

    def end(self) -> None:
        """The work is done, or came to nothing. Ending twice does nothing."""
        if not self._ended:
            self._ended = True
            self.backend.load(-1)
            if self.choice is not None and self.choice.attempt is self:
                self.choice.attempt = None

    def forget_choice(self) -> None:
        """No other try will be asked for, so nobody needs the choice any more."""
        choice, self.choice = self.choice, None  # type: ignore[assignment]
        if choice.attempt is self:
            choice.attempt = None
