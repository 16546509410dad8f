"""The service: one registry, one accountant, one flow, and the listeners that share them.

Embedders use it as ``twistd proxykit`` does::

    proxy = ProxyService(reactor)
    proxy.apply(config)             # from config.load(), or a model.Config made by hand
    proxy.startService()
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure

from proxykit.checks import hand_over_faults, header_fault, network
from proxykit.components import components
from proxykit.core.accountant import Accountant
from proxykit.core.deadlines import Deadlines
from proxykit.core.flow import Flow
from proxykit.core.registry import Registry
from proxykit.core.trust import Trust
from proxykit.errors import ConfigError, ProxyError
from proxykit.interfaces import IHandsOver, ILogsAccess, IMode
from proxykit.model import address_text
from proxykit.net import kernel
from proxykit.net.certificates import Certificates
from proxykit.net.connector import Connector
from proxykit.net.listener import Listener, endpoint
from proxykit.net.peek import Headers
from proxykit.net.pool import Pool
from proxykit.net.survey import Survey
from proxykit.net.terminate import Terminating
from proxykit.ops.accesslog import AccessLogs
from proxykit.ops.admin import admin_site
from proxykit.ops.lag import LoopLag
from proxykit.strict import dotted

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory

    from proxykit import model


class ProxyService(Service):
    """See this module.

    :param reactor: what everything runs on; its clock is used throughout.
    """

    name = "proxykit"
    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.deadlines = Deadlines(reactor, lambda: self._log.failure("at a deadline"))
        self.registry = Registry(self.deadlines)
        late = getattr(reactor, "binds_late", False)
        self.accountant = Accountant(
            kernel.port_range(),
            kernel.SourceAddresses(reactor),
            late=late,
            seconds=reactor.seconds,
        )
        self.survey = Survey(reactor, self.accountant, self._ports)
        self.flow = Flow(self.registry, self.deadlines, reactor)
        self.connector = Connector(reactor, self.accountant, self.deadlines)
        self.pool = Pool(self.connector, self.deadlines)
        self.lag = LoopLag(reactor)
        #: When it was made, by the reactor's clock.
        self.started: float = reactor.seconds()
        self.listeners: dict[str, Listener] = {}
        self._access_logs = AccessLogs(reactor)
        self._certificates: list[Certificates] = []
        self._wanted: model.PortRange | None = None
        #: Whether the kernel's own range is not around that any more.
        self._is_off = False
        self._ids = itertools.count(1)
        # Where each factory is to listen, until it does: its name, the endpoint string.
        self._to_listen: list[tuple[str, str, Callable[[Any], Deferred[IListeningPort]]]] = []
        # Those that listen nowhere.
        self._taking_over: list[Listener] = []
        self._admin: IListeningPort | None = None

    def apply(self, config: model.Config) -> None:
        """Build what the configuration says. Once, before the service is started.

        :raises ConfigError: a listener cannot be served by its mode.
        """
        if self.listeners:
            raise RuntimeError("a configuration is in force already")
        self._leave_from(config.sources)
        for cluster in config.clusters:
            place = f"clusters.{cluster.name}"
            balancer = _known("balance", cluster.balance, place)
            if cluster.proxy_protocol not in ("", "v1", "v2"):
                found = repr(cluster.proxy_protocol)
                raise ConfigError([f"{place}: proxy_protocol: expected v1 or v2, not {found}"])
            self._prepare_tls(cluster)
            self.registry.add(cluster, balancer)
            for backend in cluster.backends:
                self._open_page(backend.address)
        names = {cluster.name for cluster in config.clusters}
        if faults := hand_over_faults(config.listeners):
            raise ConfigError(f"{dotted(place)}: {fault}" for place, fault in faults)
        introduces = any(cluster.proxy_protocol for cluster in config.clusters)
        for number, each in enumerate(config.listeners):
            place = f"listeners[{number}] ({each.name})"
            mode = IMode(_known("mode", each.mode, place)())
            try:
                mode.check(each)
                if each.cluster and each.cluster not in names:
                    raise ValueError(f"there is no cluster {each.cluster!r}")
                for text in each.trust:
                    network(text)
                if fault := header_fault(each):
                    raise ValueError(f"proxy_protocol: {fault}")
            except ValueError as error:
                raise ConfigError([f"{place}: {error}"]) from error
            factory = mode.factory(each, self.flow, self.pool)
            self._log_access(each, factory, place)
            tls = self._terminating(each, mode, place)
            listener = self._add_listener(each, factory, tls, introduces)
            if each.listen:
                self._to_listen.append((each.name, each.listen, listener.listen))
            else:
                self._taking_over.append(listener)
        if config.admin:
            site = admin_site(self, config)
            self._to_listen.append(
                ("admin", config.admin, lambda at: at.listen(site).addCallback(self._admin_listens))
            )

    def _leave_from(self, sources: model.Sources) -> None:
        """Where connections to backends are to leave from.

        :raises ConfigError: this reactor cannot do that.
        """
        accountant, wanted = self.accountant, sources.port_range
        if wanted is not None and not accountant.late:
            why = "needs the proxykit reactor (twistd --reactor=proxykit, or none at all)"
            raise ConfigError([f"sources.port_range: {why}"])
        accountant.halves = not (accountant.late and kernel.looks_at_all_alike())
        accountant.headroom, accountant.addresses = sources.headroom, sources.addresses
        if wanted is not None:
            try:
                kernel.narrowed(wanted)
            except ValueError as error:
                raise ConfigError([f"sources.port_range: {error}"]) from error
        self.connector.ports = self._wanted = wanted
        accountant.measure(self._ports(), kernel.time_wait_reuse())
        for address in sources.addresses:
            if not kernel.is_local(address):
                self._log.warn(
                    "sources.addresses: {address} is not an address of this machine, so nothing"
                    " can leave from it",
                    address=address,
                )
        if sources.addresses and not accountant.late:
            self._log.warn(
                "sources.addresses: this reactor picks a source port before it knows where to, so"
                " each port of an address is good for one connection, wherever that leads; on the"
                " proxykit reactor for one to each backend"
            )

    def _ports(self) -> model.PortRange:
        """The source ports there are to pick from."""
        if self._wanted is None:
            ports = kernel.port_range()
            self.connector.whole = None if self.accountant.halves else ports
            return ports
        try:
            found, off = kernel.narrowed(self._wanted), ""
        except ValueError as error:
            # The kernel's range was set anew; what is said here is what the file says.
            found, off = self._wanted, str(error)
        if off and not self._is_off:
            self._log.warn("sources.port_range is not kept to any more: {why}", why=off)
        self._is_off = bool(off)
        return found

    def _prepare_tls(self, cluster: model.Cluster) -> None:
        """Read what TLS to a cluster's backends needs, before anybody waits for it."""
        if cluster.tls is None:
            return
        try:
            self.connector.tls(cluster.tls)
        except ValueError as error:
            raise ConfigError([f"clusters.{cluster.name}.tls: {error}"]) from error
        if not cluster.tls.verify:
            self._log.warn(
                "{cluster}: TLS to its backends is not verified (verify = false): anybody could"
                " be them",
                cluster=cluster.name,
            )

    def _terminating(self, config: model.Listener, mode: object, place: str) -> Terminating | None:
        """TLS as a listener has it."""
        tls = config.tls
        if tls is None:
            return None
        tls = evolve(tls, alpn=tls.alpn or getattr(mode, "alpn", ()))
        try:
            certificates = Certificates(config.name, tls, self.deadlines)
        except ValueError as error:
            raise ConfigError([f"{place}: tls: {error}"]) from error
        self._certificates.append(certificates)
        return Terminating(certificates, tls.handshake_timeout, self.deadlines)

    def _add_listener(
        self,
        config: model.Listener,
        factory: IProtocolFactory,
        tls: Terminating | None = None,
        introduces: bool = False,
    ) -> Listener:
        headers = None
        if config.proxy_protocol:
            trust = Trust(config.trust)
            headers = Headers(config.name, trust, config.proxy_timeout, self.deadlines)
        listener = Listener(
            config.name,
            factory,
            config.max_connections,
            self._ids,
            self.deadlines,
            headers,
            tls,
            notes_server=introduces,
        )
        self.listeners[config.name] = listener
        if IHandsOver.providedBy(factory):
            factory.hand_over_by(self._hand_over)
        return listener

    def _hand_over(self, first: Any, name: str, received: bytes) -> None:
        """See ``IHandsOver``: whoever has accepted the connection keeps it in its table."""
        number = first.info.id
        listeners = self.listeners.values()
        accepted = next(each for each in listeners if each.connections.get(number) is first)
        accepted.hand_over(first, self.listeners[name], received)

    def _log_access(self, config: model.Listener, factory: object, place: str) -> None:
        """Open the listener's access log, where its mode writes one."""
        settings: Any = config.settings
        path = getattr(settings, "access_log", "")
        if not path or not ILogsAccess.providedBy(factory):
            return
        try:
            log = self._access_logs.log(path, settings.access_log_format)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError([f"{place}: access_log {path}: {why}"]) from error
        factory.log_access(log.write)

    def reopen_logs(self) -> None:
        """The access logs have been moved away: begin new ones."""
        self._access_logs.reopen_all()

    def _open_page(self, address: model.Address) -> None:
        """Show a backend's budget from the start, not from its first connection on."""
        if not address.is_unix:
            try:
                self.accountant.budgets(address)
            except ProxyError as error:
                # There may be a way later; until then each attempt says so.
                self._log.warn("{error}", error=error)

    def _admin_listens(self, port: IListeningPort) -> IListeningPort:
        self._admin = port
        where = address_text(port.getHost())
        self._log.info("admin: listening on {address}", address=where)
        return port

    @property
    def admin_port(self) -> IListeningPort | None:
        """The admin listener's port, once it listens."""
        return self._admin

    def privilegedStartService(self) -> None:
        """Bind all ports, while there may be the right to: all of them or none.

        :raises ConfigError: one of them cannot be had.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        # What a former process has left behind is counted before the first connection is made.
        self.survey.start()
        for name, where, listen in self._to_listen:
            why = self._try_to(listen, where)
            if why is not None:
                self._stop_listening()
                self.survey.stop()
                raise ConfigError([f"{name}: cannot listen on {where}: {why}"])
        self._to_listen = []

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

    def startService(self) -> None:
        """Begin to serve.

        :raises ConfigError: a port cannot be had.
        """
        self.privilegedStartService()
        super().startService()  # type: ignore[no-untyped-call]
        self.lag.start()
        for listener in self._taking_over:
            listener.doStart()  # as a port does
        for certificates in self._certificates:
            certificates.watch()

    def stopService(self) -> Deferred[Any]:
        """Accept no more. Connections end with the process."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.lag.stop()
        stopping = self._stop_listening()
        taking_over, self._taking_over = self._taking_over, []
        for listener in taking_over:
            listener.doStop()
        for certificates in self._certificates:
            certificates.stop()
        self.survey.stop()
        self.deadlines.rest()
        return stopping

    def abort_connections(self) -> Deferred[Any]:
        """Reset all connections: what has been relayed of them is not the whole.

        :returns: fires when they are gone.
        """
        count = sum(len(listener.connections) for listener in self.listeners.values())
        if count:
            self._log.info("{count} connections are cut off", count=count)
        gone = DeferredList(
            [
                *(listener.abort("the service ended") for listener in self.listeners.values()),
                self.pool.close(),
            ]
        )
        return gone.addCallback(lambda _: self._access_logs.close_all())

    def _stop_listening(self) -> Deferred[Any]:
        stopping = [listener.stop_listening() for listener in self.listeners.values()]
        if self._admin is not None:
            port, self._admin = self._admin, None
            stopping.append(maybeDeferred(port.stopListening))
        return DeferredList(stopping)


def _known(kind: str, name: str, place: str) -> Any:
    """What a component's name stands for.

    :raises ConfigError: there is none of that name.
    """
    known = components(kind)
    if name not in known:
        raise ConfigError([f"{place}: there is no {kind} {name!r}; there are {', '.join(known)}"])
    return known[name].load()


def _reason(why: BaseException | None) -> str:
    if isinstance(why, CannotListenError):
        why = why.socketError
    if isinstance(why, OSError) and why.strerror:
        return why.strerror
    return str(why)
