"""What a configuration says, made and not yet in force: balancers, factories, TLS.

Whatever can be wrong shows here, before anything has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from proxykit.checks import header_fault, network
from proxykit.components import components
from proxykit.core.trust import Trust
from proxykit.errors import ConfigError
from proxykit.interfaces import IBackendSource, ICountsOn, ILogsAccess, IMode
from proxykit.net.certificates import Certificates
from proxykit.net.peek import Headers
from proxykit.net.terminate import Terminating
from proxykit.net.tls_client import TlsClient

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocolFactory

    from proxykit import model
    from proxykit.core.deadlines import Deadlines
    from proxykit.core.flow import Flow
    from proxykit.interfaces import IBalancer, IConnector
    from proxykit.ops.accesslog import AccessLogs


@frozen
class BuiltCluster:
    """A cluster that could be put in force.

    :ivar tls: for its backends; None: it is not spoken to them.
    :ivar source: what finds more backends; None: nothing does.
    """

    config: model.Cluster
    balancer: Callable[[], IBalancer]
    tls: TlsClient | None
    source: IBackendSource | None


@frozen
class BuiltListener:
    """A listener that could be put in force.

    :ivar headers: of the PROXY headers that its connections begin with; None: they do not.
    :ivar log: path and format of its access log; None: it has none.
    """

    config: model.Listener
    factory: IProtocolFactory
    headers: Headers | None
    tls: Terminating | None
    certificates: Certificates | None
    log: tuple[str, str] | None

    def count_on(self, before: BuiltListener) -> None:
        """Go on from what the former settings of this listener have counted."""
        factory, former = self.factory, before.factory
        if type(factory) is type(former) and ICountsOn.providedBy(factory):
            factory.count_on(former)
        if self.headers is not None and before.headers is not None:
            self.headers.refused = before.headers.refused
        if self.tls is not None and before.tls is not None:
            self.tls.count_on(before.tls)


class Builder:
    """See this module.

    :param pool: what modes connect by.
    """

    def __init__(
        self,
        flow: Flow,
        pool: IConnector,
        deadlines: Deadlines,
        access_logs: AccessLogs,
    ) -> None:
        self._flow = flow
        self._pool = pool
        self._deadlines = deadlines
        self._access_logs = access_logs

    def cluster(self, config: model.Cluster) -> BuiltCluster:
        """
        :raises ConfigError: it names what there is not.
        """
        place = f"clusters.{config.name}"
        balancer = _known("balance", config.balance, place)
        if config.proxy_protocol not in ("", "v1", "v2"):
            found = repr(config.proxy_protocol)
            raise ConfigError([f"{place}: proxy_protocol: expected v1 or v2, not {found}"])
        tls = None
        if config.tls is not None:
            try:
                tls = TlsClient(config.tls)
            except ValueError as error:
                raise ConfigError([f"{place}.tls: {error}"]) from error
        source = None
        if config.discover is not None:
            source = IBackendSource(_known("source", config.discover.by, f"{place}.discover")())
        return BuiltCluster(config, balancer, tls, source)

    def listener(
        self, config: model.Listener, place: str, clusters: set[str], formats: dict[str, str]
    ) -> BuiltListener:
        """
        :param place: for messages.
        :param clusters: the names of those that there are to be.
        :param formats: those of the access logs, by their paths; this one's is added.
        :raises ConfigError: it cannot be served so.
        """
        mode = IMode(_known("mode", config.mode, place)())
        try:
            mode.check(config)
            if config.cluster and config.cluster not in clusters:
                raise ValueError(f"there is no cluster {config.cluster!r}")
            for text in config.trust:
                network(text)
            if fault := header_fault(config):
                raise ValueError(f"proxy_protocol: {fault}")
        except ValueError as error:
            raise ConfigError([f"{place}: {error}"]) from error
        factory = mode.factory(config, self._flow, self._pool)
        log = self._log_access(config, factory, place, formats)
        certificates = tls = None
        if config.tls is not None:
            settings = evolve(config.tls, alpn=config.tls.alpn or getattr(mode, "alpn", ()))
            try:
                certificates = Certificates(config.name, settings, self._deadlines)
            except ValueError as error:
                raise ConfigError([f"{place}: tls: {error}"]) from error
            timeout = settings.handshake_timeout
            tls = Terminating(certificates, timeout, self._deadlines)
        headers = None
        if config.proxy_protocol:
            trust = Trust(config.trust)
            headers = Headers(config.name, trust, config.proxy_timeout, self._deadlines)
        return BuiltListener(config, factory, headers, tls, certificates, log)

    def _log_access(
        self, config: model.Listener, factory: object, place: str, formats: dict[str, str]
    ) -> tuple[str, str] | None:
        """Open the listener's access log, where its mode writes one."""
        settings: Any = config.settings
        path = getattr(settings, "access_log", "")
        if not path or not ILogsAccess.providedBy(factory):
            return None
        form: str = settings.access_log_format
        try:
            other = formats.setdefault(path, form)
            if other != form:
                raise ValueError(f"it is written in the format {other}, not {form}")
            log = self._access_logs.log(path, form)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError([f"{place}: access_log {path}: {why}"]) from error
        factory.log_access(log.write)
        return log.path, form


def _known(kind: str, name: str, place: str) -> Any:
    """What a component's name stands for.

    :raises ConfigError: there is none of that name.
    """
    known = components(kind)
    if name not in known:
        raise ConfigError([f"{place}: there is no {kind} {name!r}; there are {', '.join(known)}"])
    return known[name].load()
