"""Budgets on the way of a call: reserved before sending, settled after, refused or downgraded on a breach."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest

import fastroute
from fastroute.events import BudgetAlert
from fastroute.testing import Answer, Fault, Provider

MESSAGES = [{"role": "user", "content": "Hello there"}]
MODELS = {
    "cheap": {"input_price": 1, "output_price": 1, "max_output_tokens": 1000, "context_window": 8000},
    "dear": {"input_price": 100, "output_price": 100, "max_output_tokens": 1000, "context_window": 8000},
}


def config(provider: Provider, *budgets: dict[str, Any], ledger: str = "", **more: Any) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": ledger},
        "providers": {"p": {"base_url": provider.base_url}},
        "endpoints": [{"provider": "p", "model": name} for name in MODELS],
        "models": MODELS,
        "tiers": {"budget": ["cheap"], "premium": ["dear"]},
        "budgets": list(budgets),
        "cache": {"enabled": False},
        **more,
    }


def ask(client: fastroute.Client, model: str = "dear", **more: Any) -> fastroute.Completion:
    route = more.pop("route", {})
    return client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=100, route=route, **more)


def status(client: fastroute.Client, name: str) -> Any:
    return next(each for each in client.stats()["budgets"] if each.name == name)


@pytest.fixture
def provider() -> Any:
    with Provider(
        models=list(MODELS), answer=Answer("word " * 100, prompt_tokens=10, completion_tokens=100)
    ) as each:
        yield each


def test_what_a_call_cost_is_what_its_budget_has_spent(provider: Provider) -> None:
    with fastroute.Client(config(provider, {"name": "all", "limit": 5, "window": "day"})) as client:
        reply = ask(client)
        assert reply.route is not None
        assert reply.route.cost_nano == 110 * 100_000
        assert status(client, "all").spent_nano == reply.route.cost_nano
        assert status(client, "all").reserved_nano == 0


def test_128_threads_on_a_budget_for_ten_calls_never_pass_it(provider: Provider) -> None:
    # What one call reserves at worst: 1.5 times the estimated prompt, and the 100 tokens asked for.
    with fastroute.Client(config(provider, {"name": "all", "limit": 1000, "window": "total"})) as client:
        provider.script(Fault.slow(0.5))
        running = client.submit(model="dear", messages=MESSAGES, max_tokens=100)
        provider.wait_until(lambda each: each.in_flight == 1)
        worst = status(client, "all").reserved_nano
        running.result(10)
        prompt = client.plan(model="dear", messages=MESSAGES).estimate.input_tokens
        assert worst == (math.ceil(1.5 * prompt) + 100) * 100_000
    provider.clear_script()
    provider.clear_requests()
    limit = 10 * worst / 1e9
    outcomes: list[Any] = []
    with fastroute.Client(config(provider, {"name": "all", "limit": limit, "window": "total"})) as client:
        start = threading.Barrier(128)

        def call() -> None:
            start.wait(30)
            try:
                outcomes.append(ask(client))
            except fastroute.BudgetExceeded as error:
                outcomes.append(error)

        threads = [threading.Thread(target=call) for _ in range(128)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(outcomes) == 128
        paid = [reply for reply in outcomes if isinstance(reply, fastroute.Completion)]
        assert len(paid) >= 10
        assert len(provider.requests) == len(paid)
        end = status(client, "all")
        assert end.spent_nano == sum(reply.route.cost_nano for reply in paid if reply.route)
        assert end.spent_nano <= 10 * worst
        assert end.reserved_nano == 0


def test_a_breach_is_refused_before_anything_is_sent(provider: Provider) -> None:
    with fastroute.Client(config(provider, {"name": "one", "limit": 0.001, "window": "request"})) as client:
        with pytest.raises(fastroute.BudgetExceeded) as caught:
            ask(client)
        assert caught.value.status_code == 429
        assert "Hello" not in str(caught.value)
        assert not provider.requests
        assert all(figures["in_flight"] == 0 for figures in client.stats()["endpoints"].values())


def test_a_breach_can_go_to_the_cheapest_tier_and_the_route_says_which_budget(provider: Provider) -> None:
    budget = {"name": "saver", "limit": 0.001, "window": "request", "on_breach": "downgrade"}
    with fastroute.Client(config(provider, budget)) as client:
        reply = ask(client, "premium")
        assert reply.route is not None
        assert (reply.route.model, reply.route.tier, reply.route.downgraded) == ("cheap", "budget", "saver")
        with pytest.raises(fastroute.BudgetExceeded):
            ask(client, "premium", route={"force_premium": True})


def test_a_failed_attempt_that_was_never_charged_gives_its_money_back(provider: Provider) -> None:
    with fastroute.Client(
        config(provider, {"name": "all", "limit": 5, "window": "day"}, policy={"max_attempts": 1})
    ) as client:
        provider.script(Fault.status(503))
        with pytest.raises(fastroute.InternalServerError):
            ask(client)
        assert (status(client, "all").spent_nano, status(client, "all").reserved_nano) == (0, 0)


def test_a_stream_that_is_left_early_keeps_what_it_may_have_cost(provider: Provider) -> None:
    with fastroute.Client(config(provider, {"name": "all", "limit": 5, "window": "day"})) as client:
        with client.chat.completions.create(
            model="dear", messages=MESSAGES, max_tokens=100, stream=True
        ) as stream:
            next(stream)
        end = status(client, "all")
        assert end.reserved_nano == 0
        assert 0 < (stream.route.cost_nano or 0) < end.spent_nano


def test_each_value_of_a_tag_has_its_own_and_a_restart_forgets_nothing(
    provider: Provider, tmp_path: Path
) -> None:
    # Room for one call's worst case beside one call's real cost, but not for two beside it.
    budget = {"name": "team", "limit": 0.03, "window": "month", "per": "tag:team"}
    settings = config(provider, budget, ledger=str(tmp_path / "spent.db"))
    with fastroute.Client(settings) as client:
        ask(client, route={"tags": {"team": "red"}})
        ask(client, route={"tags": {"team": "blue"}})
    with fastroute.Client(settings) as client:
        ask(client, route={"tags": {"team": "red"}})
        with pytest.raises(fastroute.BudgetExceeded, match="team"):
            ask(client, route={"tags": {"team": "red"}})
        ask(client, route={"tags": {"team": "blue"}})


def test_a_model_of_unknown_price_is_refused_where_a_hard_budget_applies(provider: Provider) -> None:
    settings = config(provider, {"name": "all", "limit": 5, "window": "day"})
    settings["endpoints"].append({"provider": "p", "model": "mystery"})
    settings["models"] = {**MODELS, "mystery": {"quality": 0.5}}
    with fastroute.Client(settings) as client:
        with pytest.raises(fastroute.BudgetExceeded):
            ask(client, "mystery")
        assert not provider.requests


def test_alerts_come_once_each(provider: Provider) -> None:
    heard: list[float] = []
    with fastroute.Client(config(provider, {"name": "all", "limit": 0.05, "window": "day"})) as client:
        client.on(lambda event: heard.append(event.share), BudgetAlert)
        for _ in range(3):
            ask(client)
    assert heard == [0.5]


def test_a_copy_of_the_client_can_have_an_allowance_of_its_own(provider: Provider) -> None:
    with fastroute.Client(config(provider)) as client:
        small = client.with_options(budget=0.025)
        for _ in range(2):
            ask(small)
        with pytest.raises(fastroute.BudgetExceeded, match="with_options"):
            ask(small)
        ask(small, "cheap")
        ask(client)
        provider.script(Fault.status(503), Fault.status(503), Fault.status(503))
        other = client.with_options(budget=0.012)
        with pytest.raises(fastroute.InternalServerError):
            ask(other)
        ask(other)
        assert len(provider.requests) == 8


class Account:
    """Pays for calls up to a limit, in nano-dollars."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.held: dict[str, int] = {}

    def reserve(self, attempt: str, amount_nano: int | None) -> None:
        if amount_nano is None or amount_nano > self.left:
            raise fastroute.BudgetExceeded("the account is empty")
        self.left -= amount_nano
        self.held[attempt] = amount_nano

    def settle(self, attempt: str, cost_nano: int | None) -> None:
        held = self.held.pop(attempt, 0)
        self.left += held - (held if cost_nano is None else cost_nano)


