"""Checks on single settings, and the names for settings whose type says too little.

A settings class puts a check on a field, as in
``field(default=5.0, metadata={"check": positive_seconds})``. Whoever reads the configuration calls
it with a value that already has the field's type. Any callable will do that raises
``ValueError("expected ...")``; what was found instead is added to the message. One that looks into
a list or a table raises ``proxykit.strict.Wrong``, which says where in it the mistake is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NewType

from attrs import field, fields_dict, frozen

from proxykit import strict
from proxykit.strict import Wrong, found

#: The name of a cluster that the same configuration has; a field of this type is checked for that.
ClusterName = NewType("ClusterName", str)

#: A Twisted server endpoint string; a field of this type is checked to be one.
EndpointText = NewType("EndpointText", str)


@frozen
class Check:
    """A check that knows its expectation, so that a value of the wrong type is told it too.

    :ivar expected: such as ``a whole number from 1 to 256``.
    :ivar holds: whether a value of the field's type is fine.
    """

    expected: str
    holds: Callable[[Any], bool]

    def __call__(self, value: Any) -> None:
        """
        :raises ValueError: the value is not as expected.
        """
        if not self.holds(value):
            raise ValueError(f"expected {self.expected}")


@frozen
class Each:
    """A check of every element of a list."""

    check: Callable[[Any], object]

    def __call__(self, values: Any) -> None:
        """
        :raises Wrong: with every element that is not as expected.
        """
        _, problems = strict.each(enumerate(values), self._element)
        if problems:
            raise Wrong(problems)

    def _element(self, value: Any) -> None:
        try:
            self.check(value)
        except ValueError as error:
            raise Wrong.here(f"{error}, not {found(value)}") from error


positive_seconds = Check("a number of seconds above 0", lambda value: value > 0)


def whole_at_least(low: int) -> Check:
    """For an ``int`` with a lower bound, inclusive."""
    return Check(f"a whole number, {low} or more", lambda value: value >= low)


def whole_between(low: int, high: int) -> Check:
    """For an ``int`` with two bounds, both inclusive."""
    return Check(f"a whole number from {low} to {high}", lambda value: low <= value <= high)


def number_between(low: float, high: float) -> Check:
    """For a ``float`` with two bounds, both inclusive."""
    return Check(f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


def one_of(*words: str) -> Check:
    """For a ``str`` that is one of a few."""
    return Check(f"one of {', '.join(words)}", lambda value: value in words)


def default_of(cls: type, key: str) -> Any:
    """The default that a class of the model has for a field, for the same key in a table."""
    return fields_dict(cls)[key].default


def as_in(cls: type, key: str, check: Check | Each) -> Any:
    """A key with the default that the model has for it."""
    return field(default=default_of(cls, key), metadata={"check": check})
