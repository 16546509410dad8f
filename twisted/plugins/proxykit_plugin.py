"""Names only, for ``twistd``: what they stand for is imported when it is used."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

proxykit = ServiceMaker(
    "proxykit",
    "proxykit.tap",
    "A proxy that knows how many connections it has left.",
    "proxykit",
)

proxykit_reactor = Reactor(
    "proxykit", "proxykit.net.reactor", "epoll(7) with a short way through; Linux only."
)
