"""TLS out: the handshake with a backend, and whether it is whom it should be."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from cryptography import x509
from service_identity import VerificationError
from service_identity.cryptography import (
    extract_patterns,
    verify_certificate_hostname,
    verify_certificate_ip_address,
)

from proxykit.model import Address
from proxykit.net.certificates import context, no_password, why
from proxykit.net.tls import Failed, Ready, Tls

if TYPE_CHECKING:
    from proxykit.model import Backend, ClusterTls

#: Sessions that are kept to be resumed, for so many backends.
MOST_SESSIONS = 4096


class WrongCertificate(Exception):
    """The backend is not whom it should be."""


class TlsClient:
    """TLS as one cluster has it set.

    :raises ValueError: a file cannot be read; its message says which and why.
    """

    def __init__(self, settings: ClusterTls) -> None:
        self._settings = settings
        #: By address, and by whom they were made with.
        self._sessions: dict[tuple[Address, str], ssl.SSLSession] = {}
        made = self._context = context(False)
        made.check_hostname = False  # service_identity does that, and says what did not match
        made.verify_mode = ssl.CERT_REQUIRED if settings.verify else ssl.CERT_NONE
        if settings.ca_file:
            try:
                made.load_verify_locations(settings.ca_file)
            except OSError as error:
                raise ValueError(f"ca_file {settings.ca_file}: {why(error)}") from None
        else:
            made.load_default_certs()
        if settings.certificate:
            try:
                made.load_cert_chain(settings.certificate, password=no_password)
            except OSError as error:
                raise ValueError(f"certificate {settings.certificate}: {why(error)}") from None
            except ValueError as error:
                raise ValueError(f"certificate {settings.certificate}: {error}") from None

    def begin(self, backend: Backend, ready: Ready, failed: Failed) -> Tls:
        """The protocol for a connection to a backend.

        :param ready: called when it is whom it should be.
        """
        name = self.name_of(backend)
        asked = None if _is_ip(name) else name

        def done(tls: Tls) -> None:
            try:
                self._verify(tls, name)
            except WrongCertificate as problem:
                tls.raw.abortConnection()
                # Without its traceback, which refers to tls, and to who is told.
                failed(tls, problem.with_traceback(None))
                return
            ready(tls)

        session = self._sessions.get((backend.address, name))
        return Tls(self._context, False, done, failed, asked, session)

    def name_of(self, backend: Backend) -> str:
        """Whom a backend is taken for: what is set, else what it was given by."""
        if self._settings.server_name:
            return self._settings.server_name
        if backend.name:
            return Address.parse(backend.name).host
        return "localhost" if backend.address.is_unix else backend.address.host

    def keep_session(self, backend: Backend, tls: Tls) -> None:
        """The next connection to this backend may resume this one's session."""
        session = tls.ssl.session
        if session is not None and session.has_ticket:
            if len(self._sessions) >= MOST_SESSIONS:
                self._sessions.clear()
            self._sessions[backend.address, self.name_of(backend)] = session

    def _verify(self, tls: Tls, name: str) -> None:
        if not self._settings.verify:
            return
        der = tls.getPeerCertificate()
        if der is None:
            raise WrongCertificate("it has shown no certificate")
        certificate = x509.load_der_x509_certificate(der)
        verify = verify_certificate_ip_address if _is_ip(name) else verify_certificate_hostname
        try:
            verify(certificate, name)
        except VerificationError:
            found = ", ".join(sorted(str(_text(each)) for each in extract_patterns(certificate)))
            wrong = f"its certificate is for {found or 'nobody'}, not for {name}"
        except Exception as error:  # a certificate that service_identity can make nothing of
            wrong = f"its certificate cannot be read: {error}"
        else:
            return
        # Not in there: what it is raised in the course of refers to tls.
        raise WrongCertificate(wrong)


def _text(pattern: object) -> str:
    found = getattr(pattern, "pattern", pattern)
    return found.decode("ascii", "replace") if isinstance(found, bytes) else str(found)


def _is_ip(name: str) -> bool:
    return Address(name, 1).is_ip
