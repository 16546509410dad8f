"""More of the corpus: what frames a body, what stands in it, and what comes behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.interop.http_corpus import (
    ENDS,
    HIDDEN,
    HOST,
    Case,
    Cases,
    Seen,
    bad,
    good,
    request,
    show,
)

SIZE = len(HIDDEN)
CHUNKED = b"Transfer-Encoding: chunked"
#: A whole body of one chunk.
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, HIDDEN)
LENGTH = b"Content-Length: %d" % SIZE

#: No numbers of bytes (RFC 9110 section 8.6), written with the digits of one.
BAD_LENGTHS = (
    *(b"", b"+%d", b"-%d", b"+ %d", b"0x%d", b"0o%d", b"%d.0", b"%d,", b",%d", b"%d, %d", b"%d,0"),
    *(b"0, %d", b"%d %d", b"%d;", b"%d; a", b'"%d"', b"'%d'", b"%de0", b"%dL", b"%d\x80"),
    b"\xa0%d",
    *(b"%d_0", b"1_%d", b"%d/1", b"(%d)", b"=%d", b"%d bytes", b"bytes=%d", b"chunked", b"NaN"),
    *(b"inf", b"\xef\xbc\x95", b"\xd9\xa5", b"\xb2", b"-0", b"-1", b"+0", b"0x0"),
    b"0000000000000000000%d",
    *(b"18446744073709551616", b"18446744073709551%d", b"9" * 30, b"4294967296" * 3, b"%%%d"),
)


def bad_lengths() -> Iterator[bytes]:
    for value in BAD_LENGTHS:
        numbers = value.replace(b"%%", b"").count(b"%d")
        yield value % ((SIZE,) * numbers) if b"%" in value else value


def lengths() -> Cases:
    for value in bad_lengths():
        yield bad(f"Content-Length: {show(value)}", _post(b"Content-Length: " + value, body=HIDDEN))
    for value in (b"%d" % SIZE, b"000%d" % SIZE):
        line = b"Content-Length: " + value
        yield good(show(line), _post(line, body=HIDDEN), Seen(b"POST", body=HIDDEN))
    for other in (b"0", b"%d" % SIZE, b"%d" % (SIZE + 1), b"", b"x"):
        for name in (b"Content-Length", b"content-length", b"CONTENT-LENGTH"):
            line = name + b": " + other
            yield bad(f"{show(LENGTH)}, {show(line)}", _post(LENGTH, line, body=HIDDEN))
            if line != LENGTH:
                yield bad(f"{show(line)}, {show(LENGTH)}", _post(line, LENGTH, body=HIDDEN))
    for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"):
        yield good(f"{show(method)} with a length", _post(LENGTH, body=HIDDEN, method=method),
                   Seen(method, body=HIDDEN))  # fmt: skip


#: Names that somebody on the way may take for one that frames.
def lookalikes(name: bytes) -> Iterator[bytes]:
    for byte in b"!#$%&'*+.^_`|~0":
        yield name.replace(b"-", bytes((byte,)))
        yield name + bytes((byte,))
        yield bytes((byte,)) + name
    yield name.replace(b"-", b"")
    yield name.replace(b"-", b"--")
    yield name.replace(b"-", b"_").upper()


def names() -> Cases:
    for name in lookalikes(b"Content-Length"):
        line = name + b": %d" % SIZE
        yield bad(show(line), _post(line, body=HIDDEN))
        yield bad(f"{show(line)} beside another", _post(b"Content-Length: 0", line, body=HIDDEN))
    for name in lookalikes(b"Transfer-Encoding"):
        line = name + b": chunked"
        yield bad(show(line), _post(line, body=ONE_CHUNK))
        yield bad(f"{show(line)} beside a length", _post(LENGTH, line, body=HIDDEN))


#: Values of Transfer-Encoding that are not ``chunked`` to somebody (RFC 9112 section 6.1).
BAD_CODINGS = (
    *(b"", b",", b"chunked,", b",chunked", b"chunked, ", b"chunked,,", b"chunked, chunked"),
    *(b"chunked chunked", b"chunked;q=1", b"chunked; a=b", b'"chunked"', b"'chunked'"),
    b"(chunked)",
    *(b"xchunked", b"chunkedx", b"chunke", b"chun ked", b"chunked-", b"x-chunked"),
    b"c\xc4\xa5unked",
    *(b"chunked\xa0", b"\xa0chunked", b"\xffchunked", b"chunked\x80", b"=chunked", b"chunked:"),
    *(b"identity", b"none", b"gzip", b"chunked, identity", b"chunked, gzip", b"gzip chunked"),
    *(b"gzip;, chunked", b"chunked, gzip, chunked", b"chunked\tchunked", b"true", b"0"),
    b"%s chunked",
)
UNKNOWN_CODINGS = (
    *(b"gzip, chunked", b"identity, chunked", b"deflate,chunked", b"x, y, chunked"),
    b"GZIP ,Chunked",
)
GOOD_CODINGS = (b"chunked", b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked\t", b"cHuNkEd")


def codings() -> Cases:
    for value in BAD_CODINGS:
        line = b"Transfer-Encoding: " + value
        yield bad(show(line), _post(line, body=ONE_CHUNK))
    for value in UNKNOWN_CODINGS:
        line = b"Transfer-Encoding: " + value
        yield bad(show(line), _post(line, body=ONE_CHUNK), 501)
    for value in GOOD_CODINGS:
        line = b"Transfer-Encoding:" + value
        yield good(show(line), _post(line, body=ONE_CHUNK), Seen(b"POST", body=HIDDEN))
    for other, status in (
        *((b"chunked", 400), (b"identity", 400), (b"", 400), (b"x", 400), (b"chunked, x", 400)),
    ):
        line = b"Transfer-Encoding: " + other
        yield bad(f"chunked, then {show(line)}", _post(CHUNKED, line, body=ONE_CHUNK), status)
    for other, status in ((b"identity", 501), (b"", 400), (b"x", 501), (b"chunked, x", 400)):
        line = b"transfer-encoding: " + other
        yield bad(f"{show(line)}, then chunked", _post(line, CHUNKED, body=ONE_CHUNK), status)
    for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS"):
        yield good(f"{show(method)} in chunks", _post(CHUNKED, body=ONE_CHUNK, method=method),
                   Seen(method, body=HIDDEN))  # fmt: skip
    for coding in (b"chunked", b"identity", b"gzip, chunked"):
        old = _post(b"Transfer-Encoding: " + coding, body=ONE_CHUNK, version=b"HTTP/1.0")
        yield bad(f"{show(coding)} in HTTP/1.0", old, 501 if b"," in coding else 400)


def both() -> Cases:
    """A length and a coding (RFC 9112 section 6.1): each reader could believe another one."""
    for length in (b"0", b"4", b"%d" % SIZE, b"%d" % len(ONE_CHUNK), b"x", b""):
        for coding in (b"chunked", b"Chunked", b"identity", b"x", b"", b"gzip, chunked"):
            lines = (b"Content-Length: " + length, b"Transfer-Encoding: " + coding)
            yield bad(f"{show(lines[0])}, {show(lines[1])}", _post(*lines, body=ONE_CHUNK))
            yield bad(f"{show(lines[1])}, {show(lines[0])}", _post(*lines[::-1], body=ONE_CHUNK))


# Chunks (RFC 9112 section 7.1).

#: Before the CRLF of a size line that says five.
BAD_SIZES = (
    *(b"", b" ", b" 5", b"\t5", b"5 ", b"5\t", b"+5", b"-5", b"0x5", b"5h", b"g", b"5.0", b"5,5"),
    b"5 5",
    *(b"5_0", b"5\x00", b"\x005", b"5\x0b", b"5\xa0", b"\xef\xbc\x95", b"5\r", b"5\n", b"'5'"),
    b'"5"',
    *(b"0000000000000005", b"FFFFFFFFFFFFFFFF", b"10000000000000005", b"100000005" * 2, b"-0"),
    *(b"5;", b"5; ", b"5;=", b"5;=a", b"5;a=", b'5;a="', b'5;a="b', b"5;a=b;", b"5;;a", b"5;a b"),
    *(b"5;a=b=c", b"5;a\x00", b"5;a=\x01", b"5;a\n", b"5;a\rb", b'5;a="\n"', b'5;a="\x7f"', b"5,a"),
    b"5 a",
    *(b"5;a(b)", b"5;\xff", b"5:a", b"5=a", b"5;a='b c'", b"5;" + b"a" * 4200, b"5;a=b\x7f"),
)
GOOD_SIZES = (
    *(b"5", b"05", b"000000000000005", b"5;a", b"5;a=b", b'5;a="b;c"', b"5 ; a = b", b'5;a="\\""'),
    *(b'5;a="GET / HTTP/1.1"', b"5;a;b;c=d", b"5\t;a"),
)
#: In place of the CRLF behind five bytes of payload.
BAD_ENDS = (
    *(b"", b"\n", b"\r", b"\n\r", b" \r\n", b"x\r\n", b"\r\n\r\n", b"\x00\x00", b"\r\r\n"),
    b"0\r\n",
)
#: In place of the last chunk and the end of the trailers.
BAD_LASTS = (
    *(b"0\n\r\n", b"0\r\r\n\r\n", b"0 \r\n\r\n", b" 0\r\n\r\n", b"0\r\n\n", b"0\r\n\rX"),
    b"0\r\nX\r\n\r\n",
    *(b"0\r\n \r\n\r\n", b"0\r\nX : 1\r\n\r\n", b"0\r\nX: 1\n\r\n", b"0\r\nX: \x00\r\n\r\n"),
    *(b"0\r\n: 1\r\n\r\n", b"0\r\nX: 1\r\n y\r\n\r\n", b"0\r\nX: 1\r\n\n", b"0\r\nX: a\rb\r\n\r\n"),
    *(
        b"0\r\nX: 1\r\r\n\r\n",
        b"0\r\nContent_Length: 5\r\n\r\n",
        b"0\r\nTransfer.Encoding: x\r\n\r\n",
    ),
    *(b"0;\r\n\r\n", b"-0\r\n\r\n", b"0x0\r\n\r\n", b"0\r\nX: " + b"x" * 17000 + b"\r\n\r\n"),
    *(b"0\r\n" + b"X: 1\r\n" * 120 + b"\r\n", b"0\r\n" + HIDDEN.replace(b"\r\n\r\n", b"\r\n\n")),
)
#: Trailers that are no fields of the message (RFC 9110 section 6.5.1): they go no further.
DROPPED = (
    *(b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Host: b.example"),
    b"Connection: close",
    *(b"Trailer: X", b"Authorization: x", b"Upgrade: h2c", b"TE: x", b"Forwarded: for=x"),
    b"Keep-Alive: 1",
    *(b"Content-Type: x", b"X-Forwarded-For: 10.0.0.1", b"Expect: 100-continue", b"Cookie: a"),
)


def bad_chunks() -> Iterator[tuple[str, bytes]]:
    """Bodies that break a rule in the first chunk, and in a later one; any reader's."""
    for first in (b"", b"3\r\nabc\r\n"):
        behind = " behind a good one" if first else ""
        for size in BAD_SIZES:
            yield f"size {show(size[:40])}{behind}", first + size + b"\r\nhello\r\n0\r\n\r\n"
        for end in BAD_ENDS:
            yield f"ends with {show(end)}{behind}", first + b"5\r\nhello" + end + b"0\r\n\r\n"
        for last in BAD_LASTS:
            yield f"last {show(last[:40])}{behind}", first + last
        for size in (4, 6):
            body = b"%x\r\nhello\r\n0\r\n\r\n" % size
            yield f"size {size} for five bytes{behind}", first + body


