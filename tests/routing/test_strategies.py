"""Strategies among the models of a tier, and strategies that a program registers."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from loopback import MODEL, Loopback, core_of
from test_plan import MODELS, asked, made

import fastroute
from fastroute import _core, events
from fastroute.config.policy import STRATEGIES, registered_strategies
from fastroute.routing import strategies

Start = Callable[..., Loopback]
THREE = ("small", "middle", "large")


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    before = dict(registered_strategies)
    registered_strategies.clear()  # an example of the documentation may have registered one
    yield
    registered_strategies.clear()
    registered_strategies.update(before)


def firsts(client: fastroute.Client, count: int, **words: Any) -> Counter[str]:
    return Counter(client.plan(messages=asked(), **words).candidates[0].model for _ in range(count))


def order(client: fastroute.Client, **words: Any) -> list[str]:
    plan = client.plan(messages=asked(), **{"model": "all", **words})
    return [candidate.model for candidate in plan.candidates if candidate.rank is not None]


# ------------------------------------------------------------------------------------------- among models


@pytest.mark.parametrize("asked_for", ["all", "auto"])
def test_weights_share_a_tier_among_its_models(asked_for: str) -> None:
    weights = {"small": 60, "middle": 30, "large": 10}
    endpoints = [{"provider": "p", "model": model, "weight": weight} for model, weight in weights.items()]
    policy = {"tier_strategy": "weighted", "classes": {"trivial": "all"}}
    with made(endpoints=endpoints, policy=policy) as client:
        found = firsts(client, 2000, model=asked_for)
        for model, weight in weights.items():
            share = weight / 100
            assert abs(found[model] / 2000 - share) < 5 * math.sqrt(share * (1 - share) / 2000)


def test_a_models_weight_is_the_sum_of_its_endpoints() -> None:
    endpoints = [
        *({"provider": "p", "model": "small", "weight": 30, "name": name} for name in ("one", "two")),
        {"provider": "p", "model": "middle", "weight": 40},
    ]
    tiers = {"all": ["middle", "small"]}
    models = {name: MODELS[name] for name in ("small", "middle")}
    tables: dict[str, Any] = {"endpoints": endpoints, "tiers": tiers, "models": models}
    with made(**tables, policy={"tier_strategy": "weighted"}) as client:
        found = firsts(client, 2000, model="all")
        assert abs(found["small"] / 2000 - 0.6) < 5 * math.sqrt(0.6 * 0.4 / 2000)


@pytest.mark.parametrize("strategy", ["value", *STRATEGIES])
def test_a_tier_is_ordered_by_its_strategy(strategy: str) -> None:
    tiers = {"budget": ["small"], "all": ["large", "small", "middle"]}
    with made(tiers=tiers, policy={"tier_strategy": strategy}) as client:
        latencies = {"small": 0.3, "middle": 0.1, "large": 0.2}
        for calls, model in enumerate(("small", "middle", "large")):
            core = core_of(client, f"p/{model}")
            core.finish(core.admit(100 * (calls + 1)), _core.OK, latencies[model])
            for _ in range(calls):
                core.admit()
        expected = {
            "value": ["small", "middle", "large"],
            "ordered": ["large", "small", "middle"],
            "lowest-cost": ["small", "middle", "large"],
            "lowest-usage": ["small", "middle", "large"],
            "least-busy": ["small", "middle", "large"],
            "latency": ["middle", "small", "large"],
        }
        if strategy in expected:
            assert order(client) == expected[strategy]
        else:
            assert len({tuple(order(client)) for _ in range(60)}) > 1


def test_what_a_request_asks_for_itself_keeps_the_strategy() -> None:
    with made(tiers={"all": ["large", "small", "middle"]}, policy={"tier_strategy": "ordered"}) as client:
        assert order(client, route={"max_cost": 1.0}) == ["large", "small", "middle"]


@pytest.mark.parametrize("name", ["strategy", "tier_strategy"])
def test_an_unknown_strategy_is_refused_with_those_that_there_are(name: str) -> None:
    strategies.register("my-own", lambda options, request: [0.0] * len(options))
    with pytest.raises(
        fastroute.ConfigError, match=r"unknown strategy 'fastest'; use one of .*my-own"
    ) as got:
        made(policy={name: "fastest"})
    assert f"policy.{name}" in str(got.value)
    assert ("value" in str(got.value)) == (name == "tier_strategy")


# --------------------------------------------------------------------------------------------- registered


def test_a_registered_strategy_orders_the_models_of_a_tier() -> None:
    seen: list[strategies.Option] = []

    def dearest(options: Sequence[strategies.Option], request: fastroute.types.Request) -> list[float]:
        seen[:] = options
        assert request.messages == asked()
        return [-(option.price or 0.0) for option in options]

    strategies.register("dearest", dearest)
    policy = {"tier_strategy": "dearest", "classes": {"trivial": "all"}}
    with made(policy=policy, aliases={"best": "large"}) as client:
        assert order(client) == ["large", "middle", "small"]
        assert order(client, model="auto") == ["large", "middle", "small"]
        assert [option.model for option in seen] == list(THREE)
        assert seen[0] == strategies.Option(
            endpoint="p/small",
            provider="p",
            model="small",
            tier="all",
            weight=1,
            price=seen[0].price,
            quality=0.5,
            latency=1.0,
            success_rate=1.0,
            health=100,
            in_flight=0,
            usage=0.0,
        )
        assert order(client, model="best") == ["large"]  # a model: nothing is chosen among models
        core_of(client, "p/large").block(_core.clock() + 10**12, 1)
        assert order(client) == ["middle", "small"]
        assert [option.model for option in seen] == ["small", "middle"]


def test_a_registered_strategy_decides_calls_plain_streamed_and_after_a_failure(start: Start) -> None:
    names: list[str] = []

    def last_first(options: Sequence[strategies.Option], request: Any) -> list[int]:
        names.append(threading.current_thread().name)
        return [-place for place in range(len(options))]

    strategies.register("last-first", last_first)
    loop = start(3, policy={"strategy": "last-first"})
    loop.ask()
    with loop.stream() as stream:
        assert list(stream)
    loop.provider("c").script(fastroute.testing.Fault.status(503))
    loop.ask()
    assert [attempt.provider for attempt in loop.attempts] == ["c", "c", "c", "b"]
    assert set(names) == {threading.current_thread().name}


def test_an_unhealthy_endpoint_comes_last_all_the_same() -> None:
    strategies.register("as-written", lambda options, request: list(range(len(options))))
    with made(policy={"tier_strategy": "as-written", "strategy": "as-written"}) as client:
        core = core_of(client, "p/small")
        for _ in range(3):
            core.finish(core.admit(), _core.USELESS)
        assert order(client) == ["middle", "large", "small"]


def raises(options: Any, request: Any) -> Any:
    raise RuntimeError("the prompt")


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (raises, "it raised RuntimeError"),
        (lambda options, request: [1.0], "it returned 1 numbers for 3 endpoints"),
        (lambda options, request: [1.0, math.nan, 2.0], "it returned a number that is NaN"),
        (lambda options, request: None, "it raised TypeError"),
        (lambda options, request: ["a", "b", "c"], "it raised ValueError"),
    ],
    ids=["raises", "too-few", "nan", "nothing", "text"],
)
def test_a_strategy_that_fails_fails_no_call(
    scores: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategies.register("broken", scores)
    with made(policy={"tier_strategy": "broken"}) as client, caplog.at_level(logging.WARNING, "fastroute"):
        heard: list[events.StrategyFailed] = []
        client.on(heard.append, events.StrategyFailed)
        for _ in range(3):
            assert order(client) == list(THREE)  # by value
        assert [(event.strategy, event.reason) for event in heard] == [("broken", reason)] * 3
        assert len(caplog.records) == 1
        assert "the prompt" not in caplog.text


@pytest.mark.parametrize(
    ("name", "scores", "error"),
    [
        ("latency", len, ValueError),
        ("value", len, ValueError),
        ("Mine", len, ValueError),
        ("", len, ValueError),
        ("mine", "not a function", TypeError),
        ("taken", len, ValueError),
    ],
)
def test_what_cannot_be_registered(name: str, scores: Any, error: type[Exception]) -> None:
    strategies.register("taken", max)
    strategies.register("taken", max)  # the same function again is no mistake
    with pytest.raises(error):
        strategies.register(name, scores)
    strategies.register("taken", min, replace=True)
    assert strategies.names() == (*STRATEGIES, "taken")


def test_a_configuration_keeps_the_function_that_it_started_with(start: Start) -> None:
    strategies.register("mine", lambda options, request: [1.0, 0.0])
    loop = start(2, policy={"strategy": "mine"})
    strategies.register("mine", lambda options, request: [0.0, 1.0], replace=True)
    assert loop.client.plan(model=MODEL, messages=asked()).candidates[0].provider == "b"
    loop.client.reload()
    assert loop.client.plan(model=MODEL, messages=asked()).candidates[0].provider == "a"
