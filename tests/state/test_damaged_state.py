"""Clients that open damaged state files. The core's own tests of damage are in tests/core."""

from __future__ import annotations

import random
from pathlib import Path

import damaged_clients
from samples import seed


def test_a_client_calls_and_its_budget_knows_what_was_spent(tmp_path: Path) -> None:
    found = damaged_clients.opened(tmp_path / "state", random.Random(f"{seed()} clients"), 25)
    assert found.damages == 25
    assert not found.problems
