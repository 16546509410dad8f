"""Fakes for tests: of proxykit itself, and of whatever plugs into it.

They open nothing and need no reactor; for the time, take ``twisted.internet.task.Clock``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zope.interface import implementer

from proxykit.core.waiting import Full
from proxykit.errors import ProxyError
from proxykit.interfaces import IConnector

if TYPE_CHECKING:
    from proxykit.core.choice import Attempt
    from proxykit.interfaces import IAccountant
    from proxykit.model import Address


def split_everywhere(data: bytes) -> Iterator[list[bytes]]:
    """The ways in which a stream may cut data up: in two at each position, and byte by byte."""
    for position in range(1, len(data)):
        yield [data[:position], data[position:]]
    yield [data[index : index + 1] for index in range(len(data))]


@implementer(IConnector)
class FakeConnector:
    """Connects to nothing; what comes of its attempts is laid down beforehand, or told later.

        connector.script(address, Full("no slot"), True)    # first full, from then on ready at once
        connector.script(other, False)                      # under way, as without a script
        ...
        connector.succeed(connector.under_way[0], "upstream")

    :param accountant: leases a port for each attempt, as a connector of sockets does; the lease is
        ``attempt.handle``. Who ends an attempt that has succeeded releases it.
    :ivar attempts: all that were ever asked for, in that order.
    :ivar under_way: those whose outcome is still to be told.
    :ivar cancelled: those that flow has cancelled.
    """

    def __init__(self, accountant: IAccountant | None = None) -> None:
        self.attempts: list[Attempt] = []
        self.under_way: list[Attempt] = []
        self.cancelled: list[Attempt] = []
        self._accountant = accountant
        self._scripts: dict[Address, deque[bool | Full | ProxyError]] = {}

    def script(self, address: Address, *outcomes: bool | Full | ProxyError) -> None:
        """What comes of the next attempts at this address, one after the other; the last stays."""
        self._scripts[address] = deque(outcomes)

    def attempt(self, attempt: Attempt) -> bool | Full:
        """See ``IConnector.attempt``. An upstream that is ready is the string ``"ready"``."""
        self.attempts.append(attempt)
        lease = self._accountant.lease(attempt.backend) if self._accountant else None
        if isinstance(lease, Full):
            return lease
        outcome = self._next(attempt.backend.address)
        if lease is not None and isinstance(outcome, ProxyError | Full):
            lease.release()
        if isinstance(outcome, ProxyError):
            raise outcome
        if isinstance(outcome, Full):
            return outcome
        attempt.handle = attempt.lease = lease
        if outcome:
            attempt.upstream = "ready"
            if lease is not None:
                lease.connected()
        else:
            self.under_way.append(attempt)
        return outcome

    def cancel(self, attempt: Attempt) -> None:
        """See ``IConnector.cancel``."""
        self.under_way.remove(attempt)
        self.cancelled.append(attempt)
        if attempt.handle is not None:
            attempt.handle.release()

    def succeed(self, attempt: Attempt, upstream: object = "connected") -> None:
        """An attempt that is under way has its upstream."""
        self.under_way.remove(attempt)
        if attempt.handle is not None:
            attempt.handle.connected()
        attempt.succeeded(upstream)

    def fail(self, attempt: Attempt, error: ProxyError) -> None:
        """An attempt that is under way comes to nothing."""
        self.under_way.remove(attempt)
        if attempt.handle is not None:
            attempt.handle.release()
        attempt.failed(error)

    def _next(self, address: Address) -> bool | Full | ProxyError:
        script = self._scripts.get(address)
        if not script:
            return False
        return script.popleft() if len(script) > 1 else script[0]
