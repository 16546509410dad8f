"""A mode for proxykit that answers every line in upper case."""

from attrs import field, frozen
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.policies import TimeoutMixin
from zope.interface import implementer

from proxykit.checks import positive_seconds, whole_between
from proxykit.interfaces import IMode, ISnapshot


@frozen
class ShoutSettings:
    """The keys of a listener with ``mode = "shout"`` that are this mode's own.

    :ivar idle_timeout: seconds without a line, then the connection is closed.
    :ivar marks: how many exclamation marks follow an answer.
    """

    idle_timeout: float = field(default=60.0, metadata={"check": positive_seconds})
    marks: int = field(default=0, metadata={"check": whole_between(0, 10)})


@implementer(ISnapshot)
class ShoutProtocol(LineOnlyReceiver, TimeoutMixin):
    """One client; its lines may end in CR LF or in LF alone."""

    delimiter = b"\n"

    def __init__(self, settings):
        self.settings = settings
        self.lines = 0

    def connectionMade(self):
        # The transport is its own producer: while the client does not read what it is answered,
        # nothing more is read from it, and so nothing piles up.
        self.transport.registerProducer(self.transport, True)
        self.setTimeout(self.settings.idle_timeout)

    def lineReceived(self, line):
        self.resetTimeout()
        self.lines += 1
        self.sendLine(line.removesuffix(b"\r").upper() + b"!" * self.settings.marks)

    def lineLengthExceeded(self, line):
        self.transport.abortConnection()

    def timeoutConnection(self):
        self.transport.abortConnection()

    def connectionLost(self, reason):
        self.setTimeout(None)

    def snapshot(self):
        return {"lines": self.lines}


class ShoutFactory(Factory):
    """The clients of one listener."""

    noisy = False

    def __init__(self, settings):
        self.settings = settings

    def buildProtocol(self, addr):
        protocol = ShoutProtocol(self.settings)
        protocol.factory = self
        return protocol


@implementer(IMode)
class ShoutMode:
    """What ``mode = "shout"`` stands for."""

    settings = ShoutSettings

    def check(self, listener):
        if listener.cluster:
            raise ValueError("shout answers by itself; expected no cluster")

    def factory(self, listener, flow, connector):
        return ShoutFactory(listener.settings)
