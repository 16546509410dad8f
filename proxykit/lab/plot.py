"""Drawing what an experiment has found, with matplotlib, which is the extra ``lab``.

The picture is 700 pixels wide, so that a page of documentation shows it as it is; both axes begin
at zero and say their unit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykit.lab.programs import LabError
from proxykit.lab.report import Plot, Result, spelled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches; a picture has 72 points for one, a page 96 pixels.
WIDTH, HEIGHT = 7.3, 3.4
#: What a legend has below a plot: columns, and inches for each of its lines.
BESIDE, LEGEND = 2, 0.22
#: What tells lines apart for those who do not see colours as well.
STYLES = ("-", "--", "-.", ":")
#: Okabe and Ito's colours, less yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
#: Of what others are compared with.
ASIDE, DOTS = "#777777", (0, (2, 3))
_MISSING = "a plot needs matplotlib: pip install 'proxykit[lab]', or matplotlib itself"


def check() -> None:
    """See that a plot can be drawn here.

    :raises LabError: it cannot.
    """
    try:
        import matplotlib
    except ImportError:
        raise LabError(_MISSING) from None
    matplotlib.use("svg")


def draw(result: Result, path: Path) -> None:
    """Draw the plots of a result, one above the other.

    :param path: what it ends with says what it is: ``.svg``, ``.png``, ``.pdf``.
    :raises LabError: it cannot be drawn, or not be written there.
    """
    check()
    from matplotlib import pyplot

    # The same figures make the same file; and letters are shapes, for a page has fonts of its own.
    settings: Any = {"svg.hashsalt": "proxykit", "svg.fonttype": "path", "font.size": 9}
    with pyplot.rc_context(settings):
        heights = [HEIGHT + _legend(plot) for plot in result.plots]
        figure, all_axes = pyplot.subplots(
            len(heights),
            1,
            figsize=(WIDTH, sum(heights)),
            squeeze=False,
            layout="constrained",
            height_ratios=heights,
        )
        try:
            for axes, plot in zip(all_axes[:, 0], result.plots, strict=True):
                _draw_one(axes, plot)
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except (OSError, ValueError) as error:
            raise LabError(f"{path}: {error}") from None
        finally:
            pyplot.close(figure)


def _legend(plot: Plot) -> float:
    """Inches that it needs for what its lines are."""
    count = 0 if plot.kind == "bar" or len(plot.series) < 2 else len(plot.series)
    return math.ceil(count / BESIDE) * LEGEND


def _draw_one(axes: Axes, plot: Plot) -> None:
    axes.set_title(plot.title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if plot.kind == "bar":
        _bars(axes, plot)
    else:
        _lines(axes, plot)


def _lines(axes: Axes, plot: Plot) -> None:
    for number, series in enumerate(plot.series):
        axes.plot(
            [x for x, _ in series.points],
            [math.nan if y is None else y for _, y in series.points],
            label=series.name,
            color=ASIDE if series.compared else COLOURS[number % len(COLOURS)],
            linestyle=DOTS if series.compared else STYLES[number % len(STYLES)],
            drawstyle="steps-post" if plot.kind == "step" else "default",
            linewidth=1.6,
            clip_on=plot.top is not None,  # Else a line at zero would be half as thick.
        )
    for name, height in plot.marks:
        axes.axhline(height, color=ASIDE, linewidth=0.8, linestyle=DOTS)
        where = ("axes fraction", "data")
        about: Any = {"xytext": (0, 2), "textcoords": "offset points", "color": "#555555"}
        axes.annotate(name, (1, height), xycoords=where, ha="right", va="bottom", **about)
    axes.set(xlabel=plot.x, ylabel=plot.y, ylim=(0, plot.top or _highest(plot) * 1.12))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: spelled(float(value)))
    axes.yaxis.set_major_formatter(lambda value, _: spelled(float(value)))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    if len(plot.series) > 1:
        # Below, where it hides nothing.
        below: Any = {"loc": "upper left", "bbox_to_anchor": (0, -0.17), "borderaxespad": 0}
        axes.legend(ncols=BESIDE, frameon=False, fontsize=8, **below)


def _bars(axes: Axes, plot: Plot) -> None:
    """From left to right, for their names are long."""
    heights = [series.points[0][1] or 0 for series in plot.series]
    bars = axes.barh([series.name for series in plot.series], heights, color=COLOURS[0], height=0.6)
    axes.bar_label(bars, [spelled(each) for each in heights], padding=3)
    axes.invert_yaxis()
    axes.set(xlabel=plot.y, xlim=(0, _highest(plot) * 1.12))
    axes.xaxis.set_major_formatter(lambda value, _: spelled(float(value)))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def _highest(plot: Plot) -> float:
    values = [y for series in plot.series for _, y in series.points if y is not None]
    return max([*values, *(height for _, height in plot.marks)], default=0) or 1
