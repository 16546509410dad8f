"""One port for pages of one's own, by twisted.web, and for backends behind proxykit.

    python examples/with_twisted_web.py 8080 127.0.0.1:9001

One idea: twisted.web is a backend like any other. Its site listens on a unix socket that nobody
else may open, and a route sends some paths there; that needs no source port, and what the pool, the
limits and the timeouts do for the others they do for it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import Site

from proxykit.core.balance import LeastConnections
from proxykit.core.routing import HttpRouter
from proxykit.model import Address, Backend, Cluster, HttpRoute
from proxykit.modes.http import HttpFactory
from proxykit.ops.service import ProxyService


class Hello(Resource):
    """A page of one's own."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        client = request.getHeader("x-forwarded-for")
        return f"twisted.web greets {client} at {request.uri.decode()}\n".encode()


async def serve(reactor: Any, port: str, *backends: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "pages.sock")
        await UNIXServerEndpoint(reactor, path, mode=0o600).listen(Site(Hello()))

        proxy = ProxyService(reactor)
        others = tuple(Backend(Address.parse(text)) for text in backends)
        for cluster in (
            Cluster("pages", (Backend(Address(path, 0)),)),
            Cluster("others", others),
        ):
            proxy.registry.add(cluster, LeastConnections)
        router = HttpRouter([HttpRoute(path="/pages/", cluster="pages")], "others")
        factory = HttpFactory(proxy.flow, proxy.pool, router)
        endpoint = TCP4ServerEndpoint(reactor, int(port), interface="127.0.0.1")
        listening = await endpoint.listen(factory)
        print(f"pages and others at {listening.getHost().port}", flush=True)
        await Deferred()


if __name__ == "__main__":
    react(lambda reactor: ensureDeferred(serve(reactor, *sys.argv[1:])))
