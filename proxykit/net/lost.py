"""Being there when a connection is made, and when it is lost, whatever its protocol does.

Both are hooked on the protocol itself: a wrapping one would cost a call for each of its events.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

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
    # Not by vars(): that would make a dictionary, for as long as the connection lives.
    known: Any = protocol.connectionLost
    before = None if getattr(known, "__self__", None) is protocol else known
    lost = partial(_lost, protocol, before, call, args)
    protocol.connectionLost = lost  # type: ignore[method-assign]


def unhook_lost(protocol: IProtocol) -> None:
    """Nobody is to be told any more: another protocol has its connection."""
    vars(protocol).pop("connectionLost", None)


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


def when_made(protocol: IProtocol, call: Callable[[Any], object]) -> None:
    """Call ``call(transport)`` right before the protocol is told of its connection."""
    before = vars(protocol).pop("makeConnection", None)

    def make_connection(transport: ITransport) -> None:
        _put_back(protocol, before)
        call(transport)
        protocol.makeConnection(transport)

    protocol.makeConnection = make_connection  # type: ignore[method-assign]


_log = Logger()


def guard_making(protocol: IProtocol) -> None:
    """End the connection of a protocol that raises when it is made; stock reactors may leave it."""
    before = vars(protocol).pop("makeConnection", None)

    def make_connection(transport: ITransport) -> None:
        _put_back(protocol, before)
        try:
            protocol.makeConnection(transport)
        except Exception:
            _log.failure("{protocol} raised when its connection was made", protocol=protocol)
            transport.abortConnection()  # type: ignore[attr-defined]

    protocol.makeConnection = make_connection  # type: ignore[method-assign]


def _put_back(protocol: IProtocol, before: Callable[[ITransport], None] | None) -> None:
    """What was there before, or the class's own."""
    del vars(protocol)["makeConnection"]
    if before is not None:
        protocol.makeConnection = before  # type: ignore[assignment, method-assign]
