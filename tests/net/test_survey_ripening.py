"""The survey looks when a port has rested for long enough, where somebody waits for one."""

from __future__ import annotations

from proxykit.net import survey as module
from proxykit.net.survey import SOME
from tests.net.surveys import SurveyTestCase


class RipeningTests(SurveyTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(module.kernel, "time_wait_reuse", lambda: 1)
        self.ripened: list[float] = []
        ripen = self.accountant.ripen
        self.patch(
            self.accountant,
            "ripen",
            lambda: (self.ripened.append(self.clock.seconds()), ripen()),
        )

    def told(self, seconds: float) -> None:
        assert self.accountant.on_ripening is not None
        self.accountant.on_ripening(seconds)

    def test_then(self) -> None:
        self.survey.start()
        self.told(0.5)
        self.told(0.25)  # It looks at all of them then.
        self.clock.advance(0.49)
        self.assertEqual(self.ripened, [])
        self.clock.advance(0.01)
        self.assertEqual(self.ripened, [0.5])
        self.told(0.25)
        self.clock.advance(0.25)
        self.assertEqual(self.ripened, [0.5, 0.75])

    def test_some_at_once(self) -> None:
        self.survey.start()
        self.told(0.0)
        self.clock.advance(SOME / 2)
        self.assertEqual(self.ripened, [])
        self.clock.advance(SOME / 2)
        self.assertEqual(self.ripened, [SOME])

    def test_not_while_it_is_stopped(self) -> None:
        self.told(0.5)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.survey.start()
        self.told(0.5)
        self.survey.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.survey.start()
        self.told(0.5)
        self.clock.advance(0.5)
        self.assertEqual(self.ripened, [0.5])
