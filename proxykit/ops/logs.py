"""The log of the service: one line for each event, as text or as JSON.

Some of what is logged was written by a client, a backend or a name server. In either format
whatever could end a line, or do something to a terminal, is escaped, so that nobody can forge a
line, and a reader need not guess where an event ends.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    eventAsText,
    formatEvent,
    formatTime,
)
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from twisted.python.reflect import qual, safe_repr
from zope.interface import implementer

from proxykit.model import address_text

#: Characters of one text; what is longer is cut off, which three dots say.
LONGEST = 32 * 1024
#: Where a daemon's log goes that nobody has said more of, as with twistd's own.
_DAEMONS = "twistd.log"
#: What an event of twisted.python.log has besides its fields.
_LEGACY = ("failure", "format", "isError", "logLevel", "message", "system", "time", "why")
#: What is ours in a JSON object; a field of that name has a ``_`` at the end.
_OURS = ("time", "level", "namespace", "system", "message", "error", "traceback")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def text_line(event: LogEvent) -> str | None:
    """An event as one line of text, in twistd's own form; None: it says nothing.

    A traceback is a part of it, with ``\\n`` for the ends of its lines.
    """
    text = eventAsText(event, formatTime=formatTime).rstrip("\n")
    return _escaped(_cut(text)) + "\n" if text else None


def json_line(event: LogEvent) -> str | None:
    """An event as one line with a JSON object, in ASCII; None: it says nothing.

    ``time`` (RFC 3339, UTC, milliseconds), ``level``, ``namespace`` and ``message``; ``system``
    where the event has one; where something was raised ``error``, what it was, and ``traceback``;
    and the event's own fields by their names, as numbers, true, false, null or text.
    """
    failure, message = event.get("log_failure"), formatEvent(event)
    if failure is None and isinstance(failure := event.get("failure"), Failure):
        message = event.get("why") or "Unhandled Error"  # without the traceback
    if not (message or failure):
        return None
    made: dict[str, object] = {
        "time": _time(event.get("log_time")),
        "level": _level(event),
        "namespace": str(event.get("log_namespace", "")),
        "message": _text(message),
    }
    if event.get("log_system") not in (None, "-"):
        made["system"] = _text(event["log_system"])
    legacy = _LEGACY if "format" in event or isinstance(event.get("message"), tuple) else ()
    for name, value in event.items():
        if not name.startswith("log_") and name not in legacy:
            made[f"{name}_" if name in _OURS and name != "error" else name] = _plain(value)
    if isinstance(failure, Failure):
        made["error"] = _text(failure.value)
        with suppress(Exception):
            made["error"] = _text(f"{qual(type(failure.value))}: {failure.getErrorMessage()}")
            made["traceback"] = _text(failure.getTraceback())
    return json.dumps(made, separators=(",", ":")) + "\n"


#: The formats, by the names that users have for them.
FORMATS: dict[str, Callable[[LogEvent], str | None]] = {"text": text_line, "json": json_line}


def _time(seconds: object) -> str | None:
    if not isinstance(seconds, int | float):
        return None
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def _level(event: LogEvent) -> str:
    return str(getattr(event.get("log_level"), "name", "info"))


def _plain(value: object) -> object:
    """A value as JSON has it."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _text(value)


def _text(value: object) -> str:
    """Anything as text that every reader of JSON takes: without halves of surrogate pairs."""
    if isinstance(value, bytes):
        text = value.decode("utf-8", "backslashreplace")
    else:
        try:
            text = address_text(value) if IAddress.providedBy(value) else str(value)
        except Exception:
            text = safe_repr(value)
    return _cut(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def _escaped(text: str) -> str:
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


@implementer(ILogObserver)
class Log:
    """Where the events of a process are written to.

    :param format: one of ``FORMATS``.
    :param path: of a file, which is rotated as twistd does; None: standard output.
    :raises OSError: there can be no such file.
    """

    def __init__(self, format: str, path: str | None) -> None:
        # Not sys.stdout as it is later, which is a part of the log.
        self._file: Any = sys.stdout if path is None else LogFile.fromFullPath(path)
        self._observer = FileLogObserver(self._file, FORMATS[format])

    def __call__(self, event: LogEvent) -> None:
        """Write one."""
        self._observer(event)

    def rotate(self) -> None:
        """Begin a new file: where the old one has been moved away, under its name; else the old one
        is renamed first."""
        file = self._file
        if not isinstance(file, LogFile):
            return
        try:
            moved = not os.path.samestat(os.stat(file.path), os.fstat(file._file.fileno()))
        except FileNotFoundError:
            moved = True
        if moved:
            file.reopen()
        else:
            file.rotate()


def log_of(twistd: Mapping[str, Any], format: str | None) -> Log | None:
    """The log as twistd's options want it; None: twistd does that by itself.

    :param format: one of ``FORMATS``; None: nobody has said, so it is text.
    :raises ValueError: the options exclude each other, or there can be no such log.
    """
    own = next((name for name in ("logger", "syslog") if twistd.get(name)), "")
    if own and format is not None:
        raise ValueError(f"give --log-format or twistd's --{own}, not both")
    path, stays = twistd.get("logfile") or "", twistd.get("nodaemon")
    if own or (path == "-" and not stays):  # which twistd refuses
        return None
    if not path:
        path = "-" if stays else _DAEMONS
    try:
        return Log(format or "text", None if path == "-" else path)
    except OSError as error:
        raise ValueError(f"--logfile {path}: {error.strerror}") from error
