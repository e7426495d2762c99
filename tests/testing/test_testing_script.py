"""The local provider: time, limits, script and log."""

from __future__ import annotations

import json
import random
import re
import statistics
import threading
import time

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from raw_http import HELLO, STREAM, answer, ask, connect, request_bytes

from fastroute.testing import Fault, Fixed, Lognormal, Provider, Uniform, go_duration
from fastroute.testing.rate_limits import RateLimits

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


def test_the_logs_bodies_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.testing.server.LOG_BYTES", 300)
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


def test_a_changed_answer_holds_for_a_question_asked_before() -> None:
    with Provider(answer="before") as provider:
        assert answer(provider)["choices"][0]["message"]["content"] == "before"
        provider.answer = "after"
        assert answer(provider)["choices"][0]["message"]["content"] == "after"
