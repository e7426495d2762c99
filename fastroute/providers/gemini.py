"""Gemini's ``generateContent``, as used by Google's Gemini API.

Request bodies are built in `gemini_request.py`. Candidates become choices: text parts are joined, thoughts
become ``reasoning_content``, pictures ``images``, and each function call becomes a tool call. A thought
signature is in the ``extra_content`` of its call, its picture, or (of a text) the message, where a later
request reads it. If there are other parts, such as code that Gemini has run, all parts are kept in
``content_parts``. Gemini counts thoughts beside the visible output and a tool's prompt beside the prompt, so
each is added once. A stream has no end mark: it is complete when its input ends and each candidate has a
finish reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from attrs import evolve, frozen

from fastroute import errors, types

from . import error_reader, jsontext
from .base import Target
from .charges import billing_of, grounding
from .decoder import StreamDecoder, asks_for_usage
from .gemini_request import body_of
from .headers import joined_url, usual_headers, with_configured
from .reading import count, document, event_json, malformed, string, this_second
from .sse import ServerSentEvent

_FILTERED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "ESCALATION",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    }
)
# The model's output is unusable; another attempt may succeed.
_SPOILED = frozenset({"MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL"})
# Fields with a place in OpenAI's shape; all others are kept under Gemini's names.
_PLACED = frozenset({"candidates", "modelVersion", "responseId", "usageMetadata"})
_PLACED_OF_CANDIDATE = frozenset({"content", "finishReason", "index", "logprobsResult"})
_COLLECTIONS = ("models", "tunedModels", "publishers", "projects")


def _model_path(upstream: str) -> str:
    """The path of a model: ``models/NAME`` unless the name already starts with a collection."""
    steps = upstream.split("/")
    if any(step in ("", ".", "..") for step in steps):
        raise errors.ConfigError(
            "endpoints.upstream: must be a model's name, without empty, '.' or '..' path segments"
        )
    if steps[0] not in _COLLECTIONS:
        return "/models/" + quote(upstream, safe="")
    return "/" + "/".join(quote(step, safe="") for step in steps)


def api_url(base_url: str, path: str) -> str:
    """The address of a path of the API; ``/v1beta`` is added where the base URL has no path."""
    bare = not urlsplit(base_url).path.strip("/")
    return joined_url(base_url, "/v1beta" + path if bare else path)


class Gemini:
    """The format ``gemini``."""

    name = "gemini"

    def url(self, target: Target, stream: bool) -> str:
        """``base_url`` + ``/models/NAME:generateContent``, or ``:streamGenerateContent`` with ``alt=sse``."""
        action = ":streamGenerateContent" if stream else ":generateContent"
        url = api_url(target.base_url, _model_path(target.upstream) + action)
        if not stream:
            return url
        return url + ("&" if "?" in url else "?") + "alt=sse"

    def headers(self, target: Target, stream: bool) -> dict[str, str]:
        own = usual_headers(stream)
        if target.key is not None:
            own["x-goog-api-key"] = target.key.reveal()
        return with_configured(own, target)

    def encode(self, request: types.Request, target: Target) -> bytes:
        return jsontext.dumps(body_of(request, target))

    def decode(self, body: bytes, request: types.Request, target: Target) -> types.Completion:
        value = document(body, target)
        _raise_error(value, target)
        if isinstance(value, list):
            raise malformed(
                "the streamed answer is a JSON array, not events: a proxy drops the query ?alt=sse; "
                "check the provider's base_url"
            )
        if not isinstance(value, dict):
            raise malformed("the answer is not a JSON object")
        candidates = _candidates(value)
        usage = usage_from(value.get("usageMetadata"), grounding(candidates, target.upstream))
        if not candidates:
            raise errors.EmptyResponse("the answer has no candidates", maybe_billed=True)
        answer_id = string(value.get("responseId"))
        choices = tuple(_choice(item, place, answer_id) for place, item in enumerate(candidates))
        model = string(value.get("modelVersion")) or target.upstream
        created = this_second()
        shape = {
            **_further(value, _PLACED),
            **_shape("chat.completion", answer_id, created, model, choices, usage),
        }
        return types.Completion(
            id=answer_id, created=created, model=model, choices=choices, usage=usage, raw=shape
        )

    def decode_error(
        self, status: int, headers: Mapping[str, str], body: bytes, target: Target | None = None
    ) -> errors.APIError:
        try:
            found = error_reader.error_object(jsontext.loads(body))
        except ValueError:
            found = None
        if isinstance(found, dict):
            meant, fields = _in_our_words(found, status)
            status = meant or status
            body = jsontext.dumps({"error": fields})
        return error_reader.from_response(status, headers, body, target)

    def stream(self, request: types.Request, target: Target) -> StreamDecoder:
        return _GeminiStream(request, target)


FORMAT = Gemini()


# --------------------------------------------------------------------------------------------------- errors


def _in_our_words(error: Mapping[str, Any], status: int | None) -> tuple[int | None, dict[str, Any]]:
    """The status that fits an error, and its fields with the reason in its details as the code.

    Gemini answers 400 for a bad key, and for a project that may not call at all (no billing, or a country
    that is not served). Neither is an error of the request.
    """
    fields = dict(error)
    code = fields.pop("code", None)
    if status is None:
        status = code if count(code) and 400 <= code < 600 else None
    details = fields.get("details")
    for detail in details if isinstance(details, list) else ():
        reason = detail.get("reason") if isinstance(detail, dict) else None
        if isinstance(reason, str) and reason:
            fields["code"] = reason
            break
    if fields.get("code") == "API_KEY_INVALID":
        status = 401
    elif status == 400 and fields.get("status") == "FAILED_PRECONDITION":
        status = 403
    return status, fields


def _raise_error(value: Any, target: Target) -> None:
    """Raises if a 200 answer or an event is an error, or if the prompt was blocked."""
    found = value.get("error") if isinstance(value, dict) else None
    if found is None and isinstance(value, list) and len(value) == 1:
        found = error_reader.error_object(value)
    if isinstance(found, dict):
        status, fields = _in_our_words(found, None)
        raise error_reader.from_error(fields, status, target)
    if found:
        raise error_reader.from_error(found, None, target)
    if isinstance(value, dict) and not value.get("candidates"):
        feedback = value.get("promptFeedback")
        blocked = feedback.get("blockReason") if isinstance(feedback, dict) else None
        if blocked:
            reason = error_reader.redact(str(blocked), 80)
            raise errors.ContentFilterError(
                f"the prompt was blocked ({reason})", code="content_filter", type=reason, param="messages"
            )


# -------------------------------------------------------------------------------------------------- answers


@frozen
class _GeminiCall:
    name: str | None
    arguments: str
    id: str | None
    signature: str | None


@frozen(kw_only=True)
class _CandidateParts:
    """The parts of a candidate, joined by kind.

    Attributes:
        signature: of a part with text.
        parts: all of them, as received.
        foreign: whether some of them have no other place.
        plain: whether there is nothing but content.
    """

    content: str | None = None
    reasoning: str | None = None
    calls: Sequence[_GeminiCall] = ()
    images: Sequence[dict[str, Any]] = ()
    signature: str | None = None
    parts: Sequence[dict[str, Any]] = ()
    foreign: bool = False
    plain: bool = False

    @property
    def says_something(self) -> bool:
        return bool(self.content or self.reasoning or self.calls or self.images or self.foreign)

    def fill(self, message: dict[str, Any]) -> None:
        """Sets the fields of a message or delta that OpenAI does not have, but for ``content_parts``."""
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.images:
            message["images"] = list(self.images)
        if self.signature is not None:
            message["extra_content"] = _signed(self.signature)


def _candidates(value: Mapping[str, Any]) -> list[Any]:
    items = value.get("candidates")
    if items is None:
        return []
    if not isinstance(items, list):
        raise malformed("candidates is not a list")
    return items


def _read(candidate: Any) -> _CandidateParts:
    if not isinstance(candidate, dict):
        raise malformed("a candidate is not an object")
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    if parts is None:
        return _CandidateParts()
    if not isinstance(parts, list):
        raise malformed("a candidate's parts are not a list")
    if len(parts) == 1 and type(parts[0]) is dict:
        part = parts[0]
        if len(part) == 1 and type(part.get("text")) is str:  # so it is in most chunks
            return _CandidateParts(content=part["text"], parts=parts, plain=True)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[_GeminiCall] = []
    images: list[dict[str, Any]] = []
    signature = None
    foreign = False
    for part in parts:
        if not isinstance(part, dict):
            raise malformed("a part is not an object")
        signed = string(part.get("thoughtSignature")) or None
        text, call, data = part.get("text"), part.get("functionCall"), part.get("inlineData")
        if isinstance(text, str):
            (thoughts if part.get("thought") is True else texts).append(text)
            signature = signed or signature
        if isinstance(call, dict):
            arguments = call.get("args")
            written = jsontext.dumps(arguments).decode() if isinstance(arguments, dict) else "{}"
            calls.append(
                _GeminiCall(string(call.get("name")) or None, written, string(call.get("id")) or None, signed)
            )
        elif isinstance(data, dict):
            url = f"data:{string(data.get('mimeType'))};base64,{string(data.get('data'))}"
            image: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
            if signed is not None:
                image["extra_content"] = _signed(signed)
            images.append(image)
        elif not isinstance(text, str):
            foreign = True
    return _CandidateParts(
        content="".join(texts) if texts else None,
        reasoning="".join(thoughts) or None,
        calls=calls,
        images=images,
        signature=signature,
        parts=parts,
        foreign=foreign,
    )


def _further(value: Mapping[str, Any], placed: frozenset[str]) -> Mapping[str, Any]:
    if value.keys() <= placed:
        return _NOTHING
    return {name: item for name, item in value.items() if name not in placed}


_NOTHING: Mapping[str, Any] = {}


def _finish_reason(candidate: Mapping[str, Any], calls: bool) -> str | None:
    reason = candidate.get("finishReason")
    if not isinstance(reason, str) or not reason:
        return None
    if reason == "STOP":
        return "tool_calls" if calls else "stop"
    if reason == "MAX_TOKENS":
        return "length"
    if reason in _FILTERED:
        return "content_filter"
    shown = error_reader.redact(reason, 80)
    if reason in _SPOILED:
        raise malformed(f"the model's answer is unusable (finishReason {shown})")
    if reason == "MISSING_THOUGHT_SIGNATURE":
        raise errors.BadRequestError(
            "messages: a tool call lacks its thought signature; send the model's message back unchanged",
            code=shown,
            param="messages",
        )
    if reason == "PUP_LIMITED_DISABLED":
        raise errors.PermissionDeniedError("the account is limited or disabled", code=shown)
    return shown.lower()


def _call_id(call: _GeminiCall, answer_id: str, choice: int, index: int) -> str:
    if call.id is not None:
        return call.id
    return f"call_{answer_id or uuid4().hex}_{choice}_{index}"


def _tool_call(call: _GeminiCall, call_id: str, index: int | None = None) -> types.ToolCall:
    raw: dict[str, Any] = {} if index is None else {"index": index}
    raw["id"] = call_id
    raw["type"] = "function"
    raw["function"] = {"name": call.name, "arguments": call.arguments}
    if call.signature is not None:
        raw["extra_content"] = _signed(call.signature)
    return types.ToolCall(
        id=call_id, function=types.FunctionCall(call.name, call.arguments), index=index, raw=raw
    )


def _signed(signature: str) -> dict[str, Any]:
    return {"google": {"thought_signature": signature}}


def _choice(candidate: Any, place: int, answer_id: str) -> types.Choice:
    said = _read(candidate)
    index = count(candidate.get("index"))
    index = place if index is None else index
    calls = tuple(
        _tool_call(call, _call_id(call, answer_id, index, number)) for number, call in enumerate(said.calls)
    )
    content = said.content if said.content is not None or calls else ""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [call._raw for call in calls]
    said.fill(message)
    if said.foreign:
        message["content_parts"] = said.parts
    reason = _finish_reason(candidate, bool(calls))
    raw = _choice_shape(index, "message", message, reason, candidate)
    if reason is not None:
        raw["stop_reason"] = candidate["finishReason"]
    value = types.Message("assistant", content, calls or None, None, message)
    return types.Choice(index, value, reason, raw)


def _shape(
    kind: str,
    identity: str,
    created: int,
    model: str,
    choices: Sequence[types.Choice] | Sequence[types.ChunkChoice],
    usage: types.Usage | None,
) -> dict[str, Any]:
    """An answer or a chunk in OpenAI's shape."""
    shape: dict[str, Any] = {
        "id": identity,
        "object": kind,
        "created": created,
        "model": model,
        "choices": [choice._raw for choice in choices],
    }
    if usage is not None:
        shape["usage"] = usage.to_dict()
    return shape


