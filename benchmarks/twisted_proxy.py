"""Twisted's reverse proxy on epoll: ``python -m benchmarks.twisted_proxy PORT BACKEND``.

By hand, and not with twistd, which would write a log line for each request.
"""

from __future__ import annotations

import sys

from twisted.internet import epollreactor


def main(port: str, backend: str) -> None:
    """Pass requests on until a signal comes."""
    epollreactor.install()
    from twisted.internet import reactor
    from twisted.web.http import Request
    from twisted.web.proxy import ProxyClientFactory, ReverseProxyResource
    from twisted.web.server import Site

    class QuietSite(Site):
        noisy = False

        def log(self, request: Request) -> None:
            """Nothing, where the original formats a line even if nobody reads it."""

    host, _, backend_port = backend.rpartition(":")
    ProxyClientFactory.noisy = False
    site = QuietSite(ReverseProxyResource(host, int(backend_port), b""))
    reactor.listenTCP(int(port), site, backlog=4096, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
