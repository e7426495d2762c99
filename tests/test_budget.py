"""Budgets: all or nothing, windows by the calendar, each alert once, and nothing left behind."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute import _core, _toml, errors, events
from fastroute.budget import Budgets, Window, spent_in, usd, window_at
from fastroute.config import BudgetConfig, check
from fastroute.ledger import Ledger
from fastroute.types import Attempt

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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spending() -> Spending:
    return Spending()


@pytest.fixture
def heard() -> list[events.Event]:
    return []


Make = Callable[..., Budgets]


@pytest.fixture
def make(clock: Clock, spending: Spending, heard: list[events.Event]) -> Make:
    segment = _core.Segment(1024)

    def made(*configs: BudgetConfig, segment: _core.Segment = segment) -> Budgets:
        hooks = events.Hooks()
        hooks.add(heard.append)
        return Budgets(configs, segment, spending, hooks, now=lambda: clock.time, clock=lambda: clock.ns)

    return made


def budget(name: str = "all", limit: float = 10, window: str = "day", **more: Any) -> BudgetConfig:
    return BudgetConfig(name, limit, window, **more)


def figures(budgets: Budgets) -> dict[tuple[str, str | None], tuple[int | None, int | None]]:
    return {(row.budget, row.value): (row.spent_nano, row.reserved_nano) for row in budgets.snapshot()}


class TestReserving:
    def test_the_limit_itself_is_allowed_and_one_more_is_not(self, make: Make) -> None:
        budgets = make(budget(limit=10))
        held = budgets.reserve(10 * NANO, {}, 60)
        with pytest.raises(errors.BudgetExceeded) as caught:
            budgets.reserve(1, {}, 60)
        assert str(caught.value) == (
            "budget all, 2026-11-21: $0 spent and $10 reserved of $10; the call could cost $0.000000001"
        )
        assert (caught.value.budget, caught.value.on_breach) == ("all", "refuse")
        assert (caught.value.status_code, caught.value.retry_after) == (429, 12 * HOUR)
        held.release()
        assert budgets.remaining({}) == 10 * NANO

    def test_settling_puts_the_cost_in_place_of_the_estimate(self, make: Make) -> None:
        budgets = make(budget(limit=10))
        held = budgets.reserve(6 * NANO, {}, 60)
        held.sent()
        held.settle(2 * NANO)
        held.settle(5 * NANO)
        held.release()
        assert figures(budgets) == {("all", None): (2 * NANO, 0)}
        assert budgets.remaining({}) == 8 * NANO

    def test_an_unknown_cost_keeps_the_estimate(self, make: Make) -> None:
        budgets = make(budget(limit=10))
        budgets.reserve(6 * NANO, {}, 60).settle(None)
        assert figures(budgets) == {("all", None): (6 * NANO, 0)}

    def test_all_or_nothing(self, make: Make) -> None:
        budgets = make(
            budget("wide", 100),
            budget("month", 20, "month"),
            budget("narrow", 1),
            budget("last", 50, "total"),
        )
        with pytest.raises(errors.BudgetExceeded, match="budget narrow"):
            budgets.reserve(2 * NANO, {}, 60)
        assert set(figures(budgets).values()) == {(0, 0)}
        budgets.reserve(NANO, {}, 60).settle(NANO)
        assert set(figures(budgets).values()) == {(NANO, 0)}
        assert budgets.remaining({}) == 0

    def test_one_that_refuses_goes_before_one_that_downgrades(self, make: Make) -> None:
        cheap, strict = budget("cheap", 1, on_breach="downgrade"), budget("strict", 1)
        with pytest.raises(errors.BudgetExceeded) as caught:
            make(cheap, strict).reserve(2 * NANO, {}, 60)
        assert (caught.value.budget, caught.value.on_breach) == ("strict", "refuse")
        with pytest.raises(errors.BudgetExceeded) as caught:
            make(cheap, budget("loose", 5)).reserve(2 * NANO, {}, 60)
        assert (caught.value.budget, caught.value.on_breach) == ("cheap", "downgrade")

    def test_without_budgets_nothing_is_asked(self, make: Make, spending: Spending) -> None:
        budgets = make()
        assert not budgets
        assert budgets.remaining({}) is None
        held = budgets.reserve(None, {}, 60)
        held.sent()
        held.settle(5)
        assert spending.asked == []

    def test_a_request_has_a_limit_of_its_own(self, make: Make) -> None:
        budgets = make(budget("each", 0.5, "request"))
        budgets.reserve(NANO // 2, {}, 60).settle(NANO)
        budgets.reserve(NANO // 2, {}, 60)
        with pytest.raises(
            errors.BudgetExceeded, match=r"each: the call could cost \$0.500000001, and a req"
        ):
            budgets.reserve(NANO // 2 + 1, {}, 60)
        with pytest.raises(errors.BudgetExceeded, match="price is unknown"):
            budgets.reserve(None, {}, 60)
        assert (budgets.remaining({}), budgets.snapshot()) == (NANO // 2, [])

    def test_an_unknown_price_passes_no_hard_budget(self, make: Make) -> None:
        with pytest.raises(errors.BudgetExceeded, match="the call's price is unknown"):
            make(budget("soft", hard=False), budget("hard")).reserve(None, {}, 60)
        soft = make(budget("soft", hard=False))
        soft.reserve(None, {}, 60).settle(3)
        assert figures(soft) == {("soft", None): (3, 0)}

    def test_a_soft_budget_lets_in_while_anything_is_left(self, make: Make) -> None:
        budgets = make(budget(limit=1, hard=False))
        budgets.reserve(NANO - 1, {}, 60)
        budgets.reserve(5 * NANO, {}, 60)
        for unknown_or_not in (1, None):
            with pytest.raises(errors.BudgetExceeded):
                budgets.reserve(unknown_or_not, {}, 60)
        budgets.reserve(1, {}, 60, forced=True)
        assert budgets.remaining({}) == 0

    def test_force_does_not_open_a_hard_budget(self, make: Make) -> None:
        with pytest.raises(errors.BudgetExceeded):
            make(budget(limit=1)).reserve(2 * NANO, {}, 60, forced=True)

    def test_what_costs_nothing_is_always_let_in(self, make: Make, spending: Spending) -> None:
        spending.nano = 20 * NANO
        budgets = make(budget(limit=10), budget("none", 0), budget("soft", 1, hard=False))
        budgets.reserve(0, {}, 60).settle(0)
        with pytest.raises(errors.BudgetExceeded):
            budgets.reserve(1, {}, 60)

    def test_an_absurd_worst_case_is_refused_plainly(self, make: Make) -> None:
        budgets = make(budget(limit=1e9))
        for amount in (10**18 + 1, 2**63, 10**40):
            with pytest.raises(errors.BudgetExceeded):
                budgets.reserve(amount, {}, 60)
        soft = make(budget("soft", 1, hard=False))
        soft.reserve(10**40, {}, 60).settle(10**40)
        assert soft.remaining({}) == 0

    def test_bad_arguments_are_refused(self, make: Make) -> None:
        budgets = make(budget())
        for lease in (0, -1, math.inf, math.nan):
            with pytest.raises(ValueError, match="lease_s"):
                budgets.reserve(1, {}, lease)
        with pytest.raises(ValueError, match="amount_nano"):
            budgets.reserve(-1, {}, 60)
        with pytest.raises(ValueError, match="cost_nano"):
            budgets.reserve(1, {}, 60).settle(-1)

    def test_a_breach_is_an_event(self, make: Make, heard: list[events.Event]) -> None:
        budgets = make(budget("team", 1, per="tag:team", on_breach="downgrade"))
        with pytest.raises(errors.BudgetExceeded):
            budgets.reserve(2 * NANO, {"team": "red"}, 60)
        assert heard == [
            events.BudgetExceededEvent("team", "red", "2026-11-21", "downgrade", 2 * NANO, 0, 0, NANO)
        ]

    def test_no_message_shows_what_may_be_a_key(self, make: Make) -> None:
        budgets = make(budget("user", 1, per="tag:user"))
        with pytest.raises(errors.BudgetExceeded) as caught:
            budgets.reserve(2 * NANO, {"user": "sk-abcdef0123456789abcdef"}, 60)
        assert "abcdef" not in str(caught.value)
        assert "abcdef" not in repr(budgets.reserve(0, {"user": "sk-abcdef0123456789"}, 60))


class TestTags:
    def test_each_value_has_its_own_and_none_together(self, make: Make, spending: Spending) -> None:
        budgets = make(budget("team", 1, per="tag:team"))
        for tags in ({"team": "red"}, {"team": "blue", "other": "x"}, {}):
            budgets.reserve(NANO, tags, 60)
            with pytest.raises(errors.BudgetExceeded):
                budgets.reserve(1, tags, 60)
        with pytest.raises(errors.BudgetExceeded, match="without team"):
            budgets.reserve(1, {"team": ""}, 60)
        assert [tags for _, tags in spending.asked] == [{"team": "red"}, {"team": "blue"}, {"team": ""}]
        assert {row.value for row in budgets.snapshot()} == {"red", "blue", ""}

    def test_no_room_for_another_value_fails_closed_when_hard(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        for hard in (True, False):
            budgets = make(budget("team", 1, per="tag:team", hard=hard), segment=_core.Segment(64))
            refused = []
            for number in range(80):
                try:
                    budgets.reserve(1, {"team": str(number)}, 60).settle(1)
                except errors.BudgetExceeded as error:
                    refused.append(str(error))
            assert (len(refused) > 10) == hard
            assert all("no room left to count it" in text for text in refused)
        assert "a call is not counted" in caplog.text


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


class TestBeginning:
    def test_what_was_spent_before_counts_from_the_first_call(
        self, make: Make, spending: Spending, clock: Clock
    ) -> None:
        spending.nano = 9 * NANO
        budgets = make(budget(limit=10))
        with pytest.raises(errors.BudgetExceeded, match=r"\$9 spent and \$0 reserved"):
            budgets.reserve(2 * NANO, {}, 60)
        budgets.reserve(NANO, {}, 60)
        assert spending.asked == [(NOON - 12 * HOUR, {})]

    def test_a_real_ledger_gives_the_sums_back_after_a_restart(self, tmp_path: Path, clock: Clock) -> None:
        teams = [("red", 3), ("red", 4), ("blue", 5), ("", 6)]
        with Ledger(tmp_path / "ledger.db") as ledger:
            for number, (team, cost) in enumerate(teams):
                ledger.append(
                    Attempt(
                        str(number),
                        "c",
                        NOON,
                        "e",
                        "p",
                        "m",
                        cost_nano=cost,
                        tags={"team": team} if team else {},
                    )
                )
            ledger.append(Attempt("old", "c", NOON - 86_400, "e", "p", "m", cost_nano=100))
        with Ledger(tmp_path / "ledger.db") as ledger:
            budgets = Budgets(
                [budget("team", per="tag:team"), budget("all", window="day"), budget("ever", window="total")],
                _core.Segment(256),
                spent_in(ledger),
                events.Hooks(),
                now=lambda: clock.time,
            )
            for team in ("red", "blue", ""):
                budgets.reserve(0, {"team": team}, 60).release()
            assert figures(budgets) == {
                ("team", "red"): (7, 0),
                ("team", "blue"): (5, 0),
                ("team", ""): (6, 0),
                ("all", None): (18, 0),
                ("ever", None): (118, 0),
            }

    def test_threads_that_come_first_together_ask_once(self, make: Make, spending: Spending) -> None:
        budgets = make(budget(limit=10))
        barrier = threading.Barrier(16)

        def ask() -> None:
            barrier.wait()
            budgets.reserve(1, {}, 60)

        run_all([threading.Thread(target=ask) for _ in range(16)])
        assert len(spending.asked) == 1
        assert figures(budgets) == {("all", None): (0, 16)}

    def test_a_ledger_that_cannot_be_read_is_not_an_empty_one(
        self, make: Make, spending: Spending, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        spending.broken = True
        hard = make(budget("hard"))
        for _ in range(2):
            with pytest.raises(errors.BudgetExceeded, match="cannot be read from the ledger"):
                hard.reserve(1, {}, 60)
        assert hard.remaining({}) == 0
        assert figures(hard) == {("hard", None): (None, None)}
        assert len(spending.asked) == 1
        hard.reserve(0, {}, 60)
        soft = make(budget("soft", hard=False))
        soft.reserve(1, {}, 60).settle(1)
        assert soft.remaining({}) is None
        assert "the disk is gone" in caplog.text
        spending.broken = False
        clock.pass_(5)
        hard.reserve(1, {}, 60)


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
        assert heard[0] == events.BudgetAlert("all", None, "2026-11-21", 0.5, 5 * NANO, 10 * NANO)
        assert caplog.messages[0] == "budget all: 50 % of $10 for 2026-11-21 is spent ($5)"
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
        assert "2026-11-21 begins with $8 of $10 spent" in caplog.text

    def test_an_estimate_that_stays_spent_counts_too(
        self, make: Make, heard: list[events.Event], clock: Clock
    ) -> None:
        budgets = make(budget(limit=10))
        budgets.reserve(6 * NANO, {}, 60).sent()
        clock.pass_(61)
        budgets.sweep()
        assert self.shares(heard) == [0.5]


# ------------------------------------------------------------------------------------ cancels, kills, crowds


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_128_threads_a_budget_for_ten_admits_ten(make: Make) -> None:
    budgets = make(budget(limit=10), budget("team", 50, per="tag:team"))
    barrier, admitted = threading.Barrier(128), []

    def call() -> None:
        barrier.wait()
        try:
            held = budgets.reserve(NANO, {"team": "red"}, 60)
        except errors.BudgetExceeded:
            return
        held.sent()
        admitted.append(held)

    run_all([threading.Thread(target=call) for _ in range(128)])
    assert len(admitted) == 10
    assert set(figures(budgets).values()) == {(0, 10 * NANO)}
    for held in admitted:
        held.settle(NANO - 1)
    assert set(figures(budgets).values()) == {(10 * NANO - 10, 0)}


def test_a_lease_that_ran_out_forbids_sending(make: Make, clock: Clock) -> None:
    budgets = make(budget(limit=10), budget("month", 10, "month"))
    held = budgets.reserve(NANO, {}, 60)
    clock.pass_(61)
    budgets.sweep()
    with pytest.raises(errors.DeadlineExceeded):
        held.sent()
    assert set(figures(budgets).values()) == {(0, 0)}


def test_a_late_settle_counts_what_it_cost(make: Make, clock: Clock) -> None:
    budgets = make(budget(limit=10))
    held = budgets.reserve(5 * NANO, {}, 60)
    held.sent()
    clock.pass_(61)
    budgets.sweep()
    assert figures(budgets) == {("all", None): (5 * NANO, 0)}
    held.settle(NANO)
    held.settle(NANO)
    assert figures(budgets) == {("all", None): (NANO, 0)}


def killed_child(work: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_worker_held_does_not_refuse_a_call(make: Make, clock: Clock) -> None:
    budgets = make(budget(limit=10))
    killed_child(lambda: budgets.reserve(10 * NANO, {}, 3600))
    clock.pass_(2)
    budgets.reserve(4 * NANO, {}, 60).settle(4 * NANO)
    killed_child(lambda: budgets.reserve(3 * NANO, {}, 3600).sent())
    clock.pass_(5)
    budgets.reserve(3 * NANO, {}, 60).settle(0)
    assert figures(budgets) == {("all", None): (7 * NANO, 0)}
    with pytest.raises(errors.BudgetExceeded):
        budgets.reserve(3 * NANO + 1, {}, 60)


def test_a_childs_copy_of_a_reservation_is_without_effect(make: Make) -> None:
    budgets = make(budget(limit=10))
    held = budgets.reserve(5 * NANO, {}, 60)

    def child() -> None:
        held.settle(0)
        held.release()

    killed_child(child)
    assert figures(budgets) == {("all", None): (0, 5 * NANO)}


def test_a_fork_while_a_window_begins_hangs_nobody(make: Make, spending: Spending) -> None:
    budgets = make(budget(limit=10))
    # The lock as a forked child finds it when another thread of the parent was at the ledger.
    with budgets._lock():
        killed_child(lambda: budgets.reserve(1, {}, 60))
    assert spending.asked == []


def test_a_soak_of_cancels_time_outs_and_kills_leaves_nothing_reserved(make: Make, clock: Clock) -> None:
    """Calls in threads and children end in every way there is; afterwards only what was spent is there."""
    budgets = make(budget(limit=1e6), budget("team", 1e6, "month", per="tag:team"))
    sums = []

    def calls(seed: int, count: int) -> int:
        chance, spent = random.Random(seed), 0
        for _ in range(count):
            amount, end = chance.randrange(1, 10**6), chance.random()
            held = budgets.reserve(amount, {"team": "red"}, 60)
            if end < 0.02:  # cancelled before it was sent, twice over
                held.release()
                held.release()
                continue
            held.sent()
            if end < 0.03:  # lost: its lease will end it
                spent += amount
            elif end < 0.04:  # timed out: nobody knows what it cost
                held.settle(None)
                spent += amount
            else:
                cost = chance.randrange(0, 2 * amount)
                held.settle(cost)
                spent += cost
        return spent

    threads = [threading.Thread(target=lambda seed=seed: sums.append(calls(seed, 500))) for seed in range(4)]
    run_all(threads)
    for seed in range(4, 12):
        readable, writable = os.pipe()

        def child(seed: int = seed, writable: int = writable) -> None:
            spent = calls(seed, 100)
            budgets.reserve(12345, {"team": "red"}, 60)
            last = budgets.reserve(1000, {"team": "red"}, 60)
            last.sent()
            os.write(writable, str(spent + 1000).encode())

        killed_child(child)
        os.close(writable)
        with open(readable, "rb") as pipe:
            sums.append(int(pipe.read()))
    clock.pass_(61)
    budgets.sweep()
    assert figures(budgets) == {("all", None): (sum(sums), 0), ("team", "red"): (sum(sums), 0)}


# ------------------------------------------------------------------------------------------- configuration


def problems(**keys: Any) -> list[str]:
    table = {"name": "b", "limit": 1, "window": "day", **keys}
    return problems_of([{key: value for key, value in table.items() if value is not ...}])


def problems_of(budgets: Any) -> list[str]:
    source = {
        "providers": {"p": {"base_url": "http://localhost:1/v1"}},
        "endpoints": [{"provider": "p", "model": "gpt-4.1"}],
        "budgets": budgets,
    }
    return list(check(source, environ={}).problems)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"limit": 1e9 + 1}, "budgets[0].limit: 1000000001.0 is out of range"),
        ({"limit": 2**63}, "budgets[0].limit:"),
        ({"limit": -1}, "budgets[0].limit: -1 is out of range"),
        ({"limit": math.nan}, "budgets[0].limit: nan is out of range"),
        ({"limit": math.inf}, "budgets[0].limit: inf is out of range"),
        ({"limit": "10"}, "budgets[0].limit: '10' is not a number"),
        ({"limit": 1e-30}, "budgets[0].limit: 1e-30 is less than can be counted"),
        ({"limit": True}, "budgets[0].limit: true is not a number"),
        ({"limit": ...}, "budgets[0].limit: is missing"),
        ({"window": "week"}, "budgets[0].window: 'week' is none of the words known"),
        ({"window": ...}, "budgets[0].window: is missing"),
        ({"timezone": "Europe/Berlim"}, "budgets[0].timezone: 'Europe/Berlim' is no time zone known here"),
        ({"timezone": "../etc/passwd"}, "budgets[0].timezone:"),
        ({"timezone": "Europe"}, "budgets[0].timezone:"),
        ({"per": "team"}, "budgets[0].per: 'team' is nothing to count by"),
        ({"per": "tag:"}, "budgets[0].per: 'tag:' is nothing to count by"),
        ({"on_breach": "ignore"}, "budgets[0].on_breach: 'ignore' is none"),
        ({"hard": 1}, "budgets[0].hard: 1 is neither true nor false"),
        ({"alerts": [0.5, 1.5]}, "budgets[0].alerts: 1.5 is out of range"),
        ({"alerts": [0.5, 0.5]}, "budgets[0].alerts: names something twice"),
        ({"alerts": [x / 10 for x in range(1, 10)]}, "budgets[0].alerts: has 9 entries"),
        ({"limits": 1}, "budgets[0].limits: unknown key; did you mean limit?"),
        ({"window": "total", "timezone": "Europe/Berlin"}, "budgets.b.timezone: has no effect"),
        ({"window": "request", "per": "tag:x"}, "budgets.b.per: has no effect"),
        ({"window": "request", "alerts": [0.5]}, "budgets.b.alerts: has no effect"),
        ({"window": "request", "hard": False}, "budgets.b.hard: is false"),
    ],
)
def test_a_bad_budget_is_refused_with_its_path(keys: dict[str, Any], said: str) -> None:
    found = problems(**keys)
    assert len(found) == 1
    assert found[0].startswith(said)


def test_names_are_unique_and_all_problems_come_at_once() -> None:
    one = {"name": "b", "limit": 1, "window": "day"}
    assert problems_of([one, one]) == ["budgets.b.name: is the name of another budget too, must be unique"]
    assert problems_of({"b": 1}) == [
        "budgets: a value of type dict is not a list, must be [[budgets]] for each"
    ]
    assert len(problems_of([{}, {**one, "limit": -1, "per": 3}])) == 5


def test_the_environment_goes_over_a_budget_by_its_name() -> None:
    source = {
        "providers": {"p": {"base_url": "http://localhost:1/v1"}},
        "endpoints": [{"provider": "p", "model": "gpt-4.1"}],
        "budgets": [{"name": "daily", "limit": 1, "window": "day"}],
    }
    found = check(source, environ={"FASTROUTE_BUDGETS__DAILY__LIMIT": "2.5"})
    assert found.config is not None
    assert found.config.budgets[0].limit_nano == 2_500_000_000
    assert check(source, environ={"FASTROUTE_BUDGETS__NONE__LIMIT": "2"}).problems == (
        "FASTROUTE_BUDGETS__NONE__LIMIT: names no budget, must name one of the file's by its number or name",
    )


@pytest.mark.parametrize(
    ("limit", "nano"),
    [(0.1, 10**8), (1e9, 10**18), (0, 0), (1e-9, 1), (0.0000000019, 1), (29.99, 29_990_000_000)],
)
def test_a_limit_is_whole_nano_dollars(limit: float, nano: int) -> None:
    assert budget(limit=limit).limit_nano == nano


@pytest.mark.parametrize(
    ("nano", "shown"), [(0, "$0"), (12_500_000, "$0.0125"), (10**18, "$1000000000"), (1, "$0.000000001")]
)
def test_dollars_show_every_digit_that_counts(nano: int, shown: str) -> None:
    assert usd(nano) == shown


def test_an_error_survives_pickling(make: Make) -> None:
    import pickle

    with pytest.raises(errors.BudgetExceeded) as caught:
        make(budget(limit=1)).reserve(2 * NANO, {}, 60)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.budget, str(copy)) == ("all", str(caught.value))


def test_a_hook_that_fails_fails_no_call(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: events.Event) -> None:
        raise RuntimeError("no")

    hooks = events.Hooks()
    hooks.add(fail)
    budgets = Budgets([budget(limit=1)], _core.Segment(64), lambda since, tags: 0, hooks)
    with caplog.at_level(logging.ERROR):
        budgets.reserve(NANO, {}, 60).settle(NANO)
    assert budgets.remaining({}) == 0
    assert "a hook failed" in caplog.text


def test_years_of_days_use_two_cells(make: Make, clock: Clock) -> None:
    segment = _core.Segment(64)
    budgets = make(budget(limit=1), segment=segment)
    for _ in range(200):
        budgets.reserve(NANO, {}, 60).settle(NANO)
        clock.time += timedelta(days=1).total_seconds()
    assert segment.used <= 4


# ------------------------------------------------------------------------------------------------- the page

PAGE = Path(__file__).parent.parent / "docs" / "budgets.md"


def test_the_pages_configurations_are_such() -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    assert [problems_of(_toml.parse(example)["budgets"]) for example in examples] == [[], []]


def test_the_pages_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"print\(.*\) +# (.*)", example)
