"""The client's interface: arguments, and where requests are sent."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from client_setups import BOTH, Start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import MODEL, OTHER, Loopback

import fastroute
from fastroute import events
from fastroute.testing import Fault, Provider

# ------------------------------------------------------------------------------------------- configuration


def test_keys_in_the_environment_are_configuration_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name.startswith("FASTROUTE"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fastroute.ConfigError, match="OPENAI_API_KEY"):
        fastroute.Client()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    with fastroute.Client() as client:
        plan = client.plan(messages=[{"role": "user", "content": "hello"}])
        assert plan.candidates
        assert {candidate.provider for candidate in plan.candidates} == {"openai"}
        assert "sk-canary" not in f"{client.config} {client.stats()} {plan}"


def test_a_wrong_configuration_is_refused_with_all_its_problems() -> None:
    with pytest.raises(fastroute.ConfigError) as caught:
        fastroute.Client(
            {
                "providers": {"a": {"base_url": "ftp://x", "rmp": 3}},
                "endpoints": [{"provider": "b", "model": "m"}],
                "policy": {"max_attempts": "three"},
            }
        )
    assert len(caught.value.problems) >= 3


@pytest.mark.parametrize(
    ("table", "key"),
    [("fastroute", "timeout"), ("fastroute", "connect_timeout"), ("policy", "timeout_base")],
)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), None, "5"])
def test_179_a_time_out_is_a_number_above_zero(table: str, key: str, value: object) -> None:
    with pytest.raises(fastroute.ConfigError):
        fastroute.Client({table: {key: value}, "providers": {"a": {"base_url": "http://127.0.0.1:1"}}})


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", True])
def test_179_nor_may_a_calls_be_endless(start: Start, timeout: Any) -> None:
    loop = start(1)
    with pytest.raises(fastroute.BadRequestError, match="timeout"):
        loop.ask(timeout=timeout)
    with pytest.raises(fastroute.BadRequestError, match=r"route\.deadline"):
        loop.ask(route={"deadline": timeout})


def test_178_the_environment_reroutes_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password netrc-canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    for name, value in {
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "ALL_PROXY": "http://127.0.0.1:1",
        "NO_PROXY": "",
        "no_proxy": "",
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / ".netrc"),
        "SOME_KEY": "sk-right",
    }.items():
        monkeypatch.setenv(name, value)
    loop = start(1, providers={"a": {"api_key_env": "SOME_KEY"}})
    assert loop.ask().text == "Say hello"
    (request,) = loop.provider().requests
    assert request.headers["authorization"] == "Bearer sk-right"


# --------------------------------------------------------------------------------------------- what is sent


def test_parameters_reach_the_wire_as_they_are(start: Start) -> None:
    loop = start({"a": Provider(strict=False)})
    params = {
        "temperature": 0,
        "top_p": 0.0,
        "presence_penalty": 0,
        "seed": 0,
        "stop": [],
        "max_tokens": 5,
        "user": "",
        "logit_bias": {"50256": -100},
        "something_new": {"deep": [1, None, False]},
    }
    loop.ask(**params)
    sent = loop.provider().requests[0].json
    assert {name: sent[name] for name in params} == params
    assert sent["temperature"] == 0
    assert "stream" not in sent
    assert "route" not in sent
    assert "timeout" not in sent


def test_max_tokens_is_held_to_the_model(start: Start) -> None:
    loop = start(1, models={MODEL: {"max_output_tokens": 100}})
    loop.ask(max_tokens=5000)
    loop.ask(max_completion_tokens=5000)
    loop.ask(max_tokens=7)
    sent = [request.json for request in loop.provider().requests]
    assert [sent[0]["max_tokens"], sent[1]["max_completion_tokens"], sent[2]["max_tokens"]] == [100, 100, 7]


def test_the_providers_own_name_is_sent_and_the_callers_comes_back(start: Start) -> None:
    loop = start(1, endpoints=[{"provider": "a", "model": MODEL, "upstream": "vendor/model-2026"}])
    reply = loop.ask()
    assert loop.provider().requests[0].json["model"] == "vendor/model-2026"
    assert reply.route is not None
    assert reply.route.model == MODEL


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NAMES = ("max_tokens", "max_completion_tokens", "temperature", "tools", "functions", "response_format", "n")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from((*NAMES, "stop", "stream_options")), JSON, max_size=3),
    st.lists(JSON | st.fixed_dictionaries({"role": JSON, "content": JSON}), max_size=3),
)
def test_whatever_a_caller_passes_is_answered_or_refused_in_words(
    params: dict[str, Any], messages: list[Any]
) -> None:
    with contextlib.suppress(fastroute.Error):
        QUESTIONER.chat.completions.create(model=MODEL, messages=messages, **params)


@pytest.fixture(scope="module", autouse=True)
def _questioner(tmp_path_factory: pytest.TempPathFactory) -> Any:
    global QUESTIONER
    with Provider(answer="x") as provider:
        loop = Loopback({"a": provider}, None, {"policy": {"max_attempts": 1, "breaker": {"failures": 255}}})
        with loop.client as QUESTIONER:
            yield


QUESTIONER: fastroute.Client

STRANGE = [
    pytest.param("", id="empty"),
    pytest.param(" \n\t", id="blank"),
    pytest.param("a" * 1_000_000, id="one-letter-a-million-times"),
    pytest.param("😀" * 10_000, id="emoji"),
    pytest.param("שלום עולם " * 100, id="right-to-left"),
    pytest.param("\u200b" * 1000, id="zero-width"),
    pytest.param("\ud800 lone", id="lone-surrogate"),
    pytest.param("a\x00b", id="nul"),
    pytest.param("QUJD" * 10_000, id="base64"),
    pytest.param("x" * 10_000_000, id="ten-megabytes"),
]


FINE = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}]
}


@pytest.mark.parametrize("text", STRANGE)
def test_180_any_text_gets_a_class_and_an_answer(start: Start, text: str) -> None:
    loop = start(1, tiers={"standard": [MODEL]})
    loop.provider().script(Fault.status(200, FINE))
    reply = loop.ask(text, model="auto")
    assert reply.text == "fine"
    assert reply.route is not None
    assert reply.route.classification is not None
    assert reply.route.classification.level


MESSAGES = [
    pytest.param(
        [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}], id="developer"
    ),
    pytest.param([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], id="parts"),
    pytest.param(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            }
        ],
        id="image",
    ),
    pytest.param(
        [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ],
        id="tools",
    ),
    pytest.param([{"role": "user", "name": "x"}, {"role": "user", "content": "hi"}], id="no-content"),
]


@pytest.mark.parametrize("messages", MESSAGES)
def test_184_any_kind_of_message_is_routed_and_sent_untouched(start: Start, messages: list[Any]) -> None:
    loop = start(
        {"a": Provider(answer="fine", strict=False)},
        tiers={"standard": [MODEL]},
        models={MODEL: {"capabilities": ["streaming", "tools", "vision"]}},
    )
    assert loop.ask(messages=messages, model="auto").text == "fine"
    assert loop.provider().requests[0].json["messages"] == messages


# --------------------------------------------------------------------------------------------- where it goes


def test_names_that_can_be_asked_for(start: Start) -> None:
    loop = start(1, **BOTH, aliases={"old-name": OTHER})
    routes = {
        name: loop.ask(model=name).route for name in (MODEL, OTHER, "old-name", "cheap", "dear", "auto")
    }
    served = {name: (route.model, route.tier) for name, route in routes.items() if route is not None}
    assert served == {
        MODEL: (MODEL, None),
        OTHER: (OTHER, None),
        "old-name": (OTHER, None),
        "cheap": (MODEL, "cheap"),
        "dear": (OTHER, "dear"),
        "auto": (MODEL, "cheap"),
    }
    by_word = loop.ask(model="auto", route={"tier": "dear"}).route
    assert by_word is not None
    assert by_word.model == OTHER


def test_an_unknown_name_fails_with_near_ones(start: Start) -> None:
    loop = start(1)
    with pytest.raises(fastroute.ModelNotFoundError, match=MODEL) as caught:
        loop.ask(model="test-modle")
    assert MODEL in caught.value.suggestions
    assert loop.provider().received == 0


@pytest.mark.parametrize(
    "route",
    [
        {"teir": "x"},
        {"tier": "nowhere"},
        {"quality": 2},
        {"max_cost": -1},
        {"tags": {"a": 1}},
        {"cache": "no"},
    ],
    ids=str,
)
def test_wrong_routing_words_are_named(start: Start, route: dict[str, Any]) -> None:
    loop = start(1)
    with pytest.raises(fastroute.BadRequestError, match="route"):
        loop.ask(route=route)


@pytest.mark.parametrize("messages", ["hello", {"role": "user"}, [], None, 5, b"x"], ids=str)
def test_messages_are_a_list_of_mappings(start: Start, messages: Any) -> None:
    loop = start(1)
    with pytest.raises(fastroute.BadRequestError, match="messages"):
        loop.client.chat.completions.create(messages=messages, model=MODEL)


def test_an_answers_own_message_can_be_handed_back(start: Start) -> None:
    loop = start(1)
    said = loop.ask("analyze and compare this").choices[0].message
    history = [{"role": "user", "content": "first"}, said, {"role": "user", "content": "second"}]
    plan = loop.client.plan(model=MODEL, messages=history)  # type: ignore[arg-type]
    assert "analyze" in str(plan.classification.matches)
    loop.ask(messages=history)
    sent = loop.provider().requests[-1].json["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert sent[1]["content"] == said.content


def test_a_message_of_another_kind_is_named_by_its_place(start: Start) -> None:
    with pytest.raises(fastroute.BadRequestError, match=r"messages\[1\]: must be a mapping .* not int"):
        start(1).ask(messages=[{"role": "user", "content": "x"}, 5])


def test_only_models_that_can_do_it_are_asked(start: Start) -> None:
    loop = start(
        2,
        endpoints=[{"provider": "a", "model": "blind"}, {"provider": "b", "model": "seeing"}],
        models={
            "blind": {"capabilities": ["streaming"], "context_window": 2000},
            "seeing": {"capabilities": ["streaming", "tools", "vision", "json_schema"]},
        },
        tiers={"standard": ["blind", "seeing"]},
        policy={"strategy": "ordered"},
    )
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert loop.ask(model="standard", tools=[tool]).route.model == "seeing"  # type: ignore[union-attr]
    assert loop.ask("long " * 5000, model="standard").route.model == "seeing"  # type: ignore[union-attr]
    with pytest.raises(fastroute.NoEndpointError, match="tools") as caught:
        loop.ask(model="blind", tools=[tool])
    assert caught.value.status_code == 400
    with pytest.raises(fastroute.ContextLengthExceeded):
        loop.ask("long " * 5000, model="blind")
    assert loop.provider("a").received == 0


def test_the_price_cap_is_a_refusal_with_figures(start: Start) -> None:
    loop = start(1)
    with pytest.raises(fastroute.BudgetExceeded, match=r"\$"):
        loop.ask(route={"max_cost": 0.0}, max_tokens=1000)
    assert loop.provider().received == 0


def test_failover_goes_in_order_then_along_the_fallbacks(start: Start) -> None:
    loop = start(
        2,
        models={MODEL: {"fallbacks": [OTHER]}},
        more_endpoints=[{"provider": "b", "model": OTHER}],
        policy={"max_attempts": 5},
    )
    loop.provider("a").script(Fault.status(503), repeat=True)
    loop.provider("b").script(Fault.status(503), None)
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.endpoint for attempt in reply.route.attempts] == [
        f"a/{MODEL}",
        f"b/{MODEL}",
        f"b/{OTHER}",
    ]
    assert [event.error for event in loop.of(events.FailedOver)] == ["InternalServerError"] * 2
