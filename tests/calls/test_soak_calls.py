"""The call soak in short; `tests/soak/calls.py` runs it for long and tells what it shows."""

from __future__ import annotations

from pathlib import Path

from soak.calls import soak


def test_callers_that_cancel_time_out_and_are_killed_leave_nothing_behind(tmp_path: Path) -> None:
    figures = soak(tmp_path, calls=800, minutes=1, processes=3, threads=4, kill_every=200, seed=1)
    assert figures.kills >= 1
    assert figures.processes == 3 + figures.kills
    assert figures.cancelled
    assert figures.timed_out
    assert figures.refused == 0
