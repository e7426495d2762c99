"""OpenAI's chat completions, as used by OpenAI, DeepSeek, OpenRouter, vLLM, Ollama and most relays.

The types already have OpenAI's shape, so little is translated: parameters are sent as given, and unknown
fields of an answer are kept as received. Errors are read in `error_reader.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from fastroute import errors, types

from . import error_reader, history, jsontext
from .base import Target
from .charges import BILLED, billing_of
from .decoder import StreamDecoder, asks_for_usage
from .deltas import CallPlaces
from .headers import joined_url, usual_headers, with_configured
from .reading import count, document, event_json, malformed, not_an_object, string
from .sse import ServerSentEvent

# ------------------------------------------------------------------------------------------------- requests


class OpenAI:
    """The format ``openai``."""

    name = "openai"

    def url(self, target: Target, stream: bool) -> str:
        """``base_url`` + ``/chat/completions``; a query in the base URL is kept."""
        return joined_url(target.base_url, "/chat/completions")

    def headers(self, target: Target, stream: bool) -> dict[str, str]:
        own = usual_headers(stream)
        if target.key is not None:
            own["Authorization"] = "Bearer " + target.key.reveal()
        return with_configured(own, target)

    def encode(self, request: types.Request, target: Target) -> bytes:
        """The parameters as given, with these changes: ``model`` is the provider's name for the model, output
        limits above the model's are lowered to it, a stream requests its usage if `Target.include_usage` is
        set, the limit and the developer's role have the names that the endpoint takes, and messages of
        earlier answers are fitted to it (`history.py`)."""
        messages = request.messages
        refused = target.refused_fields
        for message in messages:
            if (
                type(message) is not dict
                or not refused.isdisjoint(message)
                or "tool_calls" in message
                or "tool_call_id" in message
                or (type(message.get("content")) is list and message.get("role") == "assistant")
            ):
                messages = history.fit(messages, refused, target.call_ids)
                break
        body: dict[str, Any] = {"model": target.upstream, "messages": messages, **request.params}
        body["model"] = target.upstream
        body["messages"] = messages
        if target.developer_role != "developer":
            body["messages"] = _with_role(messages, target.developer_role)
        if target.output_limit is not None:
            _rename_limit(body, target.output_limit)
        most = target.max_output
        if most is not None:
            for name in _LIMITS:
                wanted = body.get(name)
                if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > most:
                    body[name] = most
        if request.stream:
            body["stream"] = True
            self._stream_options(body, target.include_usage)
        else:
            # The request decides whether the answer is streamed, whatever the parameters say.
            body.pop("stream", None)
        return jsontext.dumps(body)

    @staticmethod
    def _stream_options(body: dict[str, Any], include_usage: bool) -> None:
        given = body.get("stream_options")
        if given is not None and not isinstance(given, Mapping):
            return  # left for the provider to refuse
        options = dict(given or {})
        options.pop("include_usage", None)
        if include_usage:
            options["include_usage"] = True
        if options:
            body["stream_options"] = options
        else:
            body.pop("stream_options", None)

    # ---------------------------------------------------------------------------------------------- answers

    def decode(self, body: bytes, request: types.Request, target: Target) -> types.Completion:
        value = document(body, target)
        if not isinstance(value, dict) or "error" in value or value.get("object") != "chat.completion":
            found = error_reader.error_object(value)
            if found is not None:
                raise error_reader.from_error(found, None, target)
        if not isinstance(value, dict):
            raise malformed("the answer is not a JSON object")
        items = value.get("choices")
        if not items:
            raise errors.EmptyResponse("the answer has no choices", maybe_billed=True)
        if not isinstance(items, list):
            raise malformed("choices is not a list")
        choices = tuple([_choice(item, place, target) for place, item in enumerate(items)])
        usage = usage_from(value.get("usage") or _usage_inside(items), value.get("service_tier"))
        return types.Completion(
            id=string(value.get("id")),
            created=count(value.get("created")) or 0,
            model=string(value.get("model")) or target.upstream,
            choices=choices,
            usage=usage,
            raw=value,
        )

    def decode_error(
        self, status: int, headers: Mapping[str, str], body: bytes, target: Target | None = None
    ) -> errors.APIError:
        return error_reader.from_response(status, headers, body, target)

    def stream(self, request: types.Request, target: Target) -> StreamDecoder:
        return _OpenAIStream(request, target)


FORMAT = OpenAI()

_LIMITS = ("max_tokens", "max_completion_tokens")


def _rename_limit(body: dict[str, Any], name: str) -> None:
    """Gives the output limit the one name that the endpoint takes."""
    for other in _LIMITS:
        if other != name and other in body:
            value = body.pop(other)
            if body.get(name) is None:
                body[name] = value


def _with_role(messages: Sequence[Mapping[str, Any]], role: str) -> Sequence[Mapping[str, Any]]:
    """The messages with a developer's in another role."""
    return [
        {**message, "role": role}
        if isinstance(message, Mapping) and message.get("role") == "developer"
        else message
        for message in messages
    ]


