"""Calls that are slow enough for a second request, and what became of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopback import MODEL, Loopback

import fastroute
from fastroute import Attempt, events
from fastroute.state.endpoints import LiveEndpoint
from fastroute.testing import Fault

Start = Callable[..., Loopback]
SLOW = Fault.slow(20.0)
HEDGING = {"enabled": True, "min_delay": 0.02, "min_samples": 10, "max_share": 1.0}


def hedging(**rules: Any) -> dict[str, Any]:
    return {"hedging": {**HEDGING, **rules}}


def endpoint(loop: Loopback, name: str = "a") -> LiveEndpoint:
    return loop.client.runtime.generation.state.named(f"{name}/{MODEL}")


def known(loop: Loopback, *, latency: float = 0.001, calls: int = 10, name: str = "a") -> None:
    """As if so many calls of that latency had been answered lately, and as many streams had begun."""
    for stream in (False, True):
        tail = endpoint(loop, name).tail(stream)
        assert tail is not None
        for _ in range(calls):
            tail.record(latency)


def forgiving(loop: Loopback) -> None:
    """So many first attempts went well lately that the retry budgets bear as many hedges."""
    for name in loop.providers:
        for _ in range(200):
            endpoint(loop, name).core.deposit()


def once_hedged(loop: Loopback, fault: Fault | None) -> Callable[[Any], Fault | None]:
    """The first endpoint's answer, as soon as the second one is asked."""

    def answer(request: Any) -> Fault | None:
        loop.provider("b").wait_until(lambda known: known.received, 10)
        return fault

    return answer


def outcomes(attempts: Any) -> dict[str, str]:
    return {attempt.endpoint.split("/")[0]: attempt.outcome for attempt in attempts}


def tried(reply: fastroute.Completion) -> tuple[Attempt, ...]:
    assert reply.route is not None
    return reply.route.attempts


def lost(attempts: Any) -> list[Attempt]:
    return [attempt for attempt in attempts if attempt.outcome == "hedge_lost"]


def refused(loop: Loopback, **params: Any) -> None:
    """A slow first attempt answers by itself: nobody is asked beside it."""
    loop.provider("a").script(Fault.slow(0.25))
    reply = loop.ask(**params)
    assert outcomes(tried(reply)) == {"a": "ok"}
    assert loop.provider("b").received == 0
    assert loop.of(events.Hedged) == []
