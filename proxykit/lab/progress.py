"""How far an experiment is, on standard error, where that is a terminal; else nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from proxykit.lab.report import spelled


class Progress:
    """Says nothing; the base of what does. A context manager."""

    def phase(self, text: str, of: float = 0) -> None:
        """Something else is done from now on.

        :param text: what.
        :param of: how much of it there is to do, in whatever :meth:`at` counts in; 0: unknown.
        """

    def at(self, done: float) -> None:
        """So much of it is done."""

    def told(self, at: Mapping[str, Any]) -> None:
        """What clients tell of what they do; see ``clients.py``."""
        for key in ("done", "seconds"):
            if key in at:
                self.at(at[key])

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return


class Line(Progress):
    """One line of plain text, for a terminal without rich."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._text = ""
        self._of = 0.0

    def phase(self, text: str, of: float = 0) -> None:
        self._text, self._of = text, of
        self._show(f"{self._name}: {text}")

    def at(self, done: float) -> None:
        if self._of:
            share = f"{spelled(round(done))} of {spelled(round(self._of))}"
            self._show(f"{self._name}: {self._text}: {share}")

    def _show(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    def __exit__(self, *exc: object) -> None:
        self._show("")


class Bar(Progress):
    """A bar, by rich.

    :raises ImportError: there is no rich.
    """

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Rich

        self._rich = Rich(
            TextColumn("[bold]{task.fields[name]}"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[share]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._rich.add_task("starting", total=None, name=name, share="")
        self._of = 0.0

    def phase(self, text: str, of: float = 0) -> None:
        self._of = of
        # Text in brackets is markup for rich; what is said here is none.
        text = text.replace("[", r"\[")
        self._rich.update(self._task, description=text, total=of or None, completed=0, share="")

    def at(self, done: float) -> None:
        share = f"{spelled(round(done))}/{spelled(round(self._of))}" if self._of else ""
        self._rich.update(self._task, completed=done, share=share)

    def __enter__(self) -> Progress:
        self._rich.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._rich.stop()


def progress(name: str) -> Progress:
    """What there is for this standard error.

    :param name: of the experiment.
    """
    if not sys.stderr.isatty():
        return Progress()
    try:
        return Bar(name)
    except ImportError:
        return Line(name)
