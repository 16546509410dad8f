"""Frozen data that travels through the house. No behaviour beyond reading and writing addresses.

Configuration (:class:`Backend`, :class:`Cluster`, ...) is one thing; the state of a backend at run
time (``core.registry.BackendState``) and one try at it (``core.flow.Attempt``) are two others.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from attrs import field, frozen
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from proxykit.upkeep import Discover, Eject, Health

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
#: struct sockaddr_un holds 108 bytes, the last of them a NUL.
_UNIX_PATH_BYTES = 107


@frozen
class Address:
    """Where a backend listens: ``host:port``, ``[v6]:port`` or ``unix:/path``.

    :ivar host: an IP address or, before it is resolved, a name; the path of a unix socket.
    :ivar port: 1 to 65535; 0 for a unix socket.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address as a user writes it.

        :raises ValueError: the text is none; its message says what was expected.
        """
        if text.startswith("unix:"):
            path = text[5:]
            if not path.startswith("/") or len(path.encode()) > _UNIX_PATH_BYTES or "\0" in path:
                raise ValueError(
                    f"expected unix:/path, absolute and at most {_UNIX_PATH_BYTES} bytes,"
                    f" not {text!r}"
                )
            return cls(path, 0)
        host, colon, port = text.rpartition(":")
        if not (colon and port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
            raise ValueError(
                "expected host:port, [v6]:port or unix:/path with a port from 1 to 65535,"
                f" not {text!r}"
            )
        return cls(_read_host(host, text), int(port))

    @property
    def is_unix(self) -> bool:
        """Whether this is a unix socket, which needs no source port."""
        return self.port == 0

    @property
    def is_ip(self) -> bool:
        """Whether ``host`` is an IP address, so that nothing is left to resolve."""
        return not self.is_unix and _is_ip(self.host)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _read_host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"expected an IPv6 address in brackets, not {text!r}") from None
    if ":" in host:
        raise ValueError(f"expected brackets around an IPv6 address, as in [::1]:80, not {text!r}")
    # Digits and dots alone are meant as an IPv4 address; "1.2.3" is no name to look up.
    if not _HOST.fullmatch(host) or (not _is_ip(host) and host.replace(".", "").isdigit()):
        raise ValueError(f"expected a host name or an IP address before the port, not {text!r}")
    return host


@frozen
class Backend:
    """One backend of a cluster, as configured.

    :ivar address: resolved, once the configuration is in force.
    :ivar weight: its share of the traffic beside the others' weights, 1 to 256.
    :ivar backup: whether it is used only when no other is up.
    :ivar name: what the user wrote, where that was resolved to ``address``; else empty.
    """

    address: Address
    weight: int = 1
    backup: bool = False
    name: str = ""


@frozen
class Pool:
    """How the connections to a cluster's backends are used again.

    :ivar reuse: ``never``, ``safe`` or ``always``: which requests may go on an idle connection.
    :ivar max_idle: idle connections kept per backend; None: as many as ``max_connections``.
    :ivar idle_timeout: seconds that one is kept.
    """

    reuse: str = "safe"
    max_idle: int | None = None
    idle_timeout: float = 30.0


@frozen
class ClusterTls:
    """TLS to the backends of a cluster.

    :ivar server_name: whom their certificates have to be for, a name or an IP address; empty: what
        each was given by.
    :ivar ca_file: the authorities that are believed, as PEM; empty: the system's.
    :ivar certificate: a chain and its key, as PEM, to be shown to them; empty: none.
    :ivar verify: whether their certificates are looked at.
    """

    server_name: str = ""
    ca_file: str = ""
    certificate: str = ""
    verify: bool = True


@frozen
class ListenerTls:
    """TLS from the clients of a listener.

    :ivar certificates: PEM files, each a chain and its key, and directories of such.
    :ivar client_ca: whose certificates clients may show, as PEM; empty: they are not asked for one.
    :ivar client_auth: ``optional``, or ``required``: who shows none is refused.
    :ivar alpn: the protocols that are offered, best first; empty: those of the mode.
    :ivar handshake_timeout: seconds for the whole handshake.
    """

    certificates: tuple[str, ...]
    client_ca: str = ""
    client_auth: str = "optional"
    alpn: tuple[str, ...] = ()
    handshake_timeout: float = 5.0


@frozen
class Cluster:
    """Backends that can stand in for one another, and how they are chosen and waited for.

    :ivar balance: the name of a balancing policy.
    :ivar max_connections: sockets per backend.
    :ivar connect_timeout: seconds for one attempt.
    :ivar queue: how many requests or connections may wait for a port or a slot.
    :ivar queue_timeout: seconds that one may wait.
    :ivar deadline: seconds after which no other backend is tried for one upstream choice.
    :ivar pool: how its connections are used again, where a mode does that.
    :ivar host: the Host of requests to its backends; empty: the client's own is kept.
    :ivar proxy_protocol: the version of the PROXY header that each connection to a backend begins
        with, ``v1`` or ``v2``; empty: none.
    :ivar tls: how TLS is spoken to them; None: it is not.
    :ivar close: how connections to them are closed where the proxy is the first to close: ``fin``,
        or ``reset``, which leaves nothing behind in TIME_WAIT.
    :ivar health: how they are asked whether they are well; None: they are not asked.
    :ivar eject: when one is left alone for a while, for what was seen of it.
    :ivar slow_start: seconds in which a backend that comes back gets more and more of its share.
    :ivar panic: whether all are used when none is well.
    :ivar retry_budget: how many of the requests of ten seconds may be tried again, as a share.
    :ivar discover: where more backends come from; None: there are those that are named.
    """

    name: str
    backends: tuple[Backend, ...]
    balance: str = "least-connections"
    max_connections: int = 1000
    connect_timeout: float = 5.0
    queue: int = 1000
    queue_timeout: float = 5.0
    deadline: float = 30.0
    pool: Pool = Pool()
    host: str = ""
    proxy_protocol: str = ""
    tls: ClusterTls | None = None
    close: str = "fin"
    health: Health | None = None
    eject: Eject = field(factory=Eject)
    slow_start: float = 10.0
    panic: bool = False
    retry_budget: float = 0.2
    discover: Discover | None = None


@frozen
class Route:
    """Where a router sends something."""

    cluster: str


@frozen
class FieldRules:
    """What a route does to the fields of a message.

    :ivar set: names and values; a field of that name that is there already is replaced.
    :ivar remove: names.
    """

    set: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@frozen
class HttpRoute(Route):
    """What happens to the requests for one host and path: one of a cluster, a redirect, an answer.

    :ivar host: a name, ``*.`` and a name for all below it, or empty for every host.
    :ivar path: the prefix of the path, matched up to the end of a segment.
    :ivar methods: empty: every method.
    :ivar replace_path: what the prefix is replaced by; ``/`` strips it; None: it is kept.
    :ivar redirect: where the client is sent, a URL with ``{scheme}``, ``{host}`` and ``{uri}``.
    :ivar status: of the fixed answer, or of the redirect; 0: no fixed answer, a redirect's is 308.
    :ivar text: the body of the fixed answer.
    :ivar body_limit: bytes of a request's body; 0: no limit; None: as the listener has it.
    """

    cluster: str = ""
    host: str = ""
    path: str = "/"
    methods: tuple[str, ...] = ()
    replace_path: str | None = None
    request_fields: FieldRules = FieldRules()
    response_fields: FieldRules = FieldRules()
    redirect: str = ""
    status: int = 0
    text: str = ""
    body_limit: int | None = None


@frozen
class SniRoute(Route):
    """Where TLS connections go that ask for one server name, or one protocol.

    :ivar host: a name, ``*.`` and a name for all below it, or empty for every name and none.
    :ivar alpn: one of these protocols has to be offered; empty: whatever is.
    :ivar listener: whose mode gets the connection, in place of a cluster; empty: a cluster does.
    """

    cluster: str = ""
    host: str = ""
    alpn: tuple[str, ...] = ()
    listener: str = ""


@frozen
class Listener:
    """Where connections come in, and which mode treats them.

    :ivar listen: a Twisted server endpoint string; empty: it only takes over what others accept.
    :ivar cluster: where traffic goes that no route takes; empty: it is refused.
    :ivar max_connections: then it stops accepting; it resumes at 95%.
    :ivar settings: the mode's own settings, an instance of its ``settings`` class.
    :ivar trust: networks (``unix``: clients on a unix socket) whose word on whom they speak for is
        believed: their PROXY headers, their forwarding fields.
    :ivar proxy_protocol: whether each connection begins with a PROXY header.
    :ivar proxy_timeout: seconds for the whole of it.
    :ivar tls: how TLS is spoken here; None: it is not.
    """

    name: str
    listen: str
    mode: str
    cluster: str = ""
    max_connections: int = 10000
    settings: object = None
    trust: tuple[str, ...] = ()
    proxy_protocol: bool = False
    proxy_timeout: float = 5.0
    tls: ListenerTls | None = None


@frozen
class PortRange:
    """Source ports to pick from.

    :ivar low: the first, inclusive.
    :ivar high: the last, inclusive.
    :ivar reserved: how many within them the kernel never picks.
    """

    low: int
    high: int
    reserved: int = field(default=0)

    @property
    def size(self) -> int:
        """How many there are to pick from."""
        return max(0, self.high - self.low + 1 - self.reserved)


@frozen
class Sources:
    """Where connections to backends leave from.

    :ivar addresses: local IP addresses, each with ports of its own; empty: the kernel's choice.
    :ivar port_range: the ports to use; None: all that the kernel picks from.
    :ivar headroom: the share of each port budget that is never handed out, 0 to 0.9.
    """

    addresses: tuple[str, ...] = ()
    port_range: PortRange | None = None
    headroom: float = 0.02


@frozen
class Config:
    """All that one configuration says, checked and resolved.

    :ivar admin: a Twisted server endpoint string; empty: no admin listener.
    :ivar sources: where connections to backends leave from.
    :ivar admin_token: what whoever asks there has to show; empty: nothing.
    :ivar drain_timeout: seconds that connections have to end, once their listener is to stop.
    :ivar admin_hosts: names that browsers call the admin listener by, besides ``localhost`` and its
        address.
    """

    listeners: tuple[Listener, ...]
    clusters: tuple[Cluster, ...]
    admin: str = ""
    sources: Sources = Sources()
    admin_token: str = field(default="", repr=False)
    drain_timeout: float = 30.0
    admin_hosts: tuple[str, ...] = ()


@frozen
class TlsInfo:
    """What is known of a client's TLS.

    :ivar version: such as ``TLSv1.3``.
    :ivar cipher: as OpenSSL calls it.
    :ivar name: the server name that it asked for; empty: none.
    :ivar protocol: what was agreed on by ALPN; empty: nothing.
    :ivar subject: of its certificate, which was verified, in printable ASCII (RFC 4514); empty: it
        has shown none.
    :ivar fingerprint: of the same: SHA-256, in hexadecimal.
    """

    version: str
    cipher: str
    name: str = ""
    protocol: str = ""
    subject: str = ""
    fingerprint: str = ""


@frozen
class ConnInfo:
    """What is known of a client's connection when a mode gets it.

    :ivar id: unique in this process.
    :ivar client: the client's address, as the listener understood it.
    :ivar server: the address that it connected to; None: nobody has asked.
    :ivar relay: who has said so in a PROXY header; None: it is what the socket says.
    :ivar tlvs: type and value of what else is known of the connection, as PROXY headers have it.
    :ivar tls: its TLS, where that ends here; None: it is plain.
    :ivar client_host: the client's address without its port, as balancing by source wants it.
    """

    id: int
    listener: str
    client: IAddress
    server: IAddress | None = None
    relay: IAddress | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()
    tls: TlsInfo | None = None

    @property
    def name(self) -> str:
        """What the log calls the connection: by its listener, and its number if it has one."""
        return f"{self.listener} #{self.id}" if self.id else self.listener

    # Kept, for it is asked for with each request.
    client_host: str = field(init=False, eq=False, repr=False)

    @client_host.default
    def _without_port(self) -> str:
        client = self.client
        # A tuple, for isinstance() takes three times as long with a union.
        if isinstance(client, (IPv4Address, IPv6Address)):
            return client.host
        return address_text(client)


def address_text(address: IAddress) -> str:
    """An address of Twisted's as users write it."""
    if isinstance(address, IPv4Address | IPv6Address):
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{address.port}"
    if isinstance(address, UNIXAddress):
        # Whoever connects has chosen it: it must do for a log, and for JSON.
        name = (address.name or b"").decode("utf-8", "backslashreplace")
        if not name.isprintable():
            name = name.encode("unicode_escape").decode("ascii")
        return f"unix:{name}"
    return str(address)


