"""Imports go one way, from rows further up only, and importing the package costs little."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastroute

PACKAGE = Path(fastroute.__file__).parent

# One line a row; what stands further down may import what stands above it, never the other way round and
# never its neighbours. A folder is one module: what is inside it may import each other.
ROWS = [
    {"errors", "_core", "figures"},
    {"types", "platform"},
    {"events"},
    {"providers", "config"},
    {"ledger", "quality", "budget"},
    {"state", "transport"},
    {"routing"},
    {"calls"},
    {"runtime"},
    {"client"},
    {"testing"},
    {"integrations"},
    {"gateway"},
    {"cli"},
]
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}
MAY_IMPORT_REQUESTS = {
    "transport",
    "calls",
    "runtime",
    "client",
    "testing",
    "integrations",
    "cli",
}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    """The package's modules that a file imports, lazily or not, but for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = list(path.relative_to(PACKAGE).parent.parts)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parents[: len(parents) - node.level + 1]
            dotted = [*base, *(node.module.split(".") if node.module else [])]
            found += [dotted[0]] if dotted else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastroute":
            dotted = (node.module or "").split(".")[1:]
            found += [dotted[0]] if dotted else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fastroute.")]
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upward(path: Path) -> None:
    module = module_of(path)
    assert module in ROW_OF, f"{module} has no row: give it one"
    for name in imported(path):
        if name in (module, "__version__") or name not in ROW_OF:
            continue
        assert ROW_OF[name] < ROW_OF[module], f"{module} (row {ROW_OF[module]}) imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_network_modules_import_requests(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0)
        for alias in node.names
    }
    if names & {"requests", "urllib3"}:
        assert module_of(path) in MAY_IMPORT_REQUESTS


def test_the_rows_are_real() -> None:
    """A row for a module that is gone would let a new one of that name slip in unseen."""
    there = {module_of(path) for path in FILES} | {"_core"}
    assert set(ROW_OF) <= there


def test_importing_the_package_imports_nothing_heavy_and_starts_nothing() -> None:
    code = (
        "import sys, threading, fastroute\n"
        "heavy = {'requests', 'urllib3', 'cattrs', 'sqlite3', 'click', 'rich', 'fastroute.client'}\n"
        "print(sorted(heavy & set(sys.modules)), threading.active_count())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] 1"


def test_every_public_name_loads() -> None:
    homes = {sys.modules[getattr(fastroute, name).__module__] for name in fastroute.__all__ if name[0] != "_"}
    classes = {
        name
        for home in homes
        for name, it in vars(home).items()
        if inspect.isclass(it) and it.__module__ == home.__name__
    }
    assert {name for name in classes if hasattr(fastroute, name)} == {*fastroute.__all__} - {"__version__"}
