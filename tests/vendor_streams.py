"""Streams and answers as the vendors' servers send them, byte for byte, and what must come of each.

To add one, add a line: the vendor's own SDK reads the same bytes, and what it makes of them is the
expectation (`tests/integrations/test_vendor_sdks.py`). Where the SDK cannot read them, ``wanted`` says what
is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spoken import framed


@dataclass(frozen=True)
class Told:
    """An answer, put together.

    Attributes:
        calls: name and arguments (as JSON, or the text of a custom tool) of each tool call.
        finish: the finish reason in OpenAI's words.
        fields: further fields of the message.
    """

    text: str = ""
    thoughts: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    finish: str | None = "stop"
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VendorStream:
    """One stream.

    Attributes:
        format: the wire format.
        body: its bytes.
        wanted: what is right where the vendor's SDK cannot read it; None: what the SDK makes of it.
        fields: names of the message's fields that are compared too.
    """

    name: str
    format: str
    body: bytes
    wanted: Told | None = None
    fields: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------ OpenAI


def chunks(*deltas: Any, finish: str = "stop", usage: Any = None, end: bytes = b"data: [DONE]\n\n") -> bytes:
    shape = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up"}
    said = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": finish}
    if usage is not None:
        last["usage"] = usage
    return framed([("", {**shape, "choices": [choice]}) for choice in [*said, last]]) + end


def calls(*items: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": list(items)}


def call(city: str | None = None, *, arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    text = json.dumps({"city": city}) if arguments is None else arguments
    return {**fields, "type": "function", "function": {"name": "weather", "arguments": text}}


def picture(number: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,QUJ{number}"}}


def cited(number: int) -> dict[str, Any]:
    return {"type": "url_citation", "url_citation": {"url": f"https://example.com/{number}", "title": "t"}}


def thought(number: int, text: str) -> dict[str, Any]:
    return {"type": "reasoning.text", "text": text, "index": number}


TWO = (("weather", {"city": "Rome"}), ("weather", {"city": "Oslo"}))
PARTS = ({"city": "Rome"}, {"city": "Oslo"})
CUSTOM = {"id": "c1", "index": 0, "type": "custom", "custom": {"name": "code", "input": ""}}
MAGISTRAL = {"type": "thinking", "thinking": [{"type": "text", "text": "six times seven"}], "closed": True}

OPENAI = [
    ("text", chunks({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"})),
    ("cut by the limit", chunks({"content": "Hello"}, finish="length")),
    ("refused", chunks({"role": "assistant", "refusal": "I can"}, {"refusal": "not."}), None, ("refusal",)),
    (
        "calls by the book",
        chunks(
            calls(call(arguments="", id="a", index=0)),
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]},
            calls(call("Oslo", id="b", index=1)),
            finish="tool_calls",
        ),
    ),
    (
        "interleaved calls",
        chunks(
            calls(call(arguments="", id="a", index=0), call(arguments="", id="b", index=1)),
            {
                "tool_calls": [
                    {"index": index, "function": {"arguments": json.dumps(part)}}
                    for index, part in enumerate(PARTS)
                ]
            },
            finish="tool_calls",
        ),
    ),
    (
        "calls all at index 0 (Ollama)",
        chunks(
            calls(call("Rome", id="a", index=0)), calls(call("Oslo", id="b", index=0)), finish="tool_calls"
        ),
        Told(calls=TWO, finish="tool_calls"),
    ),
    (
        "calls without an index (Google)",
        chunks(calls(call("Rome", id="a")), calls(call("Oslo", id="b"))),
        Told(calls=TWO),
    ),
    (
        "calls without an id",
        chunks(calls(call("Rome", index=0)), calls(call("Oslo", index=1)), finish="tool_calls"),
    ),
    (
        "calls with neither",
        chunks(calls(call("Rome")), calls(call("Oslo")), finish="tool_calls"),
        Told(calls=TWO, finish="tool_calls"),
    ),
    (
        "another id with every fragment (vLLM)",
        chunks(
            calls(call(arguments="", id="a", index=0)),
            {"tool_calls": [{"index": 0, "id": "b", "function": {"arguments": '{"city": '}}]},
            {"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": '"Rome"}'}}]},
            finish="tool_calls",
        ),
        Told(calls=TWO[:1], finish="tool_calls"),
    ),
    (
        "a custom tool",
        chunks(
            calls(CUSTOM),
            {"tool_calls": [{"index": 0, "custom": {"input": "print"}}]},
            {"tool_calls": [{"index": 0, "custom": {"input": "(1)"}}]},
            finish="tool_calls",
        ),
        Told(calls=(("code", "print(1)"),), finish="tool_calls"),
    ),
    (
        "a function call of old",
        chunks(
            {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": ""}},
            {"function_call": {"arguments": '{"city": '}},
            {"function_call": {"arguments": '"Rome"}'}},
            finish="function_call",
        ),
        None,
        ("function_call",),
    ),
    (
        "thoughts (DeepSeek)",
        chunks({"reasoning_content": "hm"}, {"reasoning_content": "m"}, {"content": "42"}),
    ),
    (
        "details of reasoning (OpenRouter)",
        chunks(
            {"reasoning": "h", "reasoning_details": [thought(0, "h")]},
            {"reasoning": "m", "reasoning_details": [thought(0, "m")]},
            {"reasoning_details": [thought(1, "second")]},
            {"content": "42"},
        ),
        None,
        ("reasoning", "reasoning_details"),
    ),
    (
        "details with their format in every part, two kinds at one index (OpenRouter)",
        chunks(
            {"reasoning_details": [{**thought(0, "h"), "format": "f-v1", "id": "rs_1"}]},
            {"reasoning_details": [{**thought(0, "m"), "format": "f-v1", "id": "rs_1"}]},
            {
                "reasoning_details": [
                    {"type": "reasoning.encrypted", "data": "x", "format": "f-v1", "index": 0}
                ]
            },
            {"content": "42"},
        ),
        Told(
            "42",
            fields={
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "hm", "format": "f-v1", "id": "rs_1"},
                    {"type": "reasoning.encrypted", "data": "x", "format": "f-v1"},
                ]
            },
        ),
        ("reasoning_details",),
    ),
    (
        "details counted from 1",
        chunks(
            *(
                {"reasoning_details": [thought(number, text)]}
                for number, text in ((1, "a"), (1, "b"), (2, "c"))
            ),
            {"content": "42"},
        ),
        Told(
            "42",
            fields={
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "ab"},
                    {"type": "reasoning.text", "text": "c"},
                ]
            },
        ),
        ("reasoning_details",),
    ),
    (
        "the role with every chunk (Ollama)",
        chunks(*({"role": "assistant", "content": text} for text in ("Hel", "lo"))),
        Told("Hello"),
    ),
    (
        "lists inside of a field",
        chunks(*({"content": text, "provider_specific_fields": {"cited": [{"at": text}]}} for text in "ab")),
        Told("ab", fields={"provider_specific_fields": {"cited": [{"at": "a"}, {"at": "b"}]}}),
        ("provider_specific_fields",),
    ),
    (
        "thoughts as parts (Magistral)",
        chunks({"content": [MAGISTRAL]}, {"content": "4"}, {"content": [{"type": "text", "text": "2"}]}),
        Told("42", "six times seven"),
    ),
    (
        "two pictures",
        chunks({"content": "Here"}, {"images": [{**picture(1), "index": 0}, {**picture(2), "index": 1}]}),
        None,
        ("images",),
    ),
    (
        "two pictures without an index",
        chunks({"content": "Here"}, {"images": [picture(1)]}, {"images": [picture(2)]}),
        Told("Here", fields={"images": [picture(1), picture(2)]}),
        ("images",),
    ),
    (
        "two pictures at one index",
        chunks({"content": "Here"}, *({"images": [{**picture(number), "index": 0}]} for number in (1, 2))),
        Told("Here", fields={"images": [picture(1), picture(2)]}),
        ("images",),
    ),
    (
        "annotations",
        chunks({"content": "a"}, {"annotations": [cited(1)]}, {"content": "b"}, {"annotations": [cited(2)]}),
        Told("ab", fields={"annotations": [cited(1), cited(2)]}),
        ("annotations",),
    ),
    (
        "fields of a provider",
        chunks({"content": "a", "provider_specific_fields": {"x": {"y": "1"}}}, {"content": "b"}),
        None,
        ("provider_specific_fields",),
    ),
    (
        "usage inside the choice (Moonshot)",
        chunks({"content": "Hello"}, usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}),
    ),
    ("without the end mark", chunks({"content": "Hello"}, end=b"")),
]

# --------------------------------------------------------------------------------------------- Anthropic


def event(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"type": kind, **fields}


BEGIN = event(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "up",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 1},
    },
)


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[Any]:
    return [
        event("content_block_start", index=index, content_block=start),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


def text(index: int, *pieces: str) -> list[Any]:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return block(index, {"type": "text", "text": ""}, *deltas)


def tool(index: int, identity: str, *pieces: str) -> list[Any]:
    start = {"type": "tool_use", "id": identity, "name": "weather", "input": {}}
    return block(index, start, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


def message(*blocks: list[Any], stop: str = "end_turn", twice: bool = False) -> bytes:
    begin = [BEGIN, BEGIN] if twice else [BEGIN]
    end = event(
        "message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage={"output_tokens": 9}
    )
    return framed(begin, *blocks, [end, event("message_stop")])


def quote(number: int) -> dict[str, Any]:
    return {
        "type": "citations_delta",
        "citation": {
            "type": "char_location",
            "cited_text": f"passage {number}",
            "document_index": 0,
            "document_title": "d",
            "start_char_index": 0,
            "end_char_index": 9,
        },
    }


THINKING = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "h"},
    {"type": "thinking_delta", "thinking": "m"},
    {"type": "signature_delta", "signature": "signed"},
)
SEARCH = block(
    0,
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
    {"type": "input_json_delta", "partial_json": '{"query": "x"}'},
)
FOUND = block(
    1,
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [
            {
                "type": "web_search_result",
                "title": "t",
                "url": "https://example.com",
                "encrypted_content": "e",
            }
        ],
    },
)
BLOCKS = ("content_blocks",)

ANTHROPIC = [
    ("text", message(text(0, "Hel", "lo"))),
    ("cut by the limit", message(text(0, "Hello"), stop="max_tokens")),
    ("filtered", message(text(0, "Hello"), stop="refusal")),
    (
        "two calls",
        message(tool(0, "a", '{"city": ', '"Rome"}'), tool(1, "b", '{"city": "Oslo"}'), stop="tool_use"),
    ),
    ("a call without input", message(tool(0, "a"), stop="tool_use")),
    (
        "signed thoughts",
        message(THINKING, block(1, {"type": "redacted_thinking", "data": "x"}), text(2, "42")),
        None,
        ("thinking_blocks",),
    ),
    (
        "two citations",
        message(
            block(
                0,
                {"type": "text", "text": "", "citations": []},
                quote(1),
                {"type": "text_delta", "text": "a"},
            ),
            block(
                1,
                {"type": "text", "text": "", "citations": []},
                quote(2),
                {"type": "text_delta", "text": "b"},
            ),
        ),
        None,
        BLOCKS,
    ),
    ("a search of its own", message(SEARCH, FOUND, text(2, "Found.")), None, BLOCKS),
    ("message_start twice (a relay)", message(text(0, "Hello"), twice=True)),
    (
        "a block stopped twice (a relay)",
        message(text(0, "Hello"), [event("content_block_stop", index=0)]),
    ),
]

# ------------------------------------------------------------------------------------------------ Gemini


def said(*parts: Any, finish: str | None = None, **fields: Any) -> tuple[str, dict[str, Any]]:
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": list(parts)}}
    if finish is not None:
        candidate["finishReason"] = finish
    counts = {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}
    shape = {"usageMetadata": counts, "modelVersion": "up", "responseId": "r"}
    return "", {"candidates": [candidate], **shape, **fields}


def asked(city: str, **fields: Any) -> dict[str, Any]:
    return {"functionCall": {"name": "weather", "args": {"city": city}}, **fields}


CODE = {"executableCode": {"language": "PYTHON", "code": "print(6 * 7)"}}
RESULT = {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "42\n"}}
CODE_PARTS = ("content_parts",)

GEMINI = [
    ("text", framed([said({"text": "Hel"}), said({"text": "lo"}, finish="STOP")])),
    (
        "a finish reason in every event",
        framed([said({"text": "a"}, finish="STOP"), said({"text": "b"}, finish="STOP")]),
    ),
    (
        "another reason at last",
        framed([said({"text": "a"}, finish="STOP"), said({"text": "b"}, finish="MAX_TOKENS")]),
    ),
    (
        "code that it has run, and text after the first STOP",
        framed([said(CODE), said(RESULT, finish="STOP"), said({"text": "It is 42."}), said(finish="STOP")]),
        None,
        CODE_PARTS,
    ),
    (
        "code between two texts",
        framed([said({"text": "So: "}), said(CODE), said(RESULT), said({"text": "42"}, finish="STOP")]),
        None,
        CODE_PARTS,
    ),
    (
        "two calls",
        framed([said(asked("Rome", thoughtSignature="c2ln")), said(asked("Oslo"), finish="STOP")]),
    ),
    ("thoughts", framed([said({"text": "hm", "thought": True}), said({"text": "42"}, finish="STOP")])),
    (
        "two pictures",
        framed(
            [
                said({"inlineData": {"mimeType": "image/png", "data": "QUJ1"}}),
                said({"inlineData": {"mimeType": "image/png", "data": "QUJ2"}}, finish="STOP"),
            ]
        ),
        None,
        ("images",),
    ),
    ("filtered", framed([said({"text": "Hel"}), said({"text": "lo"}, finish="SAFETY")])),
    ("recited", framed([said({"text": "Hel"}), said(finish="RECITATION")])),
    ("ended for another reason", framed([said({"text": "Hello"}, finish="OTHER")])),
]

STREAMS = [
    VendorStream(name, format, *rest)
    for format, rows in (("openai", OPENAI), ("anthropic", ANTHROPIC), ("gemini", GEMINI))
    for name, *rest in rows
]

# ------------------------------------------------------------------------------------------ plain answers


def reply(finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    """An answer in OpenAI's format."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    shape = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "up"}
    return {**shape, "choices": [choice], "usage": usage}


