"""proxykit.core.budget: what the kernel shows of its sockets, and what it denies."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.budget import TIME_WAIT
from tests.core.budgets import COARSE, budget_of, give, read, take


class DeniedTests(SynchronousTestCase):
    def test_nothing_is_left(self):
        """By the time that the lease is back, whatever was free by the book."""
        for others in (0, 4, 9):
            budget = budget_of()
            take(budget, *range(1, others + 1), 0)
            budget.denied()
            self.assertLess(budget.free, 0)
            give(budget, 0)
            self.assertEqual((budget.free, budget.unseen), (0, 10 - others))

    def test_several_at_once(self):
        """Each of them had been promised one, and each is told no."""
        budget = budget_of()
        take(budget, 0, 0, 0)
        for _ in range(3):
            budget.denied()
            give(budget, 0)
            self.assertEqual(budget.free, 0)
        self.assertEqual(budget.unseen, 10)

    def test_time_alone_does_not_help(self):
        budget = budget_of()
        self.deny(budget)
        budget.age(TIME_WAIT)
        self.assertEqual((budget.unseen, budget.free), (10, 0))

    def deny(self, budget):
        take(budget, 0)
        budget.denied()
        give(budget, 0)

    def test_what_is_shown_tells_why(self):
        """Then that is all there is to it."""
        budget = budget_of()
        self.deny(budget)
        read(budget, *((port, False) for port in range(1, 9)), listening=1)
        self.assertEqual((budget.unseen, budget.foreign, budget.free), (0, 9, 1))
        self.deny(budget)
        read(budget, *((port, False) for port in range(1, 12)))
        self.assertEqual((budget.unseen, budget.foreign, budget.free), (0, 11, -1))

    def test_nothing_tells_why(self):
        """One is tried; as long as that is denied, one at each reading."""
        budget = budget_of()
        for _ in range(5):
            self.deny(budget)
            self.assertEqual(budget.free, 0)
            read(budget)
            self.assertEqual((budget.unseen, budget.free), (9, 1))

    def test_some_of_it_is_told(self):
        budget = budget_of()
        take(budget, 1)
        self.deny(budget)
        read(budget, (1, False), (2, False), (3, False))
        self.assertEqual((budget.unseen, budget.foreign, budget.free), (6, 2, 1))

    def test_more_has_come_free(self):
        """No more is kept back than had been denied."""
        budget = budget_of()
        take(budget, *range(1, 9))
        self.deny(budget)
        self.assertEqual(budget.unseen, 2)
        give(budget, *range(1, 9))
        read(budget)
        self.assertEqual((budget.unseen, budget.free), (2, 8))

    def test_given_again(self):
        """Half of the rest at each reading from then on."""
        budget = budget_of()
        self.deny(budget)
        read(budget)
        for unseen in (4, 2, 1, 0, 0):
            read(budget)
            self.assertEqual((budget.unseen, budget.free), (unseen, 10 - unseen))

    def test_while_it_is_read(self):
        """It began before that, so it may not tell why."""
        budget = budget_of()
        budget.begin_reading()
        self.deny(budget)
        budget.end_reading(0)
        self.assertEqual((budget.unseen, budget.free), (9, 1))

    def test_given_up(self):
        """What was not read to its end tells nothing."""
        budget = budget_of()
        self.deny(budget)
        budget.begin_reading()
        budget.give_up_reading()
        self.assertEqual((budget.unseen, budget.free), (10, 0))

    def test_nobody_reads(self):
        budget = budget_of()
        self.deny(budget)
        for unseen in (9, 4, 2):
            budget.forgive()
            self.assertEqual((budget.unseen, budget.free), (unseen, 10 - unseen))


class ReadingTests(SynchronousTestCase):
    """What the kernel shows."""

    def test_others(self):
        budget = budget_of()
        take(budget, 1, 2)
        read(budget, (1, False), (2, False), (3, False), (4, True), (5, True), listening=2)
        self.assertEqual((budget.foreign, budget.time_wait, budget.free), (3, 2, 3))
        read(budget, (1, False), (2, False))
        self.assertEqual((budget.foreign, budget.time_wait, budget.free), (0, 0, 8))

    def test_more_than_there_is(self):
        """Others have what was to be kept."""
        budget = budget_of(10, headroom=0.2)
        read(budget, *((port, False) for port in range(1, 11)))
        self.assertEqual((budget.free, budget.snapshot()["free"]), (-2, 0))

    def test_not_known_by_its_port(self):
        """One of ours that is being connected is not somebody else's."""
        budget = budget_of()
        take(budget, 0, 0)
        read(budget, (7, False), (8, False), (9, False))
        self.assertEqual((budget.foreign, budget.free), (1, 7))
        read(budget, (7, False))
        self.assertEqual((budget.foreign, budget.free), (0, 8))

    def test_rested_before(self):
        """What the kernel shows counts, and what it does not show any more does not."""
        budget = budget_of()
        take(budget, 1, 2)
        give(budget, 1, 2, rests=True)
        budget.begin_reading()
        self.assertEqual((budget.time_wait, budget.free), (2, 8))
        budget.saw(1, True)
        budget.end_reading(0)
        self.assertEqual((budget.time_wait, budget.free), (1, 9))

    def test_closed_behind_it(self):
        """It was shown as one of ours; that it rests by now is known from here."""
        budget = budget_of()
        take(budget, 1)
        budget.begin_reading()
        budget.saw(1, False)
        give(budget, 1, rests=True)
        budget.end_reading(0)
        self.assertEqual((budget.time_wait, budget.free), (1, 9))
        read(budget, (1, True))
        self.assertEqual((budget.time_wait, budget.free), (1, 9))

    def test_closed_in_front_of_it(self):
        """It is shown as resting: not twice."""
        budget = budget_of()
        take(budget, 1)
        budget.begin_reading()
        give(budget, 1, rests=True)
        budget.saw(1, True)
        budget.end_reading(0)
        self.assertEqual((budget.time_wait, budget.free), (1, 9))

    def test_closed_while_it_was_on_its_way(self):
        """The kernel has put it down as open, and it is closed when that is read."""
        for rests in (False, True):
            budget = budget_of()
            take(budget, 1)
            budget.begin_reading()
            give(budget, 1, rests=rests)
            budget.saw(1, False)
            budget.end_reading(0)
            self.assertEqual((budget.foreign, budget.time_wait), (0, int(rests)))
            self.assertEqual(budget.free, 10 - rests)
            # Only this time: the next that has it is somebody else.
            read(budget, (1, False))
            self.assertEqual(budget.foreign, 1)

    def test_second_in_the_middle(self):
        """What is shown as resting still counts when a second ends before the reading does."""
        budget = budget_of()
        take(budget, 1, 2)
        budget.begin_reading()
        give(budget, 1, rests=True)
        budget.saw(1, True)
        budget.age(1)
        self.assertEqual((budget.time_wait, budget.free), (1, 8))
        budget.end_reading(0)
        self.assertEqual((budget.time_wait, budget.free), (1, 8))

    def test_named_behind_it(self):
        """It was shown as somebody's, and turns out to be ours."""
        budget = budget_of()
        take(budget, 0)
        budget.begin_reading()
        budget.saw(1, False)
        budget.named(1)
        budget.end_reading(0)
        self.assertEqual((budget.foreign, budget.free), (0, 9))

    def test_had_again_behind_it(self):
        """It was shown as resting, or was closed before, and is used again."""
        for shown in (False, True):
            budget = budget_of()
            take(budget, 1)
            give(budget, 1, rests=True)
            budget.begin_reading()
            if shown:
                budget.saw(1, True)
            take(budget, 1)
            self.assertEqual((budget.time_wait, budget.free), (0, 9))
            budget.end_reading(0)
            self.assertEqual((budget.time_wait, budget.free), (0, 9))

    def test_had_again_and_closed_behind_it(self):
        """It was shown as resting, but what had it since has left nothing behind."""
        for rests in (False, True):
            budget = budget_of()
            budget.begin_reading()
            budget.saw(1, True)
            take(budget, 1)
            give(budget, 1, rests=rests)
            budget.end_reading(0)
            self.assertEqual((budget.time_wait, budget.free), (int(rests), 10 - rests))

    def test_had_again_after_it(self):
        """The kernel has given one that it had shown as resting."""
        budget = budget_of()
        read(budget, (1, True), (2, True))
        take(budget, 1)
        self.assertEqual((budget.time_wait, budget.free), (1, 8))
        give(budget, 1)
        self.assertEqual((budget.time_wait, budget.free), (1, 9))

    def test_shared_by_others(self):
        """One port may have a socket to each of many places, as on a port that is listened on."""
        budget = budget_of(key=COARSE)
        take(budget, 1)
        rows = [(1, False), (2, False), (2, False), (2, True), (3, True), (3, True)]
        read(budget, *rows)
        self.assertEqual((budget.foreign, budget.time_wait, budget.free), (1, 1, 7))

    def test_given_up(self):
        """The book is what it was, and goes on by itself."""
        budget = budget_of()
        take(budget, 1, 2, 3)
        give(budget, 1, rests=True)
        read(budget, (1, True), (8, False), listening=1)
        give(budget, 2, rests=True, second=5)
        before = budget.snapshot()
        budget.begin_reading()
        budget.saw(9, False)
        budget.saw(3, False)
        budget.give_up_reading()
        self.assertEqual(budget.snapshot(), before)
        give(budget, 3)
        budget.age(5 + TIME_WAIT)
        self.assertEqual((budget.foreign, budget.time_wait, budget.free), (2, 1, 7))
        # What was seen by the one that was given up is not seen by the next.
        read(budget, (3, False))
        self.assertEqual((budget.foreign, budget.time_wait, budget.free), (1, 0, 9))

    def test_given_up_twice(self):
        """What was closed before is neither forgotten nor kept for ever."""
        budget = budget_of()
        for port in (1, 2):
            take(budget, port)
            give(budget, port, rests=True, second=port)
            budget.begin_reading()
            budget.give_up_reading()
        for second, resting in ((TIME_WAIT, 2), (TIME_WAIT + 1, 1), (TIME_WAIT + 2, 0)):
            budget.age(second)
            self.assertEqual((budget.time_wait, budget.free), (resting, 10 - resting))
