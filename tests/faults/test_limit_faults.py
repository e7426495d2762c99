"""Cases 65 to 85: what providers say about limits, and limits of our own; numbered as there."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from loopback import MODEL, Loopback, core_of, within

import fastroute
from fastroute import events
from fastroute.testing import Answer, Fault, Provider

Start = Callable[..., Loopback]

NOW = datetime(2019, 11, 21, 12, 0, 0, tzinfo=timezone.utc)  # by the servers' clock, which is years off
DATE = format_datetime(NOW, usegmt=True)


def later(seconds: float) -> str:
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


def throttled(**headers: str) -> Fault:
    return Fault.error(
        "rate_limit_exceeded", {name.replace("_", "-"): value for name, value in headers.items()}
    )


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"retry_after": "0.02"}, id="065-seconds"),
        pytest.param({"retry_after": " 0.02 "}, id="065-blanks"),
        pytest.param({"retry_after_ms": "20", "retry_after": "30"}, id="067-milliseconds-first"),
    ],
)
def test_a_short_retry_after_is_waited_for(start: Start, headers: dict[str, str]) -> None:
    loop = start(1)
    loop.provider().script(throttled(**headers))
    with within(1.0):
        reply = loop.ask()
    assert reply.route is not None
    assert [attempt.error for attempt in reply.route.attempts] == ["RateLimitError", None]
    first, second = loop.provider().requests
    assert second.time - first.time >= 0.02
    assert 0.02 <= reply.route.waited <= 0.022


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        pytest.param({"retry_after": "20"}, 20, id="065-seconds"),
        pytest.param({"retry_after": "20.5"}, 20.5, id="065-fraction"),
        pytest.param({"date": DATE, "retry_after": later(20)}, 20, id="069-date-by-the-servers-own-clock"),
        pytest.param({"retry_after_ms": "500", "retry_after": "30"}, 0.5, id="067-milliseconds-first"),
    ],
)
def test_what_cannot_be_waited_for_is_told(start: Start, headers: dict[str, str], wait: float) -> None:
    loop = start(1)
    loop.provider().script(throttled(**headers))
    with within(0.3), pytest.raises(fastroute.RateLimitError) as caught:
        loop.ask(timeout=0.3)
    assert caught.value.retry_after == pytest.approx(wait)
    assert loop.provider().received == 1


@pytest.mark.parametrize(
    "value",
    [
        *("-10", "0", later(-60), "", "abc", "nan", "inf", "1_000", "٢٠", "20,20", "5;q=1", "9" * 5000),
        *("Fri, 31 Feb 2027 00:00:00 GMT", "Sat, 01 Jan 100000 00:00:00 GMT", "1e9", "+5", "0x10"),
    ],
    ids=lambda value: f"066-{value[:12]}",
)
def test_nonsense_in_retry_after_is_ignored(start: Start, value: str) -> None:
    loop = start(1)
    headers = f"date: {DATE}\r\nretry-after: {value}\r\ncontent-length: 2"
    raw = f"HTTP/1.1 429 Too Many\r\n{headers}\r\n\r\n{{}}".encode()
    loop.provider().script(Fault.raw(raw, then="keep"), Fault.raw(raw, then="keep"))
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.status_code for attempt in reply.route.attempts] == [429, 429, 200]
    assert reply.route.waited == pytest.approx(0.1)  # of its own back-off, twice the floor
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(Fault.raw(raw, then="keep"))
    with pytest.raises(fastroute.RateLimitError) as caught:
        loop.ask()
    assert (caught.value.status_code, caught.value.retry_after) == (429, None)
    assert loop.endpoint()["blocked_s"] == 0


@pytest.mark.parametrize("seconds", [61, 121, 86400])
def test_068_a_long_retry_after_blocks_the_endpoint(start: Start, seconds: int) -> None:
    loop = start(2)
    loop.provider("a").script(throttled(retry_after=str(seconds)))
    reply = loop.ask()
    assert reply.route is not None
    assert reply.route.endpoint == f"b/{MODEL}"
    blocked = min(seconds, 3600)
    assert blocked - 2 < loop.endpoint("a")["blocked_s"] <= blocked
    loop.ask()
    assert loop.provider("a").received == 1
    assert [event.endpoint for event in loop.of(events.EndpointBlocked)] == [f"a/{MODEL}"]


def test_068_with_no_other_endpoint_it_is_raised_at_once(start: Start) -> None:
    loop = start(1)
    loop.provider().script(throttled(retry_after="61"))
    with within(0.0), pytest.raises(fastroute.RateLimitError) as caught:
        loop.ask()
    assert caught.value.retry_after == 61
    with pytest.raises(fastroute.NoEndpointError) as later_on:
        loop.ask()
    assert later_on.value.retry_after == pytest.approx(61, abs=5)


@pytest.mark.parametrize(
    ("reset", "limit", "left"),
    [
        pytest.param("6m0s", "60", 5, id="070-minutes"),
        pytest.param("12ms", "60", 5, id="070-milliseconds"),
        pytest.param("-5s", "60", 5, id="070-refused-reset"),
        pytest.param("1.5.2s", "60", 5, id="070-nonsense"),
        pytest.param("2020-01-01T00:00:00Z", "60", 5, id="071-past"),
        pytest.param("24h0m0s", "14400", None, id="073-a-limit-per-day"),
    ],
)
def test_what_is_left_tightens_the_limit(start: Start, reset: str, limit: str, left: int | None) -> None:
    loop = start(1, providers={"a": {"rpm": 1, "burst": 50}})
    loop.provider().script(
        Fault.headers(
            {
                "x-ratelimit-limit-requests": limit,
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-reset-requests": reset,
            }
        )
    )
    loop.ask()
    assert loop.endpoint()["available_requests"] == (49 if left is None else left)


OPENAI = "x-ratelimit-{part}-{what}"
ANTHROPIC = "anthropic-ratelimit-{what}-{part}"


@pytest.mark.parametrize(
    ("names", "what", "reset", "figure"),
    [
        pytest.param(OPENAI, "requests", "1m0s", "requests", id="openai-requests"),
        pytest.param(OPENAI, "tokens", "1m0s", "tokens", id="openai-tokens"),
        pytest.param(OPENAI, "requests", "60", "requests", id="azure-seconds"),
        pytest.param(ANTHROPIC, "requests", "1994-11-06T08:50:37Z", "requests", id="anthropic-requests"),
        pytest.param(ANTHROPIC, "input-tokens", "1994-11-06T08:50:37Z", "tokens", id="anthropic-tokens"),
        pytest.param(OPENAI, "req-minute", None, "requests", id="mistral-requests"),
        pytest.param(OPENAI, "tokens-minute", None, "tokens", id="mistral-tokens"),
    ],
)
def test_headers_pace_an_endpoint_without_limits_of_its_own(
    start: Start, names: str, what: str, reset: str | None, figure: str
) -> None:
    loop = start(1, policy={"queue_timeout": 0.0})
    told = {"limit": "600", "remaining": "0", "reset": reset}
    headers = {names.format(part=part, what=what): value for part, value in told.items() if value is not None}
    loop.provider().script(Fault.headers({"date": "Sun, 06 Nov 1994 08:49:37 GMT", **headers}))
    loop.ask()
    assert loop.endpoint()[f"available_{figure}"] is not None
    with pytest.raises(fastroute.RateLimitError, match=f"{figure} a minute used up"):
        loop.ask(max_tokens=100)
    assert loop.provider().received == 1


def test_an_answer_that_tells_no_limit_ends_the_pace(start: Start) -> None:
    loop = start(1)
    told = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "50"}
    loop.provider().script(Fault.headers(told), Fault.status(500), Fault.headers({"x-other": "1"}))
    loop.ask()
    assert loop.endpoint()["rpm"] == 60
    loop.ask()
    assert loop.endpoint()["rpm"] is None


@pytest.mark.parametrize("value", ["-1", "0", "10, 20", "abc"], ids=lambda value: f"072-075-{value}")
def test_what_azure_does_not_know_is_ignored(start: Start, value: str) -> None:
    loop = start(1, providers={"a": {"rpm": 1, "burst": 50}})
    loop.provider().script(Fault.headers({"x-ratelimit-remaining-requests": value}))
    loop.ask()
    assert loop.endpoint()["available_requests"] == 49


def test_074_an_answer_that_says_more_than_an_earlier_one_loosens_nothing(start: Start) -> None:
    """As when a late answer was written before the one that came first."""
    loop = start(1, providers={"a": {"rpm": 1, "burst": 50}})
    loop.provider().script(
        *(
            Fault.headers({"x-ratelimit-limit-requests": "1000", "x-ratelimit-remaining-requests": left})
            for left in ("20", "900", "30")
        )
    )
    left = []
    for _ in range(3):
        loop.ask()
        left.append(loop.endpoint()["available_requests"])
    assert left == [20, 19, 18]


def test_076_a_throttle_without_a_hint_is_backed_off_from(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 4})
    loop.provider().script(*[Fault.error("rate_limit_exceeded")] * 2)
    reply = loop.ask()
    assert reply.route is not None
    assert len(reply.route.attempts) == 3
    assert reply.route.waited == pytest.approx(0.1)  # twice the floor
    assert (loop.endpoint()["failed"], loop.endpoint()["state"]) == (0, "closed")


@pytest.mark.parametrize(
    "code",
    [
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    ],
    ids=lambda code: f"077-{code}",
)
def test_a_spent_quota_blocks_and_is_not_tried_again(start: Start, code: str) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.error(code, {"retry-after": "1"}))
    reply = loop.ask()
    assert reply.route is not None
    assert reply.route.attempts[0].error == "QuotaExceededError"
    assert 890 < loop.endpoint("a")["blocked_s"] <= 900
    loop.provider("b").script(Fault.error(code))
    with pytest.raises(fastroute.QuotaExceededError):
        loop.ask()
    with pytest.raises(fastroute.NoEndpointError):
        loop.ask()
    assert [loop.provider(name).received for name in "ab"] == [1, 2]


def test_077_who_has_paid_need_not_wait(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    loop = start(1)
    loop.provider().script(Fault.error("insufficient_quota"))
    with pytest.raises(fastroute.QuotaExceededError):
        loop.ask()
    (blocked,) = loop.of(events.EndpointBlocked)
    assert (blocked.endpoint, blocked.seconds) == (f"a/{MODEL}", 900)
    assert f"a/{MODEL} is left out for 15 min: its quota or spend limit is reached" in caplog.messages
    with pytest.raises(fastroute.NoEndpointError):
        loop.ask()
    with pytest.raises(fastroute.NoEndpointError, match="did you mean"):
        loop.client.unblock("a/test-modle")
    loop.client.unblock(f"a/{MODEL}")
    assert loop.ask().text == "Say hello"
    assert loop.provider().received == 2


def test_078_more_than_a_limit_can_ever_grant_is_refused_at_once(start: Start) -> None:
    loop = start(1, providers={"a": {"tpm": 1000}})
    with within(0.0), pytest.raises(fastroute.RequestTooLargeForLimit) as caught:
        loop.ask("word " * 5000)
    assert caught.value.status_code == 413
    assert loop.provider().received == 0
    assert loop.endpoint()["available_tokens"] == 1000


def test_079_a_limit_of_nothing_lets_nothing_through(start: Start) -> None:
    for limit in ({"rpm": 0}, {"tpm": 0}, {"max_in_flight": 0}):
        loop = start(1, providers={"a": limit})
        with within(0.0), pytest.raises(fastroute.NoEndpointError):
            loop.ask()
        assert loop.provider().received == 0


def test_079_a_limit_of_one_a_minute_and_of_a_billion(start: Start) -> None:
    loop = start(1, providers={"a": {"rpm": 1}}, policy={"queue_timeout": 0.0})
    loop.ask()
    with pytest.raises(fastroute.RateLimitError) as caught:
        loop.ask()
    assert caught.value.retry_after is not None
    assert 50 < caught.value.retry_after <= 60
    large = start(1, providers={"a": {"rpm": 10**9, "tpm": 10**9}})
    for _ in range(20):
        large.ask()


def test_080_a_clock_that_is_set_changes_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day jumps by an hour each time that anybody looks."""
    jumps = itertools.cycle((-3600.0, 0.0, 3600.0))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    breaker = {"failures": 1, "open": 300.0, "max_open": 300.0}
    loop = start(1, providers={"a": {"rpm": 1200, "burst": 2}}, policy={"breaker": breaker})
    begun = time.monotonic()
    for _ in range(5):
        loop.ask(timeout=10.0)
    since = [request.time - begun for request in loop.provider().requests]
    assert all(at >= 0.05 * (turn - 1) for turn, at in enumerate(since))  # two at once, then one every 50 ms
    loop.provider().script(throttled(retry_after="0.02"))
    assert loop.ask(timeout=10.0).text == "Say hello"
    loop.provider().script(Fault.status(500))
    with pytest.raises(fastroute.InternalServerError):
        loop.ask(timeout=10.0)
    core = core_of(loop.client)
    assert 100e9 < core.reopens_in() <= 300e9
    loop.provider().script(throttled(retry_after="61"))
    core.hurry()
    with pytest.raises(fastroute.RateLimitError):
        loop.ask()
    assert 55 < loop.endpoint()["blocked_s"] <= 61


