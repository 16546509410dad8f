"""Tests for the parts of benchmarks/ that are of a connection's beginning. Nothing is measured."""

import select
import socket
import struct
import tomllib
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import busy, loads, loads_sni, peers, peers_sni, rows_sni
from benchmarks.loads_sni import ANSWER, NAME, UNKNOWN, Shorts, Talk
from benchmarks.measure import RefusedError
from benchmarks.peers import Site
from benchmarks.row import Scale
from benchmarks.rows import NAMES, ROWS
from proxykit import config
from proxykit.model import SniRoute
from proxykit.wire.clienthello import HelloReader
from proxykit.wire.proxyproto import HeaderReader

RESET = struct.pack("ii", 1, 0)


class TalkTests(SynchronousTestCase):
    def test_hellos_have_the_name(self):
        for name in rows_sni.HELLOS.values():
            with self.subTest(name=name):
                talk = loads_sni.greeting(name)
                self.assertEqual(talk.sent, [talk.arrives])
                self.assertEqual(HelloReader().feed(talk.arrives).hello.server_name, NAME)

    def test_the_unserved_have_another(self):
        talk = loads_sni.greeting("chromium")
        served, unserved = (
            HelloReader().feed(data).hello for data in (talk.arrives, talk.unserved)
        )
        self.assertEqual(unserved.server_name, UNKNOWN)
        self.assertEqual((unserved.alpn, unserved.versions), (served.alpn, served.versions))

    def test_each_client_is_introduced(self):
        talk = rows_sni.introduced()
        sources = set()
        for data in talk.sent:
            reader = HeaderReader()
            header = reader.feed(data)
            self.assertEqual((header.version, reader.rest), (2, talk.arrives))
            sources.add(header.source)
        self.assertEqual(len(sources), rows_sni.CLIENTS)

    def test_who_is_not_introduced_is_unserved(self):
        talk = rows_sni.introduced()
        self.assertEqual(talk.unserved, talk.arrives)


