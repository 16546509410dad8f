"""The admin listener's HTTP: bounded in every way, and JSON whatever goes wrong.

It may be reached by whoever can reach its port, with or without a token. So a request has a time to
come and a size; a connection that waits for its client is closed in the end, and gives way to a new
one where there are too many. Twisted parses; what becomes of a request is up to ``answer``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http import HTTPChannel, HTTPFactory, Request, datetimeToString

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.model import Config

#: Seconds for a request to come whole, from its first byte (or the connection's beginning) on; and
#: for a client to take the rest of an answer, once the connection is to be closed.
REQUEST_TIMEOUT = 10.0
#: Seconds between two requests on one connection, and for a client to take an answer.
IDLE_TIMEOUT = 60.0
#: Connections at once.
CONNECTIONS = 1000
#: Bytes of a request's body; a longer one is refused, and read no further than ``DISCARDED``, so
#: that the client gets to see why.
BODY = 64 * 1024
DISCARDED = 1 << 20
#: Sent with each answer: what a browser is shown loads from here alone, and nobody frames it.
SAFETY = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; object-src 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
JSON = "application/json"

_REASONS = {400: "Bad Request", 408: "Request Timeout", 413: "Content Too Large",
            431: "Request Header Fields Too Large", 503: "Service Unavailable"}  # fmt: skip


class Refused(Exception):
    """A request is not done.

    :param status: which the client gets, with the message as ``{"error": message}``.
    :param header: more fields for the answer; ``more``: more of its body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        header: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.header = dict(header or {})
        self.body = {"error": message, **(more or {})}


def as_json(body: Any) -> bytes:
    """An answer's text."""
    return json.dumps(body, indent=2).encode() + b"\n"


class AdminRequest(Request):
    """One request, whole.

    :ivar too_long: whether its body was longer than ``BODY``; then there is nothing of it.
    """

    channel: AdminChannel
    content: BytesIO
    _log = Logger(namespace="proxykit.admin")

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._size = 0

    def gotLength(self, length: int | None) -> None:
        """Its head is there; whatever it says of its body, that is kept in memory."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """A part of its body."""
        self._size += len(data)
        if self._size <= BODY:
            self.content.write(data)
        elif self._size > DISCARDED:
            self.channel.refuse(413, f"the body is longer than {BODY} bytes")

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """It is there, whole. The base class would look for a form in its body."""
        self.content.seek(0)
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.args = {}
        self.process()

    @property
    def too_long(self) -> bool:
        """See this class."""
        return self._size > BODY

    def process(self) -> None:
        """It is there: answer it."""
        channel = self.channel
        channel.answering()
        if channel.closing:
            return
        try:
            if self.too_long:
                raise Refused(413, f"the body is longer than {BODY} bytes")
            answered = channel.factory.admin.answer(self)
        except Refused as refused:
            self.refused(refused)
        except Exception:
            self._failed()
        else:
            if isinstance(answered, Deferred):
                answered.addErrback(self._failed)

    def refused(self, why: Refused) -> None:
        """Answer it with an error."""
        self.send(why.status, as_json(why.body), JSON, why.header)

    def _failed(self, failure: Failure | None = None) -> None:
        said = "when {method} {path} was asked for"
        self._log.failure(said, failure=failure, method=self.method, path=self.path)
        if self.startedWriting or self._disconnected:
            self.channel.abort()
        else:
            text = {"error": "something went wrong inside proxykit; its log says what"}
            self.send(500, as_json(text), JSON)

    def begin(self, status: int, kind: str, header: Mapping[str, str] | None = None) -> None:
        """Set what an answer begins with.

        :param kind: its media type.
        """
        self.setResponseCode(status)
        self.setHeader("date", datetimeToString())
        for name, value in {**SAFETY, "content-type": kind, **(header or {})}.items():
            self.setHeader(name, value)

    def send(
        self, status: int, content: bytes, kind: str, header: Mapping[str, str] | None = None
    ) -> None:
        """Answer it, whole; nothing happens where the client has left."""
        if self._disconnected or self.finished:
            return
        self.begin(status, kind, header)
        self.setHeader("content-length", str(len(content)))
        self.write(content)
        self.finish()

    def send_json(self, body: Any, status: int = 200) -> None:
        """Answer it with plain data."""
        self.send(status, as_json(body), JSON)

    def field(self, name: str) -> str | None:
        """The one value of a field of its head.

        :returns: None: it is not there.
        :raises Refused: it is there twice.
        """
        found = self.requestHeaders.getRawHeaders(name.encode(), [])
        if len(found) > 1:
            raise Refused(400, f"there are {len(found)} fields {name}; expected one")
        return found[0].decode("utf-8", "replace") if found else None


class AdminChannel(HTTPChannel):
    """One connection.

    :ivar busy: whether a request is being answered.
    :ivar closing: whether it is on its way out.
    """

    requestFactory = AdminRequest
    factory: AdminSite
    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self.busy = self.closing = False
        self._resting = False
        self._deadline: Deadline | None = None

    def connectionMade(self) -> None:
        """A client has come."""
        super().connectionMade()
        self._within(REQUEST_TIMEOUT, self._late)
        self.factory.entered(self)

    def dataReceived(self, data: bytes) -> None:
        """Some of a request."""
        if self._resting:
            self._resting = False
            self._within(REQUEST_TIMEOUT, self._late)
        super().dataReceived(data)

    def answering(self) -> None:
        """A request is there, whole."""
        self.busy = True
        if not self.closing:
            self._within(None)

    def requestDone(self, request: Request) -> None:
        """It is answered."""
        self.busy, self._resting = False, True
        self._within(IDLE_TIMEOUT, self.close if self.persistent else self.abort)
        super().requestDone(request)

    def _within(self, seconds: float | None, call: Callable[[], object] | None = None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None and call is not None:
            self._deadline = self.factory.deadlines.add(seconds, call)

    def _late(self) -> None:
        self.refuse(408, f"the request did not come within {REQUEST_TIMEOUT:g} seconds")

    def refuse(self, status: int, message: str) -> None:
        """Answer before a request is there, and close."""
        if self.closing:
            return
        text = as_json({"error": message})
        fields = {
            **SAFETY,
            "content-type": JSON,
            "content-length": str(len(text)),
            "connection": "close",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        line = f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        self.transport.write(f"{line}{head}\r\n".encode() + text)
        self.close()

    def close(self) -> None:
        """Let the client have what it is to have, but not for ever."""
        if not self.closing:
            self.closing = True
            self._within(REQUEST_TIMEOUT, self.abort)
            self.loseConnection()

    def abort(self) -> None:
        """End it at once."""
        self.transport.abortConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # What the base class does here is no JSON. It has no other place for it.
        if self._receivedHeaderSize > self.totalHeadersSize or (
            self._receivedHeaderCount > self.maxHeaders
        ):
            self.refuse(431, "the head of the request is too long")
        else:
            self.refuse(400, "that is no request of HTTP/1.1")

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line does not end."""
        self.refuse(431, "a line of the request's head is too long")

    def connectionLost(self, reason: Any = None) -> None:
        """It is gone."""
        self._within(None)
        self.factory.left(self)
        super().connectionLost(reason)


