"""proxykit.core.routing: from a TLS hello to a cluster, or to a listener."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxykit.core.routing import SniRouter
from proxykit.interfaces import IRouter
from proxykit.model import SniRoute
from proxykit.wire.clienthello import Hello


def asking(name=None, *protocols):
    """A hello for this name; None: for none."""
    return Hello(name, protocols, (0x0304, 0x0303), False)


def routes(*written):
    """Each as ``HOST PROTOCOL,PROTOCOL``, where a dash is no host; its cluster is named so, too."""
    made = []
    for text in written:
        host, _, protocols = text.partition(" ")
        alpn = tuple(protocols.split(",")) if protocols else ()
        made.append(SniRoute(text, host="" if host == "-" else host, alpn=alpn))
    return made


def router(*written):
    return SniRouter(routes(*written))


class SniRouterTests(SynchronousTestCase):
    def assert_routes(self, router, rows):
        """Each row is a name, the protocols offered, and a cluster or None."""
        for name, *protocols, cluster in rows:
            with self.subTest(name, protocols=protocols):
                route = router.route(asking(name, *protocols))
                self.assertEqual(route and route.cluster, cluster)

    def test_interface(self):
        self.assertTrue(verifyObject(IRouter, SniRouter(())))

    def test_nothing(self):
        self.assert_routes(router(), ((None, None), ("a.example", None), ("a", "h2", None)))

    def test_the_route_itself(self):
        """The very one, with all that it says."""
        here = SniRoute(host="a.example", listener="here")
        self.assertIs(SniRouter([here]).route(asking("a.example")), here)

    def test_hands_over(self):
        """Whether there is any use in looking at a hello before it is read."""
        here = SniRoute(host="a", listener="here")
        for made, expected in (
            ((), False),
            (routes("a", "b"), False),
            ([*routes("b"), here], True),
        ):
            self.assertIs(SniRouter(made).hands_over, expected)
            self.assertIs(SniRouter(iter(made)).hands_over, expected)
            route = SniRouter(iter(made)).route(asking("b"))
            self.assertEqual(route, SniRoute("b", host="b") if made else None)

    def test_exact_then_wildcard_then_any(self):
        hosts = ("-", "*.a.example", "a.example", "x.a.example", "*.b.a.example", "*.example")
        for made in (router(*hosts), router(*reversed(hosts))):
            self.assert_routes(
                made,
                (
                    ("a.example", "a.example"),
                    ("x.a.example", "x.a.example"),
                    ("y.a.example", "*.a.example"),
                    ("b.a.example", "*.a.example"),
                    ("y.x.a.example", "*.a.example"),
                    ("x.b.a.example", "*.b.a.example"),
                    ("z.y.x.b.a.example", "*.b.a.example"),
                    ("xa.example", "*.example"),
                    ("b.example", "*.example"),
                    ("example", "-"),
                    ("a.example.com", "-"),
                    ("a", "-"),
                    (None, "-"),
                ),
            )

    def test_a_wildcard_is_not_the_bare_name(self):
        self.assert_routes(
            router("*.a.example"),
            (
                ("a.example", None),
                ("x.a.example", "*.a.example"),
                ("xa.example", None),
                ("a.example.x", None),
                (None, None),
            ),
        )

    def test_names_alone(self):
        """Without a route for any there is none for a hello that names nobody."""
        self.assert_routes(
            router("a", "*.b"),
            (("a", "a"), ("x.b", "*.b"), ("x.a", None), ("b", None), (None, None)),
        )

    def test_capitals(self):
        """A hello's name comes in lower case; what a user writes may not."""
        self.assert_routes(
            router("A.Example", "*.B.EXAMPLE"),
            (("a.example", "A.Example"), ("x.b.example", "*.B.EXAMPLE")),
        )

    def test_the_order_of_the_client(self):
        """Its first protocol that there is a route for, however the routes stand."""
        protocols = ("a.example h2", "a.example http/1.1", "a.example")
        for made in (router(*protocols), router(*reversed(protocols))):
            self.assert_routes(
                made,
                (
                    ("a.example", "h2", "http/1.1", "a.example h2"),
                    ("a.example", "http/1.1", "h2", "a.example http/1.1"),
                    ("a.example", "x", "http/1.1", "h2", "a.example http/1.1"),
                    ("a.example", "x", "a.example"),
                    ("a.example", "a.example"),
                    ("b.example", "h2", None),
                ),
            )

    def test_one_of_several_protocols(self):
        self.assert_routes(
            router("a h2,h3", "a x"),
            (("a", "h3", "a h2,h3"), ("a", "x", "h2", "a x"), ("a", "y", None), ("a", None)),
        )

    def test_protocols_are_compared_as_they_are(self):
        self.assert_routes(
            router("- h2", "- \xff"),
            (("a", "H2", None), ("a", "h2c", None), ("a", "\xff", "- \xff")),
        )

    def test_a_host_without_a_fitting_protocol(self):
        """The search goes on where nothing fits; a host's own route comes before others'."""
        self.assert_routes(
            router("a.b.c h2", "*.b.c x", "*.c", "*.c h2", "- x", "d h2", "d", "- y"),
            (
                ("a.b.c", "x", "h2", "a.b.c h2"),
                ("a.b.c", "x", "*.b.c x"),
                ("a.b.c", "y", "*.c"),
                ("a.b.c", "*.c"),
                ("e.b.c", "x", "h2", "*.b.c x"),
                ("e.b.c", "h2", "x", "*.b.c x"),
                ("e.b.c", "h2", "*.c h2"),
                ("d", "x", "h2", "d h2"),
                ("d", "x", "d"),
                ("e", "h2", "x", "- x"),
                ("e", "y", "x", "- y"),
                (None, "x", "- x"),
                ("e", "h2", None),
                (None, None),
            ),
        )

    def test_the_first_of_two_that_say_the_same(self):
        first, second = SniRoute("1", host="a"), SniRoute("2", host="A")
        self.assertIs(SniRouter([first, second]).route(asking("a")), first)
        first, second = SniRoute("1", alpn=("x", "y")), SniRoute("2", alpn=("y", "z"))
        made = SniRouter([first, second])
        for protocol, found in (("x", first), ("y", first), ("z", second)):
            self.assertIs(made.route(asking("a", protocol)), found, protocol)

    def test_cost(self):
        """A name is cut once for each depth that wildcards have, however many of them there are."""
        cuts = []

        class Name(str):
            def rsplit(self, sep, maxsplit):
                cuts.append(maxsplit)
                return super().rsplit(sep, maxsplit)

        hosts = [f"{kind}{number}.example" for number in range(1000) for kind in ("*.", "")]
        made = router(*hosts, "*.a.b.c.example")
        self.assert_routes(made, (("1.example", "1.example"), ("x.999.example", "*.999.example")))
        self.assertIsNone(made.route(asking(Name("a." * 100 + "com"))))
        self.assertEqual(cuts, [4, 2])
        cuts.clear()
        self.assertEqual(made.route(asking(Name("7.example"))).cluster, "7.example")
        self.assertEqual(cuts, [])


LABELS = st.sampled_from(("a", "b", "c"))
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PROTOCOLS = st.lists(st.sampled_from(("h2", "http/1.1", "x")), max_size=3, unique=True)
ROUTES = st.lists(
    st.builds(
        SniRoute,
        host=st.one_of(st.just(""), NAMES, NAMES.map("*.".__add__)),
        alpn=PROTOCOLS.map(tuple),
    ),
    max_size=8,
)


def simply(routes, name, protocols):
    """The same, by looking at each route for each host."""
    hosts = [""]
    if name is not None:
        labels = name.split(".")
        hosts = [name, *("*." + ".".join(labels[at:]) for at in range(1, len(labels))), ""]
    for host in hosts:
        here = [route for route in routes if route.host == host]
        for protocol in protocols:
            for route in here:
                if protocol in route.alpn:
                    return route
        for route in here:
            if not route.alpn:
                return route
    return None


class RandomTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=500)
    @given(ROUTES, st.none() | NAMES, PROTOCOLS)
    def test_as_said(self, routes, name, protocols):
        expected = simply(routes, name, protocols)
        self.assertIs(SniRouter(routes).route(asking(name, *protocols)), expected)
