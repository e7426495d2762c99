"""Names of models as callers write them: an endpoint's name pins its provider, the case does not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from loopback import MODEL, OTHER, Loopback

import fastroute
from fastroute.gateway.keys import Caller
from fastroute.gateway.models import ServedModels
from fastroute.testing import Fault

Start = Callable[..., Loopback]
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def loop(start: Start) -> Loopback:
    return start(
        2,
        more_endpoints=[
            {"provider": "b", "model": OTHER},
            {"provider": "b", "model": MODEL, "name": "second", "upstream": "again"},
            {"provider": "b", "model": "vendor/Cased"},
            {"provider": "a", "model": "vendor/cased"},
        ],
        models={
            MODEL: {"input_price": 1.0, "output_price": 2.0, "fallbacks": [OTHER]},
            OTHER: {"input_price": 1.0, "output_price": 2.0},
        },
        aliases={"short": MODEL},
        tiers={"cheap": [MODEL], "dear": [OTHER]},
    )


def endpoints(loop: Loopback, model: str, **route: Any) -> list[str]:
    plan = loop.client.plan(model=model, messages=MESSAGES, route=route)
    return [candidate.endpoint for candidate in plan.candidates]


NAMES = {
    f"a/{MODEL}": [f"a/{MODEL}"],
    f"b/{MODEL}": [f"b/{MODEL}", "second"],
    "second": [f"b/{MODEL}", "second"],
    "b/short": [f"b/{MODEL}", "second"],
    f"B/{MODEL.upper()}": [f"b/{MODEL}", "second"],
    MODEL: [f"a/{MODEL}", f"b/{MODEL}", "second", f"b/{OTHER}"],
    MODEL.upper(): [f"a/{MODEL}", f"b/{MODEL}", "second", f"b/{OTHER}"],
    "SHORT": [f"a/{MODEL}", f"b/{MODEL}", "second", f"b/{OTHER}"],
    OTHER.title(): [f"b/{OTHER}"],
    "vendor/Cased": ["b/vendor/Cased"],
    "vendor/cased": ["a/vendor/cased"],
}


@pytest.mark.parametrize(("name", "found"), NAMES.items(), ids=NAMES.keys())
def test_a_name_finds_its_endpoints(loop: Loopback, name: str, found: list[str]) -> None:
    assert sorted(endpoints(loop, name)) == sorted(found)


@pytest.mark.parametrize("name", ["AUTO", "Cheap", "DEAR"])
def test_tiers_and_auto_are_found_in_another_case(loop: Loopback, name: str) -> None:
    assert endpoints(loop, name) == endpoints(loop, name.lower())


@pytest.mark.parametrize("name", ["VENDOR/CASED", "a/unknown", "c/" + MODEL, f"a/{OTHER}", "a/"])
def test_what_is_unknown_or_ambiguous_stays_an_error(loop: Loopback, name: str) -> None:
    with pytest.raises(fastroute.ModelNotFoundError) as raised:
        loop.client.plan(model=name, messages=MESSAGES)
    assert raised.value.suggestions


def test_a_pinned_call_never_leaves_its_provider(loop: Loopback) -> None:
    loop.provider("a").script(Fault.status(500), repeat=True)
    with pytest.raises(fastroute.InternalServerError) as raised:
        loop.ask(model=f"a/{MODEL}")
    assert {attempt.provider for attempt in raised.value.attempts} == {"a"}
    assert loop.provider("b").received == 0
    assert loop.ask().route.provider == "b"  # type: ignore[union-attr]


def test_names_that_callers_make_up_are_not_kept(loop: Loopback) -> None:
    planner = loop.client.runtime.generation.planner
    loop.ask(model=f"a/{MODEL}")
    before = planner.remembered
    for place in range(len(MODEL)):
        loop.ask(model=f"a/{MODEL[:place]}{MODEL[place:].upper()}")
    assert planner.remembered == before


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        (f"a/{MODEL}", True),
        (MODEL.upper(), True),
        ("short", True),
        (f"b/{OTHER}", False),
        (OTHER.upper(), False),
    ],
)
def test_a_key_of_the_gateway_may_use_other_spellings_of_its_models(
    loop: Loopback, name: str, allowed: bool
) -> None:
    served = ServedModels(loop.client.config)
    caller = Caller("web", models=(MODEL,))
    if allowed:
        assert served.asked_for(name, caller) == name
    else:
        with pytest.raises(fastroute.PermissionDeniedError):
            served.asked_for(name, caller)
