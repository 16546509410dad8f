"""Tests for the parts of benchmarks/ that are of TLS. Nothing is measured."""

import contextlib
import socket
import ssl
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from benchmarks import busy, loads, loads_tls, peers_tls, rows_tls
from benchmarks.loads_tls import Handshakes
from benchmarks.measure import RefusedError
from benchmarks.peers import Site
from benchmarks.peers_tls import NAME
from benchmarks.row import Scale
from benchmarks.rows import NAMES, ROWS
from proxykit import config

ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nproxied\n"


class Server:
    """What is behind a load: it shakes hands, reads a request, answers, and ends.

    :ivar resumed: of each handshake, whether it went on from an earlier one.
    :ivar asked: the requests.
    """

    def __init__(self, test, answer=ANSWER, notify=True, **settings):
        self.resumed = []
        self.asked = []
        self._answer = answer
        self._notify = notify
        directory = Path(test.mktemp())
        directory.mkdir()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(peers_tls.make_certificate(directory))
        for name, value in settings.items():
            setattr(self._context, name, value)
        self._listening = socket.create_server((loads_tls.HOST, 0), backlog=128)
        self.port = self._listening.getsockname()[1]
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()
        test.addCleanup(self._stop)

    def _stop(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(10.0)
        self._listening.close()

    def _serve(self):
        while True:
            try:
                plain = self._listening.accept()[0]
            except OSError:
                return
            plain.settimeout(10.0)
            with plain, contextlib.suppress(OSError):
                self._talk(plain)

    def _talk(self, plain):
        with self._context.wrap_socket(plain, server_side=True) as tls:
            self.resumed.append(tls.session_reused)
            self.asked.append(tls.recv(1000))
            tls.sendall(self._answer)
            if self._notify:
                tls.unwrap()


class CertificateTests(SynchronousTestCase):
    def test_it_is_on_p256(self):
        directory = Path(self.mktemp())
        directory.mkdir()
        path = peers_tls.make_certificate(directory)
        made = x509.load_pem_x509_certificate(path.read_bytes())
        self.assertEqual(made.public_key().curve.name, "secp256r1")
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), [NAME])
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)

    def test_one_for_a_run(self):
        directory = Path(self.mktemp())
        directory.mkdir()
        before = peers_tls.make_certificate(directory).read_bytes()
        self.assertEqual(peers_tls.make_certificate(directory).read_bytes(), before)


