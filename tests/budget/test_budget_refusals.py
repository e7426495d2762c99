"""Refusals: what they say, when to come again, and which calls are let in after all."""

from __future__ import annotations

from typing import Any

import pytest
from budget_clock import HOUR, NANO, Clock, Make, Spending, budget

from fastroute import _core, errors, events
from fastroute.budget import Assumption, Budgets, MoneyReserved
from fastroute.config import BudgetConfig

SIXTY_FOUR = Assumption(
    "64,000 output tokens assumed because max_tokens is missing",
    "set max_tokens or policy.default_max_tokens",
)

# the budget; nano-dollars spent and reserved before; what the call could cost; the refusal's retry_after, and
# whether the call may wait
WHEN: list[tuple[dict[str, Any], int, int, int | None, float | None, bool]] = [
    ({"window": "day"}, 10 * NANO, 0, 1, 12 * HOUR, False),
    ({"window": "day"}, 5 * NANO, 0, 6 * NANO, 12 * HOUR, False),
    ({"window": "day"}, 5 * NANO, 5 * NANO, 6 * NANO, 12 * HOUR, False),
    ({"window": "day"}, 5 * NANO, 5 * NANO, 5 * NANO, 1.0, True),
    ({"window": "day"}, 0, 1, 10 * NANO, 1.0, True),
    ({"window": "day"}, 0, 0, 10 * NANO + 1, None, False),  # fits no day
    ({"window": "day"}, 0, 0, None, None, False),  # of unknown price
    ({"window": "month"}, 10 * NANO, 0, 1, (9 * 24 + 12) * HOUR, False),
    ({"window": "total"}, 10 * NANO, 0, 1, None, False),
    ({"window": "total"}, 9 * NANO, NANO, 1, 1.0, True),
    ({"window": "request"}, 0, 0, 10 * NANO + 1, None, False),
    ({"window": "day", "hard": False}, 10 * NANO, 0, 1, 12 * HOUR, False),
    ({"window": "day", "hard": False}, NANO, 9 * NANO, 50 * NANO, 1.0, True),
]


@pytest.mark.parametrize(("keys", "spent", "reserved", "amount", "retry_after", "waits"), WHEN)
def test_when_a_refused_call_may_come_again(
    keys: dict[str, Any],
    spent: int,
    reserved: int,
    amount: int | None,
    retry_after: float | None,
    waits: bool,
    make: Make,
    spending: Spending,
) -> None:
    spending.nano = spent
    budgets = make(budget(limit=10, **keys))
    if reserved:
        budgets.reserve(reserved, {}, 60)
    with pytest.raises(errors.BudgetExceeded) as caught:
        budgets.reserve(amount, {}, 60)
    assert caught.value.retry_after == retry_after
    assert isinstance(caught.value, MoneyReserved) is waits
    assert caught.value.hard is keys.get("hard", True)


def test_an_unreadable_ledger_is_asked_again_soon(make: Make, spending: Spending) -> None:
    spending.broken = True
    with pytest.raises(errors.BudgetExceeded, match="the ledger cannot be read") as caught:
        make(budget(limit=10)).reserve(1, {}, 60)
    assert caught.value.retry_after == 5.0


def test_a_segment_without_room_is_no_matter_of_time(clock: Clock) -> None:
    segment = _core.Segment(64)
    budgets = Budgets([budget(per="tag:team")], segment, lambda *_: 0, events.Hooks(), now=lambda: clock.time)

    def fill() -> None:
        for team in range(200):
            budgets.reserve(1, {"team": str(team)}, 60)

    with pytest.raises(errors.BudgetExceeded, match="no room") as caught:
        fill()
    assert caught.value.retry_after is None


def test_cause_and_cure(make: Make) -> None:
    budgets = make(budget("all", 0.5, "total"))
    with pytest.raises(errors.BudgetExceeded) as caught:
        budgets.reserve(960_000_000, {}, 60, assumed=SIXTY_FOUR)
    assert str(caught.value) == (
        "budget all, total: the call could cost $0.96 (64,000 output tokens assumed because max_tokens is "
        "missing), and $0 is spent and $0 reserved of $0.50; set max_tokens or policy.default_max_tokens, or "
        "raise the budget's limit"
    )
    unknown = Assumption("the price of service_tier flex is unknown", "set price_factors")
    with pytest.raises(errors.BudgetExceeded) as caught:
        budgets.reserve(None, {}, 60, assumed=unknown)
    assert str(caught.value) == (
        "budget all, total: the price of service_tier flex is unknown, and $0 is spent and $0 reserved of "
        "$0.50; set price_factors"
    )


