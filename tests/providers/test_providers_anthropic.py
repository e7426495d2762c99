"""The Anthropic format: what addresses, headers and messages become on the wire."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
import pytest
from anthropic_questions import (
    ANTHROPIC,
    KEY,
    PNG,
    SECRET,
    TARGET,
    USER,
    WEATHER,
    call,
    file,
    image,
    refused,
    sent,
    turns,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute import errors, types

# ------------------------------------------------------------------------------------------ url and headers


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://a.example", "https://a.example/v1/messages"),
        ("https://a.example/", "https://a.example/v1/messages"),
        ("https://a.example/v1", "https://a.example/v1/messages"),
        ("https://a.example/anthropic/v1/", "https://a.example/anthropic/v1/messages"),
        ("https://a.example/anthropic?beta=true", "https://a.example/anthropic/v1/messages?beta=true"),
    ],
)
def test_url(base_url: str, url: str) -> None:
    assert ANTHROPIC.url(attrs.evolve(TARGET, base_url=base_url), False) == url


def test_headers() -> None:
    plain, stream = ANTHROPIC.headers(TARGET, False), ANTHROPIC.headers(TARGET, True)
    assert plain["x-api-key"] == KEY
    assert plain["anthropic-version"] == "2023-06-01"
    assert "Authorization" not in plain
    assert (plain["Accept"], stream["Accept"]) == ("application/json", "text/event-stream")
    assert stream["Accept-Encoding"] == "identity"
    assert "x-api-key" not in ANTHROPIC.headers(attrs.evolve(TARGET, key=None), False)
    beta = attrs.evolve(TARGET, headers={"Anthropic-Version": "2099-01-01", "anthropic-beta": "x"})
    assert ANTHROPIC.headers(beta, False)["Anthropic-Version"] == "2099-01-01"
    assert "anthropic-version" not in ANTHROPIC.headers(beta, False)


# -------------------------------------------------------------------------------------------------- messages


def test_the_least_request() -> None:
    assert sent() == {"model": "claude-opus-5-5", "max_tokens": 64_000, "messages": [USER]}
    assert sent(stream=True)["stream"] is True


def test_instructions_stand_before_all_turns() -> None:
    body = sent(
        {"role": "system", "content": "one"},
        USER,
        {"role": "developer", "content": [{"type": "text", "text": "two"}]},
    )
    assert body["system"] == "one\n\ntwo"
    assert body["messages"] == [USER]
    cached = {"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}
    assert sent({"role": "system", "content": [cached]}, USER)["system"] == [cached]
    assert "system" not in sent({"role": "system", "content": ""}, USER)


def test_turns_of_one_role_in_a_row_are_one_turn() -> None:
    found = turns(
        USER, {"role": "user", "content": "again"}, {"role": "assistant", "content": ""}, USER, USER
    )
    texts = [{"type": "text", "text": text} for text in ("hello", "again", "hello", "hello")]
    assert found == [{"role": "user", "content": texts}]


def test_an_answer_begun_for_the_model_ends_without_blanks() -> None:
    assert (
        turns(USER, {"role": "assistant", "content": "The answer is  \n"})[-1]["content"] == "The answer is"
    )
    assert turns(USER, {"role": "assistant", "content": "  "}) == [USER]


@pytest.mark.parametrize(
    ("part", "block"),
    [
        ({"type": "text", "text": "a"}, {"type": "text", "text": "a"}),
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        ),
        (
            {"type": "image_url", "image_url": f"data:image/JPG;base64,{PNG}"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": PNG}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
        ),
        (
            {
                "type": "file",
                "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"},
            },
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": PNG},
                "title": "a.pdf",
            },
        ),
        (
            {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
            {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
        ),
    ],
)
def test_parts(part: dict[str, Any], block: dict[str, Any]) -> None:
    end = {"type": "text", "text": "?"}
    assert turns({"role": "user", "content": [part, end]})[0]["content"] == [block, end]
    mark = {"cache_control": {"type": "ephemeral"}}
    assert turns({"role": "user", "content": [{**part, **mark}]})[0]["content"] == [{**block, **mark}]


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (SECRET, r"messages\[0\]: must be a mapping, not str"),
        ({"role": "user", "content": ""}, r"messages\[0\].content: is empty"),
        ({"role": "user", "content": [{"type": "text", "text": ""}]}, r"messages\[0\].content: is empty"),
        ({"role": "user", "content": None}, r"messages\[0\].content: is empty"),
        ({"role": "user", "content": 5}, r"messages\[0\].content: must be text or a list"),
        ({"role": "user", "content": [SECRET]}, r"messages\[0\].content\[0\]: must be a mapping"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, r"content\[0\].text: must be a string"),
        (
            {"role": "user", "content": [{"type": "input_audio"}]},
            r"content\[0\].type: .* input_audio; use one of text",
        ),
        (
            {"role": "user", "content": [{"type": SECRET}]},
            r"content\[0\].type: .* no such content; use one of",
        ),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"image_url.url: must be a string"),
        (image(SECRET), "must be an https: or data:"),
        (image(f"data:image/png,{SECRET}"), "with Base64 data"),
        (image("data:image/tiff;base64,AA=="), "unknown media type; use one of image/jpeg"),
        (file(file_id=SECRET), "file_data: must be"),
        (
            {
                "role": "user",
                "content": [{"type": "file", "file": {"file_data": "data:text/csv;base64,AA=="}}],
            },
            "application/pdf",
        ),
        ({"role": "user", "content": SECRET, "name": SECRET}, r"messages\[0\].name: .* no participant names"),
        ({"role": "function", "content": SECRET}, r"messages\[0\].role: unknown role; use one of"),
        ({"role": "assistant", "function_call": {"name": SECRET}}, r"function_call: .* no such field"),
        ({"role": "assistant", "tool_calls": SECRET}, r"tool_calls: must be a list"),
        (call(id="a"), r"tool_calls\[0\]: must be a function call"),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": SECRET}}],
            },
            r"tool_calls\[0\].function.arguments: must be a JSON object",
        ),
        (call(function={"name": "f", "arguments": "{}"}), r"tool_calls\[0\].id: must be a non-empty string"),
        (call(id="a", function={"arguments": "{}"}), r"tool_calls\[0\].function.name"),
        ({"role": "tool", "content": SECRET}, r"messages\[0\].tool_call_id: must be a non-empty string"),
        ({"role": "system", "content": SECRET}, "messages: has only instructions"),
        (
            {"role": "system", "content": [{"type": "image_url", "image_url": "https://a.example"}]},
            r"messages\[0\].content: must be text only",
        ),
    ],
)
def test_messages_that_cannot_be_said_are_refused_with_their_place(message: Any, place: str) -> None:
    error = refused(message)
    assert error.param == "messages"
    assert re.search(place, str(error))


def test_calls_and_their_results() -> None:
    found = turns(
        USER,
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {
                    "id": "call.1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
                },
                {"id": "call.2", "type": "function", "function": {"name": "weather", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "call.1", "content": "sunny"},
        {
            "role": "tool",
            "tool_call_id": "call.2",
            "name": "weather",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            ],
            "is_error": True,
        },
        {"role": "user", "content": "and now?"},
        tools=[WEATHER],
    )
    assert found[1]["content"] == [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
    ]
    assert found[2] == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"},
            {
                "type": "tool_result",
                "tool_use_id": "call_2",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
                ],
                "is_error": True,
            },
            {"type": "text", "text": "and now?"},
        ],
    }


WORDS = st.text(min_size=1, max_size=20).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Anything that OpenAI would take as a conversation."""
    messages: list[dict[str, Any]] = []
    serial = 0
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            messages.append({"role": draw(st.sampled_from(["system", "developer"])), "content": draw(WORDS)})
        messages.append({"role": "user", "content": draw(WORDS)})
        answer: dict[str, Any] = {"role": "assistant", "content": draw(st.none() | st.just("") | WORDS)}
        calls = draw(st.integers(0, 3))
        if calls:
            answer["tool_calls"] = [
                {
                    "id": f"call:{serial + number}",
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "arguments": draw(st.sampled_from(["", "{}", '{"city": "x"}'])),
                    },
                }
                for number in range(calls)
            ]
        messages.append(answer)
        for number in range(calls):
            result = draw(st.just("") | WORDS)
            messages.append({"role": "tool", "tool_call_id": f"call:{serial + number}", "content": result})
        serial += calls
    return messages


