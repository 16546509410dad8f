"""Every interface of the house, on one short page.

A connection meets them in this order: a *mode* makes a protocol for it and asks a *router* where it
goes; *flow* asks the *registry*'s cluster for a backend, which asks a *balancer*, and hands the
attempt to a *connector*, which asks the *accountant* for a lease. docs/life_of_a_connection.rst
tells the story.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocol, IProtocolFactory

    from proxykit.core.accountant import Lease
    from proxykit.core.choice import Attempt
    from proxykit.core.flow import Flow
    from proxykit.core.registry import BackendState, ClusterState
    from proxykit.core.waiting import Full
    from proxykit.model import AccessEntry, Backend, Listener, Route


class IMode(Interface):
    """What a user names in ``mode = "..."``: it makes the factory for a listener.

    One whose protocols can be agreed on under TLS has their names in a tuple ``alpn``.
    """

    settings: type = Attribute("An attrs class: the listener's keys that are this mode's own.")

    def check(listener: Listener) -> None:
        """Look at what its keys say together; ``listener.settings`` is an instance of ``settings``.

        :raises ValueError: the listener cannot be served so, for instance without a cluster.
        """

    def factory(listener: Listener, flow: Flow, connector: IConnector) -> IProtocolFactory:
        """Make an ordinary Twisted factory that serves this listener's connections.

        Before ``connectionMade`` each protocol that it builds is given an attribute ``info``, a
        ``ConnInfo``.
        """


class ISnapshot(Interface):
    """A protocol or factory that can say more of itself in ``/api/connections`` or
    ``/api/listeners``."""

    def snapshot() -> dict[str, Any]:
        """Plain data, ready for JSON."""


class IExplains(Interface):
    """A protocol that can say in ``/api/explain/ID`` whether it shares its backend's connection."""

    def explain() -> dict[str, Any]:
        """Plain data: ``shared`` (None: there is none, or nobody knows), ``reason``, a name, and
        ``why``, a sentence; ``core.sharing.explained`` makes it of its own names."""


class ICountsOn(Interface):
    """A factory that counts, and can go on where another one of its kind has come to."""

    def count_on(former: Any) -> None:
        """Its listener has other settings from now on; ``former`` served it before, and serves
        those who are still there. What is counted is counted together."""


class IHandsOver(Interface):
    """A factory whose protocols may give a connection to another listener's mode."""

    def hand_over_by(hand_over: Callable[[IProtocol, str, bytes], object]) -> None:
        """From now on ``hand_over(protocol, name, received)`` gives a protocol's connection to the
        listener of that name, with what has been read of it; the protocol hears no more of it."""


class ILogsAccess(Interface):
    """A factory whose listener may have an access log: its settings have ``access_log``, the path
    of a file, and ``access_log_format``."""

    def log_access(write: Callable[[AccessEntry], object]) -> None:
        """From now on, each request that is over is written down so."""


class IDrains(Interface):
    """A protocol that can end its connection without cutting anything off, when it is asked to."""

    def drain() -> None:
        """Its listener is about to go: finish what is under way, take nothing new, and close."""


class IBackendSource(Interface):
    """What a user names in ``by = "..."`` of ``[clusters.NAME.discover]``: it finds backends."""

    settings: type = Attribute("An attrs class: the keys of that table that are its own.")

    def check(settings: Any) -> None:
        """Look at what its keys say together, and at what they name on this machine, when a
        configuration is read. It must not wait for anybody.

        :raises ValueError: nothing can be found so. ``strict.Wrong`` says of which key that is.
        """

    def watch(
        settings: Any, tell: Callable[[tuple[Backend, ...]], object], reactor: Any, cluster: str
    ) -> Callable[[], object]:
        """Begin to look: ``tell`` is called with all the backends that there are, each time they
        have changed; where they are known at once, from within this call. What cannot be found out
        is logged with the name of the ``cluster``, and the last good answer stands.

        :param settings: an instance of ``settings``.
        :param reactor: what tells the time, and opens sockets.
        :returns: what ends it: nothing is left behind, and ``tell`` is not called any more.
        """


class IKnowingSource(IBackendSource):
    """One that can tell at once what there is: ``proxykit plan`` asks it."""

    def now(settings: Any) -> tuple[Backend, ...]:
        """All the backends that ``watch`` would tell of if it began at this moment.

        :raises ConfigError: it would tell of none.
        """