def chunks() -> Cases:
    for name, body in bad_chunks():
        yield bad(name, _post(CHUNKED, body=body + HIDDEN))
    for size in GOOD_SIZES:
        body = size + b"\r\nhello\r\n0\r\n\r\n"
        yield good(f"size {show(size)}", _post(CHUNKED, body=body), Seen(b"POST", body=b"hello"))
    for last in (b"0", b"000", b"0;a=b", b"0 ;a"):
        body = b"5\r\nhello\r\n" + last + b"\r\n\r\n"
        yield good(f"last {show(last)}", _post(CHUNKED, body=body), Seen(b"POST", body=b"hello"))
    for line in (*DROPPED, b"X-Sum: 1", b"X-Sum:1"):
        body = b"5\r\nhello\r\n0\r\n" + line + b"\r\n\r\n"
        yield good(f"trailer {show(line)}", _post(CHUNKED, body=body), Seen(b"POST", body=b"hello"))
    hidden = b"".join(b"1\r\n%c\r\n" % byte for byte in HIDDEN) + b"0\r\n\r\n"
    yield good("a chunk for each byte", _post(CHUNKED, body=hidden), Seen(b"POST", body=HIDDEN))
    yield good("no chunk", _post(CHUNKED, body=b"0\r\n\r\n"), Seen(b"POST"))


