"""proxykit.net.facts, and the two things of kernel.py that nobody else asks."""

from __future__ import annotations

import resource
from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.capacity import Capacity
from proxykit.model import PortRange
from proxykit.net import kernel
from proxykit.net.facts import facts
from proxykit.sources.dns import DnsSettings
from proxykit.sources.file import FileSettings, read
from proxykit.upkeep import Discover
from tests.core.plans import cluster, config, listener
from tests.net.test_kernel import kernel_settings


class KernelTests(SynchronousTestCase):
    def test_time_waits(self) -> None:
        directory = kernel_settings(self, tcp_max_tw_buckets="4096")
        self.assertEqual(kernel.time_waits(directory), 4096)
        self.assertIsNone(kernel.time_waits(directory / "none"))

    def test_descriptors(self) -> None:
        """The service raises its own limit to the hard one."""
        for hard, wanted in ((4096, 4096), (resource.RLIM_INFINITY, 1 << 20)):
            self.patch(resource, "getrlimit", lambda what, hard=hard: (1024, hard))
            self.assertEqual(kernel.descriptors(), wanted)

    def test_of_this_machine(self) -> None:
        if (kernel._IPV4 / "tcp_max_tw_buckets").exists():
            self.assertGreater(kernel.time_waits() or 0, 0)
        self.assertGreater(kernel.descriptors(), 0)


class FactsTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = kernel_settings(
            self,
            ip_local_port_range="40000 40199",
            ip_local_reserved_ports="40010-40019",
            tcp_tw_reuse="2",
            tcp_max_tw_buckets="1000",
        )
        self.patch(kernel, "_IPV4", directory)
        self.patch(resource, "getrlimit", lambda what: (1024, 4096))

    def test_all(self) -> None:
        made = config(
            cluster("a", "127.0.0.1:80", "127.0.0.1:81", "unix:/a"),
            cluster("b", "240.0.0.1:80"),  # of a class that is routed nowhere
            listener("tcp", "a"),
            addresses=("127.0.0.2", "203.0.113.7"),
        )
        found = facts(made)
        self.assertEqual(found.ports, PortRange(40000, 40199, 10))
        self.assertEqual(found.ways["127.0.0.1"], "127.0.0.1")
        self.assertEqual((found.reuse, found.resting), (2, 1000))
        self.assertEqual((found.descriptors, found.spare), (4096, 32))
        self.assertEqual(found.elsewhere, ("203.0.113.7",))
        self.assertTrue(found.late)
        self.assertFalse(facts(made, late=False).late)
        self.assertEqual(sum(way.ports or 0 for way in Capacity(made, found).ways["a"]), 4 * 190)

    def test_found(self) -> None:
        """What is in a file at this moment, and the way there; DNS would have to be waited for."""
        path = Path(self.mktemp())
        path.write_text("127.0.0.5:80\n127.0.0.1:81 backup\nunix:/a\n")
        web = evolve(
            cluster("web"), backends=(), discover=Discover("file", FileSettings(str(path)))
        )
        dns = cluster("dns", "127.0.0.6:80", discover=Discover("dns", DnsSettings("a.example", 80)))
        made = config(web, dns, cluster("plain", "127.0.0.7:80"), listener())
        found = facts(made)
        self.assertEqual(found.found, {"web": read(str(path))})
        hosts = ["127.0.0.1", "127.0.0.5", "127.0.0.6", "127.0.0.7"]
        self.assertEqual(sorted(found.ways), hosts)
        path.unlink()  # It was there when the configuration was read.
        self.assertEqual(facts(made).found, {})

    def test_no_way(self) -> None:
        """It is left out, as the book has it."""
        asked = []

        def source_of(self: object, host: str) -> str:
            asked.append(host)
            raise OSError

        self.patch(kernel.SourceAddresses, "__call__", source_of)
        made = config(cluster("web", "10.0.1.1:80", "10.0.1.1:81", "10.0.1.2:80"), listener())
        self.assertEqual(facts(made).ways, {})
        self.assertEqual(asked, ["10.0.1.1", "10.0.1.2"])
