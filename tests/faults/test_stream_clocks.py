"""Which of a stream's clocks runs when: silence, pings alone, a slow reader, the whole call (42, 58, 61)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from loopback import Loopback, within

import fastroute
from fastroute import events
from fastroute.config import Policy
from fastroute.testing import Fault

Start = Callable[..., Loopback]

LONG = "the first words and many more of them"


def read(stream: fastroute.Stream, pause: float = 0.0) -> str:
    """All of it, by a reader who takes that many seconds for the first chunk."""
    text = next(stream).choices[0].delta.content or ""
    time.sleep(pause)
    return text + "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_the_clocks_of_a_policy_that_says_nothing() -> None:
    policy = Policy()
    assert (policy.idle_timeout, policy.ping_timeout) == (30, 120)


@pytest.mark.parametrize("format", ["openai", "anthropic", "gemini"])
def test_042_pings_alone_are_no_progress(start: Start, format: str) -> None:
    loop = start(2, format=format, policy={"ping_timeout": 0.2})
    loop.provider("a").script(Fault.pings(0.02), Fault.pings(0.02, after=3), Fault.pings(0.02, 5))
    stream = loop.stream(LONG)
    assert read(stream) == LONG
    assert [attempt.error for attempt in stream.route.attempts] == ["APITimeoutError", None]
    with within(0.2), pytest.raises(fastroute.StreamStalled) as caught:
        read(loop.stream(LONG))
    assert caught.value.partial_text == LONG[:8]
    assert read(loop.stream(LONG)) == LONG  # a few pings harm nothing


@pytest.mark.parametrize("ping", [b": keepalive\n\n", b"event: ping\n\n"])
def test_042_pings_are_signs_of_life(start: Start, ping: bytes) -> None:
    """More silence but for them than a stream without them would have got."""
    loop = start(1, policy={"idle_timeout": 0.25})
    loop.provider().script(Fault.pings(0.04, 10, after=3, data=ping), Fault.stream_stall(3))
    stream = loop.stream(LONG)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == LONG  # and no ping among them
    with pytest.raises(fastroute.StreamStalled):
        read(loop.stream(LONG))
    assert [attempt.error for attempt in loop.attempts] == [None, "APITimeoutError"]


def test_061_the_reader_s_slowness_is_no_silence_of_the_provider(start: Start) -> None:
    loop = start(1, policy={"idle_timeout": 0.2, "ping_timeout": 0.2})
    loop.provider().script(Fault.stream_stall(3, 0.05))
    assert read(loop.stream(LONG), 0.4) == LONG
    assert [attempt.outcome for attempt in loop.attempts] == ["ok"]
    assert loop.endpoint()["failed"] == 0


def test_061_and_hides_none(start: Start) -> None:
    """What has fallen silent is found out after the slow reader comes back for more."""
    loop = start(1, policy={"idle_timeout": 0.2})
    loop.provider().script(Fault.stream_stall(3))
    with within(0.5), pytest.raises(fastroute.StreamStalled):
        read(loop.stream(LONG), 0.3)
    assert loop.endpoint()["failed"] == 1


def test_061_the_whole_call_still_has_its_deadline(start: Start) -> None:
    """Which a slow reader has used up, and no fault of the endpoint's."""
    policy = {"timeout_base": 0.1, "breaker": {"failures": 1}}
    loop = start(1, policy=policy, providers={"a": {"tpm": 1, "token_burst": 100_000}})
    loop.provider().script(Fault.stream_stall(3, 0.05))
    before = loop.endpoint()["available_tokens"]
    with pytest.raises(fastroute.DeadlineExceeded) as caught:
        read(loop.stream(LONG, timeout=0.5, max_tokens=1000), 0.6)
    loop.provider().wait_until(lambda provider: provider.open_connections == 0)
    assert [attempt.outcome for attempt in caught.value.attempts] == ["client_cancelled"]
    assert before - loop.endpoint()["available_tokens"] >= 1000
    assert (loop.endpoint()["state"], loop.endpoint()["failed"]) == ("closed", 0)
    assert [event.error for event in loop.of(events.CallFinished)] == ["DeadlineExceeded"]
