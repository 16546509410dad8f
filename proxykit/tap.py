"""``twistd proxykit``: options to a configuration, a configuration to a service. Nothing more.

A mistake of the user's is one line on standard error and exit status 1, never a traceback; twistd
would print one for an error in ``makeService``.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import ILogObserver, Logger
from twisted.python import usage

from proxykit.components import components
from proxykit.config import load
from proxykit.errors import ConfigError
from proxykit.flags import BaseOptions, mode_options, say
from proxykit.model import Config
from proxykit.ops.logs import Log, log_of
from proxykit.ops.systemd import Notifier

_log = Logger(namespace="proxykit")


def _exit(lines: Iterable[str]) -> NoReturn:
    # Not sys.stderr: twistd makes that a part of the log, which may be a file by now.
    stream = sys.__stderr__
    if stream is not None:
        stream.write("".join(f"proxykit: {line}\n" for line in lines))
        stream.flush()
    raise SystemExit(1)


class _DemoOptions(BaseOptions):
    """Nothing to say."""

    longdesc = "Two built-in origins, a listener for each mode, and the admin listener."


class Options(BaseOptions):
    """``twistd proxykit`` and what may follow."""

    synopsis = "(--config FILE | MODE [options] | demo)"
    longdesc = "`twistd proxykit MODE --help` says what there is to be set."
    optParameters = [["config", "c", None, "The configuration, a TOML file"]]
    #: What is to run; None: the demo.
    configuration: Config | None = None
    #: Reads it again; None: there is no file.
    read_again: Callable[[], Config] | None = None

    @property
    def subCommands(self) -> list[tuple[str, None, Callable[[], usage.Options], str]]:
        """The modes, a plugin's among them, and the demo."""
        modes = components("mode").values()
        return [
            *((each.name, None, partial(mode_options, each), each.summary) for each in modes),
            ("demo", None, _DemoOptions, "try it: origins and listeners of its own"),
        ]

    def parseOptions(self, options: Any = None) -> None:
        """Read the command line; a mistake in it ends the process."""
        self._go_there()
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            _exit([f"{error} (twistd proxykit --help says what there is)"])

    def _go_there(self) -> None:
        """Go where twistd is to run (--rundir), now and not later: a relative path means the same
        thing when it is checked, when it is used, and after a reload."""
        self._started_in = os.getcwd()
        twistd: Any = self.parent or {}
        where = twistd.get("rundir", ".")
        if where != ".":
            try:
                os.chdir(where)
            except OSError as error:
                _exit([f"--rundir {where}: {error.strerror}"])
            twistd["rundir"] = os.getcwd()

    def configured(self, make: Callable[[], Config]) -> None:
        """Keep the configuration that ``make`` gives; a mistake in it ends the process."""
        try:
            self.configuration = make()
        except ConfigError as error:
            # One flag can be about several clusters.
            _exit(dict.fromkeys(error.lines))

    def postOptions(self) -> None:
        """Read the file, if there is one."""
        path = self["config"]
        if path is not None and self.subCommand is not None:
            raise usage.UsageError(f"give --config or {self.subCommand}, not both")
        if path is not None:
            if os.getcwd() != self._started_in:
                path = os.path.join(self._started_in, path)
            self.configured(lambda: load(path, environ=os.environ))
            # A daemon may be elsewhere by then.
            self.read_again = partial(load, os.path.abspath(path), environ=os.environ)
        elif self.subCommand is None:
            modes = ", ".join(name for name, *_ in self.subCommands)
            raise usage.UsageError(f"give --config FILE or one of {modes}")


