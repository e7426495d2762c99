"""What a call may be given: the OpenAI SDK's arguments, and messages for a newcomer's mistakes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from client_setups import Start
from loopback import MODEL
from needs import need

import fastroute
from fastroute.calls import arguments, parameters
from fastroute.testing import Fault, Provider

openai = need("openai")

HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]


@pytest.fixture
def both(start: Start) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Makes the same call with the SDK and with the client; returns what the provider got of each."""
    loop = start({"a": Provider(strict=False)})
    provider = loop.provider()
    sdk = openai.OpenAI(base_url=provider.base_url, api_key="local", max_retries=0)

    def call(**params: Any) -> tuple[Any, Any]:
        provider.clear_requests()
        sdk.chat.completions.create(model=MODEL, messages=HELLO, **params)
        loop.client.chat.completions.create(model=MODEL, messages=HELLO, **params)
        first, second = provider.requests
        return first, second

    yield call
    sdk.close()


AS_THE_SDK: dict[str, dict[str, Any]] = {
    "extra_body": {"extra_body": {"top_k": 40, "vendor": {"deep": [1, None]}}},
    "extra_body over a parameter": {"temperature": 0, "extra_body": {"temperature": 1}},
    "extra_headers": {"extra_headers": {"x-team": "search", "User-Agent": "mine"}},
    "extra_query": {"extra_query": {"region": "eu", "n": 2, "flag": True}},
    "not given": {"temperature": openai.NOT_GIVEN, "tools": openai.NOT_GIVEN, "max_tokens": 5},
    "omit": {"temperature": openai.omit, "stop": openai.omit},
    "omit in extra_body": {"temperature": 0, "extra_body": {"temperature": openai.omit}},
    "timeout": {"timeout": openai.Timeout(9.0, connect=1.0)},
    "timeout not given": {"timeout": openai.NOT_GIVEN},
    "null": {"temperature": None, "stop": None},
}


@pytest.mark.parametrize("params", AS_THE_SDK.values(), ids=AS_THE_SDK.keys())
def test_the_provider_gets_what_the_sdk_sends(
    both: Callable[..., tuple[Any, Any]], params: dict[str, Any]
) -> None:
    theirs, ours = both(**params)
    assert json.loads(ours.body) == json.loads(theirs.body)
    assert ours.path == theirs.path
    for name in params.get("extra_headers", ()):
        assert ours.headers[name.lower()] == theirs.headers[name.lower()]


def test_every_parameter_of_the_sdk_is_known() -> None:
    theirs = openai.types.chat.completion_create_params.CompletionCreateParamsBase.__annotations__
    assert set(theirs) - {"messages", "model"} <= set(parameters.PARAMETERS)


def test_the_typed_parameters_are_the_known_ones() -> None:
    own = {"extra_body", "extra_headers", "extra_query", "max_retries"}
    typed = parameters.FurtherParams.__annotations__ | parameters.CompletionParams.__annotations__
    assert set(typed) == set(parameters.PARAMETERS) | own


def test_the_checks_for_a_usual_call_pass_over_a_usual_call() -> None:
    usual = {
        "temperature": 0,
        "max_tokens": 20,
        "stop": None,
        "tools": [],
        "response_format": {"type": "text"},
    }
    assert arguments.PLAIN.issuperset(zip(usual, map(type, usual.values())))


def test_headers_are_sent_by_every_format(start: Start) -> None:
    for format in ("openai", "anthropic", "gemini", "azure"):
        providers = {} if format != "azure" else {"all": {"api_version": "2024-10-21"}}
        loop = start(1, format=format, providers=providers)
        loop.ask(extra_headers={"X-Team": "search"}, extra_query={"region": "eu"})
        loop.ask()
        first, second = loop.provider().requests
        assert first.headers["x-team"] == "search", format
        assert "region=eu" in first.path, format
        assert "x-team" not in second.headers, format
        assert "region" not in second.path, format
        assert set(second.headers) - {"content-length"} <= set(first.headers), format


def test_a_session_of_the_callers_own_sends_them_too(start: Start) -> None:
    requests = need("requests")
    with requests.Session() as session:
        loop = start(1, session=session)
        loop.ask(extra_headers={"X-Team": "search"}, extra_query={"region": "eu"})
        (sent,) = loop.provider().requests
        assert sent.headers["x-team"] == "search"
        assert sent.path.endswith("?region=eu")


