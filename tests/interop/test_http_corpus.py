"""What comes of malformed and ambiguous messages: see ``http_corpus.py``.

Each is refused, or passed on so that there is one way to read it. The origin never sees a request
that no client has sent, and no client a byte of an answer that is another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.trial.unittest import TestCase

from tests.interop import http_corpus, http_corpus_framing, http_corpus_responses
from tests.interop.http_others import misread
from tests.interop.http_recording import Watch
from tests.sockets import TIMEOUT

REQUESTS = {**http_corpus.FAMILIES, **http_corpus_framing.FAMILIES}
RESPONSES = http_corpus_responses.FAMILIES
#: Then a family is given up: each further one that hangs takes its time.
MOST_COMPLAINTS = 5


class RequestTests(TestCase):
    """Each family in one piece, and some of its cases cut in two somewhere."""

    timeout = TIMEOUT

    async def try_family(self, family: str, in_two: bool) -> None:
        watch = Watch(self)
        await watch.start()
        for number, case in enumerate(REQUESTS[family]()):
            if not in_two:
                await watch.try_case(case)
            elif number % 3 == 0 and case.data:
                await watch.try_case(case, 1 + number * 31 % len(case.data))
            if len(watch.complaints) > MOST_COMPLAINTS:
                break
        self.assertEqual(watch.complaints, [])
        for end in watch.origin.ends:
            for message, raw in end.requests:
                self.assertEqual(misread(message, raw), [], raw)


class ResponseTests(TestCase):
    """What backends do that do not keep to the rules."""

    timeout = TIMEOUT

    async def try_family(self, family: str) -> None:
        watch = Watch(self)
        await watch.start()
        for reply in RESPONSES[family]():
            await watch.try_reply(reply)
            if len(watch.complaints) > MOST_COMPLAINTS:
                break
        self.assertEqual(watch.complaints, [])


def _add_tests(case: type[TestCase], families: Iterable[str], suffix: str, *more: object) -> None:
    """A method for each family, so that what fails is known by its name."""

    def method(family: str) -> Callable[[Any], Any]:
        return lambda self: self.try_family(family, *more)

    for family in families:
        setattr(case, f"test_{family}{suffix}", method(family))


_add_tests(RequestTests, REQUESTS, "", False)
_add_tests(RequestTests, REQUESTS, "_in_two", True)
_add_tests(ResponseTests, RESPONSES, "")
