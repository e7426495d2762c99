"""The Gemini format: what is made of answers, usage, errors and events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gemini_questions import GEMINI, KEY, TARGET, answer, ask, decoded
from hypothesis import given
from hypothesis import strategies as st

from fastroute import errors, types
from fastroute.providers import sse
from fastroute.providers.gemini import usage_from

# -------------------------------------------------------------------------------------------------- answers


def test_an_answer_with_thoughts_text_images_and_calls() -> None:
    whole = decoded(
        answer(
            {"text": "hm, ", "thought": True},
            {"text": "Hello "},
            {"text": "there."},
            {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
            {"functionCall": {"name": "f", "args": {"a": "ü"}}, "thoughtSignature": "c2ln"},
            {"functionCall": {"id": "own", "name": "g"}},
        )
    )
    message = whole.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello there.", "hm, ")
    assert message.images == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]
    first, second = message.tool_calls or ()
    assert (first.function.name, json.loads(first.function.arguments)) == ("f", {"a": "ü"})
    assert (second.id, second.function.arguments) == ("own", "{}")
    assert first.id != second.id
    shape = whole.to_dict()
    assert shape["choices"][0]["message"]["tool_calls"][0]["extra_content"] == {
        "google": {"thought_signature": "c2ln"}
    }
    assert (whole.id, whole.model) == ("r1", "gemini-2.5-flash")


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("SPII", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("OTHER", "other"),
    ],
)
def test_finish_reasons(reason: str, finish: str) -> None:
    (choice,) = decoded(answer({"text": "x"}, finish=reason)).choices
    assert (choice.finish_reason, choice.stop_reason) == (finish, reason)


def test_056_safety_without_any_text() -> None:
    blocked = {"candidates": [{"finishReason": "SAFETY", "index": 0, "safetyRatings": [{"blocked": True}]}]}
    (choice,) = decoded(blocked).choices
    assert (choice.finish_reason, choice.message.content) == ("content_filter", "")
    assert choice.safetyRatings == [{"blocked": True}]


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("MALFORMED_FUNCTION_CALL", errors.UpstreamProtocolError),
        ("UNEXPECTED_TOOL_CALL", errors.UpstreamProtocolError),
        ("MISSING_THOUGHT_SIGNATURE", errors.BadRequestError),
        ("PUP_LIMITED_DISABLED", errors.PermissionDeniedError),
    ],
)
def test_finish_reasons_that_are_errors(reason: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        decoded(answer(finish=reason))


def test_a_blocked_prompt_is_the_content_filter_s() -> None:
    with pytest.raises(errors.ContentFilterError) as caught:
        decoded({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {}})
    assert caught.value.status_code == 400
    assert "PROHIBITED_CONTENT" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", errors.EmptyResponse),
        (b"{}", errors.EmptyResponse),
        (b'{"candidates": []}', errors.EmptyResponse),
        (b'{"candidates": [{"content"', errors.UpstreamTruncated),
        (b'{"candidates": 5}', errors.UpstreamProtocolError),
        (b'{"candidates": [5]}', errors.UpstreamProtocolError),
        (b'{"candidates": [{"content": {"parts": 5}}]}', errors.UpstreamProtocolError),
        (b'{"candidates": [{"content": {"parts": [5]}}]}', errors.UpstreamProtocolError),
        (b"5", errors.UpstreamProtocolError),
        (b"<html>", errors.UpstreamProtocolError),
        (b'{"error": {"code": 503, "status": "UNAVAILABLE"}}', errors.InternalServerError),
        (b'[{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}]', errors.RateLimitError),
    ],
)
def test_what_is_no_answer(body: bytes, error: type[errors.Error]) -> None:
    with pytest.raises(error) as caught:
        GEMINI.decode(body, ask(), TARGET)
    assert type(caught.value) is error


def test_056_an_array_in_place_of_events_says_what_to_look_at() -> None:
    with pytest.raises(errors.UpstreamProtocolError, match="alt=sse"):
        decoded([answer({"text": "a"}, finish=None), answer({"text": "b"})])


def test_log_probabilities() -> None:
    result = {
        "chosenCandidates": [{"token": "a", "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "a", "logProbability": -0.5}]}],
    }
    given_back = answer({"text": "a"})
    given_back["candidates"][0]["logprobsResult"] = result
    entry = {"token": "a", "logprob": -0.5, "bytes": [97]}
    assert decoded(given_back).choices[0].logprobs == {"content": [{**entry, "top_logprobs": [entry]}]}


# ---------------------------------------------------------------------------------------------------- usage

NUMBERS = st.integers(0, 1 << 40)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_each_token_is_counted_once(prompt: int, tool: int, visible: int, thoughts: int, cached: int) -> None:
    usage = usage_from(
        {
            "promptTokenCount": prompt,
            "toolUsePromptTokenCount": tool,
            "candidatesTokenCount": visible,
            "thoughtsTokenCount": thoughts,
            "cachedContentTokenCount": cached,
            "totalTokenCount": prompt + tool + visible + thoughts,
        }
    )
    if prompt + tool + visible + thoughts == 0:
        assert usage is None
        return
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt + tool, visible + thoughts)
    assert usage.total_tokens == prompt + tool + visible + thoughts
    assert usage.reasoning_tokens == thoughts <= usage.completion_tokens
    assert usage.cached_tokens in (0, cached)
    assert usage.cached_tokens <= usage.prompt_tokens
    assert usage.source == "provider"


def test_a_total_that_is_more_is_believed_and_marked() -> None:
    counts = {"promptTokenCount": 10, "candidatesTokenCount": 5}
    usage = usage_from({**counts, "totalTokenCount": 20})
    assert usage == types.Usage(10, 10, 0, 0, "estimated")
    usage = usage_from({**counts, "totalTokenCount": 3})
    assert usage == types.Usage(10, 5, 0, 0, "estimated")
    assert usage_from(counts) == types.Usage(10, 5, 0, 0, "provider")


@pytest.mark.parametrize(
    "usage",
    [
        None,
        5,
        {},
        {"promptTokenCount": -1},
        {"promptTokenCount": "7", "candidatesTokenCount": 1},
        {"promptTokenCount": 1.5},
        {"promptTokenCount": 1 << 60},
        {"candidatesTokenCount": 5},
        {"promptTokenCount": 0, "candidatesTokenCount": 0},
    ],
)
def test_036_usage_that_cannot_be_relied_on(usage: Any) -> None:
    assert usage_from(usage) is None


# --------------------------------------------------------------------------------------------------- errors


def failed(status: int, code: str, message: str = "no", reason: str = "", **more: Any) -> errors.APIError:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}] if reason else []
    if "retryDelay" in more:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", **more})
    body = {"error": {"code": status, "message": message, "status": code, "details": details}}
    return GEMINI.decode_error(status, {}, json.dumps(body).encode(), TARGET)


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (failed(400, "INVALID_ARGUMENT"), errors.BadRequestError, 400),
        (
            failed(400, "INVALID_ARGUMENT", "API key not valid.", "API_KEY_INVALID"),
            errors.AuthenticationError,
            401,
        ),
        (
            failed(
                400,
                "INVALID_ARGUMENT",
                "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            ),
            errors.ContextLengthExceeded,
            400,
        ),
        (
            failed(400, "FAILED_PRECONDITION", "User location is not supported."),
            errors.PermissionDeniedError,
            403,
        ),
        (failed(401, "UNAUTHENTICATED"), errors.AuthenticationError, 401),
        (failed(403, "PERMISSION_DENIED"), errors.PermissionDeniedError, 403),
        (failed(403, "PERMISSION_DENIED", reason="BILLING_DISABLED"), errors.QuotaExceededError, 403),
        (failed(404, "NOT_FOUND"), errors.NotFoundError, 404),
        (failed(429, "RESOURCE_EXHAUSTED"), errors.RateLimitError, 429),
        (
            failed(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
            errors.QuotaExceededError,
            429,
        ),
        (failed(500, "INTERNAL"), errors.InternalServerError, 500),
        (failed(503, "UNAVAILABLE", "overloaded"), errors.InternalServerError, 503),
        (failed(504, "DEADLINE_EXCEEDED"), errors.InternalServerError, 504),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_errors(error: errors.APIError, kind: type[errors.APIError], status: int) -> None:
    assert type(error) is kind
    assert error.status_code == status
    assert error.type


def test_how_long_to_wait() -> None:
    assert failed(429, "RESOURCE_EXHAUSTED", retryDelay="34.07s").retry_after == 34.07
    body = json.dumps({"error": {"status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": "34s"}]}})
    error = GEMINI.decode_error(429, {"Retry-After": "5"}, body.encode(), TARGET)
    assert error.retry_after == 5
    assert failed(429, "RESOURCE_EXHAUSTED", retryDelay="soon").retry_after is None


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b'{"error": 5}', b'{"error": {"code": [1]}}', b"\xff"])
def test_decoding_an_error_never_fails(body: bytes) -> None:
    error = GEMINI.decode_error(400, {}, body, TARGET)
    assert type(error) is errors.BadRequestError


def test_an_error_repeats_no_key() -> None:
    error = failed(400, "INVALID_ARGUMENT", f"the key {KEY} is wrong", "API_KEY_INVALID")
    assert KEY not in str(error)


# -------------------------------------------------------------------------------------------------- streams


def fed(*events: Any, **params: Any) -> tuple[list[types.Chunk], Any]:
    decoder = GEMINI.stream(ask(**params), TARGET)
    chunks: list[types.Chunk] = []
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        chunks += decoder.feed(sse.ServerSentEvent("message", data))
    return chunks, decoder


def usage_of(prompt: int, visible: int) -> dict[str, int]:
    return {"promptTokenCount": prompt, "candidatesTokenCount": visible, "totalTokenCount": prompt + visible}


def test_a_stream_adds_up_to_the_answer() -> None:
    chunks, decoder = fed(
        answer({"text": "hm", "thought": True}, finish=None, usageMetadata=usage_of(7, 1)),
        answer({"text": "Hello"}, finish=None, usageMetadata=usage_of(7, 2)),
        answer({"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"}, finish=None),
        answer({"functionCall": {"name": "f", "args": {"a": 2}}}, usageMetadata=usage_of(7, 9)),
    )
    (last,) = decoder.end()
    assert [(each.finish_reason, each.stop_reason) for each in last.choices] == [("tool_calls", "STOP")]
    assert decoder.end() == ()
    whole = decoder.completion()
    message = whole.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello", "hm")
    assert [json.loads(made.function.arguments)["a"] for made in message.tool_calls] == [1, 2]
    assert [made.get("extra_content") for made in message.to_dict()["tool_calls"]] == [
        {"google": {"thought_signature": "c2ln"}},
        None,
    ]
    assert whole.choices[0].finish_reason == "tool_calls"
    assert decoder.usage == types.Usage(7, 9)
    assert decoder.done
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_is_shown_once_at_the_end_to_who_asked() -> None:
    events = [answer({"text": "a"}, finish=None, usageMetadata=usage_of(7, 1)) for _ in range(3)]
    chunks, decoder = fed(
        *events,
        answer({"text": ""}, usageMetadata=usage_of(7, 4)),
        {"candidates": [], "usageMetadata": usage_of(7, 5)},
        stream_options={"include_usage": True},
    )
    assert [chunk.usage for chunk in chunks] == [None] * 4
    finish, last = decoder.end()
    assert (finish.usage, finish.choices[0].finish_reason) == (None, "stop")
    assert last.usage == decoder.usage == types.Usage(7, 5)
    assert last.choices == ()
    assert last.to_dict()["choices"] == []


def test_running_usage_is_an_estimate_until_the_end() -> None:
    _, decoder = fed(answer({"text": "a"}, finish=None, usageMetadata=usage_of(7, 1)))
    assert decoder.usage == types.Usage(7, 1, source="estimated")
    with pytest.raises(errors.UpstreamTruncated):
        decoder.end()


# Finish reasons in their order, each of an event with text, and the one that counts.
@pytest.mark.parametrize(
    ("reasons", "counts"),
    [
        (["STOP", None, "STOP"], "stop"),
        (["STOP", "STOP", "MAX_TOKENS"], "length"),
        (["MAX_TOKENS", "STOP"], "stop"),
        (["STOP", "RECITATION"], "content_filter"),
        (["RECITATION", "STOP"], "content_filter"),
        (["SAFETY", None], "content_filter"),
        (["STOP", None], "stop"),
    ],
)
def test_a_finish_reason_counts_at_the_end_of_the_input(reasons: list[str | None], counts: str) -> None:
    texts = [f"part {number} " for number in range(len(reasons))]
    chunks, decoder = fed(*(answer({"text": text}, finish=why) for text, why in zip(texts, reasons)))
    assert all(choice.finish_reason is None for chunk in chunks for choice in chunk.choices)
    assert decoder.goes_on == (reasons[-1] is None)
    (last,) = decoder.end()
    assert last.choices[0].finish_reason == decoder.finish_reason == counts
    assert decoder.text == "".join(texts)


def test_an_error_after_a_finish_reason_is_an_error() -> None:
    for event, error in (
        ({"error": {"code": 503, "status": "UNAVAILABLE"}}, errors.InternalServerError),
        (answer(finish="MALFORMED_FUNCTION_CALL"), errors.UpstreamProtocolError),
    ):
        with pytest.raises(error):
            fed(answer({"text": "a"}), event)


def test_several_candidates_each_finish_for_themselves() -> None:
    both = answer({"text": "a"}, finish=None)
    both["candidates"].append({"index": 1, "content": {"parts": [{"text": "b"}]}, "finishReason": "STOP"})
    _, decoder = fed(both, n=2)
    assert not decoder.finished
    decoder.feed(sse.ServerSentEvent("message", json.dumps(answer({"text": "c"}, finish="MAX_TOKENS"))))
    decoder.end()
    choices = decoder.completion().choices
    assert [(each.message.content, each.finish_reason) for each in choices] == [
        ("ac", "length"),
        ("b", "stop"),
    ]


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"error": {"code": 503, "status": "UNAVAILABLE", "message": "x"}}, errors.InternalServerError),
        ({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}, errors.RateLimitError),
        ({"error": {"status": "RESOURCE_EXHAUSTED"}}, errors.RateLimitError),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, errors.ContentFilterError),
        (answer(finish="MALFORMED_FUNCTION_CALL"), errors.UpstreamProtocolError),
        ("[]", errors.UpstreamProtocolError),
        ("{nonsense}", errors.UpstreamProtocolError),
        ('{"candidates": [', errors.UpstreamTruncated),
    ],
)
def test_events_that_are_errors(event: Any, error: type[errors.Error]) -> None:
    with pytest.raises(error) as caught:
        fed(event)
    assert type(caught.value) is error
