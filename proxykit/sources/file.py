"""Backends from a file of addresses, which is looked at every so often.

One backend a line: its address, and what a table in ``backends`` could say of it::

    # Written by the deployment, and renamed into place.
    10.1.0.1:80
    10.1.0.2:80  weight=2
    [fd00::3]:80 backup
    unix:/run/web.sock

Who reads a file that somebody else writes sees it half-written sooner or later, and half a list
would take backends away. So a file that has changed is read once it has stayed the same from one
look to the next; its last line has to end; and where anything in it is wrong, or nothing is, the
last good answer stands.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from twisted.logger import Logger
from zope.interface import implementer

from proxykit.checks import Check, positive_seconds
from proxykit.errors import ConfigError
from proxykit.interfaces import IKnowingSource
from proxykit.model import Address, Backend
from proxykit.strict import Wrong, found

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

#: Bytes; some twenty thousand backends.
LARGEST = 1 << 20
_WEIGHT = re.compile(r"weight=([0-9]{1,3})")
_HEAVIEST = 256
_log = Logger(namespace="proxykit.sources.file")


@frozen
class FileSettings:
    """
    :ivar path: of the file.
    :ivar interval: seconds between two looks at it; what has changed counts after one or two.
    """

    path: str = field(metadata={"check": Check("the path of a file", bool)})
    interval: float = field(default=1.0, metadata={"check": positive_seconds})


def read(path: str) -> tuple[Backend, ...]:
    """The backends that a file has, in its order.

    :raises ConfigError: with a line for each mistake, such as ``web.txt:3: expected ...``.
    """
    try:
        # Not what never ends, and not what waits for somebody to write.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError([f"{path}: it is not a file"])
        with open(path, "rb") as opened:
            content = opened.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: {getattr(error, 'strerror', None) or error}"]) from None
    if len(content) > LARGEST:
        raise ConfigError([f"{path}: it has more than {LARGEST} bytes"])
    return parse(content, path)


def parse(content: bytes, path: str) -> tuple[Backend, ...]:
    """The same, of what is in it already.

    :param path: what messages call it.
    :raises ConfigError: as for ``read``.
    """
    backends: dict[Address, Backend] = {}
    first: dict[Address, int] = {}
    mistakes: list[str] = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            backend = _backend(line)
            if backend is None:
                continue
            address = backend.address
            if first.setdefault(address, number) != number:
                raise ValueError(f"the same address as in line {first[address]}: {address}")
            backends[address] = backend
        except ValueError as error:
            mistakes.append(f"{path}:{number}: {error}")
    if lines[-1]:
        mistakes.append(f"{path}:{len(lines)}: expected the line to end; it may be cut off")
    if not (backends or mistakes):
        mistakes = [f"{path}: expected at least one address, such as 10.0.0.1:80"]
    if mistakes:
        raise ConfigError(mistakes)
    return tuple(backends.values())


def _backend(line: bytes) -> Backend | None:
    """What one line says; None: nothing.

    :raises ValueError: it makes no sense.
    """
    try:
        text, *words = line.partition(b"#")[0].decode().split() or [""]
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason}") from None
    if not text:
        return None
    address = Address.parse(text)
    if not (address.is_unix or address.is_ip):
        raise ValueError(f"expected an IP address or unix:/path, not the name {found(text)}")
    weight, backup = 1, False
    for word in words:
        match = _WEIGHT.fullmatch(word)
        if match and 0 < int(match[1]) <= _HEAVIEST:
            weight = int(match[1])
        elif word == "backup":
            backup = True
        else:
            raise ValueError(
                f"expected weight=1 to weight={_HEAVIEST}, or backup, not {found(word)}"
            )
    return Backend(address, weight, backup)


@implementer(IKnowingSource)
class FileSource:
    """The source ``file``."""

    settings = FileSettings

    def check(self, settings: FileSettings) -> None:
        """See ``IBackendSource.check``: the file is read."""
        try:
            read(settings.path)
        except ConfigError as error:
            raise Wrong((("path",), line) for line in error.lines) from None

    def now(self, settings: FileSettings) -> tuple[Backend, ...]:
        """See ``IKnowingSource.now``."""
        return read(settings.path)

    def watch(
        self,
        settings: FileSettings,
        tell: Callable[[tuple[Backend, ...]], object],
        reactor: Any,
        cluster: str,
    ) -> Callable[[], object]:
        """See ``IBackendSource.watch``."""
        return _Watch(settings, tell, reactor, cluster).stop


class _Watch:
    """One file that is looked at."""

    def __init__(
        self,
        settings: FileSettings,
        tell: Callable[[tuple[Backend, ...]], object],
        clock: Any,
        cluster: str,
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._clock = clock
        self._cluster = cluster
        self._told: tuple[Backend, ...] | None = None
        self._failing = False
        # As it was at the last look, and when it was read.
        self._seen = self._read_at = _look(settings.path)
        self._next: IDelayedCall | None = self._later()
        self._read()

    def stop(self) -> None:
        """Do not look any more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _later(self) -> IDelayedCall:
        timer: IDelayedCall = self._clock.callLater(self._settings.interval, self._look_again)
        return timer

    def _look_again(self) -> None:
        self._next = self._later()
        before, self._seen = self._seen, _look(self._settings.path)
        if before == self._seen != self._read_at:
            self._read()

    def _read(self) -> None:
        path, cluster = self._settings.path, self._cluster
        try:
            backends = read(path)
            mistakes: tuple[str, ...] = ()
        except ConfigError as error:
            mistakes = error.lines
        if _look(path) != self._seen:
            return  # It has changed meanwhile, so that this is half of one and half of another.
        self._read_at = self._seen
        if mistakes:
            self._failing = True
            why, more = mistakes[0], len(mistakes) - 1
            text = "{cluster}: {why}" + (" (and {more} more mistakes)" if more else "")
            stay = "; there are no backends from it yet" if self._told is None else _STAY
            _log.error(text + stay, cluster=cluster, why=why, more=more, path=path)
        elif self._failing or backends != self._told:
            changed, self._failing, self._told = backends != self._told, False, backends
            _log.info(
                "{cluster}: {count} {word} from {path}",
                cluster=cluster,
                count=len(backends),
                word="backend" if len(backends) == 1 else "backends",
                path=path,
            )
            if changed:
                self._tell(backends)


_STAY = "; the backends stay those of before"


def _look(path: str) -> tuple[int, ...]:
    """What tells a file apart from one that has changed, be it by another of its name."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    except ValueError:  # a NUL in its name
        return ()
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
