"""The access log: what a line says, that one entry is one line, and when lines are written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from attrs import asdict, fields
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from proxykit.model import AccessEntry
from proxykit.ops.accesslog import (
    BATCH,
    LONGEST_WAIT,
    SAY_AGAIN,
    AccessLog,
    CombinedFormat,
    JsonFormat,
)

#: A plain entry, of 1 February 2026, 03:04:05 UTC.
PLAIN_JSON = (
    '{"time":1769915045.678,"listener":"front","connection":17,"client":"192.0.2.1",'
    '"method":"GET","target":"/","version":"HTTP/1.1","host":"a.example","status":200,'
    '"bytes_sent":12,"bytes_received":0,"seconds":0.25,"referer":"","user_agent":"",'
    '"request_id":"r1","cluster":"web","backend":"10.1.0.1:80","reused":false,'
    '"own":"none-idle","not_kept":"closed","error":""}'
)
START = "192.0.2.1 - - [01/Feb/2026:03:04:05 +0000]"
PLAIN = f'{START} "GET / HTTP/1.1" 200 12 "-" "-"'
#: The least that a pipe can hold.
PIPE = 4096


def entry(**changed: Any) -> AccessEntry:
    """A plain entry, but for what is named."""
    return AccessEntry(**{**json.loads(PLAIN_JSON), **changed})


def in_zone(test: SynchronousTestCase, zone: str) -> None:
    """Until the end of the test, it is local time there."""
    environment = mock.patch.dict(os.environ, TZ=zone)
    environment.start()
    time.tzset()
    test.addCleanup(time.tzset)
    test.addCleanup(environment.stop)


class CombinedTests(SynchronousTestCase):
    def setUp(self) -> None:
        in_zone(self, "UTC0")

    def assert_line(self, line: str, **changed: Any) -> None:
        with self.subTest(changed=changed):
            self.assertEqual(CombinedFormat().line(entry(**changed)), line + "\n")

    def test_lines(self) -> None:
        self.assert_line(PLAIN)
        self.assert_line(
            f'{START} "GET /a?b=c d HTTP/1.1" 404 0 "http://a.example/" "curl/8.0 (x; y)"',
            target="/a?b=c d",
            status=404,
            bytes_sent=0,
            referer="http://a.example/",
            user_agent="curl/8.0 (x; y)",
        )
        self.assert_line(f'{START} "-" 400 12 "-" "-"', method="", target="", status=400)
        self.assert_line(f'{START} "GET / HTTP/1.1" 000 12 "-" "-"', status=0)

    def test_clients(self) -> None:
        for client, shown in (("", "-"), ("::1", "::1"), ('a b"\\\n', r"a\x20b\x22\x5C\x0A")):
            self.assert_line(PLAIN.replace("192.0.2.1", shown), client=client)

    def test_what_is_escaped(self) -> None:
        for text, shown in (
            ("it's [all] {right} ~!#%&", "it's [all] {right} ~!#%&"),
            ('a\\b\\"c', r"a\x5Cb\x5C\x22c"),
            ("\r\n127.0.0.1 - -", r"\x0D\x0A127.0.0.1 - -"),
            ("\x00\t\x1b[2J\x7f", r"\x00\x09\x1B[2J\x7F"),
            ("\x80\x85\xe9\xff", r"\x80\x85\xE9\xFF"),
            ("\u2028\U0001f600", r"\xE2\x80\xA8\xF0\x9F\x98\x80"),
            ("\ud800", r"\xED\xA0\x80"),
        ):
            quoted = f'"{shown} {shown} {shown}" 200 12 "{shown}" "{shown}"'
            names = ("method", "target", "version", "referer", "user_agent")
            self.assert_line(f"{START} {quoted}", **dict.fromkeys(names, text))
            self.assert_line(f'{START} "GET / HTTP/1.1" 200 12 "-" "{shown}"', user_agent=text)

    def test_dates(self) -> None:
        at = entry().time
        for zone, second, date in (
            ("UTC0", 1798761599.999, "31/Dec/2026:23:59:59 +0000"),
            ("EST5", at, "31/Jan/2026:22:04:05 -0500"),
            ("NST3:30", at, "31/Jan/2026:23:34:05 -0330"),
            ("IST-5:30", at, "01/Feb/2026:08:34:05 +0530"),
        ):
            in_zone(self, zone)
            self.assert_line(PLAIN.replace(START[-27:-1], date), time=second)

    def test_a_date_is_made_once_a_second(self) -> None:
        made: list[float] = []
        local = time.localtime
        self.patch(time, "localtime", lambda second: made.append(second) or local(second))
        combined = CombinedFormat()
        for at in (5.0, 5.9, 6.0, 5.5, 6.5, 5.1):
            self.assertIn(f":00:00:0{int(at)} +0000", combined.line(entry(time=at)))
        self.assertEqual(made, [5, 6])
        for second in range(1000):
            combined.line(entry(time=float(second)))
        self.assertLessEqual(len(combined._dates), 64)


class JsonTests(SynchronousTestCase):
    def test_a_line(self) -> None:
        self.assertEqual(JsonFormat().line(entry()), PLAIN_JSON + "\n")
        self.assertEqual(
            JsonFormat().line(entry(target='/"\\\n\xe9', reused=False)),
            PLAIN_JSON.replace('"/"', r'"/\"\\\n\u00e9"').replace("true", "false") + "\n",
        )

    def test_halves_of_surrogate_pairs(self) -> None:
        for text, shown in (
            ("\udc80a\udc00\ud800", "\ufffda\ufffd\ufffd"),
            ("\ud83d\ude00\U0001f600", "\U0001f600\U0001f600"),
            ("\\ud800", "\\ud800"),
        ):
            with self.subTest(text=ascii(text)):
                line = JsonFormat().line(entry(referer=text))
                self.assertEqual(json.loads(line), asdict(entry(referer=shown)))


def entries(alphabet: st.SearchStrategy[str]) -> st.SearchStrategy[AccessEntry]:
    """Whatever the fields may hold."""
    values = {"str": st.text(alphabet), "int": st.integers(0, 2**63), "bool": st.booleans()}
    values["float"] = st.floats(0, 4e9)
    return st.builds(
        AccessEntry, **{each.name: values[str(each.type)] for each in fields(AccessEntry)}
    )


#: Any text at all, and rather often what could forge something.
ANYTHING = st.sampled_from('\r\n"\\ -[]\x00\x85\u2028\ud800\udfff') | st.characters()
#: How a reader of combined logs takes a line apart.
COMBINED = r'[^ "]+ - - \[[\w/]+(:\d\d){3} [+-]\d{4}\] "[^"]*" \d+ \d+ "[^"]*" "[^"]*"\n\Z'


class EntryTests(SynchronousTestCase):
    @given(entries(ANYTHING))
    def test_one_entry_is_one_line(self, made: AccessEntry) -> None:
        self.assertRegex(CombinedFormat().line(made), COMBINED)
        for each in (CombinedFormat(), JsonFormat()):
            line = each.line(made)
            self.assertTrue(line.isascii())
            # More than a line feed ends a line for some readers.
            self.assertEqual([line], [f"{one}\n" for one in line.splitlines()])

    @given(entries(st.characters(exclude_categories=["Cs"])))
    def test_json_loads_back(self, made: AccessEntry) -> None:
        self.assertEqual(json.loads(JsonFormat().line(made)), asdict(made))

    @given(st.text(st.characters(max_codepoint=255), min_size=1))
    def test_what_was_escaped_can_be_read(self, text: str) -> None:
        shown = CombinedFormat().line(entry(user_agent=text)).split('"')[-2]
        self.assertEqual(shown.encode().decode("unicode_escape"), text)


class LogCase(SynchronousTestCase):
    """A log in a directory of its own, a clock, and what the proxy's own log is told."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "access.log"
        self.old = self.directory / "access.log.1"
        self.said: list[str] = []

        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") == "proxykit.ops.accesslog.AccessLog":
                self.said.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def assert_said(self, *what: str, path: Path | str = "") -> None:
        """What the proxy's own log was told since this was asked last."""
        where = os.path.abspath(path or self.path)
        self.assertEqual(self.said, [f"access log {where}: {each}" for each in what])
        self.said.clear()

    def open(self, path: Path | str = "", format: str = "combined") -> AccessLog:
        log = AccessLog(str(path or self.path), format, self.clock)
        self.addCleanup(log.close)
        return log

    def lines(self, path: Path | None = None) -> list[str]:
        """The targets that a file has lines of."""
        text = (path or self.path).read_text("ascii")
        return [line.split('"')[1].split()[1] for line in text.splitlines()]


