"""Streamed answers written by hand in each wire format, for tests that hold for all of them.

A test that is parametrised over `ALL` runs once a format. A further format is a class with these methods and
a place in `ALL`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

from fastroute.testing import Fault

Event = tuple[str, Any]
"""The name of an event, empty for none, and its data: text, or what becomes JSON."""


def framed(
    *events: Iterable[Event], end: str = "\n", ascii_only: bool = True, indent: int | None = None
) -> bytes:
    """The events as bytes of a stream."""
    made = ""
    for name, data in (event for group in events for event in group):
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=ascii_only, indent=indent)
        made += f"event: {name}{end}" if name else ""
        made += "".join(f"data: {line}{end}" for line in text.split("\n")) + end
    return made.encode()


def streamed(*pieces: Any) -> Fault:
    """Exactly these bytes as a stream that the close ends."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    return Fault.raw(head, *pieces)


class Spoken(Protocol):
    """One format. Each method gives the events of one part of an answer."""

    format: str

    def begin(self, prompt_tokens: int = 7) -> list[Event]: ...
    def text(self, text: str) -> list[Event]: ...
    def finish(self, prompt_tokens: int = 7, completion_tokens: int = 3) -> list[Event]: ...
    def end(self) -> list[Event]: ...
    def call(self, index: int, identity: str, name: str) -> list[Event]: ...
    def arguments(self, index: int, text: str) -> list[Event]: ...
    def finish_calls(self) -> list[Event]: ...


class OpenAI:
    format = "openai"

    @staticmethod
    def chunk(finish: str | None = None, **delta: Any) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        shape = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up"}
        return "", {**shape, "choices": [choice]}

    def begin(self, prompt_tokens: int = 7) -> list[Event]:
        return [self.chunk(role="assistant", content="")]

    def text(self, text: str) -> list[Event]:
        return [self.chunk(content=text)]

    def finish(self, prompt_tokens: int = 7, completion_tokens: int = 3) -> list[Event]:
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        usage = {**counts, "total_tokens": prompt_tokens + completion_tokens}
        return [self.chunk("stop"), ("", {"id": "chatcmpl-1", "choices": [], "usage": usage})]

    def end(self) -> list[Event]:
        return [("", "[DONE]")]

    def call(self, index: int, identity: str, name: str) -> list[Event]:
        function = {"name": name, "arguments": ""}
        return [
            self.chunk(
                tool_calls=[{"index": index, "id": identity, "type": "function", "function": function}]
            )
        ]

    def arguments(self, index: int, text: str) -> list[Event]:
        return [self.chunk(tool_calls=[{"index": index, "function": {"arguments": text}}])]

    def finish_calls(self) -> list[Event]:
        return [self.chunk("tool_calls")]


class Anthropic:
    """Block 0 is the text; a call's block follows it."""

    format = "anthropic"

    @staticmethod
    def event(kind: str, **fields: Any) -> Event:
        return kind, {"type": kind, **fields}

    def begin(self, prompt_tokens: int = 7) -> list[Event]:
        usage = {"input_tokens": prompt_tokens, "output_tokens": 1}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "up", "content": []}
        return [
            self.event("message_start", message={**message, "stop_reason": None, "usage": usage}),
            self.event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        ]

    def text(self, text: str) -> list[Event]:
        return [self.event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})]

    def finish(self, prompt_tokens: int = 7, completion_tokens: int = 3) -> list[Event]:
        return [
            self.event("content_block_stop", index=0),
            self.event(
                "message_delta",
                delta={"stop_reason": "end_turn", "stop_sequence": None},
                usage={"output_tokens": completion_tokens},
            ),
        ]

    def end(self) -> list[Event]:
        return [self.event("message_stop")]

    def call(self, index: int, identity: str, name: str) -> list[Event]:
        block = {"type": "tool_use", "id": identity, "name": name, "input": {}}
        return [self.event("content_block_start", index=index + 1, content_block=block)]

    def arguments(self, index: int, text: str) -> list[Event]:
        delta = {"type": "input_json_delta", "partial_json": text}
        return [self.event("content_block_delta", index=index + 1, delta=delta)]

    def finish_calls(self) -> list[Event]:
        delta = {"stop_reason": "tool_use", "stop_sequence": None}
        return [self.event("message_delta", delta=delta, usage={"output_tokens": 9})]


class Gemini:
    """Calls come whole: they are held back until all their arguments are there."""

    format = "gemini"

    def __init__(self) -> None:
        self.calls: dict[int, dict[str, Any]] = {}
        self.written: dict[int, str] = {}

    @staticmethod
    def event(*parts: dict[str, Any], **fields: Any) -> Event:
        candidate = {"index": 0, "content": {"role": "model", "parts": list(parts)}}
        finish = {"finishReason": fields.pop("finish")} if "finish" in fields else {}
        return "", {
            "candidates": [{**candidate, **finish}],
            "modelVersion": "up",
            "responseId": "r",
            **fields,
        }

    def begin(self, prompt_tokens: int = 7) -> list[Event]:
        return [self.event({"text": ""})]

    def text(self, text: str) -> list[Event]:
        return [self.event({"text": text})]

    def finish(self, prompt_tokens: int = 7, completion_tokens: int = 3) -> list[Event]:
        counts = {"promptTokenCount": prompt_tokens, "candidatesTokenCount": completion_tokens}
        usage = {**counts, "totalTokenCount": prompt_tokens + completion_tokens}
        return [self.event(finish="STOP", usageMetadata=usage)]

    def end(self) -> list[Event]:
        return []

    def call(self, index: int, identity: str, name: str) -> list[Event]:
        self.calls[index] = {"id": identity, "name": name}
        self.written[index] = ""
        return []

    def arguments(self, index: int, text: str) -> list[Event]:
        self.written[index] += text
        return []

    def finish_calls(self) -> list[Event]:
        made = [
            self.event({"functionCall": {**call, "args": json.loads(self.written[index])}})
            for index, call in self.calls.items()
        ]
        self.calls, self.written = {}, {}
        return [*made, self.event(finish="STOP")]


ALL: tuple[Spoken, ...] = (OpenAI(), Anthropic(), Gemini())
BY_FORMAT = {spoken.format: spoken for spoken in ALL}