class _UserService(MultiService):
    """Tells the user in one line what is in the way.

    :param twistd: twistd's own options.
    :param log: what the process logs to; None: twistd sees to it.
    """

    def __init__(self, twistd: Mapping[str, Any], reactor: Any, log: Log | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._logs_to = log
        self._twistd = twistd
        self._reactor = reactor
        self._notifier = Notifier(os.environ, reactor)
        self._stopping = False
        self._chained: list[Callable[[], object]] = []

    def setServiceParent(self, parent: Any) -> None:
        """Twistd asks the application what to log to, before it begins."""
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
        if self._logs_to is not None:
            parent.setComponent(ILogObserver, self._logs_to)
            self._chain(signal.SIGUSR1, self._logs_to.rotate)

    def privilegedStartService(self) -> None:
        try:
            super().privilegedStartService()  # type: ignore[no-untyped-call]
        except ConfigError as error:
            self._tell_parent(error.lines)
            _exit(error.lines)

    def startService(self) -> None:
        """Begin to serve; twistd has set up its own log by now."""
        super().startService()  # type: ignore[no-untyped-call]
        self._chain(signal.SIGUSR1, self._reopen_logs)
        self._chain(signal.SIGHUP, self._reload)
        # The reactor sets these up when it begins to run.
        self._reactor.callWhenRunning(self._watch_for_another)
        self._notifier.ready()

    def _chain(self, number: signal.Signals, call: Callable[[], object]) -> None:
        self._chained.append(chain_signal(number, call, self._reactor))

    def _reopen_logs(self) -> None:
        for service in self:
            service.reopen_logs()

    def _reload(self) -> None:
        for service in self:
            if service.reload is None:
                _log.warn("SIGHUP: there is no file to be read again (--config)")
                continue
            self._notifier.reloading()
            # If it comes to nothing, the log has said why.
            service.reload().addBoth(lambda _: self._notifier.ready())

    def _watch_for_another(self) -> None:
        """The first signal stops the service, and a second one its waiting."""
        if not self._stopping:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._chained.append(
                    chain_signal(number, self._cut, self._reactor, instead=lambda: self._stopping)
                )

    def _cut(self) -> None:
        for service in self:
            if self._stopping:
                service.cut("told to end at once")

    def stopService(self) -> Deferred[Any]:
        """The process is about to end: connections have ``drain_timeout`` seconds to do so before,
        and then end with it."""
        self._stopping = True
        self._notifier.stopping()
        drained = DeferredList([service.drain() for service in self])
        return drained.addCallback(lambda _: self._stop())

    def _stop(self) -> Deferred[Any]:
        stopped: Deferred[Any] = super().stopService()  # type: ignore[no-untyped-call]
        return stopped.addCallback(
            lambda _: DeferredList([service.abort_connections() for service in self])
        ).addCallback(lambda _: self._stopped())

    def _stopped(self) -> None:
        self._notifier.stop()
        while self._chained:
            self._chained.pop()()

    def _tell_parent(self, lines: Iterable[str]) -> None:
        """As a daemon: the process at the terminal waits for word, and standard error is gone."""
        pipe = self._twistd.get("statusPipe")
        if pipe is not None:
            for line in lines:
                _log.error("{line}", line=line)
            # Before it hears of it, and whoever waits for it looks.
            with suppress(OSError):
                os.remove(self._twistd["pidfile"])
            os.write(pipe, f"1 {next(iter(lines))}".encode()[:100])
            os.close(pipe)


def makeService(options: Options) -> IService:
    """The service for what the options say."""
    install_reactor()
    from twisted.internet import reactor

    from proxykit.ops.demo import DemoService
    from proxykit.ops.service import ProxyService

    raise_descriptor_limit(reactor)
    spare_the_collector()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        # There will be a pidfile before there is anything to be read again.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parent = _UserService(options.parent or {}, reactor, _log_of(options))
    if options.configuration is None:
        # All that is written is JSON then, and so is this.
        tell = _log_lines if options.log_format == "json" else say
        service: ProxyService = DemoService(reactor, tell)
    else:
        service = ProxyService(reactor)
        try:
            service.apply(options.configuration)
        except ConfigError as error:  # what only shows when it is done, such as a log's file
            _exit(error.lines)
        if options.read_again is not None:
            service.reads(options.read_again)
    service.setServiceParent(parent)  # type: ignore[no-untyped-call]
    return parent


def _log_lines(text: str) -> None:
    for line in filter(None, map(str.strip, text.splitlines())):
        _log.info("{line}", line=line)


def _log_of(options: Options) -> Log | None:
    if options.parent is None:  # no twistd
        return None
    try:
        return log_of(options.parent, options.log_format)
    except ValueError as error:
        _exit([str(error)])


def install_reactor() -> None:
    """Use the proxykit reactor where there is epoll and nobody has chosen another."""
    if "twisted.internet.reactor" not in sys.modules and hasattr(select, "epoll"):
        from proxykit.net.reactor import install

        install()


def chain_signal(
    number: signal.Signals,
    call: Callable[[], object],
    reactor: Any,
    instead: Callable[[], bool] | None = None,
) -> Callable[[], object]:
    """Let a signal do one thing more.

    Whoever has set a handler before goes first: twistd's rotates its log on SIGUSR1, and sets that
    up before the services are started, and only where there is none yet.

    :param call: called on the reactor.
    :param instead: whether it is called alone, and the former handler not; asked each time.
    :returns: what undoes it.
    """
    before = signal.getsignal(number)

    def handle(given: int, frame: Any) -> None:
        alone = instead is not None and instead()
        if callable(before) and not alone:
            before(given, frame)
        if alone or instead is None:
            reactor.callFromThread(call)

    signal.signal(number, handle)

    def undo() -> None:
        if signal.getsignal(number) is handle:
            signal.signal(number, before)

    return undo


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
