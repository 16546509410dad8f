"""What a pool has its connector open: see proxykit.net.pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxykit.core.accountant import Lease
    from proxykit.core.choice import Attempt
    from proxykit.errors import ProxyError
    from proxykit.net.pool import Pool
    from proxykit.net.shelf import Pooled, Shelf


class Opening:
    """A connection that is being opened, in place of an attempt.

    :ivar attempt: for whom; None: for whoever comes first.
    :ivar own: why none will do that is there; see core/sharing.py.
    """

    __slots__ = ("_make", "_pool", "attempt", "backend", "handle", "introduction", "lease", "own",
                 "ready", "shelf", "upstream")  # fmt: skip

    def __init__(
        self, pool: Pool, shelf: Shelf, attempt: Attempt, introduction: bytes, own: str
    ) -> None:
        self._pool = pool
        self.introduction = introduction
        self.own = own
        self._make: Callable[[Any], Any] | None = attempt.choice.protocol
        self.shelf = shelf
        self.backend = attempt.backend
        self.attempt: Attempt | None = attempt
        self.handle: Any = None
        self.lease: Lease | None = None
        self.ready: Callable[[], object] | None = None
        self.upstream: Pooled | None = None

    def protocol(self) -> Any:
        """See ``Attempt.protocol``."""
        make, self._make = self._make, None
        assert make is not None
        return make(self)

    def connected(self, seconds: float) -> None:
        """See ``Attempt.connected``. What tells how a backend does is how soon it answers."""

    def succeeded(self, upstream: Pooled) -> None:
        """See ``Attempt.succeeded``."""
        if self.ready is not None:
            self.ready()
        self._pool._opened(self, upstream)

    def failed(self, error: ProxyError) -> None:
        """See ``Attempt.failed``."""
        self._pool._failed(self, error)
