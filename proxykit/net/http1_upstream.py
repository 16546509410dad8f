"""HTTP/1 towards a backend: one request at a time on a connection that the pool keeps.

What comes back is read as strictly as what clients send. A backend that breaks the rules, or sends
bytes that nobody has asked for, loses its connection; so no byte of one answer can become a part of
another.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone

from proxykit.core import sharing
from proxykit.errors import ProxyError, Retry, Side
from proxykit.net.closing import settled
from proxykit.net.http1_timeouts import Http1Timeouts
from proxykit.net.relay import FULL_READ, has_shortcuts, tune
from proxykit.net.shelf import POOLED_SLOTS, Pooled
from proxykit.wire.forwarding import CLOSE_LINE
from proxykit.wire.http1 import Refused, ResponseReader
from proxykit.wire.http1body import body_of, chunks
from proxykit.wire.http1fields import CHUNKED, UNTIL_CLOSE

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from proxykit.core.deadlines import Deadline
    from proxykit.core.registry import ClusterState
    from proxykit.net.exchange import Exchange
    from proxykit.net.serving import Serving
    from proxykit.wire.http1 import ResponseHead

SWITCHING = 101

#: Seconds that a backend has to close a connection of which it was told, or has said, that this
#: was its last answer. Who closes first keeps the port for a minute: better it than we.
END_COMES = 0.2


class Http1Upstream(Http1Timeouts, Pooled):
    """One connection to a backend. See this module.

    :param opening: told when it is connected; see ``Attempt.succeeded``.
    """

    __slots__ = (*POOLED_SLOTS, "_body", "_committed", "_keep", "_more_there", "_reader",
                 "_splicing")  # fmt: skip

    name = "backend"
    #: What is to be asked again once this connection is closed.
    _repeat: tuple[Exchange, ProxyError] | None = None

    def __init__(self, opening: Any, serving: Serving) -> None:
        Http1Timeouts.__init__(self)
        Pooled.__init__(self)
        self._opening = opening
        self._serving = serving
        self._address = opening.backend.address
        # With limits of its own: a listener's are for its clients.
        self._reader = ResponseReader()
        self.exchange: Exchange | None = None
        self._body: Any = None
        #: Whether another request may follow; whether one side has told the other that none will.
        self._keep = self._said_last = False
        self._response: Deadline | None = None
        self._progress: Deadline | None = None
        self._splicing = False
        #: Whether its reading is paused, because the client takes no more; whether the client's is,
        #: because this one does not.
        self._paused = self._client_held = False
        #: Whether the head of the answer to the present request has come.
        self._answering = False
        #: Whether the present request cannot be sent again: a part of a body went with it, or the
        #: backend has said that it works on it.
        self._committed = False
        #: Whether the last read may have left something behind.
        self._more_there = False
        #: Bytes that waited for the client when the deadline looked last.
        self._unsent = -1

    def connectionMade(self) -> None:
        if not self._address.is_unix:
            tune(self.transport, True)
        self.transport.registerProducer(self, True)
        opening, self._opening = self._opening, None
        opening.succeeded(self)

    # The request.

    def begin(self, exchange: Exchange, payload: bytes, done: bool) -> None:
        """Send a request; ``payload``: what there is of its body, ``done``: that is all of it."""
        self.exchange = exchange
        if exchange.serving is not self._serving:
            self._change_hands(exchange.serving)
        self._answering = self._committed = False
        self._unsent = -1
        head = exchange.head
        if self.gone or self.read_ended:
            exchange.held = payload
            self._ended("closed the connection before it was asked", True)
            return
        lines = exchange.id_line
        if exchange.upgrade:
            lines += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.fields.upgrade
        elif not self.shelf.shares:
            lines += CLOSE_LINE
        block = exchange.block
        if block.startswith(b"Host: \r\n"):  # HTTP/1.0; many backends would refuse it so
            name = "localhost" if self._address.is_unix else str(self._address)
            block = b"Host: %b%b" % (name.encode("ascii"), block[6:])
        data = b"%b %b HTTP/1.1\r\n%b%b\r\n" % (exchange.method, exchange.target, block, lines)
        if head.fields.framing:
            self._committed = payload != b""
            data += self._framed(exchange, payload, done)
        self.transport.write(data)
        if self._response is not None:
            self._response.touch()
        else:
            self._response = self._serving.flow.deadlines.add(
                self._serving.settings.response_timeout, self._no_response
            )

    def _change_hands(self, serving: Serving) -> None:
        """Another listener's request: its timeouts hold, and it is counted there."""
        self._serving = serving
        if self._response is not None:
            self._response.cancel()
            self._response = None

    def send_more(self, payload: bytes, done: bool) -> None:
        """More of the request's body."""
        assert self.exchange is not None
        self._committed = True
        if self.gone:
            return  # connectionLost has told it, or is about to.
        self.transport.write(self._framed(self.exchange, payload, done))
        self.exchange.asked = self._serving.flow.clock.seconds()
        if self._response is not None:
            self._response.touch()

    @staticmethod
    def _framed(exchange: Exchange, payload: bytes, done: bool) -> bytes:
        if exchange.head.fields.framing != CHUNKED:
            return payload
        return chunks(payload, done, exchange.trailers)

    # The answer.

    def dataReceived(self, data: bytes) -> None:
        exchange = self.exchange
        # A read of what is not spliced is cut off at the end of the body.
        self._more_there = self._splicing or len(data) >= FULL_READ
        if exchange is None:
            if self.relay is not None:
                super().dataReceived(data)
            else:
                what = f"{self._address} sent {len(data)} bytes that nobody had asked for"
                self._serving.warn("unasked", what)
                self._serving.pool.retire(self, sharing.BROKEN)
                self.transport.abortConnection()
            return
        if self._body is not None:
            self._more(exchange, data)
            return
        while True:
            try:
                head = self._reader.feed(data)
                if head is None:
                    return
                if head.status >= 200:
                    break
                data = self._reader.rest
                if not self._interim(exchange, head, data):
                    return
            except Refused as problem:
                self._broken(problem)
                return
        framing = head.framing(exchange.method)
        rest, self._reader.rest = self._reader.rest, b""
        self._said_last = not (head.keep_alive and self.shelf.shares)
        self._keep = not self._said_last and framing != UNTIL_CLOSE
        self._answering = True
        exchange.status = head.status
        exchange.responded = True
        seconds = self._serving.flow.clock.seconds() - exchange.asked
        self.shelf.backend.answered(head.status, seconds)
        if head.fields.idle_timeout is not None:
            self.idle_limit = head.fields.idle_timeout
        if (head.fields.private or exchange.head.fields.private) and self.capacity:
            # NTLM and Negotiate authenticate a connection, not a request: nobody else may have it.
            self._serving.pool.retire(self, sharing.AUTHENTICATED)
            if head.fields.private:
                self.capacity = 0
            else:
                # Perhaps it is somebody's by now, perhaps only the client says so.
                self._keep = False
        if framing == len(rest):
            exchange.sent = framing
            exchange.client.respond(exchange, head, rest, True, b"")
            self._over(exchange)
        else:
            self._begin_body(exchange, head, framing, rest)

    def _begin_body(
        self, exchange: Exchange, head: ResponseHead, framing: int, rest: bytes
    ) -> None:
        """There is more to come than the head came with, or less."""
        try:
            body = self._body = body_of(framing, False)
            payload = body.feed(rest)
        except Refused as problem:
            exchange.responded = False
            self._broken(problem)
            return
        exchange.sent = len(payload)
        if body.rest:
            self._surplus(body.rest)
        done = body.done
        exchange.client.respond(exchange, head, payload, done, body.trailers if done else b"")
        if done:
            self._over(exchange)
        elif self.exchange is exchange:
            self._progress = self._serving.flow.deadlines.add(
                self._serving.settings.response_body_timeout, self._no_progress
            )

    def _more(self, exchange: Exchange, data: bytes) -> None:
        body = self._body
        try:
            payload = body.feed(data)
        except Refused as problem:
            self._broken(problem)
            return
        exchange.sent += len(payload)
        if self._progress is not None:
            self._progress.touch()
        done = body.done
        if done and body.rest:
            self._surplus(body.rest)
        exchange.client.respond_more(payload, done, body.trailers if done else b"")
        if done:
            self._over(exchange)
        elif len(data) >= FULL_READ and not self._asked_to_splice and body.left > FULL_READ:
            self._try_to_splice(exchange, body.left)

    def _try_to_splice(self, exchange: Exchange, left: int) -> None:
        """A long body of known length may go from socket to socket."""
        self._asked_to_splice = True
        outlet = exchange.client.plain_outlet()
        if outlet is not None and has_shortcuts(self.transport):
            self._splicing = self.transport.splice_to(outlet, left, self._spliced)

    def _spliced(self, count: int) -> None:
        exchange, body = self.exchange, self._body
        if exchange is None or body is None:
            return
        body.skip(count)
        self._more_there = True
        exchange.sent += count
        if self._progress is not None:
            self._progress.touch()
        exchange.client.respond_more(b"", body.done, b"")
        if body.done:
            self._over(exchange)

    def _surplus(self, rest: bytes) -> None:
        self._keep = False
        self._serving.pool.retire(self, sharing.SURPLUS)
        what = f"{self._address} sent {len(rest)} bytes after its answer had ended"
        self._serving.warn("surplus", what)

    def _interim(self, exchange: Exchange, head: ResponseHead, rest: bytes) -> bool:
        """A response that is not the last word.

        :returns: whether another one follows.
        :raises Refused: it was not asked for.
        """
        if head.status != SWITCHING:
            self._committed = True  # It has begun to work on it: not to be sent twice.
            if self._response is not None:
                self._response.touch()
            exchange.client.inform(head)
            return self.exchange is exchange
        if not (exchange.upgrade and head.fields.upgrade):
            raise Refused("no 101 without an Upgrade (RFC 9110 section 15.2.2)", 502)
        self._cancel_deadlines()
        seconds = self._serving.flow.clock.seconds() - exchange.asked
        self.shelf.backend.answered(SWITCHING, seconds)
        self.exchange = self._body = None
        self.capacity = 0
        self._serving.pool.retire(self, sharing.UPGRADED)
        exchange.client.switch(exchange, head, self, rest)
        return False

    # The end of an answer.

    def _over(self, exchange: Exchange) -> None:
        """All of it has come: the connection is free for the next, or closed."""
        self.exchange = self._body = None
        self._asked_to_splice = self._splicing = False
        if self._more_there and self._keep:
            self._look_behind()
        if self._progress is not None:
            self._progress.cancel()
            self._progress = None
        pool = self._serving.pool
        if not exchange.request_done or self._client_held:
            pool.retire(self, sharing.CLOSED_EARLY)
            self.abort()  # It has not taken all of the request, and need not.
        elif self._keep and not self.gone and not self.read_ended:
            if self._paused:
                self._paused = False
                self.transport.resumeProducing()
            if self.capacity:
                pool.give_back(self)
            else:
                exchange.client.keep(self)
        else:
            pool.retire(self, sharing.CLOSED if self.shelf.shares else sharing.POLICY)
            if self._said_last:
                self._await_end()
            else:
                self.close_idle()
        exchange.over()

    def _await_end(self) -> None:
        """Both sides know that this was the last answer."""
        if self.gone or self.read_ended or self.shelf.resets:
            self.close_idle()
            return
        if not self._serving.pool.may_end(self):
            return
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
        self._cancel_deadlines()
        self._progress = self._serving.flow.deadlines.add(END_COMES, self.close_idle)

    def _look_behind(self) -> None:
        """The last read took all that it could: is there anything behind the end of the answer?"""
        self._keep = False
        if has_shortcuts(self.transport):
            with suppress(OSError):  # Then it is lost, and says so itself.
                self._keep = not self.transport.peek(1)
        if not self._keep:
            self._serving.pool.retire(self, sharing.SURPLUS)

    def close_idle(self) -> None:
        """See ``Pooled.close_idle``."""
        self._cancel_deadlines()
        transport = self.transport
        transport.unregisterProducer()
        if self.shelf.resets and not (self.gone or self.read_ended) and settled(transport):
            transport.abortConnection()
        else:
            transport.loseConnection()

    def serves(self, cluster: ClusterState) -> bool:
        """Whether it can be asked again, on behalf of whom it is kept for."""
        return not (self.gone or self.read_ended) and self.shelf.backend.cluster is cluster

    def abort(self) -> None:
        """See ``Pooled.abort``."""
        if not self.gone:
            self.transport.abortConnection()

    def abandon(self) -> None:
        """The client has left in the middle of it: nobody can use this connection any more."""
        self.exchange = self._body = self._repeat = None
        self._serving.pool.retire(self, sharing.MID_MESSAGE)
        self._cancel_deadlines()
        self.abort()

    # What can go wrong.

    def _broken(self, problem: Refused) -> None:
        """It does not keep to the rules."""
        stats = self._serving.stats
        stats.count(stats.refused, problem.rule)
        self._serving.pool.retire(self, sharing.BROKEN)
        self._fail(f"{self._address} broke a rule: {problem.rule}", 502, "http_protocol_error")

    def _fail(self, message: str, status: int, kind: str, side: Side = Side.UPSTREAM) -> None:
        """Give up on the exchange, and on this connection."""
        exchange, self.exchange = self.exchange, None
        self.abandon()
        assert exchange is not None
        error = ProxyError(message, side=side, retry=Retry.NEVER, status=status, kind=kind)
        if exchange.responded:
            exchange.failed(error)
        else:
            exchange.again(error)

    def readConnectionLost(self) -> None:
        if self.relay is not None:
            super().readConnectionLost()
            return
        self.read_ended = True
        self._finished(True)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.gone = True
        clean = reason.check(ConnectionDone) is not None
        if self._opening is None:
            cut_off = self._body is not None and not clean
            self._serving.pool.lost(self, sharing.MID_MESSAGE if cut_off else sharing.CLOSED)
        if self.relay is not None:
            super().connectionLost(reason)
            return
        self._finished(clean)
        self._cancel_deadlines()
        if self._repeat is not None:
            (exchange, error), self._repeat = self._repeat, None
            exchange.again(error)

    def _finished(self, clean: bool) -> None:
        """Nothing more will come."""
        exchange, body = self.exchange, self._body
        if exchange is None:
            if not self.gone:
                # From this moment on nobody may be given it.
                self._serving.pool.retire(self)
                self.close_idle()
        elif body is not None:
            try:
                if not clean:
                    raise Refused("reset in the middle of an answer", 502)
                body.eof()
            except Refused as problem:
                self._fail(f"{self._address}: {problem.rule}", 502, "http_response_incomplete")
            else:
                exchange.client.respond_more(b"", True, b"")
                self._over(exchange)
        else:
            may_repeat = exchange.repeatable and not self._committed
            self._ended("closed the connection before it answered", may_repeat)

    def _ended(self, what: str, may_repeat: bool) -> None:
        """It was lost before there was an answer: was it ever going to come?

        :param may_repeat: whether it does no harm to ask twice.
        """
        exchange, self.exchange = self.exchange, None
        assert exchange is not None
        # A connection that had been there for a while may have been closed before the request came.
        # That is likely, not certain, hence the other conditions.
        self._serving.pool.retire(self)
        waited = self.used > 1 or self.rested
        again = may_repeat and waited and not self._reader.started
        self.abandon()
        error = ProxyError(
            f"{self._address} {what}",
            side=Side.UPSTREAM,
            retry=Retry.REUSED_ONLY if again else Retry.NEVER,
            status=502,
            kind="connection_terminated",
        )
        if again and not self.gone:
            # Once this socket is closed there is room for another one.
            self._repeat = exchange, error
            exchange.upstream, exchange.lost = None, self
        else:
            exchange.again(error)

    # As the producer of what goes to this transport: its buffer is full, or empty again.

    def pauseProducing(self) -> None:
        if self.relay is not None:
            super().pauseProducing()
        elif self.exchange is not None:
            self._client_held = True
            self.exchange.client.hold()

    def resumeProducing(self) -> None:
        if self.relay is not None:
            super().resumeProducing()
        elif self._client_held:
            self._client_held = False
            if self.exchange is not None:
                self.exchange.client.go_on()

    # And as what feeds the client.

    def hold(self) -> None:
        """The client takes no more for now."""
        if not self.gone and not self.read_ended:
            self._paused = True
            self.transport.pauseProducing()

    def go_on(self) -> None:
        """It does again."""
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