class Answers(Protocol):
    """What stands behind the listener."""

    def answer(self, request: AdminRequest) -> object:
        """Answer a request, now or later, or raise ``Refused``. A Deferred that it returns is
        looked at for an error alone."""

    def running(self, running: bool) -> None:
        """The listener starts, or stops."""

    def reconfigure(self, config: Config) -> None:
        """Another configuration is in force."""


class AdminSite(HTTPFactory):
    """The factory of the admin listener. It writes no access log: who watches asks all the time.

    :param admin: what answers requests, and is told when the listener starts and stops.
    """

    noisy = False
    _log = Logger(namespace="proxykit.admin")

    def __init__(self, deadlines: Deadlines, admin: Answers) -> None:
        super().__init__(timeout=None, reactor=deadlines.clock)  # type: ignore[arg-type]
        self.deadlines = deadlines
        self.admin = admin
        self._channels: dict[AdminChannel, None] = {}

    protocol = AdminChannel  # type: ignore[assignment]

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._channels)

    def startFactory(self) -> None:
        """It listens. The base class would start a clock for its log."""
        self.admin.running(True)

    def stopFactory(self) -> None:
        """It does not listen any more: who is being answered still gets that."""
        self.admin.running(False)
        for channel in tuple(self._channels):
            if channel.busy:
                channel.persistent = 0
            else:
                channel.close()

    def entered(self, channel: AdminChannel) -> None:
        """One more connection. Where there are too many, the oldest that waits for its client goes,
        so that nobody can keep others out by holding connections."""
        if len(self._channels) >= CONNECTIONS:
            idle = next((each for each in self._channels if not each.busy), None)
            if idle is None:
                channel.refuse(503, f"there are {CONNECTIONS} connections to the admin listener")
            else:
                # It is gone at once here: more may come before the transport says so.
                self.left(idle)
                idle.abort()
        self._channels[channel] = None

    def left(self, channel: AdminChannel) -> None:
        """One connection less."""
        self._channels.pop(channel, None)

    def log(self, request: Request) -> None:
        """Say nothing."""
