"""The local provider: answers and streams, by plain sockets, http.client and requests."""

from __future__ import annotations

import json
import pathlib
import re
import time
from typing import Any

import pytest
import requests
from raw_http import HELLO, STREAM, answer, ask, events, stream, text_of

from fastroute.testing import Answer, Provider, Received, StreamStyle, count_tokens

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs" / "testing.md"


# ------------------------------------------------------------------------------------------------ answers


def test_a_plain_answer_has_openais_shape_and_counts_by_the_token_rule(provider: Provider) -> None:
    status, headers, body = ask(provider)
    reply = json.loads(body)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert re.fullmatch(r"req_[0-9a-f]{8}", headers["x-request-id"])
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "m"
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert reply["usage"]["prompt_tokens"] == 4 + 3
    assert reply["usage"]["completion_tokens"] == 3
    assert reply["usage"]["total_tokens"] == 10


def test_request_ids_and_completion_ids_differ(provider: Provider) -> None:
    first, second = ask(provider), ask(provider)
    assert first[1]["x-request-id"] != second[1]["x-request-id"]
    assert json.loads(first[2])["id"] != json.loads(second[2])["id"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "hello world"),
        ("fixed", "fixed"),
        (Answer(content="as it stands"), "as it stands"),
        (lambda request: request.json["model"] + "!", "m!"),
        (lambda request: Answer(content="made"), "made"),
    ],
    ids=["echo", "text", "answer", "function", "function-answer"],
)
def test_answer_sources(source: Any, expected: str) -> None:
    with Provider(answer=source) as provider:
        assert answer(provider)["choices"][0]["message"]["content"] == expected
        assert text_of(stream(provider)) == expected


@pytest.mark.parametrize("tokens", [0, 1, 7, 1000])
def test_lorem_has_exactly_the_tokens_asked_for(tokens: int) -> None:
    with Provider(answer=tokens) as provider:
        reply = answer(provider)
    assert reply["usage"]["completion_tokens"] == tokens
    assert count_tokens(reply["choices"][0]["message"]["content"]) == tokens


def test_usage_takes_cached_and_reasoning_tokens() -> None:
    with Provider(answer="four", cached_tokens=1000, reasoning_tokens=50) as provider:
        usage = answer(provider)["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": usage["prompt_tokens"]}
    assert usage["completion_tokens"] == 51
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 50}


def test_an_answer_may_set_all_of_its_usage() -> None:
    given = Answer(
        content="x",
        tool_calls=(),
        finish_reason="content_filter",
        prompt_tokens=100,
        completion_tokens=20,
        cached_tokens=30,
        reasoning_tokens=5,
    )
    with Provider(answer=given) as provider:
        reply = answer(provider)
    assert reply["choices"][0]["finish_reason"] == "content_filter"
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (100, 20)
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 30}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts_the_answer(provider: Provider, name: str) -> None:
    reply = answer(provider, {**HELLO, name: 2})
    assert reply["choices"][0]["message"]["content"] == "hello wo"
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 2


def test_n_choices_are_all_counted(provider: Provider) -> None:
    reply = answer(provider, {**HELLO, "n": 3})
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 9
    chunks = stream(provider, n=2)
    assert [text_of(chunks, index) for index in (0, 1)] == ["hello world", "hello world"]


def test_text_parts_are_echoed_and_images_counted(provider: Provider) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    reply = answer(provider, {"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert reply["choices"][0]["message"]["content"] == "look"
    assert reply["usage"]["prompt_tokens"] == 4 + 1 + 85


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "unit": {"enum": ["C", "F"]},
                    "left_out": {"type": "number"},
                },
                "required": ["city", "days", "unit"],
            },
        },
    },
    {"type": "function", "function": {"name": "other"}},
]


@pytest.mark.parametrize(
    ("choice", "name"),
    [("required", "weather"), ({"type": "function", "function": {"name": "other"}}, "other")],
    ids=["required", "named"],
)
def test_a_required_tool_is_called_with_arguments_to_its_schema(
    provider: Provider, choice: Any, name: str
) -> None:
    body = {**HELLO, "tools": TOOLS, "tool_choice": choice}
    reply = answer(provider, body)
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    assert reply["choices"][0]["message"]["content"] is None
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == name
    arguments = json.loads(call["function"]["arguments"])
    if name == "weather":
        assert arguments == {"city": "hello world", "days": 1, "unit": "C"}

    deltas = [
        delta
        for chunk in stream(provider, tools=TOOLS, tool_choice=choice)
        if isinstance(chunk, dict)
        for delta in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert deltas[0]["function"]["name"] == name
    assert deltas[0]["id"]
    assert [set(delta) for delta in deltas[1:]] == [{"index", "function"}] * (len(deltas) - 1)
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas)) == arguments


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_tools_that_need_not_be_called_are_not(provider: Provider, choice: Any) -> None:
    reply = answer(provider, {**HELLO, "tools": TOOLS, "tool_choice": choice})
    assert reply["choices"][0]["message"]["content"] == "hello world"


