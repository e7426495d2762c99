"""Questions to the Gemini format, and what it makes of them and of answers."""

from __future__ import annotations

import json
from typing import Any

import attrs

from fastroute import types
from fastroute.providers import Target, get

KEY = "local-secret-key"


class Secret:
    def reveal(self) -> str:
        return KEY


GEMINI = get("gemini")
TARGET = Target(
    endpoint="gemini/flash",
    provider="gemini",
    model="flash",
    upstream="gemini-2.5-flash",
    base_url="https://api.example.com/v1beta",
    key=Secret(),
    max_output=100,
)
NEWER = attrs.evolve(TARGET, upstream="gemini-3-pro-preview")
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def ask(messages: Any = HELLO, **params: Any) -> types.Request:
    return types.Request("flash", messages, params)


def sent(messages: Any = HELLO, target: Target = TARGET, **params: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(GEMINI.encode(ask(messages, **params), target))
    return body


def decoded(answer: Any, **params: Any) -> types.Completion:
    return GEMINI.decode(json.dumps(answer).encode(), ask(**params), TARGET)


def answer(*parts: dict[str, Any], finish: str | None = "STOP", **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "responseId": "r1", **more}


def call(identity: str, name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}, **more}
