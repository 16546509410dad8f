"""Plain data into attrs classes, with nothing coerced and every mistake reported at its key path.

cattrs by itself turns -3.7 into -3 and "2" into 2 where a whole number is asked for, and ignores
keys that it does not know. Here each of these is a mistake. An attrs class stands for a table: its
fields are the keys, those without a default are required, and metadata ``check``
(proxykit.checks) narrows a field's values.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any, get_args, get_origin

import attrs
from cattrs import Converter

from proxykit.tomllines import KeyPath

#: Where a mistake is, and what it is.
Problem = tuple[KeyPath, str]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_FOUND = 60


class Wrong(Exception):
    """One or more mistakes in a value, each with its path within that value."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    @classmethod
    def here(cls, message: str) -> Wrong:
        """One mistake, of the value as a whole."""
        return cls([((), message)])

    def under(self, key: str | int) -> list[Problem]:
        """The same mistakes, as seen from the table or list that holds the value at ``key``."""
        return [((key, *path), message) for path, message in self.problems]


def found(value: object) -> str:
    """A value as a message shows it, on one line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_FOUND else text[: _LONGEST_FOUND - 3] + "..."


def dotted(path: KeyPath) -> str:
    """A key path as messages show it: ``clusters.web.backends[1].weight``."""
    parts = []
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        else:
            parts.append("." + (part if _BARE_KEY.fullmatch(part) else repr(part)))
    return "".join(parts).removeprefix(".")


def did_you_mean(name: str, known: Iterable[str], quote: str = "") -> str:
    """The nearest known name as the tail of a message; empty if none is near."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {quote}{near[0]}{quote}?" if near else ""


def each(
    items: Iterable[tuple[Any, Any]], read: Callable[[Any], Any]
) -> tuple[dict[Any, Any], list[Problem]]:
    """Read every item of a list or table, given as (index or key, value).

    :returns: what was read, by index or key, and the mistakes of all the others.
    """
    good: dict[Any, Any] = {}
    problems: list[Problem] = []
    for key, value in items:
        try:
            good[key] = read(value)
        except Wrong as wrong:
            problems += wrong.under(key)
    return good, problems


def converter() -> Converter:
    """A cattrs converter that raises :class:`Wrong`, and nothing else, for data that does not fit.

    It reads attrs classes, ``int``, ``float`` (finite), ``str``, ``bool``, ``tuple[T, ...]``,
    ``list[T]``, ``dict[str, T]`` and ``T | None``.
    """
    made = Converter()
    for kind in _FITS:
        made.register_structure_hook(kind, _read_plain)
    made.register_structure_hook_factory(attrs.has, lambda cls: partial(_read_table, made, cls=cls))
    made.register_structure_hook_factory(_is_list, lambda cls: partial(_read_list, made))
    made.register_structure_hook_factory(_is_dict, lambda cls: partial(_read_dict, made))
    return made


def _is_number(value: object) -> bool:
    # A whole number can be too large for a float; nan compares as false.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


_FITS: dict[type, tuple[str, Callable[[object], bool]]] = {
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", _is_number),
    str: ("a string", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
}


def _read_plain(value: Any, kind: Any) -> Any:
    expected, fits = _FITS[kind]
    if not fits(value):
        raise _Unfit(expected, value)
    return kind(value)


class _Unfit(Wrong):
    """A value of the wrong type; whoever knows better what was expected may say so."""

    def __init__(self, expected: str, value: object) -> None:
        super().__init__([((), f"expected {expected}, not {found(value)}")])


def _is_list(cls: Any) -> bool:
    args = get_args(cls)
    return get_origin(cls) is list or (get_origin(cls) is tuple and args[1:] == (...,))


def _is_dict(cls: Any) -> bool:
    return get_origin(cls) is dict


def _read_list(made: Converter, value: object, cls: Any) -> Any:
    if not isinstance(value, list):
        raise Wrong.here(f"expected a list, not {found(value)}")
    of = get_args(cls)[0]
    good, problems = each(enumerate(value), lambda item: made.structure(item, of))
    if problems:
        raise Wrong(problems)
    return get_origin(cls)(good.values())


def _read_dict(made: Converter, value: object, cls: Any) -> Any:
    if not isinstance(value, dict):
        raise Wrong.here(f"expected a table, not {found(value)}")
    of = get_args(cls)[1]
    good, problems = each(value.items(), lambda item: made.structure(item, of))
    if problems:
        raise Wrong(problems)
    return good


def _read_table(made: Converter, value: object, _: object = None, *, cls: Any) -> Any:
    return read_table(made, value, cls)


def read_table(made: Converter, value: object, cls: Any, also: Iterable[str] = ()) -> Any:
    """Read a table into an attrs class.

    :param also: keys that stand in the same table and are read elsewhere; they are suggested for
        an unknown key, too.
    :raises Wrong: with every mistake in the table, however deep.
    """
    if not isinstance(value, dict):
        raise Wrong.here(f"expected a table, not {found(value)}")
    fields = {field.name: field for field in attrs.fields(attrs.resolve_types(cls)) if field.init}
    problems: list[Problem] = [
        ((key,), "unknown key" + did_you_mean(key, [*fields, *also]))
        for key in value
        if key not in fields
    ]
    problems += [
        ((name,), "missing" + _expectation(field))
        for name, field in fields.items()
        if name not in value and field.default is attrs.NOTHING
    ]
    good, wrong = each(
        ((name, (field, value[name])) for name, field in fields.items() if name in value),
        lambda item: _read_field(made, *item),
    )
    if problems := problems + wrong:
        raise Wrong(problems)
    try:
        return cls(**{fields[name].alias: read for name, read in good.items()})
    except ValueError as error:  # the class's own view on fields that do not go together
        raise Wrong.here(str(error)) from error


def _expectation(field: attrs.Attribute[Any]) -> str:
    expected = getattr(field.metadata.get("check"), "expected", "")
    return f"; expected {expected}" if expected else ""


def _read_field(made: Converter, field: attrs.Attribute[Any], value: object) -> Any:
    check: Any = field.metadata.get("check")
    kind: Any = field.type
    try:
        read = made.structure(value, kind)
        if check and read is not None:
            check(read)
    except _Unfit:
        if not hasattr(check, "expected"):
            raise
        raise _Unfit(check.expected, value) from None
    except ValueError as error:
        raise Wrong.here(f"{error}, not {found(value)}") from error
    return read
