"""Decodes one streamed answer and keeps the sum of its chunks.

A format subclasses `StreamDecoder` and turns events into chunks in `feed`. Adding the chunks up (text, tool
calls by index, finish reasons, usage) and deciding whether the answer is complete are the same for all
formats and are done here. Splitting bytes into events is in `sse.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from fastroute import errors, types

from . import wordings
from .sse import ServerSentEvent


def asks_for_usage(request: types.Request) -> bool:
    """Whether the caller asked for the usage in the stream itself (``stream_options``)."""
    options = request.params.get("stream_options")
    return isinstance(options, Mapping) and options.get("include_usage") is True


class _CallSoFar:
    """A tool call whose arguments are still arriving."""

    __slots__ = ("arguments", "id", "name", "type")

    def __init__(self) -> None:
        self.id: str | None = None
        self.type: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []

    def whole(self) -> types.ToolCall:
        return types.ToolCall(
            self.id, self.type or "function", types.FunctionCall(self.name, "".join(self.arguments))
        )


class _ChoiceSoFar:
    """What has arrived of one choice."""

    __slots__ = ("calls", "content", "extra", "finish_reason", "last_call", "refusal", "role")

    def __init__(self) -> None:
        self.role: str | None = None
        self.content: list[str] = []
        self.refusal: list[str] = []
        # Text of fields that OpenAI does not have, such as the reasoning of some models, by field name.
        self.extra: dict[str, list[str]] = {}
        self.calls: dict[int, _CallSoFar] = {}
        self.last_call = 0
        self.finish_reason: str | None = None


_REASONING = ("reasoning_content", "reasoning")


class StreamDecoder(ABC):
    """Turns the events of one streamed answer into chunks, and keeps what they add up to.

    Feed it every event; at the end of the input call `end`, which raises unless the answer is complete. An
    error raised by `feed` ends the stream. Not thread-safe: use it for one stream, in one thread at a time.

    Attributes:
        done: whether the provider's end mark was seen; anything after it is ignored.
        usage: the last usable usage from the provider; None if there was none (then estimate it).
        output_chars: characters received in all choices (content, refusals, reasoning, tool arguments), from
            which the tokens of an answer that was cut off are estimated.
    """

    def __init__(self, model: str = "") -> None:
        self.done = False
        self.usage: types.Usage | None = None
        self.output_chars = 0
        self._choices: dict[int, _ChoiceSoFar] = {}
        self._id = ""
        self._created = 0
        self._model = model

    # -- for formats

    @abstractmethod
    def feed(self, event: ServerSentEvent) -> Sequence[types.Chunk]:
        """The chunks of one event, usually one, sometimes none.

        Raises:
            APIStatusError: if the event is an error; the same class as for an answer with its status.
            UpstreamProtocolError: if the event is not of the format.
        """

    def _absorb(self, chunk: types.Chunk) -> None:
        """Adds a chunk to what has arrived; a subclass calls it once for each chunk it makes."""
        self._id = self._id or chunk.id
        self._created = self._created or chunk.created
        self._model = chunk.model or self._model
        for piece in chunk.choices:
            choice = self._choices.get(piece.index)
            if choice is None:
                choice = self._choices[piece.index] = _ChoiceSoFar()
            delta = piece.delta
            if delta.content:
                choice.content.append(delta.content)
                self.output_chars += len(delta.content)
            if delta.role:
                choice.role = delta.role
            if delta.refusal:
                choice.refusal.append(delta.refusal)
                self.output_chars += len(delta.refusal)
            if delta.tool_calls:
                for fragment in delta.tool_calls:
                    self._absorb_call(choice, fragment)
            raw = delta._raw
            for name in _REASONING:
                text = raw.get(name)
                if text and isinstance(text, str):
                    choice.extra.setdefault(name, []).append(text)
                    self.output_chars += len(text)
            if piece.finish_reason:
                choice.finish_reason = piece.finish_reason
                if piece.finish_reason.lower() in wordings.BROKEN_OFF:
                    raise wordings.broken_off(piece.finish_reason)

    def _absorb_call(self, choice: _ChoiceSoFar, fragment: types.ToolCall) -> None:
        index = fragment.index
        if index is None:
            # Some providers omit the index and send each call complete: a new id is a new call.
            known = choice.calls.get(choice.last_call)
            new = known is not None and fragment.id and fragment.id != known.id
            index = len(choice.calls) if new else choice.last_call
        call = choice.calls.get(index)
        if call is None:
            call = choice.calls[index] = _CallSoFar()
        choice.last_call = index
        if fragment.id:
            if call.id is not None and call.id != fragment.id:
                raise errors.UpstreamProtocolError(
                    f"two different tool calls share the index {index} of one choice", maybe_billed=True
                )
            call.id = fragment.id
        call.type = call.type or fragment.type
        call.name = call.name or fragment.function.name
        if fragment.function.arguments:
            call.arguments.append(fragment.function.arguments)
            self.output_chars += len(fragment.function.arguments)

    # -- for readers of the stream

    @property
    def finished(self) -> bool:
        """Whether at least one choice began, and each that began has a finish reason."""
        return bool(self._choices) and all(
            choice.finish_reason is not None for choice in self._choices.values()
        )

    def end(self) -> None:
        """Checks, when the input has ended, that the answer is complete.

        The finish reasons decide, not the end mark: a proxy that loses its upstream may still write the
        mark, and a truncated answer must not count as complete.

        Raises:
            EmptyResponse: if the stream has its end mark but no choice began.
            UpstreamTruncated: if a choice has no finish reason.
        """
        if self.finished:
            return
        if self.done and not self._choices:
            raise errors.EmptyResponse("the stream ended without any choice", maybe_billed=True)
        raise errors.UpstreamTruncated("the stream ended without a finish reason", maybe_billed=True)

    @property
    def text(self) -> str:
        """The content of the first choice so far."""
        choice = self._choices.get(0)
        return "".join(choice.content) if choice else ""

    @property
    def finish_reason(self) -> str | None:
        """The finish reason of the first choice; None until it has arrived."""
        choice = self._choices.get(0)
        return choice.finish_reason if choice else None

    def message(self, index: int = 0) -> types.Message:
        """One choice's message so far, with its tool calls joined."""
        choice = self._choices.get(index) or _ChoiceSoFar()
        calls = tuple(call.whole() for _, call in sorted(choice.calls.items()))
        # Without any content, it is null beside tool calls or a refusal, and empty text otherwise.
        content = "".join(choice.content) if choice.content or not (calls or choice.refusal) else None
        refusal = "".join(choice.refusal) or None
        raw: dict[str, Any] = {"role": choice.role or "assistant", "content": content}
        if refusal is not None:
            raw["refusal"] = refusal
        if calls:
            raw["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
                for call in calls
            ]
        for name, texts in choice.extra.items():
            raw[name] = "".join(texts)
        return types.Message(raw["role"], content, calls or None, refusal, raw)

    def completion(self) -> types.Completion:
        """What has arrived, in the shape of an answer that was not streamed.

        Fields that only chunks have (log probabilities, fingerprints) are left out.
        """
        choices = []
        for index, so_far in sorted(self._choices.items()):
            message = self.message(index)
            raw = {"index": index, "message": message._raw, "finish_reason": so_far.finish_reason}
            choices.append(types.Choice(index, message, so_far.finish_reason, raw))
        body: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice._raw for choice in choices],
        }
        if self.usage is not None:
            body["usage"] = self.usage.to_dict()
        return types.Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=tuple(choices),
            usage=self.usage,
            raw=body,
        )