def test_083_tokens_refused_cost_no_request(start: Start) -> None:
    loop = start(
        {"a": Provider(answer=Answer(content="x", completion_tokens=1500))},
        providers={"a": {"rpm": 1, "burst": 10, "tpm": 1, "token_burst": 2000}},
        policy={"queue_timeout": 0.0},
    )
    loop.ask(max_tokens=1500)
    left = loop.endpoint()
    for _ in range(3):
        with pytest.raises(fastroute.RateLimitError, match="tokens"):
            loop.ask(max_tokens=1000)
    assert loop.endpoint()["available_requests"] == left["available_requests"] == 9
    assert loop.endpoint()["available_tokens"] == left["available_tokens"]


def test_085_more_than_was_reserved_becomes_a_debt(start: Start) -> None:
    provider = Provider(answer=Answer(content="x", completion_tokens=5000))
    loop = start(
        {"a": provider}, providers={"a": {"tpm": 60, "token_burst": 1000}}, policy={"queue_timeout": 0.0}
    )
    loop.ask(max_tokens=10)
    assert loop.endpoint()["available_tokens"] < -3900
    with pytest.raises(fastroute.RateLimitError):
        loop.ask(max_tokens=1)


# ------------------------------------------------------------------------------------------ many threads


def run_threads(count: int, run: Callable[[int], object]) -> list[BaseException]:
    """Runs it in so many threads that begin together; what they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(count)

    def body(number: int) -> None:
        barrier.wait()
        try:
            run(number)
        except BaseException as error:
            raised.append(error)

    workers = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return raised


def test_a_limit_grants_exactly_what_it_has(start: Start) -> None:
    loop = start(1, providers={"a": {"rpm": 1, "burst": 10}}, policy={"queue_timeout": 0.0})
    raised = run_threads(16, lambda number: loop.ask(f"question {number}"))
    assert len(raised) == 6
    assert {type(error) for error in raised} == {fastroute.RateLimitError}
    assert loop.provider().received == 10


def test_those_over_the_limit_wait_in_line(start: Start) -> None:
    loop = start(1, providers={"a": {"rpm": 6000, "burst": 1}}, policy={"queue_timeout": 5.0})
    begun = time.monotonic()
    assert run_threads(16, lambda number: loop.ask(f"question {number}")) == []
    times = sorted(request.time - begun for request in loop.provider().requests)
    assert all(at >= 0.01 * turn for turn, at in enumerate(times))
    assert max(attempt.latency for attempt in loop.attempts) < 5


def test_no_more_may_wait_than_the_queue_holds(start: Start) -> None:
    loop = start(1, providers={"a": {"max_in_flight": 1}}, policy={"max_queue": 2, "queue_timeout": 5.0})
    loop.provider().script(Fault.stall("headers", 0.4))
    raised = run_threads(6, lambda number: loop.ask(f"question {number}"))
    assert {type(error) for error in raised} == {fastroute.RateLimitError}
    assert 3 <= len(raised) <= 5
    assert loop.provider().peak_in_flight == 1
    assert all("max_queue" in str(error) for error in raised)


def test_submitted_calls_wait_until_their_deadline_and_others_for_queue_timeout(start: Start) -> None:
    loop = start(1, providers={"a": {"rpm": 1200, "burst": 1}}, policy={"queue_timeout": 0.1})
    question = [{"role": "user", "content": "hello"}]
    words: dict[str, Any] = {"model": MODEL, "messages": question, "route": {"cache": False}}
    futures = [loop.client.submit(**words) for _ in range(16)]
    while loop.client.stats()["queued"] < 8:  # at 20 a second the last of them waits for 0.4 s
        time.sleep(0.001)
    with pytest.raises(fastroute.RateLimitError, match=r"policy\.queue_timeout"):
        loop.ask("while the line is long")
    assert [future.result(20).choices[0].finish_reason for future in futures] == ["stop"] * 16


def test_a_submitted_call_that_cannot_go_in_before_its_deadline_is_refused_at_once(start: Start) -> None:
    loop = start(1, providers={"a": {"rpm": 2, "burst": 1}})
    loop.ask()
    late = loop.client.submit(model=MODEL, messages=[{"role": "user", "content": "late"}], timeout=5)
    with within(2.0), pytest.raises(fastroute.RateLimitError, match="deadline") as raised:
        late.result(20)
    assert raised.value.retry_after == pytest.approx(30, abs=1)


def test_waiting_ends_with_the_queues_time_and_the_calls_deadline(start: Start) -> None:
    loop = start(1, providers={"a": {"max_in_flight": 1}}, policy={"queue_timeout": 0.1})
    with loop.stream("holds the only permit") as held:
        next(held)
        with within(0.1), pytest.raises(fastroute.RateLimitError):
            loop.ask()
        with within(0.05), pytest.raises((fastroute.RateLimitError, fastroute.DeadlineExceeded)):
            loop.ask(timeout=0.05)
    assert loop.ask().text == "Say hello"


def test_a_full_endpoint_is_passed_over(start: Start) -> None:
    loop = start(2, providers={"a": {"max_in_flight": 1}})
    with loop.stream("holds the only permit"):
        reply = loop.ask()
        assert reply.route is not None
        assert reply.route.endpoint == f"b/{MODEL}"
        assert len(reply.route.attempts) == 1


def test_retries_on_one_endpoint_are_budgeted_and_failover_is_not(start: Start) -> None:
    breaker = {"failures": 255, "min_calls": 10_000}
    loop = start(1, policy={"max_attempts": 2, "breaker": breaker})
    loop.provider().script(Fault.status(500), repeat=True)
    begun = time.monotonic()
    for _ in range(40):
        with pytest.raises(fastroute.InternalServerError):
            loop.ask()
    assert loop.of(events.RetryBudgetExhausted)
    # A fifth of a retry for each call, ten at the start, and one a second.
    assert loop.provider().received <= 40 + 40 * 0.2 + 10 + (time.monotonic() - begun)
    two = start(2, policy={"max_attempts": 2, "breaker": breaker})
    two.provider("a").script(Fault.status(500), repeat=True)
    for _ in range(40):
        assert two.ask().text == "Say hello"
    assert two.provider("b").received == 40


def test_backoff_never_sleeps_past_the_deadline(start: Start) -> None:
    loop = start(1)
    loop.provider().script(throttled(retry_after="5"))
    with within(0.0), pytest.raises(fastroute.RateLimitError):
        loop.ask(timeout=1.0)