SECRET = "sk-" + "1234567890abcdef" * 2


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({"extra_headers": {"Authorization": f"Bearer {SECRET}"}}, "extra_headers.Authorization"),
        ({"extra_headers": {"x-api-key": SECRET}}, "extra_headers.x-api-key"),
        ({"extra_headers": {"API-Key": SECRET}}, "extra_headers.API-Key"),
        ({"extra_headers": {"x-goog-api-key": SECRET}}, "extra_headers.x-goog-api-key"),
        ({"extra_headers": {"Authorization": openai.omit}}, "extra_headers.Authorization"),
        ({"extra_headers": {"Cookie": SECRET}}, "extra_headers.Cookie"),
        ({"extra_query": {"key": SECRET}}, "extra_query.key"),
        ({"extra_query": {"api-key": SECRET}}, "extra_query.api-key"),
        ({"extra_headers": {"x-note": f"two\r\nx-more: {SECRET}"}}, "extra_headers.x-note"),
        ({"extra_headers": {"Content-Length": "3"}}, "extra_headers.Content-Length"),
        ({"api_key": SECRET}, "api_key"),
    ],
)
def test_a_key_in_the_arguments_is_refused_and_not_shown(
    start: Start, params: dict[str, Any], where: str
) -> None:
    loop = start(1)
    with pytest.raises(fastroute.BadRequestError) as raised:
        loop.ask(**params)
    assert str(raised.value).startswith(f"{where}: ")
    assert SECRET not in repr(raised.value) + str(raised.value)
    assert loop.provider().received == 0


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"region": {"a": 1}}, "extra_query.region: must be a string, a number or a list of them"),
        ({"region": ["eu", None]}, "extra_query.region: must be a string, a number or a list of them"),
        ({"": "eu"}, "extra_query: must have strings as keys"),
        (["region"], "extra_query: must be a mapping, not list"),
    ],
)
def test_a_query_that_cannot_be_sent_is_refused(start: Start, query: Any, says: str) -> None:
    loop = start(1)
    with pytest.raises(fastroute.BadRequestError) as raised:
        loop.ask(extra_query=query)
    assert says in str(raised.value)
    assert loop.provider().received == 0


def test_extra_headers_are_in_no_repr(start: Start) -> None:
    loop = start(1)
    plan = loop.client.plan(
        model=MODEL, messages=HELLO, extra_headers={"x-token": SECRET}, extra_query={"trace": SECRET}
    )
    assert SECRET not in repr(plan.request) + str(plan)


def test_headers_and_query_separate_cached_answers(start: Start) -> None:
    loop = start(1, cache={"enabled": True})
    for params in (
        {},
        {"extra_headers": {"x": "1"}},
        {"extra_headers": {"x": "2"}},
        {"extra_query": {"x": "1"}},
    ):
        routes = [loop.ask(**params).route for _ in "12"]
        assert [route.cached for route in routes if route] == [False, True], params
    assert "cached=True" in repr(loop.ask(max_retries=0).route)


def test_max_retries_bounds_the_attempts(start: Start) -> None:
    for retries, attempts in ((0, 1), (1, 2), (9, 3)):
        loop = start({"a": Provider(), "b": Provider()}, policy={"max_attempts": 3})
        for name in "ab":
            loop.provider(name).script(Fault.status(500), repeat=True)
        with pytest.raises(fastroute.InternalServerError) as raised:
            loop.ask(max_retries=retries)
        assert len(raised.value.attempts) == attempts, retries


def test_the_sdks_timeout_limits_the_call(start: Start) -> None:
    loop = start({"a": Provider(latency=3.0)})
    with pytest.raises(fastroute.DeadlineExceeded):
        loop.ask(timeout=openai.Timeout(60.0, read=0.2))
    other = loop.client.with_options(timeout=openai.Timeout(0.2))
    with pytest.raises(fastroute.DeadlineExceeded):
        other.chat.completions.create(model=MODEL, messages=HELLO)


# ----------------------------------------------------------------------------------------------- spelling


@pytest.mark.parametrize("word", arguments.ROUTE_WORDS)
def test_a_routing_word_among_the_parameters_is_refused(start: Start, word: str) -> None:
    loop = start(1)
    with pytest.raises(fastroute.BadRequestError, match=f'{word}: .*write route={{"{word}": ...}}'):
        loop.ask(**{word: {"team": "x"}})
    with pytest.raises(fastroute.BadRequestError, match=word):
        loop.client.plan(model=MODEL, messages=HELLO, **{word: None})  # type: ignore[call-arg]
    with pytest.raises(fastroute.BadRequestError, match=word):
        loop.client.submit(model=MODEL, messages=HELLO, **{word: 1}).result()  # type: ignore[call-overload]
    assert loop.provider().received == 0


def test_routing_words_in_extra_body_count(start: Start) -> None:
    """As with the drop-ins. The call's own ``route`` comes first."""
    loop = start({"a": Provider(strict=False)})
    body = {"route": {"tags": {"team": "search"}, "max_cost": 1.0}}
    reply = loop.ask(extra_body=body)
    assert loop.attempts[-1].tags == {"team": "search"}
    loop.ask(extra_body=body, route={"tags": {"team": "other"}})
    assert loop.attempts[-1].tags == {"team": "other"}
    assert reply.text
    assert b"route" not in loop.provider().requests[0].body
    loop.ask(extra_body={"route": "fallback"})  # OpenRouter's own parameter of this name
    assert json.loads(loop.provider().requests[-1].body)["route"] == "fallback"


def test_a_misspelt_parameter_warns_once_and_is_sent(start: Start) -> None:
    loop = start({"a": Provider(strict=False)})
    with pytest.warns(UserWarning, match=r"max_token: .*did you mean max_tokens\?") as warned:
        loop.ask(max_token=5)
    assert warned[0].filename.endswith("loopback.py")  # where `create` is called
    assert json.loads(loop.provider().requests[-1].body)["max_token"] == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.ask(max_token=5)
        loop.ask(a_parameter_of_some_server=1, top_k=3, min_p=0.1)
    for name, meant in (
        ("temprature", "temperature"),
        ("time_out", "timeout"),
        ("extra_header", "extra_headers"),
    ):
        with pytest.warns(UserWarning, match=f"{name}: .*did you mean {meant}"):
            loop.client.plan(model=MODEL, messages=HELLO, **{name: 1})  # type: ignore[call-arg]
