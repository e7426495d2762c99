"""docs/architecture.md names files and functions that exist, and every room."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastroute"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

LINKS = sorted(set(re.findall(r"\]\(([^)#]+)\)", PAGE)))
PATHS = sorted(set(re.findall(r"`((?:\w+/)*\w+\.(?:py|pxi)|(?:\w+/)+)(?::[\w.]+)?`", PAGE)))
NAMES = sorted(set(re.findall(r"`((?:\w+/)*\w+\.py):([\w.]+)`", PAGE)))
NOT_YET = {"batch/", "telemetry/"}


def exists(path: str) -> bool:
    return any((base / path).exists() for base in (PACKAGE, ROOT))


@pytest.mark.parametrize("link", LINKS)
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).exists()


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path: str) -> None:
    assert exists(path) is (path not in NOT_YET)


@pytest.mark.parametrize(("path", "name"), NAMES)
def test_every_name_is_defined_there(path: str, name: str) -> None:
    scope: list[ast.stmt] = ast.parse((PACKAGE / path).read_text(encoding="utf-8")).body
    for part in name.split("."):
        defined = {
            node.name: node
            for node in scope
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        }
        assert part in defined, f"{path} defines no {name}"
        scope = defined[part].body


def test_every_room_is_in_the_table() -> None:
    table = PAGE.partition("## Rooms")[2].partition("```mermaid")[0]
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == {room for room in rooms if f"[`{room}/`]" in table}
    assert len(NAMES) > 20
