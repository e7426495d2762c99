"""Existing code against the gateway, with nothing but its base URL changed: the OpenAI SDK and LangChain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gateways import configuration
from needs import need

from fastroute.gateway.app import create_app
from fastroute.gateway.keys import Caller, KeyFile
from fastroute.testing import Answer, Fault, Provider

MESSAGES = [{"role": "user", "content": "hello there"}]


class Up:
    def __init__(self, url: str, token: str, provider: Provider, app: Any) -> None:
        self.url, self.token, self.provider, self.app = url, token, provider, app


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    server = need("waitress.server")
    folder: Path = tmp_path_factory.mktemp("clients")
    with ExitStack() as stack:
        provider = stack.enter_context(Provider())
        keys = KeyFile(folder / "keys.db")
        token = keys.create(Caller("web"))
        app = create_app(configuration(provider.base_url, folder), keys=keys.path)
        stack.callback(app.close)
        running = server.create_server(app, map={}, host="127.0.0.1", port=0, threads=4)
        thread = threading.Thread(target=running.run)
        thread.start()
        yield Up(f"http://127.0.0.1:{running.effective_port}/v1", token, provider, app)
        running.close()
        running.task_dispatcher.shutdown()
        thread.join()


@pytest.fixture
def sdk(up: Up) -> Iterator[Any]:
    with need("openai").OpenAI(base_url=up.url, api_key=up.token) as client:
        yield client


def test_the_sdk_gets_an_answer_and_its_headers(sdk: Any) -> None:
    raw = sdk.chat.completions.with_raw_response.create(model="auto", messages=MESSAGES, temperature=0)
    assert raw.parse().choices[0].message.content == "hello there"
    assert raw.headers["x-fastroute-model"] == "gpt-4.1-mini"


def test_the_sdk_streams(sdk: Any) -> None:
    options = {"include_usage": True}
    stream = sdk.chat.completions.create(model="auto", messages=MESSAGES, stream=True, stream_options=options)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello there"
    assert chunks[-1].usage.completion_tokens > 0


def test_the_sdk_calls_tools(up: Up, sdk: Any) -> None:
    up.provider.answer = Answer(tool_calls=[("weather", {"city": "Oslo"})])
    try:
        function = {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        }
        reply = sdk.chat.completions.create(
            model="gpt-4.1", messages=MESSAGES, tools=[{"type": "function", "function": function}]
        )
        [call] = reply.choices[0].message.tool_calls
        assert call.function.name == "weather"
        up.provider.answer = None
        again = [
            *MESSAGES,
            reply.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "cold"},
        ]
        assert sdk.chat.completions.create(model="gpt-4.1", messages=again).choices[0].finish_reason == "stop"
    finally:
        up.provider.answer = None


def test_the_sdk_parses(up: Up, sdk: Any) -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    up.provider.answer = "Oslo"  # it puts what it says into the form asked for
    try:
        reply = sdk.chat.completions.parse(model="gpt-4.1", messages=MESSAGES, response_format=City)
        assert reply.choices[0].message.parsed == City(name="Oslo")
    finally:
        up.provider.answer = None


def test_the_sdk_knows_the_errors_and_tries_nothing_again(up: Up, sdk: Any) -> None:
    openai = need("openai")
    with pytest.raises(openai.NotFoundError, match="gpt-99"):
        sdk.chat.completions.create(model="gpt-99", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="auto", messages=MESSAGES, temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="fr-wrong").models.list()
    up.provider.clear_requests()
    up.provider.script(*[Fault.status(500)] * 99)
    with pytest.raises(openai.InternalServerError):
        sdk.chat.completions.create(model="gpt-4.1", messages=MESSAGES)
    up.provider.clear_script()
    # The gateway's own attempts, and no second helping of them by the SDK.
    assert len(up.provider.requests) == up.app.client.config.policy.max_attempts
    assert next(iter(sdk.models.list())).id == "auto"


def test_langchain_talks_to_it(up: Up) -> None:
    model = need("langchain_openai").ChatOpenAI(base_url=up.url, api_key=up.token, model="auto")
    assert model.invoke("hello there").content == "hello there"
    assert "".join(str(part.content) for part in model.stream("hello there")) == "hello there"
