"""TLS out, over sockets: whom a backend has to be, and what becomes of one that is not."""

from __future__ import annotations

import ssl
from typing import Any

from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxykit.errors import ConfigError
from proxykit.model import Address, Backend, Cluster, ClusterTls, Config
from proxykit.net.tls_client import TlsClient
from proxykit.ops.service import ProxyService
from tests.sockets import TIMEOUT, ClockedReactor, End, hear, start_backend, until
from tests.tls_certificates import ca_file, pem_file, put
from tests.tls_certificates import pem as made_pem
from tests.tls_sockets import SecureProxy, SecureServer, start_secure, start_secure_backend


class Case(TestCase):
    """A proxy of mode tcp before backends with TLS."""

    timeout = TIMEOUT

    async def start(self, *names: str, **more: Any) -> None:
        """One backend with a certificate for these names."""
        self.backend: SecureServer = await start_secure_backend(
            self, *names, make=more.pop("make", End), **more
        )
        self.lines = hear(self)

    def serve(self, *others: Any, name: str = "a.example", **tls: Any) -> None:
        tls.setdefault("ca_file", ca_file(self))
        cluster = tls.pop("cluster", None)
        port = self.backend.address.port
        member = Backend(self.backend.address, name=f"{name}:{port}" if name else "")
        self.proxy: SecureProxy = start_secure(
            self, "tcp", *others, member, to=ClusterTls(**tls), cluster=cluster
        )

    async def works(self) -> Any:
        client = await self.proxy.connect()
        client.send(b"hello")
        served = await self.backend.accepted()
        await served.got(b"hello")
        served.send(b"answer")
        await client.got(b"answer")
        client.close()
        await served.ended()
        served.close()
        await self.proxy.empty()
        return served

    async def fails(self) -> str:
        """The client is cut off, and the log says why."""
        client = await self.proxy.connect()
        client.send(b"hello")
        self.assertTrue(await client.lost())
        await self.proxy.empty()
        self.assertEqual(self.backend.ends, [])
        (line,) = [line for line in self.lines if "refused: " in line]
        start = f"TLS to {self.backend.address} failed: "
        self.assertIn(start, line)
        return line.partition(start)[2]


class NameTests(Case):
    """Whom it is for."""

    async def test_the_right_one(self) -> None:
        await self.start("a.example")
        self.serve()
        await self.works()
        self.assertEqual(self.backend.asked, ["a.example"])

    async def test_a_wildcard(self) -> None:
        await self.start("*.b.example")
        self.serve(name="x.b.example")
        await self.works()

    async def test_a_wrong_one(self) -> None:
        await self.start("b.example", "*.c.example", "192.0.2.1")
        self.serve()
        self.assertEqual(
            await self.fails(),
            "its certificate is for *.c.example, 192.0.2.1, b.example, not for a.example",
        )

    async def test_what_is_set_goes_first(self) -> None:
        await self.start("b.example")
        self.serve(server_name="b.example")
        await self.works()
        self.assertEqual(self.backend.asked, ["b.example"])

    async def test_an_address(self) -> None:
        """Nobody is asked for by it (RFC 6066 section 3)."""
        await self.start("127.0.0.1")
        self.serve(name="")
        await self.works()
        self.assertEqual(self.backend.asked, [None])

    async def test_a_wrong_address(self) -> None:
        await self.start("a.example")
        self.serve(name="")
        self.assertEqual(await self.fails(), "its certificate is for a.example, not for 127.0.0.1")

    async def test_no_names_at_all(self) -> None:
        await self.start("no-san")
        self.serve()
        self.assertIn("its certificate cannot be read: ", await self.fails())


class TrustTests(Case):
    """Who says so."""

    async def refused(self, why: str, *, ca: str = "ca", **more: Any) -> None:
        await self.start("a.example", **more)
        self.serve(ca_file=ca_file(self, ca))
        self.assertEqual(await self.fails(), f"certificate verify failed: {why}")

    async def test_an_authority_that_nobody_knows(self) -> None:
        await self.refused("unable to get local issuer certificate", signer="other")

    async def test_expired(self) -> None:
        await self.refused("certificate has expired", days=-1)

    async def test_signed_by_itself(self) -> None:
        await self.refused("self-signed certificate", signer="")

    async def test_not_verified(self) -> None:
        await self.start("b.example", signer="", days=-1)
        self.serve(verify=False)
        self.assertIn(
            "web: TLS to its backends is not verified (verify = false): anybody could be them",
            self.lines,
        )
        await self.works()

    async def test_verified_by_default(self) -> None:
        await self.start("a.example")
        self.serve()
        self.assertFalse([line for line in self.lines if "not verified" in line])

    async def test_a_certificate_is_asked_for(self) -> None:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            await self.start("a.example", client_ca="ca", version=version)
            self.serve(certificate=pem_file(self, "proxy"))
            served = await self.works()
            self.assertEqual(
                served.transport.ssl.getpeercert()["subject"], ((("commonName", "proxy"),),)
            )

    async def test_there_is_none_to_show(self) -> None:
        await self.start("a.example", client_ca="ca", version=ssl.TLSVersion.TLSv1_2)
        self.serve()
        self.assertIn("alert handshake failure", await self.fails())


