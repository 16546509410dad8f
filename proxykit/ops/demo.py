"""The demo: origins of its own, a listener for each mode, and what to type next."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.web.resource import Resource

from proxykit.model import (
    Address,
    Backend,
    Cluster,
    Config,
    HttpRoute,
    Listener,
    address_text,
)
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.admin import quiet_site
from proxykit.ops.service import ProxyService

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort
    from twisted.web.server import Request

_HOST = "127.0.0.1"
#: Where the demo listens; where one is taken, on a port that is free.
TCP_PORT = 9000
HTTP_PORT = 8080
ADMIN_PORT = 9901


class DemoService(ProxyService):
    """A proxy with two origins behind it.

    :param reactor: what everything runs on.
    :param say: is given the text for the person at the terminal.
    """

    def __init__(self, reactor: Any, say: Callable[[str], object]) -> None:
        super().__init__(reactor)
        self._say = say
        self._origins: list[IListeningPort] = []

    def privilegedStartService(self) -> None:
        """Start the origins, then the proxy in front of them."""
        if not self._origins:
            self._origins = [self._start_origin(name) for name in ("one", "two")]
            self.apply(self._config())
        super().privilegedStartService()

    def startService(self) -> None:
        """Begin to serve, and say what there is to try."""
        super().startService()
        assert self.admin_port is not None
        tcp, http = (self.listeners[name].address for name in ("tcp", "http"))
        admin = address_text(self.admin_port.getHost())
        origins = " and ".join(address_text(port.getHost()) for port in self._origins)
        self._say(
            f"""
proxykit demo

  tcp    {tcp}    relayed to the origins {origins}
  http   {http}    proxied to the same, over few connections; /two/ only to the second
  admin  http://{admin}/

Try:

  curl http://{tcp}/
  curl http://{http}/ http://{http}/ http://{http}/two/
  curl http://{admin}/api/ports

Ctrl-C stops it.
"""
        )

    def stopService(self) -> Deferred[Any]:
        """Accept no more."""
        for port in self._origins:
            port.stopListening()
        return super().stopService()

    def _start_origin(self, name: str) -> IListeningPort:
        port: IListeningPort = self._reactor.listenTCP(
            0, quiet_site(_Origin(name)), interface=_HOST
        )
        return port

    def _config(self) -> Config:
        backends = tuple(
            Backend(Address(_HOST, port.getHost().port))  # type: ignore[attr-defined]
            for port in self._origins
        )
        return Config(
            listeners=(
                Listener("tcp", self._free(TCP_PORT), "tcp", "origins", settings=TcpSettings()),
                Listener(
                    "http",
                    self._free(HTTP_PORT),
                    "http",
                    "origins",
                    settings=HttpSettings(routes=(HttpRoute(path="/two/", cluster="two"),)),
                ),
            ),
            clusters=(
                Cluster("origins", backends, balance="round-robin"),
                Cluster("two", backends[1:]),
            ),
            admin=self._free(ADMIN_PORT),
        )

    def _free(self, port: int) -> str:
        """An endpoint at this port or, where it is taken, at any."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                port = 0
        return f"tcp:{port}:interface={_HOST}"


class _Origin(Resource):
    """Says who it is and whom it sees."""

    isLeaf = True

    def __init__(self, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name = name

    def render_GET(self, request: Request) -> bytes:
        """Answer any path."""
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        path = request.uri.decode("ascii", "replace")
        peer = address_text(request.getClientAddress())
        return f"origin {self._name} answers {path} to {peer}\n".encode()
