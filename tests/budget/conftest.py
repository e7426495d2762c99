"""Budgets with a clock that tests set."""

from __future__ import annotations

import pytest
from budget_clock import Clock, Make, Spending

from fastroute import _core, events
from fastroute.budget import Budgets
from fastroute.config import BudgetConfig


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spending() -> Spending:
    return Spending()


@pytest.fixture
def heard() -> list[events.Event]:
    return []


@pytest.fixture
def make(clock: Clock, spending: Spending, heard: list[events.Event]) -> Make:
    segment = _core.Segment(1024)

    def made(*configs: BudgetConfig, segment: _core.Segment = segment, recorded: bool = True) -> Budgets:
        hooks = events.Hooks()
        hooks.add(heard.append)
        return Budgets(
            configs,
            segment,
            spending,
            hooks,
            now=lambda: clock.time,
            clock=lambda: clock.ns,
            recorded=recorded,
        )

    return made
