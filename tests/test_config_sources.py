"""Where connections to backends leave from, and how they are closed: what a file says of it."""

from __future__ import annotations

import errno
import re
import tomllib
from pathlib import Path

import attrs

import proxykit
from proxykit import config, tables
from proxykit.model import PortRange, Sources
from tests.net.test_kernel import this_kernel
from tests.test_config import LISTENER, REAL_COMPONENTS, WEB, Case

EXAMPLE = Path(proxykit.__file__).resolve().parent.parent / "examples" / "sources.toml"
IP = "expected an IP address such as 10.0.0.1 or fd00::1, not"
HERE = "expected an address of this machine, not"
SCOPE = "expected an address that needs no scope, not"
PORTS = 'expected two ports from 1 to 65535, the lower one first, such as "40000-60999", not'


class SourcesCase(Case):
    def setUp(self) -> None:
        super().setUp()
        this_kernel(self, "32768 60999", "33000,50000-50009")

    def sources(self, text: str, **environ: str) -> Sources:
        """What is read of this table; it is the same when it was written and read again."""
        read = self.load(f"[sources]\n{text}\n{WEB}{LISTENER}", **environ)
        self.assertEqual(self.load(config.as_toml(read)), read)
        sources: Sources = read.sources
        return sources

    def wrong(self, text: str, **environ: str) -> list[str]:
        lines: list[str] = self.mistakes(f"[sources]\n{text}\n{WEB}{LISTENER}", **environ)
        return lines


class GoodTests(SourcesCase):
    """What is read, and written again."""

    def test_nothing_said(self) -> None:
        """The kernel chooses."""
        for text in ("", "addresses = []"):
            self.assertEqual(self.sources(text), Sources((), None, 0.02))
        self.assertEqual(self.load(WEB + LISTENER).sources, Sources())

    def test_all_said(self) -> None:
        self.assertEqual(
            self.sources(
                "addresses = ['10.0.0.1', 'fd00::1']\nport_range = '40000-60999'\nheadroom = 0.1"
            ),
            Sources(("10.0.0.1", "fd00::1"), PortRange(40000, 60999, 10), 0.1),
        )

    def test_addresses(self) -> None:
        """In one spelling each, and in the order of the file."""
        for written, *read in (
            ("'10.0.0.1'", "10.0.0.1"),
            ("'fd00::2', '10.0.0.1'", "fd00::2", "10.0.0.1"),
            ("'FD00:0:0::00A'", "fd00::a"),
            ("'127.0.0.1', '::1', '169.254.1.1'", "127.0.0.1", "::1", "169.254.1.1"),
            ("'10.0.0.255', '10.0.0.0'", "10.0.0.255", "10.0.0.0"),
        ):
            with self.subTest(written):
                self.assertEqual(self.sources(f"addresses = [{written}]").addresses, tuple(read))

    def test_ranges(self) -> None:
        """Up to the ends of the kernel's; what is reserved outside does not count."""
        for written, *read in (
            ("32768-60999", 32768, 60999, 11),
            ("32768-32999", 32768, 32999, 0),
            ("33001-49999", 33001, 49999, 0),
            ("50005-50100", 50005, 50100, 5),
            ("60000-60999", 60000, 60999, 0),
        ):
            with self.subTest(written):
                found = self.sources(f"port_range = '{written}'").port_range
                self.assertEqual(found, PortRange(*read))

    def test_every_port_there_is(self) -> None:
        this_kernel(self, "1 65535")
        for written in ("1-65535", "00001-65535"):
            found = self.sources(f"port_range = '{written}'").port_range
            self.assertEqual(found, PortRange(1, 65535))

    def test_few_ports(self) -> None:
        """One that is left is enough."""
        for ports, headroom, size in (
            ("40000-40000", "0", 1),
            ("40000-40001", "0.02", 2),
            ("40000-40009", "0.9", 10),
            ("49999-50009", "0", 1),
        ):
            with self.subTest(ports):
                read = self.sources(f"port_range = '{ports}'\nheadroom = {headroom}").port_range
                assert read is not None
                self.assertEqual(read.size, size)

    def test_no_address_of_a_family(self) -> None:
        """There the kernel chooses, and a unix socket needs none."""
        for backends in ("'10.0.0.1:80'", "'[::1]:80'", "'unix:/run/x'"):
            for address in ("10.0.0.1", "fd00::1"):
                text = f"[clusters.web]\nbackends = [{backends}]\n{LISTENER}"
                read = self.load(f"sources.addresses = ['{address}']\n{text}")
                self.assertEqual(read.sources.addresses, (address,))

    def test_from_the_environment(self) -> None:
        read = self.sources(
            "addresses = ['${ADDRESS}']\nport_range = '${LOW}-${HIGH}'",
            ADDRESS="10.0.0.1",
            LOW="40000",
            HIGH="40999",
        )
        self.assertEqual(read, Sources(("10.0.0.1",), PortRange(40000, 40999)))

    def test_what_is_written(self) -> None:
        """A range as a file has it; none where there is none to write."""
        read = self.load(
            f"[sources]\naddresses = ['FD00::1']\nport_range = '40000-40999'\n{WEB}{LISTENER}"
        )
        self.assertEqual(
            tomllib.loads(config.as_toml(read))["sources"],
            {"addresses": ["fd00::1"], "port_range": "40000-40999", "headroom": 0.02},
        )
        self.assertEqual(
            tomllib.loads(config.as_toml(self.load(WEB + LISTENER)))["sources"],
            {"addresses": [], "headroom": 0.02},
        )


