"""The Anthropic format: what parameters become on the wire, and what is made of errors."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
import pytest
from anthropic_questions import ANTHROPIC, KEY, OLD, SECRET, TARGET, USER, WEATHER, refused, sent

from fastroute import errors


@pytest.mark.parametrize(
    ("given", "limit", "expected"),
    [
        ({}, 64_000, 64_000),
        ({}, None, 8192),
        ({"max_tokens": 10}, 64_000, 10),
        ({"max_tokens": 0}, 64_000, 0),
        ({"max_tokens": -1}, 64_000, 64_000),
        ({"max_tokens": 10, "max_completion_tokens": 20}, 64_000, 20),
        ({"max_tokens": 10**7}, 64_000, 64_000),
        ({"max_tokens": 10**7}, None, 10**7),
    ],
)
def test_the_output_limit_is_always_said(given: dict[str, Any], limit: int | None, expected: int) -> None:
    body = sent(target=attrs.evolve(TARGET, max_output=limit), **given)
    assert body["max_tokens"] == expected
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}),
        ({"temperature": None, "stop": None, "seed": None}, {}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"stop": []}, {}),
        ({"user": "u1"}, {"metadata": {"user_id": "u1"}}),
        ({"safety_identifier": "u2"}, {"metadata": {"user_id": "u2"}}),
        ({"metadata": {"user_id": "u3"}, "user": "u1"}, {"metadata": {"user_id": "u3"}}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"stream_options": {"include_usage": True}, "prompt_cache_key": "k"}, {}),
        ({"n": 1, "presence_penalty": 0.0, "logprobs": False, "store": False, "logit_bias": {}}, {}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "disabled"}}),
        ({"inference_geo": "eu"}, {"inference_geo": "eu"}),
        ({"system": "native"}, {"system": "native"}),
        ({"response_format": {"type": "text"}}, {}),
        ({"tool_choice": "auto"}, {}),
        ({"tools": [], "parallel_tool_calls": False, "tool_choice": "none"}, {}),
    ],
)
def test_parameters(given: dict[str, Any], expected: dict[str, Any]) -> None:
    body = sent(**given)
    for name in ("model", "max_tokens", "messages"):
        del body[name]
    assert body == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"n": 2}, "n: the anthropic format has no such parameter; leave it out"),
        ({"seed": 0}, "seed: the anthropic format has no such parameter"),
        ({"logprobs": True}, "logprobs: "),
        ({"top_logprobs": 2}, "top_logprobs: "),
        ({"logit_bias": {"1": 2}}, "logit_bias: "),
        ({"presence_penalty": 0.1}, "presence_penalty: "),
        ({"frequency_penalty": -0.1}, "frequency_penalty: "),
        ({"modalities": ["audio"]}, "modalities: "),
        ({"audio": {"voice": SECRET}}, "audio: "),
        ({"prediction": {"content": SECRET}}, "prediction: "),
        ({"store": True}, "store: "),
        ({"web_search_options": {}}, "web_search_options: "),
        ({"functions": []}, "functions: the anthropic format has no such parameter; use tools"),
        ({"function_call": "auto"}, "function_call: .*; use tool_choice"),
        ({"verbosity": "low"}, "verbosity: "),
        ({"temperature": 1.2}, "temperature: must be from 0 to 1"),
        ({"stop": "\n"}, "stop: must not contain empty or blank sequences"),
        ({"stop": [SECRET, ""]}, "stop: "),
        ({"stop": 5}, "stop: must be a string"),
        ({"metadata": {"topic": SECRET}}, "metadata: .* user_id"),
        ({"metadata": SECRET}, "metadata: must be a mapping, not str"),
        ({"service_tier": "flex"}, "service_tier: "),
        ({"reasoning_effort": "utmost"}, "reasoning_effort: must be one of none, minimal"),
        ({"response_format": "json"}, "response_format: must be a mapping"),
        ({"response_format": {"type": "json_schema"}}, "response_format: .* with a schema"),
        ({"response_format": {"type": SECRET}}, "response_format: must be text"),
        ({"response_format": {"type": "json_object"}, "tools": [WEATHER]}, "response_format: .* with tools"),
        ({"tools": SECRET}, "tools: must be a list, not str"),
        ({"tools": [SECRET]}, r"tools\[0\]: must be a mapping"),
        ({"tools": [{"type": "custom", "custom": {"name": SECRET}}]}, r"tools\[0\]: .* type function"),
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\].function.name: "),
        ({"tools": [WEATHER], "tool_choice": SECRET}, "tool_choice: must be auto"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice: must be auto"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(given: dict[str, Any], reason: str) -> None:
    error = refused(**given)
    assert re.search(reason, str(error))
    assert error.param == reason.partition(":")[0].partition("\\[")[0]


def test_instructions_said_twice_are_refused() -> None:
    assert "system" in str(refused({"role": "system", "content": SECRET}, USER, system=SECRET))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
        ({"type": "tool", "name": "weather"}, {"type": "tool", "name": "weather"}),
    ],
)
def test_tool_choice(given: Any, expected: dict[str, Any]) -> None:
    body = sent(tools=[WEATHER], tool_choice=given)
    assert body["tool_choice"] == expected
    single = sent(tools=[WEATHER], tool_choice=given, parallel_tool_calls=False)["tool_choice"]
    more = {} if given == "none" else {"disable_parallel_tool_use": True}
    assert single == {**expected, **more}
    assert sent(tools=[WEATHER], tool_choice=given, parallel_tool_calls=True)["tool_choice"] == expected


def test_tools() -> None:
    bare = {"type": "function", "function": {"name": "now", "strict": True}}
    native = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
    body = sent(tools=[WEATHER, bare, native], parallel_tool_calls=False)
    function = WEATHER["function"]
    assert isinstance(function, dict)
    assert body["tools"] == [
        {"name": "weather", "description": "The weather in a city.", "input_schema": function["parameters"]},
        {"name": "now", "input_schema": {"type": "object", "properties": {}}, "strict": True},
        native,
    ]
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}


def test_a_schema_for_the_answer_is_closed_where_it_is_open() -> None:
    schema = {
        "type": "object",
        "properties": {
            "properties": {"type": "string", "enum": ["object"]},
            "list": {"type": "array", "items": {"properties": {"a": {"type": ["object", "null"]}}}},
            "default": {"$ref": "#/$defs/x"},
        },
        "required": ["list"],
        "$defs": {"x": {"type": "object", "additionalProperties": False}},
    }
    before = json.dumps(schema)
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    config = sent(response_format=shape, output_config={"effort": "low"})["output_config"]
    closed = json.loads(before)
    closed["additionalProperties"] = False
    items = closed["properties"]["list"]["items"]
    items["additionalProperties"] = items["properties"]["a"]["additionalProperties"] = False
    assert config == {"format": {"type": "json_schema", "schema": closed}, "effort": "low"}
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    ("model", "effort", "most", "thinking", "level"),
    [
        ("claude-opus-5-5", "high", 100, {"type": "adaptive"}, "high"),
        ("claude-x", "minimal", 100, {"type": "adaptive"}, "low"),
        ("claude-opus-4-6", "max", 9, {"type": "adaptive"}, "max"),
        ("claude-opus-5-5", "none", 100, {"type": "disabled"}, None),
        ("claude-sonnet-4-5", "none", 100, None, None),
        ("claude-sonnet-4-5-20250929", "low", 10_000, 2000, None),
        ("anthropic/claude-haiku-4.5", "minimal", 2000, 1024, None),
        ("claude-3-7-sonnet-latest", "high", 64_000, 32_000, None),
        ("claude-opus-4-20250514", "max", 1025, 1024, None),
    ],
)
def test_effort(model: str, effort: str, most: int, thinking: Any, level: str | None) -> None:
    body = sent(target=attrs.evolve(TARGET, upstream=model), reasoning_effort=effort, max_tokens=most)
    if isinstance(thinking, int):
        thinking = {"type": "enabled", "budget_tokens": thinking}
    assert body.get("thinking") == thinking
    assert body.get("output_config") == (None if level is None else {"effort": level})


def test_effort_that_finds_no_room_to_think_is_refused() -> None:
    error = refused(target=OLD, reasoning_effort="low", max_tokens=1024)
    assert error.param == "reasoning_effort"
    assert "1024" in str(error)
    native = {"type": "enabled", "budget_tokens": 2000}
    assert sent(target=OLD, reasoning_effort="low", thinking=native)["thinking"] == native


def test_errors_have_their_classes() -> None:
    def read(status: int, kind: str, message: str = "", **details: str) -> errors.APIError:
        error: dict[str, Any] = {"type": kind, "message": message}
        if details:
            error["details"] = details
        body = json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()
        return ANTHROPIC.decode_error(status, {"request-id": "req_1"}, body, TARGET)

    table: list[tuple[errors.APIError, type[errors.APIError]]] = [
        (read(400, "invalid_request_error", "messages: bad"), errors.BadRequestError),
        (
            read(400, "invalid_request_error", "prompt is too long: 210042 tokens > 200000 maximum"),
            errors.ContextLengthExceeded,
        ),
        (
            read(
                400,
                "invalid_request_error",
                "input length and `max_tokens` exceed context limit: 190000 + 64000 > 200000",
            ),
            errors.ContextLengthExceeded,
        ),
        (
            read(400, "invalid_request_error", "Output blocked by content filtering policy"),
            errors.ContentFilterError,
        ),
        (
            read(400, "invalid_request_error", "Your credit balance is too low to access the API."),
            errors.QuotaExceededError,
        ),
        (read(401, "authentication_error", f"invalid {KEY}"), errors.AuthenticationError),
        (read(402, "billing_error", "pay"), errors.QuotaExceededError),
        (read(403, "permission_error", "no"), errors.PermissionDeniedError),
        (read(404, "not_found_error", "model: x"), errors.NotFoundError),
        (read(413, "request_too_large", "Request exceeds the maximum size"), errors.ContextLengthExceeded),
        (read(429, "rate_limit_error", "slow"), errors.RateLimitError),
        (
            read(429, "rate_limit_error", "slow", error_code="enforced_spend_limit_reached"),
            errors.QuotaExceededError,
        ),
        (
            read(429, "rate_limit_error", "slow", error_code="contract_spend_limit_reached"),
            errors.QuotaExceededError,
        ),
        (read(500, "api_error", "x"), errors.InternalServerError),
        (read(504, "timeout_error", "x"), errors.InternalServerError),
        (read(529, "overloaded_error", "Overloaded"), errors.InternalServerError),
    ]
    for error, kind in table:
        assert type(error) is kind, error
        assert error.request_id == "req_1"
        assert KEY not in str(error)


def test_a_used_up_limit_says_how_long_to_wait() -> None:
    headers = {
        "date": "Thu, 21 Aug 2025 12:40:39 GMT",
        "anthropic-ratelimit-tokens-limit": "1000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2025-08-21T12:40:59Z",
    }
    body = b'{"type":"error","error":{"type":"rate_limit_error","message":"x"}}'
    assert ANTHROPIC.decode_error(429, headers, body, TARGET).retry_after == 20
    assert ANTHROPIC.decode_error(429, {**headers, "retry-after": "3"}, body, TARGET).retry_after == 3


@pytest.mark.parametrize(
    ("status", "reset", "wait"),
    [
        ("rejected", "1755787239", 7200),
        ("allowed", "1755787239", None),
        ("rejected", "1755780000", None),
        ("rejected", "soon", None),
        ("rejected", "", None),
    ],
)
def test_a_subscription_s_limit_says_when_it_begins_anew(status: str, reset: str, wait: float | None) -> None:
    headers = {
        "date": "Thu, 21 Aug 2025 12:40:39 GMT",
        "anthropic-ratelimit-unified-status": status,
        "anthropic-ratelimit-unified-reset": reset,
    }
    body = b'{"type":"error","error":{"type":"rate_limit_error","message":"x"}}'
    assert ANTHROPIC.decode_error(429, headers, body, TARGET).retry_after == wait
