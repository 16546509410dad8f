"""Tests for the parts of benchmarks/ that are of L7. Nothing is measured here."""

import socket
import tomllib
from contextlib import ExitStack
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import loads, loads_l7, peers_l7, rows_l7
from benchmarks.measure import RefusedError
from benchmarks.peers import Site


class AskTests(SynchronousTestCase):
    def test_scripts_are_there(self):
        for ask in (rows_l7.PATHS, rows_l7.POST):
            with self.subTest(script=ask.script):
                self.assertIn("wrk.", Path(ask.argv(1, 1)[5]).read_text())

    def test_a_browser_has_eight_fields(self):
        self.assertEqual(len({each.partition(":")[0] for each in rows_l7.BROWSER.fields}), 8)


class RefusalTests(SynchronousTestCase):
    def test_connections_that_are_not_kept(self):
        rows_l7.check_kept(501, loads.Work(50.0, 1.0))
        rows_l7.check_kept(1500, loads.Work(50_000.0, 1.0))
        for ended, units in ((502, 50.0), (1501, 50_000.0)):
            with self.subTest(ended=ended):
                work = loads.Work(units, 1.0)
                self.assertRaises(RefusedError, rows_l7.check_kept, ended, work)

    def test_a_steady_figure(self):
        self.patch(rows_l7.time, "sleep", lambda seconds: None)
        readings = iter([0, 3, 3, 9] + 11 * [20] + [21])
        self.assertEqual(rows_l7.steady(lambda: next(readings)), 20)
        self.assertEqual(list(readings), [21])
        self.patch(rows_l7.loads, "PATIENCE", 0.01)
        self.assertRaises(RefusedError, rows_l7.steady, iter(range(10**9)).__next__)


class DownloadTests(SynchronousTestCase):
    """A file of ten bytes, from a server that is played here."""

    def setUp(self):
        stack = ExitStack()
        self.addCleanup(stack.close)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = server.getsockname()[1]
        self.download = loads_l7.Download(stack, port, "some", 10)
        self.origin = stack.enter_context(server.accept()[0])
        for each in (self.download.socket, self.origin):
            each.settimeout(10.0)
        self.asked()

    def asked(self):
        request = b"GET /some HTTP/1.1\r\nHost: benchmark\r\n\r\n"
        self.assertEqual(self.origin.recv(1000), request)

    def come(self, data):
        if data:
            self.origin.sendall(data)
        else:
            self.origin.shutdown(socket.SHUT_WR)
        self.download.readable(memoryview(bytearray(100)))

    def head(self, status=b"200 OK", field=b"Content-Length: 10"):
        return b"HTTP/1.1 " + status + b"\r\nServer: nginx\r\n" + field + b"\r\n\r\n"

    def test_again_and_again(self):
        self.come(self.head())
        self.come(b"1234567")
        self.assertEqual(self.download.received, 7)
        self.come(b"890")
        self.asked()
        self.come(self.head(field=b"content-length:10") + b"1234567890")
        self.asked()
        self.assertEqual(self.download.received, 20)

    def test_a_head_in_pieces(self):
        head = self.head()
        for start in range(0, len(head), 20):
            self.come(head[start : start + 20])
        self.come(b"12345")
        self.assertEqual(self.download.received, 5)

    def test_other_answers_are_refused(self):
        for head in (
            self.head(status=b"404 Not Found"),
            self.head(field=b"Content-Length: 11"),
            self.head(field=b"Transfer-Encoding: chunked"),
        ):
            with self.subTest(head=head):
                self.assertRaises(RefusedError, loads_l7.length, head, 10)

    def test_too_much_is_refused(self):
        self.assertRaises(RefusedError, self.come, self.head() + b"12345678901")

    def test_an_early_end_is_refused(self):
        self.come(self.head())
        self.assertRaises(RefusedError, self.come, b"")

    def test_an_end_before_the_head_is_refused(self):
        self.assertRaises(RefusedError, self.come, b"")


class ConfigurationTests(SynchronousTestCase):
    """What L7 proxies are told to do."""

    def text(self, start, name, **how):
        directory = Path(self.mktemp())
        directory.mkdir()
        argv = start(Site(directory, 8080, ["127.0.0.1:9001"], **how))
        self.assertEqual(argv[-1], str(directory / name))
        return (directory / name).read_text()

    def test_proxykit(self):
        found = tomllib.loads(self.text(peers_l7.proxykit, "proxykit.toml", most=20))
        (listener,), cluster = found["listeners"], found["clusters"]["origin"]
        self.assertEqual((listener["mode"], listener["cluster"]), ("http", "origin"))
        self.assertEqual((cluster["max_connections"], cluster["pool"]), (20, {"reuse": "always"}))

    def test_haproxy(self):
        text = self.text(peers_l7.haproxy, "haproxy.cfg", most=20)
        for setting in (
            "nbthread 1",
            "mode http",
            "http-reuse always",
            "127.0.0.1:9001 maxconn 20",
        ):
            self.assertIn(f"{setting}\n", text)
        self.assertNotIn("log", text)
        self.assertNotIn("9001 maxconn", self.text(peers_l7.haproxy, "haproxy.cfg"))

    def test_haproxy_splices(self):
        text = self.text(peers_l7.haproxy_splice, "haproxy.cfg")
        for setting in ("tune.pipesize 1048576", "option splice-response"):
            self.assertIn(f" {setting}\n", text)

    def test_nginx(self):
        text = self.text(peers_l7.nginx, "proxy.conf")
        for setting in (
            "keepalive 64",
            "proxy_http_version 1.1",
            'Connection ""',
            "access_log off",
        ):
            self.assertIn(f" {setting};", text)
