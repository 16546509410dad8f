"""One exchange: a request, the upstream that answers it, and the answer on its way back.

It stands between two protocols that know their own wire formats: the *client* that the request came
from, and the *upstream* that flow finds for it. Neither knows the other. An exchange is an upstream
choice (core/choice.py) that has a request to go with it, so flow may make its notes on it.

    start     a route; an answer of our own, or flow.upstream()
    joined    there is an upstream: it is sent the request
    response  the head of the answer; what follows is handed on as it comes
    over      both are done with each other: counted, logged, and the client may go on
    failed    an error for the client, or, in the middle of an answer, its connection is cut

A request that was lost on a connection that had served others is put to ``flow.again``, if it is
safe to send it twice: its method is idempotent (RFC 9110 section 9.2.2) and no byte of a body went
with it, or nothing was written at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import CancelledError

from proxykit.core.choice import Attempt, Choice
from proxykit.core.routing import normal_path, redirect_url, rewritten
from proxykit.errors import ProxyError, Retry, gone
from proxykit.model import HttpRoute
from proxykit.net.entries import entry_of
from proxykit.net.serving import Outgoing, Reply, apply
from proxykit.wire.forwarding import proxy_status, reason_of
from proxykit.wire.http1fields import Fields

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from proxykit.core.registry import BackendState
    from proxykit.core.sharing import Shares
    from proxykit.model import ConnInfo
    from proxykit.net.http1_upstream import Http1Upstream
    from proxykit.net.serving import Serving
    from proxykit.wire.forwarding import Forwarding
    from proxykit.wire.http1 import RequestHead, ResponseHead

#: Bytes of a body that are kept while there is no upstream; then the client is not read from.
EARLY_BYTES = 65536
#: Methods that do the same when they are sent twice (RFC 9110 section 9.2.2).
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
#: Methods whose way through proxies may be counted.
COUNTED = frozenset((b"OPTIONS", b"TRACE"))
#: Bytes of a request id that is taken over.
LONGEST_ID = 128
SWITCHING = 101
#: Seconds that a client is asked to wait when there is no room or no backend.
RETRY_AFTER = 1


class Client(Protocol):
    """The protocol that a request came from, or its stream, as exchange and upstream know it.

    :ivar private: an upstream connection that is this client's alone, or None.
    :ivar shares: what its requests had for connections.
    """

    info: ConnInfo
    forwarding: Forwarding
    private: Http1Upstream | None
    shares: Shares

    def respond(
        self, exchange: Exchange, head: ResponseHead, payload: bytes, done: bool, trailers: bytes
    ) -> None:
        """The head of the answer, with what has come of its body; ``done``: that is all of it."""

    def respond_more(self, payload: bytes, done: bool, trailers: bytes) -> None:
        """More of the body."""

    def inform(self, head: ResponseHead) -> None:
        """An interim response (1xx)."""

    def switch(
        self, exchange: Exchange, head: ResponseHead, upstream: Http1Upstream, rest: bytes
    ) -> None:
        """From here on, both connections carry another protocol."""

    def reply(self, exchange: Exchange, status: int, text: str, lines: bytes) -> None:
        """An answer of our own."""

    def cut(self, why: str) -> None:
        """The answer has begun and cannot be finished: end the connection so that it shows."""

    def finished(self, exchange: Exchange) -> None:
        """The answer is complete; the next request may begin."""

    def hold(self) -> None:
        """Read no more of the request's body for now."""

    def go_on(self) -> None:
        """Read it again."""

    def unsent(self) -> int:
        """Bytes that wait to be sent to the client."""

    def keep(self, upstream: Http1Upstream) -> None:
        """A connection that nobody else may use."""

    def plain_outlet(self) -> Any:
        """The transport where a body's bytes may go as they are; None: there is none."""


