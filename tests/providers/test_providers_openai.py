"""The OpenAI format: what goes on the wire, and what is made of answers and their usage."""

from __future__ import annotations

import enum
import json
import math
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_answers import ANSWER, KEY, OPENAI, TARGET

from fastroute import errors, types
from fastroute.providers import Target, sse

MESSAGES = [{"role": "user", "content": "hello"}]


def ask(**params: Any) -> types.Request:
    return types.Request("gpt", MESSAGES, params)


def sent(request: types.Request, target: Target = TARGET) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(OPENAI.encode(request, target))
    return body


# ---------------------------------------------------------------------------------------------------- url


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://a.example/v1", "https://a.example/v1/chat/completions"),
        ("https://a.example/v1/", "https://a.example/v1/chat/completions"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/chat/completions"),
        ("https://a.example/v1?version=2", "https://a.example/v1/chat/completions?version=2"),
    ],
)
def test_url(base_url: str, url: str) -> None:
    assert OPENAI.url(attrs.evolve(TARGET, base_url=base_url), False) == url


# -------------------------------------------------------------------------------------------------- headers


def test_headers() -> None:
    plain, stream = OPENAI.headers(TARGET, False), OPENAI.headers(TARGET, True)
    assert plain["Authorization"] == f"Bearer {KEY}"
    assert plain["Content-Type"] == "application/json"
    assert plain["Accept"] == "application/json"
    assert stream["Accept"] == "text/event-stream"
    assert stream["Accept-Encoding"] == "identity"
    assert "Authorization" not in OPENAI.headers(attrs.evolve(TARGET, key=None), False)


def test_configured_headers_replace_the_format_s_own() -> None:
    target = attrs.evolve(TARGET, headers={"authorization": "Token x", "X-Title": "cafe"})
    headers = OPENAI.headers(target, False)
    assert headers["X-Title"] == "cafe"
    assert [value for name, value in headers.items() if name.lower() == "authorization"] == ["Token x"]


def test_a_target_shows_no_secret() -> None:
    target = attrs.evolve(TARGET, headers={"X-Key": "hidden-value"})
    assert "hidden-value" not in repr(target)
    assert KEY not in repr(target)


# --------------------------------------------------------------------------------------------------- encode


def test_parameters_go_out_untouched() -> None:
    params: dict[str, Any] = {
        "temperature": 0,
        "top_p": 0.0,
        "seed": None,
        "stop": ["a"],
        "future": {"x": [1, True]},
        "n": 0,
    }
    assert sent(ask(**params)) == {"model": "gpt-2025", "messages": MESSAGES, **params}


def test_params_cannot_change_what_was_decided() -> None:
    request = types.Request("gpt", MESSAGES, {"model": "other", "messages": [], "stream": True})
    assert sent(request) == {"model": "gpt-2025", "messages": MESSAGES}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    ("wanted", "given"), [(0, 0), (99, 99), (100, 100), (101, 100), (10**30, 100), (None, None)]
)
def test_output_limits_are_lowered_to_the_model_s(name: str, wanted: int | None, given: int | None) -> None:
    assert sent(ask(**{name: wanted}))[name] == given


def test_output_limits_stay_where_the_model_s_is_unknown() -> None:
    assert sent(ask(max_tokens=10**6), attrs.evolve(TARGET, max_output=None))["max_tokens"] == 10**6


@pytest.mark.parametrize(
    ("include", "given", "expected"),
    [
        (True, None, {"include_usage": True}),
        (True, {"include_usage": False, "x": 1}, {"include_usage": True, "x": 1}),
        (False, None, None),
        (False, {"include_usage": True}, None),
        (False, {"include_usage": True, "x": 1}, {"x": 1}),
        (True, "wrong", "wrong"),
    ],
)
def test_stream_options(include: bool, given: Any, expected: Any) -> None:
    params = {} if given is None else {"stream_options": given}
    body = sent(types.Request("gpt", MESSAGES, params, True), attrs.evolve(TARGET, include_usage=include))
    assert body["stream"] is True
    assert body.get("stream_options") == expected


def test_encoding_changes_nothing_of_the_caller_s() -> None:
    params: dict[str, Any] = {"max_tokens": 500, "stream_options": {"include_usage": False}}
    OPENAI.encode(types.Request("gpt", MESSAGES, params, True), TARGET)
    assert params == {"max_tokens": 500, "stream_options": {"include_usage": False}}


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "\U0001f600 \ud800", "null \ud83d"])
def test_lone_surrogates_are_written_as_escapes(text: str) -> None:
    body = OPENAI.encode(types.Request("gpt", [{"role": "user", "content": text}]), TARGET)
    assert body.isascii()
    assert json.loads(body)["messages"][0]["content"] == text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("extra", ["", "\ud83d"])
