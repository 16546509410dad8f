"""Certificates for tests, made once a run, and contexts of the standard library's with them."""

from __future__ import annotations

import ipaddress
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from twisted.trial.unittest import SynchronousTestCase, TestCase

AnyCase = TestCase | SynchronousTestCase
V2, V3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = (V2, V3)
#: What a subject can be made of.
Subject = tuple[tuple[x509.ObjectIdentifier, str], ...]


@cache
def authority(called: str = "ca") -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Who signs."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(((x509.NameOID.COMMON_NAME, called),))
    built = _builder(name, name, key, 365).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    return key, built.sign(key, hashes.SHA256())


@cache
def leaf(
    *names: str,
    signer: str = "ca",
    days: float = 90,
    subject: Subject = (),
    common_name: bool = True,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A certificate for names and IP addresses.

    :param signer: empty: it signs itself.
    :param days: until its end.
    :param common_name: whether the first name is also that.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = subject or (((x509.NameOID.COMMON_NAME, names[0]),) if common_name else ())
    name = _name(subject)
    signing, issuer = (key, name) if not signer else _signer(signer)
    built = _builder(name, issuer, key, days)
    if names and "no-san" not in names:
        built = built.add_extension(
            x509.SubjectAlternativeName([_general(each) for each in names]), critical=False
        )
    return key, built.sign(signing, hashes.SHA256())


def _signer(called: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Name]:
    key, certificate = authority(called)
    return key, certificate.subject


def _general(text: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    return x509.DNSName(text)


def _name(subject: Subject) -> x509.Name:
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in subject])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
    )


def pem(*names: str, passphrase: bytes = b"", **more: Any) -> bytes:
    """A certificate and its key."""
    key, certificate = leaf(*names, **more)
    return certificate.public_bytes(Encoding.PEM) + key_pem(key, passphrase)


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes = b"") -> bytes:
    secrecy = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secrecy)


def der(*names: str, **more: Any) -> bytes:
    """A certificate as the other side has it."""
    return leaf(*names, **more)[1].public_bytes(Encoding.DER)


def authority_pem(called: str = "ca") -> bytes:
    return authority(called)[1].public_bytes(Encoding.PEM)


def put(test: AnyCase, data: bytes) -> str:
    """A file with this in it."""
    path = test.mktemp()
    Path(path).write_bytes(data)
    return path


def pem_file(test: AnyCase, *names: str, **more: Any) -> str:
    return put(test, pem(*names, **more))


def ca_file(test: AnyCase, called: str = "ca") -> str:
    return put(test, authority_pem(called))


# Contexts, by the standard library alone.


def server_context(
    test: AnyCase,
    *names: str,
    version: ssl.TLSVersion | None = None,
    client_ca: str = "",
    **more: Any,
) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pem_file(test, *(names or ("a.example",)), **more))
    if client_ca:
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(cadata=authority_pem(client_ca).decode())
    return _of_version(made, version)


def client_context(
    test: AnyCase | None = None,
    *names: str,
    version: ssl.TLSVersion | None = None,
    **more: Any,
) -> ssl.SSLContext:
    """Of a client that believes ``ca``, and shows a certificate for these names, if any."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.load_verify_locations(cadata=authority_pem().decode())
    if names or more:
        assert test is not None
        made.load_cert_chain(pem_file(test, *names, **more))
    return _of_version(made, version)


def _of_version(made: ssl.SSLContext, version: ssl.TLSVersion | None) -> ssl.SSLContext:
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made
