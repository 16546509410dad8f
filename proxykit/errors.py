"""What can go wrong: whose fault it is, whether another try is safe, what a client is told.

``ProxyError`` is the one error that travels between connector, pool, flow and mode. ``ConfigError``
is what a user sees who has written something that proxykit cannot run.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from enum import Enum

#: The kernel has no source port to give: the one after late binding, the other after plain binding.
OUT_OF_PORTS = (errno.EADDRNOTAVAIL, errno.EADDRINUSE)
#: This process, or this machine, has no descriptor or no memory to give.
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: How it is told that a source address is missing; that looks like a want of ports to the kernel.
NOT_HERE = "is not an address of this machine"


class Side(Enum):
    """Which side failed."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    PROXY = "proxy"


class Retry(Enum):
    """Whether another try can do harm.

    ``REUSED_ONLY``: a connection that had been used before went away under the request; it may be
    sent again on a new one, for it was lost on the way and not refused.
    ``OTHER_PORT``: the kernel had no source port where the book had one. By now the book knows;
    nobody has refused anything, and the same backend may be tried from another address.
    """

    NEVER = "never"
    ALWAYS = "always"
    REUSED_ONLY = "reused-only"
    OTHER_PORT = "other-port"


class ProxyError(Exception):
    """One failure on the way through the house.

    :param message: what happened, naming the address or tuple, for the log.
    :param side: which side failed.
    :param retry: whether another try is safe.
    :param status: the HTTP status that a client is told; at L4 the connection is closed instead.
    :param kind: the error type of RFC 9209 (Proxy-Status) that says what failed.
    """

    def __init__(
        self,
        message: str,
        *,
        side: Side,
        retry: Retry,
        status: int,
        kind: str = "proxy_internal_error",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.side = side
        self.retry = retry
        self.status = status
        self.kind = kind


def refusal(message: str, status: int = 503, kind: str = "connection_limit_reached") -> ProxyError:
    """Proxykit's own, mostly for want of room or of backends: it may be over soon."""
    return ProxyError(message, side=Side.PROXY, retry=Retry.NEVER, status=status, kind=kind)


def nobody(cluster: str) -> ProxyError:
    """There is no backend that could be asked."""
    return refusal(f"no backend of cluster {cluster} is up", kind="destination_unavailable")


def gone(cluster: str) -> ProxyError:
    """The cluster was there when the connection came, and was taken away since."""
    return refusal(f"the cluster {cluster} is gone", kind="destination_unavailable")


class ConfigError(Exception):
    """One or more mistakes in what the user wrote; each line names the place.

    :param lines: ready to be printed, one mistake each, such as
        ``proxy.toml:12: clusters.web.queue: expected a whole number``.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))