class LoadTests(SynchronousTestCase):
    """The load; where nothing else is said, without a proxy between its two sides."""

    def setUp(self):
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.sink, self.port = self.stack.enter_context(loads.listening())
        self.tried = []
        self.patch(loads_sni, "refused", lambda *about: self.tried.append(about))

    def shorts(self, talk, port=0):
        return Shorts(self.stack, self.sink, port or self.port, talk)

    def turns(self, *clock):
        """Let the clock tell these times."""
        self.patch(busy, "time", SimpleNamespace(monotonic=iter(clock).__next__))

    def proxy(self):
        """A proxy that is played: the load's connection to it, and the other end of that."""
        played = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        shorts = self.shorts(Talk([b"ask"], b"ask", b""), played.getsockname()[1])
        shorts.keep_busy(1, 0)
        other = self.stack.enter_context(played.accept()[0])
        other.settimeout(10.0)
        self.assertEqual(other.recv(10), b"ask")
        return shorts, other

    def test_each_is_used_once(self):
        shorts = self.shorts(Talk([b"ask"], b"ask", b""))
        shorts.keep_busy(5, 0)
        self.assertEqual(shorts.done, 0)
        shorts.finish()
        self.assertEqual(shorts.done, 5)

    def test_another_one_for_each_that_is_done(self):
        shorts = self.shorts(Talk([b"ask"], b"ask", b""))
        self.turns(*range(101))
        shorts.keep_busy(3, 100)
        self.assertGreater(shorts.done, 6)
        before = shorts.done
        self.turns(*range(101))
        shorts.finish()
        self.assertEqual(shorts.done, before + 3)

    def test_what_is_sent_goes_round(self):
        played = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        shorts = self.shorts(Talk([b"ask", b"beg"], b"", b""), played.getsockname()[1])
        shorts.keep_busy(3, 0)
        come = [self.stack.enter_context(played.accept()[0]).recv(10) for _ in range(3)]
        self.assertEqual(come, [b"ask", b"beg", b"ask"])

    def test_other_bytes_at_the_origin_are_refused(self):
        for sent in (b"other", b"asked"):
            with self.subTest(sent=sent):
                shorts = self.shorts(Talk([sent], b"ask", b""))
                shorts.keep_busy(1, 0)
                error = self.assertRaises(RefusedError, shorts.finish)
                self.assertIn(f"the origin got {sent}", str(error))

    def test_a_part_is_no_whole(self):
        shorts = self.shorts(Talk([b"as"], b"ask", b""))
        self.patch(busy, "PATIENCE", 0.0)
        shorts.keep_busy(1, 0)
        error = self.assertRaises(RefusedError, shorts.finish)
        self.assertEqual(str(error), "1 connections are left without an answer")

    def test_parts_are_put_together(self):
        shorts = self.shorts(Talk([], b"asking", b""))
        each = self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 10.0))
        for part in (b"", b"ask", b"ing"):
            self.assertEqual(select.select([each], [], [], 0)[0], [])
            each.sendall(part)
            self.turns(0, 0, 1)
            shorts.keep_busy(0, 1)
        self.assertEqual(each.recv(100), ANSWER)
        self.assertEqual(each.recv(100), b"")

    def test_an_early_end_at_the_origin_is_refused(self):
        shorts = self.shorts(Talk([], b"ask", b""))
        each = self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 10.0))
        each.close()
        self.turns(0, 0, 0, 1)
        self.assertRaises(RefusedError, shorts.keep_busy, 0, 1)

    def test_an_answer_in_parts(self):
        shorts, other = self.proxy()
        for part in (ANSWER[:3], ANSWER[3:]):
            other.sendall(part)
            self.turns(0, 0, 1)
            shorts.keep_busy(1, 1)
        self.assertEqual(shorts.done, 0)
        other.close()
        self.turns(0, 1, 1)
        shorts.finish()
        self.assertEqual(shorts.done, 1)

    def test_another_answer_is_refused(self):
        for answer in (b"", ANSWER[:-1], ANSWER + b"!"):
            with self.subTest(answer=answer):
                shorts, other = self.proxy()
                other.sendall(answer)
                other.close()
                error = self.assertRaises(RefusedError, shorts.finish)
                self.assertIn(f"a client got {answer}", str(error))

    def test_a_reset_is_an_error(self):
        shorts, other = self.proxy()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        other.close()
        self.assertRaises(ConnectionResetError, shorts.finish)

    def test_nothing_done_is_refused(self):
        self.patch(busy, "SETTLE", 0.0)
        talk = Talk([b"ask"], b"ask", b"")
        cpu = iter([1000, 5000]).__next__
        error = self.assertRaises(
            RefusedError, loads_sni.short, self.sink, self.port, talk, 0.0, cpu
        )
        self.assertEqual(str(error), "no connection was done")

    def test_what_is_measured(self):
        """Neither what comes before, nor what is left at the end."""
        units = []

        class Played:
            done = 0
            measure = busy.Busy.measure

            def __init__(self, *about):
                pass

            def keep_busy(self, connections, seconds):
                units.append((connections, seconds))
                self.done += 100 if len(units) == 1 else 7

            def finish(self):
                self.done += 1000

        self.patch(loads_sni, "Shorts", Played)
        self.turns(10.0, 13.0)
        cpu = iter([1000, 5000]).__next__
        work = loads_sni.short(self.sink, self.port, Talk([], b"", b"beg"), 3, cpu)
        self.assertEqual(work, loads.Work(7, 3.0, 4000))
        self.assertEqual(units, [(loads.BUSY, loads.SETTLE), (loads.BUSY, 3)])
        self.assertEqual(self.tried, [(self.sink, self.port, b"beg")])

    def bulk(self, talk, connections):
        self.pumped = None

        def pump(sinks, sources, accepting, seconds, cpu):
            self.pumped = [
                (sink.getsockname(), source.getpeername())
                for sink, source in zip(sinks, sources, strict=True)
            ]
            return accepting, seconds

        self.patch(loads_sni, "pump", pump)
        return loads_sni.bulk(self.sink, self.port, talk, connections, 3, lambda: 0)

    def test_bulk_goes_where_the_hello_went(self):
        talk = loads_sni.greeting("chromium")
        self.assertEqual(self.bulk(talk, 3), (None, 3))
        self.assertEqual(len(set(self.pumped)), 3)
        for client, server in self.pumped:
            self.assertEqual(client, server)
        self.assertEqual(self.tried, [(self.sink, self.port, talk.unserved)])

    def test_bulk_behind_other_bytes_is_refused(self):
        self.assertRaises(RefusedError, self.bulk, Talk([b"ask"], b"beg", b""), 1)
        self.assertIsNone(self.pumped)


