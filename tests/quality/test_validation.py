"""Answers that fail validation: asked again, at a more expensive tier, with the reason."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

import fastroute
import fastroute.testing
from fastroute.events import AttemptFinished
from fastroute.testing import Fault, Provider, Received

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
        # An answer came from both: that it was not good enough is another measure.
        assert rates["m0", "success"].rate == rates["m1", "success"].rate == 1.0


@pytest.mark.parametrize(
    ("begin", "good", "asked"),
    [
        ("t0", 1, ["m0", "m1"]),  # one tier up, not the dearest
        ("t0", 2, ["m0", "m1", "m2"]),
        ("t1", 2, ["m1", "m2"]),  # up, not down
        ("t1", None, ["m1", "m2", "m2"]),  # at the top it is asked once more
    ],
)
def test_of_three_tiers_each_failed_answer_goes_up_by_one(
    begin: str, good: int | None, asked: list[str]
) -> None:
    answers = ['{"colour": "blue"}' if place == good else "blue" for place in range(3)]
    with ExitStack() as stack:
        tiers = [stack.enter_context(Provider(models=[f"m{i}"], answer=answers[i])) for i in range(3)]
        client = stack.enter_context(fastroute.Client(config(*tiers, retries=2)))
        events: list[fastroute.Attempt] = []
        client.on(lambda event: events.append(event.attempt), AttemptFinished)
        try:
            reply = client.chat.completions.create(model=begin, messages=MESSAGES, route={"validate": SCHEMA})
            assert good is not None
            assert reply.route is not None
            assert reply.route.tier == f"t{good}"
        except fastroute.ValidationError:
            assert good is None
        assert [attempt.model for attempt in events] == asked
        assert [attempt.tier for attempt in events] == [f"t{model[1]}" for model in asked]


def test_without_escalation_the_same_tier_is_asked_again() -> None:
    with (
        Provider(models=["m0"], answer="blue") as cheap,
        Provider(models=["m1"], answer='{"colour": "blue"}') as dear,
        fastroute.Client(config(cheap, dear, escalate=False)) as client,
    ):
        with pytest.raises(fastroute.ValidationError) as caught:
            client.chat.completions.create(model="t0", messages=MESSAGES, route={"validate": SCHEMA})
        assert {attempt.model for attempt in caught.value.attempts} == {"m0"}
        assert not dear.requests


def test_an_answer_that_was_judged_is_no_failed_attempt() -> None:
    def answer(received: Received) -> str:
        return "blue" if len(received.json["messages"]) == 1 else '{"colour": "blue"}'

    with Provider(models=["m0"], answer=answer) as only:
        policy = {"max_attempts": 2, "backoff_base": 0.001}
        only.script(None, Fault.status(503), None)
        with fastroute.Client({**config(only), "policy": policy}) as client:
            reply = client.chat.completions.create(model="m0", messages=MESSAGES, route={"validate": SCHEMA})
        assert reply.route is not None
        assert [attempt.outcome for attempt in reply.route.attempts] == ["ok", "failed", "ok"]


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


LONG = '{"colour": "' + "blue " * 40 + '"}'


def cut(request: Any) -> fastroute.testing.Answer:
    """The whole of it where there is room, else as much as fits, four characters a token."""
    room = request.json["max_tokens"] * 4
    return fastroute.testing.Answer(LONG[:room], finish_reason="length" if room < len(LONG) else "stop")


def test_a_cut_answer_is_asked_for_again_with_more_room_and_nothing_else() -> None:
    with (
        Provider(models=["m0"], answer=cut) as cheap,
        Provider(models=["m1"]) as dear,
        fastroute.Client(config(cheap, dear)) as client,
    ):
        reply = client.chat.completions.create(
            model="t0", messages=MESSAGES, max_tokens=20, route={"validate": SCHEMA}
        )
        assert reply.text == LONG
        assert reply.route is not None
        assert (reply.route.model, reply.route.tier) == ("m0", "t0")
        assert [request.json["max_tokens"] for request in cheap.requests] == [20, 40, 80]
        assert {len(request.json["messages"]) for request in cheap.requests} == {1}
        assert not dear.requests


def test_the_other_name_of_the_limit_is_raised_and_held_to_what_the_model_gives() -> None:
    def answer(request: Any) -> fastroute.testing.Answer:
        return fastroute.testing.Answer('{"colour": "bl', finish_reason="length")

    settings = config() | {"models": {"m0": {"max_output_tokens": 50}}}
    with Provider(models=["m0"], answer=answer) as only:
        settings |= {
            "providers": {"p0": {"base_url": only.base_url}},
            "endpoints": [{"provider": "p0", "model": "m0"}],
            "tiers": {"t0": ["m0"]},
        }
        with fastroute.Client(settings) as client:
            with pytest.raises(fastroute.ValidationError, match="gives 50 tokens at most") as caught:
                client.chat.completions.create(
                    model="t0",
                    messages=MESSAGES,
                    max_completion_tokens=30,
                    route={"validate": SCHEMA, "cache": False},
                )
            assert [request.json["max_completion_tokens"] for request in only.requests] == [30, 50]
            assert len(caught.value.attempts) == 2
            assert caught.value.completion is not None
            assert "cut off" in caught.value.reason


@pytest.mark.parametrize(
    ("params", "quality", "said"),
    [
        ({}, {}, "the model itself gave no more"),
        ({"max_tokens": 20}, {"lengthen": False}, "quality.lengthen is off"),
    ],
)
def test_a_cut_answer_that_cannot_be_longer_is_paid_for_once(
    params: dict[str, Any], quality: dict[str, Any], said: str
) -> None:
    answer = fastroute.testing.Answer('{"colour": "bl', finish_reason="length")
    with (
        Provider(models=["m0"], answer=answer) as only,
        fastroute.Client(config(only, **quality)) as client,
    ):
        with pytest.raises(fastroute.ValidationError, match=said) as caught:
            client.chat.completions.create(
                model="t0", messages=MESSAGES, route={"validate": SCHEMA}, **params
            )
        assert len(only.requests) == len(caught.value.attempts) == 1


def test_what_a_longer_answer_would_cost_is_held_to_the_price_cap() -> None:
    with Provider(models=["m0"], answer=cut) as only:
        settings = config(only) | {"models": {"m0": {"input_price": 0.001, "output_price": 1000.0}}}
        with fastroute.Client(settings) as client:
            with pytest.raises(fastroute.ValidationError, match="cut off"):
                client.chat.completions.create(
                    model="t0", messages=MESSAGES, max_tokens=20, route={"validate": SCHEMA, "max_cost": 0.05}
                )
            assert [request.json["max_tokens"] for request in only.requests] == [20]


def test_a_rule_with_a_key_is_part_of_the_caches_key() -> None:
    from fastroute.quality import Validator

    class Blue:
        def __init__(self, key: str) -> None:
            self.key = key

        def __call__(self, completion: fastroute.Completion) -> bool:
            return completion.text == "blue"

    def blue(completion: fastroute.Completion) -> bool:
        return completion.text == "blue"

    with (
        Provider(models=["m0"], answer="blue") as only,
        fastroute.Client(config(only)) as client,
    ):
        for rule, cached in (
            (Validator("^blue$"), False),
            (Validator("^blue$"), True),
            (Validator("^blue"), False),
            (Validator(blue, key="blue-1"), False),
            (Validator(blue, key="blue-1"), True),
            (Validator(blue, key="blue-2"), False),
            (Validator(blue), False),
            (Validator(blue), False),
            (Blue("blue-1"), True),
            (Blue("blue-3"), False),
            (Validator(Blue("blue-3")), True),
        ):
            reply = client.chat.completions.create(model="m0", messages=MESSAGES, route={"validate": rule})
            assert reply.route is not None
            assert reply.route.cached is cached


@pytest.mark.parametrize(("rule", "key"), [("^blue$", "mine"), (lambda reply: True, ""), (SCHEMA, "mine")])
def test_a_key_that_cannot_be_one_is_refused(rule: Any, key: str) -> None:
    from fastroute.quality import Validator

    with pytest.raises(fastroute.BadRequestError, match="key"):
        Validator(rule, key=key)
