"""Count tests: read what trial printed, and say it in one line, summed over its runs.

``count.py LOG [STATUS]``, where STATUS is how the run of the tests ended; exits 1 if any failed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

#: Trial's own closing lines: how many ran, an empty line, and the verdict with its numbers. At the
#: start of a line, so that what a failing test quotes is not taken for them.
_SUMMARY = re.compile(
    r"^Ran \d+ tests? in [\d.]+s\r?\n\s*^(?P<verdict>PASSED|FAILED)(?: \((?P<numbers>[^)\n]*)\))?",
    re.MULTILINE,
)
_FAILED = ("failures", "errors", "unexpectedSuccesses")
#: A test that is known to fail proves nothing, and so counts with those that did not run.
_SKIPPED = ("skips", "expectedFailures")


class Count(NamedTuple):
    """The tests of all runs together."""

    passed: int
    failed: int
    skipped: int

    def __str__(self) -> str:
        text = f"{self.passed} passed, {self.failed} failed"
        return f"{text}, {self.skipped} skipped" if self.skipped else text


def count(log: str, status: int = 0) -> Count:
    """Sum up every summary in ``log``.

    :param status: how the run ended. Where it failed and no test says why (a crash, a run that
        never came to its summary), that is one failure.
    """
    passed = failed = skipped = 0
    summaries = list(_SUMMARY.finditer(log))
    for summary in summaries:
        numbers = {
            name: int(number)
            for name, _, number in (
                part.strip().partition("=") for part in (summary["numbers"] or "").split(",")
            )
            if number.isdigit()
        }
        broken = sum(numbers.get(name, 0) for name in _FAILED)
        passed += numbers.get("successes", 0)
        failed += broken or int(summary["verdict"] == "FAILED")
        skipped += sum(numbers.get(name, 0) for name in _SKIPPED)
    if failed == 0 and (status != 0 or not summaries):
        failed = 1
    return Count(passed, failed, skipped)


def main(arguments: list[str]) -> int:
    """Print the count of the log that ``arguments`` name."""
    log = Path(arguments[0]).read_text(encoding="utf-8", errors="replace")
    result = count(log, int(arguments[1]) if len(arguments) > 1 else 0)
    sys.stdout.write(f"{result}\n")
    return int(result.failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
