"""Telling systemd how the service is: sd_notify(3), where NOTIFY_SOCKET is set."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class Notifier:
    """See this module. Without systemd it does nothing.

    :param environ: has NOTIFY_SOCKET, and WATCHDOG_USEC where a sign of life is wanted.
    :param clock: when to give that: in half of the time.
    """

    _log = Logger()

    def __init__(self, environ: Mapping[str, str], clock: IReactorTime) -> None:
        where = environ.get("NOTIFY_SOCKET", "")
        # An abstract one begins with a NUL, written as @.
        self._where = f"\0{where[1:]}" if where.startswith("@") else where
        self._failed = self._ends = False
        self._alive = LoopingCall(self._tell, "WATCHDOG=1")
        self._alive.clock = clock
        microseconds = environ.get("WATCHDOG_USEC", "")
        self._every = int(microseconds) / 2e6 if self._where and microseconds.isdigit() else 0.0

    def ready(self) -> None:
        """It serves, by the configuration that is in force now."""
        if self._ends:
            return
        self._tell("READY=1")
        if self._every and not self._alive.running:
            self._alive.start(self._every)

    def reloading(self) -> None:
        """It reads its configuration again; ``ready`` follows, whatever comes of it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """It accepts no more."""
        self._ends = True
        self._tell("STOPPING=1")

    def stop(self) -> None:
        """It is about to end."""
        self._ends = True
        if self._alive.running:
            self._alive.stop()

    def _tell(self, state: str) -> None:
        if not self._where:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as skt:
                skt.sendto(state.encode(), self._where)
        except OSError as error:
            if not self._failed:
                self._failed = True
                why = error.strerror or error
                self._log.warn("NOTIFY_SOCKET: systemd cannot be told: {why}", why=why)
