"""A server of one's own that relays through proxykit, beside what else it does.

    python examples/embedded.py 9000 127.0.0.1:9001 127.0.0.1:9002

One idea: the parts of a ``ProxyService`` (registry, flow, connector) serve factories that you make
and put on endpoints yourself.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import react

from proxykit.core.balance import RandomTwoChoices
from proxykit.core.routing import Everything
from proxykit.model import Address, Backend, Cluster
from proxykit.modes.tcp import TcpFactory, TcpSettings
from proxykit.ops.service import ProxyService


async def serve(reactor: Any, port: str, *backends: str) -> None:
    proxy = ProxyService(reactor)
    cluster = Cluster(
        name="mine",
        backends=tuple(Backend(Address.parse(text)) for text in backends),
        max_connections=100,
    )
    state = proxy.registry.add(cluster, RandomTwoChoices)

    factory = TcpFactory(
        proxy.flow, proxy.connector, Everything("mine"), TcpSettings(idle_timeout=60.0)
    )
    listening = await TCP4ServerEndpoint(reactor, int(port), interface="127.0.0.1").listen(factory)
    print(f"relaying {listening.getHost().port} to {', '.join(backends)}", flush=True)

    # The books are open to the server around them, and so are changes at run time.
    def report() -> None:
        in_flight = {str(b.address): b.in_flight for b in state.backends.values()}
        print(f"in flight: {in_flight}, budgets: {proxy.accountant.snapshot()}", flush=True)
        reactor.callLater(10.0, report)

    report()
    await Deferred()


if __name__ == "__main__":
    react(lambda reactor: ensureDeferred(serve(reactor, *sys.argv[1:])))
