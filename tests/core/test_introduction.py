"""What a connection to a backend begins with, by what is known of the client's."""

from __future__ import annotations

import os
import struct
from ipaddress import ip_address
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.introduction import introduction, introductions, own_introduction
from proxykit.model import ConnInfo
from proxykit.wire.proxyproto import Endpoint, Header, HeaderReader

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
UNKNOWN = b"PROXY UNKNOWN\r\n"
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
ONE = bytes.fromhex("20010db8000000000000000000000001")
MAPPED = bytes(10) + b"\xff\xff"


def tcp(host: str, port: int = 1) -> Any:
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)


def info(client: Any, server: Any, tlvs: Any = ()) -> ConnInfo:
    return ConnInfo(1, "front", client, server, tlvs=tlvs)


def block(family: int, body: bytes) -> bytes:
    """Version 2, PROXY, STREAM."""
    return SIGNATURE + struct.pack("!BBH", 0x21, family << 4 | 1, len(body)) + body


class OwnTests(SynchronousTestCase):
    """A connection that is for nobody."""

    def test_versions(self) -> None:
        self.assertEqual(own_introduction(""), b"")
        self.assertEqual(own_introduction("v1"), b"PROXY UNKNOWN\r\n")
        self.assertEqual(own_introduction("v2"), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")


class IntroductionTests(SynchronousTestCase):
    def written(self, client: Any, server: Any, tlvs: Any = ()) -> tuple[bytes, bytes]:
        both = introductions(info(client, server, tlvs))
        self.assertEqual(
            both,
            (
                introduction("v1", info(client, server, tlvs)),
                introduction("v2", info(client, server, tlvs)),
            ),
        )
        return both

    def test_none(self) -> None:
        self.assertEqual(introduction("", info(tcp("192.0.2.1"), tcp("192.0.2.2"))), b"")

    def test_ipv4(self) -> None:
        self.assertEqual(
            self.written(tcp("192.0.2.1", 50000), tcp("198.51.100.2", 443)),
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 443\r\n",
                block(1, bytes((192, 0, 2, 1, 198, 51, 100, 2)) + b"\xc3\x50\x01\xbb"),
            ),
        )

    def test_ipv6(self) -> None:
        self.assertEqual(
            self.written(tcp("2001:db8::1", 50000), tcp("2001:0db8:0::1", 443)),
            (
                b"PROXY TCP6 2001:db8::1 2001:db8::1 50000 443\r\n",
                block(2, ONE + ONE + b"\xc3\x50\x01\xbb"),
            ),
        )

    def test_ipv4_on_a_socket_of_both_families(self) -> None:
        self.assertEqual(
            self.written(tcp("::ffff:192.0.2.1", 2), tcp("::ffff:c000:202", 3)),
            self.written(tcp("192.0.2.1", 2), tcp("192.0.2.2", 3)),
        )

    def test_a_scope_means_nothing_to_others(self) -> None:
        self.assertEqual(
            self.written(tcp("fe80::1%eth0", 2), tcp("fe80::2%3", 3)),
            self.written(tcp("fe80::1", 2), tcp("fe80::2", 3)),
        )

    def test_both_families(self) -> None:
        """A client of one family, whom a header has announced to a listener of the other."""
        v1, v2 = self.written(tcp("192.0.2.1", 2), tcp("2001:db8::1", 3))
        self.assertEqual(v1, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 2 3\r\n")
        self.assertEqual(v2, block(2, MAPPED + bytes((192, 0, 2, 1)) + ONE + b"\0\2\0\3"))
        v1, v2 = self.written(tcp("2001:db8::1", 2), tcp("192.0.2.1", 3))
        self.assertEqual(v1, b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 2 3\r\n")
        self.assertEqual(v2, block(2, ONE + MAPPED + bytes((192, 0, 2, 1)) + b"\0\2\0\3"))

    def test_unix(self) -> None:
        self.assertEqual(
            self.written(UNIXAddress(b"/run/client"), UNIXAddress(b"/run/front")),
            (UNKNOWN, block(3, b"/run/client".ljust(108, b"\0") + b"/run/front".ljust(108, b"\0"))),
        )

    def test_a_client_on_a_unix_socket_without_a_path(self) -> None:
        """Mostly it has no name at all; a relative path or an abstract name means nothing
        elsewhere."""
        for name in (None, b"", b"client", b"\0abstract", b"\0/run/x"):
            v1, v2 = self.written(UNIXAddress(name), UNIXAddress(b"/run/front"))
            self.assertEqual(v1, UNKNOWN)
            self.assertEqual(v2, block(3, bytes(108) + b"/run/front".ljust(108, b"\0")))

    def test_a_path_of_any_bytes(self) -> None:
        path = b"/\xff\xfe" + b"x" * 104
        _, v2 = self.written(UNIXAddress(path), UNIXAddress(b"/run/front"))
        self.assertEqual(v2[16:][:108], path + b"\0")

    def test_the_file_system_is_not_asked(self) -> None:
        """As Twisted does to tell whether two addresses are the same."""
        asked: list[object] = []

        def ask(*paths: object) -> None:
            asked.append(paths)
            raise FileNotFoundError

        for name in ("stat", "lstat"):
            self.patch(os, name, ask)
        self.patch(os.path, "samefile", ask)
        for client in (b"/run/1", b"/run/2"):
            self.written(UNIXAddress(client), UNIXAddress(b"/run/front"))
        self.assertEqual(asked, [])

    def test_what_cannot_be_said(self) -> None:
        """Of one end alone nothing can be said either."""
        for client, server in (
            (tcp("192.0.2.1"), None),
            (UNIXAddress(b"/run/x"), None),
            (tcp("192.0.2.1"), UNIXAddress(b"/run/front")),
            (UNIXAddress(b""), tcp("192.0.2.1")),
            (UNIXAddress(b"/run/x"), tcp("2001:db8::1")),
            (HostnameAddress(b"a.example", 1), tcp("192.0.2.1")),
            (object(), tcp("192.0.2.1")),
            (tcp("192.0.2.1"), object()),
        ):
            self.assertEqual(self.written(client, server), (UNKNOWN, LOCAL), (client, server))

    TLVS = ((0x02, b"a.example"), (0xEE, b""), (0xE0, b"\0\xff"))
    WRITTEN = b"\x02\x00\x09a.example\xee\x00\x00\xe0\x00\x02\x00\xff"

    def test_tlvs(self) -> None:
        v1, v2 = self.written(tcp("192.0.2.1", 2), tcp("192.0.2.2", 3), self.TLVS)
        self.assertEqual(v1, b"PROXY TCP4 192.0.2.1 192.0.2.2 2 3\r\n")
        ends = bytes((192, 0, 2, 1, 192, 0, 2, 2)) + b"\0\2\0\3"
        self.assertEqual(v2, block(1, ends + self.WRITTEN))

    def test_tlvs_where_the_ends_cannot_be_said(self) -> None:
        v1, v2 = self.written(tcp("192.0.2.1", 2), None, self.TLVS)
        self.assertEqual(v1, UNKNOWN)
        size = len(self.WRITTEN).to_bytes(2, "big")
        self.assertEqual(v2, SIGNATURE + b"\x20\x00" + size + self.WRITTEN)

    def test_a_relay_is_not_the_client(self) -> None:
        direct = info(tcp("192.0.2.1", 2), tcp("192.0.2.2", 3))
        relayed = evolve(direct, relay=tcp("203.0.113.9", 4))
        self.assertEqual(introductions(relayed), introductions(direct))

    def test_each_client_has_its_own(self) -> None:
        """They are kept, and must not be mistaken for one another."""
        server = tcp("192.0.2.2", 3)
        clients = [tcp("192.0.2.1", port) for port in range(1, 3000)]
        for client in (*clients, clients[0], clients[-1]):
            said = introduction("v1", info(client, server))
            expected = f"PROXY TCP4 192.0.2.1 192.0.2.2 {client.port} 3\r\n".encode()
            self.assertEqual(said, expected)

    addresses = st.one_of(
        st.builds(tcp, st.ip_addresses().map(str), st.integers(0, 65535)),
        st.builds(UNIXAddress, st.just(b"") | st.just(b"/run/x") | st.just(b"/run/y")),
        st.none(),
    )
    values = st.tuples(st.integers(0xE0, 0xEF), st.binary(max_size=40))

    @settings(deadline=None)
    @given(addresses, addresses, st.lists(values, max_size=3).map(tuple))
    def test_a_reader_understands_it(self, client: Any, server: Any, tlvs: Any) -> None:
        unix = [isinstance(end, UNIXAddress) for end in (client, server)]
        for version, said in enumerate(introductions(info(client, server, tlvs)), 1):
            header = HeaderReader().feed(said)
            assert header is not None
            if None in (client, server) or (any(unix) and (version == 1 or not all(unix))):
                self.assertEqual(header, Header(version, True))
                continue
            self.assertEqual(header.tlvs, tlvs if version == 2 else ())
            for address, end in ((client, header.source), (server, header.destination)):
                assert end is not None
                if isinstance(address, UNIXAddress):
                    self.assertEqual(end, Endpoint(os.fsdecode(address.name or b""), 0))
                else:
                    self.assertEqual(
                        (plain(end.host), end.port), (plain(address.host), address.port)
                    )


def plain(host: str) -> Any:
    """An IP address, however it is written."""
    address = ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address
