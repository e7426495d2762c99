"""Failover: chains, cheaper tiers, the retry budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from loopback import Loopback

import fastroute
from fastroute.events import RetryBudgetExhausted
from fastroute.testing import Answer, Fault, Provider

Start = Callable[..., Loopback]
MESSAGES = [{"role": "user", "content": "Hello there"}]
TOO_LONG = Fault.error("context_length_exceeded")
FILTERED = Fault.error("content_filter")


def config(models: dict[str, dict[str, Any]], *providers: Provider, **more: Any) -> dict[str, Any]:
    """One model a provider, in the order of both."""
    return {
        "fastroute": {"ledger": ""},
        "providers": {f"p{place}": {"base_url": each.base_url} for place, each in enumerate(providers)},
        "endpoints": [{"provider": f"p{place}", "model": name} for place, name in enumerate(models)],
        "models": models,
        "cache": {"enabled": False},
        **more,
    }


@pytest.fixture
def three() -> Any:
    with Provider() as first, Provider() as second, Provider() as third:
        yield first, second, third


@pytest.mark.parametrize(
    ("fault", "stream", "told"),
    [
        (Fault.status(503), False, True),
        (Fault.status(503), True, True),
        (Fault.status(401), False, True),
        (Fault.status(200, b'{"choices": []}'), False, True),
        (Fault.html(), False, True),
        (Fault.html(), True, True),
        (Fault.truncated(), False, True),
        (Fault.stream_cut(after=0), True, True),
        (Fault.stream_cut(after=2), True, True),
        (Fault.stream_error(after=2), True, True),
        (Fault.cut_headers(), False, False),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else None,
)
def test_the_providers_id_of_a_failed_request_is_recorded(
    start: Start, fault: Fault, stream: bool, told: bool
) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.ask()
    loop.provider().script(fault)
    with pytest.raises(fastroute.Error):
        list(loop.stream()) if stream else loop.ask()
    good, failed = loop.attempts
    assert (good.request_id, failed.request_id) == ("req_00000001", "req_00000002" if told else None)
    assert failed.outcome == "failed"


def models_of(reply: fastroute.Completion) -> list[str]:
    assert reply.route is not None
    return [attempt.model for attempt in reply.route.attempts]


def test_input_too_long_goes_along_its_own_chain(three: Any) -> None:
    models = {"a": {"fallbacks": ["b"], "context_fallbacks": ["c"]}, "b": {}, "c": {}}
    three[0].script(TOO_LONG, Fault.status(503))
    with fastroute.Client(config(models, *three)) as client:
        assert models_of(client.chat.completions.create(model="a", messages=MESSAGES)) == ["a", "c"]
        assert models_of(client.chat.completions.create(model="a", messages=MESSAGES)) == ["a", "b"]


def test_filtered_content_goes_along_its_own_chain_and_without_one_is_the_answer(three: Any) -> None:
    models = {"a": {"fallbacks": ["b"], "content_fallbacks": ["c"]}, "b": {}, "c": {}}
    with fastroute.Client(config(models, *three)) as client:
        three[0].script(FILTERED)
        assert models_of(client.chat.completions.create(model="a", messages=MESSAGES)) == ["a", "c"]
        three[1].script(FILTERED)
        with pytest.raises(fastroute.ContentFilterError):
            client.chat.completions.create(model="b", messages=MESSAGES)
        three[0].script(FILTERED)
        three[2].script(FILTERED)
        with pytest.raises(fastroute.ContentFilterError) as caught:
            client.chat.completions.create(model="a", messages=MESSAGES)
        assert [attempt.model for attempt in caught.value.attempts] == ["a", "c"]


def test_fallbacks_are_followed_breadth_first_and_the_error_is_the_primary_ones(three: Any) -> None:
    models = {"a": {"fallbacks": ["b"]}, "b": {"fallbacks": ["c"]}, "c": {}}
    with fastroute.Client(config(models, *three)) as client:
        three[0].script(Fault.status(503))
        three[1].script(Fault.reset())
        assert models_of(client.chat.completions.create(model="a", messages=MESSAGES)) == ["a", "b", "c"]
        three[0].script(Fault.status(529))
        three[1].script(Fault.reset())
        three[2].script(Fault.status(500))
        with pytest.raises(fastroute.InternalServerError) as caught:
            client.chat.completions.create(model="a", messages=MESSAGES)
        assert caught.value.status_code == 529
        assert [attempt.model for attempt in caught.value.attempts] == ["a", "b", "c"]


@pytest.mark.parametrize("cascade", [True, False])
def test_a_tier_that_cannot_serve_is_followed_by_the_cheaper_ones(three: Any, cascade: bool) -> None:
    tiers = {"budget": ["a"], "standard": ["b"], "premium": ["c"]}
    settings = config({"a": {}, "b": {}, "c": {}}, *three, tiers=tiers, policy={"cascade": cascade})
    three[2].script(Fault.status(500), repeat=True)
    three[1].script(Fault.status(500), repeat=True)
    with fastroute.Client(settings) as client:
        if cascade:
            reply = client.chat.completions.create(model="premium", messages=MESSAGES)
            assert models_of(reply) == ["c", "b", "a"]
            assert reply.route is not None
            assert reply.route.tier == "budget"
        else:
            with pytest.raises(fastroute.InternalServerError):
                client.chat.completions.create(model="premium", messages=MESSAGES, timeout=2)
            assert not three[0].requests


def test_case_100_an_empty_retry_budget_stops_retries_and_never_failover(three: Any) -> None:
    settings = config({"a": {"fallbacks": ["b"]}, "b": {}}, *three[:2])
    heard: list[str] = []
    with fastroute.Client(settings) as client:
        client.on(lambda event: heard.append(event.endpoint), RetryBudgetExhausted)
        core = {each.name: each.core for each in client.runtime.generation.state.endpoints}
        while core["p0/a"].withdraw():
            pass
        while core["p1/b"].withdraw():
            pass
        three[0].script(Fault.status(503))
        assert models_of(client.chat.completions.create(model="a", messages=MESSAGES)) == ["a", "b"]
        assert not heard
        three[1].script(Fault.status(503))
        with pytest.raises(fastroute.InternalServerError) as caught:
            client.chat.completions.create(model="b", messages=MESSAGES)
        assert len(caught.value.attempts) == 1
        assert heard == ["p1/b"]


def test_first_attempts_earn_their_endpoint_retries(three: Any) -> None:
    with fastroute.Client(config({"a": {}}, three[0])) as client:
        for _ in range(30):
            client.chat.completions.create(model="a", messages=MESSAGES)
        (endpoint,) = client.runtime.generation.state.endpoints
        assert sum(endpoint.core.withdraw() for _ in range(30)) > 11  # ten are everybody's


def test_a_model_at_the_end_of_two_chains_comes_once(three: Any) -> None:
    chains = {"a": {"fallbacks": ["b", "c"]}, "b": {"fallbacks": ["c"]}, "c": {}}
    with fastroute.Client(config(chains, *three)) as client:
        plan = client.plan(model="a", messages=MESSAGES)
        assert [candidate.model for candidate in plan.candidates] == ["a", "b", "c"]


def test_no_more_tokens_are_reserved_than_the_model_can_give(three: Any) -> None:
    models = {"a": {"max_output_tokens": 8000, "fallbacks": ["b"]}, "b": {"max_output_tokens": 100}}
    settings = config(models, *three[:2])
    settings["providers"]["p1"].update(tpm=1000, token_burst=1000)
    three[0].script(Fault.status(401))
    with fastroute.Client(settings) as client:
        reply = client.chat.completions.create(model="a", messages=MESSAGES, max_tokens=5000)
        assert models_of(reply) == ["a", "b"]


def test_the_estimate_learns_from_the_usage_that_comes_back() -> None:
    """English takes fewer tokens than the first guess: what fits is left in once that is known."""
    messages = [{"role": "user", "content": "word " * 600}]  # 3000 characters: 1008 tokens at the first guess
    answer = Answer("fine", prompt_tokens=500, completion_tokens=5)
    with (
        Provider(answer=answer) as provider,
        fastroute.Client(config({"a": {"context_window": 900}, "b": {}}, provider, provider)) as client,
    ):
        with pytest.raises(fastroute.ContextLengthExceeded):
            client.chat.completions.create(model="a", messages=messages, max_tokens=100)
        short = [{"role": "user", "content": "word " * 300}]
        for _ in range(30):
            provider.answer = Answer("fine", prompt_tokens=254, completion_tokens=5)
            client.chat.completions.create(model="a", messages=short, max_tokens=100)
        provider.answer = answer
        reply = client.chat.completions.create(model="a", messages=messages, max_tokens=100)
        assert models_of(reply) == ["a"]


def test_how_long_answers_are_is_learned_from_calls_that_set_no_limit() -> None:
    with Provider(answer=1000) as provider, fastroute.Client(config({"a": {}}, provider)) as client:

        def expected() -> int:
            return client.plan(model="a", messages=MESSAGES).estimate.output_tokens

        before = expected()
        client.chat.completions.create(model="a", messages=MESSAGES, max_tokens=2000)
        assert expected() == before < 1000
        client.chat.completions.create(model="a", messages=MESSAGES)
        assert expected() == 1000


def test_what_one_format_cannot_say_goes_to_a_model_of_another() -> None:
    with Provider(format="anthropic") as first, Provider() as second:
        tables = config({"a": {"fallbacks": ["b"]}, "b": {}}, first, second)
        tables["providers"]["p0"]["format"] = "anthropic"
        with fastroute.Client(tables) as client:
            reply = client.chat.completions.create(model="a", messages=MESSAGES, seed=7)
            assert models_of(reply) == ["b"]
            assert len(first.requests) == 0
            with pytest.raises(fastroute.BadRequestError, match="seed") as caught:
                client.chat.completions.create(model="a", messages=MESSAGES, seed=7, logit_bias=object())
            assert caught.value.attempts == ()
            assert {each["in_flight"] for each in client.stats()["endpoints"].values()} == {0}
