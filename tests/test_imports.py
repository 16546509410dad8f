"""The plan of the house, held: imports go one way, sockets stay in net/, no file grows too long.

:func:`faults` reads one file's text and never imports it; the tests run it over every file of the
package, and over bad samples, to show that it can fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import proxykit

PACKAGE = Path(proxykit.__file__).resolve().parent
LONGEST = 500

#: A file may import from its own row and from those above it.
_ROWS: tuple[tuple[str, ...], ...] = (
    (
        "proxykit",
        "model",
        "upkeep",
        "errors",
        "interfaces",
        "components",
        "checks",
        "strict",
        "tomllines",
    ),
    ("wire",),
    ("core",),
    ("net",),
    ("modes", "sources"),
    ("config", "tables", "cluster_tables", "admin_table", "plan_report", "top", "top_screen"),
    ("ops", "lab", "testing"),
    ("flags", "tap", "cli", "__main__"),
    ("plugins",),
)
RANKS = {name: rank for rank, row in enumerate(_ROWS) for name in row}

#: (module, function, imported): components lists what is in the package of names, so that function
#: needs the package itself, and nothing that the names stand for.
_EXCEPTIONS = {("proxykit.components", "components", "proxykit.plugins")}

_REACTOR = "twisted.internet.reactor"
_MAY_IMPORT_THE_REACTOR = {"proxykit.tap", "proxykit.cli", "proxykit.net.reactor"}
_NO_SOCKETS = {"wire", "core"}
_CORE_MAY_IMPORT = {
    "twisted.internet.address",  # names for addresses, and no more
    "twisted.internet.defer",
    "twisted.internet.interfaces",
}


def is_type_checking(test: ast.expr) -> bool:
    """Whether an ``if`` is about ``TYPE_CHECKING``, under which nothing is imported at run time."""
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


class _Imports(ast.NodeVisitor):
    """Collects (line, function or "", imported name), the name as fully as the text gives it."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.function = ""
        self.found: list[tuple[int, str, str]] = []

    def visit_If(self, node: ast.If) -> None:
        for child in node.orelse if is_type_checking(node.test) else (*node.body, *node.orelse):
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer, self.function = self.function, node.name
        self.generic_visit(node)
        self.function = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        self.found.extend((node.lineno, self.function, alias.name) for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self.package.split(".")
            above = parents[: len(parents) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        self.found.extend(
            (node.lineno, self.function, f"{base}.{alias.name}") for alias in node.names
        )


def under(name: str, module: str) -> bool:
    """Whether a name is that module or something in it."""
    return name == module or name.startswith(module + ".")


def room(module: str) -> str:
    """Which part of the house a module of proxykit is in: ``proxykit.core.flow`` in ``core``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def faults(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Everything in the text of one module of proxykit that breaks a rule, one line each.

    :param module: its full name, such as ``proxykit.core.flow``.
    :param is_package: whether the text is that of its ``__init__.py``.
    """
    here = room(module)
    if here not in RANKS:
        yield f"{module}: no row of the plan names {here}"
        return
    if (lines := source.count("\n")) > LONGEST:
        yield f"{module}: {lines} lines, more than {LONGEST}"
    visitor = _Imports(module if is_package else module.rpartition(".")[0])
    visitor.visit(ast.parse(source))
    for line, function, name in visitor.found:
        if (module, function, name) in _EXCEPTIONS:
            continue
        place = f"{module}:{line}: imports {name}"
        if under(name, "proxykit"):
            yield from _inner_faults(place, module, here, name)
        else:
            yield from _outer_faults(place, module, here, name)


def _inner_faults(place: str, module: str, here: str, name: str) -> Iterator[str]:
    # `from proxykit import __version__` names something in the package itself.
    there = room(name) if room(name) in RANKS else "proxykit"
    if there == "proxykit" and name not in ("proxykit", "proxykit.__version__"):
        yield f"{place}, which no row of the plan names"
    elif here == "plugins" and there != "components":
        yield f"{place}; a plugin file holds names, and imports proxykit.components alone"
    elif RANKS[there] > RANKS[here]:
        yield f"{place}; imports go from {there} to {here}, not back"


def _outer_faults(place: str, module: str, here: str, name: str) -> Iterator[str]:
    if under(name, _REACTOR) and module not in _MAY_IMPORT_THE_REACTOR:
        yield f"{place}; the reactor is an argument"
    if here not in _NO_SOCKETS:
        return
    if under(name, "socket"):
        yield f"{place}; {here} knows no sockets"
    if here == "wire" and under(name, "twisted"):
        yield f"{place}; wire is bytes in, results out"
    if (
        here == "core"
        and under(name, "twisted.internet")
        and not any(under(name, allowed) for allowed in _CORE_MAY_IMPORT)
    ):
        yield f"{place}; core knows no sockets and no reactor"


def module_name(path: Path) -> str:
    """The module that a file under the package is."""
    parts = ("proxykit", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class HouseTests(SynchronousTestCase):
    def test_every_file(self):
        paths = sorted(PACKAGE.rglob("*.py"))
        self.assertIn(PACKAGE / "model.py", paths)
        found = [
            fault
            for path in paths
            for fault in faults(
                path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py"
            )
        ]
        self.assertEqual(found, [], "\n" + "\n".join(found))

    def test_every_test_is_found(self):
        """Trial walks packages alone, and says nothing of tests that are in no package."""
        tests = Path(__file__).resolve().parent
        self.assertEqual(
            [
                str(path)
                for path in tests.rglob("test_*.py")
                if not (path.parent / "__init__.py").exists()
            ],
            [],
        )

    def test_no_test_is_too_long(self):
        tests = Path(__file__).resolve().parent
        lengths = {path: path.read_text().count("\n") for path in tests.rglob("*.py")}
        self.assertEqual([str(path) for path, lines in lengths.items() if lines > LONGEST], [])


class CheckerTests(SynchronousTestCase):
    def assert_refused(self, module, source, words, is_package=False):
        found = list(faults(source, module, is_package))
        self.assertEqual(len(found), 1, (source, found))
        self.assertIn(words, found[0])

    def test_bad(self):
        for module, source, words in (
            ("proxykit.wire.http1", "from proxykit.core import flow", "not back"),
            ("proxykit.core.flow", "import proxykit.net.connector", "not back"),
            ("proxykit.core.flow", "from ..net import pool", "not back"),
            ("proxykit.core.flow", "def f():\n    from proxykit.modes.tcp import TcpMode", "not"),
            ("proxykit.core.flow", "async def f():\n    import proxykit.tap", "not back"),
            ("proxykit.modes.tcp", "from proxykit import config", "not back"),
            ("proxykit.ops.service", "import proxykit.plugins.builtin", "not back"),
            ("proxykit.components", "from proxykit import plugins", "not back"),
            ("proxykit.components", "def other():\n    from proxykit import plugins", "not back"),
            (
                "proxykit.components",
                "def components():\n    from proxykit.plugins import builtin",
                "not back",
            ),
            ("proxykit.net.pool", "import proxykit.cellar", "no row"),
            ("proxykit.cellar.wine", "", "no row"),
            ("proxykit.plugins.mine", "from proxykit.modes.tcp import TcpMode", "names"),
            ("proxykit.plugins.mine", "from proxykit import model", "names"),
            ("proxykit.net.pool", "from twisted.internet import reactor", "an argument"),
            ("proxykit.net.pool", "import twisted.internet.reactor", "an argument"),
            ("proxykit.modes.tcp", "def f():\n    from twisted.internet import reactor", "an arg"),
            ("proxykit.core.flow", "import socket", "no sockets"),
            ("proxykit.wire.http1", "from socket import AF_INET", "no sockets"),
            ("proxykit.core.flow", "from twisted.internet import task", "no reactor"),
            ("proxykit.core.flow", "import twisted.internet", "no reactor"),
            ("proxykit.wire.http1", "from twisted.internet.defer import Deferred", "bytes in"),
            ("proxykit.wire.http1", "from twisted.python import log", "bytes in"),
            ("proxykit.core.flow", "try:\n    import socket\nexcept ImportError:\n    raise", "no"),
            (
                "proxykit.core.flow",
                "if TYPE_CHECKING:\n    pass\nelse:\n    import proxykit.net",
                "not back",
            ),
            ("proxykit.core.flow", "if x:\n    import proxykit.net", "not back"),
            ("proxykit.model", "\n" * (LONGEST + 1), "lines"),
        ):
            with self.subTest(module=module, source=source):
                self.assert_refused(module, source, words)
        self.assert_refused("proxykit.core", "from ..net import pool", "not back", is_package=True)

    def test_good(self):
        for module, source in (
            ("proxykit.core.flow", "from proxykit.core.waiting import Waiting"),
            ("proxykit.core.flow", "from .waiting import Waiting"),
            ("proxykit.core.flow", "from twisted.internet.defer import Deferred"),
            ("proxykit.core.flow", "from twisted.internet import defer, interfaces"),
            ("proxykit.core.flow", "from twisted.python.failure import Failure"),
            ("proxykit.core.flow", "from typing import TYPE_CHECKING\nfrom attrs import frozen"),
            ("proxykit.core.flow", "if TYPE_CHECKING:\n    from proxykit.net.pool import Pool"),
            ("proxykit.core.flow", "if typing.TYPE_CHECKING:\n    import socket"),
            ("proxykit.net.listener", "import socket\nfrom twisted.internet import tcp"),
            ("proxykit.net.reactor", "def install():\n    from twisted.internet import reactor"),
            ("proxykit.tap", "from proxykit.ops.service import ProxyService"),
            ("proxykit.cli", "from proxykit import __version__, config"),
            ("proxykit.components", "def components(kind):\n    from proxykit import plugins"),
            ("proxykit.plugins.mine", "from proxykit.components import Component"),
            ("proxykit.model", "\n" * LONGEST),
        ):
            with self.subTest(module=module, source=source):
                self.assertEqual(list(faults(source, module)), [])