def _choice_shape(
    index: int, kind: str, message: dict[str, Any], reason: str | None, candidate: Mapping[str, Any]
) -> dict[str, Any]:
    raw: dict[str, Any] = {"index": index, kind: message, "finish_reason": reason}
    raw.update(_further(candidate, _PLACED_OF_CANDIDATE))
    result = candidate.get("logprobsResult")
    if isinstance(result, dict):
        raw["logprobs"] = {"content": _logprobs(result)}
    return raw


def _logprobs(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    chosen = result.get("chosenCandidates")
    top = result.get("topCandidates")
    found = []
    for place, item in enumerate(chosen if isinstance(chosen, list) else ()):
        entry = _logprob(item)
        at = top[place] if isinstance(top, list) and place < len(top) else None
        others = at.get("candidates") if isinstance(at, dict) else None
        entry["top_logprobs"] = [_logprob(other) for other in others] if isinstance(others, list) else []
        found.append(entry)
    return found


def _logprob(item: Any) -> dict[str, Any]:
    item = item if isinstance(item, dict) else {}
    token = string(item.get("token"))
    return {
        "token": token,
        "logprob": item.get("logProbability"),
        "bytes": list(token.encode("utf-8", "replace")),
    }


_COUNTS = (
    "promptTokenCount",
    "toolUsePromptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
    "cachedContentTokenCount",
    "totalTokenCount",
)


def usage_from(value: Any, searches: int = 0) -> types.Usage | None:
    """The usage in OpenAI's way of counting, or None if it is unusable and must be estimated.

    Gemini counts cached tokens inside the prompt, thoughts beside the candidates, and a tool's prompt beside
    the prompt. If the total differs from their sum the larger is used, and the usage is marked as estimated.
    """
    if not isinstance(value, dict):
        return None
    found = []
    for name in _COUNTS:
        given = value.get(name)
        if given is None:
            found.append(0)
        elif (number := count(given)) is None:
            return None
        else:
            found.append(number)
    prompt, tool_prompt, visible, thoughts, cached, total = found
    prompt += tool_prompt
    output = visible + thoughts
    if prompt + output == 0 or value.get("promptTokenCount") is None:
        return None
    source: types.UsageSource = "provider"
    if total != prompt + output and value.get("totalTokenCount") is not None:
        source = "estimated"
        output = max(output, total - prompt)
    return types.Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        cached_tokens=cached if cached <= prompt else 0,
        reasoning_tokens=thoughts,
        source=source,
        billing=billing_of(
            value,
            value.get("serviceTier"),
            audio=_audio(value.get("promptTokensDetails")),
            audio_output=_audio(value.get("candidatesTokensDetails")),
            searches=searches,
        ),
    )


