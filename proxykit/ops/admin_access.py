"""Who may ask the admin listener, and who may tell it to do something.

Two kinds of stranger are kept out. Somebody on the network has no token; without one the listener
is on loopback alone. And a web page that a user of this machine happens to look at can have the
browser send requests to loopback, with whatever the browser keeps for that place:

- By a name of its own that it has changed to mean 127.0.0.1 (DNS rebinding). So the ``Host`` field
  has to be one of ours, unless there is a bearer token, which browsers never send by themselves.
- To us by our own name, from elsewhere (cross-site request forgery). It cannot read the answer, and
  a request that changes something has to prove that it is none of these: by a bearer token, by what
  browsers alone can set (``Origin``, ``Sec-Fetch-Site``), or by a field that a page elsewhere could
  only set after a preflight, and no preflight is ever answered with a yes.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from twisted.internet.address import UNIXAddress

from proxykit.checks import is_loopback
from proxykit.ops.admin_web import Refused

if TYPE_CHECKING:
    from proxykit.ops.admin_web import AdminRequest

#: The field, and its value, that proves a write to be no foreign page's.
PROOF, WRITE = "X-Proxykit", "write"
#: Names that mean this machine, whatever it is called.
_LOCAL = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/@]+))(?::([0-9]{0,5}))?")
_ORIGIN = re.compile(r"(https?)://([^\s/]+)", re.IGNORECASE)
_PORTS = {"http": "80", "https": "443"}
_BASIC, _BEARER = "basic", "bearer"
_CHALLENGE = {"www-authenticate": 'Basic realm="proxykit", charset="UTF-8"'}


class Access:
    """The rules of one admin listener.

    :param token: what has to be shown; empty: nothing, and then it serves loopback alone.
    :param hosts: names that it is called by, besides those that are known.
    """

    def __init__(self, token: str, hosts: tuple[str, ...] = ()) -> None:
        self._token = token.encode()
        self._hosts = {*_LOCAL, *(host.lower() for host in hosts)}

    @property
    def needs_token(self) -> bool:
        """Whether a token has to be shown."""
        return self._token != b""

    def is_alike(self, other: Access) -> bool:
        """Whether the same token is right here and there."""
        return hmac.compare_digest(self._token, other._token)

    def check(self, request: AdminRequest) -> None:
        """See whether it may be answered.

        :raises Refused: 400, 401, 403 or 421: it may not.
        """
        shown = self._shown(request)
        host = _parsed(request.field("host"))
        if host is None and request.clientproto == b"HTTP/1.1":
            raise Refused(400, "expected one Host field, with a name or an address")
        if shown != _BEARER:
            self._check_host(request, host)
        origin = request.field("origin")
        if origin is not None and not _same(origin, host):
            raise Refused(403, f"a page of another origin, {origin[:100]}, may not ask here")
        if self._token and not shown:
            said = request.field("authorization") is not None
            what = "the token is wrong" if said else "a token is needed"
            how = "Authorization: Bearer TOKEN, or Basic with it as the password"
            raise Refused(401, f"{what} ({how})", _CHALLENGE)

    def check_write(self, request: AdminRequest) -> None:
        """See whether it may change something; ``check`` has been called.

        :raises Refused: 403: nothing proves that it is no foreign page's.
        """
        if self._shown(request) == _BEARER:
            return
        site = request.field("sec-fetch-site")
        if site in ("cross-site", "same-site"):
            raise Refused(403, "a page of another origin may not change anything here")
        if site == "same-origin" or request.field("origin") is not None:
            return  # An origin that is not ours has been refused.
        if request.field(PROOF) != WRITE:
            proofs = f"{PROOF}: {WRITE}, or a bearer token"
            raise Refused(403, f"a request that changes something needs the field {proofs}")

    def _shown(self, request: AdminRequest) -> str:
        """How the token was shown; empty: it was not, or there is none."""
        said = request.field("authorization")
        if not self._token or said is None:
            return ""
        scheme, _, value = said.strip().partition(" ")
        given, scheme = value.strip().encode(), scheme.lower()
        if scheme == _BASIC:
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return ""
        elif scheme != _BEARER:
            return ""
        return scheme if hmac.compare_digest(given, self._token) else ""

    def _check_host(self, request: AdminRequest, host: tuple[str, str] | None) -> None:
        here = request.getHost()
        if isinstance(here, UNIXAddress):
            return
        if not self._token and not is_loopback(here.host):
            raise Refused(403, "without admin.token, nobody is answered but on loopback")
        if host is not None and host[0] not in self._hosts and host[0] != _plain(here.host):
            raise Refused(
                421,
                f"this is not {host[0][:100]}; expected localhost, the address, one of admin.hosts,"
                " or a bearer token",
            )


def _parsed(text: str | None) -> tuple[str, str] | None:
    """A host and its port, as they are compared; None: that is none."""
    found = _HOST.fullmatch(text or "")
    return (_plain(found[1] or found[2]), found[3] or "") if found else None


def _plain(host: str) -> str:
    """One way to write a host that can be written in several."""
    try:
        return str(ip_address(host))
    except ValueError:
        return host.lower()


def _same(origin: str, host: tuple[str, str] | None) -> bool:
    """Whether an origin is the place that was asked.

    What ends TLS before us is none of its business, nor ours: ``Sec-Fetch-Site`` tells http from
    https.
    """
    found = _ORIGIN.fullmatch(origin)
    if found is None or host is None:
        return False
    theirs, own = _parsed(found[2]), _PORTS[found[1].lower()]
    return theirs is not None and (theirs[0], theirs[1] or own) == (host[0], host[1] or own)
