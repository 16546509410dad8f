"""proxykit.core.forecast: when the ports will be gone."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core import forecast
from proxykit.core.forecast import (
    FAR,
    MEMORY,
    MEMORY_CHANGE,
    MINUTE,
    SOON,
    WARM_UP,
    Forecast,
    Trend,
)

PORTS = 27_667
#: How many seconds pass from one figure to the next.
SECONDS = st.floats(0.5, 60)


def fitted(points, keep):
    """The line with the least squares, by the book: its height at the last point, and its slope.

    :param points: pairs of a time and a height, the times rising.
    """
    last = points[-1][0]
    weights = [(keep ** (last - at), at - last, height) for at, height in points]
    total = sum(weight for weight, _, _ in weights)
    time = sum(weight * at for weight, at, _ in weights) / total
    height = sum(weight * each for weight, _, each in weights) / total
    slope = sum(weight * (at - time) * (each - height) for weight, at, each in weights) / sum(
        weight * (at - time) ** 2 for weight, at, _ in weights
    )
    return height - slope * time, slope


class TrendTests(SynchronousTestCase):
    def about(self, found, expected, by=1e-6):
        self.assertApproximates(found, expected, by * max(1.0, abs(expected)))

    @given(st.integers(-1000, 1000), st.integers(0, 10_000), st.lists(SECONDS, min_size=1))
    def test_a_straight_line(self, slope, height, pauses):
        """It is known from the second figure on, whatever was missed between them."""
        trend = Trend(MEMORY)
        trend.feed(height)
        now = 0.0
        for pause in pauses:
            now += pause
            trend.feed(height + slope * now, pause)
            self.about(trend.slope, slope, 1e-4)
            self.about(trend.level, height + slope * now, 1e-4)

    @given(st.lists(st.tuples(SECONDS, st.integers(0, 100)), min_size=2, max_size=50))
    def test_least_squares(self, figures):
        self.patch(forecast, "CHANGE", float("inf"))
        trend, points, now = Trend(MEMORY), [], 0.0
        for pause, height in figures:
            now += pause
            trend.feed(height, pause)
            points.append((now, height))
        level, slope = fitted(points, 1 - 1 / MEMORY)
        self.about(trend.level, level, 1e-5)
        self.about(trend.slope, slope, 1e-5)

    def test_holt(self):
        """After a while it is Holt's method, with these constants."""
        keep = 1 - 1 / MEMORY
        alpha, beta = 1 - keep**2, (1 - keep) / (1 + keep)
        trend, chance = Trend(MEMORY), Random(1)
        figures = [500 + 5 * second + chance.randrange(50) for second in range(1000)]
        level = slope = 0.0
        for figure in figures:
            before, level = level, alpha * figure + (1 - alpha) * (level + slope)
            slope = beta * (level - before) + (1 - beta) * slope
            trend.feed(figure)
        self.about(trend.level, level)
        self.about(trend.slope, slope)

    def after_quiet(self, rise, seconds):
        trend = Trend(MEMORY)
        for _ in range(1000):
            trend.feed(0.0)
        for second in range(1, seconds + 1):
            trend.feed(rise * second)
        return trend.slope

    def test_a_change(self):
        """Quiet that lasted long is soon forgotten; with the memory alone that takes a minute."""
        for rise in (100, -100):
            self.about(self.after_quiet(rise, 10), rise, 0.2)
            self.about(self.after_quiet(rise, 20), rise, 0.05)
        self.patch(forecast, "CHANGE", float("inf"))
        self.assertLess(self.after_quiet(100, 10), 30)

    def test_a_change_after_a_jump(self):
        """A jump is not taken for the usual noise, in which a rise would go under."""

        def after_a_jump(outlier):
            trend = Trend(MEMORY, outlier)
            for figure in (*[0] * 60, 2500, *[5000] * 30, *range(5000, 8000, 200)):
                trend.feed(float(figure))
            return trend.slope

        self.about(after_a_jump(forecast.OUTLIER), 200, 0.1)
        self.assertLess(after_a_jump(float("inf")), 150)

    def test_what_a_change_forgets(self):
        """It is as if three seconds had counted all the time."""
        self.assertGreater(forecast.CHANGE, 1)
        keep = 1 - 1 / MEMORY_CHANGE
        trend, quick = Trend(MEMORY), Trend(MEMORY_CHANGE)
        for each in (trend, quick):
            for _ in range(1000):
                each.feed(0.0)
            each.feed(100.0)
        self.about(trend.slope, 100 * (1 - keep) ** 2)
        self.about(trend.level, 100 * (1 - keep**2))
        for seen in ("slope", "level", "_weight", "_ages", "_squares"):
            self.about(getattr(trend, seen), getattr(quick, seen))

    def test_a_change_at_the_beginning(self):
        """What is remembered is never more than there was."""
        trend = Trend(MEMORY)
        for figure in (0, 0, 1000):
            trend.feed(figure)
        _, slope = fitted([(0, 0), (1, 0), (2, 1000)], 1 - 1 / MEMORY)
        self.about(trend.slope, slope)

    def test_no_change(self):
        """What is but chance is no change: the slope is as quiet as it is without."""
        usual = forecast.CHANGE
        for pause in (3.0, 1.0):
            slopes = []
            for change in (usual, float("inf")):
                self.patch(forecast, "CHANGE", change)
                trend, chance, height, noise = Trend(MEMORY), Random(1), 0.0, 0.0
                for second in range(2000):
                    height += chance.gauss(100 * pause, 10 * pause**0.5)
                    trend.feed(height, pause)
                    noise += trend._noise * (second >= 1000) / 1000
                slopes.append(trend.slope)
            self.assertEqual(slopes[0], slopes[1])
            # That of the line; of one step it is 100.
            self.assertTrue(200 < noise < 800, noise)

    def test_sure_slope(self):
        """It tells a rise from chance."""
        for rise, seconds, sure in ((0, 200, False), (1, 200, True), (1, 8, False)):
            trend, chance = Trend(MEMORY), Random(2)
            for second in range(seconds):
                trend.feed(rise * second + chance.gauss(100, 10))
            self.assertEqual(trend.sure_slope != 0, sure, (rise, seconds))
            self.assertIn(trend.sure_slope, (0.0, trend.slope))
        sure = 0
        for seed in range(200):
            trend, chance = Trend(MEMORY), Random(seed)
            for _ in range(100):
                trend.feed(chance.gauss(100, 10))
            sure += trend.sure_slope != 0
        self.assertEqual(sure, 0)


