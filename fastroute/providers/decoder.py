"""Decodes one streamed answer and keeps the sum of its chunks.

A format subclasses `StreamDecoder` and turns events into chunks in `feed`. Adding the chunks up (`deltas.py`)
and deciding whether the answer is complete are the same for all formats. Splitting bytes into events is in
`sse.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from fastroute import errors, types

from . import wordings
from .deltas import TYPED, ChoiceSoFar
from .sse import ServerSentEvent


def asks_for_usage(request: types.Request) -> bool:
    """Whether the caller asked for the usage in the stream itself (``stream_options``)."""
    options = request.params.get("stream_options")
    return isinstance(options, Mapping) and options.get("include_usage") is True


class StreamDecoder(ABC):
    """Turns the events of one streamed answer into chunks, and keeps what they add up to.

    Feed it every event; at the end of the input call `end`, which raises unless the answer is complete and
    returns the chunks that only the end brings. An error raised by `feed` ends the stream. Not thread-safe:
    use it for one stream, in one thread at a time.

    Attributes:
        done: whether the provider's end mark was seen; anything after it is ignored.
        usage: the last usable usage from the provider; None if there was none (then estimate it).
        output_chars: characters received in all choices (content, refusals, reasoning, tool arguments), from
            which the tokens of an answer that was cut off are estimated.
        values: JSON values of all events so far.
    """

    def __init__(self, model: str = "") -> None:
        self.done = False
        self.usage: types.Usage | None = None
        self.output_chars = 0
        self.values = 0
        self._choices: dict[int, ChoiceSoFar] = {}
        self._id = ""
        self._created = 0
        self._model = model
        self._latest: Mapping[str, Any] = {}  # the JSON of the last chunk with a choice

    # -- for formats

    @abstractmethod
    def feed(self, event: ServerSentEvent) -> Sequence[types.Chunk]:
        """The chunks of one event, usually one, sometimes none.

        Raises:
            APIStatusError: if the event is an error; the same class as for an answer with its status.
            UpstreamProtocolError: if the event is not of the format.
        """

    def _absorb(self, chunk: types.Chunk) -> None:
        """Adds a chunk to what has arrived; a subclass calls it once for each chunk it makes.

        Items of lists in a delta's JSON that lack an ``index`` get one here, so call it before the chunk is
        handed out.
        """
        self._id = self._id or chunk.id
        self._created = self._created or chunk.created
        self._model = chunk.model or self._model
        if chunk.choices:
            self._latest = chunk._raw
        for piece in chunk.choices:
            choice = self._choices.get(piece.index)
            if choice is None:
                choice = self._choices[piece.index] = ChoiceSoFar()
            delta = piece.delta
            raw = delta._raw
            content = delta.content
            if content:
                choice.content.append(content)
                self.output_chars += len(content)
            if not content or len(raw) != 1:  # nearly every chunk has content and nothing else
                if delta.role:
                    choice.role = delta.role
                if delta.refusal:
                    choice.refusal.append(delta.refusal)
                    self.output_chars += len(delta.refusal)
                if delta.tool_calls:
                    for fragment in delta.tool_calls:
                        self.output_chars += choice.add_call(fragment)
                for name in raw:
                    if name not in TYPED:
                        self.output_chars += choice.add_extra(raw, name)
            reason = piece.finish_reason
            if reason:
                choice.finish_reason = reason
                choice.ending = piece._raw
                if reason.lower() in wordings.BROKEN_OFF:
                    raise wordings.broken_off(reason)

    # -- for readers of the stream

    @property
    def finished(self) -> bool:
        """Whether at least one choice began, and each that began has a finish reason."""
        return bool(self._choices) and all(
            choice.finish_reason is not None for choice in self._choices.values()
        )

    @property
    def goes_on(self) -> bool:
        """Whether content came after a finish reason: then only the input's own end completes the answer."""
        return False

    def end(self) -> Sequence[types.Chunk]:
        """Checks, when the input has ended, that the answer is complete.

        The finish reasons decide, not the end mark: a proxy that loses its upstream may still write the
        mark, and a truncated answer must not count as complete.

        Returns:
            Chunks that only the end brings, mostly none; each is returned once.

        Raises:
            EmptyResponse: if the stream has its end mark but no choice began.
            UpstreamTruncated: if a choice has no finish reason.
        """
        if self.finished:
            return ()
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
        return (self._choices.get(index) or ChoiceSoFar()).message()

    def completion(self) -> types.Completion:
        """What has arrived, in the shape of an answer that was not streamed.

        Further fields of the answer are those of its last chunk, and those of a choice the ones that came
        with its finish reason. Log probabilities are left out.
        """
        choices = []
        for index, so_far in sorted(self._choices.items()):
            message = self.message(index)
            raw = {name: value for name, value in so_far.ending.items() if name not in _OF_A_CHUNK}
            raw.update(index=index, message=message._raw, finish_reason=so_far.finish_reason)
            choices.append(types.Choice(index, message, so_far.finish_reason, raw))
        body = {name: value for name, value in self._latest.items() if name not in _OF_A_CHUNK}
        body.update(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            choices=[choice._raw for choice in choices],
        )
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


_OF_A_CHUNK = frozenset({"choices", "delta", "logprobs", "obfuscation", "usage"})
