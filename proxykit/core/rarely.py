"""Saying the same thing rarely: when a backend is down, each of a thousand requests fails alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxykit.model import address_text

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.logger import Logger

    from proxykit.model import ConnInfo

#: Seconds between two times that the same is said.
SAY_AGAIN = 10.0


class Rarely:
    """Which of many events are worth a log line.

    :param clock: tells the time.
    :param again: seconds between two times that the same is said.
    """

    __slots__ = ("_again", "_clock", "_said")

    def __init__(self, clock: IReactorTime, again: float = SAY_AGAIN) -> None:
        self._clock = clock
        self._again = again
        # When each kind was said last, and how many were not since. Kinds are few.
        self._said: dict[str, tuple[float, int]] = {}

    def say(self, kind: str) -> int | None:
        """Whether to say it now.

        :param kind: one of a fixed set of short texts.
        :returns: None: no; otherwise how many of the same kind have not been said since the last.
        """
        now = self._clock.seconds()
        said, kept_back = self._said.get(kind, (float("-inf"), 0))
        if now - said < self._again:
            self._said[kind] = said, kept_back + 1
            return None
        self._said[kind] = now, 0
        return kept_back

    def warn(self, log: Logger, kind: str, text: str, /, **values: object) -> None:
        """Log a warning, with how many like it were kept back; or keep this one back as well.

        :param kind: as for :meth:`say`.
        :param text: a format for ``values``, as ``Logger.warn`` takes it.
        """
        kept_back = self.say(kind)
        if kept_back is not None:
            more = f" (and {kept_back} like it before)" if kept_back else ""
            log.warn(text + "{more}", more=more, **values)

    def warn_of(self, log: Logger, kind: str, info: ConnInfo, text: str, why: str) -> None:
        """The same of a client's connection, whose name and address come first.

        :param text: what is behind them; ``{why}`` in it: why.
        """
        client = address_text(info.client)
        text = "{connection}: {client}" + text
        self.warn(log, kind, text, connection=info.name, client=client, why=why)
