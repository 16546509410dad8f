"""How to start each proxy that speaks TLS, to its clients or to its origin.

Keys are ECDSA on P-256, TLS is 1.3, the cipher is :data:`CIPHER`: the same for all of them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.peers import IDLE, Site, haproxy_program, twistd
from benchmarks.programs import HOST, connections

#: For whom every certificate is.
NAME = "www.example"
VERSION = "TLSv1.3"
CIPHER = "TLS_AES_256_GCM_SHA384"
#: A chain and its key, in the directory of a run.
PEM = "certificate.pem"
_DAY = timedelta(days=1)


def make_certificate(directory: Path) -> Path:
    """Make a certificate that signs itself; gives the file that has it and its key."""
    path = directory / PEM
    if path.exists():
        return path
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 365 * _DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return path


def proxykit(
    site: Site, mode: str = "tcp", inside: bool = True, outside: bool = False
) -> list[str]:
    """The service, with TLS ``inside``, from its clients, or ``outside``, to its origin."""
    pem = make_certificate(site.directory)
    backends = ", ".join(f'"{each}"' for each in site.backends)
    out = f'[clusters.origin.tls]\nserver_name = "{NAME}"\nca_file = "{pem}"' if outside else ""
    tls = f'[listeners.tls]\ncertificates = "{pem}"' if inside else ""
    how = "log_connections = false" + (f"\nidle_timeout = {IDLE}.0" if mode == "tcp" else "")
    text = f"""
[clusters.origin]
backends = [{backends}]
max_connections = {connections()}
{out}

[[listeners]]
name = "front"
listen = "tcp:{site.port}:interface={HOST}"
mode = "{mode}"
cluster = "origin"
max_connections = {connections()}
{how}
{tls}
"""
    return twistd(site.directory / "proxykit.toml", text)


def haproxy(site: Site, mode: str = "tcp", inside: bool = True, outside: bool = False) -> list[str]:
    """HAProxy with one thread, the same."""
    pem = make_certificate(site.directory)
    only = "ssl-min-ver TLSv1.3"
    bind = f"ssl crt {pem} {only}" if inside else ""
    out = (
        f"ssl {only} verify required ca-file {pem} verifyhost {NAME} sni str({NAME})"
        if outside
        else ""
    )
    servers = "\n".join(f"    server s{n} {each} {out}" for n, each in enumerate(site.backends))
    http = "http-reuse always" if mode == "http" else ""
    text = f"""
global
    nbthread 1
    maxconn {connections()}
    ssl-default-bind-ciphersuites {CIPHER}
    ssl-default-server-ciphersuites {CIPHER}
defaults
    mode {mode}
    timeout connect 5s
    timeout client {IDLE}s
    timeout server {IDLE}s
    timeout http-request {IDLE}s
    timeout http-keep-alive {IDLE}s
listen front
    bind {HOST}:{site.port} {bind}
    balance leastconn
    {http}
{servers}
"""
    return haproxy_program(site.directory / "haproxy.cfg", text)