class AgreedTests(SynchronousTestCase):
    def agreed(self, version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384", reused=False):
        tls = SimpleNamespace(
            version=lambda: version,
            cipher=lambda: (cipher, version, 256),
            session_reused=reused,
        )
        loads_tls.agreed(tls, False)

    def test_what_is_measured(self):
        self.agreed()

    def test_others_are_refused(self):
        for other in (
            {"version": "TLSv1.2"},
            {"cipher": "TLS_AES_128_GCM_SHA256"},
            {"reused": True},
        ):
            with self.subTest(other=other):
                self.assertRaises(RefusedError, self.agreed, **other)


class HandshakeTests(SynchronousTestCase):
    def setUp(self):
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)

    def load(self, server, resume=False, count=3):
        with ExitStack() as stack:
            made = Handshakes(stack, server.port, resume)
            made.keep_busy(count, 0)
            made.finish()
            return made.done

    def test_each_is_used_once(self):
        server = Server(self)
        self.assertEqual(self.load(server), 3)
        self.assertEqual(server.resumed, [False] * 3)
        self.assertEqual(server.asked, [loads_tls.CLOSE] * 3)

    def test_another_one_for_each_that_is_done(self):
        server = Server(self)
        made = Handshakes(self.stack, server.port, False)
        clock = iter(range(101))
        self.patch(busy, "time", SimpleNamespace(monotonic=lambda: next(clock, 1000)))
        made.keep_busy(2, 100)
        self.assertGreater(made.done, 4)
        self.stack.close()

    def test_each_goes_on_from_one_before(self):
        server = Server(self)
        self.assertEqual(self.load(server, resume=True), 3)
        self.assertEqual(server.resumed, [False, True, True, True])

    def test_no_session_is_refused(self):
        server = Server(self, num_tickets=0)
        error = self.assertRaises(RefusedError, self.load, server, resume=True)
        self.assertEqual(str(error), "there is no session to resume")

    def test_a_session_that_is_not_resumed_is_refused(self):
        """It is another server's."""
        session = loads_tls.first_session
        self.patch(
            loads_tls, "first_session", lambda context, port: session(context, Server(self).port)
        )
        error = self.assertRaises(RefusedError, self.load, Server(self), resume=True)
        self.assertIn("False", str(error))

    def test_another_version_is_refused(self):
        server = Server(self, maximum_version=ssl.TLSVersion.TLSv1_2)
        error = self.assertRaises(RefusedError, self.load, server)
        self.assertIn("TLS failed: ", str(error))

    def test_another_answer_is_refused(self):
        for answer in (ANSWER[:-1], ANSWER.replace(b"200", b"502"), b"proxied\n"):
            with self.subTest(answer=answer):
                error = self.assertRaises(RefusedError, self.load, Server(self, answer))
                self.assertIn(f"a client got {answer[:40]!r}", str(error))

    def test_an_end_without_a_word_is_refused(self):
        error = self.assertRaises(RefusedError, self.load, Server(self, notify=False))
        self.assertIn("TLS failed: ", str(error))

    def test_no_answer_is_refused(self):
        listening = self.stack.enter_context(socket.create_server((loads_tls.HOST, 0)))
        self.patch(busy, "PATIENCE", 0.0)
        silent = SimpleNamespace(port=listening.getsockname()[1])
        error = self.assertRaises(RefusedError, self.load, silent)
        self.assertEqual(str(error), "3 connections are left without an answer")

    def test_nothing_done_is_refused(self):
        self.patch(busy, "SETTLE", 0.0)
        cpu = iter([1000, 5000]).__next__
        port = Server(self).port
        error = self.assertRaises(RefusedError, loads_tls.handshakes, port, False, 0.0, cpu)
        self.assertEqual(str(error), "no handshake was done")

    def test_what_is_measured(self):
        """Neither what comes before, nor what is left at the end."""
        told = []

        class Played:
            done = 0
            measure = busy.Busy.measure

            def __init__(self, stack, port, resume):
                told.append((port, resume))

            def keep_busy(self, connections, seconds):
                told.append((connections, seconds))
                self.done += 100 if len(told) == 2 else 7

            def finish(self):
                self.done += 1000

        self.patch(loads_tls, "Handshakes", Played)
        clock = iter([10.0, 13.0]).__next__
        self.patch(busy, "time", SimpleNamespace(monotonic=clock))
        work = loads_tls.handshakes(8443, True, 3, iter([1000, 5000]).__next__)
        self.assertEqual(work, loads.Work(7, 3.0, 4000))
        self.assertEqual(told, [(8443, True), (loads.BUSY, loads.SETTLE), (loads.BUSY, 3)])


class DownloadTests(SynchronousTestCase):
    def download(self, answer, seconds):
        self.patch(loads_tls, "SETTLE", 0.0)
        # As few requests as the server reads at once.
        self.patch(loads_tls, "FASTEST", 1.0)
        cpu = iter([1000, 5000]).__next__
        return loads_tls.download(Server(self, answer).port, 1, seconds, cpu)

    def test_an_early_end_is_refused(self):
        error = self.assertRaises(RefusedError, self.download, ANSWER, 10)
        self.assertEqual(str(error), "a download ended early")

    def test_no_file_is_refused(self):
        error = self.assertRaises(RefusedError, self.download, b"HTTP/1.1 404 No\r\n\r\n", 10)
        self.assertEqual(str(error), "the origin has no file")

    def test_nothing_is_refused(self):
        error = self.assertRaises(RefusedError, self.download, ANSWER, 0)
        self.assertEqual(str(error), "no byte came")

    def test_all_that_has_come(self):
        """What OpenSSL holds as well, of which a poll would not tell."""

        class Played:
            def __init__(self, counts, held):
                self.counts = list(counts)
                self.held = held

            def recv_into(self, into):
                if not self.counts:
                    raise ssl.SSLWantReadError
                return self.counts.pop(0)

            def pending(self):
                self.held -= 1
                return max(self.held, 0)

        into = bytearray(10)
        self.assertEqual(loads_tls.emptied(Played([10, 3], 0), into), 13)
        many = [1] * (loads_tls.TURN + 9)
        self.assertEqual(loads_tls.emptied(Played(many, 0), into), loads_tls.TURN)
        self.assertEqual(loads_tls.emptied(Played(many, 5), into), loads_tls.TURN + 4)
        self.assertRaises(RefusedError, loads_tls.emptied, Played([10, 0], 0), into)


