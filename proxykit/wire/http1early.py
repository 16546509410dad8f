"""How a reader waits for a whole head, and what it judges before there is one.

Some rules are judged at the byte that breaks them, so that nobody waits for the rest of what can
never be a head: how it starts, a bare CR or LF, a NUL, the first line, the limits. Whatever breaks
first is what is reported, however the bytes were split.
"""

from __future__ import annotations

from attrs import frozen

from proxykit.wire.http1grammar import CRLF, Refused, bare_at, bare_fault

BLANK_LINE = b"\r\n\r\n"


@frozen
class Limits:
    """How much of a head is taken, at the most.

    :ivar line: bytes of its first line.
    :ivar head: bytes of all of it.
    :ivar fields: how many field lines.
    """

    line: int = 8192
    head: int = 32768
    fields: int = 100


DEFAULT = Limits()


def too_large() -> Refused:
    """What a head is that has more bytes or fields than are taken."""
    return Refused("the head is too large (RFC 6585 section 5)", 431)


class Reader:
    """What readers of requests and of responses share: how they wait for a whole head.

    :ivar rest: after a head: the bytes behind it.
    """

    __slots__ = ("_fields", "_good", "_head", "_held", "_line", "_lined", "rest")

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self.rest = b""
        self._head = limits.head
        self._line = min(limits.line, limits.head)
        self._fields = limits.fields
        self._held = bytearray()
        #: How much of what is held has no bare CR or LF, and whether its first line is judged.
        self._good = 0
        self._lined = False

    @property
    def started(self) -> bool:
        """Whether a part of a head is held; an empty line before it is none."""
        return bool(self._held) and self._held not in (b"\r", CRLF)

    def _gather(self, data: bytes) -> bytes:
        """All that came, if there is a whole head in it now; else hold it and return b"".

        :raises Refused: it can never become a head.
        """
        held = self._held
        searched = max(len(held) - 3, 0)
        held += data
        if held.find(BLANK_LINE, searched) < 0:
            self._judge(held, len(held))
            return b""
        self._held = bytearray()
        self._good = 0
        self._lined = False
        return bytes(held)

    def _judge(self, data: bytes | bytearray, size: int) -> None:
        """Raise what these bytes break first, if they break something whatever comes after them.

        :param size: how many of them are of the head.
        """
        start = self._start(data, size)
        if start < 0:
            return
        before = self._good
        good = self._good = bare_at(data, before, size)
        # A CR is bare once there is something else behind it.
        at = good + 1 if good < size and data[good] == 13 else good
        if not self._lined:
            ending = data.find(CRLF, max(start, before), size)
            ends = size if ending < 0 else ending + 2
            if ends - start > self._line and at >= start + self._line:
                raise Refused("the first line is too long (RFC 9112 section 3)", 414)
            if ending >= 0 and at >= ends:
                self._first_line(bytes(data[start:ends]))
                self._lined = True
        if size - start > self._head and at >= start + self._head:
            raise too_large()
        if at < size:
            raise bare_fault(data[good])

    def _start(self, data: bytes | bytearray, size: int) -> int:
        """Where the first line starts; -1: that cannot be told yet. Raises if none can start so."""
        raise NotImplementedError

    def _first_line(self, line: bytes) -> object:
        """Raise what is wrong with a first line, if something is."""
        raise NotImplementedError