def _audio(details: Any) -> int:
    """Tokens of audio among those of all kinds."""
    return sum(
        count(each.get("tokenCount")) or 0
        for each in (details if isinstance(details, list) else ())
        if isinstance(each, dict) and each.get("modality") == "AUDIO"
    )


# -------------------------------------------------------------------------------------------------- streams


class _GeminiStream(StreamDecoder):
    """Turns Gemini's events, each in the shape of a small answer, into OpenAI's chunks.

    A finish reason is not the end: after a round with a tool of its own Gemini goes on, and some models send
    one in every event. So the reasons are kept until the input has ended, and a last chunk brings them. A
    later one replaces an earlier one, but for that of a filter.

    Every event has the usage so far, and the last one counts. Until each candidate has a finish reason it is
    an estimate, since more may have been generated than has arrived. A caller who requested it gets it once,
    after the last chunk, as from OpenAI, because programs add up usages.
    """

    def __init__(self, request: types.Request, target: Target) -> None:
        self._counts: Any = None
        self._candidates: dict[int, _CandidateSoFar] = {}
        super().__init__(target.upstream)
        self._created = this_second()
        self._target = target
        self._shows_usage = asks_for_usage(request)
        wanted = request.params.get("n")
        self._wanted = wanted if isinstance(wanted, int) else 1
        self._searches = 0

    def feed(self, event: ServerSentEvent) -> Sequence[types.Chunk]:
        data = event.data
        if self.done or not data or data.isspace():
            return ()
        value = event_json(event, self._target, self)
        _raise_error(value, self._target)
        if not isinstance(value, dict):
            raise malformed("a stream event is not a JSON object")
        counts = value.get("usageMetadata")
        if counts is not None:
            self._counts = counts
        self._id = self._id or string(value.get("responseId"))
        self._model = string(value.get("modelVersion")) or self._model
        self._searches = max(self._searches, grounding(value.get("candidates"), self._target.upstream))
        choices = [
            choice
            for place, item in enumerate(_candidates(value))
            if (choice := self._choice(item, place)) is not None
        ]
        return (self._chunk(choices, _further(value, _PLACED)),) if choices else ()

    @property
    def _whole(self) -> bool:
        """Whether every candidate that is known so far has a finish reason, and nothing after it."""
        known = self._candidates.values()
        ended = sum(each.ending is not None and not each.goes_on for each in known)
        return self.done or ended >= max(self._wanted, len(known))

    @property
    def goes_on(self) -> bool:
        return any(each.goes_on for each in self._candidates.values())

    # Computed on access: it is read once or twice in a stream, but every event brings new counts.
    @property
    def usage(self) -> types.Usage | None:
        usage = usage_from(self._counts, self._searches)
        return usage if usage is None or self._whole else evolve(usage, source="estimated")

    @usage.setter
    def usage(self, usage: types.Usage | None) -> None:
        assert usage is None  # set only by the base class's __init__

    def end(self) -> Sequence[types.Chunk]:
        """As in the base class; the last chunks bring the finish reasons and, if requested, the usage."""
        if self.done:
            return super().end()
        endings = [
            self._ending(index, each.ending, each)
            for index, each in sorted(self._candidates.items())
            if each.ending is not None
        ]
        chunks = [self._chunk(endings, {})] if endings else []
        super().end()
        self.done = True
        usage = self.usage
        if self._shows_usage and usage is not None:
            chunks.append(self._chunk([], {}, usage))
        return chunks

    def _chunk(
        self,
        choices: Sequence[types.ChunkChoice],
        further: Mapping[str, Any],
        usage: types.Usage | None = None,
    ) -> types.Chunk:
        shape = _shape("chat.completion.chunk", self._id, self._created, self._model, choices, usage)
        chunk = types.Chunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=tuple(choices),
            usage=usage,
            raw={**further, **shape} if further else shape,
        )
        self._absorb(chunk)
        return chunk

    def _choice(self, candidate: Any, place: int) -> types.ChunkChoice | None:
        said = _read(candidate)
        index = count(candidate.get("index"))
        index = place if index is None else index
        if index > 10_000:
            raise malformed("a candidate's index is not an integer from 0 to 10000")
        known = self._candidates.get(index)
        delta: dict[str, Any] = {}
        if known is None:
            known = self._candidates[index] = _CandidateSoFar()
            delta["role"] = "assistant"
        calls: list[types.ToolCall] = []
        for call in said.calls:
            call_id = _call_id(call, self._id, index, known.calls)
            calls.append(_tool_call(call, call_id, known.calls))
            known.calls += 1
        # It raises for the reasons that are errors.
        reason = _finish_reason(candidate, known.calls > 0)
        if reason is not None:
            known.goes_on = False
            if known.ending not in _FILTERED:
                known.ending = candidate["finishReason"]
        elif said.says_something:
            known.goes_on = known.ending is not None
        if said.content is not None:
            delta["content"] = said.content
        if calls:
            delta["tool_calls"] = [call._raw for call in calls]
        if not said.plain:
            said.fill(delta)
        parts = known.parts_of(said)
        if parts:
            delta["content_parts"] = parts
        raw = _choice_shape(index, "delta", delta, None, candidate)
        if len(raw) > _BARE:
            known.further.update(_further(raw, _OF_A_DELTA))
        elif not delta:
            return None  # a finish reason alone, which the last chunk brings
        value = types.Delta(delta.get("role"), said.content, tuple(calls) or None, None, delta)
        return types.ChunkChoice(index, value, None, raw)

    def _ending(self, index: int, own_reason: str, known: _CandidateSoFar) -> types.ChunkChoice:
        reason = _finish_reason({"finishReason": own_reason}, known.calls > 0)
        raw = {
            "index": index,
            "delta": {},
            "finish_reason": reason,
            **known.further,
            "stop_reason": own_reason,
        }
        return types.ChunkChoice(index, types.Delta(raw=raw["delta"]), reason, raw)


class _CandidateSoFar:
    """A candidate of a stream.

    Attributes:
        calls: how many tool calls it has.
        ending: Gemini's finish reason so far.
        goes_on: whether more has come after it, without another.
        further: its fields that OpenAI does not have, as last received.
    """

    __slots__ = ("_foreign", "_parts", "calls", "ending", "further", "goes_on")

    def __init__(self) -> None:
        self.calls = 0
        self.ending: str | None = None
        self.goes_on = False
        self.further: dict[str, Any] = {}
        self._parts: list[dict[str, Any]] = []
        self._foreign = False

    def parts_of(self, said: _CandidateParts) -> list[dict[str, Any]]:
        """The parts to show: all of them as soon as one has no other place, those before it included."""
        self._parts += said.parts
        self._foreign = self._foreign or said.foreign
        if not self._foreign:
            return []
        parts, self._parts = self._parts, []
        return parts


_OF_A_DELTA = frozenset({"index", "delta", "finish_reason", "logprobs"})
_BARE = 3  # the fields of a choice without further ones: index, delta, finish_reason