class RefusalTests(SynchronousTestCase):
    """That what is to be refused is so; by a proxy that is played here."""

    def setUp(self):
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.sink, self.port = self.stack.enter_context(loads.listening())
        self.come = []

    def proxy(self, answer, *, reset=False):
        """A proxy that gets one connection, answers and ends it; gives its port."""
        played = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def play():
            with played.accept()[0] as other:
                self.come.append(other.recv(100))
                other.sendall(answer)
                if reset:
                    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

        thread = Thread(target=play, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10.0)
        return played.getsockname()[1]

    def test_an_end_is_a_refusal(self):
        loads_sni.refused(self.sink, self.proxy(b""), b"ask")
        loads_sni.refused(self.sink, self.proxy(b"an alert"), b"ask")
        loads_sni.refused(self.sink, self.proxy(b"", reset=True), b"ask")
        self.assertEqual(self.come, [b"ask"] * 3)

    def test_the_origin_is_none(self):
        error = self.assertRaises(RefusedError, loads_sni.refused, self.sink, self.port, b"ask")
        self.assertEqual(str(error), "what is to be refused got to the origin, or goes on")

    def test_silence_is_none(self):
        played = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = played.getsockname()[1]
        self.patch(loads_sni, "PATIENCE", 0.05)
        self.assertRaises(RefusedError, loads_sni.refused, self.sink, port, b"ask")


class ReadingTests(SynchronousTestCase):
    def test_at_least_one_batch(self):
        self.patch(loads_sni, "BATCH", 2)
        work = loads_sni.reading(loads_sni.hello("curl"), 0.0)
        self.assertEqual(work.units, 2)
        self.assertGreater(work.cpu_ns, 0)

    def test_other_bytes_are_refused(self):
        for data in (b"GET / HTTP/1.1\r\n", loads_sni.hello("openssl-noservername")):
            with self.subTest(data=data[:10]):
                self.assertRaises(RefusedError, loads_sni.reading, data, 0.0)


class RowTests(SynchronousTestCase):
    def test_goals(self):
        found = {row.name: row.goal for row in rows_sni.ROWS}
        expected = {
            "sni-short": 2.0,
            "sni-bulk": 0.9,
            "proxy-out": None,
            "proxy-in": None,
            "hello": None,
        }
        self.assertEqual(found, expected)
        for row in rows_sni.ROWS:
            self.assertIs(ROWS[row.name], row)
            self.assertLessEqual(set(row.peers), set(NAMES))

    def test_they_are_before_l7(self):
        names = list(ROWS)
        self.assertLess(names.index("hello"), names.index("get"))

    def test_only_our_parser_is_read_with(self):
        self.patch(loads_sni, "reading", lambda data, seconds: loads.Work(10, seconds, 50_000))
        row = ROWS["hello"]
        found = dict(row.run(row.peers["proxykit"], Scale(seconds=3)))
        self.assertEqual(list(found), ["curl", "OpenSSL", "Chromium"])
        self.assertEqual({(each.cost, each.rate) for each in found.values()}, {(5.0, 10.0)})
        self.assertEqual(list(row.run(row.peers["haproxy"], Scale())), [])


