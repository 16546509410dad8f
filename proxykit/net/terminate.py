"""TLS in: what the connections of one listener begin with, before its mode gets them."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve
from cryptography import x509
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.logger import Logger

from proxykit.core.rarely import Rarely
from proxykit.model import ConnInfo, TlsInfo
from proxykit.net.tls import Tls, Truncated

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.net.certificates import Certificates

#: Why there is no TLS where the deadline has passed.
LATE = "handshake timeout"
#: What is given a connection whose handshake is done, and what is known of it.
Secured = Callable[[Tls, ConnInfo], object]


class Terminating:
    """What the connections of one listener have in common that begin with TLS.

    :param timeout: seconds for the whole handshake.
    :ivar handshakes: how many were done; ``resumed``: those that went on from an earlier session.
    :ivar failed: those that came to nothing, by the reason: OpenSSL's, or ours.
    """

    _log = Logger()

    def __init__(self, certificates: Certificates, timeout: float, deadlines: Deadlines) -> None:
        self.certificates = certificates
        self.timeout = timeout
        self.deadlines = deadlines
        self.handshakes = 0
        self.resumed = 0
        self.failed: dict[str, int] = {}
        self._rarely = Rarely(deadlines.clock)

    def begin(self, info: ConnInfo, secured: Secured) -> Tls:
        """The protocol for a connection that begins with a handshake."""
        handshake = _Handshake(self, info, secured)
        tls = Tls(self.certificates.context, True, handshake.done, handshake.failed)
        tls.info = info
        handshake.deadline = self.deadlines.add(self.timeout, lambda: handshake.late(tls))
        return tls

    def count_on(self, former: Terminating) -> None:
        """Its listener has other settings from now on: go on where ``former`` has come to."""
        self.handshakes, self.resumed, self.failed = (
            former.handshakes,
            former.resumed,
            former.failed,
        )

    def count_failed(self, info: ConnInfo, reason: str) -> None:
        """One more that came to nothing; the log has the first of many."""
        self.failed[reason] = self.failed.get(reason, 0) + 1
        self._rarely.warn_of(self._log, reason, info, ": no TLS: {why}", reason)

    def snapshot(self) -> dict[str, Any]:
        """For ``/api/listeners``."""
        return {
            "handshakes": self.handshakes,
            "resumed": self.resumed,
            "failed": dict(self.failed),
        }


class _Handshake:
    """One of them."""

    __slots__ = ("_info", "_late", "_of", "_secured", "deadline")

    def __init__(self, of: Terminating, info: ConnInfo, secured: Secured) -> None:
        self._of = of
        self._info = info
        self._secured = secured
        self._late = False
        self.deadline: Deadline | None = None

    def done(self, tls: Tls) -> None:
        self._rest()
        self._of.handshakes += 1
        self._of.resumed += bool(tls.ssl.session_reused)
        self._secured(tls, evolve(self._info, tls=tls_info(tls)))

    def failed(self, tls: Tls, problem: BaseException) -> None:
        self._rest()
        self._of.count_failed(self._info, LATE if self._late else reason_of(problem))

    def late(self, tls: Tls) -> None:
        self.deadline = None
        self._late = True
        tls.raw.abortConnection()

    def _rest(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def reason_of(problem: BaseException) -> str:
    """Why there is no TLS, in a few words: a fixed set of them."""
    reason = getattr(problem, "reason", None)
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {problem.verify_message}"
    if isinstance(reason, str):
        return reason.replace("_", " ").lower()
    if isinstance(problem, Truncated):
        return "it ended in the middle of the handshake"
    if isinstance(problem, ConnectionAborted):
        return "aborted here"
    if isinstance(problem, ConnectionLost | ConnectionDone):
        return "reset in the middle of the handshake"
    return str(problem).rstrip(".") or type(problem).__name__


def tls_info(tls: Tls) -> TlsInfo:
    """What a handshake has come to."""
    connection = tls.ssl
    cipher = connection.cipher()
    der = tls.getPeerCertificate()
    return TlsInfo(
        version=connection.version() or "",
        cipher=cipher[0] if cipher else "",
        name=getattr(connection, "asked", None) or "",
        protocol=connection.selected_alpn_protocol() or "",
        subject="" if der is None else subject_of(der),
        fingerprint="" if der is None else hashlib.sha256(der).hexdigest(),
    )


def subject_of(der: bytes) -> str:
    """Whom a certificate is for, as RFC 4514 writes it, in printable ASCII."""
    text = x509.load_der_x509_certificate(der).subject.rfc4514_string()
    return "".join(
        each if " " <= each <= "~" else "".join(f"\\{byte:02X}" for byte in each.encode())
        for each in text
    )
