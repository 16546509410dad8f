"""The raw TCP relay: each client gets one backend connection of its own, byte for byte.

It cannot know where one message ends and the next begins, so it cannot share that connection, and
needs a source port for each client for as long as the client stays.

    endpoint.listen(TcpFactory(flow, connector, Everything("web")))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from proxykit.checks import positive_seconds
from proxykit.core.choice import Attempt, Choice
from proxykit.core.routing import Everything
from proxykit.core.sharing import L4, NO_BACKEND, OPAQUE, explained
from proxykit.core.stats import Relayed
from proxykit.errors import ProxyError, gone
from proxykit.interfaces import ICountsOn, IExplains, IMode, ISnapshot
from proxykit.model import ConnInfo, Listener, address_text
from proxykit.net.closing import resets
from proxykit.net.relay import Relay, RelaySide, tune

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from proxykit.core.deadlines import Deadline
    from proxykit.core.flow import Flow
    from proxykit.core.registry import ClusterState
    from proxykit.interfaces import IConnector, IRouter

#: Bytes that a client may send before it has a backend; then it is not read from.
EARLY_BYTES = 65536
#: Seconds that a connect goes on for a client that has sent its end and nothing else: it has left,
#: or it wants to be told something without asking.
LEAVING = 1.0
#: What the log says of each connection to a backend: see core/sharing.py.
OWN = " (own: opaque bytes)"


@frozen
class TcpSettings:
    """The keys of a tcp listener.

    :ivar idle_timeout: seconds without a byte in either direction.
    :ivar keepalive: TCP keepalive probes to both sides, so that a peer that vanished is noticed.
    :ivar log_connections: one log line when a connection ends.
    :ivar abort_on_close: while it waits in the queue, a client that has sent its end has left, even
        if it had sent something before. What cannot be told from that is a client that has asked
        its question, shut down its write side and waits for the answer.
    """

    idle_timeout: float = field(default=600.0, metadata={"check": positive_seconds})
    keepalive: bool = True
    log_connections: bool = True
    abort_on_close: bool = False


class UpstreamSide(RelaySide):
    """The relay's connection to the backend."""

    name = "backend"

    def __init__(self, attempt: Attempt, keepalive: bool) -> None:
        super().__init__()
        self._attempt = attempt
        self._keepalive = keepalive

    def connectionMade(self) -> None:
        if not self._attempt.backend.address.is_unix:
            tune(self.transport, self._keepalive)
        self._attempt.succeeded(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._attempt.end()
        del self._attempt  # It refers to this.
        super().connectionLost(reason)


@implementer(ISnapshot, IExplains)
class TcpProtocol(RelaySide):
    """The relay's connection to the client."""

    name = "client"
    factory: TcpFactory
    _cluster: ClusterState | None = None
    _choice: Choice | None = None
    _pending: Deferred[Attempt] | None = None
    _attempt: Attempt | None = None
    _leaving: Deadline | None = None

    #: What a listener says of the connection. Without one it is made up here.
    info: ConnInfo = None  # type: ignore[assignment]

    #: What it has sent before it has a backend.
    _early: list[bytes] | None = None

    def connectionMade(self) -> None:
        self._arrived()
        route = self.factory.router.route(self.info)
        if route is None:
            self._refuse("no route")
        else:
            self._connect_to(route.cluster)

    def _arrived(self) -> None:
        factory, transport = self.factory, self.transport
        if not self.info:
            client = transport.getPeer()
            self.info = ConnInfo(0, factory.name, client, server=transport.getHost())
            if not isinstance(client, UNIXAddress):
                tune(transport, factory.settings.keepalive)
        elif not factory.settings.keepalive and hasattr(transport, "setTcpKeepAlive"):
            transport.setTcpKeepAlive(False)  # the listener has turned it on
        self._started = factory.flow.clock.seconds()

    def _connect_to(self, cluster: str) -> None:
        """It is known where it goes."""
        factory = self.factory
        try:
            self._cluster = factory.flow.registry.cluster(cluster)
        except KeyError:
            self._refuse(gone(cluster).message)
            return
        self._choice = Choice(
            self._cluster,
            self.info,
            factory.connector,
            lambda attempt: UpstreamSide(attempt, factory.settings.keepalive),
        )
        got = factory.flow.upstream(self._choice)
        if isinstance(got, Deferred):
            self._pending = got
            got.addCallbacks(self._join, self._refused)
        else:
            self._join(got)

    def _join(self, attempt: Attempt) -> None:
        """There is a backend."""
        self._pending = None
        self._attempt = attempt
        attempt.forget_choice()
        self._choice = None
        self._stay()
        early, self._early = b"".join(self._early or ()), None
        factory = self.factory
        relay = Relay(
            self,
            attempt.upstream,
            factory.flow.deadlines,
            factory.settings.idle_timeout,
            self._ended,
            resets(attempt.backend),
        )
        factory.stats.relayed += 1
        if len(early) >= EARLY_BYTES and not self.read_ended:
            self.transport.resumeProducing()
        relay.start(early)

    def _refused(self, failure: Failure) -> None:
        """There is none."""
        self._pending = None
        if failure.check(CancelledError) is None:  # else it is we who have cancelled it
            failure.trap(ProxyError)
            self._refuse(str(failure.value))

    def _refuse(self, why: str) -> None:
        self._stay()
        self.factory.stats.refused += 1
        self.factory.log.warn(
            "{connection}: {client} refused: {why}",
            connection=self.info.name,
            client=address_text(self.info.client),
            why=why,
        )
        self.transport.abortConnection()

    def came_early(self, data: bytes) -> None:
        """There is no backend yet: keep them."""
        if self._early is None:
            self._early = []
        self._early.append(data)
        self.received += len(data)
        if self.received >= EARLY_BYTES:
            self.transport.pauseProducing()

    def readConnectionLost(self) -> None:
        super().readConnectionLost()
        choice = self._choice
        if self._pending is None or choice is None:
            return
        # Has it left, or is it only done with its question? See abort_on_close.
        silent = not self.received
        choice.may_wait = not (silent or self.factory.settings.abort_on_close)
        if choice.waiting and not choice.may_wait:
            self._left()
        elif silent:
            self._leaving = self.factory.flow.deadlines.add(LEAVING, self._left)

    def _left(self) -> None:
        self.transport.abortConnection()

    def abort(self, why: str) -> None:
        """End it at once, with a reset: nobody shall take what has come for the whole."""
        if self.relay is not None:
            self.relay.abort(why)
        else:
            self.transport.abortConnection()

    def _stay(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._stay()
        if self._pending is not None:
            self._pending.cancel()
            self._ended("client left before it had a backend")
        super().connectionLost(reason)

    def _ended(self, why: str) -> None:
        """Both connections are gone."""
        factory, attempt = self.factory, self._attempt
        down = attempt.upstream.received if attempt is not None else 0
        duration = factory.flow.clock.seconds() - self._started
        factory.stats.end(why, self.received, down, duration)
        if factory.settings.log_connections:
            assert self._cluster is not None
            factory.log.info(
                "{connection}: {client} -> {cluster} {backend}{own}: {up} bytes up,"
                " {down} bytes down, {duration:.3f} s, {why}",
                connection=self.info.name,
                client=self._client_text(),
                cluster=self._cluster.config.name,
                backend=attempt.backend.address if attempt is not None else "-",
                own=OWN if attempt is not None else "",
                up=self.received,
                down=down,
                duration=duration,
                why=why,
            )

    def _client_text(self) -> str:
        """The client as the log has it."""
        return address_text(self.info.client)

    def snapshot(self) -> dict[str, Any]:
        """See ``ISnapshot``."""
        attempt, choice = self._attempt, self._choice
        state = "relaying" if attempt else "waiting" if choice and choice.waiting else "connecting"
        return {
            "cluster": self._cluster.config.name if self._cluster else None,
            "backend": str(attempt.backend.address) if attempt else None,
            "state": state,
            "bytes_up": self.received,
            "bytes_down": attempt.upstream.received if attempt else 0,
            "seconds": round(self.factory.flow.clock.seconds() - self._started, 3),
        }

    def explain(self) -> dict[str, Any]:
        """See ``IExplains``."""
        if self._attempt is not None:
            return explained(L4, False, OPAQUE)
        choice = self._choice
        if choice is not None and choice.waiting:
            return choice.explain_waiting(L4)
        return explained(L4, None, NO_BACKEND)


@implementer(ISnapshot, ICountsOn)
class TcpFactory(Factory):
    """An ordinary factory, for any endpoint.

    :param flow: finds the backends.
    :param connector: connects to them.
    :param router: says which cluster; it is asked with a ``ConnInfo``.
    :param name: what connections are called that no listener has numbered.
    """

    noisy = False
    log = Logger(namespace="proxykit.tcp")

    def __init__(
        self,
        flow: Flow,
        connector: IConnector,
        router: IRouter,
        settings: TcpSettings | None = None,
        name: str = "tcp",
    ) -> None:
        self.flow = flow
        self.connector = connector
        self.router = router
        self.settings = settings or TcpSettings()
        self.name = name
        self.stats = Relayed()

    def snapshot(self) -> dict[str, Any]:
        """See ``ISnapshot``: what was relayed."""
        return self.stats.snapshot()

    def count_on(self, former: TcpFactory) -> None:
        """See ``ICountsOn``."""
        self.stats = former.stats

    def buildProtocol(self, addr: Any) -> Any:
        """A protocol for one client."""
        protocol = TcpProtocol()
        protocol.factory = self
        return protocol


@implementer(IMode)
class TcpMode:
    """The mode ``tcp``."""

    settings = TcpSettings

    def check(self, listener: Listener) -> None:
        """See ``IMode.check``."""
        if not listener.cluster:
            raise ValueError("mode tcp needs a cluster: raw TCP has nothing to route by")

    def factory(self, listener: Listener, flow: Flow, connector: IConnector) -> TcpFactory:
        """See ``IMode.factory``."""
        settings = listener.settings
        assert isinstance(settings, TcpSettings)
        return TcpFactory(flow, connector, Everything(listener.cluster), settings, listener.name)
