"""Budgets that many machines spend from, over a real Redis server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from needs import need
from redis_server import Elsewhere, RedisServer

import fastroute
from fastroute import _core, events
from fastroute.budget import Budgets, MoneyReserved
from fastroute.config import BudgetConfig, load
from fastroute.state.redis import Shared

need("redis")
DOLLAR = 1_000_000_000
DAY = [{"name": "day", "limit": 1.0, "window": "day"}]


@pytest.fixture
def make(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., fastroute.Client]]:
    """Clients as on many machines; their threads stand still, and the tests beat for them."""
    monkeypatch.setattr(Shared, "ensure", lambda self: None)
    made: list[fastroute.Client] = []

    def client(budgets: list[dict[str, Any]] = DAY, spent: int | None = None) -> fastroute.Client:
        made.append(fastroute.Client(redis.config(timeout=5.0, budgets=budgets)))
        if spent is not None:
            monkeypatch.setattr(budgets_of(made[-1]), "spent", lambda since, tags: spent)
        return made[-1]

    yield client
    for one in made:
        one.close()


def budgets_of(client: fastroute.Client) -> Budgets:
    return client.runtime.generation.budgets


def beat(client: fastroute.Client) -> None:
    assert client.runtime.shared is not None
    client.runtime.shared.beat()


def spend(
    client: fastroute.Client, nano: int, most: int = 1_000_000, tags: dict[str, str] | None = None
) -> int:
    """How many calls of a price are let in."""
    count = 0
    while count < most:
        try:
            budgets_of(client).reserve(nano, tags or {}, 60).settle(nano)
        except fastroute.BudgetExceeded:
            break
        count += 1
    return count


def test_machines_spend_the_limit_together_and_no_more(redis: RedisServer) -> None:
    machines = [Elsewhere(redis.config(timeout=5.0, budgets=DAY)) for _ in range(2)]
    for machine in machines:
        machine.tell("reserve", 2_000_000, 1000)  # five to a lease: no machine is left with a part of one
    assert sum(machine.answer() for machine in machines) == 500
    for machine in machines:
        machine.close()


def test_the_usual_call_asks_nobody(make: Any, redis: RedisServer) -> None:
    client = make()
    assert spend(client, 1000, 1) == 1
    with redis.connect() as connection:
        before = connection.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert spend(client, 1000, 500) == 500
        assert connection.info("commandstats")["cmdstat_evalsha"]["calls"] == before


def test_a_reservation_that_costs_less_leaves_the_rest_here(make: Any) -> None:
    first, second = make(), make()
    reservation = budgets_of(first).reserve(DOLLAR, {}, 60)
    assert spend(second, 1) == 0
    reservation.settle(DOLLAR // 4)
    assert spend(first, DOLLAR // 4) == 3
    assert spend(first, 1) == spend(second, 1) == 0


def test_a_call_waits_for_what_is_reserved_on_its_own_machine(make: Any) -> None:
    first, second = make(), make()
    reservation = budgets_of(first).reserve(DOLLAR, {}, 60)
    with pytest.raises(MoneyReserved) as caught:
        budgets_of(first).reserve(DOLLAR // 4, {}, 60)
    assert not caught.value.ready()
    # What was granted to another machine may all be spent; but it may come back before the window ends.
    with pytest.raises(fastroute.BudgetExceeded) as refused:
        budgets_of(second).reserve(DOLLAR // 4, {}, 60)
    assert not isinstance(refused.value, MoneyReserved)
    assert refused.value.retry_after <= 60.0
    reservation.settle(DOLLAR // 4)
    assert caught.value.ready()
    budgets_of(first).reserve(DOLLAR // 4, {}, 60).release()


def test_what_nobody_spends_is_given_back(make: Any) -> None:
    first, second = make(), make()
    reservation = budgets_of(first).reserve(DOLLAR, {}, 60)
    reservation.settle(DOLLAR // 4)
    beat(first)
    beat(first)  # nothing was spent since the last
    assert spend(second, DOLLAR // 4) == 3
    assert spend(first, 1) == 0
    status = budgets_of(first).snapshot()[0]
    beat(first)
    assert status.limit_nano == DOLLAR
    assert budgets_of(second).snapshot()[0].spent_nano == DOLLAR


def test_closing_gives_back_at_once(make: Any) -> None:
    first, second = make(), make()
    budgets_of(first).reserve(DOLLAR, {}, 60).settle(DOLLAR // 4)
    first.close()
    assert spend(second, DOLLAR // 4) == 3


def test_a_cost_above_the_reservation_counts_for_all(make: Any) -> None:
    first, second = make(), make()
    budgets_of(first).reserve(DOLLAR // 2, {}, 60).settle(DOLLAR * 3 // 4)
    beat(first)
    assert spend(second, DOLLAR // 4) == 1
    assert spend(second, 1) == 0


def test_what_the_ledger_knows_is_spent_when_redis_knows_nothing(make: Any, redis: RedisServer) -> None:
    first, second = make(spent=DOLLAR // 2), make(spent=DOLLAR // 2)
    assert spend(first, DOLLAR // 4, 1) == 1
    assert spend(second, DOLLAR // 4) == 1
    # Redis loses its data: the ledgers know by then what both have spent.
    with redis.connect() as connection:
        connection.flushall()
    for client in (first, second):
        budgets_of(client).spent = lambda since, tags: DOLLAR
    assert spend(first, 1) == spend(second, 1) == 0


def test_a_lease_outlives_the_loss_of_data(make: Any, redis: RedisServer) -> None:
    first, second = make(spent=0), make(spent=0)
    held = budgets_of(first).reserve(DOLLAR * 3 // 4, {}, 60)
    with redis.connect() as connection:
        connection.flushall()
    assert spend(first, DOLLAR // 4, 1) == 1  # asks, and says what it holds
    assert spend(second, 1) == 0
    held.release()


def test_while_redis_is_away_a_hard_budget_ends_with_its_lease(make: Any, redis: RedisServer) -> None:
    client = make()
    assert spend(client, 1_000_000, 1) == 1  # leases a hundredth of the limit: ten of these
    redis.kill()
    assert spend(client, 1_000_000) == 9
    with pytest.raises(fastroute.BudgetExceeded, match="Redis is unavailable"):
        budgets_of(client).reserve(1_000_000, {}, 60)


def test_while_redis_is_away_a_soft_budget_goes_on(make: Any, redis: RedisServer) -> None:
    soft = [{"name": "day", "limit": 1.0, "window": "day", "hard": False}]
    client = make(soft)
    assert spend(client, 1_000_000, 1) == 1
    redis.kill()
    assert spend(client, 1_000_000, 50) == 50


def unreadable(since: float, tags: Any) -> int:
    raise fastroute.Error("the disk is gone")


def test_while_the_ledger_cannot_be_read_a_hard_budget_says_so(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make()
    monkeypatch.setattr(budgets_of(client), "spent", unreadable)
    with pytest.raises(fastroute.BudgetExceeded, match="the ledger cannot be read") as caught:
        budgets_of(client).reserve(1_000_000, {}, 60)
    assert "Redis" not in str(caught.value)
    assert caught.value.retry_after == 5.0
    monkeypatch.undo()
    assert spend(client, 1_000_000, 1) == 1


def test_while_the_ledger_cannot_be_read_a_soft_budget_goes_on(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    soft = [{"name": "day", "limit": 1.0, "window": "day", "hard": False}]
    client = make(soft)
    monkeypatch.setattr(budgets_of(client), "spent", unreadable)
    assert spend(client, 1_000_000, 50) == 50
    assert budgets_of(client).snapshot()[0].spent_nano == 50_000_000
    assert "budget day: the ledger cannot be read, so what was spent is unknown" in caplog.text


def test_each_value_of_a_tag_is_counted_apart(make: Any) -> None:
    budgets = [{"name": "team", "limit": 1.0, "window": "month", "per": "tag:team"}]
    first, second = make(budgets), make(budgets)
    assert spend(first, DOLLAR // 2, tags={"team": "a"}) == 2
    assert spend(second, DOLLAR // 2, tags={"team": "a"}) == 0
    assert spend(second, DOLLAR // 2, tags={"team": "b"}) == 2


def test_alerts_count_what_others_spend(make: Any) -> None:
    first, second = make(), make()
    heard: list[events.BudgetAlert] = []
    second.on(heard.append, events.BudgetAlert)
    assert spend(first, DOLLAR // 2, 1) == 1
    assert spend(second, DOLLAR // 4, 1) == 1
    assert [alert.share for alert in heard] == [0.5, 0.75]


def test_garbage_where_money_is_counted_is_written_over(make: Any, redis: RedisServer) -> None:
    client = make()
    assert spend(client, 1000, 1) == 1
    with redis.connect() as connection:
        (key,) = connection.keys("*money*")
        connection.delete(key)
        connection.rpush(key, "x")
        # There is no ledger to say what was spent before, so only what was leased is left.
        assert spend(client, 1_000_000) <= 10
        connection.delete(key)  # as somebody does who knows what was spent
        assert 980 <= spend(client, 1_000_000) <= 1010
        connection.hset(key, mapping={"m:x": "text", "m:y": "1e999", "base": "nan"})
    assert spend(client, 1_000_000) == 0


def test_values_whose_cells_are_given_away_spend_their_limits_exactly(redis: RedisServer) -> None:
    """Sixty values on two machines with 32 cells each: a returning value finds its sum at the bank."""
    machines = []
    config = BudgetConfig(name="user", limit=10.0, window="total", per="tag:user")
    for _ in range(2):
        segment = _core.Segment(64)
        shared = Shared(load(redis.config()), segment, None, events.Hooks())
        budgets = Budgets((config,), segment, lambda since, tags: 0, events.Hooks())
        budgets.share(shared.bank)
        machines.append((budgets, shared))
    served = dict.fromkeys(map(str, range(60)), 0)
    try:
        for _ in range(8):
            for user in served:
                for budgets, _ in machines:
                    try:
                        budgets.reserve(DOLLAR, {"user": user}, 60).settle(DOLLAR)
                    except fastroute.BudgetExceeded:
                        continue
                    served[user] += 1
            for _, shared in machines:
                shared.beat()
    finally:
        for _, shared in machines:
            shared.close()
    assert served == dict.fromkeys(served, 10)
