"""The OpenAI format, a target with a key, and an answer that is right."""

from __future__ import annotations

from typing import Any

from fastroute.providers import Target, get

KEY = "local-secret-key"


class Secret:
    def __init__(self, text: str = KEY) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text


OPENAI = get("openai")
TARGET = Target(
    endpoint="openai/gpt",
    provider="openai",
    model="gpt",
    upstream="gpt-2025",
    base_url="https://api.example.com/v1",
    key=Secret(),
    max_output=100,
)
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "gpt-2025-04",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}
