"""The certificates of a listener: read from files, chosen by name, read again when files change."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from cryptography import x509
from twisted.logger import Logger

from proxykit.core.rarely import Rarely

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.model import ListenerTls

#: Seconds between two looks at the files.
LOOK_AGAIN = 5.0
#: How long before its end a certificate is warned of, and seconds between two warnings.
EXPIRES_SOON = timedelta(days=14)
WARN_AGAIN = 86400.0
#: TLS 1.2 ciphers of Mozilla's intermediate profile (wiki.mozilla.org/Security/Server_Side_TLS,
#: version 5.7); those of TLS 1.3 are OpenSSL's own.
CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)


def context(server: bool) -> ssl.SSLContext:
    """What both ends have in common: versions, ciphers, no compression, no renegotiation."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if server:
        # Each full handshake with TLS 1.3 sends them. One is enough for the next connection.
        made.num_tickets = 1
    return made


@frozen
class Certificate:
    """One PEM file: a chain, its leaf first, and its key.

    :ivar names: of the leaf, in lower case: what a client may ask for.
    """

    path: Path
    names: tuple[str, ...]
    expires: datetime
    context: ssl.SSLContext = field(repr=False)


def files(paths: Iterable[str]) -> list[Path]:
    """The PEM files that these are, or that are in these directories, in the order of reading.

    :raises ValueError: there is none; its message says where.
    """
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        try:
            inside = sorted(path.glob("*.pem")) if path.is_dir() else [path]
        except OSError as error:
            raise ValueError(f"{text}: {error.strerror}") from None
        if not inside:
            raise ValueError(f"{text}: no .pem file is in this directory")
        found += inside
    if not found:
        raise ValueError("expected at least one certificate")
    return found


def read(path: Path, settings: ListenerTls) -> Certificate:
    """One file.

    :raises ValueError: it is no chain and its key; its message says what is wrong.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    try:
        chain = x509.load_pem_x509_certificates(text)
    except ValueError:
        raise ValueError(f"{path}: there is no certificate in it") from None
    if b"PRIVATE KEY-----" not in text:
        raise ValueError(f"{path}: there is no key in it; expected a chain and its key")
    made = context(True)
    try:
        made.load_cert_chain(path, password=no_password)
    except (ssl.SSLError, OSError) as error:
        raise ValueError(f"{path}: {why(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    made.set_alpn_protocols(list(settings.alpn))
    if settings.client_ca:
        made.verify_mode = _AUTH[settings.client_auth]
        try:
            made.load_verify_locations(settings.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"client_ca {settings.client_ca}: {why(error)}") from None
    try:
        names = _names(chain[0])
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(f"{path}: its names cannot be read: {error}") from None
    return Certificate(path, names, chain[0].not_valid_after_utc, made)


_AUTH = {"optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def no_password() -> str:
    """Instead of asking for it at the terminal."""
    raise ValueError("its key has a passphrase")


_REASONS = {
    "KEY_VALUES_MISMATCH": "its key is not that of its first certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in it",
}


def why(error: OSError) -> str:
    """What is wrong with a file that OpenSSL was to read."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    reason: Any = error.reason  # None, for what Python has no name for
    if not isinstance(reason, str):
        return "it cannot be read: expected PEM"
    return _REASONS.get(reason, reason.replace("_", " ").lower())


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        named = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = named.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = [
            str(each.value)
            for each in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        ]
    return tuple(name.lower().removesuffix(".") for name in names)


class Certificates:
    """Those of one listener. A client that names none, or one that nobody has, gets the first.

    :param listener: its name, for the log.
    :raises ValueError: they cannot be read.
    :ivar context: for new connections.
    """

    _log = Logger()

    def __init__(self, listener: str, settings: ListenerTls, deadlines: Deadlines) -> None:
        self._listener = listener
        self._settings = settings
        self._deadlines = deadlines
        self._rarely = Rarely(deadlines.clock, WARN_AGAIN)
        self._seen = self._look()
        self.context = self._read()
        self._looking: Deadline | None = None

    def watch(self) -> None:
        """From now on, look at the files now and then."""
        self._looking = self._deadlines.add(LOOK_AGAIN, self._look_again)

    def stop(self) -> None:
        """Do not look any more."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self) -> list[tuple[object, ...]]:
        """What tells files apart that have changed."""
        seen: list[tuple[object, ...]] = []
        for path in (*self._settings.certificates, self._settings.client_ca):
            if not path:
                continue
            inside = sorted(Path(path).glob("*.pem")) if os.path.isdir(path) else [Path(path)]
            for each in inside:
                try:
                    found = each.stat()
                    seen.append((str(each), found.st_mtime_ns, found.st_size, found.st_ino))
                except OSError as error:
                    seen.append((str(each), error.errno))
        return seen

    def _look_again(self) -> None:
        self.watch()
        self.look()

    def look(self) -> None:
        """Read the files again, if they have changed."""
        seen = self._look()
        if seen == self._seen:
            self._warn_of_ends()
            return
        self._seen = seen
        try:
            self.context = self._read()
        except ValueError as error:
            self._log.error(
                "{listener}: certificates have changed and cannot be read, so the old ones stay:"
                " {why}",
                listener=self._listener,
                why=error,
            )
        else:
            self._log.info("{listener}: certificates read again", listener=self._listener)

    def _read(self) -> ssl.SSLContext:
        found = [read(path, self._settings) for path in files(self._settings.certificates)]
        by_name: dict[str, ssl.SSLContext] = {}
        for each in found:
            for name in each.names:
                by_name.setdefault(name, each.context)
        self._found = found
        first = found[0].context
        first.sni_callback = _Chooser(first, by_name)
        self._warn_of_ends()
        return first

    def _warn_of_ends(self) -> None:
        now = datetime.now(UTC)
        for each in self._found:
            if each.expires - now < EXPIRES_SOON and self._rarely.say(str(each.path)) is not None:
                self._log.warn(
                    "{listener}: the certificate in {path} {end} {when:%Y-%m-%d %H:%M} UTC",
                    listener=self._listener,
                    path=each.path,
                    end="has ended" if each.expires <= now else "ends",
                    when=each.expires,
                )


class _Chooser:
    """Finds the certificate that a client asks for, in the handshake."""

    def __init__(self, first: ssl.SSLContext, by_name: dict[str, ssl.SSLContext]) -> None:
        self._first = first
        self._by_name = by_name

    def __call__(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name is None:
            return
        connection.asked = name  # type: ignore[attr-defined]
        name = name.lower().removesuffix(".")
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name.get("*." + name.partition(".")[2], self._first)
        if found is not self._first:
            connection.context = found
