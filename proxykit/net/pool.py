"""The pool: upstream connections that serve one request after another.

It deals in *slots*: a connection has a capacity and a number in use (HTTP/1: one; a protocol that
multiplexes: as many as the peer allows). Connections that may stand in for one another lie on one
*shelf*, the newest on top; a :class:`~proxykit.model.PoolKey` says which these are.

The pool is a connector: what it cannot serve from a shelf it has the other connector open. Opening
and waiting are apart: an attempt that waits for a connection of its own takes one that comes free
before, and the one that was being opened for it is there for the next (or is given up, when there
is nobody). A pooled socket keeps its lease as long as it lives. Nothing queues here: who finds no
room waits in core/waiting.py, and a slot that comes free wakes the backend.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from proxykit.core import sharing
from proxykit.core.budget import Use
from proxykit.core.introduction import introductions
from proxykit.core.waiting import Full
from proxykit.errors import ProxyError, Retry, Side
from proxykit.interfaces import IConnector
from proxykit.model import PoolKey
from proxykit.net.opening import Opening
from proxykit.net.shelf import Counts, Pooled, Shelf, shown, strike, why_own

if TYPE_CHECKING:
    from proxykit.core.choice import Attempt
    from proxykit.core.deadlines import Deadlines
    from proxykit.core.registry import BackendState
    from proxykit.model import Address, ConnInfo

_ACTIVE = Use.ACTIVE

#: ``reuse = "safe"``: seconds for which a connection that has answered is taken to be alive.
FRESH = 1.0
#: Seconds by which we are earlier than a backend that says when it closes idle connections; and
#: how late a deadline may come, as a share of its duration (core/deadlines.py).
MARGIN = 1.0
LATENESS = 1 / 8
#: The least that an idle connection lives.
LEAST_IDLE = 0.1


@implementer(IConnector)
class Pool:
    """See this module.

    :param connector: opens new connections; choices that share nothing go to it as they are.
    :param deadlines: keeps the idle timeouts.
    """

    def __init__(self, connector: IConnector, deadlines: Deadlines) -> None:
        self._connector = connector
        self._deadlines = deadlines
        self._clock = deadlines.clock
        self._shelves: dict[PoolKey, Shelf] = {}
        #: What was counted on shelves that are gone, by their clusters.
        self._former: dict[str, Counts] = {}
        self._at: dict[Address, list[Shelf]] = {}
        self._alive: set[Pooled] = set()
        #: Those of one client alone, by what they began with.
        self._introduced: dict[bytes, dict[Pooled, None]] = {}
        #: Those that make room, and whose sockets are not closed yet.
        self._going: set[Pooled] = set()
        self._closed = False
        self._emptied: list[Deferred[None]] = []

    def attempt(self, attempt: Attempt) -> bool | Full:
        """See ``IConnector.attempt``."""
        choice, backend = attempt.choice, attempt.backend
        if not choice.shareable:
            got = self._connector.attempt(attempt)
            if isinstance(got, Full) and self._shelves:
                self._make_room(self._shelf(backend), got)
            return got
        shelf: Shelf = backend.shelf
        if shelf is None or shelf.pool is not self:
            shelf = self._shelf(backend)
        free, said = shelf.free, b""
        if shelf.introduces:
            said = attempt.introduction
            free = shelf.free_of.get(said, {})
        if free and not choice.fresh:
            connection = next(reversed(free))
            if (
                choice.repeatable
                or shelf.config.reuse == "always"
                or self._clock.seconds() - connection.answered <= FRESH
            ):
                self._take(connection, attempt)
                return True
        opening = Opening(self, shelf, attempt, said, why_own(shelf, choice, free))
        got = self._connector.attempt(opening)  # type: ignore[arg-type]
        if isinstance(got, Full):
            if free and not choice.fresh:
                self._take(next(reversed(free)), attempt)
                return True
            self._make_room(shelf, got)
            return got
        if got:
            assert opening.upstream is not None, "a connector has said that it is there"
            self._enrol(opening, opening.upstream)
            self._occupy(opening.upstream, attempt)
            self._offer(opening.upstream)
        else:
            attempt.handle = opening
            shelf.pending[attempt] = opening
        return got

    def cancel(self, attempt: Attempt) -> None:
        """See ``IConnector.cancel``: what is being opened is kept if it is of use to others."""
        opening = attempt.handle
        if not isinstance(opening, Opening):
            self._connector.cancel(attempt)
            return
        shelf = opening.shelf
        self._spare(attempt)
        if shelf.introduces or not (shelf.pending or len(shelf.backend.cluster.queue)):
            self._give_up(opening)

    def give_back(self, connection: Pooled) -> None:
        """A user is done with it, and it could serve another one."""
        connection.in_use -= 1
        if connection.in_use >= connection.capacity:
            if not connection.in_use:
                connection.close_idle()
            return
        connection.answered = self._clock.seconds()
        if connection.shelf.pending:
            self._offer(connection)
        else:
            self._put(connection)

    def left(self, info: ConnInfo) -> None:
        """A client is gone: what was opened in its name is of use to nobody else."""
        for said in introductions(info) if self._introduced else ():
            for connection in tuple(self._introduced.get(said, ())):
                # Else it is in use, or being closed.
                if not connection.in_use and connection in connection.shelf.free:
                    self._close(connection, sharing.CLIENT_LEFT)

    def retire(self, connection: Pooled, why: str = sharing.CLOSED) -> None:
        """Nobody else may have it: it is about to be closed, or it is one client's alone.

        :param why: the reason, as core/sharing.py has it; the first one counts.
        """
        shelf = connection.shelf
        if not connection.not_kept:
            connection.not_kept = why
            shelf.not_kept[why] += 1
        if connection in shelf.free:
            shelf.unlay(connection)
            if not connection.in_use:
                shelf.idle -= 1
        if connection._idle is not None:
            connection._idle.cancel()
            connection._idle = None

    def may_end(self, connection: Pooled) -> bool:
        """Its backend is to close it: whether there is time for that. Where somebody waits for its
        place, it is closed here; whoever comes later, and finds none, has it closed."""
        shelf = connection.shelf
        full, wanted = shelf.backend.full, connection.lease.wanted
        if wanted or (full is not None and len(shelf.backend.cluster.queue)):
            self._close(connection, sharing.EVICTED, wanted or (full is not None and full.ports))
            return False
        shelf.ending[connection] = None
        return True

    def lost(self, connection: Pooled, why: str = sharing.CLOSED) -> None:
        """Its socket is closed, whoever used it. Once.

        :param why: see ``retire``.
        """
        self.retire(connection, why)
        connection.capacity = 0
        connection.shelf.ending.pop(connection, None)
        self._alive.discard(connection)
        self._going.discard(connection)
        if connection.introduction:
            strike(self._introduced, connection)
        # Now, and not a moment later: whoever used it may look for another one at once.
        connection.lease.release()
        if self._emptied and not self._alive:
            emptied, self._emptied = self._emptied, []
            for each in emptied:
                each.callback(None)

    def leave(self, backend: BackendState) -> None:
        """A backend is to be left alone: its idle connections are closed, the others when they come
        free. It is used again as soon as somebody asks for it."""
        backend.shelf = None
        for shelf in self._at.get(backend.address, ()):
            if shelf.backend is backend:
                self._leave(shelf)

    def keep_only(self, backends: Iterable[BackendState]) -> None:
        """The configuration has changed: these backends are left, with what is set for them now.

        What lies on other shelves is closed, and empty ones are forgotten.
        """
        wanted = {_key(backend) for backend in backends}
        alive = {connection.shelf for connection in self._alive}
        for key, shelf in tuple(self._shelves.items()):
            if key in wanted:
                continue
            self._leave(shelf)
            if not (shelf in alive or shelf.pending or shelf.spare):
                self._forget(shelf)
        clusters = {key.cluster for key in (*wanted, *self._shelves)}
        self._former = {name: each for name, each in self._former.items() if name in clusters}

    def _forget(self, shelf: Shelf) -> None:
        key = shelf.key
        del self._shelves[key]
        self._at[key.address].remove(shelf)
        if not self._at[key.address]:
            del self._at[key.address]
        self._former.setdefault(key.cluster, Counts()).add(shelf)

    def _leave(self, shelf: Shelf) -> None:
        shelf.leaving = True
        for connection in tuple(shelf.free):
            if not connection.in_use:
                self._close(connection, sharing.LEAVING)

    def open(self) -> None:
        """Keep connections again, after a ``close``."""
        self._closed = False

    def close(self) -> Deferred[None]:
        """End all connections, those in use as well.

        :returns: fires when they are gone.
        """
        if not self._closed:
            self._closed = True
            for shelf in self._shelves.values():
                for opening in tuple(shelf.spare):
                    self._give_up(opening)
            for connection in tuple(self._alive):
                self.retire(connection, sharing.STOPPED)
                connection.abort()
        if not self._alive:
            return succeed(None)
        emptied: Deferred[None] = Deferred()
        self._emptied.append(emptied)
        return emptied

    def _shelf(self, backend: BackendState) -> Shelf:
        key = _key(backend)
        shelf = self._shelves.get(key)
        if shelf is not None and shelf.leaving and shelf.backend is not backend:
            # Its cluster was taken away, and there is one of that name again: what is in use there
            # is none of this one's connections.
            self._forget(shelf)
            shelf = None
        if shelf is None:
            shelf = self._shelves[key] = Shelf(self, key, backend)
            self._at.setdefault(backend.address, []).append(shelf)
        else:
            shelf.is_of(backend)
        backend.shelf = shelf
        return shelf

    def _take(self, connection: Pooled, attempt: Attempt) -> None:
        """Give an attempt a slot of a connection that lies on its shelf."""
        shelf = connection.shelf
        shelf.reused += 1
        if not connection.in_use:
            connection.lease.busy()
            shelf.idle -= 1
        connection.in_use += 1
        connection.used += 1
        if connection.in_use >= connection.capacity:
            if shelf.introduces:
                shelf.unlay(connection)
            else:
                del shelf.free[connection]
        attempt.upstream = connection

    def _offer(self, connection: Pooled) -> None:
        """It has a free slot: for an attempt that waits for what is being opened, or the shelf."""
        shelf = connection.shelf
        if shelf.shares and not shelf.introduces:
            while shelf.pending and connection.in_use < connection.capacity:
                first = next(
                    (each for each in shelf.pending if not (each.choice.fresh and connection.used)),
                    None,
                )
                if first is None:
                    break
                self._spare(first)
                if connection.used:
                    shelf.reused += 1
                self._occupy(connection, first)
                first.succeeded(connection)
        if connection.in_use < connection.capacity:
            self._put(connection)

    def _put(self, connection: Pooled) -> None:
        """Back to the shelf, on top."""
        shelf, lease = connection.shelf, connection.lease
        # Whoever was given a slot may have given it back by now, and it lies here already.
        if connection.capacity > 1 and connection in shelf.free:
            shelf.unlay(connection)  # It is to be on top.
        if not connection.in_use and lease.use is _ACTIVE:
            if self._closed or not shelf.shares or lease.wanted or shelf.leaving:
                # Wanted: another cluster has nothing to this address, and nobody may starve there
                # for what lies idle here.
                why = sharing.EVICTED if shelf.shares else sharing.POLICY
                if self._closed or shelf.leaving:
                    why = sharing.STOPPED if self._closed else sharing.LEAVING
                self._close(connection, why, for_port=why == sharing.EVICTED)
                return
            lease.idle()
            connection.rested = True
            shelf.idle += 1
        if shelf.introduces and shelf.shares:
            shelf.lay(connection)
        elif shelf.shares:
            shelf.free[connection] = None
        backend = shelf.backend
        if backend.full is not None:
            backend.wake()
        if connection.in_use or connection not in shelf.free:
            return
        if shelf.idle > shelf.most:
            # Too many. Where anybody could have it, all are alike, and the oldest is on its shelf
            # for good; what is one client's alone may be of no use any more.
            spare = connection
            if shelf.introduces:
                spare = next(each for each in shelf.free if not each.in_use)
            self._close(spare, sharing.POOL_FULL)
            if spare is connection:
                return
        elif (
            backend.full is not None
            and len(backend.cluster.queue)
            and not self._makes_room(shelf, backend.full)
        ):
            # Who waits can do nothing with it, but with its place.
            self._close(connection, sharing.EVICTED, backend.full.ports)
            return
        if connection._idle is not None and connection._idle_for == connection.idle_limit:
            connection._idle.touch()
        else:
            self._watch(connection)

    def _watch(self, connection: Pooled) -> None:
        if connection._idle is not None:
            connection._idle.cancel()
        limit = connection.shelf.config.idle_timeout
        connection._idle_for = theirs = connection.idle_limit
        if theirs is not None:
            limit = max(LEAST_IDLE, min(limit, (theirs - MARGIN) / (1 + LATENESS)))
        connection._idle = self._deadlines.add(limit, lambda: self._expire(connection))

    def _expire(self, connection: Pooled) -> None:
        connection._idle = None  # One that is in use has its next when it comes back.
        if not connection.in_use:
            self._close(connection, sharing.EXPIRED)

    def _close(self, connection: Pooled, why: str, for_port: bool = False) -> None:
        """Nobody shall have it any more, though its socket lives on until the end of the turn.

        :param for_port: somebody waits for its port, which an end would leave in TIME_WAIT; it is
            idle, so nothing is lost by a reset.
        """
        self.retire(connection, why)
        connection.capacity = 0
        if for_port:
            connection.abort()
        else:
            connection.close_idle()

    def _make_room(self, shelf: Shelf, full: Full) -> None:
        """What lies idle has what there is none left of: close the oldest. Before that, the oldest
        of those that are about to be closed.

        That may be one of its own, which is of no use to a request that must have a new one, or,
        where it is ports, one of another cluster's at the same address.
        """
        if self._makes_room(shelf, full):
            return
        others = self._at[shelf.backend.address] if full.ports else ()
        for each in (shelf, *others):
            idle = (connection for connection in each.free if not connection.in_use)
            if (connection := next(chain(each.ending, idle), None)) is not None:
                self._going.add(connection)
                self._close(connection, sharing.EVICTED, full.ports)
                return

    def _makes_room(self, shelf: Shelf, full: Full) -> bool:
        """Whether something is being closed for that already: at the end of the turn it is gone,
        and whoever is next in the queue may have its place."""
        return any(
            each.shelf is shelf or (full.ports and each.shelf.key.address == shelf.key.address)
            for each in self._going
        )

    def _spare(self, attempt: Attempt) -> None:
        """An attempt need not wait any more for what is being opened for it."""
        opening = attempt.handle
        opening.attempt = attempt.handle = None
        del opening.shelf.pending[attempt]
        opening.shelf.spare[opening] = None

    def _give_up(self, opening: Opening) -> None:
        del opening.shelf.spare[opening]
        self._connector.cancel(opening)  # type: ignore[arg-type]

    def _occupy(self, connection: Pooled, attempt: Attempt) -> None:
        """Give an attempt a slot of a connection that does not lie idle."""
        connection.in_use += 1
        connection.used += 1
        attempt.upstream, attempt.handle = connection, None

    def _enrol(self, opening: Opening, connection: Pooled) -> None:
        """A new connection: from now on it is of this shelf."""
        assert opening.lease is not None, "every socket has a lease"
        connection.lease, connection.shelf = opening.lease, opening.shelf
        connection.introduction, connection.own = opening.introduction, opening.own
        if opening.introduction:
            self._introduced.setdefault(opening.introduction, {})[connection] = None
        opening.shelf.own[opening.own] += 1
        self._alive.add(connection)

    def _opened(self, opening: Opening, connection: Pooled) -> None:
        self._enrol(opening, connection)
        shelf, attempt = opening.shelf, opening.attempt
        if attempt is not None:
            del shelf.pending[attempt]
            self._occupy(connection, attempt)
            attempt.succeeded(connection)
        else:
            del shelf.spare[opening]
            connection.answered = self._clock.seconds()
        self._offer(connection)

    def _failed(self, opening: Opening, error: ProxyError) -> None:
        attempt, shelf = opening.attempt, opening.shelf
        if attempt is not None:
            del shelf.pending[attempt]
            attempt.handle = None
            said = opening.introduction
            free = shelf.free_of.get(said, {}) if shelf.introduces else shelf.free
            if error.kind == "connection_limit_reached" and free and not attempt.choice.fresh:
                # The kernel has no port, which is the same as if we had counted to the end.
                self._take(next(reversed(free)), attempt)
                attempt.succeeded(attempt.upstream)
            else:
                attempt.failed(error)
            return
        del shelf.spare[opening]
        if error.side is Side.UPSTREAM and error.retry is not Retry.REUSED_ONLY:
            opening.backend.failed(error.message)

    def snapshot(self, cluster: str) -> dict[str, Any]:
        """The connections of one cluster, for ``/api/clusters``.

        ``own`` has those that were opened, by the reason, ``not_kept`` those of them that nobody
        else may have any more.
        """
        return self.snapshots().get(cluster) or shown([], Counts())

    def snapshots(self) -> dict[str, dict[str, Any]]:
        """The same of each cluster that has, or had, any, by its name; looked up in one go."""
        shelves: dict[str, list[Shelf]] = {name: [] for name in self._former}
        for key, shelf in self._shelves.items():
            shelves.setdefault(key.cluster, []).append(shelf)
        nothing = Counts()
        return {name: shown(its, self._former.get(name, nothing)) for name, its in shelves.items()}


def _key(backend: BackendState) -> PoolKey:
    cluster = backend.cluster.config
    return PoolKey(cluster.name, backend.address, "", cluster.tls, cluster.proxy_protocol)