def test_the_final_refusal_is_told_once_and_is_a_plain_one(make: Make, heard: list[events.Event]) -> None:
    budgets = make(budget(limit=10))
    budgets.reserve(10 * NANO, {}, 60)
    with pytest.raises(MoneyReserved) as caught:
        budgets.reserve(1, {}, 60)
    assert not heard
    final = caught.value.final()
    assert type(final) is errors.BudgetExceeded
    assert (str(final), final.retry_after) == (str(caught.value), 1.0)
    assert len(heard) == 1
    with pytest.raises(MoneyReserved) as caught:
        budgets.reserve(1, {}, 60, emit=False)
    caught.value.final()
    assert len(heard) == 1


# Of several budgets the worst reason is told: refused for good, refused for now, downgraded.
REFUSED, PASSING, CHEAPER = (
    budget("refused", 1, "total"),
    budget("passing", 3, "total"),
    budget("cheaper", 1, "total", on_breach="downgrade"),
)


@pytest.mark.parametrize(
    ("configs", "told"),
    [
        ((REFUSED, PASSING), "refused"),
        ((PASSING, REFUSED), "refused"),
        ((CHEAPER, PASSING), "passing"),
        ((PASSING, CHEAPER), "passing"),
        ((CHEAPER, PASSING, REFUSED), "refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(each.name for each in value),
)
def test_the_worst_reason_of_several_is_told(
    configs: tuple[BudgetConfig, ...], told: str, make: Make
) -> None:
    budgets = make(*configs)
    make(PASSING).reserve(2 * NANO, {}, 60)  # the same counter
    with pytest.raises(errors.BudgetExceeded) as caught:
        budgets.reserve(NANO + NANO // 2, {}, 60)
    assert caught.value.budget == told
    assert {row.reserved_nano for row in budgets.snapshot() if row.name != "passing"} == {0}


def test_who_waits_already_goes_first(make: Make) -> None:
    budgets = make(budget(limit=10), budget("team", 10, per="tag:team"))
    asked: list[str] = []

    def behind(line: str) -> bool:
        asked.append(line)
        return "red" in line

    with pytest.raises(MoneyReserved) as caught:
        budgets.reserve(1, {"team": "red"}, 60, behind=behind)
    assert caught.value.line == asked[-1]
    assert caught.value.ready()  # there is money; it is the turn that is missing
    budgets.reserve(1, {"team": "blue"}, 60, behind=behind)
    budgets.reserve(0, {"team": "red"}, 60, behind=behind)  # what costs nothing waits for nobody


def test_a_new_window_ends_the_wait(make: Make, clock: Clock) -> None:
    budgets = make(budget(limit=10))
    budgets.reserve(10 * NANO, {}, 60)
    with pytest.raises(MoneyReserved) as caught:
        budgets.reserve(1, {}, 60)
    assert not caught.value.ready()
    clock.pass_(12 * HOUR)
    assert caught.value.ready()
    budgets.reserve(1, {}, 60)


def test_at_the_cheapest_tier_a_soft_budget_serves_and_a_hard_one_does_not(make: Make) -> None:
    soft = make(budget("soft", 1, "total", hard=False, on_breach="downgrade"))
    soft.reserve(2 * NANO, {}, 60).settle(2 * NANO)
    soft.reserve(NANO, {}, 60, served=True).settle(NANO)
    assert soft.snapshot()[0].spent_nano == 3 * NANO
    for keys in ({"hard": False}, {"hard": True, "on_breach": "downgrade"}):
        other = make(budget(f"hard-{keys['hard']}", 1, "total", **keys))
        other.reserve(NANO, {}, 60).settle(2 * NANO)
        with pytest.raises(errors.BudgetExceeded):
            other.reserve(NANO, {}, 60, served=True)


def test_what_a_call_may_cost_at_most(make: Make, spending: Spending) -> None:
    spending.nano = NANO
    budgets = make(
        budget("wide", 100),
        budget("day", 10, shares={"low": 0.5}),
        budget("soft", 20, hard=False),
        budget("each", 8, "request"),
    )
    assert budgets.affordable({}) == 8 * NANO
    assert budgets.affordable({}, "low") == 4 * NANO
    budgets.reserve(3 * NANO, {}, 60)
    assert budgets.affordable({}, "low") == 4 * NANO  # what is only reserved comes back
    budgets.reserve(3 * NANO, {}, 60).settle(3 * NANO)
    assert budgets.affordable({}, "low") == NANO
    assert make(budget("soft", 2, hard=False)).affordable({}) is None
    spending.broken = True
    assert make(budget("new", 5)).affordable({}) == 0
