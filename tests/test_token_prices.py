"""Costs of tokens, to the nano-dollar: uncached, read from a cache, written to one, of a long prompt."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastroute
from fastroute.testing import Fault, Provider
from fastroute.types import TokenPrices, Usage

PRICE = st.integers(0, 10**12)
MAYBE = st.none() | PRICE
COUNT = st.integers(0, 10**7)
ASKED = [{"role": "user", "content": "How are you?"}]


def told(first: int | None, then: int) -> int:
    return then if first is None else first


@given(st.tuples(PRICE, PRICE, MAYBE, MAYBE, MAYBE), st.tuples(COUNT, COUNT, COUNT, COUNT, COUNT))
def test_a_cost_is_the_sum_of_its_parts_rounded_up(
    given_prices: tuple[Any, ...], counts: tuple[int, ...]
) -> None:
    prices = TokenPrices(*given_prices)
    fresh, output, read, minutes, hour = counts
    usage = Usage(
        fresh + read + minutes + hour,
        output,
        read,
        cache_write_tokens=minutes + hour,
        cache_write_1h_tokens=hour,
    )
    written = told(prices.cache_write, prices.input)
    exact = Fraction(
        fresh * prices.input
        + output * prices.output
        + read * told(prices.cached_input, prices.input)
        + minutes * written
        + hour * told(prices.cache_write_1h, written),
        1_000_000,
    )
    assert prices.cost(usage) == math.ceil(exact)
    discount = told(prices.cached_input, prices.input) <= prices.input
    if discount:
        assert prices.cost(usage) <= prices.worst(usage.prompt_tokens, output, hour=True)
        if not hour:
            assert prices.cost(usage) <= prices.worst(usage.prompt_tokens, output)


def test_a_long_prompt_costs_the_long_prices_as_a_whole() -> None:
    prices = TokenPrices(1_000_000, 2_000_000, long_context=100, long=TokenPrices(3_000_000, 5_000_000))
    assert prices.cost(Usage(100, 10)) == 100 + 20
    assert prices.cost(Usage(101, 10)) == 303 + 50
    assert (prices.worst(100, 10), prices.worst(101, 10)) == (120, 353)


def tables(base_url: str, **models: dict[str, Any]) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": ""},
        "providers": {"p": {"base_url": base_url}},
        "endpoints": [{"provider": "p", "model": model} for model in models],
        "models": models,
        "tiers": {"only": list(models)},
    }


def test_an_attempt_costs_what_its_writes_cost() -> None:
    priced = {"input_price": 1.0, "output_price": 2.0, "cached_input_price": 0.1, "cache_write_price": 1.25}
    details = {"cached_tokens": 200, "cache_write_tokens": 300}
    usage = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": details}
    with Provider(models=["m"]) as provider:
        provider.script(Fault.usage(usage))
        with fastroute.Client(tables(provider.base_url, m=priced)) as client:
            reply = client.chat.completions.create(model="m", messages=ASKED)
    assert reply.route is not None
    assert reply.route.cost_nano == 500 * 1000 + 200 * 100 + 300 * 1250 + 10 * 2000
    (attempt,) = reply.route.attempts
    assert (attempt.cached_tokens, attempt.cache_write_tokens) == (200, 300)
    assert reply.usage is not None
    assert reply.usage.to_dict()["prompt_tokens_details"] == details


def test_an_estimate_knows_that_a_long_prompt_is_dearer() -> None:
    grows = {"input_price": 1.0, "output_price": 1.0, "quality": 0.9, "latency": 1.0}
    grows |= {"long_context": 1000, "long_input_price": 10.0, "long_output_price": 10.0}
    flat = {"input_price": 2.0, "output_price": 2.0, "quality": 0.9, "latency": 1.0}
    with fastroute.Client(tables("http://127.0.0.1:1/v1", grows=grows, flat=flat)) as client:
        short = client.plan(model="only", messages=ASKED, max_tokens=100)
        assert [each.model for each in short.candidates] == ["grows", "flat"]
        long = client.plan(
            model="only", messages=[{"role": "user", "content": "words " * 2000}], max_tokens=100
        )
        assert [each.model for each in long.candidates] == ["flat", "grows"]
        cheap, dear = (each.price for each in long.candidates)
        assert cheap is not None
        assert dear == pytest.approx(5 * cheap)


SAMPLES = {"quality": 0.8, "latency": 1.0, "input_price": 2.0, "output_price": 2.0}
REFUSES = {"quality": 0.9, "latency": 1.0, "input_price": 1.0, "output_price": 1.0, "sampling": False}


@pytest.mark.parametrize(
    ("params", "model"),
    [
        ({}, "refuses"),
        ({"temperature": 0.2}, "samples"),
        ({"temperature": 0}, "samples"),
        ({"top_p": 0.9}, "samples"),
        ({"top_k": 5}, "samples"),
        ({"temperature": 1}, "refuses"),
        ({"temperature": 1.0, "top_p": 1.0}, "refuses"),
        ({"temperature": None}, "refuses"),
        ({"temperature": 0.2, "reasoning_effort": "none"}, "samples"),
    ],
)
def test_a_request_with_a_temperature_goes_where_it_may_have_one(params: dict[str, Any], model: str) -> None:
    with (
        Provider(models=["samples", "refuses"], strict=False) as provider,
        fastroute.Client(tables(provider.base_url, samples=SAMPLES, refuses=REFUSES)) as client,
    ):
        reply = client.chat.completions.create(model="only", messages=ASKED, **params)
        assert reply.route is not None
        assert reply.route.model == model
        sent = provider.requests[0].json
        asked = {name: sent[name] for name in ("temperature", "top_p", "top_k") if name in sent}
        wanted = {name: value for name, value in params.items() if name != "reasoning_effort"}
        # What says no more than leaving it out is left out: some refuse even that.
        assert asked == (wanted if model == "samples" else {})


def test_a_model_that_samples_without_reasoning_does_so_when_told_not_to_reason() -> None:
    models = {"partly": REFUSES | {"sampling": "without-reasoning"}, "samples": SAMPLES}
    with (
        Provider(models=list(models)) as provider,
        fastroute.Client(tables(provider.base_url, **models)) as client,
    ):
        for effort, model in (("none", "partly"), ("low", "samples")):
            reply = client.chat.completions.create(
                model="only", messages=ASKED, temperature=0.2, reasoning_effort=effort
            )
            assert reply.route is not None
            assert reply.route.model == model
            assert provider.requests[-1].json["temperature"] == 0.2


def test_where_nobody_takes_a_temperature_it_is_refused_or_left_out_as_configured() -> None:
    with Provider(models=["refuses"]) as provider:
        settings = tables(provider.base_url, refuses=REFUSES)
        with (
            fastroute.Client(settings) as client,
            pytest.raises(fastroute.NoEndpointError, match=r"no temperature or top_p \(policy.drop_sampling"),
        ):
            client.chat.completions.create(model="refuses", messages=ASKED, temperature=0.2)
        assert not provider.requests
        settings["policy"] = {"drop_sampling": True}
        with fastroute.Client(settings) as client:
            client.chat.completions.create(
                model="refuses", messages=ASKED, temperature=0.2, top_p=0.5, seed=1
            )
        sent = provider.requests[0].json
        assert (sent.get("temperature"), sent.get("top_p"), sent["seed"]) == (None, None, 1)


def test_anthropics_writes_cost_by_how_long_they_are_kept() -> None:
    usage = {
        "input_tokens": 100,
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": 500,
        "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 200},
        "output_tokens": 10,
    }
    with Provider(models=["claude-haiku-4-5"], format="anthropic") as provider:
        provider.script(Fault.usage(usage))
        settings = {
            "fastroute": {"ledger": ""},
            "providers": {"p": {"base_url": provider.base_url, "format": "anthropic"}},
            "endpoints": [{"provider": "p", "model": "claude-haiku-4.5", "upstream": "claude-haiku-4-5"}],
        }
        with fastroute.Client(settings) as client:
            reply = client.chat.completions.create(model="claude-haiku-4.5", messages=ASKED)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 800
    assert reply.route is not None
    assert reply.route.cost_nano == 100 * 1000 + 200 * 100 + 300 * 1250 + 200 * 2000 + 10 * 5000
    (attempt,) = reply.route.attempts
    assert (attempt.cache_write_tokens, attempt.cache_write_1h_tokens) == (500, 200)


@pytest.mark.parametrize(("ttl", "per_token"), [(None, 2), ("1h", 4)])
def test_a_budget_sets_aside_what_the_dearest_write_would_cost(ttl: str | None, per_token: int) -> None:
    from fastroute.events import BudgetExceededEvent

    priced = {
        "input_price": 1.0,
        "output_price": 0.0,
        "cache_write_price": 2.0,
        "cache_write_1h_price": 4.0,
        "max_output_tokens": 10,
    }
    settings = tables("http://127.0.0.1:1/v1", m=priced)
    settings["budgets"] = [{"name": "day", "limit": 1e-6, "window": "day"}]
    part: dict[str, Any] = {"type": "text", "text": "word " * 1000}
    if ttl is not None:
        part["cache_control"] = {"type": "ephemeral", "ttl": ttl}
    heard: list[BudgetExceededEvent] = []
    with fastroute.Client(settings) as client:
        client.on(heard.append, BudgetExceededEvent)
        asked = [{"role": "user", "content": [part]}]
        tokens = client.plan(model="m", messages=asked).estimate.input_tokens
        with pytest.raises(fastroute.BudgetExceeded):
            client.chat.completions.create(model="m", messages=asked)
    assert heard[0].amount_nano == -(-3 * tokens // 2) * per_token * 1000
