"""How long an answer may be: what is sent for a caller who does not say, and what a refusal says of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastroute
from fastroute.calls.worst_case import LEAST_ANSWER, UNBOUNDED_OUTPUT
from fastroute.testing import Answer, Provider

MESSAGES = [{"role": "user", "content": "Hello there"}]
FORMATS = ("openai", "anthropic", "gemini")
HARD = {"name": "all", "limit": 1.0, "window": "total"}
SOFT = {**HARD, "hard": False}


def tables(provider: Provider, model: dict[str, Any], format: str = "openai", **more: Any) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": ""},
        "cache": {"enabled": False},
        "providers": {"p": {"base_url": provider.base_url, "format": format}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1.0, "output_price": 2.0, **model}},
        "policy": {"queue_timeout": 0.05, **more.pop("policy", {})},
        **more,
    }


def sent(provider: Provider) -> int | None:
    """The limit of the answer in the last request."""
    body = provider.requests[-1].json
    limit = body.get("max_tokens", body.get("max_completion_tokens"))
    return limit if limit is not None else body.get("generationConfig", {}).get("maxOutputTokens")


def ask(client: fastroute.Client, **params: Any) -> fastroute.Completion:
    reply = client.chat.completions.create(model="m", messages=MESSAGES, **params)
    assert isinstance(reply, fastroute.Completion)
    return reply


ANTHROPIC_ALWAYS = 8192  # its format has no request without a limit

# the model's lengths, the policy, what the caller says, the budgets; what is sent (None: nothing)
SENT = [
    ({}, None, {}, [], None),
    ({}, None, {}, [SOFT], None),
    ({}, None, {}, [HARD], UNBOUNDED_OUTPUT),
    ({"output_price": 0.0}, None, {}, [HARD], None),
    ({"context_window": 50_000}, None, {}, [HARD], None),
    ({"max_output_tokens": 900}, None, {}, [HARD], None),
    ({}, None, {"max_tokens": 20_000}, [HARD], 20_000),
    ({}, None, {"max_completion_tokens": 20_000}, [HARD], 20_000),
    ({}, None, {"max_tokens": -1}, [HARD], UNBOUNDED_OUTPUT),
    ({}, 700, {}, [], 700),
    ({}, 700, {}, [HARD], 700),
    ({"max_output_tokens": 500}, 700, {}, [], 500),
    ({"max_output_tokens": 900}, 700, {}, [HARD], 700),
    ({}, 700, {"max_tokens": 800}, [HARD], 800),
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "default", "params", "budgets", "limit"), SENT)
def test_what_is_sent(
    format: str,
    model: dict[str, Any],
    default: int | None,
    params: dict[str, Any],
    budgets: list[dict[str, Any]],
    limit: int | None,
    stream: bool,
) -> None:
    policy = {} if default is None else {"default_max_tokens": default}
    with Provider(models=["m"], format=format) as provider:
        settings = tables(provider, model, format, policy=policy, budgets=budgets)
        with fastroute.Client(settings) as client:
            if stream:
                with client.chat.completions.create(
                    model="m", messages=MESSAGES, stream=True, **params
                ) as answer:
                    list(answer)
            else:
                ask(client, **params)
        if limit is None and format == "anthropic":
            limit = model.get("max_output_tokens", ANTHROPIC_ALWAYS)
        assert sent(provider) == limit


@pytest.fixture
def openai() -> Iterator[Provider]:
    with Provider(models=["m"]) as each:
        yield each


def test_the_limit_is_what_the_budget_can_pay_for(openai: Provider) -> None:
    prompt = 0.00005  # dollars; more than the prompt can cost
    with fastroute.Client(tables(openai, {}, budgets=[{**HARD, "limit": 0.002 + prompt}])) as client:
        ask(client)
        limit = sent(openai)
        assert limit is not None
        assert 1000 < limit < 1030
    with fastroute.Client(tables(openai, {}, budgets=[{**HARD, "limit": 0.0004}])) as client:
        before = len(openai.requests)
        with pytest.raises(fastroute.BudgetExceeded) as caught:
            ask(client)
        assert len(openai.requests) == before
        assert f"{UNBOUNDED_OUTPUT:,} output tokens assumed because max_tokens is missing" in str(
            caught.value
        )
        assert "set max_tokens or policy.default_max_tokens" in str(caught.value)
        ask(client, max_tokens=LEAST_ANSWER // 2)  # who says so gets even less


def test_the_tightest_budget_decides(openai: Provider) -> None:
    budgets = [
        HARD,
        {"name": "request", "limit": 0.003, "window": "request"},
        {"name": "soft", "limit": 0.0001, "window": "total", "hard": False},
    ]
    with fastroute.Client(tables(openai, {}, budgets=budgets)) as client:
        ask(client)
        limit = sent(openai)
        assert limit is not None
        assert 1400 < limit <= 1500
    shares = [{**HARD, "limit": 0.01, "shares": {"low": 0.3}}]
    with fastroute.Client(tables(openai, {}, budgets=shares)) as client:
        ask(client, route={"priority": "low"})
        limit = sent(openai)
        assert limit is not None
        assert 1400 < limit <= 1500


def test_several_answers_share_what_the_budget_can_pay_for(openai: Provider) -> None:
    with fastroute.Client(tables(openai, {}, budgets=[{**HARD, "limit": 0.006}])) as client:
        ask(client, n=3)
        limit = sent(openai)
        assert limit is not None
        assert 900 < limit <= 1000


def test_an_allowance_is_hard_too(openai: Provider) -> None:
    with fastroute.Client(tables(openai, {})) as client:
        ask(client.with_options(budget=1.0))
        assert sent(openai) == UNBOUNDED_OUTPUT
        with pytest.raises(fastroute.BudgetExceeded, match="max_tokens is missing"):
            ask(client.with_options(budget=0.001))


def test_no_bill_passes_a_limit_whatever_the_model_would_write(openai: Provider) -> None:
    """As in the field: nothing is known of the model but its prices, and it writes as much as it may."""
    billed = 0
    counting = threading.Lock()

    def answer(question: Any) -> Answer:
        nonlocal billed
        written = min(question.json.get("max_tokens", 20_000), 20_000)
        with counting:
            billed += 10 * 1000 + written * 2000
        return Answer("x", prompt_tokens=10, completion_tokens=written)

    openai.answer = answer
    with fastroute.Client(tables(openai, {}, budgets=[{**HARD, "limit": 0.05}])) as client:
        refusals = []
        for _ in range(12):
            try:
                ask(client)
            except fastroute.BudgetExceeded as error:
                refusals.append(str(error))
    assert refusals
    assert all("max_tokens" in refusal for refusal in refusals)
    assert 40_000_000 < billed <= 50_000_000


def test_an_answer_that_the_default_has_cut_is_asked_for_again_with_more(openai: Provider) -> None:
    lengths: list[int | None] = []

    def answer(question: Any) -> Answer:
        lengths.append(question.json.get("max_tokens"))
        return Answer(
            "no" if len(lengths) == 1 else "yes", finish_reason="length" if len(lengths) == 1 else None
        )

    openai.answer = answer
    with fastroute.Client(tables(openai, {}, policy={"default_max_tokens": 100})) as client:
        reply = ask(client, route={"validate": "yes"})
        assert reply.text == "yes"
    assert lengths == [100, 200]


def test_estimates_know_the_default(openai: Provider, tmp_path: Path) -> None:
    reasoning = {"capabilities": ["streaming", "reasoning"]}
    with fastroute.Client(tables(openai, reasoning)) as client:
        free = client.plan(model="m", messages=MESSAGES).estimate
    policy = {"default_max_tokens": 100}
    with fastroute.Client(tables(openai, reasoning, policy=policy)) as client:
        short = client.plan(model="m", messages=MESSAGES).estimate
        assert short.output_tokens == 100 < free.output_tokens
        assert short.timeout < free.timeout
        assert client.plan(model="m", messages=MESSAGES, max_tokens=300).estimate.output_tokens == 300


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "many", True])
def test_a_wrong_default_is_refused(openai: Provider, wrong: Any) -> None:
    with pytest.raises(fastroute.ConfigError, match=r"policy\.default_max_tokens"):
        fastroute.Client(tables(openai, {}, policy={"default_max_tokens": wrong}))
