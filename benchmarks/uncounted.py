"""The service without its book of source ports: ``python -m benchmarks.uncounted`` and what twistd
takes. What the book costs is the difference to the service as it is.

It hands out ports without end and never looks at the kernel; the first "Cannot assign requested
address" would be everybody's.
"""

from __future__ import annotations

from typing import Any

from twisted.scripts import twistd

from proxykit.core import accountant
from proxykit.core.budget import Use
from proxykit.net import connector, survey


class Unwritten:
    """A lease of which nobody keeps a note."""

    __slots__ = ("use",)
    source = way = closed_by = ""
    port = 0
    wanted = scarce = False

    def __init__(self) -> None:
        self.use = Use.RESERVED

    def connected(self) -> None:
        self.use = Use.ACTIVE

    busy = connected

    def idle(self) -> None:
        self.use = Use.IDLE

    def release(self) -> None:
        self.use = Use.RELEASED

    def failed(self) -> None:
        """Nobody is to be told."""

    def denied(self, why: str) -> None:
        """The same."""


def main() -> None:
    """Leave the book out, and be twistd."""
    made: Any = accountant.Accountant
    made.lease = lambda self, backend: Unwritten()
    connecting: Any = connector._Connecting
    connecting.name = lambda self: None
    del connecting.connection_closes
    observer: Any = survey.Survey
    observer.start = lambda self: None
    twistd.run()


if __name__ == "__main__":
    main()