class BatchTests(LogCase):
    def test_it_is_written_after_a_second_at_most(self) -> None:
        log = self.open()
        log.write(entry(target="/1"))
        self.clock.advance(0.5)
        log.write(entry(target="/2"))
        self.assertEqual(self.lines(), [])
        self.clock.advance(0.5)
        self.assertEqual(self.lines(), ["/1", "/2"])

    def test_it_keeps_no_timer_while_there_is_nothing_to_write(self) -> None:
        log = self.open()
        for count in (1, 2, 3):
            self.assertEqual(self.clock.getDelayedCalls(), [])
            log.write(entry())
            log.write(entry())
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
            self.clock.advance(LONGEST_WAIT)
            self.assertEqual(self.lines(), ["/"] * 2 * count)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_is_written_when_it_is_full_in_one_piece(self) -> None:
        pieces: list[int] = []
        write = os.write
        log = self.open()
        self.patch(os, "write", lambda to, data: pieces.append(len(data)) or write(to, data))
        length = len(CombinedFormat().line(entry()))
        count = -(-BATCH // length)
        for _ in range(count - 1):
            log.write(entry())
        self.assertEqual(pieces, [])
        log.write(entry())
        self.assertEqual((pieces, self.lines()), ([count * length], ["/"] * count))
        # The next one waits for a second at most as well.
        log.write(entry())
        self.clock.advance(LONGEST_WAIT)
        self.assertEqual(pieces[1:], [length])

    def test_it_is_written_though_not_all_is_taken_at_once(self) -> None:
        write = os.write
        log = self.open()
        self.patch(os, "write", lambda to, data: write(to, data[:50]))
        log.write(entry(target="/1"))
        log.write(entry(target="/2"))
        log.flush()
        self.assertEqual((self.lines(), log.lost), (["/1", "/2"], 0))

    def test_close(self) -> None:
        log = self.open()
        log.write(entry())
        for again in (log.close, log.close, log.reopen, log.flush):
            again()
        self.assertEqual((log.lost, self.lines()), (0, ["/"]))
        self.assert_said()
        log.write(entry())
        self.assertEqual((log.lost, self.lines()), (1, ["/"]))
        self.assert_said("entries lost: 1 (the log is closed)")
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FileTests(LogCase):
    def test_how_a_file_is_made(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        log = self.open()
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o640)
        self.assertFalse(os.get_inheritable(log._descriptor))

    def test_it_appends(self) -> None:
        first = self.open()
        for log, target in ((first, "/1"), (self.open(), "/2"), (first, "/3")):
            log.write(entry(target=target))
            log.flush()
        self.assertEqual(self.lines(), ["/1", "/2", "/3"])

    def test_the_path_is_that_of_the_start(self) -> None:
        self.addCleanup(os.chdir, Path.cwd())
        os.chdir(self.directory)
        log = self.open("access.log")
        os.mkdir("elsewhere")
        os.chdir("elsewhere")
        log.reopen()
        self.assertEqual(os.listdir(), [])

    def test_what_cannot_be_opened(self) -> None:
        os.mkfifo(self.path)
        for path, number in (
            (self.directory, errno.EISDIR),
            (self.directory / "none" / "access.log", errno.ENOENT),
            # Nobody reads the pipe: to wait for one would hold up the start.
            (self.path, errno.ENXIO),
        ):
            with self.subTest(path=path):
                raised = self.assertRaises(OSError, self.open, path)
                self.assertEqual(raised.errno, number)

    def test_standard_output(self) -> None:
        command = [sys.executable, "-c", TO_STDOUT, PLAIN_JSON]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        output = subprocess.check_output(command, env=environment, text=True, timeout=60)
        self.assertEqual(output, f"{PLAIN_JSON}\n{PLAIN_JSON}\nstill open")


#: Writes an entry on either side of a reopening, and then to standard output itself.
TO_STDOUT = """
import json, os, sys
from twisted.internet.task import Clock
from proxykit.model import AccessEntry
from proxykit.ops.accesslog import AccessLog

log = AccessLog("-", "json", Clock())
entry = AccessEntry(**json.loads(sys.argv[1]))
for then in (log.reopen, log.close):
    log.write(entry)
    then()
os.write(1, b"still open")
"""


class RotationTests(LogCase):
    def test_rotation_by_rename(self) -> None:
        log = self.open()
        log.write(entry(target="/1"))
        self.path.rename(self.old)
        self.clock.advance(LONGEST_WAIT)
        self.assertFalse(self.path.exists())
        log.write(entry(target="/2"))
        log.reopen()
        log.write(entry(target="/3"))
        log.close()
        self.assertEqual((self.lines(self.old), self.lines()), (["/1", "/2"], ["/3"]))
        self.assert_said()

    def test_it_keeps_one_descriptor(self) -> None:
        def count() -> int:
            numbers = os.listdir("/proc/self/fd")
            return [os.path.realpath(f"/proc/self/fd/{each}") for each in numbers].count(path)

        path = os.path.realpath(self.path)
        log = self.open()
        for _ in range(5):
            log.reopen()
            self.assertEqual(count(), 1)
        log.close()
        self.assertEqual(count(), 0)

    def test_no_new_file_can_be_had(self) -> None:
        log = self.open()
        self.path.rename(self.old)
        self.path.mkdir()
        log.reopen()
        log.write(entry())
        log.close()
        self.assertEqual(self.lines(self.old), ["/"])
        self.assert_said("cannot be opened again, the old file is kept: Is a directory")


class LossTests(LogCase):
    def write(self, log: AccessLog, count: int) -> None:
        """That many entries, in one batch."""
        for _ in range(count):
            log.write(entry())
        log.flush()

    def test_a_full_disk(self) -> None:
        log = self.open("/dev/full")
        why = "No space left on device"
        self.write(log, 2)
        self.assert_said(f"entries lost: 2 ({why})", path="/dev/full")
        self.clock.advance(SAY_AGAIN - 1)
        self.write(log, 3)
        self.assert_said()
        self.clock.advance(1)
        self.write(log, 4)
        self.assert_said(f"entries lost: 7 ({why})", path="/dev/full")
        self.assertEqual(log.lost, 9)

    def test_nothing_is_kept_of_what_is_lost(self) -> None:
        log = self.open("/dev/full")
        for _ in range(1000):
            log.write(entry(target="/" + "a" * 1000))
            self.assertLess(sum(map(len, log._lines)), BATCH)
        self.clock.advance(LONGEST_WAIT)
        self.assertEqual((log.lost, log._lines, len(self.said)), (1000, [], 1))

    def test_there_is_room_again(self) -> None:
        self.path.symlink_to("/dev/full")
        log = self.open()
        self.write(log, 2)
        self.write(log, 3)
        self.assert_said("entries lost: 2 (No space left on device)")
        self.path.unlink()
        log.reopen()
        self.write(log, 1)
        self.assert_said()
        # What was not said before is said when it may be, and once.
        for said in (["entries lost: 3"], []):
            self.clock.advance(SAY_AGAIN)
            self.write(log, 1)
            self.assert_said(*said)
        self.assertEqual((log.lost, self.lines()), (5, ["/"] * 3))

    def pipe(self) -> tuple[AccessLog, int]:
        """A log that is a small pipe, and the end to read it from."""
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        log = self.open()
        self.assertEqual(fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE), PIPE)
        return log, reader

    def test_a_part_of_a_batch_is_written(self) -> None:
        log, reader = self.pipe()
        line = CombinedFormat().line(entry()).encode()
        whole, part = divmod(PIPE, len(line))
        self.assertTrue(part)
        self.write(log, whole + 5)
        self.assertEqual(log.lost, 5)
        self.write(log, 2)
        self.assertEqual(log.lost, 7)
        self.assertEqual(os.read(reader, 2 * PIPE), line * whole + line[:part])
        # The part stays a line of its own, here with only a part after it as well.
        self.write(log, whole + 3)
        self.assertEqual(log.lost, 10)
        self.assertEqual(os.read(reader, PIPE), b"\n" + line * whole + line[: part - 1])
        self.write(log, 2)
        self.write(log, 1)
        self.assertEqual(os.read(reader, PIPE), b"\n" + line * 3)
        self.assertEqual(log.lost, 10)

    def test_a_new_file_begins_with_a_whole_line(self) -> None:
        log, _ = self.pipe()
        self.write(log, PIPE)
        self.path.unlink()
        log.reopen()
        self.write(log, 1)
        self.assertEqual(self.lines(), ["/"])

    def test_a_close_that_fails(self) -> None:
        log = self.open()
        os.close(log._descriptor)
        log.close()
        self.assert_said("entries may be missing: Bad file descriptor")
