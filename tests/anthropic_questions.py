"""Questions to the Anthropic format, each held to two judges that are not the encoder.

One is the types of Anthropic's own package, the other the parser of the local provider, which knows what
types cannot say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from needs import need

from fastroute import errors, types
from fastroute.providers import Target, get
from fastroute.testing.anthropic_question import question_in

pydantic = need("pydantic")
params = need("anthropic.types.message_create_params")

KEY = "local-secret-key"
SECRET = "the caller's own words"
ANTHROPIC = get("anthropic")
JUDGE = pydantic.TypeAdapter(params.MessageCreateParams)


class Secret:
    def __init__(self, text: str = KEY) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text


TARGET = Target(
    endpoint="anthropic/claude",
    provider="anthropic",
    model="claude",
    upstream="claude-opus-5-5",
    base_url="https://api.anthropic.com",
    key=Secret(),
    max_output=64_000,
)
OLD = attrs.evolve(TARGET, upstream="claude-sonnet-4-5")
USER: dict[str, Any] = {"role": "user", "content": "hello"}
PNG = "iVBORw0KGgo="
PDF = f"data:application/pdf;base64,{PNG}"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def walked(value: Any) -> Any:
    """Makes pydantic check what it checks only while it is iterated over."""
    if isinstance(value, Mapping):
        return {name: walked(inner) for name, inner in value.items()}
    if value is None or isinstance(value, (str, int, float)):
        return value
    return [walked(inner) for inner in value]


def image(url: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": url}
    return {"role": "user", "content": [part]}


def file(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "file", "file": fields}]}


def call(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [fields]}


def sent(*messages: Any, target: Target = TARGET, stream: bool = False, **given: Any) -> dict[str, Any]:
    encoded = ANTHROPIC.encode(types.Request("claude", list(messages) or [USER], given, stream), target)
    question_in(encoded)
    body: dict[str, Any] = json.loads(encoded)
    walked(JUDGE.validate_python(body))
    return body


def turns(*messages: Any, **given: Any) -> Any:
    return sent(*messages, **given)["messages"]


def refused(*messages: Any, target: Target = TARGET, **given: Any) -> errors.BadRequestError:
    with pytest.raises(errors.BadRequestError) as caught:
        ANTHROPIC.encode(types.Request("claude", list(messages) or [USER], given), target)
    assert SECRET not in str(caught.value)
    assert caught.value.status_code == 400
    return caught.value
