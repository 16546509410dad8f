"""proxykit.wire.fields: what hooks and rules may change."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire import http1fields
from proxykit.wire.fields import Fields, valid_field

BLOCK = b"A: b\r\nCookie: c\r\na:d \r\nE: \r\n"


class FieldsTests(SynchronousTestCase):
    def setUp(self):
        self.fields = Fields(BLOCK)

    def test_look(self):
        fields = self.fields
        self.assertEqual(fields.get("a"), b"b, d")
        self.assertEqual(fields.get(b"COOKIE"), b"c")
        self.assertEqual(fields.get("e"), b"")
        self.assertIsNone(fields.get("f"))
        self.assertEqual(fields.get_all("A"), [b"b", b"d"])
        self.assertEqual(fields.get_all(b"f"), [])
        self.assertEqual(("a" in fields, b"E" in fields, "f" in fields), (True, True, False))
        self.assertEqual(list(fields), [(b"A", b"b"), (b"Cookie", b"c"), (b"a", b"d"), (b"E", b"")])
        self.assertEqual(fields.block(), b"A: b\r\nCookie: c\r\na: d\r\nE: \r\n")

    def test_nothing(self):
        for fields in (Fields(), Fields(b"")):
            self.assertEqual((list(fields), fields.block()), ([], b""))

    def test_set(self):
        """In the place of the first of that name; the others go."""
        self.fields.set("a", "x")
        self.assertEqual(self.fields.block(), b"a: x\r\nCookie: c\r\nE: \r\n")
        self.fields.set(b"E", b" y\t")
        self.fields.set("New", "\xfc")
        self.assertEqual(self.fields.block(), b"a: x\r\nCookie: c\r\nE: y\r\nNew: \xc3\xbc\r\n")

    def test_add(self):
        self.fields.add("A", "x")
        self.assertEqual(self.fields.get_all("a"), [b"b", b"d", b"x"])
        self.assertEqual(list(self.fields)[-1], (b"A", b"x"))

    def test_remove(self):
        self.fields.remove("a")
        self.fields.remove(b"e")
        self.fields.remove("never there")
        self.assertEqual(self.fields.block(), b"Cookie: c\r\n")

    def test_refused(self):
        """Nothing can be injected, and framing stays the proxy's."""
        for name, value, expected in (
            ("", "a", "expected the name of a field"),
            ("a b", "a", "expected the name of a field"),
            ("a:", "a", "expected the name of a field"),
            ("a\r\nb", "a", "expected the name of a field"),
            ("\xfc", "a", "expected the name of a field"),
            ("a", "b\r\nc: d", "expected a value without control characters for a"),
            ("a", "b\n", "expected a value without control characters for a"),
            ("a", "\x00", "expected a value without control characters for a"),
            ("a", "\x7f", "expected a value without control characters for a"),
            ("Content-Length", "5", "expected no field that the proxy writes itself"),
            ("transfer-encoding", "chunked", "expected no field that the proxy writes itself"),
            ("Transfer_Encoding", "a", "expected no field that the proxy writes itself"),
            ("Connection", "a", "expected no field that the proxy writes itself"),
            ("Keep-Alive", "a", "expected no field that the proxy writes itself"),
            ("Upgrade", "a", "expected no field that the proxy writes itself"),
            ("TE", "a", "expected no field that the proxy writes itself"),
            ("Trailer", "a", "expected no field that the proxy writes itself"),
            ("HOST", "a", "expected no field that the proxy writes itself: HOST"),
        ):
            for change in (self.fields.set, self.fields.add, valid_field):
                with self.subTest(name=name, value=value, change=change.__name__):
                    error = self.assertRaises(ValueError, change, name, value)
                    self.assertIn(expected, str(error))
        self.assertEqual(list(self.fields), list(Fields(BLOCK)))

    def test_valid(self):
        for name, value in (("X-A", "b\tc"), ("a", ""), ("Server", "\xfc")):
            self.assertIsNone(valid_field(name, value))

    def test_where_it_is_looked_for(self):
        self.assertIs(http1fields.Fields, Fields)
        self.assertIs(http1fields.valid_field, valid_field)
