"""What a connection to a backend begins with: a PROXY header that says for whom it is opened."""

from __future__ import annotations

import os
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from proxykit.wire.proxyproto import Endpoint, v1, v2

if TYPE_CHECKING:
    from proxykit.model import ConnInfo


# One client's requests begin with the same header, so that they may share a connection.
@lru_cache(maxsize=1024)
def introduction(version: str, info: ConnInfo) -> bytes:
    """The PROXY header for a client's connection.

    Where its addresses cannot be said, v1 says UNKNOWN and v2 LOCAL.

    :param version: ``v1`` or ``v2``; empty: there is no header.
    """
    if not version:
        return b""
    source, destination = _endpoint(info.client), _endpoint(info.server)
    return v1(source, destination) if version == "v1" else v2(source, destination, info.tlvs)


def introductions(info: ConnInfo) -> tuple[bytes, bytes]:
    """All that can be said of a client's connection."""
    return introduction("v1", info), introduction("v2", info)


def _endpoint(address: Any) -> Endpoint | None:
    if isinstance(address, UNIXAddress):
        path = os.fsdecode(address.name or b"")
        return Endpoint(path if path.startswith("/") else "", 0)
    if not isinstance(address, IPv4Address | IPv6Address):
        return None
    # IPv4 on a socket of both families; a scope means nothing to others.
    host = ip_address(address.host.partition("%")[0])
    return Endpoint(str(getattr(host, "ipv4_mapped", None) or host), address.port)
