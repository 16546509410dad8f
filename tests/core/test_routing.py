"""proxykit.core.routing: from what a mode has seen to a cluster."""

from __future__ import annotations

from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxykit.core.routing import (
    Everything,
    HttpRouter,
    is_normal,
    normal_path,
    redirect_url,
    rewritten,
)
from proxykit.interfaces import IRouter
from proxykit.model import HttpRoute, Route


class EverythingTests(SynchronousTestCase):
    def test_route(self):
        router = Everything("web")
        self.assertTrue(verifyObject(IRouter, router))
        for subject in (None, "a.example", object()):
            self.assertEqual(router.route(subject), Route("web"))


@frozen
class Head:
    """As much of a request as a router looks at."""

    name: str = ""
    target: bytes = b"/"
    method: bytes = b"GET"


def router(*written, default=""):
    """Routes as ``HOST/PATH METHOD,METHOD``; each one's cluster is named as it is written."""
    routes = []
    for text in written:
        where, _, methods = text.partition(" ")
        host, slash, path = where.partition("/")
        methods = tuple(methods.split(",")) if methods else ()
        routes.append(HttpRoute(text, host=host, path=slash + path or "/", methods=methods))
    return HttpRouter(routes, default)


class HttpRouterTests(SynchronousTestCase):
    def assert_routes(self, router, rows):
        """Each row is a host with a target, a method where it is not GET, and a cluster or None."""
        for where, *method, cluster in rows:
            with self.subTest(where, method=method):
                host, slash, target = where.partition("/")
                head = Head(host, (slash + target).encode() or b"/", *method)
                route = router.route(head)
                self.assertEqual(route and route.cluster, cluster)

    def test_interface(self):
        self.assertTrue(verifyObject(IRouter, HttpRouter(())))

    def test_hosts(self):
        """The exact one, then the longest wildcard; a star is one label or more."""
        hosts = ("a.example", "*.a.example", "*.b.a.example", "*.example", "*.com")
        self.assert_routes(
            router(*hosts),
            (
                ("a.example", "a.example"),
                ("x.a.example", "*.a.example"),
                ("x.y.a.example", "*.a.example"),
                ("b.a.example", "*.a.example"),
                ("x.b.a.example", "*.b.a.example"),
                ("xa.example", "*.example"),
                ("b.example", "*.example"),
                ("x.com", "*.com"),
                ("x.y.com", "*.com"),
                ("com", None),
                ("example", None),
                (".com", None),
                (".example", None),
                ("com.x", None),
                ("", None),
                ("[::1]", None),
            ),
        )

    def test_capitals(self):
        self.assert_routes(router("A.Example", "*.B.Example"), (("a.example", "A.Example"),))
        self.assert_routes(router("A.Example", "*.B.Example"), (("x.b.example", "*.B.Example"),))

    def test_paths(self):
        """The longest prefix that ends where a segment does."""
        self.assert_routes(
            router("/v1", "/v2/", "/v2/users", "/v1/a/b", "/files/a.b"),
            (
                ("/v1", "/v1"),
                ("/v1/", "/v1"),
                ("/v1/x", "/v1"),
                ("/v1?x", "/v1"),
                ("/v1?/v2/", "/v1"),
                ("/v1/a/b", "/v1/a/b"),
                ("/v1/a/b?", "/v1/a/b"),
                ("/v1/a/bc", "/v1"),
                ("/v1/a", "/v1"),
                ("/v1//a/b", "/v1"),
                ("/v10", None),
                ("/v1;x", None),
                ("/V1", None),
                ("/v2", None),
                ("/v2?x", None),
                ("/v2/", "/v2/"),
                ("/v2/?x", "/v2/"),
                ("/v2/x", "/v2/"),
                ("/v2/users", "/v2/users"),
                ("/v2/usersx", "/v2/"),
                ("/files/a.b/c", "/files/a.b"),
                ("/", None),
                ("/?/v1", None),
                ("//v1", None),
                ("*", None),
            ),
        )

    def test_paths_are_compared_in_their_normal_form(self):
        self.assert_routes(
            router("/v1", "/.well-known", "/a%2Fb", "/"),
            (
                ("/%761", "/v1"),
                ("/%76%31/x", "/v1"),
                ("/x/../v1", "/v1"),
                ("/x/%2e%2E/v1?y", "/v1"),
                ("/./v1", "/v1"),
                ("/v1/..", "/"),
                ("/v1/.", "/v1"),
                ("/v1/../v1", "/v1"),
                ("/v1?x=%41&y=/../../..", "/v1"),
                ("/.well-known/x", "/.well-known"),
                ("/a%2fb/c", "/a%2Fb"),
                ("/a/b", "/"),
                ("/%2576", "/"),
                ("//../v1", "/v1"),
            ),
        )

    def test_above_the_root(self):
        """Nothing fits such a path, not even the default."""
        for made in (router("/v1", "/"), router(default="web"), router("/", default="web")):
            self.assert_routes(
                made,
                ((target, None) for target in ("/..", "/../v1", "/v1/../../v1", "/%2e%2E")),
            )

    def test_methods(self):
        """Routes that name it come before those for all; without either the search goes on."""
        for made, other in ((router("/ PUT", default="web"), "web"), (router("/ PUT", "/"), "/")):
            self.assert_routes(made, (("/", other), ("/", b"PUT", "/ PUT")))
        self.assert_routes(
            router("/v1 GET,HEAD", "/v1", "/v1/x POST", "/v2 GET", "/ DELETE", "/v1 PUT,GET"),
            (
                ("/v1", "/v1 GET,HEAD"),
                ("/v1", b"HEAD", "/v1 GET,HEAD"),
                ("/v1", b"PUT", "/v1 PUT,GET"),
                ("/v1", b"POST", "/v1"),
                ("/v1", b"get", "/v1"),
                ("/v1/x", b"POST", "/v1/x POST"),
                ("/v1/x", "/v1 GET,HEAD"),
                ("/v1/x", b"DELETE", "/v1"),
                ("/v2", b"DELETE", "/ DELETE"),
                ("/v2", b"POST", None),
            ),
        )

    def test_on_to_the_next(self):
        """Host, wildcards, any, default: each may have nothing that fits."""
        self.assert_routes(
            router("a.b.c/1", "*.b.c/2", "*.c/3", "/4", "a.c/1 PUT", default="default"),
            (
                ("a.b.c/1", "a.b.c/1"),
                ("a.b.c/2", "*.b.c/2"),
                ("a.b.c/3", "*.c/3"),
                ("a.b.c/4", "/4"),
                ("a.b.c/5", "default"),
                ("x.b.c/1", "default"),
                ("x.b.c/2", "*.b.c/2"),
                ("x.b.c/3", "*.c/3"),
                ("b.c/2", "default"),
                ("b.c/3", "*.c/3"),
                ("a.c/1", b"PUT", "a.c/1 PUT"),
                ("a.c/1", "default"),
                ("a.c/3", b"PUT", "*.c/3"),
                ("x/4", "/4"),
                ("/4", "/4"),
                ("x/3", "default"),
                ("x*", "default"),
            ),
        )

    def test_the_server_as_a_whole(self):
        """``OPTIONS *`` goes where the host's root does."""
        made = HttpRouter(
            [HttpRoute("a", host="a"), HttpRoute("b", host="b", path="/b")], cluster="web"
        )
        for name, cluster in (("a", "a"), ("b", "web"), ("c", "web")):
            self.assertEqual(made.route(Head(name, b"*", b"OPTIONS")).cluster, cluster)
        made = router("/ OPTIONS", "/b", default="web")
        self.assertEqual(made.route(Head("a", b"*", b"OPTIONS")).cluster, "/ OPTIONS")

    def test_one_for_everything(self):
        everything = HttpRoute("web")
        for made in (HttpRouter([everything]), HttpRouter((), "web")):
            for head in (Head(), Head("x.y", b"/a?b", b"POST"), Head("x", b"*", b"OPTIONS")):
                self.assertEqual(made.route(head), everything)
        made = HttpRouter((), "web")
        self.assertIs(made.route(Head()), made.route(Head("x")))

    def test_nothing_at_all(self):
        self.assertIsNone(HttpRouter(()).route(Head()))

    def test_the_first_of_two(self):
        first, second = HttpRoute("a"), HttpRoute("b")
        self.assertIs(HttpRouter([first, second]).route(Head()), first)

    def test_misdirected(self):
        """It is our host when any request for it would go anywhere."""
        named = router("a.example/v1", "*.b.example/v1 PUT")
        for name, expected in (
            ("a.example", False),
            ("x.b.example", False),
            ("b.example", True),
            ("c.example", True),
            ("", True),
        ):
            self.assertEqual(named.misdirected(Head(name)), expected, name)
        for ours in (router("a.example", default="web"), router("a.example", "/v1")):
            self.assertFalse(ours.misdirected(Head("c.example")))
        self.assertTrue(HttpRouter(()).misdirected(Head("a")))

    def test_paths_that_would_never_fit(self):
        for path in ("", "v1", "/a/..", "/%41", "/a?b", "/\xe9"):
            error = self.assertRaises(ValueError, HttpRouter, [HttpRoute("a", path=path)])
            self.assertIn(repr(path), str(error))

    def test_cost(self):
        """A client's long name is cut where the longest wildcard could begin, and nowhere else."""
        cuts = []

        class Name(str):
            def rsplit(self, sep, maxsplit):
                cuts.append(maxsplit)
                return super().rsplit(sep, maxsplit)

        made = router(*(f"*.{number}.example" for number in range(1000)), "*.a.b.c.example")
        self.assertIsNone(made.route(Head(Name("a." * 4000 + "com"))))
        self.assertEqual(cuts, [4, 2])


