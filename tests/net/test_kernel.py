"""What the kernel says of ports and source addresses."""

from __future__ import annotations

import socket
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from proxykit.model import PortRange
from proxykit.net import kernel
from proxykit.net.kernel import SourceAddresses, port_range


class PortRangeTests(TestCase):
    timeout = 10

    def says(self, ports: str, reserved: str) -> PortRange:
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "ip_local_port_range").write_text(ports)
        (directory / "ip_local_reserved_ports").write_text(reserved)
        return port_range(directory)

    def test_all_of_the_range(self) -> None:
        self.assertEqual(self.says("32768\t60999\n", "\n"), PortRange(32768, 60999, 0))
        self.assertEqual(self.says("32768\t60999\n", "\n").size, 28232)

    def test_less_what_is_reserved(self) -> None:
        cases = (
            ("100\n", 0),  # below
            ("5000\n", 0),  # above
            ("1000\n", 1),  # the first
            ("1999\n", 1),  # the last
            ("1000-1999\n", 1000),  # all
            ("1-65535\n", 1000),
            ("990-1009,1990-2010,1500\n", 10 + 10 + 1),
            ("1-999,2000-65535\n", 0),
        )
        for reserved, count in cases:
            self.assertEqual(self.says("1000 1999\n", reserved), PortRange(1000, 1999, count))

    def test_a_kernel_that_does_not_say(self) -> None:
        self.assertEqual(port_range(Path(self.mktemp())), PortRange(49152, 65535))

    def test_something_else_entirely(self) -> None:
        with self.assertRaises(ValueError):
            self.says("many\n", "\n")

    def test_this_kernel(self) -> None:
        self.assertGreater(port_range().size, 0)


class SourceAddressesTests(TestCase):
    timeout = 10

    def test_loopback(self) -> None:
        source = SourceAddresses(Clock())
        self.assertEqual(source("127.0.0.1"), "127.0.0.1")

    def test_loopback_of_ipv6(self) -> None:
        source = SourceAddresses(Clock())
        self.assertEqual(source("::1"), "::1")

    def test_no_way(self) -> None:
        # Nobody may connect to the broadcast address.
        with self.assertRaises(OSError):
            SourceAddresses(Clock())("255.255.255.255")

    def test_the_answer_is_kept_for_a_while(self) -> None:
        asked: list[int] = []

        class Counting(socket.socket):
            def connect(self, address: object) -> None:
                asked.append(1)
                super().connect(address)  # type: ignore[arg-type]

        self.patch(kernel.socket, "socket", Counting)
        clock = Clock()
        source = SourceAddresses(clock)
        source("127.0.0.1")
        clock.advance(9.9)
        source("127.0.0.1")
        self.assertEqual(len(asked), 1)
        clock.advance(0.2)
        source("127.0.0.1")
        self.assertEqual(len(asked), 2)
