"""The server side of Azure OpenAI: OpenAI's bodies at Azure's addresses, in both layouts.

Azure adds results of its content filter to answers, a first chunk without choices to streams, and limit
headers with ``-1`` for unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import parse_qs, unquote

from fastroute import json_codec

from .answer_source import ProviderError, Question, Said
from .openai_format import OpenAIServerFormat, StreamStyle
from .wire import Headers, Piece

_SAFE = {
    name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")
}
_PROMPT = [{"prompt_index": 0, "content_filter_results": _SAFE}]
_CHAT = "/chat/completions"


class AzureServerFormat(OpenAIServerFormat):
    """Chat completions of deployments, and of models below ``/openai/v1``."""

    base_path = ""
    more_parameters = frozenset({"data_sources", "user_security_context"})

    def route(self, method: str, path: str) -> Literal["chat", "models"] | None:
        if method == "GET":
            return "models" if path in ("/openai/models", "/openai/v1/models") else None
        known = path == "/openai/v1" + _CHAT or self._deployment(path) is not None
        return "chat" if method == "POST" and known else None

    @staticmethod
    def _deployment(path: str) -> str | None:
        name = path.removeprefix("/openai/deployments/").removesuffix(_CHAT)
        whole = path == f"/openai/deployments/{name}{_CHAT}"
        return unquote(name) if whole and name and "/" not in name else None

    def key(self, headers: Mapping[str, str]) -> str | None:
        return headers.get("api-key") or super().key(headers)

    def read(self, body: bytes, path: str, strict: bool) -> Question:
        address, _, query = path.partition("?")
        deployment = self._deployment(address)
        if deployment is None:
            return super().read(body, path, strict)
        if not parse_qs(query).get("api-version"):
            raise ProviderError(404, "404", "Resource not found: the api-version is missing.")
        return self._question({**self.asked(body), "model": deployment}, strict)

    def completion(self, question: Question, said: Said, serial: int, created: int) -> bytes:
        answer = json_codec.loads(super().completion(question, said, serial, created))
        answer["prompt_filter_results"] = _PROMPT
        for choice in answer["choices"]:
            choice["content_filter_results"] = _SAFE
        return json_codec.dumps(answer)

    def events(
        self, question: Question, said: Said, serial: int, created: int, style: StreamStyle, pause: float
    ) -> Iterator[Piece]:
        notes: dict[str, Any] = {
            "id": "",
            "object": "",
            "created": 0,
            "model": "",
            "choices": [],
            "prompt_filter_results": _PROMPT,
        }
        yield b"data: " + json_codec.dumps(notes) + (b"\r\n\r\n" if style.crlf else b"\n\n")
        yield from super().events(question, said, serial, created, style, pause)

    def limit_headers(self, state: Mapping[str, tuple[int, int, float]]) -> Headers:
        headers = [
            (f"x-ratelimit-remaining-{kind}", str(max(0, remaining)))
            for kind, (_, remaining, _) in state.items()
        ]
        missing = [
            (f"x-ratelimit-remaining-{kind}", "-1") for kind in ("requests", "tokens") if kind not in state
        ]
        return (*headers, *missing)
