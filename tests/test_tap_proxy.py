"""``twistd proxykit MODE --proxy-protocol ... --trust ...``: what it says, and what is wrong."""

from __future__ import annotations

import os

from proxykit import flags
from proxykit.config import as_toml, load
from proxykit.ops.service import ProxyService
from proxykit.tap import makeService
from tests import test_tap_mistakes
from tests.test_tap import HTTP, TCP, TapTestCase

SNI = ("sni", "--listen", "tcp:0:interface=127.0.0.1")
ROUTES = ("--route", "a.example=127.0.0.1:1,127.0.0.1:2", "--route", "*.b.example=127.0.0.1:3")
#: For each mode: a listener that is complete, with one cluster or with three.
COMPLETE = (
    TCP,
    (*HTTP, "--backend", "127.0.0.1:9001"),
    (*HTTP, *ROUTES),
    (*HTTP, "--backend", "127.0.0.1:9001", *ROUTES),
    (*SNI, "--backend", "127.0.0.1:9001"),
    (*SNI, *ROUTES),
    (*SNI, "--backend", "127.0.0.1:9001", *ROUTES),
)
HINT = " (twistd proxykit --help says what there is)"


class FlagTests(TapTestCase):
    """They say the same in each mode."""

    def test_directions(self) -> None:
        for arguments in COMPLETE:
            for direction, reads, sends in (
                ((), False, ""),
                (("--proxy-protocol", "in"), True, ""),
                (("--proxy-protocol", "out"), False, "v2"),
                (("--proxy-protocol", "both"), True, "v2"),
                (("--proxy-protocol=both",), True, "v2"),
            ):
                config = self.configured(*arguments, "--trust", "127.0.0.1", *direction)
                (listener,) = config.listeners
                self.assertIs(listener.proxy_protocol, reads)
                self.assertEqual(listener.proxy_timeout, 5.0)
                self.assertEqual(listener.trust, ("127.0.0.1",))
                self.assertEqual({each.proxy_protocol for each in config.clusters}, {sends})

    def test_every_cluster(self) -> None:
        """Those of routes, too, beside what else is said of all."""
        config = self.configured(
            *COMPLETE[-1], "--proxy-protocol", "out", "--balance", "round-robin"
        )
        self.assertEqual(
            {each.name: (each.proxy_protocol, each.balance) for each in config.clusters},
            dict.fromkeys(("a.example", "*.b.example", "backends"), ("v2", "round-robin")),
        )

    def test_trust(self) -> None:
        """Any number of them, whether headers are read or not."""
        for arguments in COMPLETE:
            self.assertEqual(self.configured(*arguments).listeners[0].trust, ())
            config = self.configured(
                *(*arguments, "--trust", "10.0.0.0/8", "--trust", "unix", "--trust=::1")
            )
            self.assertEqual(config.listeners[0].trust, ("10.0.0.0/8", "unix", "::1"))

    def test_sending_needs_no_trust(self) -> None:
        for arguments in COMPLETE:
            config = self.configured(*arguments, "--proxy-protocol", "out")
            self.assertEqual(config.listeners[0].trust, ())

    def test_a_file_can_say_it_too(self) -> None:
        for arguments in COMPLETE:
            config = self.configured(*arguments, "--proxy-protocol", "both", "--trust", "::1")
            self.assertEqual(load(self.file(as_toml(config)), environ=os.environ), config)

    def test_the_service(self) -> None:
        options = self.parse(*TCP, "--proxy-protocol", "both", "--trust", "::1")
        (service,) = makeService(options)
        assert isinstance(service, ProxyService)
        listener = service.listeners["tcp"]
        self.assertIsNotNone(listener.headers)
        self.assertTrue(listener.notes_server)
        self.assertEqual(service.registry.cluster("backends").config.proxy_protocol, "v2")

    def test_help(self) -> None:
        for arguments in COMPLETE:
            options = self.parse(*arguments)
            assert isinstance(options.subOptions, flags.ModeOptions)
            text = " ".join(str(options.subOptions).split())
            for part in (
                "--proxy-protocol= PROXY headers: in, out, both",
                "--trust= Who may say for whom it speaks, by PROXY headers or forwarding fields:"
                " a network, an address, or unix. May be given more than once.",
            ):
                self.assertEqual(text.count(part), 1, text)


class MistakeTests(TapTestCase):
    """One line that names the flag, and status 1."""

    one_line = test_tap_mistakes.MistakeTests.one_line

    def test_directions(self) -> None:
        for arguments in COMPLETE:
            for word in ("nonsense", "", "IN", "v2", "yes", "in,out"):
                self.assertEqual(
                    self.one_line(*arguments, "--trust", "::1", "--proxy-protocol", word),
                    f"--proxy-protocol: expected one of in, out, both, not {word!r}",
                )

    def test_nobody_is_trusted(self) -> None:
        for arguments in COMPLETE:
            for direction in ("in", "both"):
                self.assertEqual(
                    self.one_line(*arguments, "--proxy-protocol", direction),
                    "--proxy-protocol: needs trust: the networks that may send a PROXY header",
                )

    def test_trust(self) -> None:
        network = "expected a network such as 10.0.0.0/8, an address, or unix"
        for arguments in COMPLETE:
            for more in ((), ("--proxy-protocol", "in"), ("--proxy-protocol", "out")):
                for given, why in (
                    ("x", f"{network}, not 'x'"),
                    ("", f"{network}, not ''"),
                    ("10.0.0.1/8", "expected 10.0.0.0/8, not '10.0.0.1/8'"),
                ):
                    self.assertEqual(
                        self.one_line(*arguments, *more, "--trust", "::1", "--trust", given),
                        f"--trust {given}: {why}",
                    )

    def test_an_endpoint_that_reads_it_already(self) -> None:
        for arguments in COMPLETE:
            where = ("--listen", "haproxy:tcp:0:interface=127.0.0.1", "--trust", "::1")
            self.assertEqual(
                self.one_line(*arguments, *where, "--proxy-protocol", "both"),
                "--proxy-protocol: the endpoint haproxy: reads a PROXY header already",
            )
            config = self.configured(*arguments, *where, "--proxy-protocol", "out")
            self.assertFalse(config.listeners[0].proxy_protocol)

    def test_nobody_to_send_it_to(self) -> None:
        for arguments, mode in ((TCP[:3], "tcp"), (HTTP, "http"), (SNI, "sni")):
            line = self.one_line(*arguments, "--proxy-protocol", "out")
            self.assertTrue(line.startswith("--backend"), line)
            self.assertIn(f": mode {mode} needs a cluster", line)

    def test_flags_that_are_none(self) -> None:
        for arguments in COMPLETE:
            for more, expected in (
                (("--proxy-protocol",), "option --proxy-protocol requires argument"),
                (("--trust",), "option --trust requires argument"),
                (("--proxy-timeout", "1"), "option --proxy-timeout not recognized"),
            ):
                self.assertEqual(self.one_line(*arguments, *more), expected + HINT)
        for more in (("--proxy-protocol", "in"), ("--trust", "::1")):
            self.assertEqual(self.one_line("demo", *more), f"option {more[0]} not recognized{HINT}")
