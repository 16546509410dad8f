"""What a connection to a backend begins with: a PROXY header that says for whom it is opened."""

from __future__ import annotations

import os
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from proxykit.wire.proxyproto import LIMIT, Endpoint, v1, v2

if TYPE_CHECKING:
    from proxykit.model import ConnInfo


#: An address as it is kept here: host and port, or the name of a unix socket.
_End = tuple[str, int] | bytes | None


def introduction(version: str, info: ConnInfo) -> bytes:
    """The PROXY header for a client's connection.

    Where its addresses cannot be said, v1 says UNKNOWN and v2 LOCAL.

    :param version: ``v1`` or ``v2``; empty: there is no header.
    """
    if not version:
        return b""
    return _header(version, _end(info.client), _end(info.server), info.tlvs)


def own_introduction(version: str) -> bytes:
    """The header of a connection that is for nobody: v1 says UNKNOWN, v2 LOCAL."""
    return _header(version, None, None, ()) if version else b""


def _end(address: Any) -> _End:
    # Not as it is: to tell its hash, a UNIXAddress asks the file system.
    if isinstance(address, UNIXAddress):
        return address.name or b""
    return (address.host, address.port) if isinstance(address, IPv4Address | IPv6Address) else None


# One client's requests begin with the same header, so that they may share a connection.
@lru_cache(maxsize=1024)
def _header(version: str, client: _End, server: _End, tlvs: tuple[tuple[int, bytes], ...]) -> bytes:
    source, destination = _endpoint(client), _endpoint(server)
    if version == "v1":
        return v1(source, destination)
    made = v2(source, destination, tlvs)
    # What came in may have grown by addresses and a name, and who reads it has a limit, too.
    return made if len(made) <= LIMIT else v2(source, destination)


def introductions(info: ConnInfo) -> tuple[bytes, bytes]:
    """All that can be said of a client's connection."""
    return introduction("v1", info), introduction("v2", info)


def _endpoint(end: _End) -> Endpoint | None:
    if end is None:
        return None
    if isinstance(end, bytes):
        return Endpoint(os.fsdecode(end) if end.startswith(b"/") else "", 0)
    # IPv4 on a socket of both families; a scope means nothing to others.
    host = ip_address(end[0].partition("%")[0])
    return Endpoint(str(getattr(host, "ipv4_mapped", None) or host), end[1])
