"""proxykit.tomllines against tomllib, and on documents whose lines are known beforehand."""

from __future__ import annotations

import string
import tomllib
from itertools import count

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.tomllines import Lines, lines

HANDWRITTEN = r'''# first
top = 1   # [not.a.table]
"quoted key" . 'lit.eral'.bare = "x = 1"
"esc\u0061pe\"d" = 'a # b'

[a.b]          # a comes to be by this
when = 1979-05-27 07:32:00
list = [ 1, [2,
   3], # ] ,
  { x = "}", "y z" = [
     4,
  ] },
  "]", '[',
]
dotted.one = 1
  dotted.two = """
[not.a.header]
\"""
"quotes"""""
after = """"" """
raw = \'\'\'
x = 1\'\'\'\'
e = ""
minus-1 = -1_000.5e-3

[[l]]
[[l]]
name = "second"
[[l.inner]]
k = {}
[[l.inner]]
[l.inner.sub]
deep = []
[l.table]
v = true

[a]
own = 1
[ "a" . c ]
z = inf
'''.replace(r"\'", "'")

EXPECTED = {
    ("top",): 2,
    ("quoted key",): 3,
    ("quoted key", "lit.eral"): 3,
    ("quoted key", "lit.eral", "bare"): 3,
    ('escape"d',): 4,
    ("a",): 38,
    ("a", "b"): 6,
    ("a", "b", "when"): 7,
    ("a", "b", "list"): 8,
    ("a", "b", "list", 0): 8,
    ("a", "b", "list", 1): 8,
    ("a", "b", "list", 1, 0): 8,
    ("a", "b", "list", 1, 1): 9,
    ("a", "b", "list", 2): 10,
    ("a", "b", "list", 2, "x"): 10,
    ("a", "b", "list", 2, "y z"): 10,
    ("a", "b", "list", 2, "y z", 0): 11,
    ("a", "b", "list", 3): 13,
    ("a", "b", "list", 4): 13,
    ("a", "b", "dotted"): 15,
    ("a", "b", "dotted", "one"): 15,
    ("a", "b", "dotted", "two"): 16,
    ("a", "b", "after"): 20,
    ("a", "b", "raw"): 21,
    ("a", "b", "e"): 23,
    ("a", "b", "minus-1"): 24,
    ("l",): 26,
    ("l", 0): 26,
    ("l", 1): 27,
    ("l", 1, "name"): 28,
    ("l", 1, "inner"): 29,
    ("l", 1, "inner", 0): 29,
    ("l", 1, "inner", 0, "k"): 30,
    ("l", 1, "inner", 1): 31,
    ("l", 1, "inner", 1, "sub"): 32,
    ("l", 1, "inner", 1, "sub", "deep"): 33,
    ("l", 1, "table"): 34,
    ("l", 1, "table", "v"): 35,
    ("a", "own"): 38,
    ("a", "c"): 39,
    ("a", "c", "z"): 40,
}
EXPECTED[("a",)] = 37


