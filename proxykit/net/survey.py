"""The book of source ports is compared with the kernel's: now and then, and when somebody asks.

A reading goes in small steps, one read of the kernel in a turn of the reactor, and takes one or two
hundredths of a second for ten thousand sockets. While ports are scarce there is one every second,
else every ten; never do they take more than a fiftieth of the time, except for who asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from proxykit.core.rarely import Rarely
from proxykit.errors import NOT_HERE, OUT_OF_DESCRIPTORS
from proxykit.net import kernel, sockdiag

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from proxykit.core.accountant import Accountant
    from proxykit.core.budget import Budget
    from proxykit.core.forecast import Level
    from proxykit.model import PortRange

#: Seconds from one reading to the next: while ports are scarce, and else.
SCARCE, PLENTY = 1, 10
#: Seconds after which a kernel that did not answer is asked again.
BLIND = 300
#: The share of the time that readings may take.
SHARE = 0.02
#: Seconds that pass at least until ports that rested are given out again, some at once.
SOME = 0.02
#: Seconds for one that has to be done before anything else is.
PATIENCE = 5.0


@implementer(IReadDescriptor)
class Survey:
    """See this module.

    :param reactor: has the turns, and the clock.
    :param accountant: keeps the book.
    :param ports: tells which ports there are to pick from, and may change its mind.
    :param dump: asks the kernel about the ports from the first to the last.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        accountant: Accountant,
        ports: Callable[[], PortRange],
        dump: Callable[[int, int], sockdiag.Dump] = sockdiag.Dump,
    ) -> None:
        self._reactor = reactor
        self._accountant = accountant
        self._ports = ports
        self._make = dump
        self._rarely = Rarely(reactor)
        #: Whether the kernel does not answer; then what rests in TIME_WAIT is known from what was
        #: closed here alone.
        self.blind = False
        self.readings = 0
        self._dump: sockdiag.Dump | None = None
        self._timer: IDelayedCall | None = None
        self._next_turn: IDelayedCall | None = None
        # Seconds since the last reading, and those that it took.
        self._since = 0
        self._took = 0.0
        # Who waits for the reading that is under way, and for the next.
        self._waiting: list[Deferred[None]] = []
        self._next: list[Deferred[None]] = []
        # Of the reading that is under way: by their ways the budgets, and ports that are listened
        # on.
        self._by_way: dict[bytes, Budget] = {}
        self._by_source: dict[bytes, Budget] = {}
        self._budgets: list[Budget] = []
        self._listening: set[int] = set()
        # Ports that are not among those that there are, whoever has them.
        self._reserved: frozenset[int] = frozenset()
        self._ticked = 0.0
        self._ripening: IDelayedCall | None = None
        accountant.on_denied = self._denied
        accountant.on_ripening = self._ripens
        accountant.on_level = self._crossed

    def start(self) -> None:
        """Read now, and go on. Starting twice does nothing."""
        if self._timer is not None:
            return
        self.read_now()
        self._ticked = self._reactor.seconds()
        self._timer = self._reactor.callLater(1.0, self._tick)

    def stop(self) -> None:
        """Read no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ripening is not None:
            self._ripening.cancel()
            self._ripening = None
        self._end(complete=False)

    def fresh(self) -> Deferred[None]:
        """A reading that begins from now on; the Deferred fires at its end, and cannot fail."""
        if self.blind or self._timer is None:
            return succeed(None)
        asked: Deferred[None] = Deferred()
        self._next.append(asked)
        if self._dump is None:
            self._begin()
        return asked

    def read_now(self) -> None:
        """A whole reading, at once."""
        if not self._open():
            return
        until = time.monotonic() + PATIENCE
        while self._dump is not None and time.monotonic() < until:
            self._step()
        self._end(complete=False)  # It has ended by now, unless time is up.

    def _tick(self) -> None:
        """Every second."""
        self._timer = self._reactor.callLater(1.0, self._tick)
        now = self._reactor.seconds()
        passed, self._ticked = now - self._ticked, now
        self._accountant.tick(passed, self.blind)
        self._since += 1
        if self._dump is None and self._is_due():
            self._begin()

    def _ripens(self, seconds: float) -> None:
        """Somebody waits for what can be had in so many seconds."""
        if self._ripening is None and self._timer is not None:
            self._ripening = self._reactor.callLater(max(SOME, seconds), self._ripe)

    def _ripe(self) -> None:
        self._ripening = None
        self._accountant.ripen()

    def _is_due(self) -> bool:
        if self.blind:
            return self._since >= BLIND
        if self._since * SHARE < self._took:
            return False
        return self._since >= PLENTY or any(
            budget.refused or budget.free * 2 < budget.limit for budget in self._accountant
        )

    def _crossed(self, level: Level, before: Level, text: str) -> None:
        """The ports of a budget are scarcer than before, or less so."""
        say = self._log.warn if level > before else self._log.info
        say("{text}", text=text)

    def _denied(self, budget: Budget, why: str) -> None:
        """The kernel does not agree with the book."""
        self._since = PLENTY  # At the next tick.
        self._rarely.warn(
            self._log,
            budget.way,
            "{why}: nothing leaves from it until it is there again"
            if why.endswith(NOT_HERE)
            else "{why}, although by the book there are some; it is corrected until the kernel's"
            " sockets have been read again",
            why=why,
        )

    def _begin(self) -> None:
        """A reading, step by step."""
        self._waiting, self._next = self._next, []
        if not self._open():
            self._fire()
        elif IReactorFDSet.providedBy(self._reactor):
            self._reactor.addReader(self)
        else:
            self._next_turn = self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        """For reactors that cannot wait for a descriptor of somebody else's."""
        self._next_turn = None
        dump = self._dump
        self._step()
        if self._dump is dump:
            self._next_turn = self._reactor.callLater(0, self._turn)

    def _open(self) -> bool:
        """Ask the kernel; False: it does not answer."""
        try:
            ports, reuse = self._ports(), kernel.time_wait_reuse()
            reserved = kernel.reserved(ports.low, ports.high) if ports.reserved else frozenset()
            self._dump = self._make(ports.low, ports.high)
        except OSError as problem:
            self._unanswered(problem)
            return False
        self._accountant.measure(ports, reuse)
        self._reserved = reserved
        self._since, self._took = 0, 0.0
        self._by_way, self._by_source, self._listening = {}, {}, set()
        self._budgets = list(self._accountant)
        for budget in self._budgets:
            budget.begin_reading()
            key = budget.key
            table = self._by_way if key.destination else self._by_source
            for way in sockdiag.way(key.source, key.destination, key.port):
                table[way] = budget
        return True

    def _unanswered(self, problem: OSError) -> None:
        if problem.errno in OUT_OF_DESCRIPTORS:
            # There may be some the next time; and memory.
            self._rarely.warn(
                self._log,
                "out of descriptors",
                "the kernel's sockets could not be read ({why}): the book of source ports is as it"
                " was",
                why=problem.strerror or problem,
            )
            return
        self._since = 0
        if self.blind:
            return
        self.blind = True
        self._accountant.go_blind()
        self._log.warn(
            "the kernel does not show its sockets ({why}): ports in TIME_WAIT are counted from what"
            " was closed here, those of other processes not at all",
            why=problem.strerror or problem,
        )

    def _step(self) -> None:
        """One read."""
        dump = self._dump
        assert dump is not None
        begun = time.perf_counter()
        by_way, by_source, source_part = self._by_way, self._by_source, sockdiag.source_part
        resting, listen, reserved = sockdiag.TIME_WAIT, sockdiag.LISTEN, self._reserved
        try:
            for state, port, way, inode in dump.read():
                if port in reserved:
                    continue  # It is not among those that are counted.
                budget = by_way.get(way)
                if budget is None and by_source:
                    budget = by_source.get(source_part(way))
                if budget is not None:
                    # What no process has any more ends in TIME_WAIT, too.
                    budget.saw(port, state == resting or not inode)
                elif state == listen:
                    self._listening.add(port)
        except OSError as problem:
            self._unanswered(problem)
            self._end(complete=False)
            return
        self._took += time.perf_counter() - begun
        if dump.done:
            self._end(complete=True)

    def _end(self, complete: bool) -> None:
        """The reading is over."""
        dump = self._dump
        if dump is not None:
            if IReactorFDSet.providedBy(self._reactor):
                self._reactor.removeReader(self)
            if self._next_turn is not None:
                self._next_turn.cancel()
                self._next_turn = None
            self._dump = None
            dump.close()
            budgets, self._budgets = self._budgets, []
            if complete:
                self.readings += 1
                if self.blind:
                    self.blind = False
                    self._log.info("the kernel shows its sockets again")
                self._accountant.read(budgets, len(self._listening))
            else:
                for budget in budgets:
                    budget.give_up_reading()
        self._fire()

    def _fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)
        if self._next and self._dump is None:
            if self.blind or self._timer is None:
                self._waiting, self._next = self._next, []
                self._fire()
            else:
                self._begin()

    # As a descriptor of the reactor's.

    def fileno(self) -> int:
        """See ``IFileDescriptor.fileno``."""
        return self._dump.fileno() if self._dump is not None else -1

    def doRead(self) -> None:
        """See ``IReadDescriptor.doRead``."""
        if self._dump is not None:
            self._step()

    def logPrefix(self) -> str:
        """See ``ILoggingContext.logPrefix``."""
        return "survey"

    def connectionLost(self, reason: Failure) -> None:
        """See ``IFileDescriptor.connectionLost``: the reactor stops."""
        self._end(complete=False)
