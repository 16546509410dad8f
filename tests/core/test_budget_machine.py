"""proxykit.core.budget beside a plain model of the kernel: what it says is free is free."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.budget import TIME_WAIT, TOO_YOUNG, Budget, Use
from tests.core.budgets import KEY

PORTS = range(1, 7)
FOREIGN, RESTING = "foreign", "resting"


class Held:
    """One of our leases. The kernel has given it a port, which the book may not know yet."""

    def __init__(self, port):
        self.port = port
        self.named = False


class BudgetMachine(RuleBasedStateMachine):
    """Leases, closes, time, others, and readings that all of it falls into.

    A reading is a train of pieces. The kernel writes each down when the one before is read, so that
    what is read is the past.
    """

    ports = st.sampled_from(PORTS)
    which = st.integers(0, 20)

    @initialize(reuse=st.booleans(), kept=st.sampled_from((0.0, 0.3)))
    def start(self, reuse, kept):
        self.budget = Budget(KEY, len(PORTS), kept, int(reuse))
        self.reuse = reuse
        self.kernel = {}  # by port: FOREIGN, RESTING or the lease that has it
        self.until = {}  # by port that rests: the second in which that is over
        self.leases = []
        self.second, self.now = 0, 0.0
        self.young = []  # when each was closed that is not given out again yet, where any is
        self.known = set()  # ports at rest that we have closed, or been shown
        # Those that we have closed, and until when they rest: since the last reading began, and
        # before the one that is under way.
        self.closed, self.closed_before = {}, {}
        # As the last whole reading had them.
        self.others = self.listening = 0
        self.at_rest = set()
        self.pieces = None  # of the reading that is under way: those that are to be written yet
        self.written = []  # the one to be read next: port, and what had it
        self.shown_others, self.shown_resting = set(), set()
        self.left = set()  # ports that were ours in this reading: who is shown with one has left it
        self.unclear = 0  # leases whose port may have been shown, or not, when nobody knew it

    def pick(self, things, number):
        return things[number % len(things)]

    # Ours.

    @precondition(lambda self: self.budget.free > 0)
    @rule(named=st.booleans(), number=which)
    def lease(self, named, number):
        """The kernel gives what nobody has and, where it reuses, what has rested a while."""
        self.budget.counts[Use.RESERVED] += 1
        self.budget.free -= 1
        have = [port for port in PORTS if self.can_be_had(port)]
        if not have:
            self.budget.denied()
            self.give_back(Held(0), False)
            assert self.budget.free == 0
            return
        lease = Held(self.pick(have, number))
        self.kernel[lease.port] = lease
        self.known.discard(lease.port)
        self.leases.append(lease)
        if named:
            self.tell(lease)
        elif self.pieces is not None:
            self.unclear += 1  # Nobody knows whether it was there when the kernel wrote.

    def can_be_had(self, port):
        if self.kernel.get(port) is RESTING:
            return self.reuse and self.now >= self.until[port] - TIME_WAIT + TOO_YOUNG
        return port not in self.kernel

    def tell(self, lease):
        lease.named = True
        self.budget.named(lease.port)
        self.at_rest.discard(lease.port)
        for each in (self.closed, self.closed_before):
            each.pop(lease.port, None)

    @precondition(lambda self: not all(each.named for each in self.leases))
    @rule(number=which)
    def name(self, number):
        self.tell(self.pick([each for each in self.leases if not each.named], number))

    @precondition(lambda self: self.leases)
    @rule(number=which, by=st.sampled_from(("proxy", "backend", "reset")))
    def close(self, number, by):
        """One that is not named yet has failed to connect."""
        lease = self.pick(self.leases, number)
        self.leases.remove(lease)
        rests = lease.named and by == "proxy"
        if rests:
            self.rest(lease.port)
            self.known.add(lease.port)
            self.closed[lease.port] = self.until[lease.port]
        else:
            del self.kernel[lease.port]
        self.give_back(lease, rests)

    def give_back(self, lease, rests):
        if self.pieces is not None and lease.named:
            self.left.add(lease.port)
        elif self.pieces is not None and lease.port:
            self.unclear += 1
        if rests and self.reuse:
            self.young.append(self.now)
        self.budget.counts[Use.RESERVED] -= 1
        self.budget.left(lease.port if lease.named else 0, rests, self.second, self.now)

    def rest(self, port):
        self.kernel[port] = RESTING
        self.until[port] = self.second + TIME_WAIT

    # The others, and time.

    @rule(port=ports, rests=st.booleans())
    def somebody_else(self, port, rests):
        """Takes a port, or leaves it."""
        if self.kernel.get(port) is FOREIGN:
            del self.kernel[port]
            if rests:
                self.rest(port)
        elif port not in self.kernel and port not in self.left:
            # In a reading nothing tells that from what was ours when the kernel wrote it down.
            self.kernel[port] = FOREIGN

    @rule(seconds=st.sampled_from((1, 1, 7, 30, 59, 60)))
    def tick(self, seconds):
        self.second += seconds
        self.grow(self.second - self.now)
        for port, until in tuple(self.until.items()):
            if self.kernel.get(port) is not RESTING:
                del self.until[port]
            elif until <= self.second:
                del self.until[port], self.kernel[port]
                self.known.discard(port)
        for closed in (self.closed, self.closed_before):
            for port in [port for port, until in closed.items() if until <= self.second]:
                del closed[port]
        self.budget.age(self.second)

    @precondition(lambda self: self.now < self.second + 0.5)
    @rule(seconds=st.sampled_from((0.0, 0.25, 0.5)))
    def grow(self, seconds):
        """Time within a second."""
        self.now += seconds
        self.young = [each for each in self.young if self.now - each < TOO_YOUNG]
        self.budget.grow(self.now)

    # Readings.

    @precondition(lambda self: self.pieces is None)
    @rule(order=st.permutations(PORTS), size=st.integers(1, 6))
    def begin(self, order, size):
        self.pieces = [order[at : at + size] for at in range(0, len(order), size)]
        self.shown_others, self.shown_resting = set(), set()
        self.unclear = 0
        self.closed_before |= self.closed
        self.closed = {}
        self.write()
        self.budget.begin_reading()

    def write(self):
        self.written = []
        if self.pieces:
            piece = self.pieces.pop(0)
            self.written = [(port, self.kernel[port]) for port in piece if port in self.kernel]

    @precondition(lambda self: self.pieces is not None)
    @rule(listening=st.integers(0, 2))
    def step(self, listening):
        last = not self.pieces
        for port, owner in self.written:
            self.budget.saw(port, owner is RESTING)
            if owner is RESTING:
                self.shown_resting.add(port)
            elif owner is FOREIGN:
                self.shown_others.add(port)
        self.write()
        if last:
            ours = {each.port for each in self.leases if each.named}
            self.shown_others -= ours | self.left
            # What we have left is known by that, however long the reading takes.
            self.shown_resting -= ours | self.left
            self.end()
            self.budget.end_reading(listening)
            self.compare(listening)

    @precondition(lambda self: self.pieces is not None)
    @rule()
    def give_up(self):
        self.end()
        self.budget.give_up_reading()

    def end(self):
        self.pieces = None
        self.left.clear()

    @precondition(lambda self: self.pieces is None)
    @rule()
    def read(self):
        """A whole reading in one go, with nothing in between."""
        self.begin(PORTS, 2)
        while self.pieces is not None:
            self.step(0)

    def compare(self, listening):
        """All that the kernel has shown, and what we have closed behind its back."""
        self.closed_before = {}
        self.at_rest = self.shown_resting - self.closed.keys()
        self.known |= {port for port in self.shown_resting if self.kernel.get(port) is RESTING}
        wrong = self.budget.foreign - listening - len(self.shown_others)
        assert abs(wrong) <= self.unclear
        self.others, self.listening = len(self.shown_others) + wrong, listening
        assert self.others >= 0

    @invariant()
    def is_exact(self):
        """As far as it has been told."""
        budget = self.budget
        assert budget.used == len(self.leases)
        assert budget.ports == {each.port for each in self.leases if each.named}
        assert budget.foreign == self.others + self.listening
        resting = len(self.at_rest) + len(self.closed) + len(self.closed_before)
        assert budget.time_wait == resting
        gone = budget.foreign + budget.unseen + (len(self.young) if self.reuse else resting)
        assert budget.free == budget.limit - len(self.leases) - gone
        assert budget.unseen >= 0
        assert budget.snapshot()["free"] == max(0, budget.free)

    @invariant()
    def promises_nothing_that_is_not_there(self):
        """What rests, of that which it was told of, is never less than it says."""
        assert self.budget.time_wait >= len(self.known)

    def teardown(self):
        if not hasattr(self, "budget"):
            return
        for lease in tuple(self.leases):
            self.leases.remove(lease)
            del self.kernel[lease.port]
            self.give_back(lease, False)
        self.kernel.clear()
        self.tick(TIME_WAIT)
        if self.pieces is not None:
            self.give_up()
        for _ in range(2 + len(PORTS).bit_length()):
            self.read()  # Half of what was denied is promised again each time.
        assert self.budget.free == self.budget.limit
        assert self.budget.ports == set()


class BudgetMachineTests(SynchronousTestCase):
    def test_all(self):
        run_state_machine_as_test(
            BudgetMachine,
            settings=settings(deadline=None, max_examples=400, stateful_step_count=50),
        )
