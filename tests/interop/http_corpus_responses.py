"""Malformed responses, made by the same rules as the requests of ``http_corpus.py``.

A case is what an origin sends for one request, and what may come of it: the answer that the client
gets, whole, or a 502, or a connection that is cut where it can see that something is missing. A
backend that has broken a rule, or sent more than was asked for, loses its connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

from tests.interop.http_corpus import CONTROLS, broken_lines, show
from tests.interop.http_corpus_framing import (
    BAD_CODINGS,
    DROPPED,
    GOOD_SIZES,
    UNKNOWN_CODINGS,
    bad_chunks,
    lookalikes,
)

#: An answer that nobody has asked for: no client may see it.
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nfor poison\n"
SIZE = len(POISON)
LENGTH = b"Content-Length: %d" % SIZE
CHUNKED = b"Transfer-Encoding: chunked"
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, POISON)


@frozen
class Reply:
    """What an origin sends.

    :ivar pieces: one after the other, with some time between.
    :ivar then: ``close`` or ``reset``; empty: the connection stays open.
    :ivar status: what the client gets; 0: a 502, or its connection is cut.
    :ivar body: what it gets with it; of a 502, anything.
    :ivar stays: whether the origin's connection may serve others afterwards.
    :ivar late: whether something comes when the answer is already whole.
    """

    name: str
    pieces: tuple[bytes, ...]
    then: str = ""
    status: int = 502
    body: bytes = b""
    stays: bool = False
    method: bytes = b"GET"
    version: bytes = b"HTTP/1.1"
    late: bool = False


Replies = Iterator[Reply]


def response(
    *lines: bytes, body: bytes = b"", status: bytes = b"200 OK", version: bytes = b"HTTP/1.1"
) -> bytes:
    """A response with these lines."""
    return b"\r\n".join((version + b" " + status, *lines, b"", body))


def bad(name: str, *pieces: bytes, **more: object) -> Reply:
    """One that becomes a 502."""
    return Reply(name, pieces, **more)  # type: ignore[arg-type]


def cut(name: str, *pieces: bytes, **more: object) -> Reply:
    """One that is bad behind its head: that may have been passed on."""
    return Reply(name, pieces, status=0, **more)  # type: ignore[arg-type]


def good(name: str, *pieces: bytes, body: bytes = POISON, **more: object) -> Reply:
    """One that is passed on, whole."""
    more = {"status": 200, "stays": True, **more}
    return Reply(name, pieces, body=body, **more)  # type: ignore[arg-type]


# Status lines (RFC 9112 section 4).

VERSIONS = (
    *(b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.10", b"HTTP/1", b"HTTP/1.", b"http/1.1"),
    *(b"HTTP/01.1", b"HTTP/1.1.1", b"HTTP /1.1", b"HTTP/ 1.1", b"HTTP", b"ICY", b"RTSP/1.0", b""),
    b"1.1",
    *(b"HTTP/1,1", b"HTTPS/1.1", b" HTTP/1.1", b"\tHTTP/1.1", b"\r\nHTTP/1.1", b"\nHTTP/1.1"),
    *(b"\x00HTTP/1.1", b"\xef\xbb\xbfHTTP/1.1", b"xHTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1\t"),
    b"HTTP/1.x",
)
STATUSES = (
    *(b"", b"0", b"20", b"000 No", b"099 No", b"600 No", b"999 No", b"2000 No", b"0200 No"),
    b"-200 No",
    *(b"+200 No", b"2 00 No", b"20 0 No", b"200.0 No", b"2e2 No", b"abc No", b"OK", b"200OK"),
    b"200\tOK",
    *(b"0xC8 No", b"\xef\xbc\x92\xef\xbc\x90\xef\xbc\x90 No", b"200,200 No", b'"200" No'),
    b"2OO No",
)
LINE_ENDINGS = (
    *(b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\n", b"\x00\r\n", b" \r\n \r\n", b"\r\n\r", b"\r\n "),
)


def status_lines() -> Replies:
    for version in VERSIONS:
        yield bad(f"version {show(version)}", response(LENGTH, body=POISON, version=version))
    for status in STATUSES:
        yield bad(f"status {show(status)}", response(LENGTH, body=POISON, status=status))
    for byte in CONTROLS + b"\r\n":
        yield bad(f"reason with {byte:#04x}", response(
            LENGTH, body=POISON, status=b"200 O" + bytes((byte,)) + b"K"))  # fmt: skip
    for ending in LINE_ENDINGS:
        yield bad(f"{show(ending)} ends the status line",
                  b"HTTP/1.1 200 OK" + ending + LENGTH + b"\r\n\r\n" + POISON)  # fmt: skip
    for status in (
        *(b"200", b"200 ", b"200 Very well", b"200 \xc3\xa4", b"200 HTTP/1.1 404 X", b"200  "),
    ):
        yield good(f"status line {show(status)}", response(LENGTH, body=POISON, status=status))
    for number in (299, 400, 404, 451, 499, 500, 503, 599):
        yield good(
            f"a {number}", response(LENGTH, body=POISON, status=b"%d X" % number), status=number
        )


def strangers() -> Replies:
    for name, data in (
        ("an alert of TLS", b"\x15\x03\x01\x00\x02\x02\x28"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("mail", b"220 a.example ESMTP\r\n"),
        ("HTTP/0.9", b"<html>hello</html>"),
        ("a request", b"GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        ("NULs", bytes(40)),
        ("one byte", b"x"),
        ("an empty line", b"\r\n"),
        ("settings of HTTP/2", b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
        ("a long line", b"HTTP/1.1 200 " + b"x" * 9000),
        ("a long head", response(*(b"X-Odd: " + b"x" * 400,) * 90, LENGTH, body=POISON)),
        ("many fields", response(*(b"X-Odd: 1",) * 120, LENGTH, body=POISON)),
    ):
        yield bad(name, data)
        yield bad(f"{name}, then the end", data, then="close", method=b"POST")
    for then in ("close", "reset"):
        yield bad(f"nothing, then {then}", b"", then=then, method=b"POST")
        yield bad(f"a part of a line, then {then}", b"HTTP/1.1 20", then=then)
        yield bad(f"a part of a head, then {then}", response(LENGTH)[:-2], then=then)


def fields() -> Replies:
    for name, line in broken_lines(b"X-Odd: value"):
        yield bad(f"X-Odd: {name}", _with_line(line + LENGTH + b"\r\n", POISON))
    for name, line in broken_lines(LENGTH):
        yield bad(f"Content-Length: {name}", _with_line(line, POISON))
    for name, line in broken_lines(CHUNKED):
        yield bad(f"Transfer-Encoding: {name}", _with_line(line, ONE_CHUNK))
    for end in (b"\n", b"\r", b"\n\r", b"\r\r\n", b" \r\n\r\n", b"\t\r\n\r\n"):
        yield bad(f"a head that ends with {show(end)}", response(LENGTH)[:-2] + end + POISON)
    for line in (LENGTH, CHUNKED):
        for between in (b"\r\n ", b"\r\n\t", b"\r", b"\n"):
            hidden = b"X-Odd: 1" + between + line
            yield bad(show(hidden), response(hidden, body=POISON))
    yield good("an empty value", response(b"X-Odd:", LENGTH, body=POISON))
    yield good("no space", response(b"X-Odd:1", b"Content-Length:%d" % SIZE, body=POISON))
    yield good("bytes from 0x80", response(b"X-Odd: \x80\xff", LENGTH, body=POISON))


def _with_line(line: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + line + b"X-Case: 1\r\n\r\n" + body


# Framing (RFC 9112 section 6).


def framing() -> Replies:
    for value in (
        *(b"", b"+%d", b"-%d", b"0x%d", b"%d, %d", b"%d,", b"%d %d", b"%d.0", b"%d;", b'"%d"'),
        *(b"x", b"-1"),
        *(b"%d\x80", b"1_%d", b"0000000000000000000%d", b"18446744073709551%d", b"9" * 30),
    ):
        line = b"Content-Length: " + (
            value % ((SIZE,) * value.count(b"%d")) if b"%" in value else value
        )
        yield bad(show(line), response(line, body=POISON))
    for other in (b"0", b"%d" % SIZE, b"1", b"x"):
        for name in (b"Content-Length: ", b"content-length: "):
            yield bad(
                f"{show(LENGTH)}, {show(name + other)}", response(LENGTH, name + other, body=POISON)
            )
            yield bad(
                f"{show(name + other)} and a length", response(name + other, LENGTH, body=POISON)
            )
    for coding in BAD_CODINGS + UNKNOWN_CODINGS:
        line = b"Transfer-Encoding: " + coding
        yield bad(show(line), response(line, body=ONE_CHUNK))
    for coding in (b"chunked", b"Chunked", b"identity", b"gzip, chunked", b""):
        line = b"Transfer-Encoding: " + coding
        yield bad(f"a length and {show(line)}", response(LENGTH, line, body=ONE_CHUNK))
        yield bad(f"{show(line)} and a length", response(line, LENGTH, body=ONE_CHUNK))
        yield bad(f"{show(line)} in HTTP/1.0", response(line, body=ONE_CHUNK, version=b"HTTP/1.0"))
        yield bad(f"{show(line)} twice", response(line, CHUNKED, body=ONE_CHUNK))
    for name in (*lookalikes(b"Content-Length"), *lookalikes(b"Transfer-Encoding")):
        yield bad(
            f"{show(name)} beside a length", response(name + b": chunked", LENGTH, body=POISON)
        )
    yield good("a length", response(LENGTH, body=POISON))
    yield good("chunks", response(CHUNKED, body=ONE_CHUNK))
    yield good("until close", response(body=POISON), then="close", stays=False)
    yield good(
        "until close, in HTTP/1.0",
        response(body=POISON, version=b"HTTP/1.0"),
        then="close",
        stays=False,
    )
    yield good("until close, for HTTP/1.0", response(body=POISON), then="close", stays=False,
               version=b"HTTP/1.0")  # fmt: skip
    yield good("chunks, for HTTP/1.0", response(CHUNKED, body=ONE_CHUNK), version=b"HTTP/1.0")
    yield good(
        "a length, in HTTP/1.0", response(LENGTH, body=POISON, version=b"HTTP/1.0"), stays=False
    )


def chunks() -> Replies:
    for name, body in bad_chunks():
        yield cut(name, response(CHUNKED, body=body + POISON))
    for size in GOOD_SIZES:
        yield good(
            f"size {show(size)}",
            response(CHUNKED, body=size + b"\r\nhello\r\n0\r\n\r\n"),
            body=b"hello",
        )
    for line in (*DROPPED, b"X-Sum: 1"):
        body = b"5\r\nhello\r\n0\r\n" + line + b"\r\n\r\n"
        yield good(f"trailer {show(line)}", response(CHUNKED, body=body), body=b"hello")
    pieces = [ONE_CHUNK[at : at + 7] for at in range(0, len(ONE_CHUNK), 7)]
    yield good("chunks, bit by bit", response(CHUNKED), *pieces)


def cut_off() -> Replies:
    """What ends too early must look so to the client."""
    for then in ("close", "reset"):
        for name, data in (
            ("before its body", b""),
            ("in its body", POISON[:20]),
            ("before its last byte", POISON[:-1]),
        ):
            yield cut(f"{name}: {then}", response(LENGTH), data, then=then)
            yield cut(f"{name}, in one piece: {then}", response(LENGTH, body=data), then=then)
        for at in (0, 1, 3, 20, len(ONE_CHUNK) - 6, len(ONE_CHUNK) - 4, len(ONE_CHUNK) - 1):
            yield cut(f"in chunks, at {at}: {then}", response(CHUNKED), ONE_CHUNK[:at], then=then)
        trailers = ONE_CHUNK[:-2] + b"X-Sum: 1\r\n"
        yield cut(f"in trailers: {then}", response(CHUNKED), trailers, then=then)
    yield cut("until close, but a reset", response(), POISON, then="reset")


# More than was asked for.

#: What comes behind a whole answer.
SURPLUS = (b"\r\n", b"x", b"\x00", POISON, b"HTTP/1.1 200 OK\r\nContent-Le")


def surplus() -> Replies:
    for extra in SURPLUS:
        for name, data, more in _whole_ones():
            label = f"{show(extra[-12:])} behind {name}"
            yield good(label, data + extra, **more)
            yield good(f"{label}, later", data, extra, late=True, **more)
            if more["body"]:
                yield good(f"{label}, in the middle of it", data[:-8], data[-8:] + extra, **more)
    for first in (b"100 Continue", b"103 Early Hints", b"204 No Content", b"304 Not Modified"):
        final = not first.startswith(b"1")
        data = response(LENGTH, status=first, body=POISON)
        status = int(first[:3]) if final else 200
        body = b"" if final else b"for poison\n"
        yield good(f"a {show(first)} with a body", data, status=status, body=body, stays=not final)
    yield bad("a 100 with a body that is no response", response(status=b"100 X", body=b"hello"))
    big = b"x" * 200000
    head = response(b"Content-Length: %d" % len(big))
    yield good("behind a long body", head + big[:-900], big[-900:] + POISON, body=big, stays=False)
    yield good("behind a long body that comes bit by bit", head + big[:140000],
               *(big[:20000],) * 2, big[:20000] + POISON, body=big, stays=False)  # fmt: skip
    # The whole answer fills what is read at once, so that the rest is not in it.
    for size in (65536, 131072):
        head = response(b"Content-Length: %d" % (size - 40))
        body = b"x" * (size - len(head))
        exact = response(b"Content-Length: %d" % len(body), body=body)
        assert len(exact) == size
        yield good(f"behind an answer of {size} bytes", exact + POISON, body=body, stays=False)


def _whole_ones() -> Iterator[tuple[str, bytes, dict[str, object]]]:
    """Answers that are whole, and what comes of them."""
    lost: dict[str, object] = {"stays": False, "body": b""}
    yield "a length", response(b"Content-Length: 5", body=b"hello"), {**lost, "body": b"hello"}
    yield "no body", response(b"Content-Length: 0"), lost
    yield "chunks", response(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"), {**lost, "body": b"hello"}
    yield "a 204", response(status=b"204 No Content"), {**lost, "status": 204}
    yield "a 304", response(LENGTH, status=b"304 Not Modified"), {**lost, "status": 304}
    yield "a HEAD", response(LENGTH), {**lost, "method": b"HEAD"}
    yield "a HEAD in chunks", response(CHUNKED), {**lost, "method": b"HEAD"}


# Bodies where there are none, and answers before the answer.


def bodiless() -> Replies:
    for method, status in (
        (b"HEAD", b"200 OK"),
        (b"GET", b"304 Not Modified"),
        (b"HEAD", b"404 X"),
    ):
        for line in (
            LENGTH,
            CHUNKED,
            b"X-Odd: 1",
            b"Content-Length: 0",
            b"Content-Length: 99999999999",
        ):
            label = f"{show(method)}, {show(status)}, {show(line)}"
            data = response(line, status=status)
            yield good(label, data, method=method, status=int(status[:3]), body=b"")
    for line in (LENGTH, CHUNKED, b"Content-Length: 0"):
        yield good(f"204, {show(line)}", response(line, status=b"204 X"), status=204, body=b"")
    yield good("205", response(b"Content-Length: 0", status=b"205 X"), status=205, body=b"")
    for method, status, body in (
        *((b"HEAD", 200, POISON), (b"HEAD", 404, ONE_CHUNK), (b"GET", 304, POISON)),
        (b"GET", 204, POISON),
    ):
        for line in (LENGTH, CHUNKED):
            yield good(f"{show(method)}, {status}, {show(line)}, and a body after all",
                       response(line, status=b"%d X" % status, body=body), method=method,
                       status=status, body=b"", stays=False)  # fmt: skip


def interim() -> Replies:
    last = response(LENGTH, body=POISON)
    for status in (b"100 Continue", b"102 Processing", b"103 Early Hints", b"199 X", b"100"):
        for lines in ((), (b"Link: </x>",), (LENGTH,), (CHUNKED,), (b"Connection: close",)):
            first = response(*lines, status=status)
            yield good(f"{show(first[9:])} first", first + last)
        yield good(f"{show(status)} first, by itself", response(status=status), last)
        yield good(
            f"{show(status)} first, for HTTP/1.0",
            response(status=status) + last,
            version=b"HTTP/1.0",
        )
    yield good("a hundred of them", response(status=b"100 Continue") * 100 + last)
    yield bad(
        "a 101 that nobody wanted", response(b"Upgrade: x", b"Connection: upgrade", status=b"101 X")
    )
    yield bad("a 101 after a 100", response(status=b"100 X") + response(status=b"101 X") + last)
    for then in ("close", "reset"):
        yield bad(f"a 100, and no more: {then}", response(status=b"100 Continue"), then=then)
    yield bad(
        "a 100, then a bad line", response(status=b"100 Continue") + b"HTTP/1.1 200\tOK\r\n\r\n"
    )
    yield bad("a 100 of HTTP/2", b"HTTP/2.0 100 Continue\r\n\r\n" + last)


def connections() -> Replies:
    for option in (
        *(b"content-length", b"transfer-encoding", b"x-odd", b"keep-alive", b"set-cookie", b"te"),
        b",",
        *(b"upgrade", b"connection", b"date", b'"x"', b"", b"proxy-authenticate", b"trailer"),
        b"a b",
    ):
        lines = (b"Connection: " + option, b"X-Odd: 1", b"Set-Cookie: a=b")
        yield good(f"Connection: {show(option)}, length", response(*lines, LENGTH, body=POISON))
        yield good(f"Connection: {show(option)}, chunks", response(*lines, CHUNKED, body=ONE_CHUNK))
    for line in (b"Connection: close", b"connection: Close", b"Connection: x, close"):
        yield good(show(line), response(line, LENGTH, body=POISON), stays=False)
        yield good(
            f"{show(line)}, then more", response(line, LENGTH, body=POISON + POISON), stays=False
        )
    for line in (
        *(b"Keep-Alive: timeout=x", b"Keep-Alive: timeout=-1", b"Keep-Alive: timeout=" + b"9" * 30),
        *(b"Upgrade: h2c", b"Proxy-Connection: close", b"TE: trailers"),
        b"Proxy-Authenticate: Basic",
        *(b"Trailer: Content-Length", b"Content-Encoding: chunked", b"X-Content-Length: 1"),
    ):
        yield good(show(line), response(line, LENGTH, body=POISON))


FAMILIES: dict[str, Callable[[], Replies]] = {
    "status_lines": status_lines,
    "strangers": strangers,
    "fields": fields,
    "framing": framing,
    "chunks": chunks,
    "cut_off": cut_off,
    "surplus": surplus,
    "bodiless": bodiless,
    "interim": interim,
    "connections": connections,
}
