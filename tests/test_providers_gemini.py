"""The Gemini format: what goes on the wire, and what is made of answers, errors, usage and events."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute import errors, sse, types
from fastroute.providers import Target, get
from fastroute.providers.gemini import usage_from
from fastroute.providers.gemini_request import LABELS, UNSIGNED

KEY = "local-secret-key"


class Secret:
    def reveal(self) -> str:
        return KEY


GEMINI = get("gemini")
TARGET = Target(
    "gemini/flash",
    "gemini",
    "flash",
    "gemini-2.5-flash",
    "https://api.example.com/v1beta",
    Secret(),
    max_output=100,
)
NEWER = attrs.evolve(TARGET, upstream="gemini-3-pro-preview")
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def ask(messages: Any = HELLO, **params: Any) -> types.Request:
    return types.Request("flash", messages, params)


def sent(messages: Any = HELLO, target: Target = TARGET, **params: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(GEMINI.encode(ask(messages, **params), target))
    return body


def decoded(answer: Any, **params: Any) -> types.Completion:
    return GEMINI.decode(json.dumps(answer).encode(), ask(**params), TARGET)


def answer(*parts: dict[str, Any], finish: str | None = "STOP", **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "responseId": "r1", **more}


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


def call(identity: str, name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
        **more,
    }


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


# -------------------------------------------------------------------------------------------------- answers


def test_an_answer_with_thoughts_text_images_and_calls() -> None:
    whole = decoded(
        answer(
            {"text": "hm, ", "thought": True},
            {"text": "Hello "},
            {"text": "there."},
            {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
            {"functionCall": {"name": "f", "args": {"a": "ü"}}, "thoughtSignature": "c2ln"},
            {"functionCall": {"id": "own", "name": "g"}},
        )
    )
    message = whole.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello there.", "hm, ")
    assert message.images == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]
    first, second = message.tool_calls or ()
    assert (first.function.name, json.loads(first.function.arguments)) == ("f", {"a": "ü"})
    assert (second.id, second.function.arguments) == ("own", "{}")
    assert first.id != second.id
    shape = whole.to_dict()
    assert shape["choices"][0]["message"]["tool_calls"][0]["extra_content"] == {
        "google": {"thought_signature": "c2ln"}
    }
    assert (whole.id, whole.model) == ("r1", "gemini-2.5-flash")


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("SPII", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("OTHER", "other"),
    ],
)
def test_finish_reasons(reason: str, finish: str) -> None:
    (choice,) = decoded(answer({"text": "x"}, finish=reason)).choices
    assert (choice.finish_reason, choice.stop_reason) == (finish, reason)


def test_056_safety_without_any_text() -> None:
    blocked = {"candidates": [{"finishReason": "SAFETY", "index": 0, "safetyRatings": [{"blocked": True}]}]}
    (choice,) = decoded(blocked).choices
    assert (choice.finish_reason, choice.message.content) == ("content_filter", "")
    assert choice.safetyRatings == [{"blocked": True}]


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("MALFORMED_FUNCTION_CALL", errors.UpstreamProtocolError),
        ("UNEXPECTED_TOOL_CALL", errors.UpstreamProtocolError),
        ("MISSING_THOUGHT_SIGNATURE", errors.BadRequestError),
        ("PUP_LIMITED_DISABLED", errors.PermissionDeniedError),
    ],
)
def test_finish_reasons_that_are_errors(reason: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        decoded(answer(finish=reason))


def test_a_blocked_prompt_is_the_content_filter_s() -> None:
    with pytest.raises(errors.ContentFilterError) as caught:
        decoded({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {}})
    assert caught.value.status_code == 400
    assert "PROHIBITED_CONTENT" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", errors.EmptyResponse),
        (b"{}", errors.EmptyResponse),
        (b'{"candidates": []}', errors.EmptyResponse),
        (b'{"candidates": [{"content"', errors.UpstreamTruncated),
        (b'{"candidates": 5}', errors.UpstreamProtocolError),
        (b'{"candidates": [5]}', errors.UpstreamProtocolError),
        (b'{"candidates": [{"content": {"parts": 5}}]}', errors.UpstreamProtocolError),
        (b'{"candidates": [{"content": {"parts": [5]}}]}', errors.UpstreamProtocolError),
        (b"5", errors.UpstreamProtocolError),
        (b"<html>", errors.UpstreamProtocolError),
        (b'{"error": {"code": 503, "status": "UNAVAILABLE"}}', errors.InternalServerError),
        (b'[{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}]', errors.RateLimitError),
    ],
)
def test_what_is_no_answer(body: bytes, error: type[errors.Error]) -> None:
    with pytest.raises(error) as caught:
        GEMINI.decode(body, ask(), TARGET)
    assert type(caught.value) is error


def test_056_an_array_in_place_of_events_says_what_to_look_at() -> None:
    with pytest.raises(errors.UpstreamProtocolError, match="alt=sse"):
        decoded([answer({"text": "a"}, finish=None), answer({"text": "b"})])


def test_log_probabilities() -> None:
    result = {
        "chosenCandidates": [{"token": "a", "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "a", "logProbability": -0.5}]}],
    }
    given_back = answer({"text": "a"})
    given_back["candidates"][0]["logprobsResult"] = result
    entry = {"token": "a", "logprob": -0.5, "bytes": [97]}
    assert decoded(given_back).choices[0].logprobs == {"content": [{**entry, "top_logprobs": [entry]}]}


# ---------------------------------------------------------------------------------------------------- usage

NUMBERS = st.integers(0, 1 << 40)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_each_token_is_counted_once(prompt: int, tool: int, visible: int, thoughts: int, cached: int) -> None:
    usage = usage_from(
        {
            "promptTokenCount": prompt,
            "toolUsePromptTokenCount": tool,
            "candidatesTokenCount": visible,
            "thoughtsTokenCount": thoughts,
            "cachedContentTokenCount": cached,
            "totalTokenCount": prompt + tool + visible + thoughts,
        }
    )
    if prompt + tool + visible + thoughts == 0:
        assert usage is None
        return
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt + tool, visible + thoughts)
    assert usage.total_tokens == prompt + tool + visible + thoughts
    assert usage.reasoning_tokens == thoughts <= usage.completion_tokens
    assert usage.cached_tokens in (0, cached)
    assert usage.cached_tokens <= usage.prompt_tokens
    assert usage.source == "provider"


def test_a_total_that_is_more_is_believed_and_marked() -> None:
    counts = {"promptTokenCount": 10, "candidatesTokenCount": 5}
    usage = usage_from({**counts, "totalTokenCount": 20})
    assert usage == types.Usage(10, 10, 0, 0, "estimated")
    usage = usage_from({**counts, "totalTokenCount": 3})
    assert usage == types.Usage(10, 5, 0, 0, "estimated")
    assert usage_from(counts) == types.Usage(10, 5, 0, 0, "provider")


@pytest.mark.parametrize(
    "usage",
    [
        None,
        5,
        {},
        {"promptTokenCount": -1},
        {"promptTokenCount": "7", "candidatesTokenCount": 1},
        {"promptTokenCount": 1.5},
        {"promptTokenCount": 1 << 60},
        {"candidatesTokenCount": 5},
        {"promptTokenCount": 0, "candidatesTokenCount": 0},
    ],
)
def test_036_usage_that_cannot_be_relied_on(usage: Any) -> None:
    assert usage_from(usage) is None


# --------------------------------------------------------------------------------------------------- errors


def failed(status: int, code: str, message: str = "no", reason: str = "", **more: Any) -> errors.APIError:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}] if reason else []
    if "retryDelay" in more:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", **more})
    body = {"error": {"code": status, "message": message, "status": code, "details": details}}
    return GEMINI.decode_error(status, {}, json.dumps(body).encode(), TARGET)


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (failed(400, "INVALID_ARGUMENT"), errors.BadRequestError, 400),
        (
            failed(400, "INVALID_ARGUMENT", "API key not valid.", "API_KEY_INVALID"),
            errors.AuthenticationError,
            401,
        ),
        (
            failed(
                400,
                "INVALID_ARGUMENT",
                "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            ),
            errors.ContextLengthExceeded,
            400,
        ),
        (
            failed(400, "FAILED_PRECONDITION", "User location is not supported."),
            errors.PermissionDeniedError,
            403,
        ),
        (failed(401, "UNAUTHENTICATED"), errors.AuthenticationError, 401),
        (failed(403, "PERMISSION_DENIED"), errors.PermissionDeniedError, 403),
        (failed(403, "PERMISSION_DENIED", reason="BILLING_DISABLED"), errors.QuotaExceededError, 403),
        (failed(404, "NOT_FOUND"), errors.NotFoundError, 404),
        (failed(429, "RESOURCE_EXHAUSTED"), errors.RateLimitError, 429),
        (
            failed(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
            errors.QuotaExceededError,
            429,
        ),
        (failed(500, "INTERNAL"), errors.InternalServerError, 500),
        (failed(503, "UNAVAILABLE", "overloaded"), errors.InternalServerError, 503),
        (failed(504, "DEADLINE_EXCEEDED"), errors.InternalServerError, 504),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_errors(error: errors.APIError, kind: type[errors.APIError], status: int) -> None:
    assert type(error) is kind
    assert error.status_code == status
    assert error.type


def test_how_long_to_wait() -> None:
    assert failed(429, "RESOURCE_EXHAUSTED", retryDelay="34.07s").retry_after == 34.07
    body = json.dumps({"error": {"status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": "34s"}]}})
    error = GEMINI.decode_error(429, {"Retry-After": "5"}, body.encode(), TARGET)
    assert error.retry_after == 5
    assert failed(429, "RESOURCE_EXHAUSTED", retryDelay="soon").retry_after is None


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b'{"error": 5}', b'{"error": {"code": [1]}}', b"\xff"])
def test_decoding_an_error_never_fails(body: bytes) -> None:
    error = GEMINI.decode_error(400, {}, body, TARGET)
    assert type(error) is errors.BadRequestError


def test_an_error_repeats_no_key() -> None:
    error = failed(400, "INVALID_ARGUMENT", f"the key {KEY} is wrong", "API_KEY_INVALID")
    assert KEY not in str(error)


# -------------------------------------------------------------------------------------------------- streams


def fed(*events: Any, **params: Any) -> tuple[list[types.Chunk], Any]:
    decoder = GEMINI.stream(ask(**params), TARGET)
    chunks: list[types.Chunk] = []
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        chunks += decoder.feed(sse.Event("message", data))
    return chunks, decoder


def usage_of(prompt: int, visible: int) -> dict[str, int]:
    return {
        "promptTokenCount": prompt,
        "candidatesTokenCount": visible,
        "totalTokenCount": prompt + visible,
    }


def test_a_stream_adds_up_to_the_answer() -> None:
    chunks, decoder = fed(
        answer({"text": "hm", "thought": True}, finish=None, usageMetadata=usage_of(7, 1)),
        answer({"text": "Hello"}, finish=None, usageMetadata=usage_of(7, 2)),
        answer({"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"}, finish=None),
        answer({"functionCall": {"name": "f", "args": {"a": 2}}}, usageMetadata=usage_of(7, 9)),
    )
    decoder.end()
    whole = decoder.completion()
    message = whole.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello", "hm")
    assert [json.loads(made.function.arguments)["a"] for made in message.tool_calls] == [1, 2]
    assert [made.get("extra_content") for made in message.to_dict()["tool_calls"]] == [
        {"google": {"thought_signature": "c2ln"}},
        None,
    ]
    assert whole.choices[0].finish_reason == "tool_calls"
    assert decoder.usage == types.Usage(7, 9)
    assert not decoder.missing_done
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_is_shown_once_at_the_end_to_who_asked() -> None:
    events = [answer({"text": "a"}, finish=None, usageMetadata=usage_of(7, 1)) for _ in range(3)]
    chunks, decoder = fed(
        *events,
        answer({"text": ""}, usageMetadata=usage_of(7, 4)),
        {"candidates": [], "usageMetadata": usage_of(7, 5)},
        stream_options={"include_usage": True},
    )
    assert [chunk.usage for chunk in chunks] == [None] * 4 + [types.Usage(7, 4)]
    assert chunks[-1].choices == ()
    assert chunks[-1].to_dict()["choices"] == []
    assert decoder.usage == types.Usage(7, 5)


def test_running_usage_is_an_estimate_until_the_end() -> None:
    _, decoder = fed(answer({"text": "a"}, finish=None, usageMetadata=usage_of(7, 1)))
    assert decoder.usage == types.Usage(7, 1, source="estimated")
    with pytest.raises(errors.UpstreamTruncated):
        decoder.end()


def test_what_comes_after_a_choice_has_finished_is_ignored() -> None:
    _, decoder = fed(answer({"text": "a"}), answer({"text": "late"}))
    decoder.end()
    assert decoder.text == "a"


def test_several_candidates_each_finish_for_themselves() -> None:
    both = answer({"text": "a"}, finish=None)
    both["candidates"].append({"index": 1, "content": {"parts": [{"text": "b"}]}, "finishReason": "STOP"})
    _, decoder = fed(both, n=2)
    assert not decoder.finished
    decoder.feed(sse.Event("message", json.dumps(answer({"text": "c"}, finish="MAX_TOKENS"))))
    choices = decoder.completion().choices
    assert [(each.message.content, each.finish_reason) for each in choices] == [
        ("ac", "length"),
        ("b", "stop"),
    ]


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"error": {"code": 503, "status": "UNAVAILABLE", "message": "x"}}, errors.InternalServerError),
        ({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}, errors.RateLimitError),
        ({"error": {"status": "RESOURCE_EXHAUSTED"}}, errors.RateLimitError),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, errors.ContentFilterError),
        (answer(finish="MALFORMED_FUNCTION_CALL"), errors.UpstreamProtocolError),
        ("[]", errors.UpstreamProtocolError),
        ("{nonsense}", errors.UpstreamProtocolError),
        ('{"candidates": [', errors.UpstreamTruncated),
    ],
)
def test_events_that_are_errors(event: Any, error: type[errors.Error]) -> None:
    with pytest.raises(error) as caught:
        fed(event)
    assert type(caught.value) is error
