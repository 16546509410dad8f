"""Names only, for ``twistd``: what they stand for is imported when it is used."""

from twisted.application.service import ServiceMaker

proxykit = ServiceMaker(
    "proxykit",
    "proxykit.tap",
    "A proxy that knows how many connections it has left.",
    "proxykit",
)