class NormalPathTests(SynchronousTestCase):
    def test_all(self):
        for target, expected in (
            (b"/", b"/"),
            (b"*", b"*"),
            (b"/a/b?c/../d", b"/a/b"),
            (b"/?%2e", b"/"),
            (b"/a//b/", b"/a//b/"),
            (b"/%7Ea%7ea", b"/~a~a"),
            (b"/%41%5a%61%7A%30%39%2d%2E%5f", b"/AZaz09-._"),
            (b"/%2f%3f%23%25%00%ff", b"/%2F%3F%23%25%00%FF"),
            (b"/%252e%252e/", b"/%252e%252e/"),
            (b"/%zz%4%", b"/%25zz%254%25"),
            (b"/%%361%%", b"/%2561%25%25"),
            (b"/a/./b", b"/a/b"),
            (b"/a/../b", b"/b"),
            (b"/a/b/../../c", b"/c"),
            (b"/a/.", b"/a/"),
            (b"/a/..", b"/"),
            (b"/a/b/..", b"/a/"),
            (b"/.", b"/"),
            (b"/./", b"/"),
            (b"/a//../b", b"/a/b"),
            (b"//..", b"/"),
            (b"/...", b"/..."),
            (b"/..a/.b", b"/..a/.b"),
            (b"/a/%2e%2e/b", b"/b"),
            (b"/a%2f../b", b"/a%2F../b"),
            (b"/..", None),
            (b"/../a", None),
            (b"/a/../../a", None),
            (b"/%2E./a", None),
            (b"/./..", None),
        ):
            self.assertEqual(normal_path(target), expected, target)

    @settings(deadline=None)
    @given(st.lists(st.sampled_from([b"/", b".", b"%2e", b"a", b"%41", b"%2f", b"%"])))
    def test_once_is_enough(self, parts):
        """A normal form stays as it is, has no dot segment, and is an absolute path."""
        path = normal_path(b"/" + b"".join(parts))
        if path is not None:
            self.assertEqual(normal_path(path), path)
            self.assertTrue(path.startswith(b"/"))
            self.assertFalse({b".", b".."} & set(path.split(b"/")))
            self.assertTrue(is_normal(path.decode()))

    def test_is_normal(self):
        for path in ("/", "/a", "/a/", "/a//b", "/.a", "/%2F", "/~;=:@%20"):
            self.assertTrue(is_normal(path), path)
        for path in ("", "a", "*", "/a/.", "/..", "/%2f", "/%7E", "/a?", "/a#", "/a b", "/\x7f"):
            self.assertFalse(is_normal(path), path)


