"""The server side of OpenAI's HTTP interface: turns bytes into a call, and its result into bytes.

`parse` reads a request's body. The rest writes the response: an answer (`answer_bytes`), the events of a
stream (`event_bytes`, `events`), an error (`error_response`), headers about the routing (`route_headers`) and
the list of models (`models_bytes`). Nothing here does I/O; the drop-ins and the gateway move the bytes.

A body from this process is trusted (`TRUSTED`). A body from outside is limited in size, must not repeat a
key, and must not contain parameters that control where it is sent (`STRANGERS`). The values of parameters are
checked by the provider, or by the gateway.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from attrs import field, frozen

from fastroute import errors
from fastroute._core import json_check, json_keys
from fastroute.calls.stream import Stream
from fastroute.client import Client
from fastroute.config.validators import STEERING
from fastroute.figures import decimal_dollars
from fastroute.providers import jsontext, sse
from fastroute.providers.wordings import OPENAI_REASONS, openai_reason
from fastroute.types import Choice, Chunk, ChunkChoice, Completion, Delta, Message, Route, ToolCall, raw_of

DONE = b"data: [DONE]\n\n"
JSON_HEADERS: Mapping[str, str] = {"content-type": "application/json"}
STREAM_HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}
ROUTE_HEADER = "x-fastroute-route"

_LONG_NUMBER = re.compile(rb"[0-9]{19}")  # may exceed the 64 bits that orjson reads exactly
_ID = re.compile(r"[!-~]{1,128}")

_ANY = 2**62

# -------------------------------------------------------------------------------------------------- reading


@frozen
class BodyLimits:
    """Limits of a request's body.

    Attributes:
        max_bytes: size of the whole body; None for no limit.
        max_depth: nesting of lists and objects.
        max_values: number of values of all kinds, lists and objects among them.
        max_keys: number of keys in all objects together.
        unique_keys: refuse an object with the same key twice, which parsers read differently.
        refused: parameters that are not allowed.
    """

    max_bytes: int | None = None
    max_depth: int = jsontext.MAX_DEPTH
    max_values: int = _ANY
    max_keys: int = _ANY
    unique_keys: bool = False
    refused: frozenset[str] = frozenset()


TRUSTED = BodyLimits()
# A conversation of 2,000 messages with tool calls has 25,000 values and 15,000 keys; 128 tools with 100
# described properties each have 40,000 of both.
STRANGERS = BodyLimits(
    max_bytes=10 * 1024 * 1024,
    max_depth=64,
    max_values=250_000,
    max_keys=100_000,
    unique_keys=True,
    refused=STEERING,
)


@frozen
class ParsedCall:
    """The arguments of ``chat.completions.create`` that a body contains."""

    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    model: str | None = None
    stream: bool = False
    route: Mapping[str, Any] | None = field(default=None, repr=False)
    params: Mapping[str, Any] = field(factory=dict, repr=False)

    def run(self, client: Client, *, timeout: float | None = None) -> Completion | Stream:
        """Makes the call; raises as ``create`` does."""
        create: Any = client.chat.completions.create
        answer: Completion | Stream = create(
            messages=self.messages,
            model=self.model,
            stream=self.stream,
            route=self.route,
            timeout=timeout,
            **self.params,
        )
        return answer


def parse(body: bytes, limits: BodyLimits = TRUSTED, *, route: str | None = None) -> ParsedCall:
    """The call in the body of ``POST /chat/completions``.

    Args:
        body: the JSON document.
        limits: the limits of the body.
        route: routing options as JSON from `ROUTE_HEADER`; the body's own take precedence.

    Raises:
        BadRequestError: if the body is invalid, with ``param`` if one parameter is; no message contains any
            of the content.
        RequestTooLargeError: if it is longer than ``limits.max_bytes``.
    """
    if limits.max_bytes is not None and len(body) > limits.max_bytes:
        raise errors.RequestTooLargeError(
            f"the body has {len(body)} bytes; the limit is {limits.max_bytes}", type="invalid_request_error"
        )
    value = _document(body, limits)
    if not isinstance(value, dict):
        _refuse(f"the body is a JSON {_kind(value)}; it must be an object")
    for name in value:
        if name in limits.refused:
            _refuse(f"{name}: is not allowed in a request; leave it out", name)
    messages = value.pop("messages", None)
    if messages is None:
        _refuse("messages: is required", "messages")
    if not isinstance(messages, list) or not messages:
        _refuse("messages: must be a list with at least one message", "messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            _refuse(f"messages[{place}]: must be an object with role and content", "messages")
    model = value.pop("model", None)
    if model is not None and (not isinstance(model, str) or not model):
        _refuse("model: must be the name of a model", "model")
    stream = value.pop("stream", None)
    if stream is not None and not isinstance(stream, bool):
        _refuse("stream: must be true or false", "stream")
    if "timeout" in value:
        _refuse("timeout: is not a body parameter; set it on the client, or use route.deadline", "timeout")
    words = value.pop("route", None)
    if words is not None and not isinstance(words, dict):
        _refuse("route: must be an object of routing options", "route")
    if route is not None:
        words = {**_route_words(route, limits), **(words or {})}
    return ParsedCall(messages, model, bool(stream), words, value)


def _route_words(text: str, limits: BodyLimits) -> dict[str, Any]:
    try:
        # HTTP servers decode header values as Latin-1.
        words = _document(text.encode("latin-1"), limits)
    except (UnicodeEncodeError, errors.BadRequestError):
        words = None
    if not isinstance(words, dict):
        _refuse(f"{ROUTE_HEADER}: must be a JSON object of routing options", "route")
    return words


def _document(body: bytes, limits: BodyLimits) -> Any:
    if body.startswith(sse.BOM):
        _refuse("the body must not begin with a byte order mark")
    try:
        # Before any object is made of it: a few bytes of JSON can become very many bytes of objects.
        _, keys = json_check(
            body, limits.max_depth, limits.max_values, limits.max_keys, jsontext.MAX_KEY_LENGTH
        )
        if not body.isascii():
            body.decode()  # only checked: what is not UTF-8 would be replaced below
        value = jsontext.unbounded(body)
        if _LONG_NUMBER.search(body):
            # The standard library's parser reads integers of any size. What it accepts beyond JSON has been
            # refused above.
            value = json.loads(body)
    except UnicodeDecodeError:
        _refuse("the body must be UTF-8")
    except jsontext.TruncatedJSON:
        _refuse("the body is empty" if not body.strip() else "the body's JSON stops before its end")
    except ValueError as error:
        _refuse(f"the body is invalid: {error}")
    # Of equal keys the parser keeps one, so fewer are left than were counted.
    if limits.unique_keys and json_keys(value) != keys:
        _refuse("the body is invalid: an object has the same key twice")
    return value


def _refuse(why: str, param: str | None = None) -> NoReturn:
    raise errors.BadRequestError(why, param=param, type="invalid_request_error")


_KINDS = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "object")


# -------------------------------------------------------------------------------------------------- answers


def answer_bytes(completion: Completion) -> bytes:
    """The body of a 200 answer.

    An answer is passed on as its format's decoder has put it: fields that OpenAI does not have stay, and
    those that clients of OpenAI's API rely on are set. Of JSON in another shape only the known fields are
    written.
    """
    choices = [_choice(choice) for choice in completion.choices]
    return jsontext.dumps(_body(completion, "chat.completion", choices))


def event_bytes(chunk: Chunk) -> bytes:
    """One chunk of a stream as a server-sent event."""
    choices = [_chunk_choice(choice) for choice in chunk.choices]
    return b"data: " + jsontext.dumps(_body(chunk, "chat.completion.chunk", choices)) + b"\n\n"


def _body(value: Completion | Chunk, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    raw = raw_of(value)
    if "choices" not in raw:
        raw = {}
    body: dict[str, Any] = {
        **raw,
        "id": value.id,
        "object": kind,
        "created": value.created,
        "model": value.model,
        "choices": choices,
    }
    if value.usage is not None:
        body["usage"] = _usage(raw.get("usage"), value.usage.to_dict())
    return body


def events(stream: Iterable[Chunk], *, behind_gateway: bool = False) -> Iterator[bytes]:
    """All events of a stream up to ``[DONE]``; a stream that breaks ends with an error event instead.

    Only fastroute's own errors are caught. The caller closes the stream.
    """
    try:
        for chunk in stream:
            yield event_bytes(chunk)
    except errors.Error as error:
        yield error_event(error, behind_gateway=behind_gateway)
    else:
        yield DONE


def _choice(choice: Choice) -> dict[str, Any]:
    raw = raw_of(choice)
    if "message" not in raw:
        raw = {}
    made = {
        **raw,
        "index": choice.index,
        "message": _said(choice.message, own_format=bool(raw)),
        "finish_reason": choice.finish_reason,
        "logprobs": raw.get("logprobs"),
    }
    _in_openais_words(made)
    return made


def _said(message: Message, *, own_format: bool) -> dict[str, Any]:
    raw = raw_of(message)
    said: dict[str, Any] = {**raw} if own_format else {}
    said.update(role=message.role, content=message.content, refusal=message.refusal)
    said.pop("tool_calls", None)
    if message.tool_calls:
        said["tool_calls"] = [
            _tool_call(call, _given(raw, place)) for place, call in enumerate(message.tool_calls)
        ]
    return said


def _chunk_choice(choice: ChunkChoice) -> dict[str, Any]:
    raw = raw_of(choice)
    if "delta" not in raw:
        raw = {}
    made = {
        **raw,
        "index": choice.index,
        "delta": _added(choice.delta, own_format=bool(raw)),
        "finish_reason": choice.finish_reason,
    }
    if choice.finish_reason is not None:
        _in_openais_words(made)
    return made


def _in_openais_words(choice: dict[str, Any]) -> None:
    """Replaces a finish reason that OpenAI does not have, which its clients refuse; it stays beside it."""
    reason = choice["finish_reason"]
    if reason is None or reason in OPENAI_REASONS:
        return
    choice["finish_reason"] = openai_reason(reason)
    if choice.get("stop_reason") is None:
        choice["stop_reason"] = reason


def _added(delta: Delta, *, own_format: bool) -> dict[str, Any]:
    raw = raw_of(delta)
    added: dict[str, Any] = {**raw} if own_format else {}
    for name in ("role", "content", "refusal"):
        value = getattr(delta, name)
        if value is not None:
            added[name] = value
    if delta.tool_calls:
        added["tool_calls"] = [
            _fragment(call, _given(raw, place), place) for place, call in enumerate(delta.tool_calls)
        ]
    return added


def _given(raw: Mapping[str, Any], place: int) -> Mapping[str, Any]:
    """The JSON of a tool call, whose further fields its provider may want back, as Gemini its signatures."""
    calls = raw.get("tool_calls")
    given = calls[place] if isinstance(calls, (list, tuple)) and place < len(calls) else None
    return given if isinstance(given, Mapping) else {}


def _tool_call(call: ToolCall, given: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {**given, "id": call.id}
    if call.type is not None:
        made["type"] = call.type
    if call.custom is not None:
        made["custom"] = {**_inside(given, "custom"), "name": call.custom.name, "input": call.custom.input}
    else:
        function = call.function
        made["function"] = {
            **_inside(given, "function"),
            "name": function.name,
            "arguments": function.arguments,
        }
    return made


def _fragment(call: ToolCall, given: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A part of a tool call in a delta, where only the first one names the call."""
    made: dict[str, Any] = {**given, "index": place if call.index is None else call.index}
    for name, value in (("id", call.id), ("type", call.type)):
        if value is not None:
            made[name] = value
    part: dict[str, Any]
    if call.custom is not None:
        made["custom"] = part = {**_inside(given, "custom"), "input": call.custom.input}
        name_of_it = call.custom.name
    else:
        made["function"] = part = {**_inside(given, "function"), "arguments": call.function.arguments}
        name_of_it = call.function.name
    if name_of_it is not None:
        part["name"] = name_of_it
    return made


