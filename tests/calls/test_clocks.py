"""Time limits that the caller did not set move a call to another endpoint, and never end it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from loopback import MODEL, Loopback

import fastroute
from fastroute import errors
from fastroute.config.catalog import ASSUMED_CAPABILITIES, REASONING
from fastroute.state.tokens import reasoning_tokens
from fastroute.testing import Fault

HASTY = {"timeout_base": 0.2, "timeout_per_1k": 0.0}
LATE = 20.0

Start = Callable[..., Loopback]


def ask(loop: Loopback, stream: bool, **params: Any) -> str:
    answer = loop.client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Say hello"}],
        stream=stream,
        timeout=LATE,
        **params,
    )
    if isinstance(answer, fastroute.Completion):
        return answer.text
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_the_only_endpoint_has_until_the_deadline(start: Start, stream: bool) -> None:
    loop = start(1, policy=HASTY)
    loop.providers["a"].script(Fault.slow(1.0))
    assert ask(loop, stream)
    assert len(loop.providers["a"].requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_the_last_endpoint_left_has_until_the_deadline(start: Start, stream: bool) -> None:
    loop = start(2, policy=HASTY)
    loop.providers["a"].script(Fault.status(503))
    loop.providers["b"].script(Fault.slow(1.0))
    assert ask(loop, stream)
    assert len(loop.providers["b"].requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_slow_attempt_moves_to_an_endpoint_that_is_ready(start: Start, stream: bool) -> None:
    loop = start(2, policy=HASTY, check=False)
    loop.providers["a"].script(Fault.slow(LATE))
    began = time.monotonic()
    assert ask(loop, stream)
    assert time.monotonic() - began < LATE / 2
    assert [len(provider.requests) for provider in loop.providers.values()] == [1, 1]


def test_an_endpoint_at_its_limit_is_not_ready(start: Start) -> None:
    """Its one permit is taken, so the slow attempt goes on and is not paid for twice."""
    loop = start(2, policy=HASTY, providers={"b": {"max_in_flight": 1}})
    loop.providers["a"].script(Fault.slow(1.0))
    core = loop.client.runtime.generation.state.named(f"b/{MODEL}").core
    ticket = core.admit(1)
    try:
        assert ask(loop, False)
    finally:
        core.undo(ticket, 1)
    assert [len(provider.requests) for provider in loop.providers.values()] == [1, 0]


def test_the_last_attempt_that_may_be_made_has_until_the_deadline(start: Start) -> None:
    loop = start(3, policy={**HASTY, "max_attempts": 2}, check=False)
    loop.providers["a"].script(Fault.slow(LATE))
    loop.providers["b"].script(Fault.slow(1.0))
    assert ask(loop, False)
    assert [len(provider.requests) for provider in loop.providers.values()] == [1, 1, 0]


def test_a_role_and_then_silence_is_no_content(start: Start) -> None:
    """The idle clock begins with the first content: before it, the model may be reasoning."""
    loop = start(1, policy={**HASTY, "idle_timeout": 0.2})
    loop.providers["a"].script(Fault.stall(after=1, seconds=1.0))
    assert ask(loop, True)
    assert len(loop.providers["a"].requests) == 1


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
def test_a_stream_that_is_not_read_ends_at_the_deadline(start: Start, whole: bool) -> None:
    """Permit and money come back without the program; its next read says why, unless all has come before."""
    loop = start(1, check=False)
    if not whole:
        loop.providers["a"].script(Fault.stall(after=700, part="body"))
    ended = threading.Event()
    loop.client.on(lambda event: ended.set(), fastroute.events.AttemptFinished)
    stream = loop.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say hello"}], stream=True, timeout=0.5
    )
    next(stream)
    assert ended.wait(LATE)
    assert loop.client.stats()["endpoints"][f"a/{MODEL}"]["in_flight"] == 0
    if whole:
        list(stream)
    else:
        with pytest.raises(errors.DeadlineExceeded):
            list(stream)
    (row,) = loop.client.ledger.entries()
    assert row.outcome == ("ok" if whole else "client_cancelled")


@pytest.mark.parametrize("asked", [None, "none", "high"])
def test_first_tokens_with_and_without_reasoning_are_learned_apart(start: Start, asked: str | None) -> None:
    loop = start(1, models={MODEL: {"capabilities": ["streaming", "reasoning"]}})
    words = {} if asked is None else {"reasoning_effort": asked}
    for _ in range(20):
        ask(loop, True, **words)
    core = loop.client.runtime.generation.state.named(f"a/{MODEL}").core
    reasons = asked != "none"
    assert core.ttft_timeout(reasons) > 0 == core.ttft_timeout(not reasons)


def estimated(start: Start, model: dict[str, Any], **params: Any) -> float:
    loop = start(
        1,
        policy={"timeout_base": 30.0, "timeout_per_1k": 10.0},
        models={MODEL: {"input_price": 1.0, **model}},
    )
    plan = loop.client.plan(model=MODEL, messages=[{"role": "user", "content": "Say hello"}], **params)
    return plan.estimate.timeout


REASONS = {"capabilities": ["streaming", "reasoning"]}


@pytest.mark.parametrize(
    ("model", "params", "seconds"),
    [
        ({}, {}, 40),
        ({}, {"max_tokens": 4000}, 70),
        (REASONS, {}, 120),
        (REASONS, {"reasoning_effort": "none"}, 40),
        (REASONS, {"reasoning_effort": "high"}, 280),
        (REASONS, {"reasoning": {"effort": "low"}}, 60),
        ({}, {"thinking": {"type": "enabled", "budget_tokens": 5000}}, 90),
        (REASONS, {"max_tokens": 2000, "reasoning_effort": "high"}, 50),
    ],
)
def test_the_estimate_counts_what_is_expected(
    start: Start, model: dict[str, Any], params: dict[str, Any], seconds: float
) -> None:
    assert estimated(start, model, **params) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({}, None),
        ({"reasoning_effort": "minimal"}, 1000),
        ({"reasoning_effort": "unheard-of"}, None),
        ({"reasoning": {"enabled": False}}, 0),
        ({"reasoning": {"max_tokens": 300}}, 300),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"thinking": {"type": "enabled"}}, 8000),
        ({"reasoning_effort": True}, None),
        ({"reasoning": "high"}, None),
    ],
)
def test_how_much_reasoning_a_request_asks_for(params: dict[str, Any], tokens: int | None) -> None:
    assert reasoning_tokens(params) == tokens


def test_nobody_is_taken_to_reason_unless_it_is_known() -> None:
    assert not ASSUMED_CAPABILITIES & REASONING


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this system names its keep-alive otherwise")
def test_a_peer_that_is_gone_is_found_within_about_a_minute(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int, int, int]] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        made.append(
            (
                self.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                self.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                self.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                self.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            )
        )
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    assert ask(start(1), False)
    ((on, idle, interval, count),) = made
    assert on
    assert 20 <= idle + interval * count <= 90
