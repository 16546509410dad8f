"""What the access log is told: one entry for each request, and for what is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxykit.model import AccessEntry
from proxykit.wire.http1fields import Fields

if TYPE_CHECKING:
    from proxykit.model import ConnInfo
    from proxykit.net.exchange import Exchange
    from proxykit.net.serving import Serving


def entry_of(exchange: Exchange, seconds: float, why: str) -> AccessEntry:
    """An exchange that is over.

    :param seconds: how long it has taken.
    :param why: what failed; empty: nothing.
    """
    head, serving, info = exchange.head, exchange.serving, exchange.client.info
    fields = Fields(head.fields.kept)
    upstream = exchange.upstream or exchange.lost
    return AccessEntry(
        time=serving.flow.clock.seconds() - seconds,
        listener=serving.name,
        connection=info.id,
        client=serving.client_text(info) or "unix:",
        method=head.method.decode("ascii"),
        target=head.target.decode("ascii"),
        version=f"HTTP/1.{head.minor}",
        host=head.host.decode("latin-1"),
        status=exchange.status,
        bytes_sent=exchange.sent,
        bytes_received=exchange.received,
        seconds=seconds,
        referer=(fields.get("referer") or b"").decode("latin-1"),
        user_agent=(fields.get("user-agent") or b"").decode("latin-1"),
        request_id=exchange.request_id.decode("latin-1"),
        cluster=exchange.route.cluster if exchange.route is not None else "",
        backend=str(exchange.backend.address) if exchange.backend is not None else "",
        reused=exchange.reused,
        own="" if upstream is None or exchange.reused else upstream.own,
        not_kept="" if upstream is None else upstream.not_kept,
        error=why,
    )


def entry_of_none(serving: Serving, info: ConnInfo, status: int, why: str) -> AccessEntry:
    """Something that is no request has been answered."""
    return AccessEntry(
        time=serving.flow.clock.seconds(),
        listener=serving.name,
        connection=info.id,
        client=serving.client_text(info) or "unix:",
        method="-",
        target="-",
        version="-",
        host="",
        status=status,
        bytes_sent=0,
        bytes_received=0,
        seconds=0.0,
        referer="",
        user_agent="",
        request_id="",
        cluster="",
        backend="",
        reused=False,
        own="",
        not_kept="",
        error=why,
    )
