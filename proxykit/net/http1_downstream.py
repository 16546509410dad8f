"""HTTP/1 from a client: one request after the other, each an exchange, answered in order.

What a client sends ahead (pipelining) waits until its turn has come, in a bounded buffer. A request
that breaks a rule is refused, and the connection closed: from there on nobody can say where the
next one begins. A connection that is closed while a request is still coming in is closed lingering
(RFC 9112 section 9.6), so that the client gets to read the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import ISSLTransport
from zope.interface import implementer

from proxykit.core.sharing import Shares
from proxykit.interfaces import IDrains
from proxykit.model import ConnInfo
from proxykit.net.closing import Closing, unsent
from proxykit.net.exchange import Exchange
from proxykit.net.http1_patience import Http1Patience
from proxykit.net.relay import tune
from proxykit.net.telling import Told
from proxykit.net.upgrade import Upgrade
from proxykit.wire.forwarding import Forwarding, reason_of, response_start
from proxykit.wire.http1 import Refused, RequestReader
from proxykit.wire.http1body import body_of, chunks

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from proxykit.core.deadlines import Deadline
    from proxykit.net.http1_upstream import Http1Upstream
    from proxykit.net.serving import Serving
    from proxykit.wire.http1 import ResponseHead

#: Requests of one client that are answered in one turn, where each can be answered at once.
REQUESTS_AT_ONCE = 16
#: Bytes that a client may send ahead; then it is not read from.
AHEAD_BYTES = 65536
#: Methods that have a body as a rule.
_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))


@implementer(IDrains)
class Http1Downstream(Told, Http1Patience):
    """One client's connection. See this module.

    :ivar private: an upstream connection that is this client's alone.
    :ivar shares: what its requests had for connections; see net/telling.py.
    """

    __slots__ = ("_ahead", "_body", "_chunked", "_clogged", "_closing", "_head", "_held", "_idle",
                 "_keep", "_progress", "_reader", "_upgrade", "exchange", "forwarding", "info",
                 "private", "requests", "serving", "shares", "since")  # fmt: skip

    name = "client"
    #: Whether too much was sent ahead, so that it is not read from.
    _too_far = False
    _pumping = False
    _resting = False

    def __init__(self, serving: Serving) -> None:
        super().__init__()
        self.serving = serving
        self.forwarding: Forwarding
        #: What a listener says of the connection. Without one it is made up here.
        self.info: ConnInfo = None  # type: ignore[assignment]
        self.exchange: Exchange | None = None
        self.private: Http1Upstream | None = None
        self.requests = 0
        self.shares = Shares()
        self.since = serving.flow.clock.seconds()
        self._reader = RequestReader(serving.limits)
        #: What reads the body of the present request; None: it has none, or all of it has come.
        self._body: Any = None
        #: What was sent ahead.
        self._ahead = b""
        #: Once the last answer has been given; once the connection carries another protocol.
        self._closing: Closing | None = None
        self._upgrade: Upgrade | None = None
        #: Whether the answer goes out in chunks; whether the connection lives on after it.
        self._chunked, self._keep = False, True
        #: Whether the client takes no more at the moment; whether the backend does not.
        self._clogged = self._held = False
        self._idle: Deadline | None = None
        self._head: Deadline | None = None
        self._progress: Deadline | None = None

    def connectionMade(self) -> None:
        serving, transport = self.serving, self.transport
        if not self.info:
            self.info = ConnInfo(0, serving.name, transport.getPeer(), server=transport.getHost())
            if not isinstance(self.info.client, UNIXAddress):
                tune(transport, True)
        host = serving.client_text(self.info)
        scheme = b"https" if ISSLTransport.providedBy(transport) else b"http"
        trusted = serving.trust.believes(self.info)
        shown = serving.certificate(self.info)
        self.forwarding = Forwarding(host, scheme, trusted, serving.settings.via, shown)
        transport.registerProducer(self, True)
        self._await_head()

    # What comes from the client.

    def dataReceived(self, data: bytes) -> None:
        if self.exchange is None and not (self._closing or self._upgrade):
            if self._clogged or self._ahead:
                self._later(data)
            else:
                self._read(data)
            if self._ahead:
                self._pump()
        elif self.relay is not None:
            super().dataReceived(data)
        elif self._body is not None:
            self._more(data)
        elif self._closing is not None:
            self._closing.received(data)
        else:
            self._later(data)

    def _later(self, data: bytes) -> None:
        """Its turn has not come."""
        self._ahead += data
        if len(self._ahead) > AHEAD_BYTES and not self._too_far:
            self._too_far = True
            self.transport.pauseProducing()

    def _read(self, data: bytes) -> None:
        """A request begins, or goes on to begin."""
        try:
            head = self._reader.feed(data)
        except Refused as problem:
            self._refuse(problem)
            return
        if head is None:
            if self._head is None:
                self._await_head()
            return
        if self._head is not None:
            self._head.cancel()
            self._head = None
        self.requests += 1
        rest, self._reader.rest = self._reader.rest, b""
        exchange = self.exchange = Exchange(self.serving, self, head)
        framing = head.fields.framing
        if not framing:
            if not head.minor and head.method in _WITH_BODY and head.fields.length is None:
                self.exchange = None
                self._refuse(Refused("a body has a length in HTTP/1.0 (RFC 1945 section 7.2)", 411))
                return
            self._ahead = rest
            exchange.start(b"", True)
            return
        body = self._body = body_of(framing, True)
        self._progress = self.serving.flow.deadlines.add(
            self.serving.settings.body_timeout, self._no_progress
        )
        try:
            payload = body.feed(rest)
        except Refused as problem:
            self.exchange = None  # It has not begun.
            self._refuse(problem)
            return
        if body.done:
            self._body_done(body)
            exchange.trailers = body.trailers
        elif self.read_ended:
            self.exchange = None
            self._end()  # It was sent ahead, and the rest of it will never come.
            return
        exchange.start(payload, body.done)

    def _more(self, data: bytes) -> None:
        """More of a request's body."""
        body, exchange = self._body, self.exchange
        try:
            payload = body.feed(data)
        except Refused as problem:
            self._refuse(problem)
            return
        done = body.done
        if done:
            self._body_done(body)
            if exchange is not None:
                exchange.trailers = body.trailers
        elif self._progress is not None:
            self._progress.touch()
        if exchange is not None:
            exchange.body(payload, done)

    def _body_done(self, body: Any) -> None:
        self._body = None
        self._ahead = body.rest
        if self._progress is not None:
            self._progress.cancel()
            self._progress = None

    def _rested(self) -> None:
        self._resting = False
        if not self.gone:
            self._pump()

    @property
    def _is_last(self) -> bool:
        """Whether the client has ended, and nothing that it sent ahead is left."""
        return self.read_ended and not self._ahead

    def _goes_on(self, exchange: Exchange) -> bool:
        """Whether the connection lives on after the answer to this one."""
        over = self.read_ended and not self._ahead  # as _is_last; this is asked each time
        ends = over or self._draining
        return exchange.head.keep_alive and exchange.request_done and not ends

    def _pump(self) -> None:
        """Take what was sent ahead, one request after the other."""
        if self._pumping or self._resting:
            return
        self._pumping = True
        left = REQUESTS_AT_ONCE
        try:
            while self._ahead and self.exchange is None and not (self._closing or self._clogged):
                if not left:
                    # Answers of our own come at once: nobody else would have his turn.
                    self._resting = True
                    self.serving.flow.clock.callLater(0, self._rested)
                    break
                left -= 1
                data, self._ahead = self._ahead, b""
                self._read(data)
        finally:
            self._pumping = False
        if self._too_far:
            self._maybe_read()
        if self._is_last and self.exchange is None and self._closing is None:
            self._end()  # with a part of a request, which will never be whole

    # What goes to the client: see proxykit.net.exchange.Client.

    def respond(
        self, exchange: Exchange, head: ResponseHead, payload: bytes, done: bool, trailers: bytes
    ) -> None:
        request, serving, route = exchange.head, self.serving, exchange.route
        assert route is not None
        chunked = head.framing(request.method) < 0
        keep = self._goes_on(exchange)
        rules = route.response_fields
        if (
            keep
            and request.minor
            and request.method != b"HEAD"
            and serving.on_response is None
            and not rules.set
            and not rules.remove
        ):
            out = serving.rendered(head)
        else:
            if chunked and not request.minor:
                chunked = keep = False  # HTTP/1.0 knows an end only by a length or a close.
            out = serving.composed(request, route, head, chunked, keep)
        self._keep, self._chunked = keep, chunked
        if chunked:
            payload = chunks(payload, done, trailers)
        self.transport.write(out + payload if payload else out)

    def respond_more(self, payload: bytes, done: bool, trailers: bytes) -> None:
        data = chunks(payload, done, trailers) if self._chunked else payload
        if data:
            self.transport.write(data)

    def inform(self, head: ResponseHead) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.head.minor:
            start = response_start(head, head.fields.kept, self.serving.settings.via)
            self.transport.write(start + b"\r\n")

    def reply(self, exchange: Exchange, status: int, text: str, lines: bytes) -> None:
        self._keep = self._goes_on(exchange)
        with_body = exchange.head.method != b"HEAD" and status not in (204, 304)
        exchange.sent = len(text.encode()) if with_body else 0
        serving, minor = self.serving, exchange.head.minor
        self.transport.write(serving.own(status, text, lines, with_body, self._keep, minor))

    def finished(self, exchange: Exchange) -> None:
        self.exchange = None
        if not self._keep:
            self._end()
            return
        held, self._held = self._held, False
        if self._idle is not None:
            self._idle.touch()
        else:
            self._idle = self.serving.flow.deadlines.add(
                self.serving.settings.keepalive_timeout, self._no_request
            )
        if self._draining:
            self.drain()
        if self._ahead:
            self._pump()
        if held:
            self._maybe_read(True)

    def cut(self, why: str) -> None:
        self.exchange = None
        self.transport.abortConnection()

    def plain_outlet(self) -> Any:
        return None if self._chunked else self.transport

    def unsent(self) -> int:
        """Bytes that wait here to be sent."""
        return unsent(self.transport)

    def keep(self, upstream: Http1Upstream) -> None:
        before, self.private = self.private, upstream
        if before is not None and before is not upstream and not before.gone:
            before.close_idle()

    def switch(
        self, exchange: Exchange, head: ResponseHead, upstream: Http1Upstream, rest: bytes
    ) -> None:
        self._upgrade, self.exchange = Upgrade(exchange, self), None
        if self._held:
            self.go_on()
        self._cancel_deadlines()
        early, self._ahead = self._ahead, b""
        self._upgrade.start(head, upstream, early, rest)

    # Backpressure.

    def hold(self) -> None:
        self._held = True
        self.transport.pauseProducing()

    def go_on(self) -> None:
        if self._held:
            self._held = False
            self._maybe_read(True)

    def _maybe_read(self, held: bool = False) -> None:
        """Read again, if nothing is in the way any more.

        :param held: whether something was, besides what was sent ahead.
        """
        if self._held or self.read_ended or len(self._ahead) > AHEAD_BYTES:
            return
        if held or self._too_far:
            self._too_far = False
            self.transport.resumeProducing()

    def pauseProducing(self) -> None:
        """As the producer of what goes to the client: it takes no more."""
        if self.relay is not None:
            super().pauseProducing()
            return
        self._clogged = True
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.hold()

    def resumeProducing(self) -> None:
        if self.relay is not None:
            super().resumeProducing()
            return
        self._clogged = False
        if self.exchange is not None:
            if self.exchange.upstream is not None:
                self.exchange.upstream.go_on()
        elif self._ahead:
            self._pump()

    # The end.

    def _refuse(self, problem: Refused) -> None:
        """What it sends breaks a rule."""
        serving, exchange = self.serving, self.exchange
        serving.stats.count(serving.stats.refused, problem.rule)
        self._body = _NOTHING
        if exchange is not None:
            exchange.malformed(problem.status, problem.rule)
        else:
            serving.refused(self.info, problem.status, problem.rule)
            self._last_words(problem.status, problem.rule)

    def _last_words(self, status: int, why: str) -> None:
        """Answer what is no request, and close."""
        text = f"{status} {reason_of(status)}: {why}\n"
        self.transport.write(self.serving.own(status, text, b"", True, False))
        self._body = _NOTHING
        self._end()

    def _end(self) -> None:
        """The last answer has been given: close, so that it gets there."""
        linger = (self._body is not None or self._ahead != b"") and not self.read_ended
        self._body, self._ahead = None, b""
        self._cancel_deadlines()
        held, self._held = self._held, False
        self._maybe_read(held)
        serving = self.serving
        timeout = serving.settings.response_body_timeout
        self._closing = Closing(self.transport, serving.flow.deadlines, timeout, linger)
        if self.gone:
            self._closing.lost()

    def abort(self, why: str) -> None:
        """End it at once, with a reset: nobody shall take what has come for the whole."""
        self.cut_off = why
        if self.relay is not None:
            self.relay.abort(why)
        else:
            self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        if self.relay is not None:
            super().readConnectionLost()
            return
        self.read_ended = True
        if self._body is not None:
            # A request that is cut off is never passed on as whole.
            self.transport.abortConnection()
        elif self.exchange is not None:
            self._keep = self._keep and not self._is_last
        elif self._closing is None:
            self._end()
        else:
            self._closing.close()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._cancel_deadlines()
        if self._closing is not None:
            self._closing.lost()
        private, self.private = self.private, None
        if private is not None and not private.gone:
            private.close_idle()
        exchange, self.exchange = self.exchange, None
        self.gone = True
        if exchange is not None:
            exchange.abandon("the client left")
        self.serving.pool.left(self.info)
        if self.relay is not None:
            super().connectionLost(reason)
        else:
            self.log_end()


#: In place of a body's reader: there may be more to come, and nobody will look at it.
_NOTHING = object()