@frozen
class AccessEntry:
    """One line of the access log: a request that has had its answer, or its failure.

    :ivar time: seconds since 1970 when the request head was complete.
    :ivar connection: the number of the client's connection; 0: no listener has numbered it.
    :ivar version: such as ``HTTP/1.1``.
    :ivar status: 0: the client has had none.
    :ivar bytes_sent: of the body, to the client; ``bytes_received``: from it.
    :ivar seconds: from the request head to the last byte of the answer.
    :ivar backend: the address that answered; empty: none did.
    :ivar reused: whether it went on a connection that had been used before.
    :ivar own: why on a new one; empty: it was reused, or there was none. ``not_kept``: why nobody
        else can use that connection any more; empty: somebody can. See core/sharing.py.
    :ivar error: what failed; empty: nothing.
    """

    time: float
    listener: str
    connection: int
    client: str
    method: str
    target: str
    version: str
    host: str
    status: int
    bytes_sent: int
    bytes_received: int
    seconds: float
    referer: str
    user_agent: str
    request_id: str
    cluster: str
    backend: str
    reused: bool
    own: str
    not_kept: str
    error: str


@frozen
class PoolKey:
    """What makes two requests shareable: they may use one upstream connection, in turn.

    :ivar address: resolved.
    :ivar source: the local address it leaves from; empty: the kernel's choice.
    :ivar tls: how TLS is spoken on it, and to whom; None: it is plain.
    :ivar proxy_protocol: the version of the PROXY header it begins with; then only requests of one
        client may share it. Empty: none.
    """

    cluster: str
    address: Address
    source: str = ""
    tls: ClusterTls | None = None
    proxy_protocol: str = ""


@frozen
class BudgetKey:
    """What the kernel makes unique about the source ports of one budget.

    With late binding, or none, that is all four; after a plain ``bind((ip, 0))`` the kernel keeps
    ``(protocol, source)`` unique alone, and ``destination`` is empty and ``port`` 0.
    """

    protocol: str
    source: str
    destination: str = ""
    port: int = 0

    @property
    def destination_text(self) -> str:
        """The destination as users write it; ``*`` where it is not part of the key."""
        return str(Address(self.destination, self.port)) if self.destination else "*"