@settings(max_examples=40)
@given(conversations())
def test_any_conversation_becomes_one_that_is_taken(messages: list[dict[str, Any]]) -> None:
    before = json.dumps(messages)
    found = turns(*messages, tools=[WEATHER])
    assert json.dumps(messages) == before
    assert [turn["role"] for turn in found] == ["user", "assistant"] * (len(found) // 2) + ["user"] * (
        len(found) % 2
    )


NAMES = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "file",
        "file_data",
        "tool_calls",
        "tool_call_id",
        "id",
        "function",
        "name",
        "arguments",
        "parameters",
        "json_schema",
        "schema",
        "properties",
        "user",
        "assistant",
        "system",
        "tool",
        "data:image/png;base64,AA==",
    ]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": ANYTHING},
    optional={"tool_calls": ANYTHING, "tool_call_id": ANYTHING, "thinking_blocks": ANYTHING},
)
PARAMETERS = [
    "temperature",
    "stop",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "user",
    "metadata",
    "service_tier",
    "n",
    "output_config",
]


@settings(max_examples=80)
@given(
    st.lists(MESSAGE | ANYTHING, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(PARAMETERS), ANYTHING, max_size=3),
)
def test_whatever_is_asked_is_sent_or_refused(messages: list[Any], given_params: dict[str, Any]) -> None:
    request = types.Request("claude", messages, given_params)
    try:
        json.loads(ANTHROPIC.encode(request, TARGET))
    except errors.BadRequestError:
        pass


def test_a_request_inside_itself_or_of_no_json_is_refused() -> None:
    loop: dict[str, Any] = {"type": "object"}
    loop["properties"] = {"a": loop}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": loop}}
    assert "contains itself" in str(refused(response_format=shape))
    assert "contains itself" in str(refused(tools=[{"function": {"name": "f", "parameters": loop}}]))
    assert "temperature: must be a finite number" in str(refused(temperature=float("nan")))
