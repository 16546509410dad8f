"""What is different between two configurations: plain data in, plain data and a line for each out.

A listener is the same one as long as it is at the same place; there it may get another name. One
without a place of its own, or at any free port, goes by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from proxykit.checks import listens

if TYPE_CHECKING:
    from proxykit.model import Cluster, Config, Listener


def paired(
    before: Sequence[Listener], after: Sequence[Listener]
) -> tuple[list[Listener | None], list[Listener]]:
    """Which listener each one was.

    :returns: for each of ``after`` its former self, None for a new one; and those that are to go.
    """
    left = {(each.name, each.listen): each for each in before}
    found = [left.pop((each.name, each.listen), None) for each in after]
    # A port that is named is one place; port 0 is another each time.
    places = {place: left[key] for key in left for place in [_place(left[key])] if place}
    for index, each in enumerate(after):
        if found[index] is None and (former := places.pop(_place(each), None)) is not None:
            found[index] = left.pop((former.name, former.listen))
    return found, list(left.values())


def _place(listener: Listener) -> str:
    return listener.listen if listens([(0, listener)]) else ""


def differing(before: Any, after: Any) -> list[str]:
    """The names of the fields in which two of a kind differ."""
    return [
        each.name
        for each in attrs.fields(type(after))
        if getattr(before, each.name) != getattr(after, each.name)
    ]


#: Of a value that a line can show.
_LONGEST = 60
#: What is neither a listener's nor a cluster's.
_OF_ALL = ("drain_timeout", "admin", "admin_token", "admin_hosts", "sources")
#: What is in a table of the file that has no name of its own, and what is better not shown.
_NAMELESS, _SECRET = "settings", "admin_token"


def differences(before: Any, after: Any, keys: Iterable[str], prefix: str = "") -> list[str]:
    """What has changed in fields of two of a kind, with old and new values where they are short.

    :param prefix: what the names of the fields begin with, as in ``pool.``.
    """
    found = []
    for key in keys:
        old, new = getattr(before, key), getattr(after, key)
        if old == new:
            continue
        if attrs.has(type(new)) and type(old) is type(new):
            inner = prefix if key == _NAMELESS else f"{prefix}{key}."
            found += differences(old, new, differing(old, new), inner)
            continue
        values = [_value(each) for each in (old, new)]
        if key != _SECRET and all(values):
            found.append(f"{prefix}{key} {values[0]} -> {values[1]}")
        else:
            found.append(f"{prefix}{key.replace('admin_', 'admin.')} changed")
    return found


def _value(value: object) -> str:
    """As a file would have it; empty where that says little or is long."""
    if value is None:
        return "unset"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")  # all of it: two that differ look different
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | int) else ""
    return text if len(text) <= _LONGEST else ""


def said(before: Config, after: Config) -> list[str]:
    """A line for each difference, in the order of a file."""
    lines = differences(before, after, _OF_ALL)
    former = {cluster.name: cluster for cluster in before.clusters}
    for cluster in after.clusters:
        was = former.pop(cluster.name, None)
        if was is None:
            lines.append(f"cluster {cluster.name} is new")
        elif was != cluster:
            lines.append(f"cluster {cluster.name}: {', '.join(_of_cluster(was, cluster))}")
    lines += [f"cluster {name} is gone" for name in former]
    found, gone = paired(before.listeners, after.listeners)
    for listener, earlier in zip(after.listeners, found, strict=True):
        if earlier is None:
            lines.append(f"listener {listener.name} is new{_at(listener)}")
        elif earlier != listener:
            changed = differences(earlier, listener, differing(earlier, listener))
            lines.append(f"listener {listener.name}: {', '.join(changed)}")
    lines += [f"listener {each.name}{_at(each)} is gone" for each in gone]
    return lines


def _at(listener: Listener) -> str:
    return f" ({listener.listen})" if listener.listen else ""


def _of_cluster(before: Cluster, after: Cluster) -> Iterable[str]:
    keys = differing(before, after)
    if "backends" in keys:
        keys.remove("backends")
        old = {backend.address: backend for backend in before.backends}
        new = {backend.address: backend for backend in after.backends}
        yield from (f"+{address}" for address in new if address not in old)
        yield from (f"-{address}" for address in old if address not in new)
        for address, backend in new.items():
            if (was := old.get(address)) is not None:
                for change in differences(was, backend, differing(was, backend)):
                    yield f"{address} {change}"
    yield from differences(before, after, keys)
