"""proxykit.lab.report: what was found, told in three ways."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from unittest import mock

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from proxykit.lab import report
from proxykit.lab.report import Plot, Result, Series, Table, spelled

TABLE = Table(
    "A title",
    ("through", "clients that were served in the end", "wait, ms"),
    [("L4 (tcp)", 1000, 0.5), ("L7 *_http_*", 9500, None)],
    notes=["10.0.0.1 `is` full"],
)
RESULT = Result(
    "L4 served 1,000.",
    [TABLE],
    [Plot("How many", "clients", "served", [Series("L4", [(0, 0), (10, 5)])])],
    name="limit",
    question="How many?",
    seconds=12.34,
    setting={"source ports": 1000, "Linux": "6.1_x"},
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class SpelledTests(SynchronousTestCase):
    def test_cells(self):
        for cell, expected in (
            (None, ""),
            ("a_b", "a_b"),
            (0, "0"),
            (9500, "9,500"),
            (-1234567, "-1,234,567"),
            (0.0, "0"),
            (0.5, "0.5"),
            (2.0, "2"),
            (16.666, "16.67"),
            (-16.666, "-16.67"),
            (100.4, "100"),
            (12345.6, "12,346"),
            (0.0123, "0.012"),
            (0.0000123, "1.2e-05"),
            (99.999, "100"),
        ):
            self.assertEqual(spelled(cell), expected, cell)


class TableTests(SynchronousTestCase):
    def test_cells_and_columns(self):
        error = self.assertRaises(ValueError, Table, "A title", ("a", "b"), [(1, 2), (1,)])
        self.assertEqual(str(error), "A title: 1 cells in 2 columns")

    def test_numbers(self):
        self.assertEqual(TABLE.is_number, [False, True, True])
        self.assertEqual(Table("Empty", ("a", "b"), []).is_number, [True, True])

    def test_turned(self):
        """What is too wide for a page has a column for each row; what is long as well stays."""
        names = ["what", *(f"figure {number}" for number in range(6))]
        wide = Table("Wide", names, [("a", *range(6)), ("b", *range(1000, 1006))], ["note"])
        self.assertEqual(wide.turned.columns, ("what", "a", "b"))
        self.assertEqual(wide.turned.rows[0], ("figure 0", "0", "1,000"))
        self.assertEqual(len(wide.turned.rows), 6)
        self.assertEqual((wide.turned.title, wide.turned.notes), ("Wide", ["note"]))
        self.assertIs(TABLE.turned, TABLE)
        long = Table("Long", names, [("a", *range(6))] * 6)
        self.assertIs(long.turned, long)
        self.assertIn("figure 5\n     - 5\n     - 1,005", report.as_rst(Result("", [wide])))
        self.assertIn("figure 0  figure 1", report.as_text(Result("", [wide])))

    def test_counted(self):
        self.assertEqual(report.counted(1, "port"), "1 port")
        self.assertEqual(report.counted(0, "port"), "0 ports")
        self.assertEqual(report.counted(2000, "port"), "2,000 ports")


class TextTests(SynchronousTestCase):
    def test_text(self):
        """Heads go on below; figures stand at the right."""
        lines = report.as_text(RESULT).splitlines()
        self.assertEqual(lines[:5], ["limit: How many?", "", "L4 served 1,000.", "", "A title"])
        self.assertEqual(
            lines[5:],
            [
                "                 clients that",
                "               were served in",
                "  through             the end  wait, ms",
                "  -----------  --------------  --------",
                "  L4 (tcp)              1,000       0.5",
                "  L7 *_http_*           9,500",
                "10.0.0.1 `is` full",
                "",
                "(source ports 1,000, Linux 6.1_x, 12 s)",
            ],
        )

    def test_no_rows(self):
        text = report.as_text(Result("None.", [Table("Empty", ("a", "b c"), [])]))
        self.assertIn("Empty\n  a  b c\n  -  ---\n", text)

    def test_without_rich(self):
        """On a terminal, too, it is plain then."""
        terminal = Terminal()
        with mock.patch.dict(sys.modules, {"rich": None}):
            report.show(RESULT, terminal)
        self.assertEqual(terminal.getvalue(), report.as_text(RESULT))

    def test_show(self):
        """Plain where it is no terminal, and the same words where it is one."""
        plain, terminal = io.StringIO(), Terminal()
        report.show(RESULT, plain)
        self.assertEqual(plain.getvalue(), report.as_text(RESULT))
        report.show(RESULT, terminal)
        for word in ("limit: How many?", "L7 *_http_*", "9,500", "10.0.0.1 `is` full", "6.1_x"):
            self.assertIn(word, terminal.getvalue())


class RstTests(SynchronousTestCase):
    def test_rst(self):
        """It is read without a complaint, and says the same."""
        if importlib.util.find_spec("docutils") is None:
            raise SkipTest("docutils is not installed")
        from docutils.core import publish_doctree

        text = report.as_rst(RESULT, "limit.svg")
        tree = publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 2})
        read = tree.astext()
        for word in ("A title", "L7 *_http_*", "9,500", "10.0.0.1 `is` full", "6.1_x"):
            self.assertIn(word, read)
        (table,) = tree.findall(lambda node: node.tagname == "table")
        entries = [node.astext() for node in table.findall(lambda each: each.tagname == "entry")]
        self.assertEqual(entries[:3], list(TABLE.columns))
        self.assertEqual(entries[3:], ["L4 (tcp)", "1,000", "0.5", "L7 *_http_*", "9,500", ""])
        (image,) = tree.findall(lambda node: node.tagname == "image")
        self.assertEqual((image["uri"], image["alt"]), ("limit.svg", "How many"))

    def test_no_plot(self):
        self.assertNotIn("figure", report.as_rst(RESULT))


class JsonTests(SynchronousTestCase):
    def test_json(self):
        (read,) = json.loads(report.as_json([RESULT]))
        self.assertEqual((read["name"], read["seconds"]), ("limit", 12.34))
        self.assertEqual(read["tables"][0]["rows"][1], ["L7 *_http_*", 9500, None])
        self.assertEqual(read["plots"][0]["series"][0]["points"], [[0, 0], [10, 5]])
