"""A budget whose count in the shared state was damaged is rebuilt from the ledger, or refused."""

from __future__ import annotations

import logging
import mmap
from pathlib import Path

import pytest
from budget_clock import HOUR, NANO, Clock, Make, Spending, budget

from fastroute import _core, errors

KIND_MONEY = 10
FIRST_CELL = 66 * 64


class Shared:
    """A segment in a file, and its memory, which something else writes to."""

    def __init__(self, path: Path) -> None:
        with open(path, "w+b") as file:
            file.truncate(_core.Segment.size(256))
            self.segment = _core.Segment.in_file(file.fileno(), True)
            self.memory = mmap.mmap(file.fileno(), 0)

    def damage(self) -> None:
        """Changes a byte of every counter's number."""
        places = range(FIRST_CELL, len(self.memory), 64)
        found = [
            place for place in places if self.memory[place] & 15 == KIND_MONEY and self.memory[place + 24]
        ]
        assert found
        for place in found:
            self.memory[place + 16] ^= 0xFF


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path / "state")


def test_it_is_rebuilt_from_the_ledger_and_what_is_reserved(
    shared: Shared, make: Make, spending: Spending, caplog: pytest.LogCaptureFixture
) -> None:
    budgets = make(budget(limit=10), segment=shared.segment)
    spending.nano = 3 * NANO
    held = budgets.reserve(2 * NANO, {}, 60)
    held.sent()
    budgets.reserve(NANO, {}, 60).settle(NANO)
    spending.nano = 4 * NANO  # the ledger has that call
    shared.damage()
    with caplog.at_level(logging.ERROR, "fastroute"):
        assert budgets.remaining({}) == 4 * NANO
    assert "was damaged" in caplog.text
    with pytest.raises(errors.BudgetExceeded):
        budgets.reserve(4 * NANO + 1, {}, 60)
    held.settle(NANO)  # it was counted in full when the window began anew
    assert budgets.remaining({}) == 4 * NANO


def test_without_a_ledger_it_refuses_until_its_window_ends(shared: Shared, make: Make, clock: Clock) -> None:
    budgets = make(budget(limit=10, window="day"), segment=shared.segment, recorded=False)
    budgets.reserve(3 * NANO, {}, 60).settle(3 * NANO)
    shared.damage()
    with pytest.raises(errors.BudgetExceeded, match="damaged, and without a ledger") as caught:
        budgets.reserve(1, {}, 60)
    assert caught.value.retry_after == 12 * HOUR
    again = make(budget(limit=10, window="day"), segment=shared.segment, recorded=False)
    with pytest.raises(errors.BudgetExceeded, match="damaged, and without a ledger"):
        again.reserve(1, {}, 60)
    for _ in range(2):  # in the cell of the next day, and in the damaged one
        clock.time += 24 * HOUR
        assert budgets.reserve(10 * NANO, {}, 60)


def test_without_a_ledger_a_soft_budget_begins_again(shared: Shared, make: Make) -> None:
    budgets = make(budget(limit=10, hard=False), segment=shared.segment, recorded=False)
    budgets.reserve(3 * NANO, {}, 60).settle(3 * NANO)
    shared.damage()
    assert budgets.reserve(9 * NANO, {}, 60)


def test_other_budgets_go_on(shared: Shared, make: Make, spending: Spending) -> None:
    one = make(budget(name="one", limit=10), segment=shared.segment, recorded=False)
    one.reserve(3 * NANO, {}, 60).settle(3 * NANO)
    shared.damage()
    other = make(budget(name="other", limit=10), segment=shared.segment, recorded=False)
    other.reserve(4 * NANO, {}, 60).settle(4 * NANO)
    with pytest.raises(errors.BudgetExceeded):
        one.reserve(1, {}, 60)
    assert other.remaining({}) == 6 * NANO
