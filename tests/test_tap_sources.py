"""``twistd proxykit MODE --source ...``: what it says, and what is wrong."""

from __future__ import annotations

import os

from proxykit import flags
from proxykit.config import as_toml, load
from proxykit.model import Sources
from proxykit.tap import makeService
from tests import test_tap_mistakes
from tests.test_tap import TapTestCase
from tests.test_tap_proxy import COMPLETE, HINT

SOURCES = ("--source", "127.0.0.1", "--source", "FD00:0::1", "--source=127.0.0.2")


class FlagTests(TapTestCase):
    """It says the same with each mode."""

    def test_addresses(self) -> None:
        for arguments in COMPLETE:
            self.assertEqual(self.configured(*arguments).sources, Sources())
            self.assertEqual(
                self.configured(*arguments, *SOURCES).sources,
                Sources(("127.0.0.1", "fd00::1", "127.0.0.2")),
            )

    def test_a_file_can_say_it_too(self) -> None:
        for arguments in COMPLETE:
            config = self.configured(*arguments, *SOURCES)
            self.assertEqual(load(self.file(as_toml(config)), environ=os.environ), config)

    def test_the_environment(self) -> None:
        self.patch(os, "environ", {"ADDRESS": "127.0.0.3"})
        config = self.configured(*COMPLETE[0], "--source", "${ADDRESS}")
        self.assertEqual(config.sources.addresses, ("127.0.0.3",))

    def test_the_service(self) -> None:
        options = self.parse(*COMPLETE[0], "--source", "127.0.0.1", "--source", "127.0.0.2")
        (service,) = makeService(options)  # type: ignore[call-overload]
        self.assertEqual(service.accountant.addresses, ("127.0.0.1", "127.0.0.2"))

    def test_help(self) -> None:
        for arguments in COMPLETE:
            options = self.parse(*arguments)
            assert isinstance(options.subOptions, flags.ModeOptions)
            text = " ".join(str(options.subOptions).split())
            part = (
                "--source= A local IP address that connections to backends leave from. May be given"
                " more than once."
            )
            self.assertEqual(text.count(part), 1, text)


class MistakeTests(TapTestCase):
    """One line that names the flag, and status 1."""

    one_line = test_tap_mistakes.MistakeTests.one_line

    def test_addresses(self) -> None:
        ip = "expected an IP address such as 10.0.0.1 or fd00::1"
        for arguments in COMPLETE:
            for given, why in (
                ("x", f"{ip}, not 'x'"),
                ("", f"{ip}, not ''"),
                ("10.0.0.1:80", f"{ip}, not '10.0.0.1:80'"),
                ("0.0.0.0", "expected an address of this machine, not '0.0.0.0'"),
                ("fe80::1%eth0", "expected an address that needs no scope, not 'fe80::1%eth0'"),
                (
                    "::ffff:10.0.0.1",
                    "expected the IPv4 address itself, 10.0.0.1, not '::ffff:10.0.0.1'",
                ),
                ("127.0.0.1", "the same address as addresses[0]: 127.0.0.1"),
            ):
                self.assertEqual(
                    self.one_line(*arguments, "--source", "127.0.0.1", "--source", given),
                    f"--source {given}: {why}",
                )

    def test_each_of_them_is_a_line(self) -> None:
        text = self.refused(*COMPLETE[0], "--source", "x", *SOURCES, "--source", "y")
        self.assertEqual(
            [line.partition(": expected")[0] for line in text.splitlines()],
            ["proxykit: --source x", "proxykit: --source y"],
        )

    def test_flags_that_are_none(self) -> None:
        for arguments in COMPLETE:
            self.assertEqual(
                self.one_line(*arguments, "--source"), f"option --source requires argument{HINT}"
            )
        self.assertEqual(
            self.one_line("demo", "--source", "127.0.0.1"), f"option --source not recognized{HINT}"
        )