# What comes one after the other.


def pipelines() -> Cases:
    second = request(target=b"/TOKEN/2")
    post = _post(LENGTH, body=HIDDEN)
    chunked = _post(CHUNKED, body=ONE_CHUNK)
    posted, then = Seen(b"POST", body=HIDDEN), Seen(target=b"/TOKEN/2")
    yield good("two", request() + second, Seen(), then)
    yield good("three", post + chunked + second, posted, posted, then)
    yield good("twenty", request() * 20, *(Seen(),) * 20)
    yield good("with an empty line between", post + b"\r\n" + second, posted, then)
    yield Case("with two empty lines between", post + b"\r\n\r\n" + second, (posted,), 400)
    yield good("a HEAD, and one more", request(b"HEAD") + second, Seen(b"HEAD"), then)
    nothing = _post(b"Content-Length: 0")
    yield good("no body, and one more", nothing + second, Seen(b"POST"), then)
    yield good("no framing, and one more", _post() + second, Seen(b"POST"), then)
    for line in (
        *(b"close", b"Close", b"x, close", b"close, keep-alive"),
        b"keep-alive\r\nConnection: close",
    ):
        last = request(lines=(HOST, b"Connection: " + line))
        yield Case(f"Connection: {show(line)}, and one more", last + HIDDEN, (Seen(),), ENDS)
    old = request(version=b"HTTP/1.0")
    yield Case("HTTP/1.0, and one more", old + HIDDEN, (Seen(),), ENDS)
    old = _post(LENGTH, body=HIDDEN, version=b"HTTP/1.0")
    yield Case("HTTP/1.0 with a body, and one more", old + HIDDEN, (posted,), ENDS)
    for name, data, status in (
        ("a bad line", b"GET  /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
        ("no Host", b"GET /hidden HTTP/1.1\r\n\r\n", 400),
        ("two lengths", _post(LENGTH, LENGTH, body=HIDDEN), 400),
        ("a bad chunk", _post(CHUNKED, body=b"x\r\n" + HIDDEN), 400),
        ("an unknown version", b"GET /hidden HTTP/1.3\r\nHost: a.example\r\n\r\n", 505),
        ("a bare LF", b"\n" + HIDDEN, 400),
        ("a NUL", b"\0" + HIDDEN, 400),
    ):
        yield Case(f"a good one, then {name}", request() + data, (Seen(),), status)
        yield Case(f"a body, then {name}", post + data, (posted,), status)
        yield Case(f"chunks, then {name}", chunked + data, (posted,), status)
        yield bad(f"{name}, then a good one", data + HIDDEN, status)


def cut_off() -> Cases:
    """A request that ends early is never passed on as whole; what was whole before it is."""
    for name, data in (
        ("in its line", request()[:12]),
        ("in its fields", request()[:-4]),
        ("before its last line", request()[:-2]),
        ("in its body", _post(LENGTH, body=HIDDEN[:-1])),
        ("before its body", _post(LENGTH)),
        ("in a chunk", _post(CHUNKED, body=ONE_CHUNK[:20])),
        ("behind a chunk", _post(CHUNKED, body=ONE_CHUNK[:-5])),
        ("in the last chunk", _post(CHUNKED, body=ONE_CHUNK[:-2])),
        ("in its trailers", _post(CHUNKED, body=ONE_CHUNK[:-2] + b"X: 1\r\n")),
        ("after an empty line", b"\r\n"),
        ("at once", b""),
    ):
        yield Case(f"cut off {name}", data, ends=True)
        yield Case(f"a good one, then one cut off {name}", request() + data, (Seen(),), ends=True)


def connections() -> Cases:
    """What Connection names is dropped; how the message was understood stays the same."""
    named = (
        *(b"host", b"content-length", b"transfer-encoding", b"x-odd", b"x-case", b"cookie", b"te"),
        *(b"authorization", b"expect", b"trailer", b"via", b"forwarded", b"x-forwarded-for"),
        b"upgrade",
        *(b"keep-alive", b"connection", b"x-request-id", b"date", b"content-type", b"user-agent"),
        *(b"proxy-authorization", b"HTTP2-Settings", b",", b", ,x-odd", b"", b"a b", b'"host"'),
        b"@",
    )
    extra = (b"X-Odd: 1", b"Cookie: a=b", b"Authorization: x", b"Content-Type: text/plain")
    for option in named:
        for name, framing, body in (("length", LENGTH, HIDDEN), ("chunks", CHUNKED, ONE_CHUNK)):
            lines = (b"Connection: " + option, framing, *extra)
            yield good(f"Connection: {show(option)}, {name}", _post(*lines, body=body),
                       Seen(b"POST", body=HIDDEN))  # fmt: skip
    upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk")
    for protocol in (b"h2c", b"H2C", b"h2c, websocket", b"websocket, h2c", b"x/h2c"):
        yield good(
            f"Upgrade: {show(protocol)}", request(lines=(HOST, *upgrade, b"Upgrade: " + protocol))
        )
    for protocol in (b"websocket", b"TLS/1.0", b"foo/2, bar"):
        lines = (HOST, b"Connection: upgrade", b"Upgrade: " + protocol)
        yield good(
            f"Upgrade: {show(protocol)}, not taken",
            request(lines=lines) + request(),
            Seen(),
            Seen(),
        )
        yield good(f"Upgrade: {show(protocol)} with a body", _post(*lines[1:], LENGTH, body=HIDDEN),
                   Seen(b"POST", body=HIDDEN))  # fmt: skip
    yield good("Expect with its body", _post(b"Expect: 100-continue", LENGTH, body=HIDDEN),
               Seen(b"POST", body=HIDDEN))  # fmt: skip
    yield good("Expect without a body", request(lines=(HOST, b"Expect: 100-Continue")))


def _post(
    *lines: bytes, body: bytes = b"", method: bytes = b"POST", version: bytes = b"HTTP/1.1"
) -> bytes:
    return request(method, version=version, lines=(HOST, *lines), body=body)


FAMILIES: dict[str, Callable[[], Cases]] = {
    "lengths": lengths,
    "names": names,
    "codings": codings,
    "both": both,
    "chunks": chunks,
    "pipelines": pipelines,
    "cut_off": cut_off,
    "connections": connections,
}
