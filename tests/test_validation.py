"""Answers that fail their check, over a real provider: asked again, from a dearer tier, and told why."""

from __future__ import annotations

from typing import Any

import pytest

import fastroute
from fastroute.testing import Provider

MESSAGES = [{"role": "user", "content": "Name a colour as JSON."}]
SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}


def config(*providers: Provider, **quality: Any) -> dict[str, Any]:
    """One tier a provider, cheapest first."""
    return {
        "fastroute": {"ledger": ""},
        "providers": {f"p{place}": {"base_url": each.base_url} for place, each in enumerate(providers)},
        "endpoints": [{"provider": f"p{place}", "model": f"m{place}"} for place in range(len(providers))],
        "tiers": {f"t{place}": [f"m{place}"] for place in range(len(providers))},
        "quality": quality,
    }


def test_a_failed_answer_goes_up_a_tier_and_says_why() -> None:
    with (
        Provider(models=["m0"], answer="blue") as cheap,
        Provider(models=["m1"], answer='{"colour": "blue"}') as dear,
        fastroute.Client(config(cheap, dear)) as client,
    ):
        reply = client.chat.completions.create(model="t0", messages=MESSAGES, route={"validate": SCHEMA})
        assert reply.choices[0].message.content == '{"colour": "blue"}'
        assert reply.route is not None
        assert (reply.route.model, reply.route.tier) == ("m1", "t1")
        assert [attempt.model for attempt in reply.route.attempts] == ["m0", "m1"]
        sent = dear.requests[0].json["messages"]
        assert [message["role"] for message in sent] == ["user", "assistant", "user"]
        assert "JSON" in sent[2]["content"]
        rates = {(rate.model, rate.measure): rate for rate in client.stats()["rates"]}
        assert rates["m0", "validation"].rate == 0.0
        assert rates["m1", "validation"].rate == 1.0


def test_a_named_model_is_asked_again_as_often_as_allowed_and_the_last_answer_is_attached() -> None:
    with (
        Provider(models=["m0"], answer="blue") as only,
        fastroute.Client(config(only, retries=3, feedback=False)) as client,
    ):
        with pytest.raises(fastroute.ValidationError) as caught:
            client.chat.completions.create(
                model="m0", messages=MESSAGES, route={"validate": r"^\\{", "cache": False}
            )
        assert caught.value.completion is not None
        assert caught.value.completion.text == "blue"
        assert "blue" not in str(caught.value)
        assert len(caught.value.attempts) == 4
        assert {len(request.json["messages"]) for request in only.requests} == {1}


def test_the_top_tier_has_nowhere_to_go_and_is_asked_again() -> None:
    answers = iter(["no", '{"colour": "red"}'])
    with (
        Provider(models=["m0"], answer=lambda request: next(answers)) as only,
        fastroute.Client(config(only)) as client,
    ):
        reply = client.chat.completions.create(model="t0", messages=MESSAGES, route={"validate": SCHEMA})
        assert reply.text == '{"colour": "red"}'


def test_a_callable_judges_and_its_answers_are_not_cached() -> None:
    with (
        Provider(models=["m0"], answer="blue") as only,
        fastroute.Client(config(only)) as client,
    ):

        def blue(completion: fastroute.Completion) -> bool:
            return completion.text == "blue"

        for _ in range(2):
            reply = client.chat.completions.create(
                model="m0",
                messages=MESSAGES,
                route={"validate": blue},
            )
            assert reply.route is not None
            assert not reply.route.cached
        assert len(only.requests) == 2


def test_only_a_good_answer_is_cached_and_another_schema_is_another_question() -> None:
    with (
        Provider(models=["m0"], answer='{"colour": "blue"}') as only,
        fastroute.Client(config(only)) as client,
    ):
        other = {**SCHEMA, "maxProperties": 1}
        for schema, cached in ((SCHEMA, False), (SCHEMA, True), (other, False)):
            reply = client.chat.completions.create(model="m0", messages=MESSAGES, route={"validate": schema})
            assert reply.route is not None
            assert reply.route.cached is cached


@pytest.mark.parametrize("rule", [{"type": "objekt"}, "(", 7])
def test_a_rule_that_cannot_be_one_is_refused_before_anything_is_sent(rule: Any) -> None:
    with (
        Provider(models=["m0"]) as only,
        fastroute.Client(config(only)) as client,
    ):
        with pytest.raises(fastroute.BadRequestError, match="route\\.validate"):
            client.chat.completions.create(model="m0", messages=MESSAGES, route={"validate": rule})
        assert not only.requests


def test_a_streamed_answer_cannot_be_judged_and_says_so() -> None:
    with (
        Provider(models=["m0"]) as only,
        fastroute.Client(config(only)) as client,
        pytest.raises(fastroute.BadRequestError, match="streamed"),
    ):
        client.chat.completions.create(model="m0", messages=MESSAGES, stream=True, route={"validate": SCHEMA})
