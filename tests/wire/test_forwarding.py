"""Heads that are sent on: what of them is the proxy's, what is kept of those it trusts."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.forwarding import (
    Forwarding,
    framing_line,
    own_response,
    proxy_status,
    reason_of,
    response_start,
)
from proxykit.wire.http1 import RequestHead, RequestReader, ResponseHead, ResponseReader

HOST = "Host: a.example"


def asked(*lines: str, start: str = "GET / HTTP/1.1") -> RequestHead:
    """The head of a request."""
    head = RequestReader().feed("\r\n".join([start, *lines, "", ""]).encode())
    assert head is not None
    return head


def answered(*lines: str, start: str = "HTTP/1.1 200 OK") -> ResponseHead:
    """The head of a response."""
    head = ResponseReader().feed("\r\n".join([start, *lines, "", ""]).encode())
    assert head is not None
    return head


class RequestTests(SynchronousTestCase):
    """The field lines of a request, as they go on."""

    def end(
        self,
        head: RequestHead,
        client: str = "192.0.2.7",
        scheme: bytes = b"http",
        trusted: bool = False,
        via: str = "",
    ) -> list[str]:
        """The lines that the proxy adds."""
        end = Forwarding(client, scheme, trusted, via).end(head).decode()
        self.assertTrue(end.endswith("\r\n"))
        return end[:-2].split("\r\n")

    def test_who_asks(self) -> None:
        self.assertEqual(
            self.end(asked(HOST)),
            [
                "X-Forwarded-For: 192.0.2.7",
                "X-Forwarded-Proto: http",
                "X-Forwarded-Host: a.example",
                'Forwarded: for=192.0.2.7;host="a.example";proto=http',
            ],
        )

    def test_framing(self) -> None:
        for line, expected in (
            ("Transfer-Encoding: Chunked", "Transfer-Encoding: chunked"),
            ("content-length: 0007", "Content-Length: 7"),
            ("Content-Length: 0", "Content-Length: 0"),
        ):
            self.assertEqual(self.end(asked(HOST, line))[0], expected)
        self.assertEqual(self.end(asked(HOST))[0], "X-Forwarded-For: 192.0.2.7")

    def test_via_has_the_version_that_came(self) -> None:
        for start, expected in (
            ("GET / HTTP/1.1", "Via: 1.1 edge"),
            ("GET / HTTP/1.0", "Via: 1.0 edge"),
        ):
            self.assertEqual(self.end(asked(HOST, start=start), via="edge")[0], expected)

    def test_an_ipv6_address(self) -> None:
        lines = self.end(asked(HOST), client="2001:db8::7", scheme=b"https")
        self.assertEqual(lines[:2], ["X-Forwarded-For: 2001:db8::7", "X-Forwarded-Proto: https"])
        self.assertEqual(lines[3], 'Forwarded: for="[2001:db8::7]";host="a.example";proto=https')

    def test_no_address(self) -> None:
        lines = self.end(asked(HOST), client="")
        self.assertEqual(lines[0], "X-Forwarded-Proto: http")
        self.assertEqual(lines[2], 'Forwarded: for=unknown;host="a.example";proto=http')

    def test_no_host(self) -> None:
        self.assertEqual(
            self.end(asked(start="GET / HTTP/1.0")),
            [
                "X-Forwarded-For: 192.0.2.7",
                "X-Forwarded-Proto: http",
                "Forwarded: for=192.0.2.7;proto=http",
            ],
        )

    CLAIMS = (
        HOST,
        "X-Forwarded-For: 198.51.100.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: b.example",
        "Forwarded: for=198.51.100.1",
    )

    def test_claims_of_the_trusted(self) -> None:
        self.assertEqual(
            self.end(asked(*self.CLAIMS), trusted=True),
            [
                "X-Forwarded-For: 198.51.100.1, 192.0.2.7",
                "X-Forwarded-Proto: https",
                "X-Forwarded-Host: b.example",
                'Forwarded: for=198.51.100.1, for=192.0.2.7;host="a.example";proto=http',
            ],
        )
        self.assertEqual(
            self.end(asked(*self.CLAIMS), client="", trusted=True)[0],
            "X-Forwarded-For: 198.51.100.1",
        )

    def test_the_trusted_need_claim_nothing(self) -> None:
        self.assertEqual(self.end(asked(HOST), trusted=True), self.end(asked(HOST)))

    def test_claims_of_others(self) -> None:
        self.assertEqual(self.end(asked(*self.CLAIMS)), self.end(asked(HOST)))

    def test_the_whole_block(self) -> None:
        forwarding = Forwarding("192.0.2.7", b"http", False, "edge")
        head = asked(HOST, "Accept:  a ", "Connection: X, close", "X: y", "Content-Length: 3")
        self.assertEqual(
            forwarding.block(head, b"inner.example"),
            b"Host: inner.example\r\n"
            b"Accept: a\r\n"
            b"Content-Length: 3\r\n"
            b"Via: 1.1 edge\r\n"
            b"X-Forwarded-For: 192.0.2.7\r\n"
            b"X-Forwarded-Proto: http\r\n"
            b"X-Forwarded-Host: a.example\r\n"
            b'Forwarded: for=192.0.2.7;host="a.example";proto=http\r\n',
        )

    def test_a_request_like_the_last_one_is_not_put_together_again(self) -> None:
        forwarding = Forwarding("192.0.2.7", b"http", False, "edge")
        first = forwarding.block(asked(HOST), b"a.example")
        self.assertIs(forwarding.block(asked(HOST, start="HEAD /x HTTP/1.1"), b"a.example"), first)
        # All that it is made of makes a difference.
        for head, host in (
            (asked(HOST, "X: y"), b"a.example"),
            (asked(HOST), b"b.example"),
            (asked(HOST, start="GET / HTTP/1.0"), b"a.example"),
        ):
            other = forwarding.block(head, host)
            self.assertNotEqual(other, first)
            fresh = Forwarding("192.0.2.7", b"http", False, "edge")
            self.assertEqual(other, fresh.block(head, host))
            self.assertEqual(forwarding.block(asked(HOST), b"a.example"), first)

    def test_the_authority_of_a_url_counts_too(self) -> None:
        """Two requests may have the same fields, and be for different hosts."""
        forwarding = Forwarding("192.0.2.7", b"http", False, "")
        blocks = []
        for url in ("http://b.example/", "http://c.example/"):
            head = asked(HOST, start=f"GET {url} HTTP/1.1")
            blocks.append(forwarding.block(head, b"inner.example"))
        self.assertIn(b"X-Forwarded-Host: b.example\r\n", blocks[0])
        self.assertIn(b"X-Forwarded-Host: c.example\r\n", blocks[1])


class ResponseTests(SynchronousTestCase):
    """The head of a backend's response, as it goes on."""

    def test_the_start(self) -> None:
        for start, via, expected in (
            ("HTTP/1.1 200 OK", "", b"HTTP/1.1 200 OK\r\nX: y\r\n"),
            ("HTTP/1.1 299 A\xe9", "edge", b"HTTP/1.1 299 A\xc3\xa9\r\nX: y\r\nVia: 1.1 edge\r\n"),
            ("HTTP/1.0 404", "edge", b"HTTP/1.1 404 \r\nX: y\r\nVia: 1.0 edge\r\n"),
        ):
            self.assertEqual(response_start(answered(start=start), b"X: y\r\n", via), expected)

    def test_framing(self) -> None:
        chunked = "Transfer-Encoding: chunked"
        for start, line, method, expected in (
            ("200 OK", "Content-Length: 007", b"GET", b"Content-Length: 7\r\n"),
            ("200 OK", "Content-Length: 7", b"HEAD", b"Content-Length: 7\r\n"),
            ("304 Not Modified", "Content-Length: 7", b"GET", b"Content-Length: 7\r\n"),
            ("200 OK", chunked, b"GET", b"Transfer-Encoding: chunked\r\n"),
            ("200 OK", "X: y", b"GET", b"Transfer-Encoding: chunked\r\n"),
            ("200 OK", chunked, b"HEAD", b""),
            ("200 OK", "X: y", b"HEAD", b""),
            ("204 No Content", "Content-Length: 7", b"GET", b""),
            ("100 Continue", "Content-Length: 7", b"GET", b""),
        ):
            found = framing_line(answered(line, start=f"HTTP/1.1 {start}"), method)
            self.assertEqual(found, expected, (start, line, method))


