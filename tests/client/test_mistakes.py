"""The mistakes of a newcomer in calls: each message says where, what is wrong and what would be right."""

from __future__ import annotations

from typing import Any

import pytest
from client_setups import BOTH, Start
from loopback import MODEL, Loopback

import fastroute

HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]


@pytest.fixture
def loop(start: Start) -> Loopback:
    return start(1, aliases={"short": MODEL}, **BOTH)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "messages a string": (
        {"messages": "Say hello"},
        "messages: must be a list of mappings with role and content, like "
        '[{"role": "user", "content": "Hello"}], not str',
    ),
    "messages one message": ({"messages": HELLO[0]}, "messages: must be a list of mappings"),
    "messages empty": ({"messages": []}, "messages: must not be empty"),
    "a message a string": (
        {"messages": ["Say hello"]},
        "messages[0]: must be a mapping with role and content, not str",
    ),
    "no role": (
        {"messages": [*HELLO, {"content": "hi"}]},
        "messages[1].role: is missing; must be system, developer, user, assistant or tool",
    ),
    "role a number": ({"messages": [{"role": 1, "content": "hi"}]}, "messages[0].role: must be system"),
    "content a number": (
        {"messages": [{"role": "user", "content": 5}]},
        "messages[0].content: must be a string or a list of parts, not int",
    ),
    "content a mapping": (
        {"messages": [{"role": "user", "content": {"text": "hi"}}]},
        "messages[0].content: must be a string or a list of parts, not dict",
    ),
    "a part a string": (
        {"messages": [{"role": "user", "content": ["hi"]}]},
        'messages[0].content[0]: must be a part like {"type": "text", "text": "Hello"}, not str',
    ),
    "route a string": (
        {"route": "premium"},
        'route: must be a mapping of routing words, like {"tier": "premium"}, not str',
    ),
    "an unknown routing word": (
        {"route": {"max_costs": 1}},
        "route.max_costs: unknown routing word (did you mean max_cost?); use one of tags, tier",
    ),
    "tags a list": (
        {"route": {"tags": ["search"]}},
        'route.tags: must be a mapping of strings to strings, like {"team": "search"}, not list',
    ),
    "a tag a number": (
        {"route": {"tags": {"user": 7}}},
        "route.tags.user: must be a string, not int; write str(...) around it",
    ),
    "an unknown tier": (
        {"route": {"tier": "cheep"}},
        'route.tier: unknown tier "cheep"; use one of cheap, dear',
    ),
    "a negative cost": (
        {"route": {"max_cost": -1}},
        "route.max_cost: must be a number that is not negative, not -1",
    ),
    "a cost in text": (
        {"route": {"max_cost": "0.02"}},
        "route.max_cost: must be a number that is not negative, not str",
    ),
    "cache a string": ({"route": {"cache": "no"}}, "route.cache: must be True or False, not str"),
    "a routing word outside": (
        {"tier": "cheap"},
        'tier: is a routing word and not a parameter; write route={"tier": ...}',
    ),
    "a key": (
        {"api_key": "sk-123"},
        "api_key: is not a parameter of a call; keys belong to the configuration",
    ),
    "headers": ({"headers": {"x": "y"}}, "headers: is not a parameter of a call; write extra_headers={...}"),
    "a negative timeout": ({"timeout": -1}, "timeout: must be a number of seconds above 0, not -1"),
    "a timeout of zero": ({"timeout": 0}, "timeout: must be a number of seconds above 0, not 0"),
    "a timeout in text": ({"timeout": "30s"}, "timeout: must be a number of seconds above 0, not str"),
    "max_tokens in text": ({"max_tokens": "100"}, "max_tokens: must be an integer, not str"),
    "max_tokens a fraction": ({"max_tokens": 1.5}, "max_tokens: must be an integer, not float"),
    "temperature in text": ({"temperature": "0.5"}, "temperature: must be a number, not str"),
    "n a fraction": ({"n": 2.0}, "n: must be an integer, not float"),
    "tools a mapping": ({"tools": {"type": "function"}}, "tools: must be a list, not dict"),
    "a format in text": (
        {"response_format": "json"},
        'response_format: must be a mapping like {"type": "json_object"}, or a pydantic model, not str',
    ),
    "max_retries negative": ({"max_retries": -1}, "max_retries: must be an integer, 0 or more, not -1"),
    "extra_body a list": ({"extra_body": []}, "extra_body: must be a mapping of parameters, not list"),
    "model in extra_body": (
        {"extra_body": {"model": "x"}},
        "extra_body.model: write model= in the call itself",
    ),
    "extra_headers a list": (
        {"extra_headers": ["x"]},
        "extra_headers: must be a mapping of strings, not list",
    ),
    "model a number": ({"model": 5}, "model: must be a string, not int"),
    "model empty": ({"model": ""}, "model: must be the name of a model, alias or tier, or auto, not ''"),
    "a misspelt model": (
        {"model": "test-modle"},
        "no model, alias or tier is called 'test-modle'; near names are",
    ),
    "a stream with a rule": (
        {"stream": True, "route": {"validate": {"type": "object"}}},
        "route.validate: a streamed answer cannot be validated; leave out stream",
    ),
}


@pytest.mark.parametrize(("call", "text"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_a_call_is_explained(loop: Loopback, call: dict[str, Any], text: str) -> None:
    call = {"model": MODEL, "messages": HELLO, **call}
    with pytest.raises(fastroute.Error) as raised:
        loop.client.chat.completions.create(**call)
    assert str(raised.value).startswith(text)
    assert isinstance(raised.value, (fastroute.BadRequestError, fastroute.ModelNotFoundError))
    with pytest.raises(type(raised.value)):
        loop.client.submit(**call).result()
    assert loop.provider().received == 0


def test_a_mistake_in_the_options_of_a_client_is_explained(loop: Loopback) -> None:
    tags: Any = {"user": 7}
    with pytest.raises(fastroute.BadRequestError, match=r"tags\.user: must be a string, not int"):
        loop.client.with_options(tags=tags)
    with pytest.raises(
        fastroute.BadRequestError, match="timeout: must be a number of seconds above 0, not -3"
    ):
        loop.client.with_options(timeout=-3)
    with pytest.raises(fastroute.BadRequestError, match="budget: must be a number that is not negative"):
        loop.client.with_options(budget=-1.0)


def test_a_closed_client_says_so(loop: Loopback) -> None:
    loop.client.close()
    with pytest.raises(fastroute.Error, match=r"the client is closed; .*create another Client"):
        loop.ask()
    with pytest.raises(fastroute.Error, match="the client is closed"):
        loop.client.reload()