def test_numbers_that_json_does_not_have_are_refused_with_their_place(number: float, extra: str) -> None:
    with pytest.raises(errors.BadRequestError, match=r"logit_bias\.a\[1\]: must be a finite") as caught:
        OPENAI.encode(ask(logit_bias={"a": [1, number]}, user=extra), TARGET)
    assert caught.value.param == "logit_bias"


@pytest.mark.parametrize("key", [1, None, True, ("a",), 1.5])
def test_keys_that_are_no_strings_are_refused(key: Any) -> None:
    with pytest.raises(errors.BadRequestError, match=f"metadata: has a key of type {type(key).__name__}"):
        OPENAI.encode(ask(metadata={key: "prompt text"}), TARGET)


def test_what_cannot_be_written_is_named_by_place_and_type() -> None:
    with pytest.raises(
        errors.BadRequestError, match=r"tools\[0\]\.x: must be a JSON value, not object"
    ) as caught:
        OPENAI.encode(ask(tools=[{"x": object()}]), TARGET)
    assert caught.value.status_code == 400


def test_a_request_inside_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(errors.BadRequestError, match="contains itself"):
        OPENAI.encode(ask(tools=loop), TARGET)


class Colour(enum.Enum):
    RED = "red"


def test_what_stands_for_json_is_written_as_it() -> None:
    message: Any = types.Message(
        "assistant", "hi", None, None, {"role": "assistant", "content": "hi", "x": None}
    )
    request = types.Request("gpt", [message], {"a": MappingProxyType({"b": (1, Colour.RED)}), "c": 2**70})
    assert sent(request) == {
        "model": "gpt-2025",
        "messages": [{"role": "assistant", "content": "hi", "x": None}],
        "a": {"b": [1, "red"]},
        "c": 2**70,
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.text().filter(lambda name: name not in ("model", "messages", "stream")), JSON, max_size=4
    )
)
def test_any_json_arrives_as_it_was(params: dict[str, Any]) -> None:
    target = attrs.evolve(TARGET, max_output=None)
    assert sent(types.Request("gpt", MESSAGES, params), target) == {
        "model": "gpt-2025",
        "messages": MESSAGES,
        **params,
    }


# --------------------------------------------------------------------------------------------------- decode


def decode(body: Any, **changes: Any) -> types.Completion:
    if isinstance(body, dict):
        body = {**body, **changes}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return OPENAI.decode(raw, ask(), TARGET)


def test_an_answer() -> None:
    reply = decode({**ANSWER, "system_fingerprint": "fp", "service_tier": None})
    assert (reply.id, reply.created, reply.model, reply.text) == (
        "chatcmpl-1",
        1700000000,
        "gpt-2025-04",
        "hi",
    )
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage == types.Usage(5, 2)
    assert reply.system_fingerprint == "fp"
    assert reply.to_dict() == {**ANSWER, "system_fingerprint": "fp", "service_tier": None}


def test_tool_calls_refusals_and_fields_unknown_here() -> None:
    message = {
        "role": "assistant",
        "content": None,
        "refusal": "no",
        "reasoning_content": "because",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
    }
    reply = decode(ANSWER, choices=[{"index": 0, "message": message, "finish_reason": "content_filter"}])
    got = reply.choices[0].message
    assert got.content is None
    assert got.refusal == "no"
    assert got.reasoning_content == "because"
    assert got.tool_calls == (types.ToolCall("c1", "function", types.FunctionCall("f", '{"a":1}')),)
    assert reply.choices[0].finish_reason == "content_filter"


@pytest.mark.parametrize("known", ["so ", [{"type": "text", "text": "so "}]])
def test_thoughts_in_parts_are_added_to_those_that_are_there_already(known: Any) -> None:
    content = [{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "hi"}]
    message = {"role": "assistant", "content": content, "reasoning_content": known}
    reply = decode(ANSWER, choices=[{"index": 0, "message": message, "finish_reason": "stop"}])
    assert reply.choices[0].message.reasoning_content == "so because"
    alone = {"role": "assistant", "content": "hi", "reasoning_content": known}
    reply = decode(ANSWER, choices=[{"index": 0, "message": alone, "finish_reason": "stop"}])
    assert reply.choices[0].message.reasoning_content == known  # passed on as it came


