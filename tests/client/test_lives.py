"""The soak of many calls and clients in short; `tests/soak/lives.py` runs it for long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from soak.lives import run


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_neither_calls_nor_clients_leave_anything(tmp_path: Path) -> None:
    seen: list[str] = []
    grown = run(1500, 60, tmp_path, lambda what, _: seen.append(what), rounds=5)
    assert grown == []
    assert len(seen) == 10
