"""No two classes of the package have the same name, private ones and those of the native core included."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import fastroute

PACKAGE = Path(fastroute.__file__).parent


def classes() -> Iterator[tuple[str, str]]:
    """Each class's name, without leading underscores, and its file and line."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield node.name.lstrip("_"), f"{path.relative_to(PACKAGE)}:{node.lineno}"
    for path in sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxi")]):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := re.match(r"(?:cdef )?class (\w+)", line):
                yield found[1].lstrip("_"), f"{path.relative_to(PACKAGE)}:{number}"


def test_every_class_has_a_name_of_its_own() -> None:
    places = defaultdict(list)
    for name, place in classes():
        places[name].append(place)
    assert {"Client", "LiveEndpoint", "Endpoint"} <= places.keys()
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
