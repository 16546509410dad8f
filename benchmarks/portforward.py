"""Twisted's port forwarder on the stock reactor: ``python -m benchmarks.portforward PORT BACKEND``.

By hand, and not with twistd, which would write two log lines for each connection.
"""

from __future__ import annotations

import sys

from twisted.internet import epollreactor


def main(port: str, backend: str) -> None:
    """Relay until a signal comes."""
    epollreactor.install()
    from twisted.internet import reactor
    from twisted.protocols.portforward import ProxyClientFactory, ProxyFactory

    host, _, backend_port = backend.rpartition(":")
    ProxyClientFactory.noisy = False
    factory = ProxyFactory(host, int(backend_port))
    factory.noisy = False
    reactor.listenTCP(int(port), factory, backlog=4096, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
