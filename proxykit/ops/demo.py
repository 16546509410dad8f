"""The demo: origins of its own, a listener for each mode, and what to type next."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Factory
from twisted.web.resource import Resource
from twisted.web.server import Site

from proxykit.model import (
    Address,
    Backend,
    Cluster,
    Config,
    HttpRoute,
    Listener,
    ListenerTls,
    SniRoute,
    address_text,
)
from proxykit.modes.http_settings import HttpSettings
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.net.certificates import read
from proxykit.net.tls import Tls
from proxykit.ops import demo_certificates
from proxykit.ops.service import ProxyService

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory
    from twisted.web.server import Request

_HOST = "127.0.0.1"
#: Where the demo listens; where one is taken, on a port that is free.
TCP_PORT = 9000
HTTP_PORT = 8080
TLS_PORT = 8443
ADMIN_PORT = 9901
#: Seconds that connections have to end after Ctrl-C.
DRAIN = 2.0
#: What ends here, and what goes on to an origin as it is.
HERE, THROUGH = "here.localhost", "through.localhost"


class DemoService(ProxyService):
    """A proxy with two origins behind it.

    :param reactor: what everything runs on.
    :param say: is given the text for the person at the terminal.
    """

    def __init__(self, reactor: Any, say: Callable[[str], object]) -> None:
        super().__init__(reactor)
        self._say = say
        self._origins: list[IListeningPort] = []
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._authority = Path()

    def privilegedStartService(self) -> None:
        """Start the origins, then the proxy in front of them."""
        if not self._origins:
            self._files = tempfile.TemporaryDirectory(prefix="proxykit-demo-")
            where = Path(self._files.name)
            self._authority = demo_certificates.make(where, HERE, THROUGH)
            self._origins = [self._start_origin(_site(_Origin(n))) for n in ("one", "two")]
            certificate = read(where / f"{THROUGH}.pem", ListenerTls(()))
            secure = _OverTls(certificate.context, _site(_Origin("three")))
            self._origins.append(self._start_origin(secure))
            self.apply(self._config())
        super().privilegedStartService()

    def startService(self) -> None:
        """Begin to serve, and say what there is to try."""
        super().startService()
        assert self.admin_port is not None
        tcp, http, tls = (self.listeners[name].address for name in ("tcp", "http", "sni"))
        admin = address_text(self.admin_port.getHost())
        one, two, three = (address_text(port.getHost()) for port in self._origins)
        curl = f"curl --cacert {self._authority} --connect-to ::{tls}"
        self._say(
            f"""
proxykit demo

  tcp    {tcp}    relayed to the origins {one} and {two}
  http   {http}    proxied to the same, over few connections; /two/ only to the second
  sni    {tls}    TLS by its name: {HERE} ends here, and goes on as http does;
                           {THROUGH} goes on as it is, to the origin {three}
  admin  http://{admin}/

Try:

  curl http://{tcp}/
  curl http://{http}/ http://{http}/ http://{http}/two/
  {curl} https://{HERE}/
  {curl} https://{THROUGH}/
  curl http://{admin}/api/ports

Ctrl-C stops it.
"""
        )

    def stopService(self) -> Deferred[Any]:
        """Accept no more."""
        for port in self._origins:
            port.stopListening()
        if self._files is not None:
            self._files.cleanup()
        return super().stopService()

    def _start_origin(self, factory: IProtocolFactory) -> IListeningPort:
        port: IListeningPort = self._reactor.listenTCP(0, factory, interface=_HOST)
        return port

    def _config(self) -> Config:
        backends = tuple(
            Backend(Address(_HOST, port.getHost().port))  # type: ignore[attr-defined]
            for port in self._origins
        )
        assert self._files is not None
        certificate = str(Path(self._files.name) / f"{HERE}.pem")
        settings = HttpSettings(routes=(HttpRoute(path="/two/", cluster="two"),))
        names = (SniRoute(host=HERE, listener="https"), SniRoute("three", host=THROUGH))
        return Config(
            listeners=(
                Listener("tcp", self._free(TCP_PORT), "tcp", "origins", settings=TcpSettings()),
                Listener("http", self._free(HTTP_PORT), "http", "origins", settings=settings),
                Listener("sni", self._free(TLS_PORT), "sni", settings=SniSettings(routes=names)),
                Listener(
                    "https",
                    "",
                    "http",
                    "origins",
                    settings=settings,
                    tls=ListenerTls((certificate,)),
                ),
            ),
            clusters=(
                Cluster("origins", backends[:2], balance="round-robin"),
                Cluster("two", backends[1:2]),
                Cluster("three", backends[2:]),
            ),
            admin=self._free(ADMIN_PORT),
            drain_timeout=DRAIN,
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


class _QuietSite(Site):
    """A web site without an access log."""

    displayTracebacks = False
    noisy = False

    def log(self, request: Any) -> None:
        """Say nothing."""


def _site(origin: Resource) -> Site:
    return _QuietSite(origin)  # type: ignore[no-untyped-call]


class _OverTls(Factory):
    """Another factory, with TLS around it."""

    noisy = False

    def __init__(self, context: ssl.SSLContext, inside: Any) -> None:
        self._context = context
        self._inside = inside

    def buildProtocol(self, addr: Any) -> Any:
        """A handshake, and then the other's protocol."""
        return Tls(
            self._context,
            True,
            lambda tls: tls.serve(self._inside.buildProtocol(addr)),
            lambda tls, problem: None,
        )


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
