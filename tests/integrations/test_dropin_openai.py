"""Code written for the OpenAI SDK, and for LangChain on top of it, run unchanged over the routing transport.

The SDK's own version is whatever is installed; the transport is built for httpx and httpx2 both, and a
version of the SDK takes those that it knows.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from loopback import MODEL, Loopback, within
from needs import need

import fastroute
from fastroute.integrations.openai import http_client, transport
from fastroute.testing import Answer, Fault, Provider

openai = need("openai")
SDK3 = int(openai.__version__.partition(".")[0]) >= 3
MODULES = ["httpx", "httpx2"] if SDK3 else ["httpx"]

Start = Callable[..., Loopback]
HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


@pytest.fixture
def httpx(request: pytest.FixtureRequest) -> ModuleType:
    """What the SDK is built on; tests that are marked with `both` are run with all that it takes."""
    module: ModuleType = need(getattr(request, "param", MODULES[-1]))
    return module


both = pytest.mark.parametrize("httpx", MODULES, indirect=True)


@pytest.fixture
def connect(start: Start, httpx: ModuleType) -> Iterator[Callable[..., tuple[Any, Loopback]]]:
    made = []

    def begin(*arguments: Any, sdk: dict[str, Any] | None = None, **tables: Any) -> tuple[Any, Loopback]:
        loop = start(*arguments, **tables)
        client = openai.OpenAI(
            api_key="sk-of-the-sdk", http_client=http_client(loop.client, httpx=httpx), **(sdk or {})
        )
        made.append(client)
        return client, loop

    yield begin
    for client in made:
        client.close()


Connect = Callable[..., tuple[Any, Loopback]]


def test_it_is_built_on_what_the_sdk_is_built_on(start: Start) -> None:
    loop = start(1)
    with http_client(loop.client) as built:
        assert isinstance(built, openai.DefaultHttpxClient.__mro__[1] if not SDK3 else need("httpx2").Client)


@both
def test_a_completion(connect: Connect) -> None:
    sdk, loop = connect({"a": Provider(strict=False)})  # OpenAI itself takes 64 bits of a seed
    completion = sdk.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, seed=2**70)
    assert isinstance(completion, openai.types.chat.ChatCompletion)
    assert completion.choices[0].message.content == "Say hello"
    assert completion.choices[0].finish_reason == "stop"
    assert (
        completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )
    assert completion._request_id == loop.attempts[0].request_id
    (request,) = loop.provider().requests
    assert request.json["temperature"] == 0
    assert request.json["seed"] == 2**70
    assert "sk-of-the-sdk" not in str(request.headers)


def test_nothing_goes_over_a_socket_twice(connect: Connect) -> None:
    sdk, loop = connect(1)
    sdk.chat.completions.create(model=MODEL, messages=HELLO)
    sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert (loop.provider().received, loop.provider().connections) == (2, 1)


@both
def test_a_stream(connect: Connect) -> None:
    sdk, _ = connect(1, answer="one two three")
    chunks = list(sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"
    assert all(chunk.usage is None for chunk in chunks)
    options = {"include_usage": True}
    *_, last = sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=options)
    assert last.choices == []
    assert last.usage.completion_tokens > 0


@both
def test_59_leaving_a_stream_ends_the_call(connect: Connect) -> None:
    sdk, loop = connect(1, answer="one two three")
    loop.provider().script(Fault.stream_stall(after=3, seconds=30), Fault.stream_stall(after=3, seconds=30))
    with sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream:
        next(stream)
    stream = sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    next(stream)
    stream.close()
    loop.provider().wait_until(lambda provider: provider.in_flight == 0, 5)
    assert [attempt.outcome for attempt in loop.attempts] == ["client_cancelled"] * 2


@both
def test_the_stream_helper(connect: Connect) -> None:
    sdk, _ = connect(1, answer="one two three")
    with sdk.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert kinds[-1] == "content.done"
    assert final.choices[0].message.content == "one two three"


def test_parse(connect: Connect) -> None:
    pydantic = need("pydantic")

    class City(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        name: str
        population: int

    sdk, _ = connect(1)
    completion = sdk.chat.completions.parse(model=MODEL, messages=HELLO, response_format=City)
    assert isinstance(completion.choices[0].message.parsed, City)
    with sdk.chat.completions.stream(model=MODEL, messages=HELLO, response_format=City) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, City)


def test_tools(connect: Connect) -> None:
    sdk, loop = connect(1)
    asked = {"model": MODEL, "messages": HELLO, "tools": [WEATHER], "tool_choice": "required"}
    message = sdk.chat.completions.create(**asked).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    assert "city" in json.loads(call.function.arguments)
    # Its answer goes back as the SDK's own objects, as code of every tutorial does it.
    answered = [*HELLO, message, {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    sdk.chat.completions.create(model=MODEL, messages=answered)
    sent = loop.provider().requests[-1].json["messages"]
    assert sent[1]["tool_calls"][0]["id"] == call.id
    with sdk.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0].message
    assert json.loads(final.tool_calls[0].function.arguments) == json.loads(call.function.arguments)


def test_parallel_tool_calls_in_a_stream(connect: Connect) -> None:
    calls = (("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}'))
    sdk, _ = connect(1, answer=Answer(tool_calls=calls))
    with sdk.chat.completions.stream(model=MODEL, messages=HELLO, tools=[WEATHER]) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == list(calls)


@pytest.mark.parametrize("style", ["anthropic", "gemini"])
def test_other_formats_speak_through_it(connect: Connect, style: str) -> None:
    provider = Provider(format=style, answer=Answer(tool_calls=(("weather", '{"city":"Rome"}'),)))
    sdk, _ = connect({"a": provider}, providers={"a": {"format": style}})
    asked = {"model": MODEL, "messages": HELLO, "tools": [WEATHER], "max_tokens": 100}
    message = sdk.chat.completions.create(**asked).choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Rome"}
    with sdk.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "Rome"}
    assert final.choices[0].finish_reason == "tool_calls"


@both
def test_raw_and_streaming_responses(connect: Connect) -> None:
    sdk, _ = connect(1)
    raw = sdk.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.status_code == 200
    assert raw.headers["x-fastroute-endpoint"] == f"a/{MODEL}"
    assert raw.headers["x-fastroute-attempts"] == "1"
    assert raw.parse().choices[0].message.content == "Say hello"
    with sdk.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO, stream=True
    ) as response:
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]
    with sdk.chat.completions.with_streaming_response.create(model=MODEL, messages=HELLO) as response:
        assert response.parse().choices[0].message.content == "Say hello"


def test_routing_words_ride_along(connect: Connect) -> None:
    sdk, loop = connect(1)
    sdk.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"route": {"tags": {"team": "a"}}})
    header = {"x-fastroute-route": '{"tags": {"team": "b"}}'}
    sdk.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=header)
    assert [attempt.tags for attempt in loop.attempts] == [{"team": "a"}, {"team": "b"}]


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.status(400), "BadRequestError"),
        (Fault.status(401), "AuthenticationError"),
        (Fault.status(403), "PermissionDeniedError"),
        (Fault.status(404), "NotFoundError"),
        (Fault.status(422), "UnprocessableEntityError"),
        (Fault.error("rate_limit_exceeded", {"retry-after": "61"}), "RateLimitError"),
        (Fault.error("insufficient_quota"), "RateLimitError"),
        (Fault.status(500), "InternalServerError"),
        (Fault.html(), "InternalServerError"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_101_errors_are_the_sdks_and_are_not_retried_by_it(connect: Connect, fault: Fault, kind: str) -> None:
    sdk, loop = connect(1, policy={"max_attempts": 2})
    heard = []
    loop.client.on(heard.append, fastroute.events.CallFinished)
    loop.provider().script(fault, repeat=True)
    with pytest.raises(getattr(openai, kind)) as caught, within(1):
        sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert len(heard) == 1
    assert loop.provider().received <= 2
    assert caught.value.body["message"]
    assert caught.value.response.headers["x-should-retry"] == "false"


@both
def test_101_no_answer_is_the_sdks_connection_error_at_once(connect: Connect) -> None:
    sdk, loop = connect(1, policy={"max_attempts": 2})
    heard = []
    loop.client.on(heard.append, fastroute.events.CallFinished)
    loop.provider().kill()
    with pytest.raises(openai.APIConnectionError) as caught:
        sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert len(heard) == 1
    assert isinstance(caught.value.__cause__, fastroute.APIConnectionError)


def test_101_an_sdk_that_retries_all_the_same_makes_no_further_call(start: Start, httpx: ModuleType) -> None:
    """Early versions 2 try again whatever is raised."""
    loop = start(1)
    with httpx.Client(transport=transport(loop.client, httpx=httpx)) as client:
        response = client.post(
            "https://api.openai.com/v1/chat/completions",
            json={"model": MODEL, "messages": HELLO},
            headers={"x-stainless-retry-count": "1"},
        )
    assert (response.status_code, response.headers["x-should-retry"]) == (502, "false")
    assert loop.provider().received == 0


@both
def test_a_time_out_is_the_calls(connect: Connect) -> None:
    sdk, loop = connect(1)
    loop.provider().script(Fault.black_hole(), repeat=True)
    with pytest.raises(openai.APITimeoutError), within(0.2):
        sdk.with_options(timeout=0.2).chat.completions.create(model=MODEL, messages=HELLO)
    with pytest.raises(openai.APITimeoutError), within(0.2):
        sdk.chat.completions.create(model=MODEL, messages=HELLO, timeout=0.2)
    with pytest.raises(openai.BadRequestError, match="timeout"):
        sdk.chat.completions.create(model=MODEL, messages=HELLO, timeout=0)
    assert loop.provider().received == 2


def test_without_a_time_out_the_clients_own_applies(connect: Connect) -> None:
    sdk, loop = connect(1, fastroute={"timeout": 0.2})
    loop.provider().script(Fault.black_hole(), repeat=True)
    with pytest.raises(openai.APITimeoutError), within(0.2):
        sdk.chat.completions.create(model=MODEL, messages=HELLO)


def test_a_stream_that_breaks_is_an_error(connect: Connect) -> None:
    sdk, loop = connect(1, answer="one two three four")
    loop.provider().script(Fault.stream_cut(after=3))
    stream = sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="broke off") as caught:
        list(stream)
    assert caught.value.code == "stream_interrupted"


# ---------------------------------------------------------------------------------------------- other paths


def test_models_are_listed_by_the_client(connect: Connect) -> None:
    sdk, loop = connect(1)
    assert MODEL in [model.id for model in sdk.models.list()]
    assert sdk.models.retrieve(MODEL).owned_by == "a"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("no-such-model")
    assert loop.provider().received == 0


def test_what_cannot_be_routed_says_so(connect: Connect) -> None:
    sdk, loop = connect(1)
    with pytest.raises(openai.NotFoundError, match="embeddings cannot be routed"):
        sdk.embeddings.create(model="text-embedding-3-small", input="x")
    with pytest.raises(openai.NotFoundError, match="cannot be routed"):
        sdk.chat.completions.list()
    assert loop.provider().received == 0


@both
def test_or_goes_to_a_base_transport(start: Start, httpx: ModuleType) -> None:
    loop = start(1)
    seen = []

    def elsewhere(request: Any) -> Any:
        seen.append((request.url.path, request.headers["authorization"]))
        data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
        return httpx.Response(200, json={"object": "list", "data": data, "model": "e", "usage": {}})

    built = http_client(loop.client, base=httpx.MockTransport(elsewhere), httpx=httpx)
    with openai.OpenAI(api_key="sk-of-the-sdk", http_client=built) as sdk:
        embedding = sdk.embeddings.create(model="e", input="x", encoding_format="float").data[0].embedding
        assert embedding == [0.5]
        sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert seen == [("/v1/embeddings", "Bearer sk-of-the-sdk")]


def test_azure_clients_too(start: Start, httpx: ModuleType) -> None:
    loop = start(1)
    with openai.AzureOpenAI(
        api_key="x",
        azure_endpoint="https://x.openai.azure.com",
        api_version="2024-10-21",
        http_client=http_client(loop.client, httpx=httpx),
    ) as sdk:
        reply = sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert reply.choices[0].message.content == "Say hello"


def test_an_async_client_does_not_take_it(start: Start) -> None:
    loop = start(1)
    with http_client(loop.client) as built, pytest.raises(TypeError, match=r"http_client"):
        openai.AsyncOpenAI(api_key="x", http_client=built)


@both
def test_httpx_alone_gets_its_own_errors(start: Start, httpx: ModuleType) -> None:
    loop = start(1)
    url = "https://api.openai.com/v1/chat/completions"
    ask = {"model": MODEL, "messages": HELLO}
    with httpx.Client(transport=transport(loop.client, httpx=httpx)) as client:
        assert client.post(url, json=ask).json()["choices"][0]["message"]["content"] == "Say hello"
        with client.stream("POST", url, json={**ask, "stream": True}) as response:
            assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]
        loop.provider().script(Fault.black_hole())
        with pytest.raises(httpx.ReadTimeout):
            client.post(url, json=ask, timeout=0.2)
        loop.provider().kill()
        with pytest.raises(httpx.ConnectError):
            client.post(url, json=ask)


def test_many_threads_share_a_client(connect: Connect) -> None:
    sdk, loop = connect(1)
    got: dict[int, Any] = {}

    def ask(place: int) -> None:
        messages = [{"role": "user", "content": f"number {place}"}]
        got[place] = sdk.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {place: f"number {place}" for place in range(16)}
    assert len(loop.attempts) == 16


# ------------------------------------------------------------------------------------------------ LangChain


def test_langchain(start: Start) -> None:
    chat = need("langchain_openai").ChatOpenAI
    loop = start(1)
    with http_client(loop.client) as built:
        model = chat(model=MODEL, api_key="x", http_client=built)
        reply = model.invoke("Say hello")
        assert reply.content == "Say hello"
        assert reply.usage_metadata["output_tokens"] > 0
        assert "".join(piece.content for piece in model.stream("Say hello")) == "Say hello"
        assert [reply.content for reply in model.batch(["one", "two"])] == ["one", "two"]
        asked = model.bind_tools([WEATHER], tool_choice="required").invoke("The weather in Rome?")
        assert asked.tool_calls[0]["name"] == "weather"
        schema = WEATHER["function"]["parameters"] | {"title": "City"}
        assert "city" in model.with_structured_output(schema, method="json_schema").invoke("Which city?")
        loop.provider().script(Fault.status(401))
        with pytest.raises(openai.AuthenticationError):
            model.invoke("Say hello")
    assert loop.provider().received == len(loop.attempts)
