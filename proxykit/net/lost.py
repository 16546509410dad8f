"""Knowing for certain when a connection is gone, whatever its protocol does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocol, ITransport
    from twisted.python.failure import Failure


def when_lost(protocol: IProtocol, call: Callable[..., object], *args: object) -> None:
    """Call ``call(*args)`` once the protocol's connection is closed, even if the protocol's own
    ``connectionLost`` raises.

    Counts of sockets depend on this, and the protocol may be anybody's. It costs one call when the
    connection ends, and nothing while it lives, as a wrapping protocol would.
    """
    before = vars(protocol).get("connectionLost")
    lost = partial(_lost, protocol, before, call, args)
    protocol.connectionLost = lost  # type: ignore[method-assign]


def _lost(
    protocol: IProtocol,
    before: Callable[[Failure], object] | None,
    call: Callable[..., object],
    args: tuple[object, ...],
    reason: Failure,
) -> None:
    # The protocol refers to this, and this to the protocol: let go of it.
    vars(protocol).pop("connectionLost", None)
    try:
        (before or protocol.connectionLost)(reason)
    finally:
        call(*args)


_log = Logger()


def guard_making(protocol: IProtocol) -> None:
    """End the connection of a protocol that raises when it is made; stock reactors may leave it."""

    def make_connection(transport: ITransport) -> None:
        vars(protocol).pop("makeConnection", None)
        try:
            protocol.makeConnection(transport)
        except Exception:
            _log.failure("{protocol} raised when its connection was made", protocol=protocol)
            transport.abortConnection()  # type: ignore[attr-defined]

    protocol.makeConnection = make_connection  # type: ignore[method-assign]
