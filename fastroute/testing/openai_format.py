"""The server side of OpenAI's chat completions: paths, key header, requests, answers, errors, limit headers.

Another format is a class with the methods of `ServerFormat` and a line in `formats.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fastroute import json_codec

from .answer_source import (
    TOKENS_PER_IMAGE,
    TOKENS_PER_MESSAGE,
    ProviderError,
    Question,
    Said,
    count_tokens,
    fragments,
)
from .openai_question import MOST_CHOICES, check_question
from .rate_limits import LimitExceeded, go_duration
from .wire import Headers, Piece


@dataclass(frozen=True, slots=True)
class StreamStyle:
    """How a provider writes its streams; relays and servers differ in all of this.

    Attributes:
        comment_every: number of events after which a keep-alive comment is sent; 0 for none.
        crlf: whether lines end in CR LF, not LF.
        usage_in_every_chunk: whether all chunks have the usage so far, requested or not.
        done: whether ``data: [DONE]`` ends the stream.
        usage: whether usage is sent if requested.
    """

    comment_every: int = 0
    crlf: bool = False
    usage_in_every_chunk: bool = False
    done: bool = True
    usage: bool = True


class ServerFormat(Protocol):
    """One provider's wire format."""

    base_path: str
    end_mark: bytes  # bytes that only a stream's last event contains; empty if the format has no end mark

    def route(self, method: str, path: str) -> Literal["chat", "models"] | None: ...
    def key(self, headers: Mapping[str, str]) -> str | None: ...
    def read(self, body: bytes, path: str, strict: bool) -> Question: ...
    def completion(self, question: Question, said: Said, serial: int, created: int) -> bytes: ...
    def events(
        self, question: Question, said: Said, serial: int, created: int, style: StreamStyle, pause: float
    ) -> Iterator[Piece]: ...
    def models(self, names: tuple[str, ...], query: str = "") -> bytes: ...
    def error(
        self, status: int, code: str | None, message: str | None, param: str | None = None
    ) -> bytes: ...
    def status_of(self, code: str) -> int: ...
    def error_event(self, code: str) -> bytes: ...
    def text_event(self, text: bytes) -> bytes: ...
    def late_events(self) -> bytes: ...
    def broken_event(self) -> bytes: ...
    def request_id(self, serial: int) -> tuple[str, str]: ...
    def limit_headers(self, state: Mapping[str, tuple[int, int, float]]) -> Headers: ...
    def refused(self, refused: LimitExceeded) -> tuple[Headers, bytes]: ...


# The errors that matter for routing, by OpenAI's code: status, type, message, param.
ERRORS: dict[str, tuple[int, str, str, str | None]] = {
    "context_length_exceeded": (
        400,
        "invalid_request_error",
        "This model's maximum context length is 8192 tokens; the messages are longer.",
        "messages",
    ),
    "content_filter": (
        400,
        "invalid_request_error",
        "The prompt was stopped by the content filter.",
        "prompt",
    ),
    "invalid_api_key": (401, "invalid_request_error", "Incorrect API key provided.", None),
    "model_not_found": (
        404,
        "invalid_request_error",
        "The model does not exist or is not yours to use.",
        "model",
    ),
    "unsupported_parameter": (
        400,
        "invalid_request_error",
        "A parameter is not supported by this model.",
        None,
    ),
    "rate_limit_exceeded": (429, "requests", "Rate limit reached; try again later.", None),
    "slow_down": (429, "requests", "Slow down: the request rate rose too fast.", None),
    "insufficient_quota": (429, "insufficient_quota", "The quota is used up; check plan and billing.", None),
    "credit_balance_exhausted": (429, "insufficient_quota", "The credit balance is used up.", None),
    "organization_spend_limit_exceeded": (
        429,
        "insufficient_quota",
        "The organization's spend limit is reached.",
        None,
    ),
    "project_spend_limit_exceeded": (
        429,
        "insufficient_quota",
        "The project's spend limit is reached.",
        None,
    ),
    "organization_usage_limit_exceeded": (
        429,
        "insufficient_quota",
        "The organization's usage limit is reached.",
        None,
    ),
    "server_error": (500, "server_error", "The server had an error while it processed the request.", None),
    "overloaded": (503, "server_error", "The model is overloaded with other requests.", None),
}

_BY_STATUS = {
    400: ("invalid_request_error", None, "The request is invalid."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", None, "This key may not do that."),
    404: ("invalid_request_error", None, "There is nothing at this address."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached; try again later."),
    503: ("server_error", None, "The server is overloaded or not ready yet."),
}


def _text(content: object) -> tuple[str, int]:
    """A message's text, and the tokens of its other parts."""
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, list):
        return "", 0
    texts, extra = [], 0
    for part in content:
        if isinstance(part, dict):
            if part.get("type") == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                extra += TOKENS_PER_IMAGE
    return "".join(texts), extra


def _chosen_tool(asked: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any] | None]:
    """The tool that the model must call, with the schema of its arguments, or None twice."""
    tools = [tool.get("function", {}) for tool in asked.get("tools") or () if isinstance(tool, dict)]
    choice = asked.get("tool_choice")
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        for tool in tools:
            if tool.get("name") == name:
                return name, tool.get("parameters")
        raise ProviderError(
            400, None, "tool_choice names a function that tools does not hold.", "tool_choice"
        )
    if choice == "required":
        if not tools:
            raise ProviderError(
                400, None, "tool_choice is 'required', but there are no tools.", "tool_choice"
            )
        return tools[0].get("name"), tools[0].get("parameters")
    return None, None


