"""Records with more than five fields are built by keyword, so that the meaning of each value is visible."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import fastroute
from fastroute import events, types
from fastroute.calls import settlement
from fastroute.routing import plan

PACKAGE = Path(fastroute.__file__).parent
BENCHMARKS = PACKAGE.parent / "benchmarks"
FILES = sorted((*PACKAGE.rglob("*.py"), *BENCHMARKS.rglob("*.py")))
MOST = 5

CLASSES = {
    node.name
    for path in PACKAGE.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.ClassDef)
} | {"cls"}


def too_long(source: str) -> Iterator[str]:
    """The calls of a class of the package with more than five positional arguments, by line."""
    tree = ast.parse(source)
    foreign = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and not node.level
        and not (node.module or "").startswith("fastroute")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) > MOST:
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            if name in CLASSES - foreign:
                yield f"line {node.lineno}: {name} with {len(node.args)} positional arguments"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_no_class_is_called_with_more_than_five_positional_arguments(path: Path) -> None:
    assert not list(too_long(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "Attempt(1, 2, 3, 4, 5, 6)",
        "types.Attempt(1, 2, 3, 4, 5, 6, 7, tags={})",
        "cls(1, 2, 3, 4, 5, 6)",
        "def f():\n    return [Route(a, b, c, d, e, f) for a in b]",
    ],
)
def test_such_a_call_is_found(source: str) -> None:
    assert list(too_long(source))


@pytest.mark.parametrize(
    "source",
    [
        "Attempt(1, 2, 3, 4, 5)",
        "Attempt(id=1, call_id=2)",
        "print(1, 2, 3, 4, 5, 6)",
        "from rich import Group\nGroup(1, 2, 3, 4, 5, 6)",
    ],
)
def test_other_calls_are_not(source: str) -> None:
    assert not list(too_long(source))


@pytest.mark.parametrize(
    "record",
    [
        types.Attempt,
        types.Route,
        types.Completion,
        types.Chunk,
        events.BudgetExceededEvent,
        plan.Candidate,
        settlement.Sinks,
    ],
    ids=lambda record: record.__name__,
)
def test_a_long_record_takes_keywords_only(record: type) -> None:
    assert all(field.kw_only for field in attrs.fields(record))
