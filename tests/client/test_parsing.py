"""Answers as pydantic models: schema, results and errors are held to the OpenAI SDK's."""

from __future__ import annotations

import enum
import json
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from client_setups import Start
from loopback import MODEL, Loopback
from needs import need

import fastroute
from fastroute.calls.parsing import response_format
from fastroute.testing import Fault

openai = need("openai")
pydantic = need("pydantic")

HELLO: list[Any] = [{"role": "user", "content": "Which city?"}]


class City(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    name: str
    people: int


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Country(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    capital: City = pydantic.Field(description="The largest one")
    cities: list[City]
    color: Color | None = None
    flag: Color = pydantic.Field(default=Color.RED, title="Of the flag")
    kind: Literal["island", "inland"] = "inland"
    by_name: dict[str, City] = pydantic.Field(default={})
    pair: tuple[int, str] = (1, "a")
    other: City | int | None = None


class Tree(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    value: int
    children: list[Tree] = pydantic.Field(default=[])
    parent: Tree | None = pydantic.Field(default=None, description="above")


@pydantic.dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@pytest.fixture
def loop(start: Start) -> Loopback:
    return start(1)


@pytest.fixture
def sdk(loop: Loopback) -> Iterator[Any]:
    with openai.OpenAI(base_url=loop.provider().base_url, api_key="local", max_retries=0) as made:
        yield made


def answer(content: str | None, reason: str = "stop", **said: Any) -> str:
    message = {"role": "assistant", "content": content, **said}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1700000000,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        }
    )


@pytest.mark.parametrize("model", [City, Country, Tree, Point])
def test_the_schema_is_the_sdks(loop: Loopback, sdk: Any, model: Any) -> None:
    loop.provider().script(Fault.status(200, answer(None, refusal="I cannot")), repeat=True)
    sdk.chat.completions.parse(model=MODEL, messages=HELLO, response_format=model)
    for _ in "12":  # the second one: the model's own schema was not changed
        loop.ask(response_format=model)
    theirs, *ours = (json.loads(sent.body)["response_format"] for sent in loop.provider().requests)
    assert ours == [theirs, theirs]


GOOD = {
    "a model": (City, answer('{"name": "Rome", "people": 2800000}')),
    "a dataclass": (Point, answer('{"x": 3}')),
    "nested": (Tree, answer('{"value": 1, "children": [{"value": 2, "children": [], "parent": null}]}')),
    "a refusal": (City, answer(None, refusal="I cannot")),
    "a refusal beside text": (City, answer("no", refusal="I cannot")),
    "a mapping": ({"type": "json_object"}, answer('{"name": "Rome"}')),
}


@pytest.mark.parametrize(("model", "body"), GOOD.values(), ids=GOOD.keys())
def test_an_answer_is_parsed_as_by_the_sdk(loop: Loopback, sdk: Any, model: Any, body: str) -> None:
    loop.provider().script(Fault.status(200, body), repeat=True)
    theirs = sdk.chat.completions.parse(model=MODEL, messages=HELLO, response_format=model)
    ours = loop.client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=model)
    assert ours.choices[0].message.parsed == theirs.choices[0].message.parsed
    assert ours.route is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydantic's, about the SDK's own type of `parsed`
        assert ours.model_dump() == theirs.model_dump()
    first, second = loop.provider().requests
    assert json.loads(first.body) == {**json.loads(second.body), "stream": False}
    if isinstance(model, type):
        created: Any = loop.ask(response_format=model)
        assert created.choices[0].message.parsed == ours.choices[0].message.parsed


def test_history_takes_a_parsed_message(loop: Loopback) -> None:
    loop.provider().script(Fault.status(200, answer('{"name": "Rome", "people": 1}')), None)
    said = loop.ask(response_format=City).choices[0].message
    loop.ask(messages=[*HELLO, said, *HELLO])
    assert "parsed" not in json.loads(loop.provider().requests[-1].body)["messages"][1]


def test_the_arguments_of_tools_are_parsed_as_by_the_sdk(loop: Loopback, sdk: Any) -> None:
    strict = {
        "type": "function",
        "function": {"name": "strict", "strict": True, "parameters": {"type": "object", "properties": {}}},
    }
    tools = [openai.pydantic_function_tool(City, name="city"), strict]
    calls = [
        {
            "id": "1",
            "type": "function",
            "function": {"name": "city", "arguments": '{"name":"Rome","people":1}'},
        },
        {"id": "2", "type": "function", "function": {"name": "strict", "arguments": '{"a": [1]}'}},
    ]
    loop.provider().script(Fault.status(200, answer(None, "tool_calls", tool_calls=calls)), repeat=True)
    theirs = sdk.chat.completions.parse(model=MODEL, messages=HELLO, tools=tools)
    ours = loop.client.chat.completions.parse(model=MODEL, messages=HELLO, tools=tools)
    found: Any = ours.choices[0].message.tool_calls
    assert [call.function.parsed_arguments for call in found] == [City(name="Rome", people=1), {"a": [1]}]
    assert ours.model_dump() == theirs.model_dump()


SECRET = "what nobody may read"
BAD = {
    "a wrong type": (
        answer(json.dumps({"name": "Rome", "people": SECRET})),
        r"City: people: Input should be",
    ),
    "a missing field": (answer('{"name": "Rome"}'), "City: people: Field required"),
    "no JSON": (answer(f"{SECRET}!"), "City: JSON: Invalid JSON"),
    "a cut answer": (answer('{"name": "Ro', "length"), "use a larger max_tokens"),
}


@pytest.mark.parametrize(("body", "text"), BAD.values(), ids=BAD.keys())
def test_an_answer_that_does_not_fit_is_an_error_with_the_answer(
    loop: Loopback, body: str, text: str
) -> None:
    loop.provider().script(Fault.status(200, body), repeat=True)
    for call in (loop.client.chat.completions.parse, loop.client.chat.completions.create):
        with pytest.raises(fastroute.ValidationError, match=text) as raised:
            call(model=MODEL, messages=HELLO, response_format=City)
        assert raised.value.completion is not None
        assert raised.value.completion.choices[0].message.content
        assert len(raised.value.attempts) == 1
        assert SECRET not in str(raised.value) + repr(raised.value) + str(raised.value.__cause__)


def test_a_filtered_answer_is_an_error(loop: Loopback) -> None:
    loop.provider().script(Fault.status(200, answer('{"name": "Ro', "content_filter")))
    with pytest.raises(fastroute.ContentFilterError, match="content filter"):
        loop.client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=City)


def test_a_cached_answer_is_parsed_for_each_caller(start: Start) -> None:
    loop = start(1, cache={"enabled": True})
    loop.provider().script(Fault.status(200, answer('{"name": "Rome", "people": 1}')), repeat=True)
    replies: list[Any] = [loop.ask(response_format=City) for _ in "12"]
    assert [reply.route.cached for reply in replies] == [False, True]
    first, second = (reply.choices[0].message.parsed for reply in replies)
    assert first == second
    assert first is not second
    assert not hasattr(loop.ask(response_format=response_format(City)).choices[0].message, "parsed")
