"""Whom a listener believes."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.trust import UNIX, Trust
from proxykit.model import ConnInfo


def tcp(host: str) -> Any:
    """The address of a client's socket."""
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)


class TrustTests(SynchronousTestCase):
    def test_nobody(self) -> None:
        nobody = Trust()
        self.assertFalse(nobody)
        for client in (tcp("127.0.0.1"), tcp("::1"), UNIXAddress(b"/x"), UNIXAddress(None)):
            self.assertFalse(nobody.covers(client))

    def test_a_network_by_its_first_and_last_address(self) -> None:
        for network, inside, outside in (
            ("10.0.0.0/8", ("10.0.0.0", "10.255.255.255"), ("9.255.255.255", "11.0.0.0")),
            ("192.0.2.4", ("192.0.2.4",), ("192.0.2.3", "192.0.2.5")),
            ("192.0.2.4/31", ("192.0.2.4", "192.0.2.5"), ("192.0.2.3", "192.0.2.6")),
            ("0.0.0.0/0", ("0.0.0.0", "255.255.255.255"), ()),
            (
                "2001:db8::/32",
                ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
                ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"),
            ),
            ("::1", ("::1",), ("::", "::2")),
        ):
            trust = Trust([network])
            self.assertTrue(trust)
            for host in inside:
                self.assertTrue(trust.covers(tcp(host)), (network, host))
            for host in outside:
                self.assertFalse(trust.covers(tcp(host)), (network, host))

    def test_each_of_several(self) -> None:
        trust = Trust(["10.0.0.0/8", "192.0.2.1", "::1", UNIX])
        for client in (tcp("10.1.2.3"), tcp("192.0.2.1"), tcp("::1"), UNIXAddress(b"")):
            self.assertTrue(trust.covers(client))
        for host in ("192.0.2.2", "::2"):
            self.assertFalse(trust.covers(tcp(host)))

    def test_one_family_says_nothing_of_the_other(self) -> None:
        """Although 1.2.3.4 and ::102:304 are the same number."""
        self.assertFalse(Trust(["0.0.0.0/0"]).covers(tcp("::102:304")))
        self.assertFalse(Trust(["::/0"]).covers(tcp("1.2.3.4")))

    def test_ipv4_on_a_socket_of_both_families(self) -> None:
        for client in ("::ffff:10.1.2.3", "::ffff:a01:203"):
            self.assertTrue(Trust(["10.0.0.0/8"]).covers(tcp(client)))
            self.assertFalse(Trust(["192.0.2.0/24"]).covers(tcp(client)))
            # It is no client of the IPv6 network that the mapped addresses happen to lie in.
            self.assertFalse(Trust(["::/0"]).covers(tcp(client)))

    def test_a_scope(self) -> None:
        for host in ("fe80::1%eth0", "fe80::1%2", "fe80::1"):
            self.assertTrue(Trust(["fe80::/10"]).covers(tcp(host)))
            self.assertFalse(Trust(["2001:db8::/32"]).covers(tcp(host)))

    def test_unix_stands_for_sockets_of_that_kind_alone(self) -> None:
        trust = Trust([UNIX])
        self.assertTrue(trust)
        for name in (None, b"", b"/run/x", b"\0abstract"):
            self.assertTrue(trust.covers(UNIXAddress(name)))
        for host in ("127.0.0.1", "::1"):
            self.assertFalse(trust.covers(tcp(host)))

    def test_every_network_there_is_does_not_cover_unix(self) -> None:
        everyone = Trust(["0.0.0.0/0", "::/0"])
        self.assertFalse(everyone.covers(UNIXAddress(b"/run/x")))

    def test_other_kinds_of_addresses(self) -> None:
        """An endpoint of somebody else's may have any; nobody has said that they are trusted."""
        trust = Trust(["0.0.0.0/0", "::/0", UNIX])
        for client in (HostnameAddress(b"a.example", 1), object(), None, "127.0.0.1"):
            self.assertFalse(trust.covers(client))

    def test_whose_fields_are_believed(self) -> None:
        """A client's, if it is trusted: whoever relays its connection speaks by his header."""
        trust = Trust(["10.0.0.0/8", UNIX])
        relay = tcp("10.9.9.9")
        for client, relayed_by, believed in (
            (tcp("10.0.0.1"), None, True),
            (tcp("192.0.2.1"), None, False),
            (UNIXAddress(b""), None, True),
            (tcp("10.0.0.1"), relay, True),
            (tcp("192.0.2.1"), relay, False),
            (tcp("10.0.0.1"), UNIXAddress(b""), True),
            # The header does not say for whom: somebody behind the relay.
            (relay, relay, False),
            # A unix socket, but on another machine, perhaps.
            (UNIXAddress(b"/run/x"), relay, False),
            (UNIXAddress(b"/run/x"), UNIXAddress(b""), False),
        ):
            info = ConnInfo(1, "front", client, relay=relayed_by)
            self.assertEqual(trust.believes(info), believed, info)
            self.assertFalse(Trust().believes(info))

    def test_any_iterable_and_the_same_twice(self) -> None:
        trust = Trust(iter(["10.0.0.0/8", "10.0.0.0/8", UNIX, UNIX]))
        self.assertTrue(trust.covers(tcp("10.0.0.1")))
        self.assertTrue(trust.covers(UNIXAddress(b"")))

    def test_what_is_no_network(self) -> None:
        for text in ("", "10.0.0.1/8", "10.0.0.0/33", "a.example", "unix:/run/x", "Unix"):
            with self.assertRaises(ValueError):
                Trust([text])

    @settings(deadline=None)
    @given(
        st.ip_addresses(),
        st.lists(st.tuples(st.ip_addresses(), st.integers(0, 128)), max_size=4),
    )
    def test_as_the_numbers_say(self, client: Any, blocks: Any) -> None:
        networks = [
            str(ip_network(f"{base}/{min(length, base.max_prefixlen)}", strict=False))
            for base, length in blocks
        ]
        if getattr(client, "ipv4_mapped", None):
            client = client.ipv4_mapped
        expected = any(
            base.version == client.version
            and not (int(base) ^ int(client)) >> max(0, base.max_prefixlen - length)
            for base, length in blocks
        )
        self.assertEqual(Trust(networks).covers(tcp(str(client))), expected)
