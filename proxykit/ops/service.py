"""The service: one registry, one accountant, one flow, and the listeners that share them.

Embedders use it as ``twistd proxykit`` does::

    proxy = ProxyService(reactor)
    proxy.apply(config)             # from config.load(), or a model.Config made by hand
    proxy.startService()
    ...
    proxy.apply(another)            # while it runs: only what differs changes
    ...
    await proxy.drain()             # accept no more, and let what is under way end
    await proxy.stopService()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import (
    Deferred,
    DeferredList,
    DeferredLock,
    gatherResults,
    maybeDeferred,
    succeed,
)
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure

from proxykit.checks import admin_fault, hand_over_faults
from proxykit.core.accountant import Accountant
from proxykit.core.deadlines import Deadlines
from proxykit.core.flow import Flow
from proxykit.core.registry import Registry
from proxykit.errors import ConfigError
from proxykit.model import Config, address_text
from proxykit.net import kernel
from proxykit.net.checks import HealthChecks
from proxykit.net.connector import Connector
from proxykit.net.listener import endpoint
from proxykit.net.pool import Pool
from proxykit.net.survey import Survey
from proxykit.ops import changes
from proxykit.ops.accesslog import AccessLogs
from proxykit.ops.admin import admin_site
from proxykit.ops.building import Builder
from proxykit.ops.clusters import Clusters
from proxykit.ops.draining import Draining
from proxykit.ops.lag import LoopLag
from proxykit.ops.leaving_from import LeavingFrom
from proxykit.ops.listeners import Bindable, Listeners
from proxykit.ops.threads import in_thread
from proxykit.strict import dotted

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort

    from proxykit import model
    from proxykit.core.registry import BackendState, State
    from proxykit.net.listener import Listener
    from proxykit.ops.admin_web import AdminSite


class ProxyService(Service):
    """See this module.

    :param reactor: what everything runs on; its clock is used throughout.
    :ivar config: what is in force.
    :ivar reload: reads the configuration again, in a thread, and puts it in force; what its
        Deferred gives, or fails with, is as ``apply`` has it. None: there is no file; see
        ``reads``.
    :ivar draining: whether it accepts no more, and waits for its connections to end.
    """

    name = "proxykit"
    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.config = Config((), ())
        self.deadlines = Deadlines(reactor, lambda: self._log.failure("at a deadline"))
        self.registry = Registry(self.deadlines)
        late = getattr(reactor, "binds_late", False)
        self.accountant = Accountant(
            kernel.port_range(),
            kernel.SourceAddresses(reactor),
            late=late,
            seconds=reactor.seconds,
        )
        self.flow = Flow(self.registry, self.deadlines, reactor)
        self.connector = Connector(reactor, self.accountant, self.deadlines)
        self.pool = Pool(self.connector, self.deadlines)
        self.lag = LoopLag(reactor)
        #: When it was made, by the reactor's clock.
        self.started: float = reactor.seconds()
        self.reload: Callable[[], Deferred[list[str]]] | None = None
        self._from = LeavingFrom(self.accountant, self.connector)
        self.survey = Survey(reactor, self.accountant, self._from.ports)
        self.checks = HealthChecks(reactor, self.connector, self.deadlines)
        self._clusters = Clusters(reactor, self.registry, self.accountant, self.pool, self.checks)
        self._access_logs = AccessLogs(reactor)
        self._builder = Builder(self.flow, self.pool, self.deadlines, self._access_logs)
        self._fronts = Listeners(self._builder, self.deadlines, self._access_logs)
        self._site: AdminSite | None = None
        self._admin: IListeningPort | None = None
        # Whether a configuration has been applied; whether ports are bound.
        self._applied = self._bound = False
        self._draining: Draining | None = None
        self._reading = DeferredLock()

    @property
    def listeners(self) -> dict[str, Listener]:
        """Those that are in force, by their names."""
        return self._fronts.named

    @property
    def all_listeners(self) -> list[Listener]:
        """Those as well that are to go, and still have connections."""
        return list(self._fronts)

    # What is in force.

    def apply(self, config: model.Config) -> list[str]:
        """Put a configuration in force: what differs from the present one, and nothing else.

        :returns: a line for each difference.
        :raises ConfigError: it cannot be served; then nothing has changed.
        """
        if self.draining and self._bound:
            raise ConfigError(["the service is about to end"])
        try:
            return self._apply(config)
        except ConfigError:
            self._fronts.keep_logs()
            raise

    def _apply(self, config: model.Config) -> list[str]:
        before = self.config
        self._from.check(config.sources)
        clusters = [self._builder.cluster(each) for each in config.clusters]
        if faults := hand_over_faults(config.listeners):
            raise ConfigError(f"{dotted(place)}: {fault}" for place, fault in faults)
        prepared = self._fronts.prepare(before, config)
        site, former = self._site, self._admin
        moved = config.admin != before.admin
        if moved:
            site = admin_site(self, config) if config.admin else None
        elif fault := config.admin and admin_fault(config.admin, config.admin_token):
            raise ConfigError([f"admin.listen: {fault}"])
        if self._bound:
            hint = _IN_THE_WAY if prepared.gone else ""
            to_bind = self._admin_to_bind(config.admin, site) if moved else []
            self._bind([*prepared.to_bind(), *to_bind], hint)
        # From here on nothing can go wrong.
        self.config, self._site = config, site
        if config.sources != before.sources or not self._applied:
            self._from.have(config.sources)
            self._clusters.leave_anew()
        self._applied = True
        self.connector.have_tls(
            {each.config.tls: each.tls for each in clusters if each.config.tls and each.tls}
        )
        self._clusters.have(clusters)
        self._fronts.have(prepared, config)
        self._clusters.drop_others({cluster.name for cluster in config.clusters})
        if site is not None and not moved:
            site.admin.reconfigure(config)
        elif moved and former is not None:
            if former is self._admin:
                self._admin = None
            maybeDeferred(former.stopListening)
        return changes.said(before, config)

    def reads(self, load: Callable[[], model.Config]) -> None:
        """From now on the configuration can be read again.

        :param load: does so. It may block, and raise ``ConfigError``.
        """
        self.reload = lambda: self._reading.run(self._read_again, load)

    def _read_again(self, load: Callable[[], model.Config]) -> Deferred[list[str]]:
        # Names are looked up in it, and nobody shall wait for that; nor at the end.
        reading = in_thread(self._reactor, load)
        reading.addTimeout(READING, self._reactor, _not_in_time)
        return reading.addCallback(self._have_read).addErrback(self._not_read)

    def _have_read(self, config: model.Config) -> list[str]:
        lines = self.apply(config)
        for line in lines or ["nothing has changed"]:
            self._log.info("reloaded: {line}", line=line)
        return lines

    def _not_read(self, failure: Failure) -> Failure:
        if failure.check(ConfigError) is None:
            self._log.failure("not reloaded, and nothing has changed", failure)
        for line in getattr(failure.value, "lines", ()):
            self._log.error("not reloaded, and nothing has changed: {line}", line=line)
        return failure

    def set_backend_state(self, cluster: str, address: model.Address, state: State) -> BackendState:
        """Drain a backend, take it down, or bring it up again.

        :raises KeyError: there is no such cluster, or no such backend in it.
        :raises ValueError: there is no such state.
        """
        return self._clusters.set_backend_state(cluster, address, state)

    def reopen_logs(self) -> None:
        """The access logs have been moved away: begin new ones."""
        self._access_logs.reopen_all()

    # The ports.

    def _admin_to_bind(self, where: str, site: AdminSite | None) -> list[Bindable]:
        if site is None:
            return []
        return [
            Bindable(
                "admin",
                where,
                lambda at: at.listen(site).addCallback(self._admin_at),
                self._stop_admin,
            )
        ]

    def _admin_at(self, port: IListeningPort) -> IListeningPort:
        self._admin = port
        where = address_text(port.getHost())
        self._log.info("admin: listening on {address}", address=where)
        return port

    def _stop_admin(self) -> Deferred[Any]:
        port, self._admin = self._admin, None
        return succeed(None) if port is None else maybeDeferred(port.stopListening)

    @property
    def admin_port(self) -> IListeningPort | None:
        """The admin listener's port, once it listens."""
        return self._admin

    def _bind(self, wanted: list[Bindable], hint: str = "") -> None:
        """Bind all of these, or none.

        :param hint: what may be in the way.
        :raises ConfigError: one of them cannot be had.
        """
        for index, each in enumerate(wanted):
            why = self._try_to(each.listen, each.where)
            if why is not None:
                for bound in wanted[:index]:
                    bound.stop()
                raise ConfigError([f"{each.name}: cannot listen on {each.where}: {why}{hint}"])

    def _try_to(self, listen: Callable[[Any], Deferred[IListeningPort]], where: str) -> str | None:
        """Why a user's endpoint cannot be listened on; None: it can."""
        try:
            at = endpoint(self._reactor, where)
        except Exception as error:  # a plugin's parser may raise anything for what it does not like
            return str(error) or repr(error)
        outcome: list[Failure] = []
        listen(at).addErrback(outcome.append)
        if not outcome:
            return None
        why = outcome[0].value
        if not isinstance(why, CannotListenError | OSError | OverflowError | ValueError):
            outcome[0].raiseException()
        return _reason(why)

    # From the start to the end.

    def privilegedStartService(self) -> None:
        """Bind all ports, while there may be the right to: all of them or none.

        :raises ConfigError: one of them cannot be had.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        if self._bound:
            return
        self._draining = None
        self.pool.open()
        # What a former process has left behind is counted before the first connection is made.
        self.survey.start()
        try:
            admin = self._admin_to_bind(self.config.admin, self._site)
            self._bind([*self._fronts.to_bind(), *admin])
        except ConfigError:
            self.survey.stop()
            raise
        self._bound = True

    def startService(self) -> None:
        """Begin to serve.

        :raises ConfigError: a port cannot be had.
        """
        self.privilegedStartService()
        super().startService()  # type: ignore[no-untyped-call]
        self.lag.start()
        self._fronts.start()
        self._clusters.start()

    @property
    def draining(self) -> bool:
        """See above."""
        return self._draining is not None

    def drain(self) -> Deferred[None]:
        """Accept no more, and let what is under way end: ``drain_timeout`` seconds at most, then
        the rest is cut off, and the log says how much that was. The admin listener stays.

        :returns: fires when there are no connections any more.
        """
        if self._draining is not None:
            return self._draining.over()
        stopping = self._fronts.stop_listening()
        seconds = self.config.drain_timeout
        self._draining = Draining(list(self._fronts), seconds, self.deadlines, self.name)
        ended = gatherResults([self._draining.begin(), stopping])
        return ended.addCallback(lambda _: None)

    def cut(self, why: str) -> None:
        """Wait no longer: what ``drain`` waits for is cut off."""
        if self._draining is not None:
            self._draining.cut(why)

    def stopService(self) -> Deferred[Any]:
        """Accept no more. Connections end with the process; see ``drain``."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.lag.stop()
        stopping = [self._fronts.stop_listening(), self._stop_admin()]
        self._bound = False
        self._fronts.stop()
        self._clusters.stop()
        self.survey.stop()
        self.deadlines.rest()
        return DeferredList(stopping)

    def abort_connections(self) -> Deferred[Any]:
        """Reset all connections: what has been relayed of them is not the whole.

        :returns: fires when they are gone.
        """
        count = sum(len(listener.connections) for listener in self._fronts)
        if count:
            self._log.info("{count} connections are cut off", count=count)
        gone = DeferredList(
            [*(listener.abort("the service ended") for listener in self._fronts), self.pool.close()]
        )
        return gone.addCallback(lambda _: self._access_logs.close_all())


#: Seconds for the file, and all that is looked up in it.
READING = 30.0


def _not_in_time(result: object, seconds: float) -> Failure:
    why = f"not read within {seconds:g} s: a name server, or a file system, does not answer"
    return Failure(ConfigError([f"the configuration was {why}"]))


#: Said where a port is taken, and listeners are to go.
_IN_THE_WAY = (
    "; if a listener that is to go has it, take that away first, and add this one in another reload"
)


def _reason(why: BaseException | None) -> str:
    if isinstance(why, CannotListenError):
        why = why.socketError
    if isinstance(why, OSError) and why.strerror:
        return why.strerror
    return str(why)
