"""The mutation tester makes mutants that can run, keeps its sample, and has a reason for each equivalent."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOP = Path(__file__).parents[1]
SOURCE = b'''
"""A docstring."""

class A:
    __slots__ = ("names",)

    def f(self, a: "int", b: int = 3) -> str:
        """Another."""
        while not a or b >= 2:
            self.x = min(a, -b)
            a += 1
            if a is None and (
                b
                not in (4, 5)
            ):
                raise ValueError("a sentence is prose", a)
        try:
            self.call("name", flag=True)
        except (KeyError,
                ValueError):
            return f"more {a + 1}"
        return "name" if a == b else ""
'''


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", TOP / "tools" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def made(mutant: Any, source: bytes) -> bytes:
    text: bytes = source[: mutant.start] + mutant.text.encode() + source[mutant.end :]
    return text


def test_what_is_changed(mutate: ModuleType) -> None:
    found = mutate.Mutations("a.py", SOURCE).found
    changes = {(mutant.before, mutant.after) for mutant in found}
    loop = "while not a or b >= 2:"
    for before, after in [
        (loop, "while (not (not a or b >= 2)):"),
        (loop, "while (a) or b >= 2:"),
        (loop, "while not a and b >= 2:"),
        (loop, "while not a or b > 2:"),
        (loop, "while not a or b >= 3:"),
        ("self.x = min(a, -b)", "pass"),
        ("self.x = min(a, -b)", "self.x = max(a, -b)"),
        ("self.x = min(a, -b)", "self.x = min(a, (b))"),
        ("a += 1", "a -= 1"),
        ("a += 1", "a += 2"),
        ("if a is None and (", "if a is not None and ("),
        ("not in (4, 5)", "in (4, 5)"),
        ('raise ValueError("a sentence is prose", a)', "pass"),
        ('self.call("name", flag=True)', "pass"),
        ('self.call("name", flag=True)', 'self.call("name", flag=False)'),
        ('self.call("name", flag=True)', "self.call('nameX', flag=True)"),
        ("except (KeyError, ValueError):", "except ():"),
        ('return f"more {a + 1}"', "return None"),
        ('return "name" if a == b else ""', 'return "name" if a != b else ""'),
        ('def f(self, a: "int", b: int = 3) -> str:', 'def f(self, a: "int", b: int = 4) -> str:'),
    ]:
        assert (before, after) in changes, (before, after)
    for mutant in found:
        assert mutant.function == "A.f"
        assert "docstring" not in mutant.before
        assert "__slots__" not in mutant.before
        assert "prose" not in mutant.before or mutant.after == "pass"


def test_mutants_are_python_with_the_same_lines(mutate: ModuleType) -> None:
    ours = list(mutate.mutants_of(TOP))
    assert len(ours) > 4000
    everything = [(mutant, SOURCE) for mutant in mutate.Mutations("a.py", SOURCE).found]
    everything += [(mutant, (TOP / mutant.file).read_bytes()) for mutant in ours[::40]]
    for mutant, source in everything:
        changed = made(mutant, source)
        ast.parse(changed)
        assert changed != source
        assert changed.count(b"\n") == source.count(b"\n"), mutant
    assert len({mutant.key for mutant in ours}) == len(ours)


def test_the_sample_stays_when_lines_move(mutate: ModuleType) -> None:
    def sample(source: bytes) -> list[tuple[str, ...]]:
        found = mutate.Mutations("a.py", source).found
        return [mutant.key for mutant in sorted(found, key=lambda mutant: mutant.place(7))]

    assert sample(SOURCE) == sample(b"# a comment\n\n" + SOURCE)


def test_each_equivalent_has_a_reason_and_is_listed_once(mutate: ModuleType) -> None:
    listed = tomllib.loads((TOP / "tools" / "mutate_equivalents.toml").read_text())["equivalent"]
    keys = [tuple(row[name] for name in mutate.KEY) for row in listed]
    assert len(set(keys)) == len(keys)
    assert all(len(row["reason"]) > 20 for row in listed)