class Line:
    """A budget whose ports somebody takes, at a steady rate, for good."""

    def __init__(self, rate, limit=PORTS):
        self.forecast = Forecast()
        self.rate = rate
        self.limit = limit
        self.busy = 0.0

    def pass_by(self, seconds, pause=1.0):
        for _ in range(int(seconds / pause)):
            self.busy += self.rate * pause
            self.forecast.feed(int(self.busy), 0, 0, self.limit, pause)
        return self.forecast.left

    @property
    def right(self):
        return (self.limit - self.busy) / self.rate


class ForecastTests(SynchronousTestCase):
    def near(self, left, right, by):
        self.assertIsNotNone(left)
        self.assertApproximates(left, right, by * right)

    def test_a_steady_rise(self):
        """Within a hundredth, from the fifth second until the last minute."""
        for rate in (46.1, 9.7, 250.3):
            line = Line(rate)
            self.assertIsNone(line.pass_by(WARM_UP - 1))
            while line.right > 60:
                self.near(line.pass_by(1), line.right, 0.01 if rate > 10 else 0.05)

    def test_a_rise_by_chance(self):
        """A minute ahead: nine of ten within a tenth, where 46 come in a second."""
        far = []
        for seed in range(20):
            chance, told, busy, figures = Random(seed), Forecast(), 0, []
            while busy < PORTS:
                busy += max(0, round(chance.gauss(46, 46**0.5)))
                figures.append(told.feed(busy, 0, 0, PORTS))
            far += [abs(figures[-left - 1] - left) / left for left in range(60, 70)]
        far.sort()
        self.assertLess(far[len(far) * 9 // 10], 0.1)

    def test_nothing_to_foresee(self):
        """It falls, or stays; or would last for more than an hour; or there was too little yet."""
        for rate, begin, seconds in ((-10, 20_000, 60), (0, 20_000, 60), (7, 0, 60), (100, 0, 4)):
            line = Line(rate)
            line.busy = begin
            self.assertIsNone(line.pass_by(seconds), rate)
        line.pass_by(1)
        self.near(line.forecast.left, line.right, 0.001)
        line = Line(8)
        line.pass_by(60)
        self.near(line.forecast.left, line.right, 0.01)
        self.assertLess(line.right, FAR)

    def test_empty(self):
        for busy, resting, limit in ((100, 0, 100), (0, 100, 100), (60, 60, 100), (0, 0, 0)):
            told = Forecast()
            self.assertEqual(told.feed(busy, resting, 0, limit), 0.0)
            self.assertEqual(told.left, 0.0)

    def test_seconds_are_missed(self):
        """Late ticks, and those that never came, do no harm."""
        line = Line(46.1)
        for pause in (1.0, 7.0, 1.3, 30.0, 0.6, 60.0, 1.0, 1.0):
            line.pass_by(pause, pause)
        self.near(line.forecast.left, line.right, 0.01)

    def test_a_long_pause(self):
        """What was before it is forgotten."""
        line = Line(46.1)
        line.pass_by(60)
        line.rate = 20.0
        self.assertIsNone(line.pass_by(MINUTE + 1, MINUTE + 1))
        self.assertIsNone(line.pass_by(WARM_UP - 2))
        self.near(line.pass_by(1), line.right, 0.02)

    def test_the_clock_is_set_back(self):
        """A second passes all the same, about."""
        line = Line(46.1)
        line.pass_by(60)
        for seconds in (0.0, -3600.0):  # What half a second brings; a whole one does little harm.
            for brought, by in ((23.05, 0.002), (46.1, 0.1)):
                line.busy += brought
                left = line.forecast.feed(int(line.busy), 0, 0, PORTS, seconds)
                self.near(left, line.right, by)
            line.pass_by(60)
            self.near(line.forecast.left, line.right, 0.02)

    def test_another_limit(self):
        line = Line(46.1)
        line.pass_by(60)
        for limit in (60_000, 5_000):
            line.limit = limit
            line.pass_by(1)
            self.near(line.forecast.left, line.right, 0.01)

    @given(
        st.integers(0, 1000),
        st.lists(
            st.tuples(
                st.integers(0, 1000),
                st.integers(0, 1000),
                st.integers(0, 500),
                st.floats(-10, 200),
            ),
            max_size=100,
        ),
    )
    def test_whatever_happens(self, limit, seconds):
        told, closed = Forecast(), 0
        for busy, resting, more, pause in seconds:
            closed += more
            left = told.feed(busy, resting, closed, limit, pause)
            self.assertEqual(left == 0.0, busy + resting >= limit)
            self.assertTrue(left is None or 0.0 <= left <= FAR, left)


class Short:
    """A budget of connections that are closed at once, and leave their ports in TIME_WAIT.

    :param rate: tells how many there are in a second.
    """

    def __init__(self, rate, limit=PORTS):
        self.forecast = Forecast()
        self.rate = rate
        self.limit = limit
        self.second = 0
        self.closed = []
        #: All forecasts, and how many ports were taken.
        self.left = []
        self.taken = []

    def pass_by(self, seconds):
        for _ in range(seconds):
            self.closed.append(self.rate(self.second))
            self.second += 1
            resting = min(sum(self.closed[-MINUTE:]), self.limit)
            self.left.append(self.forecast.feed(0, resting, sum(self.closed), self.limit))
            self.taken.append(resting)
        return self.left[-1]

    @property
    def gone(self):
        """The second in which there were none left."""
        return self.taken.index(self.limit)


class RestingTests(SynchronousTestCase):
    """Ports in TIME_WAIT come back after a minute."""

    def test_a_minute_full(self):
        """A rise for a minute, and no more: at no time are the ports foreseen to be gone."""
        for quiet in (0, 600):
            short = Short(lambda second, quiet=quiet: 400 if second >= quiet else 0)
            short.pass_by(quiet + 300)
            self.assertEqual(short.taken[-1], 24_000)
            self.assertEqual({each for each in short.left if each and each < SOON}, set())
            self.assertIsNone(short.left[-1])

    def test_more_than_a_minute_holds(self):
        """It is told to the second, where a straight line happens to be right."""
        short = Short(lambda second: 500)
        short.pass_by(60)
        self.assertEqual(short.gone, 55)
        for second in range(10, 55):
            self.assertApproximates(short.left[second], 55 - second, 1.5)

    def test_a_new_rate(self):
        """What went on before comes back while the new takes more."""
        short = Short(lambda second: 200 if second < 300 else 500)
        short.pass_by(400)
        self.assertEqual({each for each in short.left[:300] if each}, set())
        # From 12,000 up by 300 in a second.
        self.assertEqual(short.gone, 352)
        for second in range(330, 352):
            self.assertApproximates(short.left[second], 352 - second, 4)

    def test_more_and_more(self):
        """A rate that rises: in a minute it has taken a minute's worth more."""
        short = Short(lambda second: 50 + second // 2)
        short.pass_by(1000)
        for ahead in (300, 200, 100, 50, 30, 10):
            left = short.left[short.gone - ahead]
            self.assertApproximates(left, ahead, 0.03 * ahead + 1)

    def test_no_more(self):
        """When nothing is closed any more nothing will be."""
        short = Short(lambda second: 10 if second < 60 else 0)
        short.pass_by(60)
        told = short.forecast
        for _ in range(600):
            told.feed(PORTS - 30, 0, 600, PORTS)
        self.assertIsNone(told.left)

    def test_beside_those_in_use(self):
        """Both count: 250 in a second that rest, and 10 that stay."""
        told = Forecast()
        for second in range(1, 301):
            resting = min(250 * second, 15_000)
            left = told.feed(10 * second, resting, 250 * second, 20_000)
        self.assertApproximates(left, (5_000 - 3_000) / 10, 2)

    def test_those_of_others(self):
        """What rests and is not ours is thought to stay; what came back already is no matter."""
        told = Forecast()
        for second in range(1, 121):
            told.feed(10 * second, 5_000, 0, 10_000)
        self.assertApproximates(told.left, (5_000 - 1_200) / 10, 1)
        told = Forecast()
        for second in range(1, 31):  # They are given out again at once: nothing rests.
            told.feed(10 * second, 0, 100 * second, 4_000)
        self.assertApproximates(told.left, (4_000 - 300) / 110, 1)

    def test_seconds_are_missed(self):
        told, closed = Forecast(), 0
        for pause in (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5, 10, 1, 3):
            closed += 500 * pause
            told.feed(0, closed, closed, PORTS, float(pause))
        self.assertApproximates(told.left, (PORTS - closed) / 500, 2)
        # A minute later all of that has come back, also what was closed while nobody looked.
        for _ in range(MINUTE + 5):
            told.feed(0, 0, closed, PORTS)
        self.assertIsNone(told.left)
        for _ in range(10):
            closed += 100
            told.feed(0, 0, closed, PORTS)
        self.assertEqual(told._gone, closed - 1000)

    def test_parts_of_seconds(self):
        """Sixty seconds are a minute, in however many parts they come."""
        for pause in (0.5, 0.75, 1.01, 1.5):
            told, closed = Forecast(), 0
            for _ in range(int(300 / pause)):
                closed += 100
                told.feed(0, 0, closed, PORTS, pause)
            self.assertApproximates((closed - told._gone) * pause / 100, MINUTE, 1.01)

    def test_a_long_pause(self):
        told = Forecast()
        for second in range(1, 61):
            told.feed(0, 100 * second, 100 * second, PORTS)
        told.feed(0, 0, 100_000, PORTS, 3600.0)
        self.assertEqual(told._gone, 100_000)
        for _ in range(WARM_UP):
            told.feed(0, 0, 100_000, PORTS)
        self.assertIsNone(told.left)
