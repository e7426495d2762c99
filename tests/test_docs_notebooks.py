"""The cells of the notebooks in docs/ run, one after the other, as they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    for cell in cells:
        assert not cell["outputs"], "a notebook is committed without its outputs"
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    if path.stem == "learned":
        assert names["found"].accepted
        assert sum(names["sent"].values()) == 100
        assert min(names["sent"].values()) > 10


def test_there_is_one() -> None:
    assert NOTEBOOKS
