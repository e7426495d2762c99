"""The parameters of a chat completion that are known: OpenAI's, and common ones of other servers.

A parameter that is not here is sent all the same. The table is for messages about wrong types and misspelt
names, and for type checkers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict

from attrs import frozen


class MessageLike(Protocol):
    """A message as an object, such as that of an earlier answer, of fastroute or of the OpenAI SDK."""

    def to_dict(self) -> Mapping[str, Any]: ...


class TimeoutLike(Protocol):
    """The ``Timeout`` of httpx and of the OpenAI SDK."""

    @property
    def connect(self) -> float | None: ...
    @property
    def read(self) -> float | None: ...
    @property
    def pool(self) -> float | None: ...


Messages = Sequence[Mapping[str, Any] | MessageLike]


class FurtherParams(TypedDict, total=False):
    """The keyword arguments of ``parse`` beside fastroute's own and ``response_format``."""

    audio: Mapping[str, Any] | None
    frequency_penalty: float | None
    function_call: str | Mapping[str, Any] | None
    functions: Sequence[Mapping[str, Any]] | None
    logit_bias: Mapping[str, int] | None
    logprobs: bool | None
    max_completion_tokens: int | None
    max_tokens: int | None
    metadata: Mapping[str, str] | None
    modalities: Sequence[str] | None
    moderation: Mapping[str, Any] | None
    n: int | None
    parallel_tool_calls: bool | None
    prediction: Mapping[str, Any] | None
    presence_penalty: float | None
    prompt_cache_key: str | None
    prompt_cache_options: Mapping[str, Any] | None
    prompt_cache_retention: str | None
    reasoning_effort: str | None
    safety_identifier: str | None
    seed: int | None
    service_tier: str | None
    stop: str | Sequence[str] | None
    store: bool | None
    stream_options: Mapping[str, Any] | None
    temperature: float | None
    tool_choice: str | Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    top_logprobs: int | None
    top_p: float | None
    user: str | None
    verbosity: str | None
    web_search_options: Mapping[str, Any] | None
    # Of other servers: Anthropic, Gemini, vLLM, SGLang, llama.cpp, OpenRouter, Mistral, DeepSeek, Qwen.
    chat_template_kwargs: Mapping[str, Any] | None
    enable_thinking: bool | None
    guided_choice: Sequence[str] | None
    guided_grammar: str | None
    guided_json: str | Mapping[str, Any] | None
    guided_regex: str | None
    ignore_eos: bool | None
    include_reasoning: bool | None
    min_p: float | None
    min_tokens: int | None
    output_config: Mapping[str, Any] | None
    plugins: Sequence[Mapping[str, Any]] | None
    provider: Mapping[str, Any] | None
    random_seed: int | None
    reasoning: Mapping[str, Any] | None
    repetition_penalty: float | None
    safe_prompt: bool | None
    thinking: Mapping[str, Any] | None
    top_a: float | None
    top_k: int | None
    # The OpenAI SDK's own arguments.
    extra_body: Mapping[str, Any] | None
    extra_headers: Mapping[str, str] | None
    extra_query: Mapping[str, Any] | None
    max_retries: int | None


class CompletionParams(FurtherParams, total=False):
    """The keyword arguments of ``create`` beside fastroute's own, for type checkers."""

    response_format: Mapping[str, Any] | type[Any] | None


@frozen
class Kind:
    """The values that a parameter may have.

    Attributes:
        words: what they are, for a message.
        types: the types that are passed on without a further look.
        refused: types that are certainly wrong. Others are left to the encoder, such as numbers of numpy.
    """

    words: str
    types: tuple[type, ...]
    refused: tuple[type, ...] = ()

    def allows(self, value: Any) -> bool:
        return type(value) in self.types or not isinstance(value, self.refused)


_TEXTS = (str, bytes, bytearray)
_NUMBER = Kind("a number", (int, float), (*_TEXTS, bool, list, tuple, Mapping))
_INTEGER = Kind("an integer", (int,), (*_TEXTS, bool, float, list, tuple, Mapping))
_FLAG = Kind("True or False", (bool,), (*_TEXTS, int, float, list, tuple, Mapping))
_STRING = Kind("a string", (str,), (bytes, bool, int, float, list, tuple, Mapping))
_LIST = Kind("a list", (list, tuple), (*_TEXTS, bool, int, float, Mapping))
_MAPPING = Kind("a mapping", (dict,), (*_TEXTS, bool, int, float, list, tuple))
_STRINGS = Kind("a string or a list of strings", (str, list, tuple), (bytes, bool, int, float, Mapping))
_CHOICE = Kind("a string or a mapping", (str, dict), (bytes, bool, int, float, list, tuple))
_SHAPE = Kind(
    'a mapping like {"type": "json_object"}, or a pydantic model', (dict,), (*_TEXTS, bool, int, float, list)
)
# What other servers take is theirs to say.
_ANYTHING = Kind("JSON", (bool, int, float, str, list, tuple, dict))

LIMITS = ("max_tokens", "max_completion_tokens")

PARAMETERS: Mapping[str, Kind] = {
    "audio": _MAPPING,
    "frequency_penalty": _NUMBER,
    "function_call": _CHOICE,
    "functions": _LIST,
    "logit_bias": _MAPPING,
    "logprobs": _FLAG,
    "max_completion_tokens": _INTEGER,
    "max_tokens": _INTEGER,
    "metadata": _MAPPING,
    "modalities": _LIST,
    "moderation": _MAPPING,
    "n": _INTEGER,
    "parallel_tool_calls": _FLAG,
    "prediction": _MAPPING,
    "presence_penalty": _NUMBER,
    "prompt_cache_key": _STRING,
    "prompt_cache_options": _MAPPING,
    "prompt_cache_retention": _STRING,
    "reasoning_effort": _STRING,
    "response_format": _SHAPE,
    "safety_identifier": _STRING,
    "seed": _INTEGER,
    "service_tier": _STRING,
    "stop": _STRINGS,
    "store": _FLAG,
    "stream_options": _MAPPING,
    "temperature": _NUMBER,
    "tool_choice": _CHOICE,
    "tools": _LIST,
    "top_logprobs": _INTEGER,
    "top_p": _NUMBER,
    "user": _STRING,
    "verbosity": _STRING,
    "web_search_options": _MAPPING,
    **dict.fromkeys(
        (
            "chat_template_kwargs",
            "enable_thinking",
            "guided_choice",
            "guided_grammar",
            "guided_json",
            "guided_regex",
            "ignore_eos",
            "include_reasoning",
            "min_p",
            "min_tokens",
            "output_config",
            "plugins",
            "provider",
            "random_seed",
            "reasoning",
            "repetition_penalty",
            "safe_prompt",
            "thinking",
            "top_a",
            "top_k",
        ),
        _ANYTHING,
    ),
}