class IRouter(Interface):
    """Where does this go?"""

    def route(subject: Any) -> Route | None:
        """Answer for what the mode has seen (tcp: a ``ConnInfo``); None means refuse it."""


class IRegistry(Interface):
    """The clusters of backends, shared by all listeners."""

    def cluster(name: str) -> ClusterState:
        """The cluster of that name.

        :raises KeyError: there is none.
        """


class IBalancer(Interface):
    """Which of the backends that could take one more is to take it?

    It knows only backends that are up, well and not full. A backend has ``in_flight``, ``weight``
    and ``address``; its weight is a part of ``config.weight`` while it is new or has just come
    back, and changes only when it was discarded, before it is added again.
    """

    def add(backend: BackendState) -> None:
        """From now on this one may be chosen. It is not known yet, or has been discarded."""

    def discard(backend: BackendState) -> None:
        """From now on it may not, perhaps only for a moment. It may be unknown."""

    def forget(backend: BackendState) -> None:
        """It has left the cluster. It may be unknown."""

    def update(backend: BackendState) -> None:
        """Its ``in_flight`` has changed. It may be unknown."""

    def choose(client: str, avoid: set[BackendState]) -> BackendState | None:
        """One that is not among the few in ``avoid``, at a cost that does not grow with their
        number; None where there is none. ``client`` is the client's address without a port."""


class IAccountant(Interface):
    """Who keeps the book of source ports and sockets."""

    def lease(backend: BackendState, beyond: bool = False) -> Lease | Full:
        """Reserve a source port and one of the backend's ``max_connections`` for one socket.

        Answers at once; ``Full`` says what there is none of. Where it is to go ``beyond`` these
        connections it may be one more: a check's, which carries no traffic.

        :raises ProxyError: there is no way from here to the backend's address.
        """


class IConnector(Interface):
    """One attempt at one backend: a new socket or, for a pool, one that is there already."""

    def attempt(attempt: Attempt) -> bool | Full:
        """Give ``attempt.upstream`` a value: True, it is there; False, it is under way, and later
        (never from within this call) ``attempt.succeeded(upstream)`` or ``attempt.failed(error)``
        is called, once; ``Full``: there is no room at this backend now, and nothing was taken.

        :raises ProxyError: it has failed already.
        """

    def cancel(attempt: Attempt) -> None:
        """Stop an attempt that is under way. Neither of its methods is called afterwards."""


class IPausablePort(Interface):
    """A listening port that can stop accepting for a while; clients wait in its backlog."""

    starved: Callable[[], object] | None = Attribute(
        "Called when the process has no descriptor for the next client, instead of closing it."
    )
    last_descriptor: float = Attribute(
        "From which descriptor on it is called as well, after the client was accepted."
    )

    def pause() -> None:
        """Accept no more, from this moment on."""

    def resume() -> None:
        """Accept again."""


class IHalfCloses(Interface):
    """A transport that speaks TLS and yet can end one direction alone, as plain sockets can."""


class IShortcuts(Interface):
    """A transport that can do more than Twisted's: those of the proxykit reactor, while they are
    plain sockets. Whoever uses them has another way for transports that do not provide this.

    A half-close works on them in either direction, as it does not under TLS.
    """

    def peek(size: int) -> bytes:
        """What has come, at most ``size`` bytes, without taking it; nothing if nothing has, or if
        the other side has ended.

        :raises OSError: the connection is lost.
        """

    def consume(size: int) -> None:
        """Take exactly so many bytes, all of which ``peek`` has shown.

        :raises OSError: the connection is lost.
        """

    def look(seen: Callable[[bytes], object] | None, size: int) -> None:
        """From now on show what has come, at most ``size`` bytes, to ``seen``, in place of reading
        it. Whoever takes none of it is shown it again at once. None: read as ever.

        Once nothing is to be shown, and the other side has ended, that is told as ever.
        """

    def switch(protocol: IProtocol) -> None:
        """Another protocol gets all that comes from now on; it is not told so."""

    def splice_to(sink: Any, limit: int | None, moved: Callable[[int], object]) -> bool:
        """Bytes that come may go straight to the transport ``sink``, the next ``limit`` of them.

        Those that do are counted by ``moved(count)`` when the sink has taken them; the others come
        to ``dataReceived`` as ever, whose business it is to write them to ``sink``. The order is
        kept. A limit of None is none. Calling it again ends what went before.

        :returns: False where that cannot be: then all come to ``dataReceived``.
        """
