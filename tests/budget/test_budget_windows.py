"""Budgets: windows by the calendar, and each alert once."""

from __future__ import annotations

import math
import os
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from budget_clock import HOUR, NANO, NOON, ZONES, Clock, Make, Spending, budget, figures
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute import _core, events
from fastroute.budget import Window, window_at


class TestWindows:
    def test_calls_over_midnight_leave_the_new_day_alone(
        self, make: Make, clock: Clock, spending: Spending
    ) -> None:
        budgets = make(budget(limit=10))
        old = [budgets.reserve(NANO // 10, {}, 86_400) for _ in range(50)]
        clock.pass_(12 * HOUR)
        spending.nano = 5
        new = [budgets.reserve(NANO // 10, {}, 60) for _ in range(50)]
        for held in old:
            held.settle(NANO)
        assert figures(budgets) == {("all", None): (5, 5 * NANO)}
        for held in new:
            held.settle(7)
        assert figures(budgets) == {("all", None): (355, 0)}

    def test_a_clock_set_back_finds_the_day_before_as_it_was(self, make: Make, clock: Clock) -> None:
        budgets = make(budget(limit=10))
        budgets.reserve(3 * NANO, {}, 60).settle(3 * NANO)
        clock.time += 12 * HOUR
        budgets.reserve(4 * NANO, {}, 60).settle(4 * NANO)
        clock.time -= 1
        assert figures(budgets) == {("all", None): (3 * NANO, 0)}

    def test_the_time_of_the_attempt_decides(self, make: Make, clock: Clock) -> None:
        budgets = make(budget(limit=10))
        budgets.reserve(NANO, {}, 60, at=clock.time - 86_400).settle(NANO)
        assert figures(budgets) == {("all", None): (0, 0)}

    @pytest.mark.parametrize(
        ("zone", "day", "hours"),
        [
            ("Europe/Berlin", "2026-03-29", 23),
            ("Europe/Berlin", "2026-10-25", 25),
            ("Europe/Berlin", "2028-02-29", 24),
            ("America/Sao_Paulo", "2018-11-04", 23),  # no midnight on that day
            ("America/Havana", "2025-11-02", 25),  # midnight comes twice
            ("Asia/Kathmandu", "2026-01-01", 24),
        ],
    )
    def test_days_with_more_and_fewer_hours(self, zone: str, day: str, hours: int) -> None:
        noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=ZoneInfo(zone)).timestamp()
        found = window_at("day", ZoneInfo(zone), noon)
        assert (found.label, (found.end - found.start) / HOUR) == (day, hours)

    def test_total_has_no_end(self) -> None:
        assert window_at("total", timezone.utc, NOON) == Window(1, "total", 0.0, math.inf)

    @settings(deadline=None, max_examples=150)
    @given(
        st.sampled_from(["day", "month"]),
        st.sampled_from(ZONES),
        st.integers(0, 3653 * 86_400),
    )
    def test_ten_years_without_gap_or_overlap(self, kind: str, name: str, offset: int) -> None:
        zone = ZoneInfo(name)
        when = datetime(2020, 1, 1, tzinfo=timezone.utc).timestamp() + offset
        window = window_at(kind, zone, when)
        assert window.start <= when < window.end
        # Its edges belong together with those of its neighbours, and its number only grows.
        following = window_at(kind, zone, window.end)
        assert (following.start, following.number) == (window.end, window.number + 1)
        assert window_at(kind, zone, window.start) == window
        assert window_at(kind, zone, math.nextafter(window.end, 0)) == window
        local = datetime.fromtimestamp(window.start + 12 * HOUR, zone)
        assert window.label == f"{local:%Y-%m-%d}"[: 10 if kind == "day" else 7]

    def test_ten_years_of_days_make_ten_years(self) -> None:
        zone = ZoneInfo("Europe/Berlin")
        end = datetime(2030, 1, 1, tzinfo=zone).timestamp()
        when, days, months = datetime(2020, 1, 1, tzinfo=zone).timestamp(), 0, set()
        while when < end:
            window = window_at("day", zone, when)
            months.add(window_at("month", zone, when).label)
            when, days = window.end, days + 1
        assert (when, days, len(months)) == (end, 3653, 120)


class TestAlerts:
    def shares(self, heard: list[events.Event]) -> list[float]:
        return [event.share for event in heard if isinstance(event, events.BudgetAlert)]

    def test_each_share_is_told_once(
        self, make: Make, heard: list[events.Event], caplog: pytest.LogCaptureFixture
    ) -> None:
        budgets = make(budget(limit=10))
        told = []
        for _ in range(10):
            budgets.reserve(NANO, {}, 60).settle(NANO)
            told.append(len(heard))
        assert told == [0, 0, 0, 0, 1, 1, 1, 2, 3, 4]
        assert heard[0] == events.BudgetAlert(
            budget="all",
            value=None,
            window="2026-11-21",
            share=0.5,
            spent_nano=5 * NANO,
            limit_nano=10 * NANO,
        )
        assert caplog.messages[0] == "budget all: 50 % of $10.00 for 2026-11-21 is spent ($5.00)"
        assert len(caplog.messages) == 4

    def test_money_that_is_only_reserved_raises_no_alarm(self, make: Make, heard: list[events.Event]) -> None:
        budgets = make(budget(limit=10))
        large = budgets.reserve(9 * NANO, {}, 60)
        budgets.reserve(NANO, {}, 60).settle(NANO)
        assert heard == []
        large.settle(8 * NANO)
        assert self.shares(heard) == [0.5, 0.75, 0.9]

    def test_the_next_window_tells_anew(self, make: Make, heard: list[events.Event], clock: Clock) -> None:
        budgets = make(budget(limit=1, alerts=(1.0,)))
        for _ in range(3):
            budgets.reserve(NANO, {}, 60).settle(NANO)
            clock.pass_(86_400)
        assert self.shares(heard) == [1.0] * 3

    def test_processes_together_tell_once(self, make: Make, heard: list[events.Event]) -> None:
        budgets = make(budget(limit=10))
        budgets.reserve(0, {}, 60).release()
        readable, writable = os.pipe()
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                try:
                    for _ in range(2):
                        budgets.reserve(NANO, {}, 60).settle(NANO)
                    os.write(writable, bytes(len(heard)))
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
        os.close(writable)
        with open(readable, "rb") as pipe:
            assert len(pipe.read()) == 4
        assert budgets.remaining({}) == 0

    def test_what_was_told_before_a_restart_is_not_told_again(
        self, make: Make, heard: list[events.Event], spending: Spending, caplog: pytest.LogCaptureFixture
    ) -> None:
        spending.nano = 8 * NANO
        budgets = make(budget(limit=10))
        budgets.reserve(NANO, {}, 60).settle(NANO)
        assert self.shares(heard) == [0.9]
        assert "2026-11-21 begins with $8.00 of $10.00 already spent" in caplog.text

    def test_an_alert_names_the_window_in_which_the_money_was_reserved(
        self, make: Make, heard: list[events.Event], clock: Clock
    ) -> None:
        budgets = make(budget(limit=10, alerts=(0.5,)))
        late = budgets.reserve(6 * NANO, {}, 86_400)
        clock.pass_(12 * HOUR)
        budgets.reserve(6 * NANO, {}, 60).settle(6 * NANO)
        late.settle(6 * NANO)
        told = [event.window for event in heard if isinstance(event, events.BudgetAlert)]
        assert told == ["2026-11-22", "2026-11-21"]

    def test_what_a_sweep_finds_spent_is_not_told_of_a_window_that_has_not_begun(
        self, make: Make, heard: list[events.Event], clock: Clock, spending: Spending
    ) -> None:
        """Two days later the same cell is due, and still has the old window: the ledger cannot be read."""
        budgets = make(budget(limit=10, alerts=(0.5,)))
        budgets.reserve(6 * NANO, {}, 60).sent()
        clock.pass_(2 * 86_400)
        spending.broken = True
        assert budgets.remaining({}) == 0
        budgets.sweep()
        assert heard == []

    def test_an_estimate_that_stays_spent_counts_too(
        self, make: Make, heard: list[events.Event], clock: Clock
    ) -> None:
        budgets = make(budget(limit=10))
        budgets.reserve(6 * NANO, {}, 60).sent()
        clock.pass_(61)
        budgets.sweep()
        assert self.shares(heard) == [0.5]


def test_years_of_days_use_two_cells(make: Make, clock: Clock) -> None:
    segment = _core.Segment(64)
    budgets = make(budget(limit=1), segment=segment)
    for _ in range(200):
        budgets.reserve(NANO, {}, 60).settle(NANO)
        clock.time += timedelta(days=1).total_seconds()
    assert segment.used <= 4
