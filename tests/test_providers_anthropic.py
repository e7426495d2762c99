"""The Anthropic format: what goes on the wire, and what is made of answers, usage and errors.

Every request is held to two judges that are not the encoder: the types of Anthropic's own package, and the
parser of the local provider, which knows what types cannot say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import need

from fastroute import errors, types
from fastroute.providers import Target, get
from fastroute.testing._anthropic_question import question_in

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
    "anthropic/claude",
    "anthropic",
    "claude",
    "claude-opus-5-5",
    "https://api.anthropic.com",
    Secret(),
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


# ------------------------------------------------------------------------------------------ url and headers


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://a.example", "https://a.example/v1/messages"),
        ("https://a.example/", "https://a.example/v1/messages"),
        ("https://a.example/v1", "https://a.example/v1/messages"),
        ("https://a.example/anthropic/v1/", "https://a.example/anthropic/v1/messages"),
        ("https://a.example/anthropic?beta=true", "https://a.example/anthropic/v1/messages?beta=true"),
    ],
)
def test_url(base_url: str, url: str) -> None:
    assert ANTHROPIC.url(attrs.evolve(TARGET, base_url=base_url), False) == url


def test_headers() -> None:
    plain, stream = ANTHROPIC.headers(TARGET, False), ANTHROPIC.headers(TARGET, True)
    assert plain["x-api-key"] == KEY
    assert plain["anthropic-version"] == "2023-06-01"
    assert "Authorization" not in plain
    assert (plain["Accept"], stream["Accept"]) == ("application/json", "text/event-stream")
    assert stream["Accept-Encoding"] == "identity"
    assert "x-api-key" not in ANTHROPIC.headers(attrs.evolve(TARGET, key=None), False)
    beta = attrs.evolve(TARGET, headers={"Anthropic-Version": "2099-01-01", "anthropic-beta": "x"})
    assert ANTHROPIC.headers(beta, False)["Anthropic-Version"] == "2099-01-01"
    assert "anthropic-version" not in ANTHROPIC.headers(beta, False)
    with pytest.raises(errors.ConfigError, match="the API key") as caught:
        ANTHROPIC.headers(attrs.evolve(TARGET, key=Secret("hunter2\n")), False)
    assert "hunter2" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- messages


def test_the_least_request() -> None:
    assert sent() == {"model": "claude-opus-5-5", "max_tokens": 64_000, "messages": [USER]}
    assert sent(stream=True)["stream"] is True


def test_instructions_stand_before_all_turns() -> None:
    body = sent(
        {"role": "system", "content": "one"},
        USER,
        {"role": "developer", "content": [{"type": "text", "text": "two"}]},
    )
    assert body["system"] == "one\n\ntwo"
    assert body["messages"] == [USER]
    cached = {"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}
    assert sent({"role": "system", "content": [cached]}, USER)["system"] == [cached]
    assert "system" not in sent({"role": "system", "content": ""}, USER)


def test_turns_of_one_role_in_a_row_are_one_turn() -> None:
    found = turns(
        USER, {"role": "user", "content": "again"}, {"role": "assistant", "content": ""}, USER, USER
    )
    texts = [{"type": "text", "text": text} for text in ("hello", "again", "hello", "hello")]
    assert found == [{"role": "user", "content": texts}]


def test_an_answer_begun_for_the_model_ends_without_blanks() -> None:
    assert (
        turns(USER, {"role": "assistant", "content": "The answer is  \n"})[-1]["content"] == "The answer is"
    )
    assert turns(USER, {"role": "assistant", "content": "  "}) == [USER]


@pytest.mark.parametrize(
    ("part", "block"),
    [
        ({"type": "text", "text": "a"}, {"type": "text", "text": "a"}),
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        ),
        (
            {"type": "image_url", "image_url": f"data:image/JPG;base64,{PNG}"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": PNG}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
        ),
        (
            {
                "type": "file",
                "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"},
            },
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": PNG},
                "title": "a.pdf",
            },
        ),
        (
            {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
            {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
        ),
    ],
)
def test_parts(part: dict[str, Any], block: dict[str, Any]) -> None:
    end = {"type": "text", "text": "?"}
    assert turns({"role": "user", "content": [part, end]})[0]["content"] == [block, end]
    mark = {"cache_control": {"type": "ephemeral"}}
    assert turns({"role": "user", "content": [{**part, **mark}]})[0]["content"] == [{**block, **mark}]


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (SECRET, r"messages\[0\]: must be a mapping, not str"),
        ({"role": "user", "content": ""}, r"messages\[0\].content: is empty"),
        ({"role": "user", "content": [{"type": "text", "text": ""}]}, r"messages\[0\].content: is empty"),
        ({"role": "user", "content": None}, r"messages\[0\].content: is empty"),
        ({"role": "user", "content": 5}, r"messages\[0\].content: must be text or a list"),
        ({"role": "user", "content": [SECRET]}, r"messages\[0\].content\[0\]: must be a mapping"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, r"content\[0\].text: must be a string"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, r"no such content: input_audio"),
        ({"role": "user", "content": [{"type": SECRET}]}, r"no such content: of an unknown type"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"image_url.url: must be a string"),
        (
            image(SECRET),
            "must be an https: or data:",
        ),
        (
            image(f"data:image/png,{SECRET}"),
            "with Base64 data",
        ),
        (
            image("data:image/tiff;base64,AA=="),
            "must be one of image/jpeg",
        ),
        (file(file_id=SECRET), "file_data: must be"),
        (
            {
                "role": "user",
                "content": [{"type": "file", "file": {"file_data": "data:text/csv;base64,AA=="}}],
            },
            "application/pdf",
        ),
        ({"role": "user", "content": SECRET, "name": SECRET}, r"messages\[0\].name: .* no names"),
        ({"role": "function", "content": SECRET}, r"messages\[0\].role: must be"),
        ({"role": "assistant", "function_call": {"name": SECRET}}, r"function_call: .* no such field"),
        ({"role": "assistant", "tool_calls": SECRET}, r"tool_calls: must be a list"),
        (
            call(id="a"),
            r"tool_calls\[0\]: must be a call of a function",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": SECRET}}],
            },
            r"tool_calls\[0\].function.arguments: must be a JSON object",
        ),
        (
            call(function={"name": "f", "arguments": "{}"}),
            r"tool_calls\[0\].id: must be a string",
        ),
        (
            call(id="a", function={"arguments": "{}"}),
            r"tool_calls\[0\].function.name",
        ),
        ({"role": "tool", "content": SECRET}, r"messages\[0\].tool_call_id: must be a string"),
        ({"role": "system", "content": SECRET}, "messages: the anthropic format needs one beside"),
        (
            {"role": "system", "content": [{"type": "image_url", "image_url": "https://a.example"}]},
            "instructions are text only",
        ),
    ],
)
def test_messages_that_cannot_be_said_are_refused_with_their_place(message: Any, place: str) -> None:
    error = refused(message)
    assert error.param == "messages"
    assert re.search(place, str(error))


def test_calls_and_their_results() -> None:
    found = turns(
        USER,
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {
                    "id": "call.1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
                },
                {"id": "call.2", "type": "function", "function": {"name": "weather", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "call.1", "content": "sunny"},
        {
            "role": "tool",
            "tool_call_id": "call.2",
            "name": "weather",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            ],
            "is_error": True,
        },
        {"role": "user", "content": "and now?"},
        tools=[WEATHER],
    )
    assert found[1]["content"] == [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
    ]
    assert found[2] == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"},
            {
                "type": "tool_result",
                "tool_use_id": "call_2",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
                ],
                "is_error": True,
            },
            {"type": "text", "text": "and now?"},
        ],
    }


WORDS = st.text(min_size=1, max_size=20).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Anything that OpenAI would take as a conversation."""
    messages: list[dict[str, Any]] = []
    serial = 0
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            messages.append({"role": draw(st.sampled_from(["system", "developer"])), "content": draw(WORDS)})
        messages.append({"role": "user", "content": draw(WORDS)})
        answer: dict[str, Any] = {"role": "assistant", "content": draw(st.none() | st.just("") | WORDS)}
        calls = draw(st.integers(0, 3))
        if calls:
            answer["tool_calls"] = [
                {
                    "id": f"call:{serial + number}",
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "arguments": draw(st.sampled_from(["", "{}", '{"city": "x"}'])),
                    },
                }
                for number in range(calls)
            ]
        messages.append(answer)
        for number in range(calls):
            result = draw(st.just("") | WORDS)
            messages.append({"role": "tool", "tool_call_id": f"call:{serial + number}", "content": result})
        serial += calls
    return messages


