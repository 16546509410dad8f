"""The clusters that are in force: from one configuration to the next, and as sources tell.

Backends that stay keep their state, their connections and their pages in the book.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from proxykit.errors import ProxyError

if TYPE_CHECKING:
    from proxykit import model
    from proxykit.core.accountant import Accountant
    from proxykit.core.registry import BackendState, Registry, State
    from proxykit.net.checks import HealthChecks
    from proxykit.net.pool import Pool
    from proxykit.ops.building import BuiltCluster
    from proxykit.upkeep import Discover


class Clusters:
    """See this module.

    :param reactor: what sources of backends run on.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        registry: Registry,
        accountant: Accountant,
        pool: Pool,
        checks: HealthChecks,
    ) -> None:
        self._reactor = reactor
        self._registry = registry
        self._accountant = accountant
        self._pool = pool
        self._checks = checks
        self._built: dict[str, BuiltCluster] = {}
        # What looks for backends, by cluster, and what ends that.
        self._looking: dict[str, tuple[Discover, Callable[[], object]]] = {}
        self._running = False

    def have(self, clusters: list[BuiltCluster]) -> None:
        """These are in force now; those that there were besides stay until ``drop_others``."""
        for built in clusters:
            config = built.config
            state = self._registry.get(config.name)
            if state is None:
                self._checks.follow(self._registry.add(config, built.balancer))
            elif state.config != config:
                state.reconfigure(config, built.balancer)
            before, self._built[config.name] = self._built.get(config.name), built
            if before is None or before.config != config:
                self._warn(config)
            self._look_for(built)

    def drop_others(self, names: set[str]) -> None:
        """Let all clusters go but those of these names."""
        for name in set(self._built) - names:
            self._stop_looking(name)
            del self._built[name]
            self._checks.forget(self._registry.cluster(name))
            self._registry.remove(name)
        self.tidy()

    def _warn(self, config: model.Cluster) -> None:
        if config.tls is not None and not config.tls.verify:
            self._log.warn(
                "{cluster}: TLS to its backends is not verified (verify = false): anybody could"
                " be them",
                cluster=config.name,
            )

    def start(self) -> None:
        """Begin to look for backends, and whether they are well."""
        self._running = True
        self._checks.start()
        for built in self._built.values():
            self._look_for(built)

    def stop(self) -> None:
        """Look for them no more."""
        self._running = False
        self._checks.stop()
        for name in tuple(self._looking):
            self._stop_looking(name)

    def _look_for(self, built: BuiltCluster) -> None:
        """Have its source look for backends, if that does not do so already."""
        config, source = built.config, built.source
        looking = self._looking.get(config.name)
        if looking is not None and looking[0] == config.discover:
            return
        self._stop_looking(config.name)
        if source is None or config.discover is None:
            self._registry.cluster(config.name).discovered(())
        elif self._running:
            tell = partial(self._found, config.name)
            stop = source.watch(config.discover.settings, tell, self._reactor, config.name)
            self._looking[config.name] = config.discover, stop

    def _stop_looking(self, name: str) -> None:
        if name in self._looking:
            _, stop = self._looking.pop(name)
            stop()

    def _found(self, name: str, backends: tuple[model.Backend, ...]) -> None:
        self._registry.cluster(name).discovered(backends)
        self.tidy()

    def set_backend_state(self, cluster: str, address: model.Address, state: State) -> BackendState:
        """Drain a backend, take it down, or bring it up again.

        :raises KeyError: there is no such cluster, or no such backend in it.
        :raises ValueError: there is no such state.
        """
        found = self._registry.cluster(cluster)
        before = found.backends[address].state
        found.set_state(address, state)
        backend = found.backends[address]
        if state != "up":
            self._pool.leave(backend)
        if state != before:
            self._log.info(
                "{cluster} {backend}: {state} now, and {before} before, as it was told",
                cluster=cluster,
                backend=address,
                state=state,
                before=before,
            )
        return backend

    def __iter__(self) -> Iterator[BackendState]:
        """All backends there are."""
        return (each for cluster in self._registry for each in cluster.backends.values())

    def tidy(self) -> None:
        """Backends have come or gone: so have pages of the book, and idle connections."""
        backends = tuple(self)
        for backend in backends:
            self._open_page(backend.address)
        leaving = (address for cluster in self._registry for address in cluster.leaving)
        self._accountant.keep_only({*(each.address for each in backends), *leaving})
        self._pool.keep_only(backends)

    def leave_anew(self) -> None:
        """Connections leave from elsewhere now."""
        for backend in self:
            backend.pages = ()
            backend.wake()
        self.tidy()

    def _open_page(self, address: model.Address) -> None:
        """Show a backend's budget from the start, not from its first connection on."""
        if not address.is_unix:
            try:
                self._accountant.budgets(address)
            except ProxyError as error:
                # There may be a way later; until then each attempt says so.
                self._log.warn("{error}", error=error)
