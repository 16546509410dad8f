"""proxykit.core.balance: a backend whose weight grows, as it does when it has just come back."""

from __future__ import annotations

import random
from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.balance import LeastConnections, RandomTwoChoices, RoundRobin, SourceHash
from tests.core import House, backends

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


class ShareTests(SynchronousTestCase):
    """One of two equal ones, of which the first has a part of its weight."""

    def use(self, policy):
        self.house = House(*backends(1, 1), balancer=policy)
        self.web = self.house.web
        self.a = self.house.state(1)

    def share(self, times, load=0):
        """Which part of so many choices is its own.

        :param load: how many choices last at a time; 0: none does.
        """
        counts: Counter[object] = Counter()
        lasting = []
        for number in range(times):
            backend = self.web.pick(f"192.0.2.{number}", set())
            counts[backend] += 1
            if load:
                backend.load(+1)
                lasting.append(backend)
                if len(lasting) > load:
                    lasting.pop(0).load(-1)
        return counts[self.a] / times

    def test_idle(self):
        """Its part is that of its weight."""
        for policy in (RoundRobin, LeastConnections, lambda: RandomTwoChoices(random.Random(7))):
            for share in SHARES:
                self.use(policy)
                self.web.weigh(self.a, share)
                expected = share / (1.0 + share)
                got = self.share(2000)
                self.assertTrue(abs(got - expected) < 0.03, (policy, share, got))

    def test_under_load(self):
        for policy in (RoundRobin, LeastConnections, lambda: RandomTwoChoices(random.Random(7))):
            for share in SHARES:
                self.use(policy)
                self.web.weigh(self.a, share)
                got = self.share(2000, load=60)
                # Of two random ones the less loaded for its weight: about that.
                self.assertTrue(abs(got - share / (1.0 + share)) < 0.05, (policy, share, got))

    def test_grows_all_the_time(self):
        """With few choices for each step as well: a far turn comes nearer."""
        for policy in (RoundRobin, LeastConnections):
            self.use(policy)
            got = 0.0
            for step in range(1, 11):
                self.web.weigh(self.a, step / 10)
                got += self.share(11) * 11
            # The sum of share / (1 + share), eleven times each: 39.
            self.assertTrue(30 <= got <= 48, (policy, got))

    def test_a_turn_that_was_far_off(self):
        """It has had one as a light one; as a heavier one it need not wait as long for the next."""
        for policy in (RoundRobin, LeastConnections):
            self.use(policy)
            self.web.weigh(self.a, 0.1)
            while self.web.pick("c", set()) is not self.a:
                pass
            self.web.weigh(self.a, 1.0)
            self.assertIn(self.a, [self.web.pick("c", set()) for _ in range(3)])

    def test_by_source(self):
        """Clients stay where they are."""
        self.use(SourceHash)
        before = [self.web.pick(f"192.0.2.{number}", set()) for number in range(200)]
        self.web.weigh(self.a, 0.1)
        after = [self.web.pick(f"192.0.2.{number}", set()) for number in range(200)]
        self.assertEqual(before, after)
        self.house.web.set_state(self.a.address, "down")
        self.house.web.set_state(self.a.address, "up")
        self.assertEqual(self.a.share, 0.1)
        after = [self.web.pick(f"192.0.2.{number}", set()) for number in range(200)]
        self.assertEqual(before, after)
