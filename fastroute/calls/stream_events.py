"""The events of `chat.completions.stream`, as the OpenAI SDK has them.

`CompletionStream` turns the chunks of a stream into events: what a chunk adds, and what is complete. The
chunks are those of `stream.py`; reading JSON as a model is in `parsing.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

from attrs import define, field, frozen

from fastroute import errors
from fastroute.types import Chunk, ChunkChoice, Completion, FunctionCall, ToolCall

from .parsing import ParsedCompletion, arguments_of, check_ended, parsed, read_as, tool_named
from .stream import Stream

T = TypeVar("T")

# ------------------------------------------------------------------------------------------------- events


@frozen
class ChunkEvent:
    """A chunk has arrived; it comes before the events of what is in the chunk."""

    chunk: Chunk
    _snapshot: Callable[[], Completion] = field(repr=False, eq=False)
    type: Literal["chunk"] = "chunk"

    @property
    def snapshot(self) -> Completion:
        """The answer so far, made when it is asked for."""
        return self._snapshot()


@frozen
class ContentDeltaEvent:
    """Content was added; ``parsed`` is the JSON so far, if the answer is read as a model."""

    delta: str
    snapshot: str
    parsed: Any = None
    type: Literal["content.delta"] = "content.delta"


@frozen
class ContentDoneEvent(Generic[T]):
    """The content is complete; ``parsed`` is the instance of the model."""

    content: str
    parsed: T | None = None
    type: Literal["content.done"] = "content.done"


@frozen
class RefusalDeltaEvent:
    delta: str
    snapshot: str
    type: Literal["refusal.delta"] = "refusal.delta"


@frozen
class RefusalDoneEvent:
    refusal: str
    type: Literal["refusal.done"] = "refusal.done"


@frozen(kw_only=True)
class ArgumentsDeltaEvent:
    """Arguments of a tool call were added."""

    name: str
    index: int
    arguments: str
    parsed_arguments: Any
    arguments_delta: str
    type: Literal["tool_calls.function.arguments.delta"] = "tool_calls.function.arguments.delta"


@frozen(kw_only=True)
class ArgumentsDoneEvent:
    """The arguments of a tool call are complete."""

    name: str
    index: int
    arguments: str
    parsed_arguments: Any
    type: Literal["tool_calls.function.arguments.done"] = "tool_calls.function.arguments.done"


StreamEvent = (
    ChunkEvent
    | ContentDeltaEvent
    | ContentDoneEvent[Any]
    | RefusalDeltaEvent
    | RefusalDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
)


# ------------------------------------------------------------------------------------------------- streams


@define
class _ArgumentsSoFar:
    """A tool call of which a part has arrived."""

    name: str = ""
    arguments: str = ""
    is_function: bool = True


class _ChoiceEvents:
    """Makes the events of one choice."""

    def __init__(self, model: Any, tools: Sequence[Any]) -> None:
        self._model = model
        self._tools = tools
        self._content: str | None = None
        self._refusal: str | None = None
        self._calls: dict[int, _ArgumentsSoFar] = {}
        self._current: int | None = None  # the tool call whose arguments are arriving
        self._said = False  # content and refusal are complete

    def of(self, choice: ChunkChoice, snapshot: Callable[[], Completion]) -> Iterator[StreamEvent]:
        delta = choice.delta
        if delta.content is not None:
            self._content = (self._content or "") + delta.content
            yield ContentDeltaEvent(delta.content, self._content, self._partial_content())
        if delta.refusal is not None:
            self._refusal = (self._refusal or "") + delta.refusal
            yield RefusalDeltaEvent(delta.refusal, self._refusal)
        numbered = [
            (place if call.index is None else call.index, call)
            for place, call in enumerate(delta.tool_calls or ())
        ]
        for index, call in numbered:
            yield from self._added(index, call)
        for index, _ in numbered:
            # What came before the first part of a call is complete.
            if index != self._current:
                yield from self._done(snapshot)
                self._current = index
        if choice.finish_reason is not None:
            if self._model is not None or self._tools:
                check_ended(choice.finish_reason, snapshot())
            yield from self._done(snapshot)

    def _added(self, index: int, call: ToolCall) -> Iterator[StreamEvent]:
        so_far = self._calls.setdefault(index, _ArgumentsSoFar())
        if call.custom is not None or call.type == "custom":
            so_far.is_function = False
        so_far.name = so_far.name or call.function.name or ""
        so_far.arguments += call.function.arguments
        if so_far.is_function:
            tool = tool_named(self._tools, so_far.name)
            strict = tool is not None and tool.get("strict")
            yield ArgumentsDeltaEvent(
                name=so_far.name,
                index=index,
                arguments=so_far.arguments,
                parsed_arguments=_partial(so_far.arguments) if strict else None,
                arguments_delta=call.function.arguments,
            )

    def _done(self, snapshot: Callable[[], Completion]) -> Iterator[StreamEvent]:
        """Events for what is complete now, each once."""
        if not self._said and (self._content or self._refusal is not None):
            self._said = True
            if self._content:
                content = None
                if self._model is not None and not self._refusal:
                    content = read_as(self._model, self._content, snapshot(), "response_format")
                yield ContentDoneEvent(self._content, content)
            if self._refusal is not None:
                yield RefusalDoneEvent(self._refusal)
        current, self._current = self._current, None
        call = None if current is None else self._calls[current]
        if current is not None and call is not None and call.is_function:
            function = FunctionCall(call.name, call.arguments)
            yield ArgumentsDoneEvent(
                name=call.name,
                index=current,
                arguments=call.arguments,
                parsed_arguments=arguments_of(function, self._tools, snapshot()) if self._tools else None,
            )

    def _partial_content(self) -> Any:
        wanted = self._model is not None and not self._refusal
        return _partial(self._content or "") if wanted else None


def _partial(text: str) -> Any:
    """The JSON in the start of a document, or None if it has none yet."""
    if not text.strip():
        return None
    try:
        return importlib.import_module("pydantic_core").from_json(text, allow_partial=True)
    except (ModuleNotFoundError, ValueError):
        return None


class CompletionStream(Generic[T]):
    """A streamed answer as events; a context manager, and the call begins when it is entered.

    Raises while iterating, beside what `Stream` raises:
        errors.ValidationError: the complete content does not fit its model, or the answer was cut.
        errors.ContentFilterError: the content filter ended the answer.

    Thread safety: as `Stream`.
    """

    def __init__(self, begin: Callable[[], Stream], model: type[T] | None, tools: Sequence[Any]) -> None:
        self._begin = begin
        self._model = model
        self._tools = tools
        self._stream: Stream | None = None
        self._events: Iterator[StreamEvent] = iter(())

    def __enter__(self) -> CompletionStream[T]:
        self._stream = self._begin()
        self._events = self._read(self._stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        self._begun()
        return next(self._events)

    @property
    def stream(self) -> Stream:
        """The stream of chunks, with its ``usage`` and ``route``."""
        return self._begun()

    @property
    def current_completion_snapshot(self) -> Completion:
        """The answer so far."""
        return self._begun().snapshot

    def get_final_completion(self) -> ParsedCompletion[T]:
        """Reads to the end; returns the answer, parsed as by `parse`."""
        self.until_done()
        return parsed(self._begun().completion(), self._model, self._tools)

    def until_done(self) -> CompletionStream[T]:
        """Reads to the end."""
        for _ in self:
            pass
        return self

    def close(self) -> None:
        """Ends the stream early."""
        if self._stream is not None:
            self._stream.close()

    def _begun(self) -> Stream:
        if self._stream is None:
            raise errors.Error("the stream has not begun; write `with ….stream(...) as stream:`")
        return self._stream

    def _read(self, stream: Stream) -> Iterator[StreamEvent]:
        choices: dict[int, _ChoiceEvents] = {}

        def snapshot() -> Completion:
            return stream.snapshot

        for chunk in stream:
            yield ChunkEvent(chunk, snapshot)
            for choice in chunk.choices:
                if choice.index not in choices:
                    choices[choice.index] = _ChoiceEvents(self._model, self._tools)
                yield from choices[choice.index].of(choice, snapshot)
