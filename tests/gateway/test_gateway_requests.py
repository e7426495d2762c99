"""What clients of OpenAI's API put into requests, and what the gateway's answers tell them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gateways import CHAT, HELLO, Served, error_of

from fastroute import errors
from fastroute.config import load
from fastroute.gateway.keys import Caller

Serve = Callable[..., Served]

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "Rain."}
PDF = "data:application/pdf;base64,QUJD"


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "hello"}, *parts]}


def assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


# Histories as the SDKs and frameworks send them in a second turn.
HISTORIES: dict[str, list[dict[str, Any]]] = {
    "openai: content null beside calls": [assistant(content=None, tool_calls=[CALL]), RESULT],
    "empty list beside calls": [assistant(content=[], tool_calls=[CALL]), RESULT],
    "openai: a parsed call": [
        assistant(
            content=None,
            tool_calls=[{**CALL, "function": {**CALL["function"], "parsed_arguments": {"city": "Rome"}}}],
            parsed=None,
            refusal=None,
            annotations=[],
            audio=None,
            function_call=None,
        ),
        RESULT,
    ],
    "names null": [assistant(content="yes", name=None), {"role": "user", "content": "and?", "name": None}],
    "functions": [
        assistant(content=None, function_call={"name": "weather", "arguments": "{}"}),
        {"role": "function", "name": "weather", "content": "Rain."},
    ],
    "langchain: text blocks of an answer and of a result": [
        assistant(content=[{"type": "text", "text": "Let me see.", "annotations": []}], tool_calls=[CALL]),
        {**RESULT, "content": [{"type": "text", "text": "Rain."}]},
    ],
    "an empty result": [assistant(content="", tool_calls=[CALL]), {**RESULT, "content": ""}],
    "reasoning in the content": [
        assistant(
            content=[
                {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                {"type": "text", "text": "It rains."},
            ]
        ),
    ],
    "reasoning beside the content": [assistant(content="It rains.", reasoning_content="Hm.")],
    "a refusal": [assistant(content=[{"type": "refusal", "refusal": "No."}])],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_a_second_turn_is_taken(serve: Serve, history: list[dict[str, Any]]) -> None:
    served = serve(strict=False)
    question = {"role": "user", "content": "hello"}
    served.provider.strict = False
    response = served.post({**HELLO, "messages": [question, *history, question]})
    assert response.status_code == 200, response.text
    sent = served.provider.requests[-1].json["messages"]
    assert [message["role"] for message in sent] == ["user", *(said["role"] for said in history), "user"]
    assert "parsed_arguments" not in str(sent)


PARTS: dict[str, tuple[dict[str, Any], int]] = {
    "a file": ({"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}}, 200),
    "a file of the operator's account": ({"type": "file", "file": {"file_id": "file-1"}}, 400),
    "a file on the provider's disk": ({"type": "file", "file": {"file_data": "file:///etc/passwd"}}, 400),
    "a file at an address without TLS": ({"type": "file", "file": {"file_data": "http://10.0.0.1/"}}, 400),
    "a video": ({"type": "video_url", "video_url": {"url": "https://a.example/v.mp4"}}, 400),
    "a video on the provider's disk": ({"type": "video_url", "video_url": {"url": "file:///v"}}, 400),
    "an image": ({"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}, 200),
    "an image that is none": ({"type": "image_url", "image_url": {"url": PDF}}, 400),
}


@pytest.mark.parametrize(("part", "status"), PARTS.values(), ids=PARTS)
def test_content_that_is_not_text(serve: Serve, part: dict[str, Any], status: int) -> None:
    served = serve()
    response = served.post({**HELLO, "messages": [user(part)]})
    assert response.status_code == status, response.text
    if status == 200:
        assert served.provider.requests[-1].json["messages"][0]["content"][1] == part


PARAMETERS: dict[str, Any] = {
    "functions": [{"name": "weather", "parameters": {"type": "object"}}],
    "modalities": ["text"],
    "prediction": {"type": "content", "content": "hello"},
    "prompt_cache_retention": "24h",
    "top_k": 40,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "chat_template_kwargs": {"enable_thinking": False},
    "guided_json": {"type": "object"},
    "thinking": {"type": "disabled"},
    "reasoning": {"effort": "low"},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_passed_on(serve: Serve, name: str) -> None:
    served = serve(strict=False)
    response = served.post({**HELLO, name: PARAMETERS[name]})
    assert response.status_code == 200, response.text
    assert served.provider.requests[-1].json[name] == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", "many"),
        ("min_p", 2),
        ("chat_template_kwargs", []),
        ("modalities", ["smell"]),
        ("functions", [{"name": "a b"}]),
        ("web_search_options", {"search_context_size": "huge"}),
        ("auto_model_select", "yes"),
    ],
)
def test_a_parameter_with_a_wrong_value_is_named(serve: Serve, name: str, value: Any) -> None:
    response = serve().post({**HELLO, name: value})
    assert response.status_code == 400
    assert (error_of(response)["param"] or "").startswith(name)


def test_parameters_of_the_operators_choice(serve: Serve) -> None:
    served = serve(strict=False, gateway={"parameters": ["mirostat"]})
    assert served.post({**HELLO, "mirostat": 2}).status_code == 200
    assert served.provider.requests[-1].json["mirostat"] == 2
    assert "mirostat" in served.get("/openapi.json").json["components"]["schemas"]["Request"]["properties"]
    refused = served.post({**HELLO, "mirostat_tau": 2})
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "mirostat_tau"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"parameters": ["api_key"]}, "gateway.parameters[0]: api_key decides where a request goes"),
        ({"parameters": ["extra_body"]}, "gateway.parameters[0]: extra_body decides where"),
        ({"parameters": ["top k"]}, "gateway.parameters[0]: must be the name of a parameter"),
        ({"cors_origins": ["https://app.example/page"]}, "gateway.cors_origins[0]: must be an origin"),
        ({"cors_origins": "https://app.example"}, "gateway.cors_origins: must be a list"),
    ],
)
def test_settings_of_the_gateway_are_checked(table: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        load({"providers": {"p": {"base_url": "http://127.0.0.1:9/v1"}}, "gateway": table}, environ={})
    assert any(problem.startswith(said) for problem in caught.value.problems), caught.value.problems


# ------------------------------------------------------------------------------------------- the model


def test_auto_model_select_goes_before_the_model(serve: Serve) -> None:
    served = serve()
    response = served.post({**HELLO, "model": "gpt-4.1", "auto_model_select": True})
    assert response.headers["x-fastroute-model"] == "gpt-4.1-mini"
    assert "auto_model_select" not in served.provider.requests[-1].json
    response = served.post({**HELLO, "model": "gpt-4.1", "auto_model_select": False})
    assert response.headers["x-fastroute-model"] == "gpt-4.1"


def test_auto_model_select_needs_the_right_to_auto(serve: Serve) -> None:
    served = serve(Caller("web", models=("gpt-4.1",)))
    response = served.post({**HELLO, "model": "gpt-4.1", "auto_model_select": True})
    assert response.status_code == 403


@pytest.mark.parametrize("priority", ["high", "normal", "low", None])
def test_a_call_may_have_a_priority(serve: Serve, priority: str | None) -> None:
    assert serve().post({**HELLO, "route": {"priority": priority}}).status_code == 200


def test_an_unknown_model_is_answered_with_near_names_that_the_key_may_use(serve: Serve) -> None:
    served = serve(Caller("web", models=("gpt-4.1-mini",)))
    error = error_of(served.post({**HELLO, "model": "gpt-4.1-min"}))
    assert "gpt-4.1-mini" in error["message"]
    error = error_of(served.post({**HELLO, "model": "claude-sonnet-4"}))
    assert "claude" not in error["message"].replace("claude-sonnet-4", "", 1)


def test_what_no_model_can_do_is_the_requests_fault(serve: Serve) -> None:
    models = {name: {"capabilities": ["streaming"]} for name in ("gpt-4.1", "gpt-4.1-mini")}
    served = serve(models=models)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    response = served.post({**HELLO, "messages": [user(image)]})
    assert response.status_code == 400
    assert error_of(response)["code"] == "model_not_capable"
    assert "vision" in error_of(response)["message"]
    assert "local" not in response.text  # the endpoints' names are not the caller's business
    assert "Retry-After" not in response.headers


def test_models_are_listed_with_price_window_capabilities_and_latency(serve: Serve) -> None:
    served = serve()
    models = {model["id"]: model for model in served.get("/v1/models").json["data"]}
    assert "pricing" not in models["auto"]
    assert models["gpt-4.1"]["pricing"] == {"input": 2.0, "output": 8.0, "cached_input": 0.5}
    assert models["gpt-4.1"]["context_window"] >= 1_000_000
    assert "vision" in models["gpt-4.1"]["capabilities"]
    assert models["gpt-4.1-mini"]["p95_s"] is None
    served.post()
    assert served.get("/v1/models/gpt-4.1-mini").json["p95_s"] > 0


# --------------------------------------------------------------------------------- paths and headers


@pytest.mark.parametrize("path", ["/chat/completions", CHAT])
def test_calls_without_v1_are_served(serve: Serve, path: str) -> None:
    served = serve()
    headers = {"Authorization": f"Bearer {served.token}"}
    assert served.web.post(path, json=HELLO, headers=headers).status_code == 200
    assert served.get("/models").json == served.get("/v1/models").json
    assert served.get("/models/auto").json["id"] == "auto"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/health/live", "/health/ready"])
def test_probes(serve: Serve, path: str) -> None:
    assert serve().web.get(path).json["status"] == "ok"


def test_every_answer_says_what_is_left_of_the_keys_limits(serve: Serve) -> None:
    served = serve(Caller("web", rpm=12, tpm=100_000))
    first = served.post().headers
    assert first["x-ratelimit-limit-requests"] == "12"
    assert first["x-ratelimit-remaining-requests"] == "1"
    assert 0 < float(first["x-ratelimit-reset-requests"].removesuffix("s")) <= 5
    assert first["x-ratelimit-limit-tokens"] == "100000"
    assert 90_000 < int(first["x-ratelimit-remaining-tokens"]) <= 100_000
    bad = served.post({**HELLO, "top_k": "many"})
    assert (bad.status_code, bad.headers["x-ratelimit-limit-requests"]) == (400, "12")
    refused = served.post()
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(refused.headers["Retry-After"]) <= 5


def test_a_key_without_limits_has_no_such_headers(serve: Serve) -> None:
    assert not [name for name, _ in serve().post().headers if name.startswith("x-ratelimit")]


def test_a_limit_of_nothing_gives_no_time_to_wait(serve: Serve) -> None:
    response = serve(Caller("web", rpm=0)).post()
    assert response.status_code == 429
    assert "Retry-After" not in response.headers


def test_pages_of_other_origins(serve: Serve) -> None:
    served = serve(gateway={"cors_origins": ["https://app.example"]})
    asked = {"Access-Control-Request-Headers": "authorization, x-stainless-lang"}
    for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
        first = served.web.options(CHAT, headers={"Origin": origin, **asked})
        response = served.post(headers={"Origin": origin})
        assert response.status_code == 200
        assert response.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
        assert first.status_code == (204 if allowed else 405)
        if allowed:
            assert first.headers["Access-Control-Allow-Headers"] == "authorization, x-stainless-lang"
            assert "x-fastroute-model" in response.headers["Access-Control-Expose-Headers"]
            assert "Access-Control-Allow-Credentials" not in response.headers
            wrong = served.web.post(CHAT, json=HELLO, headers={"Origin": origin})
            assert wrong.status_code == 401  # the page may read that too
            assert wrong.headers["Access-Control-Allow-Origin"] == origin


def test_without_the_setting_no_page_is_allowed(serve: Serve) -> None:
    response = serve().post(headers={"Origin": "https://app.example"})
    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
