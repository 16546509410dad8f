"""proxykit.ops.logs: one line for each event."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxykit.model import Address
from proxykit.ops import logs
from proxykit.ops.logs import LONGEST, Log, json_line, log_of, text_line

#: A second of 2026, and a bit.
TIME = 1795435200.2509
HOSTILE = 'a\nb\r\x1b[2J\x00\x7f\x85\u2028\u202e"\\\ud800é'


def event(format: str = "", **more: Any) -> LogEvent:
    """One as a logger makes it."""
    made = {
        "log_time": TIME,
        "log_level": LogLevel.info,
        "log_namespace": "proxykit",
        "log_source": None,
        "log_logger": None,
        "log_format": format,
    }
    return made | more


def raised(error: Exception | None = None) -> Failure:
    """A failure with a traceback."""
    try:
        raise error or ValueError("no\nluck")
    except Exception:
        return Failure()


def old_events(call: Any) -> list[LogEvent]:
    """What twisted.python.log makes of a call, as observers of the new log get it."""
    found: list[LogEvent] = []
    publisher = legacy.LogPublisher(publishPublisher=LogPublisher(found.append))
    call(publisher)
    return found


class BadText:
    def __str__(self) -> str:
        raise RuntimeError("none")


class JsonTests(SynchronousTestCase):
    def object(self, made: LogEvent) -> dict[str, Any]:
        line = json_line(made)
        assert line is not None
        self.assertTrue(line.endswith("}\n"))
        self.assertTrue(line[:-1].isascii() and line[:-1].isprintable(), line)
        found: dict[str, Any] = json.loads(line)
        return found

    def fields(self, **more: Any) -> dict[str, Any]:
        """What becomes of an event's own fields."""
        found = self.object(event("x", **more))
        for name in ("time", "level", "namespace", "message"):
            del found[name]
        return found

    def test_line(self) -> None:
        self.assertEqual(
            json_line(event("{a} of {b}", a=1, b="two")),
            '{"time":"2026-11-23T12:00:00.250Z","level":"info","namespace":"proxykit",'
            '"message":"1 of two","a":1,"b":"two"}\n',
        )

    def test_values(self) -> None:
        self.assertEqual(
            self.fields(
                yes=True,
                no=None,
                int=2**70,
                float=0.5,
                nan=float("nan"),
                inf=float("-inf"),
                bytes=b"a\xff\n",
                list=["a", 1],
                address=Address("::1", 80),
                v4=IPv4Address("TCP", "10.0.0.1", 80),
                v6=IPv6Address("TCP", "::1", 80),
                unix=UNIXAddress(b"/run/a"),
                error=OSError(2, "No such file"),
            ),
            {
                "yes": True,
                "no": None,
                "int": 2**70,
                "float": 0.5,
                "nan": "nan",
                "inf": "-inf",
                "bytes": "a\\xff\n",
                "list": "['a', 1]",
                "address": "[::1]:80",
                "v4": "10.0.0.1:80",
                "v6": "[::1]:80",
                "unix": "unix:/run/a",
                "error": "[Errno 2] No such file",
            },
        )

    def test_text_that_cannot_be_made(self) -> None:
        self.assertIn("BadText", self.fields(x=BadText())["x"])
        self.assertIn("Unable to format", self.object(event("{x}", x=BadText()))["message"])
        self.assertIn("Unable to format", self.object(event("{y}"))["message"])

    def test_names_that_are_ours(self) -> None:
        """A field cannot pretend to be one of ours."""
        found = self.object(event("x", time=1, message="m", traceback="t", namespace="n"))
        self.assertEqual(found["time"], "2026-11-23T12:00:00.250Z")
        self.assertEqual((found["message"], found["namespace"]), ("x", "proxykit"))
        self.assertEqual((found["time_"], found["message_"], found["traceback_"]), (1, "m", "t"))

    def test_hostile(self) -> None:
        found = self.object(event("{x}", x=HOSTILE))
        self.assertEqual(found["message"], HOSTILE.replace("\ud800", "\\ud800"))
        self.assertEqual(found["x"], found["message"])

    def test_long(self) -> None:
        found = self.object(event("{x}", x="a" * LONGEST, y="b" * (LONGEST + 1)))
        self.assertEqual(len(found["message"]), LONGEST)
        self.assertEqual(found["y"], "b" * LONGEST + "...")

    def test_failure(self) -> None:
        for message in ("while at it", ""):
            found = self.object(event(message, log_failure=raised(), log_level=LogLevel.critical))
            self.assertEqual((found["level"], found["message"]), ("critical", message))
            self.assertEqual(found["error"], "builtins.ValueError: no\nluck")
            self.assertIn("\n    raise error or ValueError", found["traceback"])

    def test_failure_that_cannot_be_told(self) -> None:
        class Mute(Exception):
            __str__ = BadText.__str__

        found = self.object(event("x", log_failure=raised(Mute())))
        self.assertIn("Mute", found["error"])

    def test_system(self) -> None:
        self.assertEqual(self.object(event("x", log_system="-")).get("system"), None)
        self.assertEqual(self.object(event("x", log_system="a\nb"))["system"], "a\nb")

    def test_nothing_said(self) -> None:
        self.assertIs(json_line(event()), None)
        self.assertIs(json_line({}), None)

    def test_without_a_time(self) -> None:
        self.assertIs(self.object({"log_format": "x"})["time"], None)

    def test_old_log(self) -> None:
        """Twisted itself has not left it everywhere."""
        (made,) = old_events(lambda log: log.msg("a\nb", system="here", size=3))
        found = self.object(made)
        self.assertEqual(found.pop("time")[-1], "Z")
        self.assertEqual(
            found,
            {
                "level": "info",
                "namespace": "log_legacy",
                "message": "a\nb",
                "system": "here",
                "size": 3,
            },
        )

    def test_old_errors(self) -> None:
        for why in (None, "while at it"):
            failure = raised()
            (made,) = old_events(
                lambda log, why=why, failure=failure: log.msg(
                    failure=failure, why=why, isError=1, system="-"
                )
            )
            found = self.object(made)
            self.assertEqual(found["message"], why or "Unhandled Error")
            self.assertEqual(found["error"], "builtins.ValueError: no\nluck")
            self.assertIn("ValueError", found["traceback"])
            self.assertEqual(found["level"], "critical")

    @given(st.text(), st.text(min_size=1), st.text() | st.binary() | st.floats() | st.none())
    def test_any_text(self, text: str, name: str, value: Any) -> None:
        found = self.object(event("x{a}", a=text) | {f"own {name}": value})
        self.assertEqual(found["message"][:1], "x")
        self.assertEqual(len(found), 6)


