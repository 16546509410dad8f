"""The table of a cluster that says where more backends come from."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import frozen
from zope.interface import implementer

from proxykit import cli, config, tables
from proxykit.checks import ClusterName
from proxykit.components import Component
from proxykit.interfaces import IBackendSource
from proxykit.model import Cluster
from proxykit.sources.dns import DnsSettings
from proxykit.sources.file import FileSettings
from proxykit.strict import Wrong
from proxykit.upkeep import Discover
from tests.test_config import LISTENER, REAL_COMPONENTS, WEB, Case


@frozen
class FakeSettings:
    zone: str
    #: A hook for this type is the reader's own.
    beside: ClusterName | None = None
    tags: tuple[str, ...] = ()


@implementer(IBackendSource)
class FakeSource:
    settings = FakeSettings

    def check(self, settings):
        if settings.zone == "ill":
            raise ValueError("expected a zone that is well")
        if settings.zone == "worse":
            raise Wrong([(("tags", 1), "expected another")])


class BrokenSource(FakeSource):
    def __init__(self):
        raise RuntimeError("no\nluck")


FAKES = [
    Component("source", "fake", f"{__name__}:FakeSource", ""),
    Component("source", "broken", f"{__name__}:BrokenSource", ""),
]
DISCOVER = "[clusters.web.discover]\n"


class DiscoverCase(Case):
    def setUp(self):
        super().setUp()
        fakes = tables.components  # by the base class

        def components(kind):
            if kind == "source":
                return REAL_COMPONENTS(kind) | {made.name: made for made in FAKES}
            return fakes(kind)

        self.patch(tables, "components", components)

    def discover(self, text):
        """What is read of a table, in a cluster that has no other backends."""
        (cluster,) = self.load(DISCOVER + text + LISTENER).clusters
        self.assertEqual(cluster, Cluster("web", (), discover=cluster.discover))
        return cluster.discover

    def addresses(self, text="10.0.0.1:80\n"):
        path = self.mktemp()
        Path(path).write_text(text)
        return path


class GoodTests(DiscoverCase):
    def test_none(self):
        self.assertIs(self.load(WEB + LISTENER).clusters[0].discover, None)

    def test_plugin(self):
        self.assertEqual(
            self.discover("by = 'fake'\nzone = 'a'\nbeside = 'web'\ntags = ['x']\n"),
            Discover("fake", FakeSettings("a", ClusterName("web"), ("x",))),
        )

    def test_file(self):
        path = self.addresses()
        self.assertEqual(
            self.discover(f"by = 'file'\npath = '{path}'\n"), Discover("file", FileSettings(path))
        )
        self.assertEqual(
            self.discover(f"by = 'file'\npath = '{path}'\ninterval = 0.25\n").settings,
            FileSettings(path, 0.25),
        )

    def test_dns(self):
        self.assertEqual(
            self.discover("by = 'dns'\nname = 'web.test'\nport = 80\n"),
            Discover("dns", DnsSettings("web.test", 80, "A", (), 2.0, 1.0, 300.0, 30.0)),
        )
        self.assertEqual(
            self.discover(
                "by = 'dns'\nname = '_http._tcp.web.test'\ntype = 'SRV'\n"
                "servers = ['10.0.0.53', '[fd00::53]:5353']\ntimeout = 1\nmin_ttl = 2\n"
                "max_ttl = 3\nretry_max = 4\n"
            ).settings,
            DnsSettings(
                "_http._tcp.web.test", None, "SRV", ("10.0.0.53", "[fd00::53]:5353"),
                1.0, 2.0, 3.0, 4.0,
            ),
        )  # fmt: skip

    def test_beside_others(self):
        read = self.load(WEB + DISCOVER + "by = 'fake'\nzone = 'a'\n" + LISTENER)
        (cluster,) = read.clusters
        self.assertEqual(cluster.discover, Discover("fake", FakeSettings("a")))
        self.assertEqual(len(cluster.backends), 1)

    def test_written(self):
        """What is in force loads to the same."""
        path = self.addresses()
        for text in (
            "by = 'fake'\nzone = '${x'\ntags = ['a', 'b']\n".replace("${", "$${"),
            f"by = 'file'\npath = '{path}'\n",
        ):
            read = self.load(DISCOVER + text + LISTENER)
            written = config.as_toml(read)
            self.assertEqual(self.load(written), read)
            self.assertIn("[clusters.web.discover]", written)

    def test_written_without_settings(self):
        """As a program may have put it together."""
        read = self.load(WEB + LISTENER)
        clusters = (attrs.evolve(read.clusters[0], discover=Discover("fake")),)
        written = config.as_toml(attrs.evolve(read, clusters=clusters))
        self.assertIn('[clusters.web.discover]\nby = "fake"\n', written)


class MistakesTests(DiscoverCase):
    def test_by(self):
        known = f"expected one of {', '.join(tables.components('source'))}"
        self.assert_table(
            (
                (
                    "clusters.web.discover = 1\n" + LISTENER,
                    "1: clusters.web.discover: expected a table, not 1",
                ),
                (DISCOVER + LISTENER, f"1: clusters.web.discover.by: missing; {known}"),
                (
                    DISCOVER + "by = 'etcd'\n" + LISTENER,
                    f"2: clusters.web.discover.by: {known}, not 'etcd'",
                ),
                (
                    DISCOVER + "by = ['dns']\n" + LISTENER,
                    f"2: clusters.web.discover.by: {known}, not a list",
                ),
                (
                    DISCOVER + "by = 'broken'\n" + LISTENER,
                    "2: clusters.web.discover.by: the source 'broken' cannot be loaded: no luck",
                ),
            )
        )

    def test_settings(self):
        by = DISCOVER + "by = 'fake'\n"
        self.assert_table(
            (
                (by + LISTENER, "1: clusters.web.discover.zone: missing"),
                (
                    by + "zoned = 'a'\n" + LISTENER,
                    "1: clusters.web.discover.zone: missing",
                    "3: clusters.web.discover.zoned: unknown key; did you mean zone?",
                ),
                (
                    by + "zone = 1\n" + LISTENER,
                    "3: clusters.web.discover.zone: expected a string, not 1",
                ),
                (
                    by + "zone = 'a'\nbeside = 'wed'\n" + LISTENER,
                    "4: clusters.web.discover.beside: there is no cluster 'wed';"
                    " did you mean 'web'?",
                ),
                (
                    by + "zone = 'ill'\n" + LISTENER,
                    "1: clusters.web.discover: expected a zone that is well",
                ),
                (
                    by + "zone = 'worse'\ntags = [\n'a',\n'b',\n]\n" + LISTENER,
                    "6: clusters.web.discover.tags[1]: expected another",
                ),
            )
        )

    def test_file(self):
        path = self.addresses("10.0.0.1\n10.0.0.1:80\n10.0.0.1:80\n")
        by = DISCOVER + "by = 'file'\n"
        self.assert_table(
            (
                (
                    by + LISTENER,
                    "1: clusters.web.discover.path: missing; expected the path of a file",
                ),
                (
                    by + "path = ''\ninterval = 0\n" + LISTENER,
                    "3: clusters.web.discover.path: expected the path of a file, not ''",
                    "4: clusters.web.discover.interval: expected a number of seconds above 0,"
                    " not 0",
                ),
                (
                    by + "path = 'no/such/file'\n" + LISTENER,
                    "3: clusters.web.discover.path: no/such/file: No such file or directory",
                ),
                (
                    by + f"path = '{path}'\n" + LISTENER,
                    f"3: clusters.web.discover.path: {path}:1: expected host:port, [v6]:port or"
                    " unix:/path with a port from 1 to 65535, not '10.0.0.1'",
                    f"3: clusters.web.discover.path: {path}:3: the same address as in line 2:"
                    " 10.0.0.1:80",
                ),
            )
        )

    def test_dns(self):
        by = DISCOVER + "by = 'dns'\n"
        server = "expected an IP address such as 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:53"
        self.assert_table(
            (
                (
                    by + LISTENER,
                    "1: clusters.web.discover.name: missing; expected a name such as web.internal",
                ),
                (
                    by + "name = '10.0.0.1'\nport = 0\ntype = 'MX'\nservers = ['::1', 'ns.test']\n"
                    "timeout = 0\n" + LISTENER,
                    "3: clusters.web.discover.name: expected a name such as web.internal, not"
                    " '10.0.0.1'",
                    "4: clusters.web.discover.port: expected a whole number from 1 to 65535, not 0",
                    "5: clusters.web.discover.type: expected one of A, AAAA, A+AAAA, SRV, not 'MX'",
                    f"6: clusters.web.discover.servers[1]: {server}, not 'ns.test'",
                    "7: clusters.web.discover.timeout: expected a number of seconds above 0, not 0",
                ),
                (
                    by + "name = 'web.test'\n" + LISTENER,
                    "1: clusters.web.discover: expected a port, which A records do not say, or"
                    ' type = "SRV"',
                ),
            )
        )


class CheckTests(DiscoverCase):
    def test_summary(self):
        """What ``proxykit check`` says."""
        by = DISCOVER + "by = 'fake'\nzone = 'a'\n"
        for text, expected in (
            (WEB, "1 listener, 1 cluster, 1 backend"),
            (WEB + by, "1 listener, 1 cluster, 1 backend, and those found by fake"),
            (by, "1 listener, 1 cluster, 0 backends, and those found by fake"),
        ):
            read = self.load(text + LISTENER)
            self.assertEqual(cli._summary(read), expected)
