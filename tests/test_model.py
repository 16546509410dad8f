"""proxykit.model: addresses as users write them, and back again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from proxykit.model import Address, BudgetKey, ConnInfo, PortRange, address_text

EXPECTED = "expected host:port, [v6]:port or unix:/path with a port from 1 to 65535, not "
HOST = "expected a host name or an IP address before the port, not "
BRACKETS = "expected brackets around an IPv6 address, as in [::1]:80, not "
IN_BRACKETS = "expected an IPv6 address in brackets, not "
PATH = "expected unix:/path, absolute and at most 107 bytes, not "


class AddressTests(SynchronousTestCase):
    def test_parse(self):
        for text, host, port, is_ip, is_unix in (
            ("10.0.0.1:80", "10.0.0.1", 80, True, False),
            ("[::1]:65535", "::1", 65535, True, False),
            ("web.example:1", "web.example", 1, False, False),
            ("web.example.:1", "web.example.", 1, False, False),
            ("a_b-c:80", "a_b-c", 80, False, False),
            ("x:80", "x", 80, False, False),
            ("unix:/run/a:b", "/run/a:b", 0, False, True),
            ("unix:/" + "a" * 106, "/" + "a" * 106, 0, False, True),
        ):
            address = Address.parse(text)
            self.assertEqual(address, Address(host, port))
            self.assertEqual((address.is_ip, address.is_unix), (is_ip, is_unix), text)
            self.assertEqual(str(address), text)

    def test_one_spelling(self):
        """An address is a key, so what means the same is the same."""
        for text, same in (
            ("[0:0:0::1]:80", "[::1]:80"),
            ("[2001:DB8::A]:80", "[2001:db8::a]:80"),
            ("10.0.0.1:080", "10.0.0.1:80"),
        ):
            self.assertEqual(str(Address.parse(text)), same)

    def test_mistakes(self):
        for text, message in (
            ("", EXPECTED),
            ("web", EXPECTED),
            ("web:", EXPECTED),
            ("web:0", EXPECTED),
            ("web:65536", EXPECTED),
            ("web:-1", EXPECTED),
            ("web:http", EXPECTED),
            ("web:\u0661", EXPECTED),
            ("[::1]", EXPECTED),
            (":80", HOST),
            ("a b:80", HOST),
            ("-a:80", HOST),
            ("a-:80", HOST),
            ("a" * 254 + ":80", HOST),
            ("1.2.3:80", HOST),
            ("256.0.0.1:80", HOST),
            ("web\n:80", HOST),
            ("::1:80", BRACKETS),
            ("[web]:80", IN_BRACKETS),
            ("[10.0.0.1]:80", IN_BRACKETS),
            ("[]:80", IN_BRACKETS),
            ("unix:", PATH),
            ("unix:run/a", PATH),
            ("unix:/a\0b", PATH),
            ("unix:/" + "a" * 107, PATH),
            ("unix:/" + "\xe9" * 54, PATH),
        ):
            error = self.assertRaises(ValueError, Address.parse, text)
            self.assertEqual(str(error), f"{message}{text!r}")

    @settings(deadline=None)
    @given(
        st.one_of(
            st.text(max_size=20),
            st.builds("{}:{}".format, st.text(max_size=20), st.integers(-1, 70000)),
            st.builds("{}:{}".format, st.ip_addresses(v=4), st.integers(1, 65535)),
            st.builds("[{}]:{}".format, st.ip_addresses(v=6), st.integers(1, 65535)),
            st.builds("unix:/{}".format, st.text(max_size=60)),
        )
    )
    def test_there_and_back(self, text):
        """Any text is an address, whose own text means the same address, or a ValueError."""
        try:
            address = Address.parse(text)
        except ValueError:
            return
        self.assertEqual(Address.parse(str(address)), address)
        self.assertFalse(address.is_ip and address.is_unix)


class ConnInfoTests(SynchronousTestCase):
    def test_client_host(self):
        """Without the port, for a client has another one each time."""
        for client, host in (
            (IPv4Address("TCP", "192.0.2.1", 4711), "192.0.2.1"),
            (IPv6Address("TCP", "2001:db8::1", 4711), "2001:db8::1"),
            (UNIXAddress("/run/a"), "unix:/run/a"),
        ):
            self.assertEqual(ConnInfo(1, "front", client).client_host, host)

    def test_name(self):
        """A connection that nobody has numbered is called by its listener alone."""
        client = IPv4Address("TCP", "192.0.2.1", 4711)
        self.assertEqual(ConnInfo(17, "front", client).name, "front #17")
        self.assertEqual(ConnInfo(0, "tcp", client).name, "tcp")


class AddressTextTests(SynchronousTestCase):
    def test_all(self):
        for address, text in (
            (IPv4Address("TCP", "192.0.2.1", 4711), "192.0.2.1:4711"),
            (IPv6Address("TCP", "2001:db8::1", 4711), "[2001:db8::1]:4711"),
            (UNIXAddress("/run/a"), "unix:/run/a"),
            (UNIXAddress(None), "unix:"),
            (HostnameAddress(b"a.example", 80), str(HostnameAddress(b"a.example", 80))),
        ):
            self.assertEqual(address_text(address), text)

    def test_port_zero(self):
        """A client whose port is not known, as a PROXY header may say, is no unix socket."""
        self.assertEqual(address_text(IPv4Address("TCP", "192.0.2.1", 0)), "192.0.2.1:0")


class BudgetKeyTests(SynchronousTestCase):
    def test_destination_text(self):
        for key, text in (
            (BudgetKey("tcp", "10.0.0.9", "10.0.0.1", 80), "10.0.0.1:80"),
            (BudgetKey("tcp", "::9", "::1", 80), "[::1]:80"),
            (BudgetKey("tcp", "10.0.0.9"), "*"),
        ):
            self.assertEqual(key.destination_text, text)


class PortRangeTests(SynchronousTestCase):
    def test_size(self):
        for low, high, reserved, size in (
            (32768, 60999, 0, 28232),
            (32768, 60999, 32, 28200),
            (1, 1, 0, 1),
            (1, 1, 5, 0),
            (2, 1, 0, 0),
        ):
            self.assertEqual(PortRange(low, high, reserved).size, size)
