"""The reasons why a connection is shared, or not."""

import json
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core import sharing
from proxykit.core.sharing import ADVICE, WHY, Shares, explained, waits


class ReasonsTests(SynchronousTestCase):
    def test_each_has_a_sentence_of_its_own(self):
        names = [
            value
            for name, value in vars(sharing).items()
            if name[0].isalpha()
            and name.isupper()
            and isinstance(value, str)
            and name not in ("L4", "L7")
        ]
        self.assertEqual(sorted(names), sorted(WHY))
        self.assertEqual(len(set(WHY.values())), len(WHY))

    def test_they_are_words_and_one_line_each(self):
        for name, why in WHY.items():
            self.assertRegex(name, r"\A[a-z]+(-[a-z]+)*\Z")
            self.assertRegex(why, r"\A[!-~]+( [!-~]+)*\Z")
            self.assertNotRegex(why, r"\.\Z")

    def test_advice_is_for_reasons(self):
        self.assertEqual(set(ADVICE) - set(WHY), set())

    def test_explained(self):
        for kind, shared, reason in (
            ("l4", False, "opaque"),
            ("l7", True, "reused"),
            (None, None, "unknown"),
        ):
            found = json.loads(json.dumps(explained(kind, shared, reason)))
            self.assertEqual(
                found,
                {
                    "kind": kind,
                    "shared": shared,
                    "reason": reason,
                    "why": WHY[reason],
                    "advice": ADVICE.get(reason),
                },
            )
            self.assertEqual(found["advice"] is None, reason != "opaque")

    def test_waits(self):
        for ports in (False, True):
            found = waits("l4", "all is full", ports)
            self.assertEqual(found.pop("full"), "all is full")
            advice = found.pop("advice")
            self.assertEqual("[sources]" in advice, ports)
            self.assertEqual("max_connections" in advice, not ports)
            self.assertEqual(
                {**found, "advice": ADVICE["waiting"]}, explained("l4", None, "waiting")
            )


def connection(own, not_kept=""):
    return SimpleNamespace(own=own, not_kept=not_kept)


class SharesTests(SynchronousTestCase):
    """What the requests of one client come to."""

    def setUp(self):
        self.shares = Shares()

    def assert_counts(self, reused, own=(), not_kept=()):
        found = {"reused": reused, "own": dict(own), "not_kept": dict(not_kept)}
        self.assertEqual(json.loads(json.dumps(self.shares.snapshot())), found)
        explained = self.shares.explain()
        self.assertEqual({key: explained[key] for key in found}, found)

    def assert_last(self, shared, reason, not_kept=None):
        found = json.loads(json.dumps(self.shares.explain()))["last"]
        gone = found.pop("not_kept")
        if not_kept is None:
            self.assertIsNone(gone)
        else:
            self.assertEqual((gone["reason"], gone["why"]), (not_kept, WHY[not_kept]))
        advice = ADVICE.get(reason)
        self.assertEqual(
            found, {"shared": shared, "reason": reason, "why": WHY[reason], "advice": advice}
        )

    def test_nothing(self):
        self.assert_counts(0)
        self.assertIsNone(self.shares.explain()["last"])
        self.assertEqual(str(self.shares), "")

    def test_reused(self):
        for count in (1, 2):
            self.shares.note(connection("none-idle"), True)
            self.assert_counts(count)
            self.assert_last(True, "reused")
        self.assertEqual(str(self.shares), "2 reused")

    def test_own(self):
        self.shares.note(connection("none-idle"), False)
        self.assert_last(False, "none-idle")
        for _ in range(2):
            self.shares.note(connection("stale", "closed"), False)
        self.assert_last(False, "stale", "closed")
        self.assert_counts(0, {"none-idle": 1, "stale": 2}, {"closed": 2})
        self.assertEqual(str(self.shares), "1 own (none-idle), 2 own (stale), 2 not kept (closed)")

    def test_reused_for_the_last_time(self):
        self.shares.note(connection("none-idle", "surplus"), True)
        self.assert_last(False, "reused", "surplus")
        self.assert_counts(1, {}, {"surplus": 1})
        self.assertEqual(str(self.shares), "1 reused, 1 not kept (surplus)")

    def test_one_s_own(self):
        """Who has been authenticated on it has it alone, be it opened for him or not."""
        for reused in (False, True):
            self.shares = Shares()
            mine = connection("none-idle", "authenticated")
            self.shares.note(mine, reused)
            first = {} if reused else {"none-idle": 1}
            self.assert_counts(int(reused), first, {"authenticated": 1})
            for count in (1, 2):
                self.shares.note(mine, True)
                self.assert_last(False, "authenticated")
                self.assert_counts(
                    int(reused), {**first, "authenticated": count}, {"authenticated": 1}
                )
            self.shares.note(connection("none-idle", "authenticated"), True)
            self.assert_counts(int(reused) + 1, {**first, "authenticated": 2}, {"authenticated": 2})
