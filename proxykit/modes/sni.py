"""The L4 router: it looks at the name in a TLS ClientHello, and relays all of it untouched.

What is encrypted stays so from end to end: the backend gets exactly the bytes that the client sent.

    endpoint.listen(SniFactory(flow, connector, SniRouter(routes), name="front"))

Where a route names a listener in place of a cluster, the connection goes on there as if it had come
there. On transports that let what has come be looked at, nothing of it has been read by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve
from zope.interface import implementer

from proxykit.core.rarely import Rarely
from proxykit.core.routing import SniRouter
from proxykit.core.stats import Hellos
from proxykit.interfaces import IHandsOver, IMode
from proxykit.modes.sni_settings import CLOSE, REFUSE, SniSettings, check_sni
from proxykit.modes.tcp import EARLY_BYTES, TcpFactory, TcpProtocol
from proxykit.net.closing import Closing
from proxykit.net.relay import has_shortcuts
from proxykit.wire.clienthello import (
    HANDSHAKE_FAILURE,
    MISSING_EXTENSION,
    NEED_MORE,
    PROTOCOL_VERSION,
    TLS13,
    UNRECOGNIZED_NAME,
    Hello,
    HelloReader,
    Malformed,
    Matched,
    alert,
)
from proxykit.wire.proxyproto import AUTHORITY

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocol
    from twisted.python.failure import Failure

    from proxykit.core.deadlines import Deadline
    from proxykit.core.flow import Flow
    from proxykit.interfaces import IConnector
    from proxykit.model import ConnInfo, Listener, SniRoute
    from proxykit.wire.clienthello import NeedMore, NotThisProtocol

#: Bytes of a connection's beginning that are looked at before they are read: most hellos are whole
#: in them. One that is not is read.
LOOK_BYTES = 16384


class SniProtocol(TcpProtocol):
    """The relay's connection to the client; first it waits for the hello."""

    factory: SniFactory
    #: What it asks for, once that is known.
    hello: Hello | None = None
    _reader: HelloReader | None = None
    _peeking: Deadline | None = None
    _closing: Closing | None = None

    def connectionMade(self) -> None:
        self._arrived()
        factory = self.factory
        self._reader = HelloReader(factory.settings.hello_limit)
        self._peeking = factory.flow.deadlines.add(factory.settings.peek_timeout, self._late)
        if factory.looks and has_shortcuts(self.transport):
            self.transport.look(self._seen, LOOK_BYTES)

    def _seen(self, data: bytes) -> None:
        """This has come, and is still in the kernel."""
        reader, transport = self._reader, self.transport
        assert reader is not None
        answer = reader.feed(data)
        transport.look(None, 0)
        route = self.factory.router.route(answer.hello) if isinstance(answer, Matched) else None
        if route is not None and route.listener:
            self._hand_over(route.listener, b"")
        else:
            transport.consume(len(data))
            self.received += len(data)
            self._judge(answer)

    def came_early(self, data: bytes) -> None:
        """It is what the route is looked for in, or comes behind that."""
        reader = self._reader
        if reader is not None:
            self.received += len(data)
            self._judge(reader.feed(data))
        elif self._closing is not None:
            self._closing.received(data)
        else:
            super().came_early(data)

    def _judge(self, answer: NeedMore | Matched | NotThisProtocol | Malformed) -> None:
        """What has been read so far comes to this."""
        if answer is NEED_MORE:
            return
        factory, settings = self.factory, self.factory.settings
        if isinstance(answer, Malformed):
            self._turn_away("malformed", answer.why, answer.alert)
        elif not isinstance(answer, Matched):
            self._fall_back(settings.not_tls, "not TLS", answer.why, PROTOCOL_VERSION)
        else:
            hello = self.hello = answer.hello
            route = factory.router.route(hello)
            if route is not None:
                self._follow(route)
            elif hello.server_name is None:
                code = MISSING_EXTENSION if TLS13 in hello.versions else HANDSHAKE_FAILURE
                self._fall_back(settings.without_name, "no name", "it names no server", code)
            else:
                why = f"nothing is served as {hello.server_name}"
                self._fall_back(settings.unknown_name, "unknown name", why, UNRECOGNIZED_NAME)

    def _follow(self, route: SniRoute) -> None:
        if route.listener:
            assert self._reader is not None
            self._hand_over(route.listener, self._reader.received)
        else:
            self._go_to(route.cluster)

    def _fall_back(self, way: str, reason: str, why: str, code: int) -> None:
        """There is no route for it."""
        if way == CLOSE:
            self._turn_away(reason, why, None)
        elif way == REFUSE or not (way or self.factory.cluster):
            self._turn_away(reason, why, code)
        else:
            self._go_to(way or self.factory.cluster)

    def _go_to(self, cluster: str) -> None:
        self._early = [self._read().received]
        hello, info = self.hello, self.info
        if hello is not None and hello.server_name is not None:
            wants = self._wants_names(cluster)
            if wants and all(kind != AUTHORITY for kind, _ in info.tlvs):
                name = AUTHORITY, hello.server_name.encode("ascii")
                self.info = evolve(info, tlvs=(*info.tlvs, name))
        if self.received >= EARLY_BYTES:
            self.transport.pauseProducing()
        self._connect_to(cluster)

    def _wants_names(self, cluster: str) -> bool:
        """Whether its backends are told which name was asked for."""
        try:
            config = self.factory.flow.registry.cluster(cluster).config
        except KeyError:
            return False  # It is gone, as will be said.
        return config.proxy_protocol == "v2"

    def _hand_over(self, listener: str, received: bytes) -> None:
        self._read()
        hand_over = self.factory.hand_over
        if hand_over is None:
            self._refuse(f"nobody can give it to the listener {listener}")
        else:
            self.factory.hellos.handed_over += 1
            hand_over(self, listener, received)

    def _read(self) -> HelloReader:
        """No more is looked at."""
        reader, self._reader = self._reader, None
        assert reader is not None
        if self._peeking is not None:
            self._peeking.cancel()
            self._peeking = None
        return reader

    def _turn_away(self, reason: str, why: str, code: int | None) -> None:
        """It is not served, and told so by an alert, if there is one for it."""
        factory = self.factory
        self._read()
        factory.turned_away(self.info, reason, why)
        if code is not None:
            self.transport.write(alert(code))
        # What it may still be sending must not cut off the alert.
        self._closing = Closing(
            self.transport, factory.flow.deadlines, factory.settings.peek_timeout, code is not None
        )

    def _late(self) -> None:
        self._peeking = None
        seconds = self.factory.settings.peek_timeout
        self._turn_away("late", f"no whole hello within {seconds:g} s", None)

    def readConnectionLost(self) -> None:
        if self._reader is not None:
            self._turn_away("ended", "it ended before its hello", None)
        elif self._closing is not None:
            self._closing.close()
        else:
            super().readConnectionLost()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self._reader is not None:
            self._read()
            self.factory.turned_away(self.info, "ended", "it ended before its hello")
        if self._closing is not None:
            self._closing.lost()
        super().connectionLost(reason)

    def abort(self, why: str) -> None:
        """The service ends: that is not the client's doing."""
        if self._reader is not None:
            self._read()
        super().abort(why)

    def _client_text(self) -> str:
        name = self.hello.server_name if self.hello is not None else None
        return super()._client_text() + (f" ({name})" if name else "")

    def snapshot(self) -> dict[str, Any]:
        """See ``ISnapshot``."""
        name = self.hello.server_name if self.hello is not None else None
        found = super().snapshot()
        if self._reader is not None:
            found["state"] = "greeting"
        elif self._closing is not None:
            found["state"] = "closing"
        return found | {"server_name": name}


