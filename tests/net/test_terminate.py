"""TLS in, over sockets: what listeners count, whom they let in, and what they know of them."""

from __future__ import annotations

import ssl
from typing import Any

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxykit.model import Listener, ListenerTls, SniRoute
from proxykit.modes.sni_settings import SniSettings
from proxykit.modes.tcp import TcpSettings
from proxykit.net.terminate import subject_of
from tests.sockets import HOST, TIMEOUT, connect, hear, start_backend, turns, until
from tests.tls_certificates import V2, V3, VERSIONS, ca_file, client_context, der, pem_file
from tests.tls_sockets import NoTls, Peer, SecureProxy, start_secure

FROM = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"


async def answered(client: Any) -> None:
    """Wait for the first flight of the other side."""
    await client._until(lambda: len(client.received) > 500)


class Case(TestCase):
    """A listener of mode tcp with TLS, and a backend without."""

    timeout = TIMEOUT

    async def start(self, **more: Any) -> None:
        settings = {
            key: more.pop(key)
            for key in ("client_ca", "client_auth", "handshake_timeout", "alpn")
            if key in more
        }
        tls = ListenerTls((pem_file(self, "a.example"), pem_file(self, "b.example")), **settings)
        self.lines = hear(self)
        self.backend = await start_backend(self)
        self.proxy: SecureProxy = start_secure(self, "tcp", self.backend, tls=tls, **more)

    @property
    def counts(self) -> dict[str, Any]:
        found: dict[str, Any] = self.proxy.listener.snapshot()["tls"]
        return found

    async def failed(self, **reasons: int) -> None:
        """Wait until these, and no others, have come to nothing, and nothing is left of them."""
        expected = {key.replace("_", " "): value for key, value in reasons.items()}
        await until(lambda: self.counts["failed"] == expected)
        await self.proxy.empty()

    async def echo(self, client: Any, word: bytes = b"hello") -> Any:
        client.send(word)
        served = await self.backend.accepted()
        await served.got(word)
        return served

    def info(self) -> Any:
        (protocol,) = self.proxy.listener.connections.values()
        return protocol.info  # type: ignore[attr-defined]

    async def close(self, client: Any, served: Any) -> None:
        client.close()
        await served.ended()
        served.close()
        self.assertFalse(await client.lost())
        await self.proxy.empty()


class HandshakeTests(Case):
    """Until it is done."""

    async def test_done(self) -> None:
        await self.start(alpn=("h2", "x"))
        for version in VERSIONS:
            context = client_context(version=version)
            context.set_alpn_protocols(["x"])
            client = await self.proxy.secure(context, name="B.example")
            served = await self.echo(client)
            tls = self.info().tls
            self.assertEqual(
                (tls.version, tls.name, tls.protocol, tls.subject, tls.fingerprint),
                (client.transport.ssl.version(), "B.example", "x", "", ""),
            )
            self.assertEqual(tls.cipher, client.transport.ssl.cipher()[0])
            self.assertEqual(client.transport.getPeerCertificate(), der("b.example"))
            self.assertEqual(self.info().client.port, client.transport.getHost().port)
            await self.close(client, served)
        self.assertEqual(self.counts, {"handshakes": 2, "resumed": 0, "failed": {}})

    async def test_byte_by_byte(self) -> None:
        await self.start()
        peer = Peer(client_context(), False)
        client = await self.proxy.connect()
        peer.feed(b"")
        taken = 0
        while not peer.done or taken < len(client.received):
            for byte in peer.take():
                client.send(bytes((byte,)))
                await turns(1)
            await turns(1)
            data = bytes(client.received[taken:])
            taken += len(data)
            peer.feed(data)
        for byte in peer.take() + peer.say(b"hello"):
            client.send(bytes((byte,)))
            await turns(1)
        await (await self.backend.accepted()).got(b"hello")

    async def test_late(self) -> None:
        """A byte now and then is no excuse."""
        await self.start(handshake_timeout=4.0)
        peer = Peer(client_context(), False)
        peer.feed(b"")
        hello = peer.take()
        client = await self.proxy.connect()
        await until(lambda: self.proxy.listener.connections)
        for byte in hello[:3]:
            client.send(bytes((byte,)))
            await turns()
            self.proxy.clock.advance(1.0)
        self.assertEqual(len(self.proxy.listener.connections), 1)
        self.proxy.clock.advance(2.0)
        self.assertTrue(await client.lost())
        await self.failed(handshake_timeout=1)

    async def test_no_deadline_once_it_is_done(self) -> None:
        await self.start(handshake_timeout=1.0)
        client = await self.proxy.secure()
        served = await self.echo(client)
        self.proxy.clock.advance(10)
        client.send(b"!")
        await served.got(b"hello!")

    async def test_plain_http(self) -> None:
        await self.start()
        for _ in range(3):
            client = await self.proxy.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            await client.ended()
            self.assertEqual(bytes(client.received), b"")
            client.close()
        await self.failed(http_request=3)
        (line,) = [line for line in self.lines if "no TLS" in line]
        self.assertRegex(line, r"^front #1: 127\.0\.0\.1:\d+: no TLS: http request$")
        self.assertEqual(self.backend.ends, [])

    async def test_it_leaves(self) -> None:
        await self.start()
        client = await self.proxy.connect()
        client.finish()
        await self.failed(it_ended_in_the_middle_of_the_handshake=1)
        client = await self.proxy.connect()
        await until(lambda: self.proxy.listener.connections)
        client.reset()
        await self.failed(
            it_ended_in_the_middle_of_the_handshake=1, reset_in_the_middle_of_the_handshake=1
        )

    async def test_the_service_aborts(self) -> None:
        """Those in the handshake, and those behind it."""
        await self.start()
        waiting = await self.proxy.connect()
        client = await self.proxy.secure()
        served = await self.echo(client)
        await until(lambda: len(self.proxy.listener.connections) == 2)
        await self.proxy.listener.abort("over")
        for end in (waiting, client, served):
            self.assertTrue(await end.lost())
        await self.failed(aborted_here=1)

    async def test_the_limit_counts_those_in_the_handshake(self) -> None:
        await self.start(max_connections=1)
        waiting = await self.proxy.connect()
        await until(lambda: self.proxy.listener.paused)
        second = await self.proxy.connect()
        await turns()
        self.assertEqual(len(self.proxy.listener.connections), 1)
        waiting.reset()
        await until(lambda: self.proxy.listener.accepted == 2)
        self.assertEqual(len(self.proxy.listener.connections), 1)
        second.reset()
        await self.failed(reset_in_the_middle_of_the_handshake=2)

    async def test_early_bytes_are_relayed(self) -> None:
        await self.start()
        client = await self.proxy.secure()
        client.send(b"x" * 200_000)
        client.finish()
        served = await self.backend.accepted()
        await served.got(b"x" * 200_000)
        await served.ended()
        served.send(b"answer")
        served.close()
        await client.got(b"answer")
        await client.ended()
        client.close()
        self.assertFalse(await client.lost())
        await self.proxy.empty()


