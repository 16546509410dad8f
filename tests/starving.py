"""A proxy in a process of its own, with few descriptors; told what to do, line by line.

It is started by tests.net.test_listener: ``python -m tests.starving PORT-OF-THE-BACKEND LIMIT``.
Its answers are lines of JSON; its timeouts pass when it is told ``advance SECONDS``.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.stdio import StandardIO
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.protocols.basic import LineReceiver

from proxykit.model import Address, Backend, Cluster, Config, Listener
from proxykit.modes.tcp import TcpSettings
from proxykit.ops.service import ProxyService

reactor: Any = the_reactor


class ClockedReactor(Clock):
    """The process's sockets, with a clock that is told the time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class Orders(LineReceiver):
    """Reads orders, answers with the state of things."""

    delimiter = b"\n"

    def __init__(self, service: ProxyService, clock: Clock, lines: list[str]) -> None:
        self._service = service
        self._clock = clock
        self._lines = lines

    def connectionMade(self) -> None:
        self._answer()

    def lineReceived(self, line: bytes) -> None:
        order, _, argument = line.decode().partition(" ")
        if order == "advance":
            self._clock.advance(float(argument))
        # What that has set off is seen a moment later.
        reactor.callLater(0.05, self._answer)

    def _answer(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        state = {
            **self._service.listeners["front"].snapshot(),
            "log": self._lines,
            "cpu": used.ru_utime + used.ru_stime,
        }
        self.sendLine(json.dumps(state).encode())

    def connectionLost(self, reason: Any) -> None:
        reactor.stop()


def main(port: int, limit: int) -> None:
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"] != "proxykit.tcp" or event["log_level"].name != "info":
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    clock = ClockedReactor()
    service = ProxyService(clock)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    service.apply(
        Config(
            (Listener("front", "tcp:0:interface=127.0.0.1", "tcp", "web", 10000, TcpSettings()),),
            (Cluster("web", (Backend(Address("127.0.0.1", port)),)),),
        )
    )
    service.startService()
    lines.clear()
    StandardIO(Orders(service, clock, lines))
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