def _inside(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = given.get(name)
    return found if isinstance(found, Mapping) else {}


def _usage(raw: Any, counted: dict[str, Any]) -> dict[str, Any]:
    """The counts as fastroute reads them, with the provider's other fields."""
    if not isinstance(raw, dict):
        return counted
    usage = {**raw, **counted}
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        details = raw.get(name)
        if isinstance(details, dict):
            usage[name] = {**details, **counted[name]}
    return usage


# --------------------------------------------------------------------------------------------------- headers


def route_headers(route: Route | None, *, running: bool = False) -> dict[str, str]:
    """Headers about the routing of a call: ``x-fastroute-model``, ``-endpoint``, ``-class``, ``-cost`` (in
    USD), ``-attempts``, ``-cached``, and ``x-request-id``.

    Args:
        route: the route of a completion or a stream.
        running: whether it is a stream that has just begun: its cost is not known, and the current attempt is
            not yet among its attempts.

    Values that cannot be sent in a header are left out.
    """
    if route is None:
        return {}
    found = {
        "x-fastroute-model": route.model,
        "x-fastroute-endpoint": route.endpoint,
        "x-fastroute-attempts": str(len(route.attempts) + running),
        "x-fastroute-cached": "true" if route.cached else "false",
    }
    classification = route.classification
    if classification is not None:
        found["x-fastroute-class"] = classification.level
    if route.cost_nano is not None and not running:
        found["x-fastroute-cost"] = decimal_dollars(route.cost_nano)
    if route.request_id is not None:
        found["x-request-id"] = route.request_id
    return {name: value for name, value in found.items() if _ID.fullmatch(value)}


# ---------------------------------------------------------------------------------------------------- errors

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_CODES: Sequence[tuple[type[errors.Error], str]] = (
    (errors.ModelNotFoundError, "model_not_found"),
    (errors.ContextLengthExceeded, "context_length_exceeded"),
    (errors.ContentFilterError, "content_filter"),
    (errors.QuotaExceededError, "insufficient_quota"),
    (errors.BudgetExceeded, "budget_exceeded"),
    (errors.RequestTooLargeForLimit, "request_too_large_for_limit"),
    (errors.RateLimitError, "rate_limit_exceeded"),
    (errors.NoEndpointError, "no_endpoint"),
    (errors.DeadlineExceeded, "deadline_exceeded"),
    (errors.CallCancelled, "call_cancelled"),
    (errors.ValidationError, "answer_refused"),
    (errors.StreamInterrupted, "stream_interrupted"),
    (errors.AuthenticationError, "invalid_api_key"),
    (errors.APITimeoutError, "upstream_timeout"),
    (errors.APIConnectionError, "upstream_unavailable"),
)


def error_status(error: BaseException, *, behind_gateway: bool = False) -> int:
    """The HTTP status for an error.

    Args:
        error: the exception of a call.
        behind_gateway: whether the caller has a key of the gateway, not of the provider: then a provider's
            401 or 403 becomes 502, since the caller's own key is not wrong.
    """
    if not isinstance(error, errors.Error) or error.status_code is None:
        return 500
    status = error.status_code
    if not 400 <= status <= 599:
        return 502  # a redirect, or an invalid status
    if behind_gateway and status in (401, 403) and error.attempts:
        return 502
    return status


def error_object(error: BaseException, *, behind_gateway: bool = False) -> dict[str, Any]:
    """``{"error": {...}}`` in OpenAI's shape; errors that are not fastroute's own are not described."""
    status = error_status(error, behind_gateway=behind_gateway)
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    if not isinstance(error, errors.Error):
        return _error("an internal error", kind, None, "internal_error")
    code = next((code for known, code in _CODES if isinstance(error, known)), None)
    param = None
    if isinstance(error, errors.APIError):
        param = error.param
        if status == error.status_code:
            kind, code = error.type or kind, error.code or code
        elif behind_gateway:
            kind, code = "server_error", "upstream_refused"
    if isinstance(error, errors.ModelNotFoundError):
        param = param or "model"
    return _error(error.message, kind, param, code)


def _error(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    error: BaseException, *, behind_gateway: bool = False
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body for an error, as from OpenAI's API.

    The headers have the time to wait, if known, and ``x-should-retry: false``: fastroute has retried already,
    and a client that retries too would multiply the attempts.
    """
    headers = {**JSON_HEADERS, "x-should-retry": "false"}
    if isinstance(error, errors.Error):
        wait = error.retry_after
        if wait is not None and 0 <= wait < 1e9:
            headers["retry-after"] = str(math.ceil(wait))
            headers["retry-after-ms"] = str(math.ceil(wait * 1000))
        if error.request_id is not None and _ID.fullmatch(error.request_id):
            headers["x-request-id"] = error.request_id
        headers["x-fastroute-attempts"] = str(len(error.attempts))
    body = jsontext.dumps(error_object(error, behind_gateway=behind_gateway))
    return error_status(error, behind_gateway=behind_gateway), headers, body


def error_event(error: BaseException, *, behind_gateway: bool = False) -> bytes:
    """An error event in a stream; it must be the last event."""
    return b"data: " + jsontext.dumps(error_object(error, behind_gateway=behind_gateway)) + b"\n\n"


def not_found(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    """The 404 for a path that is not served."""
    shown = path if len(path) <= 200 else path[:197] + "..."
    message = f"{method} {shown} cannot be routed; fastroute serves chat completions and the list of models"
    body = jsontext.dumps(_error(message, "invalid_request_error", None, "unknown_url"))
    return 404, {**JSON_HEADERS, "x-should-retry": "false"}, body


# ---------------------------------------------------------------------------------------------------- models


def models_bytes(client: Client) -> bytes:
    """The body of ``GET /models``: all names that a call may use as its model, also ``auto`` and tiers."""
    return jsontext.dumps({"object": "list", "data": [_model(*named) for named in _models(client)]})


def model_bytes(client: Client, name: str) -> bytes:
    """The body of ``GET /models/NAME``.

    Raises:
        ModelNotFoundError: if the name is unknown.
    """
    for known, owner in _models(client):
        if known == name:
            return jsontext.dumps(_model(known, owner))
    raise errors.ModelNotFoundError("unknown model; GET /models lists the known ones", param="model")


def _models(client: Client) -> list[tuple[str, str]]:
    config = client.config
    owners: dict[str, str] = {"auto": "fastroute"}
    for tier in config.tiers:
        owners.setdefault(tier, "fastroute")
    for endpoint in config.endpoints:
        owners[endpoint.model] = endpoint.provider
    return list(owners.items())


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
