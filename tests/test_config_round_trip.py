"""What is written for a configuration loads to an equal one."""

from __future__ import annotations

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykit import config, tables
from proxykit.checks import ClusterName
from proxykit.model import Address, Backend, Cluster, Config, Listener, Pool, PortRange, Sources
from proxykit.sources.dns import DnsSettings
from proxykit.upkeep import Discover
from tests.net.test_kernel import this_kernel
from tests.test_config import LISTENER, WEB, FakeRoute, FakeSettings
from tests.test_config_discover import DiscoverCase, FakeSource

NAMES_ST = st.text(min_size=1, max_size=8).filter(tables._is_name)
SECONDS = st.floats(min_value=1e-6, max_value=1e12)
WHOLE = st.integers(min_value=1, max_value=10**9)
RESERVED = (8080, *range(50000, 50010))


@st.composite
def sources(draw):
    """Of a kernel that picks from 1024 to 65535, and has those reserved."""
    addresses = draw(
        st.lists(
            st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fd00::/8"),
            max_size=3,
            unique=True,
        )
    )
    low = draw(st.integers(1024, 65500))
    high = draw(st.integers(low + 30, 65535))  # ten or more are left, so headroom may be any
    ports = PortRange(low, high, sum(low <= port <= high for port in RESERVED))
    headroom = draw(st.floats(0, 0.9))
    return Sources(tuple(map(str, addresses)), draw(st.none() | st.just(ports)), headroom)


def discovers(names):
    """Sources of backends, one of a plugin's among them."""
    fake = st.builds(
        FakeSource.settings,
        st.just("${a"),
        st.none() | st.sampled_from(names),
        st.lists(st.text(), max_size=2).map(tuple),
    )
    dns = st.builds(
        DnsSettings,
        st.sampled_from(["web.test", "_http._tcp.web.test."]),
        st.integers(1, 65535),
        st.sampled_from(["A", "AAAA", "A+AAAA"]),
        st.lists(st.ip_addresses().map(str), max_size=2).map(tuple),
        timeout=SECONDS,
        min_ttl=st.floats(0.01, 1),
        max_ttl=st.floats(1, 1e6),
        retry_max=SECONDS,
    )
    services = st.builds(DnsSettings, st.just("_http._tcp.web.test"), type=st.just("SRV"))
    return st.builds(Discover, st.just("fake"), fake) | st.builds(
        Discover, st.just("dns"), dns | services
    )


def admins():
    """Settings of an admin listener, with a token or without."""
    hosts = st.lists(st.sampled_from(["a.example", "fd00::1", "10.0.0.1"]), unique=True).map(tuple)
    token = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=40)
    local = st.sampled_from(["tcp:9:interface=127.0.0.1", "unix:/run/admin.sock"])
    with_one = st.fixed_dictionaries(
        {"admin": local | st.just("tcp:9"), "admin_token": token, "admin_hosts": hosts}
    )
    return with_one | st.fixed_dictionaries({"admin": local, "admin_hosts": hosts})


@st.composite
def configs(draw):
    names = draw(st.lists(NAMES_ST, max_size=3, unique=True))
    clusters = tuple(
        Cluster(
            name,
            tuple(
                Backend(address, draw(st.integers(1, 256)), draw(st.booleans()))
                for address in draw(
                    st.lists(
                        st.one_of(
                            st.builds(Address, st.ip_addresses().map(str), st.integers(1, 65535)),
                            st.builds(Address, st.just("/run/${x}"), st.just(0)),
                        ),
                        min_size=1,
                        max_size=3,
                        unique=True,
                    )
                )
            ),
            draw(st.sampled_from(["least-connections", "round-robin"])),
            draw(WHOLE),
            draw(SECONDS),
            draw(st.integers(0, 10**9)),
            draw(SECONDS),
            draw(SECONDS),
            Pool(
                draw(st.sampled_from(["never", "safe", "always"])),
                draw(st.none() | st.integers(0, 10**9)),
                draw(SECONDS),
            ),
            draw(st.sampled_from(["", "a.example", "[::1]:80"])),
            close=draw(st.sampled_from(["fin", "reset"])),
            discover=draw(st.none() | discovers(names)),
        )
        for name in names
    )
    listeners = tuple(
        Listener(
            name,
            f"tcp:{port}",
            "fake",
            draw(st.sampled_from(["", *names])),
            draw(WHOLE),
            FakeSettings(
                idle_timeout=draw(SECONDS),
                keepalive=draw(st.booleans()),
                note=draw(st.none() | st.text()),
                tags=tuple(draw(st.lists(st.text(), max_size=2))),
                routes=tuple(FakeRoute("h", ClusterName(name)) for name in names),
            ),
        )
        for port, name in enumerate(
            draw(st.lists(NAMES_ST, min_size=1, max_size=3, unique=True)), 1
        )
    )
    note_free = attrs.evolve(listeners[0], settings=FakeSettings())
    return Config(
        (note_free, *listeners[1:]),
        clusters,
        sources=draw(sources()),
        **draw(st.just({}) | admins()),
    )


class RoundTripTests(DiscoverCase):
    def setUp(self):
        super().setUp()
        this_kernel(self, "1024 65535", ",".join(map(str, RESERVED)))

    @settings(deadline=None)
    @given(configs())
    def test_loads_to_an_equal_one(self, made):
        self.assertEqual(self.load(config.as_toml(made)), made)

    def test_defaults_are_written(self):
        text = config.as_toml(self.load(WEB + LISTENER))
        for line in (
            *(
                "addresses = []",
                "headroom = 0.02",
                'close = "fin"',
                "queue = 1000",
                "weight = 1",
                "keepalive = true",
            ),
            *("[clusters.web.pool]", 'reuse = "safe"'),
        ):
            self.assertIn(line, text)
        for absent in (
            "note",
            'name = ""',
            "cluster = ",
            "admin",
            "max_idle",
            "host",
            "port_range",
            "discover",
        ):
            self.assertNotIn(absent, text)
