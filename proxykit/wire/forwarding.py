"""What is written anew: the heads that a proxy sends on, made from what it has understood.

A forwarded message has one framing field, none of the fields that are meant for one connection
(RFC 9110 section 7.6.1), and the proxy's own view of who asks: ``Via``, ``X-Forwarded-For``,
``-Proto``, ``-Host`` and ``Forwarded`` (RFC 7239). What a client says of that itself is kept only
if it is trusted.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from proxykit.wire.http1fields import CHUNKED, LONGEST_KEPT

if TYPE_CHECKING:
    from proxykit.wire.fields import Fields
    from proxykit.wire.http1 import RequestHead, ResponseHead

CHUNKED_LINE = b"Transfer-Encoding: chunked\r\n"
CLOSE_LINE = b"Connection: close\r\n"
KEEP_ALIVE_LINE = b"Connection: keep-alive\r\n"
#: What identifies a proxy in Proxy-Status, and in Via unless it is told otherwise.
NAME = "proxykit"

#: For a request whose fields nobody has changed.
NOTHING_SET: frozenset[bytes] = frozenset()

_VERSION = (b"1.0", b"1.1")
_NOT_STRING = re.compile(r"[^ -~]")


class Forwarding:
    """What is added to the requests of one client's connection.

    :param client: the client's IP address; empty where it has none, as on a unix socket.
    :param scheme: ``b"http"`` or ``b"https"``: how the client came.
    :param trusted: whether what it says of whom it asks for is kept.
    :param via: what this proxy is called in ``Via``; empty: it is not named.
    :param certificate: subject and fingerprint of the client's certificate, both in printable
        ASCII; both empty: it has shown none.
    """

    __slots__ = ("_asked", "_block", "_certificate", "_client", "_fields", "_host", "_minor",
                 "_via", "scheme", "trusted")  # fmt: skip

    def __init__(
        self,
        client: str,
        scheme: bytes,
        trusted: bool,
        via: str,
        certificate: tuple[str, str] = ("", ""),
    ) -> None:
        self._certificate = tuple(text.encode("ascii") for text in certificate)
        self.scheme = scheme
        self._client = client.encode("ascii")
        self.trusted = trusted
        self._via = via.encode("ascii")
        # A client repeats itself: what its last request came to.
        self._fields: object = None
        self._host = self._asked = b""
        self._minor = 1
        self._block = b""

    def block(self, head: RequestHead, host: bytes) -> bytes:
        """The field lines of a request as they go on, but for the request id.

        :param host: what goes on as ``Host``.
        """
        if (
            head.fields is self._fields
            and host == self._host
            and head.minor == self._minor
            and head.host == self._asked
        ):
            return self._block
        made = b"Host: %b\r\n%b%b" % (host, head.fields.kept, self.end(head, NOTHING_SET))
        if len(made) > LONGEST_KEPT:
            return made
        self._fields, self._minor, self._asked = head.fields, head.minor, head.host
        self._host, self._block = host, made
        return made

    def end(self, head: RequestHead, already: Fields | frozenset[bytes] = NOTHING_SET) -> bytes:
        """The lines behind the client's own: framing, and who asks.

        :param already: names of fields that somebody has set, whose word is the last.
        """
        fields, lines = head.fields, []
        if fields.framing == CHUNKED:
            lines.append(CHUNKED_LINE)
        elif fields.length is not None:
            lines.append(b"Content-Length: %d\r\n" % fields.length)
        if self._via:
            lines.append(b"Via: %b %b\r\n" % (_VERSION[head.minor], self._via))
        client = self._client
        node = b"unknown"
        if client:
            node = b'"[%b]"' % client if b":" in client else client
        element = b"for=" + node
        if head.host:
            element += b';host="%b"' % head.host
        element += b";proto=" + self.scheme
        proto, host = self.scheme, head.host
        certificate = self._certificate
        if self.trusted:
            certificate = certificate if certificate[1] else fields.certificate
            client = b", ".join(filter(None, (fields.forwarded_for, client)))
            element = b", ".join(filter(None, (fields.forwarded, element)))
            proto, host = fields.forwarded_proto or proto, fields.forwarded_host or host
        for name, value in (
            (b"X-Forwarded-For", client),
            (b"X-Forwarded-Proto", proto),
            (b"X-Forwarded-Host", host),
            (b"Forwarded", element),
            (b"X-Client-Cert-Subject", certificate[0]),
            (b"X-Client-Cert-Fingerprint", certificate[1]),
        ):
            if value and name not in already:
                lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join(lines)


def response_start(head: ResponseHead, kept: bytes, via: str) -> bytes:
    """The status line, the backend's own lines and ``Via``: all but framing and the end.

    :param kept: the backend's lines, as they are to go on.
    """
    line = b"HTTP/1.1 %d %b\r\n%b" % (head.status, head.reason, kept)
    return line + b"Via: %b %b\r\n" % (_VERSION[head.minor], via.encode("ascii")) if via else line


def framing_line(head: ResponseHead, method: bytes) -> bytes:
    """How the client is to tell the end of a response, where it knows HTTP/1.1.

    :param method: the request's.
    """
    if head.status == HTTPStatus.NO_CONTENT or head.status < 200:
        return b""
    if head.framing(method) < 0:
        return CHUNKED_LINE
    # Also of what a HEAD or a 304 has no body for.
    length = head.fields.length
    return b"" if length is None else b"Content-Length: %d\r\n" % length


def reason_of(status: int) -> str:
    """The phrase for a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


def has_line(lines: bytes, name: bytes) -> bool:
    """Whether there is a field of that name, in lower case, among these lines."""
    return b"\n%b:" % name in b"\n" + lines.lower()


def own_response(status: int, text: str, lines: bytes, with_body: bool) -> bytes:
    """A whole response of the proxy's own.

    :param text: its body; empty: none.
    :param lines: further field lines.
    :param with_body: not for a HEAD.
    """
    body = text.encode()
    start = b"HTTP/1.1 %d %b\r\n" % (status, reason_of(status).encode("ascii"))
    if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return start + lines + b"\r\n"
    if body and not has_line(lines, b"content-type"):
        lines = b"Content-Type: text/plain; charset=utf-8\r\n" + lines
    start += b"%bContent-Length: %d\r\n\r\n" % (lines, len(body))
    return start + body if with_body else start


def proxy_status(error: str, details: str) -> bytes:
    """The line that says which step failed (RFC 9209).

    :param error: one of the types that the RFC registers; empty: none of them fits.
    :param details: for people.
    """
    text = _NOT_STRING.sub("?", details).replace("\\", "\\\\").replace('"', '\\"')
    kind = f"; error={error}" if error else ""
    return f'Proxy-Status: {NAME}{kind}; details="{text}"\r\n'.encode("ascii")