def test_several_tool_calls_keep_their_indices_apart() -> None:
    calls = (("a", '{"x":1}'), ("b", '{"yyyyyy":2}'))
    with Provider(answer=Answer(tool_calls=calls)) as provider:
        told: dict[int, str] = {}
        for chunk in stream(provider)[:-1]:
            for delta in chunk["choices"][0]["delta"].get("tool_calls", ()):
                told[delta["index"]] = told.get(delta["index"], "") + delta["function"]["arguments"]
    assert told == {0: calls[0][1], 1: calls[1][1]}


def test_response_formats_give_json(provider: Provider) -> None:
    reply = answer(provider, {**HELLO, "response_format": {"type": "json_object"}})
    assert json.loads(reply["choices"][0]["message"]["content"]) == {"answer": "hello world"}
    schema = {"type": "object", "properties": {"n": {"type": "array", "items": {"type": "number"}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = answer(provider, {**HELLO, "response_format": wanted})
    assert json.loads(reply["choices"][0]["message"]["content"]) == {"n": [1.5]}


def test_models_are_listed_and_others_refused() -> None:
    with Provider(["a", "b"]) as provider:
        listed = requests.get(provider.base_url + "/models", timeout=5).json()
        assert [model["id"] for model in listed["data"]] == ["a", "b"]
        status, _, body = ask(provider)
        assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


def test_keys_are_checked_and_other_paths_not_found() -> None:
    with Provider(api_keys=["sk-right"]) as provider:
        for key in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": "sk-right"}):
            status, _, body = ask(provider, **key)
            assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
        assert ask(provider, Authorization="Bearer sk-right")[0] == 200
        assert requests.get(provider.url + "/v1/nothing", timeout=5).status_code == 404
        assert requests.get(provider.base_url + "/chat/completions", timeout=5).status_code == 404
    assert "sk-right" not in repr(provider)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        ({"messages": HELLO["messages"]}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": ["x"]}, "messages[0]"),
        ({**HELLO, "n": 0}, "n"),
        ({**HELLO, "n": "1"}, "n"),
        ({**HELLO, "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_bad_questions_get_a_400_that_names_the_parameter(provider: Provider, body: Any, param: Any) -> None:
    status, _, reply = ask(provider, body)
    assert status == 400
    assert json.loads(reply)["error"]["type"] == "invalid_request_error"
    assert json.loads(reply)["error"]["param"] == param


def test_a_function_that_raises_is_a_500_and_the_server_lives(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Received) -> str:
        raise KeyError("mine")

    with Provider(answer=broken) as provider:
        assert ask(provider)[0] == 500
        provider.answer = "fine"
        assert ask(provider)[0] == 200
    assert "KeyError" in caplog.text


# ------------------------------------------------------------------------------------------------ streams


def test_a_stream_begins_with_the_role_and_ends_with_reason_and_done(provider: Provider) -> None:
    status, headers, body = ask(provider, STREAM)
    chunks = events(body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["transfer-encoding"] == "chunked"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:4]] == ["hell", "o wo", "rld"]
    assert chunks[4]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chunks[5] == b"[DONE]"
    assert len(chunks) == 6
    assert not any("usage" in chunk for chunk in chunks[:-1])


def test_usage_comes_last_and_only_if_asked_for(provider: Provider) -> None:
    chunks = stream(provider, stream_options={"include_usage": True})
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["total_tokens"] == 10
    assert all(chunk["usage"] is None for chunk in chunks[:-2])


def test_stream_styles() -> None:
    style = StreamStyle(comment_every=2, crlf=True, usage_in_every_chunk=True, done=False)
    with Provider(style=style) as provider:
        body = ask(provider, STREAM)[2]
        assert body.count(b": keep-alive\r\n\r\n") == 2
        assert b"\n" not in body.replace(b"\r\n", b"")
        assert b"[DONE]" not in body
        assert [chunk["usage"]["completion_tokens"] for chunk in events(body)] == [0, 1, 2, 3, 3]
        provider.configure(style=StreamStyle(usage=False))
        chunks = stream(provider, stream_options={"include_usage": True})
        assert not any("usage" in chunk for chunk in chunks[:-1])


def test_tokens_are_paced_one_by_one() -> None:
    # Not how long it takes: that the pieces come apart, in order, with pauses that add up.
    with Provider(answer=5, tokens_per_second=200) as provider:
        start = time.monotonic()
        assert len(stream(provider)) == 8
        assert time.monotonic() - start >= 4 / 200
        start = time.monotonic()
        ask(provider)
        assert time.monotonic() - start >= 5 / 200


# ------------------------------------------------------------------------------------------------ the page


def test_the_pages_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    for place, block in enumerate(blocks):
        exec(compile(block, f"docs/testing.md, example {place + 1}", "exec"), {"__name__": "example"})
