"""How long a backend is waited for in HTTP/1, and whose fault it is when nothing comes.

When something does not progress, it is first asked who is in the way: a client that does not send,
or does not read, is not the backend's fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxykit.errors import Side
from proxykit.net.relay import RelaySide

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadline
    from proxykit.model import Address
    from proxykit.net.exchange import Exchange
    from proxykit.net.serving import Serving


class Http1Timeouts(RelaySide):
    """A part of ``Http1Upstream``, which gives the attributes their values, and begins to wait.

    :ivar exchange: what is under way.
    """

    __slots__ = ("_address", "_answering", "_client_held", "_paused", "_progress", "_response",
                 "_serving", "_unsent", "exchange")  # fmt: skip

    exchange: Exchange | None
    _address: Address
    _answering: bool
    _client_held: bool
    _paused: bool
    _progress: Deadline | None
    _response: Deadline | None
    _serving: Serving
    _unsent: int

    def _fail(self, message: str, status: int, kind: str, side: Side = Side.UPSTREAM) -> None:
        raise NotImplementedError

    def _no_response(self) -> None:
        """The time for a response head has passed; perhaps one is not awaited at all."""
        self._response = None
        exchange = self.exchange
        if exchange is None or self._answering:
            return
        settings = self._serving.settings
        timeout = settings.response_timeout
        if not exchange.request_done and not self._client_held:
            # It is the client that is slow, and has a timeout of its own.
            self._response = self._serving.flow.deadlines.add(timeout, self._no_response)
            return
        self._fail(
            f"{self._address} did not answer within {timeout:g} s", 504, "http_response_timeout"
        )

    def _no_progress(self) -> None:
        self._progress = None
        exchange = self.exchange
        if exchange is None:
            return
        timeout = self._serving.settings.response_body_timeout
        splice = getattr(self.transport, "splice_out", None)
        if self._paused or (splice is not None and splice.waiting):
            unsent, before = exchange.client.unsent(), self._unsent
            if unsent != before:
                # It takes something now and then.
                self._unsent = unsent
                self._progress = self._serving.flow.deadlines.add(timeout, self._no_progress)
                return
            why = f"the client took nothing for {timeout:g} s"
            self._fail(why, 408, "connection_write_timeout", Side.CLIENT)
        else:
            why = f"{self._address} sent nothing for {timeout:g} s"
            self._fail(why, 504, "http_response_timeout")

    def _cancel_deadlines(self) -> None:
        for deadline in (self._response, self._progress):
            if deadline is not None:
                deadline.cancel()
        self._response = self._progress = None
