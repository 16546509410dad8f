"""How many requests of a cluster may be tried again.

Another try helps the one request and costs the backends one more. When most of them fail, tries on
top of requests are what keeps them down, so they are at most a share of the requests of the last
ten seconds; of few requests, all may be tried again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from proxykit.core.rarely import Rarely

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

#: Seconds that are looked back.
WINDOW = 10.0
#: Tries that are allowed in that time however few the requests were.
LEAST = 10


class Retries:
    """The tries of one cluster.

    :param clock: tells the time.
    :ivar requests: upstream choices that were begun, since the start: requests or L4 connections.
    :ivar retried: further tries that were made for them; ``refused``: those that were not.
    :ivar turn: when ``roll`` is to be called: it is compared for each request, and that is cheap.
    """

    __slots__ = ("_clock", "_marks", "_rarely", "refused", "requests", "retried", "turn")
    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.requests = self.retried = self.refused = 0
        self.turn = 0.0
        self._clock = clock
        self._rarely = Rarely(clock)
        # What the figures were at the start of each second that saw a request.
        self._marks: deque[tuple[float, int, int]] = deque()

    def roll(self, now: float) -> None:
        """Another second has begun; that is called for before its first request is counted."""
        self.turn = now + 1.0
        self._marks.append((now, self.requests, self.retried))
        while self._marks[0][0] <= now - WINDOW - 1.0:
            self._marks.popleft()

    def allows(self, share: float, cluster: str) -> bool:
        """Whether one more try may be made; it is counted.

        :param share: of the requests, how many tries there may be; 0: none at all.
        :param cluster: its name, for the log.
        """
        now = self._clock.seconds()
        if now >= self.turn:
            self.roll(now)
        _, requests, retried = self._marks[0]
        most = max(LEAST, share * (self.requests - requests)) if share else 0
        if self.retried - retried < most:
            self.retried += 1
            return True
        self.refused += 1
        self._rarely.warn(
            self._log,
            "refused",
            "{cluster}: no other try after a failure: {retried} in {window:g} s are enough for"
            " {requests} requests (retry_budget = {share:g})",
            cluster=cluster,
            retried=self.retried - retried,
            window=WINDOW,
            requests=self.requests - requests,
            share=share,
        )
        return False

    def snapshot(self) -> dict[str, Any]:
        """The figures since the start."""
        return {"requests": self.requests, "retried": self.retried, "refused": self.refused}
