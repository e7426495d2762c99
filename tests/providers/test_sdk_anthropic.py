"""Anthropic's own package against the local provider, and our client against what that package approves of.

The package holds the local provider to code that is not ours; the local provider then holds our requests to
the rules that it has been shown to keep.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from loopback import MODEL
from needs import need

import fastroute
from fastroute.providers.limit_headers import parse_limits
from fastroute.testing import Answer, Fault, Provider
from fastroute.types import Usage

anthropic = need("anthropic")
pydantic = need("pydantic")

KEY = "local-" + "k" * 20
ASKED: dict[str, Any] = {
    "model": "claude-local",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "hello there"}],
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "The weather.", "input_schema": SCHEMA}


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Provider, Any]]:
    with (
        Provider(format="anthropic", api_keys=[KEY], models=["claude-local"]) as provider,
        anthropic.Anthropic(api_key=KEY, base_url=provider.base_url, max_retries=0) as sdk,
    ):
        yield provider, sdk


@pytest.fixture
def provider(running: tuple[Provider, Any]) -> Iterator[Provider]:
    yield running[0]
    running[0].clear_script()
    running[0].configure(answer=None, cached_tokens=0, reasoning_tokens=0)


@pytest.fixture
def sdk(running: tuple[Provider, Any], provider: Provider) -> Any:
    return running[1]


# --------------------------------------------------------------------- their package, our provider


def test_a_message(sdk: Any, provider: Provider) -> None:
    provider.configure(cached_tokens=3, reasoning_tokens=2)
    message = sdk.messages.create(**ASKED)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[1].text == "hello there"
    assert message.stop_reason == "end_turn"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (4, 3, 5)
    assert usage.output_tokens_details.thinking_tokens == 2
    assert message._request_id.startswith("req_")
    # What the package reads leniently is held to its types here.
    type(message).model_validate_json(message.to_json(), strict=True)


def test_a_stream(sdk: Any, provider: Provider) -> None:
    provider.configure(reasoning_tokens=2)
    plain = sdk.messages.create(**ASKED)
    with sdk.messages.stream(**ASKED) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "".join(block.text for block in final.content if block.type == "text") == "hello there"
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    shown = [block.model_dump(exclude={"parsed_output"}) for block in final.content]
    assert shown == [block.model_dump() for block in plain.content]
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", plain.usage.output_tokens)
    raw = [event.type for event in sdk.messages.create(**ASKED, stream=True)]
    assert raw.count("content_block_delta") == 2 + 3  # a thought and its signature, three tokens


def test_tools_there_and_back(sdk: Any, provider: Provider) -> None:
    asked = {**ASKED, "tools": [WEATHER], "tool_choice": {"type": "any"}}
    for message in (sdk.messages.create(**asked), stream_of(sdk, asked)):
        (call,) = message.content
        assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "hello there"})
        assert message.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        turns = [*ASKED["messages"], message.to_param(), {"role": "user", "content": [result]}]
        again = sdk.messages.create(**{**ASKED, "messages": turns}, tools=[WEATHER])
        assert again.stop_reason == "end_turn"
    with pytest.raises(anthropic.BadRequestError, match="without `tool_result`"):
        sdk.messages.create(**{**ASKED, "messages": [*turns[:2], *ASKED["messages"]]}, tools=[WEATHER])


def stream_of(sdk: Any, asked: Mapping[str, Any]) -> Any:
    with sdk.messages.stream(**asked) as stream:
        return stream.get_final_message()


def test_several_calls_in_one_stream(sdk: Any, provider: Provider) -> None:
    calls = (("weather", '{"city":"Rome"}'), ("weather", '{"city":"Oslo"}'))
    provider.answer = Answer(content="Looking.", tool_calls=calls)
    message = stream_of(sdk, {**ASKED, "tools": [WEATHER]})
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert [block.input for block in message.content[1:]] == [{"city": "Rome"}, {"city": "Oslo"}]


def test_structured_output(sdk: Any, provider: Provider) -> None:
    city = pydantic.create_model("City", city=(str, ...))
    parsed = sdk.messages.parse(**ASKED, output_format=city)
    assert parsed.parsed_output == city(city="hello there")


@pytest.mark.parametrize(
    ("code", "name", "status"),
    [
        ("context_length_exceeded", "BadRequestError", 400),
        ("content_filter", "BadRequestError", 400),
        ("invalid_api_key", "AuthenticationError", 401),
        ("model_not_found", "NotFoundError", 404),
        ("unsupported_parameter", "BadRequestError", 400),
        ("rate_limit_exceeded", "RateLimitError", 429),
        ("insufficient_quota", "EnforcedSpendLimitReachedError", 429),
        ("credit_balance_exhausted", "BadRequestError", 400),
        ("server_error", "InternalServerError", 500),
        ("overloaded", "OverloadedError", 529),
    ],
)
def test_errors(sdk: Any, provider: Provider, code: str, name: str, status: int) -> None:
    kind = getattr(anthropic, name, anthropic.APIStatusError)
    provider.script(Fault.error(code))
    with pytest.raises(kind) as caught:
        sdk.messages.create(**ASKED)
    assert caught.value.status_code == status
    assert caught.value.request_id.startswith("req_")
    provider.script(Fault.stream_error(2, code))
    with pytest.raises(anthropic.APIStatusError) as streamed:
        list(sdk.messages.create(**ASKED, stream=True))
    assert streamed.value.type == caught.value.type


def test_wrong_keys_and_models_and_questions(sdk: Any, provider: Provider) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        sdk.with_options(api_key="another").messages.create(**ASKED)
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.create(**{**ASKED, "model": "claude-other"})
    for wrong in (
        {"temperature": 3},
        {"n": 2},
        {"messages": []},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"tools": [{"name": "weather"}]},
        {"thinking": {"type": "enabled", "budget_tokens": 500}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    ):
        with pytest.raises(anthropic.BadRequestError):
            sdk.messages.create(**{**ASKED, "extra_body": wrong})
    assert [model.id for model in sdk.models.list()] == ["claude-local"]


def test_limits_are_told_and_kept() -> None:
    with (
        Provider(format="anthropic", requests_per_minute=1) as limited,
        anthropic.Anthropic(api_key=KEY, base_url=limited.base_url, max_retries=0) as sdk,
    ):
        first = sdk.messages.with_raw_response.create(**ASKED)
        limits = parse_limits(dict(first.headers))
        assert limits is not None
        assert limits.requests is not None
        assert limits.requests.remaining == 0
        assert limits.requests.reset is not None
        assert 0 < limits.requests.reset <= 61
        with pytest.raises(anthropic.RateLimitError) as caught:
            sdk.messages.create(**ASKED)
        assert 0 < int(caught.value.response.headers["retry-after"]) <= 60


# --------------------------------------------------------------------- our client, the same provider


@pytest.fixture
def client(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Iterator[fastroute.Client]:
    monkeypatch.setenv("LOCAL_KEY", KEY)
    tables: dict[str, Any] = {
        "fastroute": {"ledger": ""},
        "cache": {"enabled": False},
        "providers": {
            "a": {"format": "anthropic", "base_url": provider.base_url, "api_key_env": "LOCAL_KEY"}
        },
        "endpoints": [{"provider": "a", "model": MODEL, "upstream": "claude-local"}],
        "models": {
            MODEL: {
                "input_price": 1.0,
                "output_price": 2.0,
                "cached_input_price": 0.1,
                "capabilities": ["streaming", "tools", "vision", "json_schema"],
            }
        },
    }
    with fastroute.Client(tables) as client:
        yield client


def as_openai_s(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: tool[name] for name in ("name", "description")}
    return {"type": "function", "function": {**function, "parameters": tool["input_schema"]}}


def test_our_client_talks_to_the_same_provider(client: fastroute.Client, provider: Provider) -> None:
    provider.configure(cached_tokens=3, reasoning_tokens=2)
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello there"},
    ]
    reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=50)
    assert reply.text == "hello there"
    assert reply.usage == Usage(14, 5, 3, 2)
    assert reply.route.cost_nano == (14 - 3) * 1000 + 3 * 100 + 5 * 2000
    assert str(reply.route.request_id).startswith("req_")
    with client.chat.completions.create(model=MODEL, messages=messages, max_tokens=50, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "hello there"
    assert stream.usage == reply.usage
    assert stream.completion().choices[0].message.thinking_blocks == reply.choices[0].message.thinking_blocks
    sent = provider.requests[-1]
    assert sent.headers["x-api-key"] == KEY
    assert sent.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in sent.headers


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_whole_conversation_with_tools(client: fastroute.Client, provider: Provider, stream: bool) -> None:
    def ask(messages: list[Any], **params: Any) -> fastroute.Completion:
        made = client.chat.completions.create(
            model=MODEL, messages=messages, tools=[as_openai_s(WEATHER)], stream=stream, **params
        )
        if isinstance(made, fastroute.Completion):
            return made
        list(made)
        return made.completion()

    provider.configure(reasoning_tokens=2)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "where is this?"}, image]}]
    reply = ask(messages, tool_choice="required", parallel_tool_calls=False)
    assert reply.choices[0].finish_reason == "tool_calls"
    (call,) = reply.choices[0].message.tool_calls or ()
    assert json.loads(call.function.arguments) == {"city": "where is this?"}
    messages.append(reply.choices[0].message)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "Rome"})
    last = ask(messages)
    assert last.choices[0].finish_reason == "stop"
    (_, answered, result) = provider.requests[-1].json["messages"]
    assert [block["type"] for block in answered["content"]] == ["thinking", "tool_use"]
    assert result["content"] == [{"type": "tool_result", "tool_use_id": call.id, "content": "Rome"}]


def test_structured_answers(client: fastroute.Client, provider: Provider) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    messages = [{"role": "user", "content": "Rome"}]
    reply = client.chat.completions.create(model=MODEL, messages=messages, response_format=shape)
    assert json.loads(reply.text) == {"city": "Rome"}
    loose = client.chat.completions.create(
        model=MODEL, messages=messages, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(loose.text), dict)
    assert loose.choices[0].finish_reason == "stop"


def test_what_cannot_be_said_reaches_nobody(client: fastroute.Client, provider: Provider) -> None:
    before = provider.received
    with pytest.raises(fastroute.BadRequestError, match="seed: the anthropic format has no such"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], seed=1)
    assert provider.received == before


def test_077_a_spend_limit_is_not_asked_again(client: fastroute.Client, provider: Provider) -> None:
    provider.script(Fault.error("insufficient_quota"))
    before = provider.received
    for _ in range(2):
        with pytest.raises(fastroute.Error):
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
    assert provider.received == before + 1


def test_a_key_in_the_environment_is_all_that_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FASTROUTE_CONFIG", "OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with fastroute.Client() as client:
        plan = client.plan(model="claude-haiku-4.5", messages=[{"role": "user", "content": "x"}])
        assert [candidate.endpoint for candidate in plan.candidates] == ["anthropic/claude-haiku-4.5"]
