"""The Gemini format: what goes on the wire."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from gemini_questions import GEMINI, HELLO, KEY, NEWER, TARGET, TOOL, answer, ask, call, decoded, sent

from fastroute import errors
from fastroute.providers.gemini_request import LABELS, UNSIGNED

# ---------------------------------------------------------------------------------------------- the address


@pytest.mark.parametrize(
    ("base_url", "upstream", "url"),
    [
        ("https://a.example/v1beta", "gemini-2.5-flash", "/v1beta/models/gemini-2.5-flash:generateContent"),
        ("https://a.example/v1beta/", "models/gemini-x", "/v1beta/models/gemini-x:generateContent"),
        ("https://a.example", "gemini-x", "/v1beta/models/gemini-x:generateContent"),
        ("https://a.example/v1", "tunedModels/mine", "/v1/tunedModels/mine:generateContent"),
        ("https://a.example/v1", "a/b?c#d e:f", "/v1/models/a%2Fb%3Fc%23d%20e%3Af:generateContent"),
    ],
)
def test_url(base_url: str, upstream: str, url: str) -> None:
    target = attrs.evolve(TARGET, base_url=base_url, upstream=upstream)
    assert GEMINI.url(target, False) == "https://a.example" + url
    streamed = url.replace(":generateContent", ":streamGenerateContent") + "?alt=sse"
    assert GEMINI.url(target, True) == "https://a.example" + streamed


@pytest.mark.parametrize("upstream", ["..", "models/../files", "a//b", "./x"])
def test_a_model_s_name_leads_nowhere_else(upstream: str) -> None:
    with pytest.raises(errors.ConfigError, match="upstream"):
        GEMINI.url(attrs.evolve(TARGET, upstream=upstream), False)


@pytest.mark.parametrize("stream", [False, True])
def test_the_key_is_in_its_header_and_nowhere_else(stream: bool) -> None:
    headers = GEMINI.headers(TARGET, stream)
    assert headers.pop("x-goog-api-key") == KEY
    assert KEY not in GEMINI.url(TARGET, stream) + repr(headers) + GEMINI.encode(ask(), TARGET).decode()
    assert "x-goog-api-key" not in GEMINI.headers(attrs.evolve(TARGET, key=None), stream)


# ------------------------------------------------------------------------------------------------- messages


def test_roles_and_the_system_s_words() -> None:
    body = sent(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "developer", "content": [{"type": "text", "text": "And kind."}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
        ]
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "And kind."}]}
    assert body["contents"] == [
        {"role": "user", "parts": [{"text": "Hi"}]},
        {"role": "model", "parts": [{"text": "Hello."}]},
        {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
    ]


@pytest.mark.parametrize(
    ("part", "wire"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD", "detail": "low"}},
            {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "data:text/plain;charset=utf-8,a%20b"}},
            {"inlineData": {"mimeType": "text/plain", "data": "YSBi"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://a.example/x.webp?size=2"}},
            {"fileData": {"mimeType": "image/webp", "fileUri": "https://a.example/x.webp?size=2"}},
        ),
        (
            {"type": "image_url", "image_url": "https://a.example/picture"},
            {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://a.example/picture"}},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
            {"inlineData": {"mimeType": "audio/wav", "data": "QUJD"}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD"}},
            {"inlineData": {"mimeType": "application/pdf", "data": "QUJD"}},
        ),
        ({"fileData": {"fileUri": "gs://b/v.mp4"}}, {"fileData": {"fileUri": "gs://b/v.mp4"}}),
    ],
)
def test_parts(part: dict[str, Any], wire: dict[str, Any]) -> None:
    body = sent([{"role": "user", "content": [{"type": "text", "text": "look"}, part]}])
    assert body["contents"] == [{"role": "user", "parts": [{"text": "look"}, wire]}]


def test_parallel_calls_and_their_results() -> None:
    body = sent(
        [
            *HELLO,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [call("1", "weather", '{"city": "Oslo"}'), call("2", "clock")],
            },
            {"role": "tool", "tool_call_id": "1", "content": '{"sky": "clear"}'},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "noon"}]},
            {"role": "user", "content": "Well?"},
        ]
    )
    assert body["contents"][1:] == [
        {
            "role": "model",
            "parts": [
                {"functionCall": {"id": "1", "name": "weather", "args": {"city": "Oslo"}}},
                {"functionCall": {"id": "2", "name": "clock", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "1", "name": "weather", "response": {"sky": "clear"}}},
                {"functionResponse": {"id": "2", "name": "clock", "response": {"result": "noon"}}},
            ],
        },
        {"role": "user", "parts": [{"text": "Well?"}]},
    ]


@pytest.mark.parametrize("content", ["17", "[1]", "plain", "", None, "null"])
def test_a_result_that_is_no_object_becomes_one(content: str | None) -> None:
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call("1", "f")]},
        {"role": "tool", "tool_call_id": "1", "content": content},
    ]
    (part,) = sent(messages)["contents"][-1]["parts"]
    assert part["functionResponse"]["response"] == {"result": content or ""}


def test_thought_signatures_go_back_and_calls_of_others_say_that_they_have_none() -> None:
    signed = call("1", "f", extra_content={"google": {"thought_signature": "c2ln"}})
    for target, unsigned in ((TARGET, None), (NEWER, UNSIGNED)):
        messages = [
            *HELLO,
            {"role": "assistant", "tool_calls": [signed, call("2", "g")]},
            {"role": "tool", "tool_call_id": "1", "content": "x"},
            {"role": "tool", "tool_call_id": "2", "content": "x"},
            {"role": "assistant", "tool_calls": [call("3", "h")]},
            {"role": "tool", "tool_call_id": "3", "content": "x"},
        ]
        contents = sent(messages, target)["contents"]
        assert [part.get("thoughtSignature") for part in contents[1]["parts"]] == ["c2ln", None]
        assert [part.get("thoughtSignature") for part in contents[3]["parts"]] == [unsigned]


def test_a_message_of_an_earlier_answer_goes_back_as_it_is() -> None:
    first = decoded(
        answer({"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"})
    ).choices[0]
    assert first.finish_reason == "tool_calls"
    (made,) = first.message.tool_calls or ()
    messages = [*HELLO, first.message, {"role": "tool", "tool_call_id": made.id, "content": "x"}]
    model = sent(messages)["contents"][1]
    assert model["parts"] == [
        {"functionCall": {"id": made.id, "name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"}
    ]


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "robot", "content": "x"}, "messages[1].role"),
        ({"role": "tool", "tool_call_id": "nobody", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "video"}]}, "messages[1].content[0]"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[1].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "data:nonsense"}]},
            "messages[1].content[0].image_url.url",
        ),
        ({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}, "messages[1].content[0]"),
        (
            {"role": "assistant", "tool_calls": [call("1", "f", "no json")]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[1].function_call"),
        ({"role": "user", "name": "ann", "content": "x"}, "messages[1].name"),
        (7, "messages[1]"),
    ],
)
def test_a_message_that_cannot_be_said_is_an_error_with_its_place(message: Any, place: str) -> None:
    with pytest.raises(errors.BadRequestError) as caught:
        sent([*HELLO, message])
    assert caught.value.message.startswith(f"{place}: ")
    assert caught.value.param == "messages"


def test_system_messages_alone_are_no_question() -> None:
    with pytest.raises(errors.BadRequestError, match="system"):
        sent([{"role": "system", "content": "x"}])


# ----------------------------------------------------------------------------------------------- parameters


def test_parameters() -> None:
    body = sent(
        temperature=0,
        top_p=0.5,
        max_completion_tokens=50,
        max_tokens=70,
        stop="end",
        seed=0,
        presence_penalty=-1,
        frequency_penalty=0.5,
        n=2,
        logprobs=True,
        top_logprobs=3,
        reasoning_effort="low",
        user="ann",
    )
    assert body.keys() == {"contents", "generationConfig"}
    assert body["generationConfig"] == {
        "temperature": 0,
        "topP": 0.5,
        "maxOutputTokens": 50,
        "stopSequences": ["end"],
        "seed": 0,
        "presencePenalty": -1,
        "frequencyPenalty": 0.5,
        "candidateCount": 2,
        "responseLogprobs": True,
        "logprobs": 3,
        "thinkingConfig": {"thinkingBudget": 1024},
    }


def test_nothing_asked_is_nothing_sent() -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ["temperature", "stop", "tools", "tool_choice", "response_format", "reasoning_effort", "logit_bias"]
    )
    nothing.update(n=1, presence_penalty=0, logprobs=False, store=False, logit_bias={}, service_tier="auto")
    assert sent(**nothing).keys() == {"contents"}
    assert sent(service_tier="flex")["serviceTier"] == "flex"


@pytest.mark.parametrize(("wanted", "limit"), [(1000, 100), (100, 100), (0, 0), (-1, None), ("x", "x")])
def test_the_output_limit_is_the_model_s_at_most(wanted: Any, limit: Any) -> None:
    assert sent(max_tokens=wanted).get("generationConfig", {}).get("maxOutputTokens") == limit


@pytest.mark.parametrize(
    ("upstream", "effort", "thinking"),
    [
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "high", {"thinkingBudget": 24576}),
        ("gemini-3-flash-preview", "none", {"thinkingLevel": "minimal"}),
        ("gemini-3-pro-preview", "minimal", {"thinkingLevel": "low"}),
        ("gemini-flash-latest", "medium", {"thinkingLevel": "medium"}),
        ("gemini-3-pro-preview", "xhigh", {"thinkingLevel": "high"}),
    ],
)
def test_effort(upstream: str, effort: str, thinking: dict[str, Any]) -> None:
    body = sent(target=attrs.evolve(TARGET, upstream=upstream), reasoning_effort=effort)
    assert body["generationConfig"]["thinkingConfig"] == thinking


@pytest.mark.parametrize(
    ("wanted", "config"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"responseMimeType": "application/json"}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
            {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}},
        ),
    ],
)
def test_response_format(wanted: dict[str, Any], config: dict[str, Any] | None) -> None:
    assert sent(response_format=wanted).get("generationConfig") == config


def test_tools() -> None:
    body = sent(tools=[TOOL, {"googleSearch": {}}])
    declared = {
        "name": "weather",
        "description": "Of a city.",
        "parametersJsonSchema": TOOL["function"]["parameters"],  # type: ignore[index]
    }
    assert body["tools"] == [{"functionDeclarations": [declared]}, {"googleSearch": {}}]
    assert "toolConfig" not in body


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("choice", "strict", "calling"),
    [
        ("auto", False, {"mode": "AUTO"}),
        ("auto", True, {"mode": "VALIDATED"}),
        (None, True, {"mode": "VALIDATED"}),
        ("none", True, {"mode": "NONE"}),
        ("required", False, {"mode": "ANY"}),
        (NAMED, False, {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            False,
            {"mode": "VALIDATED", "allowedFunctionNames": ["weather"]},
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            False,
            {"mode": "ANY", "allowedFunctionNames": ["weather"]},
        ),
    ],
)
def test_tool_choice(choice: Any, strict: bool, calling: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "weather", "strict": strict}}
    body = sent(tools=[tool], tool_choice=choice)
    assert body["toolConfig"] == {"functionCallingConfig": calling}


@pytest.mark.parametrize(
    "params",
    [
        {"logit_bias": {"5": 1}},
        {"store": True},
        {"metadata": {"a": "b"}},
        {"service_tier": "scale"},
        {"audio": {"voice": "x"}},
        {"functions": [{}]},
        {"prediction": {}},
        {"web_search_options": {}},
        {"modalities": ["audio"]},
        {"parallel_tool_calls": False, "tools": [TOOL]},
        {"reasoning_effort": "immense"},
        {"response_format": {"type": "grammar"}},
        {"tools": [{"type": "custom"}]},
        {"tools": {}},
        {"tool_choice": "perhaps"},
        {"tool_choice": {"type": "custom", "custom": {"name": "x"}}},
        {"generationConfig": 5},
    ],
    ids=lambda params: next(iter(params)),
)
def test_what_gemini_cannot_say_is_an_error_that_names_it(params: dict[str, Any]) -> None:
    with pytest.raises(errors.BadRequestError) as caught:
        sent(**params)
    assert caught.value.param == next(iter(params))


def test_labels_are_left_out_and_what_is_unknown_goes_through() -> None:
    settings = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    body = sent(
        **dict.fromkeys(LABELS, "x"),
        safetySettings=settings,
        cachedContent="cachedContents/1",
        generationConfig={"temperature": 1, "thinkingConfig": {"includeThoughts": True}},
        temperature=0,
        top_k=4,
        reasoning_effort="low",
        model="x",
        contents="x",
    )
    assert body["safetySettings"] == settings
    assert body["cachedContent"] == "cachedContents/1"
    assert body["generationConfig"] == {
        "temperature": 1,
        "topK": 4,
        "thinkingConfig": {"thinkingBudget": 1024, "includeThoughts": True},
    }
    assert body["contents"] == [{"role": "user", "parts": [{"text": "hello"}]}]
    assert body.keys() == {"contents", "safetySettings", "cachedContent", "generationConfig"}
