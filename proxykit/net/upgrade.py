"""From HTTP to what two sides have agreed on: from a 101 on, both connections are a relay's.

The upstream connection is the client's alone from here on; nobody else could make sense of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxykit.net.relay import Relay

if TYPE_CHECKING:
    from proxykit.net.exchange import Exchange
    from proxykit.net.http1_downstream import Http1Downstream
    from proxykit.net.http1_upstream import Http1Upstream
    from proxykit.wire.http1 import ResponseHead


class Upgrade:
    """One connection that has been upgraded.

    :ivar exchange: the one that has done it; its books stay open until the end.
    """

    __slots__ = ("_client", "exchange")

    def __init__(self, exchange: Exchange, client: Http1Downstream) -> None:
        self.exchange = exchange
        self._client = client

    def start(
        self, head: ResponseHead, upstream: Http1Upstream, early: bytes, answered: bytes
    ) -> None:
        """Hand the 101 on, and from then on whatever comes.

        :param early: what the client has sent by now.
        :param answered: what the backend has sent behind its head.
        """
        client, exchange = self._client, self.exchange
        exchange.status, exchange.responded = head.status, True
        for side in (client, upstream):
            side.transport.unregisterProducer()
        client.transport.write(client.serving.switched(exchange, head) + answered)
        serving = client.serving
        timeout = serving.settings.upgrade_timeout
        Relay(
            client, upstream, serving.flow.deadlines, timeout, self._ended, upstream.shelf.resets
        ).start(early)

    def _ended(self, why: str) -> None:
        client = self._client
        client._upgrade = None
        self.exchange.switched_back(client.received, why)
        client.log_end()
