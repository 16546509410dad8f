"""proxykit.lab.plot: a picture is made, is SVG, and is honest."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from proxykit.lab import plot
from proxykit.lab.programs import LabError
from proxykit.lab.report import Plot, Result, Series

LINES = Plot(
    "Lines",
    "time, s",
    "ports",
    [Series("L4", [(0, 0), (10, 900)]), Series("L7", [(0, 0), (10, 20)]), Series("none", [])],
    marks=[("source ports", 1000)],
)
STEPS = Plot("Steps", "time, s", "ports", [Series("L4", [(3, 5), (10, 5)])], "step")
BARS = Plot.bars("Bars", "clients", [("a way with a name", 500), ("another", 0)])


class NoPlotTests(SynchronousTestCase):
    def test_without_matplotlib(self):
        with mock.patch.dict(sys.modules, {"matplotlib": None}):
            error = self.assertRaises(LabError, plot.check)
        self.assertEqual(
            str(error), "a plot needs matplotlib: pip install 'proxykit[lab]', or matplotlib itself"
        )


class PlotTests(SynchronousTestCase):
    def setUp(self):
        if importlib.util.find_spec("matplotlib") is None:
            raise SkipTest("matplotlib is not installed")

    def draw(self, *plots):
        path = Path(self.mktemp()).with_suffix(".svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        plot.draw(Result("An answer.", [], plots), path)
        return path

    def test_svg(self):
        """One below the other, 700 pixels wide or nearly."""
        root = ElementTree.parse(self.draw(LINES, STEPS, BARS)).getroot()
        self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")
        width, height = (float(root.get(name).removesuffix("pt")) for name in ("width", "height"))
        self.assertTrue(680 <= width * 96 / 72 <= 710, width)
        self.assertGreater(height, width)

    def test_the_same_again(self):
        self.assertEqual(self.draw(LINES, BARS).read_bytes(), self.draw(LINES, BARS).read_bytes())

    def axes(self, which):
        plot.check()
        from matplotlib import pyplot

        figure, axes = pyplot.subplots()
        self.addCleanup(pyplot.close, figure)
        plot._draw_one(axes, which)
        return axes

    def test_lines(self):
        """From zero on both axes, with all that there is inside, and labels with units."""
        for which, highest in ((LINES, 1000), (STEPS, 5)):
            axes = self.axes(which)
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            self.assertEqual((left, bottom), (0, 0))
            self.assertGreaterEqual(right, 10)
            self.assertGreater(top, highest)
            self.assertEqual((axes.get_xlabel(), axes.get_ylabel()), ("time, s", "ports"))

    def test_compared(self):
        """What was not measured looks like nothing that was."""
        series = [*LINES.series[:2], Series("always right", [(0, 0), (10, 10)], True)]
        found, _, aside, *_ = self.axes(replace(LINES, series=series)).lines
        self.assertNotIn(found.get_color(), (aside.get_color(), plot.ASIDE))
        self.assertEqual(aside.get_color(), plot.ASIDE)

    def test_legend(self):
        """Below, where it hides nothing; and there is more room for it."""
        legend = self.axes(LINES).get_legend()
        self.assertEqual([text.get_text() for text in legend.get_texts()], ["L4", "L7", "none"])
        legend.figure.canvas.draw()
        self.assertLess(legend.get_window_extent().y1, legend.axes.get_window_extent().y0)
        self.assertIsNone(self.axes(STEPS).get_legend())
        two = replace(LINES, series=LINES.series[:2])
        lines = [plot._legend(each) for each in (STEPS, BARS, two, LINES)]
        self.assertEqual(lines, [0, 0, plot.LEGEND, 2 * plot.LEGEND])

    def test_top(self):
        """What is higher is cut off."""
        axes = self.axes(replace(LINES, top=500))
        self.assertEqual(axes.get_ylim(), (0, 500))
        self.assertTrue(axes.lines[0].get_clip_on())
        self.assertFalse(self.axes(LINES).lines[0].get_clip_on())

    def test_gap(self):
        """A point that has no height."""
        points = [(0, 1), (1, None), (2, 1)]
        axes = self.axes(Plot("", "", "", [Series("a", points)]))
        heights = [str(height) for height in axes.lines[0].get_ydata()]
        self.assertEqual(heights, ["1.0", "nan", "1.0"])

    def test_nothing(self):
        """No point anywhere: there is a picture all the same."""
        self.draw(Plot("Empty", "x", "y", [Series("a", [])]))

    def test_bars(self):
        axes = self.axes(BARS)
        self.assertEqual(axes.get_xlim()[0], 0)
        self.assertGreater(axes.get_xlim()[1], 500)
        self.assertEqual(axes.get_xlabel(), "clients")
        names = [label.get_text() for label in axes.get_yticklabels()]
        self.assertEqual(names, ["a way with a name", "another"])
        self.assertIn("500", [text.get_text() for text in axes.texts])

    def test_cannot_be_written(self):
        for path, words in (
            (Path(self.mktemp(), "none", "x.svg"), "No such file"),
            (Path("x.what"), "'what' is not supported"),
        ):
            error = self.assertRaises(LabError, plot.draw, Result("", [], [LINES]), path)
            self.assertIn(words, str(error))
            self.assertNotIn("\n", str(error))
