"""What the local provider refuses in OpenAI's and Azure's format, and that what the SDK sends is taken."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from needs import need

from fastroute.testing import Provider

openai = need("openai")
pydantic = need("pydantic")

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "Rain"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def saying(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


def with_part(part: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return saying({"role": role, "content": [part]})


# A change to a plain request, the param of the refusal, and its code.
REFUSED: tuple[tuple[dict[str, Any], str, str | None], ...] = (
    # parameters
    ({"top_k": 3}, "top_k", "unknown_parameter"),
    ({"thinking": {"type": "enabled"}}, "thinking", "unknown_parameter"),
    ({"model": 5}, "model", "invalid_type"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": "Hi"}, "messages", "invalid_type"),
    ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ({"temperature": "0"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": -0.1}, "top_p", "decimal_below_min_value"),
    ({"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "decimal_below_min_value"),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 129}, "n", "integer_above_max_value"),
    ({"n": 1.5}, "n", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_completion_tokens": "9"}, "max_completion_tokens", "invalid_type"),
    ({"max_tokens": 9, "max_completion_tokens": 9}, "max_tokens", "invalid_parameter_combination"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"logprobs": 1}, "logprobs", "invalid_type"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"top_logprobs": 2}, "top_logprobs", None),
    ({"logit_bias": {"50256": 101}}, "logit_bias.50256", "decimal_above_max_value"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
    ({"stop": [1]}, "stop[0]", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
    ({"user": 7}, "user", "invalid_type"),
    ({"metadata": {"turn": 1}}, "metadata.turn", "invalid_type"),
    ({"modalities": ["video"]}, "modalities[0]", "invalid_value"),
    ({"audio": {"voice": "alloy"}}, "audio.format", "missing_required_parameter"),
    ({"prediction": {"type": "text", "content": "x"}}, "prediction.type", "invalid_value"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort", "invalid_value"),
    ({"service_tier": "standard_only"}, "service_tier", "invalid_value"),
    ({"verbosity": "loud"}, "verbosity", "invalid_value"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        "response_format.json_schema.name",
        "invalid_value",
    ),
    # tools
    ({"tools": []}, "tools", "empty_array"),
    ({"tools": [TOOL] * 129}, "tools", "array_above_max_length"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"name": "weather", "input_schema": {}}]}, "tools[0].type", "missing_required_parameter"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"tools": [{**TOOL, "cache_control": {}}]}, "tools[0].cache_control", "unknown_parameter"),
    ({"tools": [{**TOOL, "function": {"name": "a.b"}}]}, "tools[0].function.name", "invalid_value"),
    (
        {"tools": [{**TOOL, "function": {"name": "a", "parameters": []}}]},
        "tools[0].function.parameters",
        "invalid_type",
    ),
    ({"tool_choice": "auto"}, "tool_choice", None),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "invalid_value"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}},
        "tool_choice.name",
        "unknown_parameter",
    ),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", None),
    ({"function_call": "auto"}, "function_call", None),
    ({"functions": [{"description": "x"}]}, "functions[0].name", "missing_required_parameter"),
    # messages
    (saying(), "messages", "empty_array"),
    (saying("Hi"), "messages[0]", "invalid_type"),
    (saying({"content": "Hi"}), "messages[0].role", "missing_required_parameter"),
    (saying({"role": "model", "content": "Hi"}), "messages[0].role", "invalid_value"),
    (saying(USER, {"role": 1, "content": "Hi"}), "messages[1].role", "invalid_type"),
    (saying({"role": "user"}), "messages[0].content", "missing_required_parameter"),
    (saying({"role": "user", "content": None}), "messages[0].content", "missing_required_parameter"),
    (saying({"role": "user", "content": 5}), "messages[0].content", "invalid_type"),
    (saying({"role": "user", "content": []}), "messages[0].content", "empty_array"),
    (saying({**USER, "tool_calls": [CALL]}), "messages[0].tool_calls", "unknown_parameter"),
    (saying({**USER, "name": 5}), "messages[0].name", "invalid_type"),
    (saying(USER, {"role": "assistant"}), "messages[1].content", "invalid_type"),
    (
        saying(USER, {"role": "assistant", "content": "x", "reasoning_content": "y"}, USER),
        "messages[1].reasoning_content",
        "unknown_parameter",
    ),
    (saying({"role": "function", "content": "x"}), "messages[0].name", "missing_required_parameter"),
    # content parts
    (with_part({"text": "Hi"}), "messages[0].content[0].type", "missing_required_parameter"),
    (with_part({"type": "text"}), "messages[0].content[0].text", "missing_required_parameter"),
    (with_part({"type": "text", "text": 5}), "messages[0].content[0].text", "invalid_type"),
    (with_part({"type": "video_url", "video_url": {}}), "messages[0].content[0].type", "invalid_value"),
    (with_part({"type": "tool_result"}), "messages[0].content[0].type", "invalid_value"),
    (
        with_part({"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}),
        "messages[0].content[0].cache_control",
        "unknown_parameter",
    ),
    (
        with_part({"type": "image_url", "image_url": "https://h/x.png"}),
        "messages[0].content[0].image_url",
        "invalid_type",
    ),
    (
        with_part({"type": "image_url", "image_url": {"url": "https://h/x.png"}}, "system"),
        "messages[0].content[0].type",
        "invalid_value",
    ),
    (
        with_part({"type": "input_audio", "input_audio": {"data": "", "format": "ogg"}}),
        "messages[0].content[0].input_audio.format",
        "invalid_value",
    ),
    # tool calls and their results
    (saying(USER, RESULT), "messages[1].role", None),
    (saying(USER, CALLS), "messages[2].role", None),
    (saying(USER, CALLS, USER), "messages[2].role", None),
    (saying(USER, CALLS, USER, RESULT), "messages[2].role", None),
    (saying(USER, CALLS, RESULT, USER, RESULT), "messages[4].role", None),
    (saying(USER, CALLS, {**RESULT, "tool_call_id": "call_2"}), "messages[2].tool_call_id", None),
    (
        saying(USER, CALLS, {"role": "tool", "content": "Rain"}),
        "messages[2].tool_call_id",
        "missing_required_parameter",
    ),
    (
        saying(USER, {**CALLS, "tool_calls": [CALL, {**CALL, "id": "call_2"}]}, RESULT),
        "messages[3].role",
        None,
    ),
    (saying(USER, {**CALLS, "tool_calls": []}), "messages[1].tool_calls", "empty_array"),
    (
        saying(USER, {**CALLS, "tool_calls": [{**CALL, "id": None}]}),
        "messages[1].tool_calls[0].id",
        "missing_required_parameter",
    ),
    (
        saying(USER, {**CALLS, "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": {}}}]}),
        "messages[1].tool_calls[0].function.arguments",
        "invalid_type",
    ),
    (
        saying(USER, {**CALLS, "tool_calls": [{**CALL, "index": 0}]}),
        "messages[1].tool_calls[0].index",
        "unknown_parameter",
    ),
)

# Requests of other servers, which a provider with strict=False takes.
LENIENT = (
    {"top_k": 3, "chat_template_kwargs": {"enable_thinking": False}},
    saying({**USER, "reasoning_content": "x"}),
    saying(USER, RESULT),
    with_part({"type": "video_url", "video_url": {"url": "https://h/x.mp4"}}),
    {"temperature": 3},
)

PATHS = {
    "openai": ("/v1/chat/completions",),
    "azure": (
        "/openai/v1/chat/completions",
        "/openai/deployments/gpt-4.1/chat/completions?api-version=2024-10-21",
    ),
}
PLACES = [(format, path) for format, paths in PATHS.items() for path in paths]


@pytest.fixture(scope="module")
def providers() -> Iterator[dict[str, Provider]]:
    with Provider() as plain, Provider(format="azure") as azure:
        yield {"openai": plain, "azure": azure}


def post(provider: Provider, path: str, change: dict[str, Any]) -> requests.Response:
    return requests.post(provider.url + path, json={"model": "gpt-4.1", **saying(USER), **change}, timeout=5)


@pytest.mark.parametrize(("format", "path"), PLACES)
def test_what_the_vendor_refuses_is_refused_with_its_place(
    providers: dict[str, Provider], format: str, path: str
) -> None:
    for change, param, code in REFUSED:
        if "model" in change and "deployments" in path:
            continue  # the address has the model
        response = post(providers[format], path, change)
        assert response.status_code == 400, change
        error = response.json()["error"]
        found = (error["type"], error["param"], error["code"])
        assert found == ("invalid_request_error", param, code), (change, error)
        assert error["message"]


@pytest.mark.parametrize(("format", "path"), PLACES)
def test_other_servers_requests_need_strict_false(
    providers: dict[str, Provider], format: str, path: str
) -> None:
    with Provider(format=format, strict=False) as lenient:
        for change in LENIENT:
            assert post(providers[format], path, change).status_code == 400, change
            assert post(lenient, path, change).status_code == 200, change


def test_azures_own_parameters_are_azures(providers: dict[str, Provider]) -> None:
    change = {"data_sources": [{"type": "azure_search", "parameters": {}}]}
    assert post(providers["azure"], PATHS["azure"][1], change).status_code == 200
    assert post(providers["openai"], PATHS["openai"][0], change).json()["error"]["param"] == "data_sources"


@pytest.mark.parametrize("format", ["anthropic", "gemini"])
def test_the_other_formats_are_always_strict(format: str) -> None:
    with pytest.raises(ValueError, match="strict: cannot be False"):
        Provider(format=format, strict=False)
    with pytest.raises(TypeError, match="strict: must be True or False, not str"):
        Provider(strict="no")  # type: ignore[arg-type]


def test_a_process_of_its_own_is_as_strict() -> None:
    path = PATHS["openai"][0]
    with Provider(process=True) as strict, Provider(process=True, strict=False) as lenient:
        assert [post(each, path, {"top_k": 3}).status_code for each in (strict, lenient)] == [400, 200]


@pytest.mark.parametrize(("flags", "status"), [((), 400), (("--lenient",), 200)])
def test_the_command_is_strict_unless_told_otherwise(flags: tuple[str, ...], status: int) -> None:
    command = [sys.executable, "-m", "fastroute.testing", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            url = re.sub(r"\s", "", child.stdout.readline()) + "/chat/completions"
            ask = {"model": "m", **saying(USER), "top_k": 3}
            assert requests.post(url, json=ask, timeout=5).status_code == status
        finally:
            child.terminate()


# ---------------------------------------------------------------------------------------- the vendor's SDK


class Weather(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    city: str
    degrees: int


@pytest.fixture(params=["openai", "azure"])
def sdk(request: pytest.FixtureRequest, providers: dict[str, Provider]) -> Iterator[Any]:
    provider = providers[request.param]
    if request.param == "azure":
        made = openai.AzureOpenAI(
            api_key="k", azure_endpoint=provider.url, api_version="2024-10-21", max_retries=0
        )
    else:
        made = openai.OpenAI(api_key="k", base_url=provider.base_url, max_retries=0)
    with made as client:
        yield client


def test_the_sdks_requests_are_taken_turn_after_turn(sdk: Any) -> None:
    create = sdk.chat.completions.create
    messages: list[Any] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "name": "ada",
            "content": [
                {"type": "text", "text": "And this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a"}},
            ],
        },
    ]
    options = {
        "model": "gpt-4.1",
        "tools": [TOOL, {"type": "custom", "custom": {"name": "note"}}],
        "parallel_tool_calls": False,
        "temperature": 0,
        "top_p": 1,
        "seed": 7,
        "stop": None,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"50256": -100},
        "metadata": {"team": "a"},
        "store": True,
        "max_completion_tokens": 50,
        "reasoning_effort": "low",
        "service_tier": "auto",
        "user": "u",
    }
    first = create(messages=messages, tool_choice="required", **options).choices[0].message
    (call,) = first.tool_calls
    # The answer goes back as the SDK's own object, and as data.
    for said in (first, first.model_dump(), first.model_dump(exclude_none=True)):
        answered = [*messages, said, {"role": "tool", "tool_call_id": call.id, "content": "Rain"}]
        second = create(messages=answered, tool_choice="none", **options).choices[0].message
        create(messages=[*answered, second, USER], **options)


# Pydantic warns in the SDK of its own field, `parsed`, when the SDK's message is sent back.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_the_sdks_parse_and_streams_are_taken(sdk: Any) -> None:
    completions = sdk.chat.completions
    parsed = completions.parse(model="gpt-4.1", messages=[USER], response_format=Weather)
    message = parsed.choices[0].message
    assert isinstance(message.parsed, Weather)
    assert completions.parse(model="gpt-4.1", messages=[USER, message, USER], response_format=Weather)
    tool = openai.pydantic_function_tool(Weather)
    asked = {"model": "gpt-4.1", "messages": [USER], "tools": [tool], "tool_choice": "required"}
    called = completions.parse(**asked).choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "Rain"}
    assert completions.parse(**{**asked, "messages": [USER, called, result]})
    with completions.stream(
        model="gpt-4.1", messages=[USER], stream_options={"include_usage": True}
    ) as stream:
        assert stream.get_final_completion().usage.total_tokens
