"""The admin listener's table: where it may be, and its token."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from proxykit import cli, config
from proxykit.checks import SHORTEST_TOKEN, admin_fault, is_loopback
from tests import test_cli
from tests.test_config import LISTENER, Case

TOKEN = "0123456789abcdef"
LOOPBACK = "tcp:9901:interface=127.0.0.1"


class AdminTableTests(Case):
    def admin(self, *lines: str) -> str:
        return LISTENER + "[admin]\n" + "\n".join(lines)

    def error(self, *lines: str) -> str:
        """The one mistake in such a table, without its place; the table begins in line 5."""
        (line,) = self.mistakes(self.admin(*lines))
        number, _, message = line.partition(": ")
        self.assertIn(int(number), (5, 6, 7, 8))
        return message

    def test_without_a_token(self) -> None:
        read = self.load(self.admin(f"listen = '{LOOPBACK}'"))
        self.assertEqual((read.admin, read.admin_token, read.admin_hosts), (LOOPBACK, "", ()))

    def test_with_one(self) -> None:
        read = self.load(
            self.admin("listen = 'tcp:9901'", "token = '${A}'", "hosts = ['a.example', '::1']"),
            A=TOKEN,
        )
        self.assertEqual((read.admin_token, read.admin_hosts), (TOKEN, ("a.example", "::1")))
        self.assertEqual(self.load(config.as_toml(read)), read)
        self.assertNotIn(TOKEN, repr(read))

    def test_who_may_be_without(self) -> None:
        for where in (
            "tcp:1:interface=127.0.0.1",
            "tcp:1:interface=127.8.9.10",
            "tcp:1:interface=localhost",
            r"tcp6:1:interface=\:\:1",
            r"tcp6:1:interface=\:\:ffff\:127.0.0.1",
            "unix:/run/admin.sock",
        ):
            self.assertEqual(admin_fault(where, ""), "", where)

    def test_who_needs_one(self) -> None:
        for where in (
            "tcp:1",
            "tcp:1:interface=0.0.0.0",
            "tcp:1:interface=10.0.0.1",
            "tcp:1:interface=localhost.example",
            "tcp6:1",
            r"tcp6:1:interface=\:\:",
            r"tcp6:1:interface=\:\:ffff\:10.0.0.1",
            "systemd:domain=INET:index=0",
        ):
            self.assertIn("needs a token", admin_fault(where, ""), where)
            self.assertEqual(admin_fault(where, TOKEN), "")
        self.assertEqual(
            self.error("listen = 'tcp:9901'"),
            "admin.listen: needs a token (admin.token, admin.token_file or --admin-token-file):"
            " without one, it may only be on loopback or on a unix socket",
        )

    def test_loopback(self) -> None:
        self.assertTrue(all(map(is_loopback, ("127.0.0.1", "::1", "::ffff:127.0.0.1"))))
        self.assertFalse(any(map(is_loopback, ("", "10.0.0.1", "::", "example", "::ffff:1.1.1.1"))))

    def test_no_token(self) -> None:
        """Whatever is wrong with it, it is not shown."""
        for token in ("''", "'shortsecret'", "'a secret with spaces'", "'s\u00e9cret0123456789'"):
            message = self.error(f"listen = '{LOOPBACK}'", f"token = {token}")
            self.assertTrue(message.startswith(f"admin.token: expected at least {SHORTEST_TOKEN}"))
            self.assertNotIn("cret", message)
        self.assertEqual(
            self.error(f"listen = '{LOOPBACK}'", "token = 1234567890123456"),
            "admin.token: expected a string",
        )

    def test_a_file(self) -> None:
        path = self.mktemp()
        Path(path).write_text(f"{TOKEN}\n")
        lines = (f"listen = '{LOOPBACK}'", f"token_file = '{path}'")
        read = self.load(self.admin(*lines))
        self.assertEqual(read.admin_token, TOKEN)
        self.assertEqual(self.load(config.as_toml(read)), read)
        self.assertEqual(
            self.error(*lines, f"token = '{TOKEN}'"),
            "admin.token_file: give token or token_file, not both",
        )

    def test_no_such_file(self) -> None:
        path = self.mktemp()
        for content, expected in (
            (None, "the file cannot be read: No such file or directory"),
            ("short\n", "what is in the file is no token: expected at least"),
            ("x" * 5000, "what is in the file is no token: expected at most 4096 bytes"),
        ):
            if content is not None:
                Path(path).write_text(content)
            message = self.error(f"listen = '{LOOPBACK}'", f"token_file = '{path}'")
            self.assertIn(f"admin.token_file: {expected}", message)
            self.assertNotIn("short", message)
            # It may be the token itself, put where its file belongs.
            self.assertNotIn(path, message)
        self.assertIn(
            "expected the name of a file", self.error("listen = 'unix:a'", "token_file=1")
        )
        nul = self.error("listen = 'unix:a'", 'token_file = "a\\u0000b"')
        self.assertIn("cannot be read", nul)

    def test_hosts(self) -> None:
        for host in ("", "*.example", "a.example:80", "a b", "http://a"):
            message = self.error(f"listen = '{LOOPBACK}'", f"hosts = ['{host}']")
            self.assertIn("hosts[0]: expected a host name or an address, without a port", message)


class PrintTests(test_cli.Case):
    def run_main(self, *argv: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        return cli.main(argv), out.getvalue(), err.getvalue()

    def test_the_token_is_hidden(self) -> None:
        good = test_cli.GOOD + "[admin]\nlisten = 'tcp:9901'\ntoken = '${A}'\n"
        self.patch(os, "environ", {"A": TOKEN})
        status, out, err = self.run_main("check", self.file(good), "--print")
        self.assertEqual((status, err), (0, ""))
        self.assertIn('token = "(hidden)"', out)
        self.assertNotIn(TOKEN, out + err)
        status, out, err = self.run_main("check", self.file(out))
        self.assertEqual((status, out), (1, ""))
        self.assertIn("admin.token: expected at least 16", err)