class ResumedTests(Case):
    """Sessions that go on."""

    async def resumed(self, version: ssl.TLSVersion, *names: str) -> None:
        context = client_context(self, *names, version=version)
        session = None
        for count in range(3):
            client = await self.proxy.secure(context, session=session)
            served = await self.echo(client)
            served.send(b"tickets come before this")
            await client.got(b"tickets come before this")
            self.assertEqual(client.transport.ssl.session_reused, count > 0)
            self.assertEqual(self.counts["resumed"], count)
            self.tls = self.info().tls
            self.assertEqual(self.tls.subject, f"CN={names[0]}" if names else "")
            session = client.transport.ssl.session
            await self.close(client, served)
        self.assertEqual(self.counts, {"handshakes": 3, "resumed": 2, "failed": {}})

    async def test_tls_1_2(self) -> None:
        await self.start()
        await self.resumed(V2)

    async def test_tls_1_3(self) -> None:
        await self.start()
        await self.resumed(V3)

    async def test_with_a_certificate_1_2(self) -> None:
        """Who it is stays known."""
        await self.start(client_ca=ca_file(self))
        await self.resumed(V2, "me")

    async def test_with_a_certificate_1_3(self) -> None:
        await self.start(client_ca=ca_file(self), client_auth="required")
        await self.resumed(V3, "me")


class ClientCertificateTests(Case):
    """Who shows what."""

    async def let_in(self, context: ssl.SSLContext, subject: str = "") -> None:
        client = await self.proxy.secure(context)
        served = await self.echo(client)
        self.assertEqual(self.info().tls.subject, subject)
        self.assertEqual(bool(self.info().tls.fingerprint), bool(subject))
        await self.close(client, served)

    async def refused(self, context: ssl.SSLContext, **reasons: int) -> None:
        client = None
        try:
            client = await self.proxy.secure(context)
        except NoTls:
            self.assertEqual(context.maximum_version, V2)
        if client is not None:
            client.send(b"hello")
            self.assertTrue(await client.lost())
        await self.failed(**reasons)
        self.assertEqual(self.backend.ends, [])

    async def test_not_asked_for(self) -> None:
        await self.start()
        await self.let_in(client_context(self, "me"))

    async def test_optional(self) -> None:
        await self.start(client_ca=ca_file(self))
        await self.let_in(client_context())
        await self.let_in(client_context(self, "me"), "CN=me")

    async def test_required(self) -> None:
        await self.start(client_ca=ca_file(self), client_auth="required")
        for number, version in enumerate(VERSIONS, 1):
            await self.refused(
                client_context(version=version), peer_did_not_return_a_certificate=number
            )
        await self.let_in_after(client_context(self, "me"))

    async def let_in_after(self, context: ssl.SSLContext) -> None:
        client = await self.proxy.secure(context)
        await self.echo(client)
        self.assertEqual(self.counts["handshakes"], 1)

    async def test_wrong_ones(self) -> None:
        """Even where it need not show one."""
        await self.start(client_ca=ca_file(self))
        verify = "certificate verify failed: "
        failed: dict[str, int] = {}
        for why, more in (
            ("unable to get local issuer certificate", {"signer": "other"}),
            ("certificate has expired", {"days": -1}),
            ("self-signed certificate", {"signer": ""}),
        ):
            for version in VERSIONS:
                failed[verify + why] = failed.get(verify + why, 0) + 1
                context = client_context(self, "me", version=version, **more)
                await self.refused(context, **failed)
        self.assertEqual(self.counts["handshakes"], 0)