def test_a_copy_of_the_client_can_be_paid_for_by_an_object(provider: Provider) -> None:
    with fastroute.Client(config(provider)) as client:
        account = Account(25_000_000)
        paid = client.with_options(budget=account)
        spent = sum(ask(paid).route.cost_nano for _ in range(2))
        with pytest.raises(fastroute.BudgetExceeded, match="the account is empty"):
            ask(paid)
        ask(client)
        assert (account.left, account.held) == (25_000_000 - spent, {})
        for wrong in ("1", -1, object()):
            with pytest.raises(fastroute.BadRequestError, match="budget"):
                client.with_options(budget=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cap", "second"), [(0.0112, "cheap"), (0.02, "dear")])
def test_one_price_cap_holds_for_a_whole_chain(provider: Provider, cap: float, second: str) -> None:
    settings = config(provider, models={**MODELS, "cheap": {**MODELS["cheap"], "fallbacks": ["dear"]}})
    with fastroute.Client(settings) as client:
        # The first answer is cut off, so it may have been charged. The dear model alone costs just 0.0112.
        provider.script(Fault.truncated())
        reply = ask(client, "cheap", route={"max_cost": cap})
        assert reply.route is not None
        assert [attempt.model for attempt in reply.route.attempts] == ["cheap", second]


def test_the_price_cap_holds_for_the_same_endpoint_again(provider: Provider) -> None:
    with fastroute.Client(config(provider)) as client:
        (only,) = client.plan(model="dear", messages=MESSAGES, max_tokens=100).candidates
        assert only.price is not None
        provider.script(Fault.truncated())
        with pytest.raises(fastroute.APIError) as caught:
            ask(client, route={"max_cost": only.price * 1.001})
        assert len(caught.value.attempts) == 1


def test_every_choice_that_is_asked_for_is_reserved(provider: Provider) -> None:
    with fastroute.Client(config(provider, {"name": "all", "limit": 0.015, "window": "day"})) as client:
        with pytest.raises(fastroute.BudgetExceeded):
            ask(client, n=2)
        ask(client)


def test_who_insists_is_let_in_by_a_soft_budget_and_by_no_hard_one(provider: Provider) -> None:
    for hard in (False, True):
        spent = {"name": "all", "limit": 0.0001, "window": "day", "hard": hard}
        with fastroute.Client(config(provider, spent)) as client:
            if not hard:
                ask(client)  # which brings it over its limit
            with pytest.raises(fastroute.BudgetExceeded):
                ask(client)
            if hard:
                with pytest.raises(fastroute.BudgetExceeded):
                    ask(client, route={"force_premium": True})
            else:
                ask(client, route={"force_premium": True})
