"""The access log: one line for each request, written in batches to a file.

Most of a line comes from a client, so whatever could end a line, or a quoted part of it, is
escaped: one entry is one line, and no client can forge another. A log that cannot be written costs
entries, never traffic: they are counted, and one line a minute in the proxy's own log says so.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from operator import attrgetter
from typing import TYPE_CHECKING

from attrs import fields
from twisted.logger import Logger

from proxykit.model import AccessEntry

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Bytes after which a batch is written, and seconds that its first entry may wait.
BATCH = 64 * 1024
LONGEST_WAIT = 1.0
#: Seconds between two lines about entries that were lost.
SAY_AGAIN = 60.0
#: The path that stands for standard output, and its descriptor: ``sys.stdout`` may be twistd's.
STDOUT = "-"
_STDOUT_DESCRIPTOR = 1
#: Not blocking, for a named pipe without a reader would otherwise hold up the start, and one whose
#: reader is slow all traffic. A regular file does not mind.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FILE_MODE = 0o640

#: strftime() has the user's language, which no reader of logs expects.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: How many seconds of a combined log have their date kept. Requests end in another order than they
#: began, so one is not enough.
_DATES = 64
#: What is not itself in a quoted part, and in a word outside of quotes.
_UNSAFE = re.compile(r"[^ !#-\[\]-~]")
_UNSAFE_IN_A_WORD = re.compile(r"[^!#-\[\]-~]")


class CombinedFormat:
    """What Apache and nginx call combined; local time, with its offset.

    ``client - - [date] "METHOD target version" status bytes "referer" "user-agent"``. A part that
    is empty is ``-``, and the status ``000`` where there was none. Quotes, backslashes, control
    bytes and all beyond ASCII are written ``\\xHH``, as nginx does.
    """

    __slots__ = ("_dates",)

    def __init__(self) -> None:
        self._dates: dict[int, str] = {}

    def line(self, entry: AccessEntry) -> str:
        """One entry as ASCII, with its line feed."""
        client = entry.client or "-"
        request = f"{entry.method} {entry.target} {entry.version}" if entry.method else "-"
        referer = entry.referer or "-"
        agent = entry.user_agent or "-"
        # One look at all of them, for mostly there is nothing to escape.
        if _UNSAFE.search(request + referer + agent):
            request, referer, agent = (
                _UNSAFE.sub(_escaped, each) for each in (request, referer, agent)
            )
        if _UNSAFE_IN_A_WORD.search(client):
            client = _UNSAFE_IN_A_WORD.sub(_escaped, client)
        second = int(entry.time)
        date = self._dates.get(second) or self._date(second)
        return (
            f'{client} - - [{date}] "{request}" {entry.status:03d} {entry.bytes_sent}'
            f' "{referer}" "{agent}"\n'
        )

    def _date(self, second: int) -> str:
        at = time.localtime(second)
        sign, offset = ("-" if at.tm_gmtoff < 0 else "+"), abs(at.tm_gmtoff) // 60
        date = (
            f"{at.tm_mday:02d}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year:04d}"
            f":{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}"
            f" {sign}{offset // 60:02d}{offset % 60:02d}"
        )
        if len(self._dates) >= _DATES:
            self._dates.clear()
        self._dates[second] = date
        return date


def _escaped(match: re.Match[str]) -> str:
    """``\\xHH`` for each byte of a character: one up to U+00FF, else those of its UTF-8."""
    # A field that HTTP carried has been read as latin-1, where each character is one byte.
    character = match[0]
    number = ord(character)
    encoded = bytes((number,)) if number < 256 else character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02X}" for byte in encoded)


class JsonFormat:
    """One JSON object a line, with all fields of an ``AccessEntry`` under their own names.

    A line is ASCII, the rest is escaped ``\\uHHHH``. Half of a surrogate pair, which some readers
    refuse, becomes U+FFFD.
    """

    __slots__ = ()

    _names = tuple(each.name for each in fields(AccessEntry))
    _values = attrgetter(*_names)
    _encode = json.JSONEncoder(separators=(",", ":")).encode

    def line(self, entry: AccessEntry) -> str:
        """One entry as ASCII, with its line feed."""
        values = dict(zip(self._names, self._values(entry), strict=True))
        line = self._encode(values)
        if "\\ud" in line:
            line = self._encode({name: _whole(value) for name, value in values.items()})
        return line + "\n"


def _whole(value: object) -> object:
    """A text without halves of surrogate pairs; anything else as it is."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


_FORMATS: dict[str, type[CombinedFormat | JsonFormat]] = {
    "combined": CombinedFormat,
    "json": JsonFormat,
}


