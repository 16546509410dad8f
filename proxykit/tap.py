"""``twistd proxykit``: options to a configuration, a configuration to a service. Nothing more.

A mistake of the user's is one line on standard error and exit status 1, never a traceback; twistd
would print one for an error in ``makeService``.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from attrs import NOTHING, Attribute, fields, resolve_types
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python import usage

from proxykit import __version__
from proxykit.components import IComponent, components
from proxykit.config import build, load
from proxykit.errors import ConfigError
from proxykit.interfaces import IMode
from proxykit.model import Config

_log = Logger(namespace="proxykit")


def _exit(lines: Iterable[str]) -> NoReturn:
    # Not sys.stderr: twistd makes that a part of the log, which may be a file by now.
    stream = sys.__stderr__
    if stream is not None:
        stream.write("".join(f"proxykit: {line}\n" for line in lines))
        stream.flush()
    raise SystemExit(1)


class _Options(usage.Options):
    def opt_version(self) -> NoReturn:
        """Display the version of proxykit and exit."""
        _say(f"proxykit {__version__}\n")
        raise SystemExit(0)


class _ModeOptions(_Options):
    """What can be said of one listener without a file."""

    optParameters = [
        ["listen", "l", None, "Where to listen: a Twisted server endpoint, such as tcp:9000"],
        ["admin", None, None, "Where the admin listener is, such as tcp:9901:interface=127.0.0.1"],
        ["balance", None, None, f"How a backend is chosen: {', '.join(components('balance'))}"],
    ]
    mode = ""
    settings: dict[str, Attribute[Any]] = {}

    def __init__(self) -> None:
        self.backends: list[str] = []
        super().__init__()  # type: ignore[no-untyped-call]

    def opt_backend(self, address: str) -> None:
        """A backend: host:port, [v6]:port or unix:/path. May be given more than once."""
        self.backends.append(address)

    opt_b = opt_backend

    def data(self) -> dict[str, Any]:
        """The same as a file would say it."""
        listener: dict[str, Any] = {"name": self.mode, "mode": self.mode}
        if self["listen"] is not None:
            listener["listen"] = self["listen"]
        for name, each in self.settings.items():
            if self[name] is not None:
                listener[each.name] = _value(self[name], each.type)
        data: dict[str, Any] = {"listeners": [listener]}
        if self.backends or self["balance"] is not None:
            listener["cluster"] = "backends"
            data["clusters"] = {"backends": {"backends": self.backends}}
            if self["balance"] is not None:
                data["clusters"]["backends"]["balance"] = self["balance"]
        if self["admin"] is not None:
            data["admin"] = {"listen": self["admin"]}
        return data

    def place(self, path: tuple[str | int, ...]) -> str:
        """The flag that a mistake at a key path is about."""
        match path:
            case ("clusters", _, "backends", int() as index, *_):
                return f"--backend {self.backends[index]}"
            case ("clusters", _, "backends"):
                return "--backend"
            case ("admin", *_):
                return "--admin"
            case ("listeners", _):
                return "--backend"
            case _:
                return f"--{str(path[-1]).replace('_', '-')}"

    def postOptions(self) -> None:
        """Turn what was said into a configuration."""
        parent: Any = self.parent
        parent.configured(lambda: build(self.data(), self.place, environ=os.environ))


def _mode_options(component: IComponent) -> usage.Options:
    """Options for one mode: each of its settings is one, so that a plugin's are there as well."""
    mode = IMode(component.load()())  # type: ignore[operator]
    resolve_types(mode.settings)
    taken = {parameter[0] for parameter in _ModeOptions.optParameters}
    settings = {
        name: each
        for each in fields(mode.settings)
        if (name := each.name.replace("_", "-")) not in taken
    }
    # Twisted collects the options of classes, not of instances.
    made = type(
        "_ThisModeOptions",
        (_ModeOptions,),
        {
            "mode": component.name,
            "settings": settings,
            "longdesc": f"{component.summary[:1].upper()}{component.summary[1:]}.",
            "optParameters": [
                [name, None, None, _describe(each)] for name, each in settings.items()
            ],
        },
    )
    options: usage.Options = made()
    return options


class _DemoOptions(_Options):
    """Nothing to say."""

    longdesc = "Two built-in origins, a listener for each mode, and the admin listener."