class Exchange(Choice):
    """See this module.

    :param client: where the request came from.
    :param head: the request.
    :ivar request_done: whether all of the request has come.
    :ivar responded: whether the head of an answer has gone to the client.
    :ivar received: bytes of the request's body; ``sent``: of the answer's.
    :ivar block: the lines that go to the backend, but for ``id_line`` and what is said of the
        connection.
    :ivar upgrade: whether the client asks for another protocol on this connection.
    :ivar asked: when the last of the request that there was went to the upstream.
    """

    __slots__ = ("asked", "backend", "block", "client", "failure", "head", "held", "id_line",
                 "limit", "lost", "method", "received", "request_done", "request_id", "responded",
                 "reused", "route", "sent", "serving", "status", "target", "trailers", "upgrade",
                 "upstream")  # fmt: skip

    def __init__(self, serving: Serving, client: Client, head: RequestHead) -> None:
        self.serving = serving
        self.client = client
        self.head = head
        self.attempt: Attempt | None = None
        self.result: Deferred[Attempt] | None = None
        self.upstream: Http1Upstream | None = None
        #: One that was lost, and is being closed before another one is looked for.
        self.lost: Http1Upstream | None = None
        self.route: HttpRoute | None = None
        self.backend: BackendState | None = None
        self.started: float | None = None
        self.asked = 0.0
        self.held = self.trailers = self.request_id = b""
        self.method = self.target = self.block = self.id_line = b""
        self.limit = self.received = self.sent = self.status = 0
        self.request_done = self.responded = self.reused = self.upgrade = False
        self.failure = ""

    def start(self, payload: bytes, done: bool) -> None:
        """Find out who answers, and ask.

        :param payload: what has come of the body; ``done``: that is all of it.
        """
        serving, head = self.serving, self.head
        self.request_done = done
        self.received = len(payload)
        self.held = payload
        self._identify()
        route: Any = serving.router.route(head)
        if route is None or route.status or route.redirect:
            self._answer(route)
            return
        self.route = route
        limit = serving.settings.body_limit if route.body_limit is None else route.body_limit
        self.limit = limit
        if limit and (head.fields.framing > limit or self.received > limit):
            self._too_large()
            return
        try:
            cluster = serving.flow.registry.cluster(route.cluster)
        except KeyError:
            self.failed(gone(route.cluster))
            return
        Choice.__init__(self, cluster, self.client.info, serving.pool, serving.upstream)
        self.shareable = True
        self.repeatable = head.method in IDEMPOTENT
        if not self._compose(cluster.config.host):
            return
        private = self.client.private
        got: Attempt | Deferred[Attempt]
        if private is not None and private.serves(cluster):
            self.started = serving.flow.clock.seconds()
            got = self.attempt = Attempt(serving.flow, self, private.shelf.backend)
            got.upstream = private
            private.used += 1
        else:
            got = serving.flow.upstream(self)
        if isinstance(got, Attempt):
            self.asked = self.started  # type: ignore[assignment]  # it has just been set
            self._joined(got)
        else:
            got.addCallbacks(self._joined_later, self._refused)

    def _answer(self, route: HttpRoute | None) -> None:
        """Answer without a backend."""
        serving, head = self.serving, self.head
        if route is None:
            if normal_path(head.target) is None:
                self.refuse(400, "the path climbs above its root")
            elif serving.router.misdirected(head):  # type: ignore[attr-defined]
                self.refuse(421, "this host is not served here")
            else:
                self.refuse(404, "nothing is served at this path")
            return
        status, text = route.status, route.text
        if route.redirect and not head.host and "{host}" in route.redirect:
            self.refuse(400, "a Host is needed here")
            return
        fields = Fields(b"")
        if route.redirect:
            url = redirect_url(route, self.client.forwarding.scheme, head.host, head.target)
            fields.set("Location", url)
            status = status or 308
        apply(route.response_fields, fields)
        self._reply(status, text and text + "\n", fields.block())

    def _compose(self, host: str) -> bool:
        """Put together what goes to the backend.

        :returns: False if it has been answered instead.
        """
        head, route, forwarding = self.head, self.route, self.client.forwarding
        assert route is not None
        goes_to = host.encode("ascii") if host else head.host
        set_by_rule = None
        self.method, self.target = head.method, head.target
        if route.replace_path is not None:
            self.target = rewritten(route, head.target)
        rules = route.request_fields
        plain = self.serving.on_request is None and not rules.set and not rules.remove
        if plain and head.method not in COUNTED:
            self.block = forwarding.block(head, goes_to)
        else:
            outgoing = Outgoing(head.method, self.target, goes_to, Fields(head.fields.kept))
            apply(rules, outgoing.fields)
            if not (self._goes_further(outgoing.fields) and self._lets_pass(outgoing)):
                return False
            self.method, self.target = outgoing.method, outgoing.target
            self.repeatable = self.method in IDEMPOTENT
            fields = outgoing.fields
            end = forwarding.end(head, fields)
            self.block = b"Host: %b\r\n%b%b" % (outgoing.host, fields.block(), end)
            set_by_rule = fields.get("X-Request-ID")
        if set_by_rule is not None:
            self.request_id = set_by_rule
        elif self.request_id:
            self.id_line = b"X-Request-ID: %b\r\n" % self.request_id
        # An Upgrade has no meaning in HTTP/1.0, and none is taken that a body comes with.
        if head.fields.upgrade and head.minor and not head.fields.framing:
            self.upgrade = True
        return True

    def _goes_further(self, fields: Fields) -> bool:
        """Count down Max-Forwards (RFC 9110 section 7.6.2); at its end, the answer is ours."""
        left = fields.get("max-forwards") if self.head.method in COUNTED else None
        if left is None or not left.isdigit() or len(left) > 18:
            return True
        if int(left) > 0:
            fields.set("Max-Forwards", str(int(left) - 1))
            return True
        if self.head.method == b"OPTIONS":
            self._reply(204, "", b"")
        else:
            self._reply(405, "405 Method Not Allowed: a TRACE ends here\n", b"Allow: GET, HEAD\r\n")
        return False

    def _lets_pass(self, outgoing: Outgoing) -> bool:
        """Whether the hook, if there is one, leaves the request to a backend."""
        serving, reply, lines = self.serving, None, b""
        if serving.on_request is None:
            return True
        try:
            reply = serving.on_request(self.head, outgoing)
            outgoing.check(self.head)
            if reply is not None:
                reply.check()
                lines = _lines(reply.fields)
        except Exception:
            serving.log.failure("{listener}: on_request", listener=serving.name)
            reply = Reply(500, "500 Internal Server Error\n")
        if reply is not None:
            self._reply(reply.status, reply.text, lines)
        return reply is None

    def _identify(self) -> None:
        """Give it an id, or keep the one that somebody gave it whom we trust."""
        given = self.head.fields.request_id
        if not self.serving.settings.request_id or (
            given and self.client.forwarding.trusted and len(given) <= LONGEST_ID
        ):
            self.request_id = given
        else:
            self.request_id = self.serving.new_id()

    def _joined(self, attempt: Attempt) -> None:
        """There is an upstream."""
        upstream = self.upstream = attempt.upstream
        self.backend = attempt.backend
        self.reused = upstream.used > 1
        held, self.held = self.held, b""
        if len(held) > EARLY_BYTES:
            self.client.go_on()
        upstream.begin(self, held, self.request_done)

    def _joined_later(self, attempt: Attempt) -> None:
        """There is one by now."""
        self.asked = self.serving.flow.clock.seconds()
        self._joined(attempt)

    def _refused(self, failure: Failure) -> None:
        """There is none."""
        if failure.check(CancelledError) is None:  # else it is we who have cancelled it
            failure.trap(ProxyError)
            self.failed(failure.value)  # type: ignore[arg-type]

    # What the client tells.

    def body(self, payload: bytes, done: bool) -> None:
        """More of the request's body; ``done``: that was all of it."""
        self.request_done = done
        self.received += len(payload)
        if self.limit and self.received > self.limit:
            self._too_large()
        elif self.upstream is not None:
            self.upstream.send_more(payload, done)
        else:
            self.held += payload
            if len(self.held) > EARLY_BYTES and not done:
                self.client.hold()

    def malformed(self, status: int, why: str) -> None:
        """The rest of the request will never come."""
        self._drop_upstream()
        if self.responded:
            self._close_books(why)
            self.client.cut(why)
        else:
            self.refuse(status, why)

    def _drop_upstream(self) -> None:
        if self.result is not None:
            self.result.cancel()
        for upstream in (self.upstream, self.lost):
            if upstream is not None:
                upstream.abandon()
        self._has_lost()

    def _has_lost(self) -> None:
        """There is no upstream any more; the access log may want to know what became of it."""
        self.lost, self.upstream = self.upstream or self.lost, None

    def switched_back(self, received: int, why: str) -> None:
        """An upgraded connection is over."""
        if self.upstream is not None:
            self.received, self.sent = received, self.upstream.received
        self._has_lost()
        self._close_books(why)

    def abandon(self, why: str) -> None:
        """The client is gone, or is to be."""
        self._drop_upstream()
        self._close_books(why)

    # What the upstream tells.

    def again(self, error: ProxyError) -> None:
        """It was lost before it answered: try another, if flow thinks that is safe."""
        assert self.attempt is not None
        self._has_lost()
        got = self.serving.flow.again(self.attempt, error)
        if error.retry is Retry.REUSED_ONLY:
            self.serving.stats.repeated += 1
        if isinstance(got, Attempt):
            self._joined_later(got)
        else:
            got.addCallbacks(self._joined_later, self._refused)

    def over(self) -> None:
        """The answer is complete, and the upstream has gone its own way."""
        self._close_books("")
        self.upstream = None
        self.client.finished(self)

    def failed(self, error: ProxyError) -> None:
        """There will be no answer, or not the whole of it."""
        self._has_lost()
        self.serving.failed(error)
        self.failure = error.message
        if self.responded:
            self._close_books(error.message)
            self.client.cut(error.message)
            return
        lines = proxy_status(error.kind, error.message)
        if error.status == 503:
            lines += b"Retry-After: %d\r\n" % RETRY_AFTER
        self._reply(error.status, _line(error.status, error.message), lines)

    # Answers of our own.

    def refuse(self, status: int, why: str) -> None:
        """The request itself cannot be served."""
        self.failure = why
        self._reply(status, _line(status, why), b"")

    def _too_large(self) -> None:
        self.malformed(413, f"a request body may have {self.limit} bytes here")

    def _reply(self, status: int, text: str, lines: bytes) -> None:
        self.status, self.responded = status, True
        client = self.client
        client.reply(self, status, text, lines)
        self._close_books(self.failure)
        client.finished(self)

    def snapshot(self) -> dict[str, Any]:
        """Its part of ``/api/connections``."""
        waiting = self.route is not None and self.result is not None and self.waiting
        return {
            "cluster": self.route.cluster if self.route is not None else None,
            "backend": str(self.backend.address) if self.backend is not None else None,
            "state": (
                "upgraded"
                if self.status == SWITCHING
                else "answering"
                if self.upstream is not None
                else "waiting"
                if waiting
                else "connecting"
            ),
            "bytes_up": self.received,
            "bytes_down": self.sent,
        }

    # The end.

    def _close_books(self, why: str) -> None:
        """Count it, and write it down. Once."""
        attempt = self.attempt
        if attempt is not None:
            attempt.end()
        serving = self.serving
        stats = serving.stats
        stats.statuses[self.status // 100] += 1
        stats.bytes_up += self.received
        stats.bytes_down += self.sent
        if self.reused:
            stats.reused += 1
        upstream = self.upstream or self.lost
        if upstream is not None:
            self.client.shares.note(upstream, self.reused)
        now = serving.flow.clock.seconds()
        seconds = now - self.started if self.started is not None else 0.0
        stats.seconds.observe(seconds)
        if serving.write_log is not None:
            serving.write_log(entry_of(self, seconds, why))


def _lines(fields: Iterable[tuple[str, str]]) -> bytes:
    """Fields as a block, with the same checks as any others."""
    made = Fields(b"")
    for name, value in fields:
        made.add(name, value)
    return made.block()


def _line(status: int, why: str) -> str:
    return f"{status} {reason_of(status)}: {why}\n"
