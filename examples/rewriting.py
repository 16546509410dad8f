"""A server of one's own that rewrites what it proxies: a hook, beside proxykit's own parts.

    python examples/rewriting.py 8080 127.0.0.1:9001 127.0.0.1:9002

One idea: the hook sees the request as it came, which it does not change, beside the one that is to
go to a backend, from which everything that is meant for one connection alone has gone already. It
changes that one, or gives an answer of its own.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import react

from proxykit.core.balance import LeastConnections
from proxykit.core.routing import HttpRouter
from proxykit.model import Address, Backend, Cluster
from proxykit.modes.http import HttpFactory
from proxykit.net.serving import Outgoing, Reply
from proxykit.ops.service import ProxyService
from proxykit.wire.http1 import RequestHead, ResponseHead
from proxykit.wire.http1fields import Fields

_VERSION = b"/v2"


def on_request(incoming: RequestHead, outgoing: Outgoing) -> Reply | None:
    """Old clients ask for /v2/...; the backends know only one version, and no cookies."""
    if incoming.method not in (b"GET", b"HEAD"):
        return Reply(403, "only to be read\n")
    if outgoing.target.startswith(_VERSION + b"/"):
        outgoing.target = outgoing.target.removeprefix(_VERSION)
        outgoing.fields.set("X-Version", "2")
    outgoing.fields.remove("Cookie")
    return None


def on_response(request: RequestHead, head: ResponseHead, fields: Fields) -> None:
    """Nobody need know what the backends are."""
    fields.remove("Server")
    if head.status == 200:
        fields.set("X-Asked-For", request.target)


async def serve(reactor: Any, port: str, *backends: str) -> None:
    proxy = ProxyService(reactor)
    cluster = Cluster("mine", tuple(Backend(Address.parse(text)) for text in backends))
    proxy.registry.add(cluster, LeastConnections)
    factory = HttpFactory(
        proxy.flow,
        proxy.pool,
        HttpRouter((), "mine"),
        on_request=on_request,
        on_response=on_response,
    )
    listening = await TCP4ServerEndpoint(reactor, int(port), interface="127.0.0.1").listen(factory)
    print(f"rewriting {listening.getHost().port} to {', '.join(backends)}", flush=True)
    await Deferred()


if __name__ == "__main__":
    react(lambda reactor: ensureDeferred(serve(reactor, *sys.argv[1:])))
