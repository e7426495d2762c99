"""Empty answers, and answers that the provider broke off, are failed attempts in every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from loopback import MODEL, Loopback

import fastroute
from fastroute.providers.wordings import BROKEN_OFF
from fastroute.testing import Fault

Start = Callable[..., Loopback]
FORMATS = ["openai", "azure", "anthropic", "gemini"]
FILTERED = {"openai": "content_filter", "azure": "content_filter", "anthropic": "refusal", "gemini": "SAFETY"}
STOPPED = {"openai": "stop", "azure": "stop", "anthropic": "end_turn", "gemini": "STOP"}
LENGTH = {"openai": "length", "azure": "length", "anthropic": "max_tokens", "gemini": "MAX_TOKENS"}


def answer(format: str, stream: bool, finish: str, text: str = "", output: int = 0) -> Fault:
    """An answer with that text, and with nothing where it is empty, in the words of the format."""
    if format == "gemini":
        content = {"role": "model", "parts": [{"text": text}]} if text else {"role": "model"}
        body = {
            "candidates": [{"index": 0, "content": content, "finishReason": finish}],
            "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": output},
        }
        return Fault.events(sse(body)) if stream else Fault.status(200, body)
    if format == "anthropic":
        usage = {"input_tokens": 5, "output_tokens": output}
        blocks = [{"type": "text", "text": text}] if text else []
        message = {"type": "message", "id": "msg_1", "role": "assistant", "model": "m", "content": blocks}
        if not stream:
            return Fault.status(200, {**message, "stop_reason": finish, "usage": usage})
        events = [{"type": "message_start", "message": {**message, "content": [], "usage": usage}}]
        if text:
            delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
            block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
            events += [block, delta, {"type": "content_block_stop", "index": 0}]
        events += [{"type": "message_delta", "delta": {"stop_reason": finish}, "usage": usage}]
        return Fault.events(b"".join(sse(event) for event in [*events, {"type": "message_stop"}]))
    usage = {"prompt_tokens": 5, "completion_tokens": output, "total_tokens": 5 + output}
    shape = {"id": "x", "created": 1, "model": "m", "usage": usage}
    message = {"role": "assistant", "content": text}
    if not stream:
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return Fault.status(200, {**shape, "object": "chat.completion", "choices": [choice]})
    deltas = [(message, None), ({}, finish)]
    chunks = [
        {
            **shape,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
        for delta, reason in deltas
    ]
    return Fault.events(b"".join(map(sse, chunks)) + b"data: [DONE]\n\n")


def sse(event: Any) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def ask(loop: Loopback, stream: bool) -> str:
    if not stream:
        return loop.ask().text
    with loop.stream() as running:
        return "".join(chunk.choices[0].delta.content or "" for chunk in running if chunk.choices)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("format", FORMATS)
def test_an_answer_with_nothing_in_it_is_a_failed_attempt(start: Start, format: str, stream: bool) -> None:
    loop = start(2, format=format)
    loop.provider("a").script(answer(format, stream, STOPPED[format]))
    assert ask(loop, stream) == "Say hello"
    assert [(attempt.provider, attempt.error) for attempt in loop.attempts] == [
        ("a", "EmptyResponse"),
        ("b", None),
    ]
    figures = loop.endpoint("a")
    assert (figures["failed"], figures["state"]) == (0, "closed")
    assert figures["success_rate"] < 1
    assert figures["health"] == 85
    failed = loop.attempts[0]
    assert failed.prompt_tokens > 0  # the provider may charge for it


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_filter_that_leaves_nothing_leads_along_its_chain(start: Start, format: str, stream: bool) -> None:
    loop = start(
        2,
        format=format,
        models={MODEL: {"content_fallbacks": ["other-model"]}},
        more_endpoints=[{"provider": "b", "model": "other-model"}],
    )
    loop.provider("a").script(answer(format, stream, FILTERED[format]))
    assert ask(loop, stream) == "Say hello"
    assert [attempt.endpoint for attempt in loop.attempts] == [f"a/{MODEL}", "b/other-model"]
    assert loop.attempts[0].error == "ContentFilterError"
    assert loop.endpoint("a")["success_rate"] == 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_filter_that_leaves_some_text_leaves_an_answer(start: Start, format: str, stream: bool) -> None:
    loop = start(1, format=format)
    loop.provider().script(answer(format, stream, FILTERED[format], "Once upon", 3))
    assert ask(loop, stream) == "Once upon"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("format", FORMATS)
def test_an_output_limit_that_leaves_nothing_is_the_callers_own(
    start: Start, format: str, stream: bool
) -> None:
    loop = start(2, format=format)
    loop.provider("a").script(answer(format, stream, LENGTH[format], output=16))
    assert ask(loop, stream) == ""
    assert loop.provider("b").received == 0


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("reason", sorted(BROKEN_OFF))
def test_a_finish_reason_that_means_that_the_provider_failed(start: Start, reason: str, stream: bool) -> None:
    loop = start(2)
    loop.provider("a").script(answer("openai", stream, reason))
    assert ask(loop, stream) == "Say hello"
    assert [attempt.error for attempt in loop.attempts] == ["InternalServerError", None]
    assert loop.endpoint("a")["failed"] == 1


def test_a_stream_that_the_provider_broke_off_after_content_is_interrupted(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(answer("openai", True, "insufficient_system_resource", "half an ans"))
    with pytest.raises(fastroute.StreamInterrupted) as caught:
        ask(loop, True)
    assert caught.value.partial_text == "half an ans"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"id": "c", "type": "function", "index": 0, "function": {"name": "f"}}]},
        {"refusal": "I would rather not."},
        {"reasoning_content": "hmm"},
        {"reasoning": "hmm"},
        {"function_call": {"name": "f", "arguments": "{}"}},
        {"audio": {"id": "a", "data": "AAAA"}},
        {"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        {"thinking_blocks": [{"type": "redacted_thinking", "data": "AAAA"}]},
        {"something_new": {"text": "hello"}},
    ],
    ids=lambda message: next(iter(message)),
)
def test_what_is_no_text_is_an_answer_too(start: Start, message: dict[str, Any], stream: bool) -> None:
    loop = start(1)
    given = {"role": "assistant", "content": None, **message}
    if stream:
        chunks = [
            {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            for delta, reason in ((given, None), ({}, "stop"))
        ]
        loop.provider().script(Fault.events(b"".join(map(sse, chunks)) + b"data: [DONE]\n\n"))
    else:
        choice = {"index": 0, "message": given, "finish_reason": "stop"}
        loop.provider().script(Fault.status(200, {"object": "chat.completion", "choices": [choice]}))
    assert ask(loop, stream) == ""
    assert [attempt.error for attempt in loop.attempts] == [None]


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "text", "text": ""}]},
        {"content": "", "annotations": [], "tool_calls": [], "reasoning_content": None},
        {"content": None, "provider_specific_fields": {"refusal": None}},
    ],
    ids=["parts", "lists", "nested"],
)
def test_empty_parts_and_lists_are_nothing(start: Start, message: dict[str, Any]) -> None:
    loop = start(2)
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    loop.provider("a").script(Fault.status(200, {"object": "chat.completion", "choices": [choice]}))
    assert ask(loop, False) == "Say hello"
