"""Budgets: reservations in all budgets or in none, budgets by tag, and spending of earlier processes."""

from __future__ import annotations

import contextlib
import math
import threading
from pathlib import Path

import pytest
from budget_clock import HOUR, NANO, NOON, Clock, Make, Spending, budget, figures, run_all

from fastroute import _core, errors, events
from fastroute.budget import Allowance, Budgets, spent_in
from fastroute.ledger import Ledger
from fastroute.types import Attempt


class TestReserving:
    def test_the_limit_itself_is_allowed_and_one_more_is_not(self, make: Make) -> None:
        budgets = make(budget(limit=10))
        held = budgets.reserve(10 * NANO, {}, 60)
        with pytest.raises(errors.BudgetExceeded) as caught:
            budgets.reserve(1, {}, 60)
        assert str(caught.value) == (
            "budget all, 2026-11-21: the call could cost $0.000000001, and $0 is spent and $10.00 reserved "
            "of $10.00; wait for the calls under way, lower max_tokens, or raise the budget's limit"
        )
        assert (caught.value.budget, caught.value.on_breach) == ("all", "refuse")
        assert (caught.value.status_code, caught.value.retry_after) == (429, 1.0)
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
        assert (budgets.remaining({}), budgets.snapshot()) == (NANO // 2, ())

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
            events.BudgetExceededEvent(
                budget="team",
                value="red",
                window="2026-11-21",
                on_breach="downgrade",
                amount_nano=2 * NANO,
                spent_nano=0,
                reserved_nano=0,
                limit_nano=NANO,
            )
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

    def test_values_without_end_are_each_counted_exactly(self, make: Make, spending: Spending) -> None:
        """Eighty values in 32 cells: whoever returns begins with what the ledger has."""
        segment = _core.Segment(64)
        budgets = make(budget("team", 1, per="tag:team"), segment=segment)
        for _ in range(2):
            for number in range(80):
                budgets.reserve(1, {"team": str(number)}, 60).settle(1)
        assert segment.used <= 40
        spending.nano = NANO - 1
        budgets = make(budget("team", 1, per="tag:team"), segment=_core.Segment(64))
        for number in range(80):
            with pytest.raises(errors.BudgetExceeded):
                budgets.reserve(2, {"team": str(number)}, 60)
            assert budgets.remaining({"team": str(number)}) == 1

    @pytest.mark.parametrize("hard", [True, False])
    def test_values_that_find_no_room_share_one_limit(
        self, make: Make, caplog: pytest.LogCaptureFixture, hard: bool
    ) -> None:
        """Without a ledger no counter can be given away, so new values are counted together."""
        budgets = make(budget("team", 1, per="tag:team", hard=hard), segment=_core.Segment(64))
        refused: list[str] = []
        admitted = 0
        for number in range(200):
            try:
                budgets.reserve(NANO // 10, {"team": str(number)}, 60).settle(NANO // 10, recorded=False)
                admitted += 1
            except errors.BudgetExceeded as error:
                refused.append(str(error))
        # 32 cells at most by themselves, and ten calls of a tenth of the limit together.
        assert 26 <= admitted <= 42
        assert len(refused) == 200 - admitted
        assert all("team 'others'" in text for text in refused)
        [others] = [row for row in budgets.snapshot() if row.others]
        assert (others.value, others.spent_nano, others.reserved_nano) == ("others", NANO, 0)
        [(name, (total, lately))] = budgets.crowded().items()
        assert name == "team"
        assert total == lately >= 200 - 32
        assert caplog.text.count("there is no room to count another value of team") == 1
        # Values that were counted before go on.
        assert budgets.remaining({"team": "0"}) == NANO * 9 // 10

    def test_the_others_of_each_key_are_counted_apart(self, make: Make) -> None:
        budgets = make(budget("user", 1, per="tag:user"), segment=_core.Segment(64))
        for number in range(300):
            with contextlib.suppress(errors.BudgetExceeded):
                tags = {"user": str(number), "key": "a"}
                budgets.reserve(NANO, tags, 60).settle(NANO, recorded=False)
        for number in range(20):
            budgets.reserve(NANO // 20, {"user": f"b{number}", "key": "b"}, 60).settle(0)
        rows = {row.value: row.spent_nano for row in budgets.snapshot() if row.others}
        assert rows["others of a"] == NANO

    def test_a_segment_without_room_for_the_others_fails_closed_when_hard(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        for hard in (True, False):
            segment = _core.Segment(64)
            budgets = make(budget("team", 1, per="tag:team", hard=hard), segment=segment)
            with contextlib.suppress(_core.SegmentFullError):
                for number in range(64):
                    _core.Counter(segment, f"x{number}")
            refused = []
            for number in range(80):
                try:
                    budgets.reserve(1, {"team": str(number)}, 60).settle(1)
                except errors.BudgetExceeded as error:
                    refused.append(str(error))
            assert (len(refused) > 10) == hard
            assert all("no room left to count it" in text for text in refused)
        assert caplog.text.count("a call is not counted") == 1


class TestBeginning:
    def test_what_was_spent_before_counts_from_the_first_call(
        self, make: Make, spending: Spending, clock: Clock
    ) -> None:
        spending.nano = 9 * NANO
        budgets = make(budget(limit=10))
        with pytest.raises(errors.BudgetExceeded, match=r"\$9.00 is spent and \$0 reserved"):
            budgets.reserve(2 * NANO, {}, 60)
        budgets.reserve(NANO, {}, 60)
        assert spending.asked == [(NOON - 12 * HOUR, {})]

    def test_a_real_ledger_gives_the_sums_back_after_a_restart(self, tmp_path: Path, clock: Clock) -> None:
        teams = [("red", 3), ("red", 4), ("blue", 5), ("", 6)]
        with Ledger(tmp_path / "ledger.db") as ledger:
            for number, (team, cost) in enumerate(teams):
                ledger.append(
                    Attempt(
                        id=str(number),
                        call_id="c",
                        time=NOON,
                        endpoint="e",
                        provider="p",
                        model="m",
                        cost_nano=cost,
                        tags={"team": team} if team else {},
                    )
                )
            ledger.append(
                Attempt(
                    id="old",
                    call_id="c",
                    time=NOON - 86_400,
                    endpoint="e",
                    provider="p",
                    model="m",
                    cost_nano=100,
                )
            )
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
            with pytest.raises(errors.BudgetExceeded, match="the ledger cannot be read"):
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


def test_a_settlement_that_found_no_memory_can_be_made_again() -> None:
    class Cost(int):
        def __radd__(self, other: int) -> int:
            raise MemoryError

    allowance = Allowance(10)
    allowance.reserve("a", 5)
    with pytest.raises(MemoryError):
        allowance.settle("a", Cost(3))
    assert (allowance.status().spent_nano, allowance.status().reserved_nano) == (0, 5)
    allowance.settle("a", 3)
    assert (allowance.status().spent_nano, allowance.status().reserved_nano) == (3, 0)
