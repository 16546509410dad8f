"""proxykit.sources.file: what a file may say, and when it is read again."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxykit.errors import ConfigError
from proxykit.model import Address, Backend
from proxykit.sources import file
from proxykit.sources.file import LARGEST, FileSettings, FileSource, parse, read
from proxykit.strict import Wrong
from tests.sockets import hear

ONE, TWO = Backend(Address("10.0.0.1", 80)), Backend(Address("10.0.0.2", 80))


class ParseTests(SynchronousTestCase):
    def mistakes(self, text: str | bytes) -> list[str]:
        content = text if isinstance(text, bytes) else text.encode()
        error = self.assertRaises(ConfigError, parse, content, "f")
        return list(error.lines)

    def test_all_there_is(self) -> None:
        text = (
            b"# Made by hand, \xc3\xa9\n"
            b"\n"
            b"10.0.0.1:80\r\n"
            b"\t10.0.0.2:80  weight=256   backup # slow\n"
            b"[fd00::0001]:80 backup#\n"
            b"unix:/run/web.sock weight=1\n"
            b"   # the end\n"
        )
        self.assertEqual(
            parse(text, "f"),
            (
                Backend(Address("10.0.0.1", 80)),
                Backend(Address("10.0.0.2", 80), 256, True),
                Backend(Address("fd00::1", 80), backup=True),
                Backend(Address("/run/web.sock", 0)),
            ),
        )

    def test_one_mistake(self) -> None:
        weight = "expected weight=1 to weight=256, or backup, not "
        for text, expected in (
            ("\n10.0.0.1\n", "f:2: expected host:port, [v6]:port or unix:/path with a port from 1"),
            ("web.internal:80\n", "f:1: expected an IP address or unix:/path, not the name 'web"),
            ("10.0.0.1:80 weight=0\n", f"f:1: {weight}'weight=0'"),
            ("10.0.0.1:80 weight=257\n", f"f:1: {weight}'weight=257'"),
            ("10.0.0.1:80 weight=+1\n", f"f:1: {weight}'weight=+1'"),
            ("10.0.0.1:80 weight=1x\n", f"f:1: {weight}'weight=1x'"),
            ("10.0.0.1:80 back\x1b[0mup\n", rf"f:1: {weight}'back\x1b[0mup'"),
            ("10.0.0.1:80\n#\n10.0.0.1:80\n", "f:3: the same address as in line 1: 10.0.0.1:80"),
            ("10.0.0.1:80\n10.0.0.2:80", "f:2: expected the line to end; it may be cut off"),
            ("10.0.0.1:80\n# no en", "f:2: expected the line to end; it may be cut off"),
            (b"#\n\xff\n", "f:2: not UTF-8: invalid start byte"),
            ("", "f: expected at least one address, such as 10.0.0.1:80"),
            ("# none today\n\n", "f: expected at least one address, such as 10.0.0.1:80"),
        ):
            with self.subTest(text=text):
                (line,) = self.mistakes(text)
                self.assertTrue(line.startswith(expected), line)

    def test_each_mistake(self) -> None:
        lines = self.mistakes("a\n10.0.0.1:80\nb")
        self.assertEqual([line[:4] for line in lines], ["f:1:", "f:3:", "f:3:"])


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()

    def write(self, text: str) -> None:
        Path(self.path).write_text(text)


class ReadTests(Case):
    def error(self, path: str) -> str:
        error = self.assertRaises(ConfigError, read, path)
        (line,) = error.lines
        return line

    def test_read(self) -> None:
        self.write("10.0.0.2:80\n10.0.0.1:80\n")
        self.assertEqual(read(self.path), (TWO, ONE))

    def test_what_cannot_be(self) -> None:
        """What is no file would never end, or be waited for."""
        self.assertEqual(self.error(self.path), f"{self.path}: No such file or directory")
        os.mkfifo(self.path)
        for path in (self.path, "/dev/zero", os.path.dirname(self.path)):
            self.assertEqual(self.error(path), f"{path}: it is not a file")
        self.assertIn("null", self.error("a\0b"))

    def test_too_large(self) -> None:
        self.write("10.0.0.1:80\n" + "#" * (LARGEST - 13) + "\n")
        self.assertEqual(read(self.path), (ONE,))
        self.write("10.0.0.1:80\n" + "#" * (LARGEST - 12) + "\n")
        self.assertEqual(self.error(self.path), f"{self.path}: it has more than {LARGEST} bytes")

    def test_check(self) -> None:
        self.write("10.0.0.1:80\n")
        FileSource().check(FileSettings(self.path))
        self.write("x\ny\n")
        wrong = self.assertRaises(Wrong, FileSource().check, FileSettings(self.path))
        self.assertEqual([path for path, _ in wrong.problems], [("path",)] * 2)
        self.assertTrue(wrong.problems[1][1].startswith(f"{self.path}:2: expected"))


class WatchTests(Case):
    def watch(self) -> None:
        self.clock = Clock()
        self.told: list[tuple[Backend, ...]] = []
        self.lines = hear(self)
        settings = FileSettings(self.path, 2.0)
        self.stop = FileSource().watch(settings, self.told.append, self.clock, "web")

    def started(self) -> None:
        """It has told of two backends, and the log has been looked at."""
        self.write("10.0.0.1:80\n10.0.0.2:80\n")
        self.watch()
        self.assertEqual(self.told, [(ONE, TWO)])
        self.assertEqual(self.lines, [f"web: 2 backends from {self.path}"])
        self.forget()

    def forget(self) -> None:
        self.told.clear()
        self.lines.clear()

    def look(self, times: int = 1) -> None:
        self.clock.pump([2.0] * times)

    def replace(self, text: str) -> None:
        """Rename another file to its name."""
        Path(f"{self.path}.new").write_text(text)
        os.replace(f"{self.path}.new", self.path)

    def test_changed(self) -> None:
        """It counts once it has stayed the same from one look to the next."""
        self.started()
        self.look(3)
        self.write("10.0.0.1:80\n")
        self.look()
        self.assertEqual(self.told, [])
        self.clock.advance(1.9)
        self.assertEqual(self.told, [])
        self.clock.advance(0.1)
        self.assertEqual(self.told, [(ONE,)])
        self.assertEqual(self.lines, [f"web: 1 backend from {self.path}"])
        self.look(5)
        self.assertEqual(len(self.told), 1)

    def test_renamed(self) -> None:
        """Another file of that name, of the same size, and as old."""
        self.started()
        times = os.stat(self.path)
        self.replace("10.0.0.1:80\n10.0.0.3:80\n")
        os.utime(self.path, ns=(times.st_atime_ns, times.st_mtime_ns))
        self.look(2)
        self.assertEqual(self.told, [(ONE, Backend(Address("10.0.0.3", 80)))])

    def test_being_written(self) -> None:
        """Nothing is read as long as more comes, were it well-formed or not."""
        self.started()
        for text in ("10.0.0.2:80\n", "10.0.0.2:80\n10.0", "10.0.0.2:80\n10.0.0.1:80\n"):
            self.write(text)
            self.look()
            self.assertEqual((self.told, self.lines), ([], []))
        self.look()
        self.assertEqual(self.told, [(TWO, ONE)])

    def test_cut_off(self) -> None:
        """Who wrote it has died: what was known stands, and that is said once."""
        self.started()
        self.write("10.0.0.1:80\n10.0.0.2:8")
        self.look(5)
        self.assertEqual(self.told, [])
        (line,) = self.lines
        self.assertEqual(
            line,
            f"web: {self.path}:2: expected the line to end; it may be cut off; the backends stay"
            " those of before",
        )
        self.forget()
        self.write("10.0.0.1:80\n10.0.0.2:80\n")
        self.look(5)
        self.assertEqual(self.told, [])
        self.assertEqual(self.lines, [f"web: 2 backends from {self.path}"])

    def test_mistakes(self) -> None:
        """The log has the first of them; other mistakes are said anew."""
        self.started()
        self.write("x\ny\n")
        self.look(3)
        (line,) = self.lines
        self.assertIn(f"web: {self.path}:1: expected host:port", line)
        self.assertTrue(
            line.endswith(" (and 1 more mistakes); the backends stay those of before"), line
        )
        self.forget()
        self.write("# none\n")
        self.look(3)
        (line,) = self.lines
        self.assertIn(f"{self.path}: expected at least one address", line)
        self.assertEqual(self.told, [])

    def test_vanished(self) -> None:
        self.started()
        os.remove(self.path)
        self.look(5)
        self.assertEqual(self.told, [])
        (line,) = self.lines
        self.assertIn("No such file or directory; the backends stay those of before", line)
        self.forget()
        self.write("10.0.0.2:80\n")
        self.look(2)
        self.assertEqual(self.told, [(TWO,)])

    def test_missing_at_first(self) -> None:
        """A program may begin without it."""
        self.watch()
        self.assertEqual(self.told, [])
        (line,) = self.lines
        self.assertIn("No such file or directory; there are no backends from it yet", line)
        self.write("10.0.0.2:80\n")
        self.look(2)
        self.assertEqual(self.told, [(TWO,)])

    def test_changed_while_it_is_read(self) -> None:
        """Neither what was nor what is: another look is needed."""
        self.started()
        self.write("10.0.0.1:80\n")
        self.look()
        real = read

        def reading(path: str) -> tuple[Backend, ...]:
            self.patch(file, "read", real)
            found = real(path)
            self.write("10.0.0.2:80 weight=7\n")
            return found

        self.patch(file, "read", reading)
        self.look()
        self.assertEqual(self.told, [])
        self.look(2)
        self.assertEqual(self.told, [(Backend(Address("10.0.0.2", 80), 7),)])

    def test_an_impossible_name(self) -> None:
        self.path = "a\0b"
        self.watch()
        self.look(3)
        self.assertEqual(len(self.lines), 1)
        self.assertIn("null", self.lines[0])

    def test_stop(self) -> None:
        self.started()
        self.write("10.0.0.1:80\n")
        self.stop()
        self.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.told, [])
