"""Anthropic's Messages API, as used by Anthropic and by servers that copy it.

Turns answers and stream events into OpenAI's shape; the request is built in `anthropic_request.py`. What
OpenAI's shape has no place for is kept as extra fields: ``stop_reason`` (the provider's own word) on the
choice; ``thinking_blocks`` with their signatures on the message, which may be sent back as part of it; and
``content_blocks``, all blocks as received, if there are others than text, tool calls and thinking, or
citations, or another order. A stream has them in its last chunk with a choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve

from fastroute import errors, types

from . import error_reader, jsontext
from .anthropic_request import JSON_TOOL, answers_by_tool, body_of
from .base import Target
from .charges import billing_of
from .decoder import StreamDecoder, asks_for_usage
from .headers import joined_url, usual_headers, with_configured
from .reading import count, document, event_json, malformed, not_an_object, string, this_second
from .sse import ServerSentEvent

_API_VERSION = "2023-06-01"
_VERSIONED = re.compile(r"/v1/?$")

# A turn that the provider paused is incomplete: "length" tells the caller and keeps it out of caches.
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class Anthropic:
    """The format ``anthropic``."""

    name = "anthropic"

    def url(self, target: Target, stream: bool) -> str:
        """``base_url`` + ``/v1/messages``, whether or not the base URL ends in ``/v1`` already."""
        versioned = _VERSIONED.search(target.base_url.partition("?")[0])
        return joined_url(target.base_url, "/messages" if versioned else "/v1/messages")

    def headers(self, target: Target, stream: bool) -> dict[str, str]:
        own = {**usual_headers(stream), "anthropic-version": _API_VERSION}
        if target.key is not None:
            own["x-api-key"] = target.key.reveal()
        return with_configured(own, target)

    def encode(self, request: types.Request, target: Target) -> bytes:
        return jsontext.dumps(body_of(request, target))

    def decode(self, body: bytes, request: types.Request, target: Target) -> types.Completion:
        value = document(body, target)
        found = error_reader.error_object(value)
        if found is not None:
            raise error_reader.from_error(found, None, target)
        if not isinstance(value, dict):
            raise malformed("the answer is not a JSON object")
        blocks = value.get("content")
        if blocks is None:
            raise errors.EmptyResponse("the answer has no content", maybe_billed=True)
        if not isinstance(blocks, list):
            raise malformed("content is not a list")
        message = _message(blocks, _refusal(value.get("stop_details")), answers_by_tool(request))
        reason = _finish_reason(value.get("stop_reason"), bool(message.tool_calls))
        if reason is None:
            raise malformed("the answer has no stop_reason")
        choice: dict[str, Any] = {"index": 0, "message": message._raw, "finish_reason": reason}
        choice.update(_own_reason(value))
        usage = usage_from(value.get("usage"))
        shown: dict[str, Any] = {
            **_further(value),
            "id": string(value.get("id")),
            "object": "chat.completion",
            "created": this_second(),
            "model": string(value.get("model")) or target.upstream,
            "choices": [choice],
        }
        if usage is not None:
            shown["usage"] = usage.to_dict()
        return types.Completion(
            id=shown["id"],
            created=shown["created"],
            model=shown["model"],
            choices=(types.Choice(0, message, reason, choice),),
            usage=usage,
            raw=shown,
        )

    def decode_error(
        self, status: int, headers: Mapping[str, str], body: bytes, target: Target | None = None
    ) -> errors.APIError:
        return error_reader.from_response(status, headers, body, target)

    def stream(self, request: types.Request, target: Target) -> StreamDecoder:
        return _AnthropicStream(request, target)


FORMAT = Anthropic()


# -------------------------------------------------------------------------------------------------- answers


def _message(blocks: list[Any], refusal: str | None, by_tool: bool) -> types.Message:
    texts: list[str] = []
    thoughts: list[str] = []
    thinking: list[dict[str, Any]] = []
    calls: list[types.ToolCall] = []
    for block in blocks:
        if not isinstance(block, dict):
            raise malformed("a content block is not an object")
        kind = block.get("type")
        if kind == "text":
            texts.append(_str(block, "text"))
        elif kind == "tool_use":
            call = _call(block)
            if by_tool and call.function.name == JSON_TOOL:
                texts.append(call.function.arguments)
            else:
                calls.append(call)
        elif kind == "thinking":
            thoughts.append(_str(block, "thinking"))
            thinking.append(block)
        elif kind == "redacted_thinking":
            thinking.append(block)
    content = "".join(texts) if texts or not (calls or refusal) else None
    raw: dict[str, Any] = {"role": "assistant", "content": content}
    if refusal is not None:
        raw["refusal"] = refusal
    if any(thoughts):
        raw["reasoning_content"] = "".join(thoughts)
    if thinking:
        raw["thinking_blocks"] = thinking
    if calls:
        raw["tool_calls"] = [call._raw for call in calls]
    if _is_foreign(blocks):
        raw["content_blocks"] = blocks
    return types.Message("assistant", content, tuple(calls) or None, refusal, raw)


_ORDER = {"thinking": 0, "redacted_thinking": 0, "text": 1, "tool_use": 2}


def _is_foreign(blocks: Iterable[Mapping[str, Any]]) -> bool:
    """Whether OpenAI's message, which keeps each kind in a field of its own, loses some of the blocks."""
    last = 0
    for block in blocks:
        kind = block.get("type")
        rank = _ORDER.get(kind, -1) if isinstance(kind, str) else -1
        if rank < last or block.get("citations"):
            return True
        last = rank
    return False


