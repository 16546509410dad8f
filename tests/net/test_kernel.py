"""What the kernel says of ports and source addresses."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from proxykit.model import PortRange
from proxykit.net import kernel
from proxykit.net.kernel import (
    SourceAddresses,
    is_local,
    narrow,
    narrowed,
    port_range,
    time_wait_reuse,
)

WHY = "a range of ports needs Linux 6.3 or later (IP_LOCAL_PORT_RANGE: "


def kernel_settings(test: SynchronousTestCase, **files: str) -> Path:
    """A directory with what a kernel says."""
    directory = Path(test.mktemp())
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_text(text + "\n")
    return directory


def this_kernel(
    test: SynchronousTestCase, ports: str, reserved: str = "", fault: OSError | None = None
) -> None:
    """For one test the kernel is one that says this, whatever the machine's own does.

    :param fault: what it says to a socket that is to keep to a range; None: it does.
    """

    def narrow(connecting: socket.socket, ports: PortRange) -> None:
        if fault is not None:
            raise fault

    directory = kernel_settings(test, ip_local_port_range=ports, ip_local_reserved_ports=reserved)
    test.patch(kernel, "_IPV4", directory)
    test.patch(kernel, "narrow", narrow)


class PortRangeTests(TestCase):
    timeout = 10

    def says(self, ports: str, reserved: str) -> PortRange:
        return port_range(
            kernel_settings(self, ip_local_port_range=ports, ip_local_reserved_ports=reserved)
        )

    def test_all_of_the_range(self) -> None:
        self.assertEqual(self.says("32768\t60999", ""), PortRange(32768, 60999, 0))
        self.assertEqual(self.says("32768\t60999", "").size, 28232)

    def test_less_what_is_reserved(self) -> None:
        cases = (
            ("100", 0),  # below
            ("5000", 0),  # above
            ("1000", 1),  # the first
            ("1999", 1),  # the last
            ("1000-1999", 1000),  # all
            ("1-65535", 1000),
            ("990-1009,1990-2010,1500", 10 + 10 + 1),
            ("1-999,2000-65535", 0),
        )
        for reserved, count in cases:
            self.assertEqual(self.says("1000 1999", reserved), PortRange(1000, 1999, count))

    def test_a_kernel_that_does_not_say(self) -> None:
        self.assertEqual(port_range(Path(self.mktemp())), PortRange(49152, 65535))

    def test_something_else_entirely(self) -> None:
        with self.assertRaises(ValueError):
            self.says("many", "")

    def test_this_kernel(self) -> None:
        self.assertGreater(port_range().size, 0)

    def test_another_one(self) -> None:
        this_kernel(self, "1000 1999", "1500")
        self.assertEqual(port_range(), PortRange(1000, 1999, 1))


class NarrowedTests(TestCase):
    """A part of the range."""

    timeout = 10

    def test_within(self) -> None:
        """Up to both ends, less what is reserved within."""
        this_kernel(self, "1000 1999", "1,1000,1100-1109,1999,3000")
        for low, high, reserved in (
            (1000, 1999, 12),
            (1000, 1000, 1),
            (1001, 1099, 0),
            (1105, 1998, 5),
            (1999, 1999, 1),
        ):
            self.assertEqual(narrowed(PortRange(low, high)), PortRange(low, high, reserved))

    def test_outside(self) -> None:
        this_kernel(self, "1000 1999")
        for low, high in ((999, 1500), (1500, 2000), (1, 65535), (1, 999), (2000, 2000)):
            with self.assertRaises(ValueError) as caught:
                narrowed(PortRange(low, high))
            self.assertEqual(
                str(caught.exception),
                "expected a part of the kernel's own range, 1000-1999"
                f" (net.ipv4.ip_local_port_range), not {low}-{high}: the kernel ignores what"
                " lies outside",
            )

    def test_a_kernel_that_cannot(self) -> None:
        """It says so first: no range will do."""
        for number in (errno.ENOPROTOOPT, errno.EPERM):
            why = os.strerror(number)
            this_kernel(self, "1000 1999", fault=OSError(number, why))
            for low, high in ((1000, 1999), (1, 2)):
                with self.assertRaises(ValueError) as caught:
                    narrowed(PortRange(low, high))
                self.assertEqual(str(caught.exception), f"{WHY}{why})")

    def test_another_system(self) -> None:
        """The option of that number means something else there."""
        this_kernel(self, "1000 1999", fault=OSError(errno.EPERM, "asked all the same"))
        with self.assertRaises(ValueError) as caught:
            narrowed(PortRange(50000, 50001), Path(self.mktemp()))
        self.assertEqual(str(caught.exception), f"{WHY}not Linux)")

    def test_the_option(self) -> None:
        """As linux/in.h has it."""
        asked: list[Any] = []

        class Socket:
            def setsockopt(self, *arguments: object) -> None:
                asked.append(arguments)

        narrow(Socket(), PortRange(0x1234, 0x5678, 9))  # type: ignore[arg-type]
        ((level, option, value),) = asked
        self.assertEqual((level, option), (socket.SOL_IP, 51))
        self.assertEqual(int.from_bytes(value, sys.byteorder), 0x56781234)

    def test_this_kernel(self) -> None:
        """A port from the range, for IPv6 as well."""
        whole = port_range()
        wanted = PortRange((whole.low + whole.high) // 2, whole.high)
        try:
            found = narrowed(wanted)
        except ValueError as error:
            raise SkipTest(str(error)) from error
        self.assertEqual((found.low, found.high), (wanted.low, wanted.high))
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.create_server((host, 0), family=family) as server:
                for _ in range(5):
                    with socket.socket(family) as client:
                        narrow(client, found)
                        client.connect(server.getsockname())
                        port = client.getsockname()[1]
                    self.assertTrue(found.low <= port <= found.high, port)


class TimeWaitReuseTests(TestCase):
    timeout = 10

    def test_what_it_says(self) -> None:
        for number in (0, 1, 2):
            directory = kernel_settings(self, tcp_tw_reuse=str(number))
            self.assertEqual(time_wait_reuse(directory), number)
            self.patch(kernel, "_IPV4", directory)
            self.assertEqual(time_wait_reuse(), number)

    def test_without_timestamps(self) -> None:
        """It gives none out again, for it could not tell old segments from new."""
        for timestamps, reuse in (("0", 0), ("1", 1), ("2", 1)):
            directory = kernel_settings(self, tcp_tw_reuse="1", tcp_timestamps=timestamps)
            self.assertEqual(time_wait_reuse(directory), reuse)

    def test_a_kernel_that_does_not_say(self) -> None:
        self.assertEqual(time_wait_reuse(Path(self.mktemp())), 0)

    def test_something_else_entirely(self) -> None:
        with self.assertRaises(ValueError):
            time_wait_reuse(kernel_settings(self, tcp_tw_reuse="sometimes"))


class IsLocalTests(TestCase):
    """Whether an address is this machine's."""

    timeout = 10

    def refuses(self, number: int, also_to_make_one: bool = False) -> list[object]:
        """From now on every bind, or every socket, is refused; gives what was asked for."""
        asked: list[object] = []

        class Refusing(socket.socket):
            def __init__(self, family: int, kind: int) -> None:
                asked.append((family, kind))
                if also_to_make_one:
                    raise OSError(number, os.strerror(number))
                super().__init__(family, kind)

            def bind(self, address: object) -> None:
                asked.append(address)
                raise OSError(number, os.strerror(number))

        self.patch(kernel.socket, "socket", Refusing)
        return asked

    def test_it_is(self) -> None:
        for address in ("127.0.0.1", "127.255.0.3", "::1"):
            self.assertIs(is_local(address), True, address)

    def test_it_is_not(self) -> None:
        asked = self.refuses(errno.EADDRNOTAVAIL)
        self.assertIs(is_local("127.0.0.1"), False)
        self.assertIs(is_local("::1"), False)
        udp = socket.SOCK_DGRAM
        self.assertEqual(
            asked,
            [(socket.AF_INET, udp), ("127.0.0.1", 0), (socket.AF_INET6, udp), ("::1", 0)],
        )

    def test_it_needs_a_scope(self) -> None:
        self.assertIs(is_local("fe80::1"), False)

    def test_there_is_no_such_family(self) -> None:
        self.refuses(errno.EAFNOSUPPORT, also_to_make_one=True)
        self.assertIs(is_local("::1"), False)

    def test_nobody_can_tell(self) -> None:
        self.refuses(errno.EMFILE, also_to_make_one=True)
        with self.assertRaises(OSError) as caught:
            is_local("127.0.0.1")
        self.assertEqual(caught.exception.errno, errno.EMFILE)


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

    def test_nothing_is_kept_of_those_that_are_gone(self) -> None:
        clock = Clock()
        source = SourceAddresses(clock)
        for number in range(100):
            source(f"127.0.0.{number + 1}")
            clock.advance(1)
        self.assertLessEqual(len(source._known), 20)
        self.assertIn("127.0.0.100", source._known)

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
