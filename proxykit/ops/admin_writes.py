"""What can be done by the admin listener, beside looking: a backend's state, and a reload."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from proxykit.core.registry import STATES
from proxykit.errors import ConfigError
from proxykit.model import Address, address_text
from proxykit.ops.admin_web import JSON, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.python.failure import Failure

    from proxykit.ops.admin_web import AdminRequest
    from proxykit.ops.service import ProxyService

_log = Logger(namespace="proxykit.admin")
#: How many names are told to who has asked for one that is not there.
_TOLD = 20


def set_backend(service: ProxyService, request: AdminRequest, name: str, where: str) -> Any:
    """Drain a backend, take it down, or bring it up again.

    :param name: of its cluster; ``where``: its address. Both as they are in the path.
    :returns: the backend, as ``/api/clusters`` shows it.
    :raises Refused: there is none, or the body does not say what to do.
    """
    name, where = _unquoted(name), _unquoted(where)
    cluster = service.registry.get(name)
    if cluster is None:
        names = _listed(each.config.name for each in service.registry)
        raise Refused(404, f"there is no cluster {_short(name)}; there are {names}")
    try:
        backend = cluster.backends[Address.parse(where)]
    except (ValueError, KeyError):
        addresses = _listed(map(str, cluster.backends))
        raise Refused(
            404, f"there is no backend {_short(where)} in cluster {name}; there are {addresses}"
        ) from None
    state = _state(request)
    _log.info(
        "{cluster} {backend} is to be {state}: so says {client}, by the admin API",
        cluster=name,
        backend=backend.address,
        state=state,
        client=address_text(request.client),
    )
    return service.set_backend_state(name, backend.address, state).snapshot()


def reload(service: ProxyService, request: AdminRequest) -> Deferred[Any]:
    """Read the configuration's file again; the Deferred fires with what has changed.

    It fails with ``Refused`` where the file is wrong, or there is none.
    """
    again = service.reload
    if again is None:
        raise Refused(409, "the service was not started from a file: there is nothing to reload")
    if service.draining:
        raise Refused(409, "the service is about to end")
    _log.info("reload, by the admin API, from {client}", client=address_text(request.client))

    def wrong(failure: Failure) -> None:
        failure.trap(ConfigError)
        error = failure.value
        assert isinstance(error, ConfigError)
        lines = list(error.lines)
        message = f"nothing was changed: {lines[0]}" if lines else "nothing was changed"
        raise Refused(422, message, more={"lines": lines})

    return again().addCallbacks(lambda lines: {"changed": list(lines or ())}, wrong)


def _state(request: AdminRequest) -> Any:
    """The state that a request's body asks for."""
    kind = request.field("content-type")
    if kind is not None and kind.partition(";")[0].strip().lower() != JSON:
        raise Refused(415, f"expected Content-Type: {JSON}, not {kind[:100]}")
    states = ", ".join(STATES)
    expected = f'expected {{"state": ...}} with one of {states}'
    try:
        body = json.loads(request.content.read())
    except (ValueError, RecursionError):
        raise Refused(400, f"{expected}; that is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, f"{expected}, not {_short(json.dumps(body))}")
    if unknown := [key for key in body if key != "state"]:
        raise Refused(400, f"{expected}; there is no {_short(unknown[0])}")
    state = body.get("state")
    if not isinstance(state, str) or state not in STATES:
        found = f", not {_short(json.dumps(state))}" if "state" in body else ""
        raise Refused(400, expected + found)
    return state


def _unquoted(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")


def _short(text: str) -> str:
    """A part of somebody's text that does for an error message, on one line."""
    return repr(text[:100])


def _listed(names: Iterable[str]) -> str:
    told = list(names)
    more = len(told) - _TOLD
    return ", ".join(told[:_TOLD]) + (f" and {more} more" if more > 0 else "") or "none"
