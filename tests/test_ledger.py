"""The ledger: nothing acknowledged is lost, and sums are exact."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastroute.ledger import Ledger, journal
from fastroute.types import Attempt

DAY = 86_400
NOON = 20_000 * DAY + 43_200.25


def attempt(n: int = 0, **fields: Any) -> Attempt:
    return Attempt(
        **{
            "id": os.urandom(16).hex(),
            "call_id": f"call-{n}",
            "time": NOON + n,
            "endpoint": "openai/gpt-4.1",
            "provider": "openai",
            "model": "gpt-4.1",
            "cost_nano": 1_000_003 + n,
            "prompt_tokens": 10,
            "latency": 0.1,
            **fields,
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


def segments(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(f"{path}.journal") if name.endswith(journal.SUFFIX))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for a condition, for a bounded time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


# ----------------------------------------------------------------------------------------------- entries


def test_an_entry_comes_back_as_it_was(ledger: Ledger) -> None:
    entry = attempt(
        tier="premium",
        level="expert",
        outcome="failed",
        status_code=503,
        error="InternalServerError",
        completion_tokens=7,
        cached_tokens=3,
        reasoning_tokens=2,
        usage_source="provider",
        cost_nano=None,
        latency=0.123456789,
        ttft=0.01,
        stream=True,
        maybe_billed=True,
        request_id="req-1",
        tags={"team": "søk", 'odd "name"': "a\nb"},
    )
    plain = attempt(1)
    ledger.append(entry)
    ledger.append(plain)
    assert ledger.entries() == [plain, entry]
    assert ledger.entries(1) == [plain]
    assert ledger.entries(tags={"team": "søk"}) == [entry]


def test_entries_survive_close_and_reopen(path: Path) -> None:
    with Ledger(path) as first:
        first.append(attempt(1, cost_nano=5))
    assert segments(path) == []
    with Ledger(path) as second:
        second.append(attempt(2, cost_nano=7))
        assert second.spent() == 12


def test_the_same_entry_twice_counts_once(ledger: Ledger) -> None:
    entry = attempt(cost_nano=5)
    ledger.append(entry)
    ledger.append(entry)
    assert ledger.totals().attempts == 1
    assert ledger.spent() == 5
