"""A survey for tests: on a clock, and with a kernel that is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from proxykit.model import PortRange
from proxykit.net import survey as module
from proxykit.net.sockdiag import way
from proxykit.net.survey import PLENTY, Survey
from tests.core import HERE, House, backends

ESTABLISHED = 1
TO = way(HERE, "10.0.0.1", 80)[0]
Rows = list[tuple[int, int, bytes, int]]


@implementer(IReactorFDSet)
class FDClock(Clock):
    """A clock that waits for descriptors, too; a test says when one can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        assert reader.fileno() >= 0
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        assert reader.fileno() >= 0
        if reader in self.readers:
            self.readers.remove(reader)

    def addWriter(self, writer: Any) -> None:
        """Nobody writes."""

    removeWriter = addWriter

    def removeAll(self) -> list[Any]:
        gone, self.readers = self.readers, []
        return gone

    def getReaders(self) -> list[Any]:
        return self.readers

    def getWriters(self) -> list[Any]:
        return []


class FakeKernel:
    """What is shown, in so many reads.

    :ivar pieces: of the next dump; an error is raised in its place.
    :ivar refuses: what is raised when it is asked.
    """

    def __init__(self) -> None:
        self.pieces: list[Rows | OSError] = [[]]
        self.refuses: OSError | None = None
        self.dumps: list[FakeDump] = []

    def dump(self, low: int, high: int) -> Any:
        if self.refuses is not None:
            raise self.refuses
        self.dumps.append(FakeDump(low, high, list(self.pieces), 100 + len(self.dumps)))
        return self.dumps[-1]


class FakeDump:
    def __init__(self, low: int, high: int, pieces: list[Any], number: int) -> None:
        self.range = low, high
        self.pieces = pieces
        self.number = number
        self.done = False
        self.reads = 0

    def fileno(self) -> int:
        return self.number

    def read(self) -> Any:
        assert self.number >= 0
        self.reads += 1
        piece = self.pieces.pop(0)
        self.done = not self.pieces
        if isinstance(piece, OSError):
            raise piece
        return iter(piece)

    def close(self) -> None:
        assert self.number >= 0, "closed twice"
        self.number = -1


class SurveyTestCase(SynchronousTestCase):
    """Backends 1 and 2, with ten ports to each; the first reading shows nothing."""

    clocks: Any = FDClock

    def setUp(self) -> None:
        self.patch(module.kernel, "time_wait_reuse", lambda: 0)
        #: What a read takes, and what time it is for who has to be patient.
        self.cost, self.spent, self.patient = 0.0, 0.0, 0.0
        clock = SimpleNamespace(perf_counter=self.perf_counter, monotonic=lambda: self.patient)
        self.patch(module, "time", clock)
        self.house = House(*backends(1, 1), ports=10)
        self.accountant = self.house.accountant
        self.clock = self.clocks()
        self.kernel = FakeKernel()
        self.range = PortRange(1, 10)
        self.survey = Survey(self.clock, self.accountant, lambda: self.range, self.kernel.dump)
        self.leases = [self.accountant.lease(self.house.state(number)) for number in (1, 2)]
        for lease in self.leases:
            lease.named(1)

    def perf_counter(self) -> float:
        self.spent += self.cost
        return self.spent

    @property
    def dumps(self) -> int:
        return len(self.kernel.dumps)

    def book(self, number: int = 1) -> tuple[int, int, int]:
        """Of the first backend's page, or another's: in TIME_WAIT, foreign, free."""
        shown = self.accountant.snapshot()[number - 1]
        return shown["time_wait"], shown["foreign"], shown["free"]

    def seconds(self, count: int) -> None:
        """Time, and all that can be read meanwhile."""
        for _ in range(count):
            self.clock.advance(1)
            self.read_on()

    def begin(self) -> None:
        """Let the next one by the clock begin."""
        self.seconds(PLENTY - 1)
        self.clock.advance(1)

    def step(self) -> None:
        """One read of what is under way."""
        (reader,) = self.clock.readers
        self.assertIsNone(reader.doRead())

    def read_on(self) -> None:
        while self.clock.readers:
            self.step()

    def use_up(self, count: int = 5) -> None:
        """Of the first backend's ports."""
        for number in range(count):
            self.accountant.lease(self.house.state(1)).named(2 + number)