class SubjectTests(SynchronousTestCase):
    """Subjects as a field may have them."""

    def test_printable(self) -> None:
        kind = x509.NameOID
        for text, expected in (
            ("me", "CN=me"),
            ("a\r\nX-Admin: yes", "CN=a\\0D\\0AX-Admin: yes"),
            ("J\u00fcrgen \u2603", "CN=J\\C3\\BCrgen \\E2\\98\\83"),
            ("a,b+c", "CN=a\\,b\\+c"),
            ("nul\0", "CN=nul\\00"),
            ("\x7f\t", "CN=\\7F\\09"),
        ):
            self.assertEqual(subject_of(der("x", subject=((kind.COMMON_NAME, text),))), expected)
        several = ((kind.ORGANIZATION_NAME, "Org"), (kind.COMMON_NAME, "me"))
        self.assertEqual(subject_of(der("x", subject=several)), "CN=me,O=Org")
        self.assertEqual(subject_of(der("x", common_name=False)), "")


class BehindTests(Case):
    """TLS that is not the first thing on a connection."""

    async def test_a_proxy_header(self) -> None:
        await self.start(trust=(f"{HOST}/32",), proxy_protocol=True)
        for _ in range(2):
            client = await self.proxy.secure(first=FROM)
            served = await self.echo(client)
            info = self.info()
            self.assertEqual((info.client.host, info.client.port), ("192.0.2.1", 1))
            self.assertEqual(info.tls.version, "TLSv1.3")
            await self.close(client, served)
        self.assertEqual(self.counts["handshakes"], 2)

    async def test_a_proxy_header_cut(self) -> None:
        """From the hello, and in the middle of it."""
        await self.start(trust=(f"{HOST}/32",), proxy_protocol=True)
        peer = Peer(client_context(), False)
        peer.feed(b"")
        sent = FROM + peer.take()
        for cut in (5, len(FROM) - 1, len(FROM), len(FROM) + 1, len(FROM) + 100):
            client = await self.proxy.connect()
            client.send(sent[:cut])
            await turns()
            client.send(sent[cut:])
            await answered(client)
            self.assertEqual(client.received[0], 22)
            client.reset()
            await self.proxy.empty()

    async def test_late_behind_a_header(self) -> None:
        await self.start(trust=(f"{HOST}/32",), proxy_protocol=True, handshake_timeout=2.0)
        client = await self.proxy.connect()
        client.send(FROM)
        await turns()
        self.proxy.clock.advance(3.0)
        self.assertTrue(await client.lost())
        await self.failed(handshake_timeout=1)

    async def test_handed_over(self) -> None:
        """From mode sni, whole and in parts."""
        self.lines = hear(self)
        self.backend = await start_backend(self)
        tls = ListenerTls((pem_file(self, "a.example"),))
        inner = Listener("inner", "", "tcp", "web", settings=TcpSettings(), tls=tls)
        route = SniRoute("a.example", listener="inner")
        self.proxy = start_secure(
            self, "sni", self.backend, others=(inner,), settings=SniSettings(routes=(route,))
        )
        client = await self.proxy.secure(name="a.example")
        served = await self.echo(client)
        self.assertEqual((self.info().listener, self.info().tls.name), ("inner", "a.example"))
        await self.close(client, served)
        peer = Peer(client_context(), False, "a.example")
        peer.feed(b"")
        hello = peer.take()
        for cut in (1, 5, 60, len(hello) - 1):
            client = await connect(self, self.proxy.port)
            client.send(hello[:cut])
            await turns()
            client.send(hello[cut:])
            await answered(client)
            client.reset()
            await self.proxy.empty()
        counts = self.proxy.service.listeners["inner"].snapshot()["tls"]
        self.assertEqual(counts["handshakes"], 1)
        self.assertEqual(sum(counts["failed"].values()), 4)
        self.assertEqual(self.proxy.listener.accepted, 5)
