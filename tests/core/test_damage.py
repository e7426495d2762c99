"""State files that something else has written to: nothing crashes, and damage stays in its cell.

Each run is a child process, so that a crash is a failed test.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import damage
import pytest
from children import ended, forked
from samples import seed


def run(sample: str, work: Callable[[random.Random], damage.Found]) -> None:
    def child() -> None:
        found = work(random.Random(f"{seed()} {sample}"))
        assert found.damages > 100
        assert not found.problems, found.problems[:10]

    seed()  # before the fork, so that the run prints it
    assert ended(forked(child)) == 0


def test_a_mapped_file(tmp_path: Path) -> None:
    run("mapped", lambda dice: damage.mapped(tmp_path / "state", dice, 5))


def test_a_file_at_rest(tmp_path: Path) -> None:
    run("at rest", lambda dice: damage.at_rest(tmp_path / "state", dice, 29))


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_file_under_calls(tmp_path: Path) -> None:
    run("live", lambda dice: damage.live(tmp_path / "state", dice, 1.0))