class SessionTests(Case):
    """The next connection goes on from the last one."""

    async def resumes(self, version: ssl.TLSVersion) -> None:
        await self.start("a.example", version=version)
        self.serve()
        for _ in range(3):
            await self.works()
        self.assertEqual(self.backend.resumed, [False, True, True])

    async def test_tls_1_2(self) -> None:
        await self.resumes(ssl.TLSVersion.TLSv1_2)

    async def test_tls_1_3(self) -> None:
        await self.resumes(ssl.TLSVersion.TLSv1_3)

    async def test_not_those_of_another_name(self) -> None:
        """Two backends may share an address."""
        await self.start("a.example", "b.example")
        self.serve()
        await self.works()
        client = self.proxy.service.connector.tls(
            self.proxy.cluster.config.tls  # type: ignore[arg-type]
        )
        made: list[Any] = []
        for name in ("a.example", "b.example"):
            backend = Backend(self.backend.address, name=f"{name}:1")
            made.append(client.begin(backend, id, id).ssl.session)  # type: ignore[arg-type]
        self.assertIsNotNone(made[0])
        self.assertIsNone(made[1])


class FailureTests(Case):
    """A handshake that comes to nothing is a connect that failed."""

    async def test_it_goes_on_to_the_next(self) -> None:
        await self.start("a.example")
        wrong = await start_secure_backend(self, "b.example", make=End)
        self.serve(wrong, server_name="a.example")
        for _ in range(3):
            client = await self.proxy.connect()
            client.send(b"hello")
            await (await self.backend.accepted()).got(b"hello")
        self.assertTrue(wrong.begun)
        self.assertEqual(wrong.ends, [])

    async def test_the_connect_timeout(self) -> None:
        await self.start("a.example")
        silent = await start_backend(self)
        self.backend = silent  # type: ignore[assignment]
        self.serve(cluster={"connect_timeout": 2.0})
        client = await self.proxy.connect()
        end = await silent.accepted()
        await until(lambda: end.received)
        self.proxy.clock.advance(1.5)
        self.assertIsNone(client.reason)
        self.proxy.clock.advance(1.0)
        self.assertTrue(await client.lost())
        await self.proxy.empty()
        self.assertIn(f"connect to {silent.address} timed out after 2 s", self.lines[-1])

    async def test_it_closes_in_the_middle(self) -> None:
        await self.start("a.example")

        class Closing(End):
            def dataReceived(self, data: bytes) -> None:
                self.close()

        self.backend = await start_backend(self, Closing)  # type: ignore[assignment]
        self.serve()
        client = await self.proxy.connect()
        self.assertTrue(await client.lost())
        await self.proxy.empty()
        self.assertIn(
            f"TLS to {self.backend.address} failed: it ended in the middle of the handshake",
            self.lines[-1],
        )

    async def test_the_client_leaves_meanwhile(self) -> None:
        silent = await start_backend(self)
        self.backend = silent  # type: ignore[assignment]
        self.serve()
        client = await self.proxy.connect()
        end = await silent.accepted()
        client.reset()
        await end.ended()
        end.close()
        await self.proxy.empty()


class FileTests(SynchronousTestCase):
    """Files that cannot be read: one clear line each, and nobody is asked for a passphrase."""

    def test_them(self) -> None:
        nothing, secret = put(self, b"nonsense"), put(self, made_pem("me", passphrase=b"secret"))
        bare = put(self, made_pem("me").partition(b"-----BEGIN P")[0])
        for settings, expected in (
            (ClusterTls(ca_file="no"), "ca_file no: No such file or directory"),
            (ClusterTls(ca_file=nothing), f"ca_file {nothing}: there is no certificate in it"),
            (ClusterTls(certificate="no"), "certificate no: No such file or directory"),
            (ClusterTls(certificate=bare), f"certificate {bare}: it cannot be read: expected PEM"),
            (ClusterTls(certificate=secret), f"certificate {secret}: its key has a passphrase"),
        ):
            with self.assertRaises(ValueError) as raised:
                TlsClient(settings)
            self.assertEqual(str(raised.exception), expected)

    def test_at_the_start(self) -> None:
        web = Cluster("web", (Backend(Address("127.0.0.1", 1)),), tls=ClusterTls(ca_file="no"))
        with self.assertRaises(ConfigError) as raised:
            ProxyService(ClockedReactor()).apply(Config((), (web,)))
        self.assertIn("clusters.web.tls: ca_file no: No such file", str(raised.exception))

    def test_names(self) -> None:
        there, unix = Address("127.0.0.1", 1), Address("/run/x.sock", 0)
        plain, named = TlsClient(ClusterTls()), TlsClient(ClusterTls(server_name="s.example"))
        for backend, expected in (
            (Backend(there), "127.0.0.1"),
            (Backend(there, name="a.example:1"), "a.example"),
            (Backend(Address("::1", 1)), "::1"),
            (Backend(unix), "localhost"),
        ):
            self.assertEqual(plain.name_of(backend), expected)
            self.assertEqual(named.name_of(backend), "s.example")
