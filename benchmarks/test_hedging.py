"""The comparison with and without hedging runs, and every call in it has one answer."""

from __future__ import annotations

import pytest

from .hedging import run


@pytest.mark.parametrize("enabled", [False, True])
def test_every_call_is_answered_once(enabled: bool) -> None:
    found = run(enabled, 40, threads=8, stuck=0.0, warm=60)
    assert len(found.latencies) == 40
    assert 40 <= found.requests <= 40 + (2 if enabled else 0) + found.won + found.lost
    assert found.won + found.lost <= (5 if enabled else 0)