class ConfigurationTests(SynchronousTestCase):
    """What proxies are told to do."""

    def text(self, start, name):
        directory = Path(self.mktemp())
        directory.mkdir()
        argv = start(Site(directory, 8080, ["127.0.0.1:9001"]))
        self.assertEqual(argv[-1], str(directory / name))
        return (directory / name).read_text()

    def proxykit(self, start):
        """What the service makes of it: the listener, the cluster."""
        path = Path(self.mktemp())
        path.write_text(self.text(start, "proxykit.toml"))
        made = config.load(path, environ={})
        (listener,), (cluster,) = made.listeners, made.clusters
        return listener, cluster

    def test_proxykit_by_name(self):
        listener, cluster = self.proxykit(peers_sni.proxykit)
        self.assertEqual((listener.mode, listener.cluster), ("sni", ""))
        self.assertEqual(listener.settings.routes, (SniRoute(cluster="origin", host=NAME),))
        self.assertEqual((cluster.name, cluster.proxy_protocol), ("origin", ""))

    def test_proxykit_with_headers(self):
        listener, cluster = self.proxykit(peers_sni.proxykit_out)
        self.assertEqual((listener.proxy_protocol, cluster.proxy_protocol), (False, "v2"))
        listener, cluster = self.proxykit(peers_sni.proxykit_in)
        self.assertEqual((listener.proxy_protocol, cluster.proxy_protocol), (True, ""))
        self.assertEqual((listener.mode, listener.cluster), ("tcp", "origin"))
        self.assertEqual(listener.trust, ("127.0.0.1",))

    def test_proxykit_without(self):
        found = tomllib.loads(self.text(peers.proxykit, "proxykit.toml"))
        (listener,), cluster = found["listeners"], found["clusters"]["origin"]
        self.assertEqual((listener["mode"], listener["cluster"]), ("tcp", "origin"))
        for each in (listener, cluster):
            self.assertNotIn("proxy_protocol", each)

    def test_haproxy_by_name(self):
        text = self.text(peers_sni.haproxy, "haproxy.cfg")
        for setting in (
            "nbthread 1",
            "mode tcp",
            "tcp-request inspect-delay 5s",
            f"use_backend origin if {{ req.ssl_sni -i {NAME} }}",
        ):
            self.assertIn(f" {setting}\n", text)
        self.assertNotIn("default_backend", text)
        self.assertNotIn("splice", text)

    def test_haproxy_splices(self):
        for start in (peers.haproxy_splice, peers_sni.haproxy_splice):
            text = self.text(start, "haproxy.cfg")
            for setting in ("tune.pipesize 1048576", "option splice-response"):
                self.assertIn(f" {setting}\n", text)

    def test_haproxy_with_headers(self):
        for start, line in (
            (peers_sni.haproxy_out, "server s0 127.0.0.1:9001 send-proxy-v2"),
            (peers_sni.haproxy_in, "bind 127.0.0.1:8080 accept-proxy"),
        ):
            text = self.text(start, "haproxy.cfg")
            self.assertIn(f"    {line}\n", text)
            self.assertEqual(text.count("-proxy"), 1)
        self.assertNotIn("-proxy", self.text(peers.haproxy, "haproxy.cfg"))

    def test_nginx_by_name(self):
        text = self.text(peers_sni.nginx, "stream.conf")
        self.assertIn(" ssl_preread on;", text)
        self.assertIn(f"$named {{ {NAME} origin; }}", text)
        self.assertIn(" proxy_pass $named;", text)

    def test_nginx_with_headers(self):
        self.assertIn(
            " listen 127.0.0.1:8080 backlog=4096 proxy_protocol;",
            self.text(peers_sni.nginx_in, "stream.conf"),
        )
        text = self.text(peers.nginx, "stream.conf")
        self.assertNotIn("proxy_protocol", text)
        self.assertIn(" proxy_pass origin;", text)

    def test_whether_nginx_looks_at_names(self):
        for said, there in (
            ("--with-stream_ssl_module", False),
            ("--with-stream_ssl_module --with-stream_ssl_preread_module", True),
        ):
            with self.subTest(said=said):
                self.patch(peers_sni, "find", lambda name: f"/{name}")
                self.patch(peers_sni.peers, "stream_module", lambda: "")
                run = SimpleNamespace(run=lambda *a, said=said, **k: SimpleNamespace(stderr=said))
                self.patch(peers_sni, "subprocess", run)
                self.assertIs(peers_sni.prereads(), there)
        self.patch(peers_sni.peers, "stream_module", lambda: None)
        self.assertFalse(peers_sni.prereads())

    def test_an_origin_that_hears_of_its_clients(self):
        directory = Path(self.mktemp())
        directory.mkdir()

        @contextmanager
        def running(argv, where, port):
            self.assertEqual((argv[-1], where), (str(directory / "introduced.conf"), directory))
            yield 1

        self.patch(loads_sni, "running", running)
        with loads_sni.introduced(directory) as port:
            text = (directory / "introduced.conf").read_text()
        self.assertIn(f" listen 127.0.0.1:{port} backlog=4096 proxy_protocol;", text)
        self.assertIn('if ($proxy_protocol_addr != "127.0.0.1") { return 400', text)
