"""On which line of a TOML document each key and each element of a list stands.

:mod:`tomllib` reads the values and refuses what is not TOML, but keeps no positions. This scanner
walks the same text again and keeps nothing else. It trusts that the text is valid.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left

#: A place in a document: names of keys, and indexes of elements counted from 0.
KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACES = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# The long forms come first. Up to two quotes may stand right before the three that end a string.
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\]|\\.)*"' r"|'[^']*'", re.DOTALL
)
#: Numbers, booleans and times; a time may hold a space.
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


class Lines(dict[KeyPath, int]):
    """Lines, counted from 1, by key path."""

    def find(self, path: KeyPath) -> int:
        """The line of the path or, where it has none, of the nearest part around it."""
        while path and path not in self:
            path = path[:-1]
        return self.get(path, 1)


def lines(text: str) -> Lines:
    """Find the line of every table, key and element in a TOML document.

    :param text: a document that :func:`tomllib.loads` accepts.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.found


class _Scanner:
    """One walk through one document; each method moves ``position`` past what it has read."""

    def __init__(self, text: str) -> None:
        self.found = Lines()
        self.text = text
        self.position = 0
        self.line_ends = [match.start() for match in re.finditer("\n", text)]
        #: How many elements each array of tables has so far.
        self.elements: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        while self.peek_after(_BLANK):
            if self.text.startswith("[", self.position):
                table = self.header()
            else:
                self.key_and_value(table)

    def header(self) -> KeyPath:
        line = self.line()
        array = self.text.startswith("[[", self.position)
        self.position += 1 + array
        *around, last = self.key()
        self.position += 1 + array
        path: KeyPath = ()
        for name in around:
            path = self.newest((*path, name))
            self.found.setdefault(path, line)
        path = (*path, last)
        if array:
            self.found.setdefault(path, line)
            self.elements[path] = self.elements.get(path, 0) + 1
            path = self.newest(path)
        # A table's own header says more than a mention of it in the header of a part of it.
        self.found[path] = line
        return path

    def newest(self, path: KeyPath) -> KeyPath:
        """A header that goes through an array of tables means the array's newest element."""
        count = self.elements.get(path)
        return path if count is None else (*path, count - 1)

    def key_and_value(self, table: KeyPath) -> None:
        line = self.line()
        path = table
        for name in self.key():
            path = (*path, name)
            self.found.setdefault(path, line)
        self.position += 1  # the equals sign
        self.value(path)

    def key(self) -> list[str]:
        names = []
        while True:
            self.peek_after(_SPACES)
            if bare := _BARE_KEY.match(self.text, self.position):
                self.position = bare.end()
                names.append(bare.group())
            else:
                names.append(tomllib.loads("key = " + self.take(_STRING))["key"])
            if self.peek_after(_SPACES) != ".":
                return names
            self.position += 1

    def value(self, path: KeyPath) -> None:
        first = self.peek_after(_SPACES)
        if first == "[":
            self.array(path)
        elif first == "{":
            self.inline_table(path)
        else:
            self.take(_STRING if first in "\"'" else _SCALAR)

    def array(self, path: KeyPath) -> None:
        self.position += 1
        index = 0
        while self.peek_after(_BLANK) != "]":
            self.found[*path, index] = self.line()
            self.value((*path, index))
            index += 1
            self.comma()
        self.position += 1

    def inline_table(self, path: KeyPath) -> None:
        self.position += 1
        while self.peek_after(_BLANK) != "}":
            self.key_and_value(path)
            self.comma()
        self.position += 1

    def comma(self) -> None:
        if self.peek_after(_BLANK) == ",":
            self.position += 1

    def line(self) -> int:
        return bisect_left(self.line_ends, self.position) + 1

    def peek_after(self, skipped: re.Pattern[str]) -> str:
        """Skip something that may be empty; the character after it, or "" at the end."""
        self.take(skipped)
        return self.text[self.position : self.position + 1]

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.position)
        if match is None:
            raise ValueError(f"not a TOML document at character {self.position}")
        self.position = match.end()
        return match.group()