class AccessLog:
    """One file that entries are written to.

    :ivar path: absolute, or ``-``.
    :ivar lost: how many entries could not be written, said in the proxy's own log or not yet.
    """

    _log = Logger()

    def __init__(self, path: str, format: str, clock: IReactorTime) -> None:
        """Open the file, and make it where there is none; its directory has to be there.

        :param path: ``-`` is standard output, which is written to as it is, blocking or not.
        :param format: ``combined`` or ``json``.
        :param clock: says when a batch has waited long enough.
        :raises OSError: the file cannot be opened.
        :raises ValueError: there is no such format.
        """
        if format not in _FORMATS:
            raise ValueError(f"expected {' or '.join(_FORMATS)}, not {format!r}")
        self.path = _absolute(path)
        self.format = format
        self.lost = 0
        self._line = _FORMATS[format]().line
        self._clock = clock
        self._lines: list[str] = []
        self._size = 0
        self._timer: IDelayedCall | None = None
        # Whether the file ends in part of an entry.
        self._torn = False
        # Losses that have not been said yet, and when some were said last.
        self._unsaid = 0
        self._said = float("-inf")
        self._descriptor: int | None = self._open()

    def write(self, entry: AccessEntry) -> None:
        """Add an entry to the batch. Raises nothing when the file cannot be written."""
        if self._descriptor is None:
            self._lose(1, "the log is closed")
            return
        line = self._line(entry)
        self._lines.append(line)
        self._size += len(line)
        if self._size >= BATCH:
            self.flush()
        elif self._timer is None:
            # It is left to run when a batch is full before: the next one waits the less.
            self._timer = self._clock.callLater(LONGEST_WAIT, self._waited)

    def flush(self) -> None:
        """Write the batch now."""
        lines, self._lines, self._size = self._lines, [], 0
        if not lines:
            return
        # A part of an entry stays a line of its own, or the next entry would be taken for its end.
        data = (("\n" if self._torn else "") + "".join(lines)).encode("ascii")
        written, why = self._put(data)
        if written:
            self._torn = data[written - 1] != ord("\n")
        if why:
            # The line that the first line feed ended was counted before.
            whole = data.count(b"\n", 1, written)
            self._lose(len(lines) - whole, why)
        elif self._unsaid:
            self._lose(0, "")

    def reopen(self) -> None:
        """Go on in a new file of the same name: the old one has been renamed.

        What waits is written to the old one, which is kept if there can be no new one.
        """
        if self._descriptor is None:
            return
        self.flush()
        if self.path == STDOUT:
            return
        try:
            opened = self._open()
        except OSError as error:
            self._log.warn(
                "access log {path}: cannot be opened again, the old file is kept: {why}",
                path=self.path,
                why=error.strerror,
            )
            return
        self._close(self._descriptor)
        self._descriptor, self._torn = opened, False

    def close(self) -> None:
        """Write what waits, and close the file. Entries that come later are lost."""
        if self._descriptor is None:
            return
        self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        descriptor, self._descriptor = self._descriptor, None
        if self.path != STDOUT:
            self._close(descriptor)

    def _open(self) -> int:
        if self.path == STDOUT:
            return _STDOUT_DESCRIPTOR
        return os.open(self.path, _FLAGS, _FILE_MODE)

    def _close(self, descriptor: int) -> None:
        try:
            os.close(descriptor)
        except OSError as error:
            # A file system on the network may say only now that it could not take all. How much
            # is missing it does not say, so nothing can be counted.
            self._log.warn(
                "access log {path}: entries may be missing: {why}",
                path=self.path,
                why=error.strerror,
            )

    def _waited(self) -> None:
        self._timer = None
        self.flush()

    def _put(self, data: bytes) -> tuple[int, str]:
        """How many bytes could be written, and why not all; empty: all were."""
        assert self._descriptor is not None
        written = 0
        try:
            # A file takes all at once, unless the disk is full: then the next try says so.
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            return written, error.strerror or str(error)
        return written, ""

    def _lose(self, count: int, why: str) -> None:
        """Count entries that are lost, and say so unless that was done within the last minute."""
        self.lost += count
        self._unsaid += count
        now = self._clock.seconds()
        if now - self._said < SAY_AGAIN:
            return
        self._log.warn(
            "access log {path}: entries lost: {count}{why}",
            path=self.path,
            count=self._unsaid,
            why=why and f" ({why})",
        )
        self._said, self._unsaid = now, 0


def _absolute(path: str) -> str:
    """The same file also after twistd has changed its directory."""
    return path if path == STDOUT else os.path.abspath(path)


class AccessLogs:
    """The access logs of one service: listeners that name the same file share it."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._logs: dict[tuple[str, str], AccessLog] = {}

    def log(self, path: str, format: str) -> AccessLog:
        """The log of that path, opened when it is asked for first.

        :raises OSError: the file cannot be opened.
        :raises ValueError: there is no such format.
        """
        key = _absolute(path), format
        log = self._logs.get(key)
        if log is None:
            log = self._logs[key] = AccessLog(path, format, self._clock)
        return log

    def keep_only(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Close those that nobody writes to any more.

        :param wanted: path (as ``AccessLog.path`` has it) and format of the others.
        """
        for key in set(self._logs).difference(wanted):
            self._logs.pop(key).close()

    def reopen_all(self) -> None:
        """See ``AccessLog.reopen``."""
        for log in self._logs.values():
            log.reopen()

    def close_all(self) -> None:
        """Close them all; whoever asks again opens them again."""
        for log in self._logs.values():
            log.close()
        self._logs.clear()