def paths(value, path=()):
    """Every path in what tomllib has read: tables, lists, and leaves."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths(item, (*path, index))


def leaves(value, path=()):
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path, value


KEYS = st.text(string.ascii_lowercase + string.digits + "-_ .\"'\\é\t\n#=[]{}", max_size=6)
# Leaves are replaced by strings that occur nowhere else, so that the text shows where each stands.
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        st.none(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


def marked(tree, numbers):
    if isinstance(tree, dict):
        return {key: marked(item, numbers) for key, item in tree.items()}
    if isinstance(tree, list):
        return [marked(item, numbers) for item in tree]
    return f"<{next(numbers)}>"


class Layout:
    """Writes TOML in layouts that tomli_w does not use, and notes the line of each path."""

    def __init__(self, draw):
        self.draw = draw
        self.text = ""
        self.expected = {}

    @property
    def line(self):
        return self.text.count("\n") + 1

    def write(self, *choices):
        self.text += self.draw(st.sampled_from(choices)) if len(choices) > 1 else choices[0]

    def blank(self):
        self.write("", " ", "\n", "\r\n\t", " # ] } , = \"\"\" ''' [x]\n", "\n\n  ")

    def key(self, key):
        if key.isidentifier() and key.isascii():
            self.write(key, f'"{key}"', f"'{key}'")
        else:
            escaped = "".join(f"\\U{ord(character):08x}" for character in key)
            self.write(f'"{escaped}"')

    def value(self, value, path):
        if isinstance(value, list):
            self.write("[")
            for index, item in enumerate(value):
                self.blank()
                self.expected[*path, index] = self.line
                self.value(item, (*path, index))
                self.blank()
                self.write(*([","] if index < len(value) - 1 else ["", ","]))
            self.blank()
            self.write("]")
        elif isinstance(value, dict):
            self.write("{ ")
            for index, (key, item) in enumerate(value.items()):
                self.write("," if index else "")
                self.write("", " ")
                self.pair(key, item, path)
            self.write(" }")
        else:
            self.write(
                "1",
                "-1.5e3",
                "true",
                "1979-05-27 07:32:00.5Z",
                '"]}\\"#"',
                "'\\'",
                '"""\n"" \\""" # \\\n  """"',
                "'''a\r\n'' = [\n'''''",
                '""',
                "''",
            )

    def pair(self, key, value, path):
        self.expected[*path, key] = self.line
        self.key(key)
        self.write("=", " = ", "\t=")
        self.value(value, (*path, key))

    def table(self, table, path):
        """Leaves and some others inline, the rest as tables and arrays of tables of their own."""
        later = []
        for key, item in table.items():
            tables = isinstance(item, list) and item and all(isinstance(x, dict) for x in item)
            if (tables or isinstance(item, dict)) and self.draw(st.booleans()):
                later.append((key, item))
            else:
                self.blank()
                self.pair(key, item, path)
                self.write("\n", " # = 1\n", "\r\n")
        for key, item in later:
            numbered = isinstance(item, list)
            for index, part in enumerate(item) if numbered else [(None, item)]:
                inner = (*path, key, index) if numbered else (*path, key)
                self.blank()
                self.expected.setdefault((*path, key), self.line)
                self.expected[inner] = self.line
                self.write("[[" if numbered else "[")
                for at, name in enumerate(x for x in inner if isinstance(x, str)):
                    self.write(*(["."] if at else [""]))
                    self.write("", " ")
                    self.key(name)
                self.write("]]" if numbered else "]")
                self.write("\n", "# x\n")
                self.table(part, inner)


@st.composite
def layouts(draw):
    layout = Layout(draw)
    layout.table(draw(TREES), ())
    return layout.text, layout.expected


class LinesTests(SynchronousTestCase):
    maxDiff = None

    def test_handwritten(self):
        for name, text in (("lf", HANDWRITTEN), ("crlf", HANDWRITTEN.replace("\n", "\r\n"))):
            with self.subTest(name):
                self.assertEqual(lines(text), EXPECTED)
                self.assertEqual(set(paths(tomllib.loads(text))), set(EXPECTED))

    def test_small(self):
        for text, expected in (
            ("", {}),
            ("\n# no newline", {}),
            ("a=1", {("a",): 1}),
            ("\n\n[a]", {("a",): 3}),
            ("'' = {a.b=1,a.c=[]}", {("",): 1, ("", "a"): 1, ("", "a", "b"): 1, ("", "a", "c"): 1}),
        ):
            with self.subTest(text):
                tomllib.loads(text)
                self.assertEqual(lines(text), expected)

    def test_find(self):
        found = Lines({("a",): 3, ("a", 0, "b"): 5})
        for path, line in (
            (("a", 0, "b"), 5),
            (("a", 0, "b", "c"), 5),
            (("a", 0), 3),
            (("a", 7, "x"), 3),
            (("z",), 1),
            ((), 1),
        ):
            with self.subTest(path):
                self.assertEqual(found.find(path), line)

    def test_not_toml(self):
        """The text is trusted, but a scanner that does not know on stops."""
        for text in ("= 1", "a = ", "a", "[\n"):
            with self.subTest(text):
                self.assertRaises(ValueError, lines, text)

    def test_long(self):
        """A document of half a million characters takes no longer than its length."""
        text = "a = [\n" + '"x",\n' * 100_000 + "]\nb = 1\n"
        self.assertEqual(lines(text)["b",], 100_003)

    @settings(deadline=None)
    @given(layouts())
    def test_layouts(self, layout):
        text, expected = layout
        self.assertEqual(lines(text), expected)
        self.assertEqual(set(paths(tomllib.loads(text))), set(expected))

    @settings(deadline=None)
    @given(TREES, st.booleans())
    def test_tomli_w(self, tree, crlf):
        text = tomli_w.dumps(marked(tree, count()))
        if crlf:
            text = text.replace("\n", "\r\n")
        split = text.split("\n")
        found = lines(text)
        data = tomllib.loads(text)
        # tomli_w writes some tables without a header where they hold nothing but tables.
        self.assertLessEqual(set(found), set(paths(data)))
        for path, value in leaves(data):
            self.assertIn(path, found)
            self.assertIn(f'"{value}"', split[found[path] - 1])
