"""Tests, benchmarks and doors use the public and room-level names of the package, never private ones.

A private name begins with a single underscore. What counts as reaching for one: an attribute of anything but
``self``, ``cls`` and ``super()``, an import, a string handed to `setattr` and its like, and the text of a
script.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
PLACES = ("tests", "benchmarks", "tools", "fastroute/gateway", "fastroute/integrations", "fastroute/cli")
FILES = [
    path
    for place in PLACES
    for path in sorted((TOP / place).rglob("*.py"))
    if path != Path(__file__).resolve()
]

NOT_OURS = {
    "_core": "the native core's module, which has public names only",
    "_exit": "os._exit ends a forked child",
    "_current_frames": "sys._current_frames finds what a thread waits for",
    "_request_id": "documented by the OpenAI and Anthropic SDKs",
    "_put_conn": "urllib3 has no other moment at which a connection is free again",
    "_available_connections": "redis-py lists the connections of a pool nowhere else",
}
"""Names of the standard library and of other packages, and why there is no other way."""

_BY_NAME = {"setattr", "getattr", "delattr", "hasattr", "object"}  # the last one is that of `patch.object`
_PRIVATE = re.compile(r"_(?!_)\w+")
_DOTTED = re.compile(r"(?<![\w.`])(?!self\b|cls\b)[\w.\[\]()'\"]*[\w\])]\.(_(?!_)\w+)")


def is_private(name: str) -> bool:
    return _PRIVATE.fullmatch(name) is not None and name not in NOT_OURS


def private_in(module: str) -> list[str]:
    return [part for part in module.split(".") if is_private(part)]


def reaches(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each reach."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if ast.unparse(node.value) not in ("self", "cls", "super()"):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("fastroute")):
            for name in [*private_in(node.module or ""), *(alias.name for alias in node.names)]:
                if is_private(name):
                    yield node.lineno, name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("fastroute."):
                    yield from ((node.lineno, name) for name in private_in(alias.name))
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for given in node.args if called in _BY_NAME else ():
                if (
                    isinstance(given, ast.Constant)
                    and isinstance(given.value, str)
                    and is_private(given.value)
                ):
                    yield node.lineno, given.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for found in _DOTTED.finditer(node.value):
                if is_private(found[1]):
                    yield node.lineno, found[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TOP)))
def test_no_private_name_is_used(path: Path) -> None:
    found = sorted(reaches(ast.parse(path.read_text(encoding="utf-8"))))
    assert found == []


def test_the_exceptions_are_real() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    assert [name for name in NOT_OURS if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize(
    "source",
    [
        "client._held",
        "client.runtime()._held[0]",
        "from fastroute.calls.queue import _Time",
        "from fastroute.testing._wire import take",
        "from .app import _held",
        "import fastroute.testing._wire",
        "monkeypatch.setattr(queue, '_POLL', 1)",
        "monkeypatch.setattr('fastroute.calls.queue._POLL', 1)",
        "getattr(client, '_held')",
        "run('''import fastroute\nprint(fastroute.Client()._held)''')",
        "run(f'print({count}, client.queue[0]._held)')",
    ],
)
def test_a_reach_is_found(source: str) -> None:
    assert len(list(reaches(ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "self._held",
        "cls._held",
        "super()._held()",
        "os._exit(0)",
        "a.__dict__",
        "from fastroute import _core",
        "def _own(): ...",
        "'a._'",
    ],
)
def test_what_is_no_reach_is_left_alone(source: str) -> None:
    assert list(reaches(ast.parse(source))) == []