class RewrittenTests(SynchronousTestCase):
    def test_all(self):
        for path, new, target, expected in (
            ("/v1", None, b"/v1/../v1/x?y", b"/v1/../v1/x?y"),
            ("/v1", "/", b"/v1/x", b"/x"),
            ("/v1", "/", b"/v1", b"/"),
            ("/v1", "/", b"/v1/", b"/"),
            ("/v1", "/", b"/v1?x", b"/?x"),
            ("/v1", "/", b"/v1//x", b"/x"),
            ("/v1", "/", b"/v1//", b"/"),
            ("/v1", "/api", b"/v1", b"/api"),
            ("/v1", "/api", b"/v1/", b"/api/"),
            ("/v1", "/api", b"/v1/x/", b"/api/x/"),
            ("/v1", "/api/", b"/v1", b"/api/"),
            ("/v1", "/api/", b"/v1/x?y/v1", b"/api/x?y/v1"),
            ("/v1/", "/api", b"/v1/", b"/api/"),
            ("/v1/", "/api", b"/v1/x", b"/api/x"),
            ("/v1/", "/api/", b"/v1/x", b"/api/x"),
            ("/", "/api", b"/", b"/api/"),
            ("/", "/api", b"/x?", b"/api/x?"),
            ("/", "/", b"/x//y", b"/x//y"),
            ("/v1", "/", b"/a/../%761/x%2f?%41/..", b"/x%2F?%41/.."),
            ("/v1", "/", b"/v1?x?y", b"/?x?y"),
            ("/", "/api", b"*", b"*"),
        ):
            route = HttpRoute("web", path=path, replace_path=new)
            self.assertEqual(rewritten(route, target), expected, (path, new, target))


