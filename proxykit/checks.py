"""Checks on single settings, and the names for settings whose type says too little.

A settings class puts a check on a field, as in
``field(default=5.0, metadata={"check": positive_seconds})``. Whoever reads the configuration calls
it with a value that already has the field's type. Any callable will do that raises
``ValueError("expected ...")``; what was found instead is added to the message. One that looks into
a list or a table raises ``proxykit.strict.Wrong``, which says where in it the mistake is.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NewType

from attrs import field, fields_dict, frozen
from twisted.internet.endpoints import UNIXServerEndpoint, serverFromString

from proxykit import strict
from proxykit.model import Address, PortRange
from proxykit.strict import Problem, Wrong, dotted, found
from proxykit.tomllines import KeyPath

if TYPE_CHECKING:
    from proxykit.model import Listener

#: What a plugin's settings may want; proxykit.tables has the rest to itself.
__all__ = [
    "Check",
    "ClusterName",
    "Each",
    "EndpointText",
    "Fallback",
    "ListenerName",
    "as_in",
    "default_of",
    "hand_over_faults",
    "header_fault",
    "host_pattern",
    "network",
    "number_between",
    "one_of",
    "positive_seconds",
    "protocol_name",
    "whole_at_least",
    "whole_between",
]

#: The name of a cluster that the same configuration has; a field of this type is checked for that.
ClusterName = NewType("ClusterName", str)

#: The name of a listener that can take connections over; a field of this type is checked for that.
ListenerName = NewType("ListenerName", str)

#: ``refuse``, ``close``, or the name of a cluster; a field of this type is checked to be one.
Fallback = NewType("Fallback", str)

#: A Twisted server endpoint string; a field of this type is checked to be one.
EndpointText = NewType("EndpointText", str)


_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_HIGHEST_PORT = 65535
#: Characters. Nobody guesses so many, and there is no lock-out after wrong guesses.
SHORTEST_TOKEN = 16
#: Port 0 is another port each time, so that two listeners may have it.
_ANY_PORT = re.compile(r"(tcp6?|ssl):(port=)?0+(:|\Z)")


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


def source_address(value: object) -> str:
    """A local address to connect from, in the one spelling that it has.

    :raises Wrong: it is none.
    """
    try:
        address = ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        expected = "an IP address such as 10.0.0.1 or fd00::1"
    else:
        if not (expected := _instead_of(address)):
            return str(address)
    raise Wrong.here(f"expected {expected}, not {found(value)}")


def _instead_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """What is expected in place of an address that one cannot connect from; empty: one can."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return f"the IPv4 address itself, {address.ipv4_mapped}"
        if address.scope_id or address.is_link_local:
            return "an address that needs no scope"
    if address.is_unspecified or address.is_multicast or address == _BROADCAST:
        return "an address of this machine"
    return ""


def port_range(value: object) -> PortRange:
    """Ports as a user writes them, ``LOW-HIGH``.

    :raises ValueError: these are none.
    """
    if isinstance(value, str) and (match := _PORTS.fullmatch(value)):
        low, high = map(int, match.groups())
        if 0 < low <= high <= _HIGHEST_PORT:
            return PortRange(low, high)
    raise ValueError(
        f"expected two ports from 1 to {_HIGHEST_PORT}, the lower one first, such as"
        f' "40000-60999", not {found(value)}'
    )


def default_of(cls: type, key: str) -> Any:
    """The default that a class of the model has for a field, for the same key in a table."""
    return fields_dict(cls)[key].default


def as_in(cls: type, key: str, check: Callable[[Any], object]) -> Any:
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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at that address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def admin_fault(listen: str, token: str) -> str:
    """Why the admin listener may not listen there; empty: it may.

    :param listen: a Twisted server endpoint string that is one; ``token``: empty: there is none.
    """
    if token:
        return ""
    needs = (
        "needs a token (admin.token, admin.token_file or --admin-token-file): without one, it may"
        " only be on loopback or on a unix socket"
    )
    try:
        endpoint: object = serverFromString(object(), listen)
    except LookupError:  # systemd: has handed none over yet
        return needs
    if isinstance(endpoint, UNIXServerEndpoint):
        return ""
    interface = getattr(endpoint, "_interface", "")
    return "" if isinstance(interface, str) and is_loopback(interface) else needs


def token_fault(token: str) -> str:
    """Why that is no token for the admin listener; empty: it is one. It never says the token."""
    if len(token) >= SHORTEST_TOKEN and re.fullmatch("[!-~]+", token):
        return ""
    return (
        f"expected at least {SHORTEST_TOKEN} printable characters of ASCII, without spaces;"
        " openssl rand -hex 16 makes some"
    )


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


def listener_names(listeners: object) -> list[str]:
    """The names that listeners have, or are given, as far as that can be told."""
    tables = listeners if isinstance(listeners, list) else []
    return [
        name
        for index, table in enumerate(tables)
        if isinstance(table, dict)
        and isinstance(name := table.get("name", default_name(index)), str)
    ]


def default_name(index: int) -> str:
    """What a listener is called that has no name."""
    return f"listener-{index + 1}"


def taking_over(listeners: object) -> set[object]:
    """The listeners that routes name, as far as that can be told."""
    tables = listeners if isinstance(listeners, list) else []
    found = (table.get("routes") for table in tables if isinstance(table, dict))
    routes = [route for each in found if isinstance(each, list) for route in each]
    names = (route.get("listener") for route in routes if isinstance(route, dict))
    return {name for name in names if isinstance(name, str)}


def listens(listeners: Iterable[tuple[int, Listener]], *around: str) -> list[tuple[KeyPath, str]]:
    """Where each listens, with its place; but not where any port will do."""
    return [
        ((*around, index, "listen"), listener.listen)
        for index, listener in listeners
        if listener.listen and not _ANY_PORT.match(listener.listen)
    ]


def repeated(placed: Iterable[tuple[KeyPath, object]], what: str) -> list[Problem]:
    """A problem for each value that has been there before, naming the place of the first."""
    first: dict[object, KeyPath] = {}
    return [
        (path, f"{what}{dotted(first[value])}: {value}")
        for path, value in placed
        if first.setdefault(value, path) != path
    ]
