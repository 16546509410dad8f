"""How long a client of HTTP/1 is waited for, and how its connection ends when it is to go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxykit.net.relay import RelaySide

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadline
    from proxykit.model import ConnInfo
    from proxykit.net.exchange import Exchange
    from proxykit.net.serving import Serving

#: Seconds that an idle client has to ask once more, when its connection is to go: a request may be
#: on its way.
LAST_CHANCE = 1.0


class Http1Patience(RelaySide):
    """A part of ``Http1Downstream``, which gives the attributes their values."""

    __slots__ = ()

    exchange: Exchange | None
    info: ConnInfo
    serving: Serving
    _body: Any
    _closing: Any
    _head: Deadline | None
    _held: bool
    _idle: Deadline | None
    _progress: Deadline | None
    _reader: Any
    _upgrade: Any
    #: Whether it is to end with the present answer, or with the next.
    _draining = False

    def _end(self) -> None:
        raise NotImplementedError

    def _last_words(self, status: int, why: str) -> None:
        raise NotImplementedError

    def _await_head(self) -> None:
        self._head = self.serving.flow.deadlines.add(
            self.serving.settings.head_timeout, self._no_head
        )

    def _no_head(self) -> None:
        """The time for a request head has passed."""
        self._head = None
        if self._reader.started:
            seconds = self.serving.settings.head_timeout
            self.serving.refused(self.info, 408, "request head timeout")
            self._last_words(408, f"no whole request head within {seconds:g} s")
        elif self.exchange is None and not self._closing:
            self._end()  # It has said nothing at all.

    def _no_progress(self) -> None:
        """No byte of a request's body has come for too long; unless it is we who do not read."""
        self._progress = None
        exchange, settings = self.exchange, self.serving.settings
        if self._body is None or exchange is None:
            return
        if self._held:
            self._progress = self.serving.flow.deadlines.add(
                settings.body_timeout, self._no_progress
            )
            return
        exchange.malformed(408, f"no byte of the body within {settings.body_timeout:g} s")

    def _no_request(self) -> None:
        """It has been idle for long enough, if it is idle."""
        self._idle = None
        if self.exchange is None and not self._closing and not self._reader.started:
            self._end()

    def drain(self) -> None:
        """See ``IDrains``: an answer that has not begun says that it is the last one."""
        self._draining = True
        if self.exchange is not None or self._closing or self._upgrade or self._reader.started:
            return
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.serving.flow.deadlines.add(LAST_CHANCE, self._no_request)

    def _cancel_deadlines(self) -> None:
        for deadline in (self._idle, self._head, self._progress):
            if deadline is not None:
                deadline.cancel()
        self._idle = self._head = self._progress = None
