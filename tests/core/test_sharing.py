"""The reasons why a connection is shared, or not."""

import json

from twisted.trial.unittest import SynchronousTestCase

from proxykit.core import sharing
from proxykit.core.sharing import ADVICE, WHY, explained


class ReasonsTests(SynchronousTestCase):
    def test_each_has_a_sentence_of_its_own(self):
        names = [
            value
            for name, value in vars(sharing).items()
            if name.isupper() and isinstance(value, str) and name not in ("L4", "L7")
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
