"""The configuration: from TOML, or data of the same shape, to :class:`proxykit.model.Config`.

:func:`load` reads a file, :func:`build` takes data that somebody else has put together, and
:func:`as_toml` writes what is in force. Which keys there are stands in proxykit.tables. Every
mistake is reported at once, each with its file, line and key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import tomli_w
from cattrs import Converter
from cattrs.gen import make_dict_unstructure_fn

from proxykit import strict, tomllines
from proxykit.errors import ConfigError
from proxykit.model import Address, Config, FieldRules, HttpRoute, PortRange, SniRoute
from proxykit.sources import static
from proxykit.strict import Problem, Wrong, dotted, found
from proxykit.tables import LISTENER_KEYS, Reader, Resolve
from proxykit.tomllines import KeyPath
from proxykit.upkeep import Discover

__all__ = ["Place", "as_toml", "build", "dotted", "load"]

Place = Callable[[KeyPath], str]

_TOML_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")


def load(
    path: str | PathLike[str], *, environ: Mapping[str, str], resolve: Resolve = static.resolve
) -> Config:
    """Read a configuration file.

    :param environ: where ``${NAME}`` in a string finds its value.
    :param resolve: gives the IP addresses of a host name, or raises OSError.
    :raises ConfigError: with one line per mistake, in the order of the file.
    """
    data, lines = _parse(path)
    try:
        return _build(data, environ, resolve)
    except Wrong as wrong:
        placed = sorted(((lines.find(key), key, text) for key, text in wrong.problems), key=_line)
        raise ConfigError(
            f"{path}:{line}: {dotted(key)}: {text}" for line, key, text in placed
        ) from None


def build(
    data: Mapping[str, Any],
    place: Place,
    *,
    environ: Mapping[str, str],
    resolve: Resolve = static.resolve,
) -> Config:
    """Make a configuration of plain data: what :func:`tomllib.loads` would give for a file.

    :param place: gives the start of a message about a key path, such as ``--backend``.
    :param environ: as for :func:`load`; ``resolve`` too.
    :raises ConfigError: with one line per mistake.
    """
    try:
        return _build(data, environ, resolve)
    except Wrong as wrong:
        raise ConfigError(f"{place(path)}: {message}" for path, message in wrong.problems) from None


def as_toml(config: Config) -> str:
    """The whole configuration in force, defaults included, as a file that loads to an equal one.

    Backends are written by their resolved addresses: the ``name`` that one was resolved from is
    not part of the file, and is empty after loading it.
    """
    made = _writer()
    top: dict[str, Any] = {"drain_timeout": config.drain_timeout}
    if config.admin:
        top["admin"] = {
            "listen": config.admin,
            "token": config.admin_token or None,
            "hosts": config.admin_hosts,
        }
    top["sources"] = made.unstructure(config.sources)
    top["clusters"] = {cluster.name: made.unstructure(cluster) for cluster in config.clusters}
    for cluster in top["clusters"].values():
        del cluster["name"]
        for key in ("host", "proxy_protocol"):
            if not cluster[key]:
                del cluster[key]
        for backend in cluster["backends"]:
            del backend["name"]
    top["listeners"] = [
        {
            name: value
            for name in LISTENER_KEYS
            # An empty text is no endpoint, and no cluster's name.
            if (value := made.unstructure(getattr(listener, name))) != ""
        }
        | (made.unstructure(listener.settings) or {})
        for listener in config.listeners
    ]
    return tomli_w.dumps(_writable(top))


def _writer() -> Converter:
    made = strict.converter()
    made.register_unstructure_hook(Address, str)
    made.register_unstructure_hook(PortRange, lambda ports: f"{ports.low}-{ports.high}")
    made.register_unstructure_hook(
        FieldRules, lambda rules: {"set": dict(rules.set), "remove": rules.remove}
    )
    made.register_unstructure_hook(
        Discover,
        lambda discover: {"by": discover.by, **(made.unstructure(discover.settings) or {})},
    )
    # Of a route only what it says: an empty cluster, or a status of 0, is not one in a file. This
    # looks up the hooks for its parts now.
    for kind in (HttpRoute, SniRoute):
        made.register_unstructure_hook(
            kind, make_dict_unstructure_fn(kind, made, _cattrs_omit_if_default=True)
        )
    return made


def _line(placed: tuple[int, KeyPath, str]) -> int:
    return placed[0]


def _parse(path: str | PathLike[str]) -> tuple[dict[str, Any], tomllines.Lines]:
    text = _read(path)
    try:
        return tomllib.loads(text), tomllines.lines(text)
    except RecursionError:
        message = "tables or lists are nested too deeply"
        raise ConfigError([f"{path}: {message}"]) from None
    except ValueError as error:
        if not (placed := _TOML_PLACE.fullmatch(str(error))):
            raise ConfigError([f"{path}: {error}"]) from None
        message, line = placed.groups()
        line = line or str(text.rstrip().count("\n") + 1)
        raise ConfigError([f"{path}:{line}: not TOML: {message}"]) from None


def _read(path: str | PathLike[str]) -> str:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8: {error.reason}"]) from None


def _build(data: Mapping[str, Any], environ: Mapping[str, str], resolve: Resolve) -> Config:
    """
    :raises Wrong: with every mistake.
    """
    problems: list[Problem] = []
    data = _expanded(data, environ, (), problems)
    unknown = [path for path, _ in problems]
    try:
        config = Reader(data, resolve).config()
    except Wrong as wrong:
        # What is said of a value that is not known, or of what is around it, would be about "${".
        problems += (
            (path, message)
            for path, message in wrong.problems
            if not any(hidden[: len(path)] == path for hidden in unknown)
        )
    if problems:
        raise Wrong(problems)
    return config


def _expanded(
    value: Any, environ: Mapping[str, str], path: KeyPath, problems: list[Problem]
) -> Any:
    """A copy with ``${NAME}`` replaced; each variable that has no value is added to problems."""
    if isinstance(value, dict):
        items = value.items()
        return {key: _expanded(item, environ, (*path, key), problems) for key, item in items}
    if isinstance(value, list):
        numbered = enumerate(value)
        return [_expanded(item, environ, (*path, index), problems) for index, item in numbered]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if match.group() == "$${":
            return "${"
        if name is None:
            problems.append((path, f"expected ${{NAME}}, or $${{ for ${{, not {found(value)}"))
        elif name not in environ:
            problems.append((path, f"the environment variable {name} is not set"))
        elif not _is_text(environ[name]):
            problems.append((path, f"the environment variable {name} is not UTF-8"))
        else:
            return environ[name]
        return match.group()

    return _VARIABLE.sub(replace, value)


def _is_text(value: str) -> bool:
    # os.environ turns bytes that are not UTF-8 into surrogates, which cannot be written again.
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _writable(value: Any) -> Any:
    """A copy as a file has it: nothing for None, and ``${`` written so that it stays one."""
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value
