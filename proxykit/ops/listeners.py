"""The listeners that are in force: from one configuration to the next.

One that stays as it was is not touched. One that changes keeps its port: clients that come from now
on are served by the new settings, and those that are here by the former ones, up to their next
answer in HTTP. One that goes accepts no more, and has ``drain_timeout`` seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from proxykit.interfaces import IHandsOver, ILogsAccess
from proxykit.net.listener import Listener
from proxykit.ops import changes
from proxykit.ops.draining import Draining

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort
    from twisted.python.failure import Failure

    from proxykit import model
    from proxykit.core.deadlines import Deadlines
    from proxykit.ops.accesslog import AccessLogs
    from proxykit.ops.building import Builder, BuiltListener


@frozen
class Bindable:
    """What is to be bound.

    :ivar where: an endpoint string.
    :ivar listen: makes an endpoint listen; ``stop`` ends that.
    """

    name: str
    where: str
    listen: Callable[[Any], Deferred[IListeningPort]]
    stop: Callable[[], Deferred[Any]]


@frozen
class Prepared:
    """The listeners of a configuration that is not in force yet.

    :ivar each: what each was, what it is to be, and what serves it.
    :ivar gone: those that there are and that are not wanted any more.
    """

    each: list[tuple[model.Listener | None, BuiltListener, Listener]]
    gone: list[Listener]

    def to_bind(self) -> list[Bindable]:
        """Those that are new."""
        return [
            _bindable(new.config, listener)
            for before, new, listener in self.each
            if before is None and new.config.listen
        ]


class Listeners:
    """See this module.

    :ivar named: by their names; ``leaving``: those that are to go, and still have connections.
    """

    _log = Logger()

    def __init__(self, builder: Builder, deadlines: Deadlines, access_logs: AccessLogs) -> None:
        self._builder = builder
        self._deadlines = deadlines
        self._access_logs = access_logs
        self._ids = itertools.count(1)
        self.named: dict[str, Listener] = {}
        self.leaving: list[Listener] = []
        self._built: dict[Listener, BuiltListener] = {}
        self._running = False

    def __iter__(self) -> Iterator[Listener]:
        """All that have, or may have, connections."""
        return iter((*self.named.values(), *self.leaving))

    def prepare(self, before: model.Config, config: model.Config) -> Prepared:
        """
        :raises ConfigError: one of them cannot be served.
        """
        former, gone = changes.paired(before.listeners, config.listeners)
        clusters = {cluster.name for cluster in config.clusters}
        formats: dict[str, str] = {}
        prepared = []
        for number, (was, each) in enumerate(zip(former, config.listeners, strict=True)):
            listener = self.named[was.name] if was is not None else None
            # Built anew even if it is the same: its files may not be.
            place = f"listeners[{number}] ({each.name})"
            built = self._builder.listener(each, place, clusters, formats)
            if listener is None:
                listener = self._listener(built)
            elif was == each:
                built = self._built[listener]
            prepared.append((was, built, listener))
        return Prepared(prepared, [self.named[each.name] for each in gone])

    def _listener(self, built: BuiltListener) -> Listener:
        return Listener(
            built.config.name,
            built.factory,
            built.config.max_connections,
            self._ids,
            self._deadlines,
            built.headers,
            built.tls,
        )

    def have(self, prepared: Prepared, config: model.Config) -> None:
        """These are in force now."""
        introduces = any(cluster.proxy_protocol for cluster in config.clusters)
        self.named = {new.config.name: listener for _, new, listener in prepared.each}
        for was, new, listener in prepared.each:
            listener.notes_server = introduces
            before = self._built.get(listener)
            self._built[listener] = new
            if before is new:
                self._look(new)
                continue
            if IHandsOver.providedBy(new.factory):
                new.factory.hand_over_by(self._hand_over)
            if was is not None and before is not None:
                self._change(listener, before, new)
            elif self._running and not new.config.listen:
                listener.doStart()  # as a port does
            if self._running and new.certificates is not None:
                new.certificates.watch()
        for listener in prepared.gone:
            self._let_go(listener, config.drain_timeout)
        self.keep_logs()

    def _look(self, built: BuiltListener) -> None:
        """It is as it was, but for its files."""
        if self._running and built.certificates is not None:
            built.certificates.look()

    def _change(self, listener: Listener, before: BuiltListener, new: BuiltListener) -> None:
        """A listener goes on with other settings."""
        if before.certificates is not None:
            before.certificates.stop()
        if before.log is not None and ILogsAccess.providedBy(before.factory):
            # Who is still served by the former settings is written down where the others are.
            log = self._access_logs.log(*new.log).write if new.log is not None else _nowhere
            before.factory.log_access(log)
        new.count_on(before)
        config = new.config
        listener.change(config.name, new.factory, config.max_connections, new.headers, new.tls)

    def _let_go(self, listener: Listener, seconds: float) -> None:
        """One is not wanted any more."""
        if self._running and not self._built[listener].config.listen:
            listener.doStop()
        listener.stop_listening().addErrback(self._not_stopped)
        self.leaving.append(listener)
        draining = Draining([listener], seconds, self._deadlines, listener.name)
        draining.begin().addCallback(lambda _: self._forget(listener))

    def _not_stopped(self, failure: Failure) -> None:
        self._log.failure("when a listener was to stop", failure)

    def _forget(self, listener: Listener) -> None:
        """It has no connections any more."""
        certificates = self._built.pop(listener).certificates
        if certificates is not None:
            certificates.stop()
        self.leaving.remove(listener)
        self.keep_logs()

    def keep_logs(self) -> None:
        """Close the access logs that nobody writes to."""
        self._access_logs.keep_only(each.log for each in self._built.values() if each.log)

    def _hand_over(self, first: Any, name: str, received: bytes) -> None:
        """See ``IHandsOver``: whoever has accepted the connection keeps it in its table."""
        number = first.info.id
        accepted = next(each for each in self if each.connections.get(number) is first)
        target = self.named.get(name)
        if target is None:
            self._log.warn(
                "{connection}: refused: the listener {name} is gone",
                connection=first.info.name,
                name=name,
            )
            first.transport.abortConnection()
            return
        accepted.hand_over(first, target, received)

    # While the service runs.

    def to_bind(self) -> list[Bindable]:
        """All that are to listen somewhere."""
        return [
            _bindable(config, listener)
            for listener in self.named.values()
            if (config := self._built[listener].config).listen
        ]

    def start(self) -> None:
        """Serve: ports are bound."""
        self._running = True
        for listener in self.named.values():
            listener.draining = False
            if not self._built[listener].config.listen:
                listener.doStart()  # as a port does
        for built in self._built.values():
            if built.certificates is not None:
                built.certificates.watch()

    def stop(self) -> None:
        """Serve no more; see ``stop_listening`` for those with ports."""
        if not self._running:
            return
        self._running = False
        for listener in self.named.values():
            if not self._built[listener].config.listen:
                listener.doStop()
        for built in self._built.values():
            if built.certificates is not None:
                built.certificates.stop()

    def stop_listening(self) -> Deferred[Any]:
        """Accept no more."""
        return DeferredList([listener.stop_listening() for listener in self.named.values()])


def _bindable(config: model.Listener, listener: Listener) -> Bindable:
    return Bindable(config.name, config.listen, listener.listen, listener.stop_listening)


def _nowhere(entry: model.AccessEntry) -> None:
    """For what is not to be written down any more."""
