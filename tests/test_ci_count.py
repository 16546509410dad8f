"""Tests for .ci/count.py, with closing lines as trial prints them."""

import contextlib
import importlib.util
import io
from pathlib import Path
from types import ModuleType

from twisted.trial.unittest import SynchronousTestCase

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "count.py"

RULE = "-" * 79 + "\n"
PASSED = RULE + "Ran 123 tests in 1.234s\n\nPASSED (skips=1, successes=122)\n"
ALL_PASSED = RULE + "Ran 7 tests in 0.010s\n\nPASSED (successes=7)\n"
NONE = RULE + "Ran 0 tests in 0.000s\n\nPASSED\n"
FAILED = RULE + (
    "Ran 124 tests in 9.000s\n\n"
    "FAILED (skips=1, expectedFailures=2, failures=1, errors=2, unexpectedSuccesses=1,"
    " successes=117)\n"
)


def load() -> ModuleType:
    """The script as a module; its directory is no package."""
    spec = importlib.util.spec_from_file_location("proxykit_ci_count", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CountTests(SynchronousTestCase):
    def setUp(self):
        self.module = load()

    def said(self, log, status=0):
        return str(self.module.count(log, status))

    def test_table(self):
        for log, expected in (
            (ALL_PASSED, "7 passed, 0 failed"),
            (PASSED, "122 passed, 0 failed, 1 skipped"),
            (FAILED, "117 passed, 4 failed, 3 skipped"),
            (PASSED + "make: more output\n" + ALL_PASSED, "129 passed, 0 failed, 1 skipped"),
            (PASSED + FAILED, "239 passed, 4 failed, 4 skipped"),
            (ALL_PASSED.replace("\n", "\r\n"), "7 passed, 0 failed"),
            (ALL_PASSED.replace("7 tests", "1 test").replace("=7", "=1"), "1 passed, 0 failed"),
            (NONE, "0 passed, 0 failed"),
        ):
            with self.subTest(expected=expected):
                self.assertEqual(self.said(log), expected)

    def test_no_summary_is_a_failure(self):
        self.assertEqual(self.said(""), "0 passed, 1 failed")
        self.assertEqual(self.said("make: *** [Makefile:30: test] Error 1\n"), "0 passed, 1 failed")
        self.assertEqual(self.said("Ran 3 tests in 0.1s\nKilled\n"), "0 passed, 1 failed")

    def test_failed_without_numbers(self):
        self.assertEqual(
            self.said(ALL_PASSED.replace("PASSED (successes=7)", "FAILED")), "0 passed, 1 failed"
        )

    def test_status_without_a_failed_test(self):
        """The second run crashed: what the first one counted stands, and one failure more."""
        self.assertEqual(self.said(PASSED, 2), "122 passed, 1 failed, 1 skipped")
        self.assertEqual(self.said(FAILED, 2), "117 passed, 4 failed, 3 skipped")

    def test_quoted_summaries_do_not_count(self):
        quoted = "    Ran 5 tests in 1.0s\n\n    PASSED (successes=5)\n"
        self.assertEqual(self.said(quoted + ALL_PASSED), "7 passed, 0 failed")
        self.assertEqual(self.said("PASSED (successes=9)\n" + ALL_PASSED), "7 passed, 0 failed")

    def test_main(self):
        """One line, and the status says whether any failed."""
        for log, arguments, line, status in (
            (PASSED, [], "122 passed, 0 failed, 1 skipped\n", 0),
            (PASSED, ["0"], "122 passed, 0 failed, 1 skipped\n", 0),
            (PASSED, ["2"], "122 passed, 1 failed, 1 skipped\n", 1),
            ("", ["0"], "0 passed, 1 failed\n", 1),
        ):
            path = Path(self.mktemp())
            path.write_text(log)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                self.assertEqual(self.module.main([str(path), *arguments]), status)
            self.assertEqual(printed.getvalue(), line)
