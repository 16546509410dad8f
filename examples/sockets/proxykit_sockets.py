"""A source of backends: all sockets in a directory, such as those of workers that come and go."""

import os

from attrs import field, frozen
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from proxykit.checks import positive_seconds
from proxykit.interfaces import IBackendSource
from proxykit.model import Address, Backend

log = Logger()


@frozen
class SocketsSettings:
    """
    :ivar directory: where the sockets are.
    :ivar interval: seconds between two looks.
    """

    directory: str
    interval: float = field(default=1.0, metadata={"check": positive_seconds})


@implementer(IBackendSource)
class SocketsSource:
    settings = SocketsSettings

    def check(self, settings):
        if not os.path.isdir(settings.directory):
            raise ValueError(f"expected a directory, not {settings.directory!r}")

    def watch(self, settings, tell, reactor, cluster):
        told = ()

        def look():
            nonlocal told
            try:
                names = sorted(os.listdir(settings.directory))
            except OSError as error:
                log.warn("{cluster}: {why}", cluster=cluster, why=error)
                return  # what was told last stands
            paths = (os.path.abspath(os.path.join(settings.directory, name)) for name in names)
            found = tuple(Backend(Address(path, 0)) for path in paths if path.endswith(".sock"))
            if found and found != told:
                told = found
                tell(found)

        call = LoopingCall(look)
        call.clock = reactor
        call.start(settings.interval)
        return call.stop
