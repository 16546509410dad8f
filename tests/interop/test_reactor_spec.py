"""Twisted's own tests of reactors, run against the proxykit one: they are its specification.

They come with Twisted. Those that say something else about this reactor are named below, with the
reason; docs/design.rst tells more.
"""

from __future__ import annotations

import importlib
import os
import select
from typing import Any

REACTOR = "proxykit.net.reactor.ProxykitReactor"
MODULES: dict[str, tuple[str, ...]] = {
    "test_core": ("SystemEventTestsBuilder",),
    "test_fdset": ("ReactorFDSetTestsBuilder",),
    "test_newtls": ("ProducerTestsMixin",),
    "test_process": ("ProcessTestsBuilder", "PTYProcessTestsBuilder"),
    "test_socket": (
        "IReactorSocketVerificationTestsBuilder",
        "AdoptStreamPortErrorsTestsBuilder",
        "AdoptStreamConnectionErrorsTestsBuilder",
        "AdoptDatagramPortErrorsTestsBuilder",
    ),
    "test_stdio": ("StdioFilesTests",),
    "test_tcp": (
        "TCP4ClientTestsBuilder",
        "TCP6ClientTestsBuilder",
        "TCPPortTestsBuilder",
        "TCPFDPortTestsBuilder",
        "TCPConnectionTestsBuilder",
        "TCP4ConnectorTestsBuilder",
        "TCP6ConnectorTestsBuilder",
        "TCPTransportTestsBuilder",
        "AdoptStreamConnectionTestsBuilder",
        "TestBindAddressBuilder",
        "AbortConnectionTests",
    ),
    "test_threads": ("ThreadTestsBuilder",),
    "test_time": ("TimeTestsBuilder",),
    "test_tls": (
        "SSLClientTestsMixin",
        "StartTLSClientTestsMixin",
        "TLSPortTestsBuilder",
        "AbortSSLConnectionTests",
    ),
    "test_udp": ("UDPServerTestsBuilder", "UDPFDServerTestsBuilder"),
    "test_unix": (
        "UNIXTestsBuilder",
        "UNIXDatagramTestsBuilder",
        "UNIXPortTestsBuilder",
        "UNIXFDPortTestsBuilder",
        "UNIXAdoptStreamConnectionTestsBuilder",
        "UnixClientTestsBuilder",
    ),
}
#: Whose transports are Twisted's own.
NOT_OURS = ("test_udp",)
LOST_DESCRIPTOR = "a closed descriptor leaves epoll unnoticed, as with the stock epoll reactor"
LOG_PREFIX = "events of our transports have no log prefix: setting one costs more than the event"
EXCEPTIONS = {
    "test_lostFileDescriptor": LOST_DESCRIPTOR,
    "test_logPrefix": LOG_PREFIX,
}
if os.getuid() == 0:
    # It starts this Python as another user, who may not be let into the directory it is in.
    EXCEPTIONS["test_changeUID"] = "fails as root with every reactor where Python is root's own"


def _classes() -> dict[str, Any]:
    made: dict[str, Any] = {}
    for module, names in MODULES.items():
        builders = vars(importlib.import_module(f"twisted.internet.test.{module}"))
        for name in names:
            # Seconds; a reactor that hangs would take Twisted's two minutes for each test.
            own: dict[str, Any] = {"_reactors": [REACTOR], "__module__": __name__, "timeout": 20}
            for test, why in EXCEPTIONS.items():
                if hasattr(builders[name], test) and module not in NOT_OURS:
                    own[test] = _skipped(why)
            made.update(type(name, (builders[name],), own).makeTestCaseClasses())
    return made


def _skipped(why: str) -> Any:
    def test(self: Any) -> None:
        """Explained in docs/design.rst."""

    test.skip = why  # type: ignore[attr-defined]
    return test


if hasattr(select, "epoll"):
    globals().update(_classes())
