"""What is written of the metrics, in the docs and in examples/prometheus: all of it exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxykit.ops.metric_names import FAMILIES
from proxykit.ops.metrics import render
from proxykit.ops.service import ProxyService

TREE = Path(__file__).resolve().parents[2]
EXAMPLES = TREE / "examples" / "prometheus"

_NAME = re.compile(r"\b(?:proxykit|process|python)_[a-z_]+")
#: A name and what is chosen of it.
_CHOSEN = re.compile(r"\b(proxykit_[a-z_]+)\{([^}]*)\}")
#: What Prometheus adds by itself.
_ADDED = {"instance", "job", "le"}
_SUFFIXES = ("_bucket", "_sum", "_count")


def expressions() -> Iterator[str]:
    """All that the dashboard asks Prometheus for."""
    dashboard = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def family(name: str) -> str:
    """Of which family a series is."""
    histograms = {each.name for each in FAMILIES if each.kind == "histogram"}
    for suffix in _SUFFIXES:
        if name.removesuffix(suffix) in histograms:
            return name.removesuffix(suffix)
    return name


class ExamplesTests(SynchronousTestCase):
    def setUp(self) -> None:
        text = render(ProxyService(Clock())).decode()
        self.there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))

    def check(self, text: str) -> int:
        """Whether all that is named exists, with such labels.

        :returns: how many names there are.
        """
        labels = {each.name: {*each.labels, *_ADDED} for each in FAMILIES}
        names = {family(name) for name in _NAME.findall(text)}
        self.assertEqual(names - self.there, set())
        for name, chosen in _CHOSEN.findall(text):
            used = set(re.findall(r"(\w+)\s*(?:=~|=|!=|!~)", chosen))
            self.assertEqual(used - labels[family(name)], set(), (name, chosen))
        return len(names)

    def test_dashboard(self) -> None:
        found = list(expressions())
        self.assertGreater(self.check("\n".join(found)), 30)
        self.assertGreater(len(found), 30)

    def test_dashboard_panels(self) -> None:
        """Each has an id and a place of its own, a title, and says what it shows."""
        dashboard = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
        panels = dashboard["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            self.assertEqual(cells & taken, set(), panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells
            if panel["type"] != "row":
                self.assertTrue(panel["title"] and panel["description"] and panel["targets"])

    def test_alerts(self) -> None:
        """Their advice, too."""
        self.assertGreater(self.check((EXAMPLES / "alerts.yml").read_text()), 15)

    def test_tests_of_alerts(self) -> None:
        """Each alert has one, and the series there are real ones."""
        tests = (EXAMPLES / "alerts_test.yml").read_text()
        self.check(tests)
        alerts = re.findall(r"- alert: (\w+)", (EXAMPLES / "alerts.yml").read_text())
        self.assertGreater(len(alerts), 10)
        self.assertEqual(set(alerts), set(re.findall(r'alertname="(\w+)"', tests)))

    def test_a_name_that_is_wrong(self) -> None:
        """Is noticed."""
        for text in ("proxykit_budget_frees", 'proxykit_budget_free{cluster="x"}'):
            with self.assertRaises(self.failureException):
                self.check(text)


class DocsTests(SynchronousTestCase):
    def test_all(self) -> None:
        """The table has each family, its labels and its help, and nothing else."""
        text = (TREE / "docs" / "metrics.rst").read_text()
        rows = re.findall(r"\* - ``(\w+)``(?: \{([^}]*)\})?\n +- (.*)\n", text)
        self.assertEqual(
            rows, [(each.name, ", ".join(each.labels), each.help) for each in FAMILIES]
        )
