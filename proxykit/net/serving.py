"""What all exchanges of one listener share: where to ask, what is set, what is counted.

The two hooks are for servers that embed proxykit. Each runs when hop-by-hop fields have gone
already, and sees what came in, read-only, beside what is to go out.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from email.utils import formatdate
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from attrs import define, field
from twisted.logger import Logger

from proxykit.core.rarely import Rarely
from proxykit.core.stats import Requests
from proxykit.errors import ProxyError, Side
from proxykit.net.entries import entry_of_none
from proxykit.net.http1_upstream import Http1Upstream
from proxykit.wire.forwarding import (
    CLOSE_LINE,
    KEEP_ALIVE_LINE,
    framing_line,
    has_line,
    own_response,
    response_start,
)
from proxykit.wire.http1 import Limits
from proxykit.wire.http1fields import Fields

if TYPE_CHECKING:
    from proxykit.core.flow import Flow
    from proxykit.core.trust import Trust
    from proxykit.interfaces import IRouter
    from proxykit.model import AccessEntry, ConnInfo, FieldRules, HttpRoute
    from proxykit.modes.http_settings import HttpSettings
    from proxykit.net.exchange import Exchange
    from proxykit.net.pool import Pool
    from proxykit.wire.http1 import RequestHead, ResponseHead

_is_word = re.compile(rb"[!-~]+").fullmatch
#: How many response heads are kept as they were written the last time, and the longest of them.
_RENDERED = 1024
_LONGEST_RENDERED = 2048


@define
class Outgoing:
    """A request as it is about to go to a backend; a hook may change all of it.

    :ivar method: another one than it came with, but never HEAD for another, or the other way
        round: whether an answer has a body would be understood in two ways.
    :ivar target: in origin form, such as ``b"/path?query"``.
    :ivar host: what goes as Host.
    :ivar fields: without those that are hop-by-hop or the proxy's own.
    """

    method: bytes
    target: bytes
    host: bytes
    fields: Fields

    def check(self, head: RequestHead) -> None:
        """
        :param head: the request as it came.
        :raises ValueError: it would not be the one request that it is meant to be.
        """
        for what in (self.method, self.target, self.host or b"-"):
            if not _is_word(what):
                raise ValueError(f"{what!r} has spaces or control bytes, or is empty")
        if self.method != head.method and b"HEAD" in (self.method, head.method):
            raise ValueError("HEAD cannot be exchanged for another method")


@define
class Reply:
    """An answer of the proxy's own, given by a hook in place of a backend's.

    :ivar status: 200 to 599.
    :ivar text: the body.
    :ivar fields: names and values.
    """

    status: int
    text: str = ""
    fields: list[tuple[str, str]] = field(factory=list)

    def check(self) -> None:
        """
        :raises ValueError: it is no answer.
        """
        if not 200 <= self.status <= 599:
            raise ValueError(f"expected a status from 200 to 599, not {self.status}")


#: Given the request as it came and as it is to go; a Reply answers it, None lets it go on.
RequestHook = Callable[["RequestHead", Outgoing], "Reply | None"]
#: Given the request, the backend's response head, and the fields that are to go to the client.
ResponseHook = Callable[["RequestHead", "ResponseHead", "Fields"], None]


class Serving:
    """See this module.

    :param name: the listener's, for the log.
    :param trust: the clients whose word on whom they speak for is believed.
    """

    log = Logger(namespace="proxykit.http")

    def __init__(
        self,
        flow: Flow,
        pool: Pool,
        router: IRouter,
        settings: HttpSettings,
        name: str,
        trust: Trust,
        on_request: RequestHook | None = None,
        on_response: ResponseHook | None = None,
    ) -> None:
        self.flow = flow
        self.pool = pool
        self.router = router
        self.settings = settings
        self.name = name
        self.on_request = on_request
        self.on_response = on_response
        self.limits = Limits(settings.line_limit, settings.head_limit, settings.fields_limit)
        self.stats = Requests()
        #: Where each exchange is written down; None: nowhere.
        self.write_log: Callable[[AccessEntry], object] | None = None
        self.trust = trust
        self._rarely = Rarely(flow.clock)
        self._ids = itertools.count(1)
        self._id_start = os.urandom(6).hex().encode()
        self._rendered: dict[ResponseHead, bytes] = {}

    @staticmethod
    def client_text(info: ConnInfo) -> str:
        """A client's IP address as others are told of it; empty: it has none."""
        try:
            address = ip_address(info.client_host.partition("%")[0])
        except ValueError:
            return ""  # a unix socket, or what an endpoint of somebody else's calls an address
        return str(getattr(address, "ipv4_mapped", None) or address)

    @staticmethod
    def certificate(info: ConnInfo) -> tuple[str, str]:
        """Subject and fingerprint of the certificate that a client has shown."""
        return ("", "") if info.tls is None else (info.tls.subject, info.tls.fingerprint)

    def date_line(self) -> bytes:
        """When an answer of our own was given (RFC 9110 section 6.6.1)."""
        return b"Date: %b\r\n" % formatdate(self.flow.clock.seconds(), usegmt=True).encode("ascii")

    def new_id(self) -> bytes:
        """A request id, unique beyond this process."""
        return b"%b-%x" % (self._id_start, next(self._ids))

    def upstream(self, opening: Any) -> Http1Upstream:
        """The protocol for a new upstream connection."""
        return Http1Upstream(opening, self)

    def rendered(self, head: ResponseHead) -> bytes:
        """A response head as HTTP/1.1 clients get it, with the blank line; for any method but HEAD.

        Backends repeat themselves: the same head is not put together again.
        """
        made = self._rendered.get(head)
        if made is None:
            start = response_start(head, head.fields.kept, self.settings.via)
            made = b"%b%b\r\n" % (start, framing_line(head, b"GET"))
            if len(made) <= _LONGEST_RENDERED:
                if len(self._rendered) >= _RENDERED:
                    self._rendered.clear()
                self._rendered[head] = made
        return made

    def composed(
        self,
        request: RequestHead,
        route: HttpRoute,
        head: ResponseHead,
        chunked: bool,
        keep: bool,
    ) -> bytes:
        """A response head that is not as most are, for this one request.

        :param chunked: whether the body goes out in chunks.
        :param keep: whether the client's connection lives on.
        """
        out = response_start(head, self.kept(request, route, head), self.settings.via)
        if chunked or head.framing(request.method) >= 0:
            out += framing_line(head, request.method)
        if not keep:
            out += CLOSE_LINE
        elif not request.minor:
            out += KEEP_ALIVE_LINE
        return out + b"\r\n"

    def own(
        self, status: int, text: str, lines: bytes, with_body: bool, keep: bool, minor: int = 1
    ) -> bytes:
        """An answer of the proxy's own.

        :param lines: further field lines.
        :param keep: whether the client's connection lives on.
        :param minor: of the version that the client speaks.
        """
        if not has_line(lines, b"date"):
            lines = self.date_line() + lines
        if not keep:
            lines += CLOSE_LINE
        elif not minor:
            lines += KEEP_ALIVE_LINE
        return own_response(status, text, lines, with_body)

    def switched(self, exchange: Exchange, head: ResponseHead) -> bytes:
        """A 101 as it goes to the client."""
        assert exchange.route is not None
        kept = self.kept(exchange.head, exchange.route, head)
        lines = b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n" % head.fields.upgrade
        return response_start(head, kept, self.settings.via) + lines

    def kept(self, request: RequestHead, route: HttpRoute, head: ResponseHead) -> bytes:
        """The backend's fields as they go to the client: what rules and the hook leave of them."""
        kept, rules = head.fields.kept, route.response_fields
        if self.on_response is not None or rules.set or rules.remove:
            fields = Fields(kept)
            apply(rules, fields)
            if self.on_response is not None:
                try:
                    self.on_response(request, head, fields)
                except Exception:
                    self.log.failure("{listener}: on_response", listener=self.name)
            kept = fields.block()
        return kept

    def refused(self, info: ConnInfo, status: int, why: str) -> None:
        """Something that is no request has been answered."""
        self.stats.statuses[status // 100] += 1
        if self.write_log is not None:
            self.write_log(entry_of_none(self, info, status, why))

    def failed(self, error: ProxyError) -> None:
        """A request has come to nothing; the log says why, unless it was the client.

        Not each time: the access log has them all.
        """
        self.stats.count(self.stats.failed, error.kind)
        if error.side is not Side.CLIENT:
            self.warn(error.kind, error.message)

    def warn(self, kind: str, text: str) -> None:
        """Say that something is wrong, unless the same kind of thing was said a moment ago."""
        self._rarely.warn(self.log, kind, "{listener}: {text}", listener=self.name, text=text)


def apply(rules: FieldRules, fields: Fields) -> None:
    """Do to the fields of a message what a route says."""
    for name in rules.remove:
        fields.remove(name)
    for name, value in rules.set:
        fields.set(name, value)
