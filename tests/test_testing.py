"""The local provider: answers, time, limits, log and life, by plain sockets, http.client and requests."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from raw_http import (
    HELLO,
    STREAM,
    answer,
    ask,
    connect,
    events,
    exchange,
    read_all,
    request_bytes,
    stream,
    text_of,
)

from fastroute.testing import (
    Answer,
    Fault,
    Fixed,
    Lognormal,
    Provider,
    Received,
    Repeat,
    StreamStyle,
    Uniform,
    count_tokens,
    go_duration,
)
from fastroute.testing._http import BadRequest, parse_head, read_chunks
from fastroute.testing._limits import RateLimits

DOCS = pathlib.Path(__file__).parent.parent / "docs" / "testing.md"


@pytest.fixture(scope="module")
def shared() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(shared: Provider) -> Iterator[Provider]:
    """One server for most tests, as new for each."""
    shared.clear_script()
    shared.clear_requests()
    yield shared
    shared.clear_script()


# ------------------------------------------------------------------------------------------------ answers


def test_a_plain_answer_has_openais_shape_and_counts_by_the_token_rule(provider: Provider) -> None:
    status, headers, body = ask(provider)
    reply = json.loads(body)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert re.fullmatch(r"req_[0-9a-f]{8}", headers["x-request-id"])
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "m"
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert reply["usage"]["prompt_tokens"] == 4 + 3
    assert reply["usage"]["completion_tokens"] == 3
    assert reply["usage"]["total_tokens"] == 10


def test_request_ids_and_completion_ids_differ(provider: Provider) -> None:
    first, second = ask(provider), ask(provider)
    assert first[1]["x-request-id"] != second[1]["x-request-id"]
    assert json.loads(first[2])["id"] != json.loads(second[2])["id"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "hello world"),
        ("fixed", "fixed"),
        (Answer(content="as it stands"), "as it stands"),
        (lambda request: request.json["model"] + "!", "m!"),
        (lambda request: Answer(content="made"), "made"),
    ],
    ids=["echo", "text", "answer", "function", "function-answer"],
)
def test_answer_sources(source: Any, expected: str) -> None:
    with Provider(answer=source) as provider:
        assert answer(provider)["choices"][0]["message"]["content"] == expected
        assert text_of(stream(provider)) == expected


@pytest.mark.parametrize("tokens", [0, 1, 7, 1000])
def test_lorem_has_exactly_the_tokens_asked_for(tokens: int) -> None:
    with Provider(answer=tokens) as provider:
        reply = answer(provider)
    assert reply["usage"]["completion_tokens"] == tokens
    assert count_tokens(reply["choices"][0]["message"]["content"]) == tokens


def test_usage_takes_cached_and_reasoning_tokens() -> None:
    with Provider(answer="four", cached_tokens=1000, reasoning_tokens=50) as provider:
        usage = answer(provider)["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": usage["prompt_tokens"]}
    assert usage["completion_tokens"] == 51
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 50}


def test_an_answer_may_set_all_of_its_usage() -> None:
    given = Answer("x", (), "content_filter", 100, 20, 30, 5)
    with Provider(answer=given) as provider:
        reply = answer(provider)
    assert reply["choices"][0]["finish_reason"] == "content_filter"
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (100, 20)
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 30}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts_the_answer(provider: Provider, name: str) -> None:
    reply = answer(provider, {**HELLO, name: 2})
    assert reply["choices"][0]["message"]["content"] == "hello wo"
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 2


def test_n_choices_are_all_counted(provider: Provider) -> None:
    reply = answer(provider, {**HELLO, "n": 3})
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 9
    chunks = stream(provider, n=2)
    assert [text_of(chunks, index) for index in (0, 1)] == ["hello world", "hello world"]


def test_text_parts_are_echoed_and_images_counted(provider: Provider) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    reply = answer(provider, {"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert reply["choices"][0]["message"]["content"] == "look"
    assert reply["usage"]["prompt_tokens"] == 4 + 1 + 85


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "unit": {"enum": ["C", "F"]},
                    "left_out": {"type": "number"},
                },
                "required": ["city", "days", "unit"],
            },
        },
    },
    {"type": "function", "function": {"name": "other"}},
]


@pytest.mark.parametrize(
    ("choice", "name"),
    [("required", "weather"), ({"type": "function", "function": {"name": "other"}}, "other")],
    ids=["required", "named"],
)
def test_a_required_tool_is_called_with_arguments_to_its_schema(
    provider: Provider, choice: Any, name: str
) -> None:
    body = {**HELLO, "tools": TOOLS, "tool_choice": choice}
    reply = answer(provider, body)
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    assert reply["choices"][0]["message"]["content"] is None
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == name
    arguments = json.loads(call["function"]["arguments"])
    if name == "weather":
        assert arguments == {"city": "hello world", "days": 1, "unit": "C"}

    deltas = [
        delta
        for chunk in stream(provider, tools=TOOLS, tool_choice=choice)
        if isinstance(chunk, dict)
        for delta in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert deltas[0]["function"]["name"] == name
    assert deltas[0]["id"]
    assert [set(delta) for delta in deltas[1:]] == [{"index", "function"}] * (len(deltas) - 1)
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas)) == arguments


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_tools_that_need_not_be_called_are_not(provider: Provider, choice: Any) -> None:
    reply = answer(provider, {**HELLO, "tools": TOOLS, "tool_choice": choice})
    assert reply["choices"][0]["message"]["content"] == "hello world"


def test_several_tool_calls_keep_their_indices_apart() -> None:
    calls = (("a", '{"x":1}'), ("b", '{"yyyyyy":2}'))
    with Provider(answer=Answer(tool_calls=calls)) as provider:
        told: dict[int, str] = {}
        for chunk in stream(provider)[:-1]:
            for delta in chunk["choices"][0]["delta"].get("tool_calls", ()):
                told[delta["index"]] = told.get(delta["index"], "") + delta["function"]["arguments"]
    assert told == {0: calls[0][1], 1: calls[1][1]}


def test_response_formats_give_json(provider: Provider) -> None:
    reply = answer(provider, {**HELLO, "response_format": {"type": "json_object"}})
    assert json.loads(reply["choices"][0]["message"]["content"]) == {"answer": "hello world"}
    schema = {"type": "object", "properties": {"n": {"type": "array", "items": {"type": "number"}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = answer(provider, {**HELLO, "response_format": wanted})
    assert json.loads(reply["choices"][0]["message"]["content"]) == {"n": [1.5]}


def test_models_are_listed_and_others_refused() -> None:
    with Provider(["a", "b"]) as provider:
        listed = requests.get(provider.base_url + "/models", timeout=5).json()
        assert [model["id"] for model in listed["data"]] == ["a", "b"]
        status, _, body = ask(provider)
        assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


def test_keys_are_checked_and_other_paths_not_found() -> None:
    with Provider(api_keys=["sk-right"]) as provider:
        for key in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": "sk-right"}):
            status, _, body = ask(provider, **key)
            assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
        assert ask(provider, Authorization="Bearer sk-right")[0] == 200
        assert requests.get(provider.url + "/v1/nothing", timeout=5).status_code == 404
        assert requests.get(provider.base_url + "/chat/completions", timeout=5).status_code == 404
    assert "sk-right" not in repr(provider)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        ({"messages": HELLO["messages"]}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": ["x"]}, "messages"),
        ({**HELLO, "n": 0}, "n"),
        ({**HELLO, "n": "1"}, "n"),
        ({**HELLO, "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_bad_questions_get_a_400_that_names_the_parameter(provider: Provider, body: Any, param: Any) -> None:
    status, _, reply = ask(provider, body)
    assert status == 400
    assert json.loads(reply)["error"]["type"] == "invalid_request_error"
    assert json.loads(reply)["error"]["param"] == param


def test_a_function_that_raises_is_a_500_and_the_server_lives(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Received) -> str:
        raise KeyError("mine")

    with Provider(answer=broken) as provider:
        assert ask(provider)[0] == 500
        provider.answer = "fine"
        assert ask(provider)[0] == 200
    assert "KeyError" in caplog.text


# ------------------------------------------------------------------------------------------------ streams


def test_a_stream_begins_with_the_role_and_ends_with_reason_and_done(provider: Provider) -> None:
    status, headers, body = ask(provider, STREAM)
    chunks = events(body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["transfer-encoding"] == "chunked"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:4]] == ["hell", "o wo", "rld"]
    assert chunks[4]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chunks[5] == b"[DONE]"
    assert len(chunks) == 6
    assert not any("usage" in chunk for chunk in chunks[:-1])


def test_usage_comes_last_and_only_if_asked_for(provider: Provider) -> None:
    chunks = stream(provider, stream_options={"include_usage": True})
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["total_tokens"] == 10
    assert all(chunk["usage"] is None for chunk in chunks[:-2])


def test_stream_styles() -> None:
    style = StreamStyle(comment_every=2, crlf=True, usage_in_every_chunk=True, done=False)
    with Provider(style=style) as provider:
        body = ask(provider, STREAM)[2]
        assert body.count(b": keep-alive\r\n\r\n") == 2
        assert b"\n" not in body.replace(b"\r\n", b"")
        assert b"[DONE]" not in body
        assert [chunk["usage"]["completion_tokens"] for chunk in events(body)] == [0, 1, 2, 3, 3]
        provider.configure(style=StreamStyle(usage=False))
        chunks = stream(provider, stream_options={"include_usage": True})
        assert not any("usage" in chunk for chunk in chunks[:-1])


def test_tokens_are_paced_one_by_one() -> None:
    # Not how long it takes: that the pieces come apart, in order, with pauses that add up.
    with Provider(answer=5, tokens_per_second=200) as provider:
        start = time.monotonic()
        assert len(stream(provider)) == 8
        assert time.monotonic() - start >= 4 / 200
        start = time.monotonic()
        ask(provider)
        assert time.monotonic() - start >= 5 / 200


# ---------------------------------------------------------------------------------------- time and limits


def test_latency_distributions_are_seeded_and_shaped() -> None:
    draws = [Lognormal(0.1, 0.5)(rng) for rng in [random.Random(1)] for _ in range(4001)]
    assert 0.09 < statistics.median(draws) < 0.11
    assert max(draws) > 0.3
    assert Lognormal(0.1, 3.0, limit=0.2)(random.Random(3)) <= 0.2
    low = [Uniform(0.1, 0.2)(random.Random(seed)) for seed in range(200)]
    assert 0.1 <= min(low) < 0.11
    assert 0.19 < max(low) <= 0.2
    assert Fixed(0.3)(random.Random()) == 0.3
    assert Lognormal(1)(random.Random(5)) == Lognormal(1)(random.Random(5))


def test_latency_delays_the_answer_and_can_be_changed() -> None:
    drawn = []

    def latency(rng: random.Random) -> float:
        drawn.append(rng.random())
        return 0.0

    with Provider(latency=0.03, seed=1) as provider:
        start = time.monotonic()
        ask(provider)
        assert time.monotonic() - start >= 0.03
        provider.latency = latency
        ask(provider)
    assert drawn == [random.Random(1).random()]


@given(st.integers(0, 10**9))
def test_durations_are_written_as_go_writes_them(millis: int) -> None:
    text = go_duration(millis / 1000)
    assert re.fullmatch(r"(\d+h)?(\d+m)?(\d+(\.\d*[1-9])?s)|\d+ms", text)
    units = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
    total = sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", text))
    assert total == pytest.approx(millis)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-1, "0s"), (0.012, "12ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (3723, "1h2m3s")],
)
def test_durations_known(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


def test_limits_take_both_or_neither_and_refill_evenly() -> None:
    limits = RateLimits(60, 1000)
    assert limits.take(900, now=0.0) is None
    refused = limits.take(200, now=0.0)
    assert refused is not None
    assert (refused.kind, refused.limit) == ("tokens", 1000)
    assert refused.retry_after == pytest.approx(6.0)
    assert limits.state(0.0)["requests"][1] == 59  # the refused one cost nothing
    assert limits.take(200, now=6.001) is None
    never = limits.take(2000, now=1000.0)
    assert never is not None
    assert never.retry_after == 60
    zero = RateLimits(0, None).take(1, now=0.0)
    assert zero is not None
    assert zero.kind == "requests"


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 40)), max_size=60))
def test_limits_never_let_more_through_than_burst_and_rate(steps: list[tuple[float, int]]) -> None:
    limits, now, passed = RateLimits(None, 120), 0.0, 0
    for pause, tokens in steps:
        now += pause
        if limits.take(tokens, now) is None:
            passed += tokens
    assert passed <= 120 + now * 2 + 1e-6


def test_rate_limits_show_in_headers_and_refuse_with_a_429() -> None:
    with Provider(requests_per_minute=2, tokens_per_minute=1000) as provider:
        _, headers, _ = ask(provider)
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-remaining-requests"] == "1"
        assert headers["x-ratelimit-remaining-tokens"] == "990"
        assert re.fullmatch(r"30s|29\.\d+s", headers["x-ratelimit-reset-requests"])
        ask(provider)
        status, headers, body = ask(provider)
        assert status == 429
        assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
        assert json.loads(body)["error"]["type"] == "requests"
        assert 0 < int(headers["retry-after"]) <= 30
        assert 0 < int(headers["retry-after-ms"]) <= 30_000
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert "x-request-id" in headers


# ------------------------------------------------------------------------------------- script and the log


def test_a_script_is_used_in_order_and_then_over(provider: Provider) -> None:
    provider.script(Fault.status(503), None, Fault.status(500))
    provider.script(Fault.status(418))
    assert [ask(provider)[0] for _ in range(5)] == [503, 200, 500, 418, 200]
    assert [request.fault for request in provider.requests] == [
        "status(503)",
        None,
        "status(500)",
        "status(418)",
        None,
    ]


def test_a_script_may_repeat_until_the_next(provider: Provider) -> None:
    provider.script(Fault.status(503), None, repeat=True)
    assert [ask(provider)[0] for _ in range(5)] == [503, 200, 503, 200, 503]
    provider.script(Fault.status(500))
    assert [ask(provider)[0] for _ in range(2)] == [500, 200]


def test_a_function_decides_for_each_request(provider: Provider) -> None:
    provider.script(lambda request: Fault.status(500) if request.headers.get("x-fail") else None)
    assert ask(provider)[0] == 200
    assert ask(provider, **{"x-fail": "1"})[0] == 500
    provider.clear_script()
    assert ask(provider, **{"x-fail": "1"})[0] == 200


def test_random_failures_follow_the_seed() -> None:
    def run(seed: int) -> list[int]:
        with Provider(fail_rate=0.5, fail_with=[Fault.status(503)], seed=seed) as provider:
            return [ask(provider)[0] for _ in range(12)]

    first = run(1)
    assert set(first) == {200, 503}
    assert run(1) == first
    assert run(2) != first


def test_the_log_holds_what_was_sent_and_shows_no_secret(provider: Provider) -> None:
    before = time.monotonic()
    ask(provider, Authorization="Bearer sk-secret")
    (received,) = provider.requests
    assert (received.method, received.path) == ("POST", "/v1/chat/completions")
    assert received.headers["authorization"] == "Bearer sk-secret"
    assert received.json == HELLO
    assert before <= received.time <= time.monotonic()
    assert "sk-secret" not in repr(received)
    assert "hello" not in repr(received)
    with pytest.raises(AttributeError):
        received.path = "/"


def test_the_log_is_bounded() -> None:
    with Provider(log_size=3) as provider:
        for turn in range(5):
            ask(provider, {**HELLO, "user": str(turn)})
        assert [request.json["user"] for request in provider.requests] == ["2", "3", "4"]
        assert provider.received == 5


def test_connections_are_numbered_and_reused(provider: Provider) -> None:
    opened = provider.connections
    with requests.Session() as session:
        for _ in range(3):
            session.post(provider.base_url + "/chat/completions", json=HELLO, timeout=5)
        assert {request.connection for request in provider.requests} == {opened + 1}
        assert provider.connections == opened + 1
        assert provider.open_connections >= 1


def test_requests_in_flight_are_counted() -> None:
    with Provider() as provider:
        provider.pause()
        threads = [threading.Thread(target=ask, args=(provider,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        provider.wait_until(lambda p: p.in_flight == 4)
        provider.resume()
        for thread in threads:
            thread.join()
        provider.wait_until(lambda p: p.in_flight == 0)
        assert provider.peak_in_flight == 4
        assert provider.abandoned == 0


def test_a_client_that_leaves_is_noticed(provider: Provider) -> None:
    abandoned = provider.abandoned
    provider.script(Fault.stream_stall(1))
    with connect(provider) as sock:
        sock.sendall(request_bytes(STREAM))
        assert sock.recv(100)
        assert provider.in_flight == 1
    provider.wait_until(lambda p: p.in_flight == 0)
    assert provider.abandoned == abandoned + 1


def test_wait_until_gives_up_with_the_counts(provider: Provider) -> None:
    with pytest.raises(TimeoutError, match="received"):
        provider.wait_until(lambda p: False, timeout=0.01)


# ------------------------------------------------------------------------------------------------ requests


def test_pipelined_requests_are_answered_in_order(provider: Provider) -> None:
    bodies = [{**HELLO, "messages": [{"role": "user", "content": str(turn)}]} for turn in range(3)]
    provider.script(None, Fault.slow(0.01), None)
    with connect(provider) as sock:
        sock.sendall(b"".join(request_bytes(body) for body in bodies[:2]))
        sock.sendall(request_bytes(bodies[2], extra="connection: close\r\n"))
        data, how = read_all(sock)
    assert how == "close"
    assert re.findall(rb'"content":"(\d)"', data) == [b"0", b"1", b"2"]


def test_a_request_may_arrive_byte_by_byte(provider: Provider) -> None:
    with connect(provider) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request_bytes(extra="connection: close\r\n"):
            sock.sendall(bytes([byte]))
        data, _ = read_all(sock)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")


def test_chunked_requests_and_expectations(provider: Provider) -> None:
    data = json.dumps(HELLO).encode()
    url = provider.base_url + "/chat/completions"
    assert requests.post(url, data=iter([data[:5], data[5:]]), timeout=5).status_code == 200
    assert provider.requests[-1].body == data
    with connect(provider) as sock:
        whole = request_bytes(extra="expect: 100-continue\r\nconnection: close\r\n")
        head, body = whole.split(b"\r\n\r\n", 1)
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_all(sock)[0].startswith(b"HTTP/1.1 200")


def test_http_10_clients_get_no_chunks_and_no_keep_alive(provider: Provider) -> None:
    with connect(provider) as sock:
        sock.sendall(request_bytes(STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
        data, how = read_all(sock)
    assert how == "close"
    assert b"transfer-encoding" not in data
    assert data.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nname : x\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_request_gets_a_400_and_a_close(provider: Provider, data: bytes) -> None:
    with connect(provider) as sock:
        sock.sendall(data)
        reply, _ = read_all(sock)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"invalid_request_error" in reply


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    with contextlib.suppress(BadRequest):
        parse_head(data)
    with contextlib.suppress(BadRequest):
        read_chunks(data, 0)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.integers(0, 400))
def test_chunks_are_read_only_when_complete(parts: list[bytes], cut: int) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    assert read_chunks(data + b"next", 0) == (b"".join(parts), len(data))
    if cut < len(data):
        assert read_chunks(data[:cut], 0) is None


# ----------------------------------------------------------------------------------------------- life


def test_kill_resets_refuses_and_keeps_the_port(provider: Provider) -> None:
    port = provider.port
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        assert sock.recv(10)
        provider.kill()
        sock.settimeout(5)
        assert read_all(sock)[1] == "reset"
        provider.kill()  # twice is once
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            connect(provider)
    assert len(provider.requests) == 1
    provider.restart()
    assert provider.port == port
    assert ask(provider)[0] == 200


def test_kill_ends_answers_in_flight(provider: Provider) -> None:
    provider.script(Fault.black_hole())
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        provider.wait_until(lambda p: p.in_flight == 1)
        provider.kill()
        assert read_all(sock) == (b"", "reset")
    provider.wait_until(lambda p: p.in_flight == 0)
    provider.restart()


def test_a_restart_without_a_kill_drops_connections(provider: Provider) -> None:
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        sock.recv(10)
        provider.restart()
        assert read_all(sock)[1] == "reset"
    assert ask(provider)[0] == 200


def test_pause_stops_a_running_stream(provider: Provider) -> None:
    provider.script(Fault.pings(0.001))
    with connect(provider) as sock:
        sock.sendall(request_bytes(STREAM))
        while b": ping" not in sock.recv(1000):
            pass
        provider.pause()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while sock.recv(100_000):  # what was sent before the pause
                pass
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(5)
        provider.resume()
        assert sock.recv(1000)


def test_stop_leaves_no_thread_and_start_begins_anew() -> None:
    before = threading.active_count()
    provider = Provider()
    provider.start()
    port = provider.port
    with connect(provider) as sock:
        sock.sendall(request_bytes(STREAM))
        sock.recv(10)
        with pytest.raises(RuntimeError, match="running already"):
            provider.start()
        provider.stop()
        provider.stop()
        assert read_all(sock)[1] in ("reset", "close")
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    with pytest.raises(RuntimeError, match="not running"):
        _ = provider.port
    with provider:
        assert ask(provider)[0] == 200
        assert provider.received == 1


def test_a_port_in_use_is_an_error_at_once(provider: Provider) -> None:
    with pytest.raises(OSError, match="in use"):
        Provider(port=provider.port).start()


def test_settings_are_checked_at_once() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"models": "gpt-4.1"}, "models"),
        ({"models": [1]}, "models"),
        ({"format": "smoke"}, "format"),
        ({"latency": -1}, "latency"),
        ({"latency": float("nan")}, "latency"),
        ({"latency": True}, "latency"),
        ({"tokens_per_second": 0}, "tokens_per_second"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"requests_per_minute": 1.5}, "requests_per_minute"),
        ({"fail_rate": 1.5}, "fail_rate"),
        ({"fail_with": []}, "fail_with"),
        ({"answer": True}, "answer"),
        ({"answer": -1}, "answer"),
        ({"answer": [1]}, "answer"),
        ({"log_size": 0}, "log_size"),
    ]
    for arguments, name in bad:
        with pytest.raises((TypeError, ValueError), match=name):
            Provider(**arguments)
    for make in (lambda: Uniform(2, 1), lambda: Lognormal(0), lambda: Fixed(-1)):
        with pytest.raises(ValueError):
            make()


def test_many_threads_may_use_one_provider() -> None:
    with Provider() as provider:
        failures: list[BaseException] = []

        def work() -> None:
            try:
                with requests.Session() as session:
                    for _ in range(20):
                        session.post(provider.base_url + "/chat/completions", json=HELLO, timeout=5)
                        _ = provider.requests, provider.in_flight
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert provider.received == 160
        assert provider.connections == 8


# ------------------------------------------------------------------------------------ a process of its own


def test_everything_works_in_a_process_of_its_own() -> None:
    fault = Fault.status(503, b"\xff\x00", {"x-a": "b"}) | Fault.drip(1, 0.0)
    with Provider(
        ["m"], process=True, latency=Uniform(0, 0.001), answer=Answer("x", (("f", "{}"),))
    ) as provider:
        assert provider.pid != os.getpid()
        provider.script(fault, Fault.raw(b"a", Repeat(b"b", 2), then="reset"))
        assert ask(provider)[2] == b"\xff\x00"
        assert exchange(provider) == (b"abb", "reset")
        received = provider.requests[0]
        assert received.json == HELLO
        assert received.fault == fault.name
        assert received.time <= time.monotonic()
        assert provider.latency == Uniform(0, 0.001)
        provider.latency = 0.0
        provider.answer = 3
        assert answer(provider)["usage"]["completion_tokens"] == 3
        provider.kill()
        with pytest.raises(ConnectionRefusedError):
            connect(provider)
        provider.restart()
        assert ask(provider)[0] == 200
        assert provider.received == 4
        with pytest.raises(TypeError, match="own process"):
            provider.script(lambda request: None)
        with pytest.raises(TypeError, match="own process"):
            provider.configure(latency=lambda rng: 0.0)
        assert ask(provider)[0] == 200


def test_a_process_that_was_killed_is_reported() -> None:
    with Provider(process=True) as provider:
        os.kill(provider.pid, signal.SIGKILL)
        os.waitid(os.P_PID, provider.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(RuntimeError, match="has ended"):
            _ = provider.received


def test_the_processes_port_errors_come_back(provider: Provider) -> None:
    with pytest.raises(OSError, match="in use"):
        Provider(port=provider.port, process=True).start()


def test_the_command_line_starts_one() -> None:
    command = [sys.executable, "-m", "fastroute.testing", "--model", "m", "--answer", "by hand"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        reply = requests.post(url + "/chat/completions", json=HELLO, timeout=5).json()
        assert reply["choices"][0]["message"]["content"] == "by hand"
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0


# ------------------------------------------------------------------------------------------------ the page


def test_the_pages_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    for place, block in enumerate(blocks):
        exec(compile(block, f"docs/testing.md, example {place + 1}", "exec"), {"__name__": "example"})


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forks_copy_can_neither_command_nor_stop(provider: Provider) -> None:
    with Provider(process=True) as other:
        pid = os.fork()
        if pid == 0:
            refused = 0
            try:
                for copy in (provider, other):
                    try:
                        copy.kill()
                    except RuntimeError:
                        refused += 1
                    copy.stop()
            finally:
                os._exit(refused)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 2
        assert ask(provider)[0] == 200
        assert ask(other)[0] == 200
        assert other.received == 1


def test_the_logs_bodies_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.testing._server.LOG_BYTES", 300)
    with Provider() as provider:
        for turn in range(9):
            ask(provider, {**HELLO, "user": str(turn)})
        kept = provider.requests
        assert [request.json["user"] for request in kept] == ["6", "7", "8"]
        assert sum(len(request.body) for request in kept) <= 300


def test_a_latency_function_that_raises_or_errs_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    with Provider(latency=lambda rng: -1.0) as provider:
        assert ask(provider)[0] == 500
    assert "latency" in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kill_refuses_also_while_a_fork_holds_a_copy_of_the_socket(provider: Provider) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writer)
            os.read(reader, 1)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        provider.kill()
        with pytest.raises(ConnectionRefusedError):
            connect(provider)
        provider.restart()
        assert ask(provider)[0] == 200
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def test_a_changed_answer_holds_for_a_question_asked_before() -> None:
    with Provider(answer="before") as provider:
        assert answer(provider)["choices"][0]["message"]["content"] == "before"
        provider.answer = "after"
        assert answer(provider)["choices"][0]["message"]["content"] == "after"


def test_stop_does_not_wait_for_a_client_that_reads_nothing() -> None:
    with Provider(answer="x" * (16 << 20)) as provider, connect(provider) as sock:
        sock.sendall(request_bytes(extra="connection: close\r\n"))
        provider.wait_until(lambda p: p.received == 1)
        provider.kill()
        data, how = read_all(sock)
        assert how == "reset"
        assert len(data) < 16 << 20