def test_content_in_parts_is_joined() -> None:
    parts = [
        {"type": "thinking", "thinking": []},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    assert decode(ANSWER, choices=[{"message": {"content": parts}}]).text == "ab"


@pytest.mark.parametrize(
    "body", [b"", b"  \n", {**ANSWER, "choices": []}, {**ANSWER, "choices": None}, {"id": "x"}]
)
def test_empty_answers(body: Any) -> None:
    with pytest.raises(errors.EmptyResponse) as caught:
        decode(body)
    assert caught.value.maybe_billed


@pytest.mark.parametrize("cut", [1, 10, 60, -1])
def test_an_answer_cut_off(cut: int) -> None:
    with pytest.raises(errors.UpstreamTruncated):
        decode(json.dumps(ANSWER).encode()[:cut])


def test_an_answer_cut_after_a_lone_surrogate() -> None:
    body = json.dumps({**ANSWER, "choices": [{"message": {"content": "\ud83d and more"}}]}).encode()
    with pytest.raises(errors.UpstreamTruncated):
        decode(body[: body.index(b"and")])


@pytest.mark.parametrize(
    "body",
    [
        b"<html>please log in</html>",
        b"OK",
        b"[]",
        b"3",
        b'"text"',
        b'{"choices": NaN}',
        b'{"choices": [1e999]}',
        b'{"choices":[{"message":{"content":"\\ud83d"}}],"x":NaN}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"choices":[{"message":{"content":"\\ud83d"}}],"x":1e999}',
        b'{"choices":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"choices":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"x":"\\ud83d","choices":' + b"[" * 50000 + b"]" * 50000 + b"}",
        {"choices": {"a": 1}},
        {"choices": ["x"]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {"tool_calls": "x"}}]},
        {"choices": [{"message": {"tool_calls": ["x"]}}]},
        {"choices": [{"message": {"tool_calls": [{"function": "x"}]}}]},
    ],
)
def test_what_is_not_an_answer(body: Any) -> None:
    with pytest.raises(errors.UpstreamProtocolError) as caught:
        decode(body)
    assert not isinstance(caught.value, errors.UpstreamTruncated | errors.EmptyResponse)
    assert caught.value.maybe_billed
    assert len(str(caught.value)) < 400


def test_a_page_is_quoted_without_its_secrets() -> None:
    page = f"<html>{KEY} and sk-abcdefghijklmnop and Bearer abcdefgh".encode()
    with pytest.raises(errors.UpstreamProtocolError) as caught:
        decode(page)
    assert "<html>" in str(caught.value)
    for secret in (KEY, "sk-abc", "abcdefgh"):
        assert secret not in str(caught.value)


def test_odd_json_that_is_still_an_answer() -> None:
    assert decode(b'{"id":"a","id":"b","choices":[{"message":{"content":"\\ud83d"}}]}').text == "\ud83d"
    assert decode(b'{"id":"a","id":"b","choices":[{"message":{"content":"x"}}]}').id == "b"
    assert decode(b'\xef\xbb\xbf{"choices":[{"message":{"content":"a\xff"}}]}').text == "a\ufffd"
    assert decode(ANSWER, id=5, created="x", model=None).model == "gpt-2025"


@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises_anything_unexpected(body: bytes) -> None:
    try:
        decode(body)
    except errors.APIError:
        pass
    assert isinstance(OPENAI.decode_error(500, {}, body, TARGET), errors.APIError)


@given(st.sampled_from(["id", "choices", "usage", "created", "error", "object", "message", "detail"]), JSON)
def test_no_field_raises_anything_unexpected(name: str, value: Any) -> None:
    for body in (
        {**ANSWER, name: value},
        {**ANSWER, "choices": [{**ANSWER["choices"][0], name: value}]},
        {**ANSWER, "choices": [{"message": {"role": "assistant", name: value}}]},
        {**ANSWER, "choices": [{"delta": {name: value}}]},
        {"error": {name: value, "code": value, "type": value}},
    ):
        try:
            decode(body)
        except errors.APIError:
            pass
        try:
            OPENAI.stream(types.Request("gpt", MESSAGES, {}, True), TARGET).feed(
                sse.ServerSentEvent(data=json.dumps(body))
            )
        except errors.APIError:
            pass


# ---------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"prompt_tokens": 5}, None),
        ({"prompt_tokens": "5", "completion_tokens": 2}, None),
        ({"prompt_tokens": -5, "completion_tokens": 2}, None),
        ({"prompt_tokens": 5.0, "completion_tokens": 2}, None),
        ({"prompt_tokens": True, "completion_tokens": 2}, None),
        ({"prompt_tokens": 2**53 + 1, "completion_tokens": 2}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": 5, "completion_tokens": 0}, types.Usage(5, 0)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, types.Usage(5, 2)),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 9},
            types.Usage(5, 4, source="estimated"),
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 3},
            types.Usage(5, 2, source="estimated"),
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": "7"},
            types.Usage(5, 2, source="estimated"),
        ),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "total_tokens": 10,
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            types.Usage(5, 5, 0, 3),
        ),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 4,
                "total_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 9},
            },
            types.Usage(5, 4, 3, 4),
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 6}},
            types.Usage(5, 2, 0),
        ),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}, types.Usage(5, 2, 4)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}, types.Usage(5, 2)),
    ],
)
def test_usage(raw: Any, usage: types.Usage | None) -> None:
    assert decode(ANSWER, usage=raw).usage == usage


@given(
    JSON
    | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"]), st.integers())
)
def test_no_usage_is_below_zero(raw: Any) -> None:
    usage = decode(ANSWER, usage=raw).usage
    if usage is not None:
        assert (
            min(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
            >= 0
        )
        assert usage.cached_tokens <= usage.prompt_tokens
        assert usage.reasoning_tokens <= usage.completion_tokens
