"""Makes a local provider's answers and counts tokens, independent of the wire format.

Content is deterministic: echo, a fixed text, a number of tokens, a function, tool calls, or JSON by a schema.

The token rule: four characters are one token, and the last token may be shorter. A message adds four tokens,
an image part 85, tool definitions the tokens of their JSON. A streamed answer has one token in each chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from fastroute import json_codec

CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 85

_WORDS = (
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et "
    "dolore magna aliqua "
)
_DEEPEST = 16


def count_tokens(text: str) -> int:
    """Tokens in a text: one for every four characters, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def split_tokens(text: str) -> list[str]:
    """The text as its tokens."""
    return [text[start : start + CHARS_PER_TOKEN] for start in range(0, len(text), CHARS_PER_TOKEN)]


@lru_cache(maxsize=64)
def lorem(tokens: int) -> str:
    """A text of exactly this many tokens, always the same."""
    size = tokens * CHARS_PER_TOKEN
    text = (_WORDS * (size // len(_WORDS) + 1))[:size]
    return text[:-1] + "." if text.endswith(" ") else text


class ProviderError(Exception):
    """The request is refused; becomes an error in the format's shape."""

    def __init__(self, status: int, code: str | None, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


@dataclass(frozen=True, slots=True)
class Question:
    """A request for a chat completion, independent of the format.

    Attributes:
        model: the model's name in the request.
        text: the text of the last user message.
        prompt_tokens: counted by the token rule.
        stream: whether server-sent events are requested.
        include_usage: whether a stream ends with its usage.
        choices: number of answers.
        max_tokens: None for no limit.
        tool: the name of the tool that must be called, or None.
        schema: JSON Schema of the tool's arguments, or of the content.
        json: whether the content must be JSON.
    """

    model: str
    text: str
    prompt_tokens: int
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    max_tokens: int | None = None
    tool: str | None = None
    schema: Mapping[str, Any] | None = None
    json: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of an answer; a function given as ``answer=`` may return one.

    Attributes:
        content: the text; None if tools are called.
        tool_calls: pairs of a function's name and its arguments as JSON text.
        finish_reason: None for the one that fits: ``stop``, ``length`` or ``tool_calls``.
        prompt_tokens, completion_tokens: None to count them by the token rule; ``completion_tokens`` is for
            all choices together and includes reasoning.
        cached_tokens, reasoning_tokens: None for the provider's settings.
    """

    content: str | None = None
    tool_calls: tuple[tuple[str, str], ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """A complete answer, ready for a format to write.

    Attributes:
        generated: tokens of one choice, which are generated one after the other (see `tokens_per_second`).
    """

    content: str | None
    tool_calls: tuple[tuple[str, str], ...]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    generated: int


AnswerSource = None | str | int | Answer | Callable[[Any], str | Answer]


def sample(schema: Mapping[str, Any], text: str, depth: int = 0) -> Any:
    """A value that fits a schema of the common keywords; deterministic, with ``text`` as every string."""
    if depth > _DEEPEST:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            return sample(schema[word][0], text, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0] if kind else "null"
    if kind == "object":
        known = schema.get("properties", {})
        return {name: sample(known.get(name, {}), text, depth + 1) for name in schema.get("required", known)}
    if kind == "array":
        return [sample(schema.get("items", {}), text, depth + 1)] * max(1, schema.get("minItems", 1))
    return {"integer": 1, "number": 1.5, "boolean": True, "null": None}.get(kind, text)


def _dumps(value: Any) -> str:
    return json_codec.dumps(value).decode()


def _content(source: str | int | None, question: Question) -> Answer:
    """The built-in answers: a tool call or JSON if requested, otherwise the text of the source."""
    text = question.text if source is None else lorem(source) if isinstance(source, int) else source
    if question.tool is not None:
        return Answer(tool_calls=((question.tool, _dumps(sample(question.schema or {}, text))),))
    if question.json:
        schema = question.schema
        return Answer(content=_dumps(sample(schema, text) if schema else {"answer": text}))
    return Answer(content=text)


def settle(
    source: AnswerSource, question: Question, received: object, *, cached_tokens: int, reasoning_tokens: int
) -> Said:
    """The complete answer to a question.

    Args:
        source: the provider's setting ``answer``.
        received: the argument for ``source`` if that is a function.
        cached_tokens: the most of the prompt's tokens that count as cached.
        reasoning_tokens: counted in addition to the visible ones.
    """
    if callable(source):
        given: str | int | Answer | None = source(received)
        if not isinstance(given, (str, Answer)):
            raise TypeError(f"the answer function returned {type(given).__name__}; return a str or an Answer")
    else:
        given = source
    if isinstance(given, Answer):
        answer = given
    elif callable(source):
        answer = Answer(content=str(given))
    else:
        answer = _content(given, question)
    reason = answer.finish_reason
    visible = count_tokens(answer.content or "") + sum(
        count_tokens(arguments) + count_tokens(name) for name, arguments in answer.tool_calls
    )
    limit = question.max_tokens
    if limit is not None and visible > limit > 0 and answer.content:
        answer = replace(answer, content=answer.content[: limit * CHARS_PER_TOKEN])
        visible, reason = limit, reason or "length"
    prompt = question.prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens
    reasoning = reasoning_tokens if answer.reasoning_tokens is None else answer.reasoning_tokens
    completion = answer.completion_tokens
    return Said(
        content=answer.content,
        tool_calls=answer.tool_calls,
        finish_reason=reason or ("tool_calls" if answer.tool_calls else "stop"),
        prompt_tokens=prompt,
        completion_tokens=(visible + reasoning) * question.choices if completion is None else completion,
        cached_tokens=min(prompt, cached_tokens if answer.cached_tokens is None else answer.cached_tokens),
        reasoning_tokens=reasoning,
        generated=visible + reasoning,
    )


def fragments(said: Said) -> Iterator[tuple[int | None, str]]:
    """The answer's tokens in order: (None, text) of the content, (index, JSON text) of a tool call."""
    for token in split_tokens(said.content or ""):
        yield None, token
    for index, (_, arguments) in enumerate(said.tool_calls):
        for token in split_tokens(arguments):
            yield index, token
