"""A call whose program does not want the answer any more ends, with the provider's request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from loopback import MODEL, Loopback, core_of, held, waiting_timers

import fastroute

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]}


@pytest.fixture
def loop(start: Callable[..., Loopback]) -> Loopback:
    loop = start(2, cache={"enabled": True}, budgets=[{"name": "all", "limit": 10.0, "window": "total"}])
    for provider in loop.providers.values():
        provider.configure(latency=60.0)
    return loop


def cancelled_once_sent(loop: Loopback, **more: Any) -> fastroute.Error:
    """The error of a call that is cancelled once the provider has its request."""
    provider = loop.provider()
    client = loop.client.with_options(cancelled=lambda: provider.in_flight > 0)
    with pytest.raises(fastroute.CallCancelled, match="cancelled") as caught:
        client.chat.completions.create(**ASKED, **more)
    provider.wait_until(lambda known: known.abandoned == 1)
    assert loop.provider("b").requests == ()  # it is not tried elsewhere
    assert held(loop.client) == {}
    assert waiting_timers() == []
    return caught.value


@pytest.mark.parametrize("stream", [False, True])
def test_it_ends_at_once_and_is_settled(loop: Loopback, stream: bool) -> None:
    error = cancelled_once_sent(loop, stream=stream)
    (attempt,) = error.attempts
    assert attempt.outcome == "client_cancelled"
    assert attempt.maybe_billed
    assert core_of(loop.client).counts == (0, 0)  # it says nothing about the endpoint


def test_a_hedge_ends_with_it(start: Callable[..., Loopback]) -> None:
    hedging = {"enabled": True, "min_delay": 0.0, "min_samples": 10, "max_share": 1.0}
    loop = start(2, policy={"hedging": hedging})
    a, b = loop.provider("a"), loop.provider("b")
    for provider in (a, b):
        provider.configure(latency=60.0)
    first, second = loop.client.runtime.generation.state.endpoints
    tail = first.tail(False)
    assert tail is not None
    for _ in range(10):
        tail.record(0.001)
        second.core.deposit()
    client = loop.client.with_options(cancelled=lambda: a.in_flight + b.in_flight == 2)
    with pytest.raises(fastroute.CallCancelled):
        client.chat.completions.create(**ASKED)
    for provider in (a, b):
        provider.wait_until(lambda known: known.abandoned == 1)


def test_equal_calls_go_on_without_it(loop: Loopback) -> None:
    """The one whose answer they share is cancelled; one of them asks again, and all have the answer."""
    provider = loop.provider()
    given_up = threading.Event()
    leader = loop.client.with_options(cancelled=given_up.is_set)
    replies: list[Any] = []

    def lead() -> None:
        with pytest.raises(fastroute.CallCancelled):
            leader.chat.completions.create(**ASKED)

    def follow() -> None:
        replies.append(loop.client.chat.completions.create(**ASKED))

    threads = [threading.Thread(target=lead)]
    threads[0].start()
    provider.wait_until(lambda known: known.in_flight == 1)
    threads += [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads[1:]:
        thread.start()
    provider.configure(latency=0.0)
    given_up.set()
    for thread in threads:
        thread.join()
    assert len(replies) == 3
    assert len(provider.requests) == 2


def test_an_answer_in_time_is_not_touched(loop: Loopback) -> None:
    loop.provider().configure(latency=0.0)
    client = loop.client.with_options(cancelled=lambda: False)
    assert client.chat.completions.create(**ASKED).choices[0].message.content