class RedirectTests(SynchronousTestCase):
    def test_all(self):
        for template, expected in (
            ("https://{host}{uri}", b"https://a.example/v1/x?y"),
            ("{scheme}://www.{host}/", b"http://www.a.example/"),
            ("/elsewhere", b"/elsewhere"),
            ("https://b.example:8443/new{uri}", b"https://b.example:8443/new/v1/x?y"),
        ):
            route = HttpRoute(redirect=template)
            self.assertEqual(redirect_url(route, b"http", b"a.example:80", b"/v1/x?y"), expected)

    def test_hosts(self):
        route = HttpRoute(redirect="https://{host}/")
        for host, expected in (
            (b"a.example", b"https://a.example/"),
            (b"a.example:", b"https://a.example/"),
            (b"[::1]", b"https://[::1]/"),
            (b"[::1]:80", b"https://[::1]/"),
        ):
            self.assertEqual(redirect_url(route, b"http", host, b"/"), expected)

    def test_targets(self):
        """A client's own braces mean nothing."""
        route = HttpRoute(path="/v1", replace_path="/", redirect="https://{host}{uri}")
        for target, expected in (
            (b"/v1/x?y", b"https://a/x?y"),
            (b"/v1/{host}{scheme}?{uri}", b"https://a/{host}{scheme}?{uri}"),
            (b"/v1//b.example", b"https://a/b.example"),
            (b"*", b"https://a/"),
        ):
            self.assertEqual(redirect_url(route, b"http", b"a", target), expected)