def _content(message: dict[str, Any], value: Any) -> str | None:
    """Content as text; a list of parts, which some models send, is taken apart in the message itself.

    Text is joined, thoughts go to ``reasoning_content`` (with a signature to ``thinking_blocks`` too) and
    pictures to ``images``. If there are other parts, all of them are kept in ``content_parts``.
    """
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise malformed("content is neither text nor null")
    texts: list[str] = []
    thoughts: list[str] = []
    kept: dict[str, list[Any]] = {"images": [], "thinking_blocks": []}
    foreign = False
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "thinking":
            thoughts.append(_thought(part.get("thinking")))
            if part.get("signature"):
                kept["thinking_blocks"].append(part)
        elif kind == "image_url":
            kept["images"].append(part)
        else:
            foreign = True
    if thoughts:
        message["reasoning_content"] = _thought(message.get("reasoning_content")) + "".join(thoughts)
    for name, parts in kept.items():
        if parts:
            known = message.get(name)
            message[name] = [*(known if isinstance(known, list) else ()), *parts]
    if foreign:
        message["content_parts"] = value
    content = "".join(texts) if texts or not (thoughts or kept["images"] or foreign) else None
    message["content"] = content
    return content


def _thought(value: Any) -> str:
    """A thought is text, or with Mistral a list of parts with text."""
    if isinstance(value, list):
        return "".join(string(part.get("text")) for part in value if isinstance(part, dict))
    return string(value)