@settings(max_examples=40)
@given(conversations())
def test_any_conversation_becomes_one_that_is_taken(messages: list[dict[str, Any]]) -> None:
    before = json.dumps(messages)
    found = turns(*messages, tools=[WEATHER])
    assert json.dumps(messages) == before
    assert [turn["role"] for turn in found] == ["user", "assistant"] * (len(found) // 2) + ["user"] * (
        len(found) % 2
    )


NAMES = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "file",
        "file_data",
        "tool_calls",
        "tool_call_id",
        "id",
        "function",
        "name",
        "arguments",
        "parameters",
        "json_schema",
        "schema",
        "properties",
        "user",
        "assistant",
        "system",
        "tool",
        "data:image/png;base64,AA==",
    ]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": ANYTHING},
    optional={"tool_calls": ANYTHING, "tool_call_id": ANYTHING, "thinking_blocks": ANYTHING},
)
PARAMETERS = [
    "temperature",
    "stop",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "user",
    "metadata",
    "service_tier",
    "n",
    "output_config",
]


@settings(max_examples=80)
@given(
    st.lists(MESSAGE | ANYTHING, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(PARAMETERS), ANYTHING, max_size=3),
)
def test_whatever_is_asked_is_sent_or_refused(messages: list[Any], given_params: dict[str, Any]) -> None:
    request = types.Request("claude", messages, given_params)
    try:
        json.loads(ANTHROPIC.encode(request, TARGET))
    except errors.BadRequestError:
        pass