class ExampleTests(SourcesCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(tables, "components", REAL_COMPONENTS)

    def test_it_is_right(self) -> None:
        """It shows every key there is; also the one that not every kernel knows."""
        text = EXAMPLE.read_text(encoding="utf-8")
        read = self.load(text)
        self.assertEqual(self.load(config.as_toml(read)), read)
        self.assertIsNone(read.sources.port_range)
        self.assertEqual({each.close for each in read.clusters}, {"reset"})
        text, count = re.subn(r"(?m)^# (?=port_range = )", "", text)
        self.assertEqual(count, 1)
        self.assertEqual(set(tomllib.loads(text)["sources"]), set(attrs.fields_dict(Sources)))
        narrow = self.load(text).sources
        self.assertEqual(narrow.port_range, PortRange(40000, 60999, 10))
        self.assertEqual(narrow, attrs.evolve(read.sources, port_range=narrow.port_range))
        self.assertEqual(narrow.headroom, Sources().headroom)


class MistakeTests(SourcesCase):
    """Each is one line, with its place."""

    def test_addresses(self) -> None:
        place = "2: sources.addresses"
        for written, *expected in (
            ("'10.0.0.1'", f"{place}: expected a list of IP addresses, not '10.0.0.1'"),
            ("true", f"{place}: expected a list of IP addresses, not true"),
            ("{}", f"{place}: expected a list of IP addresses, not a table"),
            *(
                (f"['{text}']", f"{place}[0]: {reason} '{text}'")
                for reason, texts in (
                    (
                        IP,
                        (
                            *("", "web.example", "localhost", "eth0", "*", "unix:/run/x", "12345"),
                            *("10.0.0.1:80", "[::1]", "[::1]:80", "10.0.0.1/32", "10.0.0.256"),
                            *("10.0.0", "010.0.0.1", "10.0.0.1 ", "\u0661.0.0.1"),
                        ),
                    ),
                    (HERE, ("0.0.0.0", "::", "0::0", "224.0.0.1", "239.1.2.3", "ff02::1")),
                    (HERE, ("255.255.255.255",)),
                    (SCOPE, ("fe80::1%eth0", "fe80::1", "fd00::1%1", "::1%lo")),
                    (
                        "expected the IPv4 address itself, 10.0.0.1, not",
                        ("::ffff:10.0.0.1", "::FFFF:a00:1"),
                    ),
                    ("expected the IPv4 address itself, 0.0.0.0, not", ("::ffff:0.0.0.0",)),
                )
                for text in texts
            ),
            ("[1]", f"{place}[0]: {IP} 1"),
            ("[['10.0.0.1']]", f"{place}[0]: {IP} a list"),
            (
                "['10.0.0.1', 'x', 'fd00::1', '::', '10.0.0.2']",
                f"{place}[1]: {IP} 'x'",
                f"{place}[3]: {HERE} '::'",
            ),
        ):
            with self.subTest(written):
                self.assertEqual(self.wrong(f"addresses = {written}"), expected)

    def test_one_address_twice(self) -> None:
        """However it is spelt; the first is named."""
        place, same = "sources.addresses", "the same address as addresses"
        self.assertEqual(
            self.wrong(
                "addresses = [\n'10.0.0.2',\n'10.0.0.1',\n'fd00::1',\n'10.0.0.1',\n'FD00:0::1',"
                "\n'10.0.0.1',\n'x',\n]"
            ),
            [
                f"6: {place}[3]: {same}[1]: 10.0.0.1",
                f"7: {place}[4]: {same}[2]: fd00::1",
                f"8: {place}[5]: {same}[1]: 10.0.0.1",
                f"9: {place}[6]: {IP} 'x'",
            ],
        )

    def test_ranges_that_are_none(self) -> None:
        for written, said in (
            *(
                (f"'{text}'", f"'{text}'")
                for text in (
                    *("", "-", "40000", "40000-", "-40000", "40000-40001-40002", "a-b"),
                    *("40000 - 40001", "40000:40001", "40000,40001", "40001-40000", "0-40000"),
                    *("40000-65536", "40000-99999", "40000-400000", "040000-40001"),
                    *("+40000-40001", "0x1-0x2"),
                    *("-1-40000", "\u0664\u0660000-40001", "40000-40001 ", "40000.0-40001"),
                )
            ),
            ("40000", "40000"),
            ("[40000, 40001]", "a list"),
            ("true", "true"),
            ("{low = 40000, high = 40001}", "a table"),
        ):
            with self.subTest(written):
                self.assertEqual(
                    self.wrong(f"headroom = 0\nport_range = {written}"),
                    [f"3: sources.port_range: {PORTS} {said}"],
                )

    def test_a_line_end_in_a_range(self) -> None:
        self.assertEqual(
            self.wrong('port_range = "40000-40001\\n"'),
            [f"2: sources.port_range: {PORTS} '40000-40001\\n'"],
        )

    def test_outside_the_kernels(self) -> None:
        for written in ("32767-40000", "40000-61000", "1-65535", "1024-2047", "61000-65535"):
            with self.subTest(written):
                self.assertEqual(
                    self.wrong(f"port_range = '{written}'"),
                    [
                        "2: sources.port_range: expected a part of the kernel's own range,"
                        f" 32768-60999 (net.ipv4.ip_local_port_range), not {written}: the kernel"
                        " ignores what lies outside"
                    ],
                )

    def test_before_linux_6_3(self) -> None:
        """No range will do; without one all is well."""
        this_kernel(
            self,
            "32768 60999",
            fault=OSError(errno.ENOPROTOOPT, "Protocol not available"),
        )
        for written in ("40000-40999", "1-2", "32768-60999"):
            self.assertEqual(
                self.wrong(f"port_range = '{written}'"),
                [
                    "2: sources.port_range: a range of ports needs Linux 6.3 or later"
                    " (IP_LOCAL_PORT_RANGE: Protocol not available)"
                ],
            )
        self.assertEqual(self.wrong("port_range = 'x'"), [f"2: sources.port_range: {PORTS} 'x'"])
        self.assertEqual(self.sources("addresses = ['::1']"), Sources(("::1",)))

    def test_no_port_is_left(self) -> None:
        for ports, headroom, reserved, kept in (
            ("40000-40000", "0.02", 0, 1),
            ("40000-40000", "0.9", 0, 1),
            ("40000-40001", "0.51", 0, 2),
            ("40000-40008", "0.9", 0, 9),
            ("50000-50009", "0", 10, 0),
            ("50000-50010", "0.02", 10, 1),
            ("33000-33000", "0.5", 1, 0),
        ):
            with self.subTest(ports):
                self.assertEqual(
                    self.wrong(f"headroom = {headroom}\nport_range = '{ports}'"),
                    [
                        f"3: sources.port_range: no port is left of {ports} ({reserved} reserved in"
                        f" net.ipv4.ip_local_reserved_ports, {kept} kept as headroom)"
                    ],
                )

    def test_all_at_once(self) -> None:
        """A mistake in one key says nothing of the others, which are looked at as well."""
        self.assertEqual(
            self.wrong(
                "adresses = []\naddresses = ['x']\nport_range = '1-2'\nheadroom = 1\nports = 3"
            ),
            [
                "2: sources.adresses: unknown key; did you mean addresses?",
                f"3: sources.addresses[0]: {IP} 'x'",
                "4: sources.port_range: expected a part of the kernel's own range, 32768-60999"
                " (net.ipv4.ip_local_port_range), not 1-2: the kernel ignores what lies outside",
                "5: sources.headroom: expected a number from 0 to 0.9, not 1",
                "6: sources.ports: unknown key",
            ],
        )
        self.assertEqual(
            self.mistakes(f"sources = ['10.0.0.1']\n{LISTENER}"),
            ["1: sources: expected a table, not a list"],
        )

    def test_not_in_the_environment(self) -> None:
        """Nothing is said of the value that is not known."""
        self.assertEqual(
            self.wrong("addresses = ['${A}', '10.0.0.1']\nport_range = '${B}-40000'"),
            [
                "2: sources.addresses[0]: the environment variable A is not set",
                "3: sources.port_range: the environment variable B is not set",
            ],
        )


class CloseTests(SourcesCase):
    """How connections to a cluster's backends are closed."""

    def test_good(self) -> None:
        for more, close in (
            ("", "fin"),
            ("close = 'fin'\n", "fin"),
            ("close = 'reset'\n", "reset"),
        ):
            read = self.load(WEB + more + LISTENER)
            self.assertEqual(read.clusters[0].close, close)
            text = config.as_toml(read)
            self.assertIn(f'\nclose = "{close}"\n', text)
            self.assertEqual(self.load(text), read)

    def test_each_cluster_has_its_own(self) -> None:
        other = WEB.replace("web", "other")
        read = self.load(f"{WEB}close = 'reset'\n{other}{LISTENER}")
        self.assertEqual([each.close for each in read.clusters], ["reset", "fin"])

    def test_mistakes(self) -> None:
        for written, said in (
            ("'rst'", "'rst'"),
            ("'RESET'", "'RESET'"),
            ("''", "''"),
            ("true", "true"),
            ("1", "1"),
        ):
            self.assertEqual(
                self.mistakes(f"{WEB}close = {written}\n{LISTENER}"),
                [f"3: clusters.web.close: expected one of fin, reset, not {said}"],
            )
