"""An origin of ``http.server``, for what one without a program of its own is needed::

    python -m tests.interop.http_origin FILE

It answers GET and HEAD with the file, in one piece; ``/chunks``: in chunks, with trailers. POST and
PUT it answers with what it was sent, however that was framed, and says how that was.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 10000


class Handler(BaseHTTPRequestHandler):
    """See this module."""

    protocol_version = "HTTP/1.1"
    server_version = "origin"
    data = b""

    def do_GET(self) -> None:
        if self.path == "/chunks":
            self._in_chunks()
        else:
            self._answer(self.data)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        framing = "chunked" if self.headers["Transfer-Encoding"] else "length"
        pieces = self._chunks() if framing == "chunked" else self._length()
        self._answer(b"".join(pieces), framing)

    do_PUT = do_POST

    def _answer(self, data: bytes, framing: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Framing", framing)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _in_chunks(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Trailer", "X-Sum")
        self.end_headers()
        for at in range(0, len(self.data), PIECE):
            piece = self.data[at : at + PIECE]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        digest = hashlib.sha256(self.data).hexdigest()
        self.wfile.write(f"0\r\nX-Sum: {digest}\r\n\r\n".encode())

    def _length(self) -> Iterator[bytes]:
        yield self.rfile.read(int(self.headers["Content-Length"] or 0))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            """A trailer."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: standard output is for the port."""


def main() -> None:
    """Serve for ever; say where."""
    Handler.data = Path(sys.argv[1]).read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sys.stdout.write(f"origin: listening on {server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
