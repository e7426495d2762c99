"""Plans: the candidates, their order and the explanation; nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from loopback import core_of

import fastroute
from fastroute import _core
from fastroute.config.policy import STRATEGIES

MODELS = {
    "small": {
        "input_price": 1.0,
        "output_price": 1.0,
        "quality": 0.5,
        "latency": 1.0,
        "context_window": 1000,
    },
    "middle": {"input_price": 5.0, "output_price": 5.0, "quality": 0.8, "latency": 1.0},
    "large": {"input_price": 50.0, "output_price": 50.0, "quality": 0.95, "latency": 1.0},
}


def made(**tables: Any) -> fastroute.Client:
    return fastroute.Client(
        {
            "fastroute": {"ledger": ""},
            "providers": {"p": {"base_url": "http://127.0.0.1:1/v1"}},
            "endpoints": [{"provider": "p", "model": name} for name in MODELS],
            "models": MODELS,
            "tiers": {"budget": ["small"], "standard": ["middle"], "premium": ["large"], "all": list(MODELS)},
            **tables,
        }
    )


@pytest.fixture
def client() -> Iterator[fastroute.Client]:
    with made() as client:
        yield client


def asked(text: str = "hi") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_auto_goes_by_class(client: fastroute.Client) -> None:
    trivial = client.plan(messages=asked())
    assert trivial.classification.level == "trivial"
    assert trivial.tier == "budget"
    hard = client.plan(
        messages=asked(
            "analyze, compare, evaluate, design, explain and derive this; synthesize, architect " * 20
        )
    )
    assert hard.classification.level == "expert"
    assert hard.classification.matches
    assert hard.tier == "all"


def test_a_tier_is_ordered_by_price_over_quality_and_speed(client: fastroute.Client) -> None:
    plan = client.plan(model="all", messages=asked(), max_tokens=10)
    assert [candidate.model for candidate in plan.candidates] == ["small", "middle", "large"]
    assert [candidate.rank for candidate in plan.candidates] == [0, 1, 2]
    values = [candidate.value for candidate in plan.candidates]
    assert values == sorted(values)


def test_a_floor_leaves_the_cheap_ones_out_and_says_so(client: fastroute.Client) -> None:
    plan = client.plan(model="all", messages=asked(), route={"quality": 0.9})
    first, *rest = plan.candidates
    assert first.model == "large"
    assert {candidate.rank for candidate in rest} == {None}
    assert "quality 0.5 is under the floor" in str(plan)
    assert not plan.relaxed


def test_if_nothing_meets_the_wishes_the_best_is_taken(client: fastroute.Client) -> None:
    plan = client.plan(model="all", messages=asked(), route={"quality": 1.0})
    assert plan.relaxed
    assert plan.candidates[0].model == "large"
    assert "best quality first" in str(plan)


def test_a_window_too_small_moves_the_request_on(client: fastroute.Client) -> None:
    plan = client.plan(model="all", messages=asked("word " * 2000))
    assert [candidate.model for candidate in plan.candidates if candidate.rank is not None] == [
        "middle",
        "large",
    ]
    assert "window 1000" in str(plan)


PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("capability", "asks"),
    [
        ("streaming", {"stream": True}),
        ("tools", {"tools": [{"type": "function", "function": FUNCTION}]}),
        ("tools", {"functions": [FUNCTION]}),
        ("vision", {"messages": [{"role": "user", "content": [PICTURE]}]}),
        (
            "json_schema",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        ),
    ],
    ids=str,
)
def test_models_that_cannot_do_what_is_asked_are_left_out(capability: str, asks: dict[str, Any]) -> None:
    abilities = {"streaming", "tools", "vision", "json_schema"}
    models = {
        "small": {**MODELS["small"], "capabilities": sorted(abilities - {capability})},
        "middle": {**MODELS["middle"], "capabilities": sorted(abilities)},
        "large": {**MODELS["large"], "capabilities": sorted(abilities)},
    }
    with made(models=models) as client:
        plan = client.plan(model="all", **{"messages": asked(), **asks})
        assert {candidate.model for candidate in plan.candidates if candidate.rank is not None} == {
            "middle",
            "large",
        }
        assert "left out: no " in str(plan)
        plain = client.plan(model="all", messages=asked())
        assert plain.candidates[0].model == "small"


def test_the_definitions_of_tools_are_part_of_what_is_sent(client: fastroute.Client) -> None:
    tool = {"type": "function", "function": {**FUNCTION, "description": "word " * 1000}}
    plan = client.plan(model="middle", messages=asked(), tools=[tool])
    assert plan.estimate.input_tokens > 1000


def test_a_plan_sends_and_takes_nothing(client: fastroute.Client) -> None:
    before = client.stats()["endpoints"]
    for _ in range(10):
        str(client.plan(messages=asked()))
    after = client.stats()["endpoints"]
    assert {name: at["in_flight"] for name, at in after.items()} == dict.fromkeys(before, 0)


def test_unknown_names_do_not_grow_the_planner(client: fastroute.Client) -> None:
    """Case 185 of the catalogue: what callers write must not stay."""
    planner = client.runtime.generation.planner
    for number in range(50):
        with pytest.raises(fastroute.ModelNotFoundError):
            client.plan(model=f"unknown-{number}", messages=asked())
        client.plan(model="small", messages=asked(f"prompt {number}"))
    assert 0 < planner.remembered < 10


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_plans(strategy: str) -> None:
    with made(policy={"strategy": strategy}) as client:
        assert client.plan(model="all", messages=asked()).candidates[0].rank == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_unhealthy_endpoint_comes_after_the_healthy_ones_and_the_plan_says_so(strategy: str) -> None:
    with made(policy={"strategy": strategy}) as client:
        assert client.plan(model="all", messages=asked()).candidates[0].model == "small"
        core = core_of(client, "p/small")
        for _ in range(3):
            core.finish(core.admit(), _core.USELESS)
        plan = client.plan(model="all", messages=asked())
        assert [candidate.model for candidate in plan.candidates] == ["middle", "large", "small"]
        assert plan.candidates[2].health == 55
        assert "after healthy ones: health 55 of 100, 100% errors" in str(plan)