@implementer(IHandsOver)
class SniFactory(TcpFactory):
    """An ordinary factory, for any endpoint.

    :param router: says where a hello goes: a ``SniRouter``, or whatever does as it does.
    :param cluster: where names go that have no route, and hellos without a name; empty: nowhere.
    :ivar hand_over: see ``IHandsOver``; None: there is nobody to take a connection over.
    """

    settings: SniSettings
    router: Any

    def __init__(
        self,
        flow: Flow,
        connector: IConnector,
        router: SniRouter,
        settings: SniSettings | None = None,
        name: str = "sni",
        cluster: str = "",
    ) -> None:
        super().__init__(flow, connector, router, settings or SniSettings(), name)
        self.cluster = cluster
        self.hand_over: Callable[[IProtocol, str, bytes], object] | None = None
        #: Whether hellos are looked at before they are read: some may be for others to read.
        self.looks = False
        self.hellos = Hellos()
        self._rarely = Rarely(flow.clock)

    def hand_over_by(self, hand_over: Callable[[IProtocol, str, bytes], object]) -> None:
        """See ``IHandsOver``."""
        self.hand_over = hand_over
        self.looks = getattr(self.router, "hands_over", True)

    def count_on(self, former: TcpFactory) -> None:
        """See ``ICountsOn``."""
        super().count_on(former)
        if isinstance(former, SniFactory):
            self.hellos = former.hellos

    def turned_away(self, info: ConnInfo, reason: str, why: str) -> None:
        """Count a connection that is not served; the log has the first of many."""
        self.stats.refused += 1
        self.hellos.count(reason)
        self._rarely.warn_of(self.log, reason, info, " refused: {why}", why)

    def snapshot(self) -> dict[str, Any]:
        """See ``ISnapshot``."""
        return {**super().snapshot(), "hellos": self.hellos.snapshot()}

    def buildProtocol(self, addr: Any) -> Any:
        """A protocol for one client."""
        protocol = SniProtocol()
        protocol.factory = self
        return protocol


@implementer(IMode)
class SniMode:
    """The mode ``sni``."""

    settings = SniSettings

    def check(self, listener: Listener) -> None:
        """See ``IMode.check``."""
        check_sni(listener)

    def factory(self, listener: Listener, flow: Flow, connector: IConnector) -> SniFactory:
        """See ``IMode.factory``."""
        settings = listener.settings
        assert isinstance(settings, SniSettings)
        router = SniRouter(settings.routes)
        return SniFactory(flow, connector, router, settings, listener.name, listener.cluster)
