"""The client as a caller meets it: what goes in, where it goes, what comes back."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import json
import logging
import os
import pickle
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import MODEL, OTHER, Loopback, within

import fastroute
from fastroute import errors, events
from fastroute.testing import Answer, Fault, Provider

Start = Callable[..., Loopback]

TIERS = {"cheap": [MODEL], "dear": [OTHER]}
BOTH: dict[str, Any] = {
    "more_endpoints": [{"provider": "a", "model": OTHER}],
    "models": {
        MODEL: {"input_price": 1.0, "output_price": 2.0, "quality": 0.5},
        OTHER: {"input_price": 10.0, "output_price": 20.0, "quality": 0.9},
    },
    "tiers": TIERS,
}


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
        "REQUESTS_CA_BUNDLE": "/nowhere",
        "CURL_CA_BUNDLE": "/nowhere",
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
    loop = start(1)
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
        1,
        answer="fine",
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
    with pytest.raises(fastroute.BadRequestError, match=r"messages\[1\]: a mapping .* not int"):
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


# ------------------------------------------------------------------------------------------- what comes back


def test_the_route_says_how_it_was_served(start: Start) -> None:
    loop = start(1, answer=Answer(content="x", prompt_tokens=1000, completion_tokens=10))
    reply = loop.ask(route={"tags": {"team": "red"}})
    route = reply.route
    assert route is not None
    assert (route.model, route.endpoint, route.provider) == (MODEL, f"a/{MODEL}", "a")
    assert route.cost_nano == 1000 * 1000 + 10 * 2000
    assert route.cost == pytest.approx(0.00102)
    assert route.latency is not None
    assert 0 < route.latency < 5
    assert not route.cached
    assert route.request_id
    (row,) = loop.client.ledger.entries()
    assert row.tags == {"team": "red"}
    assert row.cost_nano == route.cost_nano


def test_a_price_nobody_knows_is_no_price(start: Start) -> None:
    loop = start(1, endpoints=[{"provider": "a", "model": "nameless"}])
    route = loop.ask(model="nameless").route
    assert route is not None
    assert route.cost is None


def test_with_options_shares_all_but_the_defaults(start: Start) -> None:
    loop = start(1, cache={"enabled": True})
    tagged = loop.client.with_options(tags={"team": "red"}, timeout=5.0).with_options(tags={"job": "x"})
    question = [{"role": "user", "content": "hi"}]
    tagged.chat.completions.create(model=MODEL, messages=question, route={"tags": {"job": "y"}})
    assert loop.attempts[-1].tags == {"team": "red", "job": "y"}
    assert tagged.ledger is loop.client.ledger
    with pytest.raises(fastroute.BadRequestError):
        loop.client.with_options(timeout=0)
    fresh = loop.client.with_options(cache=False)
    for _ in range(2):
        fresh.chat.completions.create(model=MODEL, messages=question)
    assert loop.provider().received == 3


def test_a_cached_answer_says_so_and_costs_nothing(start: Start) -> None:
    loop = start(1, cache={"enabled": True})
    first, second = loop.ask(), loop.ask()
    assert first.route is not None
    assert second.route is not None
    assert (first.route.cached, second.route.cached) == (False, True)
    assert second.route.cost_nano == 0
    assert second.route.attempts == ()
    assert second.text == first.text
    assert loop.provider().received == len(loop.attempts) == 1
    assert loop.ask(route={"cache": False}).route.cached is False  # type: ignore[union-attr]
    assert loop.ask(temperature=0).route.cached is False  # type: ignore[union-attr]
    assert loop.ask(route={"tags": {"tenant": "b"}}).route.cached is False  # type: ignore[union-attr]
    assert loop.client.stats()["cache"]["hits"] == 1


def test_equal_questions_in_flight_are_asked_once(start: Start) -> None:
    loop = start({"a": Provider(latency=0.2)}, cache={"enabled": True})
    barrier = threading.Barrier(8)
    replies = []

    def ask() -> None:
        barrier.wait()
        replies.append(loop.ask())

    workers = [threading.Thread(target=ask) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert loop.provider().received == 1
    assert sorted(reply.route.cached for reply in replies if reply.route) == [False] + [True] * 7
    assert sum(reply.route.cost_nano or 0 for reply in replies if reply.route) == loop.attempts[0].cost_nano


def test_every_call_ends_with_one_event(start: Start) -> None:
    loop = start(1, cache={"enabled": True}, policy={"max_attempts": 1})
    loop.ask()
    loop.ask()
    loop.provider().script(Fault.status(500))
    with pytest.raises(fastroute.InternalServerError):
        loop.ask("another")
    list(loop.stream())
    ends = loop.of(events.CallFinished)
    assert [event.error for event in ends] == [None, None, "InternalServerError", None]
    assert len(loop.attempts) == 3


def test_a_hook_that_raises_loses_no_call(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    loop = start(1)
    remove = loop.client.on(lambda event: 1 / 0, events.AttemptFinished)
    with caplog.at_level(logging.CRITICAL + 1, "fastroute"):
        assert loop.ask().text == "Say hello"
    remove()


# ---------------------------------------------------------------------------------------------------- threads

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def test_submit_runs_in_the_submitters_context(start: Start) -> None:
    loop = start(1)
    heard: list[tuple[str, str]] = []
    loop.client.on(
        lambda event: heard.append((WHO.get(), threading.current_thread().name)), events.CallFinished
    )
    WHO.set("me")
    future = loop.client.submit(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert future.result(5).text == "hi"
    assert heard[0][0] == "me"
    assert heard[0][1] != threading.current_thread().name
    failing = loop.client.submit(model="unknown", messages=[{"role": "user", "content": "hi"}])
    assert isinstance(failing.exception(5), fastroute.ModelNotFoundError)
    loop.client.close()
    with pytest.raises(fastroute.Error, match="closed"):
        loop.client.submit(model=MODEL, messages=[])


def test_submit_is_bounded(start: Start) -> None:
    loop = start(1, fastroute={"workers": 2, "max_pending": 1})
    provider = loop.provider()
    provider.pause()
    futures = [
        loop.client.submit(model=MODEL, messages=[{"role": "user", "content": f"{number}"}])
        for number in range(3)
    ]
    entered = threading.Event()
    done = threading.Event()

    def fourth() -> None:
        entered.set()
        futures.append(loop.client.submit(model=MODEL, messages=[{"role": "user", "content": "3"}]))
        done.set()

    submitter = threading.Thread(target=fourth)
    submitter.start()
    entered.wait()
    provider.wait_until(lambda known: known.in_flight == 2)
    assert not done.is_set()
    provider.resume()
    submitter.join(5)
    assert sorted(future.result(5).text for future in futures) == ["0", "1", "2", "3"]
    assert provider.peak_in_flight == 2


def test_close_ends_everything_and_may_be_repeated(start: Start) -> None:
    loop = start(1)
    loop.ask()
    loop.client.close()
    loop.client.close()
    with pytest.raises(fastroute.Error, match="closed"):
        loop.ask()
    loop.provider().wait_until(lambda provider: provider.open_connections == 0)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(loop.client)


def test_sixteen_threads_share_one_pool(start: Start) -> None:
    loop = start(1)
    wrong: list[str] = []

    def ask(thread: int) -> None:
        for turn in range(10):
            text = f"question {thread} {turn}"
            if loop.ask(text).text != text:
                wrong.append(text)

    workers = [threading.Thread(target=ask, args=(thread,)) for thread in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert loop.provider().received == 160
    assert loop.provider().connections <= 16


# ------------------------------------------------------------------------------------------------------- fork


def in_child(body: Callable[[], object]) -> int:
    """Runs it in a forked child; its exit status, 0 if the body raised nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_parent_and_child_never_get_each_others_answers(start: Start) -> None:
    loop = start({"a": Provider(process=True)}, check=False)

    def ask_many(who: str) -> None:
        for turn in range(100):
            text = f"{who} asks {turn}"
            assert loop.ask(text).text == text

    ask_many("the parent before the fork")
    child = in_child(lambda: ask_many("the child"))
    ask_many("the parent")
    assert status_of(child) == 0
    assert loop.endpoint()["in_flight"] == 0
    assert loop.provider().received == 300
    loop.client.ledger.flush()
    assert loop.client.ledger.totals().attempts == 300


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_stream_survives_its_copy_in_a_child(start: Start) -> None:
    loop = start({"a": Provider(process=True)})
    loop.provider().script(Fault.stream_stall(3, 0.5))
    holder = [loop.stream("a text of several tokens")]
    got = next(holder[0]).choices[0].delta.content or ""

    def drop() -> None:
        holder[0].close()
        holder.clear()
        gc.collect()

    assert status_of(in_child(drop)) == 0
    assert loop.endpoint()["in_flight"] == 1
    got += "".join(chunk.choices[0].delta.content or "" for chunk in holder[0] if chunk.choices)
    assert got == "a text of several tokens"


