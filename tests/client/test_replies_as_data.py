"""Replies as data: the OpenAI SDK's methods give the same over the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from client_setups import Start
from loopback import MODEL
from needs import need

import fastroute
from fastroute.testing import Answer, Fault

openai = need("openai")

HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def answer(message: dict[str, Any], reason: str = "stop", **further: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    choice.update(further.pop("choice", {}))
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [choice],
        "usage": USAGE,
        **further,
    }


ANSWERS = {
    "text": answer({"content": "hi"}),
    "nulls": answer({"content": "hi", "refusal": None, "tool_calls": None}, service_tier=None),
    "refusal": answer({"content": None, "refusal": "I cannot"}),
    "tools": answer({"content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}]}, "tool_calls"),
    "custom tool": answer(
        {
            "content": None,
            "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "sh", "input": "ls"}}],
        },
        "tool_calls",
    ),
    "annotations": answer(
        {
            "content": "hi",
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {"start_index": 0, "end_index": 2, "title": "t", "url": "https://x.test"},
                }
            ],
        }
    ),
    "logprobs": answer(
        {"content": "hi"},
        choice={
            "logprobs": {
                "content": [{"token": "hi", "logprob": -0.1, "bytes": [104, 105], "top_logprobs": []}]
            }
        },
    ),
    "further fields": answer(
        {"content": "hi", "reasoning_content": "hm"}, service_tier="default", citations=["https://x.test"]
    ),
    "usage in detail": answer(
        {"content": "hi"},
        usage={
            **USAGE,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 1},
            "cost": 0.1,
        },
    ),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"exclude_none": True},
    {"exclude_unset": True},
    {"exclude_defaults": True},
    {"mode": "json", "by_alias": True},
    {"include": {"id", "choices"}},
    {"exclude": {"usage"}},
]


@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS.keys())
def test_a_reply_is_dumped_as_the_sdk_dumps_it(start: Start, body: dict[str, Any]) -> None:
    loop = start(1)
    provider = loop.provider()
    provider.script(Fault.status(200, json.dumps(body)), repeat=True)
    with openai.OpenAI(base_url=provider.base_url, api_key="local", max_retries=0) as sdk:
        theirs = sdk.chat.completions.create(model=MODEL, messages=HELLO)
    ours = loop.ask()
    pairs = [
        (ours, theirs),
        (ours.choices[0], theirs.choices[0]),
        (ours.choices[0].message, theirs.choices[0].message),
        *zip(ours.choices[0].message.tool_calls or (), theirs.choices[0].message.tool_calls or ()),
    ]
    for mine, other in pairs:
        for options in OPTIONS:
            assert mine.model_dump(**options) == other.model_dump(**options), (type(mine), options)
        assert json.loads(mine.model_dump_json()) == json.loads(other.model_dump_json())
        assert json.loads(mine.to_json()) == json.loads(other.to_json())
        assert mine.to_dict() == other.to_dict()
    assert ours.usage is not None
    assert ours.usage.model_dump().items() >= USAGE.items()
    assert "\n" not in ours.model_dump_json()
    assert '\n  "id"' in ours.model_dump_json(indent=2)
    assert ours._request_id == ours.route.request_id  # type: ignore[union-attr]


def chunk(delta: dict[str, Any], reason: str | None = None, **further: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": MODEL,
        "choices": [choice],
        **further,
    }


def part(index: int, arguments: str, **first: Any) -> dict[str, Any]:
    function = {"arguments": arguments}
    if first:
        return {"index": index, "id": first["id"], "type": "function", "function": {**function, "name": "f"}}
    return {"index": index, "function": function}


def test_chunks_are_dumped_as_the_sdk_dumps_them(start: Start) -> None:
    sent = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "hi"}, system_fingerprint="fp"),
        chunk({"tool_calls": [part(0, "", id="call_1")]}),
        chunk({"tool_calls": [part(0, '{"a":')]}),
        chunk({"tool_calls": [part(0, "1}"), part(1, "{}", id="call_2")]}),
        chunk({"reasoning_content": "hm"}),
        chunk({}, "tool_calls"),
        {**chunk({}), "choices": [], "usage": USAGE},
    ]
    events = [f"data: {json.dumps(each)}\n\n".encode() for each in sent]
    loop = start(1)
    provider = loop.provider()
    provider.script(Fault.events(*events, b"data: [DONE]\n\n"), repeat=True)
    params: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    with openai.OpenAI(base_url=provider.base_url, api_key="local", max_retries=0) as sdk:
        theirs = list(sdk.chat.completions.create(model=MODEL, messages=HELLO, **params))
    ours = list(loop.stream(stream_options={"include_usage": True}))
    assert len(ours) == len(sent)
    for options in OPTIONS:
        assert [each.model_dump(**options) for each in ours] == [
            each.model_dump(**options) for each in theirs
        ], options


@pytest.mark.parametrize("format", ["anthropic", "gemini"])
def test_a_reply_of_another_format_has_the_sdks_shape(start: Start, format: str) -> None:
    loop = start(1, format=format, answer=Answer(content="hi", prompt_tokens=5, completion_tokens=2))
    reply = loop.ask()
    read = openai.types.chat.ChatCompletion.model_validate(reply.model_dump())
    assert read.choices[0].message.content == "hi"
    assert read.usage.total_tokens == 7
    assert read.object == "chat.completion"


def test_history_may_be_dumped_messages(start: Start) -> None:
    loop = start(1)
    message = loop.ask().choices[0].message
    for said in (message, message.to_dict(), message.model_dump(), message.model_dump(exclude_none=True)):
        assert loop.ask(messages=[*HELLO, said, *HELLO]).text


# ------------------------------------------------------------------------------------------ unknown names


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("choice", "choices"),
        ("content", r"choices\[0\].message.content"),
        ("message", r"choices\[0\].message"),
        ("usages", "usage"),
        ("model_dumps", "model_dump"),
        ("choices.0.text", "message.content"),
        ("choices.0.delta", "message"),
        ("choices.0.mesage", "message"),
        ("choices.0.message.contents", "content"),
        ("choices.0.message.toolcalls", "tool_calls"),
    ],
)
def test_an_unknown_field_names_the_nearest(start: Start, path: str, hint: str) -> None:
    found: Any = start(1).ask()
    *steps, last = path.split(".")
    for step in steps:
        found = found[int(step)] if step.isdigit() else getattr(found, step)
    with pytest.raises(AttributeError, match=rf"has no field '{last}'.*did you mean {hint}"):
        getattr(found, last)
    assert getattr(found, last, None) is None


def test_a_reply_is_no_mapping_and_no_stream(start: Start) -> None:
    reply: Any = start(1).ask()
    with pytest.raises(TypeError, match=r"write \.choices, or use to_dict\(\)"):
        reply["choices"]
    with pytest.raises(TypeError, match="stream=True"):
        list(reply)


def test_a_stream_is_no_reply(start: Start) -> None:
    with start(1).stream() as stream:
        anything: Any = stream
        with pytest.raises(AttributeError, match=r"Stream.*choices.*leave out stream=True"):
            anything.choices  # noqa: B018
        with pytest.raises(AttributeError, match=r"did you mean usage\?"):
            anything.usages  # noqa: B018
        assert not hasattr(stream, "__html__")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("completions", "chat.completions.create"),
        ("chats", "did you mean chat"),
        ("embeddings", "chat completions only"),
        ("responses", "chat completions only"),
        ("with_option", "did you mean with_options"),
        ("chat.completion", "did you mean completions"),
        ("chat.create", "completions.create"),
        ("chat.completions.creat", "did you mean create"),
        ("chat.completions.acreate", "did you mean create"),
    ],
)
def test_an_unknown_name_of_the_client_names_the_nearest(start: Start, path: str, hint: str) -> None:
    found: Any = start(1).client
    *steps, last = path.split(".")
    for step in steps:
        found = getattr(found, step)
    with pytest.raises(AttributeError, match=hint):
        getattr(found, last)
    assert not hasattr(fastroute.Client, last)
