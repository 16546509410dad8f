"""How backends are found and kept well, as configured. See :class:`proxykit.model.Cluster`."""

from __future__ import annotations

from attrs import frozen


@frozen
class Health:
    """How the backends of a cluster are asked whether they are well.

    :ivar path: what is asked for with GET; empty: a connect is enough, and a handshake where TLS is
        spoken to them.
    :ivar host: the Host that goes with it; empty: the cluster's, or else the backend's own.
    :ivar status: the statuses that are fine, such as ``200-299,404``.
    :ivar interval: seconds from the end of one check to the next.
    :ivar timeout: seconds for one check.
    :ivar rise: how many in a row must succeed before a backend that was unwell gets traffic again.
    :ivar fall: how many in a row must fail before one that was well gets no more.
    :ivar jitter: by which share of itself an interval is longer or shorter, at random, so that many
        proxies do not ask at once; 0 to 1.
    """

    path: str = ""
    host: str = ""
    status: str = "200-399"
    interval: float = 2.0
    timeout: float = 2.0
    rise: int = 2
    fall: int = 3
    jitter: float = 0.1


@frozen
class Eject:
    """When a backend is left alone for a while, for what was seen of it in real traffic.

    :ivar failures: so many in a row; 0: never for that.
    :ivar slower_than: seconds: an answer that takes longer to begin (at L4: a connect) is slow; 0:
        none is.
    :ivar slow: so many slow ones in a row.
    :ivar time: seconds for the first time; each time that follows soon is that much longer.
    :ivar max_time: seconds at most.
    :ivar max_share: of the cluster's backends, how many may be left alone at once, 0 to 1.
    """

    failures: int = 5
    slower_than: float = 0.0
    slow: int = 5
    time: float = 10.0
    max_time: float = 300.0
    max_share: float = 0.5


@frozen
class Discover:
    """Where the backends of a cluster come from, besides those that the file names.

    :ivar by: the name of a source of backends, such as ``dns`` or ``file``.
    :ivar settings: the source's own, an instance of its ``settings`` class.
    """

    by: str
    settings: object = None
