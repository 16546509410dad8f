"""Something that blocks, in a thread that nobody waits for when the process ends."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def in_thread(reactor: Any, call: Callable[[], T]) -> Deferred[T]:
    """Call it in a thread of its own.

    The reactor's own threads are waited for at the end, however long that takes.

    :returns: what comes of it; cancelled, it fails at once, and the thread is left to itself.
    """
    result: Deferred[T] = Deferred()

    def settle(outcome: Any) -> None:
        if not result.called:
            result.callback(outcome)

    def run() -> None:
        try:
            outcome: Any = call()
        except BaseException:
            outcome = Failure()
        reactor.callFromThread(settle, outcome)

    Thread(target=run, name="proxykit", daemon=True).start()
    return result