class TextTests(SynchronousTestCase):
    def line(self, made: LogEvent) -> str:
        line = text_line(made)
        assert line is not None
        self.assertTrue(line.endswith("\n"))
        self.assertTrue(line[:-1].isprintable(), line)
        # The time is the zone's.
        return line.partition(" ")[2]

    def test_line(self) -> None:
        self.assertEqual(self.line(event("{a} é", a=1)), "[proxykit#info] 1 é\n")
        self.assertTrue(text_line(event("x")).startswith("2026-11-2"))
        self.assertEqual(self.line(event("x\n\n", log_system="a\nb")), "[a\\nb] x\n")

    def test_hostile(self) -> None:
        self.assertEqual(
            self.line(event("{x}", x=HOSTILE)),
            r"[proxykit#info] a\nb\r\x1b[2J\x00\x7f\x85\u2028\u202e" + '"\\' + "\\ud800é\n",
        )

    def test_failure(self) -> None:
        line = self.line(event("while at it", log_failure=raised()))
        self.assertTrue(line.startswith("[proxykit#info] while at it\\nTraceback (most"), line)
        self.assertIn("\\nbuiltins.ValueError: no\\nluck", line)

    def test_long(self) -> None:
        self.assertTrue(self.line(event("a" * 2 * LONGEST)).endswith("a...\n"))

    def test_nothing_said(self) -> None:
        self.assertIs(text_line(event()), None)
        self.assertIs(text_line({}), None)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        self.line(event("x{a}", a=text))


class LogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.rotated = Path(f"{self.path}.1")

    def say(self, log: Log, text: str) -> None:
        Logger(namespace="t", observer=log).info("{text}", text=text)

    def messages(self, path: Path) -> list[str]:
        return [json.loads(line)["message"] for line in path.read_text().splitlines()]

    def test_interface(self) -> None:
        self.assertTrue(verifyObject(ILogObserver, Log("json", str(self.path))))

    def test_file(self) -> None:
        self.path.write_text('{"message":"before"}\n')
        log = Log("json", str(self.path))
        self.say(log, "é")
        self.say(log, "two")
        self.assertEqual(self.messages(self.path), ["before", "é", "two"])

    def test_text_file(self) -> None:
        self.say(Log("text", str(self.path)), "é\n")
        self.assertTrue(self.path.read_text(encoding="utf-8").endswith("[t#info] é\n"))

    def test_standard_output(self) -> None:
        """That of before: twistd makes it a part of the log."""
        stream = io.StringIO()
        self.patch(sys, "stdout", stream)
        log = Log("json", None)
        self.patch(sys, "stdout", None)
        self.say(log, "here")
        log.rotate()
        self.say(log, "and here")
        self.assertEqual(stream.getvalue().count('"message":"'), 2)

    def test_rotate(self) -> None:
        log = Log("json", str(self.path))
        self.say(log, "one")
        log.rotate()
        self.say(log, "two")
        self.assertEqual(
            (self.messages(self.rotated), self.messages(self.path)), (["one"], ["two"])
        )

    def test_moved_away(self) -> None:
        """By logrotate, which may have made a new one, or not."""
        for makes in (False, True):
            log = Log("json", str(self.path))
            self.say(log, "one")
            os.rename(self.path, f"{self.path}.moved")
            if makes:
                self.path.touch()
            log.rotate()
            self.say(log, "two")
            self.assertEqual(self.messages(Path(f"{self.path}.moved")), ["one"])
            self.assertEqual(self.messages(self.path), ["two"])
            self.assertFalse(self.rotated.exists())
            self.path.unlink()


class LogOfTests(SynchronousTestCase):
    """What is made of twistd's options."""

    def setUp(self) -> None:
        self.made: list[tuple[str, str | None]] = []
        self.patch(logs, "Log", lambda format, path: self.made.append((format, path)) or "log")

    def test_where_to(self) -> None:
        for options, expected in (
            ({"nodaemon": True, "logfile": None}, None),
            ({"nodaemon": True}, None),
            ({"nodaemon": True, "logfile": "-"}, None),
            ({"nodaemon": True, "logfile": "a.log"}, "a.log"),
            ({"nodaemon": False, "logfile": "a.log"}, "a.log"),
            ({"nodaemon": False, "logfile": None}, "twistd.log"),
        ):
            with self.subTest(options):
                self.made.clear()
                self.assertEqual(log_of(options, None), "log")
                self.assertEqual(log_of(options, "json"), "log")
                self.assertEqual(self.made, [("text", expected), ("json", expected)])

    def test_left_to_twistd(self) -> None:
        for options in ({"logger": print}, {"syslog": True}, {"logfile": "-"}):
            with self.subTest(options):
                self.assertIs(log_of(options, None), None)
        self.assertEqual(self.made, [])

    def test_not_both(self) -> None:
        for name in ("logger", "syslog"):
            error = self.assertRaises(ValueError, log_of, {name: True, "nodaemon": True}, "text")
            self.assertEqual(str(error), f"give --log-format or twistd's --{name}, not both")


class NoFileTests(SynchronousTestCase):
    def test_no_such_directory(self) -> None:
        error = self.assertRaises(ValueError, log_of, {"logfile": "/no/such/file"}, None)
        self.assertEqual(str(error), "--logfile /no/such/file: No such file or directory")
