"""Questions to name servers: by UDP, and by TCP where the answer does not fit into that.

The messages are twisted.names'. Its resolver is not used: it looks at ``/etc/resolv.conf`` by a
timer of its own and keeps connections, neither of which ends when nobody asks any more. Here a
question is a coroutine: who cancels it leaves nothing behind.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ClientFactory, connectionDone
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

#: The address and the port of a name server.
Server = tuple[str, int]

RESOLV_CONF = "/etc/resolv.conf"
#: How often each server is asked before none has an answer.
ROUNDS = 2
#: As many as the system's own resolver reads.
_MOST_SERVERS = 3
#: Bytes of a datagram.
_LARGEST = 65535

_SAID = {
    dns.EFORMAT: "it does not understand the question (FORMERR)",
    dns.ESERVER: "it has failed (SERVFAIL)",
    dns.ENOTIMP: "it cannot do that (NOTIMP)",
    dns.EREFUSED: "it refuses (REFUSED)",
}


class NoAnswer(Exception):
    """Nothing was found out, and why."""


def configured(path: str = RESOLV_CONF) -> list[Server]:
    """The name servers of this machine; where none is named, one on it, as for everybody."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = list(_named(text))[:_MOST_SERVERS]
    return found or [("127.0.0.1", dns.PORT)]


def _named(text: str) -> Iterator[Server]:
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_]:
                try:
                    yield str(ipaddress.ip_address(address)), dns.PORT
                except ValueError:
                    continue


class Resolver:
    """Asks one server after the other.

    :param servers: empty: those of this machine, as they are when a question is asked.
    :param timeout: seconds for one question to one server.
    """

    def __init__(self, servers: Sequence[Server], timeout: float, reactor: Any) -> None:
        self._servers = list(servers)
        self._timeout = timeout
        self._reactor = reactor

    async def ask(self, name: str, kind: int) -> dns.Message:
        """The first answer that there is, be it that there is no such name (``dns.ENAME``).

        :param kind: such as ``dns.A``.
        :raises NoAnswer: no server has one.
        """
        why = ""
        for server in (self._servers or configured()) * ROUNDS:
            question = dns.Message(dns.randomSource(), recDes=1)
            question.addQuery(name.encode("ascii"), kind, dns.IN)
            try:
                message = await self._by_udp(server, question)
                if message.trunc:
                    message = await self._by_tcp(server, question)
            except CancelledError:
                raise
            except TimeoutError:
                why = f"no answer within {self._timeout:g} s"
            except Exception as error:  # the kernel's reasons, and Twisted's
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            else:
                if message.rCode in (dns.OK, dns.ENAME):
                    return message
                why = _SAID.get(message.rCode, f"it says {message.rCode}")
            why = f"{_shown(server)}: {why}"
        raise NoAnswer(why)

    async def _by_udp(self, server: Server, question: dns.Message) -> dns.Message:
        asked = _Datagram(question, server)
        self._reactor.addReader(asked)
        try:
            return await asked.answer.addTimeout(self._timeout, self._reactor)
        finally:
            self._reactor.removeReader(asked)
            asked.close()

    async def _by_tcp(self, server: Server, question: dns.Message) -> dns.Message:
        factory = _StreamFactory(question)
        connector = self._reactor.connectTCP(*server, factory, timeout=self._timeout)
        try:
            return await factory.answer.addTimeout(self._timeout, self._reactor)
        finally:
            connector.disconnect()


def _shown(server: Server) -> str:
    host, port = server
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Question:
    """A question that is under way."""

    def __init__(self, question: dns.Message) -> None:
        self.question = question
        self.answer: Deferred[dns.Message] = Deferred()

    def hear(self, data: bytes) -> None:
        """An answer, or something else: then it goes on."""
        message = dns.Message()
        try:
            message.fromStr(data)
        except Exception:  # whatever a stranger's bytes may do to the parser
            return
        asked = (message.id, message.queries) == (self.question.id, self.question.queries)
        if message.answer and asked and not self.answer.called:
            self.answer.callback(message)

    def fail(self, reason: Failure | Exception) -> None:
        """There will be none."""
        if not self.answer.called:
            self.answer.errback(reason)


@implementer(IReadDescriptor)
class _Datagram(_Question):
    """By UDP, from a socket of its own, and so from a port that nobody can guess.

    Not one of the reactor's, which logs each that it closes, and does not tell why.

    :raises OSError: there is no way to the server.
    """

    def __init__(self, question: dns.Message, server: Server) -> None:
        super().__init__(question)
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            # From now on nobody else can answer, and the kernel tells when nobody is there.
            self._socket.connect(server)
            self._socket.send(question.toStr())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """See ``IFileDescriptor``."""
        return self._socket.fileno()

    def doRead(self) -> None:
        """See ``IReadDescriptor``."""
        try:
            data = self._socket.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(error)
        else:
            self.hear(data)

    def connectionLost(self, reason: Failure) -> None:
        """There is an error to be read, and nothing else."""
        self.doRead()
        self.fail(reason)

    def logPrefix(self) -> str:
        """See ``ILoggingContext``."""
        return "dns"


class _Stream(Int16StringReceiver):
    """By TCP."""

    factory: Any

    def connectionMade(self) -> None:
        self.sendString(self.factory.question.toStr())  # type: ignore[no-untyped-call]

    def stringReceived(self, data: bytes) -> None:
        self.factory.hear(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.fail(reason)


class _StreamFactory(ClientFactory, _Question):
    noisy = False
    protocol = _Stream

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self.fail(reason)