# ---------------------------------------------------------------------------------------------------- secrets

PROMPT = "canary-prompt-b7c1"
KEY = "sk-canary-key-9f3e2d1c0b"


def provocations() -> list[Any]:
    quoting = {"error": {"message": f"Incorrect API key provided: {KEY}", "type": "invalid_request_error"}}
    return [
        *(
            Fault.status(code)
            for code in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503, 529, 999, 204, 299)
        ),
        Fault.status(401, quoting),
        Fault.status(400, quoting),
        Fault.status(500, KEY),
        Fault.html(f"<html>{KEY}"),
        Fault.error("context_length_exceeded"),
        Fault.error("content_filter"),
        Fault.error("insufficient_quota"),
        Fault.error_in_200(),
        Fault.reset(),
        Fault.black_hole(),
        Fault.truncated(),
        Fault.cut_headers(27),
        Fault.bad_gzip(),
        Fault.redirect(302, f"http://127.0.0.1:1/?key={KEY}"),
        Fault.stream_error(3),
        Fault.stream_cut(3),
        Fault.stream_stall(3),
        Fault.malformed_event(3),
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_no_error_log_event_or_figure_holds_a_key_or_a_prompt(
    start: Start, stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CANARY_KEY", KEY)
    raised: set[str] = set()
    texts: list[str] = []
    provider = Provider(answer="an answer of some length")
    loop = start(
        {"a": provider},
        providers={"a": {"api_key_env": "CANARY_KEY", "timeout": 0.2}},
        policy={"max_attempts": 1, "idle_timeout": 0.1},
    )
    questions = [{"role": "user", "content": PROMPT}]
    calls: list[Callable[[], Any]] = [
        lambda: loop.ask(messages=questions, model="unknown"),
        lambda: loop.ask(messages=questions, response_format=object()),
        lambda: loop.ask(messages=[*questions, {"role": "user", "content": {1, 2}}]),
        lambda: loop.ask(messages=questions, route={"tier": "none"}),
        lambda: loop.ask(messages=questions, route={"max_cost": 0.0}),
    ]
    for fault in provocations():
        provider.clear_script()
        provider.script(fault)
        for endpoint in loop.client._router.snapshot.state.endpoints:
            endpoint.core.unblock()
        try:
            if stream:
                list(loop.stream(messages=questions))
            else:
                loop.ask(messages=questions)
        except errors.Error as error:
            raised.add(type(error).__name__)
            texts += shown(error)
    for call in calls:
        with pytest.raises(errors.Error) as caught:
            call()
        raised.add(type(caught.value).__name__)
        texts += shown(caught.value)
    texts += [repr(event) for event in loop.events]
    texts += [
        repr(loop.client.stats()),
        repr(loop.client.config),
        repr(loop.client),
        repr(loop.client.ledger.entries()),
    ]
    texts += [record.getMessage() for record in caplog.records if record.name.startswith("fastroute")]
    assert len(raised) >= 12
    for text in texts:
        assert KEY not in text
        assert PROMPT not in text


def shown(error: BaseException) -> list[str]:
    """All that printing the error and what it was raised from would show."""
    found = []
    seen: BaseException | None = error
    while seen is not None:
        found += [str(seen), repr(seen), repr(seen.args), "".join(traceback.format_exception_only(seen))]
        found.append(json.dumps(getattr(seen, "__dict__", {}), default=repr))
        found.append(repr(pickle.dumps(seen)) if isinstance(seen, errors.Error) else "")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return found


def test_every_deadline_is_kept_with_threads_waiting(start: Start) -> None:
    loop = start(1, providers={"a": {"max_in_flight": 2}})
    loop.provider().script(Fault.black_hole(), repeat=True)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            loop.ask(timeout=0.3)
        except fastroute.Error as error:
            failures.append(error)

    workers = [threading.Thread(target=ask) for _ in range(6)]
    with within(0.6):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(failures) == 6
    assert {type(error) for error in failures} <= {fastroute.DeadlineExceeded, fastroute.RateLimitError}
