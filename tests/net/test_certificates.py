"""The certificates of a listener: which one a client gets, and what becomes of changed files."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.deadlines import Deadlines
from proxykit.model import ListenerTls
from proxykit.net.certificates import LOOK_AGAIN, Certificates, context, files, read
from tests.sockets import hear
from tests.tls_certificates import authority_pem, client_context, der, key_pem, leaf, pem
from tests.tls_sockets import Peer


class Case(SynchronousTestCase):
    """A directory, and what is made of it."""

    def setUp(self) -> None:
        self.where = Path(self.mktemp())
        self.where.mkdir()
        self.clock = Clock()
        self.problems: list[int] = []
        self.deadlines = Deadlines(self.clock, lambda: self.problems.append(1))
        self.lines: list[str] = hear(self)  # type: ignore[arg-type]
        self.addCleanup(lambda: self.assertEqual(self.problems, []))

    def put(self, name: str, data: bytes) -> Path:
        """Write a file, as a new one."""
        path = self.where / name
        fresh = self.where / "fresh"
        fresh.write_bytes(data)
        fresh.rename(path)
        return path

    def certificates(self, *paths: Path, **more: Any) -> Certificates:
        settings = ListenerTls(tuple(map(str, paths or (self.where,))), **more)
        made = Certificates("front", settings, self.deadlines)
        made.watch()
        self.addCleanup(made.stop)
        return made

    def shown(self, certificates: Certificates, name: str | None = None) -> bytes:
        """What a client is shown."""
        anybody = client_context()
        anybody.verify_mode = ssl.CERT_NONE
        client = Peer(anybody, False, name)
        server = Peer(certificates.context, True)
        client.feed(b"")
        for _ in range(3):
            server.feed(client.take())
            client.feed(server.take())
        self.assertTrue(client.done)
        found = client.ssl.getpeercert(True)
        assert found is not None
        return found

    def look(self) -> None:
        """Time for one more look passes."""
        self.clock.pump([LOOK_AGAIN / 10] * 15)


class ChoiceTests(Case):
    """By the name that a client asks for."""

    def test_by_name(self) -> None:
        self.put("1.pem", pem("a.example", "also.example"))
        self.put("2.pem", pem("b.example"))
        self.put("3.pem", pem("*.c.example", "C.example"))
        self.put("4.pem", pem("x.c.example"))
        self.put("not.txt", b"nonsense")
        found = self.certificates()
        first = der("a.example", "also.example")
        wild = der("*.c.example", "C.example")
        for name, expected in (
            (None, first),
            ("a.example", first),
            ("also.example", first),
            ("b.example", der("b.example")),
            ("B.EXAMPLE", der("b.example")),
            ("b.example.", der("b.example")),
            ("c.example", wild),
            ("any.c.example", wild),
            ("ANY.c.Example", wild),
            ("x.c.example", der("x.c.example")),
            ("an.y.c.example", first),
            ("unknown.example", first),
            ("localhost", first),
        ):
            self.assertEqual(self.shown(found, name), expected, name)

    def test_of_two_for_one_name_the_first(self) -> None:
        one = self.put("1.pem", pem("a.example"))
        two = self.put("2.pem", pem("b.example"))
        three = self.put("3.pem", pem("b.example", signer="other"))
        found = self.certificates(one, three, two)
        self.assertEqual(self.shown(found, "b.example"), der("b.example", signer="other"))

    def test_by_the_common_name_where_there_is_no_other(self) -> None:
        name = ((x509.NameOID.COMMON_NAME, "Old.example"),)
        self.put("1.pem", pem("a.example"))
        self.put("2.pem", pem("no-san", subject=name))
        self.assertEqual(
            self.shown(self.certificates(), "old.example"), der("no-san", subject=name)
        )

    def test_a_chain(self) -> None:
        path = self.put("1.pem", pem("a.example") + authority_pem())
        self.assertEqual(read(path, ListenerTls(("x",))).names, ("a.example",))

    def test_files_in_their_order(self) -> None:
        b, a = self.put("b.pem", pem("b.example")), self.put("a.pem", pem("a.example"))
        self.assertEqual(files([str(self.where)]), [a, b])
        self.assertEqual(files([str(b), str(self.where)]), [b, a, b])

    def test_old_versions(self) -> None:
        self.put("1.pem", pem("a.example"))
        made = self.certificates().context
        self.assertEqual(made.minimum_version, ssl.TLSVersion.TLSv1_2)
        for server in (True, False):
            options = context(server).options
            self.assertTrue(options & ssl.OP_NO_COMPRESSION)
            self.assertTrue(options & ssl.OP_NO_RENEGOTIATION)


class ReloadTests(Case):
    """Files that change, appear and disappear."""

    def test_a_file_that_changes(self) -> None:
        self.put("1.pem", pem("a.example"))
        found = self.certificates()
        before = found.context
        self.look()
        self.assertIs(found.context, before)
        self.put("1.pem", pem("a.example", signer="other"))
        self.assertEqual(self.shown(found), der("a.example"))
        self.look()
        self.assertEqual(self.shown(found), der("a.example", signer="other"))
        self.assertEqual(self.lines, ["front: certificates read again"])

    def test_one_that_is_written_over(self) -> None:
        """The same file, as long as before: its time tells."""
        path = self.put("1.pem", pem("a.example"))
        found = self.certificates()
        path.write_bytes(pem("b.example"))
        os.utime(path, ns=(1, 1))
        self.look()
        self.assertEqual(self.shown(found), der("b.example"))

    def test_one_that_appears_and_disappears(self) -> None:
        self.put("1.pem", pem("a.example"))
        found = self.certificates()
        second = self.put("2.pem", pem("b.example"))
        self.look()
        self.assertEqual(self.shown(found, "b.example"), der("b.example"))
        second.unlink()
        self.look()
        self.assertEqual(self.shown(found, "b.example"), der("a.example"))

    def test_broken_ones(self) -> None:
        """The old ones stay, all of them, and one line says why."""
        first = self.put("1.pem", pem("a.example"))
        self.put("2.pem", pem("b.example"))
        found = self.certificates()
        self.put("1.pem", pem("a.example", signer="other"))
        self.put("2.pem", b"nonsense")
        for _ in range(3):
            self.look()
        self.assertEqual(self.shown(found, "a.example"), der("a.example"))
        self.assertEqual(self.shown(found, "b.example"), der("b.example"))
        (line,) = self.lines
        self.assertIn("front: certificates have changed and cannot be read, so the old ones", line)
        self.assertIn(f"{self.where}/2.pem: there is no certificate in it", line)
        self.put("2.pem", pem("b.example", signer="other"))
        self.look()
        self.assertEqual(self.shown(found, "b.example"), der("b.example", signer="other"))
        first.unlink()
        (self.where / "2.pem").unlink()
        self.look()
        self.assertEqual(self.shown(found, "b.example"), der("b.example", signer="other"))
        self.assertIn("no .pem file is in this directory", self.lines[-1])
        self.assertEqual(len(self.lines), 3)

    def test_authorities(self) -> None:
        self.put("1.pem", pem("a.example"))
        ca = self.put("ca", authority_pem())
        found = self.certificates(client_ca=str(ca))
        before = found.context
        self.put("ca", authority_pem("other"))
        self.look()
        self.assertIsNot(found.context, before)
        self.put("ca", b"")
        self.look()
        self.assertIn(f"client_ca {ca}: ", self.lines[-1])

    def test_no_more_looks(self) -> None:
        self.put("1.pem", pem("a.example"))
        found = self.certificates()
        found.stop()
        found.stop()
        self.put("1.pem", pem("b.example"))
        self.look()
        self.assertEqual(self.shown(found), der("a.example"))
        self.assertEqual(len(self.deadlines), 0)


class ExpiryTests(Case):
    """Soon after, or before, the end of a certificate."""

    def warned(self) -> list[str]:
        return [line.partition(str(self.where))[2] for line in self.lines]

    def test_in_time(self) -> None:
        self.put("1.pem", pem("a.example", days=15))
        self.certificates()
        self.look()
        self.assertEqual(self.lines, [])

    def test_soon(self) -> None:
        self.put("1.pem", pem("a.example", days=13))
        self.put("2.pem", pem("b.example", days=13))
        self.put("3.pem", pem("c.example"))
        self.certificates()
        ends = f"{leaf('a.example', days=13)[1].not_valid_after_utc:%Y-%m-%d %H:%M}"
        self.assertEqual(
            self.lines[0], f"front: the certificate in {self.where}/1.pem ends {ends} UTC"
        )
        for _ in range(5):
            self.look()
        self.assertEqual(len(self.lines), 2)
        self.clock.pump([1000] * 90)
        self.assertEqual(len(self.lines), 4)

    def test_after_it(self) -> None:
        self.put("1.pem", pem("a.example", days=-1))
        found = self.certificates()
        self.look()
        (line,) = self.lines
        self.assertIn("1.pem has ended ", line)
        self.assertTrue(found.context)

    def test_a_new_one_ends_it(self) -> None:
        self.put("1.pem", pem("a.example", days=1))
        self.certificates()
        self.put("1.pem", pem("a.example"))
        self.look()
        self.clock.pump([1000] * 90)
        self.assertEqual(self.lines[1:], ["front: certificates read again"])


class MistakeTests(Case):
    """One clear line each."""

    def wrong(self, *paths: Path, **more: Any) -> str:
        with self.assertRaises(ValueError) as raised:
            self.certificates(*paths, **more)
        line = str(raised.exception)
        self.assertNotIn("\n", line)
        self.assertNotIn("_ssl.c", line)
        return line

    def test_what_is_wrong_with_a_file(self) -> None:
        key, certificate = (
            key_pem(leaf("a.example")[0]),
            pem("a.example").partition(b"-----BEGIN P"),
        )
        nested = self.where / "inside.pem"
        nested.mkdir()
        for data, expected in (
            (certificate[0], "there is no key in it; expected a chain and its key"),
            (certificate[0] + key_pem(leaf("b.example")[0]),
             "its key is not that of its first certificate"),
            (pem("a.example", passphrase=b"secret"), "its key has a passphrase"),
            (b"", "there is no certificate in it"),
            (b"nonsense", "there is no certificate in it"),
            (der("a.example"), "there is no certificate in it"),
            (key, "there is no certificate in it"),
            (authority_pem() + pem("a.example"), "its key is not that of its first certificate"),
        ):  # fmt: skip
            path = self.put("x.pem", data)
            self.assertEqual(self.wrong(path), f"{path}: {expected}")
        self.assertEqual(self.wrong(nested), f"{nested}: no .pem file is in this directory")

    def test_a_key_that_is_none(self) -> None:
        begin, end = b"-----BEGIN PRIVATE KEY-----\n", b"-----END PRIVATE KEY-----\n"
        certificate = pem("a.example").partition(b"-----BEGIN P")[0]
        path = self.put("x.pem", certificate + begin + b"AAAA\n" + end)
        self.assertEqual(self.wrong(path), f"{path}: it cannot be read: expected PEM")
        for inside in (b"***\n", b""):
            path = self.put("x.pem", certificate + begin + inside + end)
            self.assertTrue(self.wrong(path).startswith(f"{path}: "))

    def test_what_is_not_there(self) -> None:
        path = self.where / "no.pem"
        self.assertEqual(self.wrong(path), f"{path}: No such file or directory")
        self.assertEqual(self.wrong(self.where), f"{self.where}: no .pem file is in this directory")
        with self.assertRaises(ValueError) as raised:
            files([])
        self.assertEqual(str(raised.exception), "expected at least one certificate")

    def test_authorities(self) -> None:
        path = self.put("1.pem", pem("a.example"))
        missing, none = self.where / "ca", self.put("none", b"nonsense")
        for ca, expected in (
            (missing, "No such file or directory"),
            (none, "there is no certificate in it"),
        ):
            self.assertEqual(self.wrong(path, client_ca=str(ca)), f"client_ca {ca}: {expected}")
