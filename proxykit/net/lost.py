"""Knowing for certain when a connection is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocol
    from twisted.python.failure import Failure


def when_lost(protocol: IProtocol, call: Callable[[], object]) -> None:
    """Call ``call()`` once the protocol's connection is closed, even if the protocol's own
    ``connectionLost`` raises.

    Counts of sockets depend on this, and the protocol may be anybody's. It costs one call when the
    connection ends, and nothing while it lives, as a wrapping protocol would.
    """
    told = protocol.connectionLost

    def connection_lost(reason: Failure) -> None:
        try:
            told(reason)
        finally:
            call()

    protocol.connectionLost = connection_lost  # type: ignore[method-assign]
