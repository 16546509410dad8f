"""Malformed and ambiguous requests, made by rules: each rule of the grammar is broken at each place
where it can be, and around each way to frame a message stands a request that nobody has sent.

A case is what a client sends, and what may come of it: the requests that the origin sees, in their
order, and whether there the proxy refuses the client. :data:`FAMILIES` has them all, by family.
``TOKEN`` stands for five bytes that are each case's own. What frames a body is in
``http_corpus_framing.py``, responses are in ``http_corpus_responses.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from attrs import evolve, frozen

#: A request that is never sent, only quoted: the origin must not see it.
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a.example\r\nX-Case: hidden\r\n\r\n"
HOST = b"Host: a.example"

#: No token has one of these in it (RFC 9110 section 5.6.2).
DELIMITERS = b'"(),/:;<=>?@[\\]{}'
CONTROLS = bytes((0, 1, 8, 11, 12, 14, 27, 31, 127))
HIGH = bytes((0x80, 0xA0, 0xFF))
#: What ends a line for somebody, but is not CRLF.
ENDINGS = (b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\n", b"\x00\r\n", b"\x0b", b"\xc2\x85", b"")

#: Of a case: the connection ends, and what comes next is not looked at.
ENDS = -1


@frozen
class Seen:
    """A request as the origin is to see it."""

    method: bytes = b"GET"
    target: bytes = b"/TOKEN"
    body: bytes = b""
    host: bytes = b"a.example"


@frozen
class Case:
    """One thing that a client sends.

    :ivar answers: in their order: a request that the origin is to see, and answers; or the status
        of an answer of the proxy's own, after which the connection goes on.
    :ivar refused: the status with which the proxy refuses what comes next, and ends; 0: it does
        not; :data:`ENDS`: it ends without.
    :ivar ends: nothing is sent after it but the end of the connection.
    """

    name: str
    data: bytes
    answers: tuple[Seen | int, ...] = ()
    refused: int = 0
    ends: bool = False


Cases = Iterator[Case]


def request(
    method: bytes = b"GET",
    target: bytes = b"/TOKEN",
    version: bytes = b"HTTP/1.1",
    lines: Iterable[bytes] = (HOST,),
    body: bytes = b"",
) -> bytes:
    """A request with these lines, and one that names the case."""
    start = b" ".join((method, target, version))
    return b"\r\n".join((start, *lines, b"X-Case: TOKEN", b"", body))


def bad(name: str, data: bytes, status: int = 400, **more: bool) -> Case:
    """One that is refused."""
    return Case(name, data, (), status, **more)


def good(name: str, data: bytes, *answers: Seen | int) -> Case:
    """One that is passed on."""
    return Case(name, data, answers or (Seen(),))


def show(data: bytes) -> str:
    """Bytes as a part of a name."""
    return repr(data)[2:-1]


def at_each_place(word: bytes, byte: int) -> Iterator[tuple[str, bytes]]:
    """A word with a byte put in at its start, in the middle and at its end."""
    for place, at in (("start", 0), ("middle", len(word) // 2), ("end", len(word))):
        yield f"{show(bytes((byte,)))} at its {place}", word[:at] + bytes((byte,)) + word[at:]


# Request lines (RFC 9112 section 3).

SPACES = (b"  ", b"\t", b" \t", b"\x0b", b"\x0c", b"\x00", b"\r", b"\xa0", b"", b"\r\n", b"\r\n ")
VERSIONS = (
    *(b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/1.1.1", b"HTTP/1.10", b"HTTP/01.1", b"HTTP/1.01"),
    *(b"HTTP/1,1", b"HTTP/1.1x", b"HTTP/1.1 x", b"HTTP/1.1 ", b"HTTP/1.1\t", b"HTTP/ 1.1"),
    *(b"HTTP /1.1", b"HTTP-1.1", b"HTTP1.1", b"http/1.1", b"Http/1.1", b"HTTPS/1.1", b"ICE/1.0"),
    *(b"HTTP/+1.1", b"HTTP/-1.1", b"HTTP/1.-1", b"HTTP/x.y", b"HTTP/0x1.1", b"1.1", b"HTTP", b""),
    *(b"HTTP/1.1\x00", b"\x00HTTP/1.1", b"HTTP/\xef\xbc\x91.1", b"HTTP/1.1;", b'"HTTP/1.1"'),
)
UNKNOWN_VERSIONS = (b"HTTP/0.9", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/2.0", b"HTTP/3.0", b"HTTP/9.9")
#: No path and no URL (RFC 9112 section 3.2), or one that could mean two things.
TARGETS = (
    *(b"TOKEN", b"TOKEN/x", b"*", b"*/TOKEN", b"?TOKEN", b"a.example:80", b":80", b"\\TOKEN"),
    *(b"%2fTOKEN", b"./TOKEN", b"../TOKEN", b"http:", b"http:/TOKEN", b"http:TOKEN", b"http://"),
    *(b"http:///TOKEN", b"http://@a.example/TOKEN", b"http://u@a.example/TOKEN", b"//u@a/#TOKEN"),
    *(b"http://u:p@a.example/TOKEN", b"ftp://a.example/TOKEN", b"ws://a.example/TOKEN"),
    *(b"file:///TOKEN", b"https//a.example/TOKEN", b"http:\\\\a.example\\TOKEN"),
    *(b"http://a.example:99999/TOKEN", b"http://a.example:-1/TOKEN", b"http://a.example:8x/TOKEN"),
    *(b"http://a.example:80:80/TOKEN", b"http://[::1/TOKEN", b"http://::1/TOKEN"),
    *(b"http://a%zz/TOKEN", b"http://a\\b/TOKEN", b"http://a,b/TOKEN", b"http://a.example#/TOKEN"),
)
#: Paths that climb: an origin may take them for something that no route has let through.
CLIMBING = (
    *(b"/../TOKEN", b"/a/../../TOKEN", b"/%2e%2e/TOKEN", b"/.%2E/TOKEN", b"/TOKEN/../.."),
    *(b"/a/%2e%2e/../TOKEN", b"http://a.example/../TOKEN"),
)


def request_lines() -> Cases:
    for byte in DELIMITERS + CONTROLS + HIGH + b" \t\r\n":
        for place, method in at_each_place(b"GET", byte):
            yield bad(f"method with {place}", request(method))
    for byte in CONTROLS + HIGH + b" \t\r\n#":
        for place, target in at_each_place(b"/a/TOKEN", byte):
            yield bad(f"target with {place}", request(target=target))
    for name, data in _odd_spaces():
        yield bad(name, data)
    for version in VERSIONS:
        yield bad(f"version {show(version)}", request(version=version))
    for version in UNKNOWN_VERSIONS:
        yield bad(f"version {show(version)}", request(version=version), 505)
    for target in TARGETS:
        yield bad(f"target {show(target)}", request(target=target))
    for target in CLIMBING:
        yield good(f"climbing {show(target)}", request(target=target), 400)
    yield bad("CONNECT", request(b"CONNECT", b"a.example:80"), 501)
    yield bad("CONNECT to a path", request(b"CONNECT"), 501)
    yield bad("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN, 505)


def _odd_spaces() -> Iterator[tuple[str, bytes]]:
    line = b"GET%b/TOKEN%bHTTP/1.1%bHost: a.example\r\n\r\n"
    for space in SPACES:
        yield f"{show(space)} for the first space", line % (space, b" ", b"\r\n")
        yield f"{show(space)} for the second space", line % (b" ", space, b"\r\n")
    for ending in ENDINGS:
        yield f"{show(ending)} ends the request line", line % (b" ", b" ", ending)
    for before in (b"\n", b"\r", b" ", b"\t", b"\r\n\r\n", b"\r\n\n", b"\r\n ", b"\x00", b"\xff"):
        yield f"{show(before)} before the request line", before + request()
    yield "only a method", b"GET\r\n\r\n"
    yield "an empty line, and another", b"\r\n\r\n\r\n"
    yield "HTTP/0.9", b"GET /TOKEN\r\n\r\n"
    yield "HTTP/0.9 with a field", b"GET /TOKEN\r\nHost: a.example\r\n\r\n"


def unusual_lines() -> Cases:
    """What is allowed, and must mean the same to all."""
    yield good("an empty line first", b"\r\n" + request())
    for method in (b"get", b"QUERY", b"M-SEARCH", b"!#$%&'*+-.^_`|~0", b"TRACE", b"X" * 64):
        yield good(f"method {show(method)}", request(method), Seen(method))
    for target in (
        *(b"/%00TOKEN", b"/TOKEN?a=b?c", b"//TOKEN", b"/TOKEN\\x", b"/TOKEN;a,b", b'/TOKEN"'),
    ):
        yield good(f"target {show(target)}", request(target=target), Seen(target=target))
    yield good("a space that is encoded", request(target=b"/TOKEN%20HTTP/1.1%0d%0ax:y"),
               Seen(target=b"/TOKEN%20HTTP/1.1%0d%0ax:y"))  # fmt: skip
    yield good("OPTIONS *", request(b"OPTIONS", b"*"), Seen(b"OPTIONS", b"*"))
    yield good("HTTP/1.0 with Host", request(version=b"HTTP/1.0", lines=(
        HOST, b"Connection: keep-alive")))  # fmt: skip
    for url, target in ((b"http://b.example", b"/"), (b"HTTP://b.example/TOKEN", b"/TOKEN"),
                        (b"https://b.example?TOKEN", b"/?TOKEN")):  # fmt: skip
        yield good(f"{show(url)} wins over Host", request(target=url),
                   Seen(target=target, host=b"b.example"))  # fmt: skip
    yield good("OPTIONS of a host", request(b"OPTIONS", b"http://b.example"),
               Seen(b"OPTIONS", b"*", host=b"b.example"))  # fmt: skip


# Field lines (RFC 9112 section 5).


def broken_lines(line: bytes) -> Iterator[tuple[str, bytes]]:
    """A field line, broken at each place, with what ends it."""
    name, value = line.split(b": ")
    for byte in DELIMITERS.replace(b":", b"") + CONTROLS + HIGH + b" \t\r\n":
        for place, broken in at_each_place(name, byte):
            yield f"name with {place}", broken + b": " + value + b"\r\n"
    for byte in CONTROLS + b"\r\n":
        for place, broken in at_each_place(value, byte):
            yield f"value with {place}", name + b": " + broken + b"\r\n"
    for ending in ENDINGS:
        # Where nothing ends it, or something that a value may have, it goes on as one value.
        if ending not in (b"", b"\xc2\x85") or value != b"value":
            yield f"ends with {show(ending)}", line + ending
    yield "no colon", name + b" " + value + b"\r\n"
    yield "no name", b": " + value + b"\r\n"
    yield "nothing but a colon", line + b"\r\n:\r\n"
    yield "folded with a space", name + b":\r\n " + value + b"\r\n"
    yield "folded with a tab", name + b":\r\n\t" + value + b"\r\n"
    yield "folded with nothing", line + b"\r\n \r\n"
    yield "folded after all", line + b"\r\n\t more\r\n"


def fields() -> Cases:
    for name, line in broken_lines(b"X-Odd: value"):
        yield bad(f"X-Odd: {name}", _with_line(line))
    for name, line in broken_lines(HOST):
        yield bad(f"Host: {name}", _with_line(line, host=b""))
    length = b"Content-Length: %d" % len(HIDDEN)
    for name, line in broken_lines(length):
        yield bad(f"Content-Length: {name}", _with_line(line, HIDDEN))
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    for name, line in broken_lines(b"Transfer-Encoding: chunked"):
        yield bad(f"Transfer-Encoding: {name}", _with_line(line, chunked))
    for line in (length, b"Transfer-Encoding: chunked"):
        yield bad(
            f"{show(line)} hidden in a fold", _with_line(b"X-Odd: 1\r\n " + line + b"\r\n", HIDDEN)
        )
        yield bad(
            f"{show(line)} hidden behind CR", _with_line(b"X-Odd: 1\r" + line + b"\r\n", HIDDEN)
        )
        yield bad(
            f"{show(line)} hidden behind LF", _with_line(b"X-Odd: 1\n" + line + b"\r\n", HIDDEN)
        )
    yield from _before_the_first()
    for end in (b"\n", b"\r", b"\n\r", b"\r\r\n", b" \r\n\r\n", b"\t\r\n\r\n", b"\x00\r\n\r\n"):
        yield bad(f"a head that ends with {show(end)}", request()[:-2] + end)


def _with_line(line: bytes, body: bytes = b"", host: bytes = HOST + b"\r\n") -> bytes:
    """A POST with a line as it stands."""
    return b"POST /TOKEN HTTP/1.1\r\n" + host + line + b"X-Case: TOKEN\r\n\r\n" + body


def _before_the_first() -> Cases:
    start = b"GET /TOKEN HTTP/1.1\r\n"
    for space in (b" ", b"\t", b"\r\n ", b" \r\n"):
        yield bad(f"{show(space)} before the first field", start + space + HOST + b"\r\n\r\n")
    yield bad("a line of spaces first", start + b"  \r\n" + HOST + b"\r\n\r\n")


def unusual_fields() -> Cases:
    """What is allowed, and must mean the same to all."""
    for space in (b"", b"\t", b"  ", b" \t "):
        lines = (b"X-Odd:%b1%b\r\nContent-Length:%b0%b\r\n") % ((space,) * 4)
        yield good(f"{show(space)} around a value", _with_line(lines), Seen(b"POST"))
    yield good("an empty value", request(lines=(HOST, b"X-Odd:")))
    yield good("a value that is a request", request(lines=(HOST, b"X-Odd: GET /hidden HTTP/1.1")))
    yield good("bytes from 0x80", request(lines=(HOST, b"X-Odd: \x80\x85\xa0\xff")))
    yield good("names of framing in values", request(lines=(HOST, b"X-Odd: Content-Length: 9")))
    yield good("names that contain those of framing", request(lines=(
        HOST, b"X-Content-Length: 9", b"X-Transfer-Encoding: chunked")))  # fmt: skip
    yield good("a name of symbols", request(lines=(HOST, b"!#$%&'*+-.^_`|~: 1")))
    for expect in (
        *(b"200-ok", b"100-continue, 100-continue", b"100-continue;q=1", b'"100-continue"'),
    ):
        yield bad(f"Expect: {show(expect)}", request(lines=(HOST, b"Expect: " + expect)), 417)


# Hosts (RFC 9112 section 3.2, RFC 9110 section 7.2).

BAD_HOSTS = (
    *(b"", b"a b", b"a,b", b"a.example, b.example", b"u@a.example", b"u:p@a.example", b"a/b"),
    *(b"a.example/", b"http://a.example", b"a?b", b"a#b", b"a\\b", b'"a"', b"<a>", b"a|b", b"a^b"),
    *(b"a`b", b"{a}", b"[a]", b"[::1", b"::1]", b"[::1]x", b"::1", b"[]", b"[::1]:x", b"[%25lo]"),
    *(b"a:b", b"a:80:80", b"a:-1", b"a:+1", b"a:65536", b"a:99999", b"a:0x50", b"a:8 0", b":80"),
    *(b"a:80,b:80", b"a%", b"a%2", b"a%zz", b"\xe4.example", b"a\xc2\xa0b", b"a.example\x85"),
    b"a\tb",
)
GOOD_HOSTS = (
    *(b"A.Example", b"a.example:80", b"a.example:", b"a.example.", b"a_b", b"[::1]", b"[::1]:80"),
    *(b"127.0.0.1:8080", b"a%20b", b"xn--nxasmq6b", b"localhost", b"a;b", b"a:65535", b"*"),
)


def hosts() -> Cases:
    for host in BAD_HOSTS:
        yield bad(f"Host: {show(host)}", request(lines=(b"Host: " + host,)))
    for host in GOOD_HOSTS:
        yield good(f"Host: {show(host)}", request(lines=(b"Host: " + host,)), Seen(host=host))
    for other in (HOST, b"Host: b.example", b"host: a.example", b"HOST:", b"Host: "):
        yield bad(f"Host twice: {show(other)}", request(lines=(HOST, other)))
        yield bad(f"Host twice: {show(other)} first", request(lines=(other, HOST)))
        old = request(version=b"HTTP/1.0", lines=(HOST, other))
        yield bad(f"Host twice in HTTP/1.0: {show(other)}", old)
    yield bad("no Host", request(lines=()))
    yield bad("no Host beside a URL", request(target=b"http://a.example/TOKEN", lines=()))
    yield bad(
        "two hosts beside a URL", request(target=b"http://a.example/TOKEN", lines=(HOST, HOST))
    )
    yield bad(
        "a bad host beside a URL", request(target=b"http://a.example/TOKEN", lines=(b"Host: a/b",))
    )
    for name in (b"Host ", b" Host", b"Ho st", b"Host\t"):
        yield bad(f"{show(name)} for Host", request(lines=(name + b": a.example",)))
    for name in (b"X-Host", b"X-Forwarded-Host", b"Host_", b"HTTP_HOST"):
        yield good(f"{show(name)} beside Host", request(lines=(name + b": b.example", HOST)))


# Limits, and what is no HTTP.


def limits() -> Cases:
    yield bad("a long target", request(target=b"/TOKEN" + b"x" * 8200), 414)
    yield bad("a long method", request(b"X" * 8300), 414)
    yield bad("a long version", request(version=b"HTTP/" + b"1" * 8200), 414)
    yield bad("a long value", request(lines=(HOST, b"X-Odd: " + b"x" * 33000)), 431)
    yield bad("a long name", request(lines=(HOST, b"X" * 33000 + b": 1")), 431)
    yield bad("a long head", request(lines=(HOST, *(b"X-Odd: " + b"x" * 400,) * 90)), 431)
    yield bad("many fields", request(lines=(HOST, *(b"X-Odd: 1",) * 120)), 431)
    yield good("nearly too many fields", request(lines=(HOST, *(b"X-Odd: 1",) * 90)))
    long = b"/TOKEN/" + b"x" * 8000
    yield good("a target that is nearly too long", request(target=long), Seen(target=long))


_STRANGERS = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "SSLv2": b"\x80\x2e\x01\x00\x02" + bytes(40),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "mail": b"EHLO a.example\r\nMAIL FROM:<a@a.example>\r\n\r\n",
    "a response": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "PROXY, version 1": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + HIDDEN,
    "PROXY, version 2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + HIDDEN,
    "a byte order mark": b"\xef\xbb\xbf" + request(),
    "UTF-16": request().decode().encode("utf-16-le"),
    "EBCDIC": request().decode().encode("cp037"),
    "NULs": bytes(64),
    "redis": b"*1\r\n$4\r\nPING\r\n\r\n",
    "a frame of HTTP/2": b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + HIDDEN,
    "JSON": b'{"a": 1}\r\n\r\n' + HIDDEN,
    "only fields": b"Host: a.example\r\nX-Case: TOKEN\r\n\r\n",
}


def strangers() -> Cases:
    for name, data in _STRANGERS.items():
        yield bad(name, data)


def forwarded() -> Cases:
    """What the client says of itself, or of others on the way, cannot break what is sent on."""
    for line in (
        *(b"X-Forwarded-For: 10.0.0.1, evil", b"X-Forwarded-Host: b.example", b"Via: 1.1 proxykit"),
        *(b'Forwarded: for="\\"', b"X-Forwarded-Proto: gopher", b"X-Request-ID: 1, 2"),
        b"TE: chunked",
        *(b"X-Real-IP: 10.0.0.1", b"Proxy-Connection: close", b"Keep-Alive: timeout=0"),
        b"TE: trailers",
        *(b"Proxy-Authorization: Basic x", b"X-Original-URL: /hidden", b"Trailer: Content-Length"),
        *(b"X-HTTP-Method-Override: CONNECT", b"Upgrade: websocket", b"HTTP2-Settings: AAMAAABk"),
    ):
        yield good(show(line), request(lines=(HOST, line)))


FAMILIES: dict[str, Callable[[], Cases]] = {
    "request_lines": request_lines,
    "unusual_lines": unusual_lines,
    "fields": fields,
    "unusual_fields": unusual_fields,
    "hosts": hosts,
    "limits": limits,
    "strangers": strangers,
    "forwarded": forwarded,
}


def with_token(case: Case, token: bytes) -> Case:
    """The case as it is sent, with five bytes of its own in place of ``TOKEN``."""
    assert len(token) == len(b"TOKEN")
    answers = tuple(
        each
        if isinstance(each, int)
        else evolve(
            each,
            target=each.target.replace(b"TOKEN", token),
            body=each.body.replace(b"TOKEN", token),
        )
        for each in case.answers
    )
    return evolve(case, data=case.data.replace(b"TOKEN", token), answers=answers)
