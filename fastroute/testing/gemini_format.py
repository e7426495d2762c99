"""The server side of Gemini's generateContent: paths, key header, requests, answers, events and errors.

It is strict: it refuses what Google's API would refuse, such as unknown fields. Streams are server-sent
events only, requested with ``?alt=sse``, and have no end mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import parse_qs, unquote

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
from .openai_format import ERRORS, StreamStyle
from .rate_limits import LimitExceeded
from .wire import Headers, Piece

MOST_CANDIDATES = 8
MOST_STOPS = 5
PAGE = 50

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_MESSAGES = {
    "context_length_exceeded": (
        "The input token count (9000) exceeds the maximum number of tokens allowed (8192)."
    ),
    "content_filter": "The prompt violates the content policy.",
    "invalid_api_key": "API key not valid. Please pass a valid API key.",
    "insufficient_quota": "Your prepayment credits are depleted.",
    "credit_balance_exhausted": "Your prepayment credits are depleted.",
    "organization_spend_limit_exceeded": "Your organization has exceeded its monthly spending cap.",
    "project_spend_limit_exceeded": "Your project has exceeded its monthly spending cap.",
    "organization_usage_limit_exceeded": "Your organization has exceeded its monthly spending cap.",
}
_FIELDS = frozenset(
    {
        "model",
        "contents",
        "systemInstruction",
        "tools",
        "toolConfig",
        "safetySettings",
        "generationConfig",
        "cachedContent",
        "labels",
        "serviceTier",
    }
)
_GENERATION = frozenset(
    {
        "stopSequences",
        "responseMimeType",
        "responseSchema",
        "responseJsonSchema",
        "responseModalities",
        "candidateCount",
        "maxOutputTokens",
        "temperature",
        "topP",
        "topK",
        "seed",
        "presencePenalty",
        "frequencyPenalty",
        "responseLogprobs",
        "logprobs",
        "thinkingConfig",
        "speechConfig",
        "mediaResolution",
    }
)
_DECLARATION = frozenset(
    {
        "name",
        "description",
        "behavior",
        "parameters",
        "parametersJsonSchema",
        "response",
        "responseJsonSchema",
    }
)
_PARTS = frozenset(
    {
        "text",
        "thought",
        "thoughtSignature",
        "inlineData",
        "fileData",
        "functionCall",
        "functionResponse",
        "videoMetadata",
        "mediaResolution",
    }
)
_PATH = re.compile(
    r"/v1(?:beta|alpha)?/models(?:/(?P<name>[^/:]+):(?P<action>generateContent|streamGenerateContent))?"
)
_UNDERLINE = re.compile(r"_([a-z])")
_MODES = ("AUTO", "ANY", "NONE", "VALIDATED")


def _refuse(message: str) -> ProviderError:
    return ProviderError(400, None, message)


def _object(value: Any, path: str, known: frozenset[str] | None = None) -> dict[str, Any]:
    """An object's fields by their names in JSON; Google's API also accepts ``snake_case`` names."""
    if not isinstance(value, dict):
        raise _refuse(f"Invalid value at '{path}': must be an object.")
    fields = {_UNDERLINE.sub(lambda found: found[1].upper(), name): item for name, item in value.items()}
    for name in fields:
        if known is not None and name not in known:
            raise _refuse(f"Invalid JSON payload received. Unknown name {name!r} at '{path}'.")
    return fields


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _refuse(f"Invalid value at '{path}': must be a list.")
    return value


class GeminiServerFormat:
    """generateContent and streamGenerateContent of Google's API."""

    base_path = "/v1beta"
    end_mark = b""

    def route(self, method: str, path: str) -> Literal["chat", "models"] | None:
        found = _PATH.fullmatch(path)
        if found is None:
            return None
        if found["name"] is None:
            return "models" if method == "GET" else None
        return "chat" if method == "POST" else None

    def key(self, headers: Mapping[str, str]) -> str | None:
        return headers.get("x-goog-api-key")

    # ---------------------------------------------------------------------------------------- questions

    def read(self, body: bytes, path: str, strict: bool) -> Question:
        """The question in a request's address and body.

        Raises:
            ProviderError: if Google's API would refuse it.
        """
        address, _, query = path.partition("?")
        found = _PATH.fullmatch(address)
        name = unquote(found["name"]) if found is not None else ""
        stream = found is not None and found["action"].startswith("stream")
        if stream and parse_qs(query).get("alt") != ["sse"]:
            raise _refuse("This server streams events only: ask with ?alt=sse.")
        if "key" in parse_qs(query):
            raise _refuse("This server takes no key in the address: it belongs into x-goog-api-key.")
        try:
            asked = json_codec.loads(body)
        except json_codec.JSONDecodeError as error:
            raise _refuse("Invalid JSON payload received.") from error
        asked = _object(asked, "", _FIELDS)
        last, tokens = self._contents(asked)
        if "systemInstruction" in asked:
            system = _object(asked["systemInstruction"], "system_instruction")
            tokens += self._parts(system, "system_instruction", {})[1]
        generation = _object(asked.get("generationConfig") or {}, "generation_config", _GENERATION)
        choices = self._whole(generation, "candidateCount", 1, MOST_CANDIDATES) or 1
        stops = _list(generation.get("stopSequences") or [], "generation_config.stop_sequences")
        if len(stops) > MOST_STOPS:
            raise _refuse(f"At most {MOST_STOPS} stop sequences are allowed.")
        thinking = generation.get("thinkingConfig") or {}
        if "thinkingBudget" in thinking and "thinkingLevel" in thinking:
            raise _refuse("You can only set one of thinking budget and thinking level.")
        kind = generation.get("responseMimeType")
        schema = generation.get("responseJsonSchema") or generation.get("responseSchema")
        if schema is not None and kind != "application/json":
            raise _refuse("A response schema is only supported with response mime type application/json.")
        tool, parameters = self._tool(asked)
        if asked.get("tools"):
            tokens += count_tokens(json_codec.dumps(asked["tools"]).decode())
        return Question(
            name,
            last,
            tokens,
            stream=stream,
            include_usage=True,
            choices=choices,
            max_tokens=self._whole(generation, "maxOutputTokens", 1, 1 << 31),
            tool=tool,
            schema=parameters if tool is not None else schema,
            json=kind == "application/json",
        )

    @staticmethod
    def _whole(fields: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
        value = fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _refuse(f"Invalid value at 'generation_config.{name}': must be from {least} to {most}.")
        return value

    def _contents(self, asked: Mapping[str, Any]) -> tuple[str, int]:
        contents = _list(asked.get("contents") or [], "contents")
        if not contents:
            raise _refuse("* GenerateContentRequest.contents: contents is not specified")
        last, tokens = "", 0
        open_calls: list[str] = []
        for place, each in enumerate(contents):
            path = f"contents[{place}]"
            content = _object(each, path, frozenset({"role", "parts"}))
            role = content.get("role", "user")
            if role not in ("user", "model"):
                raise _refuse("Please use a valid role: user, model.")
            found: dict[str, list[str]] = {"call": [], "response": []}
            text, extra = self._parts(content, path, found)
            tokens += TOKENS_PER_MESSAGE + extra
            if len(open_calls) != len(found["response"]):
                raise _refuse(
                    "Please ensure that the number of function response parts is equal to the number of "
                    "function call parts of the function call turn."
                )
            open_calls = found["call"]
            if role == "user" and text:
                last = text
        return last, tokens

    @staticmethod
    def _parts(content: Mapping[str, Any], path: str, found: dict[str, list[str]]) -> tuple[str, int]:
        """The text of the parts and the tokens of all of them; adds names of functions to ``found``."""
        texts, tokens = [], 0
        for place, each in enumerate(_list(content.get("parts"), f"{path}.parts")):
            where = f"{path}.parts[{place}]"
            part = _object(each, where, _PARTS)
            data = [name for name in part if name not in ("thought", "thoughtSignature")]
            if not data:
                raise _refuse(f"{where}: required oneof field 'data' must have one initialized field")
            if "text" in part:
                if not isinstance(part["text"], str):
                    raise _refuse(f"Invalid value at '{where}.text' (TYPE_STRING)")
                texts.append(part["text"])
            for kind, needed in (("inlineData", "data"), ("fileData", "fileUri")):
                if kind in part:
                    media = _object(part[kind], f"{where}.{kind}")
                    if not media.get("mimeType") or not media.get(needed):
                        raise _refuse(f"{where}.{kind}: mimeType and {needed} must be set")
                    tokens += TOKENS_PER_IMAGE
            for kind, holds, inner in (
                ("functionCall", "call", "args"),
                ("functionResponse", "response", "response"),
            ):
                if kind in part:
                    function = _object(part[kind], f"{where}.{kind}")
                    if not function.get("name"):
                        raise _refuse(f"{where}.{kind}.name: Name cannot be empty.")
                    value = _object(function.get(inner, {}), f"{where}.{kind}.{inner}")
                    tokens += count_tokens(json_codec.dumps(value).decode())
                    found.setdefault(holds, []).append(function["name"])
        text = "".join(texts)
        return text, tokens + count_tokens(text)

    @staticmethod
    def _tool(asked: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any] | None]:
        """The function that must be called, with the schema of its arguments, or None twice."""
        declared: dict[str, Mapping[str, Any]] = {}
        for place, each in enumerate(_list(asked.get("tools") or [], "tools")):
            tool = _object(each, f"tools[{place}]")
            for number, each_function in enumerate(_list(tool.get("functionDeclarations") or [], "tools")):
                where = f"tools[{place}].function_declarations[{number}]"
                function = _object(each_function, where, _DECLARATION)
                name = function.get("name")
                if not isinstance(name, str) or not name:
                    raise _refuse(f"{where}.name: Invalid function name.")
                if "parameters" in function and "parametersJsonSchema" in function:
                    raise _refuse(f"{where}: parameters and parametersJsonSchema exclude each other.")
                declared[name] = function.get("parametersJsonSchema") or function.get("parameters") or {}
        config = _object(asked.get("toolConfig") or {}, "tool_config")
        calling = _object(config.get("functionCallingConfig") or {}, "tool_config.function_calling_config")
        mode = calling.get("mode", "AUTO")
        if mode not in _MODES:
            raise _refuse("Invalid value at 'tool_config.function_calling_config.mode'")
        allowed = calling.get("allowedFunctionNames") or []
        if allowed and mode not in ("ANY", "VALIDATED"):
            raise _refuse("Allowed function names should only be set when the mode is ANY or VALIDATED.")
        unknown = [name for name in allowed if name not in declared]
        if unknown:
            raise _refuse("allowed_function_names holds a name that no function declaration has.")
        if mode != "ANY":
            return None, None
        names = allowed or list(declared)
        if not names:
            raise _refuse("Function calling mode ANY needs function declarations.")
        return names[0], declared[names[0]]

    # ------------------------------------------------------------------------------------------ answers

    @staticmethod
    def _usage(said: Said, completion: int | None = None) -> dict[str, Any]:
        made = said.completion_tokens if completion is None else completion
        thoughts = min(made, said.reasoning_tokens)
        usage = {
            "promptTokenCount": said.prompt_tokens,
            "candidatesTokenCount": made - thoughts,
            "totalTokenCount": said.prompt_tokens + made,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": said.prompt_tokens}],
        }
        if thoughts:
            usage["thoughtsTokenCount"] = thoughts
        if said.cached_tokens:
            usage["cachedContentTokenCount"] = said.cached_tokens
        return usage

    @staticmethod
    def _finish(said: Said) -> str:
        usual = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
        return usual.get(said.finish_reason, said.finish_reason)

    @staticmethod
    def _call(serial: int, index: int, name: str, arguments: str) -> dict[str, Any]:
        call = {"id": f"fc_{serial:08x}{index:02x}", "name": name, "args": json_codec.loads(arguments)}
        return {"functionCall": call, "thoughtSignature": f"c2lnbmVk{serial:04d}{index:04d}"}

    @staticmethod
    def _answer(question: Question, said: Said, serial: int, candidates: list[Any], made: int | None) -> Any:
        return {
            "candidates": candidates,
            "usageMetadata": GeminiServerFormat._usage(said, made),
            "modelVersion": question.model,
            "responseId": f"resp{serial:08x}",
        }

    def completion(self, question: Question, said: Said, serial: int, created: int) -> bytes:
        parts: list[dict[str, Any]] = []
        if said.content is not None:
            parts.append({"text": said.content})
        parts += [self._call(serial, index, *call) for index, call in enumerate(said.tool_calls)]
        content = {"role": "model", "parts": parts}
        candidates = [
            {"content": content, "finishReason": self._finish(said), "index": index}
            for index in range(question.choices)
        ]
        return json_codec.dumps(self._answer(question, said, serial, candidates, None))

    def events(
        self, question: Question, said: Said, serial: int, created: int, style: StreamStyle, pause: float
    ) -> Iterator[Piece]:
        """A stream's events, one piece each, with ``pause`` seconds before every token after the first.

        The first event has the role and no text. Each token of text is one event, and so is each complete
        function call.
        """
        end = b"\r\n\r\n" if style.crlf else b"\n\n"
        sent = 0
        made = said.reasoning_tokens

        def event(parts: list[dict[str, Any]], reason: str | None = None) -> Iterator[bytes]:
            nonlocal sent
            candidates = []
            for index in range(question.choices):
                candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": index}
                if reason is not None:
                    candidate["finishReason"] = reason
                candidates.append(candidate)
            total = said.completion_tokens if reason is not None else made
            answer = self._answer(question, said, serial, candidates, total)
            if not style.usage:
                del answer["usageMetadata"]
            yield b"data: " + json_codec.dumps(answer) + end
            sent += 1
            if style.comment_every and sent % style.comment_every == 0:
                yield b": keep-alive" + end

        yield from event([{"text": ""}])
        if pause and said.reasoning_tokens:
            yield pause * said.reasoning_tokens
        begun = -1
        for turn, (call, token) in enumerate(fragments(said)):
            if pause and turn:
                yield pause
            made += question.choices
            if call is None:
                yield from event([{"text": token}])
            elif call != begun:
                begun = call
                yield from event([self._call(serial, call, *said.tool_calls[call])])
        yield from event([{"text": ""}], self._finish(said))

    def models(self, names: tuple[str, ...], query: str = "") -> bytes:
        """One page of the models, with Google's ``pageSize`` and ``pageToken``."""
        asked = parse_qs(query)
        size = min(int(asked.get("pageSize", [str(PAGE)])[0]), 1000)
        start = int(asked.get("pageToken", ["0"])[0])
        listed = [
            {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": ["generateContent"]}
            for name in names[start : start + size]
        ]
        page: dict[str, Any] = {"models": listed}
        if start + size < len(names):
            page["nextPageToken"] = str(start + size)
        return json_codec.dumps(page)

    # ------------------------------------------------------------------------------------------- errors

    def error(self, status: int, code: str | None, message: str | None, param: str | None = None) -> bytes:
        usual = _MESSAGES.get(code or "") or (ERRORS[code][2] if code in ERRORS else "The request failed.")
        error: dict[str, Any] = {
            "code": status,
            "message": _MESSAGES.get(code or "") or message or usual,
            "status": _STATUSES.get(status, "UNKNOWN"),
        }
        if code == "invalid_api_key":
            error["details"] = [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "API_KEY_INVALID",
                    "domain": "googleapis.com",
                }
            ]
        return json_codec.dumps({"error": error})

    def status_of(self, code: str) -> int:
        # Google treats a wrong key as an invalid argument.
        return 400 if code == "invalid_api_key" else ERRORS[code][0]

    def error_event(self, code: str) -> bytes:
        return b"data: " + self.error(self.status_of(code), code, None) + b"\n\n"

    def text_event(self, text: bytes) -> bytes:
        """A content event with these bytes unchanged, also such as no JSON encoder writes."""
        return (
            b'data: {"candidates":[{"content":{"role":"model","parts":[{"text":"%b"}]},"index":0}],'
            b'"modelVersion":"x"}\n\n' % text
        )

    def late_events(self) -> bytes:
        """Content for a candidate that has already finished."""
        return self.text_event(b"late")

    def broken_event(self) -> bytes:
        """An event whose JSON stops in the middle."""
        return b'data: {"candidates": [{"conte\n\n'

    def request_id(self, serial: int) -> tuple[str, str]:
        return "x-request-id", f"gemini-{serial:08x}"

    def limit_headers(self, state: Mapping[str, tuple[int, int, float]]) -> Headers:
        return ()

    def refused(self, refused: LimitExceeded) -> tuple[Headers, bytes]:
        delay = f"{refused.retry_after:.9f}".rstrip("0").rstrip(".") + "s"
        message = f"You exceeded your current quota: {refused.kind} per minute. Please retry in {delay}."
        error = {
            "code": 429,
            "message": message,
            "status": "RESOURCE_EXHAUSTED",
            "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}],
        }
        return (), json_codec.dumps({"error": error})