class Options(_Options):
    """``twistd proxykit`` and what may follow."""

    synopsis = "(--config FILE | MODE [options] | demo)"
    longdesc = "`twistd proxykit MODE --help` says what there is to be set."
    optParameters = [["config", "c", None, "The configuration, a TOML file"]]
    #: What is to run; None: the demo.
    configuration: Config | None = None

    @property
    def subCommands(self) -> list[tuple[str, None, Callable[[], usage.Options], str]]:
        """The modes, a plugin's among them, and the demo."""
        modes = components("mode").values()
        return [
            *((each.name, None, partial(_mode_options, each), each.summary) for each in modes),
            ("demo", None, _DemoOptions, "try it: origins and listeners of its own"),
        ]

    def parseOptions(self, options: Any = None) -> None:
        """Read the command line; a mistake in it ends the process."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            _exit([f"{error} (twistd proxykit --help says what there is)"])

    def configured(self, make: Callable[[], Config]) -> None:
        """Keep the configuration that ``make`` gives; a mistake in it ends the process."""
        try:
            self.configuration = make()
        except ConfigError as error:
            _exit(error.lines)

    def postOptions(self) -> None:
        """Read the file, if there is one."""
        path = self["config"]
        if path is not None and self.subCommand is not None:
            raise usage.UsageError(f"give --config or {self.subCommand}, not both")
        if path is not None:
            self.configured(lambda: load(path, environ=os.environ))
        elif self.subCommand is None:
            modes = ", ".join(name for name, *_ in self.subCommands)
            raise usage.UsageError(f"give --config FILE or one of {modes}")


class _UserService(MultiService):
    """Tells the user in one line what is in the way.

    :param twistd: twistd's own options.
    """

    def __init__(self, twistd: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._twistd = twistd

    def privilegedStartService(self) -> None:
        try:
            super().privilegedStartService()  # type: ignore[no-untyped-call]
        except ConfigError as error:
            self._tell_parent(error.lines)
            _exit(error.lines)

    def stopService(self) -> Deferred[Any]:
        """The process is about to end, and its connections with it."""
        stopped: Deferred[Any] = super().stopService()  # type: ignore[no-untyped-call]
        return stopped.addCallback(
            lambda _: DeferredList([service.abort_connections() for service in self])
        )

    def _tell_parent(self, lines: Iterable[str]) -> None:
        """As a daemon: the process at the terminal waits for word, and standard error is gone."""
        pipe = self._twistd.get("statusPipe")
        if pipe is not None:
            for line in lines:
                _log.error("{line}", line=line)
            os.write(pipe, f"1 {next(iter(lines))}".encode()[:100])
            os.close(pipe)
            with suppress(OSError):
                os.remove(self._twistd["pidfile"])


def makeService(options: Options) -> IService:
    """The service for what the options say."""
    install_reactor()
    from twisted.internet import reactor

    from proxykit.ops.demo import DemoService
    from proxykit.ops.service import ProxyService

    raise_descriptor_limit(reactor)
    spare_the_collector()
    parent = _UserService(options.parent or {})
    if options.configuration is None:
        service: ProxyService = DemoService(reactor, _say)
    else:
        service = ProxyService(reactor)
        service.apply(options.configuration)
    service.setServiceParent(parent)  # type: ignore[no-untyped-call]
    return parent


def install_reactor() -> None:
    """Use the proxykit reactor where there is epoll and nobody has chosen another."""
    if "twisted.internet.reactor" not in sys.modules and hasattr(select, "epoll"):
        from proxykit.net.reactor import install

        install()


def _say(text: str) -> None:
    """To the person at the terminal; in the log it would be broken up."""
    stream = sys.__stdout__
    if stream is not None:
        stream.write(text)
        stream.flush()


def raise_descriptor_limit(reactor: object) -> None:
    """Use all the descriptors that this process may have: a connection takes two.

    The usual soft limit of 1024 is for programs that use select(); so does that reactor.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and type(reactor).__name__ != "SelectReactor":
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _log.info("file descriptors: {hard} (was {soft})", hard=hard, soft=soft)


def spare_the_collector() -> None:
    """What is imported by now stays: nobody need look at it again.

    Connections leave no circles behind, so the garbage collector can come by more rarely.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _describe(setting: Attribute[Any]) -> str:
    default = setting.default
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return f"As in the file; default: {'none' if default is NOTHING else default}"


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
