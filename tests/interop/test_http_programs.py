"""Mode http between programs that others have made: curl, wrk and websockets before it; nginx,
Python's http.server and websockets behind it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import gatherResults, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.interop import programs

MIB = 1 << 20
#: Bytes of a body that is long.
LONG = 64 * MIB
#: What a program may take when it moves a lot.
PATIENCE = 60.0

_CONFIG = """
[clusters.web]
backends = ["127.0.0.1:{origin}"]

[[listeners]]
name = "front"
listen = "tcp:{port}:interface=127.0.0.1"
mode = "http"
cluster = "web"
"""

_NGINX = """
server {
    listen 127.0.0.1:PORT;
    client_max_body_size 0;
    keepalive_requests 1000000;
    location / {
        root {directory}/files;
        dav_methods PUT DELETE;
        create_full_put_path on;
    }
    location = /who { return 200 "$connection $connection_requests $server_protocol"; }
    location = /status { stub_status; }
}
"""

_WEBSOCKETS = """
from websockets.sync.server import serve

def echo(connection):
    for message in connection:
        if message == "bye":
            connection.close(4001, "as you like")
            return
        connection.send(message)

with serve(echo, "127.0.0.1", 0, max_size=None) as server:
    print("listening on", server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""


def digest(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ProgramTests(TestCase):
    """What the others have in common: a proxy of a file of its own, and curl."""

    timeout = 120

    @inlineCallbacks
    def proxy(self, origin: int) -> Any:
        """Start ``twistd proxykit`` in front of an origin; sets ``url``."""
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir(parents=True)
        self.origin = origin
        port = programs.free_port()
        config = self.directory / "proxykit.toml"
        config.write_text(_CONFIG.format(origin=origin, port=port))
        self.url = f"http://127.0.0.1:{port}"
        self.service = yield programs.service(self, ["--config", str(config)])

    @inlineCallbacks
    def curl(self, *arguments: str) -> Any:
        """Run curl; gives what it prints."""
        argv = [programs.require("curl"), "-sS", "--max-time", f"{PATIENCE:g}", *arguments]
        status, printed = yield programs.run(self, argv, timeout=PATIENCE + 5)
        self.assertEqual(status, 0, printed)
        return printed

    def file(self, name: str, size: int) -> Path:
        """A file of random bytes."""
        path = self.directory / name
        path.write_bytes(os.urandom(size))
        return path


class NginxTests(ProgramTests):
    """nginx behind it."""

    @inlineCallbacks
    def setUp(self) -> Any:
        port = programs.free_port()
        self.nginx = yield programs.nginx(self, _NGINX.replace("PORT", str(port)))
        yield self.proxy(port)

    @inlineCallbacks
    def put(self, size: int) -> Any:
        """Have a file there; gives ours."""
        path = self.file("sent", size)
        yield self.curl("-T", str(path), f"{self.url}/file")
        return path

    @inlineCallbacks
    def test_64_mib_from_a_pipe_and_back(self) -> Any:
        """Neither side says how long it is, or both do; the checksums are equal."""
        sent, back, straight = (self.directory / name for name in ("sent", "back", "straight"))
        self.file("sent", LONG)
        put = f'cat "$1" | "{programs.require("curl")}" -sS -T - -w "%{{http_code}}" "$2"'
        status, printed = yield programs.run(
            self,
            [programs.require("sh"), "-c", put, "sh", str(sent), f"{self.url}/file"],
            timeout=PATIENCE,
        )
        self.assertEqual((status, printed), (0, "201"))
        yield self.curl("-o", str(back), f"{self.url}/file")
        yield self.curl("-o", str(straight), f"http://127.0.0.1:{self.origin}/file")
        self.assertEqual(digest(straight), digest(sent))
        self.assertEqual(digest(back), digest(sent))

    @inlineCallbacks
    def test_head(self) -> Any:
        yield self.put(12345)
        printed = yield self.curl("-I", f"{self.url}/file")
        self.assertIn("HTTP/1.1 200 OK\r\n", printed)
        self.assertIn("Content-Length: 12345\r\n", printed)
        self.assertTrue(printed.endswith("\r\n\r\n"))

    @inlineCallbacks
    def test_range(self) -> Any:
        path = yield self.put(100000)
        data, back = path.read_bytes(), self.directory / "back"
        for asked, expected in (
            ("0-9", data[:10]),
            ("70000-", data[70000:]),
            ("-5", data[-5:]),
        ):
            printed = yield self.curl(
                "-r", asked, "-o", str(back), "-w", "%{http_code}", f"{self.url}/file"
            )
            self.assertEqual(printed, "206")
            self.assertEqual(back.read_bytes(), expected)

    @inlineCallbacks
    def test_not_modified(self) -> Any:
        """A 304 names a length, and has no body; the connection goes on."""
        yield self.put(500)
        head = yield self.curl("-I", f"{self.url}/file")
        tag = re.search("ETag: (.*)\r\n", head)
        condition = f"If-None-Match: {tag[1]}"
        urls = (f"{self.url}/file", f"{self.url}/file")
        printed = yield self.curl("-H", condition, "-w", "%{http_code} %{num_connects};", *urls)
        self.assertEqual(printed, "304 1;304 0;")

    @inlineCallbacks
    def test_expect(self) -> Any:
        """curl waits for the 100, which nginx sends when it wants the body."""
        path = self.file("sent", MIB)
        printed = yield self.curl(
            *("-v", "-H", "Expect: 100-continue", "--expect100-timeout", "50"),
            *("-T", str(path), f"{self.url}/file"),
        )
        self.assertIn("< HTTP/1.1 100 Continue", printed)
        self.assertIn("< HTTP/1.1 201 Created", printed)

    @inlineCallbacks
    def test_old_clients(self) -> Any:
        """HTTP/1.0: by itself the connection ends with the answer."""
        path = yield self.put(70000)
        back = self.directory / "back"
        printed = yield self.curl(
            *("--http1.0", "-D", "-", "-o", str(back), f"{self.url}/file"),
        )
        self.assertIn("Connection: close\r\n", printed)
        self.assertNotIn("Transfer-Encoding", printed)
        self.assertEqual(back.read_bytes(), path.read_bytes())
        printed = yield self.curl(
            *("--http1.0", "-H", "Connection: keep-alive", "-w", " %{num_connects};"),
            *(f"{self.url}/who", f"{self.url}/who"),
        )
        self.assertEqual(re.findall(r"HTTP/1\.1 (\d);", printed), ["1", "0"])

    @inlineCallbacks
    def test_clients_share_a_connection(self) -> Any:
        """nginx sees twenty clients, one after the other, on one connection."""
        seen = []
        for _ in range(20):
            printed = yield self.curl(f"{self.url}/who")
            seen.append(printed.split())
        self.assertEqual(len({connection for connection, _, _ in seen}), 1)
        counts = [int(number) for _, number, _ in seen]
        self.assertEqual(counts, list(range(counts[0], counts[0] + 20)))

    @inlineCallbacks
    def test_wrk(self) -> Any:
        """As many requests as it can on 64 connections: no error, and no more connections."""
        wrk = programs.require("wrk")
        argv = [wrk, "-t1", "-c64", "-d1s", f"{self.url}/who"]
        status, printed = yield programs.run(self, argv)
        self.assertEqual(status, 0)
        self.assertNotIn("Non-2xx", printed)
        self.assertNotIn("Socket errors", printed)
        requests = int(re.search(r"(\d+) requests in", printed)[1])
        self.assertGreater(requests, 64)
        counts = yield self.curl(f"http://127.0.0.1:{self.origin}/status")
        accepted, _, handled = (int(number) for number in counts.split("\n")[2].split())
        # With those of wrk that were cut off at its end, and ours.
        self.assertLess(accepted, 64 + 10)
        self.assertGreaterEqual(handled, requests)

    @inlineCallbacks
    def test_many_at_once(self) -> Any:
        """Twenty clients and long bodies: each gets its own, whole."""
        path = yield self.put(3 * MIB)
        outputs = [self.directory / f"back-{number}" for number in range(20)]
        url = f"{self.url}/file"
        yield gatherResults([self.curl("-o", str(output), url) for output in outputs])
        self.assertEqual({digest(output) for output in outputs}, {digest(path)})


class PythonOriginTests(ProgramTests):
    """http.server behind it."""

    @inlineCallbacks
    def setUp(self) -> Any:
        self.data = os.urandom(200000)
        served = Path(self.mktemp()).resolve()
        served.write_bytes(self.data)
        argv = [sys.executable, "-m", "tests.interop.http_origin", str(served)]
        child = programs.Child.start(self, argv, env=programs.environment(), cwd=programs.TREE)
        match = yield child.wait_for(r"listening on (\d+)")
        yield self.proxy(int(match[1]))
        self.back = self.directory / "back"

    @inlineCallbacks
    def test_get_and_head(self) -> Any:
        yield self.curl("-o", str(self.back), f"{self.url}/")
        self.assertEqual(self.back.read_bytes(), self.data)
        printed = yield self.curl("-I", f"{self.url}/")
        self.assertIn("Content-Length: 200000\r\n", printed)

    @inlineCallbacks
    def post(self, *arguments: str, size: int = MIB) -> Any:
        """Send a file; gives the head of the answer, whose body is to be the same."""
        path = self.file("sent", size)
        printed = yield self.curl(
            *("--data-binary", f"@{path}", *arguments, "-D", "-", "-o", str(self.back), self.url)
        )
        self.assertEqual(digest(self.back), digest(path))
        return printed

    @inlineCallbacks
    def test_post(self) -> Any:
        printed = yield self.post()
        self.assertIn("X-Framing: length\r\n", printed)

    @inlineCallbacks
    def test_post_in_chunks(self) -> Any:
        printed = yield self.post("-H", "Transfer-Encoding: chunked")
        self.assertIn("X-Framing: chunked\r\n", printed)

    @inlineCallbacks
    def test_post_of_nothing(self) -> Any:
        printed = yield self.post(size=0)
        self.assertIn("Content-Length: 0\r\n", printed)

    @inlineCallbacks
    def test_put(self) -> Any:
        printed = yield self.post("-X", "PUT", "-H", "Expect:")
        self.assertIn("X-Framing: length\r\n", printed)

    @inlineCallbacks
    def test_chunks_and_trailers(self) -> Any:
        """As they stand on the wire: whole chunks, and the trailers behind the last one."""
        yield self.curl("--raw", "-D", str(self.directory / "head"), "-o", str(self.back),
                        f"{self.url}/chunks")  # fmt: skip
        self.assertIn(b"Trailer: X-Sum\r\n", (self.directory / "head").read_bytes())
        raw, body = self.back.read_bytes(), b""
        while size := int(raw[: raw.index(b"\r\n")], 16):
            start = raw.index(b"\r\n") + 2
            body, raw = body + raw[start : start + size], raw[start + size + 2 :]
        self.assertEqual(body, self.data)
        total = hashlib.sha256(self.data).hexdigest()
        self.assertEqual(raw, f"0\r\nX-Sum: {total}\r\n\r\n".encode())

    @inlineCallbacks
    def test_chunks_for_an_old_client(self) -> Any:
        """It knows no chunks: the answer ends with the connection."""
        printed = yield self.curl(
            "--http1.0", "-D", "-", "-o", str(self.back), f"{self.url}/chunks"
        )
        self.assertNotIn("Transfer-Encoding", printed)
        self.assertEqual(self.back.read_bytes(), self.data)


class WebSocketTests(ProgramTests):
    """The library websockets on both sides."""

    @inlineCallbacks
    def setUp(self) -> Any:
        child = programs.Child.start(self, [sys.executable, "-c", _WEBSOCKETS])
        match = yield child.wait_for(r"listening on (\d+)")
        yield self.proxy(int(match[1]))

    @inlineCallbacks
    def test_messages(self) -> Any:
        def talk() -> Any:
            with connect(self.url.replace("http", "ws"), max_size=None) as connection:
                for message in ("hello", "", "\u00e4\U0001f600", b"\0\xff", os.urandom(2 * MIB)):
                    connection.send(message)
                    self.assertEqual(connection.recv(timeout=PATIENCE), message)
                self.assertTrue(connection.ping().wait(PATIENCE))
                connection.send("bye")
                with self.assertRaises(ConnectionClosed) as raised:
                    connection.recv(timeout=PATIENCE)
                return raised.exception.rcvd.code, raised.exception.rcvd.reason

        ended = yield deferToThread(talk)
        self.assertEqual(ended, (4001, "as you like"))

    @inlineCallbacks
    def test_beside_others(self) -> Any:
        """An upgraded connection is its client's alone."""

        def talk(number: int) -> Any:
            with connect(self.url.replace("http", "ws")) as connection:
                for turn in range(50):
                    connection.send(f"{number}: {turn}")
                    if connection.recv(timeout=PATIENCE) != f"{number}: {turn}":
                        return False
                return True

        talks = [deferToThread(talk, number) for number in range(8)]
        self.assertEqual((yield gatherResults(talks)), [True] * 8)
