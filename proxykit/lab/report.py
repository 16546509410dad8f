"""What an experiment has found, and how it is told: for a terminal, as plain text, as
reStructuredText, as JSON."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

#: Columns of plain text.
WIDTH = 100
#: Columns after which the head of a column of figures goes on below.
HEAD = 14
#: Columns that a page has room for.
PAGE = 6

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Figures. A column of numbers says its unit in its head.

    :ivar notes: what is said below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells in {len(self.columns)} columns")

    @property
    def texts(self) -> list[list[str]]:
        """The rows, as they are shown."""
        return [[spelled(cell) for cell in row] for row in self.rows]

    @property
    def turned(self) -> Table:
        """The same with a column for each row, where it is too wide for a page and not too long."""
        if len(self.columns) <= PAGE or len(self.rows) >= PAGE:
            return self
        texts = zip(*self.texts, strict=True)
        heads, *rows = ((name, *cells) for name, cells in zip(self.columns, texts, strict=True))
        return Table(self.title, heads, rows, self.notes)

    @property
    def is_number(self) -> list[bool]:
        """Of each column, whether there are but numbers in it."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return [all(not isinstance(cell, str) for cell in column) for column in columns]


@dataclass(frozen=True)
class Series:
    """A line of a plot. Where a point has no height there is a gap.

    :ivar compared: whether it is there to compare others with, and nothing that was found.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    compared: bool = False


@dataclass(frozen=True)
class Plot:
    """Lines over a common axis; both axes begin at 0.

    :ivar x: the label of that axis, with the unit; and ``y``.
    :ivar kind: ``line``; ``step``, where a figure holds until the next; or ``bar``, where each
        series is one point (see :meth:`bars`) and ``x`` says nothing.
    :ivar marks: heights that are marked, by what they are.
    :ivar top: what is higher is not drawn; None: everything is.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    kind: str = "line"
    marks: Sequence[tuple[str, float]] = ()
    top: float | None = None

    @classmethod
    def bars(cls, title: str, y: str, heights: Iterable[tuple[str, float]]) -> Plot:
        """A figure for each of some names."""
        return cls(title, "", y, [Series(name, [(0, each)]) for name, each in heights], "bar")


@dataclass(frozen=True)
class Result:
    """What was found.

    :ivar answer: one or more sentences, made of what was measured.
    :ivar name: of the experiment, and its ``question``; filled in by who has run it, as are the
        ``seconds`` it took and the ``setting``, what the figures hang on.
    """

    answer: str
    tables: Sequence[Table]
    plots: Sequence[Plot] = ()
    name: str = ""
    question: str = ""
    seconds: float = 0.0
    setting: dict[str, Any] = field(default_factory=dict)


def spelled(cell: Cell) -> str:
    """A figure as it is shown: 9,500; 0.0123; 17.5."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    if cell == 0 or abs(cell) >= 100:
        return f"{cell:,.0f}"
    text = f"{cell:.2f}" if abs(cell) >= 0.1 else f"{cell:.2g}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def counted(count: int, what: str) -> str:
    """How many there are: 1 connection; 20 connections."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def as_text(result: Result) -> str:
    """Plain text."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: Result) -> Iterator[str]:
    yield from textwrap.wrap(f"{result.name}: {result.question}", WIDTH)
    yield ""
    yield from textwrap.wrap(result.answer, WIDTH)
    for table in result.tables:
        yield ""
        yield table.title
        yield from _columns(table)
        for note in table.notes:
            yield from textwrap.wrap(note, WIDTH)
    yield ""
    yield footer(result)


def _columns(table: Table) -> Iterator[str]:
    rows, right = table.texts, table.is_number
    cells = zip(*rows, strict=True) if rows else ((),) * len(table.columns)
    heads, widths = [], []
    for name, column in zip(table.columns, cells, strict=True):
        widest = max(map(len, column), default=0)
        heads.append(textwrap.wrap(name, max(widest, HEAD), break_long_words=False) or [""])
        widths.append(max(widest, *map(len, heads[-1])))
    lines = max(map(len, heads))
    above = [[""] * (lines - len(head)) + head for head in heads]
    for row in (*zip(*above, strict=True), ["-" * width for width in widths], *rows):
        texts = zip(row, widths, right, strict=True)
        line = "  ".join(text.rjust(w) if r else text.ljust(w) for text, w, r in texts)
        yield f"  {line}".rstrip()


def footer(result: Result) -> str:
    """What the figures hang on, in one line."""
    parts = [f"{name} {spelled(value)}" for name, value in result.setting.items()]
    return f"({', '.join([*parts, f'{result.seconds:.0f} s'])})"


_MARKUP = re.compile(r"([\\*`|_])")


def as_rst(result: Result, plot: str = "") -> str:
    """For docs/: an answer, tables and the plot; without a heading.

    :param plot: the name of a file that shows it; empty: none.
    """
    parts = [_escaped(result.answer)]
    for table in result.tables:
        parts.append("\n".join(_rst_table(table.turned)))
        parts += map(_escaped, table.notes)
    if plot:
        titles = "; ".join(each.title for each in result.plots)
        parts.append(f".. figure:: {plot}\n   :width: 100%\n   :alt: {titles}")
    parts.append(_escaped(f"``proxykit lab {result.name}`` {footer(result)}", but="`"))
    return "\n\n".join(parts) + "\n"


def _rst_table(table: Table) -> Iterator[str]:
    yield f".. list-table:: {_escaped(table.title)}"
    yield "   :header-rows: 1"
    yield ""
    for row in (table.columns, *table.texts):
        for number, cell in enumerate(row):
            yield f"   {' ' if number else '*'} - {_escaped(cell)}".rstrip()


def _escaped(text: str, but: str = "") -> str:
    return _MARKUP.sub(lambda match: match[1] if match[1] == but else "\\" + match[1], text)


def as_json(results: Iterable[Result]) -> str:
    """All of it: a list."""
    return json.dumps([asdict(each) for each in results], indent=2) + "\n"


def show(result: Result, out: TextIO | None = None) -> None:
    """Print it, with rich where that is there and this is a terminal."""
    out = out or sys.stdout
    if out.isatty():
        try:
            _show_rich(result, out)
        except ImportError:
            pass
        else:
            return
    out.write(as_text(result))
    out.flush()


def _show_rich(result: Result, out: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=out, highlight=False)
    console.print(Text(f"{result.name}: {result.question}", style="bold"))
    console.print()
    console.print(Text(result.answer))
    for table in result.tables:
        console.print()
        shown = RichTable(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD)
        for name, number in zip(table.columns, table.is_number, strict=True):
            shown.add_column(Text(name), justify="right" if number else "left")
        for row in table.texts:
            shown.add_row(*map(Text, row))
        console.print(shown)
        for note in table.notes:
            console.print(Text(note))
    console.print(Text(footer(result), style="dim"))
