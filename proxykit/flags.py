"""The flags of ``twistd proxykit MODE``: a listener and its clusters, said without a file.

They are turned into the data that a file would have; :mod:`proxykit.config` reads that.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Container
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

from attrs import NOTHING, Attribute, fields, frozen, resolve_types
from twisted.python import usage

from proxykit import __version__
from proxykit.components import IComponent, components
from proxykit.config import build
from proxykit.errors import ConfigError
from proxykit.interfaces import IMode
from proxykit.model import HttpRoute, SniRoute
from proxykit.ops.logs import FORMATS

#: The cluster of the backends that are given by --backend.
_DEFAULT = "backends"
#: Flags that no setting can have, beside those in ``optParameters``.
_TAKEN = ("backend", "route", "source", "tls", "trust", "log-format", "help", "version")
#: What --proxy-protocol may be: read a header from each client, send one to each backend.
_DIRECTIONS = ("in", "out", "both")
_IN_FILE = "As in the file"
#: What settings classes say of their fields.
_IVAR = re.compile(r":ivar (\w+):(.*?)(?=:ivar |\n\s*\n|\Z)", re.DOTALL)


def say(text: str) -> None:
    """To the person at the terminal; in the log it would be broken up."""
    stream = sys.__stdout__
    if stream is not None:
        stream.write(text)
        stream.flush()


class BaseOptions(usage.Options):
    """What goes with every way to start the service."""

    #: How the log is written; None: nobody has said. Whoever is asked for a mode tells its parent.
    log_format: str | None = None

    def opt_log_format(self, name: str) -> None:
        """How the log is written, one line for each event: text, the default, or json."""
        if name not in FORMATS:
            raise usage.UsageError(f"--log-format: expected {' or '.join(FORMATS)}, not {name!r}")
        parent = getattr(self, "parent", None)
        (parent if isinstance(parent, BaseOptions) else self).log_format = name

    def opt_version(self) -> NoReturn:
        """Display the version of proxykit and exit."""
        say(f"proxykit {__version__}\n")
        raise SystemExit(0)


@frozen
class _RouteFlag:
    """One ``--route``: a route, and a cluster of its own.

    :ivar text: as it was written.
    """

    text: str
    host: str
    path: str
    addresses: list[str]
    cluster: str

    @classmethod
    def parse(cls, text: str, taken: Container[str], by_path: bool) -> _RouteFlag:
        """
        :param taken: names of clusters that there are.
        :param by_path: whether it may have a path.
        :raises UsageError: that is no route.
        """
        where, _, addresses = text.partition("=")
        host, slash, path = where.partition("/")
        if not (host and addresses) or (slash and not by_path):
            more = " or HOST/PATH=ADDRESS,ADDRESS,..." if by_path else "[,ADDRESS...]"
            expected = f"HOST=ADDRESS{more}"
            raise usage.UsageError(f"--route {text}: expected {expected}")
        name = re.sub(r"[^!-.0-~]", ":", where)
        while name in taken:
            name += "+"
        host = "" if host == "*" else host
        return cls(text, host, slash + path or "/", addresses.split(","), name)


class ModeOptions(BaseOptions):
    """What can be said of one listener without a file."""

    optParameters = [
        ["listen", "l", None, "Where to listen: a Twisted server endpoint, such as tcp:9000"],
        ["admin", None, None, "Where the admin listener is, such as tcp:9901:interface=127.0.0.1"],
        ["admin-token-file", None, None, "A file with the token that one has to show there"],
        ["balance", None, None, f"How a backend is chosen: {', '.join(components('balance'))}"],
        ["proxy-protocol", None, None, f"PROXY headers: {', '.join(_DIRECTIONS)}"],
    ]
    mode = ""
    #: What says where its traffic goes.
    needed = "--backend"
    #: Whether its routes go by path, too.
    by_path = False
    #: By their flags: the settings that have one value, and those that are lists.
    settings: dict[str, Attribute[Any]] = {}
    lists: dict[str, Attribute[Any]] = {}

    def __init__(self) -> None:
        self.backends: list[str] = []
        self.sources: list[str] = []
        self.trusted: list[str] = []
        self.certificates: list[str] = []
        self.routes: list[_RouteFlag] = []
        self.listed: dict[str, list[str]] = {name: [] for name in self.lists}
        super().__init__()  # type: ignore[no-untyped-call]

    def opt_backend(self, address: str) -> None:
        """A backend: host:port, [v6]:port or unix:/path. May be given more than once."""
        self.backends.append(address)

    opt_b = opt_backend

    def opt_source(self, address: str) -> None:
        """A local IP address that connections to backends leave from. May be given more than
        once."""
        self.sources.append(address)

    def opt_trust(self, network: str) -> None:
        """Who may say for whom it speaks, by PROXY headers or forwarding fields: a network, an
        address, or unix. May be given more than once."""
        self.trusted.append(network)

    def data(self) -> dict[str, Any]:
        """The same as a file would say it."""
        listener: dict[str, Any] = {"name": self.mode, "mode": self.mode}
        if self["listen"] is not None:
            listener["listen"] = self["listen"]
        for name, each in self.settings.items():
            if self[name] is not None:
                listener[each.name] = _value(self[name], _one_type(each.type))
        listener |= {
            self.lists[name].name: values for name, values in self.listed.items() if values
        }
        if self.trusted:
            listener["trust"] = self.trusted
        if self.certificates:
            listener["tls"] = {"certificates": self.certificates}
        direction = self._direction()
        if direction in ("in", "both"):
            listener["proxy_protocol"] = True
        if self.routes:
            listener["routes"] = [
                {"host": route.host, "cluster": route.cluster}
                | ({"path": route.path} if self.by_path else {})
                for route in self.routes
            ]
        data: dict[str, Any] = {"listeners": [listener]}
        clusters = {route.cluster: route.addresses for route in self.routes}
        if self.backends or (self["balance"] is not None and not self.routes):
            listener["cluster"] = _DEFAULT
            clusters[_DEFAULT] = self.backends
        if clusters:
            shared = {} if self["balance"] is None else {"balance": self["balance"]}
            if direction in ("out", "both"):
                shared["proxy_protocol"] = "v2"
            data["clusters"] = {
                name: {"backends": addresses, **shared} for name, addresses in clusters.items()
            }
        if self.sources:
            data["sources"] = {"addresses": self.sources}
        admin = {"listen": self["admin"], "token_file": self["admin-token-file"]}
        if given := {key: value for key, value in admin.items() if value is not None}:
            data["admin"] = given
        return data

    def _direction(self) -> str | None:
        direction: str | None = self["proxy-protocol"]
        if direction not in (None, *_DIRECTIONS):
            words = ", ".join(_DIRECTIONS)
            raise ConfigError([f"--proxy-protocol: expected one of {words}, not {direction!r}"])
        return direction

    def place(self, path: tuple[str | int, ...]) -> str:
        """The flag that a mistake at a key path is about."""
        match path:
            case ("clusters", name, "backends", int() as index, *_) if name == _DEFAULT:
                return f"--backend {self.backends[index]}"
            case ("clusters", name, "backends", int(), *_):
                return next(f"--route {each.text}" for each in self.routes if each.cluster == name)
            case ("clusters", _, "backends"):
                return "--backend"
            case ("listeners", _):
                return self.needed
            case ("sources", _, int() as index):
                return f"--source {self.sources[index]}"
            case ("admin", "token_file"):
                return "--admin-token-file"
            case ("admin", *_):
                return "--admin"
            case ("listeners", _, "routes", int() as index, *_):
                return f"--route {self.routes[index].text}"
            case ("listeners", _, "tls", *_):
                return "--tls"
            case ("listeners", _, "trust", int() as index):
                return f"--trust {self.trusted[index]}"
            case ("listeners", _, str() as key, int() as index):
                flag = key.replace("_", "-")
                return f"--{flag} {self.listed[flag][index]}"
            case _:
                return f"--{str(path[-1]).replace('_', '-')}"

    def postOptions(self) -> None:
        """Turn what was said into a configuration."""
        parent: Any = self.parent
        parent.configured(lambda: build(self.data(), self.place, environ=os.environ))


class _TlsOptions(ModeOptions):
    """The same for a mode that may end TLS."""

    def opt_tls(self, path: str) -> None:
        """End TLS here: a PEM file with a chain and its key, or a directory of such files. May be
        given more than once."""
        self.certificates.append(path)


class _RoutingOptions(ModeOptions):
    """The same for a mode that routes by host, and does not end TLS."""

    needed = "--backend or --route"

    def opt_route(self, text: str) -> None:
        """HOST=ADDRESS[,ADDRESS...]: the backends for a host, such as a.example or *.a.example, or
        * for any. May be given more than once."""
        taken = {_DEFAULT, *(route.cluster for route in self.routes)}
        self.routes.append(_RouteFlag.parse(text, taken, self.by_path))


class _PathRoutingOptions(_RoutingOptions, _TlsOptions):
    """The same for a mode that routes by host and path."""

    by_path = True

    def opt_route(self, text: str) -> None:
        """HOST[/PATH]=ADDRESS[,ADDRESS...]: the backends for a host, such as a.example or
        *.a.example, or * for any, and below a path. May be given more than once."""
        super().opt_route(text)


#: By the type of a mode's setting ``routes``.
_BY_ROUTES: dict[Any, type[ModeOptions]] = {
    tuple[HttpRoute, ...]: _PathRoutingOptions,
    tuple[SniRoute, ...]: _RoutingOptions,
}


def mode_options(component: IComponent) -> usage.Options:
    """Options for one mode: each of its settings is one, so that a plugin's are there as well.

    A setting that is a list of strings may be given more than once; one that is a table, or a list
    of tables, can only be set in a file. ``routes`` has a flag of its own.
    """
    mode = IMode(component.load()())  # type: ignore[operator]
    resolve_types(mode.settings)
    taken = {*(parameter[0] for parameter in ModeOptions.optParameters), *_TAKEN}
    free = {
        name: each
        for each in fields(mode.settings)
        if each.init and (name := each.name.replace("_", "-")) not in taken
    }
    settings = {name: each for name, each in free.items() if _one_type(each.type) is not None}
    lists = {name: each for name, each in free.items() if each.type == tuple[str, ...]}
    said = _said_of_fields(mode.settings)
    routes = next((each.type for each in fields(mode.settings) if each.name == "routes"), None)
    base = _BY_ROUTES.get(routes, _TlsOptions)
    # Twisted collects the options of classes, not of instances.
    made = type(
        "_ThisModeOptions",
        (base,),
        {
            "mode": component.name,
            "settings": settings,
            "lists": lists,
            "longdesc": _sentence(component.summary),
            "optParameters": [
                [name, None, None, f"{said.get(each.name, _IN_FILE)}; default: {_default(each)}"]
                for name, each in settings.items()
            ],
            **{
                f"opt_{each.name}": _repeatable(name, said.get(each.name, _IN_FILE))
                for name, each in lists.items()
            },
        },
    )
    options: usage.Options = made()
    return options


def _repeatable(name: str, said: str) -> Callable[[ModeOptions, str], None]:
    def option(self: ModeOptions, value: str) -> None:
        self.listed[name].append(value)

    option.__doc__ = f"{said}. May be given more than once."
    return option


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _said_of_fields(settings: type) -> dict[str, str]:
    """The first sentence that the docstring has for each field, without the final dot."""
    return {
        name: _sentence(" ".join(text.split()).partition(". ")[0].removesuffix("."))[:-1]
        for each in reversed(settings.__mro__)
        for name, text in _IVAR.findall(each.__doc__ or "")
    }


def _default(setting: Attribute[Any]) -> object:
    default = setting.default
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default in (NOTHING, None, "") else default


def _one_type(kind: Any) -> type | None:
    """The type of a setting that one word can say; None: it is a list, or a table."""
    if get_origin(kind) in (Union, UnionType):
        kind, *more = [each for each in get_args(kind) if each is not NoneType]
        if more:
            return None
    kind = getattr(kind, "__supertype__", kind)  # a NewType's
    return kind if kind in (str, int, float, bool) else None


def _value(text: str, kind: type | None) -> object:
    """What a file would have for this text; the text itself where it is none, to be refused."""
    if kind is bool:
        return {"yes": True, "true": True, "no": False, "false": False}.get(text, text)
    if kind in (int, float):
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                pass
    return text
