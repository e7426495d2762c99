"""Processes that share a ledger and too few cells for the values of a tag spend each limit exactly."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from budget_clock import NANO
from children import ended, forked

from fastroute import _core, errors, events
from fastroute.budget import Budgets, spent_in
from fastroute.config import BudgetConfig
from fastroute.ledger import Ledger
from fastroute.types import Attempt

USERS, PROCESSES, LIMIT = 70, 3, 4
BUDGET = BudgetConfig(name="user", limit=LIMIT, window="total", per="tag:user")


def paid(number: str, user: str, time: float) -> Attempt:
    return Attempt(
        id=number,
        call_id=number,
        time=time,
        endpoint="e",
        provider="p",
        model="m",
        outcome="ok",
        cost_nano=NANO,
        latency=0.1,
        tags={"user": user},
    )


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_what_one_process_has_just_recorded_counts_when_another_begins_the_value_again(
    tmp_path: Path,
) -> None:
    """An entry reaches the database later than its call returns: its journal is read until then."""
    segment = _core.Segment(64)

    def work(process: int) -> None:
        draw = random.Random(process)
        with Ledger(tmp_path / "ledger.db") as ledger:
            budgets = Budgets((BUDGET,), segment, spent_in(ledger), events.Hooks())
            left = [str(user) for user in range(USERS)]
            number = 0
            while left:
                user = draw.choice(left)
                try:
                    reservation = budgets.reserve(NANO, {"user": user}, 60)
                except errors.BudgetExceeded as error:
                    if "is spent and $0 reserved" in str(error):
                        left.remove(user)
                    continue
                reservation.sent()
                number += 1
                recorded = ledger.append(paid(f"{process}-{number}", user, 1.0))
                reservation.settle(NANO, recorded=recorded)

    pids = [forked(lambda process=process: work(process)) for process in range(PROCESSES)]  # type: ignore[misc]
    assert [ended(pid) for pid in pids] == [0] * PROCESSES
    with Ledger(tmp_path / "ledger.db") as ledger:
        spent = [ledger.spent(tags={"user": str(user)}) for user in range(USERS)]
        assert spent == [LIMIT * NANO] * USERS
        assert ledger.totals().cost_nano == LIMIT * NANO * USERS