def _whole(asked: Mapping[str, Any], name: str) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProviderError(400, None, f"'{name}' must be an integer.", name)
    return value


class OpenAIServerFormat:
    """Chat completions of OpenAI and of compatible servers."""

    base_path = "/v1"
    more_parameters: frozenset[str] = frozenset()  # those that OpenAI itself does not have
    end_mark = b"data: [DONE]"

    def route(self, method: str, path: str) -> Literal["chat", "models"] | None:
        if method == "POST" and path == "/v1/chat/completions":
            return "chat"
        return "models" if method == "GET" and path == "/v1/models" else None

    def key(self, headers: Mapping[str, str]) -> str | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else None

    @staticmethod
    def asked(body: bytes) -> dict[str, Any]:
        try:
            asked = json_codec.loads(body)
        except json_codec.JSONDecodeError as error:
            raise ProviderError(400, None, "The body is not valid JSON.") from error
        if not isinstance(asked, dict):
            raise ProviderError(400, None, "The body must be a JSON object.")
        return asked

    def read(self, body: bytes, path: str, strict: bool) -> Question:
        """The question in a request's body.

        Raises:
            ProviderError: if it is not a valid chat completion, or, if ``strict``, OpenAI would refuse it.
        """
        return self._question(self.asked(body), strict)

    def _question(self, asked: Mapping[str, Any], strict: bool) -> Question:
        if strict:
            check_question(asked, self.more_parameters)
        model, messages = asked.get("model"), asked.get("messages")
        if not isinstance(model, str):
            raise ProviderError(400, None, "You must provide a model parameter.", "model")
        if not isinstance(messages, list) or not messages:
            raise ProviderError(400, None, "'messages' must be a list that is not empty.", "messages")
        last, tokens = "", 0
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ProviderError(400, None, "A message must be an object with a role.", "messages")
            text, extra = _text(message.get("content"))
            tokens += TOKENS_PER_MESSAGE + count_tokens(text) + extra
            if message["role"] == "user":
                last = text or last
        if len(asked) == 2:
            return Question(model, last, tokens)
        if asked.get("tools"):
            tokens += count_tokens(json_codec.dumps(asked["tools"]).decode())
        choices = _whole(asked, "n")
        if choices is not None and not 1 <= choices <= MOST_CHOICES:
            raise ProviderError(400, None, f"'n' must be from 1 to {MOST_CHOICES}.", "n")
        limit = _whole(asked, "max_completion_tokens")
        wanted = asked.get("response_format")
        kind = wanted.get("type") if isinstance(wanted, dict) else None
        tool, schema = _chosen_tool(asked)
        if tool is None and kind == "json_schema" and isinstance(wanted, dict):
            schema = (wanted.get("json_schema") or {}).get("schema")
        options = asked.get("stream_options")
        return Question(
            model,
            last,
            tokens,
            stream=asked.get("stream") is True,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            choices=choices or 1,
            max_tokens=_whole(asked, "max_tokens") if limit is None else limit,
            tool=tool,
            schema=schema,
            json=kind in ("json_object", "json_schema"),
        )

    # ------------------------------------------------------------------------------------------ answers

    @staticmethod
    def _usage(said: Said, completion: int | None = None) -> dict[str, Any]:
        made = said.completion_tokens if completion is None else completion
        return {
            "prompt_tokens": said.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": said.prompt_tokens + made,
            "prompt_tokens_details": {"cached_tokens": said.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": min(made, said.reasoning_tokens)},
        }

    @staticmethod
    def _call_id(serial: int, index: int) -> str:
        return f"call_{serial:08x}{index:02x}"

    def completion(self, question: Question, said: Said, serial: int, created: int) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
        if said.tool_calls:
            message["tool_calls"] = [
                {
                    "id": self._call_id(serial, index),
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
                for index, (name, arguments) in enumerate(said.tool_calls)
            ]
        return json_codec.dumps(
            {
                "id": f"chatcmpl-{serial:08x}",
                "object": "chat.completion",
                "created": created,
                "model": question.model,
                "choices": [
                    {
                        "index": index,
                        "message": message,
                        "logprobs": None,
                        "finish_reason": said.finish_reason,
                    }
                    for index in range(question.choices)
                ],
                "usage": self._usage(said),
                "system_fingerprint": "fp_local",
            }
        )

    def events(
        self, question: Question, said: Said, serial: int, created: int, style: StreamStyle, pause: float
    ) -> Iterator[Piece]:
        """A stream's events, one piece each, with ``pause`` seconds before every token after the first."""
        end = b"\r\n\r\n" if style.crlf else b"\n\n"
        with_usage = style.usage and (question.include_usage or style.usage_in_every_chunk)
        indices = range(question.choices)
        made = sent = 0
        shape: dict[str, Any] = {
            "id": f"chatcmpl-{serial:08x}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": question.model,
            "system_fingerprint": "fp_local",
        }

        def event(choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> Iterator[bytes]:
            nonlocal sent
            shape["choices"] = choices
            if with_usage:
                shape["usage"] = usage
            yield b"data: " + json_codec.dumps(shape) + end
            sent += 1
            if style.comment_every and sent % style.comment_every == 0:
                yield b": keep-alive" + end

        def delta(index: int, brings: dict[str, Any], reason: str | None = None) -> Iterator[bytes]:
            running = self._usage(said, made) if style.usage_in_every_chunk else None
            return event(
                [{"index": index, "delta": brings, "logprobs": None, "finish_reason": reason}], running
            )

        for index in indices:
            first = {"role": "assistant", "content": None if said.tool_calls else "", "refusal": None}
            yield from delta(index, first)
        if pause and said.reasoning_tokens:
            yield pause * said.reasoning_tokens
        begun = -1
        for turn, (call, token) in enumerate(fragments(said)):
            if pause and turn:
                yield pause
            for index in indices:
                made += 1
                if call is None:
                    yield from delta(index, {"content": token})
                    continue
                if call != begun:
                    named = {"name": said.tool_calls[call][0], "arguments": ""}
                    opened = {"index": call, "id": self._call_id(serial, call), "type": "function"}
                    yield from delta(index, {"tool_calls": [{**opened, "function": named}]})
                yield from delta(index, {"tool_calls": [{"index": call, "function": {"arguments": token}}]})
            begun = -1 if call is None else call
        made = said.completion_tokens
        for index in indices:
            yield from delta(index, {}, said.finish_reason)
        if with_usage and question.include_usage:
            yield from event([], self._usage(said))
        if style.done:
            yield b"data: [DONE]" + end

    def models(self, names: tuple[str, ...], query: str = "") -> bytes:
        listed = [
            {"id": name, "object": "model", "created": 1700000000, "owned_by": "local"} for name in names
        ]
        return json_codec.dumps({"object": "list", "data": listed})

    # ------------------------------------------------------------------------------------------- errors

    def error(self, status: int, code: str | None, message: str | None, param: str | None = None) -> bytes:
        kind, usual_code, usual = _BY_STATUS.get(status, ("server_error", None, "The server had an error."))
        if 400 <= status < 500 and status not in _BY_STATUS:
            kind, usual = "invalid_request_error", "The request failed."
        if code in ERRORS:
            _, kind, usual, usual_param = ERRORS[code]
            param = param or usual_param
        return json_codec.dumps(
            {"error": {"message": message or usual, "type": kind, "param": param, "code": code or usual_code}}
        )

    def status_of(self, code: str) -> int:
        return ERRORS[code][0]

    def error_event(self, code: str) -> bytes:
        return b"data: " + self.error(ERRORS[code][0], code, None) + b"\n\n"

    def text_event(self, text: bytes) -> bytes:
        """A content event with these bytes unchanged, also such as no JSON encoder writes."""
        return (
            b'data: {"id":"x","object":"chat.completion.chunk","created":0,"model":"x","choices":'
            b'[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % text
        )

    def late_events(self) -> bytes:
        """Content and a second end mark, for a stream that continues after its end."""
        return self.text_event(b"late") + self.end_mark + b"\n\n"

    def broken_event(self) -> bytes:
        """An event whose JSON stops in the middle."""
        return b'data: {"id": "chatcmpl-1", "choi\n\n'

    def request_id(self, serial: int) -> tuple[str, str]:
        return "x-request-id", f"req_{serial:08x}"

    def limit_headers(self, state: Mapping[str, tuple[int, int, float]]) -> Headers:
        headers = []
        for kind, (limit, remaining, reset) in state.items():
            headers += [
                (f"x-ratelimit-limit-{kind}", str(limit)),
                (f"x-ratelimit-remaining-{kind}", str(max(0, remaining))),
                (f"x-ratelimit-reset-{kind}", go_duration(reset)),
            ]
        return tuple(headers)

    def refused(self, refused: LimitExceeded) -> tuple[Headers, bytes]:
        message = (
            f"Rate limit reached on {refused.kind} per min: Limit {refused.limit}. "
            f"Please try again in {go_duration(refused.retry_after)}."
        )
        body = {"message": message, "type": refused.kind, "param": None, "code": "rate_limit_exceeded"}
        headers = (
            ("retry-after", str(math.ceil(refused.retry_after))),
            ("retry-after-ms", str(math.ceil(refused.retry_after * 1000))),
        )
        return headers, json_codec.dumps({"error": body})
