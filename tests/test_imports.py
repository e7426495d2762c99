"""Imports go one way, from rows further up only, and importing the package costs little."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fastroute

PACKAGE = Path(fastroute.__file__).parent

# The rows of docs/architecture.md. A room imports from rows above its own only: not from its neighbours, and
# not from below, be it lazily or for type checking. Files of one room may import each other, not in a circle.
ROWS = [
    {"_core", "figures", "json_codec"},
    {"types", "testing"},
    {"errors", "events"},
    {"platform"},
    {"config", "providers"},
    {"transport", "budget", "ledger", "quality"},
    {"state"},
    {"routing"},
    {"calls"},
    {"runtime"},
    {"client"},
    {"learning"},
    {"integrations"},
    {"gateway"},
    {"cli"},
    {"__main__"},
]
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
MAY_IMPORT_REQUESTS = {"transport", "calls", "runtime", "client", "testing", "integrations", "cli"}
GROUND = {"__init__", "__main__", "client", "errors", "events", "figures", "types"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(path: Path) -> str:
    """A file's module, as a dotted name below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.partition(".")[0]


MODULES = {module_of(path): path for path in FILES} | {"_core": PACKAGE / "_core.pyi"}


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports, lazily and for type checking too."""
    found = set()
    package = list(path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                dotted = [*base, *(node.module.split(".") if node.module else [])]
            elif (node.module or "").split(".")[0] == "fastroute":
                dotted = (node.module or "").split(".")[1:]
            else:
                continue
            for alias in node.names:
                whole = ".".join([*dotted, alias.name])
                found.add(whole if whole in MODULES else ".".join(dotted))
        elif isinstance(node, ast.Import):
            found |= {alias.name[len("fastroute.") :] for alias in node.names if "fastroute." in alias.name}
    return found - {"", module_of(path)}


IMPORTS = {module: imported(path) for module, path in MODULES.items() if path.suffix == ".py"}


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_rooms_import_from_rows_above_only(module: str) -> None:
    room = room_of(module)
    assert room in ROW_OF, f"{room} has no row: give it one here and in docs/architecture.md"
    for name in IMPORTS[module]:
        other = room_of(name)
        assert other == room or ROW_OF[other] < ROW_OF[room], f"{module} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports through a package's `__init__` do not count, because it only passes names on."""
    left = {
        module: {name for name in names if name in IMPORTS and not is_face(name)}
        for module, names in IMPORTS.items()
        if not is_face(module)
    }
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"in a circle, or importing one: {sorted(left)}"


def is_face(module: str) -> bool:
    """Whether it is a package's `__init__` that defines nothing itself."""
    path = MODULES[module]
    if path.name != "__init__.py":
        return False
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in body)


def test_no_headers_include_each_other_in_a_circle() -> None:
    headers = sorted((PACKAGE / "core").glob("*.h"))
    assert len(headers) > 3
    left = {
        path.name: set(re.findall(r'#include "(\w+\.h)"', path.read_text(encoding="utf-8")))
        for path in headers
    }
    while free := [name for name, names in left.items() if not names & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_only_the_ground_lies_beside_the_rooms() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == GROUND
    assert {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))} < ROW_OF.keys()


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
        assert room_of(module_of(path)) in MAY_IMPORT_REQUESTS


# The same thing for two back ends (HTTP and Redis, memory and Redis), or the format and the door of one API.
SHARED_FILE_NAMES = {"connection", "endpoints", "openai"}


def test_no_two_files_share_a_name() -> None:
    """A command of the CLI is named after what it shows, so `cli/` may repeat the name of a room's file."""
    names = Counter(path.stem for path in FILES if path.parent.name != "cli")
    shared = {name for name, times in names.items() if times > 1}
    assert shared - {"__init__", "__main__"} == SHARED_FILE_NAMES


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by their names alone."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not [name for name, times in names.items() if times > 1]


def test_the_rows_are_real() -> None:
    """A row without a room would admit a new room of that name without a review."""
    assert set(ROW_OF) == {room_of(module) for module in MODULES}


def test_importing_the_package_imports_nothing_heavy_and_starts_nothing() -> None:
    code = (
        "import sys, threading, fastroute\n"
        "heavy = {'requests', 'urllib3', 'sqlite3', 'click', 'rich', 'fastroute.client'}\n"
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
