"""What is counted: plain integers and lists of buckets, cheap enough for every connection.

Nothing here knows a metrics library; whoever shows the figures takes a ``snapshot()``.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from proxykit.core.sharing import OPAQUE

if TYPE_CHECKING:
    from proxykit.core.registry import BackendState

#: Upper bounds of the buckets for how long connections last, in seconds.
SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0)
#: The same for how long backends take until they begin to answer.
LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
           30.0)  # fmt: skip


class Histogram:
    """How many values fell into which bucket.

    :param bounds: the upper bound of each bucket, inclusive, rising; one more takes the rest.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def snapshot(self) -> dict[str, Any]:
        """Buckets by their bounds (each for itself, not cumulative), and the sum of all values."""
        names = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return {"buckets": dict(zip(names, self.counts, strict=True)), "sum": round(self.total, 3)}


class Relayed:
    """What a listener has relayed since the start.

    :ivar ended: connections that are over, by what ended them: a fixed set of short texts.
    :ivar relayed: those that got a backend's connection, each one of its own.
    """

    __slots__ = ("bytes_down", "bytes_up", "ended", "refused", "relayed", "seconds")

    def __init__(self) -> None:
        self.refused = 0
        self.relayed = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.ended: dict[str, int] = {}
        self.seconds = Histogram(SECONDS)

    def end(self, why: str, up: int, down: int, seconds: float) -> None:
        """A connection is over."""
        self.ended[why] = self.ended.get(why, 0) + 1
        self.bytes_up += up
        self.bytes_down += down
        self.seconds.observe(seconds)

    def snapshot(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "refused": self.refused,
            "ended": dict(self.ended),
            "own": {OPAQUE: self.relayed} if self.relayed else {},
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": self.seconds.snapshot(),
        }


class Hellos:
    """What became of the hellos that were not relayed, since the start.

    :ivar refused: connections that were turned away, by the reason: a fixed set of short texts.
    :ivar handed_over: those that went on to another listener.
    """

    __slots__ = ("handed_over", "refused")

    def __init__(self) -> None:
        self.refused: dict[str, int] = {}
        self.handed_over = 0

    def count(self, reason: str) -> None:
        """One more that was turned away."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def snapshot(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"refused": dict(self.refused), "handed_over": self.handed_over}


class Requests:
    """What a listener has answered since the start.

    :ivar statuses: answers by the first digit of their status; 0: the client left without one.
    :ivar reused: requests that went on a connection that had been used before.
    :ivar repeated: those that were sent again, for that connection turned out to be dead.
    :ivar refused: messages that broke a rule, by the rule: a fixed set of short texts.
    :ivar failed: requests that no backend answered, by the type of error: another fixed set.
    """

    __slots__ = ("bytes_down", "bytes_up", "failed", "refused", "repeated", "reused", "seconds",
                 "statuses")  # fmt: skip

    def __init__(self) -> None:
        self.statuses = [0] * 10
        self.reused = 0
        self.repeated = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.refused: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self.seconds = Histogram(SECONDS)

    @staticmethod
    def count(counts: dict[str, int], what: str) -> None:
        """One more."""
        counts[what] = counts.get(what, 0) + 1

    def snapshot(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "requests": sum(self.statuses),
            "statuses": {
                f"{digit}xx" if digit else "none": count
                for digit, count in enumerate(self.statuses)
                if count
            },
            "reused": self.reused,
            "repeated": self.repeated,
            "refused": dict(self.refused),
            "failed": dict(self.failed),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": self.seconds.snapshot(),
        }


class Answers:
    """What the backends of a cluster have answered since the start, those that left included.

    :ivar statuses: answers by the first digit of their status.
    :ivar latency: seconds from a request that was sent to the head of its answer.
    :ivar served: attempts that succeeded at backends that are gone; ``failures``: that failed;
        ``ejections``: how often they were ejected; ``closed_first``: of the connections to them,
        how many were ended by whom first. So the figures of a whole cluster never go down.
    """

    __slots__ = ("closed_first", "ejections", "failures", "latency", "served", "statuses")

    def __init__(self) -> None:
        self.statuses = [0] * 10
        self.latency = Histogram(LATENCY)
        self.served = 0
        self.failures = 0
        self.ejections = 0
        self.closed_first = {"proxy": 0, "backend": 0, "reset": 0}

    def answered(self, status: int, seconds: float) -> None:
        """One more. It is done for each request, so the histogram is written to right here."""
        self.statuses[status // 100] += 1
        latency = self.latency
        latency.counts[bisect_left(LATENCY, seconds)] += 1
        latency.total += seconds

    def inherit(self, backend: BackendState) -> None:
        """A backend has left the cluster, and nobody uses it any more: keep what it has counted."""
        self.served += backend.served
        self.failures += backend.failures
        self.ejections += backend.standing.ejections
        for who, count in backend.closed_first.items():
            self.closed_first[who] += count