# Fields of a message that have a place in OpenAI's shape, or tell nothing; `_own_reason` names the others.
_PLACED = frozenset(
    {"content", "id", "model", "role", "stop_details", "stop_reason", "stop_sequence", "type", "usage"}
)


def _further(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message's further fields, such as the container in which code has run."""
    return {name: value for name, value in message.items() if name not in _PLACED and value is not None}


def _str(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise malformed(f"{name} is not a string")
    return found


def _call(block: Mapping[str, Any]) -> types.ToolCall:
    given = block.get("input")
    if not isinstance(given, dict):
        raise malformed("the input of a tool call is not an object")
    name, identity, arguments = _str(block, "name"), _str(block, "id"), jsontext.dumps(given).decode()
    return types.ToolCall(
        id=identity,
        function=types.FunctionCall(name, arguments),
        raw={"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}},
    )


def _finish_reason(reason: Any, calls: bool) -> str | None:
    """OpenAI's finish reason for a stop reason; an unknown one is kept."""
    if not isinstance(reason, str) or not reason:
        return None
    if reason == "tool_use" and not calls:
        return "stop"  # the only call was `JSON_TOOL`, or one that the provider runs itself
    return _FINISH_REASONS.get(reason, reason)


def _refusal(details: Any) -> str | None:
    return string(details.get("explanation")) or None if isinstance(details, dict) else None


def _own_reason(value: Mapping[str, Any]) -> dict[str, Any]:
    """The provider's own fields about how an answer ended, kept beside OpenAI's finish reason."""
    named = ("stop_reason", "stop_sequence", "stop_details")
    return {name: value[name] for name in named if value.get(name) is not None}


def usage_from(value: Any) -> types.Usage | None:
    """The usage, or None if it is unusable and must be estimated.

    Anthropic counts input read from or written to a cache beside the other input, and thinking inside the
    output.
    """
    if not isinstance(value, dict):
        return None
    fresh, output = count(value.get("input_tokens")), count(value.get("output_tokens"))
    written, read = (
        count(value.get(name) or 0) for name in ("cache_creation_input_tokens", "cache_read_input_tokens")
    )
    if fresh is None or output is None or written is None or read is None:
        return None
    prompt = fresh + written + read
    if prompt + output == 0:
        return None
    details = value.get("output_tokens_details")
    thought = (count(details.get("thinking_tokens")) or 0) if isinstance(details, dict) else 0
    # Tokens written to the cache for an hour; the others are kept for the usual five minutes.
    kept = value.get("cache_creation")
    hour = (count(kept.get("ephemeral_1h_input_tokens")) or 0) if isinstance(kept, dict) else 0
    return types.Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        cached_tokens=read,
        reasoning_tokens=min(thought, output),
        cache_write_tokens=written,
        cache_write_1h_tokens=min(hour, written),
        billing=billing_of(value),
    )


# -------------------------------------------------------------------------------------------------- streams


class _Block:
    """A content block whose parts are still arriving."""

    __slots__ = ("citations", "index", "input", "kind", "open", "start", "texts")

    def __init__(self, kind: str, start: dict[str, Any], index: int) -> None:
        self.kind = kind
        self.start = start
        self.index = index  # of a tool call, among the calls
        self.open = True
        self.texts: list[str] = []  # of text or a thought
        self.input: list[str] = []  # JSON, if any has come in fragments
        self.citations: list[Any] = []

    def whole(self) -> dict[str, Any]:
        """The block as a plain answer has it."""
        made = dict(self.start)
        if self.texts or self.kind in ("text", "thinking"):
            made[self.kind] = "".join(self.texts)
        if self.citations:
            known = made.get("citations")
            made["citations"] = [*(known if isinstance(known, list) else ()), *self.citations]
        if self.input:
            try:
                made["input"] = jsontext.loads("".join(self.input))
            except ValueError:
                made["input"] = {}  # cut off by the output limit; what has come is in the call's arguments
        return made


class _AnthropicStream(StreamDecoder):
    """Turns Anthropic's events into OpenAI's chunks.

    Events of unknown kinds are ignored, since Anthropic announces that it will add some. Known events must
    come in order: a delta without its block, or a missing block, would leave a gap in the answer.
    """

    def __init__(self, request: types.Request, target: Target) -> None:
        super().__init__(target.upstream)
        self._created = this_second()
        self._target = target
        self._shows_usage = asks_for_usage(request)
        self._by_tool = answers_by_tool(request)
        self._begun = False
        self._blocks: list[_Block] = []
        self._calls = 0
        self._counts: dict[str, Any] = {}
        self._blocks_shown = False
        self._more: dict[str, Any] = {}  # the message's further fields
        self._input: types.Usage | None = None  # from message_start, until message_delta has the final usage

    def feed(self, event: ServerSentEvent) -> Sequence[types.Chunk]:
        data = event.data
        if self.done or not data or data.isspace():
            return ()
        value = event_json(event, self._target, self)
        if not isinstance(value, dict):
            raise not_an_object(value, self._target)
        kind = value.get("type")
        if kind == "error" or event.event == "error" or (kind is None and value.get("error")):
            raise error_reader.from_error(value.get("error") or value, None, self._target)
        read = _EVENTS.get(kind) if isinstance(kind, str) else None
        if read is None:
            return ()
        if not self._begun and kind != "message_start":
            raise malformed(f"the stream starts with {kind}; expected message_start")
        chunk = read(self, value)
        return () if chunk is None else (chunk,)

    def end(self) -> Sequence[types.Chunk]:
        """As in the base class; the end mark is required too, since Anthropic always sends it."""
        last = super().end()
        if not self.done:
            raise errors.UpstreamTruncated("the stream ended without message_stop", maybe_billed=True)
        return last

    # -- one method for each kind of event

    def _start(self, value: Mapping[str, Any]) -> types.Chunk | None:
        message = value.get("message")
        if not isinstance(message, dict):
            raise malformed("message_start has no message")
        if self._begun:
            if string(message.get("id")) != self._id:
                raise malformed("the stream has two message_start events with different ids")
            return None  # relays repeat it
        self._begun = True
        self._id = string(message.get("id"))
        self._more = _further(message)
        self._model = string(message.get("model")) or self._model
        self._count(message.get("usage"))
        self._input = usage_from({**self._counts, "output_tokens": 0})
        return self._delta({"role": "assistant", "content": ""})

    def _block_start(self, value: Mapping[str, Any]) -> types.Chunk | None:
        given = value.get("content_block")
        if not isinstance(given, dict):
            raise malformed("content_block_start has no content_block")
        if value.get("index") != len(self._blocks):
            raise malformed("a content block's index does not follow the one before it")
        block = _Block(string(given.get("type")), given, self._calls)
        self._blocks.append(block)
        if block.kind == "text":
            return self._text(block, string(given.get("text")))
        if block.kind == "thinking":
            return self._thought(block, string(given.get("thinking")))
        if block.kind != "tool_use" or self._is_answer(block):
            return None
        self._calls += 1
        call = {"name": _str(given, "name"), "arguments": ""}
        return self._fragment(block, {"id": _str(given, "id"), "type": "function"}, call)

    def _block_delta(self, value: Mapping[str, Any]) -> types.Chunk | None:
        delta = value.get("delta")
        if not isinstance(delta, dict):
            raise malformed("content_block_delta has no delta")
        block = self._block(value)
        kind = delta.get("type")
        if kind == "text_delta":
            return self._text(block, _str(delta, "text"))
        if kind == "input_json_delta":
            return self._arguments(block, _str(delta, "partial_json"))
        if kind == "thinking_delta":
            return self._thought(block, _str(delta, "thinking"))
        if kind == "signature_delta":
            block.start = {**block.start, "signature": _str(delta, "signature")}
        elif kind == "citations_delta":
            block.citations.append(delta.get("citation"))
            return self._delta({"citations": [delta.get("citation")]})
        return None

    def _block_stop(self, value: Mapping[str, Any]) -> types.Chunk | None:
        index = value.get("index")
        if type(index) is int and 0 <= index < len(self._blocks) and not self._blocks[index].open:
            return None  # relays repeat it
        block = self._block(value)
        block.open = False
        if block.kind in _THINKING:
            return self._delta({"thinking_blocks": [block.whole()]})
        if block.kind == "tool_use" and not block.input:
            # The input came complete with the start, usually because it is empty.
            given = block.start.get("input")
            whole = given if isinstance(given, dict) else {}
            return self._arguments(block, jsontext.dumps(whole).decode())
        return None

    def _message_delta(self, value: Mapping[str, Any]) -> types.Chunk | None:
        usage = value.get("usage")
        self._count(usage)
        if isinstance(usage, dict) and usage.get("output_tokens") is not None:
            counted = usage_from(self._counts)
            if counted is not None:
                self.usage, self._input = counted, None
        delta = value.get("delta")
        if not isinstance(delta, dict):
            raise malformed("message_delta has no delta")
        reason = _finish_reason(delta.get("stop_reason"), self._calls > 0)
        if reason is None:
            return None
        refusal = _refusal(delta.get("stop_details"))
        raw: dict[str, Any] = {} if refusal is None else {"refusal": refusal}
        self._more.update(_further(delta))
        blocks, self._blocks_shown = [] if self._blocks_shown else self._blocks, True
        whole = [block.whole() for block in blocks]
        if _is_foreign(whole):
            raw["content_blocks"] = whole
        return self._delta(raw, None, reason, _own_reason(delta))

    def _stop(self, value: Mapping[str, Any]) -> types.Chunk | None:
        self.done = True
        if not self._shows_usage or self.usage is None or self.usage.source != "provider":
            return None
        raw = {**self._shape(), "choices": [], "usage": self.usage.to_dict()}
        return types.Chunk(
            id=self._id, created=self._created, model=self._model, choices=(), usage=self.usage, raw=raw
        )

    # -- parts of events

    def _block(self, value: Mapping[str, Any]) -> _Block:
        index = value.get("index")
        if type(index) is not int or not 0 <= index < len(self._blocks) or not self._blocks[index].open:
            raise malformed("an event names a content block that is not open")
        return self._blocks[index]

    def _is_answer(self, block: _Block) -> bool:
        return self._by_tool and block.start.get("name") == JSON_TOOL

    def _text(self, block: _Block, text: str) -> types.Chunk | None:
        if not text:
            return None
        block.texts.append(text)
        return self._delta({"content": text})

    def _thought(self, block: _Block, text: str) -> types.Chunk | None:
        block.texts.append(text)
        if not text:
            return None
        return self._delta({"reasoning_content": text})

    def _arguments(self, block: _Block, text: str) -> types.Chunk | None:
        if text:
            block.input.append(text)
        if block.kind != "tool_use" or not text:
            return None  # the input of a tool that the provider runs itself
        if self._is_answer(block):
            return self._delta({"content": text})
        return self._fragment(block, {}, {"arguments": text})

    def _fragment(self, block: _Block, named: dict[str, str], function: dict[str, str]) -> types.Chunk:
        written = {"index": block.index, **named, "function": function}
        call = types.ToolCall(
            id=named.get("id"),
            type=named.get("type"),
            function=types.FunctionCall(function.get("name"), function["arguments"]),
            index=block.index,
            raw=written,
        )
        return self._delta({"tool_calls": [written]}, (call,))

    def _count(self, usage: Any) -> None:
        """Updates the counts, which are running totals; a missing one keeps its earlier value."""
        if isinstance(usage, dict):
            self._counts.update({name: value for name, value in usage.items() if value is not None})

    def _shape(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }

    def _delta(
        self,
        raw: dict[str, Any],
        calls: tuple[types.ToolCall, ...] | None = None,
        reason: str | None = None,
        own_reason: Mapping[str, Any] | None = None,
    ) -> types.Chunk:
        """The chunk whose only delta is ``raw``, in OpenAI's shape; ``calls`` are its calls as values."""
        delta = types.Delta(raw.get("role"), raw.get("content"), calls, raw.get("refusal"), raw)
        choice: dict[str, Any] = {"index": 0, "delta": raw, "finish_reason": reason, **(own_reason or {})}
        chunk = types.Chunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=(types.ChunkChoice(0, delta, reason, choice),),
            raw={**(self._more if reason else {}), **self._shape(), "choices": [choice]},
        )
        self._absorb(chunk)
        begun = self._input
        if begun is not None:
            # The usage if the stream is cut off here: the input is known, the output is estimated by length.
            written = (self.output_chars + 2) // 3
            self.usage = evolve(begun, completion_tokens=written, source="estimated")
        return chunk


_THINKING = ("thinking", "redacted_thinking")
_EVENTS = {
    "message_start": _AnthropicStream._start,
    "content_block_start": _AnthropicStream._block_start,
    "content_block_delta": _AnthropicStream._block_delta,
    "content_block_stop": _AnthropicStream._block_stop,
    "message_delta": _AnthropicStream._message_delta,
    "message_stop": _AnthropicStream._stop,
}