class RowTests(SynchronousTestCase):
    def test_goals(self):
        found = {row.name: row.goal for row in rows_tls.ROWS}
        expected = {
            "tls-get": 1.5,
            "tls-get-http": None,
            "tls-full": 1.4,
            "tls-resumed": 1.4,
            "tls-bulk": 1.5,
            "tls-out": None,
        }
        self.assertEqual(found, expected)
        for row in rows_tls.ROWS:
            self.assertIs(ROWS[row.name], row)
            self.assertLessEqual(set(row.peers), set(NAMES))

    def test_which_handshakes(self):
        tried = []

        @contextmanager
        def through(peer):
            yield 8443, lambda: 0

        def handshakes(port, resume, seconds, cpu):
            tried.append(resume)
            return loads.Work(10, seconds, 50_000)

        self.patch(rows_tls, "_through", through)
        self.patch(loads_tls, "handshakes", handshakes)
        for name in ("tls-full", "tls-resumed"):
            row = ROWS[name]
            ((_, sample),) = row.run(row.peers["proxykit"], Scale(seconds=2))
            self.assertEqual((sample.cost, sample.rate), (5.0, 5.0))
        self.assertEqual(tried, [False, True])

    def test_wrk_is_told_of_tls(self):
        argv = loads_tls.SMALL.argv(8443, 3)
        self.assertEqual(argv[-1], "https://127.0.0.1:8443/")
        self.assertEqual(argv[1:-1], loads.SMALL.argv(8443, 3)[1:-1])


class ConfigurationTests(SynchronousTestCase):
    """What proxies are told to do."""

    def setUp(self):
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        self.pem = str(self.directory / peers_tls.PEM)

    def text(self, start, name):
        argv = start(Site(self.directory, 8443, ["127.0.0.1:9001"]))
        self.assertEqual(argv[-1], str(self.directory / name))
        return (self.directory / name).read_text()

    def proxykit(self, row):
        """What the service makes of it: the listener, the cluster."""
        self.text(ROWS[row].peers["proxykit"].start, "proxykit.toml")
        made = config.load(self.directory / "proxykit.toml", environ={})
        (listener,), (cluster,) = made.listeners, made.clusters
        return listener, cluster

    def haproxy(self, row):
        text = self.text(ROWS[row].peers["haproxy"].start, "haproxy.cfg")
        self.assertIn(" nbthread 1\n", text)
        lines = [line.strip() for line in text.splitlines()]
        (bind,) = (line for line in lines if line.startswith("bind "))
        (server,) = (line for line in lines if line.startswith("server "))
        (mode,) = (line for line in lines if line.startswith("mode "))
        return mode, bind, server

    def test_tls_ends_here(self):
        for row, mode in (
            ("tls-get", "tcp"),
            ("tls-get-http", "http"),
            ("tls-full", "tcp"),
            ("tls-resumed", "tcp"),
            ("tls-bulk", "tcp"),
        ):
            with self.subTest(row=row):
                listener, cluster = self.proxykit(row)
                self.assertEqual((listener.mode, cluster.tls), (mode, None))
                self.assertEqual(listener.tls.certificates, (self.pem,))
                self.assertEqual(
                    self.haproxy(row),
                    (
                        f"mode {mode}",
                        f"bind 127.0.0.1:8443 ssl crt {self.pem} ssl-min-ver TLSv1.3",
                        "server s0 127.0.0.1:9001",
                    ),
                )

    def test_tls_begins_here(self):
        listener, cluster = self.proxykit("tls-out")
        self.assertEqual((listener.mode, listener.tls), ("tcp", None))
        tls = cluster.tls
        self.assertEqual((tls.server_name, tls.ca_file, tls.verify), (NAME, self.pem, True))
        mode, bind, server = self.haproxy("tls-out")
        self.assertEqual((mode, bind), ("mode tcp", "bind 127.0.0.1:8443"))
        for setting in (f"verify required ca-file {self.pem}", f"verifyhost {NAME}", "TLSv1.3"):
            self.assertIn(setting, server)

    def test_an_origin_that_speaks_tls(self):
        @contextmanager
        def running(argv, where, port):
            self.assertEqual((argv[-1], where), (str(where / "secure.conf"), self.directory))
            yield 1

        self.patch(loads_tls, "running", running)
        with loads_tls.origin(self.directory) as port:
            text = (self.directory / "secure.conf").read_text()
        for setting in (
            f"listen 127.0.0.1:{port} ssl backlog=4096;",
            f"ssl_certificate {self.pem};",
            "ssl_protocols TLSv1.3;",
        ):
            self.assertIn(setting, text)
