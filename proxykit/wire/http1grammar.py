"""The grammar of HTTP/1 in named pieces, and the one error of those who read it.

Everything is read strictly: what a rule forbids is refused and never repaired, for the next reader
on the way could repair it in another way, and that is how requests are smuggled. Each expression
is possessive where it repeats, so that it looks at each byte once.
"""

from __future__ import annotations

import re

CRLF = b"\r\n"

#: RFC 9110 section 5.6.2.
TCHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
TOKEN = rb"[" + TCHAR + rb"]++"
#: RFC 9110 section 5.6.3.
OWS = rb"[ \t]*+"
#: Any byte of a field value, and the whitespace around it (RFC 9110 section 5.5).
FIELD_BYTE = rb"[\t\x20-\x7e\x80-\xff]"
#: RFC 9112 section 5.
FIELD_LINE = TOKEN + rb":" + FIELD_BYTE + rb"*+\r\n"
#: A field line as proxykit would write it: one space, and nothing at the end.
NEAT_LINE = TOKEN + rb": (?![ \t])" + FIELD_BYTE + rb"*+(?<![ \t])\r\n"
#: A request target (RFC 9112 section 3.2): printable, and no fragment.
TARGET_BYTE = rb"[\x21\x22\x24-\x7e]"
#: RFC 9110 section 5.6.4.
QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\' + FIELD_BYTE + rb')*+"'
#: uri-host (RFC 3986 section 3.2.2) and port. A comma is left out: where lines are joined it would
#: be two hosts.
URI_HOST = (
    rb"(\[[0-9A-Fa-f:.]{2,45}+\]|(?:[-._~!$&'()*+;=0-9A-Za-z]|%[0-9A-Fa-f]{2})++)(?::([0-9]*+))?"
)

is_token = re.compile(TOKEN).fullmatch
is_value = re.compile(FIELD_BYTE + rb"*+").fullmatch
is_block = re.compile(rb"(?:" + FIELD_LINE + rb")*+").fullmatch
is_neat_block = re.compile(rb"(?:" + NEAT_LINE + rb")*+").fullmatch
_whole_lines = re.compile(rb"(?:[^\r\n\x00]++|\r\n)*+").match
_uri_host = re.compile(URI_HOST).fullmatch
_no_letter = re.compile(rb"[^a-z]++")

_FRAMING = (b"content-length", b"transfer-encoding")
_LOOKS_LIKE_FRAMING = (b"contentlength", b"transferencoding")


class Refused(Exception):
    """Bytes that break a rule.

    :ivar rule: names the rule and where it stands, such as ``no bare LF (RFC 9112 section 2.2)``.
    :ivar status: what a client is told; 502 when it was a response that broke the rule.
    """

    def __init__(self, rule: str, status: int = 400) -> None:
        super().__init__(rule)
        self.rule = rule
        self.status = status


def bare_at(data: bytes | bytearray, start: int, stop: int) -> int:
    """Where the first bare CR, bare LF or NUL is at or after ``start``, which follows a whole line
    or is inside one; ``stop`` if there is none. A CR just before ``stop`` counts as bare.
    """
    match = _whole_lines(data, start, stop)
    assert match is not None  # it matches nothing at all, too
    return match.end()


def bare_fault(byte: int) -> Refused:
    """What is wrong with such a byte."""
    if byte == 0:
        return Refused("no NUL (RFC 9110 section 5.5)")
    return Refused(f"no bare {'CR' if byte == 13 else 'LF'} (RFC 9112 section 2.2)")


def block_fault(block: bytes) -> Refused:
    """What is wrong with field lines that are no block of them."""
    at = bare_at(block, 0, len(block))
    if at < len(block):
        return bare_fault(block[at])
    if not block.endswith(CRLF):
        return Refused("a line ends with CRLF (RFC 9112 section 2.1)")
    lines = block[:-2].split(CRLF)
    bad = next(line for line in lines if not is_block(line + CRLF))
    return _line_fault(bad, bad is lines[0])


def _line_fault(line: bytes, first: bool) -> Refused:
    if line[:1] in (b" ", b"\t"):
        if first:
            return Refused("no whitespace before the first field (RFC 9112 section 2.2)")
        return Refused("no folded lines (RFC 9112 section 5.2)")
    name, colon, _ = line.partition(b":")
    if not colon:
        return Refused("a field line has a colon (RFC 9112 section 5)")
    if name[-1:] in (b" ", b"\t"):
        return Refused("no whitespace before the colon (RFC 9112 section 5.1)")
    if not is_token(name):
        return Refused("a field name is a token (RFC 9110 section 5.1)")
    return Refused("no control bytes in a field value (RFC 9110 section 5.5)")


def looks_like_framing(name: bytes) -> bool:
    """Whether a lower-case name is not that of a framing field but could be taken for it."""
    return name not in _FRAMING and _no_letter.sub(b"", name) in _LOOKS_LIKE_FRAMING


def host_name(host: bytes) -> str | None:
    """The name in a Host field's value or an authority; None: it is neither (RFC 9110 section 7.2).

    It comes without port and final dot and in lower case; an IPv6 address keeps its brackets.
    """
    match = _uri_host(host)
    if match is None:
        return None
    name, port = match.groups()
    if port and (len(port) > 5 or int(port) > 65535):
        return None
    text: str = name.decode("ascii").lower()
    return text[:-1] if text[-1] == "." and len(text) > 1 else text
