"""Where something goes: routers, from what a mode has seen to a route."""

from __future__ import annotations

from zope.interface import implementer

from proxykit.interfaces import IRouter
from proxykit.model import Route


@implementer(IRouter)
class Everything:
    """Sends everything to one cluster."""

    def __init__(self, cluster: str) -> None:
        self._route = Route(cluster)

    def route(self, subject: object) -> Route:
        """The one route."""
        return self._route
