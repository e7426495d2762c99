"""One plain call enters few files of the package, with few hand-offs between them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "count_hand_offs.py"
MOST = {"files": 28, "hand-offs": 65}
"""The limits of a plain call, as `tools/count_hand_offs.py` counts. Lower them when the walk gets shorter."""


@pytest.fixture(scope="module")
def printed() -> str:
    run = subprocess.run([sys.executable, TOOL, "-v"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_plain_call_is_within_the_limits(printed: str) -> None:
    found = {name: int(figure) for name, figure in re.findall(r"^(files|hand-offs): (\d+)$", printed, re.M)}
    assert found.keys() == MOST.keys()
    assert all(found[name] <= MOST[name] for name in MOST), printed


def test_the_figures_are_those_of_the_printed_walk(printed: str) -> None:
    steps = re.findall(r"^ *(\d*) +([\w/]+\.py):\S+$", printed, re.M)
    files = [file for _, file in steps]
    assert files[0] == "client.py"
    assert any(file.startswith("transport/") for file in files)
    changes = [place for place in range(1, len(files)) if files[place] != files[place - 1]]
    numbered = [(place, int(number)) for place, (number, _) in enumerate(steps) if number]
    assert numbered == list(zip(changes, range(1, len(changes) + 1)))
    assert f"files: {len(set(files))}\nhand-offs: {len(changes)}\n" in printed
