"""The server side of Anthropic's Messages API: paths, key header, answers, events, errors, limit headers.

Requests are read in `anthropic_question.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any, Literal
from urllib.parse import parse_qs

from fastroute import json_codec

from .answer_source import Question, Said, fragments
from .anthropic_question import question_in
from .openai_format import StreamStyle
from .rate_limits import LimitExceeded
from .wire import Headers, Piece

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_THOUGHT = "Let me think."
_SIGNATURE = "bG9jYWw="

# By status: type and message.
_BY_STATUS = {
    400: ("invalid_request_error", "The request is invalid."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "There is an issue with billing or payment."),
    403: ("permission_error", "This key may not use that."),
    404: ("not_found_error", "Not found"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your rate limit."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "The request timed out."),
    529: ("overloaded_error", "Overloaded"),
}
_SPENT = (
    "rate_limit_error",
    "You have reached your specified API usage limits.",
    "enforced_spend_limit_reached",
)
# Anthropic's counterparts of OpenAI's error codes: status, type, message, the code in the details.
_BY_CODE: dict[str, tuple[int, str, str, str | None]] = {
    "context_length_exceeded": (
        400,
        "invalid_request_error",
        "prompt is too long: 210042 tokens > 200000 maximum",
        None,
    ),
    "content_filter": (400, "invalid_request_error", "Output blocked by content filtering policy", None),
    "invalid_api_key": (401, "authentication_error", "invalid x-api-key", None),
    "model_not_found": (404, "not_found_error", "model: it does not exist or is not yours to use", None),
    "unsupported_parameter": (400, "invalid_request_error", "Extra inputs are not permitted", None),
    "rate_limit_exceeded": (429, *_BY_STATUS[429], None),
    "slow_down": (429, "rate_limit_error", "Your usage grew too fast.", "ramp_limit_exceeded"),
    "insufficient_quota": (429, *_SPENT),
    "credit_balance_exhausted": (
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the API.",
        None,
    ),
    "organization_spend_limit_exceeded": (429, *_SPENT),
    "project_spend_limit_exceeded": (429, *_SPENT),
    "organization_usage_limit_exceeded": (429, *_SPENT),
    "server_error": (500, *_BY_STATUS[500], None),
    "overloaded": (529, *_BY_STATUS[529], None),
}


class AnthropicServerFormat:
    """The Messages API of version 2023-06-01."""

    base_path = ""
    end_mark = b"event: message_stop"

    def route(self, method: str, path: str) -> Literal["chat", "models"] | None:
        if method == "POST" and path == "/v1/messages":
            return "chat"
        return "models" if method == "GET" and path == "/v1/models" else None

    def key(self, headers: Mapping[str, str]) -> str | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else None)

    def read(self, body: bytes, path: str, strict: bool) -> Question:
        """The question in a request's body.

        Raises:
            ProviderError: if Anthropic would refuse it.
        """
        return question_in(body)

    # ------------------------------------------------------------------------------------------ answers

    @staticmethod
    def _input(said: Said) -> dict[str, Any]:
        return {
            "input_tokens": said.prompt_tokens - said.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": said.cached_tokens,
        }

    def _usage(self, said: Said) -> dict[str, Any]:
        """The usage; Anthropic counts cached input beside the other input, and thinking inside the output."""
        details = {"thinking_tokens": min(said.reasoning_tokens, said.completion_tokens)}
        return {
            **self._input(said),
            "output_tokens": said.completion_tokens,
            "output_tokens_details": details,
        }

    @staticmethod
    def _call_id(serial: int, index: int) -> str:
        return f"toolu_{serial:08x}{index:02x}"

    @staticmethod
    def _stop(said: Said) -> dict[str, Any]:
        reason = _STOP_REASONS.get(said.finish_reason, said.finish_reason)
        details = None
        if reason == "refusal":
            details = {"type": "refusal", "category": None, "explanation": "This cannot be answered."}
        return {"stop_reason": reason, "stop_sequence": None, "stop_details": details}

    def completion(self, question: Question, said: Said, serial: int, created: int) -> bytes:
        content: list[dict[str, Any]] = []
        if said.reasoning_tokens:
            content.append({"type": "thinking", "thinking": _THOUGHT, "signature": _SIGNATURE})
        if said.content:
            content.append({"type": "text", "text": said.content})
        for index, (name, arguments) in enumerate(said.tool_calls):
            call = {"type": "tool_use", "id": self._call_id(serial, index), "name": name}
            content.append({**call, "input": json_codec.loads(arguments)})
        return json_codec.dumps(
            {
                "id": f"msg_{serial:08x}",
                "type": "message",
                "role": "assistant",
                "model": question.model,
                "content": content,
                **self._stop(said),
                "usage": self._usage(said),
            }
        )

    def events(
        self, question: Question, said: Said, serial: int, created: int, style: StreamStyle, pause: float
    ) -> Iterator[Piece]:
        """A stream's pieces, with ``pause`` seconds before every token after the first.

        Events without a token are sent together with a neighbour, so that the pieces correspond in all
        formats: the first opens the answer, then each has one token, then the finish reason, then the end
        mark.
        """
        line = b"\r\n" if style.crlf else b"\n"
        sent = 0

        def event(kind: str, **fields: Any) -> bytes:
            nonlocal sent
            data = json_codec.dumps({"type": kind, **fields})
            made = b"event: " + kind.encode() + line + b"data: " + data + line + line
            sent += 1
            if style.comment_every and sent % style.comment_every == 0:
                made += b": keep-alive" + line + line
            return made

        def delta(index: int, kind: str, name: str, text: str) -> bytes:
            return event("content_block_delta", index=index, delta={"type": kind, name: text})

        message: dict[str, Any] = {
            "id": f"msg_{serial:08x}",
            "type": "message",
            "role": "assistant",
            "model": question.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self._input(said), "output_tokens": 1},
        }
        held = event("message_start", message=message)
        index = -1
        if said.reasoning_tokens:
            index = 0
            block = {"type": "thinking", "thinking": "", "signature": ""}
            held += event("content_block_start", index=0, content_block=block)
            held += event("ping")
            held += delta(0, "thinking_delta", "thinking", _THOUGHT)
            held += delta(0, "signature_delta", "signature", _SIGNATURE)
            held += event("content_block_stop", index=0)
        if said.content:
            index += 1
            held += event("content_block_start", index=index, content_block={"type": "text", "text": ""})
            held += event("ping")
        yield held
        if pause and said.reasoning_tokens:
            yield pause * said.reasoning_tokens
        begun: int | None = None
        for turn, (call, token) in enumerate(fragments(said)):
            if pause and turn:
                yield pause
            if call is None:
                yield delta(index, "text_delta", "text", token)
                continue
            if call != begun:
                held = event("content_block_stop", index=index) if index >= 0 and turn else b""
                index, begun = index + 1, call
                opened = {"type": "tool_use", "id": self._call_id(serial, call), "input": {}}
                opened["name"] = said.tool_calls[call][0]
                yield held + event("content_block_start", index=index, content_block=opened)
            yield delta(index, "input_json_delta", "partial_json", token)
        closing = event("content_block_stop", index=index) if said.content or said.tool_calls else b""
        usage = self._usage(said) if style.usage else {"output_tokens": None}
        yield closing + event("message_delta", delta=self._stop(said), usage=usage)
        if style.done:
            yield event("message_stop")

    def models(self, names: tuple[str, ...], query: str = "") -> bytes:
        """One page of the models, with Anthropic's ``limit`` and ``after_id``."""
        asked = parse_qs(query)
        after = asked.get("after_id", [""])[0]
        start = names.index(after) + 1 if after in names else 0
        end = start + min(int(asked.get("limit", ["20"])[0]), 1000)
        more, names = end < len(names), names[start:end]
        listed = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"}
            for name in names
        ]
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return json_codec.dumps({"data": listed, "has_more": more, **ends})

    # ------------------------------------------------------------------------------------------- errors

    def error(self, status: int, code: str | None, message: str | None, param: str | None = None) -> bytes:
        fallback = ("invalid_request_error", "The request failed.") if status < 500 else _BY_STATUS[500]
        kind, usual = _BY_STATUS.get(status, fallback)
        error: dict[str, Any] = {"type": kind, "message": message or usual}
        if code in _BY_CODE:
            _, kind, usual, detail = _BY_CODE[code]
            error = {"type": kind, "message": message or usual}
            if detail is not None:
                error["details"] = {"error_code": detail}
        return json_codec.dumps({"type": "error", "error": error})

    def status_of(self, code: str) -> int:
        return _BY_CODE[code][0]

    def error_event(self, code: str) -> bytes:
        return b"event: error\ndata: " + self.error(self.status_of(code), code, None) + b"\n\n"

    def text_event(self, text: bytes) -> bytes:
        """A content event with these bytes unchanged, also such as no JSON encoder writes."""
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":"%b"}}\n\n' % text
        )

    def late_events(self) -> bytes:
        """Content and a second end mark, for a stream that continues after its end."""
        return self.text_event(b"late") + self.end_mark + b'\ndata: {"type":"message_stop"}\n\n'

    def broken_event(self) -> bytes:
        """An event whose JSON stops in the middle."""
        return b'event: content_block_delta\ndata: {"type": "content_blo\n\n'

    def request_id(self, serial: int) -> tuple[str, str]:
        return "request-id", f"req_{serial:08x}"

    def limit_headers(self, state: Mapping[str, tuple[int, int, float]]) -> Headers:
        now = datetime.now(timezone.utc)
        # The resets are times by this clock.
        headers = [("date", format_datetime(now, usegmt=True))] if state else []
        for kind, (limit, remaining, reset) in state.items():
            moment = now + timedelta(seconds=math.ceil(reset))
            headers += [
                (f"anthropic-ratelimit-{kind}-limit", str(limit)),
                (f"anthropic-ratelimit-{kind}-remaining", str(max(0, remaining))),
                (f"anthropic-ratelimit-{kind}-reset", moment.strftime("%Y-%m-%dT%H:%M:%SZ")),
            ]
        return tuple(headers)

    def refused(self, refused: LimitExceeded) -> tuple[Headers, bytes]:
        message = f"This request would exceed your limit of {refused.limit} {refused.kind} per minute."
        return (("retry-after", str(math.ceil(refused.retry_after))),), self.error(429, None, message)
