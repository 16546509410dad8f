"""Checks on single settings, and the names for settings whose type says too little.

A settings class puts a check on a field, as in
``field(default=5.0, metadata={"check": positive_seconds})``. Whoever reads the configuration calls
it with a value that already has the field's type. Any callable will do that raises
``ValueError("expected ...")``; what was found instead is added to the message. One that looks into
a list or a table raises ``proxykit.strict.Wrong``, which says where in it the mistake is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NewType

from attrs import field, fields_dict, frozen

from proxykit import strict
from proxykit.model import Address
from proxykit.strict import Problem, Wrong, found

if TYPE_CHECKING:
    from proxykit.model import Listener

#: The name of a cluster that the same configuration has; a field of this type is checked for that.
ClusterName = NewType("ClusterName", str)

#: The name of a listener that can take connections over; a field of this type is checked for that.
ListenerName = NewType("ListenerName", str)

#: ``refuse``, ``close``, or the name of a cluster; a field of this type is checked to be one.
Fallback = NewType("Fallback", str)

#: A Twisted server endpoint string; a field of this type is checked to be one.
EndpointText = NewType("EndpointText", str)


_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


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


protocol_name = Check(
    "a protocol such as h2, of 1 to 255 characters",
    lambda text: 0 < len(text) <= 255 and all(character < "\u0100" for character in text),
)
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


def host_pattern(text: str) -> bool:
    """Whether this is a host without a port, ``*.`` and a name, or empty."""
    name = text.removeprefix("*.")
    try:
        address = Address.parse(f"{name}:1")
    except ValueError:
        return text == ""
    if address.is_unix or name.endswith("."):
        return False
    return name == text or not address.is_ip


def network(text: str) -> None:
    """For a ``str`` that is a network, an IP address, or ``unix``.

    :raises ValueError: it is none.
    """
    if text == "unix":
        return
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        try:
            near = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError("expected a network such as 10.0.0.0/8, an address, or unix") from None
        raise ValueError(f"expected {near}") from None
    # Clients are compared without their scope, and those of IPv4 as such.
    if "%" in text:
        raise ValueError("expected an address without a scope")
    if found.version == 6 and found.subnet_of(_MAPPED):
        raise ValueError("expected the IPv4 network itself")


def default_of(cls: type, key: str) -> Any:
    """The default that a class of the model has for a field, for the same key in a table."""
    return fields_dict(cls)[key].default


def as_in(cls: type, key: str, check: Check | Each) -> Any:
    """A key with the default that the model has for it."""
    return field(default=default_of(cls, key), metadata={"check": check})


def header_fault(listener: Listener) -> str:
    """What is wrong with the PROXY headers that a listener asks for; empty: nothing."""
    if not listener.proxy_protocol:
        return ""
    if not listener.trust:
        return "needs trust: the networks that may send a PROXY header"
    kind = listener.listen.partition(":")[0]
    if kind in ("ssl", "tls"):
        return f"a PROXY header comes before TLS, with which {kind}: begins"
    if kind == "haproxy":
        return "the endpoint haproxy: reads a PROXY header already"
    return ""


def hand_over_faults(listeners: Sequence[Listener]) -> list[Problem]:
    """What is wrong with the routes that name listeners, and with listeners that do not listen."""
    named = {listener.name: listener for listener in listeners}
    problems: list[Problem] = []
    targets: set[str] = set()
    for index, listener in enumerate(listeners):
        # A mode of somebody else's may mean anything by it.
        routes = getattr(listener.settings, "routes", ())
        for at, route in enumerate(routes if isinstance(routes, tuple) else ()):
            name = getattr(route, "listener", "")
            target = named.get(name)
            targets.add(name)
            if name and (target is None or target.mode == listener.mode):
                why = "there is none" if target is None else f"its mode is {target.mode} as well"
                place = ("listeners", index, "routes", at, "listener")
                problems.append((place, f"{name!r} cannot take connections over: {why}"))
    problems += [
        (("listeners", index, "proxy_protocol"), "it does not listen, so no header ever comes")
        for index, listener in enumerate(listeners)
        if listener.proxy_protocol and not listener.listen
    ]
    problems += [
        (("listeners", index, "listen"), "missing: no route hands connections over to it")
        for index, listener in enumerate(listeners)
        if not listener.listen and listener.name not in targets
    ]
    return problems
