"""From a provider's error to its class, and to a message without keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_answers import ANSWER, KEY, OPENAI, TARGET

from fastroute import errors, types
from fastroute.providers import sse
from fastroute.providers.error_reader import redact

REQUEST = types.Request("gpt", [{"role": "user", "content": "hello"}], {}, True)


def decode(body: Any, **changes: Any) -> types.Completion:
    if isinstance(body, dict):
        body = {**body, **changes}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return OPENAI.decode(raw, REQUEST, TARGET)


# --------------------------------------------------------------------------------------------------- errors


def error(status: int, fields: Any, headers: Mapping[str, str] | None = None) -> errors.APIError:
    body = fields if isinstance(fields, bytes) else json.dumps({"error": fields}).encode()
    return OPENAI.decode_error(status, headers or {}, body, TARGET)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequestError),
        (401, errors.AuthenticationError),
        (403, errors.PermissionDeniedError),
        (404, errors.NotFoundError),
        (408, errors.APIStatusError),
        (409, errors.ConflictError),
        (413, errors.RequestTooLargeError),
        (418, errors.APIStatusError),
        (422, errors.UnprocessableEntityError),
        (425, errors.APIStatusError),
        (429, errors.RateLimitError),
        (500, errors.InternalServerError),
        (503, errors.InternalServerError),
        (529, errors.InternalServerError),
        (402, errors.QuotaExceededError),
        (302, errors.APIStatusError),
        (204, errors.EmptyResponse),
        (299, errors.UpstreamProtocolError),
        (999, errors.UpstreamProtocolError),
        (100, errors.UpstreamProtocolError),
    ],
)
def test_errors_by_status(status: int, kind: type[errors.APIError]) -> None:
    for body in (b"", b"<html>", b'{"error":{"message":"m"}}'):
        got = error(status, body)
        assert type(got) is kind
        if isinstance(got, errors.APIStatusError):
            assert got.status_code == status


@pytest.mark.parametrize(
    ("status", "fields", "kind"),
    [
        (400, {"code": "context_length_exceeded"}, errors.ContextLengthExceeded),
        (
            400,
            {"message": "This model's maximum context length is 8192 tokens."},
            errors.ContextLengthExceeded,
        ),
        (400, {"message": "prompt is too long: 210000 tokens > 200000"}, errors.ContextLengthExceeded),
        (400, {"message": "the request exceeds the available context size"}, errors.ContextLengthExceeded),
        (
            400,
            {"message": "The input token count (9) exceeds the maximum number"},
            errors.ContextLengthExceeded,
        ),
        (413, {"message": "Please reduce the length of the messages"}, errors.ContextLengthExceeded),
        (400, {"message": "max_tokens is too large: 9. This model supports 8"}, errors.BadRequestError),
        (400, {"code": "content_filter", "innererror": {"code": "x"}}, errors.ContentFilterError),
        (400, {"innererror": {"code": "ResponsibleAIPolicyViolation"}}, errors.ContentFilterError),
        (403, {"message": "openai requires moderation. Your input was flagged"}, errors.ContentFilterError),
        (400, {"message": "Content Exists Risk"}, errors.ContentFilterError),
        (403, {"message": "no access to this model"}, errors.PermissionDeniedError),
        (429, {"type": "insufficient_quota", "code": "insufficient_quota"}, errors.QuotaExceededError),
        (429, {"code": "credit_balance_exhausted"}, errors.QuotaExceededError),
        (429, {"code": "organization_spend_limit_exceeded"}, errors.QuotaExceededError),
        (429, {"code": "project_spend_limit_exceeded"}, errors.QuotaExceededError),
        (429, {"code": "organization_usage_limit_exceeded"}, errors.QuotaExceededError),
        (429, {"details": {"error_code": "enforced_spend_limit_reached"}}, errors.QuotaExceededError),
        (400, {"message": "Your credit balance is too low to access the API"}, errors.QuotaExceededError),
        (429, {"code": "rate_limit_exceeded"}, errors.RateLimitError),
        (429, {"message": "You exceeded your current quota", "code": "slow_down"}, errors.RateLimitError),
        (500, {"code": "insufficient_quota"}, errors.InternalServerError),
    ],
)
def test_errors_by_what_they_say(status: int, fields: dict[str, Any], kind: type[errors.APIError]) -> None:
    got = error(status, fields)
    assert type(got) is kind
    assert got.status_code == status


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "what went wrong"}},
        {"error": "what went wrong"},
        [{"error": {"message": "what went wrong"}}],
        {
            "object": "error",
            "message": "what went wrong",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        {"detail": "what went wrong"},
        {"detail": [{"loc": ["body", "x"], "msg": "what went wrong", "input": "the prompt"}]},
        {"message": "what went wrong"},
    ],
)
def test_error_bodies_of_other_kinds(body: Any) -> None:
    got = OPENAI.decode_error(400, {}, json.dumps(body).encode())
    assert "what went wrong" in str(got)
    assert "the prompt" not in str(got)


def test_an_error_carries_what_the_provider_said() -> None:
    got = error(
        429,
        {"message": "slow", "type": "requests", "code": "rate_limit_exceeded", "param": "n"},
        {"X-Request-ID": "req_1", "Retry-After-Ms": "500", "x-should-retry": "false"},
    )
    assert isinstance(got, errors.RateLimitError)
    assert (got.code, got.type, got.param) == ("rate_limit_exceeded", "requests", "n")
    assert (got.request_id, got.retry_after, got.should_retry) == ("req_1", 0.5, False)


@pytest.mark.parametrize("request_id", ["a b", "a\nb", "x" * 129, "\xe9", ""])
def test_a_request_id_that_is_none_is_dropped(request_id: str) -> None:
    assert error(500, {}, {"x-request-id": request_id}).request_id is None


def test_other_hints_of_when_to_come_back() -> None:
    gemini = {
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"@type": "x"}, {"@type": "RetryInfo", "retryDelay": "34.07s"}],
    }
    assert error(429, gemini).retry_after == 34.07
    limits = {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "12s",
    }
    assert error(429, {}, limits).retry_after == 12
    assert error(500, {}, limits).retry_after is None
    assert error(429, {}, {**limits, "x-ratelimit-remaining-tokens": "5"}).retry_after is None
    assert error(429, {}, {**limits, "x-ratelimit-reset-tokens": "6m0s"}).retry_after is None
    assert error(429, {}, {**limits, "retry-after": "3"}).retry_after == 3


STREAM_OPTIONS = {"include_usage": False}


@pytest.mark.parametrize(
    ("status", "body", "changes"),
    [
        (
            400,
            {"error": {"message": "Unknown parameter: 'stream_options'.", "param": "stream_options"}},
            STREAM_OPTIONS,
        ),
        (400, {"error": {"message": "include_usage is not supported"}}, STREAM_OPTIONS),
        (
            422,
            {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]},
            STREAM_OPTIONS,
        ),
        (400, {"error": {"message": "bad message: stream_options", "param": "messages"}}, {}),
        (400, {"error": {"message": "temperature"}}, {}),
        (500, {"error": {"message": "stream_options"}}, {}),
    ],
)
def test_a_refusal_of_stream_options_can_be_told(status: int, body: Any, changes: dict[str, Any]) -> None:
    got = OPENAI.decode_error(status, {}, json.dumps(body).encode())
    assert getattr(got, "respell", {}) == changes
    assert (got.param == "stream_options") is bool(changes)


@pytest.mark.parametrize(
    ("fields", "kind", "status"),
    [
        ({"message": "m", "code": 429}, errors.RateLimitError, 429),
        ({"message": "m", "code": "503"}, errors.InternalServerError, 503),
        ({"message": "m", "type": "overloaded_error"}, errors.InternalServerError, 529),
        (
            {"message": "m", "type": "invalid_request_error", "code": "model_not_found"},
            errors.NotFoundError,
            404,
        ),
        ({"message": "m", "type": "insufficient_quota"}, errors.QuotaExceededError, 429),
        ({"message": "m", "code": "context_length_exceeded"}, errors.ContextLengthExceeded, 400),
        ({"message": "m", "code": "invalid_api_key"}, errors.AuthenticationError, 401),
        ({"message": "m"}, errors.InternalServerError, 500),
        ("out of memory", errors.InternalServerError, 500),
    ],
)
def test_errors_in_an_answer_of_200_go_by_themselves(
    fields: Any, kind: type[errors.APIError], status: int
) -> None:
    for body in ({"error": fields}, {**ANSWER, "error": fields}):
        with pytest.raises(errors.APIStatusError) as caught:
            decode(body)
        assert type(caught.value) is kind
        assert caught.value.status_code == status
        with pytest.raises(errors.APIStatusError) as caught:
            OPENAI.stream(REQUEST, TARGET).feed(sse.ServerSentEvent(data=json.dumps(body)))
        assert type(caught.value) is kind


def test_an_answer_that_ended_in_an_error_is_one() -> None:
    choice = {"message": {"content": "a"}, "finish_reason": "error", "error": {"code": 502, "message": "m"}}
    with pytest.raises(errors.InternalServerError) as caught:
        decode(ANSWER, choices=[choice])
    assert caught.value.status_code == 502
    with pytest.raises(errors.InternalServerError):
        decode(ANSWER, choices=[{"message": {"content": "a"}, "finish_reason": "error"}])


# ------------------------------------------------------------------------------------------------ redaction


@pytest.mark.parametrize(
    "secret",
    [
        "sk-abcdefghijklmnop",
        "sk-proj-AbC123_xyz-456",
        "sk-abc***********wxyz",
        "gsk_abcdefghijk",
        "AIzaSyA-abcdefghijk",
        "AKIAABCDEFGHIJKL",
        "eyJhbGciOiJIUzI1NiJ9.abc.def",
        "hf_abcdefghijkl",
        "0123456789abcdef0123456789abcdef",
        "xai-abcdefgh",
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "key {} refused", "'{}'", "(x={})", "a\n{}\tb", "https://h/?key={}&a=b"]
)
def test_keys_are_taken_out(secret: str, around: str) -> None:
    text = redact(around.format(secret))
    assert secret not in text
    assert secret[4:] not in text
    assert "[redacted]" in text


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcd",
        "api_key=hunter2",
        '"x-api-key": "hunter2"',
        "password: hunter2",
        "Basic aHVudGVyMg==",
    ],
)
def test_what_is_called_a_key_is_taken_out(text: str) -> None:
    for secret in ("abcd", "hunter2", "aHVudGVyMg"):
        assert secret not in redact(text)


def test_a_key_that_a_cut_goes_through_is_taken_out() -> None:
    for length in range(3960, 4001):
        assert "abcdefgh" not in redact("x " * (length // 2) + " sk-abcdefghijklmnopqrstuvwxyz", 5000)


def test_the_target_s_own_key_is_taken_out_whatever_it_looks_like() -> None:
    assert KEY not in str(error(401, {"message": f"wrong key {KEY}, try again"}))
    assert "try again" in str(error(401, {"message": f"wrong key {KEY}, try again"}))


@pytest.mark.parametrize(
    "text",
    [
        "The model `gpt-4.1` does not exist",
        "Rate limit reached for gpt-4 in org on tokens per min",
        "max_tokens: 5 is wrong",
    ],
)
def test_plain_words_stay(text: str) -> None:
    assert redact(text) == text


def test_messages_are_one_short_line_without_long_quotations() -> None:
    got = str(
        error(
            400,
            {"message": "it isn't\nright: '" + "secret plan " * 10 + "' that's\x1b[31m all " + "z " * 999},
        )
    )
    assert "secret plan" not in got
    assert "that's" in got
    assert got.isprintable()
    assert len(got) < 560


@given(st.text(max_size=300), st.integers(20, 100))
def test_redaction_takes_any_text(text: str, limit: int) -> None:
    short = redact(text, limit)
    assert len(short) <= limit
    short.encode()