class OwnResponseTests(SynchronousTestCase):
    """Answers of the proxy's own."""

    def test_reasons(self) -> None:
        for status, reason in ((404, "Not Found"), (502, "Bad Gateway"), (299, "Status")):
            self.assertEqual(reason_of(status), reason)

    def test_with_a_body(self) -> None:
        self.assertEqual(
            own_response(404, "gone, n\u00e4mlich\n", b"X: y\r\n", True),
            b"HTTP/1.1 404 Not Found\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\n"
            b"X: y\r\n"
            b"Content-Length: 15\r\n"
            b"\r\n"
            b"gone, n\xc3\xa4mlich\n",
        )

    def test_for_head(self) -> None:
        self.assertEqual(
            own_response(404, "gone\n", b"", False),
            b"HTTP/1.1 404 Not Found\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\n"
            b"Content-Length: 5\r\n"
            b"\r\n",
        )

    def test_without_a_body(self) -> None:
        self.assertEqual(
            own_response(308, "", b"Location: /x\r\n", True),
            b"HTTP/1.1 308 Permanent Redirect\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
        )

    def test_that_may_have_none(self) -> None:
        for status, reason in ((204, b"No Content"), (304, b"Not Modified")):
            self.assertEqual(
                own_response(status, "text\n", b"X: y\r\n", True),
                b"HTTP/1.1 %d %b\r\nX: y\r\n\r\n" % (status, reason),
            )

    def test_proxy_status(self) -> None:
        for error, details, expected in (
            ("connection_refused", "no", 'proxykit; error=connection_refused; details="no"'),
            ("", "no", 'proxykit; details="no"'),
            ("dns_error", 'a "b" \\c', 'proxykit; error=dns_error; details="a \\"b\\" \\\\c"'),
            ("dns_error", "a\r\nb\u00e4\x7f", 'proxykit; error=dns_error; details="a??b??"'),
        ):
            line = proxy_status(error, details)
            self.assertEqual(line, f"Proxy-Status: {expected}\r\n".encode())