def test_a_request_inside_itself_or_of_no_json_is_refused() -> None:
    loop: dict[str, Any] = {"type": "object"}
    loop["properties"] = {"a": loop}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": loop}}
    assert "inside itself" in str(refused(response_format=shape))
    assert "inside itself" in str(refused(tools=[{"function": {"name": "f", "parameters": loop}}]))
    assert "temperature: not a finite number" in str(refused(temperature=float("nan")))


# ------------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("given", "limit", "expected"),
    [
        ({}, 64_000, 64_000),
        ({}, None, 8192),
        ({"max_tokens": 10}, 64_000, 10),
        ({"max_tokens": 0}, 64_000, 0),
        ({"max_tokens": -1}, 64_000, 64_000),
        ({"max_tokens": 10, "max_completion_tokens": 20}, 64_000, 20),
        ({"max_tokens": 10**7}, 64_000, 64_000),
        ({"max_tokens": 10**7}, None, 10**7),
    ],
)
def test_the_output_limit_is_always_said(given: dict[str, Any], limit: int | None, expected: int) -> None:
    body = sent(target=attrs.evolve(TARGET, max_output=limit), **given)
    assert body["max_tokens"] == expected
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}),
        ({"temperature": None, "stop": None, "seed": None}, {}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"stop": []}, {}),
        ({"user": "u1"}, {"metadata": {"user_id": "u1"}}),
        ({"safety_identifier": "u2"}, {"metadata": {"user_id": "u2"}}),
        ({"metadata": {"user_id": "u3"}, "user": "u1"}, {"metadata": {"user_id": "u3"}}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"stream_options": {"include_usage": True}, "prompt_cache_key": "k"}, {}),
        ({"n": 1, "presence_penalty": 0.0, "logprobs": False, "store": False, "logit_bias": {}}, {}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "disabled"}}),
        ({"inference_geo": "eu"}, {"inference_geo": "eu"}),
        ({"system": "native"}, {"system": "native"}),
        ({"response_format": {"type": "text"}}, {}),
        ({"tool_choice": "auto"}, {}),
        ({"tools": [], "parallel_tool_calls": False, "tool_choice": "none"}, {}),
    ],
)
def test_parameters(given: dict[str, Any], expected: dict[str, Any]) -> None:
    body = sent(**given)
    for name in ("model", "max_tokens", "messages"):
        del body[name]
    assert body == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"n": 2}, "n: the anthropic format has no such parameter; leave it out"),
        ({"seed": 0}, "seed: the anthropic format has no such parameter"),
        ({"logprobs": True}, "logprobs: "),
        ({"top_logprobs": 2}, "top_logprobs: "),
        ({"logit_bias": {"1": 2}}, "logit_bias: "),
        ({"presence_penalty": 0.1}, "presence_penalty: "),
        ({"frequency_penalty": -0.1}, "frequency_penalty: "),
        ({"modalities": ["audio"]}, "modalities: "),
        ({"audio": {"voice": SECRET}}, "audio: "),
        ({"prediction": {"content": SECRET}}, "prediction: "),
        ({"store": True}, "store: "),
        ({"web_search_options": {}}, "web_search_options: "),
        ({"functions": []}, "functions: the anthropic format has no such parameter; use tools"),
        ({"function_call": "auto"}, "function_call: .*; use tool_choice"),
        ({"verbosity": "low"}, "verbosity: "),
        ({"temperature": 1.2}, "temperature: the anthropic format takes 0 to 1"),
        ({"stop": "\n"}, "stop: the anthropic format takes no stop sequence that is empty or blank"),
        ({"stop": [SECRET, ""]}, "stop: "),
        ({"stop": 5}, "stop: must be a string"),
        ({"metadata": {"topic": SECRET}}, "metadata: .* user_id"),
        ({"metadata": SECRET}, "metadata: must be a mapping, not str"),
        ({"service_tier": "flex"}, "service_tier: "),
        ({"reasoning_effort": "utmost"}, "reasoning_effort: must be one of none, minimal"),
        ({"response_format": "json"}, "response_format: must be a mapping"),
        ({"response_format": {"type": "json_schema"}}, "response_format: .* with a schema"),
        ({"response_format": {"type": SECRET}}, "response_format: must be text"),
        ({"response_format": {"type": "json_object"}, "tools": [WEATHER]}, "response_format: .* no tools"),
        ({"tools": SECRET}, "tools: must be a list, not str"),
        ({"tools": [SECRET]}, r"tools\[0\]: must be a mapping"),
        ({"tools": [{"type": "custom", "custom": {"name": SECRET}}]}, r"tools\[0\]: .* type function"),
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\].function.name: "),
        ({"tools": [WEATHER], "tool_choice": SECRET}, "tool_choice: must be auto"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice: must be auto"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(given: dict[str, Any], reason: str) -> None:
    error = refused(**given)
    assert re.search(reason, str(error))
    assert error.param == reason.partition(":")[0].partition("\\[")[0]


def test_instructions_said_twice_are_refused() -> None:
    assert "system" in str(refused({"role": "system", "content": SECRET}, USER, system=SECRET))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
        ({"type": "tool", "name": "weather"}, {"type": "tool", "name": "weather"}),
    ],
)
def test_tool_choice(given: Any, expected: dict[str, Any]) -> None:
    body = sent(tools=[WEATHER], tool_choice=given)
    assert body["tool_choice"] == expected
    single = sent(tools=[WEATHER], tool_choice=given, parallel_tool_calls=False)["tool_choice"]
    more = {} if given == "none" else {"disable_parallel_tool_use": True}
    assert single == {**expected, **more}
    assert sent(tools=[WEATHER], tool_choice=given, parallel_tool_calls=True)["tool_choice"] == expected


