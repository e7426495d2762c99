"""A clock that tests set, a ledger that counts its queries, and helpers of the budget tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from fastroute import errors
from fastroute.budget import Budgets
from fastroute.config import BudgetConfig

NANO = 10**9
NOON = datetime(2026, 11, 21, 12, tzinfo=timezone.utc).timestamp()
HOUR = 3600
ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "America/Asuncion", "Africa/Cairo"),
    *("Asia/Tehran", "Asia/Beirut", "Asia/Gaza", "Australia/Lord_Howe", "Pacific/Apia"),
)


class Clock:
    """Both times, moved by hand."""

    def __init__(self) -> None:
        self.time = NOON
        self.ns = 10**15

    def pass_(self, seconds: float) -> None:
        self.time += seconds
        self.ns += int(seconds * 1e9)


class Spending:
    """Stands for a ledger; counts how often it was asked."""

    def __init__(self, nano: int = 0) -> None:
        self.nano = nano
        self.asked: list[tuple[float, dict[str, str]]] = []
        self.broken = False

    def __call__(self, since: float, tags: Mapping[str, str]) -> int:
        self.asked.append((since, dict(tags)))
        if self.broken:
            raise errors.Error("the disk is gone")
        return self.nano


Make = Callable[..., Budgets]


def budget(name: str = "all", limit: float = 10, window: str = "day", **more: Any) -> BudgetConfig:
    return BudgetConfig(name=name, limit=limit, window=window, **more)


def figures(budgets: Budgets) -> dict[tuple[str, str | None], tuple[int | None, int | None]]:
    return {(row.name, row.value): (row.spent_nano, row.reserved_nano) for row in budgets.snapshot()}


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
