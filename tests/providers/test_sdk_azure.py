"""OpenAI's own client for Azure against the local provider."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from needs import need

from fastroute.testing import Fault, Provider

openai = need("openai")

KEY = "local-key-of-the-sdk"
HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider(["mine"], format="azure", api_keys=[KEY]) as running:
        yield running


@pytest.fixture(scope="module", params=["deployments", "v1"])
def client(request: pytest.FixtureRequest, provider: Provider) -> Iterator[Any]:
    """Both of Azure's layouts; the second is spoken by the usual client."""
    made = (
        openai.AzureOpenAI(api_key=KEY, azure_endpoint=provider.url, api_version="2024-10-21", max_retries=0)
        if request.param == "deployments"
        else openai.OpenAI(api_key=KEY, base_url=provider.url + "/openai/v1", max_retries=0)
    )
    with made:
        yield made


def test_a_plain_answer(client: Any, provider: Provider) -> None:
    reply = client.chat.completions.create(model="mine", messages=HELLO, temperature=0)
    assert reply.choices[0].message.content == "hello there"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert "/openai/" in provider.requests[-1].path


def test_a_stream_begins_with_notes_on_the_prompt(client: Any) -> None:
    first, *chunks = client.chat.completions.create(model="mine", messages=HELLO, stream=True)
    assert first.choices == []
    assert first.prompt_filter_results
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello there"


def test_tools(client: Any) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    reply = client.chat.completions.create(
        model="mine",
        messages=HELLO,
        tools=[{"type": "function", "function": {"name": "weather", "parameters": schema}}],
        tool_choice="required",
    )
    (call,) = reply.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"hello there"}')


def test_errors(client: Any, provider: Provider) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nothing", messages=HELLO)
    provider.script(Fault.error("content_filter"))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="mine", messages=HELLO)
    assert caught.value.code == "content_filter"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="a-wrong-key").chat.completions.create(model="mine", messages=HELLO)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["mine"]