def test_tools() -> None:
    bare = {"type": "function", "function": {"name": "now", "strict": True}}
    native = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
    body = sent(tools=[WEATHER, bare, native], parallel_tool_calls=False)
    function = WEATHER["function"]
    assert isinstance(function, dict)
    assert body["tools"] == [
        {
            "name": "weather",
            "description": "The weather in a city.",
            "input_schema": function["parameters"],
        },
        {"name": "now", "input_schema": {"type": "object", "properties": {}}, "strict": True},
        native,
    ]
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}


def test_a_schema_for_the_answer_is_closed_where_it_is_open() -> None:
    schema = {
        "type": "object",
        "properties": {
            "properties": {"type": "string", "enum": ["object"]},
            "list": {"type": "array", "items": {"properties": {"a": {"type": ["object", "null"]}}}},
            "default": {"$ref": "#/$defs/x"},
        },
        "required": ["list"],
        "$defs": {"x": {"type": "object", "additionalProperties": False}},
    }
    before = json.dumps(schema)
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    config = sent(response_format=shape, output_config={"effort": "low"})["output_config"]
    closed = json.loads(before)
    closed["additionalProperties"] = False
    items = closed["properties"]["list"]["items"]
    items["additionalProperties"] = items["properties"]["a"]["additionalProperties"] = False
    assert config == {"format": {"type": "json_schema", "schema": closed}, "effort": "low"}
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    ("model", "effort", "most", "thinking", "level"),
    [
        ("claude-opus-5-5", "high", 100, {"type": "adaptive"}, "high"),
        ("claude-x", "minimal", 100, {"type": "adaptive"}, "low"),
        ("claude-opus-4-6", "max", 9, {"type": "adaptive"}, "max"),
        ("claude-opus-5-5", "none", 100, {"type": "disabled"}, None),
        ("claude-sonnet-4-5", "none", 100, None, None),
        ("claude-sonnet-4-5-20250929", "low", 10_000, 2000, None),
        ("anthropic/claude-haiku-4.5", "minimal", 2000, 1024, None),
        ("claude-3-7-sonnet-latest", "high", 64_000, 32_000, None),
        ("claude-opus-4-20250514", "max", 1025, 1024, None),
    ],
)
def test_effort(model: str, effort: str, most: int, thinking: Any, level: str | None) -> None:
    body = sent(target=attrs.evolve(TARGET, upstream=model), reasoning_effort=effort, max_tokens=most)
    if isinstance(thinking, int):
        thinking = {"type": "enabled", "budget_tokens": thinking}
    assert body.get("thinking") == thinking
    assert body.get("output_config") == (None if level is None else {"effort": level})


