"""Faults that only Gemini has, through the client: what it answers where others answer with an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from loopback import MODEL, Loopback

import fastroute
from fastroute.testing import Fault, Provider

Start = Callable[..., Loopback]

LONG = "the first words and many more of them"


def said(*parts: dict[str, Any], **candidate: Any) -> Fault:
    """A good status with this candidate in it."""
    content = {"content": {"role": "model", "parts": list(parts)}} if parts else {}
    return Fault.status(200, {"candidates": [{"index": 0, **content, **candidate}]})


BLOCKED = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 7}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_prompt_goes_to_nobody_else(start: Start, stream: bool) -> None:
    loop = start(2, format="gemini", policy={"breaker": {"failures": 1}})
    loop.provider("a").script(Fault.insert_event(BLOCKED) if stream else Fault.status(200, BLOCKED))
    with pytest.raises(fastroute.ContentFilterError):
        loop.stream() if stream else loop.ask()
    assert loop.provider("b").received == 0
    assert (loop.endpoint("a")["state"], loop.endpoint("a")["failed"]) == ("closed", 0)


@pytest.mark.parametrize("stream", [False, True])
def test_056_safety_without_text_is_a_content_filter(start: Start, stream: bool) -> None:
    loop = start(2, format="gemini")
    filtered = {"candidates": [{"index": 0, "finishReason": "SAFETY"}]}
    events = Fault.events(b"data: " + json.dumps(filtered).encode() + b"\n\n")
    loop.provider("a").script(events if stream else said(finishReason="SAFETY"))
    with pytest.raises(fastroute.ContentFilterError):
        loop.stream(LONG) if stream else loop.ask()
    assert [(attempt.outcome, attempt.error) for attempt in loop.attempts] == [
        ("failed", "ContentFilterError")
    ]
    assert loop.provider("b").received == 0
    figures = loop.endpoint("a")
    assert (figures["failed"], figures["success_rate"], figures["blocked_s"]) == (0, 1, 0)


def test_056_a_stream_as_an_array_is_told_apart_and_another_endpoint_asked(start: Start) -> None:
    loop = start(2, format="gemini")
    array = b'[{"candidates": [{"content": {"parts": [{"text": "a"}]}, "index": 0}]},{"candidates": []}]'
    loop.provider("a").script(Fault.status(200, array))
    with loop.stream(LONG) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == LONG
    assert [attempt.error for attempt in stream.route.attempts] == ["UpstreamProtocolError", None]
    loop.provider("b").kill()
    loop.provider("a").script(Fault.status(200, array), repeat=True)
    with pytest.raises(fastroute.UpstreamProtocolError, match="alt=sse"):  # what to look at
        loop.stream(LONG)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_came_out_spoiled_is_asked_for_elsewhere(start: Start, stream: bool) -> None:
    loop = start(2, format="gemini")
    spoiled = {"candidates": [{"index": 0, "finishReason": "MALFORMED_FUNCTION_CALL"}]}
    loop.provider("a").script(Fault.insert_event(spoiled) if stream else Fault.status(200, spoiled))
    if stream:
        with loop.stream(LONG) as running:
            list(running)
        route = running.route
    else:
        found = loop.ask(LONG).route
        assert found is not None
        route = found
    assert [attempt.error for attempt in route.attempts] == ["UpstreamProtocolError", None]


def test_019_a_wrong_key_as_a_wrong_argument_blocks_the_endpoint(start: Start) -> None:
    loop = start(2, format="gemini")
    loop.provider("a").script(Fault.error("invalid_api_key"), repeat=True)
    for _ in range(3):
        assert loop.ask("hello").text == "hello"
    assert loop.provider("a").received == 1
    assert loop.endpoint("a")["failed"] == 0
    assert [attempt.error for attempt in loop.attempts] == ["AuthenticationError", None, None, None]


def test_065_a_retry_delay_in_the_body_is_kept_to(start: Start) -> None:
    throttled = Provider(format="gemini", requests_per_minute=1)
    loop = start({"a": throttled}, format="gemini", policy={"max_attempts": 1, "max_retry_after": 5})
    loop.ask()
    with pytest.raises(fastroute.RateLimitError) as caught:
        loop.ask()
    assert caught.value.retry_after is not None
    assert 55 < caught.value.retry_after <= 60
    with pytest.raises(fastroute.NoEndpointError):
        loop.ask()  # longer than it is waited for: the endpoint is left out
    assert throttled.received == 2


def test_021_too_long_a_prompt_goes_to_the_fallback(start: Start) -> None:
    loop = start(
        2,
        format="gemini",
        models={MODEL: {"input_price": 1.0, "output_price": 2.0, "context_fallbacks": ["wide"]}, "wide": {}},
        more_endpoints=[{"provider": "b", "model": "wide"}],
    )
    loop.provider("a").script(Fault.error("context_length_exceeded"))
    reply = loop.ask("hello")
    assert reply.route is not None
    assert reply.route.model == "wide"


def test_usage_of_each_format_costs_the_same(start: Start) -> None:
    """The same tokens, counted in each format's own way, are the same usage and the same money."""
    found = set()
    for format in ("openai", "anthropic", "gemini", "azure"):
        server = Provider(
            format=format, answer="an answer of some length", reasoning_tokens=5, cached_tokens=3
        )
        loop = start({"a": server}, format=format)
        reply = loop.ask("a question of some length")
        with loop.stream("a question of some length") as stream:
            list(stream)
        assert reply.usage is not None
        assert reply.route is not None
        assert stream.usage == reply.usage
        assert stream.route.cost_nano == reply.route.cost_nano
        usage = reply.usage
        found.add((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, reply.route.cost_nano))
    assert len(found) == 1
