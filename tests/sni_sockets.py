"""TLS hellos over real sockets: a proxy of mode sni, and a mode that takes over from it.

Nothing here speaks TLS: what is relayed is what a client has sent, whatever that is::

    backend = await start_backend(self)
    proxy = start_sni(self, backend, routes=[SniRoute("web", host="a.example")])
    client = await proxy.connect()
    client.send(HELLO)
    await (await backend.accepted()).got(HELLO)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from proxykit.components import Component, components
from proxykit.interfaces import IMode
from proxykit.model import Address, Backend, Cluster, Config, Listener, SniRoute
from proxykit.modes.sni_settings import SniSettings
from proxykit.net.relay import has_shortcuts
from proxykit.ops import building
from proxykit.ops.service import ProxyService
from tests.sockets import HOST, BackendServer, ClockedReactor, End, Proxy, reactor, until
from tests.wire.hellos import alpn, body, extension, hello, message, records, sni, versions

#: Whether trial's reactor has transports whose bytes can be looked at.
LOOKS = hasattr(reactor, "pipes")
TLS13 = (0x0304, 0x0303)


def asking(name: str | None = "a.example", *protocols: str, tls: Sequence[int] = TLS13) -> bytes:
    """A hello in one record; with no name where that is None."""
    parts = [] if name is None else [sni(name.encode())]
    if protocols:
        parts.append(alpn(*(each.encode("latin-1") for each in protocols)))
    made: bytes = hello(*parts, versions(*tls))
    return made


def large(size: int, name: str = "a.example") -> bytes:
    """A hello of so many bytes in all, in as few records as there can be."""
    parts = sni(name.encode()), versions(*TLS13)
    headers = 5 * -(-size // (16384 + 5))
    padding = size - headers - len(message(body(*parts, extension(21))))
    made: bytes = records(message(body(*parts, extension(21, bytes(padding)))))
    assert len(made) == size
    return made


#: Hands over, so that hellos are looked at before they are read where that can be.
ELSEWHERE = SniRoute(host="elsewhere.example", listener="elsewhere")
#: Of some client for a.example.
HELLO = asking("a.example", "h2", "http/1.1")


def alert(description: int) -> bytes:
    """A fatal alert, as it stands on the wire."""
    return b"\x15\x03\x01\x00\x02\x02" + bytes((description,))


class Taker(End):
    """An end in place of a mode's protocol.

    :ivar unread: what was still in the kernel when it got its connection, where that can be seen.
    :ivar pieces: what came, as it came.
    """

    info: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.unread = b""
        self.pieces: list[bytes] = []

    def connectionMade(self) -> None:
        if has_shortcuts(self.transport):
            self.unread = self.transport.peek(1 << 20)

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)
        super().dataReceived(data)


@implementer(IMode)
class TakerMode:
    """A mode whose connections are takers; its factory is a :class:`BackendServer`."""

    @frozen
    class settings:
        """It has none."""

    def check(self, listener: Listener) -> None:
        """Whatever it is."""

    def factory(self, listener: Listener, flow: object, connector: object) -> BackendServer:
        return BackendServer(Taker)


def know_takers(test: TestCase) -> None:
    """From now on services know the mode ``taker``."""
    taker = Component("mode", "taker", f"{__name__}:TakerMode", "")
    test.patch(
        building,
        "components",
        lambda kind: components(kind) | ({"taker": taker} if kind == "mode" else {}),
    )


class SniProxy(Proxy):
    """A service with one sni listener, and what a test asks of it."""

    def taker(self, name: str = "here") -> BackendServer:
        """The factory of a listener of mode ``taker``."""
        factory = self.service.listeners[name].factory
        assert isinstance(factory, BackendServer)
        return factory

    @property
    def traffic(self) -> dict[str, Any]:
        """What the listener has counted."""
        found: dict[str, Any] = self.listener.snapshot()["traffic"]
        return found

    @property
    def hellos(self) -> dict[str, Any]:
        """What became of those that were not relayed."""
        found: dict[str, Any] = self.traffic["hellos"]
        return found

    def connections(self) -> list[dict[str, Any]]:
        """As ``/api/connections`` has them."""
        return self.listener.describe_connections()

    async def side_of(self, client: Any) -> Any:
        """The proxy's protocol for a client, once it is there."""
        port = client.transport.getHost().port
        sides = self.listener.connections.values()

        def mine() -> Any:
            infos: Any = ((each, each.info) for each in sides)  # type: ignore[attr-defined]
            return next((one for one, info in infos if (info.relay or info.client).port == port), 0)

        return await until(mine)

    async def has_read(self, client: Any, size: int) -> Any:
        """Wait until so many bytes of a client's have been read; gives the proxy's protocol."""
        side = await self.side_of(client)
        await until(lambda: side.received == size)
        return side

    def leftovers(self) -> dict[str, int]:
        """What is in use at the moment, and must not be when nobody is there."""
        clusters = list(self.service.registry)
        states = [each for cluster in clusters for each in cluster.backends.values()]
        return {
            **super().leftovers(),
            "clients": sum(len(each.connections) for each in self.service.listeners.values()),
            "in flight": sum(each.in_flight for each in states),
            "connections": sum(each.connections for each in states),
            "waiting": sum(len(cluster.queue) for cluster in clusters),
        }


def start_sni(
    test: TestCase,
    *backends: BackendServer | Address,
    routes: Sequence[SniRoute] = (SniRoute("web", host="a.example"),),
    settings: SniSettings | None = None,
    looks: bool = False,
    default: str = "",
    others: Sequence[Cluster] = (),
    takers: Sequence[str] = (),
    more: Sequence[Listener] = (),
    trust: tuple[str, ...] = (),
    headers: bool = False,
    listen: str = f"tcp:0:interface={HOST}",
    **cluster: Any,
) -> SniProxy:
    """A proxy of mode sni in front of some backends, those of the cluster ``web``.

    :param settings: of the listener; ``routes`` go with them.
    :param looks: whether there is one more route, which names a listener.
    :param default: the listener's own cluster.
    :param others: further clusters.
    :param takers: names of listeners of mode ``taker`` that only take over.
    :param more: further listeners.
    :param headers: whether clients begin with a PROXY header.
    :param cluster: what a :class:`Cluster` has, for ``web``.
    """
    if looks:
        routes, takers = (*routes, ELSEWHERE), (*takers, ELSEWHERE.listener)
    if takers:
        know_takers(test)
    clock = ClockedReactor()
    service = ProxyService(clock)
    addresses = [each.address if isinstance(each, BackendServer) else each for each in backends]
    cluster.setdefault("balance", "round-robin")
    settings = evolve(settings or SniSettings(), routes=tuple(routes))
    front = Listener(
        "front", listen, "sni", default, 10000, settings, trust=trust, proxy_protocol=headers
    )
    service.apply(
        Config(
            (front, *(Listener(name, "", "taker") for name in takers), *more),
            (Cluster("web", tuple(map(Backend, addresses)), **cluster), *others),
        )
    )
    service.startService()
    proxy = SniProxy(test, service, clock)
    test.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
    return proxy


def cluster_of(name: str, backend: BackendServer, **more: Any) -> Cluster:
    """One more cluster, for ``others``."""
    return Cluster(name, (Backend(backend.address),), balance="round-robin", **more)
