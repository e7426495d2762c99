"""Google's own SDK against the local provider, so that what it serves is held to code that is not ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from needs import need

import fastroute
from fastroute.testing import Answer, Fault, Provider

genai = need("google.genai")
types: Any = genai.types
genai_errors: Any = need("google.genai.errors")

KEY = "local-key-of-the-sdk"
MODEL = "gemini-2.5-flash"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    names = [MODEL, *(f"model-{number}" for number in range(7))]
    with Provider(names, format="gemini", api_keys=[KEY], cached_tokens=2, reasoning_tokens=3) as running:
        yield running


@pytest.fixture(scope="module")
def client(provider: Provider) -> Iterator[Any]:
    options = types.HttpOptions(base_url=provider.url, retry_options=types.HttpRetryOptions(attempts=1))
    made = genai.Client(api_key=KEY, http_options=options)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def as_usual(provider: Provider) -> None:
    provider.clear_script()
    provider.answer = None


def test_a_plain_answer(client: Any, provider: Provider) -> None:
    config = types.GenerateContentConfig(
        system_instruction="Be brief.",
        temperature=0,
        top_k=3,
        max_output_tokens=100,
        stop_sequences=["end"],
        thinking_config=types.ThinkingConfig(thinking_budget=0),
    )
    reply = client.models.generate_content(model=MODEL, contents="hello there", config=config)
    assert reply.text == "hello there"
    assert reply.candidates[0].finish_reason == types.FinishReason.STOP
    usage = reply.usage_metadata
    assert (usage.cached_content_token_count, usage.thoughts_token_count) == (2, 3)
    assert usage.total_token_count == (
        usage.prompt_token_count + usage.candidates_token_count + usage.thoughts_token_count
    )
    assert provider.requests[-1].headers["x-goog-api-key"] == KEY
    assert KEY not in provider.requests[-1].path


def test_a_stream(client: Any) -> None:
    chunks = list(client.models.generate_content_stream(model=MODEL, contents="hello there"))
    assert "".join(chunk.text or "" for chunk in chunks) == "hello there"
    assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP
    assert chunks[-1].usage_metadata.candidates_token_count == 3


def test_tools_and_their_results(client: Any, provider: Provider) -> None:
    asked: list[str] = []

    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "sunny"

    # As without `from __future__ import annotations`, which the SDK of Python 3.10 does not understand.
    weather.__annotations__ = {"city": str, "return": str}
    provider.answer = lambda received: (
        Answer(content="It is sunny.")
        if "functionResponse" in str(received.json)
        else Answer(tool_calls=(("weather", '{"city": "Oslo"}'), ("weather", '{"city": "Bergen"}')))
    )
    reply = client.models.generate_content(
        model=MODEL, contents="The weather?", config=types.GenerateContentConfig(tools=[weather])
    )
    assert reply.text == "It is sunny."
    assert asked == ["Oslo", "Bergen"]


def test_structured_output(client: Any) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    config = types.GenerateContentConfig(response_mime_type="application/json", response_json_schema=schema)
    reply = client.models.generate_content(model=MODEL, contents="Ann", config=config)
    assert json.loads(reply.text) == {"name": "Ann"}


def test_images(client: Any) -> None:
    parts = [types.Part.from_bytes(data=b"ABC", mime_type="image/png"), "What is it?"]
    assert client.models.generate_content(model=MODEL, contents=parts).text == "What is it?"


@pytest.mark.parametrize(
    ("fault", "status", "word"),
    [
        (Fault.error("rate_limit_exceeded"), 429, "RESOURCE_EXHAUSTED"),
        (Fault.error("context_length_exceeded"), 400, "INVALID_ARGUMENT"),
        (Fault.status(503), 503, "UNAVAILABLE"),
    ],
)
def test_errors(client: Any, provider: Provider, fault: Fault, status: int, word: str) -> None:
    provider.script(fault)
    with pytest.raises(genai_errors.APIError) as caught:
        client.models.generate_content(model=MODEL, contents="x")
    assert (caught.value.code, caught.value.status) == (status, word)


def test_a_wrong_key_and_a_wrong_model(client: Any, provider: Provider) -> None:
    with pytest.raises(genai_errors.ClientError) as caught:
        client.models.generate_content(model="nothing", contents="x")
    assert caught.value.code == 404
    options = types.HttpOptions(base_url=provider.url)
    other = genai.Client(api_key="a-wrong-key", http_options=options)
    with pytest.raises(genai_errors.ClientError, match="API key not valid"):
        other.models.generate_content(model=MODEL, contents="x")
    other.close()


def test_the_models_come_in_pages(client: Any) -> None:
    listed = [model.name for model in client.models.list(config={"page_size": 3, "query_base": True})]
    assert len(listed) == 8
    assert listed[0] == f"models/{MODEL}"


def test_fastroute_asks_the_same_as_the_sdk(
    client: Any, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same conversation by both ways: the same body, but for the ids of the calls."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    declaration = types.FunctionDeclaration(
        name="weather", description="Of it.", parameters_json_schema=schema
    )
    config = types.GenerateContentConfig(
        system_instruction="Be brief.",
        temperature=0,
        top_p=0.5,
        max_output_tokens=50,
        stop_sequences=["x"],
        seed=7,
        tools=[types.Tool(function_declarations=[declaration])],
        tool_config=types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(
                mode="ANY", allowed_function_names=["weather"]
            )
        ),
    )
    contents = [
        types.UserContent(["Look", types.Part.from_bytes(data=b"ABC", mime_type="image/png")]),
        types.ModelContent([types.Part.from_function_call(name="weather", args={"city": "Oslo"})]),
        types.UserContent([types.Part.from_function_response(name="weather", response={"result": "sun"})]),
    ]
    client.models.generate_content(model=MODEL, contents=contents, config=config)
    theirs = provider.requests[-1].json
    monkeypatch.setenv("SDK_TEST_KEY", KEY)
    tables = {
        "fastroute": {"ledger": ""},
        "providers": {
            "g": {"format": "gemini", "base_url": provider.base_url, "api_key_env": "SDK_TEST_KEY"}
        },
        "endpoints": [{"provider": "g", "model": MODEL}],
    }
    tool = {"name": "weather", "description": "Of it.", "parameters": schema}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    with fastroute.Client(tables) as ours:
        ours.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Look"}, image]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "sun"},
            ],
            temperature=0,
            top_p=0.5,
            max_tokens=50,
            stop=["x"],
            seed=7,
            tools=[{"type": "function", "function": tool}],
            tool_choice={"type": "function", "function": {"name": "weather"}},
        )
    assert comparable(provider.requests[-1].json) == comparable(theirs)


def comparable(value: Any) -> Any:
    """A body under one spelling of its names, without what the two sides may differ in."""
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, item in value.items():
        first, *rest = name.split("_")
        camel = first + "".join(word.capitalize() for word in rest)
        if camel == "systemInstruction":
            item = {"parts": item["parts"]}  # a role there says nothing
        if camel != "id":
            found[camel] = comparable(item)
    return found