def _call_parts(item: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A tool call's function, empty if there is none, and the custom tool's part, if there is one."""
    if not isinstance(item, dict):
        raise malformed("a tool call is not an object")
    function, custom = item.get("function"), item.get("custom")
    if function is None:
        function = {}
    if not isinstance(function, dict) or not (custom is None or isinstance(custom, dict)):
        raise malformed("a tool call's function is not an object")
    if isinstance(function.get("arguments"), dict):
        # Ollama sends an object; OpenAI's shape has it as text.
        function["arguments"] = jsontext.dumps(function["arguments"]).decode()
    return function, custom


def _tool_call(
    item: dict[str, Any],
    function: Mapping[str, Any],
    custom: Mapping[str, Any] | None,
    kind: str | None,
    index: int | None = None,
) -> types.ToolCall:
    made = types.FunctionCall(string(function.get("name")) or None, string(function.get("arguments")))
    identity, kind = string(item.get("id")) or None, string(item.get("type")) or kind
    if custom is None:
        return types.ToolCall(identity, kind, made, index, raw=item)
    text = types.CustomCall(string(custom.get("name")) or None, string(custom.get("input")))
    return types.ToolCall(identity, kind, made, index, text, raw=item)


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise malformed("tool_calls is not a list")
    return value


def _new_call_id() -> str:
    """The id of a call that came without one: its result must name it."""
    return f"call_{uuid4().hex[:24]}"


def _tool_calls(value: Any) -> tuple[types.ToolCall, ...] | None:
    """The calls of a whole message."""
    calls = []
    for item in _items(value):
        function, custom = _call_parts(item)
        if not item.get("id"):
            item["id"] = _new_call_id()
        calls.append(_tool_call(item, function, custom, "function" if custom is None else "custom"))
    return tuple(calls) or None


def _finish_reason(item: Mapping[str, Any], target: Target) -> str | None:
    reason = item.get("finish_reason")
    if reason == "error":
        raise error_reader.from_error(
            item.get("error") or "the provider ended the answer with an error", None, target
        )
    return reason if isinstance(reason, str) and reason else None


def _choice(item: Any, place: int, target: Target) -> types.Choice:
    if not isinstance(item, dict):
        raise malformed("a choice is not an object")
    message = item.get("message")
    if message is None and item.get("finish_reason"):
        message = item["message"] = {}  # Azure leaves it out where its filter has taken all of it
    if not isinstance(message, dict):
        raise malformed("a choice has no message")
    index = count(item.get("index"))
    content = message.get("content")
    calls = message.get("tool_calls")
    return types.Choice(
        place if index is None else index,
        types.Message(
            string(message.get("role")) or "assistant",
            content if content is None or type(content) is str else _content(message, content),
            _tool_calls(calls) if calls is not None else None,
            string(message.get("refusal")) or None,
            message,
        ),
        _finish_reason(item, target),
        item,
    )


def _usage_inside(items: list[Any]) -> Any:
    """The usage that Moonshot puts into a choice."""
    return next((item["usage"] for item in items if isinstance(item, dict) and item.get("usage")), None)


def usage_from(value: Any, service_tier: Any = None) -> types.Usage | None:
    """The usage in OpenAI's shape, or None if it is unusable and must be estimated.

    Unusable are: a missing or null usage, counts that are not integers from 0 to 2**53, and zero in all.
    Where the total is not the sum of its parts the larger is used and marked as estimated, unless reasoning
    tokens, which some providers count beside the output, make up the difference.
    """
    if not isinstance(value, dict):
        return None
    prompt = count(value.get("prompt_tokens"))
    output = count(value.get("completion_tokens"))
    if prompt is None or output is None or prompt + output == 0:
        return None
    cached = written = reasoning = audio = audio_output = 0
    details = value.get("prompt_tokens_details")
    if details and isinstance(details, dict):
        audio = count(details.get("audio_tokens")) or 0
        cached = count(details.get("cached_tokens")) or 0
        written = count(details.get("cache_write_tokens")) or 0
    if not cached:
        # DeepSeek's and Moonshot's names.
        cached = count(value.get("prompt_cache_hit_tokens")) or count(value.get("cached_tokens")) or 0
    cached = (
        cached if cached <= prompt else 0
    )  # an impossible count: without a discount the cost is not too low
    details = value.get("completion_tokens_details")
    if details and isinstance(details, dict):
        reasoning = count(details.get("reasoning_tokens")) or 0
        audio_output = count(details.get("audio_tokens")) or 0
    source: types.UsageSource = "provider"
    total = value.get("total_tokens")
    if total is not None and total != prompt + output:
        hidden = (count(total) or 0) - prompt - output
        if hidden <= 0 or hidden != reasoning:
            source = "estimated"
        output += max(hidden, 0)
    return types.Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        cached_tokens=cached,
        reasoning_tokens=min(reasoning, output),
        source=source,
        cache_write_tokens=min(written, prompt - cached),
        billing=None
        if service_tier is None and not audio and not audio_output and _BILLED.isdisjoint(value)
        else billing_of(value, service_tier, audio=audio, audio_output=audio_output),
    )


# Fields of a usage beside its tokens, one of which at least is there where it says something of the price.
_BILLED = frozenset({*BILLED, *types.PRICE_MODIFIERS})


# ------------------------------------------------------------------------------------------------- streams


class _OpenAIStream(StreamDecoder):
    """OpenAI's chunks.

    fastroute itself requests the usage. A caller who did not request it gets neither the usage nor the chunk
    without choices that carries it. Other chunks without choices (Azure's filter results for the prompt) are
    dropped too: code that reads ``choices[0]`` would fail on them.
    """

    def __init__(self, request: types.Request, target: Target) -> None:
        super().__init__(target.upstream)
        self._target = target
        self._shows_usage = asks_for_usage(request)
        self._owed: types.Usage | None = None  # came inside a choice, and was shown to nobody yet
        self._places: dict[int, CallPlaces] = {}
        self._service_tier: Any = None  # stands in every chunk, and counts with the one that has the usage

    def feed(self, event: ServerSentEvent) -> Sequence[types.Chunk]:
        data = event.data
        if self.done or not data or data.isspace():
            return ()
        if data == "[DONE]" or data.strip() == "[DONE]":
            self.done = True
            return ()
        value = event_json(event, self._target, self)
        if not isinstance(value, dict):
            raise not_an_object(value, self._target)
        if value.get("error") or event.event == "error":
            raise error_reader.from_error(value.get("error") or value, None, self._target)
        items = value.get("choices")
        if items is not None and not isinstance(items, list):
            raise malformed("choices is not a list")
        if items is None and "usage" not in value and error_reader.error_object(value) is not None:
            raise error_reader.from_error(value, None, self._target)
        usage = None
        if "service_tier" in value:
            self._service_tier = value["service_tier"] or self._service_tier
        if "usage" in value:
            usage = usage_from(value["usage"], self._service_tier)
            if usage is not None:
                self.usage = usage
            if not self._shows_usage:
                usage = None
                del value["usage"]
            elif usage is not None:
                self._owed = None
        choices = tuple([self._choice(item) for item in items]) if items else ()
        if not choices and usage is None:
            return ()
        chunk = types.Chunk(
            id=string(value.get("id")),
            created=count(value.get("created")) or 0,
            model=string(value.get("model")) or self._model,
            choices=choices,
            usage=usage,
            raw=value,
        )
        self._absorb(chunk)
        return (chunk,)

    def end(self) -> Sequence[types.Chunk]:
        """As in the base class; a usage that came inside a choice is shown in a chunk of its own."""
        super().end()
        usage, self._owed = self._owed, None
        if usage is None or not self._shows_usage:
            return ()
        raw = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [],
            "usage": usage.to_dict(),
        }
        return (
            types.Chunk(
                id=self._id, created=self._created, model=self._model, choices=(), usage=usage, raw=raw
            ),
        )

    def _choice(self, item: Any) -> types.ChunkChoice:
        if not isinstance(item, dict):
            raise malformed("a choice is not an object")
        delta = item.get("delta")
        if delta is None:
            delta = item["delta"] = {}
        elif not isinstance(delta, dict):
            raise malformed("a choice's delta is not an object")
        index = item.get("index")
        if index is None:
            index = 0
        elif count(index) is None or index > 10_000:
            raise malformed("a choice's index is not an integer from 0 to 10000")
        role = delta.get("role")
        if role is not None and index in self._choices and self._choices[index].role:
            # Many servers send it with every chunk, and who adds the chunks up has it as many times.
            role = None
            del delta["role"]
        content = delta.get("content")
        calls = delta.get("tool_calls")
        reason = _finish_reason(item, self._target)
        if reason is not None and "usage" in item:
            usage = usage_from(item["usage"], self._service_tier)
            if usage is not None:
                self.usage = self._owed = usage
        return types.ChunkChoice(
            index,
            types.Delta(
                string(role) or None,
                content if content is None or type(content) is str else _content(delta, content),
                self._fragments(index, calls) if calls is not None else None,
                string(delta.get("refusal")) or None,
                delta,
            ),
            reason,
            item,
        )

    def _fragments(self, choice: int, value: Any) -> tuple[types.ToolCall, ...] | None:
        """The fragments of tool calls, under their calls' own indices and with each name sent once."""
        places = self._places.get(choice)
        if places is None:
            places = self._places[choice] = CallPlaces()
        calls = []
        for item in _items(value):
            function, custom = _call_parts(item)
            given = item.get("index")
            if custom is None and not item.get("id") and not function.get("name"):
                latest = places.latest(given)
                if latest is not None:
                    if latest != given:
                        item["index"] = latest
                    calls.append(_tool_call(item, function, None, None, latest))
                    continue
            if given is not None and (count(given) is None or given > 10_000):
                raise malformed("a tool call's index is not an integer from 0 to 10000")
            named = function if custom is None else custom
            text = string(named.get("arguments" if custom is None else "input"))
            name = string(named.get("name"))
            index, begins, part = places.place(given, string(item.get("id")), name, text)
            if given != index:
                item["index"] = index
            if begins:
                if not item.get("id"):
                    item["id"] = _new_call_id()
            elif item.get("id"):
                del item["id"]
            if name and not part:
                del named["name"]
            calls.append(_tool_call(item, function, custom, None, index))
        return tuple(calls) or None
