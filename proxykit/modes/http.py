"""The HTTP/1 proxy: it sees where a message ends, so a backend's connection serves many clients.

    endpoint.listen(HttpFactory(flow, pool, HttpRouter(routes, "web")))

The way of a request: net/http1_downstream.py reads it, net/exchange.py finds it a route and an
upstream, net/http1_upstream.py sends it on and reads the answer, net/pool.py keeps the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Factory
from zope.interface import implementer

from proxykit.core.routing import HttpRouter
from proxykit.core.trust import Trust
from proxykit.interfaces import ICountsOn, ILogsAccess, IMode, ISnapshot
from proxykit.modes.http_settings import HttpSettings, check_http
from proxykit.net.http1_downstream import Http1Downstream
from proxykit.net.pool import Pool
from proxykit.net.serving import RequestHook, ResponseHook, Serving

if TYPE_CHECKING:
    from proxykit.core.flow import Flow
    from proxykit.interfaces import IConnector
    from proxykit.model import AccessEntry, Listener


@implementer(ISnapshot, ILogsAccess, ICountsOn)
class HttpFactory(Factory):
    """An ordinary factory, for any endpoint.

    :param flow: finds the backends.
    :param pool: keeps the connections to them; any other connector gets a pool of its own.
    :param router: says which route a request takes: an ``HttpRouter``, or whatever does as it does.
    :param name: what connections are called that no listener has numbered.
    :param trust: networks whose forwarding fields are kept; everyone else's are replaced.
    :param on_request: a hook, run before a request goes to a backend.
    :param on_response: a hook, run before a response goes to the client.
    """

    noisy = False

    def __init__(
        self,
        flow: Flow,
        pool: IConnector,
        router: HttpRouter,
        settings: HttpSettings | None = None,
        name: str = "http",
        trust: Iterable[str] = (),
        on_request: RequestHook | None = None,
        on_response: ResponseHook | None = None,
    ) -> None:
        if not isinstance(pool, Pool):
            pool = Pool(pool, flow.deadlines)
        self.serving = Serving(
            flow,
            pool,
            router,
            settings or HttpSettings(),
            name,
            Trust(trust),
            on_request,
            on_response,
        )

    def log_access(self, write: Callable[[AccessEntry], object]) -> None:
        """See ``ILogsAccess``."""
        self.serving.write_log = write

    def snapshot(self) -> dict[str, Any]:
        """See ``ISnapshot``: what was answered."""
        return self.serving.stats.snapshot()

    def count_on(self, former: HttpFactory) -> None:
        """See ``ICountsOn``."""
        self.serving.stats = former.serving.stats

    def buildProtocol(self, addr: Any) -> Any:
        """A protocol for one client."""
        return Http1Downstream(self.serving)


@implementer(IMode)
class HttpMode:
    """The mode ``http``."""

    settings = HttpSettings
    alpn = ("http/1.1",)

    def check(self, listener: Listener) -> None:
        """See ``IMode.check``."""
        check_http(listener)

    def factory(self, listener: Listener, flow: Flow, connector: IConnector) -> HttpFactory:
        """See ``IMode.factory``."""
        settings = listener.settings
        assert isinstance(settings, HttpSettings)
        router = HttpRouter(settings.routes, listener.cluster)
        return HttpFactory(flow, connector, router, settings, listener.name, listener.trust)
