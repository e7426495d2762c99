"""Slow probes: slow answers and long streams close a breaker like fast ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from loopback import MODEL, Loopback, core_of

import fastroute
from fastroute import _core, events
from fastroute.testing import Fault, Received

Start = Callable[..., Loopback]
BREAKER = {
    "failures": 1,
    "open": 0.001,
    "max_open": 0.001,
    "probe_lease": 0.001,
    "probes_to_close": 2,
    "ramp": 0.0,
}


def opened(start: Start, **policy: Any) -> Loopback:
    """One endpoint whose breaker has opened, and may be probed."""
    loop = start(1, policy={"breaker": BREAKER, "max_attempts": 1, **policy})
    loop.provider().script(Fault.status(500))
    with pytest.raises(fastroute.InternalServerError):
        loop.ask()
    core = core_of(loop.client)
    while core.state() != _core.HALF_OPEN:
        pass
    return loop


def test_nobody_takes_the_place_of_a_probe_that_is_slow(start: Start) -> None:
    """Were its lease over before its answer comes, each would be late, and the breaker never close."""
    loop = opened(start)
    others: list[BaseException | None] = []

    def ask_meanwhile(received: Received) -> None:
        other = loop.client.submit(model=MODEL, messages=[{"role": "user", "content": "too"}])
        others.append(other.exception(20))

    for _ in range(2):
        loop.provider().script(ask_meanwhile)
        assert loop.ask().choices
    assert [type(error) for error in others] == [fastroute.NoEndpointError] * 2
    assert loop.endpoint()["state"] == "closed"
    assert loop.provider().received == 3
    assert [event.state for event in loop.of(events.BreakerChanged)] == ["open", "closed"]


def test_others_go_elsewhere_meanwhile(start: Start) -> None:
    loop = start(2, policy={"breaker": BREAKER, "max_attempts": 2})
    loop.provider().script(Fault.status(500))
    assert loop.ask().choices
    core = core_of(loop.client)
    while core.state() != _core.HALF_OPEN:
        pass
    others: list[str] = []

    def ask_meanwhile(received: Received) -> None:
        for _ in range(5):
            reply = loop.ask("elsewhere")
            assert reply.route is not None
            others.append(reply.route.endpoint)

    loop.provider().script(ask_meanwhile)
    reply = loop.ask()
    assert reply.route is not None
    assert reply.route.endpoint == f"a/{MODEL}"
    assert others == [f"b/{MODEL}"] * 5
    assert loop.provider().received == 2


def test_a_stream_has_shown_enough_when_it_begins(start: Start) -> None:
    loop = opened(start)
    with loop.stream("one two three four") as first:
        next(first)
        with loop.stream("five six seven eight") as second:
            next(second)
            assert loop.endpoint()["state"] == "closed"
            assert [event.state for event in loop.of(events.BreakerChanged)] == ["open", "closed"]
            list(second)
        list(first)
    assert loop.endpoint()["state"] == "closed"
    loop.check()


def test_one_that_does_not_begin_is_a_failed_probe(start: Start) -> None:
    loop = opened(start)
    loop.provider().script(Fault.status(500))
    with pytest.raises(fastroute.InternalServerError):
        loop.stream()
    assert [event.state for event in loop.of(events.BreakerChanged)] == ["open", "open"]
    loop.check()
