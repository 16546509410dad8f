"""Fields that hooks and route rules may change, and those that are the proxy's own to write."""

from __future__ import annotations

from collections.abc import Iterator

from proxykit.wire.http1grammar import CRLF, is_token, is_value, looks_like_framing

#: Of one connection, never passed on (RFC 9110 section 7.6.1), and what frames a message.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"content-length",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    )
)
#: Messages are told apart, and requests routed, by these: what is set here would be set twice.
_OWN = HOP_BY_HOP | {b"host", b"trailer"}


def valid_field(name: str, value: str) -> None:
    """Raise ValueError, which says what was expected, unless a rule may set such a field."""
    _checked(name, value)


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text


def _checked(name: str | bytes, value: str | bytes) -> tuple[bytes, bytes]:
    """The field as it is written, if it may be."""
    name, value = _bytes(name), _bytes(value)
    if not is_token(name):
        raise ValueError("expected the name of a field")
    lower = name.lower()
    if lower in _OWN or looks_like_framing(lower):
        raise ValueError(f"expected no field that the proxy writes itself: {name.decode()}")
    if not is_value(value):
        raise ValueError(f"expected a value without control characters for {name.decode()}")
    return name, value.strip(b" \t")


class Fields:
    """A list of fields. Names are the same in any case; text is written as UTF-8.

    :param block: field lines, each with its CRLF, such as ``RequestFields.kept``.
    """

    __slots__ = ("_fields",)

    def __init__(self, block: bytes = b"") -> None:
        halves = (line.partition(b":") for line in block.split(CRLF)[:-1])
        self._fields = [(name, value.strip(b" \t")) for name, _, value in halves]

    def get(self, name: str | bytes) -> bytes | None:
        """The value, several joined by commas; None: there is no such field."""
        values = self.get_all(name)
        return b", ".join(values) if values else None

    def get_all(self, name: str | bytes) -> list[bytes]:
        """The values of all lines with that name."""
        wanted = _bytes(name).lower()
        return [value for name, value in self._fields if name.lower() == wanted]

    def set(self, name: str | bytes, value: str | bytes) -> None:
        """Have one line with that name: in the place of the first, or at the end.

        :raises ValueError: as in ``add``.
        """
        field = _checked(name, value)
        wanted = field[0].lower()
        fields = self._fields
        places = (i for i, (name, _) in enumerate(fields) if name.lower() == wanted)
        place = next(places, len(fields))
        after = [other for other in fields[place:] if other[0].lower() != wanted]
        self._fields = [*fields[:place], field, *after]

    def add(self, name: str | bytes, value: str | bytes) -> None:
        """Add a line at the end.

        :raises ValueError: the name is no token, the value has control characters, or the field is
            one that the proxy writes itself: those of framing, of one connection, Host, Trailer.
        """
        self._fields.append(_checked(name, value))

    def remove(self, name: str | bytes) -> None:
        """Have no line with that name."""
        wanted = _bytes(name).lower()
        self._fields = [field for field in self._fields if field[0].lower() != wanted]

    def __contains__(self, name: str | bytes) -> bool:
        return bool(self.get_all(name))

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._fields)

    def block(self) -> bytes:
        """The lines, each with its CRLF."""
        return b"".join([name + b": " + value + CRLF for name, value in self._fields])