CUSTOM_CALL = {"id": "c1", "type": "custom", "custom": {"name": "code", "input": "print(1)"}}
SIGNED = {"extra_content": {"google": {"thought_signature": "c2ln"}}}

ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str | None]] = {
    "text": (reply(content="Hello"), None, None),
    "a refusal": (reply(content=None, refusal="I cannot."), None, None),
    "a custom tool": (reply("tool_calls", content=None, tool_calls=[CUSTOM_CALL]), None, None),
    "a call with more": (
        reply("tool_calls", content=None, tool_calls=[call("Rome", id="a", **SIGNED)]),
        None,
        None,
    ),
    "a function call of old": (
        reply("function_call", content=None, function_call={"name": "f", "arguments": "{}"}),
        None,
        None,
    ),
    "thoughts": (reply(content="42", reasoning_content="hm"), None, None),
    "details of reasoning": (
        reply(content="42", reasoning="hm", reasoning_details=[thought(0, "hm")]),
        None,
        None,
    ),
    "pictures": (reply(content="", images=[picture(1), picture(2)]), None, None),
    "annotations": (reply(content="a", annotations=[cited(1), cited(2)]), None, None),
    "fields of a provider": (
        reply(content="a", provider_specific_fields={"x": [1, {"y": None}]}, of_the_future={"z": 1}),
        None,
        None,
    ),
    "thoughts as parts (Magistral)": (
        reply(content=[MAGISTRAL, {"type": "text", "text": "42"}]),
        {"content": "42", "reasoning_content": "six times seven"},
        None,
    ),
    "other parts (Mistral)": (
        reply(content=[{"type": "text", "text": "42"}, {"type": "reference", "reference_ids": [1]}]),
        {
            "content": "42",
            "content_parts": [{"type": "text", "text": "42"}, {"type": "reference", "reference_ids": [1]}],
        },
        None,
    ),
    "arguments as an object (Ollama)": (
        reply(
            "tool_calls",
            content="",
            tool_calls=[{"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
        ),
        {
            "content": "",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
            ],
        },
        None,
    ),
    "ended by its end mark (Together)": (reply("eos", content="Hello"), None, "stop"),
    "out of room (Mistral)": (reply("model_length", content="Hello"), None, "length"),
    "filtered (GLM)": (reply("sensitive", content="Hello"), None, "content_filter"),
    "a reason of the future": (reply("satisfied", content="Hello"), None, "stop"),
}
"""By name: the body, the message where the SDK's own is not right, and OpenAI's finish reason where the
provider's is another word."""