def test_effort_that_finds_no_room_to_think_is_refused() -> None:
    error = refused(target=OLD, reasoning_effort="low", max_tokens=1024)
    assert error.param == "reasoning_effort"
    assert "1024" in str(error)
    native = {"type": "enabled", "budget_tokens": 2000}
    assert sent(target=OLD, reasoning_effort="low", thinking=native)["thinking"] == native


def test_errors_have_their_classes() -> None:
    def read(status: int, kind: str, message: str = "", **details: str) -> errors.APIError:
        error: dict[str, Any] = {"type": kind, "message": message}
        if details:
            error["details"] = details
        body = json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()
        return ANTHROPIC.decode_error(status, {"request-id": "req_1"}, body, TARGET)

    table: list[tuple[errors.APIError, type[errors.APIError]]] = [
        (read(400, "invalid_request_error", "messages: bad"), errors.BadRequestError),
        (
            read(400, "invalid_request_error", "prompt is too long: 210042 tokens > 200000 maximum"),
            errors.ContextLengthExceeded,
        ),
        (
            read(
                400,
                "invalid_request_error",
                "input length and `max_tokens` exceed context limit: 190000 + 64000 > 200000",
            ),
            errors.ContextLengthExceeded,
        ),
        (
            read(400, "invalid_request_error", "Output blocked by content filtering policy"),
            errors.ContentFilterError,
        ),
        (
            read(400, "invalid_request_error", "Your credit balance is too low to access the API."),
            errors.QuotaExceededError,
        ),
        (read(401, "authentication_error", f"invalid {KEY}"), errors.AuthenticationError),
        (read(402, "billing_error", "pay"), errors.QuotaExceededError),
        (read(403, "permission_error", "no"), errors.PermissionDeniedError),
        (read(404, "not_found_error", "model: x"), errors.NotFoundError),
        (read(413, "request_too_large", "Request exceeds the maximum size"), errors.RequestTooLargeError),
        (read(429, "rate_limit_error", "slow"), errors.RateLimitError),
        (
            read(429, "rate_limit_error", "slow", error_code="enforced_spend_limit_reached"),
            errors.QuotaExceededError,
        ),
        (
            read(429, "rate_limit_error", "slow", error_code="contract_spend_limit_reached"),
            errors.QuotaExceededError,
        ),
        (read(500, "api_error", "x"), errors.InternalServerError),
        (read(504, "timeout_error", "x"), errors.InternalServerError),
        (read(529, "overloaded_error", "Overloaded"), errors.InternalServerError),
    ]
    for error, kind in table:
        assert type(error) is kind, error
        assert error.request_id == "req_1"
        assert KEY not in str(error)


def test_a_used_up_limit_says_how_long_to_wait() -> None:
    headers = {
        "date": "Thu, 21 Aug 2025 12:40:39 GMT",
        "anthropic-ratelimit-tokens-limit": "1000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2025-08-21T12:40:59Z",
    }
    body = b'{"type":"error","error":{"type":"rate_limit_error","message":"x"}}'
    assert ANTHROPIC.decode_error(429, headers, body, TARGET).retry_after == 20
    assert ANTHROPIC.decode_error(429, {**headers, "retry-after": "3"}, body, TARGET).retry_after == 3


@pytest.mark.parametrize(
    ("status", "reset", "wait"),
    [
        ("rejected", "1755787239", 7200),
        ("allowed", "1755787239", None),
        ("rejected", "1755780000", None),
        ("rejected", "soon", None),
        ("rejected", "", None),
    ],
)
def test_a_subscription_s_limit_says_when_it_begins_anew(status: str, reset: str, wait: float | None) -> None:
    headers = {
        "date": "Thu, 21 Aug 2025 12:40:39 GMT",
        "anthropic-ratelimit-unified-status": status,
        "anthropic-ratelimit-unified-reset": reset,
    }
    body = b'{"type":"error","error":{"type":"rate_limit_error","message":"x"}}'
    assert ANTHROPIC.decode_error(429, headers, body, TARGET).retry_after == wait
