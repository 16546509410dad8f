"""What is said of an HTTP client's connection: is it shared, why not; and a line at its end.

While a request is under way, that one is told of; between two, the last. The counts are of all of
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from proxykit.core.sharing import L7, NO_BACKEND, explained
from proxykit.interfaces import IExplains, ISnapshot
from proxykit.model import address_text
from proxykit.net.opening import Opening

if TYPE_CHECKING:
    from proxykit.core.sharing import Shares
    from proxykit.model import ConnInfo
    from proxykit.net.exchange import Exchange
    from proxykit.net.http1_upstream import Http1Upstream
    from proxykit.net.serving import Serving
    from proxykit.net.upgrade import Upgrade


@implementer(ISnapshot, IExplains)
class Told:
    """A part of :class:`~proxykit.net.http1_downstream.Http1Downstream`."""

    __slots__ = ()

    #: Why it was ended from here, in the middle of something; empty: it was not.
    cut_off = ""

    if TYPE_CHECKING:
        exchange: Exchange | None
        info: ConnInfo
        private: Http1Upstream | None
        requests: int
        serving: Serving
        shares: Shares
        since: float
        _upgrade: Upgrade | None

    @property
    def _present(self) -> Exchange | None:
        return self._upgrade.exchange if self._upgrade is not None else self.exchange

    def snapshot(self) -> dict[str, Any]:
        """See ``ISnapshot``."""
        exchange = self._present
        found: dict[str, Any] = {"requests": self.requests, "state": "idle"}
        if exchange is not None:
            found |= exchange.snapshot()
        return found

    def explain(self) -> dict[str, Any]:
        """See ``IExplains``."""
        exchange = self._present
        found = explained(L7, None, NO_BACKEND)
        if exchange is not None:
            found = _of(exchange) or found
        elif self.private is not None:
            found = self.private.explain()
        return {**found, **self.shares.explain()}

    def log_end(self) -> None:
        """Its connection is over, and that to a backend which it may have had for itself."""
        serving, shares = self.serving, self.shares
        if serving.settings.log_connections:
            serving.log.info(
                "{connection}: {client}: {requests} requests{sharing}, {duration:.3f} s{end}",
                connection=self.info.name,
                client=address_text(self.info.client),
                requests=self.requests,
                sharing=f" ({shares})" if shares.last is not None else "",
                duration=serving.flow.clock.seconds() - self.since,
                end=f", {self.cut_off}" if self.cut_off else "",
                **shares.snapshot(),
            )


def _of(exchange: Exchange) -> dict[str, Any] | None:
    """Of a request that is under way; None: there is nothing to be said."""
    if exchange.upstream is not None:
        return exchange.upstream.explain()
    if exchange.result is None:
        return None  # It has lost its own a moment ago.
    if exchange.waiting:
        return exchange.explain_waiting(L7)
    attempt = exchange.attempt
    opening = attempt.handle if attempt is not None else None
    return explained(L7, False, opening.own) if isinstance(opening, Opening) else None
